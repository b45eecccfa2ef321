//! Labelled texts for a model: examples, the head that they need, and the test at the end.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use burn_zoo_data::{
    batch::{Batch, TrainingData},
    examples::{Example, Examples, Target},
    labelled::{Labels, Tables, few},
    tokenizer::Tokenizer,
    windows::Splits,
};
use burn_zoo_models::family;
use burn_zoo_nn::{ConfigError, Transformer};

use crate::{
    objective::{Facts, Labelling, LossOutput, MeanFacts, Objective},
    recipe::{Recipe, RecipeError},
    run::RunError,
    task::{Data, Task},
    trainer::FitError,
};

/// Labelled examples, and what is tested at the end.
pub(crate) struct Labelled {
    /// What is learned from and held out.
    pub examples: Examples,
    /// The same with the test rows in the place of those held out, if there are any.
    pub test: Option<Examples>,
    /// What is asked of those that are learned from and held out, as numbers.
    pub asked: Vec<u32>,
    /// Rows that were bad and left out.
    pub skipped: u64,
}

/// Reads the tables at `path` as the recipe says.
pub(crate) fn prepare(
    recipe: &Recipe,
    labels: &Labels,
    path: &Path,
    tokenizer: Tokenizer,
) -> Result<Task, RunError> {
    let format = recipe.data.table_format();
    let mut tables = Tables::read(path, labels, &format, recipe.data.valid_fraction)?;
    if let Some(shots) = recipe.data.shots {
        if !matches!(labels, Labels::Class(_)) || shots == 0 {
            let problem =
                "must be 1 or more rows of each class, for an objective of classification";
            return Err(RecipeError::key("data.shots", problem).into());
        }
        tables.train = few(tables.train, shots, recipe.seed)?;
    }
    let names = labels.names(&tables.train);
    let task = match labels {
        Labels::Class(_) | Labels::Number(_) => family::Task::Sequence,
        Labels::Tags(_) => family::Task::Token,
        Labels::Answer(_) => family::Task::Span,
    };
    let architecture = recipe
        .model
        .architecture(tokenizer.vocab_size())
        .and_then(|architecture| architecture.with_task(task, &names))
        .map_err(RunError::Model)?;
    let config = &architecture.transformer;
    if config.encoder.is_some() {
        let problem = "is not trained on labels: it reads two texts, not one";
        return Err(RunError::Model(ConfigError::new("encoder", problem)));
    }
    let longest = config.context_length();
    let max_length = recipe.data.max_length.unwrap_or(longest);
    if max_length > longest {
        let problem = format!("must be at most the model's {longest}, got {max_length}");
        return Err(RecipeError::key("data.max_length", problem).into());
    }
    if let Labels::Answer(columns) = labels
        && columns.overlap >= max_length / 2
    {
        let problem = format!(
            "must be less than half of the {max_length} tokens of a text, got {}",
            columns.overlap
        );
        return Err(RecipeError::key("objective.span_extraction.overlap", problem).into());
    }
    let encode = |rows| labels.examples(rows, &names, &tokenizer, max_length);
    let examples = Examples {
        train: encode(&tables.train)?.into(),
        valid: encode(&tables.valid)?.into(),
        batch_size: recipe.training.batch_size,
        accumulation: recipe.training.accumulation,
        padding: architecture.common().padding_id().unwrap_or(0) as u32,
        seed: recipe.seed,
    };
    let test = match tables.test.is_empty() {
        true => None,
        false => Some(Examples {
            valid: encode(&tables.test)?.into(),
            ..examples.clone()
        }),
    };
    let splits = Splits {
        train: tokens(&examples.train).into(),
        valid: tokens(&examples.valid).into(),
    };
    let asked = [asked(&examples.train), asked(&examples.valid)].concat();
    let labelled = Labelled {
        examples,
        test,
        asked,
        skipped: tables.skipped,
    };
    Ok(Task {
        tokenizer,
        architecture,
        splits,
        data: Data::Labelled(Box::new(labelled)),
    })
}

/// The tokens of all examples.
fn tokens(examples: &[Example]) -> Vec<u32> {
    let tokens = examples.iter().flat_map(|example| &example.tokens);
    tokens.copied().collect()
}

/// What is asked of examples, as numbers that tell it from something else.
fn asked(examples: &[Example]) -> Vec<u32> {
    let asked = examples.iter().flat_map(|example| match &example.target {
        Target::Class(class) => vec![*class as u32],
        Target::Number(number) => vec![number.to_bits()],
        Target::Tokens(classes) => classes.iter().map(|&class| class as u32).collect(),
        Target::Span(first, last) => vec![*first as u32, *last as u32],
    });
    asked.collect()
}

/// The mean over the held-out examples of a model that was trained for `step` steps.
pub(crate) fn evaluate(
    model: &Transformer,
    examples: &Examples,
    device: &Device,
    step: usize,
) -> Result<Facts, FitError> {
    let failed = |problem: String| FitError::Failed { step, problem };
    let model = model.valid();
    let mut mean = MeanFacts::default();
    for batch in examples.valid(device).iter() {
        let batch = batch.map_err(|error| failed(error.to_string()))?;
        let n_predictions = batch.n_predictions();
        let output = LossOutput::new(&Labelling.loss(&model, &batch, 0.0), &batch);
        let facts = output.facts().map_err(|error| failed(error.to_string()))?;
        mean.add(facts, n_predictions);
    }
    Ok(mean.facts())
}
