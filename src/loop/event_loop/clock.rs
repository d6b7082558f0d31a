//! What time it is, for everything that happens in a turn.

use std::time::{Duration, UNIX_EPOCH};

use crate::r#loop::app::App;
use crate::r#loop::connection::Lent;
use crate::r#loop::readiness::Readiness;

/// The loop's clocks, read once per turn; the calendar at most once a second. What they tell is lent.
pub(super) struct Clock {
    start_ms: u64,
    wall_until_ms: u64,
}

impl Clock {
    /// Counts from now.
    pub(super) fn start<A: App>(backend: &impl Readiness, lent: &mut Lent<A>) -> Self {
        let mut clock = Clock { start_ms: millis(backend.now()), wall_until_ms: 0 };
        clock.tick(backend, lent);
        clock
    }

    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    pub(super) fn tick<A: App>(&mut self, backend: &impl Readiness, lent: &mut Lent<A>) {
        lent.now_ms = millis(backend.now()).saturating_sub(self.start_ms);
        if lent.now_ms >= self.wall_until_ms {
            let wall = backend.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
            lent.wall = wall.as_secs();
            self.wall_until_ms = lent.now_ms + 1000 - u64::from(wall.subsec_millis());
        }
    }
}

#[inline]
fn millis(time: Duration) -> u64 {
    time.as_secs() * 1000 + u64::from(time.subsec_millis())
}
