//! Linear layers whose matrix is rounded to 8 bits: a quarter of the reading.

use std::borrow::Cow;

use burn::tensor::{Shape, TensorData};
use burn_flex::{Flex, FlexTensor};
use macerator::Simd;
use rayon::prelude::*;

use super::product::few_rows::{Dots, Order, STREAMS};
use super::simd::{Kernel, ROUND, contiguous, prefetch, run, tensor};
use crate::Affine;

/// The largest number of the copy.
const LARGEST: f32 = 127.0;

/// One of so many classes is few.
const FEW: usize = 16;

/// Numbers of the copy that a thread takes at a time, which its caches hold while all rows use them.
const PIECE: usize = 1 << 17;

/// Columns across rows that are rounded at a time.
const COLUMNS: usize = 128;

/// Rows that memory is asked for ahead of their columns.
const AHEAD: usize = 48;

/// Rows and columns that change places together.
const SQUARE: usize = 16;

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

/// What numbers of weights of this size are multiplied by.
fn scale(size: f32) -> f32 {
    size / LARGEST
}

/// What weights of this size are multiplied by.
fn inverse(size: f32) -> f32 {
    if size > 0.0 { 1.0 / scale(size) } else { 0.0 }
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
        let inverse = inverse(size);
        for (number, weight) in self.numbers.iter_mut().zip(self.weights) {
            *number = whole(weight * inverse) as i8;
        }
        size
    }
}

/// The same of up to [`COLUMNS`] columns that lie across rows, from the first on: their numbers one column after the other, and
/// their sizes.
struct RoundAcross<'a> {
    rows: &'a [f32],
    width: usize,
    first: usize,
    numbers: &'a mut [i8],
}

impl Kernel for RoundAcross<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<f32> {
        let length = self.rows.len() / self.width;
        let count = self.numbers.len() / length;
        let row = |row: usize| &self.rows[row * self.width + self.first..][..count];
        let mut sizes = [0u32; COLUMNS];
        for index in 0..length {
            if index + AHEAD < length {
                prefetch(row(index + AHEAD));
            }
            for (size, value) in sizes.iter_mut().zip(row(index)) {
                *size = (*size).max(value.abs().to_bits());
            }
        }
        let mut inverses = [0.0; COLUMNS];
        for (inverse, &size) in inverses.iter_mut().zip(&sizes) {
            *inverse = self::inverse(f32::from_bits(size));
        }
        for rows in (0..length).step_by(SQUARE) {
            let height = SQUARE.min(length - rows);
            for part in (0..count).step_by(SQUARE) {
                let columns = part..count.min(part + SQUARE);
                let mut square = [[0i8; SQUARE]; SQUARE];
                for (index, numbers) in square[..height].iter_mut().enumerate() {
                    let values = row(rows + index)[columns.clone()].iter();
                    let values = values.zip(&inverses[columns.clone()]);
                    for (number, (value, inverse)) in numbers.iter_mut().zip(values) {
                        *number = whole(value * inverse) as i8;
                    }
                }
                for (place, column) in columns.enumerate() {
                    let numbers = &mut self.numbers[column * length + rows..][..height];
                    for (number, row) in numbers.iter_mut().zip(&square) {
                        *number = row[place];
                    }
                }
            }
        }
        let sizes = sizes[..count].iter();
        sizes.map(|&size| f32::from_bits(size)).collect()
    }
}

/// The values of a matrix without gaps, and how they lie.
fn lying(matrix: &FlexTensor) -> Option<(&[f32], Order)> {
    let sizes = matrix.layout().shape().dims();
    let strides = matrix.layout().strides();
    let order = Order::of(sizes, [strides[0], strides[1]])?;
    let values = &matrix.storage::<f32>()[matrix.layout().start_offset()..];
    Some((&values[..sizes[0] * sizes[1]], order))
}

