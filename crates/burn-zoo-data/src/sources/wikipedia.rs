//! Wikipedia's XML dumps, an article at a time.

use std::io::BufReader;
use std::sync::Arc;

use quick_xml::Reader;
use quick_xml::encoding::EncodingError;
use quick_xml::errors::Error;
use quick_xml::events::{BytesRef, Event};

use super::open::{Allowance, Bounded};
use super::{Counts, InputFile, RowProblem, Rows, SourceError};
use crate::document::{Document, Origin};
use crate::markup::wikitext::wikitext_to_prose;

/// The articles; the row is the number of the page.
pub(super) fn documents(
    file: &InputFile,
    counts: &Arc<Counts>,
) -> Result<Rows<Document>, SourceError> {
    let (bytes, allowance, start) = file.open_rows(counts)?;
    let mut pages = Pages {
        xml: Reader::from_reader(BufReader::new(bytes)),
        start,
        allowance,
        file: file.clone(),
        row: 0,
        depth: 0,
    };
    Ok(Box::new(std::iter::from_fn(move || {
        pages.next_article().transpose()
    })))
}

struct Pages {
    xml: Reader<BufReader<Bounded>>,
    /// Where in the file the XML begins.
    start: u64,
    allowance: Allowance,
    file: InputFile,
    row: usize,
    /// How many elements are open.
    depth: usize,
}

/// What is known of the page that is being read.
#[derive(Default)]
struct Page {
    title: String,
    namespace: String,
    is_redirect: bool,
    /// Of the last revision.
    text: String,
    not_utf8: Option<(u64, u8)>,
}

/// Where character data goes.
#[derive(Clone, Copy)]
enum Part {
    None,
    Title,
    Namespace,
    Text,
}

impl Page {
    fn push(&mut self, part: Part, characters: &str) {
        match part {
            Part::None => {}
            Part::Title => self.title.push_str(characters),
            Part::Namespace => self.namespace.push_str(characters),
            Part::Text => self.text.push_str(characters),
        }
    }

    fn is_article(&self) -> bool {
        self.namespace.trim() == "0" && !self.is_redirect
    }

    /// The title and the prose, or nothing when there is no prose.
    fn document(&self) -> Option<String> {
        let prose = wikitext_to_prose(&self.text);
        (!prose.is_empty()).then(|| format!("{}\n\n{prose}", self.title.trim()))
    }
}

impl Pages {
    fn next_article(&mut self) -> Result<Option<Document>, SourceError> {
        while let Some(page) = self.next_page()? {
            let origin = self.file.origin(self.row);
            if let Some((byte, bad)) = page.not_utf8 {
                return Err(SourceError::Row {
                    origin,
                    byte: Some(byte),
                    problem: RowProblem::NotUtf8 { byte: bad },
                });
            }
            if let Some(text) = page.is_article().then(|| page.document()).flatten() {
                return Ok(Some(Document { text, origin }));
            }
        }
        Ok(None)
    }

    fn next_page(&mut self) -> Result<Option<Page>, SourceError> {
        let mut page = Page::default();
        let mut part = Part::None;
        let mut buffer = Vec::new();
        self.allowance.renew();
        loop {
            buffer.clear();
            let position = self.xml.buffer_position();
            let event = match self.xml.read_event_into(&mut buffer) {
                Ok(event) => event,
                Err(Error::Encoding(EncodingError::Utf8(error))) => {
                    let at = error.valid_up_to();
                    let byte = self.start + position + at as u64;
                    let bad = buffer.get(at).copied().unwrap_or_default();
                    page.not_utf8.get_or_insert((byte, bad));
                    continue;
                }
                Err(error) => return Err(self.failed(error)),
            };
            match event {
                Event::Start(tag) => {
                    if self.depth == 0 && tag.local_name().as_ref() != "mediawiki" {
                        return Err(self.damaged("no MediaWiki export".to_owned()));
                    }
                    self.depth += 1;
                    part = match tag.local_name().as_ref() {
                        "page" => {
                            page = Page::default();
                            self.row += 1;
                            Part::None
                        }
                        "title" => Part::Title,
                        "ns" => Part::Namespace,
                        "text" => {
                            page.text.clear();
                            Part::Text
                        }
                        "redirect" => {
                            page.is_redirect = true;
                            Part::None
                        }
                        _ => Part::None,
                    };
                }
                Event::Empty(tag) => match tag.local_name().as_ref() {
                    "redirect" => page.is_redirect = true,
                    "text" => page.text.clear(),
                    _ => {}
                },
                Event::End(tag) => {
                    self.depth -= 1;
                    part = Part::None;
                    if tag.local_name().as_ref() == "page" {
                        return Ok(Some(page));
                    }
                }
                Event::Text(text) => page.push(part, &text.xml10_content()),
                Event::CData(text) => page.push(part, &text.xml10_content()),
                Event::GeneralRef(reference) => page.push(part, &character(&reference)),
                Event::Eof if self.depth > 0 => {
                    let origin = self.origin();
                    return Err(SourceError::CutShort { origin });
                }
                Event::Eof => return Ok(None),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            }
        }
    }

    fn origin(&self) -> Origin {
        self.file.origin(self.row.max(1))
    }

    fn damaged(&self, message: String) -> SourceError {
        SourceError::Damaged {
            origin: self.origin(),
            message,
        }
    }

    fn failed(&self, error: Error) -> SourceError {
        match error {
            Error::Io(shared) => match Arc::try_unwrap(shared) {
                Ok(error) => SourceError::reading(self.origin(), error),
                Err(shared) => self.damaged(shared.to_string()),
            },
            Error::Syntax(_) => self.damaged(format!(
                "{error} at byte {}",
                self.start + self.xml.error_position()
            )),
            other => self.damaged(other.to_string()),
        }
    }
}

/// The character that a reference such as `&lt;` or `&#160;` means; an unknown one stays.
fn character(reference: &BytesRef<'_>) -> String {
    if let Ok(Some(character)) = reference.resolve_char_ref() {
        return character.into();
    }
    let name = reference.xml10_content();
    match quick_xml::escape::resolve_xml_entity(&name) {
        Some(character) => character.to_owned(),
        None => format!("&{name};"),
    }
}
