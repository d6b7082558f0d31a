//! The limit on open connections, which several loops can share.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::address_limit::AddressLimit;

/// A limit on open connections. Clones share the count, so that the loops of several workers have one limit.
///
/// At the limit a loop stops accepting; further connections wait in the listen queue until one closes.
///
/// # Examples
/// ```
/// let limit = serverd::ConnectionLimit::new(10_000);
/// assert_eq!((limit.open(), limit.max()), (0, 10_000));
/// ```
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    max: usize,
    open: Arc<AtomicUsize>,
    /// Open connections counted through this share; a part of `open`.
    open_here: Arc<AtomicUsize>,
    addresses: Option<Arc<AddressLimit>>,
}

impl ConnectionLimit {
    /// Creates a limit of `max` connections.
    pub fn new(max: usize) -> Self {
        ConnectionLimit { max, open: Arc::default(), open_here: Arc::default(), addresses: None }
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
        self.open.load(Ordering::Relaxed)
    }

    /// Returns the maximum number of open connections.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Returns whether other loops may share this limit.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.open) > 1
    }

    /// Reserves a slot unless the limit is reached. Returns whether it did.
    pub(super) fn try_reserve(&self) -> bool {
        if self.open.fetch_add(1, Ordering::Relaxed) < self.max {
            return true;
        }
        self.cancel();
        false
    }

    /// Reserves a slot regardless of the limit.
    pub(super) fn reserve(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Cancels a reservation.
    pub(super) fn cancel(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
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
