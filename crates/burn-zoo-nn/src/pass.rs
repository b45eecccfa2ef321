//! What the layers of one forward pass share.

use burn::tensor::{Bool, Device, Int, Tensor};

use crate::{
    attention::AttentionPattern,
    bias,
    mixture::Routing,
    recompute::constant,
    rotary::{RotaryConfig, RotaryTable},
};

/// Added to the scores of hidden keys. Finite, for shaders without infinities, and in the range of
/// 16-bit floats.
const HIDDEN: f32 = -3.0e4;

/// One forward pass through a stack: where it stands in the sequence, which tokens are real, and
/// tables that several layers need and that are made once.
///
/// `Pass::default()` is a pass over whole sequences without padding.
#[derive(Clone, Default)]
pub struct Pass {
    /// How many positions are cached before the input.
    pub start: usize,
    /// Which tokens are real, cached ones included, `[batch, start + seq]`. All when none.
    pub visible: Option<Tensor<2, Bool>>,
    /// How many tokens of each sequence are visible to all of its tokens, `[batch]`, for
    /// [`AttentionPattern::Prefix`]. None of them when none.
    pub prefix_lengths: Option<Tensor<1, Int>>,
    /// The document of each token, cached ones included, `[batch, start + seq]`: tokens see their own alone.
    /// All are one when none.
    pub documents: Option<Tensor<2, Int>>,
    /// The position of each token for rotary positions, `[batch, seq]`. Its place in the sequence when none.
    pub positions: Option<Tensor<2, Int>>,
    /// What cross-attention reads.
    pub memory: Option<Memory>,
    /// The probabilities of each self-attention layer, `[batch, n_heads, seq, start + seq]`, collected
    /// when there is a list to put them in.
    pub attention_maps: Option<Vec<Tensor<4>>>,
    /// The relative bias of the stack, `[1, n_heads, seq, start + seq]`.
    pub(crate) relative: Option<Tensor<4>>,
    /// What each mixture of experts decided, in the order of the layers.
    pub routing: Vec<Routing>,
    pub(crate) biases: Biases,
    pub(crate) tables: Tables,
}

/// The output of an encoder, read by cross-attention.
#[derive(Clone, Debug)]
pub struct Memory {
    /// `[batch, seq, d_model]`.
    pub hidden: Tensor<3>,
    /// Which tokens are real, `[batch, seq]`. All when none.
    pub visible: Option<Tensor<2, Bool>>,
}

impl Memory {
    /// What is added to scores of cross-attention, `[batch, 1, 1, seq]`.
    pub(crate) fn bias(&self) -> Option<Tensor<4>> {
        self.visible.clone().map(|visible| {
            let [batch, seq] = visible.dims();
            hide(visible.reshape([batch, 1, 1, seq]))
        })
    }
}

/// Biases that were composed before, by what they are for.
type Biases = Vec<(BiasKey, Option<Tensor<4>>)>;

/// Rotations that were made before, by their configuration.
type Tables = Vec<(RotaryConfig, RotaryTable)>;

#[derive(Clone, Copy, PartialEq)]
pub(crate) struct BiasKey {
    has_prefix: bool,
    alibi_heads: Option<usize>,
}

impl Pass {
    /// What is added to the scores of a self-attention layer, `[batch or 1, n_heads or 1, seq or 1,
    /// start + seq]`.
    pub(crate) fn bias(
        &mut self,
        pattern: AttentionPattern,
        alibi_heads: Option<usize>,
        seq: usize,
        device: &Device,
    ) -> Option<Tensor<4>> {
        let key = BiasKey {
            has_prefix: pattern == AttentionPattern::Prefix,
            alibi_heads,
        };
        if let Some((_, bias)) = self.biases.iter().find(|(known, _)| *known == key) {
            return bias.clone();
        }
        let bias = self.compose_bias(key, seq, device);
        self.biases.push((key, bias.clone()));
        bias
    }

    fn compose_bias(&self, key: BiasKey, seq: usize, device: &Device) -> Option<Tensor<4>> {
        let end = self.start + seq;
        let alibi = key.alibi_heads.map(|n_heads| {
            let (queries, keys) = self.real_positions(seq, device);
            bias::alibi(n_heads, queries, keys)
        });
        let prefix = key.has_prefix.then(|| hide(self.prefix(seq, device)));
        let padding = self.visible.clone().map(|visible| {
            let [batch, keys] = visible.dims();
            assert_eq!(
                keys, end,
                "attention: the mask of visible tokens must cover the cached and the new ones"
            );
            hide(visible.reshape([batch, 1, 1, keys]))
        });
        let documents = self.documents.clone();
        let others = documents.map(|documents| hide(self.same_document(documents, seq)));
        [self.relative.clone(), alibi, prefix, padding, others]
            .into_iter()
            .flatten()
            .reduce(|sum, bias| {
                // A learned bias may be in 16 bits.
                let dtype = sum.dtype();
                sum + bias.cast(dtype)
            })
    }

