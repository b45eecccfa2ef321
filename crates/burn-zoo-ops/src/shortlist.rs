//! The highest of many logits without the others.

use burn::backend::{
    Backend, TensorMetadata, get_or_init_device_settings,
    tensor::{Device, FloatTensor, IntTensor},
};
use burn::tensor::{FloatDType, Int, Shape, Tensor};

use crate::{Affine, TransformerOps, affine_of};

/// A copy of a linear layer's matrix in 8 bits, by which the class with the highest logit is found.
///
/// A logit of the copy is off by less than a bound, so that most classes cannot be the highest; only the columns of the others
/// are read in 32 bits. What comes out is what the logits themselves would give, for a quarter of the reading. A language model
/// that writes a token at a time waits for its head's matrix, a third of GPT-2's weights.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_zoo_ops::{Shortlist, linear};
///
/// let table = Tensor::<2>::random([50_000, 96], Distribution::Default, &Device::flex());
/// let hidden = Tensor::<2>::random([1, 96], Distribution::Default, &Device::flex());
/// let shortlist = Shortlist::of(table.clone().transpose()).expect("large enough");
/// let found = shortlist.best(hidden.clone(), table.clone().transpose(), None);
/// let logits = linear(hidden, table.transpose(), None);
/// found.into_data().assert_eq(&logits.argmax(1).squeeze_dim::<1>(1).into_data(), false);
/// ```
#[derive(Clone, Debug)]
pub struct Shortlist {
    /// `[n_classes, d_input]`.
    numbers: Tensor<2, Int>,
    /// What they are multiplied by, `[n_classes]`.
    scales: Tensor<1>,
}

impl Shortlist {
    /// A copy of `weight`, `[d_input, n_classes]`, where it pays: on Flex, of finite 32-bit floats that no cache holds and that
    /// lie class by class, as those of a tied embedding do.
    pub fn of(weight: Tensor<2>) -> Option<Self> {
        let (numbers, scales) =
            <burn::backend::Dispatch as TransformerOps>::class_shortlist(weight.into_dispatch());
        let (numbers, scales) = (
            Tensor::from_dispatch(numbers),
            Tensor::from_dispatch(scales),
        );
        (scales.dims() != [0]).then_some(Self { numbers, scales })
    }

    /// The class with the highest logit of `x W + b`, the first of equals; `weight` is what this is a copy of.
    ///
    /// # Shapes
    ///
    /// - `input`: `[rows, d_input]`
    /// - `weight`: `[d_input, n_classes]`
    /// - `bias`: `[n_classes]`
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
        let [d_input, n_classes] = weight.dims();
        assert_eq!(
            self.numbers.dims(),
            [n_classes, d_input],
            "shortlist: it must be of this weight"
        );
        let affine = affine_of("shortlist", &input, weight, bias);
        Tensor::from_dispatch(<burn::backend::Dispatch as TransformerOps>::best_class(
            input.into_dispatch(),
            affine,
            self.numbers.clone().into_dispatch(),
            self.scales.clone().into_dispatch(),
        ))
    }
}

/// Nothing, as it is where it does not pay.
pub(crate) fn none<B: Backend>(device: &Device<B>) -> (IntTensor<B>, FloatTensor<B>) {
    let int_dtype = get_or_init_device_settings::<B>(device).int_dtype;
    (
        B::int_zeros(Shape::new([0, 0]), device, int_dtype),
        B::float_zeros(Shape::new([0]), device, FloatDType::F32),
    )
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
