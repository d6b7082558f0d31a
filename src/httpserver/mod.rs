//! HTTP around a callback: reads requests off the wire, calls the handler, writes status line, fields and body.
//!
//! [`HttpServer`] is an [`App`]: it runs on any loop. One connection is one [`Conversation`]; it owns memory
//! only while the body of a request is collected.

mod handler;
mod request;
mod response;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use http::StatusCode;

use crate::http1::{
    self, CONTINUE, Encoder, Error, Event, Framing, Head, Length, Limits, Persistence, ResponseHead, Version,
};
use crate::r#loop::{Accepted, App, Closed, ConnId, Flow, Phase, Remote, Wire};

pub use handler::{Handler, Intake};
pub use request::{Request, RequestHead};
pub use response::{FieldError, Response};

/// Requests answered on a connection before the others have their turn.
const REQUESTS_PER_TURN: usize = 64;

/// Output at which a batch of answers is sent before more are made.
const BATCH_BYTES: usize = 64 * 1024;

/// The body of a request is collected in steps of its own growth, never by what was announced, up to here.
const BODY_RESERVE_MAX: u64 = 64 * 1024;

/// An HTTP server as an application for a loop.
///
/// # Examples
/// ```no_run
/// use serverd::{HttpServer, Poller, Response, SelectLoop};
/// use std::net::TcpListener;
///
/// let listener = TcpListener::bind("127.0.0.1:8888")?;
/// SelectLoop::new(listener, None, HttpServer::new(|_| Response::text("hello\n")))?.run()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct HttpServer<H> {
    handler: H,
    limits: Limits,
    encoder: Encoder,
    /// The head being read, of whichever connection.
    scratch: Head,
}

/// One connection's state.
pub struct Conversation {
    http1: http1::Connection,
    exchange: Option<Box<Exchange>>,
    peer: Option<SocketAddr>,
    phase: Phase,
}

/// A request whose body is on its way.
struct Exchange {
    head_bytes: Vec<u8>,
    head: Head,
    body: Vec<u8>,
}

/// What an answered request means for the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The next request.
    Request,
    /// The end, once the answer is sent: the peer said that it sends no more.
    Close,
    /// The end by the server's will: the peer may still be sending.
    Linger,
    /// The end, and a body that nobody reads may follow.
    Refuse,
}

/// What becomes of the content of a response, by the method of its request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Sent,
    /// Its length is told (RFC 9110 section 9.3.2).
    Measured,
    /// Neither it nor its length: 2xx to CONNECT (RFC 9110 section 9.3.6).
    Never,
}

impl Content {
    fn unless(for_head: bool) -> Self {
        if for_head { Content::Measured } else { Content::Sent }
    }
}

