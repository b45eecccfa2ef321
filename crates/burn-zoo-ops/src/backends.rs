//! The backends that run the composed forms. A kernel of its own moves a backend to its own file.

use crate::TransformerOps;

impl TransformerOps for burn_ndarray::NdArray {}
