//! Llama (Touvron et al. 2023, arXiv:2302.13971) and what follows its shape: Mistral (Jiang et al.
//! 2023, arXiv:2310.06825), Qwen2 (Yang et al. 2024, arXiv:2407.10671), Mixtral (Jiang et al. 2024,
//! arXiv:2401.04088). Rotary positions, RMSNorm, SwiGLU, grouped heads, no or few biases.

use burn_zoo_nn::{
    ConfigError, TransformerConfig,
    attention::{AttentionBias, AttentionConfig, AttentionPattern},
    block::BlockConfig,
    embedding::PositionConfig,
    feed_forward::FeedForwardConfig,
    mixture::MixtureConfig,
    norm::NormConfig,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{decoder_head, decoder_head_names, head_dim, rope::RopeFields};
use crate::{
    family::{Common, FamilyConfig, Preset, Task, activation},
    names::Names,
};

/// The fields that all of them have.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct DecoderFields {
    /// How many different tokens.
    pub vocab_size: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// The inner width of the feed-forward networks.
    pub intermediate_size: usize,
    /// How many blocks.
    pub num_hidden_layers: usize,
    /// How many query heads.
    pub num_attention_heads: usize,
    /// How many key/value heads; as many when none.
    pub num_key_value_heads: Option<usize>,
    /// The width of a head; `hidden_size / num_attention_heads` when none.
    pub head_dim: Option<usize>,
    /// The non-linearity.
    pub hidden_act: String,
    /// The share of attention probabilities set to zero in training.
    pub attention_dropout: f64,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// The standard deviation of initial weights.
    pub initializer_range: f64,
    /// Added to mean squares.
    pub rms_norm_eps: f64,
    /// Rotary positions.
    #[serde(flatten)]
    pub rope: RopeFields,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: bool,
}

impl Default for DecoderFields {
    fn default() -> Self {
        Self {
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: "silu".to_owned(),
            attention_dropout: 0.0,
            max_position_embeddings: 2048,
            initializer_range: 0.02,
            rms_norm_eps: 1e-6,
            rope: RopeFields::default(),
            tie_word_embeddings: false,
        }
    }
}

/// What tells the four apart.
struct Variant {
    name: &'static str,
    base: f64,
    attention_bias: AttentionBias,
    feed_forward_bias: bool,
    /// How many positions a layer sees; all when none.
    window: Box<dyn Fn(usize) -> Option<usize>>,
    mixture: Option<MixtureConfig>,
}

impl DecoderFields {
    fn build(
        &self,
        variant: Variant,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let d_model = self.hidden_size;
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None => head_dim(
                ("hidden_size", d_model),
                ("num_attention_heads", self.num_attention_heads),
            )?,
        };
        let n_kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        let context_length = self.max_position_embeddings;
        let rotary = self
            .rope
            .rotary(head_dim, context_length, variant.base, 1.0)?;
        let feed_forward = FeedForwardConfig::new(d_model, self.intermediate_size)
            .with_activation(activation("hidden_act", &self.hidden_act)?)
            .with_gated(true)
            .with_bias(variant.feed_forward_bias);
        let block = |layer| {
            let attention =
                AttentionConfig::new(d_model, self.num_attention_heads, n_kv_heads, head_dim)
                    .with_pattern(match (variant.window)(layer) {
                        Some(window) => AttentionPattern::Banded { window },
                        None => AttentionPattern::Causal,
                    })
                    .with_bias(variant.attention_bias)
                    .with_rotary(Some(rotary.clone()));
            BlockConfig::new(attention, feed_forward.clone())
                .with_mixture(variant.mixture.clone())
                .with_norm(NormConfig::Rms {
                    epsilon: self.rms_norm_eps,
                })
        };
        let blocks = (0..self.num_hidden_layers).map(block).collect();
        let is_tied = self.tie_word_embeddings;
        let config = TransformerConfig::new(self.vocab_size, d_model, context_length, blocks)
            .with_residual_init(self.initializer_range)
            .with_attention_dropout(self.attention_dropout)
            .with_position(PositionConfig::None)
            .with_head(decoder_head(variant.name, task, is_tied, common, 0.1)?);
        Ok((config, decoder_head_names(names(), task, is_tied, "score")))
    }
}

