//! One turn of the loop, and the only place that knows its order:
//! wait, call what is due, note readiness, accept, drive what can make progress, deliver letters, expire, drain,
//! end the turn.
//!
//! The loop owns the clock and reads it once per turn. It is written once, over any [`Readiness`].

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::app::{App, Closed, ConnId, Ending, Flow, Phase, Remote, Wire};
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
    doors: Vec<Door<B>>,
    table: Table<Connection<B::Stream, A::State>>,
    /// The application, and what else a connection works with.
    lent: Lent<A>,
    /// What is read stands here while the application is shown it.
    buffer: Box<[u8]>,
    timers: Timers,
    timeouts: Timeouts,
    capacity: Capacity,
    clock: Clock,
    events: Vec<Event>,
    /// How many of these, and then of those in the line, have had their step in this turn; and whose it was last.
    driven: (usize, ConnId),
    /// Connections to drive in this turn, and those for the next.
    ready: Vec<ConnId>,
    next: Vec<ConnId>,
    mailbox: Arc<Mailbox<A::Letter>>,
    letters: Vec<(ConnId, A::Letter)>,
    schedule: Schedule,
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
    /// When something else than the clock of a connection is due; looked up anew once something has stirred that.
    alarm_ms: u64,
    stirred: bool,
}

/// The loop's clocks, read once per turn; the calendar at most once a second. What they tell is lent.
struct Clock {
    start_ms: u64,
    wall_until_ms: u64,
}

impl Clock {
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    fn tick<A: App>(&mut self, backend: &impl Readiness, lent: &mut Lent<A>) {
        lent.now_ms = millis(backend.now()).saturating_sub(self.start_ms);
        if lent.now_ms >= self.wall_until_ms {
            let wall = backend.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
            lent.wall = wall.as_secs();
            self.wall_until_ms = lent.now_ms + 1000 - u64::from(wall.subsec_millis());
        }
    }
}

