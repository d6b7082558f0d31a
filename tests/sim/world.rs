//! A simulated network and clock, as a backend for the loop.
//!
//! Time passes only while the loop waits. The simulation is as adverse as the contract of `readiness` permits: it
//! reports ready sources in any order, some of them late, and some that are not ready at all; in edge-triggered mode it
//! reports a ready source only once until a call has found it empty or full; reads and writes transfer arbitrarily few
//! bytes; a connection closed with unread input is reset, and may lose data that its peer has not read yet.
//!
//! As on Linux, a stream becomes writable again only when a third of its send buffer is free, a level-triggered backend
//! does not report a reset without interest, and TCP keep-alive finds a peer that has vanished after two minutes.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fs::File;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use serverd::readiness::{Event, Interest, Listener, Received, Sent, Stream, Token};
use serverd::{Peer, Readiness};

use super::client::Client;

/// A small random number generator (xorshift64*); it only has to be reproducible.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Rng(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns a random number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound.max(1)
    }

    /// Returns true once in `count` calls on average.
    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Returns a random length between 1 and `len`, of any magnitude from a few bytes to all of it.
    pub(super) fn some_of(&mut self, len: usize) -> usize {
        let max = [7, 200, 3000, usize::MAX, usize::MAX][usize::try_from(self.below(5)).expect("small")];
        let min = (len / 40).max(1);
        min.max(1 + usize::try_from(self.below(len as u64)).expect("small")).min(max.max(min)).min(len)
    }
}

/// Time after which TCP keep-alive, as the loop sets it, fails a connection whose peer has vanished: 60 s of silence,
/// then 4 probes at intervals of 15 s.
const KEEPALIVE_US: u64 = 120_000_000;

/// Time after which a connection fails whose peer does not acknowledge data: 15 retransmissions on Linux.
const RETRANSMISSION_US: u64 = 924_000_000;

/// Maximum bytes that the server may read from a connection in one turn: two reads and, with TLS, an incomplete record
/// before these.
const TURN_READ_MAX: usize = 2 * 64 * 1024 + 17 * 1024;

/// Adverse conditions, chosen by the seed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Conditions {
    /// Streams occasionally fail, and accepting fails for a while.
    pub(super) faulty: bool,
    /// The server occasionally does not run for up to four seconds.
    pub(super) stalls: bool,
}

/// A queue of bytes.
#[derive(Default)]
pub(super) struct Pipe {
    bytes: Vec<u8>,
    /// Number of bytes at the beginning that were taken.
    taken: usize,
}

impl Pipe {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Removes the first `count` bytes.
    fn take(&mut self, count: usize, use_bytes: impl FnOnce(&[u8])) {
        use_bytes(&self.bytes[self.taken..self.taken + count]);
        self.taken += count;
        if self.taken > self.bytes.len() / 2 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
    }

    fn clear(&mut self) {
        *self = Pipe::default();
    }
}

/// The end of a peer that the server has to notice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    pub(super) at_us: u64,
    /// The time within which the server has to close the connection.
    pub(super) limit_us: u64,
}

/// One connection: the kernel's buffers at the server's end. `up` is from the client to the server, `down` the reverse.
#[allow(clippy::struct_excessive_bools, reason = "independent properties of a connection")]
pub(super) struct Socket {
    up: Pipe,
    up_max: usize,
    up_fin: bool,
    up_reset: bool,
    /// The send buffer of the server. The client acknowledges what it reads.
    pub(super) down: Pipe,
    down_max: usize,
    pub(super) down_fin: bool,
    pub(super) down_reset: bool,
    /// The server has accepted the connection and not closed it yet.
    pub(super) open: bool,
    pub(super) accepted_us: Option<u64>,
    /// Time at which the server has closed or half-closed the connection.
    pub(super) closed_us: Option<u64>,
    /// Time at which the server has closed the connection completely.
    pub(super) released_us: Option<u64>,
    /// The peer has reset the connection or vanished.
    pub(super) gone: Option<Gone>,
    /// The peer neither reads nor sends any more, and its system does not acknowledge anything.
    pub(super) vanished: bool,
    abort: bool,
    registration: Option<Registration>,
    /// Number of calls until the stream fails permanently.
    calls_until_failure: u64,
    pub(super) failed: bool,
    /// Bytes the server has read and written in this turn.
    turn: (usize, usize),
    /// Index of the client.
    pub(super) client: usize,
}

