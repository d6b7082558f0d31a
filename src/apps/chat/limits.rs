//! The limits of a chat, and of one member: its budget, at whose end it is not read for a while, and its rate limit, a
//! token bucket that holds one second's worth of lines, at whose end it is muted.

use std::time::Duration;

/// The amount of input that is accepted from a member: `burst` at once, and `per_second` in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The amount accepted at once. At least 1.
    pub burst: u32,
    /// The amount per second by which a budget recovers, up to `burst`. At least 1.
    pub per_second: u32,
}

/// The limits of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// Maximum number of members on all loops together. Further connections get a notice and are closed. Default:
    /// 10,000.
    pub members_max: usize,
    /// Maximum number of rooms, including the lobby. Rooms other than the lobby are removed when the last member
    /// leaves. Default: 1,000.
    pub rooms_max: usize,
    /// Budget in bytes of each member. At its end the member is not read for a while (back-pressure): its lines are
    /// delayed, but none is lost, and no time limit runs while it waits. Default: 64 KiB, then 4 KiB per second.
    pub byte_budget: Option<Budget>,
    /// Budget in lines of each member, including empty lines, commands and telnet requests. Default: 100 lines, then 10
    /// per second.
    pub line_budget: Option<Budget>,
    /// Rate limit in lines per second per member, measured over one second. A member that exceeds it is muted for 3 s.
    /// Default: no limit, so that text can be pasted.
    pub rate: Option<u32>,
    /// Maximum number of unsent bytes queued for a member. For a client that is slower than its room, the oldest lines
    /// are skipped down to half of this, with a notice, and without delaying the other members. Default: 256 KiB, a few
    /// thousand lines.
    pub queue_bytes_max: usize,
    /// Number of recent lines sent to a member who joins a room. Default: 20, about a screenful.
    pub history_lines: usize,
}

impl Bounds {
    optional_setters! {
        byte_budget: Budget,
        line_budget: Budget,
        rate: u32,
    }

    setters! {
        members_max: usize,
        rooms_max: usize,
        queue_bytes_max: usize,
        history_lines: usize,
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            members_max: 10_000,
            rooms_max: 1000,
            byte_budget: Some(Budget { burst: 64 * 1024, per_second: 4 * 1024 }),
            line_budget: Some(Budget { burst: 100, per_second: 10 }),
            rate: None,
            queue_bytes_max: 256 * 1024,
            history_lines: 20,
        }
    }
}

/// Minimum time for which a member that has used up its budget is not read, so that a flood of short lines causes only a
/// few wake-ups per second.
const HOLD_TIME_MIN: Duration = Duration::from_millis(250);

/// The used part of a budget, represented by the time in nanoseconds at which the budget will be whole again.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    whole_at_ns: u64,
}

impl Used {
    fn add(&mut self, budget: Budget, now_ns: u64, amount: usize) {
        let cost_ns = (amount as u64).saturating_mul(1_000_000_000) / u64::from(budget.per_second.max(1));
        self.whole_at_ns = self.whole_at_ns.max(now_ns).saturating_add(cost_ns);
    }

    /// Returns the time in nanoseconds until some of the budget is left; 0 if there is some now.
    fn wait_ns(self, budget: Budget, now_ns: u64) -> u64 {
        let burst_ns = u64::from(budget.burst.max(1)) * 1_000_000_000 / u64::from(budget.per_second.max(1));
        (self.whole_at_ns + 1).saturating_sub(now_ns.saturating_add(burst_ns))
    }
}

/// The budgets of one member. A line that begins within the budget is accepted as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budgets {
    bytes: Used,
    lines: Used,
}

impl Budgets {
    /// Counts input of the member.
    pub(super) fn add(&mut self, bounds: &Bounds, now: Duration, bytes: usize, lines: usize) {
        let now_ns = nanos(now);
        if let Some(budget) = bounds.byte_budget {
            self.bytes.add(budget, now_ns, bytes);
        }
        if let Some(budget) = bounds.line_budget {
            self.lines.add(budget, now_ns, lines);
        }
    }

    /// Returns the time for which the member is not to be read, or `None` if its budgets are not used up.
    pub(super) fn hold_time(&self, bounds: &Bounds, now: Duration) -> Option<Duration> {
        let now_ns = nanos(now);
        let bytes_ns = bounds.byte_budget.map_or(0, |budget| self.bytes.wait_ns(budget, now_ns));
        let lines_ns = bounds.line_budget.map_or(0, |budget| self.lines.wait_ns(budget, now_ns));
        let wait_ns = bytes_ns.max(lines_ns);
        (wait_ns > 0).then(|| Duration::from_nanos(wait_ns).max(HOLD_TIME_MIN))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

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
    fn a_budget_allows_a_burst_and_then_recovers_at_its_rate() {
        let bounds = Bounds { byte_budget: None, ..Bounds::default() };
        let (mut budgets, now) = (Budgets::default(), Duration::from_secs(5));
        for line in 0..100 {
            assert_eq!(budgets.hold_time(&bounds, now), None, "line {line}");
            budgets.add(&bounds, now, 1, 1);
        }
        assert_eq!(budgets.hold_time(&bounds, now), Some(HOLD_TIME_MIN));
        let (start, mut accepted, mut now) = (now, 0, now);
        while accepted < 100 {
            if let Some(wait) = budgets.hold_time(&bounds, now) {
                now += wait;
            } else {
                budgets.add(&bounds, now, 1, 1);
                accepted += 1;
            }
        }
        let seconds = now.as_secs_f64() - start.as_secs_f64();
        assert!((9.5..=10.5).contains(&seconds), "100 lines in {seconds} s");
    }

    #[test]
    fn an_overdrawn_budget_is_paid_back() {
        let bounds = Bounds { line_budget: None, ..Bounds::default() };
        let mut budgets = Budgets::default();
        budgets.add(&bounds, Duration::ZERO, 64 * 1024 - 1, 0);
        assert_eq!(budgets.hold_time(&bounds, Duration::ZERO), None);
        budgets.add(&bounds, Duration::ZERO, 8 * 1024 + 1, 0);
        let wait = budgets.hold_time(&bounds, Duration::ZERO).expect("overdrawn");
        assert!((2.0..2.1).contains(&wait.as_secs_f64()), "{wait:?}");
        assert_eq!(budgets.hold_time(&bounds, wait), None);
        let unlimited = Bounds { byte_budget: None, line_budget: None, ..Bounds::default() };
        assert_eq!(budgets.hold_time(&unlimited, Duration::ZERO), None);
    }

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
