//! Handles a parsed request head: calls the handler without copying the head, or starts receiving the request body.
//!
//! A function with the suffix `_outlined` exists to keep code out of the hot path.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bytes::Bytes;
use http::{Extensions, StatusCode};

use super::body_reader::{BodyReader, Pipe};
use super::body_stream::BATCH_BYTES;
use super::deferred::Responder;
use super::exchange_handle::Wakeup;
use super::handler::{BodyMode, Handler};
use super::headers::HeaderBlock;
use super::http_connection::{
    BodyStart, Collected, Exchange, HttpConnection, Step, Streaming, error_response, flow_after,
};
use super::offer::Offer;
use super::recorder::Recorder;
use super::request::{Context, Request, RequestHead};
use super::response::{self, Body, PendingReply, Response};
use super::server::{HttpServer, Options};
use crate::http1::{CONTINUE, Encoder, Framing, Head, Next, ReplyContext};
use crate::r#loop::{Flow, Output, Wire};

#[inline]
pub(super) fn request_head<'a>(bytes: &'a [u8], head: &'a Head, context: &'a Context<'a>) -> RequestHead<'a> {
    RequestHead { bytes, head, context, params: &[], mount: 0 }
}

/// Creates the context of `response`; looks for `TE: trailers` and Upgrade only if the response may need them.
#[inline]
pub(super) fn reply_context(head: &RequestHead<'_>, response: &mut Response) -> ReplyContext {
    if matches!(response.body, Body::Bytes(_) | Body::File(..) | Body::Parts(_)) {
        return ReplyContext::new(head.head);
    }
    let reply = ReplyContext::with_trailers(head.head, head.bytes);
    Offer::of(head.head, head.bytes, reply).apply(reply, response)
}

/// Drops the extensions of a request. Inlined, so that the common case without extensions costs no call.
#[inline]
fn discard(context: Context<'_>) {
    if let Some(extensions) = context.extensions.into_inner() {
        drop(extensions);
    }
}

/// Writes a response on the fast path: 200 (OK) with a body in memory and no further headers, on a persistent
/// connection.
#[inline(never)]
fn write_ok(encoder: &mut Encoder, output: &mut Output, now: u64, content_type: Option<&'static str>, body: &Bytes) {
    encoder.ok_head(output.buffer(), now, content_type, body.len() as u64);
    output.push(body);
}

/// Writes a response on the fast path, as [`write_ok`] does, with a block of shared headers.
#[inline(never)]
fn write_ok_with_headers(
    shared: &HeaderBlock,
    encoder: &mut Encoder,
    output: &mut Output,
    now: u64,
    content_type: Option<&'static str>,
    body: &Bytes,
) {
    let out = output.buffer();
    encoder.ok_head(out, now, content_type, body.len() as u64);
    // Move the empty line that ends the head after the shared headers.
    out.truncate(out.len() - 2);
    out.extend_from_slice(shared.lines());
    out.extend_from_slice(b"\r\n");
    output.push(body);
}

/// Begins a request on a server with a recorder or options. Returns the response if the handler must not be called.
#[inline(never)]
fn begin_request(
    (recorder, options): (Option<&mut Recorder>, Option<&Options>),
    state: &mut HttpConnection,
    wire: &Wire<'_, Wakeup>,
    head: &RequestHead<'_>,
    has_body: bool,
) -> Option<Response> {
    if let Some(response) = options.and_then(|options| options.check_health(head, wire.draining())) {
        return Some(response);
    }
    state.requests = state.requests.saturating_add(1);
    let refusal = options.and_then(|options| options.refuse_host(head));
    if let Some(recorder) = recorder {
        recorder.arrive();
        if has_body || refusal.is_some() || recorder.passes_ids() {
            recorder.begin(wire, head);
        }
    }
    refusal
}

