//! Products of matrices anywhere in memory: of few rows as fast as memory is, of more on the tiles of processors that have
//! them, by the `gemm` crate on others.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub(super) mod few_rows;

use burn_flex::FlexTensor;
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use crate::Activation;

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

    /// Of a tensor `[rows, columns]` that is only read.
    pub(super) fn of(tensor: &FlexTensor) -> Self {
        let (layout, values) = (tensor.layout(), tensor.storage::<f32>());
        let strides = layout.strides();
        Self {
            values: values
                .as_ptr()
                .wrapping_add(layout.start_offset())
                .cast_mut(),
            strides: [strides[0], strides[1]],
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

    /// From a row and a column on.
    pub(super) fn skip(self, row: usize, column: usize) -> Self {
        let [rows, columns] = self.strides;
        let values = self
            .values
            .wrapping_offset(row as isize * rows + column as isize * columns);
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
unsafe impl Send for Matrix {}
// SAFETY: as above.
unsafe impl Sync for Matrix {}

/// A side of a product: a matrix, or what an activation makes of it, which is in memory in the pieces that products split alone.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    matrix: Matrix,
    function: Option<Function>,
}

/// What numbers become before they are multiplied.
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code)
)]
#[derive(Clone, Copy)]
struct Function {
    activation: Activation,
    /// What the activation is multiplied by, if anything: a matrix that lies as the other one does.
    up: Option<Matrix>,
}

impl From<Matrix> for Operand {
    fn from(matrix: Matrix) -> Self {
        Self {
            matrix,
            function: None,
        }
    }
}

impl Operand {
    /// `activation(matrix)`, or `activation(matrix) ∘ up` of two matrices that lie alike.
    pub(super) fn activated(matrix: Matrix, activation: Activation, up: Option<Matrix>) -> Self {
        debug_assert!(up.is_none_or(|up| up.strides == matrix.strides));
        Self {
            matrix,
            function: Some(Function { activation, up }),
        }
    }

    fn map(self, change: impl Fn(Matrix) -> Matrix) -> Self {
        Self {
            matrix: change(self.matrix),
            function: self.function.map(|function| Function {
                up: function.up.map(change),
                ..function
            }),
        }
    }

    pub(super) fn transposed(self) -> Self {
        self.map(Matrix::transposed)
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// Nothing: the target need not be written before.
    Zero,
    /// This row, as long as those of the target, in each of them. They need not be written before.
    Row(&'a [f32]),
    /// What the target has.
    Target,
}

/// Whether a product with this right side can have an activation on the left, where, as in its target, rows or columns are
/// side by side: that is where numbers are split.
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    expect(unused_variables)
)]
pub(super) fn activates(sizes: [usize; 3], right: Matrix) -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return amx::pays(sizes, right);
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// `target = start + left · right` of sizes `[m, k]` and `[k, n]`, on one thread or on all.
///
/// # Safety
///
/// The matrices have these sizes, and nobody else uses the target.
///
/// # Panics
///
/// With an activation where [`activates`] says that there cannot be one, or that is added to a row in columns.
pub(super) unsafe fn product(
    [m, n, k]: [usize; 3],
    target: Matrix,
    start: Start,
    left: impl Into<Operand>,
    right: Matrix,
    is_parallel: bool,
) {
    let left = left.into();
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    // SAFETY: as promised.
    if unsafe { amx::product([m, n, k], target, start, left, right, is_parallel) } {
        return;
    }
    assert!(
        left.function.is_none(),
        "a product that splits no numbers activates none"
    );
    let left = left.matrix;
    // SAFETY: as promised.
    if unsafe { few_rows::product([m, n, k], target, start, left, right, is_parallel) } {
        return;
    }
    // SAFETY: as promised.
    unsafe { by_vectors([m, n, k], target, start, left, right, is_parallel) };
}

/// Products of a part of a [`Right`] are fastest where it begins and ends at multiples of this, or with the whole.
pub(super) const UNIT: usize = 32;

/// The right side of several products.
pub(super) struct Right {
    matrix: Matrix,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    split: Option<amx::Split>,
}

