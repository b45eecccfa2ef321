//! Pairs of texts of which one may follow the other, for BERT's pre-training (Devlin et al. 2019,
//! arXiv:1810.04805).

use std::ops::Range;
use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::tensor::{Device, Int, Tensor};
use burn_zoo_nn::Inputs;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    batch::{Batch, Numbered, TrainingData},
    rows::{ids, padded, visible},
    sentences::Sentences,
    windows::{Asked, Masking, NOT_ASKED, StepShape},
};

/// What makes sentences useless for pairs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {split} split has no document of two sentences; separate documents by blank lines and give each \
     sentence a line of its own, or give more text"
)]
pub struct NoPairs {
    /// `training` or `validation`.
    pub split: &'static str,
}

/// The tokens of `[CLS] A [SEP] B [SEP]` besides the texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairMarks {
    /// Before the first text.
    pub begin: u32,
    /// After each text.
    pub separator: u32,
    /// Fills up short pairs.
    pub padding: u32,
}

/// The label of a second text that follows the first, as the `transformers` library has it.
pub const FOLLOWS: i32 = 0;
/// The label of one that does not.
pub const IS_RANDOM: i32 = 1;

/// Pairs with hidden tokens, on a device.
#[derive(Clone, Debug)]
pub struct PairBatch {
    /// `[batch, seq]`, padded to the longest.
    pub inputs: Inputs,
    /// `[batch, seq]`: the token that was there, or [`NOT_ASKED`].
    pub targets: Tensor<2, Int>,
    /// `[batch]`: [`FOLLOWS`] or [`IS_RANDOM`].
    pub relations: Tensor<1, Int>,
    /// Where a token is asked.
    pub asked: Asked,
    /// How many tokens are not padding.
    pub n_tokens: usize,
    /// The batch's share of the predictions of its optimiser step.
    pub share: f32,
}

impl Batch for PairBatch {
    fn n_predictions(&self) -> usize {
        self.asked.n
    }

    fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    fn share(&self) -> f32 {
        self.share
    }

    fn set_share(&mut self, share: f32) {
        self.share = share;
    }

    fn n_sequences(&self) -> usize {
        self.inputs.tokens.dims()[0]
    }

    fn sequences(&self, range: Range<usize>) -> Self {
        let targets = self.targets.clone().narrow(0, range.start, range.len());
        Self {
            asked: Asked::of(&targets),
            targets,
            relations: self.relations.clone().narrow(0, range.start, range.len()),
            n_tokens: self.n_tokens * range.len() / self.n_sequences(),
            inputs: self.inputs.sequences(range),
            share: self.share,
        }
    }
}

/// A pair of runs of sentences.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair<'a> {
    first: &'a [u32],
    second: &'a [u32],
    relation: i32,
}

/// The sentences of a split, and those that another one of their document follows.
#[derive(Clone, Debug)]
struct Split {
    sentences: Sentences,
    followed: Arc<[usize]>,
}

impl Split {
    fn new(split: &'static str, sentences: Sentences) -> Result<Self, NoPairs> {
        let is_followed = |&sentence: &usize| sentence + 1 < sentences.document(sentence).end;
        let followed: Arc<[usize]> = (0..sentences.len()).filter(is_followed).collect();
        match followed.is_empty() {
            true => Err(NoPairs { split }),
            false => Ok(Self {
                sentences,
                followed,
            }),
        }
    }

    /// The sentences of the document from `first` on until they have `n_tokens`, at least two.
    fn run(&self, first: usize, n_tokens: usize) -> Range<usize> {
        let last = self.sentences.document(first).end;
        let is_full = |&end: &usize| self.sentences.read(first..end).len() >= n_tokens;
        let end = (first + 2..last).find(is_full);
        first..end.unwrap_or(last)
    }

