//! What objectives ask, and what their losses leave out: padding, and other documents.

mod common;

use std::sync::{PoisonError, RwLock};

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, DType, Device, Int, Tensor};
use burn_train::TrainStep;
use burn_zoo::{
    data::{
        batch::{Batch, TrainingData},
        pairs::{PairBatch, PairMarks, SentencePairs},
        sentences::Sentences,
        shards::TokenSource,
        vocabulary::{TokenKind, Vocabulary},
        windows::{
            Asked, Corruption, Infilling, InfillingMarks, Masking, NOT_ASKED, Noise, Order,
            Prediction, Splits, StepShape, TokenBatch, Windows,
        },
    },
    models::{directory, family::Architecture},
    nn::{Inputs, Transformer, TransformerConfig, block::BlockConfig, head::HeadOutput, init},
    ops::cores,
    train::{
        Recipe,
        objective::{LanguageModeling, Objective, Pretraining, Recompute, StepConfig, Trainee},
        run::{Material, RunOptions, train},
        trainer::Display,
    },
};
use common::{assert_close, devices, processor, values};
use serde_json::{Value, json};

/// Tokens of text are 0 to 39, the first half begin words; 40 to 49 are special.
const N_TEXT: u32 = 40;
const VOCAB_SIZE: usize = 50;
const MASK: u32 = 40;

fn model(fields: Value, device: &Device) -> Transformer {
    let Value::Object(mut fields) = fields else {
        panic!("{fields} is no object")
    };
    fields.insert("vocab_size".to_owned(), VOCAB_SIZE.into());
    init::seed(11);
    let architecture = Architecture::for_training(fields).unwrap();
    architecture.transformer.init(device)
}

fn bert(device: &Device) -> Transformer {
    let fields = json!({
        "model_type": "bert", "architectures": ["BertForPreTraining"], "num_hidden_layers": 2,
        "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24,
        "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3,
    });
    model(fields, device)
}

fn glm(device: &Device) -> Transformer {
    let fields = json!({
        "model_type": "wudao2", "num_hidden_layers": 2, "num_attention_heads": 2,
        "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64,
        "num_experts": 0, "initializer_range": 0.3,
    });
    model(fields, device)
}

fn t5(device: &Device) -> Transformer {
    let fields = json!({
        "model_type": "t5", "num_layers": 2, "num_heads": 2, "d_model": 16, "d_kv": 8,
        "d_ff": 24, "n_positions": 32, "dropout_rate": 0.0,
    });
    model(fields, device)
}

fn text(length: usize) -> Vec<u32> {
    (0..length as u32)
        .map(|i| (i * i + 3 * i) % N_TEXT)
        .collect()
}

fn masking() -> Masking {
    let kinds: Vec<TokenKind> = (0..VOCAB_SIZE as u32)
        .map(|id| match id {
            0..20 => TokenKind::WordStart,
            20..N_TEXT => TokenKind::WordPart,
            _ => TokenKind::Special,
        })
        .collect();
    Masking {
        probability: 0.3,
        whole_words: true,
        mask: MASK,
        vocabulary: Vocabulary::new(kinds),
    }
}

fn infilling(long_share: f64) -> Prediction {
    Prediction::Infilled(Infilling {
        density: 0.2,
        mean_span_length: 2.0,
        long_share,
        marks: InfillingMarks {
            mask: MASK,
            long_mask: 41,
            start: 42,
            end: 43,
        },
    })
}

fn corruption() -> Prediction {
    Prediction::Corrupted(Corruption {
        noise: Noise {
            density: 0.2,
            mean_span_length: 2.0,
        },
        sentinels: [49, 48, 47, 46, 45].into(),
        end: 41,
        decoder_start: 40,
    })
}

fn first<B: Batch>(data: &dyn TrainingData<B>, device: &Device) -> B {
    let batches = data.train(0..1, device);
    let mut batches = batches.iter();
    batches.next().unwrap().unwrap()
}

fn shape(context_length: usize) -> StepShape {
    StepShape {
        batch_size: 6,
        accumulation: 1,
        context_length,
    }
}

fn windows(prediction: Prediction, context_length: usize, device: &Device) -> TokenBatch {
    let splits = Splits {
        train: text(500).into(),
        valid: text(200).into(),
    };
    let windows = Windows::new(splits, shape(context_length), prediction, 5).unwrap();
    first(&windows, device)
}

