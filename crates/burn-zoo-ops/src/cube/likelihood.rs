//! The negative log-likelihood of classes, a row by one workgroup, which reads it once. What is kept for the gradient is
//! the log-sum-exp of each row.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl;
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

use super::workgroup::{Workgroup, element, empty, max, one_each, sum};

/// Below any logit. Finite, because WGSL has no infinities.
const LOWEST: f32 = -3.4e38;

/// Writes the loss and the log-sum-exp of each row.
///
/// Exponentials are summed as the largest logit so far has them, and made smaller when a larger one comes (Milakov &
/// Gimelshein 2018, arXiv:1805.02867).
#[cube(launch_unchecked)]
fn forward_kernel<F: Float, I: Int>(
    logits: &[F],
    classes: &[I],
    losses: &mut [F],
    log_sums: &mut [f32],
    rows: usize,
    n_classes: usize,
    smoothing: f32,
    #[comptime] is_smoothed: bool,
    #[comptime] group: Workgroup,
    #[define(F, I)] _elements: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let start = row * n_classes;
    let mut shared = Shared::<[f32]>::new_slice(group.units);
    let mut largest = LOWEST.runtime();
    let mut total = 0.0f32;
    let mut plain = 0.0f32;
    for class in range_stepped(UNIT_POS as usize, n_classes, group.units) {
        let logit = f32::cast_from(logits[start + class]);
        let above = logit - largest;
        if above > 0.0f32 {
            total = total * (-above).exp() + 1.0f32;
            largest = logit;
        } else {
            total += above.exp();
        }
        plain += logit;
    }
    let largest_of_all = max(largest, &mut shared, group);
    let shifted = total * (largest - largest_of_all).exp();
    let rest = sum(shifted, &mut shared, group).ln();
    let mut mean = 0.0f32;
    if comptime!(is_smoothed) {
        mean = sum(plain, &mut shared, group) / f32::cast_from(n_classes as u32);
    }
    if UNIT_POS == 0 {
        // Without the largest, whose digits would hide those of a small loss.
        let class = u32::cast_from(classes[row]) as usize;
        let mut expected = f32::cast_from(logits[start + class]) - largest_of_all;
        if comptime!(is_smoothed) {
            expected = expected * (1.0f32 - smoothing) + (mean - largest_of_all) * smoothing;
        }
        losses[row] = F::cast_from(rest - expected);
        log_sums[row] = rest + largest_of_all;
    }
}

/// Logits `[rows, n_classes]` and classes `[rows]` to the losses and the log-sum-exps, `[rows]`.
pub(super) fn forward(
    logits: CubeTensor,
    classes: CubeTensor,
    smoothing: f64,
) -> (CubeTensor, CubeTensor) {
    let [logits, classes] = [logits, classes].map(into_contiguous);
    let [rows, n_classes] = logits.shape().dims();
    let losses = empty(&logits, Shape::new([rows]), logits.dtype);
    let log_sums = empty(&logits, Shape::new([rows]), DType::F32);
    if rows == 0 {
        return (losses, log_sums);
    }
    let (client, elements) = (logits.client.clone(), [&logits, &classes].map(element));
    let group = Workgroup::of_row(&client, n_classes);
    // SAFETY: each index is below `rows · n_classes` or `rows`, the lengths of what it is an index of, because each class
    // is below `n_classes`.
    unsafe {
        forward_kernel::launch_unchecked(
            &client,
            one_each(&client, rows),
            group.dim(),
            logits.into_buffer_arg(),
            classes.into_buffer_arg(),
            losses.clone().into_buffer_arg(),
            log_sums.clone().into_buffer_arg(),
            rows,
            n_classes,
            smoothing as f32,
            smoothing > 0.0,
            group,
            elements,
        );
    }
    (losses, log_sums)
}

/// Writes, with `p` the probabilities and `y` those that are wanted, `grad (p − y)`.
#[cube(launch_unchecked)]
fn backward_kernel<F: Float, I: Int>(
    logits: &[F],
    classes: &[I],
    log_sums: &[f32],
    grad: &[F],
    output: &mut [F],
    rows: usize,
    n_classes: usize,
    smoothing: f32,
    #[comptime] group: Workgroup,
    #[define(F, I)] _elements: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let start = row * n_classes;
    let grad = f32::cast_from(grad[row]);
    let expected = u32::cast_from(classes[row]) as usize;
    let of_any = smoothing / f32::cast_from(n_classes as u32);
    for class in range_stepped(UNIT_POS as usize, n_classes, group.units) {
        let logit = f32::cast_from(logits[start + class]);
        let mut difference = (logit - log_sums[row]).exp() - of_any;
        if class == expected {
            difference -= 1.0f32 - smoothing;
        }
        output[start + class] = F::cast_from(grad * difference);
    }
}

/// The gradient of the logits, in their place where nobody else holds them.
pub(super) fn backward(
    logits: CubeTensor,
    classes: CubeTensor,
    log_sums: CubeTensor,
    grad: CubeTensor,
    smoothing: f64,
) -> CubeTensor {
    let [logits, classes, log_sums, grad] = [logits, classes, log_sums, grad].map(into_contiguous);
    let [rows, n_classes] = logits.shape().dims();
    let (output, written) = match logits.can_mut() {
        true => (logits.clone(), logits.as_tensor_alias(0).into_buffer_arg()),
        false => {
            let output = empty(&logits, logits.shape(), logits.dtype);
            (output.clone(), output.into_buffer_arg())
        }
    };
    if rows * n_classes == 0 {
        return output;
    }
    let (client, elements) = (logits.client.clone(), [&logits, &classes].map(element));
    let group = Workgroup::of_row(&client, n_classes);
    // SAFETY: each index is below `rows · n_classes` or `rows`, the lengths of what it is an index of; and each value is
    // read by the unit that writes over it.
    unsafe {
        backward_kernel::launch_unchecked(
            &client,
            one_each(&client, rows),
            group.dim(),
            logits.into_buffer_arg(),
            classes.into_buffer_arg(),
            log_sums.into_buffer_arg(),
            grad.into_buffer_arg(),
            written,
            rows,
            n_classes,
            smoothing as f32,
            group,
            elements,
        );
    }
    output
}
