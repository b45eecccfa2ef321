//! What can be wrong with a file or a row.

use std::io;
use std::path::{Path, PathBuf};

use crate::document::Origin;

/// What makes a source unusable.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is nothing at the path, or it cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A folder is empty, or a pattern matches nothing.
    #[error(
        "no file to read at {path}: give a file, a folder with files, or a pattern that matches some"
    )]
    NoFiles {
        /// The path or pattern.
        path: String,
    },
    /// There is a checksum for something that is here already.
    #[error("{path} is not downloaded: `sha256` is for addresses, leave it out")]
    NotDownloaded {
        /// The path or pattern.
        path: String,
    },
    /// A pattern is not one.
    #[error("{pattern} is no pattern: {message}")]
    Pattern {
        /// As it was given.
        pattern: String,
        /// What is wrong.
        message: String,
    },
    /// A row is bad; [`BadRows::Skip`](super::BadRows::Skip) leaves it out.
    #[error("{origin}: {problem}{}; correct it, or set `bad_rows = \"skip\"`", at_byte(*byte))]
    Row {
        /// Which row of which file.
        origin: Origin,
        /// Where in the file, decompressed, counted from 0.
        byte: Option<u64>,
        /// What is wrong.
        problem: RowProblem,
    },
    /// A table has no column of that name.
    #[error("{}: no column {column:?}; there are {}{}", file.display(), listed(columns), hint(columns))]
    NoColumn {
        /// The table.
        file: PathBuf,
        /// What was asked for.
        column: String,
        /// What is there.
        columns: Vec<String>,
    },
    /// A row was asked for in a format without any.
    #[error("{}: has no columns; give a JSONL, CSV, TSV or Parquet file", file.display())]
    NoColumns {
        /// The file.
        file: PathBuf,
    },
    /// A row is so long that reading on would fill the memory.
    #[error(
        "{origin}: longer than {limit} bytes (is a quotation mark or tag not closed?); correct it, \
         or raise `limits.max_row_bytes`"
    )]
    Endless {
        /// Where the row starts.
        origin: Origin,
        /// How many bytes are allowed.
        limit: usize,
    },
    /// The file ends too early.
    #[error("{origin}: the file is cut short here; copy or download it again")]
    CutShort {
        /// The row that was being read.
        origin: Origin,
    },
    /// The file is not what its name says.
    #[error("{origin}: damaged, or not what its name says: {message}")]
    Damaged {
        /// The row that was being read.
        origin: Origin,
        /// What the reader says.
        message: String,
    },
    /// Far more comes out of a compressed file than an honest one holds.
    #[error(
        "{}: grows beyond {limit} when decompressed; if that is meant, raise `limits.{setting}`",
        file.display()
    )]
    Explodes {
        /// The compressed file.
        file: PathBuf,
        /// How much is allowed.
        limit: String,
        /// The setting in [`Limits`](super::Limits).
        setting: &'static str,
    },
    /// An archive holds a name that leaves the folder.
    #[error("{}: refused, as it holds {entry:?}, which leaves its folder", archive.display())]
    Escapes {
        /// The archive.
        archive: PathBuf,
        /// The name in it.
        entry: String,
    },
    /// Such files are not read.
    #[error("{}: {what} is not read; {advice}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// The build lacks what reads the file.
    #[error("{path}: needs the feature `{feature}`; build with `--features {feature}`")]
    MissingFeature {
        /// The file or URL.
        path: String,
        /// The feature of this crate.
        feature: &'static str,
    },
    /// A download failed.
    #[cfg(feature = "download")]
    #[error(transparent)]
    Download(#[from] crate::download::DownloadError),
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowProblem {
    /// It is not UTF-8.
    #[error("not UTF-8 (byte 0x{byte:02x})")]
    NotUtf8 {
        /// The first bad byte.
        byte: u8,
    },
    /// It is not JSON, or neither an object nor a string.
    #[error("not a JSON object: {message}")]
    NotJson {
        /// What the parser says.
        message: String,
    },
    /// The field with the text is absent.
    #[error("no field {field:?}; there are {}", listed(fields))]
    NoField {
        /// What was asked for.
        field: String,
        /// What is there.
        fields: Vec<String>,
    },
    /// The field holds no text.
    #[error("field {field:?} is {found}, not a string")]
    NotText {
        /// The field.
        field: String,
        /// What it holds.
        found: String,
    },
    /// It has more or fewer columns than the table.
    #[error("has {found} columns, the table {expected}")]
    WrongColumns {
        /// Columns of the table.
        expected: usize,
        /// Columns of the row.
        found: usize,
    },
    /// It is longer than [`Limits::max_row_bytes`](super::Limits::max_row_bytes).
    #[error("longer than {limit} bytes (`limits.max_row_bytes`)")]
    TooLong {
        /// How many bytes are allowed.
        limit: usize,
    },
}

impl SourceError {
    pub(super) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Unreadable { path, source }
    }

    /// What went wrong below a row's parser.
    pub(super) fn reading(origin: Origin, error: io::Error) -> Self {
        let file = || origin.file.as_ref().clone();
        let kind = error.kind();
        let message = error.to_string();
        match error.downcast::<Guarded>() {
            Ok(Guarded::Explodes { limit, setting }) => Self::Explodes {
                file: file(),
                limit,
                setting,
            },
            Ok(Guarded::Endless { limit }) => Self::Endless { origin, limit },
            Err(source) => match kind {
                io::ErrorKind::UnexpectedEof => Self::CutShort { origin },
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
                    Self::Damaged { origin, message }
                }
                _ => Self::Unreadable {
                    path: file(),
                    source,
                },
            },
        }
    }
}

/// What readers of bytes refuse, on its way through [`io::Error`].
#[derive(Debug, thiserror::Error)]
pub(super) enum Guarded {
    #[error("grows beyond {limit}")]
    Explodes {
        limit: String,
        setting: &'static str,
    },
    #[error("a row is longer than {limit} bytes")]
    Endless { limit: usize },
}

impl From<Guarded> for io::Error {
    fn from(guarded: Guarded) -> Self {
        Self::other(guarded)
    }
}

fn at_byte(byte: Option<u64>) -> String {
    byte.map_or_else(String::new, |byte| format!(" at byte {byte}"))
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    }
}

fn hint(columns: &[String]) -> &'static str {
    match columns.iter().any(|name| name.len() > 40) {
        true => "; if that is a row and not a header, set `header = false`",
        false => "",
    }
}
