//! Products of a few rows with a large matrix, as when one token is written.
//!
//! They take as long as reading the matrix, so it is read once, and in several places side by side, which memory serves
//! faster than one after the other.

use std::ops::Range;

use macerator::{Scalar, Simd, Vector, vload_unaligned, vstore_unaligned};
use rayon::prelude::*;

use super::{Matrix, Start};
use crate::flex::simd::{Kernel, add_up, mul_add, run};

/// Up to so many rows, a product on all threads takes as long as reading the matrix.
const FEW: usize = 8;

/// Places of the matrix that are read side by side.
pub(in crate::flex) const STREAMS: usize = 8;

/// Values of the matrix that a thread takes at a time, columns: 512 kB. It does not depend on the number of threads, so
/// neither does the result.
const PIECE: usize = 1 << 17;

/// The same of rows, at least: 128 kB, so that of a small matrix as well there are enough pieces for threads to end together.
const ROWS_PIECE: usize = 1 << 15;

/// Sums of outputs that are added up at the end, at most.
const PARTS: usize = 16;

/// Rows of the input that use a value together.
const GROUP: usize = 4;

/// Columns that stay in the fastest cache while all rows use them.
const COLUMNS: usize = 512;

/// How the values of a matrix of `[inner, width]` lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::flex) enum Order {
    /// Row after row.
    Rows,
    /// Column after column, as those of an embedding that is also the output layer.
    Columns,
}

impl Order {
    /// That of a matrix with these strides, if it has no gaps.
    pub(in crate::flex) fn of([inner, width]: [usize; 2], strides: [isize; 2]) -> Option<Self> {
        match strides {
            [row, 1] if row == width as isize => Some(Self::Rows),
            [1, column] if column == inner as isize => Some(Self::Columns),
            _ => None,
        }
    }
}

/// As [`super::product`]. Returns whether it has done it: not for more than few rows, nor where values have
/// gaps.
///
/// # Safety
///
/// As that one's.
pub(super) unsafe fn product(
    [rows, width, inner]: [usize; 3],
    target: Matrix,
    start: Start,
    left: Matrix,
    right: Matrix,
    is_parallel: bool,
) -> bool {
    let few = if is_parallel { FEW } else { 1 };
    let has_gaps = |matrix: Matrix, width: usize| {
        matrix.strides[1] != 1 || rows > 1 && matrix.strides[0] != width as isize
    };
    let Some(order) = Order::of([inner, width], right.strides) else {
        return false;
    };
    let is_empty = rows * width * inner == 0;
    if rows > few || is_empty || has_gaps(left, inner) || has_gaps(target, width) {
        return false;
    }
    // SAFETY: the matrices have these sizes and no gaps, and the target is written before it is read.
    let (inputs, weights, output) = unsafe {
        match start {
            Start::Zero => target.values.write_bytes(0, rows * width),
            Start::Row(row) => (0..rows).for_each(|index| {
                let target = target.skip(index, 0).values;
                target.copy_from_nonoverlapping(row.as_ptr(), width);
            }),
            Start::Target => {}
        }
        (
            std::slice::from_raw_parts(left.values, rows * inner),
            std::slice::from_raw_parts(right.values, inner * width),
            std::slice::from_raw_parts_mut(target.values, rows * width),
        )
    };
    add_product(
        inputs,
        weights,
        order,
        output,
        [rows, width, inner],
        is_parallel,
    );
    true
}

/// Adds `inputs · weights`, `[rows, inner] · [inner, width]`, to `output`.
fn add_product(
    inputs: &[f32],
    weights: &[f32],
    order: Order,
    output: &mut [f32],
    [rows, width, inner]: [usize; 3],
    is_parallel: bool,
) {
    let (line, piece) = match order {
        Order::Rows => (width, ROWS_PIECE.max(weights.len() / PARTS)),
        Order::Columns => (inner, PIECE),
    };
    let lines = match is_parallel {
        true => piece.div_ceil(line),
        false => weights.len() / line,
    };
    match order {
        Order::Rows => {
            let sums = each(weights, lines * line, |number, weights| {
                run(RowSums {
                    inputs,
                    inner,
                    first: number * lines,
                    weights,
                    width,
                    n_outputs: output.len(),
                })
            });
            let total = add_up(output.len(), &sums);
            output.iter_mut().zip(total).for_each(|(y, sum)| *y += sum);
        }
        Order::Columns => {
            let products = each(weights, lines * line, |_, weights| {
                run(Dots {
                    inputs,
                    inner,
                    weights,
                })
            });
            for (number, products) in products.iter().enumerate() {
                let n = products.len() / rows;
                for (row, products) in output.chunks_mut(width).zip(products.chunks(n)) {
                    let target = &mut row[number * lines..][..n];
                    target
                        .iter_mut()
                        .zip(products)
                        .for_each(|(y, sum)| *y += sum);
                }
            }
        }
    }
}

/// The results of pieces with their numbers. A single one is not worth another thread.
fn each<R: Send>(
    weights: &[f32],
    length: usize,
    work: impl Fn(usize, &[f32]) -> R + Sync,
) -> Vec<R> {
    match length >= weights.len() {
        true => vec![work(0, weights)],
        false => {
            let pieces = weights.par_chunks(length).enumerate();
            pieces
                .map(|(number, weights)| work(number, weights))
                .collect()
        }
    }
}

/// The sums of some rows of the matrix, each times a value of the input.
struct RowSums<'a> {
    inputs: &'a [f32],
    inner: usize,
    /// Which row of the matrix `weights` starts with.
    first: usize,
    weights: &'a [f32],
    width: usize,
    n_outputs: usize,
}

