//! The residual block: attention and feed-forward, each around a normalisation.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    ConfigError,
    attention::{AttentionConfig, MultiHeadAttention},
    cache::LayerCache,
    dropout,
    feed_forward::{Activation, FeedForward, FeedForwardConfig},
    linear::{Linears, within},
    mixture::{MixtureConfig, MixtureOfExperts},
    norm::{Norm, NormConfig},
    pass::Pass,
    require_dropout,
};

/// Where a block normalises, and what its residual connections carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NormPlacement {
    /// Before each sub-layer, `x + f(norm(x))` (GPT-2; Xiong et al. 2020, arXiv:2002.04745). The
    /// stack ends with one more norm.
    Pre,
    /// After each residual sum, `norm(x + f(x))` (the original transformer, BERT).
    Post,
    /// Before and after each sub-layer, `x + norm(f(norm(x)))` (CogView: Ding et al. 2021,
    /// arXiv:2105.13290).
    Sandwich,
    /// Before each sub-layer, which is added to its normalised input: `norm(x) + f(norm(x))` (an
    /// option of BLOOM).
    NormedResidual,
    /// Attention and feed-forward read the same input, `x + f(norm(x)) + g(norm(x))` (GPT-J,
    /// GPT-NeoX: Black et al. 2022, arXiv:2204.06745).
    Parallel {
        /// Whether both read the same norm (GPT-J) or each its own (GPT-NeoX).
        shared_norm: bool,
    },
}

/// Configuration of a [`Block`].
#[derive(Config, Debug)]
pub struct BlockConfig {
    /// The attention sub-layer.
    pub attention: AttentionConfig,
    /// The feed-forward sub-layer.
    pub feed_forward: FeedForwardConfig,
    /// The sub-layer between them that reads the encoder's output, if any.
    #[config(default = "None")]
    pub cross_attention: Option<AttentionConfig>,
    /// Replaces the feed-forward network by a mixture of experts of its shape.
    #[config(default = "None")]
    pub mixture: Option<MixtureConfig>,
    /// The normalisation of every sub-layer.
    #[config(default = "NormConfig::layer(true)")]
    pub norm: NormConfig,
    /// Where it stands.
    #[config(default = "NormPlacement::Pre")]
    pub placement: NormPlacement,
    /// The share of each sub-layer's output set to zero in training.
    #[config(default = 0.0)]
    pub dropout: f64,
}

impl BlockConfig {
    /// A block as GPT-2 has it: causal multi-head attention, `d_ff = 4 · d_model`, GELU by tanh,
    /// pre-norm, biases everywhere.
    pub fn gpt2(d_model: usize, n_heads: usize) -> Self {
        Self::new(
            AttentionConfig::multi_head(d_model, n_heads),
            FeedForwardConfig::new(d_model, 4 * d_model).with_activation(Activation::GeluTanh),
        )
    }

    /// The same block with biases in every projection and norm, or in none.
    pub fn with_bias(mut self, bias: bool) -> Self {
        self.attention.bias = crate::attention::AttentionBias::all(bias);
        self.feed_forward.bias = bias;
        if let NormConfig::Layer { bias: norm, .. } = &mut self.norm {
            *norm = bias;
        }
        self
    }

