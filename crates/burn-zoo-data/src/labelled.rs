//! Tables of labelled texts, read into examples.
//!
//! A folder holds `train`, `dev` (or `valid`, `validation`) and `test` in any format with columns; see
//! [`sources`](crate::sources). Without a file to hold out, a share of the training rows is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    document::Origin,
    examples::{Example, Target},
    marked::{Cut, Marked, Reading},
    shards::uniform,
    sources::{BadRows, Format, Record, SourceConfig, SourceError},
    tokenizer::{Tokenizer, TokenizerError},
    windows::NOT_ASKED,
};

/// What makes labelled data unusable.
#[derive(Debug, thiserror::Error)]
pub enum LabelledError {
    /// A file cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A folder has no training file.
    #[error("{} has no file called train: give a folder with train, dev and test, or one table", .0.display())]
    NoTraining(PathBuf),
    /// A split has no rows.
    #[error("the {split} split of {} is empty", path.display())]
    Empty {
        /// Which split.
        split: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A row lacks a column.
    #[error("{origin}: no column {column:?}; there are {}", there.join(", "))]
    NoColumn {
        /// The row.
        origin: Origin,
        /// The column.
        column: String,
        /// The columns that it has.
        there: Vec<String>,
    },
    /// A value is not of the kind that is wanted.
    #[error("{origin}: column {column:?} must be {wanted}, got {found}")]
    Value {
        /// The row.
        origin: Origin,
        /// The column.
        column: String,
        /// What is wanted.
        wanted: &'static str,
        /// What is there.
        found: String,
    },
    /// A label is not one of the known ones.
    #[error("{origin}: unknown label {label:?}, expected one of {}", known.join(", "))]
    UnknownLabel {
        /// The row.
        origin: Origin,
        /// The label.
        label: String,
        /// Those that the recipe names, or the training rows have.
        known: Vec<String>,
    },
    /// A class has too few rows.
    #[error(
        "class {class:?} has {found} training rows, fewer than the {wanted} to learn from; lower data.shots"
    )]
    TooFew {
        /// The class.
        class: String,
        /// How many rows it has.
        found: usize,
        /// How many are wanted.
        wanted: usize,
    },
    /// Nothing is left of a text.
    #[error("{origin}: the tokenizer makes no tokens of its text")]
    NoTokens {
        /// The row.
        origin: Origin,
    },
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Columns with a text, or a pair of texts, and its class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassColumns {
    /// The text.
    pub text: String,
    /// The second text of a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<String>,
    /// The class.
    pub label: String,
    /// The classes in their order. Without them, those of the training rows, sorted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
}

/// Columns with a text, or a pair of texts, and a number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumberColumns {
    /// The text.
    pub text: String,
    /// The second text of a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<String>,
    /// The number.
    pub label: String,
}

/// Columns with words and the class of each, as lists or separated by spaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagColumns {
    /// The words.
    pub words: String,
    /// Their classes.
    pub tags: String,
    /// The classes in their order. Without them, those of the training rows, sorted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
}

/// Columns with a question, a text with its answer, and where that is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerColumns {
    /// The question.
    pub question: String,
    /// The text.
    pub context: String,
    /// The answer, word for word.
    pub answer: String,
    /// The character of the text that it starts at, counted from 0. Without it, the first place is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Tokens that two pieces of a long text share.
    #[serde(default = "default_overlap")]
    pub overlap: usize,
}

fn default_overlap() -> usize {
    64
}

/// What a table says of texts.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// The class of a text or a pair.
    Class(ClassColumns),
    /// A number for a text or a pair.
    Number(NumberColumns),
    /// The class of each word.
    Tags(TagColumns),
    /// Where the answer to a question is.
    Answer(AnswerColumns),
}

/// How tables are read.
#[derive(Clone, Debug, PartialEq)]
pub struct TableFormat {
    /// Whether the first row of a CSV or TSV names its columns. Otherwise they are `0`, `1`, ….
    pub header: bool,
    /// What the files are, when their names do not tell.
    pub format: Option<Format>,
    /// What to do with a row that cannot be read, or that has a label which is not known.
    pub bad_rows: BadRows,
}

/// Labelled rows by split.
#[derive(Clone, Debug)]
pub struct Tables {
    /// What is learned from.
    pub train: Vec<Row>,
    /// What is held out.
    pub valid: Vec<Row>,
    /// What is tested at the end, if anything.
    pub test: Vec<Row>,
    /// Rows of any of them that were bad and left out.
    pub skipped: u64,
}

