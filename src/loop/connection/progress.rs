//! Measures the progress of the peer, for timeouts that its progress extends: acknowledged output, and the minimum rate of
//! a message body.

use super::{Connection, Stage};
use crate::r#loop::app::Phase;
use crate::r#loop::limits::{BODY_START, Timeouts};
use crate::r#loop::readiness::Stream;

/// Factor by which the write timeout is longer where the system does not report acknowledgements.
const UNREPORTED_FACTOR: u64 = 4;

/// The progress of the peer while a body is received, output is blocked or the connection lingers. Allocated only then, so
/// that other connections need no memory for it.
pub(super) struct Progress {
    /// Bytes received since the balance of the body was updated; while lingering, since the half-close.
    pub(super) received: u64,
    /// When the connection began to linger.
    pub(super) linger_since_ms: u64,
    /// When the balance of the body was updated; while output is unacknowledged, when the peer last made progress.
    updated_ms: u64,
    /// Unacknowledged bytes at the last check, `u64::MAX` before the first.
    unacknowledged: u64,
    /// The balance of the body, see [`Timeouts::body`].
    balance_ms: u64,
}

impl Progress {
    pub(super) fn of_lingering(since_ms: u64) -> Self {
        Progress { linger_since_ms: since_ms, ..Progress::default() }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Progress { received: 0, linger_since_ms: 0, updated_ms: 0, unacknowledged: u64::MAX, balance_ms: 0 }
    }
}

impl<S: Stream, T> Connection<S, T> {
    /// Begins a phase in which the timeout depends on the progress of the peer.
    #[inline(never)]
    pub(in crate::r#loop) fn start_phase(
        &mut self,
        phase: Phase,
        timeouts: &Timeouts,
        now_ms: u64,
        is_new: bool,
        read_bytes: usize,
    ) {
        match phase {
            Phase::Body => self.start_body(timeouts, now_ms, is_new, read_bytes),
            _ => self.start_progress(now_ms),
        }
    }

    /// Begins to measure the acknowledgements of the peer.
    fn start_progress(&mut self, now_ms: u64) {
        let progress = self.progress.get_or_insert_default();
        progress.updated_ms = now_ms;
        progress.unacknowledged = u64::MAX;
    }

    /// Returns whether output is unacknowledged, and the peer has acknowledged none for `limit_ms`.
    ///
    /// The number of unacknowledged bytes at the beginning is not known, so that the first check counts as progress.
    pub(in crate::r#loop) fn has_stalled(&mut self, now_ms: u64, limit_ms: u64) -> bool {
        let progress = self.progress.get_or_insert_default();
        let stalled_ms = |since_ms: u64| now_ms.saturating_sub(since_ms);
        let Some(unacknowledged) = self.stream.unacknowledged_bytes() else {
            return stalled_ms(progress.updated_ms) >= limit_ms.saturating_mul(UNREPORTED_FACTOR);
        };
        if unacknowledged < progress.unacknowledged {
            progress.updated_ms = now_ms;
        }
        progress.unacknowledged = unacknowledged;
        stalled_ms(progress.updated_ms) >= limit_ms
    }

    /// While lingering: returns whether the peer is still receiving output that was sent before.
    pub(in crate::r#loop) fn is_receiving(&mut self, now_ms: u64, limit_ms: u64) -> bool {
        self.stream.unacknowledged_bytes().is_some_and(|bytes| bytes > 0) && !self.has_stalled(now_ms, limit_ms)
    }

    /// Counts received bytes of a body. Frees the state of a body or of blocked output that is complete.
    #[cold]
    pub(super) fn count_received(&mut self, bytes: usize) {
        if let Some(progress) = &mut self.progress
            && self.phase == Phase::Body
        {
            progress.received += bytes as u64;
        } else if self.stage == Stage::Reading && self.pending.is_none() {
            self.progress = None;
        }
    }

    /// Begins or continues to receive a body. `read_bytes` is the size of the last read in this step: bytes of the body
    /// that were received with its head count. Time in which the loop did not read from the connection does not count.
    fn start_body(&mut self, timeouts: &Timeouts, now_ms: u64, is_new: bool, read_bytes: usize) {
        let start_ms = millis(timeouts.body.map_or(BODY_START, |max| max.min(BODY_START)));
        let is_new = is_new || self.progress.is_none();
        let progress = self.progress.get_or_insert_default();
        progress.balance_ms = if is_new { start_ms } else { progress.balance_ms.max(start_ms) };
        progress.updated_ms = now_ms;
        if is_new {
            progress.received = read_bytes as u64;
        }
    }

    /// Updates the balance of the body; returns whether it is used up.
    pub(in crate::r#loop) fn body_is_too_slow(&mut self, timeouts: &Timeouts, now_ms: u64) -> bool {
        let progress = self.progress.get_or_insert_default();
        let max_ms = timeouts.body.map_or(u64::MAX, millis);
        let gained_ms = match (progress.received, timeouts.body_rate) {
            (0, _) => 0,
            (_, 0) => max_ms,
            (bytes, rate) => bytes.saturating_mul(1000) / u64::from(rate),
        };
        let elapsed_ms = now_ms.saturating_sub(progress.updated_ms);
        progress.balance_ms = progress.balance_ms.saturating_add(gained_ms).saturating_sub(elapsed_ms).min(max_ms);
        progress.updated_ms = now_ms;
        progress.received = 0;
        progress.balance_ms == 0
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
