//! Attention by blocks of queries and segments of keys, in memory that grows with the context and not with its square.
//!
//! A segment's keys and values, and what its products with a block of queries become, stay in the cache. A softmax goes on
//! from segment to segment (Milakov & Gimelshein 2018, arXiv:1805.02867). Keys that the mask hides from all queries of a
//! block are left out, so that a causal mask halves the work. The gradient computes the scores again (Dao et al. 2022,
//! arXiv:2205.14135).

mod backward;
mod forward;

use std::ops::Range;

use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};
use macerator::Simd;

pub(super) use backward::backward;
pub(super) use forward::forward;

use super::dropout::Draws;
use super::product::{Matrix, Right, Start, UNIT, product};
use super::simd::{Contiguous, Kernel, contiguous, exp, largest, mul_add, sum, tensor};
use crate::{ScoreBias, Scoring};

/// How many queries are worked on at once.
const BLOCK: usize = 64;

/// How many keys and values are split at once: with what their products with a block become, half of the second cache.
const SEGMENT: usize = 512;

/// A tensor `[batch, heads, seq, head_dim]` as a matrix for each head.
struct Heads {
    values: *mut f32,
    /// From one to the next batch, head, position and channel.
    strides: [isize; 4],
}

// SAFETY: threads write to heads or rows that no other has.
unsafe impl Sync for Heads {}

impl Heads {
    /// Of a tensor that is only read.
    fn of(tensor: &FlexTensor) -> Self {
        let layout = tensor.layout();
        let values = tensor.storage::<f32>().as_ptr();
        let strides = layout.strides();
        Self {
            values: values.wrapping_add(layout.start_offset()).cast_mut(),
            strides: [strides[0], strides[1], strides[2], strides[3]],
        }
    }

    /// Of new values `[batch, seq, heads, head_dim]`, in which the heads of a position are side by side as the
    /// projections around attention have them. They are yet to be written.
    fn new(values: &mut Vec<f32>, [batch, heads, seq, width]: [usize; 4]) -> Self {
        values.reserve_exact(batch * seq * heads * width);
        let strides = [seq * heads * width, width, heads * width, 1];
        Self {
            values: values.as_mut_ptr(),
            strides: strides.map(|stride| stride as isize),
        }
    }

    fn matrix(&self, batch: usize, head: usize) -> Matrix {
        let [of_batch, of_head, row, column] = self.strides;
        let offset = batch as isize * of_batch + head as isize * of_head;
        Matrix {
            values: self.values.wrapping_offset(offset),
            strides: [row, column],
        }
    }
}

/// A tensor `[batch, heads, seq, head_dim]` of values as [`Heads::new`] has them.
///
/// # Safety
///
/// All are written.
unsafe fn by_position(mut values: Vec<f32>, [batch, heads, seq, width]: [usize; 4]) -> FlexTensor {
    // SAFETY: as promised.
    unsafe { values.set_len(batch * seq * heads * width) };
    tensor(values, Shape::new([batch, seq, heads, width])).transpose(1, 2)
}

/// What is added to scores, one row of which serves several queries where it is broadcast.
struct Bias {
    values: Contiguous,
    /// From one to the next along batch, heads and queries.
    strides: [usize; 3],
}

impl Bias {
    fn new(bias: ScoreBias<Flex>) -> Option<Self> {
        let values = contiguous(bias.tensor()?);
        let [batch, heads, queries, keys] = values.tensor.layout().shape().dims();
        let stride = |size: usize, stride: usize| if size == 1 { 0 } else { stride };
        Some(Self {
            strides: [
                stride(batch, heads * queries * keys),
                stride(heads, queries * keys),
                stride(queries, keys),
            ],
            values,
        })
    }

    fn sizes(&self) -> [usize; 4] {
        self.values.tensor.layout().shape().dims()
    }

    fn row(&self, [batch, head]: [usize; 2], query: usize) -> &[f32] {
        let [of_batch, of_head, of_query] = self.strides;
        let start = batch * of_batch + head * of_head + query * of_query;
        let [_, _, _, keys] = self.sizes();
        &self.values[start..start + keys]
    }
}

/// The sizes of an attention, and how it scores.
struct Job {
    batch: usize,
    n_heads: usize,
    n_kv_heads: usize,
    seq_q: usize,
    seq_k: usize,
    width: usize,
    scoring: Scoring,
    bias: Option<Bias>,
}

/// Queries of one head, and the keys of a segment that some of them see, in whole units.
struct Block {
    queries: Range<usize>,
    keys: Range<usize>,
    /// Where the segment begins.
    segment: usize,
    /// Whether no other segment before has keys that they see.
    is_first: bool,
    /// Whether no other one behind has.
    is_last: bool,
}

