//! Fine-tuning on labels: every kind of label, every adaptation, and tables that cannot be used.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Int, Tensor};
use burn_train::TrainStep;
use burn_zoo::{
    backend::Hardware,
    data::{
        batch::{Batch, TrainingData},
        examples::{Example, ExampleBatch, Examples, Target, Targets},
        tokenizer::{Tokenizer, TokenizerConfig},
    },
    models::{
        adapter,
        directory::{self, TOKENIZER},
        family::{Architecture, Task},
    },
    nn::{Inputs, Transformer, init},
    train::{
        Recipe,
        objective::{Labelling, StepConfig, Trainee},
        run::{Material, Run, RunOptions, Start, train},
        trainer::Display,
    },
};
use common::{assert_close, devices, processor, values};
use proptest::prelude::*;

const WORDS: [&str; 8] = [
    "good", "fine", "great", "nice", "bad", "poor", "dull", "sad",
];

/// A small model of a family, without a head, and a tokenizer of words.
fn base(folder: &Path, model_type: &str) -> PathBuf {
    let base = folder.join(format!("base-{model_type}"));
    let config = TokenizerConfig::WordPiece {
        vocab_size: 120,
        lowercase: true,
    };
    let text = format!("the film is {} a b c d e f g\n", WORDS.join(" ")).repeat(20);
    let tokenizer = Tokenizer::train(&config, &text).unwrap();
    let json = match model_type {
        "bert" | "bert-mlm" => serde_json::json!({
            "model_type": "bert",
            "architectures": [if model_type == "bert" { "BertModel" } else { "BertForMaskedLM" }], "num_hidden_layers": 2, "hidden_size": 16,
            "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 24,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "vocab_size": tokenizer.vocab_size(), "pad_token_id": 0,
        }),
        "gpt2" => serde_json::json!({
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_embd": 16,
            "n_head": 2, "n_positions": 24, "vocab_size": tokenizer.vocab_size(),
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "classifier_dropout": 0.0,
        }),
        other => panic!("{other}"),
    };
    let serde_json::Value::Object(json) = json else {
        unreachable!()
    };
    let architecture = Architecture::from_json(json).unwrap();
    init::seed(3);
    let model = architecture.transformer.init(&processor());
    directory::save(&model, &architecture, &base).unwrap();
    fs::write(base.join(TOKENIZER), tokenizer.to_json().unwrap()).unwrap();
    base
}

/// Rows whose label follows from one word.
fn rows(count: usize, row: impl Fn(&str, bool, usize) -> String) -> String {
    let all = (0..count).map(|number| {
        let word = number * 7 % WORDS.len();
        row(WORDS[word], word < 4, number)
    });
    all.map(|row| row + "\n").collect()
}

fn tables(folder: &Path, name: &str, row: impl Fn(&str, bool, usize) -> String + Copy) -> PathBuf {
    let tables = folder.join("tables");
    fs::create_dir_all(&tables).unwrap();
    let extension = name.rsplit('.').next().unwrap();
    let header = name.strip_suffix(&format!(".{extension}"));
    for (split, count) in [("train", 64), ("dev", 16), ("test", 16)] {
        let header = header.filter(|header| !header.is_empty());
        let header = header.map_or(String::new(), |header| format!("{header}\n"));
        let text = header + &rows(count, row);
        fs::write(tables.join(format!("{split}.{extension}")), text).unwrap();
    }
    tables
}

fn recipe(base: &Path, objective: &str, overrides: &[(&str, &str)]) -> Recipe {
    let text = format!(
        "seed = 1\nobjective = {objective}\n[model]\npath = {base:?}\n[optimizer]\nlearning_rate = 5e-3\n\
         [schedule.constant]\n[loop]\nepochs = 12\nbatch_size = 8\neval_interval = 48\n"
    );
    let overrides: Vec<(String, String)> = overrides
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    Recipe::parse(&text, &overrides).unwrap()
}

/// Burn's generator of dropout belongs to the device, and every training seeds it: one that must draw the same again holds
/// this alone.
static GENERATOR: RwLock<()> = RwLock::new(());

