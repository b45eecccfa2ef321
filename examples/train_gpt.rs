//! Trains a small GPT on the zoo's own source and writes with it: `burn-zoo train` in library calls.
//!
//!     cargo run --release --example train_gpt
//!
//! A first argument sets the number of steps, a second one the folder.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;

use burn_zoo::{
    OWN_TEXT, backend,
    data::tokenizer::TokenizerConfig,
    infer::{
        generate::{Marks, Writer},
        sampling::SamplingConfig,
    },
    models::gpt::GptConfig,
    train::{
        Recipe,
        optimizer::OptimizerConfig,
        recipe::{Adaptation, DataConfig, Documents, LoopConfig, ModelConfig, Objective},
        run::{self, Material, RunOptions, Start},
        schedule::ScheduleConfig,
    },
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let iterations = arguments.next().map_or(Ok(300), |text| text.parse())?;
    let out = arguments
        .next()
        .map_or("runs/train_gpt".into(), PathBuf::from);

    let found = backend::from_environment()?;
    println!("training on {}", found.name);
    let recipe = Recipe {
        seed: 1,
        objective: Objective::CausalLm {
            documents: Documents::Attend,
        },
        tokenizer: Some(TokenizerConfig::Char),
        model: ModelConfig::Gpt(GptConfig::new(4, 4, 128, 64)),
        adaptation: Adaptation::Full,
        data: DataConfig::default(),
        optimizer: OptimizerConfig {
            clip_norm: Some(1.0),
            ..OptimizerConfig::new(1e-3)
        },
        schedule: ScheduleConfig::Cosine {
            warmup_iterations: 30,
            min_learning_rate: 1e-4,
        },
        training: LoopConfig::new(iterations, 12),
    };
    let options = RunOptions {
        start: Start::Overwrite,
        ..RunOptions::new(&out, found.name)
    };
    let run = run::train(&recipe, Material::Text(OWN_TEXT), &found.device, options)?;
    if let Some(summary) = &run.summary {
        println!(
            "validation loss {:.3}, {:.0} tokens per second, model in {}\n",
            summary.valid_loss,
            summary.tokens_per_second,
            out.display()
        );
    }

    let sampling = SamplingConfig {
        temperature: 0.8,
        ..SamplingConfig::default()
    };
    let show = |text: &str| {
        print!("{text}");
        ControlFlow::Continue(())
    };
    let writer = Writer {
        model: &run.model,
        tokenizer: &run.tokenizer,
        marks: Marks::default(),
    };
    writer.continue_text("/// ", 200, sampling, 1, show)?;
    println!();
    Ok(())
}
