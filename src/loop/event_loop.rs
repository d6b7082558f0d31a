//! The event loop, generic over its backend ([`Readiness`]) and its application ([`App`]).
//!
//! [`EventLoop::run_turns`] defines the order of a turn: poll, call closures that are due, drive connections that have
//! events or unfinished work, accept, deliver messages, expire timers, apply drain and stop, end the turn. The clock is
//! read once per turn, after polling.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::address_limit::CountedAddresses;
use super::app::{App, Remote};
use super::buffers::Buffers;
use super::connection::{Connection, EagerRead, Life, LoopContext};
use super::connection_limit::ConnectionLimit;
use super::limits::{Counters, LoopLimits, Timeouts};
use super::listener::Listeners;
use super::mailbox::{LoopWaker, Mailbox};
use super::output::{LITTLE_BYTES, Output};
use super::poller::{Handle, PollRetry, Poller, Turn, sealed};
use super::readiness::{Event, Readiness};
use super::schedule::Schedule;
use super::table::{ConnId, Table};
use super::timers::Timers;
use rest::Rest;

mod accept;
mod evict;
mod expire;
mod handshake;
mod rest;
mod shutdown;
mod stalled;
mod step;

/// An event loop that runs the application `A` on the backend `B`.
pub struct EventLoop<B: Readiness, A: App> {
    backend: B,
    listeners: Listeners<B>,
    table: Table<Connection<B::Stream, A::State>>,
    /// The application and other state that connections use.
    context: LoopContext<A>,
    /// The read buffer, shared by all connections.
    buffer: Box<[u8]>,
    timers: Timers,
    timeouts: Timeouts,
    connection_limit: ConnectionLimit,
    /// The addresses of the open connections, if the connections of each address are limited.
    addresses: CountedAddresses,
    clock: Clock,
    events: Vec<Event>,
    /// Number of entries of `events`, then `ready`, already processed in this turn.
    cursor: usize,
    /// The run queue: connections to step in this turn (`ready`) and in the next (`next`), without waiting for an
    /// event.
    ready: Vec<ConnId>,
    next: Vec<ConnId>,
    /// Connections whose TLS handshake can continue.
    handshakes: VecDeque<ConnId>,
    mailbox: Arc<Mailbox<A::Message>>,
    /// Reused buffer for the messages being delivered.
    message_batch: Vec<(ConnId, A::Message)>,
    schedule: Schedule,
    poll_retry: PollRetry,
    /// A connection closed after `App::end_of_turn`; run another turn at once, which calls it again.
    end_of_turn_pending: bool,
    /// The earliest deadline that is not a connection timer: accept retry, scheduled closure, shutdown or rest. Recomputed
    /// if `wakeup_dirty`.
    next_wakeup_ms: u64,
    wakeup_dirty: bool,
    rest: Rest,
}

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Creates a loop that accepts connections from `listener` and runs `app`.
    ///
    /// A `timeout` is an upper bound for every phase of a connection. Without one, the defaults of [`Timeouts`] apply.
    ///
    /// # Errors
    /// Returns an error if the backend cannot be created, or the listener cannot be made non-blocking or registered.
    ///
    /// # Examples
    /// ```
    /// use serverd::{Flow, SelectLoop, Wire};
    /// use std::{net::TcpListener, time::Duration};
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let echo = SelectLoop::new(listener, Duration::from_secs(10), |wire: &mut Wire<_>| {
    ///     let input = wire.input();
    ///     wire.output().extend(input);
    ///     wire.consume(input.len());
    ///     Flow::Read(serverd::Phase::Unlimited)
    /// })?;
    /// # drop(echo);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(listener: impl Into<B::Listener>, timeout: impl Into<Option<Duration>>, app: A) -> io::Result<Self> {
        let mut timeouts = Timeouts::default();
        if let Some(limit) = timeout.into() {
            timeouts.cap(limit);
        }
        let mut this = Self::with_limits(timeouts, LoopLimits::default(), app)?;
        this.listen(listener)?;
        Ok(this)
    }

    /// Creates a loop with the given timeouts and limits. Add listeners with [`EventLoop::listen`].
    ///
    /// # Errors
    /// Returns an error if the backend cannot be created.
    pub fn with_limits(timeouts: Timeouts, limits: LoopLimits, app: A) -> io::Result<Self> {
        Ok(Self::with_backend(B::new()?, timeouts, limits, app))
    }

    /// Creates a loop on an existing backend, such as a network simulation or a fault-injecting wrapper.
    pub fn with_backend(backend: B, timeouts: Timeouts, limits: LoopLimits, app: A) -> Self {
        let mailbox = Mailbox::new(LoopWaker::new(backend.waker()));
        let buffer = vec![0; limits.read_bytes_per_turn.max(1)].into_boxed_slice();
        let connection_limit = ConnectionLimit::new(limits.connections_max);
        let connection_limit = connection_limit.per_address(limits.connections_per_address_max);
        let buffers = Buffers::new(limits.buffered_bytes_max);
        let mut context = LoopContext {
            app,
            buffers,
            scratch: Output::new(),
            messages: Vec::new(),
            read_bytes: 0,
            little_bytes: limits.write_bytes_per_turn.min(LITTLE_BYTES),
            limits,
            counters: Counters::default(),
            eager: EagerRead::default(),
            unix_time: 0,
            now_ms: 0,
            life: Life::New,
            linger_total_ms: timeouts
                .linger_total
                .map_or(u64::MAX, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        };
        let clock = Clock::start(&backend, &mut context);
        EventLoop {
            backend,
            listeners: Listeners::new(),
            table: Table::new(),
            context,
            buffer,
            timers: Timers::new(&timeouts),
            timeouts,
            connection_limit,
            addresses: CountedAddresses::default(),
            clock,
            events: Vec::new(),
            cursor: 0,
            ready: Vec::new(),
            next: Vec::new(),
            handshakes: VecDeque::new(),
            mailbox,
            message_batch: Vec::new(),
            schedule: Schedule::default(),
            poll_retry: PollRetry::default(),
            end_of_turn_pending: false,
            next_wakeup_ms: 0,
            wakeup_dirty: true,
            rest: Rest::new(),
        }
    }

    /// Applies a connection limit that is shared with other loops, in place of [`LoopLimits::connections_max`] and
    /// [`LoopLimits::connections_per_address_max`]. Call it before the first turn.
    pub fn share_connection_limit(&mut self, connection_limit: &ConnectionLimit) {
        self.connection_limit = connection_limit.clone();
        self.connection_limit.register(&self.mailbox.waker);
        self.context.buffers.share(connection_limit.buffered());
    }

    /// Adds a listener. Its index, counted from 0, is passed to the application in
    /// [`Accepted::listener`](super::Accepted::listener).
    ///
    /// # Errors
    /// Returns an error if the listener cannot be made non-blocking or registered with the backend.
    pub fn listen(&mut self, listener: impl Into<B::Listener>) -> io::Result<()> {
        self.listeners.add(listener.into(), self.context.limits.backlog, &mut self.backend)?;
        self.wakeup_dirty = true;
        Ok(())
    }

    /// Adds a connected stream, which is then served like an accepted one. The connection limit is not enforced.
    pub fn add_stream(&mut self, stream: B::Stream) -> ConnId {
        self.add(stream, false)
    }

    /// Adds a stream whose non-blocking connect is in progress. It is served like an accepted one once connected, and
    /// closed if the connect fails. The connection limit is not enforced.
    pub fn add_connecting(&mut self, stream: B::Stream) -> ConnId {
        self.add(stream, true)
    }

    fn add(&mut self, stream: B::Stream, connecting: bool) -> ConnId {
        self.start_app();
        self.connection_limit.reserve();
        self.connection_limit.commit();
        self.open_connection(stream, None, None, connecting)
    }

    /// Returns the activity counters of the loop.
    pub fn counters(&self) -> &Counters {
        &self.context.counters
    }

    /// Returns the number of open connections.
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Returns a sender of messages to connections of this loop, usable from any thread.
    pub fn remote(&self) -> Remote<A::Message> {
        Remote { mailbox: Arc::clone(&self.mailbox) }
    }

    fn start_app(&mut self) {
        if self.context.life == Life::New {
            self.context.life = Life::Running;
            let remote = self.remote();
            self.context.app.start(remote);
        }
    }

    /// The timeout of the next poll; `None` waits for an event.
    fn poll_timeout(&mut self) -> Option<Duration> {
        if self.wakeup_dirty {
            self.update_wakeup();
        }
        if self.end_of_turn_pending
            || !self.ready.is_empty()
            || !self.next.is_empty()
            || self.has_handshakes()
            || !self.context.messages.is_empty()
        {
            return Some(Duration::ZERO);
        }
        let next_ms = self.timers.wake_ms().min(self.next_wakeup_ms);
        (next_ms != u64::MAX).then(|| Duration::from_millis(next_ms.saturating_sub(self.context.now_ms)))
    }

    fn update_wakeup(&mut self) {
        if self.context.buffers.is_exceeded() {
            let closes = self.context.counters.closes;
            self.drop_stalled_output();
            self.end_of_turn_pending |= self.context.counters.closes != closes;
        }
        self.rest.observe(&self.context.counters, self.context.now_ms);
        let accept_ms = self.listeners.next_accept_ms().min(self.listeners.next_close_ms());
        let task_ms = self.schedule.next_ms().unwrap_or(u64::MAX);
        self.next_wakeup_ms = accept_ms.min(task_ms).min(self.context.life.deadline_ms()).min(self.rest.at_ms);
        self.wakeup_dirty = false;
    }

    /// Runs up to `count` turns; fewer if the loop ends.
    fn run_turns(&mut self, mut count: u64) -> io::Result<Turn> {
        self.start_app();
        loop {
            let poll_timeout = self.poll_timeout();
            self.events.clear();
            self.context.counters.waits += 1;
            if !self.next.is_empty() {
                self.ready.append(&mut self.next);
            }
            self.poll_retry.check(self.backend.wait(&mut self.events, poll_timeout))?;
            if self.clock.tick(&self.backend, &mut self.context) {
                self.observe_load();
            }
            if self.next_wakeup_ms <= self.context.now_ms {
                self.wakeup_dirty = true;
                self.schedule.run(self.context.now_ms);
                self.rest();
            }
            self.drive();
            if self.wakeup_dirty && self.listeners.is_accept_due(self.context.now_ms) {
                // After the other work, because new connections have probably sent their request by now.
                self.accept(self.context.limits.accepts_per_turn);
                self.drive();
            }
            if self.has_handshakes() {
                self.continue_handshakes();
            }
            let notified = self.process_mailbox();
            if self.timers.is_due(self.context.now_ms) {
                self.expire();
            }
            // A command wakes the loop, so without a wake-up there is no new one.
            let may_end = notified || self.context.life.is_draining();
            let stopped = may_end && self.apply_commands();
            self.end_turn();
            count -= 1;
            if may_end && (stopped || self.is_drained()) {
                return Ok(Turn::Over);
            }
            if count == 0 {
                return Ok(Turn::Again);
            }
        }
    }
}

impl<B: Readiness, A: App> sealed::Sealed for EventLoop<B, A> {}

impl<B: Readiness, A: App> Poller for EventLoop<B, A> {
    fn turn(&mut self) -> io::Result<Turn> {
        self.run_turns(1)
    }

    fn run(&mut self) -> io::Result<()> {
        while self.run_turns(u64::MAX)? == Turn::Again {}
        Ok(())
    }

    fn handle(&self) -> Handle {
        Handle { waker: Arc::clone(&self.mailbox.waker) }
    }
}

/// Reads the monotonic clock once per turn and the wall clock at most once per second, into [`LoopContext`].
struct Clock {
    start_ms: u64,
    unix_time_until_ms: u64,
}

impl Clock {
    /// Starts the loop's clock at zero.
    fn start<A: App>(backend: &impl Readiness, context: &mut LoopContext<A>) -> Self {
        let mut clock = Clock { start_ms: millis(backend.now()), unix_time_until_ms: 0 };
        clock.tick(backend, context);
        clock
    }

    /// Reads the clock. Returns whether the wall clock was read too, at most once per second.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    fn tick<A: App>(&mut self, backend: &impl Readiness, context: &mut LoopContext<A>) -> bool {
        context.now_ms = millis(backend.now()).saturating_sub(self.start_ms);
        let is_new_second = context.now_ms >= self.unix_time_until_ms;
        if is_new_second {
            let wall_clock = backend.system_time().duration_since(UNIX_EPOCH).unwrap_or_default();
            context.unix_time = wall_clock.as_secs();
            self.unix_time_until_ms = context.now_ms + 1000 - u64::from(wall_clock.subsec_millis());
        }
        is_new_second
    }
}

#[inline]
fn millis(time: Duration) -> u64 {
    time.as_secs() * 1000 + u64::from(time.subsec_millis())
}
