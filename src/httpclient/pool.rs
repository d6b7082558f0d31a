//! The connections to each upstream, the requests that wait for one, and the limits of both.
//!
//! A request uses an idle connection of its own loop, otherwise opens one, otherwise uses an idle connection of another loop,
//! otherwise waits. A connection that becomes idle serves a waiting request first. No callback is called with the lock held.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::error::ClientError;
use super::job::Job;
use super::url::Key;
use crate::http1::Limits;
use crate::httpserver::SessionWaker;
use crate::r#loop::{Handle, Timer, lock};
#[cfg(feature = "tls")]
use crate::tls::ClientTls;

/// The limits of a [`Client`](super::Client), shared by all loops that use it.
///
/// # Examples
/// ```
/// use serverd::{Client, ClientLimits};
/// use std::time::Duration;
///
/// let limits = ClientLimits::default().upstream_connections_max(64).response_timeout(Duration::from_secs(5));
/// let client = Client::with_limits(limits);
/// # drop(client);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientLimits {
    /// Maximum time to resolve the name of an upstream and to connect to it. Default: 10 s.
    pub connect_timeout: Duration,
    /// Maximum time without progress: the upstream neither accepts bytes of the request nor sends bytes of the response. Time
    /// in which the proxy waits for its own client does not count. Default: 60 s.
    pub response_timeout: Duration,
    /// Time after which an unused connection is closed, if the loop's idle timeout is not shorter. Default: 30 s.
    pub idle_timeout: Duration,
    /// Maximum connections to one upstream, at least 1. Default: 256.
    pub upstream_connections_max: usize,
    /// Maximum connections to all upstreams, at least 1. Default: 1,024.
    pub connections_max: usize,
    /// Maximum unused connections that are kept to one upstream. Default: 64.
    pub idle_connections_max: usize,
    /// Maximum requests that wait for a connection to one upstream, for up to the connect timeout. Further ones fail with
    /// [`ClientError::Busy`](super::ClientError::Busy). Default: 1,024.
    pub queue_max: usize,
    /// Maximum size of a response body that is collected in memory, in bytes. A response that is forwarded has no limit.
    /// Default: 1 MiB.
    pub body_bytes_max: usize,
    /// Limits on the head and the trailers of a response.
    pub head: Limits,
}

impl ClientLimits {
    setters! {
        connect_timeout: Duration,
        response_timeout: Duration,
        idle_timeout: Duration,
        upstream_connections_max: usize,
        connections_max: usize,
        idle_connections_max: usize,
        queue_max: usize,
        body_bytes_max: usize,
        head: Limits,
    }
}

impl Default for ClientLimits {
    fn default() -> Self {
        ClientLimits {
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(30),
            upstream_connections_max: 256,
            connections_max: 1024,
            idle_connections_max: 64,
            queue_max: 1024,
            body_bytes_max: 1024 * 1024,
            head: Limits::default(),
        }
    }
}

/// Placeholder without the feature `tls`.
#[cfg(not(feature = "tls"))]
type ClientTls = std::convert::Infallible;

/// A connection, as shared by the pool and its session.
pub(super) struct Line {
    pub(super) key: Arc<Key>,
    /// Identifies the loop of the connection.
    loop_id: usize,
    pub(super) waker: OnceLock<SessionWaker>,
    /// The request that the session is to send next.
    job: Mutex<Option<Job>>,
    /// The highest number of a cancelled exchange.
    cancelled: AtomicU64,
}

impl Line {
    /// Creates the shared part of a connection that is being opened for a request.
    pub(super) fn new(key: Arc<Key>, handle: &Handle, job: Job) -> Self {
        let (waker, job, cancelled) = (OnceLock::new(), Mutex::new(Some(job)), AtomicU64::new(0));
        Line { key, loop_id: handle.loop_id(), waker, job, cancelled }
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    /// Returns a closure that wakes the session, without keeping the connection alive.
    pub(super) fn wake_callback(self: &Arc<Self>) -> impl Fn() + Send + Sync + 'static {
        let line = Arc::downgrade(self);
        move || {
            if let Some(line) = line.upgrade() {
                line.wake();
            }
        }
    }

