//! Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) with grouped key/value heads
//! (Ainslie et al. 2023, arXiv:2305.13245).

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, Tensor, TensorData};
use burn_zoo_ops::{AttentionMask, Scoring, attention};
use serde::{Deserialize, Serialize};

use crate::{
    ConfigError,
    cache::LayerCache,
    dropout, init,
    linear::{Linear, Linears, named},
    pass::{Memory, Pass},
    require_dropout, require_positive,
    rotary::RotaryConfig,
};

/// What a position may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AttentionPattern {
    /// Itself and what came before (GPT).
    Causal,
    /// The whole sequence (BERT).
    Bidirectional,
    /// The sequence's prefix, itself and what came before (GLM: Du et al. 2022, arXiv:2103.10360).
    Prefix,
    /// Itself and the `window − 1` positions before it (GPT-3's sparse layers, Mistral).
    Banded {
        /// How many positions are visible.
        window: usize,
    },
}

/// What products of queries and keys are multiplied by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AttentionScale {
    /// 1/√`head_dim` (Vaswani et al. 2017).
    InverseSqrt,
    /// A number, such as 1 for T5.
    Fixed(f64),
    /// A number for each query head.
    PerHead(Vec<f64>),
}

/// Which projections have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionBias {
    /// The queries'.
    pub query: bool,
    /// The keys'.
    pub key: bool,
    /// The values'.
    pub value: bool,
    /// The output's.
    pub output: bool,
}

impl AttentionBias {
    /// Every projection, or none.
    pub fn all(bias: bool) -> Self {
        Self {
            query: bias,
            key: bias,
            value: bias,
            output: bias,
        }
    }
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
    /// Which projections have a bias.
    #[config(default = "AttentionBias::all(true)")]
    pub bias: AttentionBias,
    /// What products of queries and keys are multiplied by.
    #[config(default = "AttentionScale::InverseSqrt")]
    pub scale: AttentionScale,
    /// Rotary positions, if any.
    #[config(default = "None")]
    pub rotary: Option<RotaryConfig>,
    /// Whether scores fall with distance ([ALiBi](crate::bias::alibi)).
    #[config(default = false)]
    pub alibi: bool,
    /// The standard deviation of the initial query, key and value weights.
    #[config(default = 0.02)]
    pub init_std: f64,
    /// That of the query weights, where it differs: T5 has its scale of 1/√`head_dim` there.
    #[config(default = "None")]
    pub query_init_std: Option<f64>,
    /// The standard deviation of the initial output weights, which write to the residual stream.
    #[config(default = 0.02)]
    pub output_init_std: f64,
    /// The share of the probabilities set to zero in training, if any is.
    #[config(default = "None")]
    pub dropout: Option<f64>,
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
        if let AttentionPattern::Banded { window } = self.pattern {
            require_positive("pattern.banded.window", window)?;
        }
        match &self.scale {
            AttentionScale::PerHead(scales) if scales.len() != self.n_heads => {
                let problem = format!(
                    "needs a number for each of the {} heads, got {}",
                    self.n_heads,
                    scales.len()
                );
                return Err(ConfigError::new("scale.per_head", problem));
            }
            _ => {}
        }
        require_dropout("dropout", self.dropout.unwrap_or(0.0))?;
        match &self.rotary {
            Some(rotary) => rotary
                .validate(self.head_dim)
                .map_err(|error| error.within("rotary")),
            None => Ok(()),
        }
    }

    /// Refuses what only self-attention can have.
    pub fn validate_cross(&self) -> Result<(), ConfigError> {
        self.validate()?;
        let refuse = |field, problem: &str| Err(ConfigError::new(field, problem));
        if self.pattern != AttentionPattern::Bidirectional {
            return refuse(
                "pattern",
                "must be bidirectional: the encoder has been read whole",
            );
        }
        if self.rotary.is_some() || self.alibi {
            return refuse(
                match self.alibi {
                    true => "alibi",
                    false => "rotary",
                },
                "has no meaning between two sequences: leave it out of cross-attention",
            );
        }
        Ok(())
    }

    /// How many parameters the module has.
    pub fn n_parameters(&self) -> usize {
        let (queries, keys) = (
            self.n_heads * self.head_dim,
            self.n_kv_heads * self.head_dim,
        );
        let AttentionBias {
            query,
            key,
            value,
            output,
        } = self.bias;
        let biases = [
            (query, queries),
            (key, keys),
            (value, keys),
            (output, self.d_model),
        ];
        let bias: usize = biases.iter().map(|&(has, n)| if has { n } else { 0 }).sum();
        self.d_model * (2 * queries + 2 * keys) + bias
    }

    /// An attention layer with weights from N(0, `init_std`²).
    pub fn init(&self, device: &Device) -> MultiHeadAttention {
        let project =
            |d_input, d_output, bias, std| init::linear(d_input, d_output, bias, std, device);
        let queries = self.n_heads * self.head_dim;
        let keys = self.n_kv_heads * self.head_dim;
        MultiHeadAttention {
            query: project(
                self.d_model,
                queries,
                self.bias.query,
                self.query_init_std.unwrap_or(self.init_std),
            ),
            key: project(self.d_model, keys, self.bias.key, self.init_std),
            value: project(self.d_model, keys, self.bias.value, self.init_std),
            output: project(
                queries,
                self.d_model,
                self.bias.output,
                self.output_init_std,
            ),
            dropout: DropoutConfig::new(self.dropout.unwrap_or(0.0)).init(),
            config: self.clone(),
        }
    }
}

