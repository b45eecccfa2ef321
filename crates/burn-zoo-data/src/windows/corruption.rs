//! Spans to restore (T5: Raffel et al. 2020, arXiv:1910.10683).

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use burn_zoo_nn::Inputs;
use rand_chacha::ChaCha8Rng;

use super::TokenBatch;
use crate::rows::ids;

/// Spans of a text are replaced by sentinels, a different one each. The encoder reads that, and the decoder
/// writes each sentinel followed by its span. Both texts have an end token.
#[derive(Clone, Debug, PartialEq)]
pub struct Corruption {
    /// How much is taken out.
    pub noise: Noise,
    /// The tokens that stand for spans, in their order: as many as any window has spans.
    pub sentinels: Arc<[u32]>,
    /// The token after each text.
    pub end: u32,
    /// The token that the decoder begins with.
    pub decoder_start: u32,
}

/// How much of a text is taken out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// The share of tokens; T5 has 0.15.
    pub density: f64,
    /// How long spans are; T5 has 3.
    pub mean_span_length: f64,
}

impl Noise {
    /// How many tokens of a text of at least two are taken out, and in how many spans: numbers of the length
    /// alone.
    pub fn counts(self, length: usize) -> (usize, usize) {
        let taken = (length as f64 * self.density).round_ties_even() as usize;
        let taken = taken.clamp(1, length - 1);
        let spans = (taken as f64 / self.mean_span_length).round_ties_even() as usize;
        (taken, spans.clamp(1, taken.min(length - taken)))
    }

    /// How many tokens the encoder reads of a text of this length, and how many the decoder.
    pub fn lengths(self, length: usize) -> (usize, usize) {
        let (taken, spans) = self.counts(length);
        (length - taken + spans + 1, taken + spans + 1)
    }

    /// The longest text of which encoder and decoder read no more than a context.
    pub fn text_length(self, context_length: usize) -> usize {
        let fits = |&length: &usize| {
            let (encoder, decoder) = self.lengths(length);
            encoder.max(decoder) <= context_length
        };
        // What is read of a longer text is never shorter.
        (2..).take_while(fits).last().unwrap_or(2)
    }

    /// The spans of a text, in order. Kept and taken parts alternate, the first is kept, and both are divided
    /// into parts with all divisions as likely.
    fn spans(self, length: usize, generator: &mut ChaCha8Rng) -> Vec<Range<usize>> {
        let (taken, n_spans) = self.counts(length);
        let kept = segments(length - taken, n_spans, generator);
        let taken = segments(taken, n_spans, generator);
        let mut end = 0;
        let spans = kept.into_iter().zip(taken).map(|(kept, taken)| {
            let start = end + kept;
            end = start + taken;
            start..end
        });
        spans.collect()
    }
}

/// The lengths, at least 1, of the parts of `n_items` in a row, cut at random places.
fn segments(n_items: usize, n_parts: usize, generator: &mut ChaCha8Rng) -> Vec<usize> {
    let cuts = rand::seq::index::sample(generator, n_items - 1, n_parts - 1);
    let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut + 1).collect();
    ends.sort_unstable();
    ends.push(n_items);
    let starts = std::iter::once(0).chain(ends.clone());
    starts.zip(ends).map(|(start, end)| end - start).collect()
}

impl Corruption {
    /// The token that stands for a span, from the first on, as T5 names it.
    pub fn sentinel_name(number: usize) -> String {
        format!("<extra_id_{number}>")
    }

    pub(super) fn batch(
        &self,
        windows: &[&[u32]],
        generator: &mut ChaCha8Rng,
        device: &Device,
    ) -> TokenBatch {
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for text in windows {
            let (encoder, target) = self.corrupt(text, generator);
            let shifted = std::iter::once(self.decoder_start as i32).chain(target.iter().copied());
            parts[1].extend(shifted.take(target.len()));
            parts[0].extend(encoder);
            parts[2].extend(target);
        }
        // Lengths follow from the text's, so that nothing is filled up.
        let [tokens, decoder_tokens, targets] = parts.map(|values| {
            let shape = [windows.len(), values.len() / windows.len()];
            Tensor::from_data(TensorData::new(values, shape), device)
        });
        let inputs = Inputs {
            decoder_tokens: Some(decoder_tokens),
            ..tokens.into()
        };
        TokenBatch::new(inputs, targets, None)
    }

