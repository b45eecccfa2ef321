//! A training run as data: the TOML file that a user writes, checked key by key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn_zoo_data::{tokenizer::TokenizerConfig, windows::Prediction};
use burn_zoo_models::{family::Architecture, gpt::GptConfig};
use burn_zoo_nn::ConfigError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    average::AverageConfig, optimizer::OptimizerConfig, precision::Precision,
    schedule::ScheduleConfig,
};

/// What makes a recipe unusable.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read recipe {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// TOML cannot hold a value.
    #[error("the recipe cannot be written: {0}")]
    Unwritable(String),
    /// The text is not TOML.
    #[error("the recipe is not TOML: {0}")]
    Syntax(String),
    /// A run is resumed with another recipe.
    #[error(
        "the run was started with another recipe: {}; resume it as it was, or start another run",
        listed(.0)
    )]
    Changed(Vec<Difference>),
    /// A key is unknown, missing, or has an impossible value.
    #[error("recipe key `{key}`: {problem}")]
    Key {
        /// The key's full name, such as `optimizer.learning_rate`.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// What may differ when a run is resumed.
const MAY_CHANGE: [&str; 9] = [
    "data.corpus",
    "loop.iterations",
    "loop.gradient_checkpointing",
    "loop.eval_interval",
    "loop.checkpoint_interval",
    "loop.sample_interval",
    "loop.log_interval",
    "loop.keep_checkpoints",
    "loop.early_stopping",
];

/// A key that has another value in another recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The key's full name.
    pub key: String,
    /// What it was.
    pub old: Option<Value>,
    /// What it is.
    pub new: Option<Value>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let show = |value: &Option<Value>| match value {
            Some(value) => value.to_string(),
            None => "not there".to_owned(),
        };
        let (old, new) = (show(&self.old), show(&self.new));
        write!(f, "`{}` was {old}, now {new}", self.key)
    }
}

fn listed(differences: &[Difference]) -> String {
    let lines: Vec<String> = differences.iter().map(Difference::to_string).collect();
    lines.join(", ")
}

impl RecipeError {
    fn key(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Key {
            key: key.into(),
            problem: problem.into(),
        }
    }
}

/// Everything that decides what a run computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Decides initial parameters, the order of the data, and dropout.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// What is learned.
    pub objective: Objective,
    /// How text becomes tokens.
    pub tokenizer: TokenizerConfig,
    /// What is trained.
    pub model: ModelConfig,
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

/// What a model learns to do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Objective {
    /// Predict each token from those before it.
    CausalLm,
    /// Predict each token from those before it and a prefix, of random length, that all see.
    PrefixLm,
    /// Predict masked tokens from all others.
    MaskedLm {
        /// The share of tokens that are asked for; BERT has 0.15.
        probability: f64,
    },
}

impl Objective {
    /// What it asks of a text. `mask` is the token that hides another, the last of the vocabulary.
    pub fn prediction(self, mask: u32) -> Prediction {
        match self {
            Self::CausalLm => Prediction::Next,
            Self::PrefixLm => Prediction::AfterPrefix,
            Self::MaskedLm { probability } => Prediction::Masked { probability, mask },
        }
    }

    /// Whether it hides tokens behind a mask.
    pub fn needs_mask(self) -> bool {
        matches!(self, Self::MaskedLm { .. })
    }

    fn validate(self) -> Result<(), RecipeError> {
        match self {
            Self::MaskedLm { probability } if !(probability > 0.0 && probability < 1.0) => {
                let problem = format!("must be above 0 and below 1, got {probability}");
                Err(RecipeError::key("objective.masked_lm.probability", problem))
            }
            _ => Ok(()),
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
}

impl ModelConfig {
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
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            corpus: None,
            valid_fraction: default_valid_fraction(),
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
    /// Optimiser steps in all.
    pub iterations: usize,
    /// Windows in a batch.
    pub batch_size: usize,
    /// Batches whose gradients make one optimiser step.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// How much of each target's probability is spread over all classes in training.
    #[serde(default)]
    pub label_smoothing: f32,
    /// What a step computes in.
    #[serde(default)]
    pub precision: Precision,
    /// Whether memory-bound operations are computed again in the backward pass instead of kept.
    #[serde(default)]
    pub gradient_checkpointing: bool,
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
            batch_size,
            accumulation: one(),
            label_smoothing: 0.0,
            precision: Precision::F32,
            gradient_checkpointing: false,
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
        let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, overrides)
    }

