//! Perplexity and its relatives: how well a model predicts a text.
//!
//! A text longer than the model's context is read in windows, as Hugging Face's page "Perplexity of
//! fixed-length models" has it: each is `context_length` tokens long and begins `stride` tokens after
//! the one before. In each window, only the tokens that no earlier window had count, each predicted
//! from the tokens before it in its window. Hence, with a stride below the context length, each token
//! but the text's first is scored exactly once, and all but those of the first window from at least
//! `context_length - stride` tokens. With a stride of the context length, the first token of each
//! window has nothing before it and is not scored.

use serde::Serialize;

use super::score::{Request, ScoreError, Scorer};

/// What the first token of a text is predicted from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstToken {
    /// Nothing: it is not scored.
    #[default]
    NotScored,
    /// The model's [first token](Scorer::first_token), which is put before the text and is not scored
    /// itself.
    AfterMark,
}

/// How a text is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerplexityConfig {
    /// The length of a window, in tokens; that of the model's context when none.
    pub context_length: Option<usize>,
    /// By how many tokens windows advance; half a window when none.
    pub stride: Option<usize>,
    /// What the first token is predicted from.
    pub first: FirstToken,
}

/// What makes a perplexity impossible to compute.
#[derive(Debug, thiserror::Error)]
pub enum PerplexityError {
    /// The text cannot be scored.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// A setting is out of its range.
    #[error("{field} must be from {least} to {most}, got {found}")]
    OutOfRange {
        /// The setting.
        field: &'static str,
        /// Its smallest value.
        least: usize,
        /// Its largest value.
        most: usize,
        /// What was given.
        found: usize,
    },
    /// A model with an encoder has two texts.
    #[error("perplexity is for decoders: a model with an encoder continues no text of its own")]
    HasEncoder,
    /// No token has another before it.
    #[error("the text has {0} tokens: at least two are needed to predict one from the other")]
    TooShort(usize),
}

/// How well a text was predicted. The measures per byte, character and word are those of the whole
/// text: tokens that were not scored count as the mean of those that were (Gao et al. 2020,
/// arXiv:2101.00027, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// The sum of `-log p` of the scored tokens, in nats.
    pub negative_log_likelihood: f64,
    /// How many tokens were scored.
    pub n_scored: usize,
    /// How many tokens the text has.
    pub n_tokens: usize,
    /// How many bytes of UTF-8 it has.
    pub n_bytes: usize,
    /// How many characters (Unicode scalar values) it has.
    pub n_characters: usize,
    /// How many words it has, as [`count_words`] counts.
    pub n_words: usize,
    /// The length of a window.
    pub context_length: usize,
    /// By how much windows advanced.
    pub stride: usize,
}

impl Perplexity {
    /// The mean of `-log p` over scored tokens, in nats.
    pub fn loss(&self) -> f64 {
        self.negative_log_likelihood / self.n_scored as f64
    }

    /// `exp` of the mean of `-log p`.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// `-log₂ p` of a byte. Comparable between tokenizers.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats_per(self.n_bytes) / std::f64::consts::LN_2
    }

    /// `-log₂ p` of a character.
    pub fn bits_per_character(&self) -> f64 {
        self.nats_per(self.n_characters) / std::f64::consts::LN_2
    }

    /// `exp` of `-log p` of a byte.
    pub fn byte_perplexity(&self) -> f64 {
        self.nats_per(self.n_bytes).exp()
    }

    /// `exp` of `-log p` of a word.
    pub fn word_perplexity(&self) -> f64 {
        self.nats_per(self.n_words).exp()
    }

    fn nats_per(&self, units: usize) -> f64 {
        self.loss() * self.n_tokens as f64 / units as f64
    }
}

/// How many parts whitespace cuts a text into, empty ones at its ends included, as
/// lm-evaluation-harness counts words.
pub fn count_words(text: &str) -> usize {
    let inner = text.split_whitespace().count();
    let starts = text.starts_with(char::is_whitespace);
    let ends = text.ends_with(char::is_whitespace);
    match inner {
        0 => 1 + usize::from(starts),
        inner => inner + usize::from(starts) + usize::from(ends),
    }
}

/// One window over a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    /// Its first token.
    begin: usize,
    /// The first token that counts.
    new: usize,
    /// One past its last token.
    end: usize,
}

/// The windows over `n_tokens` tokens.
fn windows(n_tokens: usize, context_length: usize, stride: usize) -> impl Iterator<Item = Window> {
    let n_windows = n_tokens.saturating_sub(context_length).div_ceil(stride) + 1;
    let end = move |index: usize| (index * stride + context_length).min(n_tokens);
    (0..n_windows).map(move |index| {
        let begin = index * stride;
        let known = if index == 0 { 0 } else { end(index - 1) };
        Window {
            begin,
            new: known.max(begin + 1),
            end: end(index),
        }
    })
}