/// Self- or cross-attention. Built by [`AttentionConfig::init`].
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
    dropout: Dropout,
    #[module(skip)]
    config: AttentionConfig,
}

impl MultiHeadAttention {
    /// Its linear layers.
    pub(crate) fn linears(&mut self) -> Linears<'_> {
        named([
            ("query", &mut self.query),
            ("key", &mut self.key),
            ("value", &mut self.value),
            ("output", &mut self.output),
        ])
    }

    /// Whether it draws in training, its linear layers aside.
    pub(crate) fn has_dropout(&self) -> bool {
        self.dropout.prob > 0.0
    }

    /// Self-attention, `[batch, seq, d_model] → [batch, seq, d_model]`.
    ///
    /// With a cache, `input` continues the sequence that the cache holds and is added to it.
    pub fn forward(
        &self,
        input: Tensor<3>,
        pass: &mut Pass,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let config = &self.config;
        let [_, seq, _] = input.dims();
        let device = input.device();
        let mut query = split_heads(self.query.forward(input.clone()), config.n_heads);
        let mut key = split_heads(self.key.forward(input.clone()), config.n_kv_heads);
        let value = split_heads(self.value.forward(input), config.n_kv_heads);
        if let Some(rotary) = &config.rotary {
            let table = pass.rotary(rotary, seq, &device);
            query = table.apply(query);
            key = table.apply(key);
        }
        let (key, value) = match cache {
            Some(cache) => cache.append(key, value),
            None => (key, value),
        };
        let alibi_heads = config.alibi.then_some(config.n_heads);
        let bias = pass.bias(config.pattern, alibi_heads, seq, &device);
        let mask = match config.pattern {
            AttentionPattern::Causal => AttentionMask::Causal,
            AttentionPattern::Banded { window } => AttentionMask::Banded { window },
            // What a prefix hides depends on the sequence, so it is part of the bias.
            AttentionPattern::Bidirectional | AttentionPattern::Prefix => AttentionMask::Full,
        };
        if let Some(maps) = &mut pass.attention_maps {
            maps.push(self.probabilities(query.clone(), key.clone(), bias.clone()));
        }
        self.attend(query, key, value, bias, mask)
    }

    /// What each position takes of each, `[batch, n_heads, seq_q, seq_k]`, where no mask hides any.
    fn probabilities(
        &self,
        query: Tensor<4>,
        key: Tensor<4>,
        bias: Option<Tensor<4>>,
    ) -> Tensor<4> {
        let [batch, n_heads, seq_q, head_dim] = query.dims();
        let [_, n_kv_heads, seq_k, _] = key.dims();
        let (query, scale) = self.scaled(query);
        let rows = n_heads / n_kv_heads * seq_q;
        let query = query.reshape([batch, n_kv_heads, rows, head_dim]) * scale;
        let scores = query.matmul(key.swap_dims(2, 3));
        let scores = scores.reshape([batch, n_heads, seq_q, seq_k]);
        let scores = match bias {
            Some(bias) => scores + bias,
            None => scores,
        };
        burn::tensor::activation::softmax(scores, 3)
    }

    /// Cross-attention to an encoder's output, `[batch, seq, d_model] → [batch, seq, d_model]`.
    ///
    /// With a cache, keys and values of the memory are computed once.
    pub fn forward_cross(
        &self,
        input: Tensor<3>,
        memory: &Memory,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let n_kv_heads = self.config.n_kv_heads;
        let project = || {
            let hidden = memory.hidden.clone();
            let key = split_heads(self.key.forward(hidden.clone()), n_kv_heads);
            (key, split_heads(self.value.forward(hidden), n_kv_heads))
        };
        let (key, value) = match cache {
            Some(cache) => cache.memory(project),
            None => project(),
        };
        let query = split_heads(self.query.forward(input), self.config.n_heads);
        self.attend(query, key, value, memory.bias(), AttentionMask::Full)
    }

    fn attend(
        &self,
        query: Tensor<4>,
        key: Tensor<4>,
        value: Tensor<4>,
        bias: Option<Tensor<4>>,
        mask: AttentionMask,
    ) -> Tensor<3> {
        let (query, scale) = self.scaled(query);
        let bias = bias.map(|bias| bias.cast(query.dtype()));
        let scoring = Scoring {
            mask,
            scale,
            dropout: dropout::probability(&self.dropout, &query.device()),
        };
        let attended = attention(query, key, value, bias, scoring);
        self.output.forward(merge_heads(attended))
    }

    /// Queries, and what remains to multiply their products by.
    fn scaled(&self, query: Tensor<4>) -> (Tensor<4>, f64) {
        match &self.config.scale {
            AttentionScale::InverseSqrt => (query, 1.0 / (self.config.head_dim as f64).sqrt()),
            AttentionScale::Fixed(scale) => (query, *scale),
            AttentionScale::PerHead(scales) => {
                let data = TensorData::new(scales.clone(), [1, scales.len(), 1, 1]);
                let scales = Tensor::<4>::from_data(data, &query.device()).cast(query.dtype());
                (query * scales, 1.0)
            }
        }
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
