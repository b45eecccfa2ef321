//! Text read byte for byte as long as it is ASCII, which most of it is.

use std::cell::OnceCell;
use std::ops::Range;

/// A text with its words, which are looked for once for all steps that ask.
pub(super) struct Text<'a> {
    pub text: &'a str,
    words: OnceCell<Vec<Word>>,
}

/// What white space separates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub bytes: Range<usize>,
    pub characters: usize,
}

impl<'a> Text<'a> {
    pub fn new(text: &'a str) -> Self {
        let words = OnceCell::new();
        Self { text, words }
    }

    /// The words in their order, as [`str::split_whitespace`] has them.
    pub fn words(&self) -> &[Word] {
        self.words.get_or_init(|| words(self.text))
    }

    /// A word as it is written.
    pub fn spelled(&self, word: &Word) -> &'a str {
        &self.text[word.bytes.clone()]
    }
}

fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::with_capacity(text.len() / 6);
    let mut start = SPACE.find_other(text, 0);
    while start < text.len() {
        let end = SPACE.find(text, start);
        let characters = count_characters(&text[start..end]);
        words.push(Word {
            bytes: start..end,
            characters,
        });
        start = SPACE.find_other(text, end);
    }
    words
}

/// Some of all characters: those of ASCII in a table, the others by a function.
pub(super) struct Class {
    ascii: [bool; 256],
    other: fn(char) -> bool,
}

/// [`char::is_whitespace`].
pub(super) static SPACE: Class = Class {
    ascii: {
        let mut ascii = [false; 256];
        ascii[b' ' as usize] = true;
        let mut control = b'\t';
        while control <= b'\r' {
            ascii[control as usize] = true;
            control += 1;
        }
        ascii
    },
    other: char::is_whitespace,
};

/// [`char::is_alphanumeric`].
pub(super) static ALPHANUMERIC: Class = Class {
    ascii: letters_and_digits(),
    other: char::is_alphanumeric,
};

/// Those, and apostrophes.
pub(super) static ALPHANUMERIC_OR_APOSTROPHE: Class = Class {
    ascii: {
        let mut ascii = letters_and_digits();
        ascii[b'\'' as usize] = true;
        ascii
    },
    other: |character| character.is_alphanumeric() || character == '’',
};

const fn letters_and_digits() -> [bool; 256] {
    let mut ascii = [false; 256];
    let mut byte = 0u8;
    while byte.is_ascii() {
        ascii[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    ascii
}

impl Class {
    /// Whether an ASCII character is of the class.
    #[inline]
    pub fn has_ascii(&self, byte: u8) -> bool {
        self.ascii[usize::from(byte)]
    }

    /// Where the first character of the class from `at` on stands; the end where there is none.
    #[inline]
    pub fn find(&self, text: &str, at: usize) -> usize {
        self.first(text, at, true)
    }

    /// Where the first character from `at` on stands that is not of the class.
    #[inline]
    pub fn find_other(&self, text: &str, at: usize) -> usize {
        self.first(text, at, false)
    }

    #[inline(always)]
    fn first(&self, text: &str, mut at: usize, is: bool) -> usize {
        let bytes = text.as_bytes();
        while let Some(&byte) = bytes.get(at) {
            if byte.is_ascii() {
                if self.has_ascii(byte) == is {
                    return at;
                }
                at += 1;
            } else {
                match text[at..].chars().next() {
                    Some(character) if (self.other)(character) != is => at += character.len_utf8(),
                    _ => return at,
                }
            }
        }
        at
    }
}

/// How many characters the text has: every byte counts but those that continue one.
#[inline]
pub(super) fn count_characters(text: &str) -> usize {
    if text.is_ascii() {
        return text.len();
    }
    let starts = |byte: &&u8| **byte as i8 >= -0x40;
    text.as_bytes().iter().filter(starts).count()
}

/// The text in runs of ASCII characters, each with the run of others behind it.
pub(super) fn runs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut left = text;
    std::iter::from_fn(move || {
        let (run, rest) = left.split_at(ascii_prefix(left.as_bytes()));
        let (others, rest) = rest.split_at(rest.find(|c: char| c.is_ascii()).unwrap_or(rest.len()));
        left = rest;
        (!run.is_empty() || !others.is_empty()).then_some((run, others))
    })
}

/// How many ASCII characters the text starts with.
fn ascii_prefix(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<16>();
    let whole = blocks.iter().take_while(|block| block.is_ascii()).count();
    let rest = &bytes[16 * whole..];
    16 * whole + rest.iter().take_while(|byte| byte.is_ascii()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_and_characters_are_those_of_the_standard_library(
            text in "[ab \u{b}\u{1c}\u{85}\u{a0}\u{3000}\u{2028}\n\t日é👩]{0,60}",
        ) {
            let found = Text::new(&text);
            let spelled: Vec<&str> = found.words().iter().map(|word| found.spelled(word)).collect();
            prop_assert_eq!(&spelled, &text.split_whitespace().collect::<Vec<_>>());
            for (word, spelled) in found.words().iter().zip(spelled) {
                prop_assert_eq!(word.characters, spelled.chars().count());
            }
            prop_assert_eq!(count_characters(&text), text.chars().count());
            let first = text.find(char::is_alphanumeric).unwrap_or(text.len());
            prop_assert_eq!(ALPHANUMERIC.find(&text, 0), first);
        }

        #[test]
        fn runs_are_the_whole_text(text in "[a-z]{0,40}([é日]{1,3}[a\n]{1,40}){0,3}[é]{0,2}") {
            let mut joined = String::new();
            for (ascii, others) in runs(&text) {
                prop_assert!(ascii.is_ascii() && others.chars().all(|c| !c.is_ascii()));
                joined.push_str(ascii);
                joined.push_str(others);
            }
            prop_assert_eq!(joined, text);
        }
    }

    #[test]
    fn classes_are_those_of_the_standard_library() {
        for byte in 0..128u8 {
            let character = char::from(byte);
            assert_eq!(SPACE.has_ascii(byte), character.is_whitespace());
            assert_eq!(ALPHANUMERIC.has_ascii(byte), character.is_alphanumeric());
            let is_part = character.is_alphanumeric() || character == '\'';
            assert_eq!(ALPHANUMERIC_OR_APOSTROPHE.has_ascii(byte), is_part);
        }
    }
}
