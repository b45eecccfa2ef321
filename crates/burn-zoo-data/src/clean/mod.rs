//! Cleaning of text: a list of steps, each counted in a report.
//!
//! Steps that look at one document after the other are what a [`Cleaner`] runs, on all cores.
//! Those that compare documents come last: see [`Duplicates`] and [`find_duplicates`].

mod contamination;
mod duplicates;
mod gopher;
mod hash;
mod language;
mod length;
mod minhash;
mod normalise;
mod repetition;
mod report;
mod scan;
mod stop_words;
mod words;

use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use contamination::Contamination;
use language::Languages;
use scan::Text;
use stop_words::StopWords;

pub use duplicates::{
    Duplicates, DuplicatesError, Fingerprint, Place, Verdict, Verdicts, find_duplicates,
};
pub use gopher::GopherConfig;
pub use length::LengthConfig;
pub use minhash::MinHashConfig;
pub use normalise::Form;
pub use repetition::RepetitionConfig;
pub use report::{Example, Report, StepReport, Tally};

use crate::document::Document;
use crate::markup::{html::html_to_text, wikitext::wikitext_to_prose};

/// One step of cleaning. A document that a step leaves without text is dropped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Takes the text out of HTML.
    Html,
    /// Takes the prose out of the markup of Wikipedia.
    Wikitext,
    /// Brings text into a normal form of Unicode, and line ends into `\n` with the invisible
    /// characters.
    Unicode {
        /// Which form: `nfc`.
        #[serde(default)]
        form: Form,
        /// Whether control characters other than tab and line feed, soft hyphens, marks of
        /// direction and zero-width spaces are taken out: they are.
        #[serde(default = "yes")]
        remove_invisible: bool,
    },
    /// Makes all letters small.
    Lowercase,
    /// Takes out the words that are most frequent and say least.
    StopWords {
        /// Of which language, by its ISO 639-1 or 639-3 code.
        language: String,
    },
    /// Keeps documents of some languages, detected on 600 bytes from the middle of the text.
    Language {
        /// The languages by their ISO 639-1 or 639-3 codes.
        keep: Vec<String>,
        /// How certain the detector has to be, from 0 to 1: 0.5.
        #[serde(default = "half")]
        min_confidence: f64,
    },
    /// Keeps documents of some lengths.
    Length(LengthConfig),
    /// Keeps documents that look like prose by Gopher's rules.
    Gopher(GopherConfig),
    /// Drops documents that repeat themselves by Gopher's rules.
    GopherRepetition(RepetitionConfig),
    /// Drops documents that hold text of an evaluation, any n-gram of its words.
    Contamination {
        /// Text files, such as test sets, in any text format.
        files: Vec<PathBuf>,
        /// Words in an n-gram, in lower case and without punctuation: 13.
        #[serde(default = "thirteen")]
        n_gram: usize,
    },
    /// Drops documents with the text of an earlier one, apart from white space around it.
    ExactDuplicates,
    /// Drops documents with nearly the text of an earlier one.
    NearDuplicates(MinHashConfig),
}

fn yes() -> bool {
    true
}

fn half() -> f64 {
    0.5
}

fn thirteen() -> usize {
    13
}

impl Step {
    /// Its name in a recipe.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Html => "html",
            Self::Wikitext => "wikitext",
            Self::Unicode { .. } => "unicode",
            Self::Lowercase => "lowercase",
            Self::StopWords { .. } => "stop_words",
            Self::Language { .. } => "language",
            Self::Length(_) => "length",
            Self::Gopher(_) => "gopher",
            Self::GopherRepetition(_) => "gopher_repetition",
            Self::Contamination { .. } => "contamination",
            Self::ExactDuplicates => "exact_duplicates",
            Self::NearDuplicates(_) => "near_duplicates",
        }
    }

    /// Where it stands among the steps: those of single documents, then exact duplicates, then
    /// near duplicates.
    fn rank(&self) -> u8 {
        match self {
            Self::ExactDuplicates => 1,
            Self::NearDuplicates(_) => 2,
            _ => 0,
        }
    }
}

