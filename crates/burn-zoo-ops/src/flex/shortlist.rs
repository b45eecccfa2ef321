//! The highest of many logits, of which a copy of the matrix in 8 bits leaves a few.

use burn::tensor::{Shape, TensorData};
use burn_flex::{Flex, FlexTensor};
use macerator::Simd;
use rayon::prelude::*;

use super::product::few_rows::{Dots, Order, STREAMS};
use super::simd::{Kernel, ROUND, contiguous, run, tensor};
use crate::Affine;

/// A matrix of fewer values stays in a cache.
const LARGE: usize = 1 << 22;

/// The largest number of the copy.
const LARGEST: f32 = 127.0;

/// One of so many classes is few.
const FEW: usize = 16;

/// Numbers of the copy that a thread takes at a time.
const PIECE: usize = 1 << 18;

/// The largest distance from 0; infinite or not a number where one of them is.
#[inline(always)]
fn size(values: &[f32]) -> f32 {
    // As whole numbers they have the same order, and vectors.
    let bits = values.iter().map(|value| value.abs().to_bits());
    f32::from_bits(bits.max().unwrap_or(0))
}

/// A number rounded to a whole one, of at most 22 bits.
#[inline(always)]
fn whole(value: f32) -> i32 {
    (value + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

/// What numbers of these weights are multiplied by.
fn scale(size: f32) -> f32 {
    size / LARGEST
}

/// Makes numbers that times the [`scale`] are the weights, but for half of it. Returns their [`size`].
struct Round<'a> {
    weights: &'a [f32],
    numbers: &'a mut [i8],
}

impl Kernel for Round<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let size = size(self.weights);
        let inverse = if size > 0.0 { 1.0 / scale(size) } else { 0.0 };
        for (number, weight) in self.numbers.iter_mut().zip(self.weights) {
            *number = whole(weight * inverse) as i8;
        }
        size
    }
}

/// The values of a matrix that lies column by column.
fn columns(weight: &FlexTensor) -> Option<&[f32]> {
    let sizes = weight.layout().shape().dims();
    let strides = weight.layout().strides();
    let order = Order::of(sizes, [strides[0], strides[1]])?;
    let start = weight.layout().start_offset();
    (order == Order::Columns).then(|| &weight.storage::<f32>()[start..][..sizes[0] * sizes[1]])
}

/// Numbers `[n_classes, d_input]` and scales `[n_classes]` of a matrix `[d_input, n_classes]`, unless it is one for which they
/// do not pay or promise nothing.
pub(super) fn of(weight: &FlexTensor) -> Option<(FlexTensor, FlexTensor)> {
    let weights = columns(weight).filter(|weights| weights.len() >= LARGE)?;
    let [d_input, n_classes] = weight.layout().shape().dims();
    let mut numbers = vec![0i8; weights.len()];
    let classes = numbers
        .par_chunks_mut(d_input)
        .zip(weights.par_chunks(d_input));
    let sizes: Vec<f32> = classes
        .with_min_len(64)
        .map(|(numbers, weights)| run(Round { weights, numbers }))
        .collect();
    // A scale that is too small has lost digits.
    let is_bound = |&size: &f32| size == 0.0 || scale(size).is_normal();
    sizes.iter().all(is_bound).then(|| {
        let scales = sizes.iter().map(|&size| scale(size)).collect();
        let numbers = TensorData::new(numbers, [n_classes, d_input]);
        let scales = tensor(scales, Shape::new([n_classes]));
        (FlexTensor::from_data(numbers), scales)
    })
}

/// The products of whole numbers with rows of numbers.
struct WholeDots<'a> {
    rows: &'a [i8],
    input: &'a [i16],
}

impl Kernel for WholeDots<'_> {
    type Output = Vec<i32>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<i32> {
        let mut products = vec![0; self.rows.len() / self.input.len()];
        let step = products.len().div_ceil(STREAMS);
        for first in 0..step {
            for index in (first..products.len()).step_by(step) {
                let row = &self.rows[index * self.input.len()..][..self.input.len()];
                let mut product = 0;
                for (&a, &b) in row.iter().zip(self.input) {
                    product += i32::from(a) * i32::from(b);
                }
                products[index] = product;
            }
        }
        products
    }
}

