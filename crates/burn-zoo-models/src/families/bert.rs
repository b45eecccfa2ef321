//! BERT (Devlin et al. 2019, arXiv:1810.04805) and RoBERTa (Liu et al. 2019, arXiv:1907.11692): a
//! post-norm encoder with segments, trained on masked tokens.

use burn_zoo_nn::{
    ConfigError, HeadConfig, TransformerConfig,
    attention::{AttentionConfig, AttentionPattern},
    block::{BlockConfig, NormPlacement},
    embedding::PositionConfig,
    feed_forward::{Activation, FeedForwardConfig},
    head::{LanguageHeadConfig, SequenceState, TransformConfig},
    norm::NormConfig,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{head_dim, no_such_head, projection};
use crate::{
    family::{Common, FamilyConfig, Preset, Task, activation},
    names::Names,
};

/// The fields that BERT, RoBERTa and Megatron-BERT share.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct EncoderFields {
    /// How many different tokens.
    pub vocab_size: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// How many blocks.
    pub num_hidden_layers: usize,
    /// How many heads.
    pub num_attention_heads: usize,
    /// The inner width of the feed-forward networks.
    pub intermediate_size: usize,
    /// The non-linearity.
    pub hidden_act: String,
    /// The share of embedding and sub-layer values set to zero in training.
    pub hidden_dropout_prob: f64,
    /// The share of attention probabilities set to zero in training.
    pub attention_probs_dropout_prob: f64,
    /// The longest sequence, with RoBERTa's offset.
    pub max_position_embeddings: usize,
    /// How many segments are told apart.
    pub type_vocab_size: usize,
    /// The standard deviation of initial weights.
    pub initializer_range: f64,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// How position enters; only `absolute` is there.
    pub position_embedding_type: String,
    /// Whether the model generates, which only encoders that became decoders do.
    pub is_decoder: bool,
    /// Whether the masked language model's matrix is the token embedding.
    pub tie_word_embeddings: bool,
}

impl Default for EncoderFields {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".to_owned(),
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            position_embedding_type: "absolute".to_owned(),
            is_decoder: false,
            tie_word_embeddings: true,
        }
    }
}

impl EncoderFields {
    pub(super) fn size(layers: usize, width: usize, heads: usize) -> Self {
        Self {
            num_hidden_layers: layers,
            hidden_size: width,
            num_attention_heads: heads,
            intermediate_size: 4 * width,
            ..Self::default()
        }
    }

    pub(super) fn norm(&self) -> NormConfig {
        NormConfig::Layer {
            epsilon: self.layer_norm_eps,
            bias: true,
        }
    }

    pub(super) fn activation(&self) -> Result<Activation, ConfigError> {
        activation("hidden_act", &self.hidden_act)
    }

    /// An encoder with a placement of its norms, an embedding without norm, and no head.
    pub(super) fn encoder(
        &self,
        placement: NormPlacement,
    ) -> Result<TransformerConfig, ConfigError> {
        let d_model = self.hidden_size;
        head_dim(
            ("hidden_size", d_model),
            ("num_attention_heads", self.num_attention_heads),
        )?;
        if self.position_embedding_type != "absolute" {
            let problem = format!("must be absolute, got {}", self.position_embedding_type);
            return Err(ConfigError::new("position_embedding_type", problem));
        }
        if self.is_decoder {
            let problem = "is not supported: this family reads both ways here";
            return Err(ConfigError::new("is_decoder", problem));
        }
        let attention = AttentionConfig::multi_head(d_model, self.num_attention_heads)
            .with_pattern(AttentionPattern::Bidirectional);
        let feed_forward = FeedForwardConfig::new(d_model, self.intermediate_size)
            .with_activation(self.activation()?);
        let block = BlockConfig::new(attention, feed_forward)
            .with_norm(self.norm())
            .with_placement(placement);
        let blocks = vec![block; self.num_hidden_layers];
        let mut config = TransformerConfig::new(
            self.vocab_size,
            d_model,
            self.max_position_embeddings,
            blocks,
        )
        .with_uniform_init(self.initializer_range)
        .with_dropout(self.hidden_dropout_prob)
        .with_attention_dropout(self.attention_probs_dropout_prob);
        config.embedding.n_segments = self.type_vocab_size;
        Ok(config)
    }

