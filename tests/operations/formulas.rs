//! Operations whose formula is a loop over flat vectors: rotary positions, gates, rows of tables and their sums, residual
//! sums with their norms. Outputs against the loop in 64-bit floats, gradients against its finite differences.

use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_zoo::ops::{
    Activation, NormKind, Pairing, activated_linear, add_normalize, add_rows, gate, gated_linear,
    gather_rows, rotate, scale, square_sum,
};
use proptest::prelude::*;

use crate::common::{assert_close, data, devices, normal, normal_distribution, processor, values};
use crate::{EPSILON, Rows, differences, dot, reference_norm};

/// An operation on flat inputs, and its formula.
struct Formula<'a> {
    name: String,
    /// The lengths of the inputs.
    lengths: Vec<usize>,
    operation: &'a dyn Fn(&[Tensor<1>]) -> Tensor<1>,
    formula: &'a dyn Fn(&[Vec<f64>]) -> Vec<f64>,
}

impl Formula<'_> {
    fn check(&self, device: &Device) {
        let inputs: Vec<Vec<f64>> = self
            .lengths
            .iter()
            .zip(1..)
            .map(|(&length, seed)| normal(seed, length))
            .collect();
        let expected = (self.formula)(&inputs);
        let upstream = normal(99, expected.len());
        let tensors = |device: &Device| -> Vec<Tensor<1>> {
            let tensor =
                |values: &Vec<f64>| Tensor::from_data(data(values, [values.len()]), device);
            inputs.iter().map(tensor).collect()
        };
        let plain = (self.operation)(&tensors(device));
        assert_close(&values(plain), &expected, 2e-5, &self.name);

        let device = device.clone().autodiff();
        let tracked: Vec<Tensor<1>> = tensors(&device)
            .into_iter()
            .map(Tensor::require_grad)
            .collect();
        let output = (self.operation)(&tracked);
        assert_close(&values(output.clone()), &expected, 2e-5, &self.name);
        let weights = Tensor::<1>::from_data(data(&upstream, [upstream.len()]), &device);
        let grads = (output * weights).sum().backward();
        for (index, tensor) in tracked.iter().enumerate() {
            let by_input = |x: &[f64]| {
                let mut inputs = inputs.clone();
                inputs[index] = x.to_vec();
                dot(&(self.formula)(&inputs), &upstream)
            };
            let what = format!("{}, gradient of input {index}", self.name);
            let found = tensor.grad(&grads).map(values).unwrap_or_default();
            assert_close(&found, &differences(by_input, &inputs[index]), 5e-5, &what);
        }
    }
}

fn indices(of: &[usize], device: &Device) -> Tensor<1, Int> {
    let of: Vec<i32> = of.iter().map(|&index| index as i32).collect();
    let length = of.len();
    Tensor::from_data(TensorData::new(of, [length]), device)
}

/// Heads that lie in memory as projections leave them, `[batch, seq, n_heads · head_dim]`.
#[derive(Clone, Copy, Debug)]
struct Heads {
    batch: usize,
    n_heads: usize,
    seq: usize,
    head_dim: usize,
    n_pairs: usize,
    pairing: Pairing,
    /// Whether each sequence has positions of its own.
    own_positions: bool,
}

