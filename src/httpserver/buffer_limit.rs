//! The limit on the memory of request bodies that are collected, wait for a reader or are held by a sink that waits,
//! for all connections together.
//!
//! ```text
//!            below the limit                    memory released
//!   Running ------------------> Running   Waiting -----------> Running
//!      | above the limit                     | nothing released in time, and this upload
//!      v                                     v makes the least progress
//!   Waiting (reading is paused)           Rejected (503)
//! ```
//!
//! A body of up to [`SMALL_BYTES`] is taken from a reserve, so that forms and API requests are served while large
//! uploads wait. The upload that makes the least progress is rejected, not the one that arrives last: otherwise a few
//! stalled uploads could lock out all others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::exchange_handle::{ExchangeId, Wakeup};
use crate::r#loop::lock;

/// Maximum size of a body that is taken from the reserve.
const SMALL_BYTES: usize = 16 * 1024;

/// Size of the reserve, unless the limit is small.
const RESERVE_BYTES: usize = 32 << 20;

/// Default limit.
const BYTES_MAX: usize = 256 << 20;

/// Default of [`BufferLimit::wait`].
const WAIT: Duration = Duration::from_secs(5);

/// Memory above the limit at which uploads are rejected at once, if an eighth of the limit is less.
const EXCESS_BYTES_MIN: usize = 1 << 20;

/// Memory that a resumed upload is expected to need next: one read.
const STEP_BYTES: usize = 64 * 1024;

/// Limits the memory of request bodies that are collected, wait for a [`BodyReader`](crate::BodyReader), or are held by
/// a sink that waits ([`BodyFlow::wait`](crate::BodyFlow::wait)); clones share one limit, for the servers of several
/// workers.
///
/// An eighth of the limit, at most 32 MiB, is reserved for bodies of up to 16 KiB. When the rest is used up, reading
/// from clients that upload more pauses until memory is released. After 5 seconds without success, the upload that has
/// received the least since then is answered with 503, as are further ones that have received nothing. Pausing takes
/// effect after the current read, so the limit may be exceeded by an eighth (at least 1 MiB); beyond that, an upload is
/// answered with 503 at once.
///
/// # Examples
/// ```
/// use serverd::{BufferLimit, HttpServer};
///
/// let limit = BufferLimit::new(64 << 20);
/// let server = HttpServer::new(|request| request.body().len().to_string()).buffer_limit(&limit);
/// # drop(server);
/// ```
#[derive(Clone)]
pub struct BufferLimit {
    shared: Arc<Shared>,
    wait: Duration,
}

struct Shared {
    /// Limit of the memory that is not taken from the reserve.
    bytes_max: usize,
    reserve_max: usize,
    state: Mutex<State>,
    /// Notified when the last upload that waits has been resumed, to end the thread.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    used: usize,
    reserve_used: usize,
    uploads: HashMap<u64, Upload>,
    /// Number of the next upload; a later upload has a larger number.
    next: u64,
    waiting: usize,
    /// The thread that ends the wait is running.
    has_thread: bool,
}

struct Upload {
    id: ExchangeId,
    status: Arc<AtomicU8>,
    bytes: usize,
    is_small: bool,
    waiting_since: Option<Instant>,
    /// Bytes received since `observed_since`.
    progress: usize,
    observed_since: Instant,
}

/// The state of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// May read.
    Running,
    /// Must not read until it is woken.
    Waiting,
    /// Must be answered with 503.
    Rejected,
}

impl Default for BufferLimit {
    /// Creates a limit of 256 MiB.
    fn default() -> Self {
        BufferLimit::new(BYTES_MAX)
    }
}

impl BufferLimit {
    /// Creates a limit in bytes.
    pub fn new(bytes_max: usize) -> Self {
        let reserve_max = RESERVE_BYTES.min(bytes_max / 8);
        let (state, changed) = (Mutex::default(), Condvar::new());
        BufferLimit {
            shared: Arc::new(Shared { bytes_max: bytes_max - reserve_max, reserve_max, state, changed }),
            wait: WAIT,
        }
    }

    /// Sets the time for which reading pauses before an upload is rejected. Default: 5 s.
    #[must_use]
    pub fn wait(self, wait: Duration) -> Self {
        BufferLimit { wait, ..self }
    }

    /// Registers an upload.
    pub(super) fn add(&self, id: ExchangeId) -> Lease {
        let status = Arc::new(AtomicU8::new(Status::Running as u8));
        let upload = Upload {
            id,
            status: Arc::clone(&status),
            bytes: 0,
            is_small: true,
            waiting_since: None,
            progress: 0,
            observed_since: Instant::now(),
        };
        let mut state = lock(&self.shared.state);
        let number = state.next;
        state.next += 1;
        state.uploads.insert(number, upload);
        Lease { limit: self.clone(), number, status }
    }

