//! The event loop, generic over its backend ([`Readiness`]) and its application ([`App`]).
//!
//! [`EventLoop::run_turns`] defines the order of a turn: poll, call closures that are due, drive connections that have
//! events or unfinished work, accept, deliver messages, expire timers, apply drain and stop, end the turn. The clock is
//! read once per turn, after polling.
//!
//! An application panic closes the connection for which it was called, and no other.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::app::{Addrs, App, CloseInfo, CloseReason, Phase, Remote};
use super::connect::{Connects, HeldMessages};
use super::connection::{Connection, EagerRead, Life, LoopContext, Outcome, Registration, Removed, Stage};
use super::connection_limit::{Buffers, ConnectionLimit, CountedAddresses};
use super::file_range;
use super::limits::{Counters, LoopLimits, Timeouts};
use super::listener::Listeners;
use super::metrics::{LoopMetrics, clock_nanos};
use super::output::{LITTLE_BYTES, Output};
use super::poller::{Handle, Mailbox, Notice, OwnMailbox, PollRetry, Poller, Running, Turn, sealed};
use super::readiness::{Event, Readiness, Stream};
use super::schedule::Schedule;
use super::std_ext::{millis, panic_text};
use super::table::{ConnId, Table};
use super::timers::Timers;
use totals::Rest;

