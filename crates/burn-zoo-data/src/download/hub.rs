//! The Hugging Face hub, with its cache, so that other tools and the zoo share their files.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::{DownloadError, Progress, sha256_of, written};
use crate::sources::{is_pattern, matcher};

/// Files of a repository: `hf://ORG/NAME[@REVISION]/PATH` for a model,
/// `hf://datasets/ORG/NAME[@REVISION]/PATH` for a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubAddress {
    /// `ORG/NAME`.
    pub repository: String,
    /// Whether it is a dataset, not a model.
    pub is_dataset: bool,
    /// A branch, a tag or a commit. `%2F` stands for a slash in it.
    pub revision: String,
    /// A file, a folder, or a pattern such as `data/*.parquet`; empty for all.
    pub path: String,
}

impl FromStr for HubAddress {
    type Err = DownloadError;

    fn from_str(address: &str) -> Result<Self, DownloadError> {
        let refused = |reason| DownloadError::Address {
            address: address.to_owned(),
            reason,
        };
        let rest = address
            .strip_prefix("hf://")
            .ok_or_else(|| refused("does not start with hf://"))?;
        let (is_dataset, rest) = match rest.strip_prefix("datasets/") {
            Some(rest) => (true, rest),
            None => (false, rest.strip_prefix("models/").unwrap_or(rest)),
        };
        let mut parts = rest.splitn(3, '/');
        let (organisation, name) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let path = parts.next().unwrap_or_default().trim_end_matches('/');
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let revision = revision.replace("%2F", "/");
        if organisation.is_empty() || name.is_empty() {
            return Err(refused("names no repository ORG/NAME"));
        }
        let all = [organisation, name, &revision, path];
        if all
            .iter()
            .any(|part| part.split(['/', '\\']).any(|step| step == ".."))
        {
            return Err(refused("leaves the repository"));
        }
        Ok(Self {
            repository: format!("{organisation}/{name}"),
            is_dataset,
            path: path.to_owned(),
            revision,
        })
    }
}

impl fmt::Display for HubAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_dataset { "datasets/" } else { "" };
        write!(
            f,
            "hf://{kind}{}@{}/{}",
            self.repository,
            self.revision.replace('/', "%2F"),
            self.path
        )
    }
}

impl HubAddress {
    fn repo(&self) -> Repo {
        let kind = if self.is_dataset {
            RepoType::Dataset
        } else {
            RepoType::Model
        };
        Repo::with_revision(self.repository.clone(), kind, self.revision.clone())
    }

    fn with_path(&self, path: &str) -> Self {
        Self {
            path: path.to_owned(),
            ..self.clone()
        }
    }

    /// Whether the revision is a commit, which never changes.
    fn is_commit(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

/// Access to the hub.
#[derive(Clone, Debug)]
pub struct Hub {
    endpoint: String,
    cache: Cache,
    token: Option<String>,
    offline: bool,
}

/// How often to go on after a broken connection.
const RETRIES: usize = 4;

impl Hub {
    /// As Hugging Face's own tools are told: `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` (else the token of
    /// a login), and `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = Cache::from_env();
        let offline = variable("HF_HUB_OFFLINE").map(|value| value.to_ascii_uppercase());
        Self {
            endpoint: variable("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: variable("HF_TOKEN").or_else(|| cache.token()),
            offline: offline
                .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.as_str())),
            cache,
        }
    }

