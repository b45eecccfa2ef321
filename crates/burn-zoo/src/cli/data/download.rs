//! `burn-zoo data download`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{End, Result};
use crate::data::download::{Downloader, Hub, HubAddress, check_sha256, file_name};
use crate::models::files;

/// Prints where the files are. An interrupted download goes on where it stopped.
#[derive(clap::Args)]
pub struct Arguments {
    /// https://HOST/FILE, hf://ORG/MODEL[@REVISION]/PATH or hf://datasets/ORG/NAME[@REVISION]/PATH,
    /// where PATH is a file, a folder, or a pattern such as 'data/*.parquet'.
    #[arg(value_name = "URL")]
    address: String,
    /// The file to write [default: for a URL its last part, for the hub its cache folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The SHA-256 that the file must have.
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<End> {
    let bar = bar()?;
    let mut progress = |done: u64, total: Option<u64>| {
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(done);
    };
    let sha256 = arguments.sha256.as_deref();
    let paths = if arguments.address.starts_with("hf://") {
        let address: HubAddress = arguments.address.parse()?;
        let paths = Hub::from_env().fetch(&address, &mut progress)?;
        keep(paths, arguments.out.as_deref(), sha256)?
    } else {
        let name = || PathBuf::from(file_name(&arguments.address));
        let out = arguments.out.clone().unwrap_or_else(name);
        Downloader::default().download(&arguments.address, &out, sha256, &mut progress)?;
        vec![out]
    };
    bar.finish_and_clear();
    for path in paths {
        println!("{}", path.display());
    }
    Ok(End::Done)
}

/// Checks and copies what came from the hub, as asked.
fn keep(paths: Vec<PathBuf>, out: Option<&Path>, sha256: Option<&str>) -> Result<Vec<PathBuf>> {
    if out.is_none() && sha256.is_none() {
        return Ok(paths);
    }
    let [path] = paths.as_slice() else {
        let count = paths.len();
        return Err(format!("--out and --sha256 are for one file, and {count} match").into());
    };
    if let Some(sha256) = sha256 {
        check_sha256(path, sha256)?;
    }
    let Some(out) = out else {
        return Ok(paths);
    };
    let write = |error| format!("{}: {error}", out.display());
    let copied = files::replace(out, |to| io::copy(&mut File::open(path)?, to).map(drop));
    copied.map_err(write)?;
    Ok(vec![out.to_owned()])
}

fn bar() -> Result<ProgressBar> {
    let style = "{bytes}/{total_bytes} [{wide_bar}] {bytes_per_sec} ({eta})";
    Ok(ProgressBar::new(0).with_style(ProgressStyle::with_template(style)?))
}
