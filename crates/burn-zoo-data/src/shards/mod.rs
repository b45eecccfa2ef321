//! Packed tokens on disk, memory-mapped: a corpus of any size takes no memory and no time to open.
//!
//! A folder of shards holds
//!
//! - `shard-00000.bin`, …: token ids, 16-bit where the vocabulary fits and else 32-bit, little-endian,
//!   without a header. A shard has its training tokens first, then those for validation, then the test's.
//! - `documents.bin`: where documents begin, 64-bit, little-endian: for each split, all its documents in
//!   order, each as a position among the tokens of the split.
//! - `index.json`: the [`Index`], written last. A folder without it is not finished.

mod read;
mod shuffle;
mod split;
mod write;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use read::{Shards, SplitTokens, TokenSource};
pub use shuffle::Shuffle;
pub use split::{Fractions, Split};
pub use write::{ShardBuilder, shard_path, write_index};

/// The name of the [`Index`].
pub const INDEX: &str = "index.json";
/// The name of the file of document starts.
pub const DOCUMENTS: &str = "documents.bin";

/// What is wrong with packed tokens.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The index is not one.
    #[error("{} is not an index of token shards: {problem}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file has not the size that its contents need.
    #[error(
        "{} has {found} bytes, but {what} need {expected}: the file was cut or replaced; pack the corpus \
         again",
        path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: String,
        /// How large it is.
        found: u64,
        /// How large it should be.
        expected: u64,
    },
    /// The contents of a file have changed.
    #[error("{} does not have the checksum in the index; pack the corpus again", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
    },
    /// The numbers of a file are too small for the vocabulary.
    #[error("token ids of a vocabulary of {vocab_size} do not fit into {dtype}")]
    DType {
        /// How the ids are stored.
        dtype: DType,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// A token is not in the vocabulary.
    #[error(
        "{}: token {position} is {token}, but the vocabulary has {vocab_size}: these tokens are of \
         another tokenizer",
        path.display()
    )]
    BeyondVocabulary {
        /// The file or folder.
        path: PathBuf,
        /// Which token, from 0, in the file or split.
        position: usize,
        /// The id.
        token: u32,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
}

impl ShardError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

/// How a token id is stored, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// 16 bits, for vocabularies of at most 65536.
    U16,
    /// 32 bits.
    U32,
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::U16 => "u16",
            Self::U32 => "u32",
        })
    }
}

impl DType {
    /// The smallest that holds a vocabulary.
    pub fn of(vocab_size: usize) -> Self {
        match vocab_size <= 1 << 16 {
            true => Self::U16,
            false => Self::U32,
        }
    }

    /// Bytes of one token.
    pub fn size(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// Refuses a vocabulary with ids that cannot be stored.
    fn check(self, vocab_size: usize) -> Result<(), ShardError> {
        match self.size() < Self::of(vocab_size).size() {
            true => Err(ShardError::DType {
                dtype: self,
                vocab_size,
            }),
            false => Ok(()),
        }
    }

    /// Appends the bytes of tokens, which must fit.
    fn write(self, tokens: &[u32], into: &mut Vec<u8>) {
        match self {
            Self::U16 => into.extend(tokens.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            Self::U32 => into.extend(tokens.iter().flat_map(|id| id.to_le_bytes())),
        }
    }

    /// Appends the tokens of bytes.
    fn read(self, bytes: &[u8], into: &mut Vec<u32>) {
        match self {
            Self::U16 => {
                let (ids, _) = bytes.as_chunks();
                into.extend(ids.iter().map(|&id| u32::from(u16::from_le_bytes(id))));
            }
            Self::U32 => {
                let (ids, _) = bytes.as_chunks();
                into.extend(ids.iter().map(|&id| u32::from_le_bytes(id)));
            }
        }
    }
}

/// What a folder of shards holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// How token ids are stored.
    pub dtype: DType,
    /// One more than the highest id that the tokenizer gives.
    pub vocab_size: usize,
    /// SHA-256 of the tokenizer's `tokenizer.json`, in hexadecimal digits, if it is known.
    pub tokenizer: Option<String>,
    /// The token after each document, if there is one.
    pub end_token: Option<u32>,
    /// XXH3-64 of `documents.bin`, in hexadecimal digits.
    pub documents_checksum: String,
    /// The shards in order.
    pub shards: Vec<ShardInfo>,
}

/// What a shard holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardInfo {
    /// The file's name.
    pub file: String,
    /// XXH3-64 of the file, in hexadecimal digits.
    pub checksum: String,
    /// Tokens of each [split](Split::ALL).
    pub tokens: [u64; 3],
    /// Documents of each split.
    pub documents: [u64; 3],
}

impl Index {
    /// Tokens of a split in all shards.
    pub fn tokens(&self, split: Split) -> u64 {
        let tokens = self.shards.iter().map(|shard| shard.tokens[split as usize]);
        tokens.sum()
    }

    /// Documents of a split in all shards.
    pub fn documents(&self, split: Split) -> u64 {
        let counts = self
            .shards
            .iter()
            .map(|shard| shard.documents[split as usize]);
        counts.sum()
    }
}

fn checksum(hash: u64) -> String {
    format!("{hash:016x}")
}