/// Passages in a shuffled order come once each in a pass, and differently in the next.
#[test]
fn a_pass_reads_each_passage_once() {
    let device = processor();
    let train: Vec<u32> = (0..61).collect();
    let splits = Splits {
        train: train.into(),
        valid: text(20).into(),
    };
    // Ten passages of six tokens and one to predict: five steps of two batches make three passes.
    let shape = StepShape {
        batch_size: 3,
        accumulation: 2,
        context_length: 6,
    };
    let windows = Windows::new(splits, shape, Prediction::Next, 5).unwrap();
    let windows = windows.with_order(Order::Shuffled);
    let firsts = |steps: std::ops::Range<usize>| -> Vec<i64> {
        let batches = windows.train(steps, &device);
        let batches = batches.iter().map(|batch| batch.unwrap());
        batches
            .flat_map(|batch| integers(batch.inputs.tokens.narrow(1, 0, 1)))
            .collect()
    };
    let seen = firsts(0..5);
    let passes: Vec<&[i64]> = seen.chunks(10).collect();
    for pass in &passes {
        let mut sorted = pass.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).map(|n| n * 6).collect::<Vec<i64>>());
    }
    assert_ne!(passes[0], passes[1]);
    assert_eq!(firsts(3..5), seen[18..], "from a later step");
}

fn pairs(device: &Device) -> PairBatch {
    let sentence = |number: usize| text(number % 7 + 3)[number % 3..].to_vec();
    let documents: Vec<Vec<Vec<u32>>> = (0..9)
        .map(|document| {
            (0..document % 4 + 2)
                .map(|i| sentence(document * 5 + i))
                .collect()
        })
        .collect();
    let sentences = Sentences::new(&documents);
    let marks = PairMarks {
        begin: 41,
        separator: 42,
        padding: 43,
    };
    let splits = [sentences.clone(), sentences];
    let pairs = SentencePairs::new(splits, shape(30), marks, masking(), 3).unwrap();
    first(&pairs, device)
}

fn integers<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i64> {
    let data = tensor.into_data().convert_dtype(DType::I64);
    data.try_to_vec::<i64>().unwrap()
}

fn gradients<M: Module>(module: &M, grads: &GradientsParams) -> Vec<f64> {
    struct Collect<'a>(&'a GradientsParams, Vec<f64>);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            match self.0.get::<D>(param.id) {
                Some(gradient) => self.1.extend(values(gradient)),
                // What takes no part, such as a table that only one model has use for.
                None => self.1.extend(vec![0.0; param.shape().num_elements()]),
            }
        }
    }
    let mut collect = Collect(grads, Vec::new());
    module.visit(&mut collect);
    collect.1
}

/// The loss and the gradients of a batch.
fn learn<O: Objective<Transformer>>(
    model: Transformer,
    objective: O,
    batch: O::Batch,
) -> (f64, Vec<f64>) {
    learn_by(StepConfig::default(), model, objective, batch)
}

fn learn_by<O: Objective<Transformer>>(
    config: StepConfig,
    model: Transformer,
    objective: O,
    batch: O::Batch,
) -> (f64, Vec<f64>) {
    let trainee = Trainee::new(model, objective, config);
    let output = TrainStep::step(&trainee, batch);
    let loss = output.item.facts().unwrap().loss;
    (loss, gradients(&trainee, &output.grads))
}

/// Adds as many columns as there are, all of them `fill`.
fn doubled(matrix: Tensor<2, Int>, fill: i64) -> Tensor<2, Int> {
    let more = matrix.zeros_like() + fill;
    Tensor::cat(vec![matrix, more], 1)
}

/// Where targets ask for something.
fn asked(targets: Tensor<2, Int>) -> Asked {
    let ([_, seq], device) = (targets.dims(), targets.device());
    let targets: Vec<i32> = integers(targets).into_iter().map(|id| id as i32).collect();
    Asked::new(targets.chunks(seq), &device)
}

