//! Linear layers whose matrix is rounded to 8 bits.

use burn::backend::{
    Backend, TensorMetadata, get_or_init_device_settings,
    tensor::{Device, FloatTensor, IntTensor},
};
use burn::tensor::{FloatDType, Int, Shape, Tensor};

use crate::{Affine, TransformerOps, affine_of};

/// A copy of a linear layer's matrix in 8 bits and a scale for each output.
///
/// A model that writes a token at a time waits for its matrices, and reads a copy in a quarter of the time. What the layer
/// returns is about the same ([`linear`](Self::linear)). Where only the highest output is asked for, it is exactly the same
/// ([`best`](Self::best)): an output of the copy is off by less than a bound, so that most cannot be the highest, and only the
/// columns of the others are read in 32 bits.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_zoo_ops::{Quantized, linear};
///
/// let table = Tensor::<2>::random([50_000, 96], Distribution::Default, &Device::flex());
/// let hidden = Tensor::<2>::random([1, 96], Distribution::Default, &Device::flex());
/// let quantized = Quantized::of(table.clone().transpose()).expect("finite and on Flex");
/// let found = quantized.best(hidden.clone(), table.clone().transpose(), None);
/// let logits = linear(hidden.clone(), table.transpose(), None);
/// found.into_data().assert_eq(&logits.clone().argmax(1).squeeze_dim::<1>(1).into_data(), false);
/// let about = quantized.linear(hidden, None);
/// assert!((about - logits).abs().max().into_scalar::<f32>() < 0.1);
/// ```
#[derive(Clone, Debug)]
pub struct Quantized {
    /// `[d_output, d_input]`.
    numbers: Tensor<2, Int>,
    /// What they are multiplied by, `[d_output]`.
    scales: Tensor<1>,
}

impl Quantized {
    /// A copy of `weight`, `[d_input, d_output]`: on Flex, of finite 32-bit floats that lie row by row or column by column. Other
    /// backends have no kernels for it.
    pub fn of(weight: Tensor<2>) -> Option<Self> {
        let (numbers, scales) =
            <burn::backend::Dispatch as TransformerOps>::quantize(weight.into_dispatch());
        let (numbers, scales) = (
            Tensor::from_dispatch(numbers),
            Tensor::from_dispatch(scales),
        );
        (scales.dims() != [0]).then_some(Self { numbers, scales })
    }

    /// About `x W + b`. An output differs by `Σ|x| / 254` of its column's largest weight at most, and a little for the rounding of `x`.
    ///
    /// # Shapes
    ///
    /// - `input`: `[.., d_input]`
    /// - `bias`: `[d_output]`
    /// - output: `[.., d_output]`
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn linear<const D: usize>(&self, input: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
        let [d_output, d_input] = self.numbers.dims();
        let fits = input.dims().last() == Some(&d_input)
            && bias.as_ref().is_none_or(|bias| bias.dims() == [d_output]);
        assert!(
            fits,
            "quantized: the input must have {d_input} as its last dimension, a bias [{d_output}]"
        );
        let scales = self.scales.clone().into_dispatch();
        let affine = Affine::new(scales, bias.map(Tensor::into_dispatch));
        Tensor::from_dispatch(<burn::backend::Dispatch as TransformerOps>::quantized_map(
            input.into_dispatch(),
            self.numbers.clone().into_dispatch(),
            affine,
        ))
    }

    /// The class with the highest logit of `x W + b`, the first of equals; `weight` is what this is a copy of. For few rows: each
    /// has bounds for all classes.
    ///
    /// # Shapes
    ///
    /// - `input`: `[rows, d_input]`
    /// - `weight`: `[d_input, d_output]`
    /// - `bias`: `[d_output]`
    /// - output: `[rows]`
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn best(
        &self,
        input: Tensor<2>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
    ) -> Tensor<1, Int> {
        let [d_input, d_output] = weight.dims();
        assert_eq!(
            self.numbers.dims(),
            [d_output, d_input],
            "quantized: it must be of this weight"
        );
        let affine = affine_of("quantized", &input, weight, bias);
        Tensor::from_dispatch(<burn::backend::Dispatch as TransformerOps>::best_class(
            input.into_dispatch(),
            affine,
            self.numbers.clone().into_dispatch(),
            self.scales.clone().into_dispatch(),
        ))
    }
}

/// Nothing, as it is where there are no kernels for it.
pub(crate) fn none<B: Backend>(device: &Device<B>) -> (IntTensor<B>, FloatTensor<B>) {
    let int_dtype = get_or_init_device_settings::<B>(device).int_dtype;
    (
        B::int_zeros(Shape::new([0, 0]), device, int_dtype),
        B::float_zeros(Shape::new([0]), device, FloatDType::F32),
    )
}

/// `[.., d_input] → [.., d_output]`: products with rows of numbers, scaled and shifted.
pub(crate) fn composed_map<B: Backend>(
    input: FloatTensor<B>,
    numbers: IntTensor<B>,
    affine: Affine<B>,
) -> FloatTensor<B> {
    let (scales, bias) = affine.into_parts();
    let n_outputs = scales.shape()[0];
    let numbers = B::int_into_float(numbers, input.dtype().into());
    let rows = B::float_mul(
        numbers,
        B::float_reshape(scales, Shape::new([n_outputs, 1])),
    );
    B::linear(input, B::float_swap_dims(rows, 0, 1), bias)
}

/// The places of the highest logits, `[rows]`.
pub(crate) fn composed_best<B: TransformerOps>(
    input: FloatTensor<B>,
    affine: Affine<B>,
) -> IntTensor<B> {
    let logits = B::affine_map(input, affine);
    let rows = logits.shape()[0];
    let int_dtype = get_or_init_device_settings::<B>(&logits.device()).int_dtype;
    let best = B::float_argmax(logits, 1, int_dtype);
    B::int_reshape(best, Shape::new([rows]))
}
