//! `burn-zoo data` as a user meets it.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use assert_cmd::Command;
use serde_json::Value;

const RECIPE: &str = r#"
chunk_bytes = 20_000
memory_bytes = 1_000_000
clean = [{ length = { min_words = 4 } }, "exact_duplicates"]
tokenizer = { bpe = { vocab_size = 400, special_tokens = ["<|endoftext|>"] } }
pack = { splits = { valid = 0.1, test = 0.1 } }
[[sources]]
path = "corpus"
format = "lines"
"#;

/// A folder with a recipe and a corpus: the repository's own source.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("recipe.toml"), RECIPE).unwrap();
        fs::create_dir(folder.path().join("corpus")).unwrap();
        let text = burn_zoo::OWN_TEXT;
        let lines: Vec<&str> = text.lines().take(9000).collect();
        for (number, lines) in lines.chunks(3000).enumerate() {
            let path = folder.path().join(format!("corpus/{number}.txt"));
            fs::write(path, lines.join("\n")).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("burn-zoo").unwrap();
        command
            .current_dir(self.folder.path())
            .arg("data")
            .args(arguments);
        command
    }

    fn prepare(&self, out: &str, more: &[&str]) -> Command {
        self.data(&[&["prepare", "recipe.toml", "--out", out], more].concat())
    }
}

fn stdout(command: &mut Command) -> String {
    let output = command.assert().success().get_output().clone();
    String::from_utf8(output.stdout).unwrap()
}

/// The one line of a failure.
fn refusal(command: &mut Command) -> String {
    let output = command.assert().failure().code(1).get_output().clone();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.starts_with("error: ") && stderr.lines().count() == 1,
        "{stderr}"
    );
    stderr
}

/// Every file below a folder but locks.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    if !folder.exists() {
        return found;
    }
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            let below = contents(&path).into_iter();
            found.extend(below.map(|(below, bytes)| (name.join(below), bytes)));
        } else if path.extension().is_none_or(|extension| extension != "lock") {
            found.insert(name, fs::read(path).unwrap());
        }
    }
    found
}

