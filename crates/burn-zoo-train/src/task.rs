//! What a recipe's objective needs before a model can learn it: a tokenizer, data, and a fitting model.

use std::path::Path;

use burn::tensor::Device;
use burn_zoo_data::{
    corpus::Corpus,
    tokenizer::{Tokenizer, TokenizerConfig, TokenizerError},
    windows::{Splits, StepShape, Windows},
};
use burn_zoo_models::{directory, family::Architecture};
use burn_zoo_nn::{ConfigError, Transformer, TransformerConfig, init};

use crate::{
    adaptation::{self, AdaptationError},
    labelled::{self, Prepared},
    objective::{Labelling, LanguageModeling},
    recipe::{Adaptation, Objective, Recipe},
    run::RunError,
    trainer::{FitError, Fitted, Session, TrainerConfig, fit},
};

/// What a run learns from.
#[derive(Clone, Copy, Debug)]
pub enum Material<'a> {
    /// A text, for objectives of language.
    Text(&'a str),
    /// A folder of tables or one table, for objectives of labels.
    Tables(&'a Path),
}

/// Everything that a run learns from.
pub(crate) struct Task {
    /// With the tokens that the objective adds.
    pub tokenizer: Tokenizer,
    /// What is trained.
    pub architecture: Architecture,
    /// What it learns.
    pub data: Data,
}

/// The data of an objective.
pub(crate) enum Data {
    Windows(Splits, Windows),
    Labelled(Box<Prepared>),
}

impl Task {
    /// What a recipe's objective makes of its material, with the tokenizer of an earlier run if there was one.
    pub fn prepare(
        recipe: &Recipe,
        material: Material<'_>,
        earlier: Option<Tokenizer>,
    ) -> Result<Self, RunError> {
        match (recipe.objective.labels(), material) {
            (Some(labels), Material::Tables(path)) => {
                let tokenizer = match earlier {
                    Some(tokenizer) => tokenizer,
                    None => given_tokenizer(recipe)?,
                };
                let prepared = labelled::prepare(recipe, &labels, path, &tokenizer)?;
                Ok(Self {
                    tokenizer,
                    architecture: prepared.architecture.clone(),
                    data: Data::Labelled(Box::new(prepared)),
                })
            }
            (None, Material::Text(text)) => language(recipe, text, earlier),
            (Some(_), Material::Text(_)) => Err(RunError::Material("a folder of tables")),
            (None, Material::Tables(_)) => Err(RunError::Material("a text")),
        }
    }

    /// The model before the first step: new, or what a directory holds with what is new on it. With it the paths of
    /// parameters that learn whole.
    pub fn model(
        &mut self,
        recipe: &Recipe,
        device: &Device,
    ) -> Result<(Transformer, Vec<String>), RunError> {
        init::seed(recipe.seed);
        let model = match recipe.model.path() {
            None => self.architecture.transformer.init(device),
            Some(path) => {
                let architecture = self.architecture.clone();
                let (model, architecture, new) = directory::load_body(architecture, path, device)?;
                if !new.is_empty() {
                    tracing::info!("new parameters: {}", new.join(", "));
                }
                self.architecture = architecture;
                model
            }
        };
        if matches!(recipe.adaptation, Adaptation::Lora(_)) && recipe.model.path().is_none() {
            return Err(AdaptationError::NoBase.into());
        }
        let has_new_head = matches!(self.data, Data::Labelled(_));
        let adaptation = &recipe.adaptation;
        Ok(adaptation::adapt(
            adaptation,
            model,
            &self.architecture,
            has_new_head,
        )?)
    }

    /// Optimiser steps in all.
    pub fn iterations(&self, recipe: &Recipe) -> usize {
        match (&self.data, recipe.training.epochs) {
            (Data::Labelled(prepared), Some(epochs)) => prepared.examples.steps(epochs),
            _ => recipe.training.iterations,
        }
    }

    /// Trains `model`.
    pub fn fit(
        &self,
        model: Transformer,
        config: &TrainerConfig,
        device: &Device,
        session: Session,
    ) -> Result<Fitted<Transformer>, FitError> {
        match &self.data {
            Data::Windows(_, windows) => {
                fit(model, LanguageModeling, windows, config, device, session)
            }
            Data::Labelled(prepared) => fit(
                model,
                Labelling,
                &prepared.examples,
                config,
                device,
                session,
            ),
        }
    }
}

/// The tokenizer that a recipe names, or that of the directory that its model is from.
fn given_tokenizer(recipe: &Recipe) -> Result<Tokenizer, RunError> {
    let path = match (&recipe.tokenizer, recipe.model.path()) {
        (Some(TokenizerConfig::File { path }), _) => path.clone(),
        (None, Some(path)) => path.join(directory::TOKENIZER),
        _ => {
            let problem = "must be a file here: labels are not what a tokenizer is trained on";
            return Err(RunError::Tokenization(problem));
        }
    };
    Ok(Tokenizer::load(&path)?)
}

fn language(recipe: &Recipe, text: &str, earlier: Option<Tokenizer>) -> Result<Task, RunError> {
    let corpus = Corpus::split(text, recipe.data.valid_fraction);
    let mut tokenizer = match (earlier, &recipe.tokenizer) {
        (Some(tokenizer), _) => tokenizer,
        (None, Some(config)) => train_tokenizer(config, text, &corpus)?,
        (None, None) => given_tokenizer(recipe)?,
    };
    if recipe.objective.needs_mask() {
        tokenizer.add_mask()?;
    }
    let splits = Splits {
        train: tokenizer.encode(&corpus.train)?.into(),
        valid: tokenizer.encode(&corpus.valid)?.into(),
    };
    let mut architecture = recipe
        .model
        .architecture(tokenizer.vocab_size())
        .map_err(RunError::Model)?;
    let mask = tokenizer.mask_id();
    if let Some(mask) = mask {
        architecture
            .json
            .entry("mask_token_id")
            .or_insert_with(|| mask.into());
    }
    let config = &architecture.transformer;
    check_objective(&recipe.objective, config).map_err(RunError::Model)?;
    let shape = StepShape {
        batch_size: recipe.training.batch_size,
        accumulation: recipe.training.accumulation,
        context_length: config.context_length(),
    };
    let prediction = recipe.objective.prediction(mask.unwrap_or(0));
    let windows = Windows::new(splits.clone(), shape, prediction, recipe.seed)?;
    Ok(Task {
        tokenizer,
        architecture,
        data: Data::Windows(splits, windows),
    })
}

/// Learns merges from the training part alone. Characters come from the whole text, because a
/// held-out one that is in no token could not be scored.
fn train_tokenizer(
    config: &TokenizerConfig,
    text: &str,
    corpus: &Corpus,
) -> Result<Tokenizer, TokenizerError> {
    match config {
        TokenizerConfig::Char => Tokenizer::train(config, text),
        TokenizerConfig::Bpe { .. } | TokenizerConfig::File { .. } => {
            Tokenizer::train(config, &corpus.train)
        }
    }
}

/// Refuses a model that sees what it is asked for, or cannot say it.
fn check_objective(objective: &Objective, config: &TransformerConfig) -> Result<(), ConfigError> {
    let refuse = |field, problem| Err(ConfigError::new(field, problem));
    if config.head.language().is_none() {
        return refuse(
            "head",
            "must score the vocabulary: use a class with a language head",
        );
    }
    if config.encoder.is_some() {
        return refuse(
            "encoder",
            "is not trained by this objective: it reads one text, not two",
        );
    }
    match objective {
        Objective::CausalLm | Objective::PrefixLm if !config.stack.is_decoder() => refuse(
            "stack.blocks",
            "see the token to predict: use objective = { masked_lm = { probability = 0.15 } }",
        ),
        Objective::CausalLm if config.stack.has_prefix() => refuse(
            "stack.blocks",
            "have prefix attention, which this objective leaves untrained: use objective = \
             \"prefix_lm\"",
        ),
        Objective::PrefixLm if !config.stack.has_prefix() => refuse(
            "stack.blocks",
            "have no prefix attention: use objective = \"causal_lm\"",
        ),
        _ => Ok(()),
    }
}
