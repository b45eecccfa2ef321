//! Sketches of texts that are equal in as many places as the texts have words in common.
//!
//! MinHash (Broder 1997) estimates the Jaccard similarity of two sets, here of word n-grams, from
//! the smallest hash of each under many hash functions. Hashing every n-gram with every function
//! is slow, so this is the fast similarity sketching of Dahlgaard, Knudsen and Thorup (2017,
//! arXiv:1704.04370): every n-gram falls into one place of the sketch, and only while places are
//! empty it falls once more. A long text costs one hash for each n-gram. Every place is still
//! equal with a probability of exactly the similarity, and the estimate is as concentrated as that
//! of independent functions, which one-permutation hashing with densification is not for short
//! texts.

use serde::{Deserialize, Serialize};

use super::Problem;
use super::hash::mix;
use super::words::NGrams;

/// Near-duplicates by MinHash with banding (locality-sensitive hashing): two documents are a
/// candidate pair, and taken as near-duplicates, when all rows of any band of their sketches are
/// equal. The defaults are FineWeb's (Penedo et al. 2024, arXiv:2406.17557).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MinHashConfig {
    /// Words in an n-gram, in lower case and without punctuation: 5. A document of fewer words is
    /// one n-gram.
    pub n_gram: usize,
    /// Bands: 14.
    pub bands: usize,
    /// Rows of a band: 8.
    pub rows: usize,
}

impl Default for MinHashConfig {
    fn default() -> Self {
        Self {
            n_gram: 5,
            bands: 14,
            rows: 8,
        }
    }
}

impl MinHashConfig {
    /// The probability that two documents whose sets of n-grams have a Jaccard similarity `s` are
    /// taken as near-duplicates: `1 - (1 - s^rows)^bands`. With the defaults, 0.0009 at 0.3, 0.05
    /// at 0.5, 0.56 at 0.7, 0.77 at 0.75, 0.92 at 0.8 and 0.9999 at 0.95.
    pub fn probability(&self, similarity: f64) -> f64 {
        1.0 - (1.0 - similarity.powf(self.rows as f64)).powf(self.bands as f64)
    }

    /// The key of a number that is zero or more than 100.
    pub(super) fn check(&self) -> Result<(), (&'static str, Problem)> {
        let sizes = [
            ("n_gram", self.n_gram),
            ("bands", self.bands),
            ("rows", self.rows),
        ];
        sizes
            .into_iter()
            .try_for_each(|(key, size)| Problem::unless_within(size, 100).map_err(|bad| (key, bad)))
    }

    /// One hash for each band of the text's sketch.
    pub(super) fn bands(&self, text: &str) -> Vec<u64> {
        sketch(&shingles(text, self.n_gram), self.bands * self.rows)
            .chunks(self.rows)
            .zip(1..)
            .map(|(rows, band)| rows.iter().fold(mix(band), |hash, row| mix(hash ^ row)))
            .collect()
    }
}

/// The hashes of the n-grams of a text: one of all words where there are fewer than `n`, and one of
/// the text where there are none, so that only equal texts are then taken as duplicates.
fn shingles(text: &str, n: usize) -> Vec<u64> {
    let hashes: Vec<u64> = NGrams::new(text, n).map(|found| found.hash).collect();
    if !hashes.is_empty() {
        return hashes;
    }
    let words = super::words::Words::new(text).map(|word| word.hash);
    let all = words.fold(0, |hash, word| mix(hash ^ word).rotate_left(1));
    match all {
        0 => vec![twox_hash::XxHash3_64::oneshot(text.as_bytes())],
        _ => vec![all],
    }
}

