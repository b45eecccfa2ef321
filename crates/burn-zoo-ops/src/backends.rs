//! The backends that run the composed forms. A kernel of its own moves a backend to its own file.

#[cfg(feature = "flex")]
use burn::backend::{ops::ActivationOps, tensor::FloatTensor};

use crate::TransformerOps;

#[cfg(feature = "flex")]
impl TransformerOps for burn_flex::Flex {
    fn exact_gelu_backward(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        <Self as ActivationOps<Self>>::gelu_backward(input, grad)
    }
}

#[cfg(feature = "ndarray")]
impl TransformerOps for burn_ndarray::NdArray {}

#[cfg(feature = "cube")]
impl TransformerOps for burn_cubecl::Cube {}
