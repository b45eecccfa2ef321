//! Dropout composed from `Backend` operations.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn::tensor::Distribution;

/// Which values are left: 0 or 1 for each.
pub(crate) fn draw<B: Backend>(values: &FloatTensor<B>, probability: f64) -> FloatTensor<B> {
    B::float_random(
        values.shape(),
        Distribution::Bernoulli(1.0 - probability),
        &values.device(),
        values.dtype().into(),
    )
}

/// Returns the output, and what each value was multiplied by: 0, or `1 / (1 - probability)`.
pub(crate) fn composed_forward<B: Backend>(
    input: FloatTensor<B>,
    probability: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let kept = draw::<B>(&input, probability);
    let factors = B::float_mul_scalar(kept, (1.0 / (1.0 - probability)).into());
    (B::float_mul(input, factors.clone()), factors)
}

/// The gradient of the input.
pub(crate) fn composed_backward<B: Backend>(
    factors: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    B::float_mul(grad, factors)
}
