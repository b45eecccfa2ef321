//! Classification by a decoder that was never trained for it: a prompt of labelled examples, and the
//! likelihood of each label's words after the text (Brown et al. 2020, arXiv:2005.14165).

use burn_zoo_data::marked::Reading;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::evaluate::{
    score::{ScoreError, Scorer},
    softmax,
};

/// A text, or a pair of texts, with its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The text.
    pub reading: Reading,
    /// The number of its class.
    pub class: usize,
}

/// What is done about a model's preference for some words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Calibration {
    /// Nothing.
    #[default]
    None,
    /// Probabilities are divided by those after texts that say nothing: "N/A", the empty one and
    /// `[MASK]` (Zhao et al. 2021, arXiv:2102.09690).
    ContentFree,
}

/// How prompts are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FewShotConfig {
    /// An example, with `{text}` where its text stands, `{second}` where the second of a pair does, and `{label}`, at
    /// the end, where the words of its class stand.
    pub template: String,
    /// What stands between examples.
    pub separator: String,
    /// What stands before the first example.
    pub instruction: String,
    /// How many examples there are of each class.
    pub shots: usize,
    /// What is done about the model's preference for some words.
    pub calibration: Calibration,
    /// Decides which examples there are, and their order.
    pub seed: u64,
}

impl Default for FewShotConfig {
    fn default() -> Self {
        Self {
            template: "Text: {text}\nLabel: {label}".to_owned(),
            separator: "\n\n".to_owned(),
            instruction: String::new(),
            shots: 4,
            calibration: Calibration::None,
            seed: 0,
        }
    }
}

/// What makes prompts impossible.
#[derive(Debug, thiserror::Error)]
pub enum FewShotError {
    /// The template lacks one of its places.
    #[error("template `{template}`: {problem}")]
    Template {
        /// The template.
        template: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There is nothing to choose from.
    #[error("{0} classes were given: give the words of at least two")]
    TooFewClasses(usize),
    /// A class is rare.
    #[error("`{words}` has {found} examples, but {shots} are wanted of each class")]
    TooFewExamples {
        /// The words of the class.
        words: String,
        /// How many examples it has.
        found: usize,
        /// How many are wanted.
        shots: usize,
    },
    /// A prompt cannot be scored.
    #[error(transparent)]
    Score(#[from] ScoreError),
}

/// What was said of a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The likeliest class.
    pub class: usize,
    /// The probability of each class among all, calibrated where that was asked.
    pub probabilities: Vec<f64>,
}

/// A template without its label.
struct Template(Vec<Part>);

enum Part {
    Literal(String),
    /// The text, or the first of a pair.
    Text,
    /// The second of a pair.
    Second,
}

impl Template {
    /// Reads a template for texts that come in pairs, or do not.
    fn parse(template: &str, of_pairs: bool) -> Result<Self, FewShotError> {
        let problem = |problem| FewShotError::Template {
            template: template.to_owned(),
            problem,
        };
        let question = template
            .strip_suffix("{label}")
            .ok_or_else(|| problem("must end with {label}: it is what the model predicts"))?;
        let count = |place: &str| question.matches(place).count();
        match (count("{text}"), count("{second}"), count("{label}")) {
            (1, second, 0) if second == usize::from(of_pairs) => {}
            (0, _, _) => return Err(problem("must have {text} before {label}")),
            (_, 0, _) if of_pairs => {
                return Err(problem("must have {second}: texts come in pairs"));
            }
            (_, second, _) if !of_pairs && second > 0 => {
                return Err(problem("has {second}, but texts are single"));
            }
            _ => return Err(problem("must have each of its places once")),
        }
        let mut parts = Vec::new();
        let mut rest = question;
        while let Some((before, place, after)) = first_place(rest) {
            parts.extend([Part::Literal(before.to_owned()), place]);
            rest = after;
        }
        parts.push(Part::Literal(rest.to_owned()));
        Ok(Self(parts))
    }