fn run(recipe: &Recipe, tables: &Path, out: &Path) -> Run {
    let _shared = GENERATOR.read().unwrap_or_else(PoisonError::into_inner);
    let options = RunOptions {
        display: Display::Silent,
        ..RunOptions::new(out, "flex")
    };
    let material = Material::Tables(tables);
    train(recipe, material, &processor(), options).unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(recipe: &Recipe, tables: &Path) -> String {
    let _shared = GENERATOR.read().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let options = RunOptions {
        display: Display::Silent,
        ..RunOptions::new(folder.path().join("run"), "flex")
    };
    let result = train(recipe, Material::Tables(tables), &processor(), options);
    match result {
        Ok(_) => panic!("what cannot be used was used"),
        Err(error) => error.to_string(),
    }
}

const CLASSES: &str = "{ classification = { text = \"text\", label = \"label\" } }";

#[test]
fn a_class_is_learned_by_encoders_and_decoders() {
    let folder = tempfile::tempdir().unwrap();
    let tables = tables(folder.path(), "text,label.csv", |word, is_good, number| {
        // Of different lengths, so that batches are padded.
        let rest = " a b c".repeat(number % 3);
        format!(
            "the film is {word}{rest},{}",
            if is_good { "yes" } else { "no" }
        )
    });
    for family in ["bert", "gpt2"] {
        let base = base(folder.path(), family);
        let out = folder.path().join(format!("run-{family}"));
        let run = run(&recipe(&base, CLASSES, &[]), &tables, &out);
        let summary = run.summary.unwrap();
        assert_eq!(summary.iterations, 12 * 64 / 8);
        assert_eq!(summary.test_accuracy, Some(1.0), "{family}");
        assert_eq!(summary.valid_accuracy, Some(1.0), "{family}");
        let (_, architecture) = directory::load(&out, &processor()).unwrap();
        assert_eq!(architecture.labels(), ["no", "yes"]);
        let class = &architecture.common().architectures.unwrap()[0];
        assert!(class.ends_with("ForSequenceClassification"), "{class}");
    }
}

#[test]
fn numbers_tags_and_answers_are_learned() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path(), "bert");
    let good = |is_good| if is_good { 1.0 } else { -1.0 };

    let numbers = tables(folder.path(), ".jsonl", |word, is_good, _| {
        let row = serde_json::json!({ "a": format!("the film is {word}"), "b": "a b", "n": good(is_good) });
        row.to_string()
    });
    let objective = "{ regression = { text = \"a\", second = \"b\", label = \"n\" } }";
    let summary = run(
        &recipe(&base, objective, &[]),
        &numbers,
        &folder.path().join("numbers"),
    );
    let summary = summary.summary.unwrap();
    assert!(summary.test_loss.unwrap() < 0.1, "{summary:?}");
    assert_eq!(summary.test_accuracy, None);

    let tags = tables(folder.path(), ".jsonl", |word, is_good, _| {
        let tag = if is_good { "GOOD" } else { "BAD" };
        serde_json::json!({ "words": ["the", word, "film"], "tags": ["O", tag, "O"] }).to_string()
    });
    let objective = "{ token_classification = { words = \"words\", tags = \"tags\" } }";
    let summary = run(
        &recipe(&base, objective, &[]),
        &tags,
        &folder.path().join("tags"),
    );
    assert_eq!(summary.summary.unwrap().test_accuracy, Some(1.0));

    // The answer is the word of praise or blame, anywhere in the text.
    let answers = tables(folder.path(), ".jsonl", |word, _, number| {
        let before = ["a", "b c", "d e f"][number % 3];
        let context = format!("{before} {word} g");
        serde_json::json!({ "q": "the film", "context": context, "answer": word, "at": before.len() + 1 })
            .to_string()
    });
    let objective = "{ span_extraction = { question = \"q\", context = \"context\", answer = \"answer\", \
                     start = \"at\", overlap = 4 } }";
    let run = run(
        &recipe(&base, objective, &[]),
        &answers,
        &folder.path().join("answers"),
    );
    let accuracy = run.summary.unwrap().test_accuracy.unwrap();
    assert!(accuracy > 0.9, "{accuracy}");
}

