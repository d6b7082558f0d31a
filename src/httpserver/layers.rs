//! Layers (middleware): functions that wrap a handler in another one.
//!
//! A layer changes responses with [`Response::map`], which also applies to deferred responses.
//!
//! A layer sees all responses of the handler it wraps, but not those that the server generates itself: rejections of
//! malformed, oversized or slow requests (400, 408, 413, 431 and others, see [`http1::Error`](crate::http1::Error)),
//! and the 500 after a panic.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "basic-auth")]
mod basic_auth;
#[cfg(feature = "compress")]
mod compress;

#[cfg(feature = "cli")]
pub(crate) use basic_auth::{AuthMetrics, AuthResult, basic_auth_with_metrics};
#[cfg(feature = "basic-auth")]
pub use basic_auth::{User, UserStore, Users, basic_auth};
#[cfg(feature = "compress")]
pub use compress::compress;

use http::StatusCode;

use super::handler::{BodyMode, Handler};
use super::headers::{self, HeaderBlock, HeaderError};
use super::request::{Request, RequestHead};
use super::response::Response;

/// Wraps a handler in a closure that sees complete requests and their responses.
///
/// The closure does not see requests that the handler answers from [`Handler::head`]: those it rejects, and those with
/// bodies that are streamed or read by another thread. Do not use it for authentication; use [`guard`] instead.
///
/// # Examples
/// ```
/// use serverd::{Handler, HttpServer, Router, layers};
///
/// let router = Router::new().get("/", |_| "hello\n");
/// let mut count = 0_u64;
/// let counted = layers::around(router, move |inner, request| {
///     count += 1;
///     let count = count;
///     inner.call(request).map(move |response| response.header("X-Count", count.to_string()))
/// });
/// let server = HttpServer::with(counted);
/// # drop(server);
/// ```
pub fn around<H: Handler>(inner: H, call: impl FnMut(&mut H, &Request<'_>) -> Response) -> impl Handler {
    Around { inner, call }
}

struct Around<H, F> {
    inner: H,
    call: F,
}

impl<H: Handler, F: FnMut(&mut H, &Request<'_>) -> Response> Handler for Around<H, F> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        self.inner.head(head)
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        (self.call)(&mut self.inner, request)
    }
}

/// Guards a handler, for example by authentication: the closure sees each request before its body is received, and
/// either lets it through (`None`) or answers it in place of the handler.
///
/// For a request with a body the closure is called again when the body is complete. It can pass results to the handler
/// with [`RequestHead::insert`].
///
/// To guard part of a server, mount a guarded handler on its path ([`Router::mount`](super::Router::mount)): the router
/// normalizes paths. Do not compare [`RequestHead::path`] in the closure: it is not normalized.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Response, StatusCode, layers};
///
/// let secret = |_: &serverd::Request<'_>| "the secret\n";
/// let server = HttpServer::with(layers::guard(secret, |head| {
///     if head.header("authorization") == Some(b"Bearer 0123456789") {
///         return None;
///     }
///     Some(Response::from(StatusCode::UNAUTHORIZED).header("WWW-Authenticate", "Bearer"))
/// }));
/// # drop(server);
/// ```
pub fn guard<H: Handler>(inner: H, reject: impl FnMut(&RequestHead<'_>) -> Option<Response>) -> impl Handler {
    Guard { inner, reject }
}

struct Guard<H, F> {
    inner: H,
    reject: F,
}

impl<H: Handler, F: FnMut(&RequestHead<'_>) -> Option<Response>> Handler for Guard<H, F> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        (self.reject)(head).map_or_else(|| self.inner.head(head), BodyMode::Reject)
    }

    /// Calls the closure here too: the server calls `head` only for requests with a body, and an outer layer may not
    /// forward it.
    fn call(&mut self, request: &Request<'_>) -> Response {
        (self.reject)(&request.head()).unwrap_or_else(|| self.inner.call(request))
    }
}

/// Adds headers to every response of a handler. Responses that the server generates itself do not have them: rejections
/// of malformed, oversized or slow requests (400, 408, 413, 431 and others), and the 500 after a panic.
///
/// # Errors
/// Returns an error if a header is invalid or is one that the server sets itself.
///
/// # Examples
/// ```
/// use serverd::{HeaderError, HttpServer, layers};
///
/// let page = |_: &serverd::Request<'_>| "hello\n";
/// let server = HttpServer::with(layers::add_headers(page, &[("X-Content-Type-Options", "nosniff")])?);
/// # drop(server);
/// # Ok::<(), HeaderError>(())
/// ```
pub fn add_headers<H: Handler>(inner: H, list: &[(&str, &str)]) -> Result<impl Handler + use<H>, HeaderError> {
    let mut lines = Vec::new();
    for (name, value) in list {
        headers::push(&mut lines, name, value.as_bytes())?;
    }
    Ok(AddHeaders { inner, lines: lines.into() })
}

