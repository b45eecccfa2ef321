//! `burn-zoo generate`.

use std::io::{Write, stdout};
use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::{
    data::tokenizer::Tokenizer,
    infer::{
        generate::{Marks, Writer},
        sampling::SamplingConfig,
    },
    models::directory,
};
use serde::Serialize;

use super::{BackendArgument, End, Result, print_json};

#[derive(clap::Args)]
pub struct Arguments {
    /// The model directory.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// The text to continue.
    #[arg(long, default_value = "\n")]
    prompt: String,
    /// How many tokens to add.
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_new_tokens: usize,
    /// Divides the logits; 0 always takes the most likely token.
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    temperature: f32,
    /// Choose among this many of the most likely tokens.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose among the most likely tokens that make up this much probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Makes tokens that are already in the text less likely; 1 does not.
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Decides the draws. Sample n uses seed + n - 1.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// How many texts to write.
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: usize,
    /// Print JSON once done, instead of text as it comes.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgument,
}

#[derive(Serialize)]
struct Sample {
    seed: u64,
    prompt: String,
    text: String,
    tokens: Vec<u32>,
}

pub fn run(arguments: &Arguments) -> Result<End> {
    let sampling = SamplingConfig {
        repetition_penalty: arguments.repetition_penalty,
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
    };
    let device = arguments.backend.find()?.device;
    let tokenizer = Tokenizer::load(&directory::tokenizer(&arguments.model)?)?;
    let (model, architecture) = directory::load(&arguments.model, &device)?;
    let writer = Writer {
        model: &model,
        tokenizer: &tokenizer,
        marks: Marks::of(&architecture),
    };

    let mut samples = Vec::new();
    for index in 0..arguments.samples {
        let seed = arguments.seed.wrapping_add(index as u64);
        if !arguments.json && arguments.samples > 1 {
            println!(
                "--- sample {} of {}, seed {seed} ---",
                index + 1,
                arguments.samples
            );
        }
        let on_text = |text: &str| match arguments.json {
            true => ControlFlow::Continue(()),
            false => show(text),
        };
        let (tokens, text) = writer.continue_text(
            &arguments.prompt,
            arguments.max_new_tokens,
            sampling.clone(),
            seed,
            on_text,
        )?;
        let prompt = arguments.prompt.clone();
        samples.push(Sample {
            seed,
            prompt,
            text,
            tokens,
        });
        if !arguments.json {
            println!();
        }
    }
    if arguments.json {
        print_json(&samples)?;
    }
    Ok(End::Done)
}

/// Prints text at once.
fn show(text: &str) -> ControlFlow<()> {
    print!("{text}");
    match stdout().flush() {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}