fn check_rotary(sizes: Heads, device: &Device, name: &str) {
    let Heads {
        batch,
        n_heads,
        seq,
        head_dim,
        n_pairs,
        pairing,
        own_positions,
    } = sizes;
    let of = if own_positions { batch } else { 1 };
    let angles = normal(7, of * seq * n_pairs);
    let operation = |inputs: &[Tensor<1>]| {
        let device = inputs[0].device();
        let table = |function: fn(f64) -> f64| {
            let values: Vec<f64> = angles.iter().map(|&angle| 1.1 * function(angle)).collect();
            Tensor::<4>::from_data(data(&values, [of, 1, seq, n_pairs]), &device)
        };
        let heads = inputs[0]
            .clone()
            .reshape([batch, seq, n_heads, head_dim])
            .swap_dims(1, 2);
        let turned = rotate(heads, table(f64::cos), table(f64::sin), pairing);
        assert_eq!(turned.dims(), [batch, n_heads, seq, head_dim]);
        turned.swap_dims(1, 2).reshape([-1])
    };
    let formula = |inputs: &[Vec<f64>]| {
        let mut output = inputs[0].clone();
        for (place, head) in output.chunks_exact_mut(head_dim).enumerate() {
            let (sequence, position) = (place / n_heads / seq % of, place / n_heads % seq);
            for pair in 0..n_pairs {
                let (first, second) = match pairing {
                    Pairing::Half => (pair, pair + n_pairs),
                    Pairing::Interleaved => (2 * pair, 2 * pair + 1),
                };
                let (sin, cos) = angles[(sequence * seq + position) * n_pairs + pair].sin_cos();
                let (x, y) = (head[first], head[second]);
                head[first] = 1.1 * (x * cos - y * sin);
                head[second] = 1.1 * (y * cos + x * sin);
            }
        }
        output
    };
    let name = format!("{name}, {sizes:?}");
    let lengths = vec![batch * n_heads * seq * head_dim];
    Formula {
        name,
        lengths,
        operation: &operation,
        formula: &formula,
    }
    .check(device);
}

pub const ACTIVATIONS: [Activation; 5] = [
    Activation::Relu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Tanh,
];

fn activated(x: f64, activation: Activation) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Relu => x.max(0.0),
        Activation::Gelu => x * normal_distribution(x),
        Activation::GeluTanh => {
            x * sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3)))
        }
        Activation::Silu => x * sigmoid(x),
        Activation::Tanh => x.tanh(),
    }
}

fn check_gate(length: usize, activation: Activation, device: &Device, name: &str) {
    let operation = |inputs: &[Tensor<1>]| gate(inputs[0].clone(), inputs[1].clone(), activation);
    let formula = |inputs: &[Vec<f64>]| {
        let pairs = inputs[0].iter().zip(&inputs[1]);
        pairs
            .map(|(&gate, up)| activated(gate, activation) * up)
            .collect()
    };
    let (name, lengths) = (
        format!("{name}, {activation:?} of {length}"),
        vec![length; 2],
    );
    Formula {
        name,
        lengths,
        operation: &operation,
        formula: &formula,
    }
    .check(device);
}

/// The second half of a feed-forward network.
#[derive(Clone, Copy, Debug)]
struct Half {
    rows: usize,
    d_input: usize,
    d_output: usize,
    activation: Activation,
    gated: bool,
    bias: bool,
}

fn check_activated_linear(half: Half, device: &Device, name: &str) {
    let Half {
        rows,
        d_input,
        d_output,
        activation,
        gated,
        bias,
    } = half;
    // Input, weight, then the gate and the bias, where they are.
    let mut lengths = vec![rows * d_input, d_input * d_output];
    lengths.extend(gated.then_some(rows * d_input));
    lengths.extend(bias.then_some(d_output));
    let operation = |inputs: &[Tensor<1>]| {
        let input = inputs[0].clone().reshape([rows, d_input]);
        let weight = inputs[1].clone().reshape([d_input, d_output]);
        let bias = bias.then(|| inputs[inputs.len() - 1].clone());
        let output = match gated {
            true => {
                let gate = inputs[2].clone().reshape([rows, d_input]);
                gated_linear(gate, input, activation, weight, bias)
            }
            false => activated_linear(input, activation, weight, bias),
        };
        output.reshape([-1])
    };
    let formula = |inputs: &[Vec<f64>]| {
        let inner = |at: usize| match gated {
            true => activated(inputs[2][at], activation) * inputs[0][at],
            false => activated(inputs[0][at], activation),
        };
        let value = |place: usize| {
            let (row, column) = (place / d_output, place % d_output);
            let terms =
                (0..d_input).map(|k| inner(row * d_input + k) * inputs[1][k * d_output + column]);
            let shift = bias.then(|| inputs[inputs.len() - 1][column]);
            terms.sum::<f64>() + shift.unwrap_or(0.0)
        };
        (0..rows * d_output).map(value).collect()
    };
    Formula {
        name: format!("{name}, {half:?}"),
        lengths,
        operation: &operation,
        formula: &formula,
    }
    .check(device);
}

