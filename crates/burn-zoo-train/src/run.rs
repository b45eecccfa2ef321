//! A recipe and a text in, a model directory out.
//!
//! ```text
//! config.json  model.safetensors  tokenizer.json    the model
//! recipe.toml  summary.json                         what ran, and how it ended
//! training/    checkpoint/  metrics.jsonl  loss.svg
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_train::{Interrupter, checkpoint::CheckpointerError};
use burn_zoo_data::{
    corpus::Corpus,
    tokenizer::{Tokenizer, TokenizerConfig, TokenizerError},
    windows::{Splits, StepShape, TooShort, Windows},
};
use burn_zoo_models::{
    directory::{self, DirectoryError},
    files,
};
use burn_zoo_nn::{ConfigError, Inputs, LanguageModel, Transformer, TransformerConfig, init};
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{Checkpoints, RunState},
    flops,
    history::{self, History},
    lock::{FolderLock, LockError},
    memory,
    objective::LanguageModeling,
    plot::{self, Curves},
    recipe::{LoopConfig, Objective, Recipe, RecipeError},
    step_loop::{End, Record, Sampler},
    trainer::{Display, FitError, Session, TrainerConfig, fit},
};

/// The name of a run's recipe.
pub const RECIPE: &str = "recipe.toml";
/// The name of a run's [`Summary`].
pub const SUMMARY: &str = "summary.json";
const TRAINING: &str = "training";
const CHECKPOINTS: &str = "training/checkpoint";
/// The name of a run's [history].
pub const HISTORY: &str = "training/metrics.jsonl";
const PLOT: &str = "training/loss.svg";
/// The recipe that the last checkpoint was trained by, whatever becomes of the user's.
const TRAINED: &str = "training/recipe.toml";
const FINGERPRINT: &str = "training/data.json";

/// What to do with a directory that may hold a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Refuse it if it does.
    Fresh,
    /// Remove the run that it holds.
    Overwrite,
    /// Continue the run that it holds.
    Resume,
}

/// Where and how to train.
#[derive(Clone)]
pub struct RunOptions {
    /// The model directory to leave.
    pub out: PathBuf,
    /// What to do with what it holds.
    pub start: Start,
    /// How progress is shown.
    pub display: Display,
    /// Stops the training after the step, leaving a run that can be resumed.
    pub interrupter: Interrupter,
    /// The backend's name, for the summary.
    pub backend: String,
    /// Writes a text every `sample_interval` steps.
    pub sampler: Option<TextSampler>,
    /// What the device could compute, in operations per second, to compare with.
    pub peak_flops: Option<f64>,
}

/// Writes a text with a model and its tokenizer.
pub type TextSampler = Arc<dyn Fn(&Transformer, &Tokenizer) -> Option<String> + Send + Sync>;

impl RunOptions {
    /// A fresh run that shows plain lines.
    pub fn new(out: impl Into<PathBuf>, backend: impl Into<String>) -> Self {
        Self {
            out: out.into(),
            start: Start::Fresh,
            display: Display::Lines,
            interrupter: Interrupter::new(),
            backend: backend.into(),
            sampler: None,
            peak_flops: None,
        }
    }
}

/// What makes a run fail.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The output directory holds a run already.
    #[error("{} holds a run already: pass --resume to continue it, --overwrite to replace it, or another --out", .0.display())]
    Occupied(PathBuf),
    /// There is no run to continue.
    #[error("{} holds no run to resume", .0.display())]
    NothingToResume(PathBuf),
    /// Another process trains there.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The text is not the one that the run was started with.
    #[error(
        "the corpus is not the one that this run learned from: resume with the same text, or start another run"
    )]
    OtherCorpus,
    /// The model's sizes do not fit the tokenizer.
    #[error("recipe key `model.{}`: {}", .0.field, .0.problem)]
    Model(ConfigError),
    /// There are too few tokens.
    #[error(transparent)]
    TooShort(#[from] TooShort),
    /// The recipe is unusable.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model cannot be written.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Training fails.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> RunError {
    let path = path.to_owned();
    |source| RunError::Io { path, source }
}

