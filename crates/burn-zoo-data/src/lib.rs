//! From text to batches: corpora, cleaning, tokenizers, and windows of tokens.
//!
//! Data flows one way: [`sources`] → [`clean`] → [`Tokenizer`](tokenizer::Tokenizer) → packed
//! [`shards`] → [`windows`] → batches on a device. The [`pipeline`] goes as far as shards. A text that memory
//! holds needs none: see [`Corpus`](corpus::Corpus).

pub mod batch;
pub mod clean;
pub mod corpus;
pub mod document;
#[cfg(feature = "download")]
pub mod download;
pub mod examples;
pub mod labelled;
pub mod marked;
pub mod markup;
pub mod pairs;
pub mod pipeline;
pub mod recipe;
mod rows;
pub mod sentences;
pub mod shards;
pub mod sources;
pub mod tokenizer;
pub mod vocabulary;
pub mod windows;
