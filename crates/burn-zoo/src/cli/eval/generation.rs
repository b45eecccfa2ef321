//! `burn-zoo eval generation`.

use std::path::PathBuf;

use serde::Serialize;

use super::{Output, Result, Sheet, data, number};
use crate::infer::evaluate::generation::{Bleu, Rouge, bleu, mean_rouge};

#[derive(clap::Args)]
pub struct Arguments {
    /// The texts: one on each line, or, in a .jsonl file, a JSON string on each.
    #[arg(value_name = "PREDICTIONS")]
    predictions: PathBuf,
    /// What they should say, in the same order. Several files give each text several references: BLEU
    /// counts them together, ROUGE takes the one with the highest F1.
    #[arg(value_name = "REFERENCES", required = true)]
    references: Vec<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Report {
    n_texts: usize,
    bleu: Bleu,
    rouge: Rouge,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let predictions = data::texts(&arguments.predictions)?;
    let mut references = vec![Vec::new(); predictions.len()];
    for path in &arguments.references {
        let texts = data::texts(path)?;
        if texts.len() != predictions.len() {
            return Err(format!(
                "{}: has {} texts, but {} has {}",
                path.display(),
                texts.len(),
                arguments.predictions.display(),
                predictions.len()
            )
            .into());
        }
        for (references, text) in references.iter_mut().zip(texts) {
            references.push(text);
        }
    }
    let report = Report {
        n_texts: predictions.len(),
        bleu: bleu(&predictions, &references)?,
        rouge: mean_rouge(&predictions, &references)?,
    };
    let mut bleu = Sheet::new([
        "BLEU", "1-GRAMS", "2-GRAMS", "3-GRAMS", "4-GRAMS", "BREVITY",
    ]);
    let values = [report.bleu.score]
        .into_iter()
        .chain(report.bleu.precisions);
    bleu.row(values.chain([report.bleu.brevity_penalty]).map(number));
    let mut rouge = Sheet::new(["ROUGE", "PRECISION", "RECALL", "F1"]);
    for (name, score) in [
        ("ROUGE-1", report.rouge.rouge1),
        ("ROUGE-2", report.rouge.rouge2),
        ("ROUGE-L", report.rouge.rouge_l),
        ("ROUGE-Lsum", report.rouge.rouge_l_sum),
    ] {
        let [precision, recall, f1] = [score.precision, score.recall, score.f1].map(number);
        rouge.row([name.to_owned(), precision, recall, f1]);
    }
    arguments.output.print(&report, &[bleu, rouge])
}
