//! Parquet files. Only the columns that are asked for are read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parquet::basic::{ConvertedType, Type as PhysicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescriptor, Type};
use serde_json::{Map, Value};

use super::files::{Compression, Place};
use super::records::{Record, RecordRow};
use super::table::text_column;
use super::{Counts, InputFile, RowProblem, Rows, SourceError};
use crate::document::Document;

/// Values decoded at a time.
const BATCH: usize = 64;

/// One column of text; one inside a struct is named `outer.inner`.
pub(super) fn documents(
    file: &InputFile,
    counts: &Arc<Counts>,
) -> Result<Rows<Document>, SourceError> {
    let reader = open(file)?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let texts: Vec<usize> = (0..schema.num_columns())
        .filter(|&index| holds_text(&schema, index))
        .collect();
    let names: Vec<String> = texts
        .iter()
        .map(|&index| schema.column(index).path().parts().join("."))
        .collect();
    let column = texts[text_column(file, &names)?];
    Ok(Box::new(TextColumn {
        reader,
        file: file.clone(),
        counts: Arc::clone(counts),
        column,
        present: schema.column(column).max_def_level(),
        group: 0,
        values: None,
        levels: Vec::new(),
        texts: Vec::new(),
        row: 0,
    }))
}

/// All columns.
pub(super) fn records(
    file: &InputFile,
    counts: &Arc<Counts>,
) -> Result<Rows<RecordRow>, SourceError> {
    let reader = open(file)?;
    let metadata = reader.metadata();
    let schema = metadata.file_metadata().schema_descr_ptr();
    let columns = schema.root_schema().get_fields();
    if let Some(column) = columns.iter().find(|column| holds_intervals(column)) {
        return Err(SourceError::Unsupported {
            file: file.path().to_owned(),
            what: format!("a column of intervals ({:?})", column.name()),
            advice: "write the file without it",
        });
    }
    let names: Arc<[String]> = columns
        .iter()
        .map(|column| column.name().to_owned())
        .collect();
    let rows: i64 = metadata
        .row_groups()
        .iter()
        .map(|group| group.num_rows())
        .sum();
    let bytes_per_row = file.bytes() / rows.max(1).unsigned_abs();
    let (file, counts) = (file.clone(), Arc::clone(counts));
    let rows = RowIter::from_file_into(Box::new(reader)).enumerate();
    Ok(Box::new(rows.map(move |(index, row)| {
        counts
            .bytes_read
            .fetch_add(bytes_per_row, Ordering::Relaxed);
        let origin = file.origin(index + 1);
        let row = row.map_err(|error| damaged(&file, index + 1, &error))?;
        let values = row.into_columns().into_iter().map(|(_, field)| json(field));
        Ok((Record::new(&names, values.collect()), origin))
    })))
}

fn open(file: &InputFile) -> Result<SerializedFileReader<File>, SourceError> {
    let mut bytes = seekable(file).map_err(|error| SourceError::reading(file.origin(1), error))?;
    let is_cut = is_cut_short(&mut bytes);
    SerializedFileReader::new(bytes).map_err(|error| match is_cut {
        Ok(true) => SourceError::CutShort {
            origin: file.origin(1),
        },
        _ => damaged(file, 1, &error),
    })
}

/// The file itself, or a temporary one with what is compressed in it.
fn seekable(file: &InputFile) -> io::Result<File> {
    if let (Place::File, Compression::None) = (file.place(), file.compression()) {
        return File::open(file.path());
    }
    let mut plain = tempfile::tempfile()?;
    io::copy(&mut file.reopen(0)?, &mut plain)?;
    Ok(plain)
}

/// Whether it starts as a Parquet file does, and does not end so.
fn is_cut_short(bytes: &mut File) -> io::Result<bool> {
    let mut mark = [0; 4];
    bytes.rewind()?;
    bytes.read_exact(&mut mark)?;
    let starts = &mark == b"PAR1";
    bytes.seek(SeekFrom::End(-4))?;
    bytes.read_exact(&mut mark)?;
    Ok(starts && &mark != b"PAR1")
}

fn damaged(file: &InputFile, row: usize, error: &ParquetError) -> SourceError {
    SourceError::Damaged {
        origin: file.origin(row),
        message: error.to_string(),
    }
}

