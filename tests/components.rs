//! What must hold for every architecture that can be composed.

mod common;

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, DType, Device, Int, Tensor, activation};
use burn_zoo::{
    infer::{generate::Generator, sampling::SamplingConfig},
    models::{directory, family::Architecture},
    nn::{
        HeadConfig, Inputs, LanguageModel, Transformer, TransformerConfig,
        attention::{AttentionBias, AttentionConfig, AttentionPattern, AttentionScale},
        bias::{RelativeBiasConfig, RelativeDirection},
        block::{BlockConfig, NormPlacement},
        cache::{KvCache, LayerCache},
        embedding::PositionConfig,
        feed_forward::{Activation, FeedForwardConfig},
        head::{HeadOutput, LanguageHeadConfig, Projection, SequenceState, TransformConfig},
        init,
        mixture::{ExpertCapacity, ExpertWeights, MixtureConfig, Routing},
        norm::NormConfig,
        pass::Pass,
        recompute,
        rotary::{RotaryConfig, RotaryPairing, RotaryScaling},
        stack::StackConfig,
    },
    train::precision::Precision,
};
use common::{assert_close, data, devices, normal, processor, values};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const VOCAB: usize = 13;
const CONTEXT: usize = 8;

/// What a stack is for, which decides the patterns that it may have.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Encoder,
    Decoder,
    PrefixDecoder,
}

fn pattern(role: Role) -> BoxedStrategy<AttentionPattern> {
    let banded = (1usize..5).prop_map(|window| AttentionPattern::Banded { window });
    match role {
        Role::Encoder => Just(AttentionPattern::Bidirectional).boxed(),
        Role::Decoder => prop_oneof![Just(AttentionPattern::Causal), banded].boxed(),
        Role::PrefixDecoder => prop_oneof![
            Just(AttentionPattern::Prefix),
            Just(AttentionPattern::Causal)
        ]
        .boxed(),
    }
}

fn rotary(head_dim: usize) -> BoxedStrategy<Option<RotaryConfig>> {
    if head_dim < 2 {
        return Just(None).boxed();
    }
    let scaling = prop_oneof![
        Just(RotaryScaling::None),
        Just(RotaryScaling::Linear { factor: 2.0 }),
        Just(RotaryScaling::Ntk { factor: 4.0 }),
        Just(RotaryScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 16,
        }),
    ];
    let pairing = prop_oneof![Just(RotaryPairing::Half), Just(RotaryPairing::Interleaved)];
    let base = prop_oneof![Just(4.0), Just(10_000.0)];
    let config =
        (1..=head_dim / 2, base, pairing, scaling).prop_map(|(pairs, base, pairing, scaling)| {
            RotaryConfig {
                dims: 2 * pairs,
                base,
                pairing,
                scaling,
            }
        });
    prop::option::of(config).boxed()
}

fn attention(d_model: usize, n_heads: usize, role: Role) -> impl Strategy<Value = AttentionConfig> {
    let biases = any::<[bool; 4]>().prop_map(|[query, key, value, output]| AttentionBias {
        query,
        key,
        value,
        output,
    });
    let divisors: Vec<usize> = (1..=n_heads)
        .filter(|n| n_heads.is_multiple_of(*n))
        .collect();
    let scale = prop_oneof![
        Just(AttentionScale::InverseSqrt),
        Just(AttentionScale::Fixed(0.7)),
        Just(AttentionScale::PerHead(
            (1..=n_heads).map(|n| 1.0 / n as f64).collect()
        )),
    ];
    (1usize..6).prop_flat_map(move |head_dim| {
        let n_kv_heads = prop::sample::select(divisors.clone());
        let rest = (pattern(role), biases.clone(), scale.clone(), any::<bool>());
        (n_kv_heads, rotary(head_dim), rest).prop_map(
            move |(n_kv_heads, rotary, (pattern, bias, scale, alibi))| {
                AttentionConfig::new(d_model, n_heads, n_kv_heads, head_dim)
                    .with_pattern(pattern)
                    .with_bias(bias)
                    .with_scale(scale)
                    .with_rotary(rotary)
                    .with_alibi(alibi)
            },
        )
    })
}

fn feed_forward(d_model: usize) -> impl Strategy<Value = FeedForwardConfig> {
    let activation = prop_oneof![
        Just(Activation::Relu),
        Just(Activation::Gelu),
        Just(Activation::GeluTanh),
        Just(Activation::Silu),
        Just(Activation::Tanh),
    ];
    (1usize..12, activation, any::<bool>(), any::<bool>()).prop_map(
        move |(d_ff, activation, gated, bias)| {
            FeedForwardConfig::new(d_model, d_ff)
                .with_activation(activation)
                .with_gated(gated)
                .with_bias(bias)
        },
    )
}

