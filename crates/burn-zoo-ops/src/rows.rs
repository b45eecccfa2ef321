//! Rows of a table, and their sums, composed from `Backend` operations.

use burn::backend::{
    Backend, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{IndexingUpdateOp, Shape};

/// `[n, width]` of zeros, as a sum of rows begins.
pub(crate) fn zeros<B: Backend>(like: &FloatTensor<B>, n: usize) -> FloatTensor<B> {
    let width = like.shape()[1];
    B::float_zeros(Shape::new([n, width]), &like.device(), like.dtype().into())
}

/// Adds each of the rows `[n_rows, width]` to that of the total `[n, width]` which its index names.
pub(crate) fn composed_add<B: Backend>(
    total: FloatTensor<B>,
    rows: FloatTensor<B>,
    indices: IntTensor<B>,
) -> FloatTensor<B> {
    match rows.shape()[0] {
        0 => total,
        _ => B::float_select_assign(total, 0, indices, rows, IndexingUpdateOp::Add),
    }
}

/// The gradients of rows and weights.
pub(crate) fn composed_weighted_backward<B: Backend>(
    rows: FloatTensor<B>,
    weights: FloatTensor<B>,
    indices: IntTensor<B>,
    grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let grad = B::float_select(grad, 0, indices);
    let of_weights = B::float_sum_dim(B::float_mul(grad.clone(), rows), 1);
    (B::float_mul(grad, weights), of_weights)
}
