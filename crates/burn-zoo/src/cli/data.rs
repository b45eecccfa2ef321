//! `burn-zoo data`: from text as people have it to packed tokens.

#[cfg(feature = "download")]
mod download;

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::data::{
    pipeline::{self, DataRecipe, Outcome, Progress, Share, Stage, Summary},
    shards::{Shards, Split, TokenizerInfo, nanogpt},
    sources::SourceConfig,
    tokenizer::{Tokenizer, TokenizerConfig},
};
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::train::memory;

use super::train::parse_override;
use super::{End, Result, print_json};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Download a file by URL, or files from the Hugging Face hub.
    #[cfg(feature = "download")]
    Download(download::Arguments),
    /// Collect, clean, tokenise and pack a corpus, or go on where that was interrupted.
    Prepare(Prepare),
    /// Train a tokenizer on texts.
    Tokenizer(TrainTokenizer),
    /// Show what a prepared folder holds.
    Show(Show),
    /// Write prepared tokens as nanoGPT's train.bin and val.bin.
    Export(Export),
    /// Take over tokens from nanoGPT's train.bin and val.bin.
    Import(Import),
}

#[derive(clap::Args)]
pub struct Prepare {
    /// A TOML file that says what the corpus is made of.
    #[arg(value_name = "RECIPE.toml")]
    recipe: PathBuf,
    /// The folder to fill. One that was begun is gone on with.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replaces a value of the recipe, such as chunk_bytes=1000000. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_override)]
    set: Vec<(String, String)>,
    /// Do only the I-th of every N units, from 0, and leave the others to other processes.
    #[arg(long, value_name = "I/N", default_value = "0/1")]
    shard: Share,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct TrainTokenizer {
    /// Files, folders, or patterns.
    #[arg(required = true, value_name = "PATH")]
    sources: Vec<String>,
    /// Where to write the tokenizer.json.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How words become tokens.
    #[arg(long, value_enum, default_value = "bpe")]
    kind: Kind,
    /// How many tokens.
    #[arg(long, default_value_t = 32_000)]
    vocab_size: usize,
    /// A token that is never split, of bpe. May be repeated.
    #[arg(long, value_name = "TOKEN", default_value = "<|endoftext|>")]
    special: Vec<String>,
    /// Tell upper and lower case apart, of wordpiece.
    #[arg(long)]
    cased: bool,
    /// Bytes of text to learn from, at most.
    #[arg(long, default_value_t = 256_000_000)]
    sample_bytes: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Bpe,
    Wordpiece,
    Unigram,
    Char,
}

#[derive(clap::Args)]
pub struct Show {
    /// A folder that `prepare` or `import` filled.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// How many documents of each split to show.
    #[arg(long, default_value_t = 1)]
    documents: usize,
    /// Compare all files with their checksums first.
    #[arg(long)]
    verify: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct Export {
    /// A folder that `prepare` or `import` filled.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Where to write train.bin and val.bin.
    #[arg(long, value_name = "OUT")]
    nanogpt: PathBuf,
}

#[derive(clap::Args)]
pub struct Import {
    /// A folder with train.bin and val.bin.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The tokenizer.json that made the tokens.
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// The folder to fill.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(command: &Command) -> Result<End> {
    match command {
        #[cfg(feature = "download")]
        Command::Download(arguments) => return download::run(arguments),
        Command::Prepare(arguments) => prepare(arguments)?,
        Command::Tokenizer(arguments) => train_tokenizer(arguments)?,
        Command::Show(arguments) => show(arguments)?,
        Command::Export(arguments) => {
            let shards = Shards::open(&arguments.folder.join(pipeline::TOKENS))?;
            nanogpt::export(&shards, &arguments.nanogpt)?;
        }
        Command::Import(arguments) => import(arguments)?,
    }
    Ok(End::Done)
}

fn prepare(arguments: &Prepare) -> Result<()> {
    let recipe = DataRecipe::read(&arguments.recipe, &arguments.set)?;
    let bars = Bars::default();
    let outcome = pipeline::prepare(&recipe, &arguments.out, arguments.shard, &bars);
    bars.end();
    let outcome = outcome?;
    if let Some(bytes) = memory::peak_bytes() {
        eprintln!("peak memory: {} MB", bytes / 1_000_000);
    }
    match outcome {
        Outcome::Done(summary) if arguments.json => print_json(&summary),
        Outcome::Done(summary) => {
            print(&summary);
            println!("folder: {}", arguments.out.display());
            Ok(())
        }
        Outcome::Waiting { missing: 0 } => {
            eprintln!("this share is done; another process does the rest");
            Ok(())
        }
        Outcome::Waiting { missing } => {
            eprintln!(
                "this share is done; {missing} files or groups of files wait for other shares, and whoever \
                 ends last does the rest"
            );
            Ok(())
        }
    }
}

fn print(summary: &Summary) {
    if let Some(report) = &summary.report {
        println!("{}", report.cleaning);
        if report.skipped_rows > 0 {
            println!("rows that could not be read: {}", report.skipped_rows);
        }
    }
    println!("{:<7}{:>14}{:>16}", "split", "documents", "tokens");
    for split in Split::ALL {
        let index = split as usize;
        println!(
            "{:<7}{:>14}{:>16}",
            split.name(),
            summary.documents[index],
            summary.tokens[index]
        );
    }
    println!("vocabulary: {}", summary.vocab_size);
}

fn train_tokenizer(arguments: &TrainTokenizer) -> Result<()> {
    let vocab_size = arguments.vocab_size;
    let config = match arguments.kind {
        Kind::Bpe => TokenizerConfig::Bpe {
            vocab_size,
            special_tokens: arguments.special.clone(),
        },
        Kind::Wordpiece => TokenizerConfig::WordPiece {
            vocab_size,
            lowercase: !arguments.cased,
        },
        Kind::Unigram => TokenizerConfig::Unigram { vocab_size },
        Kind::Char => TokenizerConfig::Char,
    };
    let sources: Vec<SourceConfig> = arguments.sources.iter().map(SourceConfig::new).collect();
    let tokenizer = pipeline::train_tokenizer(&config, &sources, arguments.sample_bytes)?;
    crate::models::files::replace_with(&arguments.out, tokenizer.to_json()?)?;
    println!(
        "{} tokens in {}",
        tokenizer.vocab_size(),
        arguments.out.display()
    );
    Ok(())
}

fn show(arguments: &Show) -> Result<()> {
    let folder = &arguments.folder;
    let summary = Summary::read(folder)?;
    let shards = Shards::open(&folder.join(pipeline::TOKENS))?;
    if arguments.verify {
        shards.verify()?;
    }
    if arguments.json {
        return print_json(&summary);
    }
    print(&summary);
    let tokenizer = Tokenizer::load(&folder.join(pipeline::TOKENIZER))?;
    for split in Split::ALL {
        let tokens = shards.split(split);
        for document in 0..arguments.documents.min(tokens.n_documents()) {
            println!("\n--- {}, document {} ---", split.name(), document + 1);
            println!("{}", beginning(&tokenizer, &tokens.document(document)?)?);
        }
    }
    Ok(())
}

/// The beginning of a document.
fn beginning(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<String> {
    const SHOWN: usize = 120;
    let text = tokenizer.decode(&tokens[..tokens.len().min(SHOWN)])?;
    Ok(match tokens.len() > SHOWN {
        true => format!("{text} …"),
        false => text,
    })
}

fn import(arguments: &Import) -> Result<()> {
    let tokenizer = Tokenizer::load(&arguments.tokenizer)?;
    let info = TokenizerInfo::of(&tokenizer)?;
    nanogpt::import(
        &arguments.folder,
        &arguments.out.join(pipeline::TOKENS),
        &info,
    )?;
    let copy = arguments.out.join(pipeline::TOKENIZER);
    crate::models::files::replace_with(&copy, tokenizer.to_json()?)?;
    print(&Summary::read(&arguments.out)?);
    Ok(())
}

/// A bar for each stage on stderr; now and then a line, where that is no terminal.
#[derive(Default)]
struct Bars(Mutex<Option<Bar>>);

struct Bar {
    bar: ProgressBar,
    last_line: Instant,
}

impl Bars {
    fn end(&self) {
        if let Ok(mut place) = self.0.lock()
            && let Some(Bar { bar, .. }) = place.take()
        {
            bar.finish();
        }
    }
}

impl Progress for Bars {
    fn begin(&self, stage: Stage, bytes: u64) {
        self.end();
        let bar = match stderr().is_terminal() {
            true => ProgressBar::new(bytes),
            false => ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden()),
        };
        let style = ProgressStyle::with_template(
            "{msg:<10} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message(match stage {
            Stage::Download => "download",
            Stage::Collect => "cleaning",
            Stage::Duplicates => "duplicates",
            Stage::Tokenizer => "tokenizer",
            Stage::Pack => "packing",
        });
        if let Ok(mut place) = self.0.lock() {
            let last_line = Instant::now();
            *place = Some(Bar { bar, last_line });
        }
    }

    fn advance(&self, bytes: u64) {
        const BETWEEN_LINES: Duration = Duration::from_secs(30);
        if let Ok(mut place) = self.0.lock()
            && let Some(Bar { bar, last_line }) = place.as_mut()
        {
            bar.inc(bytes);
            if bar.is_hidden() && last_line.elapsed() > BETWEEN_LINES {
                *last_line = Instant::now();
                eprintln!(
                    "{}: {} of {}, {}/s, {} left",
                    bar.message(),
                    HumanBytes(bar.position()),
                    HumanBytes(bar.length().unwrap_or(0)),
                    HumanBytes(bar.per_sec() as u64),
                    HumanDuration(bar.eta()),
                );
            }
        }
    }
}
