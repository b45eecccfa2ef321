//! Burn's dropout module with the zoo's operation.

use burn::nn::Dropout;
use burn::tensor::Tensor;

/// `[..] → [..]`, in training alone: on a device with gradients, unless the module was frozen.
pub(crate) fn apply<const D: usize>(dropout: &Dropout, input: Tensor<D>) -> Tensor<D> {
    let is_training = dropout.training.is_enabled() && input.device().is_autodiff();
    match is_training && dropout.prob > 0.0 {
        true => burn_zoo_ops::dropout(input, dropout.prob),
        false => input,
    }
}
