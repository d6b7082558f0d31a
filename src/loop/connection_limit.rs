//! The limits that several loops share: on open connections, in total and per client address, and on the buffers that
//! clients can fill.
//!
//! The map of the addresses is behind a lock that is taken once when a connection is accepted and once when it closes.
//! Without a limit per address there is no map and no lock.
//!
//! Buffers contain input that is not consumed yet, such as an incomplete request head, and output that clients do not
//! read. Each connection has limits of its own, but there can be many connections. Buffers are counted only when they
//! are kept beyond a step, which is not on the hot path.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use super::peer::Networks;
use super::poller::LoopWaker;
use super::std_ext::lock;

/// A limit on open connections. Clones share the count, so that the loops of several workers have one limit.
///
/// At the limit a loop closes the connection that has been idle longest for each new one, or lets another loop close
/// one if it has none. If no connection is idle, new ones wait in the listen queue until one closes.
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
    buffered: Arc<BufferedBytes>,
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
    /// Creates a limit of `max` connections, at least 1.
    pub fn new(max: usize) -> Self {
        ConnectionLimit { max: max.max(1), shared: Arc::default(), open_here: Arc::default(), addresses: None }
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

    /// Exempts addresses from the limit of [`ConnectionLimit::per_address`], which must have been called before: those
    /// of proxies, from which many clients connect.
    ///
    /// # Examples
    /// ```
    /// let limit = serverd::ConnectionLimit::new(10_000).per_address(100).exempt(&"10.0.0.0/8".parse()?);
    /// # drop(limit);
    /// # Ok::<(), serverd::NetworksError>(())
    /// ```
    #[must_use]
    pub fn exempt(self, networks: &Networks) -> Self {
        let addresses = self.addresses.as_ref().map(|limit| AddressLimit::new(limit.max).exempt(networks));
        ConnectionLimit { addresses: addresses.map(Arc::new), ..self }
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
        self.open_here.load(Ordering::Acquire)
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
    pub(super) fn buffered(&self) -> &Arc<BufferedBytes> {
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

    /// Passes a request on to the next loop, because this one has no idle connection.
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
        lock(&self.shared.room)
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

    /// Releases the slot of a closed connection, and its address if that was counted.
    pub(super) fn release(&self, address: Option<IpAddr>) {
        // Before the slot: whoever sees the lower count may open a connection from this address.
        if let (Some(addresses), Some(address)) = (&self.addresses, address) {
            addresses.release(address);
        }
        self.open_here.fetch_sub(1, Ordering::Release);
        self.cancel();
    }

    /// Returns the limit per address.
    pub(super) fn addresses(&self) -> Option<&Arc<AddressLimit>> {
        self.addresses.as_ref()
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
}

/// Minimum interval between two warnings about refused connections.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

/// Capacity below which the map is not shrunk.
const CAPACITY_KEPT: usize = 64;

/// Returns the network that counts as one client: an IPv4 address, or the upper half of an IPv6 address, which is
/// usually assigned to one customer. IPv4-mapped IPv6 addresses are IPv4 addresses.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// A limit on the open connections of each client address.
#[derive(Debug)]
pub(super) struct AddressLimit {
    max: usize,
    /// Addresses without a limit.
    exempt: Networks,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of open connections by network; only networks that have any.
    open: HashMap<IpAddr, usize>,
    /// Connections refused since the limit was created.
    refused: u64,
    logged_at: Option<Instant>,
}

impl AddressLimit {
    /// Creates a limit of `max` connections, at least one.
    pub(super) fn new(max: usize) -> Self {
        AddressLimit { max: max.max(1), exempt: Networks::default(), state: Mutex::default() }
    }

    /// Exempts addresses from the limit.
    fn exempt(self, networks: &Networks) -> Self {
        AddressLimit { exempt: networks.clone(), ..self }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Counts a connection unless its address has reached the limit. Returns whether it did.
    pub(super) fn try_reserve(&self, address: IpAddr) -> bool {
        if self.exempt.contains(address) {
            return true;
        }
        let network = network(address);
        let mut state = self.lock();
        let open = state.open.entry(network).or_insert(0);
        if *open < self.max {
            *open += 1;
            return true;
        }
        state.refused += 1;
        let (now, refused) = (Instant::now(), state.refused);
        if state.logged_at.is_none_or(|logged| now.saturating_duration_since(logged) >= WARNING_INTERVAL) {
            state.logged_at = Some(now);
            drop(state);
            log::warn!(
                target: "serverd::loop::address_limit",
                "refused a connection of {network}, which has {} open; {refused} refused so far",
                self.max
            );
        }
        false
    }

    /// Releases a connection that [`AddressLimit::try_reserve`] has counted.
    pub(super) fn release(&self, address: IpAddr) {
        if self.exempt.contains(address) {
            return;
        }
        let network = network(address);
        let mut state = self.lock();
        let Some(open) = state.open.get_mut(&network) else { return };
        *open -= 1;
        if *open == 0 {
            state.open.remove(&network);
            if state.open.capacity() > CAPACITY_KEPT && state.open.len() < state.open.capacity() / 8 {
                let capacity = state.open.capacity() / 4;
                state.open.shrink_to(capacity);
            }
        }
    }
}

/// The addresses of a loop's connections, by the index of their [`ConnId`](super::ConnId). Empty without a limit.
#[derive(Default)]
pub(super) struct CountedAddresses(Vec<Option<IpAddr>>);

impl CountedAddresses {
    /// Records the address of a connection.
    pub(super) fn insert(&mut self, index: u32, address: IpAddr) {
        let index = index as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, None);
        }
        self.0[index] = Some(address);
    }

    /// Removes and returns the address of a connection, if it was counted.
    #[inline]
    pub(super) fn take(&mut self, index: u32) -> Option<IpAddr> {
        self.0.get_mut(index as usize)?.take()
    }
}

/// Buffers of a connection up to this size are taken from the reserve: it is enough for almost all heads.
const SMALL_BYTES: usize = 16 * 1024;

/// The bytes in the buffers of connections, counted by the size of the buffers of each.
#[derive(Debug, Default)]
pub(super) struct BufferedBytes {
    /// Those of connections with up to [`SMALL_BYTES`].
    small: AtomicUsize,
    large: AtomicUsize,
}

impl BufferedBytes {
    fn of(&self, bytes: usize) -> &AtomicUsize {
        if bytes <= SMALL_BYTES { &self.small } else { &self.large }
    }
}

/// A count of bytes that several loops can share, and its limit. An eighth of the limit is a reserve for connections
/// with small buffers, so that they are served while others use up the rest.
#[derive(Clone, Debug)]
pub(super) struct Buffers {
    used: Arc<BufferedBytes>,
    bytes_max: usize,
    reserve_max: usize,
}

impl Buffers {
    pub(super) fn new(bytes_max: usize) -> Self {
        Buffers { used: Arc::default(), bytes_max, reserve_max: bytes_max / 8 }
    }

    /// Counts in `used` from now on. Nothing may have been counted before.
    pub(super) fn share(&mut self, used: &Arc<BufferedBytes>) {
        self.used = Arc::clone(used);
    }

    /// Replaces the count of one connection.
    pub(super) fn set(&self, counted: &mut usize, bytes: usize) {
        // Most connections have no buffers, and the count is shared by all workers.
        if bytes == *counted {
            return;
        }
        self.used.of(*counted).fetch_sub(*counted, Ordering::Relaxed);
        self.used.of(bytes).fetch_add(bytes, Ordering::Relaxed);
        *counted = bytes;
    }

    fn is_reserve_exceeded(&self) -> bool {
        self.used.small.load(Ordering::Relaxed) > self.reserve_max
    }

    /// The bytes that are not taken from the reserve.
    fn unreserved(&self) -> usize {
        let small = self.used.small.load(Ordering::Relaxed).saturating_sub(self.reserve_max);
        self.used.large.load(Ordering::Relaxed).saturating_add(small)
    }

    /// Returns whether the limit without the reserve is exceeded.
    pub(super) fn is_exceeded(&self) -> bool {
        self.unreserved() > self.bytes_max - self.reserve_max
    }

    /// Returns whether the limit is exceeded without what is taken from the reserve.
    pub(super) fn is_far_exceeded(&self) -> bool {
        self.unreserved() > self.bytes_max
    }

    /// Returns whether a connection may keep this many bytes of input, which are counted already.
    pub(super) fn may_keep(&self, bytes: usize) -> bool {
        !(self.is_exceeded() && self.is_releasable(bytes))
    }

    /// Returns whether closing a connection with buffers of this size helps to get below the limit.
    pub(super) fn is_releasable(&self, bytes: usize) -> bool {
        bytes > SMALL_BYTES || self.is_reserve_exceeded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_is_one_client() {
        let network = |address: &str| network(address.parse().unwrap());
        assert_eq!(network("2001:db8:1:2:3::4"), network("2001:db8:1:2::9"));
        assert_ne!(network("2001:db8:1:2::9"), network("2001:db8:1:3::9"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
    }

    #[test]
    fn each_network_has_its_own_limit() {
        let limit = AddressLimit::new(2);
        let address = |text: &str| text.parse().unwrap();
        assert!(limit.try_reserve(address("10.0.0.1")));
        assert!(limit.try_reserve(address("::ffff:10.0.0.1")));
        assert!(!limit.try_reserve(address("10.0.0.1")));
        assert!(limit.try_reserve(address("10.0.0.2")));
        assert!(limit.try_reserve(address("2001:db8::1")));
        assert!(limit.try_reserve(address("2001:db8::2")));
        assert!(!limit.try_reserve(address("2001:db8::3")));
        limit.release(address("10.0.0.1"));
        assert!(limit.try_reserve(address("::ffff:10.0.0.1")));
        assert_eq!(limit.lock().refused, 2);
    }

    #[test]
    fn an_address_is_released_before_the_connections_are_counted_down() {
        let limit = ConnectionLimit::new(10).per_address(1);
        let address = "10.0.0.1".parse().unwrap();
        for _ in 0..2000 {
            assert!(limit.try_reserve() && limit.try_reserve_address(address));
            limit.commit();
            std::thread::scope(|scope| {
                scope.spawn(|| limit.release(Some(address)));
                while limit.open_here() > 0 {
                    std::hint::spin_loop();
                }
                assert!(limit.try_reserve_address(address), "refused although no connection is open");
            });
            limit.addresses().unwrap().release(address);
        }
    }

    #[test]
    fn exempt_addresses_have_no_limit() {
        let limit = AddressLimit::new(1).exempt(&"10.0.0.1".parse().unwrap());
        let (proxy, other): (IpAddr, IpAddr) = ("::ffff:10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..3 {
            assert!(limit.try_reserve(proxy));
        }
        assert!(limit.try_reserve(other) && !limit.try_reserve(other));
        limit.release(proxy);
        limit.release(other);
        assert!(limit.lock().open.is_empty());
    }

    #[test]
    fn only_addresses_with_open_connections_take_memory() {
        let limit = AddressLimit::new(1);
        let addresses: Vec<IpAddr> = (0..100_000_u32).map(|bits| std::net::Ipv4Addr::from_bits(bits).into()).collect();
        for _ in 0..2 {
            assert!(addresses.iter().all(|address| limit.try_reserve(*address)));
            for address in &addresses {
                limit.release(*address);
            }
            let state = limit.lock();
            assert!(state.open.is_empty());
            assert!(state.open.capacity() <= CAPACITY_KEPT, "{}", state.open.capacity());
        }
    }

    #[test]
    fn small_input_is_kept_from_a_reserve() {
        let buffers = Buffers::new(800_000);
        let (mut first, mut second) = (0, 0);
        buffers.set(&mut first, 690_000);
        assert!(buffers.may_keep(20_000));
        buffers.set(&mut second, 20_000);
        assert!(buffers.is_exceeded() && !buffers.may_keep(20_000) && buffers.may_keep(SMALL_BYTES));
        buffers.set(&mut second, 120_000);
        assert!(buffers.is_far_exceeded() && buffers.may_keep(SMALL_BYTES), "the reserve is not used");
        let mut others = [0; 6];
        for small in &mut others {
            assert!(buffers.may_keep(SMALL_BYTES) && !buffers.is_releasable(SMALL_BYTES));
            buffers.set(small, SMALL_BYTES);
        }
        buffers.set(&mut second, 10_000);
        assert!(!buffers.is_exceeded() && buffers.may_keep(SMALL_BYTES), "the rest is not used up");
        buffers.set(&mut first, 700_000);
        assert!(buffers.is_exceeded() && !buffers.may_keep(1) && buffers.is_releasable(1));
        for bytes in [&mut first, &mut second].into_iter().chain(&mut others) {
            buffers.set(bytes, 0);
        }
        assert!(buffers.may_keep(20_000) && !buffers.is_exceeded());
        assert_eq!((buffers.used.small.load(Ordering::Relaxed), buffers.unreserved()), (0, 0));
    }
}