/// Mixtures without a limit: what a limit drops depends on the other tokens of the batch, later ones
/// among them.
fn mixture() -> impl Strategy<Value = MixtureConfig> {
    (1usize..5).prop_flat_map(|n_experts| {
        let weights = prop_oneof![
            Just(ExpertWeights::Probability),
            Just(ExpertWeights::Normalized)
        ];
        let shared = prop::option::of(1usize..6);
        (1..=n_experts, weights, shared, any::<bool>()).prop_map(
            move |(top_k, weights, shared_d_ff, router_bias)| MixtureConfig {
                top_k,
                weights,
                capacity: ExpertCapacity::Dropless,
                shared_d_ff,
                router_bias,
                ..MixtureConfig::switch(n_experts)
            },
        )
    })
}

fn norm() -> impl Strategy<Value = NormConfig> {
    prop_oneof![
        any::<bool>().prop_map(NormConfig::layer),
        Just(NormConfig::rms())
    ]
}

fn block(
    d_model: usize,
    n_heads: usize,
    role: Role,
    reads_encoder: bool,
) -> impl Strategy<Value = BlockConfig> {
    let placement = prop_oneof![
        Just(NormPlacement::Pre),
        Just(NormPlacement::Post),
        Just(NormPlacement::Sandwich),
        Just(NormPlacement::NormedResidual),
        any::<bool>().prop_map(|shared_norm| NormPlacement::Parallel { shared_norm }),
    ];
    let cross = AttentionConfig::multi_head(d_model, 1)
        .with_pattern(AttentionPattern::Bidirectional)
        .with_bias(AttentionBias::all(false));
    let parts = (
        attention(d_model, n_heads, role),
        feed_forward(d_model),
        prop::option::weighted(0.3, mixture()),
        norm(),
        placement,
    );
    parts.prop_map(move |(attention, feed_forward, mixture, norm, placement)| {
        // Cross-attention has no place in a parallel block.
        let is_parallel = matches!(placement, NormPlacement::Parallel { .. });
        let cross = (reads_encoder && !is_parallel).then(|| cross.clone());
        BlockConfig::new(attention, feed_forward)
            .with_mixture(mixture)
            .with_cross_attention(cross)
            .with_norm(norm)
            .with_placement(placement)
    })
}

fn stack(d_model: usize, role: Role, reads_encoder: bool) -> impl Strategy<Value = StackConfig> {
    (1usize..4).prop_flat_map(move |n_heads| {
        let blocks = prop::collection::vec(block(d_model, n_heads, role, reads_encoder), 1..4);
        let relative = (any::<bool>(), 4usize..9).prop_map(move |(has_bias, n_buckets)| {
            has_bias.then_some(RelativeBiasConfig {
                n_heads,
                n_buckets,
                max_distance: 12,
                direction: match role {
                    Role::Decoder => RelativeDirection::Backward,
                    Role::Encoder | Role::PrefixDecoder => RelativeDirection::Both,
                },
                init_std: 0.5,
            })
        });
        (blocks, relative, prop::option::of(norm())).prop_map(
            |(blocks, relative_bias, final_norm)| StackConfig {
                blocks,
                relative_bias,
                final_norm,
            },
        )
    })
}

fn language_head() -> impl Strategy<Value = HeadConfig> {
    let projection = prop_oneof![Just(Projection::Tied), Just(Projection::Untied)];
    let transform = prop::option::of(norm().prop_map(|norm| TransformConfig {
        activation: Activation::Gelu,
        norm,
    }));
    (projection, any::<bool>(), transform).prop_map(|(projection, bias, transform)| {
        HeadConfig::Language(LanguageHeadConfig {
            projection,
            bias,
            transform,
            scale: 0.5,
        })
    })
}

/// Any model that the components can make, each block different.
fn model(role: Role) -> impl Strategy<Value = TransformerConfig> {
    let position = match role {
        Role::PrefixDecoder => prop_oneof![
            Just(PositionConfig::None),
            Just(PositionConfig::Learned),
            Just(PositionConfig::PrefixAndBlock),
        ]
        .boxed(),
        _ => prop_oneof![
            Just(PositionConfig::None),
            Just(PositionConfig::Learned),
            Just(PositionConfig::Sinusoidal),
        ]
        .boxed(),
    };
    let has_encoder = match role {
        Role::Decoder => any::<bool>().boxed(),
        _ => Just(false).boxed(),
    };
    // Even, for sinusoids.
    (2usize..6, has_encoder).prop_flat_map(move |(half, has_encoder)| {
        let d_model = 2 * half;
        let encoder = match has_encoder {
            true => stack(d_model, Role::Encoder, false).prop_map(Some).boxed(),
            false => Just(None).boxed(),
        };
        let scale = prop_oneof![Just(1.0), Just(1.5)];
        let embedding = (position.clone(), 0usize..3, prop::option::of(norm()), scale);
        let stack = stack(d_model, role, has_encoder);
        (stack, encoder, embedding, language_head()).prop_map(
            move |(stack, encoder, (position, n_segments, norm, scale), head)| {
                let mut config = TransformerConfig::new(VOCAB, d_model, CONTEXT, Vec::new())
                    .with_position(position)
                    .with_head(head)
                    // Large enough that a mistake shows in the logits.
                    .with_init_std(0.5);
                config.embedding.n_segments = n_segments;
                config.embedding.norm = norm;
                config.embedding.scale = scale;
                (config.stack, config.encoder) = (stack, encoder);
                for stack in config.encoder.iter_mut().chain([&mut config.stack]) {
                    for block in &mut stack.blocks {
                        block.attention.init_std = 0.5;
                        block.attention.output_init_std = 0.5;
                        block.feed_forward.init_std = 0.5;
                        block.feed_forward.output_init_std = 0.5;
                    }
                }
                config
            },
        )
    })
}

