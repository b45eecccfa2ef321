//! Attention composed from `Backend` operations: the form that every backend can run.

use std::ops::Range;

use burn::backend::{
    Backend, ExtensionType, TensorMetadata,
    tensor::{Device, FloatTensor},
};
use burn::tensor::{DType, Shape, TensorData};

use crate::TransformerOps;

/// Which keys a query may attend to, as far as it follows from their positions alone.
///
/// A mask is a description, not a tensor: a fused kernel skips hidden keys without reading
/// `[seq_q, seq_k]` values from memory. The queries are the last `seq_q` of the `seq_k` positions,
/// so that a cached prefix is visible to all of them. What depends on the sequence, such as padding,
/// is part of the bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionMask {
    /// Every key.
    Full,
    /// No key after the query's own position.
    Causal,
    /// The query's own position and the `window − 1` before it (Child et al. 2019,
    /// arXiv:1904.10509).
    Banded {
        /// How many keys are visible, at least 1.
        window: usize,
    },
}

impl AttentionMask {
    /// The keys that a query sees, counted among `seq_q` and `seq_k`.
    pub(crate) fn visible(self, query: usize, seq_q: usize, seq_k: usize) -> Range<usize> {
        let end = seq_k - seq_q.min(seq_k) + query + 1;
        match self {
            Self::Full => 0..seq_k,
            Self::Causal => 0..end,
            Self::Banded { window } => end.saturating_sub(window)..end,
        }
    }

    /// Whether the mask hides nothing for these lengths, as when one new token is decoded.
    pub(crate) fn is_trivial(self, seq_q: usize, seq_k: usize) -> bool {
        match self {
            Self::Full => true,
            Self::Causal => seq_q <= 1,
            Self::Banded { window } => seq_q <= 1 && seq_k <= window,
        }
    }
}

/// How products of queries and keys become scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    /// Which keys a query may attend to.
    pub mask: AttentionMask,
    /// What the products are multiplied by.
    pub scale: f64,
    /// The share of the probabilities that is set to zero, the others being larger, as
    /// [`dropout`](crate::dropout()) does. The draws follow from the seed of the device.
    pub dropout: f64,
}

impl Scoring {
    /// The usual scale, 1/√`head_dim` (Vaswani et al. 2017, arXiv:1706.03762), and no dropout.
    pub fn scaled(mask: AttentionMask, head_dim: usize) -> Self {
        Self {
            mask,
            scale: 1.0 / (head_dim as f64).sqrt(),
            dropout: 0.0,
        }
    }
}

/// What is added to the scores besides the mask.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum ScoreBias<B: Backend> {
    /// Nothing.
    None,
    /// `[batch or 1, n_heads or 1, seq_q or 1, seq_k]`.
    Added(FloatTensor<B>),
    /// The same, whose gradient is asked for.
    Learned(FloatTensor<B>),
}

impl<B: Backend> ScoreBias<B> {
    pub(crate) fn tensor(self) -> Option<FloatTensor<B>> {
        match self {
            Self::None => None,
            Self::Added(bias) | Self::Learned(bias) => Some(bias),
        }
    }
}

pub(crate) fn check_shapes(
    query: [usize; 4],
    key: [usize; 4],
    value: [usize; 4],
    bias: Option<[usize; 4]>,
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
    if let Some(bias) = bias {
        let full = [batch, n_heads, seq_q, seq_k];
        let fits = |axis: usize| bias[axis] == full[axis] || (axis < 3 && bias[axis] == 1);
        assert!(
            (0..4).all(fits),
            "attention: a bias of shape {bias:?} does not broadcast to the scores {full:?}"
        );
    }
}

/// Folds the query heads that share a key/value head into the rows of one matrix:
/// `[batch, n_heads, seq, head_dim] → [batch, n_kv_heads, group · seq, head_dim]`.
pub(crate) fn fold_groups<B: Backend>(tensor: FloatTensor<B>, n_kv_heads: usize) -> FloatTensor<B> {
    let [batch, n_heads, seq, head_dim] = tensor.shape().dims();
    if n_heads == n_kv_heads {
        return tensor;
    }
    let rows = n_heads / n_kv_heads * seq;
    B::float_reshape(tensor, Shape::new([batch, n_kv_heads, rows, head_dim]))
}

/// What is added to the scores: zero for visible keys, a large negative number for hidden ones.
/// Finite, so that a shader without infinities computes the same, and small enough that a mask and a
/// padding bias can be added. `[1, 1, seq_q, seq_k]`.
pub(crate) fn mask_bias<B: Backend>(
    mask: AttentionMask,
    seq_q: usize,
    seq_k: usize,
    device: &Device<B>,
    dtype: DType,
) -> FloatTensor<B> {
    let hidden = match dtype {
        DType::F16 => -3.0e4,
        _ => -1.0e30f32,
    };
    let mut values = vec![0.0f32; seq_q * seq_k];
    for (query, scores) in values.chunks_mut(seq_k).enumerate() {
        let visible = mask.visible(query, seq_q, seq_k);
        scores[..visible.start].fill(hidden);
        scores[visible.end..].fill(hidden);
    }
    let data = TensorData::new(values, [1, 1, seq_q, seq_k]).convert_dtype(dtype);
    B::float_from_data(data, device)
}