#[derive(Clone, Copy)]
struct Registration {
    token: Token,
    interest: Interest,
    /// The next readiness of this direction is still to be reported (edge-triggered).
    read_armed: bool,
    write_armed: bool,
    /// A hang-up was already reported.
    hangup_reported: bool,
}

impl Registration {
    fn new(token: Token, interest: Interest) -> Self {
        Registration { token, interest, read_armed: true, write_armed: true, hangup_reported: false }
    }
}

/// A scheduled action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Client(usize),
    /// The server's system finds that the peer of a socket has vanished.
    Lost(usize),
    Drain,
}

#[allow(clippy::struct_excessive_bools, reason = "independent properties of the world")]
pub(super) struct World {
    now_us: u64,
    pub(super) rng: Rng,
    edge: bool,
    pub(super) conditions: Conditions,
    /// Idle connections may be closed for new ones: there is a connection limit, or accepting fails at times.
    pub(super) may_evict: bool,
    pub(super) sockets: Vec<Socket>,
    pub(super) clients: Vec<Option<Client>>,
    schedule: BinaryHeap<Reverse<(u64, u64, Action)>>,
    serial: u64,
    pub(super) backlog: VecDeque<usize>,
    listener: Option<Registration>,
    pub(super) listening: bool,
    new_connections_stopped: bool,
    accept_fails_until_us: u64,
    watched: BTreeMap<Token, SimSource>,
    /// Sources that may have become ready.
    changed: BTreeSet<SimSource>,
    /// Sockets that were read or written in this turn.
    touched: Vec<usize>,
    waker: Arc<FlagWaker>,
    /// Total time for which the server has been stalled.
    pub(super) stalled_us: u64,
    pub(super) drain_us: Option<u64>,
    pub(super) drain: Option<Box<dyn Fn()>>,
    /// Consecutive waits with a timeout of zero that reported no events, while almost no time passed.
    idle_waits: u32,
    accepts_turn: usize,
    /// Connections that the server has open, and their permitted maximum.
    pub(super) open: usize,
    pub(super) open_max: usize,
    /// Memory that the server may use for the open connections.
    pub(super) memory_max: usize,
    /// The last wait would have blocked forever: it had no timeout, and no action is scheduled.
    pub(super) asleep: bool,
}

/// Runs a part of the simulation, whose memory does not count as the server's.
fn uncounted<T>(run: impl FnOnce() -> T) -> T {
    let mut result = None;
    allocation_counter::opt_out(|| result = Some(run()));
    result.expect("it has run")
}

/// A source: the listener, or a socket by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SimSource {
    Listener,
    Socket(usize),
}

#[derive(Default)]
struct FlagWaker(AtomicBool);

impl Wake for FlagWaker {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl World {
    pub(super) fn new(seed: u64, edge: bool, conditions: Conditions) -> Rc<RefCell<World>> {
        Rc::new(RefCell::new(World {
            now_us: 0,
            rng: Rng::new(seed),
            edge,
            conditions,
            may_evict: conditions.faulty,
            sockets: Vec::new(),
            clients: Vec::new(),
            schedule: BinaryHeap::new(),
            serial: 0,
            backlog: VecDeque::new(),
            listener: None,
            listening: false,
            new_connections_stopped: false,
            accept_fails_until_us: 0,
            watched: BTreeMap::new(),
            changed: BTreeSet::new(),
            touched: Vec::new(),
            waker: Arc::default(),
            stalled_us: 0,
            drain_us: None,
            drain: None,
            idle_waits: 0,
            accepts_turn: 0,
            open: 0,
            open_max: usize::MAX,
            memory_max: 0,
            asleep: false,
        }))
    }

    pub(super) fn now_us(&self) -> u64 {
        self.now_us
    }

    fn at(&mut self, us: u64, action: Action) {
        self.serial += 1;
        self.schedule.push(Reverse((us, self.serial, action)));
    }

    /// Schedules a client to act after a delay.
    pub(super) fn wake_client(&mut self, index: usize, delay_us: u64) {
        self.at(self.now_us + delay_us, Action::Client(index));
    }

