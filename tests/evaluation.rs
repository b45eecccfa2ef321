//! Evaluation gives the numbers of Python's libraries, and refuses what it cannot measure.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use burn::tensor::{Int, Tensor, TensorData, activation};
use burn_zoo::{
    OWN_TEXT,
    data::{
        marked::Reading,
        tokenizer::{Tokenizer, TokenizerConfig},
    },
    infer::{
        evaluate::{
            generation::{bleu, mean_rouge},
            harness::{RunConfig, Task},
            perplexity::{FirstToken, PerplexityConfig, perplexity, rolling},
            score::{Request, ScoreError, Scorer},
        },
        few_shot::{Calibration, Example, FewShot, FewShotConfig},
    },
    models::{
        directory::{self, TOKENIZER},
        family::Architecture,
    },
    nn::{HeadConfig, LanguageModel, TransformerConfig, block::BlockConfig, init},
};
use common::{assert_close, processor, values};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::{Value, json};

const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?!/[]\n0123456789'";
const CONTEXT: usize = 24;

fn architecture() -> Architecture {
    let blocks = vec![BlockConfig::gpt2(16, 2); 2];
    let config = TransformerConfig::new(LETTERS.len(), 16, CONTEXT, blocks).with_init_std(0.5);
    let mut architecture = Architecture::from(config);
    architecture
        .json
        .insert("bos_token_id".to_owned(), 3.into());
    architecture
}

/// A small decoder of characters with a token to begin with.
fn scorer() -> Scorer {
    let architecture = architecture();
    init::seed(5);
    let model = architecture.transformer.init(&processor());
    let tokenizer = Tokenizer::train(&TokenizerConfig::Char, LETTERS).unwrap();
    Scorer::new(model, &architecture, tokenizer).unwrap()
}

/// The log-probabilities of all tokens after `ids`' prefixes, one forward pass for each.
fn brute_force(scorer: &Scorer, context: &[u32], continuation: &[u32]) -> (f64, bool) {
    let mut read = context.to_vec();
    let (mut sum, mut is_greedy) = (0.0, true);
    for &token in continuation {
        let ids: Vec<i64> = read.iter().map(|&id| id.into()).collect();
        let data = TensorData::new(ids, [1, read.len()]);
        let tokens = Tensor::<2, Int>::from_data(data, &processor());
        let logits = scorer.model().forward(tokens).narrow(1, read.len() - 1, 1);
        let log_probabilities = values(activation::log_softmax(logits, 2));
        let chosen = log_probabilities[token as usize];
        is_greedy &= log_probabilities.iter().all(|&other| other <= chosen);
        sum += chosen;
        read.push(token);
    }
    (sum, is_greedy)
}

#[test]
fn scores_are_those_of_one_token_after_the_other() {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut tokens = |n: usize| -> Vec<u32> {
        (0..n)
            .map(|_| random.random_range(0..LETTERS.len() as u32))
            .collect()
    };
    let mut requests: Vec<(Vec<u32>, Vec<u32>)> = Vec::new();
    for (n_context, n_continuation) in [(1, 1), (5, 3), (CONTEXT, 1), (2, CONTEXT - 1), (9, 9)] {
        requests.push((tokens(n_context), tokens(n_continuation)));
    }
    // These share forward passes: continuations of one context, one the start of another.
    let context = tokens(7);
    for continuation in [
        vec![1],
        vec![2],
        vec![2, 4, 6],
        vec![2, 4],
        vec![2, 4, 6, 8],
    ] {
        requests.push((context.clone(), continuation));
    }
    // And one that the model would write itself.
    let greedy =
        (0..LETTERS.len() as u32).find(|&token| brute_force(&scorer(), &context, &[token]).1);
    requests.push((context.clone(), vec![greedy.unwrap()]));

    for batch_tokens in [1, 40, 4096] {
        let scorer = scorer().with_batch_tokens(batch_tokens);
        let borrowed: Vec<Request> = requests
            .iter()
            .map(|(context, continuation)| Request {
                context,
                continuation,
            })
            .collect();
        let scores = scorer.score(&borrowed).unwrap();
        for ((context, continuation), score) in requests.iter().zip(scores) {
            let (expected, is_greedy) = brute_force(&scorer, context, continuation);
            assert_close(&[score.log_likelihood], &[expected], 1e-4, "log-likelihood");
            assert_eq!(score.n_tokens, continuation.len());
            assert_eq!(score.is_greedy, is_greedy);
        }
    }
}

