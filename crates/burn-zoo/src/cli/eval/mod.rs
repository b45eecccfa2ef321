//! `burn-zoo eval`.

mod classify;
mod data;
mod few_shot;
mod generation;
mod perplexity;
mod tasks;

use std::path::PathBuf;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{BackendArgument, End, Result, print_json, progress_bar};
use crate::infer::evaluate::score::Scorer;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Perplexity and bits per byte of a text, read in windows that overlap.
    ///
    /// Each window is `--context` tokens long and begins `--stride` tokens after the one before; only tokens
    /// that no earlier window had count, each predicted from the tokens before it in its window.
    Perplexity(perplexity::Arguments),
    /// Accuracy, F1, Matthews correlation and a confusion matrix of a model that classifies texts; Pearson's
    /// and Spearman's correlation of one that gives numbers.
    Classify(classify::Arguments),
    /// Tasks in the form of lm-evaluation-harness: YAML files with local JSON or JSON Lines documents.
    Tasks(tasks::Arguments),
    /// Classify by prompts of labelled examples and the likelihood of each label's words.
    FewShot(few_shot::Arguments),
    /// BLEU and ROUGE of texts that are already written. Texts that a model is yet to write are for
    /// `tasks`, with the output_type generate_until.
    Generation(generation::Arguments),
}

pub fn run(command: &Command) -> Result<End> {
    match command {
        Command::Perplexity(arguments) => perplexity::run(arguments)?,
        Command::Classify(arguments) => classify::run(arguments)?,
        Command::Tasks(arguments) => tasks::run(arguments)?,
        Command::FewShot(arguments) => few_shot::run(arguments)?,
        Command::Generation(arguments) => generation::run(arguments)?,
    }
    Ok(End::Done)
}

/// The model that scores.
#[derive(clap::Args)]
struct ScorerArguments {
    /// The model directory: a decoder with a language head and a tokenizer.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Tokens, padding included, in one forward pass. Changes speed and memory, not results.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    batch_tokens: usize,
    #[command(flatten)]
    backend: BackendArgument,
}

impl ScorerArguments {
    fn load(&self) -> Result<Scorer> {
        let device = self.backend.find()?.device;
        let scorer = Scorer::load(&self.model, &device)?.with_batch_tokens(self.batch_tokens);
        let bar = progress_bar();
        Ok(scorer.with_progress(move |done, all| {
            if done == all {
                bar.finish_and_clear();
                bar.reset();
            } else {
                bar.set_length(all as u64);
                bar.set_position(done as u64);
            }
        }))
    }
}

/// How results are printed.
#[derive(clap::Args)]
struct Output {
    /// Print JSON.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print tables in Markdown.
    #[arg(long)]
    markdown: bool,
}

impl Output {
    fn print(&self, result: &impl Serialize, sheets: &[Sheet]) -> Result<()> {
        if self.json {
            return print_json(result);
        }
        let tables: Vec<String> = sheets.iter().map(|sheet| sheet.draw(self)).collect();
        println!("{}", tables.join("\n\n"));
        Ok(())
    }
}

/// A table: names in the first column, then numbers.
struct Sheet {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Sheet {
    fn new<T: Into<String>>(header: impl IntoIterator<Item = T>) -> Self {
        Self {
            header: header.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
        }
    }

    fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    fn draw(&self, output: &Output) -> String {
        let mut table = Table::new();
        table.load_style(match output.markdown {
            true => presets::ASCII_MARKDOWN,
            false => presets::NOTHING,
        });
        table.set_header(&self.header);
        for index in 1..self.header.len() {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.add_rows(&self.rows);
        if !output.markdown {
            for column in table.column_iter_mut() {
                column.set_padding((0, 2));
            }
        }
        table.trim_fmt()
    }
}

/// A measure with four digits after the point.
fn number(value: f64) -> String {
    format!("{value:.4}")
}
