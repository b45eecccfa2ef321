//! Dropout whose draws are a function of a seed and the place of a value, so that the gradient draws them again instead
//! of keeping them.

use burn::tensor::Shape;
use burn_flex::FlexTensor;
use macerator::Simd;

use super::simd::{Kernel, chunk_length, run, tensor, update};
use crate::threads::draw;

/// Values that are kept, larger, or become 0.
struct Drop<'a> {
    values: &'a mut [f32],
    /// The place of the first among all.
    first: u32,
    seed: [u32; 2],
    probability: f64,
}

impl Kernel for Drop<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let dropped = (self.probability * 2f64.powi(32)) as u32;
        let scale = (1.0 / (1.0 - self.probability)) as f32;
        for (place, value) in self.values.iter_mut().enumerate() {
            let place = self.first.wrapping_add(place as u32);
            let draw = mix(mix(place ^ self.seed[0]) ^ self.seed[1]);
            *value = if draw < dropped { 0.0 } else { *value * scale };
        }
    }
}

/// Mixes the bits of a number: the end of MurmurHash3 (Appleby 2011).
#[inline(always)]
fn mix(number: u32) -> u32 {
    let number = (number ^ (number >> 16)).wrapping_mul(0x85eb_ca6b);
    let number = (number ^ (number >> 13)).wrapping_mul(0xc2b2_ae35);
    number ^ (number >> 16)
}

/// The seed of a draw, from the generator of the device or the thread: `[2]`.
pub(crate) fn draw_seed() -> FlexTensor {
    let drawn = draw();
    let halves = [drawn >> 32, drawn & 0xffff_ffff];
    // What a 32-bit float holds of each.
    let halves = halves.map(|half| (half & 0xff_ffff) as f32);
    tensor(halves.to_vec(), Shape::new([2]))
}

/// Which values are dropped.
#[derive(Clone, Copy)]
pub(crate) struct Draws {
    seed: [u32; 2],
    probability: f64,
}

impl Draws {
    /// By a seed of [`draw_seed`].
    pub(crate) fn new(seed: &[f32], probability: f64) -> Self {
        let seed = [0, 1].map(|which| mix(seed[which] as u32 + which as u32));
        Self { seed, probability }
    }

    /// Drops of values that follow each other, the first of which has this place among all.
    pub(crate) fn apply(&self, values: &mut [f32], first: usize) {
        let [low, high] = self.seed;
        run(Drop {
            values,
            first: first as u32,
            seed: [low, high ^ (first as u64 >> 32) as u32],
            probability: self.probability,
        });
    }

    /// Drops of all values of a tensor.
    pub(super) fn apply_all(&self, tensor: FlexTensor) -> FlexTensor {
        let length = chunk_length(tensor.layout().num_elements(), 1);
        update(tensor, length, |first, values| self.apply(values, first))
    }
}

/// The input with values dropped, and the seed.
pub(super) fn forward(input: FlexTensor, probability: f64) -> (FlexTensor, FlexTensor) {
    let seed = draw_seed();
    let output = Draws::new(seed.storage(), probability).apply_all(input);
    (output, seed)
}

/// The gradient, of which the same values are dropped.
pub(super) fn backward(seed: &FlexTensor, grad: FlexTensor, probability: f64) -> FlexTensor {
    Draws::new(seed.storage(), probability).apply_all(grad)
}
