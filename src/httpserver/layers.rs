//! Layers: functions from a handler to a handler.
//!
//! What a layer does to a response it does with [`Response::map`], so that answers given later are changed too.
//!
//! A layer sees the answers of its handler. Those that the server gives itself it does not see: to requests that reach
//! no handler, since they are malformed, too large or too slow ([`http1::Error`](crate::http1::Error) tells them: 400,
//! 408, 413, 431 and the like), and the 500 where a handler panics.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "files")]
mod basic;
#[cfg(feature = "files")]
mod compress;
mod cors;
mod overriding;

#[cfg(feature = "files")]
pub use basic::{User, Users, basic};
#[cfg(feature = "files")]
pub use compress::compress;
pub use cors::cors;
pub use overriding::set_fields;

use super::{FieldError, Handler, Intake, Request, RequestHead, Response, fields};

/// Calls the handler by way of a closure, which sees whole requests and their answers.
///
/// Requests that the handler decides upon by their head alone pass the closure by: refusals, and bodies that are taken
/// as they come. So this is not the place for authentication; [`guard`] is.
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
///     inner.call(request).map(move |response| response.field("X-Count", count.to_string()))
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
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        self.inner.head(head)
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        (self.call)(&mut self.inner, request)
    }
}

/// Lets a request through, or answers it instead, before its body is asked for: for authentication and the like. The
/// closure is asked once more when the body is there, and may leave what it found out by [`RequestHead::insert`].
///
/// To guard a part of the server, guard what is mounted there ([`Router::mount`](super::Router::mount)): the router sees
/// through other spellings of its path. A closure that compares [`RequestHead::path`], which is as it came, does not.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Response, StatusCode, layers};
///
/// let secret = |_: &serverd::Request<'_>| "the secret\n";
/// let server = HttpServer::with(layers::guard(secret, |head| {
///     if head.field("authorization") == Some(b"Bearer 0123456789") {
///         return None;
///     }
///     Some(Response::from(StatusCode::UNAUTHORIZED).field("WWW-Authenticate", "Bearer"))
/// }));
/// # drop(server);
/// ```
pub fn guard<H: Handler>(inner: H, refuse: impl FnMut(&RequestHead<'_>) -> Option<Response>) -> impl Handler {
    Guard { inner, refuse }
}

struct Guard<H, F> {
    inner: H,
    refuse: F,
}

impl<H: Handler, F: FnMut(&RequestHead<'_>) -> Option<Response>> Handler for Guard<H, F> {
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        (self.refuse)(head).map_or_else(|| self.inner.head(head), Intake::Refuse)
    }

    /// Asked again where there was a body: what a layer further out did with the head is not known here.
    fn call(&mut self, request: &Request<'_>) -> Response {
        (self.refuse)(&request.head()).unwrap_or_else(|| self.inner.call(request))
    }
}

/// Adds the same fields to every answer of the handler. What the server answers itself does not carry them: refusals
/// of requests that are malformed, too large or too slow (400, 408, 413, 431 and the like), and the 500 of a panic.
///
/// # Errors
/// When a field must not be sent.
///
/// # Examples
/// ```
/// use serverd::{FieldError, HttpServer, layers};
///
/// let page = |_: &serverd::Request<'_>| "hello\n";
/// let server = HttpServer::with(layers::fields(page, &[("X-Content-Type-Options", "nosniff")])?);
/// # drop(server);
/// # Ok::<(), FieldError>(())
/// ```
pub fn fields<H: Handler>(inner: H, list: &[(&str, &str)]) -> Result<impl Handler + use<H>, FieldError> {
    let mut lines = Vec::new();
    for (name, value) in list {
        fields::push(&mut lines, name, value.as_bytes())?;
    }
    Ok(Fields { inner, lines: lines.into() })
}

struct Fields<H> {
    inner: H,
    lines: Arc<[u8]>,
}

impl<H: Handler> Handler for Fields<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        let lines = Arc::clone(&self.lines);
        self.inner.head(head).map(move |mut response| {
            response.inherit(&lines, false);
            response
        })
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let mut response = self.inner.call(request);
        // On an answer given later this stands for the answer, which takes it over.
        response.inherit(&self.lines, false);
        response
    }
}

/// Writes a line to the log for every answer of the handler, at level info under the target `serverd::access`: peer,
/// method and target, status, and the time from the call to the answer. Costs next to nothing while that is off.
pub fn log<H: Handler>(inner: H) -> impl Handler {
    Log { inner }
}

struct Log<H> {
    inner: H,
}

impl<H: Handler> Handler for Log<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
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

/// What writes the line once the answer is there. The target has no control characters in it, the parser saw to that.
fn line(head: &RequestHead<'_>) -> impl FnOnce(Response) -> Response + Send + 'static {
    let peer = head.peer().as_ref().map_or_else(|| "-".into(), SocketAddr::to_string);
    let (method, target) = (head.method().to_owned(), head.target().to_owned());
    let start = Instant::now();
    move |response| {
        let (status, took) = (response.status().as_u16(), start.elapsed());
        ::log::info!(target: "serverd::access", "{peer} \"{method} {target}\" {status} {took:.1?}");
        response
    }
}
