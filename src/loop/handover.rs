//! One thread that accepts for several loops, and gives each connection to the one that has the fewest.
//!
//! Where the system spreads the connections of a port over several listeners (`SO_REUSEPORT` on Linux) every loop has a
//! listener of its own, and nothing is shared. Elsewhere, and where a few long connections are to be spread evenly,
//! one [`Acceptor`] listens. To a loop what it is given looks like a listener: a queue, and a socket that becomes
//! readable when somebody is in it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::Counters;
use super::capacity::Capacity;
use super::listener::{Admission, Door};
use super::readiness::{Readiness, SystemSource, Token};
use super::select::{Bell, Select};
use super::socket::{TcpListener, TcpStream};

const DOOR: Token = Token(0);

/// How long connections whose handshake has begun may still come, where no further one can begin: as in a loop's drain.
const SETTLE: Duration = Duration::from_millis(100);

/// So often it is tried to empty the listener at the end, while what is short may come back.
const SETTLING_MAX: u32 = 10;

/// So many are accepted before it is looked whether to go on.
const ACCEPTS_PER_TURN: usize = 64;

/// A wait that failed is tried again after this time, so many times in a row.
const WAIT_PAUSE: Duration = Duration::from_millis(10);
const WAIT_FAULTS_MAX: u32 = 10;

/// What is on its way from the accepting thread to a loop.
struct Queue {
    waiting: Mutex<VecDeque<(TcpStream, SocketAddr)>>,
    /// How many there are, for who only wants to compare.
    count: AtomicUsize,
    /// The loop is gone.
    closed: AtomicBool,
    local: SocketAddr,
    bell: Bell,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(TcpStream, SocketAddr)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, stream: TcpStream, peer: SocketAddr) {
        let mut waiting = self.lock();
        waiting.push_back((stream, peer));
        self.count.store(waiting.len(), Ordering::Relaxed);
        drop(waiting);
        // It fails when it rings so much already that nothing fits, or when the loop is gone.
        while self.bell.ring().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {}
    }

    fn take(&self) -> Option<(TcpStream, SocketAddr)> {
        let mut waiting = self.lock();
        let first = waiting.pop_front();
        self.count.store(waiting.len(), Ordering::Relaxed);
        first
    }
}

/// The loop's end of an [`Acceptor`]: takes the place of a listener in [`EventLoop::listen`](super::EventLoop::listen).
pub struct Handed {
    queue: Arc<Queue>,
    bell: Bell,
}

impl Handed {
    /// What a listener's accept is.
    pub(super) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        if let Some(first) = self.queue.take() {
            return Ok(first);
        }
        self.bell.silence();
        // Who came before the bell was silenced is here now; who comes later rings again.
        self.queue.take().ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.queue.local
    }

    pub(super) fn source(&self) -> &SystemSource {
        self.bell.source()
    }
}

impl std::fmt::Debug for Handed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Handed").field("local", &self.queue.local).finish_non_exhaustive()
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.queue.closed.store(true, Ordering::SeqCst);
        self.queue.lock().clear();
    }
}

/// A loop that is given connections.
struct Member {
    queue: Arc<Queue>,
    capacity: Capacity,
}

impl Member {
    fn load(&self) -> usize {
        self.capacity.held_here() + self.queue.count.load(Ordering::Relaxed)
    }
}

/// Accepts for several loops, on a thread of its own.
///
/// # Examples
/// ```
/// use serverd::r#loop::{Acceptor, Capacity, EventLoop, Limits, Select};
/// use serverd::{HttpServer, Poller, Timeouts};
///
/// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let mut acceptor = Acceptor::new(listener, 1024)?;
/// let capacity = Capacity::new(10_000);
/// let mut loops = Vec::new();
/// for _ in 0..2 {
///     let share = capacity.share();
///     let app = HttpServer::new(|_| "hello\n");
///     let mut event_loop = EventLoop::<Select, _>::with(Timeouts::default(), Limits::default(), app)?;
///     event_loop.share_capacity(&share);
///     event_loop.listen(acceptor.member(&share)?)?;
///     loops.push(event_loop);
/// }
/// let handles: Vec<_> = loops.iter().map(Poller::handle).collect();
/// let stop = acceptor.stop();
/// let thread = std::thread::spawn(move || acceptor.run());
/// // ... each loop runs on a thread of its own; then:
/// stop.stop();
/// thread.join().expect("no panic")?;
/// handles.iter().for_each(serverd::Handle::drain);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Acceptor {
    select: Select,
    door: Door<Select>,
    local: SocketAddr,
    members: Vec<Member>,
    /// Where the search for the fewest begins, so that equals have their turn.
    next: usize,
    stop: Stop,
    start: Instant,
    counters: Counters,
}

