//! `burn-zoo data`.

#[cfg(feature = "download")]
mod download;

use clap::Subcommand;

use super::{End, Result};

#[derive(Subcommand)]
pub enum Command {
    /// Download a file by URL, or files from the Hugging Face hub.
    #[cfg(feature = "download")]
    Download(download::Arguments),
}

pub fn run(command: &Command) -> Result<End> {
    match *command {
        #[cfg(feature = "download")]
        Command::Download(ref arguments) => download::run(arguments),
    }
}
