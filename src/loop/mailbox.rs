//! The channel into a loop from other threads: messages, closures, drain and stop commands.
//!
//! Sending a message holds a lock for one push; the loop takes all messages at once. The waker is called once per batch
//! rather than once per message, and a turn without messages costs one relaxed load.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use super::schedule::Task;
use super::table::ConnId;

const RUN: u8 = 0;
const DRAIN: u8 = 1;
const STOP: u8 = 2;

const ROOM_WANTED: u8 = 1;
const ROOM_MADE: u8 = 2;

/// The run state requested by other threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Run,
    Drain,
    Stop,
}

/// The part of a mailbox that does not depend on the message type: wakes the loop and passes commands and closures.
pub(super) struct LoopWaker {
    command: AtomicU8,
    /// The shortest limit of [`Handle::drain_within`](super::Handle::drain_within) in milliseconds that the loop has not
    /// taken yet; `u64::MAX` for none.
    drain_limit_ms: AtomicU64,
    /// `ROOM_WANTED` and `ROOM_MADE` bits of [`LoopWaker::take_room`].
    room: AtomicU8,
    notified: AtomicBool,
    tasks: Mutex<Vec<Task>>,
    /// Connections whose file read-ahead has finished.
    readahead_done: Mutex<Vec<ConnId>>,
    waker: Waker,
}

impl LoopWaker {
    pub(super) fn new(waker: Waker) -> Arc<Self> {
        Arc::new(LoopWaker {
            command: AtomicU8::new(RUN),
            drain_limit_ms: AtomicU64::new(u64::MAX),
            room: AtomicU8::new(0),
            notified: AtomicBool::new(false),
            tasks: Mutex::new(Vec::new()),
            readahead_done: Mutex::default(),
            waker,
        })
    }

    /// Wakes the loop, unless a wake-up is already pending.
    fn notify(&self) {
        if !self.notified.swap(true, Ordering::SeqCst) {
            self.waker.wake_by_ref();
        }
    }

    /// Returns whether a wake-up is pending, and clears it.
    pub(super) fn take_notified(&self) -> bool {
        self.notified.load(Ordering::Relaxed) && self.notified.swap(false, Ordering::SeqCst)
    }

    pub(super) fn command(&self) -> Command {
        match self.command.load(Ordering::SeqCst) {
            RUN => Command::Run,
            DRAIN => Command::Drain,
            _ => Command::Stop,
        }
    }

    /// Sends a command. Commands only escalate: a drain after a stop has no effect.
    pub(super) fn send(&self, command: u8) {
        self.command.fetch_max(command, Ordering::SeqCst);
        self.notify();
    }

    pub(super) fn drain(&self) {
        self.send(DRAIN);
    }

    /// Starts a drain with a limit, or shortens one in progress.
    pub(super) fn drain_within(&self, limit: Duration) {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).min(u64::MAX - 1);
        self.drain_limit_ms.fetch_min(limit_ms, Ordering::SeqCst);
        self.drain();
    }

    /// Takes the shortest limit passed to [`LoopWaker::drain_within`] since the last call.
    pub(super) fn take_drain_limit(&self) -> Option<Duration> {
        let limit_ms = self.drain_limit_ms.swap(u64::MAX, Ordering::SeqCst);
        (limit_ms != u64::MAX).then(|| Duration::from_millis(limit_ms))
    }

    pub(super) fn stop(&self) {
        self.send(STOP);
    }

    /// Asks the loop to close an idle connection for another loop.
    pub(super) fn want_room(&self) {
        self.room.fetch_or(ROOM_WANTED, Ordering::SeqCst);
        self.notify();
    }

    /// Reports that another loop has closed a connection for this one.
    pub(super) fn room_made(&self) {
        self.room.fetch_or(ROOM_MADE, Ordering::SeqCst);
        self.notify();
    }

    /// Returns whether another loop wants an idle connection to be closed, and whether another loop has closed one for
    /// this loop; clears both.
    pub(super) fn take_room(&self) -> (bool, bool) {
        if self.room.load(Ordering::Relaxed) == 0 {
            return (false, false);
        }
        let bits = self.room.swap(0, Ordering::SeqCst);
        (bits & ROOM_WANTED != 0, bits & ROOM_MADE != 0)
    }

    pub(super) fn wake(&self) {
        self.notify();
    }

    /// Adds a closure for the loop to call.
    pub(super) fn add_task(&self, task: Task) {
        lock(&self.tasks).push(task);
        self.notify();
    }

    /// Reports that the file read-ahead for a connection has finished.
    pub(super) fn readahead_done(&self, id: ConnId) {
        lock(&self.readahead_done).push(id);
        self.notify();
    }

    /// Takes the connections whose read-ahead has finished since the last call.
    pub(super) fn take_readahead_done(&self) -> Vec<ConnId> {
        std::mem::take(&mut *lock(&self.readahead_done))
    }

    /// Takes the closures added since the last call.
    pub(super) fn take_tasks(&self) -> Vec<Task> {
        std::mem::take(&mut *lock(&self.tasks))
    }
}

/// Locks `mutex`, ignoring poisoning: a thread that panicked during a push leaves the vector intact.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The mailbox of a loop with messages of type `M`.
pub(super) struct Mailbox<M> {
    messages: Mutex<Vec<(ConnId, M)>>,
    pub(super) waker: Arc<LoopWaker>,
}

impl<M> Mailbox<M> {
    pub(super) fn new(waker: Arc<LoopWaker>) -> Arc<Self> {
        Arc::new(Mailbox { messages: Mutex::new(Vec::new()), waker })
    }

    pub(super) fn send(&self, to: ConnId, message: M) {
        lock(&self.messages).push((to, message));
        self.waker.notify();
    }

    /// Moves all messages to `into`.
    pub(super) fn collect(&self, into: &mut Vec<(ConnId, M)>) {
        into.append(&mut lock(&self.messages));
    }
}
