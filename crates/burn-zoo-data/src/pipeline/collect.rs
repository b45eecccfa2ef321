//! The first stage: documents are read, cleaned, fingerprinted and written as parts.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use super::parts::{Group, GroupInfo, Parts, Unit};
use super::{DataRecipe, PipelineError, Progress, Share};
use crate::clean::{Cleaner, Duplicates, Report};
use crate::document::Document;
use crate::sources::Counts;

/// What the threads of the stage share.
pub(super) struct Collect<'a> {
    pub(super) recipe: &'a DataRecipe,
    pub(super) groups: &'a [Group],
    pub(super) parts: &'a Parts,
    pub(super) share: Share,
    pub(super) progress: &'a dyn Progress,
}

/// Documents of a unit, as they were read.
type Chunk = (Unit, Vec<Document>);

impl Collect<'_> {
    /// Does all units of the share that are not done.
    ///
    /// Threads read groups and hand chunks to two others: while one cleans on all cores, the other writes.
    pub(super) fn run(&self) -> Result<(), PipelineError> {
        const CLEANING: usize = 2;
        let cleaner = Cleaner::new(&self.recipe.clean)?;
        let duplicates = Duplicates::new(&self.recipe.clean)?;
        let in_memory = usize::try_from(self.recipe.chunks_in_memory()).unwrap_or(usize::MAX);
        // One chunk more may wait between them.
        let readers = (in_memory - CLEANING - 1)
            .min(rayon::current_num_threads())
            .min(self.groups.len());
        let (sender, receiver) = sync_channel(1);
        let receiver = Mutex::new(receiver);
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let note = |result: Result<(), PipelineError>| {
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            result
        };
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for sender in vec![sender; readers] {
                threads.push(scope.spawn(|| {
                    let sender = sender;
                    note(self.read_groups(&next, &failed, &sender))
                }));
            }
            for _ in 0..CLEANING {
                threads.push(scope.spawn(|| {
                    note(self.clean_chunks(&cleaner, duplicates.as_ref(), &receiver, &failed))
                }));
            }
            let results = threads.into_iter().map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            // All threads have to end before the first error is told.
            results.collect::<Vec<_>>().into_iter().collect()
        })
    }

    fn read_groups(
        &self,
        next: &AtomicUsize,
        failed: &AtomicBool,
        sender: &SyncSender<Chunk>,
    ) -> Result<(), PipelineError> {
        loop {
            let group = next.fetch_add(1, Ordering::Relaxed);
            if group >= self.groups.len() || failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            if self.is_done(group)? {
                let bytes = self.groups[group].iter().map(|file| file.bytes()).sum();
                self.progress.advance(bytes);
            } else {
                self.read_group(group, failed, sender)?;
            }
        }
    }

    fn is_done(&self, group: usize) -> Result<bool, PipelineError> {
        let Some(info) = self.parts.group_info(group)? else {
            return Ok(false);
        };
        let mut units = (0..info.chunks).map(|chunk| Unit { group, chunk });
        Ok(units.all(|unit| !self.share.has(unit) || self.parts.is_done(unit)))
    }

    fn read_group(
        &self,
        group: usize,
        failed: &AtomicBool,
        sender: &SyncSender<Chunk>,
    ) -> Result<(), PipelineError> {
        let mut unit = Unit { group, chunk: 0 };
        let (mut chunk, mut bytes, mut skipped) = (Vec::new(), 0, 0);
        let mut hand_over = |chunk: &mut Vec<Document>| {
            let documents = std::mem::take(chunk);
            if self.share.has(unit) && !self.parts.is_done(unit) {
                // Nobody receives when cleaning failed, which is told by who cleaned.
                let _ = sender.send((unit, documents));
            }
            unit.chunk += 1;
        };
        for file in &self.groups[group] {
            let documents = file.documents()?;
            let mut advance = Advance::new(documents.counts(), self.progress);
            for document in documents {
                let document = document?;
                bytes += document.text.len() as u64;
                chunk.push(document);
                if bytes >= self.recipe.chunk_bytes {
                    hand_over(&mut chunk);
                    bytes = 0;
                    if failed.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                }
                advance.note();
            }
            skipped += advance.end(file.bytes());
        }
        if !chunk.is_empty() {
            hand_over(&mut chunk);
        }
        let chunks = unit.chunk;
        self.parts.write_group(group, GroupInfo { chunks, skipped })
    }

    fn clean_chunks(
        &self,
        cleaner: &Cleaner,
        duplicates: Option<&Duplicates>,
        receiver: &Mutex<Receiver<Chunk>>,
        failed: &AtomicBool,
    ) -> Result<(), PipelineError> {
        loop {
            let received = receiver.lock().expect("a receiver does not panic").recv();
            let Ok((unit, documents)) = received else {
                return Ok(());
            };
            // What was read is taken all the same, or else readers would wait for ever.
            if failed.load(Ordering::Relaxed) {
                continue;
            }
            let mut report = Report::default();
            let documents = cleaner.clean(documents, &mut report);
            let fingerprints = duplicates.map_or_else(Vec::new, |duplicates| {
                let prints = documents.par_iter().map(|document| {
                    let mut bytes = Vec::with_capacity(duplicates.fingerprint_bytes());
                    duplicates.fingerprint(&document.text).write(&mut bytes);
                    bytes
                });
                prints.collect::<Vec<_>>().concat()
            });
            let written = self.parts.write(unit, &documents, &fingerprints, report);
            if written.is_err() {
                failed.store(true, Ordering::Relaxed);
                drain(receiver);
            }
            written?;
        }
    }
}

fn drain(receiver: &Mutex<Receiver<Chunk>>) {
    while receiver
        .lock()
        .expect("a receiver does not panic")
        .recv()
        .is_ok()
    {}
}

/// Tells how much of a file was read.
struct Advance<'a> {
    counts: Arc<Counts>,
    progress: &'a dyn Progress,
    told: u64,
}

impl<'a> Advance<'a> {
    fn new(counts: Arc<Counts>, progress: &'a dyn Progress) -> Self {
        Self {
            counts,
            progress,
            told: 0,
        }
    }

    /// Not after every small document.
    fn note(&mut self) {
        let read = self.counts.bytes_read();
        if read >= self.told + (1 << 16) {
            self.tell(read);
        }
    }

    fn tell(&mut self, read: u64) {
        self.progress.advance(read.saturating_sub(self.told));
        self.told = self.told.max(read);
    }

    /// At the end of a file, how many of its rows were skipped.
    fn end(mut self, bytes: u64) -> u64 {
        self.tell(bytes);
        self.counts.skipped()
    }
}
