//! The interface between the event loop and an application.
//!
//! An [`App`] works on bytes, not on readiness: it examines [`Wire::input`], consumes what it has parsed, appends to
//! [`Wire::output`] and returns a [`Flow`]. It owns no socket, never blocks, and does not depend on the backend. The
//! same application can therefore be tested over a byte slice, runs on every backend, and would run on a
//! completion-based loop as well.

use std::any::Any;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::connect::ContextCell;
use super::output::Output;
use super::peer::Peer;
use super::poller::{Handle, Mailbox, Post};
use super::proxy_header::Proxied;
use super::readiness::Stream;
use super::std_ext::millis;
use super::table::ConnId;

/// The phase of a connection, which selects the timeout that applies to it.
///
/// The timeouts are set in [`Timeouts`](super::Timeouts). The timer of a phase starts when the connection enters the
/// phase and is not restarted within it, unless the application calls [`Wire::restart_timer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Connected, and the TLS handshake is not complete. The timer is not restarted by input. Entered by the loop only,
    /// which may close a connection in this phase like one in [`Phase::Idle`].
    Handshake,
    /// Connected; no byte has been received yet. Over TLS, the phase begins after the handshake. The loop may close a
    /// connection in this phase like one in [`Phase::Idle`].
    AwaitingFirstByte,
    /// Receiving a message head.
    Head,
    /// Receiving a message body, at [`Timeouts::body_rate`](super::Timeouts::body_rate) bytes per second or more on
    /// average, and with pauses of at most [`Timeouts::body`](super::Timeouts::body).
    Body,
    /// Idle between messages. At the connection limit, or when the process is out of file descriptors, the loop closes
    /// the connection that has been in this phase or in [`Phase::AwaitingFirstByte`] longest for a new one.
    Idle,
    /// Open without a timeout, unless [`Timeouts::open`](super::Timeouts::open) sets one: for raw TCP applications.
    Unlimited,
    /// The application is preparing a response. No timeout applies, but the loop checks regularly whether the peer has
    /// reset the connection, or no longer acknowledges earlier output within
    /// [`Timeouts::write`](super::Timeouts::write) ([`Timeouts::presence`](super::Timeouts::presence)).
    Handling,
    /// Output is blocked, or a connect is in progress. Entered by the loop only; the timer restarts whenever the peer
    /// acknowledges bytes.
    Writing,
    /// Lingering close after an error response: the sending side is shut down and further input is discarded. The timer
    /// restarts whenever input arrives. Entered by the loop only.
    Lingering,
    /// Lingering close after a regular last response, until the peer sends something; the connection is then in
    /// [`Phase::Lingering`]. Entered by the loop only.
    LingeringBriefly,
}

impl Phase {
    /// The number of phases.
    pub(super) const COUNT: usize = 10;

    /// Returns whether the timeout depends on the bytes that the peer sends or acknowledges.
    pub(super) fn depends_on_progress(self) -> bool {
        matches!(self, Phase::Body | Phase::Writing | Phase::Lingering | Phase::LingeringBriefly)
    }
}

/// The next action for a connection, returned by the methods of [`App`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flow {
    /// Continue reading, with the timeout of the given phase. After the end of input this acts as [`Flow::Close`].
    Read(Phase),
    /// Call [`App::receive`] again with the remaining input after other connections have been served, or once the
    /// blocked output has been sent.
    Yield(Phase),
    /// Deliver no input until a message arrives; the application resumes by returning [`Flow::Yield`]. The loop still
    /// buffers a small amount of input, in order to detect a reset by the peer. The end of input does not end a pause.
    Pause,
    /// Send the output, then close. Use it if the peer is not expected to send more, or if losing the end of the output
    /// is acceptable: if unread input may remain, the close lingers as with [`Flow::Linger`], but data that arrives
    /// after the close makes the kernel reset the connection.
    Close,
    /// Lingering close: send the output, shut down the sending side, then discard input (within limits) until the peer
    /// closes, so that a reset does not destroy the response in transit (RFC 9112 section 9.6).
    Linger,
    /// Lingering close, as with [`Flow::Linger`], of a connection whose input is rejected; reported as
    /// [`CloseReason::Refused`].
    Refuse,
    /// Reset the connection at once; unsent output is dropped.
    Abort,
    /// Keep the flow returned by the previous call. Not useful in [`App::receive`], where it repeats a
    /// [`Flow::Yield`] without end.
    Unchanged,
}

