//! The operations against plain loops in 64-bit floats, their gradients against finite differences
//! of those loops and against the composed form, on every backend.

mod common;
#[path = "operations/formulas.rs"]
mod formulas;

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData, activation};
use burn_zoo::backend::FoundDevice;
use burn_zoo::ops::{
    Activation, AdamWStep, AttentionMask, ClassLoss, NormKind, Quantized, Scoring, activate,
    activated_linear, adamw, attention, dropout, gated_linear, linear, negative_log_likelihood,
    normalize, projected_loss,
};
use common::{
    assert_close, data, devices, normal, normal_density, normal_distribution, processor, values,
};
use proptest::prelude::*;

/// Flex has one generator for the whole process: what seeds it and must draw the same again holds this.
static GENERATOR: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sizes of one attention.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    n_kv_heads: usize,
    group: usize,
    seq_q: usize,
    seq_k: usize,
    head_dim: usize,
    mask: AttentionMask,
}

impl Sizes {
    fn query(&self) -> [usize; 4] {
        let n_heads = self.n_kv_heads * self.group;
        [self.batch, n_heads, self.seq_q, self.head_dim]
    }

    fn scoring(&self) -> Scoring {
        Scoring::scaled(self.mask, self.head_dim)
    }

    /// Whether the mask hides a key from a query.
    fn hides(&self, query: usize, key: usize) -> bool {
        // Where nothing is hidden, there may be more queries than keys.
        let position = || self.seq_k - self.seq_q + query;
        match self.mask {
            AttentionMask::Full => false,
            AttentionMask::Causal => key > position(),
            AttentionMask::Banded { window } => key > position() || key + window <= position(),
        }
    }

    fn key(&self) -> [usize; 4] {
        [self.batch, self.n_kv_heads, self.seq_k, self.head_dim]
    }

    /// Query, key, value, and the weights that make a scalar of the output.
    fn inputs(&self) -> [Vec<f64>; 4] {
        let count = |shape: [usize; 4]| shape.iter().product();
        [
            normal(1, count(self.query())),
            normal(2, count(self.key())),
            normal(3, count(self.key())),
            normal(4, count(self.query())),
        ]
    }
}

/// Attention as its formula reads, one output row after the other.
fn reference_attention(sizes: Sizes, query: &[f64], key: &[f64], value: &[f64]) -> Vec<f64> {
    let Sizes {
        group,
        seq_q,
        seq_k,
        head_dim,
        ..
    } = sizes;
    let row = |tensor: &[f64], head: usize, seq: usize, position: usize| {
        let start = (head * seq + position) * head_dim;
        tensor[start..start + head_dim].to_vec()
    };
    let mut output = Vec::new();
    for head in 0..sizes.batch * sizes.n_kv_heads * group {
        for position in 0..seq_q {
            let q = row(query, head, seq_q, position);
            let scores: Vec<f64> = (0..seq_k)
                .map(|j| {
                    if sizes.hides(position, j) {
                        return 0.0;
                    }
                    let k = row(key, head / group, seq_k, j);
                    let dot: f64 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
                    (dot / (head_dim as f64).sqrt()).exp()
                })
                .collect();
            let total: f64 = scores.iter().sum();
            for channel in 0..head_dim {
                let weighted = scores.iter().enumerate().map(|(j, score)| {
                    score / total * value[((head / group) * seq_k + j) * head_dim + channel]
                });
                output.push(weighted.sum());
            }
        }
    }
    output
}

/// The same from tracked tensor operations, with the key/value heads repeated.
fn composed_attention(
    sizes: Sizes,
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    added: Option<Tensor<4>>,
) -> Tensor<4> {
    composed_probabilities(sizes, query, key, added).matmul(repeat_heads(sizes, value))
}

/// `[batch, n_kv_heads, seq, head_dim] → [batch, n_heads, seq, head_dim]`.
fn repeat_heads(sizes: Sizes, tensor: Tensor<4>) -> Tensor<4> {
    let heads = (0..sizes.n_kv_heads * sizes.group)
        .map(|head| tensor.clone().narrow(1, head / sizes.group, 1));
    Tensor::cat(heads.collect(), 1)
}

/// What each query takes of each key, `[batch, n_heads, seq_q, seq_k]`.
fn composed_probabilities(
    sizes: Sizes,
    query: Tensor<4>,
    key: Tensor<4>,
    added: Option<Tensor<4>>,
) -> Tensor<4> {
    let key = repeat_heads(sizes, key);
    let scores = query.matmul(key.transpose()) / (sizes.head_dim as f64).sqrt();
    let hidden: Vec<f64> = (0..sizes.seq_q * sizes.seq_k)
        .map(|index| {
            let (position, j) = (index / sizes.seq_k, index % sizes.seq_k);
            if sizes.hides(position, j) { -1e9 } else { 0.0 }
        })
        .collect();
    let bias = Tensor::<2>::from_data(data(&hidden, [sizes.seq_q, sizes.seq_k]), &scores.device());
    let scores = match added {
        Some(added) => scores + added,
        None => scores,
    };
    activation::softmax(scores + bias.unsqueeze(), 3)
}

/// Central differences of `f` at `x`.
fn differences(f: impl Fn(&[f64]) -> f64, x: &[f64]) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    (0..x.len())
        .map(|index| {
            let shifted = |step: f64| {
                let mut x = x.to_vec();
                x[index] += step;
                f(&x)
            };
            (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP)
        })
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The output, and the gradients of `sum(weights · output)` for query, key and value.
fn with_gradients(
    sizes: Sizes,
    device: &Device,
    attend: impl Fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>,
) -> [Vec<f64>; 4] {
    let device = device.clone().autodiff();
    let [query, key, value, weights] = sizes.inputs();
    let tensor = |values: &[f64], shape| Tensor::<4>::from_data(data(values, shape), &device);
    let query = tensor(&query, sizes.query()).require_grad();
    let key = tensor(&key, sizes.key()).require_grad();
    let value = tensor(&value, sizes.key()).require_grad();
    let output = attend(query.clone(), key.clone(), value.clone());
    let grads = (output.clone() * tensor(&weights, sizes.query()))
        .sum()
        .backward();
    let grad = |tensor: Tensor<4>| values(tensor.grad(&grads).expect("it takes part"));
    [values(output.inner()), grad(query), grad(key), grad(value)]
}

/// Without gradients, with them, and against both references.
fn check_attention(sizes: Sizes, device: &Device, name: &str) {
    let what = format!("{name}, {sizes:?}");
    let [query, key, value, weights] = sizes.inputs();
    let expected = reference_attention(sizes, &query, &key, &value);

    let tensor = |values: &[f64], shape| Tensor::<4>::from_data(data(values, shape), device);
    let plain = attention(
        tensor(&query, sizes.query()),
        tensor(&key, sizes.key()),
        tensor(&value, sizes.key()),
        None,
        sizes.scoring(),
    );
    assert_close(
        &values(plain),
        &expected,
        2e-5,
        &format!("{what}, inference"),
    );

    let ours = with_gradients(sizes, device, |q, k, v| {
        attention(q, k, v, None, sizes.scoring())
    });
    let composed = with_gradients(sizes, device, |q, k, v| {
        composed_attention(sizes, q, k, v, None)
    });
    let by_query = |q: &[f64]| dot(&reference_attention(sizes, q, &key, &value), &weights);
    let by_key = |k: &[f64]| dot(&reference_attention(sizes, &query, k, &value), &weights);
    let by_value = |v: &[f64]| dot(&reference_attention(sizes, &query, &key, v), &weights);
    let by_differences = [
        expected.clone(),
        differences(by_query, &query),
        differences(by_key, &key),
        differences(by_value, &value),
    ];
    for (index, part) in ["output", "query", "key", "value"].iter().enumerate() {
        let expected = &by_differences[index];
        assert_close(
            &ours[index],
            expected,
            5e-5,
            &format!("{what}, {part}, differences"),
        );
        assert_close(
            &ours[index],
            &composed[index],
            5e-5,
            &format!("{what}, {part}, composed"),
        );
    }
}

#[test]
fn attention_is_right_on_every_backend() {
    let full = Sizes {
        batch: 2,
        n_kv_heads: 2,
        group: 1,
        seq_q: 5,
        seq_k: 5,
        head_dim: 4,
        mask: AttentionMask::Full,
    };
    let causal = Sizes {
        mask: AttentionMask::Causal,
        ..full
    };
    let cases = [
        full,
        causal,
        // Two query heads for each key/value head.
        Sizes { group: 2, ..causal },
        // The last three of seven positions.
        Sizes {
            seq_q: 3,
            seq_k: 7,
            group: 2,
            ..causal
        },
        // One new token.
        Sizes {
            seq_q: 1,
            seq_k: 6,
            ..causal
        },
        // Cross-attention has its own length.
        Sizes {
            seq_q: 3,
            seq_k: 7,
            ..full
        },
    ];
    for found in devices() {
        for sizes in cases {
            check_attention(sizes, &found.device, &found.name);
        }
    }
}

