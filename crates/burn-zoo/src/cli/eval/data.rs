//! Texts and labelled rows from files.

use std::borrow::Cow;
use std::path::Path;

use super::Result;
use crate::data::{document::Origin, sources::SourceConfig};

/// A file as text.
pub(super) fn text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    String::from_utf8(bytes).map_err(|error| {
        let byte = error.utf8_error().valid_up_to();
        format!(
            "{}: byte {byte} (counted from 0) is not UTF-8",
            path.display()
        )
        .into()
    })
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        ["jsonl", "ndjson", "json"]
            .iter()
            .any(|json| extension == *json)
    })
}

/// The texts of a file: its lines, or a JSON string on each line of a `.jsonl` file.
pub(super) fn texts(path: &Path) -> Result<Vec<String>> {
    let text = text(path)?;
    let lines = text.lines();
    if !is_json(path) {
        return Ok(lines.map(str::to_owned).collect());
    }
    lines
        .enumerate()
        .map(|(index, line)| {
            let text = serde_json::from_str(line);
            text.map_err(|error| format!("{}:{}: {error}", path.display(), index + 1).into())
        })
        .collect()
}

/// Where labelled rows have what.
#[derive(clap::Args)]
pub(super) struct Columns {
    /// The column with the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// The column with the second text of a pair, if texts come in pairs
    #[arg(long, value_name = "NAME")]
    pair_column: Option<String>,
    /// The column with the label
    #[arg(long, value_name = "NAME", default_value = "label")]
    label_column: String,
    /// The first row of a table is data, text then label; columns are then named 0, 1, …
    #[arg(long, conflicts_with_all = ["text_column", "label_column"])]
    no_header: bool,
}

/// A row of labelled data.
pub(super) struct Labelled {
    pub(super) text: String,
    pub(super) pair: Option<String>,
    pub(super) label: String,
    pub(super) origin: Origin,
}

/// The rows of a file, or of all files of a folder.
pub(super) fn labelled(path: &Path, columns: &Columns) -> Result<Vec<Labelled>> {
    let path = path.to_str().ok_or("the path of the data is not UTF-8")?;
    let config = SourceConfig {
        header: !columns.no_header,
        ..SourceConfig::new(path)
    };
    let [text_column, label_column] = match columns.no_header {
        true => ["0", "1"],
        false => [&columns.text_column, &columns.label_column].map(String::as_str),
    };
    let mut rows = Vec::new();
    for file in config.files()? {
        for row in file.records()? {
            let (record, origin) = row?;
            let cell = |name: &str| {
                record.text(name).map(Cow::into_owned).ok_or_else(|| {
                    let names = record.columns().join(", ");
                    format!("{origin}: has no text in column `{name}`; there are: {names}")
                })
            };
            rows.push(Labelled {
                text: cell(text_column)?,
                pair: columns.pair_column.as_deref().map(cell).transpose()?,
                label: cell(label_column)?,
                origin,
            });
        }
    }
    match rows.is_empty() {
        true => Err(format!("{path}: has no rows").into()),
        false => Ok(rows),
    }
}
