//! Rotary positions, one pass, in place where nobody else holds the heads.

use burn_flex::FlexTensor;
use macerator::Simd;
use rayon::prelude::*;

use super::simd::{Kernel, chunk_length, contiguous, mul_add, owned, run};
use crate::Pairing;

/// The first numbers of heads that are turned, and the angles of all positions.
struct Rotate<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    /// The row of the tables that is that of each head, by its place in memory.
    position: &'a (dyn Fn(usize) -> usize + Sync),
    /// The place of the first head.
    first: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    n_pairs: usize,
    pairing: Pairing,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let n_pairs = self.n_pairs;
        for (place, head) in self.heads.chunks_exact_mut(self.head_dim).enumerate() {
            let row = (self.position)(self.first + place) * n_pairs;
            let angles = self.cos[row..row + n_pairs].iter();
            let angles = angles.zip(&self.sin[row..row + n_pairs]);
            let turn = |(first, second): (&mut f32, &mut f32), (&cos, &sin): (&f32, &f32)| {
                let (x, y) = (*first, *second);
                *first = mul_add::<S>(x, cos, -(y * sin));
                *second = mul_add::<S>(y, cos, x * sin);
            };
            let turned = &mut head[..2 * n_pairs];
            match self.pairing {
                Pairing::Half => {
                    let (first, second) = turned.split_at_mut(n_pairs);
                    let pairs = first.iter_mut().zip(second);
                    pairs
                        .zip(angles)
                        .for_each(|(pair, angle)| turn(pair, angle));
                }
                Pairing::Interleaved => {
                    for (pair, angle) in turned.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                        let [first, second] = pair;
                        turn((first, second), angle);
                    }
                }
            }
        }
    }
}

/// Whether the values fill the storage, heads whole, in whatever order of batch, heads and positions.
fn is_dense(tensor: &FlexTensor) -> bool {
    let layout = tensor.layout();
    let sizes = layout.shape().iter().zip(layout.strides());
    let mut strides: Vec<(isize, usize)> = sizes
        .filter(|&(&size, _)| size > 1)
        .map(|(&size, &stride)| (stride, size))
        .collect();
    strides.sort_unstable();
    let mut expected = 1;
    let is_side_by_side = strides.iter().all(|&(stride, size)| {
        let fits = stride == expected;
        expected *= size as isize;
        fits
    });
    let last = layout.shape().num_dims() - 1;
    is_side_by_side
        && (layout.strides()[last] == 1 || layout.shape()[last] == 1)
        && layout.start_offset() == 0
        && tensor.storage::<f32>().len() == layout.num_elements()
}

/// `[batch, n_heads, seq, head_dim] → [batch, n_heads, seq, head_dim]`, in the order of memory that the input has.
pub(super) fn rotate(
    input: FlexTensor,
    cos: FlexTensor,
    sin: FlexTensor,
    pairing: Pairing,
) -> FlexTensor {
    let mut input = match is_dense(&input) && input.is_unique() {
        true => input,
        false => owned(input),
    };
    let [_, _, seq, head_dim] = input.layout().shape().dims();
    let [of, _, _, n_pairs] = cos.layout().shape().dims();
    let (cos, sin) = (contiguous(cos), contiguous(sin));
    let heads_between =
        |dim: usize| (input.layout().strides()[dim] as usize / head_dim.max(1)).max(1);
    let (between_batches, between_positions) = (heads_between(0), heads_between(2));
    let position = move |place: usize| {
        let batch = if of == 1 {
            0
        } else {
            place / between_batches % of
        };
        batch * seq + place / between_positions % seq
    };
    let values = input.storage_mut::<f32>();
    let length = chunk_length(values.len(), head_dim);
    let pieces = values.par_chunks_mut(length).enumerate();
    pieces.for_each(|(number, heads)| {
        run(Rotate {
            heads,
            head_dim,
            position: &position,
            first: number * length / head_dim,
            cos: &cos,
            sin: &sin,
            n_pairs,
            pairing,
        });
    });
    input
}
