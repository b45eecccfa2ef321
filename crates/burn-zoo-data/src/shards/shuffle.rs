//! An order of windows that needs no memory.

/// A pseudorandom order of `0..len`, where any position is found at once: to resume is to remember a number.
///
/// A Feistel network permutes the next power of four, and what lies beyond `len` is permuted again until it
/// does not (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shuffle {
    len: u64,
    /// Bits in each half of a number.
    half: u32,
    key: u64,
}

impl Shuffle {
    const ROUNDS: u64 = 6;

    /// The order of an epoch.
    ///
    /// # Panics
    ///
    /// When `len` is above 2⁶².
    pub fn new(len: u64, seed: u64, epoch: u64) -> Self {
        assert!(len <= 1 << 62, "{len} numbers are more than any corpus has");
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self {
            len,
            half: bits.div_ceil(2).max(1),
            key: mix(mix(seed) ^ epoch),
        }
    }

    /// What stands at a position of the order of all epochs: each epoch has `len` positions, and its own
    /// order.
    ///
    /// # Panics
    ///
    /// When `len` is 0.
    pub fn endless(len: u64, seed: u64, position: u64) -> u64 {
        Self::new(len, seed, position / len).at(position % len)
    }

    /// What stands at a position below `len`.
    ///
    /// # Panics
    ///
    /// When the position is not below `len`.
    pub fn at(&self, position: u64) -> u64 {
        assert!(position < self.len, "{position} of {}", self.len);
        let mut number = position;
        loop {
            number = self.permute(number);
            if number < self.len {
                return number;
            }
        }
    }

    fn permute(&self, number: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (number >> self.half, number & mask);
        for round in 0..Self::ROUNDS {
            let next = left ^ mix(right ^ mix(self.key ^ round)) & mask;
            (left, right) = (right, next);
        }
        left << self.half | right
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_stands_at_one_position(len in 1u64..600, seed: u64, epoch in 0u64..3) {
            let shuffle = Shuffle::new(len, seed, epoch);
            let mut order: Vec<u64> = (0..len).map(|position| shuffle.at(position)).collect();
            order.sort_unstable();
            prop_assert_eq!(order, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn each_epoch_has_its_own_order() {
        let order = |epoch: u64| -> Vec<u64> {
            let positions = (0..100).map(|position| epoch * 100 + position);
            positions
                .map(|position| Shuffle::endless(100, 7, position))
                .collect()
        };
        assert_ne!(order(0), order(1));
        assert_ne!(order(0), (0..100).collect::<Vec<_>>());
        assert_eq!(order(2)[13], Shuffle::new(100, 7, 2).at(13));
    }

    /// The sum of squared distances from evenly filled cells, over where each of the first positions goes,
    /// is close to what chance gives.
    #[test]
    fn positions_go_anywhere() {
        const CELLS: usize = 16;
        let mut counts = [[0.0; CELLS]; CELLS];
        let rounds = 2000;
        for seed in 0..rounds {
            let shuffle = Shuffle::new(CELLS as u64, seed, 0);
            for (position, row) in counts.iter_mut().enumerate() {
                row[shuffle.at(position as u64) as usize] += 1.0;
            }
        }
        let expected = rounds as f64 / CELLS as f64;
        let distance = |count: &f64| (count - expected).powi(2) / expected;
        let chi_squared: f64 = counts.iter().flatten().map(distance).sum();
        let freedom = ((CELLS - 1) * (CELLS - 1)) as f64;
        assert!(
            chi_squared < freedom + 5.0 * (2.0 * freedom).sqrt(),
            "{chi_squared}"
        );
    }
}
