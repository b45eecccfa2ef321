//! AdamW with decay on matrices only, and clipping by the global norm.

use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use burn_zoo_models::weights::for_each_parameter;
use burn_zoo_nn::ConfigError;
use serde::{Deserialize, Serialize};

/// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The decay of the mean of gradients.
    #[serde(default = "default_beta1")]
    pub beta1: f32,
    /// The decay of the mean of squared gradients.
    #[serde(default = "default_beta2")]
    pub beta2: f32,
    /// Added to the root of the mean square.
    #[serde(default = "default_epsilon")]
    pub epsilon: f32,
    /// The share of each matrix taken off per step and unit of learning rate. Vectors, which are
    /// biases and norms, do not decay.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f32,
    /// The largest norm of all gradients together. Without one they are not clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f32>,
}

fn default_beta1() -> f32 {
    0.9
}

fn default_beta2() -> f32 {
    0.95
}

fn default_epsilon() -> f32 {
    1e-8
}

fn default_weight_decay() -> f32 {
    0.1
}

impl OptimizerConfig {
    /// AdamW with the usual settings of language models and no clipping.
    pub fn new(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            beta1: default_beta1(),
            beta2: default_beta2(),
            epsilon: default_epsilon(),
            weight_decay: default_weight_decay(),
            clip_norm: None,
        }
    }

    /// Refuses impossible values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let in_unit = |value: f32| (0.0..1.0).contains(&value);
        let checks = [
            (
                "learning_rate",
                self.learning_rate > 0.0 && self.learning_rate <= 1.0,
                "above 0 and at most 1",
                self.learning_rate.to_string(),
            ),
            (
                "beta1",
                in_unit(self.beta1),
                "at least 0 and below 1",
                self.beta1.to_string(),
            ),
            (
                "beta2",
                in_unit(self.beta2),
                "at least 0 and below 1",
                self.beta2.to_string(),
            ),
            (
                "epsilon",
                self.epsilon > 0.0 && self.epsilon.is_finite(),
                "a number above 0",
                self.epsilon.to_string(),
            ),
            (
                "weight_decay",
                self.weight_decay >= 0.0 && self.weight_decay.is_finite(),
                "a number, 0 or more",
                self.weight_decay.to_string(),
            ),
            (
                "clip_norm",
                self.clip_norm.is_none_or(|norm| norm > 0.0),
                "above 0, or left out",
                format!("{:?}", self.clip_norm.unwrap_or(1.0)),
            ),
        ];
        for (field, holds, expected, found) in checks {
            if !holds {
                let problem = format!("must be {expected}, got {found}");
                return Err(ConfigError::new(field, problem));
            }
        }
        Ok(())
    }

    /// An optimiser for `module`.
    pub fn init<M: Module>(&self, module: &M) -> ModuleOptimizer {
        let adamw = |weight_decay: f32| {
            AdamWConfig::new()
                .with_beta_1(self.beta1)
                .with_beta_2(self.beta2)
                .with_epsilon(self.epsilon)
                .with_weight_decay(weight_decay)
        };
        // By path, because ids change when a checkpoint is loaded.
        let mut vectors = Vec::new();
        for_each_parameter(module, |path, shape| {
            if shape.len() < 2 {
                vectors.push(path);
            }
        });
        let optimizer = adamw(self.weight_decay).init();
        match vectors.is_empty() {
            true => optimizer,
            false => {
                optimizer.with_group(ParamGroup::from_paths(vectors), adamw(0.0).build(), None)
            }
        }
    }
}

/// Scales all gradients so that their norm, taken together, is at most `max_norm` (Pascanu et al.
/// 2013, arXiv:1211.5063). Nothing is read back from the device.
pub fn clip_by_global_norm<M: Module>(
    module: &M,
    grads: GradientsParams,
    max_norm: f32,
) -> GradientsParams {
    struct SquaredNorm<'a> {
        grads: &'a GradientsParams,
        sum: Option<Tensor<1>>,
    }
    impl ModuleVisitor for SquaredNorm<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.grads.get::<D>(param.id) {
                let square = grad.square().sum();
                self.sum = Some(match self.sum.take() {
                    Some(sum) => sum + square,
                    None => square,
                });
            }
        }
    }
    struct Scale {
        grads: GradientsParams,
        factor: Tensor<1>,
    }
    impl ModuleVisitor for Scale {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.grads.remove::<D>(param.id) {
                let scaled = grad * self.factor.clone().unsqueeze();
                self.grads.register(param.id, scaled);
            }
        }
    }

    let mut norm = SquaredNorm {
        grads: &grads,
        sum: None,
    };
    module.visit(&mut norm);
    let Some(sum) = norm.sum else { return grads };
    let factor = (sum.sqrt() + 1e-6)
        .recip()
        .mul_scalar(max_norm)
        .clamp_max(1.0);
    let mut scale = Scale { grads, factor };
    module.visit(&mut scale);
    scale.grads
}
