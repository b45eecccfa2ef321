//! T5 (Raffel et al. 2020, arXiv:1910.10683) and its version 1.1: an encoder–decoder with a relative
//! bias by distance, RMSNorm, and neither biases nor scaled scores.

use burn_zoo_nn::{
    ConfigError, HeadConfig, TransformerConfig,
    attention::{AttentionBias, AttentionConfig, AttentionPattern, AttentionScale},
    bias::{RelativeBiasConfig, RelativeDirection},
    block::BlockConfig,
    embedding::PositionConfig,
    feed_forward::{Activation, FeedForwardConfig},
    head::{LanguageHeadConfig, Projection, SequenceState},
    norm::NormConfig,
    stack::StackConfig,
};
use serde::{Deserialize, Serialize};

use super::no_such_head;
use crate::{
    family::{Common, FamilyConfig, Preset, Task, activation},
    names::Names,
};

/// The fields of a T5's `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct T5Config {
    /// How many different tokens.
    pub vocab_size: usize,
    /// The width of the residual stream.
    pub d_model: usize,
    /// The width of a head.
    pub d_kv: usize,
    /// The inner width of the feed-forward networks.
    pub d_ff: usize,
    /// How many blocks the encoder has.
    pub num_layers: usize,
    /// How many the decoder has; as many when none.
    pub num_decoder_layers: Option<usize>,
    /// How many heads.
    pub num_heads: usize,
    /// How many ranges of distances are told apart.
    pub relative_attention_num_buckets: usize,
    /// Larger distances share the last bucket.
    pub relative_attention_max_distance: usize,
    /// The sequences that it was trained with. Longer ones can be read.
    pub n_positions: usize,
    /// The share of embeddings, sub-layer outputs and attention probabilities set to zero in training.
    pub dropout_rate: f64,
    /// Added to mean squares.
    pub layer_norm_epsilon: f64,
    /// Scales all initial weights.
    pub initializer_factor: f64,
    /// The non-linearity, `gated-` or not.
    pub feed_forward_proj: String,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: bool,
    /// Whether hidden states are scaled before the head. Where version 5 of the `transformers` library
    /// wrote this, it tells tied heads from others, and `tie_word_embeddings` is always true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_decoder_outputs: Option<bool>,
    /// The id of the token that ends a text.
    pub eos_token_id: usize,
    /// The id of the padding token.
    pub pad_token_id: usize,
    /// The token that the decoder starts with.
    pub decoder_start_token_id: usize,
    /// Whether the class is an encoder–decoder.
    pub is_encoder_decoder: bool,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            n_positions: 512,
            dropout_rate: 0.1,
            layer_norm_epsilon: 1e-6,
            initializer_factor: 1.0,
            feed_forward_proj: "relu".to_owned(),
            tie_word_embeddings: true,
            scale_decoder_outputs: None,
            eos_token_id: 1,
            pad_token_id: 0,
            decoder_start_token_id: 0,
            is_encoder_decoder: true,
        }
    }
}

impl T5Config {
    /// `gated-gelu` has always meant the form by tanh.
    fn feed_forward(&self) -> Result<FeedForwardConfig, ConfigError> {
        let field = "feed_forward_proj";
        let (gated, name) = match self.feed_forward_proj.strip_prefix("gated-") {
            Some(name) => (true, name),
            None => (false, self.feed_forward_proj.as_str()),
        };
        let activation = match (gated, name) {
            (true, "gelu") => Activation::GeluTanh,
            _ => activation(field, name)?,
        };
        Ok(FeedForwardConfig::new(self.d_model, self.d_ff)
            .with_activation(activation)
            .with_gated(gated)
            .with_bias(false))
    }