#[test]
fn a_corpus_is_prepared_shown_exported_and_imported() {
    let bench = Bench::new();
    let summary: Value =
        serde_json::from_str(&stdout(&mut bench.prepare("out", &["--json"]))).unwrap();
    assert_eq!(summary["vocab_size"], 400);
    assert_eq!(summary["report"]["cleaning"]["steps"][0]["step"], "length");
    let text = stdout(&mut bench.data(&["show", "out", "--verify", "--documents", "2"]));
    for expected in [
        "exact_duplicates",
        "vocabulary: 400",
        "--- test, document 2 ---",
        "<|endoftext|>",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    stdout(&mut bench.data(&["export", "out", "--nanogpt", "nano"]));
    let tokens = summary["tokens"][0].as_u64().unwrap();
    assert_eq!(
        fs::metadata(bench.path("nano/train.bin")).unwrap().len(),
        2 * tokens
    );
    let import = [
        "import",
        "nano",
        "--tokenizer",
        "out/tokenizer.json",
        "--out",
        "back",
    ];
    stdout(&mut bench.data(&import));
    let back: Value =
        serde_json::from_str(&stdout(&mut bench.data(&["show", "back", "--json"]))).unwrap();
    for split in 0..2 {
        assert_eq!(back["tokens"][split], summary["tokens"][split]);
        assert_eq!(back["documents"][split], summary["documents"][split]);
    }
}

/// A corpus of more than ten times the limit takes no more than twice the limit above one of an eighth.
#[test]
fn memory_is_bounded_by_the_setting_and_not_by_the_corpus() {
    const LIMIT: u64 = 8_000_000;
    let bench = Bench::new();
    let peak = |name: &str, n_documents: u64| {
        let words = burn_zoo::OWN_TEXT.split_whitespace().collect::<Vec<_>>();
        let mut text = String::new();
        for number in 0..n_documents {
            // Texts that have little in common, so that all are kept.
            let (start, step) = (number as usize * 97, 1 + number as usize % 89);
            let word = |place: usize| words[(start + place * step) % words.len()];
            text.push_str(&(0..150).map(word).collect::<Vec<_>>().join(" "));
            text.push('\n');
        }
        fs::create_dir(bench.path(name)).unwrap();
        fs::write(bench.path(name).join("text.txt"), &text).unwrap();
        let source = format!("sources.0.path={name}");
        let limit = format!("memory_bytes={LIMIT}");
        let mut settings = vec!["--json"];
        for setting in [&source, &limit, "chunk_bytes=200000", "sample_bytes=400000"] {
            settings.extend(["--set", setting]);
        }
        let output = bench
            .prepare(&format!("{name}-out"), &settings)
            .assert()
            .success();
        let summary: Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
        let documents = summary["documents"].as_array().unwrap().iter();
        let packed: u64 = documents.map(|documents| documents.as_u64().unwrap()).sum();
        assert_eq!(packed, n_documents);
        let stderr = String::from_utf8(output.get_output().stderr.clone()).unwrap();
        let line = stderr
            .lines()
            .find_map(|line| line.strip_prefix("peak memory: "));
        let megabytes = line.and_then(|line| line.strip_suffix(" MB")).unwrap();
        (
            text.len() as u64,
            megabytes.parse::<u64>().unwrap() * 1_000_000,
        )
    };
    let ((small, least), (large, most)) = (peak("small", 10_000), peak("large", 80_000));
    assert!(large > 10 * LIMIT, "the corpus does not fit into the limit");
    let is_bounded = most < least + 3 * LIMIT;
    assert!(
        is_bounded,
        "{small} bytes in {least}, {large} bytes in {most}"
    );
}

/// However often it is killed, it ends with the bytes of a run that was not.
#[test]
fn a_killed_process_is_gone_on_with() {
    let bench = Bench::new();
    stdout(&mut bench.prepare("whole", &[]));
    let expected = contents(&bench.path("whole"));
    // Cleaned parts, then packed ones.
    let [parts, tokens] = ["killed/parts", "killed/tokens"].map(|name| bench.path(name));
    let is_whole = |path: &Path| path.extension() == Some("json".as_ref());
    let count = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter(|entry| is_whole(&entry.path())).count()
    };
    let mut while_packing = 0;
    // Shards that were whole when the process was killed, by their inode.
    let mut packed = BTreeMap::new();
    for stage in [&parts, &parts, &tokens, &tokens, &tokens] {
        let n_files = || count(stage);
        let before = n_files();
        let mut process = std::process::Command::new(assert_cmd::cargo::cargo_bin("burn-zoo"))
            .current_dir(bench.folder.path())
            .args(["data", "prepare", "recipe.toml", "--out", "killed"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while n_files() <= before && process.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        process.kill().unwrap();
        process.wait().unwrap();
        let is_packed = bench.path("killed/tokens/index.json").exists();
        while_packing += usize::from(!is_packed && count(&tokens) > 0);
        for shard in contents(&tokens).into_keys() {
            if tokens.join(&shard).with_extension("json").exists()
                && shard.extension() == Some("bin".as_ref())
            {
                let inode = fs::metadata(tokens.join(&shard)).unwrap().ino();
                packed.entry(shard).or_insert(inode);
            }
        }
    }
    assert!(while_packing > 0, "it was never killed while it packed");
    stdout(&mut bench.prepare("killed", &[]));
    assert!(!packed.is_empty());
    for (shard, inode) in packed {
        let now = fs::metadata(tokens.join(&shard)).unwrap().ino();
        assert_eq!(now, inode, "{} was packed again", shard.display());
    }
    let mut found = contents(&bench.path("killed"));
    found.retain(|name, _| {
        name.extension()
            .is_none_or(|extension| extension != "partial")
    });
    assert!(found == expected, "resumed differs from uninterrupted");
}

#[test]
fn shards_on_two_machines_make_the_same_bytes() {
    let bench = Bench::new();
    stdout(&mut bench.prepare("one", &[]));
    assert_eq!(stdout(&mut bench.prepare("two", &["--shard", "1/2"])), "");
    stdout(&mut bench.prepare("two", &["--shard", "0/2"]));
    assert!(contents(&bench.path("one")) == contents(&bench.path("two")));

    // The same when both begin at once, in a folder that neither has made.
    let shares = ["0/2", "1/2"].map(|share| {
        std::process::Command::new(env!("CARGO_BIN_EXE_burn-zoo"))
            .current_dir(bench.folder.path())
            .args([
                "data",
                "prepare",
                "recipe.toml",
                "--out",
                "three",
                "--shard",
                share,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    for share in shares {
        let output = share.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
    }
    assert!(contents(&bench.path("one")) == contents(&bench.path("three")));
}

#[test]
fn a_changed_recipe_is_refused_with_its_differences() {
    let bench = Bench::new();
    stdout(&mut bench.prepare("out", &[]));
    let error = refusal(&mut bench.prepare("out", &["--set", "clean.0.length.min_words=5"]));
    assert!(
        error.contains("`clean.0.length.min_words` was 4, now 5"),
        "{error}"
    );
    let error = refusal(&mut bench.prepare("new", &["--set", "pack.split.test=0.2"]));
    assert!(error.contains("pack.split"), "{error}");
    let error = refusal(&mut bench.data(&["show", "corpus"]));
    assert!(error.contains("index.json"), "{error}");
}

/// A server that answers whatever it is asked with the same text, as often as it is asked.
fn serve(text: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            let length = text.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
            )
            .unwrap();
        }
    });
    address
}

/// What is named by a URL is fetched once, and is then a corpus like any other.
#[test]
fn a_source_is_downloaded_once() {
    let bench = Bench::new();
    let text: String = burn_zoo::OWN_TEXT
        .lines()
        .take(3000)
        .flat_map(|line| [line, "\n"])
        .collect();
    let url = format!("{}/own.txt", serve(text.clone()));
    stdout(&mut bench.data(&["download", &url, "--out", "own.txt"]));
    assert_eq!(fs::read_to_string(bench.path("own.txt")).unwrap(), text);
    let of = |out: &str, path: &str| {
        let source = format!("sources.0.path={path}");
        let mut command = bench.prepare(out, &["--json", "--set", &source]);
        command.env("BURN_ZOO_CACHE", bench.path("cache"));
        serde_json::from_str::<Value>(&stdout(&mut command)).unwrap()
    };
    let expected = of("here", "own.txt");
    assert_eq!(of("fetched", &url)["tokens"], expected["tokens"]);
    assert_eq!(
        fs::read_dir(bench.path("cache/downloads")).unwrap().count(),
        1
    );
    assert_eq!(of("again", &url)["tokens"], expected["tokens"]);
}

#[test]
fn a_tokenizer_is_trained_on_texts() {
    let bench = Bench::new();
    let arguments = [
        "tokenizer",
        "corpus",
        "--out",
        "t.json",
        "--kind",
        "unigram",
        "--vocab-size",
        "600",
    ];
    assert!(stdout(&mut bench.data(&arguments)).contains("600 tokens"));
    let tokenizer = burn_zoo::data::tokenizer::Tokenizer::load(&bench.path("t.json")).unwrap();
    assert!(tokenizer.token_id("</s>").is_some());
    let error = refusal(&mut bench.data(&["tokenizer", "nothing", "--out", "t.json"]));
    assert!(error.contains("nothing"), "{error}");
}

/// The recipe in the examples' folder does what its comments say.
#[test]
fn the_example_prepares_a_folder_of_texts() {
    let bench = Bench::new();
    let recipe = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/recipes/data-text.toml"
    );
    let set = [
        "--set",
        "sources.0.path=corpus",
        "--set",
        "tokenizer.bpe.vocab_size=500",
    ];
    let arguments = [&["prepare", recipe, "--out", "out"], &set[..]].concat();
    let text = stdout(&mut bench.data(&arguments));
    assert!(
        text.contains("near_duplicates") && text.contains("folder: out"),
        "{text}"
    );
}

/// A packed corpus trains by its own tokenizer, and a resumed run goes on with it.
#[test]
fn what_is_packed_trains() {
    let bench = Bench::new();
    bench.prepare("corpus-of-tokens", &[]).assert().success();
    let recipe = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/recipes/packed.toml"
    );
    let train = |more: &[&str]| {
        let mut command = Command::cargo_bin("burn-zoo").unwrap();
        command
            .current_dir(bench.folder.path())
            .args([
                "train",
                recipe,
                "--corpus",
                "corpus-of-tokens",
                "--backend",
                "flex",
                "--json",
            ])
            .args([
                "--set",
                "loop.iterations=30",
                "--set",
                "loop.eval_interval=15",
            ])
            .args([
                "--set",
                "model.gpt.n_layers=1",
                "--set",
                "model.gpt.d_model=32",
            ])
            .args([
                "--set",
                "loop.batch_size=4",
                "--set",
                "optimizer.learning_rate=1e-2",
            ])
            .args(["--set", "schedule={ constant = {} }"])
            .args(more);
        command
    };
    let report: Value = serde_json::from_str(&stdout(&mut train(&["--out", "run"]))).unwrap();
    let loss = report["valid_loss"].as_f64().unwrap();
    // Better than guessing among 400 tokens.
    assert!(loss < 400f64.ln() - 0.3, "{loss}");
    let tokenizer = |folder: &str| fs::read(bench.path(folder).join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer("run"), tokenizer("corpus-of-tokens"));
    // One that stopped half-way goes on with it, to the same loss.
    let half = ["--out", "half", "--set", "loop.iterations=15"];
    stdout(&mut train(&half));
    let resume = [
        "train",
        "--resume",
        "--out",
        "half",
        "--set",
        "loop.iterations=30",
        "--json",
    ];
    let mut command = Command::cargo_bin("burn-zoo").unwrap();
    command.current_dir(bench.folder.path()).args(resume);
    let resumed: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
    assert_eq!(resumed["valid_loss"], report["valid_loss"]);
    // Another tokenizer would read other tokens.
    let message = refusal(&mut train(&["--out", "other", "--set", "tokenizer=char"]));
    assert!(
        message.contains("`tokenizer`: must be left out"),
        "{message}"
    );
    let cut = bench.path("corpus-of-tokens/tokens/documents.bin");
    fs::write(&cut, b"cut").unwrap();
    let message = refusal(&mut train(&["--out", "third"]));
    assert!(message.contains("documents.bin"), "{message}");
}
