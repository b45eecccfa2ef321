//! Token and position embedding.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, Int, Tensor, module};
use serde::{Deserialize, Serialize};

use crate::init;

/// How a model knows the order of its tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PositionConfig {
    /// It does not, except through a causal mask.
    None,
    /// A learned vector for each position, added to the token's (GPT-2, BERT).
    Learned,
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
    /// The share of values set to zero in training.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// The standard deviation of the initial embeddings.
    #[config(default = 0.02)]
    pub init_std: f64,
}

impl EmbeddingConfig {
    /// An embedding with values from N(0, `init_std`²).
    pub fn init(&self, device: &Device) -> Embedding {
        let positions = match self.position {
            PositionConfig::None => None,
            PositionConfig::Learned => Some(self.context_length),
        };
        Embedding {
            token: init::normal([self.vocab_size, self.d_model], self.init_std, device),
            position: positions
                .map(|length| init::normal([length, self.d_model], self.init_std, device)),
            dropout: DropoutConfig::new(self.dropout).init(),
        }
    }
}

/// Turns token ids into vectors.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocab_size, d_model]`. A tied head reads this same parameter.
    pub token: Param<Tensor<2>>,
    /// `[context_length, d_model]`.
    pub position: Option<Param<Tensor<2>>>,
    dropout: Dropout,
}

impl Embedding {
    /// `[batch, seq] → [batch, seq, d_model]`. The first token stands at position `start`.
    ///
    /// # Panics
    ///
    /// When `start + seq` exceeds the context length of learned positions.
    pub fn forward(&self, tokens: Tensor<2, Int>, start: usize) -> Tensor<3> {
        let [_, seq] = tokens.dims();
        let mut embedded = module::embedding(self.token.val(), tokens);
        if let Some(position) = &self.position {
            let [context_length, _] = position.dims();
            assert!(
                start + seq <= context_length,
                "embedding: positions {start}..{} exceed the context length {context_length}",
                start + seq
            );
            let rows = position.val().narrow(0, start, seq);
            embedded = embedded + rows.unsqueeze();
        }
        self.dropout.forward(embedded)
    }
}
