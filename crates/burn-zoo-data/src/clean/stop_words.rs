//! Removal of the words that say least.

use super::hash::HashSet;
use super::language::Code;
use super::scan::{ALPHANUMERIC, ALPHANUMERIC_OR_APOSTROPHE};
use super::{Outcome, Problem};

/// The stop words of a language, as the `stop-words` crate lists them (stopwords-iso).
pub(super) struct StopWords {
    words: HashSet<&'static str>,
    /// Bytes of the longest.
    longest: usize,
}

impl StopWords {
    /// Of a language by its ISO 639-1 or 639-3 code.
    pub fn new(language: &str) -> Result<Self, Problem> {
        let short = Code::find(language).map_or(language, |code| code.part1);
        let words = stop_words::lookup(short).ok_or_else(|| Problem::NoStopWords {
            language: language.to_owned(),
            known: stop_words::available_languages().join(", "),
        })?;
        Ok(Self {
            words: words.iter().copied().collect(),
            longest: words.iter().map(|word| word.len()).max().unwrap_or(0),
        })
    }

    /// Takes out the words of the list, whatever their case, and the spaces after them; those
    /// before them where the next character is not a space. Punctuation stays. A word is a run of
    /// letters, digits, and apostrophes between them.
    pub fn remove(&self, text: &str) -> Outcome {
        let mut left = String::new();
        let mut lower = String::new();
        let (mut copied, mut at) = (0, 0);
        loop {
            let start = ALPHANUMERIC.find(text, at);
            let word = first_word(&text[start..]);
            if word.is_empty() {
                break;
            }
            at = start + word.len();
            if !self.contains(word, &mut lower) {
                continue;
            }
            left.push_str(&text[copied..start]);
            let after = &text[at..];
            let spaces = after.len() - after.trim_start_matches(is_space).len();
            if spaces == 0 {
                left.truncate(left.trim_end_matches(is_space).len());
            }
            at += spaces;
            copied = at;
        }
        if copied == 0 {
            return Outcome::Keep;
        }
        left.push_str(&text[copied..]);
        Outcome::Change(left)
    }

    /// Whether the word is in the list; `lower` is room for its lower case.
    fn contains(&self, word: &str, lower: &mut String) -> bool {
        if word.len() > self.longest && word.is_ascii() {
            return false;
        }
        let is_lower = |byte: u8| byte.is_ascii() && !byte.is_ascii_uppercase();
        if word.bytes().all(is_lower) {
            return self.words.contains(word);
        }
        lower.clear();
        lower.extend(word.chars().flat_map(char::to_lowercase));
        self.words.contains(lower.as_str())
    }
}

fn is_space(character: char) -> bool {
    character.is_whitespace() && character != '\n'
}

/// The word that the text starts with.
fn first_word(text: &str) -> &str {
    let end = ALPHANUMERIC_OR_APOSTROPHE.find_other(text, 0);
    text[..end].trim_end_matches(['\'', '’'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without(language: &str, text: &str) -> Outcome {
        StopWords::new(language).unwrap().remove(text)
    }

    #[test]
    fn words_of_the_list_go_with_one_side_of_their_spaces() {
        let changed = |text: &str| Outcome::Change(text.to_owned());
        assert_eq!(without("en", "The cat, and the dog."), changed("cat, dog."));
        assert_eq!(
            without("eng", "Dogs and,\nit isn't fish"),
            changed("Dogs,\nfish")
        );
        assert_eq!(without("en", "'Tigers' eat lions"), Outcome::Keep);
        assert_eq!(
            without("de", "Der Hund und die Katze"),
            changed("Hund Katze")
        );
        assert_eq!(without("fra", "À cheval"), changed("cheval"));
    }

    #[test]
    fn a_language_without_a_list_is_refused() {
        let problem = StopWords::new("epo2").err().unwrap();
        assert!(problem.to_string().contains("`epo2`"), "{problem}");
    }
}