    pub(super) fn drain_at(&mut self, us: u64) {
        self.at(us, Action::Drain);
    }

    pub(super) fn add_client(&mut self, client: Client, start_us: u64) {
        let index = self.clients.len();
        self.clients.push(Some(client));
        self.at(start_us, Action::Client(index));
    }

    /// Connects a client; `None` if the connection is refused because the listener is closed or stopped.
    pub(super) fn connect(&mut self, client: usize) -> Option<usize> {
        if !self.listening || self.new_connections_stopped {
            return None;
        }
        let calls_until_failure =
            if self.conditions.faulty && self.rng.one_in(10) { 1 + self.rng.below(30) } else { u64::MAX };
        // Linux grows send buffers to 4 MiB.
        let sizes = [1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];
        let mut size = |count| sizes[usize::try_from(self.rng.below(count)).expect("small")];
        let (up_max, down_max) = (size(4), size(6));
        self.sockets.push(Socket {
            up: Pipe::default(),
            up_max,
            up_fin: false,
            up_reset: false,
            down: Pipe::default(),
            down_max,
            down_fin: false,
            down_reset: false,
            open: false,
            accepted_us: None,
            closed_us: None,
            released_us: None,
            gone: None,
            vanished: false,
            abort: false,
            registration: None,
            calls_until_failure,
            failed: false,
            turn: (0, 0),
            client,
        });
        let socket = self.sockets.len() - 1;
        self.backlog.push_back(socket);
        self.changed.insert(SimSource::Listener);
        Some(socket)
    }

    /// Sends bytes from a client to the server; returns how many were sent, or `None` if the connection was reset.
    pub(super) fn client_send(&mut self, socket: usize, bytes: &[u8]) -> Option<usize> {
        let conn = &mut self.sockets[socket];
        if conn.down_reset {
            return None;
        }
        if conn.accepted_us.is_some() && !conn.open {
            // The server has closed the connection: its kernel responds with a reset, which may discard data that the
            // client has not read.
            conn.down_reset = true;
            if self.rng.one_in(2) {
                self.sockets[socket].down.clear();
            }
            return None;
        }
        let room = conn.up_max - conn.up.len();
        if room == 0 {
            return Some(0);
        }
        let count = self.rng.some_of(bytes.len()).min(room);
        conn.up.push(&bytes[..count]);
        self.mark_changed(socket);
        Some(count)
    }

    pub(super) fn client_finish(&mut self, socket: usize) {
        self.sockets[socket].up_fin = true;
        self.mark_changed(socket);
    }

    /// Resets the connection. The server has to notice: at once if it is reading or has output, or its backend is
    /// edge-triggered, and otherwise when it next checks whether the peer is present.
    pub(super) fn client_reset(&mut self, socket: usize) {
        let limit_us = if self.edge { 1_000_000 } else { 17_000_000 };
        self.sockets[socket].gone.get_or_insert(Gone { at_us: self.now_us, limit_us });
        self.fail_socket(socket);
    }

    /// Lets the peer vanish without a word. The server has to notice by a timeout, by TCP keep-alive or, on a
    /// level-triggered backend, when it next checks the connection after that. The longest sequence is that of an idle
    /// connection (75 s) with an unacknowledged response (a lingering close of 5 s, and up to 80 s without progress).
    pub(super) fn client_vanish(&mut self, socket: usize) {
        let conn = &mut self.sockets[socket];
        conn.vanished = true;
        conn.gone.get_or_insert(Gone { at_us: self.now_us, limit_us: 165_000_000 });
        self.at(self.now_us + KEEPALIVE_US, Action::Lost(socket));
    }

    fn fail_socket(&mut self, socket: usize) {
        let conn = &mut self.sockets[socket];
        conn.up_reset = true;
        conn.up.clear();
        // A new edge.
        if let Some(registration) = &mut conn.registration {
            (registration.read_armed, registration.write_armed) = (true, true);
        }
        self.mark_changed(socket);
    }

    /// Reads some of what the server has sent.
    pub(super) fn client_read(&mut self, socket: usize, into: &mut Vec<u8>) -> usize {
        let waiting = self.sockets[socket].down.len();
        if waiting == 0 {
            return 0;
        }
        let count = self.rng.some_of(waiting);
        self.client_read_up_to(socket, count, into)
    }

