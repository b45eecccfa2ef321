//! Wikitext, the markup of Wikipedia.

use std::collections::HashSet;

use super::{Flow, Gap, character_reference};

/// The prose of an article: templates, tables, references, files, categories and links to other
/// languages removed; of other links their text kept; headings and list items as plain lines;
/// emphasis removed; character references decoded. Paragraphs are separated by a blank line.
///
/// What is opened and never closed stays as text, so that a slip costs little.
pub fn wikitext_to_prose(wikitext: &str) -> String {
    let mut reducer = Reducer {
        text: wikitext,
        at: 0,
        out: String::with_capacity(wikitext.len() / 2),
        open: Vec::new(),
        templates: 0,
        tables: 0,
        external_links: 0,
        unclosed: HashSet::new(),
    };
    reducer.run();
    tidy(&reducer.out)
}

/// Elements whose content is no prose.
const NO_PROSE: [&str; 19] = [
    "ce",
    "chem",
    "gallery",
    "graph",
    "hiero",
    "imagemap",
    "indicator",
    "inputbox",
    "mapframe",
    "maplink",
    "math",
    "ref",
    "score",
    "script",
    "source",
    "style",
    "syntaxhighlight",
    "templatedata",
    "timeline",
];

/// Elements that start a line.
const BLOCKS: [&str; 12] = [
    "blockquote",
    "br",
    "center",
    "div",
    "dd",
    "dt",
    "hr",
    "li",
    "p",
    "poem",
    "pre",
    "tr",
];

/// Namespaces of files and categories, in the languages with the largest Wikipedias.
const FILES_AND_CATEGORIES: [&str; 56] = [
    "afbeelding",
    "archivo",
    "berkas",
    "bestand",
    "bild",
    "billede",
    "categoria",
    "categorie",
    "category",
    "categoría",
    "catégorie",
    "datei",
    "dosya",
    "ficheiro",
    "fichier",
    "fil",
    "file",
    "fájl",
    "grafika",
    "image",
    "imagem",
    "imagen",
    "immagine",
    "kategori",
    "kategoria",
    "kategorie",
    "kategória",
    "kép",
    "luokka",
    "media",
    "plik",
    "soubor",
    "thể loại",
    "tiedosto",
    "tập tin",
    "зображення",
    "изображение",
    "категория",
    "категорія",
    "файл",
    "קובץ",
    "קטגוריה",
    "تصنيف",
    "رده",
    "ملف",
    "پرونده",
    "चित्र",
    "श्रेणी",
    "カテゴリ",
    "ファイル",
    "分类",
    "分類",
    "文件",
    "檔案",
    "분류",
    "파일",
];

/// What was opened and where its output begins, so that closing it can take that back.
#[derive(Clone, Copy)]
struct Open {
    kind: Kind,
    start: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `{{`: dropped when it closes.
    Template,
    /// `{|`: likewise.
    Table,
    /// `[[` before its first `|`.
    Target {
        /// `[[:File:…` links to a file and does not show it.
        is_plain: bool,
    },
    /// `[[` after it: the text to show.
    Label,
    /// `[[` of a file, a category, or another language.
    Unshown,
}

impl Kind {
    fn is_link(self) -> bool {
        matches!(self, Self::Target { .. } | Self::Label | Self::Unshown)
    }
}

struct Reducer<'a> {
    text: &'a str,
    at: usize,
    out: String,
    open: Vec<Open>,
    /// How many of each are open.
    templates: usize,
    tables: usize,
    /// How many `[http://… ` are open on this line.
    external_links: usize,
    /// Elements that are not closed in the rest of the text: not searched for again.
    unclosed: HashSet<&'static str>,
}

