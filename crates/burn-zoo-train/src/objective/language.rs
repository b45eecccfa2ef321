//! Language modelling: the next token, or those that a batch hides.

use burn_zoo_data::windows::TokenBatch;
use burn_zoo_nn::{LanguageModel, mixture::Routing};

use super::{Loss, Objective, cross_entropy};

/// Predicts the tokens that a batch asks for: each from those before it, or hidden ones from all others.
#[derive(Clone, Copy, Debug)]
pub struct LanguageModeling;

impl<M: LanguageModel> Objective<M> for LanguageModeling {
    type Batch = TokenBatch;

    fn loss(&self, model: &M, batch: &TokenBatch, smoothing: f32) -> Loss {
        let (logits, routing) = model.forward_routed(batch.inputs.clone());
        let [batch_size, seq, vocab_size] = logits.dims();
        let auxiliary = routing.iter().map(Routing::auxiliary_loss);
        Loss {
            auxiliary: auxiliary.reduce(|sum, auxiliary| sum + auxiliary),
            ..Loss::new(cross_entropy(
                logits.reshape([batch_size * seq, vocab_size]),
                batch.targets.clone().reshape([batch_size * seq]),
                batch.n_asked,
                smoothing,
            ))
        }
    }
}
