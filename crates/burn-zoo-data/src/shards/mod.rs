//! Packed tokens on disk, memory-mapped: a corpus of any size takes no memory and no time to open.
//!
//! A folder of shards holds
//!
//! - `shard-00000.bin`, …: token ids, 16-bit where the vocabulary fits and else 32-bit, little-endian,
//!   without a header. A shard has its training tokens first, then those for validation, then the test's.
//! - `documents.bin`: where documents begin, 64-bit, little-endian: for each split, all its documents in
//!   order, each as a position among the tokens of the split.
//! - `index.json`: the [`Index`], written last. A folder without it is not finished.

pub mod nanogpt;
mod read;
mod shuffle;
mod split;
mod write;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::tokenizer::{Tokenizer, TokenizerError};

pub use read::{Shards, SplitTokens, TokenSource};
pub use shuffle::Shuffle;
pub(crate) use split::uniform;
pub use split::{Fractions, Split};
pub use write::{ShardBuilder, shard_path, tidy, write_index};

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

/// What the tokens are of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerInfo {
    /// One more than the highest id.
    pub vocab_size: usize,
    /// The token after each document, if there is one.
    pub end_token: Option<u32>,
    /// SHA-256 of the `tokenizer.json`, if it is known.
    pub fingerprint: Option<String>,
}

impl TokenizerInfo {
    /// Of a tokenizer, with its own end token.
    ///
    /// # Errors
    ///
    /// When it cannot be written as JSON.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        Ok(Self {
            vocab_size: tokenizer.vocab_size(),
            end_token: tokenizer.end_token(),
            fingerprint: Some(tokenizer.fingerprint()?),
        })
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use proptest::prelude::*;

    /// Shards of documents, each with its split, and what the splits then hold.
    fn pack(folder: &Path, dtype: DType, shards: &[Vec<(Split, Vec<u32>)>]) -> [Vec<Vec<u32>>; 3] {
        let mut expected: [Vec<Vec<u32>>; 3] = Default::default();
        for (number, documents) in shards.iter().enumerate() {
            let mut shard = ShardBuilder::new(dtype, 60_000).unwrap();
            for (split, document) in documents {
                shard.push(*split, document).unwrap();
                expected[*split as usize].push(document.clone());
            }
            assert!(!ShardBuilder::is_written(folder, number));
            shard.write(folder, number).unwrap();
            assert!(ShardBuilder::is_written(folder, number));
        }
        let tokenizer = TokenizerInfo {
            vocab_size: 60_000,
            ..TokenizerInfo::default()
        };
        write_index(folder, shards.len(), dtype, &tokenizer).unwrap();
        expected
    }

    fn any_shards() -> impl Strategy<Value = Vec<Vec<(Split, Vec<u32>)>>> {
        let split = (0..3usize).prop_map(|split| Split::ALL[split]);
        let document = proptest::collection::vec(0u32..60_000, 0..6);
        proptest::collection::vec(proptest::collection::vec((split, document), 0..6), 0..5)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_range_is_read_across_shards(
            shards in any_shards(),
            wide: bool,
            cuts: [prop::sample::Index; 2],
        ) {
            let folder = tempfile::tempdir().unwrap();
            let dtype = if wide { DType::U32 } else { DType::U16 };
            let expected = pack(folder.path(), dtype, &shards);
            let shards = Shards::open(folder.path()).unwrap();
            shards.verify().unwrap();
            for (split, documents) in Split::ALL.into_iter().zip(&expected) {
                let tokens = shards.split(split);
                let all = documents.concat();
                prop_assert_eq!(tokens.len(), all.len());
                prop_assert_eq!(tokens.len() as u64, shards.index().tokens(split));
                let [a, b] = cuts.map(|cut| cut.index(all.len() + 1));
                let range = a.min(b)..a.max(b);
                let mut read = vec![7];
                TokenSource::from(tokens.clone()).read(range.clone(), &mut read).unwrap();
                prop_assert_eq!(&read[1..], &all[range.clone()]);
                let mut start = 0;
                let mut starts = Vec::new();
                for document in documents {
                    starts.push(start);
                    start += document.len();
                }
                prop_assert_eq!(tokens.n_documents(), documents.len());
                starts.retain(|start| range.contains(start));
                prop_assert_eq!(tokens.document_starts(range), starts);
            }
        }
    }

    fn small(folder: &Path) -> PathBuf {
        let document = (Split::Train, vec![1, 2, 59_999]);
        pack(folder, DType::U16, &[vec![document]]);
        folder.join("shard-00000.bin")
    }

    #[test]
    fn a_file_cut_short_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = small(folder.path());
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes, [1, 0, 2, 0, 0x5f, 0xea]);
        fs::write(&path, &bytes[..4]).unwrap();
        let error = Shards::open(folder.path()).unwrap_err();
        assert!(
            matches!(
                error,
                ShardError::Size {
                    found: 4,
                    expected: 6,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn changed_bytes_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = small(folder.path());
        fs::write(&path, [1, 0, 3, 0, 0x5f, 0xea]).unwrap();
        let shards = Shards::open(folder.path()).unwrap();
        assert!(matches!(shards.verify(), Err(ShardError::Checksum { .. })));
    }

    #[test]
    fn tokens_beyond_the_vocabulary_are_refused() {
        let mut shard = ShardBuilder::new(DType::U16, 10).unwrap();
        shard.push(Split::Valid, &[9]).unwrap();
        let error = shard.push(Split::Valid, &[3, 10]).unwrap_err();
        assert!(
            matches!(
                error,
                ShardError::BeyondVocabulary {
                    position: 2,
                    token: 10,
                    ..
                }
            ),
            "{error}"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = small(folder.path());
        fs::write(&path, [1, 0, 0xff, 0xff, 2, 0]).unwrap();
        let tokens = Shards::open(folder.path()).unwrap().split(Split::Train);
        tokens.read(0..1, &mut Vec::new()).unwrap();
        let error = tokens.read(0..2, &mut Vec::new()).unwrap_err();
        assert!(
            matches!(
                error,
                ShardError::BeyondVocabulary {
                    position: 1,
                    token: 65_535,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_vocabulary_that_16_bits_cannot_hold_is_refused() {
        assert_eq!(DType::of(1 << 16), DType::U16);
        assert_eq!(DType::of((1 << 16) + 1), DType::U32);
        let error = ShardBuilder::new(DType::U16, (1 << 16) + 1).unwrap_err();
        assert!(matches!(error, ShardError::DType { .. }));
        let folder = tempfile::tempdir().unwrap();
        small(folder.path());
        let path = folder.path().join(INDEX);
        let index = fs::read_to_string(&path).unwrap();
        fs::write(&path, index.replace("60000", "70000")).unwrap();
        let error = Shards::open(folder.path()).unwrap_err();
        assert!(
            matches!(
                error,
                ShardError::DType {
                    vocab_size: 70_000,
                    ..
                }
            ),
            "{error}"
        );
        fs::write(&path, index.replace("u16", "u32")).unwrap();
        let error = Shards::open(folder.path()).unwrap_err();
        assert!(
            matches!(error, ShardError::Size { expected: 12, .. }),
            "{error}"
        );
    }
}
