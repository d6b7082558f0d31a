//! What becomes of a request once its head is there: it is answered where it lies, or what takes its body is begun.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bytes::Bytes;
use http::StatusCode;

use super::body::Collected;
use super::{Conversation, Exchange, Step, fault};
use crate::http1::{CONTINUE, Encoder, Framing, Head};
use crate::httpserver::later::Late;
use crate::httpserver::link::Nudge;
use crate::httpserver::reader::Pipe;
use crate::httpserver::request::Context;
use crate::httpserver::response::{self, Body, Pending};
use crate::httpserver::{
    Asked, BodyReader, FieldBlock, Handler, HttpServer, Intake, Next, Request, RequestHead, Responder, Response,
};
use crate::r#loop::{Flow, Output, Wire};

#[inline]
pub(super) fn request_head<'a>(bytes: &'a [u8], head: &'a Head, context: &'a Context<'a>) -> RequestHead<'a> {
    RequestHead { bytes, head, context, parameters: &[], mount: 0 }
}

/// Drops what handlers have left with a request, which is nothing almost always; then without a call.
#[inline]
fn discard(context: Context<'_>) {
    if let Some(extensions) = context.extensions.into_inner() {
        drop(extensions);
    }
}

/// The answer that almost every request gets: 200 (OK) with a body that is there, on a connection that goes on, and
/// nothing to be told besides.
#[inline(never)]
fn write_usual(encoder: &mut Encoder, output: &mut Output, now: u64, content_type: Option<&'static str>, body: &Bytes) {
    encoder.usual_head(output.buffer(), now, content_type, body.len() as u64);
    output.push(body);
}

/// The same with fields that other answers have as well.
#[inline(never)]
fn write_usual_with(
    shared: &FieldBlock,
    encoder: &mut Encoder,
    output: &mut Output,
    now: u64,
    content_type: Option<&'static str>,
    body: &Bytes,
) {
    let out = output.buffer();
    encoder.usual_head(out, now, content_type, body.len() as u64);
    // In place of the empty line, which comes behind them.
    out.truncate(out.len() - 2);
    out.extend_from_slice(shared.lines());
    out.extend_from_slice(b"\r\n");
    output.push(body);
}

fn panicked(wire: &mut Wire<'_, Nudge>, head: &RequestHead<'_>) -> Response {
    log::error!("the handler panicked at {} {}: answered 500", head.method(), head.target());
    wire.count_panic();
    response::internal_error()
}

/// Calls the handler; a panic costs the request its answer, not the server its life.
pub(super) fn guard<T>(call: impl FnOnce() -> T) -> Option<T> {
    // The handler may be left half changed. That is the risk its author takes; the alternative is that one bad
    // request ends the service for everybody.
    catch_unwind(AssertUnwindSafe(call)).ok()
}

impl<H: Handler> HttpServer<H> {
    /// After a panic: that of the handler costs the request its answer, and is told in its place. Any other is passed on.
    #[cold]
    pub(super) fn recover(
        &mut self,
        state: &mut Conversation,
        wire: &mut Wire<'_, Nudge>,
        panic: Box<dyn Any + Send>,
    ) -> Flow {
        let called = std::mem::take(&mut self.called);
        if called.is_empty() {
            resume_unwind(panic);
        }
        let context = Context::new(wire, None);
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
    pub(super) fn respond(&mut self, wire: &mut Wire<'_, Nudge>, request: &Request<'_>) -> Response {
        guard(|| self.handler.call(request)).unwrap_or_else(|| panicked(wire, &request.head()))
    }

    /// A head without a body is answered where it lies, at this place of the input.
    #[allow(
        clippy::inline_always,
        reason = "on the way of every request; a response is large, and a call would copy it"
    )]
    #[inline(always)]
    pub(super) fn take_head(
        &mut self,
        state: &mut Conversation,
        wire: &mut Wire<'_, Nudge>,
        input: &[u8],
        place: Range<usize>,
    ) -> Step {
        let context = Context::new(wire, None);
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
        let is_usual = self.scratch.is_usual()
            && status == StatusCode::OK
            && fields.is_empty()
            && !close
            && content_type.is_none_or(|value| std::ptr::eq(value, self.content_type))
            && !is_written_down
            && !wire.draining();
        match body {
            Body::Bytes(body) if is_usual => {
                wire.restart_clock();
                let now = wire.wall();
                match shared {
                    None => write_usual(&mut self.encoder, wire.output(), now, content_type, &body),
                    Some(shared) => {
                        write_usual_with(&shared, &mut self.encoder, wire.output(), now, content_type, &body);
                    }
                }
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

    /// The same with a body, which may stand whole behind the head, or is still to come.
    pub(super) fn take_head_of_body(
        &mut self,
        state: &mut Conversation,
        wire: &mut Wire<'_, Nudge>,
        input: &[u8],
        place: Range<usize>,
    ) -> Step {
        wire.consume(place.end);
        let context = Context::new(wire, None);
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
    pub(super) fn take_body(
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
        start: Box<dyn FnOnce(BodyReader, Responder)>,
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
}
