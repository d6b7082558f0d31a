//! Closes connections with stalled output while the buffers of all connections exceed their limit.

use super::EventLoop;
use crate::r#loop::app::{App, CloseReason, Phase};
use crate::r#loop::connection::Outcome;
use crate::r#loop::readiness::{Readiness, Stream};

/// Maximum number of connections to examine in one turn.
const EXAMINED_PER_TURN: usize = 1024;

/// A connection whose buffers take less is not closed: that would not help.
const BYTES_MIN: usize = 4096;

/// Time without progress after which output is dropped.
const STALLED_MS: u64 = 5000;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Resets connections whose clients make no progress, until the limit is no longer exceeded.
    #[cold]
    pub(super) fn drop_stalled_output(&mut self) {
        let slots: Vec<u32> = self.timers.slots(Phase::Writing).take(EXAMINED_PER_TURN).collect();
        let now_ms = self.context.now_ms;
        for id in slots.into_iter().filter_map(|slot| self.table.at(slot)).collect::<Vec<_>>() {
            if !self.context.buffers.is_exceeded() {
                return;
            }
            let limit_ms = if self.context.buffers.is_far_exceeded() { 0 } else { STALLED_MS };
            self.with_connection(id, |connection, _, _| {
                if connection.counted < BYTES_MIN || !connection.has_stalled(now_ms, limit_ms) {
                    return Outcome::Open;
                }
                connection.stream.abort();
                Outcome::Closed(CloseReason::TooSlow)
            });
        }
    }
}
