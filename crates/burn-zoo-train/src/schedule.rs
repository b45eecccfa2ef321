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
}

impl ScheduleConfig {
    /// Refuses a floor above the peak.
    pub fn validate(&self, learning_rate: f64) -> Result<(), ConfigError> {
        match *self {
            Self::Cosine {
                min_learning_rate, ..
            } if !(0.0..=learning_rate).contains(&min_learning_rate) => {
                let problem = format!(
                    "must be from 0 to the learning rate ({learning_rate}), got {min_learning_rate}"
                );
                Err(ConfigError::new("cosine.min_learning_rate", problem))
            }
            _ => Ok(()),
        }
    }

    /// The schedule with a peak, over a number of steps.
    pub fn init(&self, learning_rate: f64, iterations: usize) -> Schedule {
        Schedule {
            config: self.clone(),
            learning_rate,
            iterations,
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
    step: usize,
}

impl Schedule {
    /// The learning rate of a step, counted from 0.
    ///
    /// Warm-up takes equal steps from 0, which itself is left out, to the peak. The floor is reached
    /// at the last step and kept after it.
    pub fn at(&self, step: usize) -> f64 {
        let (warmup, floor) = match self.config {
            ScheduleConfig::Constant { warmup_iterations } => {
                (warmup_iterations, self.learning_rate)
            }
            ScheduleConfig::Cosine {
                warmup_iterations,
                min_learning_rate,
            } => (warmup_iterations, min_learning_rate),
        };
        if step < warmup {
            return self.learning_rate * (step + 1) as f64 / (warmup + 1) as f64;
        }
        let length = self.iterations.saturating_sub(1 + warmup).max(1);
        let progress = ((step - warmup) as f64 / length as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        floor + (self.learning_rate - floor) * cosine
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

    #[test]
    fn warms_up_then_falls_to_the_floor_and_stays() {
        let config = ScheduleConfig::Cosine {
            warmup_iterations: 4,
            min_learning_rate: 0.1,
        };
        let schedule = config.init(1.0, 13);
        let rates: Vec<f64> = (0..15).map(|step| schedule.at(step)).collect();
        for (found, expected) in rates.iter().zip([0.2, 0.4, 0.6, 0.8, 1.0]) {
            assert!((found - expected).abs() < 1e-12);
        }
        // Half-way between step 4 and the last, 12, the cosine is half-way too.
        assert!((rates[8] - 0.55).abs() < 1e-12);
        assert!(rates[5..=12].is_sorted_by(|a, b| a > b));
        assert_eq!(rates[12..], [0.1; 3]);
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