mod accept;
mod connect;
mod expire;
mod shutdown;
mod totals;

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
    mailbox: OwnMailbox<A::Message>,
    /// Reused buffer for the messages being delivered.
    message_batch: Vec<(ConnId, A::Message)>,
    schedule: Schedule,
    poll_retry: PollRetry,
    /// A connection closed after `App::end_of_turn`; run another turn at once, which calls it again.
    end_of_turn_pending: bool,
    /// The earliest deadline that is not a connection timer: accept retry, scheduled closure, shutdown or return of
    /// memory. Recomputed if `wakeup_dirty`.
    next_wakeup_ms: u64,
    wakeup_dirty: bool,
    rest: Rest,
    /// Metrics for other threads, if they are read.
    metrics: Option<Arc<LoopMetrics>>,
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
        let limits = limits.at_least_one();
        let mailbox = OwnMailbox::new(backend.waker());
        let buffer = vec![0; limits.read_bytes_per_turn].into_boxed_slice();
        let connection_limit = ConnectionLimit::new(limits.connections_max);
        let connection_limit = connection_limit.per_address(limits.connections_per_address_max);
        let buffers = Buffers::new(limits.buffered_bytes_max);
        let mut context = LoopContext {
            app,
            buffers,
            scratch: Output::new(),
            messages: Vec::new(),
            held_messages: HeldMessages::new(),
            connects: Connects::default(),
            read_bytes: 0,
            little_bytes: limits.write_bytes_per_turn.min(LITTLE_BYTES),
            limits,
            counters: Counters::default(),
            eager: EagerRead::default(),
            unix_time: 0,
            now_ms: 0,
            life: Life::New,
            linger_total_ms: timeouts.linger_total.map_or(u64::MAX, millis),
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
            metrics: None,
        }
    }

    /// Applies a connection limit that is shared with other loops, in place of [`LoopLimits::connections_max`] and
    /// [`LoopLimits::connections_per_address_max`]. Call it before the first turn.
    pub fn share_connection_limit(&mut self, connection_limit: &ConnectionLimit) {
        self.connection_limit = connection_limit.clone();
        self.connection_limit.register(&self.mailbox.waker);
        self.context.buffers.share(connection_limit.buffered());
    }

    /// Records each turn of [`EventLoop::run`] in these metrics.
    pub(crate) fn record_metrics(&mut self, metrics: &Arc<LoopMetrics>) {
        self.metrics = Some(Arc::clone(metrics));
    }

    /// Adds a listener. Its index, counted from 0, is passed to the application in
    /// [`Accepted::listener`](super::Accepted::listener).
    ///
    /// # Errors
    /// Returns an error if the listener cannot be made non-blocking or registered with the backend, and if the loop is
    /// shutting down or has ended.
    pub fn listen(&mut self, listener: impl Into<B::Listener>) -> io::Result<()> {
        if !matches!(self.context.life, Life::New | Life::Running) {
            return Err(io::Error::other("the event loop is shutting down or has ended"));
        }
        self.listeners.add(listener.into(), self.context.limits.backlog, &mut self.backend)?;
        self.wakeup_dirty = true;
        Ok(())
    }

    /// Adds a connected stream, which is then served like an accepted one. The connection limit is not enforced. If the
    /// loop has ended, the stream is closed at once, and the application is not called.
    pub fn add_stream(&mut self, stream: B::Stream) -> ConnId {
        self.add(stream, false)
    }

    /// Adds a stream whose non-blocking connect is in progress. It is served like an accepted one once connected, and
    /// closed if the connect fails or takes longer than [`Timeouts::write`]. The connection limit is not enforced.
    ///
    /// [`App::open`] is called at once, and may write output. Messages for the connection are delivered once it is
    /// connected. If there are more than 1,024 by then, or more than 65,536 for all connections of the loop that are
    /// connecting, the connection is closed. If the loop has ended, the stream is closed at once, and the application is
    /// not called.
    pub fn add_connecting(&mut self, stream: B::Stream) -> ConnId {
        self.add(stream, true)
    }

    fn add(&mut self, stream: B::Stream, connecting: bool) -> ConnId {
        if let Err(error) = self.start_app() {
            log::error!("{error}");
        }
        if self.context.life == Life::Over {
            return self.table.skip_id();
        }
        self.connection_limit.reserve();
        self.connection_limit.commit();
        self.open_unaccepted(stream, connecting, None)
    }

    /// Runs one turn: waits for events or the next deadline, then handles what is due. Returns [`Turn::Over`] at once if
    /// the loop has ended.
    ///
    /// # Errors
    /// Returns an error if polling the backend fails repeatedly, or if the application panics in [`App::start`], which
    /// ends the loop. A connection error closes only that connection.
    pub fn turn(&mut self) -> io::Result<Turn> {
        self.run_turns(1)
    }

    /// Runs turns until the loop is drained or stopped. Returns at once if the loop has ended.
    ///
    /// # Errors
    /// Returns an error if polling the backend fails repeatedly, or if the application panics in [`App::start`], which
    /// ends the loop.
    pub fn run(&mut self) -> io::Result<()> {
        let outcome = loop {
            match self.run_turns(u64::MAX) {
                Ok(Turn::Again) => {}
                outcome => break outcome.map(drop),
            }
        };
        if let Some(metrics) = &self.metrics {
            metrics.publish(&self.context.counters, self.table.len(), self.context.now_ms);
            metrics.end();
        }
        outcome
    }

    /// Returns a handle that controls the loop from any thread.
    pub fn handle(&self) -> Handle {
        Handle { waker: Arc::clone(&self.mailbox.waker) }
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
        Remote { mailbox: Arc::<Mailbox<_>>::clone(&self.mailbox) }
    }

    /// Starts the application, unless it has been started. If it panics, the loop has ended.
    #[inline]
    fn start_app(&mut self) -> io::Result<()> {
        if self.context.life == Life::New { self.start_app_outlined() } else { Ok(()) }
    }

    #[cold]
    fn start_app_outlined(&mut self) -> io::Result<()> {
        self.context.life = Life::Running;
        let (app, remote) = (&mut self.context.app, Remote { mailbox: Arc::<Mailbox<_>>::clone(&self.mailbox) });
        catch_unwind(AssertUnwindSafe(|| app.start(remote))).map_err(|panic| {
            self.close_all();
            self.end();
            io::Error::other(format!("the application panicked in its start callback: {}", panic_text(&*panic)))
        })
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
    fn run_turns(&mut self, count: u64) -> io::Result<Turn> {
        if self.context.life == Life::Over {
            return Ok(Turn::Over);
        }
        let _running = Running::enter(&self.mailbox.waker);
        self.start_app()?;
        self.run_turns_outlined(count)
    }

    /// Separate, so that the hot loop has nothing to undo.
    #[inline(never)]
    fn run_turns_outlined(&mut self, mut count: u64) -> io::Result<Turn> {
        loop {
            let poll_timeout = self.poll_timeout();
            self.events.clear();
            self.context.counters.waits += 1;
            if !self.next.is_empty() {
                self.ready.append(&mut self.next);
            }
            self.poll_retry.check(self.backend.wait(&mut self.events, poll_timeout))?;
            let now = self.backend.now();
            if let Some(metrics) = &self.metrics {
                metrics.turn_start_ns.set(clock_nanos(now));
            }
            if self.clock.tick(now, &self.backend, &mut self.context) {
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
            if self.metrics.is_some() {
                self.record_turn(notified);
            }
            self.end_turn();
            count -= 1;
            if may_end && (stopped || self.is_drained()) {
                self.end();
                return Ok(Turn::Over);
            }
            if count == 0 {
                return Ok(Turn::Again);
            }
        }
    }
}

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Records a turn, whose connections have been served. Out of line, since most loops have no metrics.
    #[inline(never)]
    fn record_turn(&mut self, notified: bool) {
        if let Some(metrics) = &self.metrics {
            metrics.record(clock_nanos(self.backend.now()));
            if notified && metrics.is_due(self.context.now_ms) {
                metrics.publish(&self.context.counters, self.table.len(), self.context.now_ms);
            }
        }
    }
}