impl<'a> Reducer<'a> {
    fn run(&mut self) {
        while let Some(distance) = self.rest().find(is_special) {
            let plain = &self.rest()[..distance];
            self.out.push_str(plain);
            self.at += distance;
            self.special();
        }
        self.out.push_str(self.rest());
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// How often the character that comes next is repeated.
    fn run_length(&self) -> usize {
        let rest = self.rest().as_bytes();
        rest.iter().take_while(|&&byte| byte == rest[0]).count()
    }

    /// Takes bytes that mean themselves.
    fn literal(&mut self, length: usize) {
        self.out.push_str(&self.rest()[..length]);
        self.at += length;
    }

    fn special(&mut self) {
        let rest = self.rest();
        match rest.as_bytes()[0] {
            b'{' => self.open_brace(),
            b'}' => self.close_brace(),
            b'[' => self.open_bracket(),
            b']' => self.close_bracket(),
            b'|' => self.bar(),
            b'<' => self.tag(),
            b'\'' => self.apostrophes(),
            b'_' => self.magic_word(),
            b'\n' => self.end_line(),
            _ => match character_reference(rest) {
                Some((meaning, taken)) => {
                    self.out.push_str(&meaning);
                    self.at += taken;
                }
                None => self.literal(1),
            },
        }
    }

    fn push(&mut self, kind: Kind) {
        let start = self.out.len();
        self.open.push(Open { kind, start });
    }

    /// Closes a template or table if it is the innermost, links in it that are not closed aside.
    fn drop_if(&mut self, kind: Kind) -> bool {
        while self.open.pop_if(|open| open.kind.is_link()).is_some() {}
        let dropped = self.open.pop_if(|open| open.kind == kind);
        if let Some(open) = dropped {
            self.out.truncate(open.start);
        }
        dropped.is_some()
    }

    /// Closes the innermost template, and with it tables in it that are not closed.
    fn close_template(&mut self) -> bool {
        if self.templates == 0 {
            return false;
        }
        while !self.drop_if(Kind::Template) {
            self.drop_if(Kind::Table);
            self.tables -= 1;
        }
        self.templates -= 1;
        true
    }

    fn close_table(&mut self) -> bool {
        let closed = self.tables > 0 && self.drop_if(Kind::Table);
        self.tables -= usize::from(closed);
        closed
    }

    fn open_brace(&mut self) {
        let run = self.run_length();
        if run == 1 && self.rest().starts_with("{|") && self.is_line_start() {
            self.push(Kind::Table);
            self.tables += 1;
            self.at += 2;
        } else if run == 1 {
            self.literal(1);
        } else {
            // `{{{parameter}}}` is as much of a template.
            for _ in 0..run / 2 {
                self.push(Kind::Template);
                self.templates += 1;
            }
            self.at += run;
        }
    }

    fn close_brace(&mut self) {
        let run = self.run_length();
        let mut closed = 0;
        while closed < run / 2 && self.close_template() {
            closed += 1;
        }
        match closed {
            0 => self.literal(run),
            _ => self.at += run,
        }
    }

    fn bar(&mut self) {
        let ends_table = self.rest().starts_with("|}") && !self.rest().starts_with("|}}");
        if ends_table && self.is_line_start() && self.close_table() {
            self.at += 2;
            return;
        }
        let Some(open) = self.open.last_mut() else {
            return self.literal(1);
        };
        match open.kind {
            Kind::Target { is_plain } => {
                let target = &self.out[open.start..];
                open.kind = match !is_plain && is_unshown(target) {
                    true => Kind::Unshown,
                    false => Kind::Label,
                };
                self.out.truncate(open.start);
                self.at += 1;
            }
            _ => self.literal(1),
        }
    }

    /// Whether only blanks and colons are between here and the start of the line.
    fn is_line_start(&self) -> bool {
        let before = self.text[..self.at].trim_end_matches([' ', '\t', ':']);
        before.is_empty() || before.ends_with('\n')
    }

    fn open_bracket(&mut self) {
        let rest = self.rest();
        if let Some(inside) = rest.strip_prefix("[[") {
            let is_plain = inside.starts_with(':');
            self.push(Kind::Target { is_plain });
            self.at += 2 + usize::from(is_plain);
        } else if let Some(address) = external_address(&rest[1..]) {
            self.external_links += 1;
            self.at += 1 + address;
        } else {
            self.literal(1);
        }
    }

    fn close_bracket(&mut self) {
        if self.external_links > 0 {
            self.external_links -= 1;
            self.at += 1;
            return;
        }
        if !self.rest().starts_with("]]") {
            return self.literal(1);
        }
        let Some(open) = self.open.pop_if(|open| open.kind.is_link()) else {
            return self.literal(2);
        };
        let target = &self.out[open.start..];
        match open.kind {
            Kind::Unshown => self.out.truncate(open.start),
            Kind::Target { is_plain: false } if is_unshown(target) => self.out.truncate(open.start),
            _ => {}
        }
        self.at += 2;
    }

    /// Links do not go on for long: one that is not closed must not take the rest of the article.
    fn end_line(&mut self) {
        self.external_links = 0;
        let is_paragraph = self.rest().starts_with("\n\n");
        while let Some(open) = self.open.last() {
            let ends = match open.kind {
                Kind::Target { .. } => true,
                Kind::Label | Kind::Unshown => is_paragraph,
                Kind::Template | Kind::Table => false,
            };
            if !ends {
                break;
            }
            self.open.pop();
        }
        self.literal(1);
    }

    fn apostrophes(&mut self) {
        let run = self.run_length();
        let shown = match run {
            1 => 1,
            2 | 3 | 5 => 0,
            4 => 1,
            more => more - 5,
        };
        self.out.push_str(&self.rest()[..shown]);
        self.at += run;
    }

    /// Such as `__NOTOC__`.
    fn magic_word(&mut self) {
        let rest = self.rest().as_bytes();
        let letters = rest.iter().skip(2).take(32);
        let letters = letters.take_while(|byte| byte.is_ascii_uppercase()).count();
        let is_word =
            rest.starts_with(b"__") && letters > 0 && rest[2 + letters..].starts_with(b"__");
        match is_word {
            true => self.at += letters + 4,
            false => self.literal(1),
        }
    }

    fn tag(&mut self) {
        let rest = self.rest();
        if let Some(comment) = rest.strip_prefix("<!--") {
            self.at += comment.find("-->").map_or(rest.len(), |end| end + 7);
            return;
        }
        let inside = &rest[1..];
        let inside = inside.strip_prefix('/').unwrap_or(inside);
        let end = rest[1..].find(['<', '>']).map(|end| end + 1);
        let is_tag = inside.starts_with(|c: char| c.is_ascii_alphabetic());
        let Some(end) = end.filter(|&end| is_tag && rest.as_bytes()[end] == b'>') else {
            return self.literal(1);
        };
        let length = inside
            .bytes()
            .take(16)
            .take_while(u8::is_ascii_alphanumeric)
            .count();
        let name = inside[..length].to_ascii_lowercase();
        let has_content = !rest.starts_with("</") && !rest[..end].ends_with('/');
        self.at += end + 1;
        if BLOCKS.contains(&name.as_str()) {
            self.out.push('\n');
        } else if has_content && name == "nowiki" {
            if let Some((length, tag)) = self.find_end("nowiki") {
                self.literal(length);
                self.at += tag;
            }
        } else if let Some(name) = NO_PROSE.iter().find(|&&known| has_content && known == name)
            && let Some((length, tag)) = self.find_end(name)
        {
            self.at += length + tag;
        }
    }

    /// How far it is to the end tag of an element, and how long that is.
    fn find_end(&mut self, name: &'static str) -> Option<(usize, usize)> {
        if self.unclosed.contains(name) {
            return None;
        }
        let rest = self.rest();
        let mut from = 0;
        while let Some(distance) = rest[from..].find("</") {
            let at = from + distance;
            let after = &rest.as_bytes()[at + 2..];
            let found = after.get(..name.len());
            let goes_on = after.get(name.len()).is_some_and(u8::is_ascii_alphanumeric);
            if found.is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes())) && !goes_on {
                let Some(end) = rest[at..].find('>') else {
                    break;
                };
                return Some((at, end + 1));
            }
            from = at + 2;
        }
        self.unclosed.insert(name);
        None
    }
}

