//! Products of 32-bit floats by the tile unit of Intel's processors (AMX), which multiplies 16-bit floats.
//!
//! A 32-bit float is the exact sum of three bfloat16 pieces, of 8 bits each. Of the nine products of pieces of two numbers,
//! six are larger than what a 32-bit float can hold of the whole product, so a product of matrices is six of the tile
//! unit's, which sums in 32-bit floats: 32 products on their own first, so that the sum has fewer roundings than one that
//! is made one by one. It is the scheme of Henry, Tang and Heinecke 2019 (arXiv:1904.06376). The tile unit makes sixteen
//! times as many products at once as the vector unit, so this is 2.7 times as fast at best.
//!
//! What is otherwise than in 32-bit floats: numbers and products below 1e-38, and pieces of numbers below 1e-33, count as 0;
//! and a number from 3.39e38 on, infinity included, makes NaN of all that it is multiplied with.

mod pack;
mod tiles;
mod unit;

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::{Matrix, Operand, Start, UNIT};
use pack::{Packed, Panels, Side};
use tiles::{DEPTH, LINES, Step, Tiles};

const _: () = assert!(UNIT == LINES && UNIT == DEPTH);

/// At least so many multiplications are worth splitting numbers.
const WORTH: usize = 1 << 16;

/// Of so many products sums are made, before the next begin: a block of panels of one side and a panel of the other stay in
/// the second cache.
const DEPTHS: usize = 512;

/// The most and the fewest panels of a block.
const BLOCK: [usize; 2] = [8, 4];

/// So many numbers of the shorter side are split at once. Few in tests, so that several times are.
const SPLIT: usize = if cfg!(test) { 1 << 15 } else { 1 << 22 };

thread_local! {
    /// Room for split numbers, which stays from product to product.
    static SHORT: Cell<Vec<Step>> = const { Cell::new(Vec::new()) };
    static LONG: Cell<Vec<Step>> = const { Cell::new(Vec::new()) };
}

/// The ranges of at most `size`, or a unit, that `length` falls into, of whole units and alike.
fn pieces(length: usize, size: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let units = length.div_ceil(unit);
    let count = units.div_ceil((size / unit).max(1)).max(1);
    let size = units.div_ceil(count).max(1) * unit;
    (0..length)
        .step_by(size)
        .map(move |first| first..(first + size).min(length))
}

/// Calls with each number below `count`, on one thread or on all.
fn each(is_parallel: bool, count: usize, work: impl Fn(usize) + Send + Sync) {
    match is_parallel {
        true => (0..count).into_par_iter().for_each(work),
        false => (0..count).for_each(work),
    }
}

/// The tiles, if there are any and they pay for a product of such sizes and matrices.
fn tiles([m, n, k]: [usize; 3], matrices: &[Matrix]) -> Option<Tiles> {
    let pays = m >= LINES / 2 && n >= LINES / 2 && k >= DEPTH / 2 && m * n * k >= WORTH;
    let are_side_by_side = matrices.iter().all(|matrix| matrix.strides.contains(&1));
    match pays && are_side_by_side {
        true => Tiles::of_this_processor(),
        false => None,
    }
}

/// Whether tiles do a product with this right side and split its left side once, if they can read and write the other matrices.
pub(super) fn pays(sizes @ [m, n, _]: [usize; 3], right: Matrix) -> bool {
    let threads = rayon::current_num_threads();
    tiles(sizes, &[right]).is_some() && (m < n || Blocks::of(m, threads).threads == 1)
}

/// As [`super::product`]. Returns whether it has done it: not without [`tiles`], nor where a row is added to columns.
///
/// # Safety
///
/// As that one's.
pub(super) unsafe fn product(
    sizes: [usize; 3],
    target: Matrix,
    start: Start,
    left: Operand,
    right: Matrix,
    is_parallel: bool,
) -> bool {
    let Some(tiles) = tiles(sizes, &[target, left.matrix, right]) else {
        return false;
    };
    let threads = match is_parallel {
        true => rayon::current_num_threads(),
        false => 1,
    };
    let right = Operand::from(right.transposed());
    let [m, n, k] = sizes;
    let job = match target.strides[1] {
        1 => Job {
            tiles,
            sizes,
            target,
            left,
            right,
            threads,
        },
        _ if matches!(start, Start::Row(_)) => return false,
        // The other way round its rows are side by side.
        _ => Job {
            tiles,
            sizes: [n, m, k],
            target: target.transposed(),
            left: right,
            right: left,
            threads,
        },
    };
    // SAFETY: as promised.
    unsafe { job.run(start) };
    true
}

/// The right side of several products, split.
pub(super) struct Split {
    packed: Packed,
    depth: usize,
}

