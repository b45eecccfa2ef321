//! Continuing a text token by token.

use std::ops::ControlFlow;

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_zoo_data::tokenizer::{Tokenizer, TokenizerError};
use burn_zoo_models::family::Architecture;
use burn_zoo_nn::{Inputs, Transformer, cache::KvCache, scores::VocabularyScores};
use burn_zoo_ops::{Shortlist, awake};

use crate::sampling::{Sampler, SamplingConfig, SamplingError};

/// What makes a prompt or a setting unusable.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// There is nothing to continue.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// The prompt leaves no room.
    #[error(
        "the prompt has {found} tokens, but the model's context holds {context_length}; shorten \
         the prompt"
    )]
    PromptTooLong {
        /// The prompt's length.
        found: usize,
        /// The model's context length.
        context_length: usize,
    },
    /// The model reads, but does not write.
    #[error(
        "the model cannot write text: it sees what is to come, or has a head that labels; \
         generate needs a decoder with a language head"
    )]
    NotADecoder,
    /// The tokenizer is not the model's.
    #[error("token {token} is not in the model's vocabulary of {vocab_size}")]
    UnknownToken {
        /// The first such token.
        token: u32,
        /// The size of the model's vocabulary.
        vocab_size: usize,
    },
    /// A setting is out of its range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
}

/// A shortlist takes as long to make as it saves in one or two tokens, and is made when so many are written.
const SHORTLIST_AFTER: usize = 2;

/// A text being continued, or, by a model with an encoder, answered.
///
/// Each new token costs one position, because keys and values of earlier ones are cached. When the
/// context is full, the older half is dropped and the rest read again.
pub struct Generator<'a> {
    model: &'a Transformer,
    cache: KvCache,
    sampler: Sampler,
    tokens: Vec<u32>,
    /// How many of the tokens the model has not read yet.
    pending: usize,
    /// How many tokens it has written.
    written: usize,
    /// What finds the most likely token, once it pays.
    shortlist: Option<Shortlist>,
    /// How many tokens, from the first in the cache, all see in a model with a prefix.
    prefix: usize,
}

impl<'a> Generator<'a> {
    /// A generator that continues `prompt`. The draws follow from `seed`.
    ///
    /// To a model with prefix attention, the prompt is the prefix.
    pub fn new(
        model: &'a Transformer,
        prompt: &[u32],
        sampling: SamplingConfig,
        seed: u64,
    ) -> Result<Self, GenerateError> {
        let sampler = Sampler::new(sampling, seed)?;
        let [vocab_size, _] = model.embedding.token.dims();
        let context_length = model.context_length();
        if !model.is_decoder() || !model.head.scores_vocabulary() {
            return Err(GenerateError::NotADecoder);
        }
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if prompt.len() > context_length {
            return Err(GenerateError::PromptTooLong {
                found: prompt.len(),
                context_length,
            });
        }
        if let Some(&token) = prompt.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(GenerateError::UnknownToken { token, vocab_size });
        }
        Ok(Self {
            model,
            cache: model.new_cache(),
            sampler,
            tokens: prompt.to_vec(),
            pending: prompt.len(),
            written: 0,
            shortlist: None,
            prefix: prompt.len(),
        })
    }

    /// A generator whose encoder reads `source` and whose decoder begins with the token `start`.
    pub fn answering(
        model: &'a Transformer,
        source: &[u32],
        start: u32,
        sampling: SamplingConfig,
        seed: u64,
    ) -> Result<Self, GenerateError> {
        // The source has the limits of a prompt.
        Self::new(model, source, sampling.clone(), seed)?;
        let mut generator = Self::new(model, &[start], sampling, seed)?;
        let source = ids(source, model);
        generator.cache.memory = model.encode(&source.into());
        Ok(generator)
    }

    /// Draws the next token and adds it to the text.
    pub fn next_token(&mut self) -> u32 {
        if self.cache.len() + self.pending > self.cache.capacity() {
            self.cache.clear();
            self.pending = (self.cache.capacity() / 2).max(1);
            self.prefix = self.pending;
        }
        let unread = &self.tokens[self.tokens.len() - self.pending..];
        let tokens = ids(unread, self.model);
        let device = tokens.device();
        let inputs = Inputs {
            prefix_lengths: Some(Tensor::<1, Int>::from_data([self.prefix as i64], &device)),
            ..tokens.into()
        };
        let token = awake(&device, || {
            let scores = self.model.decode_scores(inputs, &mut self.cache);
            self.choose(scores)
        });
        self.tokens.push(token);
        self.pending = 1;
        self.written += 1;
        token
    }

    /// The token that follows.
    fn choose(&mut self, scores: VocabularyScores) -> u32 {
        if self.sampler.takes_highest() {
            if self.written == SHORTLIST_AFTER {
                self.shortlist = scores.shortlist();
            }
            if let Some(shortlist) = &self.shortlist {
                let best = scores.best(shortlist).into_data();
                return best.iter::<u32>().next().expect("one row has a best class");
            }
        }
        let data = scores.logits().into_data().convert_dtype(DType::F32);
        let mut logits = data
            .try_to_vec::<f32>()
            .expect("the logits were just converted");
        self.sampler.sample(&mut logits, &self.tokens)
    }

    /// The prompt and what followed it.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

