//! Encoders of heads: of responses, and of requests for clients (RFC 9112 section 3).
//!
//! The head of the most recent 200 (OK) response is cached as one block: status line, Server, Date, Content-Type and
//! Content-Length. The next such head reuses it: only the parts that changed are rewritten, then the block is copied.

use std::io::Write;

use http::StatusCode;

use super::error::Error;
use super::syntax::{check_target, is_authority, is_token};

/// The Connection header of a response (RFC 9112 section 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// No Connection header: HTTP/1.1 connections are kept alive by default.
    Implicit,
    /// `Connection: keep-alive`, for an HTTP/1.0 client that requested it.
    KeepAlive,
    /// `Connection: close`: this is the last response on the connection.
    Close,
}

/// The framing of the content of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// By Content-Length, in bytes.
    Known(u64),
    /// By the chunked transfer coding (RFC 9112 section 7.1); HTTP/1.1 only.
    Chunked,
    /// No framing header. Either the body ends when the connection closes (HTTP/1.0), or the response has no body: 1xx,
    /// 204, 304, and 2xx to CONNECT (RFC 9110 section 8.6).
    Unspecified,
}

const OK_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";
const SERVER: &[u8] = b"Server: serverd\r\nDate: ";
const DATE_LEN: usize = "Sun, 06 Nov 1994 08:49:37 GMT".len();
/// Begins header lines that contain the Date of the origin server.
const ORIGIN_DATE: &[u8] = b"Date: ";
/// End of the Date line, including its CRLF.
const DATE_END: usize = OK_LINE.len() + SERVER.len() + DATE_LEN + 2;
const CONTENT_LENGTH: &[u8] = b"Content-Length: ";
/// The interim response that asks the client to send the request body (RFC 9110 section 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The contents of a response head.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ResponseHead<'a> {
    /// The status code.
    pub status: StatusCode,
    /// The value of Content-Type, if any.
    pub content_type: Option<&'static str>,
    /// Additional header lines, each ending in CRLF. The encoder does not validate them. If the first begins with
    /// `Date: `, as in a response that a proxy forwards, the encoder adds no Date and no Server of its own.
    pub headers: &'a [u8],
    /// Additional header lines that several responses share, in the same format; written before `headers`.
    pub shared_headers: &'a [u8],
    /// The framing of the body.
    pub length: Length,
    /// The Connection header, which says whether the connection stays open.
    pub persistence: Persistence,
}

impl<'a> ResponseHead<'a> {
    /// Creates the head of a response without a body on a connection that stays open.
    pub fn new(status: StatusCode) -> Self {
        let (length, persistence) = (Length::Known(0), Persistence::Implicit);
        ResponseHead { status, content_type: None, headers: b"", shared_headers: b"", length, persistence }
    }

    setters! {
        headers: &'a [u8],
        shared_headers: &'a [u8],
        length: Length,
        persistence: Persistence,
    }

    optional_setters! {
        content_type: &'static str,
    }
}