impl Split {
    /// Of a matrix `[k, n]`, unless there are no tiles, or they do not pay with `m` rows on the left side.
    ///
    /// # Safety
    ///
    /// The matrix has this size.
    pub(super) unsafe fn new(matrix: Matrix, sizes @ [_, n, k]: [usize; 3]) -> Option<Self> {
        let tiles = tiles(sizes, &[matrix])?;
        let mut packed = Packed::new(Side::Right, Vec::new());
        // SAFETY: as promised.
        unsafe { packed.fill(tiles, matrix.transposed().into(), [n, k], false) };
        Some(Self { packed, depth: k })
    }

    /// `target = start + left · right` on one thread, where the right side is what was split from a row and a column on.
    /// Returns whether it has done it: not where it does not pay, nor from the middle of a panel, nor from or to that of a
    /// step, nor where numbers of the left side or of the target's rows are apart.
    ///
    /// # Safety
    ///
    /// As that of [`super::product`], and what was split is as large as that takes.
    pub(super) unsafe fn product(
        &self,
        sizes @ [m, n, k]: [usize; 3],
        target: Matrix,
        start: Start,
        left: Matrix,
        [row, column]: [usize; 2],
    ) -> bool {
        let begins = row.is_multiple_of(DEPTH) && column.is_multiple_of(LINES);
        let ends = row + k == self.depth || k.is_multiple_of(DEPTH);
        if !begins || !ends || target.strides[1] != 1 {
            return false;
        }
        let Some(tiles) = tiles(sizes, &[left]) else {
            return false;
        };
        let meeting = Meeting {
            tiles,
            target,
            start,
            side: Side::Left,
            operand: left.into(),
            lines: 0..m,
            panels: self.packed.panels().skip(column / LINES, row / DEPTH),
            others: 0..n,
            depths: 0..k,
        };
        // SAFETY: as promised.
        unsafe { meeting.hold() };
        true
    }
}

/// How the longer side of a product falls into blocks.
struct Blocks {
    count: usize,
    /// Panels of each.
    panels: usize,
    /// So many threads have the same one, where there are few: each splits it for itself.
    threads: usize,
}

impl Blocks {
    fn of(lines: usize, threads: usize) -> Self {
        let all = lines.div_ceil(LINES);
        let [most, fewest] = BLOCK;
        let panels = all.div_ceil(2 * threads).clamp(fewest, most);
        let count = all.div_ceil(panels);
        let threads = match threads {
            1 => 1,
            _ => (2 * threads).div_ceil(count),
        };
        Self {
            count,
            panels,
            threads,
        }
    }
}

/// A product. Its sides are matrices whose rows are the lines that panels have.
struct Job {
    tiles: Tiles,
    sizes: [usize; 3],
    target: Matrix,
    left: Operand,
    right: Operand,
    threads: usize,
}

impl Job {
    /// Splits the shorter side for all threads, and has each split blocks of the longer side for itself.
    unsafe fn run(&self, start: Start) {
        let [m, n, k] = self.sizes;
        let (long_side, short_side, long, short) = match m >= n {
            true => (Side::Left, Side::Right, m, n),
            false => (Side::Right, Side::Left, n, m),
        };
        let (operand, short_operand) = match long_side {
            Side::Left => (self.left, self.right),
            Side::Right => (self.right, self.left),
        };
        let is_parallel = self.threads > 1;
        let Blocks {
            count: blocks,
            panels: block,
            threads,
        } = Blocks::of(long, self.threads);
        let mut packed = Packed::new(short_side, SHORT.take());
        for lines in pieces(short, SPLIT / DEPTHS, LINES) {
            let shared = lines.len().div_ceil(LINES);
            let groups = threads.min(shared);
            let group = shared.div_ceil(groups);
            let groups = shared.div_ceil(group);
            for depths in pieces(k, SPLIT / lines.len(), DEPTH) {
                let here = short_operand.map(|matrix| matrix.skip(lines.start, depths.start));
                let size = [lines.len(), depths.len()];
                // SAFETY: as promised.
                unsafe { packed.fill(self.tiles, here, size, is_parallel) };
                let split = packed.panels();
                let start = match depths.start {
                    0 => start,
                    _ => Start::Target,
                };
                each(is_parallel, blocks * groups, |number| {
                    let (block_number, group_number) = (number / groups, number % groups);
                    let first = block_number * block * LINES;
                    let shared = group_number * group * LINES;
                    let meeting = Meeting {
                        tiles: self.tiles,
                        target: self.target,
                        start,
                        side: long_side,
                        operand,
                        lines: first..(first + block * LINES).min(long),
                        panels: split.skip(group_number * group, 0),
                        others: lines.start + shared
                            ..(lines.start + shared + group * LINES).min(lines.end),
                        depths: depths.clone(),
                    };
                    // SAFETY: as promised, and this part of the target is nobody else's.
                    unsafe { meeting.hold() };
                });
            }
        }
        SHORT.set(packed.into_room());
    }
}

