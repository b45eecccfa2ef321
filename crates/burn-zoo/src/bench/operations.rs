//! The zoo's operations beside the same composed from tensor operations, forward and backward.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Int, Tensor, activation};
use burn_zoo_nn::scores::VocabularyScores;
use burn_zoo_ops::{
    Activation, AdamWStep, AttentionMask, ClassLoss, NormKind, Pairing, Scoring, activate,
    activated_linear, adamw, add_normalize, add_rows, attention, dropout, gate, gather_rows,
    linear, negative_log_likelihood, normalize, projected_loss, rotate,
};
use serde::Serialize;

use super::median_ms;

/// The sizes of a model's layer, and what goes through it.
#[derive(Clone, Copy, Debug)]
pub struct LayerSizes {
    /// Sequences.
    pub batch_size: usize,
    /// Tokens of each.
    pub context_length: usize,
    /// The width of the residual stream.
    pub d_model: usize,
    /// Heads of attention, which divide the width.
    pub n_heads: usize,
    /// Tokens that there are.
    pub vocab_size: usize,
}

/// An operation in two forms.
pub struct Operation {
    /// Its name.
    pub name: &'static str,
    zoo: Form,
    composed: Form,
    device: Device,
}

/// A number that depends on all results, whose gradients are wanted; or none, where there are no gradients.
type Form = Box<dyn Fn() -> Option<Tensor<1>>>;

/// How long both forms take, as medians.
#[derive(Clone, Debug, Serialize)]
pub struct OperationTimes {
    /// Which operation.
    pub name: &'static str,
    /// Forward and backward pass of the zoo's.
    pub zoo_ms: f64,
    /// The same of the composed form.
    pub composed_ms: f64,
    /// The first as a share of the second.
    pub ratio: f64,
}

impl Operation {
    /// Runs the zoo's, with its gradients, until the device has finished.
    pub fn run_zoo(&self) {
        self.run(&self.zoo);
    }

    /// Runs the composed form, with its gradients, until the device has finished.
    pub fn run_composed(&self) {
        self.run(&self.composed);
    }

    fn run(&self, form: &Form) {
        let grads = form().map(|sum| sum.backward());
        self.device.sync().expect("the device finishes its work");
        drop(grads);
    }

    /// Runs both in turn, `rounds` times each after one that is not counted.
    pub fn measure(&self, rounds: usize) -> OperationTimes {
        let timed = |run: fn(&Self)| {
            let clock = Instant::now();
            run(self);
            clock.elapsed()
        };
        self.run_zoo();
        self.run_composed();
        let times = (0..rounds).map(|_| (timed(Self::run_zoo), timed(Self::run_composed)));
        let (zoo, composed): (Vec<Duration>, Vec<Duration>) = times.unzip();
        let (zoo_ms, composed_ms) = (median_ms(zoo), median_ms(composed));
        OperationTimes {
            name: self.name,
            zoo_ms,
            composed_ms,
            ratio: zoo_ms / composed_ms,
        }
    }
}

