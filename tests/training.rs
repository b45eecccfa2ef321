//! Training: the same on every backend, and stopped before it does harm.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{DType, Int, Tensor};
use burn_train::{Interrupter, TrainStep};
use burn_zoo::{
    data::{
        batch::TrainingData,
        windows::{Prediction, Splits, StepShape, TokenBatch, Windows},
    },
    models::directory,
    nn::{
        Inputs, LanguageModel, Transformer, TransformerConfig, attention::AttentionPattern,
        block::BlockConfig, embedding::PositionConfig, init, mixture::MixtureConfig,
        rotary::RotaryConfig,
    },
    train::{
        Recipe,
        average::AverageConfig,
        checkpoint::Checkpoints,
        objective::{LanguageModeling, Recompute, Scaled, StepConfig, Trainee},
        optimizer::{OptimizerConfig, clip_by_global_norm},
        precision::{LossScale, Precision},
        recipe::EarlyStopping,
        run::{Material, RunOptions, train},
        step_loop::{End, Record, Sampler},
        trainer::{Display, FitError, Fitted, Session, fit},
    },
};
use common::{
    assert_close, devices, processor,
    training::{
        MODEL, config, model, own_tokens, parameters, recorder, train_losses, trainee, windows,
    },
    values,
};

#[test]
fn every_backend_gives_the_same_losses() {
    let (splits, vocab_size) = own_tokens();
    let mut curves = Vec::new();
    for found in devices() {
        let (records, on_record) = recorder();
        let session = Session {
            on_record,
            ..Session::default()
        };
        let model = model(&MODEL, vocab_size, &found.device);
        let fitted = fit(
            model,
            LanguageModeling,
            &windows(&splits, &config(20)),
            &config(20),
            &found.device,
            session,
        )
        .unwrap();
        assert_eq!(fitted.outcome.end, End::Finished);
        curves.push((found.name, train_losses(&records)));
    }
    let (first, expected) = &curves[0];
    assert_eq!(expected.len(), 20);
    assert!(
        expected[19] < expected[0] - 0.2,
        "{first} learns nothing: {expected:?}"
    );
    for (name, losses) in &curves[1..] {
        for (step, (found, expected)) in losses.iter().zip(expected).enumerate() {
            let relative = (found - expected).abs() / expected;
            assert!(
                relative < 1e-3,
                "step {step}: {name} {found}, {first} {expected}"
            );
        }
    }
}

/// The gradients of two batches, each weighted by its share, are those of both as one batch.
#[test]
fn accumulated_gradients_are_those_of_one_large_batch() {
    for found in devices() {
        let device = found.device.clone().autodiff();
        let objective = trainee(model(&MODEL, 11, &device));
        let tokens = |first: i64, rows: i64| {
            let count = rows * MODEL.context_length as i64;
            let values: Vec<i64> = (0..count).map(|i| (first + i * i * 7 + i) % 11).collect();
            Tensor::<1, Int>::from_data(values.as_slice(), &device)
                .reshape([rows as usize, MODEL.context_length])
        };
        let batch = |inputs: Tensor<2, Int>, targets: Tensor<2, Int>, share| TokenBatch {
            share,
            ..TokenBatch::new(inputs, targets, None)
        };
        let inputs = [tokens(0, 2), tokens(5, 2)];
        let targets = [tokens(3, 2), tokens(8, 2)];
        let whole = batch(
            Tensor::cat(inputs.to_vec(), 0),
            Tensor::cat(targets.to_vec(), 0),
            1.0,
        );
        let expected = TrainStep::step(&objective, whole).grads;
        let mut accumulator = GradientsAccumulator::new();
        for (inputs, targets) in inputs.into_iter().zip(targets) {
            let output = TrainStep::step(&objective, batch(inputs, targets, 0.5));
            accumulator.accumulate(&objective, output.grads);
        }
        let [found_grads, expected] =
            [accumulator.grads(), expected].map(|grads| gradients(&objective, &grads));
        assert_close(&found_grads, &expected, 1e-6, &found.name);
    }
}

