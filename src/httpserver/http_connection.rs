//! An HTTP connection, which serves its requests one at a time. Implements [`App`] for [`HttpServer`].
//!
//! ```text
//!                                            +--> complete response -------> idle
//!   idle -- head without body --> handler ---+--> deferred: Waiting -------> idle
//!    |                             ^  ^      +--> streamed: Sending -------> idle
//!    | head with body              |  |      +--> suspended: Suspended --+
//!    v                             |  +----------------------------------+
//!   Collecting, Streaming, Reading +
//! ```

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::body_reader::BodyFeed;
use super::body_stream::{BodyWriter, Progress};
use super::deferred::Outcome;
use super::exchange_handle::Wakeup;
use super::response::PendingReply;
use super::{
    BATCH_BYTES, Body, BodySink, Handler, HttpServer, Next, REQUESTS_PER_TURN, ReplyContext, Response, write_whole,
};
use crate::http1::{self, Error, Event, Framing};
use crate::r#loop::{Accepted, App, CloseInfo, ConnId, Flow, Phase, Remote, Wire};

mod body;
mod head;
mod respond;
mod suspended;

use self::body::Collected;
use self::suspended::Suspended;

/// The state of an HTTP connection.
pub struct HttpConnection {
    http1: http1::Connection,
    exchange: Option<Box<Exchange>>,
    phase: Phase,
}

