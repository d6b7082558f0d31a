//! A response: a value a handler makes and the server writes.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::fields::{self, FieldBlock, FieldError, Trailers};
use super::later::{Late, Outcome, Responder};
use super::outgoing::{Outlet, Source, Stream};
use super::parts::Part;
use super::sender::{QUEUE_BYTES, Queue, Sender};
use crate::http1;

/// What a handler answers. Making one that has a constant body allocates nothing.
///
/// Text, bytes and a [`StatusCode`] are responses too, and so is a `Result` of two of them, so handlers can use `?`.
///
/// # Examples
/// ```
/// use serverd::{Response, StatusCode};
///
/// let plain = Response::text("hello\n");
/// let moved = Response::new(StatusCode::FOUND).field("Location", "/elsewhere");
/// let page = Response::new(StatusCode::OK).content_type("text/html; charset=utf-8").body("<p>hello");
/// assert_eq!(page.status(), StatusCode::OK);
/// assert_eq!(Response::from(StatusCode::NOT_FOUND).status(), StatusCode::NOT_FOUND);
/// # drop((plain, moved));
/// ```
#[derive(Debug)]
pub struct Response {
    pub(super) status: StatusCode,
    pub(super) content_type: Option<&'static str>,
    /// Whole, checked field lines.
    pub(super) fields: Vec<u8>,
    /// More of them, that other answers have as well.
    pub(super) shared: Option<Arc<FieldBlock>>,
    pub(super) body: Body,
    pub(super) close: bool,
}

/// What follows the head.
pub(super) enum Body {
    Bytes(Bytes),
    File(Arc<File>, Range<u64>),
    Parts(Vec<Part>),
    Stream(Box<Stream>),
    Later(Box<Pending>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Body::Bytes(bytes) => bytes.fmt(formatter),
            Body::File(_, range) => write!(formatter, "{range:?} of a file"),
            Body::Parts(parts) => parts.fmt(formatter),
            Body::Stream(_) => formatter.write_str("a stream"),
            Body::Later(_) => formatter.write_str("an answer given later"),
        }
    }
}

/// What is to be done with an answer before it is sent.
pub(super) type Change = Box<dyn FnOnce(Response) -> Response + Send>;

/// A response that another thread will give, and what is to be done with it then. That thread hears when it is dropped.
pub(super) struct Pending {
    pub(super) late: Arc<Late>,
    changes: Vec<Change>,
    /// The handler may be asked again.
    pub(super) undecided: bool,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.late.link.close();
    }
}

impl Pending {
    pub(super) fn new(late: Arc<Late>) -> Self {
        Pending { late, changes: Vec::new(), undecided: false }
    }

    /// The answer with all its changes, once it is there. Changes are not for one that is still to be asked for: who
    /// made them is asked too.
    pub(super) fn take(&mut self) -> Option<Outcome> {
        let answer = match self.late.take()? {
            Outcome::Response(answer) => answer,
            Outcome::Again(found) if self.undecided => return Some(Outcome::Again(found)),
            Outcome::Again(_) => {
                log::error!("a handler was to be asked again about a request that was not kept: answered 500");
                internal_error()
            }
        };
        let changes = std::mem::take(&mut self.changes);
        let last = guarded(move || changes.into_iter().fold(answer, |response, change| change(response)));
        Some(Outcome::Response(last))
    }
}

impl Response {
    /// A response without a body.
    #[inline]
    pub fn new(status: StatusCode) -> Self {
        let body = Body::Bytes(Bytes::new());
        Response { status, content_type: None, fields: Vec::new(), shared: None, body, close: false }
    }

    /// 200 (OK) with plain text in UTF-8.
    #[inline]
    pub fn text(text: impl Into<Bytes>) -> Self {
        let (content_type, body) = (Some("text/plain; charset=utf-8"), Body::Bytes(text.into()));
        Response { status: StatusCode::OK, content_type, fields: Vec::new(), shared: None, body, close: false }
    }

    /// A status with a line of plain text that names it, or says more.
    pub fn error(status: StatusCode, text: impl Into<Bytes>) -> Self {
        Response { status, ..Response::text(text) }
    }