    fn question(&self, reading: &Reading) -> String {
        let (text, second) = match reading {
            Reading::Text(text) => (text.clone(), ""),
            Reading::Words(words) => (words.join(" "), ""),
            Reading::Pair(text, second) => (text.clone(), second.as_str()),
        };
        let parts = self.0.iter().map(|part| match part {
            Part::Literal(literal) => literal,
            Part::Text => text.as_str(),
            Part::Second => second,
        });
        parts.collect()
    }
}

/// What stands before the first place of a template, the place, and what follows.
fn first_place(template: &str) -> Option<(&str, Part, &str)> {
    let places = [("{text}", Part::Text), ("{second}", Part::Second)];
    let found = places
        .into_iter()
        .filter_map(|(name, part)| Some((template.split_once(name)?, part)));
    let ((before, after), part) = found.min_by_key(|((before, _), _)| before.len())?;
    Some((before, part, after))
}

/// A decoder with examples of the classes it tells apart.
pub struct FewShot<'a> {
    scorer: &'a Scorer,
    template: Template,
    config: FewShotConfig,
    /// The words of each class.
    words: Vec<String>,
    /// The examples as they stand in a prompt.
    examples: Vec<String>,
    /// The probabilities of the classes after texts that say nothing; all 1 without calibration.
    prior: Vec<f64>,
}

impl<'a> FewShot<'a> {
    /// Chooses `config.shots` of the examples of each class. `words` are what the model reads and predicts
    /// for each class.
    ///
    /// # Errors
    ///
    /// When the template lacks a place, there are fewer than two classes, or a class has too few examples.
    ///
    /// # Panics
    ///
    /// When an example's class is not one of `words`.
    pub fn new(
        scorer: &'a Scorer,
        config: FewShotConfig,
        words: Vec<String>,
        examples: &[Example],
    ) -> Result<Self, FewShotError> {
        if words.len() < 2 {
            return Err(FewShotError::TooFewClasses(words.len()));
        }
        let is_pair = |example: &Example| matches!(example.reading, Reading::Pair(..));
        let of_pairs = examples.iter().any(is_pair);
        let template = Template::parse(&config.template, of_pairs)?;
        let chosen = choose(examples, &words, config.shots, config.seed)?;
        let examples = chosen
            .into_iter()
            .map(|example| template.question(&example.reading) + &words[example.class]);
        let mut few_shot = Self {
            scorer,
            examples: examples.collect(),
            prior: vec![1.0; words.len()],
            template,
            config,
            words,
        };
        if few_shot.config.calibration == Calibration::ContentFree {
            let free = ["N/A", "", "[MASK]"].map(|nothing| match of_pairs {
                true => Reading::Pair(nothing.to_owned(), nothing.to_owned()),
                false => Reading::Text(nothing.to_owned()),
            });
            let free = few_shot.classify(&free)?;
            for (class, prior) in few_shot.prior.iter_mut().enumerate() {
                let sum: f64 = free.iter().map(|found| found.probabilities[class]).sum();
                *prior = sum / free.len() as f64;
            }
        }
        Ok(few_shot)
    }

    /// The likeliest class of each text. Where a prompt is too long for the model, the first examples are
    /// left out, as few as possible.
    ///
    /// # Errors
    ///
    /// When a prompt cannot be encoded or scored.
    pub fn classify(&self, readings: &[Reading]) -> Result<Vec<Prediction>, FewShotError> {
        let mut pairs = Vec::with_capacity(readings.len() * self.words.len());
        for reading in readings {
            let prompt = self.prompt(reading)?;
            let pair = |words: &String| (prompt.clone(), words.clone());
            pairs.extend(self.words.iter().map(pair));
        }
        let scores = self.scorer.score_texts(&pairs)?;
        let predictions = scores.chunks(self.words.len()).map(|scores| {
            let corrected = scores
                .iter()
                .zip(&self.prior)
                .map(|(score, prior)| score.log_likelihood - prior.ln());
            let probabilities = softmax(corrected);
            let classes = 0..probabilities.len();
            let class = classes
                .reduce(
                    |best, class| match probabilities[class] > probabilities[best] {
                        true => class,
                        false => best,
                    },
                )
                .unwrap_or(0);
            Prediction {
                class,
                probabilities,
            }
        });
        Ok(predictions.collect())
    }

    /// The instruction, the examples that fit, and the question.
    fn prompt(&self, reading: &Reading) -> Result<String, ScoreError> {
        let question = self.template.question(reading);
        let FewShotConfig {
            separator,
            instruction,
            ..
        } = &self.config;
        let mut first = 0;
        loop {
            let examples = &self.examples[first..];
            let examples = examples
                .iter()
                .map(|example| format!("{example}{separator}"));
            let prompt = format!("{instruction}{}{question}", examples.collect::<String>());
            if first == self.examples.len() || self.fits(&prompt)? {
                return Ok(prompt);
            }
            first += 1;
        }
    }

