//! The state of an HTTP connection and of its current exchange: a request and its response.
//!
//! ```text
//!                                            +--> complete response -------> idle
//!   idle -- head without body --> handler ---+--> deferred: Waiting -------> idle
//!    |                             ^  ^      +--> streamed: Sending -------> idle
//!    | head with body              |  |      +--> suspended: Suspended --+
//!    v                             |  +----------------------------------+
//!   Collecting, Streaming, Reading +
//! ```
//!
//! The phase of the connection, which selects its timeout, follows from this state; see [`HttpConnection::phase`].

use http::Extensions;

use super::body_reader::BodyFeed;
use super::body_stream::BodyWriter;
use super::buffer_limit::{Lease, Status};
use super::handler::BodySink;
use super::response::{PendingReply, Response};
use crate::http1::{self, Framing, Head, Next, ReplyContext};
use crate::r#loop::{Flow, Phase};

/// The state of an HTTP connection.
pub struct HttpConnection {
    pub(super) http1: http1::Connection,
    pub(super) exchange: Option<Box<Exchange>>,
    /// No byte of a request has been consumed yet.
    pub(super) silent: bool,
    /// Number of requests so far; counted only by a server with options.
    pub(super) requests: u32,
}

/// An exchange that cannot be completed in one call to [`App::receive`](crate::App::receive). Dropping it early notifies the threads that
/// share state with it.
pub(super) enum Exchange {
    /// The request body is collected in memory, or discarded.
    Collecting(Collected),
    /// The request body is passed to a [`BodySink`] as it arrives.
    Streaming(ReplyContext, Box<dyn BodySink>),
    /// The request body is read on another thread, which may respond before the body ends.
    Reading(ReplyContext, BodyFeed, Box<PendingReply>),
    /// A deferred response is pending.
    Waiting(ReplyContext, Box<Waiting>),
    /// The request is suspended; the handler will be called again.
    Suspended(Box<Suspended>),
    /// The response body is streamed.
    Sending(BodyWriter),
    /// The response is in the output but not completely sent. Used only with an access log, which records whether and
    /// when the response was sent. Holds the number of content bytes.
    Flushing(Next, u64),
}

/// A pending deferred response, and the headers that were added to its placeholder.
pub(super) struct Waiting {
    pub(super) pending: PendingReply,
    pub(super) headers: Vec<u8>,
    pub(super) close: bool,
}

impl Exchange {
    pub(super) fn drain(&self) {
        match self {
            Exchange::Collecting(_) | Exchange::Streaming(..) | Exchange::Flushing(..) => {}
            Exchange::Reading(_, _, pending) => pending.deferred.handle.drain(),
            Exchange::Waiting(_, waiting) => waiting.pending.deferred.handle.drain(),
            Exchange::Suspended(suspended) => suspended.waiting.pending.deferred.handle.drain(),
            Exchange::Sending(writer) => writer.drain(),
        }
    }
}

/// Maximum number of bytes reserved for a request body because of its Content-Length. Beyond that the buffer grows as
/// the body arrives, so a client cannot cause a large allocation by merely declaring a length.
const BODY_RESERVE_MAX: u64 = 16 * 1024;

/// Number of bytes by which the buffer of a body grows at least.
const BODY_STEP_MIN: usize = 64 * 1024;

/// A request held in memory, with the part of its body that has been collected so far, or without its body.
pub(super) struct Collected {
    pub(super) head_bytes: Vec<u8>,
    pub(super) head: Box<Head>,
    pub(super) extensions: Option<Box<Extensions>>,
    pub(super) body: Vec<u8>,
    /// The body is discarded.
    pub(super) discards: bool,
    /// The memory of the body; `None` until the first chunk has arrived.
    pub(super) lease: Option<Lease>,
}

