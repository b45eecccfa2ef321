//! The model directory: `config.json`, `model.safetensors`, `tokenizer.json`.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn_zoo_nn::{ConfigError, Transformer, init, rotary::RotaryScaling};
use serde_json::{Map, Value};

use crate::{
    adapter::{self, AdapterError},
    family::Architecture,
    files,
    weights::{self, WeightsError},
};

/// The configuration's file name.
pub const CONFIG: &str = "config.json";
pub use crate::weights::WEIGHTS;
/// The tokenizer's file name.
pub const TOKENIZER: &str = "tokenizer.json";

/// What makes a directory unusable as a model.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// `config.json` is not a configuration.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field and what is wrong with it.
        problem: String,
    },
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The adapter does not fit.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

/// Writes `config.json` and `model.safetensors` into a directory, which is made when it is not
/// there.
///
/// # Errors
///
/// When a file cannot be written; what was there is then as it was.
pub fn save(
    model: &Transformer,
    architecture: &Architecture,
    directory: &Path,
) -> Result<(), DirectoryError> {
    std::fs::create_dir_all(directory).map_err(|source| DirectoryError::Io {
        path: directory.to_owned(),
        source,
    })?;
    weights::save(model, &architecture.names, &directory.join(WEIGHTS))?;
    save_config(architecture, directory)
}

/// Writes `config.json`.
///
/// # Errors
///
/// When it cannot be written; what was there is then as it was.
pub fn save_config(architecture: &Architecture, directory: &Path) -> Result<(), DirectoryError> {
    let path = directory.join(CONFIG);
    let mut json = architecture.json.clone();
    for key in ["dtype", "torch_dtype"] {
        // Whatever they were read as, weights are written in 32 bits.
        if let Some(value) = json.get_mut(key) {
            *value = "float32".into();
        }
    }
    let json = serde_json::to_string_pretty(&json).map_err(|error| DirectoryError::Config {
        path: path.clone(),
        problem: error.to_string(),
    })?;
    files::replace_with(&path, json).map_err(|source| DirectoryError::Io { path, source })
}

/// Reads `config.json`: of a family, as the `transformers` library writes it, or of the zoo's own.
///
/// # Errors
///
/// When it cannot be read, or a field is missing, unknown to the zoo, or does not fit; it is named.
pub fn load_config(directory: &Path) -> Result<Architecture, DirectoryError> {
    let path = directory.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|source| DirectoryError::Io {
        path: path.clone(),
        source,
    })?;
    let broken = |problem: String| DirectoryError::Config {
        path: path.clone(),
        problem,
    };
    let json: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
    Architecture::from_json(json).map_err(|error| broken(error.to_string()))
}

/// Reads a model onto `device`, or a model and the [`adapter`] that the directory holds. Its values are in
/// memory once, whatever the file.
///
/// # Errors
///
/// As [`load_config`], and when the weights are missing, damaged, or not those of the configuration;
/// each tensor that does not fit is named.
pub fn load(
    directory: &Path,
    device: &Device,
) -> Result<(Transformer, Architecture), DirectoryError> {
    if adapter::is_there(directory) {
        return adapter::load(directory, device);
    }
    let mut architecture = load_config(directory)?;
    read_frequencies(&mut architecture, directory)?;
    let model = init::shapes_only(|| architecture.transformer.init(device));
    let model = weights::load(model, &architecture.names, directory)?;
    Ok((model, architecture))
}

/// Reads the weights in a directory into another architecture of the same body: what of head and pooler they lack
/// is new, as [`init::seed`] has it. The paths of new parameters are given too.
///
/// # Errors
///
/// As [`load`].
pub fn load_body(
    mut architecture: Architecture,
    directory: &Path,
    device: &Device,
) -> Result<(Transformer, Architecture, Vec<String>), DirectoryError> {
    read_frequencies(&mut architecture, directory)?;
    let config = &architecture.transformer;
    let mut model = init::shapes_only(|| config.init(device));
    config.init_ends(&mut model, device);
    let is_end = |path: &str| path.starts_with("head") || path.starts_with("pooler");
    let (model, new) = weights::load_except(model, &architecture.names, directory, is_end)?;
    Ok((model, architecture, new))
}

/// Where the tokenizer of a model directory is: in it, or, if that holds an [`adapter`] alone, in the directory of the
/// model that it is for.
///
/// # Errors
///
/// When the directory of an adapter does not say what it is for.
pub fn tokenizer(directory: &Path) -> Result<PathBuf, DirectoryError> {
    let path = directory.join(TOKENIZER);
    match !path.exists() && adapter::is_there(directory) {
        true => Ok(adapter::base(directory)?.join(TOKENIZER)),
        false => Ok(path),
    }
}

/// Takes over the frequencies of rotary positions that a checkpoint has in 16 bits, if it has.
fn read_frequencies(
    architecture: &mut Architecture,
    directory: &Path,
) -> Result<(), DirectoryError> {
    if let Some(frequencies) = weights::rounded_frequencies(&architecture.names, directory)? {
        let blocks = &mut architecture.transformer.stack.blocks;
        for rotary in blocks
            .iter_mut()
            .filter_map(|block| block.attention.rotary.as_mut())
        {
            rotary.scaling = RotaryScaling::Given {
                frequencies: frequencies.clone(),
            };
        }
        architecture.names.set_rotary_frequencies(&frequencies);
        let problem = |error: ConfigError| DirectoryError::Config {
            path: directory.join(CONFIG),
            problem: error.to_string(),
        };
        architecture.transformer.validate().map_err(problem)?;
    }
    Ok(())
}