/// A row as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What the model reads.
    pub reading: Reading,
    /// What is said of it.
    pub said: Said,
    /// Where it is.
    pub origin: Origin,
}

/// What a table says of a reading, in its own words.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// A class.
    Class(String),
    /// A number.
    Number(f32),
    /// The class of each word.
    Tags(Vec<String>),
    /// The bytes of the second text that answer.
    Answer(std::ops::Range<usize>),
}

impl Tables {
    /// Reads a folder of tables, or one table. Where none is held out, `valid_fraction` of the training rows is,
    /// chosen by what they say, so that a longer table holds out the same rows.
    ///
    /// # Errors
    ///
    /// When a file or a row cannot be read, or a split is empty.
    pub fn read(
        path: &Path,
        labels: &Labels,
        format: &TableFormat,
        valid_fraction: f64,
    ) -> Result<Self, LabelledError> {
        let mut skipped = 0;
        let mut rows = |path: &Path| {
            let (rows, bad) = labels.rows(path, format)?;
            skipped += bad;
            Ok::<_, LabelledError>(rows)
        };
        let mut tables = [None, None, None];
        if path.is_dir() {
            let names: [&[&str]; 3] = [
                &["train"],
                &["dev", "valid", "validation", "val"],
                &["test"],
            ];
            for (table, names) in tables.iter_mut().zip(names) {
                let file = table_called(path, names)?;
                *table = file.map(|file| rows(&file)).transpose()?;
            }
        } else {
            tables[0] = Some(rows(path)?);
        }
        let [train, valid, mut test] = tables;
        let train = train.ok_or_else(|| LabelledError::NoTraining(path.to_owned()))?;
        let (mut valid, mut train) = match valid {
            Some(valid) => (valid, train),
            None => train
                .into_iter()
                .partition(|row| row.share() < valid_fraction),
        };
        if format.bad_rows == BadRows::Skip {
            let names = labels.names(&train);
            for rows in [&mut train, &mut valid].into_iter().chain(&mut test) {
                let all = rows.len();
                rows.retain(|row| row.is_known(&names));
                skipped += (all - rows.len()) as u64;
            }
        }
        for (split, rows) in [
            ("training", Some(&train)),
            ("validation", Some(&valid)),
            ("test", test.as_ref()),
        ] {
            if rows.is_some_and(Vec::is_empty) {
                let path = path.to_owned();
                return Err(LabelledError::Empty { split, path });
            }
        }
        let test = test.unwrap_or_default();
        Ok(Self {
            train,
            valid,
            test,
            skipped,
        })
    }
}

/// `shots` rows of each class, chosen by `seed`, in the order of the table. Rows without a class are left out.
///
/// # Errors
///
/// When a class has fewer.
pub fn few(rows: Vec<Row>, shots: usize, seed: u64) -> Result<Vec<Row>, LabelledError> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut by_class: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for index in order {
        if let Said::Class(class) = &rows[index].said {
            by_class.entry(class).or_default().push(index);
        }
    }
    let mut chosen = Vec::new();
    for (class, indices) in by_class {
        let Some(first) = indices.get(..shots) else {
            return Err(LabelledError::TooFew {
                class: class.to_owned(),
                found: indices.len(),
                wanted: shots,
            });
        };
        chosen.extend_from_slice(first);
    }
    chosen.sort_unstable();
    Ok(chosen
        .into_iter()
        .map(|index| rows[index].clone())
        .collect())
}

impl Row {
    /// A number from 0 to 1 that follows from the text alone.
    fn share(&self) -> f64 {
        uniform(&format!("{:?}", self.reading), 0)
    }
}

/// The file of a folder with one of these names, whatever its format.
fn table_called(folder: &Path, names: &[&str]) -> Result<Option<PathBuf>, LabelledError> {
    let unreadable = |source| SourceError::Unreadable {
        path: folder.to_owned(),
        source,
    };
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.sort();
    Ok(found.into_iter().find(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        let stem = name.and_then(|name| name.split('.').next());
        path.is_file() && stem.is_some_and(|stem| names.contains(&stem))
    }))
}

