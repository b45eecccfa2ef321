//! From a recipe to packed shards, in any number of processes, interrupted at any moment.
//!
//! 1. **Collect**: each unit of some megabytes of documents is read and cleaned, and becomes a part with the
//!    fingerprints of its documents. `I/N` does each N-th unit, so that N machines share the work.
//! 2. **Duplicates**: when all parts are there, it is decided over all of them which documents stay, and
//!    each document's split.
//! 3. **Tokenizer**: trained on a sample of the training documents, or loaded.
//! 4. **Pack**: each part becomes a shard.
//!
//! Whatever is done is a file under its final name, and is not done again. The result depends on the recipe and
//! the corpus alone: not on the number of threads or machines, nor on interruptions.
//!
//! ```text
//! OUT/recipe.json      what is being made
//! OUT/files.json       of which files
//! OUT/parts/           cleaned documents
//! OUT/report.json      what was kept and dropped, and why
//! OUT/tokenizer.json
//! OUT/tokens/          see the module `shards`
//! ```

mod collect;
mod finish;
mod parts;
mod recipe;
mod sample;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use finish::{CorpusReport, SplitReport, Summary};
pub use recipe::{DataRecipe, EndToken, PackConfig};
pub use sample::train_tokenizer;

use collect::Collect;
use finish::Finish;
use parts::{Group, Parts, Unit};

use crate::clean::{CleanError, DuplicatesError};
use crate::recipe::{Difference, RecipeError, differences, listed};
use crate::shards::{ShardError, Split};
use crate::sources::SourceError;
use crate::tokenizer::TokenizerError;

/// The recipe that a folder was made by.
const RECIPE: &str = "recipe.json";
/// The files that a folder was made of.
const FILES: &str = "files.json";
/// What became of the documents.
pub const REPORT: &str = "report.json";
/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// The folder of [shards](crate::shards).
pub const TOKENS: &str = "tokens";

/// What ends the making of a corpus.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The recipe is unusable.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The steps of cleaning are unusable.
    #[error(transparent)]
    Clean(#[from] CleanError),
    /// Duplicates cannot be found.
    #[error(transparent)]
    Duplicates(#[from] DuplicatesError),
    /// The tokenizer cannot be trained, or cannot encode the corpus.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Shards cannot be written.
    #[error(transparent)]
    Shards(#[from] ShardError),
    /// The folder is being made by another recipe.
    #[error(
        "{} was begun with another recipe; give another folder, or the recipe it was begun with. {}",
        folder.display(),
        listed(differences)
    )]
    Changed {
        /// The folder.
        folder: PathBuf,
        /// The keys that differ, with both values.
        differences: Vec<Difference>,
    },
    /// The files are not those with which the folder was begun.
    #[error(
        "the files have changed since {} was begun; give another folder. {}",
        folder.display(),
        listed(differences)
    )]
    FilesChanged {
        /// The folder.
        folder: PathBuf,
        /// The first files that differ.
        differences: Vec<Difference>,
    },
    /// Another process does the same.
    #[error("another process is at work on {what} of {}", folder.display())]
    Busy {
        /// The folder.
        folder: PathBuf,
        /// Which part of the work.
        what: String,
    },
    /// No document is in a split.
    #[error(
        "the {} split is empty: none of {documents} documents falls into a share of {share}; raise \
         pack.splits, give more text, or clean less",
        split.name()
    )]
    EmptySplit {
        /// Which split.
        split: Split,
        /// The share of documents that it should have.
        share: f64,
        /// How many documents cleaning left.
        documents: u64,
    },
}

impl PipelineError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            path: path.clone(),
            source,
        }
    }
}

/// Which units a process does, written `I/N`: of every N the I-th, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    index: usize,
    count: usize,
}

impl Share {
    /// All units.
    pub const ALL: Self = Self { index: 0, count: 1 };

    fn has(self, unit: Unit) -> bool {
        (unit.group + unit.chunk) % self.count == self.index
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/');
        let parsed = numbers.and_then(|(index, count)| {
            let (index, count) = (index.parse().ok()?, count.parse().ok()?);
            (index < count).then_some(Self { index, count })
        });
        parsed
            .ok_or_else(|| format!("expected I/N with I from 0 to N - 1, such as 0/4, got {text}"))
    }
}