    /// What is set to zero before a classifier.
    fn classifier_dropout(&self, common: &Common) -> f64 {
        common
            .classifier_dropout
            .unwrap_or(self.hidden_dropout_prob)
    }

    pub(super) fn language_head(&self) -> Result<LanguageHeadConfig, ConfigError> {
        Ok(LanguageHeadConfig {
            projection: projection(self.tie_word_embeddings),
            bias: true,
            transform: Some(TransformConfig {
                activation: self.activation()?,
                norm: self.norm(),
            }),
            scale: 1.0,
        })
    }

    /// BERT's heads, and whether they read the pooler.
    pub(super) fn head(
        &self,
        family: &str,
        task: Task,
        common: &Common,
    ) -> Result<(HeadConfig, bool), ConfigError> {
        Ok(match task {
            Task::Base => (HeadConfig::None, true),
            Task::MaskedLanguage => (HeadConfig::Language(self.language_head()?), false),
            Task::Pretraining => (HeadConfig::Pretraining(self.language_head()?), true),
            Task::NextSentence => (HeadConfig::NextSentence, true),
            Task::Sequence => {
                let head = HeadConfig::Sequence {
                    n_labels: common.n_labels(),
                    state: SequenceState::Pooled,
                    dense: None,
                    bias: true,
                    dropout: self.classifier_dropout(common),
                };
                (head, true)
            }
            Task::Token => {
                let head = HeadConfig::Token {
                    n_labels: common.n_labels(),
                    dropout: self.classifier_dropout(common),
                };
                (head, false)
            }
            Task::Span => (HeadConfig::Span, false),
            Task::Language | Task::Encoder => return Err(no_such_head(family, task)),
        })
    }
}

/// The names of BERT's heads.
pub(super) fn head_names(names: Names, task: Task, fields: &EncoderFields) -> Names {
    let names = match task {
        Task::Base => names.without_prefix(),
        _ => names,
    };
    let language = |names: Names| {
        let names = names
            .head_linear("head.transform.dense", "cls.predictions.transform.dense")
            .head_norm("head.transform.norm", "cls.predictions.transform.LayerNorm");
        decoder_names(names, "cls.predictions", fields)
    };
    let next_sentence = |names: Names| names.head_linear("head.classifier", "cls.seq_relationship");
    match task {
        Task::MaskedLanguage => language(names),
        Task::Pretraining => next_sentence(language(names)),
        Task::NextSentence => next_sentence(names),
        Task::Sequence | Task::Token => names.head_linear("head.classifier", "classifier"),
        Task::Span => names.head_linear("head.classifier", "qa_outputs"),
        Task::Base | Task::Language | Task::Encoder => names,
    }
}

/// The projection to the vocabulary and its bias. A tied one stores the bias once, beside the projection;
/// an untied one stores another that it never adds, and adds the projection's own.
fn decoder_names(names: Names, head: &str, fields: &EncoderFields) -> Names {
    let (beside, own) = (format!("{head}.bias"), format!("{head}.decoder.bias"));
    let projection = format!("{head}.decoder");
    match fields.tie_word_embeddings {
        true => names
            .head("head.bias", &beside)
            .alias("head.bias", &own)
            .alias("embedding.token", &format!("{projection}.weight")),
        false => names
            .head_linear("head.projection", &projection)
            .head("head.bias", &own)
            .head_constant(&beside, vec![0.0; fields.vocab_size]),
    }
}