fn names() -> Names {
    let experts = "stack.blocks.#.mixture.experts.#";
    let sparse = "layers.#.block_sparse_moe";
    Names::new()
        .base_prefix("model.")
        .also_prefix("transformer.")
        .base("embedding.token", "embed_tokens.weight")
        .norm("stack.blocks.#.attention_norm", "layers.#.input_layernorm")
        .linear(
            "stack.blocks.#.attention.query",
            "layers.#.self_attn.q_proj",
        )
        .linear("stack.blocks.#.attention.key", "layers.#.self_attn.k_proj")
        .linear(
            "stack.blocks.#.attention.value",
            "layers.#.self_attn.v_proj",
        )
        .linear(
            "stack.blocks.#.attention.output",
            "layers.#.self_attn.o_proj",
        )
        .norm(
            "stack.blocks.#.feed_forward_norm",
            "layers.#.post_attention_layernorm",
        )
        .linear("stack.blocks.#.feed_forward.gate", "layers.#.mlp.gate_proj")
        .linear("stack.blocks.#.feed_forward.up", "layers.#.mlp.up_proj")
        .linear("stack.blocks.#.feed_forward.down", "layers.#.mlp.down_proj")
        .linear("stack.blocks.#.mixture.router", &format!("{sparse}.gate"))
        .linear(
            &format!("{experts}.gate"),
            &format!("{sparse}.experts.#.w1"),
        )
        .linear(
            &format!("{experts}.down"),
            &format!("{sparse}.experts.#.w2"),
        )
        .linear(&format!("{experts}.up"), &format!("{sparse}.experts.#.w3"))
        .norm("stack.final_norm", "norm")
        .ignore("layers.#.self_attn.rotary_emb.inv_freq")
        .ignore("rotary_emb.inv_freq")
}

/// The fields of a Llama's `config.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LlamaConfig {
    /// Its sizes.
    #[serde(flatten)]
    pub fields: DecoderFields,
    /// Whether attention has biases.
    pub attention_bias: bool,
    /// Whether feed-forward networks have biases.
    pub mlp_bias: bool,
}

impl FamilyConfig for LlamaConfig {
    const MODEL_TYPE: &'static str = "llama";
    const NAME: &'static str = "Llama";
    const CLASS: &'static str = "LlamaForCausalLM";

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let variant = Variant {
            name: Self::NAME,
            base: 1e4,
            attention_bias: AttentionBias::all(self.attention_bias),
            feed_forward_bias: self.mlp_bias,
            window: Box::new(|_| None),
            mixture: None,
        };
        let (config, names) = self.fields.build(variant, task, common)?;
        // The one head for which Llama calls its base model otherwise.
        let names = match task {
            Task::Span => names.base_prefix("transformer.").also_prefix("model."),
            _ => names,
        };
        Ok((config, names))
    }

    fn presets() -> Vec<Preset> {
        let tiny = Self {
            fields: DecoderFields {
                hidden_size: 2048,
                intermediate_size: 5632,
                num_hidden_layers: 22,
                num_key_value_heads: Some(4),
                rms_norm_eps: 1e-5,
                ..DecoderFields::default()
            },
            ..Self::default()
        };
        vec![
            Preset::new("tinyllama-1.1b", 1_100_048_384, &tiny),
            Preset::new("llama-7b", 6_738_415_616, &Self::default()),
        ]
    }
}

/// The fields of a Mistral's `config.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MistralConfig {
    /// Its sizes.
    #[serde(flatten)]
    pub fields: DecoderFields,
    /// How many positions each layer sees; all when none.
    pub sliding_window: Option<usize>,
}

impl FamilyConfig for MistralConfig {
    const MODEL_TYPE: &'static str = "mistral";
    const NAME: &'static str = "Mistral";
    const CLASS: &'static str = "MistralForCausalLM";

    /// As the reference's configuration class has them.
    fn left_out() -> Value {
        json!({
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "sliding_window": 4096,
        })
    }

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let window = self.sliding_window;
        let variant = Variant {
            name: Self::NAME,
            base: 1e4,
            attention_bias: AttentionBias::all(false),
            feed_forward_bias: false,
            window: Box::new(move |_| window),
            mixture: None,
        };
        self.fields.build(variant, task, common)
    }

    fn presets() -> Vec<Preset> {
        let first = Self {
            fields: DecoderFields {
                intermediate_size: 14336,
                num_key_value_heads: Some(8),
                max_position_embeddings: 32768,
                rms_norm_eps: 1e-5,
                ..DecoderFields::default()
            },
            sliding_window: Some(4096),
        };
        vec![Preset::new("mistral-7b", 7_241_732_096, &first)]
    }
}