/// What makes a list of steps unusable.
#[derive(Debug, thiserror::Error)]
#[error("cleaning step {} ({step}{}): {problem}", index + 1, key.map_or(String::new(), |key| format!(".{key}")))]
pub struct CleanError {
    /// Which step, from 0.
    pub index: usize,
    /// Its name.
    pub step: &'static str,
    /// Which of its keys.
    pub key: Option<&'static str>,
    /// What is wrong with it.
    #[source]
    pub problem: Problem,
}

/// What is wrong with a step.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The detector does not know the language.
    #[error("no language `{language}`; known are {known}")]
    UnknownLanguage {
        /// The code given.
        language: String,
        /// The codes that are known.
        known: String,
    },
    /// There is no list of stop words for the language.
    #[error("no stop words for language `{language}`; there are for {known}")]
    NoStopWords {
        /// The code given.
        language: String,
        /// The codes that have a list.
        known: String,
    },
    /// A list has nothing in it, so that the step would drop everything, or nothing.
    #[error("the list is empty")]
    Empty,
    /// A minimum above its maximum.
    #[error("{min} is more than {max}: no document could be kept")]
    Above {
        /// The minimum.
        min: String,
        /// The maximum.
        max: String,
    },
    /// A fraction that is not one.
    #[error("{value} is not between 0 and 1")]
    NotAFraction {
        /// The number given.
        value: f64,
    },
    /// A size out of range.
    #[error("{size} is not between 1 and {max}")]
    OutOfRange {
        /// The number given.
        size: usize,
        /// The largest allowed.
        max: usize,
    },
    /// An evaluation file cannot be read, or is not UTF-8.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// An evaluation file in which nothing can be found.
    #[error("{} has fewer than {n} words", file.display())]
    TooShort {
        /// The file.
        file: PathBuf,
        /// Words in an n-gram.
        n: usize,
    },
    /// The step stands behind one that it has to stand before.
    #[error(
        "it stands behind {before}: duplicates are removed last, exact ones before near ones, and \
         each once"
    )]
    Order {
        /// The step before it.
        before: &'static str,
    },
}

impl Problem {
    fn above(min: impl ToString, max: impl ToString) -> Self {
        Self::Above {
            min: min.to_string(),
            max: max.to_string(),
        }
    }

    fn unless_fraction(value: f64) -> Result<(), Self> {
        match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(Self::NotAFraction { value }),
        }
    }

    fn unless_within(size: usize, max: usize) -> Result<(), Self> {
        match (1..=max).contains(&size) {
            true => Ok(()),
            false => Err(Self::OutOfRange { size, max }),
        }
    }
}

/// A step's place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StepAt {
    index: usize,
    step: &'static str,
}

impl StepAt {
    fn error(self, (key, problem): (&'static str, Problem)) -> CleanError {
        CleanError {
            index: self.index,
            step: self.step,
            key: Some(key),
            problem,
        }
    }
}

fn check_order(steps: &[Step]) -> Result<(), CleanError> {
    for (before, (index, step)) in steps.iter().zip(steps.iter().enumerate().skip(1)) {
        let again = step.rank() > 0 && step.rank() == before.rank();
        if step.rank() < before.rank() || again {
            return Err(CleanError {
                index,
                step: step.name(),
                key: None,
                problem: Problem::Order {
                    before: before.name(),
                },
            });
        }
    }
    Ok(())
}

/// What a step does to a text.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Keep,
    /// This text takes its place.
    Change(String),
    /// For this reason.
    Drop(String),
}

impl Outcome {
    fn changed(text: &str, new: String) -> Self {
        if new == text {
            Self::Keep
        } else {
            Self::Change(new)
        }
    }
}

/// A step that looks at one document after the other, with what it looks up at hand.
type Compiled = Box<dyn Fn(&Text) -> Outcome + Send + Sync>;