#[test]
fn a_long_context_is_cut_from_the_left() {
    let scorer = scorer();
    let long: Vec<u32> = (0..60).collect();
    let continuation = [5, 6, 7];
    let score = |context: &[u32]| {
        let request = Request {
            context,
            continuation: &continuation,
        };
        scorer.score(&[request]).unwrap()[0].log_likelihood
    };
    let kept = CONTEXT + 1 - continuation.len();
    assert_eq!(score(&long), score(&long[60 - kept..]));
    assert_ne!(score(&long), score(&long[61 - kept..]));
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let scorer = scorer();
    let long = vec![1; CONTEXT + 1];
    let refusal = |context: &[u32], continuation: &[u32]| {
        let request = Request {
            context,
            continuation,
        };
        scorer.score(&[request]).unwrap_err().to_string()
    };
    assert!(refusal(&[1], &[]).contains("continuation 0 (counted from 0) has no tokens"));
    assert!(refusal(&[1], &long).contains("has 25 tokens, but the model's context holds 24"));
    assert!(refusal(&[1000], &[1]).contains("token 1000 is not in the model's vocabulary"));

    let encoder = TransformerConfig::new(8, 8, 8, vec![BlockConfig::gpt2(8, 2)]).with_head(
        HeadConfig::Token {
            n_labels: 2,
            dropout: 0.0,
        },
    );
    let architecture = Architecture::from(encoder);
    let tokenizer = Tokenizer::train(&TokenizerConfig::Char, "abc").unwrap();
    let model = architecture.transformer.init(&processor());
    let error = Scorer::new(model, &architecture, tokenizer).err();
    assert!(matches!(error, Some(ScoreError::NotADecoder)));
}

#[test]
fn rolling_scores_each_token_once() {
    let scorer = scorer();
    let first = scorer.first_token().unwrap();
    for length in [0, 1, CONTEXT, CONTEXT + 1, 2 * CONTEXT + 5] {
        let text: String = OWN_TEXT
            .chars()
            .filter(|&c| LETTERS.contains(c))
            .take(length)
            .collect();
        let mut tokens = vec![first];
        tokens.extend(scorer.tokenizer().encode(&text).unwrap());
        let mut expected = 0.0;
        for begin in (1..tokens.len()).step_by(CONTEXT) {
            let end = (begin + CONTEXT).min(tokens.len());
            let context = &tokens[end.saturating_sub(CONTEXT + 1)..begin];
            expected += brute_force(&scorer, context, &tokens[begin..end]).0;
        }
        let found = rolling(&scorer, &[text]).unwrap();
        assert_close(&found, &[expected], 1e-4, "rolling");
    }
}

#[test]
fn settings_of_windows_are_checked() {
    let scorer = scorer();
    let refusal = |text: &str, context_length, stride| {
        let config = PerplexityConfig {
            context_length,
            stride,
            first: FirstToken::NotScored,
        };
        perplexity(&scorer, text, config).unwrap_err().to_string()
    };
    assert!(refusal("abc", Some(25), None).contains("context length must be from 2 to 24, got 25"));
    assert!(refusal("abc", Some(8), Some(9)).contains("stride must be from 1 to 8, got 9"));
    assert!(refusal("a", None, None).contains("the text has 1 tokens"));
    assert!(refusal("é", None, None).contains("'é'"));
}

/// What `tests/evaluation/model.py` prints.
#[derive(Deserialize)]
struct Reference {
    windows: Vec<(usize, usize, f64)>,
    with_mark: f64,
    n_tokens: usize,
    pairs: Vec<(String, String)>,
    scores: Vec<(f64, usize)>,
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/evaluation")
        .join(name)
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into_owned());
    assert!(output.status.success(), "{stdout}{stderr}");
    stdout
}

