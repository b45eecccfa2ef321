//! Rows with all their columns, for labelled data.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Counts, GoodRows, SourceError};
use crate::document::Origin;

/// A row: its columns by name, in the order of the file where that has one.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    columns: Arc<[String]>,
    values: Vec<Value>,
}

/// A row and where it is.
pub(super) type RecordRow = (Record, Origin);

impl Record {
    pub(super) fn new(columns: &Arc<[String]>, values: Vec<Value>) -> Self {
        Self {
            columns: Arc::clone(columns),
            values,
        }
    }

    pub(super) fn from_json(fields: Map<String, Value>) -> Self {
        let (columns, values): (Vec<_>, _) = fields.into_iter().unzip();
        Self {
            columns: columns.into(),
            values,
        }
    }

    /// The names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The value in a column, if there is such a column. In CSV and TSV all values are strings.
    pub fn get(&self, column: &str) -> Option<&Value> {
        let index = self.columns.iter().position(|name| name == column)?;
        self.values.get(index)
    }

    /// The value in a column as text: a string, or a number or boolean as it is written.
    pub fn text(&self, column: &str) -> Option<Cow<'_, str>> {
        match self.get(column)? {
            Value::String(text) => Some(Cow::Borrowed(text)),
            value @ (Value::Number(_) | Value::Bool(_)) => Some(Cow::Owned(value.to_string())),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

/// The rows of a file, in its order.
pub struct Records(pub(super) GoodRows<RecordRow>);

impl Records {
    /// How far reading is: a handle that stays when the iterator is given away.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.0.counts)
    }
}

impl Iterator for Records {
    type Item = Result<RecordRow, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}
