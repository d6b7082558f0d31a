//! One connection's exchanges, one after the other: the server as an application of the loop.
//!
//! ```text
//!           head, no body                      answer there
//!   free ------------------> handler's answer --------------> free
//!    |                            |        ^
//!    | head                       | later  | given
//!    v                            v        |
//!   body: collected, taken,     waiting ---+      body made while it is sent: sending
//!         read elsewhere
//! ```

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::later::Outcome;
use super::link::Nudge;
use super::outgoing::{Outgoing, Pumped};
use super::reader::Inlet;
use super::response::Pending;
use super::{Asked, BATCH_BYTES, Body, Handler, HttpServer, Next, REQUESTS_PER_TURN, Response, Upload, write_whole};
use crate::http1::{self, Error, Event, Framing};
use crate::r#loop::{Accepted, App, ConnId, Ending, Flow, Phase, Remote, Wire};

mod answer;
mod body;
mod head;
mod undecided;

use self::body::Collected;
use self::undecided::Undecided;

/// One connection's state.
pub struct Conversation {
    http1: http1::Connection,
    exchange: Option<Box<Exchange>>,
    phase: Phase,
}

/// An exchange that needs more than one call. Dropped before its end it tells so to the threads it shares something with.
enum Exchange {
    /// The body is collected.
    Collecting(Collected),
    /// The body is taken as it comes.
    Taking(Asked, Box<dyn Upload>),
    /// The body is read on another thread, which may answer before its end.
    Reading(Asked, Inlet, Box<Pending>),
    /// The answer is given later.
    Waiting(Asked, Box<Waiting>),
    /// What is to become of the request is found out elsewhere, and then the handler is asked again.
    Undecided(Box<Undecided>),
    /// The answer's body is made while it is sent.
    Sending(Outgoing),
    /// The answer is written, with so many octets of content. That they are sent is waited for because of the access log.
    Written(Next, u64),
}

/// An answer that is given later, and what was added to its stand-in.
struct Waiting {
    pending: Pending,
    fields: Vec<u8>,
    close: bool,
}

impl Exchange {
    fn drain(&self) {
        match self {
            Exchange::Collecting(_) | Exchange::Taking(..) | Exchange::Written(..) => {}
            Exchange::Reading(_, _, pending) => pending.late.link.drain(),
            Exchange::Waiting(_, waiting) => waiting.pending.late.link.drain(),
            Exchange::Undecided(undecided) => undecided.waiting.pending.late.link.drain(),
            Exchange::Sending(outgoing) => outgoing.drain(),
        }
    }
}

/// What is to be done after a step.
enum Step {
    /// The answer is written.
    Answered(Next),
    /// Go on with the input at hand.
    Parse,
    /// The exchange needs something else than input; or the connection is to end.
    Flow(Flow),
}

fn fault(error: Error) -> Response {
    Response::error(error.status(), format!("{error}\n")).close()
}

impl<H: Handler> HttpServer<H> {
    /// Answers as many requests as are at hand, within bounds: one at least.
    #[inline]
    fn converse(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>) -> Flow {
        let mut answered = 0;
        loop {
            let mut step = if state.exchange.is_none() { Step::Parse } else { self.advance(state, wire) };
            if matches!(step, Step::Parse) && state.needs_input() {
                step = self.parse(state, wire);
            }
            match step {
                Step::Flow(flow) => return flow,
                Step::Parse => {}
                Step::Answered(next) => {
                    answered += 1;
                    if let Some(flow) = state.after(next) {
                        return flow;
                    }
                    if wire.input().is_empty() {
                        return Self::wait(state, wire);
                    }
                    if answered == REQUESTS_PER_TURN || wire.unsent() >= BATCH_BYTES {
                        return Flow::Yield(state.phase);
                    }
                }
            }
        }
    }

