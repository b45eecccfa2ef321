//! Transformer components written once on Burn tensors.
//!
//! Every component is a [`Config`](burn::config::Config) with `init(&device)` and a module with
//! `forward`. None names a backend: the [`Device`](burn::tensor::Device) decides. A stack is a list
//! of block configurations, so layers may differ.
//!
//! | file | subject |
//! |---|---|
//! | [`embedding`] | tokens, learned and sinusoidal positions, segments |
//! | [`rotary`] | rotary positions and their scaling |
//! | [`bias`] | ALiBi and T5's relative buckets |
//! | [`linear`] | the linear layer and its low-rank adapter |
//! | [`attention`] | self- and cross-attention: patterns, grouped heads, scales |
//! | [`feed_forward`] | the position-wise network, gated or not |
//! | [`mixture`] | mixture of experts |
//! | [`norm`] | LayerNorm and RMSNorm |
//! | [`block`] | the residual block: pre-, post-, sandwich-norm, parallel |
//! | [`stack`] | blocks with a final norm: an encoder or a decoder |
//! | [`head`] | vocabulary logits, labels for sequences and tokens, spans |
//! | [`contact`] | contacts of residues from attention (ESM) |
//! | [`transformer`] | embedding, encoder, stack and head as one model |
//! | [`pass`] | what the layers of one forward pass share |
//! | [`recompute`] | blocks computed again in the backward pass instead of kept |
//! | [`cache`] | keys and values of the positions already seen |
//! | [`init`] | initial parameters from a seeded host generator |
//!
//! ```
//! use burn::tensor::{Device, Int, Tensor};
//! use burn_zoo_nn::{LanguageModel, TransformerConfig, block::BlockConfig};
//!
//! let device = Device::flex();
//! let blocks = vec![BlockConfig::gpt2(32, 4), BlockConfig::gpt2(32, 2)];
//! let model = TransformerConfig::new(100, 32, 16, blocks).init(&device);
//! let tokens = Tensor::<2, Int>::zeros([1, 8], &device);
//! assert_eq!(model.forward(tokens).dims(), [1, 8, 100]);
//! ```

pub mod attention;
pub mod bias;
pub mod block;
pub mod cache;
pub mod contact;
mod dropout;
pub mod embedding;
pub mod feed_forward;
pub mod head;
pub mod init;
mod inputs;
pub mod linear;
pub mod mixture;
pub mod norm;
pub mod pass;
pub mod recompute;
pub mod rotary;
pub mod scores;
pub mod stack;
pub mod transformer;

pub use head::HeadConfig;
pub use inputs::Inputs;
pub use transformer::{LanguageModel, Transformer, TransformerConfig};

/// A configuration that cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    /// The field's path within the configuration, such as `blocks.3.attention.n_heads`.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl ConfigError {
    /// An error at `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// The same error seen from the configuration that holds this one at `parent`.
    pub fn within(self, parent: &str) -> Self {
        Self {
            field: match self.field.as_str() {
                "" => parent.to_owned(),
                field => format!("{parent}.{field}"),
            },
            problem: self.problem,
        }
    }
}

/// Refuses zero for a size.
fn require_positive(field: &str, value: usize) -> Result<(), ConfigError> {
    match value {
        0 => Err(ConfigError::new(field, "must be at least 1, got 0")),
        _ => Ok(()),
    }
}

/// Refuses what is not a dropout probability.
fn require_dropout(field: &str, value: f64) -> Result<(), ConfigError> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    let problem = format!("must be at least 0 and less than 1, got {value}");
    Err(ConfigError::new(field, problem))
}