/// A directory that `transformers` saved, its text, and what PyTorch makes of it.
fn reference(python: &str) -> (tempfile::TempDir, String, Reference) {
    let folder = tempfile::tempdir().unwrap();
    let text: String = OWN_TEXT.chars().take(700).collect();
    let path = folder.path().join("text.txt");
    fs::write(&path, &text).unwrap();
    let mut command = Command::new(python);
    let output = run(command
        .arg(script("model.py"))
        .arg(folder.path())
        .arg(&path));
    (folder, text, serde_json::from_str(output.trim()).unwrap())
}

#[test]
fn perplexity_and_scores_are_those_of_pytorch() {
    let Some(python) = common::python_with("transformers") else {
        return;
    };
    let (folder, text, reference) = reference(&python);
    let scorer = Scorer::load(folder.path(), &processor()).unwrap();
    let measure = |context_length, stride, first| {
        let config = PerplexityConfig {
            context_length,
            stride,
            first,
        };
        perplexity(&scorer, &text, config).unwrap()
    };
    for (context, stride, loss) in reference.windows {
        let found = measure(Some(context), Some(stride), FirstToken::NotScored);
        let what = format!("context {context}, stride {stride}");
        assert_close(&[found.perplexity() / loss.exp()], &[1.0], 1e-4, &what);
        assert_eq!(found.n_tokens, reference.n_tokens);
    }
    let found = measure(None, None, FirstToken::AfterMark);
    assert_close(&[found.loss()], &[reference.with_mark], 1e-5, "with a mark");
    assert_eq!(found.n_scored, reference.n_tokens);
    let bits = reference.with_mark * reference.n_tokens as f64 / text.len() as f64;
    let bits = bits / std::f64::consts::LN_2;
    assert_close(&[found.bits_per_byte()], &[bits], 1e-5, "bits per byte");

    let scores = scorer.score_texts(&reference.pairs).unwrap();
    for (score, (expected, n_tokens)) in scores.into_iter().zip(reference.scores) {
        assert_close(&[score.log_likelihood], &[expected], 1e-5, "log-likelihood");
        assert_eq!(score.n_tokens, n_tokens);
    }
}

