//! Suspended requests: the handler is called again once another thread has supplied the missing information.
//!
//! The request is kept in memory until then, and requests pipelined behind it are not parsed.

use super::body::Collected;
use super::head::request_head;
use super::{Exchange, HttpConnection, Step, Waiting};
use crate::httpserver::deferred::{Deferred, Outcome};
use crate::httpserver::exchange_handle::Wakeup;
use crate::httpserver::request::Context;
use crate::httpserver::response::{Body, PendingReply};
use crate::httpserver::{Handler, HttpServer, ReplyContext, Request, Response};
use crate::r#loop::{Phase, Wire};

/// A request for which the handler will be called again.
pub(super) struct Suspended {
    pub(super) request: Collected,
    /// Suspended by [`Handler::head`], before the body was received.
    at_head: bool,
    pub(super) waiting: Waiting,
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
        state.phase = Phase::Handling;
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
        let pending = if let Body::Deferred(pending) = body { *pending } else { PendingReply::new(Deferred::new().0) };
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
                let reply = ReplyContext::new(&head).with_trailers(&head);
                let reply = if at_head { reply.with_unread_body() } else { reply };
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
        let Collected { head_bytes, head, extensions, body } = request;
        let context = Context::new(wire, extensions);
        let request_head = request_head(&head_bytes, &head, &context);
        let response = self.call_handler(wire, &Request { head: request_head, body: &body });
        let reply = ReplyContext::for_response(&request_head, &response);
        if response.is_suspended() {
            let request = Collected { head_bytes, head, extensions: context.extensions.into_inner(), body };
            return self.suspend(state, wire, request, false, response);
        }
        self.respond(state, wire, reply, response)
    }

    /// Calls [`Handler::head`] again for a request whose body has not been read.
    fn retry_head(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, request: Collected) -> Step {
        let Collected { head_bytes, head, extensions, body } = request;
        let context = Context::new(wire, extensions);
        // Buffered body bytes are consumed in a later turn.
        let outcome = self.start_body(state, wire, &request_head(&head_bytes, &head, &context), &[]);
        let request = Collected { head_bytes, head, extensions: context.extensions.into_inner(), body };
        match outcome {
            Ok((_, response)) if response.is_suspended() => self.suspend(state, wire, request, true, response),
            Ok((reply, response)) => self.respond(state, wire, reply, response),
            Err(exchange) => {
                state.exchange = Some(Box::new(exchange.unwrap_or(Exchange::Collecting(request))));
                state.phase = Phase::Body;
                Step::Parse
            }
        }
    }
}
