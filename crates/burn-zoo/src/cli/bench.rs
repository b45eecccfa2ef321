//! `burn-zoo bench`.

use std::path::PathBuf;

use crate::{
    OWN_TEXT,
    bench::{self, EncodeTimes, GenerateTimes, LayerSizes, OperationTimes, TrainBench, TrainTimes},
    infer::embed::SentenceEncoder,
    models::{directory, family::find_preset, gpt::GptConfig},
    nn::TransformerConfig,
    train::objective::{Recompute, StepConfig},
};
use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{BackendArgument, End, Result, print_json, progress_bar};

#[derive(Subcommand)]
pub enum Command {
    /// Time training steps of a language model.
    Train(TrainArguments),
    /// Time a decoder that reads a prompt and continues it.
    Generate(GenerateArguments),
    /// Time an encoder of sentences.
    Encode(EncodeArguments),
    /// Time each operation beside the same composed from tensor operations, forward and backward.
    Ops(OpsArguments),
}

/// Which model, of random weights.
#[derive(clap::Args)]
struct ModelArguments {
    /// A published size, see `burn-zoo models` [default: a GPT of the sizes that follow]
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    #[arg(long, value_name = "N", default_value_t = 4)]
    n_layers: usize,
    #[arg(long, value_name = "N", default_value_t = 128)]
    d_model: usize,
    #[arg(long, value_name = "N", default_value_t = 4)]
    n_heads: usize,
    #[arg(long, value_name = "N", default_value_t = 65)]
    vocab_size: usize,
    /// Leave biases out of projections and norms.
    #[arg(long)]
    no_bias: bool,
}

impl ModelArguments {
    /// The model; a GPT of these sizes has room for `context_length` tokens.
    fn config(&self, context_length: usize) -> Result<TransformerConfig> {
        if let Some(name) = &self.preset {
            let (_, preset) = find_preset(name)
                .ok_or_else(|| format!("there is no preset `{name}`; see `burn-zoo models`"))?;
            return Ok(preset.architecture()?.transformer);
        }
        let gpt = GptConfig {
            bias: !self.no_bias,
            ..GptConfig::new(self.n_layers, self.n_heads, self.d_model, context_length)
        };
        Ok(gpt.transformer(self.vocab_size)?)
    }
}

/// Where to measure, and how to say what was found.
#[derive(clap::Args)]
struct CommonArguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgument,
}

#[derive(clap::Args)]
pub struct TrainArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Tokens of a sequence.
    #[arg(long, value_name = "N", default_value_t = 64)]
    context_length: usize,
    /// Sequences of a step.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// What the backward pass computes again instead of keeping it.
    #[arg(long, default_value = "nothing", value_parser = recompute())]
    recompute: Recompute,
    /// Copies of the model that take parts of a batch, each with its share of the processor's cores (flex and
    /// libtorch's processor)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    replicas: u64,
    /// Steps to measure whole, and as many part by part.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Steps to run first.
    #[arg(long, value_name = "N", default_value_t = 10)]
    warmup: u32,
    #[command(flatten)]
    common: CommonArguments,
}

/// The names that recipes have for it.
fn recompute() -> impl TypedValueParser<Value = Recompute> {
    PossibleValuesParser::new(["nothing", "block"])
        .try_map(|name| serde_json::from_value::<Recompute>(name.into()))
}

#[derive(clap::Args)]
pub struct GenerateArguments {
    /// A model directory [default: random weights]
    #[arg(value_name = "DIR", conflicts_with = "ModelArguments")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArguments,
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    new_tokens: u32,
    /// Rounds to measure, after the first.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[command(flatten)]
    common: CommonArguments,
}

#[derive(clap::Args)]
pub struct EncodeArguments {
    /// A directory of `sentence-transformers`, or of any encoder.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// A text whose first lines are the sentences [default: the zoo's own source]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    #[arg(long, value_name = "N", default_value_t = 512)]
    sentences: usize,
    /// Rounds to measure, after the first.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[command(flatten)]
    common: CommonArguments,
}