impl Labels {
    /// The rows of a table, or of all tables of a folder, and how many were left out because they were bad.
    ///
    /// # Errors
    ///
    /// When a file or a row cannot be read.
    pub fn rows(
        &self,
        path: &Path,
        format: &TableFormat,
    ) -> Result<(Vec<Row>, u64), LabelledError> {
        let source = SourceConfig {
            format: format.format,
            ..SourceConfig::new(path.display().to_string())
                .with_header(format.header)
                .with_bad_rows(format.bad_rows)
        };
        let (mut rows, mut skipped) = (Vec::new(), 0);
        for file in source.files()? {
            let records = file.records()?;
            let counts = records.counts();
            for record in records {
                let (record, origin) = record?;
                match self.row(&record, origin) {
                    Ok(row) => rows.push(row),
                    Err(_) if format.bad_rows == BadRows::Skip => skipped += 1,
                    Err(error) => return Err(error),
                }
            }
            skipped += counts.skipped();
        }
        Ok((rows, skipped))
    }

    fn row(&self, record: &Record, origin: Origin) -> Result<Row, LabelledError> {
        let fields = Fields { record, origin };
        let (reading, said) = match self {
            Self::Class(columns) => (
                fields.reading(&columns.text, columns.second.as_deref())?,
                Said::Class(fields.text(&columns.label)?),
            ),
            Self::Number(columns) => (
                fields.reading(&columns.text, columns.second.as_deref())?,
                Said::Number(fields.number(&columns.label)?),
            ),
            Self::Tags(columns) => {
                let (words, tags) = (fields.list(&columns.words)?, fields.list(&columns.tags)?);
                if words.len() != tags.len() {
                    let found = format!("{} for {} words", tags.len(), words.len());
                    return Err(fields.wrong(&columns.tags, "one for each word", found));
                }
                (Reading::Words(words), Said::Tags(tags))
            }
            Self::Answer(columns) => {
                let context = fields.text(&columns.context)?;
                let answer = fields.answer(columns, &context)?;
                let question = fields.text(&columns.question)?;
                (Reading::Pair(question, context), Said::Answer(answer))
            }
        };
        let origin = fields.origin;
        Ok(Row {
            reading,
            said,
            origin,
        })
    }

