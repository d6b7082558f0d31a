//! Receives request bodies: passes each chunk on, and responds at the end. Also suspends requests, whose handler is called
//! again once another thread has supplied the missing information; they are kept in memory until then, and requests
//! pipelined behind them are not parsed.

use std::io;

use http::StatusCode;

use super::buffer_limit::Status;
use super::deferred::Responder;
use super::exchange::{BodyStart, Collected, Exchange, HttpConnection, Step, Suspended, Waiting};
use super::exchange_handle::Wakeup;
use super::handler::{BodyFlow, Handler};
use super::headers::Trailers;
use super::request::{Context, Request};
use super::response::{self, Body, Outcome, PendingReply, Response};
use super::serve_head::{catch_panic, reply_context, request_head};
use super::server::HttpServer;
use crate::http1::ReplyContext;
use crate::r#loop::{Flow, Wire};

impl<H: Handler> HttpServer<H> {
    /// Handles a chunk of the request body.
    pub(super) fn on_body_chunk(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        bytes: &[u8],
    ) -> Step {
        match state.exchange.as_deref_mut() {
            Some(Exchange::Collecting(request)) if !request.discards => {
                request.push(bytes);
                return self.count_body(state, wire, bytes.len());
            }
            Some(Exchange::Streaming(reply, sink)) => {
                let reply = *reply;
                let response = match catch_panic(|| sink.chunk(bytes)) {
                    Some(BodyFlow::Continue) => return Step::Parse,
                    Some(BodyFlow::Respond(response)) => response,
                    None => {
                        log::error!("body sink panicked; replied 500");
                        wire.count_panic();
                        response::internal_error()
                    }
                };
                state.exchange = None;
                return self.respond(state, wire, reply, response);
            }
            Some(Exchange::Reading(_, feed, _)) => {
                return match feed.push(bytes) {
                    Status::Running => Step::Parse,
                    Status::Waiting => Step::Flow(Flow::Pause),
                    Status::Rejected => self.reject_body(state, wire),
                };
            }
            _ => {}
        }
        Step::Parse
    }

    /// Counts a chunk towards the memory of all bodies. Pauses reading at the limit.
    fn count_body(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, received: usize) -> Step {
        let id = self.exchange_id(wire);
        let Some(Exchange::Collecting(request)) = state.exchange.as_deref_mut() else { return Step::Parse };
        if request.lease.is_none() {
            request.lease = id.map(|id| self.buffer_limit.add(id));
        }
        let bytes = request.body.capacity() + request.head_bytes.capacity();
        match request.lease.as_ref().map_or(Status::Running, |lease| lease.set(bytes, received)) {
            Status::Running => Step::Parse,
            Status::Waiting => Step::Flow(Flow::Pause),
            Status::Rejected => self.reject_body(state, wire),
        }
    }

    /// Rejects a request because the memory of all bodies is used up.
    pub(super) fn reject_body(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Step {
        let context = match state.exchange.take().as_deref() {
            Some(Exchange::Collecting(request)) => ReplyContext::new(&request.head),
            Some(Exchange::Reading(reply, feed, _)) => {
                feed.end(Err(io::ErrorKind::InvalidData));
                *reply
            }
            _ => return Step::Parse,
        };
        log::debug!("rejected an upload with 503: the limit on buffered request bodies is reached");
        let response = Response::error(StatusCode::SERVICE_UNAVAILABLE, "too many uploads in progress\n");
        self.respond(state, wire, context, response.header("Retry-After", "5"))
    }

    /// Responds, or waits for the response, once the request body is complete.
    pub(super) fn on_body_end(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Step {
        let Some(exchange) = state.exchange.take() else { return Step::Parse };
        match *exchange {
            Exchange::Collecting(collected) => self.call_collected(state, wire, collected),
            Exchange::Streaming(reply, sink) => {
                let trailers = Trailers::received(state.http1.trailers());
                let response = response::catch_panic(|| sink.end(&trailers));
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
        let pending = if let Body::Deferred(pending) = body { *pending } else { PendingReply::new(Responder::new().0) };
        if let Some(id) = self.exchange_id(wire) {
            pending.deferred.attach(id, wire.draining());
        }
        let waiting = Waiting { pending, headers, close };
        Exchange::Suspended(Box::new(Suspended { request, at_head, waiting }))
    }

    /// Resumes a suspended request with a response or a retry.
    pub(super) fn resume(
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
                let context = Context::new(wire, request.extensions);
                let head = request_head(&request.head_bytes, &request.head, &context);
                let reply = ReplyContext::with_trailers(head.head, head.bytes);
                return self.respond(state, wire, reply, response);
            }
        };
        insert(request.extensions.get_or_insert_default());
        if at_head { self.retry_head(state, wire, request) } else { self.call_collected(state, wire, request) }
    }

    /// Calls the handler for a request held in memory.
    pub(super) fn call_collected(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        request: Collected,
    ) -> Step {
        let Collected { head_bytes, head, extensions, body, discards, lease } = request;
        let context = Context::new(wire, extensions);
        let request_head = request_head(&head_bytes, &head, &context);
        let response = self.call_handler(wire, &Request { head: request_head, body: &body });
        let reply = reply_context(&request_head, &response);
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
        let context = Context::new(wire, extensions);
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
