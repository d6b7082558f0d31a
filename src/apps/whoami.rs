//! `serverd whoami`: tells each request to who sent it, to look through proxies and balancers.

use std::fmt::Write as _;
use std::net::SocketAddr;

use http::StatusCode;
use sha2::{Digest, Sha256};

use super::methods;
use crate::httpserver::{Handler, Intake, Request, RequestHead, Response, Take, Trailers, Upload};

/// Answers every path with the request line and the fields as they came, the addresses of both ends, the host's name,
/// the worker, and of the body its length and SHA-256 hash: as text, or as JSON where Accept prefers it. The body is
/// hashed as it comes, and never held.
#[derive(Clone, Debug)]
pub struct Whoami {
    worker: usize,
    body_bytes_max: u64,
    hostname: String,
}

impl Whoami {
    /// The handler of a worker, by its number; longer bodies are answered 413.
    pub fn new(worker: usize, body_bytes_max: u64) -> Self {
        Whoami { worker, body_bytes_max, hostname: hostname() }
    }

    fn report(&self, head: &RequestHead<'_>) -> Report {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let line = head.as_bytes().split(|&byte| byte == b'\n').find(|line| !line.trim_ascii().is_empty());
        Report {
            request_line: text(line.unwrap_or_default().trim_ascii()),
            fields: head.fields().map(|(name, value)| (text(name), text(value))).collect(),
            hostname: self.hostname.clone(),
            worker: self.worker,
            peer: head.peer(),
            local: head.local(),
            wants_json: head.weight_of("application/json") > head.weight_of("text/plain"),
        }
    }
}

impl Handler for Whoami {
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        match methods::answer(head.method_bytes()) {
            Some(response) if response.status() != StatusCode::NO_CONTENT => Intake::Refuse(response),
            Some(_) => Intake::Default,
            None => {
                let body = Hashed { report: self.report(head), length: 0, hash: Sha256::new() };
                Intake::stream(self.body_bytes_max, body)
            }
        }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        methods::answer(request.method_bytes())
            .unwrap_or_else(|| self.report(request).response(0, &hexadecimal(&Sha256::digest([]))))
    }
}

/// A request without its body.
struct Report {
    request_line: String,
    fields: Vec<(String, String)>,
    hostname: String,
    worker: usize,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
    wants_json: bool,
}

/// A body on its way.
struct Hashed {
    report: Report,
    length: u64,
    hash: Sha256,
}

impl Upload for Hashed {
    fn chunk(&mut self, bytes: &[u8]) -> Take {
        self.length += bytes.len() as u64;
        self.hash.update(bytes);
        Take::More
    }

    fn end(self: Box<Self>, _: &Trailers) -> Response {
        self.report.response(self.length, &hexadecimal(&self.hash.finalize()))
    }
}

impl Report {
    fn response(&self, length: u64, hash: &str) -> Response {
        let response = if self.wants_json { self.json(length, hash) } else { Response::text(self.text(length, hash)) };
        response.field("Vary", "Accept").field("Cache-Control", "no-store")
    }

    fn text(&self, length: u64, hash: &str) -> String {
        let mut text = format!("{}\n", self.request_line);
        for (name, value) in &self.fields {
            let _ = writeln!(text, "{name}: {value}");
        }
        let address = |address: Option<SocketAddr>| address.map_or_else(|| "unknown".into(), |known| known.to_string());
        let _ = write!(
            text,
            "\npeer: {}\nlocal: {}\nhostname: {}\nworker: {}\nbody: {length} bytes, SHA-256 {hash}\n",
            address(self.peer),
            address(self.local),
            self.hostname,
            self.worker,
        );
        text
    }

    #[cfg(feature = "json")]
    fn json(&self, length: u64, hash: &str) -> Response {
        Response::json(&serde_json::json!({
            "request_line": self.request_line,
            "fields": self.fields,
            "peer": self.peer.map(|peer| peer.to_string()),
            "local": self.local.map(|local| local.to_string()),
            "hostname": self.hostname,
            "worker": self.worker,
            "body": { "length": length, "sha256": hash },
        }))
    }

    #[cfg(not(feature = "json"))]
    fn json(&self, length: u64, hash: &str) -> Response {
        Response::text(self.text(length, hash))
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(unix)]
fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(windows)]
fn hostname() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "unknown".into())
}