/// The class with the highest logit, `[1]`, of one row of finite numbers.
///
/// A value of the matrix is `s q + e` with `|e| ≤ s / 2`, one of the row `t z + f` with `|f| ≤ t / 2`, where `s` is the scale of
/// the class, and `q` and `z` are whole numbers. So `s t Σ q z` differs from the logit by at most
/// `s (Σ|x| / 2 + 127 n t / 2)`, and the logit in 32 bits from that by the rounding of its `n` terms, for which twice as much is added
/// as they need: it is also for the rounding of what `q` and `z` are rounded from.
pub(super) fn best(
    input: FlexTensor,
    affine: Affine<Flex>,
    numbers: &FlexTensor,
    scales: &FlexTensor,
) -> Option<FlexTensor> {
    let [rows, n] = input.layout().shape().dims();
    // So that no sum of products overflows.
    let most = (i32::MAX as f32 / (LARGEST + 1.0) / n as f32).min(32_000.0);
    let (input, range) = contiguous(input);
    let input = &input.storage::<f32>()[range];
    let unit = size(input) / most;
    if rows != 1 || most < 256.0 || !unit.is_normal() {
        return None;
    }
    let (weight, bias) = affine.into_parts();
    let weights = columns(&weight)?;
    let bias = bias.map(contiguous);
    let bias = bias
        .as_ref()
        .map(|(bias, range)| &bias.storage::<f32>()[range.clone()]);
    let bias = |class: usize| bias.map_or(0.0, |bias| bias[class]);

    let whole: Vec<i16> = input.iter().map(|x| whole(x / unit) as i16).collect();
    let total: f32 = input.iter().map(|x| x.abs()).sum();
    let depth = n as f32;
    let bound = total * (0.5 + depth * f32::EPSILON * LARGEST) + LARGEST * depth * unit / 2.0;
    let scales = scales.storage::<f32>();
    let lines = (PIECE / n).max(1);
    let pieces = numbers.storage::<i8>().par_chunks(lines * n).enumerate();
    // The lowest and the highest that each logit can be.
    let limits = pieces.map(|(number, rows)| {
        let products = run(WholeDots {
            rows,
            input: &whole,
        });
        let classes = (number * lines..).zip(products);
        let limits = classes.map(|(class, product)| {
            let about = scales[class] * (unit * product as f32);
            let (bias, error) = (bias(class), scales[class] * bound * 1.001);
            let error = error + 8.0 * f32::EPSILON * (about.abs() + bias.abs()) + f32::MIN_POSITIVE;
            [about + bias - error, about + bias + error]
        });
        limits.collect::<Vec<_>>()
    });
    let limits: Vec<Vec<[f32; 2]>> = limits.collect();
    let limits = || limits.iter().flatten();
    let lowest = limits().fold(f32::NEG_INFINITY, |most, [low, _]| most.max(*low));
    let candidates = (0..)
        .zip(limits())
        .filter(|(_, [_, high])| high.is_nan() || *high >= lowest);
    let candidates: Vec<usize> = candidates.map(|(class, _)| class).collect();
    // So many are faster all at once.
    if candidates.len() > scales.len() / FEW {
        return None;
    }
    let logits = candidates.into_iter().map(|class| {
        let weights = &weights[class * n..][..n];
        let product = run(Dots {
            inputs: input,
            inner: n,
            weights,
        });
        (class, bias(class) + product[0])
    });
    // One that is not a number is not higher than any, and none is higher than it.
    let logits = logits.filter(|(class, logit)| *class == 0 || !logit.is_nan());
    let (best, _) = logits.reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    let best = i32::try_from(best).ok()?;
    Some(FlexTensor::from_data(TensorData::new(vec![best], [1])))
}
