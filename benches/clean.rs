//! Text through every step of cleaning on one core: each alone, and with reading and the search for duplicates
//! those that a corpus for a language model usually has (`usual`) and all (`every`).
//!
//!     cargo bench --bench clean
//!
//! The text is generated, or read from the file that the variable `BURN_ZOO_CORPUS` names, and cut
//! at line ends into documents of about 3 kB.

use std::path::PathBuf;
use std::sync::Arc;

use burn_zoo::data::clean::{Cleaner, Duplicates, Report, Step, find_duplicates};
use burn_zoo::data::document::{Document, Origin};
use burn_zoo::data::sources::{Format, SourceConfig};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DOCUMENT_BYTES: usize = 3000;

/// Words whose frequency falls with their rank as Zipf's law has it, the most frequent ones
/// English, in lines and sentences.
fn generated_text(rng: &mut ChaCha8Rng, bytes: usize) -> String {
    let frequent = "the of and in to a was for as on that with by is it from at he his were an be \
                    which had are but have not this their also first one its they two who after";
    let mut vocabulary: Vec<String> = frequent.split_whitespace().map(str::to_owned).collect();
    vocabulary.extend((0..20_000).map(|_| {
        let letters = rng.random_range(3..10);
        (0..letters)
            .map(|_| char::from(rng.random_range(b'a'..=b'z')))
            .collect::<String>()
    }));
    let mut text = String::new();
    while text.len() < bytes {
        let rank = (vocabulary.len() as f64).powf(rng.random::<f64>()) as usize;
        text.push_str(&vocabulary[rank - 1]);
        text.push_str(match rng.random_range(0..100) {
            0 => ".\n",
            1..8 => ". ",
            8..16 => ", ",
            16 => " naïve ",
            _ => " ",
        });
    }
    text
}

fn documents(text: &str) -> Vec<Document> {
    let file = Arc::new(PathBuf::from("text"));
    let mut texts = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if texts
            .last()
            .is_some_and(|text| text.len() >= DOCUMENT_BYTES)
        {
            texts.push(String::new());
        }
        texts.last_mut().expect("there is one").push_str(line);
    }
    let document = |(text, row)| Document {
        text,
        origin: Origin {
            file: file.clone(),
            row,
        },
    };
    texts.into_iter().zip(1..).map(document).collect()
}

/// The documents as lines of a file.
fn jsonl(documents: &[Document]) -> tempfile::NamedTempFile {
    let line =
        |document: &Document| serde_json::json!({ "text": document.text }).to_string() + "\n";
    let lines: String = documents.iter().map(line).collect();
    let file = tempfile::NamedTempFile::new().expect("there is room for a file");
    std::fs::write(file.path(), lines).expect("it is written");
    file
}

fn clean(criterion: &mut Criterion) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let text = match std::env::var_os("BURN_ZOO_CORPUS") {
        Some(file) => std::fs::read_to_string(file).expect("BURN_ZOO_CORPUS names a text file"),
        None => generated_text(&mut rng, 4 << 20),
    };
    let documents = documents(&text);
    let evaluation = tempfile::NamedTempFile::new().expect("there is room for a file");
    std::fs::write(evaluation.path(), generated_text(&mut rng, 1 << 20)).expect("it is written");
    // Every step sees every document: nothing is dropped for its length.
    let steps: Vec<Step> = serde_json::from_value(serde_json::json!([
        { "unicode": {} },
        "lowercase",
        { "language": { "keep": ["en"], "min_confidence": 0 } },
        { "length": { "min_words": 1, "max_characters": 1_000_000 } },
        { "gopher": {} },
        { "gopher_repetition": {} },
        { "contamination": { "files": [evaluation.path()] } },
        { "stop_words": { "language": "en" } },
        "exact_duplicates",
        { "near_duplicates": {} },
    ]))
    .expect("the steps are valid");
    let duplicates = Duplicates::new(&steps)
        .expect("the steps are valid")
        .expect("the last two");
    let fingerprints = |documents: &[Document]| {
        let mut bytes = Vec::new();
        for document in documents {
            duplicates.fingerprint(&document.text).write(&mut bytes);
        }
        bytes
    };
    let one_core = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("a thread");

    let mut group = criterion.benchmark_group("clean");
    group
        .throughput(Throughput::Bytes(text.len() as u64))
        .sample_size(10);
    for step in &steps[..8] {
        let cleaner = Cleaner::new(std::slice::from_ref(step)).expect("the step is valid");
        group.bench_function(step.name(), |bencher| {
            bencher.iter_batched(
                || documents.clone(),
                |documents| one_core.install(|| cleaner.clean(documents, &mut Report::default())),
                BatchSize::PerIteration,
            );
        });
    }
    group.bench_function("fingerprint", |bencher| {
        bencher.iter(|| fingerprints(&documents))
    });
    let written = fingerprints(&documents);
    group.bench_function("find_duplicates", |bencher| {
        let open = |_| Ok(&written[..]);
        bencher.iter(|| find_duplicates(&duplicates, &[documents.len()], open, 1 << 30));
    });
    let file = jsonl(&documents);
    let source = SourceConfig::new(file.path().display().to_string()).with_format(Format::Jsonl);
    let read = || -> Vec<Document> {
        let documents = source.documents().expect("the file is there");
        let documents: Result<_, _> = documents.collect();
        documents.expect("each line is an object with a text")
    };
    group.bench_function("read", |bencher| bencher.iter(read));
    let is_usual =
        |step: &&Step| !["lowercase", "contamination", "stop_words"].contains(&step.name());
    let usual = steps.iter().filter(is_usual).cloned().collect();
    for (name, steps) in [("usual", usual), ("every", steps.clone())] {
        let cleaner = Cleaner::new(&steps).expect("the steps are valid");
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let clean = || cleaner.clean(read(), &mut Report::default());
                let documents = one_core.install(clean);
                let fingerprints = fingerprints(&documents);
                let open = |_| Ok(&fingerprints[..]);
                find_duplicates(&duplicates, &[documents.len()], open, 1 << 30)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, clean);
criterion_main!(benches);
