//! Blanks to fill in (GLM: Du et al. 2022, arXiv:2103.10360).

use std::ops::Range;

use burn::tensor::{Device, Tensor};
use burn_zoo_nn::Inputs;
use rand::{RngExt, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{Asked, NOT_ASKED, TokenBatch};
use crate::rows::{ids, padded, visible};

/// Spans of a text are taken out. A mask stands for each, and after the text each is to be written: a start
/// token, the span, and an end token.
///
/// What is written sees the whole text, itself, and what was written before, in an order drawn anew each time.
/// Its first position is that of its mask, the second counts from 1; within the text the second is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Infilling {
    /// The share of tokens that is taken out; GLM has 0.15.
    pub density: f64,
    /// The mean of the Poisson distribution of span lengths; GLM has 3.
    pub mean_span_length: f64,
    /// The share of windows that instead lose one span at the end, of half of the text to all of it.
    pub long_share: f64,
    /// The tokens around what is asked.
    pub marks: InfillingMarks,
}

/// The tokens that infilling needs besides those of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfillingMarks {
    /// Stands for a short span.
    pub mask: u32,
    /// Stands for a long one.
    pub long_mask: u32,
    /// Comes before a span that is written.
    pub start: u32,
    /// Comes after it.
    pub end: u32,
}

impl InfillingMarks {
    /// Their names as GLM has them: the mask, the long mask, start and end.
    pub const NAMES: [&str; 4] = ["[MASK]", "[gMASK]", "<|startofpiece|>", "<|endofpiece|>"];
}

/// A window with blanks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Blanked {
    tokens: Vec<i32>,
    targets: Vec<i32>,
    positions: Vec<i32>,
    block_positions: Vec<i32>,
    /// How many tokens are the text.
    prefix: usize,
}

impl Infilling {
    /// The longest text of which a model of this context reads any blanking: each span, were all as short as
    /// one token, takes two tokens more.
    pub(super) fn text_length(&self, context_length: usize) -> usize {
        let fits = |&length: &usize| length + 2 * self.n_taken(length) <= context_length;
        let longest = (1..=context_length).rev().find(fits);
        longest.unwrap_or(1)
    }

    /// How many tokens of a text short spans take.
    fn n_taken(&self, length: usize) -> usize {
        let share = (self.density * length as f64).round() as usize;
        share.clamp(1, length.div_ceil(2))
    }

    pub(super) fn batch(
        &self,
        windows: &[&[u32]],
        generator: &mut ChaCha8Rng,
        device: &Device,
    ) -> TokenBatch {
        let blank = |text: &&[u32]| self.blank(text, generator);
        let rows: Vec<Blanked> = windows.iter().map(blank).collect();
        let matrix = |part: fn(&Blanked) -> &Vec<i32>, fill: i32| {
            padded(rows.iter().map(|row| part(row).as_slice()), fill, device)
        };
        let prefixes: Vec<i32> = rows.iter().map(|row| row.prefix as i32).collect();
        let asked = Asked::new(rows.iter().map(|row| row.targets.as_slice()), device);
        let inputs = Inputs {
            visible: visible(rows.iter().map(|row| row.tokens.len()), device),
            prefix_lengths: Some(Tensor::from_data(prefixes.as_slice(), device)),
            positions: Some(matrix(|row| &row.positions, 0)),
            block_positions: Some(matrix(|row| &row.block_positions, 0)),
            ..matrix(|row| &row.tokens, self.marks.end as i32).into()
        };
        let targets = matrix(|row| &row.targets, NOT_ASKED);
        TokenBatch {
            n_tokens: rows.iter().map(|row| row.tokens.len()).sum(),
            ..TokenBatch::new(inputs, targets, Some(asked))
        }
    }

