//! The boundary upward: what the loop asks of an application, and what it lends it.
//!
//! An [`App`] sees bytes, not readiness: it looks at [`Wire::input`], consumes what it understood,
//! appends to [`Wire::output`] and returns a [`Flow`]. It holds no socket, waits for nothing and
//! never learns which backend runs it. So the same application is tested over a byte slice, runs on
//! select and epoll, and would run on a completion-based loop too.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::mailbox::{Bell, Mailbox};
use super::output::Output;
use super::readiness::Stream;

/// One connection of one loop. The serial makes it unique: a slot that is used again gets another
/// one, so nothing meant for a connection that is gone ever reaches its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    pub(super) index: u32,
    pub(super) serial: u32,
}

impl ConnId {
    /// A connection of no loop, to test an application without sockets; see [`Wire::over`].
    pub fn detached(number: u32) -> Self {
        ConnId { index: number, serial: 0 }
    }
}

/// What a connection is doing, as far as time limits go. Every phase has its limit in
/// [`Timeouts`](super::Timeouts); the clock of a phase starts when the connection enters it and does not start anew
/// inside it, unless the application calls [`Wire::restart_clock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connected, and not a byte came yet.
    Silent,
    /// Within a message head.
    Head,
    /// Within a message body: each period of the limit has to bring [`Timeouts::body_rate`](super::Timeouts) bytes a second.
    Body,
    /// Between messages.
    Idle,
    /// Open, with no limit but the constructor's: raw TCP applications.
    Open,
    /// The application owes an answer; nothing limits it.
    Reply,
    /// Output is blocked. Entered by the loop alone; its clock starts anew whenever the peer takes bytes.
    Writing,
    /// A refusal is sent and the sending side shut; what the peer still sends is dropped. Entered by the loop alone.
    Lingering,
    /// The same after an answer that was the last by the server's will, until the peer sends something.
    Parting,
}

impl Phase {
    /// How many there are.
    pub(super) const COUNT: usize = 9;
}

/// What is to become of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on reading, within the limit of a phase. After the end of input this means [`Flow::Close`].
    Read(Phase),
    /// There is more to do with the input at hand: call again after the other connections had their turn,
    /// or once enough of the output is sent.
    Yield(Phase),
    /// Show no more input until a letter comes; then [`Flow::Yield`] shows what is at hand. A little is read ahead
    /// meanwhile, so that a peer that resets the connection is noticed. The end of input does not end a pause.
    Pause,
    /// Send the output, then close. For a peer that will send no more, or may lose what it still sends: unread input
    /// is looked for, but what comes after the close is answered by the system with a reset.
    Close,
    /// Send the output, then say the end and read away what the peer is still sending (within bounds),
    /// so that a reset does not destroy the answer on its way (RFC 9112 section 9.6).
    Linger,
    /// As [`Flow::Linger`], for input that is refused.
    Refuse,
    /// Close at once, with a reset; output is thrown away.
    Abort,
}

/// Why a connection ended.
#[derive(Debug)]
pub enum Closed {
    /// The application said so and everything was sent.
    Done,
    /// The peer closed.
    Peer,
    /// The limit of this phase ran out.
    Timeout(Phase),
    /// The peer took no byte of the output for the writing limit.
    TooSlow,
    /// The application refused the input, and the answer was sent.
    Refused,
    /// The loop drains and the connection had nothing under way, or the loop was stopped.
    Drain,
    /// The application panicked; the connection was reset.
    Panicked,
    /// A system call failed.
    Error(io::Error),
}

/// How a connection ended, and when.
#[derive(Debug)]
pub struct Ending {
    /// Why.
    pub reason: Closed,
    /// Output that was not sent.
    pub unsent_bytes: u64,
    /// Seconds since 1970 by the calendar clock, as [`Wire::wall`].
    pub wall: u64,
    /// The loop's own clock, as [`Wire::now`].
    pub now: Duration,
}

/// What is known of a connection when it opens.
pub struct Accepted<'a> {
    /// Which listener, in the order they were given to the loop; `None` for an adopted socket.
    pub listener: Option<usize>,
    /// The peer's address.
    pub peer: Option<SocketAddr>,
    pub(super) stream: &'a dyn Addresses,
}

/// The addresses of a connection, asked from the system when somebody wants to know.
#[derive(Clone, Copy, Default)]
pub struct Ends<'a> {
    pub(super) stream: Option<&'a dyn Addresses>,
}

