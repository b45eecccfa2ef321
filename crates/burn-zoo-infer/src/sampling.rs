//! Choosing the next token from its logits.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How to choose. The settings apply in the order of the fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// Divides the positive and multiplies the negative logits of tokens that are already in the
    /// text (Keskar et al. 2019, arXiv:1909.05858). 1 changes nothing.
    pub repetition_penalty: f32,
    /// Divides the logits. 0 always takes the most likely token.
    pub temperature: f32,
    /// Keeps this many of the most likely tokens.
    pub top_k: Option<usize>,
    /// Keeps the fewest most likely tokens whose probabilities reach this sum (Holtzman et al.
    /// 2020, arXiv:1904.09751).
    pub top_p: Option<f32>,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            temperature: 1.0,
            top_k: None,
            top_p: None,
        }
    }
}

/// A sampling setting out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} must be {expected}, got {found}")]
pub struct SamplingError {
    /// The setting.
    pub field: &'static str,
    /// What would be right.
    pub expected: &'static str,
    /// What was given.
    pub found: String,
}

impl SamplingConfig {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Refuses settings out of their range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let refuse = |field, expected, found: String| {
            Err(SamplingError {
                field,
                expected,
                found,
            })
        };
        let is_positive = |value: f32| value.is_finite() && value > 0.0;
        if !is_positive(self.repetition_penalty) {
            let found = self.repetition_penalty.to_string();
            return refuse("repetition_penalty", "a number above 0", found);
        }
        if !is_positive(self.temperature) && self.temperature != 0.0 {
            return refuse("temperature", "0 or more", self.temperature.to_string());
        }
        if self.top_k == Some(0) {
            return refuse("top_k", "at least 1", "0".to_owned());
        }
        match self.top_p {
            Some(top_p) if !(top_p > 0.0 && top_p <= 1.0) => {
                refuse("top_p", "above 0 and at most 1", top_p.to_string())
            }
            _ => Ok(()),
        }
    }
}

/// Draws tokens. The same seed and logits give the same tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplingConfig,
    generator: ChaCha8Rng,
}

impl Sampler {
    /// A sampler whose draws follow from `seed`.
    pub fn new(config: SamplingConfig, seed: u64) -> Result<Self, SamplingError> {
        config.validate()?;
        Ok(Self {
            config,
            generator: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    /// Whether the next token is always the one with the highest logit.
    pub fn takes_highest(&self) -> bool {
        self.config.temperature == 0.0 && self.config.repetition_penalty == 1.0
    }

    /// The next token, given its logits and the text so far.
    ///
    /// # Panics
    ///
    /// When there are no logits.
    pub fn sample(&mut self, logits: &mut [f32], seen: &[u32]) -> u32 {
        penalise(logits, seen, self.config.repetition_penalty);
        if self.config.temperature == 0.0 {
            return argmax(logits);
        }
        let candidates = self.candidates(logits);
        let total: f32 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut rest = self.generator.random::<f32>() * total;
        for &(token, weight) in &candidates {
            rest -= weight;
            if rest < 0.0 {
                return token;
            }
        }
        // Rounding can leave a little.
        candidates.last().map_or(0, |&(token, _)| token)
    }

    /// The tokens that remain, the most likely first, with weights proportional to probability.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f32)> {
        let mut candidates: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        let descending = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1);
        if let Some(top_k) = self.config.top_k
            && top_k < candidates.len()
        {
            candidates.select_nth_unstable_by(top_k - 1, descending);
            candidates.truncate(top_k);
        }
        candidates.sort_unstable_by(|a, b| descending(a, b).then(a.0.cmp(&b.0)));
        let highest = candidates[0].1;
        for (_, value) in &mut candidates {
            *value = ((*value - highest) / self.config.temperature).exp();
        }
        if let Some(top_p) = self.config.top_p {
            let total: f32 = candidates.iter().map(|(_, weight)| weight).sum();
            let mut sum = 0.0;
            let reached = candidates.iter().position(|(_, weight)| {
                sum += weight;
                sum >= top_p * total
            });
            candidates.truncate(reached.map_or(candidates.len(), |last| last + 1));
        }
        candidates
    }
}

fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = seen.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = if *logit > 0.0 {
                *logit / penalty
            } else {
                *logit * penalty
            };
        }
    }
}

/// The first of the highest.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, -1.0, 2.0];

    fn frequencies(config: SamplingConfig) -> [f64; 4] {
        let mut sampler = Sampler::new(config, 7).unwrap();
        let mut counts = [0.0; 4];
        for _ in 0..20_000 {
            counts[sampler.sample(&mut LOGITS.clone(), &[]) as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn softmax(logits: [f64; 4]) -> [f64; 4] {
        let total: f64 = logits.iter().map(|x| x.exp()).sum();
        logits.map(|x| x.exp() / total)
    }

    fn assert_close(found: [f64; 4], expected: [f64; 4]) {
        for (found, expected) in found.into_iter().zip(expected) {
            // Four standard deviations of a share over 20,000 draws are at most 0.0142.
            assert!(
                (found - expected).abs() < 0.0142,
                "{found} instead of {expected}"
            );
        }
    }

    #[test]
    fn draws_follow_the_softmax() {
        assert_close(
            frequencies(SamplingConfig::default()),
            softmax([1.0, 3.0, -1.0, 2.0]),
        );
        let config = SamplingConfig {
            temperature: 2.0,
            ..SamplingConfig::default()
        };
        assert_close(frequencies(config), softmax([0.5, 1.5, -0.5, 1.0]));
    }

    #[test]
    fn top_k_and_top_p_keep_the_most_likely() {
        let none = f64::NEG_INFINITY;
        let config = SamplingConfig {
            top_k: Some(2),
            ..SamplingConfig::default()
        };
        assert_close(frequencies(config), softmax([none, 3.0, none, 2.0]));
        // The probabilities are 0.657, 0.242, 0.089, 0.012: 0.7 needs two, 0.6 one.
        let config = SamplingConfig {
            top_p: Some(0.7),
            ..SamplingConfig::default()
        };
        assert_close(frequencies(config), softmax([none, 3.0, none, 2.0]));
        let config = SamplingConfig {
            top_p: Some(0.6),
            ..SamplingConfig::default()
        };
        assert_close(frequencies(config), [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn greedy_takes_the_highest_after_the_penalty() {
        let config = SamplingConfig {
            repetition_penalty: 2.0,
            ..SamplingConfig::greedy()
        };
        let mut sampler = Sampler::new(config, 0).unwrap();
        assert_eq!(sampler.sample(&mut LOGITS.clone(), &[]), 1);
        // 3 / 2 is less than 2; a token seen twice is penalised once.
        assert_eq!(sampler.sample(&mut LOGITS.clone(), &[1, 1]), 3);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for (field, config) in [
            (
                "temperature",
                SamplingConfig {
                    temperature: -1.0,
                    ..Default::default()
                },
            ),
            (
                "top_k",
                SamplingConfig {
                    top_k: Some(0),
                    ..Default::default()
                },
            ),
            (
                "top_p",
                SamplingConfig {
                    top_p: Some(1.5),
                    ..Default::default()
                },
            ),
            (
                "repetition_penalty",
                SamplingConfig {
                    repetition_penalty: 0.0,
                    ..Default::default()
                },
            ),
        ] {
            assert_eq!(Sampler::new(config, 0).unwrap_err().field, field);
        }
    }
}