/// The reason a connection was closed.
#[derive(Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// The application closed it, and all output was sent.
    Done,
    /// The peer closed it.
    Peer,
    /// The timeout of this phase expired.
    Timeout(Phase),
    /// It had been idle longest, and a new connection needed its place: the connection limit was reached, or the
    /// process was out of file descriptors.
    Evicted,
    /// The peer accepted no output for [`Timeouts::write`](super::Timeouts::write).
    TooSlow,
    /// The application rejected the input or aborted the connection ([`Flow::Refuse`], [`Flow::Abort`]).
    Refused,
    /// Closed by a graceful shutdown (idle, timed out, or still open at its deadline) or by
    /// [`Handle::stop`](super::Handle::stop).
    Drain,
    /// The application panicked; the connection was reset.
    Panicked,
    /// A system call failed.
    Error(io::Error),
}

/// Details of a closed connection.
#[derive(Debug)]
#[non_exhaustive]
pub struct CloseInfo {
    /// The reason the connection was closed.
    pub reason: CloseReason,
    /// Number of output bytes that were not sent.
    pub unsent_bytes: u64,
    /// Wall-clock time in seconds since 1970, see [`Wire::unix_time`].
    pub unix_time: u64,
    /// Monotonic time since the loop was created, see [`Wire::now`].
    pub now: Duration,
}

/// A connection that has just been opened.
#[non_exhaustive]
pub struct Accepted<'a> {
    /// Index of the listener, in the order of the calls to [`EventLoop::listen`](super::EventLoop::listen); `None` for
    /// a stream that was added to the loop, and for an outgoing connection.
    pub listener: Option<usize>,
    /// The peer; `None` for a stream that was added to the loop, and for an outgoing connection.
    pub peer: Option<Peer>,
    pub(super) stream: &'a dyn Addresses,
    /// The value passed to [`Handle::connect`].
    pub(super) context: Option<&'a ContextCell>,
}

/// The addresses of a connection, queried from the operating system on demand, and its TLS session.
#[derive(Clone, Copy, Default)]
pub struct Addrs<'a> {
    pub(super) stream: Option<&'a dyn Addresses>,
}

impl Addrs<'_> {
    /// Returns the peer, or `None` if the socket is disconnected or there is no socket.
    pub fn peer(&self) -> Option<Peer> {
        self.stream?.peer().ok()
    }

    /// Returns the peer's address, or `None` if it has none (see [`Peer::Unix`]), the socket is disconnected or there
    /// is no socket.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer()?.addr()
    }

    /// Returns the local address, or `None` for a Unix socket, or if the socket is disconnected or there is no socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.stream?.local_addr().ok()
    }

    /// Returns the address that the connection comes from: that of the proxy's client if a PROXY header names it, and
    /// otherwise the peer's.
    pub fn source_addr(&self) -> Option<SocketAddr> {
        self.proxied().and_then(|proxied| proxied.source).or_else(|| self.peer_addr())
    }

    /// Returns the client's address for log messages. Formatting it queries the operating system.
    pub(crate) fn client(&self) -> impl fmt::Display {
        struct Client<'a>(Addrs<'a>);

        impl fmt::Display for Client<'_> {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                match (self.0.source_addr(), self.0.peer()) {
                    (Some(source), _) => write!(formatter, "{source}"),
                    (None, Some(peer)) => write!(formatter, "{peer}"),
                    (None, None) => formatter.write_str("an unknown client"),
                }
            }
        }

        Client(*self)
    }

    /// Returns the addresses of the PROXY header; `None` without one.
    pub fn proxied(&self) -> Option<Proxied> {
        self.stream?.proxied()
    }

    /// Returns whether the connection uses TLS.
    pub fn is_secure(&self) -> bool {
        self.stream.is_some_and(Addresses::is_secure)
    }

    /// Returns whether the client has connected to a server name (SNI) with another certificate than that of `host`,
    /// which is without a port. `false` if the client has not sent a server name, `host` has no certificate, or without
    /// TLS.
    pub(crate) fn is_misdirected(&self, host: &str) -> bool {
        self.stream.is_some_and(|stream| stream.is_misdirected(host))
    }

    /// Returns the parameters of the TLS session; `None` without TLS, or before the handshake is complete.
    #[cfg(feature = "tls")]
    pub fn tls(&self) -> Option<crate::tls::TlsInfo> {
        self.stream?.tls()
    }
}

