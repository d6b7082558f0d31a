//! How many connections may be open, counted over all loops that share the number.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A bound on open connections. Clones share it, so the loops of several workers keep one bound together.
///
/// At the bound a loop stops accepting; who comes waits in the listen queue until somebody leaves.
///
/// # Examples
/// ```
/// let capacity = serverd::r#loop::Capacity::new(10_000);
/// assert_eq!((capacity.held(), capacity.max()), (0, 10_000));
/// ```
#[derive(Clone, Debug)]
pub struct Capacity {
    max: usize,
    held: Arc<AtomicUsize>,
    /// Those of `held` that came by this share.
    own: Arc<AtomicUsize>,
}

impl Capacity {
    /// Room for `max` connections.
    pub fn new(max: usize) -> Self {
        Capacity { max, held: Arc::default(), own: Arc::default() }
    }

    /// The same bound, for one loop of several, whose own connections are counted too.
    ///
    /// # Examples
    /// ```
    /// let all = serverd::r#loop::Capacity::new(10_000);
    /// assert_eq!(all.share().held_here(), 0);
    /// ```
    #[must_use]
    pub fn share(&self) -> Self {
        Capacity { max: self.max, held: Arc::clone(&self.held), own: Arc::default() }
    }

    /// How many connections are open in the loops that have this [share](Capacity::share).
    pub fn held_here(&self) -> usize {
        self.own.load(Ordering::Relaxed)
    }

    /// How many connections are open.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// How many may be.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Whether other loops may count here too.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.held) > 1
    }

    /// Keeps a place where there is room.
    pub(super) fn enter(&self) -> bool {
        if self.held.fetch_add(1, Ordering::Relaxed) < self.max {
            return true;
        }
        self.give_back();
        false
    }

    /// Keeps a place whether there is room or not.
    pub(super) fn enter_anyway(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    /// Nobody came for the place.
    pub(super) fn give_back(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// Somebody has the place.
    pub(super) fn admit(&self) {
        self.own.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave(&self) {
        self.own.fetch_sub(1, Ordering::Relaxed);
        self.give_back();
    }
}
