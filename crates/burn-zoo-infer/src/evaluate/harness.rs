//! Tasks in the form of EleutherAI's lm-evaluation-harness: a YAML file that says how documents become
//! questions, what is asked of the model, and how its answers are measured.
//!
//! Prompts, choices, metrics and standard errors are those of the harness's version 0.4.13, run without a
//! chat template on the same model. Documents come from local JSON or JSON Lines files
//! (`dataset_path: json`, `dataset_kwargs.data_files`), whose paths are relative to the YAML file. Examples are drawn
//! by the same generator, so the same seed (the harness's default is 1234) shows the same ones.
//!
//! Not read, and refused by name: Python functions, filters, chat templates, sampling, and anything that has
//! to be downloaded. Standard errors by resampling use another generator and fewer samples, so they agree
//! only roughly. Keys of a dictionary that a template prints are sorted.

mod metric;
mod random;
mod task;
mod template;

use std::path::{Path, PathBuf};

use minijinja::value::{Value, ValueKind};
use serde::Serialize;

pub use metric::Metric;
pub use task::OutputType;

use super::{
    perplexity::{PerplexityError, rolling},
    score::{Score, ScoreError, Scorer},
};
use crate::{
    generate::{GenerateError, Generator},
    sampling::SamplingConfig,
};
use metric::{MetricConfig, Outcome, measure};
use random::PythonRandom;
use task::{FewshotSampler, Strings, TargetConfig, TaskConfig};
use template::{Documents, Templates, python_str, value_of};

/// What makes a task impossible to run.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// The YAML file cannot be read, or asks for what the zoo does not have.
    #[error("{}: {problem}", path.display())]
    Task {
        /// The file.
        path: PathBuf,
        /// The field and what is wrong with it.
        problem: String,
    },
    /// A file of documents cannot be read.
    #[error("{}: {problem}", path.display())]
    Documents {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A field does not fit a document.
    #[error("{task}: {field} of document {document} (counted from 0): {problem}")]
    Field {
        /// The task's name.
        task: String,
        /// The field of the task.
        field: &'static str,
        /// The document.
        document: usize,
        /// What is wrong.
        problem: String,
    },
    /// A question cannot be scored.
    #[error("{task}: {source}")]
    Score {
        /// The task's name.
        task: String,
        /// What is wrong.
        source: ScoreError,
    },
    /// A text cannot be scored.
    #[error("{task}: {source}")]
    Perplexity {
        /// The task's name.
        task: String,
        /// What is wrong.
        source: PerplexityError,
    },
    /// A text cannot be written.
    #[error("{task}: {source}")]
    Generate {
        /// The task's name.
        task: String,
        /// What is wrong.
        source: GenerateError,
    },
    /// Texts leave no room for their questions.
    #[error(
        "{task}: generation_kwargs.max_gen_toks is {max_gen_toks}, but the model's context holds \
         {context_length}; set it lower"
    )]
    NoRoom {
        /// The task's name.
        task: String,
        /// How many tokens may be written.
        max_gen_toks: usize,
        /// The model's context length.
        context_length: usize,
    },
}

/// How a task is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunConfig {
    /// How many examples are shown, instead of what the task says. As in the harness, a task that says 0
    /// shows none.
    pub num_fewshot: Option<usize>,
    /// Only so many documents.
    pub limit: Option<usize>,
    /// Decides which examples are shown.
    pub seed: u64,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            num_fewshot: None,
            limit: None,
            seed: 1234,
        }
    }
}

/// How well a model did.
#[derive(Clone, Debug, Serialize)]
pub struct TaskResult {
    /// The task's name.
    pub task: String,
    /// What was asked.
    pub output_type: OutputType,
    /// How many examples were shown.
    pub n_shot: usize,
    /// How many documents were asked about.
    pub n_documents: usize,
    /// What was measured.
    pub metrics: Vec<MetricResult>,
}

/// One number.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MetricResult {
    /// What it is.
    pub metric: Metric,
    /// The value.
    pub value: f64,
    /// Its standard error, where it has one.
    pub standard_error: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// A task with its documents.
pub struct Task {
    config: TaskConfig,
    templates: Templates,
    documents: Documents,
    /// Whether examples must not be the document itself.
    excludes_document: bool,
    examples: Documents,
}

