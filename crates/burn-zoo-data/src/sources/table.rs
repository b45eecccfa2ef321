//! Comma- and tab-separated values.

use std::io::Read;
use std::sync::Arc;

use csv::{ByteRecord, ReaderBuilder};
use serde_json::Value;

use super::open::{Allowance, Bounded};
use super::records::{Record, RecordRow};
use super::{BadRows, Counts, Format, InputFile, RowProblem, Rows, SourceError};
use crate::document::{Document, Origin};

/// One column.
pub(super) fn documents(
    file: &InputFile,
    counts: &Arc<Counts>,
) -> Result<Rows<Document>, SourceError> {
    let table = Table::open(file, counts)?;
    let column = text_column(file, &table.columns)?;
    Ok(table.rows(move |fields, _, origin| {
        let text = text(&fields[column])?.to_owned();
        Ok(Document { text, origin })
    }))
}

/// All columns.
pub(super) fn records(
    file: &InputFile,
    counts: &Arc<Counts>,
) -> Result<Rows<RecordRow>, SourceError> {
    let table = Table::open(file, counts)?;
    Ok(table.rows(|fields, columns, origin| {
        let value = |field| Ok(Value::String(text(field)?.to_owned()));
        let values = fields.iter().map(value).collect::<Result<_, _>>()?;
        Ok((Record::new(columns, values), origin))
    }))
}

/// Which column holds the text: the one asked for, else `text`, else the only one.
pub(super) fn text_column(file: &InputFile, columns: &[String]) -> Result<usize, SourceError> {
    let asked = file.config().field.as_deref();
    let wanted = asked.unwrap_or("text");
    match columns.iter().position(|name| name == wanted) {
        Some(column) => Ok(column),
        None if asked.is_none() && columns.len() == 1 => Ok(0),
        None => Err(SourceError::NoColumn {
            file: file.path().to_owned(),
            column: wanted.to_owned(),
            columns: columns.to_vec(),
        }),
    }
}

fn text(field: &[u8]) -> Result<&str, RowProblem> {
    std::str::from_utf8(field).map_err(|error| RowProblem::NotUtf8 {
        byte: field[error.valid_up_to()],
    })
}

struct Table {
    reader: csv::Reader<Bounded>,
    allowance: Allowance,
    file: InputFile,
    columns: Arc<[String]>,
    /// The last row that was read.
    fields: ByteRecord,
    /// Its number; the header has none.
    row: usize,
    /// Whether `fields` holds a row that was not given out yet.
    has_row: bool,
    /// Where in the file the table begins, after a byte order mark.
    start: u64,
}

impl Table {
    fn open(file: &InputFile, counts: &Arc<Counts>) -> Result<Self, SourceError> {
        let (bytes, allowance, start) = file.open_rows(counts)?;
        let mut builder = ReaderBuilder::new();
        builder
            .has_headers(false)
            .flexible(true)
            .buffer_capacity(128 << 10);
        if file.format() == Format::Tsv {
            builder.delimiter(b'\t').quoting(false);
        }
        let mut table = Self {
            reader: builder.from_reader(bytes),
            allowance,
            file: file.clone(),
            columns: Arc::default(),
            fields: ByteRecord::new(),
            row: 0,
            has_row: false,
            start,
        };
        let has_row = table.advance()?;
        table.columns = match file.config().header {
            true => {
                let names = table
                    .fields
                    .iter()
                    .map(|name| text(name).map(str::to_owned));
                names
                    .collect::<Result<_, _>>()
                    .map_err(|problem| table.bad(problem))?
            }
            false => {
                table.has_row = has_row;
                (0..table.fields.len())
                    .map(|column| column.to_string())
                    .collect()
            }
        };
        Ok(table)
    }

    /// Reads the next row into `fields`; `false` at the end.
    fn advance(&mut self) -> Result<bool, SourceError> {
        self.allowance.renew();
        let read = self.reader.read_byte_record(&mut self.fields);
        read.map_err(|error| {
            let origin = self.file.origin(self.row + 1);
            match error.into_kind() {
                csv::ErrorKind::Io(error) => SourceError::reading(origin, error),
                other => SourceError::Damaged {
                    origin,
                    message: format!("{other:?}"),
                },
            }
        })
    }

    /// All rows, each through `parse`.
    fn rows<T, F>(mut self, parse: F) -> Rows<T>
    where
        F: Fn(&ByteRecord, &Arc<[String]>, Origin) -> Result<T, RowProblem> + Send + 'static,
    {
        Box::new(std::iter::from_fn(move || {
            if !std::mem::take(&mut self.has_row) {
                match self.advance() {
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
            self.row += 1;
            let (expected, found) = (self.columns.len(), self.fields.len());
            let parsed = match expected == found {
                true => parse(&self.fields, &self.columns, self.file.origin(self.row)),
                false => Err(RowProblem::WrongColumns { expected, found }),
            };
            Some(parsed.map_err(|problem| self.bad(problem)))
        }))
    }

    fn bad(&self, problem: RowProblem) -> SourceError {
        let start = self.start + self.fields.position().map_or(0, csv::Position::byte);
        let byte = match problem {
            RowProblem::NotUtf8 { .. } if self.file.config().bad_rows == BadRows::Refuse => {
                start + self.valid_bytes(start).unwrap_or_default()
            }
            _ => start,
        };
        SourceError::Row {
            origin: self.file.origin(self.row),
            byte: Some(byte),
            problem,
        }
    }

    /// How many bytes after `start` are UTF-8. Looked up in the file, since a row's fields have lost
    /// their quotation marks.
    fn valid_bytes(&self, start: u64) -> Option<u64> {
        let limit = self.file.config().limits.max_row_bytes as u64;
        let mut bytes = self.file.reopen(start).ok()?.take(limit);
        let mut row = Vec::new();
        bytes.read_to_end(&mut row).ok()?;
        let error = std::str::from_utf8(&row).err()?;
        Some(error.valid_up_to() as u64)
    }
}
