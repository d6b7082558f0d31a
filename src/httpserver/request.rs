//! Requests as passed to handlers: borrowed from the buffer that holds them.

use std::borrow::Cow;
use std::cell::RefCell;
#[cfg(any(feature = "basic-auth", feature = "files"))]
use std::net::IpAddr;
use std::net::SocketAddr;
use std::str::FromStr;

use http::{Extensions, StatusCode};
use percent_encoding::percent_decode;

use super::real_client::{Lines, RealClient};
use super::request_id::RequestId;
use super::response::Response;
use crate::http1::{self, Head, Version};
use crate::r#loop::{Addrs, Handle, Peer, Proxied, Wire};
use crate::multipart;

/// Request data other than the received bytes.
pub(super) struct Context<'a> {
    pub(super) addrs: Addrs<'a>,
    /// Values attached to the request, mostly by layers. Boxed, since nearly all requests have none.
    pub(super) extensions: RefCell<Option<Box<Extensions>>>,
    pub(super) unix_time: u64,
    /// The proxies of the server; `None` if there are none.
    pub(super) real_client: Option<&'a RealClient>,
}

impl<'a> Context<'a> {
    /// Creates the context of a request on this connection, with the time of the current loop turn.
    #[inline]
    pub(super) fn new<L>(
        wire: &Wire<'a, L>,
        extensions: Option<Box<Extensions>>,
        real_client: Option<&'a RealClient>,
    ) -> Self {
        let (addrs, extensions, unix_time) = (wire.addrs(), RefCell::new(extensions), wire.unix_time());
        Context { addrs, extensions, unix_time, real_client }
    }
}

/// Names and percent-encoded values of the path parameters of a route.
pub(super) type Params<'a> = &'a [(&'a str, &'a str)];

/// The head of a request: the request line and the headers, borrowed from the buffer that holds them.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) head: &'a Head,
    pub(super) context: &'a Context<'a>,
    pub(super) params: Params<'a>,
    /// Length of the path prefix at which the handler is mounted.
    pub(super) mount: usize,
}

/// A complete request, borrowed from the buffer that holds it. Dereferences to its [`RequestHead`].
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Request, Response};
///
/// let server = HttpServer::new(|request: &Request<'_>| {
///     let agent = request.header("user-agent").unwrap_or(b"unknown");
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

