//! Look-ups of files: the threads on which they are made, so that a slow file system does not block a loop, and the
//! requests that wait for them.
//!
//! A look-up comprises all file system calls for one request. It usually takes a few microseconds, and is made on the
//! loop. After two in succession have each taken more than [`SLOW`], the look-ups of this root are made on a thread
//! pool until none has been slow for [`RECOVERY`]. Cached files are sent by the loop in either case, without reading
//! the clock.
//!
//! Many requests for one path cost one look-up: the others are suspended until it is finished.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::httpserver::{Pool, Responder};
use crate::r#loop::lock;

/// Time above which a look-up counts as slow.
const SLOW: Duration = Duration::from_millis(1);

/// Successive slow look-ups after which the next ones are made on the pool.
const SLOW_MAX: u32 = 2;

/// Time without a slow look-up after which they are made on the loop again.
const RECOVERY: Duration = Duration::from_secs(1);

/// Number of threads of the pool. They mostly wait, for a network or a disk.
const THREADS: usize = 16;

/// Maximum number of look-ups that wait for a thread; further ones are rejected with 503.
const QUEUED_MAX: usize = 1024;

/// Maximum number of times that a request waits for a look-up of another before it makes its own.
const WAITS_MAX: u8 = 2;

/// Number of requests at which those of closed connections are removed for the first time.
const PRUNE_MIN: usize = 64;

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
    /// Returns the pool if the next look-up is to be made there. It is started for the first one; if that fails,
    /// look-ups stay on the loop.
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

/// Suspended requests, each with a note, that wait for one event. A file system may delay it for hours, in which
/// clients come and go, so requests of closed connections are removed: at most half of those kept belong to closed
/// connections.
pub(super) struct Suspended<T> {
    requests: Vec<(Responder, T)>,
    prune_at: usize,
}

impl<T> Default for Suspended<T> {
    fn default() -> Self {
        Suspended { requests: Vec::new(), prune_at: PRUNE_MIN }
    }
}

impl<T> Suspended<T> {
    pub(super) fn push(&mut self, responder: Responder, note: T) {
        if self.requests.len() >= self.prune_at {
            self.requests.retain(|(responder, _)| !responder.is_closed());
            self.prune_at = (2 * self.requests.len()).max(PRUNE_MIN);
        }
        self.requests.push((responder, note));
    }

    pub(super) fn into_iter(self) -> impl Iterator<Item = (Responder, T)> {
        self.requests.into_iter()
    }
}

/// The number of times that a request has waited for the look-up of another request for the same path; attached to the
/// request.
#[derive(Clone)]
pub(super) struct Waited(pub(super) u8);

/// The look-ups in progress of a worker by path, with the requests that wait for them, so that many requests for a
/// popular file cost one look-up.
#[derive(Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<HashMap<Box<[u8]>, Shared>>>);

struct Shared {
    /// The client of the request that makes the look-up.
    client: Option<IpAddr>,
    /// False while it waits for a thread.
    has_begun: bool,
    /// The number of times that each has waited before.
    waiting: Suspended<u8>,
}

/// A look-up in progress. Dropping it resumes the requests that wait for it; they find the file in the cache then, or
/// make a look-up of their own.
pub(super) struct InProgress {
    waiting: Waiting,
    path: Box<[u8]>,
}

impl Waiting {
    /// Adds a request to those that wait for a look-up of the path. Returns it if there is none, if it has waited too
    /// often, or if the look-up is still queued for another client, which may have many in the queue.
    pub(super) fn join(
        &self,
        path: &[u8],
        client: Option<IpAddr>,
        responder: Responder,
        waits: u8,
    ) -> Result<(), Responder> {
        match lock(&self.0).get_mut(path) {
            Some(shared) if waits < WAITS_MAX && (shared.has_begun || shared.client == client) => {
                shared.waiting.push(responder, waits);
                Ok(())
            }
            _ => Err(responder),
        }
    }

    /// Lets other requests wait for a look-up that is queued now. Returns `None` if there is one of this path already.
    pub(super) fn queue(&self, path: &[u8], client: Option<IpAddr>) -> Option<InProgress> {
        let mut waiting = lock(&self.0);
        if waiting.contains_key(path) {
            return None;
        }
        waiting.insert(path.into(), Shared { client, has_begun: false, waiting: Suspended::default() });
        drop(waiting);
        Some(InProgress { waiting: self.clone(), path: path.into() })
    }
}

impl InProgress {
    /// Records that a thread makes the look-up now.
    pub(super) fn begin(&self) {
        if let Some(shared) = lock(&self.waiting.0).get_mut(&self.path) {
            shared.has_begun = true;
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let shared = lock(&self.waiting.0).remove(&self.path);
        for (responder, waits) in shared.into_iter().flat_map(|shared| shared.waiting.into_iter()) {
            responder.resume(Waited(waits + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::httpserver::Response;

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

    fn responder() -> Responder {
        // Dropping the response closes the exchange.
        Response::suspend().1
    }

    #[test]
    fn requests_of_closed_connections_do_not_accumulate() {
        let mut suspended = Suspended::default();
        let (open, first) = Response::suspend();
        suspended.push(first, 1);
        for _ in 0..10_000 {
            suspended.push(responder(), 0);
            assert!(suspended.requests.len() <= PRUNE_MIN);
        }
        let open_requests: Vec<_> = suspended.into_iter().filter(|(responder, _)| !responder.is_closed()).collect();
        assert!(matches!(&open_requests[..], [(_, 1)]));
        for (responder, _) in open_requests {
            responder.resume(());
        }
        drop(open);
    }

    #[test]
    fn a_request_joins_a_look_up_that_has_begun_or_is_of_the_same_client() {
        let client = |number: u8| Some(IpAddr::from([10, 0, 0, number]));
        let waiting = Waiting::default();
        let joins = |path: &[u8], of, waits| waiting.join(path, of, responder(), waits).is_ok();
        assert!(!joins(b"/a", client(1), 0), "nothing is in progress");
        let in_progress = waiting.queue(b"/a", client(1)).unwrap();
        assert!(waiting.queue(b"/a", client(2)).is_none());
        assert!(joins(b"/a", client(1), 0));
        assert!(!joins(b"/a", client(2), 0), "the queue of the other client may be long");
        assert!(!joins(b"/b", client(1), 0));
        in_progress.begin();
        assert!(joins(b"/a", client(2), 1));
        assert!(!joins(b"/a", client(2), WAITS_MAX));
        drop(in_progress);
        assert!(!joins(b"/a", client(1), 0));
        assert!(lock(&waiting.0).is_empty());
    }
}