/// Nothing for the steps that compare documents.
fn compile(step: &Step) -> Result<Option<Compiled>, (&'static str, Problem)> {
    let compiled: Compiled = match step.clone() {
        Step::Html => Box::new(|text| Outcome::changed(text.text, html_to_text(text.text))),
        Step::Wikitext => {
            Box::new(|text| Outcome::changed(text.text, wikitext_to_prose(text.text)))
        }
        Step::Unicode {
            form,
            remove_invisible,
        } => Box::new(move |text| normalise::unicode(text.text, form, remove_invisible)),
        Step::Lowercase => Box::new(|text| normalise::lowercase(text.text)),
        Step::StopWords { language } => {
            let words = StopWords::new(&language).map_err(|problem| ("language", problem))?;
            Box::new(move |text| words.remove(text.text))
        }
        Step::Language {
            keep,
            min_confidence,
        } => {
            Problem::unless_fraction(min_confidence).map_err(|bad| ("min_confidence", bad))?;
            let languages =
                Languages::new(&keep, min_confidence).map_err(|problem| ("keep", problem))?;
            Box::new(move |text| languages.check(text.text))
        }
        Step::Length(config) => {
            config.check()?;
            Box::new(move |text| config.judge(text))
        }
        Step::Gopher(config) => {
            config.check()?;
            Box::new(move |text| config.judge(text))
        }
        Step::GopherRepetition(config) => {
            config.check()?;
            Box::new(move |text| config.judge(text))
        }
        Step::Contamination { files, n_gram } => {
            Problem::unless_within(n_gram, 100).map_err(|bad| ("n_gram", bad))?;
            let contamination =
                Contamination::new(&files, n_gram).map_err(|problem| ("files", problem))?;
            Box::new(move |text| contamination.check(text.text))
        }
        Step::ExactDuplicates | Step::NearDuplicates(_) => return Ok(None),
    };
    Ok(Some(compiled))
}

/// The steps of a recipe that look at one document after the other.
///
/// ```
/// use std::{path::PathBuf, sync::Arc};
/// use burn_zoo_data::clean::{Cleaner, LengthConfig, Report, Step};
/// use burn_zoo_data::document::{Document, Origin};
///
/// let min_words = LengthConfig { min_words: Some(2), ..Default::default() };
/// let cleaner = Cleaner::new(&[Step::Lowercase, Step::Length(min_words)])?;
/// let file = Arc::new(PathBuf::from("words.txt"));
/// let documents = ["Hello World", "Hi"].iter().zip(1..).map(|(text, row)| Document {
///     text: text.to_string(),
///     origin: Origin { file: file.clone(), row },
/// });
/// let mut report = Report::default();
/// let clean = cleaner.clean(documents.collect(), &mut report);
/// assert_eq!(clean.len(), 1);
/// assert_eq!(clean[0].text, "hello world");
/// assert_eq!(report.steps[1].dropped.documents, 1);
/// assert_eq!(report.steps[1].examples[0].why, "1 words, fewer than 2");
/// # Ok::<(), burn_zoo_data::clean::CleanError>(())
/// ```
pub struct Cleaner {
    /// All steps of the recipe, for the report.
    names: Vec<&'static str>,
    steps: Vec<Compiled>,
}