fn doubled_inputs(inputs: Inputs, padding: i64) -> Inputs {
    let real: Tensor<2, Int> = match inputs.visible {
        Some(visible) => visible.int(),
        None => inputs.tokens.ones_like(),
    };
    let visible: Tensor<2, Bool> = doubled(real, 0).equal_elem(1);
    Inputs {
        tokens: doubled(inputs.tokens, padding),
        visible: Some(visible),
        segments: inputs.segments.map(|segments| doubled(segments, 0)),
        positions: inputs.positions.map(|positions| doubled(positions, 0)),
        block_positions: inputs
            .block_positions
            .map(|positions| doubled(positions, 0)),
        decoder_tokens: inputs.decoder_tokens.map(|tokens| doubled(tokens, padding)),
        ..inputs
    }
}

fn assert_same((loss, gradients): (f64, Vec<f64>), (other, others): (f64, Vec<f64>), what: &str) {
    assert!((loss - other).abs() < 1e-6, "{what}: {loss}, {other}");
    assert_close(&gradients, &others, 1e-6, what);
    assert!(
        others.iter().any(|gradient| gradient.abs() > 1e-3),
        "{what}"
    );
}

#[test]
fn doubling_the_padding_of_pairs_changes_nothing() {
    let device = processor().autodiff();
    let batch = pairs(&device);
    assert!(
        batch.inputs.visible.is_some(),
        "no pair is shorter than another"
    );
    let padded = PairBatch {
        inputs: doubled_inputs(batch.inputs.clone(), 43),
        asked: asked(doubled(batch.targets.clone(), NOT_ASKED.into())),
        targets: doubled(batch.targets.clone(), NOT_ASKED.into()),
        ..batch.clone()
    };
    let expected = learn(bert(&device), Pretraining, batch);
    assert_same(learn(bert(&device), Pretraining, padded), expected, "pairs");
}

#[test]
fn doubling_the_padding_of_windows_changes_nothing() {
    let device = processor().autodiff();
    let cases = [
        ("masked", bert(&device), Prediction::Masked(masking()), 20),
        ("infilled", glm(&device), infilling(0.3), 30),
        ("corrupted", t5(&device), corruption(), 20),
    ];
    for (what, model, prediction, context) in cases {
        let batch = windows(prediction, context, &device);
        if what == "infilled" {
            assert!(
                batch.inputs.visible.is_some(),
                "no window is shorter than another"
            );
        }
        let targets = doubled(batch.targets.clone(), NOT_ASKED.into());
        let padded = TokenBatch::new(
            doubled_inputs(batch.inputs.clone(), 44),
            targets.clone(),
            Some(asked(targets)),
        );
        let expected = learn(model.clone(), LanguageModeling, batch);
        assert_same(learn(model, LanguageModeling, padded), expected, what);
    }
}

/// Replicas draw their seeds from the generator of the device, which is one for all tests, and every training seeds it: a
/// test that must draw the same again holds this alone.
static GENERATOR: RwLock<()> = RwLock::new(());

fn replicas(replicas: usize) -> StepConfig {
    StepConfig {
        replicas,
        ..StepConfig::default()
    }
}

/// Those that compute parts of a batch at once.
fn devices_with_replicas() -> Vec<(String, Device)> {
    let found = devices().into_iter();
    let found = found.filter(|found| cores(&found.device) > 0);
    let found: Vec<_> = found
        .map(|found| (found.name, found.device.autodiff()))
        .collect();
    assert!(!found.is_empty(), "flex is a default feature");
    found
}

/// Also where parts differ in how much they are asked, and there are fewer sequences than replicas.
#[test]
fn replicas_learn_what_one_model_does() {
    let _shared = GENERATOR.read().unwrap_or_else(PoisonError::into_inner);
    for (name, device) in devices_with_replicas() {
        let cases = [
            ("masked", bert(&device), Prediction::Masked(masking()), 20),
            ("infilled", glm(&device), infilling(0.3), 30),
            ("corrupted", t5(&device), corruption(), 20),
            ("next", glm(&device), Prediction::Next, 30),
        ];
        for (what, model, prediction, context) in cases {
            let batch = windows(prediction, context, &device);
            let expected = learn(model.clone(), LanguageModeling, batch.clone());
            for count in [2, 3, 64] {
                let config = replicas(count);
                let found = learn_by(config, model.clone(), LanguageModeling, batch.clone());
                assert_same(found, expected.clone(), &format!("{name}, {what}, {count}"));
            }
        }
    }
}

