//! Measures the progress of the peer, for timeouts that its progress extends: acknowledged output, and the minimum rate
//! of a message body.

use super::{Connection, Outcome, Stage};
use crate::r#loop::app::{CloseReason, Phase};
use crate::r#loop::limits::{BODY_START, Timeouts};
use crate::r#loop::readiness::Stream;
use crate::r#loop::std_ext::millis;

/// Factor by which the write timeout is longer where the system does not report acknowledgements.
const UNREPORTED_FACTOR: u64 = 4;

/// Bytes that a peer must acknowledge between two checks to be allowed a second of silence.
const TAKEN_PER_SECOND: u64 = 4096;

/// Maximum silence that a peer is allowed for what it has acknowledged.
const SILENCE_MAX_MS: u64 = 120_000;

/// The progress of the peer while a body is received, output is blocked or unacknowledged, or the connection lingers.
/// Allocated only then, so that other connections need no memory for it.
#[derive(Default)]
pub(super) struct Progress {
    /// Bytes received since the balance of the body was updated; while lingering, since the half-close.
    pub(super) received: u64,
    /// When the connection began to linger.
    pub(super) linger_since_ms: u64,
    /// When the balance of the body was updated; while output is unacknowledged, when the peer last made progress.
    updated_ms: u64,
    /// Set once acknowledgements were checked since the measurement began.
    is_checked: bool,
    /// Unacknowledged bytes at the last check, and those that the stream still held.
    unacknowledged: u64,
    /// Bytes written since the last check.
    written: u64,
    /// The time until which the peer may be silent because of what it has acknowledged.
    silent_until_ms: u64,
    /// The balance of the body, see [`Timeouts::body`].
    balance_ms: u64,
    /// The application has paused the body, and the balance is up to date.
    is_paused: bool,
}

impl Progress {
    pub(super) fn of_lingering(since_ms: u64) -> Self {
        Progress { linger_since_ms: since_ms, ..Progress::default() }
    }

    /// Counts what the peer has acknowledged since the last check, and allows it to be silent for the corresponding
    /// time.
    fn count_taken(&mut self, unacknowledged: u64, now_ms: u64) {
        let taken = self.unacknowledged.saturating_add(self.written).saturating_sub(unacknowledged);
        if taken > 0 || !self.is_checked {
            self.updated_ms = now_ms;
        }
        (self.is_checked, self.unacknowledged, self.written) = (true, unacknowledged, 0);
        let silence_ms = (taken.saturating_mul(1000) / TAKEN_PER_SECOND).min(SILENCE_MAX_MS);
        self.silent_until_ms = self.silent_until_ms.max(now_ms.saturating_add(silence_ms));
    }
}

impl<S: Stream, T> Connection<S, T> {
    /// Begins a phase in which the timeout depends on the progress of the peer. Returns whether it has expired already.
    #[inline(never)]
    pub(in crate::r#loop) fn start_phase(
        &mut self,
        phase: Phase,
        timeouts: &Timeouts,
        now_ms: u64,
        is_new: bool,
        read_bytes: usize,
    ) -> bool {
        if phase == Phase::Body {
            return self.start_body(timeouts, now_ms, is_new, read_bytes);
        }
        self.start_progress(now_ms);
        false
    }

    /// Begins to measure the acknowledgements of the peer.
    fn start_progress(&mut self, now_ms: u64) {
        let progress = self.progress.get_or_insert_default();
        progress.updated_ms = now_ms;
        progress.is_checked = false;
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
        // Encrypted output that the system has not accepted yet was counted when it was written.
        let unacknowledged = unacknowledged.saturating_add(self.stream.unsent_bytes() as u64);
        progress.count_taken(unacknowledged, now_ms);
        stalled_ms(progress.updated_ms) >= limit_ms
    }

    /// Returns whether the write timeout has expired: [`Connection::has_stalled`] for `limit_ms`, or for up to twice as
    /// long after the peer has acknowledged much. A client like curl with a rate limit reads up to what the limit
    /// allows in 100 s, and then pauses for that long.
    pub(in crate::r#loop) fn write_has_timed_out(&mut self, now_ms: u64, limit_ms: u64) -> bool {
        if !self.has_stalled(now_ms, limit_ms) {
            return false;
        }
        let silent_until_ms = self.progress.as_ref().map_or(0, |progress| progress.silent_until_ms);
        now_ms >= silent_until_ms || self.has_stalled(now_ms, limit_ms.saturating_mul(2))
    }

    /// While the application is preparing output: closes the connection if the peer has reset it, or has acknowledged
    /// nothing of earlier output for the write timeout.
    pub(in crate::r#loop) fn check_presence(&mut self, now_ms: u64, limit_ms: u64) -> Outcome {
        // A level-triggered backend without read interest reports neither a reset nor a hang-up.
        if let Err(error) = self.stream.check() {
            return Outcome::Closed(CloseReason::Error(error));
        }
        // The kernel sends no keep-alive probes while it retransmits, which it does for about 15 minutes on Linux.
        if self.stream.unacknowledged_bytes().is_none_or(|bytes| bytes == 0) {
            self.progress = None;
            return Outcome::Open;
        }
        if !self.write_has_timed_out(now_ms, limit_ms) {
            return Outcome::Open;
        }
        self.stream.abort();
        Outcome::Closed(CloseReason::TooSlow)
    }

