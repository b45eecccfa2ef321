//! HTML.

use super::{Flow, Gap, character_reference};

/// The text of an HTML page or fragment: no scripts, styles, comments or head; a line for each block;
/// white space collapsed as a browser does, except in `pre`; character references decoded.
///
/// Tags are found as the standard says, so broken markup reads as a browser shows it: a comment or
/// tag that never ends swallows the rest.
pub fn html_to_text(html: &str) -> String {
    let mut page = Page::default();
    let mut rest = html;
    while let Some(at) = rest.find(['<', '&']) {
        page.text(&rest[..at]);
        rest = &rest[at..];
        let taken = match rest.starts_with('&') {
            true => page.reference(rest),
            false => page.markup(rest),
        };
        rest = &rest[taken..];
    }
    page.text(rest);
    page.flow.out
}

/// Elements without text for a reader: passed over up to their end tag.
const UNREAD: [&str; 8] = [
    "iframe", "noembed", "noframes", "script", "style", "template", "textarea", "title",
];

/// Elements that a line of their own shows.
const BLOCKS: [&str; 45] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "br",
    "caption",
    "center",
    "dd",
    "details",
    "dialog",
    "dir",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "legend",
    "li",
    "main",
    "menu",
    "nav",
    "ol",
    "option",
    "p",
    "pre",
    "search",
    "section",
    "summary",
    "table",
    "tbody",
    "thead",
    "tr",
    "ul",
];

/// Elements that belong to the head, so that it may go on after them.
const IN_HEAD: [&str; 7] = [
    "base", "link", "meta", "noscript", "script", "style", "title",
];

#[derive(Default)]
struct Page {
    flow: Flow,
    in_head: bool,
    /// How many `pre` are open.
    preformatted: usize,
}

impl Page {
    fn text(&mut self, text: &str) {
        if self.in_head {
            return;
        }
        if self.preformatted == 0 {
            return self.flow.push(text);
        }
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                self.flow.separate(Gap::Line);
            }
            if !line.trim().is_empty() {
                self.flow.push_word(line.trim_end());
            }
        }
    }

    /// Takes what starts with `&`, and returns its length.
    fn reference(&mut self, rest: &str) -> usize {
        match character_reference(rest) {
            Some((meaning, taken)) => {
                self.text(&meaning);
                taken
            }
            None => {
                self.text("&");
                1
            }
        }
    }

    /// Takes what starts with `<`, and returns its length.
    fn markup(&mut self, rest: &str) -> usize {
        if let Some(comment) = rest.strip_prefix("<!--") {
            return comment.find("-->").map_or(rest.len(), |end| end + 7);
        }
        let after = &rest[1..];
        match after.bytes().next() {
            Some(b'!' | b'?') => rest.find('>').map_or(rest.len(), |end| end + 1),
            Some(b'/') if after[1..].starts_with(|c: char| c.is_ascii_alphabetic()) => {
                self.close(&tag_name(&after[1..]));
                tag_length(rest)
            }
            Some(letter) if letter.is_ascii_alphabetic() => {
                let name = tag_name(after);
                let length = tag_length(rest);
                self.open(&name);
                match UNREAD.contains(&name.as_str()) {
                    true => length + unread_length(&rest[length..], &name),
                    false => length,
                }
            }
            _ => {
                self.text("<");
                1
            }
        }
    }

    fn open(&mut self, name: &str) {
        match name {
            "head" => self.in_head = true,
            name if IN_HEAD.contains(&name) => {}
            _ => self.in_head = false,
        }
        if name == "pre" {
            self.preformatted += 1;
        }
        self.separate(name);
    }

    fn close(&mut self, name: &str) {
        match name {
            "head" => self.in_head = false,
            "pre" => self.preformatted = self.preformatted.saturating_sub(1),
            _ => {}
        }
        self.separate(name);
    }

    fn separate(&mut self, name: &str) {
        if BLOCKS.binary_search(&name).is_ok() {
            self.flow.separate(Gap::Line);
        } else if matches!(name, "td" | "th") {
            self.flow.separate(Gap::Space);
        }
    }
}

fn tag_name(after: &str) -> String {
    // No name that matters is longer.
    let name = after.chars().take(16);
    let name = name.take_while(|&c| !c.is_whitespace() && !matches!(c, '/' | '>'));
    name.map(|c| c.to_ascii_lowercase()).collect()
}

/// The length of a tag, with `>` allowed between quotation marks of its attributes.
fn tag_length(tag: &str) -> usize {
    let mut quote = None;
    let mut last = b' ';
    for (at, byte) in tag.bytes().enumerate() {
        match (quote, byte) {
            (None, b'>') => return at + 1,
            (None, b'"' | b'\'') if last == b'=' => quote = Some(byte),
            (Some(open), _) if byte == open => quote = None,
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            last = byte;
        }
    }
    tag.len()
}

/// The length up to the end tag of an element that holds no markup.
fn unread_length(content: &str, name: &str) -> usize {
    let mut from = 0;
    while let Some(at) = content[from..].find("</") {
        let end = from + at;
        let closing = content.as_bytes().get(end + 2..end + 2 + name.len());
        if closing.is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes())) {
            return end;
        }
        from = end + 2;
    }
    content.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_are_lines_and_inline_markup_is_not() {
        let html = "<h1>A  <em>b</em>c</h1>\n<p>one\ntwo</p><ul><li>x<li>y</ul>z<br/>w";
        assert_eq!(html_to_text(html), "A bc\none two\nx\ny\nz\nw");
        assert_eq!(html_to_text("<tr><td>1</td><td>2</td></tr>"), "1 2");
        assert_eq!(html_to_text("a<pre>  b\n    c</pre>d"), "a\n  b\n    c\nd");
    }

    #[test]
    fn what_no_reader_sees_is_dropped() {
        let html = "<!DOCTYPE html><html><head><title>T</title><meta charset=utf-8></head>\
                    <body><!-- no <p> --><script>if (a<b) {'</p>'}</script >x\
                    <STYLE>p {}</style><p title='a>b'>y</body>";
        assert_eq!(html_to_text(html), "x\ny");
        assert_eq!(html_to_text("<head>no<div>yes"), "yes");
        assert_eq!(html_to_text("a<script>never closed"), "a");
    }

    #[test]
    fn references_are_decoded_once() {
        let html =
            "&lt;b&gt; &amp;amp; caf&eacute; &#233;&#xE9; &#146; a&nbsp;b &nosuch; AT&T &#0;";
        assert_eq!(
            html_to_text(html),
            "<b> &amp; café éé ’ a b &nosuch; AT&T \u{fffd}"
        );
    }

    #[test]
    fn comparisons_are_not_tags() {
        assert_eq!(html_to_text("1 < 2 <3 </ 4"), "1 < 2 <3 </ 4");
    }

    proptest! {
        #[test]
        fn text_without_markup_keeps_its_words(text in "[^<&]{0,80}") {
            let words: Vec<&str> = text.split_whitespace().collect();
            prop_assert_eq!(html_to_text(&text), words.join(" "));
        }

        #[test]
        fn nothing_panics(parts in proptest::collection::vec(
            prop_oneof![
                Just("<"), Just(">"), Just("</"), Just("<!--"), Just("-->"), Just("pre"),
                Just("script"), Just("head"), Just("&#x"), Just(";"), Just("="), Just("\""),
                Just("é"), Just("\n"), Just(" "),
            ], 0..40)) {
            let text = html_to_text(&parts.concat());
            prop_assert!(text.len() <= parts.concat().len());
        }
    }
}
