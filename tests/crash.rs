//! Runs that are killed, stopped, starved of disk space or started twice: what they leave is whole, and going
//! on gives what an undisturbed run gives.

#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// All that has a state: dropout, accumulation, a mean of weights, momentum, and a schedule.
const RECIPE: &str = r#"
objective = "causal_lm"
tokenizer = "char"
[model.gpt]
n_layers = 1
n_heads = 2
d_model = 16
context_length = 8
dropout = 0.1
[optimizer]
learning_rate = 1e-2
clip_norm = 1.0
[[optimizer.groups]]
parameters = ["embedding.*"]
learning_rate_scale = 0.5
[schedule.cosine]
warmup_iterations = 2
[loop]
iterations = 60
batch_size = 2
accumulation = 2
ema = { decay = 0.9 }
eval_interval = 15
checkpoint_interval = 4
sample_interval = 20
log_interval = 1
"#;

/// A folder with a recipe and a corpus.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("recipe.toml"), RECIPE).unwrap();
        let corpus = "to be or not to be, that is the question\n".repeat(30);
        fs::write(folder.path().join("corpus.txt"), corpus).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("burn-zoo"));
        command
            .current_dir(self.folder.path())
            .env("BURN_ZOO_BACKEND", "flex")
            .arg("train")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, out: &str) -> Command {
        self.command(&["recipe.toml", "--corpus", "corpus.txt", "--out", out])
    }

    fn resume(&self, out: &str) -> Command {
        self.command(&["--resume", "--out", out])
    }

    /// Goes on from a checkpoint, or begins where there is none yet.
    fn go_on(&self, out: &str) -> Command {
        let checkpoints = fs::read_dir(self.path(out).join("training/checkpoint"));
        let mut whole = checkpoints.into_iter().flatten().flatten();
        match whole.any(|entry| entry.path().extension().is_none()) {
            true => self.resume(out),
            false => {
                let mut command = self.start(out);
                command.arg("--overwrite");
                command
            }
        }
    }

    /// A run that nothing disturbs.
    fn undisturbed(&self) -> Left {
        success(&mut self.start("undisturbed"));
        Left::read(&self.path("undisturbed"))
    }
}

fn success(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    output
}

/// Fails with code 1, and gives what it says.
fn refusal(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let error = stderr.lines().find(|line| line.starts_with("error: "));
    error.unwrap_or_else(|| panic!("{stderr}")).to_owned()
}

/// What a run leaves that does not depend on the clock.
#[derive(PartialEq)]
struct Left {
    history: Vec<Value>,
    weights: Vec<u8>,
}

impl Left {
    fn read(out: &Path) -> Self {
        let history = fs::read_to_string(out.join("training/metrics.jsonl")).unwrap();
        let record = |line| {
            let mut record: Value = serde_json::from_str(line).unwrap();
            record.as_object_mut().unwrap().remove("seconds");
            record
        };
        Self {
            history: history.lines().map(record).collect(),
            weights: fs::read(out.join("model.safetensors")).unwrap(),
        }
    }

    fn assert_is(&self, expected: &Self, what: &str) {
        for (found, expected) in self.history.iter().zip(&expected.history) {
            assert_eq!(found, expected, "{what}");
        }
        assert!(self == expected, "{what}: another length, or other weights");
    }
}

