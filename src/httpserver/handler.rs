//! The [`Handler`] trait, how a handler receives request bodies, and handlers over the types of the `http` crate.

use std::sync::{Arc, Mutex};

use http::StatusCode;

use super::body_reader::BodyReader;
use super::deferred::{BodyWait, Responder, Resume};
use super::headers::Trailers;
use super::request::{Request, RequestHead};
use super::response::Response;
use crate::r#loop::lock;

/// Responds to requests. Each worker has its own handler, so a handler's state needs no lock.
///
/// A closure `FnMut(&Request<'_>) -> R` is a handler if `R` is a [`Response`] or converts into one.
///
/// # Examples
/// ```
/// use serverd::{BodyMode, Handler, HttpServer, Request, RequestHead, Response};
///
/// struct Counter(u64);
///
/// impl Handler for Counter {
///     fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
///         if head.path() == "/upload" { BodyMode::Collect(64 << 20) } else { BodyMode::Default }
///     }
///
///     fn call(&mut self, _request: &Request<'_>) -> Response {
///         self.0 += 1;
///         Response::text(format!("{}\n", self.0))
///     }
/// }
///
/// let server = HttpServer::with(Counter(0));
/// # drop(server);
/// ```
pub trait Handler {
    /// Chooses how to receive the request body after seeing the head, before the server sends 100 (Continue). Called
    /// only for requests with a body.
    fn head(&mut self, _head: &RequestHead<'_>) -> BodyMode {
        BodyMode::Default
    }

    /// Responds to a complete request.
    fn call(&mut self, request: &Request<'_>) -> Response;
}

/// Selects how a request body is received; returned by [`Handler::head`].
#[non_exhaustive]
pub enum BodyMode {
    /// Collects the body in memory, up to [`Limits::body_bytes_max`](crate::http1::Limits) bytes, then calls
    /// [`Handler::call`]. A longer body is answered with 413.
    Default,
    /// Discards the body as it arrives, up to [`Limits::body_bytes_max`](crate::http1::Limits) bytes, then calls
    /// [`Handler::call`] with an empty body. A longer body is answered with 413. For handlers that do not use the body:
    /// it takes no memory.
    Discard,
    /// Collects the body in memory, up to this number of bytes, then calls [`Handler::call`]. A longer body is answered
    /// with 413.
    Collect(u64),
    /// Sends this response without reading the body, then closes the connection: the start of the next request cannot
    /// be found without reading the body.
    Reject(Response),
    /// Passes the body to a [`BodySink`] as it arrives; see [`BodyMode::stream`] and [`BodyMode::fold`].
    Stream {
        /// Maximum size of the body in bytes. A longer body is answered with 413.
        bytes_max: u64,
        /// Receives the body and returns the response.
        sink: Box<dyn BodySink>,
    },
    /// Reads the body on another thread; see [`BodyMode::read`].
    Read {
        /// Maximum size of the body in bytes. A longer body is answered with 413.
        bytes_max: u64,
        /// Passes the reader and the responder to another thread.
        start: Box<dyn FnOnce(BodyReader, Responder)>,
    },
}

impl BodyMode {
    /// Passes the body to `sink` as it arrives, up to `bytes_max` bytes. A longer body is answered with 413.
    pub fn stream(bytes_max: u64, sink: impl BodySink + 'static) -> Self {
        BodyMode::Stream { bytes_max, sink: Box::new(sink) }
    }

    /// Folds the body into a state as it arrives, up to `bytes_max` bytes: `each` is called for each chunk, and `end`
    /// creates the response. A longer body is answered with 413.
    ///
    /// # Examples
    /// ```
    /// use serverd::{BodyMode, Handler, Request, RequestHead, Response};
    ///
    /// struct Count;
    ///
    /// impl Handler for Count {
    ///     fn head(&mut self, _: &RequestHead<'_>) -> BodyMode {
    ///         BodyMode::fold(1 << 40, 0_u64, |sum, chunk| *sum += chunk.len() as u64, |sum| format!("{sum} bytes\n"))
    ///     }
    ///
    ///     fn call(&mut self, _: &Request<'_>) -> Response {
    ///         Response::text("no body\n")
    ///     }
    /// }
    /// ```
    pub fn fold<S: 'static, R: Into<Response>>(
        bytes_max: u64,
        state: S,
        each: impl FnMut(&mut S, &[u8]) + 'static,
        end: impl FnOnce(S) -> R + 'static,
    ) -> Self {
        BodyMode::stream(bytes_max, Fold { state, each, end })
    }

