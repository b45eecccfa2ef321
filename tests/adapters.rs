//! Low-rank adapters: what `peft` writes is read, and what the zoo writes `peft` reads.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Int, Tensor};
use burn_zoo::{
    models::{
        adapter::{self, AdapterError, Saved},
        directory::{self, DirectoryError},
        family,
        inputs::InputFile,
        outputs::named_outputs,
    },
    nn::{
        Transformer,
        head::HeadOutput,
        init,
        linear::{Lora, LoraConfig},
    },
};
use common::{assert_close, devices, processor, python_with, values};

const CASES: [&str; 4] = ["bert", "gpt2", "bloom", "llama"];

fn python(python: &str, what: &str, folder: &Path) {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/reference/adapters.py"
    );
    let output = Command::new(python)
        .args([script, what])
        .arg(folder)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

fn logits(model: &Transformer, device: &Device) -> Vec<f64> {
    let tokens = Tensor::<2, Int>::from_data([[1, 5, 9, 2, 7], [3, 3, 8, 10, 4]], device);
    match model.outputs(tokens).head {
        HeadOutput::Tokens(logits) => values(logits),
        HeadOutput::Sequence(logits) => values(logits),
        other => panic!("{other:?}"),
    }
}

fn expected(path: &Path) -> Vec<f64> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn adapters_go_to_peft_and_back() {
    let Some(interpreter) = python_with("peft") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    python(&interpreter, "make", folder.path());
    for found in devices() {
        let device = found.device;
        for case in CASES {
            let what = format!("{case} on {}", found.name);
            let folder = folder.path().join(case);
            let expected = expected(&folder.join("logits.json"));
            let (mut model, architecture) =
                directory::load(&folder.join("adapter"), &device).unwrap();
            assert_close(&logits(&model, &device), &expected, 1e-5, &what);

            let config = LoraConfig {
                rank: 2,
                alpha: 6.0,
                dropout: 0.0,
            };
            let trained = match case {
                "bert" => vec![
                    "head.classifier.weight".to_owned(),
                    "head.classifier.bias".to_owned(),
                ],
                _ => Vec::new(),
            };
            let saved = Saved {
                config: &config,
                base: &folder.join("base"),
                trained: &trained,
            };
            adapter::save(&model, &architecture, &saved, &folder.join("ours")).unwrap();
            let (again, _) = directory::load(&folder.join("ours"), &device).unwrap();
            assert_close(&logits(&again, &device), &expected, 1e-5, &what);

            adapter::merge(&mut model);
            assert!(
                model
                    .linears()
                    .iter()
                    .all(|(_, linear)| linear.lora.is_none())
            );
            assert_close(&logits(&model, &device), &expected, 1e-5, &what);
            let merged = folder.join("merged");
            directory::save(&model, &architecture, &merged).unwrap();
            let (merged, _) = directory::load(&merged, &device).unwrap();
            assert_close(&logits(&merged, &device), &expected, 1e-5, &what);
        }
    }
    python(&interpreter, "read", folder.path());
    for case in CASES {
        let folder = folder.path().join(case);
        let found = expected(&folder.join("read.json"));
        assert_close(&found, &expected(&folder.join("logits.json")), 1e-5, case);
    }
}

/// The list of linear layers has all of them, in every family.
#[test]
fn every_linear_layer_can_be_adapted() {
    struct Visitor {
        path: Vec<String>,
        linears: BTreeSet<String>,
    }
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, name: &str, container: &str) {
            // The last component is the parameter's, and its container the layer.
            self.path.push(name.to_owned());
            if container.ends_with("Linear") && name == "weight" {
                let path = &self.path[..self.path.len() - 1];
                self.linears.insert(path.join("."));
            }
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {}
    }
    let device = processor();
    let mut seen = BTreeSet::new();
    for family in family::families() {
        let Some(preset) = family.presets().into_iter().next() else {
            continue;
        };
        let architecture = preset.architecture().unwrap();
        let mut model = init::shapes_only(|| architecture.transformer.init(&device));
        let mut visitor = Visitor {
            path: Vec::new(),
            linears: BTreeSet::new(),
        };
        model.visit(&mut visitor);
        // Contacts are read from attention, not from what text says.
        visitor.linears.remove("contact.regression");
        let listed: BTreeSet<String> = model.linears().into_iter().map(|(path, _)| path).collect();
        assert_eq!(listed, visitor.linears, "{}", family.name);
        seen.extend(
            listed
                .iter()
                .map(|path| path.rsplit('.').next().unwrap().to_owned()),
        );
    }
    for name in [
        "query",
        "output",
        "up",
        "gate",
        "down",
        "router",
        "pooler",
        "projection",
        "dense",
    ] {
        assert!(seen.contains(name), "no family has a {name}");
    }
}

