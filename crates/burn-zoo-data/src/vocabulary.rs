//! What the tokens of a vocabulary are: words, parts of words, or marks of their own.

use std::sync::Arc;

use rand::{Rng, RngExt};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, PreTokenizerWrapper, processors::bert::BertProcessing,
};

use crate::tokenizer::{Tokenizer, TokenizerError};

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Not text: a mark such as `[SEP]`.
    Special,
    /// The beginning of a word, with the space before it where the tokenizer keeps that.
    WordStart,
    /// What continues a word.
    WordPart,
}

/// What each token of a vocabulary is.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    kinds: Arc<[TokenKind]>,
    /// The tokens that are text.
    text: Arc<[u32]>,
}

impl Vocabulary {
    /// A vocabulary of tokens of these kinds, by id.
    pub fn new(kinds: impl Into<Arc<[TokenKind]>>) -> Self {
        let kinds = kinds.into();
        let ids = (0..).zip(kinds.iter());
        let text = ids.filter(|&(_, &kind)| kind != TokenKind::Special);
        Self {
            text: text.map(|(id, _)| id).collect(),
            kinds,
        }
    }

    /// What a token is. Ids without a token are special.
    pub fn kind(&self, token: u32) -> TokenKind {
        let kind = self.kinds.get(token as usize);
        kind.copied().unwrap_or(TokenKind::Special)
    }

    /// A token of text, each as likely as any other; none when there are none.
    pub fn draw(&self, generator: &mut impl Rng) -> Option<u32> {
        match self.text.len() {
            0 => None,
            length => Some(self.text[generator.random_range(0..length)]),
        }
    }
}

impl Tokenizer {
    /// What its tokens are. A word begins where WordPiece does not write `##`, and with other tokenizers where
    /// a token begins with white space, also as `Ġ` (byte-level) or `▁` (SentencePiece).
    pub fn vocabulary(&self) -> Vocabulary {
        let mut kinds = vec![TokenKind::Special; self.vocab_size()];
        let special = self.library.get_added_tokens_decoder();
        let is_special = |id: &u32| special.get(id).is_some_and(|token| token.special);
        let begins_word = self.begins_word();
        for (token, id) in self.library.get_vocab(true) {
            kinds[id as usize] = match begins_word(&token) {
                _ if is_special(&id) => TokenKind::Special,
                true => TokenKind::WordStart,
                false => TokenKind::WordPart,
            };
        }
        Vocabulary::new(kinds)
    }

    fn begins_word(&self) -> Box<dyn Fn(&str) -> bool + '_> {
        if let ModelWrapper::WordPiece(model) = self.library.get_model() {
            let prefix = model.continuing_subword_prefix.as_str();
            return Box::new(move |token| !token.starts_with(prefix));
        }
        let is_byte_level = matches!(
            self.library.get_decoder(),
            Some(DecoderWrapper::ByteLevel(_))
        ) || matches!(
            self.library.get_pre_tokenizer(),
            Some(PreTokenizerWrapper::ByteLevel(_))
        );
        Box::new(move |token| match token.chars().next() {
            // A space, a newline and a tab, as bytes are written.
            Some('Ġ' | 'Ċ' | 'ĉ') => is_byte_level,
            Some(first) => first == '▁' || first.is_whitespace(),
            None => false,
        })
    }

    /// Adds tokens that are not text and never split, such as `[MASK]`, unless they are there. New ones have
    /// the ids after the last, in their order.
    ///
    /// # Errors
    ///
    /// When the library refuses.
    pub fn add_special_tokens<T: AsRef<str>>(
        &mut self,
        tokens: &[T],
    ) -> Result<(), TokenizerError> {
        let is_missing = |token: &&T| self.token_id(token.as_ref()).is_none();
        let missing = tokens.iter().filter(is_missing);
        let missing: Vec<AddedToken> = missing
            .map(|token| AddedToken::from(token.as_ref(), true))
            .collect();
        let mut library = self.library.clone();
        library.add_special_tokens(missing)?;
        *self = library.into();
        Ok(())
    }

    /// Has texts marked as BERT reads them, `[CLS] A [SEP] B [SEP]`, unless the tokenizer has marks of its
    /// own.
    ///
    /// # Errors
    ///
    /// When the vocabulary lacks one of the marks, by its name.
    pub fn mark_as_bert(&mut self) -> Result<(), TokenizerError> {
        if self.library.get_post_processor().is_some() {
            return Ok(());
        }
        let mark = |token: &str| Ok((token.to_owned(), self.require(token)?));
        let marks: Result<_, TokenizerError> = mark(SEPARATOR).and_then(|separator| {
            let begin = mark(BEGIN)?;
            Ok(BertProcessing::new(separator, begin))
        });
        let mut library = self.library.clone();
        library.with_post_processor(Some(marks?));
        *self = library.into();
        Ok(())
    }

    /// The id of a token that must be there.
    ///
    /// # Errors
    ///
    /// When it is not in the vocabulary.
    pub fn require(&self, token: &str) -> Result<u32, TokenizerError> {
        self.token_id(token)
            .ok_or_else(|| TokenizerError::Library(format!("the vocabulary has no token {token}")))
    }
}