/// The names that every encoder of BERT's kind shares, whatever its norms are called.
pub(super) fn encoder_names(prefix: &str) -> Names {
    Names::new()
        .base_prefix(prefix)
        .base("embedding.token", "embeddings.word_embeddings.weight")
        .base(
            "embedding.position",
            "embeddings.position_embeddings.weight",
        )
        .base(
            "embedding.segment",
            "embeddings.token_type_embeddings.weight",
        )
        .linear(
            "stack.blocks.#.attention.query",
            "encoder.layer.#.attention.self.query",
        )
        .linear(
            "stack.blocks.#.attention.key",
            "encoder.layer.#.attention.self.key",
        )
        .linear(
            "stack.blocks.#.attention.value",
            "encoder.layer.#.attention.self.value",
        )
        .linear(
            "stack.blocks.#.attention.output",
            "encoder.layer.#.attention.output.dense",
        )
        .linear(
            "stack.blocks.#.feed_forward.up",
            "encoder.layer.#.intermediate.dense",
        )
        .linear(
            "stack.blocks.#.feed_forward.down",
            "encoder.layer.#.output.dense",
        )
        .linear("pooler", "pooler.dense")
        .ignore("embeddings.position_ids")
        .ignore("embeddings.token_type_ids")
        // Checkpoints of pre-training carry these into tasks that have no use for them.
        .ignore("pooler.*")
        .ignore("cls.*")
        .ignore("lm_head.*")
        .ignore("classifier.*")
        .ignore("qa_outputs.*")
}

fn post_norm_names(prefix: &str) -> Names {
    encoder_names(prefix)
        .norm("embedding.norm", "embeddings.LayerNorm")
        .norm(
            "stack.blocks.#.attention_norm",
            "encoder.layer.#.attention.output.LayerNorm",
        )
        .norm(
            "stack.blocks.#.feed_forward_norm",
            "encoder.layer.#.output.LayerNorm",
        )
}

/// The fields of a BERT's `config.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BertConfig {
    /// Its sizes.
    #[serde(flatten)]
    pub fields: EncoderFields,
}

impl FamilyConfig for BertConfig {
    const MODEL_TYPE: &'static str = "bert";
    const NAME: &'static str = "BERT";
    const CLASS: &'static str = "BertForPreTraining";

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let fields = &self.fields;
        let mut config = fields.encoder(NormPlacement::Post)?;
        config.embedding.norm = Some(fields.norm());
        (config.head, config.pooler) = fields.head(Self::NAME, task, common)?;
        let names = head_names(post_norm_names("bert."), task, fields);
        Ok((config, names))
    }

    /// The two of the paper, and the small ones of Turc et al. 2019 (arXiv:1908.08962). Published
    /// figures are of the encoder; counts have the heads of pre-training, too.
    fn presets() -> Vec<Preset> {
        let size = |layers, width, heads| Self {
            fields: EncoderFields::size(layers, width, heads),
        };
        vec![
            Preset::new("bert-tiny", 4_400_000, &size(2, 128, 2)),
            Preset::new("bert-mini", 11_300_000, &size(4, 256, 4)),
            Preset::new("bert-small", 29_100_000, &size(4, 512, 8)),
            Preset::new("bert-medium", 41_700_000, &size(8, 512, 8)),
            Preset::new("bert-base", 110_000_000, &size(12, 768, 12)),
            Preset::new("bert-large", 340_000_000, &size(24, 1024, 16))
                .note("no set of heads gives 340M: the paper rounds 335M of encoder and pooler up"),
        ]
    }
}

/// The fields of a RoBERTa's `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct RobertaConfig {
    /// Its sizes.
    #[serde(flatten)]
    pub fields: EncoderFields,
    /// The id of the padding token, which positions are counted from.
    pub pad_token_id: usize,
}

impl Default for RobertaConfig {
    fn default() -> Self {
        Self {
            fields: EncoderFields {
                vocab_size: 50265,
                max_position_embeddings: 514,
                type_vocab_size: 1,
                layer_norm_eps: 1e-5,
                ..EncoderFields::default()
            },
            pad_token_id: 1,
        }
    }
}

