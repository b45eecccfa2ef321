//! Gopher's quality rules (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1).

use serde::{Deserialize, Serialize};

use super::scan::Text;
use super::{Outcome, Problem};

/// What a document of good quality looks like. The defaults are the paper's.
///
/// Words are what white space separates, as written; lines are those that are not blank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GopherConfig {
    /// At least so many words: 50.
    pub min_words: usize,
    /// At most so many words: 100 000.
    pub max_words: usize,
    /// The mean length of a word in characters is at least 3.
    pub min_mean_word_length: f64,
    /// The mean length of a word in characters is at most 10.
    pub max_mean_word_length: f64,
    /// At most 0.1 hash signs for each word; the same for ellipses, `...` or `…`.
    pub max_symbols_per_word: f64,
    /// At most 0.9 of the lines start with a bullet: `•`, `‣`, `◦`, `▪`, `●`, `-` or `*`.
    pub max_bullet_lines: f64,
    /// At most 0.3 of the lines end with an ellipsis.
    pub max_ellipsis_lines: f64,
    /// At least 0.8 of the words hold an alphabetic character.
    pub min_alphabetic_words: f64,
    /// At least 2 of `stop_words` occur.
    pub min_stop_words: usize,
    /// Words of every English text: the, be, to, of, and, that, have, with. They are compared
    /// without the punctuation around them and without regard to case (of ASCII letters).
    pub stop_words: Vec<String>,
}

impl Default for GopherConfig {
    fn default() -> Self {
        let stop_words = ["the", "be", "to", "of", "and", "that", "have", "with"];
        Self {
            min_words: 50,
            max_words: 100_000,
            min_mean_word_length: 3.0,
            max_mean_word_length: 10.0,
            max_symbols_per_word: 0.1,
            max_bullet_lines: 0.9,
            max_ellipsis_lines: 0.3,
            min_alphabetic_words: 0.8,
            min_stop_words: 2,
            stop_words: stop_words.map(str::to_owned).into(),
        }
    }
}

impl GopherConfig {
    /// The key of limits that no document can meet.
    pub(super) fn check(&self) -> Result<(), (&'static str, Problem)> {
        if self.min_words > self.max_words {
            return Err(("min_words", Problem::above(self.min_words, self.max_words)));
        }
        if self.min_mean_word_length > self.max_mean_word_length {
            let problem = Problem::above(self.min_mean_word_length, self.max_mean_word_length);
            return Err(("min_mean_word_length", problem));
        }
        if self.min_stop_words > self.stop_words.len() {
            let problem = Problem::above(self.min_stop_words, self.stop_words.len());
            return Err(("min_stop_words", problem));
        }
        Ok(())
    }

    pub(super) fn judge(&self, text: &Text) -> Outcome {
        self.bad_words(text)
            .or_else(|| self.bad_lines(text.text))
            .map_or(Outcome::Keep, Outcome::Drop)
    }

    fn bad_words(&self, text: &Text) -> Option<String> {
        let (mut words, mut characters, mut alphabetic) = (0usize, 0usize, 0usize);
        let mut missing: Vec<&str> = self.stop_words.iter().map(String::as_str).collect();
        let needed = self.stop_words.len() - self.min_stop_words;
        for found in text.words() {
            let word = text.spelled(found);
            words += 1;
            characters += found.characters;
            alphabetic += usize::from(has_letter(word));
            if missing.len() > needed {
                let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
                missing.retain(|stop| !stop.eq_ignore_ascii_case(bare));
            }
        }
        if words < self.min_words {
            return Some(format!("{words} words, fewer than {}", self.min_words));
        }
        if words > self.max_words {
            return Some(format!("{words} words, more than {}", self.max_words));
        }
        let per_word = |count: usize| count as f64 / words.max(1) as f64;
        let length = per_word(characters);
        if words > 0 && !(self.min_mean_word_length..=self.max_mean_word_length).contains(&length) {
            return Some(format!("words of {length:.1} characters on average"));
        }
        let ellipses = text.text.matches("...").count() + text.text.matches('…').count();
        for (symbol, count) in [("#", text.text.matches('#').count()), ("...", ellipses)] {
            if per_word(count) > self.max_symbols_per_word {
                return Some(format!("{:.2} `{symbol}` for each word", per_word(count)));
            }
        }
        if words > 0 && per_word(alphabetic) < self.min_alphabetic_words {
            let percent = 100.0 * per_word(alphabetic);
            return Some(format!("{percent:.0} % of the words have letters"));
        }
        (missing.len() > needed).then(|| {
            let found = self.stop_words.len() - missing.len();
            format!(
                "{found} of the common words, fewer than {}",
                self.min_stop_words
            )
        })
    }

