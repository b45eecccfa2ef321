//! The loss of every choice between classes.

use burn::tensor::{FloatDType, Int, Tensor, activation};

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
    let [rows, _] = logits.dims();
    // In 16 bits, a sum over a vocabulary keeps hardly a digit.
    let log_probabilities = activation::log_softmax(logits.cast(FloatDType::F32), 1);
    let classes = classes.reshape([rows, 1]);
    let index = match n_asked {
        None => classes.clone(),
        Some(_) => classes.clone().clamp_min(0),
    };
    let chosen = log_probabilities.clone().gather(1, index);
    let chosen = match smoothing {
        0.0 => chosen,
        smoothing => chosen * (1.0 - smoothing) + log_probabilities.mean_dim(1) * smoothing,
    };
    match n_asked {
        None => chosen.mean().neg(),
        Some(n_asked) => {
            let asked = classes.greater_equal_elem(0).float().cast(chosen.dtype());
            (chosen * asked).sum().neg() / n_asked.max(1) as f64
        }
    }
}
