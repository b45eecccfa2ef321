//! Which residues of a protein touch, read from the attention of a language model (Rao et al. 2021,
//! "Transformer protein language models are unsupervised structure learners").

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, activation};
use serde::{Deserialize, Serialize};

use crate::{init, linear::Linear};

/// Configuration of a [`ContactHead`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContactHeadConfig {
    /// The id of the token that ends a protein.
    pub end_id: usize,
}

impl ContactHeadConfig {
    /// How many parameters the module has.
    pub fn n_parameters(&self, n_maps: usize) -> usize {
        n_maps + 1
    }

    /// A head over the maps of all heads of all layers.
    pub fn init(&self, n_maps: usize, std: f64, device: &Device) -> ContactHead {
        ContactHead {
            regression: init::linear(n_maps, 1, true, std, device),
            end_id: self.end_id,
        }
    }
}

/// A logistic regression over attention maps. Built by [`ContactHeadConfig::init`].
#[derive(Module, Debug)]
pub struct ContactHead {
    /// `[n_layers · n_heads, 1]`.
    pub regression: Linear,
    end_id: usize,
}

impl ContactHead {
    /// From the attention probabilities `[batch, n_layers · n_heads, seq, seq]` and the tokens
    /// `[batch, seq]`, the probability of each pair to touch, `[batch, seq − 2, seq − 2]`: the first
    /// token and the last are not residues.
    ///
    /// # Panics
    ///
    /// When there are fewer than two tokens.
    pub fn forward(&self, maps: Tensor<4>, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, n_maps, seq, _] = maps.dims();
        assert!(
            seq >= 2,
            "contacts: a protein has a first and a last token, got {seq} in all"
        );
        let is_residue = tokens.not_equal_elem(self.end_id as i64).float();
        let pairs =
            is_residue.clone().reshape([batch, 1, seq, 1]) * is_residue.reshape([batch, 1, 1, seq]);
        let residues = 1..seq - 1;
        let maps = (maps * pairs).slice([0..batch, 0..n_maps, residues.clone(), residues]);
        let maps = maps.clone() + maps.swap_dims(2, 3);
        // Average product correction takes out what a row and a column have in common.
        let rows = maps.clone().sum_dim(3);
        let columns = maps.clone().sum_dim(2);
        let all = rows.clone().sum_dim(2);
        let corrected = maps - rows * columns / all;
        let logits = self.regression.forward(corrected.permute([0, 2, 3, 1]));
        activation::sigmoid(logits).squeeze_dim(3)
    }
}
