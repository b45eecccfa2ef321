//! The output and the log-sum-exps: each workgroup owns some queries of a head and passes over the keys once.

use burn::backend::{TensorMetadata, tensor::FloatTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl;
use burn_cubecl::{CubeBackend, kernel::untile, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::workgroup::{element, empty};
use super::tile::{
    EACH, Four, Operands, Tiling, accumulate, multiply, rows_of, scale_rows, share, store, zeros,
};
use super::{HIDDEN, Positions, Variant, bias_or, end_key, first_key, is_causal, score, window};
use crate::{ScoreBias, Scoring};

/// Sums are as the largest score so far has them, and made smaller when a larger one comes.
#[cube(launch_unchecked)]
fn forward_kernel<F: Float>(
    query: &Tensor<F>,
    key: &Tensor<F>,
    value: &Tensor<F>,
    bias: &Tensor<F>,
    output: &mut [F],
    log_sums: &mut [f32],
    scale: f32,
    window: usize,
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

    let mut operands = Operands::new(tiling);
    let mut weights = Shared::<[Four]>::new_slice(comptime!(tiling.fours()));
    let mut parts = Shared::<[f32]>::new_slice(comptime!(tiling.parts()));
    let mut part = Array::<f32>::new(comptime!(EACH * EACH));
    let mut largest = Array::<f32>::new(EACH);
    let mut total = Array::<f32>::new(EACH);
    let mut shrunk = Array::<f32>::new(EACH);
    let mut sums = zeros(tiling);
    #[unroll]
    for i in 0..EACH {
        largest[i] = HIDDEN;
        total[i] = 0.0f32;
    }

    let end = end_key(&at, first + tiling.rows(), variant.is_causal);
    let begin = first_key(&at, first, variant.is_causal);
    for first_key in range_stepped(begin, end, tiling.rows()) {
        let keys = rows_of(key, batch, kv_head, first_key);
        multiply(
            query,
            &queries,
            key,
            &keys,
            &mut operands,
            &mut part,
            tiling,
        );
        #[unroll]
        for i in 0..EACH {
            let row = UNIT_POS_Y as usize + comptime!(i * tiling.side);
            let mut of_unit = HIDDEN.runtime();
            #[unroll]
            for j in 0..EACH {
                let column = UNIT_POS_X as usize + comptime!(j * tiling.side);
                let index = comptime!(i * EACH + j);
                let product = part[index] * scale;
                part[index] = score(product, bias, &at, first + row, first_key + column, variant);
                of_unit = of_unit.max(part[index]);
            }
            parts[row * tiling.side + UNIT_POS_X as usize] = of_unit;
        }
        sync_cube();
        #[unroll]
        for i in 0..EACH {
            let row = UNIT_POS_Y as usize + comptime!(i * tiling.side);
            let mut now = largest[i];
            for unit in 0..tiling.side {
                now = now.max(parts[row * tiling.side + unit]);
            }
            shrunk[i] = (largest[i] - now).exp();
            largest[i] = now;
            total[i] *= shrunk[i];
            #[unroll]
            for j in 0..EACH {
                let index = comptime!(i * EACH + j);
                part[index] = (part[index] - now).exp();
                total[i] += part[index];
            }
        }
        share(&part, &mut weights, tiling);
        scale_rows(&mut sums, &shrunk, tiling);
        let values = rows_of(value, batch, kv_head, first_key);
        accumulate(&weights, value, &values, &mut operands, &mut sums, tiling);
    }

    // Each unit has the sums of its own columns.
    #[unroll]
    for i in 0..EACH {
        let row = UNIT_POS_Y as usize + comptime!(i * tiling.side);
        parts[row * tiling.side + UNIT_POS_X as usize] = total[i];
    }
    sync_cube();
    let rows_before = (batch * n_heads + head) * at.seq_q;
    #[unroll]
    for i in 0..EACH {
        let row = UNIT_POS_Y as usize + comptime!(i * tiling.side);
        let mut whole = 0.0f32;
        for unit in 0..tiling.side {
            whole += parts[row * tiling.side + unit];
        }
        shrunk[i] = 1.0f32 / whole;
        if UNIT_POS_X == 0 && first + row < at.seq_q {
            log_sums[rows_before + first + row] = largest[i] + whole.ln();
        }
    }
    scale_rows(&mut sums, &shrunk, tiling);
    store(
        &sums,
        output,
        rows_before + first,
        rows_before + at.seq_q,
        tiling,
    );
}

/// Returns the output and the log-sum-exp of each query, `[batch, n_heads, seq_q]`.
pub(crate) fn forward(
    query: FloatTensor<CubeBackend>,
    key: FloatTensor<CubeBackend>,
    value: FloatTensor<CubeBackend>,
    bias: ScoreBias<CubeBackend>,
    scoring: Scoring,
) -> (CubeTensor, CubeTensor) {
    let [query, key, value] = [query, key, value].map(untile);
    let ([batch, n_heads, seq_q, head_dim], [_, _, seq_k, _]) =
        (query.shape().dims(), key.shape().dims());
    let output = empty(&query, query.shape(), query.dtype);
    let log_sums = empty(&query, Shape::new([batch, n_heads, seq_q]), DType::F32);
    if batch * n_heads * seq_q == 0 {
        return (output, log_sums);
    }
    let (client, element) = (query.client.clone(), element(&query));
    let tiling =
        Tiling::new(&client, head_dim, seq_q).expect("it was asked whether it is possible");
    let variant = Variant {
        tiling,
        is_causal: is_causal(scoring, seq_q, seq_k),
        has_bias: !matches!(bias, ScoreBias::None),
    };
    let bias = bias_or(bias, &query);
    let tiles = seq_q.div_ceil(tiling.rows());
    // SAFETY: rows, keys and channels beyond the last are neither read nor written, which is asked at each.
    unsafe {
        forward_kernel::launch_unchecked(
            &client,
            CubeCount::Static(tiles as u32, n_heads as u32, batch as u32),
            tiling.dim(),
            query.into_tensor_arg(),
            key.into_tensor_arg(),
            value.into_tensor_arg(),
            bias.into_tensor_arg(),
            output.clone().into_buffer_arg(),
            log_sums.clone().into_buffer_arg(),
            scoring.scale as f32,
            window(scoring.mask, seq_k),
            variant,
            element,
        );
    }
    (output, log_sums)
}
