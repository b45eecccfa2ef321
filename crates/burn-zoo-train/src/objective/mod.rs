//! What a model learns, as a `TrainStep` of burn's learner.
//!
//! An [`Objective`] turns a model and a batch into a [`Loss`]. [`Trainee`] is the rest of a step, written
//! once: gradients, the batch's share of an accumulated step, clipping, and the optimiser.

mod cross_entropy;
mod labels;
mod language;
mod pretraining;

use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use burn::module::{Module, ModuleDisplay};
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{DType, ExecutionError, Tensor, TensorReadError};
use burn_train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use burn_zoo_data::batch::Batch;
use burn_zoo_nn::{
    mixture::Routing,
    recompute::{self, Tape},
};
use burn_zoo_ops::{at_once, awake, cores};
use serde::{Deserialize, Serialize};

use crate::{
    optimizer::{clip_by_global_norm, global_norm, scale_gradients},
    precision::{LossScale, Precision},
};

pub use cross_entropy::cross_entropy;
pub use labels::Labelling;
pub use language::LanguageModeling;
pub use pretraining::Pretraining;

/// What a model is asked, and how its answers are judged.
pub trait Objective<M>: Clone + Debug + Send + Sync + 'static {
    /// What it reads.
    type Batch: Batch;

    /// The loss of a batch. Training takes `smoothing` of each target's probability and spreads it over all
    /// (Szegedy et al. 2016, arXiv:1512.00567), where targets are classes.
    fn loss(&self, model: &M, batch: &Self::Batch, smoothing: f32) -> Loss;
}

/// What a batch costs.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The mean over predictions, `[1]`.
    pub mean: Tensor<1>,
    /// What training minimises besides, `[1]`: the losses of routers.
    pub auxiliary: Option<Tensor<1>>,
    /// How many predictions are right, `[1]`, where that is counted.
    pub n_correct: Option<Tensor<1>>,
}

impl Loss {
    fn in_32_bits(self) -> Self {
        let cast = |tensor: Tensor<1>| tensor.cast(DType::F32);
        Self {
            mean: cast(self.mean),
            auxiliary: self.auxiliary.map(cast),
            n_correct: self.n_correct.map(cast),
        }
    }

    /// A mean loss `[1]` alone.
    pub fn new(mean: Tensor<1>) -> Self {
        Self {
            mean,
            auxiliary: None,
            n_correct: None,
        }
    }

    /// The same with the losses of what routers decided.
    fn with_routing(self, routing: &[Routing]) -> Self {
        let auxiliary = routing.iter().map(Routing::auxiliary_loss);
        Self {
            auxiliary: auxiliary.reduce(|sum, auxiliary| sum + auxiliary),
            ..self
        }
    }
}

/// What a backward pass computes again instead of keeping it from the forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing but what operations never keep.
    #[default]
    Nothing,
    /// Every block from its input, see [`recompute`].
    Block,
}

/// What a training step does besides its objective.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepConfig {
    /// The largest norm of all gradients together. Without one they are not clipped.
    pub clip_norm: Option<f32>,
    /// How much of each target's probability is spread over all classes.
    pub label_smoothing: f32,
    /// What the forward and backward pass compute in.
    pub precision: Precision,
    /// What the backward pass computes again.
    pub recompute: Recompute,
    /// How many copies of the model take parts of a batch, see [`Trainee::on_replicas`]. 0 and 1 are the same.
    pub replicas: usize,
}

/// A model that learns an objective.
#[derive(Module, Debug)]
pub struct Trainee<M: Module, O> {
    /// What is trained.
    pub model: M,
    #[module(skip)]
    objective: O,
    #[module(skip)]
    config: StepConfig,
    #[module(skip)]
    loss_scale: Option<LossScale>,
}

impl<M: Module, O> Trainee<M, O> {
    /// Trains `model`, which may be on a plain device: its parameters are tracked from here on.
    pub fn new(model: M, objective: O, config: StepConfig) -> Self {
        Self {
            model: model.train(),
            objective,
            config,
            loss_scale: config.precision.loss_scale(),
        }
    }

    /// The same, whose losses are scaled as they were in a run that is resumed.
    pub fn with_loss_scale(self, loss_scale: Option<LossScale>) -> Self {
        Self { loss_scale, ..self }
    }
}

/// A model whose losses may be scaled.
pub trait Scaled {
    /// What they are multiplied by now.
    fn loss_scale(&self) -> Option<LossScale>;
}

impl<M: Module, O> Scaled for Trainee<M, O> {
    fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
    }
}

impl<M: Module, O: Objective<M>> Trainee<M, O> {
    /// The forward pass of a step.
    pub fn forward(&self, batch: &O::Batch) -> Forward<M> {
        let StepConfig {
            label_smoothing,
            precision,
            recompute,
            ..
        } = self.config;
        let model = precision.cast(&self.model);
        let loss = || self.objective.loss(&model, batch, label_smoothing);
        let (loss, tape) = match recompute {
            Recompute::Nothing => (loss(), Tape::default()),
            Recompute::Block => recompute::record(loss),
        };
        Forward {
            loss: loss.in_32_bits(),
            model,
            precision,
            tape,
        }
    }
}

