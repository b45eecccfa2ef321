//! Burn's dropout module with the zoo's operation.

use burn::nn::Dropout;
use burn::tensor::{Device, Tensor};

/// `[..] → [..]`, in training alone: on a device with gradients, unless the module was frozen.
pub(crate) fn apply<const D: usize>(dropout: &Dropout, input: Tensor<D>) -> Tensor<D> {
    match probability(dropout, &input.device()) {
        0.0 => input,
        probability => burn_zoo_ops::dropout(input, probability),
    }
}

/// The share of values on a device that is dropped now.
pub(crate) fn probability(dropout: &Dropout, device: &Device) -> f64 {
    match dropout.training.is_enabled() && device.is_autodiff() {
        true => dropout.prob,
        false => 0.0,
    }
}
