//! The model directory: `config.json`, `model.safetensors`, `tokenizer.json`.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn_zoo_nn::{ConfigError, Transformer, TransformerConfig};
use serde::{Deserialize, Serialize};

use crate::{
    files,
    weights::{self, WeightsError},
};

/// The configuration's file name.
pub const CONFIG: &str = "config.json";
/// The weights' file name.
pub const WEIGHTS: &str = "model.safetensors";
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
}

/// What `config.json` holds.
#[derive(Serialize, Deserialize)]
struct ConfigFile {
    model_type: ModelType,
    transformer: TransformerConfig,
}

/// The formats of `config.json` that are understood.
#[derive(Serialize, Deserialize)]
enum ModelType {
    /// The zoo's own: the component tree as it is.
    #[serde(rename = "burn-zoo")]
    BurnZoo,
}

/// Writes `config.json` and `model.safetensors` into a directory, which is made when it is not
/// there.
pub fn save(
    model: &Transformer,
    config: &TransformerConfig,
    directory: &Path,
) -> Result<(), DirectoryError> {
    std::fs::create_dir_all(directory).map_err(|source| DirectoryError::Io {
        path: directory.to_owned(),
        source,
    })?;
    weights::save(model, &directory.join(WEIGHTS))?;
    let contents = ConfigFile {
        model_type: ModelType::BurnZoo,
        transformer: config.clone(),
    };
    let path = directory.join(CONFIG);
    let json = serde_json::to_string_pretty(&contents).map_err(|error| DirectoryError::Config {
        path: path.clone(),
        problem: error.to_string(),
    })?;
    files::replace_with(&path, json).map_err(|source| DirectoryError::Io { path, source })
}

/// Reads `config.json`.
pub fn load_config(directory: &Path) -> Result<TransformerConfig, DirectoryError> {
    let path = directory.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|source| DirectoryError::Io {
        path: path.clone(),
        source,
    })?;
    let broken = |field: String, problem: String| DirectoryError::Config {
        path: path.clone(),
        problem: format!("{field}: {problem}"),
    };
    let mut json = serde_json::Deserializer::from_str(&text);
    let file: ConfigFile = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| broken(error.path().to_string(), error.inner().to_string()))?;
    file.transformer
        .validate()
        .map_err(|ConfigError { field, problem }| {
            broken(format!("transformer.{field}"), problem)
        })?;
    Ok(file.transformer)
}

/// Reads a model onto `device`.
pub fn load(
    directory: &Path,
    device: &Device,
) -> Result<(Transformer, TransformerConfig), DirectoryError> {
    let config = load_config(directory)?;
    let model = weights::load(config.init(device), &directory.join(WEIGHTS))?;
    Ok((model, config))
}
