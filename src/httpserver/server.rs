//! The server as an [`App`]: serves batches of pipelined requests, and advances the exchanges that take several calls.

use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::access_log::{AccessLog, Recorder};
use super::body_stream::{BATCH_BYTES, Progress};
use super::buffer_limit::{BufferLimit, Status};
use super::exchange::{Exchange, HttpConnection, Step, flow_after};
use super::exchange_handle::Wakeup;
use super::handler::Handler;
use super::options::Options;
use super::request::{Request, RequestHead};
use super::response::{Body, Outcome, Response};
use crate::http1::{Encoder, Error, Event, Framing, Head, Limits, ReplyContext};
use crate::r#loop::{Accepted, App, CloseInfo, ConnId, Flow, Phase, Remote, Wire};

/// Maximum number of requests served on one connection before other connections are served.
const REQUESTS_PER_TURN: usize = 64;

/// An HTTP/1.1 server: an [`App`](crate::App) that calls a [`Handler`] for each request.
///
/// # Examples
/// ```no_run
/// use serverd::{HttpServer, Poller, SelectLoop};
/// use std::net::TcpListener;
///
/// let listener = TcpListener::bind("127.0.0.1:8888")?;
/// SelectLoop::new(listener, None, HttpServer::new(|_| "hello\n"))?.run()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct HttpServer<H> {
    pub(super) handler: H,
    pub(super) limits: Limits,
    pub(super) encoder: Encoder,
    /// The last Content-Type that was found to be a valid header value; caches the check.
    pub(super) content_type: &'static str,
    /// The request head being parsed, shared by all connections.
    pub(super) scratch: Head,
    /// Position, in the input, of the request for which the handler is being called; empty outside of such a call.
    /// After a panic it identifies the request to answer with 500.
    pub(super) current_request: Range<usize>,
    /// Wakes connections of this loop from other threads.
    pub(super) remote: Option<Remote<Wakeup>>,
    /// Access log records of in-flight requests; `None` without an access log.
    pub(super) recorder: Option<Box<Recorder>>,
    /// Limits the memory of collected request bodies.
    pub(super) buffer_limit: BufferLimit,
    /// Options that are off in most servers; `None` if all are off.
    pub(super) options: Option<Box<Options>>,
    /// Neither an access log nor an option is on, which the fast path needs.
    pub(super) is_plain: bool,
}

impl<F> HttpServer<F> {
    /// Creates a server from a closure that returns a [`Response`] or a type that converts into one.
    pub fn new<R>(handler: F) -> Self
    where
        F: FnMut(&Request<'_>) -> R,
        R: Into<Response>,
    {
        Self::with(handler)
    }
}

impl<H: Handler> HttpServer<H> {
    /// Creates a server from a [`Handler`], such as a [`Router`](super::Router).
    pub fn with(handler: H) -> Self {
        let (limits, encoder, scratch) = (Limits::default(), Encoder::new(), Head::default());
        HttpServer {
            handler,
            limits,
            encoder,
            content_type: "",
            scratch,
            current_request: 0..0,
            remote: None,
            recorder: None,
            buffer_limit: BufferLimit::default(),
            options: None,
            is_plain: true,
        }
    }
}

impl<H> HttpServer<H> {
    /// Sets the limits on request sizes.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        HttpServer { limits, ..self }
    }

    /// Limits the memory of request bodies that are collected or wait for a reader, together with that of other servers with the same limit, in
    /// particular the servers of other workers. Default: a limit of 256 MiB of its own.
    #[must_use]
    pub fn buffer_limit(self, limit: &BufferLimit) -> Self {
        HttpServer { buffer_limit: limit.clone(), ..self }
    }

    /// Logs each request to `log`; `None` turns the access log off.
    #[must_use]
    pub fn access_log<'a>(self, log: impl Into<Option<&'a AccessLog>>) -> Self {
        let recorder = log.into().map(|log| Box::new(Recorder::new(log.clone())));
        HttpServer { is_plain: recorder.is_none() && self.options.is_none(), recorder, ..self }
    }

    /// Announces the idle timeout of the loop to clients with the Keep-Alive header, in whole seconds, so that they do not
    /// send a request on a connection that is about to be closed. Off by default, and with `None`.
    #[must_use]
    pub fn keep_alive_header(mut self, idle_timeout: impl Into<Option<Duration>>) -> Self {
        if let Some(timeout) = idle_timeout.into() {
            self.options_mut().set_keep_alive(timeout);
        }
        self
    }

    /// Closes a connection after this number of requests; 0 for no limit, which is the default. The last response has
    /// `Connection: close`.
    #[must_use]
    pub fn requests_max(mut self, count: u32) -> Self {
        if count > 0 {
            self.options_mut().requests_max = count;
        }
        self
    }

    /// Answers requests for other hosts with 421 (Misdirected Request). This protects a server on a private address from
    /// DNS rebinding: a web page whose own name resolves to that address could otherwise read its responses.
    ///
    /// The host is that of the target or the Host header, without its port, and case does not matter. `.example.com`
    /// covers example.com and all subdomains. An empty list allows all hosts, which is the default.
    ///
    /// # Examples
    /// ```
    /// use serverd::HttpServer;
    ///
    /// let server = HttpServer::new(|_| "hello\n").allow_hosts(["localhost", "127.0.0.1", ".example.com"]);
    /// # drop(server);
    /// ```
    #[must_use]
    pub fn allow_hosts<S: AsRef<str>>(mut self, hosts: impl IntoIterator<Item = S>) -> Self {
        let mut hosts = hosts.into_iter().peekable();
        if hosts.peek().is_some() {
            self.options_mut().set_hosts(hosts);
        }
        self
    }

    fn options_mut(&mut self) -> &mut Options {
        self.is_plain = false;
        self.options.get_or_insert_default()
    }
}

