//! Returns the memory of a burst of load to the system once the loop has rested.
//!
//! The system calls that the loop counts anyway show its load. They are looked at once per second of activity, so that the
//! hot path pays nothing; an idle loop is woken once, and only after much load.

use super::EventLoop;
use crate::r#loop::app::App;
use crate::r#loop::limits::Counters;
use crate::r#loop::readiness::Readiness;
use crate::r#loop::system;

/// Time with little load after which the loop has rested.
const REST_MS: u64 = 3000;

/// System calls per second that count as little load.
const LITTLE_LOAD: u64 = 16;

/// System calls since memory was last returned below which it is not worth doing so.
const CALLS_MIN: u64 = 1024;

/// Number of elements that vectors keep room for.
const KEEP_ELEMENTS: usize = 256;

/// The load of a loop.
pub(super) struct Rest {
    /// Calls counted when memory was last returned.
    released_calls: u64,
    /// Calls counted when the load was last looked at.
    seen_calls: u64,
    /// Time at which the loop has rested; `u64::MAX` if there is nothing to do then.
    pub(super) at_ms: u64,
}

impl Rest {
    pub(super) fn new() -> Self {
        Rest { released_calls: 0, seen_calls: 0, at_ms: u64::MAX }
    }

    /// Looks at the load. Returns whether `at_ms` has changed.
    pub(super) fn observe(&mut self, counters: &Counters, now_ms: u64) -> bool {
        let calls = calls(counters);
        let load = calls - self.seen_calls;
        self.seen_calls = calls;
        let is_loaded = load > LITTLE_LOAD && calls - self.released_calls >= CALLS_MIN;
        if is_loaded {
            self.at_ms = now_ms + REST_MS;
        }
        is_loaded
    }
}

fn calls(counters: &Counters) -> u64 {
    counters.accepts + counters.reads + counters.writes
}

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Looks at the load, once per second of activity.
    #[cold]
    pub(super) fn observe_load(&mut self) {
        self.wakeup_dirty |= self.rest.observe(&self.context.counters, self.context.now_ms);
    }

    /// Returns memory to the system if the loop has rested.
    pub(super) fn rest(&mut self) {
        if self.rest.at_ms > self.context.now_ms || self.rest.observe(&self.context.counters, self.context.now_ms) {
            return;
        }
        self.rest = Rest { released_calls: self.rest.seen_calls, seen_calls: self.rest.seen_calls, at_ms: u64::MAX };
        let slots = self.table.shrink();
        self.timers.shrink(slots);
        self.events.shrink_to(KEEP_ELEMENTS);
        self.ready.shrink_to(KEEP_ELEMENTS);
        self.next.shrink_to(KEEP_ELEMENTS);
        self.message_batch.shrink_to(KEEP_ELEMENTS);
        self.context.messages.shrink_to(KEEP_ELEMENTS);
        system::release_free_memory();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_returned_after_much_load_and_only_once() {
        let mut rest = Rest::new();
        let mut counters = Counters { reads: CALLS_MIN - 1, ..Counters::default() };
        assert!(!rest.observe(&counters, 1000));
        assert_eq!(rest.at_ms, u64::MAX, "too little load");
        counters.writes = LITTLE_LOAD + 1;
        assert!(rest.observe(&counters, 2000));
        assert_eq!(rest.at_ms, 2000 + REST_MS);
        counters.reads += LITTLE_LOAD;
        assert!(!rest.observe(&counters, 3000));
        assert_eq!(rest.at_ms, 2000 + REST_MS, "little load does not postpone it");
    }
}