impl<M, O> Trainee<M, O>
where
    M: Module + ModuleDisplay + 'static,
    O: Objective<M>,
{
    /// Computes with parts of a batch. Where the device can do it, copies of this take one each, all at once with their
    /// share of the processor's cores: cores that wait for each other after a batch, and not in each of its operations,
    /// wait less.
    ///
    /// Parts count by their predictions, and those without any are left out. So a loss that is a mean of something else
    /// besides, such as the relations of pairs, is spread a little otherwise, as with accumulation.
    pub fn on_replicas<R: Send>(
        &self,
        batch: O::Batch,
        compute: impl Fn(&Self, O::Batch) -> R + Sync,
    ) -> Vec<R> {
        let StepConfig {
            replicas,
            precision,
            ..
        } = self.config;
        // What 16 bits drop is drawn from the one generator of the device, in the order in which it is asked.
        let is_shared = replicas > 1 && precision == Precision::F32;
        let Some(device) = self.devices().into_iter().next() else {
            return vec![compute(self, batch)];
        };
        if !is_shared || cores(&device) == 0 {
            return vec![awake(&device, || compute(self, batch))];
        }
        let n_sequences = batch.n_sequences();
        let size = n_sequences.div_ceil(replicas).max(1);
        let parts = (0..n_sequences).step_by(size).filter_map(|first| {
            let mut part = batch.sequences(first..(first + size).min(n_sequences));
            let share = part.n_predictions() as f32 / batch.n_predictions() as f32;
            part.set_share(batch.share() * share);
            (share > 0.0).then_some(part)
        });
        let parts: Vec<_> = parts.collect();
        if parts.len() <= 1 {
            return vec![awake(&device, || compute(self, batch))];
        }
        // A copy has a graph of its own.
        let parts = parts
            .into_iter()
            .map(|part| (self.clone().fork(&device), part));
        at_once(&device, parts.collect(), |seed, (replica, part)| {
            recompute::seed(seed);
            compute(&replica, part)
        })
    }

    /// The loss and the gradients of a part of a step.
    fn differentiate(&self, batch: O::Batch) -> TrainOutput<LossOutput> {
        let forward = self.forward(&batch);
        let loss = &forward.loss;
        let output = LossOutput::new(loss, &batch);
        let total = match loss.auxiliary.clone() {
            Some(auxiliary) => loss.mean.clone() + auxiliary,
            None => loss.mean.clone(),
        };
        // Gradients of parts are summed, so each counts by its share of the step.
        let total = match batch.share() {
            1.0 => total,
            share => total * share,
        };
        let total = match self.loss_scale {
            Some(scale) => total * scale.factor,
            None => total,
        };
        TrainOutput {
            grads: forward.gradients(total),
            item: output,
        }
    }
}

/// What parts of a step come to together, each of which counts by its share.
pub fn sum_parts<M: Module>(
    model: &M,
    parts: impl IntoIterator<Item = TrainOutput<LossOutput>>,
) -> Option<TrainOutput<LossOutput>> {
    let mut parts = parts.into_iter();
    let first = parts.next()?;
    let Some(second) = parts.next() else {
        return Some(first);
    };
    let mut accumulator = GradientsAccumulator::new();
    accumulator.accumulate(model, first.grads);
    let rest = std::iter::once(second).chain(parts);
    let item = rest.fold(first.item, |item, part| {
        accumulator.accumulate(model, part.grads);
        item.merge(part.item)
    });
    let grads = accumulator.grads();
    Some(TrainOutput { grads, item })
}

/// The loss of a batch, and what its gradients need.
pub struct Forward<M> {
    /// The loss.
    pub loss: Loss,
    /// What it was computed by, and in.
    model: M,
    precision: Precision,
    tape: Tape,
}

impl<M: Module> Forward<M> {
    /// The gradients of `total`, which was computed from the loss, for the parameters of the model, in 32 bits.
    pub fn gradients(self, total: Tensor<1>) -> GradientsParams {
        let grads = self.tape.gradients(total, &self.model);
        self.precision.gradients(&self.model, grads)
    }
}