/// Sequences of several tiles, and of parts of one; heads in the middle of memory, as a projection leaves them; with a
/// bias that is read at every head. Against the same composed on the processor.
#[test]
fn attention_in_tiles_is_right_on_every_backend() {
    let banded = |window| AttentionMask::Banded { window };
    let cases = [
        (2, 2, 2, [70, 75, 75], AttentionMask::Causal),
        (1, 1, 1, [33, 33, 40], AttentionMask::Full),
        (1, 2, 1, [65, 130, 24], banded(20)),
        (2, 1, 3, [1, 40, 16], AttentionMask::Causal),
        (1, 1, 2, [129, 129, 64], banded(64)),
        (1, 1, 1, [40, 5, 8], AttentionMask::Full),
        (1, 1, 1, [3, 3, 130], AttentionMask::Causal),
        (1, 1, 1, [2, 3, 300], AttentionMask::Causal),
        (1, 1, 2, [600, 600, 64], AttentionMask::Causal),
        (1, 1, 1, [530, 601, 64], banded(130)),
        // Some queries of a block see none of the segment of keys in which others begin.
        (1, 1, 2, [1060, 1060, 8], banded(50)),
        (1, 2, 1, [66, 1100, 16], AttentionMask::Full),
    ];
    for (batch, n_kv_heads, group, [seq_q, seq_k, head_dim], mask) in cases {
        let sizes = Sizes {
            batch,
            n_kv_heads,
            group,
            seq_q,
            seq_k,
            head_dim,
            mask,
        };
        let shape = [1, n_kv_heads * group, 1, seq_k];
        let added = normal(9, shape.iter().product());
        let bias = |device: &Device| {
            Tensor::<4>::from_data(data(&added, shape), &device.clone().autodiff())
        };
        // The same values, of which those of a position lie together.
        let by_position = |tensor: Tensor<4>| {
            let stored = tensor.swap_dims(1, 2);
            let dims = stored.dims();
            stored.reshape([-1]).reshape(dims).swap_dims(1, 2)
        };
        let device = processor();
        let expected = with_gradients(sizes, &device, |q, k, v| {
            composed_attention(sizes, q, k, v, Some(bias(&device)))
        });
        for found in devices() {
            let ours = with_gradients(sizes, &found.device, |q, k, v| {
                let [q, k, v] = [q, k, v].map(by_position);
                let output = attention(q, k, v, Some(bias(&found.device)), sizes.scoring());
                by_position(output)
            });
            for (number, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
                let what = format!("{}, {sizes:?}, {number}", found.name);
                assert_close(ours, expected, 5e-5, &what);
            }
        }
    }
}

/// A bias that learns gets the sum of the gradients of all scores that it was added to, and the rest gets what it would
/// without. Against the same composed on the processor.
#[test]
fn a_bias_learns_wherever_it_is_broadcast_on_every_backend() {
    let banded = |window| AttentionMask::Banded { window };
    let cases = [
        (2, 2, 2, [7, 9], AttentionMask::Full, [1, 4, 7, 9]),
        (3, 2, 1, [70, 70], AttentionMask::Causal, [3, 1, 70, 70]),
        (2, 1, 3, [66, 70], banded(40), [2, 3, 1, 70]),
        (3, 2, 2, [5, 6], AttentionMask::Causal, [1, 1, 1, 6]),
        (2, 2, 1, [20, 600], AttentionMask::Full, [1, 2, 20, 600]),
    ];
    for (batch, n_kv_heads, group, [seq_q, seq_k], mask, shape) in cases {
        let sizes = Sizes {
            batch,
            n_kv_heads,
            group,
            seq_q,
            seq_k,
            head_dim: 8,
            mask,
        };
        let added = data(&normal(9, shape.iter().product()), shape);
        let learn = |device: &Device, attend: &dyn Fn([Tensor<4>; 3], Tensor<4>) -> Tensor<4>| {
            let device = device.clone().autodiff();
            let bias = Tensor::<4>::from_data(added.clone(), &device).require_grad();
            let [query, key, value, weights] = sizes.inputs();
            let tensor = |values, shape| Tensor::<4>::from_data(data(values, shape), &device);
            let inputs = [
                tensor(&query, sizes.query()),
                tensor(&key, sizes.key()),
                tensor(&value, sizes.key()),
            ];
            let inputs = inputs.map(Tensor::require_grad);
            let output = attend(inputs.clone(), bias.clone());
            let grads = (output * tensor(&weights, sizes.query())).sum().backward();
            let [q, k, v] = inputs;
            [q, k, v, bias].map(|input| values(input.grad(&grads).unwrap()))
        };
        let expected = learn(&processor(), &|[q, k, v], bias| {
            composed_attention(sizes, q, k, v, Some(bias))
        });
        for found in devices() {
            let ours = learn(&found.device, &|[q, k, v], bias| {
                attention(q, k, v, Some(bias), sizes.scoring())
            });
            for (number, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
                let what = format!("{}, {sizes:?}, {shape:?}, {number}", found.name);
                assert_close(ours, expected, 5e-5, &what);
            }
        }
    }
}

/// The sizes of one normalisation.
#[derive(Clone, Copy, Debug)]
struct Rows {
    rows: usize,
    d_model: usize,
    kind: NormKind,
    bias: bool,
}

const EPSILON: f64 = 1e-5;

fn reference_norm(sizes: Rows, input: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let mut output = Vec::new();
    for row in input.chunks(sizes.d_model) {
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / row.len() as f64;
        let centre = match sizes.kind {
            NormKind::Layer => mean(&mut row.iter().copied()),
            NormKind::Rms => 0.0,
        };
        let variance = mean(&mut row.iter().map(|x| (x - centre) * (x - centre)));
        for ((x, weight), bias) in row.iter().zip(weight).zip(bias) {
            let shift = if sizes.bias { *bias } else { 0.0 };
            output.push((x - centre) / (variance + EPSILON).sqrt() * weight + shift);
        }
    }
    output
}

/// The same from tracked tensor operations.
fn composed_norm(
    sizes: Rows,
    input: Tensor<2>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
) -> Tensor<2> {
    let centred = match sizes.kind {
        NormKind::Layer => input.clone() - input.mean_dim(1),
        NormKind::Rms => input,
    };
    let variance = centred.clone().square().mean_dim(1);
    let scaled = centred / (variance + EPSILON).sqrt() * weight.unsqueeze();
    match bias {
        Some(bias) => scaled + bias.unsqueeze(),
        None => scaled,
    }
}

/// Attention of tensors whose heads are columns in memory, as a transposition leaves them.
#[test]
fn attention_reads_any_layout() {
    let sizes = Sizes {
        batch: 1,
        n_kv_heads: 2,
        group: 1,
        seq_q: 4,
        seq_k: 4,
        head_dim: 3,
        mask: AttentionMask::Causal,
    };
    let by_columns = |tensor: Tensor<4>| {
        let stored = tensor.transpose().reshape([-1]).reshape([1, 2, 3, 4]);
        stored.transpose()
    };
    for found in devices() {
        let rows = with_gradients(sizes, &found.device, |q, k, v| {
            attention(q, k, v, None, sizes.scoring())
        });
        let columns = with_gradients(sizes, &found.device, |q, k, v| {
            let output = attention(
                by_columns(q),
                by_columns(k),
                by_columns(v),
                None,
                sizes.scoring(),
            );
            by_columns(output)
        });
        for (columns, rows) in columns.iter().zip(&rows) {
            assert_close(columns, rows, 1e-6, &found.name);
        }
    }
}

/// The gradient of an output that was turned round comes from the end of memory to its begin.
#[test]
fn attention_takes_gradients_of_any_layout() {
    let sizes = Sizes {
        batch: 1,
        n_kv_heads: 2,
        group: 1,
        seq_q: 70,
        seq_k: 70,
        head_dim: 16,
        mask: AttentionMask::Causal,
    };
    for found in devices() {
        let ours = with_gradients(sizes, &found.device, |q, k, v| {
            attention(q, k, v, None, sizes.scoring()).flip([3])
        });
        let composed = with_gradients(sizes, &found.device, |q, k, v| {
            composed_attention(sizes, q, k, v, None).flip([3])
        });
        for (ours, composed) in ours.iter().zip(&composed) {
            assert_close(ours, composed, 5e-5, &found.name);
        }
    }
}

/// Keys whose bias is infinite count nothing, also where no other key is in memory near them.
#[test]
fn keys_without_any_weight_count_nothing() {
    const HIDDEN: usize = 530;
    let sizes = Sizes {
        batch: 1,
        n_kv_heads: 1,
        group: 2,
        seq_q: 70,
        seq_k: 600,
        head_dim: 16,
        mask: AttentionMask::Full,
    };
    let device = processor();
    let hidden = (0..sizes.seq_k).map(|key| match key < HIDDEN {
        true => f64::NEG_INFINITY,
        false => 0.0,
    });
    let bias = data(&hidden.collect::<Vec<_>>(), [1, 1, 1, sizes.seq_k]);
    let bias = Tensor::<4>::from_data(bias, &device.clone().autodiff());
    let ours = with_gradients(sizes, &device, |q, k, v| {
        attention(q, k, v, Some(bias.clone()), sizes.scoring())
    });
    let expected = with_gradients(sizes, &device, |q, k, v| {
        let [k, v] = [k, v].map(|keys| keys.narrow(2, HIDDEN, sizes.seq_k - HIDDEN));
        attention(q, k, v, None, sizes.scoring())
    });
    for (number, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
        assert_close(ours, expected, 1e-5, &number.to_string());
    }
}