/// How a run ended, as `summary.json` holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The mean loss over the validation split, in nats, of the model that was saved.
    pub valid_loss: f64,
    /// The mean loss of the training steps before the last evaluation, in nats.
    pub train_loss: f64,
    /// Tokens learned from per second of training, evaluations aside.
    pub tokens_per_second: f64,
    /// Tokens learned from.
    pub tokens: usize,
    /// Seconds in all, evaluations and checkpoints included.
    pub seconds: f64,
    /// The backend.
    pub backend: String,
    /// Parameters of the model.
    pub parameters: usize,
    /// The recipe's seed.
    pub seed: u64,
    /// Floating-point operations of a token's forward and backward pass, see [`flops`].
    #[serde(default)]
    pub flops_per_token: f64,
    /// What the device could compute, in operations per second, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_flops: Option<f64>,
    /// The share of it that the model's operations took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Optimiser steps.
    pub iterations: usize,
    /// The step of the model that was saved.
    pub saved_iteration: usize,
    /// The most memory that the process had resident, in bytes.
    pub peak_memory_bytes: Option<u64>,
    /// For each mixture of experts, the share of the choices that each expert takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_load: Option<Vec<Vec<f64>>>,
}

/// A run that has ended.
pub struct Run {
    /// The model.
    pub model: Transformer,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Where the training stands.
    pub state: RunState,
    /// The summary; none when the run was interrupted, to be resumed.
    pub summary: Option<Summary>,
}

/// The recipe that a run's directory holds, with overrides applied.
pub fn saved_recipe(out: &Path, overrides: &[(String, String)]) -> Result<Recipe, RunError> {
    let path = out.join(RECIPE);
    match path.exists() {
        true => Ok(Recipe::read(&path, overrides)?),
        false => Err(RunError::NothingToResume(out.to_owned())),
    }
}

/// The recipe that a run was trained by so far.
fn trained_recipe(out: &Path) -> Result<Recipe, RunError> {
    let path = out.join(TRAINED);
    match path.exists() {
        true => Ok(Recipe::read(&path, &[])?),
        false => saved_recipe(out, &[]),
    }
}

/// Trains the recipe's model on `text` and leaves a model directory.
pub fn train(
    recipe: &Recipe,
    text: &str,
    device: &Device,
    options: RunOptions,
) -> Result<Run, RunError> {
    let out = &options.out;
    let earlier = earlier_run(out, options.start)?;
    let training = out.join(TRAINING);
    let lock = match training.exists() {
        true => Some(FolderLock::acquire(&training)?),
        false => None,
    };
    let recipe_toml = recipe.to_toml()?;
    // One that was killed before its first checkpoint starts again.
    let mut resume = false;
    if options.start == Start::Resume {
        trained_recipe(out)?.check_resumable(recipe)?;
        let keep = recipe.training.keep_checkpoints;
        let checkpoints = Checkpoints::open(&out.join(CHECKPOINTS), keep);
        resume = !checkpoints.map_err(FitError::from)?.steps().is_empty();
    }

    let corpus = Corpus::split(text, recipe.data.valid_fraction);
    let mut tokenizer = match resume {
        true => Tokenizer::load(&out.join(directory::TOKENIZER))?,
        false => train_tokenizer(&recipe.tokenizer, text, &corpus)?,
    };
    if recipe.objective.needs_mask() {
        tokenizer.add_mask()?;
    }
    let splits = Splits {
        train: tokenizer.encode(&corpus.train)?.into(),
        valid: tokenizer.encode(&corpus.valid)?.into(),
    };
    let mut architecture = recipe
        .model
        .architecture(tokenizer.vocab_size())
        .map_err(RunError::Model)?;
    let mask = tokenizer.mask_id();
    if let Some(mask) = mask {
        architecture
            .json
            .entry("mask_token_id")
            .or_insert_with(|| mask.into());
    }
    let config = &architecture.transformer;
    check_objective(recipe.objective, config).map_err(RunError::Model)?;
    let shape = StepShape {
        batch_size: recipe.training.batch_size,
        accumulation: recipe.training.accumulation,
        context_length: config.context_length(),
    };
    let prediction = recipe.objective.prediction(mask.unwrap_or(0));
    let windows = Windows::new(splits.clone(), shape, prediction, recipe.seed)?;

    // From here on the directory changes: everything that can be refused has been.
    let _lock = match lock {
        Some(lock) => lock,
        None => FolderLock::acquire(&training)?,
    };
    if options.start == Start::Overwrite {
        remove(&earlier)?;
    }
    let write = |name: &str, contents: String| {
        let path = out.join(name);
        files::replace_with(&path, contents).map_err(io_error(&path))
    };
    if resume {
        check_fingerprint(out, &splits)?;
    }
    // The recipe first: with it, a run that is killed here can be resumed.
    write(RECIPE, recipe_toml.clone())?;
    write(TRAINED, recipe_toml)?;
    write(directory::TOKENIZER, tokenizer.to_json()?)?;
    if !resume {
        let json = serde_json::to_string_pretty(&Fingerprint::new(&splits));
        let json = json.map_err(std::io::Error::from);
        write(FINGERPRINT, json.map_err(io_error(&out.join(FINGERPRINT)))?)?;
    }

    let history = Mutex::new(History::new(out.join(HISTORY)));
    let interrupter = options.interrupter.clone();
    let directory = out.clone();
    let on_record = move |record| {
        let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
        let is_evaluation = matches!(record, Record::Valid { .. });
        let written = history.write(&record).and_then(|()| match is_evaluation {
            true => draw(&directory),
            false => Ok(()),
        });
        if let Err(error) = written {
            // A history with holes is none: the last checkpoint knows where to go on.
            interrupter.fail(CheckpointerError::IOError(error));
        }
    };
    init::seed(recipe.seed);
    let session = Session {
        folder: Some(training.clone()),
        resume,
        display: options.display,
        interrupter: options.interrupter,
        on_record: Arc::new(on_record),
        sampler: options.sampler.map(|sampler| {
            let tokenizer = tokenizer.clone();
            let sampler: Sampler<Transformer> =
                Arc::new(move |model: &Transformer| sampler(model, &tokenizer));
            sampler
        }),
    };
    let fitted = fit(
        config.init(device),
        LanguageModeling,
        &windows,
        &TrainerConfig::new(recipe),
        device,
        session,
    )?;
    let (model, outcome) = (fitted.model, fitted.outcome);
    let summary = match outcome.end {
        End::Interrupted => None,
        _ => {
            directory::save(&model, &architecture, out)?;
            let early = outcome.end == End::EarlyStopped;
            let summary = Summary {
                expert_load: expert_load(&model, config, &splits.valid),
                ..summarise(
                    recipe,
                    config,
                    &outcome.state,
                    early,
                    options.backend,
                    options.peak_flops,
                )
            };
            let json = serde_json::to_string_pretty(&summary).map_err(std::io::Error::from);
            write(SUMMARY, json.map_err(io_error(&out.join(SUMMARY)))?)?;
            Some(summary)
        }
    };
    Ok(Run {
        model,
        tokenizer,
        state: outcome.state,
        summary,
    })
}