/// Tasks of every output type with their documents, as files in `folder`.
fn write_tasks(folder: &Path) -> Vec<&'static str> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let words = [
        "model", "token", "layer", "batch", "head", "norm", "the", "a", "reads", "writes",
    ];
    let mut sentence = |n: usize| -> String {
        let words: Vec<&str> = (0..n)
            .map(|_| words[random.random_range(0..words.len())])
            .collect();
        words.join(" ")
    };
    let mut documents = |n: usize| -> String {
        let mut lines = String::new();
        for index in 0..n {
            let document = json!({
                "question": sentence(4),
                "choices": [sentence(1), sentence(2), format!("ü{}", sentence(1))],
                "label": index % 3,
                "answers": [sentence(1), "e"],
            });
            writeln!(lines, "{document}").unwrap();
        }
        lines
    };
    fs::write(folder.join("test.jsonl"), documents(12)).unwrap();
    fs::write(folder.join("train.jsonl"), documents(9)).unwrap();
    let data = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: test.jsonl\n    \
                train: train.jsonl\ntest_split: test\n";
    let metrics = |names: &[&str]| {
        let lines = names.iter().map(|name| format!("  - metric: {name}\n"));
        format!("metric_list:\n{}", lines.collect::<String>())
    };
    let choice = metrics(&["acc", "acc_norm", "acc_bytes", "exact_match", "brier_score"]);
    let tasks = [
        (
            "choice",
            format!(
                "fewshot_split: train\noutput_type: multiple_choice\ndescription: \"Choose.\\n\"\n\
                 doc_to_text: \"Q: {{{{question.strip()|upper}}}}\\nA:\"\ndoc_to_target: label\n\
                 doc_to_choice: choices\n{choice}"
            ),
        ),
        (
            "lettered",
            "output_type: multiple_choice\nfewshot_config:\n  sampler: first_n\n\
                 fewshot_delimiter: \"\\n\"\ndoc_to_text: |\n  {{question}}\n  {% for c in choices %}\
                 {{'ABC'[loop.index0]}}. {{c}}\n  {% endfor %}\ndoc_to_target: \"{{label}}\"\n\
                 doc_to_choice: [A, B, C]\ntarget_delimiter: \"\"\ntag: x\nmetadata:\n  version: 1\n"
            .to_owned(),
        ),
        (
            "likelihood",
            "training_split: train\noutput_type: loglikelihood\ndoc_to_text: question\n\
             doc_to_target: \" {{choices[label]}}\"\n"
                .to_owned(),
        ),
        (
            "rolling",
            "num_fewshot: 0\noutput_type: loglikelihood_rolling\ndoc_to_text: \"\"\n\
             doc_to_target: \"{{question}} {{choices|join(' ')}}. {{question}}. {{question}}\"\n"
                .to_owned(),
        ),
        (
            "written",
            "fewshot_split: train\noutput_type: generate_until\ndoc_to_text: \"{{question}}:\"\n\
             doc_to_target: \"{{choices[label]}}\"\ngeneration_kwargs:\n  until: [\"e\", \"\\n\"]\n  \
             max_gen_toks: 6\n"
                .to_owned()
                + &metrics(&["exact_match"]),
        ),
    ];
    for (name, yaml) in &tasks {
        fs::write(
            folder.join(format!("{name}.yaml")),
            format!("task: {name}\n{data}{yaml}"),
        )
        .unwrap();
    }
    tasks.map(|(name, _)| name).to_vec()
}

/// Metrics and standard errors of lm-evaluation-harness, examples drawn by the same seed included.
#[test]
fn tasks_have_the_results_of_the_harness() {
    let Some(python) = common::python_with("lm_eval") else {
        return;
    };
    let (folder, _, _) = reference(&python);
    let folder = folder.path();
    let names = write_tasks(folder);
    let scorer = Scorer::load(folder, &processor()).unwrap();
    for shots in ["0", "2"] {
        let mut command = Command::new(&python);
        let command = command
            .arg(script("harness.py"))
            .arg(folder)
            .arg(shots)
            .args(&names);
        let output = run(command);
        let expected: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
        for name in &names {
            let task = Task::load(&folder.join(format!("{name}.yaml"))).unwrap();
            let config = RunConfig {
                num_fewshot: Some(shots.parse().unwrap()),
                ..RunConfig::default()
            };
            let result = task.run(&scorer, config).unwrap();
            assert_eq!(result.n_documents, 12);
            let expected = expected[name].as_object().unwrap();
            assert_eq!(result.metrics.len(), expected.len(), "{name}");
            for found in result.metrics {
                let metric = found.metric.name();
                let what = format!("{name} with {shots} examples: {metric}");
                let value = expected[&metric][0].as_f64().expect(&what);
                assert_close(&[found.value], &[value], 1e-4, &what);
                let error = expected[&metric][1].as_f64();
                assert_eq!(found.standard_error.is_some(), error.is_some(), "{what}");
                // That of a perplexity is drawn at random, of numbers far apart.
                if metric != "perplexity" {
                    let [found, error] =
                        [found.standard_error, error].map(Option::unwrap_or_default);
                    assert_close(&[found], &[error], 1e-4, &what);
                }
            }
        }
    }
}

