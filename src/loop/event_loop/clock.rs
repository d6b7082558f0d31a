//! The loop's clocks: monotonic milliseconds and wall-clock seconds.

use std::time::{Duration, UNIX_EPOCH};

use crate::r#loop::app::App;
use crate::r#loop::connection::LoopContext;
use crate::r#loop::readiness::Readiness;

/// Reads the monotonic clock once per turn and the wall clock at most once per second, into [`LoopContext`].
pub(super) struct Clock {
    start_ms: u64,
    unix_time_until_ms: u64,
}

impl Clock {
    /// Starts the loop's clock at zero.
    pub(super) fn start<A: App>(backend: &impl Readiness, context: &mut LoopContext<A>) -> Self {
        let mut clock = Clock { start_ms: millis(backend.now()), unix_time_until_ms: 0 };
        clock.tick(backend, context);
        clock
    }

    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub(super) fn tick<A: App>(&mut self, backend: &impl Readiness, context: &mut LoopContext<A>) {
        context.now_ms = millis(backend.now()).saturating_sub(self.start_ms);
        if context.now_ms >= self.unix_time_until_ms {
            let wall_clock = backend.system_time().duration_since(UNIX_EPOCH).unwrap_or_default();
            context.unix_time = wall_clock.as_secs();
            self.unix_time_until_ms = context.now_ms + 1000 - u64::from(wall_clock.subsec_millis());
        }
    }
}

#[inline]
fn millis(time: Duration) -> u64 {
    time.as_secs() * 1000 + u64::from(time.subsec_millis())
}
