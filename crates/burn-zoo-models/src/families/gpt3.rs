//! GPT-3 (Brown et al. 2020, arXiv:2005.14165): GPT-2 with every other layer banded.
//!
//! The paper says that dense and locally banded layers alternate as in the Sparse Transformer, but not
//! the width of the band nor which layers have it. Here layers 1, 3, 5, … see the last `window`
//! positions, 256 as GPT-Neo has it: a reconstruction, and one without parameters.

use burn_zoo_nn::{
    ConfigError, TransformerConfig,
    attention::{AttentionConfig, AttentionPattern},
    block::BlockConfig,
    feed_forward::{Activation, FeedForwardConfig},
    norm::NormConfig,
};
use serde::{Deserialize, Serialize};

use super::{decoder_head, head_dim};
use crate::{
    family::{Common, FamilyConfig, Preset, Task},
    names::Names,
};

/// The sizes of a GPT-3.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpt3Config {
    /// How many different tokens.
    pub vocab_size: usize,
    /// The width of the residual stream.
    pub d_model: usize,
    /// The inner width of the feed-forward networks; `4 · d_model` when none.
    pub d_ff: Option<usize>,
    /// How many heads.
    pub n_heads: usize,
    /// How many blocks.
    pub n_layers: usize,
    /// The longest sequence.
    pub context_length: usize,
    /// How many positions the layers 1, 3, 5, … see; all when none.
    pub window: Option<usize>,
    /// Added to variances.
    pub layer_norm_epsilon: f64,
    /// The standard deviation of initial weights.
    pub initializer_range: f64,
    /// The share of embedding and sub-layer values set to zero in training.
    pub dropout: f64,
}

impl Default for Gpt3Config {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            d_model: 768,
            d_ff: None,
            n_heads: 12,
            n_layers: 12,
            context_length: 2048,
            window: Some(256),
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            dropout: 0.0,
        }
    }
}

impl Gpt3Config {
    /// The component tree, which MT-NLG shares with another alternation.
    pub(super) fn transformer(&self) -> Result<TransformerConfig, ConfigError> {
        let d_model = self.d_model;
        head_dim(("d_model", d_model), ("n_heads", self.n_heads))?;
        let block = |layer: usize| {
            let pattern = match self.window {
                Some(window) if layer % 2 == 1 => AttentionPattern::Banded { window },
                _ => AttentionPattern::Causal,
            };
            let attention =
                AttentionConfig::multi_head(d_model, self.n_heads).with_pattern(pattern);
            let feed_forward = FeedForwardConfig::new(d_model, self.d_ff.unwrap_or(4 * d_model))
                .with_activation(Activation::GeluTanh);
            BlockConfig::new(attention, feed_forward).with_norm(NormConfig::Layer {
                epsilon: self.layer_norm_epsilon,
                bias: true,
            })
        };
        let blocks = (0..self.n_layers).map(block).collect();
        Ok(
            TransformerConfig::new(self.vocab_size, d_model, self.context_length, blocks)
                .with_residual_init(self.initializer_range)
                .with_dropout(self.dropout),
        )
    }
}

impl FamilyConfig for Gpt3Config {
    const MODEL_TYPE: &'static str = "gpt3";
    const NAME: &'static str = "GPT-3";
    const CLASS: &'static str = "Gpt3ForCausalLM";

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let head = decoder_head(Self::NAME, task, true, common, self.dropout)?;
        Ok((self.transformer()?.with_head(head), Names::new()))
    }

    /// Table 2.1 of the paper. The published figures are those of its table D.1.
    fn presets() -> Vec<Preset> {
        let size = |n_layers, d_model, n_heads| Self {
            n_layers,
            d_model,
            n_heads,
            ..Self::default()
        };
        vec![
            Preset::new("gpt3-125m", 125_000_000, &size(12, 768, 12)),
            Preset::new("gpt3-350m", 356_000_000, &size(24, 1024, 16)),
            Preset::new("gpt3-760m", 760_000_000, &size(24, 1536, 16)),
            Preset::new("gpt3-1.3b", 1_320_000_000, &size(24, 2048, 16)).note(
                "16 heads: the table prints 24 heads of 128, which do not fit a width of 2048",
            ),
            Preset::new("gpt3-2.7b", 2_650_000_000, &size(32, 2560, 32)),
            Preset::new("gpt3-6.7b", 6_660_000_000, &size(32, 4096, 32)),
            Preset::new("gpt3-13b", 12_850_000_000, &size(40, 5120, 40))
                .note("width 5120: the table prints 5140, which 40 heads do not divide"),
            Preset::new("gpt3-175b", 174_600_000_000, &size(96, 12288, 96)),
        ]
    }
}
