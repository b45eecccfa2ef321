//! What follows the last hidden state: logits over the vocabulary, or labels.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Bool, Device, Int, Tensor};
use burn_zoo_ops::{activate, linear};
use serde::{Deserialize, Serialize};

use crate::{
    ConfigError, dropout,
    feed_forward::Activation,
    init,
    linear::{Linear, Linears, named},
    norm::{Norm, NormConfig},
    require_dropout, require_positive,
    scores::VocabularyScores,
};

/// Which matrix projects to the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Projection {
    /// The token embedding itself (Press & Wolf 2017, arXiv:1608.05859).
    Tied,
    /// One of its own.
    Untied,
}

/// A layer before the projection, `norm(activation(dense(x)))` (BERT's masked language model).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformConfig {
    /// The non-linearity.
    pub activation: Activation,
    /// The norm after it.
    pub norm: NormConfig,
}

/// Logits over the vocabulary for every token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageHeadConfig {
    /// Which matrix.
    pub projection: Projection,
    /// Whether each token has a bias.
    pub bias: bool,
    /// A layer before the projection, if any.
    pub transform: Option<TransformConfig>,
    /// What hidden states are multiplied by before the projection: `1/√d_model` for a tied T5.
    pub scale: f64,
}

/// Which hidden state stands for the whole sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SequenceState {
    /// The pooler's output (BERT).
    Pooled,
    /// The first token's (RoBERTa).
    First,
    /// The last token's that is not padding (GPT-2).
    Last {
        /// The id of the padding token, if there is one.
        padding_id: Option<usize>,
    },
    /// That of the last occurrence of a token (T5).
    LastOccurrence {
        /// The token's id.
        id: usize,
    },
}

/// What a model gives besides hidden states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HeadConfig {
    /// Nothing.
    None,
    /// Logits over the vocabulary for every token: the next, or the masked one.
    Language(LanguageHeadConfig),
    /// The same, and whether the second segment follows the first (BERT's pre-training).
    Pretraining(LanguageHeadConfig),
    /// Whether the second segment follows the first.
    NextSentence,
    /// Logits over labels, or a number, for each sequence.
    Sequence {
        /// How many labels; 1 for regression.
        n_labels: usize,
        /// Which hidden state stands for the sequence.
        state: SequenceState,
        /// The non-linearity of a layer before the classifier, if there is one.
        dense: Option<Activation>,
        /// Whether labels have a bias.
        bias: bool,
        /// The share of values set to zero in training before each of those layers.
        #[serde(default)]
        dropout: f64,
    },
    /// Logits over labels for each token.
    Token {
        /// How many labels.
        n_labels: usize,
        /// The share of values set to zero in training before the classifier.
        #[serde(default)]
        dropout: f64,
    },
    /// Logits for where an answer starts and where it ends.
    Span,
}

impl HeadConfig {
    /// Logits by the token embedding, as GPT-2 has them.
    pub fn tied() -> Self {
        Self::Language(LanguageHeadConfig {
            projection: Projection::Tied,
            bias: false,
            transform: None,
            scale: 1.0,
        })
    }

    /// Logits by a projection of their own.
    pub fn untied(bias: bool) -> Self {
        Self::Language(LanguageHeadConfig {
            projection: Projection::Untied,
            bias,
            transform: None,
            scale: 1.0,
        })
    }

    /// The part that scores the vocabulary.
    pub fn language(&self) -> Option<&LanguageHeadConfig> {
        match self {
            Self::Language(config) | Self::Pretraining(config) => Some(config),
            _ => None,
        }
    }

    /// Whether it labels the text rather than continuing it.
    pub fn classifies(&self) -> bool {
        matches!(
            self,
            Self::Sequence { .. } | Self::Token { .. } | Self::Span
        )
    }

    /// Refuses heads without labels, and those that need a pooler where there is none.
    pub fn validate(&self, has_pooler: bool) -> Result<(), ConfigError> {
        let needs_pooler = match self {
            Self::Pretraining(_) | Self::NextSentence => true,
            Self::Sequence { state, .. } => *state == SequenceState::Pooled,
            _ => false,
        };
        if needs_pooler && !has_pooler {
            return Err(ConfigError::new(
                "head",
                "needs the pooler: set `pooler = true`",
            ));
        }
        match self {
            Self::Sequence {
                n_labels, dropout, ..
            }
            | Self::Token { n_labels, dropout } => {
                require_positive("head.n_labels", *n_labels)?;
                require_dropout("head.dropout", *dropout)
            }
            _ => Ok(()),
        }
    }