impl Right {
    /// A matrix `[k, n]` for left sides of about `m` rows, which is split here where products split their sides.
    ///
    /// # Safety
    ///
    /// The matrix has this size, and stays as it is while this is used.
    #[cfg_attr(
        not(all(target_arch = "x86_64", target_os = "linux")),
        expect(unused_variables)
    )]
    pub(super) unsafe fn split(matrix: Matrix, sizes: [usize; 3]) -> Self {
        Self {
            matrix,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: as promised.
            split: unsafe { amx::Split::new(matrix, sizes) },
        }
    }

    /// As it is, for a product or few.
    pub(super) fn whole(matrix: Matrix) -> Self {
        Self {
            matrix,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            split: None,
        }
    }

    /// `target = start + left · right` on one thread, where the right side is this one from a row and a column on.
    ///
    /// # Safety
    ///
    /// As that of [`product`], and this one is as large as that takes.
    pub(super) unsafe fn product(
        &self,
        sizes: [usize; 3],
        target: Matrix,
        start: Start,
        left: Matrix,
        [row, column]: [usize; 2],
    ) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if let Some(split) = &self.split {
            // SAFETY: as promised.
            if unsafe { split.product(sizes, target, start, left, [row, column]) } {
                return;
            }
        }
        let right = self.matrix.skip(row, column);
        // SAFETY: as promised.
        unsafe { product(sizes, target, start, left, right, false) };
    }
}

