//! Attention whose scores become probabilities in one pass over each row, and likewise their gradients.

use burn::backend::{ops::FloatTensorOps, tensor::FloatTensor};
use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};
use macerator::Simd;
use rayon::prelude::*;

use super::simd::{Kernel, chunk_length, contiguous, exp, largest, mul_add, owned, run, sum};
use crate::{
    ScoreBias, Scoring,
    attention::{fold_groups, sum_to},
};

/// Rows of products of queries with all keys, which become probabilities.
struct Softmax<'a> {
    rows: &'a mut [f32],
    /// The number of the first row among those of all heads and sequences.
    first: usize,
    /// Heads, queries and keys.
    sizes: [usize; 3],
    scoring: Scoring,
    bias: Option<&'a Bias>,
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let [n_heads, seq_q, seq_k] = self.sizes;
        let scale = self.scoring.scale as f32;
        for (number, row) in (self.first..).zip(self.rows.chunks_exact_mut(seq_k)) {
            let query = number % seq_q;
            let visible = self.scoring.mask.visible(query, seq_q, seq_k);
            row[..visible.start].fill(0.0);
            row[visible.end..].fill(0.0);
            let row = &mut row[visible.clone()];
            match self.bias {
                None => row.iter_mut().for_each(|score| *score *= scale),
                Some(bias) => {
                    let head = number / seq_q;
                    let bias = bias.row(head / n_heads, head % n_heads, query);
                    for (score, &bias) in row.iter_mut().zip(&bias[visible]) {
                        *score = mul_add::<S>(*score, scale, bias);
                    }
                }
            }
            let max = largest(row);
            row.iter_mut()
                .for_each(|score| *score = exp::<S>(*score - max));
            let [total] = sum::<1>(row, row, |p, _| [p]);
            let share = 1.0 / total;
            row.iter_mut().for_each(|score| *score *= share);
        }
    }
}

/// Rows of probabilities and of their gradients, which become those of the scores.
struct SoftmaxGradient<'a> {
    probabilities: &'a [f32],
    grad: &'a mut [f32],
    width: usize,
    scale: f32,
}

impl Kernel for SoftmaxGradient<'_> {
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

/// Returns the output `[batch, n_heads, seq_q, head_dim]` and the attention probabilities
/// `[batch, n_kv_heads, group · seq_q, seq_k]`.
pub(super) fn forward(
    query: FlexTensor,
    key: FlexTensor,
    value: FlexTensor,
    bias: ScoreBias<Flex>,
    scoring: Scoring,
) -> (FlexTensor, FlexTensor) {
    let shape = query.layout().shape().clone();
    let [_, n_heads, seq_q, _] = shape.dims();
    let [_, n_kv_heads, seq_k, _] = key.layout().shape().dims();
    let query = fold_groups::<Flex>(query, n_kv_heads);
    let mut scores = owned(Flex::float_matmul(query, Flex::float_transpose(key)));
    let bias = match bias {
        ScoreBias::None => None,
        ScoreBias::Added(bias) => Some(Bias::new(bias)),
    };
    let values = scores.storage_mut::<f32>();
    let length = chunk_length(values.len(), seq_k);
    let chunks = values.par_chunks_mut(length).enumerate();
    chunks.for_each(|(number, rows)| {
        run(Softmax {
            rows,
            first: number * (length / seq_k),
            sizes: [n_heads, seq_q, seq_k],
            scoring,
            bias: bias.as_ref(),
        });
    });
    let output = Flex::float_matmul(scores.clone(), value);
    (Flex::float_reshape(output, shape), scores)
}

/// What is added to scores, one row of which serves several queries where it is broadcast.
struct Bias {
    tensor: FlexTensor,
    start: usize,
    /// From one to the next along batch, heads and queries.
    strides: [usize; 3],
}

impl Bias {
    fn new(bias: FlexTensor) -> Self {
        let (tensor, range) = contiguous(bias);
        let [batch, heads, queries, keys] = tensor.layout().shape().dims();
        let stride = |size: usize, stride: usize| if size == 1 { 0 } else { stride };
        Self {
            strides: [
                stride(batch, heads * queries * keys),
                stride(heads, queries * keys),
                stride(queries, keys),
            ],
            start: range.start,
            tensor,
        }
    }

    fn row(&self, batch: usize, head: usize, query: usize) -> &[f32] {
        let [of_batch, of_head, of_query] = self.strides;
        let start = self.start + batch * of_batch + head * of_head + query * of_query;
        let [_, _, _, keys] = self.tensor.layout().shape().dims();
        &self.tensor.storage::<f32>()[start..start + keys]
    }
}

/// The gradients of query, key, value and bias, as [`composed_backward`](crate::attention::composed_backward) has
/// them.
pub(super) fn backward(
    query: FlexTensor,
    key: FlexTensor,
    value: FlexTensor,
    bias: ScoreBias<Flex>,
    probabilities: FlexTensor,
    grad: FlexTensor,
    scoring: Scoring,
) -> (FlexTensor, FlexTensor, FlexTensor, FloatTensor<Flex>) {
    let shape = query.layout().shape().clone();
    let [batch, n_heads, seq_q, _] = shape.dims();
    let [_, n_kv_heads, seq_k, _] = key.layout().shape().dims();
    let query = fold_groups::<Flex>(query, n_kv_heads);
    let grad = fold_groups::<Flex>(grad, n_kv_heads);
    let grad_value = Flex::float_matmul(Flex::float_transpose(probabilities.clone()), grad.clone());
    let mut scores = owned(Flex::float_matmul(grad, Flex::float_transpose(value)));
    let (probabilities, range) = contiguous(probabilities);
    // The bias is added after the scale.
    let scale = match bias {
        ScoreBias::None => scoring.scale,
        ScoreBias::Added(_) => 1.0,
    };
    let length = chunk_length(range.len(), seq_k);
    let probabilities = probabilities.storage::<f32>()[range].par_chunks(length);
    let chunks = probabilities.zip(scores.storage_mut::<f32>().par_chunks_mut(length));
    chunks.for_each(|(probabilities, grad)| {
        run(SoftmaxGradient {
            probabilities,
            grad,
            width: seq_k.max(1),
            scale: scale as f32,
        });
    });
    let (scores, grad_bias) = match bias {
        // Nobody reads it.
        ScoreBias::None => (scores, grad_value.clone()),
        ScoreBias::Added(bias) => {
            let by_head = Shape::new([batch, n_heads, seq_q, seq_k]);
            let by_head = Flex::float_reshape(scores.clone(), by_head);
            let grad_bias = sum_to::<Flex>(by_head, bias.layout().shape().dims());
            let scores = match scoring.scale {
                1.0 => scores,
                scale => Flex::float_mul_scalar(scores, scale.into()),
            };
            (scores, grad_bias)
        }
    };
    let grad_query = Flex::float_matmul(scores.clone(), key);
    let grad_key = Flex::float_matmul(Flex::float_transpose(scores), query);
    let grad_query = Flex::float_reshape(grad_query, shape);
    (grad_query, grad_key, grad_value, grad_bias)
}
