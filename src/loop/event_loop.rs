//! The event loop, generic over its backend ([`Readiness`]) and its application ([`App`]).
//!
//! [`EventLoop::run_turns`] defines the order of a turn: poll, call closures that are due, drive connections that have
//! events or unfinished work, accept, deliver messages, expire timers, apply drain and stop, end the turn. The clock is
//! read once per turn, after polling.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use self::clock::Clock;
use super::app::{App, ConnId, Remote};
use super::connection::{Connection, LoopContext};
use super::connection_limit::ConnectionLimit;
use super::eager::EagerRead;
use super::listener::ManagedListener;
use super::mailbox::{LoopWaker, Mailbox};
use super::output::Output;
use super::readiness::{Event, Readiness, Token};
use super::schedule::Schedule;
use super::table::Table;
use super::timers::{Timeouts, Timers};
use super::{Counters, Handle, LoopLimits, Poller, Turn};

mod accepting;
mod after_step;
mod clock;
mod closing;
mod delivering;
mod draining;
mod driving;
mod expiring;
mod polling;

/// The token of the first listener. Listener tokens count downwards from here; the value above is the backend's own.
const LISTENER_TOKEN_BASE: usize = usize::MAX - 1;

/// An event loop that runs the application `A` on the backend `B`.
pub struct EventLoop<B: Readiness, A: App> {
    backend: B,
    listeners: Vec<ManagedListener<B>>,
    table: Table<Connection<B::Stream, A::State>>,
    /// The application and other state that connections use.
    context: LoopContext<A>,
    /// The read buffer, shared by all connections.
    buffer: Box<[u8]>,
    timers: Timers,
    timeouts: Timeouts,
    connection_limit: ConnectionLimit,
    clock: Clock,
    events: Vec<Event>,
    /// Number of entries of `events`, then `ready`, already processed in this turn, and the last connection stepped.
    cursor: (usize, ConnId),
    /// The run queue: connections to step in this turn (`ready`) and in the next (`next`), without waiting for an
    /// event.
    ready: Vec<ConnId>,
    next: Vec<ConnId>,
    mailbox: Arc<Mailbox<A::Message>>,
    /// Reused buffer for the messages being delivered.
    message_batch: Vec<(ConnId, A::Message)>,
    schedule: Schedule,
    started: bool,
    /// Consecutive failed polls.
    poll_errors: u32,
    /// During a graceful shutdown: when the remaining connections are closed.
    drain_deadline_ms: Option<u64>,
    /// During a graceful shutdown: when to try to close the listeners.
    close_listeners_at_ms: Option<u64>,
    /// Attempts to close the listeners so far.
    close_attempts: u32,
    /// A connection closed after `App::end_of_turn`; run another turn at once, which calls it again.
    end_of_turn_pending: bool,
    /// The earliest deadline that is not a connection timer: accept retry, scheduled closure or shutdown. Recomputed if
    /// `wakeup_dirty`.
    next_wakeup_ms: u64,
    wakeup_dirty: bool,
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
        let mut context = LoopContext {
            app,
            scratch: Output::new(),
            messages: Vec::new(),
            limits,
            counters: Counters::default(),
            eager: EagerRead::default(),
            unix_time: 0,
            now_ms: 0,
            draining: false,
        };
        let clock = Clock::start(&backend, &mut context);
        EventLoop {
            backend,
            listeners: Vec::new(),
            table: Table::new(),
            context,
            buffer,
            timers: Timers::new(&timeouts),
            timeouts,
            connection_limit,
            clock,
            events: Vec::new(),
            cursor: (0, ConnId { index: u32::MAX, serial: 0 }),
            ready: Vec::new(),
            next: Vec::new(),
            mailbox,
            message_batch: Vec::new(),
            schedule: Schedule::default(),
            started: false,
            poll_errors: 0,
            drain_deadline_ms: None,
            close_listeners_at_ms: None,
            close_attempts: 0,
            end_of_turn_pending: false,
            next_wakeup_ms: 0,
            wakeup_dirty: true,
        }
    }

    /// Applies a connection limit that is shared with other loops, in place of [`LoopLimits::connections_max`]. Call it
    /// before the first turn.
    pub fn share_connection_limit(&mut self, connection_limit: &ConnectionLimit) {
        self.connection_limit = connection_limit.clone();
    }

    /// Adds a listener. Its index, counted from 0, is passed to the application in
    /// [`Accepted::listener`](super::Accepted::listener).
    ///
    /// # Errors
    /// Returns an error if the listener cannot be made non-blocking or registered with the backend.
    pub fn listen(&mut self, listener: impl Into<B::Listener>) -> io::Result<()> {
        let token = Token(LISTENER_TOKEN_BASE - self.listeners.len());
        self.listeners.push(ManagedListener::open(
            listener.into(),
            self.context.limits.backlog,
            &mut self.backend,
            token,
        )?);
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
        if !self.started {
            self.started = true;
            let remote = self.remote();
            self.context.app.start(remote);
        }
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
            match self.backend.wait(&mut self.events, poll_timeout) {
                Ok(()) => self.poll_errors = 0,
                Err(error) => self.on_poll_error(error)?,
            }
            self.clock.tick(&self.backend, &mut self.context);
            if self.next_wakeup_ms <= self.context.now_ms {
                self.wakeup_dirty = true;
                self.schedule.run(self.context.now_ms);
            }
            self.drive();
            if self.wakeup_dirty && self.next_accept_ms() <= self.context.now_ms {
                // After the other work, because new connections have probably sent their request by now.
                self.accept(self.context.limits.accepts_per_turn);
                self.drive();
            }
            self.process_mailbox();
            if self.timers.is_due(self.context.now_ms) {
                self.expire();
            }
            let stopped = self.apply_commands();
            self.end_turn();
            count -= 1;
            if stopped || self.is_drained() {
                return Ok(Turn::Over);
            }
            if count == 0 {
                return Ok(Turn::Again);
            }
        }
    }
}

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
