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

use std::any::Any;
use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use http::{Extensions, StatusCode};

use super::later::{Late, Outcome};
use super::link::{Nudge, Place};
use super::outgoing::{Coding, Outgoing, Pumped, Stream};
use super::reader::{Inlet, Pipe};
use super::request::Context;
use super::response::{self, Pending};
use super::{
    Asked, BATCH_BYTES, Body, FieldBlock, Handler, HttpServer, Intake, Next, REQUESTS_PER_TURN, Request, RequestHead,
    Response, Take, Trailers, Upload, write_head, write_known, write_whole,
};
use crate::http1::{self, CONTINUE, Error, Event, Framing, Head, Length, Version};
use crate::r#loop::{Accepted, App, ConnId, Ending, Flow, Phase, Remote, Wire};

mod undecided;

use self::undecided::Undecided;

/// The body of a request is collected in steps of its own growth, never by what was announced, up to here.
const BODY_RESERVE_MAX: u64 = 64 * 1024;

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

/// A request whose body is on its way.
struct Collected {
    head_bytes: Vec<u8>,
    head: Box<Head>,
    extensions: Option<Box<Extensions>>,
    body: Vec<u8>,
}

/// An answer that is given later, and what was added to its stand-in.
struct Waiting {
    pending: Pending,
    fields: Vec<u8>,
    close: bool,
}

impl Collected {
    fn new(head_bytes: Vec<u8>, head: Box<Head>, extensions: Option<Box<Extensions>>) -> Self {
        let reserve = if let Framing::Length(length) = head.framing() { length } else { 0 };
        let body = Vec::with_capacity(usize::try_from(reserve.min(BODY_RESERVE_MAX)).unwrap_or(0));
        Collected { head_bytes, head, extensions, body }
    }
}

