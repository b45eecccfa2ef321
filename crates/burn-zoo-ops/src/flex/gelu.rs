//! The exact GELU, one pass each way.

use burn_flex::FlexTensor;
use pulp::Simd;

use super::simd::{Binary, Unary, map, mul_add, normal, zip_into};

#[derive(Clone, Copy)]
struct Gelu;

impl Unary for Gelu {
    #[inline(always)]
    fn apply<S: Simd>(self, x: f32) -> f32 {
        // What lies beyond is 0 or x, and infinity times 0 is not a number.
        let near = if x < -20.0 { -20.0 } else { x };
        near * normal::<S>(x).0
    }
}

#[derive(Clone, Copy)]
struct GeluGradient;

impl Binary for GeluGradient {
    #[inline(always)]
    fn apply<S: Simd>(self, x: f32, grad: f32) -> f32 {
        const SCALE: f32 = 0.398_942_3; // 1 / √(2π)
        let near = if x < -20.0 { -20.0 } else { x };
        let near = if near > 20.0 { 20.0 } else { near };
        let (distribution, density) = normal::<S>(x);
        grad * mul_add::<S>(near * SCALE, density, distribution)
    }
}

/// `x Φ(x)`.
pub(super) fn forward(input: FlexTensor) -> FlexTensor {
    map(input, Gelu)
}

/// `grad · (Φ(x) + x φ(x))`.
pub(super) fn backward(input: FlexTensor, grad: FlexTensor) -> FlexTensor {
    zip_into(input, grad, GeluGradient)
}
