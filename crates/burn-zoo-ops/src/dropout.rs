//! Dropout composed from `Backend` operations.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn::tensor::Distribution;

/// Returns the output, and what each value was multiplied by: 0, or `1 / (1 - probability)`.
pub(crate) fn composed_forward<B: Backend>(
    input: FloatTensor<B>,
    probability: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let keep = 1.0 - probability;
    let kept = B::float_random(
        input.shape(),
        Distribution::Bernoulli(keep),
        &input.device(),
        input.dtype().into(),
    );
    let factors = B::float_mul_scalar(kept, (1.0 / keep).into());
    (B::float_mul(input, factors.clone()), factors)
}

/// The gradient of the input.
pub(crate) fn composed_backward<B: Backend>(
    factors: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    B::float_mul(grad, factors)
}
