//! Reading shards at any place.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use twox_hash::XxHash3_64;

use super::{DOCUMENTS, DType, INDEX, Index, ShardError, Split, checksum};

/// A folder of shards, open.
#[derive(Clone, Debug)]
pub struct Shards {
    index: Index,
    files: Arc<Files>,
}

#[derive(Debug)]
struct Files {
    folder: PathBuf,
    /// One for each shard.
    shards: Vec<Mapped>,
    documents: Mapped,
}

/// A file in memory's place. Nothing has to be read to open it.
#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    /// Nothing, for a file without bytes.
    bytes: Option<Mmap>,
}

impl Mapped {
    fn open(path: PathBuf, expected: u64, what: &str) -> Result<Self, ShardError> {
        let file = File::open(&path).map_err(ShardError::io(&path))?;
        let found = file.metadata().map_err(ShardError::io(&path))?.len();
        if found != expected {
            return Err(ShardError::Size {
                path,
                what: what.to_owned(),
                found,
                expected,
            });
        }
        let bytes = match found {
            0 => None,
            // SAFETY: shards are written once, under another name, and renamed; who cuts one while it is
            // read ends the process, as with any mapped file.
            _ => Some(unsafe { Mmap::map(&file) }.map_err(ShardError::io(&path))?),
        };
        Ok(Self { path, bytes })
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }

    fn verify(&self, expected: &str) -> Result<(), ShardError> {
        match checksum(XxHash3_64::oneshot(self.bytes())) == expected {
            true => Ok(()),
            false => Err(ShardError::Checksum {
                path: self.path.clone(),
            }),
        }
    }
}

impl Shards {
    /// Opens a folder. Sizes are checked, contents are not: see [`verify`](Self::verify).
    ///
    /// # Errors
    ///
    /// When the index is missing or not one, or a file has another size than it says.
    pub fn open(folder: &Path) -> Result<Self, ShardError> {
        let path = folder.join(INDEX);
        let json = fs::read_to_string(&path).map_err(ShardError::io(&path))?;
        let index: Index = serde_json::from_str(&json).map_err(|error| ShardError::Index {
            path,
            problem: error.to_string(),
        })?;
        index.dtype.check(index.vocab_size)?;
        let open = |shard: &super::ShardInfo| {
            let tokens: u64 = shard.tokens.iter().sum();
            let bytes = tokens * index.dtype.size() as u64;
            let what = format!("{tokens} tokens of {}", index.dtype);
            Mapped::open(folder.join(&shard.file), bytes, &what)
        };
        let shards: Result<Vec<Mapped>, _> = index.shards.iter().map(open).collect();
        let n_documents: u64 = Split::ALL.map(|split| index.documents(split)).iter().sum();
        let what = format!("the starts of {n_documents} documents");
        let files = Files {
            folder: folder.to_owned(),
            shards: shards?,
            documents: Mapped::open(folder.join(DOCUMENTS), 8 * n_documents, &what)?,
        };
        Ok(Self {
            index,
            files: Arc::new(files),
        })
    }

    /// What the folder holds.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Reads everything, and compares with the checksums and the vocabulary.
    pub fn verify(&self) -> Result<(), ShardError> {
        for (file, shard) in self.files.shards.iter().zip(&self.index.shards) {
            file.verify(&shard.checksum)?;
        }
        self.files
            .documents
            .verify(&self.index.documents_checksum)?;
        const STEP: usize = 1 << 20;
        let mut tokens = Vec::new();
        for split in Split::ALL.map(|split| self.split(split)) {
            for start in (0..split.len()).step_by(STEP) {
                tokens.clear();
                split.read(start..split.len().min(start + STEP), &mut tokens)?;
            }
        }
        Ok(())
    }

    /// The tokens of a split.
    pub fn split(&self, split: Split) -> SplitTokens {
        let (mut segments, mut start) = (Vec::new(), 0);
        for (number, shard) in self.index.shards.iter().enumerate() {
            let before: u64 = shard.tokens[..split as usize].iter().sum();
            let tokens = shard.tokens[split as usize];
            if tokens > 0 {
                segments.push(Segment {
                    start,
                    shard: number,
                    offset: before as usize,
                });
            }
            start += tokens as usize;
        }
        let before = Split::ALL[..split as usize].iter();
        let first: u64 = before.map(|&split| self.index.documents(split)).sum();
        let first = first as usize;
        SplitTokens {
            files: Arc::clone(&self.files),
            dtype: self.index.dtype,
            vocab_size: self.index.vocab_size,
            segments: segments.into(),
            len: start,
            documents: first..first + self.index.documents(split) as usize,
        }
    }
}

/// A run of tokens of one split in one shard.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// Its first token's position in the split.
    start: usize,
    shard: usize,
    /// Its first token's position in the shard.
    offset: usize,
}

/// All tokens of a split, as if they were in one row.
#[derive(Clone, Debug)]
pub struct SplitTokens {
    files: Arc<Files>,
    dtype: DType,
    vocab_size: usize,
    segments: Arc<[Segment]>,
    len: usize,
    /// Which of the documents of all splits.
    documents: Range<usize>,
}

impl SplitTokens {
    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many documents there are.
    pub fn n_documents(&self) -> usize {
        self.documents.len()
    }