    fn stack(
        &self,
        n_layers: usize,
        pattern: AttentionPattern,
        reads_encoder: bool,
    ) -> Result<StackConfig, ConfigError> {
        // T5 keeps 1/√d_kv in the initial queries instead of the scores.
        let std = self.initializer_factor * (self.d_model as f64).powf(-0.5);
        let width = (self.num_heads * self.d_kv) as f64;
        let attention = |pattern| {
            let sizes = (self.num_heads, self.num_heads, self.d_kv);
            AttentionConfig::new(self.d_model, sizes.0, sizes.1, sizes.2)
                .with_pattern(pattern)
                .with_bias(AttentionBias::all(false))
                .with_scale(AttentionScale::Fixed(1.0))
                .with_init_std(std)
                .with_query_init_std(Some(std * (self.d_kv as f64).powf(-0.5)))
                .with_output_init_std(self.initializer_factor * width.powf(-0.5))
        };
        let feed_forward = self
            .feed_forward()?
            .with_init_std(std)
            .with_output_init_std(self.initializer_factor * (self.d_ff as f64).powf(-0.5));
        let norm = NormConfig::Rms {
            epsilon: self.layer_norm_epsilon,
        };
        let block = BlockConfig::new(attention(pattern), feed_forward)
            .with_norm(norm)
            .with_dropout(self.dropout_rate)
            .with_cross_attention(
                reads_encoder.then(|| attention(AttentionPattern::Bidirectional)),
            );
        let mut stack = StackConfig::new(vec![block; n_layers]);
        stack.relative_bias = Some(RelativeBiasConfig {
            n_heads: self.num_heads,
            n_buckets: self.relative_attention_num_buckets,
            max_distance: self.relative_attention_max_distance,
            direction: match pattern {
                AttentionPattern::Bidirectional => RelativeDirection::Both,
                _ => RelativeDirection::Backward,
            },
            init_std: std,
        });
        Ok(stack)
    }
}

impl FamilyConfig for T5Config {
    const MODEL_TYPE: &'static str = "t5";
    const NAME: &'static str = "T5";
    const CLASS: &'static str = "T5ForConditionalGeneration";

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let is_encoder_only = matches!(task, Task::Encoder | Task::Token);
        let encoder = self.stack(self.num_layers, AttentionPattern::Bidirectional, false)?;
        let (encoder, stack) = match is_encoder_only {
            true => (None, encoder),
            false => {
                let n_layers = self.num_decoder_layers.unwrap_or(self.num_layers);
                let decoder = self.stack(n_layers, AttentionPattern::Causal, true)?;
                (Some(encoder), decoder)
            }
        };
        let is_tied = self
            .scale_decoder_outputs
            .unwrap_or(self.tie_word_embeddings);
        let head = match task {
            Task::Base | Task::Encoder => HeadConfig::None,
            Task::Language => HeadConfig::Language(LanguageHeadConfig {
                projection: super::projection(is_tied),
                bias: false,
                transform: None,
                scale: match is_tied {
                    true => (self.d_model as f64).powf(-0.5),
                    false => 1.0,
                },
            }),
            Task::Sequence => HeadConfig::Sequence {
                n_labels: common.n_labels(),
                state: SequenceState::LastOccurrence {
                    id: common.end_id().unwrap_or(self.eos_token_id),
                },
                dense: Some(Activation::Tanh),
                bias: true,
                dropout: common.classifier_dropout.unwrap_or(0.0),
            },
            Task::Token => HeadConfig::Token {
                n_labels: common.n_labels(),
                dropout: common.classifier_dropout.unwrap_or(0.0),
            },
            Task::Span => HeadConfig::Span,
            _ => return Err(no_such_head(Self::NAME, task)),
        };
        let mut config =
            TransformerConfig::new(self.vocab_size, self.d_model, self.n_positions, Vec::new())
                .with_position(PositionConfig::None)
                .with_init_std(self.initializer_factor)
                .with_head(head);
        config.embedding.dropout = self.dropout_rate;
        (config.encoder, config.stack) = (encoder, stack);
        config = config.with_attention_dropout(self.dropout_rate);
        let is_untied = matches!(
            config.head.language(),
            Some(language) if language.projection == Projection::Untied
        );
        let is_gated = config
            .stack
            .blocks
            .iter()
            .any(|block| block.feed_forward.gated);
        Ok((config, names(is_encoder_only, is_gated, task, is_untied)))
    }

    fn presets() -> Vec<Preset> {
        let first = |num_layers, d_model, num_heads, d_kv, d_ff| Self {
            num_layers,
            d_model,
            num_heads,
            d_kv,
            d_ff,
            ..Self::default()
        };
        let second = |num_layers, d_model, num_heads, d_ff| Self {
            feed_forward_proj: "gated-gelu".to_owned(),
            tie_word_embeddings: false,
            ..first(num_layers, d_model, num_heads, 64, d_ff)
        };
        vec![
            Preset::new("t5-small", 60_000_000, &first(6, 512, 8, 64, 2048)),
            Preset::new("t5-base", 220_000_000, &first(12, 768, 12, 64, 3072))
                .note("the paper rounds 223M down"),
            Preset::new("t5-large", 770_000_000, &first(24, 1024, 16, 64, 4096))
                .note("the paper's figure is 4 % above what its own table of sizes gives"),
            Preset::new("t5-3b", 2_800_000_000, &first(24, 1024, 32, 128, 16384))
                .note("the paper rounds 2.85B down"),
            Preset::new("t5-11b", 11_000_000_000, &first(24, 1024, 128, 128, 65536))
                .note("the paper rounds 11.3B down"),
            Preset::new("t5-v1.1-small", 77_000_000, &second(8, 512, 6, 1024)),
            Preset::new("t5-v1.1-base", 248_000_000, &second(12, 768, 12, 2048)),
            Preset::new("t5-v1.1-large", 783_000_000, &second(24, 1024, 16, 2816)),
            Preset::new("t5-v1.1-xl", 3_000_000_000, &second(24, 2048, 32, 5120))
                .note("published as \"3B\", a rounding of 2.85B"),
            Preset::new("t5-v1.1-xxl", 11_000_000_000, &second(24, 4096, 64, 10240))
                .note("published as \"11B\", a rounding of 11.1B"),
        ]
    }
}