/// Whatever learns, a run that stopped goes on to the parameters of one that did not.
#[test]
fn runs_of_labels_go_on_as_if_they_had_not_stopped() {
    let _alone = GENERATOR.write().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path(), "bert");
    let tables = tables(folder.path(), "text,label.csv", |word, is_good, _| {
        format!("the film is {word},{is_good}")
    });
    let lora = "{ lora = { rank = 4, alpha = 8.0, dropout = 0.3, targets = [\"query\"] } }";
    let cases = [
        ("full", "adamw"),
        ("full", "lion"),
        ("full", "muon"),
        ("full", "adafactor"),
        ("full", "sgd"),
        ("head", "adamw"),
        (lora, "adamw"),
    ];
    for (number, (adaptation, algorithm)) in cases.into_iter().enumerate() {
        let trained = |out: &str, epochs: &str, start: Start| {
            let overrides = [
                ("adaptation", adaptation),
                ("optimizer.learning_rate", "1e-3"),
                ("optimizer.algorithm", algorithm),
                ("loop.epochs", epochs),
                ("loop.eval_interval", "8"),
            ];
            let options = RunOptions {
                display: Display::Silent,
                start,
                ..RunOptions::new(folder.path().join(out), "flex")
            };
            let recipe = recipe(&base, CLASSES, &overrides);
            let run = train(&recipe, Material::Tables(&tables), &processor(), options);
            let run = run.unwrap_or_else(|error| panic!("{error}"));
            // The operations of a step are known where all is learned.
            let flops = run.summary.as_ref().unwrap().flops_per_token;
            assert_eq!(flops.is_some(), adaptation == "full");
            parameters(&run.model)
        };
        let name = |what: &str| format!("{what}-{number}");
        let whole = trained(&name("whole"), "3", Start::Fresh);
        let half = trained(&name("half"), "1", Start::Fresh);
        assert_ne!(half, whole, "{adaptation}, {algorithm}");
        let resumed = trained(&name("half"), "3", Start::Resume);
        assert!(
            resumed == whole,
            "{adaptation}, {algorithm}: resumed differs"
        );
    }
}

/// The recipes of the repository that learn labels, each on a table with all of their columns.
#[test]
fn the_example_recipes_of_labels_train() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path(), "bert");
    let tables = tables(folder.path(), ".jsonl", |word, is_good, number| {
        let (text, tag) = (
            format!("the film is {word}"),
            if is_good { "GOOD" } else { "BAD" },
        );
        let row = serde_json::json!({
            "0": text, "1": if is_good { "1" } else { "0" },
            "sentence1": text, "sentence2": "a b", "label": tag, "score": number,
            "tokens": ["the", word], "ner_tags": ["O", tag],
            "question": "the film", "context": text, "answer": word, "start": 12,
        });
        row.to_string()
    });
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/recipes");
    let mut trained = 0;
    for entry in fs::read_dir(recipes).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        if !text.contains("[model]\n") {
            continue;
        }
        let model_path = format!("{base:?}");
        let mut overrides = vec![
            ("model.path", model_path.as_str()),
            ("data.max_length", "16"),
            ("loop.epochs", "1"),
            ("schedule", "{ constant = {} }"),
        ];
        if text.contains("span_extraction") {
            overrides.push(("objective.span_extraction.overlap", "4"));
        }
        let overrides: Vec<(String, String)> = overrides
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let recipe = Recipe::read(&path, &overrides)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let out = folder.path().join(path.file_stem().unwrap());
        let summary = run(&recipe, &tables, &out).summary.unwrap();
        assert!(summary.test_loss.unwrap().is_finite(), "{}", path.display());
        trained += 1;
    }
    assert_eq!(trained, 7);
}

/// Parameters by path.
fn parameters(model: &Transformer) -> std::collections::BTreeMap<String, Vec<f64>> {
    struct Collect(Vec<String>, std::collections::BTreeMap<String, Vec<f64>>);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.insert(self.0.join("."), values(param.val().inner()));
        }
    }
    let mut collect = Collect(Vec::new(), std::collections::BTreeMap::new());
    model.visit(&mut collect);
    collect.1
}

