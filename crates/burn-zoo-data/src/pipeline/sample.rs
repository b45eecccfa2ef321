//! A tokenizer from sources alone.

use super::PipelineError;
use crate::shards::uniform;
use crate::sources::SourceConfig;
use crate::tokenizer::{Tokenizer, TokenizerConfig};

/// Trains a tokenizer on documents that are drawn from all sources, of about `sample_bytes`, and not more.
///
/// # Errors
///
/// When a source cannot be read, or the tokenizer cannot be trained.
pub fn train_tokenizer(
    config: &TokenizerConfig,
    sources: &[SourceConfig],
    sample_bytes: u64,
) -> Result<Tokenizer, PipelineError> {
    let mut files = Vec::new();
    for source in sources {
        files.extend(source.files()?);
    }
    // As stored: of what is compressed, there is more than asked for, and the last is left out.
    let bytes: u64 = files.iter().map(|file| file.bytes()).sum();
    let share = sample_bytes as f64 / bytes.max(1) as f64;
    let (mut left, mut refused) = (sample_bytes, Ok(()));
    let documents = files.iter().flat_map(|file| {
        let (documents, error) = match file.documents() {
            Ok(documents) => (Some(documents), None),
            Err(error) => (None, Some(Err(error))),
        };
        documents.into_iter().flatten().chain(error)
    });
    let texts = documents
        .map_while(|document| document.map_err(|error| refused = Err(error)).ok())
        .map(|document| document.text)
        .filter(|text| uniform(text, 0) < share)
        .take_while(|text| {
            let rest = left.checked_sub(text.len() as u64);
            left = rest.unwrap_or(0);
            rest.is_some()
        });
    let tokenizer = Tokenizer::train_on(config, texts);
    refused?;
    Ok(tokenizer?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_no_more_than_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("letters.txt");
        // Each line has a character of its own.
        let lines: Vec<String> = ('\u{4e00}'..)
            .take(2000)
            .map(|letter| format!("{letter}a"))
            .collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let source = SourceConfig::new(path.display().to_string())
            .with_format(crate::sources::Format::Lines);
        let train = |bytes| {
            train_tokenizer(&TokenizerConfig::Char, std::slice::from_ref(&source), bytes).unwrap()
        };
        assert_eq!(train(1 << 20).vocab_size(), 2001);
        let some = train(2000).vocab_size();
        // Four bytes a line, and from all over the file.
        assert!((300..=501).contains(&some), "{some}");
        let sample = train(2000);
        assert!(
            ('\u{4e00}'..)
                .take(1000)
                .any(|letter| sample.token_id(&letter.to_string()).is_some())
        );
        assert!(
            ('\u{4e00}'..)
                .skip(1000)
                .take(1000)
                .any(|letter| sample.token_id(&letter.to_string()).is_some())
        );
    }
}