    /// How many parameters the module has. A tied projection has none.
    pub fn n_parameters(&self, vocab_size: usize, d_model: usize) -> usize {
        let linear = |outputs: usize, bias: bool| (d_model + usize::from(bias)) * outputs;
        let language = self.language().map_or(0, |config| {
            let transform = config.transform.as_ref().map_or(0, |transform| {
                linear(d_model, true) + transform.norm.n_parameters(d_model)
            });
            let projection = match config.projection {
                Projection::Tied => 0,
                Projection::Untied => linear(vocab_size, false),
            };
            let bias = if config.bias { vocab_size } else { 0 };
            transform + projection + bias
        });
        language
            + match self {
                Self::None | Self::Language(_) => 0,
                Self::Pretraining(_) | Self::NextSentence | Self::Span => linear(2, true),
                Self::Token { n_labels, .. } => linear(*n_labels, true),
                Self::Sequence {
                    n_labels,
                    dense,
                    bias,
                    ..
                } => {
                    let dense = if dense.is_some() {
                        linear(d_model, true)
                    } else {
                        0
                    };
                    dense + linear(*n_labels, *bias)
                }
            }
    }

    /// A head on `device`.
    pub fn init(&self, vocab_size: usize, d_model: usize, std: f64, device: &Device) -> Head {
        let linear = |outputs: usize, bias: bool| init::linear(d_model, outputs, bias, std, device);
        let language = self.language();
        let transform = language.and_then(|config| config.transform.as_ref());
        Head {
            transform: transform.map(|config| Transform {
                dense: linear(d_model, true),
                norm: config.norm.init(d_model, device),
                activation: config.activation,
            }),
            projection: language
                .filter(|config| config.projection == Projection::Untied)
                .map(|_| linear(vocab_size, false)),
            bias: language
                .filter(|config| config.bias)
                .map(|_| init::constant([vocab_size], 0.0, device)),
            dense: match self {
                Self::Sequence { dense: Some(_), .. } => Some(linear(d_model, true)),
                _ => None,
            },
            classifier: match self {
                Self::None | Self::Language(_) => None,
                Self::Pretraining(_) | Self::NextSentence | Self::Span => Some(linear(2, true)),
                Self::Sequence { n_labels, bias, .. } => Some(linear(*n_labels, *bias)),
                Self::Token { n_labels, .. } => Some(linear(*n_labels, true)),
            },
            dropout: DropoutConfig::new(match self {
                Self::Sequence { dropout, .. } | Self::Token { dropout, .. } => *dropout,
                _ => 0.0,
            })
            .init(),
            config: self.clone(),
        }
    }
}

/// `norm(activation(dense(x)))`.
#[derive(Module, Debug)]
pub struct Transform {
    /// `[d_model, d_model]`.
    pub dense: Linear,
    /// The norm after the non-linearity.
    pub norm: Norm,
    #[module(skip)]
    activation: Activation,
}

/// The end of a model. Built by [`HeadConfig::init`].
#[derive(Module, Debug)]
pub struct Head {
    /// The layer before the projection.
    pub transform: Option<Transform>,
    /// `[d_model, vocab_size]`; none when it is the token embedding.
    pub projection: Option<Linear>,
    /// `[vocab_size]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The layer before the classifier, `[d_model, d_model]`.
    pub dense: Option<Linear>,
    /// `[d_model, n_labels]`.
    pub classifier: Option<Linear>,
    dropout: Dropout,
    #[module(skip)]
    config: HeadConfig,
}

/// What a head gives.
#[derive(Clone, Debug)]
pub enum HeadOutput {
    /// Nothing.
    None,
    /// Logits for each token, `[batch, seq, vocab_size or n_labels]`.
    Tokens(Tensor<3>),
    /// Logits for each token `[batch, seq, vocab_size]` and for the second segment to follow the first
    /// or not `[batch, 2]`.
    Pretraining(Tensor<3>, Tensor<2>),
    /// Logits for each sequence, `[batch, n_labels]`.
    Sequence(Tensor<2>),
    /// Logits for each token to be the first and to be the last of the answer, `[batch, seq]`.
    Span(Tensor<2>, Tensor<2>),
}

