//! The loss of a linear layer's outputs as logits, a block of rows after the other, so that `[rows, n_classes]` never
//! exists whole. The gradients are made with the loss, of the same blocks.

use burn::backend::{
    Backend, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::Slice;

use crate::{Affine, TransformerOps};

/// Logits of a block, at most: 32 MB of them.
const BLOCK: usize = 8 << 20;

/// How classes are told apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassLoss {
    /// How much of each class's probability is spread over all.
    pub smoothing: f64,
    /// What the sum of the losses is multiplied by: for their mean, one by their number.
    pub scale: f64,
}

/// Rows of a block of at most so many logits, such that blocks are of about one size.
pub(crate) fn block_rows(rows: usize, n_classes: usize, block: usize) -> usize {
    let most = (block / n_classes.max(1)).clamp(1, rows.max(1));
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// Calls `each` with the inputs and the classes of every block.
fn for_each_block<B: Backend>(
    input: &FloatTensor<B>,
    classes: &IntTensor<B>,
    n_classes: usize,
    mut each: impl FnMut(FloatTensor<B>, IntTensor<B>),
) {
    let [rows, _] = input.shape().dims();
    let size = block_rows(rows, n_classes, BLOCK);
    if size >= rows {
        return each(input.clone(), classes.clone());
    }
    for first in (0..rows).step_by(size) {
        let rows = Slice::from(first..rows.min(first + size));
        each(
            B::float_slice(input.clone(), &[rows, Slice::full()]),
            B::int_slice(classes.clone(), &[rows]),
        );
    }
}

fn add<B: Backend>(sum: Option<FloatTensor<B>>, more: FloatTensor<B>) -> Option<FloatTensor<B>> {
    Some(match sum {
        None => more,
        Some(sum) => B::float_add(sum, more),
    })
}

/// Input `[rows, d_input]` and classes `[rows]` to the loss `[1]`.
pub(crate) fn composed<B: TransformerOps>(
    input: FloatTensor<B>,
    affine: Affine<B>,
    classes: IntTensor<B>,
    loss: ClassLoss,
) -> FloatTensor<B> {
    let mut total = None;
    for_each_block::<B>(&input, &classes, affine.width(), |input, classes| {
        let logits = B::affine_map(input, affine.clone());
        let losses = B::class_losses(logits, classes, loss.smoothing);
        total = add::<B>(total.take(), B::float_sum(losses));
    });
    B::float_mul_scalar(total.expect("there is a row"), loss.scale.into())
}

/// The loss, and the gradients of input, weight and bias; the last two only where they are `learned`, and the bias's
/// only where there is one.
pub(crate) fn composed_forward<B: TransformerOps>(
    input: FloatTensor<B>,
    affine: Affine<B>,
    classes: IntTensor<B>,
    loss: ClassLoss,
    is_learned: bool,
) -> (
    FloatTensor<B>,
    FloatTensor<B>,
    FloatTensor<B>,
    FloatTensor<B>,
) {
    let (weight, bias) = affine.clone().into_parts();
    let across = Affine::Scale(B::float_transpose(weight));
    let (mut total, mut inputs, mut weights, mut biases) = (None, Vec::new(), None, None);
    for_each_block::<B>(&input, &classes, affine.width(), |input, classes| {
        let logits = B::affine_map(input.clone(), affine.clone());
        let (losses, saved) =
            B::class_losses_forward(logits.clone(), classes.clone(), loss.smoothing);
        // Each loss has the same share.
        let (shape, device, dtype) = (losses.shape(), losses.device(), losses.dtype());
        let ones = B::float_ones(shape, &device, dtype.into());
        let shares = B::float_mul_scalar(ones, loss.scale.into());
        let grad = B::class_losses_backward(logits, classes, saved, shares, loss.smoothing);
        total = add::<B>(total.take(), B::float_sum(losses));
        inputs.push(B::affine_map(grad.clone(), across.clone()));
        if is_learned {
            weights = add::<B>(
                weights.take(),
                B::affine_map_weight_backward(input, grad.clone()),
            );
            if bias.is_some() {
                biases = add::<B>(biases.take(), B::affine_map_bias_backward(grad));
            }
        }
    });
    let total = B::float_mul_scalar(total.expect("there is a row"), loss.scale.into());
    let input = match inputs.len() {
        1 => inputs.remove(0),
        _ => B::float_cat(inputs, 0),
    };
    let unread = || total.clone();
    let (weight, bias) = (
        weights.unwrap_or_else(unread),
        biases.unwrap_or_else(unread),
    );
    (total.clone(), input, weight, bias)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_of_one_size_and_hold_all_rows() {
        assert_eq!(block_rows(1024, 65, BLOCK), 1024);
        assert_eq!(block_rows(1024, 50_257, BLOCK), 147);
        assert_eq!(block_rows(3, 1 << 30, BLOCK), 1);
        assert_eq!(block_rows(1, 65, BLOCK), 1);
        for (rows, n_classes) in [(1000, 50_257), (167, 100_000), (12_345, 999)] {
            let size = block_rows(rows, n_classes, BLOCK);
            assert!(size * n_classes <= BLOCK);
            // The last is not much smaller than the others.
            assert!(rows.div_ceil(size) * size - rows < rows.div_ceil(size));
        }
    }
}
