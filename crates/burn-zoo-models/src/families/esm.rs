//! ESM-2 (Lin et al. 2023, doi:10.1126/science.ade2574): a pre-norm encoder of proteins with rotary
//! positions and token dropout, the language model of ESMFold.

use burn_zoo_nn::{
    ConfigError, HeadConfig, TransformerConfig,
    attention::{AttentionConfig, AttentionPattern},
    block::BlockConfig,
    contact::ContactHeadConfig,
    embedding::{PositionConfig, TokenDropout},
    feed_forward::{Activation, FeedForwardConfig},
    head::{LanguageHeadConfig, SequenceState, TransformConfig},
    norm::NormConfig,
    rotary::RotaryConfig,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    bert::{offset_context, roberta_head_names},
    head_dim, no_such_head, projection,
};
use crate::{
    family::{Common, FamilyConfig, Preset, Task},
    names::Names,
};

/// The fields of an ESM's `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct EsmConfig {
    /// How many different tokens.
    pub vocab_size: Option<usize>,
    /// The id of the mask token.
    pub mask_token_id: Option<usize>,
    /// The id of the padding token.
    pub pad_token_id: Option<usize>,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// How many blocks.
    pub num_hidden_layers: usize,
    /// How many heads.
    pub num_attention_heads: usize,
    /// The inner width of the feed-forward networks.
    pub intermediate_size: usize,
    /// The share of sub-layer outputs set to zero in training.
    pub hidden_dropout_prob: f64,
    /// The share of attention probabilities set to zero in training.
    pub attention_probs_dropout_prob: f64,
    /// The longest sequence, with the offset of learned positions.
    pub max_position_embeddings: usize,
    /// The standard deviation of initial weights.
    pub initializer_range: f64,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// `rotary` or `absolute`.
    pub position_embedding_type: String,
    /// The base of rotary positions.
    pub rope_theta: f64,
    /// Whether embeddings are normalised.
    pub emb_layer_norm_before: Option<bool>,
    /// Whether mask tokens are zeroed and the others scaled.
    pub token_dropout: bool,
    /// Whether the masked language model's matrix is the token embedding.
    pub tie_word_embeddings: bool,
}

impl Default for EsmConfig {
    fn default() -> Self {
        Self {
            vocab_size: Some(33),
            mask_token_id: Some(32),
            pad_token_id: Some(1),
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            max_position_embeddings: 1026,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            position_embedding_type: "absolute".to_owned(),
            rope_theta: 1e4,
            emb_layer_norm_before: None,
            token_dropout: false,
            tie_word_embeddings: true,
        }
    }
}

impl FamilyConfig for EsmConfig {
    const MODEL_TYPE: &'static str = "esm";
    const NAME: &'static str = "ESM-2";
    const CLASS: &'static str = "EsmForMaskedLM";

