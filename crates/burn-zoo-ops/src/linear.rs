//! A linear layer composed from `Backend` operations.

use burn::backend::{Backend, tensor::FloatTensor};

use crate::Affine;

/// `[.., d_input] → [.., d_output]`.
pub(crate) fn composed<B: Backend>(input: FloatTensor<B>, affine: Affine<B>) -> FloatTensor<B> {
    match affine {
        Affine::Scale(weight) => B::linear(input, weight, None),
        Affine::ScaleShift(weight, bias) => B::linear(input, weight, Some(bias)),
    }
}
