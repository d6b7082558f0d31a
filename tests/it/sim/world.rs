//! A network and a clock that exist only in memory, as a backend for the loop.
//!
//! Time passes only while the loop waits. The world is as unkind as the contract of `readiness` allows: it reports
//! ready sources in any order, some of them later, some that are not ready at all; its edge-triggered kind reports a
//! readiness once and never again before the stream was found empty or full; reads and writes move as little as they
//! please; a connection that is closed over unread input is reset, and may lose what its peer has not read yet.

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
use serverd::r#loop::Readiness;
use serverd::r#loop::readiness::{Event, Interest, Listener, Received, Sent, Stream, Token};

use super::client::Client;

/// A small generator (xorshift64*): repeatable is all it has to be.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Dice(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides.max(1)
    }

    pub(super) fn one_in(&mut self, sides: u64) -> bool {
        self.below(sides) == 0
    }

    /// At most `len` and at least 1, in sizes from bytes to everything.
    pub(super) fn some_of(&mut self, len: usize) -> usize {
        let most = [7, 200, 3000, usize::MAX, usize::MAX][usize::try_from(self.below(5)).expect("small")];
        let least = (len / 40).max(1);
        least.max(1 + usize::try_from(self.below(len as u64)).expect("small")).min(most.max(least)).min(len)
    }
}

/// What a seed decides about the world.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nature {
    /// Streams fail now and then, accepting fails for a while.
    pub(super) faulty: bool,
    /// The server does not run for some seconds now and then.
    pub(super) stalls: bool,
}

/// One connection: the kernel's buffers at the server's end.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own about a connection")]
pub(super) struct Socket {
    up: Vec<u8>,
    up_max: usize,
    up_fin: bool,
    up_reset: bool,
    pub(super) down: Vec<u8>,
    down_max: usize,
    pub(super) down_fin: bool,
    pub(super) down_reset: bool,
    /// The server holds it.
    pub(super) open: bool,
    pub(super) accepted_us: Option<u64>,
    abort: bool,
    watch: Option<Watch>,
    /// Calls until one fails for good.
    doom: u64,
    pub(super) doomed: bool,
    /// What this turn has read and written.
    turn: (usize, usize),
    /// Whose it is.
    client: usize,
}

#[derive(Clone, Copy)]
struct Watch {
    token: Token,
    interest: Interest,
    /// A readiness of this direction is still to be reported, once (edge-triggered).
    read_armed: bool,
    write_armed: bool,
    /// A hang-up was reported, and is not reported again.
    hangup_told: bool,
}

impl Watch {
    fn new(token: Token, interest: Interest) -> Self {
        Watch { token, interest, read_armed: true, write_armed: true, hangup_told: false }
    }
}

/// What happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Client(usize),
    Drain,
}

#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own about the world")]
pub(super) struct World {
    now_us: u64,
    pub(super) dice: Dice,
    edge: bool,
    pub(super) nature: Nature,
    pub(super) sockets: Vec<Socket>,
    pub(super) clients: Vec<Option<Client>>,
    happenings: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    serial: u64,
    pub(super) backlog: VecDeque<usize>,
    listener: Option<Watch>,
    pub(super) listening: bool,
    turned_away: bool,
    accept_fails_until_us: u64,
    watched: BTreeMap<Token, Name>,
    /// Sources that may have become ready.
    stirred: BTreeSet<Name>,
    /// Sockets that were read or written in this turn.
    touched: Vec<usize>,
    bell: Arc<Bell>,
    /// How long the server stood still, in all.
    pub(super) stalled_us: u64,
    pub(super) drain_us: Option<u64>,
    pub(super) drain: Option<Box<dyn Fn()>>,
    /// Waits in a row that reported nothing and let no time pass.
    idle_waits: u32,
    accepts_turn: usize,
    pub(super) asleep: bool,
}

/// The name of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    Listener,
    Socket(usize),
}

