//! WuDao 2.0 (BAAI 2021): 1.75 trillion parameters in mixtures of experts, on a GLM (Du et al. 2022,
//! arXiv:2103.10360) that fills blanks: bidirectional over a prefix, causal after it.
//!
//! Nothing of its structure was published but the total, that it is a mixture made with FastMoE (He et
//! al. 2021, arXiv:2103.13262), and its GLM core. So this is a reconstruction, not BAAI's model: the
//! published GLM-10B with FastMoE's experts in place of every feed-forward network, as many as give
//! 1.75 trillion.

use burn_zoo_nn::{
    ConfigError, TransformerConfig,
    attention::{AttentionConfig, AttentionPattern},
    block::BlockConfig,
    embedding::PositionConfig,
    feed_forward::{Activation, FeedForwardConfig},
    mixture::{ExpertCapacity, ExpertWeights, MixtureConfig},
    norm::NormConfig,
};
use serde::{Deserialize, Serialize};

use super::{decoder_head, head_dim};
use crate::{
    family::{Common, FamilyConfig, Preset, Task},
    names::Names,
};

/// The sizes of a WuDao 2.0, or, without experts, of a GLM.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct WudaoConfig {
    /// How many different tokens.
    pub vocab_size: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// The inner width of a feed-forward network and of an expert.
    pub intermediate_size: usize,
    /// How many heads.
    pub num_attention_heads: usize,
    /// How many blocks.
    pub num_hidden_layers: usize,
    /// The longest sequence. Each of the two position tables has one row more.
    pub max_position_embeddings: usize,
    /// How many experts a mixture has; 0 for none.
    pub num_experts: usize,
    /// How many of them a token goes through.
    pub experts_per_token: usize,
    /// How much more than its share an expert takes; everything when none.
    pub capacity_factor: Option<f64>,
    /// Every how many-th block has a mixture: 1 for all, 2 for blocks 1, 3, 5, …
    pub expert_every: usize,
    /// The weight of the load-balancing loss.
    pub balance_coefficient: f64,
    /// The weight of the router z-loss.
    pub z_coefficient: f64,
    /// Added to variances.
    pub layer_norm_epsilon: f64,
    /// The standard deviation of initial weights.
    pub initializer_range: f64,
    /// The share of embedding and sub-layer values set to zero in training.
    pub dropout: f64,
}

impl Default for WudaoConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50304,
            hidden_size: 4096,
            intermediate_size: 16384,
            num_attention_heads: 64,
            num_hidden_layers: 48,
            max_position_embeddings: 1024,
            num_experts: 271,
            experts_per_token: 2,
            capacity_factor: None,
            expert_every: 1,
            balance_coefficient: 1e-2,
            z_coefficient: 1e-3,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            dropout: 0.0,
        }
    }
}

impl WudaoConfig {
    fn mixture(&self) -> MixtureConfig {
        MixtureConfig {
            n_experts: self.num_experts,
            top_k: self.experts_per_token,
            // Of one choice the normalised weight would always be 1, and the router learn nothing.
            weights: match self.experts_per_token {
                1 => ExpertWeights::Probability,
                _ => ExpertWeights::Normalized,
            },
            capacity: match self.capacity_factor {
                Some(factor) => ExpertCapacity::Limited { factor },
                None => ExpertCapacity::Dropless,
            },
            shared_d_ff: None,
            router_bias: true,
            balance_coefficient: self.balance_coefficient,
            z_coefficient: self.z_coefficient,
        }
    }
}

impl FamilyConfig for WudaoConfig {
    const MODEL_TYPE: &'static str = "wudao2";
    const NAME: &'static str = "WuDao 2.0";
    const CLASS: &'static str = "Wudao2ForBlankInfilling";

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let d_model = self.hidden_size;
        head_dim(
            ("hidden_size", d_model),
            ("num_attention_heads", self.num_attention_heads),
        )?;
        if self.expert_every == 0 {
            return Err(ConfigError::new(
                "expert_every",
                "must be at least 1, got 0",
            ));
        }
        let block = |layer: usize| {
            let attention = AttentionConfig::multi_head(d_model, self.num_attention_heads)
                .with_pattern(AttentionPattern::Prefix);
            let has_experts = self.num_experts > 0 && (layer + 1).is_multiple_of(self.expert_every);
            // FastMoE's experts have the exact GELU, GLM's own networks the form by tanh.
            let feed_forward = FeedForwardConfig::new(d_model, self.intermediate_size)
                .with_activation(match has_experts {
                    true => Activation::Gelu,
                    false => Activation::GeluTanh,
                });
            BlockConfig::new(attention, feed_forward)
                .with_mixture(has_experts.then(|| self.mixture()))
                .with_norm(NormConfig::Layer {
                    epsilon: self.layer_norm_epsilon,
                    bias: true,
                })
        };
        let blocks = (0..self.num_hidden_layers).map(block).collect();
        let context_length = self.max_position_embeddings;
        let config = TransformerConfig::new(self.vocab_size, d_model, context_length, blocks)
            .with_position(PositionConfig::PrefixAndBlock)
            .with_residual_init(self.initializer_range)
            .with_dropout(self.dropout)
            .with_head(decoder_head(Self::NAME, task, true, common, self.dropout)?);
        Ok((config, Names::new()))
    }

    fn presets() -> Vec<Preset> {
        let glm = Self {
            num_experts: 0,
            ..Self::default()
        };
        let small = Self {
            vocab_size: 8192,
            hidden_size: 128,
            intermediate_size: 256,
            num_attention_heads: 4,
            num_hidden_layers: 4,
            max_position_embeddings: 128,
            num_experts: 8,
            ..Self::default()
        };
        let unpublished = "small enough to train on a processor; published by nobody";
        vec![
            Preset {
                published_parameters: None,
                ..Preset::new("wudao2-small", 0, &small).note(unpublished)
            },
            Preset::new("glm-10b", 10_000_000_000, &glm)
                .note("the published core, which its authors round up from 9.88B"),
            Preset::new("wudao2-1.75t", 1_750_000_000_000, &Self::default())
                .note("a reconstruction: only the total, FastMoE and the GLM core are known"),
        ]
    }
}