#[test]
fn an_adaptation_changes_what_it_says_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path(), "bert");
    let tables = tables(folder.path(), "text,label.csv", |word, is_good, _| {
        format!("the film is {word},{is_good}")
    });
    let (before, _) = directory::load(&base, &processor()).unwrap();
    let before = parameters(&before);
    let lora = "{ lora = { rank = 4, alpha = 8.0, dropout = 0.1, targets = [\"query\", \"feed_forward.*\"] } }";
    type Learns = fn(&str) -> bool;
    let cases: [(&str, Learns); 3] = [
        ("head", |path| path.starts_with("head")),
        ("{ frozen = [\"embedding.*\", \"blocks.0.*\"] }", |path| {
            !path.starts_with("embedding") && !path.contains("blocks.0.")
        }),
        (lora, |path| {
            path.starts_with("head") || path.contains(".lora.")
        }),
    ];
    for (adaptation, learns) in cases {
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("run");
        let recipe = recipe(
            &base,
            CLASSES,
            &[("adaptation", adaptation), ("loop.epochs", "4")],
        );
        let run = run(&recipe, &tables, &out);
        let (loaded, _) = directory::load(&out, &processor()).unwrap();
        let after = parameters(&loaded);
        // What was saved is what was trained.
        assert_eq!(after, parameters(&run.model));
        for (path, values) in &before {
            assert_eq!(&after[path] != values, learns(path), "{adaptation}: {path}");
        }
        let is_adapter = adaptation == lora;
        assert_eq!(adapter::is_there(&out), is_adapter);
        assert_eq!(out.join(directory::WEIGHTS).exists(), !is_adapter);
        if is_adapter {
            // Merged it gives the same outputs.
            let inputs = Tensor::<2, Int>::from_data([[2, 9, 7, 3]], &processor());
            let logits = |model: &Transformer| match model.outputs(inputs.clone()).head {
                burn_zoo::nn::head::HeadOutput::Sequence(logits) => values(logits),
                other => panic!("{other:?}"),
            };
            let mut merged = loaded.clone();
            adapter::merge(&mut merged);
            assert_close(&logits(&merged), &logits(&loaded), 1e-5, "merged");
            // So does the command, which leaves a directory without adapters.
            let command = |to: &Path| {
                let mut command = assert_cmd::Command::cargo_bin("burn-zoo").unwrap();
                command.arg("merge").arg(&out).arg("--out").arg(to).assert()
            };
            let to = out.join("merged");
            command(&to).success();
            assert!(!adapter::is_there(&to) && to.join(TOKENIZER).exists());
            let (again, _) = directory::load(&to, &processor()).unwrap();
            assert_close(
                &logits(&again),
                &logits(&loaded),
                1e-5,
                "merged by the command",
            );
            command(&to).failure().code(1);
        }
    }
}

/// What a checkpoint lacks of a classifier, such as the pooler of a masked language model, learns beside adapters,
/// and is saved with them.
#[test]
fn what_is_new_learns_beside_adapters_and_with_the_head() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path(), "bert-mlm");
    let tables = tables(folder.path(), "text,label.csv", |word, is_good, _| {
        format!("the film is {word},{is_good}")
    });
    for adaptation in [
        "{ lora = { rank = 4, alpha = 8.0, targets = [\"query\"] } }",
        "head",
    ] {
        let parameters_after = |epochs: &str| {
            let out = tempfile::tempdir().unwrap();
            let out = out.path().join("run");
            let overrides = [("adaptation", adaptation), ("loop.epochs", epochs)];
            let run = run(&recipe(&base, CLASSES, &overrides), &tables, &out);
            let (loaded, _) = directory::load(&out, &processor()).unwrap();
            assert_eq!(parameters(&loaded), parameters(&run.model));
            parameters(&loaded)
        };
        let (after, later) = (parameters_after("1"), parameters_after("2"));
        for (path, values) in &after {
            let learns = path.starts_with("head") || path.starts_with("pooler");
            let learns = learns || path.contains(".lora.");
            assert_eq!(values != &later[path], learns, "{adaptation}: {path}");
        }
    }
}

