//! Least-connections load balancing: one thread accepts for several loops, and hands each connection to the loop with
//! the fewest.
//!
//! On Linux the kernel can distribute the connections of a port over one listener per loop (`SO_REUSEPORT`), and
//! nothing is shared. On other systems, or to distribute a few long-lived connections evenly, a single [`Acceptor`]
//! listens. Each loop receives its connections through a [`HandoffListener`], which it uses like a listener: a queue of
//! accepted connections, and a socket that is readable while the queue is not empty.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::Counters;
use super::connection_limit::ConnectionLimit;
use super::listener::{Accept, ManagedListener};
use super::readiness::{Readiness, SystemSource, Token};
use super::select::{Select, SocketWaker};
use super::socket::{TcpListener, TcpStream};

const LISTENER_TOKEN: Token = Token(0);

/// Time for handshakes in progress to finish after new connections are stopped; the same as for a draining loop.
const DRAIN_ACCEPT: Duration = Duration::from_millis(100);

/// Maximum attempts to empty the accept queue while stopping, in case file descriptors or memory become available.
const DRAIN_ATTEMPTS_MAX: u32 = 10;

/// Connections accepted before the stop flag is checked again.
const ACCEPTS_PER_TURN: usize = 64;

/// Delay before a failed wait is retried.
const WAIT_RETRY_DELAY: Duration = Duration::from_millis(10);

/// Consecutive failed waits that are retried.
const WAIT_RETRIES_MAX: u32 = 10;

/// Accepted connections that a loop has not taken yet.
struct Queue {
    streams: Mutex<VecDeque<(TcpStream, SocketAddr)>>,
    /// Queue length for load comparison, without taking the lock.
    len: AtomicUsize,
    /// The loop has dropped its [`HandoffListener`].
    closed: AtomicBool,
    local_addr: SocketAddr,
    waker: SocketWaker,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(TcpStream, SocketAddr)>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, stream: TcpStream, peer: SocketAddr) {
        let mut streams = self.lock();
        streams.push_back((stream, peer));
        self.len.store(streams.len(), Ordering::Relaxed);
        drop(streams);
        // Fails if the socket buffer is full (wake-up already pending) or the loop is gone.
        while self.waker.wake().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {}
    }

    fn pop(&self) -> Option<(TcpStream, SocketAddr)> {
        let mut streams = self.lock();
        let first = streams.pop_front();
        self.len.store(streams.len(), Ordering::Relaxed);
        first
    }
}

/// Delivers the connections of an [`Acceptor`] to one loop; pass it to
/// [`EventLoop::listen`](super::EventLoop::listen) in place of a listening socket.
pub struct HandoffListener {
    queue: Arc<Queue>,
    wakeups: SocketWaker,
}

impl HandoffListener {
    /// Takes a connection from the queue; returns `WouldBlock` if it is empty.
    pub(super) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        if let Some(first) = self.queue.pop() {
            return Ok(first);
        }
        self.wakeups.clear();
        // Check again: a connection queued before the clear is found here, and a later one wakes the loop again.
        self.queue.pop().ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.queue.local_addr
    }

    pub(super) fn source(&self) -> &SystemSource {
        self.wakeups.source()
    }
}

impl std::fmt::Debug for HandoffListener {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("HandoffListener").field("local_addr", &self.queue.local_addr).finish_non_exhaustive()
    }
}

impl Drop for HandoffListener {
    fn drop(&mut self) {
        self.queue.closed.store(true, Ordering::SeqCst);
        self.queue.lock().clear();
    }
}

/// A loop that receives connections from the acceptor.
struct Worker {
    queue: Arc<Queue>,
    limit: ConnectionLimit,
}

impl Worker {
    fn load(&self) -> usize {
        self.limit.open_here() + self.queue.len.load(Ordering::Relaxed)
    }
}

/// Accepts connections for several loops, on a thread of its own, and hands each to the loop with the fewest
/// connections.
///
/// # Examples
/// ```
/// use serverd::r#loop::{Acceptor, ConnectionLimit, EventLoop, LoopLimits, Select};
/// use serverd::{HttpServer, Poller, Timeouts};
///
/// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let mut acceptor = Acceptor::new(listener, 1024)?;
/// let limit = ConnectionLimit::new(10_000);
/// let mut loops = Vec::new();
/// for _ in 0..2 {
///     let share = limit.share();
///     let app = HttpServer::new(|_| "hello\n");
///     let mut event_loop = EventLoop::<Select, _>::with_limits(Timeouts::default(), LoopLimits::default(), app)?;
///     event_loop.share_connection_limit(&share);
///     event_loop.listen(acceptor.add_worker(&share)?)?;
///     loops.push(event_loop);
/// }
/// let handles: Vec<_> = loops.iter().map(Poller::handle).collect();
/// let acceptor_handle = acceptor.handle();
/// let thread = std::thread::spawn(move || acceptor.run());
/// // ... run each loop on its own thread; to shut down gracefully:
/// acceptor_handle.stop();
/// thread.join().expect("no panic")?;
/// handles.iter().for_each(serverd::Handle::drain);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Acceptor {
    select: Select,
    listener: ManagedListener<Select>,
    local_addr: SocketAddr,
    workers: Vec<Worker>,
    /// Index at which the search for the least-loaded worker starts, so that equally loaded workers take turns.
    next: usize,
    handle: AcceptorHandle,
    start: Instant,
    counters: Counters,
}

