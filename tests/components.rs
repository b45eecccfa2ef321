//! What must hold for every architecture that can be composed.

mod common;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, activation};
use burn_zoo::nn::{
    HeadConfig, LanguageModel, Transformer, TransformerConfig,
    attention::{AttentionConfig, AttentionPattern},
    block::{BlockConfig, NormPlacement},
    embedding::PositionConfig,
    feed_forward::{Activation, FeedForwardConfig},
    init,
    norm::NormConfig,
};
use common::{assert_close, data, devices, normal, processor, values};
use proptest::prelude::*;

const VOCAB: usize = 13;
const CONTEXT: usize = 8;

fn block(d_model: usize) -> impl Strategy<Value = BlockConfig> {
    let attention = (1usize..4, 1usize..3, 1usize..5, any::<bool>()).prop_map(
        move |(n_kv_heads, group, head_dim, bias)| {
            AttentionConfig::new(d_model, n_kv_heads * group, n_kv_heads, head_dim).with_bias(bias)
        },
    );
    let activation = prop_oneof![
        Just(Activation::Relu),
        Just(Activation::Gelu),
        Just(Activation::GeluTanh),
        Just(Activation::Silu)
    ];
    let feed_forward =
        (1usize..20, activation, any::<bool>()).prop_map(move |(d_ff, activation, bias)| {
            FeedForwardConfig::new(d_model, d_ff)
                .with_activation(activation)
                .with_bias(bias)
        });
    let placement = prop_oneof![Just(NormPlacement::Pre), Just(NormPlacement::Post)];
    (attention, feed_forward, norm(), placement).prop_map(
        |(attention, feed_forward, norm, place)| {
            BlockConfig::new(attention, feed_forward)
                .with_norm(norm)
                .with_placement(place)
        },
    )
}

fn norm() -> impl Strategy<Value = NormConfig> {
    prop_oneof![
        any::<bool>().prop_map(NormConfig::layer),
        Just(NormConfig::rms())
    ]
}

/// Any stack of causal blocks, each of them different.
fn stack() -> impl Strategy<Value = TransformerConfig> {
    let position = prop_oneof![Just(PositionConfig::None), Just(PositionConfig::Learned)];
    let head = prop_oneof![
        Just(HeadConfig::Tied),
        any::<bool>().prop_map(|bias| HeadConfig::Untied { bias })
    ];
    (2usize..10).prop_flat_map(move |d_model| {
        let blocks = prop::collection::vec(block(d_model), 1..4);
        let final_norm = prop::option::of(norm());
        (blocks, position.clone(), head.clone(), final_norm).prop_map(
            move |(blocks, position, head, final_norm)| {
                TransformerConfig::new(VOCAB, d_model, CONTEXT, blocks)
                    .with_position(position)
                    .with_head(head)
                    .with_final_norm(final_norm)
                    // Large enough that a mistake shows in the logits.
                    .with_init_std(0.5)
            },
        )
    })
}

fn tokens(ids: &[u8], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
    Tensor::<1, Int>::from_data(ids.as_slice(), device).unsqueeze()
}

fn init_model(config: &TransformerConfig, device: &Device) -> Transformer {
    init::seed(3);
    config.init(device)
}

