//! Measures of predictions against labels: classes, numbers, entities and answers.
//!
//! A share of nothing, such as the precision of a class that was never predicted, is 0.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

/// What makes predictions impossible to measure.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MeasureError {
    /// Each label needs a prediction.
    #[error("there are {predictions} predictions for {labels} labels")]
    Lengths {
        /// How many labels there are.
        labels: usize,
        /// How many predictions there are.
        predictions: usize,
    },
    /// There is nothing to measure.
    #[error("there are no labels: give at least one")]
    Empty,
    /// A class is not among those named.
    #[error("row {row} (counted from 0) has class {class}, but there are only {n_classes}")]
    UnknownClass {
        /// Which label or prediction.
        row: usize,
        /// The class, counted from 0.
        class: usize,
        /// How many there are.
        n_classes: usize,
    },
}

fn check_lengths(labels: usize, predictions: usize) -> Result<(), MeasureError> {
    match (labels, predictions) {
        (0, 0) => Err(MeasureError::Empty),
        _ if labels != predictions => Err(MeasureError::Lengths {
            labels,
            predictions,
        }),
        _ => Ok(()),
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

/// Precision, recall, and their harmonic mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct FScore {
    /// The share of predictions that are right.
    pub precision: f64,
    /// The share of labels that were found.
    pub recall: f64,
    /// The harmonic mean of both.
    pub f1: f64,
}

impl FScore {
    /// From how many were right, how many were predicted, and how many there are.
    pub fn new(right: f64, predicted: f64, labelled: f64) -> Self {
        let (precision, recall) = (share(right, predicted), share(right, labelled));
        Self {
            precision,
            recall,
            f1: share(2.0 * precision * recall, precision + recall),
        }
    }

    /// The sum of scores with their weights, divided by the sum of the weights.
    pub(crate) fn mean(scores: impl Iterator<Item = (Self, f64)> + Clone) -> Self {
        let total = scores.clone().map(|(_, weight)| weight).sum();
        let mean = |value: fn(&Self) -> f64| {
            let weighted = scores.clone().map(|(score, weight)| value(&score) * weight);
            share(weighted.sum(), total)
        };
        Self {
            precision: mean(|score| score.precision),
            recall: mean(|score| score.recall),
            f1: mean(|score| score.f1),
        }
    }
}

/// How scores of classes become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Average {
    /// Those of class 1.
    Binary,
    /// The mean over classes that occur as a label or a prediction.
    Macro,
    /// All decisions counted together; for one class per row this is the accuracy.
    Micro,
    /// The mean over classes, each weighted by how many labels it has.
    Weighted,
}

/// How often each class was taken for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Confusion {
    /// Row `i`, column `j`: how many of class `i` were predicted as class `j`.
    pub counts: Vec<Vec<usize>>,
}

impl Confusion {
    /// Counts classes `0..n_classes`.
    ///
    /// # Errors
    ///
    /// When there are no labels, not as many predictions, or a class that is not below `n_classes`.
    pub fn new(
        labels: &[usize],
        predictions: &[usize],
        n_classes: usize,
    ) -> Result<Self, MeasureError> {
        check_lengths(labels.len(), predictions.len())?;
        let mut counts = vec![vec![0; n_classes]; n_classes];
        for (row, (&label, &prediction)) in labels.iter().zip(predictions).enumerate() {
            let class = label.max(prediction);
            if class >= n_classes {
                return Err(MeasureError::UnknownClass {
                    row,
                    class,
                    n_classes,
                });
            }
            counts[label][prediction] += 1;
        }
        Ok(Self { counts })
    }

    fn right(&self, class: usize) -> usize {
        self.counts[class][class]
    }

    fn labelled(&self, class: usize) -> usize {
        self.counts[class].iter().sum()
    }

    fn predicted(&self, class: usize) -> usize {
        self.counts.iter().map(|row| row[class]).sum()
    }

    fn total(&self) -> usize {
        self.counts.iter().flatten().sum()
    }

    fn n_right(&self) -> usize {
        (0..self.counts.len()).map(|class| self.right(class)).sum()
    }

    /// The share of right predictions.
    pub fn accuracy(&self) -> f64 {
        self.n_right() as f64 / self.total() as f64
    }

    /// The scores of one class against all others. Zeros for a class that is not there.
    pub fn class(&self, class: usize) -> FScore {
        if class >= self.counts.len() {
            return FScore::default();
        }
        let [right, predicted, labelled] = [
            self.right(class),
            self.predicted(class),
            self.labelled(class),
        ]
        .map(|n| n as f64);
        FScore::new(right, predicted, labelled)
    }

