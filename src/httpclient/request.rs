//! Requests of a client.

use std::sync::Arc;

use bytes::Bytes;

use super::error::ClientError;
use super::headers::{is_line_of, push_line, remove_lines};
use super::job::{ClientResponse, Content, Job, Receiver, Sink};
use super::pool::Pool;
use super::upstream::dispatch;
use super::url::{Key, parse_url};
use crate::http1::{Error, Length, RequestDraft, SendFraming, is_header_value, is_token};
use crate::httpserver::{BodyReader, Responder, Response};

/// Headers that the client sets itself.
const RESERVED: [&str; 6] = ["connection", "content-length", "expect", "host", "transfer-encoding", "upgrade"];

/// Memory reserved for the headers of a request.
const HEADERS_BYTES: usize = 128;

/// A request to send, created by [`Client::get`](super::Client::get), [`Client::request`](super::Client::request) or
/// [`Client::forward`](super::Client::forward).
///
/// Errors in these methods are reported when the request is sent.
///
/// # Examples
/// ```
/// use serverd::{Client, HttpServer, Request};
///
/// let client = Client::new();
/// let server = HttpServer::new(move |request: &Request<'_>| {
///     let upload = client.request("PUT", "http://127.0.0.1:9000/copy").header("Content-Type", "text/plain");
///     upload.body(request.body().to_vec()).respond()
/// });
/// # drop(server);
/// ```
#[must_use = "a request does nothing until it is sent"]
pub struct ClientRequest {
    pool: Arc<Pool>,
    outcome: Result<Parts, ClientError>,
}

/// The parts of a valid request.
pub(super) struct Parts {
    pub(super) key: Arc<Key>,
    pub(super) head: RequestDraft,
    pub(super) content: Option<Content>,
    /// The length of the content if that is read from a reader.
    pub(super) length: Option<u64>,
    /// The names of trailers that may follow the content that is read from a reader.
    pub(super) trailers: Vec<String>,
}

impl ClientRequest {
    pub(super) fn new(pool: &Arc<Pool>, method: &str, url: &str) -> Self {
        let outcome = parse_url(url).map(|(key, target, host)| Parts {
            key: Arc::new(key),
            head: RequestDraft::new(method.as_bytes(), &[target.as_bytes()], host.as_bytes(), HEADERS_BYTES),
            content: None,
            length: None,
            trailers: Vec::new(),
        });
        ClientRequest::from_parts(pool, outcome)
    }

    pub(super) fn from_parts(pool: &Arc<Pool>, outcome: Result<Parts, ClientError>) -> Self {
        ClientRequest { pool: Arc::clone(pool), outcome }
    }

    pub(super) fn change(mut self, change: impl FnOnce(&mut Parts) -> Result<(), ClientError>) -> Self {
        if let Ok(parts) = &mut self.outcome
            && let Err(error) = change(parts)
        {
            self.outcome = Err(error);
        }
        self
    }