    /// Refuses parts that do not fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.attention
            .validate()
            .map_err(|error| error.within("attention"))?;
        self.feed_forward
            .validate()
            .map_err(|error| error.within("feed_forward"))?;
        if let Some(mixture) = &self.mixture {
            mixture
                .validate()
                .map_err(|error| error.within("mixture"))?;
        }
        self.norm.validate().map_err(|error| error.within("norm"))?;
        let d_model = self.attention.d_model;
        let equal = |field: &str, found: usize| match found == d_model {
            true => Ok(()),
            false => {
                let problem = format!("must equal attention.d_model ({d_model}), got {found}");
                Err(ConfigError::new(field, problem))
            }
        };
        equal("feed_forward.d_model", self.feed_forward.d_model)?;
        if let Some(cross) = &self.cross_attention {
            cross
                .validate_cross()
                .map_err(|error| error.within("cross_attention"))?;
            equal("cross_attention.d_model", cross.d_model)?;
            if let NormPlacement::Parallel { .. } = self.placement {
                return Err(ConfigError::new(
                    "placement",
                    "cannot be parallel with cross-attention, which comes between the two others",
                ));
            }
        }
        require_dropout("dropout", self.dropout)
    }

    /// How many norms the block has.
    fn n_norms(&self) -> usize {
        let n_sublayers = if self.cross_attention.is_some() { 3 } else { 2 };
        match self.placement {
            NormPlacement::Sandwich => 2 * n_sublayers,
            NormPlacement::Parallel { shared_norm: true } => 1,
            _ => n_sublayers,
        }
    }

    /// How many parameters the module has.
    pub fn n_parameters(&self) -> usize {
        self.count(MixtureConfig::n_parameters)
    }

    /// How many of them one token goes through.
    pub fn n_active_parameters(&self) -> usize {
        self.count(MixtureConfig::n_active_parameters)
    }

    fn count(&self, mixture: fn(&MixtureConfig, &FeedForwardConfig) -> usize) -> usize {
        let cross = self.cross_attention.as_ref();
        self.attention.n_parameters()
            + cross.map_or(0, AttentionConfig::n_parameters)
            + match &self.mixture {
                Some(config) => mixture(config, &self.feed_forward),
                None => self.feed_forward.n_parameters(),
            }
            + self.n_norms() * self.norm.n_parameters(self.attention.d_model)
    }

    /// A block on `device`.
    pub fn init(&self, device: &Device) -> Block {
        let norm = || self.norm.init(self.attention.d_model, device);
        let is_sandwich = self.placement == NormPlacement::Sandwich;
        let has_cross = self.cross_attention.is_some();
        let has_own_norm = self.placement != NormPlacement::Parallel { shared_norm: true };
        Block {
            attention_norm: norm(),
            attention: self.attention.init(device),
            attention_output_norm: is_sandwich.then(norm),
            cross_attention_norm: has_cross.then(norm),
            cross_attention: self
                .cross_attention
                .as_ref()
                .map(|cross| cross.init(device)),
            cross_attention_output_norm: (has_cross && is_sandwich).then(norm),
            feed_forward_norm: has_own_norm.then(norm),
            feed_forward: match self.mixture {
                Some(_) => None,
                None => Some(self.feed_forward.init(device)),
            },
            mixture: self
                .mixture
                .as_ref()
                .map(|mixture| mixture.init(&self.feed_forward, device)),
            feed_forward_output_norm: is_sandwich.then(norm),
            dropout: DropoutConfig::new(self.dropout).init(),
            placement: self.placement,
        }
    }
}

/// One layer of a transformer. Built by [`BlockConfig::init`].
#[derive(Module, Debug)]
pub struct Block {
    /// The norm of the attention sub-layer.
    pub attention_norm: Norm,
    /// The attention sub-layer.
    pub attention: MultiHeadAttention,
    /// The norm of its output, between sandwich norms.
    pub attention_output_norm: Option<Norm>,
    /// The norm of the cross-attention sub-layer.
    pub cross_attention_norm: Option<Norm>,
    /// The sub-layer that reads the encoder's output.
    pub cross_attention: Option<MultiHeadAttention>,
    /// The norm of its output, between sandwich norms.
    pub cross_attention_output_norm: Option<Norm>,
    /// The norm of the feed-forward sub-layer, unless it shares the attention's.
    pub feed_forward_norm: Option<Norm>,
    /// The feed-forward sub-layer, unless a mixture takes its place.
    pub feed_forward: Option<FeedForward>,
    /// The mixture of experts.
    pub mixture: Option<MixtureOfExperts>,
    /// The norm of its output, between sandwich norms.
    pub feed_forward_output_norm: Option<Norm>,
    dropout: Dropout,
    #[module(skip)]
    placement: NormPlacement,
}