/// As [`product`], by the `gemm` crate.
///
/// # Safety
///
/// As that one's.
unsafe fn by_vectors(
    [m, n, k]: [usize; 3],
    target: Matrix,
    start: Start,
    left: Matrix,
    right: Matrix,
    is_parallel: bool,
) {
    let zeros;
    let row = match start {
        Start::Row(row) => Some(row),
        Start::Zero if k == 0 => {
            zeros = vec![0.0; n];
            Some(&zeros[..])
        }
        Start::Zero | Start::Target => None,
    };
    if let Some(row) = row {
        let fill = |index| {
            let target = target.skip(index, 0);
            for (column, &value) in row.iter().enumerate() {
                // SAFETY: it is there, and nobody else uses it.
                unsafe { target.skip(0, column).values.write(value) };
            }
        };
        match is_parallel {
            true => (0..m).into_par_iter().with_min_len(16).for_each(fill),
            false => (0..m).for_each(fill),
        }
    }
    if k == 0 {
        return;
    }
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
            !matches!(start, Start::Zero),
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
            match is_parallel {
                true => Parallelism::Rayon(0),
                false => Parallelism::None,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flex::activation::{activate, activate_gate};
    use proptest::prelude::*;
    use proptest::sample::select;

    const ACTIVATIONS: &[Activation] = &[
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Tanh,
    ];

    /// Numbers from -1 to 1.
    fn numbers(count: usize, mut seed: u64) -> Vec<f32> {
        let next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    /// A matrix of these sizes, by rows or by columns.
    fn matrix(values: &[f32], [rows, columns]: [usize; 2], is_by_column: bool) -> Matrix {
        let strides = match is_by_column {
            true => [1, rows],
            false => [columns, 1],
        };
        Matrix::read(values, strides.map(|stride| stride as isize))
    }

    fn at(matrix: Matrix, row: usize, column: usize) -> f64 {
        // SAFETY: the tests stay within their matrices.
        f64::from(unsafe { *matrix.skip(row, column).values })
    }

    type Product = unsafe fn([usize; 3], Matrix, Start, Matrix, Matrix, bool);

    /// The largest error of a product, as a share of what its terms come to without their signs.
    fn error(
        multiply: Product,
        sizes @ [m, n, k]: [usize; 3],
        start: Start,
        [left, right]: [Matrix; 2],
        is_across: bool,
        is_parallel: bool,
    ) -> f64 {
        let before = numbers(m * n, 3);
        let mut values = before.clone();
        let target = match is_across {
            true => Matrix::dense(&mut values, m).transposed(),
            false => Matrix::dense(&mut values, n),
        };
        let before = Matrix::read(&before, target.strides);
        // SAFETY: the matrices have these sizes.
        unsafe { multiply(sizes, target, start, left, right, is_parallel) };
        let mut largest = 0.0f64;
        for row in 0..m {
            for column in 0..n {
                let first = match start {
                    Start::Zero => 0.0,
                    Start::Row(row) => f64::from(row[column]),
                    Start::Target => at(before, row, column),
                };
                let (mut total, mut size) = (first, first.abs());
                for index in 0..k {
                    let term = at(left, row, index) * at(right, index, column);
                    total += term;
                    size += term.abs();
                }
                let difference = (at(target, row, column) - total).abs();
                largest = largest.max(difference / size.max(f64::MIN_POSITIVE));
            }
        }
        largest
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn products_are_sums_of_products(
            m in prop_oneof![1usize..10, 10usize..150],
            [n, k] in [1usize..150, 0usize..150],
            by_column in any::<[bool; 2]>(),
            begins in 0..3,
            is_across in any::<bool>(),
            is_parallel in any::<bool>(),
        ) {
            let sizes = [m, n, k];
            let (left, right, row) = (numbers(m * k, 7), numbers(k * n, 9), numbers(n, 5));
            let left = matrix(&left, [m, k], by_column[0]);
            let right = matrix(&right, [k, n], by_column[1]);
            let start = match begins {
                0 => Start::Zero,
                1 => Start::Row(&row),
                _ => Start::Target,
            };
            let is_across = is_across && matches!(start, Start::Target);
            for multiply in [product as Product, by_vectors] {
                let error = error(multiply, sizes, start, [left, right], is_across, is_parallel);
                prop_assert!(error < 1e-6, "{error}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The numbers that are multiplied are the same.
        #[test]
        fn an_activation_on_the_way_is_that_before(
            m in prop_oneof![16usize..150, 400usize..520],
            n in 16usize..150,
            k in prop_oneof![16usize..150, 500usize..1200],
            begins in 0..3,
            by_column in any::<[bool; 2]>(),
            activation in select(ACTIVATIONS),
            is_gate in any::<bool>(),
            is_across in any::<bool>(),
            threads in 1usize..3,
        ) {
            let sizes = [m, n, k];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (values, up, right) = (numbers(m * k, 7), numbers(m * k, 5), numbers(k * n, 9));
            let row = numbers(n, 3);
            let start = match begins {
                0 => Start::Zero,
                1 if !is_across => Start::Row(&row),
                _ => Start::Target,
            };
            let mut activated = if is_gate { up.clone() } else { values.clone() };
            match is_gate {
                true => activate_gate(&values, &mut activated, activation),
                false => activate(&mut activated, activation),
            }
            let of_left = |values| matrix(values, [m, k], by_column[0]);
            let right = matrix(&right, [k, n], by_column[1]);
            if !pool.install(|| activates(sizes, right)) {
                return Ok(()); // A processor without tiles, or a product that they do not pay for.
            }
            let up = is_gate.then(|| of_left(&up));
            let operands = [
                Operand::activated(of_left(&values), activation, up),
                of_left(&activated).into(),
            ];
            let [found, expected] = operands.map(|left| {
                let mut target = numbers(m * n, 1);
                let by_row = Matrix::dense(&mut target, if is_across { m } else { n });
                let matrix = if is_across { by_row.transposed() } else { by_row };
                // SAFETY: the matrices have these sizes.
                pool.install(|| unsafe { product(sizes, matrix, start, left, right, true) });
                target
            });
            prop_assert!(found == expected);
            prop_assert!(found != numbers(m * n, 1));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// From anywhere in it, and from and to whole units.
        #[test]
        fn a_part_of_a_right_side_multiplies_as_a_matrix_does(
            whole @ [k, n] in [1usize..1200, 1usize..150],
            shares in any::<[u8; 4]>(),
            is_by_unit in any::<bool>(),
            m in 1usize..80,
            is_by_column in any::<bool>(),
            is_across in any::<bool>(),
        ) {
            let place = |share: u8, length: usize| usize::from(share) * (length - 1) / 255;
            let unit = if is_by_unit { UNIT } else { 1 };
            let begin = |share, length| place(share, length) / unit * unit;
            let [row, column] = [begin(shares[0], k), begin(shares[1], n)];
            let end = |share, length: usize| {
                (1 + place(share, length)).next_multiple_of(unit).min(length)
            };
            let [rows, columns] = [end(shares[2], k - row), end(shares[3], n - column)];
            let (left, values, first) = (numbers(m * rows, 7), numbers(k * n, 9), numbers(columns, 5));
            let left = matrix(&left, [m, rows], is_across);
            let right = matrix(&values, whole, is_by_column);
            // SAFETY: the matrix has this size.
            let of_several = unsafe { Right::split(right, [m, n, k]) };
            let sizes = [m, columns, rows];
            for start in [Start::Zero, Start::Row(&first), Start::Target] {
                let mut found = numbers(m * columns, 3);
                let mut expected = found.clone();
                let target = Matrix::dense(&mut found, columns);
                // SAFETY: the matrices have these sizes.
                unsafe { of_several.product(sizes, target, start, left, [row, column]) };
                let target = Matrix::dense(&mut expected, columns);
                // SAFETY: as above.
                unsafe { by_vectors(sizes, target, start, left, right.skip(row, column), false) };
                for (found, expected) in found.iter().zip(&expected) {
                    prop_assert!((found - expected).abs() < 1e-5 * (rows as f32).sqrt().max(4.0));
                }
            }
        }
    }

    /// What is beyond a product's depth in the same step is not multiplied, finite or not.
    #[test]
    fn what_lies_beyond_does_not_count() {
        let [k, n] = [96, 64];
        let mut values = numbers(k * n, 9);
        values[40 * n..].fill(f32::NAN);
        // SAFETY: the matrix has this size.
        let right = unsafe { Right::split(Matrix::read(&values, [n as isize, 1]), [64, n, k]) };
        for depth in [31, 32, 33, 40] {
            let left = numbers(64 * depth, 7);
            let mut found = vec![0.0; 64 * n];
            let target = Matrix::dense(&mut found, n);
            let left = Matrix::read(&left, [depth as isize, 1]);
            // SAFETY: the matrices have these sizes.
            unsafe { right.product([64, n, depth], target, Start::Zero, left, [0, 0]) };
            assert!(found.iter().all(|value| value.is_finite()), "{depth}");
        }
    }

    /// Several blocks, depths and threads, and lines that fill no panel.
    #[test]
    fn large_products_are_about_as_exact_as_by_vectors() {
        for sizes @ [m, n, k] in [[300, 1100, 1700], [1100, 40, 900], [65, 65, 70_000]] {
            let (left, right) = (numbers(m * k, 7), numbers(k * n, 9));
            let sides = [matrix(&left, [m, k], true), matrix(&right, [k, n], true)];
            let [by_this, by_vectors] = [product as Product, by_vectors]
                .map(|multiply| error(multiply, sizes, Start::Target, sides, false, true));
            assert!(by_this <= 1.5 * by_vectors, "{by_this} and {by_vectors}");
        }
    }

    /// The numbers of a row or a column may be far larger or smaller than those of the next.
    #[test]
    fn numbers_of_all_sizes_keep_their_digits() {
        let sizes @ [m, n, k] = [64, 64, 96];
        let (mut left, mut right) = (numbers(m * k, 7), numbers(k * n, 9));
        for (index, value) in left.iter_mut().enumerate() {
            *value *= 10.0f32.powi((index / k % 31) as i32 - 15);
        }
        for (index, value) in right.iter_mut().enumerate() {
            *value *= 10.0f32.powi((index % n % 31) as i32 - 15);
        }
        let sides = [matrix(&left, [m, k], false), matrix(&right, [k, n], false)];
        let error = error(product, sizes, Start::Zero, sides, false, false);
        assert!(error < 1e-6, "{error}");
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let sizes @ [m, n, k] = [64, 64, 64];
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut left, right) = (numbers(m * k, 7), numbers(k * n, 9));
            left[5 * k + 3] = value;
            let mut found = vec![0.0; m * n];
            let target = Matrix::dense(&mut found, n);
            let sides = [matrix(&left, [m, k], false), matrix(&right, [k, n], false)];
            // SAFETY: the matrices have these sizes.
            unsafe { product(sizes, target, Start::Zero, sides[0], sides[1], false) };
            for (row, found) in found.chunks_exact(n).enumerate() {
                let expected = row != 5;
                assert!(
                    found.iter().all(|value| value.is_finite() == expected),
                    "{row}"
                );
            }
        }
    }
}
