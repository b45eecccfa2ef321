//! The zoo's operations beside the same composed from tracked tensor operations, forward and
//! backward, on every backend that is compiled in.
//!
//!     cargo bench --bench operations

#[path = "../tests/common/mod.rs"]
mod common;

use burn::tensor::{Device, Distribution, Tensor, activation::softmax};
use burn_zoo::ops::{AttentionMask, NormKind, Scoring, attention, normalize};
use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 12;
const HEADS: usize = 4;
const SEQ: usize = 64;
const HEAD_DIM: usize = 32;

fn composed_attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Tensor<4>,
) -> Tensor<4> {
    let scores = query.matmul(key.transpose()) / (HEAD_DIM as f64).sqrt() + bias;
    softmax(scores, 3).matmul(value)
}

fn composed_norm(input: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>) -> Tensor<3> {
    let centred = input.clone() - input.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    centred / (variance + 1e-5).sqrt() * weight.unsqueeze() + bias.unsqueeze()
}

/// Times `f` and the gradients of its result, until the device has finished.
fn time<const D: usize>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    device: &Device,
    f: impl Fn() -> Tensor<D>,
) {
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            let grads = f().sum().backward();
            device.sync().expect("the device finishes its work");
            grads
        });
    });
}

fn operations(criterion: &mut Criterion) {
    for found in common::devices() {
        let device = found.device.clone().autodiff();
        let mut group = criterion.benchmark_group(format!("attention/{}", found.name));
        let tensor = || {
            let shape = [BATCH, HEADS, SEQ, HEAD_DIM];
            Tensor::<4>::random(shape, Distribution::Default, &device).require_grad()
        };
        let (query, key, value) = (tensor(), tensor(), tensor());
        let bias = Tensor::<2>::ones([SEQ, SEQ], &device).triu(1) * -1e9;
        let bias = bias.unsqueeze::<4>();
        time(&mut group, "zoo", &device, || {
            attention(
                query.clone(),
                key.clone(),
                value.clone(),
                None,
                Scoring::scaled(AttentionMask::Causal, HEAD_DIM),
            )
        });
        time(&mut group, "composed", &device, || {
            composed_attention(query.clone(), key.clone(), value.clone(), bias.clone())
        });
        group.finish();

        let mut group = criterion.benchmark_group(format!("layer_norm/{}", found.name));
        let width = HEADS * HEAD_DIM;
        let input = Tensor::<3>::random([BATCH, SEQ, width], Distribution::Default, &device);
        let input = input.require_grad();
        let weight = Tensor::<1>::ones([width], &device).require_grad();
        let shift = Tensor::<1>::zeros([width], &device).require_grad();
        time(&mut group, "zoo", &device, || {
            let bias = Some(shift.clone());
            normalize(input.clone(), weight.clone(), bias, NormKind::Layer, 1e-5)
        });
        time(&mut group, "composed", &device, || {
            composed_norm(input.clone(), weight.clone(), shift.clone())
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = operations
}
criterion_main!(benches);
