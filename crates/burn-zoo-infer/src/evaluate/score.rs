//! The log-likelihood of continuations, as EleutherAI's lm-evaluation-harness defines it.
//!
//! A continuation of tokens `y` after a context `x` has the log-likelihood `Σ log p(yᵢ | x, y₁…yᵢ₋₁)`,
//! in nats. What does not fit into the model's context length is cut from the left. A model with an
//! encoder reads the context by it and continues by its decoder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData, activation};
use burn_zoo_data::tokenizer::{Tokenizer, TokenizerError};
use burn_zoo_models::{
    directory::{self, DirectoryError},
    family::Architecture,
};
use burn_zoo_nn::{Inputs, Transformer, mixture::ExpertCapacity};

use crate::{batch, generate::Marks};

/// What makes a likelihood impossible to compute.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// The model cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The tokenizer cannot be read, or a text not encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model does not predict the next token.
    #[error(
        "the model gives no likelihood of a text: it sees what is to come, or has a head that labels; \
         use a decoder with a language head"
    )]
    NotADecoder,
    /// There is nothing before the first token that the model could predict it from.
    #[error(
        "a text without context needs a token to begin with, but config.json has no bos_token_id or \
         eos_token_id in the vocabulary of {vocab_size}; add one or give a context"
    )]
    NoFirstToken {
        /// The size of the model's vocabulary.
        vocab_size: usize,
    },
    /// A continuation has no tokens.
    #[error("continuation {index} (counted from 0) has no tokens: there is nothing to score")]
    EmptyContinuation {
        /// Which request.
        index: usize,
    },
    /// A continuation alone is longer than what the model can read.
    #[error(
        "continuation {index} (counted from 0) has {found} tokens, but the model's context holds \
         {context_length}"
    )]
    ContinuationTooLong {
        /// Which request.
        index: usize,
        /// Its length.
        found: usize,
        /// How much fits.
        context_length: usize,
    },
    /// The tokenizer is not the model's.
    #[error("token {token} is not in the model's vocabulary of {vocab_size}")]
    UnknownToken {
        /// The first such token.
        token: u32,
        /// The size of the model's vocabulary.
        vocab_size: usize,
    },
}

/// Tokens to be scored, and what comes before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// At least one token.
    pub context: &'a [u32],
    /// At least one token, at most as many as the context length.
    pub continuation: &'a [u32],
}

/// How likely a continuation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The sum of its tokens' log-probabilities, in nats.
    pub log_likelihood: f64,
    /// How many tokens it has.
    pub n_tokens: usize,
    /// Whether each of its tokens is the most likely one.
    pub is_greedy: bool,
}

/// What one forward pass reads for a request: the tokens `before`, then all but the last of the
/// continuation, so that the last outputs predict the continuation.
#[derive(Clone, Copy)]
struct Row<'a> {
    /// What the encoder reads; nothing in a model without one.
    source: &'a [u32],
    before: &'a [u32],
    continuation: &'a [u32],
}

/// The tokens of a context and of its continuation.
type Split = (Vec<u32>, Vec<u32>);

impl Row<'_> {
    fn tokens(&self) -> impl Iterator<Item = u32> + Clone {
        let read = &self.continuation[..self.continuation.len() - 1];
        self.before.iter().chain(read).copied()
    }

    fn len(&self) -> usize {
        self.before.len() + self.continuation.len() - 1
    }

    /// The position whose output predicts the first token of the continuation.
    fn first_output(&self) -> usize {
        self.before.len() - 1
    }
}

/// A language model with its tokenizer, asked how likely texts are.
pub struct Scorer {
    model: Transformer,
    tokenizer: Tokenizer,
    context_length: usize,
    /// Tokens, padding included, that one forward pass reads.
    batch_tokens: usize,
    /// The token before a text that has nothing before it.
    first_token: Option<u32>,
    marks: Marks,
    /// Whether a context is seen both ways.
    has_prefix: bool,
    /// Whether what one sequence gives depends on the others in its batch.
    is_alone: bool,
    on_progress: Box<dyn Fn(usize, usize)>,
}

impl Scorer {
    /// Reads a model directory.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or the model is no decoder with a language head.
    pub fn load(path: &Path, device: &Device) -> Result<Self, ScoreError> {
        let (model, architecture) = directory::load(path, device)?;
        let tokenizer = Tokenizer::load(&directory::tokenizer(path)?)?;
        Self::new(model, &architecture, tokenizer)
    }

