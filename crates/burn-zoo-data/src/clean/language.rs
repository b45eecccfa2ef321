//! Keeping the documents of some languages.

use whatlang::{Detector, Lang};

use super::hash::HashMap;
use super::{Outcome, Problem};

/// How many bytes of a text are looked at: enough for the detector to be certain, and few enough
/// for it not to take longer than all other steps together.
const EXCERPT: usize = 600;

/// A language by its codes.
pub(super) struct Code {
    /// ISO 639-1.
    pub part1: &'static str,
    /// ISO 639-3, as the detector has it.
    pub part3: &'static str,
}

/// The languages that the detector tells apart.
#[rustfmt::skip]
const CODES: [Code; 70] = {
    const fn code(part1: &'static str, part3: &'static str) -> Code {
        Code { part1, part3 }
    }
    [
        code("af", "afr"), code("ak", "aka"), code("am", "amh"), code("ar", "ara"), code("az", "aze"),
        code("be", "bel"), code("bn", "ben"), code("bg", "bul"), code("ca", "cat"), code("cs", "ces"),
        code("zh", "cmn"), code("cy", "cym"), code("da", "dan"), code("de", "deu"), code("el", "ell"),
        code("en", "eng"), code("eo", "epo"), code("et", "est"), code("fi", "fin"), code("fr", "fra"),
        code("gu", "guj"), code("he", "heb"), code("hi", "hin"), code("hr", "hrv"), code("hu", "hun"),
        code("hy", "hye"), code("id", "ind"), code("it", "ita"), code("jv", "jav"), code("ja", "jpn"),
        code("kn", "kan"), code("ka", "kat"), code("km", "khm"), code("ko", "kor"), code("la", "lat"),
        code("lv", "lav"), code("lt", "lit"), code("ml", "mal"), code("mr", "mar"), code("mk", "mkd"),
        code("my", "mya"), code("ne", "nep"), code("nl", "nld"), code("no", "nob"), code("or", "ori"),
        code("pa", "pan"), code("fa", "pes"), code("pl", "pol"), code("pt", "por"), code("ro", "ron"),
        code("ru", "rus"), code("si", "sin"), code("sk", "slk"), code("sl", "slv"), code("sn", "sna"),
        code("es", "spa"), code("sr", "srp"), code("sv", "swe"), code("ta", "tam"), code("te", "tel"),
        code("tl", "tgl"), code("th", "tha"), code("tk", "tuk"), code("tr", "tur"), code("uk", "ukr"),
        code("ur", "urd"), code("uz", "uzb"), code("vi", "vie"), code("yi", "yid"), code("zu", "zul"),
    ]
};

impl Code {
    /// Of a language by either code.
    pub fn find(code: &str) -> Option<&'static Self> {
        CODES
            .iter()
            .find(|known| known.part1 == code || known.part3 == code)
    }

    fn lang(&self) -> Option<Lang> {
        Lang::from_code(self.part3)
    }
}

/// Languages to keep.
///
/// The detector compares a text with every language that it knows, which takes as long for a short
/// text as for a long one. Most texts are certain before: a third of their words are stop words of
/// one language, and not half as many of any other.
pub(super) struct Languages {
    keep: Vec<Lang>,
    min_confidence: f64,
    detector: Detector,
    /// The languages that have the word among their stop words, a bit for each.
    stop_words: HashMap<&'static str, u128>,
}

impl Languages {
    /// By their ISO 639-1 or 639-3 codes.
    pub fn new(keep: &[String], min_confidence: f64) -> Result<Self, Problem> {
        let lang = |code: &String| {
            let known = Code::find(code).and_then(Code::lang);
            known.ok_or_else(|| Problem::UnknownLanguage {
                language: code.clone(),
                known: CODES.map(|code| code.part1).join(", "),
            })
        };
        if keep.is_empty() {
            return Err(Problem::Empty);
        }
        let mut stop_words: HashMap<_, u128> = HashMap::default();
        for (bit, language) in stop_words::available_languages().iter().enumerate() {
            for word in stop_words::lookup(language).into_iter().flatten() {
                *stop_words.entry(*word).or_default() |= 1 << bit;
            }
        }
        Ok(Self {
            keep: keep.iter().map(lang).collect::<Result<_, _>>()?,
            min_confidence,
            detector: Detector::new(),
            stop_words,
        })
    }