/// Some rows are taken twice, so that their gradients add up, also to what the table has already.
fn check_gather(n: usize, width: usize, taken: &[usize], device: &Device, name: &str) {
    let operation = |inputs: &[Tensor<1>]| {
        let table = inputs[0].clone().reshape([n, width]);
        let rows = gather_rows(table.clone(), indices(taken, &table.device()));
        Tensor::cat(
            vec![rows.reshape([-1]), (table.clone() * table).reshape([-1])],
            0,
        )
    };
    let formula = |inputs: &[Vec<f64>]| {
        let row = |&row: &usize| inputs[0][row * width..][..width].to_vec();
        let mut output: Vec<f64> = taken.iter().flat_map(row).collect();
        output.extend(inputs[0].iter().map(|x| x * x));
        output
    };
    let (name, lengths) = (
        format!("{name}, rows {taken:?} of {n} of {width}"),
        vec![n * width],
    );
    Formula {
        name,
        lengths,
        operation: &operation,
        formula: &formula,
    }
    .check(device);
}

fn check_add(n: usize, width: usize, places: &[usize], device: &Device, name: &str) {
    let operation = |inputs: &[Tensor<1>]| {
        let [total, rows, weights] = [0, 1, 2].map(|index| inputs[index].clone());
        let total = total.reshape([n, width]);
        let rows = rows.reshape([places.len(), width]);
        let weights = weights.reshape([places.len(), 1]);
        let places = indices(places, &total.device());
        add_rows(total, rows, weights, places).reshape([-1])
    };
    let formula = |inputs: &[Vec<f64>]| {
        let mut total = inputs[0].clone();
        for (row, &place) in places.iter().enumerate() {
            for column in 0..width {
                total[place * width + column] += inputs[2][row] * inputs[1][row * width + column];
            }
        }
        total
    };
    let name = format!("{name}, {places:?} added to {n} of {width}");
    let lengths = vec![n * width, places.len() * width, places.len()];
    Formula {
        name,
        lengths,
        operation: &operation,
        formula: &formula,
    }
    .check(device);
}

/// In any layout, and more values than one thread takes at a time.
fn check_scale(shape: [usize; 2], factor: f64, device: &Device, name: &str) {
    let input = normal(5, shape[0] * shape[1]);
    let tensor = Tensor::<2>::from_data(data(&input, shape), device);
    let factor_tensor = Tensor::<1>::from_data(data(&[factor], [1]), device);
    let squares: f64 = input.iter().map(|x| x * x).sum();
    for view in [|x: Tensor<2>| x, Tensor::transpose] {
        let what = format!("{name}, {shape:?} times {factor}");
        let sum = values(square_sum(view(tensor.clone())))[0];
        assert!(
            (sum / squares - 1.0).abs() < 1e-5,
            "{what}: {sum}, {squares}"
        );
        let scaled = view(scale(view(tensor.clone()), factor_tensor.clone()));
        let expected: Vec<f64> = input.iter().map(|x| x * factor).collect();
        assert_close(&values(scaled), &expected, 1e-6, &what);
        assert_close(
            &values(tensor.clone()),
            &input,
            1e-7,
            "what else is held stays",
        );
    }
}