    /// A scorer of texts by `model`.
    ///
    /// # Errors
    ///
    /// When the model is no decoder with a language head.
    pub fn new(
        model: Transformer,
        architecture: &Architecture,
        tokenizer: Tokenizer,
    ) -> Result<Self, ScoreError> {
        if !model.is_decoder() || !model.head.scores_vocabulary() {
            return Err(ScoreError::NotADecoder);
        }
        let vocab_size = architecture.transformer.vocab_size();
        let marks = Marks::of(architecture);
        let begin = architecture.json.get("bos_token_id");
        let begin = begin.and_then(|id| u32::try_from(id.as_u64()?).ok());
        let is_known = |id: &u32| (*id as usize) < vocab_size;
        let stack = &architecture.transformer.stack;
        let drops_tokens = stack.blocks.iter().any(|block| {
            let mixture = block.mixture.as_ref();
            mixture.is_some_and(|mixture| mixture.capacity != ExpertCapacity::Dropless)
        });
        Ok(Self {
            context_length: model.context_length(),
            batch_tokens: 4096,
            first_token: begin.filter(is_known).or(marks.end.filter(is_known)),
            marks,
            has_prefix: stack.has_prefix(),
            is_alone: drops_tokens,
            on_progress: Box::new(|_, _| {}),
            model,
            tokenizer,
        })
    }

    /// The same with at most so many tokens in a forward pass, padding included; one sequence at least
    /// is always read. It changes speed and memory, not results.
    pub fn with_batch_tokens(self, batch_tokens: usize) -> Self {
        Self {
            batch_tokens,
            ..self
        }
    }

    /// The same, calling `on_progress` after each batch with how many requests are done and how many
    /// there are.
    pub fn with_progress(self, on_progress: impl Fn(usize, usize) + 'static) -> Self {
        Self {
            on_progress: Box::new(on_progress),
            ..self
        }
    }

    pub(crate) fn report(&self, done: usize, all: usize) {
        (self.on_progress)(done, all);
    }

    /// The model.
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Where its texts begin and end.
    pub fn marks(&self) -> Marks {
        self.marks
    }

    /// The longest sequence that the model reads.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// The token that stands before a text without context: the one that begins a text, else the one
    /// that ends it.
    ///
    /// # Errors
    ///
    /// When the model has neither.
    pub fn first_token(&self) -> Result<u32, ScoreError> {
        let [vocab_size, _] = self.model.embedding.token.dims();
        self.first_token
            .ok_or(ScoreError::NoFirstToken { vocab_size })
    }

    /// Tokens of contexts and of continuations, so that together they are the tokens of the whole text.
    ///
    /// As in the harness, whitespace at the end of a context counts as the beginning of the
    /// continuation, the tokenizer's marks are kept, and an empty context is the
    /// [first token](Self::first_token).
    ///
    /// # Errors
    ///
    /// When a text cannot be encoded, or a context is empty and the model has no first token.
    pub fn encode(&self, pairs: &[(String, String)]) -> Result<Vec<Split>, ScoreError> {
        let moved: Vec<(&str, String)> = pairs
            .iter()
            .map(|(context, continuation)| {
                let kept = context.trim_end();
                (kept, format!("{}{continuation}", &context[kept.len()..]))
            })
            .collect();
        // Each once: the answers to a question have one context.
        let different: BTreeSet<&str> = moved.iter().map(|(context, _)| *context).collect();
        let different: Vec<&str> = different.into_iter().collect();
        let contexts = self.tokenizer.encode_marked(&different, usize::MAX)?;
        let contexts: BTreeMap<&str, Vec<u32>> = different.into_iter().zip(contexts).collect();
        let whole: Vec<String> = moved
            .iter()
            .map(|(context, continuation)| format!("{context}{continuation}"))
            .collect();
        let whole = self.tokenizer.encode_marked(&whole, usize::MAX)?;
        let encoded = moved.iter().zip(whole);
        encoded
            .map(|((text, continuation), whole)| {
                let context = contexts[text].clone();
                let has_encoder = self.model.encoder.is_some();
                if has_encoder || text.is_empty() {
                    let tokens = self.tokenizer.encode(continuation)?;
                    return match has_encoder {
                        true => Ok((context, tokens)),
                        false => self.after_first_token(tokens),
                    };
                }
                let tokens = whole.get(context.len()..).unwrap_or_default().to_vec();
                Ok((context, tokens))
            })
            .collect()
    }

