//! Encoding word by word: words recur, so most are looked up instead of encoded again.
//!
//! A text is cut where the library itself would cut it before its model runs, so that each word's tokens
//! are the same alone as within the text.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex};

use tokenizers::{
    NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    pre_tokenizers::{
        metaspace::PrependScheme,
        split::{Split, SplitPattern},
    },
    utils::SysRegex,
};
use twox_hash::XxHash3_64;

/// Where a text may be cut without changing its tokens.
#[derive(Clone, Debug)]
pub(super) enum Cut {
    /// Between any two characters.
    Characters,
    /// By GPT-2's pattern, into bytes for the model.
    Gpt2,
    /// By another pattern, into bytes for the model (Llama 3, Qwen).
    Pattern(Arc<SysRegex>),
    /// At blanks and line ends, which make no tokens (BERT).
    Blanks,
    /// Before each space (SentencePiece).
    Spaces,
    /// Nowhere that is known.
    Nowhere,
}

impl Cut {
    /// What a tokenizer's normaliser and pre-tokenizer allow.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        use PreTokenizerWrapper as Step;
        match (tokenizer.get_normalizer(), tokenizer.get_pre_tokenizer()) {
            (None, Some(Step::Split(split))) if split.pattern == super::any_character() => {
                Self::Characters
            }
            (None, Some(Step::ByteLevel(bytes))) if bytes.use_regex && !bytes.add_prefix_space => {
                Self::Gpt2
            }
            (None, Some(Step::Sequence(steps))) => match steps.as_ref() {
                [Step::Split(split), Step::ByteLevel(bytes)]
                    if !bytes.use_regex && !bytes.add_prefix_space =>
                {
                    Self::pattern(split).unwrap_or(Self::Nowhere)
                }
                _ => Self::Nowhere,
            },
            (None, Some(Step::Metaspace(space)))
                if space.split && space.prepend_scheme == PrependScheme::Always =>
            {
                Self::Spaces
            }
            (Some(NormalizerWrapper::BertNormalizer(_)), Some(Step::BertPreTokenizer(_))) => {
                Self::Blanks
            }
            _ => Self::Nowhere,
        }
    }

    fn pattern(split: &Split) -> Option<Self> {
        match &split.pattern {
            SplitPattern::Regex(pattern)
                if split.behavior == SplitDelimiterBehavior::Isolated && !split.invert =>
            {
                let pattern = SysRegex::new(pattern).ok()?;
                Some(Self::Pattern(Arc::new(pattern)))
            }
            _ => None,
        }
    }

    /// Hands out the words of `text` in order.
    pub(super) fn each_word<E>(
        &self,
        text: &str,
        mut take: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self::Pattern(pattern) = self else {
            let mut rest = text;
            while !rest.is_empty() {
                let (word, after) = rest.split_at(self.first_word(rest));
                take(word)?;
                rest = after;
            }
            return Ok(());
        };
        let mut done = 0;
        for (start, end) in pattern.find_iter(text) {
            for word in [&text[done..start], &text[start..end]] {
                if !word.is_empty() {
                    take(word)?;
                }
            }
            done = end;
        }
        match &text[done..] {
            "" => Ok(()),
            rest => take(rest),
        }
    }

    /// What the model itself makes of a word, where words are bytes to it.
    pub(super) fn reads_bytes(&self) -> bool {
        matches!(self, Self::Gpt2 | Self::Pattern(_))
    }

    /// How many bytes of `text`, which is not empty, are its first word.
    fn first_word(&self, text: &str) -> usize {
        match self {
            Self::Characters => text.chars().next().map_or(0, char::len_utf8),
            Self::Gpt2 => gpt2_word(text),
            Self::Blanks => {
                let is_blank = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\t' | b'\r');
                let bytes = text.as_bytes();
                let blanks = bytes.iter().take_while(|byte| is_blank(byte)).count();
                let word = bytes[blanks..].iter().position(is_blank);
                word.map_or(text.len(), |length| blanks + length)
            }
            Self::Spaces => {
                let next = text.as_bytes()[1..].iter().position(|&byte| byte == b' ');
                next.map_or(text.len(), |at| 1 + at)
            }
            Self::Pattern(_) | Self::Nowhere => text.len(),
        }
    }

    /// Cuts a long text before some of its words, so that its parts can be encoded at the same time.
    pub(super) fn parts<'a>(&self, text: &'a str) -> Vec<&'a str> {
        const PART_BYTES: usize = 1 << 15;
        if let Self::Pattern(_) | Self::Nowhere = self {
            return vec![text];
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while rest.len() > PART_BYTES {
            // All other ways cut before a space that follows a letter.
            let bytes = rest.as_bytes();
            let is_cut = |&at: &usize| bytes[at] == b' ' && bytes[at - 1].is_ascii_alphanumeric();
            let Some(at) = (PART_BYTES..rest.len()).find(is_cut) else {
                break;
            };
            let (part, after) = rest.split_at(at);
            parts.push(part);
            rest = after;
        }
        parts.push(rest);
        parts
    }
}

