//! Windows of tokens for language modelling, as burn data loaders.
//!
//! Which windows a training step sees is a function of the seed and the step alone: the loader has
//! no state to save, and a run that resumes at step `n` sees what an unbroken run sees.

mod corruption;
mod infilling;
mod masking;

use std::ops::Range;
use std::sync::Arc;

use burn::data::{dataloader::DataLoader, dataset::DatasetError};
use burn::tensor::{Device, Int, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use burn_zoo_nn::Inputs;

use crate::{
    batch::{Batch, Numbered, TrainingData},
    rows::{ids, padded},
    shards::{Shuffle, TokenSource},
};

pub use corruption::{Corruption, Noise};
pub use infilling::{Infilling, InfillingMarks};
pub use masking::Masking;

/// What makes a text too small.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {split} split has {found} tokens, but a window of {} and the token after it need {needed}; give more \
     text or a shorter context",
    needed - 1
)]
pub struct TooShort {
    /// `training` or `validation`.
    pub split: &'static str,
    /// How many tokens there are.
    pub found: usize,
    /// How many one window needs.
    pub needed: usize,
}

/// What a model is asked of a window.
#[derive(Clone, Debug)]
pub enum Prediction {
    /// The token that follows each.
    Next,
    /// The token that follows each in its document. Tokens see their own document alone.
    NextInDocument,
    /// The token that follows, after a prefix of random length that is visible to all (GLM: Du et al. 2022,
    /// arXiv:2103.10360, the task of long texts).
    AfterPrefix,
    /// The token that was there, at random positions.
    Masked(Masking),
    /// The same, where tokens see their own document alone.
    MaskedInDocument(Masking),
    /// The spans that were taken out, written after the text.
    Infilled(Infilling),
    /// The spans that were taken out, written by a decoder.
    Corrupted(Corruption),
}

/// The target of a position where nothing is asked.
pub const NOT_ASKED: i32 = -1;

/// The places of a batch where something is asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Which of the flattened `[batch · seq]`, `[n]`; the first of all where there are none.
    pub places: Tensor<1, Int>,
    /// How many.
    pub n: usize,
}

impl Asked {
    /// Where targets `[batch, seq]` on a device are not [`NOT_ASKED`]. Waits for it.
    pub(crate) fn of(targets: &Tensor<2, Int>) -> Self {
        let [_, width] = targets.dims();
        let values: Vec<i32> = targets.clone().into_data().iter::<i32>().collect();
        Self::new(values.chunks(width.max(1)), &targets.device())
    }

    /// Where the rows of targets, padded to the longest, are not [`NOT_ASKED`].
    pub fn new<'a>(rows: impl Iterator<Item = &'a [i32]> + Clone, device: &Device) -> Self {
        let width = rows.clone().map(<[i32]>::len).max().unwrap_or(0);
        let places = rows.enumerate().flat_map(|(row, targets)| {
            let asked = targets.iter().enumerate();
            let asked = asked.filter(|(_, target)| **target != NOT_ASKED);
            asked.map(move |(column, _)| (row * width + column) as i32)
        });
        let mut places: Vec<i32> = places.collect();
        let n = places.len();
        places.resize(n.max(1), 0);
        Self {
            places: Tensor::from_data(places.as_slice(), device),
            n,
        }
    }
}

/// Inputs and what is asked of them, on a device.
#[derive(Clone, Debug)]
pub struct TokenBatch {
    /// `[batch, seq]`.
    pub inputs: Inputs,
    /// `[batch, seq]`: the token to predict at each position, or [`NOT_ASKED`].
    pub targets: Tensor<2, Int>,
    /// Where something is asked, if not everywhere.
    pub asked: Option<Asked>,
    /// How many tokens are not padding, those of a decoder included.
    pub n_tokens: usize,
    /// The batch's share of the predictions of its optimiser step.
    pub share: f32,
}

