//! Linear layers: one matrix product over all rows that begins with the bias.

use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};
use macerator::Simd;
use rayon::prelude::*;

use super::product::{Matrix, Start, product};
use super::simd::{Kernel, add_up, contiguous, run, summing_length, tensor};
use crate::Affine;

/// Products of fewer multiplications are for one thread.
const PARALLEL: usize = 1 << 18;

/// `[.., d_input] → [.., d_output]`.
pub(super) fn forward(input: FlexTensor, affine: Affine<Flex>) -> FlexTensor {
    let (weight, bias) = affine.into_parts();
    let bias = bias.map(contiguous);
    let [inner, width] = weight.layout().shape().dims();
    let mut shape = input.layout().shape().to_vec();
    let last = shape.len() - 1;
    shape[last] = width;
    let (input, range) = contiguous(input);
    let input = &input.storage::<f32>()[range];
    let rows = shape[..last].iter().product::<usize>();
    assert_eq!(input.len(), rows * inner, "the input has the weight's rows");
    let mut output = Vec::new();
    let start = match &bias {
        Some((bias, range)) => Start::Row(&bias.storage::<f32>()[range.clone()][..width]),
        None => Start::Zero,
    };
    let strides = weight.layout().strides();
    let strides = [strides[0], strides[1]];
    let weights = &weight.storage::<f32>()[weight.layout().start_offset()..];
    let left = Matrix::read(input, [inner as isize, 1]);
    let right = Matrix::read(weights, strides);
    let target = Matrix::room(&mut output, rows, width);
    let (sizes, is_parallel) = ([rows, width, inner], rows * inner * width >= PARALLEL);
    // SAFETY: the matrices have these sizes, and the target is nobody else's.
    unsafe { product(sizes, target, start, left, right, is_parallel) };
    // SAFETY: the product has written each value.
    unsafe { output.set_len(rows * width) };
    tensor(output, Shape::from(shape))
}

/// `[.., d_input] [.., d_output] → [d_input, d_output]`.
pub(super) fn weight_backward(input: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let last = |tensor: &FlexTensor| {
        let shape = tensor.layout().shape();
        shape[shape.num_dims() - 1]
    };
    let (inner, width) = (last(&input), last(&grad));
    let ((input, of_input), (grad, of_grad)) = (contiguous(input), contiguous(grad));
    let input = &input.storage::<f32>()[of_input];
    let grad = &grad.storage::<f32>()[of_grad];
    let rows = input.len() / inner.max(1);
    let mut output = Vec::new();
    let left = Matrix::read(input, [1, inner as isize]);
    let right = Matrix::read(grad, [width as isize, 1]);
    let target = Matrix::room(&mut output, inner, width);
    let (sizes, is_parallel) = ([inner, width, rows], rows * inner * width >= PARALLEL);
    // SAFETY: the matrices have these sizes, the target is nobody else's, and the product writes all of it.
    unsafe {
        product(sizes, target, Start::Zero, left, right, is_parallel);
        output.set_len(inner * width);
    }
    tensor(output, Shape::new([inner, width]))
}

/// Sums of columns of rows.
struct Sums<'a> {
    rows: &'a [f32],
    width: usize,
}

impl Kernel for Sums<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<f32> {
        let mut sums = vec![0.0; self.width];
        for row in self.rows.chunks_exact(self.width) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
        sums
    }
}

/// Sums of the columns of rows of `width`.
pub(super) fn sum_columns(rows: &[f32], width: usize) -> Vec<f32> {
    let pieces = rows.par_chunks(summing_length(rows.len(), width));
    let parts: Vec<Vec<f32>> = pieces.map(|rows| run(Sums { rows, width })).collect();
    add_up(width, &parts)
}

/// `[.., d_output] → [d_output]`.
pub(super) fn bias_backward(grad: FlexTensor) -> FlexTensor {
    let shape = grad.layout().shape().clone();
    let width = shape[shape.num_dims() - 1];
    let (grad, range) = contiguous(grad);
    tensor(
        sum_columns(&grad.storage::<f32>()[range], width),
        Shape::new([width]),
    )
}
