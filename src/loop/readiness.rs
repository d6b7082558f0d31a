//! The contract between the event loop and the operating system.
//!
//! A backend tells which sockets can make progress; it never reads, writes or calls an
//! application. Everything it promises is written here, so that a new backend can be judged
//! against this page alone:
//!
//! 1. After a source has returned [`io::ErrorKind::WouldBlock`] (or [`Received::more`], [`Sent::more`] was
//!    false), its next readiness is reported.
//! 2. Until then readiness may be reported again at every [`Readiness::wait`] (level-triggered:
//!    select) or not at all (edge-triggered: epoll, kqueue). Both are legal, and so are events without a cause.
//! 3. Errors and hang-ups are reported as readable, writable and `hangup`. The next read or write
//!    tells the truth.
//! 4. A wait that a signal interrupted is a wait that found nothing.
//! 5. [`Readiness::set_interest`] bounds repeats: a level-triggered backend must stay silent about
//!    a direction nobody is interested in, an edge-triggered one may report it.
//! 6. An event carries the token given to [`Readiness::add`]. After [`Readiness::remove`] and the close of
//!    the source that follows it at once, no later wait reports that token.
//!
//! The loop reaches sockets and the clock only through the associated types and methods here. That
//! makes [`Chaos`](super::Chaos), fault injection and simulated networks further implementations,
//! while for the system's own sockets everything is inlined and costs nothing.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::task::Waker;
use std::time::{Duration, SystemTime};

use super::file_range;

/// The system's monotonic clock, bare: the difference of two [`Instant`](std::time::Instant)s costs more than both.
#[cfg(unix)]
#[inline]
fn monotonic() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(not(unix))]
fn monotonic() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// What the system's own backends watch: whatever has a descriptor (Unix) or a socket (Windows).
#[cfg(unix)]
pub type SystemSource = dyn std::os::fd::AsFd;
/// What the system's own backends watch: whatever has a descriptor (Unix) or a socket (Windows).
#[cfg(windows)]
pub type SystemSource = dyn std::os::windows::io::AsSocket;

/// The loop's name for a source. A backend stores it and gives it back, nothing more.
/// [`Token::RESERVED`] belongs to the backend (its waker).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub usize);

impl Token {
    /// Never given to [`Readiness::add`]; a backend may use it for its own waker.
    pub const RESERVED: Token = Token(usize::MAX);
}

/// The directions the loop wants to hear about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Report when a read would make progress.
    pub read: bool,
    /// Report when a write would make progress.
    pub write: bool,
}

impl Interest {
    /// Reading only: the normal state of a connection.
    pub const READ: Interest = Interest { read: true, write: false };
    /// Neither: a connection that waits for the application.
    pub const NONE: Interest = Interest { read: false, write: false };
}

/// One source that can make progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The token of the source.
    pub token: Token,
    /// A read (or accept) may make progress.
    pub readable: bool,
    /// A write (or connect) may make progress.
    pub writable: bool,
    /// The peer closed its sending half, or an error is pending: a short read does not mean that the
    /// source is empty, the end of file may stand behind it.
    pub hangup: bool,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes read; 0 is the end of the stream.
    pub bytes: usize,
    /// Another read may bring more at once. When false, the source has nothing left but, perhaps, its end.
    pub more: bool,
}

/// What a write took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Bytes taken.
    pub bytes: usize,
    /// Another write may be taken at once. When false, the stream is full and its next readiness is reported.
    pub more: bool,
}

/// A connected byte stream that never blocks.
pub trait Stream {
    /// What a backend watches: [`SystemSource`] for the system's sockets, a name of its own in a simulated world.
    type Source: ?Sized;

    /// Reads into `buffer`, which is not empty. Retries when a signal interrupts.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; any other error ends the connection.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received>;

    /// Writes some of `bytes`. Retries when a signal interrupts.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits; any other error ends the connection.
    fn write(&mut self, bytes: &[u8]) -> io::Result<Sent>;

    /// Writes some of `slices`, in order, in one call where the system can.
    ///
    /// # Errors
    /// As [`Stream::write`].
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent>;

    /// As [`Stream::write`], of bytes that a file follows at once: they may wait for it, to leave together.
    ///
    /// # Errors
    /// As [`Stream::write`].
    fn write_more(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        self.write(bytes)
    }

