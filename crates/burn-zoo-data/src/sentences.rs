//! A text as documents of sentences.

use std::ops::Range;
use std::sync::Arc;

use crate::tokenizer::{Tokenizer, TokenizerError};

/// The documents of a text, blank lines included: one ends where blank lines do. Together they are the text.
pub fn documents(text: &str) -> Vec<&str> {
    let (mut documents, mut start, mut end, mut after_blank) = (Vec::new(), 0, 0, false);
    for line in text.split_inclusive('\n') {
        let is_blank = line.trim().is_empty();
        if after_blank && !is_blank && !text[start..end].trim().is_empty() {
            documents.push(&text[start..end]);
            start = end;
        }
        end += line.len();
        after_blank = is_blank;
    }
    if start < text.len() {
        documents.push(&text[start..]);
    }
    documents
}

/// The sentences of a document: one ends with its line, and where white space follows `.`, `!`, `?` or
/// their full-width forms, which need none. White space around them is dropped.
pub fn sentences(document: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    for line in document.lines() {
        let mut start = 0;
        let mut characters = line.char_indices().peekable();
        while let Some((place, character)) = characters.next() {
            let ends = match character {
                '。' | '！' | '？' => true,
                '.' | '!' | '?' => characters
                    .peek()
                    .is_some_and(|(_, next)| next.is_whitespace()),
                _ => false,
            };
            if ends {
                let end = place + character.len_utf8();
                sentences.push(&line[start..end]);
                start = end;
            }
        }
        sentences.push(&line[start..]);
    }
    let trimmed = sentences.into_iter().map(str::trim);
    trimmed.filter(|sentence| !sentence.is_empty()).collect()
}

/// The tokens of sentences, and which documents they belong to. Clones share them.
#[derive(Clone, Debug)]
pub struct Sentences {
    tokens: Arc<[u32]>,
    /// Where each sentence begins among the tokens, and where the last ends.
    starts: Arc<[usize]>,
    /// The first sentence of each document, and how many sentences there are.
    documents: Arc<[usize]>,
}

impl Sentences {
    /// The tokens of each sentence of each document.
    pub fn new(documents: &[Vec<Vec<u32>>]) -> Self {
        let (mut tokens, mut starts, mut firsts) = (Vec::new(), vec![0], vec![0]);
        for sentences in documents {
            for sentence in sentences.iter().filter(|sentence| !sentence.is_empty()) {
                tokens.extend_from_slice(sentence);
                starts.push(tokens.len());
            }
            if starts.len() - 1 > firsts[firsts.len() - 1] {
                firsts.push(starts.len() - 1);
            }
        }
        Self {
            tokens: tokens.into(),
            starts: starts.into(),
            documents: firsts.into(),
        }
    }

    /// The sentences of a text's [`documents`].
    ///
    /// # Errors
    ///
    /// When a vocabulary without bytes lacks one of the characters.
    pub fn of_text(text: &str, tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        let documents: Vec<Vec<&str>> = documents(text).into_iter().map(sentences).collect();
        let mut tokens = tokenizer.encode_batch(&documents.concat())?.into_iter();
        let documents: Vec<Vec<Vec<u32>>> = documents
            .iter()
            .map(|sentences| tokens.by_ref().take(sentences.len()).collect())
            .collect();
        Ok(Self::new(&documents))
    }

    /// All tokens.
    pub fn tokens(&self) -> &Arc<[u32]> {
        &self.tokens
    }

    /// How many sentences there are.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of some sentences in a row.
    ///
    /// # Panics
    ///
    /// When there are not so many.
    pub fn read(&self, sentences: Range<usize>) -> &[u32] {
        &self.tokens[self.starts[sentences.start]..self.starts[sentences.end]]
    }

    /// The sentences of the document that a sentence belongs to.
    pub fn document(&self, sentence: usize) -> Range<usize> {
        let after = self.documents.partition_point(|&first| first <= sentence);
        self.documents[after - 1]..self.documents[after]
    }

    /// How many documents there are.
    pub fn n_documents(&self) -> usize {
        self.documents.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blank_lines_end_documents_and_punctuation_sentences() {
        let text = "\nOne. Two v1.5 is out!\nThree\n \n\nFour?  Five。Six\n";
        let documents = documents(text);
        assert_eq!(
            documents,
            [
                "\nOne. Two v1.5 is out!\nThree\n \n\n",
                "Four?  Five。Six\n"
            ]
        );
        assert_eq!(
            sentences(documents[0]),
            ["One.", "Two v1.5 is out!", "Three"]
        );
        assert_eq!(sentences(documents[1]), ["Four?", "Five。", "Six"]);
    }

    #[test]
    fn sentences_know_their_document() {
        let sentences = Sentences::new(&[vec![vec![1, 2], vec![], vec![3]], vec![], vec![vec![4]]]);
        assert_eq!((sentences.len(), sentences.n_documents()), (3, 2));
        assert_eq!(sentences.read(0..2), [1, 2, 3]);
        assert_eq!(sentences.read(2..3), [4]);
        let documents = [0, 1, 2].map(|sentence| sentences.document(sentence));
        assert_eq!(documents, [0..2, 0..2, 2..3]);
    }

    proptest! {
        #[test]
        fn documents_are_the_whole_text(text in "[a. \n]{0,40}") {
            prop_assert_eq!(documents(&text).concat(), text);
        }

        #[test]
        fn sentences_lose_only_white_space(text in "[ab.!\n。 ]{0,40}") {
            let squeeze = |text: &str| text.split_whitespace().collect::<String>();
            prop_assert_eq!(squeeze(&sentences(&text).concat()), squeeze(&text));
        }
    }
}
