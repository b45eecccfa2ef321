//! BLOOM (BigScience Workshop 2022, arXiv:2211.05100): ALiBi instead of positions, a norm after the
//! embedding, query, key and value interleaved by head.

use burn_zoo_nn::{
    ConfigError, TransformerConfig,
    attention::AttentionConfig,
    block::{BlockConfig, NormPlacement},
    embedding::PositionConfig,
    feed_forward::{Activation, FeedForwardConfig},
    norm::NormConfig,
};
use serde::{Deserialize, Serialize};

use super::{decoder_head, decoder_head_names, head_dim};
use crate::{
    family::{Common, FamilyConfig, Preset, Task},
    names::{Names, Part},
};

/// The fields of a BLOOM's `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct BloomConfig {
    /// How many different tokens.
    pub vocab_size: usize,
    /// The width of the residual stream.
    #[serde(alias = "n_embed")]
    pub hidden_size: usize,
    /// How many blocks.
    #[serde(alias = "num_hidden_layers")]
    pub n_layer: usize,
    /// How many heads.
    #[serde(alias = "num_attention_heads")]
    pub n_head: usize,
    /// The sequences that it was trained with. Longer ones can be read: ALiBi has no last position.
    pub seq_length: usize,
    /// Added to variances.
    pub layer_norm_epsilon: f64,
    /// The standard deviation of initial weights.
    pub initializer_range: f64,
    /// Whether residual connections carry the normalised input.
    pub apply_residual_connection_post_layernorm: bool,
    /// The share of sub-layer outputs set to zero in training.
    pub hidden_dropout: f64,
    /// The share of attention probabilities set to zero in training.
    pub attention_dropout: f64,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: bool,
}

impl Default for BloomConfig {
    fn default() -> Self {
        Self {
            vocab_size: 250_880,
            hidden_size: 64,
            n_layer: 2,
            n_head: 8,
            seq_length: 2048,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            apply_residual_connection_post_layernorm: false,
            hidden_dropout: 0.0,
            attention_dropout: 0.0,
            tie_word_embeddings: true,
        }
    }
}

impl FamilyConfig for BloomConfig {
    const MODEL_TYPE: &'static str = "bloom";
    const NAME: &'static str = "BLOOM";
    const CLASS: &'static str = "BloomForCausalLM";

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let d_model = self.hidden_size;
        let head_dim = head_dim(("hidden_size", d_model), ("n_head", self.n_head))?;
        let norm = NormConfig::Layer {
            epsilon: self.layer_norm_epsilon,
            bias: true,
        };
        let attention = AttentionConfig::multi_head(d_model, self.n_head).with_alibi(true);
        let feed_forward =
            FeedForwardConfig::new(d_model, 4 * d_model).with_activation(Activation::GeluTanh);
        let block = BlockConfig::new(attention, feed_forward)
            .with_norm(norm.clone())
            .with_placement(match self.apply_residual_connection_post_layernorm {
                true => NormPlacement::NormedResidual,
                false => NormPlacement::Pre,
            });
        let is_tied = self.tie_word_embeddings;
        let blocks = vec![block; self.n_layer];
        let mut config = TransformerConfig::new(self.vocab_size, d_model, self.seq_length, blocks)
            .with_residual_init(self.initializer_range)
            .with_dropout(self.hidden_dropout)
            .with_attention_dropout(self.attention_dropout)
            .with_position(PositionConfig::None)
            .with_head(decoder_head(
                Self::NAME,
                task,
                is_tied,
                common,
                self.hidden_dropout,
            )?);
        config.embedding.norm = Some(norm);
        // The reference drops none there.
        config.embedding.dropout = 0.0;
        let names = decoder_head_names(names(head_dim), task, is_tied, "classifier");
        Ok((config, names))
    }

    fn presets() -> Vec<Preset> {
        let size = |n_layer, hidden_size, n_head| Self {
            n_layer,
            hidden_size,
            n_head,
            // √(1/3d) of the largest, for all sizes.
            initializer_range: 0.0048,
            ..Self::default()
        };
        vec![
            Preset::new("bloom-560m", 559_214_592, &size(24, 1024, 16)),
            Preset::new("bloom-1b1", 1_065_314_304, &size(24, 1536, 16)),
            Preset::new("bloom-1b7", 1_722_408_960, &size(24, 2048, 16)),
            Preset::new("bloom-3b", 3_002_557_440, &size(30, 2560, 32)),
            Preset::new("bloom-7b1", 7_069_016_064, &size(30, 4096, 32)),
            Preset::new("bloom-176b", 176_247_271_424, &size(70, 14336, 112)),
        ]
    }
}

fn names(head_dim: usize) -> Names {
    let attention = "h.#.self_attention.query_key_value";
    let part = |index| Part::Interleaved {
        index,
        of: 3,
        head_dim,
    };
    Names::new()
        .base_prefix("transformer.")
        .base("embedding.token", "word_embeddings.weight")
        .norm("embedding.norm", "word_embeddings_layernorm")
        .norm("stack.blocks.#.attention_norm", "h.#.input_layernorm")
        .linear_part("stack.blocks.#.attention.query", attention, part(0))
        .linear_part("stack.blocks.#.attention.key", attention, part(1))
        .linear_part("stack.blocks.#.attention.value", attention, part(2))
        .linear(
            "stack.blocks.#.attention.output",
            "h.#.self_attention.dense",
        )
        .norm(
            "stack.blocks.#.feed_forward_norm",
            "h.#.post_attention_layernorm",
        )
        .linear("stack.blocks.#.feed_forward.up", "h.#.mlp.dense_h_to_4h")
        .linear("stack.blocks.#.feed_forward.down", "h.#.mlp.dense_4h_to_h")
        .norm("stack.final_norm", "ln_f")
}
