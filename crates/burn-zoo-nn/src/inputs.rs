//! What a model reads.

use std::ops::Range;

use burn::tensor::{Bool, Int, Tensor, kind::Basic};

/// What a model reads: tokens, and what belongs to them.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Token ids, `[batch, seq]`.
    pub tokens: Tensor<2, Int>,
    /// Which tokens are real and not padding, `[batch, seq]`. All when none. With a cache it covers
    /// the cached tokens too.
    pub visible: Option<Tensor<2, Bool>>,
    /// The segment of each token, `[batch, seq]`. The first when none.
    pub segments: Option<Tensor<2, Int>>,
    /// How many tokens of each sequence are a prefix that all see, `[batch]`. None of them when none.
    pub prefix_lengths: Option<Tensor<1, Int>>,
    /// The document of each token, `[batch, seq]`, where a sequence is packed with several, one after the
    /// other: tokens see their own alone, and positions begin anew in each. All are one when none. With a
    /// cache it covers the cached tokens too.
    pub documents: Option<Tensor<2, Int>>,
    /// The position of each token, `[batch, seq]`, for position embeddings and rotary positions. Its place
    /// in the sequence, or in its document, when none. Each is below the length of the sequence. Biases by
    /// distance go by the place.
    pub positions: Option<Tensor<2, Int>>,
    /// The second position of each token, `[batch, seq]`, for
    /// [`PrefixAndBlock`](crate::embedding::PositionConfig::PrefixAndBlock). Follows from the prefix when
    /// none.
    pub block_positions: Option<Tensor<2, Int>>,
    /// What the decoder reads, `[batch, decoder seq]`, for models with an encoder.
    pub decoder_tokens: Option<Tensor<2, Int>>,
}

impl From<Tensor<2, Int>> for Inputs {
    fn from(tokens: Tensor<2, Int>) -> Self {
        Self {
            tokens,
            visible: None,
            segments: None,
            prefix_lengths: None,
            documents: None,
            positions: None,
            block_positions: None,
            decoder_tokens: None,
        }
    }
}

impl Inputs {
    /// Those of some of the sequences.
    pub fn sequences(&self, range: Range<usize>) -> Self {
        fn rows<const D: usize, K: Basic>(
            tensor: Tensor<D, K>,
            range: &Range<usize>,
        ) -> Tensor<D, K> {
            tensor.narrow(0, range.start, range.len())
        }
        let ids = |tensor: &Option<Tensor<2, Int>>| tensor.clone().map(|ids| rows(ids, &range));
        Self {
            tokens: rows(self.tokens.clone(), &range),
            visible: self.visible.clone().map(|visible| rows(visible, &range)),
            segments: ids(&self.segments),
            prefix_lengths: self
                .prefix_lengths
                .clone()
                .map(|lengths| rows(lengths, &range)),
            documents: ids(&self.documents),
            positions: ids(&self.positions),
            block_positions: ids(&self.block_positions),
            decoder_tokens: ids(&self.decoder_tokens),
        }
    }

    /// The positions of the tokens, `[batch, seq]`, where they are not the places in the sequence.
    pub(crate) fn positions(&self) -> Option<Tensor<2, Int>> {
        let positions = self.positions.clone();
        positions.or_else(|| self.places_in_documents())
    }

    /// How far each token is from the first of its document, `[batch, seq]`, where there are documents.
    pub(crate) fn places_in_documents(&self) -> Option<Tensor<2, Int>> {
        let [_, seq] = self.tokens.dims();
        let places = places_in(self.documents.clone()?);
        let [_, length] = places.dims();
        Some(places.narrow(1, length - seq, seq))
    }
}

/// How far each token, `[batch, seq]`, is from the first of its document.
fn places_in(documents: Tensor<2, Int>) -> Tensor<2, Int> {
    let [batch, seq] = documents.dims();
    let places = Tensor::<1, Int>::arange(0..seq as i64, &documents.device());
    let places = places.reshape([1, seq]).expand([batch, seq]);
    if seq == 1 {
        return places;
    }
    let earlier = documents.clone().narrow(1, 0, seq - 1);
    let begins = documents.narrow(1, 1, seq - 1).not_equal(earlier).int();
    let first = Tensor::zeros([batch, 1], &begins.device());
    let begins = Tensor::cat(vec![first, begins], 1);
    places.clone() - (places * begins).cummax(1)
}
