//! `serverd whoami`: echoes each request back to its sender, to debug proxies and load balancers.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use sha2::{Digest, Sha256};

use super::basic::method_response;
use crate::httpserver::{BodyFlow, BodyMode, BodySink, Handler, Request, RequestHead, Response, Trailers};
use crate::r#loop::{Peer, Proxied};
use crate::tls::{TlsInfo, TlsVersion};

/// A [`Handler`] that responds with a description of the request.
///
/// The response contains the request line and headers as received, both addresses of the connection, the parameters of
/// TLS with the client's certificate, the host name, the worker number, and the length and SHA-256 hash of the body. It
/// is plain text, or JSON if Accept prefers that. The body is hashed as it arrives and not buffered.
#[derive(Clone, Debug)]
pub struct Whoami {
    worker: usize,
    body_bytes_max: u64,
    hostname: String,
}

impl Whoami {
    /// Creates the handler for worker number `worker`. Bodies longer than `body_bytes_max` bytes get a 413 response.
    pub fn new(worker: usize, body_bytes_max: u64) -> Self {
        Whoami { worker, body_bytes_max, hostname: hostname() }
    }

    fn report(&self, head: &RequestHead<'_>) -> Report {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let line = head.as_bytes().split(|&byte| byte == b'\n').find(|line| !line.trim_ascii().is_empty());
        Report {
            request_line: text(line.unwrap_or_default().trim_ascii()),
            headers: head.headers().map(|(name, value)| (text(name), text(value))).collect(),
            hostname: self.hostname.clone(),
            worker: self.worker,
            client_addr: head.client_addr(),
            scheme: if head.is_secure() { "https" } else { "http" },
            request_id: head.request_id(),
            proxied: head.proxied().map(describe_proxied),
            peer: head.peer(),
            local_addr: head.local_addr(),
            tls: head.tls(),
            wants_json: head.weight_of("application/json") > head.weight_of("text/plain"),
        }
    }
}

impl Handler for Whoami {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        match method_response(head.method_bytes()) {
            Some(response) if response.status() != StatusCode::NO_CONTENT => BodyMode::Reject(response),
            Some(_) => BodyMode::Default,
            None => {
                let body = HashedBody { report: self.report(head), length: 0, hasher: Sha256::new() };
                BodyMode::stream(self.body_bytes_max, body)
            }
        }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        method_response(request.method_bytes())
            .unwrap_or_else(|| self.report(request).response(0, &hex(&Sha256::digest([]))))
    }
}

/// The description of a request without its body.
struct Report {
    request_line: String,
    headers: Vec<(String, String)>,
    hostname: String,
    worker: usize,
    client_addr: Option<SocketAddr>,
    scheme: &'static str,
    request_id: Option<Arc<str>>,
    /// The addresses of the PROXY header.
    proxied: Option<String>,
    peer: Option<Peer>,
    local_addr: Option<SocketAddr>,
    tls: Option<TlsInfo>,
    wants_json: bool,
}

fn describe_proxied(proxied: Proxied) -> String {
    let Proxied { source: Some(source), destination: Some(destination), .. } = proxied else {
        return "no addresses".to_owned();
    };
    format!("from {source} to {destination}")
}

/// Hashes a body as it arrives.
struct HashedBody {
    report: Report,
    length: u64,
    hasher: Sha256,
}

impl BodySink for HashedBody {
    fn chunk(&mut self, bytes: &[u8]) -> BodyFlow {
        self.length += bytes.len() as u64;
        self.hasher.update(bytes);
        BodyFlow::Continue
    }

    fn end(self: Box<Self>, _: &Trailers) -> Response {
        self.report.response(self.length, &hex(&self.hasher.finalize()))
    }
}

impl Report {
    fn response(&self, length: u64, hash: &str) -> Response {
        let response = if self.wants_json { self.json(length, hash) } else { Response::text(self.text(length, hash)) };
        response.header("Vary", "Accept").header("Cache-Control", "no-store")
    }

    fn text(&self, length: u64, hash: &str) -> String {
        let mut text = format!("{}\n", self.request_line);
        for (name, value) in &self.headers {
            let _ = writeln!(text, "{name}: {value}");
        }
        let address = |address: Option<SocketAddr>| address.map_or_else(|| "unknown".into(), |known| known.to_string());
        text.push('\n');
        let lines = [("request id", self.request_id.as_deref()), ("proxy header", self.proxied.as_deref())];
        for (name, value) in lines.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
            let _ = writeln!(text, "{name}: {value}");
        }
        let _ = write!(
            text,
            "client: {}\nscheme: {}\npeer: {}\nlocal: {}\n{}hostname: {}\nworker: {}\nbody: {length} bytes, SHA-256 {hash}\n",
            self.client_text().as_deref().unwrap_or("unknown"),
            self.scheme,
            self.peer.map_or_else(|| "unknown".into(), |peer| peer.to_string()),
            address(self.local_addr),
            self.tls.as_ref().map(tls_text).unwrap_or_default(),
            self.hostname,
            self.worker,
        );
        text
    }

    /// The client's address, with its port if that is known; the peer for a client of a Unix socket.
    fn client_text(&self) -> Option<String> {
        let Some(client) = self.client_addr else {
            return self.peer.filter(|peer| peer.is_unix()).map(|peer| peer.to_string());
        };
        Some(if client.port() == 0 { client.ip().to_string() } else { client.to_string() })
    }

    fn json(&self, length: u64, hash: &str) -> Response {
        Response::json(&serde_json::json!({
            "request_line": self.request_line,
            "fields": self.headers,
            "client": self.client_text(),
            "scheme": self.scheme,
            "request_id": self.request_id.as_deref(),
            "proxy_header": self.proxied,
            "peer": self.peer.map(|peer| peer.to_string()),
            "local": self.local_addr.map(|local| local.to_string()),
            "tls": self.tls.as_ref().map(tls_json),
            "hostname": self.hostname,
            "worker": self.worker,
            "body": { "length": length, "sha256": hash },
        }))
    }
}

fn version(tls: &TlsInfo) -> &'static str {
    match tls.version {
        TlsVersion::Tls12 => "1.2",
        TlsVersion::Tls13 => "1.3",
    }
}

/// Describes a TLS session in one line, and the certificate of the client in another.
fn tls_text(tls: &TlsInfo) -> String {
    let mut text = format!("tls: {}, {}", version(tls), tls.cipher_suite);
    for (title, value) in [("server name", &tls.server_name), ("protocol", &tls.alpn_protocol)] {
        let _ = value.iter().try_for_each(|value| write!(text, ", {title} {value}"));
    }
    text.push('\n');
    if let Some(client) = &tls.client_certificate {
        let _ = writeln!(text, "client certificate: {}, SHA-256 {}", client.subject, client.fingerprint);
    }
    text
}

fn tls_json(tls: &TlsInfo) -> serde_json::Value {
    serde_json::json!({
        "version": version(tls),
        "cipher_suite": tls.cipher_suite,
        "server_name": tls.server_name,
        "protocol": tls.alpn_protocol,
        "client_certificate": tls.client_certificate.as_ref().map(|client| {
            serde_json::json!({ "subject": client.subject, "sha256": client.fingerprint })
        }),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(unix)]
pub(crate) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(windows)]
pub(crate) fn hostname() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "unknown".into())
}