#[test]
fn tasks_that_ask_for_more_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    write_tasks(folder.path());
    let path = folder.path().join("choice.yaml");
    let yaml = fs::read_to_string(&path).unwrap();
    for (from, to, expected) in [
        (
            "task: choice",
            "task: choice\nfilter_list: []",
            "filter_list",
        ),
        (
            "doc_to_target: label",
            "doc_to_target: !function utils.target",
            "Python functions",
        ),
        (
            "dataset_path: json",
            "dataset_path: ai2_arc",
            "dataset_path: `ai2_arc` is not read",
        ),
        (
            "metric: acc\n",
            "metric: perplexity\n",
            "`perplexity` is not for this output_type",
        ),
        (
            "metric: acc\n",
            "metric: acc\n    aggregation: median\n",
            "must be `mean`",
        ),
        (
            "metric: acc\n",
            "metric: acc\n    hf_evaluate: true\n",
            "hf_evaluate",
        ),
        (
            "test_split: test",
            "test_split: other",
            "has no split `other`",
        ),
        ("test_split: test", "", "test_split: is missing"),
        ("test: test.jsonl", "test: nowhere.jsonl", "nowhere.jsonl: "),
        ("doc_to_choice: choices", "", "doc_to_choice: is missing"),
    ] {
        assert!(yaml.contains(from), "{from}");
        fs::write(&path, yaml.replacen(from, to, 1)).unwrap();
        let refusal = Task::load(&path).err().expect(to).to_string();
        assert!(refusal.contains(expected), "{refusal}");
    }
    let run = |from: &str, to: &str, shots| {
        fs::write(&path, yaml.replacen(from, to, 1)).unwrap();
        let config = RunConfig {
            num_fewshot: Some(shots),
            ..RunConfig::default()
        };
        let task = Task::load(&path).unwrap();
        task.run(&scorer(), config).unwrap_err().to_string()
    };
    let refusal = run("question.strip", "questoin.strip", 0);
    assert!(
        refusal.contains("doc_to_text of document 0") && refusal.contains("undefined"),
        "{refusal}"
    );
    let refusal = run("test", "test", 10);
    assert!(
        refusal.contains("10 examples are wanted, but there are 9"),
        "{refusal}"
    );
    fs::write(folder.path().join("test.jsonl"), "{\"question\": 1}\n{").unwrap();
    fs::write(&path, &yaml).unwrap();
    let refusal = Task::load(&path).err().unwrap().to_string();
    assert!(refusal.contains("test.jsonl: line 2"), "{refusal}");
}

