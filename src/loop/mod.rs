//! The event loop: one thread, one loop, many connections.
//!
//! ```text
//!        App (bytes in, bytes out)             echo, chat, HttpServer, your closure
//!            ^             |
//!            | Wire        | Flow
//!        EventLoop<B, A>                       sockets, clock, buffers, limits; written once
//!            ^             |
//!            | Event       | add, set_interest, remove, wait
//!       Select   Epoll   Kqueue                the operating system
//! ```
//!
//! The loop types are [`SelectLoop`] (every platform), `EpollLoop` (Linux) and `KqueueLoop` (macOS and the BSDs). All
//! implement [`Poller`], and each is an [`EventLoop`] over a backend that implements [`Readiness`]; see [`readiness`]
//! for the contract. An application implements [`App`] or is a closure over [`Wire`].

mod acceptor;
mod app;
#[cfg(feature = "testing")]
mod chaos;
mod connection;
mod connection_limit;
mod eager;
mod event_loop;
mod file_range;
mod listener;
mod mailbox;
#[cfg(unix)]
mod mio_poll;
mod output;
mod readahead;
pub mod readiness;
mod schedule;
mod select;
mod socket;
mod table;
mod timers;

#[cfg(target_os = "linux")]
mod epoll;
#[cfg(target_os = "linux")]
pub use epoll::Epoll;
/// A loop over Linux epoll.
#[cfg(target_os = "linux")]
pub type EpollLoop<A> = EventLoop<Epoll, A>;

// Unix other than Linux means macOS and the BSDs here; elsewhere mio does not use kqueue. The cfg flag compiles the
// module on Linux, with epoll in place of kqueue; see docs/PLATFORMS.md.
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
mod kqueue;
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
pub use kqueue::Kqueue;
/// A loop over kqueue.
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
pub type KqueueLoop<A> = EventLoop<Kqueue, A>;

/// A loop over `select()`, available on every platform.
pub type SelectLoop<A> = EventLoop<Select, A>;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use schedule::Task;

pub use acceptor::{Acceptor, AcceptorHandle, HandoffListener};
pub use app::{Accepted, Addrs, App, CloseInfo, CloseReason, ConnId, Flow, Phase, Remote, Wire};
#[cfg(feature = "testing")]
pub use chaos::{Chaos, ChaosListener, ChaosStream};
pub use connection_limit::ConnectionLimit;
pub use event_loop::EventLoop;
#[cfg(feature = "compress")]
pub(crate) use file_range::read_at;
pub use output::Output;
pub use readiness::Readiness;
pub use schedule::Timer;
pub use select::Select;
pub use socket::{TcpListener, TcpStream};
pub use timers::Timeouts;

/// The interface common to all event loops, independent of backend and application.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Poller, Response, SelectLoop};
/// use std::net::TcpListener;
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let mut server: Box<dyn Poller> =
///     Box::new(SelectLoop::new(listener, None, HttpServer::new(|_| Response::text("hello\n")))?);
/// let handle = server.handle();
/// std::thread::spawn(move || handle.drain());
/// server.run()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait Poller {
    /// Runs one turn: waits for events or the next deadline, then handles what is due.
    ///
    /// # Errors
    /// Returns an error if polling the backend fails repeatedly. A connection error closes only that connection.
    fn turn(&mut self) -> io::Result<Turn>;

    /// Runs turns until the loop is drained or stopped.
    ///
    /// # Errors
    /// Returns an error if polling the backend fails repeatedly.
    fn run(&mut self) -> io::Result<()>;

    /// Returns a handle that controls the loop from any thread.
    fn handle(&self) -> Handle;
}

/// The result of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The loop is still running.
    Again,
    /// The loop was stopped, or its graceful shutdown is complete. All connections and listeners are closed.
    Over,
}

/// Controls a loop from any thread, including its own.
///
/// A closure passed to a loop that has ended is never called.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Poller, Response, SelectLoop};
/// use std::{net::TcpListener, time::Duration};
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let mut server = SelectLoop::new(listener, None, HttpServer::new(|_| Response::text("hello\n")))?;
/// let handle = server.handle();
/// handle.defer(|| println!("in the first turn"));
/// let tick = handle.call_every(Duration::from_millis(2), || println!("again"));
/// let stop = server.handle();
/// handle.call_later(Duration::from_millis(10), move || {
///     tick.cancel();
///     stop.drain();
/// });
/// server.run()?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Handle {
    waker: Arc<mailbox::LoopWaker>,
}

