//! `burn-zoo train`.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::{
    OWN_RECIPE, OWN_TEXT,
    data::corpus::read_text,
    infer::{
        generate::{Marks, Writer},
        sampling::SamplingConfig,
    },
    train::{
        Interrupter, Recipe,
        recipe::ModelConfig,
        run::{self, Material, Run, RunOptions, Start, Summary},
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
    /// What to learn from: a text or a folder of texts; for labels, a folder of tables called train, dev and test.
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
    /// Continue the run that the directory holds, by its own recipe.
    #[arg(long, requires = "out", conflicts_with = "recipe")]
    resume: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgument,
}

fn parse_override(text: &str) -> std::result::Result<(String, String), String> {
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
    let corpus = recipe.data.corpus.as_deref();
    let text = match (recipe.objective.labels(), corpus) {
        (Some(_), _) => None,
        (None, Some(path)) => Some(read_text(path)?),
        (None, None) => Some(OWN_TEXT.to_owned()),
    };
    let material = match (&text, corpus) {
        (Some(text), _) => Material::Text(text),
        (None, Some(path)) => Material::Tables(path),
        (None, None) => {
            return Err("labels are learned from tables: give them with --corpus".into());
        }
    };
    let found = arguments.backend.find()?;
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
        interrupter: stop_on_ctrl_c()?,
        backend: found.name,
    };
    let run = run::train(&recipe, material, &found.device, options)?;
    let Some(summary) = &run.summary else {
        eprintln!(
            "stopped after step {}; continue with: burn-zoo train --resume --out {}",
            run.state.step,
            out.display()
        );
        return Ok(End::Interrupted);
    };
    end_when_unread();
    let samples = match &text {
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
        print(summary, &samples, &out);
    }
    Ok(End::Done)
}

fn read_recipe(arguments: &Arguments) -> Result<Recipe> {
    let mut overrides = arguments.set.clone();
    if let Some(seed) = arguments.seed {
        overrides.push(("seed".to_owned(), seed.to_string()));
    }
    let mut recipe = match (&arguments.recipe, arguments.resume, &arguments.out) {
        (_, true, Some(out)) => run::saved_recipe(out, &overrides)?,
        (Some(path), ..) => Recipe::read(path, &overrides)?,
        _ => Recipe::parse(OWN_RECIPE, &overrides)?,
    };
    if let Some(corpus) = &arguments.corpus {
        recipe.data.corpus = Some(corpus.clone());
    }
    // Absolute, so that the run can be resumed from another folder.
    if let Some(corpus) = &mut recipe.data.corpus {
        *corpus = std::path::absolute(&corpus)?;
    }
    if let ModelConfig::Path(path) = &mut recipe.model {
        *path = std::path::absolute(&path)?;
    }
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

/// The first Ctrl-C stops after the step, the second at once.
fn stop_on_ctrl_c() -> Result<Interrupter> {
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
        handle.stop(Some("Ctrl-C"));
    })?;
    Ok(interrupter)
}

/// Texts that start where a line does, or else as the corpus starts.
fn write_samples(run: &Run, corpus: &str, seed: u64) -> Result<Vec<String>> {
    let sampling = SamplingConfig {
        temperature: 0.8,
        top_k: Some(50),
        ..SamplingConfig::default()
    };
    let prompt = match corpus.contains('\n') {
        true => "\n",
        false => &corpus[..corpus.chars().next().map_or(0, char::len_utf8)],
    };
    let sample = |index: u64| {
        let quietly = |_: &str| ControlFlow::Continue(());
        let writer = Writer {
            model: &run.model,
            tokenizer: &run.tokenizer,
            marks: Marks::default(),
        };
        let (seed, sampling) = (seed.wrapping_add(index), sampling.clone());
        let (_, text) = writer.continue_text(prompt, SAMPLE_TOKENS, sampling, seed, quietly)?;
        Ok(text)
    };
    (0..SAMPLES).map(sample).collect()
}

fn print(summary: &Summary, samples: &[String], out: &Path) {
    for (index, sample) in samples.iter().enumerate() {
        println!(
            "--- sample {} of {} ---\n{}\n",
            index + 1,
            samples.len(),
            sample.trim()
        );
    }
    println!("--- {} ---", summary.backend);
    let unit = match summary.valid_accuracy {
        Some(_) => "nats a label",
        None => "nats a token",
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