/// Writes response heads. Create one per thread, since it caches the last head.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// The cached head of a 200: `OK_LINE`, `SERVER`, the date, Content-Type and Content-Length lines, empty line.
    block: Vec<u8>,
    content_type: Option<&'static str>,
    /// The Content-Length in the block.
    length: u64,
    /// The offset of the digits of the Content-Length.
    length_start: usize,
    /// The Unix time of the Date in the block, in seconds.
    second: u64,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// Creates an encoder.
    pub fn new() -> Self {
        let block = [OK_LINE, SERVER, &[b'-'; DATE_LEN], b"\r\n"].concat();
        let mut encoder = Encoder { block, content_type: None, length: 0, length_start: 0, second: u64::MAX };
        encoder.render_date(0);
        encoder.render_content_type(None, 0);
        encoder
    }

    /// Appends a head to `out`. `now` is the Unix time in seconds, for the Date header.
    pub fn head(&mut self, out: &mut Vec<u8>, now: u64, head: &ResponseHead<'_>) {
        let start = out.len();
        match head.length {
            Length::Known(length) if head.status == StatusCode::OK => {
                self.ok_head(out, now, head.content_type, length);
                if head.headers.is_empty()
                    && head.shared_headers.is_empty()
                    && head.persistence == Persistence::Implicit
                {
                    return;
                }
                out.truncate(out.len() - 2);
            }
            _ => self.general_head(out, now, head),
        }
        // Usually empty, and copying nothing would still be a call.
        if !head.shared_headers.is_empty() {
            out.extend_from_slice(head.shared_headers);
        }
        if !head.headers.is_empty() {
            if head.headers.starts_with(ORIGIN_DATE) {
                remove_own_date(out, start);
            }
            out.extend_from_slice(head.headers);
        }
        end_head(out, head.persistence);
    }

    /// Fast path: appends the head of a 200 (OK) response with Content-Length, without additional headers, on a
    /// persistent HTTP/1.1 connection.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub fn ok_head(&mut self, out: &mut Vec<u8>, now: u64, content_type: Option<&'static str>, length: u64) {
        if self.second != now {
            self.render_date(now);
        }
        if !is_same(self.content_type, content_type) {
            self.render_content_type(content_type, length);
        } else if self.length != length {
            self.render_length(length);
        }
        out.extend_from_slice(&self.block);
    }

    /// Appends the lines up to and including the framing header, for any status and framing.
    fn general_head(&mut self, out: &mut Vec<u8>, now: u64, head: &ResponseHead<'_>) {
        if self.second != now {
            self.render_date(now);
        }
        status_line(out, head.status);
        out.extend_from_slice(&self.block[OK_LINE.len()..DATE_END]);
        if let Some(content_type) = head.content_type {
            content_type_line(out, content_type);
        }
        length_line(out, head.length);
    }

    #[cold]
    fn render_date(&mut self, now: u64) {
        self.second = now;
        // The year has four digits (RFC 9110 section 5.6.7); httpdate panics beyond 9999.
        let latest = 253_402_300_799;
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(now.min(latest));
        let start = OK_LINE.len() + SERVER.len();
        let mut slot = &mut self.block[start..start + DATE_LEN];
        // Formatted in place to avoid allocating a string. It fits, because the format has a fixed length.
        let written = write!(slot, "{}", httpdate::HttpDate::from(time));
        debug_assert!(written.is_ok() && slot.is_empty(), "a date has {DATE_LEN} bytes");
    }

    #[cold]
    fn render_content_type(&mut self, content_type: Option<&'static str>, length: u64) {
        self.content_type = content_type;
        self.block.truncate(DATE_END);
        if let Some(content_type) = content_type {
            content_type_line(&mut self.block, content_type);
        }
        self.block.extend_from_slice(CONTENT_LENGTH);
        self.length_start = self.block.len();
        self.render_length(length);
    }

    #[cold]
    fn render_length(&mut self, length: u64) {
        self.length = length;
        self.block.truncate(self.length_start);
        decimal_line(&mut self.block, length);
        self.block.extend_from_slice(b"\r\n");
    }
}

