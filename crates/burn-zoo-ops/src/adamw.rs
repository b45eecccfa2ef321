//! A step of AdamW composed from `Backend` operations.

use burn::backend::{Backend, tensor::FloatTensor};

/// A step of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Which step it is, counted from 1.
    pub number: usize,
    /// How far a parameter goes.
    pub learning_rate: f64,
    /// How much of the mean gradient stays.
    pub beta1: f64,
    /// How much of the mean squared gradient stays.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// The share of a parameter that is taken off, per unit of learning rate.
    pub weight_decay: f64,
}

impl AdamWStep {
    /// What means are divided by, as they began at 0.
    pub(crate) fn corrections(&self) -> [f64; 2] {
        let number = i32::try_from(self.number).unwrap_or(i32::MAX);
        [self.beta1, self.beta2].map(|beta| 1.0 - beta.powi(number))
    }

    /// What a parameter is multiplied by.
    pub(crate) fn decay(&self) -> f64 {
        1.0 - self.learning_rate * self.weight_decay
    }
}

/// The parameter and its moments after the step.
pub(crate) fn composed<B: Backend>(
    parameter: FloatTensor<B>,
    grad: FloatTensor<B>,
    moment_1: FloatTensor<B>,
    moment_2: FloatTensor<B>,
    step: AdamWStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let blend = |mean, value, beta: f64| {
        let value = B::float_mul_scalar(value, (1.0 - beta).into());
        B::float_add(B::float_mul_scalar(mean, beta.into()), value)
    };
    let square = B::float_mul(grad.clone(), grad.clone());
    let moment_1 = blend(moment_1, grad, step.beta1);
    let moment_2 = blend(moment_2, square, step.beta2);
    let [of_mean, of_square] = step.corrections();
    let root = B::float_sqrt(B::float_div_scalar(moment_2.clone(), of_square.into()));
    let root = B::float_add_scalar(root, step.epsilon.into());
    let update = B::float_div(B::float_div_scalar(moment_1.clone(), of_mean.into()), root);
    let update = B::float_mul_scalar(update, step.learning_rate.into());
    let parameter = B::float_mul_scalar(parameter, step.decay().into());
    (B::float_sub(parameter, update), moment_1, moment_2)
}
