//! What follows when all parts are there: duplicates, the tokenizer, and packing.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use super::parts::{PartInfo, Parts, Unit, read_json, write_json};
use super::{DataRecipe, PipelineError, Progress, REPORT, Stage, TOKENIZER, TOKENS};
use crate::clean::{Cleaner, Duplicates, Place, Report, Verdict, Verdicts, find_duplicates};
use crate::document::Document;
use crate::shards::{
    DType, INDEX, Index, ShardBuilder, Shards, Split, TokenizerInfo, tidy, uniform, write_index,
};
use crate::tokenizer::{Tokenizer, TokenizerConfig};
use burn_zoo_models::files;

/// What became of a corpus's documents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusReport {
    /// Rows that could not be read and were left out.
    pub skipped_rows: u64,
    /// What each step did.
    pub cleaning: Report,
    /// What is left, by split: training, validation, test.
    pub splits: [SplitReport; 3],
}

/// What is left in a split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitReport {
    /// How many documents.
    pub documents: u64,
    /// How many bytes of text.
    pub bytes: u64,
}

impl CorpusReport {
    fn merge(&mut self, other: Self) {
        self.skipped_rows += other.skipped_rows;
        self.cleaning.merge(other.cleaning);
        for (here, there) in self.splits.iter_mut().zip(other.splits) {
            here.documents += there.documents;
            here.bytes += there.bytes;
        }
    }
}

/// What a finished folder holds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// What became of the documents; nothing for tokens that were imported.
    pub report: Option<CorpusReport>,
    /// Documents of training, validation, and test.
    pub documents: [u64; 3],
    /// Tokens of training, validation, and test.
    pub tokens: [u64; 3],
    /// The size of the vocabulary.
    pub vocab_size: usize,
}

impl Summary {
    /// Reads that of a finished folder.
    ///
    /// # Errors
    ///
    /// When it is not finished.
    pub fn read(folder: &Path) -> Result<Self, PipelineError> {
        let shards = Shards::open(&folder.join(TOKENS))?;
        let report = folder.join(REPORT);
        let report = report.exists().then(|| read_json(&report)).transpose()?;
        Ok(Self::new(report, shards.index()))
    }

    fn new(report: Option<CorpusReport>, index: &Index) -> Self {
        Self {
            report,
            documents: Split::ALL.map(|split| index.documents(split)),
            tokens: Split::ALL.map(|split| index.tokens(split)),
            vocab_size: index.vocab_size,
        }
    }
}

/// The stages after collecting.
pub(super) struct Finish<'a> {
    pub(super) recipe: &'a DataRecipe,
    pub(super) out: &'a Path,
    pub(super) parts: &'a Parts,
    /// All units, in order.
    pub(super) units: &'a [Unit],
    pub(super) n_groups: usize,
    pub(super) progress: &'a dyn Progress,
}