/// Numbers `[d_output, d_input]` and scales `[d_output]` of a matrix `[d_input, d_output]`. None of a matrix with gaps, or with
/// numbers that promise nothing.
pub(super) fn of(weight: &FlexTensor) -> Option<(FlexTensor, FlexTensor)> {
    let [d_input, d_output] = weight.layout().shape().dims();
    let (weights, order) = lying(weight).filter(|(weights, _)| !weights.is_empty())?;
    let mut numbers = vec![0i8; weights.len()];
    let blocks = numbers.par_chunks_mut(COLUMNS * d_input).enumerate();
    let sizes = blocks.flat_map_iter(|(block, numbers)| match order {
        Order::Columns => {
            let weights = weights[block * COLUMNS * d_input..].chunks_exact(d_input);
            let columns = numbers.chunks_exact_mut(d_input).zip(weights);
            let sizes = columns.map(|(numbers, weights)| run(Round { weights, numbers }));
            sizes.collect()
        }
        Order::Rows => run(RoundAcross {
            rows: weights,
            width: d_output,
            first: block * COLUMNS,
            numbers,
        }),
    });
    let sizes: Vec<f32> = sizes.collect();
    // A scale that is too small has lost digits.
    let is_bound = |&size: &f32| size == 0.0 || scale(size).is_normal();
    sizes.iter().all(is_bound).then(|| {
        let scales = sizes.iter().map(|&size| scale(size)).collect();
        let numbers = TensorData::new(numbers, [d_output, d_input]);
        let scales = tensor(scales, Shape::new([d_output]));
        (FlexTensor::from_data(numbers), scales)
    })
}

/// A row of the input, whose numbers times the unit are its values, but for half of it.
struct Row {
    numbers: Vec<i16>,
    unit: f32,
}

impl Row {
    /// Unless its values are too near to 0, not finite or too many.
    fn of(values: &[f32]) -> Option<Self> {
        // So that no sum of products overflows.
        let most = (i32::MAX as f32 / (LARGEST + 1.0) / values.len() as f32).min(32_000.0);
        let unit = match size(values) {
            0.0 => 1.0,
            size => size / most,
        };
        (most >= 256.0 && unit.is_normal()).then(|| Self {
            numbers: values.iter().map(|x| whole(x / unit) as i16).collect(),
            unit,
        })
    }
}

/// The products of a row of the input with the numbers of each output.
struct WholeDots<'a> {
    input: &'a [i16],
    numbers: &'a [i8],
}

impl Kernel for WholeDots<'_> {
    type Output = Vec<i32>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<i32> {
        let n = self.input.len();
        let mut products = vec![0; self.numbers.len() / n];
        let step = products.len().div_ceil(STREAMS);
        for first in 0..step {
            for output in (first..products.len()).step_by(step) {
                let (numbers, rest) = self.numbers[output * n..].split_at(n);
                prefetch(&rest[..n.min(rest.len())]);
                let mut product = 0;
                for (&a, &b) in numbers.iter().zip(self.input) {
                    product += i32::from(a) * i32::from(b);
                }
                products[output] = product;
            }
        }
        products
    }
}

/// What `apply` makes of a row's number, an output's and the product of both. Each item is of some outputs that follow each other: the
/// first of them, and for each row the results.
fn products<R: Send>(
    rows: &[Row],
    numbers: &FlexTensor,
    apply: impl Fn(usize, usize, f32) -> R + Sync,
) -> Vec<(usize, Vec<Vec<R>>)> {
    let [_, n] = numbers.layout().shape().dims();
    let lines = (PIECE / n).max(1);
    let pieces = numbers.storage::<i8>().par_chunks(lines * n).enumerate();
    let pieces = pieces.map(|(piece, numbers)| {
        let first = piece * lines;
        let results = rows.iter().enumerate().map(|(row, of_row)| {
            let input = &of_row.numbers;
            let outputs = (first..).zip(run(WholeDots { input, numbers }));
            let results =
                outputs.map(|(output, product)| apply(row, output, of_row.unit * product as f32));
            results.collect()
        });
        (first, results.collect())
    });
    pieces.collect()
}

/// `[.., d_input] → [.., d_output]`: products with rows of numbers, scaled and shifted. None of inputs that are not finite, or too
/// long.
pub(super) fn map(
    input: FlexTensor,
    numbers: &FlexTensor,
    affine: Affine<Flex>,
) -> Option<FlexTensor> {
    let [d_output, d_input] = numbers.layout().shape().dims();
    let mut shape = input.layout().shape().to_vec();
    let last = shape.len() - 1;
    shape[last] = d_output;
    let input = contiguous(input);
    let rows = input.chunks_exact(d_input);
    let rows: Vec<Row> = rows.map(Row::of).collect::<Option<_>>()?;
    let (scales, bias) = affine.into_parts();
    let scales = scales.storage::<f32>();
    let bias = bias.map(contiguous);
    let bias = bias.as_deref();
    let bias = |output: usize| bias.map_or(0.0, |bias| bias[output]);
    let pieces = products(&rows, numbers, |_, output, product| {
        scales[output] * product + bias(output)
    });
    let mut outputs = vec![0.0; rows.len() * d_output];
    for (first, rows) in pieces {
        for (row, values) in outputs.chunks_exact_mut(d_output).zip(rows) {
            row[first..][..values.len()].copy_from_slice(&values);
        }
    }
    Some(tensor(outputs, Shape::from(shape)))
}

