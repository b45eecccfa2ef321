//! Which documents are learned from, and which are held out.

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

/// A part of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// What is learned from.
    Train,
    /// What tells during training how well it goes.
    Valid,
    /// What is looked at once, at the end.
    Test,
}

impl Split {
    /// All splits, in the order in which shards have them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Valid, Self::Test];

    /// Its name in messages and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

/// How much is held out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fractions {
    /// The share of documents for validation. Default 0.005.
    pub valid: f64,
    /// The share of documents for the test. Default 0.005.
    pub test: f64,
}

impl Default for Fractions {
    fn default() -> Self {
        Self {
            valid: 0.005,
            test: 0.005,
        }
    }
}

impl Fractions {
    /// The split of a document. It depends on the text alone: no other document, and no order, moves it,
    /// and equal texts are never on two sides.
    pub fn split(&self, text: &str) -> Split {
        let place = uniform(text, 0);
        if place < self.test {
            Split::Test
        } else if place < self.test + self.valid {
            Split::Valid
        } else {
            Split::Train
        }
    }

    /// The share of a split.
    pub fn of(&self, split: Split) -> f64 {
        match split {
            Split::Train => 1.0 - self.valid - self.test,
            Split::Valid => self.valid,
            Split::Test => self.test,
        }
    }
}

/// A number from 0 to below 1 that a text has for itself, one for each seed.
pub(crate) fn uniform(text: &str, seed: u64) -> f64 {
    let hash = XxHash3_64::oneshot_with_seed(seed, text.as_bytes());
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_have_their_shares() {
        let fractions = Fractions {
            valid: 0.2,
            test: 0.1,
        };
        let mut counts = [0.0; 3];
        for number in 0..20_000 {
            counts[fractions.split(&format!("document {number}")) as usize] += 1.0 / 20_000.0;
        }
        for split in Split::ALL {
            let (found, share) = (counts[split as usize], fractions.of(split));
            // Four standard deviations.
            let tolerance = 4.0 * (share * (1.0 - share) / 20_000.0_f64).sqrt();
            assert!((found - share).abs() < tolerance, "{split:?}: {found}");
        }
    }

    #[test]
    fn more_for_validation_leaves_the_test_alone() {
        let few = Fractions {
            valid: 0.1,
            test: 0.1,
        };
        let more = Fractions {
            valid: 0.4,
            test: 0.1,
        };
        for number in 0..500 {
            let text = number.to_string();
            let (before, after) = (few.split(&text), more.split(&text));
            assert_eq!(before == Split::Test, after == Split::Test);
            assert!(before != Split::Valid || after == Split::Valid);
        }
    }
}