    /// A pair that begins with a followed sentence, of at most `n_tokens` in all. The first text loses its
    /// beginning and the second its end, the longer more.
    fn pair(&self, first: usize, n_tokens: usize, generator: &mut ChaCha8Rng) -> Pair<'_> {
        let run = self.run(first, n_tokens);
        let middle = generator.random_range(run.start + 1..run.end);
        let (second, relation) = match generator.random_bool(0.5) {
            true => (middle..run.end, FOLLOWS),
            false => {
                let start = self.elsewhere(first, middle, generator);
                let length = self.sentences.read(run.start..middle).len();
                let rest = n_tokens.saturating_sub(length).max(1);
                let last = self.sentences.document(start).end;
                let is_full = |&end: &usize| self.sentences.read(start..end).len() >= rest;
                let end = (start + 1..last).find(is_full);
                (start..end.unwrap_or(last), IS_RANDOM)
            }
        };
        let (first, second) = (
            self.sentences.read(run.start..middle),
            self.sentences.read(second),
        );
        let half = n_tokens / 2;
        let first_length = first.len().min(n_tokens - second.len().min(half));
        let second_length = second.len().min(n_tokens - first_length);
        Pair {
            first: &first[first.len() - first_length..],
            second: &second[..second_length],
            relation,
        }
    }

    /// A sentence of another document than that of `first`, or where there is none, any but the one that
    /// follows.
    fn elsewhere(&self, first: usize, follower: usize, generator: &mut ChaCha8Rng) -> usize {
        let avoided = match self.sentences.n_documents() {
            1 => follower..follower + 1,
            _ => self.sentences.document(first),
        };
        let others = self.sentences.len() - avoided.len();
        match generator.random_range(0..others) {
            before if before < avoided.start => before,
            after => after + avoided.len(),
        }
    }
}

/// Pairs of runs of sentences with hidden tokens: half of the second texts follow the first, the others are
/// from another document, or where there is none, another place. Random pairs to learn from; of what is held
/// out, one run after the other.
#[derive(Clone, Debug)]
pub struct SentencePairs {
    train: Split,
    valid: Split,
    /// Where the pairs of what is held out begin.
    valid_starts: Arc<[usize]>,
    shape: StepShape,
    marks: PairMarks,
    masking: Masking,
    seed: u64,
}

/// Tokens that a pair has besides those of its texts.
const N_MARKS: usize = 3;

impl SentencePairs {
    /// Pairs of this shape; the order follows from `seed`.
    ///
    /// # Errors
    ///
    /// When a split has no document of two sentences.
    ///
    /// # Panics
    ///
    /// When the context is shorter than five tokens.
    pub fn new(
        [train, valid]: [Sentences; 2],
        shape: StepShape,
        marks: PairMarks,
        masking: Masking,
        seed: u64,
    ) -> Result<Self, NoPairs> {
        assert!(
            shape.context_length >= N_MARKS + 2,
            "sentence pairs: a context of {} holds no pair",
            shape.context_length
        );
        let valid = Split::new("validation", valid)?;
        let (mut valid_starts, mut end) = (Vec::new(), 0);
        for &sentence in valid.followed.iter() {
            if sentence >= end {
                valid_starts.push(sentence);
                end = valid.run(sentence, shape.context_length - N_MARKS).end;
            }
        }
        Ok(Self {
            train: Split::new("training", train)?,
            valid,
            valid_starts: valid_starts.into(),
            shape,
            marks,
            masking,
            seed,
        })
    }

    fn batch(
        &self,
        split: &Split,
        starts: &[usize],
        generator: &mut ChaCha8Rng,
        device: &Device,
    ) -> PairBatch {
        let n_tokens = self.shape.context_length - N_MARKS;
        let pairs = starts.iter();
        let pairs: Vec<Pair<'_>> = pairs
            .map(|&start| split.pair(start, n_tokens, generator))
            .collect();
        let PairMarks {
            begin,
            separator,
            padding,
        } = self.marks;
        let mark = |pair: &Pair<'_>| {
            [
                &[begin],
                pair.first,
                &[separator],
                pair.second,
                &[separator],
            ]
            .concat()
        };
        let mut rows: Vec<Vec<u32>> = pairs.iter().map(mark).collect();
        let segments = pairs.iter().map(|pair| {
            let mut segments = vec![0; pair.first.len() + 2];
            segments.resize(segments.len() + pair.second.len() + 1, 1);
            segments
        });
        let segments: Vec<Vec<i32>> = segments.collect();
        let targets = self.masking.hide(&mut rows, &[], generator);
        let matrix = |rows: &[Vec<i32>], fill| padded(rows.iter().map(Vec::as_slice), fill, device);
        let asked = Asked::new(targets.iter().map(Vec::as_slice), device);
        let relations: Vec<i32> = pairs.iter().map(|pair| pair.relation).collect();
        let tokens: Vec<Vec<i32>> = rows.iter().map(|row| ids(row)).collect();
        PairBatch {
            inputs: Inputs {
                visible: visible(rows.iter().map(Vec::len), device),
                segments: Some(matrix(&segments, 0)),
                ..matrix(&tokens, padding as i32).into()
            },
            targets: matrix(&targets, NOT_ASKED),
            relations: Tensor::from_data(relations.as_slice(), device),
            asked,
            n_tokens: rows.iter().map(Vec::len).sum(),
            share: 1.0,
        }
    }

    fn train_batch(&self, index: usize, device: &Device) -> PairBatch {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(index as u64);
        let followed = &self.train.followed;
        let starts: Vec<usize> = (0..self.shape.batch_size)
            .map(|_| followed[generator.random_range(0..followed.len())])
            .collect();
        self.batch(&self.train, &starts, &mut generator, device)
    }

    /// What is asked of a batch is the same every time.
    fn valid_batch(&self, index: usize, device: &Device) -> PairBatch {
        let first = index * self.shape.batch_size;
        let last = self.valid_starts.len().min(first + self.shape.batch_size);
        let mut generator = ChaCha8Rng::seed_from_u64(index as u64);
        let starts = &self.valid_starts[first..last];
        self.batch(&self.valid, starts, &mut generator, device)
    }
}