/// An exchange that cannot be completed in one call to [`App::receive`]. Dropping it early notifies the threads that
/// share state with it.
enum Exchange {
    /// The request body is collected in memory.
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
struct Waiting {
    pending: PendingReply,
    headers: Vec<u8>,
    close: bool,
}

impl Exchange {
    fn drain(&self) {
        match self {
            Exchange::Collecting(_) | Exchange::Streaming(..) | Exchange::Flushing(..) => {}
            Exchange::Reading(_, _, pending) => pending.deferred.handle.drain(),
            Exchange::Waiting(_, waiting) => waiting.pending.deferred.handle.drain(),
            Exchange::Suspended(suspended) => suspended.waiting.pending.deferred.handle.drain(),
            Exchange::Sending(writer) => writer.drain(),
        }
    }
}

/// Outcome of one step of serving a connection.
enum Step {
    /// The response has been written to the output.
    Responded(Next),
    /// Continue with the buffered input.
    Parse,
    /// Return to the loop: the exchange waits for something, or the connection ends.
    Flow(Flow),
}

fn error_response(error: Error) -> Response {
    Response::error(error.status(), format!("{error}\n")).close()
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
                    if let Some(flow) = state.flow_after(next) {
                        return flow;
                    }
                    if wire.input().is_empty() {
                        return Self::await_input(state, wire);
                    }
                    if served == REQUESTS_PER_TURN || wire.unsent() >= BATCH_BYTES {
                        return Flow::Yield(state.phase);
                    }
                }
            }
        }
    }

    /// Advances an exchange that needs no input: checks for its response, or sends more of it.
    fn advance(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Step {
        match state.exchange.as_deref_mut() {
            Some(Exchange::Waiting(reply, waiting)) => {
                let reply = *reply;
                // Only suspended requests yield `Outcome::Retry`.
                let Some(Outcome::Response(mut response)) = waiting.pending.take() else {
                    return Step::Flow(Flow::Pause);
                };
                response.merge(&waiting.headers, waiting.close);
                waiting.pending.deferred.handle.release();
                state.exchange = None;
                self.respond(state, wire, reply, response)
            }
            Some(Exchange::Suspended(suspended)) => {
                let Some(outcome) = suspended.waiting.pending.take() else {
                    return Step::Flow(Flow::Pause);
                };
                match state.exchange.take().map(|exchange| *exchange) {
                    Some(Exchange::Suspended(suspended)) => self.resume(state, wire, *suspended, outcome),
                    _ => Step::Parse,
                }
            }
            Some(Exchange::Reading(reply, feed, pending)) => {
                let Some(Outcome::Response(response)) = pending.take() else {
                    return if feed.is_paused() { Step::Flow(Flow::Pause) } else { Step::Parse };
                };
                // The response came before the end of the body, so the rest of the body stays unread.
                let reply = reply.with_unread_body();
                pending.deferred.handle.release();
                state.exchange = None;
                self.respond(state, wire, reply, response)
            }
            Some(Exchange::Sending(writer)) => match writer.pump(wire.output()) {
                Progress::More => Step::Flow(Flow::Yield(state.phase)),
                Progress::Wait => Step::Flow(Flow::Pause),
                Progress::Done => {
                    let (next, bytes) = (writer.next, writer.content_bytes);
                    state.exchange = None;
                    wire.restart_timer();
                    self.log_end(wire, bytes);
                    Step::Responded(next)
                }
                Progress::Broken => Step::Flow(writer.failure_flow()),
            },
            Some(Exchange::Flushing(..)) if !wire.output().is_empty() => Step::Flow(Flow::Yield(state.phase)),
            Some(Exchange::Flushing(next, bytes)) => {
                let (next, bytes) = (*next, *bytes);
                state.exchange = None;
                wire.restart_timer();
                self.log_end(wire, bytes);
                Step::Responded(next)
            }
            _ => Step::Parse,
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

    fn on_event(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, event: Event<'_>) -> Step {
        match event {
            Event::Body(bytes) => self.on_body_chunk(state, wire, bytes),
            Event::End => self.on_body_end(state, wire),
            Event::NeedMore | Event::Head { .. } => Step::Flow(Self::await_input(state, wire)),
        }
    }

    /// Sends a response that describes a client error, followed by a lingering close so that the client can read it.
    fn reject(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, error: Error) -> Flow {
        log::debug!("request rejected: {error}");
        let reply = ReplyContext::for_malformed(self.is_head_method(state));
        if let Some(Exchange::Reading(_, feed, _)) = state.exchange.take().as_deref() {
            feed.end(Err(io::ErrorKind::InvalidData));
        }
        let response = error_response(error);
        if let Body::Bytes(body) = &response.body {
            write_whole(&mut self.encoder, wire, reply, &response, body);
            if let Some(recorder) = &mut self.recorder {
                recorder.begin_malformed(wire, wire.input());
                recorder.set_status(wire, response.status);
                recorder.end(wire, if reply.is_head { 0 } else { body.len() as u64 });
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
                reply.is_head
            }
            Some(Exchange::Suspended(suspended)) => suspended.request.head.is_head_method(),
            Some(Exchange::Sending(_) | Exchange::Flushing(..)) => false,
            None => state.http1.is_head_method(&self.scratch),
        }
    }

    /// Waits for more input, with the timeout for what is expected next.
    #[inline]
    fn await_input(state: &mut HttpConnection, wire: &Wire<'_, Wakeup>) -> Flow {
        if wire.ended() {
            return Flow::Close;
        }
        state.phase = if state.http1.is_within_body() {
            Phase::Body
        } else if state.http1.is_within_head() {
            Phase::Head
        } else if state.phase == Phase::AwaitingFirstByte && wire.consumed() == 0 {
            Phase::AwaitingFirstByte
        } else {
            Phase::Idle
        };
        Flow::Read(state.phase)
    }

    /// Continues after a wake-up, after output has drained, or at the start of a graceful shutdown. Buffered input is
    /// not available in these calls.
    fn continue_exchange(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        match self.advance(state, wire) {
            Step::Flow(flow) => flow,
            Step::Responded(next) => state.flow_after(next).unwrap_or(Flow::Yield(state.phase)),
            Step::Parse => Flow::Yield(state.phase),
        }
    }
}

impl HttpConnection {
    /// Returns whether the connection is waiting for input only.
    fn is_reading(&self) -> bool {
        matches!(self.exchange.as_deref(), None | Some(Exchange::Collecting(_) | Exchange::Streaming(..)))
    }

    /// Returns whether the current exchange, if any, consumes input.
    fn needs_input(&self) -> bool {
        use Exchange::{Flushing, Sending, Suspended, Waiting};
        !matches!(self.exchange.as_deref(), Some(Waiting(..) | Suspended(_) | Sending(_) | Flushing(..)))
    }

    /// Returns how the connection ends after a response; `None` if the next request follows.
    #[inline]
    fn flow_after(&mut self, next: Next) -> Option<Flow> {
        match next {
            Next::Request => {
                self.phase = Phase::Idle;
                None
            }
            Next::Close => Some(Flow::Close),
            Next::Linger => Some(Flow::Linger),
            Next::Refuse => Some(Flow::Refuse),
        }
    }
}

impl<H: Handler> App for HttpServer<H> {
    type State = HttpConnection;
    type Message = Wakeup;

    fn start(&mut self, remote: Remote<Wakeup>) {
        self.remote = Some(remote);
    }

    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, Wakeup>) -> (HttpConnection, Flow) {
        if let Some(recorder) = &mut self.recorder {
            recorder.open(wire.id(), accepted.peer_addr);
        }
        let phase = Phase::AwaitingFirstByte;
        let http1 = http1::Connection::new();
        (HttpConnection { http1, exchange: None, phase }, Flow::Read(phase))
    }

    /// Catches panics once for the whole batch. Responses completed before the panic are already in the output.
    #[inline]
    fn receive(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        catch_unwind(AssertUnwindSafe(|| self.serve_batch(state, wire)))
            .unwrap_or_else(|panic| self.recover(state, wire, panic))
    }

    /// The state lives in the exchange, so a stale wake-up is a no-op.
    fn message(&mut self, state: &mut HttpConnection, _wakeup: Wakeup, wire: &mut Wire<'_, Wakeup>) -> Flow {
        self.continue_exchange(state, wire)
    }

    fn output_drained(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        if state.is_reading() { Flow::Read(state.phase) } else { self.continue_exchange(state, wire) }
    }

    fn timer(&mut self, state: &mut HttpConnection, phase: Phase, wire: &mut Wire<'_, Wakeup>) -> Flow {
        match phase {
            Phase::Head => self.reject(state, wire, Error::HeadTimeout),
            Phase::Body => self.reject(state, wire, Error::BodyTimeout),
            _ => Flow::Close,
        }
    }

    fn drain(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        if let Some(exchange) = &state.exchange {
            exchange.drain();
        }
        if state.is_reading() { Flow::Read(state.phase) } else { self.continue_exchange(state, wire) }
    }

    /// Drops the current exchange, which notifies the threads that share state with it.
    fn closed(&mut self, id: ConnId, state: HttpConnection, info: CloseInfo) {
        if let Some(recorder) = &mut self.recorder {
            let bytes = match state.exchange.as_deref() {
                Some(Exchange::Sending(writer)) => writer.content_bytes,
                Some(Exchange::Flushing(_, bytes)) => *bytes,
                _ => 0,
            };
            recorder.closed(id, bytes, &info);
        }
    }

    #[inline]
    fn end_of_turn(&mut self, _: &mut Vec<(ConnId, Wakeup)>) {
        if let Some(recorder) = &mut self.recorder {
            recorder.end_turn();
        }
    }
}