    /// The scores of all classes as one.
    pub fn average(&self, average: Average) -> FScore {
        let occurring = (0..self.counts.len())
            .filter(|&class| self.labelled(class) + self.predicted(class) > 0);
        match average {
            Average::Binary => self.class(1),
            Average::Macro => FScore::mean(occurring.map(|class| (self.class(class), 1.0))),
            Average::Weighted => FScore::mean(
                occurring.map(|class| (self.class(class), self.labelled(class) as f64)),
            ),
            Average::Micro => {
                let (right, total) = (self.n_right() as f64, self.total() as f64);
                FScore::new(right, total, total)
            }
        }
    }

    /// Matthews' correlation of labels and predictions, from -1 to 1, for any number of classes (Gorodkin
    /// 2004). 0 when either is always the same.
    pub fn matthews(&self) -> f64 {
        let total = self.total() as f64;
        let classes = || 0..self.counts.len();
        let sum = |value: &dyn Fn(usize) -> f64| classes().map(value).sum::<f64>();
        let labelled = |class| self.labelled(class) as f64;
        let predicted = |class| self.predicted(class) as f64;
        let together =
            self.n_right() as f64 * total - sum(&|class| labelled(class) * predicted(class));
        let spread = |count: &dyn Fn(usize) -> f64| {
            total * total - sum(&|class| count(class) * count(class))
        };
        share(together, (spread(&labelled) * spread(&predicted)).sqrt())
    }
}

/// Pearson's correlation of two lists of numbers, from -1 to 1; not a number when one of them is always
/// the same.
///
/// # Errors
///
/// When there are none, or not as many of one as of the other.
pub fn pearson(labels: &[f64], predictions: &[f64]) -> Result<f64, MeasureError> {
    check_lengths(labels.len(), predictions.len())?;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (a, b) = (mean(labels), mean(predictions));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in labels.iter().zip(predictions) {
        ab += (x - a) * (y - b);
        aa += (x - a) * (x - a);
        bb += (y - b) * (y - b);
    }
    Ok(ab / (aa.sqrt() * bb.sqrt()))
}

/// Spearman's correlation: Pearson's of the ranks, equal numbers sharing the mean of theirs.
///
/// # Errors
///
/// As [`pearson`].
pub fn spearman(labels: &[f64], predictions: &[f64]) -> Result<f64, MeasureError> {
    pearson(&ranks(labels), &ranks(predictions))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = first as f64 + (equal.len() - 1) as f64 / 2.0;
        equal.iter().for_each(|&index| ranks[index] = rank);
        first += equal.len();
    }
    ranks
}

/// A run of tokens with a name, such as a person.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entity {
    /// What it is, `PER` in the tag `B-PER`; `_` where tags have none.
    pub kind: String,
    /// Its first token.
    pub first: usize,
    /// Its last token.
    pub last: usize,
}

/// The entities of a sentence's tags: `B-` begins one, `I-` continues it, `O` is outside.
///
/// As `conlleval` and `seqeval` have it, an `I-` that continues nothing of its kind begins an entity
/// too, and the `E-` and `S-` of IOBES end one and are one.
pub fn entities<T: AsRef<str>>(tags: &[T]) -> Vec<Entity> {
    let mut found = Vec::new();
    let mut open: Option<Entity> = None;
    let mut is_closed = true;
    for (index, tag) in tags.iter().enumerate() {
        let tag = tag.as_ref();
        let letter = tag.chars().next().unwrap_or('O');
        let kind = tag.get(letter.len_utf8()..).unwrap_or_default();
        let kind = kind.strip_prefix('-').unwrap_or(kind);
        let kind = if kind.is_empty() { "_" } else { kind };
        let continues = open.as_ref().is_some_and(|entity| entity.kind == kind)
            && !is_closed
            && !matches!(letter, 'B' | 'S' | 'O');
        if !continues {
            found.extend(open.take());
            open = (letter != 'O').then(|| Entity {
                kind: kind.to_owned(),
                first: index,
                last: index,
            });
        }
        if let Some(entity) = &mut open {
            entity.last = index;
        }
        is_closed = matches!(letter, 'E' | 'S');
    }
    found.extend(open);
    found
}

/// How well entities were found: an entity is right when its kind and both ends are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EntityScores {
    /// All entities counted together.
    pub micro: FScore,
    /// The mean over kinds.
    pub macro_average: FScore,
    /// Each kind.
    pub kinds: BTreeMap<String, FScore>,
    /// The share of tags that are right.
    pub token_accuracy: f64,
}

