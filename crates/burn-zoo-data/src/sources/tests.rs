//! Every format, compressed in every way, and what is wrong with files.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A folder for files to read.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> SourceConfig {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        SourceConfig::new(path.to_str().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn source(&self, name: &str) -> SourceConfig {
        SourceConfig::new(self.path(name).to_str().unwrap())
    }

    fn names(&self, source: &SourceConfig) -> Vec<String> {
        let files = source.files().unwrap();
        let name = |file: &InputFile| {
            let path = file.path().strip_prefix(self.0.path()).unwrap();
            path.to_str().unwrap().to_owned()
        };
        files.iter().map(name).collect()
    }
}

fn texts(source: &SourceConfig) -> Vec<String> {
    let documents = source.documents().unwrap();
    documents.map(|document| document.unwrap().text).collect()
}

/// The texts in front of the first error, and that.
fn failure(source: &SourceConfig) -> (Vec<String>, SourceError) {
    let mut texts = Vec::new();
    let documents = match source.documents() {
        Ok(documents) => documents,
        Err(error) => return (texts, error),
    };
    for document in documents {
        match document {
            Ok(document) => texts.push(document.text),
            Err(error) => return (texts, error),
        }
    }
    panic!("no error after {texts:?}");
}

/// The texts that are left when bad rows are skipped, and how many were.
fn skipping(source: SourceConfig) -> (Vec<String>, u64) {
    let files = source.with_bad_rows(BadRows::Skip).files().unwrap();
    let mut documents = files[0].documents().unwrap();
    let texts = documents
        .by_ref()
        .map(|document| document.unwrap().text)
        .collect();
    (texts, documents.counts().skipped())
}

fn row_error(source: &SourceConfig) -> (usize, Option<u64>, RowProblem) {
    match failure(source).1 {
        SourceError::Row {
            origin,
            byte,
            problem,
        } => (origin.row, byte, problem),
        other => panic!("{other}"),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 1).unwrap()
}

fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ::zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (index, (name, bytes)) in files.iter().enumerate() {
        let methods = [
            ::zip::CompressionMethod::Deflated,
            ::zip::CompressionMethod::Stored,
        ];
        let options = ::zip::write::SimpleFileOptions::default();
        let options = options.compression_method(methods[index % 2]);
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Puts bytes into a compressed member.
type Compress = fn(&[u8]) -> Vec<u8>;

#[test]
fn folders_and_patterns_are_listed_in_order() {
    let folder = Folder::new();
    for name in [
        "b.txt",
        "a/z.jsonl",
        "a/y.txt",
        ".hidden",
        "a/out.tmp",
        "c.txt.gz",
    ] {
        folder.write(name, "x");
    }
    folder.write(".gitignore", "*.tmp\n");
    let all = ["a/y.txt", "a/z.jsonl", "b.txt", "c.txt.gz"];
    assert_eq!(folder.names(&folder.source("")), all);
    assert_eq!(folder.names(&folder.source("*.txt")), ["b.txt"]);
    assert_eq!(
        folder.names(&folder.source("**/*.txt")),
        ["a/y.txt", "b.txt"]
    );
    assert_eq!(
        folder.names(&folder.source("?/{y,z}.*")),
        ["a/y.txt", "a/z.jsonl"]
    );
    let nothing = folder.source("*.csv");
    let error = nothing.files().unwrap_err();
    assert!(matches!(error, SourceError::NoFiles { .. }));
    assert!(error.to_string().contains("*.csv"));
}

#[test]
fn every_compression_reads_all_its_members() {
    let folder = Folder::new();
    let (first, second) = ("one\ntwo\n".as_bytes(), "three\nfour".as_bytes());
    let members: [(&str, Compress); 3] = [
        ("a.txt.gz", gzip),
        ("a.txt.bz2", bzip2),
        ("a.txt.zst", zstd),
    ];
    for (name, compress) in members {
        let bytes = [compress(first), compress(second)].concat();
        let source = folder.write(name, bytes).with_format(Format::Lines);
        assert_eq!(texts(&source), ["one", "two", "three", "four"], "{name}");
    }
}

/// Each format reads the same however its file is compressed.
fn in_every_compression(name: &str, bytes: &[u8]) {
    let folder = Folder::new();
    let expected = texts(&folder.write(name, bytes));
    assert_eq!(expected.len(), 2, "{name}");
    let zip: Compress = |bytes| bytes.to_vec();
    let compressions: [(&str, Compress); 4] =
        [("gz", gzip), ("bz2", bzip2), ("zst", zstd), ("zip", zip)];
    for (extension, compress) in compressions {
        let bytes = match extension {
            "zip" => zip_of(&[(name, bytes)]),
            _ => compress(bytes),
        };
        let source = folder.write(&format!("{name}.{extension}"), bytes);
        assert_eq!(texts(&source), expected, "{name}.{extension}");
    }
}

#[test]
fn every_format_is_read_from_every_compression() {
    in_every_compression("a.jsonl", b"{\"text\":\"one\"}\n{\"text\":\"two\"}\n");
    in_every_compression("a.csv", b"n,text\n1,one\n2,\"two, three\"\n");
    in_every_compression("a.tsv", b"n\ttext\n1\tone\n2\ttwo\n");
    let page = |title: &str| {
        format!(
            "<page><title>{title}</title><ns>0</ns><revision><text>Some prose.</text></revision></page>"
        )
    };
    let dump = format!("<mediawiki>{}{}</mediawiki>", page("A"), page("B"));
    in_every_compression("a.xml", dump.as_bytes());
}

#[test]
fn a_zip_is_a_folder_of_files() {
    let folder = Folder::new();
    let rows = gzip(b"{\"text\":\"d\"}\n");
    let bytes = zip_of(&[
        ("t/b.csv", b"n,text\n1,c\n"),
        ("rows.jsonl.gz", &rows),
        ("a.txt", b"a"),
        ("__MACOSX/a.txt", b"no"),
        ("t/.hidden", b"no"),
    ]);
    let source = folder.write("all.zip", &bytes);
    let names = ["all.zip!a.txt", "all.zip!rows.jsonl.gz", "all.zip!t/b.csv"];
    assert_eq!(folder.names(&source), names);
    assert_eq!(texts(&source), ["a", "d", "c"]);
    // A byte changed in the stored file, which has no checksum of its own.
    let at = bytes
        .windows(4)
        .position(|bytes| bytes == &rows[10..14])
        .unwrap();
    let mut damaged = bytes;
    damaged[at] ^= 1;
    assert!(matches!(
        failure(&folder.write("all.zip", damaged)).1,
        SourceError::Damaged { .. }
    ));
}

#[test]
fn archives_that_leave_their_folder_are_refused() {
    let folder = Folder::new();
    for name in [
        "../x.txt",
        "a/../../x.txt",
        "/x.txt",
        "C:\\x.txt",
        "a\\..\\..\\x.txt",
    ] {
        let source = folder.write("bad.zip", zip_of(&[(name, b"x")]));
        match source.files().unwrap_err() {
            SourceError::Escapes { entry, .. } => assert_eq!(entry, name),
            other => panic!("{name}: {other}"),
        }
    }
}

#[test]
fn archives_that_explode_are_refused() {
    let folder = Folder::new();
    let zeros = vec![b'0'; 20 << 20];
    let bombs = [
        ("a.txt.gz", gzip(&zeros)),
        ("a.txt.bz2", bzip2(&zeros)),
        ("a.txt.zst", zstd(&zeros)),
        ("a.zip", zip_of(&[("a.txt", &zeros)])),
    ];
    for (name, bytes) in bombs {
        let mut limits = Limits {
            max_ratio: 100.0,
            ..Limits::default()
        };
        let source = folder.write(name, bytes).with_limits(limits);
        let refused = |source: &SourceConfig| match failure(source).1 {
            SourceError::Explodes { setting, .. } => setting,
            other => panic!("{name}: {other}"),
        };
        assert_eq!(refused(&source), "max_ratio");
        (limits.max_ratio, limits.max_bytes) = (1e6, 1 << 20);
        assert_eq!(refused(&source.clone().with_limits(limits)), "max_bytes");
        limits.max_bytes = 1 << 30;
        let whole: usize = texts(&source.with_limits(limits))
            .iter()
            .map(String::len)
            .sum();
        assert_eq!(whole, zeros.len());
    }
}

#[test]
fn compressed_files_cut_short_are_noticed() {
    let folder = Folder::new();
    let lines: String = (0..20_000)
        .map(|line| format!("line {}\n", line * 7919))
        .collect();
    let members: [(&str, Compress); 3] = [
        ("a.txt.gz", gzip),
        ("a.txt.bz2", bzip2),
        ("a.txt.zst", zstd),
    ];
    for (name, compress) in members {
        let mut bytes = compress(lines.as_bytes());
        bytes.truncate(bytes.len() / 2);
        let source = folder.write(name, bytes).with_format(Format::Lines);
        let (texts, error) = failure(&source);
        match error {
            // The row after those that came.
            SourceError::CutShort { origin } => assert_eq!(origin.row, texts.len() + 1),
            other => panic!("{name}: {other}"),
        }
    }
}

#[test]
fn long_texts_are_cut_after_lines() {
    let folder = Folder::new();
    let limits = Limits {
        max_row_bytes: 8,
        ..Limits::default()
    };
    let source = folder
        .write("a.txt", "\u{feff}ab\ncd\nefgh\nijklmnöpqr")
        .with_limits(limits);
    let documents: Vec<Document> = source.documents().unwrap().map(Result::unwrap).collect();
    let chunks: Vec<(&str, usize)> = documents
        .iter()
        .map(|document| (document.text.as_str(), document.origin.row))
        .collect();
    assert_eq!(
        chunks,
        [("ab\ncd\n", 1), ("efgh\n", 3), ("ijklmn", 4), ("öpqr", 4)]
    );
}

#[test]
fn bytes_that_are_not_utf8_are_named_or_skipped() {
    let folder = Folder::new();
    let good = "{\"text\":\"ä\"}\n".repeat(50_000);
    let cases: [(&str, Vec<u8>, usize, &str); 4] = [
        (
            "a.jsonl",
            [good.as_bytes(), b"{\"text\":\"\xff\"}\n", good.as_bytes()].concat(),
            50_001,
            "\"",
        ),
        (
            "a.csv",
            [
                "n,text\n".repeat(9_000).as_bytes(),
                b"\"a\"\"\",b\xff\n",
                b"c,d\n",
            ]
            .concat(),
            9_000,
            "b",
        ),
        (
            "a.tsv",
            [
                "n\ttext\n".repeat(9_000).as_bytes(),
                b"a\tb\xff\n",
                b"c\td\n",
            ]
            .concat(),
            9_000,
            "b",
        ),
        ("a.txt", [good.as_bytes(), b"a\xff"].concat(), 50_001, "a"),
    ];
    for (name, bytes, row, before) in cases {
        let at = bytes.iter().position(|&byte| byte == 0xff).unwrap();
        assert_eq!(bytes[at - 1], before.as_bytes()[0]);
        let source = folder.write(name, bytes);
        let problem = RowProblem::NotUtf8 { byte: 0xff };
        assert_eq!(
            row_error(&source),
            (row, Some(at as u64), problem),
            "{name}"
        );
        let (texts, skipped) = skipping(source);
        assert_eq!(skipped, 1, "{name}");
        let expected = [100_000, 9_000, 9_000, 0];
        assert!(expected.contains(&texts.len()), "{name}: {}", texts.len());
    }
}

#[test]
fn json_lines_give_a_field() {
    let folder = Folder::new();
    let lines =
        "{\"id\":1,\"text\":\"a\\nb\"}\n\n\"c\"\r\n{\"text\":\"d\",\"more\":{\"text\":[1]}}";
    let source = folder.write("a.jsonl", lines);
    assert_eq!(texts(&source), ["a\nb", "c", "d"]);
    let bad =
        "{\"text\":\"a\"}\n{\"body\":\"b\",\"id\":1}\n{\"text\":null}\n{\"text\":\"c\"\n[1]\n\"d\"";
    let source = folder.write("bad.jsonl", bad);
    let problem = RowProblem::NoField {
        field: "text".to_owned(),
        fields: vec!["body".to_owned(), "id".to_owned()],
    };
    assert_eq!(row_error(&source), (2, Some(13), problem));
    assert!(failure(&source).1.to_string().contains("bad.jsonl:2"));
    assert_eq!(
        skipping(source.clone()),
        (vec!["a".to_owned(), "d".to_owned()], 4)
    );
    let (_, _, problem) = row_error(&source.with_field("id"));
    assert!(matches!(problem, RowProblem::NoField { .. }));
    let invalid = folder.write("invalid.jsonl", "{\"text\":\"a\"} x");
    assert!(matches!(row_error(&invalid).2, RowProblem::NotJson { .. }));
}

#[test]
fn tables_give_a_column() {
    let folder = Folder::new();
    let csv = "id,\"te\"\"xt\",text\n1,x,\"a, \"\"b\"\"\nc\"\n2,y,d\n";
    let source = folder.write("a.csv", csv);
    assert_eq!(texts(&source), ["a, \"b\"\nc", "d"]);
    assert_eq!(texts(&source.clone().with_field("te\"xt")), ["x", "y"]);
    match failure(&source.with_field("body")).1 {
        SourceError::NoColumn {
            column, columns, ..
        } => {
            assert_eq!((column.as_str(), columns.len()), ("body", 3));
        }
        other => panic!("{other}"),
    }
    let tsv = folder
        .write("a.tsv", "say \"hi\t0\nbye\t1\n")
        .with_header(false);
    assert_eq!(texts(&tsv.clone().with_field("0")), ["say \"hi", "bye"]);
    assert_eq!(texts(&tsv.with_field("1")), ["0", "1"]);
    let short = folder.write("short.csv", "id,text\n1,a\n2\n3,b,c\n4,d\n");
    let problem = RowProblem::WrongColumns {
        expected: 2,
        found: 1,
    };
    assert_eq!(row_error(&short), (2, Some(12), problem));
    assert_eq!(skipping(short), (vec!["a".to_owned(), "d".to_owned()], 2));
}

#[test]
fn rows_that_never_end_are_refused() {
    let folder = Folder::new();
    let limits = Limits {
        max_row_bytes: 1 << 20,
        ..Limits::default()
    };
    let long = "x".repeat(4 << 20);
    let csv = folder
        .write("a.csv", format!("text\na\n\"{long}"))
        .with_limits(limits);
    assert!(matches!(
        failure(&csv).1,
        SourceError::Endless {
            limit: 0x10_0000,
            ..
        }
    ));
    let xml = format!("<mediawiki><page><ns>0</ns><text>{long}");
    let xml = folder.write("a.xml", xml).with_limits(limits);
    assert!(matches!(failure(&xml).1, SourceError::Endless { .. }));
    let lines = folder
        .write("a.txt", format!("a\n{long}\nb"))
        .with_limits(limits);
    let lines = lines.with_format(Format::Lines);
    assert_eq!(
        row_error(&lines),
        (2, Some(2), RowProblem::TooLong { limit: 1 << 20 })
    );
    assert_eq!(skipping(lines), (vec!["a".to_owned(), "b".to_owned()], 1));
}

#[test]
fn rows_come_as_records() {
    let folder = Folder::new();
    let rows = |source: &SourceConfig| -> Vec<Record> {
        let records = source.files().unwrap()[0].records().unwrap();
        records.map(|record| record.unwrap().0).collect()
    };
    let jsonl = folder.write(
        "a.jsonl",
        "{\"label\":1,\"tokens\":[\"a\",\"b\"]}\n{\"label\":true}\n",
    );
    let records = rows(&jsonl);
    assert_eq!(records[0].get("tokens"), Some(&json!(["a", "b"])));
    assert_eq!(records[0].text("label").as_deref(), Some("1"));
    assert_eq!(records[1].text("label").as_deref(), Some("true"));
    assert_eq!(records[1].get("tokens"), None);
    let csv = rows(&folder.write("a.csv", "text,label\na,0\nb,1\n"));
    assert_eq!(csv[1].columns(), ["text", "label"]);
    assert_eq!(csv[1].text("label").as_deref(), Some("1"));
    let tsv = rows(&folder.write("a.tsv", "a\t0\n").with_header(false));
    assert_eq!(tsv[0].text("0").as_deref(), Some("a"));
    let error = folder.write("a.txt", "x").files().unwrap()[0]
        .records()
        .err();
    assert!(matches!(error, Some(SourceError::NoColumns { .. })));
}

const DUMP: &str = "<mediawiki xmlns=\"http://www.mediawiki.org/xml/export-0.11/\">
  <siteinfo><sitename>Wikipedia</sitename></siteinfo>
  <page><title>Cats &amp; dogs</title><ns>0</ns><revision>
    <text bytes=\"9\">old</text></revision><revision>
    <text>'''Cats''' [[sleep|nap]]&lt;ref&gt;x&lt;/ref&gt; &#233;.</text></revision></page>
  <page><title>C</title><ns>0</ns><redirect title=\"Cats\" /><revision>
    <text>#REDIRECT [[Cats]]</text></revision></page>
  <page><title>Talk:Cats</title><ns>1</ns><revision><text>no</text></revision></page>
  <page><title>Empty</title><ns>0</ns><revision><text /></revision></page>
";

#[test]
fn a_wikipedia_dump_gives_its_articles() {
    let folder = Folder::new();
    let last = "<page><title>B</title><ns>0</ns><revision><text>b</text></revision></page>";
    // As in a multistream dump: the head, pages, and the foot each compressed alone.
    let streams = [DUMP, last, "</mediawiki>\n"].map(|part| bzip2(part.as_bytes()));
    let source = folder.write("wiki.xml.bz2", streams.concat());
    let documents: Vec<Document> = source.documents().unwrap().map(Result::unwrap).collect();
    assert_eq!(documents[0].text, "Cats & dogs\n\nCats nap é.");
    assert_eq!(
        (documents[1].text.as_str(), documents[1].origin.row),
        ("B\n\nb", 5)
    );
    assert_eq!(documents.len(), 2);
    let cut = folder.write("cut.xml", format!("{DUMP}<page><title>"));
    assert!(matches!(failure(&cut).1, SourceError::CutShort { origin } if origin.row == 5));
    let other = folder.write("other.xml", "<html><body/></html>");
    assert!(matches!(failure(&other).1, SourceError::Damaged { .. }));
    let page = |text: &[u8]| {
        [
            b"<page><title>B</title><ns>0</ns><text>",
            text,
            b"</text></page>",
        ]
        .concat()
    };
    let bytes = [
        b"<mediawiki>",
        &page(b"a\xff")[..],
        &page(b"b"),
        b"</mediawiki>",
    ]
    .concat();
    let source = folder.write("bad.xml", bytes);
    assert_eq!(
        row_error(&source),
        (1, Some(50), RowProblem::NotUtf8 { byte: 0xff })
    );
    assert_eq!(skipping(source), (vec!["B\n\nb".to_owned()], 1));
}

#[test]
fn progress_counts_up_to_the_size_as_stored() {
    let folder = Folder::new();
    let source = folder.write("a.txt.gz", gzip(&[b'a'; 100_000]));
    let file = &source.files().unwrap()[0];
    let mut documents = file.documents().unwrap();
    let counts = documents.counts();
    assert_eq!(documents.by_ref().count(), 1);
    assert_eq!(counts.bytes_read(), file.bytes());
}

#[test]
fn a_source_is_written_in_a_recipe() {
    let json = json!({"path": "a", "format": "jsonl", "field": "body", "bad_rows": "skip"});
    let source: SourceConfig = serde_json::from_value(json).unwrap();
    let expected = SourceConfig::new("a")
        .with_format(Format::Jsonl)
        .with_field("body");
    assert_eq!(source, expected.with_bad_rows(BadRows::Skip));
    let misspelt = json!({"path": "a", "feild": "body"});
    assert!(serde_json::from_value::<SourceConfig>(misspelt).is_err());
}

proptest! {
    #[test]
    fn json_lines_round_trip(rows in proptest::collection::vec(".{0,40}", 1..8)) {
        let folder = Folder::new();
        let line = |row: &String| format!("{}\n", json!({"a": [row], "text": row}));
        let source = folder.write("a.jsonl", rows.iter().map(line).collect::<String>());
        prop_assert_eq!(texts(&source), rows);
    }

    #[test]
    fn csv_round_trips(rows in proptest::collection::vec("[ -~\n]{0,20}", 1..8)) {
        let folder = Folder::new();
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["text", "n"]).unwrap();
        for row in &rows {
            writer.write_record([row.as_str(), "1"]).unwrap();
        }
        let source = folder.write("a.csv", writer.into_inner().unwrap());
        prop_assert_eq!(texts(&source), rows);
    }

    #[test]
    fn chunks_of_a_text_are_the_text(text in "(?s).{0,60}", limit in 4..20_usize) {
        let folder = Folder::new();
        let limits = Limits { max_row_bytes: limit, ..Limits::default() };
        let source = folder.write("a.txt", &text).with_limits(limits);
        let whole = texts(&source).concat();
        prop_assert_eq!(whole, text.strip_prefix('\u{feff}').unwrap_or(&text));
    }

    #[test]
    fn damage_never_panics(position in 0..400_usize, byte: u8) {
        let folder = Folder::new();
        let files: [(&str, Vec<u8>); 3] = [
            ("a.txt.zst", zstd(DUMP.as_bytes())),
            ("a.zip", zip_of(&[("a.xml", DUMP.as_bytes())])),
            ("a.xml", DUMP.as_bytes().to_vec()),
        ];
        for (name, mut bytes) in files {
            let at = position % bytes.len();
            bytes[at] = byte;
            if let Ok(documents) = folder.write(name, bytes).documents() {
                documents.for_each(drop);
            }
        }
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_names_its_feature() {
    let source = Folder::new().write("a.parquet", "PAR1");
    assert!(
        failure(&source)
            .1
            .to_string()
            .contains("--features parquet")
    );
}

#[cfg(feature = "parquet")]
mod with_parquet {
    use ::parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;

    use super::*;

    /// Two row groups: `a`, null and `b`; then `c`, as often as asked.
    fn table(last: usize) -> Vec<u8> {
        let schema = "message rows { required int32 label; optional binary text (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
        let bytes = |text: &str| ByteArray::from(text.as_bytes().to_vec());
        let groups = [
            (vec![1_i16, 0, 1], vec![bytes("a"), bytes("b")]),
            (vec![1; last], vec![bytes("c"); last]),
        ];
        for (levels, texts) in groups {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let labels: Vec<i32> = (0..levels.len() as i32).collect();
            column
                .typed::<Int32Type>()
                .write_batch(&labels, None, None)
                .unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let typed = column.typed::<ByteArrayType>();
            typed.write_batch(&texts, Some(&levels), None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.into_inner().unwrap()
    }

    #[test]
    fn it_is_read_from_every_compression() {
        let folder = Folder::new();
        let (plain, bytes) = ("a.parquet", table(1));
        let read = |source: SourceConfig| skipping(source);
        let expected = read(folder.write(plain, &bytes));
        assert_eq!(expected.0, ["a", "b", "c"]);
        for (name, bytes) in [
            ("a.parquet.gz", gzip(&bytes)),
            ("a.parquet.bz2", bzip2(&bytes)),
            ("a.parquet.zst", zstd(&bytes)),
            ("a.zip", zip_of(&[(plain, &bytes)])),
        ] {
            assert_eq!(read(folder.write(name, bytes)), expected, "{name}");
        }
    }

    #[test]
    fn a_column_is_read_and_nulls_are_bad_rows() {
        let folder = Folder::new();
        let source = folder.write("a.parquet", table(150));
        let (row, byte, problem) = row_error(&source);
        assert_eq!((row, byte), (2, None));
        assert!(matches!(problem, RowProblem::NotText { .. }));
        let (texts, skipped) = skipping(source.clone());
        assert_eq!((texts.len(), skipped), (152, 1));
        assert_eq!((texts[1].as_str(), texts[2].as_str()), ("b", "c"));
        let zipped = folder.write("a.zip", zip_of(&[("a.parquet", &table(150))]));
        assert_eq!(skipping(zipped).0, texts);
        match failure(&source.with_field("body")).1 {
            SourceError::NoColumn { columns, .. } => assert_eq!(columns, ["text"]),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn rows_come_as_records() {
        let folder = Folder::new();
        let source = folder.write("a.parquet", table(1));
        let records = source.files().unwrap()[0].records().unwrap();
        let rows: Vec<_> = records.map(|record| record.unwrap().0).collect();
        assert_eq!(rows[2].text("label").as_deref(), Some("2"));
        assert_eq!(rows[2].text("text").as_deref(), Some("b"));
        assert_eq!(rows[1].get("text"), Some(&serde_json::Value::Null));
        assert_eq!(rows.len(), 4);
    }

    #[test]
    fn a_file_cut_short_is_noticed() {
        let folder = Folder::new();
        let mut bytes = table(50);
        bytes.truncate(bytes.len() - 20);
        let source = folder.write("cut.parquet", bytes);
        assert!(matches!(failure(&source).1, SourceError::CutShort { .. }));
        let source = folder.write("other.parquet", "not Parquet at all");
        assert!(matches!(failure(&source).1, SourceError::Damaged { .. }));
    }

    proptest! {
        #[test]
        fn damage_never_panics(position in 0..4000_usize, byte: u8) {
            let folder = Folder::new();
            let mut bytes = table(50);
            let at = position % bytes.len();
            bytes[at] = byte;
            let source = folder.write("a.parquet", bytes).with_bad_rows(BadRows::Skip);
            if let Ok(documents) = source.documents() {
                documents.for_each(drop);
            }
            if let Ok(records) = source.files().unwrap()[0].records() {
                records.for_each(drop);
            }
        }
    }
}