impl Collected {
    pub(super) fn new(
        head_bytes: Vec<u8>,
        head: Box<Head>,
        extensions: Option<Box<Extensions>>,
        discards: bool,
    ) -> Self {
        let reserve = match head.framing() {
            Framing::Length(length) if !discards => length.min(BODY_RESERVE_MAX),
            _ => 0,
        };
        let body = Vec::with_capacity(usize::try_from(reserve).unwrap_or(0));
        Collected { head_bytes, head, extensions, body, discards, lease: None }
    }

    /// Adds a chunk of the body.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.discards {
            return;
        }
        let (len, capacity) = (self.body.len(), self.body.capacity());
        if len + bytes.len() > capacity {
            // Grows in smaller steps than a vector does by itself, and not beyond the announced length.
            let length = if let Framing::Length(length) = self.head.framing() { length } else { u64::MAX };
            let step = (capacity / 4).max(BODY_STEP_MIN).min(usize::try_from(length).unwrap_or(usize::MAX) - len);
            self.body.reserve_exact(bytes.len().max(step));
        }
        self.body.extend_from_slice(bytes);
    }

    /// Returns whether the body may be read, with regard to the memory of all bodies.
    pub(super) fn status(&self) -> Status {
        self.lease.as_ref().map_or(Status::Running, Lease::status)
    }
}

/// A request for which the handler will be called again.
pub(super) struct Suspended {
    pub(super) request: Collected,
    /// Suspended by [`Handler::head`], before the body was received.
    pub(super) at_head: bool,
    pub(super) waiting: Waiting,
}

/// How a request with a body continues after [`Handler::head`](super::handler::Handler::head) was called.
pub(super) enum BodyStart {
    /// The response can be sent now.
    Respond(ReplyContext, Response),
    /// This exchange receives the body.
    Receive(Exchange),
    /// The body is collected in memory.
    Collect,
    /// The body is discarded.
    Discard,
}

/// Outcome of one step of serving a connection.
pub(super) enum Step {
    /// The response has been written to the output.
    Responded(Next),
    /// Continue with the buffered input.
    Parse,
    /// Return to the loop: the exchange waits for something, or the connection ends.
    Flow(Flow),
}

impl HttpConnection {
    pub(super) fn new() -> Self {
        HttpConnection { http1: http1::Connection::new(), exchange: None, silent: true, requests: 0 }
    }

    /// Returns the phase of the connection. While a response is pending or being sent no timeout of a request applies;
    /// blocked output has its own.
    pub(super) fn phase(&self) -> Phase {
        if self.needs_input() { self.input_phase() } else { Phase::Handling }
    }

    /// Returns the phase of a connection whose exchange, if any, needs input: it depends on what is expected next.
    #[inline]
    pub(super) fn input_phase(&self) -> Phase {
        if self.http1.is_within_body() {
            Phase::Body
        } else if self.http1.is_within_head() {
            Phase::Head
        } else if self.silent {
            Phase::AwaitingFirstByte
        } else {
            Phase::Idle
        }
    }

    /// Returns whether the connection is waiting for input only.
    pub(super) fn is_reading(&self) -> bool {
        match self.exchange.as_deref() {
            None | Some(Exchange::Streaming(..)) => true,
            Some(Exchange::Collecting(request)) => request.status() == Status::Running,
            _ => false,
        }
    }

    /// Returns whether the current exchange, if any, consumes input.
    pub(super) fn needs_input(&self) -> bool {
        use Exchange::{Flushing, Sending, Suspended, Waiting};
        !matches!(self.exchange.as_deref(), Some(Waiting(..) | Suspended(_) | Sending(_) | Flushing(..)))
    }
}

/// Returns how the connection ends after a response; `None` if the next request follows.
#[inline]
pub(super) fn flow_after(next: Next) -> Option<Flow> {
    match next {
        Next::Request => None,
        Next::Close => Some(Flow::Close),
        Next::Linger => Some(Flow::Linger),
        Next::Refuse => Some(Flow::Refuse),
    }
}
