//! Measures the progress of the peer, for timeouts that its progress extends: acknowledged output, and the minimum rate of
//! a message body.

use super::Connection;
use crate::r#loop::app::Phase;
use crate::r#loop::limits::{BODY_START, Timeouts};
use crate::r#loop::readiness::Stream;

/// Factor by which the write timeout is longer where the system does not report acknowledgements.
const UNREPORTED_FACTOR: u64 = 4;

impl<S: Stream, T> Connection<S, T> {
    /// Begins to measure the acknowledgements of the peer.
    pub(in crate::r#loop) fn start_progress(&mut self, now_ms: u64) {
        self.progress_ms = now_ms;
        self.unacknowledged = u64::MAX;
    }

    /// Returns whether output is unacknowledged, and the peer has acknowledged none for `limit_ms`.
    ///
    /// The number of unacknowledged bytes at the beginning is not known, so that the first check counts as progress.
    pub(in crate::r#loop) fn has_stalled(&mut self, now_ms: u64, limit_ms: u64) -> bool {
        let stalled_ms = |since_ms: u64| now_ms.saturating_sub(since_ms);
        let Some(unacknowledged) = self.stream.unacknowledged_bytes() else {
            return stalled_ms(self.progress_ms) >= limit_ms.saturating_mul(UNREPORTED_FACTOR);
        };
        if unacknowledged < self.unacknowledged {
            self.progress_ms = now_ms;
        }
        self.unacknowledged = unacknowledged;
        stalled_ms(self.progress_ms) >= limit_ms
    }

    /// While lingering: returns whether the peer is still receiving output that was sent before.
    pub(in crate::r#loop) fn is_receiving(&mut self, now_ms: u64, limit_ms: u64) -> bool {
        self.stream.unacknowledged_bytes().is_some_and(|bytes| bytes > 0) && !self.has_stalled(now_ms, limit_ms)
    }

    /// Ends the count of bytes received, unless a body is being received. Bytes of a body that were received with its head
    /// thus count.
    #[inline]
    pub(in crate::r#loop) fn end_message(&mut self) {
        if self.phase != Phase::Body {
            self.received = 0;
        }
    }

    /// Begins or continues to receive a body. Time in which the loop did not read from the connection does not count.
    pub(in crate::r#loop) fn start_body(&mut self, timeouts: &Timeouts, now_ms: u64, is_new: bool) {
        let start_ms = millis(timeouts.body.map_or(BODY_START, |max| max.min(BODY_START)));
        self.balance_ms = if is_new { start_ms } else { self.balance_ms.max(start_ms) };
        self.progress_ms = now_ms;
    }

    /// Updates the balance of the body; returns whether it is used up.
    pub(in crate::r#loop) fn body_is_too_slow(&mut self, timeouts: &Timeouts, now_ms: u64) -> bool {
        let max_ms = timeouts.body.map_or(u64::MAX, millis);
        let gained_ms = match (self.received, timeouts.body_rate) {
            (0, _) => 0,
            (_, 0) => max_ms,
            (bytes, rate) => bytes.saturating_mul(1000) / u64::from(rate),
        };
        let elapsed_ms = now_ms.saturating_sub(self.progress_ms);
        self.balance_ms = self.balance_ms.saturating_add(gained_ms).saturating_sub(elapsed_ms).min(max_ms);
        self.progress_ms = now_ms;
        self.received = 0;
        self.balance_ms == 0
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
