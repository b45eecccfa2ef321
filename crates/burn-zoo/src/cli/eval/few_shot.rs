//! `burn-zoo eval few-shot`.

use std::path::PathBuf;

use serde::Serialize;

use super::{Output, Result, ScorerArguments, Sheet, classify, data, number};
use crate::{
    data::{labelled::Row, marked::Reading},
    infer::{
        evaluate::deviation,
        few_shot::{Calibration, Example, FewShot, FewShotConfig, Prediction},
    },
};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    scorer: ScorerArguments,
    /// Labelled rows to take examples from: CSV, TSV, JSON Lines or Parquet, by the file's name.
    #[arg(value_name = "TRAIN")]
    train: PathBuf,
    /// Labelled rows to classify.
    #[arg(value_name = "DATA")]
    data: PathBuf,
    #[command(flatten)]
    columns: data::Columns,
    /// How many examples of each class a prompt has
    #[arg(long, value_name = "K", default_value_t = 4)]
    shots: usize,
    /// Repeat with so many choices of examples: the seeds 0, 1, …
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// Correct for the model's preference for some labels, measured on texts that say nothing (contextual
    /// calibration, Zhao et al. 2021)
    #[arg(long)]
    calibrate: bool,
    /// An example, with {text}, {second} where texts come in pairs, and, at its end, {label}; \n is a new line
    #[arg(long, default_value = r"Text: {text}\nLabel: {label}")]
    template: String,
    /// What stands between examples; \n is a new line
    #[arg(long, default_value = r"\n\n")]
    separator: String,
    /// What stands before the first example; \n is a new line
    #[arg(long, default_value = "")]
    instruction: String,
    /// The words that stand for a label, `1=positive`; give the option again for each. A label without
    /// stands for itself
    #[arg(long, value_name = "LABEL=WORDS", value_parser = parse_words)]
    words: Vec<(String, String)>,
    /// Classify the first N rows only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    output: Output,
}

fn parse_words(argument: &str) -> std::result::Result<(String, String), String> {
    let (label, words) = argument
        .split_once('=')
        .ok_or("must be a label, `=`, and its words")?;
    match words.is_empty() {
        true => Err("the words are empty: there is nothing to predict".to_owned()),
        false => Ok((label.to_owned(), words.to_owned())),
    }
}

#[derive(Serialize)]
struct SeedReport {
    seed: u64,
    #[serde(flatten)]
    report: classify::Report,
}

/// A mean over seeds with its standard deviation.
#[derive(Serialize)]
struct Mean {
    mean: f64,
    deviation: Option<f64>,
}

impl Mean {
    fn new(values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.collect();
        Self {
            mean: values.iter().sum::<f64>() / values.len() as f64,
            deviation: deviation(&values),
        }
    }
}

#[derive(Serialize)]
struct Report {
    shots: usize,
    calibrated: bool,
    accuracy: Mean,
    macro_f1: Mean,
    seeds: Vec<SeedReport>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.seeds == 0 {
        return Err("--seeds must be at least 1".into());
    }
    let columns = &arguments.columns;
    let train = columns.read(&arguments.train, &columns.classes())?;
    let mut rows = columns.read(&arguments.data, &columns.classes())?;
    rows.truncate(arguments.limit.unwrap_or(rows.len()).max(1));
    let labels = columns.classes().names(&train);
    let words = words(arguments, &labels)?;
    let classes = data::classes(&rows, &labels, false)?;
    let readings: Vec<Reading> = rows.into_iter().map(|row| row.reading).collect();
    let classes_of_train = data::classes(&train, &labels, false)?;
    let examples = train.into_iter().zip(classes_of_train);
    let examples: Vec<Example> = examples
        .map(|(Row { reading, .. }, class)| Example { reading, class })
        .collect();

    let scorer = arguments.scorer.load()?;
    let mut seeds = Vec::new();
    for seed in 0..arguments.seeds {
        let few_shot = FewShot::new(&scorer, arguments.config(seed), words.clone(), &examples)?;
        let predictions = few_shot.classify(&readings)?.into_iter();
        let predictions: Vec<usize> = predictions.map(|Prediction { class, .. }| class).collect();
        seeds.push(SeedReport {
            seed,
            report: classify::Report::new(&classes, &predictions, &labels)?,
        });
    }
    let report = Report {
        shots: arguments.shots,
        calibrated: arguments.calibrate,
        accuracy: Mean::new(seeds.iter().map(|seed| seed.report.accuracy)),
        macro_f1: Mean::new(seeds.iter().map(|seed| seed.report.macro_f1)),
        seeds,
    };
    arguments.output.print(&report, &[report.sheet()])
}

impl Arguments {
    fn config(&self, seed: u64) -> FewShotConfig {
        let lines = |text: &str| text.replace(r"\n", "\n");
        FewShotConfig {
            template: lines(&self.template),
            separator: lines(&self.separator),
            instruction: lines(&self.instruction),
            shots: self.shots,
            calibration: match self.calibrate {
                true => Calibration::ContentFree,
                false => Calibration::None,
            },
            seed,
        }
    }
}

/// The words of each label.
fn words(arguments: &Arguments, labels: &[String]) -> Result<Vec<String>> {
    let is_unknown = |(label, _): &&(String, String)| !labels.contains(label);
    if let Some((label, _)) = arguments.words.iter().find(is_unknown) {
        let labels = labels.join(", ");
        return Err(format!("--words: there is no label `{label}`, only {labels}").into());
    }
    let words_of = |label: &String| {
        let mut given = arguments.words.iter();
        let given = given.find(|(given, _)| given == label);
        given.map_or(label, |(_, words)| words).clone()
    };
    Ok(labels.iter().map(words_of).collect())
}

impl Report {
    fn sheet(&self) -> Sheet {
        let mut sheet = Sheet::new(["SEED", "ACCURACY", "MACRO F1", "MATTHEWS"]);
        for SeedReport { seed, report } in &self.seeds {
            let [accuracy, macro_f1, matthews] =
                [report.accuracy, report.macro_f1, report.matthews].map(number);
            sheet.row([seed.to_string(), accuracy, macro_f1, matthews]);
        }
        let mean = |mean: &Mean| match mean.deviation {
            Some(deviation) => format!("{} ± {}", number(mean.mean), number(deviation)),
            None => number(mean.mean),
        };
        if self.seeds.len() > 1 {
            let [accuracy, macro_f1] = [&self.accuracy, &self.macro_f1].map(mean);
            sheet.row(["mean".to_owned(), accuracy, macro_f1, String::new()]);
        }
        sheet
    }
}
