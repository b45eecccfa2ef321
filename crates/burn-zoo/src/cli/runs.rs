//! `burn-zoo runs`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{
    models::files,
    train::{
        history,
        plot::{self, Curves},
        run::{self, HISTORY, RECIPE, Summary},
        step_loop::Record,
    },
};

use super::{End, Result, print_json};

#[derive(clap::Args)]
pub struct Arguments {
    /// Runs, or folders of them.
    #[arg(value_name = "DIR", default_value = "runs")]
    directories: Vec<PathBuf>,
    /// Draw the losses and learning rates of all runs into one picture.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A run at a glance.
#[derive(Serialize)]
struct Row {
    directory: PathBuf,
    finished: bool,
    steps: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    train_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    best_valid_loss: Option<f64>,
    /// What is only known at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Summary>,
    #[serde(skip)]
    curves: Curves,
}

pub fn run(arguments: &Arguments) -> Result<End> {
    let mut rows = Vec::new();
    for directory in &arguments.directories {
        let found = find(directory)?;
        if found.is_empty() {
            return Err(format!("{} holds no run", directory.display()).into());
        }
        for run in found {
            rows.push(read(&run)?);
        }
    }
    if let Some(path) = &arguments.plot {
        let curves: Vec<Curves> = rows.iter().map(|row| row.curves.clone()).collect();
        let svg = plot::svg(&curves).ok_or("no run has taken a step that could be drawn")?;
        files::replace_with(path, svg).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    match arguments.json {
        true => print_json(&rows)?,
        false => println!("{}", table(&rows)),
    }
    Ok(End::Done)
}

/// The runs in a directory: itself, or those in its folders, in the order of their names.
fn find(directory: &Path) -> Result<Vec<PathBuf>> {
    let named = |error: io::Error| format!("{}: {error}", directory.display());
    if directory.join(RECIPE).exists() {
        return Ok(vec![directory.to_owned()]);
    }
    let entries = fs::read_dir(directory).map_err(named)?;
    let entries = entries.collect::<io::Result<Vec<_>>>().map_err(named)?;
    let mut folders: Vec<PathBuf> = entries
        .into_iter()
        // Not through links, which may lead in circles.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    folders.sort();
    let found = folders.iter().map(|folder| find(folder));
    Ok(found.collect::<Result<Vec<_>>>()?.concat())
}

fn read(directory: &Path) -> Result<Row> {
    let path = directory.join(HISTORY);
    let records = history::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let summary = run::saved_summary(directory)?;
    let mut steps = records.iter().filter_map(|record| match record {
        Record::Train { step, loss, .. } => Some((*step, *loss)),
        Record::Valid { .. } | Record::Sample { .. } => None,
    });
    let evaluations = records.iter().filter_map(|record| match record {
        Record::Valid { valid_loss, .. } => Some(*valid_loss),
        Record::Train { .. } | Record::Sample { .. } => None,
    });
    let (last_step, last_loss) = steps.next_back().unzip();
    let name = directory.file_name().unwrap_or(directory.as_os_str());
    Ok(Row {
        directory: directory.to_owned(),
        steps: last_step.unwrap_or(0),
        // A summary of a run that was resumed for longer since is an old one.
        finished: summary
            .as_ref()
            .is_some_and(|summary| Some(summary.iterations) >= last_step),
        train_loss: summary
            .as_ref()
            .map(|summary| summary.train_loss)
            .or(last_loss),
        valid_loss: evaluations.clone().next_back(),
        best_valid_loss: evaluations.reduce(f64::min),
        summary,
        curves: Curves::new(name.to_string_lossy(), &records),
    })
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "run",
        "backend",
        "parameters",
        "steps",
        "training loss",
        "validation loss",
        "best",
        "tokens/s",
        "time (s)",
        "MFU",
    ]);
    let loss = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    for row in rows {
        let summary = row.summary.as_ref();
        let known = |show: &dyn Fn(&Summary) -> String| summary.map_or("-".to_owned(), show);
        let unfinished = if row.finished { "" } else { " (unfinished)" };
        table.add_row([
            row.directory.display().to_string(),
            known(&|summary| summary.backend.clone()),
            known(&|summary| summary.parameters.to_string()),
            format!("{}{unfinished}", row.steps),
            loss(row.train_loss),
            loss(row.valid_loss),
            loss(row.best_valid_loss),
            known(&|summary| format!("{:.0}", summary.tokens_per_second)),
            known(&|summary| format!("{:.0}", summary.seconds)),
            known(&|summary| match summary.mfu {
                Some(mfu) => format!("{:.1} %", 100.0 * mfu),
                None => "-".to_owned(),
            }),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
