//! nanoGPT's data: `train.bin` and `val.bin`, 16-bit token ids in little-endian order without anything
//! around them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use super::{DType, Index, ShardBuilder, ShardError, Shards, Split, TokenizerInfo, write_index};
use burn_zoo_models::files;

/// The names that nanoGPT gives the splits. It knows no test.
pub const FILES: [(Split, &str); 2] = [(Split::Train, "train.bin"), (Split::Valid, "val.bin")];

/// Tokens that are in memory at a time.
const STEP: usize = 1 << 20;
/// Tokens of a shard, at most.
const SHARD: usize = 1 << 26;

/// Writes the training and validation tokens into a folder.
///
/// # Errors
///
/// When the vocabulary does not fit into 16 bits, or a file cannot be read or written.
pub fn export(shards: &Shards, folder: &Path) -> Result<(), ShardError> {
    DType::U16.check(shards.index().vocab_size)?;
    fs::create_dir_all(folder).map_err(ShardError::io(folder))?;
    for (split, name) in FILES {
        let (tokens, path) = (shards.split(split), folder.join(name));
        let mut refused = Ok(());
        let written = files::replace(&path, |file| {
            let (mut ids, mut bytes) = (Vec::new(), Vec::new());
            for start in (0..tokens.len()).step_by(STEP) {
                ids.clear();
                bytes.clear();
                let end = tokens.len().min(start + STEP);
                refused = tokens.read(start..end, &mut ids);
                if refused.is_err() {
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
                DType::U16.write(&ids, &mut bytes);
                file.write_all(&bytes)?;
            }
            Ok(())
        });
        refused?;
        written.map_err(ShardError::io(&path))?;
    }
    Ok(())
}

/// Makes shards of a folder with `train.bin` and, perhaps, `val.bin`, which the tokenizer encoded. A document
/// ends after each of its end tokens; if it has none, each file is a document.
///
/// # Errors
///
/// When `train.bin` is missing, a file has half a token, or a token is not in the vocabulary.
pub fn import(folder: &Path, out: &Path, tokenizer: &TokenizerInfo) -> Result<Index, ShardError> {
    let (vocab_size, end_token) = (tokenizer.vocab_size, tokenizer.end_token);
    fs::create_dir_all(out).map_err(ShardError::io(out))?;
    let mut n_shards = 0;
    for (split, name) in FILES {
        let path = folder.join(name);
        if split == Split::Valid && !path.exists() {
            continue;
        }
        let mut begins = true;
        let mut tokens = Tokens::open(&path, vocab_size)?;
        while tokens.left > 0 {
            let mut shard = ShardBuilder::new(DType::of(vocab_size), vocab_size)?;
            for _ in 0..SHARD / STEP {
                for document in tokens.next()?.split_inclusive(|&id| Some(id) == end_token) {
                    match begins {
                        true => shard.push(split, document)?,
                        false => shard.extend(split, document)?,
                    }
                    begins = document.last().copied() == end_token;
                }
            }
            shard.write(out, n_shards)?;
            n_shards += 1;
        }
    }
    write_index(out, n_shards, DType::of(vocab_size), tokenizer)
}

/// A file of 16-bit tokens, read in steps.
struct Tokens<'a> {
    path: &'a Path,
    file: File,
    vocab_size: usize,
    position: usize,
    left: usize,
}

impl<'a> Tokens<'a> {
    fn open(path: &'a Path, vocab_size: usize) -> Result<Self, ShardError> {
        let file = File::open(path).map_err(ShardError::io(path))?;
        let bytes = file.metadata().map_err(ShardError::io(path))?.len();
        let left = bytes as usize / DType::U16.size();
        if bytes % 2 != 0 {
            return Err(ShardError::Size {
                path: path.to_owned(),
                what: format!("{} tokens of u16", left + 1),
                found: bytes,
                expected: bytes + 1,
            });
        }
        Ok(Self {
            path,
            file,
            vocab_size,
            position: 0,
            left,
        })
    }

    /// The next tokens; none at the end.
    fn next(&mut self) -> Result<Vec<u32>, ShardError> {
        let count = self.left.min(STEP);
        let mut bytes = vec![0; count * DType::U16.size()];
        let read = self.file.read_exact(&mut bytes);
        read.map_err(ShardError::io(self.path))?;
        let mut tokens = Vec::with_capacity(count);
        DType::U16.read(&bytes, &mut tokens);
        let is_beyond = |&token: &u32| token as usize >= self.vocab_size;
        if let Some(place) = tokens.iter().position(is_beyond) {
            return Err(ShardError::BeyondVocabulary {
                path: self.path.to_owned(),
                position: self.position + place,
                token: tokens[place],
                vocab_size: self.vocab_size,
            });
        }
        self.position += count;
        self.left -= count;
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, tokens: &[u16]) {
        let bytes: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
        fs::write(folder.join(name), bytes).unwrap();
    }

    #[test]
    fn what_goes_in_comes_out() {
        let folder = tempfile::tempdir().unwrap();
        let [given, packed, out] = ["given", "packed", "out"].map(|name| folder.path().join(name));
        fs::create_dir(&given).unwrap();
        let train: Vec<u16> = (0..3_000_000u64).map(|i| (i * i % 50_257) as u16).collect();
        write(&given, "train.bin", &train);
        write(&given, "val.bin", &[1, 2, 0, 3, 0]);
        let gpt2 = TokenizerInfo {
            vocab_size: 50_257,
            end_token: Some(0),
            fingerprint: None,
        };
        import(&given, &packed, &gpt2).unwrap();
        let shards = Shards::open(&packed).unwrap();
        shards.verify().unwrap();
        let valid = shards.split(Split::Valid);
        assert_eq!(valid.document_starts(0..5), [0, 3]);
        let zeros = train.iter().filter(|&&id| id == 0).count();
        assert_eq!(
            shards.split(Split::Train).n_documents(),
            zeros + usize::from(train.last() != Some(&0))
        );
        export(&shards, &out).unwrap();
        for (_, name) in FILES {
            assert_eq!(
                fs::read(given.join(name)).unwrap(),
                fs::read(out.join(name)).unwrap()
            );
        }
    }

    #[test]
    fn half_a_token_and_foreign_tokens_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let small = TokenizerInfo {
            vocab_size: 100,
            ..TokenizerInfo::default()
        };
        fs::write(folder.path().join("train.bin"), [1, 0, 2]).unwrap();
        let error = import(folder.path(), &out, &small).unwrap_err();
        assert!(
            matches!(
                error,
                ShardError::Size {
                    found: 3,
                    expected: 4,
                    ..
                }
            ),
            "{error}"
        );
        write(folder.path(), "train.bin", &[1, 2, 100]);
        let error = import(folder.path(), &out, &small).unwrap_err();
        assert!(
            matches!(
                error,
                ShardError::BeyondVocabulary {
                    position: 2,
                    token: 100,
                    ..
                }
            ),
            "{error}"
        );
    }
}
