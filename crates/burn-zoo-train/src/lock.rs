//! One process at a time in a run's directory.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file that is locked.
const LOCK: &str = "lock";

/// What keeps a directory from being locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process trains there.
    #[error(
        "{} is in use: {holder} trains there; wait for it to end, or use another directory",
        folder.display()
    )]
    Held {
        /// The folder.
        folder: PathBuf,
        /// The process that holds it.
        holder: String,
    },
    /// The lock cannot be opened or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

/// A folder that is this process's until the value is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Locks a folder, which is made when it is not there.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(LOCK);
        let locked = fs::create_dir_all(folder).and_then(|()| {
            // What is in the file is the holder's until the lock is.
            let options = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path);
            let mut file = options?;
            match file.try_lock() {
                Ok(()) => {
                    file.set_len(0)?;
                    write!(file, "process {}", std::process::id())?;
                    Ok(Some(file))
                }
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(error)) => Err(error),
            }
        });
        match locked {
            Ok(Some(file)) => Ok(Self { _file: file }),
            Ok(None) => Err(LockError::Held {
                folder: folder.to_owned(),
                holder: fs::read_to_string(&path)
                    .ok()
                    .filter(|holder| !holder.is_empty())
                    .unwrap_or_else(|| "another process".to_owned()),
            }),
            Err(source) => Err(LockError::Io { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_locked_until_the_lock_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let training = folder.path().join("training");
        let lock = FolderLock::acquire(&training).unwrap();
        let refusal = FolderLock::acquire(&training).unwrap_err().to_string();
        let holder = format!("process {} trains there", std::process::id());
        assert!(refusal.contains(&holder), "{refusal}");
        drop(lock);
        FolderLock::acquire(&training).unwrap();
    }
}
