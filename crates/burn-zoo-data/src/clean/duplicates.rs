//! Removal of exact and near duplicates, over any number of parts and machines.
//!
//! It has two phases. While documents are cleaned, [`Duplicates::fingerprint`] reduces each to a
//! few numbers, which are written beside the cleaned part. When all parts are done,
//! [`find_duplicates`] reads the fingerprints, in a given amount of memory, and says of every
//! document whether it stays: of a cluster of documents that are duplicates of each other, directly
//! or through others, the first in the order of the corpus does.

use std::io::{self, BufReader, Read};

use twox_hash::XxHash3_128;

use super::hash::HashMap;
use super::report::Report;
use super::{CleanError, MinHashConfig, Step, StepAt};
use crate::document::Document;

/// What duplicates are compared by. Its size in bytes is [`Duplicates::fingerprint_bytes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// A hash of the text without the white space around it.
    pub exact: u128,
    /// A hash of each band of the text's MinHash sketch; none where near-duplicates stay.
    pub bands: Vec<u64>,
}

impl Fingerprint {
    /// Appends it to bytes, in little-endian order.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.exact.to_le_bytes());
        self.bands
            .iter()
            .for_each(|band| bytes.extend(band.to_le_bytes()));
    }

    /// Reads what [`write`](Self::write) wrote, of so many bands.
    ///
    /// # Errors
    ///
    /// When the reader fails or ends.
    pub fn read(reader: &mut impl Read, n_bands: usize) -> io::Result<Self> {
        let mut exact = [0; 16];
        reader.read_exact(&mut exact)?;
        let mut bands = Vec::with_capacity(n_bands);
        for _ in 0..n_bands {
            let mut band = [0; 8];
            reader.read_exact(&mut band)?;
            bands.push(u64::from_le_bytes(band));
        }
        Ok(Self {
            exact: u128::from_le_bytes(exact),
            bands,
        })
    }
}

/// The steps of a recipe that remove duplicates.
#[derive(Clone, Debug)]
pub struct Duplicates {
    steps: Vec<String>,
    exact: Option<StepAt>,
    near: Option<(StepAt, MinHashConfig)>,
}

impl Duplicates {
    /// Of all the steps of a recipe; nothing when none of them removes duplicates.
    ///
    /// # Errors
    ///
    /// When the steps are not in order, or sizes are out of range.
    pub fn new(steps: &[Step]) -> Result<Option<Self>, CleanError> {
        super::check_order(steps)?;
        let mut duplicates = Self {
            steps: steps.iter().map(|step| step.name().to_owned()).collect(),
            exact: None,
            near: None,
        };
        for (index, step) in steps.iter().enumerate() {
            let at = StepAt {
                index,
                step: step.name(),
            };
            match step {
                Step::ExactDuplicates => duplicates.exact = Some(at),
                Step::NearDuplicates(config) => {
                    config.check().map_err(|problem| at.error(problem))?;
                    duplicates.near = Some((at, config.clone()));
                }
                _ => {}
            }
        }
        let any = duplicates.exact.is_some() || duplicates.near.is_some();
        Ok(any.then_some(duplicates))
    }

    /// Of a document's text as cleaning left it.
    pub fn fingerprint(&self, text: &str) -> Fingerprint {
        let near = self.near.as_ref();
        Fingerprint {
            exact: XxHash3_128::oneshot(text.trim().as_bytes()),
            bands: near.map_or_else(Vec::new, |(_, config)| config.bands(text)),
        }
    }

    /// How many bytes [`Fingerprint::write`] writes for each document.
    pub fn fingerprint_bytes(&self) -> usize {
        16 + 8 * self.n_bands()
    }

    fn n_bands(&self) -> usize {
        self.near.as_ref().map_or(0, |(_, config)| config.bands)
    }

