//! Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) with grouped key/value heads
//! (Ainslie et al. 2023, arXiv:2305.13245).

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use burn_zoo_ops::{AttentionMask, attention};
use serde::{Deserialize, Serialize};

use crate::{ConfigError, cache::LayerCache, init, require_positive};

/// What a position may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AttentionPattern {
    /// Itself and what came before (GPT).
    Causal,
    /// The whole sequence (BERT).
    Bidirectional,
}

/// Configuration of [`MultiHeadAttention`].
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// The width of the residual stream.
    pub d_model: usize,
    /// How many query heads there are.
    pub n_heads: usize,
    /// How many key/value heads there are: `n_heads` for multi-head attention, 1 for multi-query,
    /// a divisor in between for grouped-query attention.
    pub n_kv_heads: usize,
    /// The width of a head.
    pub head_dim: usize,
    /// What a position may look at.
    #[config(default = "AttentionPattern::Causal")]
    pub pattern: AttentionPattern,
    /// Whether the projections have a bias.
    #[config(default = true)]
    pub bias: bool,
    /// The standard deviation of the initial query, key and value weights.
    #[config(default = 0.02)]
    pub init_std: f64,
    /// The standard deviation of the initial output weights, which write to the residual stream.
    #[config(default = 0.02)]
    pub output_init_std: f64,
}

impl AttentionConfig {
    /// Attention with `n_heads` heads of width `d_model / n_heads`, each with its own key and value.
    pub fn multi_head(d_model: usize, n_heads: usize) -> Self {
        Self::new(d_model, n_heads, n_heads, d_model / n_heads.max(1))
    }

    /// Refuses sizes that do not fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
        ] {
            require_positive(field, value)?;
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let problem = format!(
                "must divide n_heads ({}), got {}",
                self.n_heads, self.n_kv_heads
            );
            return Err(ConfigError::new("n_kv_heads", problem));
        }
        Ok(())
    }

    /// How many parameters the module has.
    pub fn n_parameters(&self) -> usize {
        let (queries, keys) = (
            self.n_heads * self.head_dim,
            self.n_kv_heads * self.head_dim,
        );
        let bias = if self.bias {
            queries + 2 * keys + self.d_model
        } else {
            0
        };
        self.d_model * (2 * queries + 2 * keys) + bias
    }

    /// An attention layer with weights from N(0, `init_std`²).
    pub fn init(&self, device: &Device) -> MultiHeadAttention {
        let project =
            |d_input, d_output, std| init::linear(d_input, d_output, self.bias, std, device);
        let queries = self.n_heads * self.head_dim;
        let keys = self.n_kv_heads * self.head_dim;
        MultiHeadAttention {
            query: project(self.d_model, queries, self.init_std),
            key: project(self.d_model, keys, self.init_std),
            value: project(self.d_model, keys, self.init_std),
            output: project(queries, self.d_model, self.output_init_std),
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            mask: match self.pattern {
                AttentionPattern::Causal => AttentionMask::Causal,
                AttentionPattern::Bidirectional => AttentionMask::Full,
            },
        }
    }
}

/// Self-attention. Built by [`AttentionConfig::init`].
#[derive(Module, Debug)]
pub struct MultiHeadAttention {
    /// `[d_model, n_heads · head_dim]`.
    pub query: Linear,
    /// `[d_model, n_kv_heads · head_dim]`.
    pub key: Linear,
    /// `[d_model, n_kv_heads · head_dim]`.
    pub value: Linear,
    /// `[n_heads · head_dim, d_model]`.
    pub output: Linear,
    n_heads: usize,
    n_kv_heads: usize,
    #[module(skip)]
    mask: AttentionMask,
}

impl MultiHeadAttention {
    /// `[batch, seq, d_model] → [batch, seq, d_model]`.
    ///
    /// With a cache, `input` continues the sequence that the cache holds and is added to it.
    pub fn forward(&self, input: Tensor<3>, cache: Option<&mut LayerCache>) -> Tensor<3> {
        let query = split_heads(self.query.forward(input.clone()), self.n_heads);
        let key = split_heads(self.key.forward(input.clone()), self.n_kv_heads);
        let value = split_heads(self.value.forward(input), self.n_kv_heads);
        let (key, value) = match cache {
            Some(cache) => cache.append(key, value),
            None => (key, value),
        };
        let attended = attention(query, key, value, self.mask);
        self.output.forward(merge_heads(attended))
    }
}

/// `[batch, seq, n_heads · head_dim] → [batch, n_heads, seq, head_dim]`.
fn split_heads(tensor: Tensor<3>, n_heads: usize) -> Tensor<4> {
    let [batch, seq, width] = tensor.dims();
    tensor
        .reshape([batch, seq, n_heads, width / n_heads])
        .swap_dims(1, 2)
}

/// `[batch, n_heads, seq, head_dim] → [batch, seq, n_heads · head_dim]`.
fn merge_heads(tensor: Tensor<4>) -> Tensor<3> {
    let [batch, n_heads, seq, head_dim] = tensor.dims();
    tensor
        .swap_dims(1, 2)
        .reshape([batch, seq, n_heads * head_dim])
}
