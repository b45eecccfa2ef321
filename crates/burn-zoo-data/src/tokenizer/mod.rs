//! Tokenizers, trained or loaded, as the `tokenizer.json` that Hugging Face's libraries share.

mod train;
mod words;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokenizers::{Model, TruncationParams, pre_tokenizers::split::SplitPattern};

use words::{Cut, Pool, byte_characters};

/// What goes wrong between text and tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A `tokenizer.json` cannot be read.
    #[error("cannot read tokenizer {}: {problem}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The text has a character that the vocabulary lacks.
    #[error("the tokenizer does not know the character {character:?} (U+{:04X})", *character as u32)]
    UnknownCharacter {
        /// The first such character.
        character: char,
    },
    /// The vocabulary cannot hold what it must.
    #[error("a vocabulary of {vocab_size} cannot hold {what}: it needs at least {needed}")]
    VocabularyTooSmall {
        /// How many tokens were asked for.
        vocab_size: usize,
        /// How many there must be.
        needed: usize,
        /// What they are.
        what: &'static str,
    },
    /// There is nothing to learn from.
    #[error("a tokenizer cannot be trained on a text without words")]
    NoText,
    /// The tokenizers library refuses.
    #[error("tokenizer: {0}")]
    Library(String),
}

impl From<tokenizers::Error> for TokenizerError {
    fn from(error: tokenizers::Error) -> Self {
        Self::Library(error.to_string())
    }
}

/// The token that stands for a hidden one, as BERT writes it.
pub const MASK: &str = "[MASK]";

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenizerConfig {
    /// One token for each different character of the text.
    Char,
    /// Byte-level byte-pair encoding as GPT-2 has it (Sennrich et al. 2016, arXiv:1508.07909),
    /// trained on the training text.
    Bpe {
        /// How many tokens, at least the 256 bytes and the special tokens.
        vocab_size: usize,
        /// Tokens that are never split, such as `<|endoftext|>`. They have the first ids.
        #[serde(default)]
        special_tokens: Vec<String>,
    },
    /// WordPiece as BERT has it (Devlin et al. 2019, arXiv:1810.04805): text cleaned, words split at
    /// punctuation, `[PAD] [UNK] [CLS] [SEP] [MASK]`.
    #[serde(rename = "wordpiece")]
    WordPiece {
        /// How many tokens, at least the special ones and each character, alone and within a word.
        vocab_size: usize,
        /// Whether case and accents are dropped.
        #[serde(default = "lowercase")]
        lowercase: bool,
    },
    /// A unigram language model as SentencePiece has it (Kudo 2018, arXiv:1804.10959), with spaces
    /// written `▁`, `<unk> <s> </s>`, and bytes for what has no token. Two trainings on the same text may
    /// differ in the last digits of the scores.
    Unigram {
        /// How many tokens, at least the special ones, the bytes, and the characters.
        vocab_size: usize,
    },
    /// An existing `tokenizer.json`.
    File {
        /// Where it is.
        path: PathBuf,
    },
}

fn lowercase() -> bool {
    true
}

/// Turns text into token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    pub(crate) library: tokenizers::Tokenizer,
    cut: Cut,
    added: Added,
    words: Arc<Pool>,
}

impl From<tokenizers::Tokenizer> for Tokenizer {
    fn from(mut library: tokenizers::Tokenizer) -> Self {
        library.with_padding(None);
        if let Err(error) = library.with_truncation(None) {
            unreachable!("nothing speaks against no truncation: {error}");
        }
        let added = library.get_added_tokens_decoder();
        Self {
            cut: Cut::of(&library),
            added: Added::new(added.values().map(|token| token.content.clone())),
            words: Arc::default(),
            library,
        }
    }
}

impl Tokenizer {
    /// Trains on `text`, or loads, as the configuration says.
    pub fn train(config: &TokenizerConfig, text: &str) -> Result<Self, TokenizerError> {
        Self::train_on(config, text.split_inclusive('\n'))
    }

    /// Trains on texts that need not be in memory together, or loads. No token spans two texts.
    ///
    /// # Errors
    ///
    /// When the vocabulary is too small for what it must hold, or the file cannot be read.
    pub fn train_on<S: AsRef<str> + Send>(
        config: &TokenizerConfig,
        texts: impl Iterator<Item = S> + Send,
    ) -> Result<Self, TokenizerError> {
        let library = match config {
            TokenizerConfig::Char => train::characters(texts),
            TokenizerConfig::Bpe {
                vocab_size,
                special_tokens,
            } => train::byte_level_bpe(texts, *vocab_size, special_tokens),
            TokenizerConfig::WordPiece {
                vocab_size,
                lowercase,
            } => train::word_piece(texts, *vocab_size, *lowercase),
            TokenizerConfig::Unigram { vocab_size } => train::unigram(texts, *vocab_size),
            TokenizerConfig::File { path } => return Self::load(path),
        };
        library.map(Self::from)
    }

