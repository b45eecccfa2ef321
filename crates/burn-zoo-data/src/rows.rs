//! Rows of different lengths as tensors, filled up at the end.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

/// `[rows, longest]`, short rows filled up with `fill`.
pub(crate) fn padded<'a>(
    rows: impl Iterator<Item = &'a [i32]> + Clone,
    fill: i32,
    device: &Device,
) -> Tensor<2, Int> {
    let longest = rows.clone().map(<[i32]>::len).max().unwrap_or(0);
    let mut values = Vec::new();
    let mut count = 0;
    for row in rows {
        values.extend_from_slice(row);
        count += 1;
        values.resize(count * longest, fill);
    }
    Tensor::from_data(TensorData::new(values, [count, longest]), device)
}

/// Which places of such rows are not filled up, `[rows, longest]`; none when all.
pub(crate) fn visible(
    lengths: impl Iterator<Item = usize> + Clone,
    device: &Device,
) -> Option<Tensor<2, Bool>> {
    let longest = lengths.clone().max()?;
    if lengths.clone().all(|length| length == longest) {
        return None;
    }
    let count = lengths.clone().count();
    let places = lengths.flat_map(|length| (0..longest).map(move |place| place < length));
    let places: Vec<bool> = places.collect();
    let data = TensorData::new(places, [count, longest]);
    Some(Tensor::from_data(data, device))
}

/// Token ids as tensors hold them.
pub(crate) fn ids(tokens: &[u32]) -> Vec<i32> {
    tokens.iter().map(|&token| token as i32).collect()
}