fn names(is_encoder_only: bool, is_gated: bool, task: Task, is_untied: bool) -> Names {
    let names = Names::new()
        .base("embedding.token", "shared.weight")
        .alias("embedding.token", "encoder.embed_tokens.weight")
        .alias("embedding.token", "decoder.embed_tokens.weight");
    let names = [
        "lm_head.*",
        "qa_outputs.*",
        "classifier.*",
        "classification_head.*",
    ]
    .into_iter()
    .fold(names, Names::ignore);
    let names = match is_encoder_only {
        true => stack_names(names, "stack", "encoder", false, is_gated).ignore("decoder.*"),
        false => {
            let names = stack_names(names, "encoder", "encoder", false, is_gated);
            stack_names(names, "stack", "decoder", true, is_gated)
                .ignore("decoder.block.#.layer.#.EncDecAttention.relative_attention_bias.weight")
        }
    };
    match task {
        // A head that is not stored is the embedding after all.
        Task::Language if is_untied => names
            .head_linear("head.projection", "lm_head")
            .alias("head.projection.weight", "shared.weight"),
        Task::Language => names.alias("embedding.token", "lm_head.weight"),
        Task::Sequence => names
            .alias("embedding.token", "transformer.shared.weight")
            .base_prefix("transformer.")
            .head_linear("head.dense", "classification_head.dense")
            .head_linear("head.classifier", "classification_head.out_proj"),
        Task::Token => names
            .base_prefix("transformer.")
            .head_linear("head.classifier", "classifier"),
        Task::Span => names.head_linear("head.classifier", "qa_outputs"),
        _ => names,
    }
}

fn stack_names(
    mut names: Names,
    ours: &str,
    theirs: &str,
    reads_encoder: bool,
    is_gated: bool,
) -> Names {
    let our_block = format!("{ours}.blocks.#");
    let layer = |index: usize| format!("{theirs}.block.#.layer.{index}");
    let mut sublayers = vec![("attention", layer(0), "SelfAttention")];
    if reads_encoder {
        sublayers.push(("cross_attention", layer(1), "EncDecAttention"));
    }
    for (name, layer, attention) in sublayers {
        names = names.norm(
            &format!("{our_block}.{name}_norm"),
            &format!("{layer}.layer_norm"),
        );
        for (projection, letter) in [
            ("query", "q"),
            ("key", "k"),
            ("value", "v"),
            ("output", "o"),
        ] {
            names = names.linear(
                &format!("{our_block}.{name}.{projection}"),
                &format!("{layer}.{attention}.{letter}"),
            );
        }
    }
    let feed_forward = layer(if reads_encoder { 2 } else { 1 });
    let dense = format!("{feed_forward}.DenseReluDense");
    names = names.norm(
        &format!("{our_block}.feed_forward_norm"),
        &format!("{feed_forward}.layer_norm"),
    );
    let up = if is_gated { "wi_1" } else { "wi" };
    names
        .linear(
            &format!("{our_block}.feed_forward.gate"),
            &format!("{dense}.wi_0"),
        )
        .linear(
            &format!("{our_block}.feed_forward.up"),
            &format!("{dense}.{up}"),
        )
        .linear(
            &format!("{our_block}.feed_forward.down"),
            &format!("{dense}.wo"),
        )
        .norm(
            &format!("{ours}.final_norm"),
            &format!("{theirs}.final_layer_norm"),
        )
        .base(
            &format!("{ours}.relative.table"),
            &format!("{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        )
}
