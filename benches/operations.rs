//! The zoo's operations beside the same composed from tracked tensor operations, forward and
//! backward, on every backend that is compiled in.
//!
//!     cargo bench --bench operations
//!
//! `burn-zoo bench ops` prints their ratios at sizes of one's own.

#[path = "../tests/common/mod.rs"]
mod common;

use burn_zoo::bench::{LayerSizes, operations};
use criterion::{Criterion, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A layer of nanoGPT's small model.
const SIZES: LayerSizes = LayerSizes {
    batch_size: 12,
    context_length: 64,
    d_model: 128,
    n_heads: 4,
    vocab_size: 65,
};

fn both_forms(criterion: &mut Criterion) {
    for found in common::devices() {
        for operation in operations(SIZES, &found.device) {
            let name = format!("{}/{}", operation.name, found.name);
            let mut group = criterion.benchmark_group(name);
            group.bench_function("zoo", |bencher| bencher.iter(|| operation.run_zoo()));
            group.bench_function("composed", |bencher| {
                bencher.iter(|| operation.run_composed())
            });
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = both_forms
}
criterion_main!(benches);
