//! GPT-Neo (Black et al. 2021, doi:10.5281/zenodo.5297715): GPT-2 with banded layers, and scores that
//! are not scaled.

use burn_zoo_nn::{
    ConfigError, TransformerConfig,
    attention::{AttentionBias, AttentionConfig, AttentionPattern, AttentionScale},
    block::BlockConfig,
    feed_forward::FeedForwardConfig,
    norm::NormConfig,
};
use serde::{Deserialize, Serialize};

use super::{decoder_head, decoder_head_names, head_dim};
use crate::{
    family::{Common, FamilyConfig, Preset, Task, activation},
    names::Names,
};

/// The fields of a GPT-Neo's `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct GptNeoConfig {
    /// How many different tokens.
    pub vocab_size: usize,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// How many blocks.
    pub num_layers: usize,
    /// Patterns, `global` or `local`, and how often they repeat.
    pub attention_types: Vec<(Vec<String>, usize)>,
    /// How many heads.
    pub num_heads: usize,
    /// The inner width of the feed-forward networks; `4 · hidden_size` when none.
    pub intermediate_size: Option<usize>,
    /// How many positions local layers see.
    pub window_size: usize,
    /// The non-linearity.
    pub activation_function: String,
    /// The share of sub-layer outputs set to zero in training.
    pub resid_dropout: f64,
    /// The share of embeddings set to zero in training.
    pub embed_dropout: f64,
    /// The share of attention probabilities set to zero in training.
    pub attention_dropout: f64,
    /// Added to variances.
    pub layer_norm_epsilon: f64,
    /// The standard deviation of initial weights.
    pub initializer_range: f64,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: bool,
}

impl Default for GptNeoConfig {
    fn default() -> Self {
        let alternating = vec!["global".to_owned(), "local".to_owned()];
        Self {
            vocab_size: 50257,
            max_position_embeddings: 2048,
            hidden_size: 2048,
            num_layers: 24,
            attention_types: vec![(alternating, 12)],
            num_heads: 16,
            intermediate_size: None,
            window_size: 256,
            activation_function: "gelu_new".to_owned(),
            resid_dropout: 0.0,
            embed_dropout: 0.0,
            attention_dropout: 0.0,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            tie_word_embeddings: true,
        }
    }
}

impl GptNeoConfig {
    fn patterns(&self) -> Result<Vec<AttentionPattern>, ConfigError> {
        let n_named = self
            .attention_types
            .iter()
            .fold(0usize, |sum, (names, count)| {
                sum.saturating_add(names.len().saturating_mul(*count))
            });
        if n_named != self.num_layers {
            let problem = format!(
                "must name a pattern for each of the num_layers ({}), got {n_named}",
                self.num_layers
            );
            return Err(ConfigError::new("attention_types", problem));
        }
        let names = self
            .attention_types
            .iter()
            .flat_map(|(names, count)| std::iter::repeat_n(names, *count).flatten());
        let patterns = names.map(|name| match name.as_str() {
            "global" => Ok(AttentionPattern::Causal),
            "local" => Ok(AttentionPattern::Banded {
                window: self.window_size,
            }),
            _ => {
                let problem = format!("unknown pattern `{name}`: use global or local");
                Err(ConfigError::new("attention_types", problem))
            }
        });
        let patterns: Vec<_> = patterns.collect::<Result<_, _>>()?;
        if patterns.len() != self.num_layers {
            let problem = format!(
                "must name a pattern for each of the num_layers ({}), got {}",
                self.num_layers,
                patterns.len()
            );
            return Err(ConfigError::new("attention_types", problem));
        }
        Ok(patterns)
    }
}

impl FamilyConfig for GptNeoConfig {
    const MODEL_TYPE: &'static str = "gpt_neo";
    const NAME: &'static str = "GPT-Neo";
    const CLASS: &'static str = "GPTNeoForCausalLM";

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let d_model = self.hidden_size;
        head_dim(("hidden_size", d_model), ("num_heads", self.num_heads))?;
        let activation = activation("activation_function", &self.activation_function)?;
        let d_ff = self.intermediate_size.unwrap_or(4 * d_model);
        let block = |pattern| {
            let attention = AttentionConfig::multi_head(d_model, self.num_heads)
                .with_pattern(pattern)
                .with_scale(AttentionScale::Fixed(1.0))
                .with_bias(AttentionBias {
                    output: true,
                    ..AttentionBias::all(false)
                });
            let feed_forward = FeedForwardConfig::new(d_model, d_ff).with_activation(activation);
            BlockConfig::new(attention, feed_forward).with_norm(NormConfig::Layer {
                epsilon: self.layer_norm_epsilon,
                bias: true,
            })
        };
        let blocks = self.patterns()?.into_iter().map(block).collect();
        let is_tied = self.tie_word_embeddings;
        let mut config = TransformerConfig::new(
            self.vocab_size,
            d_model,
            self.max_position_embeddings,
            blocks,
        )
        .with_residual_init(self.initializer_range)
        .with_dropout(self.resid_dropout)
        .with_attention_dropout(self.attention_dropout)
        .with_head(decoder_head(Self::NAME, task, is_tied, common, 0.1)?);
        config.embedding.dropout = self.embed_dropout;
        Ok((
            config,
            decoder_head_names(names(), task, is_tied, "classifier"),
        ))
    }

    fn presets() -> Vec<Preset> {
        let small = Self {
            hidden_size: 768,
            num_layers: 12,
            num_heads: 12,
            attention_types: vec![(vec!["global".to_owned(), "local".to_owned()], 6)],
            ..Self::default()
        };
        vec![Preset::new("gpt-neo-125m", 125_000_000, &small)]
    }
}

fn names() -> Names {
    Names::new()
        .base_prefix("transformer.")
        .base("embedding.token", "wte.weight")
        .base("embedding.position", "wpe.weight")
        .norm("stack.blocks.#.attention_norm", "h.#.ln_1")
        .linear(
            "stack.blocks.#.attention.query",
            "h.#.attn.attention.q_proj",
        )
        .linear("stack.blocks.#.attention.key", "h.#.attn.attention.k_proj")
        .linear(
            "stack.blocks.#.attention.value",
            "h.#.attn.attention.v_proj",
        )
        .linear(
            "stack.blocks.#.attention.output",
            "h.#.attn.attention.out_proj",
        )
        .norm("stack.blocks.#.feed_forward_norm", "h.#.ln_2")
        .linear("stack.blocks.#.feed_forward.up", "h.#.mlp.c_fc")
        .linear("stack.blocks.#.feed_forward.down", "h.#.mlp.c_proj")
        .norm("stack.final_norm", "ln_f")
        .ignore("h.#.attn.attention.bias")
        .ignore("h.#.attn.attention.masked_bias")
}
