//! The training loop by steps, as a strategy of burn-train's learner.
//!
//! burn's own strategies know epochs: they evaluate and save at the end of one, and an interrupted
//! epoch is lost. Language models train for a number of steps, so this strategy evaluates and saves
//! every so many, saves where it is interrupted, and stops at a loss that is not a number. To the
//! learner's screen and logs, a segment between evaluations is an epoch.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::data::dataloader::{DataLoaderIterator, Progress};
use burn::module::{ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::store::ModuleRecord;
use burn::tensor::{DType, Device, Tensor, TensorReadError};
use burn_train::metric::store::EventStoreClient;
use burn_train::{
    EventProcessorTraining, InferenceStep, Interrupter, Learner, LearnerEvent, LearnerModel,
    LearningCheckpointer, SupervisedLearningStrategy, SupervisedTrainingEventProcessor,
    TrainLoader, TrainOutput, TrainStep, TrainingComponents, TrainingItem, ValidLoader,
};
use burn_zoo_data::batch::Batch;
use burn_zoo_nn::recompute;

use crate::{
    average::Average,
    checkpoint::{Checkpoints, Evaluation, RunState},
    objective::{self, Facts, LossOutput, MeanFacts, Scaled},
    recipe::LoopConfig,
};

/// Why a loop ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// After the last step.
    Finished,
    /// Before it, because the validation loss no longer fell.
    EarlyStopped,
    /// On request. A checkpoint of the last step was saved.
    Interrupted,
    /// The loss of a step was infinite or not a number.
    NonFiniteLoss {
        /// The step, counted from 1.
        step: usize,
    },
    /// The device, the data or a checkpoint failed; the learner's result says how.
    Failed(String),
}

/// What a loop leaves: where it got to, and why it ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Where the run stands.
    pub state: RunState,
    /// Why it ended.
    pub end: End,
}

/// One line of the run's history.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Record {
    /// A training step.
    Train {
        /// Counted from 1.
        step: usize,
        /// The mean loss of the step's batches, in nats.
        loss: f64,
        /// The learning rate of the step.
        learning_rate: f64,
        /// How long it took.
        seconds: f64,
    },
    /// An evaluation of the whole validation split.
    Valid {
        /// After how many steps.
        step: usize,
        /// The mean loss, in nats.
        valid_loss: f64,
        /// The share of predictions that are right, where that is counted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        valid_accuracy: Option<f64>,
    },
    /// What the model writes.
    Sample {
        /// After how many steps.
        step: usize,
        /// The text.
        sample: String,
    },
}

impl Record {
    /// Its place in the history: by step, training before a sample before evaluation.
    pub(crate) fn order(&self) -> (usize, usize) {
        match *self {
            Self::Train { step, .. } => (step, 0),
            Self::Sample { step, .. } => (step, 1),
            Self::Valid { step, .. } => (step, 2),
        }
    }
}

/// Writes something with a model, if it can write.
pub type Sampler<M> = Arc<dyn Fn(&M) -> Option<String> + Send + Sync>;

/// Trains by steps. One loop serves one training.
pub struct StepLoop<M> {
    device: Device,
    seed: u64,
    config: LoopConfig,
    start: RunState,
    checkpoints: Option<Arc<Checkpoints>>,
    average: Option<ModuleRecord>,
    sampler: Option<Sampler<M>>,
    on_record: Box<dyn Fn(Record) + Send + Sync>,
    outcome: Arc<Mutex<Option<Outcome>>>,
}

impl<M> StepLoop<M> {
    /// A loop on a device, from a state on. `on_record` is told of each step and evaluation.
    pub fn new(
        device: &Device,
        seed: u64,
        config: LoopConfig,
        start: RunState,
        checkpoints: Option<Arc<Checkpoints>>,
        on_record: impl Fn(Record) + Send + Sync + 'static,
    ) -> Self {
        Self {
            device: device.clone(),
            seed,
            config,
            start,
            checkpoints,
            average: None,
            sampler: None,
            on_record: Box::new(on_record),
            outcome: Arc::default(),
        }
    }

    /// The same loop, whose mean of weights goes on from one that was saved.
    pub fn with_average(self, average: Option<ModuleRecord>) -> Self {
        Self { average, ..self }
    }

    /// The same loop, which has the model write something every `sample_interval` steps.
    pub fn with_sampler(self, sampler: Option<Sampler<M>>) -> Self {
        Self { sampler, ..self }
    }

    /// Where the outcome will be once the learner returns.
    pub fn outcome(&self) -> Arc<Mutex<Option<Outcome>>> {
        self.outcome.clone()
    }
}

