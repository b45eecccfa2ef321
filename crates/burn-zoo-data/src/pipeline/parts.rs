//! Units of work, and the files that remember which are done.
//!
//! A group is a large file, or small files that follow each other; a chunk is a run of its documents. What cuts
//! them are sizes in the recipe, so that every machine cuts alike.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::PipelineError;
use crate::clean::Report;
use crate::document::{Document, Origin};
use crate::shards::Split;
use crate::sources::InputFile;
use burn_zoo_models::files;

/// Files that are read one after the other.
pub(super) type Group = Vec<InputFile>;

/// Puts files together until they have the size of a chunk.
pub(super) fn group(files: Vec<InputFile>, chunk_bytes: u64) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut bytes = u64::MAX;
    for file in files {
        if bytes.saturating_add(file.bytes()) > chunk_bytes {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += file.bytes();
        groups.last_mut().expect("one was just pushed").push(file);
    }
    groups
}

/// The chunk of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) group: usize,
    pub(super) chunk: usize,
}

/// What is known of a group when it was read to its end.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct GroupInfo {
    pub(super) chunks: usize,
    /// Rows that were bad and left out.
    pub(super) skipped: u64,
}

/// What is known of a chunk when it is cleaned.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PartInfo {
    pub(super) documents: usize,
    /// Bytes of cleaned text.
    pub(super) bytes: u64,
    pub(super) report: Report,
}

/// A cleaned document on disk.
#[derive(Serialize, Deserialize)]
struct Row<'a> {
    text: Cow<'a, str>,
    file: Cow<'a, str>,
    row: usize,
}

/// The folder of parts.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    folder: PathBuf,
}

impl Parts {
    pub(super) fn create(out: &Path) -> Result<Self, PipelineError> {
        let folder = out.join("parts");
        fs::create_dir_all(&folder).map_err(PipelineError::io(&folder))?;
        Ok(Self { folder })
    }

    pub(super) fn name(unit: Unit) -> String {
        format!("part-{:05}-{:05}", unit.group, unit.chunk)
    }

    fn path(&self, unit: Unit, extension: &str) -> PathBuf {
        self.folder
            .join(format!("{}.{extension}", Self::name(unit)))
    }

    fn info_path(&self, unit: Unit) -> PathBuf {
        self.path(unit, "json")
    }

    fn group_path(&self, group: usize) -> PathBuf {
        self.folder.join(format!("group-{group:05}.json"))
    }

    pub(super) fn fingerprints_path(&self, unit: Unit) -> PathBuf {
        self.path(unit, "fingerprints")
    }

    pub(super) fn is_done(&self, unit: Unit) -> bool {
        self.info_path(unit).exists()
    }

    pub(super) fn group_info(&self, group: usize) -> Result<Option<GroupInfo>, PipelineError> {
        let path = self.group_path(group);
        path.exists().then(|| read_json(&path)).transpose()
    }

    pub(super) fn write_group(&self, group: usize, info: GroupInfo) -> Result<(), PipelineError> {
        write_json(&self.group_path(group), &info)
    }

    pub(super) fn info(&self, unit: Unit) -> Result<PartInfo, PipelineError> {
        read_json(&self.info_path(unit))
    }

    /// Writes a part. What describes it is written last.
    pub(super) fn write(
        &self,
        unit: Unit,
        documents: &[Document],
        fingerprints: &[u8],
        report: Report,
    ) -> Result<(), PipelineError> {
        let path = self.path(unit, "jsonl.zst");
        files::replace(&path, |file| {
            let mut encoder = zstd::Encoder::new(file, 3)?;
            for document in documents {
                let row = Row {
                    text: Cow::Borrowed(&document.text),
                    file: document.origin.file.to_string_lossy(),
                    row: document.origin.row,
                };
                serde_json::to_writer(&mut encoder, &row)?;
                encoder.write_all(b"\n")?;
            }
            encoder.finish().map(drop)
        })
        .map_err(PipelineError::io(&path))?;
        let path = self.fingerprints_path(unit);
        files::replace_with(&path, fingerprints).map_err(PipelineError::io(&path))?;
        let info = PartInfo {
            documents: documents.len(),
            bytes: documents
                .iter()
                .map(|document| document.text.len() as u64)
                .sum(),
            report,
        };
        write_json(&self.info_path(unit), &info)
    }

    /// The documents of a part, in order.
    pub(super) fn documents(
        &self,
        unit: Unit,
    ) -> Result<impl Iterator<Item = Result<Document, PipelineError>> + use<>, PipelineError> {
        let path = self.path(unit, "jsonl.zst");
        let lines = File::open(&path)
            .and_then(zstd::Decoder::new)
            .map_err(PipelineError::io(&path))?;
        let lines = BufReader::with_capacity(1 << 16, lines).lines();
        Ok(lines.map(move |line| {
            let row: Row<'_> = line
                .and_then(|line| serde_json::from_str(&line).map_err(io::Error::from))
                .map_err(PipelineError::io(&path))?;
            Ok(Document {
                text: row.text.into_owned(),
                origin: Origin {
                    file: Arc::new(row.file.into_owned().into()),
                    row: row.row,
                },
            })
        }))
    }

    /// Writes what becomes of each document of a part: its split, or nothing.
    pub(super) fn write_fates(
        &self,
        unit: Unit,
        fates: &[Option<Split>],
    ) -> Result<(), PipelineError> {
        let path = self.path(unit, "fates");
        let byte = |fate: &Option<Split>| fate.map_or(u8::MAX, |split| split as u8);
        let bytes: Vec<u8> = fates.iter().map(byte).collect();
        files::replace_with(&path, bytes).map_err(PipelineError::io(&path))
    }

    /// The documents of a part that were not dropped, with their splits.
    pub(super) fn kept(
        &self,
        unit: Unit,
    ) -> Result<impl Iterator<Item = Result<(Split, Document), PipelineError>> + use<>, PipelineError>
    {
        let path = self.path(unit, "fates");
        let fates = fs::read(&path).map_err(PipelineError::io(&path))?;
        let documents = self.documents(unit)?;
        Ok(documents.zip(fates).filter_map(|(document, fate)| {
            let split = *Split::ALL.get(usize::from(fate))?;
            Some(document.map(|document| (split, document)))
        }))
    }
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, PipelineError> {
    fs::read(path)
        .and_then(|json| serde_json::from_slice(&json).map_err(io::Error::from))
        .map_err(PipelineError::io(path))
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), PipelineError> {
    serde_json::to_string_pretty(value)
        .map_err(io::Error::from)
        .and_then(|json| files::replace_with(path, json + "\n"))
        .map_err(PipelineError::io(path))
}
