//! HTTP responses: built by handlers, written by the server. Their headers are added, replaced and removed as formatted
//! lines.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, StatusCode};

use super::body_sender::{EventSender, QUEUE_BYTES, Queue, Sender};
use super::body_stream::{QueueBody, Source, Stream};
use super::exchange_handle::{ExchangeHandle, ExchangeId};
use super::headers::{self, HeaderBlock, HeaderError, Trailers};
use super::offer::Offer;
use super::session::Session;
use crate::http1;
use crate::r#loop::{Output, Timer, lock};

/// Disables content sniffing (Fetch standard).
const NOSNIFF: &[u8] = b"X-Content-Type-Options: nosniff\r\n";

/// An HTTP response, as returned by a handler. Creating one with a constant body does not allocate.
///
/// Its body may be in memory ([`Response::text`], [`Response::body`]), a file ([`Response::file`]) or a stream
/// ([`Response::stream`], [`Response::channel`]). The whole response may also be deferred to another thread
/// ([`Response::later`]).
///
/// Strings and a [`StatusCode`] convert into a response. So does a `Result` whose `Ok` and `Err` types both convert
/// into one, so handlers can use `?`.
///
/// # Examples
/// ```
/// use serverd::{Response, StatusCode};
///
/// let plain = Response::text("hello\n");
/// let redirect = Response::new(StatusCode::FOUND).header("Location", "/elsewhere");
/// let page = Response::new(StatusCode::OK).content_type("text/html; charset=utf-8").body("<p>hello");
/// assert_eq!(page.status(), StatusCode::OK);
/// assert_eq!(Response::from(StatusCode::NOT_FOUND).status(), StatusCode::NOT_FOUND);
/// # drop((plain, redirect));
/// ```
#[derive(Debug)]
pub struct Response {
    pub(super) status: StatusCode,
    pub(super) content_type: Option<&'static str>,
    /// Complete, validated header lines, each ending in CRLF.
    pub(super) headers: Vec<u8>,
    /// Further header lines, shared with other responses.
    pub(super) shared_headers: Option<Arc<HeaderBlock>>,
    pub(super) body: Body,
    pub(super) close: bool,
}

/// A part of a response body; see [`Response::parts`](super::Response::parts).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Part {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A range of bytes of a regular file.
    File(Arc<File>, Range<u64>),
}

impl Part {
    /// Returns the length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a part may be empty, but no caller needs to know")]
    pub fn len(&self) -> u64 {
        match self {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::File(_, range) => range.end.saturating_sub(range.start),
        }
    }
}

impl<T: Into<Bytes>> From<T> for Part {
    fn from(bytes: T) -> Self {
        Part::Bytes(bytes.into())
    }
}

/// A response body.
pub(super) enum Body {
    Bytes(Bytes),
    File(Arc<File>, Range<u64>),
    Parts(Vec<Part>),
    Stream(Box<Stream>),
    Deferred(Box<PendingReply>),
    /// The connection leaves HTTP.
    Session(Box<dyn Session>),
}

impl Body {
    /// Returns the length in bytes; `None` for a streamed body or a deferred response.
    pub(super) fn len(&self) -> Option<u64> {
        match self {
            Body::Bytes(bytes) => Some(bytes.len() as u64),
            Body::File(_, range) => Some(range.end.saturating_sub(range.start)),
            Body::Parts(parts) => Some(parts.iter().fold(0, |sum, part| sum.saturating_add(part.len()))),
            Body::Stream(_) | Body::Deferred(_) | Body::Session(_) => None,
        }
    }

    /// Appends a body of known length to the output.
    pub(super) fn push(self, output: &mut Output) {
        match self {
            Body::Bytes(bytes) => output.push(&bytes),
            Body::File(file, range) => output.push_file(file, range),
            Body::Parts(parts) => parts.into_iter().for_each(|part| match part {
                Part::Bytes(bytes) => output.push(&bytes),
                Part::File(file, range) => output.push_file(file, range),
            }),
            Body::Stream(_) | Body::Deferred(_) | Body::Session(_) => {}
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Body::Bytes(bytes) => bytes.fmt(formatter),
            Body::File(_, range) => write!(formatter, "{range:?} of a file"),
            Body::Parts(parts) => parts.fmt(formatter),
            Body::Stream(_) => formatter.write_str("a stream"),
            Body::Deferred(_) => formatter.write_str("a deferred response"),
            Body::Session(_) => formatter.write_str("a session"),
        }
    }
}