/// Begins the record of a request that is not answered on the fast path, unless it was begun before the handler was called.
#[inline(never)]
fn begin_late(recorder: &mut Recorder, wire: &Wire<'_, Wakeup>, head: &RequestHead<'_>) {
    if recorder.passes_ids() {
        recorder.set_route(wire);
    } else {
        recorder.begin(wire, head);
    }
}

fn panicked(wire: &mut Wire<'_, Wakeup>, head: &RequestHead<'_>) -> Response {
    let client = head.client_addr().map_or_else(|| "an unknown client".to_owned(), |client| client.to_string());
    log::error!("handler panicked on {} {} of {client}; replied 500", head.method(), head.target());
    wire.count_panic();
    response::internal_error()
}

/// Calls user code; returns `None` if it panics. The request gets a 500, and the server keeps running.
pub(super) fn catch_panic<T>(call: impl FnOnce() -> T) -> Option<T> {
    // The handler may be left in an inconsistent state. That is its author's risk; the alternative is that one bad
    // request takes the service down for all clients.
    catch_unwind(AssertUnwindSafe(call)).ok()
}

impl<H: Handler> HttpServer<H> {
    /// Handles a panic caught by `receive`: replies 500 if the handler panicked, and otherwise resumes unwinding.
    #[cold]
    pub(super) fn recover(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        panic: Box<dyn Any + Send>,
    ) -> Flow {
        let span = std::mem::take(&mut self.current_request);
        if span.is_empty() {
            resume_unwind(panic);
        }
        let real_client = self.real_client();
        let context = Context::new(wire, None, real_client.as_deref());
        let input = wire.input();
        wire.consume(span.end);
        let head = request_head(&input[span], &self.scratch, &context);
        if let Some(recorder) = &mut self.recorder {
            begin_late(recorder, wire, &head);
        }
        let (response, reply) = (panicked(wire, &head), ReplyContext::new(head.head));
        match self.respond(state, wire, reply, response) {
            Step::Responded(next) => flow_after(next).unwrap_or(Flow::Linger),
            Step::Flow(_) | Step::Parse => Flow::Linger,
        }
    }

    /// Calls the handler for a complete request.
    pub(super) fn call_handler(&mut self, wire: &mut Wire<'_, Wakeup>, request: &Request<'_>) -> Response {
        let response = catch_panic(|| self.handler.call(request));
        self.record_route(wire);
        response.unwrap_or_else(|| panicked(wire, &request.head()))
    }

    /// Records the route of the request in flight, whose handler was called.
    fn record_route(&mut self, wire: &Wire<'_, Wakeup>) {
        if let Some(recorder) = &mut self.recorder {
            recorder.set_route(wire);
        }
    }

    /// Serves a request without a body. Its head is at `span` of the input and is not copied.
    #[allow(clippy::inline_always, reason = "hot path; a response is large, and a call would copy it")]
    #[inline(always)]
    pub(super) fn on_head(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        input: &[u8],
        span: Range<usize>,
    ) -> Step {
        if self.is_plain {
            self.call_and_respond::<true>(state, wire, input, span, None)
        } else {
            self.on_head_outlined(state, wire, input, span)
        }
    }

    /// Serves a request without a body on a server with an access log or options.
    #[inline(never)]
    fn on_head_outlined(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        input: &[u8],
        span: Range<usize>,
    ) -> Step {
        let real_client = self.real_client();
        let context = Context::new(wire, None, real_client.as_deref());
        let head = request_head(&input[span.clone()], &self.scratch, &context);
        let recorded = (self.recorder.as_deref_mut(), self.options.as_deref());
        if let Some(response) = begin_request(recorded, state, wire, &head, false) {
            let reply = ReplyContext::new(head.head);
            wire.consume(span.end);
            return self.respond(state, wire, reply, response);
        }
        let extensions = context.extensions.into_inner();
        self.call_and_respond::<false>(state, wire, input, span, extensions)
    }

