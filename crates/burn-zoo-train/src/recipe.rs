//! A training run as data: the TOML file that a user writes, checked key by key.

use std::path::{Path, PathBuf};

pub use burn_zoo_data::recipe::{Difference, RecipeError};
use burn_zoo_data::{
    labelled::{AnswerColumns, ClassColumns, Labels, NumberColumns, TableFormat, TagColumns},
    recipe,
    sources::{BadRows, Format},
    tokenizer::TokenizerConfig,
    windows::Order,
};
use burn_zoo_models::{
    directory,
    family::{self, Architecture},
    gpt::GptConfig,
};
use burn_zoo_nn::{ConfigError, linear::LoraConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    average::AverageConfig, metrics::Quantity, objective::Recompute, optimizer::OptimizerConfig,
    precision::Precision, schedule::ScheduleConfig,
};

/// What may differ when a run is resumed.
const MAY_CHANGE: [&str; 10] = [
    "data.corpus",
    "loop.epochs",
    "loop.iterations",
    "loop.recompute",
    "loop.eval_interval",
    "loop.checkpoint_interval",
    "loop.sample_interval",
    "loop.log_interval",
    "loop.keep_checkpoints",
    "loop.early_stopping",
];

/// Everything that decides what a run computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Decides initial parameters, the order of the data, and dropout.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// What is learned.
    pub objective: Objective,
    /// How text becomes tokens. Without it, by the tokenizer of a packed corpus, or of the directory that the model
    /// is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerConfig>,
    /// What is trained.
    pub model: ModelConfig,
    /// Which of its parameters learn.
    #[serde(default, skip_serializing_if = "Adaptation::is_full")]
    pub adaptation: Adaptation,
    /// What it is trained on.
    #[serde(default)]
    pub data: DataConfig,
    /// How parameters follow gradients.
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes.
    pub schedule: ScheduleConfig,
    /// How long, and what happens on the way.
    #[serde(rename = "loop")]
    pub training: LoopConfig,
}

fn default_seed() -> u64 {
    1337
}

/// What a model learns to do. In a recipe the name alone takes every default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Objective {
    /// Predict each token from those before it.
    CausalLm {
        /// What tokens see of other documents.
        #[serde(default)]
        documents: Documents,
    },
    /// Predict each token from those before it and a prefix, of random length, that all see.
    PrefixLm {},
    /// Predict masked tokens from all others.
    MaskedLm {
        /// The share of tokens that are asked for.
        #[serde(default = "default_probability")]
        probability: f64,
        /// Whether all tokens of a word are masked together.
        #[serde(default)]
        whole_words: bool,
        /// What tokens see of other documents.
        #[serde(default)]
        documents: Documents,
    },
    /// Predict masked tokens of two texts, and whether the second follows the first (BERT).
    Pretraining {
        /// The share of tokens that are asked for.
        #[serde(default = "default_probability")]
        probability: f64,
        /// Whether all tokens of a word are masked together.
        #[serde(default)]
        whole_words: bool,
    },
    /// Write the spans that a text lacks after it (GLM).
    BlankInfilling {
        /// The share of tokens in spans.
        #[serde(default = "default_probability")]
        density: f64,
        /// How long spans are.
        #[serde(default = "default_span_length")]
        mean_span_length: f64,
        /// The share of texts that lack their end, half of them or more, instead.
        #[serde(default)]
        long_share: f64,
    },
    /// Write the spans that an encoder's text lacks (T5).
    SpanCorruption {
        /// The share of tokens in spans.
        #[serde(default = "default_probability")]
        noise_density: f64,
        /// How long spans are.
        #[serde(default = "default_span_length")]
        mean_span_length: f64,
    },
    /// Say which class a text, or a pair of texts, is of.
    Classification(ClassColumns),
    /// Say a number for a text, or a pair of texts.
    Regression(NumberColumns),
    /// Say which class each word is of.
    TokenClassification(TagColumns),
    /// Say where in a text the answer to a question is.
    SpanExtraction(AnswerColumns),
}