/// Token ids as a batch of one, `[1, seq]`.
fn ids(tokens: &[u32], model: &Transformer) -> Tensor<2, Int> {
    let ids: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
    let shape = [1, ids.len()];
    let device = model.embedding.token.device();
    Tensor::from_data(TensorData::new(ids, shape), &device)
}

/// Where a model's texts begin and end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The token that the decoder of an encoder–decoder begins with.
    pub start: u32,
    /// The token that ends a text, if there is one.
    pub end: Option<u32>,
}

impl Marks {
    /// As the model's `config.json` says.
    pub fn of(architecture: &Architecture) -> Self {
        let common = architecture.common();
        let id = |id: Option<usize>| u32::try_from(id?).ok();
        Self {
            start: id(common.decoder_start_token_id).unwrap_or(0),
            end: id(common.end_id()),
        }
    }
}

/// What makes a text impossible to continue.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The prompt or a setting is unusable.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The prompt cannot be encoded, or the new text not decoded.
    #[error("the prompt: {0}")]
    Tokenizer(#[from] TokenizerError),
}

/// A model with what it takes to write text.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// The model.
    pub model: &'a Transformer,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Where its texts begin and end.
    pub marks: Marks,
}

impl Writer<'_> {
    /// Continues `prompt` by up to `max_new_tokens` tokens, or up to the token that ends a text,
    /// handing the prompt and then each piece of text to `on_text`, which may stop. A model with an
    /// encoder reads the prompt and writes a text of its own. Returns the new tokens and their text.
    pub fn continue_text(
        &self,
        prompt: &str,
        max_new_tokens: usize,
        sampling: SamplingConfig,
        seed: u64,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(Vec<u32>, String), TextError> {
        let Self {
            model,
            tokenizer,
            marks,
        } = *self;
        let mut generator = match model.encoder {
            None => Generator::new(model, &tokenizer.encode(prompt)?, sampling, seed)?,
            Some(_) => {
                let source = tokenizer.encode_marked(&[prompt], model.context_length())?;
                Generator::answering(model, &source.concat(), marks.start, sampling, seed)?
            }
        };
        let n_given = generator.tokens().len();
        let mut stream = tokenizer.stream();
        let mut text = String::new();
        let mut flow = match model.encoder {
            None => on_text(prompt),
            Some(_) => ControlFlow::Continue(()),
        };
        for _ in 0..max_new_tokens {
            if flow.is_break() {
                break;
            }
            let token = generator.next_token();
            if Some(token) == marks.end {
                break;
            }
            let piece = stream.push(token)?;
            flow = on_text(&piece);
            text.push_str(&piece);
        }
        let rest = stream.finish()?;
        if flow.is_continue() {
            // Nothing follows that could be stopped.
            let _ = on_text(&rest);
        }
        text.push_str(&rest);
        Ok((generator.tokens[n_given..].to_vec(), text))
    }
}
