//! Products of matrices anywhere in memory, by the `gemm` crate.

use gemm::{Parallelism, gemm};

/// A matrix somewhere in memory.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) values: *mut f32,
    /// From one to the next row and column.
    pub(super) strides: [isize; 2],
}

impl Matrix {
    /// Of values that are only read.
    pub(super) fn read(values: &[f32], strides: [isize; 2]) -> Self {
        Self {
            values: values.as_ptr().cast_mut(),
            strides,
        }
    }

    /// Rows side by side.
    pub(super) fn dense(values: &mut [f32], width: usize) -> Self {
        Self {
            values: values.as_mut_ptr(),
            strides: [width as isize, 1],
        }
    }

    /// Rows side by side in the room of a vector, which need not be written before.
    pub(super) fn room(values: &mut Vec<f32>, rows: usize, width: usize) -> Self {
        values.reserve((rows * width).saturating_sub(values.len()));
        Self {
            values: values.as_mut_ptr(),
            strides: [width as isize, 1],
        }
    }

    /// Without the first rows.
    pub(super) fn skip_rows(self, rows: usize) -> Self {
        let values = self.values.wrapping_offset(rows as isize * self.strides[0]);
        Self { values, ..self }
    }

    pub(super) fn transposed(self) -> Self {
        let [row, column] = self.strides;
        Self {
            strides: [column, row],
            ..self
        }
    }
}

// SAFETY: it is used by the rules of `product`, for all threads together.
unsafe impl Sync for Matrix {}

/// `target = [target +] left · right` of sizes `[m, k]` and `[k, n]`. What is not added to need not be written before.
///
/// # Safety
///
/// The matrices have these sizes, of which `k` is not 0, and nobody else uses the target.
pub(super) unsafe fn product(
    [m, n, k]: [usize; 3],
    target: Matrix,
    is_added: bool,
    left: Matrix,
    right: Matrix,
    parallelism: Parallelism,
) {
    debug_assert!(k > 0, "there is something to sum");
    let ([target_row, target_column], [left_row, left_column], [right_row, right_column]) =
        (target.strides, left.strides, right.strides);
    // SAFETY: as promised.
    unsafe {
        gemm(
            m,
            n,
            k,
            target.values,
            target_column,
            target_row,
            is_added,
            left.values,
            left_column,
            left_row,
            right.values,
            right_column,
            right_row,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