impl Cleaner {
    /// Makes the steps ready, and reads the files that they name.
    ///
    /// # Errors
    ///
    /// When a step that removes duplicates is not last, or a step's settings are unusable.
    pub fn new(steps: &[Step]) -> Result<Self, CleanError> {
        check_order(steps)?;
        let mut compiled = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let at = StepAt {
                index,
                step: step.name(),
            };
            compiled.extend(compile(step).map_err(|problem| at.error(problem))?);
        }
        Ok(Self {
            names: steps.iter().map(Step::name).collect(),
            steps: compiled,
        })
    }

    /// A report of all steps, those that remove duplicates included, that have seen nothing yet.
    pub fn report(&self) -> Report {
        Report::new(self.names.iter().copied())
    }

    /// Runs the documents through the steps on all threads of the current pool, and adds to the
    /// report. Order is kept, and the result does not depend on the number of threads.
    pub fn clean(&self, documents: Vec<Document>, report: &mut Report) -> Vec<Document> {
        let (clean, counts) = documents
            .into_par_iter()
            .fold(
                || (Vec::new(), self.report()),
                |(mut clean, mut report), document| {
                    clean.extend(self.clean_document(document, &mut report));
                    (clean, report)
                },
            )
            .reduce(
                || (Vec::new(), self.report()),
                |(mut clean, mut report), (more, counts)| {
                    clean.extend(more);
                    report.merge(counts);
                    (clean, report)
                },
            );
        report.merge(counts);
        clean
    }

    fn clean_document(&self, mut document: Document, report: &mut Report) -> Option<Document> {
        let mut text = Text::new(&document.text);
        for (step, report) in self.steps.iter().zip(&mut report.steps) {
            match step(&text) {
                Outcome::Keep => report.keep(document.text.len()),
                Outcome::Change(new) if new.trim().is_empty() => {
                    report.drop(&document, "no text is left".to_owned());
                    return None;
                }
                Outcome::Change(new) => {
                    report.change(document.text.len(), new.len());
                    document.text = new;
                    text = Text::new(&document.text);
                }
                Outcome::Drop(why) => {
                    report.drop(&document, why);
                    return None;
                }
            }
        }
        Some(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Origin;
    use std::sync::Arc;

    fn documents(texts: impl IntoIterator<Item = String>) -> Vec<Document> {
        let file = Arc::new(PathBuf::from("corpus.txt"));
        let document = |(text, row)| Document {
            text,
            origin: Origin {
                file: file.clone(),
                row,
            },
        };
        texts.into_iter().zip(1..).map(document).collect()
    }

    fn steps(json: &str) -> Vec<Step> {
        serde_json::from_str(json).unwrap()
    }

    fn refused(json: &str) -> String {
        let steps = steps(json);
        let error = Cleaner::new(&steps).err().map(|error| error.to_string());
        error
            .or_else(|| Duplicates::new(&steps).err().map(|error| error.to_string()))
            .unwrap()
    }

    #[test]
    fn a_recipe_leaves_out_what_is_the_default() {
        let written = r#"[
            "html", "wikitext", {"unicode": {}}, "lowercase", {"stop_words": {"language": "en"}},
            {"language": {"keep": ["en"]}}, {"length": {"min_words": 3}}, {"gopher": {}},
            {"gopher_repetition": {"duplicate_lines": 0.5}}, {"contamination": {"files": []}},
            "exact_duplicates", {"near_duplicates": {"bands": 20}}
        ]"#;
        let steps = steps(written);
        let unicode = Step::Unicode {
            form: Form::Nfc,
            remove_invisible: true,
        };
        assert_eq!(steps[2], unicode);
        let near = MinHashConfig {
            bands: 20,
            ..MinHashConfig::default()
        };
        assert_eq!(steps[11], Step::NearDuplicates(near));
        let json = serde_json::to_value(&steps).unwrap();
        for (step, json) in steps.iter().zip(json.as_array().unwrap()) {
            let name = json
                .as_str()
                .or_else(|| Some(json.as_object()?.keys().next()?));
            assert_eq!(name, Some(step.name()));
        }
        assert_eq!(serde_json::from_value::<Vec<Step>>(json).unwrap(), steps);
        let unknown = serde_json::from_str::<Step>(r#"{"length": {"min_word": 3}}"#);
        assert!(unknown.unwrap_err().to_string().contains("`min_word`"));
    }

    #[test]
    fn unusable_steps_are_refused_by_number_and_key() {
        assert_eq!(
            refused(r#"["exact_duplicates", "lowercase"]"#),
            "cleaning step 2 (lowercase): it stands behind exact_duplicates: duplicates are \
             removed last, exact ones before near ones, and each once"
        );
        for (json, start) in [
            (
                r#"[{"near_duplicates": {}}, "exact_duplicates"]"#,
                "2 (exact_duplicates): it stands",
            ),
            (
                r#"["exact_duplicates", "exact_duplicates"]"#,
                "2 (exact_duplicates): it stands",
            ),
            (
                r#"["lowercase", {"language": {"keep": ["xx"]}}]"#,
                "2 (language.keep): no language",
            ),
            (
                r#"[{"language": {"keep": []}}]"#,
                "1 (language.keep): the list is empty",
            ),
            (
                r#"[{"language": {"keep": ["en"], "min_confidence": 2}}]"#,
                "1 (language.min_confidence): 2 is not between 0 and 1",
            ),
            (
                r#"[{"stop_words": {"language": "xx"}}]"#,
                "1 (stop_words.language): no stop words",
            ),
            (
                r#"[{"contamination": {"files": []}}]"#,
                "1 (contamination.files): the list is empty",
            ),
            (
                r#"[{"contamination": {"files": ["none.txt"]}}]"#,
                "1 (contamination.files): cannot read none.txt: ",
            ),
            (
                r#"[{"length": {"min_words": 3, "max_words": 2}}]"#,
                "1 (length.min_words): 3 is more than 2",
            ),
            (
                r#"[{"gopher": {"min_stop_words": 9}}]"#,
                "1 (gopher.min_stop_words): 9 is more than 8",
            ),
            (
                r#"[{"gopher_repetition": {"duplicate_lines": -1}}]"#,
                "1 (gopher_repetition.duplicate_lines): -1 is not between 0 and 1",
            ),
            (
                r#"[{"near_duplicates": {"rows": 0}}]"#,
                "1 (near_duplicates.rows): 0 is not between 1 and 100",
            ),
        ] {
            let shown = refused(json);
            let expected = format!("cleaning step {start}");
            assert!(shown.starts_with(&expected), "{shown}");
        }
    }

    #[test]
    fn steps_run_in_order_and_are_counted() {
        let steps = steps(
            r#"[{"stop_words": {"language": "en"}}, "lowercase", {"length": {"max_words": 2}},
                "exact_duplicates"]"#,
        );
        let texts = ["The Zebra", "the and", "Red Yellow Purple", "purple"].map(str::to_owned);
        let mut report = Report::default();
        let clean = Cleaner::new(&steps)
            .unwrap()
            .clean(documents(texts), &mut report);
        let clean: Vec<_> = clean
            .iter()
            .map(|document| (document.text.as_str(), document.origin.row))
            .collect();
        assert_eq!(clean, [("zebra", 1), ("purple", 4)]);
        let counts: Vec<_> = report
            .steps
            .iter()
            .map(|step| {
                (
                    step.seen.documents,
                    step.changed,
                    step.kept.bytes,
                    step.dropped.bytes,
                )
            })
            .collect();
        // 9 + 7 + 17 + 6 bytes come in; `The ` goes, and so does all of `the and`.
        assert_eq!(
            counts,
            [
                (4, 1, 28, 7),
                (3, 2, 28, 0),
                (2 + 1, 0, 11, 17),
                (0, 0, 0, 0)
            ]
        );
        assert_eq!(report.steps[0].examples[0].why, "no text is left");
        assert_eq!(report.steps[2].examples[0].origin, "corpus.txt:3");
    }

    #[test]
    fn markup_is_taken_off() {
        let clean = |step: Step, text: &str| {
            let cleaner = Cleaner::new(&[step]).unwrap();
            cleaner.clean(documents([text.to_owned()]), &mut Report::default())
        };
        let html = clean(Step::Html, "<p>A <b>cat</b> &amp; a dog</p>");
        assert_eq!(html[0].text.trim(), "A cat & a dog");
        let wikitext = clean(Step::Wikitext, "A '''[[Cat|cat]]''' and a [[dog]].");
        assert_eq!(wikitext[0].text.trim(), "A cat and a dog.");
        assert!(clean(Step::Html, "<script>x</script>").is_empty());
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let texts = (0..500).map(|index: usize| format!("Word {index} ").repeat(index % 7));
        let documents = documents(texts);
        let steps = steps(r#"["lowercase", {"length": {"min_words": 5, "max_words": 11}}]"#);
        let cleaner = Cleaner::new(&steps).unwrap();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let mut report = Report::default();
            let clean = pool
                .build()
                .unwrap()
                .install(|| cleaner.clean(documents.clone(), &mut report));
            (clean, report)
        };
        let (clean, report) = run(1);
        assert_eq!(run(4), (clean.clone(), report.clone()));
        // Two words for each repetition: three to five of them pass.
        let expected: Vec<usize> = (1..=500)
            .filter(|row| (3..=5).contains(&((row - 1) % 7)))
            .collect();
        let rows: Vec<usize> = clean.iter().map(|document| document.origin.row).collect();
        assert_eq!(rows, expected);
        assert_eq!(report.steps[1].kept.documents, clean.len() as u64);
    }
}
