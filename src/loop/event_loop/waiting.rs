//! How long the loop waits, and what it does when it cannot.

use std::io;
use std::time::Duration;

use super::EventLoop;
use crate::r#loop::app::App;
use crate::r#loop::readiness::Readiness;

/// A wait that failed is tried again after this time, so many times in a row.
const WAIT_PAUSE: Duration = Duration::from_millis(10);
const WAIT_FAULTS_MAX: u32 = 10;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// How long the next wait may last.
    pub(super) fn patience(&mut self) -> Option<Duration> {
        if self.stirred {
            self.look_up_alarm();
        }
        if self.unheard || !self.ready.is_empty() || !self.next.is_empty() || !self.lent.posts.is_empty() {
            return Some(Duration::ZERO);
        }
        let next_ms = self.timers.wake_ms().min(self.alarm_ms);
        (next_ms != u64::MAX).then(|| Duration::from_millis(next_ms.saturating_sub(self.lent.now_ms)))
    }

    fn look_up_alarm(&mut self) {
        let drain_ms = self.settled_ms.unwrap_or(u64::MAX).min(self.drain.unwrap_or(u64::MAX));
        let task_ms = self.schedule.next_ms().unwrap_or(u64::MAX);
        self.alarm_ms = self.doors_due_ms().min(task_ms).min(drain_ms);
        self.stirred = false;
    }

    /// A wait failed, as for want of memory: tried again for a moment, then given up.
    pub(super) fn bear(&mut self, error: io::Error) -> io::Result<()> {
        self.wait_faults += 1;
        if self.wait_faults > WAIT_FAULTS_MAX {
            return Err(error);
        }
        log::warn!("cannot wait for readiness: {error}; trying again");
        std::thread::sleep(WAIT_PAUSE);
        Ok(())
    }
}