/// Returns whether both are the same constant. Compares addresses: equal strings at different addresses count as
/// different, which costs only a rewrite.
#[inline]
fn is_same(one: Option<&'static str>, other: Option<&'static str>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => std::ptr::eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// Appends the header that delimits the content, if there is one.
fn length_line(out: &mut Vec<u8>, length: Length) {
    match length {
        Length::Known(length) => {
            out.extend_from_slice(CONTENT_LENGTH);
            decimal_line(out, length);
        }
        Length::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Length::Unspecified => {}
    }
}

/// Appends the Connection header, if there is one, and the empty line.
#[inline]
fn end_head(out: &mut Vec<u8>, persistence: Persistence) {
    match persistence {
        Persistence::Implicit => out.extend_from_slice(b"\r\n"),
        Persistence::KeepAlive => out.extend_from_slice(b"Connection: keep-alive\r\n\r\n"),
        Persistence::Close => out.extend_from_slice(b"Connection: close\r\n\r\n"),
    }
}

#[inline]
fn decimal_line(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn content_type_line(out: &mut Vec<u8>, content_type: &str) {
    out.extend_from_slice(b"Content-Type: ");
    out.extend_from_slice(content_type.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Removes the encoder's Server and Date from the head that begins at `start`. A proxy does not replace the Date of the
/// origin server, to which Age and Expires refer.
#[cold]
fn remove_own_date(out: &mut Vec<u8>, start: usize) {
    if let Some(at) = memchr::memmem::find(&out[start..], SERVER) {
        out.drain(start + at..start + at + SERVER.len() + DATE_LEN + 2);
    }
}

fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    // The space is required even without a reason phrase (RFC 9112 section 4).
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The head of a request to send. Its content follows, framed by [`SendFraming`](super::SendFraming).
///
/// # Examples
/// ```
/// use serverd::http1::{Length, RequestHead};
///
/// let mut output = Vec::new();
/// RequestHead::new("GET", "/a?b", "example.com").headers(b"Accept: */*\r\n").encode(&mut output)?;
/// assert_eq!(output, b"GET /a?b HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\n\r\n");
/// # Ok::<(), serverd::http1::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestHead<'a> {
    /// The method, such as `GET`.
    pub method: &'a str,
    /// The request target, usually a path and a query.
    pub target: &'a str,
    /// The value of the Host header: the host, and the port if it is not the default one.
    pub host: &'a str,
    /// Additional header lines, each ending in CRLF. They are not validated, and must not contain Host, Content-Length,
    /// Transfer-Encoding or Connection.
    pub headers: &'a [u8],
    /// The framing of the content.
    pub length: Length,
    /// The Connection header, which says whether the connection stays open.
    pub persistence: Persistence,
}

impl<'a> RequestHead<'a> {
    /// Creates the head of a request without content on a connection that stays open.
    pub fn new(method: &'a str, target: &'a str, host: &'a str) -> Self {
        let (length, persistence) = (Length::Unspecified, Persistence::Implicit);
        RequestHead { method, target, host, headers: b"", length, persistence }
    }

    setters! {
        headers: &'a [u8],
        length: Length,
        persistence: Persistence,
    }

    /// Appends the head to `out`.
    ///
    /// # Errors
    /// Returns an error, and appends nothing, if the method, the target or the host is invalid.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        check(self.method.as_bytes(), self.target.as_bytes(), self.host.as_bytes())?;
        for part in [self.method, " ", self.target, VERSION_AND_HOST, self.host, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(self.headers);
        length_line(out, self.length);
        end_head(out, self.persistence);
        Ok(())
    }
}

/// What is between the target and the value of Host.
const VERSION_AND_HOST: &str = " HTTP/1.1\r\nHost: ";

fn check(method: &[u8], target: &[u8], host: &[u8]) -> Result<(), Error> {
    if !is_token(method) {
        return Err(Error::Method);
    }
    check_target(method, target)?;
    if is_authority(host) { Ok(()) } else { Err(Error::Host) }
}

/// The head of a request that is written in the buffer from which it is sent, and validated at its end.
#[derive(Debug)]
pub(crate) struct RequestDraft {
    bytes: Vec<u8>,
    method_len: usize,
    target_len: usize,
    host_len: usize,
}

impl RequestDraft {
    /// Begins a head. The target consists of parts. `headers_bytes` is the expected size of further header lines.
    pub(crate) fn new(method: &[u8], target: &[&[u8]], host: &[u8], headers_bytes: usize) -> Self {
        let target_len = target.iter().map(|part| part.len()).sum();
        let fixed_bytes = method.len() + 1 + target_len + VERSION_AND_HOST.len() + host.len() + 2;
        let mut bytes = Vec::with_capacity(fixed_bytes + headers_bytes);
        for part in [method, b" "].iter().chain(target).chain(&[VERSION_AND_HOST.as_bytes(), host, b"\r\n"]) {
            bytes.extend_from_slice(part);
        }
        RequestDraft { bytes, method_len: method.len(), target_len, host_len: host.len() }
    }

    pub(crate) fn method(&self) -> &[u8] {
        &self.bytes[..self.method_len]
    }

    fn target(&self) -> &[u8] {
        &self.bytes[self.method_len + 1..][..self.target_len]
    }

    fn host_start(&self) -> usize {
        self.method_len + 1 + self.target_len + VERSION_AND_HOST.len()
    }

    /// Replaces the value of Host.
    pub(crate) fn set_host(&mut self, host: &str) {
        let start = self.host_start();
        self.bytes.splice(start..start + self.host_len, host.bytes());
        self.host_len = host.len();
    }

    /// Returns the head so far, and the offset at which the header lines after Host begin.
    pub(crate) fn lines(&mut self) -> (&mut Vec<u8>, usize) {
        let start = self.host_start() + self.host_len + 2;
        (&mut self.bytes, start)
    }

    /// Ends the head of a request on a connection that stays open.
    ///
    /// # Errors
    /// Returns an error if the method, the target or the host is invalid.
    pub(crate) fn finish(mut self, length: Length) -> Result<Vec<u8>, Error> {
        let start = self.host_start();
        check(self.method(), self.target(), &self.bytes[start..start + self.host_len])?;
        length_line(&mut self.bytes, length);
        end_head(&mut self.bytes, Persistence::Implicit);
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{Connection, Event, Framing, Head, Limits};

    fn head(status: StatusCode, length: Length, persistence: Persistence) -> String {
        let mut out = Vec::new();
        let head = ResponseHead::new(status).content_type("text/plain").headers(b"A: b\r\n");
        let head = head.length(length).persistence(persistence);
        Encoder::new().head(&mut out, 784_111_777, &head);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn head_lines_are_in_order() {
        assert_eq!(
            head(StatusCode::OK, Length::Known(28), Persistence::Implicit),
            "HTTP/1.1 200 OK\r\nServer: serverd\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             Content-Type: text/plain\r\nContent-Length: 28\r\nA: b\r\n\r\n"
        );
    }

    #[test]
    fn a_status_without_a_reason_keeps_its_space() {
        let text = head(StatusCode::from_u16(599).unwrap(), Length::Unspecified, Persistence::Close);
        assert!(text.starts_with("HTTP/1.1 599 \r\nServer: "), "{text}");
        assert!(text.ends_with("A: b\r\nConnection: close\r\n\r\n"), "{text}");
    }

    #[test]
    fn each_head_has_the_content_type_it_was_given() {
        let mut encoder = Encoder::new();
        for content_type in [Some("text/html"), None, Some("text/css"), Some("text/html"), Some("text/html")] {
            let mut out = Vec::new();
            let head = ResponseHead::new(StatusCode::OK).content_type(content_type).length(Length::Known(1));
            encoder.head(&mut out, 0, &head);
            let text = String::from_utf8(out).unwrap();
            let seen: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("Content-Type: ")).collect();
            assert_eq!(seen, content_type.into_iter().collect::<Vec<_>>());
            assert!(text.ends_with("Content-Length: 1\r\n\r\n"), "{text}");
        }
    }

    #[test]
    fn the_date_follows_the_clock() {
        let mut encoder = Encoder::new();
        for (now, date) in [(0, "Thu, 01 Jan 1970 00:00:00 GMT"), (1, "Thu, 01 Jan 1970 00:00:01 GMT")] {
            let mut out = Vec::new();
            let head = ResponseHead::new(StatusCode::OK).persistence(Persistence::KeepAlive);
            encoder.head(&mut out, now, &head);
            assert!(String::from_utf8(out).unwrap().contains(date));
        }
        encoder.render_date(u64::MAX);
    }

    #[test]
    fn an_encoded_head_is_parsed_with_the_same_meaning() {
        for (method, target, length, framing) in [
            ("GET", "/", Length::Unspecified, Framing::None),
            ("OPTIONS", "*", Length::Unspecified, Framing::None),
            ("POST", "/a?b=%20", Length::Known(0), Framing::None),
            ("PUT", "/a", Length::Known(12), Framing::Length(12)),
            ("X-ANY", "/", Length::Chunked, Framing::Chunked),
        ] {
            let mut bytes = Vec::new();
            let request = RequestHead::new(method, target, "a.test:81").headers(b"X-A: b\r\n").length(length);
            request.persistence(Persistence::Close).encode(&mut bytes).unwrap();
            let (mut connection, mut head) = (Connection::new(), Head::default());
            let (_, event) = connection.receive(&mut head, &Limits::default(), &bytes).unwrap();
            assert_eq!(event, Event::Head { len: bytes.len() });
            assert_eq!((head.method(&bytes), head.target(&bytes)), (method.as_bytes(), target.as_bytes()));
            assert_eq!((head.framing(), head.is_persistent()), (framing, false));
        }
    }

    #[test]
    fn nothing_is_appended_for_an_invalid_head() {
        for (method, target, host, error) in [
            ("", "/", "a", Error::Method),
            ("GET /", "/", "a", Error::Method),
            ("GET", "", "a", Error::Target),
            ("GET", "/ HTTP/1.1\r\nX: y", "a", Error::Target),
            ("GET", "*", "a", Error::Asterisk),
            ("GET", "/", "", Error::Host),
            ("GET", "/", "a\r\nX: y", Error::Host),
        ] {
            let mut bytes = Vec::new();
            assert_eq!(
                RequestHead::new(method, target, host).encode(&mut bytes),
                Err(error),
                "{method} {target} {host}"
            );
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn the_date_and_server_of_an_origin_replace_those_of_the_encoder() {
        let origin = b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nServer: a\r\nAge: 9\r\n";
        for status in [StatusCode::OK, StatusCode::NOT_FOUND] {
            for (headers, count) in [(&origin[..], 1), (&b"Server: a\r\n"[..], 2), (&b"Dates: a\r\n"[..], 1)] {
                let mut out = b"before".to_vec();
                let head = ResponseHead::new(status).headers(headers).shared_headers(b"Shared: 1\r\n");
                Encoder::new().head(&mut out, 1_000_000_000, &head);
                let text = String::from_utf8(out).unwrap();
                assert_eq!(text.contains("Date: Sun, 09 Sep 2001"), headers != origin, "{text}");
                assert_eq!(
                    (text.matches("\r\nDate: ").count(), text.matches("\r\nServer: ").count()),
                    (1, count),
                    "{text}"
                );
                assert!(text.starts_with("beforeHTTP/1.1 ") && text.contains("Shared: 1\r\n"), "{text}");
                assert!(text.contains(std::str::from_utf8(headers).unwrap()) && text.ends_with("\r\n\r\n"), "{text}");
            }
        }
    }

    #[test]
    fn a_draft_becomes_the_same_head() {
        for (method, target, host, other, length) in [
            ("GET", ["/", "", ""], "a", "a.test:81", Length::Unspecified),
            ("POST", ["/a", "?", "b=c"], "a.test", "b", Length::Known(2)),
            ("X-ANY", ["*", "", ""], "", "a", Length::Chunked),
            ("GET /", ["/", "", ""], "a", "b", Length::Chunked),
            ("GET", ["/", "", ""], "a", "a\r\nX: y", Length::Chunked),
            ("GET", ["/", "?", "a b"], "a", "b", Length::Chunked),
            ("", ["", "", ""], "", "", Length::Chunked),
        ] {
            for host in [host, other] {
                let parts = target.map(str::as_bytes);
                let mut draft = RequestDraft::new(method.as_bytes(), &parts, b"a.test", 0);
                assert_eq!(draft.method(), method.as_bytes());
                draft.lines().0.extend_from_slice(b"A: b\r\n");
                draft.set_host(host);
                let (bytes, start) = draft.lines();
                assert_eq!(&bytes[start..], b"A: b\r\n");
                bytes.truncate(start);
                bytes.extend_from_slice(b"C: d\r\n");
                let mut expected = Vec::new();
                let target = target.concat();
                let head = RequestHead::new(method, &target, host).headers(b"C: d\r\n").length(length);
                let result = head.encode(&mut expected).map(|()| expected);
                assert_eq!(draft.finish(length), result, "{method} {target} {host}");
            }
        }
    }
}
