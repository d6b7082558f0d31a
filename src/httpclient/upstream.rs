//! One connection to an upstream: sends requests and receives their responses, one after the other.
//!
//! A response that is complete in the first read is passed on as one piece. Otherwise its body goes through the bounded queue
//! of a [`Sender`]; while that is full, nothing is read from the upstream. The content of a request is taken from its source
//! only while little output is unsent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::error::ClientError;
use super::headers::{HeaderCopy, REWRITTEN_IN_RESPONSE, trailer_names, valid_trailers};
use super::job::{ClientResponse, Content, Job, Piece, Receiver, call};
use super::pool::{Line, Plan, Pool};
#[cfg(feature = "tls")]
use super::secure::{Inner, Secure, TlsState};
use super::url::Key;
use crate::http1::{ResponseEvent, ResponseReader};
use crate::httpserver::{Responder, Response, Sender, Session, SessionWaker, Wakeup};
use crate::r#loop::{CloseInfo, CloseReason, Flow, Handle, Phase, Target, Timer, Wire, lock};

/// Unsent output at which no more content is taken from its source.
const BATCH_BYTES: usize = 64 * 1024;

/// Sends a request, or queues it.
pub(super) fn dispatch(pool: &Arc<Pool>, key: &Arc<Key>, job: Job) {
    let Some(handle) = Handle::current() else { return job.sink.fail(ClientError::NoLoop) };
    match pool.plan(&handle, key, job) {
        Plan::Use(line, job) => line.put_job(job),
        Plan::Open(job) => open(pool, &handle, Arc::clone(key), job),
        Plan::Refuse(job) => job.sink.fail(ClientError::Busy),
        Plan::Wait => {}
    }
}

/// Opens a connection that the pool has counted already.
fn open(pool: &Arc<Pool>, handle: &Handle, key: Arc<Key>, job: Job) {
    let target = Target::from((key.host.as_str(), key.port));
    let line = Arc::new(Line::new(key, handle, job));
    let (limit, upstream) = (pool.limits.connect_timeout, UpstreamSession::new(Arc::clone(pool), Arc::clone(&line)));
    #[cfg(feature = "tls")]
    if let Some(tls) = pool.tls.as_ref().filter(|_| line.key.is_secure) {
        return handle.connect_session(target, limit, Secure::new(upstream, &line.key.host, tls, limit));
    }
    handle.connect_session(target, limit, upstream);
}

/// The session of a connection.
pub(super) struct UpstreamSession {
    pool: Arc<Pool>,
    line: Arc<Line>,
    exchange: Option<Box<Exchange>>,
    stage: Stage,
    /// Reading is paused (back-pressure from the client).
    is_paused: bool,
    /// Unsent output besides that of the wire.
    unsent_ciphertext: usize,
    /// Unsent output when the request was last continued. Less than that is the progress of the upstream.
    unsent_bytes: usize,
    /// Input follows that the session has not been given yet.
    has_more_input: bool,
    /// The input has ended without the end of the TLS session, so that its end may be missing.
    is_truncated: bool,
    /// The timer that wakes the session, and its time, which is never after the deadline.
    timer: Option<(Duration, Timer)>,
    /// The number of exchanges so far.
    serial: u64,
    /// The deadline of the current exchange, or of the idle connection; `None` while the client is waited for.
    deadline: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Open,
    /// No further request is sent.
    Ended,
    /// The end of the connection was reported to the pool.
    Over,
}

/// A request and its response.
struct Exchange {
    job: Job,
    serial: u64,
    /// The content of the request has been sent completely, or is not sent any further.
    is_sent: bool,
    /// The content of the request is incomplete.
    is_truncated_upload: bool,
    /// Bytes have arrived, perhaps only those of an interim response.
    has_input: bool,
    reader: ResponseReader,
    response: Receiving,
}

/// The progress of a response.
enum Receiving {
    /// Nothing was received.
    Awaited,
    /// The head of a response to collect was received.
    Head(StatusCode, Vec<u8>),
    /// The head of a response to forward was received, but nothing was passed on. With the names of its trailers.
    Prepared(Response, Vec<String>),
    Collecting(StatusCode, Vec<u8>, Vec<u8>),
    Forwarding(Sender, Arc<Mutex<Vec<u8>>>),
    Done,
}

