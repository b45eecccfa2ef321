//! Tokenizers, trained or loaded, as the `tokenizer.json` that Hugging Face's libraries share.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokenizers::{
    AddedToken, DecoderWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, TruncationParams,
    decoders::fuse::Fuse,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
        wordlevel::WordLevel,
    },
    pre_tokenizers::{byte_level::ByteLevel, split::Split, split::SplitPattern},
};

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
        /// How many tokens, at least the 256 bytes.
        vocab_size: usize,
    },
    /// An existing `tokenizer.json`.
    File {
        /// Where it is.
        path: PathBuf,
    },
}

/// Turns text into token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer(pub(crate) tokenizers::Tokenizer);

impl Tokenizer {
    /// Trains on `text`, or loads, as the configuration says.
    pub fn train(config: &TokenizerConfig, text: &str) -> Result<Self, TokenizerError> {
        match config {
            TokenizerConfig::Char => Self::characters(text),
            TokenizerConfig::Bpe { vocab_size } => Self::byte_level_bpe(text, *vocab_size),
            TokenizerConfig::File { path } => Self::load(path),
        }
    }

    /// Ids follow the order of the characters' code points. No token stands for unknown characters:
    /// they are an error.
    fn characters(text: &str) -> Result<Self, TokenizerError> {
        let alphabet: BTreeSet<char> = text.chars().collect();
        let vocab = alphabet
            .into_iter()
            .zip(0..)
            .map(|(character, id)| (character.to_string(), id))
            .collect();
        let model = WordLevel::builder()
            .vocab(vocab)
            .unk_token("<unk>".to_owned())
            .build()?;
        let split = Split::new(any_character(), SplitDelimiterBehavior::Isolated, false)?;
        let mut tokenizer = tokenizers::Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(split));
        tokenizer.with_decoder(Some(Fuse::new()));
        Ok(Self(tokenizer))
    }

    fn byte_level_bpe(text: &str, vocab_size: usize) -> Result<Self, TokenizerError> {
        let bytes = ByteLevel::new(false, false, true);
        let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(bytes));
        tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(bytes)));
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .show_progress(false)
            .build()
            .into();
        tokenizer.train(&mut trainer, text.split_inclusive('\n'))?;
        Ok(Self(tokenizer))
    }

    /// Reads a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self, TokenizerError> {
        tokenizers::Tokenizer::from_file(path)
            .map(Self)
            .map_err(|error| TokenizerError::Unreadable {
                path: path.to_owned(),
                problem: error.to_string(),
            })
    }

    /// The contents of a `tokenizer.json`.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        Ok(self.0.to_string(true)?)
    }

    /// Adds the token [`MASK`], which stands for a hidden one, unless it is there. It is then the last.
    pub fn add_mask(&mut self) -> Result<(), TokenizerError> {
        self.0.add_special_tokens([AddedToken::from(MASK, true)])?;
        Ok(())
    }

    /// The id of [`MASK`], if it is there.
    pub fn mask_id(&self) -> Option<u32> {
        self.0.token_to_id(MASK)
    }

    /// One more than the highest token id.
    pub fn vocab_size(&self) -> usize {
        let ids = self.0.get_vocab(true).into_values();
        ids.max().map_or(0, |highest| highest as usize + 1)
    }

    /// The token ids of `text`.
    ///
    /// # Errors
    ///
    /// When a vocabulary without bytes lacks one of the characters.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let pieces = self.pieces(text);
        let encodings = self
            .0
            .encode_batch_fast(pieces, false)
            .map_err(|error| self.explain(text, error))?;
        Ok(encodings
            .iter()
            .flat_map(|encoding| encoding.get_ids().iter().copied())
            .collect())
    }

    /// The token ids of each text with the marks that the tokenizer puts around a text, such as BERT's
    /// `[CLS]` and `[SEP]`, cut to `max_length` with them. The tokenizer's own padding and truncation
    /// are set aside.
    pub fn encode_marked<T: AsRef<str>>(
        &self,
        texts: &[T],
        max_length: usize,
    ) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let mut tokenizer = self.0.clone();
        tokenizer.with_padding(None);
        tokenizer.with_truncation(Some(TruncationParams {
            max_length,
            ..TruncationParams::default()
        }))?;
        let texts = texts.iter().map(AsRef::as_ref).collect();
        let encodings = tokenizer.encode_batch_fast::<&str>(texts, true)?;
        let ids = encodings.iter().map(|encoding| encoding.get_ids().to_vec());
        Ok(ids.collect())
    }

    /// The text of `tokens`.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        Ok(self.0.decode(tokens, false)?)
    }

    /// A decoder that takes one token at a time. See [`TextStream`].
    pub fn stream(&self) -> TextStream<'_> {
        TextStream {
            tokenizer: self,
            tokens: Vec::new(),
            given: 0,
        }
    }

    /// Cuts a long text where the tokens cannot depend on the cut, so that the pieces are encoded in
    /// parallel and in little memory. Any tokenizer but those trained here may look across any cut.
    fn pieces<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let is_safe: fn(char, char) -> bool = match self.0.get_pre_tokenizer() {
            _ if self.0.get_normalizer().is_some() => return vec![text],
            Some(PreTokenizerWrapper::Split(split)) if split.pattern == any_character() => {
                |_, _| true
            }
            // GPT-2's pattern gives a lone newline between words a piece of its own.
            Some(PreTokenizerWrapper::ByteLevel(bytes))
                if bytes.use_regex && !bytes.add_prefix_space =>
            {
                |before, after| !before.is_whitespace() && !after.is_whitespace()
            }
            _ => return vec![text],
        };
        const PIECE_BYTES: usize = 1 << 14;
        let (mut pieces, mut start) = (Vec::new(), 0);
        for (newline, _) in text.match_indices('\n') {
            let end = newline + 1;
            let before = text[start..newline].chars().next_back();
            let after = text[end..].chars().next();
            if let (Some(before), Some(after)) = (before, after)
                && end - start >= PIECE_BYTES
                && is_safe(before, after)
            {
                pieces.push(&text[start..end]);
                start = end;
            }
        }
        pieces.push(&text[start..]);
        pieces
    }

    fn explain(&self, text: &str, error: tokenizers::Error) -> TokenizerError {
        let is_unknown = |character: &char| self.0.token_to_id(&character.to_string()).is_none();
        match text.chars().find(is_unknown) {
            Some(character) => TokenizerError::UnknownCharacter { character },
            None => error.into(),
        }
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
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\n";

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
        for config in [
            TokenizerConfig::Char,
            TokenizerConfig::Bpe { vocab_size: 280 },
        ] {
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
    fn pieces_do_not_change_the_tokens() {
        let text = format!("{TEXT} \n x\n\n\n  y\r\n").repeat(1500);
        let tokenizer = Tokenizer::train(&TokenizerConfig::Bpe { vocab_size: 300 }, TEXT).unwrap();
        assert!(tokenizer.pieces(&text).len() > 3);
        let whole = tokenizer.0.encode_fast(text.as_str(), false).unwrap();
        assert_eq!(tokenizer.encode(&text).unwrap(), whole.get_ids());
    }

    proptest! {
        #[test]
        fn bytes_encode_any_text(text in "\\PC{0,40}\n?\\PC{0,8}") {
            let config = TokenizerConfig::Bpe { vocab_size: 270 };
            let tokenizer = Tokenizer::train(&config, TEXT).unwrap();
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
