//! Files that are one text.

use std::io::{self, BufRead};
use std::sync::Arc;

use super::open::Bytes;
use super::{Counts, InputFile, RowProblem, Rows, SourceError};
use crate::document::Document;

/// The whole file, or what of it fits, cut after a line. The row is the line that it starts on.
pub(super) fn documents(
    file: &InputFile,
    counts: &Arc<Counts>,
) -> Result<Rows<Document>, SourceError> {
    let (bytes, offset) = file.open(counts)?;
    Ok(Box::new(Chunks {
        bytes,
        file: file.clone(),
        rest: Vec::new(),
        line: 1,
        offset,
    }))
}

struct Chunks {
    bytes: Bytes,
    file: InputFile,
    /// Read, but part of the next chunk.
    rest: Vec<u8>,
    line: usize,
    offset: u64,
}

impl Iterator for Chunks {
    type Item = Result<Document, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        let origin = self.file.origin(self.line);
        let limit = self.file.config().limits.max_row_bytes.max(4);
        let mut chunk = std::mem::take(&mut self.rest);
        if let Err(error) = fill(&mut self.bytes, &mut chunk, limit) {
            return Some(Err(SourceError::reading(origin, error)));
        }
        if chunk.is_empty() {
            return None;
        }
        if chunk.len() >= limit {
            self.rest = chunk.split_off(cut(&chunk));
        }
        let start = self.offset;
        self.offset += chunk.len() as u64;
        self.line += count_lines(&chunk);
        Some(match String::from_utf8(chunk) {
            Ok(text) => Ok(Document { text, origin }),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let byte = error.as_bytes()[at];
                let line = origin.row + count_lines(&error.as_bytes()[..at]);
                Err(SourceError::Row {
                    origin: self.file.origin(line),
                    byte: Some(start + at as u64),
                    problem: RowProblem::NotUtf8 { byte },
                })
            }
        })
    }
}

fn fill(bytes: &mut impl BufRead, chunk: &mut Vec<u8>, limit: usize) -> io::Result<()> {
    while chunk.len() < limit {
        let available = bytes.fill_buf()?;
        if available.is_empty() {
            break;
        }
        let n = available.len().min(limit - chunk.len());
        chunk.extend_from_slice(&available[..n]);
        bytes.consume(n);
    }
    Ok(())
}

/// Where to cut: after the last line, else before the last character, which may not be whole.
fn cut(chunk: &[u8]) -> usize {
    let after_line = chunk
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map(|at| at + 1);
    let tail = chunk.len().saturating_sub(4);
    let character = chunk[tail..].iter().rposition(|&byte| byte & 0xc0 != 0x80);
    after_line.unwrap_or_else(|| match character {
        Some(at) if tail + at > 0 => tail + at,
        _ => chunk.len(),
    })
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}