    /// Counts the verdict on a document in the report of all steps, and says whether the document
    /// stays. `kept` names the document that is kept instead of it.
    pub fn judge(
        &self,
        document: &Document,
        verdict: Verdict,
        kept: impl FnOnce(Place) -> String,
        report: &mut Report,
    ) -> bool {
        if report.steps.is_empty() {
            *report = Report::new(self.steps.iter().map(String::as_str));
        }
        let near = self.near.as_ref().map(|(at, _)| *at);
        for at in [self.exact, near].into_iter().flatten() {
            let step = &mut report.steps[at.index];
            match verdict {
                Verdict::Exact(place) if Some(at) == self.exact => {
                    step.drop(document, format!("the text of {}", kept(place)));
                    return false;
                }
                Verdict::Near(place) if Some(at) == near => {
                    step.drop(document, format!("nearly the text of {}", kept(place)));
                    return false;
                }
                _ => step.keep(document.text.len()),
            }
        }
        true
    }
}

/// A document of a part, both counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The part.
    pub part: usize,
    /// The document in the part.
    pub document: usize,
}

/// What becomes of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Keep,
    /// An earlier document has its text. The place is that of the document that is kept.
    Exact(Place),
    /// An earlier document nearly has its text. The place is that of the document that is kept.
    Near(Place),
}

/// The verdicts on all documents of a corpus.
#[derive(Clone, Debug)]
pub struct Verdicts {
    /// The first document of the cluster that a document is in, over all parts.
    first: Vec<u32>,
    /// Which documents have the text of an earlier one, a bit for each.
    exact: Vec<u64>,
    /// Where parts begin, and where the last one ends.
    starts: Vec<usize>,
}

impl Verdicts {
    /// Those on the documents of a part, in their order.
    pub fn part(&self, part: usize) -> impl ExactSizeIterator<Item = Verdict> {
        (self.starts[part]..self.starts[part + 1]).map(|document| self.verdict(document))
    }

    fn verdict(&self, document: usize) -> Verdict {
        let first = self.first[document] as usize;
        if first == document {
            return Verdict::Keep;
        }
        let part = self.starts.partition_point(|&start| start <= first) - 1;
        let place = Place {
            part,
            document: first - self.starts[part],
        };
        if self.exact[document / 64] >> (document % 64) & 1 == 1 {
            Verdict::Exact(place)
        } else {
            Verdict::Near(place)
        }
    }
}

/// What keeps duplicates from being found.
#[derive(Debug, thiserror::Error)]
pub enum DuplicatesError {
    /// The fingerprints of a part cannot be read.
    #[error("cannot read fingerprint {document} of part {part}: {source}; clean the part again")]
    Unreadable {
        /// The part, from 0.
        part: usize,
        /// The document in the part, from 0.
        document: usize,
        /// What the reader says.
        source: io::Error,
    },
    /// The memory does not hold even the verdicts.
    #[error(
        "duplicates among {documents} documents need at least {needed} bytes of memory, and \
         {memory} are given: raise the limit"
    )]
    Memory {
        /// How many documents there are.
        documents: usize,
        /// How many bytes are needed at least.
        needed: usize,
        /// How many bytes may be used.
        memory: usize,
    },
    /// There are more documents than can be numbered.
    #[error(
        "{documents} documents are more than duplicates can be found among, {}",
        u32::MAX
    )]
    TooMany {
        /// How many documents there are.
        documents: usize,
    },
}

