//! The limit on open connections, which several loops can share.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::address_limit::AddressLimit;
use super::mailbox::LoopWaker;

/// A limit on open connections. Clones share the count, so that the loops of several workers have one limit.
///
/// At the limit a loop closes the connection that has been idle longest for each new one, or lets another loop close one
/// if it has none. If no connection is idle, new ones wait in the listen queue until one closes.
///
/// # Examples
/// ```
/// let limit = serverd::ConnectionLimit::new(10_000);
/// assert_eq!((limit.open(), limit.max()), (0, 10_000));
/// ```
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    max: usize,
    shared: Arc<Shared>,
    /// Open connections counted through this share; a part of `open`.
    open_here: Arc<AtomicUsize>,
    addresses: Option<Arc<AddressLimit>>,
}

/// The state common to all clones and shares of a limit.
#[derive(Debug, Default)]
struct Shared {
    open: AtomicUsize,
    /// The memory of buffers, see [`LoopLimits::buffered_bytes_max`](super::LoopLimits::buffered_bytes_max).
    buffered: Arc<AtomicUsize>,
    room: Mutex<Room>,
}

/// The loops that can close idle connections for each other. They are asked in turn, so that each closes as many as the
/// others.
#[derive(Debug, Default)]
struct Room {
    loops: Vec<Weak<LoopWaker>>,
    /// Index of the loop to ask next.
    next: usize,
    requests: VecDeque<RoomRequest>,
}

/// A request of a loop or acceptor that another loop close an idle connection.
#[derive(Debug)]
pub(super) struct RoomRequest {
    from: Weak<LoopWaker>,
    /// Number of loops that have no idle connection.
    refusals: usize,
}

impl RoomRequest {
    /// Reports that a connection was closed.
    pub(super) fn fulfil(&self) {
        if let Some(waker) = self.from.upgrade() {
            waker.room_made();
        }
    }
}

impl Room {
    /// Asks the next loop other than the one that makes the request.
    fn ask(&mut self, from: *const LoopWaker) -> Option<Arc<LoopWaker>> {
        (0..self.loops.len()).find_map(|_| {
            self.next = (self.next + 1) % self.loops.len();
            self.loops[self.next].upgrade().filter(|waker| Arc::as_ptr(waker) != from)
        })
    }
}

impl ConnectionLimit {
    /// Creates a limit of `max` connections.
    pub fn new(max: usize) -> Self {
        ConnectionLimit { max, shared: Arc::default(), open_here: Arc::default(), addresses: None }
    }

    /// Limits the open connections of each client address to `max` as well; 0 for no such limit, which is the default.
    /// Call it before the first [share](ConnectionLimit::share): the limit applies to all loops together.
    ///
    /// See [`LoopLimits::connections_per_address_max`](super::LoopLimits::connections_per_address_max).
    ///
    /// # Examples
    /// ```
    /// let all = serverd::ConnectionLimit::new(10_000).per_address(100);
    /// let shares = [all.share(), all.share()];
    /// # assert_eq!(shares[0].max(), 10_000);
    /// ```
    #[must_use]
    pub fn per_address(self, max: usize) -> Self {
        ConnectionLimit { addresses: (max > 0).then(|| Arc::new(AddressLimit::new(max))), ..self }
    }

    /// Returns a share of this limit for one of several loops. It has the same limit and total, and a separate count of
    /// that loop's own connections.
    ///
    /// # Examples
    /// ```
    /// let all = serverd::ConnectionLimit::new(10_000);
    /// assert_eq!(all.share().open_here(), 0);
    /// ```
    #[must_use]
    pub fn share(&self) -> Self {
        ConnectionLimit { open_here: Arc::default(), ..self.clone() }
    }

    /// Returns the number of open connections of the loops that use this [share](ConnectionLimit::share).
    pub fn open_here(&self) -> usize {
        self.open_here.load(Ordering::Relaxed)
    }

    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Returns the maximum number of open connections.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Returns the memory of the buffers of all loops.
    pub(super) fn buffered(&self) -> &Arc<AtomicUsize> {
        &self.shared.buffered
    }

    /// Adds a loop that can close idle connections for others.
    pub(super) fn register(&self, waker: &Arc<LoopWaker>) {
        let mut room = self.room();
        room.loops.retain(|other| other.strong_count() > 0);
        room.loops.push(Arc::downgrade(waker));
    }

    /// Asks the other loops to close one idle connection. The one that does so wakes `from`.
    pub(super) fn request_room(&self, from: &Arc<LoopWaker>) {
        let mut room = self.room();
        let known = room.requests.iter().any(|request| std::ptr::eq(request.from.as_ptr(), Arc::as_ptr(from)));
        if !known {
            room.requests.push_back(RoomRequest { from: Arc::downgrade(from), refusals: 0 });
        }
        if let Some(waker) = room.ask(Arc::as_ptr(from)) {
            waker.want_room();
        }
    }

    /// Takes a request of another loop.
    pub(super) fn take_room_request(&self) -> Option<RoomRequest> {
        self.room().requests.pop_front()
    }

    /// Passes a request on to the next loop, for want of an idle connection.
    pub(super) fn pass_on(&self, mut request: RoomRequest) {
        let mut room = self.room();
        request.refusals += 1;
        if request.refusals < room.loops.len()
            && let Some(waker) = room.ask(request.from.as_ptr())
        {
            room.requests.push_back(request);
            waker.want_room();
        }
    }

    /// Ignores poisoning: a thread that panics while it holds the lock leaves the lists intact.
    fn room(&self) -> MutexGuard<'_, Room> {
        self.shared.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a slot unless the limit is reached. Returns whether it did.
    pub(super) fn try_reserve(&self) -> bool {
        if self.shared.open.fetch_add(1, Ordering::Relaxed) < self.max {
            return true;
        }
        self.cancel();
        false
    }

    /// Reserves a slot regardless of the limit.
    pub(super) fn reserve(&self) {
        self.shared.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Cancels a reservation.
    pub(super) fn cancel(&self) {
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Turns a reservation into an open connection.
    pub(super) fn commit(&self) {
        self.open_here.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves an open connection from this share to another.
    pub(super) fn move_to(&self, other: &ConnectionLimit) {
        self.open_here.fetch_sub(1, Ordering::Relaxed);
        other.open_here.fetch_add(1, Ordering::Relaxed);
    }

    /// Releases the slot of a closed connection.
    pub(super) fn release(&self) {
        self.open_here.fetch_sub(1, Ordering::Relaxed);
        self.cancel();
    }

    /// Returns whether the connections of each address are limited.
    #[inline]
    pub(super) fn is_per_address(&self) -> bool {
        self.addresses.is_some()
    }

    /// Counts a connection of an address, unless the address has reached its limit. Returns whether the connection may
    /// be opened.
    #[inline]
    pub(super) fn try_reserve_address(&self, address: IpAddr) -> bool {
        self.addresses.as_ref().is_none_or(|addresses| addresses.try_reserve(address))
    }

    /// Releases a connection of an address, if the connections of each address are limited.
    pub(super) fn release_address(&self, address: IpAddr) {
        if let Some(addresses) = &self.addresses {
            addresses.release(address);
        }
    }
}
