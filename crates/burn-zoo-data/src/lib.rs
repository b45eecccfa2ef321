//! From text to batches: corpora, tokenizers, and windows of tokens.
