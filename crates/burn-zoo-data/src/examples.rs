//! Labelled examples as batches: padded to the longest, in an order that follows from the seed.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use burn::data::dataloader::DataLoader;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_zoo_nn::Inputs;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{
    batch::{Batch, Numbered, TrainingData},
    rows::{ids, padded, visible},
    windows::{Asked, NOT_ASKED},
};

/// What a model should say of a reading.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The number of a class.
    Class(usize),
    /// A number.
    Number(f32),
    /// The number of a class for each token, or [`NOT_ASKED`].
    Tokens(Vec<i32>),
    /// The first and the last token of an answer.
    Span(usize, usize),
}

/// A reading and what should be said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Token ids, marks included.
    pub tokens: Vec<u32>,
    /// The segment of each.
    pub segments: Vec<u32>,
    /// What is asked.
    pub target: Target,
}

/// What is asked of a batch, on a device.
#[derive(Clone, Debug)]
pub enum Targets {
    /// A class for each sequence, `[batch]`.
    Classes(Tensor<1, Int>),
    /// A number for each sequence, `[batch]`.
    Numbers(Tensor<1>),
    /// A class for each token, `[batch, seq]`, or [`NOT_ASKED`].
    Tokens(Tensor<2, Int>),
    /// The first and the last token of each answer, `[batch, 2]`.
    Spans(Tensor<2, Int>),
}

/// Labelled sequences on a device.
#[derive(Clone, Debug)]
pub struct ExampleBatch {
    /// `[batch, seq]`, padded to the longest.
    pub inputs: Inputs,
    /// What is asked.
    pub targets: Targets,
    /// How many labels are asked.
    pub n_asked: usize,
    /// How many tokens are not padding.
    pub n_tokens: usize,
    /// The batch's share of the predictions of its optimiser step.
    pub share: f32,
}

impl Batch for ExampleBatch {
    fn n_predictions(&self) -> usize {
        self.n_asked
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
        let (first, length) = (range.start, range.len());
        let targets = match &self.targets {
            Targets::Classes(classes) => Targets::Classes(classes.clone().narrow(0, first, length)),
            Targets::Numbers(numbers) => Targets::Numbers(numbers.clone().narrow(0, first, length)),
            Targets::Tokens(classes) => Targets::Tokens(classes.clone().narrow(0, first, length)),
            Targets::Spans(spans) => Targets::Spans(spans.clone().narrow(0, first, length)),
        };
        Self {
            n_asked: match &targets {
                Targets::Tokens(classes) => Asked::of(classes).n,
                _ => self.n_asked * length / self.n_sequences(),
            },
            targets,
            n_tokens: self.n_tokens * length / self.n_sequences(),
            inputs: self.inputs.sequences(range),
            share: self.share,
        }
    }
}

impl ExampleBatch {
    /// Puts examples on a device, each padded with `padding` to the longest. All must ask for the same kind of
    /// thing.
    ///
    /// # Panics
    ///
    /// When there are none, or their targets are of different kinds.
    pub fn new(examples: &[&Example], padding: u32, device: &Device) -> Self {
        assert!(!examples.is_empty(), "a batch has at least one example");
        let matrix = |row: &dyn Fn(&Example) -> Vec<i32>, fill: i32| {
            let rows: Vec<Vec<i32>> = examples.iter().map(|example| row(example)).collect();
            padded(rows.iter().map(Vec::as_slice), fill, device)
        };
        let tokens = matrix(&|example| ids(&example.tokens), padding as i32);
        let lengths = examples.iter().map(|example| example.tokens.len());
        let mut segments = examples.iter().flat_map(|example| &example.segments);
        let has_segments = segments.any(|&segment| segment > 0);
        Self {
            inputs: Inputs {
                visible: visible(lengths.clone(), device),
                segments: has_segments.then(|| matrix(&|example| ids(&example.segments), 0)),
                ..tokens.into()
            },
            n_asked: examples.iter().map(|example| example.n_asked()).sum(),
            n_tokens: lengths.sum(),
            targets: targets(examples, matrix, device),
            share: 1.0,
        }
    }
}

impl Example {
    /// How many labels it asks for.
    fn n_asked(&self) -> usize {
        match &self.target {
            Target::Tokens(classes) => classes.iter().filter(|&&class| class != NOT_ASKED).count(),
            _ => 1,
        }
    }
}

