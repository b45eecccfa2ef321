//! Texts as vectors: an encoder whose token states are pooled (Reimers & Gurevych 2019,
//! arXiv:1908.10084).
//!
//! A directory of the `sentence-transformers` library says in `modules.json` how states are pooled and
//! whether vectors are normalised.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, iter};

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use burn_zoo_data::tokenizer::{Tokenizer, TokenizerError};
use burn_zoo_models::directory::{self, DirectoryError};
use burn_zoo_nn::{Inputs, Transformer, attention::AttentionPattern};
use burn_zoo_ops::{at_once, cores};
use serde::{Deserialize, de::DeserializeOwned};

use crate::batch;

/// What makes a directory unusable as a sentence encoder.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The model cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The tokenizer cannot be read, or a text not encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// One of the files of `sentence-transformers` is not what it should be.
    #[error("{}: {problem}", path.display())]
    Module {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The model has no states to pool.
    #[error("the model {0}: embeddings need a model that only encodes")]
    NotAnEncoder(&'static str),
}

/// How the states of a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's.
    First,
    /// The last token's.
    Last,
    /// Their mean.
    Mean,
    /// Their sum divided by the root of their number.
    MeanSqrtLength,
    /// The largest of each channel.
    Max,
}

/// What `modules.json` describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedConfig {
    /// One after the other in the vector.
    pub pooling: Vec<Pooling>,
    /// Whether vectors have length 1.
    pub normalize: bool,
    /// Tokens beyond are cut off.
    pub max_length: usize,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PoolingFile {
    pooling_mode: Option<String>,
    pooling_mode_cls_token: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
    pooling_mode_lasttoken: bool,
}

impl PoolingFile {
    fn pooling(&self) -> Option<Vec<Pooling>> {
        if let Some(mode) = &self.pooling_mode {
            let modes = mode.split('+').map(|mode| match mode {
                "cls" => Some(Pooling::First),
                "lasttoken" => Some(Pooling::Last),
                "mean" => Some(Pooling::Mean),
                "mean_sqrt_len_tokens" => Some(Pooling::MeanSqrtLength),
                "max" => Some(Pooling::Max),
                _ => None,
            });
            return modes.collect();
        }
        let modes = [
            (self.pooling_mode_cls_token, Pooling::First),
            (self.pooling_mode_max_tokens, Pooling::Max),
            (self.pooling_mode_mean_tokens, Pooling::Mean),
            (
                self.pooling_mode_mean_sqrt_len_tokens,
                Pooling::MeanSqrtLength,
            ),
            (self.pooling_mode_lasttoken, Pooling::Last),
        ];
        let modes = modes.into_iter().filter(|(is_on, _)| *is_on);
        let modes: Vec<Pooling> = modes.map(|(_, mode)| mode).collect();
        (!modes.is_empty()).then_some(modes)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, EmbedError> {
    let problem = |problem: String| EmbedError::Module {
        path: path.to_owned(),
        problem,
    };
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| problem(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(problem(error.to_string())),
    }
}

/// Where the encoder is, and what follows it. Without `modules.json` means are normalised.
fn read_modules(directory: &Path) -> Result<(PathBuf, EmbedConfig), EmbedError> {
    #[derive(Deserialize)]
    struct EncoderFile {
        max_seq_length: Option<usize>,
    }
    let mut encoder = directory.to_owned();
    let mut config = EmbedConfig {
        pooling: vec![Pooling::Mean],
        normalize: true,
        max_length: usize::MAX,
    };
    let modules = directory.join("modules.json");
    if let Some(list) = read::<Vec<Module>>(&modules)? {
        config.normalize = false;
        for module in list {
            let path = directory.join(&module.path);
            match module.kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => encoder = path,
                "Normalize" => config.normalize = true,
                "Pooling" => {
                    let path = path.join("config.json");
                    let file: Option<PoolingFile> = read(&path)?;
                    let pooling = file.as_ref().and_then(PoolingFile::pooling);
                    config.pooling = pooling.ok_or_else(|| EmbedError::Module {
                        path,
                        problem: "names no pooling that the zoo has: use cls, mean, max, \
                                  mean_sqrt_len_tokens or lasttoken"
                            .to_owned(),
                    })?;
                }
                other => {
                    return Err(EmbedError::Module {
                        path: modules,
                        problem: format!(
                            "has a module `{other}`; the zoo has Transformer, Pooling and Normalize"
                        ),
                    });
                }
            }
        }
    }
    let file: Option<EncoderFile> = read(&encoder.join("sentence_bert_config.json"))?;
    if let Some(length) = file.and_then(|file| file.max_seq_length) {
        config.max_length = length;
    }
    Ok((encoder, config))
}

/// An encoder of texts.
pub struct SentenceEncoder {
    model: Transformer,
    tokenizer: Tokenizer,
    config: EmbedConfig,
    device: Device,
}

impl SentenceEncoder {
    /// Texts that are encoded at once.
    const BATCH: usize = 32;