fn gradients<M: Module>(module: &M, grads: &GradientsParams) -> Vec<f64> {
    struct Collect<'a>(&'a GradientsParams, Vec<f64>);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.extend(values(
                self.0
                    .get::<D>(param.id)
                    .expect("every parameter takes part"),
            ));
        }
    }
    let mut collect = Collect(grads, Vec::new());
    module.visit(&mut collect);
    collect.1
}

#[test]
fn clipping_keeps_the_direction_and_bounds_the_norm() {
    let device = processor().autodiff();
    let objective = trainee(model(&MODEL, 11, &device));
    let inputs = Tensor::<2, Int>::ones([2, MODEL.context_length], &device);
    let batch = TokenBatch::new(inputs.clone(), inputs * 3, None);
    let grads = || TrainStep::step(&objective, batch.clone()).grads;
    let whole = gradients(&objective, &grads());
    let norm = whole.iter().map(|x| x * x).sum::<f64>().sqrt();

    let clipped = clip_by_global_norm(&objective, grads(), norm as f32 / 4.0);
    let quarter: Vec<f64> = whole.iter().map(|x| x / 4.0).collect();
    assert_close(&gradients(&objective, &clipped), &quarter, 1e-5, "clipped");
    let untouched = clip_by_global_norm(&objective, grads(), norm as f32 * 2.0);
    assert_eq!(gradients(&objective, &untouched), whole);
}

/// Biases and norms do not decay: with no gradient to speak of, only matrices shrink.
#[test]
fn only_matrices_decay() {
    struct Zero(GradientsParams);
    impl ModuleVisitor for Zero {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.register(param.id, param.val().inner().zeros_like());
        }
    }
    /// Ones everywhere, so that what shrinks shows.
    struct Ones;
    impl ModuleMapper for Ones {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.ones_like())
        }
    }
    let device = processor().autodiff();
    let model = model(&MODEL, 11, &device).map(&mut Ones);
    let mut optimizer = OptimizerConfig {
        weight_decay: 0.5,
        ..OptimizerConfig::new(0.1)
    }
    .init(&model)
    .unwrap();
    let mut zero = Zero(GradientsParams::new());
    model.visit(&mut zero);
    let model = optimizer.step(0.1, model, zero.0);

    struct Check;
    impl ModuleVisitor for Check {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let expected = if D == 1 { 1.0 } else { 1.0 - 0.1 * 0.5 };
            let found = values(param.val().inner());
            assert_close(
                &found,
                &vec![expected; found.len()],
                1e-6,
                &format!("rank {D}"),
            );
        }
    }
    model.visit(&mut Check);
}

/// A model whose logits are poisoned from some forward pass on.
#[derive(Module, Debug)]
struct Poisoned {
    model: Transformer,
    #[module(skip)]
    remaining: Arc<AtomicUsize>,
}