impl TrainingData<PairBatch> for SentencePairs {
    fn train(&self, steps: Range<usize>, device: &Device) -> Arc<dyn DataLoader<PairBatch>> {
        let accumulation = self.shape.accumulation;
        let batches = steps.start * accumulation..steps.end * accumulation;
        let pairs = self.clone();
        Arc::new(Numbered::new(batches, device, move |index, device| {
            Ok(pairs.train_batch(index, device))
        }))
    }

    fn valid(&self, device: &Device) -> Arc<dyn DataLoader<PairBatch>> {
        let n_batches = self.valid_starts.len().div_ceil(self.shape.batch_size);
        let pairs = self.clone();
        Arc::new(Numbered::new(0..n_batches, device, move |index, device| {
            Ok(pairs.valid_batch(index, device))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Documents whose tokens count up: each token is its place in the text, with a gap between documents.
    fn counting(lengths: &[Vec<usize>]) -> Sentences {
        let mut next = 0;
        let mut documents = Vec::new();
        for sentences in lengths {
            let mut document = Vec::new();
            for &length in sentences {
                document.push((next..next + length as u32).collect());
                next += length as u32;
            }
            next += 1;
            documents.push(document);
        }
        Sentences::new(&documents)
    }

    fn corpus() -> impl Strategy<Value = Vec<Vec<usize>>> {
        let document = prop::collection::vec(1usize..12, 1..8);
        let corpus = prop::collection::vec(document, 1..6);
        corpus.prop_filter("a pair", |corpus| {
            corpus.iter().any(|document| document.len() > 1)
        })
    }

    proptest! {
        #[test]
        fn labels_are_right(
            corpus in corpus(),
            n_tokens in 2usize..40,
            choice: prop::sample::Index,
            seed: u64,
        ) {
            let split = Split::new("training", counting(&corpus)).unwrap();
            let start = split.followed[choice.index(split.followed.len())];
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            let pair = split.pair(start, n_tokens, &mut generator);
            prop_assert!(!pair.first.is_empty() && !pair.second.is_empty());
            prop_assert!(pair.first.len() + pair.second.len() <= n_tokens);
            let follows = pair.second[0] == pair.first[pair.first.len() - 1] + 1;
            prop_assert_eq!(follows, pair.relation == FOLLOWS);
            // Both are runs of text.
            for text in [pair.first, pair.second] {
                prop_assert!(text.windows(2).all(|pair| pair[1] == pair[0] + 1));
            }
            if pair.relation == IS_RANDOM && corpus.len() > 1 {
                let document = split.sentences.read(split.sentences.document(start));
                prop_assert!(!document.contains(&pair.second[0]));
            }
        }
    }

    #[test]
    fn half_of_the_second_texts_follow() {
        let corpus: Vec<Vec<usize>> = (0..20).map(|i| vec![3 + i % 4; 5]).collect();
        let split = Split::new("training", counting(&corpus)).unwrap();
        let mut generator = ChaCha8Rng::seed_from_u64(1);
        let rounds = 10_000;
        let follows = (0..rounds).filter(|round| {
            let start = split.followed[round % split.followed.len()];
            split.pair(start, 20, &mut generator).relation == FOLLOWS
        });
        let share = follows.count() as f64 / rounds as f64;
        assert!(
            (share - 0.5).abs() < 5.0 * 0.5 / (rounds as f64).sqrt(),
            "{share}"
        );
    }

    #[test]
    fn single_sentences_are_no_pairs() {
        let refusal = Split::new("validation", counting(&[vec![3], vec![4]])).unwrap_err();
        assert_eq!(
            refusal,
            NoPairs {
                split: "validation"
            }
        );
    }
}