/// The parts of a running loop.
struct Running<'a, M: LearnerModel> {
    settings: &'a StepLoop<M>,
    learner: Learner<M>,
    average: Option<Average<M>>,
    checkpointer: Option<LearningCheckpointer<M>>,
    store: Arc<EventStoreClient>,
    events: SupervisedTrainingEventProcessor<M>,
    interrupter: Interrupter,
    state: RunState,
    /// The step of the last checkpoint, which may still be being written.
    saved: Option<usize>,
    started: Instant,
    /// A step whose loss was not read yet, so that reading it does not hold up the device.
    unread: Option<Unread>,
}

struct Unread {
    step: usize,
    learning_rate: f64,
    output: LossOutput,
}

impl<M, B> SupervisedLearningStrategy<M> for StepLoop<M>
where
    B: Batch,
    M: LearnerModel
        + Scaled
        + TrainStep<Input = B, Output = LossOutput>
        + InferenceStep<Input = B, Output = LossOutput>,
{
    fn fit(
        &self,
        components: TrainingComponents<M>,
        mut learner: Learner<M>,
        train: TrainLoader<M>,
        valid: ValidLoader<M>,
        _: usize,
    ) -> (M, SupervisedTrainingEventProcessor<M>) {
        let device = self.device.clone().autodiff();
        learner.fork(&device);
        let train = train.to_device(&device);
        let valid = valid.to_device(&self.device.clone().inner());
        let average = self.config.ema.map(|config| {
            let model = learner.model().valid();
            let saved = self.average.clone();
            let model = match saved {
                Some(record) => model.load_record(record),
                None => model,
            };
            Average::new(config, model)
        });
        let mut running = Running {
            settings: self,
            learner,
            average,
            checkpointer: components.checkpointer,
            store: components.event_store,
            events: components.event_processor,
            interrupter: components.interrupter,
            state: self.start.clone(),
            saved: None,
            started: Instant::now(),
            unread: None,
        };

        let mut batches = train.iter();
        let end = loop {
            let result = if running.is_evaluation_due() {
                running.evaluate(&valid)
            } else if running.is_out_of_patience() {
                break End::EarlyStopped;
            } else if running.state.step < self.config.iterations {
                running.train_segment(&mut *batches)
            } else {
                break End::Finished;
            };
            // Saved once evaluated, or where it is interrupted; there the update after the last loss
            // may have spoilt the parameters.
            match result {
                Ok(()) if running.is_evaluated() => running.save(),
                Ok(()) => {}
                Err(End::Interrupted) if !running.is_finite() => {
                    break End::NonFiniteLoss {
                        step: running.state.step + 1,
                    };
                }
                Err(end) => {
                    if end == End::Interrupted {
                        running.save();
                    }
                    break end;
                }
            }
        };
        drop(batches);
        // Waits for checkpoints that are still being written.
        drop(running.checkpointer.take());
        let end = match running.interrupter.error() {
            Some(error) if !matches!(end, End::NonFiniteLoss { .. }) => {
                End::Failed(error.to_string())
            }
            _ => end,
        };
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(Outcome {
            state: running.state_now(),
            end,
        });
        let model = match running.average {
            Some(average) => average.model,
            None => running.learner.model(),
        };
        (model, running.events)
    }
}

