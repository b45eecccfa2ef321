//! Using a trained model: text generation with a key/value cache, embeddings, classification, prompts
//! with examples, and evaluation.

mod batch;
pub mod classify;
mod draft;
pub mod embed;
pub mod evaluate;
pub mod few_shot;
pub mod generate;
pub mod sampling;
