//! Continuing a text token by token.

use std::ops::ControlFlow;

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_zoo_data::tokenizer::{Tokenizer, TokenizerError};
use burn_zoo_nn::{Transformer, cache::KvCache};

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

/// A text being continued.
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
}

impl<'a> Generator<'a> {
    /// A generator that continues `prompt`. The draws follow from `seed`.
    pub fn new(
        model: &'a Transformer,
        prompt: &[u32],
        sampling: SamplingConfig,
        seed: u64,
    ) -> Result<Self, GenerateError> {
        let sampler = Sampler::new(sampling, seed)?;
        let [vocab_size, _] = model.embedding.token.dims();
        let context_length = model.context_length();
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
            cache: model.new_cache(1),
            sampler,
            tokens: prompt.to_vec(),
            pending: prompt.len(),
        })
    }

    /// Draws the next token and adds it to the text.
    pub fn next_token(&mut self) -> u32 {
        if self.cache.len() + self.pending > self.cache.capacity() {
            self.cache.clear();
            self.pending = (self.cache.capacity() / 2).max(1);
        }
        let unread = &self.tokens[self.tokens.len() - self.pending..];
        let ids: Vec<i32> = unread.iter().map(|&token| token as i32).collect();
        let shape = [1, ids.len()];
        let device = self.model.embedding.token.device();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &device);

        let logits = self.model.decode(ids, &mut self.cache);
        let data = logits.into_data().convert_dtype(DType::F32);
        let mut logits = data
            .try_to_vec::<f32>()
            .expect("the logits were just converted");
        let token = self.sampler.sample(&mut logits, &self.tokens);
        self.tokens.push(token);
        self.pending = 1;
        token
    }

    /// The prompt and what followed it.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
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

/// Continues `prompt` by up to `max_new_tokens` tokens, handing the prompt and then each piece of
/// text to `on_text`, which may stop. Returns the new tokens and their text.
pub fn continue_text(
    model: &Transformer,
    tokenizer: &Tokenizer,
    prompt: &str,
    max_new_tokens: usize,
    sampling: SamplingConfig,
    seed: u64,
    mut on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<(Vec<u32>, String), TextError> {
    let prompt_tokens = tokenizer.encode(prompt)?;
    let mut generator = Generator::new(model, &prompt_tokens, sampling, seed)?;
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    let mut flow = on_text(prompt);
    for _ in 0..max_new_tokens {
        if flow.is_break() {
            break;
        }
        let piece = stream.push(generator.next_token())?;
        flow = on_text(&piece);
        text.push_str(&piece);
    }
    let rest = stream.finish()?;
    if flow.is_continue() {
        // Nothing follows that could be stopped.
        let _ = on_text(&rest);
    }
    text.push_str(&rest);
    Ok((generator.tokens[prompt_tokens.len()..].to_vec(), text))
}