    /// Downloads what is not in the cache in its current version, and returns where the files are,
    /// in the order of their paths. When the hub cannot be reached, copies in the cache are used.
    ///
    /// # Errors
    ///
    /// When the hub says no, when it cannot be reached and a copy is missing, and when a file does
    /// not have its size or checksum.
    pub fn fetch(
        &self,
        address: &HubAddress,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<PathBuf>, DownloadError> {
        let is_file = Path::new(&address.path).extension().is_some();
        if is_file && !is_pattern(Path::new(&address.path)) {
            return Ok(vec![self.file(address, progress)?]);
        }
        let files = self.list(address)?;
        if files.is_empty() {
            return Err(DownloadError::NoMatch {
                address: address.clone(),
            });
        }
        let fetch = |path: &String| self.file(&address.with_path(path), progress);
        files.iter().map(fetch).collect()
    }

    /// A file.
    fn file(
        &self,
        address: &HubAddress,
        progress: &mut Progress<'_>,
    ) -> Result<PathBuf, DownloadError> {
        let cached = self.cached(address);
        if let Some(path) = cached
            .as_ref()
            .filter(|_| self.offline || address.is_commit())
        {
            return Ok(path.clone());
        }
        if self.offline {
            return Err(self.refused(address, "HF_HUB_OFFLINE is set".to_owned()));
        }
        let fetched = self.api().and_then(|api| {
            let repo = api.repo(address.repo());
            let metadata = api.metadata(&repo.url(&address.path))?;
            Ok((repo, metadata))
        });
        match (fetched, cached) {
            (Ok((repo, metadata)), _) => self.current(address, &repo, &metadata, progress),
            (Err(error), Some(path)) if is_unreachable(&error) => {
                tracing::warn!(
                    "the hub cannot be reached ({error}); using {}",
                    path.display()
                );
                Ok(path)
            }
            (Err(error), _) => Err(self.failed(address, &error)),
        }
    }

    /// The version of a file that the hub has now.
    fn current(
        &self,
        address: &HubAddress,
        repo: &ApiRepo,
        metadata: &Metadata,
        progress: &mut Progress<'_>,
    ) -> Result<PathBuf, DownloadError> {
        let folder = self.folder(address);
        let path = folder
            .pointer_path(metadata.commit_hash())
            .join(&address.path);
        if path.exists() {
            folder
                .create_ref(metadata.commit_hash())
                .map_err(written(&path))?;
            return Ok(path);
        }
        if metadata.etag().contains("..") {
            return Err(self.refused(address, format!("its tag is {:?}", metadata.etag())));
        }
        let blob = folder.blob_path(metadata.etag());
        let size = metadata.size() as u64;
        let partial = blob.with_extension("part");
        let mut attempts = 0;
        let path = loop {
            // The crate asks for what comes after the end when nothing is missing.
            if fs::metadata(&partial).is_ok_and(|partial| partial.len() >= size) {
                fs::remove_file(&partial).map_err(written(&partial))?;
            }
            let report = Report {
                done: 0,
                total: 0,
                progress: &mut *progress,
            };
            match repo.download_with_progress(&address.path, report) {
                Ok(path) => break path,
                Err(error) if attempts == RETRIES => return Err(self.failed(address, &error)),
                Err(error) => tracing::warn!("{address}: {error}; trying again"),
            }
            attempts += 1;
        };
        verify(address, &path, metadata)?;
        Ok(path)
    }

    /// The paths of a repository that an address means.
    fn list(&self, address: &HubAddress) -> Result<Vec<String>, DownloadError> {
        let listed = match self.offline {
            true => None,
            false => match self.api().and_then(|api| api.repo(address.repo()).info()) {
                Ok(info) => Some(
                    info.siblings
                        .into_iter()
                        .map(|file| file.rfilename)
                        .collect(),
                ),
                Err(error) if is_unreachable(&error) => {
                    tracing::warn!("the hub cannot be reached ({error}); using what is cached");
                    None
                }
                Err(error) => return Err(self.failed(address, &error)),
            },
        };
        let mut paths: Vec<String> = listed.unwrap_or_else(|| self.cached_paths(address));
        let pattern = is_pattern(Path::new(&address.path));
        let matches = matcher(Path::new(""), &address.path)
            .ok()
            .filter(|_| pattern);
        paths.retain(|path| match &matches {
            Some(matches) => matches.matched(path, false).is_whitelist(),
            None => is_data(path) && Path::new(path).starts_with(&address.path),
        });
        paths.sort();
        Ok(paths)
    }

    fn folder(&self, address: &HubAddress) -> CacheRepo {
        self.cache.repo(address.repo())
    }

    fn snapshot(&self, address: &HubAddress) -> Option<PathBuf> {
        let folder = self.folder(address);
        if address.is_commit() {
            return Some(folder.pointer_path(&address.revision));
        }
        let repository = self.cache.path().join(address.repo().folder_name());
        let commit = fs::read_to_string(repository.join("refs").join(&address.revision)).ok()?;
        Some(folder.pointer_path(commit.trim()))
    }

    fn cached(&self, address: &HubAddress) -> Option<PathBuf> {
        let path = self.snapshot(address)?.join(&address.path);
        path.is_file().then_some(path)
    }

    fn cached_paths(&self, address: &HubAddress) -> Vec<String> {
        let Some(snapshot) = self.snapshot(address) else {
            return Vec::new();
        };
        let files = ignore::WalkBuilder::new(&snapshot)
            .standard_filters(false)
            .build();
        let files = files.flatten().filter(|entry| entry.path().is_file());
        files
            .filter_map(|entry| {
                Some(
                    entry
                        .path()
                        .strip_prefix(&snapshot)
                        .ok()?
                        .to_str()?
                        .to_owned(),
                )
            })
            .collect()
    }

    fn api(&self) -> Result<Api, ApiError> {
        let builder =
            ApiBuilder::from_cache(self.cache.clone()).with_endpoint(self.endpoint.clone());
        builder
            .with_token(self.token.clone())
            .with_progress(false)
            .build()
    }

    fn failed(&self, address: &HubAddress, error: &ApiError) -> DownloadError {
        self.refused(address, error.to_string())
    }

    fn refused(&self, address: &HubAddress, reason: String) -> DownloadError {
        DownloadError::Hub {
            address: address.clone(),
            reason,
            cache: self.cache.path().clone(),
        }
    }
}

/// Whether the hub may have the file, and only the way to it failed.
fn is_unreachable(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => !matches!(
            error.as_ref(),
            ureq::Error::StatusCode(400..=428 | 430..=499)
        ),
        _ => true,
    }
}

