//! The HTTP server: parses requests, calls a handler, and writes the status line, headers and body of its response.
//!
//! [`HttpServer`] is an [`App`](crate::App) and runs on any loop. Each connection has an [`HttpConnection`], which
//! allocates memory only if an exchange (a request and its response) cannot be completed in one call to
//! [`App::receive`](crate::App::receive): for a request body that is collected, streamed, or read on another thread; a
//! deferred response; a streamed response body. Requests pipelined behind such an exchange stay unparsed until it ends,
//! so responses are sent in request order.

mod access_log;
mod body;
mod body_reader;
mod body_sender;
mod body_stream;
mod deferred;
mod events;
mod exchange_handle;
mod handler;
mod headers;
mod http_connection;
#[cfg(feature = "http-types")]
pub mod http_types;
pub mod layers;
mod negotiation;
mod normal_path;
mod pool;
mod pool_stream;
mod request;
mod response;
mod router;

use std::ops::Range;

use http::StatusCode;

use crate::http1::{Encoder, Head, Length, Limits, Persistence, ResponseHead, TargetForm, Version};
use crate::r#loop::{Remote, Wire};

use self::access_log::Recorder;
use self::response::Body;

pub use access_log::{AccessLog, LogFormat};
pub use body::Part;
pub use body_reader::BodyReader;
pub use body_sender::{SendError, Sender};
pub use deferred::Responder;
pub use events::{EventSender, ServerEvent};
pub use exchange_handle::Wakeup;
pub use handler::{BodyFlow, BodyMode, BodySink, Handler};
pub use headers::{HeaderBlock, HeaderError, Trailers};
pub use http_connection::HttpConnection;
pub use negotiation::{AcceptedCodings, ContentCoding};
#[cfg(feature = "files")]
pub(crate) use normal_path::push_byte;
pub use pool::{Pool, PoolFull};
pub use request::{BodyError, ParamError, Request, RequestHead};
pub use response::Response;
pub use router::Router;

/// Maximum number of requests served on one connection before other connections are served.
const REQUESTS_PER_TURN: usize = 64;

/// Amount of unsent output, in bytes, at which a batch of responses is flushed before more requests are served.
const BATCH_BYTES: usize = 64 * 1024;

/// An HTTP/1.1 server: an [`App`](crate::App) that calls a [`Handler`] for each request.
///
/// # Examples
/// ```no_run
/// use serverd::{HttpServer, Poller, SelectLoop};
/// use std::net::TcpListener;
///
/// let listener = TcpListener::bind("127.0.0.1:8888")?;
/// SelectLoop::new(listener, None, HttpServer::new(|_| "hello\n"))?.run()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct HttpServer<H> {
    handler: H,
    limits: Limits,
    encoder: Encoder,
    /// The last Content-Type that was found to be a valid header value; caches the check.
    content_type: &'static str,
    /// The request head being parsed, shared by all connections.
    scratch: Head,
    /// Position, in the input, of the request for which the handler is being called; empty outside of such a call.
    /// After a panic it identifies the request to answer with 500.
    current_request: Range<usize>,
    /// Wakes connections of this loop from other threads.
    remote: Option<Remote<Wakeup>>,
    /// Access log records of in-flight requests; `None` without an access log.
    recorder: Option<Box<Recorder>>,
}

/// The action to take on the connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Keep the connection open and serve the next request.
    Request,
    /// Close once the response is sent: the client requested it and sends nothing more.
    Close,
    /// Lingering close: the server ends the connection, and the client may still be sending.
    Linger,
    /// Lingering close with an unread request body, which is discarded.
    Refuse,
}

/// Properties of a request that determine how its response is written.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent properties of a request")]
struct ReplyContext {
    version: Version,
    persistent: bool,
    is_head: bool,
    is_connect: bool,
    /// The client accepts trailers (RFC 9110 section 10.1.4).
    accepts_trailers: bool,
    /// The request body will not be read to its end.
    body_unread: bool,
}

impl ReplyContext {
    #[inline]
    fn new(head: &RequestHead<'_>) -> Self {
        ReplyContext {
            version: head.version(),
            persistent: head.head.is_persistent(),
            is_head: head.head.is_head_method(),
            // Only CONNECT has a target in authority form.
            is_connect: head.head.form() == TargetForm::Authority,
            accepts_trailers: false,
            body_unread: false,
        }
    }

    /// Creates the context of `response`; looks for `TE: trailers` only if the body may have trailers.
    #[inline]
    fn for_response(head: &RequestHead<'_>, response: &Response) -> Self {
        let reply = ReplyContext::new(head);
        if matches!(response.body, Body::Bytes(_) | Body::File(..) | Body::Parts(_)) {
            reply
        } else {
            reply.with_trailers(head)
        }
    }

