//! `burn-zoo sweep`.

use std::path::PathBuf;

use burn::tensor::Device;
use comfy_table::{CellAlignment, Table, presets};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Serialize, Serializer};

use crate::train::{
    Recipe,
    run::{self, RunError, RunOptions, Start, Summary},
    trainer::Display,
};

use super::{
    BackendArgument, End, Result, end_when_unread, print_json,
    train::{Corpus, parse_override, sampler, stop_on_signals},
};

#[derive(clap::Args)]
pub struct Arguments {
    /// The recipe that all trials share.
    #[arg(value_name = "RECIPE.toml")]
    recipe: PathBuf,
    /// A key of the recipe and its values, such as optimizer.learning_rate=1e-4,3e-4 or, with --random, a
    /// range such as 1e-4..1e-2. May be repeated: all combinations are tried.
    #[arg(long, value_name = "KEY=VALUES", value_parser = parse_axis, required = true)]
    vary: Vec<Axis>,
    /// Try so many combinations drawn at random instead of all; a range by its logarithm.
    #[arg(long, value_name = "N")]
    random: Option<usize>,
    /// Decides what --random draws.
    #[arg(long, default_value_t = 1, requires = "random")]
    seed: u64,
    /// Where each trial gets a model directory. Those that are there are kept, or resumed.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The text to learn from: a file, or a folder of files.
    #[arg(long, value_name = "FILE|DIR")]
    corpus: Option<PathBuf>,
    /// Replaces a value of the recipe in all trials. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_override)]
    set: Vec<(String, String)>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgument,
}

/// A key of the recipe and what it takes in turn.
#[derive(Clone, Debug, PartialEq)]
struct Axis {
    key: String,
    values: Values,
}

#[derive(Clone, Debug, PartialEq)]
enum Values {
    List(Vec<String>),
    /// From the first to the second, both above 0.
    Reals(f64, f64),
    Integers(u64, u64),
}

fn parse_axis(text: &str) -> std::result::Result<Axis, String> {
    let (key, values) = parse_override(text)
        .map_err(|_| "expected KEY=VALUES, such as optimizer.learning_rate=1e-4,3e-4")?;
    let values = match values.split_once("..") {
        Some((low, high)) => parse_range(low, high)?,
        None => Values::List(split_list(&values)),
    };
    match &values {
        Values::List(list) if list.iter().any(String::is_empty) => {
            Err(format!("`{key}` has an empty value"))
        }
        _ => Ok(Axis { key, values }),
    }
}

fn parse_range(low: &str, high: &str) -> std::result::Result<Values, String> {
    let refusal =
        || format!("the range {low}..{high} must be two numbers above 0, the lower first");
    if let (Ok(low), Ok(high)) = (low.parse(), high.parse()) {
        return match 0 < low && low < high {
            true => Ok(Values::Integers(low, high)),
            false => Err(refusal()),
        };
    }
    match (low.parse::<f64>(), high.parse::<f64>()) {
        (Ok(low), Ok(high)) if 0.0 < low && low < high && high.is_finite() => {
            Ok(Values::Reals(low, high))
        }
        _ => Err(refusal()),
    }
}

