//! The gradients of attention.

use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};
use macerator::Simd;
use rayon::prelude::*;

use super::{Bias, Exponentials, Heads, Job, SEGMENT, Statistics, by_position};
use crate::flex::dropout::Draws;
use crate::flex::product::Matrix;
use crate::flex::simd::{Dot, Kernel, run, tensor};
use crate::{ScoreBias, Scoring};

/// The gradients of query, key and value, and that of the bias if it learns.
///
/// With `P` the probabilities, `D` what they are multiplied by where some are dropped and `dO` the gradient of the output `O`:
/// `dV = (P ∘ D)ᵀ dO`, `dP = dO Vᵀ ∘ D`, `dS = P ∘ (dP − rowsum(dO ∘ O))`, `dQ = scale · dS K`, `dK = scale · dSᵀ Q`; the
/// bias has `dS`. The sum of a row is that of `dP ∘ P` (Dao 2023, arXiv:2307.08691), and needs no keys.
pub(in crate::flex) fn backward(
    [query, key, value]: [FlexTensor; 3],
    bias: ScoreBias<Flex>,
    output: FlexTensor,
    saved: &FlexTensor,
    grad: FlexTensor,
    scoring: Scoring,
) -> ([FlexTensor; 3], Option<FlexTensor>) {
    let is_learned = matches!(bias, ScoreBias::Learned(_));
    let job = Job::new(&query, &key, bias, scoring);
    let learned = job.bias.as_ref().filter(|_| is_learned);
    let (batch, n_kv_heads, width) = (job.batch, job.n_kv_heads, job.width);
    let of_queries = [batch, job.n_heads, job.seq_q, width];
    let of_keys = [batch, n_kv_heads, job.seq_k, width];
    let mut of_bias = learned.map(|bias| vec![0.0; bias.sizes().iter().product()]);
    let grad_bias = of_bias.as_mut().zip(learned).map(|(values, bias)| {
        let [batch, head, query] = bias.strides.map(|stride| stride as isize);
        Heads {
            values: values.as_mut_ptr(),
            strides: [batch, head, query, 1],
        }
    });
    let finished = |(bias, values): (&Bias, _)| tensor(values, Shape::new(bias.sizes()));
    if of_queries.contains(&0) {
        let zeros = [of_queries, of_keys, of_keys]
            .map(|sizes| tensor(vec![0.0; sizes.iter().product()], Shape::new(sizes)));
        return (zeros, learned.zip(of_bias).map(finished));
    }
    // Rows of it are read as they are; outputs are made with their channels side by side.
    let grad = match grad.layout().strides()[3] {
        1 => grad,
        _ => grad.to_contiguous(),
    };
    let [mut of_query, mut of_key, mut of_value] = [const { Vec::new() }; 3];
    let (statistics, seed) = saved.storage::<f32>().split_at(job.n_statistics());
    let backward = Backward {
        query: Heads::of(&query),
        key: Heads::of(&key),
        value: Heads::of(&value),
        output: Heads::of(&output),
        grad: Heads::of(&grad),
        grad_query: Heads::new(&mut of_query, of_queries),
        grad_key: Heads::new(&mut of_key, of_keys),
        grad_value: Heads::new(&mut of_value, of_keys),
        grad_bias,
        statistics,
        draws: (scoring.dropout > 0.0).then(|| Draws::new(seed, scoring.dropout)),
        job: &job,
    };
    // Heads that add to the same part of a bias are one piece of work.
    let [by_batch, by_head] = match learned.map(Bias::sizes) {
        Some([batches, heads, ..]) => [batches > 1, heads > 1],
        None => [true, true],
    };
    let parts = |count: usize, is_split: bool| {
        let length = if is_split { 1 } else { count };
        (0..count / length).map(move |part| part * length..(part + 1) * length)
    };
    let pieces: Vec<_> = parts(batch, by_batch)
        .flat_map(|batches| parts(n_kv_heads, by_head).map(move |heads| (batches.clone(), heads)))
        .collect();
    pieces.into_par_iter().for_each_init(
        || Room::new(&job),
        |room, (batches, heads)| {
            for place in batches.flat_map(|batch| heads.clone().map(move |head| [batch, head])) {
                // SAFETY: no other thread has this head, or another that adds to the same bias.
                unsafe { backward.head(room, place) };
            }
        },
    );
    // SAFETY: each query sees keys or is blind, and each key is one of a segment.
    let grads = unsafe {
        [
            by_position(of_query, of_queries),
            by_position(of_key, of_keys),
            by_position(of_value, of_keys),
        ]
    };
    (grads, learned.zip(of_bias).map(finished))
}

/// Rows of a block's probabilities and of their gradients, which become those of the scaled products.
struct ScoreGradients<'a> {
    probabilities: &'a [f32],
    grad: &'a mut [f32],
    width: usize,
    /// For each row the mean of the gradients by the probabilities of all keys.
    means: &'a [f32],
    scale: f32,
    /// A bias that learns, from the first query and key of the block on: what the scores have is added to its gradient.
    bias: Option<Matrix>,
}

impl Kernel for ScoreGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let rows = self.probabilities.chunks_exact(self.width);
        let rows = rows.zip(self.grad.chunks_exact_mut(self.width));
        for (number, ((row, grad), mean)) in rows.zip(self.means).enumerate() {
            let Some(bias) = self.bias else {
                for (&p, grad) in row.iter().zip(grad) {
                    *grad = p * (*grad - mean) * self.scale;
                }
                continue;
            };
            let first = bias.skip(number, 0).values;
            // SAFETY: the block lies within the gradient of the bias, which no other thread adds to here.
            let sums = unsafe { std::slice::from_raw_parts_mut(first, self.width) };
            for ((&p, grad), sum) in row.iter().zip(grad).zip(sums) {
                let of_score = p * (*grad - mean);
                *sum += of_score;
                *grad = of_score * self.scale;
            }
        }
    }
}