impl TokenBatch {
    /// Inputs without padding and targets, `[batch, seq]`, and where they are not [`NOT_ASKED`], if not everywhere.
    pub fn new(inputs: impl Into<Inputs>, targets: Tensor<2, Int>, asked: Option<Asked>) -> Self {
        let inputs = inputs.into();
        let tokens = inputs.decoder_tokens.iter().chain([&inputs.tokens]);
        let n_tokens = tokens.map(|tokens| tokens.dims().iter().product::<usize>());
        Self {
            n_tokens: n_tokens.sum(),
            inputs,
            targets,
            asked,
            share: 1.0,
        }
    }
}

impl Batch for TokenBatch {
    fn n_predictions(&self) -> usize {
        match &self.asked {
            Some(asked) => asked.n,
            None => self.targets.dims().iter().product(),
        }
    }

    fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    fn share(&self) -> f32 {
        self.share
    }

    fn set_share(&mut self, share: f32) {
        self.share = share;
    }

    fn n_sequences(&self) -> usize {
        self.inputs.tokens.dims()[0]
    }

    fn sequences(&self, range: Range<usize>) -> Self {
        let targets = self.targets.clone().narrow(0, range.start, range.len());
        Self {
            asked: self.asked.as_ref().map(|_| Asked::of(&targets)),
            targets,
            n_tokens: self.n_tokens * range.len() / self.n_sequences(),
            inputs: self.inputs.sequences(range),
            share: self.share,
        }
    }
}

/// A piece of a text.
struct Window {
    /// The tokens, and the one after them.
    tokens: Vec<u32>,
    /// The places at which documents begin.
    documents: Vec<usize>,
}

impl Window {
    /// The tokens.
    fn text(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    /// What follows each.
    fn next(&self) -> Vec<i32> {
        ids(&self.tokens[1..])
    }

    /// The number of each token's document, counted in the window.
    fn document_numbers(&self) -> Vec<i32> {
        let mut numbers = vec![0; self.text().len()];
        for &start in &self.documents {
            numbers
                .iter_mut()
                .skip(start)
                .for_each(|number| *number += 1);
        }
        numbers
    }
}

impl Prediction {
    /// How many tokens of text make a window for a model of this context.
    pub fn text_length(&self, context_length: usize) -> usize {
        match self {
            Self::Next
            | Self::NextInDocument
            | Self::AfterPrefix
            | Self::Masked(_)
            | Self::MaskedInDocument(_) => context_length,
            Self::Infilled(infilling) => infilling.text_length(context_length),
            Self::Corrupted(corruption) => corruption.noise.text_length(context_length),
        }
    }

    /// Whether tokens see their own document alone.
    pub fn keeps_documents_apart(&self) -> bool {
        matches!(self, Self::NextInDocument | Self::MaskedInDocument(_))
    }

    /// How many tokens of text can be asked about at least.
    fn shortest_text(&self) -> usize {
        match self {
            Self::Corrupted(_) => 2,
            _ => 1,
        }
    }

