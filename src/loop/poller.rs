//! The interface of all event loops, and the handle that controls a loop from other threads.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::mailbox::LoopWaker;
use super::schedule::{Task, Timer};

/// The interface common to all event loops, independent of backend and application. Only
/// [`EventLoop`](super::EventLoop) implements it.
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
pub trait Poller: sealed::Sealed {
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

/// Delay before a failed poll is retried.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Maximum consecutive failures that are retried.
const RETRIES_MAX: u32 = 10;

/// Retries failed polls, for example for lack of memory.
#[derive(Debug, Default)]
pub(super) struct PollRetry {
    /// Consecutive failed polls.
    errors: u32,
}

impl PollRetry {
    /// Checks the outcome of a poll. After a failure, waits before the next poll, or returns the error after too many
    /// consecutive failures.
    #[inline]
    pub(super) fn check(&mut self, outcome: io::Result<()>) -> io::Result<()> {
        match outcome {
            Ok(()) => {
                self.errors = 0;
                Ok(())
            }
            Err(error) => self.on_error(error),
        }
    }

    #[cold]
    fn on_error(&mut self, error: io::Error) -> io::Result<()> {
        self.errors += 1;
        if self.errors > RETRIES_MAX {
            return Err(error);
        }
        log::warn!("cannot poll for events: {error}; retrying");
        std::thread::sleep(RETRY_DELAY);
        Ok(())
    }
}

/// Keeps other crates from implementing [`Poller`], so that it can get more methods.
pub(super) mod sealed {
    pub trait Sealed {}
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
    pub(super) waker: Arc<LoopWaker>,
}

impl Handle {
    /// Starts a graceful shutdown: stops new connections, accepts those already in the queue, closes the listeners,
    /// finishes in-flight requests, and ends the loop. [`LoopLimits::drain`](super::LoopLimits::drain) limits how long this may take.
    ///
    /// On Linux a filter on the listening sockets drops SYN segments, and the listeners are closed 2 ms later, or 100 ms
    /// later if a connection from a public address is open, so that handshakes in progress complete first. On other
    /// platforms, and for a client with a longer round-trip time, a connection established between the last accept and
    /// the close is reset by the kernel.
    ///
    /// Idle connections are closed after a second, since a request may be in transit.
    pub fn drain(&self) {
        self.waker.drain();
    }

    /// Starts a graceful shutdown as [`Handle::drain`] does, except that it takes at most `limit`, instead of
    /// [`LoopLimits::drain`](super::LoopLimits::drain), and closes idle connections at once; a request in transit is lost.
    /// For programs that control the clients too, such as test suites. If a graceful shutdown is in progress, it is
    /// shortened.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Poller, Response, SelectLoop};
    /// use std::{net::TcpListener, time::Duration};
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let mut server = SelectLoop::new(listener, None, HttpServer::new(|_| Response::text("hello\n")))?;
    /// server.handle().drain_within(Duration::from_secs(1));
    /// server.run()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn drain_within(&self, limit: Duration) {
        self.waker.drain_within(limit);
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
