//! The words of a text as contamination and near-duplicates compare them, hashed in one pass.
//!
//! A word is a run of letters and digits in lower case; everything else separates. In scripts that
//! are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every character is a
//! word.

use std::collections::VecDeque;
use std::ops::Range;

use super::hash::{hash_bytes, mix};
use super::scan::ALPHANUMERIC;

/// A hash and the bytes of the text that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hashed {
    pub hash: u64,
    pub bytes: Range<usize>,
}

/// The words of a text in order.
pub(super) struct Words<'a> {
    text: &'a str,
    at: usize,
    /// Room for the lower case of a word that is not all ASCII.
    lower: String,
}

impl<'a> Words<'a> {
    pub fn new(text: &'a str) -> Self {
        let lower = String::new();
        Self { text, at: 0, lower }
    }

    fn character(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    /// Goes to where the next word starts.
    #[inline]
    fn skip_separators(&mut self) -> Option<()> {
        self.at = ALPHANUMERIC.find(self.text, self.at);
        (self.at < self.text.len()).then_some(())
    }

    /// The hash of the word that starts here, not all ASCII, of which it goes to the end.
    fn hash_any(&mut self) -> u64 {
        self.lower.clear();
        while let Some(character) = self.character().filter(|c| c.is_alphanumeric()) {
            let is_word = is_unspaced(character);
            if is_word && !self.lower.is_empty() {
                break;
            }
            self.at += character.len_utf8();
            self.lower.extend(character.to_lowercase());
            if is_word {
                break;
            }
        }
        // Some letters have a lower case in ASCII, such as the sign for kelvin.
        let or = if self.lower.is_ascii() { SMALL } else { 0 };
        hash_bytes(0, self.lower.as_bytes(), or)
    }
}

/// United with the bits of an ASCII letter or digit, gives its lower case.
const SMALL: u64 = 0x2020_2020_2020_2020;

/// Whether the character's script is written without spaces.
fn is_unspaced(character: char) -> bool {
    matches!(
        character,
        '\u{0e00}'..='\u{0eff}'     // Thai, Lao
        | '\u{1000}'..='\u{109f}'   // Burmese
        | '\u{1780}'..='\u{17ff}'   // Khmer
        | '\u{3040}'..='\u{30ff}'   // Hiragana, Katakana
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}' // Chinese characters
    )
}

impl Iterator for Words<'_> {
    type Item = Hashed;

    #[inline]
    fn next(&mut self) -> Option<Hashed> {
        self.skip_separators()?;
        let start = self.at;
        let bytes = &self.text.as_bytes()[start..];
        let is_other = |byte: &u8| !ALPHANUMERIC.has_ascii(*byte);
        let length = bytes.iter().position(is_other).unwrap_or(bytes.len());
        let hash = if bytes.get(length).is_none_or(u8::is_ascii) {
            self.at += length;
            hash_bytes(0, &bytes[..length], SMALL)
        } else {
            self.hash_any()
        };
        Some(Hashed {
            hash,
            bytes: start..self.at,
        })
    }
}

/// Every `n` words that follow each other, hashed as a polynomial of their hashes that rolls on
/// from one to the next.
pub(super) struct NGrams<'a> {
    words: Words<'a>,
    window: VecDeque<Hashed>,
    n: usize,
    rolling: u64,
    /// What the first word of the window counts in the polynomial: the base to the power `n - 1`.
    first: u64,
}

const BASE: u64 = 0xd134_2543_de82_ef95;

impl<'a> NGrams<'a> {
    /// Of `n > 0` words.
    pub fn new(text: &'a str, n: usize) -> Self {
        Self {
            words: Words::new(text),
            window: VecDeque::with_capacity(n),
            n,
            rolling: 0,
            first: (1..n).fold(1, |power: u64, _| power.wrapping_mul(BASE)),
        }
    }
}

impl Iterator for NGrams<'_> {
    type Item = Hashed;

    #[inline]
    fn next(&mut self) -> Option<Hashed> {
        loop {
            if self.window.len() == self.n {
                let left = self.window.pop_front()?;
                self.rolling = self
                    .rolling
                    .wrapping_sub(left.hash.wrapping_mul(self.first));
            }
            let word = self.words.next()?;
            self.rolling = self.rolling.wrapping_mul(BASE).wrapping_add(word.hash);
            let end = word.bytes.end;
            self.window.push_back(word);
            if self.window.len() == self.n {
                return Some(Hashed {
                    hash: mix(self.rolling),
                    bytes: self.window.front()?.bytes.start..end,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// The words as strings, by the definition.
    fn spelled(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        let mut word = String::new();
        for character in text.chars() {
            if character.is_alphanumeric() && !is_unspaced(character) {
                word.extend(character.to_lowercase());
                continue;
            }
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            if character.is_alphanumeric() {
                words.push(character.to_string());
            }
        }
        if !word.is_empty() {
            words.push(word);
        }
        words
    }

    #[test]
    fn case_punctuation_and_spaces_do_not_count() {
        let hashes = |text| Words::new(text).map(|word| word.hash).collect::<Vec<_>>();
        assert_eq!(hashes("The CAT,  sat (ÉTÉ)."), hashes("the cat sat été"));
        assert_eq!(hashes("\u{212a}elvin \u{212a}"), hashes("Kelvin k"));
        assert_ne!(hashes("the cat sat"), hashes("the cats at"));
        assert_eq!(hashes("日本 x").len(), 3);
    }

    proptest! {
        #[test]
        fn equal_n_grams_have_equal_hashes_and_others_do_not(
            text in "[abÀà 日,.\n]{0,60}",
            n in 1usize..5,
        ) {
            let words = spelled(&text);
            let expected: Vec<&[String]> = words.windows(n).collect();
            let found: Vec<Hashed> = NGrams::new(&text, n).collect();
            prop_assert_eq!(found.len(), expected.len());
            let mut hash_of = HashMap::new();
            let mut words_of = HashMap::new();
            for (found, expected) in found.iter().zip(expected) {
                prop_assert_eq!(&spelled(&text[found.bytes.clone()]), expected);
                prop_assert_eq!(*hash_of.entry(expected).or_insert(found.hash), found.hash);
                prop_assert_eq!(*words_of.entry(found.hash).or_insert(expected), expected);
            }
        }
    }
}
