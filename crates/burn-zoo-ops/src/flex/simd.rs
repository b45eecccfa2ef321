//! Loops for the widest vectors of the processor, and elementary functions that fit them.
//!
//! The functions have no branches and no tables, so the compiler makes vector code of a loop that calls them;
//! `macerator` compiles each loop once for AVX-512, AVX2 or NEON and once for any processor, and chooses at run time.
//! Their coefficients are minimax fits.

use std::ops::{Deref, Range};

use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use macerator::{AutoArch, Simd, VFma, WithSimd};
use rayon::prelude::*;

/// Below so many elements a second thread costs more than it saves.
const PARALLEL: usize = 1 << 14;

/// Numbers that are added up side by side: two of the widest vectors.
const LANES: usize = 32;

/// Adding it rounds to whole numbers, and leaves them in the lowest bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// A loop over part of its data.
pub(super) trait Kernel {
    /// What it returns.
    type Output;

    /// The loop. `S` is the instruction set that it is compiled for.
    fn run<S: Simd>(self) -> Self::Output;
}

struct Compiled<K>(K);

impl<K: Kernel> WithSimd for Compiled<K> {
    type Output = K::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> K::Output {
        self.0.run::<S>()
    }
}

/// Runs a loop as compiled for this processor.
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    AutoArch::new().dispatch(Compiled(kernel))
}

/// `a · b + c`, in one instruction where there is one.
#[inline(always)]
pub(super) fn mul_add<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    match <f32 as VFma>::is_accelerated::<S>() {
        true => a.mul_add(b, c),
        false => a * b + c,
    }
}

/// `c₀ + x (c₁ + x (c₂ + …))`.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for index in (0..N - 1).rev() {
        sum = mul_add::<S>(sum, x, coefficients[index]);
    }
    sum
}

/// `eˣ` within 2e-7 of its value. 0 below -87.3, where 32-bit floats lose digits.
#[inline(always)]
pub(super) fn exp<S: Simd>(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    const HIGHEST: f32 = 88.722_84;
    // ln 2 in two parts, of which the first times a small whole number is exact (Cody and Waite 1980).
    const LN_2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
    // (eʳ - 1 - r) / r² for |r| ≤ ln 2 / 2.
    const REST: [f32; 5] = [
        0.499_999_94,
        0.166_665_2,
        0.041_668_4,
        0.008_368_851,
        0.001_381_432,
    ];
    let inside = if x < LOWEST { LOWEST } else { x };
    let inside = if inside > HIGHEST { HIGHEST } else { inside };
    let rounded = mul_add::<S>(inside, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = mul_add::<S>(n, -LN_2[0], inside);
    let r = mul_add::<S>(n, -LN_2[1], r);
    let power = mul_add::<S>(r * r, polynomial::<S, 5>(r, REST), r) + 1.0;
    let scaled = f32::from_bits(power.to_bits().wrapping_add(rounded.to_bits() << 23));
    let scaled = if x < LOWEST { 0.0 } else { scaled };
    let scaled = if x > HIGHEST { f32::INFINITY } else { scaled };
    if x.is_nan() { x } else { scaled }
}

/// `Φ(x)`, the normal distribution, within 2e-7, and `e^(-x²/2)`.
#[inline(always)]
pub(super) fn normal<S: Simd>(x: f32) -> (f32, f32) {
    // Mills' ratio Φ(-z) / e^(-z²/2) as t times a polynomial of t = 1 / (1 + 0.27 z), z ≥ 0: the form of Abramowitz and
    // Stegun 7.1.26.
    const MILLS: [f32; 9] = [
        0.107_720_18,
        0.107_550_51,
        0.101_759_17,
        0.072_240_27,
        0.107_399_487,
        -0.068_621_07,
        0.169_291_5,
        -0.126_255_3,
        0.028_915_285,
    ];
    let density = exp::<S>(-0.5 * x * x);
    let t = 1.0 / mul_add::<S>(x.abs(), 0.27, 1.0);
    let tail = density * t * polynomial::<S, 9>(t, MILLS);
    (if x < 0.0 { tail } else { 1.0 - tail }, density)
}

/// A tensor of 32-bit floats without gaps, which is the slice of its values.
pub(super) struct Contiguous {
    pub(super) tensor: FlexTensor,
    range: Range<usize>,
}

impl Deref for Contiguous {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.tensor.storage()[self.range.clone()]
    }
}

/// A tensor, or a copy of it, without gaps.
pub(super) fn contiguous(tensor: FlexTensor) -> Contiguous {
    let tensor = match tensor.layout().contiguous_offsets() {
        Some(_) => tensor,
        None => tensor.to_contiguous(),
    };
    let (start, end) = tensor.layout().contiguous_offsets().expect("just made so");
    Contiguous {
        tensor,
        range: start..end,
    }
}

