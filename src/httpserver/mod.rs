//! HTTP around a callback: reads requests off the wire, calls the handler, writes status line, fields and body.
//!
//! [`HttpServer`] is an [`App`](crate::App): it runs on any loop. One connection is one [`Conversation`], which owns
//! memory only while an exchange is under way that needs more than one call: a body that is collected, taken as it
//! comes or read elsewhere; an answer that is given later; an answer whose body is made while it is sent. Requests
//! pipelined behind such an exchange wait, unread, so answers keep their order.

mod access_log;
#[cfg(feature = "http-types")]
mod adapter;
mod conversation;
mod events;
mod fields;

mod handler;
mod later;
pub mod layers;
mod link;
mod negotiation;
mod normal_path;
mod offload;
mod outgoing;
mod parts;
mod reader;
mod relay;
mod request;
mod response;
mod router;
mod sender;

use std::ops::Range;

use http::StatusCode;

use crate::http1::{Encoder, Form, Head, Length, Limits, Persistence, ResponseHead, Version};
use crate::r#loop::{Remote, Wire};

use self::access_log::Journal;
use self::response::Body;

/// Handlers over the types of the crate `http`.
#[cfg(feature = "http-types")]
pub mod http_types {
    pub use super::adapter::handler;
}
pub use access_log::{AccessLog, LogFormat};
pub use conversation::Conversation;
pub use events::{EventSender, ServerEvent};
pub use fields::{FieldBlock, FieldError, Trailers};
pub use handler::{Handler, Intake, Take, Upload};
pub use later::Responder;
pub use link::Nudge;
pub use negotiation::{AcceptedCodings, ContentCoding};
#[cfg(feature = "files")]
pub(crate) use normal_path::push_octet;
pub use offload::{Pool, PoolFull};
pub use parts::Part;
pub use reader::BodyReader;
pub use request::{BodyError, ParameterError, Request, RequestHead};
pub use response::Response;
pub use router::Router;
pub use sender::{SendError, Sender};

/// Requests answered on a connection before the others have their turn.
const REQUESTS_PER_TURN: usize = 64;

/// Output at which a batch of answers is sent before more are made.
const BATCH_BYTES: usize = 64 * 1024;

/// An HTTP server as an application for a loop.
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
    /// A content type that may be sent.
    content_type: &'static str,
    /// The head being read, of whichever connection.
    scratch: Head,
    /// Where the request stands in the input that the handler is being called for; after a panic, who has to hear of it.
    called: Range<usize>,
    /// Where other threads reach the connections of this loop.
    remote: Option<Remote<Nudge>>,
    /// What is known of the requests under way, where they are written down.
    journal: Option<Box<Journal>>,
}

/// What an answered request means for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The next request.
    Request,
    /// The end, once the answer is sent: the peer said that it sends no more.
    Close,
    /// The end by the server's will: the peer may still be sending.
    Linger,
    /// The end, and a body that nobody reads may follow.
    Refuse,
}

/// What an answer has to know of its request.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each tells of one thing, and none depends on another")]
struct Asked {
    version: Version,
    persistent: bool,
    head: bool,
    connect: bool,
    /// The client takes trailers (RFC 9110 section 10.1.4).
    trailers: bool,
    /// The body of the request is not read.
    unread: bool,
}

impl Asked {
    #[inline]
    fn by(head: &RequestHead<'_>) -> Self {
        Asked {
            version: head.version(),
            persistent: head.head.is_persistent(),
            head: head.head.is_for_head(),
            // Nothing else has that form.
            connect: head.head.form() == Form::Authority,
            trailers: false,
            unread: false,
        }
    }

    /// What this answer to it has to know.
    #[inline]
    fn about(head: &RequestHead<'_>, response: &Response) -> Self {
        let asked = Asked::by(head);
        if matches!(response.body, Body::Bytes(_) | Body::File(..) | Body::Parts(_)) {
            asked
        } else {
            asked.with_trailers(head)
        }
    }

    /// As well, whether the client takes trailers; told apart because few answers need to know.
    fn with_trailers(self, head: &RequestHead<'_>) -> Self {
        let is_te = |name: &[u8]| name.eq_ignore_ascii_case(b"te");
        let takes = |value: &[u8]| {
            value.split(|&byte| byte == b',').any(|member| member.trim_ascii().eq_ignore_ascii_case(b"trailers"))
        };
        let trailers = head.fields().any(|(name, value)| is_te(name) && takes(value));
        Asked { trailers, ..self }
    }

