//! What the learner shows: loss, what says more to people, speed and memory.

use std::sync::Arc;

use burn::tensor::TensorReadError;
use burn_train::logger::MetricLogger;
use burn_train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn_train::metric::{
    Adaptor, Metric, MetricAttributes, MetricDefinition, MetricMetadata, MetricName, Numeric,
    NumericAttributes, NumericEntry, SerializedEntry,
};

use crate::{memory, objective::LossOutput};

/// What a metric measures of each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// The mean loss over predictions: in nats, or a squared error.
    Loss,
    /// The exponential of the mean loss.
    Perplexity,
    /// The share of predictions that are right.
    Accuracy,
    /// The square root of the mean loss, where that is a squared error.
    RootMeanSquaredError,
    /// Tokens read per second, padding aside.
    Speed,
    /// The most memory that the process has had resident, in megabytes.
    Memory,
}

impl Quantity {
    fn name(self) -> &'static str {
        match self {
            Self::Loss => "Loss",
            Self::Perplexity => "Perplexity",
            Self::Accuracy => "Accuracy",
            Self::RootMeanSquaredError => "Root mean squared error",
            Self::Speed => "Tokens per second",
            Self::Memory => "Memory (MB)",
        }
    }

    /// The sum and the weight that a step adds; their quotient is the mean.
    fn observe(self, step: &StepFacts) -> [f64; 2] {
        let predictions = step.n_predictions as f64;
        match self {
            Self::Loss | Self::Perplexity | Self::RootMeanSquaredError => {
                [step.loss * predictions, predictions]
            }
            Self::Accuracy => [step.accuracy * predictions, predictions],
            Self::Speed => [step.n_tokens as f64, step.seconds],
            Self::Memory => [memory::peak_bytes().unwrap_or(0) as f64 / 1e6, 1.0],
        }
    }

    fn value(self, [sum, weight]: [f64; 2]) -> f64 {
        match self {
            Self::Perplexity => (sum / weight).exp(),
            Self::RootMeanSquaredError => (sum / weight).sqrt(),
            _ => sum / weight,
        }
    }
}

/// A metric of the learner.
#[derive(Clone, Debug)]
pub struct StepMetric {
    quantity: Quantity,
    name: MetricName,
    total: [f64; 2],
    last: [f64; 2],
}

impl StepMetric {
    /// A metric of `quantity`.
    pub fn new(quantity: Quantity) -> Self {
        Self {
            quantity,
            name: Arc::new(quantity.name().to_owned()),
            total: [0.0; 2],
            last: [0.0; 2],
        }
    }

    fn entry(&self, numeric: NumericEntry) -> SerializedEntry {
        let precision = match self.quantity {
            Quantity::Speed | Quantity::Memory => 0,
            _ => 4,
        };
        let total = self.quantity.value(self.total);
        let last = self.quantity.value(self.last);
        let formatted = format!("epoch {total:.precision$} - batch {last:.precision$}");
        SerializedEntry::new(formatted, numeric.serialize())
    }
}

/// What a step's output says, read from the device.
#[derive(Clone, Copy, Debug)]
pub struct StepFacts {
    loss: f64,
    /// NaN where that is not counted.
    accuracy: f64,
    n_predictions: usize,
    n_tokens: usize,
    seconds: f64,
}

impl Adaptor<StepFacts> for LossOutput {
    fn adapt(&self) -> StepFacts {
        // The learner has synced the output, so the values are there.
        let facts = self.facts().ok();
        let accuracy = facts.and_then(|facts| facts.accuracy);
        StepFacts {
            loss: facts.map_or(f64::NAN, |facts| facts.loss),
            accuracy: accuracy.unwrap_or(f64::NAN),
            n_predictions: self.n_predictions,
            n_tokens: self.n_tokens,
            seconds: self.seconds,
        }
    }
}

impl Metric for StepMetric {
    type Input = StepFacts;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: None,
            higher_is_better: matches!(self.quantity, Quantity::Speed | Quantity::Accuracy),
        }
        .into()
    }

    fn update(
        &mut self,
        step: &StepFacts,
        _: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        self.last = self.quantity.observe(step);
        for (total, last) in self.total.iter_mut().zip(self.last) {
            *total += last;
        }
        Ok(self.entry(NumericEntry::Aggregated {
            aggregated_value: self.quantity.value(self.last),
            count: step.n_predictions,
        }))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.entry(self.final_value()))
    }

    fn clear(&mut self) {
        *self = Self::new(self.quantity);
    }
}

impl Numeric for StepMetric {
    fn value(&self) -> Option<NumericEntry> {
        Some(NumericEntry::Value(self.quantity.value(self.last)))
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(NumericEntry::Value(self.quantity.value(self.total)))
    }

    fn final_value(&self) -> NumericEntry {
        NumericEntry::Final(self.quantity.value(self.total))
    }
}

/// Keeps no logs of the learner's own. Its file logger panics when the disk is full, and its logger
/// in memory grows with every step; what happened is in the loop's records.
pub(crate) struct NoLog;

impl MetricLogger for NoLog {
    fn log(&mut self, _: MetricsUpdate, _: usize, _: &Split) {}

    fn read_numeric(&mut self, _: &str, _: usize, _: &Split) -> Result<Vec<NumericEntry>, String> {
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, _: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _: EpochSummary) {}
}