/// The length of the first match of
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, which always matches at
/// the start.
fn gpt2_word(text: &str) -> usize {
    let bytes = text.as_bytes();
    if bytes[0] == b'\''
        && let Some(ending) = ["s", "t", "re", "ve", "m", "ll", "d"]
            .into_iter()
            .find(|ending| text[1..].starts_with(ending))
    {
        return 1 + ending.len();
    }
    let start = usize::from(bytes[0] == b' ');
    match text[start..].chars().next().map(Kind::of) {
        Some(kind) if kind != Kind::Space => start + run(&text[start..], kind),
        _ => blank_word(text),
    }
}

/// `\s+(?!\S)|\s+`: all blanks but the last, if something follows them.
fn blank_word(text: &str) -> usize {
    let blanks = run(text, Kind::Space);
    let last = text[..blanks].chars().next_back().map_or(0, char::len_utf8);
    match blanks == text.len() || blanks == last {
        true => blanks,
        false => blanks - last,
    }
}

/// How many bytes at the start of `text` are characters of one kind.
fn run(text: &str, kind: Kind) -> usize {
    let ascii = text
        .bytes()
        .take_while(|&byte| byte.is_ascii() && ASCII[usize::from(byte)] == kind)
        .count();
    let rest = &text[ascii..];
    if rest.as_bytes().first().is_none_or(u8::is_ascii) {
        return ascii;
    }
    let end = rest.find(|character| Kind::of(character) != kind);
    ascii + end.unwrap_or(rest.len())
}

/// What GPT-2's pattern tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Letter,
    Number,
    Space,
    Other,
}

static ASCII: [Kind; 128] = {
    let mut kinds = [Kind::Other; 128];
    let mut byte = 0;
    while byte < 128 {
        kinds[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Kind::Letter,
            b'0'..=b'9' => Kind::Number,
            b' ' | b'\t'..=b'\r' => Kind::Space,
            _ => Kind::Other,
        };
        byte += 1;
    }
    kinds
};

/// The kind of every character, as the library's own regular expressions see it.
static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    let all: String = ('\0'..=char::MAX).collect();
    let mut kinds = vec![Kind::Other; char::MAX as usize + 1];
    for (class, kind) in [
        (r"\p{L}+", Kind::Letter),
        (r"\p{N}+", Kind::Number),
        (r"\s+", Kind::Space),
    ] {
        let pattern = SysRegex::new(class).expect("the pattern is well formed");
        for (start, end) in pattern.find_iter(&all) {
            for character in all[start..end].chars() {
                kinds[character as usize] = kind;
            }
        }
    }
    kinds
});

impl Kind {
    fn of(character: char) -> Self {
        match character.is_ascii() {
            true => ASCII[character as usize],
            false => KINDS[character as usize],
        }
    }
}

/// The characters that stand for bytes in byte-level vocabularies: printable ones for themselves, and the
/// others, in order, for those from U+0100 on.
static BYTES: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        _ => others.next().expect("fewer than 256 are asked for"),
    })
});