/// Learns merges from the training part alone. Characters come from the whole text, because a
/// held-out one that is in no token could not be scored.
fn train_tokenizer(
    config: &TokenizerConfig,
    text: &str,
    corpus: &Corpus,
) -> Result<Tokenizer, TokenizerError> {
    match config {
        TokenizerConfig::Char => Tokenizer::train(config, text),
        TokenizerConfig::Bpe { .. } | TokenizerConfig::File { .. } => {
            Tokenizer::train(config, &corpus.train)
        }
    }
}

/// What a directory holds of a run, unless it should hold none, or some.
fn earlier_run(out: &Path, start: Start) -> Result<Vec<PathBuf>, RunError> {
    let ours = [
        directory::CONFIG,
        directory::WEIGHTS,
        directory::TOKENIZER,
        RECIPE,
        SUMMARY,
        CHECKPOINTS,
        HISTORY,
        PLOT,
        TRAINED,
        FINGERPRINT,
    ];
    let paths = ours.iter().map(|name| out.join(name));
    let found: Vec<PathBuf> = paths.filter(|path| path.exists()).collect();
    match start {
        Start::Fresh if !found.is_empty() => Err(RunError::Occupied(out.to_owned())),
        Start::Resume if !out.join(RECIPE).exists() => {
            Err(RunError::NothingToResume(out.to_owned()))
        }
        Start::Fresh | Start::Overwrite | Start::Resume => Ok(found),
    }
}

fn remove(paths: &[PathBuf]) -> Result<(), RunError> {
    for path in paths {
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(path),
            false => fs::remove_file(path),
        };
        removed.map_err(io_error(path))?;
    }
    Ok(())
}

/// What tells one text from another.
#[derive(PartialEq, Serialize, Deserialize)]
struct Fingerprint {
    train_tokens: usize,
    valid_tokens: usize,
    fnv1a: String,
}

impl Fingerprint {
    fn new(splits: &Splits) -> Self {
        let tokens = splits.train.iter().chain(splits.valid.iter());
        let hash = tokens.fold(0xcbf2_9ce4_8422_2325_u64, |hash, &token| {
            (hash ^ u64::from(token)).wrapping_mul(0x100_0000_01b3)
        });
        Self {
            train_tokens: splits.train.len(),
            valid_tokens: splits.valid.len(),
            fnv1a: format!("{hash:016x}"),
        }
    }
}