#[inline]
fn millis(time: Duration) -> u64 {
    time.as_secs() * 1000 + u64::from(time.subsec_millis())
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
        let buffer = vec![0; limits.read_bytes_per_turn.max(1)].into_boxed_slice();
        let capacity = Capacity::new(limits.connections_max);
        let mut lent = Lent {
            app,
            scratch: Output::new(),
            posts: Vec::new(),
            limits,
            counters: Counters::default(),
            eager: Eager::default(),
            wall: 0,
            now_ms: 0,
            draining: false,
        };
        let mut clock = Clock { start_ms: millis(backend.now()), wall_until_ms: 0 };
        clock.tick(&backend, &mut lent);
        EventLoop {
            backend,
            doors: Vec::new(),
            table: Table::new(),
            lent,
            buffer,
            timers: Timers::new(&timeouts),
            timeouts,
            capacity,
            clock,
            events: Vec::new(),
            driven: (0, ConnId { index: u32::MAX, serial: 0 }),
            ready: Vec::new(),
            next: Vec::new(),
            mailbox,
            letters: Vec::new(),
            schedule: Schedule::default(),
            started: false,
            wait_faults: 0,
            drain: None,
            settled_ms: None,
            settling: 0,
            unheard: false,
            alarm_ms: 0,
            stirred: true,
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
        self.doors.push(Door::open(listener.into(), self.lent.limits.backlog, &mut self.backend, token)?);
        self.stirred = true;
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
        &self.lent.counters
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
            self.lent.app.start(remote);
        }
    }

    /// How long the next wait may last.
    fn patience(&mut self) -> Option<Duration> {
        if self.stirred {
            self.look_up_alarm();
        }
        if self.unheard || !self.ready.is_empty() || !self.next.is_empty() || !self.lent.posts.is_empty() {
            return Some(Duration::ZERO);
        }
        let next_ms = self.timers.wake_ms().min(self.alarm_ms);
        (next_ms != u64::MAX).then(|| Duration::from_millis(next_ms.saturating_sub(self.lent.now_ms)))
    }

    fn look_up_alarm(&mut self) {
        let drain_ms = self.settled_ms.unwrap_or(u64::MAX).min(self.drain.unwrap_or(u64::MAX));
        let task_ms = self.schedule.next_ms().unwrap_or(u64::MAX);
        self.alarm_ms = self.doors_due_ms().min(task_ms).min(drain_ms);
        self.stirred = false;
    }

    /// When somebody may be let in: 0 for at once, `u64::MAX` for never.
    fn doors_due_ms(&self) -> u64 {
        self.doors.iter().fold(u64::MAX, |next, door| next.min(door.due_ms()))
    }

    /// Takes in who waits at the doors, at most a quota for each.
    #[inline]
    fn accept(&mut self, quota: usize) {
        for index in 0..self.doors.len() {
            if self.doors[index].due_ms() <= self.lent.now_ms {
                self.let_in(index, quota);
            }
        }
    }

    fn let_in(&mut self, index: usize, quota: usize) {
        for _ in 0..quota {
            if self.doors[index].due_ms() > self.lent.now_ms || !self.accept_one(index) {
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
            door.rest_while_full(&mut self.backend, self.lent.now_ms, self.capacity.is_shared());
            return false;
        }
        match door.accept(&mut self.backend, &mut self.lent.counters, self.lent.now_ms) {
            Admission::Stream(stream, peer) => {
                self.admit(stream, Some(index), Some(peer), false);
                true
            }
            Admission::Again => {
                self.capacity.give_back();
                true
            }
            Admission::Enough => {
                self.capacity.give_back();
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
            output: &mut self.lent.scratch,
            posts: &mut self.lent.posts,
            returned: 0..0,
            ends: super::Ends { stream: Some(&stream) },
            wall: self.lent.wall,
            now_ms: self.lent.now_ms,
            restarted: false,
            panics: 0,
            ended: false,
            draining: self.lent.draining,
        };
        let opened = catch_unwind(AssertUnwindSafe(|| self.lent.app.open(&accepted, &mut wire)));
        let Ok((state, flow)) = opened else {
            self.lent.counters.panics += 1;
            log::error!("the application panicked at a new connection, which is closed");
            self.lent.scratch.clear();
            self.capacity.give_back();
            return id;
        };
        let mut connection = Connection::new(stream, state, connecting);
        connection.readable &= self.lent.eager.tries();
        if !self.lent.scratch.is_empty() {
            connection.pending = Some(Box::new(std::mem::take(&mut self.lent.scratch)));
        }
        match flow {
            Flow::Read(phase) | Flow::Yield(phase) => connection.phase = phase,
            // A connect under way is finished before anything else is done with it.
            _ if connecting => {}
            other => connection.obey(other),
        }
        connection.queued = true;
        self.table.insert(connection);
        self.capacity.admit();
        self.ready.push(id);
        id
    }

    /// Lets every connection that can make progress take one step: those the backend reported, then those in the line.
    /// One guard is around all of them, as long as none panics.
    #[inline(never)]
    fn drive(&mut self) {
        while self.driven.0 < self.events.len() + self.ready.len() {
            if catch_unwind(AssertUnwindSafe(|| self.drive_on())).is_err() {
                self.lose(self.driven.1);
            }
        }
        // What became unfinished stands in `next`: the others have their turn first.
        self.events.clear();
        self.ready.clear();
        self.driven.0 = 0;
    }

    #[inline]
    fn drive_on(&mut self) {
        loop {
            let at = self.driven.0;
            let found = if let Some(event) = self.events.get(at) {
                note(&mut self.table, &mut self.doors, event, &mut self.stirred)
            } else if let Some(&id) = self.ready.get(at - self.events.len()) {
                self.table.get_mut(id).map(|connection| (id, connection))
            } else {
                return;
            };
            self.driven.0 = at + 1;
            let Some((id, connection)) = found else { continue };
            self.driven.1 = id;
            connection.queued = false;
            let outcome = connection.step(id, &mut self.lent, &mut self.buffer);
            if !has_come_to_rest(&outcome, connection, id, &mut self.timers, self.lent.now_ms) {
                self.conclude(id, outcome);
            }
        }
    }

    /// Does something with one connection and draws the consequences. A panic ends that connection, no other.
    fn with_connection(
        &mut self,
        id: ConnId,
        work: impl FnOnce(&mut Connection<B::Stream, A::State>, &mut Lent<A>, &mut [u8]) -> Outcome,
    ) {
        let attend = || {
            let Some(connection) = self.table.get_mut(id) else {
                return;
            };
            let outcome = work(connection, &mut self.lent, &mut self.buffer);
            if !has_come_to_rest(&outcome, connection, id, &mut self.timers, self.lent.now_ms) {
                self.conclude(id, outcome);
            }
        };
        if catch_unwind(AssertUnwindSafe(attend)).is_err() {
            self.lose(id);
        }
    }

    fn conclude(&mut self, id: ConnId, outcome: Outcome) {
        match outcome {
            Outcome::Gone(closed) => self.bury(id, closed),
            Outcome::Stay => {
                if let Err(error) = self.settle(id) {
                    self.bury(id, Closed::Error(error));
                }
            }
        }
    }

    /// A panic in the application costs the connection it was called for, not the others theirs. What it leaves half
    /// done is the connection's, which goes, or the application's own.
    #[cold]
    fn lose(&mut self, id: ConnId) {
        self.lent.counters.panics += 1;
        log::error!("the application panicked at {id:?}, which is reset");
        if let Some(connection) = self.table.get_mut(id) {
            connection.stream.abort();
        }
        self.bury(id, Closed::Panicked);
    }

    /// Tells backend, timers and the line what a living connection needs that is not at rest.
    fn settle(&mut self, id: ConnId) -> io::Result<()> {
        let Some(connection) = self.table.get_mut(id) else {
            return Ok(());
        };
        if let Some(cold) = connection.take_cold() {
            let bell = Arc::clone(&self.mailbox.bell);
            if !read_ahead::request(cold, move || bell.warm(id)) {
                connection.warmed();
            }
        }
        let wanted = connection.interest();
        match connection.registered {
            None => {
                self.lent.counters.registrations += 1;
                self.backend.add(connection.stream.source(), id.token(), wanted)?;
                connection.registered = Some(wanted);
            }
            Some(told) if told.write != wanted.write || (B::REPEATS && told.read != wanted.read) => {
                self.lent.counters.registrations += 1;
                self.backend.set_interest(connection.stream.source(), id.token(), wanted)?;
                connection.registered = Some(wanted);
            }
            Some(_) => {}
        }
        let phase = connection.clock();
        enter(&mut self.timers, connection, id, phase, self.lent.now_ms);
        if connection.is_unfinished() && !connection.queued {
            connection.queued = true;
            self.next.push(id);
        }
        Ok(())
    }

    /// Removes a connection: from the backend, the timers, the table, and tells the application.
    fn bury(&mut self, id: ConnId, closed: Closed) {
        self.lent.scratch.clear();
        let Some(connection) = self.table.remove(id) else {
            return;
        };
        self.timers.cancel(id.index);
        if connection.registered.is_some()
            && let Err(error) = self.backend.remove(connection.stream.source(), id.token())
        {
            log::warn!("cannot stop watching a connection: {error}");
        }
        self.lent.counters.closes += 1;
        log::debug!("closed {id:?}: {closed:?}");
        let Connection { stream, state, pending, .. } = connection;
        let ending = Ending {
            reason: closed,
            unsent_bytes: pending.map_or(0, |output| output.len() as u64),
            wall: self.lent.wall,
            now: Duration::from_millis(self.lent.now_ms),
        };
        if catch_unwind(AssertUnwindSafe(|| self.lent.app.closed(id, state, ending))).is_err() {
            self.lent.counters.panics += 1;
            log::error!("the application panicked at the end of {id:?}");
        }
        drop(stream);
        self.capacity.leave();
        for door in &mut self.doors {
            door.room_was_made();
        }
        self.stirred = true;
    }

    /// Hands out the letters of other threads and of the connections themselves.
    #[inline]
    fn deliver(&mut self) {
        let rung = self.mailbox.bell.answer();
        if rung || !self.lent.posts.is_empty() {
            self.stirred = true;
            let mut letters = std::mem::take(&mut self.letters);
            letters.append(&mut self.lent.posts);
            if rung {
                self.mailbox.collect(&mut letters);
                self.schedule.extend(&mut self.mailbox.bell.tasks());
                for id in self.mailbox.bell.warmed() {
                    self.with_connection(id, |connection, lent, buffer| {
                        connection.warmed();
                        connection.step_apart(id, lent, buffer)
                    });
                }
            }
            self.hand_out(letters);
        }
    }

    /// Tells the application that the turn is over, and delivers what it posts then: whatever a turn brought a
    /// connection can leave in one send.
    fn end_turn(&mut self) {
        let (app, posts) = (&mut self.lent.app, &mut self.lent.posts);
        if catch_unwind(AssertUnwindSafe(|| app.end_of_turn(posts))).is_err() {
            self.lent.counters.panics += 1;
            log::error!("the application panicked at the end of a turn");
        }
        let closes = self.lent.counters.closes;
        if !self.lent.posts.is_empty() {
            let mut letters = std::mem::take(&mut self.letters);
            letters.append(&mut self.lent.posts);
            self.hand_out(letters);
        }
        self.unheard = self.lent.counters.closes != closes;
    }

    fn hand_out(&mut self, mut letters: Vec<(ConnId, A::Letter)>) {
        for (id, letter) in letters.drain(..) {
            self.with_connection(id, |connection, lent, _| {
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
        while let Some((index, phase)) = self.timers.expired(self.lent.now_ms) {
            let Some(id) = self.table.at(index) else {
                self.timers.cancel(index);
                continue;
            };
            // Before the work, so that the connection is armed anew whatever comes of it.
            self.timers.cancel(index);
            let pace = self.timeouts.body_bytes_min();
            self.with_connection(id, |connection, lent, buffer| match phase {
                Phase::Writing => {
                    connection.stream.abort();
                    Outcome::Gone(Closed::TooSlow)
                }
                Phase::Lingering | Phase::Parting => Outcome::Gone(connection.reason()),
                Phase::Body if connection.received >= pace.max(1) => Outcome::Stay,
                Phase::Reply => time_out(connection, lent, id, phase),
                _ => last_look(connection, lent, buffer, id, phase, pace.max(1)),
            });
        }
    }

    /// Begins to drain: nobody new may come, whoever has come to a door is let in, then the doors are closed.
    ///
    /// A connection whose handshake is under way belongs to the listener it began at, also where several loops
    /// listen on one port, and would be reset with it. So where the system can turn away newcomers, the doors stay
    /// open for some round trips after that.
    fn begin_drain(&mut self) {
        // The order may have come when this turn had gone on for a while.
        self.clock.tick(&self.backend, &mut self.lent);
        let limit_ms = u64::try_from(self.lent.limits.drain.as_millis()).unwrap_or(u64::MAX);
        // One more millisecond, because the clock is cut to milliseconds: never early.
        self.drain = Some(self.lent.now_ms.saturating_add(limit_ms).saturating_add(1));
        self.lent.draining = true;
        let mut able = true;
        for door in &mut self.doors {
            able &= door.turn_away();
        }
        self.settled_ms = Some(self.lent.now_ms + if able { SETTLE_MS } else { 0 });
        self.accept(usize::MAX);
        self.close_doors();
        self.timeouts.idle = Some(self.timeouts.idle.map_or(DRAIN_GRACE, |own| own.min(DRAIN_GRACE)));
        self.timeouts.silent = Some(self.timeouts.silent.map_or(DRAIN_GRACE, |own| own.min(DRAIN_GRACE)));
        self.timers = Timers::new(&self.timeouts);
        for id in self.table.ids() {
            self.with_connection(id, |connection, lent, _| {
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
        if self.settled_ms.is_none_or(|settled| self.lent.now_ms < settled) {
            return;
        }
        self.settling += 1;
        let mut index = 0;
        while index < self.doors.len() {
            let was_quiet = self.doors[index].is_quiet();
            self.doors[index].note();
            if self.doors[index].due_ms() <= self.lent.now_ms {
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
        self.settled_ms = (!self.doors.is_empty()).then_some(self.lent.now_ms + SETTLE_MS);
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
    #[inline]
    fn obey_orders(&mut self) -> bool {
        let order = self.mailbox.bell.order();
        if order == Order::Run && self.drain.is_none() {
            return false;
        }
        self.stirred = true;
        self.obey(order)
    }

    fn obey(&mut self, order: Order) -> bool {
        let late = self.drain.is_some_and(|deadline| deadline <= self.lent.now_ms);
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

/// Remembers what the backend reported. Returns the connection it is about, unless that stands in the line already.
#[inline]
fn note<'a, B: Readiness, T>(
    table: &'a mut Table<Connection<B::Stream, T>>,
    doors: &mut [Door<B>],
    event: &Event,
    stirred: &mut bool,
) -> Option<(ConnId, &'a mut Connection<B::Stream, T>)> {
    if let Some((id, connection)) = table.resolve(event.token) {
        connection.readable |= event.readable;
        connection.writable |= event.writable;
        connection.hangup |= event.hangup;
        return (!connection.queued).then_some((id, connection));
    }
    if let Some(door) = doors.get_mut(DOOR_TOKEN.wrapping_sub(event.token.0)) {
        door.note();
        *stirred = true;
    }
    None
}

/// Whether there is nothing more to see to than the phase, as almost always.
#[inline]
fn has_come_to_rest<S: Stream, T>(
    outcome: &Outcome,
    connection: &mut Connection<S, T>,
    id: ConnId,
    timers: &mut Timers,
    now_ms: u64,
) -> bool {
    let rests = matches!(outcome, Outcome::Stay) && connection.is_at_rest();
    if rests {
        enter(timers, connection, id, connection.phase, now_ms);
    }
    rests
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
fn finish<S, A>(connection: &mut Connection<S, A::State>, lent: &mut Lent<A>) -> Outcome
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
    lent: &mut Lent<A>,
    buffer: &mut [u8],
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
    let outcome = connection.step_apart(id, lent, buffer);
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
fn time_out<S, A>(connection: &mut Connection<S, A::State>, lent: &mut Lent<A>, id: ConnId, phase: Phase) -> Outcome
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
        self.lent.counters.waits += 1;
        if !self.next.is_empty() {
            self.ready.append(&mut self.next);
        }
        match self.backend.wait(&mut self.events, patience) {
            Ok(()) => self.wait_faults = 0,
            Err(error) => self.bear(error)?,
        }
        self.clock.tick(&self.backend, &mut self.lent);
        if self.alarm_ms <= self.lent.now_ms {
            self.stirred = true;
            self.schedule.run(self.lent.now_ms);
        }
        self.drive();
        if self.stirred && self.doors_due_ms() <= self.lent.now_ms {
            // Who has just come had all this time to send a request.
            self.accept(self.lent.limits.accepts_per_turn);
            self.drive();
        }
        self.deliver();
        if self.timers.is_due(self.lent.now_ms) {
            self.expire();
        }
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
