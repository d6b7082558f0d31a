//! Receives request bodies: passes each chunk on, and responds at the end.

use http::Extensions;

use super::head::catch_panic;
use super::{Exchange, HttpConnection, Step, Waiting};
use crate::http1::{Framing, Head};
use crate::httpserver::exchange_handle::Wakeup;
use crate::httpserver::response;
use crate::httpserver::{BodyFlow, Handler, HttpServer, Trailers};
use crate::r#loop::{Flow, Phase, Wire};

/// Maximum number of bytes reserved for a request body because of its Content-Length. Beyond that the buffer grows as
/// the body arrives, so a client cannot cause a large allocation by merely declaring a length.
const BODY_RESERVE_MAX: u64 = 64 * 1024;

/// A request held in memory, with the part of its body that has been collected so far.
pub(super) struct Collected {
    pub(super) head_bytes: Vec<u8>,
    pub(super) head: Box<Head>,
    pub(super) extensions: Option<Box<Extensions>>,
    pub(super) body: Vec<u8>,
}

impl Collected {
    pub(super) fn new(head_bytes: Vec<u8>, head: Box<Head>, extensions: Option<Box<Extensions>>) -> Self {
        let reserve = if let Framing::Length(length) = head.framing() { length } else { 0 };
        let body = Vec::with_capacity(usize::try_from(reserve.min(BODY_RESERVE_MAX)).unwrap_or(0));
        Collected { head_bytes, head, extensions, body }
    }
}

impl<H: Handler> HttpServer<H> {
    /// Handles a chunk of the request body.
    pub(super) fn on_body_chunk(
        &mut self,
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        bytes: &[u8],
    ) -> Step {
        match state.exchange.as_deref_mut() {
            Some(Exchange::Collecting(collected)) => collected.body.extend_from_slice(bytes),
            Some(Exchange::Streaming(reply, sink)) => {
                let reply = reply.with_unread_body();
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
            Some(Exchange::Reading(_, feed, _)) if !feed.push(bytes) => return Step::Flow(Flow::Pause),
            _ => {}
        }
        Step::Parse
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
                state.phase = Phase::Handling;
                Step::Parse
            }
            other => {
                state.exchange = Some(Box::new(other));
                Step::Parse
            }
        }
    }
}