    fn bad_lines(&self, text: &str) -> Option<String> {
        let (mut lines, mut bullets, mut ellipses) = (0usize, 0usize, 0usize);
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            lines += 1;
            bullets += usize::from(line.starts_with(['•', '‣', '◦', '▪', '●', '-', '*']));
            ellipses += usize::from(line.ends_with("...") || line.ends_with('…'));
        }
        let fraction = |count: usize| count as f64 / lines.max(1) as f64;
        if fraction(bullets) > self.max_bullet_lines {
            let percent = 100.0 * fraction(bullets);
            return Some(format!("{percent:.0} % of the lines start with a bullet"));
        }
        (fraction(ellipses) > self.max_ellipsis_lines).then(|| {
            let percent = 100.0 * fraction(ellipses);
            format!("{percent:.0} % of the lines end with an ellipsis")
        })
    }
}

fn has_letter(word: &str) -> bool {
    let is_ascii_letter = word.bytes().any(|byte| byte.is_ascii_alphabetic());
    is_ascii_letter || (!word.is_ascii() && word.chars().any(char::is_alphabetic))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 60 words of 5 characters in 6 lines, with two common words.
    fn good() -> Vec<Vec<String>> {
        let mut lines = vec![vec!["words".to_owned(); 10]; 6];
        lines[0][0] = "The".to_owned();
        lines[3][3] = "(with)".to_owned();
        lines
    }

    fn judge_text(text: &str) -> Outcome {
        GopherConfig::default().judge(&Text::new(text))
    }

    fn judge(lines: &[Vec<String>]) -> Outcome {
        let lines: Vec<String> = lines.iter().map(|line| line.join(" ")).collect();
        judge_text(&lines.join("\n"))
    }

    /// The outcomes for the good text with its first `n - 1`, and `n`, words changed, counted from
    /// the end so that the common words stay.
    fn around(n: usize, change: impl Fn(&str) -> String) -> [Outcome; 2] {
        [n - 1, n].map(|n| {
            let mut lines = good();
            let words = lines
                .iter_mut()
                .rev()
                .flat_map(|line| line.iter_mut().rev());
            words.take(n).for_each(|word| *word = change(word));
            judge(&lines)
        })
    }

    fn dropped(why: &str) -> Outcome {
        Outcome::Drop(why.to_owned())
    }

    #[test]
    fn each_rule_has_the_limit_of_the_paper() {
        assert_eq!(judge(&good()), Outcome::Keep);
        let short = judge(&good()[..4]);
        assert_eq!(short, dropped("40 words, fewer than 50"));
        let long = "the words with ".repeat(33_334);
        let long = judge_text(&long);
        assert_eq!(long, dropped("100002 words, more than 100000"));
        // 60 · 0.1 = 6 symbols are allowed.
        let [six, seven] = around(7, |word| format!("{word}#"));
        assert_eq!(
            (six, seven),
            (Outcome::Keep, dropped("0.12 `#` for each word"))
        );
        let [six, seven] = around(7, |word| format!("{word}…x"));
        assert_eq!(
            (six, seven),
            (Outcome::Keep, dropped("0.12 `...` for each word"))
        );
        // 60 · 0.8 = 48 words with letters are enough.
        let [twelve, thirteen] = around(13, |_| "12345".to_owned());
        let why = dropped("78 % of the words have letters");
        assert_eq!((twelve, thirteen), (Outcome::Keep, why));
        let mut lines = good();
        lines[0][0] = "words".to_owned();
        assert_eq!(
            judge(&lines),
            dropped("1 of the common words, fewer than 2")
        );
        lines[0][0] = "WITH".to_owned();
        assert_eq!(
            judge(&lines),
            dropped("1 of the common words, fewer than 2")
        );
    }

    #[test]
    fn the_mean_word_length_is_in_characters() {
        let text = |word: &str| format!("the with {}", format!("{word} ").repeat(98));
        assert_eq!(
            judge_text(&text("éé")),
            dropped("words of 2.0 characters on average")
        );
        assert_eq!(judge_text(&text("ééé")), Outcome::Keep);
        assert_eq!(
            judge_text(&text("ééééééééééé")),
            dropped("words of 10.8 characters on average")
        );
    }

    #[test]
    fn lists_and_teasers_are_dropped() {
        let lines = |total: usize, marked: usize, mark: &dyn Fn(&str) -> String| {
            let line = "the words with some more words";
            let lines: Vec<String> = (0..total)
                .map(|index| {
                    if index < marked {
                        mark(line)
                    } else {
                        line.to_owned()
                    }
                })
                .collect();
            judge_text(&lines.join("\n\n"))
        };
        let bullet = |line: &str| format!("  • {line}");
        assert_eq!(lines(20, 18, &bullet), Outcome::Keep);
        assert_eq!(
            lines(20, 19, &bullet),
            dropped("95 % of the lines start with a bullet")
        );
        let teaser = |line: &str| format!("{line} ...");
        assert_eq!(lines(10, 3, &teaser), Outcome::Keep);
        assert_eq!(
            lines(10, 4, &teaser),
            dropped("40 % of the lines end with an ellipsis")
        );
    }
}