    /// Looks for `TE: trailers`. Separate from [`ReplyContext::new`] because few responses need it.
    fn with_trailers(self, head: &RequestHead<'_>) -> Self {
        let is_te = |name: &[u8]| name.eq_ignore_ascii_case(b"te");
        let lists_trailers = |value: &[u8]| {
            value.split(|&byte| byte == b',').any(|member| member.trim_ascii().eq_ignore_ascii_case(b"trailers"))
        };
        let accepts_trailers = head.headers().any(|(name, value)| is_te(name) && lists_trailers(value));
        ReplyContext { accepts_trailers, ..self }
    }

    /// Creates the context of an error response to a malformed request. `is_head` is set if the request is known to be
    /// a HEAD request.
    fn for_malformed(is_head: bool) -> Self {
        let version = Version::Http11;
        ReplyContext {
            version,
            persistent: false,
            is_head,
            is_connect: false,
            accepts_trailers: false,
            body_unread: true,
        }
    }

    fn with_unread_body(self) -> Self {
        ReplyContext { body_unread: true, ..self }
    }

    /// Decides whether the connection persists after the response, and how the Connection header announces that.
    #[inline]
    fn decide_persistence(self, close: bool) -> (Persistence, Next) {
        let persistent = self.persistent && !close && !self.is_connect && !self.body_unread;
        let persistence = match (persistent, self.version) {
            (false, _) => Persistence::Close,
            (true, Version::Http10) => Persistence::KeepAlive,
            (true, Version::Http11) => Persistence::Implicit,
        };
        let next = match (persistent, self.body_unread) {
            (true, _) => Next::Request,
            (false, true) => Next::Refuse,
            (false, false) if self.persistent => Next::Linger,
            (false, false) => Next::Close,
        };
        (persistence, next)
    }
}

impl<F> HttpServer<F> {
    /// Creates a server from a closure that returns a [`Response`] or a type that converts into one.
    pub fn new<R>(handler: F) -> Self
    where
        F: FnMut(&Request<'_>) -> R,
        R: Into<Response>,
    {
        Self::with(handler)
    }
}

impl<H: Handler> HttpServer<H> {
    /// Creates a server from a [`Handler`], such as a [`Router`].
    pub fn with(handler: H) -> Self {
        let (limits, encoder, scratch) = (Limits::default(), Encoder::new(), Head::default());
        HttpServer {
            handler,
            limits,
            encoder,
            content_type: "",
            scratch,
            current_request: 0..0,
            remote: None,
            recorder: None,
        }
    }
}

impl<H> HttpServer<H> {
    /// Sets the limits on request sizes.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        HttpServer { limits, ..self }
    }

    /// Logs each request to `log`; `None` turns the access log off.
    #[must_use]
    pub fn access_log<'a>(self, log: impl Into<Option<&'a AccessLog>>) -> Self {
        HttpServer { recorder: log.into().map(|log| Box::new(Recorder::new(log.clone()))), ..self }
    }
}

/// Writes a response whose body is in memory.
fn write_whole(
    encoder: &mut Encoder,
    wire: &mut Wire<'_, Wakeup>,
    reply: ReplyContext,
    response: &Response,
    body: &bytes::Bytes,
) -> Next {
    let (next, with_body) = write_head_with_length(encoder, wire, reply, response, body.len() as u64);
    if with_body {
        wire.output().push(body);
    }
    next
}

/// Writes the head of a response with a body of `len` bytes. Returns whether the body must follow.
fn write_head_with_length(
    encoder: &mut Encoder,
    wire: &mut Wire<'_, Wakeup>,
    reply: ReplyContext,
    response: &Response,
    len: u64,
) -> (Next, bool) {
    let (persistence, next) = reply.decide_persistence(response.close || wire.draining());
    // RFC 9110 section 9.3.6: a successful response to CONNECT has no Content-Length or Transfer-Encoding.
    let tunnel = reply.is_connect && response.status.is_success();
    let length = if tunnel { Length::Unspecified } else { Length::Known(len) };
    (next, write_head(encoder, wire, response, length, persistence) && !reply.is_head && !tunnel)
}

/// Writes the head of a response. Returns whether its status allows a body.
fn write_head(
    encoder: &mut Encoder,
    wire: &mut Wire<'_, Wakeup>,
    response: &Response,
    length: Length,
    persistence: Persistence,
) -> bool {
    let (length, content_type, content) = match response.status {
        // RFC 9110 section 15.4.5: a 304 carries no representation metadata except what guides cache updates.
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => (Length::Unspecified, None, false),
        // RFC 9110 section 15.3.6: a 205 has Content-Length: 0, except where no length is allowed (section 9.3.6).
        StatusCode::RESET_CONTENT if length == Length::Unspecified => (length, None, false),
        StatusCode::RESET_CONTENT => (Length::Known(0), None, false),
        _ => (length, response.content_type, true),
    };
    let now = wire.unix_time();
    let shared_headers = response.shared_headers.as_deref().map_or(&b""[..], HeaderBlock::lines);
    let status = response.status;
    let head = ResponseHead { status, content_type, headers: &response.headers, shared_headers, length, persistence };
    encoder.head(wire.output().buffer(), now, &head);
    content
}