/// Each replica has draws of its own, which follow from the seed of the device; so has each of its blocks that is computed
/// again.
#[test]
fn replicas_drop_the_same_again_from_the_same_seed() {
    let _alone = GENERATOR.write().unwrap_or_else(PoisonError::into_inner);
    for (name, device) in devices_with_replicas() {
        let config = TransformerConfig::uniform(VOCAB_SIZE, 64, 2, BlockConfig::gpt2(16, 2))
            .with_dropout(0.3)
            .with_attention_dropout(0.2);
        init::seed(3);
        let model = config.init(&device);
        let batch = windows(Prediction::Next, 30, &device);
        for recompute in [Recompute::Nothing, Recompute::Block] {
            let config = StepConfig {
                recompute,
                ..replicas(2)
            };
            let learn = |seed| {
                device.seed(seed);
                learn_by(config, model.clone(), LanguageModeling, batch.clone())
            };
            let (first, again, other) = (learn(3), learn(3), learn(4));
            assert!(
                first == again,
                "{name}: another gradient from the same seed"
            );
            assert!(
                first != other,
                "{name}: the same gradient from another seed"
            );
        }
    }
}

/// `-log p` of each class at its row, by hand.
fn costs(logits: Vec<f64>, classes: &[i64]) -> Vec<f64> {
    let n_classes = logits.len() / classes.len();
    let rows = logits.chunks(n_classes).zip(classes);
    let asked = rows.filter(|(_, class)| **class >= 0);
    let cost = |(row, class): (&[f64], &i64)| {
        let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
        sum.ln() - row[*class as usize]
    };
    asked.map(cost).collect()
}

fn mean(values: Vec<f64>) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn the_loss_of_pairs_is_that_of_tokens_and_relations() {
    let device = processor().autodiff();
    let (model, batch) = (bert(&device), pairs(&device));
    let HeadOutput::Pretraining(logits, relations) = model.outputs(batch.inputs.clone()).head
    else {
        panic!("a BERT for pre-training gives both");
    };
    let tokens = costs(values(logits), &integers(batch.targets.clone()));
    assert_eq!(tokens.len(), batch.asked.n);
    let labels = integers(batch.relations.clone());
    // Both kinds of pairs are there.
    assert!(labels.contains(&0) && labels.contains(&1), "{labels:?}");
    let expected = mean(tokens) + mean(costs(values(relations), &labels));
    let (loss, _) = learn(model, Pretraining, batch);
    assert!((loss - expected).abs() < 1e-5, "{loss}, {expected}");
}

#[test]
fn the_loss_of_a_decoder_is_that_of_what_it_writes() {
    let device = processor().autodiff();
    let (model, batch) = (t5(&device), windows(corruption(), 20, &device));
    let decoder_tokens = integers(batch.inputs.decoder_tokens.clone().unwrap());
    let targets = integers(batch.targets.clone());
    let [rows, seq] = batch.targets.dims();
    for row in 0..rows {
        let (first, last) = (row * seq, (row + 1) * seq);
        assert_eq!(decoder_tokens[first], 40);
        assert_eq!(decoder_tokens[first + 1..last], targets[first..last - 1]);
        assert_eq!((targets[first], targets[last - 1]), (49, 41));
    }
    let HeadOutput::Tokens(logits) = model.outputs(batch.inputs.clone()).head else {
        panic!("a T5 for generation scores the vocabulary");
    };
    let expected = mean(costs(values(logits), &targets));
    let (loss, _) = learn(model, LanguageModeling, batch);
    assert!((loss - expected).abs() < 1e-5, "{loss}, {expected}");
}

#[test]
fn a_smoothed_loss_spreads_a_share_over_all_tokens() {
    let device = processor().autodiff();
    let model = bert(&device);
    let batch = windows(Prediction::Masked(masking()), 20, &device);
    let HeadOutput::Pretraining(logits, _) = model.outputs(batch.inputs.clone()).head else {
        panic!("a BERT for pre-training scores the vocabulary");
    };
    let (logits, targets) = (values(logits), integers(batch.targets.clone()));
    let plain = mean(costs(logits.clone(), &targets));
    let each = (0..VOCAB_SIZE as i64).map(|token| {
        let asked = targets
            .iter()
            .map(|&target| if target < 0 { -1 } else { token });
        mean(costs(logits.clone(), &asked.collect::<Vec<_>>()))
    });
    let expected = 0.9 * plain + 0.1 * mean(each.collect());
    let smoothed = StepConfig {
        label_smoothing: 0.1,
        ..StepConfig::default()
    };
    for (config, expected) in [(StepConfig::default(), plain), (smoothed, expected)] {
        let trainee = Trainee::new(model.clone(), LanguageModeling, config);
        let loss = values(trainee.forward(&batch).loss.mean)[0];
        assert!((loss - expected).abs() < 1e-5, "{loss}, {expected}");
    }
}