    /// Reads up to `max` bytes of what the server has sent.
    pub(super) fn client_read_up_to(&mut self, socket: usize, max: usize, into: &mut Vec<u8>) -> usize {
        let down = &mut self.sockets[socket].down;
        let count = max.min(down.len());
        down.take(count, |bytes| into.extend_from_slice(bytes));
        self.mark_changed(socket);
        count
    }

    fn mark_changed(&mut self, socket: usize) {
        self.changed.insert(SimSource::Socket(socket));
    }

    fn is_readable(&self, source: SimSource) -> bool {
        match source {
            SimSource::Listener => !self.backlog.is_empty(),
            SimSource::Socket(index) => {
                let conn = &self.sockets[index];
                !conn.up.is_empty() || conn.up_fin || conn.up_reset
            }
        }
    }

    fn is_writable(&self, source: SimSource) -> bool {
        match source {
            SimSource::Listener => false,
            SimSource::Socket(index) => {
                let conn = &self.sockets[index];
                conn.up_reset || conn.down.len() <= conn.down_max / 3 * 2
            }
        }
    }

    fn registration(&mut self, source: SimSource) -> &mut Option<Registration> {
        match source {
            SimSource::Listener => &mut self.listener,
            SimSource::Socket(index) => &mut self.sockets[index].registration,
        }
    }

    /// Returns the events a wait could report now.
    fn ready(&mut self) -> Vec<(SimSource, Event)> {
        let sources = std::mem::take(&mut self.changed);
        let mut ready = Vec::new();
        for source in sources {
            let (can_read, can_write) = (self.is_readable(source), self.is_writable(source));
            let edge = self.edge;
            let Some(registration) = self.registration(source).as_mut() else { continue };
            let readable = can_read && if edge { registration.read_armed } else { registration.interest.read };
            let writable = can_write && registration.interest.write && (!edge || registration.write_armed);
            if readable || writable {
                let token = registration.token;
                let hangup = edge
                    && matches!(source, SimSource::Socket(index) if self.sockets[index].up_fin || self.sockets[index].up_reset);
                let event = Event { token, readable: readable || hangup, writable: writable || hangup, hangup };
                ready.push((source, event));
                self.changed.insert(source);
            }
        }
        ready
    }

    /// Reports some of the ready sources, in random order; the others remain ready.
    fn report(&mut self, ready: Vec<(SimSource, Event)>, events: &mut Vec<Event>) {
        let all = self.rng.one_in(2);
        for (source, event) in ready {
            if !all && self.rng.one_in(3) {
                continue;
            }
            if let Some(registration) = self.registration(source).as_mut() {
                registration.read_armed &= !event.readable;
                registration.write_armed &= !event.writable;
                registration.hangup_reported |= event.hangup;
            }
            let position = usize::try_from(self.rng.below(events.len() as u64 + 1)).expect("small");
            events.insert(position, event);
        }
        if self.rng.one_in(8) && !self.watched.is_empty() {
            let index = usize::try_from(self.rng.below(self.watched.len() as u64)).expect("small");
            let token = *self.watched.keys().nth(index).expect("below the length");
            events.push(Event { token, readable: true, writable: self.rng.one_in(2), hangup: false });
        }
    }

    /// Advances the clock to `us`, running all actions that are due by then.
    fn advance_to(&mut self, us: u64) {
        while self.schedule.peek().is_some_and(|Reverse((at, ..))| *at <= us) {
            let Reverse((at, _, action)) = self.schedule.pop().expect("peeked");
            self.now_us = self.now_us.max(at);
            self.run_action(action);
        }
        self.now_us = self.now_us.max(us);
    }

    /// Runs all remaining actions, after the server has ended.
    pub(super) fn finish(&mut self) {
        while let Some(Reverse((at, ..))) = self.schedule.peek() {
            let at = *at;
            self.advance_to(at);
        }
    }

