//! A small training on the zoo's own text, and what it reports.

use std::sync::{Arc, Mutex};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use burn_zoo::{
    OWN_TEXT,
    data::{
        corpus::Corpus,
        tokenizer::{Tokenizer, TokenizerConfig},
        windows::{Prediction, Splits, StepShape, Windows},
    },
    models::gpt::GptConfig,
    nn::{Transformer, init},
    train::{
        objective::{LanguageModeling, StepConfig, Trainee},
        optimizer::OptimizerConfig,
        recipe::LoopConfig,
        schedule::ScheduleConfig,
        step_loop::Record,
        trainer::{OnRecord, TrainerConfig},
    },
};

use super::values;

/// The first characters of the zoo's own text as character tokens, and how many different ones.
pub fn own_tokens() -> (Splits, usize) {
    let text: String = OWN_TEXT.chars().take(20_000).collect();
    let tokenizer = Tokenizer::train(&TokenizerConfig::Char, &text).unwrap();
    let corpus = Corpus::split(&text, 0.1);
    let encode = |text: &str| tokenizer.encode(text).unwrap().into();
    let splits = Splits {
        train: encode(&corpus.train),
        valid: encode(&corpus.valid),
    };
    (splits, tokenizer.vocab_size())
}

pub const MODEL: GptConfig = GptConfig {
    n_layers: 2,
    n_heads: 4,
    n_kv_heads: Some(2),
    d_model: 32,
    d_ff: None,
    context_length: 16,
    dropout: 0.0,
    bias: true,
    tied_head: true,
    activation: burn_zoo::nn::feed_forward::Activation::GeluTanh,
};

pub fn model(config: &GptConfig, vocab_size: usize, device: &Device) -> Transformer {
    init::seed(7);
    config.transformer(vocab_size).unwrap().init(device)
}

pub fn config(iterations: usize) -> TrainerConfig {
    TrainerConfig {
        seed: 7,
        optimizer: OptimizerConfig {
            clip_norm: Some(1.0),
            ..OptimizerConfig::new(3e-3)
        },
        schedule: ScheduleConfig::Cosine {
            warmup_iterations: 5,
            min_learning_rate: 3e-4,
        },
        training: LoopConfig::new(iterations, 4),
    }
}

/// Windows of [`MODEL`]'s length for that training.
pub fn windows(splits: &Splits, config: &TrainerConfig) -> Windows {
    let shape = StepShape {
        batch_size: config.training.batch_size,
        accumulation: config.training.accumulation,
        context_length: MODEL.context_length,
    };
    Windows::new(splits.clone(), shape, Prediction::Next, config.seed).unwrap()
}

/// A language model to take single steps with.
pub fn trainee<M: Module>(model: M) -> Trainee<M, LanguageModeling> {
    Trainee::new(model, LanguageModeling, StepConfig::default())
}

/// Keeps what the loop reports.
pub fn recorder() -> (Arc<Mutex<Vec<Record>>>, OnRecord) {
    let records = Arc::new(Mutex::new(Vec::new()));
    let copy = records.clone();
    (
        records,
        Arc::new(move |record| copy.lock().unwrap().push(record)),
    )
}

pub fn train_losses(records: &Mutex<Vec<Record>>) -> Vec<f64> {
    let loss = |record: &Record| match *record {
        Record::Train { loss, .. } => Some(loss),
        Record::Valid { .. } | Record::Sample { .. } => None,
    };
    records.lock().unwrap().iter().filter_map(loss).collect()
}

pub fn parameters<M: Module>(module: &M) -> Vec<f64> {
    #[derive(Default)]
    struct Collect(Vec<f64>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.extend(values(param.val().inner()));
        }
    }
    let mut collect = Collect::default();
    module.visit(&mut collect);
    collect.0
}