impl Ends<'_> {
    /// The peer's address; `None` where the connection is gone already, or there is no socket.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.stream?.peer().ok()
    }

    /// The local address; `None` where the connection is gone already, or there is no socket.
    pub fn local(&self) -> Option<SocketAddr> {
        self.stream?.local().ok()
    }
}

impl Accepted<'_> {
    /// A connection without a socket, to test an application: it has no address.
    pub fn detached() -> Self {
        Accepted { listener: None, peer: None, stream: &Nowhere }
    }

    /// The local address, asked from the system when called.
    ///
    /// # Errors
    /// Where the connection is gone already.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local()
    }
}

/// The object-safe part of a stream that [`Accepted`] needs.
pub(super) trait Addresses {
    fn local(&self) -> io::Result<SocketAddr>;
    fn peer(&self) -> io::Result<SocketAddr>;
}

/// The stream of a connection without a socket.
struct Nowhere;

impl Addresses for Nowhere {
    fn local(&self) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::NotConnected.into())
    }

    fn peer(&self) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::NotConnected.into())
    }
}

impl<S: Stream> Addresses for S {
    fn local(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }

    fn peer(&self) -> io::Result<SocketAddr> {
        self.peer_addr()
    }
}

/// An application: one value per loop, called for every connection of it, never from two threads.
///
/// There are no default bodies, on purpose: a wrapper around an application that forgets a method
/// would silently cut it off from what it needs to hear.
///
/// A closure `FnMut(&mut Wire<'_, ()>) -> Flow` is an application that answers bytes with bytes. It is called when a
/// connection opens too, without input, so it may speak first.
///
/// Each method that returns a [`Flow`] replaces the one before: who was in a phase and is to stay there returns
/// [`Flow::Read`] with that phase again.
///
/// # Examples
/// Counts what each client sends and tells it the sum at the end; whoever says nothing for a while is told to go.
/// ```
/// use serverd::r#loop::{Accepted, App, Closed, ConnId, Ending, Flow, Output, Phase, Remote, Wire};
/// use std::convert::Infallible;
///
/// struct Sum {
///     ended_well: u64,
/// }
///
/// impl App for Sum {
///     type State = usize; // what came so far
///     type Letter = Infallible; // nobody posts any
///
///     fn start(&mut self, _: Remote<Infallible>) {}
///
///     fn open(&mut self, _: &Accepted<'_>, wire: &mut Wire<'_, Infallible>) -> (usize, Flow) {
///         wire.output().extend(b"go on\n");
///         (0, Flow::Read(Phase::Idle))
///     }
///
///     fn receive(&mut self, sum: &mut usize, wire: &mut Wire<'_, Infallible>) -> Flow {
///         *sum += wire.input().len();
///         wire.consume(wire.input().len());
///         if !wire.ended() {
///             wire.restart_clock();
///             return Flow::Read(Phase::Idle);
///         }
///         wire.output().extend(format!("{sum}\n").as_bytes());
///         Flow::Close
///     }
///
///     fn letter(&mut self, _: &mut usize, letter: Infallible, _: &mut Wire<'_, Infallible>) -> Flow {
///         match letter {}
///     }
///
///     fn drained(&mut self, _: &mut usize, _: &mut Wire<'_, Infallible>) -> Flow {
///         Flow::Read(Phase::Idle)
///     }
///
///     fn timer(&mut self, _: &mut usize, _: Phase, wire: &mut Wire<'_, Infallible>) -> Flow {
///         wire.output().extend(b"too late\n");
///         Flow::Close
///     }
///
///     fn drain(&mut self, _: &mut usize, _: &mut Wire<'_, Infallible>) -> Flow {
///         Flow::Close
///     }
///
///     fn closed(&mut self, _: ConnId, _: usize, ending: Ending) {
///         self.ended_well += u64::from(matches!(ending.reason, Closed::Done));
///     }
///
///     fn end_of_turn(&mut self, _: &mut Vec<(ConnId, Infallible)>) {}
/// }
///
/// // Without a socket: four bytes and the end.
/// let (mut output, mut posts) = (Output::new(), Vec::new());
/// let mut wire = Wire::over(b"abcd", true, &mut output, &mut posts);
/// let mut app = Sum { ended_well: 0 };
/// let (mut sum, _) = app.open(&Accepted::detached(), &mut wire);
/// assert_eq!(app.receive(&mut sum, &mut wire), Flow::Close);
/// assert_eq!(output.to_vec(), b"go on\n4\n");
/// ```
pub trait App {
    /// One connection's own state.
    type State;
    /// What other connections or threads may post to a connection.
    type Letter: Send + 'static;

