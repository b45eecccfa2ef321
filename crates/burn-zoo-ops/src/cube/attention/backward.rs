//! The gradients. With `P` the probabilities, made again from the log-sum-exps, `dO` the gradient of the output `O` and
//! `D = rowsum(dO ∘ O)`: `dV = Pᵀ dO`, `dS = P ∘ (dO Vᵀ − D)`, `dQ = scale · dS K`, `dK = scale · dSᵀ Q`. One kernel owns
//! queries and passes over keys, the other owns keys and passes over queries, so that nothing is added by two workgroups.

use burn::backend::{TensorMetadata, tensor::FloatTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl;
use burn_cubecl::{
    CubeBackend,
    kernel::{into_contiguous, untile},
    ops::numeric::zeros as zero_tensor,
    tensor::CubeTensor,
};
use cubecl::prelude::*;

use super::super::workgroup::{element, empty};
use super::tile::{
    EACH, Four, Operands, Tiling, accumulate, multiply, rows_of, scale_rows, share, store, zeros,
};
use super::{
    Positions, Variant, bias_or, end_key, end_query, first_key, first_query, is_causal, score,
    window,
};
use crate::{ScoreBias, Scoring};

#[cube]
fn write_where(is_there: bool, output: &mut [f32], index: usize, value: f32) {
    if is_there {
        output[index] = value;
    }
}

/// Makes `dQ`, and where they are learned from, `dS`.
#[cube(launch_unchecked)]
fn query_kernel<F: Float>(
    query: &Tensor<F>,
    key: &Tensor<F>,
    value: &Tensor<F>,
    bias: &Tensor<F>,
    grad: &Tensor<F>,
    log_sums: &[f32],
    row_sums: &[f32],
    grad_query: &mut [F],
    grad_scores: &mut [f32],
    scale: f32,
    window: usize,
    #[comptime] is_learned: bool,
    #[comptime] variant: Variant,
    #[define(F)] _element: ElemType,
) {
    let tiling = comptime!(variant.tiling);
    let (batch, head) = (CUBE_POS_Z as usize, CUBE_POS_Y as usize);
    let n_heads = query.shape(1);
    let kv_head = head / (n_heads / key.shape(1));
    let at = Positions {
        batch,
        head,
        seq_q: query.shape(2),
        seq_k: key.shape(2),
        window,
    };
    let first = CUBE_POS_X as usize * tiling.rows();
    let queries = rows_of(query, batch, head, first);
    let grads = rows_of(grad, batch, head, first);
    let rows_before = (batch * n_heads + head) * at.seq_q;

    let mut operands = Operands::new(tiling);
    let mut weights = Shared::<[Four]>::new_slice(comptime!(tiling.fours()));
    let mut part = Array::<f32>::new(comptime!(EACH * EACH));
    let mut change = Array::<f32>::new(comptime!(EACH * EACH));
    let mut log_sum = Array::<f32>::new(EACH);
    let mut row_sum = Array::<f32>::new(EACH);
    let mut scales = Array::<f32>::new(EACH);
    let mut sums = zeros(tiling);
    #[unroll]
    for i in 0..EACH {
        let row = first + UNIT_POS_Y as usize + comptime!(i * tiling.side);
        log_sum[i] = 0.0f32;
        row_sum[i] = 0.0f32;
        scales[i] = scale;
        if row < at.seq_q {
            log_sum[i] = log_sums[rows_before + row];
            row_sum[i] = row_sums[rows_before + row];
        }
    }

    let end = end_key(&at, first + tiling.rows(), variant.is_causal);
    let begin = first_key(&at, first, variant.is_causal);
    for first_key in range_stepped(begin, end, tiling.rows()) {
        let keys = rows_of(key, batch, kv_head, first_key);
        let values = rows_of(value, batch, kv_head, first_key);
        multiply(
            query,
            &queries,
            key,
            &keys,
            &mut operands,
            &mut part,
            tiling,
        );
        multiply(
            grad,
            &grads,
            value,
            &values,
            &mut operands,
            &mut change,
            tiling,
        );
        #[unroll]
        for i in 0..EACH {
            let row = first + UNIT_POS_Y as usize + comptime!(i * tiling.side);
            #[unroll]
            for j in 0..EACH {
                let column = first_key + UNIT_POS_X as usize + comptime!(j * tiling.side);
                let index = comptime!(i * EACH + j);
                let score = score(part[index] * scale, bias, &at, row, column, variant);
                part[index] = (score - log_sum[i]).exp() * (change[index] - row_sum[i]);
                if comptime!(is_learned) {
                    let is_there = row < at.seq_q && column < at.seq_k;
                    let place = (rows_before + row) * at.seq_k + column;
                    write_where(is_there, grad_scores, place, part[index]);
                }
            }
        }
        share(&part, &mut weights, tiling);
        accumulate(&weights, key, &keys, &mut operands, &mut sums, tiling);
    }
    scale_rows(&mut sums, &scales, tiling);
    store(
        &sums,
        grad_query,
        rows_before + first,
        rows_before + at.seq_q,
        tiling,
    );
}

/// Makes `dK` and `dV`, of tiles whose rows are keys and whose columns are queries.
#[cube(launch_unchecked)]
fn key_kernel<F: Float>(
    query: &Tensor<F>,
    key: &Tensor<F>,
    value: &Tensor<F>,
    bias: &Tensor<F>,
    grad: &Tensor<F>,
    log_sums: &[f32],
    row_sums: &[f32],
    grad_key: &mut [F],
    grad_value: &mut [F],
    scale: f32,
    window: usize,
    #[comptime] variant: Variant,
    #[define(F)] _element: ElemType,
) {
    let tiling = comptime!(variant.tiling);
    let (batch, kv_head) = (CUBE_POS_Z as usize, CUBE_POS_Y as usize);
    let (n_heads, n_kv_heads) = (query.shape(1), key.shape(1));
    let group = n_heads / n_kv_heads;
    let (seq_q, seq_k) = (query.shape(2), key.shape(2));
    let first = CUBE_POS_X as usize * tiling.rows();
    let keys = rows_of(key, batch, kv_head, first);
    let values = rows_of(value, batch, kv_head, first);

    let mut operands = Operands::new(tiling);
    let mut weights = Shared::<[Four]>::new_slice(comptime!(tiling.fours()));
    let mut part = Array::<f32>::new(comptime!(EACH * EACH));
    let mut change = Array::<f32>::new(comptime!(EACH * EACH));
    let mut scales = Array::<f32>::new(EACH);
    let mut key_sums = zeros(tiling);
    let mut value_sums = zeros(tiling);
    #[unroll]
    for i in 0..EACH {
        scales[i] = scale;
    }

    for head in kv_head * group..(kv_head + 1) * group {
        let at = Positions {
            batch,
            head,
            seq_q,
            seq_k,
            window,
        };
        let rows_before = (batch * n_heads + head) * seq_q;
        let end = end_query(&at, first + tiling.rows(), variant.is_causal);
        let begin = first_query(&at, first, variant.is_causal);
        for first_query in range_stepped(begin, end, tiling.rows()) {
            let queries = rows_of(query, batch, head, first_query);
            let grads = rows_of(grad, batch, head, first_query);
            multiply(
                key,
                &keys,
                query,
                &queries,
                &mut operands,
                &mut part,
                tiling,
            );
            #[unroll]
            for j in 0..EACH {
                let column = first_query + UNIT_POS_X as usize + comptime!(j * tiling.side);
                let mut log_sum = 0.0f32;
                if column < seq_q {
                    log_sum = log_sums[rows_before + column];
                }
                #[unroll]
                for i in 0..EACH {
                    let row = first + UNIT_POS_Y as usize + comptime!(i * tiling.side);
                    let index = comptime!(i * EACH + j);
                    let score = score(part[index] * scale, bias, &at, column, row, variant);
                    part[index] = (score - log_sum).exp();
                }
            }
            share(&part, &mut weights, tiling);
            accumulate(
                &weights,
                grad,
                &grads,
                &mut operands,
                &mut value_sums,
                tiling,
            );
            multiply(
                value,
                &values,
                grad,
                &grads,
                &mut operands,
                &mut change,
                tiling,
            );
            #[unroll]
            for j in 0..EACH {
                let column = first_query + UNIT_POS_X as usize + comptime!(j * tiling.side);
                let mut row_sum = 0.0f32;
                if column < seq_q {
                    row_sum = row_sums[rows_before + column];
                }
                #[unroll]
                for i in 0..EACH {
                    let index = comptime!(i * EACH + j);
                    part[index] *= change[index] - row_sum;
                }
            }
            share(&part, &mut weights, tiling);
            accumulate(
                &weights,
                query,
                &queries,
                &mut operands,
                &mut key_sums,
                tiling,
            );
        }
    }
    scale_rows(&mut key_sums, &scales, tiling);
    let rows_before = (batch * n_kv_heads + kv_head) * seq_k;
    store(
        &key_sums,
        grad_key,
        rows_before + first,
        rows_before + seq_k,
        tiling,
    );
    store(
        &value_sums,
        grad_value,
        rows_before + first,
        rows_before + seq_k,
        tiling,
    );
}

/// Returns the gradients of query, key, value and, for a learned bias, of the scores `[batch, n_heads, seq_q, seq_k]`.
/// `row_sums` is `D`.
pub(crate) fn backward(
    query: FloatTensor<CubeBackend>,
    key: FloatTensor<CubeBackend>,
    value: FloatTensor<CubeBackend>,
    bias: ScoreBias<CubeBackend>,
    log_sums: FloatTensor<CubeBackend>,
    row_sums: FloatTensor<CubeBackend>,
    grad: FloatTensor<CubeBackend>,
    scoring: Scoring,
) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
    let [query, key, value, grad] = [query, key, value, grad].map(untile);
    let [log_sums, row_sums] = [log_sums, row_sums].map(into_contiguous);
    let ([batch, n_heads, seq_q, head_dim], [_, n_kv_heads, seq_k, _]) =
        (query.shape().dims(), key.shape().dims());
    let (client, element) = (query.client.clone(), element(&query));

    let is_learned = matches!(bias, ScoreBias::Learned(_));
    // Keys that a tile does not visit have zeros.
    let scores = match is_learned {
        true => Shape::new([batch, n_heads, seq_q, seq_k]),
        false => Shape::new([1]),
    };
    let grad_scores = zero_tensor(query.device(), scores, DType::F32);
    let grad_query = empty(&query, query.shape(), query.dtype);
    let [grad_key, grad_value] = [&key, &value].map(|it| empty(it, it.shape(), it.dtype));
    let grads = (
        grad_query.clone(),
        grad_key.clone(),
        grad_value.clone(),
        grad_scores.clone(),
    );
    if batch * n_heads * seq_q == 0 {
        return grads;
    }

    let variant = |seq| {
        let tiling = Tiling::new(&client, head_dim, seq);
        Variant {
            tiling: tiling.expect("it was asked whether it is possible"),
            is_causal: is_causal(scoring, seq_q, seq_k),
            has_bias: !matches!(bias, ScoreBias::None),
        }
    };
    let (of_queries, of_keys) = (variant(seq_q), variant(seq_k));
    let bias = bias_or(bias, &query);
    let window = window(scoring.mask, seq_k);
    let count = |seq: usize, variant: Variant, n_heads: usize| {
        let tiles = seq.div_ceil(variant.tiling.rows());
        CubeCount::Static(tiles as u32, n_heads as u32, batch as u32)
    };
    // SAFETY: rows, keys and channels beyond the last are neither read nor written, which is asked at each.
    unsafe {
        query_kernel::launch_unchecked(
            &client,
            count(seq_q, of_queries, n_heads),
            of_queries.tiling.dim(),
            query.clone().into_tensor_arg(),
            key.clone().into_tensor_arg(),
            value.clone().into_tensor_arg(),
            bias.clone().into_tensor_arg(),
            grad.clone().into_tensor_arg(),
            log_sums.clone().into_buffer_arg(),
            row_sums.clone().into_buffer_arg(),
            grad_query.into_buffer_arg(),
            grad_scores.into_buffer_arg(),
            scoring.scale as f32,
            window,
            is_learned,
            of_queries,
            element,
        );
        key_kernel::launch_unchecked(
            &client,
            count(seq_k, of_keys, n_kv_heads),
            of_keys.tiling.dim(),
            query.into_tensor_arg(),
            key.into_tensor_arg(),
            value.into_tensor_arg(),
            bias.into_tensor_arg(),
            grad.into_tensor_arg(),
            log_sums.into_buffer_arg(),
            row_sums.into_buffer_arg(),
            grad_key.into_buffer_arg(),
            grad_value.into_buffer_arg(),
            scoring.scale as f32,
            window,
            of_keys,
            element,
        );
    }
    grads
}
