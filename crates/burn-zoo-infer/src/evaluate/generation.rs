//! BLEU and ROUGE: how much of a reference's wording a generated text has.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::classification::{FScore, MeasureError, in_common};

/// The longest n-grams that BLEU counts.
const BLEU_ORDER: usize = 4;

/// BLEU of a corpus (Papineni et al. 2002).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bleu {
    /// The score, from 0 to 100.
    pub score: f64,
    /// The share of n-grams of 1 to 4 tokens that a reference has too, in percent.
    pub precisions: [f64; BLEU_ORDER],
    /// What the score is multiplied by because texts are shorter than their references.
    pub brevity_penalty: f64,
    /// How many tokens the texts have.
    pub length: usize,
    /// How many tokens the references have, of each text's the one closest in length.
    pub reference_length: usize,
}

/// The BLEU of texts, each with one or more references, with the defaults of sacreBLEU (Post 2018,
/// arXiv:1804.08771): tokens of `mteval-v13a`, case kept, n-grams without a match counted as half, a
/// quarter, … of one ("exp" smoothing).
///
/// # Errors
///
/// When there are no texts, or not as many lists of references.
pub fn bleu<T: AsRef<str>>(texts: &[T], references: &[Vec<T>]) -> Result<Bleu, MeasureError> {
    check_lengths(texts.len(), references.len())?;
    let mut right = [0; BLEU_ORDER];
    let mut total = [0; BLEU_ORDER];
    let (mut length, mut reference_length) = (0, 0);
    for (text, references) in texts.iter().zip(references) {
        let text = tokens_13a(text.as_ref());
        let references: Vec<Vec<String>> = references
            .iter()
            .map(|reference| tokens_13a(reference.as_ref()))
            .collect();
        length += text.len();
        let lengths = references.iter().map(Vec::len);
        let closest = lengths.min_by_key(|&length| (length.abs_diff(text.len()), length));
        reference_length += closest.unwrap_or(0);
        for n in 1..=BLEU_ORDER {
            total[n - 1] += text.windows(n).len();
            let mut allowed: HashMap<&[String], usize> = HashMap::new();
            for reference in &references {
                for (ngram, count) in counts(reference.windows(n)) {
                    let highest = allowed.entry(ngram).or_default();
                    *highest = count.max(*highest);
                }
            }
            let found = counts(text.windows(n)).into_iter();
            right[n - 1] += found
                .map(|(ngram, count)| count.min(allowed.get(ngram).copied().unwrap_or(0)))
                .sum::<usize>();
        }
    }
    Ok(bleu_of_counts(right, total, length, reference_length))
}

fn bleu_of_counts(
    right: [usize; BLEU_ORDER],
    total: [usize; BLEU_ORDER],
    length: usize,
    reference_length: usize,
) -> Bleu {
    let brevity_penalty = match length {
        0 if reference_length > 0 => 0.0,
        length if length < reference_length => {
            (1.0 - reference_length as f64 / length as f64).exp()
        }
        _ => 1.0,
    };
    let mut precisions = [0.0; BLEU_ORDER];
    if right != [0; BLEU_ORDER] {
        let mut smoothed = 1.0;
        for n in 0..BLEU_ORDER {
            if total[n] == 0 {
                break;
            }
            let matches = match right[n] {
                0 => {
                    smoothed /= 2.0;
                    smoothed
                }
                right => right as f64,
            };
            precisions[n] = 100.0 * matches / total[n] as f64;
        }
    }
    let mean_log = precisions.map(f64::ln).iter().sum::<f64>() / BLEU_ORDER as f64;
    Bleu {
        score: brevity_penalty * mean_log.exp(),
        precisions,
        brevity_penalty,
        length,
        reference_length,
    }
}

fn check_lengths(texts: usize, references: usize) -> Result<(), MeasureError> {
    match (texts, references) {
        (0, 0) => Err(MeasureError::Empty),
        _ if texts != references => Err(MeasureError::Lengths {
            labels: references,
            predictions: texts,
        }),
        _ => Ok(()),
    }
}

fn counts<'a>(ngrams: impl Iterator<Item = &'a [String]>) -> HashMap<&'a [String], usize> {
    let mut counts = HashMap::new();
    for ngram in ngrams {
        *counts.entry(ngram).or_default() += 1;
    }
    counts
}