    /// Reads a `tokenizer.json`. Its padding and truncation are set aside.
    pub fn load(path: &Path) -> Result<Self, TokenizerError> {
        tokenizers::Tokenizer::from_file(path)
            .map(Self::from)
            .map_err(|error| TokenizerError::Unreadable {
                path: path.to_owned(),
                problem: error.to_string(),
            })
    }

    /// The contents of a `tokenizer.json`.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        Ok(self.library.to_string(true)?)
    }

    /// SHA-256 of the `tokenizer.json`, in hexadecimal digits.
    pub fn fingerprint(&self) -> Result<String, TokenizerError> {
        let digest = Sha256::digest(self.to_json()?);
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The id of a token, if it is in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// The token that ends a document, by the names that GPT-2, Llama, SentencePiece, Gemma and BERT give
    /// it.
    pub fn end_token(&self) -> Option<u32> {
        const NAMES: [&str; 5] = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]"];
        NAMES.into_iter().find_map(|name| self.token_id(name))
    }

    /// One more than the highest token id.
    pub fn vocab_size(&self) -> usize {
        let ids = self.library.get_vocab(true).into_values();
        ids.max().map_or(0, |highest| highest as usize + 1)
    }

    /// The token ids of `text`, on all cores if it is long.
    ///
    /// # Errors
    ///
    /// When a vocabulary without bytes lacks one of the characters.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let [tokens] = self
            .encode_batch(&[text])?
            .try_into()
            .expect("each text has its tokens");
        Ok(tokens)
    }

    /// The token ids of each text, on all cores, without the marks that the tokenizer may put around a text.
    ///
    /// # Errors
    ///
    /// When a vocabulary without bytes lacks one of the characters.
    pub fn encode_batch<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
    ) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let tokens = texts.par_iter().map(|text| {
            let text = text.as_ref();
            if self.added.are_in(text) {
                let mut tokens = Vec::new();
                self.encode_by_library(text, &mut tokens)?;
                return Ok(tokens);
            }
            let parts = self.cut.parts(text);
            let tokens: Result<Vec<Vec<u32>>, _> = parts
                .par_iter()
                .map(|part| self.encode_part(part))
                .collect();
            Ok(tokens?.concat())
        });
        tokens.collect()
    }

    /// Encodes word by word.
    fn encode_part(&self, part: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = Vec::with_capacity(part.len() / 3);
        self.words.with(|words| {
            self.cut.each_word(part, |word| {
                words.encode(word, &mut tokens, |word, into| self.encode_word(word, into))
            })
        })?;
        Ok(tokens)
    }

    fn encode_word(&self, word: &str, into: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if !self.cut.reads_bytes() {
            return self.encode_by_library(word, into);
        }
        let tokens = self.library.get_model().tokenize(&byte_characters(word))?;
        into.extend(tokens.iter().map(|token| token.id));
        Ok(())
    }

    fn encode_by_library(&self, text: &str, into: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let encoding = self
            .library
            .encode_fast(text, false)
            .map_err(|error| self.explain(text, error))?;
        into.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The token ids of each text with the marks that the tokenizer puts around a text, such as BERT's
    /// `[CLS]` and `[SEP]`, cut to `max_length` with them.
    pub fn encode_marked<T: AsRef<str>>(
        &self,
        texts: &[T],
        max_length: usize,
    ) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let library = self.truncating(TruncationParams {
            max_length,
            ..TruncationParams::default()
        })?;
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let encodings = library
            .encode_batch_fast(texts.clone(), true)
            .map_err(|error| self.explain(&texts.concat(), error))?;
        let ids = encodings.iter().map(|encoding| encoding.get_ids().to_vec());
        Ok(ids.collect())
    }

    /// The library's tokenizer, which cuts what is longer; a copy only if there is such a length.
    pub(crate) fn truncating(
        &self,
        truncation: TruncationParams,
    ) -> Result<Cow<'_, tokenizers::Tokenizer>, TokenizerError> {
        if truncation.max_length == usize::MAX {
            return Ok(Cow::Borrowed(&self.library));
        }
        let mut library = self.library.clone();
        library.with_truncation(Some(truncation))?;
        Ok(Cow::Owned(library))
    }

    /// The text of `tokens`.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        Ok(self.library.decode(tokens, false)?)
    }

    /// A decoder that takes one token at a time. See [`TextStream`].
    pub fn stream(&self) -> TextStream<'_> {
        TextStream {
            tokenizer: self,
            tokens: Vec::new(),
            given: 0,
        }
    }

    fn explain(&self, text: &str, error: tokenizers::Error) -> TokenizerError {
        let is_unknown =
            |character: &char| self.library.token_to_id(&character.to_string()).is_none();
        match text.chars().find(is_unknown) {
            Some(character) => TokenizerError::UnknownCharacter { character },
            None => error.into(),
        }
    }
}

