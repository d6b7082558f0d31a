//! Rate limiting of one member: a token bucket that holds one second's worth of lines.

use std::time::Duration;

/// Time for which a member is muted after exceeding the rate limit.
pub(super) const MUTE_TIME: Duration = Duration::from_secs(3);

/// The result of a rate limit check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Allowed,
    /// The line exceeds the limit; the member is muted from now on.
    Exceeded,
    Muted,
}

/// A token bucket, represented by the time at which it will be full again.
#[derive(Debug, Default)]
pub(super) struct RateLimiter {
    full_at: Duration,
    muted_until: Duration,
}

impl RateLimiter {
    /// Takes a token for one line from a bucket that is refilled with `rate` tokens per second.
    pub(super) fn check(&mut self, now: Duration, rate: u32) -> Decision {
        if now < self.muted_until {
            return Decision::Muted;
        }
        let after = self.full_at.max(now) + Duration::from_secs(1) / rate.max(1);
        if after > now + Duration::from_secs(1) {
            self.muted_until = now + MUTE_TIME;
            return Decision::Exceeded;
        }
        self.full_at = after;
        Decision::Allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceeding_the_rate_is_reported_once_and_then_mutes() {
        for rate in [1, 2, 3, 7, 1000] {
            let mut limiter = RateLimiter::default();
            let now = Duration::from_secs(100);
            for line in 0..rate {
                assert_eq!(limiter.check(now, rate), Decision::Allowed, "line {line} of {rate}");
            }
            assert_eq!(limiter.check(now, rate), Decision::Exceeded, "{rate}");
            let unmuted_at = now + MUTE_TIME;
            assert_eq!(limiter.check(unmuted_at.saturating_sub(Duration::from_millis(1)), rate), Decision::Muted);
            assert_eq!(limiter.check(unmuted_at, rate), Decision::Allowed);
        }
    }

    #[test]
    fn the_bucket_refills_over_time() {
        let mut limiter = RateLimiter::default();
        for half_second in 0..100 {
            assert_eq!(limiter.check(Duration::from_millis(500 * half_second), 2), Decision::Allowed);
        }
    }
}
