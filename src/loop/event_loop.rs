//! One turn of the loop, and the only place that knows its order:
//! wait, call what is due, note readiness, accept, drive what can make progress, deliver letters, expire, drain,
//! end the turn.
//!
//! The loop owns the clock and reads it once per turn. It is written once, over any [`Readiness`].

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::app::{App, Closed, ConnId, Flow, Phase, Remote, Wire};
use super::capacity::Capacity;
use super::connection::{Connection, Lent, Outcome, Stage};
use super::eager::Eager;
use super::listener::{Admission, Door};
use super::mailbox::{Bell, Mailbox, Order};
use super::output::Output;
use super::read_ahead;
use super::readiness::{Event, Readiness, Stream, Token};
use super::schedule::Schedule;
use super::table::Table;
use super::timers::{Timeouts, Timers};
use super::{Counters, Handle, Limits, Poller, Turn};

/// How long idle and silent connections are kept once the loop drains, for a request already on its way.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// How long a drain keeps the listeners for connections whose handshake has begun, where no further one can begin:
/// some round trips.
const SETTLE_MS: u64 = 100;

/// So often a drain tries to empty a listener that nobody can be accepted from, when no connection is left.
const SETTLING_MAX: u32 = 10;

/// A wait that failed is tried again after this time, so many times in a row.
const WAIT_PAUSE: Duration = Duration::from_millis(10);
const WAIT_FAULTS_MAX: u32 = 10;

/// Where the tokens of listeners begin; they count downwards, below the backend's own.
const DOOR_TOKEN: usize = usize::MAX - 1;

/// A readiness loop over the backend `B` that runs the application `A`.
pub struct EventLoop<B: Readiness, A: App> {
    backend: B,
    app: A,
    doors: Vec<Door<B>>,
    table: Table<Connection<B::Stream, A::State>>,
    timers: Timers,
    timeouts: Timeouts,
    limits: Limits,
    capacity: Capacity,
    clock: Clock,
    events: Vec<Event>,
    /// Connections to drive in this turn, and those for the next.
    ready: Vec<ConnId>,
    next: Vec<ConnId>,
    buffer: Box<[u8]>,
    scratch: Output,
    mailbox: Arc<Mailbox<A::Letter>>,
    letters: Vec<(ConnId, A::Letter)>,
    posts: Vec<(ConnId, A::Letter)>,
    schedule: Schedule,
    eager: Eager,
    counters: Counters,
    started: bool,
    /// Waits in a row that failed.
    wait_faults: u32,
    /// Once the loop drains: when that ends by force.
    drain: Option<u64>,
    /// When the drain closes the listeners.
    settled_ms: Option<u64>,
    /// How often it has tried to.
    settling: u32,
    /// A connection closed after the application was told of the end of the turn: it is told again, soon.
    unheard: bool,
}

/// The loop's clocks, read once per turn; the calendar at most once a second.
struct Clock {
    start: Instant,
    now_ms: u64,
    wall: u64,
    wall_until_ms: u64,
}

impl Clock {
    fn new(backend: &impl Readiness) -> Self {
        let mut clock = Clock { start: backend.now(), now_ms: 0, wall: 0, wall_until_ms: 0 };
        clock.tick(backend);
        clock
    }

