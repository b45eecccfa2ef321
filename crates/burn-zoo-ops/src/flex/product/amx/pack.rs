//! Numbers of a side of a product, in the three pieces and in the order in which the tile unit reads them.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::{Function, Matrix, Operand};
use super::each;
use super::tiles::{DEPTH, LINES, Step, Tiles};
use super::unit::Unit;
use crate::flex::activation::{activate, activate_gate};

/// Lines of a side: rows of the left one, columns of the right one.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Side {
    /// A tile has a line in each row.
    Left,
    /// A tile has two numbers of each line in each row.
    Right,
}

/// Panels of [`LINES`] lines.
pub(super) struct Packed {
    steps: Vec<Step>,
    /// Steps of a panel.
    length: usize,
    side: Side,
}

/// Packed panels, from one of them and from a step on.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    steps: &'a [Step],
    length: usize,
}

impl Panels<'_> {
    pub(super) fn skip(self, panel: usize, step: usize) -> Self {
        let steps = &self.steps[panel * self.length + step..];
        Self { steps, ..self }
    }

    pub(super) fn step(self, panel: usize, step: usize) -> *const Step {
        self.steps[panel * self.length + step..].as_ptr()
    }
}

impl Packed {
    /// None yet, in the room of others.
    pub(super) fn new(side: Side, room: Vec<Step>) -> Self {
        Self {
            steps: room,
            length: 0,
            side,
        }
    }

    pub(super) fn into_room(self) -> Vec<Step> {
        self.steps
    }

    pub(super) fn panels(&self) -> Panels<'_> {
        Panels {
            steps: &self.steps,
            length: self.length,
        }
    }

    /// Splits the numbers of an operand whose rows are the lines. Its rows or its columns are side by side.
    ///
    /// # Safety
    ///
    /// The operand has this size.
    pub(super) unsafe fn fill(
        &mut self,
        _: Tiles,
        operand: Operand,
        [lines, depth]: [usize; 2],
        is_parallel: bool,
    ) {
        /// So many steps of a panel, or so many panels at a step, are one piece of work.
        const RUN: usize = 64;
        struct Room(*mut Step);
        // SAFETY: each thread writes its own steps.
        unsafe impl Sync for Room {}

        let (panels, length) = (lines.div_ceil(LINES), depth.div_ceil(DEPTH));
        self.length = length;
        self.steps.clear();
        if self.steps.capacity() < panels * length {
            // The old room goes before there is a new one.
            self.steps = Vec::new();
            self.steps.reserve_exact(panels * length);
        }
        let room = Room(self.steps.as_mut_ptr());
        let side = self.side;
        let fill = |panel: usize, step: usize| {
            let room = &room;
            let size = [lines - panel * LINES, depth - step * DEPTH];
            let here = operand.map(|matrix| matrix.skip(panel * LINES, step * DEPTH));
            // SAFETY: the processor has these vectors, the step is within the room, and no other thread writes it.
            unsafe {
                let step = room.0.add(panel * length + step);
                match here.function {
                    None => split(side, here.matrix, size, step),
                    Some(function) => split_activated(side, here.matrix, function, size, step),
                }
            }
        };
        // What is read one after the other lies side by side, as far as it can: the memory is what is waited for. And
        // what follows on a line of panels or steps is far enough ahead to be fetched, and near enough to be still there.
        let runs = |count: usize| count.div_ceil(RUN);
        let run = |number: usize, count: usize| number * RUN..((number + 1) * RUN).min(count);
        match operand.matrix.strides[1] == 1 {
            true => each(is_parallel, runs(length) * panels, |number| {
                run(number / panels, length).for_each(|step| fill(number % panels, step));
            }),
            false => each(is_parallel, length * runs(panels), |number| {
                let (step, number) = (number / runs(panels), number % runs(panels));
                run(number, panels).for_each(|panel| fill(panel, step));
            }),
        }
        // SAFETY: each was written.
        unsafe { self.steps.set_len(panels * length) };
    }
}

/// As [`split`], of what an activation makes of a matrix.
///
/// # Safety
///
/// As that one's.
#[target_feature(enable = "avx512f")]
unsafe fn split_activated(
    side: Side,
    matrix: Matrix,
    function: Function,
    size: [usize; 2],
    step: *mut Step,
) {
    // Numbers that are side by side stay so.
    let is_by_depth = matrix.strides[1] == 1;
    let by_row = |matrix: Matrix| match is_by_depth {
        true => matrix,
        false => matrix.transposed(),
    };
    let [lines, depth] = size;
    let of_unit = match is_by_depth {
        true => [lines, depth],
        false => [depth, lines],
    };
    let mut units = [const { MaybeUninit::uninit() }; 2];
    let [first, second] = units.each_mut();
    let copy = |room, matrix: Matrix| {
        let next_panel = matrix.skip(LINES, 0);
        // SAFETY: the matrices have this size.
        unsafe { Unit::copy(room, by_row(matrix), by_row(next_panel), of_unit) }
    };
    let unit = match function.up {
        None => {
            let unit = copy(first, matrix);
            activate(unit.numbers(), function.activation);
            unit
        }
        Some(up) => {
            let (gate, unit) = (copy(first, matrix), copy(second, up));
            activate_gate(gate.numbers(), unit.numbers(), function.activation);
            unit
        }
    };
    // SAFETY: as promised.
    unsafe { split(side, by_row(unit.matrix()), size, step) };
}