impl<B: Readiness, A: App> sealed::Sealed for EventLoop<B, A> {}

impl<B: Readiness, A: App> Poller for EventLoop<B, A> {
    fn turn(&mut self) -> io::Result<Turn> {
        EventLoop::turn(self)
    }

    fn run(&mut self) -> io::Result<()> {
        EventLoop::run(self)
    }

    fn handle(&self) -> Handle {
        EventLoop::handle(self)
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
        let mut clock = Clock { start_ms: clock_ms(backend.now()), unix_time_until_ms: 0 };
        clock.tick(backend.now(), backend, context);
        clock
    }

    /// Sets the time of the turn. Returns whether the wall clock was read too, at most once per second.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    fn tick<A: App>(&mut self, now: Duration, backend: &impl Readiness, context: &mut LoopContext<A>) -> bool {
        context.now_ms = clock_ms(now).saturating_sub(self.start_ms);
        let is_new_second = context.now_ms >= self.unix_time_until_ms;
        if is_new_second {
            let wall_clock = backend.system_time().duration_since(UNIX_EPOCH).unwrap_or_default();
            context.unix_time = wall_clock.as_secs();
            self.unix_time_until_ms = context.now_ms + 1000 - u64::from(wall_clock.subsec_millis());
        }
        is_new_second
    }
}

