//! BERT's pre-training: masked tokens, and whether one text follows another.

use burn_zoo_data::pairs::PairBatch;
use burn_zoo_nn::Transformer;

use super::{Loss, Objective, cross_entropy, language::mean_loss};

/// Predicts the hidden tokens of pairs of texts, and whether the second text follows the first (Devlin et al.
/// 2019, arXiv:1810.04805), by a [`Pretraining`](burn_zoo_nn::HeadConfig::Pretraining) head.
///
/// The loss is the mean cross-entropy of the tokens plus that of the pairs.
#[derive(Clone, Copy, Debug)]
pub struct Pretraining;

impl Objective<Transformer> for Pretraining {
    type Batch = PairBatch;

    /// # Panics
    ///
    /// When the model has another head.
    fn loss(&self, model: &Transformer, batch: &PairBatch, smoothing: f32) -> Loss {
        let places = Some(batch.asked.places.clone());
        let (scores, relations, routing) = model.score_pairs(batch.inputs.clone(), places);
        let tokens = mean_loss(scores, batch.targets.clone(), Some(&batch.asked), smoothing);
        let pairs = cross_entropy(relations, batch.relations.clone(), None, smoothing);
        Loss::new(tokens + pairs).with_routing(&routing)
    }
}