impl LanguageModel for Poisoned {
    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let logits = self.model.forward(tokens);
        let healthy = self
            .remaining
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok();
        if healthy { logits } else { logits * f32::NAN }
    }
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run() {
    let splits = Splits {
        train: [0, 1].repeat(100).into(),
        valid: [0, 1].repeat(9).into(),
    };
    let device = processor();
    let mut config = config(30);
    config.training.eval_interval = 5;
    let folder = tempfile::tempdir().unwrap();
    let poisoned = |remaining| Poisoned {
        model: model(&MODEL, 2, &device),
        remaining: Arc::new(AtomicUsize::new(remaining)),
    };
    let session = || Session {
        folder: Some(folder.path().to_owned()),
        ..Session::default()
    };
    // 5 steps, an evaluation of 2 batches, 4 steps: the tenth is poisoned.
    match fit(
        poisoned(11),
        LanguageModeling,
        &windows(&splits, &config),
        &config,
        &device,
        session(),
    ) {
        Err(
            error @ FitError::NonFiniteLoss {
                step: 10,
                last_good: Some(5),
            },
        ) => {
            let message = error.to_string();
            assert!(
                message.contains("at step 10") && message.contains("step 5"),
                "{message}"
            );
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the loss was not a number"),
    }
    // The checkpoint is whole: the run continues from it.
    let session = Session {
        resume: true,
        ..session()
    };
    let Fitted { outcome, .. } = fit(
        poisoned(usize::MAX),
        LanguageModeling,
        &windows(&splits, &config),
        &config,
        &device,
        session,
    )
    .unwrap();
    assert_eq!((outcome.end, outcome.state.step), (End::Finished, 30));
}

#[test]
fn early_stopping_keeps_the_best_model() {
    // What is learned is wrong for what is held out, so that the first evaluation is the best.
    let splits = Splits {
        train: [0, 1, 2, 3].repeat(50).into(),
        valid: [3, 2, 1, 0].repeat(50).into(),
    };
    let device = processor();
    let mut config = config(500);
    config.training.eval_interval = 10;
    config.training.keep_checkpoints = 1;
    config.training.early_stopping = Some(EarlyStopping { patience: 3 });
    let folder = tempfile::tempdir().unwrap();
    let (records, on_record) = recorder();
    let session = Session {
        folder: Some(folder.path().to_owned()),
        on_record,
        ..Session::default()
    };
    let fitted = fit(
        model(&MODEL, 4, &device),
        LanguageModeling,
        &windows(&splits, &config),
        &config,
        &device,
        session,
    )
    .unwrap();
    assert_eq!(fitted.outcome.end, End::EarlyStopped);
    let best = fitted.outcome.state.best.unwrap();
    assert_eq!(fitted.outcome.state.step, best.step + 3 * 10);
    let evaluations: Vec<(usize, f64)> = records
        .lock()
        .unwrap()
        .iter()
        .filter_map(|record| match *record {
            Record::Valid {
                step, valid_loss, ..
            } => Some((step, valid_loss)),
            Record::Train { .. } | Record::Sample { .. } => None,
        })
        .collect();
    let lowest = evaluations
        .iter()
        .copied()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap();
    assert_eq!(lowest, (best.step, best.loss));

    // The model that is returned is the one that gave that loss.
    let seq = MODEL.context_length;
    let n = (splits.valid.len() - 1) / seq * seq;
    let rows = |shift: usize| {
        let mut tokens = Vec::new();
        splits.valid.read(shift..shift + n, &mut tokens).unwrap();
        let values: Vec<i64> = tokens.into_iter().map(i64::from).collect();
        Tensor::<1, Int>::from_data(values.as_slice(), &device).reshape([n / seq, seq])
    };
    let loss = trainee(fitted.model)
        .forward(&TokenBatch::new(rows(0), rows(1), None))
        .loss
        .mean;
    // All but the last few predictions.
    assert!((values(loss)[0] - best.loss).abs() < 0.02);
}

#[test]
fn old_checkpoints_go_but_the_best_stays() {
    let (splits, vocab_size) = own_tokens();
    let device = processor();
    let mut config = config(25);
    config.training.eval_interval = 5;
    config.training.keep_checkpoints = 2;
    let folder = tempfile::tempdir().unwrap();
    let session = Session {
        folder: Some(folder.path().to_owned()),
        ..Session::default()
    };
    let fitted = fit(
        model(&MODEL, vocab_size, &device),
        LanguageModeling,
        &windows(&splits, &config),
        &config,
        &device,
        session,
    )
    .unwrap();
    let checkpoints = Checkpoints::open(&folder.path().join("checkpoint"), 2).unwrap();
    let best = fitted.outcome.state.best.unwrap().step;
    let expected = std::collections::BTreeSet::from([best, 20, 25]);
    assert_eq!(checkpoints.steps(), expected);
}

/// Computing blocks again in the backward pass changes memory, not what is learned, with several batches a step too.
#[test]
fn recomputed_blocks_learn_the_same() {
    let (splits, vocab_size) = own_tokens();
    let device = processor();
    let losses = |recompute| {
        let mut config = config(10);
        config.training.recompute = recompute;
        config.training.accumulation = 2;
        let (records, on_record) = recorder();
        let session = Session {
            on_record,
            ..Session::default()
        };
        let model = model(&MODEL, vocab_size, &device);
        let windows = windows(&splits, &config);
        fit(model, LanguageModeling, &windows, &config, &device, session).unwrap();
        train_losses(&records)
    };
    let [block, nothing] = [Recompute::Block, Recompute::Nothing].map(losses);
    assert_close(&block, &nothing, 1e-6, "recomputed");
}

/// In half precision, a training goes nearly the same way, resumes exactly, and is refused where the backend
/// does not compute in it.
#[test]
fn half_precision_learns_nearly_the_same() {
    let (splits, vocab_size) = own_tokens();
    for found in devices() {
        let losses = |precision| {
            let mut config = config(20);
            config.training.precision = precision;
            config.training.eval_interval = 7;
            let folder = tempfile::tempdir().unwrap();
            let (records, on_record) = recorder();
            // As a whole, and broken off after the first evaluation.
            let mut all = Vec::new();
            for stops in [&[20][..], &[7, 20]] {
                let folder = folder.path().join(stops.len().to_string());
                for (index, &iterations) in stops.iter().enumerate() {
                    let interrupter = Interrupter::new();
                    let (handle, record) = (interrupter.clone(), on_record.clone());
                    let session = Session {
                        folder: Some(folder.clone()),
                        resume: index > 0,
                        interrupter,
                        on_record: Arc::new(move |event| {
                            if matches!(event, Record::Valid { step, .. } if step == iterations) {
                                handle.stop(None);
                            }
                            record(event);
                        }),
                        ..Session::default()
                    };
                    let model = model(&MODEL, vocab_size, &found.device);
                    let windows = windows(&splits, &config);
                    fit(
                        model,
                        LanguageModeling,
                        &windows,
                        &config,
                        &found.device,
                        session,
                    )?;
                }
                all.push(train_losses(&records));
                records.lock().unwrap().clear();
            }
            assert_eq!(all[0], all[1], "{precision:?} resumed on {}", found.name);
            Ok::<_, FitError>(all.remove(0))
        };
        let full = losses(Precision::F32).unwrap();
        for (precision, tolerance) in [(Precision::Bf16, 2e-2), (Precision::F16, 3e-3)] {
            match (losses(precision), precision.check(&found.device)) {
                (Ok(half), Ok(())) => {
                    assert_ne!(half, full);
                    assert_close(&half, &full, tolerance, &format!("{precision:?}"));
                }
                (Err(error), Err(refusal)) => assert_eq!(error.to_string(), refusal.to_string()),
                (_, check) => panic!("{precision:?} on {}: {check:?}", found.name),
            }
        }
    }
}

/// Whatever a model is made of, it gives nearly the same in 16 bits as in 32.
#[test]
fn every_component_computes_in_half_precision() {
    let device = processor();
    let block = BlockConfig::gpt2(16, 2);
    let mut rotary = block.clone();
    rotary.attention.rotary = Some(RotaryConfig::half(8));
    let mut alibi = block.clone();
    alibi.attention.alibi = true;
    let mut prefix = block.clone();
    prefix.attention.pattern = AttentionPattern::Prefix;
    let experts = block.clone().with_mixture(Some(MixtureConfig::top_two(3)));
    let plain = |block| TransformerConfig::uniform(11, 8, 2, block);
    for (name, config) in [
        ("rotary", plain(rotary).with_position(PositionConfig::None)),
        ("ALiBi", plain(alibi).with_position(PositionConfig::None)),
        (
            "sinusoidal",
            plain(block).with_position(PositionConfig::Sinusoidal),
        ),
        ("prefix", plain(prefix)),
        ("experts", plain(experts)),
    ] {
        init::seed(3);
        let model = config.init(&device);
        let tokens = Tensor::<2, Int>::from_data([[1, 5, 2, 9, 10, 3]], &device);
        let inputs = || Inputs {
            prefix_lengths: Some(Tensor::from_data([2], &device)),
            ..tokens.clone().into()
        };
        let expected = values(model.forward_routed(inputs()).0);
        let half = Precision::F16.cast(&model).forward_routed(inputs()).0;
        assert_eq!(half.dtype(), DType::F16, "{name}");
        assert_close(&values(half), &expected, 3e-3, name);
    }
}

/// Gradients that overflow leave the model as it is, and the scale halves.
#[test]
fn an_overflowing_step_is_left_out() {
    let device = processor().autodiff();
    let step = StepConfig {
        precision: Precision::F16,
        ..StepConfig::default()
    };
    let mut trainee = Trainee::new(model(&MODEL, 11, &device), LanguageModeling, step);
    let mut optimizer = OptimizerConfig::new(0.01).init(&trainee).unwrap();
    let inputs = Tensor::<2, Int>::ones([2, MODEL.context_length], &device);
    let batch = TokenBatch::new(inputs.clone(), inputs * 3, None);
    let mut moved = Vec::new();
    for factor in [f32::MAX / 4.0, 1024.0] {
        trainee = trainee.with_loss_scale(Some(LossScale { factor, steps: 5 }));
        let before = parameters(&trainee);
        let output = TrainStep::step(&trainee, batch.clone());
        trainee = trainee.optimize(&mut optimizer, 0.01.into(), output.grads);
        moved.push(parameters(&trainee) != before);
        let expected = match moved.len() {
            1 => LossScale {
                factor: factor / 2.0,
                steps: 0,
            },
            _ => LossScale { factor, steps: 6 },
        };
        assert_eq!(trainee.loss_scale(), Some(expected));
    }
    assert_eq!(moved, [false, true]);
}

/// With a mean of weights, the mean is what is evaluated, sampled from and returned, and training itself is
/// as without.
#[test]
fn the_mean_of_weights_is_what_a_training_leaves() {
    let (splits, vocab_size) = own_tokens();
    let device = processor();
    let train = |ema, sampled: Option<&Arc<Mutex<Vec<Vec<f64>>>>>| {
        let mut config = config(12);
        config.training.eval_interval = 6;
        config.training.sample_interval = Some(4);
        config.training.ema = ema;
        let (records, on_record) = recorder();
        let sampler = sampled.cloned().map(|sampled| {
            let sampler: Sampler<Transformer> = Arc::new(move |model: &Transformer| {
                sampled.lock().unwrap().push(parameters(model));
                Some("text".to_owned())
            });
            sampler
        });
        let session = Session {
            on_record,
            sampler,
            ..Session::default()
        };
        let model = model(&MODEL, vocab_size, &device);
        let windows = windows(&splits, &config);
        let fitted = fit(model, LanguageModeling, &windows, &config, &device, session).unwrap();
        (fitted, records)
    };
    let live = Arc::default();
    let (plain, plain_records) = train(None, Some(&live));
    let means = Arc::default();
    let (averaged, records) = train(Some(AverageConfig { decay: 0.5 }), Some(&means));
    assert_eq!(train_losses(&records), train_losses(&plain_records));
    let samples = records.lock().unwrap();
    let samples = samples.iter().filter_map(|record| match record {
        Record::Sample { step, .. } => Some(*step),
        Record::Train { .. } | Record::Valid { .. } => None,
    });
    assert_eq!(samples.collect::<Vec<_>>(), [4, 8, 12]);
    let (live, means) = (live.lock().unwrap(), means.lock().unwrap());
    assert_eq!(live[2], parameters(&plain.model));
    assert_eq!(means[2], parameters(&averaged.model));
    // It lags behind: nearer to where the training was some steps ago than where it is.
    let distance =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    assert!(distance(&means[2], &live[2]) > 0.0);
    assert!(distance(&means[2], &live[2]) < distance(&live[1], &live[2]));
    let valid = |fitted: &Fitted<Transformer>| fitted.outcome.state.valid.unwrap().loss;
    assert_ne!(valid(&averaged), valid(&plain));
}

/// The losses of routers are part of what is minimised: with all else equal, a larger coefficient gives the
/// router another gradient.
#[test]
fn the_losses_of_routers_reach_the_training_loss() {
    let device = processor().autodiff();
    let router_gradient = |balance_coefficient: f64| {
        let mixture = MixtureConfig {
            balance_coefficient,
            z_coefficient: 0.0,
            ..MixtureConfig::top_two(3)
        };
        let block = BlockConfig::gpt2(8, 2).with_mixture(Some(mixture));
        init::seed(4);
        let model = TransformerConfig::new(11, 8, 6, vec![block]).init(&device);
        let objective = trainee(model);
        let tokens = Tensor::<2, Int>::from_data([[1, 5, 2, 9, 10, 3]], &device);
        let batch = TokenBatch::new(tokens.clone(), tokens, None);
        let output = TrainStep::step(&objective, batch);
        let mixture = objective.model.stack.blocks[0].mixture.as_ref().unwrap();
        let gradient = output.grads.get::<2>(mixture.router.weight.id).unwrap();
        (values(gradient), output.item.facts().unwrap().loss)
    };
    let (without, loss) = router_gradient(0.0);
    let (with, same_loss) = router_gradient(10.0);
    // What is reported is the loss of the predictions alone.
    assert_eq!(loss, same_loss);
    let difference: f64 = without.iter().zip(&with).map(|(a, b)| (a - b).abs()).sum();
    assert!(difference > 1e-3, "{difference}");
}

/// What a window asks for after a prefix.
#[test]
fn windows_ask_for_what_follows_a_prefix() {
    let device = processor();
    let tokens: Vec<u32> = (0..200).map(|index| index % 50).collect();
    let shape = StepShape {
        batch_size: 6,
        accumulation: 1,
        context_length: 10,
    };
    let splits = Splits {
        train: tokens.clone().into(),
        valid: tokens.into(),
    };
    let windows = |prediction| {
        let windows = Windows::new(splits.clone(), shape, prediction, 3).unwrap();
        let windows = windows.train(0..5, &device);
        let batches: Vec<TokenBatch> = windows.iter().map(Result::unwrap).collect();
        batches
    };
    let read = |tensor: Tensor<2, Int>| {
        tensor
            .into_data()
            .convert_dtype(DType::I64)
            .try_to_vec::<i64>()
            .unwrap()
    };
    for batch in windows(Prediction::AfterPrefix) {
        let lengths = batch
            .inputs
            .prefix_lengths
            .unwrap()
            .into_data()
            .convert_dtype(DType::I64);
        let lengths = lengths.try_to_vec::<i64>().unwrap();
        let (inputs, targets) = (read(batch.inputs.tokens), read(batch.targets));
        let asked = targets.iter().filter(|&&target| target >= 0).count();
        assert_eq!(asked, batch.asked.unwrap().n);
        for (row, &length) in lengths.iter().enumerate() {
            for position in 0..10 {
                let (input, target) = (inputs[row * 10 + position], targets[row * 10 + position]);
                let expected = match position + 1 < length as usize {
                    true => -1,
                    false => (input + 1) % 50,
                };
                assert_eq!(target, expected);
            }
        }
    }
}

/// Each recipe of the repository trains: two short steps of each, as `burn-zoo train` takes them.
#[test]
fn the_example_recipes_train() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/recipes");
    let text: String = burn_zoo::OWN_TEXT.chars().take(6_000).collect();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let overrides = [
            ("loop.iterations", "2"),
            ("loop.batch_size", "1"),
            ("data.valid_fraction", "0.1"),
        ];
        let overrides = overrides.map(|(key, value)| (key.to_owned(), value.to_owned()));
        // Those of labels need a model to start from: see tests/labelled.rs. Those of data have none, and that of
        // packed tokens has no tokenizer: see tests/data.rs.
        let text_of_recipe = std::fs::read_to_string(&path).unwrap();
        if !text_of_recipe.contains("[model.") || path.ends_with("packed.toml") {
            continue;
        }
        let recipe = Recipe::read(&path, &overrides).unwrap();
        let out = tempfile::tempdir().unwrap();
        let options = RunOptions {
            display: Display::Silent,
            ..RunOptions::new(out.path().join("run"), "flex")
        };
        let run = train(&recipe, Material::Text(&text), &processor(), options);
        let summary = run
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .summary;
        let summary = summary.unwrap();
        assert!(summary.valid_loss.is_finite(), "{}", path.display());
        let has_experts = path.ends_with("wudao-style.toml");
        assert_eq!(summary.expert_load.is_some(), has_experts);
        for load in summary.expert_load.unwrap_or_default() {
            assert!((load.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{load:?}");
        }
        // And what it leaves is a model of the family.
        directory::load(&out.path().join("run"), &processor()).unwrap();
    }
}