fn is_special(c: char) -> bool {
    matches!(
        c,
        '{' | '}' | '[' | ']' | '|' | '<' | '\'' | '_' | '&' | '\n'
    )
}

/// The length of an address that a single bracket may open, with the blank after it.
fn external_address(inside: &str) -> Option<usize> {
    const SCHEMES: [&str; 6] = ["http://", "https://", "//", "ftp://", "mailto:", "news:"];
    if !SCHEMES.iter().any(|scheme| inside.starts_with(scheme)) {
        return None;
    }
    let ends = |c: char| c.is_whitespace() || matches!(c, ']' | '[' | '<' | '{' | '}' | '|');
    let length = inside.find(ends).unwrap_or(inside.len());
    let blank = inside[length..].starts_with(' ');
    Some(length + usize::from(blank))
}

/// Whether a link shows nothing where it stands: to a file, a category, or another language.
fn is_unshown(target: &str) -> bool {
    // No such prefix is longer.
    let Some(colon) = target.bytes().take(48).position(|byte| byte == b':') else {
        return false;
    };
    let prefix = target[..colon].trim();
    is_language(prefix) || FILES_AND_CATEGORIES.contains(&prefix.to_lowercase().as_str())
}

/// Whether this is how a Wikipedia in another language is named: `fr`, `zh-yue`, `simple`.
fn is_language(prefix: &str) -> bool {
    let (language, variant) = prefix.split_once('-').unwrap_or((prefix, ""));
    let is_lower = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    prefix == "simple"
        || (matches!(language.len(), 2 | 3) && is_lower(language) && is_lower(variant))
}

