//! Linear layers: one matrix product over all rows that begins with the bias.

use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};
use macerator::Simd;
use rayon::prelude::*;

use super::activation;
use super::product::{Matrix, Operand, Start, activates, product};
use super::simd::{Contiguous, Kernel, add_up, contiguous, run, summing_length, tensor};
use crate::{Activation, Affine, PreActivation};

/// Products of fewer multiplications are for one thread.
const PARALLEL: usize = 1 << 18;

/// The input of a linear layer, `[.., d_input]`: values, or what an activation makes of them.
pub(super) struct Input {
    values: Contiguous,
    /// The activation, and what it is multiplied by if it is a gate.
    function: Option<(Activation, Option<Contiguous>)>,
}

impl From<FlexTensor> for Input {
    fn from(tensor: FlexTensor) -> Self {
        Self {
            values: contiguous(tensor),
            function: None,
        }
    }
}

impl Input {
    pub(super) fn activated(input: PreActivation<Flex>, activation: Activation) -> Self {
        let (values, up) = match input {
            PreActivation::Plain(input) => (input, None),
            PreActivation::Gated(gate, up) => (gate, Some(contiguous(up))),
        };
        let values = contiguous(values);
        let shape = |values: &Contiguous| values.tensor.layout().shape().clone();
        let is_fit = |up| shape(up) == shape(&values);
        assert!(up.as_ref().is_none_or(is_fit), "gate and up have one shape");
        Self {
            values,
            function: Some((activation, up)),
        }
    }

    /// The sizes of all but the last dimension, and that.
    fn sizes(&self) -> (&[usize], usize) {
        let shape = self.values.tensor.layout().shape();
        let (width, rows) = shape.split_last().expect("an input has rows");
        (rows, *width)
    }

    /// As a product of these sizes with this matrix can have it: activated before, where that cannot do it.
    fn before(self, sizes: [usize; 3], right: Matrix) -> Self {
        match self.function {
            Some((activation, up)) if !activates(sizes, right) => {
                let input = self.values.tensor;
                Self::from(match up {
                    None => activation::forward(input, activation),
                    Some(up) => activation::gated(input, up.tensor, activation),
                })
            }
            function => Self { function, ..self },
        }
    }

    /// Row by row.
    fn operand(&self) -> Operand {
        let (_, width) = self.sizes();
        let matrix = |values: &Contiguous| Matrix::read(values, [width as isize, 1]);
        let values = matrix(&self.values);
        match &self.function {
            None => values.into(),
            Some((activation, up)) => {
                Operand::activated(values, *activation, up.as_ref().map(matrix))
            }
        }
    }
}

/// `[.., d_input] → [.., d_output]`.
pub(super) fn forward(input: Input, affine: Affine<Flex>) -> FlexTensor {
    let (weight, bias) = affine.into_parts();
    let (weights, bias) = (Matrix::of(&weight), bias.map(contiguous));
    let [inner, width] = weight.layout().shape().dims();
    let (rows, last) = input.sizes();
    assert_eq!(last, inner, "the input has the weight's rows");
    let shape = Shape::from([rows, &[width]].concat());
    let sizes = [rows.iter().product(), width, inner];
    let input = input.before(sizes, weights);
    let bias = bias.as_deref().map(|bias| &bias[..width]);
    let start = bias.map_or(Start::Zero, Start::Row);
    // SAFETY: the matrices have these sizes.
    let values = unsafe { matrix(sizes, start, input.operand(), weights) };
    tensor(values, shape)
}

/// `[.., d_input] [.., d_output] → [d_input, d_output]`.
pub(super) fn weight_backward(input: Input, grad: FlexTensor) -> FlexTensor {
    let (rows, inner) = input.sizes();
    let shape = grad.layout().shape();
    let (rows, width) = (rows.iter().product::<usize>(), shape[shape.num_dims() - 1]);
    let grad = contiguous(grad);
    let is_fit = grad.len() == rows * width;
    assert!(is_fit, "the gradient has the input's rows");
    let grads = Matrix::read(&grad, [width as isize, 1]);
    let sizes = [inner, width, rows];
    let input = input.before(sizes, grads);
    let across = input.operand().transposed();
    // SAFETY: the matrices have these sizes.
    let values = unsafe { matrix(sizes, Start::Zero, across, grads) };
    tensor(values, Shape::new([inner, width]))
}

/// `start + left · right` of sizes `[m, k]` and `[k, n]`, row by row.
///
/// # Safety
///
/// The matrices have these sizes.
unsafe fn matrix(
    sizes @ [m, n, _]: [usize; 3],
    start: Start,
    left: Operand,
    right: Matrix,
) -> Vec<f32> {
    let mut values = Vec::new();
    let target = Matrix::room(&mut values, m, n);
    // SAFETY: as promised, and the target is nobody else's; all of it is written.
    unsafe {
        product(sizes, target, start, left, right, is_large(sizes));
        values.set_len(m * n);
    }
    values
}

fn is_large([m, n, k]: [usize; 3]) -> bool {
    m * n * k >= PARALLEL
}

/// Writes `left · right + bias` of sizes `[m, k]`, `[k, n]` and `[n]`, row by row. Sides have strides from one to the next row and
/// column.
///
/// # Safety
///
/// There is as much behind the pointers, and nobody else uses the target.
#[cfg(feature = "libtorch")]
pub(crate) unsafe fn multiply(
    sizes @ [_, width, _]: [usize; 3],
    target: *mut f32,
    bias: Option<&[f32]>,
    sides: [(*const f32, [isize; 2]); 2],
) {
    let start = bias.map_or(Start::Zero, Start::Row);
    let matrix = |values, strides| Matrix { values, strides };
    let target = matrix(target, [width as isize, 1]);
    let [left, right] = sides.map(|(values, strides)| matrix(values.cast_mut(), strides));
    // SAFETY: as promised.
    unsafe { product(sizes, target, start, left, right, is_large(sizes)) };
}

/// Sums of columns of rows.
struct Sums<'a> {
    rows: &'a [f32],
    width: usize,
}

impl Kernel for Sums<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<f32> {
        let mut sums = vec![0.0; self.width];
        for row in self.rows.chunks_exact(self.width) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
        sums
    }
}

/// Sums of the columns of rows of `width`.
pub(super) fn sum_columns(rows: &[f32], width: usize) -> Vec<f32> {
    let pieces = rows.par_chunks(summing_length(rows.len(), width));
    let parts: Vec<Vec<f32>> = pieces.map(|rows| run(Sums { rows, width })).collect();
    add_up(width, &parts)
}

/// `[.., d_output] → [d_output]`.
pub(super) fn bias_backward(grad: FlexTensor) -> FlexTensor {
    let shape = grad.layout().shape();
    let width = shape[shape.num_dims() - 1];
    tensor(sum_columns(&contiguous(grad), width), Shape::new([width]))
}