    /// The names of the classes: those of the recipe, or of the training rows, sorted.
    pub fn names(&self, train: &[Row]) -> Vec<String> {
        let named = match self {
            Self::Class(columns) => &columns.labels,
            Self::Tags(columns) => &columns.labels,
            Self::Number(_) => return vec!["LABEL_0".to_owned()],
            Self::Answer(_) => return Vec::new(),
        };
        if let Some(named) = named {
            return named.clone();
        }
        let mut names: Vec<String> = train
            .iter()
            .flat_map(|row| match &row.said {
                Said::Class(class) => vec![class.clone()],
                Said::Tags(tags) => tags.clone(),
                Said::Number(_) | Said::Answer(_) => Vec::new(),
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Rows as examples of at most `max_length` tokens. A long text with an answer becomes several, of which those
    /// without the answer point to the first token.
    ///
    /// # Errors
    ///
    /// When a label is not among `names`, or the tokenizer fails.
    pub fn examples(
        &self,
        rows: &[Row],
        names: &[String],
        tokenizer: &Tokenizer,
        max_length: usize,
    ) -> Result<Vec<Example>, LabelledError> {
        let cut = match self {
            Self::Answer(columns) => Cut::Slide {
                overlap: columns.overlap,
            },
            _ => Cut::End,
        };
        let ids: BTreeMap<&str, usize> = names.iter().map(String::as_str).zip(0..).collect();
        let readings: Vec<Reading> = rows.iter().map(|row| row.reading.clone()).collect();
        let marked = tokenizer.mark(&readings, max_length, cut)?;
        let mut examples = Vec::with_capacity(rows.len());
        for (row, pieces) in rows.iter().zip(marked) {
            for piece in pieces {
                if piece.tokens.is_empty() {
                    let origin = row.origin.clone();
                    return Err(LabelledError::NoTokens { origin });
                }
                examples.push(Example {
                    target: row.target(&piece, &ids, names)?,
                    tokens: piece.tokens,
                    segments: piece.segments,
                });
            }
        }
        Ok(examples)
    }
}

impl Row {
    /// Whether all labels of the row are among these.
    fn is_known(&self, names: &[String]) -> bool {
        match &self.said {
            Said::Class(class) => names.contains(class),
            Said::Tags(tags) => tags.iter().all(|tag| names.contains(tag)),
            Said::Number(_) | Said::Answer(_) => true,
        }
    }

    fn target(
        &self,
        marked: &Marked,
        ids: &BTreeMap<&str, usize>,
        names: &[String],
    ) -> Result<Target, LabelledError> {
        let id = |label: &str| {
            ids.get(label)
                .copied()
                .ok_or_else(|| LabelledError::UnknownLabel {
                    origin: self.origin.clone(),
                    label: label.to_owned(),
                    known: names.to_vec(),
                })
        };
        Ok(match &self.said {
            Said::Class(class) => Target::Class(id(class)?),
            Said::Number(number) => Target::Number(*number),
            Said::Tags(tags) => {
                let classes = tags.iter().map(|tag| id(tag));
                let classes = classes.collect::<Result<Vec<usize>, _>>()?;
                // The first token of a word is asked for its class, the others are not.
                let mut last = None;
                let of_token = marked.places.iter().map(|place| {
                    let word = place.and_then(|place| place.word);
                    let is_first = word.is_some() && word != last;
                    last = word;
                    match word.and_then(|word| classes.get(word as usize)) {
                        Some(&class) if is_first => class as i32,
                        _ => NOT_ASKED,
                    }
                });
                Target::Tokens(of_token.collect())
            }
            Said::Answer(answer) => {
                let touches = |place: &crate::marked::Place| {
                    place.text == 1 && place.start < answer.end && place.end > answer.start
                };
                let is_in =
                    |place: &Option<crate::marked::Place>| place.as_ref().is_some_and(touches);
                let places = &marked.places;
                let ends = (
                    places.iter().position(is_in),
                    places.iter().rposition(is_in),
                );
                let covers = |first: usize, last: usize| {
                    let starts = places[first].is_some_and(|place| place.start <= answer.start);
                    starts && places[last].is_some_and(|place| place.end >= answer.end)
                };
                match ends {
                    (Some(first), Some(last)) if covers(first, last) => Target::Span(first, last),
                    _ => Target::Span(0, 0),
                }
            }
        })
    }
}

/// A row's values, with where it is for errors.
struct Fields<'a> {
    record: &'a Record,
    origin: Origin,
}

impl Fields<'_> {
    fn value(&self, column: &str) -> Result<&Value, LabelledError> {
        self.record
            .get(column)
            .ok_or_else(|| LabelledError::NoColumn {
                origin: self.origin.clone(),
                column: column.to_owned(),
                there: self.record.columns().to_vec(),
            })
    }

    fn wrong(&self, column: &str, wanted: &'static str, found: String) -> LabelledError {
        LabelledError::Value {
            origin: self.origin.clone(),
            column: column.to_owned(),
            wanted,
            found,
        }
    }

    fn text(&self, column: &str) -> Result<String, LabelledError> {
        let value = self.value(column)?;
        match self.record.text(column) {
            Some(text) => Ok(text.into_owned()),
            None => Err(self.wrong(column, "text", value.to_string())),
        }
    }

    /// A text, or a pair of texts.
    fn reading(&self, text: &str, second: Option<&str>) -> Result<Reading, LabelledError> {
        let text = self.text(text)?;
        Ok(match second {
            None => Reading::Text(text),
            Some(second) => Reading::Pair(text, self.text(second)?),
        })
    }

    fn number(&self, column: &str) -> Result<f32, LabelledError> {
        let text = self.text(column)?;
        let number = text.trim().parse::<f32>().ok();
        number
            .filter(|number| number.is_finite())
            .ok_or_else(|| self.wrong(column, "a number", format!("{text:?}")))
    }

    fn list(&self, column: &str) -> Result<Vec<String>, LabelledError> {
        let value = self.value(column)?;
        let items = match value {
            Value::String(text) => Some(text.split_whitespace().map(str::to_owned).collect()),
            Value::Array(items) => items
                .iter()
                .map(|item| match item {
                    Value::String(text) => Some(text.clone()),
                    Value::Number(number) => Some(number.to_string()),
                    _ => None,
                })
                .collect(),
            _ => None,
        };
        items.ok_or_else(|| self.wrong(column, "a list of words", value.to_string()))
    }

    /// The bytes of `context` that answer.
    fn answer(
        &self,
        columns: &AnswerColumns,
        context: &str,
    ) -> Result<std::ops::Range<usize>, LabelledError> {
        let answer = self.text(&columns.answer)?;
        let start = match &columns.start {
            None => context.find(&answer),
            Some(column) => {
                let start = self.number(column)? as usize;
                let bytes = context.char_indices().map(|(byte, _)| byte).nth(start);
                bytes.filter(|&byte| context[byte..].starts_with(&answer))
            }
        };
        match start {
            Some(start) if !answer.is_empty() => Ok(start..start + answer.len()),
            _ => {
                let found = format!("{answer:?}, which is not there");
                Err(self.wrong(&columns.answer, "words of the context", found))
            }
        }
    }
}