impl Exchange {
    fn has_begun(&self) -> bool {
        !matches!(self.response, Receiving::Awaited)
    }

    /// Returns whether a part of the response was passed on.
    fn is_passed_on(&self) -> bool {
        matches!(self.response, Receiving::Forwarding(..) | Receiving::Done)
    }
}

impl UpstreamSession {
    pub(super) fn new(pool: Arc<Pool>, line: Arc<Line>) -> Self {
        UpstreamSession {
            pool,
            line,
            exchange: None,
            stage: Stage::Connecting,
            is_paused: false,
            unsent_ciphertext: 0,
            unsent_bytes: 0,
            has_more_input: false,
            is_truncated: false,
            timer: None,
            serial: 0,
            deadline: None,
        }
    }

    /// Begins to send a request.
    fn begin(&mut self, mut job: Job, wire: &mut Wire<'_, Wakeup>) -> Flow {
        self.serial += 1;
        job.sink.on_closed(self.line.cancel_callback(self.serial));
        if let Content::Reader(reader) = &mut job.content {
            reader.on_readable(self.line.wake_callback());
        }
        wire.output().extend(&job.head);
        let reader = ResponseReader::new(self.pool.limits.head.clone());
        let reader = reader.method(if job.is_head { "HEAD" } else { "GET" });
        self.exchange = Some(Box::new(Exchange {
            job,
            serial: self.serial,
            is_sent: false,
            is_truncated_upload: false,
            has_input: false,
            reader,
            response: Receiving::Awaited,
        }));
        self.extend_deadline(wire);
        self.send_content(wire)
    }

    /// Sends as much of the content as is available, up to a batch.
    fn send_content(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        let Some(exchange) = self.exchange.as_deref_mut() else { return Flow::Read(Phase::Idle) };
        let (before, mut is_waiting) = (wire.output().len(), false);
        let batch_bytes = BATCH_BYTES.saturating_sub(self.unsent_ciphertext);
        while !exchange.is_sent && wire.output().len() < batch_bytes {
            match exchange.job.content.next_piece() {
                Ok(Piece::Bytes(mut piece)) => {
                    piece.truncate(exchange.job.framing.allowed(piece.len()));
                    if piece.is_empty() {
                        continue;
                    }
                    let (before, after) = exchange.job.framing.frame(piece.len());
                    wire.output().extend(before.as_bytes());
                    wire.output().push(&piece);
                    wire.output().extend(after);
                }
                Ok(Piece::Wait) => {
                    is_waiting = true;
                    break;
                }
                Ok(Piece::End(trailers)) => {
                    exchange.is_sent = true;
                    if exchange.job.framing.finish(wire.output().buffer(), &trailers).is_err() {
                        return self.fail(ClientError::Body(std::io::ErrorKind::UnexpectedEof));
                    }
                }
                // The response to the client has begun, so that its upload has ended.
                Err(_) if exchange.is_passed_on() => (exchange.is_sent, exchange.is_truncated_upload) = (true, true),
                Err(error) => return self.fail(ClientError::Body(error.kind())),
            }
        }
        // If the socket accepts everything at once, `output_drained` is not called.
        if !exchange.is_sent && wire.output().len() > before {
            self.line.wake();
        }
        let is_passed_on = exchange.is_passed_on();
        self.unsent_bytes = self.count_unsent(wire);
        if !is_passed_on {
            self.limit_wait(wire, is_waiting);
        }
        Flow::Read(Phase::Unlimited)
    }

    /// Limits the time for the upstream, unless the request waits for its client, which has limits of its own.
    fn limit_wait(&mut self, wire: &Wire<'_, Wakeup>, is_waiting: bool) {
        if is_waiting && self.unsent_bytes == 0 {
            self.deadline = None;
        } else if self.deadline.is_none() {
            self.extend_deadline(wire);
        }
    }

    /// Extends the deadline if the upstream has accepted output since the request was last continued, and more is to come.
    fn note_progress(&mut self, wire: &mut Wire<'_, Wakeup>) {
        let Some(exchange) = &self.exchange else { return };
        let unsent_bytes = self.count_unsent(wire);
        let is_sent = unsent_bytes == 0 && exchange.is_sent;
        let has_progress = unsent_bytes < self.unsent_bytes;
        self.unsent_bytes = unsent_bytes;
        if has_progress && !is_sent && self.deadline.is_some() {
            self.extend_deadline(wire);
        }
    }

