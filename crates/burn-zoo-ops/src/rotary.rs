//! Rotary positions composed from `Backend` operations.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn::tensor::{Shape, Slice};

/// Which channels of a head are turned together (Su et al. 2021, arXiv:2104.09864).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Channel `i` and `i + n_pairs` (GPT-NeoX, Llama).
    Half,
    /// Channel `2i` and `2i + 1` (GPT-J, the paper).
    Interleaved,
}

pub(crate) fn check_shapes(input: [usize; 4], cos: [usize; 4], sin: [usize; 4]) {
    let [batch, _, seq, head_dim] = input;
    let [of, heads, positions, n_pairs] = cos;
    assert!(
        cos == sin
            && (of == 1 || of == batch)
            && [heads, positions] == [1, seq]
            && 2 * n_pairs <= head_dim,
        "rotate: cosines {cos:?} and sines {sin:?} must be [1 or {batch}, 1, {seq}, pairs], with at most {} pairs",
        head_dim / 2
    );
}

/// The first and second channels of all pairs, `[batch, n_heads, seq, n_pairs]`, or what is not turned.
fn part<B: Backend>(input: &FloatTensor<B>, channels: Slice) -> FloatTensor<B> {
    let all = Slice::from(..);
    B::float_slice(input.clone(), &[all, all, all, channels])
}

pub(crate) fn composed<B: Backend>(
    input: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    pairing: Pairing,
) -> FloatTensor<B> {
    let [batch, n_heads, seq, head_dim] = input.shape().dims();
    let n_pairs = cos.shape()[3];
    let (first, second) = match pairing {
        Pairing::Half => (Slice::from(..n_pairs), Slice::from(n_pairs..2 * n_pairs)),
        Pairing::Interleaved => {
            let every_second = |start| Slice::new(start, Some(2 * n_pairs as isize), 2);
            (every_second(0), every_second(1))
        }
    };
    let (first, second) = (part::<B>(&input, first), part::<B>(&input, second));
    let times = |x: &FloatTensor<B>, y: &FloatTensor<B>| B::float_mul(x.clone(), y.clone());
    let turned = [
        B::float_sub(times(&first, &cos), times(&second, &sin)),
        B::float_add(times(&second, &cos), times(&first, &sin)),
    ];
    let turned = match pairing {
        Pairing::Half => B::float_cat(turned.into(), 3),
        Pairing::Interleaved => {
            let column = Shape::new([batch, n_heads, seq, n_pairs, 1]);
            let columns = turned.map(|half| B::float_reshape(half, column.clone()));
            let rows = Shape::new([batch, n_heads, seq, 2 * n_pairs]);
            B::float_reshape(B::float_cat(columns.into(), 4), rows)
        }
    };
    match 2 * n_pairs == head_dim {
        true => turned,
        false => {
            let rest = part::<B>(&input, Slice::from(2 * n_pairs..head_dim));
            B::float_cat(vec![turned, rest], 3)
        }
    }
}