#[test]
fn tables_and_targets_that_do_not_fit_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path(), "bert");
    let good = tables(folder.path(), "text,label.csv", |word, is_good, _| {
        format!("the film is {word},{is_good}")
    });
    let recipe = |objective: &str, overrides: &[(&str, &str)]| recipe(&base, objective, overrides);
    for (objective, overrides, wanted) in [
        (
            "{ classification = { text = \"txt\", label = \"label\" } }",
            &[][..],
            "train.csv:1: no column \"txt\"; there are text, label",
        ),
        (
            "{ classification = { text = \"text\", label = \"label\", labels = [\"true\", \"maybe\"] } }",
            &[],
            "train.csv:2: unknown label \"false\", expected one of true, maybe",
        ),
        (
            "{ regression = { text = \"text\", label = \"label\" } }",
            &[],
            "column \"label\" must be a number, got \"true\"",
        ),
        (
            CLASSES,
            &[("data.max_length", "99")],
            "`data.max_length`: must be at most the model's 24",
        ),
        (
            CLASSES,
            &[(
                "adaptation",
                "{ lora = { rank = 2, alpha = 2.0, targets = [\"wq\"] } }",
            )],
            "the target `wq` matches no linear layer",
        ),
        (
            CLASSES,
            &[("adaptation", "{ frozen = [\"nothing.*\"] }")],
            "matches no parameter",
        ),
    ] {
        let refusal = refusal(&recipe(objective, overrides), &good);
        assert!(refusal.contains(wanted), "{refusal}");
    }
    // A row that lacks a column, refused or left out.
    let path = good.join("train.csv");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replacen("the film is good,true", "the film is good", 1),
    )
    .unwrap();
    let refused = refusal(&recipe(CLASSES, &[]), &good);
    assert!(
        refused.contains("train.csv:1") && refused.contains("bad_rows"),
        "{refused}"
    );
    let skipping = recipe(CLASSES, &[("data.bad_rows", "skip"), ("loop.epochs", "1")]);
    let summary = run(&skipping, &good, &folder.path().join("skipping")).summary;
    assert_eq!(summary.unwrap().skipped_rows, 1);
    // A label that no training row has, refused or left out as well.
    let dev = good.join("dev.csv");
    let dev_text = fs::read_to_string(&dev).unwrap();
    fs::write(&dev, format!("{dev_text}the film is so so,perhaps\n")).unwrap();
    let summary = run(&skipping, &good, &folder.path().join("unknown")).summary;
    assert_eq!(summary.unwrap().skipped_rows, 2);
    fs::write(&dev, "text,label\n").unwrap();
    let refused = refusal(&skipping, &good);
    assert!(refused.contains("the validation split"), "{refused}");
    fs::write(&dev, dev_text).unwrap();
    let test = good.join("test.csv");
    let test_text = fs::read_to_string(&test).unwrap();
    fs::write(&test, "text,label\n").unwrap();
    assert!(refusal(&skipping, &good).contains("the test split"));
    fs::write(&test, test_text).unwrap();
    // Labels that no row has leave nothing to learn from.
    let others =
        "{ classification = { text = \"text\", label = \"label\", labels = [\"a\", \"b\"] } }";
    let none = recipe(others, &[("data.bad_rows", "skip")]);
    assert!(refusal(&none, &good).contains("the training split"));
    fs::write(&path, "text,label\n").unwrap();
    assert!(refusal(&recipe(CLASSES, &[]), &good).contains("the training split"));
    fs::remove_file(&path).unwrap();
    assert!(refusal(&recipe(CLASSES, &[]), &good).contains("has no file called train"));

    // A tokenizer with more tokens than the model.
    let other = folder.path().join("other.json");
    let config = TokenizerConfig::Bpe {
        vocab_size: 300,
        special_tokens: Vec::new(),
    };
    let tokenizer = Tokenizer::train(&config, &"the film ".repeat(50)).unwrap();
    fs::write(&other, tokenizer.to_json().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    let tokenizer = format!("{{ file = {{ path = {other:?} }} }}");
    let refused = refusal(&recipe(CLASSES, &[("tokenizer", &tokenizer)]), &good);
    assert!(
        refused.contains("`model.path`: has") && refused.contains("but the tokenizer"),
        "{refused}"
    );
}