/// Splits at commas that are in no brackets and no quotes.
fn split_list(text: &str) -> Vec<String> {
    let (mut depth, mut is_quoted) = (0, false);
    let parts = text.split(|character: char| {
        match character {
            '"' => is_quoted = !is_quoted,
            '[' | '{' if !is_quoted => depth += 1,
            ']' | '}' if !is_quoted => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0 && !is_quoted
    });
    parts.map(|part| part.trim().to_owned()).collect()
}

/// What a trial replaces in the recipe.
type Overrides = Vec<(String, String)>;

/// All combinations, the last key changing fastest.
fn grid(axes: &[Axis]) -> Result<Vec<Overrides>> {
    let mut trials = vec![Overrides::new()];
    for Axis { key, values } in axes {
        let Values::List(values) = values else {
            return Err(format!("`{key}` has a range, which needs --random").into());
        };
        let with = |trial: &Overrides| {
            let trial = trial.clone();
            values
                .iter()
                .map(move |value| [&trial[..], &[(key.clone(), value.clone())]].concat())
                .collect::<Vec<_>>()
        };
        trials = trials.iter().flat_map(with).collect();
    }
    Ok(trials)
}

/// Combinations drawn independently; those that were drawn before are left out.
fn draw(axes: &[Axis], count: usize, seed: u64) -> Vec<Overrides> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut trials = Vec::<Overrides>::new();
    for _ in 0..count {
        let mut trial = Overrides::new();
        for Axis { key, values } in axes {
            let mut between = |low: f64, high: f64| {
                let (low, high) = (low.ln(), high.ln());
                (low + (high - low) * random.random::<f64>()).exp()
            };
            let value = match values {
                Values::List(values) => values[random.random_range(0..values.len())].clone(),
                Values::Reals(low, high) => format!("{:.3e}", between(*low, *high)),
                // As likely to be rounded to either end as to another number.
                Values::Integers(low, high) => {
                    let drawn = between(*low as f64, (*high + 1) as f64) as u64;
                    drawn.clamp(*low, *high).to_string()
                }
            };
            trial.push((key.clone(), value));
        }
        if !trials.contains(&trial) {
            trials.push(trial);
        }
    }
    trials
}

/// How a trial ended.
#[derive(Serialize)]
struct Trial {
    #[serde(serialize_with = "as_map")]
    overrides: Overrides,
    directory: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn as_map<S: Serializer>(
    overrides: &Overrides,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(overrides.iter().map(|(key, value)| (key, value)))
}

#[derive(Serialize)]
struct Report {
    /// From the lowest validation loss to the highest, then those that failed.
    trials: Vec<Trial>,
    /// What differs only by the seed, taken together, where there are several seeds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    seeds: Vec<OverSeeds>,
}

/// Trials that differ only by the seed.
#[derive(Serialize)]
struct OverSeeds {
    #[serde(serialize_with = "as_map")]
    overrides: Overrides,
    n_seeds: usize,
    valid_loss: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    test_accuracy: Option<Spread>,
}

/// A mean and the standard deviation of single values from it.
#[derive(Serialize)]
struct Spread {
    mean: f64,
    deviation: f64,
}

impl Spread {
    /// Of at least two values; the deviation is the unbiased estimate from a sample.
    fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares = values.iter().map(|value| (value - mean).powi(2));
        let deviation = (squares.sum::<f64>() / (n - 1.0)).sqrt();
        (values.len() > 1).then_some(Self { mean, deviation })
    }
}

/// Takes together what differs only by the key `seed`, in the order of the trials.
fn over_seeds(trials: &[Trial]) -> Vec<OverSeeds> {
    let mut groups: Vec<(Overrides, Vec<&Summary>)> = Vec::new();
    for trial in trials {
        let mut overrides = trial.overrides.clone();
        overrides.retain(|(key, _)| key != "seed");
        if overrides.len() == trial.overrides.len() {
            continue;
        }
        let Some(summary) = &trial.summary else {
            continue;
        };
        match groups.iter_mut().find(|(known, _)| *known == overrides) {
            Some((_, summaries)) => summaries.push(summary),
            None => groups.push((overrides, vec![summary])),
        }
    }
    let spreads = groups.into_iter().filter_map(|(overrides, summaries)| {
        let losses: Vec<f64> = summaries.iter().map(|summary| summary.valid_loss).collect();
        let accuracies: Option<Vec<f64>> = summaries
            .iter()
            .map(|summary| summary.test_accuracy)
            .collect();
        Some(OverSeeds {
            overrides,
            n_seeds: summaries.len(),
            valid_loss: Spread::of(&losses)?,
            test_accuracy: accuracies.and_then(|accuracies| Spread::of(&accuracies)),
        })
    });
    spreads.collect()
}