fn mixed() -> ! {
    panic!("the examples of a batch ask for the same kind of thing")
}

fn targets(
    examples: &[&Example],
    matrix: impl Fn(&dyn Fn(&Example) -> Vec<i32>, i32) -> Tensor<2, Int>,
    device: &Device,
) -> Targets {
    let each = |value: &dyn Fn(&Target) -> i32| {
        let values: Vec<i32> = examples
            .iter()
            .map(|example| value(&example.target))
            .collect();
        Tensor::<1, Int>::from_data(values.as_slice(), device)
    };
    match &examples[0].target {
        Target::Class(_) => Targets::Classes(each(&|target| match target {
            Target::Class(class) => *class as i32,
            _ => mixed(),
        })),
        Target::Number(_) => {
            let numbers = examples.iter().map(|example| match example.target {
                Target::Number(number) => number,
                _ => mixed(),
            });
            let numbers: Vec<f32> = numbers.collect();
            Targets::Numbers(Tensor::from_data(numbers.as_slice(), device))
        }
        Target::Tokens(_) => Targets::Tokens(matrix(
            &|example| match &example.target {
                Target::Tokens(classes) => classes.clone(),
                _ => mixed(),
            },
            NOT_ASKED,
        )),
        Target::Span(..) => {
            let ends = examples.iter().flat_map(|example| match example.target {
                Target::Span(first, last) => [first as i32, last as i32],
                _ => mixed(),
            });
            let ends: Vec<i32> = ends.collect();
            let shape = [examples.len(), 2];
            Targets::Spans(Tensor::from_data(TensorData::new(ends, shape), device))
        }
    }
}

/// Labelled examples to learn from, and those held out.
#[derive(Clone, Debug)]
pub struct Examples {
    /// What is learned from.
    pub train: Arc<[Example]>,
    /// What is held out.
    pub valid: Arc<[Example]>,
    /// Examples in a batch.
    pub batch_size: usize,
    /// Batches whose gradients make one optimiser step.
    pub accumulation: usize,
    /// The token that fills up short sequences.
    pub padding: u32,
    /// Decides the order.
    pub seed: u64,
}

impl Examples {
    /// Batches in one pass over what is learned from. The last may be smaller.
    pub fn batches_per_epoch(&self) -> usize {
        self.train.len().div_ceil(self.batch_size)
    }

    /// Optimiser steps in so many passes.
    pub fn steps(&self, epochs: usize) -> usize {
        (self.batches_per_epoch() * epochs).div_ceil(self.accumulation)
    }

    /// The order of a pass over what is learned from: each has its own.
    fn order(&self, epoch: usize) -> Vec<usize> {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(epoch as u64);
        let mut order: Vec<usize> = (0..self.train.len()).collect();
        order.shuffle(&mut generator);
        order
    }
}

impl TrainingData<ExampleBatch> for Examples {
    fn train(&self, steps: Range<usize>, device: &Device) -> Arc<dyn DataLoader<ExampleBatch>> {
        let batches = steps.start * self.accumulation..steps.end * self.accumulation;
        let (examples, per_epoch) = (self.clone(), self.batches_per_epoch());
        // The order of the last pass, which the next batch most likely is of.
        let last = Mutex::new((0, self.order(0)));
        Arc::new(Numbered::new(batches, device, move |index, device| {
            let (epoch, place) = (index / per_epoch, index % per_epoch);
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.0 != epoch {
                *last = (epoch, examples.order(epoch));
            }
            let first = place * examples.batch_size;
            let chosen = &last.1[first..(first + examples.batch_size).min(last.1.len())];
            let chosen = chosen.iter().map(|&index| &examples.train[index]);
            let chosen: Vec<&Example> = chosen.collect();
            Ok(ExampleBatch::new(&chosen, examples.padding, device))
        }))
    }

    fn valid(&self, device: &Device) -> Arc<dyn DataLoader<ExampleBatch>> {
        let (valid, size, padding) = (self.valid.clone(), self.batch_size, self.padding);
        let n_batches = valid.len().div_ceil(size);
        Arc::new(Numbered::new(0..n_batches, device, move |index, device| {
            let last = ((index + 1) * size).min(valid.len());
            let examples: Vec<&Example> = valid[index * size..last].iter().collect();
            Ok(ExampleBatch::new(&examples, padding, device))
        }))
    }
}
