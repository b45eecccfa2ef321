//! Rows of a table, and their sums: each row of the total by one thread, in the order of what is added to it.

use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;
use macerator::Simd;
use rayon::prelude::*;

use super::simd::{Kernel, chunk_length, contiguous, mul_add, run, sum, tensor, update};

/// Indices, such as the class or the token of each row, if they are of a type that is read here.
pub(super) fn indices(tensor: &FlexTensor) -> Option<Vec<usize>> {
    let tensor = tensor.to_contiguous();
    let (start, end) = tensor.layout().contiguous_offsets()?;
    match tensor.dtype() {
        DType::I32 => {
            let values = &tensor.storage::<i32>()[start..end];
            values
                .iter()
                .map(|&index| usize::try_from(index).ok())
                .collect()
        }
        DType::I64 => {
            let values = &tensor.storage::<i64>()[start..end];
            values
                .iter()
                .map(|&index| usize::try_from(index).ok())
                .collect()
        }
        _ => None,
    }
}

/// The rows of the table `[n, width]` that the indices name, `[n_rows, width]`.
pub(super) fn gather(table: FlexTensor, indices: &[usize]) -> FlexTensor {
    let [_, width] = table.layout().shape().dims();
    let table = contiguous(table);
    let length = indices.len() * width;
    let mut output = Vec::with_capacity(length);
    let spare = &mut output.spare_capacity_mut()[..length];
    let chunk = chunk_length(length, width);
    let pieces = spare.par_chunks_mut(chunk.max(1));
    pieces
        .zip(indices.par_chunks((chunk / width.max(1)).max(1)))
        .for_each(|(piece, indices)| {
            for (target, &index) in piece.chunks_exact_mut(width).zip(indices) {
                target.write_copy_of_slice(&table[index * width..][..width]);
            }
        });
    // SAFETY: each value was written.
    unsafe { output.set_len(length) };
    tensor(output, Shape::new([indices.len(), width]))
}

/// Which rows are added to each row of a total.
struct Groups {
    /// Where each group starts among the rows, and where the last ends.
    starts: Vec<usize>,
    /// Rows, group after group.
    rows: Vec<usize>,
}

impl Groups {
    /// Of a total of `n` rows.
    fn new(indices: &[usize], n: usize) -> Self {
        let mut starts = vec![0; n + 1];
        for &index in indices {
            starts[index + 1] += 1;
        }
        for group in 0..n {
            starts[group + 1] += starts[group];
        }
        let mut next = starts.clone();
        let mut rows = vec![0; indices.len()];
        for (row, &index) in indices.iter().enumerate() {
            rows[next[index]] = row;
            next[index] += 1;
        }
        Self { starts, rows }
    }
}

/// Rows of the total, and what is added to them.
struct Add<'a> {
    total: &'a mut [f32],
    /// The number of the first row.
    first: usize,
    width: usize,
    groups: &'a Groups,
    rows: &'a [f32],
    weights: Option<&'a [f32]>,
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let bounds = self.groups.starts[self.first..].windows(2);
        for (total, bounds) in self.total.chunks_exact_mut(self.width).zip(bounds) {
            for &row in &self.groups.rows[bounds[0]..bounds[1]] {
                let weight = self.weights.map_or(1.0, |weights| weights[row]);
                let added = &self.rows[row * self.width..][..self.width];
                for (total, &added) in total.iter_mut().zip(added) {
                    *total = mul_add::<S>(weight, added, *total);
                }
            }
        }
    }
}

/// Adds to the total `[n, width]`, in place where nobody else holds it, each of the rows `[n_rows, width]`, times its
/// weight `[n_rows, 1]` if there are weights, where its index says.
pub(super) fn add(
    total: FlexTensor,
    rows: FlexTensor,
    weights: Option<FlexTensor>,
    indices: &[usize],
) -> FlexTensor {
    let [n, width] = total.layout().shape().dims();
    if width == 0 || indices.is_empty() {
        return total;
    }
    let groups = Groups::new(indices, n);
    let (rows, weights) = (contiguous(rows), weights.map(contiguous));
    let weights = weights.as_deref();
    update(total, chunk_length(n * width, width), |first, total| {
        run(Add {
            total,
            first: first / width,
            width,
            groups: &groups,
            rows: &rows,
            weights,
        });
    })
}

/// Rows, which become their gradients, and the gradients of their weights.
struct WeightedBackward<'a> {
    rows: &'a mut [f32],
    of_weights: &'a mut [f32],
    weights: &'a [f32],
    indices: &'a [usize],
    grad: &'a [f32],
}

impl Kernel for WeightedBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let width = self.rows.len() / self.indices.len();
        let weights = self.weights.iter().zip(self.of_weights);
        let rows = self.rows.chunks_exact_mut(width).zip(self.indices);
        for ((row, &index), (&weight, of_weight)) in rows.zip(weights) {
            let grad = &self.grad[index * width..][..width];
            [*of_weight] = sum::<1>(row, grad, |x, grad| [x * grad]);
            for (value, &grad) in row.iter_mut().zip(grad) {
                *value = weight * grad;
            }
        }
    }
}

/// The gradients of the rows and of their weights.
pub(super) fn weighted_backward(
    rows: FlexTensor,
    weights: FlexTensor,
    indices: &[usize],
    grad: FlexTensor,
) -> (FlexTensor, FlexTensor) {
    let [n_rows, width] = rows.layout().shape().dims();
    let mut of_weights = vec![0.0; n_rows];
    let shape = Shape::new([n_rows, 1]);
    if n_rows * width == 0 {
        return (rows, tensor(of_weights, shape));
    }
    let (weights, grad) = (contiguous(weights), contiguous(grad));
    let mut rows = super::simd::owned(rows);
    let length = chunk_length(n_rows * width, width);
    let n = length / width;
    rows.storage_mut::<f32>()
        .par_chunks_mut(length)
        .zip(of_weights.par_chunks_mut(n))
        .zip(weights.par_chunks(n).zip(indices.par_chunks(n)))
        .for_each(|((rows, of_weights), (weights, indices))| {
            run(WeightedBackward {
                rows,
                of_weights,
                weights,
                indices,
                grad: &grad,
            });
        });
    (rows, tensor(of_weights, shape))
}