/// What the gradient of an attention reads and writes.
struct Backward<'a> {
    job: &'a Job,
    query: Heads,
    key: Heads,
    value: Heads,
    output: Heads,
    grad: Heads,
    grad_query: Heads,
    grad_key: Heads,
    grad_value: Heads,
    /// Of `[batch, n_heads, seq_q, seq_k]`, one row of which may serve several.
    grad_bias: Option<Heads>,
    statistics: &'a [f32],
    draws: Option<Draws>,
}

/// What a thread computes with.
struct Room {
    probabilities: Vec<f32>,
    scores: Vec<f32>,
    /// Sums for the keys and the values of a segment.
    sums: [Vec<f32>; 2],
    /// For each query the mean of the gradients by the probabilities of all keys.
    means: Vec<f32>,
}

impl Room {
    fn new(job: &Job) -> Self {
        let sums = SEGMENT.min(job.seq_k) * job.width;
        Self {
            probabilities: vec![0.0; job.block_size()],
            scores: vec![0.0; job.block_size()],
            sums: [0, 1].map(|_| vec![0.0; sums]),
            means: vec![0.0; job.group() * job.seq_q],
        }
    }
}

impl Backward<'_> {
    /// Gradients of a head of keys, and of the heads of queries that share it.
    ///
    /// # Safety
    ///
    /// It is one of this attention, and nobody else writes to its gradients meanwhile.
    unsafe fn head(&self, room: &mut Room, [batch, kv_head]: [usize; 2]) {
        let job = self.job;
        let (group, seq_q, width) = (job.group(), job.seq_q, job.width);
        let heads = kv_head * group..(kv_head + 1) * group;
        let statistics = &self.statistics[2 * seq_q * (batch * job.n_heads + heads.start)..];
        let [key, value, grad_key, grad_value] =
            [&self.key, &self.value, &self.grad_key, &self.grad_value]
                .map(|heads| heads.matrix(batch, kv_head));
        for (head, means) in heads.clone().zip(room.means.chunks_exact_mut(seq_q)) {
            // SAFETY: as promised.
            unsafe { self.begin([batch, head], means) };
        }
        for segment in job.segments() {
            // SAFETY: these are matrices of one head.
            let (keys_by_channel, values_by_channel, keys_by_key) = unsafe {
                (
                    job.by_channel(key, &segment),
                    job.by_channel(value, &segment),
                    job.by_key(key, &segment),
                )
            };
            room.sums.iter_mut().for_each(|sums| sums.fill(0.0));
            let [of_key, of_value] = room.sums.each_mut().map(|sums| Matrix::dense(sums, width));
            let each = heads.clone().zip(statistics.chunks_exact(2 * seq_q));
            for ((head, statistics), means) in each.zip(room.means.chunks_exact(seq_q)) {
                let place = [batch, head];
                let [query, grad, grad_query] = [&self.query, &self.grad, &self.grad_query]
                    .map(|heads| heads.matrix(batch, head));
                for block in job.blocks(&segment) {
                    let size = block.queries.len() * block.keys.len();
                    let probabilities = &mut room.probabilities[..size];
                    let scores = &mut room.scores[..size];
                    // SAFETY: these are matrices of one head.
                    unsafe { job.multiply(&block, query, &keys_by_channel, probabilities) };
                    run(Exponentials {
                        job,
                        block: &block,
                        place,
                        scores: probabilities,
                        statistics: Statistics::Known(&statistics[2 * block.queries.start..]),
                    });
                    // SAFETY: as above.
                    unsafe { job.multiply(&block, grad, &values_by_channel, scores) };
                    job.drop_out(self.draws, &block, place, scores);
                    run(ScoreGradients {
                        probabilities,
                        grad: scores,
                        width: block.keys.len(),
                        means: &means[block.queries.clone()],
                        scale: job.scoring.scale as f32,
                        bias: self.grad_bias.as_ref().map(|bias| {
                            let of_head = bias.matrix(batch, head);
                            of_head.skip(block.queries.start, block.keys.start)
                        }),
                    });
                    job.drop_out(self.draws, &block, place, probabilities);
                    // SAFETY: as promised.
                    unsafe {
                        job.add_by_key(&block, probabilities, grad, of_value);
                        job.add_by_key(&block, scores, query, of_key);
                        job.sum_up(&block, scores, &keys_by_key, grad_query);
                    }
                }
            }
            for (target, sums) in [(grad_key, &room.sums[0]), (grad_value, &room.sums[1])] {
                for (key, sums) in segment.clone().zip(sums.chunks_exact(width)) {
                    let row = target.skip(key, 0).values;
                    // SAFETY: as promised.
                    unsafe { row.copy_from_nonoverlapping(sums.as_ptr(), width) };
                }
            }
        }
    }

    /// Finds the means of a head of queries, and writes the gradients of those that see no keys.
    ///
    /// # Safety
    ///
    /// As above.
    unsafe fn begin(&self, [batch, head]: [usize; 2], means: &mut [f32]) {
        let width = self.job.width;
        let of_head = [&self.output, &self.grad].map(|heads| heads.matrix(batch, head));
        for (query, mean) in means.iter_mut().enumerate() {
            // SAFETY: these are rows of tensors that are only read.
            let [output, grad] = of_head.map(|matrix| unsafe {
                std::slice::from_raw_parts(matrix.skip(query, 0).values, width)
            });
            *mean = run(Dot(output, grad));
        }
        for query in self.job.blind() {
            let row = self.grad_query.matrix(batch, head).skip(query, 0);
            // SAFETY: as promised.
            unsafe { row.values.write_bytes(0, width) };
        }
    }
}