    fn count_unsent(&self, wire: &mut Wire<'_, Wakeup>) -> usize {
        wire.output().len() + self.unsent_ciphertext
    }

    /// Continues to send the content, and to read a response that was paused.
    fn continue_exchange(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        let Some(exchange) = &self.exchange else { return Flow::Unchanged };
        if !exchange.is_sent && self.send_content(wire) == Flow::Abort {
            return Flow::Abort;
        }
        let is_blocked = self.exchange.as_ref().is_some_and(|exchange| exchange.is_blocked());
        if !self.is_paused || is_blocked {
            return Flow::Unchanged;
        }
        self.is_paused = false;
        self.extend_deadline(wire);
        Flow::Yield(Phase::Unlimited)
    }

    /// Allows the upstream the response timeout from now on.
    fn extend_deadline(&mut self, wire: &Wire<'_, Wakeup>) {
        self.set_deadline(wire, self.pool.limits.response_timeout);
    }

    /// Sets the deadline, and starts a timer that wakes the session unless one is running that ends earlier.
    fn set_deadline(&mut self, wire: &Wire<'_, Wakeup>, limit: Duration) {
        let deadline = wire.now().saturating_add(limit);
        self.deadline = Some(deadline);
        if self.timer.as_ref().is_some_and(|(at, _)| *at <= deadline) {
            return;
        }
        self.stop_timer();
        if let Some(waker) = self.line.waker.get() {
            self.timer = Some((deadline, waker.handle().call_later(limit, self.line.wake_callback())));
        }
    }

    fn stop_timer(&mut self) {
        if let Some((_, timer)) = self.timer.take() {
            timer.cancel();
        }
    }

    /// Checks the deadline after the timer has woken the session. Returns whether it has passed.
    fn check_deadline(&mut self, wire: &Wire<'_, Wakeup>) -> bool {
        if self.timer.as_ref().is_some_and(|(at, _)| *at <= wire.now()) {
            self.timer = None;
        }
        let Some(left) = self.deadline.map(|deadline| deadline.saturating_sub(wire.now())) else { return false };
        if left > Duration::ZERO {
            self.set_deadline(wire, left);
        }
        left == Duration::ZERO
    }

    /// Fails the current request, and resets the connection, whose state is unknown.
    fn fail(&mut self, error: ClientError) -> Flow {
        if let Some(exchange) = self.exchange.take() {
            fail_exchange(*exchange, error);
        }
        Flow::Abort
    }

    /// Parses input until more is needed or the receiver is too slow.
    fn receive_response(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        loop {
            let Some(exchange) = self.exchange.as_deref_mut() else { return self.receive_unexpected(wire) };
            if exchange.is_blocked() {
                if exchange.is_passed_on() {
                    self.deadline = None;
                }
                self.is_paused = true;
                return Flow::Pause;
            }
            exchange.has_input |= !wire.input().is_empty();
            let (mut lines, forwards) = (Vec::new(), exchange.job.sink.forwards());
            let mut copy = HeaderCopy::new(&mut lines, &REWRITTEN_IN_RESPONSE);
            let visit = |name, value| {
                if forwards {
                    copy.push(name, value);
                }
            };
            let (used, event) = match exchange.reader.receive_and_visit(wire.input(), visit) {
                Ok(result) => result,
                Err(error) => return self.fail(ClientError::Response(error)),
            };
            if let Err(error) = copy.finish() {
                return self.fail(error);
            }
            let outcome = match event {
                ResponseEvent::NeedMore if wire.ended() => match exchange.reader.finish() {
                    Ok(()) if !self.is_truncated => return self.complete(wire, true),
                    Err(_) if !exchange.has_input => return self.lose(),
                    _ => return self.fail(ClientError::Closed),
                },
                ResponseEvent::NeedMore => {
                    wire.consume(used);
                    exchange.await_body(&self.line);
                    // The bytes of a head do not extend the deadline.
                    if exchange.has_begun() && wire.consumed() > 0 {
                        self.extend_deadline(wire);
                    }
                    return Flow::Read(Phase::Unlimited);
                }
                ResponseEvent::Head { status, head, .. } => exchange.begin_response(status, head, lines),
                ResponseEvent::Body(bytes) => exchange.add(&self.line, bytes, self.pool.limits.body_bytes_max),
                ResponseEvent::End => {
                    wire.consume(used);
                    return self.complete(wire, false);
                }
            };
            wire.consume(used);
            if let Err(error) = outcome {
                return self.fail(error);
            }
        }
    }