    /// Drops a text whose language is another, or not certain enough.
    pub fn check(&self, text: &str) -> Outcome {
        let excerpt = middle(text, EXCERPT);
        let certain = self.by_stop_words(excerpt).map(|lang| (lang, 1.0));
        let detect = || self.detector.detect(excerpt);
        match certain.or_else(|| detect().map(|found| (found.lang(), found.confidence()))) {
            None => Outcome::Drop("no language found".to_owned()),
            Some((lang, _)) if !self.keep.contains(&lang) => {
                Outcome::Drop(format!("the language is {}", lang.eng_name()))
            }
            Some((lang, confidence)) if confidence < self.min_confidence => Outcome::Drop(format!(
                "{} with a confidence of {confidence:.2}, less than {}",
                lang.eng_name(),
                self.min_confidence
            )),
            Some(_) => Outcome::Keep,
        }
    }

    /// The language whose stop words leave no doubt.
    fn by_stop_words(&self, excerpt: &str) -> Option<Lang> {
        let lower = excerpt.to_lowercase();
        let (mut words, mut votes) = (0usize, [0usize; u128::BITS as usize]);
        for word in lower
            .split(|c: char| !c.is_alphabetic())
            .filter(|word| !word.is_empty())
        {
            words += 1;
            let mut languages = self.stop_words.get(word).copied().unwrap_or(0);
            while languages != 0 {
                votes[languages.trailing_zeros() as usize] += 1;
                languages &= languages - 1;
            }
        }
        let (language, &most) = votes.iter().enumerate().max_by_key(|(_, votes)| **votes)?;
        let is_certain = most >= 10
            && 3 * most >= words
            && votes.iter().filter(|&&votes| 2 * votes > most).count() == 1;
        let code = stop_words::available_languages().get(language)?;
        Code::find(code).filter(|_| is_certain)?.lang()
    }
}

/// At most `bytes` of the text from its middle: titles and footers are often in another language.
fn middle(text: &str, bytes: usize) -> &str {
    let start = text.ceil_char_boundary(text.len().saturating_sub(bytes) / 2);
    &text[start..text.floor_char_boundary(start + bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_language_of_the_detector_has_its_codes() {
        for lang in Lang::all() {
            assert_eq!(
                Code::find(lang.code()).map(|code| code.part3),
                Some(lang.code())
            );
        }
        assert_eq!(CODES.len(), Lang::all().len());
        let mut short: Vec<_> = CODES.iter().map(|code| code.part1).collect();
        short.sort_unstable();
        short.dedup();
        assert_eq!(short.len(), CODES.len());
    }

    #[test]
    fn texts_of_other_languages_are_dropped() {
        let english = "All human beings are born free and equal in dignity and rights. They are \
                       endowed with reason and conscience and should act towards one another in a \
                       spirit of brotherhood.";
        let german = "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind \
                      mit Vernunft und Gewissen begabt und sollen einander im Geist der \
                      Brüderlichkeit begegnen.";
        let languages = Languages::new(&["en".to_owned(), "jpn".to_owned()], 0.5).unwrap();
        assert_eq!(languages.check(english), Outcome::Keep);
        assert_eq!(
            languages.check("人類社会のすべての構成員の固有の尊厳と"),
            Outcome::Keep
        );
        let german = languages.check(german);
        assert_eq!(german, Outcome::Drop("the language is German".to_owned()));
        let none = languages.check("1234 5678 -- !?");
        assert_eq!(none, Outcome::Drop("no language found".to_owned()));
        let certain = Languages::new(&["en".to_owned()], 1.0).unwrap();
        assert!(matches!(certain.check("no idea"), Outcome::Drop(_)));
    }

    #[test]
    fn stop_words_decide_where_they_leave_no_doubt() {
        let english = "the cat and the dog went to the house because it was cold for them";
        let german = "die Katze und der Hund gingen in das Haus weil es so kalt für sie war";
        let languages = Languages::new(&["en".to_owned()], 0.5).unwrap();
        assert_eq!(languages.by_stop_words(english), Some(Lang::Eng));
        assert_eq!(languages.by_stop_words(german), Some(Lang::Deu));
        assert_eq!(
            languages.by_stop_words(&format!("{english} {german}")),
            None
        );
        assert_eq!(languages.by_stop_words("the cat and the dog"), None);
        assert_eq!(languages.by_stop_words("cats chase dogs"), None);
    }

    #[test]
    fn an_unknown_language_is_refused() {
        let problem = Languages::new(&["xx".to_owned()], 0.5).err().unwrap();
        assert!(
            problem.to_string().starts_with("no language `xx`"),
            "{problem}"
        );
    }

    proptest! {
        #[test]
        fn the_middle_is_in_the_middle(text in "[aé日]{0,50}", bytes in 3usize..40) {
            let part = middle(&text, bytes);
            prop_assert!(part.len() <= bytes);
            prop_assert!(part.len() + 6 > bytes.min(text.len()));
            let before = part.as_ptr() as usize - text.as_ptr() as usize;
            let after = text.len() - part.len() - before;
            prop_assert!(before.abs_diff(after) <= 6, "{} {}", before, after);
        }
    }
}
