//! Training in half precision: the forward and backward pass in 16 bits, weights and optimiser in 32
//! (Micikevicius et al. 2018, arXiv:1710.03740).

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

/// What a training step computes in. Losses, weights, the optimiser and evaluations are always in 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats with the range of 32-bit ones.
    Bf16,
    /// 16-bit floats with more digits and less range, for which losses are scaled.
    F16,
}

/// A device does not compute in a precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "recipe key `loop.precision`: this backend does not compute in {0:?}; use f32, or another backend"
)]
pub struct Unsupported(pub Precision);

impl Precision {
    fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
            Self::F16 => FloatDType::F16,
        }
    }

    /// Refuses what a device does not compute in.
    pub fn check(self, device: &Device) -> Result<(), Unsupported> {
        match self == Self::F32 || device.supports_dtype(DType::from(self.dtype())) {
            true => Ok(()),
            false => Err(Unsupported(self)),
        }
    }

    /// A copy of `model` in this precision, whose parameters have their own [gradients](Self::gradients).
    pub fn cast<M: Module>(self, model: &M) -> M {
        struct Cast(FloatDType);
        impl ModuleMapper for Cast {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let is_learned = param.is_require_grad();
                let value = param.val().set_require_grad(false).cast(self.0);
                Param::initialized(param.id, value.set_require_grad(is_learned))
            }
        }
        match self {
            Self::F32 => model.clone(),
            Self::Bf16 | Self::F16 => model.clone().map(&mut Cast(self.dtype())),
        }
    }

    /// The gradients of a [copy](Self::cast) as those of the model, in 32 bits.
    pub fn gradients<M: Module>(self, copy: &M, grads: GradientsParams) -> GradientsParams {
        struct Cast(GradientsParams);
        impl ModuleVisitor for Cast {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(grad) = self.0.remove::<D>(param.id) {
                    self.0.register(param.id, grad.cast(FloatDType::F32));
                }
            }
        }
        match self {
            Self::F32 => grads,
            Self::Bf16 | Self::F16 => {
                let mut cast = Cast(grads);
                copy.visit(&mut cast);
                cast.0
            }
        }
    }

    /// What losses start to be scaled by, where they are.
    pub fn loss_scale(self) -> Option<LossScale> {
        match self {
            Self::F32 | Self::Bf16 => None,
            Self::F16 => Some(LossScale::default()),
        }
    }
}

/// What a loss is multiplied by, so that small gradients do not vanish in 16 bits. It halves when gradients
/// overflow, a step that is left out, and doubles after many that do not.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor, a power of two.
    pub factor: f32,
    /// Steps since it changed.
    pub steps: usize,
}

impl Default for LossScale {
    fn default() -> Self {
        Self {
            factor: 65536.0,
            steps: 0,
        }
    }
}

impl LossScale {
    /// Steps without overflow before the factor doubles.
    const GROWTH_INTERVAL: usize = 2000;

    /// The scale after a step whose gradients were finite, or were not.
    #[must_use]
    pub fn after(self, is_finite: bool) -> Self {
        let (factor, steps) = match (is_finite, self.steps + 1) {
            (false, _) => ((self.factor / 2.0).max(1.0), 0),
            (true, Self::GROWTH_INTERVAL) => ((self.factor * 2.0).min(f32::MAX / 2.0), 0),
            (true, steps) => (self.factor, steps),
        };
        Self { factor, steps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_halves_at_an_overflow_and_grows_when_there_is_none() {
        let mut scale = LossScale::default().after(false).after(false);
        assert_eq!((scale.factor, scale.steps), (16384.0, 0));
        for _ in 0..LossScale::GROWTH_INTERVAL {
            assert_eq!(scale.factor, 16384.0);
            scale = scale.after(true);
        }
        assert_eq!((scale.factor, scale.steps), (32768.0, 0));
        for _ in 0..40 {
            scale = scale.after(false);
        }
        assert_eq!(scale.factor, 1.0);
    }
}