fn check_norm(sizes: Rows, device: &Device, name: &str) {
    let what = format!("{name}, {sizes:?}");
    let Rows {
        rows,
        d_model,
        kind,
        bias,
    } = sizes;
    let input = normal(5, rows * d_model);
    let [scale, shift] = [normal(6, d_model), normal(7, d_model)];
    let weights = normal(8, rows * d_model);
    let expected = reference_norm(sizes, &input, &scale, &shift);

    let autodiff = device.clone().autodiff();
    for device in [device, &autodiff] {
        let matrix = Tensor::<2>::from_data(data(&input, [rows, d_model]), device);
        let vector = |values: &[f64]| Tensor::<1>::from_data(data(values, [d_model]), device);
        let bias = bias.then(|| vector(&shift));
        let output = normalize(matrix, vector(&scale), bias, kind, EPSILON);
        assert_close(&values(output), &expected, 2e-5, &what);
    }

    let gradients = |normalize: &dyn Fn(Tensor<2>, Tensor<1>, Option<Tensor<1>>) -> Tensor<2>| {
        let tracked = Tensor::<2>::from_data(data(&input, [rows, d_model]), &autodiff);
        let tracked = tracked.require_grad();
        let vector = |values: &[f64]| {
            Tensor::<1>::from_data(data(values, [d_model]), &autodiff).require_grad()
        };
        let (weight, shift) = (vector(&scale), vector(&shift));
        let output = normalize(tracked.clone(), weight.clone(), bias.then(|| shift.clone()));
        let upstream = Tensor::<2>::from_data(data(&weights, [rows, d_model]), &autodiff);
        let grads = (output * upstream).sum().backward();
        [
            values(tracked.grad(&grads).expect("the input takes part")),
            values(weight.grad(&grads).expect("the weight takes part")),
            // Empty where there is no bias.
            shift.grad(&grads).map_or_else(Vec::new, values),
        ]
    };
    let ours = gradients(&|x, weight, bias| normalize(x, weight, bias, kind, EPSILON));
    let composed = gradients(&|x, weight, bias| composed_norm(sizes, x, weight, bias));
    let by_input = |x: &[f64]| dot(&reference_norm(sizes, x, &scale, &shift), &weights);
    let by_scale = |w: &[f64]| dot(&reference_norm(sizes, &input, w, &shift), &weights);
    let by_shift = |b: &[f64]| dot(&reference_norm(sizes, &input, &scale, b), &weights);
    let by_differences = [
        differences(by_input, &input),
        differences(by_scale, &scale),
        match bias {
            true => differences(by_shift, &shift),
            false => Vec::new(),
        },
    ];
    for (index, part) in ["input", "weight", "bias"].iter().enumerate() {
        let what = format!("{what}, {part}");
        assert_close(
            &ours[index],
            &by_differences[index],
            5e-5,
            &format!("{what}, differences"),
        );
        assert_close(
            &ours[index],
            &composed[index],
            5e-5,
            &format!("{what}, composed"),
        );
    }
}

#[test]
fn normalisation_is_right_on_every_backend() {
    for found in devices() {
        for (kind, bias) in [
            (NormKind::Layer, true),
            (NormKind::Layer, false),
            (NormKind::Rms, false),
            (NormKind::Rms, true),
        ] {
            let sizes = Rows {
                rows: 3,
                d_model: 8,
                kind,
                bias,
            };
            check_norm(sizes, &found.device, &found.name);
        }
    }
}

/// Sizes that kernels for the processor share among threads and cut into vectors, against tracked operations.
#[test]
fn large_sizes_are_as_right_as_small_ones() {
    let device = processor();
    let sizes = Sizes {
        batch: 2,
        n_kv_heads: 3,
        group: 2,
        seq_q: 167,
        seq_k: 201,
        head_dim: 8,
        mask: AttentionMask::Banded { window: 90 },
    };
    let bias_shape = [2, 1, 1, sizes.seq_k];
    let bias = Tensor::<4>::from_data(
        data(&normal(9, 2 * sizes.seq_k), bias_shape),
        &device.clone().autodiff(),
    );
    let ours = with_gradients(sizes, &device, |q, k, v| {
        attention(q, k, v, Some(bias.clone()), sizes.scoring())
    });
    let composed = with_gradients(sizes, &device, |q, k, v| {
        composed_attention(sizes, q, k, v, Some(bias.clone()))
    });
    for (ours, composed) in ours.iter().zip(&composed) {
        assert_close(ours, composed, 5e-5, "attention");
    }

    let (rows, d_model) = (411, 99);
    for (kind, has_bias) in [(NormKind::Layer, true), (NormKind::Rms, false)] {
        let sizes = Rows {
            rows,
            d_model,
            kind,
            bias: has_bias,
        };
        let autodiff = device.clone().autodiff();
        let run = |ours: bool| {
            let matrix = |seed| {
                Tensor::<2>::from_data(
                    data(&normal(seed, rows * d_model), [rows, d_model]),
                    &autodiff,
                )
            };
            let vector = |seed| {
                Tensor::<1>::from_data(data(&normal(seed, d_model), [d_model]), &autodiff)
                    .require_grad()
            };
            let (input, weight, shift) = (matrix(1).require_grad(), vector(2), vector(3));
            let bias = has_bias.then(|| shift.clone());
            let output = match ours {
                true => normalize(input.clone(), weight.clone(), bias, kind, EPSILON),
                false => composed_norm(sizes, input.clone(), weight.clone(), bias),
            };
            let grads = (output.clone() * matrix(4)).sum().backward();
            [
                values(output),
                values(input.grad(&grads).unwrap()),
                values(weight.grad(&grads).unwrap()),
                shift.grad(&grads).map_or_else(Vec::new, values),
            ]
        };
        for (ours, composed) in run(true).iter().zip(run(false)) {
            assert_close(ours, &composed, 1e-4, &format!("{sizes:?}"));
        }
    }

    // Few rows, for which the matrix is read in pieces, and many; of a matrix and of one that is transposed.
    let sizes = [(1, false), (1, true), (3, true), (8, false), (411, false)];
    for (rows, is_transposed) in sizes {
        let (d_input, d_output) = (301, 907);
        let autodiff = device.clone().autodiff();
        let x =
            Tensor::<2>::from_data(data(&normal(1, rows * d_input), [rows, d_input]), &autodiff);
        let sizes = if is_transposed {
            [d_output, d_input]
        } else {
            [d_input, d_output]
        };
        let w = Tensor::<2>::from_data(data(&normal(2, d_input * d_output), sizes), &autodiff);
        let b = Tensor::<1>::from_data(data(&normal(3, d_output), [d_output]), &autodiff);
        let (x, w, b) = (x.require_grad(), w.require_grad(), b.require_grad());
        let run = |ours: bool| {
            let matrix = if is_transposed {
                w.clone().transpose()
            } else {
                w.clone()
            };
            let output = match ours {
                true => linear(x.clone().unsqueeze::<3>(), matrix, Some(b.clone())).squeeze_dim(0),
                false => x.clone().matmul(matrix) + b.clone().unsqueeze::<2>(),
            };
            let factor = Tensor::<2>::from_data(
                data(&normal(4, rows * d_output), [rows, d_output]),
                &autodiff,
            );
            let grads = (output.clone() * factor).sum().backward();
            let grads = [
                values(x.grad(&grads).unwrap()),
                values(w.grad(&grads).unwrap()),
                values(b.grad(&grads).unwrap()),
            ];
            (values(output), grads)
        };
        let ((ours, our_grads), (composed, grads)) = (run(true), run(false));
        assert_close(&ours, &composed, 2e-4, "linear");
        for (ours, composed) in our_grads.iter().zip(&grads) {
            assert_close(ours, composed, 5e-4, "the gradient of linear");
        }
    }

    // Without a bias, in more pieces than have sums of their own, and the same on any number of threads.
    let (d_input, d_output) = (1_201, 1_803);
    let x = Tensor::<2>::from_data(data(&normal(1, 2 * d_input), [2, d_input]), &device);
    let w = Tensor::<2>::from_data(
        data(&normal(2, d_input * d_output), [d_input, d_output]),
        &device,
    );
    let expected = values(x.clone().matmul(w.clone()));
    let across = w.clone().transpose().add_scalar(0.0).transpose();
    for matrix in [w, across] {
        let run = || values(linear(x.clone(), matrix.clone(), None));
        let found = run();
        assert_close(&found, &expected, 5e-4, "linear without a bias");
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        assert_eq!(one.unwrap().install(run), found);
    }

    let x = normal(5, 50_000);
    let input = Tensor::<1>::from_data(data(&x, [x.len()]), &device);
    let expected: Vec<f64> = x.iter().map(|&x| x * normal_distribution(x)).collect();
    let found = activate(input, Activation::Gelu);
    assert_close(&values(found), &expected, 1e-6, "gelu");
}