#[cfg(feature = "tls")]
impl<'a> Addrs<'a> {
    /// Returns the verified certificate of the client; `None` if it has none, without TLS, or before the handshake is
    /// complete.
    pub fn client_certificate(&self) -> Option<&'a crate::tls::ClientCertificate> {
        self.stream?.client_certificate()
    }
}

impl Accepted<'_> {
    /// Creates a connection without a socket or addresses, for testing an application.
    pub fn detached() -> Self {
        Accepted { listener: None, peer: None, stream: &NoSocket, context: None }
    }

    /// Returns the peer's address; `None` for a Unix socket, for a stream that was added to the loop, and for an
    /// outgoing connection.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer?.addr()
    }

    /// Takes the value that was passed to [`Handle::connect`] for this connection, if it has the type `T`.
    pub fn take_context<T: Any>(&self) -> Option<T> {
        let cell = self.context?;
        match cell.take()?.downcast() {
            Ok(context) => Some(*context),
            Err(other) => {
                cell.set(Some(other));
                None
            }
        }
    }

    /// Returns the local address, queried from the operating system.
    ///
    /// # Errors
    /// Returns an error for a Unix socket, and if the socket is disconnected or there is no socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }
}

/// The object-safe part of a stream that [`Accepted`] needs.
pub(super) trait Addresses {
    fn local_addr(&self) -> io::Result<SocketAddr>;
    fn peer(&self) -> io::Result<Peer>;

    fn proxied(&self) -> Option<Proxied> {
        None
    }

    fn is_secure(&self) -> bool {
        false
    }

    #[cfg(feature = "tls")]
    fn tls(&self) -> Option<crate::tls::TlsInfo> {
        None
    }

    #[cfg(feature = "tls")]
    fn client_certificate(&self) -> Option<&crate::tls::ClientCertificate> {
        None
    }

    fn is_misdirected(&self, _host: &str) -> bool {
        false
    }
}

/// The stream of a connection without a socket; it has no addresses.
struct NoSocket;

impl Addresses for NoSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::NotConnected.into())
    }

    fn peer(&self) -> io::Result<Peer> {
        Err(io::ErrorKind::NotConnected.into())
    }
}

impl<S: Stream> Addresses for S {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Stream::local_addr(self)
    }

    fn peer(&self) -> io::Result<Peer> {
        Stream::peer(self)
    }

    fn proxied(&self) -> Option<Proxied> {
        Stream::proxied(self)
    }

    fn is_secure(&self) -> bool {
        Stream::is_encrypted(self)
    }

    #[cfg(feature = "tls")]
    fn tls(&self) -> Option<crate::tls::TlsInfo> {
        Stream::tls(self)
    }

    #[cfg(feature = "tls")]
    fn client_certificate(&self) -> Option<&crate::tls::ClientCertificate> {
        Stream::client_certificate(self)
    }

    fn is_misdirected(&self, host: &str) -> bool {
        Stream::is_misdirected(self, host)
    }
}

/// An application that runs on an event loop.
///
/// Each loop has one application value, which serves all connections of that loop and is always called on its thread.
///
/// Only [`App::open`] and [`App::receive`] must be implemented. The default bodies of the other methods do nothing,
/// except that the connection closes on a timeout and at the start of a graceful shutdown. A wrapper around another
/// application must forward all methods, including those with a default body.
///
/// A closure `FnMut(&mut Wire<'_, ()>) -> Flow` is an application that transforms input bytes into output bytes. It is
/// also called without input when a connection opens, so it can send a greeting.
///
/// A returned [`Flow`] replaces the previous one. To stay in a phase, return [`Flow::Read`] with that phase again.
///
/// # Examples
/// Counts the bytes each client sends and replies with the total at the end; idle clients are disconnected.
/// ```
/// use serverd::{Accepted, App, CloseReason, ConnId, CloseInfo, Flow, Output, Phase, Wire};
/// use std::convert::Infallible;
///
/// struct ByteCounter {
///     completed: u64,
/// }
///
/// impl App for ByteCounter {
///     type State = usize; // bytes received so far
///     type Message = Infallible; // no messages are sent
///
///     fn open(&mut self, _: &Accepted<'_>, wire: &mut Wire<'_, Infallible>) -> (usize, Flow) {
///         wire.output().extend(b"ready\n");
///         (0, Flow::Read(Phase::Idle))
///     }
///
///     fn receive(&mut self, received: &mut usize, wire: &mut Wire<'_, Infallible>) -> Flow {
///         *received += wire.input().len();
///         wire.consume(wire.input().len());
///         if !wire.ended() {
///             wire.restart_timer();
///             return Flow::Read(Phase::Idle);
///         }
///         wire.output().extend(format!("{received}\n").as_bytes());
///         Flow::Close
///     }
///
///     fn timer(&mut self, _: &mut usize, _: Phase, wire: &mut Wire<'_, Infallible>) -> Flow {
///         wire.output().extend(b"timed out\n");
///         Flow::Close
///     }
///
///     fn closed(&mut self, _: ConnId, _: usize, info: CloseInfo) {
///         self.completed += u64::from(matches!(info.reason, CloseReason::Done));
///     }
/// }
///
/// // Runs without a socket: four bytes, then the end of input.
/// let (mut output, mut messages) = (Output::new(), Vec::new());
/// let mut wire = Wire::from_bytes(b"abcd", true, &mut output, &mut messages);
/// let mut app = ByteCounter { completed: 0 };
/// let (mut received, _) = app.open(&Accepted::detached(), &mut wire);
/// assert_eq!(app.receive(&mut received, &mut wire), Flow::Close);
/// assert_eq!(output.to_vec(), b"ready\n4\n");
/// ```
pub trait App {
    /// The state of one connection.
    type State;
    /// A message that other connections or threads can send to a connection;
    /// [`Infallible`](std::convert::Infallible) if none are sent.
    type Message: Send + 'static;

