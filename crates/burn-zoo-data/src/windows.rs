//! Windows of tokens for language modelling, causal or masked, as burn data loaders.
//!
//! Which windows a training step sees is a function of the seed and the step alone: the loader has
//! no state to save, and a run that resumes at step `n` sees what an unbroken run sees.

use std::sync::Arc;

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What makes a text too small.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {split} split has {found} tokens, but a window of context length {} needs {needed}; give \
     more text or a shorter context",
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

/// What a model is asked at each position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prediction {
    /// The token that follows.
    Next,
    /// The token that follows, after a prefix of random length that is visible to all (GLM: Du et al. 2022,
    /// arXiv:2103.10360, the task of long texts).
    AfterPrefix,
    /// The token that was there, at random positions: 80 % of those show a mask, 10 % another token,
    /// 10 % the token itself (BERT: Devlin et al. 2019, arXiv:1810.04805).
    Masked {
        /// The share of positions.
        probability: f64,
        /// The mask's token, one beyond those of the text.
        mask: u32,
    },
}

/// The target of a position where nothing is asked.
pub const NOT_ASKED: i32 = -1;

/// Inputs and what is asked of them, on a device.
#[derive(Clone, Debug)]
pub struct TokenBatch {
    /// `[batch, seq]`.
    pub inputs: Tensor<2, Int>,
    /// `[batch, seq]`: the token to predict at each position, or [`NOT_ASKED`].
    pub targets: Tensor<2, Int>,
    /// How many positions are asked, if not all.
    pub n_asked: Option<usize>,
    /// How many tokens of each window are its prefix, `[batch]`, where there is one.
    pub prefix_lengths: Option<Tensor<1, Int>>,
    /// The batch's share of the tokens of its optimiser step, 1 without accumulation.
    pub share: f32,
}

impl TokenBatch {
    /// How many predictions the batch asks for.
    pub fn n_tokens(&self) -> usize {
        self.n_asked
            .unwrap_or_else(|| self.inputs.dims().iter().product())
    }
}

impl Prediction {
    /// The batch of windows `tokens[start .. start + seq]`, with draws from `generator`.
    fn batch(
        self,
        tokens: &[u32],
        starts: &[usize],
        seq: usize,
        generator: &mut ChaCha8Rng,
        device: &Device,
    ) -> TokenBatch {
        match self {
            Self::Next => {
                let (inputs, targets) = batch(tokens, starts, seq, device);
                TokenBatch {
                    inputs,
                    targets,
                    n_asked: None,
                    prefix_lengths: None,
                    share: 1.0,
                }
            }
            Self::AfterPrefix => after_prefix(tokens, starts, seq, generator, device),
            Self::Masked { probability, mask } => {
                masked(tokens, starts, seq, (probability, mask), generator, device)
            }
        }
    }
}

/// Windows of which a prefix is given: its last token asks for the first after it.
fn after_prefix(
    tokens: &[u32],
    starts: &[usize],
    seq: usize,
    generator: &mut ChaCha8Rng,
    device: &Device,
) -> TokenBatch {
    let lengths: Vec<usize> = starts
        .iter()
        .map(|_| generator.random_range(1..=seq))
        .collect();
    let mut targets = Vec::with_capacity(starts.len() * seq);
    for (&start, &length) in starts.iter().zip(&lengths) {
        targets.extend(std::iter::repeat_n(NOT_ASKED, length - 1));
        let asked = &tokens[start + length..=start + seq];
        targets.extend(asked.iter().map(|&token| token as i32));
    }
    let (inputs, _) = batch(tokens, starts, seq, device);
    let n_asked = lengths.iter().map(|length| seq + 1 - length).sum();
    let lengths: Vec<i32> = lengths.into_iter().map(|length| length as i32).collect();
    let shape = [starts.len(), seq];
    TokenBatch {
        inputs,
        targets: Tensor::from_data(TensorData::new(targets, shape), device),
        n_asked: Some(n_asked),
        prefix_lengths: Some(Tensor::from_data(lengths.as_slice(), device)),
        share: 1.0,
    }
}