/// Ends an [`Acceptor`] from any thread.
#[derive(Clone)]
pub struct Stop {
    told: Arc<AtomicBool>,
    waker: Waker,
}

impl Stop {
    /// Lets no further connection begin; who waits already is accepted and handed over, and [`Acceptor::run`] returns.
    pub fn stop(&self) {
        self.told.store(true, Ordering::SeqCst);
        self.waker.wake_by_ref();
    }
}

impl Acceptor {
    /// Will accept from `listener`, where up to `backlog` connections may wait.
    ///
    /// # Errors
    /// Where the system refuses a poller, or the listener cannot be made non-blocking.
    pub fn new(listener: impl Into<TcpListener>, backlog: u32) -> io::Result<Self> {
        let listener = listener.into();
        let local = super::readiness::Listener::local_addr(&listener)?;
        let mut select = Select::new()?;
        let door = Door::open(listener, backlog, &mut select, DOOR)?;
        let stop = Stop { told: Arc::default(), waker: select.waker() };
        let (start, counters) = (Instant::now(), Counters::default());
        Ok(Acceptor { select, door, local, members: Vec::new(), next: 0, stop, start, counters })
    }

    /// One more loop, which counts its connections in `capacity`, a [share](Capacity::share) of its own.
    ///
    /// # Errors
    /// Where the system refuses a pair of sockets.
    pub fn member(&mut self, capacity: &Capacity) -> io::Result<Handed> {
        let (near, far) = Bell::pair()?;
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            count: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            local: self.local,
            bell: far,
        });
        self.members.push(Member { queue: Arc::clone(&queue), capacity: capacity.clone() });
        Ok(Handed { queue, bell: near })
    }

    /// What ends it.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Accepts and hands over until it is stopped, or the loops are gone.
    ///
    /// # Errors
    /// Only when the system cannot wait any more, several times in a row. An error of accept is none.
    pub fn run(mut self) -> io::Result<()> {
        let (mut events, mut faults) = (Vec::new(), 0);
        while !self.stop.told.load(Ordering::SeqCst) && self.members.iter().any(|member| !is_closed(member)) {
            let due_ms = self.door.due_ms();
            let patience = (due_ms != u64::MAX).then(|| Duration::from_millis(due_ms.saturating_sub(self.now_ms())));
            events.clear();
            match self.select.wait(&mut events, patience) {
                Ok(()) => faults = 0,
                Err(error) if faults == WAIT_FAULTS_MAX => return Err(error),
                Err(error) => {
                    faults += 1;
                    log::warn!("cannot wait for connections: {error}; trying again");
                    std::thread::sleep(WAIT_PAUSE);
                }
            }
            if !events.is_empty() {
                self.door.note();
            }
            self.accept();
        }
        self.settle();
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let now_ms = self.now_ms();
            if self.door.due_ms() > now_ms {
                return;
            }
            if !self.has_room() {
                return self.door.rest_while_full(&mut self.select, now_ms, true);
            }
            if !self.accept_one() {
                return;
            }
        }
    }

    /// Says whether another try is worth it.
    fn accept_one(&mut self) -> bool {
        let now_ms = self.now_ms();
        match self.door.accept(&mut self.select, &mut self.counters, now_ms) {
            Admission::Stream(stream, peer) => self.hand_over(stream, peer),
            Admission::Again => {}
            Admission::Enough => return false,
        }
        true
    }

    /// Whoever is handed over is not counted by a loop yet.
    fn has_room(&self) -> bool {
        let Some(first) = self.members.first() else {
            return false;
        };
        let waiting: usize = self.members.iter().map(|member| member.queue.count.load(Ordering::Relaxed)).sum();
        first.capacity.held() + waiting < first.capacity.max()
    }

    /// To the loop with the fewest connections that is still there.
    fn hand_over(&mut self, stream: TcpStream, peer: SocketAddr) {
        let (head, tail) = self.members.split_at(self.next);
        let candidates = tail.iter().chain(head).filter(|member| !is_closed(member));
        if let Some(member) = candidates.min_by_key(|member| member.load()) {
            member.queue.give(stream, peer);
        }
        self.next = (self.next + 1) % self.members.len().max(1);
    }

    /// As a loop drains: nobody new may come, and who has come is let in, also beyond the bound.
    fn settle(mut self) {
        if self.door.turn_away() {
            std::thread::sleep(SETTLE);
        }
        for _ in 0..SETTLING_MAX {
            self.door.note();
            while self.accept_one() {}
            if self.door.is_quiet() {
                break;
            }
            std::thread::sleep(SETTLE);
        }
        let Acceptor { door, mut select, .. } = self;
        door.close(&mut select);
    }
}

fn is_closed(member: &Member) -> bool {
    member.queue.closed.load(Ordering::SeqCst)
}
