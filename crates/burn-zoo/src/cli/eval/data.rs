//! Texts and labelled rows from files.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Result;

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
    let lines = text.lines().enumerate();
    if !is_json(path) {
        return Ok(lines.map(|(_, line)| line.to_owned()).collect());
    }
    lines
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| at(path, index, &error.to_string()).into())
        })
        .collect()
}

fn at(path: &Path, index: usize, problem: &str) -> String {
    format!("{}:{}: {problem}", path.display(), index + 1)
}

/// Which columns hold what.
#[derive(clap::Args)]
pub(super) struct Columns {
    /// The column with the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub(super) text_column: String,
    /// The column with the second text of a pair, if texts come in pairs
    #[arg(long, value_name = "NAME")]
    pub(super) pair_column: Option<String>,
    /// The column with the label
    #[arg(long, value_name = "NAME", default_value = "label")]
    pub(super) label_column: String,
    /// The first row is data, text then label; columns are named 0, 1, …
    #[arg(long, conflicts_with_all = ["text_column", "label_column"])]
    no_header: bool,
}

/// A row of labelled data.
pub(super) struct Labelled {
    pub(super) text: String,
    pub(super) pair: Option<String>,
    pub(super) label: String,
    /// Where it is, for messages.
    pub(super) origin: String,
}

/// The rows of a TSV (tab-separated, a quotation mark means itself) or JSON Lines file.
pub(super) fn labelled(path: &PathBuf, columns: &Columns) -> Result<Vec<Labelled>> {
    let contents = text(path)?;
    let rows = match is_json(path) {
        true => json_rows(path, &contents)?,
        false => table_rows(path, &contents, columns.no_header)?,
    };
    if rows.is_empty() {
        return Err(format!("{}: has no rows", path.display()).into());
    }
    let [text_column, label_column] = match columns.no_header {
        true => ["0", "1"],
        false => [&columns.text_column, &columns.label_column].map(String::as_str),
    };
    rows.into_iter()
        .map(|(index, row)| {
            let cell = |name: &str| match row.get(name) {
                Some(Value::String(text)) => Ok(text.clone()),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
                _ => {
                    let names: Vec<&str> = row.keys().map(String::as_str).collect();
                    let names = names.join(", ");
                    Err(at(
                        path,
                        index,
                        &format!("has no column `{name}`; there are: {names}"),
                    ))
                }
            };
            Ok(Labelled {
                text: cell(text_column)?,
                pair: columns.pair_column.as_deref().map(cell).transpose()?,
                label: cell(label_column)?,
                origin: format!("{}:{}", path.display(), index + 1),
            })
        })
        .collect()
}

type Row = (usize, Map<String, Value>);

fn json_rows(path: &Path, contents: &str) -> Result<Vec<Row>> {
    let lines = contents.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            let row = serde_json::from_str(line);
            Ok((
                index,
                row.map_err(|error| at(path, index, &error.to_string()))?,
            ))
        })
        .collect()
}

fn table_rows(path: &Path, contents: &str, no_header: bool) -> Result<Vec<Row>> {
    let mut lines = contents.lines().enumerate().peekable();
    let names: Vec<String> = match no_header {
        true => {
            let n_columns = lines.peek().map_or(0, |(_, line)| line.split('\t').count());
            (0..n_columns).map(|column| column.to_string()).collect()
        }
        false => {
            let header = lines.next().map_or("", |(_, line)| line);
            header.split('\t').map(str::to_owned).collect()
        }
    };
    lines
        .map(|(index, line)| {
            let cells: Vec<&str> = line.split('\t').collect();
            if cells.len() != names.len() {
                let problem = format!("has {} columns instead of {}", cells.len(), names.len());
                return Err(at(path, index, &problem).into());
            }
            let cells = cells.into_iter().map(Value::from);
            Ok((index, names.iter().cloned().zip(cells).collect()))
        })
        .collect()
}
