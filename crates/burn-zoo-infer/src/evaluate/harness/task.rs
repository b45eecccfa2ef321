//! The YAML file of a task.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::{HarnessError, metric::MetricConfig};

/// What is asked of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputType {
    /// The likeliest of several continuations.
    MultipleChoice,
    /// The likelihood of one continuation.
    Loglikelihood,
    /// The likelihood of a whole text.
    LoglikelihoodRolling,
    /// A text, up to a mark.
    #[default]
    GenerateUntil,
}

/// One string, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Strings {
    One(String),
    Many(Vec<String>),
}

impl Strings {
    pub(super) fn as_slice(&self) -> &[String] {
        match self {
            Self::One(string) => std::slice::from_ref(string),
            Self::Many(strings) => strings,
        }
    }
}

/// `doc_to_target`: a template or field, the number of the right choice, or answers.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum TargetConfig {
    Number(usize),
    Template(String),
    Answers(Vec<String>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum DataFiles {
    /// The split is then called `train`.
    Train(Strings),
    Splits(BTreeMap<String, Strings>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DatasetArguments {
    pub(super) data_files: DataFiles,
    #[serde(default, rename = "trust_remote_code")]
    _trust_remote_code: IgnoredAny,
}

/// Which examples of the split are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FewshotSampler {
    /// Drawn for each document.
    #[default]
    Default,
    /// The first.
    FirstN,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FewshotConfig {
    pub(super) sampler: FewshotSampler,
    pub(super) split: Option<String>,
}

/// How long a text may get and where it ends.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerationConfig {
    pub(super) until: Option<Strings>,
    #[serde(
        default = "default_max_gen_toks",
        alias = "max_new_tokens",
        alias = "max_tokens",
        alias = "max_completion_tokens"
    )]
    pub(super) max_gen_toks: usize,
    #[serde(default)]
    do_sample: bool,
    #[serde(default)]
    temperature: f64,
}

fn default_max_gen_toks() -> usize {
    256
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            until: None,
            max_gen_toks: default_max_gen_toks(),
            do_sample: false,
            temperature: 0.0,
        }
    }
}

/// The fields that the zoo reads, and after them those that change no result.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskConfig {
    pub(super) task: String,
    pub(super) dataset_path: String,
    pub(super) dataset_kwargs: DatasetArguments,
    pub(super) training_split: Option<String>,
    pub(super) validation_split: Option<String>,
    pub(super) test_split: Option<String>,
    pub(super) fewshot_split: Option<String>,
    #[serde(default)]
    pub(super) output_type: OutputType,
    #[serde(default)]
    pub(super) doc_to_text: String,
    pub(super) doc_to_target: TargetConfig,
    pub(super) doc_to_choice: Option<Strings>,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default = "default_target_delimiter")]
    pub(super) target_delimiter: String,
    #[serde(default = "default_fewshot_delimiter")]
    pub(super) fewshot_delimiter: String,
    pub(super) num_fewshot: Option<usize>,
    #[serde(default)]
    pub(super) fewshot_config: FewshotConfig,
    pub(super) metric_list: Option<Vec<MetricConfig>>,
    #[serde(default)]
    pub(super) generation_kwargs: GenerationConfig,
    #[serde(default = "one")]
    repeats: usize,

    #[serde(default, rename = "task_alias")]
    _task_alias: IgnoredAny,
    #[serde(default, rename = "tag")]
    _tag: IgnoredAny,
    #[serde(default, rename = "dataset_name")]
    _dataset_name: IgnoredAny,
    #[serde(default, rename = "metadata")]
    _metadata: IgnoredAny,
    #[serde(default, rename = "unsafe_code")]
    _unsafe_code: IgnoredAny,
    #[serde(default, rename = "should_decontaminate")]
    _should_decontaminate: IgnoredAny,
    #[serde(default, rename = "doc_to_decontamination_query")]
    _doc_to_decontamination_query: IgnoredAny,
}

fn default_target_delimiter() -> String {
    " ".to_owned()
}

fn default_fewshot_delimiter() -> String {
    "\n\n".to_owned()
}

fn one() -> usize {
    1
}

impl TaskConfig {
    pub(super) fn load(path: &Path) -> Result<Self, HarnessError> {
        let problem = |problem: String| HarnessError::Task {
            path: path.to_owned(),
            problem,
        };
        let text = std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
        // A YAML tag would be dropped, and the name of the function taken for a template.
        if let Some(line) = text.lines().find(|line| calls_python(line)) {
            let field = line.trim().trim_start_matches("- ");
            return Err(problem(format!(
                "`{field}`: Python functions cannot be called; write a template"
            )));
        }
        let config: Self =
            serde_saphyr::from_str(&text).map_err(|error| problem(error.to_string()))?;
        config.validate().map_err(problem)?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), String> {
        if self.dataset_path != "json" {
            return Err(format!(
                "dataset_path: `{}` is not read; give `json` and local files as \
                 dataset_kwargs.data_files",
                self.dataset_path
            ));
        }
        if self.repeats != 1 {
            return Err(format!(
                "repeats: only 1 is supported, got {}",
                self.repeats
            ));
        }
        if self.generation_kwargs.do_sample || self.generation_kwargs.temperature != 0.0 {
            return Err("generation_kwargs: only greedy texts are written; \
                        set do_sample to false and temperature to 0"
                .to_owned());
        }
        if self.output_type == OutputType::MultipleChoice && self.doc_to_choice.is_none() {
            return Err("doc_to_choice: is missing, but output_type is multiple_choice".to_owned());
        }
        for metric in self.metric_list.iter().flatten() {
            metric.validate(self.output_type)?;
        }
        Ok(())
    }

    /// The split that is evaluated.
    pub(super) fn evaluated_split(&self) -> Option<&str> {
        self.test_split
            .as_deref()
            .or(self.validation_split.as_deref())
    }

    /// The split that the configuration names for examples.
    pub(super) fn named_fewshot_split(&self) -> Option<&str> {
        let split = self.fewshot_config.split.as_deref();
        split.or(self.fewshot_split.as_deref())
    }

    /// The split that examples come from: the named one, else training, validation, test.
    pub(super) fn examples_split(&self) -> Option<&str> {
        self.named_fewshot_split()
            .or(self.training_split.as_deref())
            .or(self.validation_split.as_deref())
            .or(self.test_split.as_deref())
    }

    /// The files of a split, relative to the folder of the task.
    pub(super) fn files(&self, split: &str, folder: &Path) -> Option<Vec<PathBuf>> {
        let files = match &self.dataset_kwargs.data_files {
            DataFiles::Train(files) if split == "train" => files,
            DataFiles::Train(_) => return None,
            DataFiles::Splits(splits) => splits.get(split)?,
        };
        Some(
            files
                .as_slice()
                .iter()
                .map(|file| folder.join(file))
                .collect(),
        )
    }
}

fn calls_python(line: &str) -> bool {
    let code = line.trim_start();
    let value = code.split_once(':').map_or(code, |(_, value)| value);
    let value = value.trim_start().trim_start_matches("- ");
    !code.starts_with('#') && value.trim_start().starts_with("!function")
}