/// A part of the work, as progress shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Downloading a file of a source, in bytes.
    Download,
    /// Reading and cleaning, in bytes of files as stored.
    Collect,
    /// Deciding which documents stay, in bytes of cleaned text.
    Duplicates,
    /// Training a tokenizer, in bytes of its sample.
    Tokenizer,
    /// Turning text into tokens, in bytes of cleaned text.
    Pack,
}

/// Hears how far the work is.
pub trait Progress: Sync {
    /// A stage begins, of some bytes.
    fn begin(&self, stage: Stage, bytes: u64);
    /// More bytes are done.
    fn advance(&self, bytes: u64);
}

/// Hears nothing.
impl Progress for () {
    fn begin(&self, _: Stage, _: u64) {}
    fn advance(&self, _: u64) {}
}

/// How far a process got.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Everything is there.
    Done(Summary),
    /// Its units are done; those of other shares are not all, or another process does the rest.
    Waiting {
        /// Files, or groups of small files, of which parts are missing.
        missing: usize,
    },
}

/// Makes packed shards in the folder `out`, or goes on with it.
///
/// # Errors
///
/// When a source, a step or the tokenizer is unusable, when the folder was begun with another recipe or other
/// files, when another process is at work on the same share, and when a split is empty after cleaning. What was
/// done until then stays.
pub fn prepare(
    recipe: &DataRecipe,
    out: &Path,
    share: Share,
    progress: &dyn Progress,
) -> Result<Outcome, PipelineError> {
    recipe.validate()?;
    fs::create_dir_all(out).map_err(PipelineError::io(out))?;
    let name = format!("share-{}-of-{}", share.index, share.count);
    let _lock = lock(out, &name)?;
    let groups = begin(recipe, out, progress)?;
    let parts = Parts::create(out)?;
    let bytes = groups.iter().flatten().map(|file| file.bytes()).sum();
    progress.begin(Stage::Collect, bytes);
    let collect = Collect {
        recipe,
        groups: &groups,
        parts: &parts,
        share,
        progress,
    };
    collect.run()?;
    let (units, missing) = units(&parts, groups.len())?;
    if missing > 0 {
        return Ok(Outcome::Waiting { missing });
    }
    let _lock = match lock(out, "finish") {
        // Another share ended at the same time.
        Err(PipelineError::Busy { .. }) => return Ok(Outcome::Waiting { missing: 0 }),
        lock => lock?,
    };
    let finish = Finish {
        recipe,
        out,
        parts: &parts,
        units: &units,
        n_groups: groups.len(),
        progress,
    };
    finish.run().map(Outcome::Done)
}