impl Block {
    /// Its linear layers.
    pub(crate) fn linears(&mut self) -> Linears<'_> {
        let mut linears = within("attention", self.attention.linears());
        if let Some(cross_attention) = &mut self.cross_attention {
            linears.extend(within("cross_attention", cross_attention.linears()));
        }
        if let Some(feed_forward) = &mut self.feed_forward {
            linears.extend(within("feed_forward", feed_forward.linears()));
        }
        if let Some(mixture) = &mut self.mixture {
            linears.extend(within("mixture", mixture.linears()));
        }
        linears
    }

    /// Whether it draws in training.
    pub(crate) fn has_dropout(&mut self) -> bool {
        let cross_attention = self.cross_attention.as_ref();
        let is_own = self.dropout.prob > 0.0
            || self.attention.has_dropout()
            || cross_attention.is_some_and(MultiHeadAttention::has_dropout);
        let mut linears = self.linears().into_iter();
        is_own || linears.any(|(_, linear)| linear.has_dropout())
    }

    /// `[batch, seq, d_model] → [batch, seq, d_model]`.
    ///
    /// With a cache, `x` continues the sequence that the cache holds and is added to it.
    ///
    /// # Panics
    ///
    /// When the block has cross-attention and `pass` no memory.
    pub fn forward(
        &self,
        x: Tensor<3>,
        pass: &mut Pass,
        mut cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        if let NormPlacement::Parallel { .. } = self.placement {
            let normed = self.attention_norm.forward(x.clone());
            let for_feed_forward = match &self.feed_forward_norm {
                Some(norm) => norm.forward(x.clone()),
                None => normed.clone(),
            };
            let attended = self.attend(normed, pass, cache);
            return x + attended + self.feed(for_feed_forward, pass);
        }
        let mut stream = Stream::new(x);
        let norms = (&self.attention_norm, &self.attention_output_norm);
        self.pass_through(&mut stream, norms, |h| {
            self.attend(h, pass, cache.as_deref_mut())
        });
        if let (Some(cross), Some(norm)) = (&self.cross_attention, &self.cross_attention_norm) {
            let memory = pass.memory.as_ref();
            let memory = memory.expect("cross-attention: the pass has no memory to read");
            let norms = (norm, &self.cross_attention_output_norm);
            self.pass_through(&mut stream, norms, |h| {
                dropout::apply(&self.dropout, cross.forward_cross(h, memory, cache))
            });
        }
        if let Some(norm) = &self.feed_forward_norm {
            let norms = (norm, &self.feed_forward_output_norm);
            self.pass_through(&mut stream, norms, |h| self.feed(h, pass));
        }
        stream.settled()
    }

    /// Leads the residual stream past a sub-layer with its norms.
    fn pass_through(
        &self,
        stream: &mut Stream,
        (norm, output_norm): (&Norm, &Option<Norm>),
        sublayer: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) {
        match self.placement {
            NormPlacement::Post => {
                stream.add(sublayer(stream.x.clone()));
                stream.x = stream.normalized(norm);
            }
            NormPlacement::NormedResidual => {
                stream.x = stream.normalized(norm);
                stream.add(sublayer(stream.x.clone()));
            }
            _ => {
                let output = sublayer(stream.normalized(norm));
                stream.add(match output_norm {
                    Some(norm) => norm.forward(output),
                    None => output,
                });
            }
        }
    }

    fn attend(&self, x: Tensor<3>, pass: &mut Pass, cache: Option<&mut LayerCache>) -> Tensor<3> {
        dropout::apply(&self.dropout, self.attention.forward(x, pass, cache))
    }

    fn feed(&self, x: Tensor<3>, pass: &mut Pass) -> Tensor<3> {
        let output = match (&self.mixture, &self.feed_forward) {
            (Some(mixture), _) => {
                let [_, seq, _] = x.dims();
                let (output, routing) = mixture.forward(x, pass.new_visible(seq));
                pass.routing.push(routing);
                output
            }
            (None, Some(feed_forward)) => feed_forward.forward(x),
            (None, None) => unreachable!("a block has a feed-forward network or a mixture"),
        };
        dropout::apply(&self.dropout, output)
    }
}

/// The residual stream, `[batch, seq, d_model]`. What a sub-layer adds waits for the next norm, which adds and normalises
/// in one pass.
struct Stream {
    x: Tensor<3>,
    waiting: Option<Tensor<3>>,
}

impl Stream {
    fn new(x: Tensor<3>) -> Self {
        Self { x, waiting: None }
    }

    fn add(&mut self, output: Tensor<3>) {
        let waiting = self.waiting.replace(output);
        debug_assert!(waiting.is_none(), "a norm comes before each sub-layer");
    }

    /// The norm of the whole stream.
    fn normalized(&mut self, norm: &Norm) -> Tensor<3> {
        match self.waiting.take() {
            None => norm.forward(self.x.clone()),
            Some(added) => {
                let (sum, normalized) = norm.forward_sum(self.x.clone(), added);
                self.x = sum;
                normalized
            }
        }
    }

    /// The whole stream.
    fn settled(self) -> Tensor<3> {
        match self.waiting {
            None => self.x,
            Some(added) => self.x + added,
        }
    }
}
