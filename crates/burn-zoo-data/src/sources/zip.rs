//! Files inside a zip archive, each read on its own.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::CrcReader;
use flate2::bufread::DeflateDecoder;
use zip::CompressionMethod;
use zip::read::{ZipArchive, ZipFile};
use zip::result::ZipError;

use super::open::Bytes;
use super::{Limits, SourceError, is_hidden};
use crate::document::Origin;

/// Where a file is in an archive, and what it must be.
#[derive(Clone, Debug)]
pub(super) struct ZipEntry {
    name: String,
    start: u64,
    stored_bytes: u64,
    bytes: u64,
    crc32: u32,
    deflated: bool,
}

/// The files in an archive, hidden ones left out, sorted by name.
pub(super) fn list(archive: &Path, limits: &Limits) -> Result<Vec<ZipEntry>, SourceError> {
    let file = File::open(archive).map_err(SourceError::unreadable(archive))?;
    let length = file
        .metadata()
        .map_err(SourceError::unreadable(archive))?
        .len();
    let damaged = |message: String| SourceError::Damaged {
        origin: Origin {
            file: archive.to_owned().into(),
            row: 1,
        },
        message,
    };
    let reading = |error: ZipError| damaged(error.to_string());
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(reading)?;
    let mut entries = Vec::new();
    for index in 0..zip.len() {
        let file = zip.by_index_raw(index).map_err(reading)?;
        let entry = ZipEntry::new(archive, &file)?;
        let is_listed = file.is_file() && !Path::new(&entry.name).ancestors().any(is_unwanted);
        if is_listed {
            entries.push(entry);
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    // Entries may share their bytes, so that each is modest and all together are not.
    let stored: u128 = entries
        .iter()
        .map(|entry| u128::from(entry.stored_bytes))
        .sum();
    if stored > u128::from(length) {
        return Err(damaged("its files overlap".to_owned()));
    }
    let bytes: u128 = entries.iter().map(|entry| u128::from(entry.bytes)).sum();
    if bytes > u128::from(limits.max_bytes) {
        return Err(SourceError::Explodes {
            file: archive.to_owned(),
            limit: format!("{} bytes", limits.max_bytes),
            setting: "max_bytes",
        });
    }
    Ok(entries)
}

fn is_unwanted(path: &Path) -> bool {
    is_hidden(path) || path.file_name().is_some_and(|name| name == "__MACOSX")
}

/// Whether a name in an archive leads out of the folder that it is unpacked to, on any system.
fn leaves_folder(name: &str) -> bool {
    let has_drive = name.chars().nth(1) == Some(':');
    has_drive || name.starts_with(['/', '\\']) || name.split(['/', '\\']).any(|part| part == "..")
}

impl ZipEntry {
    fn new<R: Read>(archive: &Path, file: &ZipFile<'_, R>) -> Result<Self, SourceError> {
        let name = String::from_utf8_lossy(file.name_raw()).into_owned();
        if leaves_folder(&name) {
            return Err(SourceError::Escapes {
                archive: archive.to_owned(),
                entry: name,
            });
        }
        let unsupported = |what: String| SourceError::Unsupported {
            file: archive.join(&name),
            what,
            advice: "unpack the archive first",
        };
        if file.encrypted() {
            return Err(unsupported("an encrypted file".to_owned()));
        }
        let deflated = match file.compression() {
            CompressionMethod::Stored => false,
            CompressionMethod::Deflated => true,
            other => return Err(unsupported(format!("zip's compression {other}"))),
        };
        Ok(Self {
            start: file.data_start().unwrap_or_default(),
            stored_bytes: file.compressed_size(),
            bytes: file.size(),
            crc32: file.crc32(),
            deflated,
            name,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// The bytes as they are in the archive.
    pub(super) fn open_stored(&self, archive: &Path) -> io::Result<io::Take<File>> {
        let mut file = File::open(archive)?;
        file.seek(SeekFrom::Start(self.start))?;
        Ok(file.take(self.stored_bytes))
    }

    /// The bytes as they were before, checked at their end.
    pub(super) fn extract(&self, stored: Bytes) -> impl Read + Send + use<> {
        let inner: Box<dyn Read + Send> = match self.deflated {
            true => Box::new(DeflateDecoder::new(stored)),
            false => Box::new(stored),
        };
        Checked {
            inner: CrcReader::new(inner),
            crc32: self.crc32,
        }
    }
}

struct Checked<R> {
    inner: CrcReader<R>,
    crc32: u32,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if n == 0 && !buffer.is_empty() && self.inner.crc().sum() != self.crc32 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its bytes do not have their checksum",
            ));
        }
        Ok(n)
    }
}
