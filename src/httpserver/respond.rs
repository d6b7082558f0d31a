//! Sends complete, deferred and streamed responses, and records them for the access log.

use bytes::Bytes;

use super::body_stream::{BATCH_BYTES, BodyWriter, Stream};
use super::exchange::{Exchange, HttpConnection, Step, Waiting};
use super::exchange_handle::{ExchangeId, Wakeup};
use super::handler::Handler;
use super::headers::HeaderBlock;
use super::response::{Body, Response};
use super::server::HttpServer;
use crate::http1::{Next, Reply, ReplyContext, Responded, is_header_value};
use crate::r#loop::Wire;

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

    /// Writes the head of a response whose content has `length` bytes, or an unknown number.
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
        state.http1.respond(&mut self.encoder, wire.output().buffer(), now, context, &reply)
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
        let exchange = match std::mem::replace(&mut response.body, Body::Bytes(Bytes::new())) {
            Body::Deferred(mut pending) => {
                // The request is not kept here, so it cannot be resumed.
                pending.suspended = false;
                if let Some(id) = self.exchange_id(wire) {
                    pending.deferred.attach(id, wire.draining());
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
            body => {
                wire.restart_timer();
                let len = body.len().unwrap_or(0);
                let Responded { content, next } = self.send_head(state, wire, reply, &response, Some(len), None);
                let with_body = content.is_some();
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
        state: &mut HttpConnection,
        wire: &mut Wire<'_, Wakeup>,
        context: ReplyContext,
        response: &Response,
        stream: Stream,
    ) -> Result<BodyWriter, Next> {
        wire.restart_timer();
        let names = stream.trailers.as_ref().map(|(names, _)| names.as_str());
        let names = names.filter(|names| is_header_value(names.as_bytes()));
        let Responded { content, next } = self.send_head(state, wire, context, response, stream.length, names);
        self.log_status(wire, response.status);
        let Some(framing) = content else { return Err(next) };
        let writer = BodyWriter::new(stream, framing, next);
        if let Some(id) = self.exchange_id(wire) {
            writer.attach(id, wire.draining());
        }
        Ok(writer)
    }
}
