//! From text to batches: corpora, tokenizers, and windows of tokens.
//!
//! Data flows one way: [`Corpus`](corpus::Corpus) → [`Tokenizer`](tokenizer::Tokenizer) →
//! [`Windows`](windows) → batches on a device. A corpus that memory does not hold becomes packed
//! [`shards`] first.

pub mod corpus;
pub mod document;
mod files;
pub mod shards;
pub mod tokenizer;
pub mod windows;
