//! The metrics of tasks: from what the model did on each document to one number.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::task::OutputType;
use crate::evaluate::{
    classification::{Average, Confusion},
    deviation,
    generation::bleu,
    perplexity::count_words,
    score::Score,
    softmax,
};

/// A metric, by the name that lm-evaluation-harness has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Whether the likeliest choice is right, or the continuation the most likely text.
    Acc,
    /// Whether the choice is right that is likeliest after dividing log-likelihoods by the number of
    /// characters.
    AccNorm,
    /// The same with the number of bytes.
    AccBytes,
    /// Whether the choice is right whose likelihood the context raises most.
    AccMutualInfo,
    /// Whether the right choice is the most likely text, or the written text is a right one.
    ExactMatch,
    /// F1 of choice 1 against choice 0.
    F1,
    /// Matthews' correlation of right and likeliest choices.
    Mcc,
    /// The squared distance of the choices' probabilities from the right one.
    BrierScore,
    /// `exp` of the mean negative log-likelihood of a document.
    Perplexity,
    /// `exp` of the negative log-likelihood of a word.
    WordPerplexity,
    /// `exp` of the negative log-likelihood of a byte.
    BytePerplexity,
    /// The negative log₂-likelihood of a byte.
    BitsPerByte,
    /// BLEU of all texts.
    Bleu,
}

impl Metric {
    /// Those of a task that names none.
    pub(super) fn defaults(output: OutputType) -> &'static [Self] {
        match output {
            OutputType::MultipleChoice => &[Self::Acc, Self::AccNorm],
            OutputType::Loglikelihood => &[Self::Perplexity, Self::Acc],
            OutputType::LoglikelihoodRolling => &[
                Self::WordPerplexity,
                Self::BytePerplexity,
                Self::BitsPerByte,
            ],
            OutputType::GenerateUntil => &[Self::ExactMatch],
        }
    }

    fn allowed(output: OutputType) -> &'static [Self] {
        match output {
            OutputType::MultipleChoice => &[
                Self::Acc,
                Self::AccNorm,
                Self::AccBytes,
                Self::AccMutualInfo,
                Self::ExactMatch,
                Self::F1,
                Self::Mcc,
                Self::BrierScore,
            ],
            OutputType::GenerateUntil => &[Self::ExactMatch, Self::Bleu],
            other => Self::defaults(other),
        }
    }

    /// The name.
    pub fn name(self) -> String {
        let name = serde_json::to_value(self).expect("a name is a string");
        name.as_str().unwrap_or_default().to_owned()
    }

    /// Whether more is better.
    pub fn higher_is_better(self) -> bool {
        !matches!(
            self,
            Self::Perplexity
                | Self::WordPerplexity
                | Self::BytePerplexity
                | Self::BitsPerByte
                | Self::BrierScore
        )
    }

    /// The name of the way from documents to one number, as a task may give it.
    fn aggregation(self) -> &'static str {
        match self {
            Self::F1 => "f1",
            Self::Mcc => "matthews_corrcoef",
            Self::BrierScore => "brier_score",
            Self::Perplexity => "perplexity",
            Self::WordPerplexity | Self::BytePerplexity => "weighted_perplexity",
            Self::BitsPerByte => "bits_per_byte",
            Self::Bleu => "bleu",
            _ => "mean",
        }
    }
}

/// An entry of `metric_list`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetricConfig {
    pub(super) metric: Metric,
    aggregation: Option<String>,
    #[serde(flatten)]
    pub(super) ignore: Ignored,
    #[serde(default, rename = "higher_is_better")]
    _higher_is_better: IgnoredAny,
}

/// What `exact_match` does not look at.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ignored {
    ignore_case: bool,
    ignore_punctuation: bool,
    ignore_numbers: bool,
}

impl Ignored {
    fn apply(self, text: &str) -> String {
        let text = match self.ignore_case {
            true => text.to_lowercase(),
            false => text.to_owned(),
        };
        let is_kept = |c: &char| {
            !(self.ignore_punctuation && c.is_ascii_punctuation()
                || self.ignore_numbers && c.is_ascii_digit())
        };
        text.chars().filter(is_kept).collect()
    }
}

impl From<Metric> for MetricConfig {
    fn from(metric: Metric) -> Self {
        Self {
            metric,
            aggregation: None,
            ignore: Ignored::default(),
            _higher_is_better: IgnoredAny,
        }
    }
}

impl MetricConfig {
    pub(super) fn validate(&self, output: OutputType) -> Result<(), String> {
        let name = self.metric.name();
        let allowed = Metric::allowed(output);
        if !allowed.contains(&self.metric) {
            let names: Vec<String> = allowed.iter().map(|metric| metric.name()).collect();
            let names = names.join(", ");
            return Err(format!(
                "metric_list: `{name}` is not for this output_type, which has {names}"
            ));
        }
        match &self.aggregation {
            Some(given) if given != self.metric.aggregation() => Err(format!(
                "metric_list: the aggregation of `{name}` must be `{}`, got `{given}`",
                self.metric.aggregation()
            )),
            _ => Ok(()),
        }
    }
}

/// What the model did on one document.
pub(super) enum Outcome {
    /// It scored choices.
    Choice {
        /// The right ones; none when the document names a choice that is not there.
        right: Vec<usize>,
        choices: Vec<String>,
        scores: Vec<Score>,
        /// The log-likelihoods of the choices without the document, where a metric needs them.
        unconditional: Vec<f64>,
    },
    /// It scored a continuation.
    Continuation(Score),
    /// It scored a text.
    Rolling { log_likelihood: f64, text: String },
    /// It wrote a text.
    Written { text: String, right: Vec<String> },
}

