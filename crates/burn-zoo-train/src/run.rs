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
    labelled::LabelledError,
    pairs::NoPairs,
    shards::{ShardError, TokenSource},
    tokenizer::{Tokenizer, TokenizerError},
    windows::TooShort,
};
use burn_zoo_models::{
    adapter,
    directory::{self, DirectoryError},
    files,
};
use burn_zoo_nn::{ConfigError, Inputs, LanguageModel, Transformer, TransformerConfig};
use serde::{Deserialize, Serialize};

use crate::{
    adaptation::{self, AdaptationError},
    checkpoint::{Checkpoints, RunState},
    flops,
    history::History,
    labelled,
    lock::{FolderLock, LockError},
    memory,
    plot::{self, Curves},
    recipe::{LoopConfig, Objective, Recipe, RecipeError},
    step_loop::{End, Outcome, Record, Sampler},
    task::{Data, Task},
    trainer::{Display, FitError, Session, TrainerConfig},
};

pub use crate::task::Material;

/// The name of a run's recipe.
pub const RECIPE: &str = "recipe.toml";
/// The name of a run's [`Summary`].
pub const SUMMARY: &str = "summary.json";
const TRAINING: &str = "training";
const CHECKPOINTS: &str = "training/checkpoint";
/// The name of a run's [history](crate::history).
pub const HISTORY: &str = "training/metrics.jsonl";
const PLOT: &str = "training/loss.svg";
/// The recipe that the last checkpoint was trained by, whatever becomes of the user's.
const TRAINED: &str = "training/recipe.toml";
const FINGERPRINT: &str = "training/data.json";
const BACKEND: &str = "training/backend.txt";

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
    /// The backend's name, for the summary and for [`saved_backend`].
    pub backend: String,
    /// Writes a text every `sample_interval` steps.
    pub sampler: Option<TextSampler>,
    /// Measure the peak of the device's matrix product at the end, for the utilisation in the summary.
    pub measures_peak: bool,
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
            measures_peak: false,
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
    /// There are too few sentences.
    #[error(transparent)]
    NoPairs(#[from] NoPairs),
    /// Packed tokens cannot be read.
    #[error(transparent)]
    Shards(#[from] ShardError),
    /// The recipe is unusable.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The objective learns from something else.
    #[error("the recipe's objective learns from {0}: give it with --corpus")]
    Material(&'static str),
    /// The tokenizer cannot be made here.
    #[error("recipe key `tokenizer`: {0}")]
    Tokenization(&'static str),
    /// Labelled texts cannot be used.
    #[error(transparent)]
    Labelled(#[from] LabelledError),
    /// The adaptation does not fit the model.
    #[error(transparent)]
    Adaptation(#[from] AdaptationError),
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
    /// The mean loss over the validation split, of the model that was saved: in nats, or a squared error.
    pub valid_loss: f64,
    /// The mean loss of the training steps before the last evaluation, in the same unit.
    pub train_loss: f64,
    /// Tokens read per second of training, padding and evaluations aside.
    pub tokens_per_second: f64,
    /// Tokens read in training, padding aside.
    pub tokens: usize,
    /// Seconds in all, evaluations and checkpoints included.
    pub seconds: f64,
    /// The backend.
    pub backend: String,
    /// Parameters of the model.
    pub parameters: usize,
    /// The recipe's seed.
    pub seed: u64,
    /// Floating-point operations of a token's forward and backward pass, see [`flops`], where all of a single stack
    /// learns: what is kept needs fewer, and the tokens of an encoder–decoder go through one of two stacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flops_per_token: Option<f64>,
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
    /// The share of held-out predictions that are right, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_accuracy: Option<f64>,
    /// The mean loss over the test split, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_loss: Option<f64>,
    /// The share of its predictions that are right, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_accuracy: Option<f64>,
    /// Rows of labels that were bad and left out, as the recipe allows.
    #[serde(default)]
    pub skipped_rows: u64,
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

/// How the run in a directory ended; none when it has not.
///
/// # Errors
///
/// When the summary cannot be read.
pub fn saved_summary(out: &Path) -> Result<Option<Summary>, RunError> {
    let path = out.join(SUMMARY);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).map_err(io_error(&path))?;
    let summary = serde_json::from_str(&text).map_err(std::io::Error::from);
    Ok(Some(summary.map_err(io_error(&path))?))
}

/// The recipe that a run's directory holds, with overrides applied.
pub fn saved_recipe(out: &Path, overrides: &[(String, String)]) -> Result<Recipe, RunError> {
    let path = out.join(RECIPE);
    match path.exists() {
        true => Ok(Recipe::read(&path, overrides)?),
        false => Err(RunError::NothingToResume(out.to_owned())),
    }
}

/// The backend that a directory's run was last trained on; none when there is no such run.
pub fn saved_backend(out: &Path) -> Option<String> {
    fs::read_to_string(out.join(BACKEND)).ok()
}

/// The recipe that a run was trained by so far.
fn trained_recipe(out: &Path) -> Result<Recipe, RunError> {
    let path = out.join(TRAINED);
    match path.exists() {
        true => Ok(Recipe::read(&path, &[])?),
        false => saved_recipe(out, &[]),
    }
}

/// Trains the recipe's model and leaves a model directory.
pub fn train(
    recipe: &Recipe,
    material: Material<'_>,
    device: &Device,
    options: RunOptions,
) -> Result<Run, RunError> {
    let out = &options.out;
    earlier_run(out, options.start)?;
    let training = out.join(TRAINING);
    let lock = match training.exists() || options.start == Start::Resume {
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

    let earlier_tokenizer = match resume {
        true => Some(Tokenizer::load(&out.join(directory::TOKENIZER))?),
        false => None,
    };
    let mut task = Task::prepare(recipe, material, earlier_tokenizer)?;
    let (model, whole) = task.model(recipe, device)?;

    // From here on the directory changes: everything that can be refused has been.
    let _lock = match lock {
        Some(lock) => lock,
        None => FolderLock::acquire(&training)?,
    };
    // Another process may have trained here, and ended, while this one got ready.
    let earlier = earlier_run(out, options.start)?;
    if options.start == Start::Overwrite {
        remove(&earlier)?;
    }
    let write = |name: &str, contents: String| {
        let path = out.join(name);
        files::replace_with(&path, contents).map_err(io_error(&path))
    };
    if resume {
        check_fingerprint(out, &task)?;
    }
    // The recipe first: with it, a run that is killed here can be resumed.
    write(RECIPE, recipe_toml.clone())?;
    write(TRAINED, recipe_toml)?;
    write(BACKEND, options.backend.clone())?;
    write(directory::TOKENIZER, task.tokenizer.to_json()?)?;
    if !resume {
        let json = serde_json::to_string_pretty(&Fingerprint::new(&task)?);
        let json = json.map_err(std::io::Error::from);
        write(FINGERPRINT, json.map_err(io_error(&out.join(FINGERPRINT)))?)?;
    }

    let session = Session {
        folder: Some(training.clone()),
        resume,
        display: options.display,
        quality: recipe.objective.quality(),
        on_record: Arc::new(recorder(out, options.interrupter.clone())),
        interrupter: options.interrupter,
        sampler: options.sampler.map(|sampler| {
            let tokenizer = task.tokenizer.clone();
            let sampler: Sampler<Transformer> =
                Arc::new(move |model: &Transformer| sampler(model, &tokenizer));
            sampler
        }),
    };
    let mut config = TrainerConfig::new(recipe);
    config.training.iterations = task.iterations(recipe);
    let fitted = task.fit(model, &config, device, session)?;
    let (model, outcome) = (fitted.model, fitted.outcome);
    let summary = match outcome.end {
        End::Interrupted => None,
        _ => {
            let (architecture, base) = (&task.architecture, recipe.model.path());
            adaptation::save(&recipe.adaptation, &model, architecture, base, &whole, out)?;
            // Before the peak is measured, which takes memory of its own.
            let peak_memory_bytes = memory::peak_bytes();
            let peak_flops = options.measures_peak.then(|| flops::measured_peak(device));
            let summary = Summary {
                peak_memory_bytes,
                ..summarise(
                    recipe,
                    &task,
                    &model,
                    &outcome,
                    device,
                    options.backend,
                    peak_flops,
                )?
            };
            let json = serde_json::to_string_pretty(&summary).map_err(std::io::Error::from);
            write(SUMMARY, json.map_err(io_error(&out.join(SUMMARY)))?)?;
            Some(summary)
        }
    };
    Ok(Run {
        model,
        tokenizer: task.tokenizer,
        state: outcome.state,
        summary,
    })
}

/// What writes the history of a run, and draws it at each evaluation.
fn recorder(out: &Path, interrupter: Interrupter) -> impl Fn(Record) + Send + Sync + 'static {
    let history = Mutex::new(History::new(out.join(HISTORY)));
    let directory = out.to_owned();
    move |record| {
        let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
        let is_evaluation = matches!(record, Record::Valid { .. });
        let written = history.write(&record).and_then(|()| match is_evaluation {
            true => draw(&directory, history.records()),
            false => Ok(()),
        });
        if let Err(error) = written {
            // A history with holes is none: the last checkpoint knows where to go on.
            interrupter.fail(CheckpointerError::IOError(error));
        }
    }
}

/// What a directory holds of a run, unless it should hold none, or some.
fn earlier_run(out: &Path, start: Start) -> Result<Vec<PathBuf>, RunError> {
    let ours = [
        directory::CONFIG,
        directory::WEIGHTS,
        adapter::CONFIG,
        adapter::WEIGHTS,
        directory::TOKENIZER,
        RECIPE,
        SUMMARY,
        CHECKPOINTS,
        HISTORY,
        PLOT,
        TRAINED,
        BACKEND,
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
    fn new(task: &Task) -> Result<Self, ShardError> {
        const STEP: usize = 1 << 20;
        let fold = |hash: u64, numbers: &[u32]| {
            numbers.iter().fold(hash, |hash, &number| {
                (hash ^ u64::from(number)).wrapping_mul(0x100_0000_01b3)
            })
        };
        let (mut hash, mut tokens) = (0xcbf2_9ce4_8422_2325_u64, Vec::new());
        for source in [&task.splits.train, &task.splits.valid] {
            for start in (0..source.len()).step_by(STEP) {
                tokens.clear();
                source.read(start..source.len().min(start + STEP), &mut tokens)?;
                hash = fold(hash, &tokens);
            }
        }
        if let Data::Labelled(labelled) = &task.data {
            hash = fold(hash, &labelled.asked);
        }
        Ok(Self {
            train_tokens: task.splits.train.len(),
            valid_tokens: task.splits.valid.len(),
            fnv1a: format!("{hash:016x}"),
        })
    }
}

/// Refuses another text than that of the run.
fn check_fingerprint(out: &Path, task: &Task) -> Result<(), RunError> {
    let path = out.join(FINGERPRINT);
    let found = Fingerprint::new(task)?;
    let saved = fs::read_to_string(&path).map_err(io_error(&path))?;
    match serde_json::from_str::<Fingerprint>(&saved) {
        Ok(saved) if saved == found => Ok(()),
        _ => Err(RunError::OtherCorpus),
    }
}

/// Draws the run so far.
fn draw(out: &Path, records: &[Record]) -> std::io::Result<()> {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    match plot::svg(&[Curves::new(name, records)]) {
        Some(svg) => files::replace_with(&out.join(PLOT), svg),
        None => Ok(()),
    }
}

fn summarise(
    recipe: &Recipe,
    task: &Task,
    model: &Transformer,
    Outcome { state, end }: &Outcome,
    device: &Device,
    backend: String,
    peak_flops: Option<f64>,
) -> Result<Summary, RunError> {
    let config = &task.architecture.transformer;
    let LoopConfig {
        batch_size,
        accumulation,
        ..
    } = recipe.training;
    let tokens_per_second = state.tokens as f64 / state.training_seconds;
    let flops_per_token = (recipe.adaptation.is_full() && config.encoder.is_none()).then(|| {
        // The last batch of a pass may be smaller, which makes texts seem a little shorter.
        let texts = (state.step * batch_size * accumulation).max(1);
        let length = (state.tokens as f64 / texts as f64).round() as usize;
        let scored = match recipe.objective {
            // Their heads read every token, asked or not.
            Objective::TokenClassification(_) | Objective::SpanExtraction(_) => 1.0,
            _ => (state.predictions as f64 / state.tokens.max(1) as f64).min(1.0),
        };
        flops::per_token(config, length, scored)
    });
    let flops = flops_per_token.map(|per_token| per_token * tokens_per_second);
    let saved = match end {
        End::EarlyStopped => state.best,
        _ => state.valid,
    };
    let labelled = match &task.data {
        Data::Labelled(labelled) => Some(labelled),
        _ => None,
    };
    let test = labelled
        .and_then(|labelled| labelled.test.as_ref())
        .map(|test| labelled::evaluate(model, test, device, state.step))
        .transpose()?;
    Ok(Summary {
        valid_loss: saved.map_or(f64::NAN, |valid| valid.loss),
        train_loss: state.train_loss.unwrap_or(f64::NAN),
        tokens_per_second,
        tokens: state.tokens,
        seconds: state.seconds,
        backend,
        parameters: config.n_parameters(),
        flops_per_token,
        peak_flops,
        mfu: flops.zip(peak_flops).map(|(flops, peak)| flops / peak),
        seed: recipe.seed,
        iterations: state.step,
        saved_iteration: saved.map_or(state.step, |valid| valid.step),
        peak_memory_bytes: None,
        valid_accuracy: saved.and_then(|valid| valid.accuracy),
        test_loss: test.map(|facts| facts.loss),
        test_accuracy: test.and_then(|facts| facts.accuracy),
        skipped_rows: labelled.map_or(0, |labelled| labelled.skipped),
        expert_load: expert_load(model, config, &task.splits.valid)?,
    })
}

/// For each mixture of the model, the share of the choices that each expert takes, over some windows
/// of the held-out text, of which a model with a prefix takes half for it.
fn expert_load(
    model: &Transformer,
    config: &TransformerConfig,
    valid: &TokenSource,
) -> Result<Option<Vec<Vec<f64>>>, ShardError> {
    const WINDOWS: usize = 32;
    let mixtures = config
        .stack
        .blocks
        .iter()
        .filter_map(|block| block.mixture.as_ref());
    let mut loads: Vec<Vec<usize>> = mixtures.map(|mixture| vec![0; mixture.n_experts]).collect();
    if loads.is_empty() {
        return Ok(None);
    }
    let seq = config.context_length();
    let device = model.embedding.token.device();
    for window in 0..WINDOWS.min(valid.len() / seq) {
        let mut tokens = Vec::with_capacity(seq);
        valid.read(window * seq..(window + 1) * seq, &mut tokens)?;
        let tokens: Vec<i32> = tokens.into_iter().map(|token| token as i32).collect();
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
    Ok(Some(shares.collect()))
}
