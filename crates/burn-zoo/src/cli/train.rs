//! `burn-zoo train`.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{
    OWN_RECIPE, OWN_TEXT,
    data::{corpus::read_text, pipeline, tokenizer::Tokenizer},
    infer::{
        generate::{Marks, Writer},
        sampling::SamplingConfig,
    },
    nn::Transformer,
    train::{
        Interrupter, Recipe,
        metrics::Quantity,
        run::{self, Material, Run, RunOptions, Start, Summary, TextSampler},
        trainer::Display,
    },
};
use serde::Serialize;

use super::{BackendArgument, End, Result, end_when_unread, print_json};

const SAMPLES: u64 = 3;
const SAMPLE_TOKENS: usize = 120;

#[derive(clap::Args)]
pub struct Arguments {
    /// A TOML file that says what to train and how [default: a small GPT on the zoo's own source]
    #[arg(value_name = "RECIPE.toml")]
    recipe: Option<PathBuf>,
    /// What to learn from: a text, a folder of texts, or what `burn-zoo data prepare` left; for labels, a folder of tables called train, dev and test.
    #[arg(long, value_name = "FILE|DIR")]
    corpus: Option<PathBuf>,
    /// Where to leave the model directory [default: the first free of runs/NAME, runs/NAME-2, …]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replaces a value of the recipe, such as optimizer.learning_rate=3e-4. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_override)]
    set: Vec<(String, String)>,
    /// Decides initial parameters, the order of the data, and dropout.
    #[arg(long)]
    seed: Option<u64>,
    /// Replace the run that the directory holds.
    #[arg(long, requires = "out", conflicts_with = "resume")]
    overwrite: bool,
    /// Continue the run that the directory holds, by its own recipe, or by one that is the same but for
    /// how long it takes; on its own backend, unless another is named.
    #[arg(long, requires = "out")]
    resume: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgument,
}

pub(super) fn parse_override(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("expected KEY=VALUE, such as optimizer.learning_rate=3e-4".to_owned()),
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    samples: &'a [String],
    directory: &'a Path,
}

pub fn run(arguments: &Arguments) -> Result<End> {
    let recipe = read_recipe(arguments)?;
    let corpus = Corpus::of(&recipe)?;
    let resumed = arguments.out.as_ref().filter(|_| arguments.resume);
    let found = arguments
        .backend
        .find_or(resumed.and_then(|out| run::saved_backend(out)))?;
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => free_directory(arguments.recipe.as_deref()),
    };
    let options = RunOptions {
        out: out.clone(),
        start: match (arguments.resume, arguments.overwrite) {
            (true, _) => Start::Resume,
            (_, true) => Start::Overwrite,
            _ => Start::Fresh,
        },
        display: match stdout().is_terminal() {
            true => Display::Screen,
            false => Display::Lines,
        },
        interrupter: stop_on_signals()?,
        measures_peak: found.has_peak(),
        backend: found.name,
        sampler: corpus.text().map(|text| sampler(text, recipe.seed)),
    };
    let run = run::train(&recipe, corpus.material(), &found.device, options)?;
    let Some(summary) = &run.summary else {
        eprintln!(
            "stopped after step {}; continue with: burn-zoo train --resume --out {}",
            run.state.step,
            out.display()
        );
        return Ok(End::Interrupted);
    };
    if summary.skipped_rows > 0 {
        eprintln!("{} bad rows were left out", summary.skipped_rows);
    }
    end_when_unread();
    let samples = match corpus.text() {
        Some(text) if recipe.objective.continues_text() => write_samples(&run, text, recipe.seed)?,
        _ => Vec::new(),
    };
    if arguments.json {
        print_json(&Report {
            summary,
            samples: &samples,
            directory: &out,
        })?;
    } else {
        print(summary, recipe.objective.quality(), &samples, &out);
    }
    Ok(End::Done)
}

/// What a recipe learns from.
pub(super) enum Corpus {
    Text(String),
    Packed(PathBuf),
    Tables(PathBuf),
}

impl Corpus {
    /// Reads the text, or finds the tables, that a recipe names; without any, the text is the zoo's own source.
    pub(super) fn of(recipe: &Recipe) -> Result<Self> {
        Ok(match (recipe.objective.labels(), &recipe.data.corpus) {
            (None, Some(path)) if path.join(pipeline::TOKENS).is_dir() => {
                Self::Packed(path.clone())
            }
            (None, Some(path)) => {
                let (text, skipped) = read_text(path, recipe.data.bad_rows)?;
                if skipped > 0 {
                    let path = path.display();
                    eprintln!("left out of {path}, for it is not UTF-8: files or parts, {skipped}");
                }
                Self::Text(text)
            }
            (None, None) => Self::Text(OWN_TEXT.to_owned()),
            (Some(_), Some(path)) => Self::Tables(path.clone()),
            (Some(_), None) => {
                return Err("labels are learned from tables: give them with --corpus".into());
            }
        })
    }

    pub(super) fn material(&self) -> Material<'_> {
        match self {
            Self::Text(text) => Material::Text(text),
            Self::Packed(path) => Material::Packed(path),
            Self::Tables(path) => Material::Tables(path),
        }
    }

    /// What samples begin like.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Packed(_) => Some("\n"),
            Self::Tables(_) => None,
        }
    }
}

