//! Scores of the vocabulary that are not computed before it is known what for.

use burn::tensor::{DType, FloatDType, Int, Tensor};
use burn_zoo_ops::{ClassLoss, Quantized, linear, negative_log_likelihood, projected_loss};

/// A matrix of fewer values stays in a cache.
const LARGE: usize = 1 << 22;

/// Scores of the vocabulary, a row for each token.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one is made in a step, and used at once"
)]
pub enum VocabularyScores {
    /// Logits `[rows, vocab_size]`.
    Logits(Tensor<2>),
    /// What they are the product of. A loss needs them only a block after the other.
    Projection {
        /// `[rows, d_model]`.
        hidden: Tensor<2>,
        /// `[d_model, vocab_size]`.
        weight: Tensor<2>,
        /// `[vocab_size]`.
        bias: Option<Tensor<1>>,
    },
}

impl VocabularyScores {
    /// The logits, `[rows, vocab_size]`.
    pub fn logits(self) -> Tensor<2> {
        match self {
            Self::Logits(logits) => logits,
            Self::Projection {
                hidden,
                weight,
                bias,
            } => linear(hidden, weight, bias),
        }
    }

    /// What finds the [`best`](Self::best) class without reading the whole weight each time, where that pays.
    pub fn quantized(&self) -> Option<Quantized> {
        match self {
            Self::Projection { weight, .. } if weight.dims().iter().product::<usize>() >= LARGE => {
                Quantized::of(weight.clone())
            }
            _ => None,
        }
    }

    /// The class with the highest logit of each row, `[rows]`, by a copy of these scores' weight.
    pub fn best(self, quantized: &Quantized) -> Tensor<1, Int> {
        match self {
            Self::Logits(logits) => logits.argmax(1).squeeze_dim(1),
            Self::Projection {
                hidden,
                weight,
                bias,
            } => quantized.best(hidden, weight, bias),
        }
    }

    /// `scale · Σ −log p(class)` in nats over the rows, in 32 bits: the classes `[rows]` to `[1]`.
    pub fn loss(self, classes: Tensor<1, Int>, loss: ClassLoss) -> Tensor<1> {
        match self {
            Self::Projection {
                hidden,
                weight,
                bias,
            } if hidden.dtype() == DType::F32 => {
                projected_loss(hidden, weight, bias, classes, loss)
            }
            // In 16 bits, a sum over a vocabulary keeps hardly a digit, and gradients need the scale of the loss before
            // they are made: the logits are made whole, and cast.
            scores => {
                let logits = scores.logits().cast(FloatDType::F32);
                negative_log_likelihood(logits, classes, loss.smoothing).sum() * loss.scale
            }
        }
    }
}
