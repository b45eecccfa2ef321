//! Text as people have it: a file, or a folder of files.

use std::path::{Path, PathBuf};

use crate::sources::{BadRows, Format, RowProblem, SourceConfig, SourceError};

/// What makes a corpus unusable.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// There is nothing at the path, or it cannot be read.
    #[error("cannot read corpus {}: {source}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// There is no text in it.
    #[error("corpus {} is empty: give a file or folder with UTF-8 text", path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
    },
    /// A file is not UTF-8.
    #[error(
        "{} is not UTF-8: byte 0x{byte:02x} at offset {offset}; convert it (iconv -t UTF-8), or \
         leave it out with `bad_rows = \"skip\"`",
        path.display()
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the first bad byte is.
        offset: u64,
        /// What it is.
        byte: u8,
    },
    /// Something else is wrong with a file, such as a damaged archive.
    #[error(transparent)]
    Source(SourceError),
}

/// A text split into what is learned from and what is held out.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// The first part.
    pub train: String,
    /// The rest.
    pub valid: String,
}

impl Corpus {
    /// Holds out the last `valid_fraction` of the characters of `text`.
    pub fn split(text: &str, valid_fraction: f64) -> Self {
        let n_train = (text.chars().count() as f64 * (1.0 - valid_fraction)) as usize;
        let boundary = text
            .char_indices()
            .nth(n_train)
            .map_or(text.len(), |(offset, _)| offset);
        let (train, valid) = text.split_at(boundary);
        Self {
            train: train.to_owned(),
            valid: valid.to_owned(),
        }
    }
}

/// Reads a file, or all files of a folder in the order of their paths, each starting on a new line.
/// What is hidden, or named in the folder's `.gitignore`, is left out; what is compressed is
/// decompressed, and what is not UTF-8 refused or left out, a file or 16 MiB of a longer one at a time. Returns the text, and
/// how many such pieces are left out.
///
/// # Errors
///
/// When the path cannot be read, holds no text, or holds a file that is not UTF-8 and is not skipped.
pub fn read_text(path: &Path, bad_rows: BadRows) -> Result<(String, u64), CorpusError> {
    let source = SourceConfig::new(path.to_string_lossy());
    let source = source.with_format(Format::Text).with_bad_rows(bad_rows);
    let (mut text, mut skipped) = (String::new(), 0);
    for file in source.files()? {
        let start = text.len();
        let mut documents = file.documents()?;
        for document in &mut documents {
            let document = document?;
            if text.len() == start && !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&document.text);
        }
        skipped += documents.counts().skipped();
    }
    if text.is_empty() {
        return Err(CorpusError::Empty {
            path: path.to_owned(),
        });
    }
    Ok((text, skipped))
}

impl From<SourceError> for CorpusError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Unreadable { path, source } => Self::Unreadable { path, source },
            SourceError::NoFiles { path } => Self::Empty { path: path.into() },
            SourceError::Row {
                origin,
                byte: Some(offset),
                problem: RowProblem::NotUtf8 { byte },
            } => Self::NotUtf8 {
                path: origin.file.as_ref().clone(),
                offset,
                byte,
            },
            other => Self::Source(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_folder_is_read_in_order_without_hidden_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        for (name, text) in [
            ("c.txt", "3"),
            ("a.txt", "1\n"),
            ("b/x", "2"),
            (".git", "no"),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        assert_eq!(
            read_text(folder.path(), BadRows::Refuse).unwrap().0,
            "1\n2\n3"
        );
    }

    #[test]
    fn what_is_not_utf8_is_refused_with_its_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latin1.txt");
        std::fs::write(&path, b"caf\xe9 au lait").unwrap();
        match read_text(&path, BadRows::Refuse).unwrap_err() {
            CorpusError::NotUtf8 { offset, byte, .. } => assert_eq!((offset, byte), (3, 0xe9)),
            other => panic!("{other}"),
        }
        std::fs::write(folder.path().join("good.txt"), "tea").unwrap();
        let text = read_text(folder.path(), BadRows::Skip).unwrap();
        assert_eq!(text, ("tea".to_owned(), 1));
    }

    #[test]
    fn missing_and_empty_corpora_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            read_text(folder.path(), BadRows::Refuse),
            Err(CorpusError::Empty { .. })
        ));
        let missing = folder.path().join("none");
        assert!(matches!(
            read_text(&missing, BadRows::Refuse),
            Err(CorpusError::Unreadable { .. })
        ));
    }

    proptest! {
        #[test]
        fn a_split_loses_nothing(text in ".{0,60}", fraction in 0.0..1.0f64) {
            let corpus = Corpus::split(&text, fraction);
            prop_assert_eq!(format!("{}{}", corpus.train, corpus.valid), text.clone());
            let expected = (text.chars().count() as f64 * (1.0 - fraction)) as usize;
            prop_assert_eq!(corpus.train.chars().count(), expected);
        }
    }
}