    /// The batch of windows of one length, with draws from `generator`.
    fn batch(&self, windows: &[Window], generator: &mut ChaCha8Rng, device: &Device) -> TokenBatch {
        let texts = || windows.iter().map(Window::text).collect::<Vec<_>>();
        match self {
            Self::Next => {
                let next = windows.iter().map(Window::next);
                TokenBatch::new(matrix(texts(), device), rows(next, device), None)
            }
            Self::NextInDocument => next_in_document(windows, device),
            Self::AfterPrefix => after_prefix(windows, generator, device),
            Self::Masked(masking) | Self::MaskedInDocument(masking) => {
                let mut rows: Vec<Vec<u32>> = texts().into_iter().map(<[u32]>::to_vec).collect();
                let starts = windows.iter().map(|window| window.documents.as_slice());
                let starts = starts.collect::<Vec<_>>();
                let targets = masking.hide(&mut rows, &starts, generator);
                let is_apart = self.keeps_documents_apart();
                let inputs = Inputs {
                    documents: is_apart.then(|| document_numbers(windows, device)),
                    ..matrix(rows.iter().map(Vec::as_slice), device).into()
                };
                asked(inputs, targets, device)
            }
            Self::Infilled(infilling) => infilling.batch(&texts(), generator, device),
            Self::Corrupted(corruption) => corruption.batch(&texts(), generator, device),
        }
    }
}

/// A batch of which some targets are not asked.
fn asked(inputs: impl Into<Inputs>, targets: Vec<Vec<i32>>, device: &Device) -> TokenBatch {
    let asked = Asked::new(targets.iter().map(Vec::as_slice), device);
    TokenBatch::new(inputs, rows(targets.into_iter(), device), Some(asked))
}

/// Windows of which the first token of a document is not asked.
fn next_in_document(windows: &[Window], device: &Device) -> TokenBatch {
    let targets = windows.iter().map(|window| {
        let mut targets = window.next();
        for &start in window.documents.iter().filter(|&&start| start > 0) {
            targets[start - 1] = NOT_ASKED;
        }
        targets
    });
    let targets = targets.collect();
    let inputs = Inputs {
        documents: Some(document_numbers(windows, device)),
        ..matrix(windows.iter().map(Window::text), device).into()
    };
    asked(inputs, targets, device)
}

/// The document of each token, counted in its window.
fn document_numbers(windows: &[Window], device: &Device) -> Tensor<2, Int> {
    rows(windows.iter().map(Window::document_numbers), device)
}

/// Windows of which a prefix is given: its last token asks for the first after it.
fn after_prefix(windows: &[Window], generator: &mut ChaCha8Rng, device: &Device) -> TokenBatch {
    let draw = |window: &Window| generator.random_range(1..=window.text().len());
    let lengths: Vec<usize> = windows.iter().map(draw).collect();
    let targets = windows.iter().zip(&lengths).map(|(window, &length)| {
        let mut targets = window.next();
        targets[..length - 1].fill(NOT_ASKED);
        targets
    });
    let targets = targets.collect();
    let lengths: Vec<i32> = lengths.into_iter().map(|length| length as i32).collect();
    let inputs = Inputs {
        prefix_lengths: Some(Tensor::from_data(lengths.as_slice(), device)),
        ..matrix(windows.iter().map(Window::text), device).into()
    };
    asked(inputs, targets, device)
}

/// Tokens of one length as a matrix.
fn matrix<'a>(texts: impl IntoIterator<Item = &'a [u32]>, device: &Device) -> Tensor<2, Int> {
    rows(texts.into_iter().map(ids), device)
}

/// Rows of one length as a matrix.
fn rows(rows: impl Iterator<Item = Vec<i32>>, device: &Device) -> Tensor<2, Int> {
    let rows: Vec<Vec<i32>> = rows.collect();
    padded(rows.iter().map(Vec::as_slice), NOT_ASKED, device)
}

/// Refuses a split that is shorter than one window of `seq` tokens and what follows it.
fn require_window(split: &'static str, found: usize, seq: usize) -> Result<(), TooShort> {
    let needed = seq + 1;
    if found < needed {
        return Err(TooShort {
            split,
            found,
            needed,
        });
    }
    Ok(())
}

/// Sizes of a training step's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Windows in a batch.
    pub batch_size: usize,
    /// Batches whose gradients make one optimiser step.
    pub accumulation: usize,
    /// Tokens that a model reads at a time.
    pub context_length: usize,
}

/// The tokens to learn from, and those held out.
#[derive(Clone, Debug)]
pub struct Splits {
    /// What is learned from.
    pub train: TokenSource,
    /// What is held out.
    pub valid: TokenSource,
}

/// Which windows are learned from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Any, each drawn anew.
    #[default]
    Random,
    /// Each passage once before any comes again; each pass has an order of its own.
    Shuffled,
}

/// Windows of tokens: some to learn from, and every held-out token once.
#[derive(Clone, Debug)]
pub struct Windows {
    splits: Splits,
    shape: StepShape,
    prediction: Prediction,
    order: Order,
    seed: u64,
    /// Tokens of text in a window.
    text_length: usize,
}