/// Asks memory for what is read soon.
#[inline(always)]
pub(super) fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(64 / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: what it asks for is there, and it changes nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// A tensor of these values.
pub(super) fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(
        Bytes::from_elems(values),
        Layout::contiguous(shape),
        DType::F32,
    )
}

/// A function of single numbers.
pub(super) trait Unary: Copy + Sync {
    fn apply<S: Simd>(self, x: f32) -> f32;
}

/// A function of two numbers, such as a gradient.
pub(super) trait Binary: Copy + Sync {
    fn apply<S: Simd>(self, x: f32, y: f32) -> f32;
}

/// Replaces each value by a function of it.
pub(super) struct Map<'a, F>(pub(super) &'a mut [f32], pub(super) F);

impl<F: Unary> Kernel for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for x in self.0 {
            *x = self.1.apply::<S>(*x);
        }
    }
}

/// Replaces each value of the second by a function of those of both.
pub(super) struct Zip<'a, F>(pub(super) &'a [f32], pub(super) &'a mut [f32], pub(super) F);

impl<F: Binary> Kernel for Zip<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (&x, y) in self.0.iter().zip(self.1) {
            *y = self.2.apply::<S>(x, *y);
        }
    }
}

/// Replaces each value by a function of it.
pub(super) fn map(tensor: FlexTensor, function: impl Unary) -> FlexTensor {
    let length = chunk_length(tensor.layout().num_elements(), 1);
    update(tensor, length, |_, values| run(Map(values, function)))
}

/// Replaces each value of `y` by a function of those of `x` and `y`, which have one shape.
pub(super) fn zip_into(x: FlexTensor, y: FlexTensor, function: impl Binary) -> FlexTensor {
    let x = contiguous(x);
    update(y, chunk_length(x.len(), 1), |first, y| {
        run(Zip(&x[first..first + y.len()], y, function));
    })
}

/// Changes the values of a tensor in pieces of `length`, each with the number of its first: in place, or in a copy
/// where the tensor does not fill its storage or somebody else holds it.
pub(super) fn update(
    tensor: FlexTensor,
    length: usize,
    change: impl Fn(usize, &mut [f32]) + Sync,
) -> FlexTensor {
    let mut values = contiguous(tensor);
    let fills = values.tensor.storage::<f32>().len() == values.len();
    if fills && let Some(in_place) = values.tensor.try_storage_mut::<f32>() {
        let pieces = in_place.par_chunks_mut(length).enumerate();
        pieces.for_each(|(number, piece)| change(number * length, piece));
        return values.tensor;
    }
    let mut copy = Vec::with_capacity(values.len());
    let spare = &mut copy.spare_capacity_mut()[..values.len()];
    let pieces = spare.par_chunks_mut(length).zip(values.par_chunks(length));
    pieces.enumerate().for_each(|(number, (piece, values))| {
        change(number * length, piece.write_copy_of_slice(values));
    });
    // SAFETY: each value was written.
    unsafe { copy.set_len(values.len()) };
    self::tensor(copy, values.tensor.layout().shape().clone())
}

/// The tensor, or a copy that fills its storage and is nobody else's.
pub(super) fn owned(tensor: FlexTensor) -> FlexTensor {
    let length = chunk_length(tensor.layout().num_elements(), 1);
    update(tensor, length, |_, _| {})
}

/// The sums of functions of pairs of numbers, in an order that vectors allow.
#[inline(always)]
pub(super) fn sum<const N: usize>(
    x: &[f32],
    y: &[f32],
    function: impl Fn(f32, f32) -> [f32; N],
) -> [f32; N] {
    let mut lanes = [[0.0f32; LANES]; N];
    let (wide, narrow) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest = wide.remainder().iter().zip(narrow.remainder());
    for (x, y) in wide.zip(narrow) {
        for lane in 0..LANES {
            let values = function(x[lane], y[lane]);
            for (lanes, value) in lanes.iter_mut().zip(values) {
                lanes[lane] += value;
            }
        }
    }
    let mut totals = lanes.map(|lanes| lanes.iter().sum());
    for (&x, &y) in rest {
        for (total, value) in totals.iter_mut().zip(function(x, y)) {
            *total += value;
        }
    }
    totals
}

/// The sum of the products of two slices' numbers.
pub(super) struct Dot<'a>(pub(super) &'a [f32], pub(super) &'a [f32]);

impl Kernel for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let [total] = sum::<1>(self.0, self.1, |x, y| [x * y]);
        total
    }
}

/// The largest number.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let wide = values.chunks_exact(LANES);
    let rest = wide.remainder().iter().copied();
    for values in wide {
        for (lane, &value) in lanes.iter_mut().zip(values) {
            *lane = larger(*lane, value);
        }
    }
    rest.chain(lanes).fold(f32::NEG_INFINITY, larger)
}

/// How many of `length` values, whole rows of `row`, one thread takes at a time.
pub(super) fn chunk_length(length: usize, row: usize) -> usize {
    let row = row.max(1);
    match length < 2 * PARALLEL {
        true => length.max(row),
        false => PARALLEL.div_ceil(row) * row,
    }
}