/// What `doc_to_target` gives.
enum Target {
    Number(usize),
    Text(String),
    Several(Vec<Target>),
}

impl Task {
    /// Reads a task and its documents.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or the task has a field or asks for something that the zoo does not have;
    /// it is named.
    pub fn load(path: &Path) -> Result<Self, HarnessError> {
        let config = TaskConfig::load(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let problem = |problem: String| HarnessError::Task {
            path: path.to_owned(),
            problem,
        };
        let read = |split: &str| {
            let files = config.files(split, folder).ok_or_else(|| {
                problem(format!("dataset_kwargs.data_files: has no split `{split}`"))
            })?;
            let mut rows = Vec::new();
            for file in &files {
                rows.extend(read_rows(file)?);
            }
            Ok(Documents::new(rows))
        };
        let split = config.evaluated_split().ok_or_else(|| {
            problem("test_split: is missing, and so is validation_split".to_owned())
        })?;
        let documents = read(split)?;
        if documents.rows.is_empty() {
            return Err(problem(format!("split `{split}` has no documents")));
        }
        let examples = match config.examples_split() {
            Some(examples) => read(examples)?,
            None => Documents::new(Vec::new()),
        };
        Ok(Self {
            excludes_document: config.named_fewshot_split() == config.test_split.as_deref(),
            templates: Templates::new(),
            documents,
            examples,
            config,
        })
    }

    /// The task's name.
    pub fn name(&self) -> &str {
        &self.config.task
    }

    /// Asks the model.
    ///
    /// # Errors
    ///
    /// When a template does not fit a document, or a question cannot be scored or answered.
    pub fn run(&self, scorer: &Scorer, run: RunConfig) -> Result<TaskResult, HarnessError> {
        let n_shot = match (self.config.num_fewshot, run.num_fewshot) {
            (Some(0), _) => 0,
            (own, given) => given.or(own).unwrap_or(0),
        };
        let n_documents = self.documents.rows.len();
        let n_documents = run.limit.unwrap_or(n_documents).clamp(1, n_documents);
        let mut random = PythonRandom::new(run.seed);
        let contexts = (0..n_documents)
            .map(|index| self.context(index, n_shot, &mut random))
            .collect::<Result<Vec<String>, HarnessError>>()?;
        let outcomes = match self.config.output_type {
            OutputType::MultipleChoice => self.choose(scorer, contexts)?,
            OutputType::Loglikelihood => self.score(scorer, contexts)?,
            OutputType::LoglikelihoodRolling => self.roll(scorer, n_documents)?,
            OutputType::GenerateUntil => self.write(scorer, contexts)?,
        };
        let metrics = self.metrics();
        let metrics = metrics.iter().map(|config| {
            let (value, standard_error) = measure(config, &outcomes);
            MetricResult {
                metric: config.metric,
                value,
                standard_error,
                higher_is_better: config.metric.higher_is_better(),
            }
        });
        Ok(TaskResult {
            task: self.config.task.clone(),
            output_type: self.config.output_type,
            n_shot,
            n_documents,
            metrics: metrics.collect(),
        })
    }

    fn metrics(&self) -> Vec<MetricConfig> {
        let defaults = Metric::defaults(self.config.output_type);
        let defaults = || defaults.iter().map(|&metric| metric.into()).collect();
        self.config.metric_list.clone().unwrap_or_else(defaults)
    }

    /// What stands before the answer: the description, examples with their answers, and the question.
    fn context(
        &self,
        index: usize,
        n_shot: usize,
        random: &mut PythonRandom,
    ) -> Result<String, HarnessError> {
        let config = &self.config;
        let mut context = self.text("description", &config.description, &self.documents, index)?;
        for example in self.draw(index, n_shot, random)? {
            context += &self.text("doc_to_text", &config.doc_to_text, &self.examples, example)?;
            let answer = self.answer(&self.examples, example)?;
            if !answer.is_empty() {
                context += &format!(
                    "{}{answer}{}",
                    config.target_delimiter, config.fewshot_delimiter
                );
            }
        }
        Ok(context + &self.text("doc_to_text", &config.doc_to_text, &self.documents, index)?)
    }

    /// Which examples are shown with a document.
    fn draw(
        &self,
        index: usize,
        n_shot: usize,
        random: &mut PythonRandom,
    ) -> Result<Vec<usize>, HarnessError> {
        if n_shot == 0 {
            return Ok(Vec::new());
        }
        let document = &self.documents.rows[index];
        let is_other =
            |&example: &usize| !self.excludes_document || self.examples.rows[example] != *document;
        let n_examples = self.examples.rows.len();
        let others: Vec<usize> = (0..n_examples).filter(is_other).collect();
        let n_drawn = n_shot + usize::from(self.excludes_document);
        let is_drawn = self.config.fewshot_config.sampler == FewshotSampler::Default;
        if others.len() < n_shot || (is_drawn && n_examples < n_drawn) {
            let problem = format!("{n_shot} examples are wanted, but there are {n_examples}");
            return Err(self.problem("fewshot_split", index, problem));
        }
        if !is_drawn {
            return Ok(others[..n_shot].to_vec());
        }
        let drawn = random.sample(n_examples, n_drawn);
        let mut drawn: Vec<usize> = drawn.into_iter().filter(is_other).collect();
        drawn.truncate(n_shot);
        if drawn.len() < n_shot {
            // The document was drawn more than once, as copies.
            let drawn = random.sample(others.len(), n_shot);
            return Ok(drawn.into_iter().map(|index| others[index]).collect());
        }
        Ok(drawn)
    }

    fn choose(&self, scorer: &Scorer, contexts: Vec<String>) -> Result<Vec<Outcome>, HarnessError> {
        let needs_unconditional = self
            .metrics()
            .iter()
            .any(|config| config.metric == Metric::AccMutualInfo);
        let mut pairs = Vec::new();
        let mut asked = Vec::new();
        for (index, context) in contexts.into_iter().enumerate() {
            let choices = self.choices(&self.documents, index)?;
            let right = self.right_choices(index, &choices)?;
            let mut ask = |context: &str| {
                let delimiter = &self.config.target_delimiter;
                let continuations = choices.iter().map(|choice| format!("{delimiter}{choice}"));
                pairs.extend(continuations.map(|continuation| (context.to_owned(), continuation)));
            };
            ask(&context);
            if needs_unconditional {
                ask("");
            }
            asked.push((right, choices));
        }
        let mut scores = self.scores(scorer, &pairs)?.into_iter();
        let outcomes = asked.into_iter().map(|(right, choices)| {
            let n_choices = choices.len();
            let mut next = || -> Vec<Score> { scores.by_ref().take(n_choices).collect() };
            let conditional = next();
            let unconditional = if needs_unconditional {
                next()
            } else {
                Vec::new()
            };
            let log_likelihood = |score: Score| score.log_likelihood;
            Outcome::Choice {
                right,
                choices,
                scores: conditional,
                unconditional: unconditional.into_iter().map(log_likelihood).collect(),
            }
        });
        Ok(outcomes.collect())
    }

    fn score(&self, scorer: &Scorer, contexts: Vec<String>) -> Result<Vec<Outcome>, HarnessError> {
        let pairs = contexts
            .into_iter()
            .enumerate()
            .map(|(index, context)| Ok((context, self.answer(&self.documents, index)?)))
            .collect::<Result<Vec<(String, String)>, HarnessError>>()?;
        let scores = self.scores(scorer, &pairs)?;
        Ok(scores.into_iter().map(Outcome::Continuation).collect())
    }

    fn roll(&self, scorer: &Scorer, n_documents: usize) -> Result<Vec<Outcome>, HarnessError> {
        let texts = (0..n_documents)
            .map(|index| self.answer(&self.documents, index))
            .collect::<Result<Vec<String>, HarnessError>>()?;
        let log_likelihoods =
            rolling(scorer, &texts).map_err(|source| HarnessError::Perplexity {
                task: self.config.task.clone(),
                source,
            })?;
        let outcomes = log_likelihoods.into_iter().zip(texts);
        Ok(outcomes
            .map(|(log_likelihood, text)| Outcome::Rolling {
                log_likelihood,
                text,
            })
            .collect())
    }

    fn write(&self, scorer: &Scorer, contexts: Vec<String>) -> Result<Vec<Outcome>, HarnessError> {
        let n_contexts = contexts.len();
        let mut outcomes = Vec::new();
        for (index, context) in contexts.into_iter().enumerate() {
            let right = match self.target(&self.documents, index)? {
                Target::Several(targets) => targets
                    .into_iter()
                    .map(|target| self.target_text(target, &self.documents, index))
                    .collect::<Result<Vec<String>, HarnessError>>()?,
                target => vec![self.target_text(target, &self.documents, index)?],
            };
            outcomes.push(Outcome::Written {
                text: self.write_one(scorer, &context)?,
                right,
            });
            scorer.report(index + 1, n_contexts);
        }
        Ok(outcomes)
    }

    /// The most likely text after `context`, up to the first of the task's marks.
    fn write_one(&self, scorer: &Scorer, context: &str) -> Result<String, HarnessError> {
        let generation = &self.config.generation_kwargs;
        let max_gen_toks = generation.max_gen_toks;
        let context_length = scorer.context_length();
        let until = match &generation.until {
            Some(until) => until.as_slice(),
            None => std::slice::from_ref(&self.config.fewshot_delimiter),
        };
        let task = || self.config.task.clone();
        let score = |source: ScoreError| HarnessError::Score {
            task: task(),
            source,
        };
        let generate = |source| HarnessError::Generate {
            task: task(),
            source,
        };
        let has_encoder = scorer.model().encoder.is_some();
        if !has_encoder && max_gen_toks >= context_length {
            return Err(HarnessError::NoRoom {
                task: task(),
                max_gen_toks,
                context_length,
            });
        }
        let read = if has_encoder {
            context_length
        } else {
            context_length - max_gen_toks
        };
        let encoded = scorer.tokenizer().encode_marked(&[context], usize::MAX);
        let tokens = encoded.map_err(|error| score(error.into()))?.concat();
        let tokens = &tokens[tokens.len().saturating_sub(read)..];
        let (model, marks) = (scorer.model(), scorer.marks());
        let greedy = SamplingConfig::greedy();
        let mut generator = match has_encoder {
            true => Generator::answering(model, tokens, marks.start, greedy, 0),
            false => Generator::new(model, tokens, greedy, 0),
        }
        .map_err(generate)?;
        let mut stream = scorer.tokenizer().stream();
        let mut text = String::new();
        for _ in 0..max_gen_toks {
            let token = generator.next_token();
            if Some(token) == marks.end {
                break;
            }
            text += &stream.push(token).map_err(|error| score(error.into()))?;
            if until
                .iter()
                .any(|mark| !mark.is_empty() && text.contains(mark))
            {
                break;
            }
        }
        text += &stream.finish().map_err(|error| score(error.into()))?;
        for mark in until.iter().filter(|mark| !mark.is_empty()) {
            if let Some(end) = text.find(mark) {
                text.truncate(end);
            }
        }
        Ok(text)
    }

    fn scores(
        &self,
        scorer: &Scorer,
        pairs: &[(String, String)],
    ) -> Result<Vec<Score>, HarnessError> {
        scorer
            .score_texts(pairs)
            .map_err(|source| HarnessError::Score {
                task: self.config.task.clone(),
                source,
            })
    }

    /// The choices of a document.
    fn choices(&self, documents: &Documents, index: usize) -> Result<Vec<String>, HarnessError> {
        let template = match &self.config.doc_to_choice {
            Some(Strings::Many(choices)) => return Ok(choices.clone()),
            Some(Strings::One(template)) => template,
            None => return Ok(Vec::new()),
        };
        let value = self.value("doc_to_choice", template, documents, index)?;
        let choices: Option<Vec<String>> =
            as_list(&value).map(|choices| choices.iter().map(python_str).collect());
        choices
            .filter(|choices| !choices.is_empty())
            .ok_or_else(|| {
                let problem = format!("`{value}` is not a list of choices");
                self.problem("doc_to_choice", index, problem)
            })
    }

    fn target(&self, documents: &Documents, index: usize) -> Result<Target, HarnessError> {
        let has_choices = self.config.doc_to_choice.is_some();
        let target_of = |value: &Value, is_field: bool| match value.kind() {
            ValueKind::Bool => Target::Number(value.is_true().into()),
            ValueKind::Number if value.as_usize().is_some() && has_choices => {
                Target::Number(value.as_usize().unwrap_or_default())
            }
            _ => {
                let text = python_str(value);
                let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
                match text.parse() {
                    Ok(number) if is_number && has_choices && !is_field => Target::Number(number),
                    _ => Target::Text(text),
                }
            }
        };
        let template = match &self.config.doc_to_target {
            TargetConfig::Number(number) => return Ok(Target::Number(*number)),
            TargetConfig::Answers(answers) => {
                let answers = answers.iter().cloned().map(Target::Text);
                return Ok(Target::Several(answers.collect()));
            }
            TargetConfig::Template(template) => template,
        };
        let is_field = documents.has_field(template);
        let value = self.value("doc_to_target", template, documents, index)?;
        Ok(match as_list(&value) {
            Some(list) => {
                Target::Several(list.iter().map(|value| target_of(value, true)).collect())
            }
            None => target_of(&value, is_field),
        })
    }

    fn target_text(
        &self,
        target: Target,
        documents: &Documents,
        index: usize,
    ) -> Result<String, HarnessError> {
        match target {
            Target::Text(text) => Ok(text),
            Target::Several(targets) => match targets.into_iter().next() {
                Some(first) => self.target_text(first, documents, index),
                None => Ok(String::new()),
            },
            Target::Number(number) => {
                let choices = self.choices(documents, index)?;
                if choices.is_empty() {
                    return Ok(number.to_string());
                }
                choices.get(number).cloned().ok_or_else(|| {
                    let problem = format!("there is no choice {number} (counted from 0)");
                    self.problem("doc_to_target", index, problem)
                })
            }
        }
    }

    /// The right answer as a text, the first if there are several.
    fn answer(&self, documents: &Documents, index: usize) -> Result<String, HarnessError> {
        let target = self.target(documents, index)?;
        self.target_text(target, documents, index)
    }

    fn right_choices(&self, index: usize, choices: &[String]) -> Result<Vec<usize>, HarnessError> {
        let number_of = |target: &Target| match target {
            Target::Number(number) => (*number < choices.len()).then_some(*number),
            Target::Text(text) => choices.iter().position(|choice| choice == text),
            Target::Several(_) => None,
        };
        Ok(match self.target(&self.documents, index)? {
            Target::Several(targets) => targets.iter().filter_map(number_of).collect(),
            target => number_of(&target).into_iter().collect(),
        })
    }

    fn text(
        &self,
        field: &'static str,
        template: &str,
        documents: &Documents,
        index: usize,
    ) -> Result<String, HarnessError> {
        self.templates
            .text(template, documents, &documents.rows[index])
            .map_err(|error| self.problem(field, index, error.to_string()))
    }

    fn value(
        &self,
        field: &'static str,
        template: &str,
        documents: &Documents,
        index: usize,
    ) -> Result<Value, HarnessError> {
        self.templates
            .value(template, documents, &documents.rows[index])
            .map_err(|error| self.problem(field, index, error.to_string()))
    }

    fn problem(&self, field: &'static str, document: usize, problem: String) -> HarnessError {
        HarnessError::Field {
            task: self.config.task.clone(),
            field,
            document,
            problem,
        }
    }
}

/// The items of a list, or of a text that is one in JSON.
fn as_list(value: &Value) -> Option<Vec<Value>> {
    if value.kind() == ValueKind::Seq {
        return Some(value.try_iter().ok()?.collect());
    }
    let text = value.as_str()?.trim();
    let list: Vec<serde_json::Value> = serde_json::from_str(text).ok()?;
    Some(list.iter().map(value_of).collect())
}

type Row = serde_json::Map<String, serde_json::Value>;

/// The objects of a JSON array, or of a file with one on each line.
fn read_rows(path: &Path) -> Result<Vec<Row>, HarnessError> {
    let problem = |problem: String| HarnessError::Documents {
        path: path.to_owned(),
        problem,
    };
    let text = std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(&text).map_err(|error| problem(error.to_string()));
    }
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            serde_json::from_str(line)
                .map_err(|error| problem(format!("line {}: {error}", index + 1)))
        })
        .collect()
}
