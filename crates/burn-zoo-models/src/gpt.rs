//! GPT: a decoder of equal pre-norm blocks with learned positions (Radford et al. 2019, "Language
//! Models are Unsupervised Multitask Learners").

use burn_zoo_nn::{
    ConfigError, HeadConfig, TransformerConfig,
    attention::AttentionConfig,
    block::BlockConfig,
    feed_forward::{Activation, FeedForwardConfig},
};
use serde::{Deserialize, Serialize};

/// The sizes of a GPT. The vocabulary comes from the tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GptConfig {
    /// How many blocks.
    pub n_layers: usize,
    /// How many query heads in each.
    pub n_heads: usize,
    /// How many key/value heads in each; `n_heads` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<usize>,
    /// The width of the residual stream, a multiple of `n_heads`.
    pub d_model: usize,
    /// The inner width of the feed-forward networks; `4 · d_model` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// The longest sequence.
    pub context_length: usize,
    /// The share of embedding and sub-layer values set to zero in training.
    #[serde(default)]
    pub dropout: f64,
    /// Whether projections and norms have a bias.
    #[serde(default = "yes")]
    pub bias: bool,
    /// Whether the head is the token embedding.
    #[serde(default = "yes")]
    pub tied_head: bool,
    /// The non-linearity of the feed-forward networks.
    #[serde(default = "gelu_tanh")]
    pub activation: Activation,
}

fn yes() -> bool {
    true
}

fn gelu_tanh() -> Activation {
    Activation::GeluTanh
}

impl GptConfig {
    /// A GPT with GPT-2's choices where they are not given.
    pub fn new(n_layers: usize, n_heads: usize, d_model: usize, context_length: usize) -> Self {
        Self {
            n_layers,
            n_heads,
            n_kv_heads: None,
            d_model,
            d_ff: None,
            context_length,
            dropout: 0.0,
            bias: true,
            tied_head: true,
            activation: Activation::GeluTanh,
        }
    }

    /// The stack for a vocabulary.
    ///
    /// # Errors
    ///
    /// When sizes do not fit together, with the field's name.
    pub fn transformer(&self, vocab_size: usize) -> Result<TransformerConfig, ConfigError> {
        if self.n_heads == 0 || !self.d_model.is_multiple_of(self.n_heads) {
            let problem = format!(
                "must be a multiple of n_heads ({}), got {}",
                self.n_heads, self.d_model
            );
            return Err(ConfigError::new("d_model", problem));
        }
        let attention = AttentionConfig::new(
            self.d_model,
            self.n_heads,
            self.n_kv_heads.unwrap_or(self.n_heads),
            self.d_model / self.n_heads,
        );
        let d_ff = self.d_ff.unwrap_or(4 * self.d_model);
        let feed_forward =
            FeedForwardConfig::new(self.d_model, d_ff).with_activation(self.activation);
        let block = BlockConfig::new(attention, feed_forward)
            .with_dropout(self.dropout)
            .with_bias(self.bias);
        let config =
            TransformerConfig::uniform(vocab_size, self.context_length, self.n_layers, block)
                .with_dropout(self.dropout)
                .with_head(match self.tied_head {
                    true => HeadConfig::tied(),
                    false => HeadConfig::untied(false),
                });
        self.name_own_field(config.validate())?;
        Ok(config)
    }

    /// All blocks are equal, so an error in one of them is an error in the field it came from.
    fn name_own_field(&self, result: Result<(), ConfigError>) -> Result<(), ConfigError> {
        result.map_err(|error| {
            let field = match error.field.as_str() {
                "stack.blocks" => "n_layers",
                path => path.rsplit('.').next().unwrap_or(path),
            };
            ConfigError::new(field, error.problem)
        })
    }
}
