//! `burn-zoo merge`.

use std::path::PathBuf;

use crate::models::{
    adapter,
    directory::{self, TOKENIZER},
    files,
};

use super::{BackendArgument, End, Result};

#[derive(clap::Args)]
pub struct Arguments {
    /// The directory of the adapters.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Where to leave the model.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    backend: BackendArgument,
}

pub fn run(arguments: &Arguments) -> Result<End> {
    let Arguments { directory, out, .. } = arguments;
    if !adapter::is_there(directory) {
        return Err(format!("{} holds no {}", directory.display(), adapter::CONFIG).into());
    }
    if out.join(directory::CONFIG).exists() {
        return Err(format!(
            "{} holds a model already: give another --out",
            out.display()
        )
        .into());
    }
    let found = arguments.backend.find()?;
    let (mut model, architecture) = directory::load(directory, &found.device)?;
    adapter::merge(&mut model);
    directory::save(&model, &architecture, out)?;
    let path = directory::tokenizer(directory)?;
    if path.exists() {
        files::replace_with(&out.join(TOKENIZER), std::fs::read(path)?)?;
    }
    println!("{}", out.display());
    Ok(End::Done)
}