    /// Adds a header. Connection, Content-Length, Expect, Host, Transfer-Encoding and Upgrade are set by the client itself.
    pub fn header(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.change(|parts| {
            let value = value.as_ref();
            let is_reserved = RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved));
            if is_reserved || !is_token(name.as_bytes()) || !is_header_value(value) {
                return Err(ClientError::Header);
            }
            push_line(parts.head.lines().0, name.as_bytes(), value);
            Ok(())
        })
    }

    /// Removes all headers with this name, and adds one.
    pub fn replace_header(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.remove_header(name).header(name, value)
    }

    /// Removes all headers with this name.
    pub fn remove_header(self, name: &str) -> Self {
        self.change(|parts| {
            let (lines, start) = parts.head.lines();
            remove_lines(lines, start, |line| is_line_of(line, name.as_bytes()));
            Ok(())
        })
    }

    /// Overrides the Host header, which by default is that of the URL or of the forwarded request.
    pub fn host(self, host: &str) -> Self {
        self.change(|parts| {
            parts.head.set_host(host);
            Ok(())
        })
    }

    /// Sets the content to bytes in memory.
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        self.change(|parts| {
            parts.content = Some(Content::Bytes(body.into(), 0));
            parts.length = None;
            Ok(())
        })
    }

    /// Streams the body of a received request, with back-pressure. Sends Content-Length if that request had one, otherwise
    /// chunked transfer coding, with the trailers that its Trailer header names.
    ///
    /// A successful response is passed on only once the upload is complete, since a response ends the upload. An upstream that
    /// waits until its response is read before it reads on is therefore too slow: it gets no more time than
    /// [`ClientLimits::response_timeout`](super::ClientLimits::response_timeout).
    pub fn body_reader(self, body: BodyReader) -> Self {
        self.change(|parts| {
            parts.content = Some(Content::Reader(body));
            Ok(())
        })
    }

    /// Sends the request, and calls `call` with the complete response on the thread of a loop.
    ///
    /// If the request cannot be sent, `call` is called at once.
    pub fn send(self, call: impl FnOnce(Result<ClientResponse, ClientError>) + Send + 'static) {
        self.start(Sink::new(Receiver::Collect(Box::new(call))));
    }

    /// Sends the request, and returns a deferred response of this server that forwards that of the upstream as it arrives: its
    /// status, its headers except those that concern only the connection, its body and its trailers. The body is received
    /// only as fast as the client of this server reads it. If the request fails, the response is that of [`ClientError`]; if
    /// it fails within the body, the connection to the client is closed.
    ///
    /// Date and Server are those of the upstream, so that Age and Expires keep their meaning; an upstream without Date gets
    /// both from this server.
    ///
    /// Change the response with [`Response::map`].
    pub fn respond(self) -> Response {
        let (response, responder) = Response::later();
        self.respond_to(responder);
        response
    }

    /// Sends the request, and forwards the response as [`ClientRequest::respond`] does, through a [`Responder`].
    pub fn respond_to(self, responder: Responder) {
        self.start(Sink::new(Receiver::Forward(responder)));
    }

    fn start(self, sink: Sink) {
        let parts = match self.outcome {
            Ok(parts) => parts,
            Err(error) => return sink.fail(error),
        };
        let key = Arc::clone(&parts.key);
        if !self.pool.supports(&key) {
            return sink.fail(ClientError::NoTls);
        }
        match encode(parts, sink) {
            Ok(job) => dispatch(&self.pool, &key, job),
            Err((sink, error)) => sink.fail(ClientError::Request(error)),
        }
    }
}

/// Encodes a request.
fn encode(parts: Parts, sink: Sink) -> Result<Job, (Sink, Error)> {
    let Parts { mut head, content, length, trailers, .. } = parts;
    let method = head.method();
    if method == b"CONNECT" {
        return Err((sink, Error::Method));
    }
    let is_idempotent = matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE" | b"QUERY");
    let is_head = method == b"HEAD";
    let framing = match (&content, length) {
        (Some(Content::Bytes(bytes, _)), _) => SendFraming::Length(bytes.len() as u64),
        (Some(Content::Reader(_)), Some(length)) => SendFraming::Length(length),
        // An upstream that does not expect trailers ignores them (RFC 9110 section 6.5.1).
        (Some(Content::Reader(_)), None) => SendFraming::Chunked { trailers: !trailers.is_empty() },
        (None, _) => SendFraming::Length(0),
    };
    // RFC 9110 section 8.6: without content, only methods that anticipate it get a Content-Length.
    let announces = content.is_some() || matches!(method, b"POST" | b"PUT" | b"PATCH");
    let length = match framing {
        SendFraming::Length(length) if announces => Length::Known(length),
        SendFraming::Chunked { .. } => Length::Chunked,
        _ => Length::Unspecified,
    };
    if framing == (SendFraming::Chunked { trailers: true }) {
        push_line(head.lines().0, b"Trailer", trailers.join(", ").as_bytes());
    }
    let content = content.unwrap_or(Content::Bytes(Bytes::new(), 0));
    match head.finish(length) {
        Ok(head) => Ok(Job { head, content, framing, is_head, is_idempotent, is_retry: false, sink }),
        Err(error) => Err((sink, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_framing_and_invalid_ones_are_rejected() {
        let client = crate::Client::new();
        for (name, value) in
            [("Content-Length", "1"), ("host", "b"), ("a b", "c"), ("A", "b\r\nC: d"), ("Upgrade", "x")]
        {
            let request = client.get("http://a.test/").header(name, value);
            assert!(matches!(request.outcome, Err(ClientError::Header)), "{name}");
        }
        let request = client.get("http://a.test/").header("A", "1").header("B", "2").replace_header("a", "3");
        let mut parts = request.host("b.test:81").outcome.unwrap();
        let (head, start) = parts.head.lines();
        assert_eq!(head, b"GET / HTTP/1.1\r\nHost: b.test:81\r\nB: 2\r\na: 3\r\n");
        assert_eq!(&head[start..], b"B: 2\r\na: 3\r\n");
    }
}