    /// Called once before the loop runs. `remote` sends messages to the loop's connections from any thread. By default
    /// it is dropped.
    fn start(&mut self, remote: Remote<Self::Message>) {
        drop(remote);
    }

    /// Called when a connection opens. A server that sends a greeting writes it here. The returned flow sets the
    /// initial phase of the connection; [`Flow::Yield`] is treated as [`Flow::Read`].
    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, Self::Message>) -> (Self::State, Flow);

    /// Called when bytes or the end of input were received, or to continue after [`Flow::Yield`]. Input that is not
    /// consumed is passed again in the next call, followed by newly received bytes.
    fn receive(&mut self, state: &mut Self::State, wire: &mut Wire<'_, Self::Message>) -> Flow;

    /// Called when a message for this connection arrives. By default the message is dropped, for applications that send
    /// none.
    ///
    /// There is no input in this call, even if some was left unconsumed: return [`Flow::Yield`] to be called with it.
    fn message(&mut self, state: &mut Self::State, message: Self::Message, wire: &mut Wire<'_, Self::Message>) -> Flow {
        let _ = (state, message, wire);
        Flow::Unchanged
    }

    /// Called when blocked output was sent completely or has dropped to the low watermark
    /// ([`LoopLimits::output_resume_bytes`](super::LoopLimits::output_resume_bytes)), while the flow is [`Flow::Read`]
    /// or [`Flow::Pause`]. By default that flow is kept.
    fn output_drained(&mut self, state: &mut Self::State, wire: &mut Wire<'_, Self::Message>) -> Flow {
        let _ = (state, wire);
        Flow::Unchanged
    }

    /// Called when the timeout of a phase expires, or when an idle connection is to be closed for a new one
    /// ([`CloseReason::Evicted`]). The application may append a last response; returning
    /// [`Flow::Read`] restarts the timer of that phase. By default the connection closes.
    fn timer(&mut self, state: &mut Self::State, phase: Phase, wire: &mut Wire<'_, Self::Message>) -> Flow {
        let _ = (state, phase, wire);
        Flow::Close
    }

    /// Called once for each open connection when a graceful shutdown begins. To finish a message in progress, return
    /// [`Flow::Read`] or [`Flow::Pause`]. Connections that stay idle or silent are closed a second later. By default
    /// the connection closes once its output is sent.
    fn drain(&mut self, state: &mut Self::State, wire: &mut Wire<'_, Self::Message>) -> Flow {
        let _ = (state, wire);
        Flow::Close
    }

    /// Called after a connection was closed. By default its state is dropped.
    fn closed(&mut self, id: ConnId, state: Self::State, info: CloseInfo) {
        let _ = (id, info);
        drop(state);
    }

    /// Called at the end of each turn of the loop. Messages appended to `messages`, for connections of this loop, are
    /// delivered before the loop waits again. An application can use this to collect the output of a turn and send it
    /// in one write per connection. Does nothing by default.
    fn end_of_turn(&mut self, messages: &mut Vec<(ConnId, Self::Message)>) {
        let _ = messages;
    }
}

