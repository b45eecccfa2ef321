//! Initial parameters from a seeded host generator.
//!
//! Burn draws initial values on the device, so two backends start from different models. Here every
//! value comes from one ChaCha generator on the host: the same seed gives the same model on every
//! backend. The generator belongs to the thread; [`seed`] restarts it.

use std::cell::{Cell, RefCell};

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Shape, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::linear::Linear;

thread_local! {
    static GENERATOR: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(0));
}

thread_local! {
    static IS_SHAPE_ONLY: Cell<bool> = const { Cell::new(false) };
}

/// Runs `build` so that parameters made in it have shapes, but no values and no memory: for counting,
/// drawing, and for models whose values are read from a file. One that is used all the same is zero.
pub fn shapes_only<T>(build: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_SHAPE_ONLY.set(self.0);
        }
    }
    let _restore = Restore(IS_SHAPE_ONLY.replace(true));
    build()
}

/// A parameter that is zero when it is first used.
fn shape_only<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    let zeros = move |device: &Device, tracked: bool| {
        let tensor = Tensor::zeros(shape, device);
        match tracked {
            true => tensor.require_grad(),
            false => tensor,
        }
    };
    Param::uninitialized(
        ParamId::new(),
        zeros,
        device.clone(),
        true,
        Shape::from(shape),
    )
}

/// Restarts this thread's generator: modules initialised after it are a function of `seed`.
pub fn seed(seed: u64) {
    GENERATOR.with_borrow_mut(|generator| *generator = ChaCha8Rng::seed_from_u64(seed));
}

/// A parameter drawn from N(0, `std`²).
pub fn normal<const D: usize>(shape: [usize; D], std: f64, device: &Device) -> Param<Tensor<D>> {
    if IS_SHAPE_ONLY.get() {
        return shape_only(shape, device);
    }
    let values: Vec<f32> = GENERATOR.with_borrow_mut(|generator| {
        (0..shape.iter().product())
            .map(|_| {
                let value: f32 = StandardNormal.sample(generator);
                value * std as f32
            })
            .collect()
    });
    Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
}

/// A parameter of one repeated value.
pub fn constant<const D: usize>(
    shape: [usize; D],
    value: f32,
    device: &Device,
) -> Param<Tensor<D>> {
    if IS_SHAPE_ONLY.get() {
        return shape_only(shape, device);
    }
    let values = vec![value; shape.iter().product()];
    Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
}

/// A linear layer with weights `[d_input, d_output]` from N(0, `std`²) and, where asked for, a bias
/// of zeros.
pub fn linear(d_input: usize, d_output: usize, bias: bool, std: f64, device: &Device) -> Linear {
    Linear {
        weight: normal([d_input, d_output], std, device),
        bias: bias.then(|| constant([d_output], 0.0, device)),
        lora: None,
        quantized: None,
    }
}
