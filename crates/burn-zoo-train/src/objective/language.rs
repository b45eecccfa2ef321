//! Language modelling: the next token, or those that a batch hides.

use burn::tensor::{Int, Tensor};
use burn_zoo_data::windows::{Asked, TokenBatch};
use burn_zoo_nn::{LanguageModel, scores::VocabularyScores};
use burn_zoo_ops::ClassLoss;

use super::{Loss, Objective};

/// Predicts the tokens that a batch asks for: each from those before it, or hidden ones from all others, or
/// what a decoder writes.
#[derive(Clone, Copy, Debug)]
pub struct LanguageModeling;

impl<M: LanguageModel> Objective<M> for LanguageModeling {
    type Batch = TokenBatch;

    fn loss(&self, model: &M, batch: &TokenBatch, smoothing: f32) -> Loss {
        let asked = batch.asked.as_ref();
        let places = asked.map(|asked| asked.places.clone());
        let (scores, routing) = model.score(batch.inputs.clone(), places);
        let mean = mean_loss(scores, batch.targets.clone(), asked, smoothing);
        Loss::new(mean).with_routing(&routing)
    }
}

/// The mean of `-log p(target)` in nats over what is asked: rows of scores, and targets `[batch, seq]`, to `[1]`. 0 when
/// nothing is asked.
pub(super) fn mean_loss(
    scores: VocabularyScores,
    targets: Tensor<2, Int>,
    asked: Option<&Asked>,
    smoothing: f32,
) -> Tensor<1> {
    let n_targets = targets.dims().iter().product();
    let targets = targets.reshape([n_targets]);
    let (targets, n) = match asked {
        None => (targets, n_targets),
        Some(asked) => {
            let targets = targets.select(0, asked.places.clone());
            (targets.clamp_min(0), asked.n)
        }
    };
    let loss = ClassLoss {
        smoothing: smoothing.into(),
        scale: if n == 0 { 0.0 } else { 1.0 / n as f64 },
    };
    scores.loss(targets, loss)
}