/// Windows with some tokens hidden.
fn masked(
    tokens: &[u32],
    starts: &[usize],
    seq: usize,
    (probability, mask): (f64, u32),
    generator: &mut ChaCha8Rng,
    device: &Device,
) -> TokenBatch {
    let windows = starts.iter().map(|&start| &tokens[start..start + seq]);
    let mut inputs: Vec<i32> = windows.flatten().map(|&token| token as i32).collect();
    let mut targets = vec![NOT_ASKED; inputs.len()];
    // A batch that asks nothing would have no mean loss.
    let certain = generator.random_range(0..inputs.len());
    for (index, (input, target)) in inputs.iter_mut().zip(&mut targets).enumerate() {
        if index != certain && !generator.random_bool(probability) {
            continue;
        }
        *target = *input;
        *input = match generator.random_range(0..10) {
            0..8 => mask as i32,
            8 => generator.random_range(0..mask as i32),
            _ => *input,
        };
    }
    let n_asked = targets
        .iter()
        .filter(|&&target| target != NOT_ASKED)
        .count();
    let tensor =
        |values| Tensor::<2, Int>::from_data(TensorData::new(values, [starts.len(), seq]), device);
    TokenBatch {
        inputs: tensor(inputs),
        targets: tensor(targets),
        n_asked: Some(n_asked),
        prefix_lengths: None,
        share: 1.0,
    }
}

/// `tokens[start .. start + seq]` as inputs and their successors as targets, for each start.
fn batch(
    tokens: &[u32],
    starts: &[usize],
    seq: usize,
    device: &Device,
) -> (Tensor<2, Int>, Tensor<2, Int>) {
    let rows = |shift: usize| {
        let values: Vec<i32> = starts
            .iter()
            .flat_map(|start| &tokens[start + shift..start + shift + seq])
            .map(|&token| token as i32)
            .collect();
        Tensor::from_data(TensorData::new(values, [starts.len(), seq]), device)
    };
    (rows(0), rows(1))
}

/// Refuses a split that is shorter than one window of `seq` tokens and what follows it.
pub fn require_window(split: &'static str, found: usize, seq: usize) -> Result<(), TooShort> {
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
    /// Tokens in a window.
    pub context_length: usize,
}

impl StepShape {
    /// Predictions in one optimiser step.
    pub fn n_tokens(&self) -> usize {
        self.batch_size * self.accumulation * self.context_length
    }
}

/// Random windows, as many batches as the steps from `first_step` to `last_step` need.
#[derive(Clone)]
pub struct RandomWindows {
    tokens: Arc<[u32]>,
    shape: StepShape,
    prediction: Prediction,
    seed: u64,
    /// The first step to yield, counted from 0.
    first_step: usize,
    /// The step to stop before.
    last_step: usize,
    device: Device,
}

impl RandomWindows {
    /// Windows of `tokens` for the steps `first_step..last_step` of the run with this seed.
    pub fn new(
        tokens: Arc<[u32]>,
        shape: StepShape,
        seed: u64,
        steps: std::ops::Range<usize>,
        device: &Device,
    ) -> Result<Self, TooShort> {
        require_window("training", tokens.len(), shape.context_length)?;
        Ok(Self {
            tokens,
            shape,
            prediction: Prediction::Next,
            seed,
            first_step: steps.start,
            last_step: steps.end,
            device: device.clone(),
        })
    }

    /// The same windows with another question.
    pub fn asking(mut self, prediction: Prediction) -> Self {
        self.prediction = prediction;
        self
    }

    /// The batch `index` of the run, where each step has `accumulation` batches. The generator is
    /// counter-based: the batch's number selects its stream.
    fn batch(&self, index: usize) -> TokenBatch {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(index as u64);
        let seq = self.shape.context_length;
        let starts: Vec<usize> = (0..self.shape.batch_size)
            .map(|_| generator.random_range(0..self.tokens.len() - seq))
            .collect();
        let (tokens, device) = (&self.tokens, &self.device);
        TokenBatch {
            share: 1.0 / self.shape.accumulation as f32,
            ..self
                .prediction
                .batch(tokens, &starts, seq, &mut generator, device)
        }
    }
}