impl<F> HttpServer<F>
where
    F: FnMut(&Request<'_>) -> Response,
{
    /// A server that answers every request with what the closure returns.
    pub fn new(handler: F) -> Self {
        Self::with(handler)
    }
}

impl<H: Handler> HttpServer<H> {
    /// A server that answers by a handler.
    pub fn with(handler: H) -> Self {
        HttpServer { handler, limits: Limits::default(), encoder: Encoder::new(), scratch: Head::default() }
    }

    /// Replaces the limits.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        HttpServer { limits, ..self }
    }

    /// A head without a body, or with one that stands whole behind it, is answered where it lies; else the head is
    /// kept until its body is collected.
    fn take_head(
        &mut self,
        state: &mut Conversation,
        wire: &mut Wire<'_, ()>,
        input: &[u8],
        used: usize,
        len: usize,
    ) -> Option<Next> {
        let bytes = &input[used - len..used];
        let rest = &input[used..];
        let head = RequestHead { bytes, head: &self.scratch, peer: state.peer };
        match self.scratch.framing() {
            Framing::None => {
                let next = respond(&mut self.handler, &mut self.encoder, wire, &Request { head, body: &[] });
                return Some(next);
            }
            framing => {
                let allowance = match guard(|| self.handler.head(&head)) {
                    Some(Intake::Default) => self.limits.body_bytes_max,
                    Some(Intake::Collect(bytes_max)) => bytes_max,
                    Some(Intake::Refuse(response)) => {
                        write(&mut self.encoder, wire, &head, response.close());
                        return Some(Next::Refuse);
                    }
                    None => {
                        log::error!("the handler panicked at the head of {}: answered 500", head.target());
                        wire.count_panic();
                        write(&mut self.encoder, wire, &head, response::internal_error());
                        return Some(Next::Refuse);
                    }
                };
                if let Err(error) = state.http1.allow_body(allowance) {
                    write(&mut self.encoder, wire, &head, fault(error));
                    return Some(Next::Refuse);
                }
                if let Framing::Length(length) = framing
                    && let Ok(length) = usize::try_from(length)
                    && length <= rest.len()
                {
                    state.http1.skip_body();
                    wire.consume(length);
                    let request = Request { head, body: &rest[..length] };
                    return Some(respond(&mut self.handler, &mut self.encoder, wire, &request));
                }
                if head.head.expects_continue() && rest.is_empty() {
                    wire.output().extend(CONTINUE);
                }
                let reserve = if let Framing::Length(length) = framing { length.min(BODY_RESERVE_MAX) } else { 0 };
                state.exchange = Some(Box::new(Exchange {
                    head_bytes: bytes.to_vec(),
                    head: std::mem::take(&mut self.scratch),
                    body: Vec::with_capacity(usize::try_from(reserve).unwrap_or(0)),
                }));
            }
        }
        None
    }

    /// The body is collected: answer.
    fn finish_exchange(&mut self, state: &mut Conversation, wire: &mut Wire<'_, ()>) -> Option<Next> {
        let exchange = state.exchange.take()?;
        let head = RequestHead { bytes: &exchange.head_bytes, head: &exchange.head, peer: state.peer };
        let request = Request { head, body: &exchange.body };
        let next = respond(&mut self.handler, &mut self.encoder, wire, &request);
        self.scratch = exchange.head;
        Some(next)
    }

    /// The peer's fault: the answer that names it, and a close that lets the peer read it.
    fn refuse(&mut self, state: &Conversation, wire: &mut Wire<'_, ()>, error: Error) -> Flow {
        log::debug!("refused: {error}");
        let for_head = match &state.exchange {
            Some(exchange) => exchange.head.is_for_head(),
            None => state.http1.is_for_head(&self.scratch),
        };
        write_parts(&mut self.encoder, wire, fault(error), Content::unless(for_head), Persistence::Close);
        Flow::Refuse
    }

    fn wait(state: &mut Conversation, wire: &Wire<'_, ()>) -> Flow {
        if wire.ended() {
            return Flow::Close;
        }
        state.phase = if state.http1.is_within_body() {
            Phase::Body
        } else if state.http1.is_within_head() {
            Phase::Head
        } else if state.phase == Phase::Silent && wire.consumed() == 0 {
            Phase::Silent
        } else {
            Phase::Idle
        };
        Flow::Read(state.phase)
    }
}

/// Calls the handler; a panic costs the request its answer, not the server its life.
fn guard<T>(call: impl FnOnce() -> T) -> Option<T> {
    // The handler may be left half changed. That is the risk its author takes; the alternative is that one bad
    // request ends the service for everybody.
    catch_unwind(AssertUnwindSafe(call)).ok()
}

fn fault(error: Error) -> Response {
    Response::error(error.status(), format!("{error}\n")).close()
}

fn respond<H: Handler>(handler: &mut H, encoder: &mut Encoder, wire: &mut Wire<'_, ()>, request: &Request<'_>) -> Next {
    let response = guard(|| handler.call(request)).unwrap_or_else(|| {
        log::error!("the handler panicked at {} {}: answered 500", request.method(), request.target());
        wire.count_panic();
        response::internal_error()
    });
    wire.restart_clock();
    write(encoder, wire, &request.head, response)
}

/// Writes the response to a request and says what becomes of the connection.
#[inline]
fn write(encoder: &mut Encoder, wire: &mut Wire<'_, ()>, head: &RequestHead<'_>, response: Response) -> Next {
    let response = response.checked();
    let method = head.method_bytes();
    let wanted = head.head.is_persistent();
    let persistent = wanted && !response.close && !wire.draining() && method != b"CONNECT";
    let persistence = match (persistent, head.version()) {
        (false, _) => Persistence::Close,
        (true, Version::Http10) => Persistence::KeepAlive,
        (true, Version::Http11) => Persistence::Silent,
    };
    let content = match method {
        b"CONNECT" if response.status.is_success() => Content::Never,
        _ => Content::unless(head.head.is_for_head()),
    };
    write_parts(encoder, wire, response, content, persistence);
    match (persistent, wanted) {
        (true, _) => Next::Request,
        (false, true) => Next::Linger,
        (false, false) => Next::Close,
    }
}