    /// What the encoder reads, and what the decoder writes.
    fn corrupt(&self, text: &[u32], generator: &mut ChaCha8Rng) -> (Vec<i32>, Vec<i32>) {
        let spans = self.noise.spans(text.len(), generator);
        assert!(
            spans.len() <= self.sentinels.len(),
            "span corruption: {} sentinels are too few for {} spans",
            self.sentinels.len(),
            spans.len()
        );
        let (mut encoder, mut target, mut kept) = (Vec::new(), Vec::new(), 0);
        for (span, &sentinel) in spans.iter().zip(self.sentinels.iter()) {
            encoder.extend(ids(&text[kept..span.start]));
            encoder.push(sentinel as i32);
            target.push(sentinel as i32);
            target.extend(ids(&text[span.clone()]));
            kept = span.end;
        }
        encoder.extend(ids(&text[kept..]));
        encoder.push(self.end as i32);
        target.push(self.end as i32);
        (encoder, target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;

    fn corruption(noise: Noise, length: usize) -> Corruption {
        let (_, spans) = noise.counts(length);
        Corruption {
            noise,
            sentinels: (0..spans as u32).map(|number| 2000 - number).collect(),
            end: 1001,
            decoder_start: 1000,
        }
    }

    /// Density and mean span length, context, and the lengths of text and target.
    type Case = ((f64, f64), usize, (usize, usize));

    /// From a Python computation of T5's `compute_input_and_target_lengths`.
    const LENGTHS: [Case; 20] = [
        ((0.15, 3.0), 16, (17, 5)),
        ((0.15, 3.0), 64, (70, 14)),
        ((0.15, 3.0), 128, (141, 29)),
        ((0.15, 3.0), 512, (568, 114)),
        ((0.15, 3.0), 2048, (2274, 456)),
        ((0.15, 10.0), 16, (17, 5)),
        ((0.15, 10.0), 64, (73, 13)),
        ((0.15, 10.0), 128, (147, 25)),
        ((0.15, 10.0), 512, (591, 99)),
        ((0.15, 10.0), 2048, (2366, 392)),
        ((0.3, 3.0), 16, (19, 9)),
        ((0.3, 3.0), 64, (79, 33)),
        ((0.3, 3.0), 128, (159, 65)),
        ((0.3, 3.0), 512, (639, 257)),
        ((0.3, 3.0), 2048, (2559, 1025)),
        ((0.5, 3.0), 16, (22, 16)),
        ((0.5, 3.0), 64, (94, 64)),
        ((0.5, 3.0), 128, (190, 128)),
        ((0.5, 3.0), 512, (766, 512)),
        ((0.5, 3.0), 2048, (3070, 2048)),
    ];

    #[test]
    fn lengths_are_those_of_t5() {
        for (noise, context, expected) in LENGTHS {
            let noise = Noise {
                density: noise.0,
                mean_span_length: noise.1,
            };
            let text = noise.text_length(context);
            let (_, decoder) = noise.lengths(text);
            assert_eq!((text, decoder), expected, "{noise:?} {context}");
        }
    }

    #[test]
    fn divisions_are_equally_likely() {
        let mut generator = ChaCha8Rng::seed_from_u64(3);
        let mut counts = std::collections::BTreeMap::new();
        let rounds = 30_000_i32;
        for _ in 0..rounds {
            *counts.entry(segments(6, 3, &mut generator)).or_insert(0) += 1;
        }
        // Two cuts among five places.
        assert_eq!(counts.len(), 10);
        for (division, count) in counts {
            assert_eq!(division.iter().sum::<usize>(), 6);
            assert!((count - rounds / 10).abs() < 300, "{division:?}: {count}");
        }
    }

    proptest! {
        #[test]
        fn the_text_comes_back(
            length in 2usize..120,
            density in 0.01f64..0.9,
            mean in 0.5f64..8.0,
            seed: u64,
        ) {
            let noise = Noise { density, mean_span_length: mean };
            let corruption = corruption(noise, length);
            let text: Vec<u32> = (0..length as u32).collect();
            let (encoder, target) = corruption.corrupt(&text, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert_eq!((encoder.len(), target.len()), noise.lengths(length));
            prop_assert_eq!((encoder.last(), target.last()), (Some(&1001), Some(&1001)));

            let is_sentinel = |token: &i32| *token > 1001;
            let order: Vec<i32> = encoder.iter().copied().filter(is_sentinel).collect();
            let expected: Vec<i32> = (0..order.len() as i32).map(|number| 2000 - number).collect();
            prop_assert_eq!(&order, &expected);
            let written = &target[..target.len() - 1];
            let mut spans = written.split(is_sentinel);
            // Before the first sentinel is nothing.
            prop_assert_eq!(spans.next(), Some(&[][..]));
            let mut restored = Vec::new();
            for &token in &encoder[..encoder.len() - 1] {
                match is_sentinel(&token) {
                    true => restored.extend(spans.next().unwrap()),
                    false => restored.push(token),
                }
            }
            prop_assert_eq!(restored, ids(&text));
        }
    }
}
