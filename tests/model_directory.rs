//! Model directories: what is saved loads, and what is damaged is refused with the reason.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use burn::tensor::{Device, Int, Tensor};
use burn_zoo::{
    data::tokenizer::{Tokenizer, TokenizerConfig},
    models::directory::{self, CONFIG, TOKENIZER, WEIGHTS},
    nn::{
        HeadConfig, LanguageModel, TransformerConfig, block::BlockConfig, init, norm::NormConfig,
    },
};
use common::{devices, processor, values};

fn config() -> TransformerConfig {
    let blocks = vec![
        BlockConfig::gpt2(8, 2),
        BlockConfig::gpt2(8, 4).with_norm(NormConfig::rms()),
    ];
    TransformerConfig::new(11, 8, 6, blocks).with_head(HeadConfig::untied(true))
}

fn saved(device: &Device) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    init::seed(1);
    directory::save(&config().init(device), &config().into(), folder.path()).unwrap();
    folder
}

#[test]
fn what_is_saved_on_one_backend_loads_on_every_other() {
    let devices = devices();
    let tokens = |device| Tensor::<2, Int>::from_data([[1, 2, 3, 10]], device);
    for from in &devices {
        let folder = saved(&from.device);
        let (model, _) = directory::load(folder.path(), &from.device).unwrap();
        let expected = values(model.forward(tokens(&from.device)));
        for to in &devices {
            let (model, _) = directory::load(folder.path(), &to.device).unwrap();
            let found = values(model.forward(tokens(&to.device)));
            let what = format!("{} to {}", from.name, to.name);
            common::assert_close(&found, &expected, 1e-5, &what);
        }
    }
}

fn refusal(folder: &Path) -> String {
    match directory::load(folder, &processor()) {
        Ok(_) => panic!("a damaged directory was loaded"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_broken_configuration_is_refused_with_the_field() {
    let folder = saved(&processor());
    let path = folder.path().join(CONFIG);
    let text = fs::read_to_string(&path).unwrap();
    for (broken, expected) in [
        (text[..text.len() / 2].to_owned(), "EOF"),
        (
            text.replace("\"burn-zoo\"", "\"abacus\""),
            "model_type: unknown variant `abacus`",
        ),
        (
            text.replacen("\"d_model\": 8", "\"d_model\": \"eight\"", 1),
            "d_model: invalid type",
        ),
        (
            text.replacen("\"n_kv_heads\": 2", "\"n_kv_heads\": 3", 1),
            "blocks.0.attention.n_kv_heads: must divide",
        ),
        (
            text.replace("\"context_length\": 6", "\"context_length\": 0"),
            "context_length: must be at least 1",
        ),
    ] {
        fs::write(&path, broken).unwrap();
        let refusal = refusal(folder.path());
        assert!(
            refusal.contains(expected) && refusal.contains(CONFIG),
            "{refusal}"
        );
    }
    fs::remove_file(&path).unwrap();
    assert!(refusal(folder.path()).contains(CONFIG));
}

#[test]
fn truncated_weights_are_refused() {
    let folder = saved(&processor());
    let path = folder.path().join(WEIGHTS);
    let bytes = fs::read(&path).unwrap();
    for length in [0, 5, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        let refusal = refusal(folder.path());
        assert!(
            refusal.contains("is damaged") && refusal.contains(WEIGHTS),
            "{length}: {refusal}"
        );
    }
}

#[test]
fn weights_of_another_shape_are_refused_by_name() {
    let folder = saved(&processor());
    let other = TransformerConfig::new(12, 8, 6, vec![BlockConfig::gpt2(8, 2)]);
    directory::save(
        &other.init(&processor()),
        &other.clone().into(),
        folder.path(),
    )
    .unwrap();
    let json = serde_json::json!({ "model_type": "burn-zoo", "transformer": config() });
    fs::write(folder.path().join(CONFIG), json.to_string()).unwrap();
    let refusal = refusal(folder.path());
    for expected in [
        "`embedding.token` has shape [12, 8], expected [11, 8]",
        "`stack.blocks.1.attention.query.weight` is missing",
        "`head.projection.weight` is missing",
    ] {
        assert!(refusal.contains(expected), "{refusal}");
    }
}

/// Python's `tokenizers` opens what was trained here, and gives the same tokens.
#[test]
fn python_opens_the_tokenizers() {
    let text =
        "First Citizen:\nBefore we proceed any further, hear me speak. Œuvre, naïve 你好 🦀\n\n";
    let script = "import sys, json\nfrom tokenizers import Tokenizer\n\
        tokenizer = Tokenizer.from_file(sys.argv[1])\n\
        ids = tokenizer.encode(sys.argv[2]).ids\n\
        print(json.dumps([ids, tokenizer.decode(ids)]))";
    let Some(python) = common::python_with("tokenizers") else {
        return;
    };
    for config in [
        TokenizerConfig::Char,
        TokenizerConfig::Bpe {
            vocab_size: 300,
            special_tokens: vec!["<|endoftext|>".to_owned()],
        },
        TokenizerConfig::WordPiece {
            vocab_size: 150,
            lowercase: false,
        },
        TokenizerConfig::Unigram { vocab_size: 400 },
    ] {
        let tokenizer = Tokenizer::train(&config, text).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TOKENIZER);
        fs::write(&path, tokenizer.to_json().unwrap()).unwrap();
        let output = Command::new(&python)
            .args(["-c", script])
            .arg(&path)
            .arg(text)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let (ids, decoded): (Vec<u32>, String) = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(ids, tokenizer.encode(text).unwrap());
        assert_eq!(decoded, tokenizer.decode(&ids).unwrap());
    }
}
