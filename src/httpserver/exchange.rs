//! The steps of an exchange after its head: receives the request body, responds, and sends a streamed body. Also
//! suspends requests, whose handler is called again once another thread has supplied the missing information; they are
//! kept in memory until then, and requests pipelined behind them are not parsed.

use std::io;

use bytes::Bytes;
use http::StatusCode;

use super::body_stream::{BATCH_BYTES, BodyWriter, Progress, Stream};
use super::buffer_limit::Status;
use super::deferred::{BodyWait, Responder, Resumed};
use super::exchange_handle::{ExchangeId, Wakeup};
use super::handler::{BodyFlow, Handler};
use super::headers::{HeaderBlock, Trailers};
use super::http_connection::{BodyStart, Collected, Exchange, HttpConnection, Step, Streaming, Suspended, Waiting};
use super::offer::Offer;
use super::request::{Context, Request};
use super::response::{self, Body, Outcome, PendingReply, Response};
use super::serve_head::{catch_panic, reply_context, request_head};
use super::server::HttpServer;
use super::session::{ActiveSession, Session};
use crate::http1::{Next, Reply, ReplyContext, Responded, is_header_value};
use crate::r#loop::{Flow, Phase, Wire};

impl<H: Handler> HttpServer<H> {
    /// Advances an exchange that needs no input: checks for its response, or sends more of it.
    pub(super) fn advance(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Step {
        match state.exchange.as_deref_mut() {
            Some(Exchange::Waiting(reply, waiting)) => {
                let reply = *reply;
                // Only suspended requests yield `Outcome::Retry`.
                let Some(Outcome::Response(mut response)) = waiting.pending.take() else {
                    return Step::Flow(Flow::Pause);
                };
                response.merge(&waiting.headers, waiting.close);
                waiting.pending.deferred.handle.release();
                let reply = std::mem::take(&mut waiting.pending.offer).apply(reply, &mut response);
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
            Some(Exchange::Collecting(request)) => {
                let status = request.status();
                self.follow(state, wire, status)
            }
            Some(Exchange::Streaming(..)) => self.advance_sink(state, wire),
            Some(Exchange::Reading(reply, feed, pending)) => {
                let Some(Outcome::Response(response)) = pending.take() else {
                    let status = feed.status();
                    return self.follow(state, wire, status);
                };
                let reply = *reply;
                // The response came before the end of the body, so the rest of the body stays unread.
                pending.deferred.handle.release();
                state.exchange = None;
                self.respond(state, wire, reply, response)
            }
            Some(Exchange::Sending(writer)) => match writer.pump(wire.output()) {
                Progress::More => Step::Flow(Flow::Yield(state.phase())),
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
            Some(Exchange::Session(active)) => Step::Flow(active.session().receive(wire)),
            Some(Exchange::Flushing(..)) if !wire.output().is_empty() => Step::Flow(Flow::Yield(state.phase())),
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
}

fn sink_panicked(wire: &mut Wire<'_, Wakeup>) -> Response {
    log::error!("body sink panicked on a request of {}; replied 500", wire.addrs().client());
    wire.count_panic();
    response::internal_error()
}

impl<H: Handler> HttpServer<H> {
    /// Handles a chunk of the request body.
    pub(super) fn on_body_chunk(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        bytes: &[u8],
    ) -> Step {
        if let Some(recorder) = &mut self.recorder {
            recorder.add_received(wire, bytes.len());
        }
        match state.exchange.as_deref_mut() {
            Some(Exchange::Collecting(request)) if !request.discards => {
                request.push(bytes);
                return self.count_body(state, wire, bytes.len());
            }
            Some(Exchange::Streaming(reply, body)) => {
                let reply = *reply;
                let response = match catch_panic(|| body.sink.chunk(bytes)) {
                    Some(BodyFlow::Continue) => return Step::Parse,
                    Some(BodyFlow::Wait(wait)) => {
                        self.start_wait(state, wire, wait, bytes.len());
                        return Step::Parse;
                    }
                    Some(BodyFlow::Respond(response)) => response,
                    None => sink_panicked(wire),
                };
                state.exchange = None;
                return self.respond(state, wire, reply, response);
            }
            Some(Exchange::Reading(_, feed, _)) => {
                let status = feed.push(bytes);
                return self.follow(state, wire, status);
            }
            _ => {}
        }
        Step::Parse
    }

    /// Pauses the upload until the sink, which holds a chunk of `held_bytes`, is resumed. Takes effect in
    /// [`HttpServer::advance`].
    fn start_wait(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        mut wait: BodyWait,
        held_bytes: usize,
    ) {
        let id = self.exchange_id(wire);
        let Some(Exchange::Streaming(_, body)) = state.exchange.as_deref_mut() else { return };
        if let Some(id) = id {
            wait.attach(id.clone(), wire.draining());
            body.lease.get_or_insert_with(|| self.buffer_limit.add(id)).set(held_bytes, held_bytes);
        }
        body.wait = Some(wait);
    }

    /// Continues an upload whose sink waits or has waited.
    fn advance_sink(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Step {
        let Some(Exchange::Streaming(reply, body)) = state.exchange.as_deref_mut() else { return Step::Parse };
        let mut status = body.status();
        if status != Status::Rejected
            && let Some(wait) = &mut body.wait
        {
            match wait.take() {
                None => return Step::Flow(Flow::Pause),
                Some(Resumed::Continue) => status = body.end_wait(),
                Some(Resumed::Respond(response)) => {
                    let reply = *reply;
                    state.exchange = None;
                    return self.respond(state, wire, reply, response);
                }
            }
        }
        self.follow(state, wire, status)
    }

    /// Counts a chunk towards the memory of all bodies. Pauses reading at the limit.
    fn count_body(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, received: usize) -> Step {
        let Some(Exchange::Collecting(request)) = state.exchange.as_deref_mut() else { return Step::Parse };
        if request.lease.is_none() {
            request.lease = self.exchange_id(wire).map(|id| self.buffer_limit.add(id));
        }
        let bytes = request.body.capacity() + request.head_bytes.capacity();
        let status = request.lease.as_ref().map_or(Status::Running, |lease| lease.set(bytes, received));
        self.follow(state, wire, status)
    }

    /// Continues, pauses or rejects an upload, depending on the limit on the memory of all bodies.
    fn follow(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, status: Status) -> Step {
        match status {
            Status::Running => Step::Parse,
            Status::Waiting => Step::Flow(Flow::Pause),
            Status::Rejected => self.reject_body(state, wire),
        }
    }

    /// Rejects a request because the memory of all bodies is used up.
    fn reject_body(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Step {
        let context = match state.exchange.take().as_deref() {
            Some(Exchange::Collecting(request)) => ReplyContext::new(&request.head),
            Some(Exchange::Reading(reply, feed, _)) => {
                feed.end(Err(io::ErrorKind::InvalidData));
                *reply
            }
            Some(Exchange::Streaming(reply, _)) => *reply,
            _ => return Step::Parse,
        };
        let client = wire.addrs();
        log::debug!("rejected an upload of {} with 503: the limit on buffered bodies is reached", client.client());
        let response = Response::error(StatusCode::SERVICE_UNAVAILABLE, "too many uploads in progress\n");
        self.respond(state, wire, context, response.header("Retry-After", "5"))
    }

    /// Responds, or waits for the response, once the request body is complete.
    pub(super) fn on_body_end(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Step {
        let Some(exchange) = state.exchange.take() else { return Step::Parse };
        match *exchange {
            Exchange::Collecting(collected) => self.call_collected(state, wire, collected),
            Exchange::Streaming(reply, body) => {
                let trailers = Trailers::received(state.http1.trailers());
                let Streaming { sink, offer, .. } = body;
                let mut response = catch_panic(|| sink.end(&trailers)).unwrap_or_else(|| sink_panicked(wire));
                let reply = offer.apply(reply, &mut response);
                self.respond(state, wire, reply, response)
            }
            Exchange::Reading(reply, feed, pending) => {
                feed.end(Ok(Trailers::received(state.http1.trailers())));
                let waiting = Waiting { pending: *pending, headers: Vec::new(), close: false };
                state.exchange = Some(Box::new(Exchange::Waiting(reply, Box::new(waiting))));
                Step::Parse
            }
            other => {
                state.exchange = Some(Box::new(other));
                Step::Parse
            }
        }
    }
}

impl<H: Handler> HttpServer<H> {
    /// Suspends a request until its [`Responder`](crate::Responder) responds or resumes it.
    pub(super) fn suspend(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        request: Collected,
        at_head: bool,
        response: Response,
    ) -> Step {
        state.exchange = Some(Box::new(self.suspended_exchange(wire, request, at_head, response)));
        Step::Parse
    }

    pub(super) fn suspended_exchange(
        &self,
        wire: &Wire<'_, Wakeup>,
        request: Collected,
        at_head: bool,
        response: Response,
    ) -> Exchange {
        let Response { body, headers, close, .. } = response;
        let mut pending =
            if let Body::Deferred(pending) = body { *pending } else { PendingReply::new(Responder::new().0) };
        if let Some(id) = self.exchange_id(wire) {
            pending.attach(id, wire.draining());
        }
        let waiting = Waiting { pending, headers, close };
        Exchange::Suspended(Box::new(Suspended { request, at_head, waiting }))
    }

    /// Resumes a suspended request with a response or a retry: at most one in a turn, since a handler that suspends the
    /// request again may have resumed it already.
    fn resume(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        suspended: Suspended,
        outcome: Outcome,
    ) -> Step {
        let Suspended { mut request, at_head, waiting } = suspended;
        waiting.pending.deferred.handle.release();
        let insert = match outcome {
            Outcome::Retry(insert) => insert,
            Outcome::Response(mut response) => {
                response.merge(&waiting.headers, waiting.close);
                let reply = ReplyContext::with_trailers(&request.head, &request.head_bytes);
                let offer = Offer::of(&request.head, &request.head_bytes, reply);
                let reply = offer.apply(reply, &mut response);
                return self.respond(state, wire, reply, response);
            }
        };
        insert(request.extensions.get_or_insert_default());
        let step =
            if at_head { self.retry_head(state, wire, request) } else { self.call_collected(state, wire, request) };
        match state.exchange.as_deref() {
            Some(Exchange::Suspended(_)) => Step::Flow(Flow::Yield(state.phase())),
            _ => step,
        }
    }

    /// Calls the handler for a request held in memory.
    fn call_collected(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, request: Collected) -> Step {
        let Collected { head_bytes, head, extensions, body, discards, lease } = request;
        let real_client = self.real_client();
        let context = Context::new(wire, extensions, real_client.as_deref());
        let request_head = request_head(&head_bytes, &head, &context);
        let mut response = self.call_handler(wire, &Request { head: request_head, body: &body });
        let reply = reply_context(&request_head, &mut response);
        if response.is_suspended() {
            let request =
                Collected { head_bytes, head, extensions: context.extensions.into_inner(), body, discards, lease };
            return self.suspend(state, wire, request, false, response);
        }
        self.respond(state, wire, reply, response)
    }

    /// Calls [`Handler::head`] again for a request whose body has not been read.
    fn retry_head(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, request: Collected) -> Step {
        let Collected { head_bytes, head, extensions, body, discards, lease } = request;
        let real_client = self.real_client();
        let context = Context::new(wire, extensions, real_client.as_deref());
        // Buffered body bytes are consumed in a later turn.
        let outcome = self.start_body(state, wire, &request_head(&head_bytes, &head, &context), &[]);
        let discards = discards || matches!(outcome, BodyStart::Discard);
        let request =
            Collected { head_bytes, head, extensions: context.extensions.into_inner(), body, discards, lease };
        let exchange = match outcome {
            BodyStart::Respond(_, response) if response.is_suspended() => {
                return self.suspend(state, wire, request, true, response);
            }
            BodyStart::Respond(reply, response) => return self.respond(state, wire, reply, response),
            BodyStart::Receive(exchange) => exchange,
            BodyStart::Collect | BodyStart::Discard => Exchange::Collecting(request),
        };
        state.exchange = Some(Box::new(exchange));
        Step::Parse
    }
}

impl<H> HttpServer<H> {
    /// Returns the id through which other threads wake the loop for the exchange that begins now.
    pub(super) fn exchange_id(&self, wire: &Wire<'_, Wakeup>) -> Option<ExchangeId> {
        Some(ExchangeId { remote: self.remote.clone()?, connection: wire.id() })
    }
}

impl<H: Handler> HttpServer<H> {
    /// Writes the response, starts waiting for a deferred one, or starts streaming the body.
    pub(super) fn respond(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        reply: ReplyContext,
        mut response: Response,
    ) -> Step {
        response.check(&mut self.content_type);
        if let (Body::Bytes(body), None) = (&response.body, &self.recorder) {
            wire.restart_timer();
            return Step::Responded(self.send_whole(state, wire, reply, &response, body));
        }
        self.respond_in_steps(state, wire, reply, response)
    }

    /// Writes a response whose body is in memory.
    pub(super) fn send_whole(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        context: ReplyContext,
        response: &Response,
        body: &Bytes,
    ) -> Next {
        let length = Some(body.len() as u64);
        let Responded { content, next } = self.send_head(state, wire, context, response, length, None);
        if content.is_some() {
            wire.output().push(body);
        }
        next
    }

    /// Out-of-line version of [`Self::send_head`], shared by its callers off the hot path.
    #[inline(never)]
    fn send_head_outlined(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        context: ReplyContext,
        response: &Response,
        length: Option<u64>,
        trailer_names: Option<&str>,
    ) -> Responded {
        self.send_head(state, wire, context, response, length, trailer_names)
    }

    /// Writes the head of a response whose content has `length` bytes, or an unknown number.
    #[allow(clippy::inline_always, reason = "hot path of the last response on a connection")]
    #[inline(always)]
    fn send_head(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        context: ReplyContext,
        response: &Response,
        length: Option<u64>,
        trailer_names: Option<&str>,
    ) -> Responded {
        let (mut close, mut keep_alive) = (response.close || wire.draining(), &b""[..]);
        if let Some(options) = &self.options {
            close |= state.requests >= options.requests_max;
            keep_alive = &options.keep_alive;
        }
        let reply = Reply {
            status: response.status,
            content_type: response.content_type,
            headers: &response.headers,
            shared_headers: response.shared_headers.as_deref().map_or(&b""[..], HeaderBlock::lines),
            length,
            trailer_names,
            close,
            keep_alive,
        };
        let now = wire.unix_time();
        let responded = state.http1.respond(&mut self.encoder, wire.output().buffer(), now, context, &reply);
        if let Some(options) = &self.options {
            options.add_hsts(wire, response);
        }
        responded
    }

    /// Handles the responses that are not on the fast path of [`Self::respond`]: the body is not in memory, or the
    /// response is logged.
    fn respond_in_steps(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        reply: ReplyContext,
        mut response: Response,
    ) -> Step {
        if let Some(recorder) = self.recorder.as_mut().filter(|_| !matches!(response.body, Body::Deferred(_))) {
            response = recorder.add_id(wire, response);
        }
        let exchange = match std::mem::replace(&mut response.body, Body::Bytes(Bytes::new())) {
            Body::Deferred(mut pending) => {
                // The request is not kept here, so it cannot be resumed.
                pending.suspended = false;
                if let Some(id) = self.exchange_id(wire) {
                    pending.attach(id, wire.draining());
                }
                let Response { headers, close, .. } = response;
                Exchange::Waiting(reply, Box::new(Waiting { pending: *pending, headers, close }))
            }
            Body::Stream(stream) => match self.start_stream(state, wire, reply, &response, *stream) {
                Ok(writer) => Exchange::Sending(writer),
                Err(next) => {
                    self.log_end(wire, 0);
                    return Step::Responded(next);
                }
            },
            Body::Session(session) => return self.start_session(state, wire, reply, response, session),
            body => {
                wire.restart_timer();
                let len = body.len().unwrap_or(0);
                let Responded { content, next } =
                    self.send_head_outlined(state, wire, reply, &response, Some(len), None);
                let with_body = content.is_some();
                let logs_after_flush = self.logs_after_flush(&body);
                if with_body {
                    body.push(wire.output());
                }
                if !(with_body && logs_after_flush) {
                    if let Some(recorder) = &mut self.recorder {
                        recorder.end_at_once(wire, response.status, if with_body { len } else { 0 });
                    }
                    return Step::Responded(next);
                }
                self.log_status(wire, response.status);
                Exchange::Flushing(next, len)
            }
        };
        state.exchange = Some(Box::new(exchange));
        Step::Parse
    }

    /// Writes the response head with which the connection leaves HTTP, and starts the session.
    fn start_session(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        context: ReplyContext,
        response: Response,
        session: Box<dyn Session>,
    ) -> Step {
        wire.restart_timer();
        let shared_headers = response.shared_headers.as_deref().map_or(&b""[..], HeaderBlock::lines);
        let reply = Reply::new(response.status).headers(&response.headers).shared_headers(shared_headers);
        let (now, is_unread) = (wire.unix_time(), state.http1.is_within_body());
        let (is_draining, output) = (wire.draining(), wire.output().buffer());
        if is_draining || !state.http1.switch(&mut self.encoder, output, now, context, &reply) {
            let refusal = response.refuse_session(is_draining, is_unread);
            return self.respond(state, wire, context, refusal);
        }
        self.log_status(wire, response.status);
        self.log_end(wire, 0);
        let active = ActiveSession::open(session, self.exchange_id(wire));
        state.exchange = Some(Box::new(Exchange::Session(active)));
        Step::Flow(Flow::Yield(Phase::Unlimited))
    }

    /// Returns whether the response is logged only after it is sent, because sending may fail or take long.
    fn logs_after_flush(&self, body: &Body) -> bool {
        self.recorder.is_some() && !matches!(body, Body::Bytes(bytes) if bytes.len() <= BATCH_BYTES)
    }

    #[inline]
    fn log_status(&mut self, wire: &Wire<'_, Wakeup>, status: http::StatusCode) {
        if let Some(recorder) = &mut self.recorder {
            recorder.set_status(wire, status);
        }
    }

    /// Logs the end of a response after `bytes` bytes of content.
    #[inline]
    fn log_end(&mut self, wire: &Wire<'_, Wakeup>, bytes: u64) {
        if let Some(recorder) = &mut self.recorder {
            recorder.end(wire, bytes);
        }
    }

    /// Writes the head of a streamed response. Returns `Err` if no body follows.
    fn start_stream(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        context: ReplyContext,
        response: &Response,
        stream: Stream,
    ) -> Result<BodyWriter, Next> {
        wire.restart_timer();
        let names = stream.trailers.as_ref().map(|(names, _)| names.as_str());
        let names = names.filter(|names| is_header_value(names.as_bytes()));
        let Responded { content, next } = self.send_head_outlined(state, wire, context, response, stream.length, names);
        self.log_status(wire, response.status);
        let Some(framing) = content else { return Err(next) };
        let writer = BodyWriter::new(stream, framing, next);
        if let Some(id) = self.exchange_id(wire) {
            writer.attach(id, wire.draining());
        }
        Ok(writer)
    }
}
