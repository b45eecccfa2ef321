//! Training any model on any objective.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use burn::module::{Module, ModuleDisplay};
use burn::tensor::Device;
use burn_train::metric::LearningRateMetric;
use burn_train::renderer::{MetricsRenderer, tui::TuiMetricsRendererWrapper};
use burn_train::{Interrupter, Learner, SupervisedTraining, TrainingStrategy};
use burn_zoo_data::batch::{Prefetch, TrainingData};

use crate::{
    checkpoint::{self, CheckpointError, Checkpoints, RunState},
    lines::LineRenderer,
    metrics::{NoLog, Quantity, StepMetric},
    objective::{Objective, StepConfig, Trainee},
    optimizer::OptimizerConfig,
    parameters::NoSuchParameter,
    precision::Unsupported,
    recipe::{LoopConfig, Recipe},
    schedule::ScheduleConfig,
    step_loop::{End, Outcome, Record, Sampler, StepLoop},
    terminal,
};

/// What decides a training, besides model and data.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainerConfig {
    /// Decides the order of the data, and dropout.
    pub seed: u64,
    /// How parameters follow gradients.
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes.
    pub schedule: ScheduleConfig,
    /// How long, and what happens on the way.
    pub training: LoopConfig,
}

impl TrainerConfig {
    /// What a recipe says.
    pub fn new(recipe: &Recipe) -> Self {
        Self {
            seed: recipe.seed,
            optimizer: recipe.optimizer.clone(),
            schedule: recipe.schedule.clone(),
            training: recipe.training.clone(),
        }
    }
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Display {
    /// burn-train's full-screen dashboard, for a terminal.
    Screen,
    /// Plain lines on stderr.
    Lines,
    /// Not at all.
    Silent,
}

/// What is told of each step and evaluation.
pub type OnRecord = Arc<dyn Fn(Record) + Send + Sync>;

/// What surrounds the training of an `M`.
#[derive(Clone)]
pub struct Session<M> {
    /// Where checkpoints go. Without a folder there are none.
    pub folder: Option<PathBuf>,
    /// Continue from the newest checkpoint in the folder.
    pub resume: bool,
    /// How progress is shown.
    pub display: Display,
    /// What is shown of a step beside its loss.
    pub quality: Quantity,
    /// Stops the training after the step, leaving a checkpoint.
    pub interrupter: Interrupter,
    /// Is told of each step and evaluation.
    pub on_record: OnRecord,
    /// Writes something with the model every `sample_interval` steps.
    pub sampler: Option<Sampler<M>>,
}

impl<M> Default for Session<M> {
    fn default() -> Self {
        Self {
            folder: None,
            resume: false,
            display: Display::Silent,
            quality: Quantity::Perplexity,
            interrupter: Interrupter::new(),
            on_record: Arc::new(|_| {}),
            sampler: None,
        }
    }
}

/// What stops a training.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// A checkpoint cannot be opened or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device does not compute in the precision that is asked for.
    #[error(transparent)]
    Precision(#[from] Unsupported),
    /// A pattern of the optimiser means no parameter.
    #[error("recipe key `optimizer`: {0}")]
    Parameters(#[from] NoSuchParameter),
    /// There are checkpoints of another training, which new ones would mix with.
    #[error("{} holds checkpoints already: resume from them, or use another folder", .0.display())]
    Occupied(PathBuf),
    /// There is no checkpoint to continue from.
    #[error("there is no checkpoint to resume from in {}", .0.display())]
    NothingToResume(PathBuf),
    /// The loss became infinite or not a number.
    #[error(
        "the loss became infinite or NaN at step {step}; {}; try a lower learning rate, a longer \
         warm-up, or optimizer.clip_norm",
        match last_good {
            Some(good) => format!("the checkpoint of step {good} is kept"),
            None => "no checkpoint had been saved yet".to_owned(),
        }
    )]
    NonFiniteLoss {
        /// The step, counted from 1.
        step: usize,
        /// The newest checkpoint.
        last_good: Option<usize>,
    },
    /// The device, the data or the disk failed.
    #[error("training failed after step {step}: {problem}")]
    Failed {
        /// Steps done.
        step: usize,
        /// What the learner says.
        problem: String,
    },
}

/// A trained model and where its training got to.
pub struct Fitted<M> {
    /// The model after the last step, or the best one evaluated if training was stopped early and has
    /// a folder of checkpoints.
    pub model: M,
    /// Where the training stands, and why it ended.
    pub outcome: Outcome,
}