/// All operations at these sizes.
///
/// # Panics
///
/// When the heads do not divide the width.
pub fn operations(sizes: LayerSizes, device: &Device) -> Vec<Operation> {
    let LayerSizes {
        batch_size,
        context_length,
        d_model,
        n_heads,
        vocab_size,
    } = sizes;
    assert!(
        n_heads > 0 && d_model.is_multiple_of(n_heads),
        "operations: {n_heads} heads do not divide a width of {d_model}"
    );
    let device = device.clone().autodiff();
    let rows = batch_size * context_length;
    let vector = |length: usize| random([length], 1.0, &device);
    let matrix = |rows, columns| random::<2>([rows, columns], 1.0, &device);
    let mut all = Vec::new();
    let mut add = |name, zoo: Form, composed: Form| {
        let device = device.clone();
        all.push(Operation {
            name,
            zoo,
            composed,
            device,
        });
    };

    let head_dim = d_model / n_heads;
    let [query, key, value] = [(); 3].map(|()| {
        random(
            [batch_size, n_heads, context_length, head_dim],
            1.0,
            &device,
        )
    });
    let mask = Tensor::<2>::ones([context_length, context_length], &device).triu(1) * -1e9;
    let (q, k, v) = (query.clone(), key.clone(), value.clone());
    add(
        "attention, causal",
        Box::new(move || {
            let scoring = Scoring::scaled(AttentionMask::Causal, head_dim);
            Some(attention(query.clone(), key.clone(), value.clone(), None, scoring).sum())
        }),
        Box::new(move || {
            let scores = q.clone().matmul(k.clone().transpose()) / (head_dim as f64).sqrt();
            let scores = scores + mask.clone().unsqueeze();
            Some(activation::softmax(scores, 3).matmul(v.clone()).sum())
        }),
    );

    let (input, weight, bias) = (
        matrix(rows, d_model),
        matrix(d_model, 4 * d_model),
        vector(4 * d_model),
    );
    let (x, w, b) = (input.clone(), weight.clone(), bias.clone());
    add(
        "linear",
        Box::new(move || Some(linear(input.clone(), weight.clone(), Some(bias.clone())).sum())),
        Box::new(move || Some((x.clone().matmul(w.clone()) + b.clone().unsqueeze()).sum())),
    );

    for (name, kind) in [("layer norm", NormKind::Layer), ("RMS norm", NormKind::Rms)] {
        let (input, weight, bias) = (matrix(rows, d_model), vector(d_model), vector(d_model));
        let (x, w, b) = (input.clone(), weight.clone(), bias.clone());
        add(
            name,
            Box::new(move || {
                let bias = Some(bias.clone());
                Some(normalize(input.clone(), weight.clone(), bias, kind, 1e-5).sum())
            }),
            Box::new(move || {
                let x = match kind {
                    NormKind::Layer => x.clone() - x.clone().mean_dim(1),
                    NormKind::Rms => x.clone(),
                };
                let deviation = (x.clone().square().mean_dim(1) + 1e-5).sqrt();
                Some((x / deviation * w.clone().unsqueeze() + b.clone().unsqueeze()).sum())
            }),
        );
    }

    let (stream, output, weight) = (
        matrix(rows, d_model),
        matrix(rows, d_model),
        vector(d_model),
    );
    let (x, y, w) = (stream.clone(), output.clone(), weight.clone());
    add(
        "residual and RMS norm",
        Box::new(move || {
            let (stream, output) = (stream.clone(), output.clone());
            let (sum, normed) =
                add_normalize(stream, output, weight.clone(), None, NormKind::Rms, 1e-5);
            Some((sum + normed).sum())
        }),
        Box::new(move || {
            let sum = x.clone() + y.clone();
            let deviation = (sum.clone().square().mean_dim(1) + 1e-5).sqrt();
            let normed = sum.clone() / deviation * w.clone().unsqueeze();
            Some((sum + normed).sum())
        }),
    );

    let n_pairs = head_dim / 2;
    if n_pairs > 0 {
        let heads = random(
            [batch_size, n_heads, context_length, head_dim],
            1.0,
            &device,
        );
        let angles = Tensor::<4>::random(
            [1, 1, context_length, n_pairs],
            Distribution::Uniform(0.0, 3.0),
            &device,
        );
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        let (x, c, s) = (heads.clone(), cos.clone(), sin.clone());
        add(
            "rotary",
            Box::new(move || {
                Some(rotate(heads.clone(), cos.clone(), sin.clone(), Pairing::Half).sum())
            }),
            Box::new(move || {
                let first = x.clone().narrow(3, 0, n_pairs);
                let second = x.clone().narrow(3, n_pairs, n_pairs);
                let (cos, sin) = (c.clone(), s.clone());
                let turned = vec![
                    first.clone() * cos.clone() - second.clone() * sin.clone(),
                    second * cos + first * sin,
                ];
                Some(Tensor::cat(turned, 3).sum())
            }),
        );
    }

    let (inner, up) = (matrix(rows, 4 * d_model), matrix(rows, 4 * d_model));
    let (x, y) = (inner.clone(), up.clone());
    add(
        "SwiGLU",
        Box::new(move || Some(gate(inner.clone(), up.clone(), Activation::Silu).sum())),
        Box::new(move || Some((activation::silu(x.clone()) * y.clone()).sum())),
    );

    for (name, kind, composed) in [
        (
            "GELU",
            Activation::Gelu,
            activation::gelu as fn(Tensor<2>) -> Tensor<2>,
        ),
        (
            "GELU by tanh",
            Activation::GeluTanh,
            activation::gelu_approximate,
        ),
        ("SiLU", Activation::Silu, activation::silu),
    ] {
        let input = matrix(rows, 4 * d_model);
        let x = input.clone();
        add(
            name,
            Box::new(move || Some(activate(input.clone(), kind).sum())),
            Box::new(move || Some(composed(x.clone()).sum())),
        );
    }

    let (inner, weight) = (matrix(rows, 4 * d_model), matrix(4 * d_model, d_model));
    let (x, w) = (inner.clone(), weight.clone());
    add(
        "GELU and linear",
        Box::new(move || {
            let (inner, weight) = (inner.clone(), weight.clone());
            Some(activated_linear(inner, Activation::Gelu, weight, None).sum())
        }),
        Box::new(move || Some(activation::gelu(x.clone()).matmul(w.clone()).sum())),
    );

    let input = matrix(rows, d_model);
    let x = input.clone();
    add(
        "dropout",
        Box::new(move || Some(dropout(input.clone(), 0.1).sum())),
        Box::new(move || {
            let draws = x.random_like(Distribution::Bernoulli(0.9));
            Some((x.clone() * draws / 0.9).sum())
        }),
    );

    let logits = matrix(rows, vocab_size);
    let classes = Tensor::<1, Int>::arange(0..rows as i64, &device) % vocab_size as i64;
    let (x, ids) = (logits.clone(), classes.clone());
    add(
        "cross-entropy",
        Box::new(move || Some(negative_log_likelihood(logits.clone(), classes.clone(), 0.0).sum())),
        Box::new(move || Some(composed_loss(x.clone(), ids.clone()))),
    );

    // Small, as embeddings are: large logits have probabilities so small that processors take long for them.
    let embedding = random::<2>([vocab_size, d_model], 0.02, &device);
    let plain_embedding = embedding.clone().inner();
    let hidden = matrix(rows, d_model);
    let classes = Tensor::<1, Int>::arange(0..rows as i64, &device) % vocab_size as i64;
    let (x, w, ids) = (hidden.clone(), embedding.clone(), classes.clone());
    add(
        "head and cross-entropy",
        Box::new(move || {
            let sum = ClassLoss {
                smoothing: 0.0,
                scale: 1.0,
            };
            let weight = embedding.clone().transpose();
            let (hidden, classes) = (hidden.clone(), classes.clone());
            Some(projected_loss(hidden, weight, None, classes, sum))
        }),
        Box::new(move || {
            let logits = x.clone().matmul(w.clone().transpose());
            Some(composed_loss(logits, ids.clone()))
        }),
    );

    let table = random::<2>([vocab_size, d_model], 0.02, &device);
    let tokens = Tensor::<1, Int>::arange(0..rows as i64, &device) * 31 % vocab_size as i64;
    let (t, ids) = (table.clone(), tokens.clone());
    add(
        "embedding",
        Box::new(move || Some(gather_rows(table.clone(), tokens.clone()).sum())),
        Box::new(move || Some(t.clone().select(0, ids.clone()).sum())),
    );

    // Two experts of eight for each token: what one of them takes, and what it gives back.
    let tokens = matrix(rows, d_model);
    let places = Tensor::<1, Int>::arange(0..rows.div_ceil(4) as i64, &device) * 4 % rows as i64;
    let [n_taken] = places.dims();
    let weights = matrix(n_taken, 1);
    let (x, w, at) = (tokens.clone(), weights.clone(), places.clone());
    add(
        "tokens of an expert",
        Box::new(move || {
            let taken = gather_rows(tokens.clone(), places.clone());
            let (total, places) = (tokens.clone(), places.clone());
            Some(add_rows(total, taken, weights.clone(), places).sum())
        }),
        Box::new(move || {
            let taken = x.clone().select(0, at.clone()) * w.clone();
            let add = burn::tensor::IndexingUpdateOp::Add;
            Some(x.clone().select_assign(0, at.clone(), taken, add).sum())
        }),
    );

    let plain = device.clone().inner();
    let hidden = Tensor::<2>::random([1, d_model], Distribution::Normal(0.0, 1.0), &plain);
    let (x, w) = (hidden.clone(), plain_embedding.clone());
    let scores = VocabularyScores::Projection {
        hidden,
        weight: plain_embedding.clone().transpose(),
        bias: None,
    };
    if let Some(quantized) = scores.quantized() {
        add(
            "highest class",
            Box::new(move || {
                scores.clone().best(&quantized);
                None
            }),
            Box::new(move || {
                let _ = x.clone().matmul(w.clone().transpose()).argmax(1);
                None
            }),
        );
    }

    let [parameter, grad, first, second] =
        [(); 4].map(|()| Tensor::<2>::ones([d_model, 4 * d_model], &plain));
    let (p, g, m, v) = (
        parameter.clone(),
        grad.clone(),
        first.clone(),
        second.clone(),
    );
    add(
        "AdamW",
        Box::new(move || {
            let step = AdamWStep {
                number: 2,
                learning_rate: 1e-3,
                beta1: 0.9,
                beta2: 0.99,
                epsilon: 1e-8,
                weight_decay: 0.1,
            };
            let moments = [first.clone(), second.clone()];
            adamw(parameter.clone(), grad.clone(), moments, step);
            None
        }),
        Box::new(move || {
            let m = m.clone() * 0.9 + g.clone() * 0.1;
            let v = v.clone() * 0.99 + g.clone().square() * 0.01;
            let step = m / 0.19 / ((v / 0.0199).sqrt() + 1e-8);
            let _ = p.clone() * (1.0 - 1e-4) - step * 1e-3;
            None
        }),
    );
    all
}

fn random<const D: usize>(shape: [usize; D], std: f64, device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, std), device).require_grad()
}

fn composed_loss(logits: Tensor<2>, classes: Tensor<1, Int>) -> Tensor<1> {
    let likelihoods = activation::log_softmax(logits, 1);
    -likelihoods.gather(1, classes.unsqueeze_dim(1)).sum()
}