fn read_recipe(arguments: &Arguments) -> Result<Recipe> {
    let mut overrides = arguments.set.clone();
    if let Some(seed) = arguments.seed {
        overrides.push(("seed".to_owned(), seed.to_string()));
    }
    let resumed = arguments.out.as_ref().filter(|_| arguments.resume);
    let mut recipe = match (&arguments.recipe, resumed) {
        (Some(path), _) => Recipe::read(path, &overrides)?,
        (None, Some(out)) => run::saved_recipe(out, &overrides)?,
        (None, None) => Recipe::parse(OWN_RECIPE, &overrides)?,
    };
    if let (Some(out), None) = (resumed, &recipe.data.corpus) {
        recipe.data.corpus = run::saved_recipe(out, &[])?.data.corpus;
    }
    recipe.locate(arguments.corpus.as_deref())?;
    Ok(recipe)
}

/// The first of `runs/NAME`, `runs/NAME-2`, … that is not there, with the recipe's name.
fn free_directory(recipe: Option<&Path>) -> PathBuf {
    let stem = recipe.and_then(Path::file_stem).unwrap_or("zoo".as_ref());
    let first = Path::new("runs").join(stem);
    let numbered = (2..).map(|number| {
        let mut name = stem.to_owned();
        name.push(format!("-{number}"));
        Path::new("runs").join(name)
    });
    let mut candidates = std::iter::once(first).chain(numbered);
    candidates
        .find(|path| !path.exists())
        .expect("there are endless numbers")
}

/// The first Ctrl-C or SIGTERM stops after the step, the second at once.
pub(super) fn stop_on_signals() -> Result<Interrupter> {
    let interrupter = Interrupter::new();
    let handle = interrupter.clone();
    ctrlc::set_handler(move || {
        if handle.should_stop() {
            std::process::exit(130);
        }
        // Not across the screen.
        if !stdout().is_terminal() {
            let _ = writeln!(
                stderr(),
                "stopping after this step; Ctrl-C again stops at once"
            );
        }
        handle.stop(Some("signal"));
    })?;
    Ok(interrupter)
}

/// The texts that a finished model writes. One that sees both ways writes none.
fn write_samples(run: &Run, corpus: &str, seed: u64) -> Result<Vec<String>> {
    if !run.model.is_decoder() {
        return Ok(Vec::new());
    }
    let prompt = first_prompt(corpus);
    let sample = |index| write(&run.model, &run.tokenizer, prompt, seed.wrapping_add(index));
    (0..SAMPLES).map(sample).collect()
}

/// Writes a text on the way, which is shown where it is not across the screen.
pub(super) fn sampler(corpus: &str, seed: u64) -> TextSampler {
    let prompt = first_prompt(corpus).to_owned();
    Arc::new(move |model, tokenizer| {
        let sample = model
            .is_decoder()
            .then(|| write(model, tokenizer, &prompt, seed));
        let sample = sample?.unwrap_or_else(|error| error.to_string());
        if !stdout().is_terminal() {
            let _ = writeln!(stderr(), "--- sample ---\n{}\n---", sample.trim());
        }
        Some(sample)
    })
}

/// Where a line starts, or else how the corpus starts.
fn first_prompt(corpus: &str) -> &str {
    match corpus.contains('\n') {
        true => "\n",
        false => &corpus[..corpus.chars().next().map_or(0, char::len_utf8)],
    }
}

fn write(model: &Transformer, tokenizer: &Tokenizer, prompt: &str, seed: u64) -> Result<String> {
    let sampling = SamplingConfig {
        temperature: 0.8,
        top_k: Some(50),
        ..SamplingConfig::default()
    };
    let quietly = |_: &str| ControlFlow::Continue(());
    let writer = Writer {
        model,
        tokenizer,
        marks: Marks::default(),
    };
    let (_, text) = writer.continue_text(prompt, SAMPLE_TOKENS, sampling, seed, quietly)?;
    Ok(text)
}

fn print(summary: &Summary, quality: Quantity, samples: &[String], out: &Path) {
    for (index, sample) in samples.iter().enumerate() {
        println!(
            "--- sample {} of {} ---\n{}\n",
            index + 1,
            samples.len(),
            sample.trim()
        );
    }
    println!("--- {} ---", summary.backend);
    let unit = match quality {
        Quantity::Accuracy => "nats a label",
        Quantity::RootMeanSquaredError => "of squared error",
        _ => "nats a token",
    };
    println!("validation loss   {:.4} {unit}", summary.valid_loss);
    for (name, accuracy) in [
        ("validation", summary.valid_accuracy),
        ("test", summary.test_accuracy),
    ] {
        if let Some(accuracy) = accuracy {
            let name = format!("{name} accuracy");
            println!("{name:<17} {:.2} %", 100.0 * accuracy);
        }
    }
    println!("training loss     {:.4}", summary.train_loss);
    println!("tokens per second {:.0}", summary.tokens_per_second);
    if let (Some(mfu), Some(peak)) = (summary.mfu, summary.peak_flops) {
        println!(
            "utilisation       {:.1} % of the {:.0} GFLOP/s of a matrix product",
            100.0 * mfu,
            peak / 1e9
        );
    }
    println!("parameters        {}", summary.parameters);
    if let Some(loads) = &summary.expert_load {
        for (index, load) in loads.iter().enumerate() {
            let shares: Vec<String> = load.iter().map(|s| format!("{:.0}", 100.0 * s)).collect();
            println!("experts, layer {:<2} {} %", index + 1, shares.join(" "));
        }
    }
    println!("time              {:.0} s", summary.seconds);
    println!("model directory   {}", out.display());
}