/// What tokens see of the other documents in their window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Documents {
    /// All that their attention reaches, as if all were one text.
    #[default]
    Attend,
    /// Nothing, and positions begin anew in each. Blank lines end the documents of a plain text.
    Separate,
}

fn default_probability() -> f64 {
    0.15
}

fn default_span_length() -> f64 {
    3.0
}

impl Objective {
    /// Whether what is learned continues a text.
    pub fn continues_text(&self) -> bool {
        matches!(self, Self::CausalLm { .. } | Self::PrefixLm {})
    }

    /// What says more to people than the loss.
    pub fn quality(&self) -> Quantity {
        match self {
            Self::Classification(_) | Self::TokenClassification(_) | Self::SpanExtraction(_) => {
                Quantity::Accuracy
            }
            Self::Regression(_) => Quantity::RootMeanSquaredError,
            _ => Quantity::Perplexity,
        }
    }

    /// What it reads of a table, where it learns labels.
    pub fn labels(&self) -> Option<Labels> {
        Some(match self {
            Self::Classification(columns) => Labels::Class(columns.clone()),
            Self::Regression(columns) => Labels::Number(columns.clone()),
            Self::TokenClassification(columns) => Labels::Tags(columns.clone()),
            Self::SpanExtraction(columns) => Labels::Answer(columns.clone()),
            _ => return None,
        })
    }

    fn validate(&self) -> Result<(), RecipeError> {
        let within = |key: &str, value: f64, is_within: bool, range: &str| match is_within {
            true => Ok(()),
            false => {
                let problem = format!("must be {range}, got {value}");
                Err(RecipeError::key(format!("objective.{key}"), problem))
            }
        };
        let share = |key: &str, value: f64| {
            within(
                key,
                value,
                value > 0.0 && value < 1.0,
                "above 0 and below 1",
            )
        };
        // Poisson's distribution is drawn from by products of as many numbers.
        let length = |key: &str, value: f64| {
            within(
                key,
                value,
                (1.0..=100.0).contains(&value),
                "at least 1 and at most 100",
            )
        };
        match *self {
            Self::CausalLm { .. } | Self::PrefixLm {} => Ok(()),
            Self::Classification(_)
            | Self::Regression(_)
            | Self::TokenClassification(_)
            | Self::SpanExtraction(_) => Ok(()),
            Self::MaskedLm { probability, .. } => share("masked_lm.probability", probability),
            Self::Pretraining { probability, .. } => share("pretraining.probability", probability),
            Self::BlankInfilling {
                density,
                mean_span_length,
                long_share,
            } => {
                let is_sparse = density > 0.0 && density <= 0.5;
                within(
                    "blank_infilling.density",
                    density,
                    is_sparse,
                    "above 0 and at most 0.5",
                )?;
                length("blank_infilling.mean_span_length", mean_span_length)?;
                let is_share = (0.0..=1.0).contains(&long_share);
                within(
                    "blank_infilling.long_share",
                    long_share,
                    is_share,
                    "at least 0 and at most 1",
                )
            }
            Self::SpanCorruption {
                noise_density,
                mean_span_length,
            } => {
                share("span_corruption.noise_density", noise_density)?;
                length("span_corruption.mean_span_length", mean_span_length)
            }
        }
    }
}

/// A family of models and its sizes. The vocabulary comes from the tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelConfig {
    /// See [`GptConfig`].
    Gpt(GptConfig),
    /// What a `config.json` would hold: `model_type`, and the fields of that
    /// [family](burn_zoo_models::families).
    Config(Map<String, Value>),
    /// A published size, such as `bert-base`, with new parameters.
    Preset(String),
    /// A model directory, whose parameters are learned on from.
    Path(PathBuf),
}

/// Which parameters of a model learn.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Adaptation {
    /// All.
    #[default]
    Full,
    /// The head alone.
    Head,
    /// All but those of these paths. `*` stands for anything, and a pattern may start at any component of a path:
    /// `embedding.*`, `stack.blocks.0.*`.
    Frozen(Vec<String>),
    /// Low-rank adapters beside matrices, and a head that is new (Hu et al. 2021, arXiv:2106.09685).
    Lora(LoraAdaptation),
}

