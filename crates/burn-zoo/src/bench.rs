//! Timing training steps: what they cost, and which part of them.

use std::time::{Duration, Instant};

use burn::optim::GradientsParams;
use burn::tensor::Device;
use burn_zoo_data::{
    batch::TrainingData,
    windows::{Prediction, Splits, StepShape, TokenBatch, Windows},
};
use burn_zoo_models::gpt::GptConfig;
use burn_zoo_nn::{ConfigError, Transformer, init};
use burn_zoo_train::{
    Learner, memory,
    objective::{LanguageModeling, StepConfig, Trainee},
    optimizer::OptimizerConfig,
    schedule::ScheduleConfig,
};
use serde::Serialize;

const SEED: u64 = 1337;

/// Real training steps of a GPT on random tokens: forward pass, loss, gradients, clipping, AdamW.
pub struct TrainBench {
    learner: Learner<Trainee<Transformer, LanguageModeling>>,
    batches: Vec<TokenBatch>,
    next: usize,
    device: Device,
    n_tokens: usize,
}

/// The parts of a step, each until the device has finished it.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// The forward pass and the loss.
    pub forward: Duration,
    /// The gradients.
    pub backward: Duration,
    /// Clipping and the optimiser.
    pub optimizer: Duration,
}

/// Times in milliseconds, each the median over steps.
#[derive(Clone, Debug, Serialize)]
pub struct TrainTimes {
    /// A whole step, until its loss was read.
    pub step_ms: f64,
    /// The forward pass and the loss.
    pub forward_ms: f64,
    /// The gradients.
    pub backward_ms: f64,
    /// Clipping and the optimiser.
    pub optimizer_ms: f64,
    /// Tokens learned from per second, by `step_ms`.
    pub tokens_per_second: f64,
    /// The most memory that the process had resident.
    pub peak_memory_bytes: Option<u64>,
    /// Steps measured.
    pub steps: usize,
    /// Parameters of the model.
    pub parameters: usize,
}

impl TrainBench {
    /// A model of these sizes on `device`, and batches for it.
    pub fn new(
        model: &GptConfig,
        vocab_size: usize,
        batch_size: usize,
        device: &Device,
    ) -> Result<Self, ConfigError> {
        init::seed(SEED);
        let transformer = model.transformer(vocab_size)?.init(device);
        let optimizer = OptimizerConfig {
            clip_norm: Some(1.0),
            ..OptimizerConfig::new(1e-4)
        };
        let schedule = ScheduleConfig::Constant {
            warmup_iterations: 0,
        };
        let step = StepConfig {
            clip_norm: optimizer.clip_norm,
            ..StepConfig::default()
        };
        let objective = Trainee::new(transformer, LanguageModeling, step);
        let schedule = schedule.init(optimizer.learning_rate, usize::MAX);
        let optimizer = optimizer.init(&objective);
        let device = device.clone().autodiff();
        let mut learner = Learner::new(objective, optimizer, schedule);
        learner.fork(&device);
        learner.lr_step();

        let shape = StepShape {
            batch_size,
            accumulation: 1,
            context_length: model.context_length,
        };
        // Any tokens will do: a step costs the same whatever it learns.
        let tokens = (0..16 * model.context_length as u64 + 1)
            .map(|index| (index.wrapping_mul(2_654_435_761) % vocab_size as u64) as u32)
            .collect::<Vec<_>>();
        let splits = Splits {
            train: tokens.clone().into(),
            valid: tokens.into(),
        };
        let windows = Windows::new(splits, shape, Prediction::Next, SEED)
            .expect("the text is longer than a window");
        Ok(Self {
            learner,
            batches: windows
                .train(0..8, &device)
                .iter()
                .filter_map(Result::ok)
                .collect(),
            next: 0,
            device,
            n_tokens: shape.n_tokens(),
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
        let mut clock = Instant::now();
        let mut lap = || {
            device.sync().expect("the device finishes its work");
            let elapsed = clock.elapsed();
            clock = Instant::now();
            elapsed
        };
        let objective = self.learner.model();
        let loss = objective.loss(&batch).mean;
        let forward = lap();
        let grads = GradientsParams::from_grads(loss.backward(), &objective);
        let backward = lap();
        drop(objective);
        self.learner.optimizer_step(grads);
        let optimizer = lap();
        Parts {
            forward,
            backward,
            optimizer,
        }
    }

    /// Runs `warmup` steps, then measures `steps` whole ones and as many part by part.
    pub fn measure(&mut self, warmup: usize, steps: usize) -> TrainTimes {
        for _ in 0..warmup {
            self.step();
        }
        let whole = (0..steps).map(|_| {
            let clock = Instant::now();
            self.step();
            clock.elapsed()
        });
        let step_ms = median_ms(whole.collect());
        let parts: Vec<Parts> = (0..steps).map(|_| self.parts()).collect();
        let part_ms = |part: fn(&Parts) -> Duration| median_ms(parts.iter().map(part).collect());
        TrainTimes {
            step_ms,
            forward_ms: part_ms(|parts| parts.forward),
            backward_ms: part_ms(|parts| parts.backward),
            optimizer_ms: part_ms(|parts| parts.optimizer),
            tokens_per_second: self.n_tokens as f64 / (step_ms / 1e3),
            peak_memory_bytes: memory::peak_bytes(),
            steps,
            parameters: burn::module::Module::num_params(&self.learner.model()),
        }
    }
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort();
    let middle = times.len() / 2;
    let median = match times.len() % 2 {
        1 => times[middle],
        _ => (times[middle - 1] + times[middle]) / 2,
    };
    median.as_secs_f64() * 1e3
}
