//! Text into tokens, by each kind of tokenizer, on one core.
//!
//!     cargo bench --bench tokenize
//!
//! The text is the zoo's own, or read from the file that the variable `BURN_ZOO_CORPUS` names. Each line is a
//! document. `first` starts without words that were met, `again` with those of the same text. The tokenizers are
//! left in the folder that `BURN_ZOO_TOKENIZERS` names, for `benches/compare/tokenizing.py` to do the same with.

use std::path::PathBuf;

use burn_zoo::data::tokenizer::{Tokenizer, TokenizerConfig};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VOCAB_SIZE: usize = 8192;

fn tokenize(criterion: &mut Criterion) {
    let text = match std::env::var_os("BURN_ZOO_CORPUS") {
        Some(path) => std::fs::read_to_string(path).expect("the corpus is a text file"),
        None => burn_zoo::OWN_TEXT.to_owned(),
    };
    let lines: Vec<&str> = text.lines().collect();
    let bpe = TokenizerConfig::Bpe {
        vocab_size: VOCAB_SIZE,
        special_tokens: vec!["<|endoftext|>".to_owned()],
    };
    let word_piece = TokenizerConfig::WordPiece {
        vocab_size: VOCAB_SIZE,
        lowercase: true,
    };
    let unigram = TokenizerConfig::Unigram {
        vocab_size: VOCAB_SIZE,
    };
    let temporary = tempfile::tempdir().expect("a folder can be made");
    let folder = match std::env::var_os("BURN_ZOO_TOKENIZERS") {
        Some(folder) => PathBuf::from(folder),
        None => temporary.path().to_owned(),
    };
    let one_core = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("one thread can be started");
    for (name, config) in [
        ("bpe", bpe),
        ("wordpiece", word_piece),
        ("unigram", unigram),
    ] {
        let tokenizer = Tokenizer::train(&config, &text).expect("the vocabulary is large enough");
        let path = folder.join(format!("{name}.json"));
        std::fs::write(&path, tokenizer.to_json().expect("it is JSON")).expect("it can be written");
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.sample_size(10);
        group.bench_function("first", |bench| {
            bench.iter_batched_ref(
                || Tokenizer::load(&path).expect("it was just written"),
                |tokenizer| one_core.install(|| tokenizer.encode_batch(&lines)),
                BatchSize::PerIteration,
            );
        });
        group.bench_function("again", |bench| {
            bench.iter(|| one_core.install(|| tokenizer.encode_batch(&lines)));
        });
    }
}

criterion_group!(benches, tokenize);
criterion_main!(benches);