fn holds_text(schema: &SchemaDescriptor, index: usize) -> bool {
    let column = schema.column(index);
    let is_text = matches!(
        column.converted_type(),
        ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON | ConvertedType::NONE
    );
    column.physical_type() == PhysicalType::BYTE_ARRAY && is_text && column.max_rep_level() == 0
}

/// Whether there are values that the reader of rows cannot convert.
fn holds_intervals(column: &Type) -> bool {
    match column.is_group() {
        true => column
            .get_fields()
            .iter()
            .any(|inner| holds_intervals(inner)),
        false => column.get_basic_info().converted_type() == ConvertedType::INTERVAL,
    }
}

struct TextColumn {
    reader: SerializedFileReader<File>,
    file: InputFile,
    counts: Arc<Counts>,
    column: usize,
    /// The definition level of a text that is not null.
    present: i16,
    /// The next row group.
    group: usize,
    /// The column in the current one.
    values: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Decoded rows in reverse order: the definition level of each, and those that are not null.
    levels: Vec<i16>,
    texts: Vec<ByteArray>,
    row: usize,
}

impl TextColumn {
    /// Decodes the next rows; `false` at the end.
    fn decode(&mut self) -> Result<bool, ParquetError> {
        while self.levels.is_empty() {
            let Some(values) = &mut self.values else {
                if self.group == self.reader.num_row_groups() {
                    return Ok(false);
                }
                let group = self.reader.get_row_group(self.group)?;
                self.values = match group.get_column_reader(self.column)? {
                    ColumnReader::ByteArrayColumnReader(values) => Some(values),
                    _ => return Err(ParquetError::General("not a column of text".to_owned())),
                };
                self.group += 1;
                continue;
            };
            let levels = Some(&mut self.levels);
            let (rows, _, _) = values.read_records(BATCH, levels, None, &mut self.texts)?;
            if rows == 0 {
                let group = self.reader.metadata().row_group(self.group - 1);
                let bytes = group.compressed_size().unsigned_abs();
                self.counts.bytes_read.fetch_add(bytes, Ordering::Relaxed);
                self.values = None;
            }
            self.levels.resize(rows, self.present); // A column without nulls has no levels.
            self.levels.reverse();
            self.texts.reverse();
        }
        Ok(true)
    }

    fn text(&self, value: Option<ByteArray>) -> Result<String, RowProblem> {
        let Some(value) = value else {
            return Err(RowProblem::NotText {
                field: self
                    .file
                    .config()
                    .field
                    .clone()
                    .unwrap_or_else(|| "text".to_owned()),
                found: "null".to_owned(),
            });
        };
        let limit = self.file.config().limits.max_row_bytes;
        if value.len() > limit {
            return Err(RowProblem::TooLong { limit });
        }
        match std::str::from_utf8(value.data()) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(RowProblem::NotUtf8 {
                byte: value.data()[error.valid_up_to()],
            }),
        }
    }
}

impl Iterator for TextColumn {
    type Item = Result<Document, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.decode() {
            Ok(true) => self.row += 1,
            Ok(false) => return None,
            Err(error) => return Some(Err(damaged(&self.file, self.row + 1, &error))),
        }
        let origin = self.file.origin(self.row);
        let is_present = self.levels.pop() == Some(self.present);
        let value = if is_present { self.texts.pop() } else { None };
        Some(match self.text(value) {
            Ok(text) => Ok(Document { text, origin }),
            Err(problem) => Err(SourceError::Row {
                origin,
                byte: None,
                problem,
            }),
        })
    }
}

/// A value as JSON has it: dates, times and decimals as they are written, bytes as text.
fn json(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => f32::from(value).into(),
        Field::Float(value) => value.into(),
        Field::Double(value) => value.into(),
        Field::Str(value) => value.into(),
        Field::Bytes(value) => String::from_utf8_lossy(value.data()).into(),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().cloned().map(json).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().cloned();
            Value::Object(
                entries
                    .map(|(key, value)| (name(key), json(value)))
                    .collect(),
            )
        }
        written => written.to_string().into(),
    }
}

fn object(row: Row) -> Map<String, Value> {
    let columns = row.into_columns().into_iter();
    columns.map(|(name, field)| (name, json(field))).collect()
}

fn name(key: Field) -> String {
    match json(key) {
        Value::String(name) => name,
        other => other.to_string(),
    }
}
