//! The residual block: attention and feed-forward, each around a normalisation.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    ConfigError,
    attention::{AttentionConfig, MultiHeadAttention},
    cache::LayerCache,
    feed_forward::{Activation, FeedForward, FeedForwardConfig},
    norm::{Norm, NormConfig},
    require_dropout,
};

/// Where a block normalises (Xiong et al. 2020, arXiv:2002.04745).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NormPlacement {
    /// Before each sub-layer, `x + f(norm(x))` (GPT-2). The stack ends with one more norm.
    Pre,
    /// After each residual sum, `norm(x + f(x))` (the original transformer, BERT).
    Post,
}

/// Configuration of a [`Block`].
#[derive(Config, Debug)]
pub struct BlockConfig {
    /// The attention sub-layer.
    pub attention: AttentionConfig,
    /// The feed-forward sub-layer.
    pub feed_forward: FeedForwardConfig,
    /// The normalisation of both.
    #[config(default = "NormConfig::layer(true)")]
    pub norm: NormConfig,
    /// Where it stands.
    #[config(default = "NormPlacement::Pre")]
    pub placement: NormPlacement,
    /// The share of each sub-layer's output set to zero in training.
    #[config(default = 0.0)]
    pub dropout: f64,
}

impl BlockConfig {
    /// A block as GPT-2 has it: causal multi-head attention, `d_ff = 4 · d_model`, GELU by tanh,
    /// pre-norm, biases everywhere.
    pub fn gpt2(d_model: usize, n_heads: usize) -> Self {
        Self::new(
            AttentionConfig::multi_head(d_model, n_heads),
            FeedForwardConfig::new(d_model, 4 * d_model).with_activation(Activation::GeluTanh),
        )
    }

    /// The same block with biases in every projection and norm, or in none.
    pub fn with_bias(mut self, bias: bool) -> Self {
        self.attention.bias = bias;
        self.feed_forward.bias = bias;
        if let NormConfig::Layer { bias: norm, .. } = &mut self.norm {
            *norm = bias;
        }
        self
    }

    /// Refuses parts that do not fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.attention
            .validate()
            .map_err(|error| error.within("attention"))?;
        self.feed_forward
            .validate()
            .map_err(|error| error.within("feed_forward"))?;
        if self.attention.d_model != self.feed_forward.d_model {
            let problem = format!(
                "must equal attention.d_model ({}), got {}",
                self.attention.d_model, self.feed_forward.d_model
            );
            return Err(ConfigError::new("feed_forward.d_model", problem));
        }
        require_dropout("dropout", self.dropout)
    }

    /// How many parameters the module has.
    pub fn n_parameters(&self) -> usize {
        self.attention.n_parameters()
            + self.feed_forward.n_parameters()
            + 2 * self.norm.n_parameters(self.attention.d_model)
    }

    /// A block on `device`.
    pub fn init(&self, device: &Device) -> Block {
        let d_model = self.attention.d_model;
        Block {
            attention_norm: self.norm.init(d_model, device),
            attention: self.attention.init(device),
            feed_forward_norm: self.norm.init(d_model, device),
            feed_forward: self.feed_forward.init(device),
            dropout: DropoutConfig::new(self.dropout).init(),
            placement: self.placement,
        }
    }
}

/// One layer of a transformer. Built by [`BlockConfig::init`].
#[derive(Module, Debug)]
pub struct Block {
    /// The norm of the attention sub-layer.
    pub attention_norm: Norm,
    /// The attention sub-layer.
    pub attention: MultiHeadAttention,
    /// The norm of the feed-forward sub-layer.
    pub feed_forward_norm: Norm,
    /// The feed-forward sub-layer.
    pub feed_forward: FeedForward,
    dropout: Dropout,
    #[module(skip)]
    placement: NormPlacement,
}

impl Block {
    /// `[batch, seq, d_model] → [batch, seq, d_model]`.
    ///
    /// With a cache, `x` continues the sequence that the cache holds and is added to it.
    pub fn forward(&self, x: Tensor<3>, cache: Option<&mut LayerCache>) -> Tensor<3> {
        let attend = |x, cache| self.dropout.forward(self.attention.forward(x, cache));
        let feed = |x| self.dropout.forward(self.feed_forward.forward(x));
        match self.placement {
            NormPlacement::Pre => {
                let x = x.clone() + attend(self.attention_norm.forward(x), cache);
                x.clone() + feed(self.feed_forward_norm.forward(x))
            }
            NormPlacement::Post => {
                let x = self.attention_norm.forward(x.clone() + attend(x, cache));
                self.feed_forward_norm.forward(x.clone() + feed(x))
            }
        }
    }
}
