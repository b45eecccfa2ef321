//! What an objective needs before a model can learn it: tokens of its own, data, and a fitting model.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::Device;
use burn_zoo_data::{
    pairs::SentencePairs,
    tokenizer::{Tokenizer, TokenizerConfig},
    windows::{Splits, Windows},
};
use burn_zoo_models::{directory, family::Architecture, weights::for_each_parameter};
use burn_zoo_nn::{Transformer, init};

use crate::{
    adaptation::{self, AdaptationError},
    labelled::{self, Labelled},
    language,
    objective::{Labelling, LanguageModeling, Pretraining},
    recipe::{Adaptation, Recipe, RecipeError},
    run::RunError,
    trainer::{FitError, Fitted, Session, TrainerConfig, fit},
};

/// What a run learns from, as the user has it.
#[derive(Clone, Copy, Debug)]
pub enum Material<'a> {
    /// A text, for objectives of language.
    Text(&'a str),
    /// A folder of packed tokens, for objectives of language.
    Packed(&'a Path),
    /// A folder of tables or one table, for objectives of labels.
    Tables(&'a Path),
}

/// Everything that a run learns from.
pub(crate) struct Task {
    /// With the tokens that the objective adds.
    pub tokenizer: Tokenizer,
    /// What is trained.
    pub architecture: Architecture,
    /// All tokens.
    pub splits: Splits,
    /// What is asked of them.
    pub data: Data,
}

/// What an objective asks.
pub(crate) enum Data {
    Windows(Windows),
    Pairs(SentencePairs),
    Labelled(Box<Labelled>),
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
                let tokenizer = earlier.map_or_else(|| given_tokenizer(recipe), Ok)?;
                labelled::prepare(recipe, &labels, path, tokenizer)
            }
            (None, Material::Text(text)) => language::prepare(recipe, text, earlier),
            (None, Material::Packed(path)) => language::prepare_packed(recipe, path, earlier),
            (Some(_), _) => Err(RunError::Material("a folder of tables")),
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
        if matches!(recipe.adaptation, Adaptation::Lora(_)) && recipe.model.path().is_none() {
            return Err(AdaptationError::NoBase.into());
        }
        init::seed(recipe.seed);
        let mut new = BTreeSet::new();
        let model = match recipe.model.path() {
            None => self.architecture.transformer.init(device),
            Some(path) => {
                let architecture = self.architecture.clone();
                let (model, architecture, missing) =
                    directory::load_body(architecture, path, device)?;
                self.architecture = architecture;
                new.extend(missing);
                model
            }
        };
        if !new.is_empty() {
            let names: Vec<&str> = new.iter().map(String::as_str).collect();
            tracing::info!("new parameters: {}", names.join(", "));
        }
        if matches!(self.data, Data::Labelled(_)) {
            // What it says of labels is learned anew, also where there was a head for as many.
            for_each_parameter(&model, |path, _| {
                if adaptation::is_head(&path) {
                    new.insert(path);
                }
            });
        }
        let (adaptation, architecture) = (&recipe.adaptation, &self.architecture);
        Ok(adaptation::adapt(adaptation, model, architecture, &new)?)
    }

    /// Optimiser steps in all.
    pub fn iterations(&self, recipe: &Recipe) -> usize {
        match (&self.data, recipe.training.epochs) {
            (Data::Labelled(labelled), Some(epochs)) => labelled.examples.steps(epochs),
            _ => recipe.training.iterations,
        }
    }

    /// Trains a model of the architecture.
    pub fn fit(
        &self,
        model: Transformer,
        config: &TrainerConfig,
        device: &Device,
        session: Session<Transformer>,
    ) -> Result<Fitted<Transformer>, FitError> {
        match &self.data {
            Data::Windows(windows) => {
                fit(model, LanguageModeling, windows, config, device, session)
            }
            Data::Pairs(pairs) => fit(model, Pretraining, pairs, config, device, session),
            Data::Labelled(labelled) => fit(
                model,
                Labelling,
                &labelled.examples,
                config,
                device,
                session,
            ),
        }
    }
}

/// The tokenizer that a recipe names, or that of the directory that its model is from.
pub(crate) fn given_tokenizer(recipe: &Recipe) -> Result<Tokenizer, RunError> {
    let path = match (&recipe.tokenizer, recipe.model.path()) {
        (Some(TokenizerConfig::File { path }), _) => path.clone(),
        (None, Some(path)) => directory::tokenizer(path).map_err(RunError::Directory)?,
        (None, None) => {
            let problem = "missing field `tokenizer`: how text becomes tokens";
            return Err(RecipeError::key("tokenizer", problem).into());
        }
        _ => {
            let problem = "must be a file here: labels are not what a tokenizer is trained on";
            return Err(RunError::Tokenization(problem));
        }
    };
    Ok(Tokenizer::load(&path)?)
}
