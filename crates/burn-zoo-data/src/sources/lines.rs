//! Files with a row on each line: plain text and JSON.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::open::Bytes;
use super::records::{Record, RecordRow};
use super::{Counts, InputFile, RowProblem, Rows, SourceError};
use crate::document::{Document, Origin};

/// Each line that is not blank.
pub(super) fn documents(
    file: &InputFile,
    counts: &Arc<Counts>,
) -> Result<Rows<Document>, SourceError> {
    Lines::rows(file, counts, |line, origin| {
        let text = line.to_owned();
        Ok(Document { text, origin })
    })
}

/// A field of each line's object.
pub(super) fn json_documents(
    file: &InputFile,
    counts: &Arc<Counts>,
) -> Result<Rows<Document>, SourceError> {
    let field = file.config().field.clone();
    let field = field.unwrap_or_else(|| "text".to_owned());
    Lines::rows(file, counts, move |line, origin| {
        let text = text_field(line, &field)?;
        Ok(Document { text, origin })
    })
}

/// Each line's object.
pub(super) fn json_records(
    file: &InputFile,
    counts: &Arc<Counts>,
) -> Result<Rows<RecordRow>, SourceError> {
    Lines::rows(file, counts, |line, origin| {
        let fields = serde_json::from_str(line).map_err(|error| not_json(&error))?;
        Ok((Record::from_json(fields), origin))
    })
}

struct Lines<F> {
    bytes: Bytes,
    file: InputFile,
    parse: F,
    line: Vec<u8>,
    row: usize,
    offset: u64,
}

impl<T, F> Lines<F>
where
    T: 'static,
    F: Fn(&str, Origin) -> Result<T, RowProblem> + Send + 'static,
{
    fn rows(file: &InputFile, counts: &Arc<Counts>, parse: F) -> Result<Rows<T>, SourceError> {
        let (bytes, offset) = file.open(counts)?;
        Ok(Box::new(Self {
            bytes,
            file: file.clone(),
            parse,
            line: Vec::new(),
            row: 0,
            offset,
        }))
    }

    /// Reads the next line into `self.line`, without its end when it is too long. Returns the bytes
    /// that it takes in the file.
    fn advance(&mut self, limit: usize) -> io::Result<u64> {
        self.line.clear();
        let mut within = (&mut self.bytes).take(limit as u64 + 2); // The end may be "\r\n".
        let mut taken = within.read_until(b'\n', &mut self.line)? as u64;
        if self.line.ends_with(b"\n") {
            self.line.pop();
            if self.line.ends_with(b"\r") {
                self.line.pop();
            }
        } else if self.line.len() > limit {
            taken += skip_line(&mut self.bytes)?;
        }
        Ok(taken)
    }
}

fn skip_line(bytes: &mut Bytes) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let available = bytes.fill_buf()?;
        let end = available.iter().position(|&byte| byte == b'\n');
        let n = end.map_or(available.len(), |end| end + 1);
        bytes.consume(n);
        skipped += n as u64;
        if end.is_some() || n == 0 {
            return Ok(skipped);
        }
    }
}

impl<T, F> Iterator for Lines<F>
where
    T: 'static,
    F: Fn(&str, Origin) -> Result<T, RowProblem> + Send + 'static,
{
    type Item = Result<T, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        let limit = self.file.config().limits.max_row_bytes;
        loop {
            self.row += 1;
            let origin = self.file.origin(self.row);
            let start = self.offset;
            match self.advance(limit) {
                Ok(0) => return None,
                Ok(taken) => self.offset += taken,
                Err(error) => return Some(Err(SourceError::reading(origin, error))),
            }
            let bad = |byte, problem| SourceError::Row {
                origin: origin.clone(),
                byte: Some(byte),
                problem,
            };
            if self.line.len() > limit {
                return Some(Err(bad(start, RowProblem::TooLong { limit })));
            }
            let line = match std::str::from_utf8(&self.line) {
                Ok(line) => line,
                Err(error) => {
                    let at = error.valid_up_to();
                    let byte = self.line[at];
                    return Some(Err(bad(start + at as u64, RowProblem::NotUtf8 { byte })));
                }
            };
            if !line.trim_ascii().is_empty() {
                let parsed = (self.parse)(line, origin.clone());
                return Some(parsed.map_err(|problem| bad(start, problem)));
            }
        }
    }
}

/// The text in a field of a JSON object, or a JSON string itself.
fn text_field(line: &str, field: &str) -> Result<String, RowProblem> {
    let mut json = serde_json::Deserializer::from_str(line);
    let found = FieldOf(field).deserialize(&mut json);
    match found.and_then(|found| json.end().map(|()| found)) {
        Ok(Some(Value::String(text))) => Ok(text),
        Ok(Some(other)) => Err(RowProblem::NotText {
            field: field.to_owned(),
            found: kind(&other).to_owned(),
        }),
        Ok(None) => {
            let fields: serde_json::Map<String, Value> =
                serde_json::from_str(line).map_err(|error| not_json(&error))?;
            Err(RowProblem::NoField {
                field: field.to_owned(),
                fields: fields.into_iter().map(|(name, _)| name).collect(),
            })
        }
        Err(error) => Err(not_json(&error)),
    }
}

fn not_json(error: &serde_json::Error) -> RowProblem {
    RowProblem::NotJson {
        message: format!("{error}"),
    }
}

/// What a JSON value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Takes one field out of an object, and passes over the others without storing them.
struct FieldOf<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for FieldOf<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FieldOf<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Value::String(text.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_wanted) = object.next_key_seed(NameIs(self.0))? {
            if is_wanted {
                found = Some(object.next_value()?);
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Compares a name without storing it.
struct NameIs<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for NameIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<bool, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for NameIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}
