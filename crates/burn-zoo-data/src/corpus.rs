//! Text as people have it: a file, or a folder of files.

use std::path::{Path, PathBuf};

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
        "{} is not UTF-8: byte 0x{byte:02x} at offset {offset}; convert it (iconv -t UTF-8) or \
         leave it out",
        path.display()
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the first bad byte is.
        offset: usize,
        /// What it is.
        byte: u8,
    },
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

/// Reads a file, or all files below a folder in the order of their paths, each starting on a new
/// line. Hidden files and folders are left out.
///
/// # Errors
///
/// When the path cannot be read, holds no text, or holds a file that is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, CorpusError> {
    let mut files = Vec::new();
    collect_files(path, &mut files)?;
    let mut text = String::new();
    for file in &files {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&read_file(file)?);
    }
    if text.is_empty() {
        return Err(CorpusError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(text)
}

fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> CorpusError {
    let path = path.to_owned();
    |source| CorpusError::Unreadable { path, source }
}

fn collect_files(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), CorpusError> {
    let metadata = std::fs::metadata(path).map_err(unreadable(path))?;
    if !metadata.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut entries = std::fs::read_dir(path)
        .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
        .map_err(unreadable(path))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if !entry.file_name().to_string_lossy().starts_with('.') {
            collect_files(&entry.path(), files)?;
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<String, CorpusError> {
    let bytes = std::fs::read(path).map_err(unreadable(path))?;
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        CorpusError::NotUtf8 {
            path: path.to_owned(),
            offset,
            byte: error.as_bytes()[offset],
        }
    })
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
        assert_eq!(read_text(folder.path()).unwrap(), "1\n2\n3");
    }

    #[test]
    fn what_is_not_utf8_is_refused_with_its_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latin1.txt");
        std::fs::write(&path, b"caf\xe9 au lait").unwrap();
        match read_text(&path).unwrap_err() {
            CorpusError::NotUtf8 { offset, byte, .. } => assert_eq!((offset, byte), (3, 0xe9)),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn missing_and_empty_corpora_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            read_text(folder.path()),
            Err(CorpusError::Empty { .. })
        ));
        let missing = folder.path().join("none");
        assert!(matches!(
            read_text(&missing),
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