impl Job {
    fn new(query: &FlexTensor, key: &FlexTensor, bias: ScoreBias<Flex>, scoring: Scoring) -> Self {
        let [batch, n_heads, seq_q, width] = query.layout().shape().dims();
        let [_, n_kv_heads, seq_k, _] = key.layout().shape().dims();
        Self {
            batch,
            n_heads,
            n_kv_heads,
            seq_q,
            seq_k,
            width,
            scoring,
            bias: Bias::new(bias),
        }
    }

    /// How many heads of queries share one of keys.
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    fn visible(&self, query: usize) -> Range<usize> {
        self.scoring.mask.visible(query, self.seq_q, self.seq_k)
    }

    fn segments(&self) -> impl Iterator<Item = Range<usize>> {
        let firsts = (0..self.seq_k).step_by(SEGMENT);
        firsts.map(|first| first..(first + SEGMENT).min(self.seq_k))
    }

    /// Blocks of queries, with the keys that some of them see.
    fn all_blocks(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        (0..self.seq_q).step_by(BLOCK).map(move |first| {
            let queries = first..(first + BLOCK).min(self.seq_q);
            let seen = self.visible(first).start..self.visible(queries.end - 1).end;
            (queries, seen)
        })
    }

    /// Queries that see no keys at all.
    fn blind(&self) -> impl Iterator<Item = usize> {
        let blind = self.all_blocks().filter(|(_, seen)| seen.is_empty());
        blind.flat_map(|(queries, _)| queries)
    }

    /// The blocks that see some of a segment.
    fn blocks(&self, segment: &Range<usize>) -> impl Iterator<Item = Block> {
        let segment = segment.clone();
        self.all_blocks().filter_map(move |(queries, seen)| {
            let here = seen.start.max(segment.start)..seen.end.min(segment.end);
            // A few more, which are hidden from all, make whole units of what products split.
            let more = here.start / UNIT * UNIT..here.end.next_multiple_of(UNIT).min(segment.end);
            (!here.is_empty()).then_some(Block {
                queries,
                keys: more,
                segment: segment.start,
                is_first: seen.start >= segment.start,
                is_last: seen.end <= segment.end,
            })
        })
    }

    /// How many numbers the scores of any block take.
    fn block_size(&self) -> usize {
        BLOCK.min(self.seq_q) * SEGMENT.min(self.seq_k)
    }

    /// How many numbers the [`Statistics`] of all queries are.
    fn n_statistics(&self) -> usize {
        2 * self.batch * self.n_heads * self.seq_q
    }

    /// Drops of the rows of a block what all passes drop of them.
    fn drop_out(
        &self,
        draws: Option<Draws>,
        block: &Block,
        [batch, head]: [usize; 2],
        rows: &mut [f32],
    ) {
        let Some(draws) = draws else { return };
        let first = (batch * self.n_heads + head) * self.seq_q;
        let rows = rows.chunks_exact_mut(block.keys.len());
        for (query, row) in block.queries.clone().zip(rows) {
            draws.apply(row, (first + query) * self.seq_k + block.keys.start);
        }
    }

    /// Keys or values of a segment, which queries or what else has their channels are multiplied with.
    ///
    /// # Safety
    ///
    /// They are those of a head of this attention.
    unsafe fn by_channel(&self, head: Matrix, segment: &Range<usize>) -> Right {
        let matrix = head.skip(segment.start, 0).transposed();
        // SAFETY: as promised.
        unsafe { self.right(matrix, [self.width, segment.len()]) }
    }

    /// Keys or values of a segment, which are summed by scores or what else has a number for each.
    ///
    /// # Safety
    ///
    /// As above.
    unsafe fn by_key(&self, head: Matrix, segment: &Range<usize>) -> Right {
        // SAFETY: as promised.
        unsafe { self.right(head.skip(segment.start, 0), [segment.len(), self.width]) }
    }

    unsafe fn right(&self, matrix: Matrix, [k, n]: [usize; 2]) -> Right {
        match self.seq_q > BLOCK {
            // SAFETY: as promised.
            true => unsafe { Right::split(matrix, [BLOCK, n, k]) },
            false => Right::whole(matrix),
        }
    }

