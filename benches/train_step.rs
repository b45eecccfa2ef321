//! A training step of nanoGPT's small model on every backend that is compiled in, and what it costs to make its
//! batch, which another thread does meanwhile.
//!
//!     cargo bench --bench train_step

#[path = "../tests/common/mod.rs"]
mod common;

use burn_zoo::{
    bench::TrainBench,
    data::{
        batch::TrainingData,
        windows::{Prediction, Splits, StepShape, Windows},
    },
    models::gpt::GptConfig,
};
use criterion::{Criterion, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn train_step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("train_step");
    group.sample_size(20);
    let model = GptConfig {
        bias: false,
        ..GptConfig::new(4, 4, 128, 64)
    };
    let model = model.transformer(65).expect("the sizes fit");
    let shape = StepShape {
        batch_size: 12,
        accumulation: 1,
        context_length: 64,
    };
    let tokens: Vec<u32> = burn_zoo::OWN_TEXT.bytes().map(u32::from).collect();
    let splits = Splits {
        train: tokens.clone().into(),
        valid: tokens.into(),
    };
    let windows = Windows::new(splits, shape, Prediction::Next, 1).expect("the text is long");
    for found in common::devices() {
        let batches = windows.train(0..1_000_000_000, &found.device);
        let mut batches = batches.iter();
        group.bench_function(format!("batch/{}", found.name), |bencher| {
            bencher.iter(|| batches.next());
        });
        let mut bench = TrainBench::new(&model, [12, 64], &found.device).expect("the sizes fit");
        group.bench_function(format!("step/{}", found.name), |bencher| {
            bencher.iter(|| bench.step())
        });
    }
    group.finish();
}

criterion_group!(benches, train_step);
criterion_main!(benches);
