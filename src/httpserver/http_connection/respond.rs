//! Sends complete, deferred and streamed responses, and records them for the access log.

use super::{Exchange, HttpConnection, Step, Waiting};
use crate::http1::{Length, Version};
use crate::httpserver::body_stream::{BodyWriter, Framing, Stream};
use crate::httpserver::exchange_handle::{ExchangeId, Wakeup};
use crate::httpserver::response::Body;
use crate::httpserver::{
    BATCH_BYTES, Handler, HttpServer, Next, ReplyContext, Response, write_head, write_head_with_length, write_whole,
};
use crate::r#loop::{Phase, Wire};

impl<H: Handler> HttpServer<H> {
    /// Returns the id through which other threads wake the loop for the exchange that begins now.
    pub(super) fn exchange_id(&self, wire: &Wire<'_, Wakeup>) -> Option<ExchangeId> {
        Some(ExchangeId { remote: self.remote.clone()?, connection: wire.id() })
    }

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
            return Step::Responded(write_whole(&mut self.encoder, wire, reply, &response, body));
        }
        self.respond_in_steps(state, wire, reply, response)
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
        let exchange = match std::mem::replace(&mut response.body, Body::Bytes(bytes::Bytes::new())) {
            Body::Deferred(mut pending) => {
                // The request is not kept here, so it cannot be resumed.
                pending.suspended = false;
                if let Some(id) = self.exchange_id(wire) {
                    pending.deferred.attach(id, wire.draining());
                }
                let Response { headers, close, .. } = response;
                Exchange::Waiting(reply, Box::new(Waiting { pending: *pending, headers, close }))
            }
            Body::Stream(stream) => match self.start_stream(wire, reply, response, *stream) {
                Ok(writer) => Exchange::Sending(writer),
                Err(next) => {
                    self.log_end(wire, 0);
                    return Step::Responded(next);
                }
            },
            body => {
                wire.restart_timer();
                let len = body.len().unwrap_or(0);
                let (next, with_body) = write_head_with_length(&mut self.encoder, wire, reply, &response, len);
                let logs_after_flush = self.logs_after_flush(&body);
                if with_body {
                    body.push(wire.output());
                }
                self.log_status(wire, response.status);
                if !(with_body && logs_after_flush) {
                    self.log_end(wire, if with_body { len } else { 0 });
                    return Step::Responded(next);
                }
                Exchange::Flushing(next, len)
            }
        };
        state.exchange = Some(Box::new(exchange));
        // End the timeout of the previous phase; blocked output has its own timeout.
        state.phase = Phase::Handling;
        Step::Parse
    }

    /// Returns whether the response is logged only after it is sent, because sending may fail or take long.
    fn logs_after_flush(&self, body: &Body) -> bool {
        self.recorder.is_some() && !matches!(body, Body::Bytes(bytes) if bytes.len() <= BATCH_BYTES)
    }

    #[inline]
    pub(super) fn log_status(&mut self, wire: &Wire<'_, Wakeup>, status: http::StatusCode) {
        if let Some(recorder) = &mut self.recorder {
            recorder.set_status(wire, status);
        }
    }

    /// Logs the end of a response after `bytes` bytes of content.
    #[inline]
    pub(super) fn log_end(&mut self, wire: &Wire<'_, Wakeup>, bytes: u64) {
        if let Some(recorder) = &mut self.recorder {
            recorder.end(wire, bytes);
        }
    }

    /// Writes the head of a streamed response. Returns `Err` if no body follows.
    fn start_stream(
        &mut self,
        wire: &mut Wire<'_, Wakeup>,
        reply: ReplyContext,
        mut response: Response,
        stream: Stream,
    ) -> Result<BodyWriter, Next> {
        wire.restart_timer();
        let tunnel = reply.is_connect && response.status.is_success();
        let framing = match (stream.length, reply.version) {
            (Some(length), _) => Framing::Length(length),
            (None, Version::Http11) => Framing::Chunked,
            (None, Version::Http10) => Framing::Close,
        };
        let (length, names) = match framing {
            _ if tunnel => (Length::Unspecified, None),
            Framing::Length(length) => (Length::Known(length), None),
            // RFC 9112 section 6.1: Transfer-Encoding is optional on HEAD; without it no client can misread the
            // response.
            Framing::Chunked if reply.is_head => (Length::Unspecified, None),
            Framing::Chunked => (Length::Chunked, stream.trailers.as_ref().map(|(names, _)| names)),
            Framing::Close => (Length::Unspecified, None),
        };
        if let (Some(names), true) = (names, reply.accepts_trailers) {
            response.announce_trailers(names);
        }
        let until_close = framing == Framing::Close && !reply.is_head;
        let (persistence, next) = reply.decide_persistence(response.close || wire.draining() || until_close);
        self.log_status(wire, response.status);
        if !write_head(&mut self.encoder, wire, &response, length, persistence) || reply.is_head || tunnel {
            return Err(next);
        }
        let writer = BodyWriter::new(stream, framing, reply.accepts_trailers, next);
        if let Some(id) = self.exchange_id(wire) {
            writer.attach(id, wire.draining());
        }
        Ok(writer)
    }
}