impl FamilyConfig for RobertaConfig {
    const MODEL_TYPE: &'static str = "roberta";
    const NAME: &'static str = "RoBERTa";
    const CLASS: &'static str = "RobertaForMaskedLM";

    /// As the reference's configuration class has them.
    fn left_out() -> Value {
        json!({ "vocab_size": 50265 })
    }

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let fields = &self.fields;
        let mut config = fields.encoder(NormPlacement::Post)?;
        config.embedding.norm = Some(fields.norm());
        let padding_id = self.pad_token_id;
        config.embedding.position = PositionConfig::LearnedSkippingPadding { padding_id };
        config.embedding.context_length =
            offset_context(fields.max_position_embeddings, padding_id)?;
        config.pooler = task == Task::Base;
        config.head = match task {
            Task::Base => HeadConfig::None,
            Task::MaskedLanguage => HeadConfig::Language(LanguageHeadConfig {
                transform: Some(TransformConfig {
                    activation: Activation::Gelu,
                    norm: fields.norm(),
                }),
                ..fields.language_head()?
            }),
            Task::Sequence => HeadConfig::Sequence {
                n_labels: common.n_labels(),
                state: SequenceState::First,
                dense: Some(Activation::Tanh),
                bias: true,
                dropout: fields.classifier_dropout(common),
            },
            Task::Token => HeadConfig::Token {
                n_labels: common.n_labels(),
                dropout: fields.classifier_dropout(common),
            },
            Task::Span => HeadConfig::Span,
            _ => return Err(no_such_head(Self::NAME, task)),
        };
        let names = post_norm_names("roberta.");
        let names = roberta_head_names(names, task);
        let names = match task {
            Task::MaskedLanguage => decoder_names(names, "lm_head", fields),
            _ => names,
        };
        Ok((config, names))
    }

    fn presets() -> Vec<Preset> {
        let size = |layers, width, heads| {
            let default = Self::default();
            Self {
                fields: EncoderFields {
                    num_hidden_layers: layers,
                    hidden_size: width,
                    num_attention_heads: heads,
                    intermediate_size: 4 * width,
                    ..default.fields
                },
                ..default
            }
        };
        vec![
            Preset::new("roberta-base", 125_000_000, &size(12, 768, 12)),
            Preset::new("roberta-large", 355_000_000, &size(24, 1024, 16)),
        ]
    }
}

/// The context of a position table that counts from after the padding token's id.
pub(super) fn offset_context(rows: usize, padding_id: usize) -> Result<usize, ConfigError> {
    rows.checked_sub(padding_id + 1).ok_or_else(|| {
        let problem = format!(
            "must exceed pad_token_id + 1 ({}), got {rows}",
            padding_id + 1
        );
        ConfigError::new("max_position_embeddings", problem)
    })
}

/// The names of RoBERTa's heads, which ESM shares but for the projection to the vocabulary.
pub(super) fn roberta_head_names(names: Names, task: Task) -> Names {
    let names = match task {
        Task::Base => names.without_prefix(),
        _ => names,
    };
    match task {
        Task::MaskedLanguage => names
            .head_linear("head.transform.dense", "lm_head.dense")
            .head_norm("head.transform.norm", "lm_head.layer_norm"),
        Task::Sequence => names
            .head_linear("head.dense", "classifier.dense")
            .head_linear("head.classifier", "classifier.out_proj"),
        Task::Token => names.head_linear("head.classifier", "classifier"),
        Task::Span => names.head_linear("head.classifier", "qa_outputs"),
        _ => names,
    }
}

/// The fields of an XLM-RoBERTa's `config.json`: RoBERTa with another vocabulary (Conneau et al. 2020,
/// arXiv:1911.02116).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct XlmRobertaConfig(RobertaConfig);

impl FamilyConfig for XlmRobertaConfig {
    const MODEL_TYPE: &'static str = "xlm-roberta";
    const NAME: &'static str = "XLM-RoBERTa";
    const CLASS: &'static str = "XLMRobertaForMaskedLM";

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        self.0.build(task, common)
    }
}