/// The token before a text, as BERT writes it.
pub const BEGIN: &str = "[CLS]";
/// The token after each text, as BERT writes it.
pub const SEPARATOR: &str = "[SEP]";
/// The token that fills up short sequences, as BERT writes it.
pub const PADDING: &str = "[PAD]";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::TokenizerConfig;

    const TEXT: &str = "unhappy people hope\nhappily unhappy people, happy hope\n";

    fn kind(tokenizer: &Tokenizer, token: &str) -> TokenKind {
        tokenizer
            .vocabulary()
            .kind(tokenizer.token_id(token).unwrap())
    }

    #[test]
    fn words_begin_where_the_tokenizer_says() {
        let train = |config| Tokenizer::train(&config, TEXT).unwrap();
        let word_piece = train(TokenizerConfig::WordPiece {
            vocab_size: 60,
            lowercase: true,
        });
        assert_eq!(kind(&word_piece, "h"), TokenKind::WordStart);
        assert_eq!(kind(&word_piece, "##p"), TokenKind::WordPart);
        assert_eq!(kind(&word_piece, "[SEP]"), TokenKind::Special);
        let bytes = train(TokenizerConfig::Bpe {
            vocab_size: 280,
            special_tokens: vec!["<|endoftext|>".to_owned()],
        });
        assert_eq!(kind(&bytes, "Ġ"), TokenKind::WordStart);
        assert_eq!(kind(&bytes, "p"), TokenKind::WordPart);
        assert_eq!(kind(&bytes, "<|endoftext|>"), TokenKind::Special);
        let pieces = train(TokenizerConfig::Unigram { vocab_size: 400 });
        assert_eq!(kind(&pieces, "▁"), TokenKind::WordStart);
        assert_eq!(kind(&pieces, "p"), TokenKind::WordPart);
        assert_eq!(kind(&pieces, "</s>"), TokenKind::Special);
        let characters = train(TokenizerConfig::Char);
        assert_eq!(kind(&characters, "\n"), TokenKind::WordStart);
        assert_eq!(kind(&characters, "u"), TokenKind::WordPart);
    }

    #[test]
    fn special_tokens_are_added_once_and_in_order() {
        let mut tokenizer = Tokenizer::train(&TokenizerConfig::Char, "abc").unwrap();
        tokenizer.add_special_tokens(&["[SEP]", "[CLS]"]).unwrap();
        tokenizer.add_special_tokens(&["[CLS]", "[MASK]"]).unwrap();
        let id = |token| tokenizer.token_id(token);
        assert_eq!(
            [id("[SEP]"), id("[CLS]"), id("[MASK]")],
            [Some(3), Some(4), Some(5)]
        );
        assert_eq!(tokenizer.vocab_size(), 6);
        tokenizer.mark_as_bert().unwrap();
        let marked = tokenizer.encode_marked(&["ba"], 10).unwrap();
        assert_eq!(marked, [[4, 1, 0, 3]]);
    }

    #[test]
    fn drawn_tokens_are_text() {
        use TokenKind::{Special, WordPart, WordStart};
        let vocabulary = Vocabulary::new([Special, WordStart, Special, WordPart, Special]);
        let mut generator = <rand_chacha::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(1);
        let mut counts = [0; 5];
        for _ in 0..1000 {
            counts[vocabulary.draw(&mut generator).unwrap() as usize] += 1;
        }
        assert_eq!([counts[0], counts[2], counts[4]], [0; 3]);
        assert!(counts[1] > 400 && counts[3] > 400, "{counts:?}");
        assert_eq!(Vocabulary::new([Special]).draw(&mut generator), None);
    }
}