/// An application's view of a connection: input bytes, output bytes, no socket.
pub struct Wire<'a, M> {
    pub(super) id: ConnId,
    pub(super) input: &'a [u8],
    pub(super) consumed: usize,
    pub(super) output: &'a mut Output,
    pub(super) messages: &'a mut Vec<(ConnId, M)>,
    /// The range of `input` to echo without copying. Non-empty only while `output` is empty.
    pub(super) echoed: Range<usize>,
    pub(super) addrs: Addrs<'a>,
    pub(super) unix_time: u64,
    pub(super) now_ms: u64,
    pub(super) restarted: bool,
    pub(super) panics: u32,
    pub(super) ended: bool,
    pub(super) draining: bool,
}

impl<'a, M> Wire<'a, M> {
    /// Creates a wire over a byte slice, for testing an application without a socket.
    ///
    /// `input` is the received data; `ended` is true if no more input follows. Output and messages of the application
    /// are appended to `output` and `messages`.
    pub fn from_bytes(
        input: &'a [u8],
        ended: bool,
        output: &'a mut Output,
        messages: &'a mut Vec<(ConnId, M)>,
    ) -> Self {
        Wire {
            id: ConnId::detached(0),
            input,
            consumed: 0,
            output,
            messages,
            echoed: 0..0,
            addrs: Addrs::default(),
            unix_time: 0,
            now_ms: 0,
            restarted: false,
            panics: 0,
            ended,
            draining: false,
        }
    }

    /// Calls a closure with a view of this connection for an application with another message type. Messages that it
    /// sends are appended to `messages`.
    #[inline]
    pub(super) fn with_messages<N, R>(
        &mut self,
        messages: &mut Vec<(ConnId, N)>,
        call: impl FnOnce(&mut Wire<'_, N>) -> R,
    ) -> R {
        let mut inner = Wire {
            id: self.id,
            input: self.input,
            consumed: self.consumed,
            output: self.output,
            messages,
            echoed: self.echoed.clone(),
            addrs: self.addrs,
            unix_time: self.unix_time,
            now_ms: self.now_ms,
            restarted: self.restarted,
            panics: self.panics,
            ended: self.ended,
            draining: self.draining,
        };
        let outcome = call(&mut inner);
        let Wire { consumed, echoed, restarted, panics, .. } = inner;
        (self.consumed, self.echoed, self.restarted, self.panics) = (consumed, echoed, restarted, panics);
        outcome
    }

    /// Calls a closure with this connection as one with other input and output, for a session that decrypts and encrypts.
    /// Also returns the number of bytes of `input` that it has consumed.
    #[cfg(feature = "tls")]
    pub(crate) fn with_streams<R>(
        &mut self,
        (input, ended): (&[u8], bool),
        output: &mut Output,
        call: impl FnOnce(&mut Wire<'_, M>) -> R,
    ) -> (R, usize) {
        let mut inner = Wire {
            id: self.id,
            input,
            consumed: 0,
            output,
            messages: &mut *self.messages,
            echoed: 0..0,
            addrs: self.addrs,
            unix_time: self.unix_time,
            now_ms: self.now_ms,
            restarted: self.restarted,
            panics: self.panics,
            ended,
            draining: self.draining,
        };
        let outcome = call(&mut inner);
        let Wire { consumed, restarted, panics, .. } = inner;
        (self.restarted, self.panics) = (restarted, panics);
        (outcome, consumed)
    }

    /// Sets the connection id and the time since the loop was created, for testing an application.
    #[must_use]
    pub fn detached(self, id: ConnId, now: Duration) -> Self {
        Wire { id, now_ms: millis(now), ..self }
    }

    /// Returns the id of this connection.
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// Returns the addresses of this connection.
    #[inline]
    pub fn addrs(&self) -> Addrs<'a> {
        self.addrs
    }

    /// Returns the received bytes that are not consumed yet. Bytes that an earlier call has left are available only in
    /// [`App::receive`]: in other methods the slice is empty, even if [`Wire::ended`] is true. Return [`Flow::Yield`] from
    /// them to be called with these bytes.
    ///
    /// The slice does not borrow the wire, so output can be written while the input is read.
    #[inline]
    pub fn input(&self) -> &'a [u8] {
        &self.input[self.consumed..]
    }

