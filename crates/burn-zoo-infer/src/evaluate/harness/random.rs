//! Python's `random.Random`, so that examples are drawn as lm-evaluation-harness draws them.

/// The Mersenne Twister MT19937 (Matsumoto & Nishimura 1998), seeded and used as CPython does.
pub(super) struct PythonRandom {
    state: [u32; Self::N],
    index: usize,
}

impl PythonRandom {
    const N: usize = 624;
    const M: usize = 397;

    /// `random.Random(seed)`.
    pub(super) fn new(seed: u64) -> Self {
        let key = match seed >> 32 {
            0 => vec![seed as u32],
            high => vec![seed as u32, high as u32],
        };
        let mut state = [0u32; Self::N];
        state[0] = 19_650_218;
        for i in 1..Self::N {
            state[i] = Self::mixed(state[i - 1], 1_812_433_253).wrapping_add(i as u32);
        }
        let mut i = 1;
        let next = |i: &mut usize, state: &mut [u32; Self::N]| {
            *i += 1;
            if *i == Self::N {
                state[0] = state[Self::N - 1];
                *i = 1;
            }
        };
        for step in 0..Self::N {
            let j = step % key.len();
            let mixed = state[i] ^ Self::mixed(state[i - 1], 1_664_525);
            state[i] = mixed.wrapping_add(key[j]).wrapping_add(j as u32);
            next(&mut i, &mut state);
        }
        for _ in 1..Self::N {
            let mixed = state[i] ^ Self::mixed(state[i - 1], 1_566_083_941);
            state[i] = mixed.wrapping_sub(i as u32);
            next(&mut i, &mut state);
        }
        state[0] = 1 << 31;
        Self {
            state,
            index: Self::N,
        }
    }

    fn mixed(word: u32, factor: u32) -> u32 {
        (word ^ (word >> 30)).wrapping_mul(factor)
    }

    fn refill(&mut self) {
        for i in 0..Self::N {
            let next = self.state[(i + 1) % Self::N];
            let joined = (self.state[i] & 0x8000_0000) | (next & 0x7fff_ffff);
            let twisted = (joined >> 1) ^ if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + Self::M) % Self::N] ^ twisted;
        }
        self.index = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.index == Self::N {
            self.refill();
        }
        let mut word = self.state[self.index];
        self.index += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// A number below `n`, which is above 0 and below 2³².
    fn below(&mut self, n: usize) -> usize {
        let unused = (n as u32).leading_zeros();
        loop {
            let drawn = (self.next_u32() >> unused) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `sample(range(n), k)`: `k` different numbers below `n`.
    ///
    /// # Panics
    ///
    /// When `k` exceeds `n`.
    pub(super) fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n, "a sample of {k} from {n}");
        let mut table_size = 21;
        if k > 5 {
            table_size += 4usize.pow((3.0 * k as f64).log(4.0).ceil() as u32);
        }
        if n <= table_size {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|taken| {
                    let drawn = self.below(n - taken);
                    let chosen = pool[drawn];
                    pool[drawn] = pool[n - taken - 1];
                    chosen
                })
                .collect();
        }
        let mut chosen = Vec::with_capacity(k);
        while chosen.len() < k {
            let drawn = self.below(n);
            if !chosen.contains(&drawn) {
                chosen.push(drawn);
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPython 3.11: `r = random.Random(seed); r.sample(range(n), k)` one after the other.
    #[test]
    fn samples_are_those_of_python() {
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(10, 4), [7, 1, 0, 9]);
        assert_eq!(random.sample(1000, 5), [932, 965, 961, 826, 596]);
        assert_eq!(random.sample(100, 7), [4, 85, 88, 10, 12, 98, 45]);
        assert_eq!(
            random.sample(100000, 6),
            [31039, 2284, 4038, 2076, 45362, 84976]
        );
        for _ in 0..300 {
            random.sample(50, 3);
        }
        assert_eq!(random.sample(50, 3), [22, 39, 43]);
        assert_eq!(
            PythonRandom::new((1 << 40) + 7).sample(9, 9),
            [7, 4, 8, 1, 6, 3, 2, 5, 0]
        );
    }
}