/// How many of `length` values, whole rows of `row`, one thread takes at a time of rows whose sum it makes. There are not
/// many pieces, however wide rows are, and each sums at least as many rows.
pub(super) fn summing_length(length: usize, row: usize) -> usize {
    let rows = (length / row.max(1)).div_ceil(32);
    chunk_length(length, row).max(rows * row)
}

/// The sum of vectors of a width, in their order, so that it is always the same.
pub(super) fn add_up<'a>(width: usize, parts: impl IntoIterator<Item = &'a Vec<f32>>) -> Vec<f32> {
    let mut total = vec![0.0; width];
    for part in parts {
        total
            .iter_mut()
            .zip(part)
            .for_each(|(total, part)| *total += part);
    }
    total
}

/// Whether all are of 32-bit floats, for which these kernels are.
pub(super) fn are_f32<const N: usize>(tensors: [&FlexTensor; N]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each value by the code for this processor, for any, and for AVX2.
    fn by_all(values: &[f32], function: impl Unary) -> Vec<Vec<f32>> {
        struct Each<'a, F>(&'a [f32], F);
        impl<F: Unary> Kernel for Each<'_, F> {
            type Output = Vec<f32>;
            #[inline(always)]
            fn run<S: Simd>(self) -> Vec<f32> {
                self.0.iter().map(|&x| self.1.apply::<S>(x)).collect()
            }
        }
        let mut found = vec![run(Each(values, function))];
        #[cfg(target_arch = "x86_64")]
        {
            use macerator::Arch;
            // SAFETY: every processor can do it.
            found.push(unsafe { Arch::Scalar.dispatch(Compiled(Each(values, function))) });
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: this one can.
                found.push(unsafe { Arch::V3.dispatch(Compiled(Each(values, function))) });
            }
        }
        found
    }

    fn assert_within(
        found: &[Vec<f32>],
        expected: impl Fn(usize) -> f64,
        bound: impl Fn(f64) -> f64,
    ) {
        for found in found {
            for (index, &found) in found.iter().enumerate() {
                let expected = expected(index);
                let difference = (f64::from(found) - expected).abs();
                assert!(
                    difference <= bound(expected),
                    "{index}: {found} instead of {expected}"
                );
            }
        }
    }

    /// A processor with these instructions has its loops compiled for them.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn loops_use_what_the_processor_has() {
        struct IsAccelerated;
        impl Kernel for IsAccelerated {
            type Output = bool;
            #[inline(always)]
            fn run<S: Simd>(self) -> bool {
                <f32 as VFma>::is_accelerated::<S>()
            }
        }
        assert_eq!(run(IsAccelerated), is_x86_feature_detected!("fma"));
    }

    #[test]
    fn exponentials_are_within_their_bound() {
        #[derive(Clone, Copy)]
        struct Exp;
        impl Unary for Exp {
            #[inline(always)]
            fn apply<S: Simd>(self, x: f32) -> f32 {
                exp::<S>(x)
            }
        }
        let values: Vec<f32> = (0..2_000_000).map(|i| i as f32 * 8.8e-5 - 87.29).collect();
        let expected = |index: usize| f64::from(values[index]).exp();
        assert_within(&by_all(&values, Exp), expected, |value| 2e-7 * value);
        for found in by_all(
            &[
                f32::NEG_INFINITY,
                -1e30,
                -90.0,
                f32::INFINITY,
                89.0,
                f32::NAN,
                0.0,
            ],
            Exp,
        ) {
            assert_eq!(found[..5], [0.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY]);
            assert!(found[5].is_nan() && found[6] == 1.0);
        }
    }

    #[test]
    fn the_normal_distribution_is_within_its_bound() {
        #[derive(Clone, Copy)]
        struct Normal;
        impl Unary for Normal {
            #[inline(always)]
            fn apply<S: Simd>(self, x: f32) -> f32 {
                normal::<S>(x).0
            }
        }
        let values: Vec<f32> = (0..400_000).map(|i| i as f32 * 5e-5 - 10.0).collect();
        // Simpson's rule, from the left.
        let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
        let mut sum = 7.6e-24;
        let mut distribution = vec![sum];
        for pair in values.windows(2) {
            let [a, b] = [pair[0], pair[1]].map(f64::from);
            sum += (b - a) / 6.0 * (density(a) + 4.0 * density((a + b) / 2.0) + density(b));
            distribution.push(sum);
        }
        assert_within(
            &by_all(&values, Normal),
            |index| distribution[index],
            |_| 2e-7,
        );
        for found in by_all(&[f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -0.0], Normal) {
            assert_eq!(found[..2], [0.0, 1.0]);
            assert!(found[2].is_nan());
            assert!((found[3] - 0.5).abs() < 1e-7);
        }
    }
}
