//! What cleaning did to a corpus.

use std::fmt;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::document::Document;

/// How many dropped documents a step shows.
const EXAMPLES: usize = 5;
/// How many characters of a dropped document are shown.
const EXCERPT: usize = 160;

/// What every step saw, kept, and dropped, in the order of the steps.
///
/// Reports of parts of a corpus, made by the same steps, [`merge`](Report::merge) into the report
/// of the whole corpus, whatever the parts and the order of merging. It is written as JSON by
/// serde, and as a table by `Display`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// One entry for each step.
    pub steps: Vec<StepReport>,
}

/// What one step did. `seen.documents` is `kept.documents + dropped.documents`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepReport {
    /// The step's name in a recipe, such as `near_duplicates`.
    pub step: String,
    /// What came in.
    pub seen: Tally,
    /// What went out, in the bytes that the step left.
    pub kept: Tally,
    /// What was left out.
    pub dropped: Tally,
    /// How many of the kept documents the step changed.
    pub changed: u64,
    /// A few of the documents that were dropped, drawn at random by a hash of their origins.
    pub examples: Vec<Example>,
}

/// A number of documents and the bytes of their texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// How many documents.
    pub documents: u64,
    /// How many bytes of UTF-8.
    pub bytes: u64,
}

/// A document that was dropped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// The file and the row.
    pub origin: String,
    /// What the step found.
    pub why: String,
    /// How the text begins, as the step saw it, on one line.
    pub excerpt: String,
}

impl Report {
    /// Of steps that have seen nothing yet.
    pub fn new<'a>(steps: impl IntoIterator<Item = &'a str>) -> Self {
        let steps = steps.into_iter().map(StepReport::new).collect();
        Self { steps }
    }

    /// Adds what the same steps did elsewhere. An empty report takes over the steps of `other`;
    /// a step that is not at the same place in both is listed behind.
    pub fn merge(&mut self, other: Self) {
        for (index, step) in other.steps.into_iter().enumerate() {
            match self.steps.get_mut(index) {
                Some(here) if here.step == step.step => here.merge(step),
                _ => self.steps.push(step),
            }
        }
    }
}

impl StepReport {
    fn new(step: &str) -> Self {
        Self {
            step: step.to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn keep(&mut self, bytes: usize) {
        self.seen.add(bytes);
        self.kept.add(bytes);
    }

    pub(super) fn change(&mut self, before: usize, after: usize) {
        self.seen.add(before);
        self.kept.add(after);
        self.changed += 1;
    }

    pub(super) fn drop(&mut self, document: &Document, why: String) {
        self.seen.add(document.text.len());
        self.dropped.add(document.text.len());
        self.show([Example {
            origin: document.origin.to_string(),
            why,
            excerpt: excerpt(&document.text),
        }]);
    }

    fn merge(&mut self, other: Self) {
        self.seen.merge(other.seen);
        self.kept.merge(other.kept);
        self.dropped.merge(other.dropped);
        self.changed += other.changed;
        self.show(other.examples);
    }

    /// Keeps the examples whose origins have the smallest hashes. The smallest of a union are the
    /// smallest of the smallest of its parts, so that the order of merging does not matter.
    fn show(&mut self, examples: impl IntoIterator<Item = Example>) {
        self.examples.extend(examples);
        self.examples.sort_by_cached_key(|example| {
            let hash = XxHash3_64::oneshot(example.origin.as_bytes());
            (hash, example.clone())
        });
        self.examples.truncate(EXAMPLES);
    }
}

impl Tally {
    fn add(&mut self, bytes: usize) {
        self.documents += 1;
        self.bytes += bytes as u64;
    }

    fn merge(&mut self, other: Self) {
        self.documents += other.documents;
        self.bytes += other.bytes;
    }
}

fn excerpt(text: &str) -> String {
    let mut characters = text.trim_start().chars();
    let line = |character: char| {
        if character.is_control() {
            ' '
        } else {
            character
        }
    };
    let mut excerpt: String = characters.by_ref().take(EXCERPT).map(line).collect();
    if characters.next().is_some() {
        excerpt.push('…');
    }
    excerpt
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = [
            "step",
            "seen",
            "kept",
            "dropped",
            "changed",
            "bytes seen",
            "bytes kept",
            "bytes dropped",
        ];
        let rows = self.steps.iter().map(|step| {
            [
                step.step.clone(),
                step.seen.documents.to_string(),
                step.kept.documents.to_string(),
                step.dropped.documents.to_string(),
                step.changed.to_string(),
                step.seen.bytes.to_string(),
                step.kept.bytes.to_string(),
                step.dropped.bytes.to_string(),
            ]
        });
        let rows: Vec<_> = std::iter::once(head.map(str::to_owned))
            .chain(rows)
            .collect();
        let widths: [usize; 8] = std::array::from_fn(|column| {
            rows.iter().map(|row| row[column].len()).max().unwrap_or(0)
        });
        for row in &rows {
            write!(f, "{:<width$}", row[0], width = widths[0])?;
            for (cell, width) in row.iter().zip(widths).skip(1) {
                write!(f, "  {cell:>width$}")?;
            }
            writeln!(f)?;
        }
        for step in self.steps.iter().filter(|step| !step.examples.is_empty()) {
            writeln!(f, "\ndropped by {}, for example:", step.step)?;
            for example in &step.examples {
                writeln!(f, "  {}: {}", example.origin, example.why)?;
                writeln!(f, "    {}", example.excerpt)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Origin;
    use proptest::prelude::*;
    use std::path::PathBuf;
    use std::sync::Arc;

    /// The report of the rows, the even ones of which are dropped.
    fn report(rows: &[usize]) -> Report {
        let file = Arc::new(PathBuf::from("corpus.txt"));
        let mut report = Report::new(["length", "lowercase"]);
        for &row in rows {
            let document = Document {
                text: format!("row {row}\nof many"),
                origin: Origin {
                    file: file.clone(),
                    row,
                },
            };
            if row % 2 == 0 {
                report.steps[0].drop(&document, format!("{row} is even"));
            } else {
                report.steps[0].keep(document.text.len());
                report.steps[1].change(document.text.len(), 3);
            }
        }
        report
    }

    proptest! {
        #[test]
        fn merging_parts_in_any_order_gives_the_report_of_the_whole(
            n in 0usize..60,
            order in prop::collection::vec(any::<u32>(), 60),
            size in 1usize..20,
        ) {
            let mut rows: Vec<usize> = (0..n).collect();
            let whole = report(&rows);
            rows.sort_by_key(|&row| order[row]);
            let mut merged = Report::default();
            for part in rows.chunks(size) {
                merged.merge(report(part));
            }
            if n > 0 {
                prop_assert_eq!(&merged, &whole);
            }
            let json = serde_json::to_string(&merged).unwrap();
            prop_assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), merged);
        }
    }

    #[test]
    fn the_table_lists_steps_and_examples() {
        let shown = report(&[1, 2, 3]).to_string();
        let expected = "\
step       seen  kept  dropped  changed  bytes seen  bytes kept  bytes dropped
length        3     2        1        0          39          26             13
lowercase     2     2        0        2          26           6              0

dropped by length, for example:
  corpus.txt:2: 2 is even
    row 2 of many
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_excerpt_of_a_long_text_is_cut_between_characters() {
        let shown = excerpt(&"é".repeat(EXCERPT + 1));
        assert_eq!(shown, "é".repeat(EXCERPT) + "…");
    }
}
