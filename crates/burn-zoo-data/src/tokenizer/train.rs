//! Learning a vocabulary from texts, one of them in memory at a time.

use std::collections::BTreeSet;

use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, SplitDelimiterBehavior,
    decoders::{
        byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence,
        wordpiece::WordPiece as WordPieceDecoder,
    },
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
        unigram::{Unigram, UnigramTrainer},
        wordlevel::WordLevel,
        wordpiece::{WordPiece, WordPieceTrainer},
    },
    normalizers::BertNormalizer,
    pre_tokenizers::{
        bert::BertPreTokenizer, byte_level::ByteLevel, metaspace::Metaspace, split::Split,
    },
    processors::template::TemplateProcessing,
};

use super::{MASK, TokenizerError, any_character};

/// BERT's special tokens, in the order that its trainer gives them.
const BERT: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", MASK];
/// SentencePiece's.
const SENTENCE_PIECE: [&str; 3] = ["<unk>", "<s>", "</s>"];

fn special(tokens: &[impl AsRef<str>]) -> Vec<AddedToken> {
    let token = |content: &_| AddedToken::from(AsRef::<str>::as_ref(content), true);
    tokens.iter().map(token).collect()
}

/// Refuses a vocabulary that cannot hold what it must.
fn require(vocab_size: usize, needed: usize, what: &'static str) -> Result<(), TokenizerError> {
    match vocab_size < needed {
        true => Err(TokenizerError::VocabularyTooSmall {
            vocab_size,
            needed,
            what,
        }),
        false => Ok(()),
    }
}

/// Ids follow the order of the characters' code points. No token stands for unknown characters: they are
/// an error.
pub(super) fn characters<S: AsRef<str>>(
    texts: impl Iterator<Item = S>,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let mut alphabet = BTreeSet::new();
    for text in texts {
        alphabet.extend(text.as_ref().chars());
    }
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
    Ok(tokenizer)
}

pub(super) fn byte_level_bpe<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab_size: usize,
    special_tokens: &[String],
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let needed = 256 + special_tokens.len();
    require(vocab_size, needed, "the bytes and the special tokens")?;
    let bytes = ByteLevel::new(false, false, true);
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(bytes));
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(bytes)));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .special_tokens(special(special_tokens))
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build()
        .into();
    tokenizer.train(&mut trainer, texts)?;
    Ok(tokenizer)
}

pub(super) fn word_piece<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab_size: usize,
    lowercase: bool,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    const UNKNOWN: &str = "[UNK]";
    let model = WordPiece::builder().unk_token(UNKNOWN.to_owned()).build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(BertNormalizer::new(true, true, None, lowercase)))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(WordPieceDecoder::default()));
    let trainer = WordPieceTrainer::builder()
        .vocab_size(vocab_size)
        .special_tokens(special(&BERT))
        .show_progress(false)
        .build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), texts)?;
    // The trainer keeps every character, alone and within a word.
    let found = tokenizer.get_vocab_size(true);
    require(vocab_size, found, "the characters and the special tokens")?;
    let id = |token: &str| (token.to_owned(), tokenizer.token_to_id(token).unwrap_or(0));
    let marks = TemplateProcessing::builder()
        .try_single("[CLS] $A [SEP]")
        .and_then(|builder| builder.try_pair("[CLS] $A [SEP] $B:1 [SEP]:1"))
        .map_err(TokenizerError::Library)?
        .special_tokens(vec![id("[CLS]"), id("[SEP]")])
        .build()
        .map_err(|error| TokenizerError::Library(error.to_string()))?;
    tokenizer.with_post_processor(Some(marks));
    Ok(tokenizer)
}

/// Learns from lines, so that no token spans two.
pub(super) fn unigram<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab_size: usize,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    // Printable ASCII, so that no text is taken for the name of a byte's token.
    let alphabet = ' '..='~';
    let fixed = 256 + SENTENCE_PIECE.len();
    let what = "the bytes, the characters of ASCII and the special tokens";
    require(vocab_size, fixed + alphabet.clone().count(), what)?;
    let mut tokenizer = tokenizers::Tokenizer::new(Unigram::default());
    tokenizer.with_pre_tokenizer(Some(Metaspace::default()));
    let trainer = UnigramTrainer::builder()
        .vocab_size((vocab_size - fixed) as u32)
        .initial_alphabet(alphabet.filter(|&character| character != ' ').collect())
        .show_progress(false)
        .build()
        .map_err(|error| TokenizerError::Library(error.to_string()))?;
    let lines = texts.flat_map(|text| {
        let lines = text.as_ref().lines().filter(|line| !line.is_empty());
        lines.map(str::to_owned).collect::<Vec<_>>()
    });
    let mut lines = lines.peekable();
    if lines.peek().is_none() {
        return Err(TokenizerError::NoText);
    }
    tokenizer.train(&mut TrainerWrapper::from(trainer), lines)?;
    let ModelWrapper::Unigram(learned) = tokenizer.get_model() else {
        unreachable!("the model was made above");
    };
    let model = with_bytes(learned)?;
    tokenizer.with_model(model);
    tokenizer.add_special_tokens(special(&SENTENCE_PIECE))?;
    tokenizer.with_decoder(Some(Sequence::new(vec![
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Metaspace(Metaspace::default()),
    ])));
    Ok(tokenizer)
}

/// Puts the special tokens and a token for each byte before the learned ones. A byte's token is so
/// unlikely that only what has no other token becomes bytes.
fn with_bytes(learned: &Unigram) -> Result<Unigram, TokenizerError> {
    const UNLIKELY: f64 = -1e4;
    let special = SENTENCE_PIECE.map(|token| (token.to_owned(), 0.0));
    let bytes = (0..=u8::MAX).map(|byte| (format!("<0x{byte:02X}>"), UNLIKELY));
    let learned = learned
        .iter()
        .filter(|(piece, _)| !SENTENCE_PIECE.contains(&piece.as_str()));
    let vocab = special.into_iter().chain(bytes).chain(learned.cloned());
    Ok(Unigram::from(vocab.collect(), Some(0), true)?)
}