impl Handle {
    /// Starts a graceful shutdown: stops new connections, accepts those already in the queue, closes the listeners,
    /// finishes in-flight requests, and ends the loop. [`LoopLimits::drain`] limits how long this may take.
    ///
    /// On Linux a filter on the listening sockets drops SYN packets, and the listeners are closed 100 ms later, so that
    /// handshakes in progress complete first. On other platforms, and for a client with a round-trip time above 100 ms,
    /// a connection established between the last accept and the close is reset by the kernel.
    pub fn drain(&self) {
        self.waker.drain();
    }

    /// Ends the loop at once; open connections are closed.
    pub fn stop(&self) {
        self.waker.stop();
    }

    /// Wakes the loop, which then runs at least one turn.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Calls a closure on the loop's thread in its next turn. Deferred closures are called in order. A closure that
    /// blocks stalls every connection of the loop.
    pub fn defer(&self, call: impl FnOnce() + Send + 'static) {
        self.waker.add_task(Task::once(Duration::ZERO, Box::new(call)));
    }

    /// Calls a closure on the loop's thread after `delay`, never earlier.
    pub fn call_later(&self, delay: Duration, call: impl FnOnce() + Send + 'static) -> Timer {
        self.call(Task::once(delay, Box::new(call)))
    }

    /// Calls a closure on the loop's thread repeatedly, `period` (at least one millisecond) after the previous call. If
    /// the loop is busy for longer than a period, the missed calls are skipped.
    pub fn call_every(&self, period: Duration, call: impl FnMut() + Send + 'static) -> Timer {
        self.call(Task::every(period, Box::new(call)))
    }

    fn call(&self, task: Task) -> Timer {
        let timer = task.timer();
        self.waker.add_task(task);
        timer
    }
}

/// Resource limits of a loop and of each of its connections.
#[derive(Clone, Debug)]
pub struct LoopLimits {
    /// Maximum bytes read from one connection per turn; also the size of the loop's read buffer. Default: 64 KiB.
    pub read_bytes_per_turn: usize,
    /// Maximum bytes written to one connection per turn. Default: 256 KiB.
    pub write_bytes_per_turn: usize,
    /// Maximum unconsumed input of a connection. A connection whose application leaves more unconsumed is closed with
    /// an error. Default: 1 MiB.
    pub input_bytes_max: usize,
    /// High watermark of unsent output: above it the loop stops reading from the connection and calling the application
    /// (back-pressure). A slow client thus uses at most this much memory plus one response. Default: 256 KiB.
    pub output_bytes_max: usize,
    /// Low watermark of unsent output: at or below it reading resumes. Default: 128 KiB. It is well below the high
    /// watermark, so that a client that drains its output in small pieces does not cause small reads.
    pub output_resume_bytes: usize,
    /// Maximum bytes discarded in a lingering close. Default: 64 MiB.
    pub linger_bytes_max: u64,
    /// Length of the listen queue, capped by the operating system (net.core.somaxconn on Linux). Default: 4,096, enough
    /// for bursts of new connections.
    pub backlog: u32,
    /// Maximum connections accepted from one listener per turn. Default: 64.
    pub accepts_per_turn: usize,
    /// Maximum open connections; further ones wait in the listen queue. Default: 1,000,000, so that in practice the
    /// file descriptor limit applies. Loops can share one limit, see [`EventLoop::share_connection_limit`].
    pub connections_max: usize,
    /// Maximum duration of a graceful shutdown; connections still open then are closed. Default: 30 s.
    pub drain: Duration,
}

impl Default for LoopLimits {
    fn default() -> Self {
        LoopLimits {
            read_bytes_per_turn: 64 * 1024,
            write_bytes_per_turn: 256 * 1024,
            input_bytes_max: 1024 * 1024,
            output_bytes_max: 256 * 1024,
            output_resume_bytes: 128 * 1024,
            linger_bytes_max: 64 * 1024 * 1024,
            backlog: 4096,
            accepts_per_turn: 64,
            connections_max: 1_000_000,
            drain: Duration::from_secs(30),
        }
    }
}

/// Activity counters of a loop since its creation. Most of them count system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Polls for events.
    pub waits: u64,
    /// Accept calls.
    pub accepts: u64,
    /// Failed accepts other than `WouldBlock`.
    pub accept_errors: u64,
    /// Read calls.
    pub reads: u64,
    /// Output flushes (one write each, unless the output is large).
    pub writes: u64,
    /// Streams added to the backend and changes of interest.
    pub registrations: u64,
    /// Connections closed.
    pub closes: u64,
    /// Application panics caught.
    pub panics: u64,
}
