//! Timing how a decoder reads a prompt and continues it.

use std::time::Instant;

use burn_zoo_infer::{
    generate::{GenerateError, Generator},
    sampling::SamplingConfig,
};
use burn_zoo_nn::{Transformer, TransformerConfig};
use burn_zoo_train::{flops, memory};
use serde::Serialize;

use super::{median_ms, read_bandwidth, tokens};

/// Medians over rounds. Each reads the prompt and continues it greedily.
#[derive(Clone, Debug, Serialize)]
pub struct GenerateTimes {
    /// The prompt read, and the first token written.
    pub prefill_ms: f64,
    /// Prompt and new tokens together.
    pub total_ms: f64,
    /// New tokens per second of `total_ms`.
    pub tokens_per_second: f64,
    /// New tokens per second, the first aside.
    pub decode_tokens_per_second: f64,
    /// New tokens for each pass of the model, more than one where its drafts are right.
    pub tokens_per_pass: f64,
    /// Tokens per second if nothing took time but reading each weight that multiplies a token once, at the
    /// bandwidth that the processor's cores read memory with.
    pub bandwidth_limit: f64,
    /// That bandwidth, in GB/s.
    pub read_gb_per_second: f64,
    /// The most memory that the process had resident.
    pub peak_memory_bytes: Option<u64>,
    /// Rounds measured.
    pub rounds: usize,
}

/// Measures `rounds` rounds, after one that is not counted, and tells `on_token` of each token of all.
///
/// # Errors
///
/// When the model is no decoder, or the prompt does not fit.
pub fn generate(
    model: &Transformer,
    config: &TransformerConfig,
    [prompt_tokens, new_tokens]: [usize; 2],
    rounds: usize,
    on_token: impl Fn(),
) -> Result<GenerateTimes, GenerateError> {
    let prompt = tokens(0..prompt_tokens, config.vocab_size());
    let round = || {
        let clock = Instant::now();
        let mut generator = Generator::new(model, &prompt, SamplingConfig::greedy(), 0)?;
        generator.next_token();
        let prefill = clock.elapsed();
        on_token();
        for _ in 1..new_tokens {
            generator.next_token();
            on_token();
        }
        Ok(([prefill, clock.elapsed()], generator.passes()))
    };
    round()?;
    let times = (0..rounds).map(|_| round());
    let times = times.collect::<Result<Vec<_>, GenerateError>>()?;
    let [prefill_ms, total_ms] = [0, 1].map(|part| {
        let part = times.iter().map(|(times, _)| times[part]);
        median_ms(part.collect())
    });
    let passes: usize = times.iter().map(|(_, passes)| passes).sum();
    let peak_memory_bytes = memory::peak_bytes();
    let bandwidth = read_bandwidth();
    let weight_bytes = flops::n_multiplying(config) * size_of::<f32>();
    Ok(GenerateTimes {
        prefill_ms,
        total_ms,
        tokens_per_second: new_tokens as f64 / total_ms * 1e3,
        decode_tokens_per_second: new_tokens.saturating_sub(1) as f64 / (total_ms - prefill_ms)
            * 1e3,
        tokens_per_pass: (rounds * new_tokens) as f64 / passes as f64,
        bandwidth_limit: bandwidth / weight_bytes as f64,
        read_gb_per_second: bandwidth / 1e9,
        peak_memory_bytes,
        rounds,
    })
}
