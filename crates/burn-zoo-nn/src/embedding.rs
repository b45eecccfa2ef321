//! Token, position and segment embedding.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_zoo_ops::gather_rows;
use serde::{Deserialize, Serialize};

use crate::{
    ConfigError, Inputs, dropout, init,
    norm::{Norm, NormConfig},
    require_dropout, require_positive,
};

/// How a model knows the order of its tokens by their embedding. Rotary positions and biases by
/// distance are part of [attention](crate::attention::AttentionConfig).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PositionConfig {
    /// It does not.
    None,
    /// A learned vector for each position, added to the token's (GPT-2, BERT).
    Learned,
    /// The same, but padding is not counted, and counting starts after the padding token's id
    /// (RoBERTa): the table has `padding_id + 1` more rows.
    LearnedSkippingPadding {
        /// The id of the padding token.
        padding_id: usize,
    },
    /// Sines and cosines of rising wavelength (Vaswani et al. 2017, arXiv:1706.03762).
    Sinusoidal,
    /// Two learned vectors: the position in the prefix, where it stays at the prefix's last token for
    /// what follows; and the position in what follows, 0 within the prefix (GLM: Du et al. 2022,
    /// arXiv:2103.10360). Each table has one more row than the context.
    PrefixAndBlock,
}

/// Zeroes the embedding of mask tokens and scales the others, so that their expected sum is the one
/// of pre-training with `expected` of the tokens masked (ESM-2: Lin et al. 2023).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenDropout {
    /// The id of the mask token.
    pub mask_id: usize,
    /// The share of tokens that pre-training replaced by the mask: 0.15 · 0.8.
    pub expected: f64,
}

/// Configuration of an [`Embedding`].
#[derive(Config, Debug)]
pub struct EmbeddingConfig {
    /// How many different tokens there are.
    pub vocab_size: usize,
    /// The length of an embedding.
    pub d_model: usize,
    /// The longest sequence.
    pub context_length: usize,
    /// How position enters.
    #[config(default = "PositionConfig::Learned")]
    pub position: PositionConfig,
    /// How many segments are told apart; 0 for none (BERT has 2).
    #[config(default = 0)]
    pub n_segments: usize,
    /// What token embeddings are multiplied by before anything is added.
    #[config(default = 1.0)]
    pub scale: f64,
    /// The scaling around mask tokens, if any.
    #[config(default = "None")]
    pub token_dropout: Option<TokenDropout>,
    /// A norm of the sum (BERT, BLOOM), if any.
    #[config(default = "None")]
    pub norm: Option<NormConfig>,
    /// Whether the embeddings of padding are set to zero (ESM-2).
    #[config(default = false)]
    pub zero_padding: bool,
    /// The share of values set to zero in training.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// The standard deviation of the initial embeddings.
    #[config(default = 0.02)]
    pub init_std: f64,
}

impl EmbeddingConfig {
    /// Refuses empty tables.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("context_length", self.context_length),
        ] {
            require_positive(field, value)?;
        }
        if self.position == PositionConfig::Sinusoidal && !self.d_model.is_multiple_of(2) {
            let problem = format!(
                "must be even for sinusoidal positions, got {}",
                self.d_model
            );
            return Err(ConfigError::new("d_model", problem));
        }
        if !self.scale.is_finite() {
            let problem = format!("must be a number, got {}", self.scale);
            return Err(ConfigError::new("scale", problem));
        }
        require_dropout("dropout", self.dropout)
    }

    /// The rows of the first and the second position table.
    fn position_rows(&self) -> [usize; 2] {
        match self.position {
            PositionConfig::None | PositionConfig::Sinusoidal => [0, 0],
            PositionConfig::Learned => [self.context_length, 0],
            PositionConfig::LearnedSkippingPadding { padding_id } => {
                [self.context_length + padding_id + 1, 0]
            }
            PositionConfig::PrefixAndBlock => [self.context_length + 1; 2],
        }
    }

    /// How many parameters the module has.
    pub fn n_parameters(&self) -> usize {
        let [position, block] = self.position_rows();
        let rows = self.vocab_size + position + block + self.n_segments;
        let norm = self.norm.as_ref();
        rows * self.d_model + norm.map_or(0, |norm| norm.n_parameters(self.d_model))
    }

    /// An embedding with values from N(0, `init_std`²).
    pub fn init(&self, device: &Device) -> Embedding {
        let table =
            |rows| (rows > 0).then(|| init::normal([rows, self.d_model], self.init_std, device));
        let token = init::normal([self.vocab_size, self.d_model], self.init_std, device);
        let [position, block] = self.position_rows();
        Embedding {
            token,
            position: table(position),
            block_position: table(block),
            segment: table(self.n_segments),
            norm: self
                .norm
                .as_ref()
                .map(|norm| norm.init(self.d_model, device)),
            dropout: DropoutConfig::new(self.dropout).init(),
            config: self.clone(),
        }
    }
}