    /// Handles input or its end while no response is expected.
    fn receive_unexpected(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        let is_unexpected = !wire.input().is_empty();
        wire.consume(wire.input().len());
        if !is_unexpected && !wire.ended() {
            return Flow::Read(Phase::Idle);
        }
        self.pool.withdraw(&self.line);
        self.stage = Stage::Ended;
        // The first request is not sent on another connection, which would probably fare no better. Later ones are: the
        // connection was given to them at the moment at which it ended.
        if self.serial == 0
            && let Some(job) = self.line.take_job()
        {
            let error = if is_unexpected { ClientError::Unexpected } else { ClientError::Closed };
            job.sink.fail(error);
        }
        if is_unexpected { Flow::Abort } else { Flow::Close }
    }

    /// Passes the end of the response on, and keeps the connection if possible. `at_close` if the close has ended the body.
    fn complete(&mut self, wire: &mut Wire<'_, Wakeup>, at_close: bool) -> Flow {
        let Some(mut exchange) = self.exchange.take() else { return Flow::Abort };
        exchange.end(&self.line);
        let is_reusable = !at_close
            && exchange.reader.is_reusable()
            && exchange.is_sent
            && !exchange.is_truncated_upload
            && wire.input().is_empty()
            && !self.has_more_input
            && !wire.ended()
            && !wire.draining();
        drop(exchange);
        if !is_reusable {
            return Flow::Close;
        }
        self.set_deadline(wire, self.pool.limits.idle_timeout);
        match self.pool.release(&self.line) {
            Ok(Some(job)) => self.begin(job, wire),
            Ok(None) => Flow::Read(Phase::Idle),
            Err(()) => Flow::Close,
        }
    }

    /// The connection ended before any byte of the response: repeats the request if possible.
    fn lose(&mut self) -> Flow {
        if let Some(exchange) = self.exchange.take() {
            self.retry_or_fail(exchange.job, ClientError::Closed);
        }
        Flow::Abort
    }

    /// Sends a request, of which no response was received, on another connection, or reports the error.
    fn retry_or_fail(&self, mut job: Job, error: ClientError) {
        let is_reused = self.serial > 1;
        if !(is_reused && job.may_retry()) {
            return job.sink.fail(error);
        }
        job.rewind();
        dispatch(&self.pool, &self.line.key, job);
    }

    /// Ends the session.
    fn end(&mut self, error: ClientError, is_stopping: bool) {
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        if stage == Stage::Over {
            return;
        }
        self.stop_timer();
        self.pool.withdraw(&self.line);
        let unsent = self.line.take_job();
        if let Some(exchange) = self.exchange.take() {
            match *exchange {
                exchange if is_stopping || exchange.has_input => fail_exchange(exchange, error),
                exchange if matches!(error, ClientError::Closed) => self.retry_or_fail(exchange.job, error),
                exchange => exchange.job.sink.fail(error),
            }
            if let Some(job) = unsent {
                job.sink.fail(ClientError::Closed);
            }
        } else if let Some(mut job) = unsent {
            if stage != Stage::Connecting && !is_stopping {
                // Not sent at all.
                job.rewind();
                dispatch(&self.pool, &self.line.key, job);
            } else {
                job.sink.fail(error);
            }
        }
        let handle = Handle::current();
        if let Some((key, job)) = self.pool.closed(&self.line.key, handle.is_some())
            && let Some(handle) = handle
        {
            open(&self.pool, &handle, key, job);
        }
    }
}

/// Reports the failure of a request, as far as that is still possible.
fn fail_exchange(exchange: Exchange, error: ClientError) {
    let Exchange { mut job, response, .. } = exchange;
    log::debug!("a request to an upstream failed: {error}");
    if let Some(receiver) = job.sink.take() {
        receiver.fail(error);
    }
    // A response that is being forwarded breaks off when its sender is dropped.
    drop(response);
}

