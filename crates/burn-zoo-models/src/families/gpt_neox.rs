//! GPT-NeoX (Black et al. 2022, arXiv:2204.06745) and Pythia (Biderman et al. 2023, arXiv:2304.01373):
//! partly rotary positions, attention and feed-forward in parallel.

use burn_zoo_nn::{
    ConfigError, TransformerConfig,
    attention::{AttentionBias, AttentionConfig},
    block::{BlockConfig, NormPlacement},
    embedding::PositionConfig,
    feed_forward::FeedForwardConfig,
    norm::NormConfig,
};
use serde::{Deserialize, Serialize};

use super::{decoder_head, decoder_head_names, head_dim, rope::RopeFields};
use crate::{
    family::{Common, FamilyConfig, Preset, Task, activation},
    names::{Names, Part},
};

/// The fields of a GPT-NeoX's `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct GptNeoxConfig {
    /// How many different tokens.
    pub vocab_size: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// How many blocks.
    pub num_hidden_layers: usize,
    /// How many heads.
    pub num_attention_heads: usize,
    /// The inner width of the feed-forward networks.
    pub intermediate_size: usize,
    /// The non-linearity.
    pub hidden_act: String,
    /// The share of a head's channels that turn, by version 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotary_pct: Option<f64>,
    /// The base of rotary positions, by version 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotary_emb_base: Option<f64>,
    /// Rotary positions.
    #[serde(flatten)]
    pub rope: RopeFields,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// The share of sub-layer outputs set to zero in training.
    pub hidden_dropout: f64,
    /// The share of attention probabilities set to zero in training.
    pub attention_dropout: f64,
    /// The standard deviation of initial weights.
    pub initializer_range: f64,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// Whether attention and feed-forward read the same input.
    pub use_parallel_residual: bool,
    /// Whether attention has biases.
    pub attention_bias: bool,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: bool,
}

impl Default for GptNeoxConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50432,
            hidden_size: 6144,
            num_hidden_layers: 44,
            num_attention_heads: 64,
            intermediate_size: 24576,
            hidden_act: "gelu".to_owned(),
            rotary_pct: None,
            rotary_emb_base: None,
            rope: RopeFields::default(),
            max_position_embeddings: 2048,
            hidden_dropout: 0.0,
            attention_dropout: 0.0,
            initializer_range: 0.02,
            layer_norm_eps: 1e-5,
            use_parallel_residual: true,
            attention_bias: true,
            tie_word_embeddings: false,
        }
    }
}

impl FamilyConfig for GptNeoxConfig {
    const MODEL_TYPE: &'static str = "gpt_neox";
    const NAME: &'static str = "GPT-NeoX";
    const CLASS: &'static str = "GPTNeoXForCausalLM";

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let d_model = self.hidden_size;
        let head_dim = head_dim(
            ("hidden_size", d_model),
            ("num_attention_heads", self.num_attention_heads),
        )?;
        let rotary = self.rope.rotary(
            head_dim,
            self.max_position_embeddings,
            self.rotary_emb_base.unwrap_or(1e4),
            self.rotary_pct.unwrap_or(0.25),
        )?;
        let attention = AttentionConfig::multi_head(d_model, self.num_attention_heads)
            .with_bias(AttentionBias::all(self.attention_bias))
            .with_rotary(Some(rotary));
        let feed_forward = FeedForwardConfig::new(d_model, self.intermediate_size)
            .with_activation(activation("hidden_act", &self.hidden_act)?);
        let block = BlockConfig::new(attention, feed_forward)
            .with_norm(NormConfig::Layer {
                epsilon: self.layer_norm_eps,
                bias: true,
            })
            .with_placement(match self.use_parallel_residual {
                true => NormPlacement::Parallel { shared_norm: false },
                false => NormPlacement::Pre,
            });
        let blocks = vec![block; self.num_hidden_layers];
        let is_tied = self.tie_word_embeddings;
        let config = TransformerConfig::new(
            self.vocab_size,
            d_model,
            self.max_position_embeddings,
            blocks,
        )
        .with_residual_init(self.initializer_range)
        .with_dropout(self.hidden_dropout)
        .with_attention_dropout(self.attention_dropout)
        .with_position(PositionConfig::None)
        .with_head(decoder_head(Self::NAME, task, is_tied, common, 0.1)?);
        let names = decoder_head_names(names(head_dim), task, is_tied, "classifier");
        let names = match (task, is_tied) {
            (Task::Language, true) => names.alias("embedding.token", "embed_out.weight"),
            (Task::Language, false) => names
                .head_linear("head.projection", "embed_out")
                .alias("head.projection.weight", "lm_head.weight"),
            _ => names,
        };
        Ok((config, names))
    }

    fn presets() -> Vec<Preset> {
        let pythia = Self {
            vocab_size: 50304,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            ..Self::default()
        };
        vec![
            Preset::new("pythia-160m", 162_322_944, &pythia),
            Preset::new("gpt-neox-20b", 20_554_567_680, &Self::default()),
        ]
    }
}

fn names(head_dim: usize) -> Names {
    let attention = "layers.#.attention.query_key_value";
    let part = |index| Part::Interleaved {
        index,
        of: 3,
        head_dim,
    };
    Names::new()
        .base_prefix("gpt_neox.")
        .base("embedding.token", "embed_in.weight")
        .norm("stack.blocks.#.attention_norm", "layers.#.input_layernorm")
        .linear_part("stack.blocks.#.attention.query", attention, part(0))
        .linear_part("stack.blocks.#.attention.key", attention, part(1))
        .linear_part("stack.blocks.#.attention.value", attention, part(2))
        .linear(
            "stack.blocks.#.attention.output",
            "layers.#.attention.dense",
        )
        .norm(
            "stack.blocks.#.feed_forward_norm",
            "layers.#.post_attention_layernorm",
        )
        .linear(
            "stack.blocks.#.feed_forward.up",
            "layers.#.mlp.dense_h_to_4h",
        )
        .linear(
            "stack.blocks.#.feed_forward.down",
            "layers.#.mlp.dense_4h_to_h",
        )
        .norm("stack.final_norm", "final_layer_norm")
        .ignore("layers.#.attention.bias")
        .ignore("layers.#.attention.masked_bias")
        .ignore("layers.#.attention.rotary_emb.inv_freq")
        .ignore("rotary_emb.inv_freq")
        .ignore("embed_out.*")
}
