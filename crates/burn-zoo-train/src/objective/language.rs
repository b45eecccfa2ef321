//! Language modelling: the next token, or those that a batch hides.

use burn::tensor::{Int, Tensor};
use burn_zoo_data::windows::TokenBatch;
use burn_zoo_nn::LanguageModel;

use super::{Loss, Objective, cross_entropy};

/// Predicts the tokens that a batch asks for: each from those before it, or hidden ones from all others, or
/// what a decoder writes.
#[derive(Clone, Copy, Debug)]
pub struct LanguageModeling;

impl<M: LanguageModel> Objective<M> for LanguageModeling {
    type Batch = TokenBatch;

    fn loss(&self, model: &M, batch: &TokenBatch, smoothing: f32) -> Loss {
        let (logits, routing) = model.forward_routed(batch.inputs.clone());
        let targets = batch.targets.clone();
        let mean = token_cross_entropy(logits, targets, batch.n_asked, smoothing);
        Loss::new(mean).with_routing(&routing)
    }
}

/// The [`cross_entropy`] of tokens: logits `[batch, seq, vocab_size]` and targets `[batch, seq]`.
pub(super) fn token_cross_entropy(
    logits: Tensor<3>,
    targets: Tensor<2, Int>,
    n_asked: Option<usize>,
    smoothing: f32,
) -> Tensor<1> {
    let [batch, seq, vocab_size] = logits.dims();
    let logits = logits.reshape([batch * seq, vocab_size]);
    cross_entropy(logits, targets.reshape([batch * seq]), n_asked, smoothing)
}
