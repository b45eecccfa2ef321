//! `burn-zoo eval perplexity`.

use std::path::PathBuf;

use serde::Serialize;

use super::{Output, Result, ScorerArguments, Sheet, data, number};
use crate::infer::evaluate::perplexity::{FirstToken, Perplexity, PerplexityConfig, perplexity};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    scorer: ScorerArguments,
    /// The text, in UTF-8.
    #[arg(value_name = "TEXT")]
    text: PathBuf,
    /// The length of a window in tokens [default: the model's context length]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// By how many tokens windows advance [default: half a window]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Score the text's first token too, after the token that begins a text (bos_token_id, else
    /// eos_token_id)
    #[arg(long)]
    bos: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Report {
    perplexity: f64,
    bits_per_byte: f64,
    bits_per_character: f64,
    word_perplexity: f64,
    byte_perplexity: f64,
    loss: f64,
    #[serde(flatten)]
    measured: Perplexity,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let text = data::text(&arguments.text)?;
    let scorer = arguments.scorer.load()?;
    let config = PerplexityConfig {
        context_length: arguments.context,
        stride: arguments.stride,
        first: match arguments.bos {
            true => FirstToken::AfterMark,
            false => FirstToken::NotScored,
        },
    };
    let measured = perplexity(&scorer, &text, config)?;
    let report = Report {
        perplexity: measured.perplexity(),
        bits_per_byte: measured.bits_per_byte(),
        bits_per_character: measured.bits_per_character(),
        word_perplexity: measured.word_perplexity(),
        byte_perplexity: measured.byte_perplexity(),
        loss: measured.loss(),
        measured,
    };
    let mut sheet = Sheet::new(["MEASURE", "VALUE"]);
    for (name, value) in [
        ("perplexity", report.perplexity),
        ("bits per byte", report.bits_per_byte),
        ("bits per character", report.bits_per_character),
        ("word perplexity", report.word_perplexity),
        ("byte perplexity", report.byte_perplexity),
        ("loss (nats per token)", report.loss),
    ] {
        sheet.row([name.to_owned(), number(value)]);
    }
    for (name, count) in [
        ("tokens scored", measured.n_scored),
        ("tokens", measured.n_tokens),
        ("bytes", measured.n_bytes),
        ("context", measured.context_length),
        ("stride", measured.stride),
    ] {
        sheet.row([name.to_owned(), count.to_string()]);
    }
    arguments.output.print(&report, &[sheet])
}
