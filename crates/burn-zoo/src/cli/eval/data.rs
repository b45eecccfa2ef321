//! Texts and labelled rows from files.

use std::path::Path;

use super::Result;
use crate::data::{
    labelled::{ClassColumns, LabelledError, Labels, NumberColumns, Row, Said, TableFormat},
    sources::BadRows,
};

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

impl Columns {
    /// Where each row has a class.
    pub(super) fn classes(&self) -> Labels {
        let [text, label] = self.names();
        Labels::Class(ClassColumns {
            text,
            second: self.pair_column.clone(),
            label,
            labels: None,
        })
    }

    /// Where each row has a number.
    pub(super) fn numbers(&self) -> Labels {
        let [text, label] = self.names();
        Labels::Number(NumberColumns {
            text,
            second: self.pair_column.clone(),
            label,
        })
    }

    fn names(&self) -> [String; 2] {
        match self.no_header {
            true => ["0", "1"].map(str::to_owned),
            false => [self.text_column.clone(), self.label_column.clone()],
        }
    }

    /// The rows of a file, or of all files of a folder.
    pub(super) fn read(&self, path: &Path, labels: &Labels) -> Result<Vec<Row>> {
        let format = TableFormat {
            header: !self.no_header,
            format: None,
            bad_rows: BadRows::default(),
        };
        let (rows, _) = labels.rows(path, &format)?;
        match rows.is_empty() {
            true => Err(format!("{}: has no rows", path.display()).into()),
            false => Ok(rows),
        }
    }
}

/// The number of each row's class among `labels`, by its name or, where `numbered`, by that number.
pub(super) fn classes(rows: &[Row], labels: &[String], numbered: bool) -> Result<Vec<usize>> {
    let class = |row: &Row| {
        let Said::Class(said) = &row.said else {
            unreachable!("rows were read for their classes");
        };
        let named = labels.iter().position(|label| label == said);
        let by_number = || {
            said.parse()
                .ok()
                .filter(|&class| numbered && class < labels.len())
        };
        named.or_else(by_number).ok_or_else(|| {
            let unknown = LabelledError::UnknownLabel {
                origin: row.origin.clone(),
                label: said.clone(),
                known: labels.to_vec(),
            };
            unknown.into()
        })
    };
    rows.iter().map(class).collect()
}