/// Stops an [`Acceptor`] from any thread.
#[derive(Clone)]
pub struct AcceptorHandle {
    stopped: Arc<AtomicBool>,
    waker: Waker,
}

impl AcceptorHandle {
    /// Stops the acceptor: connections already in the accept queue are still accepted and handed over, then the
    /// listener is closed and [`Acceptor::run`] returns. The loops keep running.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.waker.wake_by_ref();
    }
}

impl Acceptor {
    /// Creates an acceptor for `listener`, with an accept queue of up to `backlog` connections.
    ///
    /// # Errors
    /// Returns an error if the system is out of file descriptors, or the listener cannot be made non-blocking.
    pub fn new(listener: impl Into<TcpListener>, backlog: u32) -> io::Result<Self> {
        let listener = listener.into();
        let local_addr = super::readiness::Listener::local_addr(&listener)?;
        let mut select = Select::new()?;
        let listener = ManagedListener::open(listener, backlog, &mut select, LISTENER_TOKEN)?;
        let handle = AcceptorHandle { stopped: Arc::default(), waker: select.waker() };
        let (start, counters) = (Instant::now(), Counters::default());
        Ok(Acceptor { select, listener, local_addr, workers: Vec::new(), next: 0, handle, start, counters })
    }

    /// Adds a loop and returns its listener. `limit` must be the loop's own [share](ConnectionLimit::share) of a common
    /// limit; its open connections determine the loop's load.
    ///
    /// # Errors
    /// Returns an error if the system cannot create a socket pair.
    pub fn add_worker(&mut self, limit: &ConnectionLimit) -> io::Result<HandoffListener> {
        let (wakeups, waker) = SocketWaker::pair()?;
        let queue = Arc::new(Queue {
            streams: Mutex::default(),
            len: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            local_addr: self.local_addr,
            waker,
        });
        self.workers.push(Worker { queue: Arc::clone(&queue), limit: limit.clone() });
        Ok(HandoffListener { queue, wakeups })
    }

    /// Returns a handle that can stop the acceptor from any thread.
    pub fn handle(&self) -> AcceptorHandle {
        self.handle.clone()
    }

    /// Accepts connections and hands them over until the acceptor is stopped or all loops are gone.
    ///
    /// # Errors
    /// Returns an error if waiting for readiness fails repeatedly. Accept errors are logged and retried.
    pub fn run(mut self) -> io::Result<()> {
        let (mut events, mut failed_waits) = (Vec::new(), 0);
        while !self.handle.stopped.load(Ordering::SeqCst) && self.workers.iter().any(|worker| !is_closed(worker)) {
            let due_ms = self.listener.due_ms();
            let timeout = (due_ms != u64::MAX).then(|| Duration::from_millis(due_ms.saturating_sub(self.now_ms())));
            events.clear();
            match self.select.wait(&mut events, timeout) {
                Ok(()) => failed_waits = 0,
                Err(error) if failed_waits == WAIT_RETRIES_MAX => return Err(error),
                Err(error) => {
                    failed_waits += 1;
                    log::warn!("cannot wait for connections: {error}; retrying");
                    std::thread::sleep(WAIT_RETRY_DELAY);
                }
            }
            if !events.is_empty() {
                self.listener.mark_ready();
            }
            self.accept();
        }
        self.drain_accept_queue();
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let now_ms = self.now_ms();
            if self.listener.due_ms() > now_ms {
                return;
            }
            if !self.is_below_limit() {
                return self.listener.pause_until_capacity(&mut self.select, now_ms, true);
            }
            if !self.accept_one() {
                return;
            }
        }
    }

    /// Accepts one connection; returns whether to try again immediately.
    fn accept_one(&mut self) -> bool {
        let now_ms = self.now_ms();
        match self.listener.accept(&mut self.select, &mut self.counters, now_ms) {
            Accept::Connection(stream, peer) => self.hand_over(stream, peer),
            Accept::Retry => {}
            Accept::Done => return false,
        }
        true
    }

    /// Returns whether the connection limit allows another connection. Connections still in a loop's queue are
    /// included, although no loop has counted them yet.
    fn is_below_limit(&self) -> bool {
        let Some(first) = self.workers.first() else {
            return false;
        };
        let queued: usize = self.workers.iter().map(|worker| worker.queue.len.load(Ordering::Relaxed)).sum();
        first.limit.open() + queued < first.limit.max()
    }

    /// Hands a connection to the running loop with the fewest connections.
    fn hand_over(&mut self, stream: TcpStream, peer: SocketAddr) {
        let (head, tail) = self.workers.split_at(self.next);
        let candidates = tail.iter().chain(head).filter(|worker| !is_closed(worker));
        if let Some(worker) = candidates.min_by_key(|worker| worker.load()) {
            worker.queue.push(stream, peer);
        }
        self.next = (self.next + 1) % self.workers.len().max(1);
    }

    /// Stops new connections, accepts those already in the queue, even beyond the connection limit, and closes the
    /// listener.
    fn drain_accept_queue(mut self) {
        if self.listener.stop_new_connections() {
            std::thread::sleep(DRAIN_ACCEPT);
        }
        for _ in 0..DRAIN_ATTEMPTS_MAX {
            self.listener.mark_ready();
            while self.accept_one() {}
            if self.listener.is_empty() {
                break;
            }
            std::thread::sleep(DRAIN_ACCEPT);
        }
        let Acceptor { listener, mut select, .. } = self;
        listener.close(&mut select);
    }
}

fn is_closed(worker: &Worker) -> bool {
    worker.queue.closed.load(Ordering::SeqCst)
}