/// Converts a time of the loop's clock without the 128-bit division of [`millis`]; it is small enough.
#[inline]
fn clock_ms(time: Duration) -> u64 {
    time.as_secs() * 1000 + u64::from(time.subsec_millis())
}

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Runs one step of every connection with events or in the run queue. A single `catch_unwind` covers all of them
    /// until one panics.
    #[inline(never)]
    fn drive(&mut self) {
        while catch_unwind(AssertUnwindSafe(|| self.drive_guarded())).is_err() {
            if let Some(id) = self.last_driven() {
                self.close_after_panic(id);
            }
        }
        // Connections with more to do are in `next` by now, so that the others get their turn first.
        self.events.clear();
        self.ready.clear();
        self.cursor = 0;
    }

    #[inline]
    fn drive_guarded(&mut self) {
        while let Some(event) = self.events.get(self.cursor) {
            self.cursor += 1;
            if let Some((id, connection)) =
                record_event(&mut self.table, &mut self.listeners, event, &mut self.wakeup_dirty)
            {
                let step = connection.step(id, &mut self.context, &mut self.buffer);
                let timers = (&mut self.timers, &self.timeouts);
                match step {
                    None => update_quiescent(timers, connection, id, &self.context),
                    Some(outcome) => self.after_step(id, outcome),
                }
            }
        }
        while let Some(&id) = self.ready.get(self.cursor - self.events.len()) {
            self.cursor += 1;
            if let Some(connection) = self.table.get_mut(id) {
                connection.queued = false;
                let step = connection.step(id, &mut self.context, &mut self.buffer);
                let timers = (&mut self.timers, &self.timeouts);
                match step {
                    None => update_quiescent(timers, connection, id, &self.context),
                    Some(outcome) => self.after_step(id, outcome),
                }
            }
        }
    }

    /// Returns the connection of the last event or entry of the run queue that [`EventLoop::drive`] has processed.
    #[cold]
    fn last_driven(&mut self) -> Option<ConnId> {
        let last = self.cursor.checked_sub(1)?;
        match self.events.get(last) {
            Some(event) => self.table.resolve(event.token).map(|(id, _)| id),
            None => self.ready.get(last - self.events.len()).copied(),
        }
    }

    /// Runs `work` on one connection and applies its outcome. A panic closes that connection only.
    fn with_connection(
        &mut self,
        id: ConnId,
        work: impl FnOnce(&mut Connection<B::Stream, A::State>, &mut LoopContext<A>, &mut [u8]) -> Outcome,
    ) {
        let run = || {
            let Some(connection) = self.table.get_mut(id) else {
                return;
            };
            self.context.read_bytes = 0;
            let outcome = work(connection, &mut self.context, &mut self.buffer);
            if matches!(outcome, Outcome::Open) && connection.is_quiescent() {
                let timers = (&mut self.timers, &self.timeouts);
                update_quiescent(timers, connection, id, &self.context);
            } else {
                self.after_step(id, outcome);
            }
        };
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            self.close_after_panic(id);
        }
    }

    #[allow(clippy::inline_always, reason = "hot path of a connection")]
    #[inline(always)]
    fn after_step(&mut self, id: ConnId, outcome: Outcome) {
        match outcome {
            Outcome::Closed(_) if !self.context.connects.is_empty() && self.try_next_address(id) => {}
            Outcome::Closed(reason) => self.close_connection(id, reason),
            Outcome::Open => {
                if let Err(error) = self.update_registration(id) {
                    self.close_connection(id, CloseReason::Error(error));
                }
            }
        }
    }

    /// Updates the backend registration, timer and run queue for an open connection that is not quiescent.
    fn update_registration(&mut self, id: ConnId) -> io::Result<()> {
        let Some(connection) = self.table.get_mut(id) else {
            return Ok(());
        };
        if let Some(readahead) = connection.take_readahead() {
            let waker = Arc::clone(&self.mailbox.waker);
            if !file_range::request(readahead, move || waker.readahead_done(id)) {
                connection.readahead_done();
            }
        }
        let wanted = connection.interest();
        match connection.registered.interest() {
            None => {
                self.context.counters.registrations += 1;
                self.backend.add(connection.stream.source(), id.token(), wanted)?;
                connection.registered = Registration::of(wanted);
            }
            Some(current) if current.write != wanted.write || (B::LEVEL_TRIGGERED && current.read != wanted.read) => {
                self.context.counters.registrations += 1;
                self.backend.set_interest(connection.stream.source(), id.token(), wanted)?;
                connection.registered = Registration::of(wanted);
            }
            Some(_) => {}
        }
        // If the limit on buffers is exceeded, some are dropped before the next poll.
        self.wakeup_dirty |= self.context.buffers.is_exceeded();
        let phase = connection.timed_phase();
        let now_ms = self.context.now_ms;
        if self.timers.enter(id.index, phase, connection.restart, now_ms) {
            let is_new = std::mem::take(&mut connection.restart);
            if phase.depends_on_progress() {
                if connection.start_phase(phase, &self.timeouts, now_ms, is_new, self.context.read_bytes) {
                    self.timers.expire_now(id.index, phase, now_ms);
                }
            } else if phase == Phase::Handling {
                connection.pause_body(&self.timeouts, now_ms);
            }
        }
        if connection.is_unfinished() && !connection.queued {
            connection.queued = true;
            if connection.stream.is_handshaking() {
                self.handshakes.push_back(id);
            } else {
                self.next.push(id);
            }
        }
        Ok(())
    }

    /// Resets the connection for which the application panicked; other connections are not affected. State left
    /// inconsistent belongs to that connection, which is removed, or to the application itself.
    #[cold]
    fn close_after_panic(&mut self, id: ConnId) {
        self.context.counters.panics += 1;
        if let Some(connection) = self.table.get_mut(id) {
            let addrs = Addrs { stream: Some(&connection.stream) };
            log::error!("application panicked while serving {}; resetting the connection", addrs.client());
            connection.stream.abort();
        }
        self.close_connection(id, CloseReason::Panicked);
    }

    /// Closes a connection and releases its slot in the connection limit.
    fn close_connection(&mut self, id: ConnId, reason: CloseReason) {
        self.context.scratch.clear();
        let Some(connection) = self.table.remove(id) else {
            return;
        };
        let Removed { mut stream, state, pending, mut counted, stage, registered } = connection.into();
        self.timers.cancel(id.index);
        self.context.buffers.set(&mut counted, 0);
        if registered != Registration::NONE {
            if let Err(error) = self.backend.remove(stream.source(), id.token()) {
                log::warn!("cannot deregister a connection: {error}");
            }
            // A connection that was never registered has closed in the turn in which it was accepted, without a timer.
            if self.table.len() == 0 {
                self.timers.cancel_wakeup();
            }
            // Messages are held only for connections that wait for the end of their connect, and thus are registered.
            if stage == Stage::Connecting {
                self.context.held_messages.drop_all(id);
            }
        }
        if !self.context.connects.is_empty() {
            self.context.connects.remove(id);
        }
        self.context.counters.closes += 1;
        if let Some(metrics) = &self.metrics {
            metrics.count_close(&reason);
        }
        log::debug!("closed {id:?} of {}: {reason:?}", Addrs { stream: Some(&stream) }.client());
        let unsent = pending.map_or(0, |output| output.len() as u64) + stream.unsent_bytes() as u64;
        let unsent_bytes = unsent.saturating_sub(stream.encrypted_by_failed_write() as u64);
        let (unix_time, now) = (self.context.unix_time, Duration::from_millis(self.context.now_ms));
        let notify = || self.context.app.closed(id, state, CloseInfo { reason, unsent_bytes, unix_time, now });
        if catch_unwind(AssertUnwindSafe(notify)).is_err() {
            self.context.counters.panics += 1;
            log::error!("application panicked in its closed callback for {id:?}");
        }
        drop(stream);
        self.connection_limit.release(self.addresses.take(id.index));
        self.listeners.on_capacity_freed();
        self.wakeup_dirty = true;
    }

    /// Takes messages, closures and read-ahead notifications from the mailbox, and delivers all pending messages.
    /// Returns whether another thread, or this one, has woken the loop.
    #[inline]
    fn process_mailbox(&mut self) -> bool {
        let notified = self.mailbox.waker.take_notified();
        if notified || !self.context.messages.is_empty() {
            self.wakeup_dirty = true;
            let mut batch = std::mem::take(&mut self.message_batch);
            batch.append(&mut self.context.messages);
            if notified {
                self.mailbox.collect(&mut batch);
                let waker = &self.mailbox.waker;
                self.schedule.extend(&mut waker.take_tasks(), &waker.cancelled_count);
                self.exchange_room();
                for notice in self.mailbox.waker.take_notices() {
                    match notice {
                        Notice::ReadaheadDone(id) => self.with_connection(id, |connection, context, buffer| {
                            connection.readahead_done();
                            connection.step_outlined(id, context, buffer)
                        }),
                        Notice::Connect(step) => self.step_connect(step),
                    }
                }
            }
            self.deliver_messages(batch);
        }
        notified
    }

    /// Returns whether the handshake of a connection can continue. The queue is bounded by the number of connections.
    #[inline]
    fn has_handshakes(&self) -> bool {
        B::Stream::ENCRYPTS && !self.handshakes.is_empty()
    }

    /// Calls [`App::end_of_turn`] and delivers the messages it sends.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    fn end_turn(&mut self) {
        let (app, messages) = (&mut self.context.app, &mut self.context.messages);
        if catch_unwind(AssertUnwindSafe(|| app.end_of_turn(messages))).is_err() {
            self.context.counters.panics += 1;
            log::error!("application panicked in its end_of_turn callback");
        }
        let closes = self.context.counters.closes;
        if !self.context.messages.is_empty() {
            let mut batch = std::mem::take(&mut self.message_batch);
            batch.append(&mut self.context.messages);
            self.deliver_messages(batch);
        }
        self.end_of_turn_pending = self.context.counters.closes != closes;
    }

    fn deliver_messages(&mut self, mut batch: Vec<(ConnId, A::Message)>) {
        for (id, message) in batch.drain(..) {
            self.with_connection(id, |connection, context, _| {
                if connection.is_closing() {
                    return Outcome::Open;
                }
                if connection.stage == Stage::Connecting {
                    let held = context.held_messages.hold(id, message);
                    return held.map_or_else(|error| Outcome::Closed(CloseReason::Error(error)), |()| Outcome::Open);
                }
                connection.call(context, id, &[], |app, state, wire| app.message(state, message, wire));
                connection.finish(context)
            });
        }
        self.message_batch = batch;
    }
}

