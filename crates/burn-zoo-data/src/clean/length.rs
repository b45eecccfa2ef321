//! Limits of a document's length.

use serde::{Deserialize, Serialize};

use super::scan::{Text, count_characters};
use super::{Outcome, Problem};

/// The shortest and the longest document that is kept. Words are separated by white space. What
/// is left out is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LengthConfig {
    /// At least so many characters.
    pub min_characters: Option<usize>,
    /// At most so many characters.
    pub max_characters: Option<usize>,
    /// At least so many words.
    pub min_words: Option<usize>,
    /// At most so many words.
    pub max_words: Option<usize>,
}

impl LengthConfig {
    /// The key of limits that no document can meet.
    pub(super) fn check(&self) -> Result<(), (&'static str, Problem)> {
        let limits = [
            ("min_characters", self.min_characters, self.max_characters),
            ("min_words", self.min_words, self.max_words),
        ];
        for (key, min, max) in limits {
            if let (Some(min), Some(max)) = (min, max)
                && min > max
            {
                return Err((key, Problem::above(min, max)));
            }
        }
        Ok(())
    }

    pub(super) fn judge(&self, text: &Text) -> Outcome {
        let characters = || count_characters(text.text);
        let words = || text.words().len();
        outside(
            self.min_characters,
            self.max_characters,
            characters,
            "characters",
        )
        .or_else(|| outside(self.min_words, self.max_words, words, "words"))
        .map_or(Outcome::Keep, Outcome::Drop)
    }
}

/// Why the count is not within the limits; it is counted where there are any.
fn outside(
    min: Option<usize>,
    max: Option<usize>,
    count: impl Fn() -> usize,
    unit: &str,
) -> Option<String> {
    if min.is_none() && max.is_none() {
        return None;
    }
    let count = count();
    if let Some(min) = min.filter(|&min| count < min) {
        return Some(format!("{count} {unit}, fewer than {min}"));
    }
    let max = max.filter(|&max| count > max)?;
    Some(format!("{count} {unit}, more than {max}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_inclusive_and_in_characters() {
        let limits = LengthConfig {
            min_characters: Some(3),
            max_words: Some(2),
            ..LengthConfig::default()
        };
        let drop = |why: &str| Outcome::Drop(why.to_owned());
        assert_eq!(limits.judge(&Text::new("été")), Outcome::Keep);
        assert_eq!(
            limits.judge(&Text::new("ét")),
            drop("2 characters, fewer than 3")
        );
        assert_eq!(limits.judge(&Text::new("a b")), Outcome::Keep);
        assert_eq!(
            limits.judge(&Text::new("a b\nc")),
            drop("3 words, more than 2")
        );
        assert_eq!(LengthConfig::default().judge(&Text::new("")), Outcome::Keep);
    }
}