/// The fields of a Qwen2's `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Qwen2Config {
    /// Its sizes.
    #[serde(flatten)]
    pub fields: DecoderFields,
    /// Whether later layers see only a window.
    pub use_sliding_window: bool,
    /// How many positions they see.
    pub sliding_window: Option<usize>,
    /// The first of them.
    pub max_window_layers: usize,
    /// The kind of each layer, `full_attention` or `sliding_attention`, where it is listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_types: Option<Vec<String>>,
}

impl Default for Qwen2Config {
    fn default() -> Self {
        Self {
            fields: DecoderFields::default(),
            use_sliding_window: false,
            sliding_window: Some(4096),
            max_window_layers: 28,
            layer_types: None,
        }
    }
}

impl FamilyConfig for Qwen2Config {
    const MODEL_TYPE: &'static str = "qwen2";
    const NAME: &'static str = "Qwen2";
    const CLASS: &'static str = "Qwen2ForCausalLM";

    /// As the reference's configuration class has them.
    fn left_out() -> Value {
        json!({
            "vocab_size": 151_936,
            "intermediate_size": 22016,
            "num_key_value_heads": 32,
            "max_position_embeddings": 32768,
        })
    }

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let Self {
            sliding_window,
            max_window_layers,
            layer_types,
            ..
        } = self.clone();
        let has_window = self.use_sliding_window;
        let variant = Variant {
            name: Self::NAME,
            base: 1e4,
            attention_bias: AttentionBias {
                output: false,
                ..AttentionBias::all(true)
            },
            feed_forward_bias: false,
            window: Box::new(move |layer| {
                let listed = layer_types.as_ref().and_then(|types| types.get(layer));
                let is_windowed = match listed {
                    Some(kind) => kind == "sliding_attention",
                    None => layer >= max_window_layers,
                };
                sliding_window.filter(|_| has_window && is_windowed)
            }),
            mixture: None,
        };
        self.fields.build(variant, task, common)
    }

    fn presets() -> Vec<Preset> {
        let small = Self {
            fields: DecoderFields {
                vocab_size: 151_936,
                hidden_size: 896,
                intermediate_size: 4864,
                num_hidden_layers: 24,
                num_attention_heads: 14,
                num_key_value_heads: Some(2),
                max_position_embeddings: 32768,
                tie_word_embeddings: true,
                rope: RopeFields {
                    rope_theta: Some(1e6),
                    ..RopeFields::default()
                },
                ..DecoderFields::default()
            },
            ..Self::default()
        };
        vec![Preset::new("qwen2-0.5b", 494_032_768, &small)]
    }
}

/// The fields of a Mixtral's `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct MixtralConfig {
    /// Its sizes.
    #[serde(flatten)]
    pub fields: DecoderFields,
    /// How many positions each layer sees; all when none.
    pub sliding_window: Option<usize>,
    /// How many experts each block has.
    pub num_local_experts: usize,
    /// How many of them a token goes through.
    pub num_experts_per_tok: usize,
    /// The weight of the load-balancing loss.
    pub router_aux_loss_coef: f64,
}

impl Default for MixtralConfig {
    fn default() -> Self {
        Self {
            fields: DecoderFields::default(),
            sliding_window: None,
            num_local_experts: 8,
            num_experts_per_tok: 2,
            router_aux_loss_coef: 0.001,
        }
    }
}

impl FamilyConfig for MixtralConfig {
    const MODEL_TYPE: &'static str = "mixtral";
    const NAME: &'static str = "Mixtral";
    const CLASS: &'static str = "MixtralForCausalLM";

    /// As the reference's configuration class has them.
    fn left_out() -> Value {
        json!({
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
        })
    }

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let window = self.sliding_window;
        let variant = Variant {
            name: Self::NAME,
            base: 1e6,
            attention_bias: AttentionBias::all(false),
            feed_forward_bias: false,
            window: Box::new(move |_| window),
            // The reference's balance loss counts all of a token's choices, this one the first. It takes
            // part in training only.
            mixture: Some(MixtureConfig {
                top_k: self.num_experts_per_tok,
                balance_coefficient: self.router_aux_loss_coef,
                ..MixtureConfig::top_two(self.num_local_experts)
            }),
        };
        self.fields.build(variant, task, common)
    }

    fn presets() -> Vec<Preset> {
        let whole = Self {
            fields: DecoderFields {
                intermediate_size: 14336,
                num_key_value_heads: Some(8),
                max_position_embeddings: 32768,
                rms_norm_eps: 1e-5,
                rope: RopeFields {
                    rope_theta: Some(1e6),
                    ..RopeFields::default()
                },
                ..DecoderFields::default()
            },
            ..Self::default()
        };
        vec![Preset::new("mixtral-8x7b", 46_702_792_704, &whole)]
    }
}
