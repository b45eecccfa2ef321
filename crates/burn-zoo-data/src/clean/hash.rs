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

/// Mixes a key in words of 64 bits.
#[derive(Default)]
pub(super) struct MixHasher(u64);

impl Hasher for MixHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        last[7] = rest.len() as u8;
        self.write_u64(u64::from_le_bytes(last));
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
