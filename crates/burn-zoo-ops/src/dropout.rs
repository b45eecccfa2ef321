//! Dropout composed from `Backend` operations.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn::tensor::Distribution;

use crate::TransformerOps;

/// Which values are left: 0 or 1 for each.
pub(crate) fn composed_draw<B: Backend>(
    values: &FloatTensor<B>,
    probability: f64,
) -> FloatTensor<B> {
    B::float_random(
        values.shape(),
        Distribution::Bernoulli(1.0 - probability),
        &values.device(),
        values.dtype().into(),
    )
}

/// Returns the output, and what each value was multiplied by: 0, or `1 / (1 - probability)`.
pub(crate) fn composed_forward<B: TransformerOps>(
    input: FloatTensor<B>,
    probability: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let kept = B::dropout_draw(input.clone(), probability);
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