    /// Whether the model can read a prompt with any of the labels but its last token, which is only
    /// predicted.
    fn fits(&self, prompt: &str) -> Result<bool, ScoreError> {
        let whole: Vec<String> = self
            .words
            .iter()
            .map(|words| format!("{prompt}{words}"))
            .collect();
        let tokens = self.scorer.tokenizer().encode_marked(&whole, usize::MAX)?;
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
        Ok(longest <= self.scorer.context_length() + 1)
    }
}

/// `shots` examples of each class, in a random order.
fn choose<'a>(
    examples: &'a [Example],
    words: &[String],
    shots: usize,
    seed: u64,
) -> Result<Vec<&'a Example>, FewShotError> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut chosen = Vec::with_capacity(shots * words.len());
    for (class, words) in words.iter().enumerate() {
        let of_class = examples.iter().filter(|example| example.class == class);
        let mut of_class: Vec<&Example> = of_class.collect();
        if of_class.len() < shots {
            return Err(FewShotError::TooFewExamples {
                words: words.clone(),
                found: of_class.len(),
                shots,
            });
        }
        of_class.shuffle(&mut random);
        chosen.extend_from_slice(&of_class[..shots]);
    }
    chosen.shuffle(&mut random);
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn examples(classes: &[usize]) -> Vec<Example> {
        let example = |(index, &class): (usize, &usize)| Example {
            reading: Reading::Text(format!("text {index}")),
            class,
        };
        classes.iter().enumerate().map(example).collect()
    }

    fn words(n_classes: usize) -> Vec<String> {
        (0..n_classes)
            .map(|class| format!("word {class}"))
            .collect()
    }

    #[test]
    fn a_template_has_a_text_and_ends_with_a_label() {
        for (template, of_pairs, expected) in [
            ("{text} {label}.", false, "must end with {label}"),
            ("text: {label}", false, "must have {text}"),
            ("{text} {text} {label}", false, "once"),
            ("{text} {label} {label}", false, "once"),
            ("{text} {label}", true, "must have {second}"),
            ("{second} {text} {label}", false, "has {second}"),
            ("{text} {second} {second} {label}", true, "once"),
        ] {
            let error = Template::parse(template, of_pairs)
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
        let template = Template::parse("Q: {text}\nA: {label}", false).unwrap();
        let question = template.question(&Reading::Text("why {second}?".to_owned()));
        assert_eq!(question, "Q: why {second}?\nA: ");
        let template = Template::parse("{second}, for {text}? {label}", true).unwrap();
        let pair = Reading::Pair("it rains".to_owned(), "it is wet".to_owned());
        assert_eq!(template.question(&pair), "it is wet, for it rains? ");
    }

    #[test]
    fn a_rare_class_is_named() {
        let error = choose(&examples(&[0, 0, 1]), &words(2), 2, 0).unwrap_err();
        let expected = "`word 1` has 1 examples, but 2 are wanted of each class";
        assert_eq!(error.to_string(), expected);
    }

    proptest! {
        #[test]
        fn examples_are_balanced_different_and_follow_from_the_seed(
            classes in prop::collection::vec(0usize..3, 20..40),
            shots in 0usize..3,
            seed: u64,
        ) {
            let examples = examples(&classes);
            let counts = [0, 1, 2].map(|class| classes.iter().filter(|&&c| c == class).count());
            prop_assume!(counts.iter().all(|&count| count >= shots));
            let chosen = choose(&examples, &words(3), shots, seed).unwrap();
            for class in 0..3 {
                prop_assert_eq!(chosen.iter().filter(|e| e.class == class).count(), shots);
            }
            let mut texts: Vec<String> = chosen.iter().map(|e| format!("{:?}", e.reading)).collect();
            texts.sort_unstable();
            texts.dedup();
            prop_assert_eq!(texts.len(), 3 * shots);
            let again = choose(&examples, &words(3), shots, seed).unwrap();
            prop_assert_eq!(chosen, again);
        }
    }
}