    /// Goes on with an exchange that needs no input: looks for the answer, or sends more of it.
    fn advance(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>) -> Step {
        match state.exchange.as_deref_mut() {
            Some(Exchange::Waiting(asked, waiting)) => {
                let asked = *asked;
                // Only what is undecided is asked about again.
                let Some(Outcome::Response(mut response)) = waiting.pending.take() else {
                    return Step::Flow(Flow::Pause);
                };
                response.inherit(&waiting.fields, waiting.close);
                waiting.pending.late.link.release();
                state.exchange = None;
                self.answer(state, wire, asked, response)
            }
            Some(Exchange::Undecided(undecided)) => {
                let Some(outcome) = undecided.waiting.pending.take() else {
                    return Step::Flow(Flow::Pause);
                };
                match state.exchange.take().map(|exchange| *exchange) {
                    Some(Exchange::Undecided(undecided)) => self.decide(state, wire, *undecided, outcome),
                    _ => Step::Parse,
                }
            }
            Some(Exchange::Reading(asked, inlet, pending)) => {
                let Some(Outcome::Response(response)) = pending.take() else {
                    return if inlet.is_paused() { Step::Flow(Flow::Pause) } else { Step::Parse };
                };
                // Answered before the end of the body, which nobody will read.
                let asked = asked.unread();
                pending.late.link.release();
                state.exchange = None;
                self.answer(state, wire, asked, response)
            }
            Some(Exchange::Sending(outgoing)) => match outgoing.pump(wire.output()) {
                Pumped::More => Step::Flow(Flow::Yield(state.phase)),
                Pumped::Wait => Step::Flow(Flow::Pause),
                Pumped::Done => {
                    let (next, bytes) = (outgoing.next, outgoing.content_bytes);
                    state.exchange = None;
                    wire.restart_clock();
                    self.write_down(wire, bytes);
                    Step::Answered(next)
                }
                Pumped::Broken => Step::Flow(outgoing.give_up()),
            },
            Some(Exchange::Written(..)) if !wire.output().is_empty() => Step::Flow(Flow::Yield(state.phase)),
            Some(Exchange::Written(next, bytes)) => {
                let (next, bytes) = (*next, *bytes);
                state.exchange = None;
                wire.restart_clock();
                self.write_down(wire, bytes);
                Step::Answered(next)
            }
            _ => Step::Parse,
        }
    }

    /// Reads on in the input.
    #[inline(never)]
    fn parse(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>) -> Step {
        let input = wire.input();
        if let Some((end, has_body)) = state.http1.receive_plain(&mut self.scratch, &self.limits, input) {
            return if has_body {
                self.take_head_of_body(state, wire, input, 0..end)
            } else {
                self.take_head(state, wire, input, 0..end)
            };
        }
        self.parse_on(state, wire, input)
    }

    /// The same where no plain head stands whole at the front.
    #[inline(never)]
    fn parse_on(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>, input: &[u8]) -> Step {
        match state.http1.receive_other(&mut self.scratch, &self.limits, input) {
            Ok((used, Event::Head { len })) if self.scratch.framing() == Framing::None => {
                self.take_head(state, wire, input, used - len..used)
            }
            Ok((used, Event::Head { len })) => self.take_head_of_body(state, wire, input, used - len..used),
            Ok((used, event)) => {
                wire.consume(used);
                self.take_event(state, wire, event)
            }
            Err(error) => Step::Flow(self.refuse(state, wire, error)),
        }
    }

    fn take_event(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>, event: Event<'_>) -> Step {
        match event {
            Event::Body(bytes) => self.take_piece(state, wire, bytes),
            Event::End => self.end_body(state, wire),
            Event::NeedMore | Event::Head { .. } => Step::Flow(Self::wait(state, wire)),
        }
    }

    /// The peer's fault: the answer that names it, and a close that lets the peer read it.
    fn refuse(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>, error: Error) -> Flow {
        log::debug!("refused: {error}");
        let asked = Asked::unreadable(self.is_for_head(state));
        if let Some(Exchange::Reading(_, inlet, _)) = state.exchange.take().as_deref() {
            inlet.end(Err(io::ErrorKind::InvalidData));
        }
        let response = fault(error);
        if let Body::Bytes(body) = &response.body {
            write_whole(&mut self.encoder, wire, asked, &response, body);
            if let Some(journal) = &mut self.journal {
                journal.refuse(wire, wire.input());
                journal.answer(wire, response.status);
                journal.end(wire, if asked.head { 0 } else { body.len() as u64 });
            }
        }
        Flow::Refuse
    }