#[test]
fn random_texts_have_the_scores_of_sacrebleu_and_rouge_score() {
    let Some(python) = common::python_with("sacrebleu, rouge_score") else {
        return;
    };
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let pieces = [
        "the",
        "cat",
        "sat",
        "a",
        "3.5",
        "1,000",
        "-",
        "--",
        "(x)",
        "&amp;",
        "\n",
        "Œuvre",
        "你好",
        "I'm",
        "end.",
        "$5",
        "a,b",
        "x-1",
        "2-",
        "!",
        "Kelvin\u{212a}",
        "<skipped>",
        "\"q\"",
    ];
    let text = |random: &mut ChaCha8Rng| -> String {
        let n = random.random_range(0..14);
        let words: Vec<&str> = (0..n)
            .map(|_| pieces[random.random_range(0..pieces.len())])
            .collect();
        words.join(" ")
    };
    let texts: Vec<String> = (0..60).map(|_| text(&mut random)).collect();
    let references: Vec<Vec<String>> = (0..60)
        .map(|_| vec![text(&mut random), text(&mut random)])
        .collect();
    let mut child = Command::new(python)
        .arg(script("generation.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = json!({ "texts": texts, "references": references });
    serde_json::to_writer(child.stdin.take().unwrap(), &input).unwrap();
    let output = child.wait_with_output().unwrap();
    let expected: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = bleu(&texts, &references).unwrap().score;
    assert_close(
        &[found],
        &[expected["bleu"].as_f64().unwrap()],
        1e-9,
        "BLEU",
    );
    let rouge = mean_rouge(&texts, &references).unwrap();
    for (name, found) in [
        ("rouge1", rouge.rouge1),
        ("rouge2", rouge.rouge2),
        ("rougeL", rouge.rouge_l),
        ("rougeLsum", rouge.rouge_l_sum),
    ] {
        let expected: [f64; 3] = serde_json::from_value(expected["rouge"][name].clone()).unwrap();
        assert_close(
            &[found.precision, found.recall, found.f1],
            &expected,
            1e-9,
            name,
        );
    }
}

fn examples() -> Vec<Example> {
    let example = |(class, text): (usize, &str)| Example {
        reading: Reading::Text(text.to_owned()),
        class,
    };
    [(0, "ab"), (1, "xy"), (0, "ba"), (1, "yx")]
        .map(example)
        .to_vec()
}

fn few_shot(scorer: &Scorer, shots: usize, calibration: Calibration) -> FewShot<'_> {
    let config = FewShotConfig {
        template: "{text}:{label}".to_owned(),
        separator: "\n".to_owned(),
        shots,
        calibration,
        ..FewShotConfig::default()
    };
    let words = ["no".to_owned(), "yes".to_owned()];
    FewShot::new(scorer, config, words.to_vec(), &examples()).unwrap()
}

fn readings<const N: usize>(texts: [&str; N]) -> [Reading; N] {
    texts.map(|text| Reading::Text(text.to_owned()))
}

#[test]
fn classes_are_as_likely_as_their_words() {
    let scorer = scorer();
    let found = few_shot(&scorer, 0, Calibration::None)
        .classify(&readings(["hello"]))
        .unwrap();
    let pair = |words: &str| ("hello:".to_owned(), words.to_owned());
    let scores = scorer.score_texts(&[pair("no"), pair("yes")]).unwrap();
    let [no, yes] = [0, 1].map(|index: usize| scores[index].log_likelihood.exp());
    let probabilities = [no / (no + yes), yes / (no + yes)];
    assert_close(
        &found[0].probabilities,
        &probabilities,
        1e-6,
        "probabilities",
    );
    assert_eq!(found[0].class, usize::from(yes > no));

    // Calibration makes texts that say nothing undecided, as their mean.
    let plain = few_shot(&scorer, 0, Calibration::None);
    let free = plain.classify(&readings(["N/A", "", "[MASK]"])).unwrap();
    let prior = free.iter().map(|found| found.probabilities[0]).sum::<f64>() / 3.0;
    let calibrated = few_shot(&scorer, 0, Calibration::ContentFree)
        .classify(&readings(["hello"]))
        .unwrap();
    let odds = probabilities[0] / probabilities[1] / (prior / (1.0 - prior));
    let expected = [odds / (1.0 + odds), 1.0 / (1.0 + odds)];
    assert_close(&calibrated[0].probabilities, &expected, 1e-6, "calibrated");
}

#[test]
fn examples_that_do_not_fit_are_left_out() {
    let scorer = scorer();
    let few_shot = few_shot(&scorer, 2, Calibration::None);
    // Examples take 6 or 7 tokens, a text 12 and its mark and words 4: one of four fits, or none.
    let text = "twelve chars";
    let found = few_shot.classify(&readings([text])).unwrap();
    let classes = [("ab", "no"), ("ba", "no"), ("xy", "yes"), ("yx", "yes")];
    let close = classes.iter().any(|(example, words)| {
        let context = format!("{example}:{words}\n{text}:");
        let pair = |words: &str| (context.clone(), words.to_owned());
        let scores = scorer.score_texts(&[pair("no"), pair("yes")]).unwrap();
        let difference = scores[0].log_likelihood - scores[1].log_likelihood;
        let expected = 1.0 / (1.0 + (-difference).exp());
        (found[0].probabilities[0] - expected).abs() < 1e-6
    });
    assert!(close, "{found:?}");
}

/// A directory with the small decoder and labelled rows beside it.
fn saved() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    let architecture = architecture();
    init::seed(5);
    directory::save(
        &architecture.transformer.init(&processor()),
        &architecture,
        &model,
    )
    .unwrap();
    let tokenizer = Tokenizer::train(&TokenizerConfig::Char, LETTERS).unwrap();
    fs::write(model.join(TOKENIZER), tokenizer.to_json().unwrap()).unwrap();
    let rows = "text\tlabel\nab\tno\nxy\tyes\nba\tno\nyx\tyes\n";
    fs::write(folder.path().join("rows.tsv"), rows).unwrap();
    folder
}

