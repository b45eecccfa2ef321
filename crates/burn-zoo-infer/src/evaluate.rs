//! How good a model is: likelihoods, perplexity, benchmarks, and the measures of predictions and texts.

pub mod classification;
pub mod generation;
pub mod harness;
pub mod perplexity;
pub mod score;

/// The standard deviation of a sample; none of fewer than two values.
pub fn deviation(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())
}

/// Probabilities in proportion to `exp` of the values.
pub(crate) fn softmax(values: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let highest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = values.map(|value| (value - highest).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}