    /// Appends the tokens at some positions to `into`. Only they are read.
    ///
    /// # Errors
    ///
    /// When one is not in the vocabulary.
    ///
    /// # Panics
    ///
    /// When the range reaches beyond the end.
    pub fn read(&self, range: Range<usize>, into: &mut Vec<u32>) -> Result<(), ShardError> {
        assert!(range.end <= self.len, "{range:?} of {} tokens", self.len);
        let first = into.len();
        let mut position = range.start;
        let mut segment = self.segment_of(position);
        while position < range.end {
            let Segment {
                start,
                shard,
                offset,
            } = self.segments[segment];
            let next = self.segments.get(segment + 1);
            let end = range.end.min(next.map_or(self.len, |next| next.start));
            let size = self.dtype.size();
            let from = (offset + position - start) * size;
            let bytes = &self.files.shards[shard].bytes()[from..from + (end - position) * size];
            self.dtype.read(bytes, into);
            (position, segment) = (end, segment + 1);
        }
        let is_beyond = |&token: &u32| token as usize >= self.vocab_size;
        match into[first..].iter().position(is_beyond) {
            None => Ok(()),
            Some(place) => Err(ShardError::BeyondVocabulary {
                path: self.files.folder.clone(),
                position: range.start + place,
                token: into[first + place],
                vocab_size: self.vocab_size,
            }),
        }
    }

    fn segment_of(&self, position: usize) -> usize {
        let after = self
            .segments
            .partition_point(|segment| segment.start <= position);
        after.saturating_sub(1)
    }

    /// Where the document of this number begins.
    ///
    /// # Panics
    ///
    /// When there is no such document.
    pub fn document_start(&self, document: usize) -> usize {
        assert!(document < self.n_documents(), "document {document}");
        let at = 8 * (self.documents.start + document);
        let bytes = &self.files.documents.bytes()[at..at + 8];
        let bytes = bytes.try_into().expect("the slice has 8 bytes");
        u64::from_le_bytes(bytes) as usize
    }

    /// The tokens of the document of this number, with its end token.
    ///
    /// # Errors
    ///
    /// When one is not in the vocabulary.
    ///
    /// # Panics
    ///
    /// When there is no such document.
    pub fn document(&self, document: usize) -> Result<Vec<u32>, ShardError> {
        let start = self.document_start(document);
        let end = match document + 1 == self.n_documents() {
            true => self.len,
            false => self.document_start(document + 1),
        };
        let mut tokens = Vec::with_capacity(end - start);
        self.read(start..end, &mut tokens)?;
        Ok(tokens)
    }

    /// The positions in a range at which a document begins.
    pub fn document_starts(&self, range: Range<usize>) -> Vec<usize> {
        let first = self.first_document_from(range.start);
        (first..self.n_documents())
            .map(|document| self.document_start(document))
            .take_while(|start| *start < range.end)
            .collect()
    }

    /// The number of the first document that begins at or after a position.
    fn first_document_from(&self, position: usize) -> usize {
        let (mut low, mut high) = (0, self.n_documents());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.document_start(middle) < position {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }
}

/// Tokens in a row, wherever they are. Clones share them.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// In memory.
    Memory {
        /// The tokens.
        tokens: Arc<[u32]>,
        /// The positions at which documents begin, in order.
        documents: Arc<[usize]>,
    },
    /// On disk.
    Shards(SplitTokens),
}

impl From<Vec<u32>> for TokenSource {
    fn from(tokens: Vec<u32>) -> Self {
        Arc::<[u32]>::from(tokens).into()
    }
}

impl From<Arc<[u32]>> for TokenSource {
    /// One document.
    fn from(tokens: Arc<[u32]>) -> Self {
        Self::Memory {
            tokens,
            documents: [0].into(),
        }
    }
}

impl FromIterator<Vec<u32>> for TokenSource {
    /// One document after the other.
    fn from_iter<I: IntoIterator<Item = Vec<u32>>>(documents: I) -> Self {
        let (mut tokens, mut starts) = (Vec::new(), Vec::new());
        for document in documents {
            starts.push(tokens.len());
            tokens.extend(document);
        }
        Self::Memory {
            tokens: tokens.into(),
            documents: starts.into(),
        }
    }
}

impl From<SplitTokens> for TokenSource {
    fn from(tokens: SplitTokens) -> Self {
        Self::Shards(tokens)
    }
}

impl TokenSource {
    /// How many tokens there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Memory { tokens, .. } => tokens.len(),
            Self::Shards(tokens) => tokens.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the tokens at some positions to `into`.
    ///
    /// # Errors
    ///
    /// When a shard has a token that is not in the vocabulary.
    ///
    /// # Panics
    ///
    /// When the range reaches beyond the end.
    pub fn read(&self, range: Range<usize>, into: &mut Vec<u32>) -> Result<(), ShardError> {
        match self {
            Self::Memory { tokens, .. } => {
                into.extend_from_slice(&tokens[range]);
                Ok(())
            }
            Self::Shards(tokens) => tokens.read(range, into),
        }
    }

    /// The positions in a range at which a document begins: what is before one must not be seen from it, where
    /// documents are to be kept apart.
    pub fn document_starts(&self, range: Range<usize>) -> Vec<usize> {
        match self {
            Self::Memory { documents, .. } => {
                let first = documents.partition_point(|&start| start < range.start);
                let rest = documents[first..].iter().copied();
                rest.take_while(|&start| start < range.end).collect()
            }
            Self::Shards(tokens) => tokens.document_starts(range),
        }
    }
}