    /// Reads the body on another thread, which also responds. A body longer than `bytes_max` bytes is answered with
    /// 413.
    ///
    /// `start` is called immediately on the loop's thread and must pass the [`BodyReader`] and the [`Responder`] to
    /// another thread. The reader implements [`Read`](std::io::Read) and blocks until the client sends more. A slow
    /// reader applies back-pressure to the client: at most 256 KiB are buffered ahead of it.
    ///
    /// # Examples
    /// ```
    /// use serverd::{BodyMode, Handler, Request, RequestHead, Response, StatusCode};
    /// use std::io;
    ///
    /// struct Discard;
    ///
    /// impl Handler for Discard {
    ///     fn head(&mut self, _: &RequestHead<'_>) -> BodyMode {
    ///         BodyMode::read(1 << 40, |mut body, responder| {
    ///             std::thread::spawn(move || match io::copy(&mut body, &mut io::sink()) {
    ///                 Ok(bytes) => responder.respond(format!("{bytes} bytes\n")),
    ///                 Err(_) => responder.respond(StatusCode::BAD_REQUEST), // the client disconnected
    ///             });
    ///         })
    ///     }
    ///
    ///     fn call(&mut self, _: &Request<'_>) -> Response {
    ///         Response::text("no body\n")
    ///     }
    /// }
    /// ```
    pub fn read(bytes_max: u64, start: impl FnOnce(BodyReader, Responder) + 'static) -> Self {
        BodyMode::Read { bytes_max, start: Box::new(start) }
    }

    /// Transforms the response to a body that is rejected, streamed, or read on another thread. The response to a
    /// collected or discarded body comes from [`Handler::call`] and is not transformed: to change every response, a
    /// layer also uses [`Response::map`] there.
    #[must_use]
    pub fn map(self, change: impl FnOnce(Response) -> Response + Send + 'static) -> Self {
        match self {
            BodyMode::Default | BodyMode::Discard | BodyMode::Collect(_) => self,
            BodyMode::Reject(response) => BodyMode::Reject(response.map(change)),
            BodyMode::Stream { bytes_max, sink } => {
                let change = Arc::new(Mutex::new(Some(change)));
                BodyMode::stream(bytes_max, Mapped { sink, change })
            }
            BodyMode::Read { bytes_max, start } => {
                BodyMode::read(bytes_max, |body, responder| start(body, responder.map(change)))
            }
        }
    }
}

impl std::fmt::Debug for BodyMode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BodyMode::Default => formatter.write_str("Default"),
            BodyMode::Discard => formatter.write_str("Discard"),
            BodyMode::Collect(bytes_max) => write!(formatter, "Collect({bytes_max})"),
            BodyMode::Reject(response) => write!(formatter, "Reject({response:?})"),
            BodyMode::Stream { bytes_max, .. } => write!(formatter, "Stream({bytes_max})"),
            BodyMode::Read { bytes_max, .. } => write!(formatter, "Read({bytes_max})"),
        }
    }
}

/// Receives a request body as it arrives, on the loop's thread.
///
/// The sink is dropped without a call to [`BodySink::end`] if the connection closes or the body is too large, too slow
/// or malformed.
pub trait BodySink {
    /// Receives a chunk of the body. A chunk may have any size but is never empty.
    fn chunk(&mut self, bytes: &[u8]) -> BodyFlow;

    /// Responds once the body is complete. `trailers` is empty unless the body had chunked transfer coding.
    fn end(self: Box<Self>, trailers: &Trailers) -> Response;
}

/// Decides what follows a chunk of a request body; returned by [`BodySink::chunk`].
#[derive(Debug)]
#[non_exhaustive]
pub enum BodyFlow {
    /// Continue with the next chunk.
    Continue,
    /// Send this response without reading the rest of the body, then close the connection.
    Respond(Response),
    /// Pause the upload until the [`Resume`] of this value is used; see [`BodyFlow::wait`].
    Wait(BodyWait),
}