impl<M, O> TrainStep for Trainee<M, O>
where
    M: Module + ModuleDisplay + 'static,
    O: Objective<M>,
{
    type Input = O::Batch;
    type Output = LossOutput;

    fn step(&self, batch: O::Batch) -> TrainOutput<LossOutput> {
        let n_tokens = batch.n_tokens();
        let parts = self.on_replicas(batch, Self::differentiate);
        let output = sum_parts(self, parts).expect("a batch has at least one part");
        TrainOutput {
            item: LossOutput {
                n_tokens,
                ..output.item
            },
            ..output
        }
    }

    fn optimize(
        mut self,
        optimizer: &mut ModuleOptimizer,
        learning_rate: ModuleLearningRate,
        mut grads: GradientsParams,
    ) -> Self {
        if let Some(scale) = self.loss_scale
            && let Some(norm) = global_norm(&self, &grads)
        {
            let read = norm.clone().try_into_scalar::<f32>();
            let is_finite = read.is_ok_and(f32::is_finite);
            self.loss_scale = Some(scale.after(is_finite));
            if !is_finite {
                return self;
            }
            let factor = norm.zeros_like() + 1.0 / scale.factor;
            grads = scale_gradients(&self, grads, factor);
        }
        let grads = match self.config.clip_norm {
            Some(max_norm) => clip_by_global_norm(&self, grads, max_norm),
            None => grads,
        };
        optimizer.step(learning_rate, self, grads)
    }
}

impl<M, O> InferenceStep for Trainee<M, O>
where
    M: Module + ModuleDisplay + 'static,
    O: Objective<M>,
{
    type Input = O::Batch;
    type Output = LossOutput;

    fn step(&self, batch: O::Batch) -> LossOutput {
        let loss = self.objective.loss(&self.model, &batch, 0.0);
        LossOutput::new(&loss, &batch)
    }
}

/// What a step reports. Never the logits: the learner hands outputs to another thread.
#[derive(Clone, Debug)]
pub struct LossOutput {
    /// The mean loss in nats, `[1]`, and where it is counted how many predictions are right, `[2]`.
    facts: Tensor<1>,
    /// Their values, once one of the copies read them.
    values: Arc<OnceLock<Facts>>,
    /// How many predictions it averages.
    pub n_predictions: usize,
    /// How many tokens the model read, padding aside.
    pub n_tokens: usize,
    /// How long they took. Set by the training loop.
    pub seconds: f64,
}

/// What was read of a step's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// The mean loss in nats.
    pub loss: f64,
    /// The share of predictions that are right, where that is counted.
    pub accuracy: Option<f64>,
}

/// The mean of outputs, each by its predictions.
#[derive(Clone, Copy, Debug, Default)]
pub struct MeanFacts {
    loss: f64,
    correct: Option<f64>,
    count: usize,
}

impl MeanFacts {
    /// Adds what was read of so many predictions.
    pub fn add(&mut self, facts: Facts, n_predictions: usize) {
        self.loss += facts.loss * n_predictions as f64;
        if let Some(accuracy) = facts.accuracy {
            *self.correct.get_or_insert(0.0) += accuracy * n_predictions as f64;
        }
        self.count += n_predictions;
    }

    /// The mean over all predictions.
    pub fn facts(self) -> Facts {
        let count = self.count as f64;
        Facts {
            loss: self.loss / count,
            accuracy: self.correct.map(|correct| correct / count),
        }
    }
}

impl LossOutput {
    /// The loss of a batch.
    pub fn new(loss: &Loss, batch: &impl Batch) -> Self {
        let mean = loss.mean.clone().detach();
        Self {
            facts: match loss.n_correct.clone() {
                Some(n_correct) => Tensor::cat(vec![mean, n_correct.detach()], 0),
                None => mean,
            },
            values: Arc::default(),
            n_predictions: batch.n_predictions(),
            n_tokens: batch.n_tokens(),
            seconds: 0.0,
        }
    }

    /// What the device says. Waits for it.
    pub fn facts(&self) -> Result<Facts, TensorReadError> {
        if let Some(values) = self.values.get() {
            return Ok(*values);
        }
        let data = self.facts.clone().cast(DType::F32).try_into_data()?;
        let values = data.iter::<f64>().collect::<Vec<_>>();
        let facts = Facts {
            loss: values[0],
            accuracy: values
                .get(1)
                .map(|n_correct| n_correct / self.n_predictions as f64),
        };
        Ok(*self.values.get_or_init(|| facts))
    }

    /// Two outputs as one of all their predictions.
    pub fn merge(self, other: Self) -> Self {
        let n_predictions = self.n_predictions + other.n_predictions;
        let scaled = |part: &Self| {
            let share = part.n_predictions as f64 / n_predictions as f64;
            let [n_facts] = part.facts.dims();
            let loss = part.facts.clone().narrow(0, 0, 1) * share;
            match n_facts {
                1 => loss,
                _ => Tensor::cat(vec![loss, part.facts.clone().narrow(0, 1, n_facts - 1)], 0),
            }
        };
        Self {
            facts: scaled(&self) + scaled(&other),
            values: Arc::default(),
            n_predictions,
            n_tokens: self.n_tokens + other.n_tokens,
            seconds: self.seconds + other.seconds,
        }
    }
}

impl ItemLazy for LossOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        match self.facts() {
            Ok(_) => Ok(self),
            Err(error) => Err(ExecutionError::with_context(error.to_string())),
        }
    }
}
