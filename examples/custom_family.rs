//! A family of models of one's own in one file: registered, listed, trained by a recipe, saved, loaded.
//!
//!     cargo run --release --example custom_family                  # trains one, saves it, loads it back
//!     cargo run --release --example custom_family -- models        # the command, with the new family
//!     cargo run --release --example custom_family -- models mosaic-704m
//!
//! "Mosaic" is an encoder with rotary positions and SwiGLU, where every other layer is a mixture of
//! experts. All of it is configuration: the components are the zoo's.

use std::error::Error;
use std::process::ExitCode;

use burn::tensor::{Int, Tensor};
use burn_zoo::{
    OWN_TEXT, backend, cli,
    models::{
        directory,
        family::{Common, Family, FamilyConfig, Preset, Task, register},
        names::Names,
    },
    nn::{
        ConfigError, HeadConfig, LanguageModel, TransformerConfig,
        attention::{AttentionBias, AttentionConfig, AttentionPattern},
        block::BlockConfig,
        embedding::PositionConfig,
        feed_forward::{Activation, FeedForwardConfig},
        mixture::MixtureConfig,
        norm::NormConfig,
        rotary::RotaryConfig,
    },
    train::{
        recipe::Recipe,
        run::{Material, RunOptions, train},
    },
};
use serde::{Deserialize, Serialize};

/// The fields of a Mosaic's `config.json`, with the values of those that are left out.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
struct MosaicConfig {
    model_type: String,
    architectures: Vec<String>,
    vocab_size: usize,
    d_model: usize,
    n_layers: usize,
    n_heads: usize,
    n_experts: usize,
    context_length: usize,
}

impl Default for MosaicConfig {
    fn default() -> Self {
        Self {
            model_type: Self::MODEL_TYPE.to_owned(),
            architectures: vec![Self::CLASS.to_owned()],
            vocab_size: 32_000,
            d_model: 1024,
            n_layers: 16,
            n_heads: 16,
            n_experts: 8,
            context_length: 512,
        }
    }
}

impl FamilyConfig for MosaicConfig {
    const MODEL_TYPE: &'static str = "mosaic";
    const NAME: &'static str = "Mosaic";
    const CLASS: &'static str = "MosaicForMaskedLM";

    /// The component tree for a task. Parameters keep the zoo's own names: there is no other library
    /// to share them with.
    fn build(&self, task: Task, _: &Common) -> Result<(TransformerConfig, Names), ConfigError> {
        if !self.d_model.is_multiple_of(2 * self.n_heads) {
            let problem = format!("must be a multiple of 2 · n_heads ({})", 2 * self.n_heads);
            return Err(ConfigError::new("d_model", problem));
        }
        let attention = AttentionConfig::multi_head(self.d_model, self.n_heads)
            .with_pattern(AttentionPattern::Bidirectional)
            .with_bias(AttentionBias::all(false))
            .with_rotary(Some(RotaryConfig::half(self.d_model / self.n_heads)));
        let feed_forward = FeedForwardConfig::new(self.d_model, 8 * self.d_model / 3)
            .with_activation(Activation::Silu)
            .with_gated(true)
            .with_bias(false);
        let block = |layer: usize| {
            let mixture = (layer % 2 == 1).then(|| MixtureConfig::top_two(self.n_experts));
            BlockConfig::new(attention.clone(), feed_forward.clone())
                .with_norm(NormConfig::rms())
                .with_mixture(mixture)
        };
        let blocks = (0..self.n_layers).map(block).collect();
        let config =
            TransformerConfig::new(self.vocab_size, self.d_model, self.context_length, blocks)
                .with_position(PositionConfig::None)
                .with_residual_init(0.02)
                .with_head(match task {
                    Task::MaskedLanguage => HeadConfig::tied(),
                    _ => HeadConfig::None,
                });
        Ok((config, Names::new()))
    }

    fn presets() -> Vec<Preset> {
        let preset = Preset::new("mosaic-704m", 0, &Self::default());
        vec![Preset {
            published_parameters: None,
            ..preset.note("an example: nobody published it")
        }]
    }
}

const RECIPE: &str = r#"
    seed = 1
    objective = { masked_lm = { probability = 0.15 } }
    tokenizer = "char"

    [model.config]
    model_type = "mosaic"
    d_model = 64
    n_layers = 4
    n_heads = 4
    n_experts = 4
    context_length = 64

    [optimizer]
    learning_rate = 2e-3
    clip_norm = 1.0

    [schedule.cosine]
    warmup_iterations = 20
    min_learning_rate = 2e-4

    [loop]
    iterations = 200
    batch_size = 8
    eval_interval = 100
"#;

fn main() -> ExitCode {
    register(Family::of::<MosaicConfig>());
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.as_slice() {
        [] => {}
        // A number of steps, for a shorter run.
        [steps] if steps.parse::<usize>().is_ok() => {}
        // Anything else is the command's.
        _ => return cli::main(),
    }
    match run(words.first()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(steps: Option<&String>) -> Result<(), Box<dyn Error>> {
    let found = backend::from_environment()?;
    let overrides = steps.map(|steps| ("loop.iterations".to_owned(), steps.clone()));
    let recipe = Recipe::parse(RECIPE, &Vec::from_iter(overrides))?;
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("mosaic");
    let options = RunOptions::new(&out, found.name.clone());
    let run = train(&recipe, Material::Text(OWN_TEXT), &found.device, options)?;

    let (loaded, architecture) = directory::load(&out, &found.device)?;
    let tokens = Tensor::<2, Int>::zeros([1, 8], &found.device);
    let difference = run.model.forward(tokens.clone()) - loaded.forward(tokens);
    let difference = difference.abs().max().into_scalar::<f32>();
    println!(
        "{} parameters, validation loss {:.3}; loaded back, logits differ by {difference}",
        architecture.transformer.n_parameters(),
        run.summary.map_or(f64::NAN, |summary| summary.valid_loss),
    );
    Ok(())
}
