//! Activations and their gradients composed from `Backend` operations.

use std::f64::consts::{FRAC_2_SQRT_PI, PI, SQRT_2};

use burn::backend::{Backend, ExtensionType, tensor::FloatTensor};

use serde::{Deserialize, Serialize};

use crate::TransformerOps;

/// The non-linearity of a feed-forward network, between its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x Φ(x)` with `Φ` the normal distribution (Hendrycks & Gimpel 2016, arXiv:1606.08415).
    Gelu,
    /// Its approximation `x σ(2u)` with `u = √(2/π) (x + 0.044715 x³)`, from the same paper, which GPT-2 was trained with.
    GeluTanh,
    /// `x σ(x)`, also called Swish.
    Silu,
    /// `tanh(x)`.
    Tanh,
}

/// What an activation is applied to between the layers of a feed-forward network, `[.., d_ff]`.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum PreActivation<B: Backend> {
    /// The activation of these values.
    Plain(FloatTensor<B>),
    /// The activation of the first, times the second.
    Gated(FloatTensor<B>, FloatTensor<B>),
}

impl<B: TransformerOps> PreActivation<B> {
    pub(crate) fn activate(self, activation: Activation) -> FloatTensor<B> {
        match self {
            Self::Plain(input) => B::apply_activation(input, activation),
            Self::Gated(gate, up) => B::gated_activation(gate, up, activation),
        }
    }
}

/// √(2/π).
pub(crate) const TANH_SCALE: f64 = FRAC_2_SQRT_PI / SQRT_2;
/// The share of x³ in the approximation.
pub(crate) const TANH_CUBE: f64 = 0.044715;

/// `2u`, and its slope.
fn tanh_argument<B: Backend>(input: FloatTensor<B>) -> [FloatTensor<B>; 2] {
    let square = B::float_mul(input.clone(), input.clone());
    let [value, slope] = [1.0, 3.0].map(|times| {
        let square = B::float_mul_scalar(square.clone(), (times * TANH_CUBE).into());
        let inner = B::float_add_scalar(square, 1.0.into());
        B::float_mul_scalar(inner, (2.0 * TANH_SCALE).into())
    });
    [B::float_mul(input, value), slope]
}

pub(crate) fn composed<B: Backend>(
    input: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    match activation {
        Activation::Relu => B::relu(input),
        Activation::Gelu => B::gelu(input),
        Activation::GeluTanh => {
            let [argument, _] = tanh_argument::<B>(input.clone());
            B::float_mul(input, B::sigmoid(argument))
        }
        Activation::Silu => B::float_mul(input.clone(), B::sigmoid(input)),
        Activation::Tanh => B::float_tanh(input),
    }
}

/// `grad` times the slope.
pub(crate) fn composed_backward<B: Backend>(
    input: FloatTensor<B>,
    grad: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    // Farther out slopes are 0 or 1, and 16 bits have no room for the square.
    let near = |input| B::float_clamp(input, (-100.0).into(), 100.0.into());
    let slope = match activation {
        // Above 0 are input and output at once.
        Activation::Relu => return B::relu_backward(input, grad),
        Activation::Gelu => normal_slope::<B>(input),
        Activation::GeluTanh => {
            let input = near(input);
            let [argument, slope] = tanh_argument::<B>(input.clone());
            sigmoid_slope::<B>(input, argument, Some(slope))
        }
        Activation::Silu => {
            let input = near(input);
            sigmoid_slope::<B>(input.clone(), input, None)
        }
        Activation::Tanh => {
            let output = B::float_tanh(input);
            let square = B::float_mul(output.clone(), output);
            B::float_add_scalar(B::float_neg(square), 1.0.into())
        }
    };
    B::float_mul(grad, slope)
}

/// `s + x s (1 − s) z'` with `s = σ(z)`, the slope of `x σ(z)`. Without a slope `z'`, it is 1. In this order 16 bits have room.
fn sigmoid_slope<B: Backend>(
    input: FloatTensor<B>,
    argument: FloatTensor<B>,
    slope: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let gate = B::sigmoid(argument);
    let rest = B::float_add_scalar(B::float_neg(gate.clone()), 1.0.into());
    let change = B::float_mul(B::float_mul(input, gate.clone()), rest);
    let change = match slope {
        Some(slope) => B::float_mul(change, slope),
        None => change,
    };
    B::float_add(gate, change)
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
    B::float_mul(B::apply_activation(gate, activation), up)
}

/// The gradients of gate and up.
pub(crate) fn composed_gated_backward<B: TransformerOps>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    grad: FloatTensor<B>,
    activation: Activation,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let of_up = B::apply_activation(gate.clone(), activation);
    let of_up = B::float_mul(of_up, grad.clone());
    let grad = B::float_mul(grad, up);
    (B::apply_activation_backward(gate, grad, activation), of_up)
}