    /// Sends some of a file, at most `count` bytes, which is not 0, from the position `offset`. Sending nothing means that
    /// the file ends there. Here it is read and written; a system that can do both in one call does it.
    ///
    /// # Errors
    /// As [`Stream::write`], and where the file cannot be read.
    fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
        file_range::copy(self, file, offset, count)
    }

    /// Whether [`Stream::send_file`] of these bytes would have to wait for a disk. Where that cannot be told it is no.
    fn is_cold(&mut self, _file: &File, _offset: u64, _count: usize) -> bool {
        false
    }

    /// Says to the peer that nothing more will come (FIN), and goes on reading.
    ///
    /// # Errors
    /// Where the connection is already gone.
    fn shutdown_write(&mut self) -> io::Result<()>;

    /// Makes the close that follows an abortive one (RST): unsent bytes are thrown away.
    fn abort(&mut self);

    /// The outcome of a connect that was under way when the stream was made: `Ok` once connected.
    ///
    /// # Errors
    /// Why the connect failed.
    fn connected(&mut self) -> io::Result<()>;

    /// The local end.
    ///
    /// # Errors
    /// Where the connection is already gone.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The other end.
    ///
    /// # Errors
    /// Where the connection is already gone.
    fn peer_addr(&self) -> io::Result<SocketAddr>;

    /// What the backend watches.
    fn source(&self) -> &Self::Source;
}

/// A listening socket that never blocks.
pub trait Listener {
    /// What it accepts.
    type Stream: Stream;

    /// Makes it non-blocking, gives it the options its streams inherit, and lets `backlog` connections wait to be
    /// accepted. Called once, before it is watched.
    ///
    /// # Errors
    /// Where the system refuses.
    fn prepare(&mut self, backlog: u32) -> io::Result<()>;

    /// Lets no further connection begin, where the system can do that to an open listener; those that have begun
    /// still come to [`Listener::accept`]. Returns whether it can.
    fn turn_away(&mut self) -> bool;

    /// Accepts one connection, non-blocking and without Nagle's delay. Retries when a signal interrupts.
    ///
    /// # Errors
    /// `WouldBlock` when nobody waits. Other errors concern this one connection or the resources of
    /// the process; the listener itself stays usable.
    fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddr)>;

    /// Where it listens.
    ///
    /// # Errors
    /// Where the system cannot tell.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// What the backend watches.
    fn source(&self) -> &<Self::Stream as Stream>::Source;
}

/// One way to learn which sockets are ready. See the [module](self) for what is promised.
pub trait Readiness: Sized {
    /// The listeners of this world.
    type Listener: Listener<Stream = Self::Stream>;
    /// The streams of this world.
    type Stream: Stream<Source = Self::Source>;
    /// What this backend watches.
    type Source: ?Sized;

    /// The name users know: `epoll`, `kqueue`, `select`.
    const NAME: &'static str;

    /// Whether readiness is reported again and again until it is used up (level-triggered). Only then is it
    /// worth a call to say that the loop has no interest in reading for a while.
    const REPEATS: bool;

    /// Makes a poller that watches nothing.
    ///
    /// # Errors
    /// Where the system has no descriptors or memory left.
    fn new() -> io::Result<Self>;

    /// Starts to watch `source`, which is in no other poller, under a token no other source has.
    /// What is ready already is reported by the next wait.
    ///
    /// # Errors
    /// Where the system refuses, or the source does not fit this backend's sets.
    fn add(&mut self, source: &Self::Source, token: Token, interest: Interest) -> io::Result<()>;

    /// Replaces the interest in a source that was added. What is ready already is reported (again) by the next wait.
    ///
    /// # Errors
    /// Where the system refuses.
    fn set_interest(&mut self, source: &Self::Source, token: Token, interest: Interest) -> io::Result<()>;

    /// Stops watching `source`, which the loop closes right afterwards (so a backend whose system forgets
    /// closed sources by itself has nothing to do).
    ///
    /// # Errors
    /// Where the source was not added.
    fn remove(&mut self, source: &Self::Source, token: Token) -> io::Result<()>;

    /// Appends what is ready to `events`, after waiting for it up to `timeout` (`None`: for ever).
    /// The waker's own event is swallowed.
    ///
    /// # Errors
    /// Only what makes further waiting senseless. An interrupted wait is an empty one.
    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()>;

    /// Something any thread can use to end the wait under way, or else the next one.
    fn waker(&self) -> Waker;

    /// The monotonic clock: the time since a moment that stays the same. Asked once per turn.
    fn now(&self) -> Duration {
        monotonic()
    }

    /// The calendar clock. Asked once a second.
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}
