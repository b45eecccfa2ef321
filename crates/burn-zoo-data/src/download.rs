//! Downloads, by URL and from the [Hugging Face hub](Hub).
//!
//! What was interrupted is continued, what came is checked, and a file appears under its name only
//! when it is whole.

mod hub;
#[cfg(test)]
mod test_server;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::Agent;
use ureq::http::{HeaderMap, Response, StatusCode, header};

pub use hub::{Hub, HubAddress};

/// What stops a download.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The address is none.
    #[error(
        "{address}: {reason}; write https://HOST/FILE or hf://datasets/ORG/NAME[@REVISION]/FILE"
    )]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The server cannot be reached, or says no.
    #[error("cannot download {url}: {source}")]
    Request {
        /// The address.
        url: String,
        /// What happened, at the last attempt.
        source: Box<ureq::Error>,
    },
    /// Fewer bytes came than were announced, at every attempt.
    #[error("{url} stops after {found} of {expected} bytes; try again to continue there")]
    Incomplete {
        /// The address.
        url: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes received.
        found: u64,
    },
    /// The hub cannot be reached or says no, and there is no cached copy.
    #[error("cannot download {address}: {reason}; no copy of it is in {}", cache.display())]
    Hub {
        /// The address.
        address: HubAddress,
        /// What happened.
        reason: String,
        /// Where copies are kept.
        cache: PathBuf,
    },
    /// What came is not what should have come.
    #[error("{what} has {found}, not {expected}; it was damaged or changed on the way")]
    Checksum {
        /// The file or address.
        what: String,
        /// The checksum or size it should have.
        expected: String,
        /// The one it has.
        found: String,
    },
    /// Nothing in a repository matches.
    #[error("{address} matches no file of the repository")]
    NoMatch {
        /// The address.
        address: HubAddress,
    },
    /// Another process is at it.
    #[error("another process is downloading {}; wait for it", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The disk says no.
    #[error("cannot keep {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

pub use crate::sources::DownloadProgress as Progress;

/// Downloads by URL.
pub struct Downloader {
    agent: Agent,
    /// How often to go on after a failure without a byte of progress.
    retries: u32,
    /// How long to wait before the first of them; doubled for each.
    wait: Duration,
}

impl Default for Downloader {
    fn default() -> Self {
        Self::new(4, Duration::from_millis(500))
    }
}

impl Downloader {
    /// How often to try again without a byte of progress, and how long to wait before the first
    /// retry; the wait doubles.
    pub fn new(retries: u32, wait: Duration) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .accept_encoding("identity") // Bytes as they are stored: ranges and checksums mean these.
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Self {
            agent: agent.into(),
            retries,
            wait,
        }
    }

    /// Downloads a file. Until it is whole and has the SHA-256, if one is given, it is
    /// `FILE.partial`, from which a later download goes on if the server's file is still the same.
    ///
    /// # Errors
    ///
    /// When the server says no or fails again and again, when the checksum is another, and when the
    /// file cannot be written.
    pub fn download(
        &self,
        url: &str,
        file: &Path,
        sha256: Option<&str>,
        progress: &mut Progress<'_>,
    ) -> Result<(), DownloadError> {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(DownloadError::Address {
                address: url.to_owned(),
                reason: "neither http://, https:// nor hf://",
            });
        }
        let mut partial = Partial::open(file)?;
        let mut failures = 0;
        loop {
            let before = partial.length;
            let failure = match self.attempt(url, &mut partial, progress) {
                Ok(()) => break,
                Err(failure) if failure.is_final() => return Err(failure),
                Err(failure) => failure,
            };
            failures = if partial.length > before {
                0
            } else {
                failures + 1
            };
            if failures > self.retries {
                return Err(failure);
            }
            tracing::warn!("{failure}; trying again");
            std::thread::sleep(self.wait * 2_u32.saturating_pow(failures));
        }
        partial.finish(sha256)
    }

    /// One request for what is missing.
    fn attempt(
        &self,
        url: &str,
        partial: &mut Partial,
        progress: &mut Progress<'_>,
    ) -> Result<(), DownloadError> {
        let failed = |source| DownloadError::Request {
            url: url.to_owned(),
            source: Box::new(source),
        };
        let mut request = self.agent.get(url);
        if let Some(version) = partial.version.as_ref().filter(|_| partial.length > 0) {
            request = request.header(header::RANGE, format!("bytes={}-", partial.length));
            request = request.header(header::IF_RANGE, version);
        }
        let response = request.call().map_err(failed)?;
        let total = match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, partial.length) => {
                length(&response).map(|rest| partial.length + rest)
            }
            StatusCode::OK => {
                partial.restart(version(response.headers()))?;
                length(&response)
            }
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT => {
                partial.restart(None)?;
                return Err(failed(ureq::Error::StatusCode(500)));
            }
            status => return Err(failed(ureq::Error::StatusCode(status.as_u16()))),
        };
        progress(partial.length, total);
        let mut body = response
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader();
        let mut buffer = vec![0; 128 << 10];
        loop {
            let n = body
                .read(&mut buffer)
                .map_err(|error| failed(error.into()))?;
            if n == 0 {
                break;
            }
            partial.append(&buffer[..n])?;
            progress(partial.length, total);
        }
        match total {
            Some(expected) if expected != partial.length => Err(DownloadError::Incomplete {
                url: url.to_owned(),
                expected,
                found: partial.length,
            }),
            _ => Ok(()),
        }
    }
}

