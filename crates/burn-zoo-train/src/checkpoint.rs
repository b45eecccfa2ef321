//! Checkpoints by step, of which a half-written one is never seen.
//!
//! burn's learner saves model, optimiser and schedule from three threads. Each writes its part into
//! a folder beside the final one; the last to finish adds the state of the run, syncs, renames the
//! folder, and only then removes old checkpoints, each renamed first.
//!
//! ```text
//! checkpoint/step-500/model.bpk  optimizer.bpk  schedule.bpk  [average.bpk]  state.json
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use burn::store::ModuleRecord;
use burn_train::checkpoint::{
    Checkpoint, Checkpointer, CheckpointerError, CheckpointingAction, CheckpointingStrategy,
};
use burn_train::metric::store::EventStoreClient;
use burn_train::{Learner, LearnerModel};
use burn_zoo_models::files;
use serde::{Deserialize, Serialize};

use crate::precision::LossScale;

/// Where a run stands. Together with the records and the recipe it decides everything that follows:
/// the data order and dropout are functions of the seed and the step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimiser steps done.
    pub step: usize,
    /// The mean training loss of the steps before the last evaluation.
    pub train_loss: Option<f64>,
    /// The sum of training losses since the last evaluation, and how many they are.
    pub segment_losses: (f64, usize),
    /// The last evaluation.
    pub valid: Option<Evaluation>,
    /// The best evaluation.
    pub best: Option<Evaluation>,
    /// Evaluations since the best one.
    pub evaluations_since_best: usize,
    /// Tokens read, padding aside.
    pub tokens: usize,
    /// Predictions learned from: tokens of a text, or labels.
    pub predictions: usize,
    /// Seconds spent in training steps.
    pub training_seconds: f64,
    /// Seconds spent in all.
    pub seconds: f64,
    /// What losses are scaled by, in half precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
}

/// A validation loss and when it was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// After how many steps.
    pub step: usize,
    /// The mean loss over the validation split, in nats.
    pub loss: f64,
    /// The share of predictions that are right, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// What makes a checkpoint unusable.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or folder cannot be read or written.
    #[error("checkpoint {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A record is damaged.
    #[error("checkpoint {} is damaged: {problem}; remove its folder to resume from the one before", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const SCHEDULE: &str = "schedule.bpk";
const AVERAGE: &str = "average.bpk";
const STATE: &str = "state.json";
const N_RECORDS: usize = 3;

/// The checkpoints of one run.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    /// Checkpoints being written: the state to add, and the records that are still missing.
    pending: Mutex<BTreeMap<usize, (RunState, usize)>>,
}