impl BodyFlow {
    /// Pauses the upload until another thread, or a later callback on the loop, uses the [`Resume`]: back-pressure for
    /// a sink that passes the body on to a file, a database or another server, without a thread per upload.
    ///
    /// The chunk counts as accepted. Neither the next chunk nor the end of the body is delivered until then. The server
    /// stops reading, so that the client stops sending; other connections are served. The body timeout does not run,
    /// and the chunk counts towards the [`BufferLimit`](super::BufferLimit). A sink should collect small chunks, and
    /// pause once for several.
    ///
    /// # Examples
    /// Writes an upload to a file, on a thread pool:
    /// ```
    /// use serverd::{BodyFlow, BodySink, Pool, PoolFull, Response, Resume, StatusCode, Trailers};
    /// use std::fs::File;
    /// use std::io::Write;
    /// use std::sync::Arc;
    ///
    /// struct Save {
    ///     file: Arc<File>,
    ///     pool: Pool,
    /// }
    ///
    /// impl BodySink for Save {
    ///     fn chunk(&mut self, bytes: &[u8]) -> BodyFlow {
    ///         let (flow, resume) = BodyFlow::wait();
    ///         let (file, bytes) = (Arc::clone(&self.file), bytes.to_vec());
    ///         let queued = self.pool.run_with(resume, move |resume: Resume| match (&*file).write_all(&bytes) {
    ///             Ok(()) => resume.resume(),
    ///             Err(_) => resume.respond(StatusCode::INSUFFICIENT_STORAGE),
    ///         });
    ///         if let Err(PoolFull((resume, _))) = queued {
    ///             resume.respond(PoolFull(())); // 503
    ///         }
    ///         flow
    ///     }
    ///
    ///     fn end(self: Box<Self>, _: &Trailers) -> Response {
    ///         StatusCode::CREATED.into()
    ///     }
    /// }
    /// ```
    pub fn wait() -> (Self, Resume) {
        let (wait, resume) = BodyWait::new();
        (BodyFlow::Wait(wait), resume)
    }
}

/// A sink that transforms the response of another sink.
struct Mapped<F> {
    sink: Box<dyn BodySink>,
    /// `None` once it has been applied. Shared with the responses of [`Resume::respond`], which do not pass the sink.
    change: Arc<Mutex<Option<F>>>,
}

/// Applies `change` to the response unless it has already been applied.
fn apply<F>(response: Response, change: &Mutex<Option<F>>) -> Response
where
    F: FnOnce(Response) -> Response + Send + 'static,
{
    let change = lock(change).take();
    if let Some(change) = change { response.map(change) } else { response }
}

impl<F: FnOnce(Response) -> Response + Send + 'static> BodySink for Mapped<F> {
    fn chunk(&mut self, bytes: &[u8]) -> BodyFlow {
        match self.sink.chunk(bytes) {
            BodyFlow::Continue => BodyFlow::Continue,
            BodyFlow::Respond(response) => BodyFlow::Respond(apply(response, &self.change)),
            BodyFlow::Wait(wait) => {
                let change = Arc::clone(&self.change);
                BodyFlow::Wait(wait.map(move |response| apply(response, &change)))
            }
        }
    }

    fn end(self: Box<Self>, trailers: &Trailers) -> Response {
        let Mapped { sink, change } = *self;
        apply(sink.end(trailers), &change)
    }
}

/// The sink of [`BodyMode::fold`].
struct Fold<S, E, F> {
    state: S,
    each: E,
    end: F,
}

impl<S, E, F, R> BodySink for Fold<S, E, F>
where
    E: FnMut(&mut S, &[u8]),
    F: FnOnce(S) -> R,
    R: Into<Response>,
{
    fn chunk(&mut self, bytes: &[u8]) -> BodyFlow {
        (self.each)(&mut self.state, bytes);
        BodyFlow::Continue
    }

    fn end(self: Box<Self>, _: &Trailers) -> Response {
        (self.end)(self.state).into()
    }
}

/// Lets the handler be chosen at run time.
impl Handler for Box<dyn Handler> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        (**self).head(head)
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        (**self).call(request)
    }
}

