//! The readiness loop: one thread, one loop, many connections.
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
//! What a user holds is a [`Poller`]: [`SelectLoop`] (everywhere), `EpollLoop` (Linux) or `KqueueLoop` (macOS and the
//! BSDs). Each is an [`EventLoop`] over a backend of [`Readiness`], whose contract is told in [`readiness`]. An
//! application implements [`App`], or is a closure over [`Wire`].

mod app;
mod capacity;
mod chaos;
mod connection;
mod eager;
mod event_loop;
mod file_range;
mod handover;
mod listener;
mod mailbox;
mod output;
mod read_ahead;
pub mod readiness;
mod schedule;
mod select;
mod socket;
mod table;
mod timers;
#[cfg(unix)]
mod watch;

#[cfg(target_os = "linux")]
mod epoll;
#[cfg(target_os = "linux")]
pub use epoll::Epoll;
/// A loop over Linux epoll.
#[cfg(target_os = "linux")]
pub type EpollLoop<A> = EventLoop<Epoll, A>;

// Unix besides Linux means macOS and the BSDs here; elsewhere mio would take another call. The flag has the file compiled
// on Linux, where epoll stands in for kqueue: see docs/PLATFORMS.md.
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
mod kqueue;
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
pub use kqueue::Kqueue;
/// A loop over kqueue.
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
pub type KqueueLoop<A> = EventLoop<Kqueue, A>;

/// A loop over the select call every system has.
pub type SelectLoop<A> = EventLoop<Select, A>;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use schedule::Task;

pub use app::{Accepted, App, Closed, ConnId, Ending, Ends, Flow, Phase, Remote, Wire};
pub use capacity::Capacity;
pub use chaos::{Chaos, ChaosListener, ChaosStream};
pub use event_loop::EventLoop;
#[cfg(feature = "files")]
pub(crate) use file_range::read_at;
pub use handover::{Acceptor, Handed, Stop};
pub use output::Output;
pub use readiness::Readiness;
pub use schedule::Timer;
pub use select::Select;
pub use socket::{TcpListener, TcpStream};
pub use timers::Timeouts;

/// A loop as its user sees it, whatever backend it has and whatever application it runs.
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
    /// Waits until something can make progress, and makes it.
    ///
    /// # Errors
    /// Only when the backend cannot wait any more, several times in a row. Faults of peers end connections, not turns.
    fn turn(&mut self) -> io::Result<Turn>;

    /// Turns until the loop is drained or stopped.
    ///
    /// # Errors
    /// As [`Poller::turn`].
    fn run(&mut self) -> io::Result<()>;

    /// Steers the loop from any thread.
    fn handle(&self) -> Handle;
}

/// What a turn says about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There will be more to do.
    Again,
    /// The loop was stopped, or has drained: nothing is open any more.
    Over,
}

/// Steers a loop from any thread, its own included. What is given to a loop that has ended is never called.
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
    bell: Arc<mailbox::Bell>,
}

impl Handle {
    /// Shuts the loop down gracefully: no new connection may begin, those that have are let in, then the listeners
    /// are closed, what is under way is finished, and the loop ends. Limited by [`Limits::drain`].
    ///
    /// On Linux a filter on the listeners drops requests for new connections, and the listeners are closed 100 ms
    /// later, so that handshakes under way are finished first. Elsewhere, and for a client more than 100 ms away, a
    /// connection that is completed between the last accept and the close is reset by the system.
    pub fn drain(&self) {
        self.bell.drain();
    }

    /// Ends the loop at once; open connections are closed.
    pub fn stop(&self) {
        self.bell.stop();
    }

    /// Makes the loop turn once.
    pub fn wake(&self) {
        self.bell.wake();
    }

    /// Calls a closure on the loop's thread, in its next turn, after those deferred before it. A closure that
    /// blocks stops every connection of the loop meanwhile.
    pub fn defer(&self, call: impl FnOnce() + Send + 'static) {
        self.bell.give(Task::once(Duration::ZERO, Box::new(call)));
    }

    /// Calls a closure on the loop's thread once `delay` is over, never earlier.
    pub fn call_later(&self, delay: Duration, call: impl FnOnce() + Send + 'static) -> Timer {
        self.call(Task::once(delay, Box::new(call)))
    }

    /// Calls a closure on the loop's thread again and again, with a pause of `period` (a millisecond at least)
    /// before each call. A loop that is busy for longer than that skips calls; it never makes up for them.
    pub fn call_every(&self, period: Duration, call: impl FnMut() + Send + 'static) -> Timer {
        self.call(Task::every(period, Box::new(call)))
    }

    fn call(&self, task: Task) -> Timer {
        let timer = task.timer();
        self.bell.give(task);
        timer
    }
}

/// What a loop grants each connection, and all of them.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes read from a connection before the others have their turn; also the size of the loop's read buffer. 64 KiB.
    pub read_bytes_per_turn: usize,
    /// Bytes written to a connection before the others have their turn. 256 KiB.
    pub write_bytes_per_turn: usize,
    /// Unconsumed input at which a connection is given up: an application that does not consume. 1 MiB.
    pub input_bytes_max: usize,
    /// Unsent output above which nothing more is read from a connection, nor asked of the application: a peer that
    /// does not read costs no more than this and one answer. 256 KiB.
    pub output_bytes_max: usize,
    /// Once reading stopped for unsent output, it goes on when no more than this is left. 128 KiB: well below the
    /// bound, so that a peer that takes its output in small pieces does not make the loop read in small pieces.
    pub output_resume_bytes: usize,
    /// What is read away from a refused peer before the socket is closed. 64 MiB.
    pub linger_bytes_max: u64,
    /// Connections that may wait to be accepted, up to the system's own limit (net.core.somaxconn on Linux). 4,096,
    /// what a burst of clients needs.
    pub backlog: u32,
    /// Connections accepted from a listener before those inside have their turn. 64.
    pub accepts_per_turn: usize,
    /// Connections held at once; more wait in the listen queue. 1,000,000, so that descriptors are the limit.
    /// Several loops share one bound by [`EventLoop::share_capacity`].
    pub connections_max: usize,
    /// How long a drain may last before what is left is closed. 30 s.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
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

/// What a loop has done since it was made; each is about one system call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Waits for readiness.
    pub waits: u64,
    /// Tries to accept.
    pub accepts: u64,
    /// Tries to accept that failed, other than for want of somebody who waits.
    pub accept_errors: u64,
    /// Reads.
    pub reads: u64,
    /// Flushes of output (one write each unless the output is large).
    pub writes: u64,
    /// Streams added to the backend, and changes of interest.
    pub registrations: u64,
    /// Connections closed.
    pub closes: u64,
    /// Panics of the application that were caught.
    pub panics: u64,
}