    /// Products of the queries of a block, or what else has a row for each, with its keys.
    ///
    /// # Safety
    ///
    /// The queries are those of a head of this attention, and the keys of the block's segment.
    unsafe fn multiply(&self, block: &Block, query: Matrix, key: &Right, scores: &mut [f32]) {
        let (rows, keys) = (block.queries.len(), block.keys.len());
        let scores = Matrix::dense(scores, keys);
        let query = query.skip(block.queries.start, 0);
        let from = [0, block.keys.start - block.segment];
        let sizes = [rows, keys, self.width];
        // SAFETY: the block lies within the matrices.
        unsafe { key.product(sizes, scores, Start::Zero, query, from) };
    }

    /// Sums of the keys of a block, or what else has a row for each, by its scores. They are added to those of the segments
    /// before.
    ///
    /// # Safety
    ///
    /// As above, and nobody else uses the target, which has a row for each query.
    unsafe fn sum_up(&self, block: &Block, scores: &mut [f32], key: &Right, target: Matrix) {
        let (rows, keys) = (block.queries.len(), block.keys.len());
        let scores = Matrix::dense(scores, keys);
        let target = target.skip(block.queries.start, 0);
        let start = match block.is_first {
            true => Start::Zero,
            false => Start::Target,
        };
        let from = [block.keys.start - block.segment, 0];
        let sizes = [rows, self.width, keys];
        // SAFETY: the block lies within the matrices.
        unsafe { key.product(sizes, target, start, scores, from) };
    }

    /// Adds to each key of a block what its queries have, or what else has a row for each, by its scores.
    ///
    /// # Safety
    ///
    /// As above; the target has a row for each key of the segment.
    unsafe fn add_by_key(&self, block: &Block, scores: &mut [f32], query: Matrix, target: Matrix) {
        let (rows, keys) = (block.queries.len(), block.keys.len());
        let scores = Matrix::dense(scores, keys).transposed();
        let query = query.skip(block.queries.start, 0);
        let target = target.skip(block.keys.start - block.segment, 0);
        let sizes = [keys, self.width, rows];
        // SAFETY: the block lies within the matrices.
        unsafe { product(sizes, target, Start::Target, scores, query, false) };
    }
}

/// Products of a block, which become `e^(score - largest)`, and 0 where a key is hidden.
struct Exponentials<'a> {
    job: &'a Job,
    block: &'a Block,
    /// Batch and head.
    place: [usize; 2],
    scores: &'a mut [f32],
    statistics: Statistics<'a>,
}

/// For each query the largest score, and what the exponentials come to; in the end the reciprocal of that.
enum Statistics<'a> {
    /// Those of the segments before, which go on.
    Running {
        statistics: &'a mut [f32],
        /// What the sums of the segments before are to be multiplied by.
        decays: &'a mut [f32],
    },
    /// Those of the forward pass. By them the exponentials become probabilities.
    Known(&'a [f32]),
}

impl Kernel for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let scale = self.job.scoring.scale as f32;
        let keys = &self.block.keys;
        let rows = self.scores.chunks_exact_mut(keys.len()).enumerate();
        for (query, (number, row)) in self.block.queries.clone().zip(rows) {
            let visible = self.job.visible(query);
            let start = visible.start.clamp(keys.start, keys.end);
            let visible = start..visible.end.clamp(start, keys.end);
            let within = visible.start - keys.start..visible.end - keys.start;
            row[..within.start].fill(0.0);
            row[within.end..].fill(0.0);
            let row = &mut row[within];
            match &self.job.bias {
                None => row.iter_mut().for_each(|score| *score *= scale),
                Some(bias) => {
                    let bias = &bias.row(self.place, query)[visible];
                    for (score, &bias) in row.iter_mut().zip(bias) {
                        *score = mul_add::<S>(*score, scale, bias);
                    }
                }
            }
            match &mut self.statistics {
                Statistics::Running { statistics, decays } => {
                    let [most, total] = &mut statistics[2 * number..][..2] else {
                        unreachable!("a pair for each query")
                    };
                    if self.block.is_first {
                        (*most, *total) = (f32::NEG_INFINITY, 0.0);
                    }
                    let max = largest(row).max(*most);
                    // There may be no key yet that this query sees, or none with any weight.
                    let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
                    row.iter_mut()
                        .for_each(|score| *score = exp::<S>(*score - shift));
                    let [more] = sum::<1>(row, row, |p, _| [p]);
                    let decay = exp::<S>(*most - shift);
                    (*most, *total) = (max, mul_add::<S>(*total, decay, more));
                    decays[number] = decay;
                }
                Statistics::Known(statistics) => {
                    let (max, share) = (statistics[2 * number], statistics[2 * number + 1]);
                    row.iter_mut()
                        .for_each(|score| *score = exp::<S>(*score - max) * share);
                }
            }
        }
    }
}
