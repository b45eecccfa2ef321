//! A modular transformer zoo on [Burn](https://burn.dev): one set of components, many models, every
//! backend.
//!
//! This crate is the front door. It re-exports the others and adds the choice of a backend.
//!
//! | module | subject |
//! |---|---|
//! | [`ops`] | operations on Burn's `Backend` trait, with a kernel per backend where it pays |
//! | [`nn`] | components: embedding, attention, feed-forward, mixture, norm, block, head, cache |
//! | [`models`] | families of models, their sizes, and model directories |
//! | [`data`] | corpora, tokenizers, windows of tokens |
//! | [`train`] | recipes, the learner, checkpoints, resume |
//! | [`infer`] | sampling and generation |
//! | [`backend`] | which backends are there, and which to use |
//! | [`mod@bench`] | timing real training steps |
//! | [`cli`] | the command, for programs that add families of their own |
//!
//! ```
//! use burn::tensor::{Int, Tensor};
//! use burn_zoo::{backend, models::gpt::GptConfig, nn::LanguageModel};
//!
//! let device = backend::find("flex")?.device;
//! let model = GptConfig::new(2, 4, 32, 16).transformer(100)?.init(&device);
//! let logits = model.forward(Tensor::<2, Int>::zeros([1, 16], &device));
//! assert_eq!(logits.dims(), [1, 16, 100]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use burn_zoo_data as data;
pub use burn_zoo_infer as infer;
pub use burn_zoo_models as models;
pub use burn_zoo_nn as nn;
pub use burn_zoo_ops as ops;
pub use burn_zoo_train as train;

pub mod backend;
pub mod bench;
pub mod cli;

/// The zoo's own source and documentation, a text to learn from that every build has.
pub const OWN_TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/own_text.txt"));

/// The recipe that `burn-zoo train` runs when it is given none.
pub const OWN_RECIPE: &str = include_str!("../../../examples/recipes/zoo.toml");