/// A change to apply to a response before it is sent.
pub(super) type Change = Box<dyn FnOnce(Response) -> Response + Send>;

/// The reply that a [`Responder`] passes to the loop.
pub(super) enum Reply {
    Ready(Response),
    /// A closure that creates the response on the loop's thread.
    Make(Box<dyn FnOnce() -> Response + Send>),
    /// No response yet: call the handler again for the suspended request.
    Retry(Insert),
}

/// Inserts the value passed to [`Responder::resume`] into the extensions of the suspended request.
pub(super) type Insert = Box<dyn FnOnce(&mut Extensions) + Send>;

/// A [`Reply`] with its response created.
pub(super) enum Outcome {
    Response(Response),
    Retry(Insert),
}

impl Reply {
    pub(super) fn map(self, change: Change) -> Self {
        Reply::Make(Box::new(move || match self {
            Reply::Ready(response) => response.map(change),
            Reply::Make(make) => make().map(change),
            Reply::Retry(_) => internal_error(),
        }))
    }
}

/// State shared by a [`Responder`] and the exchange that waits for its response.
#[derive(Default)]
pub(super) struct Deferred {
    pub(super) handle: ExchangeHandle,
    reply: Mutex<Option<Reply>>,
}

impl Deferred {
    /// Takes the reply, if it has arrived.
    pub(super) fn take(&self) -> Option<Outcome> {
        self.handle.clear_wakeup();
        let reply = lock(&self.reply).take()?;
        Some(match reply {
            Reply::Ready(response) => Outcome::Response(response),
            Reply::Make(make) => Outcome::Response(catch_panic(make)),
            Reply::Retry(insert) => Outcome::Retry(insert),
        })
    }

    /// Sets the reply, unless there is one already: the first counts.
    pub(super) fn put(&self, reply: Reply) {
        let mut slot = lock(&self.reply);
        let late = if slot.is_none() { slot.replace(reply) } else { Some(reply) };
        drop(slot);
        // Dropped outside the lock: it may contain anything.
        drop(late);
        self.handle.wake();
    }

    /// Replies with the fallback, in place of a responder that takes too long.
    fn give_up(&self, fallback: Response) {
        self.put(Reply::Ready(fallback));
        self.handle.abandon();
    }

    pub(super) fn attach(&self, id: ExchangeId, draining: bool) {
        self.handle.attach(id, draining);
    }
}

/// A deferred response and the changes to apply to it once it arrives. Dropping this notifies the responder.
pub(super) struct PendingReply {
    pub(super) deferred: Arc<Deferred>,
    pub(super) changes: Vec<Change>,
    /// Created by [`Response::suspend`]: the handler may be called again.
    pub(super) suspended: bool,
    /// The response after this time, if there is no other.
    pub(super) fallback: Option<Box<(Duration, Response)>>,
    /// The protocols to which the response may upgrade the connection.
    pub(super) offer: Offer,
    timer: Option<Timer>,
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        if let Some(timer) = &self.timer {
            timer.cancel();
        }
        self.deferred.handle.close();
    }
}

impl PendingReply {
    pub(super) fn new(deferred: Arc<Deferred>) -> Self {
        PendingReply {
            deferred,
            changes: Vec::new(),
            suspended: false,
            fallback: None,
            offer: Offer::default(),
            timer: None,
        }
    }

    /// Begins to wait for the reply, in the exchange `id`.
    pub(super) fn attach(&mut self, id: ExchangeId, draining: bool) {
        if let Some((limit, fallback)) = self.fallback.take().map(|fallback| *fallback) {
            let deferred = Arc::downgrade(&self.deferred);
            let give_up = move || {
                if let Some(deferred) = deferred.upgrade() {
                    deferred.give_up(fallback);
                }
            };
            self.timer = Some(id.remote.handle().call_later(limit, give_up));
        }
        self.deferred.attach(id, draining);
    }