#[derive(Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl World {
    pub(super) fn new(seed: u64, edge: bool, nature: Nature) -> Rc<RefCell<World>> {
        Rc::new(RefCell::new(World {
            now_us: 0,
            dice: Dice::new(seed),
            edge,
            nature,
            sockets: Vec::new(),
            clients: Vec::new(),
            happenings: BinaryHeap::new(),
            serial: 0,
            backlog: VecDeque::new(),
            listener: None,
            listening: false,
            turned_away: false,
            accept_fails_until_us: 0,
            watched: BTreeMap::new(),
            stirred: BTreeSet::new(),
            touched: Vec::new(),
            bell: Arc::default(),
            stalled_us: 0,
            drain_us: None,
            drain: None,
            idle_waits: 0,
            accepts_turn: 0,
            asleep: false,
        }))
    }

    pub(super) fn now_us(&self) -> u64 {
        self.now_us
    }

    fn at(&mut self, us: u64, what: Happening) {
        self.serial += 1;
        self.happenings.push(Reverse((us, self.serial, what)));
    }

    /// Lets a client act after a delay.
    pub(super) fn wake_client(&mut self, index: usize, delay_us: u64) {
        self.at(self.now_us + delay_us, Happening::Client(index));
    }

    pub(super) fn drain_at(&mut self, us: u64) {
        self.at(us, Happening::Drain);
    }

    pub(super) fn add_client(&mut self, client: Client, start_us: u64) {
        let index = self.clients.len();
        self.clients.push(Some(client));
        self.at(start_us, Happening::Client(index));
    }

    /// A client connects; refused when nobody listens any more.
    pub(super) fn connect(&mut self, client: usize) -> Option<usize> {
        if !self.listening || self.turned_away {
            return None;
        }
        let doom = if self.nature.faulty && self.dice.one_in(10) { 1 + self.dice.below(30) } else { u64::MAX };
        let sizes = [1 << 10, 16 << 10, 64 << 10, 256 << 10];
        let mut size = || sizes[usize::try_from(self.dice.below(4)).expect("small")];
        let (up_max, down_max) = (size(), size());
        self.sockets.push(Socket {
            up: Vec::new(),
            up_max,
            up_fin: false,
            up_reset: false,
            down: Vec::new(),
            down_max,
            down_fin: false,
            down_reset: false,
            open: false,
            accepted_us: None,
            abort: false,
            watch: None,
            doom,
            doomed: false,
            turn: (0, 0),
            client,
        });
        let socket = self.sockets.len() - 1;
        self.backlog.push_back(socket);
        self.stirred.insert(Name::Listener);
        Some(socket)
    }

    /// Moves some bytes of a client towards the server; how many, or `None` when the connection was reset.
    pub(super) fn client_send(&mut self, socket: usize, bytes: &[u8]) -> Option<usize> {
        let end = &mut self.sockets[socket];
        if end.down_reset {
            return None;
        }
        if end.accepted_us.is_some() && !end.open {
            // The server has closed: what comes now is answered with a reset, which may destroy what is unread.
            end.down_reset = true;
            if self.dice.one_in(2) {
                self.sockets[socket].down.clear();
            }
            return None;
        }
        let room = end.up_max - end.up.len();
        if room == 0 {
            return Some(0);
        }
        let count = self.dice.some_of(bytes.len()).min(room);
        end.up.extend_from_slice(&bytes[..count]);
        self.stir(socket);
        Some(count)
    }

    pub(super) fn client_finish(&mut self, socket: usize) {
        self.sockets[socket].up_fin = true;
        self.stir(socket);
    }

    pub(super) fn client_reset(&mut self, socket: usize) {
        let end = &mut self.sockets[socket];
        end.up_reset = true;
        end.up.clear();
        self.stir(socket);
    }

    /// Some of what the server sent.
    pub(super) fn client_read(&mut self, socket: usize, into: &mut Vec<u8>) -> usize {
        let waiting = self.sockets[socket].down.len();
        if waiting == 0 {
            return 0;
        }
        let count = self.dice.some_of(waiting);
        into.extend_from_slice(&self.sockets[socket].down[..count]);
        self.sockets[socket].down.drain(..count);
        self.stir(socket);
        count
    }

    fn stir(&mut self, socket: usize) {
        self.stirred.insert(Name::Socket(socket));
    }

    fn is_readable(&self, name: Name) -> bool {
        match name {
            Name::Listener => !self.backlog.is_empty(),
            Name::Socket(index) => {
                let end = &self.sockets[index];
                !end.up.is_empty() || end.up_fin || end.up_reset
            }
        }
    }

    fn is_writable(&self, name: Name) -> bool {
        match name {
            Name::Listener => false,
            Name::Socket(index) => {
                let end = &self.sockets[index];
                end.up_reset || end.down.len() < end.down_max
            }
        }
    }

    fn watch(&mut self, name: Name) -> &mut Option<Watch> {
        match name {
            Name::Listener => &mut self.listener,
            Name::Socket(index) => &mut self.sockets[index].watch,
        }
    }

    /// What a wait could report now.
    fn ready(&mut self) -> Vec<(Name, Event)> {
        let names = std::mem::take(&mut self.stirred);
        let mut ready = Vec::new();
        for name in names {
            let (can_read, can_write) = (self.is_readable(name), self.is_writable(name));
            let edge = self.edge;
            let Some(watch) = self.watch(name).as_mut() else { continue };
            let readable = can_read && if edge { watch.read_armed } else { watch.interest.read };
            let writable = can_write && watch.interest.write && (!edge || watch.write_armed);
            if readable || writable {
                let token = watch.token;
                let hangup = edge
                    && matches!(name, Name::Socket(index) if self.sockets[index].up_fin || self.sockets[index].up_reset);
                let event = Event { token, readable: readable || hangup, writable: writable || hangup, hangup };
                ready.push((name, event));
                self.stirred.insert(name);
            }
        }
        ready
    }

    /// Shows some of what is ready, in any order; what is not shown is ready still.
    fn report(&mut self, ready: Vec<(Name, Event)>, events: &mut Vec<Event>) {
        let all = self.dice.one_in(2);
        for (name, event) in ready {
            if !all && self.dice.one_in(3) {
                continue;
            }
            if let Some(watch) = self.watch(name).as_mut() {
                watch.read_armed &= !event.readable;
                watch.write_armed &= !event.writable;
                watch.hangup_told |= event.hangup;
            }
            let place = usize::try_from(self.dice.below(events.len() as u64 + 1)).expect("small");
            events.insert(place, event);
        }
        if self.dice.one_in(8) && !self.watched.is_empty() {
            let which = usize::try_from(self.dice.below(self.watched.len() as u64)).expect("small");
            let token = *self.watched.keys().nth(which).expect("below the length");
            events.push(Event { token, readable: true, writable: self.dice.one_in(2), hangup: false });
        }
    }

    /// Lets everything happen that is due up to a time.
    fn pass_until(&mut self, us: u64) {
        while self.happenings.peek().is_some_and(|Reverse((at, ..))| *at <= us) {
            let Reverse((at, _, what)) = self.happenings.pop().expect("peeked");
            self.now_us = self.now_us.max(at);
            self.happen(what);
        }
        self.now_us = self.now_us.max(us);
    }

    /// Lets everything happen that was still to come, without a server.
    pub(super) fn finish(&mut self) {
        while let Some(Reverse((at, ..))) = self.happenings.peek() {
            let at = *at;
            self.pass_until(at);
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Client(index) => {
                if let Some(mut client) = self.clients[index].take() {
                    client.act(self, index);
                    self.clients[index] = Some(client);
                }
            }
            Happening::Drain => {
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
        if self.nature.stalls && self.dice.one_in(2000) {
            let pause_us = self.dice.below(4_000_000);
            self.stalled_us += pause_us;
            self.pass_until(self.now_us + pause_us);
        }
        let jitter_us = self.dice.below(300);
        self.pass_until(self.now_us + jitter_us);
        loop {
            let ready = self.ready();
            if !ready.is_empty() || self.bell.0.swap(false, Ordering::SeqCst) {
                self.report(ready, events);
                break;
            }
            let next_us = self.happenings.peek().map(|Reverse((at, ..))| *at);
            match (next_us, deadline_us) {
                (Some(next), Some(deadline)) if next > deadline => {
                    self.pass_until(deadline);
                    break;
                }
                (Some(next), _) => self.pass_until(next),
                (None, Some(deadline)) => {
                    self.pass_until(deadline);
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

    /// What one turn may do to one connection has a bound.
    fn end_turn(&mut self) {
        for index in self.touched.drain(..) {
            let end = &mut self.sockets[index];
            let (read, written) = std::mem::take(&mut end.turn);
            assert!(read < 2 * 64 * 1024, "{read} bytes read in one turn");
            assert!(written < 4 * 256 * 1024, "{written} bytes written in one turn");
        }
        let accepts = std::mem::take(&mut self.accepts_turn);
        assert!(accepts <= 64 || self.drain_us.is_some(), "{accepts} accepted in one turn");
    }

    /// Whether this call of a stream is the one that fails.
    fn strikes(&mut self, index: usize) -> bool {
        let end = &mut self.sockets[index];
        end.doom = end.doom.saturating_sub(u64::from(end.doom != u64::MAX));
        end.doomed |= end.doom == 0;
        end.doomed
    }

    /// Lets the client of a socket see what the server did, a little later.
    fn tell(&mut self, index: usize) {
        let delay_us = self.dice.below(30_000);
        self.wake_client(self.sockets[index].client, delay_us);
    }
}

/// The backend.
pub(super) struct Sim<const EDGE: bool>(pub(super) Rc<RefCell<World>>);

pub(super) struct SimListener(pub(super) Rc<RefCell<World>>);

pub(super) struct SimStream {
    world: Rc<RefCell<World>>,
    index: usize,
    name: Name,
}

impl<const EDGE: bool> Readiness for Sim<EDGE> {
    type Listener = SimListener;
    type Stream = SimStream;
    type Source = Name;

    const NAME: &'static str = "sim";
    const REPEATS: bool = !EDGE;

    fn new() -> io::Result<Self> {
        Ok(Sim(World::new(0, EDGE, Nature { faulty: false, stalls: false })))
    }

    fn add(&mut self, source: &Name, token: Token, interest: Interest) -> io::Result<()> {
        let world = &mut *self.0.borrow_mut();
        assert!(world.watched.insert(token, *source).is_none(), "a token that is in use");
        world.stirred.insert(*source);
        let before = world.watch(*source).replace(Watch::new(token, interest));
        assert!(before.is_none(), "a source that is watched already");
        Ok(())
    }

    fn set_interest(&mut self, source: &Name, token: Token, interest: Interest) -> io::Result<()> {
        let world = &mut *self.0.borrow_mut();
        world.stirred.insert(*source);
        let before = world.watch(*source).replace(Watch::new(token, interest));
        assert_eq!(before.map(|watch| watch.token), Some(token), "a source that is not watched");
        Ok(())
    }

    fn remove(&mut self, source: &Name, token: Token) -> io::Result<()> {
        let world = &mut *self.0.borrow_mut();
        assert_eq!(world.watched.remove(&token), Some(*source));
        *world.watch(*source) = None;
        Ok(())
    }

    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        self.0.borrow_mut().wait(events, timeout);
        Ok(())
    }

    fn waker(&self) -> Waker {
        Arc::clone(&self.0.borrow().bell).into()
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.0.borrow().now_us)
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_000 + self.0.borrow().now_us)
    }
}

impl Listener for SimListener {
    type Stream = SimStream;

    fn prepare(&mut self, _: u32) -> io::Result<()> {
        self.0.borrow_mut().listening = true;
        Ok(())
    }

    fn turn_away(&mut self) -> bool {
        let world = &mut *self.0.borrow_mut();
        world.turned_away = world.dice.one_in(2);
        world.turned_away
    }

    fn accept(&mut self) -> io::Result<(SimStream, SocketAddr)> {
        let world = &mut *self.0.borrow_mut();
        if world.nature.faulty && world.accept_fails_until_us == 0 && world.dice.one_in(40) {
            world.accept_fails_until_us = world.now_us + world.dice.below(3_000_000);
        }
        if world.now_us < world.accept_fails_until_us {
            return Err(Errno::MFILE.into());
        }
        if world.nature.faulty && world.dice.one_in(20) {
            return Err(Errno::CONNABORTED.into());
        }
        let Some(index) = world.backlog.pop_front() else {
            if let Some(watch) = &mut world.listener {
                watch.read_armed = true;
            }
            return Err(io::ErrorKind::WouldBlock.into());
        };
        world.accepts_turn += 1;
        let now_us = world.now_us;
        let end = &mut world.sockets[index];
        end.open = true;
        end.accepted_us = Some(now_us);
        let name = Name::Socket(index);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        Ok((SimStream { world: Rc::clone(&self.0), index, name }, peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], 80)))
    }

    fn source(&self) -> &Name {
        &Name::Listener
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let world = &mut *self.0.borrow_mut();
        world.listening = false;
        // Who still waits is reset.
        while let Some(index) = world.backlog.pop_front() {
            world.sockets[index].down_reset = true;
            world.tell(index);
        }
    }
}

