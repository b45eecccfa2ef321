//! A training step of nanoGPT's small model on every backend that is compiled in, and what it costs to make a
//! batch of each objective, which another thread does meanwhile.
//!
//!     cargo bench --bench train_step

#[path = "../tests/common/mod.rs"]
mod common;

use burn::tensor::Device;
use burn_zoo::{
    bench::TrainBench,
    data::{
        batch::{Batch, TrainingData},
        examples::{Example, Examples, Target},
        pairs::{PairMarks, SentencePairs},
        sentences::Sentences,
        vocabulary::{TokenKind, Vocabulary},
        windows::{
            Corruption, Infilling, InfillingMarks, Masking, Noise, Prediction, Splits, StepShape,
            Windows,
        },
    },
    models::gpt::GptConfig,
    train::objective::StepConfig,
};
use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SHAPE: StepShape = StepShape {
    batch_size: 12,
    accumulation: 1,
    context_length: 64,
};
/// The first token that is not a byte of text.
const MARK: u32 = 256;

fn train_step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("train_step");
    group.sample_size(20);
    batches(&mut group, &common::processor());
    let model = GptConfig {
        bias: false,
        ..GptConfig::new(4, 4, 128, SHAPE.context_length)
    };
    let model = model.transformer(65).expect("the sizes fit");
    let sizes = [SHAPE.batch_size, SHAPE.context_length];
    for found in common::devices() {
        let bench = TrainBench::new(&model, sizes, StepConfig::default(), &found.device);
        let mut bench = bench.expect("the sizes fit");
        group.bench_function(format!("step/{}", found.name), |bencher| {
            bencher.iter(|| bench.step())
        });
    }
    group.finish();
}

fn batches(group: &mut BenchmarkGroup<'_, WallTime>, device: &Device) {
    let text = burn_zoo::OWN_TEXT;
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    let kinds = (0..MARK + 100).map(|id| match id {
        0..=32 => TokenKind::WordStart,
        33..MARK => TokenKind::WordPart,
        _ => TokenKind::Special,
    });
    let masking = Masking {
        probability: 0.15,
        whole_words: true,
        mask: MARK,
        vocabulary: Vocabulary::new(kinds.collect::<Vec<_>>()),
    };
    let infilling = Infilling {
        density: 0.15,
        mean_span_length: 3.0,
        long_share: 0.5,
        marks: InfillingMarks {
            mask: MARK,
            long_mask: MARK + 1,
            start: MARK + 2,
            end: MARK + 3,
        },
    };
    let corruption = Corruption {
        noise: Noise {
            density: 0.15,
            mean_span_length: 3.0,
        },
        sentinels: (MARK..MARK + 100).rev().collect(),
        end: 0,
        decoder_start: 0,
    };
    let predictions = [
        ("causal_lm", Prediction::Next),
        ("prefix_lm", Prediction::AfterPrefix),
        ("masked_lm", Prediction::Masked(masking.clone())),
        ("blank_infilling", Prediction::Infilled(infilling)),
        ("span_corruption", Prediction::Corrupted(corruption)),
    ];
    for (name, prediction) in predictions {
        let splits = Splits {
            train: tokens.clone().into(),
            valid: tokens.clone().into(),
        };
        let windows = Windows::new(splits, SHAPE, prediction, 1).expect("the text is long");
        batch(group, name, &windows, device);
    }

    let ids = |line: &str| line.bytes().map(u32::from).collect::<Vec<_>>();
    let documents = text
        .split("\n\n")
        .map(|document| document.lines().map(ids).collect());
    let sentences = Sentences::new(&documents.collect::<Vec<Vec<Vec<u32>>>>());
    let marks = PairMarks {
        begin: MARK + 1,
        separator: MARK + 2,
        padding: MARK + 3,
    };
    let splits = [sentences.clone(), sentences];
    let pairs = SentencePairs::new(splits, SHAPE, marks, masking, 1).expect("lines follow lines");
    batch(group, "pretraining", &pairs, device);

    let lines = text
        .lines()
        .filter(|line| (1..SHAPE.context_length).contains(&line.len()));
    let examples = lines.map(|line| Example {
        tokens: ids(line),
        segments: vec![0; line.len()],
        target: Target::Class(line.len() % 2),
    });
    let train = examples.collect();
    let examples = Examples {
        valid: std::sync::Arc::clone(&train),
        train,
        batch_size: SHAPE.batch_size,
        accumulation: 1,
        padding: MARK,
        seed: 1,
    };
    batch(group, "classification", &examples, device);
}

/// How long the batches of an objective take, each.
fn batch<B: Batch>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    data: &dyn TrainingData<B>,
    device: &Device,
) {
    let batches = data.train(0..1_000_000_000, device);
    let mut batches = batches.iter();
    group.bench_function(format!("batch/{name}"), |bencher| {
        bencher.iter(|| batches.next());
    });
}

criterion_group!(benches, train_step);
criterion_main!(benches);