    fn blank(&self, text: &[u32], generator: &mut ChaCha8Rng) -> Blanked {
        let is_long = generator.random_bool(self.long_share);
        let (mask, mut spans) = match is_long {
            true => {
                let taken = generator.random_range(text.len().div_ceil(2)..=text.len());
                (
                    self.marks.long_mask,
                    std::iter::once(text.len() - taken..text.len()).collect(),
                )
            }
            false => (self.marks.mask, self.short_spans(text.len(), generator)),
        };
        let mut tokens = Vec::with_capacity(text.len() + 2 * spans.len());
        let (mut kept, mut masks) = (0, Vec::with_capacity(spans.len()));
        for span in &spans {
            tokens.extend(ids(&text[kept..span.start]));
            masks.push(tokens.len() as i32);
            tokens.push(mask as i32);
            kept = span.end;
        }
        tokens.extend(ids(&text[kept..]));
        let prefix = tokens.len();

        let mut positions: Vec<i32> = (0..prefix as i32).collect();
        let mut block_positions = vec![0; prefix];
        let mut targets = vec![NOT_ASKED; prefix];
        let mut order: Vec<(Range<usize>, i32)> = spans.drain(..).zip(masks).collect();
        order.shuffle(generator);
        for (span, position) in order {
            let span = ids(&text[span]);
            let length = span.len() + 1;
            tokens.push(self.marks.start as i32);
            tokens.extend(&span);
            targets.extend(span);
            targets.push(self.marks.end as i32);
            positions.extend(std::iter::repeat_n(position, length));
            block_positions.extend(1..=length as i32);
        }
        Blanked {
            tokens,
            targets,
            positions,
            block_positions,
            prefix,
        }
    }

    /// Spans in order, with kept tokens between them: lengths are drawn until the share is taken, the last one
    /// cut to it, and all places are as likely.
    fn short_spans(&self, length: usize, generator: &mut ChaCha8Rng) -> Vec<Range<usize>> {
        let taken = self.n_taken(length);
        let (mut lengths, mut rest) = (Vec::new(), taken);
        while rest > 0 {
            let drawn = poisson(self.mean_span_length, generator).clamp(1, rest);
            lengths.push(drawn);
            rest -= drawn;
        }
        lengths.shuffle(generator);
        // A span goes before some of the kept tokens, or after the last.
        let gaps = length - taken + 1;
        let mut places = rand::seq::index::sample(generator, gaps, lengths.len()).into_vec();
        places.sort_unstable();
        let mut earlier = 0;
        let spans = places.into_iter().zip(lengths).map(|(place, length)| {
            let start = place + earlier;
            earlier += length;
            start..start + length
        });
        spans.collect()
    }
}