/// Reads `ids` in pieces through the cache; the last logits must be those of the whole text at once.
fn check_cache(config: &TransformerConfig, ids: &[u8], pieces: &[usize], device: &Device) {
    let model = init_model(config, device);
    let whole = model.forward(tokens(ids, device));
    let mut cache = model.new_cache(1);
    let mut start = 0;
    for &piece in pieces {
        let end = (start + piece).min(ids.len());
        if start == end {
            break;
        }
        let decoded = model.decode(tokens(&ids[start..end], device), &mut cache);
        let expected = whole.clone().slice([0..1, end - 1..end]);
        assert_close(&values(decoded), &values(expected), 1e-4, "cached logits");
        start = end;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn cached_decoding_equals_the_full_forward_pass(
        config in stack(),
        ids in prop::collection::vec(0..VOCAB as u8, 1..=CONTEXT),
        pieces in prop::collection::vec(1usize..5, CONTEXT),
    ) {
        check_cache(&config, &ids, &pieces, &processor());
    }

    #[test]
    fn parameters_are_counted_without_building(config in stack()) {
        let model = init_model(&config, &processor());
        prop_assert_eq!(config.n_parameters(), model.num_params());
    }

    #[test]
    fn a_causal_model_does_not_look_ahead(
        config in stack(),
        ids in prop::collection::vec(0..VOCAB as u8, CONTEXT),
        change in 1..CONTEXT,
    ) {
        let device = processor();
        let model = init_model(&config, &device);
        let mut other = ids.clone();
        other[change] = (other[change] + 1) % VOCAB as u8;
        let before = |ids: &[u8]| values(model.forward(tokens(ids, &device)).narrow(1, 0, change));
        assert_close(&before(&ids), &before(&other), 1e-5, "earlier logits");
    }

    #[test]
    fn configurations_survive_json(config in stack()) {
        let json = serde_json::to_string(&config).unwrap();
        let read: TransformerConfig = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(serde_json::to_string(&read).unwrap(), json);
    }
}

#[test]
fn the_cache_works_on_every_backend() {
    let attention = AttentionConfig::new(8, 4, 2, 2);
    let block = BlockConfig::new(attention, FeedForwardConfig::new(8, 16));
    let config = TransformerConfig::new(VOCAB, 8, CONTEXT, vec![block; 2]).with_init_std(0.5);
    for found in devices() {
        check_cache(&config, &[1, 5, 2, 9, 12, 0], &[3, 1, 2], &found.device);
    }
}

#[test]
fn a_bidirectional_block_looks_both_ways() {
    let device = processor();
    let mut block = BlockConfig::gpt2(8, 2);
    block.attention.pattern = AttentionPattern::Bidirectional;
    let config = TransformerConfig::new(VOCAB, 8, CONTEXT, vec![block]).with_init_std(0.5);
    let model = init_model(&config, &device);
    let first = |last: u8| {
        values(
            model
                .forward(tokens(&[1, 2, last], &device))
                .narrow(1, 0, 1),
        )
    };
    let difference: f64 = first(3)
        .iter()
        .zip(first(4))
        .map(|(a, b)| (a - b).abs())
        .sum();
    assert!(difference > 1e-3, "{difference}");
}

/// GELU by its definition, `x Φ(x)`, from an integral of the normal density; and by Hendrycks and
/// Gimpel's tanh formula.
#[test]
fn activations_follow_their_formulas() {
    let x: Vec<f64> = (-30..=30).map(|i| f64::from(i) / 10.0).collect();
    let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let phi = |x: f64| {
        // Simpson's rule from 0 to x.
        let n = 200;
        let h = x / f64::from(n);
        let weight = |i| {
            if i == 0 || i == n {
                1.0
            } else {
                f64::from(2 + 2 * (i % 2))
            }
        };
        0.5 + (0..=n)
            .map(|i| weight(i) * density(f64::from(i) * h))
            .sum::<f64>()
            * h
            / 3.0
    };
    let tanh = |x: f64| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        0.5 * x * (1.0 + inner.tanh())
    };
    let formulas: [(Activation, &dyn Fn(f64) -> f64); 4] = [
        (Activation::Relu, &|x| x.max(0.0)),
        (Activation::Gelu, &|x| x * phi(x)),
        (Activation::GeluTanh, &tanh),
        (Activation::Silu, &|x| x / (1.0 + (-x).exp())),
    ];
    for found in devices() {
        for (activation, formula) in formulas {
            let input = Tensor::<1>::from_data(data(&x, [x.len()]), &found.device);
            let expected: Vec<f64> = x.iter().map(|&x| formula(x)).collect();
            let what = format!("{activation:?} on {}", found.name);
            assert_close(&values(activation.forward(input)), &expected, 1e-5, &what);
        }
    }
}

