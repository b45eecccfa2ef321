//! The mean of a model's weights over its training.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn_zoo_nn::ConfigError;
use serde::{Deserialize, Serialize};

/// An exponential moving average of weights (Polyak & Juditsky 1992), which is what is evaluated and saved.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AverageConfig {
    /// How much of the mean a step keeps. The first steps keep less, at most `(1 + step) / (10 + step)`, so
    /// that the random start is soon forgotten.
    pub decay: f64,
}

impl AverageConfig {
    /// Refuses impossible values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match (0.0..1.0).contains(&self.decay) {
            true => Ok(()),
            false => {
                let problem = format!("must be at least 0 and below 1, got {}", self.decay);
                Err(ConfigError::new("decay", problem))
            }
        }
    }

    /// How much of the mean is kept at a step, counted from 1.
    fn decay_at(&self, step: usize) -> f64 {
        let step = step as f64;
        self.decay.min((1.0 + step) / (10.0 + step))
    }
}

/// A model that holds the mean of another's weights.
#[derive(Clone, Debug)]
pub struct Average<M> {
    config: AverageConfig,
    /// The mean, on a device without gradients.
    pub model: M,
}

impl<M: Module> Average<M> {
    /// The mean of `model` alone, which is on a device without gradients.
    pub fn new(config: AverageConfig, model: M) -> Self {
        Self { config, model }
    }

    /// The mean after a step, counted from 1, that led to `latest`.
    pub fn update(self, latest: &M, step: usize) -> Self {
        /// Tensors of any rank by parameter, which is what gradients are kept in.
        struct Collect(GradientsParams);
        impl ModuleVisitor for Collect {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.register(param.id, param.val().inner());
            }
        }
        struct Blend {
            latest: GradientsParams,
            decay: f64,
        }
        impl ModuleMapper for Blend {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                match self.latest.remove::<D>(param.id) {
                    Some(latest) => param.map(|mean| {
                        mean.mul_scalar(self.decay) + latest.mul_scalar(1.0 - self.decay)
                    }),
                    None => param,
                }
            }
        }
        let mut latest_values = Collect(GradientsParams::new());
        latest.visit(&mut latest_values);
        let mut blend = Blend {
            latest: latest_values.0,
            decay: self.config.decay_at(step),
        };
        Self {
            config: self.config,
            model: self.model.map(&mut blend),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[derive(Module, Debug)]
    struct One {
        weight: Param<Tensor<1>>,
    }

    #[test]
    fn the_mean_is_the_closed_form() {
        let device = Device::flex().autodiff();
        let weight = Param::from_data([1.0, -2.0], &device);
        let mut model = One { weight };
        let config = AverageConfig { decay: 0.5 };
        let mut average = Average::new(config, model.clone().valid());
        // Half of the mean each time, but for the first steps: 2/11, 3/12, 4/13, …
        let (mut expected, mut value) = ([1.0, -2.0], [1.0, -2.0]);
        for step in 1..=12 {
            model.weight = model.weight.map(|weight| weight * 0.9 + 0.1);
            value = value.map(|value: f64| value * 0.9 + 0.1);
            average = average.update(&model, step);
            let decay = f64::min(0.5, (1.0 + step as f64) / (10.0 + step as f64));
            for (mean, value) in expected.iter_mut().zip(value) {
                *mean = decay * *mean + (1.0 - decay) * value;
            }
        }
        let found = average.model.weight.val().into_data();
        for (found, expected) in found.iter::<f64>().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}