fn any_model() -> impl Strategy<Value = TransformerConfig> {
    prop_oneof![
        model(Role::Encoder),
        model(Role::Decoder),
        model(Role::PrefixDecoder)
    ]
}

fn decoder() -> impl Strategy<Value = TransformerConfig> {
    prop_oneof![model(Role::Decoder), model(Role::PrefixDecoder)]
}

fn ids(length: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0..VOCAB as u8, length)
}

fn tokens(ids: &[u8], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
    Tensor::<1, Int>::from_data(ids.as_slice(), device).unsqueeze()
}

/// What an encoder, where there is one, reads beside the tokens in question.
const ENCODED: [u8; 3] = [4, 0, 7];

/// Tokens as the model's own input: of the decoder, where there is one.
fn inputs(config: &TransformerConfig, ids: &[u8], prefix: usize, device: &Device) -> Inputs {
    let own = tokens(ids, device);
    let prefix = Tensor::<1, Int>::from_data([prefix as i64], device);
    match config.encoder {
        None => Inputs {
            prefix_lengths: Some(prefix),
            ..own.into()
        },
        Some(_) => Inputs {
            decoder_tokens: Some(own),
            ..tokens(&ENCODED, device).into()
        },
    }
}

fn init_model(config: &TransformerConfig, device: &Device) -> Transformer {
    init::seed(3);
    config.init(device)
}

fn logits(model: &Transformer, inputs: Inputs) -> Tensor<3> {
    let outputs = model.outputs(inputs);
    model.logits(outputs.hidden)
}

/// Reads `ids` in pieces through the cache; the last logits must be those of the whole text at once.
fn check_cache(config: &TransformerConfig, ids: &[u8], pieces: &[usize], device: &Device) {
    let model = init_model(config, device);
    // The first piece is the prefix.
    let prefix = pieces[0].min(ids.len());
    let whole = logits(&model, inputs(config, ids, prefix, device));
    let mut cache = model.new_cache();
    cache.memory = model.encode(&tokens(&ENCODED, device).into());
    let mut start = 0;
    for &piece in pieces {
        let end = (start + piece).min(ids.len());
        if start == end {
            break;
        }
        let input = Inputs {
            prefix_lengths: Some(Tensor::<1, Int>::from_data([prefix as i64], device)),
            ..tokens(&ids[start..end], device).into()
        };
        let decoded = model.decode(input, &mut cache);
        let expected = whole.clone().slice([0..1, end - 1..end]);
        let scale = values(expected.clone())
            .iter()
            .fold(1f64, |max, x| max.max(x.abs()));
        assert_close(
            &values(decoded),
            &values(expected),
            1e-4 * scale,
            "cached logits",
        );
        start = end;
    }
}

/// The gradient of each parameter, one after the other; zeros where there is none.
fn gradients(model: &Transformer, grads: GradientsParams) -> Vec<f64> {
    struct Collect(GradientsParams, Vec<f64>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            match self.0.remove::<D>(param.id) {
                Some(grad) => self.1.extend(values(grad)),
                None => self
                    .1
                    .extend(vec![0.0; param.val().dims().iter().product()]),
            }
        }
    }
    let mut collect = Collect(grads, Vec::new());
    model.visit(&mut collect);
    collect.1
}

