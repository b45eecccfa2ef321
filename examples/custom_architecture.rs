//! A block that the zoo does not have, composed from its components, and trained.
//!
//!     cargo run --release --example custom_architecture
//!
//! The block gates its attention with the input, as in Qiu et al. 2025 (arXiv:2505.06708), and lets
//! each position see a learned mix of itself and its predecessor first, as in RWKV (Peng et al. 2023,
//! arXiv:2305.13048). Only this file knows of it: training asks for `LanguageModel`, nothing more.

use std::error::Error;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, activation::sigmoid, module};
use burn_zoo::nn::linear::Linear;
use burn_zoo::{
    OWN_TEXT, backend,
    data::{
        corpus::Corpus,
        tokenizer::{Tokenizer, TokenizerConfig},
        windows::{Prediction, Splits, StepShape, Windows},
    },
    nn::{
        LanguageModel,
        attention::{AttentionBias, AttentionConfig, MultiHeadAttention},
        embedding::{Embedding, EmbeddingConfig, PositionConfig},
        feed_forward::{Activation, FeedForward, FeedForwardConfig},
        init,
        norm::{Norm, NormConfig},
        pass::Pass,
    },
    train::{
        objective::LanguageModeling,
        optimizer::OptimizerConfig,
        recipe::LoopConfig,
        schedule::ScheduleConfig,
        trainer::{Display, Session, TrainerConfig, fit},
    },
};

/// `x + gate(h) ∘ attention(h)` with `h = shift(norm(x))`, then a feed-forward network.
#[derive(Module, Debug)]
struct GatedBlock {
    norms: [Norm; 2],
    /// How much of the predecessor each channel takes, `[d_model]`.
    mix: Param<Tensor<1>>,
    attention: MultiHeadAttention,
    gate: Linear,
    feed_forward: FeedForward,
}

impl GatedBlock {
    fn new(d_model: usize, n_heads: usize, device: &Device) -> Self {
        // One key/value head serves all query heads.
        let attention = AttentionConfig::new(d_model, n_heads, 1, d_model / n_heads);
        let feed_forward = FeedForwardConfig::new(d_model, 4 * d_model);
        Self {
            norms: [(); 2].map(|()| NormConfig::rms().init(d_model, device)),
            mix: init::constant([d_model], 0.0, device),
            attention: attention.with_bias(AttentionBias::all(false)).init(device),
            gate: init::linear(d_model, d_model, true, 0.02, device),
            feed_forward: feed_forward.with_activation(Activation::Silu).init(device),
        }
    }

    /// `[batch, seq, d_model] → [batch, seq, d_model]`.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let h = self.norms[0].forward(x.clone());
        let h = h.clone() + (predecessor(h.clone()) - h) * self.mix.val().unsqueeze();
        let gate = sigmoid(self.gate.forward(h.clone()));
        let x = x + gate * self.attention.forward(h, &mut Pass::default(), None);
        x.clone() + self.feed_forward.forward(self.norms[1].forward(x))
    }
}

/// Moves every position one to the right; the first sees zeros.
fn predecessor(x: Tensor<3>) -> Tensor<3> {
    let [batch, seq, d_model] = x.dims();
    let first = Tensor::zeros([batch, 1, d_model], &x.device());
    Tensor::cat(vec![first, x.narrow(1, 0, seq - 1)], 1)
}

#[derive(Module, Debug)]
struct GatedTransformer {
    embedding: Embedding,
    blocks: Vec<GatedBlock>,
    norm: Norm,
}

impl GatedTransformer {
    fn new(vocab_size: usize, context_length: usize, device: &Device) -> Self {
        let (d_model, n_heads, n_layers) = (64, 4, 3);
        // The predecessor tells the order.
        let embedding = EmbeddingConfig::new(vocab_size, d_model, context_length)
            .with_position(PositionConfig::None);
        Self {
            embedding: embedding.init(device),
            blocks: (0..n_layers)
                .map(|_| GatedBlock::new(d_model, n_heads, device))
                .collect(),
            norm: NormConfig::rms().init(d_model, device),
        }
    }
}

impl LanguageModel for GatedTransformer {
    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let x = self.embedding.forward(&tokens.into(), 0);
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x));
        module::linear(
            self.norm.forward(x),
            self.embedding.token.val().transpose(),
            None,
        )
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let iterations = std::env::args()
        .nth(1)
        .map_or(Ok(300), |text| text.parse())?;
    let found = backend::from_environment()?;
    let corpus = Corpus::split(OWN_TEXT, 0.1);
    let tokenizer = Tokenizer::train(&TokenizerConfig::Char, OWN_TEXT)?;
    let splits = Splits {
        train: tokenizer.encode(&corpus.train)?.into(),
        valid: tokenizer.encode(&corpus.valid)?.into(),
    };
    let config = TrainerConfig {
        seed: 1,
        optimizer: OptimizerConfig::new(3e-3),
        schedule: ScheduleConfig::Constant {
            warmup_iterations: 20,
        },
        training: LoopConfig::new(iterations, 12),
    };
    let shape = StepShape {
        batch_size: config.training.batch_size,
        accumulation: 1,
        context_length: 64,
    };
    let windows = Windows::new(splits, shape, Prediction::Next, config.seed)?;
    init::seed(config.seed);
    let model = GatedTransformer::new(tokenizer.vocab_size(), shape.context_length, &found.device);
    println!("{} parameters on {}", model.num_params(), found.name);
    let session = Session {
        display: Display::Lines,
        ..Session::default()
    };
    let fitted = fit(
        model,
        LanguageModeling,
        &windows,
        &config,
        &found.device,
        session,
    )?;
    let loss = fitted
        .outcome
        .state
        .valid
        .map_or(f64::NAN, |valid| valid.loss);
    println!(
        "validation loss {loss:.3} nats; guessing gives {:.3}",
        (tokenizer.vocab_size() as f64).ln()
    );
    Ok(())
}