    /// Returns the response with all changes applied, once it has arrived. On a retry the changes are dropped, since
    /// the layers that requested them are called again.
    pub(super) fn take(&mut self) -> Option<Outcome> {
        let response = match self.deferred.take()? {
            Outcome::Response(response) => response,
            Outcome::Retry(insert) if self.suspended => return Some(Outcome::Retry(insert)),
            Outcome::Retry(_) => {
                log::error!("responder resumed a request that was not suspended; replied 500");
                internal_error()
            }
        };
        let changes = std::mem::take(&mut self.changes);
        let response = catch_panic(move || changes.into_iter().fold(response, |response, change| change(response)));
        Some(Outcome::Response(response))
    }
}

impl Response {
    /// Creates a response without a body.
    #[inline]
    pub fn new(status: StatusCode) -> Self {
        let body = Body::Bytes(Bytes::new());
        Response { status, content_type: None, headers: Vec::new(), shared_headers: None, body, close: false }
    }

    /// Creates a 200 (OK) response with plain text in UTF-8.
    #[inline]
    pub fn text(text: impl Into<Bytes>) -> Self {
        let (content_type, body) = (Some("text/plain; charset=utf-8"), Body::Bytes(text.into()));
        Response { status: StatusCode::OK, content_type, headers: Vec::new(), shared_headers: None, body, close: false }
    }

    /// Creates a plain-text response with this status, usually an error and its explanation. It has the header
    /// `X-Content-Type-Options: nosniff`, so that browsers do not interpret the text, which may quote the request.
    pub fn error(status: StatusCode, text: impl Into<Bytes>) -> Self {
        Response { status, headers: NOSNIFF.to_vec(), ..Response::text(text) }
    }

