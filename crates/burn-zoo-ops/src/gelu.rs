//! The gradient of the exact GELU composed from `Backend` operations.

use std::f64::consts::{PI, SQRT_2};

use burn::backend::{Backend, tensor::FloatTensor};

/// With `Φ` the normal distribution and `φ` its density: `grad · (Φ(x) + x φ(x))`.
///
/// Burn's own default is the gradient of a tanh approximation, which is off by up to 0.001.
pub(crate) fn composed_backward<B: Backend>(
    input: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let erf = B::float_erf(B::float_mul_scalar(input.clone(), (1.0 / SQRT_2).into()));
    let distribution = B::float_add_scalar(B::float_mul_scalar(erf, 0.5.into()), 0.5.into());
    let square = B::float_mul(input.clone(), input.clone());
    let density = B::float_exp(B::float_mul_scalar(square, (-0.5).into()));
    let density = B::float_mul_scalar(density, (1.0 / (2.0 * PI).sqrt()).into());
    let slope = B::float_add(distribution, B::float_mul(input, density));
    B::float_mul(grad, slope)
}