/// The sketch of a set that is not empty, in so many places. Whether two sketches are equal in a
/// place has the probability of the sets' Jaccard similarity.
fn sketch(set: &[u64], places: usize) -> Vec<u64> {
    let mut sketch = vec![u64::MAX; places];
    let mut empty = places;
    // A value starts with the round, so that later rounds only fill empty places: stopping when
    // there are none leaves what all rounds would. In the second half every round fills one place.
    for round in 0..2 * places {
        let seed = mix(round as u64 + 1);
        for &element in set {
            // The upper half of the product is the place, the lower half a value that does not
            // depend on it.
            let spread = u128::from(mix(element ^ seed)) * places as u128;
            let place = match round.checked_sub(places) {
                None => (spread >> 64) as usize,
                Some(place) => place,
            };
            let value = (round as u64) << 48 | (spread as u64) >> 16;
            empty -= usize::from(sketch[place] == u64::MAX);
            sketch[place] = sketch[place].min(value);
        }
        if empty == 0 {
            break;
        }
    }
    sketch
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sets of distinct elements that share some; a different pair for every seed.
    fn sets(seed: u64, shared: u64, own: u64) -> (Vec<u64>, Vec<u64>) {
        let element = |index: u64| mix(mix(seed + 1) ^ index);
        let a = (0..shared + own).map(element).collect();
        let b = (0..shared)
            .chain(shared + own..shared + 2 * own)
            .map(element)
            .collect();
        (a, b)
    }

    /// The estimates of many pairs have the mean of the exact similarity and the variance of at
    /// most that of independent hash functions, for sets smaller and larger than the sketch.
    #[test]
    fn the_estimate_is_unbiased_and_concentrated() {
        const PLACES: usize = 112;
        const PAIRS: usize = 600;
        for (shared, own) in [(1, 1), (3, 1), (20, 10), (60, 10), (150, 200), (900, 60)] {
            let exact = shared as f64 / (shared + 2 * own) as f64;
            let estimates: Vec<f64> = (0..PAIRS as u64)
                .map(|seed| {
                    let (a, b) = sets(seed, shared, own);
                    let (a, b) = (sketch(&a, PLACES), sketch(&b, PLACES));
                    let equal = a.iter().zip(&b).filter(|(a, b)| a == b).count();
                    equal as f64 / PLACES as f64
                })
                .collect();
            let mean = estimates.iter().sum::<f64>() / PAIRS as f64;
            let squares = estimates.iter().map(|estimate| (estimate - exact).powi(2));
            let variance = squares.sum::<f64>() / PAIRS as f64;
            let independent = exact * (1.0 - exact) / PLACES as f64;
            // Five standard deviations of the mean, and of the variance, under independence.
            let bound = 5.0 * (independent / PAIRS as f64).sqrt();
            assert!(
                (mean - exact).abs() < bound,
                "{shared} {own}: {mean} of {exact}"
            );
            let bound = independent * (1.0 + 5.0 * (2.0 / PAIRS as f64).sqrt());
            assert!(
                variance < bound,
                "{shared} {own}: {variance} of {independent}"
            );
        }
    }

    /// The share of candidate pairs is the probability that the configuration names.
    #[test]
    fn pairs_are_found_as_often_as_the_curve_says() {
        const PAIRS: u64 = 800;
        let config = MinHashConfig::default();
        for (shared, own) in [(100, 50), (140, 30), (160, 20), (190, 5)] {
            let found = (0..PAIRS).filter(|&seed| {
                let (a, b) = sets(seed, shared, own);
                let bands = |set: &[u64]| {
                    sketch(set, 112)
                        .chunks(8)
                        .map(<[u64]>::to_vec)
                        .collect::<Vec<_>>()
                };
                bands(&a).iter().zip(bands(&b)).any(|(a, b)| *a == b)
            });
            let found = found.count() as f64 / PAIRS as f64;
            let expected = config.probability(shared as f64 / (shared + 2 * own) as f64);
            let deviation = (expected * (1.0 - expected) / PAIRS as f64).sqrt();
            assert!(
                (found - expected).abs() < 5.0 * deviation + 0.01,
                "{found} of {expected}"
            );
        }
    }

    #[test]
    fn the_curve_has_the_values_that_its_documentation_states() {
        let config = MinHashConfig::default();
        let stated = [
            (0.3, 0.0009),
            (0.5, 0.05),
            (0.7, 0.56),
            (0.75, 0.77),
            (0.8, 0.92),
            (0.95, 0.9999),
        ];
        for (similarity, probability) in stated {
            let tolerance = if !(0.01..=0.99).contains(&probability) {
                1e-4
            } else {
                6e-3
            };
            assert!((config.probability(similarity) - probability).abs() < tolerance);
        }
    }

    #[test]
    fn a_sketch_is_that_of_the_set_and_unions_take_the_smaller() {
        let (a, b) = sets(7, 30, 80);
        let union: Vec<u64> = a.iter().chain(&b).rev().copied().collect();
        let smaller = sketch(&a, 112).into_iter().zip(sketch(&b, 112));
        let smaller: Vec<u64> = smaller.map(|(a, b)| a.min(b)).collect();
        assert_eq!(sketch(&union, 112), smaller);
    }

    #[test]
    fn short_texts_are_compared_too() {
        let config = MinHashConfig::default();
        let bands = |text: &str| config.bands(text);
        assert_eq!(bands("Good morning!"), bands("good morning"));
        assert_ne!(bands("good morning"), bands("morning good"));
        assert_ne!(bands("!!!"), bands("???"));
        assert_eq!(bands("").len(), 14);
    }
}