/// Converts bytes of the request line to text; the parser allows only ASCII there.
fn ascii(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

impl<'a> RequestHead<'a> {
    /// Returns the method, such as `GET`. Methods are case-sensitive.
    pub fn method(&self) -> &'a str {
        ascii(self.head.method(self.bytes))
    }

    /// Returns the method as bytes.
    #[inline]
    pub fn method_bytes(&self) -> &'a [u8] {
        self.head.method(self.bytes)
    }

    /// Returns the request target as received.
    pub fn target(&self) -> &'a str {
        ascii(self.target_bytes())
    }

    /// Returns the request target as bytes.
    #[inline]
    pub(crate) fn target_bytes(&self) -> &'a [u8] {
        self.head.target(self.bytes)
    }

    /// Returns the path as received, percent-encoded. For the targets `*` and `host:port`, returns the whole target.
    pub fn path(&self) -> &'a str {
        ascii(http1::path_and_query(self.head.form(), self.head.target(self.bytes)).0)
    }

    /// Returns [`RequestHead::path_below_mount`] as bytes.
    #[cfg(feature = "files")]
    #[inline]
    pub(crate) fn path_below_mount_bytes(&self) -> &'a [u8] {
        let (path, _) = http1::path_and_query(self.head.form(), self.head.target(self.bytes));
        path.get(self.mount..).unwrap_or_default()
    }

    /// Returns the path below the mount point of the handler (see [`Router::mount`](super::Router::mount)), as
    /// received. It is empty if the request is for the mount point itself, and starts with `/` otherwise. If the
    /// handler is not mounted, this is the whole path.
    pub fn path_below_mount(&self) -> &'a str {
        self.path().get(self.mount..).unwrap_or_default()
    }

    /// Returns the mount point of the handler: the prefix of the path that [`RequestHead::path_below_mount`] omits, as
    /// received, except that repeated leading slashes become one, so that a link built from it stays on this host.
    /// Empty if the handler is not mounted.
    pub fn mount(&self) -> &'a str {
        let mount = self.path().get(..self.mount).unwrap_or_default();
        // A reference that starts with two slashes has an authority (RFC 3986 section 4.2).
        let extra = mount.bytes().take_while(|&byte| byte == b'/').count().saturating_sub(1);
        &mount[extra..]
    }

    /// Returns the percent-decoded path; invalid UTF-8 is replaced by U+FFFD. Use it for display and comparison only: a
    /// path must be split before it is decoded, since an encoded `/` is not a separator (RFC 3986 section 2.2).
    pub fn path_decoded(&self) -> Cow<'a, str> {
        percent_decode(self.path().as_bytes()).decode_utf8_lossy()
    }

    /// Returns the query without its `?`, as received, percent-encoded.
    pub fn query(&self) -> Option<&'a str> {
        http1::path_and_query(self.head.form(), self.head.target(self.bytes)).1.map(ascii)
    }

    /// Returns the name-value pairs of the query in order, decoded as `application/x-www-form-urlencoded`.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Request};
    ///
    /// let server = HttpServer::new(|request: &Request<'_>| match request.query_value("name") {
    ///     Some(name) => format!("hello {name}\n"),
    ///     None => "hello stranger\n".to_owned(),
    /// });
    /// # drop(server);
    /// ```
    pub fn query_pairs(&self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> + use<'a> {
        form_urlencoded::parse(self.query().unwrap_or_default().as_bytes())
    }

    /// Returns the decoded value of the first query parameter called `name`.
    pub fn query_value(&self, name: &str) -> Option<Cow<'a, str>> {
        self.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Returns the host and port that the client requested, from a target in absolute form or else from the Host header
    /// (RFC 9112 section 3.2.2).
    pub fn host(&self) -> Option<&'a str> {
        self.host_bytes().map(ascii)
    }

    /// Returns [`RequestHead::host`] as bytes.
    pub(crate) fn host_bytes(&self) -> Option<&'a [u8]> {
        match self.head.form() {
            http1::TargetForm::Absolute => Some(http1::authority(self.head.target(self.bytes))),
            _ => self.header("host"),
        }
    }

    /// Returns what [`RequestHead::host`] does, if the value of the Host header is known already.
    pub(super) fn host_of(&self, header: Option<&'a [u8]>) -> Option<&'a [u8]> {
        match self.head.form() {
            http1::TargetForm::Absolute => Some(http1::authority(self.head.target(self.bytes))),
            _ => header,
        }
    }

    /// Returns `false` if the request has no conditional header: If-Match, If-None-Match, If-Modified-Since,
    /// If-Unmodified-Since or If-Range (RFC 9110 section 13.1). Returns `true` if there may be one: this is a fast
    /// check to make before searching for them.
    #[inline]
    pub fn is_conditional(&self) -> bool {
        self.head.is_conditional()
    }

    /// Returns the protocol version: HTTP/1.0 or HTTP/1.1.
    pub fn version(&self) -> Version {
        self.head.version()
    }

    /// Returns the value of the first header called `name` (case-insensitive), as bytes: it need not be UTF-8.
    pub fn header(&self, name: impl AsRef<str>) -> Option<&'a [u8]> {
        let name = name.as_ref().as_bytes();
        self.headers().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Returns the names and values of all headers in order, as received.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.head.headers(self.bytes)
    }

    /// Returns the headers with names of these lengths; see [`Head::headers_with_lengths`].
    #[inline]
    pub(super) fn headers_with_lengths(&self, lengths: u64) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.head.headers_with_lengths(self.bytes, lengths)
    }

    /// Returns the bytes of the head as received, including the final empty line.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the media type of the body without parameters (RFC 9110 section 8.3). Compare it case-insensitively.
    pub fn content_type(&self) -> Option<&'a str> {
        let value = self.header("content-type")?;
        let end = value.iter().position(|&byte| byte == b';').unwrap_or(value.len());
        std::str::from_utf8(value[..end].trim_ascii()).ok()
    }

    /// Returns the names and values of all cookies in order, as received (RFC 6265 section 4.2). Pairs that are not
    /// valid UTF-8 or have no `=` are skipped.
    pub fn cookies(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.headers()
            .filter(|(name, _)| name.eq_ignore_ascii_case(b"cookie"))
            .flat_map(|(_, value)| value.split(|&byte| byte == b';'))
            .filter_map(|pair| std::str::from_utf8(pair).ok()?.trim().split_once('='))
    }

    /// Returns the value of the first cookie called `name`.
    pub fn cookie(&self, name: &str) -> Option<&'a str> {
        self.cookies().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// Returns the path parameter `name` of the route, percent-decoded and parsed as `T`.
    ///
    /// # Errors
    /// Returns an error if the route has no such parameter, or if its value is not valid UTF-8 or does not parse as
    /// `T`. The error converts into a 404 response.
    ///
    /// # Examples
    /// ```
    /// use serverd::{ParamError, Request, Response, Router};
    ///
    /// let router = Router::new().get("/users/{id}", |request: &Request<'_>| -> Result<Response, ParamError> {
    ///     let id: u64 = request.param("id")?;
    ///     Ok(Response::text(format!("user {id}\n")))
    /// });
    /// # drop(router);
    /// ```
    pub fn param<T: FromStr>(&self, name: &str) -> Result<T, ParamError> {
        let (_, value) = self.params.iter().find(|(key, _)| *key == name).ok_or(ParamError)?;
        let text = percent_decode(value.as_bytes()).decode_utf8().map_err(|_| ParamError)?;
        text.parse().map_err(|_| ParamError)
    }

    /// Returns the peer, which may be a proxy (see [`RequestHead::client_addr`]): an address, or a Unix socket. `None`
    /// if the connection is already closed. Makes a system call.
    pub fn peer(&self) -> Option<Peer> {
        self.context.addrs.peer()
    }

    /// Returns the address of the peer, which may be a proxy (see [`RequestHead::client_addr`]); `None` for a Unix
    /// socket, and if the connection is already closed. Makes a system call.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.context.addrs.peer_addr()
    }

    /// Returns the network that counts as one client in fair queues; `None` if the connection is already closed. Makes
    /// a system call.
    #[cfg(any(feature = "basic-auth", feature = "files"))]
    pub(crate) fn client(&self) -> Option<IpAddr> {
        #[cfg(feature = "files")]
        if let Some(DetachedClient(client)) = self.extension() {
            return client;
        }
        self.client_addr().map(|client| crate::r#loop::network(client.ip()))
    }

    /// Returns the address of the client: the one that trusted proxies report (see
    /// [`HttpServer::trusted_proxies`](super::HttpServer::trusted_proxies) and
    /// [`WithProxy`](crate::WithProxy)), or else the peer's. The port is 0 if the
    /// proxy does not report it. `None` if the address is unknown or the connection is already closed. Makes a system
    /// call.
    ///
    /// # Examples
    /// ```
    /// use serverd::{ClientIpHeader, HttpServer, Request};
    ///
    /// let server = HttpServer::new(|request: &Request<'_>| match request.client_addr() {
    ///     Some(client) => format!("hello {}\n", client.ip()),
    ///     None => "hello stranger\n".to_owned(),
    /// });
    /// let server = server.trusted_proxies(&"10.0.0.0/8".parse()?, ClientIpHeader::XForwardedFor);
    /// # drop(server);
    /// # Ok::<(), serverd::NetworksError>(())
    /// ```
    pub fn client_addr(&self) -> Option<SocketAddr> {
        self.client_addr_from(self.context.addrs.source_addr())
    }

    /// Returns the result of [`RequestHead::client_addr`] if the address that the connection comes from is known
    /// already.
    pub(super) fn client_addr_from(&self, source: Option<SocketAddr>) -> Option<SocketAddr> {
        match self.context.real_client {
            Some(real_client) => real_client.address(source, &self.context.addrs, self.lines()),
            None => source,
        }
    }

    fn lines(&self) -> Lines<'a> {
        Lines { headers: self.head, bytes: self.bytes }
    }

    /// Returns the addresses of the PROXY header with which the connection began; `None` without one.
    pub fn proxied(&self) -> Option<Proxied> {
        self.context.addrs.proxied()
    }

    /// Returns the local address of the connection; `None` for a Unix socket, and if it is already closed. Makes a
    /// system call.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.context.addrs.local_addr()
    }

    /// Returns the addresses of the connection.
    pub(super) fn addrs(&self) -> &Addrs<'a> {
        &self.context.addrs
    }

    /// Returns the id of the request; `None` unless the server gives requests ids (see
    /// [`HttpServer::request_id`](super::HttpServer::request_id)).
    pub fn request_id(&self) -> Option<std::sync::Arc<str>> {
        self.extension::<RequestId>().map(|id| id.0)
    }

    /// Returns whether the connection comes from a trusted proxy.
    pub(super) fn is_from_trusted_proxy(&self, source: Option<SocketAddr>) -> bool {
        self.context.real_client.is_some_and(|real_client| real_client.trusts(source, &self.context.addrs))
    }

    /// Returns whether the client uses TLS: to connect to the proxy, if a trusted one says so (see
    /// [`HttpServer::trusted_proxies`](super::HttpServer::trusted_proxies)), or else to connect to this server.
    pub fn is_secure(&self) -> bool {
        let addrs = &self.context.addrs;
        let reported = self.context.real_client.and_then(|real_client| real_client.is_secure(addrs, self.lines()));
        reported.unwrap_or_else(|| addrs.is_secure())
    }

    /// Returns the parameters of the TLS session, such as its version and the server name (SNI); `None` without TLS.
    #[cfg(feature = "tls")]
    pub fn tls(&self) -> Option<crate::tls::TlsInfo> {
        self.context.addrs.tls()
    }

    /// Returns the verified certificate of the client; `None` if it has none, or without TLS. See
    /// [`Tls::client_ca`](crate::tls::Tls::client_ca).
    #[cfg(feature = "tls")]
    pub fn client_certificate(&self) -> Option<&'a crate::tls::ClientCertificate> {
        self.context.addrs.client_certificate()
    }

    /// Returns the time of this loop turn in seconds since the Unix epoch. Makes no system call.
    #[inline]
    pub fn unix_time(&self) -> u64 {
        self.context.unix_time
    }

    /// Returns a handle of the loop that serves the request, to call closures on its thread: at once after this turn,
    /// later or repeatedly. A handler that is called without a loop gets one that calls nothing.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Request};
    /// use std::time::Duration;
    ///
    /// let server = HttpServer::new(|request: &Request<'_>| {
    ///     request.handle().call_later(Duration::from_secs(10), || println!("ten seconds ago"));
    ///     "you will be reported\n"
    /// });
    /// # drop(server);
    /// ```
    pub fn handle(&self) -> Handle {
        Handle::current().unwrap_or_else(Handle::detached)
    }

    /// Attaches a value to the request, for example in a layer for the inner handler. Replaces any earlier value of the
    /// same type.
    pub fn insert<T: Clone + Send + Sync + 'static>(&self, value: T) {
        self.context.extensions.borrow_mut().get_or_insert_default().insert(value);
    }

    /// Returns the value of type `T` that was attached by [`RequestHead::insert`] or
    /// [`Responder::resume`](super::Responder::resume).
    pub fn extension<T: Clone + Send + Sync + 'static>(&self) -> Option<T> {
        self.context.extensions.borrow().as_ref()?.get().cloned()
    }
}