impl Stream for SimStream {
    type Source = Name;

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let world = &mut *self.world.borrow_mut();
        if world.strikes(self.index) || world.sockets[self.index].up_reset {
            return Err(Errno::CONNRESET.into());
        }
        let end = &mut world.sockets[self.index];
        if end.up.is_empty() {
            if end.up_fin {
                return Ok(Received { bytes: 0, more: false });
            }
            if let Some(watch) = &mut end.watch {
                watch.read_armed = true;
            }
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let most = end.up.len().min(buffer.len());
        let bytes = if world.dice.one_in(4) { world.dice.some_of(most) } else { most };
        let may_lie = world.dice.one_in(8);
        let end = &mut world.sockets[self.index];
        buffer[..bytes].copy_from_slice(&end.up[..bytes]);
        end.up.drain(..bytes);
        end.turn.0 += bytes;
        let more = !end.up.is_empty() || may_lie;
        let at_end = end.up_fin;
        if let Some(watch) = &mut end.watch {
            watch.read_armed |= !(more || at_end && watch.hangup_told);
        }
        world.touched.push(self.index);
        // There is room for more of what the client sends.
        world.tell(self.index);
        Ok(Received { bytes, more })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        let world = &mut *self.world.borrow_mut();
        if world.strikes(self.index) || world.sockets[self.index].up_reset {
            return Err(Errno::PIPE.into());
        }
        let end = &mut world.sockets[self.index];
        let room = end.down_max - end.down.len();
        if room == 0 {
            if let Some(watch) = &mut end.watch {
                watch.write_armed = true;
            }
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let most = room.min(bytes.len());
        let count = if world.dice.one_in(4) { world.dice.some_of(most) } else { most };
        let end = &mut world.sockets[self.index];
        end.down.extend_from_slice(&bytes[..count]);
        end.turn.1 += count;
        let more = end.down.len() < end.down_max;
        if let Some(watch) = &mut end.watch {
            watch.write_armed |= !more;
        }
        world.touched.push(self.index);
        world.tell(self.index);
        Ok(Sent { bytes: count, more })
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent> {
        let first = slices.iter().find(|slice| !slice.is_empty());
        first.map_or(Ok(Sent { bytes: 0, more: true }), |slice| self.write(slice))
    }

    /// Reads no more than there is room for.
    fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
        let room = {
            let end = &self.world.borrow().sockets[self.index];
            end.down_max - end.down.len()
        };
        let mut bytes = vec![0; count.min(room.max(1))];
        let read = file.read_at(&mut bytes, offset)?;
        if read == 0 { Ok(Sent { bytes: 0, more: true }) } else { self.write(&bytes[..read]) }
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        let world = &mut *self.world.borrow_mut();
        if world.strikes(self.index) || world.sockets[self.index].up_reset {
            return Err(Errno::NOTCONN.into());
        }
        world.sockets[self.index].down_fin = true;
        world.tell(self.index);
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

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], 1)))
    }

    fn source(&self) -> &Name {
        &self.name
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let world = &mut *self.world.borrow_mut();
        let loses = world.dice.one_in(2);
        let end = &mut world.sockets[self.index];
        assert!(end.open && end.watch.is_none(), "closed while it is watched");
        end.open = false;
        end.down_fin = true;
        if end.abort || !end.up.is_empty() || end.doomed {
            end.down_reset = true;
            if loses {
                end.down.clear();
            }
        }
        world.tell(self.index);
    }
}