    /// Which of the new tokens are real, `[batch, seq]`. All when none.
    pub(crate) fn new_visible(&self, seq: usize) -> Option<Tensor<2, Bool>> {
        let visible = self.visible.clone();
        visible.map(|visible| visible.narrow(1, self.start, seq))
    }

    /// The positions of queries `[batch or 1, 1, seq, 1]` and keys `[batch or 1, 1, 1, start + seq]`, where
    /// padding does not count.
    fn real_positions(&self, seq: usize, device: &Device) -> (Tensor<4>, Tensor<4>) {
        let end = self.start + seq;
        let (counted, keys) = match self.visible.clone() {
            None => {
                let all = Tensor::<1, Int>::arange(0..end as i64, device).reshape([1, end]);
                (all.clone(), all)
            }
            Some(visible) => {
                let real = visible.int();
                let counted = real.clone().cumsum(1) - 1;
                (counted.clone(), counted * real)
            }
        };
        let [batch, _] = keys.dims();
        let queries = counted.narrow(1, self.start, seq);
        (
            queries.float().reshape([batch, 1, seq, 1]),
            keys.float().reshape([batch, 1, 1, end]),
        )
    }

    /// Which keys are visible: those before a query, and those of the prefix. `[batch, 1, seq, keys]`.
    fn prefix(&self, seq: usize, device: &Device) -> Tensor<4, Bool> {
        let end = self.start + seq;
        let index = |range: std::ops::Range<usize>| {
            Tensor::<1, Int>::arange(range.start as i64..range.end as i64, device)
        };
        let keys = index(0..end).reshape([1, 1, 1, end]);
        let queries = index(self.start..end).reshape([1, 1, seq, 1]);
        let causal = keys
            .clone()
            .expand([1, 1, seq, end])
            .lower_equal(queries.expand([1, 1, seq, end]));
        match self.prefix_lengths.clone() {
            None => causal,
            Some(lengths) => {
                let [batch] = lengths.dims();
                let shape = [batch, 1, seq, end];
                let lengths = lengths.reshape([batch, 1, 1, 1]).expand(shape);
                let in_prefix = keys.expand(shape).lower(lengths);
                causal.expand(shape).bool_or(in_prefix)
            }
        }
    }

    /// Which keys are of the query's document, `[batch, 1, seq, keys]`.
    fn same_document(&self, documents: Tensor<2, Int>, seq: usize) -> Tensor<4, Bool> {
        let [batch, keys] = documents.dims();
        assert_eq!(
            keys,
            self.start + seq,
            "attention: documents must cover the cached and the new tokens"
        );
        let shape = [batch, 1, seq, keys];
        let queries = documents.clone().narrow(1, self.start, seq);
        let queries = queries.reshape([batch, 1, seq, 1]).expand(shape);
        queries.equal(documents.reshape([batch, 1, 1, keys]).expand(shape))
    }

    /// Whether gradients flow to what blocks read besides their input.
    pub(crate) fn is_tracked(&self) -> bool {
        let memory = self.memory.as_ref();
        self.relative.as_ref().is_some_and(Tensor::is_tracked)
            || memory.is_some_and(|memory| memory.hidden.is_tracked())
    }

    /// What a block reads whose graph is not kept.
    pub(crate) fn without_graph(&self) -> Self {
        let mut pass = self.clone();
        pass.routing.clear();
        pass.relative = pass.relative.map(constant);
        pass.memory = pass.memory.map(|memory| Memory {
            hidden: constant(memory.hidden),
            ..memory
        });
        pass
    }

    /// What it reads when it is computed again, for gradients.
    pub(crate) fn for_replay(&self) -> Self {
        let mut pass = self.clone();
        pass.routing.clear();
        if self.relative.as_ref().is_some_and(Tensor::is_tracked) {
            // They were made of the bias without its graph.
            pass.biases.clear();
        }
        pass
    }

    /// The rotations of the input's positions.
    pub(crate) fn rotary(
        &mut self,
        config: &RotaryConfig,
        seq: usize,
        device: &Device,
    ) -> RotaryTable {
        if let Some((_, table)) = self.tables.iter().find(|(known, _)| known == config) {
            return table.clone();
        }
        let end = self.start + seq;
        let table = match self.positions.clone() {
            None => config.table(self.start, end, device),
            Some(positions) => config.table(0, end, device).at(positions),
        };
        self.tables.push((config.clone(), table.clone()));
        table
    }
}

/// Zero for what is visible, [`HIDDEN`] for the rest.
fn hide(visible: Tensor<4, Bool>) -> Tensor<4> {
    visible.bool_not().float() * HIDDEN
}