impl Outcome {
    /// The value of a metric that is the mean over documents.
    fn value(&self, metric: Metric, ignore: Ignored) -> f64 {
        match self {
            Self::Continuation(score) => match metric {
                Metric::Acc => is(score.is_greedy),
                _ => score.log_likelihood,
            },
            Self::Rolling { log_likelihood, .. } => *log_likelihood,
            Self::Written { text, right } => {
                let text = ignore.apply(text);
                is(right.iter().any(|right| ignore.apply(right) == text))
            }
            Self::Choice {
                right,
                choices,
                scores,
                unconditional,
            } => {
                let best = |value: &dyn Fn(usize) -> f64| {
                    is(right.contains(&argmax((0..scores.len()).map(value))))
                };
                let likelihood = |index: usize| scores[index].log_likelihood;
                match metric {
                    Metric::AccNorm => {
                        best(&|index| likelihood(index) / choices[index].chars().count() as f64)
                    }
                    Metric::AccBytes => {
                        best(&|index| likelihood(index) / choices[index].len() as f64)
                    }
                    Metric::AccMutualInfo => {
                        best(&|index| likelihood(index) - unconditional[index])
                    }
                    Metric::ExactMatch => is(right.iter().any(|&index| scores[index].is_greedy)),
                    Metric::BrierScore => self.brier(),
                    _ => best(&likelihood),
                }
            }
        }
    }

    fn brier(&self) -> f64 {
        let Self::Choice { right, scores, .. } = self else {
            return f64::NAN;
        };
        let probabilities = softmax(scores.iter().map(|score| score.log_likelihood));
        let distances = probabilities
            .iter()
            .enumerate()
            .map(|(index, probability)| (probability - is(right.first() == Some(&index))).powi(2));
        distances.sum()
    }

    /// Into how many parts a metric divides the log-likelihood of a text.
    fn weight(&self, metric: Metric) -> f64 {
        match (self, metric) {
            (Self::Rolling { text, .. }, Metric::WordPerplexity) => count_words(text) as f64,
            (Self::Rolling { text, .. }, _) => text.len() as f64,
            _ => 1.0,
        }
    }
}

fn is(condition: bool) -> f64 {
    f64::from(u8::from(condition))
}

/// The first of the highest.
fn argmax(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, value) in values.enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

/// A metric over all documents, and its standard error where it has one.
///
/// That of a mean is the sample's standard deviation divided by the root of the number of documents;
/// that of other metrics which the harness resamples is the standard deviation over resampled documents.
pub(super) fn measure(config: &MetricConfig, outcomes: &[Outcome]) -> (f64, Option<f64>) {
    let metric = config.metric;
    let all: Vec<usize> = (0..outcomes.len()).collect();
    let values: Vec<f64> = outcomes
        .iter()
        .map(|outcome| outcome.value(metric, config.ignore))
        .collect();
    let mean = |chosen: &[usize]| {
        chosen.iter().map(|&index| values[index]).sum::<f64>() / chosen.len() as f64
    };
    let resampled = |value: &dyn Fn(&[usize]) -> f64, iterations: usize| {
        (value(&all), bootstrap(value, all.len(), iterations))
    };
    match metric {
        Metric::Perplexity => resampled(&|chosen| (-mean(chosen)).exp(), 1000),
        Metric::WordPerplexity | Metric::BytePerplexity | Metric::BitsPerByte => {
            let weight: f64 = outcomes.iter().map(|outcome| outcome.weight(metric)).sum();
            let nats = -values.iter().sum::<f64>() / weight;
            match metric {
                Metric::BitsPerByte => (nats / std::f64::consts::LN_2, None),
                _ => (nats.exp(), None),
            }
        }
        Metric::F1 | Metric::Mcc => {
            resampled(&|chosen| correlation(metric, outcomes, chosen), 1000)
        }
        Metric::Bleu => resampled(&|chosen| corpus_bleu(outcomes, chosen), 100),
        Metric::BrierScore => (mean(&all), None),
        _ => (
            mean(&all),
            deviation(&values).map(|d| d / (values.len() as f64).sqrt()),
        ),
    }
}

fn bootstrap(value: &dyn Fn(&[usize]) -> f64, n: usize, iterations: usize) -> Option<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let resampled: Vec<f64> = (0..iterations)
        .map(|_| {
            let chosen: Vec<usize> = (0..n).map(|_| random.random_range(0..n)).collect();
            value(&chosen)
        })
        .collect();
    deviation(&resampled)
}

fn correlation(metric: Metric, outcomes: &[Outcome], chosen: &[usize]) -> f64 {
    let mut labels = Vec::new();
    let mut predictions = Vec::new();
    for &index in chosen {
        if let Outcome::Choice { right, scores, .. } = &outcomes[index]
            && let Some(&label) = right.first()
        {
            labels.push(label);
            predictions.push(argmax(scores.iter().map(|score| score.log_likelihood)));
        }
    }
    let n_classes = labels
        .iter()
        .chain(&predictions)
        .max()
        .map_or(0, |class| class + 1);
    let Ok(confusion) = Confusion::new(&labels, &predictions, n_classes) else {
        return f64::NAN;
    };
    match metric {
        Metric::Mcc => confusion.matthews(),
        _ => confusion.average(Average::Binary).f1,
    }
}

fn corpus_bleu(outcomes: &[Outcome], chosen: &[usize]) -> f64 {
    let written = chosen.iter().filter_map(|&index| match &outcomes[index] {
        Outcome::Written { text, right } => Some((text.clone(), right.clone())),
        _ => None,
    });
    let (texts, references): (Vec<String>, Vec<Vec<String>>) = written.unzip();
    bleu(&texts, &references).map_or(f64::NAN, |bleu| bleu.score)
}