/// Words and punctuation as `mteval-v13a.pl` separates them, by the rules that sacreBLEU's `13a` has.
fn tokens_13a(text: &str) -> Vec<String> {
    let text = text
        .trim_end_matches(is_space)
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ")
        .replace("&quot;", "\"")
        .replace("&amp;", "&")
        .replace("&lt;", "<")
        .replace("&gt;", ">");
    let mut text: Vec<char> = format!(" {text} ").chars().collect();
    let is_symbol =
        |c: char| matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/');
    text = text
        .into_iter()
        .flat_map(|c| match is_symbol(c) {
            true => vec![' ', c, ' '],
            false => vec![c],
        })
        .collect();
    let is_digit = |c: char| c.is_ascii_digit();
    let is_point = |c: char| matches!(c, '.' | ',');
    // A point or comma is part of a number between digits; a dash is not after one.
    text = replace_pairs(
        &text,
        |a, b| !is_digit(a) && is_point(b),
        |a, b| [a, ' ', b, ' '],
    );
    text = replace_pairs(
        &text,
        |a, b| is_point(a) && !is_digit(b),
        |a, b| [' ', a, ' ', b],
    );
    text = replace_pairs(
        &text,
        |a, b| is_digit(a) && b == '-',
        |a, b| [a, ' ', b, ' '],
    );
    let text = String::from_iter(text);
    let words = text.split(is_space).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// Replaces pairs of characters that match, from left to right, none overlapping another.
fn replace_pairs(
    text: &[char],
    matches: impl Fn(char, char) -> bool,
    replacement: impl Fn(char, char) -> [char; 4],
) -> Vec<char> {
    let mut replaced = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        match rest {
            [a, b, after @ ..] if matches(*a, *b) => {
                replaced.extend(replacement(*a, *b));
                rest = after;
            }
            [a, after @ ..] => {
                replaced.push(*a);
                rest = after;
            }
            [] => return replaced,
        }
    }
}

/// What Python's `str.split` takes for whitespace.
fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\x1c'..='\x1f')
}

/// ROUGE (Lin 2004): precision, recall and F1, from 0 to 1, of what a text and its reference share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rouge {
    /// Words.
    pub rouge1: FScore,
    /// Pairs of words.
    pub rouge2: FScore,
    /// The longest common subsequence of words.
    #[serde(rename = "rougeL")]
    pub rouge_l: FScore,
    /// The words of a reference's lines that are part of a longest common subsequence with a line of the
    /// text.
    #[serde(rename = "rougeLsum")]
    pub rouge_l_sum: FScore,
}

/// The ROUGE of one text, as Google's `rouge_score` computes it without stemming: words are runs of
/// `a-z` and `0-9` after lowercasing.
pub fn rouge(text: &str, reference: &str) -> Rouge {
    let [words, reference_words] = [text, reference].map(rouge_words);
    let ngrams = |n: usize| {
        let [found, wanted]: [Vec<&[String]>; 2] =
            [&words, &reference_words].map(|words| words.windows(n).collect());
        FScore::new(
            in_common(&found, &wanted) as f64,
            found.len() as f64,
            wanted.len() as f64,
        )
    };
    let common = common_subsequence(&reference_words, &words).len();
    Rouge {
        rouge1: ngrams(1),
        rouge2: ngrams(2),
        rouge_l: FScore::new(
            common as f64,
            words.len() as f64,
            reference_words.len() as f64,
        ),
        rouge_l_sum: summary_level(text, reference),
    }
}