#[test]
fn a_batch_that_asks_nothing_costs_nothing() {
    let device = processor().autodiff();
    let batch = windows(Prediction::Masked(masking()), 20, &device);
    let targets = batch.targets.full_like(NOT_ASKED);
    let batch = TokenBatch::new(batch.inputs, targets.clone(), Some(asked(targets)));
    assert_eq!(batch.n_predictions(), 0);
    let (loss, gradients) = learn(bert(&device), LanguageModeling, batch);
    assert_eq!(loss, 0.0);
    assert!(gradients.iter().all(|&gradient| gradient == 0.0));
}

/// One long blank at the end is what generation meets: a prefix, and what follows it.
#[test]
fn positions_of_a_long_blank_are_those_of_a_prefix() {
    let device = processor();
    let (model, batch) = (glm(&device), windows(infilling(1.0), 30, &device));
    let derived = Inputs {
        positions: None,
        block_positions: None,
        ..batch.inputs.clone()
    };
    let [rows, seq] = batch.targets.dims();
    let asked = integers(batch.targets)
        .into_iter()
        .map(|target| target >= 0);
    let asked: Vec<bool> = asked.collect();
    let scores = |inputs: Inputs| {
        let logits = values(model.logits(model.outputs(inputs).hidden));
        let of_token = logits.chunks(VOCAB_SIZE).zip(&asked);
        let asked = of_token.filter(|(_, is_asked)| **is_asked);
        asked
            .flat_map(|(logits, _)| logits.to_vec())
            .collect::<Vec<f64>>()
    };
    assert!(asked.len() == rows * seq);
    assert_close(&scores(batch.inputs), &scores(derived), 1e-6, "scores");
}

/// A blank sees the text and the blanks written before it, and the text sees no blank.
#[test]
fn blanks_see_the_text_and_earlier_blanks() {
    let device = processor();
    let (model, batch) = (glm(&device), windows(infilling(0.0), 30, &device));
    let inputs = batch.inputs;
    let prefix = integers(inputs.prefix_lengths.clone().unwrap())[0] as usize;
    let [_, seq] = inputs.tokens.dims();
    let scores = |changed: usize| {
        let tokens = integers(inputs.tokens.clone());
        let [rows, _] = inputs.tokens.dims();
        let mut tokens = tokens;
        tokens[changed] = (tokens[changed] + 1) % 40;
        let tokens = Tensor::<1, Int>::from_data(tokens.as_slice(), &device);
        let inputs = Inputs {
            tokens: tokens.reshape([rows, seq]),
            ..inputs.clone()
        };
        let hidden = model.outputs(inputs).hidden.slice([0..1, 0..seq]);
        values(hidden)
            .chunks(16)
            .map(<[f64]>::to_vec)
            .collect::<Vec<_>>()
    };
    let is_seen = |changed: usize, from: usize| {
        // A change of nothing but the token at `changed`.
        let (once, twice) = (scores(changed), scores(seq * 5));
        once[from]
            .iter()
            .zip(&twice[from])
            .any(|(a, b)| (a - b).abs() > 1e-6)
    };
    // The whole text is seen from everywhere in it and from the first blank.
    for (changed, from) in [
        (prefix - 1, 0),
        (0, prefix - 1),
        (0, prefix),
        (prefix - 1, prefix + 1),
    ] {
        assert!(is_seen(changed, from), "{changed} from {from}");
    }
    // A blank is seen from later ones, not from the text or before.
    assert!(is_seen(prefix, prefix + 2));
    assert!(!is_seen(prefix, prefix - 1) && !is_seen(prefix + 2, prefix + 1));
}

