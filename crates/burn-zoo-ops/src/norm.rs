//! Layer and root-mean-square normalisation composed from `Backend` operations.

use burn::backend::{Backend, ExtensionType, TensorMetadata, tensor::FloatTensor};
use burn::tensor::Shape;

use crate::TransformerOps;

/// What is taken out of each row before scaling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// Mean and standard deviation (LayerNorm).
    Layer,
    /// Root mean square only (RMSNorm).
    Rms,
}

/// What is learned of a normalisation, vectors `[d_model]`; or of a linear layer, a matrix `[d_input, d_output]` and a
/// vector `[d_output]`.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum Affine<B: Backend> {
    /// Multiply by the weight.
    Scale(FloatTensor<B>),
    /// Multiply by the weight, then add the bias.
    ScaleShift(FloatTensor<B>, FloatTensor<B>),
}

impl<B: Backend> Affine<B> {
    /// Of a weight and, where there is one, a bias.
    pub(crate) fn new(weight: FloatTensor<B>, bias: Option<FloatTensor<B>>) -> Self {
        match bias {
            None => Self::Scale(weight),
            Some(bias) => Self::ScaleShift(weight, bias),
        }
    }

    pub(crate) fn into_parts(self) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
        match self {
            Self::Scale(weight) => (weight, None),
            Self::ScaleShift(weight, bias) => (weight, Some(bias)),
        }
    }

    /// The length of its outputs.
    pub(crate) fn width(&self) -> usize {
        let (Self::Scale(weight) | Self::ScaleShift(weight, _)) = self;
        let shape = weight.shape();
        shape[shape.num_dims() - 1]
    }
}

pub(crate) fn check_shapes(input: &[usize], weight: [usize; 1], bias: Option<[usize; 1]>) {
    let d_model = input.last().copied().unwrap_or(0);
    assert!(
        weight == [d_model] && bias.is_none_or(|bias| bias == [d_model]),
        "normalize: weight {weight:?} and bias {bias:?} must have the length of the input's last \
         dimension ({d_model})"
    );
}

/// `[d_model] → [1, .., 1, d_model]`, to broadcast over rows.
fn as_row<B: Backend>(vector: FloatTensor<B>, rank: usize) -> FloatTensor<B> {
    let mut dims = vec![1; rank];
    dims[rank - 1] = vector.shape().num_elements();
    B::float_reshape(vector, Shape::from(dims))
}

/// Sums everything but the last dimension: `[.., d_model] → [d_model]`.
fn sum_rows<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let shape = tensor.shape();
    let d_model = shape[shape.num_dims() - 1];
    let rows = shape.num_elements() / d_model.max(1);
    let tensor = B::float_reshape(tensor, Shape::new([rows, d_model]));
    B::float_reshape(B::float_sum_dim(tensor, 0), Shape::new([d_model]))
}

/// Returns the output, the normalised input, and the reciprocal standard deviation.
pub(crate) fn composed_forward<B: Backend>(
    input: FloatTensor<B>,
    affine: Affine<B>,
    kind: NormKind,
    epsilon: f64,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let rank = input.rank();
    let last = rank - 1;
    let centred = match kind {
        NormKind::Layer => {
            let mean = B::float_mean_dim(input.clone(), last);
            B::float_sub(input, mean)
        }
        NormKind::Rms => input,
    };
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), last);
    let std = B::float_sqrt(B::float_add_scalar(variance, epsilon.into()));
    let reciprocal_std = B::float_recip(std);
    let normalized = B::float_mul(centred, reciprocal_std.clone());

    let scale = |weight| B::float_mul(normalized.clone(), as_row::<B>(weight, rank));
    let output = match affine {
        Affine::Scale(weight) => scale(weight),
        Affine::ScaleShift(weight, bias) => B::float_add(scale(weight), as_row::<B>(bias, rank)),
    };
    (output, normalized, reciprocal_std)
}

/// Returns the sum, and what the normalisation of it returns.
pub(crate) fn composed_sum_forward<B: TransformerOps>(
    input: FloatTensor<B>,
    added: FloatTensor<B>,
    affine: Affine<B>,
    kind: NormKind,
    epsilon: f64,
) -> (
    FloatTensor<B>,
    FloatTensor<B>,
    FloatTensor<B>,
    FloatTensor<B>,
) {
    let sum = B::float_add(input, added);
    let (output, normalized, reciprocal_std) =
        B::affine_normalize_forward(sum.clone(), affine, kind, epsilon);
    (sum, output, normalized, reciprocal_std)
}

/// With `x̂` the normalised input, `r` the reciprocal standard deviation and `g = dy ∘ weight`:
/// `dx = r (g − mean(g) − x̂ mean(g ∘ x̂))`, where RMSNorm has no `mean(g)` term.
pub(crate) fn composed_backward<B: Backend>(
    normalized: FloatTensor<B>,
    reciprocal_std: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    kind: NormKind,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let rank = grad.rank();
    let last = rank - 1;
    let grad_weight = sum_rows::<B>(B::float_mul(grad.clone(), normalized.clone()));
    let grad_bias = sum_rows::<B>(grad.clone());

    let scaled = B::float_mul(grad, as_row::<B>(weight, rank));
    let projection = B::float_mean_dim(B::float_mul(scaled.clone(), normalized.clone()), last);
    let mut grad_input = B::float_sub(scaled.clone(), B::float_mul(normalized, projection));
    if kind == NormKind::Layer {
        grad_input = B::float_sub(grad_input, B::float_mean_dim(scaled, last));
    }
    let grad_input = B::float_mul(grad_input, reciprocal_std);
    (grad_input, grad_weight, grad_bias)
}
