//! Finding files.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use ignore::WalkBuilder;
use ignore::overrides::{Override, OverrideBuilder};

use super::zip::{self, ZipEntry};
use super::{DownloadProgress, Format, SourceConfig, SourceError};

/// A file to read, or one inside an archive.
#[derive(Clone, Debug)]
pub struct InputFile {
    path: Arc<PathBuf>,
    place: Place,
    bytes: u64,
    compression: Compression,
    format: Format,
    config: Arc<SourceConfig>,
}

/// Where the bytes are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    File,
    Zip { archive: PathBuf, entry: ZipEntry },
}

/// What the bytes went through, by the last part of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
    Bzip2,
}

impl InputFile {
    /// The file. One inside an archive is written `archive.zip!inner.txt`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it is read.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its size as stored, which is what [`Counts`](super::Counts) count up to.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn shared_path(&self) -> &Arc<PathBuf> {
        &self.path
    }

    pub(super) fn config(&self) -> &SourceConfig {
        &self.config
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn compression(&self) -> Compression {
        self.compression
    }

    fn new(
        path: PathBuf,
        place: Place,
        bytes: u64,
        config: &Arc<SourceConfig>,
    ) -> Result<Self, SourceError> {
        let (compression, format) = by_name(&path)?;
        Ok(Self {
            path: Arc::new(path),
            place,
            bytes,
            compression,
            format: config.format.unwrap_or(format),
            config: Arc::clone(config),
        })
    }
}

fn extension(path: &Path) -> String {
    let extension = path.extension().unwrap_or_default();
    extension.to_string_lossy().to_ascii_lowercase()
}

/// Reads the compression and the format off the end of a name.
fn by_name(path: &Path) -> Result<(Compression, Format), SourceError> {
    let compression = match extension(path).as_str() {
        "gz" | "gzip" => Compression::Gzip,
        "zst" | "zstd" => Compression::Zstd,
        "bz2" => Compression::Bzip2,
        _ => Compression::None,
    };
    let inner = match compression {
        Compression::None => extension(path),
        _ => extension(Path::new(path.file_stem().unwrap_or_default())),
    };
    let format = match inner.as_str() {
        "jsonl" | "ndjson" | "json" => Format::Jsonl,
        "csv" => Format::Csv,
        "tsv" | "tab" => Format::Tsv,
        "parquet" | "pq" => Format::Parquet,
        "xml" => Format::Wikipedia,
        "tar" | "tgz" | "7z" | "rar" | "xz" | "zip" => {
            return Err(SourceError::Unsupported {
                file: path.to_owned(),
                what: format!("a .{inner} there"),
                advice: "unpack it first",
            });
        }
        _ => Format::Text,
    };
    Ok((compression, format))
}

/// The files of a source, sorted.
pub(super) fn list(
    config: &SourceConfig,
    progress: &mut DownloadProgress<'_>,
) -> Result<Vec<InputFile>, SourceError> {
    let shared = Arc::new(config.clone());
    let mut files = Vec::new();
    for path in paths(config, progress)? {
        if extension(&path) == "zip" {
            for entry in zip::list(&path, &config.limits)? {
                let mut shown = path.clone().into_os_string();
                shown.push("!");
                shown.push(entry.name());
                let bytes = entry.stored_bytes();
                let archive = path.clone();
                let place = Place::Zip { archive, entry };
                files.push(InputFile::new(shown.into(), place, bytes, &shared)?);
            }
        } else {
            let metadata = std::fs::metadata(&path).map_err(SourceError::unreadable(&path))?;
            files.push(InputFile::new(path, Place::File, metadata.len(), &shared)?);
        }
    }
    if files.is_empty() {
        return Err(SourceError::NoFiles {
            path: config.path.clone(),
        });
    }
    Ok(files)
}

fn paths(
    config: &SourceConfig,
    progress: &mut DownloadProgress<'_>,
) -> Result<Vec<PathBuf>, SourceError> {
    if config.path.contains("://") {
        return downloaded(config, progress);
    }
    if config.sha256.is_some() {
        let path = config.path.clone();
        return Err(SourceError::NotDownloaded { path });
    }
    local(Path::new(&config.path))
}

#[cfg(feature = "download")]
fn downloaded(
    config: &SourceConfig,
    progress: &mut DownloadProgress<'_>,
) -> Result<Vec<PathBuf>, SourceError> {
    let sha256 = config.sha256.as_deref();
    Ok(crate::download::fetch(&config.path, sha256, progress)?)
}

#[cfg(not(feature = "download"))]
fn downloaded(
    config: &SourceConfig,
    _: &mut DownloadProgress<'_>,
) -> Result<Vec<PathBuf>, SourceError> {
    Err(SourceError::MissingFeature {
        path: config.path.clone(),
        feature: "download",
    })
}

fn local(path: &Path) -> Result<Vec<PathBuf>, SourceError> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => walk(path, None),
        Ok(_) => Ok(vec![path.to_owned()]),
        Err(_) if is_pattern(path) => {
            let (folder, pattern) = split_pattern(path);
            walk(&folder, Some(&matcher(&folder, &pattern)?))
        }
        Err(error) => Err(SourceError::unreadable(path)(error)),
    }
}

/// Whether a path has wildcards in it.
pub(crate) fn is_pattern(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?', '[', '{'])
}

/// The folder in front of the first wildcard, and the rest.
fn split_pattern(path: &Path) -> (PathBuf, String) {
    let is_plain = |part: &Component| !is_pattern(Path::new(part));
    let folder: PathBuf = path.components().take_while(is_plain).collect();
    let rest: PathBuf = path.components().skip_while(is_plain).collect();
    let folder = match folder.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => folder,
    };
    (folder, rest.to_string_lossy().into_owned())
}

/// What a pattern matches below a folder; `*` stays within one folder, `**` does not.
pub(crate) fn matcher(folder: &Path, pattern: &str) -> Result<Override, SourceError> {
    // An override is a line of a .gitignore the other way round: the slash ties it to the folder.
    let mut builder = OverrideBuilder::new(folder);
    let anchored = format!("/{}", pattern.trim_start_matches('/'));
    let built = builder.add(&anchored).and_then(|builder| builder.build());
    built.map_err(|error| SourceError::Pattern {
        pattern: pattern.to_owned(),
        message: error.to_string(),
    })
}

fn walk(folder: &Path, only: Option<&Override>) -> Result<Vec<PathBuf>, SourceError> {
    let mut walk = WalkBuilder::new(folder);
    // What lies outside the folder, or depends on the user's settings, does not count.
    walk.parents(false).git_global(false).git_exclude(false);
    walk.require_git(false).follow_links(true);
    let mut paths = Vec::new();
    for entry in walk.build() {
        let entry = entry.map_err(|error| {
            let message = error.to_string();
            let source = error.into_io_error();
            SourceError::Unreadable {
                path: folder.to_owned(),
                source: source.unwrap_or_else(|| std::io::Error::other(message)),
            }
        })?;
        let is_file = entry.file_type().is_some_and(|kind| kind.is_file());
        let wanted = only.is_none_or(|only| only.matched(entry.path(), false).is_whitelist());
        if is_file && wanted {
            paths.push(entry.into_path());
        }
    }
    paths.sort();
    Ok(paths)
}
