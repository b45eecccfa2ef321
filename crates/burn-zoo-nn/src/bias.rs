//! Positions as something added to attention scores: ALiBi and T5's relative buckets.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::{ConfigError, embedding::lookup, init, require_positive};

/// The slope of each head's penalty for distance (Press et al. 2022, arXiv:2108.12409).
///
/// For a power of two, head `k` of `n` has `2^(−8(k+1)/n)`. Otherwise the heads beyond the largest
/// power of two below take every other slope of the next one, as BLOOM does.
pub fn alibi_slopes(n_heads: usize) -> Vec<f64> {
    let slope = |n: usize, step: usize| 2f64.powf(-8.0 * step as f64 / n as f64);
    let power = 1 << n_heads.max(1).ilog2();
    let first = (1..=power).map(|step| slope(power, step));
    let rest = (0..n_heads - power).map(|index| slope(2 * power, 2 * index + 1));
    first.chain(rest).collect()
}

/// The ALiBi bias `−slope · distance`, `[batch or 1, n_heads, seq_q, seq_k]`, from the positions of
/// queries `[batch or 1, 1, seq_q, 1]` and keys `[batch or 1, 1, 1, seq_k]`.
pub fn alibi(n_heads: usize, queries: Tensor<4>, keys: Tensor<4>) -> Tensor<4> {
    let slopes = alibi_slopes(n_heads).into_iter();
    let slopes: Vec<f32> = slopes.map(|slope| slope as f32).collect();
    let slopes = TensorData::new(slopes, [1, n_heads, 1, 1]);
    let slopes = Tensor::<4>::from_data(slopes, &queries.device());
    -((queries - keys).abs() * slopes)
}

/// Whether keys after the query have buckets of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RelativeDirection {
    /// No: they are hidden anyway (decoders).
    Backward,
    /// Half of the buckets are theirs (encoders).
    Both,
}

/// A learned number for each head and each range of distances, added to the scores of every layer
/// (T5: Raffel et al. 2020, arXiv:1910.10683).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelativeBiasConfig {
    /// How many query heads each layer has.
    pub n_heads: usize,
    /// How many ranges of distances are told apart.
    pub n_buckets: usize,
    /// Larger distances share the last bucket.
    pub max_distance: usize,
    /// Whether keys after the query have buckets of their own.
    pub direction: RelativeDirection,
    /// The standard deviation of the initial values.
    pub init_std: f64,
}

impl RelativeBiasConfig {
    /// T5's 32 buckets up to a distance of 128.
    pub fn t5(n_heads: usize, direction: RelativeDirection) -> Self {
        Self {
            n_heads,
            n_buckets: 32,
            max_distance: 128,
            direction,
            init_std: 0.02,
        }
    }

    /// Refuses what leaves no bucket for near or far keys.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require_positive("n_heads", self.n_heads)?;
        let exact = self.one_way() / 2;
        if exact == 0 {
            let problem = format!(
                "are too few: at least 2, or 4 for both directions, got {}",
                self.n_buckets
            );
            return Err(ConfigError::new("n_buckets", problem));
        }
        if self.max_distance <= exact {
            let problem = format!(
                "must exceed the {exact} distances with buckets of their own, got {}",
                self.max_distance
            );
            return Err(ConfigError::new("max_distance", problem));
        }
        Ok(())
    }

    /// How many parameters the module has.
    pub fn n_parameters(&self) -> usize {
        self.n_buckets * self.n_heads
    }

    /// Buckets for one direction.
    fn one_way(&self) -> usize {
        match self.direction {
            RelativeDirection::Backward => self.n_buckets,
            RelativeDirection::Both => self.n_buckets / 2,
        }
    }

    /// The bucket of a key seen from a query.
    ///
    /// Half of the buckets are one distance each, the rest grow logarithmically to `max_distance`.
    pub fn bucket(&self, query: usize, key: usize) -> usize {
        let n_buckets = self.one_way();
        let (first, distance) = match self.direction {
            RelativeDirection::Backward => (0, query.saturating_sub(key)),
            RelativeDirection::Both if key > query => (n_buckets, key - query),
            RelativeDirection::Both => (0, query - key),
        };
        let exact = n_buckets / 2;
        if distance < exact {
            return first + distance;
        }
        // In 32 bits, as T5's own code: its rounding decides distances on the border of two buckets.
        let octaves = (distance as f32 / exact as f32).ln();
        let all = (self.max_distance as f64 / exact as f64).ln() as f32;
        let further = (octaves / all * (n_buckets - exact) as f32) as usize;
        first + (exact + further).min(n_buckets - 1)
    }

    /// A table with values from N(0, `init_std`²).
    pub fn init(&self, device: &Device) -> RelativeBias {
        RelativeBias {
            table: init::normal([self.n_buckets, self.n_heads], self.init_std, device),
            config: self.clone(),
        }
    }
}

/// A learned bias by distance. Built by [`RelativeBiasConfig::init`].
#[derive(Module, Debug)]
pub struct RelativeBias {
    /// `[n_buckets, n_heads]`.
    pub table: Param<Tensor<2>>,
    #[module(skip)]
    config: RelativeBiasConfig,
}

impl RelativeBias {
    /// The bias `[1, n_heads, seq_q, seq_k]` of queries that are the last `seq_q` of the `seq_k`
    /// positions.
    pub fn forward(&self, seq_q: usize, seq_k: usize) -> Tensor<4> {
        let device = self.table.device();
        let buckets: Vec<i32> = (seq_k - seq_q..seq_k)
            .flat_map(|query| (0..seq_k).map(move |key| (query, key)))
            .map(|(query, key)| self.config.bucket(query, key) as i32)
            .collect();
        let buckets = TensorData::new(buckets, [seq_q, seq_k]);
        let buckets = Tensor::<2, Int>::from_data(buckets, &device);
        let bias: Tensor<3> = lookup(self.table.val(), buckets);
        bias.permute([2, 0, 1]).unsqueeze()
    }
}