/// Losses and gradients against the closed form in 64-bit floats, with more values than one thread takes at a time.
#[test]
fn likelihoods_are_right_on_every_backend() {
    const ROWS: usize = 220;
    const CLASSES: usize = 199;
    let logits: Vec<f64> = normal(1, ROWS * CLASSES).iter().map(|x| 5.0 * x).collect();
    let classes: Vec<usize> = (0..ROWS).map(|row| row * 31 % CLASSES).collect();
    let weights = normal(2, ROWS);
    for smoothing in [0.0, 0.2] {
        let (mut losses, mut gradients) = (Vec::new(), Vec::new());
        for ((row, &class), weight) in logits.chunks(CLASSES).zip(&classes).zip(&weights) {
            let total: f64 = row.iter().map(|x| x.exp()).sum();
            let wanted = |index: usize| {
                smoothing / CLASSES as f64 + if index == class { 1.0 - smoothing } else { 0.0 }
            };
            let each = row.iter().enumerate();
            let loss = each
                .clone()
                .map(|(index, x)| wanted(index) * (total.ln() - x));
            losses.push(loss.sum());
            gradients.extend(each.map(|(index, x)| weight * (x.exp() / total - wanted(index))));
        }
        for found in devices() {
            let device = found.device.clone().autodiff();
            let input = Tensor::<2>::from_data(data(&logits, [ROWS, CLASSES]), &device);
            let input = input.require_grad();
            let ids: Vec<i32> = classes.iter().map(|&class| class as i32).collect();
            let ids = Tensor::<1, Int>::from_data(ids.as_slice(), &device);
            let output = negative_log_likelihood(input.clone(), ids, smoothing);
            let upstream = Tensor::<1>::from_data(data(&weights, [ROWS]), &device);
            let grads = (output.clone() * upstream).sum().backward();
            let what = format!("{}, smoothing {smoothing}", found.name);
            assert_close(&values(output), &losses, 2e-5, &what);
            let gradient = values(input.grad(&grads).unwrap());
            assert_close(&gradient, &gradients, 1e-5, &format!("{what}, gradient"));

            // A small loss among large logits keeps its digits.
            let sure = Tensor::<2>::from_data([[97.3, 88.1, -5.0]], &found.device);
            let class = Tensor::<1, Int>::from_data([0], &found.device);
            let loss = values(negative_log_likelihood(sure, class, 0.0))[0];
            let expected = (-9.2f64).exp().ln_1p();
            assert!(
                (loss / expected - 1.0).abs() < 1e-3,
                "{what}: {loss}, {expected}"
            );
        }
    }
}

/// A linear layer whose outputs are the logits of a loss.
#[derive(Clone, Copy, Debug)]
struct Projection {
    rows: usize,
    d_model: usize,
    n_classes: usize,
    /// Whether the weight lies in memory as an embedding does, `[n_classes, d_model]`.
    tied: bool,
    bias: bool,
    smoothing: f64,
    /// What the loss is multiplied by after it was computed.
    upstream: f64,
}

/// The loss and its gradients against the closed form in 64-bit floats.
fn check_projected_loss(sizes: Projection, device: &Device, name: &str) {
    let Projection {
        rows,
        d_model,
        n_classes,
        ..
    } = sizes;
    let what = format!("{name}, {sizes:?}");
    let (x, w) = (normal(1, rows * d_model), normal(2, d_model * n_classes));
    let b = match sizes.bias {
        true => normal(3, n_classes),
        false => vec![0.0; n_classes],
    };
    let classes: Vec<usize> = (0..rows).map(|row| row * 31 % n_classes).collect();
    let scale = 1.0 / (rows + 1) as f64;

    let mut loss = 0.0;
    let mut grads = [x.clone(), w.clone(), b.clone()].map(|values| vec![0.0; values.len()]);
    for (row, &class) in classes.iter().enumerate() {
        let x = &x[row * d_model..][..d_model];
        let logits: Vec<f64> = (0..n_classes)
            .map(|column| {
                let terms = x.iter().enumerate();
                let terms = terms.map(|(i, x)| x * w[i * n_classes + column]);
                b[column] + terms.sum::<f64>()
            })
            .collect();
        let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
        for (column, logit) in logits.iter().enumerate() {
            let hard = if column == class {
                1.0 - sizes.smoothing
            } else {
                0.0
            };
            let wanted = hard + sizes.smoothing / n_classes as f64;
            loss += scale * wanted * (total.ln() - logit);
            let grad = sizes.upstream * scale * (logit.exp() / total - wanted);
            for (i, x) in x.iter().enumerate() {
                grads[0][row * d_model + i] += grad * w[i * n_classes + column];
                grads[1][i * n_classes + column] += grad * x;
            }
            grads[2][column] += grad;
        }
    }

    let tracked = device.clone().autodiff();
    let run = |device: &Device, is_tracked: bool| {
        fn tracked<const D: usize>(tensor: Tensor<D>, is_tracked: bool) -> Tensor<D> {
            if is_tracked {
                tensor.require_grad()
            } else {
                tensor
            }
        }
        let input = Tensor::<2>::from_data(data(&x, [rows, d_model]), device);
        let input = tracked(input, is_tracked);
        let weight = Tensor::<2>::from_data(data(&w, [d_model, n_classes]), device);
        // Copied, so that it lies across.
        let weight = if sizes.tied {
            weight.transpose() * 1.0
        } else {
            weight
        };
        let weight = tracked(weight, is_tracked);
        let bias = Tensor::<1>::from_data(data(&b, [n_classes]), device);
        let bias = tracked(bias, is_tracked);
        let ids: Vec<i32> = classes.iter().map(|&class| class as i32).collect();
        let ids = Tensor::<1, Int>::from_data(ids.as_slice(), device);
        let matrix = match sizes.tied {
            true => weight.clone().transpose(),
            false => weight.clone(),
        };
        let of = ClassLoss {
            smoothing: sizes.smoothing,
            scale,
        };
        let added = sizes.bias.then(|| bias.clone());
        let found = projected_loss(input.clone(), matrix, added, ids, of);
        (found, input, weight, bias)
    };
    assert_close(
        &values(run(device, false).0),
        &[loss],
        2e-5,
        &format!("{what}, inference"),
    );
    let (found, input, weight, bias) = run(&tracked, true);
    let store = (found.clone() * sizes.upstream).backward();
    assert_close(&values(found), &[loss], 2e-5, &what);
    let grad = values(input.grad(&store).unwrap());
    assert_close(&grad, &grads[0], 1e-5, &format!("{what}, input"));
    let grad = weight.grad(&store).unwrap();
    let grad = values(if sizes.tied { grad.transpose() } else { grad });
    assert_close(&grad, &grads[1], 1e-5, &format!("{what}, weight"));
    match bias.grad(&store) {
        Some(grad) => assert_close(&values(grad), &grads[2], 1e-5, &format!("{what}, bias")),
        None => assert!(!sizes.bias, "{what}"),
    }
}

#[test]
fn losses_of_a_projection_are_right_on_every_backend() {
    let small = Projection {
        rows: 7,
        d_model: 5,
        n_classes: 33,
        tied: false,
        bias: true,
        smoothing: 0.1,
        upstream: 1.0,
    };
    for found in devices() {
        check_projected_loss(small, &found.device, &found.name);
        let tied = Projection {
            tied: true,
            bias: false,
            smoothing: 0.0,
            upstream: 2.5,
            ..small
        };
        check_projected_loss(tied, &found.device, &found.name);
        let one = Projection {
            rows: 1,
            d_model: 1,
            n_classes: 1,
            ..small
        };
        check_projected_loss(one, &found.device, &found.name);
    }
    // Two blocks, which a software GPU would take long for.
    let large = Projection {
        rows: 130,
        d_model: 3,
        n_classes: 70_001,
        ..small
    };
    for found in devices()
        .iter()
        .filter(|found| found.backend.name() != "wgpu")
    {
        for tied in [false, true] {
            check_projected_loss(Projection { tied, ..large }, &found.device, &found.name);
        }
    }
}