#[test]
fn a_block_is_the_residual_sum_of_its_parts() {
    let device = processor();
    init::seed(5);
    let x = Tensor::<3>::from_data(data(&normal(1, 2 * 3 * 8), [2, 3, 8]), &device);
    let pre = BlockConfig::gpt2(8, 2).init(&device);
    let after = x.clone()
        + pre
            .attention
            .forward(pre.attention_norm.forward(x.clone()), None);
    let expected = after.clone()
        + pre
            .feed_forward
            .forward(pre.feed_forward_norm.forward(after));
    assert_close(
        &values(pre.forward(x.clone(), None)),
        &values(expected),
        1e-5,
        "pre-norm",
    );

    let post = BlockConfig::gpt2(8, 2)
        .with_placement(NormPlacement::Post)
        .init(&device);
    let after = post
        .attention_norm
        .forward(x.clone() + post.attention.forward(x.clone(), None));
    let expected = post
        .feed_forward_norm
        .forward(after.clone() + post.feed_forward.forward(after));
    assert_close(
        &values(post.forward(x, None)),
        &values(expected),
        1e-5,
        "post-norm",
    );
}

/// The gradient of a tied embedding is the sum of those of its two uses.
#[test]
fn a_tied_head_trains_the_embedding_through_both_uses() {
    let device = processor().autodiff();
    let config = TransformerConfig::uniform(VOCAB, CONTEXT, 1, BlockConfig::gpt2(8, 2));
    let model = init_model(&config, &device);
    let ids = tokens(&[1, 2, 3], &device);
    let score = |logits: Tensor<3>| {
        activation::log_softmax(logits, 2)
            .slice([0..1, 0..3, 4..5])
            .sum()
    };

    let grads = score(model.forward(ids.clone())).backward();
    let both = values(model.embedding.token.val().grad(&grads).unwrap());

    // As embedding only: the head gets a copy that is cut off from the graph.
    let hidden = model.hidden(ids.clone(), None);
    let copy = model.embedding.token.val().detach();
    let grads = score(hidden.matmul(copy.transpose().unsqueeze())).backward();
    let embedding = values(model.embedding.token.val().grad(&grads).unwrap());

    // As head only.
    let hidden = model.hidden(ids, None).detach();
    let grads = score(model.logits(hidden)).backward();
    let head = values(model.embedding.token.val().grad(&grads).unwrap());
    let sum: Vec<f64> = embedding.iter().zip(&head).map(|(a, b)| a + b).collect();
    assert_close(&both, &sum, 1e-5, "tied gradient");
}

#[test]
fn initial_weights_follow_gpt2() {
    let n_layers = 6;
    let config = TransformerConfig::uniform(500, 64, n_layers, BlockConfig::gpt2(64, 4));
    let model = init_model(&config, &processor());
    let spread = |weights: Tensor<2>| {
        let weights = values(weights);
        let mean = weights.iter().sum::<f64>() / weights.len() as f64;
        let variance =
            weights.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / weights.len() as f64;
        variance.sqrt()
    };
    let residual = 0.02 / (2.0 * n_layers as f64).sqrt();
    let block = &model.blocks[3];
    for (weights, expected) in [
        (model.embedding.token.val(), 0.02),
        (block.attention.query.weight.val(), 0.02),
        (block.feed_forward.up.weight.val(), 0.02),
        (block.attention.output.weight.val(), residual),
        (block.feed_forward.down.weight.val(), residual),
    ] {
        // The spread of 4,096 draws or more is within 5 % of the true one, at four deviations.
        let found = spread(weights);
        assert!(
            (found / expected - 1.0).abs() < 0.05,
            "{found} instead of {expected}"
        );
    }
    let bias = block.attention.query.bias.as_ref().unwrap().val();
    assert!(values(bias).iter().all(|&value| value == 0.0));
}
