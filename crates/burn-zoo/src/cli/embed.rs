//! `burn-zoo embed`.

use std::io::Read;
use std::path::PathBuf;

use serde::Serialize;

use super::{BackendArgument, End, Result, print_json};
use crate::infer::embed::SentenceEncoder;

#[derive(clap::Args)]
pub struct Arguments {
    /// A directory of `sentence-transformers`, or of any encoder with a tokenizer.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// A text; give the option again for more.
    #[arg(long, value_name = "TEXT", required_unless_present = "lines")]
    text: Vec<String>,
    /// A file with a text on each line, `-` for stdin.
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,
    /// Print JSON: an array of objects with `text` and `embedding`.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgument,
}

#[derive(Serialize)]
struct Embedded {
    text: String,
    embedding: Vec<f32>,
}

pub fn run(arguments: &Arguments) -> Result<End> {
    let mut texts = arguments.text.clone();
    if let Some(path) = &arguments.lines {
        let mut lines = String::new();
        let read = match path.as_os_str() == "-" {
            true => std::io::stdin().read_to_string(&mut lines).map(drop),
            false => std::fs::read_to_string(path).map(|text| lines = text),
        };
        read.map_err(|error| format!("{}: {error}", path.display()))?;
        texts.extend(lines.lines().map(str::to_owned));
    }
    let device = arguments.backend.find()?.device;
    let encoder = SentenceEncoder::load(&arguments.model, &device)?;
    let vectors = encoder.embed(&texts)?;
    if arguments.json {
        let embedded = texts.into_iter().zip(vectors);
        let embedded: Vec<Embedded> = embedded
            .map(|(text, embedding)| Embedded { text, embedding })
            .collect();
        print_json(&embedded)?;
    } else {
        for vector in vectors {
            let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
            println!("{}", numbers.join(" "));
        }
    }
    Ok(End::Done)
}