    /// Returns a closure that ends an exchange, as [`Line::cancel`] does, without keeping the connection alive.
    pub(super) fn cancel_callback(self: &Arc<Self>, serial: u64) -> impl FnOnce() + Send + 'static {
        let line = Arc::downgrade(self);
        move || {
            if let Some(line) = line.upgrade() {
                line.cancel(serial);
            }
        }
    }

    pub(super) fn take_job(&self) -> Option<Job> {
        lock(&self.job).take()
    }

    pub(super) fn put_job(&self, job: Job) {
        *lock(&self.job) = Some(job);
        self.wake();
    }

    /// Ends an exchange when nothing receives its response any more, unless the connection is used for a later one.
    fn cancel(&self, serial: u64) {
        self.cancelled.fetch_max(serial, Ordering::SeqCst);
        self.wake();
    }

    /// Closes this idle connection to make room for one to another upstream.
    fn retire(&self) {
        self.cancel(u64::MAX);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.is_cancelled(u64::MAX)
    }

    pub(super) fn is_cancelled(&self, serial: u64) -> bool {
        self.cancelled.load(Ordering::Relaxed) >= serial
    }
}

/// A request that waits for a connection.
struct Waiting {
    serial: u64,
    job: Job,
    timer: Timer,
}

#[derive(Default)]
struct Connections {
    open: usize,
    idle: Vec<Arc<Line>>,
    waiting: VecDeque<Waiting>,
}

impl Connections {
    /// Takes the request that waits longest. Those that nothing waits for any more are moved to `closed`.
    fn next_waiting(&mut self, closed: &mut Vec<Job>) -> Option<Job> {
        loop {
            let Waiting { job, timer, .. } = self.waiting.pop_front()?;
            timer.cancel();
            if !job.sink.is_closed() {
                return Some(job);
            }
            closed.push(job);
        }
    }
}

#[derive(Default)]
struct State {
    upstreams: HashMap<Arc<Key>, Connections>,
    open: usize,
    serial: u64,
}

impl State {
    /// Forgets an upstream without connections and requests.
    fn forget(&mut self, key: &Arc<Key>) {
        if self.upstreams.get(key).is_some_and(|connections| connections.open == 0 && connections.waiting.is_empty()) {
            self.upstreams.remove(key);
        }
    }

    /// Closes an unused connection, so that one to another upstream can be opened.
    fn retire_idle(&mut self) {
        let idle = self.upstreams.values_mut().find(|connections| !connections.idle.is_empty());
        if let Some(connections) = idle {
            connections.idle.remove(0).retire();
        }
    }
}

/// The connections of a client.
pub(super) struct Pool {
    pub(super) limits: ClientLimits,
    /// TLS of connections to https upstreams.
    pub(super) tls: Option<ClientTls>,
    state: Mutex<State>,
}

/// The result of [`Pool::plan`].
pub(super) enum Plan {
    Use(Arc<Line>, Job),
    Open(Job),
    Wait,
    Refuse(Job),
}

impl Pool {
    pub(super) fn new(mut limits: ClientLimits) -> Self {
        for limit in [&mut limits.upstream_connections_max, &mut limits.connections_max] {
            *limit = (*limit).max(1);
        }
        Pool { limits, tls: None, state: Mutex::default() }
    }

    /// Creates a pool for connections with TLS, too.
    #[cfg(feature = "tls")]
    pub(super) fn with_tls(limits: ClientLimits, tls: ClientTls) -> Self {
        Pool { tls: Some(tls), ..Pool::new(limits) }
    }

    /// Returns whether connections to this upstream can be opened.
    pub(super) fn supports(&self, key: &Key) -> bool {
        self.tls.is_some() || !key.is_secure
    }

