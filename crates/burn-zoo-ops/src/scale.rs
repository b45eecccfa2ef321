//! All values times one number, and the sum of their squares, composed from `Backend` operations.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn::tensor::Shape;

pub(crate) fn composed<B: Backend>(
    input: FloatTensor<B>,
    factor: FloatTensor<B>,
) -> FloatTensor<B> {
    let ones = vec![1; input.shape().num_dims()];
    B::float_mul(input, B::float_reshape(factor, Shape::from(ones)))
}

pub(crate) fn composed_square_sum<B: Backend>(input: FloatTensor<B>) -> FloatTensor<B> {
    B::float_sum(B::float_mul(input.clone(), input))
}