    fn run_action(&mut self, action: Action) {
        match action {
            Action::Client(index) => {
                if let Some(mut client) = self.clients[index].take() {
                    client.act(self, index);
                    self.clients[index] = Some(client);
                }
            }
            Action::Lost(index) => {
                let conn = &self.sockets[index];
                let is_acknowledged = conn.down.is_empty();
                let lost_us = conn.gone.map_or(0, |gone| gone.at_us) + RETRANSMISSION_US;
                if is_acknowledged || self.now_us >= lost_us {
                    self.fail_socket(index);
                } else {
                    self.at(lost_us, Action::Lost(index));
                }
            }
            Action::Drain => {
                self.drain_us.get_or_insert(self.now_us);
                if let Some(drain) = &self.drain {
                    drain();
                }
            }
        }
    }

    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) {
        self.end_turn();
        let start_us = self.now_us;
        let deadline_us = timeout.map(|limit| {
            self.now_us.saturating_add(u64::try_from(limit.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX))
        });
        if self.conditions.stalls && self.rng.one_in(2000) {
            let pause_us = self.rng.below(4_000_000);
            self.stalled_us += pause_us;
            self.advance_to(self.now_us + pause_us);
        }
        let jitter_us = self.rng.below(300);
        self.advance_to(self.now_us + jitter_us);
        loop {
            let ready = self.ready();
            if !ready.is_empty() || self.waker.0.swap(false, Ordering::SeqCst) {
                self.report(ready, events);
                break;
            }
            let next_us = self.schedule.peek().map(|Reverse((at, ..))| *at);
            match (next_us, deadline_us) {
                (Some(next), Some(deadline)) if next > deadline => {
                    self.advance_to(deadline);
                    break;
                }
                (Some(next), _) => self.advance_to(next),
                (None, Some(deadline)) => {
                    self.advance_to(deadline);
                    break;
                }
                (None, None) => {
                    self.asleep = true;
                    break;
                }
            }
        }
        let nothing = events.is_empty() && self.now_us <= start_us + 1000 && timeout == Some(Duration::ZERO);
        self.idle_waits = if nothing { self.idle_waits + 1 } else { 0 };
        assert!(self.idle_waits < 2000, "the loop spins");
    }

    /// Checks the limits on the work per connection and turn.
    fn end_turn(&mut self) {
        for index in self.touched.drain(..) {
            let conn = &mut self.sockets[index];
            let (read, written) = std::mem::take(&mut conn.turn);
            assert!(read < TURN_READ_MAX, "{read} bytes read in one turn");
            assert!(written < 4 * 256 * 1024, "{written} bytes written in one turn");
        }
        let accepts = std::mem::take(&mut self.accepts_turn);
        assert!(accepts <= 64 || self.drain_us.is_some(), "{accepts} accepted in one turn");
    }

    /// Counts a call on a stream and returns whether it fails.
    fn call_fails(&mut self, index: usize) -> bool {
        let conn = &mut self.sockets[index];
        conn.calls_until_failure =
            conn.calls_until_failure.saturating_sub(u64::from(conn.calls_until_failure != u64::MAX));
        conn.failed |= conn.calls_until_failure == 0;
        conn.failed
    }

    /// Counts the bytes of a socket that was read or written at the end of the turn, and wakes its client.
    fn touch(&mut self, index: usize) {
        uncounted(|| self.touched.push(index));
        self.notify_client(index);
    }

    /// Wakes the client of a socket after a short delay, to react to what the server did.
    fn notify_client(&mut self, index: usize) {
        let delay_us = self.rng.below(30_000);
        uncounted(|| self.wake_client(self.sockets[index].client, delay_us));
    }

    /// Returns the client of a socket, which is not acting now.
    fn client_of(&self, index: usize) -> &Client {
        self.clients[self.sockets[index].client].as_ref().expect("only the server runs")
    }
}

/// The simulated backend.
pub(super) struct Sim<const EDGE: bool>(pub(super) Rc<RefCell<World>>);

pub(super) struct SimListener(pub(super) Rc<RefCell<World>>);

pub(super) struct SimStream {
    world: Rc<RefCell<World>>,
    index: usize,
    source: SimSource,
}

impl<const EDGE: bool> Readiness for Sim<EDGE> {
    type Listener = SimListener;
    type Stream = SimStream;
    type Source = SimSource;

    const NAME: &'static str = "sim";
    const LEVEL_TRIGGERED: bool = !EDGE;

    fn new() -> io::Result<Self> {
        Ok(Sim(World::new(0, EDGE, Conditions::default())))
    }