    /// 200 (OK) with a value as JSON (RFC 8259). One that cannot be written as JSON becomes 500, and is logged.
    #[cfg(feature = "json")]
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(text) => Response::new(StatusCode::OK).content_type("application/json").body(text),
            Err(error) => {
                log::error!("a handler's response was replaced by 500: not JSON: {error}");
                internal_error()
            }
        }
    }

    /// A response that another thread gives later, by the [`Responder`]. Fields that are added to it are added to the
    /// answer; see [`Response::map`] for more.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Response};
    ///
    /// let server = HttpServer::new(|_| {
    ///     let (response, responder) = Response::later();
    ///     std::thread::spawn(move || responder.respond("it took a while\n"));
    ///     response
    /// });
    /// # drop(server);
    /// ```
    pub fn later() -> (Self, Responder) {
        let (late, responder) = Late::new();
        let body = Body::Later(Box::new(Pending::new(late)));
        (Response { body, ..Response::new(StatusCode::OK) }, responder)
    }

    /// A response that stands for one which cannot be told yet. When the [`Responder`] says so, the handler is asked once
    /// more about the same request, by the method that it was asked before: [`Handler::head`](super::Handler::head), which
    /// gives this as a refusal, or [`Handler::call`](super::Handler::call). The responder may also answer instead.
    ///
    /// For layers that have to find something out elsewhere before the handler inside may see the request, such as
    /// whether a password is right. Layers outside of this one are asked again too.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Pool, Response, layers};
    ///
    /// #[derive(Clone)]
    /// struct Verdict(bool);
    ///
    /// let pool = Pool::new(1, 16)?;
    /// let page = |_: &serverd::Request<'_>| "hello\n";
    /// let server = HttpServer::with(layers::guard(page, move |head| match head.extension() {
    ///     Some(Verdict(true)) => None,
    ///     Some(Verdict(false)) => Some(serverd::StatusCode::FORBIDDEN.into()),
    ///     None => {
    ///         let (response, responder) = Response::undecided();
    ///         let full = pool.run(move || responder.ask_again(Verdict(std::path::Path::new("/tmp").exists())));
    ///         Some(full.map_or_else(|_| serverd::StatusCode::SERVICE_UNAVAILABLE.into(), |()| response))
    ///     }
    /// }));
    /// # drop(server);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn undecided() -> (Self, Responder) {
        let (mut response, responder) = Response::later();
        if let Body::Later(pending) = &mut response.body {
            pending.undecided = true;
        }
        (response, responder)
    }

    /// Whether it stands for one that cannot be told yet.
    pub(super) fn is_undecided(&self) -> bool {
        matches!(&self.body, Body::Later(pending) if pending.undecided)
    }

    /// 200 (OK) with a body made piece by piece, on the thread of the loop, as fast as the client takes it. It goes out
    /// in chunks, or with [`Response::length`] as one whole; to HTTP/1.0 up to the close.
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

    /// As [`Response::stream`], of pieces that may fail: then the connection ends early (for HTTP/1.0 by a reset), so
    /// that the client does not take half an answer for a whole one.
    pub fn try_stream<T>(pieces: impl IntoIterator<Item = io::Result<T>, IntoIter: Send + 'static>) -> Self
    where
        T: Into<Bytes>,
    {
        Response::from_source(Source::Pieces(Box::new(pieces.into_iter().map(|piece| piece.map(Into::into)))))
    }

    /// 200 (OK) with what a reader gives, read on the thread of the loop: for files and the like, which do not
    /// keep others waiting. One that fails ends the connection as in [`Response::try_stream`].
    pub fn reader(reader: impl Read + Send + 'static) -> Self {
        Response::from_source(Source::Reader(Box::new(reader)))
    }

    /// 200 (OK) with a part of a regular file, from one position up to another, with Content-Length. Nothing of it is kept
    /// in memory: it is read as fast as the client takes it, and on Linux the system sends it by itself (sendfile). The same open
    /// file may be sent to any number of clients at once.
    ///
    /// What is asked of the file is its length before; when it has become shorter, or cannot be read any more, the
    /// connection is closed, so that the client does not take a half for the whole. It should not be opened for writing.
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

    /// 200 (OK) with a body of several parts, one behind the other, with the Content-Length of all together: bytes,
    /// and parts of files as in [`Response::file`].
    ///
    /// # Examples
    /// ```
    /// use serverd::{Part, Response};
    /// use std::{fs::File, sync::Arc};
    ///
    /// let file = Arc::new(File::open("Cargo.toml")?);
    /// let response = Response::parts([
    ///     Part::from("its first ten octets: "),
    ///     Part::File(Arc::clone(&file), 0..10),
    ///     Part::from("\n"),
    /// ]);
    /// # drop(response);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn parts(parts: impl IntoIterator<Item = Part>) -> Self {
        Response { body: Body::Parts(parts.into_iter().collect()), ..Response::new(StatusCode::OK) }
    }

    /// 200 (OK) with what another thread pushes by the [`Sender`], at most 256 KiB ahead of the client.
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
    ///                 return; // the client is gone
    ///             }
    ///         }
    ///         sender.finish();
    ///     });
    ///     response
    /// });
    /// # drop(server);
    /// ```
    pub fn channel() -> (Self, Sender) {
        Response::channel_of(QUEUE_BYTES)
    }

    /// As [`Response::channel`], with another bound on what is pushed ahead of the client.
    pub fn channel_of(bytes_max: usize) -> (Self, Sender) {
        let (queue, sender) = Queue::new(bytes_max);
        (Response::from_source(Source::Queue(Outlet(queue))), sender)
    }

    pub(super) fn from_source(source: Source) -> Self {
        Response { body: Body::Stream(Box::new(Stream::new(source))), ..Response::new(StatusCode::OK) }
    }

    /// Announces the length of a stream, which goes out with Content-Length then. What comes beyond is cut off; a
    /// stream that ends too early ends the connection as well. A body of bytes knows its own length.
    #[must_use]
    pub fn length(mut self, bytes: u64) -> Self {
        if let Body::Stream(stream) = &mut self.body {
            stream.length = Some(bytes);
        }
        self
    }

    /// Sends fields behind a stream that goes out in chunks, to clients that say `TE: trailers`. The names are
    /// announced before the body (RFC 9110 section 6.6.2), the closure is called at its end.
    #[must_use]
    pub fn trailers(mut self, names: &[&str], make: impl FnOnce() -> Trailers + Send + 'static) -> Self {
        if let Body::Stream(stream) = &mut self.body {
            stream.trailers = Some((names.join(", "), Box::new(make)));
        }
        self
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
        Response { body: Body::Bytes(body.into()), ..self }
    }

    /// Sets the Content-Type, in place of any told before. One that cannot stand in a field makes the response a 500,
    /// and is logged.
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
            self.fields = lines.filter(|line| !is_content_type(line)).flatten().copied().collect();
        }
        if let Some(shared) =
            self.shared.as_ref().filter(|shared| shared.lines().split(|&byte| byte == b'\n').any(is_content_type))
        {
            self.shared = Some(Arc::new(shared.without("content-type")));
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

    /// Adds fields that other answers have as well, without copying them: in place of any added so before. They should
    /// not tell what the response tells already.
    #[must_use]
    pub fn with_fields(mut self, block: &Arc<FieldBlock>) -> Self {
        if let Body::Later(_) = self.body {
            // What stands for the answer tells its own fields alone.
            self.fields.extend_from_slice(block.lines());
            return self;
        }
        Response { shared: Some(Arc::clone(block)), ..self }
    }

    /// Adds a field.
    ///
    /// # Errors
    /// When it must not be sent; the response is as before.
    pub fn try_field(&mut self, name: &str, value: &[u8]) -> Result<(), FieldError> {
        if name.eq_ignore_ascii_case("content-type") {
            fields::check(name, value)?;
            self.forget_content_type();
        }
        fields::push(&mut self.fields, name, value)?;
        // RFC 9110 section 7.8: who sends Upgrade names it in Connection, so that no proxy passes it on.
        if name.eq_ignore_ascii_case("upgrade") {
            self.fields.extend_from_slice(b"Connection: upgrade\r\n");
        }
        Ok(())
    }

    /// The value of the first field of this name that was added.
    #[cfg(feature = "files")]
    pub(super) fn field_value(&self, name: &str) -> Option<&[u8]> {
        let shared = self.shared.as_ref().map(|block| block.lines()).unwrap_or_default();
        let mut lines =
            [self.fields.as_slice(), shared].into_iter().flat_map(|lines| lines.split(|&byte| byte == b'\n'));
        lines.find(|line| fields::is_line_of(line, name)).map(|line| line[name.len() + 1..].trim_ascii())
    }

    /// Takes all fields of this name away.
    pub(super) fn remove_field(&mut self, name: &str) {
        let lines = self.fields.split_inclusive(|&byte| byte == b'\n');
        self.fields = lines.filter(|line| !fields::is_line_of(line, name)).flatten().copied().collect();
        if let Some(shared) = self.shared.as_mut() {
            *shared = Arc::new(shared.without(name));
        }
    }

    /// Says that the answer depends on a field of the request (RFC 9110 section 12.5.5), unless it says so already.
    #[cfg(feature = "files")]
    pub(super) fn vary(self, name: &str) -> Self {
        let told = self.field_value("vary").unwrap_or_default();
        let is_told = |word: &[u8]| word.trim_ascii().eq_ignore_ascii_case(name.as_bytes());
        if told.split(|&byte| byte == b',').any(is_told) { self } else { self.field("Vary", name) }
    }

    /// Makes the entity tag a weak one: the content means the same, but its octets are others (RFC 9110 section 8.8.1).
    #[cfg(feature = "files")]
    pub(super) fn weaken_etag(&mut self) {
        if let Some(tag) = self.field_value("etag").filter(|tag| tag.starts_with(b"\"")) {
            let weak = [b"W/", tag].concat();
            self.remove_field("etag");
            // What was a tag is one still.
            let _ = self.try_field("ETag", &weak);
        }
    }

    /// Closes the connection after this response, and says so.
    #[must_use]
    pub fn close(self) -> Self {
        Response { close: true, ..self }
    }

    /// Changes the response that will be sent: this one at once, one that is given later when it is there. What wraps
    /// handlers uses this, so that it sees every answer.
    #[must_use]
    pub fn map(mut self, change: impl FnOnce(Response) -> Response + Send + 'static) -> Self {
        if let Body::Later(pending) = &mut self.body {
            pending.changes.push(Box::new(change));
            return self;
        }
        change(self)
    }

    /// Says which fields will stand behind the body.
    pub(super) fn announce_trailers(&mut self, names: &str) {
        if http1::is_field_value(names.as_bytes()) {
            for part in [&b"Trailer: "[..], names.as_bytes(), b"\r\n"] {
                self.fields.extend_from_slice(part);
            }
        }
    }

    /// Takes over what was added to a response that stood for this one.
    pub(super) fn inherit(&mut self, fields: &[u8], close: bool) {
        if fields.split(|&byte| byte == b'\n').any(is_content_type) {
            self.forget_content_type();
        }
        self.fields.extend_from_slice(fields);
        self.close |= close;
    }

    /// Replaces by a 500 what may not be sent as it is, which is the handler's fault. `known` is the content type that
    /// was found good the last time.
    pub(super) fn check(&mut self, known: &mut &'static str) {
        // The same constant need not be read again.
        let is_known = self.content_type.is_none_or(|value| std::ptr::eq(value, *known));
        if !self.status.is_informational() && is_known {
            return;
        }
        let content_type = self.content_type.unwrap_or_default();
        if self.status.is_informational() || !http1::is_field_value(content_type.as_bytes()) {
            log::error!("a handler's response was replaced by 500: status {} or its content type", self.status);
            *self = internal_error();
        } else {
            *known = content_type;
        }
    }
}

impl From<StatusCode> for Response {
    /// An error names itself in a line of text; other statuses have no body.
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
    fn from(outcome: Result<T, E>) -> Self {
        outcome.map_or_else(Into::into, Into::into)
    }
}

fn is_content_type(line: &[u8]) -> bool {
    fields::is_line_of(line, "content-type")
}

pub(super) fn internal_error() -> Response {
    Response::error(StatusCode::INTERNAL_SERVER_ERROR, "the server failed to answer\n").close()
}

/// What a closure answers; a panic is answered 500.
pub(super) fn guarded(make: impl FnOnce() -> Response) -> Response {
    catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| {
        log::error!("what makes an answer panicked: answered 500");
        internal_error()
    })
}