/// Begins a request on a server with an access log or options. Returns the response if the handler must not be called.
#[inline(never)]
pub(super) fn begin_request(
    recorder: Option<&mut Recorder>,
    options: Option<&Options>,
    state: &mut HttpConnection,
    wire: &Wire<'_, Wakeup>,
    head: &RequestHead<'_>,
) -> Option<Response> {
    if let Some(recorder) = recorder {
        recorder.begin(wire, head);
    }
    state.requests = state.requests.saturating_add(1);
    options.and_then(|options| options.refuse_host(head))
}

/// Creates the response to a client error.
pub(super) fn error_response(error: Error) -> Response {
    Response::error(error.status(), format!("{error}\n")).close()
}

impl<H: Handler> HttpServer<H> {
    /// Serves buffered requests, at least one, until [`REQUESTS_PER_TURN`] or [`BATCH_BYTES`] of output are reached.
    #[inline]
    fn serve_batch(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        let mut served = 0;
        loop {
            let mut step = if state.exchange.is_none() { Step::Parse } else { self.advance(state, wire) };
            if matches!(step, Step::Parse) && state.needs_input() {
                step = self.parse(state, wire);
            }
            match step {
                Step::Flow(flow) => return flow,
                Step::Parse => {}
                Step::Responded(next) => {
                    served += 1;
                    if let Some(flow) = flow_after(next) {
                        return flow;
                    }
                    state.silent = false;
                    if wire.input().is_empty() {
                        return Self::await_input(state, wire);
                    }
                    if served == REQUESTS_PER_TURN || wire.unsent() >= BATCH_BYTES {
                        return Flow::Yield(state.phase());
                    }
                }
            }
        }
    }