impl Exchange {
    /// Returns whether the response is not read now: its client is too slow, or still uploads. A response to the client ends
    /// its upload, so that a success is passed on only after it.
    fn is_blocked(&self) -> bool {
        match &self.response {
            Receiving::Forwarding(sender, _) => sender.is_full(),
            Receiving::Head(status, _) => self.is_early(*status),
            Receiving::Prepared(response, _) => self.is_early(response.status()),
            _ => false,
        }
    }

    fn is_early(&self, status: StatusCode) -> bool {
        status.is_success() && !self.is_sent && matches!(self.job.content, Content::Reader(_))
    }

    /// Begins a response. `lines` are the header lines that are forwarded.
    fn begin_response(&mut self, status: u16, head: &[u8], lines: Vec<u8>) -> Result<(), ClientError> {
        if self.reader.is_coded() {
            return Err(ClientError::Coding);
        }
        let status = StatusCode::from_u16(status).map_err(|_| ClientError::Closed)?;
        self.response = if self.job.sink.forwards() {
            // Only chunked content has trailers.
            let names = match self.reader.content_length() {
                Some(_) => Vec::new(),
                None => trailer_names(ResponseReader::headers(head)),
            };
            Receiving::Prepared(Response::from_lines(status, lines, Bytes::new()), names)
        } else {
            Receiving::Head(status, head.to_vec())
        };
        Ok(())
    }

    /// Passes on the head of a response whose body has not arrived.
    fn await_body(&mut self, line: &Arc<Line>) {
        if matches!(self.response, Receiving::Head(..) | Receiving::Prepared(..)) {
            self.open_body(line);
        }
    }

    /// Chooses the destination of the body.
    fn open_body(&mut self, line: &Arc<Line>) {
        match std::mem::replace(&mut self.response, Receiving::Done) {
            Receiving::Head(status, head) => self.response = Receiving::Collecting(status, head, Vec::new()),
            Receiving::Prepared(response, names) => self.forward_body(line, response, &names),
            other => self.response = other,
        }
    }

    /// Passes on a response whose body follows.
    fn forward_body(&mut self, line: &Arc<Line>, response: Response, names: &[String]) {
        let Some(responder) = self.job.sink.take_responder() else { return };
        let trailers = Arc::<Mutex<Vec<u8>>>::default();
        let (template, sender) = Response::channel();
        sender.on_drained(line.wake_callback());
        sender.on_closed(line.cancel_callback(self.serial));
        let mut forwarded = response.with_body_of(template);
        if let Some(length) = self.reader.content_length() {
            forwarded = forwarded.length(length);
        }
        if !names.is_empty() {
            let lines = Arc::clone(&trailers);
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            forwarded = forwarded.trailers(&names, move || valid_trailers(&lock(&lines)));
        }
        self.response = Receiving::Forwarding(sender, trailers);
        responder.respond(forwarded);
    }

    /// Takes the response to forward, if nothing was passed on, and its receiver.
    fn take_prepared(&mut self) -> Option<(Response, Responder)> {
        match std::mem::replace(&mut self.response, Receiving::Done) {
            Receiving::Prepared(response, _) => Some((response, self.job.sink.take_responder()?)),
            other => {
                self.response = other;
                None
            }
        }
    }

    /// Adds a piece of the body.
    fn add(&mut self, line: &Arc<Line>, bytes: &[u8], bytes_max: usize) -> Result<(), ClientError> {
        if self.reader.content_length() == Some(bytes.len() as u64)
            && let Some((response, responder)) = self.take_prepared()
        {
            responder.respond(response.body(Bytes::copy_from_slice(bytes)));
            return Ok(());
        }
        self.await_body(line);
        match &mut self.response {
            Receiving::Collecting(_, _, body) if body.len() + bytes.len() > bytes_max => Err(ClientError::TooLarge),
            Receiving::Collecting(_, _, body) => {
                body.extend_from_slice(bytes);
                Ok(())
            }
            Receiving::Forwarding(sender, _) => {
                sender.send(Bytes::copy_from_slice(bytes)).map_err(|_| ClientError::Stopped)
            }
            _ => Ok(()),
        }
    }