/// Lines of one side, which are split here, and those of the other, which are: what they add to the target.
struct Meeting<'a> {
    tiles: Tiles,
    /// The whole one.
    target: Matrix,
    start: Start<'a>,
    /// Which is split here.
    side: Side,
    /// All of its lines.
    operand: Operand,
    lines: Range<usize>,
    /// The other side's.
    panels: Panels<'a>,
    /// Which lines they have.
    others: Range<usize>,
    depths: Range<usize>,
}

impl Meeting<'_> {
    /// Multiplies.
    ///
    /// # Safety
    ///
    /// The matrices and the panels have these lines and depths, and nobody else uses these of the target.
    unsafe fn hold(self) {
        let Self {
            tiles,
            target,
            side,
            operand,
            lines,
            panels,
            others,
            depths,
            ..
        } = self;
        let mut block = Packed::new(side, LONG.take());
        let count = others.len().div_ceil(LINES);
        for part in pieces(depths.len(), DEPTHS, DEPTH) {
            let here = operand.map(|matrix| matrix.skip(lines.start, depths.start + part.start));
            // SAFETY: as promised.
            unsafe { block.fill(tiles, here, [lines.len(), part.len()], false) };
            let start = match part.start {
                0 => self.start,
                _ => Start::Target,
            };
            let (first, steps) = (part.start / DEPTH, part.len().div_ceil(DEPTH));
            let tiles = tiles.configured();
            for panel in 0..count {
                let next = panels.step((panel + 1).min(count - 1), first);
                for number in 0..lines.len().div_ceil(LINES) {
                    let ahead = next
                        .cast::<u8>()
                        .wrapping_add(number * steps * tiles::AHEAD);
                    let (split_here, split) =
                        (block.panels().step(number, 0), panels.step(panel, first));
                    let here = lines.start + number * LINES..lines.end;
                    let there = others.start + panel * LINES..others.end;
                    let (left, right, rows, columns) = match side {
                        Side::Left => (split_here, split, here, there),
                        Side::Right => (split, split_here, there, here),
                    };
                    let size = [rows.len().min(LINES), columns.len().min(LINES)];
                    let start = match start {
                        Start::Row(row) => Start::Row(&row[columns.start..][..size[1]]),
                        start => start,
                    };
                    let target = target.skip(rows.start, columns.start);
                    // The other side is the same in the next block.
                    let panels = [left, right, split_here.wrapping_add(1)];
                    // SAFETY: as promised, and this block of the target is nobody else's.
                    unsafe { tiles.multiply(panels, ahead, steps, target, size, start) };
                }
            }
        }
        LONG.set(block.into_room());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// From the middle of what was split, deeper than what is multiplied at once.
    #[test]
    fn a_split_side_multiplies_by_tiles() {
        let [m, n, k] = [40, 68, 1036];
        let values = |count: usize, step: usize| -> Vec<f32> {
            (0..count)
                .map(|index| ((index * step) % 17) as f32 - 8.0)
                .collect()
        };
        let (left, right) = (values(m * k, 5), values(1100 * 100, 7));
        let whole = Matrix::read(&right, [100, 1]);
        // SAFETY: the matrix has this size.
        let Some(split) = (unsafe { Split::new(whole, [m, 100, 1100]) }) else {
            return; // A processor without tiles.
        };
        let mut found = vec![0.0; m * n];
        let target = Matrix::dense(&mut found, n);
        let of_left = Matrix::read(&left, [k as isize, 1]);
        // SAFETY: the matrices have these sizes.
        assert!(unsafe { split.product([m, n, k], target, Start::Zero, of_left, [64, 32]) });
        for (row, found) in found.chunks_exact(n).enumerate() {
            for (column, &found) in found.iter().enumerate() {
                let terms = (0..k).map(|i| left[row * k + i] * right[(64 + i) * 100 + 32 + column]);
                // Whole numbers this small are exact.
                assert_eq!(found, terms.sum::<f32>(), "{row}, {column}");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_cover_all_and_are_alike(length in 0usize..5000, size in 0usize..700, unit in 1usize..64) {
            let pieces: Vec<_> = pieces(length, size, unit).collect();
            let covered: Vec<usize> = pieces.iter().cloned().flatten().collect();
            prop_assert_eq!(covered, (0..length).collect::<Vec<_>>());
            for piece in &pieces {
                prop_assert!(piece.len() <= size.max(unit) && piece.start % unit == 0);
            }
        }
    }
}