impl Kernel for RowSums<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<f32> {
        let mut output = vec![0.0; self.n_outputs];
        let blocks = self.weights.chunks(STREAMS * self.width);
        for (weights, first) in blocks.zip((self.first..).step_by(STREAMS)) {
            for column in (0..self.width).step_by(COLUMNS) {
                let block = Block {
                    weights,
                    first,
                    columns: column..self.width.min(column + COLUMNS),
                };
                let groups = output.chunks_mut(GROUP * self.width);
                for (sums, inputs) in groups.zip(self.inputs.chunks(GROUP * self.inner)) {
                    if sums.len() == GROUP * self.width {
                        self.add::<S, GROUP>(sums, inputs, &block);
                        continue;
                    }
                    let sums = sums.chunks_exact_mut(self.width);
                    for (sums, input) in sums.zip(inputs.chunks_exact(self.inner)) {
                        self.add::<S, 1>(sums, input, &block);
                    }
                }
            }
        }
        output
    }
}

/// Up to [`STREAMS`] rows of a matrix from the first on, of which some columns are taken.
struct Block<'a> {
    weights: &'a [f32],
    first: usize,
    columns: Range<usize>,
}

impl RowSums<'_> {
    /// Adds the products of `N` rows of the input with a block to their sums. Each value of the block is loaded once for all.
    #[inline(always)]
    fn add<S: Simd, const N: usize>(&self, sums: &mut [f32], inputs: &[f32], block: &Block) {
        let (width, n) = (self.width, block.columns.len());
        let height = block.weights.len() / width;
        let mut factors = [[0.0; STREAMS]; N];
        let mut rows: [&[f32]; STREAMS] = [&[]; STREAMS];
        for stream in 0..height {
            rows[stream] = &block.weights[stream * width..][block.columns.clone()];
            for row in 0..N {
                factors[row][stream] = inputs[row * self.inner + block.first + stream];
            }
        }
        let lanes = f32::lanes::<S>();
        let wide = if height == STREAMS {
            n / lanes * lanes
        } else {
            0
        };
        let place = |row: usize, index: usize| row * width + block.columns.start + index;
        assert!(sums.len() == N * width);
        for index in (0..wide).step_by(lanes) {
            let mut totals = [0.0f32.splat::<S>(); N];
            for (row, total) in totals.iter_mut().enumerate() {
                // SAFETY: from here on there are as many sums, and values below, as a vector has.
                *total = unsafe { vload_unaligned(sums.as_ptr().add(place(row, index))) };
            }
            for stream in 0..STREAMS {
                // SAFETY: as above.
                let values: Vector<S, f32> =
                    unsafe { vload_unaligned(rows[stream].as_ptr().add(index)) };
                for (total, factors) in totals.iter_mut().zip(&factors) {
                    *total = factors[stream].splat::<S>().mul_add(values, *total);
                }
            }
            for (row, &total) in totals.iter().enumerate() {
                // SAFETY: as above.
                unsafe { vstore_unaligned(sums.as_mut_ptr().add(place(row, index)), total) };
            }
        }
        for row in 0..N {
            for index in wide..n {
                let sum = &mut sums[place(row, index)];
                for stream in 0..height {
                    *sum = mul_add::<S>(factors[row][stream], rows[stream][index], *sum);
                }
            }
        }
    }
}

/// The products of the input with some columns of the matrix, all of the first row, then of the next.
pub(in crate::flex) struct Dots<'a> {
    pub(in crate::flex) inputs: &'a [f32],
    pub(in crate::flex) inner: usize,
    pub(in crate::flex) weights: &'a [f32],
}

impl Kernel for Dots<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<f32> {
        let n = self.weights.len() / self.inner;
        let mut output = vec![0.0; self.inputs.len() / self.inner * n];
        let blocks = self.weights.chunks(STREAMS * self.inner);
        for (weights, first) in blocks.zip((0..).step_by(STREAMS)) {
            let rows = output.chunks_exact_mut(n);
            for (output, input) in rows.zip(self.inputs.chunks_exact(self.inner)) {
                if weights.len() == STREAMS * self.inner {
                    let column = |column: usize| &weights[column * self.inner..][..self.inner];
                    let sums = dots::<S, STREAMS>(input, std::array::from_fn(column));
                    output[first..][..STREAMS].copy_from_slice(&sums);
                } else {
                    let columns = weights.chunks_exact(self.inner);
                    for (output, column) in output[first..].iter_mut().zip(columns) {
                        [*output] = dots::<S, 1>(input, [column]);
                    }
                }
            }
        }
        output
    }
}

/// The products of one vector with several. The sums are written as vectors: the compiler does not find them by itself.
#[inline(always)]
fn dots<S: Simd, const N: usize>(x: &[f32], ys: [&[f32]; N]) -> [f32; N] {
    let lanes = f32::lanes::<S>();
    let wide = x.len() / lanes * lanes;
    let ys = ys.map(|y| &y[..x.len()]);
    let mut sums = [0.0f32.splat::<S>(); N];
    for first in (0..wide).step_by(lanes) {
        // SAFETY: from `first` on there are as many values as a vector has.
        let load =
            |values: &[f32]| unsafe { vload_unaligned::<S, f32>(values.as_ptr().add(first)) };
        let x = load(x);
        for n in 0..N {
            sums[n] = x.mul_add(load(ys[n]), sums[n]);
        }
    }
    std::array::from_fn(|n| {
        let rest = x[wide..].iter().zip(&ys[n][wide..]);
        sums[n].reduce_add() + rest.map(|(x, y)| x * y).sum::<f32>()
    })
}
