//! Transformer models: families, weights, and model directories.
//!
//! A model directory holds `config.json`, `model.safetensors` and `tokenizer.json`. What is saved
//! replaces what was there only once it is complete on disk.
//!
//! | file | subject |
//! |---|---|
//! | [`family`] | what a family is, the registry of families, presets |
//! | [`families`] | the families, one file each: configuration, names, published sizes |
//! | [`names`] | how parameters are called and lie in a checkpoint |
//! | [`weights`] | parameters as safetensors files |
//! | [`adapter`] | low-rank adapters, in the layout of `peft` |
//! | [`summary`] | what a model is made of, counted without building it |
//! | [`directory`] | model directories |
//! | [`inputs`] | what a model reads, as JSON |
//! | [`outputs`] | what a model gives, by name |
//! | [`gpt`] | a GPT to be trained by a recipe |
//! | [`files`] | writing files so that nothing is lost |

pub mod adapter;
pub mod directory;
pub mod families;
pub mod family;
pub mod files;
pub mod gpt;
pub mod inputs;
pub mod names;
pub mod outputs;
pub mod summary;
pub mod weights;