/// A number from the Poisson distribution above 0 (Knuth 1969, "The Art of Computer Programming", 3.4.1, drawn
/// again at 0).
fn poisson(mean: f64, generator: &mut ChaCha8Rng) -> usize {
    let limit = (-mean).exp();
    loop {
        let (mut count, mut product) = (0, generator.random::<f64>());
        while product > limit {
            count += 1;
            product *= generator.random::<f64>();
        }
        if count > 0 {
            return count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;

    const MARKS: InfillingMarks = InfillingMarks {
        mask: 1000,
        long_mask: 1001,
        start: 1002,
        end: 1003,
    };

    fn infilling(density: f64, mean_span_length: f64, long_share: f64) -> Infilling {
        Infilling {
            density,
            mean_span_length,
            long_share,
            marks: MARKS,
        }
    }

    /// Writes what was asked into the blanks.
    fn fill(row: &Blanked) -> Vec<i32> {
        let mut text: Vec<Vec<i32>> = row.tokens[..row.prefix].iter().map(|&t| vec![t]).collect();
        let mut written = Vec::new();
        for place in row.prefix..row.tokens.len() {
            match row.targets[place] {
                1003 => text[row.positions[place] as usize] = std::mem::take(&mut written),
                token => written.push(token),
            }
        }
        text.concat()
    }

    #[test]
    fn lengths_follow_the_poisson_distribution_above_0() {
        let mut generator = ChaCha8Rng::seed_from_u64(1);
        let draws = 100_000;
        let mut counts = [0.0; 12];
        for _ in 0..draws {
            counts[poisson(3.0, &mut generator).min(11)] += 1.0;
        }
        let mut probability = (-3f64).exp();
        for (length, count) in counts.iter().enumerate().take(11).skip(1) {
            probability *= 3.0 / length as f64;
            let p = probability / (1.0 - (-3f64).exp());
            let deviation = (p * (1.0 - p) / f64::from(draws)).sqrt();
            let found: f64 = count / f64::from(draws);
            assert!(
                (found - p).abs() < 5.0 * deviation,
                "{length}: {found}, {p}"
            );
        }
    }

    #[test]
    fn spans_take_the_share_anywhere() {
        let infilling = infilling(0.15, 3.0, 0.0);
        let mut generator = ChaCha8Rng::seed_from_u64(2);
        let (mut n_spans, mut taken) = (0.0, vec![0.0; 400]);
        let rounds = 2000;
        for _ in 0..rounds {
            for span in infilling.short_spans(400, &mut generator) {
                n_spans += 1.0;
                for place in span {
                    taken[place] += 1.0 / f64::from(rounds);
                }
            }
        }
        let total: f64 = taken.iter().sum();
        assert!((total - 60.0).abs() < 1e-6);
        // Of the Poisson distribution above 0: 3 / (1 - e⁻³) = 3.157, less what is cut off the last span.
        let mean = 60.0 * f64::from(rounds) / n_spans;
        assert!((2.9..3.2).contains(&mean), "{mean}");
        // A token at an end is in no span that begins or ends beyond it.
        for (place, share) in taken.iter().enumerate().take(380).skip(20) {
            assert!((share - 0.15).abs() < 0.05, "{place}: {share}");
        }
    }

    #[test]
    fn the_example_of_the_paper() {
        // x1 … x6 with x3 and x5 x6 taken out, the second span written first (figure 2).
        let row = Blanked {
            tokens: vec![1, 2, 1000, 4, 1000, 1002, 5, 6, 1002, 3],
            targets: vec![-1, -1, -1, -1, -1, 5, 6, 1003, 3, 1003],
            positions: vec![0, 1, 2, 3, 4, 4, 4, 4, 2, 2],
            block_positions: vec![0, 0, 0, 0, 0, 1, 2, 3, 1, 2],
            prefix: 5,
        };
        let infilling = infilling(0.5, 1.6, 0.0);
        let mut generator = ChaCha8Rng::seed_from_u64(0);
        let drawn = (0..10_000).map(|_| infilling.blank(&[1, 2, 3, 4, 5, 6], &mut generator));
        assert!(drawn.into_iter().any(|drawn| drawn == row));
    }

    proptest! {
        #[test]
        fn the_text_comes_back(
            length in 1usize..80,
            density in 0.01f64..0.5,
            mean in 0.2f64..8.0,
            long_share in prop_oneof![Just(0.0), Just(0.5), Just(1.0)],
            seed: u64,
        ) {
            let infilling = infilling(density, mean, long_share);
            let text: Vec<u32> = (0..length as u32).collect();
            let row = infilling.blank(&text, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert_eq!(fill(&row), ids(&text));
            let n = row.tokens.len();
            for part in [&row.targets, &row.positions, &row.block_positions] {
                prop_assert_eq!(part.len(), n);
            }
            let written = &row.tokens[row.prefix..];
            let n_spans = written.iter().filter(|&&token| token == 1002).count();
            prop_assert_eq!(n, length + 2 * n_spans);
            for place in row.prefix..n {
                let is_mask = [1000, 1001].contains(&row.tokens[row.positions[place] as usize]);
                prop_assert!(is_mask);
                // Each token is asked for from the one before it.
                if row.tokens[place] != 1002 {
                    prop_assert_eq!(row.targets[place - 1], row.tokens[place]);
                    prop_assert_eq!(row.block_positions[place - 1] + 1, row.block_positions[place]);
                }
            }
        }

        #[test]
        fn a_window_fits_the_context(
            context in 3usize..200,
            density in 0.01f64..0.5,
            mean in 0.2f64..8.0,
            seed: u64,
        ) {
            let infilling = infilling(density, mean, 0.3);
            let length = infilling.text_length(context);
            let text = vec![7; length];
            let row = infilling.blank(&text, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert!(row.tokens.len() <= context);
            // And no longer text is sure to.
            prop_assert!(length + 1 + 2 * infilling.n_taken(length + 1) > context);
        }
    }
}