/// Returns the output `[batch, n_heads, seq_q, head_dim]` and the attention probabilities
/// `[batch, n_kv_heads, group · seq_q, seq_k]`, below zero where they are dropped.
pub(crate) fn composed_forward<B: TransformerOps>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    bias: ScoreBias<B>,
    scoring: Scoring,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let shape = query.shape();
    let [batch, n_heads, seq_q, _] = shape.dims();
    let [_, n_kv_heads, seq_k, _] = key.shape().dims();

    let query = B::float_mul_scalar(query, scoring.scale.into());
    let query = fold_groups::<B>(query, n_kv_heads);
    let mut scores = B::float_matmul(query, B::float_transpose(key));
    let folded = scores.shape();
    let by_head = Shape::new([batch, n_heads, seq_q, seq_k]);
    if !scoring.mask.is_trivial(seq_q, seq_k) {
        let (device, dtype) = (scores.device(), scores.dtype());
        let mask = mask_bias::<B>(scoring.mask, seq_q, seq_k, &device, dtype);
        scores = B::float_add(B::float_reshape(scores, by_head.clone()), mask);
    }
    if let Some(bias) = bias.tensor() {
        scores = B::float_add(B::float_reshape(scores, by_head), bias);
    }
    let probabilities = B::softmax(B::float_reshape(scores, folded), 3);
    let (weights, saved) = match scoring.dropout {
        0.0 => (probabilities.clone(), probabilities),
        share => {
            let kept = B::dropout_draw(probabilities.clone(), share);
            let sign = B::float_sub_scalar(B::float_mul_scalar(kept.clone(), 2.into()), 1.into());
            let left = B::float_mul(probabilities.clone(), kept);
            let weights = B::float_mul_scalar(left, (1.0 / (1.0 - share)).into());
            (weights, B::float_mul(probabilities, sign))
        }
    };
    let output = B::float_matmul(weights, value);
    (B::float_reshape(output, shape), saved)
}

/// With `P` the probabilities, `W` what dropout makes of them and `dO` the gradient of the output (Dao
/// et al. 2022, arXiv:2205.14135, appendix B.2): `dV = Wᵀ dO`, `dW = dO Vᵀ`,
/// `dS = W ∘ dW − P ∘ rowsum(W ∘ dW)`, `dQ = scale · dS K`, `dK = scale · dSᵀ Q`; `dS` is also the
/// gradient of the bias before it was broadcast. Hidden keys have `P = 0`, so the mask is not needed
/// again.
pub(crate) fn composed_backward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    bias: ScoreBias<B>,
    saved: FloatTensor<B>,
    grad: FloatTensor<B>,
    scoring: Scoring,
) -> (
    FloatTensor<B>,
    FloatTensor<B>,
    FloatTensor<B>,
    FloatTensor<B>,
) {
    let (probabilities, weights) = match scoring.dropout {
        0.0 => (saved.clone(), saved),
        share => {
            let probabilities = B::float_abs(saved.clone());
            let kept = B::float_add(saved, probabilities.clone());
            let weights = B::float_mul_scalar(kept, (0.5 / (1.0 - share)).into());
            (probabilities, weights)
        }
    };
    let shape = query.shape();
    let [batch, n_heads, seq_q, _] = shape.dims();
    let [_, n_kv_heads, seq_k, _] = key.shape().dims();
    let query = fold_groups::<B>(query, n_kv_heads);
    let grad = fold_groups::<B>(grad, n_kv_heads);

    let grad_value = B::float_matmul(B::float_transpose(weights.clone()), grad.clone());
    let grad_weights = B::float_matmul(grad, B::float_transpose(value));
    let weighted = B::float_mul(grad_weights, weights);
    let row_sum = B::float_sum_dim(weighted.clone(), 3);
    let grad_scores = B::float_sub(weighted, B::float_mul(probabilities, row_sum.clone()));
    let grad_bias = match bias {
        ScoreBias::Learned(bias) => {
            let by_head = Shape::new([batch, n_heads, seq_q, seq_k]);
            sum_to::<B>(
                B::float_reshape(grad_scores.clone(), by_head),
                bias.shape().dims(),
            )
        }
        // Nobody reads it.
        ScoreBias::None | ScoreBias::Added(_) => row_sum,
    };
    let grad_scores = B::float_mul_scalar(grad_scores, scoring.scale.into());

    let grad_query = B::float_matmul(grad_scores.clone(), key);
    let grad_key = B::float_matmul(B::float_transpose(grad_scores), query);
    let grad_query = B::float_reshape(grad_query, shape);
    (grad_query, grad_key, grad_value, grad_bias)
}

/// Sums the axes that a bias of this shape was broadcast along.
pub(crate) fn sum_to<B: Backend>(mut grad: FloatTensor<B>, shape: [usize; 4]) -> FloatTensor<B> {
    let full: [usize; 4] = grad.shape().dims();
    for axis in (0..4).filter(|&axis| shape[axis] != full[axis]) {
        grad = B::float_sum_dim(grad, axis);
    }
    grad
}