/// A process that is slow to start does not touch the run that another one made meanwhile in its directory.
#[cfg(unix)]
#[test]
fn a_run_that_another_finished_first_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path(), "bert");
    let good = tables(folder.path(), "text,label.csv", |word, is_good, _| {
        format!("the film is {word},{is_good}")
    });
    let overrides = [("loop.epochs", "1"), ("data.valid_fraction", "0.5")];
    let recipe = recipe(&base, CLASSES, &overrides);
    let out = folder.path().join("run");
    use std::os::unix::fs::OpenOptionsExt;
    // A pipe has nothing to read until something is written.
    let pipe = folder.path().join("slow.csv");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let options = RunOptions {
                display: Display::Silent,
                ..RunOptions::new(&out, "flex")
            };
            let result = train(&recipe, Material::Tables(&pipe), &processor(), options);
            result.map(|_| ()).unwrap_err().to_string()
        });
        // Opens once the other end is open: the slow one has looked at its directory before.
        let open = || {
            let mut options = fs::OpenOptions::new();
            options
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&pipe)
        };
        let mut writer = loop {
            match open() {
                Ok(writer) => break writer,
                Err(_) if slow.is_finished() => panic!("{}", slow.join().unwrap()),
                Err(_) => std::thread::yield_now(),
            }
        };
        run(&recipe, &good, &out);
        let before = fs::read(out.join(TOKENIZER)).unwrap();
        let text = fs::read(good.join("train.csv")).unwrap();
        std::io::Write::write_all(&mut writer, &text).unwrap();
        drop(writer);
        let refused = slow.join().unwrap();
        assert!(refused.contains("already"), "{refused}");
        assert_eq!(fs::read(out.join(TOKENIZER)).unwrap(), before);
    });
}

/// A few rows of each class, other ones for each seed, with the mean and deviation over seeds.
#[test]
fn a_few_rows_of_each_class_are_learned_from_over_seeds() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path(), "bert");
    let tables = tables(folder.path(), "text,label.csv", |word, is_good, _| {
        format!("the film is {word},{is_good}")
    });
    let few = |shots: &str| {
        recipe(
            &base,
            CLASSES,
            &[("data.shots", shots), ("loop.epochs", "2")],
        )
    };
    let state = run(&few("3"), &tables, &folder.path().join("run")).state;
    // Six rows in batches of eight, each of four words between two marks.
    let learned = (state.step, state.predictions, state.tokens);
    assert_eq!(learned, (2, 12, 12 * 6));
    let refused = refusal(&few("40"), &tables);
    assert!(
        refused.contains("has 32 training rows, fewer than the 40"),
        "{refused}"
    );
    assert!(refusal(&few("0"), &tables).contains("`data.shots`"));

    let file = folder.path().join("few.toml");
    fs::write(&file, few("3").to_toml().unwrap()).unwrap();
    let output = assert_cmd::Command::cargo_bin("burn-zoo")
        .unwrap()
        .args([
            "sweep",
            "--vary",
            "seed=1,2,3",
            "--backend",
            "flex",
            "--json",
        ])
        .arg(&file)
        .arg("--corpus")
        .arg(&tables)
        .arg("--out")
        .arg(folder.path().join("sweep"))
        .assert()
        .success();
    let progress = String::from_utf8_lossy(&output.get_output().stderr);
    assert!(progress.contains("accuracy 0.") && !progress.contains("perplexity"));
    let report: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    let losses: Vec<f64> = report["trials"]
        .as_array()
        .unwrap()
        .iter()
        .map(|trial| trial["summary"]["valid_loss"].as_f64().unwrap())
        .collect();
    assert_eq!(losses.len(), 3);
    assert!(losses[0] < losses[2]);
    let over = &report["seeds"][0];
    assert_eq!(over["n_seeds"], 3);
    let mean = losses.iter().sum::<f64>() / 3.0;
    assert!((over["valid_loss"]["mean"].as_f64().unwrap() - mean).abs() < 1e-12);
    assert!(over["valid_loss"]["deviation"].as_f64().unwrap() > 0.0);
    assert!(over["test_accuracy"]["mean"].is_f64());
}

fn example(length: usize, target: Target) -> Example {
    Example {
        tokens: (0..length as u32).map(|token| 1 + token * 5 % 9).collect(),
        segments: vec![0; length],
        target,
    }
}