    /// Decides how a request proceeds. A connection that is to be opened counts from now on.
    pub(super) fn plan(self: &Arc<Self>, handle: &Handle, key: &Arc<Key>, job: Job) -> Plan {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let is_full = state.open >= self.limits.connections_max;
        let connections = state.upstreams.entry(Arc::clone(key)).or_default();
        let loop_id = handle.loop_id();
        // A request that has failed on a reused connection is sent on a new one.
        if !job.is_retry
            && let Some(at) = connections.idle.iter().rposition(|line| line.loop_id == loop_id)
        {
            return Plan::Use(connections.idle.remove(at), job);
        }
        if job.is_retry || (connections.open < self.limits.upstream_connections_max && !is_full) {
            connections.open += 1;
            state.open += 1;
            return Plan::Open(job);
        }
        if let Some(line) = connections.idle.pop() {
            return Plan::Use(line, job);
        }
        if connections.waiting.len() >= self.limits.queue_max {
            state.forget(key);
            return Plan::Refuse(job);
        }
        let serial = state.serial;
        state.serial += 1;
        let timer = handle.call_later(self.limits.connect_timeout, self.giving_up(key, serial, ClientError::Timeout));
        let (leaving, handle) = (self.giving_up(key, serial, ClientError::Closed), handle.clone());
        // Called at once if the client has already left, and so must not lock the pool.
        job.sink.on_closed(move || handle.defer(leaving));
        connections.waiting.push_back(Waiting { serial, job, timer });
        if connections.open < self.limits.upstream_connections_max {
            state.retire_idle();
        }
        Plan::Wait
    }

    /// Returns a closure that ends the wait of a request for a connection.
    fn giving_up(self: &Arc<Self>, key: &Arc<Key>, serial: u64, error: ClientError) -> impl FnOnce() + Send + use<> {
        let (pool, key) = (Arc::downgrade(self), Arc::clone(key));
        move || {
            if let Some(pool) = pool.upgrade() {
                pool.give_up(&key, serial, error);
            }
        }
    }

    fn give_up(&self, key: &Arc<Key>, serial: u64, error: ClientError) {
        let mut state = lock(&self.state);
        let Some(connections) = state.upstreams.get_mut(key) else { return };
        let found = connections.waiting.iter().position(|waiting| waiting.serial == serial);
        let late = found.and_then(|at| connections.waiting.remove(at));
        state.forget(key);
        drop(state);
        if let Some(Waiting { job, timer, .. }) = late {
            timer.cancel();
            job.sink.fail(error);
        }
    }

    /// Offers a connection whose response is complete: returns the request to send next, or keeps it as an unused one.
    /// Returns an error if the connection is to be closed.
    pub(super) fn release(&self, line: &Arc<Line>) -> Result<Option<Job>, ()> {
        // Dropped after the lock is released.
        let mut closed = Vec::new();
        let mut state = lock(&self.state);
        let Some(connections) = state.upstreams.get_mut(&line.key) else { return Err(()) };
        if let Some(job) = connections.next_waiting(&mut closed) {
            return Ok(Some(job));
        }
        if connections.idle.len() >= self.limits.idle_connections_max {
            return Err(());
        }
        connections.idle.push(Arc::clone(line));
        Ok(None)
    }

    /// Removes an unused connection. Returns false if a request has just been given to it.
    pub(super) fn withdraw(&self, line: &Arc<Line>) -> bool {
        let mut state = lock(&self.state);
        let Some(connections) = state.upstreams.get_mut(&line.key) else { return false };
        let found = connections.idle.iter().position(|idle| Arc::ptr_eq(idle, line));
        found.is_some_and(|at| {
            connections.idle.remove(at);
            true
        })
    }

    /// Counts a connection that was closed. Returns a request that waits, to send on a new connection, which counts from now
    /// on.
    pub(super) fn closed(&self, key: &Arc<Key>, may_open: bool) -> Option<(Arc<Key>, Job)> {
        // Dropped after the lock is released.
        let mut gone = Vec::new();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        state.open -= 1;
        if let Some(connections) = state.upstreams.get_mut(key) {
            connections.open -= 1;
        }
        state.forget(key);
        let has_room = |connections: &Connections| {
            !connections.waiting.is_empty() && connections.open < self.limits.upstream_connections_max
        };
        let key = match state.upstreams.get(key) {
            _ if !may_open => None,
            Some(connections) if has_room(connections) => Some(Arc::clone(key)),
            // A request to another upstream can be waiting only because of the limit for all upstreams.
            _ if state.open + 1 < self.limits.connections_max => None,
            _ => state.upstreams.iter().find(|(_, connections)| has_room(connections)).map(|(key, _)| Arc::clone(key)),
        }?;
        let connections = state.upstreams.get_mut(&key)?;
        let Some(job) = connections.next_waiting(&mut gone) else {
            state.forget(&key);
            return None;
        };
        connections.open += 1;
        state.open += 1;
        Some((key, job))
    }
}