impl Adaptation {
    pub(crate) fn is_full(&self) -> bool {
        *self == Self::Full
    }
}

/// Low-rank adapters, and where they go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraAdaptation {
    /// The rank of what is learned.
    pub rank: usize,
    /// What is learned is scaled by `alpha / rank`.
    pub alpha: f64,
    /// The share of the adapters' inputs set to zero in training.
    #[serde(default)]
    pub dropout: f64,
    /// The linear layers that get one, by the end of their path in our names or the checkpoint's; `*` stands for any
    /// component: `query`, `attention.*`, `q_proj`.
    pub targets: Vec<String>,
}

impl LoraAdaptation {
    /// The sizes alone.
    pub fn config(&self) -> LoraConfig {
        LoraConfig {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
        }
    }
}

impl ModelConfig {
    /// The directory whose parameters are learned on from, if there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            _ => None,
        }
    }

    /// The model for a vocabulary.
    ///
    /// # Errors
    ///
    /// When sizes do not fit together or are not the family's, with the field's name.
    pub fn architecture(&self, vocab_size: usize) -> Result<Architecture, ConfigError> {
        match self {
            Self::Gpt(config) => config
                .transformer(vocab_size)
                .map(Architecture::from)
                .map_err(|error| error.within("gpt")),
            Self::Preset(name) => {
                let (_, preset) = family::find_preset(name).ok_or_else(|| {
                    let problem = format!("there is no preset `{name}`; see `burn-zoo models`");
                    ConfigError::new("preset", problem)
                })?;
                let mut json = preset.json;
                json.insert("vocab_size".to_owned(), vocab_size.into());
                Architecture::from_json(json).map_err(|error| error.within("preset"))
            }
            Self::Path(path) => {
                let architecture = directory::load_config(path)
                    .map_err(|error| ConfigError::new("path", error.to_string()))?;
                let found = architecture.transformer.vocab_size();
                if found < vocab_size {
                    let problem = format!(
                        "has {found} tokens, but the tokenizer {vocab_size}: use the model's own \
                         tokenizer"
                    );
                    return Err(ConfigError::new("path", problem));
                }
                Ok(architecture)
            }
            Self::Config(fields) => {
                let mut json = fields.clone();
                json.entry("vocab_size")
                    .or_insert_with(|| vocab_size.into());
                let architecture =
                    Architecture::for_training(json).map_err(|error| error.within("config"))?;
                let found = architecture.transformer.vocab_size();
                if found < vocab_size {
                    let problem = format!(
                        "must be at least the tokenizer's {vocab_size}, got {found}; leave it out \
                         to have the tokenizer decide"
                    );
                    return Err(ConfigError::new("config.vocab_size", problem));
                }
                Ok(architecture)
            }
        }
    }
}

/// How a corpus is divided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The file or folder of text, from the folder that the command is run in. Without one, the
    /// command learns from the zoo's own source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<PathBuf>,
    /// The share at the end of the corpus that is held out.
    #[serde(default = "default_valid_fraction")]
    pub valid_fraction: f64,
    /// Which passages of the corpus a training step sees.
    #[serde(default)]
    pub order: Order,
    /// Whether the first row of a CSV or TSV names its columns. Otherwise they are `0`, `1`, ….
    #[serde(default = "yes")]
    pub header: bool,
    /// What tables are, when their names do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// What to do with a row that cannot be read or has an unknown label, and with text that is not UTF-8.
    #[serde(default)]
    pub bad_rows: BadRows,
    /// How many rows of each class to learn from, chosen by the seed. Without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// The most tokens of a labelled text. Without it, as many as the model reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
}

fn yes() -> bool {
    true
}