impl Checkpoints {
    /// Opens a folder, which is made when it is not there, and removes what an earlier run left
    /// half-written or half-removed. The newest `keep` checkpoints and the best one are kept.
    pub fn open(folder: &Path, keep: usize) -> Result<Arc<Self>, CheckpointError> {
        let io = |source| CheckpointError::Io {
            path: folder.to_owned(),
            source,
        };
        fs::create_dir_all(folder).map_err(io)?;
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let whole = path.with_extension("");
            match path.extension().and_then(|extension| extension.to_str()) {
                // Killed between the last file and the name: the state is written last.
                Some("partial") if path.join(STATE).exists() && !whole.exists() => {
                    fs::rename(&path, &whole).map_err(io)?;
                }
                Some("partial" | "old") => fs::remove_dir_all(&path).map_err(io)?,
                _ => {}
            }
        }
        Ok(Arc::new(Self {
            folder: folder.to_owned(),
            keep,
            pending: Mutex::default(),
        }))
    }

    /// The steps that have a complete checkpoint.
    pub fn steps(&self) -> BTreeSet<usize> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name();
                name.to_str()?.strip_prefix("step-")?.parse().ok()
            })
            .collect()
    }

    fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    fn partial(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step}.partial"))
    }

    /// The state of a checkpoint.
    pub fn state(&self, step: usize) -> Result<RunState, CheckpointError> {
        let path = self.path(step).join(STATE);
        let text = fs::read_to_string(&path).map_err(|source| CheckpointError::Io {
            path: path.clone(),
            source,
        })?;
        serde_json::from_str(&text).map_err(|error| CheckpointError::Damaged {
            path,
            problem: error.to_string(),
        })
    }

    /// The model of a checkpoint that was evaluated: the mean of weights, where one was kept.
    pub fn model(&self, step: usize) -> Result<ModuleRecord, CheckpointError> {
        match self.path(step).join(AVERAGE).exists() {
            true => self.average(step),
            false => self.record(step, MODEL),
        }
    }

    /// The mean of weights of a checkpoint.
    pub fn average(&self, step: usize) -> Result<ModuleRecord, CheckpointError> {
        self.record(step, AVERAGE)
    }

    fn record<R: Checkpoint>(&self, step: usize, name: &str) -> Result<R, CheckpointError> {
        let path = self.path(step).join(name);
        R::load(path.clone()).map_err(|error| CheckpointError::Damaged {
            path,
            problem: error.to_string(),
        })
    }

    /// Brings a learner to where a checkpoint was taken.
    pub fn restore<M: LearnerModel>(
        &self,
        learner: &mut Learner<M>,
        step: usize,
    ) -> Result<RunState, CheckpointError> {
        let state = self.state(step)?;
        let (optimizer, schedule) = (self.record(step, OPTIMIZER)?, self.record(step, SCHEDULE)?);
        let model: ModuleRecord = self.record(step, MODEL)?;
        // The learner's own loading panics where the record does not fit.
        let fits = learner.model().try_load_record(model.clone());
        fits.map_err(|error| CheckpointError::Damaged {
            path: self.path(step).join(MODEL),
            problem: format!("it does not fit the model, {error}"),
        })?;
        learner.load_model(model);
        learner.load_optim(optimizer);
        learner.load_scheduler(schedule);
        Ok(state)
    }

    /// Announces a checkpoint whose records the learner is about to save, and saves what the learner does
    /// not know of.
    pub(crate) fn begin(
        &self,
        state: RunState,
        average: Option<ModuleRecord>,
    ) -> Result<(), CheckpointerError> {
        let partial = self.partial(state.step);
        fs::create_dir_all(&partial).map_err(CheckpointerError::IOError)?;
        if let Some(average) = average {
            Checkpoint::save(average, partial.join(AVERAGE))?;
        }
        self.pending().insert(state.step, (state, N_RECORDS));
        Ok(())
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, (RunState, usize)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that one more record is on disk, and completes the checkpoint when it was the last.
    fn finish_record(&self, step: usize) -> io::Result<()> {
        let state = {
            let mut pending = self.pending();
            let Some((_, missing)) = pending.get_mut(&step) else {
                return Ok(());
            };
            *missing -= 1;
            if *missing > 0 {
                return Ok(());
            }
            pending.remove(&step).map(|(state, _)| state)
        };
        let Some(state) = state else { return Ok(()) };
        let (partial, path) = (self.partial(step), self.path(step));
        let json = serde_json::to_vec_pretty(&state)?;
        files::replace_with(&partial.join(STATE), json)?;
        let old = path.with_extension("old");
        let is_replaced = path.exists();
        if is_replaced {
            fs::rename(&path, &old)?;
        }
        fs::rename(&partial, &path)?;
        files::sync_folder(&self.folder)?;
        if is_replaced {
            fs::remove_dir_all(&old)?;
        }
        self.remove_old(state.best.map(|best| best.step))
    }

    fn remove_old(&self, best: Option<usize>) -> io::Result<()> {
        let steps = self.steps();
        let old = steps.iter().rev().skip(self.keep);
        for &step in old.filter(|&&step| Some(step) != best) {
            let (path, old) = (self.path(step), self.path(step).with_extension("old"));
            fs::rename(path, &old)?;
            fs::remove_dir_all(old)?;
        }
        Ok(())
    }
}

/// Saves one kind of record for burn's learner.
#[derive(Clone, Debug)]
pub(crate) struct RecordWriter {
    checkpoints: Arc<Checkpoints>,
    name: &'static str,
}

/// Writers of the model, optimiser and schedule records.
pub(crate) fn writers(checkpoints: &Arc<Checkpoints>) -> [RecordWriter; N_RECORDS] {
    [MODEL, OPTIMIZER, SCHEDULE].map(|name| RecordWriter {
        checkpoints: checkpoints.clone(),
        name,
    })
}

impl<R: Checkpoint> Checkpointer<R> for RecordWriter {
    fn save(&self, step: usize, record: R) -> Result<(), CheckpointerError> {
        let path = self.checkpoints.partial(step).join(self.name);
        record.save(path)?;
        self.checkpoints
            .finish_record(step)
            .map_err(CheckpointerError::IOError)
    }

    /// Old checkpoints are removed once a newer one is complete, not on request.
    fn delete(&self, _: usize) -> Result<(), CheckpointerError> {
        Ok(())
    }

    fn restore(&self, step: usize) -> Result<R, CheckpointerError> {
        R::load(self.checkpoints.path(step).join(self.name))
    }
}

/// Saves whenever the training loop asks.
pub(crate) struct OnRequest;

impl CheckpointingStrategy for OnRequest {
    fn checkpointing(&mut self, _: usize, _: &EventStoreClient) -> Vec<CheckpointingAction> {
        vec![CheckpointingAction::Save]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a kill may leave at any moment between two checkpoints.
    #[test]
    fn only_whole_checkpoints_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[&str]| {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            for file in files {
                fs::write(path.join(file), "{}").unwrap();
            }
        };
        let whole = [MODEL, OPTIMIZER, SCHEDULE, STATE];
        make("step-10", &whole);
        // Replaced, and killed before the new one had the name.
        make("step-20.old", &whole);
        make("step-20.partial", &whole);
        // Killed while it was written, and while one was removed.
        make("step-30.partial", &[MODEL, OPTIMIZER]);
        make("step-5.old", &[SCHEDULE, STATE]);
        // Killed before the old one was moved away.
        make("step-10.partial", &whole);
        let checkpoints = Checkpoints::open(folder.path(), 2).unwrap();
        assert_eq!(checkpoints.steps(), BTreeSet::from([10, 20]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