/// A word as byte-level vocabularies write it.
pub(super) fn byte_characters(word: &str) -> String {
    word.bytes().map(|byte| BYTES[usize::from(byte)]).collect()
}

/// The tokens of words that were met.
#[derive(Default)]
pub(super) struct Words {
    /// For each word, where its tokens are in `tokens`.
    places: HashMap<Box<str>, Range<u32>, BuildHasherDefault<WordHasher>>,
    tokens: Vec<u32>,
}

impl Words {
    /// A longer word seldom comes again.
    const LONGEST: usize = 48;
    /// Bounds the memory, to some 20 MB.
    const MOST: usize = 1 << 17;

    /// Appends the tokens of `word` to `into`, and asks `encode` for them if the word is new.
    pub(super) fn encode<E>(
        &mut self,
        word: &str,
        into: &mut Vec<u32>,
        encode: impl FnOnce(&str, &mut Vec<u32>) -> Result<(), E>,
    ) -> Result<(), E> {
        if word.len() > Self::LONGEST {
            return encode(word, into);
        }
        if let Some(place) = self.places.get(word) {
            into.extend_from_slice(&self.tokens[place.start as usize..place.end as usize]);
            return Ok(());
        }
        let first = into.len();
        encode(word, into)?;
        if self.places.len() == Self::MOST {
            self.places.clear();
            self.tokens.clear();
        }
        let start = self.tokens.len() as u32;
        self.tokens.extend_from_slice(&into[first..]);
        self.places
            .insert(word.into(), start..self.tokens.len() as u32);
        Ok(())
    }
}

/// XXH3 of the word: the standard library's hasher takes longer than the rest of a look-up.
#[derive(Default)]
struct WordHasher(u64);

impl Hasher for WordHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 ^= XxHash3_64::oneshot(bytes);
    }

    /// A string's hash ends with a byte that no string has. This one needs no end.
    fn write_u8(&mut self, _: u8) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Words for as many threads as encode at the same time.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<Words>>);

impl Pool {
    /// Lends words that no other thread uses.
    pub(super) fn with<R>(&self, task: impl FnOnce(&mut Words) -> R) -> R {
        let lent = self.lock().pop();
        let mut words = lent.unwrap_or_default();
        let result = task(&mut words);
        self.lock().push(words);
        result
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Words>> {
        self.0
            .lock()
            .expect("nothing panics while the words are changed hands")
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GPT2: &str =
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    fn words(text: &str) -> Vec<&str> {
        let (mut words, mut start) = (Vec::new(), 0);
        let take = |word: &str| -> Result<(), ()> {
            words.push(&text[start..start + word.len()]);
            start += word.len();
            Ok(())
        };
        Cut::Gpt2.each_word(text, take).unwrap();
        words
    }

    fn matches(text: &str) -> Vec<&str> {
        let pattern = SysRegex::new(GPT2).unwrap();
        pattern
            .find_iter(text)
            .map(|(start, end)| &text[start..end])
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn words_are_the_matches_of_gpt2s_pattern(
            text in "([ 'strevmld\n\t\u{85}\u{a0}\u{2003}aé²9٣!–\u{301}你🦀]|\\PC){0,24}",
        ) {
            prop_assert_eq!(words(&text), matches(&text));
        }
    }

    #[test]
    fn every_character_is_of_its_kind() {
        for character in '\0'..=char::MAX {
            if character.is_ascii() {
                assert_eq!(ASCII[character as usize], KINDS[character as usize]);
            }
            assert_eq!(
                Kind::of(character) == Kind::Space,
                character.is_whitespace()
            );
        }
    }

    #[test]
    fn words_are_forgotten_before_they_fill_the_memory() {
        let mut words = Words::default();
        let mut encode = |word: &str| {
            let mut tokens = Vec::new();
            let id = word.parse().unwrap();
            let result: Result<(), ()> = words.encode(word, &mut tokens, |_, into| {
                into.push(id);
                Ok(())
            });
            result.unwrap();
            assert_eq!(tokens, [id]);
        };
        for number in 0..=Words::MOST {
            encode(&number.to_string());
            encode("0");
        }
        assert!(words.places.len() < 10);
    }
}