pub fn run(arguments: &Arguments) -> Result<End> {
    let axes = &arguments.vary;
    let trials = match arguments.random {
        Some(count) => draw(axes, count, arguments.seed),
        None => grid(axes)?,
    };
    // All recipes before any trial: a mistake in the last shall not show after hours.
    let recipes = trials
        .iter()
        .map(|overrides| read_recipe(arguments, overrides))
        .collect::<Result<Vec<Recipe>>>()?;
    let found = arguments.backend.find()?;
    let interrupter = stop_on_signals()?;
    let mut done = Vec::new();
    for (index, (overrides, recipe)) in trials.into_iter().zip(recipes).enumerate() {
        let directory = arguments.out.join(name(&overrides));
        eprintln!("trial {}: {}", index + 1, name(&overrides));
        let options = RunOptions {
            display: Display::Lines,
            interrupter: interrupter.clone(),
            measures_peak: found.has_peak(),
            ..RunOptions::new(&directory, &found.name)
        };
        let (summary, error) = match train(&recipe, &found.device, options) {
            Ok(Some(summary)) => (Some(summary), None),
            Ok(None) => {
                eprintln!("stopped; the same command goes on");
                return Ok(End::Interrupted);
            }
            Err(error) => (None, Some(super::one_line(&error))),
        };
        if let Some(error) = &error {
            eprintln!("failed: {error}");
        }
        done.push(Trial {
            overrides,
            directory,
            summary,
            error,
        });
        if interrupter.should_stop() && interrupter.error().is_none() {
            return Ok(End::Interrupted);
        }
        interrupter.reset();
    }
    let loss = |trial: &Trial| {
        let summary = trial.summary.as_ref();
        summary.map_or(f64::INFINITY, |summary| summary.valid_loss)
    };
    end_when_unread();
    done.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
    let seeds = over_seeds(&done);
    match arguments.json {
        true => print_json(&Report {
            trials: done,
            seeds,
        })?,
        false => print(axes, &done, &seeds),
    }
    Ok(End::Done)
}

fn read_recipe(arguments: &Arguments, overrides: &Overrides) -> Result<Recipe> {
    let overrides = [&arguments.set[..], overrides].concat();
    let mut recipe = Recipe::read(&arguments.recipe, &overrides)?;
    recipe.locate(arguments.corpus.as_deref())?;
    Ok(recipe)
}

/// A directory's name that says what is tried in it.
fn name(overrides: &Overrides) -> String {
    let parts: Vec<String> = overrides
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let plain = |character: char| match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '=' | '-' | '+' | '_' | ',' => character,
        _ => '_',
    };
    parts.join(",").chars().map(plain).collect()
}

/// Trains, goes on, or reads how a trial ended that is done. None when it was interrupted.
fn train(recipe: &Recipe, device: &Device, options: RunOptions) -> Result<Option<Summary>> {
    let out = options.out.clone();
    let start = match run::saved_recipe(&out, &[]) {
        Ok(saved) if saved == *recipe => match run::saved_summary(&out)? {
            Some(summary) => return Ok(Some(summary)),
            None => Start::Resume,
        },
        Ok(_) => Start::Resume,
        Err(RunError::NothingToResume(_)) => Start::Fresh,
        Err(error) => return Err(error.into()),
    };
    let corpus = Corpus::of(recipe)?;
    let run = run::train(
        recipe,
        corpus.material(),
        device,
        RunOptions {
            start,
            sampler: corpus.text().map(|text| sampler(text, recipe.seed)),
            ..options
        },
    )?;
    Ok(run.summary)
}

