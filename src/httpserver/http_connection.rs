//! An HTTP connection: its state and that of its current exchange (a request and its response), and the server as an
//! [`App`], which serves the pipelined requests of a connection in batches.
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
//! A response to a request in any of these states may start a [`Session`](super::Session), which ends with the
//! connection.
//!
//! The phase of the connection, which selects its timeout, follows from this state; see [`HttpConnection::phase`].

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use http::{Extensions, StatusCode};

use super::body_reader::BodyFeed;
use super::body_stream::{BATCH_BYTES, BodyWriter};
use super::buffer_limit::{Lease, Status};
use super::deferred::BodyWait;
use super::exchange_handle::Wakeup;
use super::handler::{BodySink, Handler};
use super::offer::Offer;
use super::response::{Body, PendingReply, Response};
use super::server::HttpServer;
use super::session::{ActiveSession, Session};
use crate::http1::{self, Error, Event, Framing, Head, Next, ReplyContext};
use crate::r#loop::{
    Accepted, App, CloseInfo, CloseReason, ConnId, FileTruncated, Flow, Phase, Remote, Wire, is_proxy_header,
};

/// Maximum number of requests served on one connection before other connections are served.
const REQUESTS_PER_TURN: usize = 64;

/// The first byte of a TLS connection: the type of a handshake record (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// The state of an HTTP connection.
pub struct HttpConnection {
    pub(super) http1: http1::Connection,
    pub(super) exchange: Option<Box<Exchange>>,
    /// No byte of a request has been consumed yet.
    pub(super) silent: bool,
    /// Number of requests so far; counted only by a server with options.
    pub(super) requests: u32,
}

/// An exchange that cannot be completed in one call to [`App::receive`](crate::App::receive). Dropping it early
/// notifies the threads that share state with it.
pub(super) enum Exchange {
    /// The request body is collected in memory, or discarded.
    Collecting(Collected),
    /// The request body is passed to a [`BodySink`] as it arrives.
    Streaming(ReplyContext, Streaming),
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
    /// The connection has left HTTP.
    Session(ActiveSession),
}

/// A request body that is passed to a sink.
pub(super) struct Streaming {
    pub(super) sink: Box<dyn BodySink>,
    /// The sink waits, and nothing is read.
    pub(super) wait: Option<BodyWait>,
    /// The memory of the chunk for which the sink waits; `None` until it waits for the first time.
    pub(super) lease: Option<Lease>,
    /// The protocols to which the response may upgrade the connection.
    pub(super) offer: Offer,
}

impl Streaming {
    pub(super) fn new(sink: Box<dyn BodySink>, offer: Offer) -> Self {
        Streaming { sink, wait: None, lease: None, offer }
    }

    /// Returns whether the body may be read, given the memory of all bodies.
    pub(super) fn status(&self) -> Status {
        self.lease.as_ref().map_or(Status::Running, Lease::status)
    }