impl DataLoader<TokenBatch> for RandomWindows {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TokenBatch> + 'a> {
        let first = self.first_step * self.shape.accumulation;
        Box::new(Batches {
            make: move |index| self.batch(first + index),
            next: 0,
            total: self.num_items(),
        })
    }

    fn num_items(&self) -> usize {
        (self.last_step - self.first_step) * self.shape.accumulation
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<TokenBatch>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    /// The steps `start..end` of those that the loader has.
    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<TokenBatch>> {
        Arc::new(Self {
            first_step: self.first_step + start,
            last_step: self.first_step + end,
            ..self.clone()
        })
    }
}

/// Every token of a split once, in order: full windows in batches, then what is left in a shorter
/// one, so that the mean loss is that of the whole split.
#[derive(Clone)]
pub struct WholeSplit {
    tokens: Arc<[u32]>,
    batch_size: usize,
    context_length: usize,
    prediction: Prediction,
    device: Device,
}

impl WholeSplit {
    /// Windows of at most `context_length` tokens, `batch_size` at a time.
    pub fn new(
        tokens: Arc<[u32]>,
        batch_size: usize,
        context_length: usize,
        device: &Device,
    ) -> Result<Self, TooShort> {
        require_window("validation", tokens.len(), context_length)?;
        Ok(Self {
            tokens,
            batch_size,
            context_length,
            prediction: Prediction::Next,
            device: device.clone(),
        })
    }

    /// The same windows with another question. What is asked of a batch is the same every time.
    pub fn asking(mut self, prediction: Prediction) -> Self {
        self.prediction = prediction;
        self
    }

    /// Windows that are full, and predictions that are left after them.
    fn layout(&self) -> (usize, usize) {
        let predictions = self.tokens.len() - 1;
        (
            predictions / self.context_length,
            predictions % self.context_length,
        )
    }

    fn batch(&self, index: usize) -> TokenBatch {
        let (full, rest) = self.layout();
        let first = index * self.batch_size;
        let last = full.min(first + self.batch_size);
        let (starts, seq): (Vec<usize>, usize) = if first < full {
            let starts = (first..last).map(|window| window * self.context_length);
            (starts.collect(), self.context_length)
        } else {
            (vec![full * self.context_length], rest)
        };
        let mut generator = ChaCha8Rng::seed_from_u64(index as u64);
        let (tokens, device) = (&self.tokens, &self.device);
        self.prediction
            .batch(tokens, &starts, seq, &mut generator, device)
    }
}

impl DataLoader<TokenBatch> for WholeSplit {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TokenBatch> + 'a> {
        Box::new(Batches {
            make: |index| self.batch(index),
            next: 0,
            total: self.num_items(),
        })
    }

    fn num_items(&self) -> usize {
        let (full, rest) = self.layout();
        full.div_ceil(self.batch_size) + usize::from(rest > 0)
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<TokenBatch>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    /// The batches `start..end`, each but the last of them full.
    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<TokenBatch>> {
        let step = self.batch_size * self.context_length;
        let range = start * step..(end * step + 1).min(self.tokens.len());
        Arc::new(Self {
            tokens: self.tokens[range].into(),
            ..self.clone()
        })
    }
}

/// Counts through the batches that a closure makes.
struct Batches<F> {
    make: F,
    next: usize,
    total: usize,
}

impl<F: Fn(usize) -> TokenBatch> Iterator for Batches<F> {
    type Item = Result<TokenBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.total {
            return None;
        }
        self.next += 1;
        Some(Ok((self.make)(self.next - 1)))
    }
}

impl<F: Fn(usize) -> TokenBatch> DataLoaderIterator<TokenBatch> for Batches<F> {
    fn progress(&self) -> Progress {
        Progress::new(self.next, self.total, Some("batches".to_owned()))
    }
}