    /// The loop is about to run. `remote` posts letters from any thread.
    fn start(&mut self, remote: Remote<Self::Letter>);

    /// A connection opened. A server that speaks first writes its greeting here. The flow says which
    /// phase the connection begins in; [`Flow::Yield`] counts as [`Flow::Read`].
    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, Self::Letter>) -> (Self::State, Flow);

    /// Bytes came, or the end of input, or the application had yielded. What is not consumed is shown
    /// again, followed by what came since.
    fn receive(&mut self, state: &mut Self::State, wire: &mut Wire<'_, Self::Letter>) -> Flow;

    /// A letter came.
    fn letter(&mut self, state: &mut Self::State, letter: Self::Letter, wire: &mut Wire<'_, Self::Letter>) -> Flow;

    /// Output that was blocked is sent, or fell to the low mark
    /// ([`Limits::output_resume_bytes`](super::Limits)). Called only when the flow is [`Flow::Read`] or [`Flow::Pause`].
    fn drained(&mut self, state: &mut Self::State, wire: &mut Wire<'_, Self::Letter>) -> Flow;

    /// The limit of a phase ran out. A last answer may be appended; returning [`Flow::Read`] starts the
    /// clock of that phase anew.
    fn timer(&mut self, state: &mut Self::State, phase: Phase, wire: &mut Wire<'_, Self::Letter>) -> Flow;

    /// The loop began to drain. Called once for each connection, which still may have a message under way:
    /// to finish it, return [`Flow::Read`] or [`Flow::Pause`]. Idle and silent connections are closed a second later.
    fn drain(&mut self, state: &mut Self::State, wire: &mut Wire<'_, Self::Letter>) -> Flow;

    /// The connection is gone.
    fn closed(&mut self, id: ConnId, state: Self::State, ending: Ending);

    /// Everything of this turn of the loop was done. Letters that are appended to `posts`, for connections of this
    /// loop, are delivered before it waits again; so an application can gather what a turn brought each connection
    /// and have it leave in one send.
    fn end_of_turn(&mut self, posts: &mut Vec<(ConnId, Self::Letter)>);
}

/// A connection as an application sees it: bytes in, bytes out, no socket.
pub struct Wire<'a, L> {
    pub(super) id: ConnId,
    pub(super) input: &'a [u8],
    pub(super) consumed: usize,
    pub(super) output: &'a mut Output,
    pub(super) posts: &'a mut Vec<(ConnId, L)>,
    /// Input to be sent back from where it lies. Not empty only while the output is.
    pub(super) returned: Range<usize>,
    pub(super) ends: Ends<'a>,
    pub(super) wall: u64,
    pub(super) now_ms: u64,
    pub(super) restarted: bool,
    pub(super) panics: u32,
    pub(super) ended: bool,
    pub(super) draining: bool,
}

impl<'a, L> Wire<'a, L> {
    /// A wire over a byte slice, to test an application without a socket: `input` is what came,
    /// `ended` whether the peer closed after it; what the application writes is seen through [`Wire::output`].
    pub fn over(input: &'a [u8], ended: bool, output: &'a mut Output, posts: &'a mut Vec<(ConnId, L)>) -> Self {
        Wire {
            id: ConnId::detached(0),
            input,
            consumed: 0,
            output,
            posts,
            returned: 0..0,
            ends: Ends::default(),
            wall: 0,
            now_ms: 0,
            restarted: false,
            panics: 0,
            ended,
            draining: false,
        }
    }

    /// The same wire as the connection `id` has it, `now` after the loop was made; for tests as well.
    #[must_use]
    pub fn detached(self, id: ConnId, now: Duration) -> Self {
        Wire { id, now_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX), ..self }
    }

    /// This connection.
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// The connection's addresses.
    #[inline]
    pub fn ends(&self) -> Ends<'a> {
        self.ends
    }

    /// The bytes that came and are not consumed yet. They live as long as the call, not as the borrow
    /// of the wire, so output can be written while they are read.
    #[inline]
    pub fn input(&self) -> &'a [u8] {
        &self.input[self.consumed..]
    }

    /// Marks the first `count` bytes of the input as done with.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        self.consumed += count;
        debug_assert!(self.consumed <= self.input.len(), "consumed more than there is");
    }

    /// How much has been consumed in this call.
    pub fn consumed(&self) -> usize {
        self.consumed
    }

    /// The peer has sent its last byte; the input is all there will ever be.
    #[inline]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// What is still to be sent.
    #[inline]
    pub fn output(&mut self) -> &mut Output {
        if !self.returned.is_empty() {
            self.copy_returned();
        }
        self.output
    }

    /// How much output there is to send, apart from input on its way back.
    #[inline]
    pub(crate) fn unsent(&self) -> usize {
        self.output.len()
    }

    /// Consumes the first `count` bytes of the input and sends them back, without a copy where the socket takes them.
    #[inline]
    pub fn send_back(&mut self, count: usize) {
        let start = self.consumed;
        self.consume(count);
        if self.output.is_empty() && self.returned.is_empty() {
            self.returned = start..self.consumed;
        } else {
            let bytes = &self.input[start..self.consumed];
            self.output().extend(bytes);
        }
    }

    #[cold]
    fn copy_returned(&mut self) {
        let range = std::mem::take(&mut self.returned);
        self.output.extend(&self.input[range]);
    }

    /// Sends a letter to a connection of the same loop. It is dropped when that connection is gone.
    pub fn post(&mut self, to: ConnId, letter: L) {
        self.posts.push((to, letter));
    }

    /// The loop is shutting down: finish what is under way and take nothing new.
    #[inline]
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// Seconds since 1970 by the calendar clock, read at most once a second.
    #[inline]
    pub fn wall(&self) -> u64 {
        self.wall
    }

    /// The loop's own clock: time since it was made, read once a turn, never set back.
    #[inline]
    pub fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms)
    }

    /// The next phase begins now, even where it is the phase the connection is in: a new message began.
    #[inline]
    pub fn restart_clock(&mut self) {
        self.restarted = true;
    }

    /// Counts a panic that the application has caught itself, in [`Counters::panics`](super::Counters::panics). One
    /// that it does not catch costs the connection, and is counted anyway.
    pub fn count_panic(&mut self) {
        self.panics += 1;
    }
}