/// Operations read what is not one piece of memory, a part of one, or spread over many places, as they read a copy;
/// what they are given stays as it was; and nothing in gives nothing out.
#[test]
fn operations_read_any_layout() {
    let _alone = alone();
    let (rows, width) = (6, 10);
    for found in devices() {
        let device = found.device.clone().autodiff();
        let stored = normal(1, (rows + 2) * width);
        let whole = || {
            let stored = Tensor::<2>::from_data(data(&stored, [rows + 2, width]), &device);
            stored.require_grad()
        };
        let weight = Tensor::<1>::from_data(data(&normal(2, width), [width]), &device);
        let other = Tensor::<1>::from_data(data(&normal(2, rows), [rows]), &device);
        let classes = Tensor::<1, Int>::from_data([0, 1, 2, 3, 4, 5], &device);
        type View = fn(Tensor<2>) -> Tensor<2>;
        let views: [View; 3] = [
            |x| x.narrow(0, 2, 6),
            |x| x.narrow(0, 0, 6),
            |x| x.narrow(0, 1, 6).transpose(),
        ];
        type Operation<'a> = Box<dyn Fn(Tensor<2>) -> Tensor<2> + 'a>;
        let normed: Operation = Box::new(|x| {
            let [_, width] = x.dims();
            let weight = if width == rows { &other } else { &weight };
            normalize(x, weight.clone(), None, NormKind::Layer, EPSILON)
        });
        let likelihood: Operation = Box::new(|x| {
            let x = if x.dims()[0] == rows {
                x
            } else {
                x.transpose()
            };
            negative_log_likelihood(x, classes.clone(), 0.1).unsqueeze()
        });
        let dropped: Operation = Box::new(|x| {
            device.seed(3);
            dropout(x, 0.4)
        });
        let activated: Operation = Box::new(|x| activate(x, Activation::Gelu));
        for (what, operation) in [
            ("normalize", normed),
            ("likelihood", likelihood),
            ("dropout", dropped),
            ("activate", activated),
        ] {
            for (number, view) in views.iter().enumerate() {
                // The gradient of a sum over rows comes back as one row, spread over all.
                let gradients = |output: Tensor<2>| {
                    let sums = output.sum_dim(0);
                    (sums.clone() * sums).sum().backward()
                };
                let input = whole();
                let output = operation(view(input.clone()));
                let grads = gradients(output.clone());
                let gradient = view(input.grad(&grads).unwrap());
                assert_close(&values(input.clone()), &stored, 1e-7, "the input stays");

                let copy = Tensor::<2>::from_data(view(input).into_data(), &device);
                let copy = copy.require_grad();
                let expected = operation(copy.clone());
                let grads = gradients(expected.clone());
                let what = format!("{}, {what}, view {number}", found.name);
                assert_close(&values(output), &values(expected), 1e-6, &what);
                let expected = values(copy.grad(&grads).unwrap());
                assert_close(
                    &values(gradient),
                    &expected,
                    1e-5,
                    &format!("{what}, gradient"),
                );
            }
        }

        // A view of a parameter moves, what it is a view of does not.
        let parameter = Tensor::<2>::from_data(data(&stored, [rows + 2, width]), &found.device);
        let part = parameter.clone().narrow(0, 1, rows);
        let step = AdamWStep {
            number: 1,
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.9,
            epsilon: 1e-8,
            weight_decay: 0.0,
        };
        let zeros = part.zeros_like();
        let grad = part.ones_like();
        let (moved, _) = adamw(part.clone(), grad, [zeros.clone(), zeros.clone()], step);
        let expected: Vec<f64> = values(part).iter().map(|value| value - 0.1).collect();
        assert_close(&values(moved), &expected, 1e-6, "a part moves");
        assert_close(&values(parameter), &stored, 1e-7, "the whole stays");
        assert_close(
            &values(zeros),
            &vec![0.0; rows * width],
            0.0,
            "moments stay",
        );
    }
    // Where there are kernels.
    let has_kernels = |found: &FoundDevice| ["flex", "wgpu"].contains(&found.backend.name());
    for found in devices().into_iter().filter(has_kernels) {
        let device = found.device.autodiff();
        let nothing = Tensor::<2>::zeros([0, 4], &device).require_grad();
        let weight = Tensor::<1>::ones([4], &device).require_grad();
        let normed = normalize(
            nothing.clone(),
            weight.clone(),
            None,
            NormKind::Rms,
            EPSILON,
        );
        assert_eq!(normed.dims(), [0, 4]);
        let activated = activate(normed, Activation::Silu);
        assert_eq!(activated.dims(), [0, 4]);
        let dropped = dropout(activated, 0.0);
        assert_eq!(dropped.dims(), [0, 4]);
        let classes = Tensor::<1, Int>::zeros([0], &device);
        let losses = negative_log_likelihood(dropped, classes, 0.1);
        assert_eq!(losses.dims(), [0]);
        let grads = losses.sum().backward();
        assert_eq!(nothing.grad(&grads).unwrap().dims(), [0, 4]);
        assert_eq!(values(weight.grad(&grads).unwrap()), [0.0; 4]);
        let heads = Tensor::<4>::zeros([0, 2, 3, 4], &device).require_grad();
        let scoring = Scoring::scaled(AttentionMask::Causal, 4);
        let output = attention(heads.clone(), heads.clone(), heads.clone(), None, scoring);
        assert_eq!(output.dims(), [0, 2, 3, 4]);
        let grads = output.sum().backward();
        assert_eq!(heads.grad(&grads).unwrap().dims(), [0, 2, 3, 4]);
    }
}

/// In 16 bits, which some kernels read and which take the composed forms elsewhere, about the same comes out.
#[test]
fn sixteen_bits_are_read_as_well() {
    for found in devices() {
        for dtype in [FloatDType::BF16, FloatDType::F16] {
            if found.device.supports_dtype(dtype) {
                check_sixteen_bits(&found.device, dtype, &found.name);
            }
        }
    }
}

fn check_sixteen_bits(device: &Device, dtype: FloatDType, name: &str) {
    let device = device.clone().autodiff();
    // Far from 0 slopes are 0 or 1, and squares and cubes too large for 16 bits.
    let far = [-300.0, -100.0, -70.0, 70.0, 100.0, 300.0];
    for activation in formulas::ACTIVATIONS {
        let far = Tensor::<1>::from_data(data(&far, [6]), &device).cast(dtype);
        let far = far.require_grad();
        let grads = activate(far.clone(), activation).sum().backward();
        let right = f64::from(u8::from(activation != Activation::Tanh));
        let expected = [0.0, 0.0, 0.0, right, right, right];
        let slopes = values(far.grad(&grads).unwrap());
        assert_close(&slopes, &expected, 1e-2, &format!("{name}, {activation:?}"));
    }
    let half = |seed, shape: [usize; 2]| {
        let x = Tensor::<2>::from_data(data(&normal(seed, shape[0] * shape[1]), shape), &device);
        x.cast(dtype)
    };
    let weight = half(2, [1, 8]).squeeze_dim::<1>(0);
    type Operation<'a> = &'a dyn Fn(Tensor<2>) -> Tensor<2>;
    let heads = |x: Tensor<2>| x.reshape([1, 2, 3, 8]);
    let classes = Tensor::<1, Int>::from_data([0, 1, 2, 3, 4, 5], &device);
    let operations: [Operation; 5] = [
        &|x| negative_log_likelihood(x, classes.clone(), 0.1).unsqueeze(),
        &|x| activate(x, Activation::GeluTanh),
        &|x| activate(x, Activation::Gelu),
        &|x| {
            let weight = weight.clone().cast(x.dtype());
            normalize(x, weight, None, NormKind::Layer, EPSILON)
        },
        &|x| {
            let scoring = Scoring::scaled(AttentionMask::Causal, 8);
            attention(heads(x.clone()), heads(x.clone()), heads(x), None, scoring).reshape([6, 8])
        },
    ];
    for (number, operation) in operations.iter().enumerate() {
        let run = |input: Tensor<2>| {
            let input = input.detach().require_grad();
            let output = operation(input.clone());
            let grads = (output.clone() * output.clone()).sum().backward();
            [output, input.grad(&grads).unwrap()].map(|x| values(x.cast(FloatDType::F32)))
        };
        let input = half(1, [6, 8]);
        let [exact, rounded] = [input.clone().cast(FloatDType::F32), input].map(run);
        for (exact, rounded) in exact.iter().zip(&rounded) {
            let what = format!("{name}, {dtype:?}, operation {number}");
            assert_close(rounded, exact, 0.15, &what);
        }
    }
}

