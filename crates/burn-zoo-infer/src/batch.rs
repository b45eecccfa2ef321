//! Sequences of different length as one tensor.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

/// Token ids `[batch, seq]` of sequences filled up on the right with `padding`, and which of them are
/// real. One position at least, so that there is something to read.
pub(crate) fn padded<T: AsRef<[u32]>>(
    rows: &[T],
    padding: u32,
    device: &Device,
) -> (Tensor<2, Int>, Tensor<2, Bool>) {
    let lengths = rows.iter().map(|row| row.as_ref().len());
    let seq = lengths.max().unwrap_or(0).max(1);
    let shape = [rows.len(), seq];
    let each = |value: &dyn Fn(Option<u32>) -> i64| {
        let values: Vec<i64> = rows
            .iter()
            .flat_map(|row| (0..seq).map(|index| value(row.as_ref().get(index).copied())))
            .collect();
        Tensor::<2, Int>::from_data(TensorData::new(values, shape), device)
    };
    let tokens = each(&|token| token.unwrap_or(padding).into());
    let real = each(&|token| token.is_some().into());
    (tokens, real.equal_elem(1))
}
