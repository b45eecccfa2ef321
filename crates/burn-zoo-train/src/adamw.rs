//! AdamW by the zoo's operation, which is one pass over memory where the backend has a kernel.

use burn::optim::{AdamWState, AdaptiveMomentumState, LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};
use burn_zoo_ops::{AdamWStep, adamw};

use crate::optimizer::AdamW;

/// AdamW for parameters of one weight decay. Its state is that of Burn's own.
#[derive(Clone)]
pub(crate) struct AdamWUpdate {
    pub(crate) settings: AdamW,
    pub(crate) weight_decay: f32,
}

impl Optimizer for AdamWUpdate {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        learning_rate: LearningRate,
        parameter: Tensor<D>,
        grad: Tensor<D>,
        state: Option<AdamWState<D>>,
    ) -> (Tensor<D>, Option<AdamWState<D>>) {
        let (time, moments) = match state {
            Some(AdamWState { momentum }) => {
                (momentum.time, [momentum.moment_1, momentum.moment_2])
            }
            None => (0, [grad.zeros_like(), grad.zeros_like()]),
        };
        let step = AdamWStep {
            number: time + 1,
            learning_rate,
            beta1: self.settings.beta1.into(),
            beta2: self.settings.beta2.into(),
            epsilon: self.settings.epsilon.into(),
            weight_decay: self.weight_decay.into(),
        };
        let (parameter, [moment_1, moment_2]) = adamw(parameter, grad, moments, step);
        let momentum = AdaptiveMomentumState::new(step.number, moment_1, moment_2);
        (parameter, Some(AdamWState { momentum }))
    }

    fn to_device<const D: usize>(state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        <burn::optim::AdamW as Optimizer>::to_device(state, device)
    }
}
