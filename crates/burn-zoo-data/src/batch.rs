//! What a training step takes, and where the steps get it from.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::Device;

/// One forward pass's worth of data.
pub trait Batch: Clone + Debug + Send + 'static {
    /// How many predictions its mean loss averages.
    fn n_predictions(&self) -> usize;

    /// How many tokens the model reads, padding aside.
    fn n_tokens(&self) -> usize;

    /// Its share of the predictions of its optimiser step, 1 unless gradients are accumulated.
    fn share(&self) -> f32;

    /// Sets the share.
    fn set_share(&mut self, share: f32);

    /// How many sequences it has.
    fn n_sequences(&self) -> usize;

    /// Some of its sequences. Their tokens count as its own do on average.
    fn sequences(&self, range: Range<usize>) -> Self;
}

/// What a training learns from and is evaluated on.
///
/// Which batches a step sees is a function of the step alone: there is no state to save, and a run that
/// resumes at step `n` sees what an unbroken run sees.
pub trait TrainingData<B> {
    /// The batches of these optimiser steps, counted from 0, `accumulation` batches each.
    fn train(&self, steps: Range<usize>, device: &Device) -> Arc<dyn DataLoader<B>>;

    /// The whole validation split.
    fn valid(&self, device: &Device) -> Arc<dyn DataLoader<B>>;
}

/// What makes a batch from its number.
type MakeBatch<B> = Arc<dyn Fn(usize, &Device) -> Result<B, DatasetError> + Send + Sync>;

/// A loader whose batches are a function of their number.
pub struct Numbered<B> {
    make: MakeBatch<B>,
    range: Range<usize>,
    device: Device,
}

impl<B> Numbered<B> {
    /// The batches of `range`, each made by `make` from its number.
    pub fn new(
        range: Range<usize>,
        device: &Device,
        make: impl Fn(usize, &Device) -> Result<B, DatasetError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            make: Arc::new(make),
            range,
            device: device.clone(),
        }
    }

    fn with(&self, range: Range<usize>, device: &Device) -> Self {
        Self {
            make: self.make.clone(),
            range,
            device: device.clone(),
        }
    }
}

impl<B: 'static> DataLoader<B> for Numbered<B> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<B> + 'a> {
        Box::new(NumberedIterator {
            loader: self,
            done: 0,
        })
    }

    fn num_items(&self) -> usize {
        self.range.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<B>> {
        Arc::new(self.with(self.range.clone(), device))
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B>> {
        let first = self.range.start;
        Arc::new(self.with(first + start..first + end, &self.device))
    }
}

struct NumberedIterator<'a, B> {
    loader: &'a Numbered<B>,
    done: usize,
}

impl<B> Iterator for NumberedIterator<'_, B> {
    type Item = Result<B, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let number = self.loader.range.clone().nth(self.done)?;
        self.done += 1;
        Some((self.loader.make)(number, &self.loader.device))
    }
}

impl<B> DataLoaderIterator<B> for NumberedIterator<'_, B> {
    fn progress(&self) -> Progress {
        let total = self.loader.range.len();
        Progress::new(self.done, total, Some("batches".to_owned()))
    }
}

/// A loader that makes its batches ahead of time, on a thread of its own.
#[derive(Clone)]
pub struct Prefetch<B> {
    loader: Arc<dyn DataLoader<B>>,
}

impl<B> Prefetch<B> {
    /// The batches of another loader.
    pub fn new(loader: Arc<dyn DataLoader<B>>) -> Self {
        Self { loader }
    }
}

impl<B: Send + 'static> DataLoader<B> for Prefetch<B> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<B> + 'a> {
        const AHEAD: usize = 2;
        let (sender, receiver) = sync_channel(AHEAD);
        let loader = self.loader.clone();
        // Ends with the loader's batches, or when nobody receives them any more.
        thread::spawn(move || {
            for batch in loader.iter() {
                if sender.send(batch).is_err() {
                    break;
                }
            }
        });
        Box::new(Received {
            receiver,
            done: 0,
            total: self.loader.num_items(),
        })
    }

    fn num_items(&self) -> usize {
        self.loader.num_items()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<B>> {
        Arc::new(Self::new(self.loader.to_device(device)))
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B>> {
        Arc::new(Self::new(self.loader.slice(start, end)))
    }
}

struct Received<B> {
    receiver: Receiver<Result<B, DatasetError>>,
    done: usize,
    total: usize,
}

impl<B> Iterator for Received<B> {
    type Item = Result<B, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.receiver.recv().ok()?;
        self.done += 1;
        Some(batch)
    }
}

impl<B> DataLoaderIterator<B> for Received<B> {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.total, Some("batches".to_owned()))
    }
}