/// The first rows of a batch, which ask for `n_asked` labels.
fn first_rows(batch: ExampleBatch, rows: usize, n_asked: usize) -> ExampleBatch {
    let ExampleBatch {
        inputs, targets, ..
    } = batch;
    ExampleBatch {
        inputs: Inputs {
            visible: inputs.visible.map(|visible| visible.narrow(0, 0, rows)),
            ..inputs.tokens.narrow(0, 0, rows).into()
        },
        targets: match targets {
            Targets::Classes(classes) => Targets::Classes(classes.narrow(0, 0, rows)),
            Targets::Numbers(numbers) => Targets::Numbers(numbers.narrow(0, 0, rows)),
            Targets::Tokens(classes) => Targets::Tokens(classes.narrow(0, 0, rows)),
            Targets::Spans(ends) => Targets::Spans(ends.narrow(0, 0, rows)),
        },
        n_asked,
        n_tokens: batch.n_tokens,
        share: batch.share,
    }
}

/// Gradients and loss of a batch whose rows are padded with `more` tokens beyond the longest.
fn learned(
    device: &Device,
    config: &serde_json::Value,
    task: Task,
    examples: &[Example],
    more: usize,
) -> (Vec<f64>, f64) {
    let json = config.as_object().unwrap().clone();
    let labels = ["a", "b", "c"].map(str::to_owned);
    let n_labels = if matches!(examples[0].target, Target::Number(_)) {
        1
    } else {
        3
    };
    let architecture = Architecture::from_json(json).unwrap();
    let architecture = architecture.with_task(task, &labels[..n_labels]).unwrap();
    init::seed(2);
    let model = architecture.transformer.init(device);
    let trainee = Trainee::new(model, Labelling, StepConfig::default());
    let device = device.clone().autodiff();
    let trainee = trainee.fork(&device);
    let references: Vec<&Example> = examples.iter().collect();
    let mut batch = ExampleBatch::new(&references, 0, &device);
    if more > 0 {
        // A row beyond the longest makes the padding; it is dropped again.
        let longest = examples
            .iter()
            .map(|example| example.tokens.len())
            .max()
            .unwrap();
        let target = match &examples[0].target {
            Target::Tokens(_) => Target::Tokens(vec![-1; longest + more]),
            target => target.clone(),
        };
        let long = example(longest + more, target);
        let padded: Vec<&Example> = examples.iter().chain([&long]).collect();
        let n_asked = batch.n_asked;
        batch = ExampleBatch::new(&padded, 0, &device);
        batch = first_rows(batch, examples.len(), n_asked);
    }
    let output = TrainStep::step(&trainee, batch);
    struct Collect<'a>(&'a burn::optim::GradientsParams, Vec<f64>);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.0.get::<D>(param.id) {
                self.1.extend(values(gradient));
            }
        }
    }
    let mut collect = Collect(&output.grads, Vec::new());
    trainee.visit(&mut collect);
    (collect.1, output.item.facts().unwrap().loss)
}

