//! The stack: embedding → blocks → final norm → head.

use burn::config::Config;
use burn::module::{Module, ModuleDisplay};
use burn::nn::Linear;
use burn::tensor::{Device, Int, Tensor, module};
use serde::{Deserialize, Serialize};

use crate::{
    ConfigError,
    block::{Block, BlockConfig, NormPlacement},
    cache::{KvCache, LayerCache},
    embedding::{Embedding, EmbeddingConfig, PositionConfig},
    init,
    norm::{Norm, NormConfig},
    require_dropout, require_positive,
};

/// A model that scores the next token at every position.
///
/// This is all that training needs to know of an architecture, so a model composed by hand from the
/// zoo's components trains like a [`Transformer`].
pub trait LanguageModel: Module + ModuleDisplay + 'static {
    /// Token ids `[batch, seq]` to logits `[batch, seq, vocab_size]`.
    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3>;
}

/// How the last hidden state becomes logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HeadConfig {
    /// By the token embedding itself (Press & Wolf 2017, arXiv:1608.05859).
    Tied,
    /// By a projection of its own.
    Untied {
        /// Whether it has a bias.
        bias: bool,
    },
}

/// Configuration of a [`Transformer`].
#[derive(Config, Debug)]
pub struct TransformerConfig {
    /// How many different tokens there are.
    pub vocab_size: usize,
    /// The width of the residual stream.
    pub d_model: usize,
    /// The longest sequence.
    pub context_length: usize,
    /// One entry for each layer.
    pub blocks: Vec<BlockConfig>,
    /// How position enters.
    #[config(default = "PositionConfig::Learned")]
    pub position: PositionConfig,
    /// The norm after the last block. Without one, a pre-norm stack ends unnormalised.
    #[config(default = "Some(NormConfig::layer(true))")]
    pub final_norm: Option<NormConfig>,
    /// How the last hidden state becomes logits.
    #[config(default = "HeadConfig::Tied")]
    pub head: HeadConfig,
    /// The share of embedding values set to zero in training.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// The standard deviation of the initial embeddings and of an untied head.
    #[config(default = 0.02)]
    pub init_std: f64,
}

impl TransformerConfig {
    /// `n_layers` equal blocks with GPT-2's initialisation: weights from N(0, 0.02²), those that
    /// write to the residual stream scaled by 1/√(2 · n_layers) (Radford et al. 2019).
    pub fn uniform(
        vocab_size: usize,
        context_length: usize,
        n_layers: usize,
        mut block: BlockConfig,
    ) -> Self {
        let d_model = block.attention.d_model;
        let std = 0.02 / (2.0 * n_layers.max(1) as f64).sqrt();
        block.attention.output_init_std = std;
        block.feed_forward.output_init_std = std;
        let final_norm = (block.placement == NormPlacement::Pre).then(|| block.norm.clone());
        Self::new(vocab_size, d_model, context_length, vec![block; n_layers])
            .with_final_norm(final_norm)
    }

