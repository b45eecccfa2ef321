//! A server on localhost that can be told to fail.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What is served at a path.
#[derive(Clone, Default)]
pub(super) struct Served {
    pub body: Vec<u8>,
    pub headers: Vec<(&'static str, String)>,
    /// Whether ranges are ignored.
    pub whole_only: bool,
    /// After how many bytes of a body to cut the connection, once each.
    pub cuts: Vec<usize>,
    /// A status instead of the body.
    pub status: Option<&'static str>,
}

/// A running server. Its thread ends with the process.
pub(super) struct Server {
    address: String,
    files: Arc<Mutex<HashMap<String, Served>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            files: Arc::default(),
            requests: Arc::default(),
        };
        let (files, requests) = (Arc::clone(&server.files), Arc::clone(&server.requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away is its own business.
                let _ = answer(stream, &files, &requests);
            }
        });
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    pub fn serve(&self, path: &str, served: Served) {
        self.files.lock().unwrap().insert(path.to_owned(), served);
    }

    /// `PATH RANGE` of each request so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(
    stream: TcpStream,
    files: &Mutex<HashMap<String, Served>>,
    requests: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = String::new();
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: ") {
            range = value.to_owned();
        }
    }
    requests.lock().unwrap().push(format!("{path} {range}"));
    let (served, cut) = {
        let mut files = files.lock().unwrap();
        let Some(file) = files.get_mut(&path) else {
            return respond(&stream, "404 Not Found", &[], b"", None);
        };
        // Cuts are for bodies; a question for the first byte is none.
        let is_question = range == "bytes=0-0";
        let cut = (!is_question && !file.cuts.is_empty()).then(|| file.cuts.remove(0));
        (file.clone(), cut)
    };
    if let Some(status) = served.status {
        return respond(&stream, status, &[], b"", None);
    }
    let size = served.body.len();
    let bounds = range
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'));
    let Some((start, end)) = bounds.filter(|_| !served.whole_only) else {
        return respond(&stream, "200 OK", &served.headers, &served.body, cut);
    };
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(size, |end: usize| (end + 1).min(size));
    if start >= size {
        return respond(&stream, "416 Range Not Satisfiable", &[], b"", None);
    }
    let mut headers = served.headers.clone();
    headers.push(("Content-Range", format!("bytes {start}-{}/{size}", end - 1)));
    respond(
        &stream,
        "206 Partial Content",
        &headers,
        &served.body[start..end],
        cut,
    )
}

fn respond(
    mut stream: &TcpStream,
    status: &str,
    headers: &[(&str, String)],
    body: &[u8],
    cut: Option<usize>,
) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n",
        body.len()
    );
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body[..cut.unwrap_or(body.len())])
}
