//! One turn of the loop, and the only place that knows its order:
//! wait, call what is due, note readiness, accept, drive what can make progress, deliver letters, expire, drain,
//! end the turn.
//!
//! The loop owns the clock and reads it once per turn. It is written once, over any [`Readiness`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use self::clock::Clock;
use super::app::{App, ConnId, Remote};
use super::capacity::Capacity;
use super::connection::{Connection, Lent};
use super::eager::Eager;
use super::listener::Door;
use super::mailbox::{Bell, Mailbox};
use super::output::Output;
use super::readiness::{Event, Readiness, Token};
use super::schedule::Schedule;
use super::table::Table;
use super::timers::{Timeouts, Timers};
use super::{Counters, Handle, Limits, Poller, Turn};

mod accepting;
mod burying;
mod clock;
mod delivering;
mod draining;
mod driving;
mod expiring;
mod settling;
mod waiting;

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
        let clock = Clock::start(&backend, &mut lent);
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

    fn begin(&mut self) {
        if !self.started {
            self.started = true;
            let remote = self.remote();
            self.lent.app.start(remote);
        }
    }

    /// Turns so many times, unless the loop comes to its end before.
    fn turn_times(&mut self, mut count: u64) -> io::Result<Turn> {
        self.begin();
        loop {
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
        self.turn_times(1)
    }

    fn run(&mut self) -> io::Result<()> {
        while self.turn_times(u64::MAX)? == Turn::Again {}
        Ok(())
    }

    fn handle(&self) -> Handle {
        Handle { bell: Arc::clone(&self.mailbox.bell) }
    }
}
