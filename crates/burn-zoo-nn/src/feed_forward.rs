//! The position-wise feed-forward network.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::{
    ConfigError, init,
    linear::{Linear, Linears, named},
    require_positive,
};

pub use burn_zoo_ops::Activation;

/// Configuration of a [`FeedForward`].
#[derive(Config, Debug)]
pub struct FeedForwardConfig {
    /// The width of the residual stream.
    pub d_model: usize,
    /// The inner width, usually `4 · d_model`.
    pub d_ff: usize,
    /// The non-linearity.
    #[config(default = "Activation::Gelu")]
    pub activation: Activation,
    /// Whether the activation gates a second projection of the input (Shazeer 2020,
    /// arXiv:2002.05202): GEGLU with GELU, SwiGLU with SiLU.
    #[config(default = false)]
    pub gated: bool,
    /// Whether the projections have a bias.
    #[config(default = true)]
    pub bias: bool,
    /// The standard deviation of the initial weights of the first projection.
    #[config(default = 0.02)]
    pub init_std: f64,
    /// The standard deviation of the initial weights of the second projection, which writes to the
    /// residual stream.
    #[config(default = 0.02)]
    pub output_init_std: f64,
}

impl FeedForwardConfig {
    /// Refuses empty layers.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require_positive("d_model", self.d_model)?;
        require_positive("d_ff", self.d_ff)
    }

    /// How many parameters the module has.
    pub fn n_parameters(&self) -> usize {
        let n_inner = if self.gated { 2 } else { 1 };
        let bias = if self.bias {
            n_inner * self.d_ff + self.d_model
        } else {
            0
        };
        (n_inner + 1) * self.d_model * self.d_ff + bias
    }

    /// A network with weights from N(0, `init_std`²).
    pub fn init(&self, device: &Device) -> FeedForward {
        let inner = || init::linear(self.d_model, self.d_ff, self.bias, self.init_std, device);
        FeedForward {
            gate: self.gated.then(inner),
            up: inner(),
            down: init::linear(
                self.d_ff,
                self.d_model,
                self.bias,
                self.output_init_std,
                device,
            ),
            activation: self.activation,
        }
    }
}

/// `down(activation(up(x)))`, or gated `down(activation(gate(x)) ∘ up(x))`. Built by [`FeedForwardConfig::init`].
#[derive(Module, Debug)]
pub struct FeedForward {
    /// `[d_model, d_ff]`.
    pub gate: Option<Linear>,
    /// `[d_model, d_ff]`.
    pub up: Linear,
    /// `[d_ff, d_model]`.
    pub down: Linear,
    #[module(skip)]
    activation: Activation,
}

impl FeedForward {
    /// Its linear layers.
    pub(crate) fn linears(&mut self) -> Linears<'_> {
        let gate = self.gate.iter_mut().map(|gate| ("gate", gate));
        named(gate.chain([("up", &mut self.up), ("down", &mut self.down)]))
    }

    /// `[.., d_model] → [.., d_model]`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let gate = self.gate.as_ref().map(|gate| gate.forward(input.clone()));
        let up = self.up.forward(input);
        self.down.forward_activated(gate, up, self.activation)
    }
}