    /// Creates a 200 (OK) response with a value serialized as JSON (RFC 8259). If serialization fails, the error is
    /// logged and the response is a 500.
    #[cfg(feature = "json")]
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(text) => Response::new(StatusCode::OK).content_type("application/json").body(text),
            Err(error) => {
                log::error!("replaced a handler's response with 500: cannot serialize to JSON: {error}");
                internal_error()
            }
        }
    }

    /// Creates a response from header lines that are valid.
    pub(crate) fn from_lines(status: StatusCode, headers: Vec<u8>, body: Bytes) -> Self {
        Response { headers, body: Body::Bytes(body), ..Response::new(status) }
    }

    /// Takes the body of another response.
    #[must_use]
    pub(crate) fn with_body_of(self, other: Response) -> Self {
        Response { body: other.body, ..self }
    }

    /// Returns whether this response suspends its request.
    pub(super) fn is_suspended(&self) -> bool {
        matches!(&self.body, Body::Deferred(pending) if pending.suspended)
    }

    /// Creates a 200 (OK) response that streams the items of an iterator, on the loop's thread, as fast as the client
    /// reads them. It is sent with chunked transfer coding, or with Content-Length if [`Response::length`] is set. For
    /// an HTTP/1.0 client and without a length, the end of the connection ends the body.
    ///
    /// # Examples
    /// ```
    /// use serverd::Response;
    ///
    /// let countdown = Response::stream((0..1000).rev().map(|number| format!("{number}\n")));
    /// # drop(countdown);
    /// ```
    pub fn stream<T>(pieces: impl IntoIterator<Item = T, IntoIter: Send + 'static>) -> Self
    where
        T: Into<Bytes>,
    {
        Response::from_source(Source::Pieces(Box::new(pieces.into_iter().map(|piece| Ok(piece.into())))))
    }

    /// Creates a 200 (OK) response like [`Response::stream`], from items that may be errors. An error closes the
    /// connection (with a reset for HTTP/1.0), so that the client can detect that the body is truncated.
    pub fn try_stream<T>(pieces: impl IntoIterator<Item = io::Result<T>, IntoIter: Send + 'static>) -> Self
    where
        T: Into<Bytes>,
    {
        Response::from_source(Source::Pieces(Box::new(pieces.into_iter().map(|piece| piece.map(Into::into)))))
    }

    /// Creates a 200 (OK) response that streams a reader. It is read on the loop's thread, so it must not block for
    /// long. A read error closes the connection as in [`Response::try_stream`].
    pub fn reader(reader: impl Read + Send + 'static) -> Self {
        Response::from_source(Source::Reader(Box::new(reader)))
    }

    /// Creates a 200 (OK) response with a byte range of a regular file, sent with Content-Length. The content is not
    /// kept in memory: it is read as fast as the client accepts it, on Linux without copying it to user space
    /// (`sendfile`). One open file may be sent to any number of clients at once.
    ///
    /// The range must lie within the file. If the file has been truncated or cannot be read, the connection is closed,
    /// so that the client can detect that the body is incomplete. Open the file read-only.
    ///
    /// # Examples
    /// ```
    /// use serverd::Response;
    /// use std::{fs::File, sync::Arc};
    ///
    /// let file = File::open("Cargo.toml")?;
    /// let len = file.metadata()?.len();
    /// let response = Response::file(Arc::new(file), 0..len).content_type("text/plain; charset=utf-8");
    /// # drop(response);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn file(file: impl Into<Arc<File>>, range: Range<u64>) -> Self {
        Response { body: Body::File(file.into(), range), ..Response::new(StatusCode::OK) }
    }

    /// Creates a 200 (OK) response whose body is the concatenation of several parts, with Content-Length. A part is
    /// bytes in memory or a range of a file, sent as by [`Response::file`].
    ///
    /// # Examples
    /// ```
    /// use serverd::{Part, Response};
    /// use std::{fs::File, sync::Arc};
    ///
    /// let file = Arc::new(File::open("Cargo.toml")?);
    /// let response = Response::parts([
    ///     Part::from("its first ten bytes: "),
    ///     Part::File(Arc::clone(&file), 0..10),
    ///     Part::from("\n"),
    /// ]);
    /// # drop(response);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn parts(parts: impl IntoIterator<Item = Part>) -> Self {
        Response { body: Body::Parts(parts.into_iter().collect()), ..Response::new(StatusCode::OK) }
    }

    /// Creates a 200 (OK) response whose body is sent by other threads through the [`Sender`]. At most 256 KiB are
    /// queued for a slow client.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Response};
    ///
    /// let server = HttpServer::new(|_| {
    ///     let (response, sender) = Response::channel();
    ///     std::thread::spawn(move || {
    ///         for word in ["one\n", "two\n"] {
    ///             if sender.send_blocking(word).is_err() {
    ///                 return; // the client disconnected
    ///             }
    ///         }
    ///         sender.finish();
    ///     });
    ///     response
    /// });
    /// # drop(server);
    /// ```
    pub fn channel() -> (Self, Sender) {
        Response::channel_with_capacity(QUEUE_BYTES)
    }

    /// Creates a response like [`Response::channel`] with room for `bytes_max` queued bytes.
    pub fn channel_with_capacity(bytes_max: usize) -> (Self, Sender) {
        let (queue, sender) = Queue::new(bytes_max);
        (Response::from_source(Source::Queue(QueueBody(queue))), sender)
    }

    /// Creates a 200 (OK) response with a stream of server-sent events.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Response, ServerEvent};
    /// use std::{thread, time::Duration};
    ///
    /// let server = HttpServer::new(|_| {
    ///     let (response, events) = Response::events();
    ///     thread::spawn(move || {
    ///         while !events.sender().is_draining() && events.send(&ServerEvent::new("tick")).is_ok() {
    ///             thread::sleep(Duration::from_secs(1));
    ///         }
    ///         events.finish();
    ///     });
    ///     response
    /// });
    /// # drop(server);
    /// ```
    pub fn events() -> (Self, EventSender) {
        let (response, sender) = Response::channel();
        let response = response.content_type("text/event-stream").header("Cache-Control", "no-store");
        (response, EventSender::new(sender))
    }

    pub(super) fn from_source(source: Source) -> Self {
        Response { body: Body::Stream(Box::new(Stream::new(source))), ..Response::new(StatusCode::OK) }
    }

    /// Sets the length of a stream in bytes, which is then sent with Content-Length instead of chunked transfer coding.
    /// Excess data is discarded; a stream that ends too early closes the connection. Ignored if the body is not a
    /// stream.
    #[must_use]
    pub fn length(mut self, bytes: u64) -> Self {
        if let Body::Stream(stream) = &mut self.body {
            stream.length = Some(bytes);
        }
        self
    }

    /// Sends trailers after a stream in chunked transfer coding, to clients that send `TE: trailers`. `names` are
    /// listed in the Trailer header (RFC 9110 section 6.6.2); `make` is called at the end of the body. Ignored if the
    /// body is not a stream.
    #[must_use]
    pub fn trailers(mut self, names: &[&str], make: impl FnOnce() -> Trailers + Send + 'static) -> Self {
        if let Body::Stream(stream) = &mut self.body {
            stream.trailers = Some((names.join(", "), Box::new(make)));
        }
        self
    }

    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Replaces the status.
    #[must_use]
    pub fn with_status(self, status: StatusCode) -> Self {
        Response { status, ..self }
    }

    /// Replaces the body with static, shared or owned bytes. With status 204, 205 or 304 the body is not sent; in
    /// response to HEAD only its length is sent.
    #[inline]
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        Response { body: Body::Bytes(body.into()), ..self }
    }

    /// Closes the connection after this response, and sends `Connection: close`.
    #[must_use]
    pub fn close(self) -> Self {
        Response { close: true, ..self }
    }

    /// Applies a change to the response that will be sent: immediately, or for a deferred response when it arrives. A
    /// layer uses it to change every response.
    #[must_use]
    pub fn map(mut self, change: impl FnOnce(Response) -> Response + Send + 'static) -> Self {
        if let Body::Deferred(pending) = &mut self.body {
            pending.changes.push(Box::new(change));
            return self;
        }
        change(self)
    }

    /// Replaces an invalid response, which is a bug in the handler, with a 500. `known` caches the last content type
    /// found valid.
    pub(super) fn check(&mut self, known: &mut &'static str) {
        // The last string found valid need not be checked again.
        let is_known = self.content_type.is_none_or(|value| std::ptr::eq(value, *known));
        if !self.status.is_informational() && is_known {
            return;
        }
        let content_type = self.content_type.unwrap_or_default();
        if self.status == StatusCode::SWITCHING_PROTOCOLS && matches!(self.body, Body::Session(_)) {
            return;
        }
        if self.status.is_informational() || !http1::is_header_value(content_type.as_bytes()) {
            log::error!("replaced a handler's response with 500: invalid status {} or content type", self.status);
            *self = internal_error();
        } else {
            *known = content_type;
        }
    }
}