/// The mean ROUGE of texts, each with one or more references, of which the one with the highest F1 counts.
///
/// # Errors
///
/// When there are no texts, or not as many lists of references.
pub fn mean_rouge<T: AsRef<str>>(
    texts: &[T],
    references: &[Vec<T>],
) -> Result<Rouge, MeasureError> {
    check_lengths(texts.len(), references.len())?;
    let pairs = texts.iter().zip(references);
    let scores: Vec<Vec<Rouge>> = pairs
        .map(|(text, references)| {
            let references = references.iter();
            references
                .map(|reference| rouge(text.as_ref(), reference.as_ref()))
                .collect()
        })
        .collect();
    let mean = |part: fn(&Rouge) -> FScore| {
        let best = |scores: &Vec<Rouge>| {
            let better = |a: FScore, b: FScore| if b.f1 > a.f1 { b } else { a };
            scores.iter().map(part).reduce(better).unwrap_or_default()
        };
        FScore::mean(scores.iter().map(|scores| (best(scores), 1.0)))
    };
    Ok(Rouge {
        rouge1: mean(|score| score.rouge1),
        rouge2: mean(|score| score.rouge2),
        rouge_l: mean(|score| score.rouge_l),
        rouge_l_sum: mean(|score| score.rouge_l_sum),
    })
}