    /// A request that could not be read, but perhaps so far that it is for HEAD.
    fn unreadable(head: bool) -> Self {
        let version = Version::Http11;
        Asked { version, persistent: false, head, connect: false, trailers: false, unread: true }
    }

    fn unread(self) -> Self {
        Asked { unread: true, ..self }
    }

    /// Whether the connection goes on after an answer, and what it is told.
    #[inline]
    fn outlook(self, close: bool) -> (Persistence, Next) {
        let persistent = self.persistent && !close && !self.connect && !self.unread;
        let persistence = match (persistent, self.version) {
            (false, _) => Persistence::Close,
            (true, Version::Http10) => Persistence::KeepAlive,
            (true, Version::Http11) => Persistence::Silent,
        };
        let next = match (persistent, self.unread) {
            (true, _) => Next::Request,
            (false, true) => Next::Refuse,
            (false, false) if self.persistent => Next::Linger,
            (false, false) => Next::Close,
        };
        (persistence, next)
    }
}

impl<F> HttpServer<F> {
    /// A server that answers every request with what the closure returns: a [`Response`], or what becomes one.
    pub fn new<R>(handler: F) -> Self
    where
        F: FnMut(&Request<'_>) -> R,
        R: Into<Response>,
    {
        Self::with(handler)
    }
}

impl<H: Handler> HttpServer<H> {
    /// A server that answers by a handler.
    pub fn with(handler: H) -> Self {
        let (limits, encoder, scratch) = (Limits::default(), Encoder::new(), Head::default());
        HttpServer { handler, limits, encoder, content_type: "", scratch, called: 0..0, remote: None, journal: None }
    }
}

impl<H> HttpServer<H> {
    /// Replaces the limits.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        HttpServer { limits, ..self }
    }

    /// Writes down each request, in the given log if there is one.
    #[must_use]
    pub fn access_log<'a>(self, log: impl Into<Option<&'a AccessLog>>) -> Self {
        HttpServer { journal: log.into().map(|log| Box::new(Journal::new(log.clone()))), ..self }
    }
}

/// Writes a response whose body is in memory.
fn write_whole(
    encoder: &mut Encoder,
    wire: &mut Wire<'_, Nudge>,
    asked: Asked,
    response: &Response,
    body: &bytes::Bytes,
) -> Next {
    let (next, with_body) = write_known(encoder, wire, asked, response, body.len() as u64);
    if with_body {
        wire.output().push(body);
    }
    next
}

/// Writes the head of a response whose body has this length, and says whether the body is to follow.
fn write_known(
    encoder: &mut Encoder,
    wire: &mut Wire<'_, Nudge>,
    asked: Asked,
    response: &Response,
    len: u64,
) -> (Next, bool) {
    let (persistence, next) = asked.outlook(response.close || wire.draining());
    // RFC 9110 section 9.3.6: a tunnel has no length.
    let tunnel = asked.connect && response.status.is_success();
    let length = if tunnel { Length::Untold } else { Length::Known(len) };
    (next, write_head(encoder, wire, response, length, persistence) && !asked.head && !tunnel)
}

/// Writes the head of a response, and says whether a body may follow.
fn write_head(
    encoder: &mut Encoder,
    wire: &mut Wire<'_, Nudge>,
    response: &Response,
    length: Length,
    persistence: Persistence,
) -> bool {
    let (length, content_type, content) = match response.status {
        // RFC 9110 section 15.4.5: 304 tells no metadata but what guides the update of a cache.
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => (Length::Untold, None, false),
        // RFC 9110 section 15.3.6: 205 has no content, and says so, unless nothing may be said (section 9.3.6).
        StatusCode::RESET_CONTENT if length == Length::Untold => (length, None, false),
        StatusCode::RESET_CONTENT => (Length::Known(0), None, false),
        _ => (length, response.content_type, true),
    };
    let now = wire.wall();
    let shared = response.shared.as_deref().map_or(&b""[..], FieldBlock::lines);
    let status = response.status;
    let head = ResponseHead { status, content_type, fields: &response.fields, shared, length, persistence };
    encoder.head(wire.output().buffer(), now, &head);
    content
}
