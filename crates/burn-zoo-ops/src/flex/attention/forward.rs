//! The output of attention.

use std::ops::Range;

use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::{BLOCK, Exponentials, Heads, Job, Statistics, by_position};
use crate::flex::dropout::{Draws, draw_seed};
use crate::flex::product::Matrix;
use crate::flex::simd::{run, tensor};
use crate::{ScoreBias, Scoring};

/// Returns the output `[batch, n_heads, seq_q, head_dim]`, and for its gradient the [`Statistics`] of each query, behind
/// them the seed of what is dropped, if anything is: `[2 · batch · n_heads · seq_q (+ 2)]`.
pub(in crate::flex) fn forward(
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
    let sizes = [batch, n_heads, seq_q, width];
    let mut values = Vec::new();
    let mut statistics = vec![0.0; job.n_statistics()];
    let seed = (scoring.dropout > 0.0).then(draw_seed);
    let draws = seed
        .as_ref()
        .map(|seed| Draws::new(seed.storage(), scoring.dropout));
    let output = Heads::new(&mut values, sizes);
    let [query, key, value] = [&query, &key, &value].map(Heads::of);
    let heads = statistics.par_chunks_mut((2 * seq_q).max(1)).enumerate();
    heads.for_each_init(
        || vec![0.0; job.block_size()],
        |scores, (number, statistics)| {
            let place @ [batch, head] = [number / n_heads, number % n_heads];
            let [query, output] = [&query, &output].map(|heads| heads.matrix(batch, head));
            let [key, value] = [&key, &value].map(|heads| heads.matrix(batch, head / job.group()));
            for query in job.blind() {
                // SAFETY: no other thread has this head.
                unsafe { output.skip(query, 0).values.write_bytes(0, width) };
            }
            for segment in job.segments() {
                // SAFETY: these are matrices of one head.
                let (key, value) =
                    unsafe { (job.by_channel(key, &segment), job.by_key(value, &segment)) };
                for block in job.blocks(&segment) {
                    let scores = &mut scores[..block.queries.len() * block.keys.len()];
                    let statistics =
                        &mut statistics[2 * block.queries.start..2 * block.queries.end];
                    let mut decays = [0.0; BLOCK];
                    // SAFETY: these are matrices of one head.
                    unsafe { job.multiply(&block, query, &key, scores) };
                    run(Exponentials {
                        job: &job,
                        block: &block,
                        place,
                        scores,
                        statistics: Statistics::Running {
                            statistics,
                            decays: &mut decays,
                        },
                    });
                    job.drop_out(draws, &block, place, scores);
                    // SAFETY: no other thread has this head.
                    let rows = || unsafe { rows(output, block.queries.clone(), width) };
                    if !block.is_first {
                        rows()
                            .zip(&decays)
                            .for_each(|(row, &decay)| scale(row, decay));
                    }
                    // SAFETY: these are matrices of one head, which no other thread has.
                    unsafe { job.sum_up(&block, scores, &value, output) };
                    if block.is_last {
                        for (row, statistics) in rows().zip(statistics.chunks_exact_mut(2)) {
                            statistics[1] = 1.0 / statistics[1];
                            scale(row, statistics[1]);
                        }
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
    // SAFETY: each query sees keys, and has been written with the last of them, or is blind.
    (unsafe { by_position(values, sizes) }, saved)
}

fn scale(row: &mut [f32], factor: f32) {
    row.iter_mut().for_each(|value| *value *= factor);
}

/// Rows of a head.
///
/// # Safety
///
/// The matrix has these rows of `width`, written before, and nobody else uses them meanwhile.
unsafe fn rows<'a>(
    matrix: Matrix,
    range: Range<usize>,
    width: usize,
) -> impl Iterator<Item = &'a mut [f32]> {
    range.map(move |row| {
        // SAFETY: as promised.
        unsafe { std::slice::from_raw_parts_mut(matrix.skip(row, 0).values, width) }
    })
}