    /// As the reference's configuration class has them.
    fn left_out() -> Value {
        json!({ "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1 })
    }

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let d_model = self.hidden_size;
        let missing = |field: &str| ConfigError::new(field, "is missing");
        let vocab_size = self.vocab_size.ok_or_else(|| missing("vocab_size"))?;
        let head_dim = head_dim(
            ("hidden_size", d_model),
            ("num_attention_heads", self.num_attention_heads),
        )?;
        let (rotary, position, context_length) = match self.position_embedding_type.as_str() {
            "rotary" => (
                Some(RotaryConfig {
                    base: self.rope_theta,
                    ..RotaryConfig::half(head_dim)
                }),
                PositionConfig::None,
                self.max_position_embeddings,
            ),
            "absolute" => {
                let padding_id = self.pad_token_id.ok_or_else(|| missing("pad_token_id"))?;
                let context = offset_context(self.max_position_embeddings, padding_id)?;
                let position = PositionConfig::LearnedSkippingPadding { padding_id };
                (None, position, context)
            }
            other => {
                let problem = format!("must be rotary or absolute, got {other}");
                return Err(ConfigError::new("position_embedding_type", problem));
            }
        };
        let norm = NormConfig::Layer {
            epsilon: self.layer_norm_eps,
            bias: true,
        };
        let names = match &rotary {
            Some(rotary) => names().rotary_frequencies(
                "rotary_embeddings.inv_freq",
                rotary.frequencies(0).iter().map(|&f| f as f32).collect(),
            ),
            None => names(),
        };
        let attention = AttentionConfig::multi_head(d_model, self.num_attention_heads)
            .with_pattern(AttentionPattern::Bidirectional)
            .with_rotary(rotary);
        let feed_forward = FeedForwardConfig::new(d_model, self.intermediate_size);
        let block = BlockConfig::new(attention, feed_forward).with_norm(norm.clone());
        let blocks = vec![block; self.num_hidden_layers];
        let mut config = TransformerConfig::new(vocab_size, d_model, context_length, blocks)
            .with_position(position)
            .with_uniform_init(self.initializer_range)
            .with_dropout(self.hidden_dropout_prob)
            .with_attention_dropout(self.attention_probs_dropout_prob);
        // The reference drops none there.
        config.embedding.dropout = 0.0;
        config.embedding.zero_padding = true;
        config.embedding.norm = (self.emb_layer_norm_before == Some(true)).then(|| norm.clone());
        if self.token_dropout {
            let mask_id = self.mask_token_id.ok_or_else(|| missing("mask_token_id"))?;
            config.embedding.token_dropout = Some(TokenDropout {
                mask_id,
                expected: 0.15 * 0.8,
            });
        }
        config.contact_head = Some(ContactHeadConfig {
            end_id: common.end_id().unwrap_or(2),
        });
        config.pooler = task == Task::Base;
        config.head = match task {
            Task::Base => HeadConfig::None,
            Task::MaskedLanguage => HeadConfig::Language(LanguageHeadConfig {
                projection: projection(self.tie_word_embeddings),
                bias: true,
                transform: Some(TransformConfig {
                    activation: Activation::Gelu,
                    norm,
                }),
                scale: 1.0,
            }),
            Task::Sequence => HeadConfig::Sequence {
                n_labels: common.n_labels(),
                state: SequenceState::First,
                dense: Some(Activation::Tanh),
                bias: true,
                dropout: self.hidden_dropout_prob,
            },
            Task::Token => HeadConfig::Token {
                n_labels: common.n_labels(),
                dropout: self.hidden_dropout_prob,
            },
            Task::Span => HeadConfig::Span,
            _ => return Err(no_such_head(Self::NAME, task)),
        };
        let names = roberta_head_names(names, task);
        let names = match (task, self.tie_word_embeddings) {
            (Task::MaskedLanguage, true) => names
                .head("head.bias", "lm_head.bias")
                .alias("embedding.token", "lm_head.decoder.weight"),
            (Task::MaskedLanguage, false) => names
                .head("head.bias", "lm_head.bias")
                .head_linear("head.projection", "lm_head.decoder"),
            _ => names,
        };
        Ok((config, names))
    }

    fn presets() -> Vec<Preset> {
        let size = |num_hidden_layers, hidden_size, num_attention_heads| Self {
            num_hidden_layers,
            hidden_size,
            num_attention_heads,
            intermediate_size: 4 * hidden_size,
            layer_norm_eps: 1e-5,
            position_embedding_type: "rotary".to_owned(),
            emb_layer_norm_before: Some(false),
            token_dropout: true,
            ..Self::default()
        };
        vec![
            Preset::new("esm2-8m", 8_000_000, &size(6, 320, 20))
                .note("published as \"8M\", a rounding of 7.5M"),
            Preset::new("esm2-35m", 35_000_000, &size(12, 480, 20))
                .note("published as \"35M\", a rounding of 33.5M"),
            Preset::new("esm2-150m", 150_000_000, &size(30, 640, 20))
                .note("published as \"150M\", a rounding of 148M"),
            Preset::new("esm2-650m", 650_000_000, &size(33, 1280, 20)),
            Preset::new("esm2-3b", 3_000_000_000, &size(36, 2560, 40))
                .note("published as \"3B\", a rounding of 2.84B"),
            Preset::new("esm2-15b", 15_000_000_000, &size(48, 5120, 40)),
        ]
    }
}

fn names() -> Names {
    Names::new()
        .base_prefix("esm.")
        .base("embedding.token", "embeddings.word_embeddings.weight")
        .base(
            "embedding.position",
            "embeddings.position_embeddings.weight",
        )
        .norm("embedding.norm", "embeddings.layer_norm")
        .norm(
            "stack.blocks.#.attention_norm",
            "encoder.layer.#.attention.LayerNorm",
        )
        .linear(
            "stack.blocks.#.attention.query",
            "encoder.layer.#.attention.self.query",
        )
        .linear(
            "stack.blocks.#.attention.key",
            "encoder.layer.#.attention.self.key",
        )
        .linear(
            "stack.blocks.#.attention.value",
            "encoder.layer.#.attention.self.value",
        )
        .linear(
            "stack.blocks.#.attention.output",
            "encoder.layer.#.attention.output.dense",
        )
        .norm(
            "stack.blocks.#.feed_forward_norm",
            "encoder.layer.#.LayerNorm",
        )
        .linear(
            "stack.blocks.#.feed_forward.up",
            "encoder.layer.#.intermediate.dense",
        )
        .linear(
            "stack.blocks.#.feed_forward.down",
            "encoder.layer.#.output.dense",
        )
        .norm("stack.final_norm", "encoder.emb_layer_norm_after")
        .linear("pooler", "pooler.dense")
        .linear("contact.regression", "contact_head.regression")
        .ignore("pooler.*")
        .ignore("lm_head.*")
        .ignore("classifier.*")
        .ignore("embeddings.position_ids")
        .ignore("embeddings.position_embeddings.weight")
        .ignore("rotary_embeddings.inv_freq")
        .ignore("encoder.layer.#.attention.self.rotary_embeddings.inv_freq")
        // As version 5 of the `transformers` library writes it, star and all.
        .ignore("encoder.layer.*.attention.self.rotary_embeddings.inv_freq")
}
