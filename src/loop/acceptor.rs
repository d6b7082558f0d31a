//! Least-connections load balancing: one thread accepts for several loops, and hands each connection to the loop with
//! the fewest.
//!
//! On Linux the kernel can distribute the connections of a port over one listener per loop (`SO_REUSEPORT`), and
//! nothing is shared. On other systems, or to distribute a few long-lived connections evenly, a single [`Acceptor`]
//! listens. It accepts as a loop does ([`listener`](super::listener)), and each loop receives its connections through a
//! [`HandoffListener`].

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::connection_limit::ConnectionLimit;
use super::handoff::{HandoffListener, HandoffQueue};
use super::limits::{Counters, LoopLimits};
use super::listener::{AcceptContext, AcceptRound, AcceptStep, Listeners, is_public};
use super::peer::Peer;
use super::poller::{Command, LoopWaker, PollRetry};
use super::readiness::{Event, Readiness};
use super::select::Select;
use super::socket::SystemListener;
use super::std_ext::millis;

/// Accepts connections for several loops, on a thread of its own, and hands each to the loop with the fewest
/// connections.
///
/// # Examples
/// ```
/// use serverd::{Acceptor, ConnectionLimit, EventLoop, LoopLimits, Select};
/// use serverd::{HttpServer, Poller, Timeouts};
///
/// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let mut acceptor = Acceptor::new(listener, &LoopLimits::default())?;
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
    listeners: Listeners<Select>,
    accepts_per_turn: usize,
    workers: Vec<Arc<HandoffQueue>>,
    /// The acceptor's share of the connection limit; `None` before a loop is added.
    limit: Option<ConnectionLimit>,
    /// Index at which the search for the least-loaded loop starts, so that equally loaded loops take turns.
    next: usize,
    handle: AcceptorHandle,
    /// A connection from a public address was accepted.
    has_public_peers: bool,
    start: Duration,
    counters: Counters,
}

/// Stops an [`Acceptor`] from any thread.
#[derive(Clone)]
pub struct AcceptorHandle {
    waker: Arc<LoopWaker>,
}

impl AcceptorHandle {
    /// Stops the acceptor: connections already in the accept queue are still accepted and handed over, then the
    /// listener is closed and [`Acceptor::run`] returns. The loops keep running.
    pub fn stop(&self) {
        self.waker.stop();
    }
}

impl Acceptor {
    /// Creates an acceptor for `listener`. Of `limits`, the length of the accept queue and the accepts per turn apply
    /// to it.
    ///
    /// # Errors
    /// Returns an error if the system is out of file descriptors, or the listener cannot be made non-blocking.
    pub fn new(listener: impl Into<SystemListener>, limits: &LoopLimits) -> io::Result<Self> {
        let mut select = Select::new()?;
        let mut listeners = Listeners::new();
        listeners.add(listener.into(), limits.backlog, &mut select)?;
        let handle = AcceptorHandle { waker: LoopWaker::new(select.waker()) };
        Ok(Acceptor {
            start: select.now(),
            select,
            listeners,
            accepts_per_turn: limits.accepts_per_turn.max(1),
            workers: Vec::new(),
            limit: None,
            next: 0,
            handle,
            has_public_peers: false,
            counters: Counters::default(),
        })
    }

    /// Adds a loop and returns its listener. `limit` must be the loop's own [share](ConnectionLimit::share) of a common
    /// limit, which the loop uses too
    /// ([`EventLoop::share_connection_limit`](super::EventLoop::share_connection_limit)); its open connections
    /// determine the loop's load.
    ///
    /// # Errors
    /// Returns an error if the system cannot create a socket pair.
    pub fn add_worker(&mut self, limit: &ConnectionLimit) -> io::Result<HandoffListener> {
        self.limit.get_or_insert_with(|| limit.share());
        let (queue, listener) = HandoffQueue::open(limit.clone())?;
        self.workers.push(queue);
        Ok(listener)
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
        let (mut events, mut poll_retry) = (Vec::new(), PollRetry::default());
        while !self.is_stopped() {
            self.wait(&mut events, &mut poll_retry)?;
            self.accept(self.accepts_per_turn);
        }
        // Connections already in the accept queue are handed over, even beyond the connection limit.
        self.listeners.start_closing();
        self.accept(usize::MAX);
        self.listeners.schedule_close(self.now_ms(), self.has_public_peers);
        loop {
            if self.listeners.begin_close_attempt(self.now_ms()) {
                self.accept(usize::MAX);
                let now_ms = self.now_ms();
                self.listeners.end_close_attempt(&mut self.select, now_ms, true);
            }
            if self.listeners.is_empty() {
                return Ok(());
            }
            self.wait(&mut events, &mut poll_retry)?;
            self.accept(self.accepts_per_turn);
        }
    }

    fn is_stopped(&self) -> bool {
        self.handle.waker.command() == Command::Stop || self.workers.iter().all(|worker| worker.is_closed())
    }

    fn now_ms(&self) -> u64 {
        millis(self.select.now().saturating_sub(self.start))
    }

    /// Waits until a listener is ready or due, or the acceptor is stopped.
    fn wait(&mut self, events: &mut Vec<Event>, poll_retry: &mut PollRetry) -> io::Result<()> {
        let due_ms = self.listeners.next_accept_ms().min(self.listeners.next_close_ms());
        let timeout = (due_ms != u64::MAX).then(|| Duration::from_millis(due_ms.saturating_sub(self.now_ms())));
        events.clear();
        poll_retry.check(self.select.wait(events, timeout))?;
        if self.handle.waker.take_notified() && self.handle.waker.take_room().1 {
            self.listeners.on_capacity_freed();
        }
        for event in &*events {
            self.listeners.mark_ready(event.token);
        }
        Ok(())
    }

    /// Accepts up to `quota` connections from each listener.
    fn accept(&mut self, quota: usize) {
        let now_ms = self.now_ms();
        let Some(limit) = &self.limit else { return };
        let mut round = AcceptRound::new(quota);
        loop {
            let (backend, counters) = (&mut self.select, &mut self.counters);
            let context = AcceptContext { backend, counters, limit, now_ms };
            let new = match self.listeners.accept(&mut round, context) {
                AcceptStep::Connection(new) => new,
                // The listener is paused until a loop has closed an idle connection.
                AcceptStep::NoRoom => {
                    limit.request_room(&self.handle.waker);
                    continue;
                }
                AcceptStep::Done => return,
            };
            self.has_public_peers = self.has_public_peers || is_public(new.peer);
            hand_over(&self.workers, self.next, limit, new.stream.into_std(), new.peer);
            self.next = (self.next + 1) % self.workers.len();
        }
    }
}

/// Hands a connection to the running loop with the fewest connections; closes it if there is none.
fn hand_over(workers: &[Arc<HandoffQueue>], first: usize, limit: &ConnectionLimit, mut stream: TcpStream, peer: Peer) {
    let (head, tail) = workers.split_at(first);
    // A loop may end between the choice and the push.
    while let Some(worker) =
        tail.iter().chain(head).filter(|worker| !worker.is_closed()).min_by_key(|worker| worker.load())
    {
        match worker.push(limit, stream, peer) {
            Ok(()) => return,
            Err(returned) => stream = returned,
        }
    }
    limit.release(peer.ip());
}
