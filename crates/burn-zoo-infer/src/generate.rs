//! Continuing a text token by token.

use std::ops::ControlFlow;

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_zoo_data::tokenizer::{Tokenizer, TokenizerError};
use burn_zoo_models::family::Architecture;
use burn_zoo_nn::{Inputs, Transformer, cache::KvCache, scores::VocabularyScores};
use burn_zoo_ops::{Quantized, awake};

use crate::draft::Drafter;
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

/// Tokens that are written before there is a copy of the head, which takes as long to make as it saves in one or two.
const HEAD_AFTER: usize = 2;

/// Tokens that are written before there is a copy that drafts, which takes as long to make as it saves in about twenty.
const DRAFT_AFTER: usize = 8;

/// A text being continued, or, by a model with an encoder, answered.
///
/// Each new token costs one position, because keys and values of earlier ones are cached. When the
/// context is full, the older half is dropped and the rest read again.
///
/// Where the most likely token is taken and memory is what a model waits for, a copy of it in 8 bits guesses the next few tokens,
/// and the model reads them all at once, for about the time of one. It keeps those that it would have written itself, so the
/// text is the same, but for tokens that are as likely as each other within rounding.
pub struct Generator<'a> {
    model: &'a Transformer,
    cache: KvCache,
    sampler: Sampler,
    tokens: Vec<u32>,
    /// How many of the tokens were given.
    given: usize,
    /// How many of the tokens the model has not read yet.
    pending: usize,
    /// What follows the tokens and is known already, the last first.
    ahead: Vec<u32>,
    /// How often the model has read.
    passes: usize,
    /// What finds the most likely token, once it pays.
    head: Option<Quantized>,
    /// What guesses the next tokens, once it pays.
    drafter: Option<Drafter>,
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
            given: prompt.len(),
            pending: prompt.len(),
            ahead: Vec::new(),
            passes: 0,
            head: None,
            drafter: None,
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
        if self.ahead.is_empty() {
            let device = self.model.embedding.token.device();
            awake(&device, || self.read());
        }
        let token = self.ahead.pop().expect("reading gives a token");
        self.tokens.push(token);
        token
    }

    /// Reads the pending tokens, and as many drafts of what follows as seem worth it, in one pass. The drafts that are right
    /// need none of their own.
    fn read(&mut self) {
        if self.cache.len() + self.pending > self.cache.capacity() {
            self.cache.clear();
            self.pending = (self.cache.capacity() / 2).max(1);
            self.prefix = self.pending;
        }
        let drafts = self.draft();
        let unread = &self.tokens[self.tokens.len() - self.pending..];
        let inputs = self.inputs(&[unread, &drafts].concat());
        let asked = drafts.len() + 1;
        let scores = self.model.decode_scores(inputs, &mut self.cache, asked);
        let mut chosen = self.choose(scores);
        let pairs = drafts.iter().zip(&chosen);
        let right = pairs.take_while(|(draft, chosen)| draft == chosen).count();
        if let Some(drafter) = &mut self.drafter {
            drafter.learn(right, drafts.len());
        }
        self.cache
            .truncate(self.cache.len() - (drafts.len() - right));
        chosen.truncate(right + 1);
        chosen.reverse();
        (self.ahead, self.pending) = (chosen, 1);
        self.passes += 1;
    }

    /// Guesses what follows, and leaves the cache as it was. What the encoder read, the model itself has to put there first.
    fn draft(&mut self) -> Vec<u32> {
        let mut drafts = Vec::new();
        if let (Some(drafter), Some(head), 1) = (&self.drafter, &self.head, self.pending)
            && self.passes > 0
        {
            let length = self.cache.len();
            let count = drafter.count().min(self.cache.capacity() - length - 1);
            let mut last = self.tokens.last().copied();
            while let Some(token) = last
                && drafts.len() < count
            {
                let inputs = self.inputs(&[token]);
                let model = &drafter.model;
                let scores = model.decode_scores(inputs, &mut self.cache, 1);
                last = best(scores, head).pop();
                drafts.extend(last);
            }
            self.cache.truncate(length);
        }
        drafts
    }

    fn inputs(&self, tokens: &[u32]) -> Inputs {
        let tokens = ids(tokens, self.model);
        let prefix = Tensor::<1, Int>::from_data([self.prefix as i64], &tokens.device());
        Inputs {
            prefix_lengths: Some(prefix),
            ..tokens.into()
        }
    }

    /// The tokens that follow, one for each row of scores. Only where the highest is taken there are several.
    fn choose(&mut self, scores: VocabularyScores) -> Vec<u32> {
        if self.sampler.takes_highest() {
            match self.tokens.len() - self.given {
                HEAD_AFTER if self.head.is_none() => self.head = scores.quantized(),
                DRAFT_AFTER if self.head.is_some() && self.drafter.is_none() => {
                    self.drafter = Drafter::of(self.model);
                }
                _ => {}
            }
            if let Some(head) = &self.head {
                return best(scores, head);
            }
        }
        let data = scores.logits().into_data().convert_dtype(DType::F32);
        let mut logits = data
            .try_to_vec::<f32>()
            .expect("the logits were just converted");
        vec![self.sampler.sample(&mut logits, &self.tokens)]
    }

    /// How many passes of the model the new tokens took: less than one for each where drafts were right.
    pub fn passes(&self) -> usize {
        self.passes
    }

    /// The prompt and what followed it.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

