//! The families, one file each: a configuration with the fields of its `config.json`, a table of
//! parameter names, and the sizes that were published.

pub mod bert;
pub mod bloom;
pub mod esm;
pub mod gpt2;
pub mod gpt3;
pub mod gpt_neo;
pub mod gpt_neox;
pub mod lamda;
pub mod llama;
pub mod megatron;
mod rope;
pub mod t5;
pub mod wudao;

use burn_zoo_nn::{
    ConfigError, HeadConfig,
    head::{LanguageHeadConfig, Projection, SequenceState},
};

use crate::{
    family::{Common, Family, Task},
    names::Names,
};

/// The zoo's families.
pub(crate) fn all() -> Vec<Family> {
    vec![
        Family::of::<gpt2::Gpt2Config>(),
        Family::of::<gpt3::Gpt3Config>(),
        Family::of::<bert::BertConfig>(),
        Family::of::<bert::RobertaConfig>(),
        Family::of::<bert::XlmRobertaConfig>(),
        Family::of::<megatron::MegatronBertConfig>(),
        Family::of::<megatron::MtNlgConfig>(),
        Family::of::<bloom::BloomConfig>(),
        Family::of::<lamda::LamdaConfig>(),
        Family::of::<wudao::WudaoConfig>(),
        Family::of::<esm::EsmConfig>(),
        Family::of::<t5::T5Config>(),
        Family::of::<gpt_neo::GptNeoConfig>(),
        Family::of::<gpt_neox::GptNeoxConfig>(),
        Family::of::<llama::LlamaConfig>(),
        Family::of::<llama::MistralConfig>(),
        Family::of::<llama::Qwen2Config>(),
        Family::of::<llama::MixtralConfig>(),
    ]
}

/// Refuses a head that a family does not have.
fn no_such_head(family: &str, task: Task) -> ConfigError {
    ConfigError::new(
        "architectures",
        format!("{family} has no {task:?} head; use another class"),
    )
}

/// Refuses sizes that do not divide, and gives the width of a head.
fn head_dim(d_model: (&str, usize), n_heads: (&str, usize)) -> Result<usize, ConfigError> {
    if n_heads.1 == 0 || !d_model.1.is_multiple_of(n_heads.1) {
        let problem = format!(
            "must be a multiple of {} ({}), got {}",
            n_heads.0, n_heads.1, d_model.1
        );
        return Err(ConfigError::new(d_model.0, problem));
    }
    Ok(d_model.1 / n_heads.1)
}

fn projection(is_tied: bool) -> Projection {
    match is_tied {
        true => Projection::Tied,
        false => Projection::Untied,
    }
}

/// The heads of decoders: the next token, the last token's state for a sequence, a label for each
/// token, a span. `dropout` is what is set to zero before labels of tokens where `classifier_dropout` does not say.
fn decoder_head(
    family: &str,
    task: Task,
    is_tied: bool,
    common: &Common,
    dropout: f64,
) -> Result<HeadConfig, ConfigError> {
    Ok(match task {
        Task::Base => HeadConfig::None,
        Task::Language => HeadConfig::Language(LanguageHeadConfig {
            projection: projection(is_tied),
            bias: false,
            transform: None,
            scale: 1.0,
        }),
        Task::Sequence => HeadConfig::Sequence {
            n_labels: common.n_labels(),
            state: SequenceState::Last {
                padding_id: common.padding_id(),
            },
            dense: None,
            bias: false,
            dropout: 0.0,
        },
        Task::Token => HeadConfig::Token {
            n_labels: common.n_labels(),
            dropout: common.classifier_dropout.unwrap_or(dropout),
        },
        Task::Span => HeadConfig::Span,
        _ => return Err(no_such_head(family, task)),
    })
}

/// The names of those heads. `token` is what the family calls its token classifier.
fn decoder_head_names(names: Names, task: Task, is_tied: bool, token: &str) -> Names {
    let names = match task {
        Task::Base => names.without_prefix(),
        _ => names,
    };
    // Checkpoints with another head are read without it.
    let names = ["lm_head.*", "score.*", "classifier.*", "qa_outputs.*"]
        .into_iter()
        .fold(names, Names::ignore);
    match task {
        Task::Sequence => names.head_linear("head.classifier", "score"),
        Task::Token => names.head_linear("head.classifier", token),
        Task::Span => names.head_linear("head.classifier", "qa_outputs"),
        _ if is_tied => names.alias("embedding.token", "lm_head.weight"),
        _ => names.head_linear("head.projection", "lm_head"),
    }
}
