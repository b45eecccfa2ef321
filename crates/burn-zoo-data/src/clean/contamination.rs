//! Removal of documents that hold text of an evaluation.

use std::fs;
use std::path::{Path, PathBuf};

use super::hash::HashSet;
use super::words::NGrams;
use super::{Outcome, Problem};

/// The n-grams of evaluation text, 13 words in the manner of GPT-3 (Brown et al. 2020,
/// arXiv:2005.14165, appendix C). Words are compared in lower case and without punctuation.
pub(super) struct Contamination {
    n: usize,
    hashes: HashSet<u64>,
    /// The last bits of the hashes, a bit for each that occurs: small enough for the processor's
    /// cache, it spares nearly all texts the look at the hashes.
    filter: Vec<u64>,
}

impl Contamination {
    /// Reads evaluation files as plain text, whatever their format: what is between the texts of a
    /// table or of JSON only hides the n-grams that reach over it.
    pub fn new(files: &[PathBuf], n: usize) -> Result<Self, Problem> {
        if files.is_empty() {
            return Err(Problem::Empty);
        }
        let mut hashes = HashSet::default();
        for file in files {
            let text = read(file)?;
            let mut found = NGrams::new(&text, n).map(|found| found.hash).peekable();
            if found.peek().is_none() {
                let file = file.clone();
                return Err(Problem::TooShort { file, n });
            }
            hashes.extend(found);
        }
        hashes.shrink_to_fit();
        let mut filter = vec![0; (hashes.len() / 4).next_power_of_two()];
        for &hash in &hashes {
            let (word, bit) = place(hash, filter.len());
            filter[word] |= bit;
        }
        Ok(Self { n, hashes, filter })
    }

    fn contains(&self, hash: u64) -> bool {
        let (word, bit) = place(hash, self.filter.len());
        self.filter[word] & bit != 0 && self.hashes.contains(&hash)
    }

    /// Drops a text that holds any of the n-grams.
    pub fn check(&self, text: &str) -> Outcome {
        let found = NGrams::new(text, self.n).find(|found| self.contains(found.hash));
        found.map_or(Outcome::Keep, |found| {
            let words = text[found.bytes].split_whitespace().collect::<Vec<_>>();
            Outcome::Drop(format!("evaluation text: “{}”", words.join(" ")))
        })
    }
}

/// Where the bit of a hash is among so many words, a power of two.
fn place(hash: u64, words: usize) -> (usize, u64) {
    ((hash >> 6) as usize & (words - 1), 1 << (hash & 63))
}

fn read(file: &Path) -> Result<String, Problem> {
    fs::read_to_string(file).map_err(|source| Problem::Unreadable {
        file: file.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str, n: usize) -> Contamination {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("evaluation.txt");
        fs::write(&file, text).unwrap();
        Contamination::new(&[file], n).unwrap()
    }

    #[test]
    fn case_and_punctuation_do_not_hide_evaluation_text() {
        let contamination = of("{\"question\": \"Who wrote the Iliad, and when?\"}", 5);
        let outcome = contamination.check("They asked:\n who wrote THE  iliad -- and how");
        let why = "evaluation text: “who wrote THE iliad -- and”";
        assert_eq!(outcome, Outcome::Drop(why.to_owned()));
        assert_eq!(
            contamination.check("who wrote the Odyssey and when"),
            Outcome::Keep
        );
        assert_eq!(contamination.check("the Iliad"), Outcome::Keep);
    }

    #[test]
    fn files_that_cannot_be_compared_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("evaluation.txt");
        let problem = |file: &PathBuf| {
            Contamination::new(std::slice::from_ref(file), 13)
                .err()
                .unwrap()
        };
        assert!(problem(&file).to_string().starts_with("cannot read"));
        fs::write(&file, "only four words here").unwrap();
        let shown = problem(&file).to_string();
        assert!(shown.ends_with("has fewer than 13 words"), "{shown}");
        fs::write(&file, b"\xff\xfe").unwrap();
        assert!(problem(&file).to_string().starts_with("cannot read"));
    }

    proptest! {
        #[test]
        fn texts_that_share_n_words_in_a_row_are_dropped_and_no_others(
            evaluation in prop::collection::vec("[abc]", 3..30),
            text in prop::collection::vec("[abc]", 0..30),
        ) {
            let shares = text
                .windows(3)
                .any(|words| evaluation.windows(3).any(|other| other == words));
            let outcome = of(&evaluation.join(" "), 3).check(&text.join(", "));
            prop_assert_eq!(matches!(outcome, Outcome::Drop(_)), shares);
        }
    }
}
