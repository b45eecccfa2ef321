//! Writing files so that a name never stands for half of what it should hold.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Replaces `path` by what `write` writes: beside it first, then synced, then renamed over it. What is left
/// after a kill has the ending `.partial`, and is overwritten by the next attempt.
///
/// # Errors
///
/// When anything fails, such as on a full disk; `path` is then as it was.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let beside = partial(path);
    let written = File::create(&beside).and_then(|file| {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        write(&mut file)?;
        file.into_inner()?.sync_all()?;
        fs::rename(&beside, path)
    });
    if written.is_err() {
        // The first error is the one that says what is wrong.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Replaces `path` by `contents`.
pub(crate) fn replace_with(path: &Path, contents: impl AsRef<[u8]>) -> io::Result<()> {
    replace(path, |file| file.write_all(contents.as_ref()))
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part.jsonl.zst");
        replace_with(&path, "old").unwrap();
        let result = replace(&path, |file| {
            file.write_all(b"ne")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
