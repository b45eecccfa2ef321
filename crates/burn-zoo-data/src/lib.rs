//! From text to batches: corpora, tokenizers, and windows of tokens.
//!
//! Data flows one way: [`Corpus`](corpus::Corpus) → [`Tokenizer`](tokenizer::Tokenizer) →
//! [`Windows`](windows) → batches on a device.

pub mod batch;
pub mod corpus;
pub mod document;
#[cfg(feature = "download")]
pub mod download;
pub mod examples;
pub mod marked;
pub mod markup;
pub mod sources;
pub mod tokenizer;
pub mod windows;