impl Windows {
    /// Random windows of this shape that ask `prediction`; what is drawn follows from `seed`.
    pub fn new(
        splits: Splits,
        shape: StepShape,
        prediction: Prediction,
        seed: u64,
    ) -> Result<Self, TooShort> {
        let text_length = prediction.text_length(shape.context_length);
        require_window("training", splits.train.len(), text_length)?;
        require_window("validation", splits.valid.len(), text_length)?;
        Ok(Self {
            splits,
            shape,
            prediction,
            order: Order::default(),
            seed,
            text_length,
        })
    }

    /// The same windows to hold out, and others to learn from.
    pub fn with_order(self, order: Order) -> Self {
        Self { order, ..self }
    }

    /// Where the window `number` of the run begins.
    fn start(&self, number: usize, generator: &mut ChaCha8Rng) -> usize {
        let tokens = self.splits.train.len();
        match self.order {
            Order::Random => generator.random_range(0..tokens - self.text_length),
            Order::Shuffled => {
                let passages = (tokens - 1) / self.text_length;
                let number = Shuffle::endless(passages as u64, self.seed, number as u64);
                number as usize * self.text_length
            }
        }
    }

    /// The batch `index` of the run, where each step has `accumulation` batches. The generator is
    /// counter-based: the batch's number selects its stream.
    fn train_batch(&self, index: usize, device: &Device) -> Result<TokenBatch, DatasetError> {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(index as u64);
        let tokens = &self.splits.train;
        let windows: Result<Vec<Window>, _> = (0..self.shape.batch_size)
            .map(|row| {
                let start = self.start(index * self.shape.batch_size + row, &mut generator);
                read(tokens, start..start + self.text_length)
            })
            .collect();
        Ok(self.prediction.batch(&windows?, &mut generator, device))
    }

    /// Held-out windows that are full, and tokens that are left after them.
    fn valid_layout(&self) -> (usize, usize) {
        let tokens = self.splits.valid.len() - 1;
        let (full, rest) = (tokens / self.text_length, tokens % self.text_length);
        match rest < self.prediction.shortest_text() {
            true => (full, 0),
            false => (full, rest),
        }
    }

    /// Full windows in batches, then what is left in a shorter one, so that the mean loss is that of the
    /// whole split. What is asked of a batch is the same every time.
    fn valid_batch(&self, index: usize, device: &Device) -> Result<TokenBatch, DatasetError> {
        let (full, rest) = self.valid_layout();
        let (size, length) = (self.shape.batch_size, self.text_length);
        let first = index * size;
        let tokens = &self.splits.valid;
        let windows: Result<Vec<Window>, _> = match first < full {
            true => (first..full.min(first + size))
                .map(|window| read(tokens, window * length..(window + 1) * length))
                .collect(),
            false => read(tokens, full * length..full * length + rest).map(|window| vec![window]),
        };
        let mut generator = ChaCha8Rng::seed_from_u64(index as u64);
        Ok(self.prediction.batch(&windows?, &mut generator, device))
    }
}

/// The window at `range` and the token after it.
fn read(source: &TokenSource, range: Range<usize>) -> Result<Window, DatasetError> {
    let range = range.start..range.end + 1;
    let mut tokens = Vec::with_capacity(range.len());
    source
        .read(range.clone(), &mut tokens)
        .map_err(DatasetError::new)?;
    let starts = source.document_starts(range.clone()).into_iter();
    Ok(Window {
        tokens,
        documents: starts.map(|start| start - range.start).collect(),
    })
}

impl TrainingData<TokenBatch> for Windows {
    fn train(&self, steps: Range<usize>, device: &Device) -> Arc<dyn DataLoader<TokenBatch>> {
        let accumulation = self.shape.accumulation;
        let batches = steps.start * accumulation..steps.end * accumulation;
        let windows = self.clone();
        Arc::new(Numbered::new(batches, device, move |index, device| {
            windows.train_batch(index, device)
        }))
    }

    fn valid(&self, device: &Device) -> Arc<dyn DataLoader<TokenBatch>> {
        let (full, rest) = self.valid_layout();
        let n_batches = full.div_ceil(self.shape.batch_size) + usize::from(rest > 0);
        let windows = self.clone();
        Arc::new(Numbered::new(0..n_batches, device, move |index, device| {
            windows.valid_batch(index, device)
        }))
    }
}
