//! Attention composed from `Backend` operations: the form that every backend can run.

use burn::backend::{
    Backend, TensorMetadata,
    tensor::{Device, FloatTensor},
};
use burn::tensor::{DType, Shape, TensorData};

/// Which keys a query may attend to.
///
/// A mask is a description, not a tensor: a fused kernel skips hidden keys without reading
/// `[seq_q, seq_k]` values from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionMask {
    /// Every key.
    Full,
    /// No key after the query's own position. The queries are the last `seq_q` of the `seq_k`
    /// positions, so that a cached prefix is visible to all of them.
    Causal,
}

impl AttentionMask {
    /// Whether the mask hides nothing for these lengths, as when one new token is decoded.
    pub(crate) fn is_trivial(self, seq_q: usize) -> bool {
        match self {
            Self::Full => true,
            Self::Causal => seq_q <= 1,
        }
    }
}

pub(crate) fn check_shapes(
    query: [usize; 4],
    key: [usize; 4],
    value: [usize; 4],
    mask: AttentionMask,
) {
    let [batch, n_heads, seq_q, head_dim] = query;
    let [_, n_kv_heads, seq_k, _] = key;
    assert_eq!(
        key, value,
        "attention: key and value must have the same shape"
    );
    assert_eq!(
        [batch, head_dim],
        [key[0], key[3]],
        "attention: query {query:?} and key {key:?} must agree in batch and head_dim"
    );
    assert!(
        n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
        "attention: n_kv_heads ({n_kv_heads}) must divide n_heads ({n_heads})"
    );
    assert!(
        mask == AttentionMask::Full || seq_q <= seq_k,
        "attention: a causal mask needs seq_q ({seq_q}) ≤ seq_k ({seq_k})"
    );
}

/// Folds the query heads that share a key/value head into the rows of one matrix:
/// `[batch, n_heads, seq, head_dim] → [batch, n_kv_heads, group · seq, head_dim]`.
fn fold_groups<B: Backend>(tensor: FloatTensor<B>, n_kv_heads: usize) -> FloatTensor<B> {
    let [batch, n_heads, seq, head_dim] = tensor.shape().dims();
    if n_heads == n_kv_heads {
        return tensor;
    }
    let rows = n_heads / n_kv_heads * seq;
    B::float_reshape(tensor, Shape::new([batch, n_kv_heads, rows, head_dim]))
}

fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// What is added to the scores: zero for visible keys, a large negative number for hidden ones.
/// Finite, so that a shader without infinities computes the same. `[seq_q, seq_k]`, once per query
/// head of a group.
pub(crate) fn causal_bias<B: Backend>(
    group: usize,
    seq_q: usize,
    seq_k: usize,
    device: &Device<B>,
    dtype: DType,
) -> FloatTensor<B> {
    let hidden = match dtype {
        DType::F16 => -6.0e4,
        _ => -1.0e30f32,
    };
    let past = seq_k - seq_q;
    let mut values = vec![0.0f32; group * seq_q * seq_k];
    for (row, scores) in values.chunks_mut(seq_k).enumerate() {
        scores[past + row % seq_q + 1..].fill(hidden);
    }
    let data = TensorData::new(values, [group * seq_q, seq_k]).convert_dtype(dtype);
    B::float_from_data(data, device)
}

/// Returns the output `[batch, n_heads, seq_q, head_dim]` and the attention probabilities
/// `[batch, n_kv_heads, group · seq_q, seq_k]`.
pub(crate) fn composed_forward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    mask: AttentionMask,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let shape = query.shape();
    let [_, n_heads, seq_q, head_dim] = shape.dims();
    let [_, n_kv_heads, seq_k, _] = key.shape().dims();

    let query = B::float_mul_scalar(query, scale(head_dim).into());
    let query = fold_groups::<B>(query, n_kv_heads);
    let mut scores = B::float_matmul(query, B::float_transpose(key));
    if !mask.is_trivial(seq_q) {
        let group = n_heads / n_kv_heads;
        let bias = causal_bias::<B>(group, seq_q, seq_k, &scores.device(), scores.dtype());
        let bias = B::float_reshape(bias, Shape::new([1, 1, group * seq_q, seq_k]));
        scores = B::float_add(scores, bias);
    }
    let probabilities = B::softmax(scores, 3);
    let output = B::float_matmul(probabilities.clone(), value);
    (B::float_reshape(output, shape), probabilities)
}

/// With `P` the probabilities and `dO` the gradient of the output (Dao et al. 2022,
/// arXiv:2205.14135, appendix B.2): `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = P ∘ (dP − rowsum(dP ∘ P))`,
/// `dQ = dS K / √d`, `dK = dSᵀ Q / √d`. Hidden keys have `P = 0`, so the mask is not needed again.
pub(crate) fn composed_backward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    probabilities: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let shape = query.shape();
    let [_, _, _, head_dim] = shape.dims();
    let [_, n_kv_heads, _, _] = key.shape().dims();
    let query = fold_groups::<B>(query, n_kv_heads);
    let grad = fold_groups::<B>(grad, n_kv_heads);

    let grad_value = B::float_matmul(B::float_transpose(probabilities.clone()), grad.clone());
    let grad_probabilities = B::float_matmul(grad, B::float_transpose(value));
    let weighted = B::float_mul(grad_probabilities, probabilities.clone());
    let row_sum = B::float_sum_dim(weighted.clone(), 3);
    let grad_scores = B::float_sub(weighted, B::float_mul(probabilities, row_sum));
    let grad_scores = B::float_mul_scalar(grad_scores, scale(head_dim).into());

    let grad_query = B::float_matmul(grad_scores.clone(), key);
    let grad_key = B::float_matmul(B::float_transpose(grad_scores), query);
    (B::float_reshape(grad_query, shape), grad_key, grad_value)
}
