//! The `burn-zoo` command as a user meets it.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;

const RECIPE: &str = r#"
objective = "causal_lm"
tokenizer = "char"
[model.gpt]
n_layers = 1
n_heads = 2
d_model = 16
context_length = 8
[optimizer]
learning_rate = 1e-2
[schedule.cosine]
warmup_iterations = 2
[loop]
iterations = 12
batch_size = 4
eval_interval = 6
"#;

/// A folder with a recipe and a corpus.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("recipe.toml"), RECIPE).unwrap();
        fs::write(
            folder.path().join("corpus.txt"),
            "to be or not to be\n".repeat(40),
        )
        .unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("burn-zoo").unwrap();
        command
            .current_dir(self.folder.path())
            .env_remove("BURN_ZOO_BACKEND")
            .args(arguments);
        command
    }

    fn train(&self, more: &[&str]) -> Command {
        let arguments = [
            "train",
            "recipe.toml",
            "--corpus",
            "corpus.txt",
            "--backend",
            "flex",
        ];
        self.command(&[&arguments, more].concat())
    }

    /// A model directory, trained.
    fn model(&self) -> PathBuf {
        self.train(&["--out", "model"]).assert().success();
        self.path("model")
    }
}

fn stdout(command: &mut Command) -> String {
    let output = command.assert().success().get_output().clone();
    String::from_utf8(output.stdout).unwrap()
}