    /// Advances an exchange that needs no input: checks for its response, or sends more of it.
    fn advance(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Step {
        match state.exchange.as_deref_mut() {
            Some(Exchange::Waiting(reply, waiting)) => {
                let reply = *reply;
                // Only suspended requests yield `Outcome::Retry`.
                let Some(Outcome::Response(mut response)) = waiting.pending.take() else {
                    return Step::Flow(Flow::Pause);
                };
                response.merge(&waiting.headers, waiting.close);
                waiting.pending.deferred.handle.release();
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
            Some(Exchange::Collecting(request)) => match request.status() {
                Status::Running => Step::Parse,
                Status::Waiting => Step::Flow(Flow::Pause),
                Status::Rejected => self.reject_body(state, wire),
            },
            Some(Exchange::Reading(reply, feed, pending)) => {
                let Some(Outcome::Response(response)) = pending.take() else {
                    return match feed.status() {
                        Status::Running => Step::Parse,
                        Status::Waiting => Step::Flow(Flow::Pause),
                        Status::Rejected => self.reject_body(state, wire),
                    };
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

    /// Parses the buffered input, with a fast path for a complete, common request head.
    #[inline(never)]
    fn parse(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Step {
        let input = wire.input();
        if let Some((end, has_body)) = state.http1.parse_fast(&mut self.scratch, &self.limits, input) {
            return if has_body {
                self.on_head_with_body(state, wire, input, 0..end)
            } else {
                self.on_head(state, wire, input, 0..end)
            };
        }
        self.parse_general(state, wire, input)
    }

    /// Parses input that is not on the fast path: an uncommon or incomplete head, or part of a body.
    #[inline(never)]
    fn parse_general(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, input: &[u8]) -> Step {
        match state.http1.parse_general(&mut self.scratch, &self.limits, input) {
            Ok((used, Event::Head { len })) if self.scratch.framing() == Framing::None => {
                self.on_head(state, wire, input, used - len..used)
            }
            Ok((used, Event::Head { len })) => self.on_head_with_body(state, wire, input, used - len..used),
            Ok((used, event)) => {
                wire.consume(used);
                self.on_event(state, wire, event)
            }
            Err(error) => Step::Flow(self.reject(state, wire, error)),
        }
    }

    fn on_event(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, event: Event<'_>) -> Step {
        match event {
            Event::Body(bytes) => self.on_body_chunk(state, wire, bytes),
            Event::End => self.on_body_end(state, wire),
            Event::NeedMore | Event::Head { .. } => Step::Flow(Self::await_input(state, wire)),
        }
    }

    /// Sends a response that describes a client error, followed by a lingering close so that the client can read it.
    fn reject(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>, error: Error) -> Flow {
        log::debug!("request rejected: {error}");
        let context = ReplyContext::for_malformed(self.is_head_method(state));
        state.http1.fail(error);
        if let Some(Exchange::Reading(_, feed, _)) = state.exchange.take().as_deref() {
            feed.end(Err(io::ErrorKind::InvalidData));
        }
        let response = error_response(error);
        if let Body::Bytes(body) = &response.body {
            self.send_whole(state, wire, context, &response, body);
            if let Some(recorder) = &mut self.recorder {
                recorder.begin_malformed(wire, wire.input());
                recorder.set_status(wire, response.status);
                recorder.end(wire, if context.is_head() { 0 } else { body.len() as u64 });
            }
        }
        Flow::Refuse
    }

    /// Returns whether the rejected request is a HEAD request, whose error response must not have content (RFC 9110
    /// section 9.3.2).
    fn is_head_method(&self, state: &HttpConnection) -> bool {
        match state.exchange.as_deref() {
            Some(Exchange::Collecting(collected)) => collected.head.is_head_method(),
            Some(Exchange::Streaming(reply, _) | Exchange::Reading(reply, ..) | Exchange::Waiting(reply, _)) => {
                reply.is_head()
            }
            Some(Exchange::Suspended(suspended)) => suspended.request.head.is_head_method(),
            Some(Exchange::Sending(_) | Exchange::Flushing(..)) => false,
            None => state.http1.is_head_method(&self.scratch),
        }
    }

    /// Waits for more input, with the timeout for what is expected next.
    #[inline]
    fn await_input(state: &mut HttpConnection, wire: &Wire<'_, Wakeup>) -> Flow {
        if wire.ended() {
            return Flow::Close;
        }
        state.silent &= wire.consumed() == 0;
        Flow::Read(state.input_phase())
    }

    /// Continues after a wake-up, after output has drained, or at the start of a graceful shutdown. Buffered input is
    /// not available in these calls.
    fn continue_exchange(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        // A request was received, even if its response completes here and not in `serve_batch`.
        state.silent &= state.exchange.is_none();
        match self.advance(state, wire) {
            Step::Flow(flow) => flow,
            Step::Responded(next) => flow_after(next).unwrap_or(Flow::Yield(state.phase())),
            Step::Parse => Flow::Yield(state.phase()),
        }
    }
}

impl<H: Handler> App for HttpServer<H> {
    type State = HttpConnection;
    type Message = Wakeup;

    fn start(&mut self, remote: Remote<Wakeup>) {
        self.remote = Some(remote);
    }

    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, Wakeup>) -> (HttpConnection, Flow) {
        if let Some(recorder) = &mut self.recorder {
            recorder.open(wire.id(), accepted.peer_addr);
        }
        (HttpConnection::new(), Flow::Read(Phase::AwaitingFirstByte))
    }

    /// Catches panics once for the whole batch. Responses completed before the panic are already in the output.
    #[inline]
    fn receive(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        catch_unwind(AssertUnwindSafe(|| self.serve_batch(state, wire)))
            .unwrap_or_else(|panic| self.recover(state, wire, panic))
    }

    /// The state lives in the exchange, so a stale wake-up is a no-op.
    fn message(&mut self, state: &mut HttpConnection, _wakeup: Wakeup, wire: &mut Wire<'_, Wakeup>) -> Flow {
        self.continue_exchange(state, wire)
    }

    fn output_drained(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        if state.is_reading() { Flow::Read(state.phase()) } else { self.continue_exchange(state, wire) }
    }

    fn timer(&mut self, state: &mut HttpConnection, phase: Phase, wire: &mut Wire<'_, Wakeup>) -> Flow {
        match phase {
            Phase::Head => self.reject(state, wire, Error::HeadTimeout),
            Phase::Body => self.reject(state, wire, Error::BodyTimeout),
            _ => Flow::Close,
        }
    }

    fn drain(&mut self, state: &mut HttpConnection, wire: &mut Wire<'_, Wakeup>) -> Flow {
        if let Some(exchange) = &state.exchange {
            exchange.drain();
        }
        if state.is_reading() { Flow::Read(state.phase()) } else { self.continue_exchange(state, wire) }
    }

    /// Drops the current exchange, which notifies the threads that share state with it.
    fn closed(&mut self, id: ConnId, state: HttpConnection, info: CloseInfo) {
        if let Some(recorder) = &mut self.recorder {
            let bytes = match state.exchange.as_deref() {
                Some(Exchange::Sending(writer)) => writer.content_bytes,
                Some(Exchange::Flushing(_, bytes)) => *bytes,
                _ => 0,
            };
            recorder.closed(id, bytes, &info);
        }
    }

    #[inline]
    fn end_of_turn(&mut self, _: &mut Vec<(ConnId, Wakeup)>) {
        if let Some(recorder) = &mut self.recorder {
            recorder.end_turn();
        }
    }
}
