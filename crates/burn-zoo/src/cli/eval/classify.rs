//! `burn-zoo eval classify`.

use std::path::PathBuf;

use serde::Serialize;

use super::{BackendArgument, Output, Result, Sheet, data, number, progress_bar};
use crate::{
    data::{
        labelled::{Row, Said},
        marked::Reading,
    },
    infer::{
        classify::SequenceClassifier,
        evaluate::classification::{Average, Confusion, FScore, pearson, spearman},
    },
};

#[derive(clap::Args)]
pub struct Arguments {
    /// The model directory: a model whose head classifies sequences, and a tokenizer.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Labelled rows: CSV, TSV, JSON Lines or Parquet, by the file's name. Labels are the names in the model's id2label, or
    /// their numbers; numbers for a model with one label.
    #[arg(value_name = "DATA")]
    data: PathBuf,
    #[command(flatten)]
    columns: data::Columns,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    backend: BackendArgument,
}

#[derive(Serialize)]
struct ClassReport {
    label: String,
    #[serde(flatten)]
    score: FScore,
    support: usize,
}

/// How well classes were told apart.
#[derive(Serialize)]
pub(super) struct Report {
    n_rows: usize,
    pub(super) accuracy: f64,
    /// Of class 1, where there are two.
    #[serde(skip_serializing_if = "Option::is_none")]
    f1: Option<f64>,
    pub(super) macro_f1: f64,
    weighted_f1: f64,
    pub(super) matthews: f64,
    classes: Vec<ClassReport>,
    confusion: Confusion,
}

#[derive(Serialize)]
struct NumberReport {
    n_rows: usize,
    pearson: f64,
    spearman: f64,
    mean_squared_error: f64,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let device = arguments.backend.find()?.device;
    let classifier = SequenceClassifier::load(&arguments.model, &device)?;
    let labels = classifier.labels();
    let columns = &arguments.columns;
    if let [_] = labels {
        let rows = columns.read(&arguments.data, &columns.numbers())?;
        let logits = logits(&classifier, &rows)?;
        let predictions: Vec<f64> = logits.iter().map(|values| values[0].into()).collect();
        return print_numbers(&numbers(&rows), &predictions, &arguments.output);
    }
    let rows = columns.read(&arguments.data, &columns.classes())?;
    let classes = data::classes(&rows, labels, true)?;
    let logits = logits(&classifier, &rows)?;
    let predictions: Vec<usize> = logits.iter().map(|values| highest(values)).collect();
    let report = Report::new(&classes, &predictions, labels)?;
    arguments.output.print(&report, &report.sheets())
}

fn logits(classifier: &SequenceClassifier, rows: &[Row]) -> Result<Vec<Vec<f32>>> {
    let readings: Vec<Reading> = rows.iter().map(|row| row.reading.clone()).collect();
    let bar = progress_bar();
    bar.set_length(readings.len() as u64);
    let logits = classifier.logits(&readings, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(logits)
}

fn numbers(rows: &[Row]) -> Vec<f64> {
    let number = |row: &Row| match row.said {
        Said::Number(number) => number.into(),
        _ => unreachable!("rows were read for their numbers"),
    };
    rows.iter().map(number).collect()
}

fn highest(values: &[f32]) -> usize {
    let classes = 0..values.len();
    let better = |best, class| {
        if values[class] > values[best] {
            class
        } else {
            best
        }
    };
    classes.reduce(better).unwrap_or(0)
}

fn print_numbers(labels: &[f64], predictions: &[f64], output: &Output) -> Result<()> {
    let pairs = labels.iter().zip(predictions);
    let squares: f64 = pairs.map(|(label, found)| (label - found).powi(2)).sum();
    let report = NumberReport {
        n_rows: labels.len(),
        pearson: pearson(labels, predictions)?,
        spearman: spearman(labels, predictions)?,
        mean_squared_error: squares / labels.len() as f64,
    };
    let mut sheet = Sheet::new(["ROWS", "PEARSON", "SPEARMAN", "MEAN SQUARED ERROR"]);
    sheet.row([
        report.n_rows.to_string(),
        number(report.pearson),
        number(report.spearman),
        number(report.mean_squared_error),
    ]);
    output.print(&report, &[sheet])
}

impl Report {
    pub(super) fn new(classes: &[usize], predictions: &[usize], labels: &[String]) -> Result<Self> {
        let confusion = Confusion::new(classes, predictions, labels.len())?;
        let of_class = |(class, label): (usize, &String)| ClassReport {
            label: label.clone(),
            score: confusion.class(class),
            support: confusion.counts[class].iter().sum(),
        };
        Ok(Self {
            n_rows: classes.len(),
            accuracy: confusion.accuracy(),
            f1: (labels.len() == 2).then(|| confusion.average(Average::Binary).f1),
            macro_f1: confusion.average(Average::Macro).f1,
            weighted_f1: confusion.average(Average::Weighted).f1,
            matthews: confusion.matthews(),
            classes: labels.iter().enumerate().map(of_class).collect(),
            confusion,
        })
    }

    fn sheets(&self) -> [Sheet; 3] {
        let mut all = Sheet::new([
            "ROWS",
            "ACCURACY",
            "F1",
            "MACRO F1",
            "WEIGHTED F1",
            "MATTHEWS",
        ]);
        all.row([
            self.n_rows.to_string(),
            number(self.accuracy),
            self.f1.map_or("-".to_owned(), number),
            number(self.macro_f1),
            number(self.weighted_f1),
            number(self.matthews),
        ]);
        let mut classes = Sheet::new(["LABEL", "PRECISION", "RECALL", "F1", "ROWS"]);
        let names = self
            .classes
            .iter()
            .map(|class| format!("as {}", class.label));
        let header = ["CONFUSION".to_owned()].into_iter().chain(names);
        let mut confusion = Sheet::new(header);
        for (class, counts) in self.classes.iter().zip(&self.confusion.counts) {
            let FScore {
                precision,
                recall,
                f1,
            } = class.score;
            let scores = [precision, recall, f1].map(number);
            let cells = [class.label.clone()].into_iter().chain(scores);
            classes.row(cells.chain([class.support.to_string()]));
            let counts = counts.iter().map(usize::to_string);
            confusion.row([class.label.clone()].into_iter().chain(counts));
        }
        [all, classes, confusion]
    }
}
