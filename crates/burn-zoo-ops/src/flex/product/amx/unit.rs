//! Parts of matrices between memory and tiles: what activations work on, and sums of products.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::mem::MaybeUninit;

use super::super::{Matrix, UNIT};

/// Rows of a part of a matrix that stays in the first cache.
#[repr(C, align(64))]
pub(super) struct Unit(pub(super) [[f32; UNIT]; UNIT]);

impl Unit {
    /// What a matrix has of a unit from its beginning on, rows side by side; the rest is zeros. Meanwhile `next`, which lies as
    /// it does, is brought nearer.
    ///
    /// # Safety
    ///
    /// The matrix has this size.
    pub(super) unsafe fn copy(
        room: &mut MaybeUninit<Self>,
        matrix: Matrix,
        next: Matrix,
        [rows, columns]: [usize; 2],
    ) -> &mut Self {
        let is_whole = rows >= UNIT && columns >= UNIT;
        if !is_whole {
            room.write(Self([[0.0; UNIT]; UNIT]));
        }
        let unit = room.as_mut_ptr().cast::<[f32; UNIT]>();
        for number in 0..rows.min(UNIT) {
            let (row, next) = (matrix.skip(number, 0).values, next.skip(number, 0).values);
            // SAFETY: the matrix has these numbers, and what is fetched changes nothing.
            unsafe {
                for half in [0, UNIT / 2] {
                    _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(half).cast());
                }
                let unit = unit.add(number);
                match is_whole {
                    true => unit.write(row.cast::<[f32; UNIT]>().read()),
                    false => row.copy_to_nonoverlapping(unit.cast(), columns.min(UNIT)),
                }
            }
        }
        // SAFETY: all was written.
        unsafe { room.assume_init_mut() }
    }

    pub(super) fn numbers(&mut self) -> &mut [f32] {
        self.0.as_flattened_mut()
    }

    pub(super) fn matrix(&mut self) -> Matrix {
        Matrix::dense(self.numbers(), UNIT)
    }
}