/// Turns token ids into vectors.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocab_size, d_model]`. A tied head reads this same parameter.
    pub token: Param<Tensor<2>>,
    /// `[context_length, d_model]`, or more rows, see [`PositionConfig`].
    pub position: Option<Param<Tensor<2>>>,
    /// `[context_length + 1, d_model]`.
    pub block_position: Option<Param<Tensor<2>>>,
    /// `[n_segments, d_model]`.
    pub segment: Option<Param<Tensor<2>>>,
    /// The norm of the sum.
    pub norm: Option<Norm>,
    dropout: Dropout,
    #[module(skip)]
    config: EmbeddingConfig,
}

impl Embedding {
    /// `[batch, seq] → [batch, seq, d_model]`. The first token stands at position `start`.
    ///
    /// # Panics
    ///
    /// When `start + seq` exceeds the context length of learned positions.
    pub fn forward(&self, inputs: &Inputs, start: usize) -> Tensor<3> {
        let [batch, seq] = inputs.tokens.dims();
        let device = inputs.tokens.device();
        let mut x: Tensor<3> = lookup(self.token.val(), inputs.tokens.clone());
        if self.config.scale != 1.0 {
            x = x * self.config.scale;
        }
        if let Some(dropout) = &self.config.token_dropout {
            x = self.drop_tokens(x, inputs, dropout);
        }
        if let Some(positions) = self.positions(inputs, start) {
            let positions = positions.cast(x.dtype());
            x = x + positions;
        }
        if let Some(segment) = &self.segment {
            let segments = match inputs.segments.clone() {
                Some(segments) => segments,
                None => Tensor::zeros([batch, seq], &device),
            };
            x = x + lookup(segment.val(), segments);
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(x);
        }
        if self.config.zero_padding
            && let Some(visible) = inputs.visible.clone()
        {
            let [_, length] = visible.dims();
            let visible = visible.narrow(1, length - seq, seq).float().cast(x.dtype());
            x = x * visible.reshape([batch, seq, 1]);
        }
        dropout::apply(&self.dropout, x)
    }