/// Fails with exit code 1, one line on stderr that starts with `error:`, and nothing on stdout.
fn refusal(command: &mut Command) -> String {
    let output = command.assert().failure().code(1).get_output().clone();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let errors: Vec<&str> = stderr
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    errors[0].to_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn training_leaves_a_whole_model_directory() {
    let bench = Bench::new();
    let text = stdout(&mut bench.train(&[
        "--out",
        "model",
        "--set",
        "optimizer.learning_rate=3e-3",
        "--seed",
        "5",
    ]));
    for expected in [
        "sample 3 of 3",
        "validation loss",
        "tokens per second",
        "model directory   model",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let model = bench.path("model");
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "training/metrics.jsonl",
        "training/checkpoint/step-12/state.json",
    ] {
        assert!(model.join(name).exists(), "{name}");
    }
    let recipe = fs::read_to_string(model.join("recipe.toml")).unwrap();
    assert!(
        recipe.contains("learning_rate = 0.003") && recipe.contains("seed = 5"),
        "{recipe}"
    );
    let summary = json(&model.join("summary.json"));
    for key in ["valid_loss", "train_loss", "tokens_per_second", "seconds"] {
        assert!(
            summary[key].as_f64().is_some_and(|value| value > 0.0),
            "{key} in {summary}"
        );
    }
    assert_eq!(summary["tokens"], 12 * 4 * 8);
    assert_eq!(summary["backend"], "flex");
    assert_eq!(summary["seed"], 5);
    let weights = fs::read(model.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let count: usize = tensors
        .iter()
        .map(|(_, view)| view.shape().iter().product::<usize>())
        .sum();
    assert_eq!(summary["parameters"], count);
}

#[test]
fn an_occupied_directory_is_refused_resumed_or_replaced() {
    let bench = Bench::new();
    let model = bench.model();
    let message = refusal(&mut bench.train(&["--out", "model"]));
    assert!(
        message.contains("--resume") && message.contains("--overwrite"),
        "{message}"
    );

    // Resuming goes on by the saved recipe and on the same backend, here for longer.
    let resume = [
        "train",
        "--resume",
        "--out",
        "model",
        "--set",
        "loop.iterations=18",
        "--json",
    ];
    let mut resumed = bench.command(&resume);
    let resumed = stdout(resumed.env("BURN_ZOO_BACKEND", "ndarray"));
    let report: Value = serde_json::from_str(&resumed).unwrap();
    assert_eq!(report["iterations"], 18);
    assert_eq!(report["backend"], "flex");
    let history = fs::read_to_string(model.join("training/metrics.jsonl")).unwrap();
    let steps: Vec<u64> = history
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|record| record.get("loss").is_some())
        .map(|record| record["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=18).collect::<Vec<u64>>());

    // What makes the run what it is stays.
    for (change, expected) in [
        ("model.gpt.d_model=32", "`model.gpt.d_model` was 16, now 32"),
        (
            "tokenizer={ bpe = { vocab_size = 300 } }",
            "`tokenizer` was",
        ),
        ("seed=8", "`seed` was 1337, now 8"),
        ("optimizer.learning_rate=1e-3", "now 0.001"),
    ] {
        let mut changed = bench.command(&resume);
        let message = refusal(changed.args(["--set", change]));
        assert!(message.contains(expected), "{message}");
    }
    // Whether it comes from the command line, from another file, or from the run's own, edited.
    let other = RECIPE.replace("batch_size = 4", "batch_size = 2");
    fs::write(bench.path("other.toml"), other).unwrap();
    let message = refusal(bench.command(&resume).arg("other.toml"));
    assert!(
        message.contains("`loop.batch_size` was 4, now 2"),
        "{message}"
    );
    let own = fs::read_to_string(model.join("recipe.toml")).unwrap();
    let edited = own.replace("d_model = 16", "d_model = 32");
    fs::write(model.join("recipe.toml"), edited).unwrap();
    let message = refusal(&mut bench.command(&resume));
    assert!(
        message.contains("`model.gpt.d_model` was 16, now 32"),
        "{message}"
    );
    fs::write(model.join("recipe.toml"), own).unwrap();
    let recipe = fs::read_to_string(model.join("recipe.toml")).unwrap();
    assert!(
        recipe.contains("d_model = 16") && recipe.contains("\"char\""),
        "{recipe}"
    );

    // Another text is not what the run learned from.
    fs::write(bench.path("corpus.txt"), "to be or not to be?\n".repeat(40)).unwrap();
    let message = refusal(&mut bench.command(&resume));
    assert!(
        message.contains("corpus") || message.contains("character '?'"),
        "{message}"
    );

    // What is not the run's own stays.
    fs::write(model.join("training/notes.txt"), "mine").unwrap();
    let again = ["--out", "model", "--overwrite", "--json"];
    let report: Value = serde_json::from_str(&stdout(&mut bench.train(&again))).unwrap();
    assert_eq!(report["iterations"], 12);
    assert!(model.join("training/notes.txt").exists());
    refusal(&mut bench.command(&["train", "--resume", "--out", "nothing-here"]));
}

#[test]
fn without_out_every_run_gets_a_directory_of_its_own() {
    let bench = Bench::new();
    for expected in ["recipe", "recipe-2"].map(|name| Path::new("runs").join(name)) {
        let report: Value = serde_json::from_str(&stdout(&mut bench.train(&["--json"]))).unwrap();
        assert_eq!(report["directory"], expected.to_str().unwrap());
    }
}

#[test]
fn generation_is_decided_by_its_seed() {
    let bench = Bench::new();
    bench.model();
    let generate = |more: &[&str]| {
        let arguments = [
            "generate",
            "model",
            "--backend",
            "flex",
            "--prompt",
            "to",
            "--max-new-tokens",
            "30",
        ];
        stdout(&mut bench.command(&[&arguments, more].concat()))
    };
    let text = generate(&["--seed", "1"]);
    assert!(text.starts_with("to"), "{text}");
    assert_eq!(text.chars().count(), 2 + 30 + 1, "{text:?}");
    assert_eq!(text, generate(&["--seed", "1"]));
    assert_ne!(text, generate(&["--seed", "2"]));
    // Greedy and a choice of one are the same.
    assert_eq!(
        generate(&["--temperature", "0"]),
        generate(&["--top-k", "1", "--seed", "9"])
    );
    assert_eq!(
        generate(&["--temperature", "0"]),
        generate(&["--top-p", "0.0001", "--seed", "9"])
    );
    assert_ne!(
        generate(&["--temperature", "0"]),
        generate(&["--temperature", "0", "--repetition-penalty", "5"])
    );

    // Sample n of many is the single sample of its seed.
    let samples: Value =
        serde_json::from_str(&generate(&["--seed", "1", "--samples", "2", "--json"])).unwrap();
    assert_eq!(samples[1]["seed"], 2);
    let second = format!("to{}\n", samples[1]["text"].as_str().unwrap());
    assert_eq!(second, generate(&["--seed", "2"]));
    assert!(generate(&["--samples", "2"]).contains("--- sample 2 of 2, seed 1 ---"));
}

#[test]
fn unusable_prompts_and_settings_are_refused() {
    let bench = Bench::new();
    bench.model();
    for (arguments, expected) in [
        (
            ["--prompt", "to be or not to be"],
            "18 tokens, but the model's context holds 8",
        ),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "zebra"], "does not know the character 'z'"),
        (["--temperature", "-1"], "temperature must be 0 or more"),
        (["--top-k", "0"], "top_k must be at least 1"),
        (["--top-p", "2"], "top_p must be above 0 and at most 1"),
        (["--repetition-penalty", "0"], "repetition_penalty must be"),
    ] {
        let option = format!("{}={}", arguments[0], arguments[1]);
        let message =
            refusal(&mut bench.command(&["generate", "model", "--backend", "flex", &option]));
        assert!(message.contains(expected), "{message}");
    }
    let message = refusal(&mut bench.command(&["generate", "nothing-here", "--backend", "flex"]));
    assert!(message.contains("nothing-here"), "{message}");
}

#[test]
fn unusable_texts_are_refused() {
    let bench = Bench::new();
    fs::write(bench.path("empty.txt"), "").unwrap();
    fs::write(bench.path("latin1.txt"), b"caf\xe9").unwrap();
    fs::write(bench.path("short.txt"), "to be").unwrap();
    for (corpus, expected) in [
        ("missing.txt", "cannot read corpus"),
        ("empty.txt", "is empty"),
        ("latin1.txt", "not UTF-8: byte 0xe9 at offset 3"),
        (
            "short.txt",
            "training split has 4 tokens, but a window of 8 and the token after it need 9",
        ),
    ] {
        let arguments = [
            "train",
            "recipe.toml",
            "--corpus",
            corpus,
            "--out",
            "model",
            "--backend",
            "flex",
        ];
        let message = refusal(&mut bench.command(&arguments));
        assert!(message.contains(expected), "{message}");
        // Nothing is in the way of a second try.
        assert!(!bench.path("model/recipe.toml").exists(), "{corpus}");
    }
}

#[test]
fn unusable_recipes_are_refused_by_key() {
    let bench = Bench::new();
    for (value, expected) in [
        ("optimizer.lr=1", "`optimizer.lr`: unknown field"),
        ("loop.batch_size=0", "`loop.batch_size`: must be at least 1"),
        (
            "model.gpt.n_heads=3",
            "`model.gpt.d_model`: must be a multiple of n_heads (3)",
        ),
    ] {
        let message = refusal(&mut bench.train(&["--out", "model", "--set", value]));
        assert!(message.contains(expected), "{message}");
    }
    fs::write(bench.path("recipe.toml"), "objective = ").unwrap();
    assert!(refusal(&mut bench.train(&[])).contains("TOML"));
    fs::remove_file(bench.path("recipe.toml")).unwrap();
    assert!(refusal(&mut bench.train(&[])).contains("recipe.toml"));
    // A key without a value is a mistake in the command's own words.
    bench.train(&["--set", "seed"]).assert().failure().code(2);
}

#[test]
fn unusable_backends_are_refused() {
    let bench = Bench::new();
    let train = |backend: &str| {
        let arguments = [
            "train",
            "recipe.toml",
            "--corpus",
            "corpus.txt",
            "--backend",
            backend,
        ];
        refusal(&mut bench.command(&arguments))
    };
    assert!(train("abacus").contains("unknown backend `abacus`: use auto, cuda, libtorch"));
    if !cfg!(feature = "rocm") {
        assert!(train("rocm").contains("`rocm` is not compiled in: build with `--features rocm`"));
    }
    assert!(train("flex:3").contains("there is no device `flex:3`"));
}

/// Without a Vulkan driver, wgpu is refused with advice, and `auto` goes on without it.
#[cfg(all(feature = "wgpu", target_os = "linux"))]
#[test]
fn a_machine_without_vulkan_is_told_so() {
    let bench = Bench::new();
    let without = |arguments: &[&str]| {
        let mut command = bench.command(arguments);
        // The loader reads no driver, and there is no OpenGL to fall back to.
        for variable in [
            "VK_DRIVER_FILES",
            "VK_ICD_FILENAMES",
            "__EGL_VENDOR_LIBRARY_FILENAMES",
        ] {
            command.env(variable, "/nonexistent.json");
        }
        command
    };
    let message = refusal(&mut without(&["bench", "train", "--backend", "wgpu"]));
    assert!(
        message.contains("finds no device") && message.contains("mesa-vulkan-drivers"),
        "{message}"
    );
    let report: Value =
        serde_json::from_str(&stdout(&mut without(&["backends", "--json"]))).unwrap();
    let reason = report["auto"]["reason"].as_str().unwrap();
    assert!(reason.contains("wgpu finds no GPU"), "{reason}");
}

/// Each operation is timed in both of its forms, and each device by a small model.
#[test]
fn operations_and_devices_are_measured() {
    let bench = Bench::new();
    let sizes = "bench ops --backend flex --d-model 8 --n-heads 2 --context-length 4 --batch-size 2 --rounds 1";
    let sizes: Vec<&str> = sizes.split(' ').collect();
    let mut command = bench.command(&sizes);
    let report: Value = serde_json::from_str(&stdout(command.arg("--json"))).unwrap();
    let operations = report["operations"].as_array().unwrap();
    assert!(operations.len() > 8, "{operations:?}");
    for operation in operations {
        let [zoo, composed, ratio] =
            ["zoo_ms", "composed_ms", "ratio"].map(|key| operation[key].as_f64().unwrap());
        assert!((zoo / composed - ratio).abs() < 1e-9 * ratio, "{operation}");
    }
    let table = stdout(&mut bench.command(&sizes));
    assert!(table.contains("head and cross-entropy"), "{table}");
    let message = refusal(&mut bench.command(&["bench", "ops", "--n-heads", "7"]));
    assert!(message.contains("--n-heads"), "{message}");

    // A software GPU takes long for it.
    if !burn_zoo::backend::Backend::Wgpu.is_compiled_in() {
        let report = stdout(&mut bench.command(&["backends", "--bench", "--json"]));
        let report: Value = serde_json::from_str(&report).unwrap();
        let backends = report["backends"].as_array().unwrap().iter();
        let devices: Vec<&Value> = backends
            .flat_map(|backend| backend["devices"].as_array().unwrap())
            .collect();
        assert!(devices.iter().any(|device| device["name"] == "flex"));
        for (what, key) in [
            ("training", "train_tokens_per_second"),
            ("decoding", "decode_tokens_per_second"),
        ] {
            let speed = |device: &Value| device[key].as_f64().unwrap();
            let by_speed = |a: &&&Value, b: &&&Value| speed(a).total_cmp(&speed(b));
            let fastest = &devices.iter().max_by(by_speed).unwrap()["name"];
            assert_eq!(&report["fastest"][what], fastest);
        }
    }
}

#[test]
fn backends_are_listed() {
    let bench = Bench::new();
    let table = stdout(&mut bench.command(&["backends"]));
    assert!(
        table.contains("flex") && table.contains("auto picks"),
        "{table}"
    );
    let report: Value =
        serde_json::from_str(&stdout(&mut bench.command(&["backends", "--json"]))).unwrap();
    assert_eq!(report["backends"].as_array().unwrap().len(), 8);
    let flex = report["backends"]
        .as_array()
        .unwrap()
        .iter()
        .find(|backend| backend["name"] == "flex")
        .unwrap();
    assert_eq!(flex["compiled_in"], true);
    assert_eq!(flex["devices"][0]["hardware"], "cpu");
    // What it picks can be asked for.
    let picked = report["auto"]["device"].as_str().unwrap();
    let times = stdout(&mut bench.command(&[
        "bench",
        "train",
        "--backend",
        picked,
        "--n-layers",
        "1",
        "--d-model",
        "8",
        "--n-heads",
        "2",
        "--context-length",
        "4",
        "--batch-size",
        "1",
        "--steps",
        "3",
        "--warmup",
        "1",
        "--json",
    ]));
    let times: Value = serde_json::from_str(&times).unwrap();
    for key in [
        "step_ms",
        "forward_ms",
        "backward_ms",
        "optimizer_ms",
        "tokens_per_second",
    ] {
        assert!(
            times[key].as_f64().is_some_and(|value| value > 0.0),
            "{key} in {times}"
        );
    }
}

/// The variable chooses where the option does not.
#[test]
fn the_environment_chooses_a_backend() {
    let bench = Bench::new();
    let train = ["train", "recipe.toml", "--corpus", "corpus.txt", "--json"];
    let mut command = bench.command(&train);
    let report: Value =
        serde_json::from_str(&stdout(command.env("BURN_ZOO_BACKEND", "ndarray"))).unwrap();
    assert_eq!(report["backend"], "ndarray");
    let mut command = bench.command(&train);
    assert!(refusal(command.env("BURN_ZOO_BACKEND", "abacus")).contains("abacus"));
}

/// All combinations are trained once, ranked, and compared; one that fails does not stop the others.
#[test]
fn a_sweep_ranks_its_trials_and_trains_none_twice() {
    let bench = Bench::new();
    let sweep_to = |out: &str, more: &[&str]| {
        let arguments = [
            "sweep",
            "recipe.toml",
            "--corpus",
            "corpus.txt",
            "--backend",
            "flex",
            "--out",
            out,
            "--json",
        ];
        let report = stdout(&mut bench.command(&[&arguments, more].concat()));
        let report: Value = serde_json::from_str(&report).unwrap();
        report["trials"].as_array().unwrap().clone()
    };
    let sweep = |more: &[&str]| {
        let rates = ["--vary", "optimizer.learning_rate=1e-2,1e-4"];
        sweep_to("sweep", &[&rates, more].concat())
    };
    // The corpus is shorter than the longest window.
    let contexts = ["--vary", "model.gpt.context_length=8,4000"];
    let trials = sweep(&contexts);
    assert_eq!(trials.len(), 4);
    let loss = |trial: &Value| trial["summary"]["valid_loss"].as_f64();
    assert!(loss(&trials[0]).unwrap() < loss(&trials[1]).unwrap());
    assert_eq!(trials[0]["overrides"]["optimizer.learning_rate"], "1e-2");
    for failed in &trials[2..] {
        assert_eq!(failed["overrides"]["model.gpt.context_length"], "4000");
        let error = failed["error"].as_str().unwrap();
        assert!(error.contains("tokens"), "{error}");
    }

    // Again, and for longer: what is done is kept, what is not goes on.
    let seconds = |trial: &Value| trial["summary"]["seconds"].as_f64().unwrap();
    let again = sweep(&contexts);
    assert_eq!(seconds(&again[0]), seconds(&trials[0]));
    let longer = sweep(&[
        "--vary",
        "model.gpt.context_length=8",
        "--set",
        "loop.iterations=18",
    ]);
    assert_eq!(longer.len(), 2);
    assert_eq!(longer[0]["summary"]["iterations"], 18);

    let runs = ["runs", "sweep", "--plot", "runs.svg", "--json"];
    let runs: Value = serde_json::from_str(&stdout(&mut bench.command(&runs))).unwrap();
    let table = stdout(&mut bench.command(&["runs", "sweep"]));
    for expected in ["optimizer.learning_rate=1e-2", "18"] {
        assert!(table.contains(expected), "{table}");
    }
    let runs = runs.as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for run in runs {
        assert_eq!(
            (&run["steps"], &run["finished"]),
            (&18.into(), &true.into())
        );
        assert_eq!(run["valid_loss"], run["summary"]["valid_loss"]);
        assert!(run["summary"]["mfu"].as_f64().is_some_and(|mfu| mfu > 0.0));
    }
    let picture = fs::read_to_string(bench.path("runs.svg")).unwrap();
    assert!(
        picture.contains("optimizer.learning_rate=1e-2"),
        "{picture}"
    );
    let directory = bench.path(longer[0]["directory"].as_str().unwrap());
    assert!(directory.join("training/loss.svg").exists());

    // Drawn from a range, the same by the same seed.
    let drawn = |out: &str, seed: &str| {
        let range = ["--vary", "optimizer.learning_rate=1e-4..1e-2"];
        let random = ["--random", "2", "--seed", seed];
        let trials = sweep_to(out, &[&range[..], &random].concat());
        let rate = |trial: &Value| {
            let rate = trial["overrides"]["optimizer.learning_rate"].as_str();
            rate.unwrap().parse::<f64>().unwrap()
        };
        let mut rates: Vec<f64> = trials.iter().map(rate).collect();
        rates.sort_by(f64::total_cmp);
        rates
    };
    let rates = drawn("first", "1");
    assert!(rates.len() == 2 && rates[0] < rates[1], "{rates:?}");
    assert!(
        rates.iter().all(|rate| (1e-4..1e-2).contains(rate)),
        "{rates:?}"
    );
    assert_eq!(drawn("second", "1"), rates);
    assert_ne!(drawn("third", "2"), rates);

    let refused = |arguments: &[&str]| refusal(&mut bench.command(arguments));
    assert!(refused(&["runs", "nowhere"]).contains("nowhere"));
    let vary = "optimizer.learning_rate=1e-2,fast";
    let message = refused(&["sweep", "recipe.toml", "--out", "x", "--vary", vary]);
    assert!(message.contains("optimizer.learning_rate"), "{message}");
    assert!(!bench.path("x").exists());
}

#[cfg(unix)]
mod unix {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Stdio};

    use super::*;

    fn long_run(bench: &Bench) -> Child {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("burn-zoo"));
        command
            .current_dir(bench.folder.path())
            .args([
                "train",
                "recipe.toml",
                "--corpus",
                "corpus.txt",
                "--backend",
                "flex",
                "--out",
                "model",
            ])
            .args([
                "--set",
                "loop.iterations=1000000",
                "--set",
                "loop.eval_interval=1000000",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Ctrl-C stops after the step, says how to go on, and going on works.
    #[test]
    fn ctrl_c_leaves_a_run_that_can_be_resumed() {
        let bench = Bench::new();
        let mut child = long_run(&bench);
        let mut lines = BufReader::new(child.stderr.take().unwrap())
            .lines()
            .map(Result::unwrap);
        lines
            .find(|line| line.starts_with("step "))
            .expect("training shows progress");
        // SAFETY: a signal to our own child.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
        let rest: Vec<String> = lines.collect();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
        let advice = "continue with: burn-zoo train --resume --out model";
        assert!(rest.iter().any(|line| line.contains(advice)), "{rest:?}");

        let steps: Vec<u64> = fs::read_dir(bench.path("model/training/checkpoint"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.strip_prefix("step-").unwrap().parse().unwrap())
            .collect();
        let more = format!("loop.iterations={}", steps[0] + 5);
        let resume = [
            "train",
            "--resume",
            "--out",
            "model",
            "--backend",
            "flex",
            "--set",
            &more,
            "--json",
        ];
        let report: Value = serde_json::from_str(&stdout(&mut bench.command(&resume))).unwrap();
        assert_eq!(report["iterations"], steps[0] + 5);
    }

    /// A run goes on when nobody reads its progress any more.
    #[test]
    fn a_closed_stderr_does_not_stop_a_run() {
        let bench = Bench::new();
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("burn-zoo"));
        command
            .current_dir(bench.folder.path())
            .args([
                "train",
                "recipe.toml",
                "--corpus",
                "corpus.txt",
                "--out",
                "model",
            ])
            .args(["--backend", "flex", "--set", "loop.log_interval=1"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stderr.take());
        assert!(child.wait().unwrap().success());
        assert!(bench.path("model/summary.json").exists());
    }

    /// A disk that takes no more while a checkpoint is written: the run says so, and the checkpoint
    /// before it is whole.
    #[test]
    fn a_full_disk_leaves_the_previous_checkpoint() {
        let bench = Bench::new();
        let model = bench.model();
        let weights = fs::read(model.join("model.safetensors")).unwrap();
        let arguments = [
            "train",
            "--resume",
            "--out",
            "model",
            "--backend",
            "flex",
            "--set",
            "loop.iterations=18",
            "--json",
        ];
        let mut limited = std::process::Command::new(assert_cmd::cargo::cargo_bin("burn-zoo"));
        limited.current_dir(bench.folder.path()).args(arguments);
        // SAFETY: only calls that are safe between fork and exec. Files may not grow beyond 8 kB, and
        // a write that would gives an error instead of a signal.
        unsafe {
            limited.pre_exec(|| {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                let limit = libc::rlimit {
                    rlim_cur: 8192,
                    rlim_max: 8192,
                };
                match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let message = refusal(&mut Command::from_std(limited));
        assert!(message.contains("File too large"), "{message}");
        assert_eq!(fs::read(model.join("model.safetensors")).unwrap(), weights);
        assert!(
            model
                .join("training/checkpoint/step-12/state.json")
                .exists()
        );
        assert!(!model.join("training/checkpoint/step-18").exists());

        let report: Value = serde_json::from_str(&stdout(&mut bench.command(&arguments))).unwrap();
        assert_eq!(report["iterations"], 18);
    }
}

/// A directory of `tests/reference/`.
fn reference(case: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reference");
    format!("{folder}/{case}")
}

#[test]
fn models_are_listed_with_their_counts() {
    let bench = Bench::new();
    let text = stdout(&mut bench.command(&["models"]));
    for expected in ["bloom-176b", "176,247,271,424", "a reconstruction"] {
        assert!(text.contains(expected), "{text}");
    }
    let listed: Value =
        serde_json::from_str(&stdout(&mut bench.command(&["models", "--json"]))).unwrap();
    let listed = listed.as_array().unwrap();
    let find = |name: &str| {
        let found = listed.iter().find(|model| model["name"] == name);
        found
            .unwrap_or_else(|| panic!("{name} is not listed"))
            .clone()
    };
    for name in [
        "gpt2-124m",
        "gpt3-175b",
        "bert-base",
        "bloom-176b",
        "mt-nlg-530b",
        "lamda-137b",
        "wudao2-1.75t",
        "esm2-15b",
        "t5-small",
    ] {
        let model = find(name);
        assert!(
            model["parameters"].is_u64() && model["published_parameters"].is_u64(),
            "{model}"
        );
        assert!(
            model["family"].is_string() && model["layers"].is_u64(),
            "{model}"
        );
    }
    let gpt2 = find("gpt2-124m");
    assert_eq!(gpt2["parameters"], 124_439_808);
    assert_eq!(gpt2["weight_bytes_bf16"], 2 * 124_439_808);
    assert_eq!(gpt2["training_bytes_adamw"], 16u64 * 124_439_808);
}

#[test]
fn a_model_is_drawn_with_shapes() {
    let bench = Bench::new();
    let text = stdout(&mut bench.command(&["models", "wudao2-1.75t"]));
    for expected in [
        "1,749,661,151,952 parameters",
        "271 × 134,238,208",
        "weight [4096, 16384]",
        "2 of 271 experts",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let json = stdout(&mut bench.command(&["models", "gpt2-124m", "--json"]));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["tree"]["parameters"], json["parameters"]);
    assert_eq!(
        refusal(&mut bench.command(&["models", "bert-huge"])),
        "error: there is no model `bert-huge`: there are bert-tiny, bert-mini, bert-small, \
         bert-medium, bert-base, bert-large"
    );
}

#[test]
fn forward_writes_every_output_by_name() {
    let bench = Bench::new();
    let case = reference("bert-pretraining");
    let input = format!("{case}/input.json");
    let mut command = bench.command(&["forward", &case, "--input", &input]);
    let text = stdout(command.args(["--output", "out.safetensors", "--backend", "flex"]));
    assert!(text.contains("prediction_logits [") && text.contains("seq_relationship_logits ["));
    let read = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = tensors.tensor("prediction_logits").unwrap();
        let values = view.data().as_chunks::<4>().0.iter();
        values
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect::<Vec<_>>()
    };
    let found = read(&bench.path("out.safetensors"));
    let expected = read(&Path::new(&case).join("outputs.safetensors"));
    assert_eq!(found.len(), expected.len());
    // At padding too, since it is on the right.
    assert!(
        found
            .iter()
            .zip(&expected)
            .all(|(a, b)| (a - b).abs() < 1e-4)
    );
}

#[test]
fn unusable_inputs_and_directories_are_refused() {
    let bench = Bench::new();
    let case = reference("bert");
    let run = |directory: &str, input: &str| {
        fs::write(bench.path("in.json"), input).unwrap();
        let mut command = bench.command(&["forward", directory, "--input", "in.json"]);
        refusal(command.args(["--output", "out.safetensors", "--backend", "flex"]))
    };
    for (input, expected) in [
        ("{}", "in.json: missing field `input_ids`"),
        (r#"{"input_ids": []}"#, "input_ids: is empty"),
        (
            r#"{"input_ids": [[1, 2], [3]]}"#,
            "input_ids: must have one length",
        ),
        (
            r#"{"input_ids": [[99999]]}"#,
            "input_ids: must be at least 0 and below",
        ),
        (
            r#"{"input_ids": [[1, 2]], "attention_mask": [[1]]}"#,
            "attention_mask: must have the shape of input_ids, [1, 2], got [1, 1]",
        ),
        (
            r#"{"input_ids": [[1]], "decoder_input_ids": [[1]]}"#,
            "decoder_input_ids: are for models with an encoder and a decoder",
        ),
        (
            r#"{"input_ids": [[1]], "tokens": 3}"#,
            "unknown field `tokens`",
        ),
    ] {
        let found = run(&case, input);
        assert!(found.contains(expected), "{found}");
    }

    // Directories: a pickle, a class without a head here, a tensor that is not there.
    let copy = |change: &dyn Fn(&Path)| {
        let folder = bench.path("copy");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(Path::new(&case).join(name), folder.join(name)).unwrap();
        }
        change(&folder);
        run("copy", r#"{"input_ids": [[1, 2]]}"#)
    };
    let found = copy(&|folder| {
        fs::rename(
            folder.join("model.safetensors"),
            folder.join("pytorch_model.bin"),
        )
        .unwrap();
    });
    assert!(
        found.contains("is a Python pickle") && found.contains("save_pretrained"),
        "{found}"
    );
    let edit = |folder: &Path, key: &str, value: Value| {
        let path = folder.join("config.json");
        let mut config = json(&path);
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
    };
    let with = |key: &str, value: Value| copy(&|folder| edit(folder, key, value.clone()));
    let found = with(
        "architectures",
        serde_json::json!(["BertForTokenClassification"]),
    );
    assert!(found.contains("`classifier.weight` is missing"), "{found}");
    let found = with(
        "architectures",
        serde_json::json!(["BertForMultipleChoice"]),
    );
    assert!(
        found.contains("has a head that the zoo does not have"),
        "{found}"
    );
    let found = with("hidden_act", "mish".into());
    assert!(
        found.contains("hidden_act: unknown activation `mish`"),
        "{found}"
    );
    let found = with("type_vocab_size", 7.into());
    assert!(
        found.contains("`embeddings.token_type_embeddings.weight` has shape [")
            && found.contains("expected [7, "),
        "{found}"
    );
}

/// A model of a family of `transformers`, trained by a recipe, is a directory of that family.
#[test]
fn a_family_is_trained_by_its_configuration() {
    let bench = Bench::new();
    let (start, rest) = RECIPE.split_once("[model.gpt]").unwrap();
    let (_, rest) = rest.split_once("[optimizer]").unwrap();
    let recipe = |model: &str| {
        let text = format!("{start}[model.config]\n{model}\n[optimizer]{rest}");
        fs::write(bench.path("recipe.toml"), text).unwrap();
    };
    recipe("model_type = \"bloom\"\nhidden_size = 12\nn_layer = 1\nn_head = 3\nseq_length = 8");
    stdout(&mut bench.train(&["--out", "bloom"]));
    let config = json(&bench.path("bloom/config.json"));
    assert_eq!(config["model_type"], "bloom");
    assert_eq!(config["architectures"][0], "BloomForCausalLM");
    let text = stdout(&mut bench.command(&["generate", "bloom", "--max-new-tokens", "5"]));
    assert!(text.chars().count() >= 5, "{text}");

    recipe("model_type = \"bloom\"\nhiden_size = 12");
    let found = refusal(&mut bench.train(&["--out", "other"]));
    assert!(
        found.contains("`model.config.hiden_size`: is no field of BLOOM"),
        "{found}"
    );
    recipe("model_type = \"bert\"\nhidden_size = 12\nnum_attention_heads = 2");
    let found = refusal(&mut bench.train(&["--out", "other"]));
    assert!(found.contains("see the token to predict"), "{found}");

    fs::write(bench.path("recipe.toml"), RECIPE).unwrap();
    for (objective, expected) in [
        (
            "{ masked_lm = { probability = -1.0 } }",
            "must be above 0 and below 1, got -1",
        ),
        (
            "{ masked_lm = { probability = nan } }",
            "must be above 0 and below 1",
        ),
        ("\"prefix_lm\"", "have no prefix attention"),
    ] {
        let set = format!("objective={objective}");
        let found = refusal(&mut bench.train(&["--out", "other", "--set", &set]));
        assert!(found.contains(expected), "{found}");
    }
    assert!(!bench.path("other").exists());
    // A published size with the corpus's vocabulary; its context is long.
    let text = format!("{start}[model]\npreset = \"bert-tiny\"\n[optimizer]{rest}");
    fs::write(bench.path("recipe.toml"), text).unwrap();
    fs::write(bench.path("corpus.txt"), "to be or not to be\n".repeat(400)).unwrap();
    let short = [
        "loop.iterations=2",
        "loop.batch_size=1",
        "objective=masked_lm",
    ];
    let short = short.iter().flat_map(|set| ["--set", set]);
    let arguments: Vec<&str> = ["--out", "bert"].into_iter().chain(short).collect();
    stdout(&mut bench.train(&arguments));
    let config = json(&bench.path("bert/config.json"));
    assert_eq!(config["model_type"], "bert");
    assert_eq!(config["hidden_size"], 128);
    assert_ne!(config["vocab_size"], 30522);
}

/// Sizes beyond any model's are refused before anything as large is built.
#[test]
fn absurd_sizes_are_refused() {
    let bench = Bench::new();
    fs::create_dir(bench.path("model")).unwrap();
    fs::write(bench.path("in.json"), r#"{"input_ids": [[1]]}"#).unwrap();
    for (config, expected) in [
        (
            r#"{"model_type": "gpt2", "n_layer": 1000000000}"#,
            "n_layer: must be at most",
        ),
        (
            r#"{"model_type": "mixtral", "num_local_experts": 1000000000}"#,
            "num_local_experts",
        ),
        (
            r#"{"model_type": "llama", "hidden_size": 4294967296000}"#,
            "hidden_size: must be at most",
        ),
        (
            r#"{"model_type": "gpt_neox", "rotary_pct": 1e300}"#,
            "partial_rotary_factor",
        ),
        (
            r#"{"model_type": "gpt_neo", "attention_types": [[["global"], 1152921504606846976]]}"#,
            "attention_types: must name a pattern for each",
        ),
        (
            r#"{"model_type": "llama", "rope_parameters": 5}"#,
            "rope_parameters",
        ),
        (
            r#"{"model_type": "bert", "layer_norm_eps": -1}"#,
            "norm.epsilon: must be at least 0",
        ),
    ] {
        fs::write(bench.path("model/config.json"), config).unwrap();
        let mut command = bench.command(&["forward", "model", "--input", "in.json"]);
        let found = refusal(command.args(["--output", "out.safetensors", "--backend", "flex"]));
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn a_download_that_cannot_be_made_says_why() {
    let bench = Bench::new();
    for (address, reason) in [
        ("ftp://host/corpus.txt", "neither http://"),
        ("hf://datasets/nobody", "names no repository"),
    ] {
        let output = bench
            .command(&["data", "download", address])
            .assert()
            .failure();
        let stderr = String::from_utf8(output.get_output().stderr.clone()).unwrap();
        assert!(stderr.contains(reason), "{stderr}");
    }
}
