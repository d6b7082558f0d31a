//! Where the body of a request goes, piece by piece, and who answers at its end.

use http::Extensions;

use super::head::guard;
use super::{Conversation, Exchange, Step, Waiting};
use crate::http1::{Framing, Head};
use crate::httpserver::link::Nudge;
use crate::httpserver::response;
use crate::httpserver::{Handler, HttpServer, Take, Trailers};
use crate::r#loop::{Flow, Phase, Wire};

/// The body of a request is collected in steps of its own growth, never by what was announced, up to here.
const BODY_RESERVE_MAX: u64 = 64 * 1024;

/// A request whose body is on its way.
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
    pub(super) fn take_piece(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>, bytes: &[u8]) -> Step {
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
    pub(super) fn end_body(&mut self, state: &mut Conversation, wire: &mut Wire<'_, Nudge>) -> Step {
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
}