/// Whether a file is part of the data, when a folder was asked for.
fn is_data(path: &str) -> bool {
    let is_hidden = path.split('/').any(|part| part.starts_with('.'));
    !is_hidden && !["README.md", "LICENSE"].contains(&super::file_name(path))
}

/// Checks what came against the hub's size and, for large files, its SHA-256, which is their tag:
/// `hf-hub` checks neither, and appends to what it has when a server ignores the range it asks for.
fn verify(address: &HubAddress, path: &Path, metadata: &Metadata) -> Result<(), DownloadError> {
    let blob = fs::canonicalize(path).map_err(written(path))?;
    let mut file = File::open(&blob).map_err(written(&blob))?;
    let size = file.metadata().map_err(written(&blob))?.len();
    let tag = metadata.etag();
    let (expected, found) = if size != metadata.size() as u64 {
        (
            format!("{} bytes", metadata.size()),
            format!("{size} bytes"),
        )
    } else if tag.len() == 64 && tag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let found = sha256_of(&mut file).map_err(written(&blob))?;
        (format!("SHA-256 {tag}"), format!("SHA-256 {found}"))
    } else {
        return Ok(());
    };
    if expected == found {
        return Ok(());
    }
    for damaged in [path, &blob] {
        fs::remove_file(damaged).map_err(written(damaged))?;
    }
    Err(DownloadError::Checksum {
        what: address.to_string(),
        expected,
        found,
    })
}

/// Passes progress on as totals.
struct Report<'a, 'b> {
    done: u64,
    total: u64,
    progress: &'a mut Progress<'b>,
}

impl hf_hub::api::Progress for Report<'_, '_> {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, self.total) = (0, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.progress)(self.done, Some(self.total));
    }

    fn finish(&mut self) {}
}
