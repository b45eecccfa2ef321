//! The learning rate as a function of the step.

use burn::optim::LearningRate;
use burn::optim::lr_scheduler::{LrScheduler, LrSchedulerRecord};
use burn_zoo_nn::ConfigError;
use serde::{Deserialize, Serialize};

/// How the learning rate changes after a linear warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ScheduleConfig {
    /// It does not.
    Constant {
        /// Steps of warm-up.
        #[serde(default)]
        warmup_iterations: usize,
    },
    /// It falls along a line to a floor at the last step.
    Linear {
        /// Steps of warm-up.
        #[serde(default)]
        warmup_iterations: usize,
        /// The floor.
        #[serde(default)]
        min_learning_rate: f64,
    },
    /// It falls along half a cosine to a floor at the last step (Loshchilov & Hutter 2017,
    /// arXiv:1608.03983).
    Cosine {
        /// Steps of warm-up.
        #[serde(default)]
        warmup_iterations: usize,
        /// The floor.
        #[serde(default)]
        min_learning_rate: f64,
    },
    /// It stays, and falls along a line to a floor in the last steps (Hu et al. 2024,
    /// arXiv:2404.06395).
    WarmupStableDecay {
        /// Steps of warm-up.
        #[serde(default)]
        warmup_iterations: usize,
        /// Steps in which it falls.
        decay_iterations: usize,
        /// The floor.
        #[serde(default)]
        min_learning_rate: f64,
    },
    /// It falls with the inverse square root of the step (Vaswani et al. 2017, arXiv:1706.03762, whose peak
    /// is 1/√(d_model · warm-up)).
    Noam {
        /// Steps of warm-up.
        warmup_iterations: usize,
    },
}

impl ScheduleConfig {
    fn warmup_iterations(&self) -> usize {
        match *self {
            Self::Constant { warmup_iterations }
            | Self::Linear {
                warmup_iterations, ..
            }
            | Self::Cosine {
                warmup_iterations, ..
            }
            | Self::WarmupStableDecay {
                warmup_iterations, ..
            }
            | Self::Noam { warmup_iterations } => warmup_iterations,
        }
    }

    /// Refuses a floor above the peak, and a fall that takes no time.
    pub fn validate(&self, learning_rate: f64) -> Result<(), ConfigError> {
        let (name, floor) = match *self {
            Self::Constant { .. } | Self::Noam { .. } => return Ok(()),
            Self::Linear {
                min_learning_rate, ..
            } => ("linear", min_learning_rate),
            Self::Cosine {
                min_learning_rate, ..
            } => ("cosine", min_learning_rate),
            Self::WarmupStableDecay {
                decay_iterations: 0,
                ..
            } => {
                let problem = "must be at least 1, got 0: use constant where nothing falls";
                let field = "warmup_stable_decay.decay_iterations";
                return Err(ConfigError::new(field, problem));
            }
            Self::WarmupStableDecay {
                min_learning_rate, ..
            } => ("warmup_stable_decay", min_learning_rate),
        };
        if !(0.0..=learning_rate).contains(&floor) {
            let problem =
                format!("must be from 0 to the learning rate ({learning_rate}), got {floor}");
            return Err(ConfigError::new(
                format!("{name}.min_learning_rate"),
                problem,
            ));
        }
        Ok(())
    }

    /// The schedule with a peak, over a number of steps.
    pub fn init(&self, learning_rate: f64, iterations: usize) -> Schedule {
        Schedule {
            config: self.clone(),
            learning_rate,
            iterations,
            scale: 1.0,
            step: 0,
        }
    }
}

/// A learning-rate schedule that burn's learner advances.
#[derive(Clone, Debug)]
pub struct Schedule {
    config: ScheduleConfig,
    learning_rate: f64,
    iterations: usize,
    scale: f64,
    step: usize,
}

impl Schedule {
    /// The same schedule with every learning rate, the floor too, multiplied by `scale`.
    pub fn scaled(&self, scale: f64) -> Self {
        Self {
            scale: self.scale * scale,
            ..self.clone()
        }
    }