impl<F, R> Handler for F
where
    F: FnMut(&Request<'_>) -> R,
    R: Into<Response>,
{
    #[allow(clippy::inline_always, reason = "a response is large, and a call would copy it")]
    #[inline(always)]
    fn call(&mut self, request: &Request<'_>) -> Response {
        self(request).into()
    }
}

/// A closure as a handler for the standard methods except CONNECT; see [`HttpServer::new`](super::HttpServer::new).
pub struct Closure<F>(F);

impl<F> Closure<F> {
    pub(super) fn new(handler: F) -> Self {
        Closure(handler)
    }
}

impl<F, R> Handler for Closure<F>
where
    F: FnMut(&Request<'_>) -> R,
    R: Into<Response>,
{
    #[allow(clippy::inline_always, reason = "a response is large, and a call would copy it")]
    #[inline(always)]
    fn call(&mut self, request: &Request<'_>) -> Response {
        if request.method_bytes() == b"GET" {
            return (self.0)(request).into();
        }
        refuse_method(request.method()).unwrap_or_else(|| (self.0)(request).into())
    }
}

/// Returns the response to a method that a closure does not handle.
#[inline(never)]
fn refuse_method(method: &str) -> Option<Response> {
    match method {
        "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "PATCH" | "OPTIONS" | "TRACE" => None,
        "CONNECT" => {
            let allowed = "GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS, TRACE";
            Some(Response::from(StatusCode::METHOD_NOT_ALLOWED).header("Allow", allowed))
        }
        _ => Some(Response::from(StatusCode::NOT_IMPLEMENTED)),
    }
}

/// Handlers that use the types of the `http` crate, for existing code based on them.
///
/// Each request is copied into an owned value, which allocates; [`Request`] borrows instead.
#[cfg(feature = "http-types")]
pub mod http_types {
    use bytes::Bytes;

    use super::{Handler, Request, Response};
    use crate::http1::Version;

    /// Creates a [`Handler`] from a function that takes an `http::Request` and returns an `http::Response`.
    ///
    /// The extensions of the request contain the client's address as a [`std::net::SocketAddr`]. Response headers that
    /// the server sets itself are omitted, which is logged at level debug. An error returned by the function is logged
    /// and answered with 500.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, http_types};
    ///
    /// let server = HttpServer::with(http_types::handler(|request| {
    ///     http::Response::builder().status(200).body(format!("{}\n", request.uri()))
    /// }));
    /// # drop(server);
    /// ```
    pub fn handler<B, E>(mut handler: impl FnMut(http::Request<Bytes>) -> Result<http::Response<B>, E>) -> impl Handler
    where
        B: Into<Bytes>,
        E: std::fmt::Display,
    {
        move |request: &Request<'_>| match to_http(request).map(&mut handler) {
            Ok(Ok(response)) => from_http(response),
            Ok(Err(error)) => {
                log::error!("handler failed: {error}");
                Response::from(http::StatusCode::INTERNAL_SERVER_ERROR)
            }
            Err(error) => {
                log::debug!("cannot convert request to http::Request: {error}");
                Response::from(http::StatusCode::BAD_REQUEST)
            }
        }
    }

    /// Copies a request into an `http::Request`.
    fn to_http(request: &Request<'_>) -> http::Result<http::Request<Bytes>> {
        let version = match request.version() {
            Version::Http10 => http::Version::HTTP_10,
            Version::Http11 => http::Version::HTTP_11,
        };
        let mut builder =
            http::Request::builder().method(request.method_bytes()).uri(request.target()).version(version);
        for (name, value) in request.headers() {
            builder = builder.header(name, value);
        }
        if let Some(peer) = request.peer_addr() {
            builder = builder.extension(peer);
        }
        builder.body(Bytes::copy_from_slice(request.body()))
    }

    /// Converts an `http::Response`.
    fn from_http<B: Into<Bytes>>(response: http::Response<B>) -> Response {
        let (parts, body) = response.into_parts();
        let mut converted = Response::new(parts.status).body(body);
        for (name, value) in &parts.headers {
            if let Err(error) = converted.try_header(name.as_str(), value.as_bytes()) {
                log::debug!("response header {name} omitted: {error}");
            }
        }
        converted
    }
}