impl<'a> Request<'a> {
    /// Returns the head of the request.
    pub fn head(&self) -> RequestHead<'a> {
        self.head
    }

    /// Returns the body, with any transfer coding removed. Empty if the request has no body.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Returns the body as text.
    ///
    /// # Errors
    /// Returns an error if the body is not valid UTF-8. The error converts into a 400 response.
    pub fn text(&self) -> Result<&'a str, BodyError> {
        std::str::from_utf8(self.body).map_err(|_| BodyError("the body is not UTF-8".into()))
    }

    /// Parses the body as a form (`application/x-www-form-urlencoded`) and returns its decoded name-value pairs in
    /// order.
    pub fn form(&self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> + use<'a> {
        form_urlencoded::parse(self.body)
    }

    /// Deserializes the body as JSON, regardless of its Content-Type.
    ///
    /// # Errors
    /// Returns an error if the body is not JSON or does not match `T`. The error converts into a 400 response that
    /// states the line and column.
    #[cfg(feature = "json")]
    pub fn json<T: serde::Deserialize<'a>>(&self) -> Result<T, BodyError> {
        serde_json::from_slice(self.body).map_err(|error| {
            // Not the message of `error` itself, which may quote the body.
            let problem = match error.classify() {
                serde_json::error::Category::Data => "JSON does not match the expected structure",
                serde_json::error::Category::Eof => "unexpected end of JSON",
                _ => "invalid JSON",
            };
            BodyError(format!("{problem} at line {} column {}", error.line(), error.column()))
        })
    }

    /// Returns the request with the path parameters and the mount point of a route.
    pub(super) fn routed<'b>(&self, params: Params<'b>, mount: usize) -> Request<'b>
    where
        'a: 'b,
    {
        Request { head: self.head.routed(params, mount), body: self.body }
    }
}