    /// Parses a recipe and applies overrides.
    pub fn parse(text: &str, overrides: &[(String, String)]) -> Result<Self, RecipeError> {
        let mut table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| RecipeError::Syntax(error.to_string()))?;
        for (key, value) in overrides {
            set(&mut table, key, value)?;
        }
        let recipe: Self =
            serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|error| {
                let path = error.path().to_string();
                let problem = error.into_inner().message().to_owned();
                RecipeError::key(full_key(path, &problem), problem)
            })?;
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

    /// Refuses to continue `self` as `other` where that would be another run. Only how long it takes, what
    /// happens on the way, and the place of the corpus may change.
    pub fn check_resumable(&self, other: &Self) -> Result<(), RecipeError> {
        let (old, new) = (self.leaves()?, other.leaves()?);
        let may_change = |key: &str| {
            MAY_CHANGE.iter().any(|free| {
                key.strip_prefix(free)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let differences: Vec<Difference> = keys
            .into_iter()
            .filter(|key| !may_change(key) && old.get(*key) != new.get(*key))
            .map(|key| Difference {
                key: key.clone(),
                old: old.get(key).cloned(),
                new: new.get(key).cloned(),
            })
            .collect();
        match differences.is_empty() {
            true => Ok(()),
            false => Err(RecipeError::Changed(differences)),
        }
    }

    /// All values by their full keys.
    fn leaves(&self) -> Result<BTreeMap<String, Value>, RecipeError> {
        fn collect(key: String, value: Value, leaves: &mut BTreeMap<String, Value>) {
            match value {
                Value::Object(fields) if !fields.is_empty() => {
                    for (name, value) in fields {
                        let key = if key.is_empty() {
                            name
                        } else {
                            format!("{key}.{name}")
                        };
                        collect(key, value, leaves);
                    }
                }
                value => {
                    leaves.insert(key, value);
                }
            }
        }
        let value = serde_json::to_value(self);
        let value = value.map_err(|error| RecipeError::Unwritable(error.to_string()))?;
        let mut leaves = BTreeMap::new();
        collect(String::new(), value, &mut leaves);
        Ok(leaves)
    }

    /// Refuses impossible values.
    pub fn validate(&self) -> Result<(), RecipeError> {
        self.objective.validate()?;
        let valid_fraction = self.data.valid_fraction;
        if !(valid_fraction > 0.0 && valid_fraction < 1.0) {
            let problem = format!("must be above 0 and below 1, got {valid_fraction}");
            return Err(RecipeError::key("data.valid_fraction", problem));
        }
        if let TokenizerConfig::Bpe { vocab_size } = self.tokenizer
            && vocab_size < 256
        {
            let problem = format!("must be at least 256, one for each byte, got {vocab_size}");
            return Err(RecipeError::key("tokenizer.bpe.vocab_size", problem));
        }
        let loop_sizes = [
            ("iterations", self.training.iterations),
            ("batch_size", self.training.batch_size),
            ("accumulation", self.training.accumulation),
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

/// Sets a dotted key. The value is TOML where it parses as such, else a string.
fn set(table: &mut toml::Table, key: &str, value: &str) -> Result<(), RecipeError> {
    let value = match format!("value = {value}").parse::<toml::Table>() {
        Ok(mut parsed) => parsed.remove("value").expect("the key was just written"),
        Err(_) => toml::Value::String(value.to_owned()),
    };
    let mut names: Vec<&str> = key.split('.').collect();
    let last = names.pop().expect("split gives at least one name");
    let mut parent = table;
    for name in names {
        let child = parent
            .entry(name)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        parent = child.as_table_mut().ok_or_else(|| {
            RecipeError::key(
                key,
                format!("`{name}` is a value, it has no keys of its own"),
            )
        })?;
    }
    parent.insert(last.to_owned(), value);
    Ok(())
}

/// Serde gives the path of the struct that refuses a key; the key itself is in the message.
fn full_key(path: String, problem: &str) -> String {
    let named = ["unknown field `", "missing field `"]
        .iter()
        .find_map(|prefix| problem.strip_prefix(prefix)?.split('`').next());
    match named {
        Some(name) if path == "." => name.to_owned(),
        Some(name) if path != name && !path.ends_with(&format!(".{name}")) => {
            format!("{path}.{name}")
        }
        _ => path,
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
        assert_eq!(recipe.tokenizer, TokenizerConfig::Bpe { vocab_size: 512 });
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
            "`objective` was \"causal_lm\", now \"prefix_lm\"",
            "`optimizer.learning_rate` was 0.001, now 0.01",
            "`optimizer.clip_norm` was not there, now 1.0",
        ] {
            assert!(refusal.contains(expected), "{refusal}");
        }
        assert!(!refusal.contains("iterations"), "{refusal}");
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