    fn after_first_token(&self, mut tokens: Vec<u32>) -> Result<(Vec<u32>, Vec<u32>), ScoreError> {
        let first = self.first_token()?;
        if tokens.first() == Some(&first) {
            let rest = tokens.split_off(1);
            return Ok((tokens, rest));
        }
        Ok((vec![first], tokens))
    }

    /// Scores continuations of contexts, both texts.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode) and [`score`](Self::score).
    pub fn score_texts(&self, pairs: &[(String, String)]) -> Result<Vec<Score>, ScoreError> {
        let encoded = self.encode(pairs)?;
        let requests: Vec<Request> = encoded
            .iter()
            .map(|(context, continuation)| Request {
                context,
                continuation,
            })
            .collect();
        self.score(&requests)
    }

    /// Scores continuations, in the order of the requests. Those that need the same forward pass, such
    /// as answers of one token to one question, share it.
    ///
    /// # Errors
    ///
    /// When a continuation is empty or too long, or a token is not in the vocabulary.
    pub fn score(&self, requests: &[Request]) -> Result<Vec<Score>, ScoreError> {
        let start = [self.marks.start];
        let rows = requests
            .iter()
            .enumerate()
            .map(|(index, request)| self.row(index, request, &start))
            .collect::<Result<Vec<Row>, ScoreError>>()?;
        let mut groups = self.groups(&rows);
        // The longest first, so that what does not fit into memory fails at once.
        groups.sort_by_key(|group| std::cmp::Reverse(rows[group[0]].len()));
        let mut scores = vec![None; rows.len()];
        let mut done = 0;
        let mut rest = groups.as_slice();
        while let Some(first) = rest.first() {
            let longest = rows[first[0]].len() + rows[first[0]].source.len();
            let fitting = match self.is_alone {
                true => 1,
                false => (self.batch_tokens / longest).clamp(1, rest.len()),
            };
            let (batch, after) = rest.split_at(fitting);
            for (index, score) in self.score_batch(&rows, batch) {
                scores[index] = Some(score);
            }
            done += batch.iter().map(Vec::len).sum::<usize>();
            self.report(done, rows.len());
            rest = after;
        }
        let scores = scores.into_iter();
        Ok(scores
            .map(|score| score.expect("each request is in one group"))
            .collect())
    }

