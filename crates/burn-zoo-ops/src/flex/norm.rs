//! Layer and root-mean-square normalisation, one pass over the rows each way.
//!
//! The gradient reads the input again, which is there anyhow, instead of a normalised copy of it: what is kept is mean
//! and reciprocal standard deviation of each row.

use std::mem::MaybeUninit;

use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};
use macerator::Simd;
use rayon::prelude::*;

use super::simd::{
    Kernel, add_up, chunk_length, contiguous, mul_add, owned, run, sum, summing_length, tensor,
};
use crate::{Affine, NormKind};

/// Rows of the input, of the output, and two numbers for each of them.
struct Forward<'a> {
    input: &'a [f32],
    output: &'a mut [MaybeUninit<f32>],
    statistics: &'a mut [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    kind: NormKind,
    epsilon: f32,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let width = self.weight.len();
        let rows = self.input.chunks_exact(width);
        let rows = rows.zip(self.output.chunks_exact_mut(width));
        for ((row, output), statistics) in rows.zip(self.statistics.chunks_exact_mut(2)) {
            let mean = match self.kind {
                NormKind::Layer => sum::<1>(row, row, |x, _| [x])[0] / width as f32,
                NormKind::Rms => 0.0,
            };
            let [squares] = sum::<1>(row, row, |x, _| [(x - mean) * (x - mean)]);
            let scale = 1.0 / (squares / width as f32 + self.epsilon).sqrt();
            statistics.copy_from_slice(&[mean, scale]);
            match self.bias {
                None => {
                    for ((output, &x), &weight) in output.iter_mut().zip(row).zip(self.weight) {
                        output.write((x - mean) * scale * weight);
                    }
                }
                Some(bias) => {
                    let affine = self.weight.iter().zip(bias);
                    for ((output, &x), (&weight, &bias)) in output.iter_mut().zip(row).zip(affine) {
                        output.write(mul_add::<S>((x - mean) * scale, weight, bias));
                    }
                }
            }
        }
    }
}

/// Output, input, and mean and reciprocal standard deviation of each row. What is added to the input first, `added`, has
/// its shape; then the sum takes the input's place.
pub(super) fn forward(
    input: FlexTensor,
    added: Option<FlexTensor>,
    affine: Affine<Flex>,
    kind: NormKind,
    epsilon: f64,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let shape = input.layout().shape().clone();
    let (weight, bias) = affine.into_parts();
    let (weight, bias) = (contiguous(weight), bias.map(contiguous));
    let (weight, bias) = (&weight[..], bias.as_deref());
    let width = weight.len();
    let has_width = bias.is_none_or(|bias| bias.len() == width);
    assert!(has_width, "the bias has the weight's width");
    let rows = shape.num_elements() / width.max(1);
    assert_eq!(
        shape.num_elements(),
        rows * width,
        "rows of the weight's width"
    );
    let mut output = Vec::with_capacity(rows * width);
    let mut statistics = vec![0.0; 2 * rows];
    let length = chunk_length(rows * width, width);
    let results = output.spare_capacity_mut()[..rows * width]
        .par_chunks_mut(length)
        .zip(statistics.par_chunks_mut(2 * length / width.max(1)));
    let normalize = |input: &[f32], (output, statistics): (&mut [_], &mut [f32])| {
        run(Forward {
            input,
            output,
            statistics,
            weight,
            bias,
            kind,
            epsilon: epsilon as f32,
        });
    };
    let input = match added {
        None => {
            let input = contiguous(input);
            let values = input.par_chunks(length);
            values
                .zip(results)
                .for_each(|(input, results)| normalize(input, results));
            input.tensor
        }
        Some(added) => {
            let n_added = added.layout().num_elements();
            assert_eq!(n_added, rows * width, "as many numbers are added");
            // What a sub-layer has just made is nobody else's; the residual stream is.
            let (input, added) = match added.is_unique() {
                true => (added, input),
                false => (input, added),
            };
            let added = contiguous(added);
            let added = added.par_chunks(length);
            let mut sum = owned(input);
            let values = sum.storage_mut::<f32>().par_chunks_mut(length);
            values
                .zip(added)
                .zip(results)
                .for_each(|((sum, added), results)| {
                    run(Add(sum, added));
                    normalize(sum, results);
                });
            sum
        }
    };
    // SAFETY: each row was written.
    unsafe { output.set_len(rows * width) };
    let statistics = tensor(statistics, Shape::new([rows, 2]));
    (tensor(output, shape), input, statistics)
}