impl DownloadError {
    /// Whether trying again is of no use.
    fn is_final(&self) -> bool {
        match self {
            Self::Request { source, .. } => match source.as_ref() {
                ureq::Error::StatusCode(408 | 429) => false,
                ureq::Error::StatusCode(status) => *status < 500,
                ureq::Error::BadUri(_) | ureq::Error::Http(_) => true,
                _ => false,
            },
            Self::Incomplete { .. } => false,
            _ => true,
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn length<B>(response: &Response<B>) -> Option<u64> {
    text(response.headers(), &header::CONTENT_LENGTH)?
        .parse()
        .ok()
}

fn starts_at<B>(response: &Response<B>, start: u64) -> bool {
    let range = text(response.headers(), &header::CONTENT_RANGE);
    range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")))
}

/// What tells one version of a file from the next: only a strong tag does.
fn version(headers: &HeaderMap) -> Option<String> {
    let tag = text(headers, &header::ETAG).filter(|tag| tag.starts_with('"'));
    let version = tag.or_else(|| text(headers, &header::LAST_MODIFIED));
    version.map(str::to_owned)
}

/// A file on its way: `FILE.partial`, and in `FILE.partial.version` what it is a part of.
struct Partial {
    file: File,
    path: PathBuf,
    target: PathBuf,
    length: u64,
    version: Option<String>,
}

impl Partial {
    fn open(target: &Path) -> Result<Self, DownloadError> {
        let path = with_suffix(target, ".partial");
        let write = written(&path);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(&write)?;
        }
        let mut options = OpenOptions::new();
        let options = options.create(true).append(true);
        let file = options.open(&path).map_err(&write)?;
        // The file may have been completed and renamed between the two.
        if file.try_lock().is_err() || !path.exists() {
            return Err(DownloadError::Busy { path });
        }
        let length = file.metadata().map_err(&write)?.len();
        let version = fs::read_to_string(with_suffix(&path, ".version")).ok();
        Ok(Self {
            file,
            target: target.to_owned(),
            length,
            version,
            path,
        })
    }

    /// Throws away what is there, for a part of another version.
    fn restart(&mut self, version: Option<String>) -> Result<(), DownloadError> {
        let write = written(&self.path);
        self.file.set_len(0).map_err(&write)?;
        self.length = 0;
        let note = with_suffix(&self.path, ".version");
        match &version {
            Some(version) => fs::write(note, version).map_err(&write)?,
            None => drop(fs::remove_file(note)),
        }
        self.version = version;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.file.write_all(bytes).map_err(written(&self.path))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Checks the file and gives it its name.
    fn finish(self, sha256: Option<&str>) -> Result<(), DownloadError> {
        let write = written(&self.path);
        drop(fs::remove_file(with_suffix(&self.path, ".version")));
        if let Some(expected) = sha256
            && let Err(error) = check_sha256(&self.path, expected)
        {
            fs::remove_file(&self.path).map_err(&write)?;
            return Err(error);
        }
        self.file.sync_all().map_err(&write)?;
        fs::rename(&self.path, &self.target).map_err(&write)
    }
}

fn written(path: &Path) -> impl Fn(io::Error) -> DownloadError + use<> {
    let path = path.to_owned();
    move |source| DownloadError::Write {
        path: path.clone(),
        source,
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Whether a file has this SHA-256, in hexadecimal.
///
/// # Errors
///
/// When it has another, or cannot be read. The file stays.
pub fn check_sha256(file: &Path, expected: &str) -> Result<(), DownloadError> {
    let found = File::open(file).and_then(|mut file| sha256_of(&mut file));
    let found = found.map_err(written(file))?;
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(DownloadError::Checksum {
        what: file.display().to_string(),
        expected: format!("SHA-256 {expected}"),
        found: format!("SHA-256 {found}"),
    })
}

/// The SHA-256 of everything that is left to read, in hexadecimal.
fn sha256_of(bytes: &mut impl Read) -> io::Result<String> {
    let mut digest = Sha256::new();
    io::copy(bytes, &mut digest)?;
    Ok(hexadecimal(&digest.finalize()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The last part of a URL's path, as a file name.
pub fn file_name(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").map_or(path, |(_, path)| path);
    match path.rsplit_once('/') {
        Some((_, name)) if !matches!(name, "" | "." | "..") => name,
        _ => "download",
    }
}

/// Local copies of what a URL or `hf://` address means, downloaded where they are not there yet:
/// URLs in `downloads` of the [cache folder](cache_folder), the hub's files in its own cache. Each file must have the
/// SHA-256, where one is given.
///
/// # Errors
///
/// As [`Downloader::download`], [`Hub::fetch`] and [`check_sha256`].
pub fn fetch(
    address: &str,
    sha256: Option<&str>,
    progress: &mut Progress<'_>,
) -> Result<Vec<PathBuf>, DownloadError> {
    if address.starts_with("hf://") {
        let address: HubAddress = address.parse()?;
        let paths = Hub::from_env().fetch(&address, progress)?;
        return match (sha256, &paths[..]) {
            (None, _) => Ok(paths),
            (Some(sha256), [path]) => check_sha256(path, sha256).map(|()| paths),
            (Some(_), _) => Err(DownloadError::Address {
                address: address.to_string(),
                reason: "`sha256` is of one file, and these are several",
            }),
        };
    }
    let folder = cache_folder().join("downloads");
    fetch_into(&folder, address, sha256, progress).map(|path| vec![path])
}

/// A copy in a folder, downloaded if it is not there.
fn fetch_into(
    folder: &Path,
    url: &str,
    sha256: Option<&str>,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, DownloadError> {
    // Addresses that differ only in front of the name must not meet.
    let key = hexadecimal(&Sha256::digest(url)[..8]);
    let path = folder.join(key).join(file_name(url));
    // One with another checksum is replaced, if what comes has the right one.
    let is_here = path.exists() && sha256.is_none_or(|sha256| check_sha256(&path, sha256).is_ok());
    if !is_here {
        Downloader::default().download(url, &path, sha256, progress)?;
    }
    Ok(path)
}

/// Where downloads are kept: `$BURN_ZOO_CACHE`, else `burn-zoo` in the user's cache folder.
pub fn cache_folder() -> PathBuf {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let user = || {
        let home = || variable("HOME").map(|home| home.join(".cache"));
        variable("XDG_CACHE_HOME")
            .or_else(|| variable("LOCALAPPDATA"))
            .or_else(home)
    };
    let folder = || user().unwrap_or_else(std::env::temp_dir).join("burn-zoo");
    variable("BURN_ZOO_CACHE").unwrap_or_else(folder)
}

#[cfg(test)]
mod tests {
    use super::test_server::{Served, Server};
    use super::*;

    fn downloader() -> Downloader {
        Downloader::new(1, Duration::ZERO)
    }

    fn served(body: &[u8]) -> Served {
        Served {
            body: body.to_vec(),
            headers: vec![("ETag", "\"v1\"".to_owned())],
            ..Served::default()
        }
    }

    fn body() -> Vec<u8> {
        (0..100_000_u32).flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn a_broken_connection_is_continued() {
        let (server, folder, body) = (Server::start(), tempfile::tempdir().unwrap(), body());
        let cuts = vec![150_000, 100_000];
        server.serve(
            "/f",
            Served {
                cuts,
                ..served(&body)
            },
        );
        let out = folder.path().join("new/f.bin");
        let sha256 = hexadecimal(&Sha256::digest(&body));
        let mut seen = Vec::new();
        let mut progress = |done, total| seen.push((done, total));
        let result = downloader().download(&server.url("/f"), &out, Some(&sha256), &mut progress);
        result.unwrap();
        assert_eq!(fs::read(&out).unwrap(), body);
        assert_eq!(
            server.requests(),
            ["/f ", "/f bytes=150000-", "/f bytes=250000-"]
        );
        assert!(seen.is_sorted() && seen.last() == Some(&(400_000, Some(400_000))));
        let left: Vec<_> = fs::read_dir(out.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn a_later_download_goes_on_with_the_same_version_only() {
        let (server, folder, body) = (Server::start(), tempfile::tempdir().unwrap(), body());
        let out = folder.path().join("f.bin");
        let start = |version: &str| {
            fs::write(with_suffix(&out, ".partial"), &body[..1000]).unwrap();
            fs::write(with_suffix(&out, ".partial.version"), version).unwrap();
            let result = downloader().download(&server.url("/f"), &out, None, &mut |_, _| {});
            result.unwrap();
            assert_eq!(fs::read(&out).unwrap(), body);
            server.requests().pop().unwrap()
        };
        server.serve("/f", served(&body));
        assert_eq!(start("\"v1\""), "/f bytes=1000-");
        // A server that has another version, or knows no ranges, sends the whole.
        let whole_only = true;
        server.serve(
            "/f",
            Served {
                whole_only,
                ..served(&body)
            },
        );
        start("\"v0\"");
    }

    #[test]
    fn what_is_not_what_was_asked_for_is_refused() {
        let (server, folder) = (Server::start(), tempfile::tempdir().unwrap());
        server.serve("/f", served(b"abc"));
        let out = folder.path().join("f.bin");
        let zeros = "0".repeat(64);
        let mut ignore = |_, _| {};
        let download = downloader();
        let error = download.download(&server.url("/f"), &out, Some(&zeros), &mut ignore);
        assert!(matches!(error.unwrap_err(), DownloadError::Checksum { .. }));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let error = download
            .download(&server.url("/none"), &out, None, &mut ignore)
            .unwrap_err();
        assert!(error.to_string().contains("404"), "{error}");
        assert_eq!(server.requests().len(), 2); // A 404 is not tried again.
        let status = Some("503 Service Unavailable");
        server.serve(
            "/busy",
            Served {
                status,
                ..served(b"")
            },
        );
        download
            .download(&server.url("/busy"), &out, None, &mut ignore)
            .unwrap_err();
        assert_eq!(server.requests().len(), 4);
        assert!(!out.exists());
    }

    #[test]
    fn a_url_is_fetched_once() {
        let (server, folder) = (Server::start(), tempfile::tempdir().unwrap());
        server.serve("/a/rows.jsonl?v=1", served(b"{\"text\":\"a\"}"));
        for _ in 0..2 {
            let url = server.url("/a/rows.jsonl?v=1");
            let path = fetch_into(folder.path(), &url, None, &mut |_, _| {}).unwrap();
            assert_eq!(path.file_name().unwrap(), "rows.jsonl");
        }
        assert_eq!(server.requests().len(), 1);
        assert!(matches!(
            fetch("ftp://x/y", None, &mut |_, _| {}),
            Err(DownloadError::Address { .. })
        ));
    }

    #[test]
    fn what_has_another_checksum_is_refused_before_and_after_it_is_there() {
        let (server, folder) = (Server::start(), tempfile::tempdir().unwrap());
        server.serve("/rows.txt", served(b"rows"));
        let url = server.url("/rows.txt");
        let fetch = |sha256: &str| fetch_into(folder.path(), &url, Some(sha256), &mut |_, _| {});
        let sum = hexadecimal(&Sha256::digest(b"rows"));
        let other = hexadecimal(&Sha256::digest(b"other rows"));
        for sha256 in [&other, &sum, &other, &sum] {
            match fetch(sha256) {
                Ok(_) => assert_eq!(*sha256, sum),
                Err(DownloadError::Checksum { .. }) => assert_eq!(*sha256, other),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn names_come_from_the_path() {
        for (url, name) in [
            ("https://h/a/b.csv?x=/y#z", "b.csv"),
            ("https://h", "download"),
            ("https://h/a/", "download"),
            ("https://h/..", "download"),
        ] {
            assert_eq!(file_name(url), name);
        }
    }
}
