//! LaMDA (Thoppilan et al. 2022, arXiv:2201.08239): a decoder with T5's relative bias and gated GELU.
//!
//! The paper gives layers, width and heads of three sizes, and of the largest also the widths of a head
//! and of the feed-forward network (eight times the model's, three matrices: only so is it 137B). The
//! rest is a reconstruction by T5 1.1's conventions: RMSNorm before each sub-layer, no biases, 32
//! buckets, one table for all layers, scores that are not scaled, and a head of its own.

use burn_zoo_nn::{
    ConfigError, TransformerConfig,
    attention::{AttentionBias, AttentionConfig, AttentionScale},
    bias::{RelativeBiasConfig, RelativeDirection},
    block::BlockConfig,
    embedding::PositionConfig,
    feed_forward::{Activation, FeedForwardConfig},
    norm::NormConfig,
};
use serde::{Deserialize, Serialize};

use super::decoder_head;
use crate::{
    family::{Common, FamilyConfig, Preset, Task},
    names::Names,
};

/// The sizes of a LaMDA.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct LamdaConfig {
    /// How many different tokens.
    pub vocab_size: usize,
    /// The width of the residual stream.
    pub d_model: usize,
    /// The inner width of the feed-forward networks.
    pub d_ff: usize,
    /// The width of a head.
    pub d_kv: usize,
    /// How many heads.
    pub num_heads: usize,
    /// How many blocks.
    pub num_layers: usize,
    /// The longest sequence.
    pub context_length: usize,
    /// How many ranges of distances are told apart.
    pub relative_attention_num_buckets: usize,
    /// Larger distances share the last bucket.
    pub relative_attention_max_distance: usize,
    /// Added to mean squares.
    pub layer_norm_epsilon: f64,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: bool,
    /// Whether scores are divided by the root of the head's width.
    pub scale_attention: bool,
    /// The share of embedding and sub-layer values set to zero in training.
    pub dropout: f64,
}

impl Default for LamdaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32000,
            d_model: 2560,
            d_ff: 20480,
            d_kv: 128,
            num_heads: 40,
            num_layers: 10,
            context_length: 2048,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            tie_word_embeddings: false,
            scale_attention: false,
            dropout: 0.0,
        }
    }
}

impl FamilyConfig for LamdaConfig {
    const MODEL_TYPE: &'static str = "lamda";
    const NAME: &'static str = "LaMDA";
    const CLASS: &'static str = "LamdaForCausalLM";

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let (d_model, d_kv) = (self.d_model, self.d_kv);
        let inner = (self.num_heads * d_kv) as f64;
        let std = (d_model as f64).powf(-0.5);
        // Unscaled scores need queries that start small, as T5's.
        let (scale, query_std) = match self.scale_attention {
            true => (AttentionScale::InverseSqrt, std),
            false => (AttentionScale::Fixed(1.0), std * (d_kv as f64).powf(-0.5)),
        };
        let attention = AttentionConfig::new(d_model, self.num_heads, self.num_heads, d_kv)
            .with_bias(AttentionBias::all(false))
            .with_scale(scale)
            .with_init_std(std)
            .with_query_init_std(Some(query_std))
            .with_output_init_std(inner.powf(-0.5));
        let feed_forward = FeedForwardConfig::new(d_model, self.d_ff)
            .with_activation(Activation::GeluTanh)
            .with_gated(true)
            .with_bias(false)
            .with_init_std(std)
            .with_output_init_std((self.d_ff as f64).powf(-0.5));
        let block = BlockConfig::new(attention, feed_forward).with_norm(NormConfig::Rms {
            epsilon: self.layer_norm_epsilon,
        });
        let blocks = vec![block; self.num_layers];
        let mut config =
            TransformerConfig::new(self.vocab_size, d_model, self.context_length, blocks)
                .with_position(PositionConfig::None)
                .with_dropout(self.dropout)
                .with_init_std(std)
                .with_head(decoder_head(
                    Self::NAME,
                    task,
                    self.tie_word_embeddings,
                    common,
                    self.dropout,
                )?);
        config.stack.relative_bias = Some(RelativeBiasConfig {
            n_heads: self.num_heads,
            n_buckets: self.relative_attention_num_buckets,
            max_distance: self.relative_attention_max_distance,
            direction: RelativeDirection::Backward,
            init_std: std,
        });
        Ok((config, Names::new()))
    }

    fn presets() -> Vec<Preset> {
        let size = |num_layers, d_model, num_heads| Self {
            num_layers,
            d_model,
            num_heads,
            d_ff: 8 * d_model,
            ..Self::default()
        };
        vec![
            Preset::new("lamda-2b", 2_000_000_000, &size(10, 2560, 40)).note(
                "published without embeddings, here 164M with the head; widths of heads and \
                 feed-forward networks are those of the 137B",
            ),
            Preset::new("lamda-8b", 8_000_000_000, &size(16, 4096, 64)).note(
                "published as \"8B\" without embeddings, here 8.59B and 262M; widths of heads and \
                 feed-forward networks are those of the 137B",
            ),
            Preset::new("lamda-137b", 137_000_000_000, &size(64, 8192, 128))
                .note("published without embeddings; norms, biases and head are a reconstruction"),
        ]
    }
}
