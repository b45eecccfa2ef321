//! `burn-zoo bench`.

use crate::{
    bench::{TrainBench, TrainTimes},
    models::gpt::GptConfig,
};
use clap::Subcommand;
use serde::Serialize;

use super::{BackendArgument, End, Result, print_json};

#[derive(Subcommand)]
pub enum Command {
    /// Time training steps of a GPT.
    Train(TrainArguments),
}

#[derive(clap::Args)]
pub struct TrainArguments {
    #[arg(long, value_name = "N", default_value_t = 4)]
    n_layers: usize,
    #[arg(long, value_name = "N", default_value_t = 128)]
    d_model: usize,
    #[arg(long, value_name = "N", default_value_t = 4)]
    n_heads: usize,
    #[arg(long, value_name = "N", default_value_t = 64)]
    context_length: usize,
    #[arg(long, value_name = "N", default_value_t = 12)]
    batch_size: usize,
    #[arg(long, value_name = "N", default_value_t = 65)]
    vocab_size: usize,
    /// Leave biases out of projections and norms.
    #[arg(long)]
    no_bias: bool,
    /// Steps to measure, after the warm-up.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Steps to run first.
    #[arg(long, value_name = "N", default_value_t = 10)]
    warmup: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgument,
}

#[derive(Serialize)]
struct Report {
    backend: String,
    #[serde(flatten)]
    times: TrainTimes,
}

pub fn run(command: &Command) -> Result<End> {
    match command {
        Command::Train(arguments) => train(arguments),
    }
}

fn train(arguments: &TrainArguments) -> Result<End> {
    let found = arguments.backend.find()?;
    let sizes = [
        arguments.n_layers,
        arguments.n_heads,
        arguments.d_model,
        arguments.context_length,
    ];
    let [n_layers, n_heads, d_model, context_length] = sizes;
    let model = GptConfig {
        bias: !arguments.no_bias,
        ..GptConfig::new(n_layers, n_heads, d_model, context_length)
    };
    if arguments.batch_size == 0 {
        return Err("--batch-size must be at least 1, got 0".into());
    }
    let mut bench = TrainBench::new(
        &model,
        arguments.vocab_size,
        arguments.batch_size,
        &found.device,
    )?;
    let times = bench.measure(arguments.warmup as usize, arguments.steps as usize);
    let report = Report {
        backend: found.name,
        times,
    };
    if arguments.json {
        print_json(&report)?;
    } else {
        let times = &report.times;
        println!("backend           {}", report.backend);
        println!("parameters        {}", times.parameters);
        println!(
            "step              {:.2} ms (median of {})",
            times.step_ms, times.steps
        );
        println!("  forward         {:.2} ms", times.forward_ms);
        println!("  backward        {:.2} ms", times.backward_ms);
        println!("  optimizer       {:.2} ms", times.optimizer_ms);
        println!("tokens per second {:.0}", times.tokens_per_second);
        if let Some(bytes) = times.peak_memory_bytes {
            println!("peak memory       {:.0} MB", bytes as f64 / 1e6);
        }
    }
    Ok(End::Done)
}
