//! Gopher's rules against repetition (Rae et al. 2021, arXiv:2112.11446, table A1).

use serde::{Deserialize, Serialize};

use super::hash::{HashMap, HashSet};
use super::scan::{Text, count_characters};
use super::{Outcome, Problem};

/// How much of a document may repeat itself, as fractions. The defaults are the paper's.
///
/// Lines and paragraphs (between blank lines) are compared without the white space around them,
/// and words are what white space separates, as written. The first occurrence is not a duplicate,
/// the later ones are. White space is not counted in characters of words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepetitionConfig {
    /// Duplicates among the lines: 0.3.
    pub duplicate_lines: f64,
    /// Duplicates among the paragraphs: 0.3.
    pub duplicate_paragraphs: f64,
    /// Characters in duplicate lines: 0.2.
    pub duplicate_line_characters: f64,
    /// Characters in duplicate paragraphs: 0.2.
    pub duplicate_paragraph_characters: f64,
    /// Characters in the most frequent n-gram of 2, 3, and 4 words: 0.2, 0.18, 0.16. An n-gram
    /// that occurs once does not count; of equally frequent ones the one with most characters
    /// does.
    pub top_n_gram_characters: [f64; 3],
    /// Characters in duplicate n-grams of 5 to 10 words: 0.15, 0.14, 0.13, 0.12, 0.11, 0.1. One
    /// that lies in several is counted once.
    pub duplicate_n_gram_characters: [f64; 6],
}

impl Default for RepetitionConfig {
    fn default() -> Self {
        Self {
            duplicate_lines: 0.3,
            duplicate_paragraphs: 0.3,
            duplicate_line_characters: 0.2,
            duplicate_paragraph_characters: 0.2,
            top_n_gram_characters: [0.2, 0.18, 0.16],
            duplicate_n_gram_characters: [0.15, 0.14, 0.13, 0.12, 0.11, 0.1],
        }
    }
}

impl RepetitionConfig {
    /// The key of a limit that is not a fraction.
    pub(super) fn check(&self) -> Result<(), (&'static str, Problem)> {
        let mut limits = vec![
            ("duplicate_lines", self.duplicate_lines),
            ("duplicate_paragraphs", self.duplicate_paragraphs),
            ("duplicate_line_characters", self.duplicate_line_characters),
            (
                "duplicate_paragraph_characters",
                self.duplicate_paragraph_characters,
            ),
        ];
        limits.extend(
            self.top_n_gram_characters
                .map(|limit| ("top_n_gram_characters", limit)),
        );
        let n_grams = self.duplicate_n_gram_characters;
        limits.extend(n_grams.map(|limit| ("duplicate_n_gram_characters", limit)));
        limits
            .into_iter()
            .try_for_each(|(key, limit)| Problem::unless_fraction(limit).map_err(|bad| (key, bad)))
    }

    pub(super) fn judge(&self, text: &Text) -> Outcome {
        self.repeated_parts(text.text)
            .or_else(|| self.repeated_n_grams(text))
            .map_or(Outcome::Keep, Outcome::Drop)
    }

    fn repeated_parts(&self, text: &str) -> Option<String> {
        let lines = Duplicated::among(text.lines());
        let paragraphs = Duplicated::among(text.split("\n\n"));
        let rules = [
            (
                "of the lines are duplicates",
                lines.parts,
                self.duplicate_lines,
            ),
            (
                "of the paragraphs are duplicates",
                paragraphs.parts,
                self.duplicate_paragraphs,
            ),
            (
                "of the characters are in duplicate lines",
                lines.characters,
                self.duplicate_line_characters,
            ),
            (
                "of the characters are in duplicate paragraphs",
                paragraphs.characters,
                self.duplicate_paragraph_characters,
            ),
        ];
        let (what, found, _) = rules.into_iter().find(|(_, found, limit)| found > limit)?;
        Some(format!("{:.0} % {what}", 100.0 * found))
    }

    fn repeated_n_grams(&self, text: &Text) -> Option<String> {
        let mut n_grams = NGrams::new(text);
        for (n, limit) in (2..).zip(self.top_n_gram_characters) {
            n_grams.lengthen();
            let found = n_grams.top();
            if found > limit {
                let percent = 100.0 * found;
                return Some(format!(
                    "{percent:.0} % of the characters are in one {n}-gram"
                ));
            }
        }
        for (n, limit) in (5..).zip(self.duplicate_n_gram_characters) {
            n_grams.lengthen();
            let found = n_grams.duplicated();
            if found > limit {
                let percent = 100.0 * found;
                return Some(format!(
                    "{percent:.0} % of the characters are in duplicate {n}-grams"
                ));
            }
        }
        None
    }
}

/// What fraction of lines, or of paragraphs, occurred before.
struct Duplicated {
    parts: f64,
    characters: f64,
}

