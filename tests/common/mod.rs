//! What tests share: the devices to run on, and random numbers.

#![allow(dead_code, reason = "each test uses a part")]

pub mod training;

use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_zoo::backend::{self, Backend, FoundDevice};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The best device of each backend that is compiled in. The variable `BURN_ZOO_TEST_BACKENDS` lists
/// backends that must be among them, so that a missing driver cannot skip a test unseen.
pub fn devices() -> Vec<FoundDevice> {
    let found: Vec<FoundDevice> = Backend::ALL
        .into_iter()
        .filter_map(|backend| backend.devices().into_iter().next())
        .collect();
    let required = std::env::var("BURN_ZOO_TEST_BACKENDS").unwrap_or_default();
    for name in required.split(',').filter(|name| !name.is_empty()) {
        assert!(
            found.iter().any(|device| device.backend.name() == name),
            "{name} is required, but finds no device"
        );
    }
    found
}

/// The device that every build of the tests has.
pub fn processor() -> Device {
    backend::find("flex")
        .expect("flex is a default feature")
        .device
}

/// Numbers from N(0, 1), the same for the same seed.
pub fn normal(seed: u64, count: usize) -> Vec<f64> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || generator.random_range(f64::EPSILON..1.0);
    // Box and Muller's transform.
    (0..count)
        .map(|_| (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos())
        .collect()
}

/// `values` as 32-bit floats.
pub fn data<const D: usize>(values: &[f64], shape: [usize; D]) -> TensorData {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    TensorData::new(values, shape)
}

/// The values of a tensor.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    let data = tensor.into_data().convert_dtype(DType::F64);
    data.try_to_vec::<f64>()
        .expect("the data was just converted")
}

/// Fails unless all values are within `tolerance` of what is expected, or of its share where the
/// expected value is above 1.
pub fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(
        found.len(),
        expected.len(),
        "{what}: another number of values"
    );
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(
            difference <= tolerance * expected.abs().max(1.0),
            "{what}: value {index} is {found}, expected {expected}"
        );
    }
}

/// The Python to compare with, if it has a module. The variable `BURN_ZOO_PYTHON` names one that must
/// have it, so that a missing module cannot skip a test unseen.
pub fn python_with(module: &str) -> Option<String> {
    let variable = std::env::var("BURN_ZOO_PYTHON");
    let python = variable.clone().unwrap_or_else(|_| "python3".to_owned());
    let probe = std::process::Command::new(&python)
        .args(["-c", &format!("import {module}")])
        .output();
    if probe.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    eprintln!("skipped: {python} has no module {module}");
    assert!(variable.is_err(), "BURN_ZOO_PYTHON must have {module}");
    None
}

/// The density of the normal distribution.
pub fn normal_density(x: f64) -> f64 {
    (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
}

/// The normal distribution, by Simpson's rule from 0 to `x` over its density.
pub fn normal_distribution(x: f64) -> f64 {
    let (n, h) = (200, x / 200.0);
    let weight = |i: i32| match i {
        0 | 200 => 1.0,
        i => f64::from(2 + 2 * (i % 2)),
    };
    let sum: f64 = (0..=n)
        .map(|i| weight(i) * normal_density(f64::from(i) * h))
        .sum();
    0.5 + sum * h / 3.0
}