    /// Reads a directory of `sentence-transformers`, or of any encoder.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or names what the zoo does not have, or the model is no encoder.
    pub fn load(directory: &Path, device: &Device) -> Result<Self, EmbedError> {
        let (folder, mut config) = read_modules(directory)?;
        let (model, architecture) = directory::load(&folder, device)?;
        let tokenizer = Tokenizer::load(&directory::tokenizer(&folder)?)?;
        let blocks = &architecture.transformer.stack.blocks;
        let sees_all = |pattern| pattern == AttentionPattern::Bidirectional;
        if config.max_length == 0 {
            return Err(EmbedError::Module {
                path: folder.join("sentence_bert_config.json"),
                problem: "max_seq_length: must be at least 1, got 0".to_owned(),
            });
        }
        if architecture.transformer.encoder.is_some() {
            return Err(EmbedError::NotAnEncoder("has a decoder"));
        }
        if !blocks.iter().all(|block| sees_all(block.attention.pattern)) {
            return Err(EmbedError::NotAnEncoder("does not look both ways"));
        }
        config.max_length = config.max_length.min(model.context_length());
        Ok(Self {
            model,
            tokenizer,
            config,
            device: device.clone(),
        })
    }

    /// What the directory says.
    pub fn config(&self) -> &EmbedConfig {
        &self.config
    }

    /// A vector for each text. Texts of like length share a batch, which changes nothing but time.
    ///
    /// # Errors
    ///
    /// When a text cannot be encoded.
    pub fn embed<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let tokens = self
            .tokenizer
            .encode_marked(texts, self.config.max_length)?;
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&index| tokens[index].len());
        // Where cores can have a batch each, none waits for another before the last, which is the shortest.
        let batches: Vec<&[usize]> = order.rchunks(Self::BATCH).collect();
        let next = AtomicUsize::new(0);
        let shares = vec![(); cores(&self.device).max(1).min(batches.len())];
        let found = at_once(&self.device, shares, |_, ()| {
            let taken = iter::from_fn(|| batches.get(next.fetch_add(1, Ordering::Relaxed)));
            let vectors = taken.flat_map(|batch| {
                let texts: Vec<&[u32]> = batch.iter().map(|&i| tokens[i].as_slice()).collect();
                batch.iter().copied().zip(self.embed_batch(&texts))
            });
            vectors.collect::<Vec<_>>()
        });
        let mut vectors = vec![Vec::new(); tokens.len()];
        for (index, vector) in found.into_iter().flatten() {
            vectors[index] = vector;
        }
        Ok(vectors)
    }

    fn embed_batch(&self, texts: &[&[u32]]) -> Vec<Vec<f32>> {
        let (tokens, visible) = batch::padded(texts, 0, &self.device);
        let inputs = Inputs {
            visible: Some(visible.clone()),
            ..tokens.into()
        };
        let hidden = self.model.hidden(inputs, None).cast(DType::F32);
        let lengths: Vec<usize> = texts.iter().map(|text| text.len().max(1)).collect();
        let parts = self.config.pooling.iter();
        let parts = parts.map(|&pooling| pool(hidden.clone(), visible.clone(), &lengths, pooling));
        let mut vectors = Tensor::cat(parts.collect(), 1);
        if self.config.normalize {
            let norm = vectors.clone().powi_scalar(2).sum_dim(1).sqrt();
            vectors = vectors / norm.clamp_min(1e-12);
        }
        let [_, width] = vectors.dims();
        let data = vectors.into_data().convert_dtype(DType::F32);
        let values = data.try_to_vec::<f32>().expect("just converted");
        values.chunks(width).map(<[f32]>::to_vec).collect()
    }
}

/// States `[batch, seq, d_model]` of tokens that are real `[batch, seq]` to `[batch, d_model]`.
fn pool(
    hidden: Tensor<3>,
    visible: Tensor<2, Bool>,
    lengths: &[usize],
    pooling: Pooling,
) -> Tensor<2> {
    let [batch, seq, d_model] = hidden.dims();
    let device = hidden.device();
    let real = visible.clone().float().reshape([batch, seq, 1]);
    let count = || real.clone().sum_dim(1).clamp_min(1.0);
    let sum = || (hidden.clone() * real.clone()).sum_dim(1);
    let pooled = match pooling {
        Pooling::First => hidden.narrow(1, 0, 1),
        Pooling::Mean => sum() / count(),
        Pooling::MeanSqrtLength => sum() / count().sqrt(),
        Pooling::Max => {
            let hidden_states = visible.bool_not().reshape([batch, seq, 1]);
            hidden
                .mask_fill(hidden_states.expand([batch, seq, d_model]), -1e9)
                .max_dim(1)
        }
        Pooling::Last => {
            let last: Vec<i64> = lengths.iter().map(|&length| length as i64 - 1).collect();
            let last = Tensor::<3, Int>::from_data(TensorData::new(last, [batch, 1, 1]), &device);
            hidden.gather(1, last.expand([batch, 1, d_model]))
        }
    };
    pooled.squeeze_dim(1)
}
