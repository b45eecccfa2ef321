//! A corpus as data: what it is made of and what becomes of it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clean::Step;
use crate::recipe::{self, RecipeError};
use crate::shards::{DType, Fractions};
use crate::sources::SourceConfig;
use crate::tokenizer::{Tokenizer, TokenizerConfig};

/// Everything that decides which tokens a corpus becomes, and how much memory that may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// Where documents come from, in order.
    pub sources: Vec<SourceConfig>,
    /// The steps of cleaning, in order. Default: none.
    #[serde(default)]
    pub clean: Vec<Step>,
    /// How text becomes tokens.
    pub tokenizer: TokenizerConfig,
    /// How tokens are stored.
    #[serde(default)]
    pub pack: PackConfig,
    /// Bytes of text from which a tokenizer is trained, at most: a sample of the training documents. Default
    /// 256 MB.
    #[serde(default = "sample_bytes")]
    pub sample_bytes: u64,
    /// Bytes of text that are cleaned, and packed, as one unit: what is done again after an interruption, and
    /// the size of shards. Default 16 MB.
    #[serde(default = "chunk_bytes")]
    pub chunk_bytes: u64,
    /// Bytes of memory for documents under way and for the search of duplicates, at least
    /// 16 times `chunk_bytes`. Default 1 GB. It changes no result.
    #[serde(default = "memory_bytes")]
    pub memory_bytes: u64,
}

fn sample_bytes() -> u64 {
    256_000_000
}

fn chunk_bytes() -> u64 {
    16_000_000
}

fn memory_bytes() -> u64 {
    1_000_000_000
}

/// How tokens are stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PackConfig {
    /// How much is held out.
    pub splits: Fractions,
    /// What stands after each document.
    pub end_token: EndToken,
    /// How an id is stored. Default: the smallest that holds the vocabulary.
    pub dtype: Option<DType>,
}

/// The token after each document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EndToken {
    /// The tokenizer's [own](Tokenizer::end_token), if it has one.
    #[default]
    Auto,
    /// None.
    None,
    /// This one.
    Token(String),
}

impl EndToken {
    /// Its id.
    ///
    /// # Errors
    ///
    /// When the vocabulary lacks the token that is named.
    pub(super) fn id(&self, tokenizer: &Tokenizer) -> Result<Option<u32>, RecipeError> {
        match self {
            Self::Auto => Ok(tokenizer.end_token()),
            Self::None => Ok(None),
            Self::Token(token) => match tokenizer.token_id(token) {
                Some(id) => Ok(Some(id)),
                None => {
                    let problem = format!("the tokenizer has no token {token:?}");
                    Err(RecipeError::key("pack.end_token.token", problem))
                }
            },
        }
    }
}

impl DataRecipe {
    /// Chunks that may be in memory: as documents, cleaned, and as they are written or as tokens.
    pub(super) const COPIES: u64 = 4;
    /// Chunks that must be, for reading, cleaning and writing at the same time.
    const LEAST_CHUNKS: u64 = 4;

    /// Reads a recipe and applies overrides such as `("chunk_bytes", "1000000")`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is not TOML, or a key is unknown, missing or has an impossible value.
    pub fn read(path: &Path, overrides: &[(String, String)]) -> Result<Self, RecipeError> {
        Self::parse(&recipe::read(path)?, overrides)
    }

    /// Parses a recipe and applies overrides.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn parse(text: &str, overrides: &[(String, String)]) -> Result<Self, RecipeError> {
        let recipe: Self = recipe::parse(text, overrides, |_| ())?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Refuses impossible values.
    pub fn validate(&self) -> Result<(), RecipeError> {
        if self.sources.is_empty() {
            return Err(RecipeError::key("sources", "there must be at least one"));
        }
        let Fractions { valid, test } = self.pack.splits;
        for (key, share) in [("valid", valid), ("test", test)] {
            if !(0.0..1.0).contains(&share) {
                let problem = format!("must be from 0 to below 1, got {share}");
                return Err(RecipeError::key(format!("pack.splits.{key}"), problem));
            }
        }
        if valid + test >= 1.0 {
            let problem = "validation and test leave nothing to train on";
            return Err(RecipeError::key("pack.splits", problem));
        }
        for (key, bytes) in [
            ("chunk_bytes", self.chunk_bytes),
            ("sample_bytes", self.sample_bytes),
        ] {
            if bytes == 0 {
                return Err(RecipeError::key(key, "must be at least 1"));
            }
        }
        if self.chunks_in_memory() < Self::LEAST_CHUNKS {
            let problem = format!(
                "must be at least {} times chunk_bytes ({}), got {}",
                Self::COPIES * Self::LEAST_CHUNKS,
                self.chunk_bytes,
                self.memory_bytes
            );
            return Err(RecipeError::key("memory_bytes", problem));
        }
        Ok(())
    }

    /// How many chunks may be under way at the same time.
    pub(super) fn chunks_in_memory(&self) -> u64 {
        self.memory_bytes / self.chunk_bytes.saturating_mul(Self::COPIES)
    }

    /// What decides the result, as JSON.
    pub(super) fn identity(&self) -> Value {
        let value = serde_json::to_value(self);
        let mut value = value.expect("paths in recipes are UTF-8, as TOML is");
        if let Some(fields) = value.as_object_mut() {
            fields.remove("memory_bytes");
        }
        value
    }
}