impl DataConfig {
    /// How tables are read.
    pub fn table_format(&self) -> TableFormat {
        TableFormat {
            header: self.header,
            format: self.format,
            bad_rows: self.bad_rows,
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            corpus: None,
            valid_fraction: default_valid_fraction(),
            order: Order::default(),
            header: true,
            format: None,
            bad_rows: BadRows::default(),
            shots: None,
            max_length: None,
        }
    }
}

fn default_valid_fraction() -> f64 {
    0.1
}

/// How long to train, and what happens on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoopConfig {
    /// Optimiser steps in all. Left out where `epochs` says how long.
    #[serde(default)]
    pub iterations: usize,
    /// Passes over labelled examples, instead of `iterations`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Windows in a batch.
    pub batch_size: usize,
    /// Batches whose gradients make one optimiser step.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// Copies of the model that take parts of a batch, each with its share of the processor's cores: faster for small
    /// models, with more memory. On flex, and on LibTorch's processor in a program that has flex too, in 32 bits; elsewhere it
    /// changes nothing.
    #[serde(default = "one")]
    pub replicas: usize,
    /// How much of each target's probability is spread over all classes in training.
    #[serde(default)]
    pub label_smoothing: f32,
    /// What a step computes in.
    #[serde(default)]
    pub precision: Precision,
    /// What the backward pass computes again instead of keeping it from the forward pass.
    #[serde(default)]
    pub recompute: Recompute,
    /// The mean of weights over the training, which is then what is evaluated and saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<AverageConfig>,
    /// Steps between evaluations of the whole validation split, each followed by a checkpoint.
    #[serde(default = "default_eval_interval")]
    pub eval_interval: usize,
    /// Steps between checkpoints besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_interval: Option<usize>,
    /// Steps between texts that the model writes on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_interval: Option<usize>,
    /// Steps between lines of progress where there is no terminal.
    #[serde(default = "default_log_interval")]
    pub log_interval: usize,
    /// How many of the newest checkpoints to keep. The best one is kept besides.
    #[serde(default = "default_keep_checkpoints")]
    pub keep_checkpoints: usize,
    /// When to stop before the last step. The model is then the best one evaluated, where there are
    /// checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
}

impl LoopConfig {
    /// So many steps on batches of so many windows, with the usual intervals.
    pub fn new(iterations: usize, batch_size: usize) -> Self {
        Self {
            iterations,
            epochs: None,
            batch_size,
            accumulation: one(),
            replicas: one(),
            label_smoothing: 0.0,
            precision: Precision::F32,
            recompute: Recompute::Nothing,
            ema: None,
            eval_interval: default_eval_interval(),
            checkpoint_interval: None,
            sample_interval: None,
            log_interval: default_log_interval(),
            keep_checkpoints: default_keep_checkpoints(),
            early_stopping: None,
        }
    }
}

/// Stops when the validation loss no longer falls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Evaluations without a new best before stopping.
    pub patience: usize,
}

fn one() -> usize {
    1
}

fn default_eval_interval() -> usize {
    250
}

fn default_log_interval() -> usize {
    10
}

fn default_keep_checkpoints() -> usize {
    2
}

impl Recipe {
    /// Reads a recipe and applies overrides such as `("optimizer.learning_rate", "3e-4")`.
    pub fn read(path: &Path, overrides: &[(String, String)]) -> Result<Self, RecipeError> {
        Self::parse(&recipe::read(path)?, overrides)
    }

    /// Parses a recipe and applies overrides.
    pub fn parse(text: &str, overrides: &[(String, String)]) -> Result<Self, RecipeError> {
        let recipe: Self = recipe::parse(text, overrides, spell_out)?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// The recipe as TOML, every default written out.
    ///
    /// # Errors
    ///
    /// When TOML cannot hold a value, such as a path that is not UTF-8 or a seed above 2⁶³ − 1.
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        toml::to_string(self).map_err(|error| RecipeError::Unwritable(error.to_string()))
    }