proptest! {
    // The same cases each time: what fails once fails again.
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(1), ..ProptestConfig::with_cases(300) })]

    /// Whatever comes in what pieces, and however often the buffers grow, also in a copy that goes on otherwise; and after all was
    /// forgotten, of other texts.
    #[test]
    fn a_cache_holds_what_was_appended(pieces in prop::collection::vec(1usize..400, 1..6), spare in 0usize..300) {
        let device = processor();
        let total: usize = pieces.iter().sum();
        let mut cache = KvCache {
            layers: vec![LayerCache::new(total + spare)],
            memory: None,
        };
        for batch in [2, 3, 1] {
            let n_values = (batch * total * 2 * 3) as i64;
            let all = Tensor::<1, Int>::arange(0..n_values, &device).float();
            // Of those of a position the heads lie side by side, as a projection leaves them.
            let all = all.reshape([batch, total, 2, 3]).swap_dims(1, 2);
            let mut end = 0;
            for &piece in &pieces {
                let new = all.clone().narrow(2, end, piece);
                let other = new.clone().zeros_like();
                cache.layers[0].clone().append(other.clone(), other);
                let (keys, found) = cache.layers[0].append(new.clone().neg(), new);
                end += piece;
                prop_assert_eq!(cache.len(), end);
                let expected = all.clone().narrow(2, 0, end);
                prop_assert!(values(found) == values(expected.clone()));
                prop_assert!(values(keys) == values(expected.neg()));
            }
            cache.clear();
            prop_assert!(cache.is_empty());
        }
    }

    #[test]
    fn forward_and_backward_run_and_parameters_are_counted(config in any_model(), ids in ids(1..=CONTEXT)) {
        let device = processor().autodiff();
        let model = init_model(&config, &device);
        prop_assert_eq!(config.n_parameters(), model.num_params());
        prop_assert!(config.n_active_parameters() <= config.n_parameters());
        let outputs = model.outputs(inputs(&config, &ids, 1, &device));
        let mut loss = model.logits(outputs.hidden).powi_scalar(2).sum();
        for routing in &outputs.routing {
            loss = loss + routing.auxiliary_loss();
        }
        prop_assert!(values(loss.clone()).iter().all(|loss| loss.is_finite()));
        let grads = loss.backward();
        let token = model.embedding.token.val().grad(&grads);
        prop_assert!(values(token.unwrap()).iter().all(|value| value.is_finite()));
    }

    #[test]
    fn blocks_computed_again_have_the_same_gradients(
        config in any_model(),
        ids in ids(1..=CONTEXT),
        is_embedding_learned in any::<bool>(),
        precision in prop_oneof![Just(Precision::F32), Just(Precision::F16)],
    ) {
        let device = processor().autodiff();
        let mut model = precision.cast(&init_model(&config, &device));
        if !is_embedding_learned {
            model.embedding = model.embedding.no_grad();
        }
        let square = |tensor: Tensor<3>| tensor.cast(DType::F32).square().mean();
        let loss = || {
            let outputs = model.outputs(inputs(&config, &ids, 1, &device));
            let losses = [model.logits(outputs.hidden)].into_iter().chain(outputs.encoder_hidden);
            let routers = outputs.routing.iter().map(Routing::auxiliary_loss);
            let losses = losses.map(square).chain(routers);
            losses.reduce(|sum, loss| sum + loss).unwrap()
        };
        let kept = loss();
        let (again, tape) = recompute::record(loss);
        let n_blocks = config.encoder.iter().chain([&config.stack]).map(|stack| stack.blocks.len());
        prop_assert!(tape.n_parts() >= n_blocks.sum());
        prop_assert_eq!(values(again.clone()), values(kept.clone()));
        let expected = gradients(&model, GradientsParams::from_grads(kept.backward(), &model));
        let found = gradients(&model, tape.gradients(again, &model));
        let largest = expected.iter().fold(0f64, |max, value| max.max(value.abs()));
        let tolerance = match precision {
            Precision::F32 => 1e-5,
            _ => 1e-2,
        };
        assert_close(&found, &expected, tolerance * largest, "gradients");
    }

    #[test]
    fn cached_decoding_equals_the_full_forward_pass(
        config in decoder(),
        ids in ids(1..=CONTEXT),
        pieces in prop::collection::vec(1usize..5, CONTEXT),
    ) {
        check_cache(&config, &ids, &pieces, &processor());
    }

    #[test]
    fn a_causal_model_does_not_look_ahead(
        config in decoder(),
        ids in ids(CONTEXT),
        change in 1..CONTEXT,
        prefix in 0..CONTEXT,
    ) {
        let device = processor();
        let model = init_model(&config, &device);
        // A prefix sees itself, so that what follows is causal.
        let change = change.max(prefix);
        let mut other = ids.clone();
        other[change] = (other[change] + 1) % VOCAB as u8;
        let before = |ids: &[u8]| {
            values(logits(&model, inputs(&config, ids, prefix, &device)).narrow(1, 0, change))
        };
        if change > 0 {
            assert_close(&before(&ids), &before(&other), 1e-5, "earlier logits");
        }
    }

    #[test]
    fn padding_does_not_change_real_tokens(
        config in any_model(),
        ids in ids(1..CONTEXT),
        padding in ids(1..CONTEXT),
    ) {
        let device = processor();
        let model = init_model(&config, &device);
        let length = ids.len();
        let padded: Vec<u8> = ids.iter().chain(&padding).copied().take(CONTEXT).collect();
        let visible: Vec<i64> = (0..padded.len()).map(|i| i64::from(i < length)).collect();
        let visible = Tensor::<1, Int>::from_data(visible.as_slice(), &device);
        let visible: Tensor<2, Bool> = visible.equal_elem(1).unsqueeze();
        let mask = |ids: &[u8], visible| {
            let all = inputs(&config, ids, 1, &device);
            match config.encoder {
                None => Inputs { visible, ..all },
                // What the encoder reads is padded.
                Some(_) => Inputs {
                    visible,
                    tokens: tokens(ids, &device),
                    decoder_tokens: Some(tokens(&ENCODED, &device)),
                    ..all
                },
            }
        };
        let real = logits(&model, mask(&ids, None));
        let [_, n, _] = real.dims();
        let found = logits(&model, mask(&padded, Some(visible))).narrow(1, 0, n);
        let scale = values(real.clone()).iter().fold(1f64, |max, x| max.max(x.abs()));
        assert_close(&values(found), &values(real), 1e-4 * scale, "logits of real tokens");
    }

    #[test]
    fn packed_documents_are_those_of_each_alone(
        config in any_model().prop_filter("one text", |config| config.encoder.is_none()),
        ids in ids(1..=CONTEXT),
        cuts in prop::collection::btree_set(1..CONTEXT, 0..4),
    ) {
        let device = processor();
        let model = init_model(&config, &device);
        let ends = cuts.into_iter().filter(|&cut| cut < ids.len()).chain([ids.len()]);
        let (mut start, mut alone, mut documents) = (0, Vec::new(), Vec::new());
        for (number, end) in ends.enumerate() {
            alone.extend(values(logits(&model, tokens(&ids[start..end], &device).into())));
            documents.resize(end, number as i64);
            start = end;
        }
        let documents = Tensor::<1, Int>::from_data(documents.as_slice(), &device);
        let packed = logits(&model, Inputs {
            documents: Some(documents.unsqueeze()),
            ..tokens(&ids, &device).into()
        });
        let scale = alone.iter().fold(1f64, |max, x| max.max(x.abs()));
        assert_close(&values(packed), &alone, 1e-4 * scale, "logits of packed documents");
    }

    #[test]
    fn save_and_load_is_the_identity(config in any_model(), ids in ids(1..=CONTEXT)) {
        let device = processor();
        let model = init_model(&config, &device);
        let folder = tempfile::tempdir().unwrap();
        directory::save(&model, &Architecture::from(config.clone()), folder.path()).unwrap();
        let (loaded, architecture) = directory::load(folder.path(), &device).unwrap();
        let json = |config: &TransformerConfig| serde_json::to_string(config).unwrap();
        prop_assert_eq!(json(&config), json(&architecture.transformer));
        let run = |model: &Transformer| values(logits(model, inputs(&config, &ids, 1, &device)));
        prop_assert_eq!(run(&model), run(&loaded));
    }
}

