//! Language modelling as a `TrainStep` of burn's learner: the next token, or masked ones, as the batch
//! asks.

use burn::module::Module;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{DType, ExecutionError, Int, Tensor, TensorReadError, activation};
use burn_train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use burn_zoo_data::windows::TokenBatch;
use burn_zoo_nn::{Inputs, LanguageModel, mixture::Routing};

use crate::optimizer::clip_by_global_norm;

/// A language model that learns to predict what a batch asks: each token from those before it, or
/// masked tokens from all others.
#[derive(Module, Debug)]
pub struct CausalLm<M: Module> {
    /// What is trained.
    pub model: M,
    #[module(skip)]
    clip_norm: Option<f32>,
}

impl<M: LanguageModel> CausalLm<M> {
    /// Trains `model`, with gradients clipped to `clip_norm`. The model may be on a plain device: its
    /// parameters are tracked from here on.
    pub fn new(model: M, clip_norm: Option<f32>) -> Self {
        let model = model.train();
        Self { model, clip_norm }
    }

    /// The mean loss `[1]` of predicting targets from inputs, both `[batch, seq]`.
    pub fn loss(&self, inputs: Tensor<2, Int>, targets: Tensor<2, Int>) -> Tensor<1> {
        cross_entropy(self.model.forward(inputs), targets, None)
    }

    /// The same for a batch, with the auxiliary losses of mixtures of experts, which training minimises too.
    fn losses(&self, batch: &TokenBatch) -> (Tensor<1>, Tensor<1>) {
        let (logits, routing) = self.model.forward_routed(inputs(batch));
        let loss = cross_entropy(logits, batch.targets.clone(), batch.n_asked);
        let auxiliary = routing.iter().map(Routing::auxiliary_loss);
        let total = auxiliary.fold(loss.clone(), |sum, auxiliary| sum + auxiliary);
        (loss, total)
    }
}

/// The mean of `-log p(target)` in nats: logits `[batch, seq, vocab_size]` and targets
/// `[batch, seq]` to `[1]`. With `n_asked`, targets below 0 do not count, and so many do.
pub fn cross_entropy(
    logits: Tensor<3>,
    targets: Tensor<2, Int>,
    n_asked: Option<usize>,
) -> Tensor<1> {
    let [batch, seq, vocab_size] = logits.dims();
    let log_probabilities = activation::log_softmax(logits.reshape([batch * seq, vocab_size]), 1);
    let targets = targets.reshape([batch * seq, 1]);
    match n_asked {
        None => log_probabilities.gather(1, targets).mean().neg(),
        Some(n_asked) => {
            let asked = targets.clone().greater_equal_elem(0).float();
            let chosen = log_probabilities.gather(1, targets.clamp_min(0));
            let asked = asked.cast(chosen.dtype());
            (chosen * asked).sum().neg() / n_asked as f64
        }
    }
}

/// What the model reads of a batch.
fn inputs(batch: &TokenBatch) -> Inputs {
    Inputs {
        prefix_lengths: batch.prefix_lengths.clone(),
        ..batch.inputs.clone().into()
    }
}

/// What a step reports. Never the logits: the learner hands outputs to another thread.
#[derive(Clone, Debug)]
pub struct LossOutput {
    /// The mean loss in nats, `[1]`.
    loss: Tensor<1>,
    /// Its value, once it was read.
    value: Option<f64>,
    /// How many predictions it averages.
    pub n_tokens: usize,
    /// How long they took. Set by the training loop.
    pub seconds: f64,
}

impl LossOutput {
    /// A mean loss `[1]` over `n_tokens` predictions.
    pub fn new(loss: Tensor<1>, n_tokens: usize) -> Self {
        Self {
            loss: loss.detach(),
            value: None,
            n_tokens,
            seconds: 0.0,
        }
    }

    /// The mean loss in nats. Waits for the device.
    pub fn value(&self) -> Result<f64, TensorReadError> {
        match self.value {
            Some(value) => Ok(value),
            None => {
                let data = self.loss.clone().cast(DType::F32);
                data.try_into_scalar::<f32>().map(f64::from)
            }
        }
    }

    /// Two outputs as one of all their predictions.
    pub fn merge(self, other: Self) -> Self {
        let n_tokens = self.n_tokens + other.n_tokens;
        let share = |part: &Self| part.n_tokens as f64 / n_tokens as f64;
        let (first, second) = (share(&self), share(&other));
        Self {
            loss: self.loss * first + other.loss * second,
            value: None,
            n_tokens,
            seconds: self.seconds + other.seconds,
        }
    }
}

impl ItemLazy for LossOutput {
    fn sync(mut self) -> Result<Self, ExecutionError> {
        self.value = Some(
            self.value()
                .map_err(|error| ExecutionError::with_context(error.to_string()))?,
        );
        Ok(self)
    }
}

impl<M: LanguageModel> TrainStep for CausalLm<M> {
    type Input = TokenBatch;
    type Output = LossOutput;

    fn step(&self, batch: TokenBatch) -> TrainOutput<LossOutput> {
        let n_tokens = batch.n_tokens();
        let (loss, total) = self.losses(&batch);
        let output = LossOutput::new(loss, n_tokens);
        // Accumulated gradients are summed, so each batch counts by its share of the step's tokens.
        let total = match batch.share {
            1.0 => total,
            share => total * share,
        };
        TrainOutput::new(self, total.backward(), output)
    }

    fn optimize(
        self,
        optimizer: &mut ModuleOptimizer,
        learning_rate: ModuleLearningRate,
        grads: GradientsParams,
    ) -> Self {
        let grads = match self.clip_norm {
            Some(max_norm) => clip_by_global_norm(&self, grads, max_norm),
            None => grads,
        };
        optimizer.step(learning_rate, self, grads)
    }
}

impl<M: LanguageModel> InferenceStep for CausalLm<M> {
    type Input = TokenBatch;
    type Output = LossOutput;

    fn step(&self, batch: TokenBatch) -> LossOutput {
        let n_tokens = batch.n_tokens();
        let (logits, _) = self.model.forward_routed(inputs(&batch));
        let loss = cross_entropy(logits, batch.targets, batch.n_asked);
        LossOutput::new(loss, n_tokens)
    }
}