    /// Calls the handler for a request without a body. `PLAIN`: [`HttpServer::is_plain`].
    #[allow(clippy::inline_always, reason = "hot path; a response is large, and a call would copy it")]
    #[inline(always)]
    fn call_and_respond<const PLAIN: bool>(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        input: &[u8],
        span: Range<usize>,
        extensions: Option<Box<Extensions>>,
    ) -> Step {
        let real_client = if PLAIN { None } else { self.real_client() };
        let context = Context::new(wire, extensions, real_client.as_deref());
        let (end, head_len) = (span.end, span.len());
        let request = Request { head: request_head(&input[span.clone()], &self.scratch, &context), body: &[] };
        // Panics are caught for the whole batch; see `recover`.
        self.current_request = span;
        // Destructured so that its parts are not copied.
        let Response { status, content_type, headers, shared_headers, body, close } = self.handler.call(&request);
        self.current_request = 0..0;
        wire.consume(end);
        let is_fast_path = (PLAIN || self.keeps_heads)
            && self.scratch.allows_fast_response()
            && status == StatusCode::OK
            && headers.is_empty()
            && !close
            && content_type.is_none_or(|value| std::ptr::eq(value, self.content_type))
            && !wire.draining();
        match body {
            Body::Bytes(body) if is_fast_path && (body.len() <= BATCH_BYTES || self.recorder.is_none()) => {
                wire.restart_timer();
                let now = wire.unix_time();
                match shared_headers {
                    None => write_ok(&mut self.encoder, wire.output(), now, content_type, &body),
                    Some(shared) => {
                        write_ok_with_headers(&shared, &mut self.encoder, wire.output(), now, content_type, &body);
                    }
                }
                if let Some(recorder) = &mut self.recorder {
                    let bytes = body.len() as u64;
                    if PLAIN {
                        recorder.count_ok(wire, head_len, bytes);
                    } else {
                        recorder.end_ok(wire, &request.head, bytes);
                    }
                }
                discard(context);
                Step::Responded(Next::Request)
            }
            body => {
                let mut response = Response { status, content_type, headers, shared_headers, body, close };
                let head = request.head;
                if let Some(recorder) = &mut self.recorder {
                    begin_late(recorder, wire, &head);
                }
                let reply = reply_context(&head, &mut response);
                if response.is_suspended() {
                    let (head_bytes, extensions) = (head.bytes.to_vec(), context.extensions.into_inner());
                    let head = Box::new(std::mem::take(&mut self.scratch));
                    let request = Collected::new(head_bytes, head, extensions, false);
                    return self.suspend(state, wire, request, false, response);
                }
                self.respond(state, wire, reply, response)
            }
        }
    }

    /// Serves a request with a body. The input may already contain all, part or none of the body after the head.
    pub(super) fn on_head_with_body(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        input: &[u8],
        span: Range<usize>,
    ) -> Step {
        wire.consume(span.end);
        let real_client = self.real_client();
        let context = Context::new(wire, None, real_client.as_deref());
        let scratch = std::mem::take(&mut self.scratch);
        let rest = &input[span.end..];
        let head = request_head(&input[span], &scratch, &context);
        let recorded = (self.recorder.as_deref_mut(), self.options.as_deref());
        if (recorded.0.is_some() || recorded.1.is_some())
            && let Some(response) = begin_request(recorded, state, wire, &head, true)
        {
            let reply = ReplyContext::new(head.head);
            self.scratch = scratch;
            return self.respond(state, wire, reply, response);
        }
        let outcome = self.start_body(state, wire, &head, rest);
        let exchange = match outcome {
            BodyStart::Respond(reply, response) if !response.is_suspended() => {
                self.scratch = scratch;
                return self.respond(state, wire, reply, response);
            }
            BodyStart::Receive(exchange) => {
                self.scratch = scratch;
                exchange
            }
            BodyStart::Respond(..) | BodyStart::Collect | BodyStart::Discard => {
                let (head_bytes, extensions) = (head.bytes.to_vec(), context.extensions.into_inner());
                let discards = matches!(outcome, BodyStart::Discard);
                let request = Collected::new(head_bytes, Box::new(scratch), extensions, discards);
                if let BodyStart::Respond(_, response) = outcome {
                    return self.suspend(state, wire, request, true, response);
                }
                Exchange::Collecting(request)
            }
        };
        state.exchange = Some(Box::new(exchange));
        Step::Parse
    }

