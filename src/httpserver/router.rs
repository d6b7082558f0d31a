//! Routing: selects a handler by path and method.
//!
//! Paths are matched in a normal form, in which they are percent-encoded, by a radix tree (the `matchit` crate): lookup
//! time depends on the length of the path, not on the number of routes. The rest follows RFC 9110: 404 for an unknown
//! path, 405 with Allow for a method without a route on that path, 501 for an unknown method, Allow in response to
//! OPTIONS, and HEAD handled like GET.
//!
//! `/~anna`, `/%7Eanna` and `//~anna` are equivalent (RFC 3986 section 6.2.2). Normalization merges slashes, like
//! nginx's `merge_slashes`, removes `.` segments, decodes percent-encoded characters that are allowed literally in a
//! segment, and percent-encodes all others with upper-case digits. Two paths have the same normal form if and only if
//! their segments other than `.`, decoded once, are equal. `Files` interprets paths in the same way, so nothing below
//! one mount is reachable through another. A percent-encoded slash stays encoded, since it is not a separator. A `..`
//! segment is left as it is: clients resolve it, and `Files` rejects it.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use http::StatusCode;

use super::handler::{BodyMode, Handler};
use super::metrics::{HttpMetrics, WorkerMetrics};
use super::request::{Params, Request, RequestHead};
use super::response::Response;

/// Maximum number of parameters in a pattern.
const PARAMS_MAX: usize = 8;

/// Standard methods (RFC 9110 section 9, RFC 5789). They are answered with 405, not 501, even if no route has them.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// A handler that dispatches requests to other handlers by path and method.
///
/// A pattern is a path with parameters: `/users/{id}` matches one segment, `/files/{*path}` matches the rest of the
/// path. `{{` and `}}` are literal braces. More specific patterns take precedence over less specific ones, regardless
/// of the order in which they were added. Handlers read parameters with [`RequestHead::param`].
///
/// Equivalent paths match the same route (RFC 3986 section 6.2.2): percent-encoding is decoded, repeated slashes are
/// merged and `.` segments are removed, including in the part that `{*path}` matches. `/~anna`, `/%7Eanna`, `//~anna`
/// and `/./~anna` are equivalent, in requests and in patterns. A percent-encoded slash (`%2F`) is not a separator.
/// Paths are case-sensitive.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Request, Response, Router, StatusCode};
///
/// let router = Router::new()
///     .get("/", |_| "hello\n")
///     .get("/users/{id}", |request| {
///         request.param::<u32>("id").map(|id| format!("user {id}\n"))
///     })
///     .post("/echo", |request| Response::new(StatusCode::OK).body(request.body().to_vec()));
/// let server = HttpServer::with(router);
/// # drop(server);
/// ```
#[derive(Default)]
pub struct Router {
    paths: matchit::Router<usize>,
    routes: Vec<Route>,
    mounts: Vec<Mount>,
    fallback: Option<Box<dyn Handler>>,
    metrics: Option<Arc<HttpMetrics>>,
}

/// The handlers of one path.
struct Route {
    /// Normalized by `normal_pattern`; `None` for the catch-all of a mounted handler, to which nothing can be added.
    pattern: Option<String>,
    methods: Vec<(String, Box<dyn Handler>)>,
    /// Index of the handler mounted here, if any: it handles all other methods.
    mounted: Option<usize>,
    /// The number of the route in the metrics.
    number: u64,
}

/// A handler for a path and everything below it.
struct Mount {
    handler: Box<dyn Handler>,
    /// The normalized mount path.
    path: String,
    /// The number of the route in the metrics.
    number: u64,
}

/// Result of routing a request.
enum Dispatch<'a> {
    Handler(&'a mut dyn Handler),
    Response(Response),
}

impl Route {
    fn handler(&self, method: &str) -> Option<usize> {
        let position = |name: &str| self.methods.iter().position(|(method, _)| method == name);
        position(method).or_else(|| if method == "HEAD" { position("GET") } else { None })
    }