impl RequestHead<'_> {
    /// Creates a reader for the body, which must be a form with the type `multipart/form-data`. See the
    /// [module](crate::multipart) for a body that is streamed.
    ///
    /// # Errors
    /// Returns an error if the Content-Type is missing, repeated or not `multipart/form-data`, or has no valid
    /// boundary. The error converts into a 415 or 400 response.
    ///
    /// # Examples
    /// A form that is collected in memory:
    /// ```
    /// use serverd::{HttpServer, Request, Response, multipart};
    ///
    /// let server = HttpServer::new(|request: &Request<'_>| -> Result<Response, multipart::Error> {
    ///     let parts = request.multipart()?.read_all(request.body())?;
    ///     Ok(Response::text(format!("{} parts\n", parts.len())))
    /// });
    /// # drop(server);
    /// ```
    pub fn multipart(&self) -> Result<multipart::Reader, multipart::Error> {
        let mut types = self.headers().filter(|(name, _)| name.eq_ignore_ascii_case(b"content-type"));
        match (types.next(), types.next()) {
            (Some((_, value)), None) => multipart::Reader::new(value),
            _ => Err(multipart::Error::NotMultipart),
        }
    }
}

impl From<multipart::Error> for Response {
    fn from(error: multipart::Error) -> Self {
        Response::error(error.status(), format!("{error}\n"))
    }
}