#[test]
fn padding_changes_neither_loss_nor_gradients() {
    let of = |kind: usize, length: usize, number: usize| {
        let target = match kind {
            0 => Target::Class(number % 3),
            1 => Target::Number(number as f32 - 1.0),
            2 => Target::Tokens((0..length as i32).map(|token| token % 4 - 1).collect()),
            _ => Target::Span(0, length - 1),
        };
        example(length, target)
    };
    let encoder = serde_json::json!({
        "model_type": "bert", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2,
        "intermediate_size": 12, "max_position_embeddings": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "vocab_size": 11, "pad_token_id": 0, "num_labels": 3,
    });
    // Without a token for padding, as published.
    let decoder = serde_json::json!({
        "model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 24,
        "vocab_size": 11, "num_labels": 3, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "classifier_dropout": 0.0,
    });
    let protein = serde_json::json!({
        "model_type": "esm", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2,
        "intermediate_size": 12, "max_position_embeddings": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "vocab_size": 11, "pad_token_id": 0, "mask_token_id": 10, "position_embedding_type": "rotary",
    });
    let bloom = serde_json::json!({
        "model_type": "bloom", "n_layer": 1, "hidden_size": 8, "n_head": 2, "seq_length": 24,
        "vocab_size": 11, "num_labels": 3, "classifier_dropout": 0.0,
    });
    let llama = serde_json::json!({
        "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 12, "max_position_embeddings": 24,
        "vocab_size": 11, "num_labels": 3, "classifier_dropout": 0.0,
    });
    let neox = serde_json::json!({
        "model_type": "gpt_neox", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2,
        "intermediate_size": 12, "max_position_embeddings": 24, "vocab_size": 11, "classifier_dropout": 0.0,
    });
    let roberta = serde_json::json!({
        "model_type": "roberta", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2,
        "intermediate_size": 12, "max_position_embeddings": 26, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "vocab_size": 11, "pad_token_id": 0, "num_labels": 3,
    });
    let lamda = serde_json::json!({
        "model_type": "lamda", "num_layers": 1, "d_model": 8, "d_ff": 12, "d_kv": 4, "num_heads": 2,
        "context_length": 24, "vocab_size": 11, "classifier_dropout": 0.0,
    });
    let gpt3 = serde_json::json!({
        "model_type": "gpt3", "n_layers": 2, "d_model": 8, "n_heads": 2, "context_length": 24, "window": 3,
        "vocab_size": 11, "classifier_dropout": 0.0,
    });
    // The same stacks in other forms, for which the shaders of an imitated GPU would take long to compile.
    let others = [&bloom, &llama, &neox, &roberta, &lamda, &gpt3];
    let cases = [
        (&encoder, 0, Task::Sequence),
        (&encoder, 1, Task::Sequence),
        (&encoder, 2, Task::Token),
        (&encoder, 3, Task::Span),
        (&decoder, 0, Task::Sequence),
        (&decoder, 1, Task::Sequence),
        (&decoder, 2, Task::Token),
        (&decoder, 3, Task::Span),
        (&protein, 3, Task::Span),
    ];
    for found in devices() {
        let others = others.into_iter().flat_map(|config| {
            let tasks = [Task::Sequence, Task::Sequence, Task::Token, Task::Span];
            (0..4).map(move |kind| (config, kind, tasks[kind]))
        });
        let others = others.filter(|_| found.hardware == Hardware::Cpu);
        for (config, kind, task) in cases.into_iter().chain(others) {
            let examples: Vec<Example> = [5, 3, 4]
                .into_iter()
                .zip(0..)
                .map(|(l, n)| of(kind, l, n))
                .collect();
            let (expected, loss) = learned(&found.device, config, task, &examples, 0);
            let (found_gradients, padded) = learned(&found.device, config, task, &examples, 5);
            assert!(
                (loss - padded).abs() < 1e-6,
                "{}, {config}: {loss} {padded}",
                found.name
            );
            assert_close(&found_gradients, &expected, 1e-5, &found.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Each pass takes every example once, in an order of its own, and a step finds its batches without the
    /// steps before it.
    #[test]
    fn a_pass_takes_every_example_once(
        count in 1..40usize, batch_size in 1..9usize, accumulation in 1..3usize, seed in 0..9u64,
    ) {
        let all: Vec<Example> = (0..count)
            .map(|number| Example { tokens: vec![number as u32], segments: vec![0], target: Target::Class(0) })
            .collect();
        let examples = Examples {
            train: all.clone().into(), valid: all.into(), batch_size, accumulation, padding: 0, seed,
        };
        let device = processor();
        let per_epoch = examples.batches_per_epoch();
        let steps = examples.steps(2 * accumulation);
        let read = |batch: ExampleBatch| {
            let n = batch.n_predictions();
            let tokens = batch.inputs.tokens.into_data().iter::<i64>().collect::<Vec<_>>();
            assert_eq!(tokens.len(), n);
            tokens
        };
        let loader = examples.train(0..steps, &device);
        let batches: Vec<Vec<i64>> = loader.iter().map(|batch| read(batch.unwrap())).collect();
        prop_assert_eq!(batches.len(), steps * accumulation);
        for pass in batches.chunks_exact(per_epoch) {
            let mut seen: Vec<i64> = pass.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..count as i64).collect::<Vec<_>>());
        }
        let last = examples.train(steps - 1..steps, &device);
        let again: Vec<Vec<i64>> = last.iter().map(|batch| read(batch.unwrap())).collect();
        prop_assert_eq!(&again[..], &batches[batches.len() - accumulation..]);
    }
}