/// Keeps other processes from doing the same until it is dropped, at the latest with the process.
fn lock(out: &Path, name: &str) -> Result<File, PipelineError> {
    let path = out.join(format!("{name}.lock"));
    let file = File::create(&path).map_err(PipelineError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(PipelineError::Busy {
            folder: out.to_owned(),
            what: name.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(PipelineError::Io { path, source }),
    }
}

/// Lists the files, and compares recipe and files with those that the folder was begun with.
fn begin(
    recipe: &DataRecipe,
    out: &Path,
    progress: &dyn Progress,
) -> Result<Vec<Group>, PipelineError> {
    let differences = remember(&out.join(RECIPE), &recipe.identity())?;
    if !differences.is_empty() {
        return Err(PipelineError::Changed {
            folder: out.to_owned(),
            differences,
        });
    }
    let mut files = Vec::new();
    for source in &recipe.sources {
        let mut before = None;
        files.extend(source.files_with_progress(&mut |done, total| {
            // Where there is less than before, another file has begun.
            let told = before.filter(|&told| told <= done).unwrap_or_else(|| {
                progress.begin(Stage::Download, total.unwrap_or(0));
                0
            });
            progress.advance(done - told);
            before = Some(done);
        })?);
    }
    let sizes = files.iter().map(|file| {
        let path = file.path().to_string_lossy().into_owned();
        serde_json::json!({ "path": path, "bytes": file.bytes() })
    });
    let mut differences = remember(&out.join(FILES), &sizes.collect())?;
    if !differences.is_empty() {
        differences.truncate(3);
        return Err(PipelineError::FilesChanged {
            folder: out.to_owned(),
            differences,
        });
    }
    Ok(parts::group(files, recipe.chunk_bytes))
}

/// Writes a value, or says how it differs from what was written before.
fn remember(path: &Path, value: &serde_json::Value) -> Result<Vec<Difference>, PipelineError> {
    match path.exists() {
        true => {
            let old: serde_json::Value = parts::read_json(path)?;
            Ok(differences(&old, value)?)
        }
        false => {
            parts::write_json(path, value)?;
            Ok(Vec::new())
        }
    }
}

/// All units in order, and how many groups are not done.
fn units(parts: &Parts, n_groups: usize) -> Result<(Vec<Unit>, usize), PipelineError> {
    let (mut units, mut missing) = (Vec::new(), 0);
    for group in 0..n_groups {
        let Some(info) = parts.group_info(group)? else {
            missing += 1;
            continue;
        };
        let of_group = (0..info.chunks).map(|chunk| Unit { group, chunk });
        missing += usize::from(!of_group.clone().all(|unit| parts.is_done(unit)));
        units.extend(of_group);
    }
    Ok((units, missing))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::shards::Shards;
    use crate::tokenizer::Tokenizer;

    const RECIPE: &str = r#"
        chunk_bytes = 4000
        memory_bytes = 400_000
        clean = [{ length = { min_words = 3 } }, "exact_duplicates", { near_duplicates = {} }]
        tokenizer = { bpe = { vocab_size = 300, special_tokens = ["<|endoftext|>"] } }
        pack = { splits = { valid = 0.1, test = 0.1 } }
        [[sources]]
        path = "corpus"
        format = "lines"
    "#;

    /// A folder with files of lines, some of them short, some the same.
    fn corpus() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("corpus")).unwrap();
        for (name, lines) in [("a.txt", 300), ("b.txt", 10), ("c.txt", 5), ("d.txt", 200)] {
            let line = |number: u64| match number % 17 {
                3 => "too short".to_owned(),
                5 => "the same words again and again, word for word".to_owned(),
                _ => {
                    let noise = (number + 1000 * u64::from(name.as_bytes()[0]))
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let words: Vec<String> = (0..9)
                        .map(|word| format!("w{}", noise >> (word * 7) & 0xff))
                        .collect();
                    format!("{name} {number} {}", words.join(" "))
                }
            };
            let text: Vec<String> = (0..lines).map(line).collect();
            fs::write(folder.path().join("corpus").join(name), text.join("\n")).unwrap();
        }
        folder
    }

    fn recipe(folder: &Path, overrides: &[(&str, &str)]) -> DataRecipe {
        let mut overrides: Vec<(String, String)> = overrides
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let corpus = folder.join("corpus").display().to_string();
        overrides.push((
            "sources".into(),
            format!("[{{ path = '{corpus}', format = 'lines' }}]"),
        ));
        DataRecipe::parse(RECIPE, &overrides).unwrap()
    }

    fn done(recipe: &DataRecipe, out: &Path, share: &str) -> Option<Summary> {
        match prepare(recipe, out, share.parse().unwrap(), &()).unwrap() {
            Outcome::Done(summary) => Some(summary),
            Outcome::Waiting { .. } => None,
        }
    }

    /// Every file below a folder but the locks.
    fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(
                    contents(&path).into_iter().map(|(name, bytes)| {
                        (Path::new(path.file_name().unwrap()).join(name), bytes)
                    }),
                );
            } else if path.extension().is_none_or(|extension| extension != "lock") {
                found.insert(path.file_name().unwrap().into(), fs::read(path).unwrap());
            }
        }
        found
    }

    #[test]
    fn documents_become_tokens_and_back() {
        let folder = corpus();
        let out = folder.path().join("out");
        let summary = done(&recipe(folder.path(), &[]), &out, "0/1").unwrap();
        let shards = Shards::open(&out.join(TOKENS)).unwrap();
        shards.verify().unwrap();
        let tokenizer = Tokenizer::load(&out.join(TOKENIZER)).unwrap();
        let mut decoded = Vec::new();
        for split in Split::ALL {
            let tokens = shards.split(split);
            assert_eq!(tokens.len() as u64, summary.tokens[split as usize]);
            let mut ids = Vec::new();
            tokens.read(0..tokens.len(), &mut ids).unwrap();
            let documents: Vec<&[u32]> = ids.split_inclusive(|&id| id == 0).collect();
            assert_eq!(documents.len(), tokens.n_documents());
            for document in documents {
                let text = tokenizer.decode(&document[..document.len() - 1]).unwrap();
                assert_eq!(recipe(folder.path(), &[]).pack.splits.split(&text), split);
                decoded.push(text);
            }
        }
        let mut expected: Vec<String> = contents(&folder.path().join("corpus"))
            .into_values()
            .flat_map(|text| {
                String::from_utf8(text)
                    .unwrap()
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .filter(|line| line != "too short")
            .collect();
        for texts in [&mut decoded, &mut expected] {
            texts.sort();
        }
        expected.dedup();
        assert_eq!(decoded, expected);
        let steps = &summary.report.unwrap().cleaning.steps;
        assert_eq!(steps[0].seen.documents, 515);
        assert_eq!(steps[2].kept.documents, decoded.len() as u64);
    }

    #[test]
    fn shares_threads_and_memory_change_no_byte() {
        let folder = corpus();
        let [one, two, single] = ["one", "two", "single"].map(|name| folder.path().join(name));
        let recipe = recipe(folder.path(), &[]);
        done(&recipe, &one, "0/1").unwrap();
        let expected = contents(&one);
        assert!(expected.len() > 30);

        assert!(done(&recipe, &two, "1/2").is_none());
        // Begun again, it has nothing to do.
        assert!(done(&recipe, &two, "1/2").is_none());
        done(&recipe, &two, "0/2").unwrap();
        assert!(contents(&two) == expected, "two shares differ from one");

        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        let tight = DataRecipe {
            memory_bytes: 64_000,
            ..recipe
        };
        pool.install(|| done(&tight, &single, "0/1")).unwrap();
        assert!(
            contents(&single) == expected,
            "one thread differs from many"
        );
    }

    #[test]
    fn what_is_done_is_not_done_again() {
        let folder = corpus();
        let [whole, broken] = ["whole", "broken"].map(|name| folder.path().join(name));
        let recipe = recipe(folder.path(), &[]);
        done(&recipe, &whole, "0/1").unwrap();
        let expected = contents(&whole);
        done(&recipe, &broken, "0/1").unwrap();
        // As if it had been killed while it cleaned: a group is not finished, and a part half written.
        for name in [
            "parts/group-00000.json",
            "parts/part-00000-00001.json",
            "report.json",
            "tokenizer.json",
        ] {
            fs::remove_file(broken.join(name)).unwrap();
        }
        fs::write(broken.join("parts/part-00000-00001.jsonl.zst"), "half").unwrap();
        fs::remove_dir_all(broken.join(TOKENS)).unwrap();
        let inode = |name: &str| fs::metadata(broken.join(name)).unwrap().ino();
        let part = "parts/part-00000-00002.jsonl.zst";
        let before = inode(part);
        done(&recipe, &broken, "0/1").unwrap();
        assert!(
            contents(&broken) == expected,
            "resumed differs from uninterrupted"
        );
        assert_eq!(inode(part), before);
        // As if it had been killed right after the index was written.
        let left = broken.join("tokens/shard-00000.json");
        fs::write(&left, "what the index was gathered from").unwrap();
        let shard = inode("tokens/shard-00000.bin");
        done(&recipe, &broken, "0/1").unwrap();
        assert!(contents(&broken) == expected && !left.exists());
        assert_eq!(inode("tokens/shard-00000.bin"), shard);
    }

    #[test]
    fn a_changed_recipe_or_corpus_is_refused_with_its_differences() {
        let folder = corpus();
        let out = folder.path().join("out");
        done(&recipe(folder.path(), &[]), &out, "0/1").unwrap();
        let changed = recipe(
            folder.path(),
            &[("pack.splits.test", "0.2"), ("memory_bytes", "900_000")],
        );
        match prepare(&changed, &out, Share::ALL, &()).unwrap_err() {
            PipelineError::Changed { differences, .. } => {
                assert_eq!(listed(&differences), "`pack.splits.test` was 0.1, now 0.2");
            }
            other => panic!("{other}"),
        }
        fs::write(folder.path().join("corpus/e.txt"), "one more document\n").unwrap();
        let error = prepare(&recipe(folder.path(), &[]), &out, Share::ALL, &()).unwrap_err();
        assert!(
            matches!(error, PipelineError::FilesChanged { .. }),
            "{error}"
        );
    }

    #[test]
    fn more_documents_move_none_to_another_split() {
        let folder = corpus();
        let splits = |out: &Path| -> BTreeMap<String, Split> {
            done(&recipe(folder.path(), &[]), out, "0/1").unwrap();
            let shards = Shards::open(&out.join(TOKENS)).unwrap();
            let tokenizer = Tokenizer::load(&out.join(TOKENIZER)).unwrap();
            let mut found = BTreeMap::new();
            for split in Split::ALL {
                let (tokens, mut ids) = (shards.split(split), Vec::new());
                tokens.read(0..tokens.len(), &mut ids).unwrap();
                for document in ids.split(|&id| id == 0) {
                    found.insert(tokenizer.decode(document).unwrap(), split);
                }
            }
            found.remove("");
            found
        };
        let before = splits(&folder.path().join("before"));
        let more: Vec<String> = (0..60)
            .map(|number| format!("and one more: {number}"))
            .collect();
        fs::write(folder.path().join("corpus/0.txt"), more.join("\n")).unwrap();
        let after = splits(&folder.path().join("after"));
        assert!(after.len() > before.len());
        assert!(before.iter().all(|(text, split)| after[text] == *split));
    }

    #[test]
    fn an_empty_split_is_refused() {
        let folder = corpus();
        let none = recipe(
            folder.path(),
            &[("clean", "[{ length = { min_words = 1000 } }]")],
        );
        match prepare(&none, &folder.path().join("none"), Share::ALL, &()).unwrap_err() {
            PipelineError::EmptySplit {
                split: Split::Train,
                documents: 0,
                ..
            } => {}
            other => panic!("{other}"),
        }
        let few = recipe(folder.path(), &[("pack.splits.valid", "1e-9")]);
        match prepare(&few, &folder.path().join("few"), Share::ALL, &()).unwrap_err() {
            PipelineError::EmptySplit {
                split: Split::Valid,
                ..
            } => {}
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_same_share_is_done_by_one_process() {
        let folder = corpus();
        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        let recipe = recipe(folder.path(), &[]);
        let held = lock(&out, "share-0-of-2").unwrap();
        let error = prepare(&recipe, &out, "0/2".parse().unwrap(), &()).unwrap_err();
        assert!(matches!(error, PipelineError::Busy { .. }), "{error}");
        assert!(done(&recipe, &out, "1/2").is_none());
        drop(held);
        done(&recipe, &out, "0/2").unwrap();
    }

    #[test]
    fn a_bad_row_stops_everything_and_is_named() {
        let folder = corpus();
        fs::write(
            folder.path().join("corpus/bad.txt"),
            b"a good line here\nbad \xff line\n",
        )
        .unwrap();
        let recipe = recipe(folder.path(), &[]);
        let error = prepare(&recipe, &folder.path().join("out"), Share::ALL, &()).unwrap_err();
        assert!(error.to_string().contains("bad.txt:2"), "{error}");
    }

    #[test]
    fn impossible_recipes_are_refused() {
        let refusal = |key: &str, value: &str| {
            let overrides = [(key.to_owned(), value.to_owned())];
            DataRecipe::parse(RECIPE, &overrides)
                .unwrap_err()
                .to_string()
        };
        for (key, value) in [
            ("sources", "[]"),
            ("pack.splits.test", "1.0"),
            ("chunk_bytes", "0"),
            ("memory_bytes", "1000"),
            ("pack.shuffle", "true"),
        ] {
            assert!(refusal(key, value).contains(key), "{}", refusal(key, value));
        }
        for text in ["2/2", "x", "0/0", "-1/2"] {
            assert!(text.parse::<Share>().is_err());
        }
    }

    #[test]
    fn an_end_token_that_the_tokenizer_lacks_is_refused() {
        let folder = corpus();
        let recipe = recipe(folder.path(), &[("pack.end_token", "{ token = '</s>' }")]);
        let error = prepare(&recipe, &folder.path().join("out"), Share::ALL, &()).unwrap_err();
        assert!(error.to_string().contains("</s>"), "{error}");
    }
}