    /// Returns the last `count` consumed bytes of this call.
    #[inline]
    pub(crate) fn last_consumed(&self, count: usize) -> &'a [u8] {
        &self.input[self.consumed.saturating_sub(count)..self.consumed]
    }

    /// Consumes the first `count` bytes of the input.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        self.consumed += count;
        debug_assert!(self.consumed <= self.input.len(), "consumed more than the input holds");
    }

    /// Returns the number of bytes consumed in this call.
    pub fn consumed(&self) -> usize {
        self.consumed
    }

    /// Returns whether the peer has closed its sending side: no more input will follow, except for bytes that are held
    /// for [`App::receive`], see [`Wire::input`].
    #[inline]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Returns the queue of unsent output.
    #[inline]
    pub fn output(&mut self) -> &mut Output {
        if self.echoed.end > 0 {
            self.copy_echoed();
        }
        self.output
    }

    /// Returns the number of unsent bytes, not counting input that is being echoed.
    #[inline]
    pub(crate) fn unsent(&self) -> usize {
        self.output.len()
    }

    /// Consumes the first `count` bytes of the input and echoes them. Bytes that the socket accepts at once are not
    /// copied.
    #[inline]
    pub fn send_back(&mut self, count: usize) {
        let start = self.consumed;
        self.consume(count);
        if self.output.is_empty() && self.echoed.is_empty() {
            self.echoed = start..self.consumed;
        } else {
            let bytes = &self.input[start..self.consumed];
            self.output().extend(bytes);
        }
    }

    #[cold]
    fn copy_echoed(&mut self) {
        let range = std::mem::take(&mut self.echoed);
        self.output.extend(&self.input[range]);
    }

    /// Sends a message to a connection of the same loop. It is dropped if that connection is closed.
    pub fn send(&mut self, to: ConnId, message: M) {
        self.messages.push((to, message));
    }

    /// Returns whether the loop is shutting down gracefully: finish messages in progress and start nothing new.
    #[inline]
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// Returns the wall-clock time in seconds since 1970, read at most once per second.
    #[inline]
    pub fn unix_time(&self) -> u64 {
        self.unix_time
    }

    /// Returns the monotonic time since the loop was created, read once per turn.
    #[inline]
    pub fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms)
    }

    /// Restarts the phase timer even if the next [`Flow`] names the current phase, for example when a new
    /// message begins.
    #[inline]
    pub fn restart_timer(&mut self) {
        self.restarted = true;
    }

    /// Counts a panic caught by the application itself in [`Counters::panics`](super::Counters::panics). Panics that
    /// reach the loop reset the connection and are counted by the loop.
    pub fn count_panic(&mut self) {
        self.panics += 1;
    }
}

/// Sends messages to the connections of one loop from any thread, and wakes the loop.
pub struct Remote<M> {
    /// The mailbox of the loop, or one that passes messages on to it.
    pub(super) mailbox: Arc<dyn Post<M>>,
}

impl<M> Clone for Remote<M> {
    fn clone(&self) -> Self {
        Remote { mailbox: Arc::clone(&self.mailbox) }
    }
}

impl<M: Send> Remote<M> {
    /// Sends a message. It is dropped if the connection is closed or the loop has ended.
    pub fn send(&self, to: ConnId, message: M) {
        self.mailbox.send(to, message);
    }

    /// Sends a message after `delay`, never earlier. It is dropped if the connection is closed or the loop has ended.
    pub fn send_later(&self, delay: Duration, to: ConnId, message: M)
    where
        M: 'static,
    {
        // Weak, since the mailbox holds the closure until the loop takes it.
        let mailbox = Arc::downgrade(&self.mailbox);
        let send = move || {
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.send(to, message);
            }
        };
        self.handle().call_later(delay, send);
    }

    /// Returns a handle that controls the loop.
    pub fn handle(&self) -> Handle {
        Handle { waker: Arc::clone(self.mailbox.waker()) }
    }

    /// Makes the loop run one turn, and thus call [`App::end_of_turn`].
    pub fn wake(&self) {
        self.mailbox.waker().wake();
    }

    /// Creates a remote that belongs to no loop and drops all messages, for testing an application.
    pub fn detached() -> Self
    where
        M: 'static,
    {
        Remote { mailbox: Mailbox::detached() }
    }
}

impl<F> App for F
where
    F: FnMut(&mut Wire<'_, ()>) -> Flow,
{
    type State = ();
    type Message = ();

    fn open(&mut self, _: &Accepted<'_>, wire: &mut Wire<'_, ()>) -> ((), Flow) {
        ((), self(wire))
    }

    fn receive(&mut self, _state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        self(wire)
    }
}
