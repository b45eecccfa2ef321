//! Kernels for the GPU (wgpu, Vulkan, Metal, CUDA, ROCm), written once in CubeCL.
//!
//! They read and write floats of 32 or 16 bits and compute in 32. What has no kernel takes the composed forms, whose
//! chains of elementwise operations Burn's Fusion makes into kernels: that is why it is decided here, above Fusion.
//! Activations have none, because such a chain holds what is before and behind them too: a kernel of their own took longer.

mod attention;
mod kernels;
mod likelihood;
mod norm;
mod workgroup;

use burn::backend::{
    TensorMetadata,
    ops::FloatTensorOps,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, FloatDType, Shape};
use burn_cubecl::Cube;
use kernels::Kernels;

use crate::attention::{composed_backward, composed_forward, sum_to};
use crate::{Affine, NormKind, ScoreBias, Scoring, TransformerOps};

/// Whether kernels read these tensors: floats of one type, of 32 or 16 bits.
fn are_read<const N: usize>(tensors: [&FloatTensor<Cube>; N]) -> bool {
    let dtype = tensors[0].dtype();
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
        && tensors.iter().all(|tensor| tensor.dtype() == dtype)
}

/// 32-bit floats to the type that a gradient should have.
fn cast(tensor: FloatTensor<Cube>, dtype: DType) -> FloatTensor<Cube> {
    match dtype {
        DType::F16 => Cube::float_cast(tensor, FloatDType::F16),
        DType::BF16 => Cube::float_cast(tensor, FloatDType::BF16),
        _ => tensor,
    }
}

/// The sums over parts `[parts, width]` to those over all, `[width]`.
fn sum_parts(parts: FloatTensor<Cube>, dtype: DType) -> FloatTensor<Cube> {
    let [_, width] = parts.shape().dims();
    let sums = Cube::float_reshape(Cube::float_sum_dim(parts, 0), Shape::new([width]));
    cast(sums, dtype)
}

/// Whether attention has kernels for these heads: both halves of a pair ask the same.
fn attends(
    query: &FloatTensor<Cube>,
    key: &FloatTensor<Cube>,
    bias: &ScoreBias<Cube>,
    scoring: Scoring,
) -> bool {
    let ([_, _, _, head_dim], [_, _, seq_k, _]) = (query.shape().dims(), key.shape().dims());
    let are_read = match bias {
        ScoreBias::None => are_read([query, key]),
        ScoreBias::Added(bias) | ScoreBias::Learned(bias) => are_read([query, key, bias]),
    };
    are_read
        && scoring.dropout == 0.0
        && seq_k > 0
        && attention::is_possible(&query.device().client(), head_dim)
}

impl TransformerOps for Cube {
    fn masked_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: ScoreBias<Self>,
        scoring: Scoring,
    ) -> FloatTensor<Self> {
        let [_, _, seq_q, _] = query.shape().dims();
        // One query would leave most of a tile empty.
        let forward = match seq_q {
            0..=1 => composed_forward::<Self>,
            _ => Self::masked_attention_forward,
        };
        forward(query, key, value, bias, scoring).0
    }

    fn masked_attention_forward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: ScoreBias<Self>,
        scoring: Scoring,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let forward = match attends(&query, &key, &bias, scoring) {
            true => Self::attention_forward,
            false => composed_forward::<Self>,
        };
        forward(query, key, value, bias, scoring)
    }

    fn masked_attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: ScoreBias<Self>,
        output: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        scoring: Scoring,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        if !attends(&query, &key, &bias, scoring) {
            return composed_backward::<Self>(query, key, value, bias, saved, grad, scoring);
        }
        // Fusion makes one kernel of this.
        let [output, of_output] =
            [output, grad.clone()].map(|tensor| Self::float_cast(tensor, FloatDType::F32));
        let row_sums = Self::float_sum_dim(Self::float_mul(output, of_output), 3);
        let (query, key, value, of_scores) = Self::attention_backward(
            query,
            key,
            value,
            bias.clone(),
            saved,
            row_sums,
            grad,
            scoring,
        );
        let of_bias = match bias {
            ScoreBias::Learned(bias) => {
                cast(sum_to::<Self>(of_scores, bias.shape().dims()), bias.dtype())
            }
            // Nobody reads it.
            ScoreBias::None | ScoreBias::Added(_) => of_scores,
        };
        (query, key, value, of_bias)
    }

    fn class_losses_forward(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        smoothing: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        match are_read([&logits]) {
            true => Self::losses_forward(logits, classes, smoothing),
            false => crate::likelihood::composed_forward::<Self>(logits, classes, smoothing),
        }
    }

    fn class_losses_backward(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        saved: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        smoothing: f64,
    ) -> FloatTensor<Self> {
        let backward = match are_read([&logits]) {
            true => Self::losses_backward,
            false => crate::likelihood::composed_backward::<Self>,
        };
        backward(logits, classes, saved, grad, smoothing)
    }

    fn affine_normalize(
        input: FloatTensor<Self>,
        affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        Self::affine_normalize_forward(input, affine, kind, epsilon).0
    }

    fn affine_normalize_forward(
        input: FloatTensor<Self>,
        affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if !are_read([&input]) {
            return crate::norm::composed_forward::<Self>(input, affine, kind, epsilon);
        }
        let (output, statistics) = Self::norm_forward(input.clone(), affine, kind, epsilon);
        (output, input, statistics)
    }

    fn affine_normalize_backward(
        saved: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kind: NormKind,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if !are_read([&saved]) {
            return crate::norm::composed_backward::<Self>(saved, statistics, weight, grad, kind);
        }
        let dtype = weight.dtype();
        let (input, weight, bias) = Self::norm_backward(saved, statistics, weight, grad, kind);
        (input, sum_parts(weight, dtype), sum_parts(bias, dtype))
    }
}