/// How well `scorer` predicts `text`.
///
/// # Errors
///
/// When a setting is out of its range, the text cannot be encoded or has fewer than two tokens, the
/// model has an encoder, or it has no token to put before the text where that was asked.
pub fn perplexity(
    scorer: &Scorer,
    text: &str,
    config: PerplexityConfig,
) -> Result<Perplexity, PerplexityError> {
    if scorer.model().encoder.is_some() {
        return Err(PerplexityError::HasEncoder);
    }
    let within = |field, least: usize, most: usize, found: usize| {
        let is_within = (least..=most).contains(&found);
        is_within
            .then_some(found)
            .ok_or(PerplexityError::OutOfRange {
                field,
                least,
                most,
                found,
            })
    };
    let longest = scorer.context_length();
    let context_length = config.context_length.unwrap_or(longest);
    let context_length = within("context length", 2, longest, context_length)?;
    let stride = config.stride.unwrap_or(context_length / 2);
    let stride = within("stride", 1, context_length, stride)?;

    let mut tokens = scorer.tokenizer().encode(text).map_err(ScoreError::from)?;
    let n_tokens = tokens.len();
    if config.first == FirstToken::AfterMark {
        tokens.insert(0, scorer.first_token()?);
    }
    if tokens.len() < 2 {
        return Err(PerplexityError::TooShort(tokens.len()));
    }
    let requests: Vec<Request> = windows(tokens.len(), context_length, stride)
        .filter(|window| window.new < window.end)
        .map(|window| Request {
            context: &tokens[window.begin..window.new],
            continuation: &tokens[window.new..window.end],
        })
        .collect();
    let scores = scorer.score(&requests)?;
    Ok(Perplexity {
        negative_log_likelihood: -scores.iter().map(|score| score.log_likelihood).sum::<f64>(),
        n_scored: scores.iter().map(|score| score.n_tokens).sum(),
        n_tokens,
        n_bytes: text.len(),
        n_characters: text.chars().count(),
        n_words: count_words(text),
        context_length,
        stride,
    })
}

/// The log-likelihoods of whole texts, in nats, each token scored once: the first after the model's
/// [first token](Scorer::first_token), then windows of the context length that see one token of the
/// one before, the last as many as fit (`loglikelihood_rolling` of lm-evaluation-harness).
///
/// # Errors
///
/// When a text cannot be encoded, or the model has an encoder or no first token.
pub fn rolling(scorer: &Scorer, texts: &[String]) -> Result<Vec<f64>, PerplexityError> {
    if scorer.model().encoder.is_some() {
        return Err(PerplexityError::HasEncoder);
    }
    let first = scorer.first_token()?;
    let encoded = scorer.tokenizer().encode_marked(texts, usize::MAX);
    let mut tokens = encoded.map_err(ScoreError::from)?;
    for tokens in &mut tokens {
        tokens.insert(0, first);
    }
    let longest = scorer.context_length();
    let mut owners = Vec::new();
    let mut requests = Vec::new();
    for (index, tokens) in tokens.iter().enumerate() {
        for begin in (1..tokens.len()).step_by(longest) {
            let end = (begin + longest).min(tokens.len());
            owners.push(index);
            requests.push(Request {
                context: &tokens[end.saturating_sub(longest + 1)..begin],
                continuation: &tokens[begin..end],
            });
        }
    }
    let mut sums = vec![0.0; texts.len()];
    for (owner, score) in owners.into_iter().zip(scorer.score(&requests)?) {
        sums[owner] += score.log_likelihood;
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn windows_are_those_of_the_page() {
        let window = |begin, new, end| Window { begin, new, end };
        assert_eq!(
            windows(10, 4, 2).collect::<Vec<_>>(),
            [
                window(0, 1, 4),
                window(2, 4, 6),
                window(4, 6, 8),
                window(6, 8, 10)
            ]
        );
        assert_eq!(
            windows(9, 4, 4).collect::<Vec<_>>(),
            [window(0, 1, 4), window(4, 5, 8), window(8, 9, 9)]
        );
        assert_eq!(windows(3, 4, 2).collect::<Vec<_>>(), [window(0, 1, 3)]);
    }

    #[test]
    fn words_are_counted_as_a_regular_expression_splits() {
        // len(re.split(r"\s+", text)) in Python.
        for (text, expected) in [("", 1), (" ", 2), ("a", 1), ("a b\n", 3), ("\n a  b", 3)] {
            assert_eq!(count_words(text), expected, "{text:?}");
        }
    }

    #[test]
    fn measures_agree_with_one_another() {
        let measured = Perplexity {
            negative_log_likelihood: 8.0 * 2f64.ln(),
            n_scored: 4,
            n_tokens: 4,
            n_bytes: 16,
            n_characters: 8,
            n_words: 2,
            context_length: 4,
            stride: 2,
        };
        // 8 bits in 4 tokens, 16 bytes, 8 characters and 2 words.
        for (found, expected) in [
            (measured.perplexity(), 4.0),
            (measured.bits_per_byte(), 0.5),
            (measured.byte_perplexity(), 2f64.sqrt()),
            (measured.bits_per_character(), 1.0),
            (measured.word_perplexity(), 16.0),
        ] {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }

    proptest! {
        #[test]
        fn each_token_counts_once(
            n_tokens in 2usize..80,
            context_length in 2usize..20,
            share in 0.0..1.0f64,
        ) {
            let stride = 1 + (share * (context_length - 1) as f64) as usize;
            prop_assume!(stride < context_length);
            let mut counts = vec![0; n_tokens];
            for window in windows(n_tokens, context_length, stride) {
                prop_assert!(window.end - window.begin <= context_length);
                let scored = counts.iter_mut().enumerate().take(window.end).skip(window.new);
                for (token, count) in scored {
                    *count += 1;
                    prop_assert!(token > window.begin);
                    if window.begin > 0 {
                        prop_assert!(token - window.begin >= context_length - stride);
                    }
                }
            }
            prop_assert_eq!(counts[0], 0);
            prop_assert!(counts[1..].iter().all(|&count| count == 1));
        }
    }
}