/// The loss of packed documents is that of each alone, and so are its gradients.
#[test]
fn packed_documents_train_as_each_alone() {
    let device = processor().autodiff();
    let lengths = [5, 1, 9, 4];
    let documents: Vec<Vec<u32>> = lengths
        .iter()
        .enumerate()
        .map(|(number, &length)| text(30)[number * 3..number * 3 + length].to_vec())
        .collect();
    let source: TokenSource = documents.iter().cloned().collect();
    // The window holds all but the last token, which only ends it.
    let context = source.len() - 1;
    for fields in [
        json!({"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32,
               "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "initializer_range": 0.3}),
        json!({"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2,
               "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 32,
               "initializer_range": 0.3}),
        json!({"model_type": "bloom", "n_layer": 2, "n_head": 2, "hidden_size": 16,
               "seq_length": 32, "initializer_range": 0.3}),
    ] {
        let what = fields["model_type"].to_string();
        let model = model(fields, &device);
        let splits = Splits {
            train: source.clone(),
            valid: source.clone(),
        };
        let prediction = Prediction::NextInDocument;
        let windows = Windows::new(splits, shape(context), prediction, 1).unwrap();
        let packed = windows.valid(&device).iter().next().unwrap().unwrap();
        assert_eq!(packed.inputs.tokens.dims(), [1, context]);

        let mut expected = (0.0, Vec::new());
        let n_asked: usize = lengths.iter().map(|length| length - 1).sum();
        assert_eq!(packed.n_predictions(), n_asked);
        for document in documents.iter().filter(|document| document.len() > 1) {
            let row = |tokens: &[u32]| {
                let tokens: Vec<i64> = tokens.iter().map(|&token| token.into()).collect();
                Tensor::<1, Int>::from_data(tokens.as_slice(), &device).unsqueeze::<2>()
            };
            let n = document.len() - 1;
            let batch = TokenBatch::new(row(&document[..n]), row(&document[1..]), None);
            let (loss, gradients) = learn(model.clone(), LanguageModeling, batch);
            let share = n as f64 / n_asked as f64;
            expected.0 += share * loss;
            expected.1.resize(gradients.len(), 0.0);
            for (sum, gradient) in expected.1.iter_mut().zip(gradients) {
                *sum += share * gradient;
            }
        }
        assert_same(learn(model, LanguageModeling, packed), expected, &what);
    }
}

/// Of packed documents that are masked, the loss is that of each alone with the same masks, and so are its gradients.
#[test]
fn packed_documents_are_masked_as_each_alone() {
    let device = processor().autodiff();
    let lengths = [6, 1, 9, 5];
    let documents = lengths.iter().enumerate();
    let documents = documents.map(|(number, &length)| text(30)[number * 3..][..length].to_vec());
    let source: TokenSource = documents.collect();
    let context = source.len() - 1;
    let splits = Splits {
        train: source.clone(),
        valid: source,
    };
    let prediction = Prediction::MaskedInDocument(masking());
    let windows = Windows::new(splits, shape(context), prediction, 1).unwrap();
    let packed = windows.valid(&device).iter().next().unwrap().unwrap();
    let n_asked = packed.n_predictions();

    let (mut expected, mut start, mut n_alone) = ((0.0, Vec::new()), 0, 0);
    for length in lengths {
        let length = length.min(context - start);
        let part = |tensor: &Tensor<2, Int>| tensor.clone().narrow(1, start, length);
        let targets = part(&packed.targets);
        let batch = TokenBatch::new(
            part(&packed.inputs.tokens),
            targets.clone(),
            Some(asked(targets)),
        );
        start += length;
        let n = batch.n_predictions();
        n_alone += usize::from(n > 0);
        let (loss, gradients) = learn(bert(&device), LanguageModeling, batch);
        let share = n as f64 / n_asked as f64;
        expected.0 += share * loss;
        expected.1.resize(gradients.len(), 0.0);
        for (sum, gradient) in expected.1.iter_mut().zip(gradients) {
            *sum += share * gradient;
        }
    }
    assert!(n_alone > 1, "one document is asked of alone");
    assert_same(
        learn(bert(&device), LanguageModeling, packed),
        expected,
        "masked",
    );
}

/// What a run on a text ends with.
fn valid_loss(recipe: &Recipe, text: &str) -> f64 {
    let _shared = GENERATOR.read().unwrap_or_else(PoisonError::into_inner);
    let out = tempfile::tempdir().unwrap();
    let options = RunOptions {
        display: Display::Silent,
        ..RunOptions::new(out.path().join("run"), "flex")
    };
    let run = train(recipe, Material::Text(text), &processor(), options).unwrap();
    run.summary.unwrap().valid_loss
}

/// A recipe whose documents are kept apart reads blank lines as their ends, and the model learns the rest.
#[test]
fn a_recipe_keeps_documents_apart() {
    let recipe = r#"
        objective = { causal_lm = { documents = "separate" } }
        tokenizer = "char"
        [model.gpt]
        n_layers = 1
        n_heads = 2
        d_model = 16
        context_length = 32
        [data]
        valid_fraction = 0.2
        [optimizer]
        learning_rate = 1e-2
        [schedule.constant]
        warmup_iterations = 0
        [loop]
        iterations = 60
        batch_size = 8
    "#;
    let recipe = Recipe::parse(recipe, &[]).unwrap();
    // Only the first letter of a document is not sure.
    let text: String = (0..200)
        .map(|i| ["abc\n\n", "bca\n\n", "cab\n\n"][(i * i + i / 7) % 3])
        .collect();
    let loss = valid_loss(&recipe, &text);
    assert!(loss < 0.1, "{loss}");
}

/// The same of masked letters. Positions that begin anew in each document tell where its letter is, which so few steps do
/// not find in one long text.
#[test]
fn a_masked_recipe_keeps_documents_apart() {
    let recipe = r#"
        objective = { masked_lm = { documents = "separate" } }
        tokenizer = "char"
        [model.config]
        model_type = "bert"
        architectures = ["BertForMaskedLM"]
        num_hidden_layers = 2
        num_attention_heads = 2
        hidden_size = 32
        intermediate_size = 64
        max_position_embeddings = 32
        hidden_dropout_prob = 0.0
        attention_probs_dropout_prob = 0.0
        initializer_range = 0.1
        [data]
        valid_fraction = 0.2
        [optimizer]
        learning_rate = 1e-2
        [schedule.constant]
        warmup_iterations = 0
        [loop]
        iterations = 150
        batch_size = 8
    "#;
    let text: String = (0..1200)
        .map(|i| ["a\n\n", "b\n\n", "c\n\n"][i / 40 % 3])
        .collect();
    let loss = |documents: &str| {
        let documents = (
            "objective.masked_lm.documents".to_owned(),
            documents.to_owned(),
        );
        let recipe = Recipe::parse(recipe, &[documents]).unwrap();
        valid_loss(&recipe, &text)
    };
    let (separate, attend) = (loss("separate"), loss("attend"));
    // Which letter it is costs a third of ln 3.
    assert!((0.36..0.6).contains(&separate), "{separate}");
    assert!(attend > separate + 0.2, "{separate} {attend}");
}

/// The recipes of this kind learn: a few steps bring the loss well below what guessing gives.
#[test]
fn each_objective_learns() {
    let _shared = GENERATOR.read().unwrap_or_else(PoisonError::into_inner);
    let sentences = [
        "the cat sat on the mat.",
        "a dog ran to the cat.",
        "the mat was red.",
    ];
    let text: String = (0..300)
        .map(|i| {
            format!(
                "{}\n{}",
                sentences[i * i % 3],
                if i % 4 == 3 { "\n" } else { "" }
            )
        })
        .collect();
    for (name, below, keys) in [
        ("bert-pretraining", 2.9, ["mask_token_id", "pad_token_id"]),
        ("glm-infilling", 2.4, ["eos_token_id", "model_type"]),
        (
            "t5-span-corruption",
            2.4,
            ["decoder_start_token_id", "eos_token_id"],
        ),
    ] {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/recipes");
        let path = std::path::Path::new(folder).join(format!("{name}.toml"));
        let overrides = [
            ("tokenizer", "char"),
            ("loop.iterations", "40"),
            ("loop.batch_size", "8"),
            ("schedule.cosine.warmup_iterations", "5"),
            ("optimizer.learning_rate", "3e-3"),
        ];
        let overrides = overrides.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let recipe = Recipe::read(&path, &overrides).unwrap();
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("run");
        let options = RunOptions {
            display: Display::Silent,
            ..RunOptions::new(&folder, "flex")
        };
        let summary = train(&recipe, Material::Text(&text), &processor(), options)
            .unwrap()
            .summary;
        let loss = summary.unwrap().valid_loss;
        assert!(loss < below, "{name}: {loss}");
        // What was trained says which tokens it uses.
        let (_, architecture) = directory::load(&folder, &processor()).unwrap();
        for key in keys {
            assert!(architecture.json.contains_key(key), "{name}: {key}");
        }
    }
}