fn write_parts(
    encoder: &mut Encoder,
    wire: &mut Wire<'_, ()>,
    response: Response,
    content: Content,
    persistence: Persistence,
) {
    let Response { status, content_type, fields, body, .. } = response;
    let never = content == Content::Never || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    // RFC 9110 section 15.3.6: 205 has no content, and says so.
    let empty = status == StatusCode::RESET_CONTENT;
    let length = match (never, empty) {
        (true, _) => Length::Untold,
        (false, true) => Length::Known(0),
        (false, false) => Length::Known(body.len() as u64),
    };
    // RFC 9110 section 15.4.5: 304 tells no metadata but what guides the update of a cache.
    let content_type = content_type.filter(|_| !empty && !never);
    let now = wire.wall();
    let out = wire.output();
    encoder.head(out.buffer(), now, &ResponseHead { status, content_type, fields: &fields, length, persistence });
    if !never && !empty && content == Content::Sent {
        out.push(&body);
    }
}

impl<H: Handler> App for HttpServer<H> {
    type State = Conversation;
    type Letter = ();

    fn start(&mut self, _: Remote<()>) {}

    fn open(&mut self, accepted: &Accepted<'_>, _wire: &mut Wire<'_, ()>) -> (Conversation, Flow) {
        let phase = Phase::Silent;
        let http1 = http1::Connection::new();
        (Conversation { http1, exchange: None, peer: accepted.peer, phase }, Flow::Read(phase))
    }

    #[inline]
    fn receive(&mut self, state: &mut Conversation, wire: &mut Wire<'_, ()>) -> Flow {
        let mut answered = 0;
        while answered < REQUESTS_PER_TURN && wire.output().len() < BATCH_BYTES {
            let input = wire.input();
            let (used, event) = match state.http1.receive(&mut self.scratch, &self.limits, input) {
                Ok(outcome) => outcome,
                Err(error) => return self.refuse(state, wire, error),
            };
            wire.consume(used);
            let next = match event {
                Event::NeedMore => return Self::wait(state, wire),
                Event::Head { len } => self.take_head(state, wire, input, used, len),
                Event::Body(bytes) => {
                    if let Some(exchange) = &mut state.exchange {
                        exchange.body.extend_from_slice(bytes);
                    }
                    None
                }
                Event::End => self.finish_exchange(state, wire),
            };
            match next {
                Some(Next::Refuse) => return Flow::Refuse,
                Some(Next::Linger) => return Flow::Linger,
                Some(Next::Close) => return Flow::Close,
                Some(Next::Request) => {
                    answered += 1;
                    state.phase = Phase::Idle;
                }
                None => {}
            }
        }
        Flow::Yield(state.phase)
    }

    fn letter(&mut self, state: &mut Conversation, _letter: (), _wire: &mut Wire<'_, ()>) -> Flow {
        Flow::Read(state.phase)
    }

    fn drained(&mut self, state: &mut Conversation, _wire: &mut Wire<'_, ()>) -> Flow {
        Flow::Read(state.phase)
    }

    fn timer(&mut self, state: &mut Conversation, phase: Phase, wire: &mut Wire<'_, ()>) -> Flow {
        match phase {
            Phase::Head => self.refuse(state, wire, Error::HeadTimeout),
            Phase::Body => self.refuse(state, wire, Error::BodyTimeout),
            _ => Flow::Close,
        }
    }

    fn drain(&mut self, state: &mut Conversation, _wire: &mut Wire<'_, ()>) -> Flow {
        Flow::Read(state.phase)
    }

    fn closed(&mut self, _: ConnId, _state: Conversation, _: Closed) {}

    fn end_of_turn(&mut self, _: &mut Vec<(ConnId, Self::Letter)>) {}
}
