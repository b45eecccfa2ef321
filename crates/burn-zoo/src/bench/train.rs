//! Timing training steps: what they cost, and which part of them.

use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_zoo_data::windows::{Asked, NOT_ASKED, TokenBatch};
use burn_zoo_nn::{ConfigError, Transformer, TransformerConfig};
use burn_zoo_train::{
    Learner, TrainOutput, flops, memory,
    objective::{LanguageModeling, LossOutput, StepConfig, Trainee, sum_parts},
    optimizer::OptimizerConfig,
    schedule::ScheduleConfig,
};
use serde::Serialize;

use super::{median_ms, random_model, tokens};

/// Real training steps of a language model on random tokens: forward pass, loss, gradients, clipping, AdamW.
///
/// A decoder predicts every next token; a model that sees all, every seventh, as if it had been hidden. There is no
/// dropout.
pub struct TrainBench {
    learner: Learner<Trainee<Transformer, LanguageModeling>>,
    batches: Vec<TokenBatch>,
    next: usize,
    device: Device,
    n_tokens: usize,
    flops_per_token: f64,
}

/// An encoder is asked for one of so many tokens.
const MASKED: usize = 7;

/// The parts of a step, each until the device has finished it.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// The forward pass and the loss, with the gradients of the head, which are made with it.
    pub forward: Duration,
    /// The other gradients.
    pub backward: Duration,
    /// Clipping and the optimiser.
    pub optimizer: Duration,
}

/// Times in milliseconds, each the median over steps.
#[derive(Clone, Debug, Serialize)]
pub struct TrainTimes {
    /// A whole step, until its loss was read.
    pub step_ms: f64,
    /// The shortest.
    pub min_step_ms: f64,
    /// The forward pass and the loss, with the gradients of the head, which are made with it.
    pub forward_ms: f64,
    /// The other gradients.
    pub backward_ms: f64,
    /// Clipping and the optimiser.
    pub optimizer_ms: f64,
    /// Tokens learned from per second, by `step_ms`.
    pub tokens_per_second: f64,
    /// What the model's operations came to, in 10⁹ per second, see [`flops::per_token`].
    pub gflops: f64,
    /// What the device does of matrix products, in the same unit, where that was measured.
    pub peak_gflops: Option<f64>,
    /// The share of the peak that the step used.
    pub mfu: Option<f64>,
    /// The most memory that the process had resident.
    pub peak_memory_bytes: Option<u64>,
    /// Steps measured.
    pub steps: usize,
    /// Parameters of the model.
    pub parameters: usize,
}

impl TrainBench {
    /// A model on `device`, and batches `[batch_size, seq]` for it. Gradients are clipped, whatever `step` says.
    ///
    /// # Errors
    ///
    /// When sizes do not fit together, or the model is no language model of one stack.
    pub fn new(
        model: &TransformerConfig,
        [batch_size, seq]: [usize; 2],
        step: StepConfig,
        device: &Device,
    ) -> Result<Self, ConfigError> {
        if model.head.language().is_none() || model.encoder.is_some() {
            let problem = "must score tokens, and belong to a decoder or an encoder alone";
            return Err(ConfigError::new("head", problem));
        }
        if seq == 0 || seq > model.context_length() {
            let problem = format!("must be from 1 to {}, got {seq}", model.context_length());
            return Err(ConfigError::new("seq", problem));
        }
        let transformer = random_model(&model.clone().without_dropout(), device)?;
        let is_decoder = transformer.is_decoder();
        let optimizer = OptimizerConfig {
            clip_norm: Some(1.0),
            ..OptimizerConfig::new(1e-4)
        };
        let schedule = ScheduleConfig::Constant {
            warmup_iterations: 0,
        };
        let step = StepConfig {
            clip_norm: optimizer.clip_norm,
            ..step
        };
        let objective = Trainee::new(transformer, LanguageModeling, step);
        let schedule = schedule.init(optimizer.learning_rate, usize::MAX);
        let optimizer = optimizer
            .init(&objective)
            .expect("it has no groups whose patterns could match nothing");
        let device = device.clone().autodiff();
        let mut learner = Learner::new(objective, optimizer, schedule);
        learner.fork(&device);
        learner.lr_step();

        // Any tokens will do: a step costs the same whatever it learns.
        let n_tokens = batch_size * seq;
        let vocab_size = model.vocab_size();
        let asked_of = if is_decoder { 1 } else { MASKED };
        let scored = n_tokens.div_ceil(asked_of) as f64 / n_tokens as f64;
        let batches = (0..8).map(|number| {
            let drawn = tokens(number * n_tokens..(number + 1) * n_tokens + 1, vocab_size);
            let matrix = |ids: Vec<i32>| {
                Tensor::<2, Int>::from_data(TensorData::new(ids, [batch_size, seq]), &device)
            };
            let ids = |tokens: &[u32]| tokens.iter().map(|&token| token as i32).collect::<Vec<_>>();
            let (inputs, next) = (ids(&drawn[..n_tokens]), ids(&drawn[1..]));
            if is_decoder {
                return TokenBatch::new(matrix(inputs), matrix(next), None);
            }
            let targets = inputs.iter().enumerate();
            let targets = targets.map(|(place, &token)| match place % MASKED {
                0 => token,
                _ => NOT_ASKED,
            });
            let targets: Vec<i32> = targets.collect();
            let asked = Asked::new(targets.chunks(seq), &device);
            TokenBatch::new(matrix(inputs), matrix(targets), Some(asked))
        });
        Ok(Self {
            learner,
            batches: batches.collect(),
            next: 0,
            device: device.clone(),
            n_tokens,
            flops_per_token: flops::per_token(model, seq, scored),
        })
    }

