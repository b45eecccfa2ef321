//! The negative log-likelihood of classes composed from `Backend` operations.

use burn::backend::{
    Backend, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{IndexingUpdateOp, Shape};

/// The losses `[rows]`, and the log-sum-exp of each row `[rows, 1]`.
pub(crate) fn composed_forward<B: Backend>(
    logits: FloatTensor<B>,
    classes: IntTensor<B>,
    smoothing: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let [rows, _] = logits.shape().dims();
    let column = Shape::new([rows, 1]);
    let max = B::float_max_dim(logits.clone(), 1);
    // Without the largest, whose digits would hide those of a small loss.
    let shifted = B::float_sub(logits, max.clone());
    let exponentials = B::float_exp(shifted.clone());
    let rest = B::float_log(B::float_sum_dim(exponentials, 1));
    let mut expected = B::float_gather(1, shifted.clone(), B::int_reshape(classes, column));
    if smoothing > 0.0 {
        let mean = B::float_mul_scalar(B::float_mean_dim(shifted, 1), smoothing.into());
        expected = B::float_mul_scalar(expected, (1.0 - smoothing).into());
        expected = B::float_add(expected, mean);
    }
    let losses = B::float_sub(rest.clone(), expected);
    let losses = B::float_reshape(losses, Shape::new([rows]));
    (losses, B::float_add(rest, max))
}

/// With `p` the probabilities and `y` those that are wanted: `grad (p − y)`.
pub(crate) fn composed_backward<B: Backend>(
    logits: FloatTensor<B>,
    classes: IntTensor<B>,
    log_sum_exp: FloatTensor<B>,
    grad: FloatTensor<B>,
    smoothing: f64,
) -> FloatTensor<B> {
    let [rows, n_classes] = logits.shape().dims();
    let column = Shape::new([rows, 1]);
    let mut difference = B::float_exp(B::float_sub(logits, log_sum_exp));
    if smoothing > 0.0 {
        difference = B::float_add_scalar(difference, (-smoothing / n_classes as f64).into());
    }
    let grad = B::float_reshape(grad, column.clone());
    let difference = B::float_mul(difference, grad.clone());
    let wanted = B::float_mul_scalar(grad, (smoothing - 1.0).into());
    let classes = B::int_reshape(classes, column);
    B::float_scatter(1, difference, classes, wanted, IndexingUpdateOp::Add)
}
