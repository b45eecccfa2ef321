//! The linear layer, and the low-rank adapter that fine-tuning can put beside its matrix.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use burn_zoo_ops::{Activation, Quantized, activate, activated_linear, gated_linear, linear};
use serde::{Deserialize, Serialize};

use crate::{ConfigError, dropout, init, require_dropout, require_positive};

/// `x W + b`. Built by [`init::linear`].
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_input, d_output]`.
    pub weight: Param<Tensor<2>>,
    /// `[d_output]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// What is learned beside the matrix.
    pub lora: Option<Lora>,
    /// What is read instead of the matrix, in a model that [drafts](crate::Transformer::draft).
    #[module(skip)]
    pub(crate) quantized: Option<Quantized>,
}

impl Linear {
    /// `[.., d_input] → [.., d_output]`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.forward_with(input, self.bias.as_ref().map(Param::val))
    }

    /// The same with another bias `[d_output]`.
    pub(crate) fn forward_with<const D: usize>(
        &self,
        input: Tensor<D>,
        bias: Option<Tensor<1>>,
    ) -> Tensor<D> {
        let output = |input| match &self.quantized {
            None => linear(input, self.weight.val(), bias),
            Some(quantized) => quantized.linear(input, bias),
        };
        match &self.lora {
            None => output(input),
            Some(lora) => output(input.clone()) + lora.forward(input),
        }
    }

    /// The same of `activation(up)`, or `activation(gate) ∘ up`, which is not kept for the gradient.
    pub(crate) fn forward_activated<const D: usize>(
        &self,
        gate: Option<Tensor<D>>,
        up: Tensor<D>,
        activation: Activation,
    ) -> Tensor<D> {
        if self.lora.is_some() || self.quantized.is_some() {
            // Two linear layers read it, or one that has no fused form.
            return self.forward(match gate {
                None => activate(up, activation),
                Some(gate) => burn_zoo_ops::gate(gate, up, activation),
            });
        }
        let (weight, bias) = (self.weight.val(), self.bias.as_ref().map(Param::val));
        match gate {
            None => activated_linear(up, activation, weight, bias),
            Some(gate) => gated_linear(gate, up, activation, weight, bias),
        }
    }

    /// Reads a copy of the matrix in 8 bits from now on. Returns whether there is one.
    pub(crate) fn quantize(&mut self) -> bool {
        self.quantized = Quantized::of(self.weight.val());
        self.quantized.is_some()
    }

    /// Whether it draws in training.
    pub(crate) fn has_dropout(&self) -> bool {
        let adapter = self.lora.as_ref();
        adapter.is_some_and(|lora| lora.dropout.prob > 0.0)
    }

    /// Adds a new adapter, which changes nothing before it is trained: `a` is random and `b` zero.
    pub fn adapt(&mut self, config: &LoraConfig) {
        let ([d_input, d_output], device) = (self.dims(), self.weight.lazy_device());
        // PEFT's: Kaiming with a = √5, which is uniform in ±1/√d_input; its standard deviation.
        let std = 1.0 / (3.0 * d_input as f64).sqrt();
        let a = init::normal([d_input, config.rank], std, &device);
        let b = init::constant([config.rank, d_output], 0.0, &device);
        self.lora = Some(Lora::new(a, b, config.dropout, config.scale()));
    }

    /// Adds the adapter's product to the matrix and drops the adapter.
    pub fn merge(&mut self) {
        if let Some(lora) = self.lora.take() {
            let id = self.weight.id;
            let merged = (self.weight.val() + lora.product()).detach();
            self.weight = Param::from_tensor(merged);
            self.weight.id = id;
            self.quantized = None;
        }
    }

    /// `[d_input, d_output]`.
    pub fn dims(&self) -> [usize; 2] {
        let shape = self.weight.lazy_shape();
        [shape[0], shape[1]]
    }
}

/// How large adapters are (LoRA: Hu et al. 2021, arXiv:2106.09685).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// The rank of what is learned.
    pub rank: usize,
    /// What is learned is scaled by `alpha / rank`.
    pub alpha: f64,
    /// The share of the adapter's inputs set to zero in training.
    #[serde(default)]
    pub dropout: f64,
}

impl LoraConfig {
    /// `alpha / rank`.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Refuses impossible values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require_positive("rank", self.rank)?;
        require_dropout("dropout", self.dropout)?;
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            let problem = format!("must be a number above 0, got {}", self.alpha);
            return Err(ConfigError::new("alpha", problem));
        }
        Ok(())
    }
}

/// `scale · dropout(x) A B`.
#[derive(Module, Debug)]
pub struct Lora {
    /// `[d_input, rank]`.
    pub a: Param<Tensor<2>>,
    /// `[rank, d_output]`.
    pub b: Param<Tensor<2>>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
}

impl Lora {
    /// An adapter of these factors, `a` `[d_input, rank]` and `b` `[rank, d_output]`.
    pub fn new(a: Param<Tensor<2>>, b: Param<Tensor<2>>, dropout: f64, scale: f64) -> Self {
        let dropout = DropoutConfig::new(dropout).init();
        Self {
            a,
            b,
            dropout,
            scale,
        }
    }

    /// What its product is multiplied by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let low = linear(dropout::apply(&self.dropout, input), self.a.val(), None);
        linear(low, self.b.val(), None) * self.scale
    }

    /// `scale · A B`, `[d_input, d_output]`.
    fn product(&self) -> Tensor<2> {
        self.a.val().matmul(self.b.val()) * self.scale
    }
}

/// Linear layers by their path within a module.
pub type Linears<'a> = Vec<(String, &'a mut Linear)>;

/// The linear layers of a part called `name`.
pub(crate) fn within<'a>(name: &str, linears: Linears<'a>) -> Linears<'a> {
    let named = linears.into_iter();
    named
        .map(|(path, linear)| (format!("{name}.{path}"), linear))
        .collect()
}

/// Layers that a part has itself, by their names.
pub(crate) fn named<'a>(
    layers: impl IntoIterator<Item = (&'static str, &'a mut Linear)>,
) -> Linears<'a> {
    let layers = layers.into_iter();
    layers
        .map(|(name, linear)| (name.to_owned(), linear))
        .collect()
}
