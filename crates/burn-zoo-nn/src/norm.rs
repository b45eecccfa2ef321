//! LayerNorm (Ba et al. 2016, arXiv:1607.06450) and RMSNorm (Zhang & Sennrich 2019,
//! arXiv:1910.07467).

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use burn_zoo_ops::{NormKind, add_normalize, normalize};
use serde::{Deserialize, Serialize};

use crate::{ConfigError, init};

/// Which normalisation, and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NormConfig {
    /// Subtract the mean and divide by the standard deviation.
    Layer {
        /// Added to the variance.
        epsilon: f64,
        /// Whether a shift is learned.
        bias: bool,
    },
    /// Divide by the root mean square.
    Rms {
        /// Added to the mean square.
        epsilon: f64,
    },
}

impl NormConfig {
    /// LayerNorm as PyTorch and GPT-2 have it: ε = 1e-5.
    pub fn layer(bias: bool) -> Self {
        Self::Layer {
            epsilon: 1e-5,
            bias,
        }
    }

    /// RMSNorm as Llama has it: ε = 1e-5.
    pub fn rms() -> Self {
        Self::Rms { epsilon: 1e-5 }
    }

    /// Refuses an ε that is no small number.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (Self::Layer { epsilon, .. } | Self::Rms { epsilon }) = self;
        if epsilon.is_finite() && *epsilon >= 0.0 {
            return Ok(());
        }
        let problem = format!("must be at least 0, got {epsilon}");
        Err(ConfigError::new("epsilon", problem))
    }

    /// How many parameters the module has.
    pub fn n_parameters(&self, d_model: usize) -> usize {
        match self {
            Self::Layer { bias: true, .. } => 2 * d_model,
            Self::Layer { bias: false, .. } | Self::Rms { .. } => d_model,
        }
    }

    /// A normalisation of vectors of length `d_model` that starts as the identity scale.
    pub fn init(&self, d_model: usize, device: &Device) -> Norm {
        let (kind, epsilon, bias) = match *self {
            Self::Layer { epsilon, bias } => (NormKind::Layer, epsilon, bias),
            Self::Rms { epsilon } => (NormKind::Rms, epsilon, false),
        };
        Norm {
            weight: init::constant([d_model], 1.0, device),
            bias: bias.then(|| init::constant([d_model], 0.0, device)),
            kind,
            epsilon,
        }
    }
}

/// A learned normalisation of the last dimension. Built by [`NormConfig::init`].
#[derive(Module, Debug)]
pub struct Norm {
    /// The scale, `[d_model]`.
    pub weight: Param<Tensor<1>>,
    /// The shift, `[d_model]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    kind: NormKind,
    epsilon: f64,
}

impl Norm {
    /// `[.., d_model] → [.., d_model]`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let bias = self.bias.as_ref().map(Param::val);
        normalize(input, self.weight.val(), bias, self.kind, self.epsilon)
    }

    /// The sum of two inputs, and its normalisation.
    pub(crate) fn forward_sum<const D: usize>(
        &self,
        input: Tensor<D>,
        added: Tensor<D>,
    ) -> (Tensor<D>, Tensor<D>) {
        let (weight, bias) = (self.weight.val(), self.bias.as_ref().map(Param::val));
        add_normalize(input, added, weight, bias, self.kind, self.epsilon)
    }
}
