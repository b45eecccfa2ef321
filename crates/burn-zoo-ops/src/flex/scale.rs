//! All values times one number, in their place, and the sum of their squares: what gradients, which can be as large as
//! the model, are clipped by.

use burn::tensor::Shape;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::simd::{Dot, chunk_length, contiguous, run, tensor, update};

/// A matrix whose columns lie side by side, as the gradient of a transposed weight does, by its columns.
fn is_across(tensor: &FlexTensor) -> bool {
    let layout = tensor.layout();
    layout.shape().num_dims() == 2 && layout.strides()[0] == 1 && layout.shape()[1] > 1
}

/// The input times the factor `[1]`. Nearly always that is 1, and there is nothing to do.
pub(super) fn scale(input: FlexTensor, factor: FlexTensor) -> FlexTensor {
    let factor = contiguous(factor)[0];
    if factor == 1.0 {
        return input;
    }
    let is_across = is_across(&input);
    let swapped = |tensor: FlexTensor| match is_across {
        true => tensor.transpose(0, 1),
        false => tensor,
    };
    let input = swapped(input);
    let length = chunk_length(input.layout().num_elements(), 1);
    swapped(update(input, length, |_, values| {
        values.iter_mut().for_each(|value| *value *= factor);
    }))
}

/// The sum of all squares, `[1]`.
pub(super) fn square_sum(input: FlexTensor) -> FlexTensor {
    let input = match is_across(&input) {
        true => input.transpose(0, 1),
        false => input,
    };
    let values = contiguous(input);
    let pieces = values.par_chunks(chunk_length(values.len(), 1).max(1));
    let parts: Vec<f32> = pieces.map(|values| run(Dot(values, values))).collect();
    // Of a large model there are many, and each is small beside their sum.
    let total: f64 = parts.into_iter().map(f64::from).sum();
    tensor(vec![total as f32], Shape::new([1]))
}
