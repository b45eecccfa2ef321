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
    },
    nn::{Transformer, head::HeadOutput, init, linear::LoraConfig},
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
