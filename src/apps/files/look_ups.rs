//! The threads on which the file system is consulted, so that a slow one does not block a loop.
//!
//! A look-up comprises all file system calls for one request. It usually takes a few microseconds, and is made on the
//! loop. After two in succession have each taken more than [`SLOW`], the look-ups of this root are made on a thread pool
//! until none has been slow for [`RECOVERY`]. Cached files are sent by the loop in either case, without reading the clock.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::waiting::lock;
use crate::httpserver::Pool;

/// Time above which a look-up is slow.
const SLOW: Duration = Duration::from_millis(1);

/// Successive slow look-ups after which the next ones are made on the pool.
const SLOW_MAX: u32 = 2;

/// Time without a slow look-up after which they are made on the loop again.
const RECOVERY: Duration = Duration::from_secs(1);

/// Number of threads of the pool. They mostly wait, for a network or a disk.
const THREADS: usize = 16;

/// Maximum number of look-ups that wait for a thread; further ones are rejected with 503.
const QUEUED_MAX: usize = 1024;

thread_local! {
    /// The time that the look-up in progress on this thread has spent in file system calls.
    static SPENT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Makes a file system call, and adds its time to that of the look-up.
pub(super) fn timed<T>(call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = call();
    SPENT.set(SPENT.get().saturating_add(start.elapsed()));
    result
}

/// The duration of the recent look-ups of a root, and the pool for slow ones.
#[derive(Default)]
pub(super) struct LookUps {
    /// Slow look-ups since the last fast one; at [`SLOW_MAX`] or more, the pool is in use.
    slow: AtomicU32,
    last_slow: Mutex<Option<Instant>>,
    pool: OnceLock<Option<Pool>>,
    #[cfg(feature = "testing")]
    hook: OnceLock<Box<dyn Fn() -> Duration + Send + Sync>>,
}

impl LookUps {
    /// Returns the pool if the next look-up is to be made there. It is started for the first one; if that fails, look-ups
    /// stay on the loop.
    pub(super) fn pool_if_slow(&self) -> Option<&Pool> {
        if !self.are_slow() {
            return None;
        }
        let start = || {
            Pool::new(THREADS, QUEUED_MAX)
                .inspect_err(|error| log::error!("cannot start the threads for slow file systems: {error}"))
                .ok()
        };
        self.pool.get_or_init(start).as_ref()
    }

    fn are_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed) >= SLOW_MAX
    }

    /// Makes a look-up on this thread, and records the time that its file system calls take.
    pub(super) fn measure<T>(&self, look_up: impl FnOnce() -> T) -> T {
        SPENT.set(Duration::ZERO);
        let simulated = self.call_hook();
        let result = look_up();
        self.record(simulated.unwrap_or_else(|| SPENT.get()), Instant::now);
        result
    }

    fn record(&self, spent: Duration, now: impl FnOnce() -> Instant) {
        if spent > SLOW {
            *lock(&self.last_slow) = Some(now());
            let add = |slow: u32| Some(slow.saturating_add(1));
            let before = self.slow.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).unwrap_or_default();
            if before == SLOW_MAX - 1 {
                log::info!("the file system is slow ({spent:.0?} for a request); using other threads");
            }
        } else if !spent.is_zero() && self.slow.load(Ordering::Relaxed) > 0 {
            let is_over = |slow: Instant| now().saturating_duration_since(slow) >= RECOVERY;
            if self.are_slow() && !lock(&self.last_slow).is_none_or(is_over) {
                return;
            }
            if self.slow.swap(0, Ordering::Relaxed) >= SLOW_MAX {
                log::info!("the file system is fast again");
            }
        }
    }

    /// Calls `hook` before each look-up and listing, on its thread. A look-up counts as having taken the time that it
    /// returns.
    #[cfg(feature = "testing")]
    pub(super) fn set_hook(&self, hook: impl Fn() -> Duration + Send + Sync + 'static) {
        // Only the first hook counts.
        let _ = self.hook.set(Box::new(hook));
    }

    /// Returns the time that the look-up takes in a test.
    #[cfg(feature = "testing")]
    pub(super) fn call_hook(&self) -> Option<Duration> {
        self.hook.get().map(|hook| hook())
    }

    #[cfg(not(feature = "testing"))]
    #[allow(clippy::unused_self, reason = "used by tests")]
    pub(super) fn call_hook(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_successive_slow_look_ups_make_the_root_slow_until_it_has_recovered() {
        let look_ups = LookUps::default();
        let start = Instant::now();
        let record = |spent, at| look_ups.record(spent, || start + at);
        let (slow, fast) = (SLOW * 2, SLOW);
        for spent in [slow, fast, slow, Duration::from_nanos(1), slow] {
            record(spent, Duration::ZERO);
            assert!(!look_ups.are_slow() && look_ups.pool_if_slow().is_none());
        }
        // A request without a file system call says nothing.
        record(Duration::ZERO, Duration::ZERO);
        record(slow, RECOVERY);
        assert!(look_ups.are_slow() && look_ups.pool_if_slow().is_some());
        record(fast, RECOVERY.mul_f32(1.9));
        assert!(look_ups.are_slow(), "the last slow look-up is recent");
        record(fast, RECOVERY * 2);
        assert!(!look_ups.are_slow());
        record(slow, RECOVERY * 3);
        assert!(!look_ups.are_slow(), "one slow look-up is not enough");
    }

    #[test]
    fn only_the_file_system_calls_of_a_look_up_are_timed() {
        let look_ups = LookUps::default();
        for _ in 0..3 {
            look_ups.measure(|| std::thread::sleep(SLOW * 4));
        }
        assert!(!look_ups.are_slow());
        for _ in 0..2 {
            // Each call alone is slow as well on systems whose clocks are coarse.
            look_ups.measure(|| (0..2).for_each(|_| timed(|| std::thread::sleep(SLOW * 4))));
        }
        assert!(look_ups.are_slow());
    }
}
