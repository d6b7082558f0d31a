//! Metrics of a loop for other threads. They are written only by the loop, so counters use a relaxed load and store
//! instead of an atomic read-modify-write. The numbers of failed accepts are behind a mutex, which the loop locks at
//! most ten times a second.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::app::CloseReason;
use super::error_numbers::ErrorNumbers;
use super::limits::Counters;
use super::readiness::monotonic;
use super::std_ext::lock;

/// Upper bounds of the buckets of histograms of times.
pub(crate) static TIME_BOUNDS: Bounds = Bounds::new([
    100, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
]);
const BOUNDS_COUNT: usize = 15;

/// Number of buckets of histograms of times.
pub(crate) const TIME_BUCKETS: usize = BOUNDS_COUNT + 1;

/// Minimum interval at which counters that change rarely are published, in milliseconds.
const PUBLISH_INTERVAL_MS: u64 = 100;

/// Returns the time of the monotonic clock in nanoseconds.
#[inline]
pub(crate) fn clock_ns() -> u64 {
    clock_nanos(monotonic())
}

/// Returns the time of the monotonic clock in microseconds.
#[inline]
pub(crate) fn clock_us() -> u64 {
    clock_micros(monotonic())
}

/// Converts a clock's time, which is small enough, without a 128-bit multiplication.
#[inline]
pub(crate) fn clock_nanos(time: Duration) -> u64 {
    time.as_secs() * 1_000_000_000 + u64::from(time.subsec_nanos())
}

/// Converts a clock's time, which is small enough, without a 128-bit division.
#[inline]
pub(crate) fn clock_micros(time: Duration) -> u64 {
    time.as_secs() * 1_000_000 + u64::from(time.subsec_micros())
}

/// A counter with one writer.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds to the counter; called by one thread only.
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }

    /// Replaces the value; called by one thread only.
    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of the buckets of a histogram of times, in nanoseconds. The bucket of a time is found by its number
/// of leading zeros, as each bound is at least twice the one before.
#[derive(Debug)]
pub(crate) struct Bounds {
    pub(crate) ns: [u64; BOUNDS_COUNT],
    /// By the number of leading zeros of a time: the first bound that it may be within.
    first: [u8; 65],
}

impl Bounds {
    #[allow(clippy::cast_possible_truncation, reason = "the number of bounds is small")]
    const fn new(us: [u64; BOUNDS_COUNT]) -> Self {
        let (mut ns, mut index) = (us, 0);
        while index < BOUNDS_COUNT {
            ns[index] *= 1000;
            assert!(index == 0 || ns[index] >= 2 * ns[index - 1], "a time could be beyond two bounds");
            index += 1;
        }
        let mut first = [0; 65];
        let mut zeros = 0;
        while zeros <= 64 {
            // The least time with this number of leading zeros.
            let least = if zeros == 64 { 0 } else { 1 << (63 - zeros) };
            let mut index = 0;
            while index < BOUNDS_COUNT && ns[index] < least {
                index += 1;
            }
            first[zeros] = index as u8;
            zeros += 1;
        }
        Bounds { ns, first }
    }

    /// Returns the number of the bucket of a time; the last one beyond all bounds.
    #[inline]
    pub(crate) fn bucket(&self, time_ns: u64) -> usize {
        let first = usize::from(self.first[time_ns.leading_zeros() as usize]);
        first + usize::from(self.ns.get(first).is_some_and(|bound| *bound < time_ns))
    }
}

/// A histogram of times.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// The number of times per bucket of [`TIME_BOUNDS`].
    pub(crate) buckets: [Counter; TIME_BUCKETS],
    pub(crate) sum_ns: Counter,
}

impl Histogram {
    /// Adds times of this length.
    #[inline]
    pub(crate) fn add(&self, count: u64, time_ns: u64) {
        self.add_to(TIME_BOUNDS.bucket(time_ns), count, time_ns);
    }

