//! Labels: of sequences, of tokens, of where an answer is; and numbers.

use burn::tensor::{DType, Int, Tensor};
use burn_zoo_data::examples::{ExampleBatch, Targets};
use burn_zoo_nn::{Transformer, head::HeadOutput};

use super::{Loss, Objective, cross_entropy};

/// Says of each example what its target asks, by the head of a [`Transformer`]: the class of a sequence
/// ([`HeadConfig::Sequence`](burn_zoo_nn::HeadConfig)), a number (the same with one label), the class of each
/// token, or the first and last token of an answer.
///
/// Classes cost their cross-entropy, numbers their squared error, answers the mean cross-entropy of both ends.
#[derive(Clone, Copy, Debug)]
pub struct Labelling;

impl Objective<Transformer> for Labelling {
    type Batch = ExampleBatch;

    /// # Panics
    ///
    /// When the model's head is not for the batch's targets.
    fn loss(&self, model: &Transformer, batch: &ExampleBatch, smoothing: f32) -> Loss {
        let outputs = model.outputs(batch.inputs.clone());
        let loss = match (outputs.head, batch.targets.clone()) {
            (HeadOutput::Sequence(logits), Targets::Classes(classes)) => {
                choice(logits, classes, None, smoothing)
            }
            (HeadOutput::Sequence(numbers), Targets::Numbers(targets)) => {
                let [batch, _] = numbers.dims();
                let error = numbers.reshape([batch]) - targets;
                Loss::new(error.square().mean())
            }
            (HeadOutput::Tokens(logits), Targets::Tokens(classes)) => {
                let [batch_size, seq, n_labels] = logits.dims();
                let logits = logits.reshape([batch_size * seq, n_labels]);
                let classes = classes.reshape([batch_size * seq]);
                choice(logits, classes, Some(batch.n_asked), smoothing)
            }
            (HeadOutput::Span(starts, ends), Targets::Spans(spans)) => {
                let [first, last] =
                    [0, 1].map(|end| spans.clone().narrow(1, end, 1).squeeze_dim(1));
                let hidden = batch
                    .inputs
                    .visible
                    .clone()
                    .map(|visible| visible.bool_not());
                let masked = |logits: Tensor<2>| match hidden.clone() {
                    // No answer lies in padding.
                    Some(hidden) => logits.mask_fill(hidden, -1e4),
                    None => logits,
                };
                let (starts, ends) = (masked(starts), masked(ends));
                let right =
                    is_right(starts.clone(), first.clone()) * is_right(ends.clone(), last.clone());
                let loss = cross_entropy(starts, first, None, smoothing)
                    + cross_entropy(ends, last, None, smoothing);
                Loss {
                    n_correct: Some(right.sum()),
                    ..Loss::new(loss / 2.0)
                }
            }
            (head, targets) => panic!("a head that gives {head:?} cannot be asked for {targets:?}"),
        };
        loss.with_routing(&outputs.routing)
    }
}

/// The loss of choices between classes, logits `[rows, n_labels]` and classes `[rows]`, of which `n_asked`
/// count when not all do.
fn choice(
    logits: Tensor<2>,
    classes: Tensor<1, Int>,
    n_asked: Option<usize>,
    smoothing: f32,
) -> Loss {
    Loss {
        n_correct: Some(is_right(logits.clone(), classes.clone()).sum()),
        ..Loss::new(cross_entropy(logits, classes, n_asked, smoothing))
    }
}

/// 1 for each row of `[rows, n_labels]` that is largest at its class, 0 for the others: `[rows]`.
fn is_right(logits: Tensor<2>, classes: Tensor<1, Int>) -> Tensor<1> {
    let [rows, _] = logits.dims();
    let best = logits.detach().argmax(1).reshape([rows]);
    best.equal(classes).float().cast(DType::F32)
}