/// Adapters beside every linear layer of the stacks of every reference model: saved, loaded and merged, they give what they
/// gave.
#[test]
fn adapters_of_every_family_are_saved_loaded_and_merged() {
    let device = processor();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference");
    let folder = tempfile::tempdir().unwrap();
    let mut families = BTreeSet::new();
    for entry in std::fs::read_dir(reference).unwrap() {
        let base = entry.unwrap().path();
        if !base.join("outputs.safetensors").exists() {
            continue;
        }
        let what = base.file_name().unwrap().to_string_lossy().into_owned();
        let (mut model, architecture) = directory::load(&base, &device).unwrap();
        let text = std::fs::read_to_string(base.join("input.json")).unwrap();
        let input: InputFile = serde_json::from_str(&text).unwrap();
        let outputs = |model: &Transformer| -> Vec<f64> {
            let inputs = input.inputs(&architecture, &device).unwrap();
            let named = named_outputs(model.outputs(inputs));
            named
                .into_iter()
                .flat_map(|output| values(output.values))
                .collect()
        };
        let before = outputs(&model);
        let config = LoraConfig {
            rank: 2,
            alpha: 3.0,
            dropout: 0.0,
        };
        let linears = model.linears().into_iter().map(|(path, _)| path);
        let targets: Vec<String> = linears
            .filter(|path| path.starts_with("stack.") || path.starts_with("encoder."))
            .collect();
        adapter::add(&mut model, &architecture, &config, &targets).unwrap();
        for (_, linear) in model.linears() {
            let [d_input, d_output] = linear.dims();
            if linear.lora.is_some() {
                let a = init::normal([d_input, 2], 0.1, &device);
                let b = init::normal([2, d_output], 0.1, &device);
                linear.lora = Some(Lora::new(a, b, 0.0, config.scale()));
            }
        }
        let expected = outputs(&model);
        let change = before.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        assert!(change.fold(0.0, f64::max) > 1e-3, "{what}: nothing changed");

        let saved = Saved {
            config: &config,
            base: &base,
            trained: &[],
        };
        let out = folder.path().join(&what);
        adapter::save(&model, &architecture, &saved, &out).unwrap();
        let (mut again, _) = directory::load(&out, &device).unwrap();
        assert_close(&outputs(&again), &expected, 1e-5, &what);
        adapter::merge(&mut again);
        assert_close(&outputs(&again), &expected, 1e-5, &what);
        let merged = folder.path().join(format!("{what}-merged"));
        directory::save(&again, &architecture, &merged).unwrap();
        let (merged, _) = directory::load(&merged, &device).unwrap();
        assert_close(&outputs(&merged), &expected, 1e-5, &what);
        families.insert(architecture.json["model_type"].as_str().unwrap().to_owned());
    }
    assert!(families.len() >= 14, "{families:?}");
}

#[test]
fn a_target_that_matches_nothing_is_refused_with_what_there_is() {
    let architecture = family::find_preset("bert-base")
        .unwrap()
        .1
        .architecture()
        .unwrap();
    let mut model = init::shapes_only(|| architecture.transformer.init(&processor()));
    let config = LoraConfig {
        rank: 2,
        alpha: 2.0,
        dropout: 0.0,
    };
    let targets = ["query".to_owned(), "q_proj".to_owned()];
    match adapter::add(&mut model, &architecture, &config, &targets) {
        Err(AdapterError::NoSuchLayer { target, there }) => {
            assert_eq!(target, "q_proj");
            assert!(there.contains(&"stack.blocks.*.attention.query".to_owned()));
        }
        other => panic!("{other:?}"),
    }
    // Our names and the checkpoint's mean the same layers.
    for target in ["attention.query", "attention.self.query"] {
        let mut model = model.clone();
        let found = adapter::add(&mut model, &architecture, &config, &[target.to_owned()]).unwrap();
        assert_eq!(found.len(), 12);
    }
}

#[test]
fn a_new_adapter_changes_nothing_and_a_broken_one_is_refused() {
    let device = processor();
    let architecture = family::find_preset("bert-base").unwrap().1;
    let mut json = architecture.json.clone();
    for (field, value) in [
        ("vocab_size", 11),
        ("hidden_size", 8),
        ("num_hidden_layers", 1),
        ("num_attention_heads", 2),
        ("intermediate_size", 12),
        ("max_position_embeddings", 8),
    ] {
        json.insert(field.to_owned(), value.into());
    }
    let architecture = family::Architecture::from_json(json).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    init::seed(5);
    let mut model = architecture.transformer.init(&device);
    directory::save(&model, &architecture, &base).unwrap();
    let hidden = |model: &Transformer| {
        let tokens = Tensor::<2, Int>::from_data([[1, 5, 9, 2, 7]], &device);
        values(model.hidden(tokens, None))
    };
    let before = hidden(&model);
    let config = LoraConfig {
        rank: 2,
        alpha: 2.0,
        dropout: 0.1,
    };
    adapter::add(
        &mut model,
        &architecture,
        &config,
        &["feed_forward.*".to_owned()],
    )
    .unwrap();
    assert_eq!(hidden(&model), before);

    let out = folder.path().join("adapter");
    let saved = Saved {
        config: &config,
        base: &base,
        trained: &[],
    };
    adapter::save(&model, &architecture, &saved, &out).unwrap();
    let path = out.join(adapter::CONFIG);
    let text = std::fs::read_to_string(&path).unwrap();
    for (from, to, wanted) in [
        ("\"LORA\"", "\"IA3\"", "peft_type: must be LORA, got IA3"),
        (
            "\"use_dora\": false",
            "\"use_dora\": true",
            "use_dora: is not there",
        ),
        ("/base\"", "/gone\"", "there is no directory"),
        ("\"r\": 2", "\"r\": \"two\"", "invalid type"),
    ] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let refusal: DirectoryError = directory::load(&out, &device).unwrap_err();
        assert!(refusal.to_string().contains(wanted), "{refusal}");
    }
    std::fs::write(&path, &text).unwrap();
    let weights = out.join(adapter::WEIGHTS);
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let refusal = directory::load(&out, &device).unwrap_err().to_string();
    assert!(refusal.contains("is damaged"), "{refusal}");
}