/// Reads the fingerprints of a corpus and says which documents stay.
///
/// `parts` has the number of documents of each part, and `open` reads the fingerprints of one, as
/// [`Fingerprint::write`] wrote them. The verdicts and a table of hashes take at most `memory`
/// bytes: 4 for each document, and about 27 to 51 for each hash that is remembered. Where the
/// table does not hold all hashes, it is filled with one range of hashes after the other, and the
/// fingerprints are read once for each; the result is the same.
///
/// # Errors
///
/// When a part cannot be read or is cut short, or the memory does not hold the verdicts.
///
/// ```
/// use burn_zoo_data::clean::{Duplicates, Place, Step, Verdict, find_duplicates};
///
/// let steps = [Step::ExactDuplicates, Step::NearDuplicates(Default::default())];
/// let duplicates = Duplicates::new(&steps)?.expect("both steps remove duplicates");
/// let parts = [vec!["one text", "another"], vec!["one text", "ANOTHER!"]];
/// let written = parts.each_ref().map(|part| {
///     let mut bytes = Vec::new();
///     part.iter().for_each(|text| duplicates.fingerprint(text).write(&mut bytes));
///     bytes
/// });
///
/// let verdicts = find_duplicates(&duplicates, &[2, 2], |part| Ok(&written[part][..]), 1 << 20)?;
/// assert!(verdicts.part(0).all(|verdict| verdict == Verdict::Keep));
/// let second: Vec<_> = verdicts.part(1).collect();
/// assert_eq!(second[0], Verdict::Exact(Place { part: 0, document: 0 }));
/// assert_eq!(second[1], Verdict::Near(Place { part: 0, document: 1 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn find_duplicates<R: Read>(
    duplicates: &Duplicates,
    parts: &[usize],
    open: impl Fn(usize) -> io::Result<R>,
    memory: usize,
) -> Result<Verdicts, DuplicatesError> {
    let documents = parts.iter().sum();
    if documents > u32::MAX as usize {
        return Err(DuplicatesError::TooMany { documents });
    }
    let needed = documents * size_of::<u32>() + documents.div_ceil(64) * size_of::<u64>();
    let Some(table) = memory.checked_sub(needed + SMALLEST_TABLE) else {
        let needed = needed + SMALLEST_TABLE;
        return Err(DuplicatesError::Memory {
            documents,
            needed,
            memory,
        });
    };
    let search = Search {
        parts,
        open,
        n_bands: duplicates.n_bands(),
        table: table + SMALLEST_TABLE,
    };
    let mut first: Vec<u32> = (0..documents as u32).collect();
    let mut exact = vec![0u64; documents.div_ceil(64)];
    if duplicates.exact.is_some() {
        search.equal_keys(
            |fingerprint| std::slice::from_ref(&fingerprint.exact),
            |earlier, document| {
                exact[document as usize / 64] |= 1 << (document % 64);
                unite(&mut first, earlier, document);
            },
        )?;
    }
    if duplicates.near.is_some() {
        search.equal_keys(
            |fingerprint| &fingerprint.bands,
            |earlier, document| unite(&mut first, earlier, document),
        )?;
    }
    for document in 0..documents as u32 {
        first[document as usize] = root(&mut first, document);
    }
    let mut starts = vec![0];
    starts.extend(parts.iter().scan(0, |end, documents| {
        *end += documents;
        Some(*end)
    }));
    Ok(Verdicts {
        first,
        exact,
        starts,
    })
}

/// The first document of the cluster, with the way to it halved (Tarjan and van Leeuwen 1984).
fn root(first: &mut [u32], mut document: u32) -> u32 {
    while first[document as usize] != document {
        let parent = first[document as usize];
        first[document as usize] = first[parent as usize];
        document = first[document as usize];
    }
    document
}

/// Makes one cluster of two. Its root is the earlier one, so that every root is the first document.
fn unite(first: &mut [u32], a: u32, b: u32) {
    let (a, b) = (root(first, a), root(first, b));
    first[a.max(b) as usize] = a.min(b);
}

/// A table of fewer hashes would need too many readings.
const SMALLEST_TABLE: usize = 1 << 12;

/// A hash whose upper 64 bits say which range it is in.
trait Key: Copy + Eq + std::hash::Hash {
    fn upper(self) -> u64;
}

impl Key for u64 {
    fn upper(self) -> u64 {
        self
    }
}

impl Key for u128 {
    fn upper(self) -> u64 {
        (self >> 64) as u64
    }
}

struct Search<'a, F> {
    parts: &'a [usize],
    open: F,
    n_bands: usize,
    /// Bytes for the table of hashes.
    table: usize,
}