    /// Adds times of this length, which is in this bucket.
    #[inline]
    pub(crate) fn add_to(&self, bucket: usize, count: u64, time_ns: u64) {
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.add(count);
            self.sum_ns.add(count * time_ns);
        }
    }

    /// Returns the number of times.
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }
}

/// The names of reasons for closes, in the order of [`reason_index`].
pub(crate) const CLOSE_REASONS: [&str; 9] =
    ["done", "peer", "timeout", "evicted", "too_slow", "refused", "shutdown", "panic", "error"];

fn reason_index(reason: &CloseReason) -> usize {
    match reason {
        CloseReason::Done => 0,
        CloseReason::Peer => 1,
        CloseReason::Timeout(_) => 2,
        CloseReason::Evicted => 3,
        CloseReason::TooSlow => 4,
        CloseReason::Refused => 5,
        CloseReason::Drain => 6,
        CloseReason::Panicked => 7,
        CloseReason::Error(_) => 8,
    }
}

/// The metrics of one loop.
#[derive(Debug, Default)]
pub(crate) struct LoopMetrics {
    /// Turns by their duration without the wait.
    pub(crate) lag: Histogram,
    /// When the wait of this turn returned, by [`clock_ns`], and the time that serving the connections has taken, with its
    /// bucket: for the application, which need not read the clock itself.
    pub(crate) turn_start_ns: Counter,
    pub(crate) turn_ns: Counter,
    pub(crate) turn_bucket: Counter,
    pub(crate) connections: Counter,
    pub(crate) opened: Counter,
    pub(crate) closes: [Counter; CLOSE_REASONS.len()],
    pub(crate) refused: Counter,
    pub(crate) handshakes: Counter,
    pub(crate) failed_handshakes: Counter,
    pub(crate) panics: Counter,
    published_ms: Counter,
    accept_errors: Mutex<ErrorNumbers>,
    ended: AtomicBool,
}

impl LoopMetrics {
    /// Records a turn, at the end of which the clock was read.
    #[inline]
    pub(crate) fn record(&self, end_ns: u64) {
        let time_ns = end_ns.saturating_sub(self.turn_start_ns.get());
        let bucket = TIME_BOUNDS.bucket(time_ns);
        self.lag.add_to(bucket, 1, time_ns);
        self.turn_ns.set(time_ns);
        self.turn_bucket.set(bucket as u64);
    }

    /// Returns whether [`LoopMetrics::publish`] is due, if the loop has been woken, as the admin listener does regularly.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        now_ms >= self.published_ms.get() + PUBLISH_INTERVAL_MS
    }

    /// Publishes the counters of the loop.
    #[cold]
    pub(super) fn publish(&self, counters: &Counters, connections: usize, now_ms: u64) {
        self.published_ms.set(now_ms);
        self.connections.set(connections as u64);
        self.opened.set(counters.closes + connections as u64);
        self.refused.set(counters.refused);
        self.handshakes.set(counters.handshakes);
        self.failed_handshakes.set(counters.failed_handshakes);
        self.panics.set(counters.panics);
        *lock(&self.accept_errors) = counters.accept_error_numbers;
    }

    /// Counts a closed connection.
    #[cold]
    pub(super) fn count_close(&self, reason: &CloseReason) {
        self.closes[reason_index(reason)].add(1);
    }

    /// Returns the failed accepts.
    pub(crate) fn accept_errors(&self) -> ErrorNumbers {
        *lock(&self.accept_errors)
    }

    /// Records that the loop has ended.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_of_a_time_is_the_first_whose_bound_it_is_within() {
        let bounds = &TIME_BOUNDS;
        let by_search = |time: u64| bounds.ns.partition_point(|bound| *bound < time);
        let near = bounds.ns.iter().flat_map(|bound| [bound - 1, *bound, bound + 1]);
        let powers = (0..64).flat_map(|bit| [1_u64 << bit, (1 << bit) - 1]);
        for time in near.chain(powers).chain([u64::MAX]) {
            assert_eq!(bounds.bucket(time), by_search(time), "{time}");
        }
    }
}