/// Five steps of AdamW against the same in 64-bit floats, with more values than one thread takes at a time.
#[test]
fn adamw_is_right_on_every_backend() {
    const N: usize = 40_000;
    let first = AdamWStep {
        number: 1,
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    let grads: Vec<Vec<f64>> = (0..5).map(|seed| normal(seed, N)).collect();
    let start = normal(11, N);
    let mut expected = start.clone();
    let (mut mean, mut square) = (vec![0.0; N], vec![0.0; N]);
    for (time, grads) in (1..).zip(&grads) {
        for (index, grad) in grads.iter().enumerate() {
            mean[index] = 0.9 * mean[index] + 0.1 * grad;
            square[index] = 0.99 * square[index] + 0.01 * grad * grad;
            let root = (square[index] / (1.0 - 0.99f64.powi(time))).sqrt() + 1e-8;
            let update = mean[index] / (1.0 - 0.9f64.powi(time)) / root;
            expected[index] = expected[index] * (1.0 - 0.01 * 0.1) - 0.01 * update;
        }
    }
    for found in devices() {
        let tensor =
            |values: &[f64]| Tensor::<2>::from_data(data(values, [N / 100, 100]), &found.device);
        let mut parameter = tensor(&start);
        let mut moments = [parameter.zeros_like(), parameter.zeros_like()];
        for (number, grads) in (1..).zip(&grads) {
            let step = AdamWStep { number, ..first };
            (parameter, moments) = adamw(parameter, tensor(grads), moments, step);
        }
        assert_close(&values(parameter), &expected, 1e-5, &found.name);
        let [moment_1, moment_2] = moments.map(values);
        assert_close(&moment_1, &mean, 1e-5, &found.name);
        assert_close(&moment_2, &square, 1e-5, &found.name);
    }
}

/// As many values as are meant to become 0, anywhere; the others are larger; and the gradient knows which.
#[test]
fn dropout_keeps_the_mean_and_its_gradient_the_same_values() {
    let _alone = alone();
    const N: usize = 40_000;
    const PROBABILITY: f64 = 0.3;
    for found in devices() {
        let device = found.device.clone().autodiff();
        let (input, upstream) = (normal(1, N), normal(2, N));
        let kept = 1.0 / (1.0 - PROBABILITY);
        // What each value was multiplied by, which is what its gradient is multiplied by.
        let draw = |seed| {
            device.seed(seed);
            let tensor =
                |values: &[f64]| Tensor::<2>::from_data(data(values, [100, N / 100]), &device);
            let tracked = tensor(&input).require_grad();
            let output = dropout(tracked.clone(), PROBABILITY);
            let grads = (output.clone() * tensor(&upstream)).sum().backward();
            let output = values(output);
            let factors: Vec<f64> = output
                .iter()
                .map(|&value| if value == 0.0 { 0.0 } else { kept })
                .collect();
            let times = |values: &[f64]| -> Vec<f64> {
                values
                    .iter()
                    .zip(&factors)
                    .map(|(value, factor)| value * factor)
                    .collect()
            };
            assert_close(&output, &times(&input), 1e-5, &found.name);
            let gradient = values(tracked.grad(&grads).unwrap());
            assert_close(
                &gradient,
                &times(&upstream),
                1e-5,
                &format!("{}, gradient", found.name),
            );
            assert_close(&values(tracked), &input, 1e-6, "what was given stays");
            factors
        };
        let output = draw(1);
        let is_dropped: Vec<bool> = output.iter().map(|&factor| factor == 0.0).collect();
        // Five standard deviations of a fair draw, also of neighbours that are dropped both.
        let assert_share = |count: usize, of: usize, p: f64, what: &str| {
            let (share, deviation) = (count as f64 / of as f64, (p * (1.0 - p) / of as f64).sqrt());
            assert!(
                (share - p).abs() < 5.0 * deviation,
                "{}: {what} {share}",
                found.name
            );
        };
        let dropped = is_dropped.iter().filter(|&&dropped| dropped).count();
        assert_share(dropped, N, PROBABILITY, "dropped");
        for distance in [1, 2, 16, N / 100, 1 << 14] {
            let pairs = is_dropped.iter().zip(&is_dropped[distance..]);
            let both = pairs.filter(|&(&a, &b)| a && b).count();
            assert_share(both, N - distance, PROBABILITY.powi(2), "both dropped");
        }
        assert_ne!(output, draw(2), "{}: another seed", found.name);
        assert_eq!(output, draw(1), "{}: the same seed", found.name);
        let whole = dropout(Tensor::<1>::ones([8], &found.device), 0.0);
        assert_eq!(values(whole), [1.0; 8], "{}", found.name);
    }
}

/// Probabilities are kept and larger or become 0, as many as are meant to, and the gradients are those of the attention
/// with just these left: also where the bias learns, and where heads share keys.
#[test]
fn attention_drops_probabilities_and_its_gradients_the_same() {
    let _alone = alone();
    const SHARE: f64 = 0.3;
    for found in devices() {
        let band = AttentionMask::Banded { window: 10 };
        for (group, mask, is_learned, [seq_q, seq_k]) in [
            (1, AttentionMask::Causal, false, [70, 75]),
            (2, band, false, [70, 75]),
            (2, band, true, [70, 75]),
            (2, AttentionMask::Full, true, [70, 75]),
            (1, AttentionMask::Full, false, [5, 530]),
        ] {
            let sizes = Sizes {
                batch: 2,
                n_kv_heads: 2,
                group,
                seq_q,
                seq_k,
                head_dim: seq_k,
                mask,
            };
            let what = format!(
                "{}, groups of {group}, {mask:?}, learned {is_learned}, {seq_k} keys",
                found.name
            );
            let device = found.device.clone().autodiff();
            let scoring = Scoring {
                dropout: SHARE,
                ..sizes.scoring()
            };
            let n_heads = sizes.n_kv_heads * group;
            let (n_scores, shape) = (n_heads * seq_q * seq_k, [1, n_heads, seq_q, seq_k]);
            let [query, key, value, upstream] = sizes.inputs();
            let added = normal(5, n_scores);
            let tensor =
                |values: &[f64], shape| Tensor::<4>::from_data(data(values, shape), &device);
            let attend = |value: Tensor<4>, scoring: Scoring| {
                device.seed(3);
                let inputs = [
                    tensor(&query, sizes.query()).require_grad(),
                    tensor(&key, sizes.key()).require_grad(),
                    value,
                ];
                let bias = is_learned.then(|| tensor(&added, shape).require_grad());
                let [q, k, v] = inputs.clone();
                (inputs, bias.clone(), attention(q, k, v, bias, scoring))
            };
            // Of an identity, attention gives its probabilities.
            let identity = Tensor::<2>::eye(seq_k, &device)
                .unsqueeze::<4>()
                .expand(sizes.key());
            let whole = values(attend(identity.clone(), sizes.scoring()).2);
            let left = values(attend(identity, scoring).2);
            let factors: Vec<f64> = left
                .iter()
                .map(|&value| {
                    if value == 0.0 {
                        0.0
                    } else {
                        1.0 / (1.0 - SHARE)
                    }
                })
                .collect();
            let expected: Vec<f64> = whole.iter().zip(&factors).map(|(p, f)| p * f).collect();
            assert_close(&left, &expected, 1e-5, &what);
            // Heads and texts differ.
            let heads: Vec<&[f64]> = factors.chunks(seq_q * seq_k).collect();
            assert!(
                (1..heads.len()).all(|head| heads[head] != heads[head - 1]),
                "{what}"
            );
            let visible = whole.iter().zip(&left).filter(|(p, _)| **p > 0.0);
            let (n, kept) = visible.fold((0.0, 0.0), |(n, kept), (_, &left)| {
                (n + 1.0, kept + f64::from(u8::from(left != 0.0)))
            });
            let deviation = (SHARE * (1.0 - SHARE) / n).sqrt();
            assert!(
                (kept / n - 1.0 + SHARE).abs() < 5.0 * deviation,
                "{what}: kept {kept} of {n}"
            );

            let (inputs, bias, output) =
                attend(tensor(&value, sizes.key()).require_grad(), scoring);
            let grads = (output.clone() * tensor(&upstream, sizes.query()))
                .sum()
                .backward();
            // The same composed from tracked operations, with the factors that were read.
            let (q, k, v) = (
                tensor(&query, sizes.query()).require_grad(),
                tensor(&key, sizes.key()).require_grad(),
                tensor(&value, sizes.key()).require_grad(),
            );
            let added = is_learned.then(|| tensor(&added, shape).require_grad());
            let weights = composed_probabilities(sizes, q.clone(), k.clone(), added.clone());
            let weights = weights * tensor(&factors, [2, n_heads, seq_q, seq_k]);
            let composed = weights.matmul(repeat_heads(sizes, v.clone()));
            assert_close(&values(output), &values(composed.clone()), 1e-5, &what);
            let expected = (composed * tensor(&upstream, sizes.query()))
                .sum()
                .backward();
            let pairs = inputs
                .into_iter()
                .chain(bias)
                .zip([q, k, v].into_iter().chain(added));
            for (number, (found, reference)) in pairs.enumerate() {
                let found = values(found.grad(&grads).unwrap());
                let reference = values(reference.grad(&expected).unwrap());
                assert_close(
                    &found,
                    &reference,
                    2e-5,
                    &format!("{what}, gradient {number}"),
                );
            }
        }
    }
}

/// What takes no part in a gradient gets none, and does not stand in the way of the others.
#[test]
fn gradients_skip_what_is_not_tracked() {
    for found in devices() {
        let device = found.device.clone().autodiff();
        let shape = [1, 2, 3, 4];
        let tensor = |seed| Tensor::<4>::from_data(data(&normal(seed, 24), shape), &device);
        let (query, key, value) = (tensor(1), tensor(2), tensor(3).require_grad());
        let output = attention(
            query.clone(),
            key.clone(),
            value.clone(),
            None,
            Scoring::scaled(AttentionMask::Causal, 4),
        );
        let grads = output.sum().backward();
        assert!(value.grad(&grads).is_some(), "{}", found.name);

        let matrix = |seed| Tensor::<2>::from_data(data(&normal(seed, 12), [3, 4]), &device);
        let (input, weight) = (matrix(4).require_grad(), matrix(5).transpose());
        let classes = Tensor::<1, Int>::zeros([3], &device);
        let sum = ClassLoss {
            smoothing: 0.0,
            scale: 1.0,
        };
        let loss = projected_loss(input.clone(), weight.clone(), None, classes, sum);
        let grads_of_loss = loss.backward();
        assert!(input.grad(&grads_of_loss).is_some(), "{}", found.name);
        assert!(weight.grad(&grads_of_loss).is_none(), "{}", found.name);

        // Of a feed-forward network, the weight alone learns, or what is before it.
        for learns in [[true, false], [false, true]] {
            let [input, weight] =
                [(4, learns[0]), (5, learns[1])].map(|(seed, learns)| match learns {
                    true => matrix(seed).require_grad(),
                    false => matrix(seed),
                });
            let transposed = weight.clone().transpose();
            let output = activated_linear(input.clone(), Activation::Relu, transposed, None);
            let grads = output.sum().backward();
            let found_grads = [input.grad(&grads).is_some(), weight.grad(&grads).is_some()];
            assert_eq!(found_grads, learns, "{}", found.name);
            let (gate, bias) = (matrix(6), Tensor::<1>::ones([3], &device).require_grad());
            let transposed = weight.clone().transpose();
            let (up, relu) = (input.clone(), Activation::Relu);
            let output = gated_linear(gate.clone(), up, relu, transposed, Some(bias.clone()));
            let grads = output.sum().backward();
            let found_grads = [input.grad(&grads).is_some(), weight.grad(&grads).is_some()];
            assert_eq!(found_grads, learns, "{}", found.name);
            assert!(gate.grad(&grads).is_none(), "{}", found.name);
            assert_eq!(values(bias.grad(&grads).unwrap()), [3.0; 3]);
        }
        assert!(
            query.grad(&grads).is_none() && key.grad(&grads).is_none(),
            "{}",
            found.name
        );
    }
}

/// Many classes, and some that are hard to tell apart: two that are the same, two
/// that differ in the last digit, one that is zero, one that is much larger than the others, one that is tiny.
fn classes(width: usize) -> Tensor<2> {
    let n = (1 << 22) / width + 5;
    let mut values: Vec<f32> = normal(1, n * width).iter().map(|&x| x as f32).collect();
    for (from, to) in [(70, 20), (71, 21)] {
        values.copy_within(from * width..(from + 1) * width, to * width);
    }
    values[21 * width] *= 1.0 + f32::EPSILON;
    for (class, factor) in [(30, 0.0), (31, 20.0), (32, 1e-30)] {
        let row = &mut values[class * width..][..width];
        row.iter_mut().for_each(|value| *value *= factor);
    }
    Tensor::from_data(TensorData::new(values, [n, width]), &processor())
}

/// The first of the highest logits.
fn best_by_logits(input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> i64 {
    let logits = values(linear(input, weight, bias));
    let mut best = 0;
    for (class, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = class;
        }
    }
    best as i64
}

fn best_by_copy(
    quantized: &Quantized,
    input: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> i64 {
    let best = quantized.best(input, weight, bias);
    best.into_data().iter::<i64>().next().unwrap()
}

#[test]
fn a_copy_in_8_bits_finds_what_the_logits_say() {
    for width in [33, 96] {
        let table = classes(width);
        let weight = table.clone().transpose();
        let [n, _] = table.dims();
        let quantized = Quantized::of(weight.clone()).expect("it is finite");
        let row = |class: usize| table.clone().narrow(0, class, 1);
        let random = |seed| Tensor::from_data(data(&normal(seed, width), [1, width]), &processor());
        let inputs = [20, 21, 31, 32].map(row).into_iter();
        let inputs: Vec<Tensor<2>> = inputs.chain((2..12).map(random)).collect();
        let biases = [0.0, 1e-3, 30.0].map(|size| {
            let bias = Tensor::<1>::from_data(data(&normal(9, n), [n]), &processor());
            (size > 0.0).then(|| bias * size)
        });
        // Where all are zero, the first is the highest; where they overflow, none is.
        for factor in [1.0, -1.0, 1e-20, 1e20, 0.0, f32::INFINITY, 1e-40] {
            for bias in &biases {
                for input in &inputs {
                    let input = input.clone() * factor;
                    let expected = best_by_logits(input.clone(), weight.clone(), bias.clone());
                    let found = best_by_copy(&quantized, input, weight.clone(), bias.clone());
                    assert_eq!(found, expected, "width {width}, times {factor}");
                }
            }
        }
    }
}

/// Few classes that are not zero, among many.
fn check_best(rows: &[Vec<f32>], input: &[f32], best: i64) {
    let width = input.len();
    let n = (1 << 22) / width + 1;
    let mut values = vec![0.0; n * width];
    for (class, row) in rows.iter().enumerate() {
        values[class * width..][..width].copy_from_slice(row);
    }
    let table = Tensor::<2>::from_data(TensorData::new(values, [n, width]), &processor());
    let weight = table.transpose();
    let input = TensorData::new(input.to_vec(), [1, width]);
    let input = Tensor::<2>::from_data(input, &processor());
    let quantized = Quantized::of(weight.clone()).expect("it is finite");
    let by_logits = best_by_logits(input.clone(), weight.clone(), None);
    assert_eq!(by_logits, best, "the case is as it is meant");
    let found = best_by_copy(&quantized, input, weight, None);
    assert_eq!(found, best);
}

/// Copies that are off by nearly the bound, and sums that are nearly too large for whole numbers.
#[test]
fn a_copy_in_8_bits_is_right_at_its_bounds() {
    let with = |first: f32, rest: f32, width: usize| [vec![first], vec![rest; width - 1]].concat();
    // The copy of class 1 is 127 and zeros, so its logit, which is the highest, counts as 0. That of class 0 is nearly exact.
    let input = with(0.0, 1.0, 96);
    check_best(&[with(0.0, 0.44, 96), with(127.0, 0.49, 96)], &input, 1);
    // The same of the input: all but the first count as 0.
    let input = with(32_000.0, 0.49, 96);
    check_best(&[with(0.0, 0.9, 96), with(0.0, 1.0, 96)], &input, 1);
    for width in [768, 3000] {
        let (ones, more) = (vec![1.0; width], vec![1.001; width]);
        check_best(&[ones, more.clone(), more.clone()], &vec![5.0; width], 1);
        check_best(&[more.clone(), vec![-1.1; width]], &vec![-5.0; width], 1);
    }
}

/// Several rows, matrices in any order, and what the logits have to answer: too many classes alike, and matrices with gaps.
#[test]
fn a_copy_in_8_bits_finds_the_best_of_any_rows() {
    let table = classes(64);
    let [n, width] = table.dims();
    let weight = table.clone().transpose();
    let rows = table.clone().narrow(0, 40, 7);
    let row = |index| rows.clone().narrow(0, index, 1);
    let expected: Vec<i64> = (0..7)
        .map(|index| best_by_logits(row(index), weight.clone(), None))
        .collect();
    let by_input = Tensor::<2>::from_data(weight.clone().into_data(), &processor());
    let gaps = Tensor::cat(vec![table.clone(), table.clone()], 1).narrow(1, width, width);
    for weight in [weight.clone(), by_input] {
        let quantized = Quantized::of(weight.clone()).expect("it is finite");
        for weight in [weight, gaps.clone().transpose()] {
            let best = quantized.best(rows.clone(), weight.clone(), None);
            let best: Vec<i64> = best.into_data().iter().collect();
            assert_eq!(best, expected);
            let none = quantized.best(Tensor::zeros([0, width], &processor()), weight, None);
            assert_eq!(none.dims(), [0]);
        }
    }
    // Not a number is not higher than any, as it is for the logits.
    let quantized = Quantized::of(weight.clone()).expect("it is finite");
    let mut bias = vec![0.0f32; n];
    bias[3] = f32::NAN;
    let bias = Tensor::<1>::from_data(bias.as_slice(), &processor());
    let found = best_by_copy(&quantized, row(1), weight, Some(bias));
    assert_eq!(found, expected[1]);
    let alike = Tensor::<2>::ones([n, width], &processor()).transpose();
    let quantized = Quantized::of(alike.clone()).expect("it is finite");
    let found = best_by_copy(&quantized, row(1), alike.clone(), None);
    assert_eq!(found, best_by_logits(row(1), alike, None));
}

#[test]
fn a_copy_in_8_bits_is_of_finite_numbers_on_flex() {
    let table = Tensor::<2>::from_data(data(&normal(1, 99), [11, 9]), &processor());
    for weight in [table.clone(), table.clone().transpose()] {
        let first = weight.clone().slice([0..1, 0..1]);
        let with_first = |value: f32| {
            let first = first.clone() * value;
            Quantized::of(weight.clone().slice_assign([0..1, 0..1], first))
        };
        assert!(with_first(1.0).is_some());
        assert!(with_first(f32::NAN).is_none(), "not a number has no bound");
        assert!(with_first(f32::INFINITY).is_none(), "nor has infinity");
    }
    assert!(Quantized::of(table.narrow(1, 0, 4)).is_none(), "gaps");
    let nothing = Tensor::zeros([0, 9], &processor());
    assert!(Quantized::of(nothing).is_none());
    for found in devices()
        .into_iter()
        .filter(|found| found.backend.name() != "flex")
    {
        let weight = Tensor::<2>::ones([16, 64], &found.device);
        assert!(Quantized::of(weight).is_none(), "{}", found.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A value is off by half of the scale at most, and one of the input by half of its unit.
    #[test]
    fn a_linear_layer_in_8_bits_is_off_by_its_rounding(
        rows in 0usize..6,
        d_input in prop_oneof![1usize..4, 14usize..19, 46usize..52, 60usize..140],
        d_output in prop_oneof![1usize..4, 126usize..132, 250usize..400],
        is_by_column in any::<bool>(),
        has_bias in any::<bool>(),
        size in prop_oneof![Just(0.0), Just(1e-3), Just(1.0), Just(1e20)],
    ) {
        let weight = Tensor::<2>::from_data(
            data(&normal(1, d_input * d_output), [d_input, d_output]),
            &processor(),
        );
        let weight = match is_by_column {
            true => Tensor::from_data(weight.clone().transpose().into_data(), &processor()).transpose(),
            false => weight,
        };
        let shape = [rows, 1, d_input];
        let input = Tensor::<3>::from_data(data(&normal(2, rows * d_input), shape), &processor());
        let input = input * size;
        let bias = Tensor::<1>::from_data(data(&normal(3, d_output), [d_output]), &processor());
        let bias = has_bias.then_some(bias);
        let quantized = Quantized::of(weight.clone()).expect("it is finite");
        let found = quantized.linear(input.clone(), bias.clone());
        prop_assert_eq!(found.dims(), [rows, 1, d_output]);
        let [found, expected] =
            [found, linear(input.clone(), weight.clone(), bias)].map(values);
        let (weights, inputs) = (values(weight), values(input));
        let scale = |output: usize| {
            let column = weights.iter().skip(output).step_by(d_output);
            column.fold(0f64, |most, x| most.max(x.abs())) / 127.0
        };
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let row = &inputs[index / d_output * d_input..][..d_input];
            let total: f64 = row.iter().map(|x| x.abs()).sum();
            let largest = row.iter().fold(0f64, |most, x| most.max(x.abs()));
            // Units are a share of 32,000 of the largest, or more where fewer bits leave room for the sum.
            let unit = largest / 32_000f64.min(2f64.powi(24) / d_input as f64);
            let scale = scale(index % d_output);
            let bound = scale * (total + 127.0 * d_input as f64 * unit) / 2.0;
            let rounding = 1e-5 * (127.0 * scale * total + expected.abs());
            prop_assert!((found - expected).abs() <= bound + rounding, "{found} and {expected}");
        }
    }
}

/// What the numbers cannot hold goes through as it does elsewhere.
#[test]
fn a_linear_layer_in_8_bits_takes_any_input() {
    let weight = Tensor::<2>::from_data(data(&normal(1, 40 * 30), [40, 30]), &processor());
    let quantized = Quantized::of(weight).expect("it is finite");
    let with = |value: f32| {
        let mut input = vec![1.0f32; 40];
        input[3] = value;
        let input = Tensor::<2>::from_data(TensorData::new(input, [1, 40]), &processor());
        values(quantized.linear(input, None))
    };
    assert!(with(f32::NAN).iter().all(|value| value.is_nan()));
    assert!(with(f32::INFINITY).iter().all(|value| !value.is_finite()));
    assert!(with(0.0).iter().all(|value| value.is_finite()));
}

/// A learned bias of any broadcast shape: output and gradient against the same from tracked operations.
fn check_bias(sizes: Sizes, shape: [usize; 4], device: &Device, name: &str) {
    let device = device.clone().autodiff();
    let [query, key, value, weights] = sizes.inputs();
    let tensor = |values: &[f64], shape| Tensor::<4>::from_data(data(values, shape), &device);
    let run = |ours: bool| {
        let bias = tensor(&normal(5, shape.iter().product()), shape).require_grad();
        let query = tensor(&query, sizes.query()).require_grad();
        let (key, value) = (tensor(&key, sizes.key()), tensor(&value, sizes.key()));
        let output = match ours {
            true => attention(
                query.clone(),
                key,
                value,
                Some(bias.clone()),
                sizes.scoring(),
            ),
            false => composed_attention(sizes, query.clone(), key, value, Some(bias.clone())),
        };
        let grads = (output.clone() * tensor(&weights, sizes.query()))
            .sum()
            .backward();
        let grad = |tensor: Tensor<4>| values(tensor.grad(&grads).expect("it takes part"));
        [values(output.inner()), grad(query), grad(bias)]
    };
    for (ours, composed) in run(true).iter().zip(run(false)) {
        assert_close(
            ours,
            &composed,
            2e-5,
            &format!("{name}, {sizes:?}, bias {shape:?}"),
        );
    }
}

#[test]
fn a_learned_bias_is_added_and_has_its_gradient() {
    for found in devices() {
        for (group, mask) in [(1, AttentionMask::Full), (2, AttentionMask::Causal)] {
            let sizes = Sizes {
                batch: 2,
                n_kv_heads: 3,
                group,
                seq_q: 4,
                seq_k: 5,
                head_dim: 6,
                mask,
            };
            let n_heads = 3 * group;
            for shape in [
                [2, n_heads, 4, 5],
                [1, n_heads, 4, 5],
                [2, 1, 1, 5],
                [1, 1, 4, 5],
            ] {
                check_bias(sizes, shape, &found.device, &found.name);
            }
        }
    }
}

/// Activations and their slopes against 64-bit floats; `Φ` by Simpson's rule from the density, other slopes by
/// differences. Far from 0 they are 0 or `x`, or −1 and 1.
#[test]
fn activations_and_their_slopes_are_exact() {
    let near: Vec<f64> = (-40..=40).map(|i| f64::from(i) / 10.0).collect();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let tanh = |x: f64| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        0.5 * x * (1.0 + inner.tanh())
    };
    let silu = |x: f64| x * sigmoid(x);
    let exact = |x: f64| x * normal_distribution(x);
    let slope = |x: f64| normal_distribution(x) + x * normal_density(x);
    let difference = |f: &dyn Fn(f64) -> f64, x: f64| (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;
    type Function<'a> = &'a dyn Fn(f64) -> f64;
    let step = |x: f64| f64::from(u8::from(x > 0.0));
    let cases: [(Activation, Function, Function); 5] = [
        (Activation::Relu, &|x| x.max(0.0), &step),
        (Activation::Gelu, &exact, &slope),
        (Activation::GeluTanh, &tanh, &|x| difference(&tanh, x)),
        (Activation::Silu, &silu, &|x| difference(&silu, x)),
        (Activation::Tanh, &f64::tanh, &|x| x.cosh().powi(-2)),
    ];
    for found in devices() {
        let device = found.device.clone().autodiff();
        for (activation, value, slope) in &cases {
            let run = |x: &[f64]| {
                let input = Tensor::<1>::from_data(data(x, [x.len()]), &device).require_grad();
                let output = activate(input.clone(), *activation);
                let upstream = normal(3, x.len());
                let weighted =
                    output.clone() * Tensor::from_data(data(&upstream, [x.len()]), &device);
                let grads = weighted.sum().backward();
                let gradient = values(input.grad(&grads).unwrap());
                let slopes = gradient
                    .iter()
                    .zip(&upstream)
                    .map(|(grad, upstream)| grad / upstream);
                [values(output), slopes.collect()]
            };
            let what = format!("{}, {activation:?}", found.name);
            let [output, slopes] = run(&near);
            let expected: Vec<f64> = near.iter().map(|&x| value(x)).collect();
            assert_close(&output, &expected, 1e-5, &what);
            let expected: Vec<f64> = near.iter().map(|&x| slope(x)).collect();
            assert_close(&slopes, &expected, 2e-5, &format!("{what}, slope"));
            let [output, slopes] = run(&[-300.0, 300.0]);
            let (values, expected) = match activation {
                Activation::Tanh => ([-1.0, 1.0], [0.0, 0.0]),
                _ => ([0.0, 300.0], [0.0, 1.0]),
            };
            assert_close(&output, &values, 1e-5, &format!("{what}, far"));
            assert_close(&slopes, &expected, 1e-5, &format!("{what}, far slope"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn losses_of_a_projection_are_right_for_any_sizes(
        rows in 1usize..6,
        d_model in 1usize..7,
        n_classes in 1usize..40,
        tied: bool,
        bias: bool,
        smoothing in prop_oneof![Just(0.0), 0.0..0.5],
    ) {
        let sizes = Projection { rows, d_model, n_classes, tied, bias, smoothing, upstream: 1.0 };
        check_projected_loss(sizes, &processor(), "flex");
    }

    #[test]
    fn attention_is_right_for_any_sizes(
        batch in 1usize..3,
        n_kv_heads in 1usize..4,
        group in 1usize..4,
        seq_q in 1usize..6,
        past in 0usize..5,
        head_dim in 1usize..7,
        mask in prop_oneof![
            Just(AttentionMask::Full),
            Just(AttentionMask::Causal),
            (1usize..5).prop_map(|window| AttentionMask::Banded { window }),
        ],
    ) {
        let seq_k = seq_q + past;
        let sizes = Sizes { batch, n_kv_heads, group, seq_q, seq_k, head_dim, mask };
        check_attention(sizes, &processor(), "flex");
    }

    #[test]
    fn normalisation_is_right_for_any_sizes(
        rows in 1usize..6,
        d_model in 2usize..20,
        layer: bool,
        bias: bool,
    ) {
        let kind = if layer { NormKind::Layer } else { NormKind::Rms };
        check_norm(Rows { rows, d_model, kind, bias }, &processor(), "flex");
    }
}