/// Both results take part, so that the gradient of the sum has two parts.
fn check_residual(sizes: Rows, device: &Device, name: &str) {
    let Rows {
        rows,
        d_model,
        kind,
        bias,
    } = sizes;
    let operation = |inputs: &[Tensor<1>]| {
        let [input, added] = [0, 1].map(|index| inputs[index].clone().reshape([rows, d_model]));
        let bias = inputs.get(3).cloned();
        let (sum, output) = add_normalize(input, added, inputs[2].clone(), bias, kind, EPSILON);
        Tensor::cat(vec![sum, output], 0).reshape([-1])
    };
    let formula = |inputs: &[Vec<f64>]| {
        let pairs = inputs[0].iter().zip(&inputs[1]);
        let mut output: Vec<f64> = pairs.map(|(x, y)| x + y).collect();
        let shift = inputs.get(3).cloned().unwrap_or_else(|| vec![0.0; d_model]);
        output.extend(reference_norm(sizes, &output, &inputs[2], &shift));
        output
    };
    let mut lengths = vec![rows * d_model, rows * d_model, d_model];
    lengths.extend(bias.then_some(d_model));
    let name = format!("{name}, residual, {sizes:?}");
    Formula {
        name,
        lengths,
        operation: &operation,
        formula: &formula,
    }
    .check(device);
}

#[test]
fn formulas_hold_on_every_backend() {
    for found in devices() {
        let (device, name) = (&found.device, found.name.as_str());
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            for (n_pairs, own_positions) in [(3, false), (2, true)] {
                let sizes = Heads {
                    batch: 2,
                    n_heads: 2,
                    seq: 3,
                    head_dim: 6,
                    n_pairs,
                    pairing,
                    own_positions,
                };
                check_rotary(sizes, device, name);
            }
        }
        for activation in ACTIVATIONS {
            check_gate(7, activation, device, name);
            for (gated, bias) in [(false, true), (true, false)] {
                let half = Half {
                    rows: 3,
                    d_input: 5,
                    d_output: 2,
                    activation,
                    gated,
                    bias,
                };
                check_activated_linear(half, device, name);
            }
        }
        for factor in [0.25, 1.0] {
            check_scale([3, 5], factor, device, name);
            check_scale([1, 7], factor, device, name);
        }
        check_gather(5, 3, &[4, 0, 4, 2], device, name);
        check_add(4, 3, &[3, 0, 3], device, name);
        for (kind, bias) in [(NormKind::Layer, true), (NormKind::Rms, false)] {
            check_residual(
                Rows {
                    rows: 2,
                    d_model: 6,
                    kind,
                    bias,
                },
                device,
                name,
            );
        }
    }
}

/// Nothing is taken, added, turned or normalised without an error.
#[test]
fn formulas_hold_for_nothing() {
    for found in devices() {
        let device = &found.device;
        let table = Tensor::<2>::ones([3, 2], device);
        let none = indices(&[], device);
        let rows = gather_rows(table.clone(), none.clone());
        assert_eq!(rows.dims(), [0, 2], "{}", found.name);
        let weights = Tensor::ones([0, 1], device);
        let total = add_rows(table, rows, weights, none);
        assert_close(&values(total), &[1.0; 6], 0.0, &found.name);
    }
    let empty = Tensor::<2>::zeros([0, 4], &processor());
    let gated = gate(empty.clone(), empty.clone(), Activation::Silu);
    assert_eq!(gated.dims(), [0, 4]);
    let weight = Tensor::ones([4, 3], &processor());
    let output = gated_linear(empty.clone(), empty.clone(), Activation::Silu, weight, None);
    assert_eq!(output.dims(), [0, 3]);
    let weight = Tensor::ones([4], &processor());
    let (sum, normed) = add_normalize(empty.clone(), empty, weight, None, NormKind::Rms, EPSILON);
    assert_eq!((sum.dims(), normed.dims()), ([0, 4], [0, 4]));
    let heads = Tensor::<4>::zeros([0, 2, 3, 4], &processor());
    let table = Tensor::<4>::zeros([1, 1, 3, 2], &processor());
    assert_eq!(
        rotate(heads, table.clone(), table, Pairing::Half).dims(),
        [0, 2, 3, 4]
    );
}

