//! A request as a handler sees it: borrowed from the buffer it was read into.

use std::net::SocketAddr;

use crate::http1::{self, Head, Version};

/// The head of a request, borrowed. What [`Handler::head`](super::Handler::head) decides upon.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) head: &'a Head,
    pub(super) peer: Option<SocketAddr>,
}

/// A whole request, borrowed from the read buffer.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Request, Response};
///
/// let server = HttpServer::new(|request: &Request<'_>| {
///     let agent = request.field("user-agent").unwrap_or(b"somebody");
///     let text = format!("{} {} from {}\n", request.method(), request.path(), String::from_utf8_lossy(agent));
///     Response::text(text)
/// });
/// # drop(server);
/// ```
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub(super) head: RequestHead<'a>,
    pub(super) body: &'a [u8],
}

/// The parser let only ASCII through.
fn ascii(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

impl<'a> RequestHead<'a> {
    /// The method, which is case-sensitive: `GET`.
    pub fn method(&self) -> &'a str {
        ascii(self.head.method(self.bytes))
    }

    /// The method as octets.
    #[inline]
    pub fn method_bytes(&self) -> &'a [u8] {
        self.head.method(self.bytes)
    }

    /// The request target as it came.
    pub fn target(&self) -> &'a str {
        ascii(self.head.target(self.bytes))
    }

    /// The path, as it came: percent-encoded. `*` and `host:port` where these are the target.
    pub fn path(&self) -> &'a str {
        ascii(http1::path_and_query(self.head.form(), self.head.target(self.bytes)).0)
    }

    /// The query without its `?`, as it came: percent-encoded.
    pub fn query(&self) -> Option<&'a str> {
        http1::path_and_query(self.head.form(), self.head.target(self.bytes)).1.map(ascii)
    }

    /// Host and port as the client named them: from a target in absolute form, else from Host
    /// (RFC 9112 section 3.2.2).
    pub fn host(&self) -> Option<&'a str> {
        match self.head.form() {
            http1::Form::Absolute => Some(ascii(http1::authority(self.head.target(self.bytes)))),
            _ => self.field("host").map(ascii),
        }
    }

    /// Whether there may be a precondition among the fields: If-Match, If-None-Match, If-Modified-Since,
    /// If-Unmodified-Since, If-Range (RFC 9110 section 13.1). Without one nobody need look for them.
    #[inline]
    pub fn is_conditional(&self) -> bool {
        self.head.is_conditional()
    }

    /// HTTP/1.0 or HTTP/1.1.
    pub fn version(&self) -> Version {
        self.head.version()
    }

    /// The value of the first field of this name, in any case. Octets, since a value need not be text.
    pub fn field(&self, name: impl AsRef<str>) -> Option<&'a [u8]> {
        let name = name.as_ref().as_bytes();
        self.fields().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All fields in order, names as they came.
    pub fn fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.head.fields(self.bytes)
    }

    /// The peer's address.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }
}

impl<'a> Request<'a> {
    /// The head.
    pub fn head(&self) -> RequestHead<'a> {
        self.head
    }

    /// The body, decoded; empty when there is none.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }
}

impl<'a> std::ops::Deref for Request<'a> {
    type Target = RequestHead<'a>;

    fn deref(&self) -> &RequestHead<'a> {
        &self.head
    }
}