/// Scores the tags of sentences.
///
/// # Errors
///
/// When there are no sentences, not as many predictions, or one of another length.
pub fn entity_scores<T: AsRef<str>>(
    labels: &[Vec<T>],
    predictions: &[Vec<T>],
) -> Result<EntityScores, MeasureError> {
    check_lengths(labels.len(), predictions.len())?;
    let mut counts: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    let (mut n_tags, mut n_right) = (0, 0);
    for (labels, predictions) in labels.iter().zip(predictions) {
        if labels.len() != predictions.len() {
            return Err(MeasureError::Lengths {
                labels: labels.len(),
                predictions: predictions.len(),
            });
        }
        n_tags += labels.len();
        let pairs = labels.iter().zip(predictions);
        n_right += pairs.filter(|(a, b)| a.as_ref() == b.as_ref()).count();
        let [labels, predictions] =
            [labels, predictions].map(|tags| BTreeSet::from_iter(entities(tags)));
        for (column, entities) in [
            (0, &labels & &predictions),
            (1, predictions),
            (2, labels.clone()),
        ] {
            for entity in entities {
                counts.entry(entity.kind).or_default()[column] += 1;
            }
        }
    }
    let score = |[right, predicted, labelled]: [usize; 3]| {
        FScore::new(right as f64, predicted as f64, labelled as f64)
    };
    let total = counts.values().fold([0; 3], |sum, count| {
        std::array::from_fn(|column| sum[column] + count[column])
    });
    let kinds: BTreeMap<String, FScore> = counts
        .into_iter()
        .map(|(kind, count)| (kind, score(count)))
        .collect();
    Ok(EntityScores {
        micro: score(total),
        macro_average: FScore::mean(kinds.values().map(|&score| (score, 1.0))),
        kinds,
        token_accuracy: share(n_right as f64, n_tags as f64),
    })
}

/// How well an answer agrees with one of those that are right.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AnswerScore {
    /// 1 if it is one of them, else 0.
    pub exact_match: f64,
    /// The highest F1 of the words in common.
    pub f1: f64,
}

/// Scores an answer as SQuAD 2.0 does (Rajpurkar et al. 2018, arXiv:1806.03822): case, ASCII
/// punctuation, the articles a, an and the, and whitespace do not count. A question without answers
/// asks for the empty one.
pub fn answer_score<T: AsRef<str>>(prediction: &str, answers: &[T]) -> AnswerScore {
    let prediction = answer_words(prediction);
    let mut best = AnswerScore {
        exact_match: 0.0,
        f1: 0.0,
    };
    let none = [""];
    let answers: Vec<&str> = match answers {
        [] => none.to_vec(),
        answers => answers.iter().map(AsRef::as_ref).collect(),
    };
    for answer in answers {
        let answer = answer_words(answer);
        let is_exact = f64::from(u8::from(answer == prediction));
        let f1 = match answer.is_empty() || prediction.is_empty() {
            true => is_exact,
            false => {
                let common = in_common(&prediction, &answer);
                FScore::new(common as f64, prediction.len() as f64, answer.len() as f64).f1
            }
        };
        best.exact_match = best.exact_match.max(is_exact);
        best.f1 = best.f1.max(f1);
    }
    best
}

fn answer_words(text: &str) -> Vec<String> {
    let text: String = text
        .to_lowercase()
        .chars()
        .filter(|character| !character.is_ascii_punctuation())
        .collect();
    let mut kept = String::new();
    // Runs of letters and digits, and what stands between them.
    let is_word = |character: &char| character.is_alphanumeric();
    let characters: Vec<char> = text.chars().collect();
    for run in characters.chunk_by(|a, b| is_word(a) == is_word(b)) {
        let run: String = run.iter().collect();
        match run.as_str() {
            "a" | "an" | "the" => kept.push(' '),
            run => kept.push_str(run),
        }
    }
    kept.split_whitespace().map(str::to_owned).collect()
}

