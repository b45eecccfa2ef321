//! The kernels as operations that Fusion queues: each says beforehand what it will return.

use burn::backend::{
    Backend, backend_extension,
    fusion::custom::TensorSpec,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;

use super::{attention, likelihood, norm};
use crate::attention::ScoreBiasMetadata;
use crate::{Affine, NormKind, ScoreBias, Scoring};

fn float(shape: Shape) -> TensorSpec {
    TensorSpec::new(shape, DType::F32)
}

/// What has a kernel. Tensors are of one type of floats, one that `is_read`.
#[backend_extension(Cube, Fusion)]
pub trait Kernels: Backend {
    /// Returns the output and the log-sum-exp of each query's scores, `[batch, n_heads, seq_q]`.
    #[fusion(meta = |query, _, _, _, _| {
        let [batch, n_heads, seq_q, _] = query.shape.dims();
        (query.clone(), float(Shape::new([batch, n_heads, seq_q])))
    })]
    fn attention_forward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        #[extension_type] bias: ScoreBias<Self>,
        scoring: Scoring,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Returns the gradients of query, key, value and, for a learned bias, of the scores. `row_sums` are those of the
    /// output times its gradient.
    #[fusion(meta = |query, key, value, bias, _, _, _, _| {
        let ([batch, n_heads, seq_q, _], [_, _, seq_k, _]) = (query.shape.dims(), key.shape.dims());
        let scores = match bias {
            ScoreBiasMetadata::Learned(_) => Shape::new([batch, n_heads, seq_q, seq_k]),
            ScoreBiasMetadata::None | ScoreBiasMetadata::Added(_) => Shape::new([1]),
        };
        (query.clone(), key.clone(), value.clone(), float(scores))
    })]
    fn attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        #[extension_type] bias: ScoreBias<Self>,
        log_sums: FloatTensor<Self>,
        row_sums: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        scoring: Scoring,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    );

    /// Returns the output and the mean and reciprocal standard deviation of each row, `[rows, 2]`.
    #[fusion(meta = |input, _, _, _| (input.clone(), float(norm::statistics(&input.shape))))]
    fn norm_forward(
        input: FloatTensor<Self>,
        #[extension_type] affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Returns the gradient of the input, and sums of which those of weight and bias are made, `[parts, d_model]`.
    #[fusion(meta = |input, _, _, _, _| {
        let (rows, width) = norm::rows_and_width(&input.shape);
        let sums = float(Shape::new([norm::parts(rows), width]));
        (input.clone(), sums.clone(), sums)
    })]
    fn norm_backward(
        input: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kind: NormKind,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Returns the losses and the log-sum-exps of the rows.
    #[fusion(meta = |logits, classes, _| {
        let losses = TensorSpec::new(classes.shape.clone(), logits.dtype);
        (losses, float(classes.shape.clone()))
    })]
    fn losses_forward(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        smoothing: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Returns the gradient of the logits.
    #[fusion(dtype = logits, shape = logits)]
    fn losses_backward(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        log_sums: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        smoothing: f64,
    ) -> FloatTensor<Self>;
}

impl Kernels for CubeBackend {
    fn attention_forward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: ScoreBias<Self>,
        scoring: Scoring,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::forward(query, key, value, bias, scoring)
    }

    fn attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: ScoreBias<Self>,
        log_sums: FloatTensor<Self>,
        row_sums: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        scoring: Scoring,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        attention::backward(query, key, value, bias, log_sums, row_sums, grad, scoring)
    }

    fn norm_forward(
        input: FloatTensor<Self>,
        affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        norm::forward(input, affine, kind, epsilon)
    }

    fn norm_backward(
        input: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kind: NormKind,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        norm::backward(input, statistics, weight, grad, kind)
    }

    fn losses_forward(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        smoothing: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        likelihood::forward(logits, classes, smoothing)
    }

    fn losses_backward(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        log_sums: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        smoothing: f64,
    ) -> FloatTensor<Self> {
        likelihood::backward(logits, classes, log_sums, grad, smoothing)
    }
}
