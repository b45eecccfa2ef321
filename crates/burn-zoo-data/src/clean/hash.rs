//! Hashing that is fast on short keys, and the same on every machine.

use std::hash::{BuildHasherDefault, Hasher};

/// A map whose hash is [`MixHasher`].
pub(super) type HashMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<MixHasher>>;
/// A set whose hash is [`MixHasher`].
pub(super) type HashSet<K> = std::collections::HashSet<K, BuildHasherDefault<MixHasher>>;

/// A bijection of 64 bits in which every bit of the input changes every bit of the output with
/// probability one half (the finaliser of MurmurHash3).
#[inline]
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

/// A hash of bytes, each of which is first united with the bits of `or`'s byte.
#[inline]
pub(super) fn hash_bytes(seed: u64, bytes: &[u8], or: u64) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(seed ^ bytes.len() as u64, |hash, word| {
        mix(hash.rotate_left(32) ^ (u64::from_le_bytes(*word) | or))
    });
    // The rest is read without a loop; some of its bytes twice, which its length makes plain.
    let half = |half: &[u8; 4]| u64::from(u32::from_le_bytes(*half));
    let rest = match (rest.first_chunk(), rest.last_chunk(), rest) {
        (Some(first), Some(last), _) => half(first) | half(last) << 32,
        (.., []) => return hash,
        (.., [first, .., last]) => {
            u64::from(*first) | u64::from(rest[rest.len() / 2]) << 8 | u64::from(*last) << 16
        }
        (.., [only]) => u64::from(*only),
    };
    mix(hash.rotate_left(32) ^ (rest | or))
}

/// Mixes a key in words of 64 bits.
#[derive(Default)]
pub(super) struct MixHasher(u64);

impl Hasher for MixHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.0 = hash_bytes(self.0, bytes, 0);
    }

    #[inline]
    fn write_u8(&mut self, _: u8) {
        // The end of a string: `write` has hashed its length.
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.0 = mix(self.0.rotate_left(32) ^ word);
    }

    #[inline]
    fn write_u128(&mut self, word: u128) {
        self.write_u64(word as u64);
        self.write_u64((word >> 64) as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}