struct AddHeaders<H> {
    inner: H,
    lines: Arc<[u8]>,
}

impl<H: Handler> Handler for AddHeaders<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        let lines = Arc::clone(&self.lines);
        self.inner.head(head).map(move |mut response| {
            response.merge(&lines, false);
            response
        })
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let mut response = self.inner.call(request);
        // Also correct for a deferred response: it is merged with the headers of its placeholder.
        response.merge(&self.lines, false);
        response
    }
}

/// Sets headers on every response of a handler, replacing headers with the same names. Use
/// [`add_headers`] to add headers instead. Responses that the server generates itself are
/// unchanged: rejections of malformed, oversized or slow requests, and the 500 after a panic.
///
/// # Errors
/// Returns an error if a header is invalid or is one that the server sets itself.
///
/// # Examples
/// ```
/// use serverd::{HeaderError, HttpServer, layers};
///
/// let page = |_: &serverd::Request<'_>| serverd::Response::text("hello\n").header("Cache-Control", "no-cache");
/// let server = HttpServer::with(layers::set_headers(page, &[("Cache-Control", "max-age=60")])?);
/// # drop(server);
/// # Ok::<(), HeaderError>(())
/// ```
pub fn set_headers<H: Handler>(inner: H, list: &[(&str, &str)]) -> Result<impl Handler + use<H>, HeaderError> {
    let mut block = HeaderBlock::new();
    for (name, value) in list {
        block.try_header(name, value.as_bytes())?;
    }
    let names = list.iter().map(|(name, _)| (*name).to_owned()).collect();
    Ok(SetHeaders { inner, headers: Arc::new(Headers { names, block }) })
}

struct SetHeaders<H> {
    inner: H,
    headers: Arc<Headers>,
}

struct Headers {
    names: Vec<String>,
    block: HeaderBlock,
}

impl Headers {
    fn set(&self, mut response: Response) -> Response {
        for name in &self.names {
            response.remove_header(name);
        }
        response.merge(self.block.lines(), false);
        response
    }
}

impl<H: Handler> Handler for SetHeaders<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        let headers = Arc::clone(&self.headers);
        self.inner.head(head).map(move |response| headers.set(response))
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let headers = Arc::clone(&self.headers);
        self.inner.call(request).map(move |response| headers.set(response))
    }
}

/// Response headers that scripts of other origins may read in addition to the safelisted ones: those for ranges and
/// caching.
const EXPOSED: &str = "Accept-Ranges, Content-Encoding, Content-Length, Content-Range, Date, ETag, Location";

/// Access-Control-Max-Age: how long a browser may cache the preflight response, in seconds. Browsers allow at most a
/// day.
const MAX_AGE: &str = "86400";

/// Allows scripts of any origin to read the responses of a handler, without credentials: sends
/// `Access-Control-Allow-Origin: *`, and answers preflight requests, allowing the given methods (such as `"GET,
/// HEAD"`). For public resources only.
///
/// Responses that the server generates itself (400, 408, 413, 431 and others, and the 500 after a panic) do not have
/// the header; to a script, such a response looks like a network error.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, layers};
///
/// let page = |_: &serverd::Request<'_>| "hello\n";
/// let server = HttpServer::with(layers::cors(page, "GET, HEAD"));
/// # drop(server);
/// ```
pub fn cors<H: Handler>(inner: H, methods: &'static str) -> impl Handler {
    Cors { inner, methods }
}

struct Cors<H> {
    inner: H,
    methods: &'static str,
}

impl<H: Handler> Handler for Cors<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        if is_preflight(head) { BodyMode::Discard } else { self.inner.head(head).map(allow_any_origin) }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        if !is_preflight(request) {
            return self.inner.call(request).map(allow_any_origin);
        }
        Response::new(StatusCode::NO_CONTENT)
            .header("Access-Control-Allow-Origin", "*")
            .header("Access-Control-Allow-Methods", self.methods)
            // In the Fetch standard, the wildcard does not cover Authorization.
            .header("Access-Control-Allow-Headers", "*, Authorization")
            .header("Access-Control-Max-Age", MAX_AGE)
    }
}

/// Returns whether this is a CORS preflight request.
fn is_preflight(head: &RequestHead<'_>) -> bool {
    head.method_bytes() == b"OPTIONS"
        && head.header("origin").is_some()
        && head.header("access-control-request-method").is_some()
}