    fn add(&mut self, source: &SimSource, token: Token, interest: Interest) -> io::Result<()> {
        let world = &mut *self.0.borrow_mut();
        uncounted(|| world.changed.insert(*source));
        assert!(world.watched.insert(token, *source).is_none(), "the token is already in use");
        let before = world.registration(*source).replace(Registration::new(token, interest));
        assert!(before.is_none(), "the source is already registered");
        Ok(())
    }

    fn set_interest(&mut self, source: &SimSource, token: Token, interest: Interest) -> io::Result<()> {
        let world = &mut *self.0.borrow_mut();
        uncounted(|| world.changed.insert(*source));
        let before = world.registration(*source).replace(Registration::new(token, interest));
        assert_eq!(
            before.map(|registration| registration.token),
            Some(token),
            "the source is not registered with this token"
        );
        Ok(())
    }

    fn remove(&mut self, source: &SimSource, token: Token) -> io::Result<()> {
        let world = &mut *self.0.borrow_mut();
        assert_eq!(world.watched.remove(&token), Some(*source));
        *world.registration(*source) = None;
        Ok(())
    }

    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        uncounted(|| self.0.borrow_mut().wait(events, timeout));
        Ok(())
    }

    fn waker(&self) -> Waker {
        Arc::clone(&self.0.borrow().waker).into()
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.0.borrow().now_us)
    }

    fn system_time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_000 + self.0.borrow().now_us)
    }
}

impl Listener for SimListener {
    type Stream = SimStream;

    fn prepare(&mut self, _: u32) -> io::Result<()> {
        self.0.borrow_mut().listening = true;
        Ok(())
    }

    fn stop_new_connections(&mut self) -> bool {
        let world = &mut *self.0.borrow_mut();
        world.new_connections_stopped = world.rng.one_in(2);
        world.new_connections_stopped
    }

    fn has_waiting(&mut self) -> bool {
        let world = &mut *self.0.borrow_mut();
        if world.backlog.is_empty()
            && let Some(registration) = &mut world.listener
        {
            registration.read_armed = true;
        }
        !world.backlog.is_empty()
    }

    fn accept(&mut self) -> io::Result<(SimStream, Peer)> {
        let world = &mut *self.0.borrow_mut();
        if world.conditions.faulty && world.accept_fails_until_us == 0 && world.rng.one_in(40) {
            world.accept_fails_until_us = world.now_us + world.rng.below(3_000_000);
        }
        if world.now_us < world.accept_fails_until_us {
            return Err(Errno::MFILE.into());
        }
        if world.conditions.faulty && world.rng.one_in(20) {
            return Err(Errno::CONNABORTED.into());
        }
        let Some(index) = world.backlog.pop_front() else {
            if let Some(registration) = &mut world.listener {
                registration.read_armed = true;
            }
            return Err(io::ErrorKind::WouldBlock.into());
        };
        world.accepts_turn += 1;
        world.open += 1;
        // A graceful shutdown serves the accept queue whatever the limit.
        let is_limited = world.drain_us.is_none();
        assert!(world.open <= world.open_max || !is_limited, "{} connections are open", world.open);
        world.memory_max += world.client_of(index).memory_max;
        let now_us = world.now_us;
        let conn = &mut world.sockets[index];
        conn.open = true;
        conn.accepted_us = Some(now_us);
        let source = SimSource::Socket(index);
        Ok((SimStream { world: Rc::clone(&self.0), index, source }, peer()))
    }

    fn source(&self) -> &SimSource {
        &SimSource::Listener
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let world = &mut *self.0.borrow_mut();
        world.listening = false;
        // Queued connections are reset.
        while let Some(index) = world.backlog.pop_front() {
            world.sockets[index].down_reset = true;
            world.notify_client(index);
        }
    }
}

