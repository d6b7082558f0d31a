//! Requests of a client.

use std::sync::Arc;

use bytes::Bytes;
use http::uri::{Scheme, Uri};

use super::error::ClientError;
use super::fetched::Fetched;
use super::headers::{push_line, remove_lines};
use super::job::{Content, Job, Receiver, Sink};
use super::pool::{Key, Pool};
use super::upstream::dispatch;
use crate::http1::{Length, RequestHead, SendFraming, is_header_value, is_token};
use crate::httpserver::{BodyReader, Responder, Response};

/// Headers that the client sets itself.
const RESERVED: [&str; 6] = ["connection", "content-length", "expect", "host", "transfer-encoding", "upgrade"];

/// A request to send, created by [`Client::get`](super::Client::get), [`Client::request`](super::Client::request) or
/// [`Client::forward`](super::Client::forward).
///
/// Methods that add something invalid make the request fail when it is sent.
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
    pub(super) key: Key,
    pub(super) method: String,
    pub(super) target: String,
    /// The value of Host.
    pub(super) host: String,
    pub(super) headers: Vec<u8>,
    pub(super) content: Option<Content>,
    /// The length of the content if that is read from a reader.
    pub(super) length: Option<u64>,
    /// The names of trailers that may follow the content that is read from a reader.
    pub(super) trailers: Vec<String>,
}