    /// Takes another corpus, if there is one, and makes the paths of corpus and model absolute, so that the run can be
    /// resumed from another folder.
    ///
    /// # Errors
    ///
    /// When there is no current folder.
    pub fn locate(&mut self, corpus: Option<&Path>) -> std::io::Result<()> {
        if let Some(corpus) = corpus {
            self.data.corpus = Some(corpus.to_owned());
        }
        let model = match &mut self.model {
            ModelConfig::Path(path) => Some(path),
            _ => None,
        };
        for path in self.data.corpus.iter_mut().chain(model) {
            *path = std::path::absolute(&path)?;
        }
        Ok(())
    }

    /// Refuses to continue `self` as `other` where that would be another run. Only how long it takes, what
    /// happens on the way, and the place of the corpus may change.
    pub fn check_resumable(&self, other: &Self) -> Result<(), RecipeError> {
        let may_change = |key: &str| {
            MAY_CHANGE.iter().any(|free| {
                key.strip_prefix(free)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        let mut differences = recipe::differences(self, other)?;
        differences.retain(|difference| !may_change(&difference.key));
        match differences.is_empty() {
            true => Ok(()),
            false => Err(RecipeError::Changed(differences)),
        }
    }

    /// Refuses impossible values.
    pub fn validate(&self) -> Result<(), RecipeError> {
        self.objective.validate()?;
        let valid_fraction = self.data.valid_fraction;
        if !(valid_fraction > 0.0 && valid_fraction < 1.0) {
            let problem = format!("must be above 0 and below 1, got {valid_fraction}");
            return Err(RecipeError::key("data.valid_fraction", problem));
        }
        let is_of_windows = !matches!(self.objective, Objective::Pretraining { .. })
            && self.objective.labels().is_none();
        if self.data.order != Order::default() && !is_of_windows {
            let problem = "is for objectives that read passages of any text: leave it out";
            return Err(RecipeError::key("data.order", problem));
        }
        match (self.training.epochs, self.objective.labels()) {
            (Some(_), None) => {
                let problem = "is for labelled examples: say iterations";
                return Err(RecipeError::key("loop.epochs", problem));
            }
            (Some(_), Some(_)) if self.training.iterations > 0 => {
                let problem = "says how long, and so does loop.iterations: leave one out";
                return Err(RecipeError::key("loop.epochs", problem));
            }
            _ => {}
        }
        if let Some(TokenizerConfig::Bpe { vocab_size, .. }) = self.tokenizer
            && vocab_size < 256
        {
            let problem = format!("must be at least 256, one for each byte, got {vocab_size}");
            return Err(RecipeError::key("tokenizer.bpe.vocab_size", problem));
        }
        let loop_sizes = [
            (
                "iterations",
                self.training.epochs.unwrap_or(self.training.iterations),
            ),
            ("batch_size", self.training.batch_size),
            ("accumulation", self.training.accumulation),
            ("replicas", self.training.replicas),
            ("eval_interval", self.training.eval_interval),
            ("log_interval", self.training.log_interval),
            ("keep_checkpoints", self.training.keep_checkpoints),
        ];
        let patience = self.training.early_stopping.as_ref();
        let optional = [
            (
                "early_stopping.patience",
                patience.map(|stop| stop.patience),
            ),
            ("checkpoint_interval", self.training.checkpoint_interval),
            ("sample_interval", self.training.sample_interval),
        ];
        let optional = optional
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        for (key, value) in loop_sizes.into_iter().chain(optional) {
            if value == 0 {
                let problem = "must be at least 1, got 0";
                return Err(RecipeError::key(format!("loop.{key}"), problem));
            }
        }
        let named = |parent: &str, result: Result<(), ConfigError>| {
            result.map_err(|error| {
                let ConfigError { field, problem } = error.within(parent);
                RecipeError::Key {
                    key: field,
                    problem,
                }
            })
        };
        if let Adaptation::Lora(lora) = &self.adaptation {
            named("adaptation.lora", lora.config().validate())?;
        }
        named("optimizer", self.optimizer.validate())?;
        let ema = self.training.ema;
        named("loop.ema", ema.map_or(Ok(()), |ema| ema.validate()))?;
        named(
            "schedule",
            self.schedule.validate(self.optimizer.learning_rate),
        )?;
        // The tokenizer decides the vocabulary later; any size shows what else is wrong.
        named("model", self.model.architecture(1).map(drop))
    }
}

/// Gives an objective that is named alone a table for its values.
fn spell_out(recipe: &mut toml::Value) {
    if let Some(objective @ toml::Value::String(_)) = recipe.get_mut("objective")
        && let Some(name) = objective.as_str()
    {
        let values = toml::Value::Table(toml::Table::new());
        *objective = toml::Value::Table([(name.to_owned(), values)].into_iter().collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
        objective = "causal_lm"
        tokenizer = "char"
        [model.gpt]
        n_layers = 2
        n_heads = 2
        d_model = 8
        context_length = 16
        [optimizer]
        learning_rate = 1e-3
        [schedule.cosine]
        warmup_iterations = 5
        min_learning_rate = 1e-4
        [loop]
        iterations = 10
        batch_size = 4
    "#;

    fn refusal(key: &str, value: &str) -> String {
        let overrides = [(key.to_owned(), value.to_owned())];
        Recipe::parse(RECIPE, &overrides).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_reads_back() {
        let recipe = Recipe::parse(RECIPE, &[]).unwrap();
        assert_eq!(
            Recipe::parse(&recipe.to_toml().unwrap(), &[]).unwrap(),
            recipe
        );
    }

    #[test]
    fn overrides_replace_values_of_any_type() {
        let overrides = [
            ("optimizer.learning_rate", "3e-4"),
            ("seed", "7"),
            ("tokenizer", "{ bpe = { vocab_size = 512 } }"),
            ("loop.early_stopping.patience", "3"),
        ];
        let overrides = overrides.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let recipe = Recipe::parse(RECIPE, &overrides).unwrap();
        assert_eq!(recipe.optimizer.learning_rate, 3e-4);
        assert_eq!(recipe.seed, 7);
        let bpe = TokenizerConfig::Bpe {
            vocab_size: 512,
            special_tokens: Vec::new(),
        };
        assert_eq!(recipe.tokenizer, Some(bpe));
        assert_eq!(
            recipe.training.early_stopping,
            Some(EarlyStopping { patience: 3 })
        );
    }

    #[test]
    fn a_refusal_names_the_full_key_and_what_would_be_right() {
        for (key, value, expected) in [
            (
                "optimizer.lr",
                "1",
                "`optimizer.lr`: unknown field `lr`, expected one of",
            ),
            (
                "loop.iterations",
                "\"many\"",
                "`loop.iterations`: invalid type",
            ),
            (
                "loop.iterations",
                "0",
                "`loop.iterations`: must be at least 1",
            ),
            (
                "model.gpt.n_heads",
                "3",
                "`model.gpt.d_model`: must be a multiple of n_heads (3)",
            ),
            (
                "model.gpt.dropout",
                "1.5",
                "`model.gpt.dropout`: must be at least 0 and less than 1",
            ),
            ("model.gtp.n_layers", "3", "`model`: wanted exactly 1"),
            ("objective", "fly", "`objective`: unknown variant `fly`"),
            (
                "optimizer.learning_rate",
                "0",
                "`optimizer.learning_rate`: must be above 0",
            ),
            (
                "schedule.cosine.min_learning_rate",
                "0.1",
                "`schedule.cosine.min_learning_rate`",
            ),
            (
                "schedule.cosine.warmup",
                "0.1",
                "`schedule.cosine.warmup`: unknown field",
            ),
            (
                "data.valid_fraction",
                "1",
                "`data.valid_fraction`: must be above 0 and below 1",
            ),
            (
                "tokenizer",
                "{ bpe = { vocab_size = 3 } }",
                "`tokenizer.bpe.vocab_size`: must be",
            ),
        ] {
            let refusal = refusal(key, value);
            assert!(
                refusal.contains(expected),
                "{key} = {value} gives: {refusal}"
            );
        }
    }

    #[test]
    fn a_resumed_recipe_shows_all_that_changed() {
        let recipe = Recipe::parse(RECIPE, &[]).unwrap();
        let changed = |changes: &[(&str, &str)]| {
            let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
            let overrides: Vec<_> = changes.iter().map(own).collect();
            recipe.check_resumable(&Recipe::parse(RECIPE, &overrides).unwrap())
        };
        let free = [
            ("loop.iterations", "99"),
            ("loop.early_stopping.patience", "3"),
            ("data.corpus", "elsewhere"),
        ];
        changed(&free).unwrap();
        let refusal = changed(&[
            ("seed", "8"),
            ("objective", "prefix_lm"),
            ("optimizer.learning_rate", "0.01"),
            ("optimizer.clip_norm", "1.0"),
            ("loop.iterations", "99"),
        ]);
        let refusal = refusal.unwrap_err().to_string();
        for expected in [
            "`seed` was 1337, now 8",
            "`objective.causal_lm.documents` was \"attend\", now not there",
            "`objective.prefix_lm` was not there",
            "`optimizer.learning_rate` was 0.001, now 0.01",
            "`optimizer.clip_norm` was not there, now 1.0",
        ] {
            assert!(refusal.contains(expected), "{refusal}");
        }
        assert!(!refusal.contains("iterations"), "{refusal}");
    }

    #[test]
    fn an_objective_takes_its_defaults_or_its_own_values() {
        let objective = |value: &str, more: &[(&str, &str)]| {
            let all = [("objective", value)]
                .into_iter()
                .chain(more.iter().copied());
            let overrides: Vec<(String, String)> = all
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            Recipe::parse(RECIPE, &overrides).map(|recipe| recipe.objective)
        };
        for (value, expected) in [
            (
                "causal_lm",
                Objective::CausalLm {
                    documents: Documents::Attend,
                },
            ),
            (
                "{ causal_lm = { documents = \"separate\" } }",
                Objective::CausalLm {
                    documents: Documents::Separate,
                },
            ),
            ("prefix_lm", Objective::PrefixLm {}),
            (
                "{ masked_lm = { probability = 0.3, documents = \"separate\" } }",
                Objective::MaskedLm {
                    probability: 0.3,
                    whole_words: false,
                    documents: Documents::Separate,
                },
            ),
            (
                "{ pretraining = { whole_words = true } }",
                Objective::Pretraining {
                    probability: 0.15,
                    whole_words: true,
                },
            ),
            (
                "blank_infilling",
                Objective::BlankInfilling {
                    density: 0.15,
                    mean_span_length: 3.0,
                    long_share: 0.0,
                },
            ),
            (
                "span_corruption",
                Objective::SpanCorruption {
                    noise_density: 0.15,
                    mean_span_length: 3.0,
                },
            ),
        ] {
            assert_eq!(objective(value, &[]).unwrap(), expected);
        }
        let separate = [("objective.causal_lm.documents", "separate")];
        assert_eq!(
            objective("{ causal_lm = {} }", &separate).unwrap(),
            Objective::CausalLm {
                documents: Documents::Separate
            }
        );
        for (value, expected) in [
            (
                "{ masked_lm = { probability = 1 } }",
                "`objective.masked_lm.probability`: must be",
            ),
            (
                "{ blank_infilling = { density = 0.6 } }",
                "density`: must be above 0 and at most 0.5",
            ),
            (
                "{ span_corruption = { mean_span_length = 0 } }",
                "mean_span_length`: must be at least 1",
            ),
            ("{ prefix_lm = { x = 1 } }", "unknown field `x`"),
        ] {
            let refusal = objective(value, &[]).unwrap_err().to_string();
            assert!(refusal.contains(expected), "{value} gives: {refusal}");
        }
    }

    #[test]
    fn a_missing_key_is_named() {
        let text = RECIPE.replace("batch_size = 4", "");
        let refusal = Recipe::parse(&text, &[]).unwrap_err().to_string();
        assert!(
            refusal.contains("`loop.batch_size`: missing field"),
            "{refusal}"
        );
    }
}