/// Posts letters to the connections of one loop from any thread, and wakes the loop.
pub struct Remote<L> {
    pub(super) mailbox: Arc<Mailbox<L>>,
}

impl<L> Clone for Remote<L> {
    fn clone(&self) -> Self {
        Remote { mailbox: Arc::clone(&self.mailbox) }
    }
}

impl<L: Send> Remote<L> {
    /// Posts a letter. It is dropped when the connection, or the loop, is gone.
    pub fn post(&self, to: ConnId, letter: L) {
        self.mailbox.post(to, letter);
    }

    /// Makes the loop turn once, so that its application is told of the end of a turn.
    pub fn wake(&self) {
        self.mailbox.bell.wake();
    }

    /// A remote of no loop, to test an application: letters go nowhere.
    pub fn detached() -> Self {
        Remote { mailbox: Mailbox::new(Bell::new(Waker::noop().clone())) }
    }
}

impl<F> App for F
where
    F: FnMut(&mut Wire<'_, ()>) -> Flow,
{
    type State = ();
    type Letter = ();

    fn start(&mut self, _: Remote<()>) {}

    fn open(&mut self, _: &Accepted<'_>, wire: &mut Wire<'_, ()>) -> ((), Flow) {
        ((), self(wire))
    }

    fn receive(&mut self, _state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        self(wire)
    }

    fn letter(&mut self, _state: &mut (), _letter: (), _wire: &mut Wire<'_, ()>) -> Flow {
        Flow::Read(Phase::Open)
    }

    fn drained(&mut self, _state: &mut (), _wire: &mut Wire<'_, ()>) -> Flow {
        Flow::Read(Phase::Open)
    }

    fn timer(&mut self, _state: &mut (), _phase: Phase, _wire: &mut Wire<'_, ()>) -> Flow {
        Flow::Close
    }

    fn drain(&mut self, _state: &mut (), _wire: &mut Wire<'_, ()>) -> Flow {
        Flow::Close
    }

    fn closed(&mut self, _: ConnId, _state: (), _: Ending) {}

    fn end_of_turn(&mut self, _: &mut Vec<(ConnId, ())>) {}
}
