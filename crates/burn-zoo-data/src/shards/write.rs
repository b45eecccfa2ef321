//! Writing shards and their index.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use twox_hash::XxHash3_64;

use super::{
    DOCUMENTS, DType, INDEX, Index, ShardError, ShardInfo, Split, TokenizerInfo, checksum,
};
use burn_zoo_models::files;

/// The file of a shard.
pub fn shard_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("shard-{number:05}.bin"))
}

/// What a shard is described by until the index is written.
fn info_path(shard: &Path) -> PathBuf {
    shard.with_extension("json")
}

/// Where its documents begin, until the index is written: for each split, 64-bit positions within the
/// shard's part of the split.
fn starts_path(shard: &Path) -> PathBuf {
    shard.with_extension("documents")
}

/// Collects the documents of one shard, which is in memory until it is written.
#[derive(Debug)]
pub struct ShardBuilder {
    dtype: DType,
    vocab_size: usize,
    tokens: [Vec<u8>; 3],
    starts: [Vec<u64>; 3],
}

impl ShardBuilder {
    /// An empty shard.
    ///
    /// # Errors
    ///
    /// When the vocabulary does not fit into the type.
    pub fn new(dtype: DType, vocab_size: usize) -> Result<Self, ShardError> {
        dtype.check(vocab_size)?;
        Ok(Self {
            dtype,
            vocab_size,
            tokens: Default::default(),
            starts: Default::default(),
        })
    }

    /// Appends a document.
    ///
    /// # Errors
    ///
    /// When a token is not in the vocabulary.
    pub fn push(&mut self, split: Split, document: &[u32]) -> Result<(), ShardError> {
        self.starts[split as usize].push(self.n_tokens(split));
        self.extend(split, document)
    }

    /// Appends to the last document.
    pub(super) fn extend(&mut self, split: Split, tokens: &[u32]) -> Result<(), ShardError> {
        let is_beyond = |token: &u32| *token as usize >= self.vocab_size;
        if let Some(place) = tokens.iter().position(is_beyond) {
            return Err(ShardError::BeyondVocabulary {
                path: PathBuf::from(split.name()),
                position: self.n_tokens(split) as usize + place,
                token: tokens[place],
                vocab_size: self.vocab_size,
            });
        }
        self.dtype.write(tokens, &mut self.tokens[split as usize]);
        Ok(())
    }

    fn n_tokens(&self, split: Split) -> u64 {
        (self.tokens[split as usize].len() / self.dtype.size()) as u64
    }

    /// Writes the shard. What describes it is written last.
    pub fn write(self, folder: &Path, number: usize) -> Result<(), ShardError> {
        let path = shard_path(folder, number);
        let mut hasher = XxHash3_64::new();
        self.tokens.iter().for_each(|tokens| hasher.write(tokens));
        files::replace(&path, |file| {
            self.tokens
                .iter()
                .try_for_each(|tokens| file.write_all(tokens))
        })
        .map_err(ShardError::io(&path))?;
        let starts = starts_path(&path);
        files::replace(&starts, |file| {
            let mut starts = self.starts.iter().flatten();
            starts.try_for_each(|start| file.write_all(&start.to_le_bytes()))
        })
        .map_err(ShardError::io(&starts))?;
        let info = ShardInfo {
            file: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            checksum: checksum(hasher.finish()),
            tokens: Split::ALL.map(|split| self.n_tokens(split)),
            documents: Split::ALL.map(|split| self.starts[split as usize].len() as u64),
        };
        let info_path = info_path(&path);
        let json = serde_json::to_string(&info).map_err(|error| ShardError::Index {
            path: info_path.clone(),
            problem: error.to_string(),
        })?;
        files::replace_with(&info_path, json).map_err(ShardError::io(&info_path))
    }

    /// Whether a shard was written whole and waits for its index.
    pub fn is_written(folder: &Path, number: usize) -> bool {
        info_path(&shard_path(folder, number)).exists()
    }
}

/// Writes the index over the first `n_shards` shards of a folder, and gathers where their documents begin.
///
/// # Errors
///
/// When one of the shards was not written, or the index cannot be.
pub fn write_index(
    folder: &Path,
    n_shards: usize,
    dtype: DType,
    tokenizer: &TokenizerInfo,
) -> Result<Index, ShardError> {
    let paths: Vec<PathBuf> = (0..n_shards)
        .map(|number| shard_path(folder, number))
        .collect();
    let shards: Result<Vec<ShardInfo>, _> = paths.iter().map(|path| read_info(path)).collect();
    let mut index = Index {
        dtype,
        vocab_size: tokenizer.vocab_size,
        tokenizer: tokenizer.fingerprint.clone(),
        end_token: tokenizer.end_token,
        documents_checksum: String::new(),
        shards: shards?,
    };
    index.documents_checksum = gather_documents(folder, &paths, &index)?;
    let path = folder.join(INDEX);
    let json = serde_json::to_string_pretty(&index).map_err(|error| ShardError::Index {
        path: path.clone(),
        problem: error.to_string(),
    })?;
    files::replace_with(&path, json + "\n").map_err(ShardError::io(&path))?;
    tidy(folder, n_shards)?;
    Ok(index)
}

/// Removes from a folder with an index what it was gathered from: the index says all of it.
///
/// # Errors
///
/// When a file cannot be removed.
pub fn tidy(folder: &Path, n_shards: usize) -> Result<(), ShardError> {
    for path in (0..n_shards).map(|number| shard_path(folder, number)) {
        for path in [info_path(&path), starts_path(&path)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(ShardError::io(&path)(error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn read_info(shard: &Path) -> Result<ShardInfo, ShardError> {
    let path = info_path(shard);
    let json = fs::read_to_string(&path).map_err(ShardError::io(&path))?;
    serde_json::from_str(&json).map_err(|error| ShardError::Index {
        path,
        problem: error.to_string(),
    })
}

/// Writes the starts of all documents, split by split, and gives their checksum.
fn gather_documents(folder: &Path, paths: &[PathBuf], index: &Index) -> Result<String, ShardError> {
    let path = folder.join(DOCUMENTS);
    let mut hasher = XxHash3_64::new();
    files::replace(&path, |file| {
        for split in Split::ALL {
            let mut offset = 0;
            for (path, shard) in paths.iter().zip(&index.shards) {
                let before: u64 = shard.documents[..split as usize].iter().sum();
                let mut starts = BufReader::new(File::open(starts_path(path))?);
                starts.seek_relative(8 * before as i64)?;
                for _ in 0..shard.documents[split as usize] {
                    let mut start = [0; 8];
                    starts.read_exact(&mut start)?;
                    let start = (offset + u64::from_le_bytes(start)).to_le_bytes();
                    hasher.write(&start);
                    file.write_all(&start)?;
                }
                offset += shard.tokens[split as usize];
            }
        }
        Ok(())
    })
    .map_err(ShardError::io(&path))?;
    Ok(checksum(hasher.finish()))
}