    /// Passes on the end of the response.
    fn end(&mut self, line: &Arc<Line>) {
        if let Some((response, responder)) = self.take_prepared() {
            // A response to HEAD keeps the length that the body would have.
            let length = self.reader.content_length().filter(|&length| self.job.is_head && length > 0);
            responder.respond(match length {
                Some(length) => response.with_body_of(Response::stream(Vec::<Bytes>::new())).length(length),
                None if self.job.is_head => response.with_body_of(Response::stream(Vec::<Bytes>::new())),
                None => response,
            });
            return;
        }
        self.await_body(line);
        match std::mem::replace(&mut self.response, Receiving::Done) {
            Receiving::Collecting(status, head, body) => {
                if let Some(Receiver::Collect(callback)) = self.job.sink.take() {
                    call(callback, Ok(ClientResponse::new(status, head, body.into())));
                }
            }
            Receiving::Forwarding(sender, trailers) => {
                *lock(&trailers) = self.reader.trailers().to_vec();
                sender.finish();
            }
            _ => {}
        }
    }
}

impl Session for UpstreamSession {
    fn open(&mut self, waker: SessionWaker) {
        // The message arrives once the connection is established.
        waker.wake();
        let _ = self.line.waker.set(waker);
    }

    fn message(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        if self.stage == Stage::Connecting {
            self.stage = Stage::Open;
        }
        if self.exchange.is_some() && self.line.is_cancelled(self.serial) {
            self.exchange = None;
            return Flow::Abort;
        }
        self.note_progress(wire);
        if self.exchange.is_none() {
            if self.stage == Stage::Ended {
                return Flow::Unchanged;
            }
            if let Some(job) = self.line.take_job() {
                return self.begin(job, wire);
            }
            if self.line.is_retired() {
                self.stage = Stage::Ended;
                return Flow::Close;
            }
        }
        if self.check_deadline(wire) {
            if self.exchange.is_some() {
                return self.fail(ClientError::Timeout);
            }
            return if self.pool.withdraw(&self.line) { Flow::Close } else { Flow::Unchanged };
        }
        self.continue_exchange(wire)
    }

    fn receive(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        self.receive_response(wire)
    }

    fn output_drained(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        self.unsent_bytes = 0;
        if self.exchange.is_some() && self.deadline.is_some() {
            self.extend_deadline(wire);
        }
        self.continue_exchange(wire)
    }

    fn timer(&mut self, phase: Phase, _: &mut Wire<'_, Wakeup>) -> Flow {
        match phase {
            Phase::Idle if self.pool.withdraw(&self.line) => Flow::Close,
            phase => Flow::Read(phase),
        }
    }

    fn drain(&mut self, _: &mut Wire<'_, Wakeup>) -> Flow {
        if self.exchange.is_none() && self.pool.withdraw(&self.line) { Flow::Close } else { Flow::Unchanged }
    }

    fn closed(mut self: Box<Self>, info: CloseInfo) {
        let is_connected = self.stage != Stage::Connecting;
        let is_stopping = matches!(info.reason, CloseReason::Drain);
        let error = match info.reason {
            CloseReason::Drain => ClientError::Stopped,
            CloseReason::Error(error) if !is_connected && error.kind() == std::io::ErrorKind::TimedOut => {
                ClientError::Timeout
            }
            CloseReason::Error(error) if !is_connected => {
                let Key { host, port, .. } = &*self.line.key;
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                ClientError::Connect(std::io::Error::new(error.kind(), format!("{host}:{port}: {error}")))
            }
            CloseReason::TooSlow => ClientError::Timeout,
            _ => ClientError::Closed,
        };
        self.end(error, is_stopping);
    }
}

#[cfg(feature = "tls")]
impl Inner for UpstreamSession {
    fn set_tls_state(&mut self, state: TlsState) {
        let TlsState { unsent_ciphertext, has_more_input, is_truncated } = state;
        (self.unsent_ciphertext, self.has_more_input, self.is_truncated) =
            (unsent_ciphertext, has_more_input, is_truncated);
    }

    fn fail(&mut self, error: ClientError) -> Flow {
        if self.stage != Stage::Connecting {
            return UpstreamSession::fail(self, error);
        }
        if let Some(job) = self.line.take_job() {
            job.sink.fail(error);
        }
        Flow::Abort
    }
}

impl Drop for UpstreamSession {
    /// Reports the end of a session that was dropped without being opened.
    fn drop(&mut self) {
        self.end(ClientError::Stopped, true);
    }
}