/// The most likely tokens, one for each row of scores.
fn best(scores: VocabularyScores, head: &Quantized) -> Vec<u32> {
    scores.best(head).into_data().iter().collect()
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

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use burn_zoo_nn::{
        TransformerConfig,
        attention::{AttentionConfig, AttentionPattern},
        block::BlockConfig,
        feed_forward::FeedForwardConfig,
        head::HeadConfig,
        init,
        mixture::MixtureConfig,
        stack::StackConfig,
    };

    use super::*;

    const CONTEXT: usize = 24;

    /// What the last hidden state is multiplied by.
    fn head_weight(model: &Transformer) -> Tensor<2> {
        let [_, d_model] = model.embedding.token.dims();
        let hidden = Tensor::zeros([1, d_model], &model.embedding.token.device());
        match model.head.scores(hidden, &model.embedding.token) {
            VocabularyScores::Projection { weight, .. } => weight,
            VocabularyScores::Logits(_) => unreachable!("there is no adapter"),
        }
    }

    /// What a model writes, alone or with drafts, and in how many passes.
    fn written(model: &Transformer, drafts: Option<Transformer>) -> (Vec<u32>, usize) {
        let greedy = SamplingConfig::greedy();
        let mut generator = match model.encoder {
            None => Generator::new(model, &[3, 1, 4], greedy, 0).unwrap(),
            Some(_) => Generator::answering(model, &[3, 1, 4], 5, greedy, 0).unwrap(),
        };
        if let Some(draft) = drafts {
            generator.head = Quantized::of(head_weight(model));
            generator.drafter = Some(Drafter::new(draft));
        }
        // The context is full more than once.
        let tokens = (0..70).map(|_| generator.next_token()).collect();
        assert_eq!(generator.tokens().len(), generator.given + 70);
        (tokens, generator.passes())
    }

    /// Drafts that are right, and those of a model that knows nothing, where the cache has to forget.
    #[test]
    fn drafts_change_no_token() {
        let device = Device::flex();
        let block = |pattern| {
            let attention = AttentionConfig::multi_head(32, 2).with_pattern(pattern);
            BlockConfig::new(attention, FeedForwardConfig::new(32, 64))
        };
        let causal = block(AttentionPattern::Causal);
        let decoder = TransformerConfig::new(60, 32, CONTEXT, vec![causal.clone(); 2]);
        let with = |pattern| TransformerConfig::new(60, 32, CONTEXT, vec![block(pattern); 2]);
        let mut answering = decoder.clone();
        answering.encoder = Some(StackConfig::new(vec![block(
            AttentionPattern::Bidirectional,
        )]));
        answering.stack.blocks[0].cross_attention =
            Some(AttentionConfig::multi_head(32, 2).with_pattern(AttentionPattern::Bidirectional));
        let mut mixed = decoder.clone();
        for block in &mut mixed.stack.blocks {
            block.mixture = Some(MixtureConfig::top_two(3));
        }
        let configs = [
            decoder,
            with(AttentionPattern::Prefix),
            with(AttentionPattern::Banded { window: 5 }),
            answering,
            mixed,
        ];
        for (number, config) in configs.into_iter().enumerate() {
            init::seed(number as u64);
            // A tied head would repeat what it reads.
            let head = HeadConfig::untied(false);
            let config = config
                .with_head(head)
                .with_uniform_init(0.5)
                .with_init_std(1.0);
            let [model, other] = [(); 2].map(|()| config.init(&device));
            let (alone, passes) = written(&model, None);
            assert_eq!(passes, 70);
            assert!(
                alone[40..].iter().any(|&token| token != alone[40]),
                "it is no one token"
            );
            let (drafted, passes) = written(&model, model.draft());
            assert_eq!(drafted, alone, "model {number}");
            assert!(passes < 45, "{passes} passes of model {number}");
            let (drafted, passes) = written(&model, Some(other));
            assert_eq!(drafted, alone, "model {number}");
            assert!(passes > 55, "{passes} passes of model {number}");
        }
    }
}
