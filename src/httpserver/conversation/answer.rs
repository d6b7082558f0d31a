//! How an answer leaves: at once, when it is given, or piece by piece; and what is written down of it.

use super::{Conversation, Exchange, Step, Waiting};
use crate::http1::{Length, Version};
use crate::httpserver::link::{Nudge, Place};
use crate::httpserver::outgoing::{Coding, Outgoing, Stream};
use crate::httpserver::response::Body;
use crate::httpserver::{
    Asked, BATCH_BYTES, Handler, HttpServer, Next, Response, write_head, write_known, write_whole,
};
use crate::r#loop::{Phase, Wire};

impl<H: Handler> HttpServer<H> {
    /// Where other threads will reach the exchange that begins now.
    pub(super) fn place(&self, wire: &Wire<'_, Nudge>) -> Option<Place> {
        Some(Place { remote: self.remote.clone()?, id: wire.id() })
    }

    /// Writes the response, or begins to wait for it, or to send it piece by piece.
    pub(super) fn answer(
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
    pub(super) fn tell_status(&mut self, wire: &Wire<'_, Nudge>, status: http::StatusCode) {
        if let Some(journal) = &mut self.journal {
            journal.answer(wire, status);
        }
    }

    /// The answer has ended, after so many octets of content.
    #[inline]
    pub(super) fn write_down(&mut self, wire: &Wire<'_, Nudge>, bytes: u64) {
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
}
