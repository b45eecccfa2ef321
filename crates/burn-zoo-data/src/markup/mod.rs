//! Markup reduced to the text that a reader sees, in linear time and without panics on any input.

pub mod html;
pub mod wikitext;

use std::borrow::Cow;

/// What numeric references to the C1 controls mean, from the days of Windows-1252.
const WINDOWS_1252: &str = "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ";

/// The longest name is that of `&CounterClockwiseContourIntegral;`.
const LONGEST_NAME: usize = 31;

/// Decodes the character reference that `text` starts with, such as `&eacute;` or `&#xe9;`. Returns
/// what it means and how many bytes it takes.
fn character_reference(text: &str) -> Option<(Cow<'static, str>, usize)> {
    let inside = text.strip_prefix('&')?;
    let is_inside = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'#';
    let end = inside
        .bytes()
        .take(LONGEST_NAME + 1)
        .take_while(is_inside)
        .count();
    if inside.as_bytes().get(end) != Some(&b';') {
        return None;
    }
    let name = &inside[..end];
    let meaning = match name.strip_prefix('#') {
        Some(number) => Cow::Owned(numbered(number)?.to_string()),
        None => Cow::Borrowed(quick_xml::escape::resolve_html5_entity(name)?),
    };
    Some((meaning, end + 2))
}

fn numbered(number: &str) -> Option<char> {
    let code = match number.strip_prefix(['x', 'X']) {
        Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16),
        None => number.parse(),
    };
    Some(match code.ok()? {
        0 => char::REPLACEMENT_CHARACTER,
        code @ 0x80..=0x9f => WINDOWS_1252.chars().nth(code as usize - 0x80)?,
        code => char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER),
    })
}

/// Appends text word by word, with single spaces, and line by line, without blanks around lines.
#[derive(Default)]
struct Flow {
    out: String,
    /// What separates the next word from the last.
    gap: Gap,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    #[default]
    None,
    Space,
    Line,
    Paragraph,
}

impl Flow {
    /// Appends text, its white space as single spaces.
    fn push(&mut self, text: &str) {
        if text.starts_with(char::is_whitespace) {
            self.separate(Gap::Space);
        }
        for word in text.split_whitespace() {
            self.push_word(word);
            self.gap = Gap::Space;
        }
        if !text.ends_with(char::is_whitespace) && !text.is_empty() {
            self.gap = Gap::None;
        }
    }

    fn push_word(&mut self, word: &str) {
        match self.gap {
            _ if self.out.is_empty() => {}
            Gap::None => {}
            Gap::Space => self.out.push(' '),
            Gap::Line => self.out.push('\n'),
            Gap::Paragraph => self.out.push_str("\n\n"),
        }
        self.gap = Gap::None;
        self.out.push_str(word);
    }

    /// Keeps what follows apart, by a line if once asked for.
    fn separate(&mut self, gap: Gap) {
        self.gap = self.gap.max(gap);
    }
}