/// Takes the marks off lines, blanks off their ends, and superfluous blank lines.
fn tidy(text: &str) -> String {
    let mut prose = Flow::default();
    for line in text.lines() {
        let line = line_text(line.trim());
        if line.is_empty() {
            prose.separate(Gap::Paragraph);
        } else {
            prose.separate(Gap::Line);
            push_without_empty_brackets(&mut prose, line);
        }
    }
    prose.out
}

/// A line without the marks of a heading, list or rule. What is left of tables is no text.
fn line_text(line: &str) -> &str {
    if line.starts_with('|') || line.starts_with("{|") || line.starts_with("----") {
        return "";
    }
    let level = line.bytes().take_while(|&byte| byte == b'=').count();
    if level > 0 && line.len() > 2 * level && line.ends_with('=') {
        return line.trim_matches('=').trim();
    }
    line.trim_start_matches(['*', '#', ':', ';']).trim_start()
}

/// Templates that are gone leave brackets such as `(, )`.
fn push_without_empty_brackets(prose: &mut Flow, line: &str) {
    let mut rest = line;
    while let Some(at) = rest.find('(') {
        let inside = &rest[at + 1..];
        let is_filler = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | ':');
        let end = inside.find(|c| !is_filler(c)).unwrap_or(inside.len());
        prose.push(&rest[..at]);
        match inside[end..].strip_prefix(')') {
            Some(after) => rest = after,
            None => {
                prose.push("(");
                rest = inside;
            }
        }
    }
    prose.push(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn links_leave_their_text() {
        for (wikitext, prose) in [
            ("[[Paris]] and [[Rome|the city]]s", "Paris and the citys"),
            ("a [[File:x.jpg|thumb|of [[b]] and [http://c d]]] e", "a e"),
            ("[[Category:Towns]][[fr:Ville]][[zh-yue:X]]x", "x"),
            (
                "[[:Category:Towns]] [[:fr:Ville|ville]]",
                "Category:Towns ville",
            ),
            (
                "[[wikt:word|word]], [http://a.b/c?d the site], [http://a.b]",
                "word, the site,",
            ),
            ("[not a link] a|b", "[not a link] a|b"),
        ] {
            assert_eq!(wikitext_to_prose(wikitext), prose, "{wikitext}");
        }
    }

    #[test]
    fn templates_tables_and_references_are_dropped() {
        for (wikitext, prose) in [
            ("a {{b|{{c}}|d={{{e}}}}} f", "a f"),
            (
                "a<ref name=x>{{cite}} b</ref> c<ref name=x /> d<REF>e</Ref >.",
                "a c d.",
            ),
            ("x\n{| class=a\n|-\n| [[b]]\n{|\n|c\n|}\n|}\ny", "x\n\ny"),
            ("{{a\n{| not closed\n| b }}c", "c"),
            ("Bonn ({{IPA|x}}; {{audio}}) is", "Bonn is"),
            (
                "<!-- {{ -->a<math>\\{\\{</math>b<nowiki>[[c]]</nowiki>d<nowiki />",
                "ab[[c]]d",
            ),
            ("{{a|[[b}} c]] d", "c]] d"),
        ] {
            assert_eq!(wikitext_to_prose(wikitext), prose, "{wikitext}");
        }
    }

    #[test]
    fn lines_lose_their_marks() {
        let wikitext = "__NOTOC__\n'''A''' is ''b''.\n\n\n\n== History ==\n* one\n** two\n# three\n\
                        ; term : meaning\n----\nL''''autre''' '''''c'''''&nbsp;&lt;ref&gt;";
        let prose = "A is b.\n\nHistory\none\ntwo\nthree\nterm : meaning\n\nL'autre c <ref>";
        assert_eq!(wikitext_to_prose(wikitext), prose);
        assert_eq!(
            wikitext_to_prose("a<br />b<small>c</small> 1 < 2 > 0"),
            "a\nbc 1 < 2 > 0"
        );
    }

    #[test]
    fn what_is_never_closed_costs_only_its_marks() {
        for (wikitext, prose) in [
            ("a {{b c", "a b c"),
            ("[[a\nb|c", "a\nb|c"),
            ("[[File:x|y\n\nb]] c", "y\n\nb]] c"),
            ("a<ref>b", "ab"),
            ("a }} b ]] c", "a }} b ]] c"),
        ] {
            assert_eq!(wikitext_to_prose(wikitext), prose, "{wikitext}");
        }
    }

    const PARTS: [&str; 26] = [
        "{{", "}}", "{{{", "{|", "|}", "[[", "]]", "[", "]", "|", "''", "'", "<ref>", "</ref>",
        "<!--", "-->", "<nowiki>", "\n", "==", ":", "File:", "http://", "&lt;", "__TOC__", "é",
        " (",
    ];

    proptest! {
        #[test]
        fn nothing_panics_or_grows(parts in proptest::collection::vec(0..PARTS.len(), 0..60)) {
            let wikitext: String = parts.into_iter().map(|part| PARTS[part]).collect();
            prop_assert!(wikitext_to_prose(&wikitext).len() <= wikitext.len());
        }

        #[test]
        fn plain_words_stay(words in proptest::collection::vec("[a-zé]{1,8}", 0..12)) {
            prop_assert_eq!(wikitext_to_prose(&words.join("  ")), words.join(" "));
        }
    }

    /// A reducer that is quadratic anywhere would take minutes.
    #[test]
    fn megabytes_of_marks_are_reduced() {
        for part in PARTS
            .into_iter()
            .chain(["[[a|", "{{a|[[", "<ref", "[[File:|", "   {", "<a "])
        {
            let wikitext = part.repeat((1 << 20) / part.len());
            assert!(wikitext_to_prose(&wikitext).len() <= wikitext.len());
        }
    }
}
