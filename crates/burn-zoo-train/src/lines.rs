//! Progress as plain lines on stderr, where there is no terminal for the learner's screen.

use std::collections::BTreeMap;
use std::io::{Write, stderr};

use burn_train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn_train::metric::{MetricDefinition, MetricEntry};
use burn_train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};

/// One line every so many training steps, and one for each evaluation.
pub struct LineRenderer {
    log_interval: usize,
    /// Steps done in earlier segments, and of the present one.
    finished: usize,
    current: usize,
    total: usize,
    is_training: bool,
    is_silent: bool,
    /// Names by metric id, and the latest text of each name.
    names: Vec<MetricDefinition>,
    latest: BTreeMap<String, String>,
}

impl LineRenderer {
    /// A renderer for a run that continues after `first_step` steps and ends after `total`.
    pub fn new(log_interval: usize, first_step: usize, total: usize) -> Self {
        Self {
            log_interval,
            finished: first_step,
            current: 0,
            total,
            is_training: true,
            is_silent: false,
            names: Vec::new(),
            latest: BTreeMap::new(),
        }
    }

    /// A renderer that prints nothing.
    pub fn silent() -> Self {
        Self {
            is_silent: true,
            ..Self::new(1, 0, 0)
        }
    }

    /// Keeps the value after the last `after`, as burn formats `epoch A - batch B`.
    fn remember(&mut self, entry: &MetricEntry) {
        let definition = self
            .names
            .iter()
            .find(|definition| definition.metric_id == entry.metric_id);
        if let Some(definition) = definition {
            let formatted = &entry.serialized_entry.formatted;
            let value = match (self.is_training, formatted.split_once(" - batch ")) {
                (true, Some((_, batch))) => batch,
                (false, Some((epoch, _))) => epoch.trim_start_matches("epoch "),
                (_, None) => formatted,
            };
            self.latest
                .insert(definition.name.to_lowercase(), value.to_owned());
        }
    }

    fn print(&self, label: &str) {
        if self.is_silent {
            return;
        }
        let values: Vec<String> = self
            .latest
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        let step = self.finished + self.current;
        // A run goes on when nobody reads its progress any more.
        let _ = writeln!(
            stderr(),
            "{label} {step}/{}: {}",
            self.total,
            values.join(", ")
        );
    }
}

impl TrainingProgressLogger for LineRenderer {
    fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {}

    fn start_split(&mut self, split: &str, _: usize) {
        self.is_training = split == "train";
        self.latest.clear();
    }

    fn update_split(&mut self, items_processed: usize) {
        if self.is_training {
            self.current = items_processed;
            let step = self.finished + self.current;
            if step.is_multiple_of(self.log_interval) || step == self.total {
                self.print("step");
            }
        }
    }

    fn end_split(&mut self) {
        if !self.is_training {
            self.print("evaluation after step");
            self.finished += self.current;
            self.current = 0;
        }
    }

    fn update_epoch(&mut self, _: usize) {}

    fn end(&mut self) {}

    fn log_event_training(&mut self, _: String) {}
}

impl MetricsRendererTraining for LineRenderer {
    fn update_train(&mut self, state: MetricState) {
        let (MetricState::Generic(entry) | MetricState::Numeric(entry, _)) = state;
        self.remember(&entry);
    }

    fn update_valid(&mut self, state: MetricState) {
        let (MetricState::Generic(entry) | MetricState::Numeric(entry, _)) = state;
        self.remember(&entry);
    }
}

impl MetricsRenderer for LineRenderer {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names.push(definition);
    }
}

impl MetricsRendererEvaluation for LineRenderer {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl EvaluationProgressLogger for LineRenderer {
    fn start_global_progress(&mut self, _: usize) {}

    fn start_test(&mut self, _: &str, _: usize) {}

    fn update_test_progress(&mut self, _: usize) {}

    fn end_test(&mut self) {}

    fn end_global_progress(&mut self) {}

    fn log_event_evaluation(&mut self, _: String) {}
}
