//! Unicode normalisation and lower case.

use serde::{Deserialize, Serialize};
use unicode_normalization::{
    IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfd_quick, is_nfkc_quick, is_nfkd_quick,
};

use super::Outcome;
use super::scan::runs;

/// A normal form of Unicode (Unicode Standard Annex #15).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Characters composed: `e` with an accent is `é`.
    #[default]
    Nfc,
    /// Characters decomposed: `é` is `e` with an accent.
    Nfd,
    /// Composed, and compatible characters made one: `ﬁ` is `fi`, `²` is `2`.
    Nfkc,
    /// Decomposed, and compatible characters made one.
    Nfkd,
}

impl Form {
    /// Whether a text is certainly in the form. ASCII is in every form, and the quick check starts
    /// anew with it: a mark that could be composed with a letter before it is never certain.
    fn holds(self, text: &str) -> bool {
        let quick = match self {
            Self::Nfc => |run: &str| is_nfc_quick(run.chars()),
            Self::Nfd => |run: &str| is_nfd_quick(run.chars()),
            Self::Nfkc => |run: &str| is_nfkc_quick(run.chars()),
            Self::Nfkd => |run: &str| is_nfkd_quick(run.chars()),
        };
        runs(text).all(|(_, others)| quick(others) == IsNormalized::Yes)
    }

    fn of(self, text: &str) -> String {
        match self {
            Self::Nfc => text.nfc().collect(),
            Self::Nfd => text.nfd().collect(),
            Self::Nfkc => text.nfkc().collect(),
            Self::Nfkd => text.nfkd().collect(),
        }
    }
}

/// Brings a text into a normal form, line ends into `\n`, and takes out invisible characters
/// where asked.
pub(super) fn unicode(text: &str, form: Form, remove_invisible: bool) -> Outcome {
    let visible = (remove_invisible && has_invisible(text)).then(|| without_invisible(text));
    let current = visible.as_deref().unwrap_or(text);
    if form.holds(current) {
        return visible.map_or(Outcome::Keep, Outcome::Change);
    }
    Outcome::changed(text, form.of(current))
}

/// Control characters except tab and line feed, the soft hyphen, marks of direction, and spaces
/// without width. The zero-width joiner and non-joiner stay: Persian, the scripts of India, and
/// emoji are spelled with them.
fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\0'..='\u{8}' | '\u{b}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{180e}'
        | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
    )
}

fn has_invisible(text: &str) -> bool {
    runs(text).any(|(ascii, others)| has_control(ascii) || others.chars().any(is_invisible))
}

/// Whether there is an invisible character in ASCII; in blocks, which processors compare at once.
fn has_control(ascii: &str) -> bool {
    let is_control = |byte: u8| (byte < b' ' && byte != b'\t' && byte != b'\n') || byte == 0x7f;
    let any = |block: &[u8]| {
        block
            .iter()
            .fold(false, |any, &byte| any | is_control(byte))
    };
    ascii.as_bytes().chunks(64).any(any)
}

fn without_invisible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\r' if characters.peek() != Some(&'\n') => visible.push('\n'),
            _ if is_invisible(character) => {}
            _ => visible.push(character),
        }
    }
    visible
}

/// The text in lower case.
pub(super) fn lowercase(text: &str) -> Outcome {
    // A sigma at the end of a word has a lower case of its own, so it depends on what is around.
    if text.contains('Σ') {
        return Outcome::changed(text, text.to_lowercase());
    }
    let mut lower = String::with_capacity(text.len());
    for (ascii, others) in runs(text) {
        let start = lower.len();
        lower.push_str(ascii);
        lower[start..].make_ascii_lowercase();
        lower.extend(others.chars().flat_map(char::to_lowercase));
    }
    Outcome::changed(text, lower)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn result(text: &str, form: Form, remove_invisible: bool) -> String {
        match unicode(text, form, remove_invisible) {
            Outcome::Keep => text.to_owned(),
            Outcome::Change(changed) => changed,
            Outcome::Drop(why) => panic!("{why}"),
        }
    }

    #[test]
    fn ascii_is_invisible_alike_wherever_it_stands() {
        for byte in 0..128u8 {
            for place in 0..130 {
                let mut text = vec![b' '; 130];
                text[place] = byte;
                let text = String::from_utf8(text).unwrap();
                assert_eq!(has_control(&text), is_invisible(char::from(byte)));
            }
        }
    }

    #[test]
    fn forms_are_those_of_the_standard() {
        assert_eq!(result("e\u{301}ﬁ²", Form::Nfc, true), "éﬁ²");
        assert_eq!(result("éﬁ", Form::Nfd, true), "e\u{301}ﬁ");
        assert_eq!(result("e\u{301}ﬁ²", Form::Nfkc, true), "éfi2");
        assert_eq!(result("éﬁ", Form::Nfkd, true), "e\u{301}fi");
    }

    #[test]
    fn invisible_characters_go_and_joiners_stay() {
        let text = "\u{feff}a\u{200b}b\u{ad}\tc\r\nd\re\u{0}\u{202e}f 👩\u{200d}🔬";
        assert_eq!(result(text, Form::Nfc, true), "ab\tc\nd\nef 👩\u{200d}🔬");
        assert_eq!(result(text, Form::Nfc, false), text);
    }

    proptest! {
        #[test]
        fn lower_case_is_that_of_the_standard_library(text in "[a-zA-ZÀ-ÿΑ-Ωİ ]{0,60}|\\PC{0,40}") {
            let lower = match lowercase(&text) {
                Outcome::Change(lower) => lower,
                _ => text.clone(),
            };
            prop_assert_eq!(lower, text.to_lowercase());
        }

        #[test]
        fn runs_are_in_a_form_when_the_whole_is(text in "[ae\u{301}\u{323}éﬁ\u{1100}\u{1161}각]{0,12}") {
            for (form, whole) in [
                (Form::Nfc, is_nfc_quick(text.chars())),
                (Form::Nfd, is_nfd_quick(text.chars())),
                (Form::Nfkc, is_nfkc_quick(text.chars())),
                (Form::Nfkd, is_nfkd_quick(text.chars())),
            ] {
                prop_assert_eq!(form.holds(&text), whole == IsNormalized::Yes);
            }
        }

        #[test]
        fn the_result_is_normal_and_stays(text in "\\PC{0,40}|[ -~\r\n]{0,40}") {
            for form in [Form::Nfc, Form::Nfd, Form::Nfkc, Form::Nfkd] {
                let once = result(&text, form, true);
                prop_assert_eq!(&form.of(&once), &once);
                prop_assert_eq!(unicode(&once, form, true), Outcome::Keep);
            }
        }
    }
}