/// Tokens that the library looks for before anything else.
#[derive(Clone, Debug)]
struct Added {
    tokens: Vec<String>,
    /// What they begin with.
    first: Vec<char>,
}

impl Added {
    fn new(tokens: impl Iterator<Item = String>) -> Self {
        let tokens: Vec<String> = tokens.collect();
        let mut first: Vec<char> = tokens
            .iter()
            .filter_map(|token| token.chars().next())
            .collect();
        first.sort_unstable();
        first.dedup();
        Self { tokens, first }
    }

    /// Whether one of them is in a text.
    fn are_in(&self, text: &str) -> bool {
        let starts_at = |at| {
            self.tokens
                .iter()
                .any(|token| text[at..].starts_with(token.as_str()))
        };
        let mut places = text.match_indices(&self.first[..]);
        places.any(|(at, _)| starts_at(at))
    }
}

/// What splits a text into its characters.
fn any_character() -> SplitPattern {
    SplitPattern::Regex(r"[\s\S]".to_owned())
}

/// Decodes as tokens arrive, holding back bytes that do not make a character yet.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens of the last piece of text, for decoders that look back, then those held back.
    tokens: Vec<u32>,
    /// How many of them belong to the last piece.
    given: usize,
}

impl TextStream<'_> {
    /// The text that `token` completes, possibly none.
    pub fn push(&mut self, token: u32) -> Result<String, TokenizerError> {
        self.tokens.push(token);
        let text = self.held_back()?;
        // What decodes to a replacement character may be the start of a character.
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.tokens.drain(..self.given);
        self.given = self.tokens.len();
        Ok(text)
    }

    /// The text that was held back, when no more tokens come.
    pub fn finish(self) -> Result<String, TokenizerError> {
        self.held_back()
    }

    fn held_back(&self) -> Result<String, TokenizerError> {
        let given = self.tokenizer.decode(&self.tokens[..self.given])?;
        let text = self.tokenizer.decode(&self.tokens)?;
        Ok(text.get(given.len()..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\n";

    fn configs() -> [TokenizerConfig; 4] {
        [
            bpe(300, &["<|endoftext|>"]),
            TokenizerConfig::WordPiece {
                vocab_size: 90,
                lowercase: true,
            },
            TokenizerConfig::WordPiece {
                vocab_size: 90,
                lowercase: false,
            },
            TokenizerConfig::Unigram { vocab_size: 380 },
        ]
    }

    fn bpe(vocab_size: usize, special_tokens: &[&str]) -> TokenizerConfig {
        TokenizerConfig::Bpe {
            vocab_size,
            special_tokens: special_tokens
                .iter()
                .map(|&token| token.to_owned())
                .collect(),
        }
    }

    fn tokenizers() -> &'static [Tokenizer] {
        static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
            let train = |config| Tokenizer::train(&config, TEXT).unwrap();
            let mut tokenizers: Vec<Tokenizer> = configs().map(train).into();
            tokenizers.push(like_llama(tokenizers[0].library.clone()));
            tokenizers
        });
        &TOKENIZERS
    }

    /// The same model behind the pattern of GPT-4 and Llama 3.
    fn like_llama(mut library: tokenizers::Tokenizer) -> Tokenizer {
        use tokenizers::pre_tokenizers::{byte_level::ByteLevel, sequence::Sequence, split::Split};
        let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let pattern = SplitPattern::Regex(pattern.to_owned());
        let isolated = tokenizers::SplitDelimiterBehavior::Isolated;
        library.with_pre_tokenizer(Some(Sequence::new(vec![
            Split::new(pattern, isolated, false).unwrap().into(),
            ByteLevel::new(false, true, false).into(),
        ])));
        library.into()
    }

    /// What the library gives without words and parts.
    fn whole(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        let encoding = tokenizer.library.encode_fast(text, false).unwrap();
        encoding.get_ids().to_vec()
    }

    #[test]
    fn characters_are_numbered_by_code_point() {
        let tokenizer = Tokenizer::train(&TokenizerConfig::Char, "banana\n").unwrap();
        assert_eq!(tokenizer.vocab_size(), 4);
        assert_eq!(tokenizer.encode("nab\n").unwrap(), [3, 1, 2, 0]);
        assert_eq!(tokenizer.decode(&[3, 1, 2, 0]).unwrap(), "nab\n");
    }

    #[test]
    fn an_unknown_character_is_named() {
        let tokenizer = Tokenizer::train(&TokenizerConfig::Char, "abc").unwrap();
        match tokenizer.encode("abé").unwrap_err() {
            TokenizerError::UnknownCharacter { character } => assert_eq!(character, 'é'),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_saved_tokenizer_is_the_same_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        for config in [TokenizerConfig::Char].into_iter().chain(configs()) {
            let tokenizer = Tokenizer::train(&config, TEXT).unwrap();
            let path = folder.path().join("tokenizer.json");
            std::fs::write(&path, tokenizer.to_json().unwrap()).unwrap();
            let loaded = Tokenizer::load(&path).unwrap();
            assert_eq!(loaded.vocab_size(), tokenizer.vocab_size());
            assert_eq!(
                loaded.encode(TEXT).unwrap(),
                tokenizer.encode(TEXT).unwrap()
            );
        }
    }

    #[test]
    fn each_kind_of_tokenizer_has_its_cut() {
        let cuts: Vec<&Cut> = tokenizers()
            .iter()
            .map(|tokenizer| &tokenizer.cut)
            .collect();
        assert!(
            matches!(
                cuts[..],
                [
                    Cut::Gpt2,
                    Cut::Blanks,
                    Cut::Blanks,
                    Cut::Spaces,
                    Cut::Pattern(_)
                ]
            ),
            "{cuts:?}"
        );
    }

    #[test]
    fn parts_do_not_change_the_tokens() {
        let text = format!("{TEXT} \n x\n\n\n  y\r\n").repeat(1500);
        for tokenizer in tokenizers() {
            let is_cut = !matches!(tokenizer.cut, Cut::Pattern(_));
            assert_eq!(tokenizer.cut.parts(&text).len() > 3, is_cut);
            assert_eq!(tokenizer.encode(&text).unwrap(), whole(tokenizer, &text));
        }
    }

    #[test]
    fn special_tokens_are_never_split() {
        let tokenizer = &tokenizers()[0];
        assert_eq!(tokenizer.end_token(), Some(0));
        let tokens = tokenizer.encode("All<|endoftext|>All").unwrap();
        let all = tokenizer.encode("All").unwrap();
        assert_eq!(tokens, [&all[..], &[0], &all[..]].concat());
    }

    #[test]
    fn word_pieces_have_berts_marks_and_drop_case_when_asked() {
        let (lower, cased) = (&tokenizers()[1], &tokenizers()[2]);
        let marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
        assert_eq!(
            marks.map(|mark| lower.token_id(mark)),
            [0, 1, 2, 3, 4].map(Some)
        );
        let marked = lower.encode_marked(&["all"], 16).unwrap();
        let plain = lower.encode("ÀLL").unwrap();
        assert_eq!(marked, [[&[2], &plain[..], &[3]].concat()]);
        assert_ne!(cased.encode("ALL").unwrap(), cased.encode("all").unwrap());
    }

    #[test]
    fn a_text_without_words_is_refused() {
        let config = TokenizerConfig::Unigram { vocab_size: 400 };
        let error = Tokenizer::train(&config, "\n\n").unwrap_err();
        assert!(matches!(error, TokenizerError::NoText));
    }

    #[test]
    fn a_vocabulary_too_small_for_its_text_is_refused() {
        for (config, least) in [
            (bpe(256, &["<|endoftext|>"]), 257),
            (TokenizerConfig::Unigram { vocab_size: 300 }, 354),
            (
                TokenizerConfig::WordPiece {
                    vocab_size: 20,
                    lowercase: true,
                },
                21,
            ),
        ] {
            match Tokenizer::train(&config, TEXT).unwrap_err() {
                TokenizerError::VocabularyTooSmall { needed, .. } => assert!(needed >= least),
                other => panic!("{other}"),
            }
        }
    }

    proptest! {
        #[test]
        fn words_do_not_change_the_tokens(text in "([ 'sdFirstCzen,▁\n\t\u{85}\u{301}é你<0xA>]|\\PC){0,40}") {
            for tokenizer in tokenizers() {
                prop_assert_eq!(tokenizer.encode(&text).unwrap(), whole(tokenizer, &text));
            }
        }

        #[test]
        fn pieces_and_bytes_encode_any_text(text in "[^ ▁\\p{C}][^▁\\p{C}]{0,40}\n?[^▁\\p{C}]{0,8}") {
            let tokenizer = &tokenizers()[3];
            let tokens = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
        }

        #[test]
        fn bytes_encode_any_text(text in "\\PC{0,40}\n?\\PC{0,8}") {
            let tokenizer = &tokenizers()[0];
            let tokens = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&tokens).unwrap(), text.clone());
            let mut stream = tokenizer.stream();
            let mut streamed = String::new();
            for token in tokens {
                streamed.push_str(&stream.push(token).unwrap());
            }
            streamed.push_str(&stream.finish().unwrap());
            prop_assert_eq!(streamed, text);
        }
    }
}
