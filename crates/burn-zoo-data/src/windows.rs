//! Windows of tokens for language modelling, causal or masked, as burn data loaders.
//!
//! Which windows a training step sees is a function of the seed and the step alone: the loader has
//! no state to save, and a run that resumes at step `n` sees what an unbroken run sees.

use std::ops::Range;
use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use burn_zoo_nn::Inputs;

use crate::batch::{Batch, Numbered, TrainingData};

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
    pub inputs: Inputs,
    /// `[batch, seq]`: the token to predict at each position, or [`NOT_ASKED`].
    pub targets: Tensor<2, Int>,
    /// How many positions are asked, if not all.
    pub n_asked: Option<usize>,
    /// The batch's share of the predictions of its optimiser step.
    pub share: f32,
}

impl TokenBatch {
    /// Inputs and targets `[batch, seq]`; of the targets `n_asked` are not [`NOT_ASKED`], or all when none.
    pub fn new(inputs: impl Into<Inputs>, targets: Tensor<2, Int>, n_asked: Option<usize>) -> Self {
        Self {
            inputs: inputs.into(),
            targets,
            n_asked,
            share: 1.0,
        }
    }
}

impl Batch for TokenBatch {
    fn n_predictions(&self) -> usize {
        self.n_asked
            .unwrap_or_else(|| self.targets.dims().iter().product())
    }

    fn share(&self) -> f32 {
        self.share
    }

    fn set_share(&mut self, share: f32) {
        self.share = share;
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
                TokenBatch::new(inputs, targets, None)
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
    let inputs = Inputs {
        prefix_lengths: Some(Tensor::from_data(lengths.as_slice(), device)),
        ..inputs.into()
    };
    let targets = Tensor::from_data(TensorData::new(targets, shape), device);
    TokenBatch::new(inputs, targets, Some(n_asked))
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
    TokenBatch::new(tensor(inputs), tensor(targets), Some(n_asked))
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

/// The tokens to learn from, and those held out.
#[derive(Clone, Debug)]
pub struct Splits {
    /// What is learned from.
    pub train: Arc<[u32]>,
    /// What is held out.
    pub valid: Arc<[u32]>,
}

impl Splits {
    /// Refuses splits that are shorter than one window.
    pub fn require_window(&self, context_length: usize) -> Result<(), TooShort> {
        require_window("training", self.train.len(), context_length)?;
        require_window("validation", self.valid.len(), context_length)
    }
}

/// Windows of tokens: random ones to learn from, and every held-out token once.
#[derive(Clone, Debug)]
pub struct Windows {
    splits: Splits,
    shape: StepShape,
    prediction: Prediction,
    seed: u64,
}

impl Windows {
    /// Windows of this shape that ask `prediction`; the order follows from `seed`.
    pub fn new(
        splits: Splits,
        shape: StepShape,
        prediction: Prediction,
        seed: u64,
    ) -> Result<Self, TooShort> {
        splits.require_window(shape.context_length)?;
        Ok(Self {
            splits,
            shape,
            prediction,
            seed,
        })
    }

    /// The batch `index` of the run, where each step has `accumulation` batches. The generator is
    /// counter-based: the batch's number selects its stream.
    fn train_batch(&self, index: usize, device: &Device) -> TokenBatch {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(index as u64);
        let (tokens, seq) = (&self.splits.train, self.shape.context_length);
        let starts: Vec<usize> = (0..self.shape.batch_size)
            .map(|_| generator.random_range(0..tokens.len() - seq))
            .collect();
        self.prediction
            .batch(tokens, &starts, seq, &mut generator, device)
    }

    /// Held-out windows that are full, and predictions that are left after them.
    fn valid_layout(&self) -> (usize, usize) {
        let predictions = self.splits.valid.len() - 1;
        let seq = self.shape.context_length;
        (predictions / seq, predictions % seq)
    }

    /// Full windows in batches, then what is left in a shorter one, so that the mean loss is that of the
    /// whole split. What is asked of a batch is the same every time.
    fn valid_batch(&self, index: usize, device: &Device) -> TokenBatch {
        let (full, rest) = self.valid_layout();
        let StepShape {
            batch_size,
            context_length,
            ..
        } = self.shape;
        let first = index * batch_size;
        let last = full.min(first + batch_size);
        let (starts, seq): (Vec<usize>, usize) = if first < full {
            let starts = (first..last).map(|window| window * context_length);
            (starts.collect(), context_length)
        } else {
            (vec![full * context_length], rest)
        };
        let mut generator = ChaCha8Rng::seed_from_u64(index as u64);
        let tokens = &self.splits.valid;
        self.prediction
            .batch(tokens, &starts, seq, &mut generator, device)
    }
}

impl TrainingData<TokenBatch> for Windows {
    fn train(&self, steps: Range<usize>, device: &Device) -> Arc<dyn DataLoader<TokenBatch>> {
        let accumulation = self.shape.accumulation;
        let batches = steps.start * accumulation..steps.end * accumulation;
        let windows = self.clone();
        Arc::new(Numbered::new(batches, device, move |index, device| {
            Ok(windows.train_batch(index, device))
        }))
    }

    fn valid(&self, device: &Device) -> Arc<dyn DataLoader<TokenBatch>> {
        let (full, rest) = self.valid_layout();
        let n_batches = full.div_ceil(self.shape.batch_size) + usize::from(rest > 0);
        let windows = self.clone();
        Arc::new(Numbered::new(0..n_batches, device, move |index, device| {
            Ok(windows.valid_batch(index, device))
        }))
    }
}
