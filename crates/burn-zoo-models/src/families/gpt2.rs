//! GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"): learned
//! positions, pre-norm, GELU by tanh, tied head.

use burn_zoo_nn::{
    ConfigError, TransformerConfig,
    attention::{AttentionConfig, AttentionScale},
    block::BlockConfig,
    feed_forward::FeedForwardConfig,
    norm::NormConfig,
};
use serde::{Deserialize, Serialize};

use super::{decoder_head, decoder_head_names, head_dim};
use crate::{
    family::{Common, FamilyConfig, Preset, Task, activation},
    names::{Names, Part},
};

/// The fields of a GPT-2's `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpt2Config {
    /// How many different tokens.
    pub vocab_size: usize,
    /// The longest sequence.
    pub n_positions: usize,
    /// The width of the residual stream.
    pub n_embd: usize,
    /// How many blocks.
    pub n_layer: usize,
    /// How many heads.
    pub n_head: usize,
    /// The inner width of the feed-forward networks; `4 · n_embd` when none.
    pub n_inner: Option<usize>,
    /// The non-linearity.
    pub activation_function: String,
    /// The share of sub-layer outputs set to zero in training.
    pub resid_pdrop: f64,
    /// The share of embeddings set to zero in training.
    pub embd_pdrop: f64,
    /// The share of attention probabilities set to zero in training.
    pub attn_pdrop: f64,
    /// Added to variances.
    pub layer_norm_epsilon: f64,
    /// The standard deviation of initial weights.
    pub initializer_range: f64,
    /// Whether scores are divided by the root of the head's width.
    pub scale_attn_weights: bool,
    /// Whether they are also divided by the number of the layer, from 1.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether blocks also read an encoder.
    pub add_cross_attention: bool,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: bool,
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: "gelu_new".to_owned(),
            resid_pdrop: 0.1,
            embd_pdrop: 0.1,
            attn_pdrop: 0.1,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            add_cross_attention: false,
            tie_word_embeddings: true,
        }
    }
}

impl FamilyConfig for Gpt2Config {
    const MODEL_TYPE: &'static str = "gpt2";
    const NAME: &'static str = "GPT-2";
    const CLASS: &'static str = "GPT2LMHeadModel";

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        if self.add_cross_attention {
            let problem = "is not supported: GPT-2 has no encoder here";
            return Err(ConfigError::new("add_cross_attention", problem));
        }
        let d_model = self.n_embd;
        let head_dim = head_dim(("n_embd", d_model), ("n_head", self.n_head))?;
        let mut scale = 1.0;
        if self.scale_attn_weights {
            scale /= (head_dim as f64).sqrt();
        }
        let block = |layer: usize| {
            let scale = match self.scale_attn_by_inverse_layer_idx {
                true => scale / (layer + 1) as f64,
                false => scale,
            };
            let attention = AttentionConfig::multi_head(d_model, self.n_head)
                .with_scale(AttentionScale::Fixed(scale));
            let d_ff = self.n_inner.unwrap_or(4 * d_model);
            let activation = activation("activation_function", &self.activation_function)?;
            let feed_forward = FeedForwardConfig::new(d_model, d_ff).with_activation(activation);
            Ok(
                BlockConfig::new(attention, feed_forward).with_norm(NormConfig::Layer {
                    epsilon: self.layer_norm_epsilon,
                    bias: true,
                }),
            )
        };
        let blocks = (0..self.n_layer).map(block).collect::<Result<_, _>>()?;
        let is_tied = self.tie_word_embeddings;
        let mut config = TransformerConfig::new(self.vocab_size, d_model, self.n_positions, blocks)
            .with_residual_init(self.initializer_range)
            .with_dropout(self.resid_pdrop)
            .with_attention_dropout(self.attn_pdrop)
            .with_head(decoder_head(Self::NAME, task, is_tied, common, 0.1)?);
        config.embedding.dropout = self.embd_pdrop;
        Ok((
            config,
            decoder_head_names(names(), task, is_tied, "classifier"),
        ))
    }

    fn presets() -> Vec<Preset> {
        let size = |n_layer, n_head, n_embd| Self {
            n_layer,
            n_head,
            n_embd,
            ..Self::default()
        };
        vec![
            Preset::new("gpt2-124m", 124_439_808, &size(12, 12, 768))
                .note("the paper says 117M, which was a mistake in counting"),
            Preset::new("gpt2-355m", 354_823_168, &size(24, 16, 1024)),
            Preset::new("gpt2-774m", 774_030_080, &size(36, 20, 1280)),
            Preset::new("gpt2-1.5b", 1_557_611_200, &size(48, 25, 1600)),
        ]
    }
}

/// The names of GPT-2's parameters, which its cousins share.
pub(super) fn names() -> Names {
    let attention = "h.#.attn.c_attn";
    let third = |index| Part::Block { index, of: 3 };
    Names::new()
        .base_prefix("transformer.")
        .base("embedding.token", "wte.weight")
        .base("embedding.position", "wpe.weight")
        .norm("stack.blocks.#.attention_norm", "h.#.ln_1")
        .conv1d("stack.blocks.#.attention.query", attention, third(0))
        .conv1d("stack.blocks.#.attention.key", attention, third(1))
        .conv1d("stack.blocks.#.attention.value", attention, third(2))
        .conv1d(
            "stack.blocks.#.attention.output",
            "h.#.attn.c_proj",
            Part::Whole,
        )
        .norm("stack.blocks.#.feed_forward_norm", "h.#.ln_2")
        .conv1d(
            "stack.blocks.#.feed_forward.up",
            "h.#.mlp.c_fc",
            Part::Whole,
        )
        .conv1d(
            "stack.blocks.#.feed_forward.down",
            "h.#.mlp.c_proj",
            Part::Whole,
        )
        .norm("stack.final_norm", "ln_f")
        .ignore("h.#.attn.bias")
        .ignore("h.#.attn.masked_bias")
}
