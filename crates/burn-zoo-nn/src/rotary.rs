//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864).
//!
//! Each pair of channels of a query or key is turned by an angle proportional to its position, so
//! that their product depends on the distance alone.

use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_zoo_ops::{Pairing, rotate};
use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// Which channels form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RotaryPairing {
    /// Channel `i` and `i + dims / 2` (GPT-NeoX, Llama, ESM-2).
    Half,
    /// Channel `2i` and `2i + 1` (GPT-J, the paper).
    Interleaved,
}

/// How angles are changed so that a model reads more than it was trained with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RotaryScaling {
    /// They are not.
    None,
    /// They are given, one per pair: checkpoints that stored them in 16 bits mean those.
    Given {
        /// The angle per position of each pair.
        frequencies: Vec<f64>,
    },
    /// Positions are divided by `factor` (Chen et al. 2023, arXiv:2306.15595).
    Linear {
        /// How much longer the context becomes.
        factor: f64,
    },
    /// The base grows so that the slowest pair turns `factor` times slower ("NTK-aware").
    Ntk {
        /// How much longer the context becomes.
        factor: f64,
    },
    /// NTK scaling that sets in beyond `original_context` and follows the sequence's length. A cache
    /// keeps keys as they were turned, at the length that was read by then.
    DynamicNtk {
        /// How much longer the context may become.
        factor: f64,
        /// The context that the model was trained with.
        original_context: usize,
    },
    /// Slow pairs are slowed by `factor`, fast ones are not (Llama 3.1, arXiv:2407.21783).
    Llama3 {
        /// How much slow pairs are slowed.
        factor: f64,
        /// Pairs that turn less often than this within the original context are slowed.
        low_frequency_factor: f64,
        /// Pairs that turn more often than this are left alone.
        high_frequency_factor: f64,
        /// The context that the model was trained with.
        original_context: usize,
    },
    /// Interpolation between slowed and unchanged pairs, with a temperature (Peng et al. 2023,
    /// arXiv:2309.00071).
    Yarn {
        /// How much slow pairs are slowed.
        factor: f64,
        /// Pairs that turn more often than this within the original context are left alone.
        beta_fast: f64,
        /// Pairs that turn less often than this are slowed.
        beta_slow: f64,
        /// The context that the model was trained with.
        original_context: usize,
        /// What queries and keys are multiplied by.
        attention_factor: f64,
        /// Whether the bounds between the two kinds are rounded to whole pairs.
        truncate: bool,
    },
}

/// Configuration of rotary positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotaryConfig {
    /// How many channels of a head are turned, an even number. The rest stay as they are.
    pub dims: usize,
    /// The slowest pair turns once in about `2π · base` positions.
    pub base: f64,
    /// Which channels form a pair.
    pub pairing: RotaryPairing,
    /// How angles are changed for longer contexts.
    pub scaling: RotaryScaling,
}

impl RotaryConfig {
    /// The pairs of GPT-NeoX over `dims` channels with base 10,000.
    pub fn half(dims: usize) -> Self {
        Self {
            dims,
            base: 1e4,
            pairing: RotaryPairing::Half,
            scaling: RotaryScaling::None,
        }
    }

    /// The pairs of GPT-J over `dims` channels with base 10,000.
    pub fn interleaved(dims: usize) -> Self {
        Self {
            pairing: RotaryPairing::Interleaved,
            ..Self::half(dims)
        }
    }

    /// Refuses what cannot be turned.
    pub fn validate(&self, head_dim: usize) -> Result<(), ConfigError> {
        if self.dims == 0 || !self.dims.is_multiple_of(2) || self.dims > head_dim {
            let problem = format!(
                "must be even, at least 2 and at most head_dim ({head_dim}), got {}",
                self.dims
            );
            return Err(ConfigError::new("dims", problem));
        }
        if !(self.base.is_finite() && self.base > 0.0) {
            let problem = format!("must be above 0, got {}", self.base);
            return Err(ConfigError::new("base", problem));
        }
        let factor = match &self.scaling {
            RotaryScaling::None => 1.0,
            RotaryScaling::Given { frequencies } if frequencies.len() == self.dims / 2 => 1.0,
            RotaryScaling::Given { frequencies } => {
                let problem = format!(
                    "must be one for each of the {} pairs, got {}",
                    self.dims / 2,
                    frequencies.len()
                );
                return Err(ConfigError::new("scaling.given.frequencies", problem));
            }
            RotaryScaling::Linear { factor }
            | RotaryScaling::Ntk { factor }
            | RotaryScaling::DynamicNtk { factor, .. }
            | RotaryScaling::Llama3 { factor, .. }
            | RotaryScaling::Yarn { factor, .. } => *factor,
        };
        let has_range = match self.scaling {
            RotaryScaling::DynamicNtk {
                original_context, ..
            } => original_context > 0,
            RotaryScaling::Llama3 {
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context,
                ..
            } => original_context > 0 && low > 0.0 && low < high,
            RotaryScaling::Yarn {
                beta_fast,
                beta_slow,
                original_context,
                ..
            } => original_context > 0 && beta_slow > 0.0 && beta_fast > 0.0,
            _ => true,
        };
        if !has_range {
            let problem =
                "needs an original context and factors above 0, the low one below the high";
            return Err(ConfigError::new("scaling", problem));
        }
        if !(factor.is_finite() && factor > 0.0) {
            let problem = format!("must be above 0, got {factor}");
            return Err(ConfigError::new("scaling.factor", problem));
        }
        Ok(())
    }