/// The class with the highest logit of each row, `[rows]`. None where rows are not finite, too many classes are alike, or the matrix
/// has gaps.
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
    let [n_rows, n] = input.layout().shape().dims();
    let inputs = contiguous(input);
    let rows: Vec<Row> = inputs.chunks_exact(n).map(Row::of).collect::<Option<_>>()?;
    let (weight, bias) = affine.into_parts();
    let (weights, order) = lying(&weight)?;
    let [_, n_classes] = weight.layout().shape().dims();
    let bias = bias.map(contiguous);
    let bias = bias.as_deref();
    let bias = |class: usize| bias.map_or(0.0, |bias| bias[class]);

    let depth = n as f32;
    let bound = |(row, values): (&Row, &[f32])| {
        let total: f32 = values.iter().map(|x| x.abs()).sum();
        total * (0.5 + depth * f32::EPSILON * LARGEST) + LARGEST * depth * row.unit / 2.0
    };
    let bounds: Vec<f32> = rows.iter().zip(inputs.chunks_exact(n)).map(bound).collect();
    let scales = scales.storage::<f32>();
    // The lowest and the highest that each logit can be.
    let limits = products(&rows, numbers, |row, class, product| {
        let about = scales[class] * product;
        let (bias, error) = (bias(class), scales[class] * bounds[row] * 1.001);
        let error = error + 8.0 * f32::EPSILON * (about.abs() + bias.abs()) + f32::MIN_POSITIVE;
        [about + bias - error, about + bias + error]
    });
    let best_of = |row: usize| {
        let limits = || {
            let pieces = limits.iter();
            pieces.flat_map(|(first, rows)| (*first..).zip(&rows[row]))
        };
        let lowest = limits().fold(f32::NEG_INFINITY, |most, (_, [low, _])| most.max(*low));
        let candidates = limits().filter(|(_, [_, high])| high.is_nan() || *high >= lowest);
        let candidates: Vec<usize> = candidates.map(|(class, _)| class).collect();
        // So many are faster all at once.
        if candidates.len() > scales.len() / FEW {
            return None;
        }
        let logits = candidates.into_iter().map(|class| {
            let column = match order {
                Order::Columns => Cow::Borrowed(&weights[class * n..][..n]),
                Order::Rows => weights[class..]
                    .iter()
                    .step_by(n_classes)
                    .copied()
                    .collect(),
            };
            let product = run(Dots {
                inputs: &inputs[row * n..][..n],
                inner: n,
                weights: &column,
            });
            (class, bias(class) + product[0])
        });
        // One that is not a number is not higher than any, and none is higher than it.
        let logits = logits.filter(|(class, logit)| *class == 0 || !logit.is_nan());
        let (best, _) = logits.reduce(|best, next| if next.1 > best.1 { next } else { best })?;
        i32::try_from(best).ok()
    };
    let best = (0..n_rows).map(best_of).collect::<Option<Vec<i32>>>()?;
    Some(FlexTensor::from_data(TensorData::new(best, [n_rows])))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In both orders, of several rows, and of one that is 0: else the composed forms would answer unseen.
    #[test]
    fn the_kernels_take_usual_inputs() {
        let [rows, inner, width] = [5, 40, 300];
        let number = |index: usize| {
            let bits = (index as u32 + 1).wrapping_mul(0x9e37_79b9);
            (bits ^ (bits >> 15)).wrapping_mul(0x85eb_ca6b) as i32 as f32 / 2f32.powi(31)
        };
        let numbers = |count: usize| (0..count).map(number);
        let matrix =
            |sizes: [usize; 2]| tensor(numbers(sizes[0] * sizes[1]).collect(), Shape::new(sizes));
        let mut values: Vec<f32> = numbers(rows * inner).collect();
        values[inner..2 * inner].fill(0.0);
        let input = tensor(values, Shape::new([rows, inner]));
        for weight in [
            matrix([inner, width]),
            matrix([width, inner]).transpose(0, 1),
        ] {
            let (numbers, scales) = of(&weight).expect("they are finite");
            let by_copy = Affine::Scale(scales.clone());
            assert!(map(input.clone(), &numbers, by_copy).is_some());
            // Every class of a row of zeros is alike, so it is left out.
            let input = input.narrow(0, 2, 3);
            assert!(best(input, Affine::Scale(weight), &numbers, &scales).is_some());
        }
    }
}