    /// Counts bytes written while a timeout depends on the peer's acknowledgements.
    pub(super) fn count_written(&mut self, bytes: usize) {
        if let Some(progress) = &mut self.progress {
            progress.written = progress.written.saturating_add(bytes as u64);
        }
    }

    /// While lingering: returns whether the peer is still receiving output that was sent before.
    pub(in crate::r#loop) fn is_receiving(&mut self, now_ms: u64, limit_ms: u64) -> bool {
        self.stream.unacknowledged_bytes().is_some_and(|bytes| bytes > 0) && !self.write_has_timed_out(now_ms, limit_ms)
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

    /// Begins or continues to receive a body. `read_bytes` is what was read in this step: bytes of the body
    /// that were received with its head count. Time in which the loop did not read from the connection does not count.
    ///
    /// Returns whether the balance was used up before a pause. A pause adds nothing to it: an application may pause
    /// after every chunk, and a peer that sends one byte at a time would otherwise be allowed any low rate.
    fn start_body(&mut self, timeouts: &Timeouts, now_ms: u64, is_new: bool, read_bytes: usize) -> bool {
        let start_ms = millis(timeouts.body.map_or(BODY_START, |max| max.min(BODY_START)));
        let is_new = is_new || self.progress.is_none();
        let progress = self.progress.get_or_insert_default();
        let was_paused = std::mem::take(&mut progress.is_paused) && !is_new;
        progress.updated_ms = now_ms;
        if is_new {
            progress.balance_ms = start_ms;
            progress.received = read_bytes as u64;
        } else if !was_paused {
            progress.balance_ms = progress.balance_ms.max(start_ms);
        }
        was_paused && progress.balance_ms == 0
    }

    /// Updates the balance of a body that the application pauses.
    #[cold]
    pub(in crate::r#loop) fn pause_body(&mut self, timeouts: &Timeouts, now_ms: u64) {
        if self.phase == Phase::Body && self.progress.as_ref().is_some_and(|progress| !progress.is_paused) {
            self.body_is_too_slow(timeouts, now_ms);
            self.progress.get_or_insert_default().is_paused = true;
        }
    }

    /// Updates the balance of the body; returns whether it is used up.
    pub(in crate::r#loop) fn body_is_too_slow(&mut self, timeouts: &Timeouts, now_ms: u64) -> bool {
        let progress = self.progress.get_or_insert_default();
        let max_ms = timeouts.body.map_or(u64::MAX, millis);
        let (gained_ms, remainder) = match (progress.received, u64::from(timeouts.body_rate)) {
            (0, _) => (0, 0),
            (_, 0) => (max_ms, 0),
            // The bytes of a fraction of a millisecond count next time.
            (bytes, rate) => (bytes.saturating_mul(1000) / rate, bytes.saturating_mul(1000) % rate / 1000),
        };
        let elapsed_ms = now_ms.saturating_sub(progress.updated_ms);
        progress.balance_ms = progress.balance_ms.saturating_add(gained_ms).saturating_sub(elapsed_ms).min(max_ms);
        progress.updated_ms = now_ms;
        progress.received = remainder;
        progress.balance_ms == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_has_taken_much_may_be_silent_for_longer() {
        let mut progress = Progress { updated_ms: 1000, ..Progress::default() };
        // The first check counts as progress, but shows only what was written in between.
        progress.count_taken(4_000_000, 2000);
        assert_eq!((progress.updated_ms, progress.silent_until_ms), (2000, 2000));
        // Writing is not progress.
        progress.written = 500_000;
        progress.count_taken(4_500_000, 3000);
        assert_eq!((progress.updated_ms, progress.silent_until_ms), (2000, 3000));
        // curl --limit-rate 30k has read what it may in 100 s, and the buffer was filled again.
        progress.written = 3_000_000;
        progress.count_taken(4_500_000 - 72_000, 4000);
        assert_eq!((progress.updated_ms, progress.silent_until_ms), (4000, 4000 + SILENCE_MAX_MS));
        // A little more does not shorten the time.
        progress.count_taken(4_500_000 - 72_001, 5000);
        assert_eq!((progress.updated_ms, progress.silent_until_ms), (5000, 4000 + SILENCE_MAX_MS));
        progress.count_taken(4_500_000 - 72_001, 6000);
        assert_eq!(progress.updated_ms, 5000);
    }

    #[test]
    fn taking_little_allows_no_silence_beyond_the_timeout() {
        let mut progress = Progress::default();
        progress.count_taken(100_000, 0);
        progress.count_taken(100_000 - 4096, 10);
        assert_eq!((progress.updated_ms, progress.silent_until_ms), (10, 1010));
    }
}
