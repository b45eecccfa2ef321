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
    let bias = bias
        .as_ref()
        .map(|(bias, range)| &bias.storage::<f32>()[range.clone()][..width]);
    let strides = weight.layout().strides();
    let strides = [strides[0], strides[1]];
    let weights = weight.storage::<f32>()[weight.layout().start_offset()..].as_ptr();
    let mut output = Vec::with_capacity(rows * width);
    let (sizes, target) = ([rows, width, inner], output.as_mut_ptr());
    // SAFETY: the matrices have these sizes, the target is nobody else's, and all of it is written.
    unsafe {
        multiply(sizes, target, bias, input.as_ptr(), (weights, strides));
        output.set_len(rows * width);
    }
    tensor(output, Shape::from(shape))
}

/// Writes `input · weight + bias` of sizes `[m, k]`, `[k, n]` and `[n]`. All but the weight lies row by row.
///
/// # Safety
///
/// There is as much behind the pointers, and nobody else uses the target.
pub(crate) unsafe fn multiply(
    sizes @ [rows, width, inner]: [usize; 3],
    target: *mut f32,
    bias: Option<&[f32]>,
    input: *const f32,
    (weights, strides): (*const f32, [isize; 2]),
) {
    let start = bias.map_or(Start::Zero, Start::Row);
    let by_row = |values, width: usize| Matrix::at(values, [width as isize, 1]);
    let (target, left) = (by_row(target, width), by_row(input.cast_mut(), inner));
    let right = Matrix::at(weights.cast_mut(), strides);
    let is_parallel = rows * inner * width >= PARALLEL;
    // SAFETY: as promised.
    unsafe { product(sizes, target, start, left, right, is_parallel) };
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
    assert_eq!(
        grad.len(),
        rows * width,
        "the gradient has the input's rows"
    );
    let mut output = Vec::with_capacity(inner * width);
    let (sizes, target) = ([inner, width, rows], output.as_mut_ptr());
    // SAFETY: the matrices have these sizes, the target is nobody else's, and all of it is written.
    unsafe {
        multiply_across(sizes, target, input.as_ptr(), grad.as_ptr());
        output.set_len(inner * width);
    }
    tensor(output, Shape::new([inner, width]))
}

/// Writes `inputᵀ · grad` of sizes `[m, k]` and `[k, n]`. All lies row by row, the input in rows of `m`.
///
/// # Safety
///
/// There is as much behind the pointers, and nobody else uses the target.
pub(crate) unsafe fn multiply_across(
    sizes @ [inner, width, rows]: [usize; 3],
    target: *mut f32,
    input: *const f32,
    grad: *const f32,
) {
    let by_row = |values, width: usize| Matrix::at(values, [width as isize, 1]);
    let left = by_row(input.cast_mut(), inner).transposed();
    let (target, right) = (by_row(target, width), by_row(grad.cast_mut(), width));
    let is_parallel = rows * inner * width >= PARALLEL;
    // SAFETY: as promised.
    unsafe { product(sizes, target, Start::Zero, left, right, is_parallel) };
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