#[test]
fn the_cache_works_on_every_backend() {
    let attention = AttentionConfig::new(8, 4, 2, 2)
        .with_alibi(true)
        .with_rotary(Some(RotaryConfig::interleaved(2)));
    let banded = attention
        .clone()
        .with_pattern(AttentionPattern::Banded { window: 2 });
    let block = BlockConfig::new(attention, FeedForwardConfig::new(8, 16));
    let mixed = BlockConfig::new(banded, FeedForwardConfig::new(8, 16))
        .with_mixture(Some(MixtureConfig::top_two(3)));
    let config = TransformerConfig::new(VOCAB, 8, CONTEXT, vec![block, mixed]).with_init_std(0.5);
    for found in devices() {
        check_cache(&config, &[1, 5, 2, 9, 12, 0], &[3, 1, 2], &found.device);
    }
}

/// The most likely tokens are those of whole forward passes on every backend, also where a copy in 8 bits of a large vocabulary's
/// head finds them.
#[test]
fn the_most_likely_tokens_are_those_of_whole_forward_passes() {
    for found in devices() {
        let (vocab_size, n_prompts) = match found.backend.name() {
            "flex" => (50_000, 6),
            _ => (60, 2),
        };
        let blocks = vec![BlockConfig::gpt2(96, 2)];
        let config = TransformerConfig::new(vocab_size, 96, 32, blocks).with_init_std(0.5);
        let device = found.device;
        let model = config.init(&device);
        let mut written = BTreeSet::new();
        for prompt in 0..n_prompts {
            let prompt = [7 * prompt, 5 + prompt, vocab_size as u32 / 7 * prompt];
            let greedy = SamplingConfig::greedy();
            let mut generator = Generator::new(&model, &prompt, greedy, 0).unwrap();
            for _ in 0..5 {
                let read = generator.tokens().iter().map(|&token| token as i32);
                let read: Vec<i32> = read.collect();
                let length = read.len();
                let read = Tensor::<1, Int>::from_data(read.as_slice(), &device).unsqueeze::<2>();
                let logits = values(model.forward(read).narrow(1, length - 1, 1));
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                let next = generator.next_token();
                assert_eq!(Some(next as usize), best, "{}", found.name);
            }
            written.insert(generator.tokens()[prompt.len()..].to_vec());
        }
        assert!(written.len() > 1, "there is something to choose");
    }
}