fn command(folder: &Path, arguments: &str) -> assert_cmd::Command {
    let mut command = assert_cmd::Command::cargo_bin("burn-zoo").unwrap();
    let arguments = arguments.split(' ');
    command
        .current_dir(folder)
        .args(["eval"])
        .args(arguments)
        .args(["--backend", "flex"]);
    command
}

/// The same as a table for people and in Markdown, with what both must say.
fn shows(folder: &Path, arguments: &str, wanted: &[&str]) {
    for format in ["", " --markdown"] {
        let output = command(folder, &format!("{arguments}{format}"))
            .output()
            .unwrap();
        let table = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {errors}");
        for wanted in wanted {
            // The heads of the plain table are in capitals.
            let (table, wanted) = (table.to_lowercase(), wanted.to_lowercase());
            assert!(table.contains(&wanted), "{wanted} in {table}");
        }
        assert_eq!(table.contains("|---"), !format.is_empty(), "{table}");
    }
}

fn json_of(folder: &Path, arguments: &str) -> Value {
    let output = command(folder, arguments).arg("--json").assert().success();
    serde_json::from_slice(&output.get_output().stdout).unwrap()
}

fn refusal_of(folder: &Path, arguments: &str) -> String {
    let output = command(folder, arguments).assert().failure();
    String::from_utf8(output.get_output().stderr.clone()).unwrap()
}

#[test]
fn the_command_measures_perplexity() {
    let folder = saved();
    let folder = folder.path();
    fs::write(folder.join("text.txt"), "to be or not to be\n".repeat(9)).unwrap();
    let found = json_of(folder, "perplexity model text.txt --stride 5 --context 20");
    let config = PerplexityConfig {
        context_length: Some(20),
        stride: Some(5),
        first: FirstToken::NotScored,
    };
    let text = fs::read_to_string(folder.join("text.txt")).unwrap();
    let expected = perplexity(&scorer(), &text, config).unwrap();
    for (key, expected) in [
        ("perplexity", expected.perplexity()),
        ("bits_per_byte", expected.bits_per_byte()),
        ("word_perplexity", expected.word_perplexity()),
        ("n_scored", 170.0),
    ] {
        assert_close(&[found[key].as_f64().unwrap()], &[expected], 1e-6, key);
    }
    shows(folder, "perplexity model text.txt", &["perplexity"]);

    fs::write(folder.join("text.txt"), b"ab\xffcd").unwrap();
    let refusal = refusal_of(folder, "perplexity model text.txt");
    assert!(
        refusal.contains("text.txt") && refusal.contains("byte 2"),
        "{refusal}"
    );
}

