//! Labelled texts for a model: examples, the head that they need, and the test at the end.

use std::path::Path;

use burn::tensor::Device;
use burn_train::InferenceStep;
use burn_zoo_data::{
    batch::TrainingData,
    examples::{Example, Examples, Target},
    labelled::{Labels, Tables, few},
    tokenizer::Tokenizer,
    windows::Splits,
};
use burn_zoo_models::family;
use burn_zoo_nn::{ConfigError, Transformer};

use crate::{
    objective::{Labelling, StepConfig, Trainee},
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
        train: numbers(&examples.train).into(),
        valid: numbers(&examples.valid).into(),
    };
    let labelled = Labelled { examples, test };
    Ok(Task {
        tokenizer,
        architecture,
        splits,
        data: Data::Labelled(Box::new(labelled)),
    })
}

/// The tokens of examples and their classes, which tell them from others.
fn numbers(examples: &[Example]) -> Vec<u32> {
    let numbers = examples.iter().flat_map(|example| {
        let class = match example.target {
            Target::Class(class) => Some(class as u32),
            _ => None,
        };
        example.tokens.iter().copied().chain(class)
    });
    numbers.collect()
}

/// The mean loss and the accuracy, where that is counted, over the held-out examples.
pub(crate) fn evaluate(
    model: &Transformer,
    examples: &Examples,
    device: &Device,
) -> Result<(f64, Option<f64>), FitError> {
    let trainee = Trainee::new(model.clone(), Labelling, StepConfig::default());
    let trainee = burn::module::Module::valid(&trainee);
    let failed = |problem: String| FitError::Failed { step: 0, problem };
    let (mut loss, mut correct, mut count) = (0.0, None, 0.0);
    for batch in examples.valid(device).iter() {
        let batch = batch.map_err(|error| failed(error.to_string()))?;
        let output = InferenceStep::step(&trainee, batch);
        let facts = output.facts().map_err(|error| failed(error.to_string()))?;
        let weight = output.n_predictions as f64;
        loss += facts.loss * weight;
        count += weight;
        if let Some(accuracy) = facts.accuracy {
            *correct.get_or_insert(0.0) += accuracy * weight;
        }
    }
    Ok((loss / count, correct.map(|correct| correct / count)))
}
