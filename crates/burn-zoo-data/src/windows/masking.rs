//! Tokens hidden behind a mask (BERT: Devlin et al. 2019, arXiv:1810.04805).

use std::ops::Range;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::NOT_ASKED;
use crate::vocabulary::{TokenKind, Vocabulary};

/// Which tokens are asked for, and what stands in their places: for 80 % of them the mask, for 10 % another
/// token of text, for 10 % the token itself. Special tokens are never asked for.
#[derive(Clone, Debug)]
pub struct Masking {
    /// How likely a token is to be asked for.
    pub probability: f64,
    /// Whether all tokens of a word are asked for together.
    pub whole_words: bool,
    /// The mask's token.
    pub mask: u32,
    /// What the tokens are.
    pub vocabulary: Vocabulary,
}

impl Masking {
    /// Hides some tokens of a batch, at least one if any is text, and returns for each what was there, or
    /// [`NOT_ASKED`].
    ///
    /// `documents` has the places at which documents begin in each row, where there are several: no word goes on beyond.
    pub fn hide(
        &self,
        rows: &mut [Vec<u32>],
        documents: &[&[usize]],
        generator: &mut ChaCha8Rng,
    ) -> Vec<Vec<i32>> {
        let units: Vec<(usize, Range<usize>)> = rows
            .iter()
            .enumerate()
            .flat_map(|(number, row)| {
                let starts = documents.get(number).copied().unwrap_or_default();
                let units = self.units(row, starts).into_iter();
                units.map(move |unit| (number, unit))
            })
            .collect();
        let draw = |_: &&(usize, Range<usize>)| generator.random_bool(self.probability);
        let mut asked: Vec<&(usize, Range<usize>)> = units.iter().filter(draw).collect();
        if asked.is_empty() && !units.is_empty() {
            // A batch that asks nothing would have no mean loss.
            asked.push(&units[generator.random_range(0..units.len())]);
        }
        let mut targets: Vec<Vec<i32>> =
            rows.iter().map(|row| vec![NOT_ASKED; row.len()]).collect();
        for (number, unit) in asked {
            for place in unit.clone() {
                let token = &mut rows[*number][place];
                targets[*number][place] = *token as i32;
                *token = match generator.random_range(0..10) {
                    0..8 => self.mask,
                    8 => self.vocabulary.draw(generator).unwrap_or(*token),
                    _ => *token,
                };
            }
        }
        targets
    }

    /// The places of a row that are asked for together: those of a word, or single ones.
    fn units(&self, row: &[u32], starts: &[usize]) -> Vec<Range<usize>> {
        let mut units: Vec<Range<usize>> = Vec::new();
        for (place, &token) in row.iter().enumerate() {
            match (self.vocabulary.kind(token), units.last_mut()) {
                (TokenKind::Special, _) => {}
                (TokenKind::WordPart, Some(word))
                    if self.whole_words && word.end == place && !starts.contains(&place) =>
                {
                    word.end += 1;
                }
                _ => units.push(place..place + 1),
            }
        }
        units
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;

    const MASK: u32 = 20;

    /// Tokens below 8 begin words, those below 16 continue them, the rest are special.
    fn masking(probability: f64, whole_words: bool) -> Masking {
        let kinds: Vec<TokenKind> = (0..=MASK)
            .map(|id| match id {
                0..8 => TokenKind::WordStart,
                8..16 => TokenKind::WordPart,
                _ => TokenKind::Special,
            })
            .collect();
        Masking {
            probability,
            whole_words,
            mask: MASK,
            vocabulary: Vocabulary::new(kinds),
        }
    }

    fn generator(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    #[test]
    fn a_word_ends_with_its_document() {
        let row = [0, 8, 9, 8, 1];
        assert_eq!(masking(0.1, true).units(&row, &[]), [0..4, 4..5]);
        assert_eq!(masking(0.1, true).units(&row, &[0, 2]), [0..2, 2..4, 4..5]);
    }

    #[test]
    fn eight_in_ten_are_masked_one_is_another_and_one_stays() {
        let masking = masking(0.15, false);
        let mut generator = generator(5);
        let text: Vec<u32> = (0..200_000).map(|i| i * 7 % 20).collect();
        let mut rows = vec![text.clone()];
        let targets = masking.hide(&mut rows, &[], &mut generator).remove(0);
        let n_text = text.iter().filter(|&&token| token < 16).count() as f64;
        let asked: Vec<usize> = (0..text.len()).filter(|&i| targets[i] >= 0).collect();
        let n_asked = asked.len() as f64;
        let share = |test: &dyn Fn(usize) -> bool| {
            asked.iter().filter(|&&place| test(place)).count() as f64 / n_asked
        };
        // Within five standard deviations of what chance gives.
        let near =
            |found: f64, p: f64, n: f64| (found - p).abs() < 5.0 * (p * (1.0 - p) / n).sqrt();
        assert!(near(n_asked / n_text, 0.15, n_text));
        assert!(near(share(&|i| rows[0][i] == MASK), 0.8, n_asked));
        // One in sixteen other tokens is the token itself.
        let another = 0.1 * 15.0 / 16.0;
        assert!(near(
            share(&|i| rows[0][i] != MASK && rows[0][i] != text[i]),
            another,
            n_asked
        ));
        assert!(near(
            share(&|i| rows[0][i] == text[i]),
            0.2 - another,
            n_asked
        ));
    }

    proptest! {
        #[test]
        fn the_text_comes_back_and_special_tokens_stay(
            text in prop::collection::vec(prop::collection::vec(0u32..20, 1..40), 1..5),
            probability in 0.01f64..0.9,
            whole_words: bool,
            seed: u64,
        ) {
            let masking = masking(probability, whole_words);
            let mut rows = text.clone();
            let targets = masking.hide(&mut rows, &[], &mut generator(seed));
            let mut n_asked = 0;
            for ((row, targets), text) in rows.iter().zip(&targets).zip(&text) {
                let restored: Vec<u32> = row
                    .iter()
                    .zip(targets)
                    .map(|(&token, &target)| u32::try_from(target).unwrap_or(token))
                    .collect();
                prop_assert_eq!(&restored, text);
                for (place, &target) in targets.iter().enumerate() {
                    n_asked += usize::from(target != NOT_ASKED);
                    // Nothing special is asked for, and nothing special but the mask appears.
                    prop_assert!(target < 16);
                    prop_assert!(row[place] == text[place] || row[place] < 16 || row[place] == MASK);
                }
            }
            prop_assert_eq!(n_asked > 0, text.iter().flatten().any(|&token| token < 16));
        }

        #[test]
        fn words_are_asked_for_whole(
            text in prop::collection::vec(0u32..20, 1..60),
            probability in 0.1f64..0.9,
            seed: u64,
        ) {
            let masking = masking(probability, true);
            let targets = masking.hide(&mut [text.clone()], &[], &mut generator(seed)).remove(0);
            for place in 1..text.len() {
                // What continues a word shares the fate of what it continues.
                if (8..16).contains(&text[place]) && text[place - 1] < 16 {
                    prop_assert_eq!(targets[place] >= 0, targets[place - 1] >= 0);
                }
            }
        }
    }
}