    /// Ends the wait of the sink, which then holds nothing. Returns whether the body may be read.
    pub(super) fn end_wait(&mut self) -> Status {
        self.wait = None;
        self.lease.as_ref().map_or(Status::Running, |lease| lease.set(0, 0))
    }
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
            Exchange::Collecting(_) | Exchange::Streaming(..) | Exchange::Flushing(..) | Exchange::Session(_) => {}
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

/// Minimum number of bytes by which the buffer of a body grows.
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

/// The next step of a request with a body after [`Handler::head`](super::handler::Handler::head) was called.
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
    fn input_phase(&self) -> Phase {
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
    fn is_reading(&self) -> bool {
        match self.exchange.as_deref() {
            None => true,
            Some(Exchange::Streaming(_, body)) => body.wait.is_none() && body.status() == Status::Running,
            Some(Exchange::Collecting(request)) => request.status() == Status::Running,
            _ => false,
        }
    }

    /// Returns whether the current exchange, if any, consumes input.
    fn needs_input(&self) -> bool {
        use Exchange::{Flushing, Sending, Session, Suspended, Waiting};
        !matches!(self.exchange.as_deref(), Some(Waiting(..) | Suspended(_) | Sending(_) | Flushing(..) | Session(_)))
    }

    /// Returns the session of a connection that has left HTTP.
    fn session(&mut self) -> Option<&mut ActiveSession> {
        match self.exchange.as_deref_mut() {
            Some(Exchange::Session(active)) => Some(active),
            _ => None,
        }
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

/// Creates the response to a client error.
pub(super) fn error_response(error: Error) -> Response {
    Response::error(error.status(), format!("{error}\n")).close()
}

/// Creates the response to a malformed request.
fn rejection(error: Error, wire: &Wire<'_, Wakeup>) -> Response {
    if !is_proxy_header(wire.input()) {
        return error_response(error);
    }
    let client = wire.addrs();
    log::warn!(
        target: "serverd::httpserver::proxy_protocol",
        "{} sends a PROXY protocol header, which is not expected",
        client.client()
    );
    let message = "this server expects no PROXY protocol header from this address\n";
    Response::error(StatusCode::BAD_REQUEST, message).close()
}

impl<H: Handler> HttpServer<H> {
    /// Serves buffered requests, at least one, until [`REQUESTS_PER_TURN`] or [`BATCH_BYTES`] of output are reached.
    #[inline]
    fn serve_batch(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        let mut served = 0;
        loop {
            let mut step = if state.exchange.is_none() { Step::Parse } else { self.advance(state, wire) };
            if matches!(step, Step::Parse) && state.needs_input() {
                step = self.parse(state, wire);
            }
            match step {
                Step::Flow(flow) => return flow,
                Step::Parse => {}
                Step::Responded(next) => {
                    served += 1;
                    if let Some(flow) = flow_after(next) {
                        return flow;
                    }
                    state.silent = false;
                    if wire.input().is_empty() {
                        // The next byte begins a request, so the phase need not be computed.
                        return if wire.ended() { Flow::Close } else { Flow::Read(Phase::Idle) };
                    }
                    if served == REQUESTS_PER_TURN || wire.unsent() >= BATCH_BYTES {
                        return Flow::Yield(state.phase());
                    }
                }
            }
        }
    }

    /// Parses the buffered input, with a fast path for a complete, common request head.
    #[inline(never)]
    fn parse(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Step {
        let input = wire.input();
        if let Some((end, has_body)) = state.http1.parse_fast(&mut self.scratch, &self.limits, input) {
            return if has_body {
                self.on_head_with_body(state, wire, input, 0..end)
            } else {
                self.on_head(state, wire, input, 0..end)
            };
        }
        self.parse_general(state, wire, input)
    }

    /// Parses input that is not on the fast path: an uncommon or incomplete head, or part of a body.
    #[inline(never)]
    fn parse_general(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, input: &[u8]) -> Step {
        match state.http1.parse_general(&mut self.scratch, &self.limits, input) {
            Ok((used, Event::Head { len })) if self.needs_tls(wire, &input[used - len..used]) => {
                Step::Flow(self.reject(state, wire, Error::Scheme))
            }
            Ok((used, Event::Head { len })) if self.scratch.framing() == Framing::None => {
                self.on_head(state, wire, input, used - len..used)
            }
            Ok((used, Event::Head { len })) => self.on_head_with_body(state, wire, input, used - len..used),
            Ok((used, event)) => {
                wire.consume(used);
                self.on_event(state, wire, event)
            }
            Err(error) => Step::Flow(self.reject(state, wire, error)),
        }
    }

    /// Returns whether a request is for an https resource, but its connection does not use TLS.
    fn needs_tls(&self, wire: &Wire<'_, Wakeup>, head: &[u8]) -> bool {
        self.scratch.form() == http1::TargetForm::Absolute
            && http1::is_https(self.scratch.target(head))
            && !wire.addrs().is_secure()
    }

    fn on_event(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, event: Event<'_>) -> Step {
        match event {
            Event::Body(bytes) => self.on_body_chunk(state, wire, bytes),
            Event::End => self.on_body_end(state, wire),
            Event::NeedMore | Event::Head { .. } => Step::Flow(Self::await_input(state, wire)),
        }
    }

    /// Sends a response that describes a client error, followed by a lingering close so that the client can read it.
    fn reject(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, error: Error) -> Flow {
        let client = wire.addrs();
        log::debug!("rejected a request of {}: {error}", client.client());
        if wire.input().first() == Some(&TLS_HANDSHAKE) {
            let client = client.client();
            log::warn!(target: "serverd::httpserver::tls", "{client} uses TLS where plain HTTP is expected");
        }
        let context = ReplyContext::for_malformed(self.is_head_method(state));
        state.http1.fail(error);
        if let Some(Exchange::Reading(_, feed, _)) = state.exchange.take().as_deref() {
            feed.end(Err(io::ErrorKind::InvalidData));
        }
        let mut response = rejection(error, wire);
        if let Some(recorder) = &mut self.recorder {
            recorder.begin_malformed(wire, wire.input());
            response = recorder.add_id(wire, response);
        }
        if let Body::Bytes(body) = &response.body {
            self.send_whole(state, wire, context, &response, body);
            if let Some(recorder) = &mut self.recorder {
                recorder.refuse(response.status);
                let bytes = if context.is_head() { 0 } else { body.len() as u64 };
                recorder.end_at_once(wire, response.status, bytes);
            }
        }
        Flow::Refuse
    }

    /// Returns whether the rejected request is a HEAD request, whose error response must not have content (RFC 9110
    /// section 9.3.2).
    fn is_head_method(&self, state: &HttpConnection) -> bool {
        match state.exchange.as_deref() {
            Some(Exchange::Collecting(collected)) => collected.head.is_head_method(),
            Some(Exchange::Streaming(reply, _) | Exchange::Reading(reply, ..) | Exchange::Waiting(reply, _)) => {
                reply.is_head()
            }
            Some(Exchange::Suspended(suspended)) => suspended.request.head.is_head_method(),
            Some(Exchange::Sending(_) | Exchange::Flushing(..) | Exchange::Session(_)) => false,
            None => state.http1.is_head_method(&self.scratch),
        }
    }

    /// Waits for more input, with the timeout for what is expected next.
    #[inline]
    fn await_input(state: &mut HttpConnection, wire: &Wire<'_, Wakeup>) -> Flow {
        if wire.ended() {
            return Flow::Close;
        }
        state.silent &= wire.consumed() == 0;
        Flow::Read(state.input_phase())
    }

    /// Continues after a wake-up, after output has drained, or at the start of a graceful shutdown. Buffered input is
    /// not available in these calls.
    fn continue_exchange(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        // A request was received, even if its response completes here and not in `serve_batch`.
        state.silent &= state.exchange.is_none();
        match self.advance(state, wire) {
            Step::Flow(flow) => flow,
            Step::Responded(next) => flow_after(next).unwrap_or(Flow::Yield(state.phase())),
            Step::Parse => Flow::Yield(state.phase()),
        }
    }
}

impl<H> HttpServer<H> {
    /// Starts the session of an outgoing connection.
    #[cold]
    fn open_session(&mut self, session: Box<dyn Session>, wire: &Wire<'_, Wakeup>) -> (HttpConnection, Flow) {
        let mut connection = HttpConnection::new();
        let active = ActiveSession::open(session, self.exchange_id(wire));
        connection.exchange = Some(Box::new(Exchange::Session(active)));
        (connection, Flow::Read(Phase::Unlimited))
    }
}

impl<H: Handler> App for HttpServer<H> {
    type State = HttpConnection;
    type Message = Wakeup;

    fn start(&mut self, remote: Remote<Wakeup>) {
        self.remote = Some(remote);
        self.complete();
    }

    #[allow(clippy::inline_always, reason = "hot path of a connection")]
    #[inline(always)]
    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, Wakeup>) -> (HttpConnection, Flow) {
        if accepted.listener.is_none()
            && let Some(session) = accepted.take_context()
        {
            return self.open_session(session, wire);
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.open(wire.id(), accepted.peer);
        }
        (HttpConnection::new(), Flow::Read(Phase::AwaitingFirstByte))
    }

    /// Catches panics once for the whole batch. Responses completed before the panic are already in the output.
    #[inline]
    fn receive(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        catch_unwind(AssertUnwindSafe(|| self.serve_batch(state, wire)))
            .unwrap_or_else(|panic| self.recover(state, wire, panic))
    }

    /// The state lives in the exchange, so a stale wake-up is a no-op.
    fn message(&mut self, state: &mut HttpConnection, _wakeup: Wakeup, wire: &mut Wire<'_, Wakeup>) -> Flow {
        match state.session() {
            Some(active) => active.message(wire),
            None => self.continue_exchange(state, wire),
        }
    }

    fn output_drained(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        if let Some(active) = state.session() {
            return active.session().output_drained(wire);
        }
        if state.is_reading() { Flow::Read(state.phase()) } else { self.continue_exchange(state, wire) }
    }

    fn timer(&mut self, state: &mut HttpConnection, phase: Phase, wire: &mut Wire<'_, Wakeup>) -> Flow {
        if let Some(active) = state.session() {
            return active.session().timer(phase, wire);
        }
        match phase {
            Phase::Head => self.reject(state, wire, Error::HeadTimeout),
            Phase::Body => self.reject(state, wire, Error::BodyTimeout),
            _ => Flow::Close,
        }
    }

    fn drain(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        if let Some(active) = state.session() {
            return active.session().drain(wire);
        }
        if let Some(exchange) = &state.exchange {
            exchange.drain();
        }
        if state.is_reading() { Flow::Read(state.phase()) } else { self.continue_exchange(state, wire) }
    }

    /// Drops the current exchange, which notifies the threads that share state with it.
    #[allow(clippy::inline_always, reason = "hot path of a connection")]
    #[inline(always)]
    fn closed(&mut self, id: ConnId, state: HttpConnection, info: CloseInfo) {
        if let CloseReason::Error(error) = &info.reason {
            report_truncation(error);
        }
        if let Some(recorder) = &mut self.recorder {
            let bytes = match state.exchange.as_deref() {
                Some(Exchange::Sending(writer)) => writer.content_bytes,
                Some(Exchange::Flushing(_, bytes)) => *bytes,
                _ => 0,
            };
            recorder.closed(id, bytes, &info);
        }
        // Also drops an exchange, which would be checked for here anyway.
        if let Some(exchange) = state.exchange {
            end_exchange(exchange, info);
        }
    }

    #[inline]
    fn end_of_turn(&mut self, _: &mut Vec<(ConnId, Wakeup)>) {
        if let Some(recorder) = &mut self.recorder {
            recorder.end_turn();
        }
    }
}

/// Ends the exchange of a connection that was closed.
#[allow(clippy::boxed_local, reason = "moved out of the box only if it is a session")]
#[cold]
fn end_exchange(exchange: Box<Exchange>, info: CloseInfo) {
    if let Exchange::Session(active) = *exchange {
        active.closed(info);
    }
}

/// Logs that a response could not be completed because its file was truncated: the client sees only a closed
/// connection.
#[cold]
fn report_truncation(error: &io::Error) {
    let Some(cause) = error.get_ref() else { return };
    if cause.is::<FileTruncated>() {
        log::warn!("{error}; closed the connection, as the rest of the response is missing");
    }
}