    fn batch(&mut self) -> TokenBatch {
        self.next = (self.next + 1) % self.batches.len();
        self.batches[self.next].clone()
    }

    /// One step as the learner takes it. Returns the loss, and so waits for the device.
    pub fn step(&mut self) -> f64 {
        let batch = self.batch();
        let output = self.learner.train_step(batch);
        self.learner.optimizer_step(output.grads);
        output
            .item
            .facts()
            .expect("the device computes the loss")
            .loss
    }

    /// One step, part by part.
    pub fn parts(&mut self) -> Parts {
        let batch = self.batch();
        let device = self.device.clone();
        let lap = |clock: &mut Instant| {
            device.sync().expect("the device finishes its work");
            let elapsed = clock.elapsed();
            *clock = Instant::now();
            elapsed
        };
        let trainee = self.learner.model();
        let outputs = trainee.on_replicas(batch, |trainee, batch| {
            let mut clock = Instant::now();
            let pass = trainee.forward(&batch);
            let forward = lap(&mut clock);
            let item = LossOutput::new(&pass.loss, &batch);
            let loss = pass.loss.mean.clone() * batch.share;
            let grads = pass.gradients(loss);
            ([forward, lap(&mut clock)], TrainOutput { grads, item })
        });
        let longest = |part: usize| outputs.iter().map(|(laps, _)| laps[part]).max();
        let [forward, backward] = [0, 1].map(|part| longest(part).unwrap_or_default());
        let mut clock = Instant::now();
        let outputs = outputs.into_iter().map(|(_, output)| output);
        let output = sum_parts(&trainee, outputs).expect("a batch has at least one part");
        let backward = backward + lap(&mut clock);
        drop(trainee);
        self.learner.optimizer_step(output.grads);
        let optimizer = lap(&mut clock);
        Parts {
            forward,
            backward,
            optimizer,
        }
    }

    /// Runs `warmup` steps, then measures `steps` whole ones and as many part by part, and tells `on_step` of each. The
    /// peak of the device is measured where that is asked for.
    pub fn measure(
        &mut self,
        warmup: usize,
        steps: usize,
        measures_peak: bool,
        on_step: impl Fn(),
    ) -> TrainTimes {
        for _ in 0..warmup {
            self.step();
            on_step();
        }
        let whole = (0..steps).map(|_| {
            let clock = Instant::now();
            self.step();
            on_step();
            clock.elapsed()
        });
        let whole: Vec<Duration> = whole.collect();
        let min_step_ms = whole.iter().min().map_or(0.0, Duration::as_secs_f64) * 1e3;
        let step_ms = median_ms(whole);
        let parts = (0..steps).map(|_| {
            on_step();
            self.parts()
        });
        let parts: Vec<Parts> = parts.collect();
        let part_ms = |part: fn(&Parts) -> Duration| median_ms(parts.iter().map(part).collect());
        let tokens_per_second = self.n_tokens as f64 / (step_ms / 1e3);
        let flops = self.flops_per_token * tokens_per_second;
        // Before the peak is measured, which takes memory of its own.
        let peak_memory_bytes = memory::peak_bytes();
        let peak = measures_peak.then(|| flops::measured_peak(&self.device));
        TrainTimes {
            step_ms,
            min_step_ms,
            forward_ms: part_ms(|parts| parts.forward),
            backward_ms: part_ms(|parts| parts.backward),
            optimizer_ms: part_ms(|parts| parts.optimizer),
            tokens_per_second,
            gflops: flops / 1e9,
            peak_gflops: peak.map(|peak| peak / 1e9),
            mfu: peak.map(|peak| flops / peak),
            peak_memory_bytes,
            steps,
            parameters: self.learner.model().num_params(),
        }
    }
}