impl From<StatusCode> for Response {
    /// Creates a response with this status. The body of an error is its reason phrase; any other status has no body.
    fn from(status: StatusCode) -> Self {
        if !(status.is_client_error() || status.is_server_error()) {
            return Response::new(status);
        }
        Response::error(status, format!("{}\n", status.canonical_reason().unwrap_or("error")))
    }
}

impl From<&'static str> for Response {
    #[inline]
    fn from(text: &'static str) -> Self {
        Response::text(text)
    }
}

impl From<String> for Response {
    fn from(text: String) -> Self {
        Response::text(text)
    }
}

impl<T: Into<Response>, E: Into<Response>> From<Result<T, E>> for Response {
    fn from(result: Result<T, E>) -> Self {
        result.map_or_else(Into::into, Into::into)
    }
}

pub(super) fn internal_error() -> Response {
    Response::error(StatusCode::INTERNAL_SERVER_ERROR, "internal server error\n").close()
}

/// Calls the closure; if it panics, returns a 500.
pub(super) fn catch_panic(make: impl FnOnce() -> Response) -> Response {
    catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| {
        log::error!("response closure panicked; replied 500");
        internal_error()
    })
}

impl Response {
    /// Sets Content-Type, replacing any earlier value. An invalid value is logged, and the response becomes a 500.
    #[inline]
    #[must_use]
    pub fn content_type(mut self, content_type: &'static str) -> Self {
        self.remove_content_type();
        Response { content_type: Some(content_type), ..self }
    }

    /// Removes Content-Type, whichever way it was set.
    #[inline]
    fn remove_content_type(&mut self) {
        self.content_type = None;
        if !self.headers.is_empty() {
            let lines = self.headers.split_inclusive(|&byte| byte == b'\n');
            self.headers = lines.filter(|line| !is_content_type(line)).flatten().copied().collect();
        }
        if let Some(shared) = self
            .shared_headers
            .as_ref()
            .filter(|shared| shared.lines().split(|&byte| byte == b'\n').any(is_content_type))
        {
            self.shared_headers = Some(Arc::new(shared.without("content-type")));
        }
    }

    /// Adds a header. An invalid one is logged and turns the whole response into a 500, since silently omitting, say, a
    /// Set-Cookie would be worse. Use [`Response::try_header`] to handle the error.
    #[must_use]
    pub fn header(mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) -> Self {
        let name = name.as_ref();
        match self.try_header(name, value.as_ref()) {
            Ok(()) => self,
            Err(error) => {
                log::error!("replaced a handler's response with 500: header {name:?}: {error}");
                internal_error()
            }
        }
    }