    /// The angle per position of each pair, for a sequence that ends before position `end`.
    pub fn frequencies(&self, end: usize) -> Vec<f64> {
        let dims = self.dims as f64;
        let n_pairs = self.dims / 2;
        let with_base = |base: f64| -> Vec<f64> {
            let pairs = (0..n_pairs).map(|pair| pair as f64);
            pairs.map(|pair| base.powf(-2.0 * pair / dims)).collect()
        };
        // At two channels the exponent has no meaning, and there is no slower pair to protect.
        let stretched =
            |factor: f64| self.base * factor.powf(dims / (dims - 2.0).max(f64::MIN_POSITIVE));
        let plain = with_base(self.base);
        match self.scaling {
            RotaryScaling::None => plain,
            RotaryScaling::Given { ref frequencies } => frequencies.clone(),
            RotaryScaling::Linear { factor } => plain.iter().map(|f| f / factor).collect(),
            RotaryScaling::Ntk { factor } => match n_pairs {
                1 => plain,
                _ => with_base(stretched(factor)),
            },
            RotaryScaling::DynamicNtk {
                factor,
                original_context,
            } => {
                let length = end.max(original_context) as f64 / original_context as f64;
                match n_pairs {
                    1 => plain,
                    _ => with_base(stretched(factor * length - (factor - 1.0))),
                }
            }
            RotaryScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context,
            } => {
                let scaled = |&frequency: &f64| {
                    let turns = original_context as f64 * frequency / std::f64::consts::TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    frequency * kept + frequency / factor * (1.0 - kept)
                };
                plain.iter().map(scaled).collect()
            }
            RotaryScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_context,
                truncate,
                ..
            } => {
                // The pair that turns `turns` times within the original context.
                let pair_of = |turns: f64| {
                    let angle = original_context as f64 / (turns * std::f64::consts::TAU);
                    dims * angle.ln() / (2.0 * self.base.ln())
                };
                let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dims - 1.0));
                if low == high {
                    high += 0.001;
                }
                let scaled = |(pair, &frequency): (usize, &f64)| {
                    let slowed = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * slowed + frequency * (1.0 - slowed)
                };
                plain.iter().enumerate().map(scaled).collect()
            }
        }
    }

    /// The cosines and sines of positions `start..end`.
    pub fn table(&self, start: usize, end: usize, device: &Device) -> RotaryTable {
        let frequencies = self.frequencies(end);
        let amplitude = match self.scaling {
            RotaryScaling::Yarn {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        };
        let shape = [1, 1, end - start, frequencies.len()];
        let tensor = |function: fn(f64) -> f64| {
            let values: Vec<f32> = (start..end)
                .flat_map(|position| frequencies.iter().map(move |f| position as f64 * f))
                .map(|angle| (function(angle) * amplitude) as f32)
                .collect();
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        RotaryTable {
            cos: tensor(f64::cos),
            sin: tensor(f64::sin),
            pairing: self.pairing,
        }
    }
}

/// What queries and keys of some positions are turned by.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    /// `[batch or 1, 1, seq, dims / 2]`.
    cos: Tensor<4>,
    /// `[batch or 1, 1, seq, dims / 2]`.
    sin: Tensor<4>,
    pairing: RotaryPairing,
}

impl RotaryTable {
    /// From the rotations of positions from 0 on those of other positions, `[batch, seq]`.
    pub(crate) fn at(self, positions: Tensor<2, Int>) -> Self {
        let [batch, seq] = positions.dims();
        let places = positions.reshape([batch * seq]);
        let rows = |table: Tensor<4>| {
            let [.., n_pairs] = table.dims();
            let rows = table.select(2, places.clone());
            rows.reshape([batch, 1, seq, n_pairs])
        };
        Self {
            cos: rows(self.cos),
            sin: rows(self.sin),
            ..self
        }
    }

    /// Turns queries or keys, `[batch, n_heads, seq, head_dim] → [batch, n_heads, seq, head_dim]`.
    pub fn apply(&self, input: Tensor<4>) -> Tensor<4> {
        let [cos, sin] = [&self.cos, &self.sin].map(|table| table.clone().cast(input.dtype()));
        let pairing = match self.pairing {
            RotaryPairing::Half => Pairing::Half,
            RotaryPairing::Interleaved => Pairing::Interleaved,
        };
        rotate(input, cos, sin, pairing)
    }
}