#[test]
fn the_command_classifies_with_examples_and_by_a_head() {
    let folder = saved();
    let folder = folder.path();
    let found = json_of(
        folder,
        "few-shot model rows.tsv rows.tsv --shots 1 --seeds 3 --calibrate",
    );
    let accuracies: Vec<f64> = found["seeds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|seed| seed["accuracy"].as_f64().unwrap())
        .collect();
    assert_eq!(accuracies.len(), 3);
    let mean = accuracies.iter().sum::<f64>() / 3.0;
    assert_close(
        &[found["accuracy"]["mean"].as_f64().unwrap()],
        &[mean],
        1e-9,
        "mean",
    );
    assert!(
        refusal_of(folder, "few-shot model rows.tsv rows.tsv --shots 3").contains("has 2 examples")
    );
    shows(
        folder,
        "few-shot model rows.tsv rows.tsv --shots 1 --seeds 3",
        &["accuracy"],
    );
    fs::write(folder.join("odd.tsv"), "text\tlabel\nab\tmaybe\n").unwrap();
    let refusal = refusal_of(folder, "few-shot model rows.tsv odd.tsv");
    assert!(
        refusal.contains("odd.tsv:1") && refusal.contains("\"maybe\""),
        "{refusal}"
    );

    fs::write(
        folder.join("pairs.tsv"),
        "text\tother\tlabel\nab\tba\tyes\nxy\tyx\tno\n",
    )
    .unwrap();
    let pairs =
        "few-shot model pairs.tsv pairs.tsv --shots 1 --calibrate --pair-column other --limit 2";
    let refusal = refusal_of(folder, pairs);
    assert!(refusal.contains("must have {second}"), "{refusal}");
    let with_both = format!("{pairs} --template {{second}}:{{text}}:{{label}}");
    assert_eq!(json_of(folder, &with_both)["seeds"][0]["n_rows"], 2);

    assert!(refusal_of(folder, "classify model rows.tsv").contains("no head that classifies"));
    let architecture = architecture();
    let labels = ["no".to_owned(), "yes".to_owned()];
    let task = burn_zoo::models::family::Task::Sequence;
    let architecture = architecture.with_task(task, &labels).unwrap();
    let model = architecture.transformer.init(&processor());
    directory::save(&model, &architecture, &folder.join("model")).unwrap();
    let found = json_of(folder, "classify model rows.tsv");
    // The right ones are on the diagonal.
    let count = |i: usize, j: usize| found["confusion"][i][j].as_f64().unwrap();
    assert_eq!(count(0, 0) + count(0, 1), 2.0);
    assert_eq!(
        found["accuracy"].as_f64().unwrap(),
        (count(0, 0) + count(1, 1)) / 4.0
    );
    shows(
        folder,
        "classify model rows.tsv",
        &["accuracy", "F1", "Matthews", "no", "yes"],
    );
    let refusal = refusal_of(folder, "classify model odd.tsv");
    assert!(
        refusal.contains("odd.tsv:1") && refusal.contains("expected one of no, yes"),
        "{refusal}"
    );
    let refusal = refusal_of(folder, "classify model rows.tsv --label-column class");
    assert!(
        refusal.contains("\"class\"") && refusal.contains("text, label"),
        "{refusal}"
    );
}

#[test]
fn the_command_runs_tasks_and_compares_texts() {
    let folder = saved();
    let folder = folder.path();
    write_tasks(folder);
    fs::write(
        folder.join("test.jsonl"),
        "{\"question\": \"is it\", \"choices\": [\"a\", \"b\"], \"label\": 1}\n",
    )
    .unwrap();
    fs::write(folder.join("train.jsonl"), "").unwrap();
    let found = json_of(folder, "tasks model choice.yaml likelihood.yaml --limit 1");
    assert_eq!(found[0]["task"], "choice");
    assert_eq!(found[0]["metrics"][0]["metric"], "acc");
    assert_eq!(found[1]["n_documents"], 1);
    shows(
        folder,
        "tasks model choice.yaml likelihood.yaml --limit 1",
        &["choice", "acc"],
    );

    fs::write(folder.join("a.txt"), "the cat sat on a mat\n").unwrap();
    let mut command = assert_cmd::Command::cargo_bin("burn-zoo").unwrap();
    command.current_dir(folder);
    let output = command
        .args(["eval", "generation", "a.txt", "a.txt", "--json"])
        .assert()
        .success();
    let found: Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert!((found["bleu"]["score"].as_f64().unwrap() - 100.0).abs() < 1e-9);
    assert_eq!(found["rouge"]["rougeL"]["f1"], 1.0);
    for (format, is_markdown) in [(None, false), (Some("--markdown"), true)] {
        let mut command = assert_cmd::Command::cargo_bin("burn-zoo").unwrap();
        command.current_dir(folder);
        let command = command.args(["eval", "generation", "a.txt", "a.txt"]);
        let output = command.args(format).assert().success();
        let table = String::from_utf8(output.get_output().stdout.clone()).unwrap();
        for wanted in ["BLEU", "100.0000", "ROUGE-Lsum"] {
            assert!(table.contains(wanted), "{wanted} in {table}");
        }
        assert_eq!(table.contains("|---"), is_markdown, "{table}");
    }
}