    fn row<'a>(
        &self,
        index: usize,
        request: &Request<'a>,
        start: &'a [u32],
    ) -> Result<Row<'a>, ScoreError> {
        let Request {
            context,
            continuation,
        } = *request;
        let [vocab_size, _] = self.model.embedding.token.dims();
        let mut tokens = context.iter().chain(continuation);
        if let Some(&token) = tokens.find(|&&token| token as usize >= vocab_size) {
            return Err(ScoreError::UnknownToken { token, vocab_size });
        }
        if continuation.is_empty() {
            return Err(ScoreError::EmptyContinuation { index });
        }
        if context.is_empty() {
            return Err(ScoreError::NoFirstToken { vocab_size });
        }
        let context_length = self.context_length;
        if continuation.len() > context_length {
            return Err(ScoreError::ContinuationTooLong {
                index,
                found: continuation.len(),
                context_length,
            });
        }
        let last = |n: usize| &context[context.len().saturating_sub(n)..];
        let (source, before) = match self.model.encoder {
            Some(_) => (last(context_length), start),
            None => (
                Default::default(),
                last(context_length + 1 - continuation.len()),
            ),
        };
        Ok(Row {
            source,
            before,
            continuation,
        })
    }

    /// Indices of rows that one pass serves, the one to read first: it begins with all others, and what
    /// follows does not change what came before.
    fn groups(&self, rows: &[Row]) -> Vec<Vec<usize>> {
        let prefix = |row: &Row| if self.has_prefix { row.before.len() } else { 0 };
        let mut order: Vec<usize> = (0..rows.len()).collect();
        // In this order, all that begin with a row stand right before it.
        order.sort_by(|&a, &b| {
            let (a, b) = (&rows[a], &rows[b]);
            let same_input = (b.source, prefix(b)).cmp(&(a.source, prefix(a)));
            same_input.then_with(|| b.tokens().cmp(a.tokens()))
        });
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for index in order {
            let row = &rows[index];
            let is_served = |longer: &Row| {
                (longer.source, prefix(longer)) == (row.source, prefix(row))
                    && longer.len() >= row.len()
                    && longer.tokens().take(row.len()).eq(row.tokens())
            };
            match groups.last_mut() {
                Some(group) if !self.is_alone && is_served(&rows[group[0]]) => group.push(index),
                _ => groups.push(vec![index]),
            }
        }
        groups
    }

    fn score_batch(&self, rows: &[Row], groups: &[Vec<usize>]) -> Vec<(usize, Score)> {
        let read: Vec<&Row> = groups.iter().map(|group| &rows[group[0]]).collect();
        let hidden = self.hidden(&read);
        let [batch, seq, d_model] = hidden.dims();
        let hidden = hidden.reshape([batch * seq, d_model]);
        let members = || {
            let members = groups.iter().enumerate();
            members.flat_map(|(n, group)| group.iter().map(move |&index| (n, index)))
        };
        let asked: Vec<(usize, u32)> = members()
            .flat_map(|(n, index)| {
                let row = &rows[index];
                let outputs = n * seq + row.first_output()..;
                outputs.zip(row.continuation.iter().copied())
            })
            .collect();
        let mut predictions = self.predict(hidden, &asked).into_iter();
        members()
            .map(|(_, index)| {
                let n_tokens = rows[index].continuation.len();
                let mut score = Score {
                    log_likelihood: 0.0,
                    n_tokens,
                    is_greedy: true,
                };
                for (log_probability, is_highest) in predictions.by_ref().take(n_tokens) {
                    score.log_likelihood += log_probability;
                    score.is_greedy &= is_highest;
                }
                (index, score)
            })
            .collect()
    }

    /// The last hidden states, `[batch, seq, d_model]`.
    fn hidden(&self, rows: &[&Row]) -> Tensor<3> {
        let tokens: Vec<Vec<u32>> = rows.iter().map(|row| row.tokens().collect()).collect();
        let (tokens, _) = self.padded(&tokens);
        if self.model.encoder.is_some() {
            let sources: Vec<&[u32]> = rows.iter().map(|row| row.source).collect();
            let (source, visible) = self.padded(&sources);
            let source = Inputs {
                visible: Some(visible),
                ..source.into()
            };
            let mut cache = self.model.new_cache();
            cache.memory = self.model.encode(&source);
            return self.model.hidden(tokens, Some(&mut cache));
        }
        // Padding stands after what is asked, where nothing looks.
        let device = tokens.device();
        let prefix_lengths = self.has_prefix.then(|| {
            let lengths: Vec<i64> = rows.iter().map(|row| row.before.len() as i64).collect();
            Tensor::<1, Int>::from_data(TensorData::new(lengths, [rows.len()]), &device)
        });
        let inputs = Inputs {
            prefix_lengths,
            ..tokens.into()
        };
        self.model.hidden(inputs, None)
    }

    /// Sequences padded on the right, `[batch, seq]`, and which tokens are real.
    fn padded<T: AsRef<[u32]>>(&self, rows: &[T]) -> (Tensor<2, Int>, Tensor<2, Bool>) {
        batch::padded(rows, 0, &self.model.embedding.token.device())
    }

    /// The log-probability of each asked token after its state in `hidden` `[states, d_model]`, and
    /// whether it is the most likely one.
    fn predict(&self, hidden: Tensor<2>, asked: &[(usize, u32)]) -> Vec<(f64, bool)> {
        // So many logits, 64 MB, are on the device at once.
        const LOGITS: usize = 1 << 24;
        let device = hidden.device();
        let [vocab_size, _] = self.model.embedding.token.dims();
        let mut predictions = Vec::with_capacity(asked.len());
        for asked in asked.chunks((LOGITS / vocab_size).max(1)) {
            let n = asked.len();
            let states: Vec<i64> = asked.iter().map(|&(state, _)| state as i64).collect();
            let tokens: Vec<i64> = asked.iter().map(|&(_, token)| token.into()).collect();
            let states = Tensor::<1, Int>::from_data(TensorData::new(states, [n]), &device);
            let targets = Tensor::<2, Int>::from_data(TensorData::new(tokens, [n, 1]), &device);
            let logits = self.model.logits(hidden.clone().select(0, states));
            let log_probabilities = activation::log_softmax(logits.cast(DType::F32), 1);
            let chosen = log_probabilities.clone().gather(1, targets.clone());
            let highest = log_probabilities.argmax(1).equal(targets).int();
            let chosen = chosen.into_data().convert_dtype(DType::F32);
            let highest = highest.into_data().convert_dtype(DType::I64);
            let chosen = chosen.try_to_vec::<f32>().expect("just converted");
            let highest = highest.try_to_vec::<i64>().expect("just converted");
            let read = chosen.into_iter().zip(highest);
            predictions.extend(read.map(|(chosen, is)| (f64::from(chosen), is == 1)));
        }
        predictions
    }
}
