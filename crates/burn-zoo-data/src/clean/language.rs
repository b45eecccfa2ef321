//! Keeping the documents of some languages.

use whatlang::{Detector, Lang};

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
}

/// Languages to keep.
pub(super) struct Languages {
    keep: Vec<Lang>,
    min_confidence: f64,
    detector: Detector,
}

impl Languages {
    /// By their ISO 639-1 or 639-3 codes.
    pub fn new(keep: &[String], min_confidence: f64) -> Result<Self, Problem> {
        let lang = |code: &String| {
            Code::find(code)
                .and_then(|known| Lang::from_code(known.part3))
                .ok_or_else(|| Problem::UnknownLanguage {
                    language: code.clone(),
                    known: CODES.map(|code| code.part1).join(", "),
                })
        };
        Ok(Self {
            keep: keep.iter().map(lang).collect::<Result<_, _>>()?,
            min_confidence,
            detector: Detector::new(),
        })
    }

    /// Drops a text whose language is another, or not certain enough.
    pub fn check(&self, text: &str) -> Outcome {
        match self.detector.detect(middle(text, EXCERPT)) {
            None => Outcome::Drop("no language found".to_owned()),
            Some(found) if !self.keep.contains(&found.lang()) => {
                Outcome::Drop(format!("the language is {}", found.lang().eng_name()))
            }
            Some(found) if found.confidence() < self.min_confidence => Outcome::Drop(format!(
                "{} with a confidence of {:.2}, less than {}",
                found.lang().eng_name(),
                found.confidence(),
                self.min_confidence
            )),
            Some(_) => Outcome::Keep,
        }
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
