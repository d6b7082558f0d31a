//! A request as a handler sees it: borrowed from the buffer it was read into.

use std::borrow::Cow;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::str::FromStr;

use http::{Extensions, StatusCode};
use percent_encoding::percent_decode;

use super::Response;
use crate::http1::{self, Head, Version};
use crate::r#loop::{Ends, Wire};

/// What belongs to a request besides its octets.
pub(super) struct Context<'a> {
    pub(super) ends: Ends<'a>,
    /// Almost always nothing: in a box that is looked at in passing.
    pub(super) extensions: RefCell<Option<Box<Extensions>>>,
    pub(super) wall: u64,
}

impl<'a> Context<'a> {
    /// What belongs to a request of this connection at this time, and what was left with it before.
    #[inline]
    pub(super) fn new<L>(wire: &Wire<'a, L>, extensions: Option<Box<Extensions>>) -> Self {
        Context { ends: wire.ends(), extensions: RefCell::new(extensions), wall: wire.wall() }
    }
}

/// Names and values that a route found in a path, percent-encoded.
pub(super) type Parameters<'a> = &'a [(&'a str, &'a str)];

/// The head of a request, borrowed. What [`Handler::head`](super::Handler::head) decides upon.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) head: &'a Head,
    pub(super) context: &'a Context<'a>,
    pub(super) parameters: Parameters<'a>,
    /// How much of the front of the path a route took that mounts a handler.
    pub(super) mount: usize,
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

    #[cfg(feature = "files")]
    /// [`RequestHead::mounted_path`] as octets.
    #[inline]
    pub(crate) fn mounted_octets(&self) -> &'a [u8] {
        let (path, _) = http1::path_and_query(self.head.form(), self.head.target(self.bytes));
        path.get(self.mount..).unwrap_or_default()
    }

    /// The path below the place where the handler is mounted by [`Router::mount`](super::Router::mount), as it came: the
    /// whole path where it is not. Empty where the request is for the very place; else it begins with `/`.
    pub fn mounted_path(&self) -> &'a str {
        self.path().get(self.mount..).unwrap_or_default()
    }

    /// The place where the handler is mounted: the front of the path that [`RequestHead::mounted_path`] leaves out, as it
    /// came, but beginning with one slash only, so that a link made of it stays on this host. Empty for the whole server.
    pub fn mount(&self) -> &'a str {
        let mount = self.path().get(..self.mount).unwrap_or_default();
        // Two slashes at the front of a reference begin an authority (RFC 3986 section 4.2).
        let more = mount.bytes().take_while(|&byte| byte == b'/').count().saturating_sub(1);
        &mount[more..]
    }

    /// The path, percent-decoded; octets that are not UTF-8 become U+FFFD. For showing and comparing: what splits a path
    /// has to do so before decoding, since a decoded `/` is none that separates (RFC 3986 section 2.2).
    pub fn path_decoded(&self) -> Cow<'a, str> {
        percent_decode(self.path().as_bytes()).decode_utf8_lossy()
    }

    /// The query without its `?`, as it came: percent-encoded.
    pub fn query(&self) -> Option<&'a str> {
        http1::path_and_query(self.head.form(), self.head.target(self.bytes)).1.map(ascii)
    }

    /// Names and values of the query, decoded as a form is (`application/x-www-form-urlencoded`), in order.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Request};
    ///
    /// let server = HttpServer::new(|request: &Request<'_>| match request.query_value("name") {
    ///     Some(name) => format!("hello {name}\n"),
    ///     None => "who is there?\n".to_owned(),
    /// });
    /// # drop(server);
    /// ```
    pub fn query_pairs(&self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> + use<'a> {
        form_urlencoded::parse(self.query().unwrap_or_default().as_bytes())
    }

    /// The first value of this name in the query, decoded.
    pub fn query_value(&self, name: &str) -> Option<Cow<'a, str>> {
        self.query_pairs().find(|(own, _)| own == name).map(|(_, value)| value)
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

    /// The head with its last line end, as it came.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The media type of the body, without parameters (RFC 9110 section 8.3). Compare it without regard to case.
    pub fn content_type(&self) -> Option<&'a str> {
        let value = self.field("content-type")?;
        let end = value.iter().position(|&byte| byte == b';').unwrap_or(value.len());
        std::str::from_utf8(value[..end].trim_ascii()).ok()
    }

    /// Names and values of all cookies, as they came, in order (RFC 6265 section 4.2). Pairs that are not text or
    /// have no `=` are passed over.
    pub fn cookies(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.fields()
            .filter(|(name, _)| name.eq_ignore_ascii_case(b"cookie"))
            .flat_map(|(_, value)| value.split(|&byte| byte == b';'))
            .filter_map(|pair| std::str::from_utf8(pair).ok()?.trim().split_once('='))
    }

    /// The value of the first cookie of this name.
    pub fn cookie(&self, name: &str) -> Option<&'a str> {
        self.cookies().find(|(own, _)| *own == name).map(|(_, value)| value)
    }

    /// A part of the path that the route has named, percent-decoded, as whatever can be read from text.
    ///
    /// # Errors
    /// When there is no such part, it is not UTF-8, or `T` cannot be read from it. As a response, that is 404:
    /// the path names nothing here.
    ///
    /// # Examples
    /// ```
    /// use serverd::{ParameterError, Request, Response, Router};
    ///
    /// let router = Router::new().get("/users/{id}", |request: &Request<'_>| -> Result<Response, ParameterError> {
    ///     let id: u64 = request.parameter("id")?;
    ///     Ok(Response::text(format!("user {id}\n")))
    /// });
    /// # drop(router);
    /// ```
    pub fn parameter<T: FromStr>(&self, name: &str) -> Result<T, ParameterError> {
        let (_, value) = self.parameters.iter().find(|(own, _)| *own == name).ok_or(ParameterError)?;
        let text = percent_decode(value.as_bytes()).decode_utf8().map_err(|_| ParameterError)?;
        text.parse().map_err(|_| ParameterError)
    }

    /// The peer's address, asked from the system when called; `None` where the connection is gone already.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.context.ends.peer()
    }

    /// The local address, asked from the system when called; `None` where the connection is gone already.
    pub fn local(&self) -> Option<SocketAddr> {
        self.context.ends.local()
    }

    /// The calendar time of this turn of the loop in whole seconds since 1970, which costs nothing to ask for.
    #[inline]
    pub fn wall(&self) -> u64 {
        self.context.wall
    }

    /// Leaves a value for who sees the request later, such as the handler inside a layer. Replaces one of the same type.
    pub fn insert<T: Clone + Send + Sync + 'static>(&self, value: T) {
        self.context.extensions.borrow_mut().get_or_insert_default().insert(value);
    }

    /// A value that [`RequestHead::insert`] left.
    pub fn extension<T: Clone + Send + Sync + 'static>(&self) -> Option<T> {
        self.context.extensions.borrow().as_ref()?.get().cloned()
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

    /// The body as text.
    ///
    /// # Errors
    /// When it is not UTF-8. As a response, that is 400.
    pub fn text(&self) -> Result<&'a str, BodyError> {
        std::str::from_utf8(self.body).map_err(|_| BodyError("the body is not UTF-8".into()))
    }

    /// Names and values of a body that is a form (`application/x-www-form-urlencoded`), decoded, in order.
    pub fn form(&self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> + use<'a> {
        form_urlencoded::parse(self.body)
    }

    /// The body as JSON, whatever its Content-Type says.
    ///
    /// # Errors
    /// When it is not JSON, or not of this shape. As a response, that is 400 with the place.
    #[cfg(feature = "json")]
    pub fn json<T: serde::Deserialize<'a>>(&self) -> Result<T, BodyError> {
        serde_json::from_slice(self.body).map_err(|error| {
            // The error's own text may quote the body.
            let what = match error.classify() {
                serde_json::error::Category::Data => "the JSON has another shape than expected",
                serde_json::error::Category::Eof => "the JSON ends too early",
                _ => "the body is not JSON",
            };
            BodyError(format!("{what}, at line {} column {}", error.line(), error.column()))
        })
    }

    /// The same request with what a route found.
    pub(super) fn routed<'b>(&self, parameters: Parameters<'b>, mount: usize) -> Request<'b>
    where
        'a: 'b,
    {
        Request { head: self.head.routed(parameters, mount), body: self.body }
    }
}

impl<'a> RequestHead<'a> {
    /// The same head with what a route found.
    pub(super) fn routed<'b>(&self, parameters: Parameters<'b>, mount: usize) -> RequestHead<'b>
    where
        'a: 'b,
    {
        RequestHead { bytes: self.bytes, head: self.head, context: self.context, parameters, mount }
    }
}

impl<'a> std::ops::Deref for Request<'a> {
    type Target = RequestHead<'a>;

    fn deref(&self) -> &RequestHead<'a> {
        &self.head
    }
}

/// A part of a path that is not there, or not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterError;

impl std::fmt::Display for ParameterError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a part of the path is missing or malformed")
    }
}

impl std::error::Error for ParameterError {}

impl From<ParameterError> for Response {
    fn from(_: ParameterError) -> Self {
        Response::from(StatusCode::NOT_FOUND)
    }
}

/// A body that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyError(String);

impl std::fmt::Display for BodyError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for BodyError {}

impl From<BodyError> for Response {
    fn from(error: BodyError) -> Self {
        Response::error(StatusCode::BAD_REQUEST, format!("{error}\n"))
    }
}