impl<R: Read, F: Fn(usize) -> io::Result<R>> Search<'_, F> {
    /// Calls `each` for every document, numbered over all parts.
    fn read(&self, mut each: impl FnMut(u32, &Fingerprint)) -> Result<(), DuplicatesError> {
        let mut number = 0;
        for (part, &documents) in self.parts.iter().enumerate() {
            let unreadable = |document| {
                move |source| DuplicatesError::Unreadable {
                    part,
                    document,
                    source,
                }
            };
            let mut reader = BufReader::new((self.open)(part).map_err(unreadable(0))?);
            for document in 0..documents {
                let fingerprint = Fingerprint::read(&mut reader, self.n_bands);
                each(number, &fingerprint.map_err(unreadable(document))?);
                number += 1;
            }
        }
        Ok(())
    }

    /// Calls `found` with the first document that has a key and every later one that has it too.
    /// A key of one band is a key of all: hashes are seeded by the band.
    fn equal_keys<K: Key>(
        &self,
        keys: impl Fn(&Fingerprint) -> &[K],
        mut found: impl FnMut(u32, u32),
    ) -> Result<(), DuplicatesError> {
        let capacity = capacity::<(K, u32)>(self.table);
        let mut lowest = 0;
        loop {
            let mut highest = u64::MAX;
            let mut first: HashMap<K, u32> = HashMap::default();
            self.read(|document, fingerprint| {
                for &key in keys(fingerprint) {
                    if !(lowest..=highest).contains(&key.upper()) {
                        continue;
                    }
                    let earlier = *first.entry(key).or_insert(document);
                    if earlier != document {
                        found(earlier, document);
                    }
                    while first.len() >= capacity && lowest < highest {
                        highest = lowest + (highest - lowest) / 2;
                        first.retain(|key, _| key.upper() <= highest);
                    }
                }
            })?;
            match highest.checked_add(1) {
                Some(next) => lowest = next,
                None => return Ok(()),
            }
        }
    }
}

