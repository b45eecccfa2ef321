//! Activations, one pass each way.

use burn_flex::FlexTensor;
use macerator::Simd;
use rayon::prelude::*;

use super::simd::{
    Binary, Kernel, Map, Unary, Zip, chunk_length, contiguous, exp, map, mul_add, normal, owned,
    run, zip_into,
};
use crate::{
    Activation,
    activation::{TANH_CUBE, TANH_SCALE},
};

/// Here an activation that is made of `x` and a sigmoid is 0 or `x`.
const FAR: f32 = 100.0;

/// `x`, but no further below 0: infinity times 0 is not a number.
#[inline(always)]
fn not_below(x: f32) -> f32 {
    if x < -FAR { -FAR } else { x }
}

/// `x`, but no further from 0.
#[inline(always)]
fn near(x: f32) -> f32 {
    let x = not_below(x);
    if x > FAR { FAR } else { x }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
fn sigmoid<S: Simd>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<S>(-x))
}

/// Twice `√(2/π) (x + 0.044715 x³)`, and its slope.
#[inline(always)]
fn tanh_argument<S: Simd>(x: f32) -> (f32, f32) {
    const SCALE: f32 = (2.0 * TANH_SCALE) as f32;
    const CUBE: f32 = (2.0 * TANH_SCALE * TANH_CUBE) as f32;
    let square = x * x;
    (
        x * mul_add::<S>(CUBE, square, SCALE),
        mul_add::<S>(3.0 * CUBE, square, SCALE),
    )
}

#[derive(Clone, Copy)]
struct Relu;

impl Unary for Relu {
    #[inline(always)]
    fn apply<S: Simd>(self, x: f32) -> f32 {
        // What is not a number stays.
        if x < 0.0 { 0.0 } else { x }
    }
}

impl Binary for Relu {
    #[inline(always)]
    fn apply<S: Simd>(self, x: f32, grad: f32) -> f32 {
        if x <= 0.0 { 0.0 } else { grad }
    }
}

#[derive(Clone, Copy)]
struct Tanh;

impl Unary for Tanh {
    #[inline(always)]
    fn apply<S: Simd>(self, x: f32) -> f32 {
        x.tanh()
    }
}

impl Binary for Tanh {
    #[inline(always)]
    fn apply<S: Simd>(self, x: f32, grad: f32) -> f32 {
        let output = x.tanh();
        grad * (1.0 - output * output)
    }
}

#[derive(Clone, Copy)]
struct Gelu;

impl Unary for Gelu {
    #[inline(always)]
    fn apply<S: Simd>(self, x: f32) -> f32 {
        not_below(x) * normal::<S>(x).0
    }
}

impl Binary for Gelu {
    #[inline(always)]
    fn apply<S: Simd>(self, x: f32, grad: f32) -> f32 {
        const SCALE: f32 = 0.398_942_3; // 1 / √(2π)
        let (distribution, density) = normal::<S>(x);
        grad * mul_add::<S>(near(x) * SCALE, density, distribution)
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;

impl Unary for GeluTanh {
    #[inline(always)]
    fn apply<S: Simd>(self, x: f32) -> f32 {
        let (argument, _) = tanh_argument::<S>(near(x));
        not_below(x) * sigmoid::<S>(argument)
    }
}

impl Binary for GeluTanh {
    #[inline(always)]
    fn apply<S: Simd>(self, x: f32, grad: f32) -> f32 {
        let x = near(x);
        let (argument, slope) = tanh_argument::<S>(x);
        let gate = sigmoid::<S>(argument);
        grad * mul_add::<S>(x * gate * (1.0 - gate), slope, gate)
    }
}

#[derive(Clone, Copy)]
struct Silu;

impl Unary for Silu {
    #[inline(always)]
    fn apply<S: Simd>(self, x: f32) -> f32 {
        not_below(x) * sigmoid::<S>(x)
    }
}

impl Binary for Silu {
    #[inline(always)]
    fn apply<S: Simd>(self, x: f32, grad: f32) -> f32 {
        let gate = sigmoid::<S>(x);
        grad * mul_add::<S>(near(x) * gate, 1.0 - gate, gate)
    }
}

/// A function of an activation's kernel.
macro_rules! with_kernel {
    ($activation:expr, |$kernel:ident| $body:expr) => {
        match $activation {
            Activation::Relu => (|$kernel: Relu| $body)(Relu),
            Activation::Gelu => (|$kernel: Gelu| $body)(Gelu),
            Activation::GeluTanh => (|$kernel: GeluTanh| $body)(GeluTanh),
            Activation::Silu => (|$kernel: Silu| $body)(Silu),
            Activation::Tanh => (|$kernel: Tanh| $body)(Tanh),
        }
    };
}

/// The activation of each value.
pub(super) fn forward(input: FlexTensor, activation: Activation) -> FlexTensor {
    with_kernel!(activation, |kernel| map(input, kernel))
}

/// The activation of each value, in its place.
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code)
)]
pub(super) fn activate(values: &mut [f32], activation: Activation) {
    with_kernel!(activation, |kernel| run(Map(values, kernel)));
}

