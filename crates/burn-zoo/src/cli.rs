//! The command line: results on stdout, progress and messages on stderr.

mod backends;
mod bench;
mod data;
mod embed;
mod eval;
mod forward;
mod generate;
mod merge;
mod models;
mod runs;
mod sweep;
mod train;

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;

use crate::backend::{self, FoundDevice};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// Train transformers, write text with them, and see what this machine can run them on.
#[derive(Parser)]
#[command(name = "burn-zoo", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model and leave a model directory.
    Train(train::Arguments),
    /// Collect, clean, tokenise and pack text.
    #[command(subcommand)]
    Data(data::Command),
    /// Train a recipe with several values of its keys, and rank them.
    Sweep(sweep::Arguments),
    /// Compare runs in a table and one picture.
    Runs(runs::Arguments),
    /// Continue a text with a trained model.
    Generate(generate::Arguments),
    /// Add low-rank adapters to the matrices they were trained beside, and leave a model directory.
    Merge(merge::Arguments),
    /// List the models of the zoo with their sizes, or draw one.
    Models(models::Arguments),
    /// Turn texts into vectors whose angles tell how alike they are.
    Embed(embed::Arguments),
    /// Measure how good a model, or a text, is.
    #[command(subcommand)]
    Eval(eval::Command),
    /// Run a model on token ids and write everything that it gives.
    Forward(forward::Arguments),
    /// List backends, their devices, and what `auto` picks.
    Backends(backends::Arguments),
    /// Measure speed.
    #[command(subcommand)]
    Bench(bench::Command),
}

/// How a command ends, when it does not fail.
enum End {
    Done,
    /// By Ctrl-C, leaving a run that can be resumed.
    Interrupted,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Runs the command that the process's arguments name.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    // A run goes on when nobody reads its progress any more.
    if !matches!(arguments.command, Command::Train(_) | Command::Sweep(_)) {
        end_when_unread();
    }
    match arguments.command {
        // It has threads of its own, as many as it was told to.
        command @ Command::Data(_) => ended(run(command)),
        command => burn_zoo_ops::on_worker(|| ended(run(command))),
    }
}

fn run(command: Command) -> Result<End> {
    match command {
        Command::Train(arguments) => train::run(&arguments),
        Command::Data(command) => data::run(&command),
        Command::Sweep(arguments) => sweep::run(&arguments),
        Command::Runs(arguments) => runs::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Embed(arguments) => embed::run(&arguments),
        Command::Eval(command) => eval::run(&command),
        Command::Merge(arguments) => merge::run(&arguments),
        Command::Models(arguments) => models::run(&arguments),
        Command::Forward(arguments) => forward::run(&arguments),
        Command::Backends(arguments) => backends::run(&arguments),
        Command::Bench(command) => bench::run(&command),
    }
}

fn ended(result: Result<End>) -> ExitCode {
    match result {
        Ok(End::Done) => ExitCode::SUCCESS,
        // What shells report for SIGINT.
        Ok(End::Interrupted) => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// Lets the process end, as other commands do, when the reader of its output has gone: Rust would
/// turn that into a panic.
fn end_when_unread() {
    #[cfg(unix)]
    // SAFETY: restores the default, and no other thread is handling signals.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

fn one_line(message: &impl Display) -> String {
    let message = message.to_string();
    let lines: Vec<&str> = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join(" ")
}

/// Where to compute.
#[derive(clap::Args)]
struct BackendArgument {
    /// auto, a backend such as flex, ndarray, libtorch or wgpu, or a device that `burn-zoo backends`
    /// lists [default: $BURN_ZOO_BACKEND, else auto]
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
}

impl BackendArgument {
    /// Finds the device, and says on stderr what `auto` picked and why.
    fn find(&self) -> Result<FoundDevice> {
        self.find_or(None)
    }

    /// Finds the device, which is that of before unless another is asked for.
    fn find_or(&self, before: Option<String>) -> Result<FoundDevice> {
        let asked = self.backend.clone().or(before);
        let name = asked
            .or_else(|| std::env::var(backend::VARIABLE).ok())
            .unwrap_or_else(|| "auto".to_owned());
        if name != "auto" {
            return Ok(backend::find(&name)?);
        }
        let automatic = backend::automatic()?;
        eprintln!("backend: {} ({})", automatic.device.name, automatic.reason);
        Ok(automatic.device)
    }
}

/// A bar on stderr, seen only on a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec}, {eta} left");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

fn print_json(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
