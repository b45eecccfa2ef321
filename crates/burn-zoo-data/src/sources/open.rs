//! Bytes out of a file: decompressed, counted, and not more than an honest file holds.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::Guarded;
use super::files::{Compression, Place};
use super::{Counts, InputFile, SourceError};

const BUFFER: usize = 128 << 10;

/// Less than this is no explosion, whatever the ratio.
const UNJUDGED: u64 = 16 << 20;

/// A stream of a file's bytes.
pub(super) type Bytes = Box<dyn BufRead + Send>;

impl InputFile {
    /// Opens the file, decompressed. Returns where its text begins: after a byte order mark.
    pub(super) fn open(&self, counts: &Arc<Counts>) -> Result<(Bytes, u64), SourceError> {
        let open = || -> io::Result<(Bytes, u64)> {
            let mut bytes = self.decompressed(counts)?;
            let has_mark = bytes.fill_buf()?.starts_with(BYTE_ORDER_MARK);
            let start = if has_mark { BYTE_ORDER_MARK.len() } else { 0 };
            bytes.consume(start);
            Ok((bytes, start as u64))
        };
        open().map_err(|error| SourceError::reading(self.origin(1), error))
    }

    /// As [`open`](Self::open), for parsers that hold a row in memory: bytes beyond the allowance
    /// are an error.
    pub(super) fn open_rows(
        &self,
        counts: &Arc<Counts>,
    ) -> Result<(Bounded, Allowance, u64), SourceError> {
        let (bytes, start) = self.open(counts)?;
        let allowance = Allowance::new(self.config().limits.max_row_bytes);
        let bounded = Bounded {
            bytes,
            allowance: allowance.clone(),
        };
        Ok((bounded, allowance, start))
    }

    /// Opens the file a second time, at a byte.
    pub(super) fn reopen(&self, at: u64) -> io::Result<Bytes> {
        let mut bytes = self.decompressed(&Arc::default())?;
        io::copy(&mut (&mut bytes).take(at), &mut io::sink())?;
        Ok(bytes)
    }

    fn decompressed(&self, counts: &Arc<Counts>) -> io::Result<Bytes> {
        let counts = Arc::clone(counts);
        let mut bytes = match self.place() {
            Place::File => {
                let inner = File::open(self.path())?;
                buffered(Counted { inner, counts })
            }
            Place::Zip { archive, entry } => {
                let inner = entry.open_stored(archive)?;
                let stored = buffered(Counted { inner, counts });
                self.guarded(entry.extract(stored))
            }
        };
        bytes = match self.compression() {
            Compression::None => return Ok(bytes),
            Compression::Gzip => self.guarded(flate2::bufread::MultiGzDecoder::new(bytes)),
            Compression::Zstd => self.guarded(zstd::Decoder::with_buffer(bytes)?),
            Compression::Bzip2 => self.guarded(bzip2::bufread::MultiBzDecoder::new(bytes)),
        };
        Ok(bytes)
    }

    /// Refuses what grows beyond the limits.
    fn guarded(&self, decompressed: impl Read + Send + 'static) -> Bytes {
        let limits = self.config().limits;
        let by_ratio = match self.bytes() {
            0 => u64::MAX, // A pipe: its size is not known.
            stored => UNJUDGED.max((stored as f64 * limits.max_ratio) as u64),
        };
        let refusal = match by_ratio < limits.max_bytes {
            true => (format!("{} times its size", limits.max_ratio), "max_ratio"),
            false => (format!("{} bytes", limits.max_bytes), "max_bytes"),
        };
        buffered(Guard {
            inner: decompressed,
            left: by_ratio.min(limits.max_bytes),
            refusal,
        })
    }
}

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

fn buffered(bytes: impl Read + Send + 'static) -> Bytes {
    Box::new(BufReader::with_capacity(BUFFER, bytes))
}

/// Counts the bytes of the file.
struct Counted<R> {
    inner: R,
    counts: Arc<Counts>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.counts
            .bytes_read
            .fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Ends in an error after so many bytes.
struct Guard<R> {
    inner: R,
    left: u64,
    refusal: (String, &'static str),
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let (limit, setting) = &self.refusal;
        let refused = || Guarded::Explodes {
            limit: limit.clone(),
            setting,
        };
        self.left = self.left.checked_sub(n as u64).ok_or_else(refused)?;
        Ok(n)
    }
}

/// How many bytes may be read before the next row begins.
#[derive(Clone)]
pub(super) struct Allowance {
    left: Arc<AtomicUsize>,
    limit: usize,
}

impl Allowance {
    fn new(limit: usize) -> Self {
        Self {
            left: Arc::new(AtomicUsize::new(limit)),
            limit,
        }
    }

    /// A row begins.
    pub(super) fn renew(&self) {
        self.left.store(self.limit, Ordering::Relaxed);
    }
}

/// Ends in an error when the allowance is used up.
pub(super) struct Bounded {
    bytes: Bytes,
    allowance: Allowance,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Allowance { left, limit } = &self.allowance;
        let allowed = left.load(Ordering::Relaxed);
        if allowed == 0 {
            return Err(Guarded::Endless { limit: *limit }.into());
        }
        let n = self.bytes.read(buffer)?;
        left.store(allowed.saturating_sub(n), Ordering::Relaxed);
        Ok(n)
    }
}
