//! Activations and their gradients composed from `Backend` operations.

use std::f64::consts::{FRAC_2_SQRT_PI, PI, SQRT_2};

use burn::backend::{Backend, tensor::FloatTensor};

use crate::TransformerOps;

/// A smooth function between the two layers of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x Φ(x)` with `Φ` the normal distribution (Hendrycks & Gimpel 2016, arXiv:1606.08415).
    Gelu,
    /// Its approximation `x σ(2u)` with `u = √(2/π) (x + 0.044715 x³)`, from the same paper.
    GeluTanh,
    /// `x σ(x)`, also called Swish.
    Silu,
}

/// √(2/π).
pub(crate) const TANH_SCALE: f64 = FRAC_2_SQRT_PI / SQRT_2;
/// The share of x³ in the approximation.
pub(crate) const TANH_CUBE: f64 = 0.044715;

/// `x` times this is the activation, but for the exact GELU.
fn gate<B: Backend>(input: FloatTensor<B>, activation: Activation) -> FloatTensor<B> {
    B::sigmoid(match activation {
        Activation::Silu => input,
        Activation::Gelu | Activation::GeluTanh => {
            let square = B::float_mul(input.clone(), input.clone());
            let square = B::float_mul_scalar(square, TANH_CUBE.into());
            let inner = B::float_mul(input, B::float_add_scalar(square, 1.0.into()));
            B::float_mul_scalar(inner, (2.0 * TANH_SCALE).into())
        }
    })
}

pub(crate) fn composed<B: Backend>(
    input: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    match activation {
        Activation::Gelu => B::gelu(input),
        Activation::GeluTanh | Activation::Silu => {
            B::float_mul(input.clone(), gate::<B>(input, activation))
        }
    }
}

/// `grad` times the slope: `Φ + x φ`, or with `s = σ(z)` `s + x s (1 − s) z'`.
pub(crate) fn composed_backward<B: Backend>(
    input: FloatTensor<B>,
    grad: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    let slope = match activation {
        Activation::Gelu => normal_slope::<B>(input),
        Activation::GeluTanh | Activation::Silu => {
            // Farther out slopes are 0 or 1, and 16 bits have no room for the square.
            let input = B::float_clamp(input, (-100.0).into(), 100.0.into());
            let gate = gate::<B>(input.clone(), activation);
            let rest = B::float_add_scalar(B::float_neg(gate.clone()), 1.0.into());
            let change = B::float_mul(B::float_mul(input.clone(), gate.clone()), rest);
            let change = match activation {
                Activation::Silu => change,
                Activation::Gelu | Activation::GeluTanh => {
                    let square = B::float_mul(input.clone(), input);
                    let square = B::float_mul_scalar(square, (3.0 * TANH_CUBE).into());
                    let inner = B::float_add_scalar(square, 1.0.into());
                    B::float_mul(
                        change,
                        B::float_mul_scalar(inner, (2.0 * TANH_SCALE).into()),
                    )
                }
            };
            B::float_add(gate, change)
        }
    };
    B::float_mul(grad, slope)
}

/// `Φ(x) + x φ(x)`. Burn's own default is the slope of the approximation, which is off by up to 0.001.
fn normal_slope<B: Backend>(input: FloatTensor<B>) -> FloatTensor<B> {
    let erf = B::float_erf(B::float_mul_scalar(input.clone(), (1.0 / SQRT_2).into()));
    let distribution = B::float_add_scalar(B::float_mul_scalar(erf, 0.5.into()), 0.5.into());
    let square = B::float_mul(input.clone(), input.clone());
    let density = B::float_exp(B::float_mul_scalar(square, (-0.5).into()));
    let density = B::float_mul_scalar(density, (1.0 / (2.0 * PI).sqrt()).into());
    B::float_add(distribution, B::float_mul(input, density))
}

/// `activation(gate) ∘ up`.
pub(crate) fn composed_gated<B: TransformerOps>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    B::float_mul(B::smooth_activation(gate, activation), up)
}

/// The gradients of gate and up.
pub(crate) fn composed_gated_backward<B: TransformerOps>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    grad: FloatTensor<B>,
    activation: Activation,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let of_up = B::smooth_activation(gate.clone(), activation);
    let of_up = B::float_mul(of_up, grad.clone());
    let grad = B::float_mul(grad, up);
    (B::smooth_activation_backward(gate, grad, activation), of_up)
}