    /// Starts the thread that ends the wait, unless it is running. Returns whether it is.
    fn start_thread(&self, state: &mut State) -> bool {
        if !state.has_thread {
            let limit = self.clone();
            let spawned = thread::Builder::new().name("buffer-limit".into()).spawn(move || limit.watch());
            state.has_thread = spawned.is_ok();
        }
        state.has_thread
    }

    /// Rejects an upload whenever one has waited too long. Ends when none waits.
    fn watch(&self) {
        let mut state = lock(&self.shared.state);
        while let Some(since) = state.uploads.values().filter_map(|upload| upload.waiting_since).min() {
            let left = (since + self.wait).saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.reject_slowest(self.wait, self.shared.bytes_max / 8);
                continue;
            }
            state = wait_timeout(&self.shared.changed, state, left);
        }
        state.has_thread = false;
    }
}

fn wait_timeout<'a>(changed: &Condvar, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
    changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
}

impl State {
    /// Rejects the upload with the least progress, and further ones without any progress until `bytes_wanted` are to be
    /// released. Lets the uploads that wait do so again, for the memory that is released.
    fn reject_slowest(&mut self, wait: Duration, bytes_wanted: usize) {
        let now = Instant::now();
        let newest = self.next - 1;
        let mut candidates: Vec<_> = self
            .uploads
            .iter_mut()
            .filter(|(_, upload)| upload.bytes > 0 && upload.status() != Status::Rejected)
            .collect();
        candidates.sort_by_key(|(number, upload)| {
            let was_observed = now.duration_since(upload.observed_since) >= wait;
            // An upload that waits is not slow. The one that arrived last is the last resort.
            (**number == newest, upload.waiting_since.is_some(), !was_observed, upload.progress, **number)
        });
        let mut released = 0;
        for (number, upload) in candidates {
            let is_stalled = *number != newest
                && upload.waiting_since.is_none()
                && upload.progress == 0
                && now.duration_since(upload.observed_since) >= wait;
            if released > 0 && (!is_stalled || released >= bytes_wanted) {
                break;
            }
            released += upload.bytes;
            self.waiting -= usize::from(upload.waiting_since.take().is_some());
            upload.set_status(Status::Rejected);
        }
        self.observe(now);
        for upload in self.uploads.values_mut().filter(|upload| upload.waiting_since.is_some()) {
            upload.waiting_since = Some(now);
        }
    }

    /// Starts an interval in which progress is measured.
    fn observe(&mut self, now: Instant) {
        for upload in self.uploads.values_mut() {
            upload.progress = 0;
            upload.observed_since = now;
        }
    }

    /// Takes an upload's memory out of the sums.
    fn release(&mut self, bytes: usize, is_small: bool) {
        if is_small {
            self.reserve_used -= bytes;
        } else {
            self.used -= bytes;
        }
    }

    /// Resumes uploads that wait, in the order of their arrival, as far as there is room.
    fn resume(&mut self, bytes_max: usize) {
        let mut room = bytes_max.saturating_sub(self.used);
        while self.waiting > 0 && room > 0 {
            let waiting = self.uploads.iter_mut().filter(|(_, upload)| upload.waiting_since.is_some());
            let Some((_, upload)) = waiting.min_by_key(|(number, _)| **number) else { return };
            upload.waiting_since = None;
            upload.set_status(Status::Running);
            self.waiting -= 1;
            room = room.saturating_sub(STEP_BYTES);
        }
    }
}

impl Upload {
    fn status(&self) -> Status {
        Status::from_byte(self.status.load(Ordering::Acquire))
    }

    /// Sets the status and wakes the connection.
    fn set_status(&self, status: Status) {
        self.status.store(status as u8, Ordering::Release);
        self.id.remote.send(self.id.connection, Wakeup::new());
    }
}

impl Status {
    fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Status::Running,
            1 => Status::Waiting,
            _ => Status::Rejected,
        }
    }
}

/// An upload, and the memory that it holds until it is dropped.
pub(super) struct Lease {
    limit: BufferLimit,
    number: u64,
    status: Arc<AtomicU8>,
}

impl Lease {
    pub(super) fn status(&self) -> Status {
        Status::from_byte(self.status.load(Ordering::Acquire))
    }