impl<M, B> Running<'_, M>
where
    B: Batch,
    M: LearnerModel
        + Scaled
        + TrainStep<Input = B, Output = LossOutput>
        + InferenceStep<Input = B, Output = LossOutput>,
{
    fn state_now(&self) -> RunState {
        RunState {
            seconds: self.settings.start.seconds + self.started.elapsed().as_secs_f64(),
            loss_scale: self.learner.model().loss_scale(),
            ..self.state.clone()
        }
    }

    /// Whether the model of this very step has been evaluated.
    fn is_evaluated(&self) -> bool {
        self.state
            .valid
            .is_some_and(|valid| valid.step == self.state.step)
    }

    fn is_evaluation_due(&self) -> bool {
        let (step, config) = (self.state.step, &self.settings.config);
        let is_end = step.is_multiple_of(config.eval_interval) || step >= config.iterations;
        step > 0 && is_end && !self.is_evaluated()
    }

    /// The model to evaluate, without gradients: the mean of weights, where there is one.
    fn evaluated_model(&self) -> M {
        match &self.average {
            Some(average) => average.model.clone(),
            None => self.learner.model().valid(),
        }
    }

    fn save(&mut self) {
        if self.saved.replace(self.state.step) == Some(self.state.step) {
            return;
        }
        let state = self.state_now();
        let (Some(checkpoints), Some(checkpointer)) =
            (&self.settings.checkpoints, &mut self.checkpointer)
        else {
            return;
        };
        let average = self.average.as_ref();
        match checkpoints.begin(
            state,
            average.map(|average| average.model.clone().into_record()),
        ) {
            Ok(()) => checkpointer.checkpoint(&self.learner, self.state.step, &self.store),
            Err(error) => self.interrupter.fail(error),
        }
    }

    /// Has the model write something.
    fn sample(&self) {
        let sampler = self.settings.sampler.as_ref();
        if let Some(sample) = sampler.and_then(|sampler| sampler(&self.evaluated_model())) {
            (self.settings.on_record)(Record::Sample {
                step: self.state.step,
                sample,
            });
        }
    }

    /// Whether something that happens every so many steps does after this one.
    fn is_due(&self, interval: Option<usize>) -> bool {
        interval.is_some_and(|interval| self.state.step.is_multiple_of(interval))
    }

    /// Which segment between evaluations the run is in, counted from 1.
    fn segment(&self) -> usize {
        self.state.step / self.settings.config.eval_interval + 1
    }

    fn stop_requested(&self) -> Result<(), End> {
        match (self.interrupter.should_stop(), self.interrupter.error()) {
            (false, _) => Ok(()),
            (true, None) => Err(End::Interrupted),
            (true, Some(error)) => Err(End::Failed(error.to_string())),
        }
    }

    /// Steps up to the next evaluation.
    fn train_segment(&mut self, batches: &mut (dyn DataLoaderIterator<B> + '_)) -> Result<(), End> {
        let config = &self.settings.config;
        let (first, segment) = (self.state.step, self.segment());
        let last = (segment * config.eval_interval).min(config.iterations);
        let result = self.events.process_train(LearnerEvent::StartSplit {
            epoch_number: segment,
            total_items: last - first,
        });
        self.interrupter.fail_on_error(result);
        if first.is_multiple_of(config.eval_interval) {
            self.state.segment_losses = (0.0, 0);
        }

        let mut clock = Instant::now();
        let mut result = Ok(());
        while self.state.step < last && result.is_ok() {
            let output = match self.step(batches, &mut clock) {
                Ok(output) => output,
                Err(end) => {
                    result = Err(end);
                    break;
                }
            };
            let progress = Progress::new(
                self.state.step - first,
                last - first,
                Some("steps".to_owned()),
            );
            let learning_rate = self.learner.lr_current();
            let item =
                TrainingItem::new(output, progress, Some(self.state.step), Some(learning_rate));
            let processed = self.events.process_train(LearnerEvent::ProcessedItem(item));
            self.interrupter.fail_on_error(processed);
            result = self.between_steps(&mut clock);
            if result.is_ok() {
                result = self.stop_requested();
            }
        }
        let read = self.read_loss();
        let ended = self.events.process_train(LearnerEvent::EndSplit(segment));
        self.interrupter.fail_on_error(ended);
        let (sum, count) = self.state.segment_losses;
        self.state.train_loss = Some(sum / count.max(1) as f64);
        read.and(result)
    }

    /// Samples and checkpoints that are due besides those of evaluations. They are not part of a step's time.
    fn between_steps(&mut self, clock: &mut Instant) -> Result<(), End> {
        let config = &self.settings.config;
        let is_sampled = self.is_due(config.sample_interval);
        let is_saved = self.is_due(config.checkpoint_interval) && !self.is_evaluation_due();
        if is_sampled || is_saved {
            self.read_loss()?;
            if is_sampled {
                self.sample();
            }
            if is_saved && self.is_finite() {
                self.save();
            }
            *clock = Instant::now();
        }
        Ok(())
    }

    /// One optimiser step over `accumulation` batches.
    fn step(
        &mut self,
        batches: &mut (dyn DataLoaderIterator<B> + '_),
        clock: &mut Instant,
    ) -> Result<LossOutput, End> {
        // Dropout follows from the seed and the step, so that a resumed run draws the same.
        let step_seed =
            self.settings.seed ^ (self.state.step as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.settings.device.seed(step_seed);
        recompute::seed(step_seed);

        let (grads, mut output) = match self.settings.config.accumulation {
            1 => {
                let TrainOutput { grads, item } = self.learner.train_step(next(batches)?);
                (grads, item)
            }
            accumulation => self.accumulate(batches, accumulation)?,
        };
        self.learner.lr_step();
        self.learner.optimizer_step(grads);

        self.read_loss()?;
        output.seconds = clock.elapsed().as_secs_f64();
        *clock = Instant::now();
        self.state.step += 1;
        if let Some(average) = self.average.take() {
            self.average = Some(average.update(&self.learner.model(), self.state.step));
        }
        self.state.tokens += output.n_tokens;
        self.state.predictions += output.n_predictions;
        self.state.training_seconds += output.seconds;
        self.unread = Some(Unread {
            step: self.state.step,
            learning_rate: self.learner.lr_current().base(),
            output: output.clone(),
        });
        Ok(output)
    }

    /// The gradients of several batches as if they were one: each counts by its share of the predictions.
    fn accumulate(
        &mut self,
        batches: &mut (dyn DataLoaderIterator<B> + '_),
        accumulation: usize,
    ) -> Result<(GradientsParams, LossOutput), End> {
        let parts = (0..accumulation).map(|_| next(batches));
        let parts = parts.collect::<Result<Vec<B>, End>>()?;
        let total: usize = parts.iter().map(B::n_predictions).sum();
        let model = self.learner.model();
        let outputs = parts.into_iter().map(|mut part| {
            part.set_share(part.n_predictions() as f32 / total as f32);
            self.learner.train_step(part)
        });
        let TrainOutput { grads, item } =
            objective::sum_parts(&model, outputs).expect("a step has at least one batch");
        Ok((grads, item))
    }

    /// Reads the loss of the step before, by when the device has likely finished it.
    fn read_loss(&mut self) -> Result<(), End> {
        let Some(unread) = self.unread.take() else {
            return Ok(());
        };
        let loss = unread.output.facts().map_err(device_failed)?.loss;
        if !loss.is_finite() {
            return Err(End::NonFiniteLoss { step: unread.step });
        }
        let (sum, count) = self.state.segment_losses;
        self.state.segment_losses = (sum + loss, count + 1);
        (self.settings.on_record)(Record::Train {
            step: unread.step,
            loss,
            learning_rate: unread.learning_rate,
            seconds: unread.output.seconds,
        });
        Ok(())
    }

    /// Whether all parameters are numbers.
    fn is_finite(&self) -> bool {
        struct Sum(Option<Tensor<1>>);
        impl ModuleVisitor for Sum {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                // Zero for numbers, NaN for the rest.
                let sum = (param.val().inner() * 0.0).sum();
                self.0 = Some(match self.0.take() {
                    Some(total) => total + sum,
                    None => sum,
                });
            }
        }
        let mut total = Sum(None);
        self.learner.model().visit(&mut total);
        let read = |sum: Tensor<1>| sum.cast(DType::F32).try_into_scalar::<f32>();
        total
            .0
            .is_none_or(|sum| read(sum).is_ok_and(f32::is_finite))
    }

    /// The mean loss over the whole validation split.
    fn evaluate(&mut self, valid: &ValidLoader<M>) -> Result<(), End> {
        let step = self.state.step;
        // The segment that has just ended.
        let segment = step.div_ceil(self.settings.config.eval_interval);
        let started = self.events.process_valid(LearnerEvent::StartSplit {
            epoch_number: segment,
            total_items: valid.num_items(),
        });
        self.interrupter.fail_on_error(started);

        let model = self.evaluated_model();
        let mut mean = MeanFacts::default();
        let mut batches = valid.iter();
        let mut clock = Instant::now();
        while let Some(batch) = batches.next() {
            let batch = batch.map_err(|error| End::Failed(error.to_string()))?;
            let mut output = InferenceStep::step(&model, batch);
            let facts = output.facts().map_err(device_failed)?;
            mean.add(facts, output.n_predictions);
            output.seconds = clock.elapsed().as_secs_f64();
            clock = Instant::now();
            let item = TrainingItem::new(output, batches.progress(), Some(step), None);
            let processed = self.events.process_valid(LearnerEvent::ProcessedItem(item));
            self.interrupter.fail_on_error(processed);
            // An evaluation is not worth keeping half done.
            self.stop_requested()?;
        }
        let ended = self.events.process_valid(LearnerEvent::EndSplit(segment));
        self.interrupter.fail_on_error(ended);
        let ended = self.events.process_train(LearnerEvent::EndEpoch(segment));
        self.interrupter.fail_on_error(ended);

        let Facts { loss, accuracy } = mean.facts();
        if !loss.is_finite() {
            return Err(End::NonFiniteLoss { step });
        }
        (self.settings.on_record)(Record::Valid {
            step,
            valid_loss: loss,
            valid_accuracy: accuracy,
        });
        self.state.valid = Some(Evaluation {
            step,
            loss,
            accuracy,
        });
        if self.state.best.is_none_or(|best| loss < best.loss) {
            self.state.best = self.state.valid;
            self.state.evaluations_since_best = 0;
        } else {
            self.state.evaluations_since_best += 1;
        }
        Ok(())
    }

    fn is_out_of_patience(&self) -> bool {
        let early_stopping = self.settings.config.early_stopping.as_ref();
        early_stopping.is_some_and(|stop| self.state.evaluations_since_best >= stop.patience)
    }
}

fn next<B>(batches: &mut (dyn DataLoaderIterator<B> + '_)) -> Result<B, End> {
    match batches.next() {
        Some(Ok(batch)) => Ok(batch),
        Some(Err(error)) => Err(End::Failed(error.to_string())),
        None => Err(End::Failed("the data loader ended early".to_owned())),
    }
}

fn device_failed(error: TensorReadError) -> End {
    End::Failed(error.to_string())
}
