//! From text to batches: corpora, tokenizers, and windows of tokens.
//!
//! Data flows one way: [`Corpus`](corpus::Corpus) → [`Tokenizer`](tokenizer::Tokenizer) →
//! [`Windows`](windows) → batches on a device. A corpus that memory does not hold becomes packed
//! [`shards`] first.

pub mod batch;
pub mod corpus;
pub mod document;
#[cfg(feature = "download")]
pub mod download;
pub mod examples;
mod files;
pub mod labelled;
pub mod marked;
pub mod markup;
pub mod pairs;
mod rows;
pub mod sentences;
pub mod shards;
pub mod sources;
pub mod tokenizer;
pub mod vocabulary;
pub mod windows;
