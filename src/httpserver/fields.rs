//! Field lines that may be sent: checked when they are added, written as they are.

use crate::http1;

/// Field names that the server writes itself, from what it knows of the connection and the body.
const OWNED: [&str; 6] = ["connection", "content-length", "date", "server", "trailer", "transfer-encoding"];

/// Fields that mean nothing, or do harm, behind a body: framing, routing, authentication, request modifiers and what
/// is needed to read the content (RFC 9110 section 6.5.1).
const NOT_BEHIND_A_BODY: [&str; 12] = [
    "authorization",
    "cache-control",
    "content-encoding",
    "content-range",
    "content-type",
    "expires",
    "host",
    "location",
    "retry-after",
    "set-cookie",
    "vary",
    "www-authenticate",
];

/// Why a field was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldError {
    /// The name is not a token (RFC 9110 section 5.6.2).
    Name,
    /// The value has a control octet in it: CR, LF and NUL would let it end the field, the head, or the reader.
    Value,
    /// The server writes this field itself: Connection (see [`Response::close`](super::Response::close)),
    /// Content-Length, Date, Server, Trailer, Transfer-Encoding.
    Owned,
    /// The field may not stand behind a body (RFC 9110 section 6.5.1).
    Trailer,
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            FieldError::Name => "the field name is not a token",
            FieldError::Value => "the field value has a control character in it",
            FieldError::Owned => "the server writes this field itself",
            FieldError::Trailer => "the field may not stand behind a body",
        })
    }
}

impl std::error::Error for FieldError {}

fn is_one_of(name: &str, list: &[&str]) -> bool {
    list.iter().any(|own| name.eq_ignore_ascii_case(own))
}

/// Whether a field may be sent.
pub(super) fn check(name: &str, value: &[u8]) -> Result<(), FieldError> {
    if !http1::is_token(name.as_bytes()) {
        return Err(FieldError::Name);
    }
    if !http1::is_field_value(value) {
        return Err(FieldError::Value);
    }
    if is_one_of(name, &OWNED) {
        return Err(FieldError::Owned);
    }
    Ok(())
}

/// Appends a field line once it is checked.
pub(super) fn push(lines: &mut Vec<u8>, name: &str, value: &[u8]) -> Result<(), FieldError> {
    check(name, value)?;
    lines.reserve(name.len() + value.len() + 4);
    for part in [name.as_bytes(), b": ", value.trim_ascii(), b"\r\n"] {
        lines.extend_from_slice(part);
    }
    Ok(())
}

/// Fields that many answers have: checked and written out once, and shared by them.
///
/// # Examples
/// ```
/// use std::sync::Arc;
///
/// use serverd::{FieldBlock, HttpServer, Response};
///
/// let fields = Arc::new(FieldBlock::new().with("Cache-Control", "max-age=60").with("Vary", "Accept"));
/// let server = HttpServer::new(move |_| Response::text("hello\n").with_fields(&fields));
/// # drop(server);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldBlock {
    lines: Vec<u8>,
}

impl FieldBlock {
    /// No fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field.
    ///
    /// # Errors
    /// When it must not be sent; the block is as before.
    pub fn try_field(&mut self, name: &str, value: &[u8]) -> Result<(), FieldError> {
        push(&mut self.lines, name, value)
    }

    /// The same with one more field. One that must not be sent is left out, and logged: for values that the program makes
    /// itself. See [`FieldBlock::try_field`].
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        if let Err(error) = self.try_field(name, value.as_ref()) {
            log::error!("the field {name:?} was left out: {error}");
        }
        self
    }

    /// The same without the fields of this name.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let lines = self.lines.split_inclusive(|&byte| byte == b'\n');
        FieldBlock { lines: lines.filter(|line| !is_line_of(line, name)).flatten().copied().collect() }
    }

    /// Octets of all lines together.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn lines(&self) -> &[u8] {
        &self.lines
    }
}

/// Whether a field line has this name.
pub(super) fn is_line_of(line: &[u8], name: &str) -> bool {
    line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
}

/// Fields behind a body that is sent in chunks (RFC 9110 section 6.5).
///
/// # Examples
/// ```
/// use serverd::{FieldError, Trailers};
///
/// let mut trailers = Trailers::new();
/// assert_eq!(trailers.push("X-Checksum", "abc"), Ok(()));
/// assert_eq!(trailers.push("Content-Length", "3"), Err(FieldError::Owned));
/// assert_eq!(trailers.push("Set-Cookie", "a=b"), Err(FieldError::Trailer));
/// assert_eq!(trailers.iter().collect::<Vec<_>>(), [("X-Checksum", &b"abc"[..])]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trailers {
    lines: Vec<u8>,
}

impl Trailers {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a client sent behind a body; the parser checked the lines.
    pub(super) fn received(lines: &[u8]) -> Self {
        Trailers { lines: lines.to_vec() }
    }

    /// Adds a field.
    ///
    /// # Errors
    /// When it must not be sent there.
    pub fn push(&mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) -> Result<(), FieldError> {
        if is_one_of(name.as_ref(), &NOT_BEHIND_A_BODY) {
            return Err(FieldError::Trailer);
        }
        push(&mut self.lines, name.as_ref(), value.as_ref())
    }

    /// The fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.lines.split(|&byte| byte == b'\n').filter_map(|line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            Some((std::str::from_utf8(&line[..colon]).ok()?, line[colon + 1..].trim_ascii()))
        })
    }

    /// The value of the first field of this name, in any case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn lines(&self) -> &[u8] {
        &self.lines
    }
}