/// Numbers that others are added to.
struct Add<'a>(&'a mut [f32], &'a [f32]);

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (sum, &added) in self.0.iter_mut().zip(self.1) {
            *sum += added;
        }
    }
}

/// Rows of the input and of the output's gradient, which becomes that of the input.
struct Backward<'a> {
    input: &'a [f32],
    grad: &'a mut [f32],
    statistics: &'a [f32],
    weight: &'a [f32],
    kind: NormKind,
}

impl Kernel for Backward<'_> {
    /// The gradients of weight and bias.
    type Output = [Vec<f32>; 2];

    /// With `x̂` the normalised input, `r` the reciprocal standard deviation and `g = dy ∘ weight`:
    /// `dx = r (g − mean(g) − x̂ mean(g ∘ x̂))`, where RMSNorm has no `mean(g)`.
    #[inline(always)]
    fn run<S: Simd>(self) -> [Vec<f32>; 2] {
        let width = self.weight.len();
        let mut of_weight = vec![0.0; width];
        let mut of_bias = vec![0.0; width];
        let rows = self.input.chunks_exact(width);
        let rows = rows.zip(self.grad.chunks_exact_mut(width));
        for ((row, grad), statistics) in rows.zip(self.statistics.chunks_exact(2)) {
            let (mean, scale) = (statistics[0], statistics[1]);
            let affine = of_weight.iter_mut().zip(&mut of_bias);
            for ((&x, grad), ((of_weight, of_bias), &weight)) in
                row.iter().zip(grad.iter_mut()).zip(affine.zip(self.weight))
            {
                *of_weight = mul_add::<S>(*grad, (x - mean) * scale, *of_weight);
                *of_bias += *grad;
                *grad *= weight;
            }
            let [all, projection] = sum::<2>(row, grad, |x, g| [g, g * (x - mean)]);
            let all = match self.kind {
                NormKind::Layer => all / width as f32,
                NormKind::Rms => 0.0,
            };
            let projection = projection * scale * scale / width as f32;
            for (&x, grad) in row.iter().zip(grad) {
                *grad = (*grad - all - (x - mean) * projection) * scale;
            }
        }
        [of_weight, of_bias]
    }
}

/// The gradients of input, weight and bias.
pub(super) fn backward(
    input: FlexTensor,
    statistics: FlexTensor,
    weight: FlexTensor,
    grad: FlexTensor,
    kind: NormKind,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let of_vector = weight.layout().shape().clone();
    let (weight, input) = (contiguous(weight), contiguous(input));
    let weight = &weight[..];
    let statistics = statistics.storage::<f32>();
    let mut grad = owned(grad);
    let width = weight.len();
    let length = summing_length(input.len(), width);
    let parts: Vec<[Vec<f32>; 2]> = input
        .par_chunks(length)
        .zip(grad.storage_mut::<f32>().par_chunks_mut(length))
        .zip(statistics.par_chunks(2 * length / width.max(1)))
        .map(|((input, grad), statistics)| {
            run(Backward {
                input,
                grad,
                statistics,
                weight,
                kind,
            })
        })
        .collect();
    let [of_weight, of_bias] = [0, 1].map(|which| {
        let parts = parts.iter().map(|part| &part[which]);
        tensor(add_up(width, parts), of_vector.clone())
    });
    (grad, of_weight, of_bias)
}
