//! Computes the poll timeout and handles poll errors.

use std::io;
use std::time::Duration;

use super::EventLoop;
use crate::r#loop::app::App;
use crate::r#loop::readiness::Readiness;

/// Delay before a failed poll is retried.
const POLL_RETRY_DELAY: Duration = Duration::from_millis(10);

/// Maximum consecutive failures that are retried.
const POLL_ERRORS_MAX: u32 = 10;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// The timeout of the next poll; `None` waits for an event.
    pub(super) fn poll_timeout(&mut self) -> Option<Duration> {
        if self.wakeup_dirty {
            self.update_wakeup();
        }
        if self.end_of_turn_pending
            || !self.ready.is_empty()
            || !self.next.is_empty()
            || !self.context.messages.is_empty()
        {
            return Some(Duration::ZERO);
        }
        let next_ms = self.timers.wake_ms().min(self.next_wakeup_ms);
        (next_ms != u64::MAX).then(|| Duration::from_millis(next_ms.saturating_sub(self.context.now_ms)))
    }

    fn update_wakeup(&mut self) {
        let drain_ms = self.close_listeners_at_ms.unwrap_or(u64::MAX).min(self.drain_deadline_ms.unwrap_or(u64::MAX));
        let task_ms = self.schedule.next_ms().unwrap_or(u64::MAX);
        self.next_wakeup_ms = self.next_accept_ms().min(task_ms).min(drain_ms);
        self.wakeup_dirty = false;
    }

    /// Handles a failed poll, for example for lack of memory: waits before the next poll, or returns the error after
    /// too many consecutive failures.
    pub(super) fn on_poll_error(&mut self, error: io::Error) -> io::Result<()> {
        self.poll_errors += 1;
        if self.poll_errors > POLL_ERRORS_MAX {
            return Err(error);
        }
        log::warn!("cannot poll for events: {error}; retrying");
        std::thread::sleep(POLL_RETRY_DELAY);
        Ok(())
    }
}