/// What makes no sense is refused with the field's name.
#[test]
fn combinations_without_meaning_are_refused() {
    let block = || BlockConfig::gpt2(8, 2);
    let with = |change: &dyn Fn(&mut TransformerConfig)| {
        let mut config = TransformerConfig::new(VOCAB, 8, CONTEXT, vec![block(); 2]);
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    let encoder = |pattern| {
        let mut block = block();
        block.attention.pattern = pattern;
        Some(StackConfig::new(vec![block]))
    };
    let bidirectional =
        AttentionConfig::multi_head(8, 2).with_pattern(AttentionPattern::Bidirectional);
    let cases: [(String, &str); 12] = [
        (
            with(&|config| config.encoder = encoder(AttentionPattern::Prefix)),
            "encoder.blocks.0.attention.pattern: must be bidirectional",
        ),
        (
            with(&|config| {
                config.stack.blocks[0].attention.pattern = AttentionPattern::Prefix;
                config.stack.blocks[1].attention.pattern = AttentionPattern::Bidirectional;
            }),
            "stack.blocks: mix `prefix` and `bidirectional`",
        ),
        (
            with(&|config| {
                config.stack.blocks[1].cross_attention = Some(bidirectional.clone());
            }),
            "stack.blocks: have cross-attention, but there is no encoder",
        ),
        (
            with(&|config| {
                config.encoder = encoder(AttentionPattern::Bidirectional);
                config.stack.blocks[1].cross_attention =
                    Some(bidirectional.clone().with_alibi(true));
            }),
            "stack.blocks.1.cross_attention.alibi: has no meaning between two sequences",
        ),
        (
            with(&|config| {
                config.encoder = encoder(AttentionPattern::Bidirectional);
                config.stack.blocks[0].cross_attention = Some(bidirectional.clone());
                config.stack.blocks[0].placement = NormPlacement::Parallel { shared_norm: true };
            }),
            "stack.blocks.0.placement: cannot be parallel",
        ),
        (
            with(&|config| {
                config.stack.blocks[0].attention.rotary = Some(RotaryConfig::half(3));
            }),
            "stack.blocks.0.attention.rotary.dims: must be even",
        ),
        (
            with(&|config| {
                config.stack.blocks[0].attention.scale = AttentionScale::PerHead(vec![1.0]);
            }),
            "stack.blocks.0.attention.scale.per_head: needs a number for each of the 2 heads",
        ),
        (
            with(&|config| {
                config.stack.blocks[0].mixture = Some(MixtureConfig {
                    top_k: 5,
                    ..MixtureConfig::switch(4)
                });
            }),
            "stack.blocks.0.mixture.top_k: must be at least 1 and at most n_experts (4), got 5",
        ),
        (
            with(&|config| {
                let backward = RelativeDirection::Backward;
                config.stack.relative_bias = Some(RelativeBiasConfig::t5(3, backward));
            }),
            "stack.relative_bias.n_heads: must equal",
        ),
        (
            with(&|config| config.head = HeadConfig::NextSentence),
            "head: needs the pooler",
        ),
        (
            with(&|config| {
                config.head = HeadConfig::Token {
                    n_labels: 0,
                    dropout: 0.0,
                }
            }),
            "head.n_labels: must be at least 1",
        ),
        (
            with(&|config| {
                config.stack.blocks[0].attention.pattern = AttentionPattern::Banded { window: 0 };
            }),
            "stack.blocks.0.attention.pattern.banded.window: must be at least 1",
        ),
    ];
    for (found, expected) in cases {
        assert!(found.contains(expected), "{found}\ninstead of {expected}");
    }
}

/// The golden values of the papers and of the reference implementations.
#[test]
fn positions_follow_their_formulas() {
    use burn_zoo::nn::bias::alibi_slopes;
    let slopes = alibi_slopes(8);
    assert_eq!(slopes, (1..=8).map(|k| 0.5f64.powi(k)).collect::<Vec<_>>());
    let slopes = alibi_slopes(112);
    for (head, expected) in [
        (0, 0.9170040),
        (63, 0.00390625),
        (64, 0.9576033),
        (111, 0.0163168),
    ] {
        assert!(
            (slopes[head] - expected).abs() < 1e-6,
            "{head}: {}",
            slopes[head]
        );
    }
    let causal = RelativeBiasConfig::t5(1, RelativeDirection::Backward);
    let distances = [0, 15, 16, 18, 20, 24, 32, 40, 64, 100, 113, 500];
    let buckets = distances.map(|distance| causal.bucket(distance, 0));
    assert_eq!(buckets, [0, 15, 16, 16, 17, 19, 21, 23, 26, 30, 31, 31]);
    let both = RelativeBiasConfig::t5(1, RelativeDirection::Both);
    let relative = [-128i64, -20, -8, -1, 0, 1, 7, 8, 12, 127];
    let buckets = relative.map(|relative| both.bucket(200, (200 + relative) as usize));
    assert_eq!(buckets, [15, 10, 8, 1, 0, 17, 23, 24, 25, 31]);
}

/// A limited expert drops what comes last, and the losses of a balanced router have their least value.
#[test]
fn mixtures_route_within_their_capacity() {
    let device = processor();
    init::seed(2);
    let expert = FeedForwardConfig::new(4, 6);
    let mut config = MixtureConfig::switch(3);
    config.capacity = ExpertCapacity::Limited { factor: 0.5 };
    let mixture = config.init(&expert, &device);
    let x = Tensor::<3>::from_data(data(&normal(1, 2 * 9 * 4), [2, 9, 4]), &device);
    let (output, routing) = mixture.forward(x.clone(), None);
    // ⌈0.5 · 18 / 3⌉
    assert!(
        routing.load.iter().all(|&load| load <= 3),
        "{:?}",
        routing.load
    );
    assert_eq!(routing.load.iter().sum::<usize>() + routing.dropped, 18);

    // Padding takes no room and has no part in the losses.
    let padding = Tensor::<3>::from_data(data(&normal(7, 2 * 5 * 4), [2, 5, 4]), &device);
    let visible = Tensor::<1, Int>::arange(0..14, &device).lower_elem(9);
    let visible: Tensor<2, Bool> = visible.unsqueeze::<2>().expand([2, 14]);
    let padded = Tensor::cat(vec![x.clone(), padding], 1);
    let (with_padding, same) = mixture.forward(padded, Some(visible));
    assert_eq!((same.load, same.dropped), (routing.load, routing.dropped));
    let real = with_padding.narrow(1, 0, 9);
    assert_close(&values(real), &values(output), 1e-6, "outputs");
    for (found, expected, what) in [
        (same.balance_loss, routing.balance_loss, "balance"),
        (same.z_loss, routing.z_loss, "z"),
    ] {
        assert_close(&values(found), &values(expected), 1e-6, what);
    }

    // A router of zeros gives each expert the same probability.
    let mut mixture = mixture;
    mixture.router.weight = mixture.router.weight.map(|weight| weight.zeros_like());
    let (_, routing) = mixture.forward(x, None);
    assert_close(&values(routing.balance_loss), &[1.0], 1e-6, "balance");
    assert_close(&values(routing.z_loss), &[3f64.ln().powi(2)], 1e-6, "z");
}

/// Contacts are symmetric probabilities of residues only.
#[test]
fn contacts_are_symmetric_probabilities() {
    let device = processor();
    let mut block = BlockConfig::gpt2(8, 2);
    block.attention.pattern = AttentionPattern::Bidirectional;
    let mut config = TransformerConfig::new(VOCAB, 8, CONTEXT, vec![block; 2]).with_init_std(0.5);
    config.contact_head = Some(burn_zoo::nn::contact::ContactHeadConfig { end_id: 2 });
    let model = init_model(&config, &device);
    let contacts = model
        .contacts(tokens(&[0, 5, 6, 7, 8, 2], &device))
        .unwrap();
    assert_eq!(contacts.dims(), [1, 4, 4]);
    let found = values(contacts.clone());
    assert!(found.iter().all(|p| (0.0..=1.0).contains(p)));
    assert_close(
        &values(contacts.swap_dims(1, 2)),
        &found,
        1e-6,
        "transposed contacts",
    );
    assert_eq!(config.n_parameters(), model.num_params());
}

#[test]
fn a_block_is_the_residual_sum_of_its_parts() {
    let device = processor();
    let x = Tensor::<3>::from_data(data(&normal(1, 2 * 3 * 8), [2, 3, 8]), &device);
    let placements = [
        NormPlacement::Pre,
        NormPlacement::Post,
        NormPlacement::Sandwich,
        NormPlacement::NormedResidual,
        NormPlacement::Parallel { shared_norm: false },
        NormPlacement::Parallel { shared_norm: true },
    ];
    for placement in placements {
        init::seed(5);
        let block = BlockConfig::gpt2(8, 2)
            .with_placement(placement)
            .init(&device);
        let attend = |x| block.attention.forward(x, &mut Pass::default(), None);
        let feed = |x| block.feed_forward.as_ref().unwrap().forward(x);
        let norm = |x| block.attention_norm.forward(x);
        let second = |x| match &block.feed_forward_norm {
            Some(norm) => norm.forward(x),
            None => norm(x),
        };
        let output_norms = || {
            let norms = [
                &block.attention_output_norm,
                &block.feed_forward_output_norm,
            ];
            norms.map(|norm| norm.as_ref().unwrap())
        };
        let x = || x.clone();
        let expected = match placement {
            NormPlacement::Pre => {
                let after = x() + attend(norm(x()));
                after.clone() + feed(second(after))
            }
            NormPlacement::Post => {
                let after = norm(x() + attend(x()));
                second(after.clone() + feed(after))
            }
            NormPlacement::Sandwich => {
                let [first, last] = output_norms();
                let after = x() + first.forward(attend(norm(x())));
                after.clone() + last.forward(feed(second(after)))
            }
            NormPlacement::NormedResidual => {
                let after = norm(x()) + attend(norm(x()));
                second(after.clone()) + feed(second(after))
            }
            NormPlacement::Parallel { .. } => x() + attend(norm(x())) + feed(second(x())),
        };
        let found = block.forward(x(), &mut Pass::default(), None);
        let what = format!("{placement:?}");
        assert_close(&values(found), &values(expected), 1e-5, &what);
    }
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
    let block = &model.stack.blocks[3];
    let feed_forward = block.feed_forward.as_ref().unwrap();
    for (weights, expected) in [
        (model.embedding.token.val(), 0.02),
        (block.attention.query.weight.val(), 0.02),
        (feed_forward.up.weight.val(), 0.02),
        (block.attention.output.weight.val(), residual),
        (feed_forward.down.weight.val(), residual),
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

/// The generator of a device belongs to the process: what seeds it and must draw the same again holds this.
static GENERATOR: Mutex<()> = Mutex::new(());

/// Each part drops in training, and nothing does otherwise.
#[test]
fn every_part_drops_in_training_alone() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let device = processor();
    let blocks = vec![BlockConfig::gpt2(16, 2)];
    let plain = TransformerConfig::new(VOCAB, 16, CONTEXT, blocks).with_init_std(0.5);
    let labels = |dropout, dense| HeadConfig::Sequence {
        n_labels: 3,
        state: SequenceState::First,
        dense,
        bias: true,
        dropout,
    };
    let of_tokens = |dropout| HeadConfig::Token {
        n_labels: 3,
        dropout,
    };
    let mut embedding = plain.clone();
    embedding.embedding.dropout = 0.5;
    let mut block = plain.clone();
    block.stack.blocks[0].dropout = 0.5;
    for (what, config) in [
        ("embedding", embedding),
        ("sub-layers", block),
        ("attention", plain.clone().with_attention_dropout(0.5)),
        ("classifier", plain.clone().with_head(labels(0.5, None))),
        (
            "dense",
            plain.clone().with_head(labels(0.5, Some(Activation::Tanh))),
        ),
        ("tokens", plain.clone().with_head(of_tokens(0.5))),
    ] {
        let output = |config: &TransformerConfig, device: &Device| {
            init::seed(3);
            let model = init_model(config, device);
            device.seed(3);
            let tokens = tokens(&[3, 1, 4, 1, 5, 9, 2, 6], device);
            match model.outputs(tokens).head {
                HeadOutput::Tokens(logits) => values(logits),
                HeadOutput::Sequence(logits) => values(logits),
                other => panic!("{other:?}"),
            }
        };
        let (tracked, without) = (device.clone().autodiff(), config.clone().without_dropout());
        let expected = output(&without, &tracked);
        assert_close(&output(&config, &device), &expected, 1e-6, what);
        let dropped = output(&config, &tracked);
        let change = dropped.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        assert!(change.fold(0.0, f64::max) > 0.01, "{what} drops nothing");
    }
}

/// Configurations that were written before something could be dropped there are read.
#[test]
fn configurations_without_dropout_of_attention_and_heads_are_read() {
    let blocks = vec![BlockConfig::gpt2(16, 2)];
    let config = TransformerConfig::new(VOCAB, 16, CONTEXT, blocks).with_head(HeadConfig::Token {
        n_labels: 3,
        dropout: 0.0,
    });
    let mut json = serde_json::to_value(&config).unwrap();
    let parts = ["/stack/blocks/0/attention", "/head/token"];
    for part in parts {
        let part = json.pointer_mut(part).and_then(|part| part.as_object_mut());
        assert!(part.unwrap().remove("dropout").is_some());
    }
    let read: TransformerConfig = serde_json::from_value(json).unwrap();
    assert_eq!(
        serde_json::to_value(read).unwrap(),
        serde_json::to_value(config).unwrap()
    );
}

/// A block that is computed again drops what it dropped before: the gradient is the slope of the loss.
#[test]
fn blocks_computed_again_draw_the_same_dropout() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let device = processor().autodiff();
    let blocks = vec![BlockConfig::gpt2(16, 2); 3];
    let config = TransformerConfig::new(VOCAB, 16, CONTEXT, blocks).with_init_std(0.5);
    for config in [
        config.clone().with_dropout(0.5),
        config.with_attention_dropout(0.5),
    ] {
        assert_recomputes_what_it_drew(&config, &device);
    }
}

fn assert_recomputes_what_it_drew(config: &TransformerConfig, device: &Device) {
    struct Move<'a>(&'a GradientsParams, f64);
    impl ModuleMapper for Move<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let step = self.0.get::<D>(param.id).unwrap() * self.1;
            param.map(|value| (value.inner() + step).autodiff().require_grad())
        }
    }
    let model = init_model(config, device);
    let loss = |model: &Transformer| {
        device.seed(5);
        recompute::seed(5);
        let tokens = tokens(&[3, 1, 4, 1, 5, 9, 2, 6], device);
        recompute::record(|| model.forward(tokens).square().mean())
    };
    let grads = || {
        let (loss, tape) = loss(&model);
        tape.gradients(loss, &model)
    };
    let squares = gradients(&model, grads())
        .into_iter()
        .map(|value| value * value);
    let (norm, grads) = (squares.sum::<f64>().sqrt(), grads());
    let beside = |distance: f64| {
        let moved = model.clone().map(&mut Move(&grads, distance / norm));
        values(loss(&moved).0)[0]
    };
    let slope = (beside(1e-2) - beside(-1e-2)) / 2e-2;
    assert!((slope / norm - 1.0).abs() < 0.02, "{slope}, not {norm}");
}