    /// Whether the request that turned out to be at fault is one for HEAD, which gets no content (RFC 9110
    /// section 9.3.2).
    fn is_for_head(&self, state: &Conversation) -> bool {
        match state.exchange.as_deref() {
            Some(Exchange::Collecting(collected)) => collected.head.is_for_head(),
            Some(Exchange::Taking(asked, _) | Exchange::Reading(asked, ..) | Exchange::Waiting(asked, _)) => asked.head,
            Some(Exchange::Undecided(undecided)) => undecided.request.head.is_for_head(),
            Some(Exchange::Sending(_) | Exchange::Written(..)) => false,
            None => state.http1.is_for_head(&self.scratch),
        }
    }

    #[inline]
    fn wait(state: &mut Conversation, wire: &Wire<'_, Nudge>) -> Flow {
        if wire.ended() {
            return Flow::Close;
        }
        state.phase = if state.http1.is_within_body() {
            Phase::Body
        } else if state.http1.is_within_head() {
            Phase::Head
        } else if state.phase == Phase::Silent && wire.consumed() == 0 {
            Phase::Silent
        } else {
            Phase::Idle
        };
        Flow::Read(state.phase)
    }

    /// After a letter, when output has drained, or when the drain began: the input at hand is not shown in this call.
    fn resume(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>) -> Flow {
        match self.advance(state, wire) {
            Step::Flow(flow) => flow,
            Step::Answered(next) => state.after(next).unwrap_or(Flow::Yield(state.phase)),
            Step::Parse => Flow::Yield(state.phase),
        }
    }
}

impl Conversation {
    /// Whether nothing but input is waited for.
    fn is_reading(&self) -> bool {
        matches!(self.exchange.as_deref(), None | Some(Exchange::Collecting(_) | Exchange::Taking(..)))
    }

    /// Whether the exchange under way takes input.
    fn needs_input(&self) -> bool {
        use Exchange::{Sending, Undecided, Waiting, Written};
        !matches!(self.exchange.as_deref(), Some(Waiting(..) | Undecided(_) | Sending(_) | Written(..)))
    }

    /// What follows an answer; `None` is the next request.
    #[inline]
    fn after(&mut self, next: Next) -> Option<Flow> {
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
    type State = Conversation;
    type Letter = Nudge;

    fn start(&mut self, remote: Remote<Nudge>) {
        self.remote = Some(remote);
    }

    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, Nudge>) -> (Conversation, Flow) {
        if let Some(journal) = &mut self.journal {
            journal.open(wire.id(), accepted.peer);
        }
        let phase = Phase::Silent;
        let http1 = http1::Connection::new();
        (Conversation { http1, exchange: None, phase }, Flow::Read(phase))
    }

    /// One guard for all requests of a batch: what the handler has answered before a panic is written already.
    #[inline]
    fn receive(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>) -> Flow {
        catch_unwind(AssertUnwindSafe(|| self.converse(state, wire)))
            .unwrap_or_else(|panic| self.recover(state, wire, panic))
    }

    /// What there is to see stands with the exchange, so a nudge that comes too late finds nothing and does no harm.
    fn letter(&mut self, state: &mut Conversation, _letter: Nudge, wire: &mut Wire<'_, Nudge>) -> Flow {
        self.resume(state, wire)
    }

    fn drained(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>) -> Flow {
        if state.is_reading() { Flow::Read(state.phase) } else { self.resume(state, wire) }
    }

    fn timer(&mut self, state: &mut Conversation, phase: Phase, wire: &mut Wire<'_, Nudge>) -> Flow {
        match phase {
            Phase::Head => self.refuse(state, wire, Error::HeadTimeout),
            Phase::Body => self.refuse(state, wire, Error::BodyTimeout),
            _ => Flow::Close,
        }
    }

    fn drain(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>) -> Flow {
        if let Some(exchange) = &state.exchange {
            exchange.drain();
        }
        if state.is_reading() { Flow::Read(state.phase) } else { self.resume(state, wire) }
    }

    /// The exchange under way is dropped, which tells those who share something with it.
    fn closed(&mut self, id: ConnId, state: Conversation, ending: Ending) {
        if let Some(journal) = &mut self.journal {
            let bytes = match state.exchange.as_deref() {
                Some(Exchange::Sending(outgoing)) => outgoing.content_bytes,
                Some(Exchange::Written(_, bytes)) => *bytes,
                _ => 0,
            };
            journal.closed(id, bytes, &ending);
        }
    }

    #[inline]
    fn end_of_turn(&mut self, _: &mut Vec<(ConnId, Nudge)>) {
        if let Some(journal) = &mut self.journal {
            journal.end_turn();
        }
    }
}
