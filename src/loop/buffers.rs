//! The total of the buffers that clients can fill: input that is not consumed yet, such as an incomplete request head, and
//! output that they do not read.
//!
//! Each connection has limits of its own, but there can be many connections. Buffers are counted only when they are kept
//! beyond a step, which is not on the hot path.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Input up to this size may be kept when the limit is reached, up to a reserve: it is enough for almost all heads.
const SMALL_BYTES: usize = 16 * 1024;

/// A count of bytes that several loops can share, and its limit.
#[derive(Clone, Debug)]
pub(super) struct Buffers {
    used: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Buffers {
    pub(super) fn new(bytes_max: usize) -> Self {
        Buffers { used: Arc::default(), bytes_max }
    }

    /// Counts in `used` from now on. Nothing may have been counted before.
    pub(super) fn share(&mut self, used: &Arc<AtomicUsize>) {
        self.used = Arc::clone(used);
    }

    /// Replaces the count of one connection.
    pub(super) fn set(&self, counted: &mut usize, bytes: usize) {
        // Most connections have no buffers, and the count is shared by all workers.
        if bytes == *counted {
            return;
        }
        if bytes > *counted {
            self.used.fetch_add(bytes - *counted, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(*counted - bytes, Ordering::Relaxed);
        }
        *counted = bytes;
    }

    /// Returns whether the limit is exceeded.
    pub(super) fn is_exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.bytes_max
    }

    /// Returns whether the limit and its reserve, an eighth of it, are exceeded.
    pub(super) fn is_far_exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.bytes_max.saturating_add(self.bytes_max / 8)
    }

    /// Returns whether a connection may keep this many bytes of input, which are counted already.
    pub(super) fn may_keep(&self, bytes: usize) -> bool {
        if bytes <= SMALL_BYTES { !self.is_far_exceeded() } else { !self.is_exceeded() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_input_is_kept_from_a_reserve() {
        let buffers = Buffers::new(800_000);
        let (mut first, mut second) = (0, 0);
        buffers.set(&mut first, 790_000);
        assert!(buffers.may_keep(20_000));
        buffers.set(&mut second, 20_000);
        assert!(buffers.is_exceeded() && !buffers.may_keep(20_000) && buffers.may_keep(SMALL_BYTES));
        buffers.set(&mut second, 120_000);
        assert!(buffers.is_far_exceeded() && !buffers.may_keep(1));
        buffers.set(&mut first, 0);
        buffers.set(&mut second, 1);
        assert!(buffers.may_keep(20_000) && !buffers.is_exceeded());
        assert_eq!((first, second), (0, 1));
    }
}
