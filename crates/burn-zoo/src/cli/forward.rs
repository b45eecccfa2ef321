//! `burn-zoo forward`.

use std::path::PathBuf;

use super::{BackendArgument, End, Result};
use crate::models::{
    directory,
    inputs::InputFile,
    outputs::{self, named_outputs},
    weights,
};

#[derive(clap::Args)]
pub struct Arguments {
    /// The model directory, of the zoo or of Hugging Face's `transformers`.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// A JSON file with `input_ids`, and where they are needed `attention_mask`, `token_type_ids`,
    /// `decoder_input_ids` and `prefix_lengths`: lists with one entry for each sequence.
    #[arg(long, value_name = "INPUT.json")]
    input: PathBuf,
    /// Where the outputs go, under the names that `transformers` has for them.
    #[arg(long, value_name = "OUT.safetensors")]
    output: PathBuf,
    #[command(flatten)]
    backend: BackendArgument,
}

pub fn run(arguments: &Arguments) -> Result<End> {
    let path = arguments.input.display();
    let text =
        std::fs::read_to_string(&arguments.input).map_err(|error| format!("{path}: {error}"))?;
    let input: InputFile =
        serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))?;
    let device = arguments.backend.find()?.device;
    let (model, architecture) = directory::load(&arguments.model, &device)?;
    let inputs = input
        .inputs(&architecture, &device)
        .map_err(|error| format!("{path}: {error}"))?;
    let outputs = outputs::read(named_outputs(model.outputs(inputs)));
    weights::write(&outputs, &arguments.output)?;
    for (name, (shape, _)) in &outputs {
        println!("{name} {shape:?}");
    }
    Ok(End::Done)
}
