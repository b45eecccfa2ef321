//! How good a model is: likelihoods, perplexity, benchmarks, and the measures of predictions and texts.

pub mod classification;
pub mod generation;
pub mod harness;
pub mod perplexity;
pub mod score;
