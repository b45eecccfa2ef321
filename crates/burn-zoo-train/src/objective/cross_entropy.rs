//! The loss of every choice between classes.

use burn::tensor::{FloatDType, Int, Tensor};
use burn_zoo_ops::negative_log_likelihood;

/// The mean of `-log p(class)` in nats: logits `[rows, n_classes]` and classes `[rows]` to `[1]`. With
/// `n_asked`, classes below 0 do not count, and so many do; 0 when none does.
///
/// `smoothing` of each class's probability is spread over all (Szegedy et al. 2016, arXiv:1512.00567).
pub fn cross_entropy(
    logits: Tensor<2>,
    classes: Tensor<1, Int>,
    n_asked: Option<usize>,
    smoothing: f32,
) -> Tensor<1> {
    // In 16 bits, a sum over a vocabulary keeps hardly a digit.
    let logits = logits.cast(FloatDType::F32);
    match n_asked {
        None => negative_log_likelihood(logits, classes, smoothing.into()).mean(),
        Some(n_asked) => {
            let asked = classes.clone().greater_equal_elem(0).float();
            let asked = asked.cast(FloatDType::F32);
            let classes = classes.clamp_min(0);
            let losses = negative_log_likelihood(logits, classes, smoothing.into());
            (losses * asked).sum() / n_asked.max(1) as f64
        }
    }
}
