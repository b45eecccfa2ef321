//! Timing how an encoder turns sentences into vectors.

use std::time::{Duration, Instant};

use burn_zoo_infer::embed::{EmbedError, SentenceEncoder};
use burn_zoo_train::memory;
use serde::Serialize;

use super::median_ms;

/// Medians over rounds. Each encodes all sentences, from text to vectors.
#[derive(Clone, Debug, Serialize)]
pub struct EncodeTimes {
    /// All sentences.
    pub total_ms: f64,
    /// Sentences per second.
    pub sentences_per_second: f64,
    /// How many there are.
    pub sentences: usize,
    /// The most memory that the process had resident.
    pub peak_memory_bytes: Option<u64>,
    /// Rounds measured.
    pub rounds: usize,
}

/// Measures `rounds` rounds, after one that is not counted, and tells `on_round` of each.
///
/// # Errors
///
/// When a sentence cannot be encoded.
pub fn encode(
    encoder: &SentenceEncoder,
    sentences: &[String],
    rounds: usize,
    on_round: impl Fn(),
) -> Result<EncodeTimes, EmbedError> {
    let round = |_| {
        let clock = Instant::now();
        encoder.embed(sentences)?;
        let elapsed = clock.elapsed();
        on_round();
        Ok(elapsed)
    };
    round(0)?;
    let times: Result<Vec<Duration>, EmbedError> = (0..rounds).map(round).collect();
    let total_ms = median_ms(times?);
    Ok(EncodeTimes {
        total_ms,
        sentences_per_second: sentences.len() as f64 / total_ms * 1e3,
        sentences: sentences.len(),
        peak_memory_bytes: memory::peak_bytes(),
        rounds,
    })
}