/// Kills a run at a random moment after it has shown so many lines of progress. Returns whether it was still alive.
fn kill_after(mut command: Command, lines: usize, random: &mut impl Rng) -> bool {
    let mut child = command.spawn().unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let _ = stderr.lines().take(lines).count();
    // About as long as some steps take, or as it takes to start.
    let longest = if lines == 0 { 200_000 } else { 20_000 };
    for _ in 0..random.random_range(0..longest) {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap().code().is_none()
}

/// Twenty kills and more, at random moments: while it starts, in a step, an evaluation, or a checkpoint.
#[test]
fn a_killed_run_goes_on_as_if_nothing_had_happened() {
    let desk = Desk::new();
    let expected = desk.undisturbed();
    assert!(expected.history.len() > 60);
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let (mut kills, mut run) = (0, 0);
    while kills < 20 {
        run += 1;
        let out = format!("run-{run}");
        for _ in 0..6 {
            // One in four dies before it shows anything.
            let lines = [0, random.random_range(1..25)][usize::from(random.random_bool(0.75))];
            if !kill_after(desk.go_on(&out), lines, &mut random) {
                break;
            }
            kills += 1;
        }
        // Ends it, or finds that it had ended.
        success(&mut desk.go_on(&out));
        Left::read(&desk.path(&out)).assert_is(&expected, &format!("run {run}"));
        let mut checkpoints = fs::read_dir(desk.path(&out).join("training/checkpoint")).unwrap();
        assert!(checkpoints.all(|entry| entry.unwrap().path().extension().is_none()));
        assert!(run < 20, "hardly a run is killed before it ends");
    }
}

/// Ctrl-C, and SIGTERM as schedulers send it.
#[test]
fn a_run_that_is_told_to_stop_goes_on_as_if_nothing_had_happened() {
    let desk = Desk::new();
    let expected = desk.undisturbed();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // Now and then one has ended before the signal comes.
        let is_stopped = (0..20).any(|run| {
            let out = format!("run-{signal}-{run}");
            let mut child = desk.start(&out).spawn().unwrap();
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
            assert_eq!(lines.by_ref().take(6).count(), 6);
            // SAFETY: a signal to our own child.
            assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
            let rest: Vec<String> = lines.map(Result::unwrap).collect();
            let code = child.wait().unwrap().code();
            assert!(matches!(code, Some(0 | 130)), "{code:?}: {rest:?}");
            success(&mut desk.resume(&out));
            Left::read(&desk.path(&out)).assert_is(&expected, &out);
            code == Some(130)
        });
        assert!(is_stopped, "signal {signal}");
    }
}

/// A run that would go on for long, which has begun to learn, and what it shows from there on.
fn long_run(desk: &Desk) -> (Child, impl Iterator<Item = String>) {
    let mut command = desk.start("model");
    let mut child = command
        .args(["--set", "loop.iterations=1000000"])
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    lines
        .find(|line| line.starts_with("step "))
        .expect("training shows progress");
    (child, lines)
}

/// SIGTERM, as schedulers send it, stops after the step; meanwhile nobody else may touch the directory.
#[test]
fn a_directory_is_one_processs_until_it_is_told_to_stop() {
    let desk = Desk::new();
    let (mut child, lines) = long_run(&desk);
    let message = refusal(&mut desk.resume("model"));
    let holder = format!("process {} trains there", child.id());
    assert!(
        message.contains("in use") && message.contains(&holder),
        "{message}"
    );
    let message = refusal(desk.start("model").arg("--overwrite"));
    assert!(message.contains("in use"), "{message}");

    // SAFETY: a signal to our own child.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    let advice = "continue with: burn-zoo train --resume --out model";
    assert!(rest.iter().any(|line| line.contains(advice)), "{rest:?}");
    let stopped = fs::read_to_string(desk.path("model/training/metrics.jsonl")).unwrap();
    let steps = stopped
        .lines()
        .filter(|line| line.contains("\"loss\""))
        .count();
    let length = format!("loop.iterations={}", steps + 3);
    success(desk.resume("model").args(["--set", &length]));
}

/// Files that may not grow beyond some size stand for a disk that is full.
#[test]
fn a_full_disk_stops_a_run_that_then_goes_on() {
    let desk = Desk::new();
    let expected = desk.undisturbed();
    let mut random = ChaCha8Rng::seed_from_u64(6);
    assert!(kill_after(desk.start("model"), 15, &mut random));
    let mut starved = desk.resume("model");
    // SAFETY: only calls that are safe between fork and exec. A write beyond the limit gives an error instead
    // of a signal.
    unsafe {
        starved.pre_exec(|| {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit {
                rlim_cur: 4096,
                rlim_max: 4096,
            };
            match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let message = refusal(&mut starved);
    assert!(message.contains("File too large"), "{message}");
    success(&mut desk.resume("model"));
    Left::read(&desk.path("model")).assert_is(&expected, "after a full disk");
}