/// How many items two lists share, each as often as both have it.
pub(crate) fn in_common<T: Eq + std::hash::Hash>(a: &[T], b: &[T]) -> usize {
    let mut counts: HashMap<&T, usize> = HashMap::new();
    for item in b {
        *counts.entry(item).or_default() += 1;
    }
    let mut common = 0;
    for item in a {
        if let Some(count) = counts.get_mut(item)
            && *count > 0
        {
            *count -= 1;
            common += 1;
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }

    fn assert_scores(found: FScore, [precision, recall, f1]: [f64; 3]) {
        assert_close(found.precision, precision);
        assert_close(found.recall, recall);
        assert_close(found.f1, f1);
    }

    /// scikit-learn 1.9.1: `precision_recall_fscore_support(labels, predictions, average=…)`,
    /// `accuracy_score`, `matthews_corrcoef`, `confusion_matrix`.
    #[test]
    fn classes_have_the_scores_of_scikit_learn() {
        let labels = [0, 1, 2, 2, 1, 0, 2, 1, 0, 2, 2, 1];
        let predictions = [0, 2, 2, 2, 1, 0, 1, 1, 2, 2, 0, 1];
        let confusion = Confusion::new(&labels, &predictions, 3).unwrap();
        assert_close(confusion.accuracy(), 2.0 / 3.0);
        assert_close(confusion.matthews(), 0.48936170212765956);
        assert_scores(
            confusion.average(Average::Macro),
            [0.6722222222222222, 0.6722222222222222, 0.6722222222222222],
        );
        assert_scores(confusion.average(Average::Micro), [2.0 / 3.0; 3]);
        assert_scores(confusion.average(Average::Weighted), [2.0 / 3.0; 3]);

        let labels = [1, 0, 1, 1, 0, 0, 1, 0, 1, 1];
        let predictions = [1, 0, 0, 1, 1, 0, 1, 0, 1, 0];
        let confusion = Confusion::new(&labels, &predictions, 2).unwrap();
        assert_eq!(confusion.counts, [[3, 1], [2, 4]]);
        assert_close(confusion.matthews(), 0.408248290463863);
        assert_scores(
            confusion.average(Average::Binary),
            [0.8, 0.6666666666666666, 0.7272727272727273],
        );

        // Class 0 is never predicted, class 3 never a label, class 4 neither.
        let confusion = Confusion::new(&[0, 1, 2, 2], &[1, 1, 2, 3], 5).unwrap();
        assert_close(confusion.matthews(), 0.4);
        assert_scores(
            confusion.average(Average::Macro),
            [0.375, 0.375, 0.3333333333333333],
        );
        assert_scores(confusion.average(Average::Weighted), [0.625, 0.5, 0.5]);
    }

    /// SciPy 1.17.1: `pearsonr` and `spearmanr`.
    #[test]
    fn numbers_have_the_correlations_of_scipy() {
        let labels = [1.0, 2.5, 2.5, 4.0, -1.0, 0.5];
        let predictions = [0.9, 2.0, 3.5, 3.5, 0.0, 1.0];
        assert_close(pearson(&labels, &predictions).unwrap(), 0.9255731604475252);
        assert_close(spearman(&labels, &predictions).unwrap(), 0.8970588235294118);
        assert!(pearson(&[1.0, 1.0], &[1.0, 2.0]).unwrap().is_nan());
    }

    /// seqeval 1.2.2: `precision_score`, `recall_score`, `f1_score` with both averages, `accuracy_score`.
    #[test]
    fn entities_have_the_scores_of_seqeval() {
        let tags = |rows: [&str; 3]| -> Vec<Vec<String>> {
            let row = |row: &str| row.split(' ').map(str::to_owned).collect();
            rows.into_iter().map(row).collect()
        };
        let labels = tags([
            "O B-PER I-PER O B-LOC",
            "B-ORG I-ORG O B-PER",
            "O I-LOC I-LOC B-LOC I-PER",
        ]);
        let predictions = tags([
            "O B-PER I-PER O B-LOC",
            "B-ORG O O I-PER",
            "B-PER I-LOC I-LOC I-LOC I-PER",
        ]);
        let scores = entity_scores(&labels, &predictions).unwrap();
        assert_scores(scores.micro, [0.5714285714285714; 3]);
        assert_scores(
            scores.macro_average,
            [0.4166666666666667, 0.4444444444444444, 0.41904761904761906],
        );
        assert_scores(scores.kinds["PER"], [0.75, 1.0, 0.8571428571428571]);
        assert_scores(scores.kinds["ORG"], [0.0; 3]);
        assert_close(scores.token_accuracy, 0.7142857142857143);
    }

    #[test]
    fn tags_end_and_begin_entities() {
        let found = |tags: &str| -> Vec<String> {
            let tags: Vec<&str> = tags.split(' ').collect();
            let entities = entities(&tags).into_iter();
            entities
                .map(|Entity { kind, first, last }| format!("{kind}{first}{last}"))
                .collect()
        };
        assert_eq!(found("B-A B-A I-A I-B O I-B"), ["A00", "A12", "B33", "B55"]);
        assert_eq!(found("S-A I-A E-A I-A"), ["A00", "A12", "A33"]);
        assert_eq!(found("B I O"), ["_01"]);
        assert_eq!(found("B-X-Y I-X-Y"), ["X-Y01"]);
    }

    #[test]
    fn answers_are_scored_as_squad_does() {
        let score = |prediction, answers: &[&str]| {
            let score = answer_score(prediction, answers);
            (score.exact_match, score.f1)
        };
        assert_eq!(score("The Cat.", &["dog", "cat"]), (1.0, 1.0));
        // 2 of 3 words are right, and 2 of 2 are found.
        assert_eq!(score("a big red cat", &["Red cat"]), (0.0, 0.8));
        assert_eq!(score("", &["cat"]), (0.0, 0.0));
        assert_eq!(score("the", &[]), (1.0, 1.0));
        // Punctuation goes before articles are looked for.
        assert_eq!(score("Theatre, th-e", &["theatre"]), (1.0, 1.0));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refusal = |labels: &[usize], predictions: &[usize]| {
            Confusion::new(labels, predictions, 2)
                .unwrap_err()
                .to_string()
        };
        assert!(refusal(&[], &[]).contains("no labels"));
        assert!(refusal(&[0, 1], &[0]).contains("1 predictions for 2 labels"));
        assert!(refusal(&[0, 1], &[0, 2]).contains("row 1 (counted from 0) has class 2"));
    }

    fn classes() -> impl Strategy<Value = Vec<(usize, usize)>> {
        prop::collection::vec((0usize..4, 0usize..4), 1..40)
    }

    proptest! {
        #[test]
        fn scores_do_not_depend_on_order_or_names(rows in classes(), shift in 1usize..4) {
            let confusion = |rows: &[(usize, usize)]| {
                let (labels, predictions): (Vec<usize>, Vec<usize>) = rows.iter().copied().unzip();
                Confusion::new(&labels, &predictions, 4).unwrap()
            };
            let mut other = rows.clone();
            other.reverse();
            for (label, prediction) in &mut other {
                (*label, *prediction) = ((*label + shift) % 4, (*prediction + shift) % 4);
            }
            let (one, other) = (confusion(&rows), confusion(&other));
            prop_assert!((one.accuracy() - other.accuracy()).abs() < 1e-12);
            prop_assert!((one.matthews() - other.matthews()).abs() < 1e-12);
            prop_assert!((-1.0..=1.0).contains(&one.matthews()));
            for average in [Average::Macro, Average::Micro, Average::Weighted] {
                let (one, other) = (one.average(average), other.average(average));
                prop_assert!((one.f1 - other.f1).abs() < 1e-12);
                prop_assert!((0.0..=1.0).contains(&one.f1));
            }
            prop_assert!((one.average(Average::Micro).f1 - one.accuracy()).abs() < 1e-12);
        }

        #[test]
        fn correlations_follow_from_order_and_scale(
            rows in prop::collection::vec((-9i32..9, -9i32..9), 2..30),
        ) {
            let (a, b): (Vec<f64>, Vec<f64>) =
                rows.iter().map(|&(a, b)| (f64::from(a), f64::from(b))).unzip();
            let scaled: Vec<f64> = a.iter().map(|x| 3.0 - 2.0 * x).collect();
            let curved: Vec<f64> = a.iter().map(|x| (x / 3.0).exp()).collect();
            let (one, scaled) = (pearson(&a, &b).unwrap(), pearson(&scaled, &b).unwrap());
            prop_assert!(one.is_nan() && scaled.is_nan() || (one + scaled).abs() <= 1e-9);
            let (one, curved) = (spearman(&a, &b).unwrap(), spearman(&curved, &b).unwrap());
            prop_assert!(one.is_nan() && curved.is_nan() || (one - curved).abs() <= 1e-9);
        }

        #[test]
        fn entities_are_apart_and_in_order(tags in prop::collection::vec("[BIOES]-[AB]|O", 0..20)) {
            let found = entities(&tags);
            for pair in found.windows(2) {
                prop_assert!(pair[0].last < pair[1].first);
            }
            let covered: usize = found.iter().map(|entity| entity.last + 1 - entity.first).sum();
            prop_assert_eq!(covered, tags.iter().filter(|tag| !tag.starts_with('O')).count());
        }
    }
}