fn allow_any_origin(response: Response) -> Response {
    response.header("Access-Control-Allow-Origin", "*").header("Access-Control-Expose-Headers", EXPOSED)
}

/// Logs every response of a handler through the `log` crate, at level info with the target `serverd::access`: the
/// client, the method and request target, the status, and the time from the handler's call to its response. Costs
/// almost nothing while that target is disabled.
///
/// See [`AccessLog`](super::AccessLog) for logging every request of a server to a file.
pub fn log<H: Handler>(inner: H) -> impl Handler {
    Log { inner }
}

struct Log<H> {
    inner: H,
}

impl<H: Handler> Handler for Log<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        if is_logged() { self.inner.head(head).map(line(head)) } else { self.inner.head(head) }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        if !is_logged() {
            return self.inner.call(request);
        }
        let line = line(request);
        self.inner.call(request).map(line)
    }
}

fn is_logged() -> bool {
    ::log::log_enabled!(target: "serverd::access", ::log::Level::Info)
}

/// Returns a closure that logs a line for a response. The request target needs no escaping: the parser rejects control
/// characters.
fn line(head: &RequestHead<'_>) -> impl FnOnce(Response) -> Response + Send + 'static {
    let client = head.client_addr().as_ref().map_or_else(|| "-".into(), SocketAddr::to_string);
    let (method, target) = (head.method().to_owned(), head.target().to_owned());
    let start = Instant::now();
    move |response| {
        let (status, took) = (response.status().as_u16(), start.elapsed());
        ::log::info!(target: "serverd::access", "{client} \"{method} {target}\" {status} {took:.1?}");
        response
    }
}

/// The default port of https, which is omitted from URLs.
const HTTPS_PORT: u16 = 443;

/// Passes requests over TLS to a handler, and redirects all others to https with 308 (Permanent Redirect), which
/// preserves the method and the body.
///
/// Needs a loop with plain listeners in addition to those with TLS; see `EventLoop::listen_tls`. The redirect leads to
/// the requested host and target, on `port`. A request without a valid Host header gets 400. The body of a redirected
/// request is not read, so that no more of it is sent unencrypted.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, layers};
///
/// let server = HttpServer::with(layers::https_redirect(|_: &serverd::Request<'_>| "secret\n", 443));
/// # drop(server);
/// ```
pub fn https_redirect<H: Handler>(inner: H, port: u16) -> impl Handler {
    HttpsRedirect { inner, port }
}

struct HttpsRedirect<H> {
    inner: H,
    port: u16,
}

impl<H: Handler> Handler for HttpsRedirect<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        if head.is_secure() { self.inner.head(head) } else { BodyMode::Reject(redirect(head, self.port)) }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        if request.is_secure() { self.inner.call(request) } else { redirect(request, self.port) }
    }
}

fn redirect(head: &RequestHead<'_>, port: u16) -> Response {
    let Some(host) = head.host().and_then(host_of) else {
        return Response::error(StatusCode::BAD_REQUEST, "the Host header is missing or not a valid host\n");
    };
    let port = if port == HTTPS_PORT { String::new() } else { format!(":{port}") };
    let mut location = format!("https://{host}{port}");
    // The targets `*` and `host:port` have no path.
    let path = Some(head.path()).filter(|path| path.starts_with('/')).unwrap_or("/");
    location += path;
    if let Some(query) = head.query() {
        location.push('?');
        location += query;
    }
    Response::error(StatusCode::PERMANENT_REDIRECT, "this server requires https\n").header("Location", location)
}

/// Returns the host of an authority without its port; `None` if it is not a name or an address. User information, in
/// particular, is not allowed in the Host header (RFC 9110 section 7.2).
fn host_of(authority: &str) -> Option<&str> {
    let is_port = |rest: &str| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_number);
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let is_valid = address.parse::<Ipv6Addr>().is_ok() && is_port(port);
        return is_valid.then(|| &authority[..address.len() + 2]);
    }
    let (name, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
    (!name.is_empty() && is_name(name) && is_port(port)).then_some(name)
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_without_its_port() {
        for (authority, host) in [
            ("example.org", Some("example.org")),
            ("Example.org:8080", Some("Example.org")),
            ("my_host:", Some("my_host")),
            ("127.0.0.1:80", Some("127.0.0.1")),
            ("[2001:db8::1]:80", Some("[2001:db8::1]")),
            ("[::1]", Some("[::1]")),
            ("", None),
            (":80", None),
            ("a:b", None),
            ("a:80:80", None),
            ("::1", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[a]", None),
            ("user@example.org", None),
            ("a/b", None),
            ("a,b", None),
            ("a b", None),
        ] {
            assert_eq!(host_of(authority), host, "{authority:?}");
        }
    }
}
