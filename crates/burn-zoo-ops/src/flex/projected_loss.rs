//! The loss of a linear layer's outputs as logits: their losses and their gradients in one place of memory, which the
//! blocks of rows take one after the other.

use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};

use super::likelihood;
use super::linear::sum_columns;
use super::product::{Matrix, Start, product};
use super::simd::{contiguous, tensor};
use crate::{Affine, ClassLoss, projected_loss::block_rows};

/// Logits of a block, at most: 128 MB of them. The weight is read, and split for its product, twice for each block.
const BLOCK: usize = 32 << 20;

/// The loss `[1]`, and the gradients of input, weight and bias; the last two only where they are `learned`.
pub(super) fn forward(
    input: FlexTensor,
    affine: Affine<Flex>,
    classes: &[usize],
    loss: ClassLoss,
    learned: bool,
) -> (FlexTensor, FlexTensor, FlexTensor, FlexTensor) {
    let (weight, bias) = affine.into_parts();
    let [inner, width] = weight.layout().shape().dims();
    let rows = classes.len();
    let (input, bias) = (contiguous(input), bias.map(contiguous));
    let bias = bias.as_deref();
    let weights = Matrix::of(&weight);
    // The gradient lies as the weight does: a tied embedding is read across.
    let is_across = weights.strides[0] == 1 && weights.strides[1] != 1;

    let mut losses = vec![0.0; rows];
    let (mut input_grads, mut weight_grads) = (Vec::new(), Vec::new());
    let input_target = Matrix::room(&mut input_grads, rows, inner);
    let weight_target = match (learned, is_across) {
        (false, _) => None,
        (true, true) => Some(Matrix::room(&mut weight_grads, width, inner).transposed()),
        (true, false) => Some(Matrix::room(&mut weight_grads, inner, width)),
    };
    let mut bias_grads = vec![0.0; if learned && bias.is_some() { width } else { 0 }];
    let size = block_rows(rows, width, BLOCK);
    let mut logits = Vec::new();
    // SAFETY: each product has the sizes of its block, and writes what nobody else uses: the logits, rows of the input's
    // gradient, and the weight's gradient, to which the blocks add one after the other. All is written before it is read.
    let multiply = |sizes, target, start, left, right| unsafe {
        product(sizes, target, start, left, right, true);
    };
    for first in (0..rows).step_by(size) {
        let n = size.min(rows - first);
        logits.clear();
        let inputs = Matrix::read(&input[first * inner..], [inner as isize, 1]);
        let scores = Matrix::room(&mut logits, n, width);
        let start = bias.map_or(Start::Zero, Start::Row);
        multiply([n, width, inner], scores, start, inputs, weights);
        // SAFETY: the product has written them.
        unsafe { logits.set_len(n * width) };
        likelihood::losses_and_gradients(
            &mut logits,
            &classes[first..first + n],
            &mut losses[first..first + n],
            loss,
        );
        let scores = Matrix::read(&logits, [width as isize, 1]);
        let target = input_target.skip(first, 0);
        multiply(
            [n, inner, width],
            target,
            Start::Zero,
            scores,
            weights.transposed(),
        );
        if let Some(target) = weight_target {
            let sizes = [inner, width, n];
            let start = match first {
                0 => Start::Zero,
                _ => Start::Target,
            };
            multiply(sizes, target, start, inputs.transposed(), scores);
        }
        if !bias_grads.is_empty() {
            let sums = sum_columns(&logits, width);
            bias_grads
                .iter_mut()
                .zip(sums)
                .for_each(|(sum, more)| *sum += more);
        }
    }
    // SAFETY: the products have written them.
    unsafe {
        input_grads.set_len(rows * inner);
        weight_grads.set_len(if learned { inner * width } else { 0 });
    }
    // In pieces, so that a sum of many keeps its digits.
    let parts: Vec<f32> = losses
        .chunks(64)
        .map(|losses| losses.iter().sum())
        .collect();
    let total = parts.iter().sum::<f32>() * loss.scale as f32;
    let weight_grads = match is_across {
        true => tensor(
            weight_grads,
            Shape::new([if learned { width } else { 0 }, inner]),
        )
        .transpose(0, 1),
        false => tensor(
            weight_grads,
            Shape::new([if learned { inner } else { 0 }, width]),
        ),
    };
    let n_biases = bias_grads.len();
    (
        tensor(vec![total], Shape::new([1])),
        tensor(input_grads, Shape::new([rows, inner])),
        weight_grads,
        tensor(bias_grads, Shape::new([n_biases])),
    )
}