/// How many entries a hash table holds in so many bytes while it grows: a power of two of buckets,
/// seven eighths of them full, with one byte of control each, beside the half as large table that
/// it grew out of.
fn capacity<Entry>(bytes: usize) -> usize {
    let buckets = bytes * 2 / 3 / (size_of::<Entry>() + 1);
    let power_of_two = (buckets + 1).next_power_of_two() / 2;
    power_of_two / 8 * 7
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clean::{StepReport, hash};
    use proptest::prelude::*;
    use std::collections::HashMap;

    const BOTH: [Step; 2] = [
        Step::ExactDuplicates,
        Step::NearDuplicates(MinHashConfig {
            n_gram: 5,
            bands: 14,
            rows: 8,
        }),
    ];

    fn duplicates(steps: &[Step]) -> Duplicates {
        Duplicates::new(steps).unwrap().unwrap()
    }

    /// The verdicts on all parts, one after the other.
    fn find(duplicates: &Duplicates, parts: &[Vec<Fingerprint>], memory: usize) -> Vec<Verdict> {
        let written: Vec<Vec<u8>> = parts.iter().map(|part| bytes(part)).collect();
        let sizes: Vec<usize> = parts.iter().map(Vec::len).collect();
        let open = |part: usize| Ok(&written[part][..]);
        let verdicts = find_duplicates(duplicates, &sizes, open, memory).unwrap();
        (0..parts.len())
            .flat_map(|part| verdicts.part(part))
            .collect()
    }

    fn bytes(fingerprints: &[Fingerprint]) -> Vec<u8> {
        let mut bytes = Vec::new();
        fingerprints
            .iter()
            .for_each(|fingerprint| fingerprint.write(&mut bytes));
        bytes
    }

    /// The verdicts by the definition: documents that share a key are joined until nothing changes.
    fn brute_force(parts: &[Vec<Fingerprint>]) -> Vec<Verdict> {
        let all: Vec<&Fingerprint> = parts.iter().flatten().collect();
        let shares = |a: &Fingerprint, b: &Fingerprint| {
            a.exact == b.exact || a.bands.iter().any(|band| b.bands.contains(band))
        };
        let mut cluster: Vec<usize> = (0..all.len()).collect();
        loop {
            let before = cluster.clone();
            for a in 0..all.len() {
                for b in 0..all.len() {
                    if shares(all[a], all[b]) {
                        cluster[a] = cluster[a].min(cluster[b]);
                    }
                }
            }
            if cluster == before {
                break;
            }
        }
        let places: Vec<Place> = parts
            .iter()
            .enumerate()
            .flat_map(|(part, fingerprints)| {
                (0..fingerprints.len()).map(move |document| Place { part, document })
            })
            .collect();
        let verdict = |document: usize| {
            let earlier_text = all[..document]
                .iter()
                .any(|other| other.exact == all[document].exact);
            match cluster[document] {
                first if first == document => Verdict::Keep,
                first if earlier_text => Verdict::Exact(places[first]),
                first => Verdict::Near(places[first]),
            }
        };
        (0..all.len()).map(verdict).collect()
    }

    proptest! {
        #[test]
        fn verdicts_are_those_of_the_definition(
            keys in prop::collection::vec((0u64..40, [0u64..60, 0u64..60]), 0..60),
            size in 1usize..20,
        ) {
            // Keys are hashes; here they collide often. Equal texts have equal bands.
            let fingerprints: Vec<Fingerprint> = keys
                .iter()
                .map(|(text, _)| {
                    let (_, bands) = keys.iter().find(|(other, _)| other == text).unwrap();
                    let exact = u128::from(hash::mix(*text)) << 64;
                    let bands = bands.map(hash::mix).to_vec();
                    Fingerprint { exact, bands }
                })
                .collect();
            let parts: Vec<Vec<Fingerprint>> = fingerprints.chunks(size).map(<[_]>::to_vec).collect();
            let mut steps = BOTH;
            steps[1] = Step::NearDuplicates(MinHashConfig { bands: 2, ..Default::default() });
            let duplicates = duplicates(&steps);
            let found = find(&duplicates, &parts, 1 << 20);
            prop_assert_eq!(&found, &brute_force(&parts));
        }
    }

    #[test]
    fn little_memory_takes_more_readings_and_gives_the_same() {
        let duplicates = duplicates(&BOTH);
        let text = |document: u64| format!("{:x}", hash::mix(document % 1700));
        let fingerprints: Vec<Fingerprint> = (0..2000)
            .map(|document| duplicates.fingerprint(&text(document)))
            .collect();
        let written = bytes(&fingerprints);
        let readings = std::cell::Cell::new(0);
        let open = |_| {
            readings.set(readings.get() + 1);
            Ok(&written[..])
        };
        let needed = 2000 * 4 + 32 * 8 + SMALLEST_TABLE;
        let find = |memory| {
            readings.set(0);
            let verdicts = find_duplicates(&duplicates, &[2000], open, memory).unwrap();
            (verdicts.part(0).collect::<Vec<_>>(), readings.get())
        };
        let (much, twice) = find(1 << 30);
        let (little, many) = find(needed);
        assert_eq!(twice, 2);
        assert!(many > 100, "{many}");
        assert_eq!(much, little);
        assert_eq!(
            much.iter()
                .filter(|verdict| **verdict == Verdict::Keep)
                .count(),
            1700
        );
        let error = find_duplicates(&duplicates, &[2000], open, needed - 1).unwrap_err();
        assert!(matches!(error, DuplicatesError::Memory { needed: least, .. } if least == needed));
    }

    #[test]
    fn a_table_fits_its_memory_while_it_grows() {
        for bytes in [SMALLEST_TABLE, 100_000, 1 << 20] {
            let capacity = capacity::<(u64, u32)>(bytes);
            let mut table: hash::HashMap<u64, u32> = Default::default();
            let mut buckets = 0;
            for key in 0..capacity as u64 {
                let before = buckets;
                table.insert(key, 0);
                // Seven eighths of the buckets are the capacity.
                buckets = table.capacity() * 8 / 7;
                let grown = if before == buckets { 0 } else { before };
                assert!((buckets + grown) * 17 <= bytes, "{key} {buckets}");
            }
        }
    }

    #[test]
    fn a_part_cut_short_is_named() {
        let duplicates = duplicates(&BOTH);
        let written = bytes(&[duplicates.fingerprint("a"), duplicates.fingerprint("b")]);
        let open = |part| Ok(&written[..written.len() - part]);
        let error = find_duplicates(&duplicates, &[2, 2], open, 1 << 20).unwrap_err();
        let shown = error.to_string();
        assert!(
            shown.starts_with("cannot read fingerprint 1 of part 1: "),
            "{shown}"
        );
    }

    /// Text of random words.
    fn text(seed: u64, words: u64) -> Vec<String> {
        let word = |index| hash::mix(hash::mix(seed) + index) % 5000;
        (0..words)
            .map(|index| format!("w{}", word(index)))
            .collect()
    }

    /// The Jaccard similarity of the sets of 5-grams.
    fn similarity(a: &[String], b: &[String]) -> f64 {
        let mut seen: HashMap<&[String], u8> = HashMap::new();
        a.windows(5)
            .for_each(|n_gram| *seen.entry(n_gram).or_default() |= 1);
        b.windows(5)
            .for_each(|n_gram| *seen.entry(n_gram).or_default() |= 2);
        seen.values().filter(|&&sides| sides == 3).count() as f64 / seen.len() as f64
    }

    /// Originals, and copies with more and more words changed: similar pairs are found, and no
    /// unrelated texts ever are.
    #[test]
    fn near_duplicates_are_found_and_unrelated_texts_are_not() {
        let near = duplicates(&BOTH);
        let originals: Vec<Vec<String>> = (0..150).map(|seed| text(seed, 300)).collect();
        let copies: Vec<Vec<String>> = originals
            .iter()
            .enumerate()
            .map(|(index, original)| {
                let mut copy = original.clone();
                (0..index / 10).for_each(|change| copy[17 * change + 3] = "changed".to_owned());
                copy
            })
            .collect();
        let fingerprint = |words: &Vec<String>| near.fingerprint(&words.join(" "));
        let parts = [
            originals.iter().map(fingerprint).collect(),
            copies.iter().map(fingerprint).collect(),
        ];
        let verdicts = find(&near, &parts, 1 << 24);
        assert!(
            verdicts[..150]
                .iter()
                .all(|verdict| *verdict == Verdict::Keep)
        );
        let (mut expected, mut found) = (0.0, 0.0);
        for (document, verdict) in verdicts[150..].iter().enumerate() {
            let place = Place { part: 0, document };
            let similarity = similarity(&originals[document], &copies[document]);
            match verdict {
                Verdict::Keep => assert!(similarity < 0.95, "{document}: {similarity}"),
                Verdict::Exact(first) => assert_eq!((*first, document / 10), (place, 0)),
                Verdict::Near(first) => assert_eq!(*first, place),
            }
            expected += MinHashConfig::default().probability(similarity);
            found += f64::from(*verdict != Verdict::Keep);
        }
        // Five standard deviations of 150 independent draws are at most 31.
        assert!((expected - found).abs() < 20.0, "{found} of {expected}");
    }

    #[test]
    fn verdicts_are_counted_in_the_report() {
        let duplicates = duplicates(&[&[Step::Lowercase], &BOTH[..]].concat());
        let file = std::sync::Arc::new(std::path::PathBuf::from("a.txt"));
        let document = |row| Document {
            text: "four".to_owned(),
            origin: crate::document::Origin {
                file: file.clone(),
                row,
            },
        };
        let place = Place {
            part: 0,
            document: 0,
        };
        let mut report = Report::default();
        let verdicts = [Verdict::Keep, Verdict::Exact(place), Verdict::Near(place)];
        let stays: Vec<bool> = (1..)
            .zip(verdicts)
            .map(|(row, verdict)| {
                duplicates.judge(
                    &document(row),
                    verdict,
                    |_| "a.txt:1".to_owned(),
                    &mut report,
                )
            })
            .collect();
        assert_eq!(stays, [true, false, false]);
        let [_, exact, near] = &report.steps[..] else {
            panic!("{report}");
        };
        let counts = |step: &StepReport| {
            [step.seen, step.kept, step.dropped].map(|tally| (tally.documents, tally.bytes))
        };
        assert_eq!(counts(exact), [(3, 12), (2, 8), (1, 4)]);
        assert_eq!(counts(near), [(2, 8), (1, 4), (1, 4)]);
        assert_eq!(exact.examples[0].why, "the text of a.txt:1");
        assert_eq!(near.examples[0].why, "nearly the text of a.txt:1");
    }

    #[test]
    fn white_space_around_a_text_does_not_count() {
        let duplicates = duplicates(&[Step::ExactDuplicates]);
        let fingerprint = duplicates.fingerprint("a text\n");
        assert_eq!(fingerprint, duplicates.fingerprint("  a text"));
        assert_ne!(fingerprint, duplicates.fingerprint("A text"));
        let mut written = Vec::new();
        fingerprint.write(&mut written);
        assert_eq!(written.len(), duplicates.fingerprint_bytes());
        let read = Fingerprint::read(&mut &written[..], 0).unwrap();
        assert_eq!(read, fingerprint);
    }
}