impl<'a> RequestHead<'a> {
    /// Returns the head with the path parameters and the mount point of a route.
    pub(super) fn routed<'b>(&self, params: Params<'b>, mount: usize) -> RequestHead<'b>
    where
        'a: 'b,
    {
        RequestHead { bytes: self.bytes, head: self.head, context: self.context, params, mount }
    }
}

/// Attached to a [`DetachedHead`]: the result of [`RequestHead::client`].
#[cfg(feature = "files")]
#[derive(Clone)]
struct DetachedClient(Option<IpAddr>);

/// A copy of a request head, for another thread: without addresses, path parameters and attached values.
#[cfg(feature = "files")]
pub(crate) struct DetachedHead {
    bytes: Box<[u8]>,
    head: Head,
    mount: usize,
    client: Option<IpAddr>,
}

#[cfg(feature = "files")]
impl RequestHead<'_> {
    /// Copies the head for another thread, where [`RequestHead::client`] returns `client`.
    pub(crate) fn detach(&self, client: Option<IpAddr>) -> DetachedHead {
        let RequestHead { bytes, head, mount, .. } = *self;
        DetachedHead { bytes: bytes.into(), head: head.clone(), mount, client }
    }
}

#[cfg(feature = "files")]
impl DetachedHead {
    /// Calls `call` with the head, as if the request had been received at this Unix time.
    pub(crate) fn with<T>(&self, unix_time: u64, call: impl FnOnce(&RequestHead<'_>) -> T) -> T {
        let context = Context { addrs: Addrs::default(), extensions: RefCell::default(), unix_time, real_client: None };
        let (bytes, head, mount) = (&self.bytes, &self.head, self.mount);
        let head = RequestHead { bytes, head, context: &context, params: &[], mount };
        head.insert(DetachedClient(self.client));
        call(&head)
    }
}

impl<'a> std::ops::Deref for Request<'a> {
    type Target = RequestHead<'a>;

    fn deref(&self) -> &RequestHead<'a> {
        &self.head
    }
}

/// Error returned by [`RequestHead::param`]: the path parameter is missing or malformed. Converts into a 404 response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamError;

impl std::fmt::Display for ParamError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("path parameter missing or malformed")
    }
}

impl std::error::Error for ParamError {}

impl From<ParamError> for Response {
    fn from(_: ParamError) -> Self {
        Response::from(StatusCode::NOT_FOUND)
    }
}

/// Error returned by [`Request::text`] and `Request::json`: the body is malformed. Converts into a 400 response.
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