/// Refuses another text than that of the run.
fn check_fingerprint(out: &Path, splits: &Splits) -> Result<(), RunError> {
    let path = out.join(FINGERPRINT);
    let saved = fs::read_to_string(&path).map_err(io_error(&path))?;
    match serde_json::from_str::<Fingerprint>(&saved) {
        Ok(saved) if saved == Fingerprint::new(splits) => Ok(()),
        _ => Err(RunError::OtherCorpus),
    }
}

/// Draws the run so far.
fn draw(out: &Path) -> std::io::Result<()> {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let records = history::read(&out.join(HISTORY))?;
    match plot::svg(&[Curves::new(name, &records)]) {
        Some(svg) => files::replace_with(&out.join(PLOT), svg),
        None => Ok(()),
    }
}

fn summarise(
    recipe: &Recipe,
    config: &TransformerConfig,
    state: &RunState,
    early: bool,
    backend: String,
    peak_flops: Option<f64>,
) -> Summary {
    let flops_per_token = flops::per_token(config, config.context_length());
    // Of all tokens of a step, also those of which nothing is asked.
    let LoopConfig {
        batch_size,
        accumulation,
        ..
    } = recipe.training;
    let n_read = state.step * batch_size * accumulation * config.context_length();
    let flops = flops_per_token * n_read as f64 / state.training_seconds;
    let saved = if early { state.best } else { state.valid };
    Summary {
        valid_loss: saved.map_or(f64::NAN, |valid| valid.loss),
        train_loss: state.train_loss.unwrap_or(f64::NAN),
        tokens_per_second: state.tokens as f64 / state.training_seconds,
        tokens: state.tokens,
        seconds: state.seconds,
        backend,
        parameters: config.n_parameters(),
        flops_per_token,
        peak_flops,
        mfu: peak_flops.map(|peak| flops / peak),
        seed: recipe.seed,
        iterations: state.step,
        saved_iteration: saved.map_or(state.step, |valid| valid.step),
        peak_memory_bytes: memory::peak_bytes(),
        expert_load: None,
    }
}

/// Refuses a model that sees what it is asked for, or cannot say it.
fn check_objective(objective: Objective, config: &TransformerConfig) -> Result<(), ConfigError> {
    let refuse = |field, problem| Err(ConfigError::new(field, problem));
    if config.head.language().is_none() {
        return refuse(
            "head",
            "must score the vocabulary: use a class with a language head",
        );
    }
    if config.encoder.is_some() {
        return refuse(
            "encoder",
            "is not trained by this objective: it reads one text, not two",
        );
    }
    match objective {
        Objective::CausalLm | Objective::PrefixLm if !config.stack.is_decoder() => refuse(
            "stack.blocks",
            "see the token to predict: use objective = { masked_lm = { probability = 0.15 } }",
        ),
        Objective::CausalLm if config.stack.has_prefix() => refuse(
            "stack.blocks",
            "have prefix attention, which this objective leaves untrained: use objective = \
             \"prefix_lm\"",
        ),
        Objective::PrefixLm if !config.stack.has_prefix() => refuse(
            "stack.blocks",
            "have no prefix attention: use objective = \"causal_lm\"",
        ),
        _ => Ok(()),
    }
}

/// For each mixture of the model, the share of the choices that each expert takes, over some windows
/// of the held-out text, of which a model with a prefix takes half for it.
fn expert_load(
    model: &Transformer,
    config: &TransformerConfig,
    valid: &[u32],
) -> Option<Vec<Vec<f64>>> {
    const WINDOWS: usize = 32;
    let mixtures = config
        .stack
        .blocks
        .iter()
        .filter_map(|block| block.mixture.as_ref());
    let mut loads: Vec<Vec<usize>> = mixtures.map(|mixture| vec![0; mixture.n_experts]).collect();
    if loads.is_empty() {
        return None;
    }
    let seq = config.context_length();
    let device = model.embedding.token.device();
    for window in valid.chunks_exact(seq).take(WINDOWS) {
        let tokens: Vec<i32> = window.iter().map(|&token| token as i32).collect();
        let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, [1, seq]), &device);
        let half = Tensor::<1, Int>::from_data([seq as i64 / 2], &device);
        let (_, routing) = model.forward_routed(Inputs {
            prefix_lengths: Some(half),
            ..tokens.into()
        });
        for (load, routing) in loads.iter_mut().zip(routing) {
            for (sum, taken) in load.iter_mut().zip(routing.load) {
                *sum += taken;
            }
        }
    }
    let shares = loads.into_iter().map(|load| {
        let total = load.iter().sum::<usize>().max(1) as f64;
        load.into_iter().map(|taken| taken as f64 / total).collect()
    });
    Some(shares.collect())
}