fn print(axes: &[Axis], trials: &[Trial], seeds: &[OverSeeds]) {
    let mut table = Table::new();
    let keys = axes.iter().map(|axis| axis.key.as_str());
    let header = ["rank"].into_iter().chain(keys);
    let header = header.chain(["validation loss", "training loss", "tokens/s", "time (s)"]);
    table.load_style(presets::NOTHING).set_header(header);
    for (index, trial) in trials.iter().enumerate() {
        let Some(summary) = &trial.summary else {
            continue;
        };
        let values = trial.overrides.iter().map(|(_, value)| value.clone());
        let rank = (index + 1).to_string();
        table.add_row(std::iter::once(rank).chain(values).chain([
            format!("{:.4}", summary.valid_loss),
            format!("{:.4}", summary.train_loss),
            format!("{:.0}", summary.tokens_per_second),
            format!("{:.0}", summary.seconds),
        ]));
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    for trial in trials {
        match (&trial.summary, &trial.error) {
            (None, Some(error)) => println!("failed: {}: {error}", name(&trial.overrides)),
            _ => continue,
        }
    }
    for group in seeds {
        let OverSeeds {
            n_seeds,
            valid_loss: Spread { mean, deviation },
            ..
        } = group;
        let what = match group.overrides.is_empty() {
            true => String::new(),
            false => format!("{}: ", name(&group.overrides)),
        };
        print!("{what}{n_seeds} seeds: validation loss {mean:.4} ± {deviation:.4}");
        if let Some(Spread { mean, deviation }) = &group.test_accuracy {
            print!(
                ", test accuracy {:.2} ± {:.2} %",
                100.0 * mean,
                100.0 * deviation
            );
        }
        println!();
    }
    if let Some(best) = trials.first().filter(|trial| trial.summary.is_some()) {
        println!("best model  {}", best.directory.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(text: &str) -> Axis {
        parse_axis(text).unwrap()
    }

    #[test]
    fn a_grid_is_all_combinations() {
        let axes = [
            axis("seed=1,2"),
            axis("tokenizer=\"char\",{ bpe = { a = 1, b = [2, 3] } }"),
        ];
        let names: Vec<String> = grid(&axes).unwrap().iter().map(name).collect();
        assert_eq!(names.len(), 4);
        assert_eq!(names[0], "seed=1,tokenizer=_char_");
        assert_eq!(names[3], "seed=2,tokenizer=__bpe_=___a_=_1,_b_=__2,_3_____");
        assert!(grid(&[axis("seed=1..5")]).is_err());
    }

    #[test]
    fn a_range_is_drawn_by_its_logarithm_and_follows_from_the_seed() {
        let axes = [
            axis("optimizer.learning_rate=1e-4..1e-2"),
            axis("loop.batch_size=2..9"),
        ];
        let trials = draw(&axes, 400, 7);
        assert_eq!(trials, draw(&axes, 400, 7));
        let read = |trial: &Overrides, index: usize| trial[index].1.parse::<f64>().unwrap();
        let rates = trials.iter().map(|trial| read(trial, 0));
        let sizes: Vec<f64> = trials.iter().map(|trial| read(trial, 1)).collect();
        assert!(rates.clone().all(|rate| (1e-4..=1e-2).contains(&rate)));
        // Half of the draws are below the geometric middle.
        let low = rates.filter(|&rate| rate < 1e-3).count() as f64 / trials.len() as f64;
        assert!((low - 0.5).abs() < 0.1, "{low}");
        assert!(
            sizes
                .iter()
                .all(|&size| (2.0..=9.0).contains(&size) && size.fract() == 0.0)
        );
        assert!(sizes.contains(&2.0) && sizes.contains(&9.0));
    }

    #[test]
    fn a_spread_is_that_of_a_sample() {
        let Spread { mean, deviation } = Spread::of(&[2.0, 4.0, 9.0]).unwrap();
        assert_eq!(mean, 5.0);
        assert!((deviation - 13f64.sqrt()).abs() < 1e-12);
        assert!(Spread::of(&[1.0]).is_none());
    }

    #[test]
    fn impossible_axes_are_refused() {
        for text in [
            "seed",
            "=1",
            "seed=1,,2",
            "x=5..1",
            "x=0..1",
            "x=a..b",
            "x=-1.0..2.0",
        ] {
            assert!(parse_axis(text).is_err(), "{text}");
        }
    }
}