    /// Asks the handler how to receive the body.
    pub(super) fn start_body(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        head: &RequestHead<'_>,
        rest: &[u8],
    ) -> BodyStart {
        let unread = |response| BodyStart::Respond(ReplyContext::with_trailers(head.head, head.bytes), response);
        let mode = catch_panic(|| self.handler.head(head));
        self.record_route(wire);
        let mode = match mode {
            Some(BodyMode::Reject(response)) => return unread(response),
            None => return unread(panicked(wire, head)),
            Some(mode) => mode,
        };
        let bytes_max = match &mode {
            BodyMode::Collect(bytes_max) | BodyMode::Stream { bytes_max, .. } | BodyMode::Read { bytes_max, .. } => {
                *bytes_max
            }
            _ => self.limits.body_bytes_max,
        };
        if let Err(error) = state.http1.set_body_limit(bytes_max) {
            return unread(error_response(error));
        }
        let discards = matches!(mode, BodyMode::Discard);
        if (discards || matches!(mode, BodyMode::Default | BodyMode::Collect(_)))
            && let Framing::Length(length) = head.head.framing()
            && let Ok(length) = usize::try_from(length)
            && let Some(body) = rest.get(..length)
        {
            state.http1.body_taken();
            wire.consume(length);
            if let Some(recorder) = &mut self.recorder {
                recorder.add_received(wire, length);
            }
            let body = if discards { &[] } else { body };
            let mut response = self.call_handler(wire, &Request { head: *head, body });
            if !response.is_suspended() {
                return BodyStart::Respond(reply_context(head, &mut response), response);
            }
            let extensions = head.context.extensions.take();
            let mut request = Collected::new(head.bytes.to_vec(), Box::new(head.head.clone()), extensions, discards);
            request.push(body);
            return BodyStart::Receive(self.suspended_exchange(wire, request, false, response));
        }
        if head.head.expects_continue() && rest.is_empty() {
            wire.output().extend(CONTINUE);
        }
        let reply = ReplyContext::with_trailers(head.head, head.bytes);
        match mode {
            BodyMode::Stream { sink, .. } => BodyStart::Receive(Exchange::Streaming(
                reply,
                Streaming::new(sink, Offer::of(head.head, head.bytes, reply)),
            )),
            BodyMode::Read { start, .. } => {
                BodyStart::Receive(self.start_reader(wire, (reply, Offer::of(head.head, head.bytes, reply)), start))
            }
            BodyMode::Discard => BodyStart::Discard,
            _ => BodyStart::Collect,
        }
    }

    /// Starts feeding the request body to a reader on another thread.
    fn start_reader(
        &self,
        wire: &mut Wire<'_, Wakeup>,
        (reply, offer): (ReplyContext, Offer),
        start: Box<dyn FnOnce(BodyReader, Responder)>,
    ) -> Exchange {
        let (feed, reader) = Pipe::open();
        let (deferred, responder) = Responder::new();
        if let Some(id) = self.exchange_id(wire) {
            feed.attach(id.clone(), &self.buffer_limit);
            deferred.attach(id, wire.draining());
        }
        // On a panic the dropped responder replies 500.
        if catch_panic(|| start(reader, responder)).is_none() {
            wire.count_panic();
            log::error!("body reader start-up closure panicked");
        }
        let mut pending = PendingReply::new(deferred);
        pending.offer = offer;
        Exchange::Reading(reply, feed, Box::new(pending))
    }
}