impl Head {
    /// Its linear layers.
    pub(crate) fn linears(&mut self) -> Linears<'_> {
        let transform = self.transform.as_mut();
        let parts = [
            ("transform.dense", transform.map(|part| &mut part.dense)),
            ("projection", self.projection.as_mut()),
            ("dense", self.dense.as_mut()),
            ("classifier", self.classifier.as_mut()),
        ];
        let parts = parts.into_iter();
        named(parts.filter_map(|(name, part)| Some((name, part?))))
    }

    /// Whether it scores the vocabulary, which continuing a text needs.
    pub fn scores_vocabulary(&self) -> bool {
        self.config.language().is_some()
    }

    /// Whether it scores the vocabulary and pairs of texts.
    pub(crate) fn is_for_pretraining(&self) -> bool {
        matches!(self.config, HeadConfig::Pretraining(_))
    }

    /// From the last hidden state `[batch, seq, d_model]`, the pooled one `[batch, d_model]`, the tokens
    /// `[batch, seq]` and which of them are real, all when none. `embedding` is the token embedding
    /// `[vocab_size, d_model]`.
    pub fn forward(
        &self,
        hidden: Tensor<3>,
        pooled: Option<Tensor<2>>,
        tokens: Tensor<2, Int>,
        visible: Option<Tensor<2, Bool>>,
        embedding: &Param<Tensor<2>>,
    ) -> HeadOutput {
        let pooled = || pooled.clone().expect("the configuration was validated");
        match &self.config {
            HeadConfig::None => HeadOutput::None,
            HeadConfig::Language(_) => HeadOutput::Tokens(self.logits(hidden, embedding)),
            HeadConfig::Pretraining(_) => {
                HeadOutput::Pretraining(self.logits(hidden, embedding), self.classify(pooled()))
            }
            HeadConfig::NextSentence => HeadOutput::Sequence(self.classify(pooled())),
            HeadConfig::Sequence { state, dense, .. } => {
                let state = match state {
                    SequenceState::Pooled => pooled(),
                    _ => sequence_state(hidden, tokens, visible, *state),
                };
                let state = match (&self.dense, dense) {
                    (Some(dense), Some(activation)) => {
                        let state = dropout::apply(&self.dropout, state);
                        activate(dense.forward(state), *activation)
                    }
                    _ => state,
                };
                HeadOutput::Sequence(self.classify(state))
            }
            HeadConfig::Token { .. } => HeadOutput::Tokens(self.classify(hidden)),
            HeadConfig::Span => {
                let logits = self.classify(hidden);
                let part = |index| logits.clone().narrow(2, index, 1).squeeze_dim::<2>(2);
                HeadOutput::Span(part(0), part(1))
            }
        }
    }

    /// `[.., d_model] → [.., vocab_size]`.
    pub fn logits<const D: usize>(
        &self,
        hidden: Tensor<D>,
        embedding: &Param<Tensor<2>>,
    ) -> Tensor<D> {
        let hidden = self.before_projection(hidden);
        let bias = self.bias.as_ref().map(Param::val);
        match &self.projection {
            Some(projection) => projection.forward_with(hidden, bias),
            None => linear(hidden, embedding.val().transpose(), bias),
        }
    }

    /// The same of rows `[rows, d_model]`, not computed yet.
    pub fn scores(&self, hidden: Tensor<2>, embedding: &Param<Tensor<2>>) -> VocabularyScores {
        let weight = match &self.projection {
            Some(Linear { lora: Some(_), .. }) => {
                return VocabularyScores::Logits(self.logits(hidden, embedding));
            }
            Some(projection) => projection.weight.val(),
            None => embedding.val().transpose(),
        };
        VocabularyScores::Projection {
            hidden: self.before_projection(hidden),
            weight,
            bias: self.bias.as_ref().map(Param::val),
        }
    }

    fn before_projection<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        let hidden = match &self.transform {
            Some(Transform {
                dense,
                norm,
                activation,
            }) => norm.forward(activate(dense.forward(hidden), *activation)),
            None => hidden,
        };
        let scale = self.config.language().map_or(1.0, |config| config.scale);
        if scale == 1.0 { hidden } else { hidden * scale }
    }

    /// Logits over its labels, `[.., d_model] → [.., n_labels]`.
    pub(crate) fn classify<const D: usize>(&self, state: Tensor<D>) -> Tensor<D> {
        match &self.classifier {
            Some(classifier) => classifier.forward(dropout::apply(&self.dropout, state)),
            None => state,
        }
    }
}

/// `[batch, seq, d_model] → [batch, d_model]`.
fn sequence_state(
    hidden: Tensor<3>,
    tokens: Tensor<2, Int>,
    visible: Option<Tensor<2, Bool>>,
    state: SequenceState,
) -> Tensor<2> {
    let [batch, seq, d_model] = hidden.dims();
    let device = hidden.device();
    let last_where = |wanted: Tensor<2, Bool>| {
        let indices = Tensor::<1, Int>::arange(0..seq as i64, &device);
        let indices = indices.reshape([1, seq]).expand([batch, seq]);
        (indices * wanted.int()).max_dim(1)
    };
    let index = match state {
        SequenceState::Pooled | SequenceState::First => Tensor::zeros([batch, 1], &device),
        SequenceState::Last { padding_id: None } => match visible {
            Some(visible) => last_where(visible),
            None => Tensor::<2, Int>::zeros([batch, 1], &device) + (seq as i64 - 1),
        },
        SequenceState::Last {
            padding_id: Some(id),
        } => last_where(tokens.not_equal_elem(id as i64)),
        SequenceState::LastOccurrence { id } => last_where(tokens.equal_elem(id as i64)),
    };
    let index = index.reshape([batch, 1, 1]).expand([batch, 1, d_model]);
    hidden.gather(1, index).squeeze_dim(1)
}