impl Finish<'_> {
    pub(super) fn run(&self) -> Result<Summary, PipelineError> {
        let path = self.out.join(REPORT);
        let report = match path.exists() {
            true => read_json(&path)?,
            false => {
                let report = self.decide()?;
                write_json(&path, &report)?;
                report
            }
        };
        self.require_documents(&report)?;
        let tokenizer = self.tokenizer(&report)?;
        let index = self.pack(&tokenizer)?;
        Ok(Summary::new(Some(report), &index))
    }

    /// What is known of each unit.
    fn infos(&self) -> Result<Vec<PartInfo>, PipelineError> {
        let units = self.units.iter();
        units.map(|&unit| self.parts.info(unit)).collect()
    }

    /// Decides which documents stay and in which split they are.
    fn decide(&self) -> Result<CorpusReport, PipelineError> {
        let infos = self.infos()?;
        let bytes = infos.iter().map(|info| info.bytes).sum();
        self.progress.begin(Stage::Duplicates, bytes);
        let counts: Vec<usize> = infos.iter().map(|info| info.documents).collect();
        let duplicates = Duplicates::new(&self.recipe.clean)?;
        let found = duplicates.as_ref().map(|duplicates| {
            let open = |part: usize| {
                let path = self.parts.fingerprints_path(self.units[part]);
                File::open(path).map(BufReader::new)
            };
            let memory = usize::try_from(self.recipe.memory_bytes).unwrap_or(usize::MAX);
            let verdicts = find_duplicates(duplicates, &counts, open, memory)?;
            Ok::<_, PipelineError>((duplicates, verdicts))
        });
        let found = found.transpose()?;
        let reports = self.each_unit(|part| {
            let report = self.decide_part(part, found.as_ref())?;
            self.progress.advance(infos[part].bytes);
            Ok(report)
        })?;
        let mut report = CorpusReport::default();
        report.cleaning = Cleaner::new(&self.recipe.clean)?.report();
        for (info, of_part) in infos.into_iter().zip(reports) {
            report.cleaning.merge(info.report);
            report.merge(of_part);
        }
        for group in 0..self.n_groups {
            let info = self.parts.group_info(group)?;
            report.skipped_rows += info.map_or(0, |info| info.skipped);
        }
        Ok(report)
    }

    /// Writes the fates of a part's documents.
    fn decide_part(
        &self,
        part: usize,
        found: Option<&(&Duplicates, Verdicts)>,
    ) -> Result<CorpusReport, PipelineError> {
        let unit = self.units[part];
        let mut report = CorpusReport::default();
        let mut verdicts = found.map(|(_, verdicts)| verdicts.part(part));
        let mut fates = Vec::new();
        for document in self.parts.documents(unit)? {
            let document = document?;
            let verdict = verdicts.as_mut().and_then(Iterator::next);
            let stays = found.is_none_or(|(duplicates, _)| {
                let verdict = verdict.unwrap_or(Verdict::Keep);
                let kept = |place: Place| {
                    let name = Parts::name(self.units[place.part]);
                    format!("document {} of {name}", place.document + 1)
                };
                duplicates.judge(&document, verdict, kept, &mut report.cleaning)
            });
            let split = self.recipe.pack.splits.split(&document.text);
            if stays {
                let counts = &mut report.splits[split as usize];
                counts.documents += 1;
                counts.bytes += document.text.len() as u64;
            }
            fates.push(stays.then_some(split));
        }
        self.parts.write_fates(unit, &fates)?;
        Ok(report)
    }

    fn require_documents(&self, report: &CorpusReport) -> Result<(), PipelineError> {
        let documents = report.splits.iter().map(|split| split.documents).sum();
        for split in Split::ALL {
            let share = self.recipe.pack.splits.of(split);
            if share > 0.0 && report.splits[split as usize].documents == 0 {
                return Err(PipelineError::EmptySplit {
                    split,
                    share,
                    documents,
                });
            }
        }
        Ok(())
    }

    /// Trains the tokenizer, or loads the one that was.
    fn tokenizer(&self, report: &CorpusReport) -> Result<Tokenizer, PipelineError> {
        let path = self.out.join(TOKENIZER);
        if path.exists() {
            return Ok(Tokenizer::load(&path)?);
        }
        let config = &self.recipe.tokenizer;
        let (splits, share) = match config {
            // A held-out character that is no token could not be scored.
            TokenizerConfig::Char => (&Split::ALL[..], 1.0),
            _ => {
                let bytes = report.splits[Split::Train as usize].bytes;
                let share = self.recipe.sample_bytes as f64 / bytes.max(1) as f64;
                (&[Split::Train][..], share)
            }
        };
        let bytes = splits
            .iter()
            .map(|&split| report.splits[split as usize].bytes);
        let bytes = bytes.sum::<u64>().min(self.recipe.sample_bytes);
        self.progress.begin(Stage::Tokenizer, bytes);
        let mut refused = Ok(());
        let documents = self.units.iter().flat_map(|&unit| {
            let documents = self.parts.kept(unit);
            let (documents, error) = match documents {
                Ok(documents) => (Some(documents), None),
                Err(error) => (None, Some(Err(error))),
            };
            documents.into_iter().flatten().chain(error)
        });
        let texts = documents
            .map_while(|document| document.map_err(|error| refused = Err(error)).ok())
            .filter(|(split, document)| {
                splits.contains(split) && uniform(&document.text, SAMPLE_SEED) < share
            })
            .map(|(_, document)| {
                self.progress.advance(document.text.len() as u64);
                document.text
            });
        let tokenizer = Tokenizer::train_on(config, texts);
        refused?;
        let tokenizer = tokenizer?;
        let json = tokenizer.to_json()?;
        files::replace_with(&path, json).map_err(PipelineError::io(&path))?;
        Ok(tokenizer)
    }

    /// Makes a shard of each part.
    fn pack(&self, tokenizer: &Tokenizer) -> Result<Index, PipelineError> {
        let folder = self.out.join(TOKENS);
        if folder.join(INDEX).exists() {
            tidy(&folder, self.units.len())?;
            return Ok(Shards::open(&folder)?.index().clone());
        }
        fs::create_dir_all(&folder).map_err(PipelineError::io(&folder))?;
        let infos = self.infos()?;
        let bytes = infos.iter().map(|info| info.bytes).sum();
        self.progress.begin(Stage::Pack, bytes);
        let info = TokenizerInfo {
            end_token: self.recipe.pack.end_token.id(tokenizer)?,
            ..TokenizerInfo::of(tokenizer)?
        };
        let smallest = DType::of(info.vocab_size);
        let dtype = self.recipe.pack.dtype.unwrap_or(smallest);
        self.each_unit(|number| {
            if !ShardBuilder::is_written(&folder, number) {
                let mut shard = ShardBuilder::new(dtype, info.vocab_size)?;
                let mut kept = self.parts.kept(self.units[number])?;
                loop {
                    let (splits, texts) = next_texts(&mut kept, ENCODED_AT_ONCE)?;
                    if texts.is_empty() {
                        break;
                    }
                    for (split, mut tokens) in
                        splits.into_iter().zip(tokenizer.encode_batch(&texts)?)
                    {
                        tokens.extend(info.end_token);
                        shard.push(split, &tokens)?;
                    }
                }
                shard.write(&folder, number)?;
            }
            self.progress.advance(infos[number].bytes);
            Ok(())
        })?;
        Ok(write_index(&folder, self.units.len(), dtype, &info)?)
    }

    /// Does something for each unit, as many at a time as there are threads and the memory holds.
    fn each_unit<T: Send>(
        &self,
        task: impl Fn(usize) -> Result<T, PipelineError> + Sync,
    ) -> Result<Vec<T>, PipelineError> {
        let in_memory = usize::try_from(self.recipe.chunks_in_memory()).unwrap_or(usize::MAX);
        let n_threads = in_memory
            .min(rayon::current_num_threads())
            .min(self.units.len());
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..n_threads {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.units.len() {
                            break;
                        }
                        let result = task(number);
                        if result.is_err() {
                            next.store(self.units.len(), Ordering::Relaxed);
                        }
                        let mut results = results.lock().expect("no thread panics with it");
                        results.push((number, result));
                    }
                });
            }
        });
        let mut results = results.into_inner().expect("no thread panicked with it");
        results.sort_by_key(|(number, _)| *number);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

/// Bytes of text whose tokens are in memory beside those of their shard: they take several times as much.
const ENCODED_AT_ONCE: usize = 1 << 20;

/// The next documents, until they have so many bytes.
fn next_texts(
    kept: &mut impl Iterator<Item = Result<(Split, Document), PipelineError>>,
    bytes: usize,
) -> Result<(Vec<Split>, Vec<String>), PipelineError> {
    let (mut splits, mut texts, mut left) = (Vec::new(), Vec::new(), bytes);
    while left > 0
        && let Some((split, document)) = kept.next().transpose()?
    {
        left = left.saturating_sub(document.text.len().max(1));
        splits.push(split);
        texts.push(document.text);
    }
    Ok((splits, texts))
}

/// Documents are drawn for the tokenizer's sample by another hash than for splits.
const SAMPLE_SEED: u64 = 1;
