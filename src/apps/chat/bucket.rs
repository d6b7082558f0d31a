//! How fast a member may speak: a token bucket that holds what one second allows.

use std::time::Duration;

/// How long who was too fast is not heard.
pub(super) const MUTE: Duration = Duration::from_secs(3);

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Heard,
    /// The first one too many.
    Over,
    Muted,
}

/// A bucket.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// When it will be full again.
    full_at: Duration,
    muted_until: Duration,
}

impl Bucket {
    /// Takes a line out of a bucket that gets `rate` of them a second.
    pub(super) fn admit(&mut self, now: Duration, rate: u32) -> Verdict {
        if now < self.muted_until {
            return Verdict::Muted;
        }
        let after = self.full_at.max(now) + Duration::from_secs(1) / rate.max(1);
        if after > now + Duration::from_secs(1) {
            self.muted_until = now + MUTE;
            return Verdict::Over;
        }
        self.full_at = after;
        Verdict::Heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_allows_the_rate_and_more_is_told_once_and_then_muted() {
        for rate in [1, 2, 3, 7, 1000] {
            let mut bucket = Bucket::default();
            let now = Duration::from_secs(100);
            for line in 0..rate {
                assert_eq!(bucket.admit(now, rate), Verdict::Heard, "line {line} of {rate}");
            }
            assert_eq!(bucket.admit(now, rate), Verdict::Over, "{rate}");
            let heard_at = now + MUTE;
            assert_eq!(bucket.admit(heard_at.saturating_sub(Duration::from_millis(1)), rate), Verdict::Muted);
            assert_eq!(bucket.admit(heard_at, rate), Verdict::Heard);
        }
    }

    #[test]
    fn the_bucket_fills_while_nothing_is_said() {
        let mut bucket = Bucket::default();
        for half_second in 0..100 {
            assert_eq!(bucket.admit(Duration::from_millis(500 * half_second), 2), Verdict::Heard);
        }
    }
}
