//! Writing files so that nothing already saved is ever lost.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Replaces `path` by what `write` writes: beside it first, then synced, then renamed over it. Processes that
/// write the same path do not meet: each writes a file of its own, whose name ends in `.partial`, and the last
/// rename holds.
///
/// # Errors
///
/// When anything fails, such as on a full disk; `path` is then as it was.
pub fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut beside = tempfile::Builder::new();
    beside.suffix(".partial");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As other new files have them: less what the user's mask takes.
        beside.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut beside = beside.tempfile_in(folder)?;
    let mut file = BufWriter::with_capacity(1 << 20, beside.as_file_mut());
    write(&mut file)?;
    file.flush()?;
    drop(file);
    beside.as_file().sync_all()?;
    beside.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Replaces `path` by `contents`.
pub fn replace_with(path: &Path, contents: impl AsRef<[u8]>) -> io::Result<()> {
    replace(path, |file| file.write_all(contents.as_ref()))
}

/// Makes renames within a folder durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    // Only Unix opens folders; elsewhere the file system orders renames itself.
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        replace_with(&path, "old").unwrap();
        let result = replace(&path, |file| {
            file.write_all(b"ne")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn writers_of_one_path_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.json");
        replace(&path, |outer| {
            outer.write_all(b"outer")?;
            replace_with(&path, "inner")
        })
        .unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "outer");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