#[derive(clap::Args)]
pub struct OpsArguments {
    #[arg(long, value_name = "N", default_value_t = 384)]
    d_model: usize,
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    n_heads: u32,
    #[arg(long, value_name = "N", default_value_t = 65, value_parser = clap::value_parser!(u32).range(1..))]
    vocab_size: u32,
    /// Tokens of a sequence.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    context_length: u32,
    /// Sequences.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Rounds to measure, after the first.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[command(flatten)]
    common: CommonArguments,
}

#[derive(Serialize)]
struct Report<T> {
    backend: String,
    #[serde(flatten)]
    times: T,
}

/// A name and what was measured, a line each.
type Lines = Vec<(&'static str, String)>;

fn print<T: Serialize>(
    json: bool,
    backend: String,
    times: T,
    lines: impl FnOnce(&T) -> Lines,
) -> Result<End> {
    if json {
        print_json(&Report { backend, times })?;
        return Ok(End::Done);
    }
    println!("{:<19} {backend}", "backend");
    for (name, value) in lines(&times) {
        println!("{name:<19} {value}");
    }
    Ok(End::Done)
}

fn megabytes(bytes: Option<u64>) -> String {
    bytes.map_or("unknown".to_owned(), |bytes| {
        format!("{:.0} MB", bytes as f64 / 1e6)
    })
}

pub fn run(command: &Command) -> Result<End> {
    match command {
        Command::Train(arguments) => train(arguments),
        Command::Generate(arguments) => generate(arguments),
        Command::Encode(arguments) => encode(arguments),
        Command::Ops(arguments) => operations(arguments),
    }
}

fn train(arguments: &TrainArguments) -> Result<End> {
    let config = arguments.model.config(arguments.context_length)?;
    let found = arguments.common.backend.find()?;
    let sizes = [arguments.batch_size as usize, arguments.context_length];
    let step = StepConfig {
        recompute: arguments.recompute,
        replicas: arguments.replicas as usize,
        ..StepConfig::default()
    };
    let mut bench = TrainBench::new(&config, sizes, step, &found.device)?;
    let (warmup, steps) = (arguments.warmup as usize, arguments.steps as usize);
    let bar = progress_bar();
    bar.set_length((warmup + 2 * steps) as u64);
    let times = bench.measure(warmup, steps, found.has_peak(), || bar.inc(1));
    bar.finish_and_clear();
    print(
        arguments.common.json,
        found.name,
        times,
        |times: &TrainTimes| {
            vec![
                ("parameters", times.parameters.to_string()),
                (
                    "step",
                    format!(
                        "{:.2} ms (median of {}; shortest {:.2})",
                        times.step_ms, times.steps, times.min_step_ms
                    ),
                ),
                ("  forward", format!("{:.2} ms", times.forward_ms)),
                ("  backward", format!("{:.2} ms", times.backward_ms)),
                ("  optimizer", format!("{:.2} ms", times.optimizer_ms)),
                (
                    "tokens per second",
                    format!("{:.0}", times.tokens_per_second),
                ),
                (
                    "model operations",
                    match times.mfu.zip(times.peak_gflops) {
                        None => format!("{:.1} GFLOP/s", times.gflops),
                        Some((mfu, peak)) => format!(
                            "{:.1} GFLOP/s, {:.1} % of the matrix product's {peak:.1}",
                            times.gflops,
                            100.0 * mfu
                        ),
                    },
                ),
                ("peak memory", megabytes(times.peak_memory_bytes)),
            ]
        },
    )
}

fn generate(arguments: &GenerateArguments) -> Result<End> {
    let sizes = [arguments.prompt_tokens, arguments.new_tokens].map(|tokens| tokens as usize);
    let found = arguments.common.backend.find()?;
    let (model, config) = match &arguments.directory {
        Some(path) => {
            let (model, architecture) = directory::load(path, &found.device)?;
            (model, architecture.transformer)
        }
        None => {
            let config = arguments.model.config(sizes.iter().sum())?;
            (bench::random_model(&config, &found.device)?, config)
        }
    };
    let bar = progress_bar();
    bar.set_length(u64::from(arguments.rounds + 1) * u64::from(arguments.new_tokens));
    let rounds = arguments.rounds as usize;
    let times = bench::generate(&model, &config, sizes, rounds, || bar.inc(1))?;
    bar.finish_and_clear();
    print(
        arguments.common.json,
        found.name,
        times,
        |times: &GenerateTimes| {
            vec![
                ("prompt", format!("{:.2} ms", times.prefill_ms)),
                (
                    "whole",
                    format!("{:.2} ms (median of {})", times.total_ms, times.rounds),
                ),
                (
                    "tokens per second",
                    format!("{:.1}", times.tokens_per_second),
                ),
                (
                    "  after the first",
                    format!(
                        "{:.1}, {:.1} % of the {:.1} that {:.1} GB/s allow",
                        times.decode_tokens_per_second,
                        100.0 * times.decode_tokens_per_second / times.bandwidth_limit,
                        times.bandwidth_limit,
                        times.read_gb_per_second
                    ),
                ),
                ("  a pass", format!("{:.2} tokens", times.tokens_per_pass)),
                ("peak memory", megabytes(times.peak_memory_bytes)),
            ]
        },
    )
}

fn encode(arguments: &EncodeArguments) -> Result<End> {
    let text = match &arguments.text {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => OWN_TEXT.to_owned(),
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let sentences: Vec<String> = lines.take(arguments.sentences).map(str::to_owned).collect();
    if sentences.is_empty() {
        return Err("there are no sentences: give a --text that has lines".into());
    }
    let found = arguments.common.backend.find()?;
    let encoder = SentenceEncoder::load(&arguments.directory, &found.device)?;
    let bar = progress_bar();
    bar.set_length(u64::from(arguments.rounds) + 1);
    let rounds = arguments.rounds as usize;
    let times = bench::encode(&encoder, &sentences, rounds, || bar.inc(1))?;
    bar.finish_and_clear();
    print(
        arguments.common.json,
        found.name,
        times,
        |times: &EncodeTimes| {
            vec![
                ("sentences", times.sentences.to_string()),
                (
                    "whole",
                    format!("{:.2} ms (median of {})", times.total_ms, times.rounds),
                ),
                ("per second", format!("{:.1}", times.sentences_per_second)),
                ("peak memory", megabytes(times.peak_memory_bytes)),
            ]
        },
    )
}

#[derive(Serialize)]
struct Operations {
    operations: Vec<OperationTimes>,
}

fn operations(arguments: &OpsArguments) -> Result<End> {
    let sizes = LayerSizes {
        batch_size: arguments.batch_size as usize,
        context_length: arguments.context_length as usize,
        d_model: arguments.d_model,
        n_heads: arguments.n_heads as usize,
        vocab_size: arguments.vocab_size as usize,
    };
    if sizes.d_model == 0 || !sizes.d_model.is_multiple_of(sizes.n_heads) {
        let (n_heads, d_model) = (sizes.n_heads, sizes.d_model);
        return Err(
            format!("--d-model {d_model} must be a multiple of --n-heads {n_heads}").into(),
        );
    }
    let found = arguments.common.backend.find()?;
    let operations = bench::operations(sizes, &found.device);
    let bar = progress_bar();
    bar.set_length(operations.len() as u64);
    let times = operations.iter().map(|operation| {
        let times = operation.measure(arguments.rounds as usize);
        bar.inc(1);
        times
    });
    let operations = times.collect();
    bar.finish_and_clear();
    if arguments.common.json {
        let times = Operations { operations };
        let backend = found.name;
        print_json(&Report { backend, times })?;
        return Ok(End::Done);
    }
    println!(
        "on {}, forward and backward in milliseconds, medians of {}\n",
        found.name, arguments.rounds
    );
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["OPERATION", "ZOO", "COMPOSED", "RATIO"]);
    for times in operations {
        let numbers = [times.zoo_ms, times.composed_ms, times.ratio];
        let [zoo, composed, ratio] = numbers.map(|number| format!("{number:.3}"));
        table.add_row([times.name, &zoo, &composed, &ratio]);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{}", table.trim_fmt());
    Ok(End::Done)
}