    /// The learning rate of a step, counted from 0.
    ///
    /// Warm-up takes equal steps from 0, which itself is left out, to the peak. A floor is reached at the
    /// last step and kept after it.
    pub fn at(&self, step: usize) -> f64 {
        let warmup = self.config.warmup_iterations();
        let peak = self.learning_rate;
        let from_start = (step + 1) as f64 / (warmup + 1) as f64;
        // How much of the way from a step to the last one is done.
        let progress = |first: usize| {
            let length = self.iterations.saturating_sub(1 + first).max(1);
            (step.saturating_sub(first) as f64 / length as f64).min(1.0)
        };
        let between = |floor: f64, share: f64| floor + (peak - floor) * share;
        let rate = match self.config {
            _ if step < warmup => peak * from_start,
            ScheduleConfig::Constant { .. } => peak,
            ScheduleConfig::Linear {
                min_learning_rate, ..
            } => between(min_learning_rate, 1.0 - progress(warmup)),
            ScheduleConfig::Cosine {
                min_learning_rate, ..
            } => {
                let cosine = (std::f64::consts::PI * progress(warmup)).cos();
                between(min_learning_rate, 0.5 * (1.0 + cosine))
            }
            ScheduleConfig::WarmupStableDecay {
                decay_iterations,
                min_learning_rate,
                ..
            } => {
                let last = self.iterations.saturating_sub(1);
                let first = last.saturating_sub(decay_iterations).max(warmup);
                between(min_learning_rate, 1.0 - progress(first))
            }
            ScheduleConfig::Noam { .. } => peak / from_start.sqrt(),
        };
        rate * self.scale
    }
}

impl LrScheduler for Schedule {
    fn step(&mut self) -> LearningRate {
        self.step += 1;
        self.at(self.step - 1)
    }

    fn to_record(&self) -> LrSchedulerRecord {
        LrSchedulerRecord::new().with_scalar("step", self.step as u64)
    }

    fn load_record(&mut self, record: LrSchedulerRecord) {
        if let Some(step) = record.scalar::<u64>("step") {
            self.step = step as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(config: ScheduleConfig, iterations: usize, steps: usize) -> Vec<f64> {
        let schedule = config.init(1.0, iterations);
        (0..steps).map(|step| schedule.at(step)).collect()
    }

    fn assert_rates(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }

    #[test]
    fn warms_up_then_falls_to_the_floor_and_stays() {
        let config = ScheduleConfig::Cosine {
            warmup_iterations: 4,
            min_learning_rate: 0.1,
        };
        let rates = rates(config, 13, 15);
        assert_rates(&rates[..5], &[0.2, 0.4, 0.6, 0.8, 1.0]);
        // Half-way between step 4 and the last, 12, the cosine is half-way too.
        assert!((rates[8] - 0.55).abs() < 1e-12);
        assert!(rates[5..=12].is_sorted_by(|a, b| a > b));
        assert_eq!(rates[12..], [0.1; 3]);
    }

    #[test]
    fn a_line_falls_by_equal_steps() {
        let config = ScheduleConfig::Linear {
            warmup_iterations: 1,
            min_learning_rate: 0.2,
        };
        let expected = [0.5, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2];
        assert_rates(&rates(config, 6, 7), &expected);
    }

    #[test]
    fn stable_is_stable_until_the_last_steps() {
        let config = ScheduleConfig::WarmupStableDecay {
            warmup_iterations: 1,
            decay_iterations: 4,
            min_learning_rate: 0.0,
        };
        let expected = [0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0];
        assert_rates(&rates(config, 8, 9), &expected);
        // A fall longer than the run starts where warm-up ends.
        let config = ScheduleConfig::WarmupStableDecay {
            warmup_iterations: 1,
            decay_iterations: 100,
            min_learning_rate: 0.0,
        };
        assert_rates(&rates(config, 4, 4), &[0.5, 1.0, 0.5, 0.0]);
    }

    /// `d_model^-½ · min(n^-½, n · w^-1½)` with `n` from 1, as the paper writes it.
    #[test]
    fn noam_is_the_formula_of_the_paper() {
        let (d_model, warmup) = (512f64, 40f64);
        let config = ScheduleConfig::Noam {
            warmup_iterations: 39,
        };
        let schedule = config.init((d_model * warmup).powf(-0.5), 1000);
        for step in [0, 1, 20, 38, 39, 40, 500, 5000] {
            let n = (step + 1) as f64;
            let expected = d_model.powf(-0.5) * n.powf(-0.5).min(n * warmup.powf(-1.5));
            assert!((schedule.at(step) - expected).abs() < 1e-15, "{step}");
        }
    }

    #[test]
    fn a_scaled_schedule_is_a_multiple() {
        let config = ScheduleConfig::Cosine {
            warmup_iterations: 2,
            min_learning_rate: 0.3,
        };
        let schedule = config.init(0.9, 9);
        let scaled = schedule.scaled(0.25);
        assert!((0..12).all(|step| scaled.at(step) == schedule.at(step) * 0.25));
    }

    #[test]
    fn a_record_continues_where_it_was_taken() {
        let config = ScheduleConfig::Cosine {
            warmup_iterations: 2,
            min_learning_rate: 0.0,
        };
        let mut unbroken = config.init(1.0, 10);
        unbroken.step();
        unbroken.step();
        let mut resumed = config.init(1.0, 10);
        resumed.load_record(unbroken.to_record());
        assert_eq!(resumed.step(), unbroken.step());
    }
}