impl Duplicated {
    /// White space around the parts and empty ones do not count.
    fn among<'a>(parts: impl Iterator<Item = &'a str>) -> Self {
        let mut seen = HashSet::default();
        let (mut all, mut all_characters) = (0usize, 0usize);
        let (mut duplicates, mut characters) = (0usize, 0usize);
        for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
            let length = count_characters(part);
            all += 1;
            all_characters += length;
            if !seen.insert(part) {
                duplicates += 1;
                characters += length;
            }
        }
        Self {
            parts: fraction(duplicates, all),
            characters: fraction(characters, all_characters),
        }
    }
}

fn fraction(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// The n-grams of a text that occur more than once, for one n after the other: few places are left
/// to look at for the longer ones.
struct NGrams {
    n: usize,
    /// The number of every word, equal for equal words.
    words: Vec<u32>,
    /// How many characters come before a word; at the end, those of all words.
    before: Vec<usize>,
    /// Where n-grams start that occur more than once.
    repeated: Vec<usize>,
    /// The number of the n-gram that starts at a place of `repeated`.
    numbers: Vec<u32>,
    /// How often the n-gram of a number occurs.
    counts: Vec<u32>,
}

impl NGrams {
    /// Of single words.
    fn new(text: &Text) -> Self {
        let n_words = text.words().len();
        let mut seen = HashMap::with_capacity_and_hasher(n_words / 2, Default::default());
        let mut counts = Vec::with_capacity(n_words / 2);
        let mut words = Vec::with_capacity(n_words);
        let mut before = Vec::with_capacity(n_words + 1);
        before.push(0);
        let mut characters = 0;
        for word in text.words() {
            words.push(count(&mut seen, &mut counts, text.spelled(word)));
            characters += word.characters;
            before.push(characters);
        }
        let mut n_grams = Self {
            n: 1,
            repeated: (0..words.len()).collect(),
            numbers: words.clone(),
            words,
            before,
            counts,
        };
        n_grams.leave_single();
        n_grams
    }

    /// Goes on to n-grams of one word more.
    fn lengthen(&mut self) {
        // An n-gram that repeats has two shorter ones that do.
        let pairs = self.repeated.windows(2);
        let both = pairs.filter(|pair| pair[1] == pair[0] + 1);
        self.repeated = both.map(|pair| pair[0]).collect();
        self.counts.clear();
        let mut seen = HashMap::with_capacity_and_hasher(self.repeated.len(), Default::default());
        for &start in &self.repeated {
            let last = self.words[start + self.n];
            let key = u64::from(self.numbers[start]) << 32 | u64::from(last);
            self.numbers[start] = count(&mut seen, &mut self.counts, key);
        }
        self.n += 1;
        self.leave_single();
    }

    fn leave_single(&mut self) {
        let Self {
            repeated,
            numbers,
            counts,
            ..
        } = self;
        repeated.retain(|&start| counts[numbers[start] as usize] > 1);
    }

    /// The fraction of the characters that is in the most frequent n-gram.
    fn top(&self) -> f64 {
        let weight = |&start: &usize| {
            let characters = self.before[start + self.n] - self.before[start];
            // The earliest of equals, so that it does not depend on the numbers.
            let earliest = std::cmp::Reverse(start);
            (
                self.counts[self.numbers[start] as usize],
                characters,
                earliest,
            )
        };
        let Some(top) = self.repeated.iter().copied().max_by_key(weight) else {
            return 0.0;
        };
        let number = self.numbers[top];
        self.covered(|start| self.numbers[start] == number)
    }

    /// The fraction of the characters that is in n-grams that occurred before.
    fn duplicated(&self) -> f64 {
        let mut seen = vec![false; self.counts.len()];
        self.covered(|start| std::mem::replace(&mut seen[self.numbers[start] as usize], true))
    }

    /// The fraction of the characters that is in the n-grams at some of the places.
    fn covered(&self, mut counts: impl FnMut(usize) -> bool) -> f64 {
        let (mut characters, mut end) = (0, 0);
        for start in self.repeated.iter().copied().filter(|&start| counts(start)) {
            characters += self.before[start + self.n] - self.before[start.max(end)];
            end = start + self.n;
        }
        fraction(characters, self.before[self.words.len()])
    }
}

/// The number of the key, a new one where it was not seen, counted once more.
fn count<K: std::hash::Hash + Eq>(
    seen: &mut HashMap<K, u32>,
    counts: &mut Vec<u32>,
    key: K,
) -> u32 {
    let number = *seen.entry(key).or_insert(counts.len() as u32);
    if number as usize == counts.len() {
        counts.push(0);
    }
    counts[number as usize] += 1;
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The two fractions by their definitions, one character mark for each character.
    fn brute_force(text: &str, n: usize) -> (f64, f64) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let n_grams: Vec<&[&str]> = words.windows(n).collect();
        let length = |words: &[&str]| words.iter().map(|word| word.chars().count()).sum::<usize>();
        let covered = |places: &[usize]| {
            let inside = |word: usize| places.iter().any(|&at| (at..at + n).contains(&word));
            let inside: Vec<&str> = (0..words.len())
                .filter(|&word| inside(word))
                .map(|word| words[word])
                .collect();
            length(&inside) as f64 / length(&words).max(1) as f64
        };
        let places = |n_gram: &[&str]| -> Vec<usize> {
            (0..n_grams.len())
                .filter(|&at| n_grams[at] == n_gram)
                .collect()
        };
        let top = (0..n_grams.len())
            .filter(|&at| places(n_grams[at]).len() > 1)
            .max_by_key(|&at| {
                let n_gram = n_grams[at];
                (places(n_gram).len(), length(n_gram), std::cmp::Reverse(at))
            })
            .map_or(0.0, |at| covered(&places(n_grams[at])));
        let later: Vec<usize> = (0..n_grams.len())
            .filter(|&at| n_grams[..at].contains(&n_grams[at]))
            .collect();
        (top, covered(&later))
    }

    proptest! {
        #[test]
        fn fractions_are_those_of_the_definition(
            words in prop::collection::vec("a|b|ab|é|ccc", 0..40),
        ) {
            let text = words.join(" ");
            let mut n_grams = NGrams::new(&Text::new(&text));
            for n in 2..8 {
                n_grams.lengthen();
                let (top, duplicated) = brute_force(&text, n);
                prop_assert!((n_grams.top() - top).abs() < 1e-12, "{n}: {top}");
                prop_assert!((n_grams.duplicated() - duplicated).abs() < 1e-12, "{n}");
            }
        }

        #[test]
        fn no_limit_is_overlooked(
            words in prop::collection::vec("a|b|ab|é|ccc|dd|e|ff", 0..40),
            limit in 0.0..0.6,
        ) {
            let config = RepetitionConfig {
                top_n_gram_characters: [limit; 3],
                duplicate_n_gram_characters: [limit; 6],
                ..RepetitionConfig::default()
            };
            let text = words.join(" ");
            let top = (2..5).any(|n| brute_force(&text, n).0 > limit);
            let duplicated = (5..11).any(|n| brute_force(&text, n).1 > limit);
            prop_assert_eq!(config.repeated_n_grams(&Text::new(&text)).is_some(), top || duplicated);
        }
    }

    fn judge(config: &RepetitionConfig, text: &str) -> Outcome {
        config.judge(&Text::new(text))
    }

    /// Words that never repeat, so many.
    fn fresh(from: usize, n: usize) -> String {
        (from..from + n)
            .map(|word| format!("w{word:04} "))
            .collect()
    }

    fn dropped(why: &str) -> Outcome {
        Outcome::Drop(why.to_owned())
    }

    #[test]
    fn each_rule_has_the_limit_of_the_paper() {
        let config = RepetitionConfig::default();
        assert_eq!(judge(&config, &fresh(0, 500)), Outcome::Keep);
        let lines = |fresh_lines: usize, short: usize, separator: &str| {
            let mut lines: Vec<String> = (0..fresh_lines).map(|i| fresh(i * 9, 9)).collect();
            lines.extend(vec!["x".to_owned(); short]);
            judge(&config, &lines.join(separator))
        };
        assert_eq!(lines(7, 4, "\n"), Outcome::Keep);
        assert_eq!(
            lines(7, 5, "\n"),
            dropped("33 % of the lines are duplicates")
        );
        // Lines between blank lines are paragraphs too, and so the lines of both.
        let lenient = RepetitionConfig {
            duplicate_lines: 1.0,
            ..config.clone()
        };
        let paragraphs = format!("{}{}", fresh(0, 99), "\n\nx\ny\n\nx\ny\n\nx\ny");
        let why = dropped("50 % of the paragraphs are duplicates");
        assert_eq!(judge(&lenient, &paragraphs), why);
        // A long line that comes twice: one line of six, but many characters.
        let long = fresh(900, 20);
        let text = format!("{long}\na\nb\nc\nd\n{long}");
        assert_eq!(
            judge(&config, &text),
            dropped("49 % of the characters are in duplicate lines")
        );
        let text = format!(
            "{}pq rs {}pq rs {}pq rs",
            fresh(0, 2),
            fresh(2, 2),
            fresh(4, 2)
        );
        assert_eq!(
            judge(&config, &text),
            dropped("29 % of the characters are in one 2-gram")
        );
        // Nine words of 60 come again: 15 % of the characters, which the limit allows for 5 words,
        // but not for 6.
        let text = format!("{}{}{}", fresh(0, 9), fresh(100, 42), fresh(0, 9));
        let why = dropped("15 % of the characters are in duplicate 6-grams");
        assert_eq!(judge(&config, &text), why);
    }
}