/// Parses a URL into the upstream, the target and the value of Host.
pub(super) fn parse_url(url: &str) -> Result<(Key, String, String), ClientError> {
    let uri: Uri = url.parse().map_err(|_| ClientError::Url)?;
    let authority = uri.authority().ok_or(ClientError::Url)?;
    let is_secure = uri.scheme() == Some(&Scheme::HTTPS);
    // RFC 9110 section 4.2.4: user information in an http URI is an error.
    if !(is_secure || uri.scheme() == Some(&Scheme::HTTP))
        || authority.as_str().contains('@')
        || authority.host().is_empty()
    {
        return Err(ClientError::Url);
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let has_port = authority.as_str().len() > authority.host().len() + 1;
    let port = authority.port_u16();
    if has_port != port.is_some() {
        return Err(ClientError::Url);
    }
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    let port = port.unwrap_or(if is_secure { 443 } else { 80 });
    Ok((Key { is_secure, host, port }, target, authority.as_str().to_owned()))
}

impl ClientRequest {
    pub(super) fn new(pool: &Arc<Pool>, method: &str, url: &str) -> Self {
        let method = method.to_owned();
        let outcome = parse_url(url).map(|(key, target, host)| Parts {
            key,
            method,
            target,
            host,
            headers: Vec::new(),
            content: None,
            length: None,
            trailers: Vec::new(),
        });
        ClientRequest::from_parts(pool, outcome)
    }

    pub(super) fn from_parts(pool: &Arc<Pool>, outcome: Result<Parts, ClientError>) -> Self {
        ClientRequest { pool: Arc::clone(pool), outcome }
    }

    fn change(mut self, change: impl FnOnce(&mut Parts) -> Result<(), ClientError>) -> Self {
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
            push_line(&mut parts.headers, name.as_bytes(), value);
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
            remove_lines(&mut parts.headers, name.as_bytes());
            Ok(())
        })
    }

    /// Sets the Host header, which is that of the URL or of the forwarded request otherwise.
    pub fn host(self, host: &str) -> Self {
        self.change(|parts| {
            host.clone_into(&mut parts.host);
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

    /// Sets the content to that of a request to this server, which is sent as it arrives: the client of this server is read
    /// only as fast as the upstream takes the content. It is sent with the length of the forwarded request, or else with
    /// chunked transfer coding, followed by its trailers if the Trailer header of the forwarded request lists any.
    pub fn body_reader(self, body: BodyReader) -> Self {
        self.change(|parts| {
            parts.content = Some(Content::Reader(body));
            Ok(())
        })
    }

    /// Sends the request, and calls `call` with the complete response on the thread of a loop.
    ///
    /// If the request cannot be sent, `call` is called at once.
    pub fn send(self, call: impl FnOnce(Result<Fetched, ClientError>) + Send + 'static) {
        self.start(Sink::new(Receiver::Collect(Box::new(call))));
    }

    /// Sends the request, and returns a deferred response of this server that forwards that of the upstream as it arrives: its
    /// status, its headers except those that concern only the connection, its body and its trailers. The body is received
    /// only as fast as the client of this server reads it. If the request fails, the response is that of [`ClientError`]; if
    /// it fails within the body, the connection to the client is closed.
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
        let key = parts.key.clone();
        if !self.pool.supports(&key) {
            return sink.fail(ClientError::NoTls);
        }
        match encode(parts) {
            Ok((head, framing, content)) => {
                let method = head.split(|&byte| byte == b' ').next().unwrap_or_default();
                let is_idempotent =
                    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE" | b"QUERY");
                let is_head = method == b"HEAD";
                let job = Job { is_head, is_idempotent, is_retry: false, head, content, framing, sink };
                dispatch(&self.pool, &key, job);
            }
            Err(error) => sink.fail(error),
        }
    }
}

/// Encodes the head of a request.
fn encode(parts: Parts) -> Result<(Vec<u8>, SendFraming, Content), ClientError> {
    let Parts { method, target, host, mut headers, content, length, trailers, .. } = parts;
    if method == "CONNECT" {
        return Err(ClientError::Request(crate::http1::Error::Method));
    }
    let framing = match (&content, length) {
        (Some(Content::Bytes(bytes, _)), _) => SendFraming::Length(bytes.len() as u64),
        (Some(Content::Reader(_)), Some(length)) => SendFraming::Length(length),
        // An upstream that does not expect trailers ignores them (RFC 9110 section 6.5.1).
        (Some(Content::Reader(_)), None) => SendFraming::Chunked { trailers: !trailers.is_empty() },
        (None, _) => SendFraming::Length(0),
    };
    if framing == (SendFraming::Chunked { trailers: true }) {
        push_line(&mut headers, b"Trailer", trailers.join(", ").as_bytes());
    }
    // RFC 9110 section 8.6: without content, only methods that anticipate it get a Content-Length.
    let announces = content.is_some() || matches!(method.as_str(), "POST" | "PUT" | "PATCH");
    let length = match framing {
        SendFraming::Length(length) if announces => Length::Known(length),
        SendFraming::Chunked { .. } => Length::Chunked,
        _ => Length::Unspecified,
    };
    let mut head = Vec::with_capacity(headers.len() + target.len() + host.len() + 64);
    let request = RequestHead::new(&method, &target, &host).headers(&headers).length(length);
    request.encode(&mut head).map_err(ClientError::Request)?;
    Ok((head, framing, content.unwrap_or(Content::Bytes(Bytes::new(), 0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_into_upstream_target_and_host() {
        for (url, host, port, target, authority) in [
            ("http://a.test", "a.test", 80, "/", "a.test"),
            ("http://A.test:81/b?c#d", "a.test", 81, "/b?c", "A.test:81"),
            ("http://[::1]:8080?q", "::1", 8080, "/?q", "[::1]:8080"),
            ("https://a.test", "a.test", 443, "/", "a.test"),
            ("HTTPS://a.test:80/", "a.test", 80, "/", "a.test:80"),
        ] {
            let (key, found, value) = parse_url(url).unwrap();
            assert_eq!(key.is_secure, url.to_ascii_lowercase().starts_with("https"));
            assert_eq!((key.host.as_str(), key.port, found.as_str(), value.as_str()), (host, port, target, authority));
        }
        for url in
            ["", "/a", "a.test", "ftp://a.test/", "http://", "http://u@a.test/", "http://a.test:99999/", "http://a b/"]
        {
            assert!(matches!(parse_url(url), Err(ClientError::Url)), "{url}");
        }
    }

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
        assert_eq!(request.outcome.map(|parts| parts.headers).unwrap(), b"B: 2\r\na: 3\r\n");
    }
}
