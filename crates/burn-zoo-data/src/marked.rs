//! Texts and pairs of texts as a model reads them: with the marks around them, cut to a length, and with
//! where each token comes from.

use tokenizers::{
    EncodeInput, Encoding, InputSequence, TruncationDirection, TruncationParams, TruncationStrategy,
};

use crate::tokenizer::{Tokenizer, TokenizerError};

/// One text, or two that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// A text.
    Text(String),
    /// A text that is words already.
    Words(Vec<String>),
    /// Two texts, such as a premise and a hypothesis.
    Pair(String, String),
}

/// A reading as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The token ids, marks included.
    pub tokens: Vec<u32>,
    /// Which of the two texts each belongs to, as the tokenizer numbers segments.
    pub segments: Vec<u32>,
    /// Where each comes from; none for marks.
    pub places: Vec<Option<Place>>,
}

/// Where a token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first text (0) or the second (1).
    pub text: usize,
    /// The number of its word.
    pub word: Option<u32>,
    /// Its first byte in the text, or in the word where words were given.
    pub start: usize,
    /// The byte after its last.
    pub end: usize,
}

/// How readings become as short as a model needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The longer text loses its end.
    End,
    /// The second text is read in overlapping pieces, each beside the whole first: for answers that may be
    /// anywhere.
    Slide {
        /// Tokens that two pieces share.
        overlap: usize,
    },
}

impl Tokenizer {
    /// Each reading with marks, at most `max_length` tokens with them: one entry a reading, or several where a
    /// long one is read in pieces.
    ///
    /// # Errors
    ///
    /// When the tokenizer refuses, such as a first text that leaves no room for the second.
    pub fn mark(
        &self,
        readings: &[Reading],
        max_length: usize,
        cut: Cut,
    ) -> Result<Vec<Vec<Marked>>, TokenizerError> {
        let (strategy, stride) = match cut {
            Cut::End => (TruncationStrategy::LongestFirst, 0),
            Cut::Slide { overlap } => (TruncationStrategy::OnlySecond, overlap),
        };
        let library = self.truncating(TruncationParams {
            direction: TruncationDirection::Right,
            max_length,
            strategy,
            stride,
        })?;
        let inputs: Vec<EncodeInput<'_>> = readings.iter().map(Reading::input).collect();
        let encodings = library.encode_batch(inputs, true)?;
        let pieces = encodings.into_iter().map(|mut encoding| {
            let rest = match cut {
                Cut::End => Vec::new(),
                Cut::Slide { .. } => encoding.take_overflowing(),
            };
            let all = std::iter::once(encoding).chain(rest);
            all.map(Marked::from).collect()
        });
        Ok(pieces.collect())
    }
}

impl Reading {
    fn input(&self) -> EncodeInput<'_> {
        match self {
            Self::Text(text) => EncodeInput::Single(InputSequence::from(text.as_str())),
            Self::Words(words) => {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                EncodeInput::Single(InputSequence::from(words))
            }
            Self::Pair(first, second) => EncodeInput::Dual(
                InputSequence::from(first.as_str()),
                InputSequence::from(second.as_str()),
            ),
        }
    }
}

impl From<Encoding> for Marked {
    fn from(encoding: Encoding) -> Self {
        let texts = encoding.get_sequence_ids();
        let parts = encoding.get_word_ids().iter().zip(encoding.get_offsets());
        let marks = encoding.get_special_tokens_mask();
        let places = texts.iter().zip(parts).zip(marks);
        Self {
            tokens: encoding.get_ids().to_vec(),
            segments: encoding.get_type_ids().to_vec(),
            places: places
                .map(|((text, (word, &(start, end))), &mark)| {
                    (mark == 0).then_some(Place {
                        text: text.unwrap_or(0),
                        word: *word,
                        start,
                        end,
                    })
                })
                .collect(),
        }
    }
}