/// The activation of each gate times the other value, in that one's place.
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code)
)]
pub(super) fn activate_gate(gate: &[f32], up: &mut [f32], activation: Activation) {
    with_kernel!(activation, |kernel| run(Zip(gate, up, Gated(kernel))));
}

/// The gradient times the slope at each value.
pub(super) fn backward(input: FlexTensor, grad: FlexTensor, activation: Activation) -> FlexTensor {
    with_kernel!(activation, |kernel| zip_into(input, grad, kernel))
}

/// The activation of the first number times the second.
#[derive(Clone, Copy)]
struct Gated<F>(F);

impl<F: Unary> Binary for Gated<F> {
    #[inline(always)]
    fn apply<S: Simd>(self, gate: f32, up: f32) -> f32 {
        self.0.apply::<S>(gate) * up
    }
}

/// `activation(gate) ∘ up`.
pub(super) fn gated(gate: FlexTensor, up: FlexTensor, activation: Activation) -> FlexTensor {
    with_kernel!(activation, |kernel| zip_into(gate, up, Gated(kernel)))
}

/// Values of gate and up, and of the gradient, which become the gradients of both.
struct GatedBackward<'a, F> {
    gate: &'a mut [f32],
    up: &'a [f32],
    grad: &'a mut [f32],
    function: F,
}

impl<F: Unary + Binary> Kernel for GatedBackward<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let inputs = self.gate.iter_mut().zip(self.up);
        for ((gate, &up), grad) in inputs.zip(self.grad) {
            let of_gate = Binary::apply::<S>(self.function, *gate, *grad * up);
            *grad *= Unary::apply::<S>(self.function, *gate);
            *gate = of_gate;
        }
    }
}

/// The gradients of gate and up.
pub(super) fn gated_backward(
    gate: FlexTensor,
    up: FlexTensor,
    grad: FlexTensor,
    activation: Activation,
) -> (FlexTensor, FlexTensor) {
    fn backward(
        [mut gate, up, mut grad]: [FlexTensor; 3],
        function: impl Unary + Binary,
    ) -> (FlexTensor, FlexTensor) {
        let up = contiguous(up);
        let length = chunk_length(up.len(), 1);
        gate.storage_mut::<f32>()
            .par_chunks_mut(length)
            .zip(up.par_chunks(length))
            .zip(grad.storage_mut::<f32>().par_chunks_mut(length))
            .for_each(|((gate, up), grad)| {
                run(GatedBackward {
                    gate,
                    up,
                    grad,
                    function,
                });
            });
        (gate, grad)
    }
    let tensors = [owned(gate), up, owned(grad)];
    with_kernel!(activation, |kernel| backward(tensors, kernel))
}
