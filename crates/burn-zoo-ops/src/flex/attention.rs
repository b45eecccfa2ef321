//! Attention by blocks of queries, in memory that grows with the context and not with its square.
//!
//! The scores of a block stay in the cache between the products. Keys that the mask hides from all its queries are left
//! out of them, so that a causal mask halves the work. The gradient computes the scores again (Dao et al. 2022,
//! arXiv:2205.14135).

use std::ops::Range;

use burn::backend::{ops::FloatTensorOps, tensor::FloatTensor};
use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};
use macerator::Simd;
use rayon::prelude::*;

use super::dropout::{Draws, draw_seed};
use super::product::{Matrix, Right, Start, UNIT, product};
use super::simd::{Kernel, contiguous, exp, largest, mul_add, run, sum, tensor};
use crate::attention::composed_forward;
use crate::{ScoreBias, Scoring};

/// How many queries are worked on at once.
const BLOCK: usize = 64;

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
    /// projections around attention have them.
    fn new(values: &mut [f32], [heads, seq, width]: [usize; 3]) -> Self {
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
fn by_position(values: Vec<f32>, [batch, heads, seq, width]: [usize; 4]) -> FlexTensor {
    tensor(values, Shape::new([batch, seq, heads, width])).transpose(1, 2)
}

/// What is added to scores, one row of which serves several queries where it is broadcast.
struct Bias {
    tensor: FlexTensor,
    start: usize,
    /// From one to the next along batch, heads and queries.
    strides: [usize; 3],
}

impl Bias {
    fn new(bias: ScoreBias<Flex>) -> Option<Self> {
        let (tensor, range) = contiguous(bias.tensor()?);
        let [batch, heads, queries, keys] = tensor.layout().shape().dims();
        let stride = |size: usize, stride: usize| if size == 1 { 0 } else { stride };
        Some(Self {
            strides: [
                stride(batch, heads * queries * keys),
                stride(heads, queries * keys),
                stride(queries, keys),
            ],
            start: range.start,
            tensor,
        })
    }

    fn row(&self, [batch, head]: [usize; 2], query: usize) -> &[f32] {
        let [of_batch, of_head, of_query] = self.strides;
        let start = self.start + batch * of_batch + head * of_head + query * of_query;
        let [_, _, _, keys] = self.tensor.layout().shape().dims();
        &self.tensor.storage::<f32>()[start..start + keys]
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

/// Queries of one head, and the keys that some of them see, in whole units.
struct Block {
    queries: Range<usize>,
    keys: Range<usize>,
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

    fn visible(&self, query: usize) -> Range<usize> {
        self.scoring.mask.visible(query, self.seq_q, self.seq_k)
    }

    fn blocks(&self) -> impl Iterator<Item = Block> {
        let blocks = (0..self.seq_q).step_by(BLOCK).map(move |first| {
            let queries = first..(first + BLOCK).min(self.seq_q);
            let seen = self.visible(first).start..self.visible(queries.end - 1).end;
            // A few more, which are hidden from all, make whole units of what products split.
            let more = seen.start / UNIT * UNIT..seen.end.next_multiple_of(UNIT).min(self.seq_k);
            let keys = if seen.is_empty() { seen } else { more };
            Block { queries, keys }
        });
        blocks.filter(|block| !block.keys.is_empty())
    }

    /// How many numbers the scores of any block take.
    fn block_size(&self) -> usize {
        BLOCK.min(self.seq_q) * self.seq_k
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

    /// Keys or values of a head, which queries or what else has their channels are multiplied with.
    ///
    /// # Safety
    ///
    /// They are a matrix of a head of this attention.
    unsafe fn by_channel(&self, heads: Matrix) -> Right {
        // SAFETY: as promised.
        unsafe { self.right(heads.transposed(), [self.width, self.seq_k]) }
    }

    /// Keys or values of a head, which are summed by scores or what else has a number for each.
    ///
    /// # Safety
    ///
    /// As above.
    unsafe fn by_key(&self, heads: Matrix) -> Right {
        // SAFETY: as promised.
        unsafe { self.right(heads, [self.seq_k, self.width]) }
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
    /// Both are matrices of a head of this attention.
    unsafe fn multiply(&self, block: &Block, query: Matrix, key: &Right, scores: &mut [f32]) {
        let (rows, keys) = (block.queries.len(), block.keys.len());
        let scores = Matrix::dense(&mut scores[..rows * keys], keys);
        let query = query.skip(block.queries.start, 0);
        let (sizes, from) = ([rows, keys, self.width], [0, block.keys.start]);
        // SAFETY: the block lies within the matrices.
        unsafe { key.product(sizes, scores, Start::Zero, query, from) };
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

/// For each query the largest score, and the reciprocal of what the exponentials come to.
enum Statistics<'a> {
    /// Yet to be found.
    New(&'a mut [f32]),
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
                Statistics::New(statistics) => {
                    let max = largest(row);
                    row.iter_mut()
                        .for_each(|score| *score = exp::<S>(*score - max));
                    let [total] = sum::<1>(row, row, |p, _| [p]);
                    statistics[2 * number..][..2].copy_from_slice(&[max, 1.0 / total]);
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

/// Rows of a block's probabilities and of their gradients, which become those of the scaled products.
struct ScoreGradients<'a> {
    probabilities: &'a [f32],
    grad: &'a mut [f32],
    width: usize,
    scale: f32,
}

impl Kernel for ScoreGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let rows = self.probabilities.chunks_exact(self.width);
        for (row, grad) in rows.zip(self.grad.chunks_exact_mut(self.width)) {
            let [mean] = sum::<1>(row, grad, |p, g| [p * g]);
            for (&p, grad) in row.iter().zip(grad) {
                *grad = p * (*grad - mean) * self.scale;
            }
        }
    }
}

/// Returns the output `[batch, n_heads, seq_q, head_dim]`, and for its gradient the [`Statistics`] of each query, behind
/// them the seed of what is dropped, if anything is: `[2 · batch · n_heads · seq_q (+ 2)]`.
pub(super) fn forward(
    query: FlexTensor,
    key: FlexTensor,
    value: FlexTensor,
    bias: ScoreBias<Flex>,
    scoring: Scoring,
) -> (FlexTensor, FlexTensor) {
    let job = Job::new(&query, &key, bias, scoring);
    let Job {
        batch,
        n_heads,
        seq_q,
        width,
        ..
    } = job;
    let group = n_heads / job.n_kv_heads;
    let mut values = vec![0.0; batch * seq_q * n_heads * width];
    let mut statistics = vec![0.0; job.n_statistics()];
    let seed = (scoring.dropout > 0.0).then(draw_seed);
    let draws = seed
        .as_ref()
        .map(|seed| Draws::new(seed.storage(), scoring.dropout));
    let output = Heads::new(&mut values, [n_heads, seq_q, width]);
    let [query, key, value] = [&query, &key, &value].map(Heads::of);
    let heads = statistics.par_chunks_mut((2 * seq_q).max(1)).enumerate();
    heads.for_each_init(
        || vec![0.0; job.block_size()],
        |scores, (number, statistics)| {
            let place @ [batch, head] = [number / n_heads, number % n_heads];
            let [query, output] = [&query, &output].map(|heads| heads.matrix(batch, head));
            let [key, value] = [&key, &value].map(|heads| heads.matrix(batch, head / group));
            // SAFETY: these are matrices of one head.
            let (key, value) = unsafe { (job.by_channel(key), job.by_key(value)) };
            for block in job.blocks() {
                let (rows, keys) = (block.queries.len(), block.keys.len());
                let statistics = &mut statistics[2 * block.queries.start..2 * block.queries.end];
                // SAFETY: these are matrices of one head.
                unsafe { job.multiply(&block, query, &key, scores) };
                run(Exponentials {
                    job: &job,
                    block: &block,
                    place,
                    scores: &mut scores[..rows * keys],
                    statistics: Statistics::New(statistics),
                });
                job.drop_out(draws, &block, place, &mut scores[..rows * keys]);
                let exponentials = Matrix::dense(scores, keys);
                let output = output.skip(block.queries.start, 0);
                let (sizes, from) = ([rows, width, keys], [block.keys.start, 0]);
                // SAFETY: no other thread has this head.
                unsafe {
                    value.product(sizes, output, Start::Zero, exponentials, from);
                    for (row, statistics) in statistics.chunks_exact(2).enumerate() {
                        let row = output.skip(row, 0).values;
                        let row = std::slice::from_raw_parts_mut(row, width);
                        row.iter_mut().for_each(|value| *value *= statistics[1]);
                    }
                }
            }
        },
    );
    if let Some(seed) = seed {
        statistics.extend_from_slice(seed.storage());
    }
    let n_saved = statistics.len();
    let saved = tensor(statistics, Shape::new([n_saved]));
    let output = by_position(values, [batch, n_heads, seq_q, width]);
    (output, saved)
}

/// What the composed form saves, by the seed that this one saved.
pub(super) fn whole(
    query: FlexTensor,
    key: FlexTensor,
    value: FlexTensor,
    bias: ScoreBias<Flex>,
    saved: &FlexTensor,
    scoring: Scoring,
) -> FlexTensor {
    let undropped = Scoring {
        dropout: 0.0,
        ..scoring
    };
    let (_, probabilities) = composed_forward::<Flex>(query, key, value, bias, undropped);
    let share = scoring.dropout;
    if share == 0.0 {
        return probabilities;
    }
    let seed = saved.storage();
    let draws = Draws::new(&seed[seed.len() - 2..], share);
    let twice = draws.apply_all(Flex::float_mul_scalar(
        probabilities.clone(),
        (2.0 * (1.0 - share)).into(),
    ));
    Flex::float_sub(twice, probabilities)
}

/// The gradients of query, key and value.
///
/// With `P` the probabilities, `D` what they are multiplied by where some are dropped and `dO` the gradient of the output:
/// `dV = (P ∘ D)ᵀ dO`, `dP = dO Vᵀ ∘ D`, `dS = P ∘ (dP − rowsum(dP ∘ P))`, `dQ = scale · dS K`, `dK = scale · dSᵀ Q`.
pub(super) fn backward(
    query: FlexTensor,
    key: FlexTensor,
    value: FlexTensor,
    bias: ScoreBias<Flex>,
    saved: FlexTensor,
    grad: FlexTensor,
    scoring: Scoring,
) -> [FloatTensor<Flex>; 3] {
    let job = Job::new(&query, &key, bias, scoring);
    let Job {
        batch,
        n_heads,
        n_kv_heads,
        seq_q,
        seq_k,
        width,
        ..
    } = job;
    let group = n_heads / n_kv_heads;
    let [mut of_query, mut of_key, mut of_value] =
        [seq_q * n_heads, seq_k * n_kv_heads, seq_k * n_kv_heads]
            .map(|rows| vec![0.0; batch * rows * width]);
    let grad_query = Heads::new(&mut of_query, [n_heads, seq_q, width]);
    let [grad_key, grad_value] =
        [&mut of_key, &mut of_value].map(|values| Heads::new(values, [n_kv_heads, seq_k, width]));
    let [query, key, value, grad] = [&query, &key, &value, &grad].map(Heads::of);
    let (statistics, seed) = saved.storage::<f32>().split_at(job.n_statistics());
    let draws = (scoring.dropout > 0.0).then(|| Draws::new(seed, scoring.dropout));
    // Query heads that share a key are one piece, because they add to its gradient.
    let pieces = statistics
        .par_chunks((2 * seq_q * group).max(1))
        .enumerate();
    pieces.for_each_init(
        || [0, 1].map(|_| vec![0.0; job.block_size()]),
        |[probabilities, scores], (number, statistics)| {
            let (batch, kv_head) = (number / n_kv_heads, number % n_kv_heads);
            let [key, value, grad_key, grad_value] =
                [&key, &value, &grad_key, &grad_value].map(|heads| heads.matrix(batch, kv_head));
            // SAFETY: these are matrices of one head.
            let (keys_by_channel, values_by_channel, key) =
                unsafe { (job.by_channel(key), job.by_channel(value), job.by_key(key)) };
            for (within, statistics) in statistics.chunks_exact(2 * seq_q).enumerate() {
                let head = kv_head * group + within;
                let [query, grad, grad_query] =
                    [&query, &grad, &grad_query].map(|heads| heads.matrix(batch, head));
                for block in job.blocks() {
                    let (rows, keys) = (block.queries.len(), block.keys.len());
                    // SAFETY: these are matrices of one head.
                    unsafe { job.multiply(&block, query, &keys_by_channel, probabilities) };
                    run(Exponentials {
                        job: &job,
                        block: &block,
                        place: [batch, head],
                        scores: &mut probabilities[..rows * keys],
                        statistics: Statistics::Known(&statistics[2 * block.queries.start..]),
                    });
                    // SAFETY: as above.
                    unsafe { job.multiply(&block, grad, &values_by_channel, scores) };
                    job.drop_out(draws, &block, [batch, head], &mut scores[..rows * keys]);
                    run(ScoreGradients {
                        probabilities: &probabilities[..rows * keys],
                        grad: &mut scores[..rows * keys],
                        width: keys,
                        scale: scoring.scale as f32,
                    });
                    job.drop_out(
                        draws,
                        &block,
                        [batch, head],
                        &mut probabilities[..rows * keys],
                    );
                    let left = Matrix::dense(probabilities, keys).transposed();
                    let [grad, query, grad_query] =
                        [grad, query, grad_query].map(|rows| rows.skip(block.queries.start, 0));
                    let [grad_key, grad_value] =
                        [grad_key, grad_value].map(|rows| rows.skip(block.keys.start, 0));
                    let (sizes, from) = ([rows, width, keys], [block.keys.start, 0]);
                    // SAFETY: no other thread has heads of this piece.
                    unsafe {
                        product(
                            [keys, width, rows],
                            grad_value,
                            Start::Target,
                            left,
                            grad,
                            false,
                        )
                    };
                    let scores = Matrix::dense(scores, keys);
                    // SAFETY: as above.
                    unsafe {
                        key.product(sizes, grad_query, Start::Zero, scores, from);
                        let scores = scores.transposed();
                        product(
                            [keys, width, rows],
                            grad_key,
                            Start::Target,
                            scores,
                            query,
                            false,
                        );
                    }
                }
            }
        },
    );
    [
        by_position(of_query, [batch, n_heads, seq_q, width]),
        by_position(of_key, [batch, n_kv_heads, seq_k, width]),
        by_position(of_value, [batch, n_kv_heads, seq_k, width]),
    ]
}
