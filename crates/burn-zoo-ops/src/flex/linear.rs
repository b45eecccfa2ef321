//! Linear layers: one matrix product over all rows that begins with the bias, shared among threads by columns where there
//! are few rows, as when one token is written.

use std::ops::Range;

use burn::tensor::Shape;
use burn_flex::FlexTensor;
use gemm::{Parallelism, gemm};
use macerator::Simd;
use rayon::prelude::*;

use super::simd::{Kernel, chunk_length, contiguous, run, tensor};
use crate::Affine;

/// Up to so many rows the product takes as long as reading the matrix.
const FEW: usize = 8;

/// Columns that a thread takes at a time of few rows.
const COLUMNS: usize = 128;

/// Products of fewer multiplications are for one thread.
const PARALLEL: usize = 1 << 18;

/// The operands of a product, for threads to share.
struct Product<'a> {
    input: &'a [f32],
    weight: *const f32,
    /// From one row and column of the weight to the next.
    strides: [isize; 2],
    output: *mut f32,
    /// Rows, inner, columns.
    sizes: [usize; 3],
    /// Whether the output begins with the bias.
    is_added: bool,
}

// SAFETY: threads write to columns that no other has.
unsafe impl Sync for Product<'_> {}

impl Product<'_> {
    /// # Safety
    ///
    /// Nobody else writes to these columns.
    unsafe fn columns(&self, columns: Range<usize>, parallelism: Parallelism) {
        let [rows, inner, width] = self.sizes;
        let [row, column] = self.strides;
        let start = columns.start as isize;
        // SAFETY: the columns lie within both matrices.
        unsafe {
            gemm(
                rows,
                columns.len(),
                inner,
                self.output.offset(start),
                1,
                width as isize,
                self.is_added,
                self.input.as_ptr(),
                1,
                inner as isize,
                self.weight.offset(start * column),
                column,
                row,
                1.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

/// `[.., d_input] → [.., d_output]`.
pub(super) fn forward(input: FlexTensor, affine: Affine<burn_flex::Flex>) -> FlexTensor {
    let (weight, bias) = match affine {
        Affine::Scale(weight) => (weight, None),
        Affine::ScaleShift(weight, bias) => (weight, Some(contiguous(bias))),
    };
    let [inner, width] = weight.layout().shape().dims();
    let mut shape = input.layout().shape().to_vec();
    let last = shape.len() - 1;
    shape[last] = width;
    let (input, range) = contiguous(input);
    let input = &input.storage::<f32>()[range];
    let rows = shape[..last].iter().product::<usize>();
    let mut output = match &bias {
        Some((bias, range)) => {
            let bias = &bias.storage::<f32>()[range.clone()];
            let mut output = Vec::with_capacity(rows * width);
            let spare = &mut output.spare_capacity_mut()[..rows * width];
            let pieces = spare.par_chunks_mut(chunk_length(rows * width, width));
            pieces.for_each(|piece| {
                for row in piece.chunks_exact_mut(width) {
                    row.write_copy_of_slice(bias);
                }
            });
            // SAFETY: each value was written.
            unsafe { output.set_len(rows * width) };
            output
        }
        None => vec![0.0; rows * width],
    };
    let product = Product {
        input,
        weight: weight.storage::<f32>()[weight.layout().start_offset()..].as_ptr(),
        strides: [weight.layout().strides()[0], weight.layout().strides()[1]],
        output: output.as_mut_ptr(),
        sizes: [rows, inner, width],
        is_added: bias.is_some(),
    };
    let is_parallel = rows * inner * width >= PARALLEL;
    if is_parallel && rows <= FEW {
        (0..width.div_ceil(COLUMNS))
            .into_par_iter()
            .for_each(|number| {
                let first = number * COLUMNS;
                // SAFETY: each piece has columns of its own.
                unsafe { product.columns(first..(first + COLUMNS).min(width), Parallelism::None) };
            });
    } else {
        let parallelism = match is_parallel {
            true => Parallelism::Rayon(0),
            false => Parallelism::None,
        };
        // SAFETY: there is one piece.
        unsafe { product.columns(0..width, parallelism) };
    }
    tensor(output, Shape::from(shape))
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

/// `[.., d_output] → [d_output]`.
pub(super) fn bias_backward(grad: FlexTensor) -> FlexTensor {
    let shape = grad.layout().shape().clone();
    let width = shape[shape.num_dims() - 1];
    let (grad, range) = contiguous(grad);
    let grad = &grad.storage::<f32>()[range];
    // Each piece sums as many numbers as a row has, so there are not many, however wide rows are.
    let rows = (grad.len() / width.max(1)).div_ceil(32);
    let length = chunk_length(grad.len(), width).max(rows * width);
    let pieces = grad.par_chunks(length);
    let parts: Vec<Vec<f32>> = pieces.map(|rows| run(Sums { rows, width })).collect();
    // In their order, so that the sum is always the same.
    let mut total = vec![0.0; width];
    for part in parts {
        total
            .iter_mut()
            .zip(part)
            .for_each(|(total, part)| *total += part);
    }
    tensor(total, Shape::new([width]))
}