    /// Returns the value of the Allow header (RFC 9110 section 10.2.1).
    fn allow(&self) -> String {
        let mut names: Vec<&str> = self.methods.iter().map(|(name, _)| name.as_str()).collect();
        if names.contains(&"GET") && !names.contains(&"HEAD") {
            names.push("HEAD");
        }
        if !names.contains(&"OPTIONS") {
            names.push("OPTIONS");
        }
        names.join(", ")
    }
}

impl Router {
    /// Creates a router without routes, which responds with 404 to every path.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a handler for GET and HEAD requests to a path.
    ///
    /// # Panics
    /// Panics if the pattern cannot be added; see [`Router::route`].
    #[must_use]
    pub fn get<R: Into<Response>>(self, pattern: &str, handler: impl FnMut(&Request<'_>) -> R + 'static) -> Self {
        self.route("GET", pattern, handler)
    }

    /// Adds a handler for POST requests to a path.
    ///
    /// # Panics
    /// Panics if the pattern cannot be added; see [`Router::route`].
    #[must_use]
    pub fn post<R: Into<Response>>(self, pattern: &str, handler: impl FnMut(&Request<'_>) -> R + 'static) -> Self {
        self.route("POST", pattern, handler)
    }

    /// Adds a handler for PUT requests to a path.
    ///
    /// # Panics
    /// Panics if the pattern cannot be added; see [`Router::route`].
    #[must_use]
    pub fn put<R: Into<Response>>(self, pattern: &str, handler: impl FnMut(&Request<'_>) -> R + 'static) -> Self {
        self.route("PUT", pattern, handler)
    }

    /// Adds a handler for PATCH requests to a path.
    ///
    /// # Panics
    /// Panics if the pattern cannot be added; see [`Router::route`].
    #[must_use]
    pub fn patch<R: Into<Response>>(self, pattern: &str, handler: impl FnMut(&Request<'_>) -> R + 'static) -> Self {
        self.route("PATCH", pattern, handler)
    }

    /// Adds a handler for DELETE requests to a path.
    ///
    /// # Panics
    /// Panics if the pattern cannot be added; see [`Router::route`].
    #[must_use]
    pub fn delete<R: Into<Response>>(self, pattern: &str, handler: impl FnMut(&Request<'_>) -> R + 'static) -> Self {
        self.route("DELETE", pattern, handler)
    }

    /// Adds a handler for requests to a path with the given method. Unlike [`Router::get`] and the like, it accepts any
    /// [`Handler`], which can choose how to receive the body ([`Handler::head`]).
    ///
    /// If a handler is also mounted on the path ([`Router::mount`], before or after), the route handles this method and
    /// the mounted handler handles all others.
    ///
    /// # Panics
    /// Panics if the pattern is malformed, has more than eight parameters, conflicts with another pattern, or already
    /// has a handler for this method. These are programming errors, found at start-up.
    #[must_use]
    pub fn route(mut self, method: &str, pattern: &str, handler: impl Handler + 'static) -> Self {
        let params = pattern.matches('{').count() - 2 * pattern.matches("{{").count();
        assert!(params <= PARAMS_MAX, "the route {pattern} has more than {PARAMS_MAX} parameters");
        let index = match self.route_index(normal_pattern(pattern)) {
            Ok(index) => index,
            Err(error) => panic!("the route {pattern} cannot be added: {error}"),
        };
        let methods = &mut self.routes[index].methods;
        assert!(methods.iter().all(|(name, _)| name != method), "{method} {pattern} already has a handler");
        methods.push((method.to_owned(), Box::new(handler)));
        self.number_routes();
        self
    }

    /// Returns the index of the route with this pattern, adding the route if there is none.
    fn route_index(&mut self, pattern: String) -> Result<usize, matchit::InsertError> {
        if let Some(index) = self.routes.iter().position(|route| route.pattern.as_ref() == Some(&pattern)) {
            return Ok(index);
        }
        self.paths.insert(pattern.as_str(), self.routes.len())?;
        self.routes.push(Route { pattern: Some(pattern), methods: Vec::new(), mounted: None, number: 0 });
        Ok(self.routes.len() - 1)
    }

    /// Mounts a handler on a path: it handles every method on this path and all paths below it, and can read the
    /// remaining path from [`RequestHead::path_below_mount`]. More specific routes, and a route for the path itself,
    /// take precedence regardless of the order in which they were added: for example a home page above static files.
    ///
    /// Other spellings of this path, such as `//private`, `/./private` or `/%70rivate` for `/private`, never reach a
    /// handler mounted higher up, so a [`guard`](super::layers::guard) around the handler cannot be bypassed that way.
    /// But different paths may refer to one file: on Windows and macOS file names are case-insensitive, so `/PRIVATE/x`
    /// is routed to the handler higher up, which may find the same file. A symbolic link has the same effect. Keep
    /// guarded files outside any directory that is served without a guard.
    ///
    /// # Examples
    /// ```no_run
    /// use serverd::{Files, HttpServer, Router};
    ///
    /// let router = Router::new().get("/", |_| "hello\n").mount("/", Files::new("public")?);
    /// let server = HttpServer::with(router);
    /// # drop(server);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Panics
    /// Panics if the path has parameters, ends with `/` (other than `/` itself), already has a mounted handler, or has
    /// a catch-all route below it.
    #[must_use]
    pub fn mount(mut self, path: &str, handler: impl Handler + 'static) -> Self {
        let prefix = if path == "/" { "" } else { path };
        assert!(!prefix.contains(['{', '}']) && !prefix.ends_with('/'), "cannot mount a handler on {path}");
        let prefix = normal(prefix).into_owned();
        if let Err(error) = self.add_mount_routes(&prefix) {
            panic!("cannot mount a handler on {path}: {error}");
        }
        self.mounts.push(Mount { handler: Box::new(handler), path: prefix, number: 0 });
        self.number_routes();
        self
    }

    /// Adds a `route` label with the normalized route pattern to the request durations in `metrics`; a mounted handler
    /// appears as `/path/*`. Pass the same metrics to [`HttpServer::metrics`](super::HttpServer::metrics). Requests
    /// that match no route have no `route` label. A nested router with metrics reports its own patterns without the
    /// mount prefix, so equal patterns under two mounts share a series.
    ///
    /// Each combination of route, method and status that occurs uses a few hundred bytes per worker. Off by default.
    #[must_use]
    pub fn metrics(mut self, metrics: &WorkerMetrics) -> Self {
        self.metrics = Some(Arc::clone(&metrics.0));
        self.number_routes();
        self
    }

    /// Numbers the routes that are new in the metrics.
    fn number_routes(&mut self) {
        let Some(metrics) = &self.metrics else { return };
        for route in &mut self.routes {
            route.number = route.pattern.as_ref().map_or(0, |pattern| metrics.add_route(pattern));
        }
        for mount in &mut self.mounts {
            mount.number = metrics.add_route(&format!("{}/*", mount.path));
        }
    }

    /// Adds the routes for the handler that is about to be mounted.
    fn add_mount_routes(&mut self, prefix: &str) -> Result<(), matchit::InsertError> {
        let mounted = Some(self.mounts.len());
        self.paths.insert(format!("{prefix}/{{*below}}"), self.routes.len())?;
        self.routes.push(Route { pattern: None, methods: Vec::new(), mounted, number: 0 });
        for pattern in [prefix.to_owned(), format!("{prefix}/")] {
            if !pattern.is_empty() {
                let index = self.route_index(pattern)?;
                self.routes[index].mounted = mounted;
            }
        }
        Ok(())
    }

    /// Sets a handler for paths that match no route, instead of a 404.
    #[must_use]
    pub fn fallback(mut self, handler: impl Handler + 'static) -> Self {
        self.fallback = Some(Box::new(handler));
        self
    }

    /// Routes a request and calls `then` with the result, the parameters and the length of the mount prefix.
    fn dispatch<T>(&mut self, head: &RequestHead<'_>, then: impl FnOnce(Dispatch<'_>, Params<'_>, usize) -> T) -> T {
        let (method, mount) = (head.method(), head.mount);
        let known = METHODS.contains(&method) || self.has_method(method);
        let path = if head.path_below_mount().is_empty() { "/" } else { head.path_below_mount() };
        let normal = normal(path);
        let Some(found) = self.paths.at(&normal).ok() else {
            return match &mut self.fallback {
                _ if head.target() == "*" => then(Dispatch::Response(options(&self.all_methods())), &[], mount),
                _ if !known => then(Dispatch::Response(not_implemented()), &[], mount),
                Some(fallback) => then(Dispatch::Handler(&mut **fallback), &[], mount),
                None => then(Dispatch::Response(StatusCode::NOT_FOUND.into()), &[], mount),
            };
        };
        let mut params = [("", ""); PARAMS_MAX];
        let mut count = 0;
        for (slot, param) in params.iter_mut().zip(found.params.iter()) {
            *slot = param;
            count += 1;
        }
        let route = &mut self.routes[*found.value];
        let handler = route.handler(method);
        if let Some(metrics) = &self.metrics {
            let mounted = route.mounted.filter(|_| handler.is_none());
            metrics.set_route(mounted.map_or(route.number, |index| self.mounts[index].number));
        }
        match (handler, route.mounted) {
            (Some(index), _) => then(Dispatch::Handler(&mut *route.methods[index].1), &params[..count], mount),
            (None, Some(mounted)) => {
                let mounted = &mut self.mounts[mounted];
                let mounted_len = mounted.path.len();
                let len =
                    if matches!(normal, Cow::Borrowed(_)) { mounted_len } else { raw_prefix_len(path, mounted_len) };
                then(Dispatch::Handler(&mut *mounted.handler), &[], mount + len)
            }
            (None, None) if method == "OPTIONS" => then(Dispatch::Response(options(&route.allow())), &[], mount),
            (None, None) if known => then(Dispatch::Response(not_allowed(&route.allow())), &[], mount),
            (None, None) => then(Dispatch::Response(not_implemented()), &[], mount),
        }
    }

    fn has_method(&self, method: &str) -> bool {
        self.routes.iter().any(|route| route.methods.iter().any(|(name, _)| name == method))
    }

    /// Returns the Allow header for `OPTIONS *`: all methods of all routes (RFC 9110 section 9.3.7).
    fn all_methods(&self) -> String {
        let mut names: Vec<&str> =
            self.routes.iter().flat_map(|route| route.methods.iter().map(|(name, _)| name.as_str())).collect();
        names.extend(["HEAD", "OPTIONS"]);
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }
}

fn options(allow: &str) -> Response {
    Response::new(StatusCode::NO_CONTENT).header("Allow", allow)
}

fn not_allowed(allow: &str) -> Response {
    Response::from(StatusCode::METHOD_NOT_ALLOWED).header("Allow", allow)
}

fn not_implemented() -> Response {
    Response::error(StatusCode::NOT_IMPLEMENTED, "method not implemented\n")
}

impl Handler for Router {
    /// If no handler accepts the request, rejects it before receiving its body.
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        let head = *head;
        self.dispatch(&head, |found, params, mount| match found {
            Dispatch::Handler(handler) => handler.head(&head.routed(params, mount)),
            Dispatch::Response(response) if response.status().is_success() => BodyMode::Discard,
            Dispatch::Response(response) => BodyMode::Reject(response),
        })
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let request = *request;
        self.dispatch(&request.head(), |found, params, mount| match found {
            Dispatch::Handler(handler) => handler.call(&request.routed(params, mount)),
            Dispatch::Response(response) => response,
        })
    }
}

/// Characters allowed literally in a segment (RFC 3986 section 3.3: pchar without pct-encoded).
const LITERAL: [bool; 256] = {
    let mut literal = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        literal[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let punctuation = b"-._~!$&'()*+,;=:@";
    let mut index = 0;
    while index < punctuation.len() {
        literal[punctuation[index] as usize] = true;
        index += 1;
    }
    literal
};

/// A decoded byte of a path, and how it is written in the normal form.
enum PathByte {
    Literal(u8),
    Encoded(u8),
}

/// Returns the length of a `.` segment at the beginning of a path, literal or percent-encoded: 1, 3 or, if there is
/// none, 0.
fn dot_segment_len(path: &[u8]) -> usize {
    let len = match path {
        [b'.', ..] => 1,
        [b'%', b'2', b'e' | b'E', ..] => 3,
        _ => return 0,
    };
    if matches!(path.get(len), None | Some(b'/')) { len } else { 0 }
}

/// Returns the length of a separator at the beginning of a path: slashes, and the `.` segments that follow one.
fn separator_len(path: &[u8]) -> usize {
    let mut at = 0;
    while path.get(at) == Some(&b'/') {
        at += 1;
        at += dot_segment_len(&path[at..]);
    }
    at
}

/// Decodes the first byte. Also returns the length of its encoding: a separator, three characters (%XX) or one.
fn first_byte(path: &[u8]) -> Option<(PathByte, usize)> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (byte, len) = match *path {
        [] => return None,
        [b'/', ..] => return Some((PathByte::Literal(b'/'), separator_len(path))),
        [b'%', high, low, ..] => match (digit(high), digit(low)) {
            (Some(high), Some(low)) => (high << 4 | low, 3),
            // Not an escape sequence: a literal percent sign, as in the `percent_encoding` crate.
            _ => (b'%', 1),
        },
        [byte, ..] => (byte, 1),
    };
    Some((if LITERAL[usize::from(byte)] { PathByte::Literal(byte) } else { PathByte::Encoded(byte) }, len))
}

/// Appends a byte of a segment, percent-encoded unless it is allowed literally.
pub(crate) fn push_byte(path: &mut String, byte: u8) {
    if LITERAL[usize::from(byte)] {
        path.push(char::from(byte));
    } else {
        let _ = write!(path, "%{byte:02X}");
    }
}

/// Returns whether the path is already normalized. This is the fast path: one table lookup per byte, no allocation.
#[inline]
fn is_normal(path: &[u8]) -> bool {
    let (mut after_slash, mut after_dot) = (false, false);
    let is_normal = path.iter().all(|&byte| {
        let is_slash = byte == b'/';
        let is_normal = LITERAL[usize::from(byte)] || is_slash && !after_slash && !after_dot;
        // The byte is the only one of its segment so far.
        after_dot = byte == b'.' && after_slash;
        after_slash = is_slash;
        is_normal
    });
    is_normal && !after_dot
}

/// Returns the normalized path, borrowed if it is already normalized.
#[inline]
fn normal(path: &str) -> Cow<'_, str> {
    if is_normal(path.as_bytes()) { Cow::Borrowed(path) } else { Cow::Owned(normalize(path)) }
}

#[cold]
fn normalize(path: &str) -> String {
    let (mut rest, mut normal) = (path.as_bytes(), String::with_capacity(path.len()));
    while let Some((byte, len)) = first_byte(rest) {
        match byte {
            PathByte::Literal(byte) => normal.push(char::from(byte)),
            PathByte::Encoded(byte) => push_byte(&mut normal, byte),
        }
        rest = &rest[len..];
    }
    normal
}

/// Returns the length of the prefix of the raw path that corresponds to the first `normal_len` bytes of its normal
/// form.
fn raw_prefix_len(path: &str, normal_len: usize) -> usize {
    let (mut at, mut normal) = (0, 0);
    while normal < normal_len
        && let Some((byte, len)) = first_byte(&path.as_bytes()[at..])
    {
        at += len;
        normal += if matches!(byte, PathByte::Literal(_)) { 1 } else { 3 };
    }
    at
}

/// Normalizes the literal text of a pattern and leaves its parameters unchanged.
fn normal_pattern(pattern: &str) -> String {
    let (mut rest, mut normal_pattern) = (pattern, String::with_capacity(pattern.len()));
    while let Some(brace) = rest.find(['{', '}']) {
        let (text, braces) = rest.split_at(brace);
        // A dot before a brace is not a whole segment: `/.{name}`.
        let (text, dot) = text.strip_suffix("/.").map_or((text, ""), |text| (text, "/."));
        normal_pattern.push_str(&normal(text));
        normal_pattern.push_str(dot);
        let len = match braces.as_bytes() {
            [b'{', b'{', ..] | [b'}', b'}', ..] => 2,
            // A malformed parameter is left unchanged; the router rejects it.
            _ => braces.find('}').map_or(braces.len(), |end| end + 1),
        };
        let (part, after) = braces.split_at(len);
        normal_pattern.push_str(match part {
            "{{" => "%7B",
            "}}" => "%7D",
            part => part,
        });
        rest = after;
    }
    normal_pattern.push_str(&normal(rest));
    normal_pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_paths_have_one_normal_form() {
        for (path, expected) in [
            ("", ""),
            ("/", "/"),
            ("*", "*"),
            ("/a/b.txt", "/a/b.txt"),
            ("//a///b//", "/a/b/"),
            ("/.", "/"),
            ("/./a/././b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/%2e/./%2E//b/%2e", "/a/b/"),
            ("//.//a", "/a"),
            ("/.a/b./.../..", "/.a/b./.../.."),
            ("/%2ea/.%2e/a.", "/.a/../a."),
            (".", "."),
            ("/%70riv%61te/%7e%2D%40%3a", "/private/~-@:"),
            ("/%252e%2f%2F%c3%a9|{}", "/%252e%2F%2F%C3%A9%7C%7B%7D"),
            ("/%2570", "/%2570"),
            ("/%zz%4%", "/%25zz%254%25"),
            ("/caf\u{e9} x", "/caf%C3%A9%20x"),
        ] {
            assert_eq!(normal(path), expected, "{path}");
            assert_eq!(normal(expected), expected, "{path}");
        }
        assert!(matches!(normal("/a/~b/@:;=?"), Cow::Owned(_)));
        assert!(matches!(normal("/a/~b/@:;="), Cow::Borrowed(_)));
    }

    #[test]
    fn a_normalized_prefix_is_mapped_to_its_raw_length() {
        for (path, prefix, raw_prefix) in [
            ("/a/b", "", ""),
            ("/a/b", "/a", "/a"),
            ("//a//b", "/a", "//a"),
            ("/%61%20/b", "/a%20", "/%61%20"),
            ("/{//b", "/%7B", "/{"),
            ("/./a/./b", "/a", "/./a"),
            ("//.//%2e/a", "/a", "//.//%2e/a"),
            ("/a/.", "/a", "/a"),
            ("/a", "/abc", "/a"),
        ] {
            assert_eq!(&path[..raw_prefix_len(path, prefix.len())], raw_prefix, "{path}");
        }
    }

    #[test]
    fn the_literal_text_of_a_pattern_is_normalized() {
        for (pattern, expected) in [
            ("/users/{id}", "/users/{id}"),
            ("/%7euser//{n%61me}/{*b|c}", "/~user/{n%61me}/{*b|c}"),
            ("/{{x}}/{a}", "/%7Bx%7D/{a}"),
            ("/./a/{b}/.", "/a/{b}/"),
            ("/.{a}/./b", "/.{a}/b"),
            ("/a./{b}", "/a./{b}"),
            ("/{a", "/{a"),
            ("/a}", "/a}"),
        ] {
            assert_eq!(normal_pattern(pattern), expected);
        }
    }
}