/// Trains `model` to an objective through burn-train's learner.
///
/// ```
/// use burn::tensor::Device;
/// use burn_zoo_data::windows::{Prediction, Splits, StepShape, Windows};
/// use burn_zoo_nn::{TransformerConfig, block::BlockConfig, init};
/// use burn_zoo_train::objective::LanguageModeling;
/// use burn_zoo_train::{optimizer::OptimizerConfig, recipe::LoopConfig, schedule::ScheduleConfig};
/// use burn_zoo_train::trainer::{Session, TrainerConfig, fit};
///
/// let device = Device::flex();
/// init::seed(1);
/// let model = TransformerConfig::uniform(4, 8, 1, BlockConfig::gpt2(16, 2)).init(&device);
/// // 0 1 2 3 0 1 2 3 …
/// let tokens: Vec<u32> = (0..400).map(|i| i % 4).collect();
/// let splits = Splits { train: tokens.clone().into(), valid: tokens.into() };
/// let shape = StepShape { batch_size: 8, accumulation: 1, context_length: 8 };
/// let windows = Windows::new(splits, shape, Prediction::Next, 1).unwrap();
/// let config = TrainerConfig {
///     seed: 1,
///     optimizer: OptimizerConfig::new(1e-2),
///     schedule: ScheduleConfig::Constant { warmup_iterations: 0 },
///     training: LoopConfig::new(30, 8),
/// };
/// let session = Session::default();
/// let fitted = fit(model, LanguageModeling, &windows, &config, &device, session).unwrap();
/// let loss = fitted.outcome.state.valid.unwrap().loss;
/// assert!(loss < 4f64.ln() / 2.0, "half of what guessing gives, got {loss}");
/// ```
pub fn fit<M, O>(
    model: M,
    objective: O,
    data: &dyn TrainingData<O::Batch>,
    config: &TrainerConfig,
    device: &Device,
    session: Session<M>,
) -> Result<Fitted<M>, FitError>
where
    M: Module + ModuleDisplay + 'static,
    O: Objective<M>,
{
    let training = &config.training;
    let step = StepConfig {
        clip_norm: config.optimizer.clip_norm,
        label_smoothing: training.label_smoothing,
        precision: training.precision,
        recompute: training.recompute,
        replicas: training.replicas,
    };
    training.precision.check(device)?;
    let checkpoints = match &session.folder {
        Some(folder) => Some(Checkpoints::open(
            &folder.join("checkpoint"),
            training.keep_checkpoints,
        )?),
        None => None,
    };
    let newest = checkpoints.as_ref().and_then(|all| all.steps().pop_last());

    // Where it goes on from.
    let earlier = match (session.resume, &checkpoints, newest) {
        (true, Some(checkpoints), Some(step)) => Some((checkpoints, step)),
        (true, _, _) => {
            let folder = session.folder.unwrap_or_default();
            return Err(FitError::NothingToResume(folder));
        }
        (false, _, Some(_)) => {
            let folder = session.folder.unwrap_or_default();
            return Err(FitError::Occupied(folder));
        }
        (false, _, None) => None,
    };

    let mut trainee = Trainee::new(model, objective, step);
    if let Some((checkpoints, step)) = earlier {
        trainee = trainee.with_loss_scale(checkpoints.state(step)?.loss_scale);
    }
    let optimizer = config.optimizer.init(&trainee)?;
    let schedule = config
        .schedule
        .init(config.optimizer.learning_rate, training.iterations);
    let schedule = config.optimizer.learning_rates(schedule, &trainee)?;
    let mut learner = Learner::new(trainee, optimizer, schedule);
    let start = match earlier {
        Some((checkpoints, step)) => checkpoints.restore(&mut learner, step)?,
        None => RunState::default(),
    };
    let average = match (earlier, training.ema) {
        (Some((checkpoints, step)), Some(_)) => Some(checkpoints.average(step)?),
        _ => None,
    };

    let steps = start.step..training.iterations.max(start.step);
    let train = Prefetch::new(data.train(steps, device));
    let valid = Prefetch::new(data.valid(device));

    let renderer: Box<dyn MetricsRenderer> = match session.display {
        Display::Screen => {
            let interrupter = session.interrupter.clone();
            let screen = TuiMetricsRendererWrapper::new(interrupter, None);
            terminal::keep_ctrl_c();
            Box::new(screen)
        }
        Display::Lines => {
            let lines = LineRenderer::new(training.log_interval, start.step, training.iterations);
            Box::new(lines)
        }
        Display::Silent => Box::new(LineRenderer::silent()),
    };
    let on_record = session.on_record;
    let strategy = StepLoop::new(
        device,
        config.seed,
        training.clone(),
        start,
        checkpoints.clone(),
        move |record| on_record(record),
    )
    .with_average(average)
    .with_sampler(session.sampler.map(|sampler| {
        let sampler: Sampler<Trainee<M, O>> =
            Arc::new(move |trainee: &Trainee<M, O>| sampler(&trainee.model));
        sampler
    }));
    let outcome = strategy.outcome();
    let mut supervised = SupervisedTraining::new(
        session.folder.unwrap_or_default(),
        Arc::new(train),
        Arc::new(valid),
    )
    .metrics((
        StepMetric::new(Quantity::Loss),
        StepMetric::new(session.quality),
        StepMetric::new(Quantity::Speed),
        StepMetric::new(Quantity::Memory),
    ))
    .metric_train_numeric(LearningRateMetric::new())
    .with_metric_logger(NoLog)
    .num_epochs(training.iterations.div_ceil(training.eval_interval))
    .with_interrupter(session.interrupter)
    .with_application_logger(None)
    .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)))
    .renderer(renderer);
    if let Some(checkpoints) = &checkpoints {
        let [model, optimizer, schedule] = checkpoint::writers(checkpoints);
        supervised = supervised
            .with_custom_checkpointers(model, optimizer, schedule)
            .with_checkpointing_strategy(checkpoint::OnRequest);
    }
    let result = supervised.launch(learner);
    // Closes the screen.
    drop(result.renderer);

    let outcome = outcome
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
        .expect("the loop leaves an outcome whenever it returns");
    let saved = |checkpoints: &Arc<Checkpoints>| checkpoints.steps().pop_last();
    match &outcome.end {
        End::NonFiniteLoss { step } => {
            return Err(FitError::NonFiniteLoss {
                step: *step,
                last_good: checkpoints.as_ref().and_then(saved),
            });
        }
        End::Failed(problem) => {
            return Err(FitError::Failed {
                step: outcome.state.step,
                problem: problem.clone(),
            });
        }
        End::Finished | End::EarlyStopped | End::Interrupted => {}
    }
    let mut trainee = result.model;
    if let (End::EarlyStopped, Some(checkpoints), Some(best)) =
        (&outcome.end, &checkpoints, outcome.state.best)
    {
        trainee = trainee.load_record(checkpoints.model(best.step)?);
    }
    Ok(Fitted {
        model: trainee.model,
        outcome,
    })
}
