//! Collecting: documents and rows out of the files that people have.
//!
//! A [`SourceConfig`] names files, [`SourceConfig::files`] lists them, and each [`InputFile`] is
//! read as [`Documents`] or, when its rows are labelled, as [`Records`]. Everything streams: memory
//! is bounded by a row, whatever the size of the file or of what is compressed in it.
//!
//! | name ends with | read as |
//! |---|---|
//! | `.jsonl`, `.ndjson`, `.json` | [`Format::Jsonl`] |
//! | `.csv` | [`Format::Csv`] |
//! | `.tsv`, `.tab` | [`Format::Tsv`] |
//! | `.parquet`, `.pq` | [`Format::Parquet`] |
//! | `.xml` | [`Format::Wikipedia`] |
//! | anything else | [`Format::Text`] |
//!
//! Each may be compressed (`.gz`, `.zst`, `.bz2` after the name, in one or several members), and a
//! `.zip` is a folder of such files.

mod error;
mod files;
mod lines;
#[cfg(not(feature = "parquet"))]
mod no_parquet;
mod open;
#[cfg(feature = "parquet")]
mod parquet;
mod records;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod wikipedia;
mod zip;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::document::{Document, Origin};

#[cfg(not(feature = "parquet"))]
use no_parquet as parquet;

pub use error::{RowProblem, SourceError};
pub use files::InputFile;
#[cfg(feature = "download")]
pub(crate) use files::{is_pattern, matcher};
pub use records::{Record, Records};

/// Where documents come from, as a recipe says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// A file, a folder, or a pattern such as `data/**/*.jsonl.gz`. Of a folder, all files are read
    /// in the order of their paths, without hidden ones and without what its `.gitignore` names.
    ///
    /// With the feature `download` also a URL, or a file, folder or pattern on the Hugging Face hub
    /// such as `hf://datasets/ORG/NAME/data/*.parquet`.
    pub path: String,
    /// The SHA-256 that a downloaded file has, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// What the files are, when their names do not tell.
    #[serde(default)]
    pub format: Option<Format>,
    /// The column or field with the text. Without it, `text`, or the only column of a table.
    #[serde(default)]
    pub field: Option<String>,
    /// Whether the first row of a CSV or TSV names its columns. Otherwise they are `0`, `1`, ….
    #[serde(default = "yes")]
    pub header: bool,
    /// What to do with a row that cannot be read.
    #[serde(default)]
    pub bad_rows: BadRows,
    /// What files may not exceed.
    #[serde(default)]
    pub limits: Limits,
}

fn yes() -> bool {
    true
}

/// How a file holds its documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The whole file is a document. One longer than [`Limits::max_row_bytes`] becomes several, cut
    /// after a line.
    Text,
    /// Each line that is not blank is a document.
    Lines,
    /// Each line is a JSON object with a field of text, or a JSON string.
    Jsonl,
    /// Comma-separated values, quoted as RFC 4180 says.
    Csv,
    /// Tab-separated values. A quotation mark means itself.
    Tsv,
    /// A Parquet file with a column of text.
    Parquet,
    /// A Wikipedia XML dump: a document per article, its title in front. Redirects and other
    /// namespaces are left out, and wikitext is reduced to prose.
    Wikipedia,
}

/// What to do with a row that cannot be read, such as one that is not UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadRows {
    /// Stop with an error that says which row.
    #[default]
    Refuse,
    /// Leave it out and count it.
    Skip,
}

/// Guards against files that are made to exhaust the machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// How many times larger than its file decompressed data may be. Default 300, which text does
    /// not reach. Not judged before 16 MiB came out.
    pub max_ratio: f64,
    /// How many bytes may come out of one compressed file. Default 1 TiB.
    pub max_bytes: u64,
    /// How many bytes a row, line or article may have. Default 16 MiB.
    pub max_row_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_ratio: 300.0,
            max_bytes: 1 << 40,
            max_row_bytes: 16 << 20,
        }
    }
}