    /// Refuses parts that do not fit together, naming the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("context_length", self.context_length),
            ("blocks", self.blocks.len()),
        ] {
            require_positive(field, value)?;
        }
        for (index, block) in self.blocks.iter().enumerate() {
            let parent = format!("blocks.{index}");
            block.validate().map_err(|error| error.within(&parent))?;
            if block.attention.d_model != self.d_model {
                let problem = format!(
                    "must equal the stack's d_model ({}), got {}",
                    self.d_model, block.attention.d_model
                );
                return Err(ConfigError::new("attention.d_model", problem).within(&parent));
            }
        }
        require_dropout("dropout", self.dropout)
    }

    /// How many parameters the model has, counted without building it. A tied head counts once.
    pub fn n_parameters(&self) -> usize {
        let embedding = self.vocab_size * self.d_model;
        let position = match self.position {
            PositionConfig::None => 0,
            PositionConfig::Learned => self.context_length * self.d_model,
        };
        let blocks: usize = self.blocks.iter().map(BlockConfig::n_parameters).sum();
        let norm = self
            .final_norm
            .as_ref()
            .map_or(0, |norm| norm.n_parameters(self.d_model));
        let head = match self.head {
            HeadConfig::Tied => 0,
            HeadConfig::Untied { bias } => embedding + if bias { self.vocab_size } else { 0 },
        };
        embedding + position + blocks + norm + head
    }

    /// A model on `device`. Its values follow from [`init::seed`].
    ///
    /// # Panics
    ///
    /// When [`validate`](Self::validate) would refuse the configuration.
    pub fn init(&self, device: &Device) -> Transformer {
        if let Err(error) = self.validate() {
            panic!("transformer configuration: {error}");
        }
        let embedding = EmbeddingConfig::new(self.vocab_size, self.d_model, self.context_length)
            .with_position(self.position.clone())
            .with_dropout(self.dropout)
            .with_init_std(self.init_std);
        Transformer {
            embedding: embedding.init(device),
            blocks: self.blocks.iter().map(|block| block.init(device)).collect(),
            final_norm: self
                .final_norm
                .as_ref()
                .map(|norm| norm.init(self.d_model, device)),
            head: match self.head {
                HeadConfig::Tied => None,
                HeadConfig::Untied { bias } => Some(init::linear(
                    self.d_model,
                    self.vocab_size,
                    bias,
                    self.init_std,
                    device,
                )),
            },
            cache_shapes: self
                .blocks
                .iter()
                .map(|block| [block.attention.n_kv_heads, block.attention.head_dim])
                .collect(),
            context_length: self.context_length,
        }
    }
}

/// A transformer language model. Built by [`TransformerConfig::init`].
#[derive(Module, Debug)]
pub struct Transformer {
    /// Token and position embedding.
    pub embedding: Embedding,
    /// The layers.
    pub blocks: Vec<Block>,
    /// The norm after the last block.
    pub final_norm: Option<Norm>,
    /// The projection to logits; none when it is the token embedding.
    pub head: Option<Linear>,
    /// Key/value heads and their width, for each layer.
    #[module(skip)]
    cache_shapes: Vec<[usize; 2]>,
    context_length: usize,
}

impl Transformer {
    /// The longest sequence.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// An empty cache for `batch` sequences of up to the context length.
    pub fn new_cache(&self, batch: usize) -> KvCache {
        let device = self.embedding.token.device();
        let layer = |&[n_kv_heads, head_dim]: &[usize; 2]| {
            LayerCache::new([batch, n_kv_heads, self.context_length, head_dim], &device)
        };
        KvCache {
            layers: self.cache_shapes.iter().map(layer).collect(),
        }
    }

    /// The normalised output of the last block: `[batch, seq] → [batch, seq, d_model]`.
    ///
    /// With a cache, `tokens` continue the sequence that the cache holds and are added to it.
    pub fn hidden(&self, tokens: Tensor<2, Int>, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let mut x = self.embedding.forward(tokens, start);
        for (index, block) in self.blocks.iter().enumerate() {
            let layer = cache.as_mut().map(|cache| &mut cache.layers[index]);
            x = block.forward(x, layer);
        }
        match &self.final_norm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }

    /// `[.., d_model] → [.., vocab_size]`.
    pub fn logits<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        match &self.head {
            Some(head) => head.forward(hidden),
            None => module::linear(hidden, self.embedding.token.val().transpose(), None),
        }
    }

    /// Continues the cached sequences by `tokens` and scores what follows them:
    /// `[batch, seq] → [batch, vocab_size]`.
    ///
    /// # Panics
    ///
    /// When the cache cannot hold the tokens.
    pub fn decode(&self, tokens: Tensor<2, Int>, cache: &mut KvCache) -> Tensor<2> {
        let hidden = self.hidden(tokens, Some(cache));
        let [_, seq, _] = hidden.dims();
        let last = hidden.narrow(1, seq - 1, 1).squeeze_dim::<2>(1);
        self.logits(last)
    }
}

impl LanguageModel for Transformer {
    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.logits(self.hidden(tokens, None))
    }
}