    /// Adds a block of headers that is shared between responses, without copying it. Replaces an earlier block. The
    /// block should not contain headers that are also set on the response itself.
    #[must_use]
    pub fn with_headers(mut self, block: &Arc<HeaderBlock>) -> Self {
        if let Body::Deferred(_) = self.body {
            // Only `headers` of a placeholder are added to the final response.
            self.headers.extend_from_slice(block.lines());
            return self;
        }
        Response { shared_headers: Some(Arc::clone(block)), ..self }
    }

    /// Adds a header. All headers with the same name are sent, except that Content-Type replaces an earlier one.
    ///
    /// # Errors
    /// Returns an error if the name or value is invalid, or if the server sets this header itself. The response is then
    /// unchanged.
    pub fn try_header(&mut self, name: &str, value: &[u8]) -> Result<(), HeaderError> {
        if name.eq_ignore_ascii_case("content-type") {
            headers::check(name, value)?;
            self.remove_content_type();
        }
        headers::push(&mut self.headers, name, value)?;
        // RFC 9110 section 7.8: a sender of Upgrade lists it in Connection, so that proxies do not forward it.
        if name.eq_ignore_ascii_case("upgrade") {
            self.headers.extend_from_slice(b"Connection: upgrade\r\n");
        }
        Ok(())
    }

    /// Returns the value of the first header with this name.
    #[cfg(feature = "compress")]
    pub(super) fn header_value(&self, name: &str) -> Option<&[u8]> {
        let shared = self.shared_headers.as_ref().map(|block| block.lines()).unwrap_or_default();
        let mut lines =
            [self.headers.as_slice(), shared].into_iter().flat_map(|lines| lines.split(|&byte| byte == b'\n'));
        lines.find(|line| headers::is_line_of(line, name)).map(|line| line[name.len() + 1..].trim_ascii())
    }

    /// Returns whether there is a header with this name.
    pub(super) fn has_header(&self, name: &str) -> bool {
        let shared = self.shared_headers.as_ref().map(|block| block.lines()).unwrap_or_default();
        let mut lines = [&self.headers[..], shared].into_iter().flat_map(|lines| lines.split(|&byte| byte == b'\n'));
        lines.any(|line| headers::is_line_of(line, name))
    }

    /// Removes all headers with this name.
    pub(super) fn remove_header(&mut self, name: &str) {
        let lines = self.headers.split_inclusive(|&byte| byte == b'\n');
        self.headers = lines.filter(|line| !headers::is_line_of(line, name)).flatten().copied().collect();
        if let Some(shared) = self.shared_headers.as_mut() {
            *shared = Arc::new(shared.without(name));
        }
    }

    /// Adds the name of a request header to Vary (RFC 9110 section 12.5.5), unless it is already listed.
    #[cfg(feature = "compress")]
    pub(super) fn vary(self, name: &str) -> Self {
        let listed = self.header_value("vary").unwrap_or_default();
        let is_name = |word: &[u8]| word.trim_ascii().eq_ignore_ascii_case(name.as_bytes());
        if listed.split(|&byte| byte == b',').any(is_name) { self } else { self.header("Vary", name) }
    }

    /// Makes the entity tag weak: the representation is equivalent but not identical byte for byte (RFC 9110 section
    /// 8.8.1).
    #[cfg(feature = "compress")]
    pub(super) fn weaken_etag(&mut self) {
        if let Some(tag) = self.header_value("etag").filter(|tag| tag.starts_with(b"\"")) {
            let weak = [b"W/", tag].concat();
            self.remove_header("etag");
            // Cannot fail: the value was valid before.
            let _ = self.try_header("ETag", &weak);
        }
    }

    /// Adds header lines, and closes the connection if `close` is set. Used for the headers of a layer, and for changes
    /// made to the placeholder of a deferred response.
    pub(super) fn merge(&mut self, headers: &[u8], close: bool) {
        if headers.split(|&byte| byte == b'\n').any(is_content_type) {
            self.remove_content_type();
        }
        self.headers.extend_from_slice(headers);
        self.close |= close;
    }
}

fn is_content_type(line: &[u8]) -> bool {
    headers::is_line_of(line, "content-type")
}
