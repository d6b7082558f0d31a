//! A response: a value a handler makes and the server writes.

use bytes::Bytes;
use http::StatusCode;

use crate::http1;

/// Field names that the server writes itself, from what it knows of the connection and the body.
const OWNED: [&str; 5] = ["connection", "content-length", "date", "server", "transfer-encoding"];

/// What a handler answers. Making one that has a constant body allocates nothing.
///
/// # Examples
/// ```
/// use serverd::{Response, StatusCode};
///
/// let plain = Response::text("hello\n");
/// let moved = Response::new(StatusCode::FOUND).field("Location", "/elsewhere");
/// let page = Response::new(StatusCode::OK).content_type("text/html; charset=utf-8").body("<p>hello");
/// assert_eq!(page.status(), StatusCode::OK);
/// # drop((plain, moved));
/// ```
#[derive(Clone, Debug)]
pub struct Response {
    pub(super) status: StatusCode,
    pub(super) content_type: Option<&'static str>,
    /// Whole, checked field lines.
    pub(super) fields: Vec<u8>,
    pub(super) body: Bytes,
    pub(super) close: bool,
}

/// Why a field was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldError {
    /// The name is not a token (RFC 9110 section 5.6.2).
    Name,
    /// The value has a control octet in it: CR, LF and NUL would let it end the field, the head, or the reader.
    Value,
    /// The server writes this field itself: Connection (see [`Response::close`]), Content-Length, Date, Server,
    /// Transfer-Encoding.
    Owned,
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            FieldError::Name => "the field name is not a token",
            FieldError::Value => "the field value has a control character in it",
            FieldError::Owned => "the server writes this field itself",
        })
    }
}

impl std::error::Error for FieldError {}

impl Response {
    /// A response without a body.
    #[inline]
    pub fn new(status: StatusCode) -> Self {
        Response { status, content_type: None, fields: Vec::new(), body: Bytes::new(), close: false }
    }

    /// 200 (OK) with plain text in UTF-8.
    #[inline]
    pub fn text(text: impl Into<Bytes>) -> Self {
        Response::new(StatusCode::OK).content_type("text/plain; charset=utf-8").body(text)
    }

    /// A status with a line of plain text that names it, or says more.
    pub fn error(status: StatusCode, text: impl Into<Bytes>) -> Self {
        Response { status, ..Response::text(text) }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Replaces the status.
    #[must_use]
    pub fn with_status(self, status: StatusCode) -> Self {
        Response { status, ..self }
    }

    /// Replaces the body: static, shared or owned bytes. A body on 204 and 304 is not sent, one on HEAD only counted.
    #[inline]
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        Response { body: body.into(), ..self }
    }

    /// Sets the Content-Type, in place of any told before. One that cannot stand in a field is left out, and logged.
    #[inline]
    #[must_use]
    pub fn content_type(mut self, content_type: &'static str) -> Self {
        self.forget_content_type();
        Response { content_type: Some(content_type), ..self }
    }

    /// There is one Content-Type: the one told last.
    #[inline]
    fn forget_content_type(&mut self) {
        self.content_type = None;
        if !self.fields.is_empty() {
            let lines = self.fields.split_inclusive(|&byte| byte == b'\n');
            let is_type = |line: &&[u8]| line[..line.len().min(13)].eq_ignore_ascii_case(b"content-type:");
            self.fields = lines.filter(|line| !is_type(line)).flatten().copied().collect();
        }
    }

    /// Adds a field. One that must not be sent makes the whole response a 500, and is logged: silently leaving
    /// out, say, a Set-Cookie would be worse. See [`Response::try_field`].
    #[must_use]
    pub fn field(mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) -> Self {
        let name = name.as_ref();
        match self.try_field(name, value.as_ref()) {
            Ok(()) => self,
            Err(error) => {
                log::error!("a handler's response was replaced by 500: field {name:?}: {error}");
                internal_error()
            }
        }
    }

    /// Adds a field.
    ///
    /// # Errors
    /// When it must not be sent; the response is as before.
    pub fn try_field(&mut self, name: &str, value: &[u8]) -> Result<(), FieldError> {
        if !http1::is_token(name.as_bytes()) {
            return Err(FieldError::Name);
        }
        if !http1::is_field_value(value) {
            return Err(FieldError::Value);
        }
        if OWNED.iter().any(|owned| name.eq_ignore_ascii_case(owned)) {
            return Err(FieldError::Owned);
        }
        if name.eq_ignore_ascii_case("content-type") {
            self.forget_content_type();
        }
        self.fields.reserve(name.len() + value.len() + 4);
        for part in [name.as_bytes(), b": ", value.trim_ascii(), b"\r\n"] {
            self.fields.extend_from_slice(part);
        }
        // RFC 9110 section 7.8: who sends Upgrade names it in Connection, so that no proxy passes it on.
        if name.eq_ignore_ascii_case("upgrade") {
            self.fields.extend_from_slice(b"Connection: upgrade\r\n");
        }
        Ok(())
    }

    /// Closes the connection after this response, and says so.
    #[must_use]
    pub fn close(self) -> Self {
        Response { close: true, ..self }
    }

    /// What may be sent as it is; anything else is the handler's fault, and a 500.
    pub(super) fn checked(self) -> Self {
        let content_type_is_good = self.content_type.is_none_or(|value| http1::is_field_value(value.as_bytes()));
        if self.status.is_informational() || !content_type_is_good {
            log::error!("a handler's response was replaced by 500: status {} or its content type", self.status);
            return internal_error();
        }
        self
    }
}

pub(super) fn internal_error() -> Response {
    Response::error(StatusCode::INTERNAL_SERVER_ERROR, "the server failed to answer\n").close()
}
