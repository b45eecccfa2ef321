//! Attention in tiles of queries and keys, whose scores never leave a workgroup (FlashAttention-2, Dao 2023,
//! arXiv:2307.08691). What is kept for the gradient is the log-sum-exp of each query's scores.
//!
//! Heads are read where they lie, whatever their strides, and those that share keys read the same ones.

mod backward;
mod forward;
mod tile;

use burn_cubecl::cubecl;
use burn_cubecl::{CubeBackend, kernel::untile, tensor::CubeTensor};
use cubecl::{client::Client, prelude::*};

pub(super) use backward::backward;
pub(super) use forward::forward;

use crate::{AttentionMask, ScoreBias, Scoring};
use tile::Tiling;

/// A score that no visible key has. Finite, because WGSL has no infinities.
const HIDDEN: f32 = -3.4e38;
/// Tensors that the largest of the kernels reads and writes, and what describes them.
const BINDINGS: u32 = 10;
/// Channels of a head, at most: what a unit makes of them must fit its registers.
const MOST_CHANNELS: usize = 256;

/// Whether a device can run the kernels on heads of this size.
pub(super) fn is_possible(client: &Client, head_dim: usize) -> bool {
    client.properties().hardware.max_bindings >= BINDINGS
        && (1..=MOST_CHANNELS).contains(&head_dim)
        && Tiling::new(client, head_dim, 1).is_some()
}

/// What the code of a kernel depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Variant {
    tiling: Tiling,
    is_causal: bool,
    has_bias: bool,
}

/// How many keys a query sees, where it does not see all.
fn window(mask: AttentionMask, seq_k: usize) -> usize {
    match mask {
        AttentionMask::Full | AttentionMask::Causal => seq_k,
        AttentionMask::Banded { window } => window.min(seq_k),
    }
}

/// The bias to be read at any head, query and key; where there is none, something that is not read.
fn bias_or(bias: ScoreBias<CubeBackend>, other: &CubeTensor) -> CubeTensor {
    let Some(bias) = bias.tensor() else {
        return other.clone();
    };
    let mut bias = untile(bias);
    for axis in 0..4 {
        if bias.meta.shape()[axis] == 1 {
            bias.meta.strides[axis] = 0;
        }
    }
    bias
}

/// What makes scores of products, beside the scale.
#[derive(CubeType, Clone, Copy)]
struct Positions {
    batch: usize,
    head: usize,
    seq_q: usize,
    seq_k: usize,
    window: usize,
}

/// The score of a query and a key whose product is known; [`HIDDEN`] where there is none.
#[cube]
fn score<F: Float>(
    product: f32,
    bias: &Tensor<F>,
    at: &Positions,
    query: usize,
    key: usize,
    #[comptime] variant: Variant,
) -> f32 {
    let mut is_seen = query < at.seq_q && key < at.seq_k;
    if comptime!(variant.is_causal) {
        let position = at.seq_k + query;
        // Both sides are larger by `seq_q`, so that nothing is below zero.
        is_seen = is_seen && key + at.seq_q <= position && key + at.seq_q + at.window > position;
    }
    let mut score = HIDDEN.runtime();
    if is_seen {
        score = product;
        if comptime!(variant.has_bias) {
            let row = at.batch * bias.stride(0) + at.head * bias.stride(1) + query * bias.stride(2);
            score += f32::cast_from(bias[row + key * bias.stride(3)]);
        }
    }
    score
}

/// The first key that one of the queries from `first` on sees.
#[cube]
fn first_key(at: &Positions, first: usize, #[comptime] is_causal: bool) -> usize {
    let mut key = 0usize.runtime();
    if is_causal {
        let end = at.seq_k - at.seq_q + first + 1;
        key = end.max(at.window) - at.window;
    }
    key
}

/// The key after the last one that a query before `end` sees.
#[cube]
fn end_key(at: &Positions, end: usize, #[comptime] is_causal: bool) -> usize {
    let mut key = at.seq_k;
    if is_causal {
        key = at.seq_k - at.seq_q + end.min(at.seq_q);
    }
    key
}

/// The first query that sees one of the keys from `first` on.
#[cube]
fn first_query(at: &Positions, first: usize, #[comptime] is_causal: bool) -> usize {
    let mut query = 0usize.runtime();
    if is_causal {
        let past = at.seq_k - at.seq_q;
        query = first.max(past) - past;
    }
    query
}

/// The query after the last one that sees a key before `end`.
#[cube]
fn end_query(at: &Positions, end: usize, #[comptime] is_causal: bool) -> usize {
    let mut query = at.seq_q;
    if is_causal {
        let past = at.seq_k - at.seq_q;
        let seen = end.min(at.seq_k) - 1 + at.window;
        query = at.seq_q.min(seen.max(past) - past);
    }
    query
}

/// Whether the mask hides keys from queries.
fn is_causal(scoring: Scoring, seq_q: usize, seq_k: usize) -> bool {
    !scoring.mask.is_trivial(seq_q, seq_k)
}