/// More rows than one thread takes at a time, against tracked operations.
#[test]
fn formulas_hold_for_large_sizes() {
    check_scale([300, 200], 0.5, &processor(), "flex");
    let (n, width, n_rows) = (90, 700, 120);
    let device = processor().autodiff();
    let tensor = |seed, shape: [usize; 2]| {
        let values = normal(seed, shape[0] * shape[1]);
        Tensor::<2>::from_data(data(&values, shape), &device).require_grad()
    };
    let [total, rows, weights] = [
        tensor(1, [n, width]),
        tensor(2, [n_rows, width]),
        tensor(3, [n_rows, 1]),
    ];
    let places: Vec<usize> = (0..n_rows).map(|row| row * row % n).collect();
    let places = indices(&places, &device);
    let scale = Tensor::<1>::from_data(data(&normal(4, width), [width]), &device);
    let results = |output: Tensor<2>| {
        let grads = (output.clone() * output.clone()).sum().backward();
        let grads =
            [&total, &rows, &weights].map(|x| x.grad(&grads).map(values).unwrap_or_default());
        [vec![values(output)], grads.into()].concat()
    };
    let (t, r, w) = (total.clone(), rows.clone(), weights.clone());
    let norm = |x: Tensor<2>| {
        let variance = x.clone().square().mean_dim(1) + EPSILON;
        x / variance.sqrt() * scale.clone().unsqueeze()
    };
    let other = r.clone();
    let gathered = |x: Tensor<2>| gate(x, other.clone(), Activation::Silu);
    let pairs: [[Tensor<2>; 2]; 3] = [
        [
            add_rows(t.clone(), r.clone(), w.clone(), places.clone()),
            t.clone() + one_hot(&places, n).matmul(r.clone() * w.clone()),
        ],
        [
            gathered(gather_rows(t.clone(), places.clone())),
            burn::tensor::activation::silu(one_hot(&places, n).transpose().matmul(t.clone()))
                * r.clone(),
        ],
        {
            let taken = || gather_rows(t.clone(), places.clone());
            let kind = NormKind::Rms;
            let (sum, normed) =
                add_normalize(taken(), r.clone(), scale.clone(), None, kind, EPSILON);
            let composed = taken() + r;
            [sum + normed, composed.clone() + norm(composed)]
        },
    ];
    for (number, [ours, composed]) in pairs.into_iter().enumerate() {
        for (ours, composed) in results(ours).iter().zip(results(composed)) {
            assert_close(ours, &composed, 1e-4, &format!("pair {number}"));
        }
    }
}

/// `[n, n_rows]`: 1 where a row is added.
fn one_hot(places: &Tensor<1, Int>, n: usize) -> Tensor<2> {
    let [n_rows] = places.dims();
    let rows = Tensor::<1, Int>::arange(0..n as i64, &places.device()).reshape([n, 1]);
    let places = places.clone().reshape([1, n_rows]);
    rows.expand([n, n_rows])
        .equal(places.expand([n, n_rows]))
        .float()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rotary_positions_hold_for_any_sizes(
        batch in 1usize..3,
        n_heads in 1usize..4,
        seq in 1usize..5,
        n_pairs in 1usize..4,
        rest in 0usize..3,
        interleaved: bool,
        own_positions: bool,
    ) {
        let pairing = if interleaved { Pairing::Interleaved } else { Pairing::Half };
        let head_dim = 2 * n_pairs + rest;
        let sizes = Heads { batch, n_heads, seq, head_dim, n_pairs, pairing, own_positions };
        check_rotary(sizes, &processor(), "flex");
    }

    #[test]
    fn rows_hold_for_any_sizes(
        n in 1usize..6,
        width in 1usize..40,
        places in prop::collection::vec(0usize..6, 1..8),
        kind in prop_oneof![Just(NormKind::Layer), Just(NormKind::Rms)],
        activation in prop::sample::select(ACTIVATIONS.as_slice()),
        gated: bool,
        bias: bool,
    ) {
        let places: Vec<usize> = places.iter().map(|place| place % n).collect();
        check_gather(n, width, &places, &processor(), "flex");
        check_add(n, width, &places, &processor(), "flex");
        check_gate(n * width, Activation::Gelu, &processor(), "flex");
        let half = Half { rows: n, d_input: width, d_output: places.len(), activation, gated, bias };
        check_activated_linear(half, &processor(), "flex");
        check_residual(Rows { rows: n, d_model: width + 1, kind, bias }, &processor(), "flex");
    }
}