#[inline]
fn request_head<'a>(bytes: &'a [u8], head: &'a Head, context: &'a Context<'a>) -> RequestHead<'a> {
    RequestHead { bytes, head, context, parameters: &[], mount: 0 }
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

/// Drops what handlers have left with a request, which is nothing almost always; then without a call.
#[inline]
fn discard(context: Context<'_>) {
    if let Some(extensions) = context.extensions.into_inner() {
        drop(extensions);
    }
}

/// Calls the handler; a panic costs the request its answer, not the server its life.
fn guard<T>(call: impl FnOnce() -> T) -> Option<T> {
    // The handler may be left half changed. That is the risk its author takes; the alternative is that one bad
    // request ends the service for everybody.
    catch_unwind(AssertUnwindSafe(call)).ok()
}

fn panicked(wire: &mut Wire<'_, Nudge>, head: &RequestHead<'_>) -> Response {
    log::error!("the handler panicked at {} {}: answered 500", head.method(), head.target());
    wire.count_panic();
    response::internal_error()
}

impl<H: Handler> HttpServer<H> {
    /// Answers as many requests as are at hand, within bounds.
    #[inline]
    fn converse(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>) -> Flow {
        let mut answered = 0;
        while answered < REQUESTS_PER_TURN && wire.output().len() < BATCH_BYTES {
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
                }
            }
        }
        Flow::Yield(state.phase)
    }

    /// After a panic: that of the handler costs the request its answer, and is told in its place. Any other is passed on.
    #[cold]
    fn recover(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>, panic: Box<dyn Any + Send>) -> Flow {
        let called = std::mem::take(&mut self.called);
        if called.is_empty() {
            resume_unwind(panic);
        }
        let context = Context { ends: wire.ends(), extensions: RefCell::default(), wall: wire.wall() };
        let input = wire.input();
        wire.consume(called.end);
        let head = request_head(&input[called], &self.scratch, &context);
        let (response, asked) = (panicked(wire, &head), Asked::by(&head));
        match self.answer(state, wire, asked, response) {
            Step::Answered(next) => state.after(next).unwrap_or(Flow::Linger),
            Step::Flow(_) | Step::Parse => Flow::Linger,
        }
    }

    /// Calls the handler for a whole request.
    fn respond(&mut self, wire: &mut Wire<'_, Nudge>, request: &Request<'_>) -> Response {
        guard(|| self.handler.call(request)).unwrap_or_else(|| panicked(wire, &request.head()))
    }

    /// A head without a body is answered where it lies, at this place of the input.
    #[allow(
        clippy::inline_always,
        reason = "on the way of every request; a response is large, and a call would copy it"
    )]
    #[inline(always)]
    fn take_head(
        &mut self,
        state: &mut Conversation,
        wire: &mut Wire<'_, Nudge>,
        input: &[u8],
        place: Range<usize>,
    ) -> Step {
        let context = Context { ends: wire.ends(), extensions: RefCell::default(), wall: wire.wall() };
        let end = place.end;
        let request = Request { head: request_head(&input[place.clone()], &self.scratch, &context), body: &[] };
        let is_written_down = self.journal.is_some();
        if let Some(journal) = &mut self.journal {
            journal.begin(wire, &request.head);
        }
        // The guard is around the whole batch, see `recover`.
        self.called = place;
        // In its parts, which stay where they are.
        let Response { status, content_type, fields, shared, body, close } = self.handler.call(&request);
        self.called = 0..0;
        wire.consume(end);
        let is_usual = Asked::by(&request.head).is_usual()
            && status == StatusCode::OK
            && fields.is_empty()
            && !close
            && content_type.is_none_or(|value| std::ptr::eq(value, self.content_type))
            && !is_written_down
            && !wire.draining();
        match body {
            Body::Bytes(body) if is_usual => {
                self.write_usual(wire, content_type, shared.as_deref(), &body);
                discard(context);
                Step::Answered(Next::Request)
            }
            body => {
                let response = Response { status, content_type, fields, shared, body, close };
                let head = request.head;
                let asked = Asked::about(&head, &response);
                if response.is_undecided() {
                    let (head_bytes, extensions) = (head.bytes.to_vec(), context.extensions.into_inner());
                    let request = Collected::new(head_bytes, Box::new(std::mem::take(&mut self.scratch)), extensions);
                    return self.set_aside(state, wire, request, false, response);
                }
                self.answer(state, wire, asked, response)
            }
        }
    }

    /// The answer that almost every request gets: 200 (OK) with a body that is there, on a connection that goes on, and
    /// nothing to be told besides but what others tell as well.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    fn write_usual(
        &mut self,
        wire: &mut Wire<'_, Nudge>,
        content_type: Option<&'static str>,
        shared: Option<&FieldBlock>,
        body: &bytes::Bytes,
    ) {
        wire.restart_clock();
        let now = wire.wall();
        let output = wire.output();
        self.encoder.usual_head(output.buffer(), now, content_type, body.len() as u64);
        if let Some(shared) = shared {
            let out = output.buffer();
            // In place of the empty line, which comes behind them.
            out.truncate(out.len() - 2);
            out.extend_from_slice(shared.lines());
            out.extend_from_slice(b"\r\n");
        }
        output.push(body);
    }

    /// The same with a body, which may stand whole behind the head, or is still to come.
    fn take_head_of_body(
        &mut self,
        state: &mut Conversation,
        wire: &mut Wire<'_, Nudge>,
        input: &[u8],
        place: Range<usize>,
    ) -> Step {
        wire.consume(place.end);
        let context = Context { ends: wire.ends(), extensions: RefCell::default(), wall: wire.wall() };
        let scratch = std::mem::take(&mut self.scratch);
        let rest = &input[place.end..];
        let head = request_head(&input[place], &scratch, &context);
        if let Some(journal) = &mut self.journal {
            journal.begin(wire, &head);
        }
        let taken = self.take_body(state, wire, &head, rest);
        let by_head = matches!(&taken, Ok((_, response)) if response.is_undecided());
        if by_head || matches!(taken, Err(None)) {
            let (head_bytes, extensions) = (head.bytes.to_vec(), context.extensions.into_inner());
            let request = Collected::new(head_bytes, Box::new(scratch), extensions);
            if let Ok((_, response)) = taken {
                return self.set_aside(state, wire, request, true, response);
            }
            state.exchange = Some(Box::new(Exchange::Collecting(request)));
            return Step::Parse;
        }
        self.scratch = scratch;
        match taken {
            Ok((asked, response)) => self.answer(state, wire, asked, response),
            Err(exchange) => {
                state.exchange = exchange.map(Box::new);
                Step::Parse
            }
        }
    }

    /// Decides about a body: an answer that can be given now, or an exchange that takes it (`None`: one that collects).
    fn take_body(
        &mut self,
        state: &mut Conversation,
        wire: &mut Wire<'_, Nudge>,
        head: &RequestHead<'_>,
        rest: &[u8],
    ) -> Result<(Asked, Response), Option<Exchange>> {
        let unread = |response| (Asked::by(head).with_trailers(head).unread(), response);
        let intake = match guard(|| self.handler.head(head)) {
            Some(Intake::Refuse(response)) => return Ok(unread(response)),
            None => return Ok(unread(panicked(wire, head))),
            Some(intake) => intake,
        };
        let bytes_max = match &intake {
            Intake::Collect(bytes_max) | Intake::Stream { bytes_max, .. } | Intake::Read { bytes_max, .. } => {
                *bytes_max
            }
            _ => self.limits.body_bytes_max,
        };
        if let Err(error) = state.http1.allow_body(bytes_max) {
            return Ok(unread(fault(error)));
        }
        let collect = matches!(intake, Intake::Default | Intake::Collect(_));
        if collect
            && let Framing::Length(length) = head.head.framing()
            && let Ok(length) = usize::try_from(length)
            && let Some(body) = rest.get(..length)
        {
            state.http1.skip_body();
            wire.consume(length);
            let response = self.respond(wire, &Request { head: *head, body });
            if !response.is_undecided() {
                return Ok((Asked::about(head, &response), response));
            }
            let extensions = head.context.extensions.take();
            let mut request = Collected::new(head.bytes.to_vec(), Box::new(head.head.clone()), extensions);
            request.body.extend_from_slice(body);
            return Err(Some(self.undecided(wire, request, false, response)));
        }
        if head.head.expects_continue() && rest.is_empty() {
            wire.output().extend(CONTINUE);
        }
        let asked = Asked::by(head).with_trailers(head);
        Err(match intake {
            Intake::Stream { upload, .. } => Some(Exchange::Taking(asked, upload)),
            Intake::Read { start, .. } => Some(self.begin_reading(wire, asked, start)),
            _ => None,
        })
    }

    fn begin_reading(
        &self,
        wire: &mut Wire<'_, Nudge>,
        asked: Asked,
        start: Box<dyn FnOnce(super::BodyReader, super::Responder)>,
    ) -> Exchange {
        let (inlet, reader) = Pipe::open();
        let (late, responder) = Late::new();
        if let Some(place) = self.place(wire) {
            inlet.bind(place.clone());
            late.bind(place, wire.draining());
        }
        // What is lost by a panic answers 500 by being dropped.
        if guard(|| start(reader, responder)).is_none() {
            wire.count_panic();
            log::error!("what was to read a body panicked");
        }
        Exchange::Reading(asked, inlet, Box::new(Pending::new(late)))
    }

    /// Where other threads will reach the exchange that begins now.
    fn place(&self, wire: &Wire<'_, Nudge>) -> Option<Place> {
        Some(Place { remote: self.remote.clone()?, id: wire.id() })
    }

    /// Writes the response, or begins to wait for it, or to send it piece by piece.
    fn answer(
        &mut self,
        state: &mut Conversation,
        wire: &mut Wire<'_, Nudge>,
        asked: Asked,
        mut response: Response,
    ) -> Step {
        response.check(&mut self.content_type);
        if let (Body::Bytes(body), None) = (&response.body, &self.journal) {
            wire.restart_clock();
            return Step::Answered(write_whole(&mut self.encoder, wire, asked, &response, body));
        }
        self.answer_in_steps(state, wire, asked, response)
    }

    fn answer_in_steps(
        &mut self,
        state: &mut Conversation,
        wire: &mut Wire<'_, Nudge>,
        asked: Asked,
        mut response: Response,
    ) -> Step {
        let exchange = match std::mem::replace(&mut response.body, Body::Bytes(bytes::Bytes::new())) {
            Body::Later(mut pending) => {
                // Here nobody kept the request.
                pending.undecided = false;
                if let Some(place) = self.place(wire) {
                    pending.late.bind(place, wire.draining());
                }
                let Response { fields, close, .. } = response;
                Exchange::Waiting(asked, Box::new(Waiting { pending: *pending, fields, close }))
            }
            Body::Stream(stream) => match self.begin_sending(wire, asked, response, *stream) {
                Ok(outgoing) => Exchange::Sending(outgoing),
                Err(next) => {
                    self.write_down(wire, 0);
                    return Step::Answered(next);
                }
            },
            body => {
                wire.restart_clock();
                let len = body.len().unwrap_or(0);
                let (next, with_body) = write_known(&mut self.encoder, wire, asked, &response, len);
                let waits = self.is_awaited(&body);
                if with_body {
                    body.push(wire.output());
                }
                self.tell_status(wire, response.status);
                if !(with_body && waits) {
                    self.write_down(wire, if with_body { len } else { 0 });
                    return Step::Answered(next);
                }
                Exchange::Written(next, len)
            }
        };
        state.exchange = Some(Box::new(exchange));
        // The clock of what came before is not that of an answer; output that is blocked has its own.
        state.phase = Phase::Reply;
        Step::Parse
    }

    /// Whether an answer is written down only when it is sent: it may break off, or take its time.
    fn is_awaited(&self, body: &Body) -> bool {
        self.journal.is_some() && !matches!(body, Body::Bytes(bytes) if bytes.len() <= BATCH_BYTES)
    }

    #[inline]
    fn tell_status(&mut self, wire: &Wire<'_, Nudge>, status: http::StatusCode) {
        if let Some(journal) = &mut self.journal {
            journal.answer(wire, status);
        }
    }

    /// The answer has ended, after so many octets of content.
    #[inline]
    fn write_down(&mut self, wire: &Wire<'_, Nudge>, bytes: u64) {
        if let Some(journal) = &mut self.journal {
            journal.end(wire, bytes);
        }
    }

    /// Writes the head of a stream; what follows is none where the response has no body.
    fn begin_sending(
        &mut self,
        wire: &mut Wire<'_, Nudge>,
        asked: Asked,
        mut response: Response,
        stream: Stream,
    ) -> Result<Outgoing, Next> {
        wire.restart_clock();
        let tunnel = asked.connect && response.status.is_success();
        let coding = match (stream.length, asked.version) {
            (Some(length), _) => Coding::Length(length),
            (None, Version::Http11) => Coding::Chunked,
            (None, Version::Http10) => Coding::Close,
        };
        let (length, names) = match coding {
            _ if tunnel => (Length::Untold, None),
            Coding::Length(length) => (Length::Known(length), None),
            // RFC 9112 section 6.1: nobody needs it on HEAD, and what has no body cannot be misread.
            Coding::Chunked if asked.head => (Length::Untold, None),
            Coding::Chunked => (Length::Chunked, stream.trailers.as_ref().map(|(names, _)| names)),
            Coding::Close => (Length::Untold, None),
        };
        if let (Some(names), true) = (names, asked.trailers) {
            response.announce_trailers(names);
        }
        let (persistence, next) =
            asked.outlook(response.close || wire.draining() || (coding == Coding::Close && !asked.head));
        self.tell_status(wire, response.status);
        if !write_head(&mut self.encoder, wire, &response, length, persistence) || asked.head || tunnel {
            return Err(next);
        }
        let outgoing = Outgoing::new(stream, coding, asked.trailers, next);
        if let Some(place) = self.place(wire) {
            outgoing.bind(place, wire.draining());
        }
        Ok(outgoing)
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

    fn take_piece(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>, bytes: &[u8]) -> Step {
        match state.exchange.as_deref_mut() {
            Some(Exchange::Collecting(collected)) => collected.body.extend_from_slice(bytes),
            Some(Exchange::Taking(asked, upload)) => {
                let asked = asked.unread();
                let response = match guard(|| upload.chunk(bytes)) {
                    Some(Take::More) => return Step::Parse,
                    Some(Take::Answer(response)) => response,
                    None => {
                        log::error!("an upload panicked: answered 500");
                        wire.count_panic();
                        response::internal_error()
                    }
                };
                state.exchange = None;
                return self.answer(state, wire, asked, response);
            }
            Some(Exchange::Reading(_, inlet, _)) if !inlet.push(bytes) => return Step::Flow(Flow::Pause),
            _ => {}
        }
        Step::Parse
    }

    /// The body is whole: answer.
    fn end_body(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>) -> Step {
        let Some(exchange) = state.exchange.take() else { return Step::Parse };
        match *exchange {
            Exchange::Collecting(collected) => self.ask(state, wire, collected),
            Exchange::Taking(asked, upload) => {
                let trailers = Trailers::received(state.http1.trailers());
                let response = response::guarded(|| upload.end(&trailers));
                self.answer(state, wire, asked, response)
            }
            Exchange::Reading(asked, inlet, pending) => {
                inlet.end(Ok(Trailers::received(state.http1.trailers())));
                let waiting = Waiting { pending: *pending, fields: Vec::new(), close: false };
                state.exchange = Some(Box::new(Exchange::Waiting(asked, Box::new(waiting))));
                state.phase = Phase::Reply;
                Step::Parse
            }
            other => {
                state.exchange = Some(Box::new(other));
                Step::Parse
            }
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
