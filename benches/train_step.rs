//! A training step of nanoGPT's small model on every backend that is compiled in.
//!
//!     cargo bench --bench train_step

#[path = "../tests/common/mod.rs"]
mod common;

use burn_zoo::{bench::TrainBench, models::gpt::GptConfig};
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
    for found in common::devices() {
        let mut bench = TrainBench::new(&model, 65, 12, &found.device).expect("the sizes fit");
        group.bench_function(&found.name, |bencher| bencher.iter(|| bench.step()));
    }
    group.finish();
}

criterion_group!(benches, train_step);
criterion_main!(benches);
