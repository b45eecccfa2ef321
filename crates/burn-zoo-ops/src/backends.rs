//! The backends that run the composed forms. A kernel of its own moves a backend to its own file.

use crate::TransformerOps;

#[cfg(feature = "ndarray")]
impl TransformerOps for burn_ndarray::NdArray {}

#[cfg(feature = "cube")]
impl TransformerOps for burn_cubecl::Cube {}
