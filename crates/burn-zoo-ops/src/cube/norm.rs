//! Normalisation, a row by one workgroup. What is kept for the gradient is the input and two numbers a row.

use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl;
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

use super::workgroup::{Workgroup, element, empty, one_each, sum};
use crate::{Affine, NormKind};

/// Columns whose sums over rows one workgroup makes: neighbours, so that a plane reads one piece of memory.
const COLUMNS: usize = 32;
/// Rows of a partial sum, at least.
const ROWS: usize = 64;
/// Partial sums, at most: enough for any device to be busy.
const MOST_PARTS: usize = 256;

/// How many partial sums over rows there are.
pub(super) fn parts(rows: usize) -> usize {
    rows.div_ceil(ROWS).clamp(1, MOST_PARTS)
}

/// Rows and width of a tensor whose last dimension is normalised.
pub(super) fn rows_and_width(shape: &Shape) -> (usize, usize) {
    let width = shape[shape.num_dims() - 1];
    (shape.num_elements() / width.max(1), width)
}

/// `[.., d_model]` to the mean and the reciprocal standard deviation of each row.
pub(super) fn statistics(shape: &Shape) -> Shape {
    Shape::new([rows_and_width(shape).0, 2])
}

/// Writes each row normalised, scaled and shifted, and its mean and reciprocal standard deviation.
#[cube(launch_unchecked)]
fn forward_kernel<F: Float>(
    input: &[F],
    weight: &[F],
    bias: &[F],
    output: &mut [F],
    statistics: &mut [f32],
    rows: usize,
    width: usize,
    epsilon: f32,
    #[comptime] kind: NormKind,
    #[comptime] has_bias: bool,
    #[comptime] group: Workgroup,
    #[define(F)] _element: ElemType,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let (start, unit) = (row * width, UNIT_POS as usize);
    let length = f32::cast_from(width as u32);
    let mut shared = Shared::<[f32]>::new_slice(group.units);

    let mut mean = 0.0f32;
    if comptime!(kind == NormKind::Layer) {
        let mut total = 0.0f32;
        for column in range_stepped(unit, width, group.units) {
            total += f32::cast_from(input[start + column]);
        }
        mean = sum(total, &mut shared, group) / length;
    }
    let mut squares = 0.0f32;
    for column in range_stepped(unit, width, group.units) {
        let centred = f32::cast_from(input[start + column]) - mean;
        squares += centred * centred;
    }
    let variance = sum(squares, &mut shared, group) / length;
    let reciprocal_std = 1.0f32 / (variance + epsilon).sqrt();

    for column in range_stepped(unit, width, group.units) {
        let normalized = (f32::cast_from(input[start + column]) - mean) * reciprocal_std;
        let mut value = normalized * f32::cast_from(weight[column]);
        if comptime!(has_bias) {
            value += f32::cast_from(bias[column]);
        }
        output[start + column] = F::cast_from(value);
    }
    if UNIT_POS == 0 {
        statistics[2 * row] = mean;
        statistics[2 * row + 1] = reciprocal_std;
    }
}

/// Returns the output and the [`statistics`].
pub(super) fn forward(
    input: CubeTensor,
    affine: Affine<CubeBackend>,
    kind: NormKind,
    epsilon: f64,
) -> (CubeTensor, CubeTensor) {
    let input = into_contiguous(input);
    let shape = input.meta.shape().clone();
    let (rows, width) = rows_and_width(&shape);
    let output = empty(&input, shape.clone(), input.dtype);
    let kept = empty(&input, statistics(&shape), DType::F32);
    if shape.num_elements() == 0 {
        return (output, kept);
    }
    let (weight, bias) = affine.into_parts();
    let weight = into_contiguous(weight);
    let has_bias = bias.is_some();
    let bias = bias.map_or_else(|| weight.clone(), into_contiguous);
    let (client, element) = (input.client.clone(), element(&input));
    let group = Workgroup::of_row(&client, width);
    // SAFETY: each index is below `rows · width`, `2 · rows` or `width`, the lengths of what it is an index of.
    unsafe {
        forward_kernel::launch_unchecked(
            &client,
            one_each(&client, rows),
            group.dim(),
            input.into_buffer_arg(),
            weight.into_buffer_arg(),
            bias.into_buffer_arg(),
            output.clone().into_buffer_arg(),
            kept.clone().into_buffer_arg(),
            rows,
            width,
            epsilon as f32,
            kind,
            has_bias,
            group,
            element,
        );
    }
    (output, kept)
}