    /// What is added for the position, `[batch or 1, seq, d_model]`.
    fn positions(&self, inputs: &Inputs, start: usize) -> Option<Tensor<3>> {
        let [_, seq] = inputs.tokens.dims();
        let device = inputs.tokens.device();
        let EmbeddingConfig {
            context_length,
            d_model,
            ..
        } = self.config;
        let is_table = !matches!(
            self.config.position,
            PositionConfig::None | PositionConfig::Sinusoidal
        );
        assert!(
            !is_table || start + seq <= context_length,
            "embedding: positions {start}..{} exceed the context length {context_length}",
            start + seq
        );
        let position = || self.position.as_ref().map(Param::val);
        let given = inputs.positions();
        Some(match (&self.config.position, given) {
            (PositionConfig::None, _) => return None,
            (PositionConfig::Learned, None) => position()?.narrow(0, start, seq).unsqueeze(),
            (PositionConfig::Learned, Some(given)) => lookup(position()?, given),
            (PositionConfig::LearnedSkippingPadding { padding_id }, given) => {
                let padding = *padding_id as i64;
                let real = inputs.tokens.clone().not_equal_elem(padding).int();
                let counted = match given {
                    None => real.clone().cumsum(1) + start as i64,
                    Some(given) => given + 1,
                };
                lookup(position()?, counted * real + padding)
            }
            (PositionConfig::Sinusoidal, None) => {
                sinusoidal(start, seq, d_model, &device).unsqueeze()
            }
            (PositionConfig::Sinusoidal, Some(given)) => {
                lookup(sinusoidal(0, start + seq, d_model, &device), given)
            }
            (PositionConfig::PrefixAndBlock, _) => {
                let (within, after) = prefix_and_block(inputs, start);
                let within = inputs.positions.clone().unwrap_or(within);
                let after = inputs.block_positions.clone().unwrap_or(after);
                lookup(position()?, within) + lookup(self.block_position.as_ref()?.val(), after)
            }
        })
    }

    fn drop_tokens(&self, x: Tensor<3>, inputs: &Inputs, dropout: &TokenDropout) -> Tensor<3> {
        let [batch, seq] = inputs.tokens.dims();
        let masked = inputs.tokens.clone().equal_elem(dropout.mask_id as i64);
        let masked = masked.float().cast(x.dtype());
        let length = match inputs.visible.clone() {
            Some(visible) => visible.float().cast(x.dtype()).sum_dim(1),
            None => masked.ones_like().sum_dim(1),
        };
        let share = masked.clone().sum_dim(1) / length;
        let scale = (-share + 1.0).recip() * (1.0 - dropout.expected);
        let kept = (-masked + 1.0) * scale;
        x * kept.reshape([batch, seq, 1])
    }
}

/// Rows of a table `[n, width]` by their numbers, `[batch, seq] → [batch, seq, width]`.
pub(crate) fn lookup(table: Tensor<2>, numbers: Tensor<2, Int>) -> Tensor<3> {
    let ([_, width], [batch, seq]) = (table.dims(), numbers.dims());
    gather_rows(table, numbers.reshape([batch * seq])).reshape([batch, seq, width])
}

/// Both positions of each token, `[batch, seq]`, as they follow from the prefix.
fn prefix_and_block(inputs: &Inputs, start: usize) -> (Tensor<2, Int>, Tensor<2, Int>) {
    let [batch, seq] = inputs.tokens.dims();
    let device = inputs.tokens.device();
    let lengths = match inputs.prefix_lengths.clone() {
        Some(lengths) => lengths,
        None => Tensor::zeros([batch], &device),
    };
    let last = lengths.reshape([batch, 1]).expand([batch, seq]) - 1;
    let places = inputs.places_in_documents().unwrap_or_else(|| {
        let places = Tensor::<1, Int>::arange(start as i64..(start + seq) as i64, &device);
        places.reshape([1, seq]).expand([batch, seq])
    });
    let within = places.clone().min_pair(last.clone()).clamp_min(0);
    (within, (places - last).clamp_min(0))
}

/// `[seq, d_model]`: channel `2i` is the sine and `2i + 1` the cosine of
/// `position / 10000^(2i / d_model)`.
fn sinusoidal(start: usize, seq: usize, d_model: usize, device: &Device) -> Tensor<2> {
    let value = |position: usize, channel: usize| {
        let exponent = (channel - channel % 2) as f64 / d_model as f64;
        let angle = position as f64 / 1e4f64.powf(exponent);
        (if channel.is_multiple_of(2) {
            angle.sin()
        } else {
            angle.cos()
        }) as f32
    };
    let values: Vec<f32> = (start..start + seq)
        .flat_map(|position| (0..d_model).map(move |channel| value(position, channel)))
        .collect();
    Tensor::from_data(TensorData::new(values, [seq, d_model]), device)
}