fn rouge_words(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !matches!(c, 'a'..='z' | '0'..='9'));
    words
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Indices into `reference` of a longest common subsequence, in rising order; of several, the one that
/// `rouge_score` finds.
fn common_subsequence(reference: &[String], words: &[String]) -> Vec<usize> {
    let (rows, columns) = (reference.len(), words.len());
    let mut longest = vec![vec![0u32; columns + 1]; rows + 1];
    for i in 1..=rows {
        for j in 1..=columns {
            longest[i][j] = match reference[i - 1] == words[j - 1] {
                true => longest[i - 1][j - 1] + 1,
                false => longest[i - 1][j].max(longest[i][j - 1]),
            };
        }
    }
    let (mut i, mut j) = (rows, columns);
    let mut common = Vec::new();
    while i > 0 && j > 0 {
        if reference[i - 1] == words[j - 1] {
            common.push(i - 1);
            (i, j) = (i - 1, j - 1);
        } else if longest[i][j - 1] > longest[i - 1][j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    common.reverse();
    common
}

fn summary_level(text: &str, reference: &str) -> FScore {
    let lines = |text: &str| -> Vec<Vec<String>> { text.split('\n').map(rouge_words).collect() };
    let (lines, reference_lines) = (lines(text), lines(reference));
    let n_words = |lines: &[Vec<String>]| lines.iter().map(Vec::len).sum::<usize>() as f64;
    let mut shared: Vec<&String> = Vec::new();
    for reference in &reference_lines {
        let indices: HashSet<usize> = lines
            .iter()
            .flat_map(|line| common_subsequence(reference, line))
            .collect();
        shared.extend(indices.into_iter().map(|index| &reference[index]));
    }
    // A word counts as often as the text has it, however many lines found it.
    let available: Vec<&String> = lines.iter().flatten().collect();
    let hits = in_common(&shared, &available) as f64;
    FScore::new(hits, n_words(&lines), n_words(&reference_lines))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }

    /// sacreBLEU 2.6.0: `Tokenizer13a()(text.rstrip()).split()`.
    #[test]
    fn tokens_are_those_of_sacrebleu() {
        for (text, expected) in [
            (
                "Hello, world. It costs $3.50, i.e. 1,000-2 \"units\" (approx.)!",
                "Hello , world . It costs $ 3.50 , i . e . 1,000 - 2 \" units \" ( approx . ) !",
            ),
            ("a,,b ..c 3.x x.3 -5 5-", "a , , b . . c 3 . x x . 3 -5 5 -"),
            (
                "&quot;A &amp; B&quot; &lt;tag&gt; <skipped>end-\nline\nnext",
                "\" A & B \" < tag > endline next",
            ),
            ("«Œuvre» 你好。don't", "«Œuvre» 你好。don't"),
            ("x\u{1c}y\u{a0}z 1.,2", "x y z 1 . , 2"),
            (".", "."),
        ] {
            assert_eq!(tokens_13a(text).join(" "), expected);
        }
    }

    /// sacreBLEU 2.6.0: `corpus_bleu(texts, references)`: `score`, `precisions`, `bp`, `sys_len`,
    /// `ref_len`.
    #[test]
    fn bleu_is_that_of_sacrebleu() {
        let texts = [
            "The cat sat on the mat.",
            "There is a dog in the garden, I think.",
            "It costs 3.50 euros",
        ];
        let references = [
            vec!["The cat is on the mat.", "A cat sat on a mat."],
            vec!["A dog is in the garden.", "In the garden there is a dog."],
            vec!["It costs 3.5 euros.", "The price is 3.50 euros."],
        ];
        let check = |found: Bleu, score, precisions: [f64; 4], penalty, lengths| {
            assert_close(found.score, score);
            for (found, expected) in found.precisions.into_iter().zip(precisions) {
                assert_close(found, expected);
            }
            assert_close(found.brevity_penalty, penalty);
            assert_eq!((found.length, found.reference_length), lengths);
        };
        check(
            bleu(&texts, &references).unwrap(),
            33.38458905492313,
            [
                81.81818181818181,
                63.1578947368421,
                31.25,
                7.6923076923076925,
            ],
            1.0,
            (22, 20),
        );
        let first = references.map(|references| references[..1].to_vec());
        check(
            bleu(&texts, &first).unwrap(),
            24.533964598136283,
            [
                68.18181818181819,
                36.8421052631579,
                18.75,
                7.6923076923076925,
            ],
            1.0,
            (22, 19),
        );
        check(
            bleu(&["a b c d x"], &[vec!["a b e f c d y z"]]).unwrap(),
            16.58165975077607,
            [80.0, 50.0, 16.666666666666668, 12.5],
            0.5488116360940264,
            (5, 8),
        );
        check(
            bleu(&["a b"], &[vec!["a b c"]]).unwrap(),
            0.0,
            [100.0, 100.0, 0.0, 0.0],
            0.6065306597126334,
            (2, 3),
        );
        assert_eq!(bleu(&[""], &[vec!["a"]]).unwrap().score, 0.0);
        assert_eq!(bleu::<&str>(&[], &[]), Err(MeasureError::Empty));
    }

    /// rouge_score 0.1.2: `RougeScorer([...]).score(reference, text)`.
    #[test]
    fn rouge_is_that_of_rouge_score() {
        let scores = |precision, recall, f1| FScore {
            precision,
            recall,
            f1,
        };
        let same = |value| scores(value, value, value);
        for (reference, text, expected) in [
            (
                "The quick brown fox\njumps over the lazy dog.\nIt was quick.",
                "A quick fox jumped.\nThe dog was lazy, the brown dog.\n\nquick quick",
                [
                    scores(0.6923076923076923, 0.75, 0.72),
                    same(0.0),
                    scores(0.46153846153846156, 0.5, 0.48),
                    scores(0.6923076923076923, 0.75, 0.72),
                ],
            ),
            (
                "police killed the gunman",
                "the gunman kill police",
                [same(0.75), same(1.0 / 3.0), same(0.5), same(0.5)],
            ),
            (
                "naïve Café 2021",
                "Naïve café, 2021 2021",
                [
                    scores(0.8, 1.0, 0.888888888888889),
                    scores(0.75, 1.0, 0.8571428571428571),
                    scores(0.8, 1.0, 0.888888888888889),
                    scores(0.8, 1.0, 0.888888888888889),
                ],
            ),
            ("", "a", [same(0.0); 4]),
        ] {
            let found = rouge(text, reference);
            let found = [found.rouge1, found.rouge2, found.rouge_l, found.rouge_l_sum];
            for (found, expected) in found.into_iter().zip(expected) {
                assert_close(found.precision, expected.precision);
                assert_close(found.recall, expected.recall);
                assert_close(found.f1, expected.f1);
            }
        }
    }

    proptest! {
        #[test]
        fn a_text_is_its_own_best_reference(text in "[a-d]{1,3}( [a-d]{1,3}){3,12}", other in "[a-d ]{0,20}") {
            let own = bleu(&[&text], &[vec![&text]]).unwrap();
            prop_assert!((own.score - 100.0).abs() < 1e-9);
            let foreign = bleu(&[&text], &[vec![&other]]).unwrap();
            prop_assert!((0.0..=100.0 + 1e-9).contains(&foreign.score));
            prop_assert_eq!(rouge(&text, &text).rouge_l.f1, 1.0);
            // Precision of one is recall of the other.
            let (one, back) = (rouge(&text, &other), rouge(&other, &text));
            prop_assert!((one.rouge2.precision - back.rouge2.recall).abs() < 1e-12);
            prop_assert!((one.rouge_l.f1 - back.rouge_l.f1).abs() < 1e-12);
        }
    }
}
