//! The limit on open connections per client address.
//!
//! The limit and its map are shared by all loops of a process, behind a lock that is taken once when a connection is
//! accepted and once when it closes. Without a limit there is no map and no lock.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Minimum interval between two warnings about refused connections.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

/// Capacity below which the map is not shrunk.
const CAPACITY_KEPT: usize = 64;

/// Returns the network that counts as one client: an IPv4 address, or the upper half of an IPv6 address, which is usually
/// assigned to one customer. IPv4-mapped IPv6 addresses are IPv4 addresses.
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
        AddressLimit { max: max.max(1), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection unless its address has reached the limit. Returns whether it did.
    pub(super) fn try_reserve(&self, address: IpAddr) -> bool {
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
}