/// Records the readiness that the backend reported. Returns the connection, unless it is in the run queue already.
#[inline]
fn record_event<'a, B: Readiness, T>(
    table: &'a mut Table<Connection<B::Stream, T>>,
    listeners: &mut Listeners<B>,
    event: &Event,
    wakeup_dirty: &mut bool,
) -> Option<(ConnId, &'a mut Connection<B::Stream, T>)> {
    if let Some((id, connection)) = table.resolve(event.token) {
        connection.readable |= event.readable;
        connection.writable |= event.writable;
        connection.hangup |= event.hangup;
        return (!connection.queued).then_some((id, connection));
    }
    *wakeup_dirty |= listeners.mark_ready(event.token);
    None
}

/// Updates a quiescent connection, which needs only its timer; this is the common case.
#[inline]
fn update_quiescent<S: Stream, A: App>(
    (timers, timeouts): (&mut Timers, &Timeouts),
    connection: &mut Connection<S, A::State>,
    id: ConnId,
    context: &LoopContext<A>,
) {
    let phase = connection.phase;
    if timers.enter(id.index, phase, connection.restart, context.now_ms) {
        let is_new = std::mem::take(&mut connection.restart);
        if phase == Phase::Body {
            start_body((timers, timeouts), connection, id, context, is_new);
        }
    }
}

/// The part of [`update_quiescent`] for a connection that receives a body, which is rare.
#[inline(never)]
fn start_body<S: Stream, A: App>(
    (timers, timeouts): (&mut Timers, &Timeouts),
    connection: &mut Connection<S, A::State>,
    id: ConnId,
    context: &LoopContext<A>,
    is_new: bool,
) {
    if connection.start_phase(Phase::Body, timeouts, context.now_ms, is_new, context.read_bytes) {
        timers.expire_now(id.index, Phase::Body, context.now_ms);
    }
}