/// Splits what a matrix has of a step; beyond its size there are zeros.
///
/// Number `i` of a line makes a pair with number `16 + i`. Any order is right that both sides have, and this one needs no
/// shuffles.
///
/// # Safety
///
/// The matrix has this size, and the step is nobody else's; it need not be written before.
#[target_feature(enable = "avx512f")]
unsafe fn split(side: Side, matrix: Matrix, [lines, depth]: [usize; 2], step: *mut Step) {
    let is_by_depth = matrix.strides[1] == 1;
    for half in 0..2 {
        let lines = lines.saturating_sub(16 * half).min(16);
        let matrix = matrix.skip(16 * half, 0);
        // Of a line 32 numbers, or of 16 lines two.
        let read = |row: usize| {
            let (pair, masks) = if is_by_depth {
                let present = if row < lines { depth } else { 0 };
                let masks = [first(present), first(present.saturating_sub(16))];
                ([matrix.skip(row, 0), matrix.skip(row, 16)], masks)
            } else {
                let here = [row, row + 16];
                let masks = here.map(|index| if index < depth { first(lines) } else { 0 });
                (here.map(|index| matrix.skip(0, index)), masks)
            };
            // The same of the next panel, which the processor does not see coming by itself.
            for numbers in pair {
                _mm_prefetch::<_MM_HINT_T1>(numbers.skip(LINES, 0).values.cast());
            }
            // SAFETY: what is read is within the matrix.
            unsafe {
                [
                    _mm512_maskz_loadu_ps(masks[0], pair[0].values),
                    _mm512_maskz_loadu_ps(masks[1], pair[1].values),
                ]
            }
        };
        let write = |row: usize, numbers: [__m512; 2]| {
            for (piece, numbers) in pieces(numbers).into_iter().enumerate() {
                // SAFETY: it is the place of 16 pairs within the step.
                unsafe {
                    _mm512_storeu_si512((&raw mut (*step).0[piece][half][row]).cast(), numbers);
                }
            }
        };
        // A tile of the left side has lines as rows, and one of the right side as columns.
        if (side == Side::Left) == is_by_depth {
            (0..16).for_each(|row| write(row, read(row)));
        } else {
            let [mut low, mut high] = [[_mm512_setzero_ps(); 16]; 2];
            for row in 0..16 {
                [low[row], high[row]] = read(row);
            }
            let (low, high) = (transpose(low), transpose(high));
            (0..16).for_each(|row| write(row, [low[row], high[row]]));
        }
    }
}

/// The first `count` of 16.
fn first(count: usize) -> __mmask16 {
    ((1u32 << count.min(16)) - 1) as __mmask16
}

/// Three pieces of 16 numbers and of 16 others, in pairs. The first two are the bfloat16 numbers that are nearest to what
/// there is yet; what they leave is one.
#[inline]
#[target_feature(enable = "avx512f")]
fn pieces(mut rest: [__m512; 2]) -> [__m512i; 3] {
    let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    let half = _mm512_set1_epi32(0x8000);
    let mut next = || {
        let nearest = rest.map(|numbers| {
            let bits = _mm512_add_epi32(_mm512_castps_si512(numbers), half);
            _mm512_and_si512(bits, high)
        });
        for (rest, piece) in rest.iter_mut().zip(nearest) {
            *rest = _mm512_sub_ps(*rest, _mm512_castsi512_ps(piece));
        }
        pair(nearest)
    };
    let [a, b] = [next(), next()];
    let last = rest.map(|numbers| _mm512_and_si512(_mm512_castps_si512(numbers), high));
    [a, b, pair(last)]
}

/// The upper halves of numbers, side by side.
#[inline]
#[target_feature(enable = "avx512f")]
fn pair([a, b]: [__m512i; 2]) -> __m512i {
    _mm512_or_si512(_mm512_srli_epi32::<16>(a), b)
}

/// Rows of 16 become columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512; 16]) -> [__m512; 16] {
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    // Now each quarter of a vector has columns of four rows.
    let mut quads = pairs;
    for i in 0..4 {
        for high in 0..2 {
            let [a, b] = [0, 2].map(|more| _mm512_castps_pd(pairs[4 * i + high + more]));
            quads[4 * i + 2 * high] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            quads[4 * i + 2 * high + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    // quads[4 i + c] has, in quarter q, column 4 q + c of rows 4 i to 4 i + 3.
    let mut columns = rows;
    for c in 0..4 {
        let [a, b, d, e] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        let (low, high) = (
            _mm512_shuffle_f32x4::<0x44>(a, b),
            _mm512_shuffle_f32x4::<0x44>(d, e),
        );
        let (low_2, high_2) = (
            _mm512_shuffle_f32x4::<0xee>(a, b),
            _mm512_shuffle_f32x4::<0xee>(d, e),
        );
        columns[c] = _mm512_shuffle_f32x4::<0x88>(low, high);
        columns[4 + c] = _mm512_shuffle_f32x4::<0xdd>(low, high);
        columns[8 + c] = _mm512_shuffle_f32x4::<0x88>(low_2, high_2);
        columns[12 + c] = _mm512_shuffle_f32x4::<0xdd>(low_2, high_2);
    }
    columns
}