    /// Sets the memory of this upload, after `received` more bytes have arrived. Returns the new status.
    pub(super) fn set(&self, bytes: usize, received: usize) -> Status {
        let shared = &*self.limit.shared;
        let mut guard = lock(&shared.state);
        let state = &mut *guard;
        let Some(upload) = state.uploads.get_mut(&self.number) else { return Status::Rejected };
        let (old, was_small) = (upload.bytes, upload.is_small);
        upload.progress += received;
        state.release(old, was_small);
        let is_small = was_small && bytes <= SMALL_BYTES && state.reserve_used + bytes <= shared.reserve_max;
        if is_small {
            state.reserve_used += bytes;
        } else {
            state.used += bytes;
        }
        if bytes < old {
            state.resume(shared.bytes_max);
        }
        let (used, bytes_max) = (state.used, shared.bytes_max);
        let is_first = state.waiting == 0;
        let Some(upload) = state.uploads.get_mut(&self.number) else { return Status::Rejected };
        (upload.bytes, upload.is_small) = (bytes, is_small);
        if upload.status() == Status::Rejected || is_small || used <= bytes_max || bytes <= old {
            return upload.status();
        }
        if used > bytes_max.saturating_add((bytes_max / 8).max(EXCESS_BYTES_MIN)) {
            self.status.store(Status::Rejected as u8, Ordering::Release);
            return Status::Rejected;
        }
        let now = Instant::now();
        upload.waiting_since = Some(now);
        self.status.store(Status::Waiting as u8, Ordering::Release);
        state.waiting += 1;
        if is_first {
            state.observe(now);
        }
        if !self.limit.start_thread(state) {
            // Without the thread the upload could wait without end.
            if let Some(upload) = state.uploads.get_mut(&self.number) {
                upload.waiting_since = None;
            }
            state.waiting -= 1;
            self.status.store(Status::Rejected as u8, Ordering::Release);
        }
        self.status()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let shared = &*self.limit.shared;
        let mut state = lock(&shared.state);
        let Some(upload) = state.uploads.remove(&self.number) else { return };
        state.waiting -= usize::from(upload.waiting_since.is_some());
        state.release(upload.bytes, upload.is_small);
        state.resume(shared.bytes_max);
        if state.waiting == 0 && state.has_thread {
            shared.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#loop::{ConnId, Remote, lock};

    fn id() -> ExchangeId {
        ExchangeId { remote: Remote::detached(), connection: ConnId::detached(0) }
    }

    /// A limit of 7 MiB in addition to a reserve of 1 MiB, with a wait that no test reaches.
    fn limit() -> BufferLimit {
        BufferLimit::new(8 << 20).wait(Duration::from_secs(3600))
    }

    #[test]
    fn uploads_wait_at_the_limit_and_resume_in_order() {
        let limit = limit();
        let large = limit.add(id());
        assert_eq!(large.set(7 << 20, 0), Status::Running);
        let (first, second) = (limit.add(id()), limit.add(id()));
        assert_eq!((first.set(20_000, 0), second.set(20_000, 0)), (Status::Waiting, Status::Waiting));
        let small: Vec<Lease> = (0..64).map(|_| limit.add(id())).collect();
        assert!(small.iter().all(|lease| lease.set(SMALL_BYTES, 0) == Status::Running), "served from the reserve");
        assert_eq!(limit.add(id()).set(SMALL_BYTES, 0), Status::Waiting, "the reserve is used up");
        drop(large);
        assert_eq!((first.status(), second.status()), (Status::Running, Status::Running));
        drop((first, second, small));
        let state = lock(&limit.shared.state);
        assert_eq!((state.used, state.reserve_used, state.waiting, state.uploads.len()), (0, 0, 0, 0));
    }

    #[test]
    fn far_above_the_limit_uploads_are_rejected_at_once() {
        let limit = limit();
        let leases: Vec<(Lease, Status)> = (0..200)
            .map(|_| {
                let lease = limit.add(id());
                let status = lease.set(64 * 1024, 0);
                (lease, status)
            })
            .collect();
        let count = |wanted: Status| leases.iter().filter(|(_, status)| *status == wanted).count();
        assert_eq!(count(Status::Running), 112);
        assert!(count(Status::Rejected) > 60, "{} rejected", count(Status::Rejected));
    }

    #[test]
    fn the_upload_with_the_least_progress_is_rejected() {
        let limit = limit();
        let leases: Vec<Lease> = (0..4).map(|_| limit.add(id())).collect();
        for lease in &leases {
            assert_eq!(lease.set(7 << 18, 0), Status::Running);
        }
        let newcomer = limit.add(id());
        assert_eq!(newcomer.set(20_000, 0), Status::Waiting);
        for (at, received) in [1000, 10, 2000, 3000].into_iter().enumerate() {
            leases[at].set(7 << 18, received);
        }
        lock(&limit.shared.state).reject_slowest(Duration::ZERO, 1 << 20);
        let statuses: Vec<Status> = leases.iter().map(Lease::status).collect();
        assert_eq!(statuses, [Status::Running, Status::Rejected, Status::Running, Status::Running]);
        assert_eq!(newcomer.status(), Status::Waiting);
        drop(leases);
        assert_eq!(newcomer.status(), Status::Running);
    }

    #[test]
    fn an_upload_that_exceeds_the_limit_alone_is_rejected_after_the_wait() {
        let limit = BufferLimit::new(1 << 20).wait(Duration::from_millis(10));
        let lease = limit.add(id());
        assert_eq!(lease.set(1 << 20, 0), Status::Waiting);
        while lease.status() == Status::Waiting {
            thread::yield_now();
        }
        assert_eq!(lease.status(), Status::Rejected);
    }
}
