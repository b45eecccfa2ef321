//! One text of a corpus and where it came from.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A text, such as a row of a table, an article, or a whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What it says.
    pub text: String,
    /// Where it is.
    pub origin: Origin,
}

/// A place in a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file. One inside an archive is written `archive.zip!inner.txt`.
    pub file: Arc<PathBuf>,
    /// The row, line, or article, counted from 1.
    pub row: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.row)
    }
}