impl SourceConfig {
    /// Everything at a path, each file as its name tells, bad rows refused.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            format: None,
            field: None,
            header: true,
            bad_rows: BadRows::default(),
            sha256: None,
            limits: Limits::default(),
        }
    }

    /// Reads all files as this format.
    pub fn with_format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// Takes the text from this column or field.
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Whether the first row of a CSV or TSV names its columns.
    pub fn with_header(mut self, header: bool) -> Self {
        self.header = header;
        self
    }

    /// What to do with a row that cannot be read.
    pub fn with_bad_rows(mut self, bad_rows: BadRows) -> Self {
        self.bad_rows = bad_rows;
        self
    }

    /// What files may not exceed.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The files, in the order of their paths.
    ///
    /// # Errors
    ///
    /// When there are none, when a folder or archive cannot be listed, when an archive holds a name
    /// that leaves its folder, and when a download fails.
    pub fn files(&self) -> Result<Vec<InputFile>, SourceError> {
        self.files_with_progress(&mut |_, _| {})
    }

    /// The same, telling how far downloads are.
    ///
    /// # Errors
    ///
    /// As [`files`](Self::files).
    pub fn files_with_progress(
        &self,
        progress: &mut DownloadProgress<'_>,
    ) -> Result<Vec<InputFile>, SourceError> {
        files::list(self, progress)
    }

    /// The documents of all files, one file after the other.
    ///
    /// # Errors
    ///
    /// As [`files`](Self::files); what is wrong with a file comes as an item.
    pub fn documents(
        &self,
    ) -> Result<impl Iterator<Item = Result<Document, SourceError>> + use<>, SourceError> {
        let files = self.files()?.into_iter();
        Ok(files.flat_map(|file| match file.documents() {
            Ok(documents) => documents,
            Err(error) => Documents::failed(error),
        }))
    }
}

/// Called with the bytes of a download that are there, and with how many there will be, where that is known.
pub type DownloadProgress<'a> = dyn FnMut(u64, Option<u64>) + 'a;

/// How far reading is, seen from any thread.
#[derive(Debug, Default)]
pub struct Counts {
    bytes_read: AtomicU64,
    skipped: AtomicU64,
}

impl Counts {
    /// Bytes read of the file, as stored: compare with [`InputFile::bytes`].
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Rows left out because they were bad.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

type Rows<T> = Box<dyn Iterator<Item = Result<T, SourceError>> + Send>;

/// The good rows of a file. After an error there are no more.
struct GoodRows<T> {
    rows: Option<Rows<T>>,
    bad_rows: BadRows,
    counts: Arc<Counts>,
}

impl<T> Iterator for GoodRows<T> {
    type Item = Result<T, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.rows.as_mut()?.next() {
                Some(Err(SourceError::Row { .. })) if self.bad_rows == BadRows::Skip => {
                    self.counts.skipped.fetch_add(1, Ordering::Relaxed);
                }
                Some(Ok(row)) => return Some(Ok(row)),
                end => {
                    self.rows = None;
                    return end;
                }
            }
        }
    }
}

/// The documents of a file, in its order.
pub struct Documents(GoodRows<Document>);

impl Documents {
    fn failed(error: SourceError) -> Self {
        Self(GoodRows {
            rows: Some(Box::new(std::iter::once(Err(error)))),
            bad_rows: BadRows::Refuse,
            counts: Arc::default(),
        })
    }

    /// How far reading is: a handle that stays when the iterator is given away.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.0.counts)
    }
}

impl Iterator for Documents {
    type Item = Result<Document, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl InputFile {
    /// Starts reading the documents.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, or has no column with the text.
    pub fn documents(&self) -> Result<Documents, SourceError> {
        let counts = Arc::<Counts>::default();
        let rows = match self.format() {
            Format::Text => text::documents(self, &counts)?,
            Format::Lines => lines::documents(self, &counts)?,
            Format::Jsonl => lines::json_documents(self, &counts)?,
            Format::Csv | Format::Tsv => table::documents(self, &counts)?,
            Format::Parquet => parquet::documents(self, &counts)?,
            Format::Wikipedia => wikipedia::documents(self, &counts)?,
        };
        Ok(Documents(self.good_rows(rows, counts)))
    }

    /// Starts reading rows with all their columns.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, or is of a format without columns.
    pub fn records(&self) -> Result<Records, SourceError> {
        let counts = Arc::<Counts>::default();
        let rows = match self.format() {
            Format::Jsonl => lines::json_records(self, &counts)?,
            Format::Csv | Format::Tsv => table::records(self, &counts)?,
            Format::Parquet => parquet::records(self, &counts)?,
            Format::Text | Format::Lines | Format::Wikipedia => {
                return Err(SourceError::NoColumns {
                    file: self.path().to_owned(),
                });
            }
        };
        Ok(Records(self.good_rows(rows, counts)))
    }

    fn good_rows<T>(&self, rows: Rows<T>, counts: Arc<Counts>) -> GoodRows<T> {
        GoodRows {
            rows: Some(rows),
            bad_rows: self.config().bad_rows,
            counts,
        }
    }

    fn origin(&self, row: usize) -> Origin {
        Origin {
            file: Arc::clone(self.shared_path()),
            row,
        }
    }
}

/// Whether a name is that of a hidden file.
fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().starts_with('.')
}