    #[inline]
    fn tick(&mut self, backend: &impl Readiness) {
        let elapsed = backend.now().saturating_duration_since(self.start);
        self.now_ms = elapsed.as_secs() * 1000 + u64::from(elapsed.subsec_millis());
        if self.now_ms >= self.wall_until_ms {
            let wall = backend.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.wall = wall.as_secs();
            self.wall_until_ms = self.now_ms + 1000 - u64::from(wall.subsec_millis());
        }
    }
}

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Makes a loop that accepts from `listener` and runs `app`. With a `timeout`, no phase of a connection
    /// lasts longer than that; without, every phase has its own limit, see [`Timeouts`].
    ///
    /// # Errors
    /// Where the system refuses a poller, or the listener cannot be made non-blocking.
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
    ///     Flow::Read(serverd::Phase::Open)
    /// })?;
    /// # drop(echo);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(listener: impl Into<B::Listener>, timeout: impl Into<Option<Duration>>, app: A) -> io::Result<Self> {
        let mut timeouts = Timeouts::default();
        if let Some(limit) = timeout.into() {
            timeouts.cap(limit);
        }
        let mut this = Self::with(timeouts, Limits::default(), app)?;
        this.listen(listener)?;
        Ok(this)
    }

    /// Makes a loop with limits of its own and no listener yet.
    ///
    /// # Errors
    /// Where the system refuses a poller.
    pub fn with(timeouts: Timeouts, limits: Limits, app: A) -> io::Result<Self> {
        Ok(Self::over(B::new()?, timeouts, limits, app))
    }

    /// Makes a loop over a backend that was made before: one that simulates a network, or injects faults.
    pub fn over(backend: B, timeouts: Timeouts, limits: Limits, app: A) -> Self {
        let mailbox = Mailbox::new(Bell::new(backend.waker()));
        EventLoop {
            clock: Clock::new(&backend),
            timers: Timers::new(&timeouts),
            buffer: vec![0; limits.read_bytes_per_turn.max(1)].into_boxed_slice(),
            backend,
            app,
            doors: Vec::new(),
            table: Table::new(),
            timeouts,
            capacity: Capacity::new(limits.connections_max),
            limits,
            events: Vec::new(),
            ready: Vec::new(),
            next: Vec::new(),
            scratch: Output::new(),
            mailbox,
            letters: Vec::new(),
            posts: Vec::new(),
            schedule: Schedule::default(),
            eager: Eager::default(),
            counters: Counters::default(),
            started: false,
            wait_faults: 0,
            drain: None,
            settled_ms: None,
            settling: 0,
            unheard: false,
        }
    }

    /// Counts this loop's connections in a bound that other loops count in too, instead of
    /// [`Limits::connections_max`]. To be called before the first turn.
    pub fn share_capacity(&mut self, capacity: &Capacity) {
        self.capacity = capacity.clone();
    }

    /// Accepts from one more listener. The application learns from [`Accepted::listener`](super::Accepted) which one
    /// a connection came through: the first is 0.
    ///
    /// # Errors
    /// Where the listener cannot be made non-blocking or watched.
    pub fn listen(&mut self, listener: impl Into<B::Listener>) -> io::Result<()> {
        let token = Token(DOOR_TOKEN - self.doors.len());
        self.doors.push(Door::open(listener.into(), self.limits.backlog, &mut self.backend, token)?);
        Ok(())
    }

    /// Takes over a stream that is connected, or `connecting`, as if it had been accepted.
    pub fn adopt(&mut self, stream: B::Stream, connecting: bool) -> ConnId {
        self.begin();
        self.capacity.enter_anyway();
        self.admit(stream, None, None, connecting)
    }

    /// What the loop has done so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Posts letters to connections of this loop from any thread.
    pub fn remote(&self) -> Remote<A::Letter> {
        Remote { mailbox: Arc::clone(&self.mailbox) }
    }

    /// A wait failed, as for want of memory: tried again for a moment, then given up.
    fn bear(&mut self, error: io::Error) -> io::Result<()> {
        self.wait_faults += 1;
        if self.wait_faults > WAIT_FAULTS_MAX {
            return Err(error);
        }
        log::warn!("cannot wait for readiness: {error}; trying again");
        std::thread::sleep(WAIT_PAUSE);
        Ok(())
    }

    fn begin(&mut self) {
        if !self.started {
            self.started = true;
            let remote = self.remote();
            self.app.start(remote);
        }
    }

    /// How long the next wait may last.
    fn patience(&self) -> Option<Duration> {
        if self.unheard || !self.ready.is_empty() || !self.next.is_empty() || !self.posts.is_empty() {
            return Some(Duration::ZERO);
        }
        let drain_ms = self.settled_ms.unwrap_or(u64::MAX).min(self.drain.unwrap_or(u64::MAX));
        let others_ms = self.schedule.next_ms().unwrap_or(u64::MAX).min(drain_ms);
        let next_ms = self.timers.wake_ms().min(self.doors_due_ms()).min(others_ms);
        (next_ms != u64::MAX).then(|| Duration::from_millis(next_ms.saturating_sub(self.clock.now_ms)))
    }

    /// When somebody may be let in: 0 for at once, `u64::MAX` for never.
    #[inline]
    fn doors_due_ms(&self) -> u64 {
        self.doors.iter().fold(u64::MAX, |next, door| next.min(door.due_ms()))
    }

    /// Remembers what the backend reported.
    fn note(&mut self) {
        for event in &self.events {
            if let Some((id, connection)) = self.table.resolve(event.token) {
                connection.readable |= event.readable;
                connection.writable |= event.writable;
                connection.hangup |= event.hangup;
                if !connection.queued {
                    connection.queued = true;
                    self.ready.push(id);
                }
            } else if let Some(door) = self.doors.get_mut(DOOR_TOKEN.wrapping_sub(event.token.0)) {
                door.note();
            }
        }
    }

    /// Takes in who waits at the doors, at most a quota for each.
    #[inline]
    fn accept(&mut self, quota: usize) {
        for index in 0..self.doors.len() {
            if self.doors[index].due_ms() <= self.clock.now_ms {
                self.let_in(index, quota);
            }
        }
    }

    fn let_in(&mut self, index: usize, quota: usize) {
        for _ in 0..quota {
            if self.doors[index].due_ms() > self.clock.now_ms || !self.accept_one(index) {
                break;
            }
        }
    }

    /// One try at a door; says whether another is worth it.
    fn accept_one(&mut self, index: usize) -> bool {
        let door = &mut self.doors[index];
        if self.drain.is_some() {
            // Who waited before the drain began is served, also beyond the bound: the alternative is a reset.
            self.capacity.enter_anyway();
        } else if !self.capacity.enter() {
            door.rest_while_full(&mut self.backend, self.clock.now_ms, self.capacity.is_shared());
            return false;
        }
        match door.accept(&mut self.backend, &mut self.counters, self.clock.now_ms) {
            Admission::Stream(stream, peer) => {
                self.admit(stream, Some(index), Some(peer), false);
                true
            }
            Admission::Again => {
                self.capacity.leave();
                true
            }
            Admission::Enough => {
                self.capacity.leave();
                false
            }
        }
    }

    fn admit(
        &mut self,
        stream: B::Stream,
        listener: Option<usize>,
        peer: Option<std::net::SocketAddr>,
        connecting: bool,
    ) -> ConnId {
        let id = self.table.vacant();
        let accepted = super::Accepted { listener, peer, stream: &stream };
        let mut wire = Wire {
            id,
            input: &[],
            consumed: 0,
            output: &mut self.scratch,
            posts: &mut self.posts,
            returned: 0..0,
            ends: super::Ends { stream: Some(&stream) },
            wall: self.clock.wall,
            now_ms: self.clock.now_ms,
            restarted: false,
            panics: 0,
            ended: false,
            draining: self.drain.is_some(),
        };
        let opened = catch_unwind(AssertUnwindSafe(|| self.app.open(&accepted, &mut wire)));
        let Ok((state, flow)) = opened else {
            self.counters.panics += 1;
            log::error!("the application panicked at a new connection, which is closed");
            self.scratch.clear();
            self.capacity.leave();
            return id;
        };
        let mut connection = Connection::new(stream, state, connecting);
        connection.readable &= self.eager.tries();
        if !self.scratch.is_empty() {
            connection.pending = Some(Box::new(std::mem::take(&mut self.scratch)));
        }
        match flow {
            Flow::Read(phase) | Flow::Yield(phase) => connection.phase = phase,
            // A connect under way is finished before anything else is done with it.
            _ if connecting => {}
            other => connection.obey(other),
        }
        connection.queued = true;
        self.table.insert(connection);
        self.ready.push(id);
        id
    }

    /// Lets every connection that can make progress take one step.
    fn drive(&mut self) {
        if self.ready.is_empty() {
            return;
        }
        let mut ready = std::mem::take(&mut self.ready);
        for &id in &ready {
            self.with_connection(id, |connection, lent| {
                connection.queued = false;
                connection.step(id, lent)
            });
        }
        // What became unfinished stands in `next`: the others have their turn first.
        ready.clear();
        self.ready = ready;
    }

    /// Does something with one connection and draws the consequences.
    #[inline]
    fn with_connection(
        &mut self,
        id: ConnId,
        work: impl FnOnce(&mut Connection<B::Stream, A::State>, &mut Lent<'_, A>) -> Outcome,
    ) {
        let Some(connection) = self.table.get_mut(id) else {
            return;
        };
        let mut lent = Lent {
            app: &mut self.app,
            buffer: &mut self.buffer,
            scratch: &mut self.scratch,
            posts: &mut self.posts,
            limits: &self.limits,
            counters: &mut self.counters,
            eager: &mut self.eager,
            wall: self.clock.wall,
            now_ms: self.clock.now_ms,
            draining: self.drain.is_some(),
        };
        // A panic in the application costs the connection it was called for, not the others theirs. What it leaves
        // half done is the connection's, which goes, or the application's own.
        let outcome = catch_unwind(AssertUnwindSafe(|| work(connection, &mut lent))).unwrap_or_else(|_| {
            lent.counters.panics += 1;
            log::error!("the application panicked at {id:?}, which is reset");
            connection.stream.abort();
            Outcome::Gone(Closed::Panicked)
        });
        match outcome {
            Outcome::Gone(closed) => self.bury(id, closed),
            Outcome::Stay => {
                if let Err(error) = self.settle(id) {
                    self.bury(id, Closed::Error(error));
                }
            }
        }
    }

    /// Tells backend, timers and the line what a living connection needs.
    #[inline]
    fn settle(&mut self, id: ConnId) -> io::Result<()> {
        let Some(connection) = self.table.get_mut(id) else {
            return Ok(());
        };
        if connection.is_at_rest() {
            let phase = connection.phase;
            enter(&mut self.timers, connection, id, phase, self.clock.now_ms);
            return Ok(());
        }
        if let Some(cold) = connection.take_cold() {
            let bell = Arc::clone(&self.mailbox.bell);
            if !read_ahead::request(cold, move || bell.warm(id)) {
                connection.warmed();
            }
        }
        let wanted = connection.interest();
        match connection.registered {
            None => {
                self.counters.registrations += 1;
                self.backend.add(connection.stream.source(), id.token(), wanted)?;
                connection.registered = Some(wanted);
            }
            Some(told) if told.write != wanted.write || (B::REPEATS && told.read != wanted.read) => {
                self.counters.registrations += 1;
                self.backend.set_interest(connection.stream.source(), id.token(), wanted)?;
                connection.registered = Some(wanted);
            }
            Some(_) => {}
        }
        let phase = connection.clock();
        enter(&mut self.timers, connection, id, phase, self.clock.now_ms);
        if connection.is_unfinished() && !connection.queued {
            connection.queued = true;
            self.next.push(id);
        }
        Ok(())
    }

    /// Removes a connection: from the backend, the timers, the table, and tells the application.
    fn bury(&mut self, id: ConnId, closed: Closed) {
        self.scratch.clear();
        let Some(connection) = self.table.remove(id) else {
            return;
        };
        self.timers.cancel(id.index);
        if connection.registered.is_some()
            && let Err(error) = self.backend.remove(connection.stream.source(), id.token())
        {
            log::warn!("cannot stop watching a connection: {error}");
        }
        self.counters.closes += 1;
        log::debug!("closed {id:?}: {closed:?}");
        let Connection { stream, state, .. } = connection;
        if catch_unwind(AssertUnwindSafe(|| self.app.closed(id, state, closed))).is_err() {
            self.counters.panics += 1;
            log::error!("the application panicked at the end of {id:?}");
        }
        drop(stream);
        self.capacity.leave();
        for door in &mut self.doors {
            door.room_was_made();
        }
    }

    /// Hands out the letters of other threads and of the connections themselves.
    #[inline]
    fn deliver(&mut self) {
        let rung = self.mailbox.bell.answer();
        if rung || !self.posts.is_empty() {
            let mut letters = std::mem::take(&mut self.letters);
            letters.append(&mut self.posts);
            if rung {
                self.mailbox.collect(&mut letters);
                self.schedule.extend(&mut self.mailbox.bell.tasks());
                for id in self.mailbox.bell.warmed() {
                    self.with_connection(id, |connection, lent| {
                        connection.warmed();
                        connection.step(id, lent)
                    });
                }
            }
            self.hand_out(letters);
        }
    }

    /// Tells the application that the turn is over, and delivers what it posts then: whatever a turn brought a
    /// connection can leave in one send.
    fn end_turn(&mut self) {
        let (app, posts) = (&mut self.app, &mut self.posts);
        if catch_unwind(AssertUnwindSafe(|| app.end_of_turn(posts))).is_err() {
            self.counters.panics += 1;
            log::error!("the application panicked at the end of a turn");
        }
        let closes = self.counters.closes;
        if !self.posts.is_empty() {
            let mut letters = std::mem::take(&mut self.letters);
            letters.append(&mut self.posts);
            self.hand_out(letters);
        }
        self.unheard = self.counters.closes != closes;
    }

    fn hand_out(&mut self, mut letters: Vec<(ConnId, A::Letter)>) {
        for (id, letter) in letters.drain(..) {
            self.with_connection(id, |connection, lent| {
                if matches!(connection.stage, Stage::Closing { .. } | Stage::Lingering | Stage::Connecting) {
                    return Outcome::Stay;
                }
                connection.call(lent, id, &[], |app, state, wire| app.letter(state, letter, wire));
                finish(connection, lent)
            });
        }
        self.letters = letters;
    }

    /// Ends, or asks the application about, whoever ran out of time.
    fn expire(&mut self) {
        while let Some((index, phase)) = self.timers.expired(self.clock.now_ms) {
            let Some(id) = self.table.at(index) else {
                self.timers.cancel(index);
                continue;
            };
            // Before the work, so that the connection is armed anew whatever comes of it.
            self.timers.cancel(index);
            let pace = self.timeouts.body_bytes_min();
            self.with_connection(id, |connection, lent| match phase {
                Phase::Writing => {
                    connection.stream.abort();
                    Outcome::Gone(Closed::TooSlow)
                }
                Phase::Lingering | Phase::Parting => Outcome::Gone(connection.reason()),
                Phase::Body if connection.received >= pace.max(1) => Outcome::Stay,
                Phase::Reply => time_out(connection, lent, id, phase),
                _ => last_look(connection, lent, id, phase, pace.max(1)),
            });
        }
    }

    /// Begins to drain: nobody new may come, whoever has come to a door is let in, then the doors are closed.
    ///
    /// A connection whose handshake is under way belongs to the listener it began at, also where several loops
    /// listen on one port, and would be reset with it. So where the system can turn away newcomers, the doors stay
    /// open for some round trips after that.
    fn begin_drain(&mut self) {
        let limit_ms = u64::try_from(self.limits.drain.as_millis()).unwrap_or(u64::MAX);
        // One more millisecond, because the clock is cut to milliseconds: never early.
        self.drain = Some(self.clock.now_ms.saturating_add(limit_ms).saturating_add(1));
        let mut able = true;
        for door in &mut self.doors {
            able &= door.turn_away();
        }
        self.settled_ms = Some(self.clock.now_ms + if able { SETTLE_MS } else { 0 });
        self.accept(usize::MAX);
        self.close_doors();
        self.timeouts.idle = Some(self.timeouts.idle.map_or(DRAIN_GRACE, |own| own.min(DRAIN_GRACE)));
        self.timeouts.silent = Some(self.timeouts.silent.map_or(DRAIN_GRACE, |own| own.min(DRAIN_GRACE)));
        self.timers = Timers::new(&self.timeouts);
        for id in self.table.ids() {
            self.with_connection(id, |connection, lent| {
                if !matches!(connection.stage, Stage::Reading | Stage::Paused | Stage::Yielded) {
                    return Outcome::Stay;
                }
                let yielded = connection.stage == Stage::Yielded;
                connection.call(lent, id, &[], App::drain);
                if yielded && connection.stage == Stage::Reading {
                    // Input is at hand that was not shown in this call.
                    connection.stage = Stage::Yielded;
                }
                if matches!(connection.stage, Stage::Closing { .. }) {
                    connection.blame(Closed::Drain);
                }
                finish(connection, lent)
            });
        }
    }

    /// Closes the doors of a drain once nobody stands there any more.
    fn close_doors(&mut self) {
        if self.settled_ms.is_none_or(|settled| self.clock.now_ms < settled) {
            return;
        }
        self.settling += 1;
        let mut index = 0;
        while index < self.doors.len() {
            let was_quiet = self.doors[index].is_quiet();
            self.doors[index].note();
            if self.doors[index].due_ms() <= self.clock.now_ms {
                self.let_in(index, usize::MAX);
            }
            // A door that could not be emptied is tried again while connections may leave that hold what is short.
            let hopeless = self.table.len() == 0 && self.settling > SETTLING_MAX;
            if was_quiet || self.doors[index].is_quiet() || hopeless {
                self.doors.swap_remove(index).close(&mut self.backend);
            } else {
                index += 1;
            }
        }
        self.settled_ms = (!self.doors.is_empty()).then_some(self.clock.now_ms + SETTLE_MS);
    }

    /// Closes everything at once.
    fn close_all(&mut self) {
        for door in self.doors.drain(..) {
            door.close(&mut self.backend);
        }
        for id in self.table.ids() {
            self.bury(id, Closed::Drain);
        }
    }

    /// Nothing is open any more, and nobody will come.
    fn is_drained(&self) -> bool {
        self.drain.is_some() && self.doors.is_empty() && self.table.len() == 0
    }

    /// Carries out what a [`Handle`] ordered. Says whether everything was closed at once.
    fn obey_orders(&mut self) -> bool {
        let order = self.mailbox.bell.order();
        let late = self.drain.is_some_and(|deadline| deadline <= self.clock.now_ms);
        if late && self.table.len() > 0 {
            log::warn!("the drain took longer than its limit; {} connections are cut off", self.table.len());
        }
        if order == Order::Stop || late {
            self.close_all();
            return true;
        }
        if order == Order::Drain && self.drain.is_none() {
            self.begin_drain();
        } else if self.drain.is_some() {
            self.close_doors();
        }
        false
    }
}

