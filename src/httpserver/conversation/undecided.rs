//! Requests that the handler is asked about again, once something was found out elsewhere.
//!
//! The request is kept meanwhile, and nothing is read behind it.

use super::body::Collected;
use super::head::request_head;
use super::{Conversation, Exchange, Step, Waiting};
use crate::httpserver::later::{Late, Outcome};
use crate::httpserver::link::Nudge;
use crate::httpserver::request::Context;
use crate::httpserver::response::{Body, Pending};
use crate::httpserver::{Asked, Handler, HttpServer, Request, Response};
use crate::r#loop::{Phase, Wire};

/// A request that the handler will be asked about again.
pub(super) struct Undecided {
    pub(super) request: Collected,
    /// It was asked about the head alone, before the body came.
    by_head: bool,
    pub(super) waiting: Waiting,
}

impl<H: Handler> HttpServer<H> {
    /// Waits for what is found out elsewhere, with the request at hand.
    pub(super) fn set_aside(
        &mut self,
        state: &mut Conversation,
        wire: &mut Wire<'_, Nudge>,
        request: Collected,
        by_head: bool,
        response: Response,
    ) -> Step {
        state.exchange = Some(Box::new(self.undecided(wire, request, by_head, response)));
        state.phase = Phase::Reply;
        Step::Parse
    }

    pub(super) fn undecided(
        &self,
        wire: &Wire<'_, Nudge>,
        request: Collected,
        by_head: bool,
        response: Response,
    ) -> Exchange {
        let Response { body, fields, close, .. } = response;
        let pending = if let Body::Later(pending) = body { *pending } else { Pending::new(Late::new().0) };
        if let Some(place) = self.place(wire) {
            pending.late.bind(place, wire.draining());
        }
        let waiting = Waiting { pending, fields, close };
        Exchange::Undecided(Box::new(Undecided { request, by_head, waiting }))
    }

    /// What was waited for is there: an answer, or the word to ask the handler again.
    pub(super) fn decide(
        &mut self,
        state: &mut Conversation,
        wire: &mut Wire<'_, Nudge>,
        undecided: Undecided,
        outcome: Outcome,
    ) -> Step {
        let Undecided { mut request, by_head, waiting } = undecided;
        waiting.pending.late.link.release();
        let found = match outcome {
            Outcome::Again(found) => found,
            Outcome::Response(mut response) => {
                response.inherit(&waiting.fields, waiting.close);
                let context = Context::new(wire, request.extensions);
                let head = request_head(&request.head_bytes, &request.head, &context);
                let asked = Asked::by(&head).with_trailers(&head);
                let asked = if by_head { asked.unread() } else { asked };
                return self.answer(state, wire, asked, response);
            }
        };
        found(request.extensions.get_or_insert_default());
        if by_head { self.ask_about_head(state, wire, request) } else { self.ask(state, wire, request) }
    }

    /// Calls the handler for a request that was kept.
    pub(super) fn ask(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>, request: Collected) -> Step {
        let Collected { head_bytes, head, extensions, body } = request;
        let context = Context::new(wire, extensions);
        let request_head = request_head(&head_bytes, &head, &context);
        let response = self.respond(wire, &Request { head: request_head, body: &body });
        let asked = Asked::about(&request_head, &response);
        if response.is_undecided() {
            let request = Collected { head_bytes, head, extensions: context.extensions.into_inner(), body };
            return self.set_aside(state, wire, request, false, response);
        }
        self.answer(state, wire, asked, response)
    }

    /// Asks the handler anew what is to become of a body, none of which was read so far.
    fn ask_about_head(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>, request: Collected) -> Step {
        let Collected { head_bytes, head, extensions, body } = request;
        let context = Context::new(wire, extensions);
        // What stands behind the head is taken in a turn of its own.
        let outcome = self.take_body(state, wire, &request_head(&head_bytes, &head, &context), &[]);
        let request = Collected { head_bytes, head, extensions: context.extensions.into_inner(), body };
        match outcome {
            Ok((_, response)) if response.is_undecided() => self.set_aside(state, wire, request, true, response),
            Ok((asked, response)) => self.answer(state, wire, asked, response),
            Err(exchange) => {
                state.exchange = Some(Box::new(exchange.unwrap_or(Exchange::Collecting(request))));
                state.phase = Phase::Body;
                Step::Parse
            }
        }
    }
}
