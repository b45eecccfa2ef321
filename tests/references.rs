//! Every family against the reference implementation: outputs and gradients of the small checkpoints
//! in `tests/reference/`, which `tests/reference/make.py` wrote.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use burn_zoo::{
    models::{
        directory,
        inputs::InputFile,
        outputs::{NamedOutput, named_outputs},
        weights::{self, ParameterValue, Tensors},
    },
    nn::{init, mixture::Routing, transformer::Outputs},
};
use common::devices;
use safetensors::SafeTensors;

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference");
    let entries = fs::read_dir(folder).unwrap();
    let mut cases: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("outputs.safetensors").exists())
        .collect();
    cases.sort();
    cases
}

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let read = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
        let values = view.data().as_chunks::<4>().0.iter();
        let values = values.map(|&bytes| f32::from_le_bytes(bytes)).collect();
        (name, (view.shape().to_vec(), values))
    };
    tensors.tensors().into_iter().map(read).collect()
}

fn mean(values: Vec<Tensor<1>>) -> Tensor<1> {
    let n = values.len() as f64;
    values.into_iter().reduce(|sum, value| sum + value).unwrap() / n
}

/// What the reference returns: the class's outputs, and for mixtures the routers' losses.
fn outputs(outputs: Outputs, expected: &Tensors) -> Vec<NamedOutput> {
    let routing = outputs.routing.clone();
    let mut named = named_outputs(outputs);
    let mut add = |name, loss: fn(&Routing) -> Tensor<1>| {
        if expected.contains_key(name) {
            let values = mean(routing.iter().map(loss).collect());
            named.push(NamedOutput {
                name,
                shape: vec![1],
                values,
            });
        }
    };
    add("load_balance", |routing| routing.balance_loss.clone());
    add("router_z", |routing| routing.z_loss.clone());
    named
}

struct Gradient<'a>(&'a Gradients);

impl ParameterValue for Gradient<'_> {
    fn of<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
        param.val().grad(self.0)
    }
}

/// The largest difference, where the weight is not zero.
fn difference(found: &[f32], expected: &[f32], weight: &[f32]) -> f32 {
    let pairs = found.iter().zip(expected).zip(weight);
    pairs
        .filter(|(_, weight)| **weight != 0.0)
        .map(|((a, b), _)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn check(case: &Path, device: &Device, tolerance: f32) -> Result<(f32, f32), String> {
    let mut architecture = directory::load_config(case).map_err(|error| error.to_string())?;
    architecture.transformer = architecture.transformer.with_dropout(0.0);
    let model = init::shapes_only(|| architecture.transformer.init(device));
    let model = weights::load(model, &architecture.names, case);
    let model = model.map_err(|error| error.to_string())?;
    let counted = architecture.transformer.n_parameters();
    if counted != model.num_params() {
        return Err(format!(
            "{counted} parameters counted of {}",
            model.num_params()
        ));
    }
    let text = fs::read_to_string(case.join("input.json")).unwrap();
    let input: InputFile = serde_json::from_str(&text).unwrap();
    let expected = read(&case.join("outputs.safetensors"));

    let tracked = device.clone().autodiff();
    let model = model.fork(&tracked).train();
    let inputs = input
        .inputs(&architecture, &tracked)
        .map_err(|error| error.to_string())?;
    let found = outputs(model.outputs(inputs), &expected);

    let names: Vec<&str> = found.iter().map(|output| output.name).collect();
    let wanted: Vec<&String> = expected
        .keys()
        .filter(|name| !name.starts_with("weight."))
        .collect();
    if wanted.len() != names.len() || !wanted.iter().all(|name| names.contains(&name.as_str())) {
        return Err(format!("outputs {names:?} instead of {wanted:?}"));
    }
    let mut loss = Tensor::<1>::zeros([1], &tracked);
    let mut worst = 0f32;
    for NamedOutput {
        name,
        shape,
        values,
    } in found
    {
        let (expected_shape, expected_values) = &expected[name];
        if &shape != expected_shape {
            return Err(format!(
                "{name} has shape {shape:?} instead of {expected_shape:?}"
            ));
        }
        let (_, weight) = &expected[&format!("weight.{name}")];
        let read = values.clone().into_data().try_to_vec::<f32>().unwrap();
        let found = difference(&read, expected_values, weight);
        if found.is_nan() || found > tolerance {
            return Err(format!("{name} differs by {found}"));
        }
        worst = worst.max(found);
        let n = weight.len();
        let weight = TensorData::new(weight.clone(), [n]);
        loss = loss + (values * Tensor::<1>::from_data(weight, &tracked)).sum();
    }

    let gradients = loss.backward();
    let found = weights::collect(&model, &architecture.names, Gradient(&gradients));
    let found: BTreeMap<_, _> = found.map_err(|error| error.to_string())?;
    let expected = read(&case.join("gradients.safetensors"));
    let mut worst_gradient = 0f32;
    for (name, (_, expected)) in &expected {
        let legacy = name
            .replace("LayerNorm.gamma", "LayerNorm.weight")
            .replace("LayerNorm.beta", "LayerNorm.bias");
        let stripped = |found: &str| found == legacy || found.ends_with(&format!(".{legacy}"));
        let Some((_, (_, values))) = found.iter().find(|(found, _)| stripped(found)) else {
            return Err(format!("no gradient of {name}"));
        };
        let scale = expected
            .iter()
            .fold(0f32, |max, value| max.max(value.abs()));
        let ones = vec![1.0; expected.len()];
        // Some gradients are zero but for rounding: keys' biases shift all scores of a query.
        let relative = difference(values, expected, &ones) / scale.max(1e-2);
        if relative.is_nan() || relative > 1e-3 {
            return Err(format!(
                "the gradient of {name} differs by {relative} of {scale}"
            ));
        }
        worst_gradient = worst_gradient.max(relative);
    }
    for (name, (_, values)) in &found {
        let known = |expected: &str| name == expected || name.ends_with(&format!(".{expected}"));
        let is_known = expected.keys().any(|expected| {
            known(
                &expected
                    .replace("LayerNorm.gamma", "LayerNorm.weight")
                    .replace("LayerNorm.beta", "LayerNorm.bias"),
            )
        });
        if !is_known && values.iter().any(|value| value.abs() > 1e-4) {
            return Err(format!(
                "{name} has a gradient that the reference does not have"
            ));
        }
    }
    Ok((worst, worst_gradient))
}

#[test]
fn outputs_and_gradients_are_those_of_the_reference() {
    let cases = cases();
    assert!(cases.len() > 40, "{} cases found", cases.len());
    let mut failures = Vec::new();
    for found in devices() {
        let tolerance = match found.name.split(':').next() {
            Some("flex" | "libtorch") => 1e-5,
            _ => 1e-4,
        };
        for case in &cases {
            let name = case.file_name().unwrap().to_string_lossy();
            match check(case, &found.device, tolerance) {
                Ok((output, gradient)) => {
                    println!("{} {name}: {output:.1e} {gradient:.1e}", found.name);
                }
                Err(problem) => failures.push(format!("{} {name}: {problem}", found.name)),
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