/// Starts the clock of a phase where a new one begins.
#[inline]
fn enter<S, T>(timers: &mut Timers, connection: &mut Connection<S, T>, id: ConnId, phase: Phase, now_ms: u64) {
    if timers.enter(id.index, phase, connection.restart, now_ms) {
        connection.restart = false;
        if phase == Phase::Body {
            connection.received = 0;
        }
    }
}

/// What follows a call of the application outside of reading.
fn finish<S, A>(connection: &mut Connection<S, A::State>, lent: &mut Lent<'_, A>) -> Outcome
where
    S: Stream,
    A: App,
{
    match connection.flush(lent) {
        Err(error) => Outcome::Gone(Closed::Error(error)),
        Ok(()) => connection.part().map_or(Outcome::Stay, Outcome::Gone),
    }
}

/// A connection that has been waited for long enough: what came in the last moment, and is not reported yet, counts. So
/// it is not the client's fault that the process stood still, as after SIGCONT, which interrupts the wait as well.
fn last_look<S, A>(
    connection: &mut Connection<S, A::State>,
    lent: &mut Lent<'_, A>,
    id: ConnId,
    phase: Phase,
    pace: u64,
) -> Outcome
where
    S: Stream,
    A: App,
{
    let before = connection.received;
    connection.readable = true;
    let outcome = connection.step(id, lent);
    let is_same = connection.clock() == phase && !connection.restart;
    let in_vain = match phase {
        Phase::Head => is_same,
        Phase::Body => is_same && connection.received < pace,
        _ => connection.received == before,
    };
    match outcome {
        Outcome::Stay if in_vain => time_out(connection, lent, id, phase),
        outcome => outcome,
    }
}

/// Tells the application that a phase ran out, and why the connection ends if it does.
fn time_out<S, A>(connection: &mut Connection<S, A::State>, lent: &mut Lent<'_, A>, id: ConnId, phase: Phase) -> Outcome
where
    S: Stream,
    A: App,
{
    let reason = if lent.draining { Closed::Drain } else { Closed::Timeout(phase) };
    connection.call(lent, id, &[], |app, state, wire| app.timer(state, phase, wire));
    if matches!(connection.stage, Stage::Closing { .. }) {
        connection.blame(reason);
    }
    finish(connection, lent)
}

impl<B: Readiness, A: App> Poller for EventLoop<B, A> {
    fn turn(&mut self) -> io::Result<Turn> {
        self.begin();
        let patience = self.patience();
        self.events.clear();
        self.counters.waits += 1;
        self.ready.append(&mut self.next);
        match self.backend.wait(&mut self.events, patience) {
            Ok(()) => self.wait_faults = 0,
            Err(error) => self.bear(error)?,
        }
        self.clock.tick(&self.backend);
        self.schedule.run(self.clock.now_ms);
        self.note();
        self.drive();
        if self.doors_due_ms() <= self.clock.now_ms {
            // Who has just come had all this time to send a request.
            self.accept(self.limits.accepts_per_turn);
            self.drive();
        }
        self.deliver();
        self.expire();
        let stopped = self.obey_orders();
        self.end_turn();
        let over = stopped || self.is_drained();
        Ok(if over { Turn::Over } else { Turn::Again })
    }

    fn run(&mut self) -> io::Result<()> {
        while self.turn()? == Turn::Again {}
        Ok(())
    }

    fn handle(&self) -> Handle {
        Handle { bell: Arc::clone(&self.mailbox.bell) }
    }
}
