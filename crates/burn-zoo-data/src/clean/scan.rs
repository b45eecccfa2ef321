//! Text read byte for byte as long as it is ASCII, which most of it is.

/// Where the first character from `at` on stands for which `is` holds; the end where there is none.
#[inline]
pub(super) fn find_from(text: &str, mut at: usize, is: impl Fn(char) -> bool) -> usize {
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        if byte.is_ascii() {
            if is(char::from(byte)) {
                return at;
            }
            at += 1;
        } else {
            match text[at..].chars().next() {
                Some(character) if !is(character) => at += character.len_utf8(),
                _ => return at,
            }
        }
    }
    at
}

/// What white space separates, as [`str::split_whitespace`] has it.
pub(super) fn split_whitespace(text: &str) -> impl Iterator<Item = &str> {
    let mut end = 0;
    std::iter::from_fn(move || {
        let start = find_from(text, end, |character| !character.is_whitespace());
        end = find_from(text, start, char::is_whitespace);
        (start < end).then(|| &text[start..end])
    })
}

/// How many characters the text has: every byte counts but those that continue one.
#[inline]
pub(super) fn count_characters(word: &str) -> usize {
    let starts = |byte: &&u8| **byte as i8 >= -0x40;
    word.as_bytes().iter().filter(starts).count()
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
            let found: Vec<&str> = split_whitespace(&text).collect();
            prop_assert_eq!(found, text.split_whitespace().collect::<Vec<_>>());
            prop_assert_eq!(count_characters(&text), text.chars().count());
            let is = |character: char| character.is_alphabetic();
            prop_assert_eq!(find_from(&text, 0, is), text.find(is).unwrap_or(text.len()));
        }
    }
}
