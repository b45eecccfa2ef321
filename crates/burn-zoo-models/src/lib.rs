//! Transformer models: families, weights, and model directories.
//!
//! A model directory holds `config.json`, `model.safetensors` and `tokenizer.json`. What is saved
//! replaces what was there only once it is complete on disk.

pub mod directory;
pub mod files;
pub mod gpt;
pub mod weights;