/// Writes the gradient of each row: with `x̂` the normalised row, `r` the reciprocal standard deviation and
/// `g = dy ∘ weight`, `r (g − mean(g) − x̂ mean(g ∘ x̂))`, where RMSNorm has no `mean(g)`.
#[cube(launch_unchecked)]
fn input_gradient_kernel<F: Float>(
    input: &[F],
    statistics: &[f32],
    weight: &[F],
    grad: &[F],
    output: &mut [F],
    rows: usize,
    width: usize,
    #[comptime] kind: NormKind,
    #[comptime] group: Workgroup,
    #[define(F)] _element: ElemType,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let (start, unit) = (row * width, UNIT_POS as usize);
    let length = f32::cast_from(width as u32);
    let mut shared = Shared::<[f32]>::new_slice(group.units);
    let (mean, reciprocal_std) = (statistics[2 * row], statistics[2 * row + 1]);

    let mut total = 0.0f32;
    let mut projection = 0.0f32;
    for column in range_stepped(unit, width, group.units) {
        let normalized = (f32::cast_from(input[start + column]) - mean) * reciprocal_std;
        let scaled = f32::cast_from(grad[start + column]) * f32::cast_from(weight[column]);
        total += scaled;
        projection += scaled * normalized;
    }
    projection = sum(projection, &mut shared, group) / length;
    let mut centre = 0.0f32;
    if comptime!(kind == NormKind::Layer) {
        centre = sum(total, &mut shared, group) / length;
    }
    for column in range_stepped(unit, width, group.units) {
        let normalized = (f32::cast_from(input[start + column]) - mean) * reciprocal_std;
        let scaled = f32::cast_from(grad[start + column]) * f32::cast_from(weight[column]);
        let value = (scaled - centre - normalized * projection) * reciprocal_std;
        output[start + column] = F::cast_from(value);
    }
}

/// Writes, of a part of the rows, the sums of `dy ∘ x̂` and of `dy`, which are the gradients of weight and bias.
/// Workgroups are `[columns, parts]`, and so are their units: each adds up some rows of one column.
#[cube(launch_unchecked)]
fn affine_gradient_kernel<F: Float>(
    input: &[F],
    statistics: &[f32],
    grad: &[F],
    of_weight: &mut [f32],
    of_bias: &mut [f32],
    rows: usize,
    width: usize,
    rows_of_part: usize,
    #[comptime] lanes: usize,
    #[define(F)] _element: ElemType,
) {
    let column = CUBE_POS_X as usize * COLUMNS + UNIT_POS_X as usize;
    let first = CUBE_POS_Y as usize * rows_of_part;
    let end = (first + rows_of_part).min(rows);
    let mut scaled = 0.0f32;
    let mut plain = 0.0f32;
    if column < width {
        for row in range_stepped(first + UNIT_POS_Y as usize, end, lanes) {
            let grad = f32::cast_from(grad[row * width + column]);
            let centred = f32::cast_from(input[row * width + column]) - statistics[2 * row];
            scaled += grad * centred * statistics[2 * row + 1];
            plain += grad;
        }
    }
    let mut shared = Shared::<[f32]>::new_slice(comptime!(2 * COLUMNS * lanes));
    shared[2 * UNIT_POS as usize] = scaled;
    shared[2 * UNIT_POS as usize + 1] = plain;
    sync_cube();
    if UNIT_POS_Y == 0 && column < width {
        for lane in 1..lanes {
            let other = 2 * (lane * COLUMNS + UNIT_POS_X as usize);
            scaled += shared[other];
            plain += shared[other + 1];
        }
        of_weight[CUBE_POS_Y as usize * width + column] = scaled;
        of_bias[CUBE_POS_Y as usize * width + column] = plain;
    }
}

/// Returns the gradient of the input, and the partial sums `[parts, d_model]` of those of weight and bias.
pub(super) fn backward(
    input: CubeTensor,
    statistics: CubeTensor,
    weight: CubeTensor,
    grad: CubeTensor,
    kind: NormKind,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [input, statistics, weight, grad] = [input, statistics, weight, grad].map(into_contiguous);
    let shape = input.meta.shape().clone();
    let (rows, width) = rows_and_width(&shape);
    let output = empty(&input, shape.clone(), input.dtype);
    let parts = parts(rows);
    let partial = || empty(&input, Shape::new([parts, width]), DType::F32);
    let (of_weight, of_bias) = (partial(), partial());
    if width == 0 {
        return (output, of_weight, of_bias);
    }
    let (client, element) = (input.client.clone(), element(&input));
    let group = Workgroup::of_row(&client, width);
    let lanes = (Workgroup::of_row(&client, usize::MAX).units / COLUMNS).clamp(1, 8);
    // SAFETY: each index is below `rows · width`, `2 · rows`, `width` or `parts · width`, the lengths of what it is an
    // index of.
    unsafe {
        if rows > 0 {
            input_gradient_kernel::launch_unchecked(
                &client,
                one_each(&client, rows),
                group.dim(),
                input.clone().into_buffer_arg(),
                statistics.clone().into_buffer_arg(),
                weight.into_buffer_arg(),
                grad.clone().into_buffer_arg(),
                output.clone().into_buffer_arg(),
                rows,
                width,
                kind,
                group,
                element,
            );
        }
        affine_gradient_kernel::launch_unchecked(
            &client,
            CubeCount::Static(width.div_ceil(COLUMNS) as u32, parts as u32, 1),
            CubeDim::new_2d(COLUMNS as u32, lanes as u32),
            input.into_buffer_arg(),
            statistics.into_buffer_arg(),
            grad.into_buffer_arg(),
            of_weight.clone().into_buffer_arg(),
            of_bias.clone().into_buffer_arg(),
            rows,
            width,
            rows.div_ceil(parts),
            lanes,
            element,
        );
    }
    (output, of_weight, of_bias)
}
