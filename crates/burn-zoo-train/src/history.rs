//! What a run reports of its steps and evaluations, one JSON record a line.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use burn_zoo_models::files;

use crate::step_loop::Record;

/// The history of a run. What a resumed run repeats replaces what the run before it wrote after its last
/// checkpoint.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    file: Option<fs::File>,
    records: Vec<Record>,
}

impl History {
    /// A history in a file, which is touched at the first record.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            file: None,
            records: Vec::new(),
        }
    }

    /// All that the file holds, once there was a record to write.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Adds a record.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open_before(record)?,
        };
        let line = serde_json::to_string(record)? + "\n";
        // At once, so that a kill leaves whole lines.
        file.write_all(line.as_bytes())?;
        self.file = Some(file);
        self.records.push(record.clone());
        Ok(())
    }

    /// Drops the lines that do not come before `first`.
    fn open_before(&mut self, first: &Record) -> io::Result<fs::File> {
        self.records = read(&self.path)?;
        self.records.retain(|record| record.order() < first.order());
        let mut kept = String::new();
        for record in &self.records {
            kept.push_str(&serde_json::to_string(record)?);
            kept.push('\n');
        }
        files::replace_with(&self.path, kept)?;
        fs::OpenOptions::new().append(true).open(&self.path)
    }
}

/// The records of a file; none where there is no file yet. What is no record, such as a line cut short, is
/// left out.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let record = |line| serde_json::from_str(line).ok();
    Ok(text.lines().filter_map(record).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: usize) -> Record {
        Record::Train {
            step,
            loss: 1.0 / step as f64,
            learning_rate: 0.1,
            seconds: 0.3,
        }
    }

    #[test]
    fn what_is_repeated_replaces_what_came_after_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let sample = Record::Sample {
            step: 2,
            sample: "to be\n".to_owned(),
        };
        let valid = Record::Valid {
            step: 2,
            valid_loss: 0.7,
            valid_accuracy: None,
        };
        let mut first = History::new(&path);
        for record in [
            step(1),
            step(2),
            sample.clone(),
            valid.clone(),
            step(3),
            step(4),
        ] {
            first.write(&record).unwrap();
        }
        // Killed in the middle of a line.
        let mut torn = fs::OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"step\": 5, \"lo").unwrap();
        let mut resumed = History::new(&path);
        resumed.write(&step(3)).unwrap();
        resumed.write(&step(4)).unwrap();
        assert_eq!(resumed.records(), read(&path).unwrap());
        let expected = [step(1), step(2), sample, valid, step(3), step(4)];
        assert_eq!(read(&path).unwrap(), expected);
    }
}