impl Stream for SimStream {
    type Source = SimSource;

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let world = &mut *self.world.borrow_mut();
        if world.call_fails(self.index) || world.sockets[self.index].up_reset {
            return Err(Errno::CONNRESET.into());
        }
        let conn = &mut world.sockets[self.index];
        if conn.up.is_empty() {
            if conn.up_fin {
                return Ok(Received { bytes: 0, more: false });
            }
            if let Some(registration) = &mut conn.registration {
                registration.read_armed = true;
            }
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let max = conn.up.len().min(buffer.len());
        let bytes = if world.rng.one_in(4) { world.rng.some_of(max) } else { max };
        let spurious_more = world.rng.one_in(8);
        let conn = &mut world.sockets[self.index];
        conn.up.take(bytes, |input| buffer[..bytes].copy_from_slice(input));
        conn.turn.0 += bytes;
        let more = !conn.up.is_empty() || spurious_more;
        let at_end = conn.up_fin;
        if let Some(registration) = &mut conn.registration {
            registration.read_armed |= !(more || at_end && registration.hangup_reported);
        }
        // The client can send more.
        world.touch(self.index);
        Ok(Received { bytes, more })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        let world = &mut *self.world.borrow_mut();
        if world.call_fails(self.index) || world.sockets[self.index].up_reset {
            return Err(Errno::PIPE.into());
        }
        let conn = &mut world.sockets[self.index];
        let room = conn.down_max - conn.down.len();
        if room == 0 {
            if let Some(registration) = &mut conn.registration {
                registration.write_armed = true;
            }
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let max = room.min(bytes.len());
        let count = if world.rng.one_in(4) { world.rng.some_of(max) } else { max };
        let conn = &mut world.sockets[self.index];
        uncounted(|| conn.down.push(&bytes[..count]));
        conn.turn.1 += count;
        let more = conn.down.len() < conn.down_max;
        if let Some(registration) = &mut conn.registration {
            registration.write_armed |= !more;
        }
        world.touch(self.index);
        Ok(Sent { bytes: count, more })
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent> {
        let first = slices.iter().find(|slice| !slice.is_empty());
        first.map_or(Ok(Sent { bytes: 0, more: true }), |slice| self.write(slice))
    }

    /// Reads no more of the file than the stream has room for.
    fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
        let room = {
            let conn = &self.world.borrow().sockets[self.index];
            conn.down_max - conn.down.len()
        };
        let mut bytes = uncounted(|| vec![0; count.min(room.max(1))]);
        let read = file.read_at(&mut bytes, offset)?;
        let sent = if read == 0 { Ok(Sent { bytes: 0, more: true }) } else { self.write(&bytes[..read]) };
        uncounted(|| drop(bytes));
        sent
    }

    fn unacknowledged_bytes(&mut self) -> Option<u64> {
        let conn = &self.world.borrow().sockets[self.index];
        Some(conn.down.len() as u64)
    }

    fn check(&mut self) -> io::Result<()> {
        let world = &mut *self.world.borrow_mut();
        if world.call_fails(self.index) || world.sockets[self.index].up_reset {
            return Err(Errno::CONNRESET.into());
        }
        Ok(())
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        let world = &mut *self.world.borrow_mut();
        if world.call_fails(self.index) || world.sockets[self.index].up_reset {
            return Err(Errno::NOTCONN.into());
        }
        let now_us = world.now_us;
        world.sockets[self.index].closed_us.get_or_insert(now_us);
        world.sockets[self.index].down_fin = true;
        world.notify_client(self.index);
        Ok(())
    }

    fn abort(&mut self) {
        self.world.borrow_mut().sockets[self.index].abort = true;
    }

    fn connected(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], 80)))
    }

    fn peer(&self) -> io::Result<Peer> {
        Ok(peer())
    }

    fn source(&self) -> &SimSource {
        &self.source
    }
}

/// The peer of every connection.
fn peer() -> Peer {
    Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 1)))
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let world = &mut *self.world.borrow_mut();
        let (loses, now_us) = (world.rng.one_in(2), world.now_us);
        world.open -= 1;
        world.memory_max -= world.client_of(self.index).memory_max;
        let conn = &mut world.sockets[self.index];
        let is_valid = conn.open && conn.registration.is_none();
        assert!(is_valid || std::thread::panicking(), "closed while registered");
        conn.open = false;
        conn.closed_us.get_or_insert(now_us);
        conn.released_us = Some(now_us);
        conn.down_fin = true;
        if conn.abort || !conn.up.is_empty() || conn.failed {
            conn.down_reset = true;
            if loses {
                uncounted(|| conn.down.clear());
            }
        }
        world.notify_client(self.index);
    }
}
