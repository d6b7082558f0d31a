//! Response headers, validated when added and stored as formatted lines.

use crate::http1;

/// Headers that the server sets itself, from the state of the connection and the body.
const RESERVED: [&str; 6] = ["connection", "content-length", "date", "server", "trailer", "transfer-encoding"];

/// Headers that are meaningless or harmful as trailers: framing, routing, authentication, request modifiers and content
/// metadata (RFC 9110 section 6.5.1).
const NOT_IN_TRAILERS: [&str; 24] = [
    "authorization",
    "cache-control",
    "content-encoding",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "expires",
    "forwarded",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "location",
    "max-forwards",
    "range",
    "retry-after",
    "set-cookie",
    "te",
    "upgrade",
    "vary",
    "www-authenticate",
];

/// The reason a header was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderError {
    /// The name is not a token (RFC 9110 section 5.6.2).
    Name,
    /// The value contains a control character. CR, LF or NUL would allow header injection (response splitting).
    Value,
    /// The server sets this header itself: Connection (see [`Response::close`](super::Response::close)),
    /// Content-Length, Date, Server, Trailer, Transfer-Encoding.
    Reserved,
    /// The header is not allowed as a trailer (RFC 9110 section 6.5.1).
    Trailer,
}

impl std::fmt::Display for HeaderError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            HeaderError::Name => "invalid header name: not a token",
            HeaderError::Value => "invalid header value: contains a control character",
            HeaderError::Reserved => "the server sets this header itself",
            HeaderError::Trailer => "this header is not allowed as a trailer",
        })
    }
}

impl std::error::Error for HeaderError {}

fn is_one_of(name: &str, list: &[&str]) -> bool {
    list.iter().any(|listed| name.eq_ignore_ascii_case(listed))
}

/// Checks whether a header may be sent.
pub(super) fn check(name: &str, value: &[u8]) -> Result<(), HeaderError> {
    if !http1::is_token(name.as_bytes()) {
        return Err(HeaderError::Name);
    }
    if !http1::is_header_value(value) {
        return Err(HeaderError::Value);
    }
    if is_one_of(name, &RESERVED) {
        return Err(HeaderError::Reserved);
    }
    Ok(())
}

/// Checks a header and appends its line.
pub(super) fn push(lines: &mut Vec<u8>, name: &str, value: &[u8]) -> Result<(), HeaderError> {
    check(name, value)?;
    lines.reserve(name.len() + value.len() + 4);
    for part in [name.as_bytes(), b": ", value.trim_ascii(), b"\r\n"] {
        lines.extend_from_slice(part);
    }
    Ok(())
}

/// A block of headers shared by many responses: validated and formatted only once.
///
/// # Examples
/// ```
/// use std::sync::Arc;
///
/// use serverd::{HeaderBlock, HttpServer, Response};
///
/// let headers = Arc::new(HeaderBlock::new().with("Cache-Control", "max-age=60").with("Vary", "Accept"));
/// let server = HttpServer::new(move |_| Response::text("hello\n").with_headers(&headers));
/// # drop(server);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderBlock {
    lines: Vec<u8>,
    /// Media type and length of the content that a 304 response with these headers describes. Not sent; from them a
    /// layer that compresses content determines whether the corresponding 200 response would be compressed.
    #[cfg(feature = "compress")]
    described: Option<(Box<str>, u64)>,
}

impl HeaderBlock {
    /// Creates an empty block.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a header.
    ///
    /// # Errors
    /// Returns an error if the name or value is invalid, or if the server sets this header itself. The block is then
    /// unchanged.
    pub fn try_header(&mut self, name: &str, value: &[u8]) -> Result<(), HeaderError> {
        push(&mut self.lines, name, value)
    }

    /// Adds a header and returns the block. Intended for values that the program controls: an invalid header is logged
    /// and omitted. Use [`HeaderBlock::try_header`] for other values.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        if let Err(error) = self.try_header(name, value.as_ref()) {
            log::error!("header {name:?} omitted: {error}");
        }
        self
    }

    /// Sets the media type and the length of the content that a 304 response with these headers describes.
    #[cfg(all(feature = "files", feature = "compress"))]
    pub(crate) fn describing(mut self, content_type: &str, bytes: u64) -> Self {
        self.described = Some((content_type.into(), bytes));
        self
    }

    /// Does nothing: there is no layer that compresses.
    #[cfg(all(feature = "files", not(feature = "compress")))]
    pub(crate) fn describing(self, _content_type: &str, _bytes: u64) -> Self {
        self
    }

    /// Returns the media type and the length of the content that a 304 response with these headers describes.
    #[cfg(feature = "compress")]
    pub(super) fn described(&self) -> Option<(&str, u64)> {
        self.described.as_ref().map(|(content_type, bytes)| (&**content_type, *bytes))
    }

    /// Returns a copy without the headers called `name` (case-insensitive).
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let lines = self.lines.split_inclusive(|&byte| byte == b'\n');
        let lines = lines.filter(|line| !is_line_of(line, name)).flatten().copied().collect();
        let mut copy = self.clone();
        copy.lines = lines;
        copy
    }

    /// Returns the total length of all header lines in bytes.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Returns `true` if the block has no headers.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn lines(&self) -> &[u8] {
        &self.lines
    }
}

/// Returns whether `line` is a line of the header `name`.
pub(super) fn is_line_of(line: &[u8], name: &str) -> bool {
    line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
}

/// Trailers: headers sent after a body in chunked transfer coding (RFC 9110 section 6.5).
///
/// # Examples
/// ```
/// use serverd::{HeaderError, Trailers};
///
/// let mut trailers = Trailers::new();
/// assert_eq!(trailers.push("X-Checksum", "abc"), Ok(()));
/// assert_eq!(trailers.push("Content-Length", "3"), Err(HeaderError::Reserved));
/// assert_eq!(trailers.push("Set-Cookie", "a=b"), Err(HeaderError::Trailer));
/// assert_eq!(trailers.iter().collect::<Vec<_>>(), [("X-Checksum", &b"abc"[..])]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trailers {
    lines: Vec<u8>,
}

impl Trailers {
    /// Creates an empty set of trailers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates trailers from the lines of a request, which the parser has validated.
    pub(crate) fn received(lines: &[u8]) -> Self {
        Trailers { lines: lines.to_vec() }
    }

    /// Adds a trailer.
    ///
    /// # Errors
    /// Returns an error if the name or value is invalid, if the server sets this header itself, or if it is not allowed
    /// as a trailer.
    pub fn push(&mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) -> Result<(), HeaderError> {
        if is_one_of(name.as_ref(), &NOT_IN_TRAILERS) {
            return Err(HeaderError::Trailer);
        }
        push(&mut self.lines, name.as_ref(), value.as_ref())
    }

    /// Returns the names and values of the trailers in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.lines.split(|&byte| byte == b'\n').filter_map(|line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            Some((std::str::from_utf8(&line[..colon]).ok()?, line[colon + 1..].trim_ascii()))
        })
    }

    /// Returns the value of the first trailer called `name` (case-insensitive).
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Returns `true` if there are no trailers.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(crate) fn lines(&self) -> &[u8] {
        &self.lines
    }
}
