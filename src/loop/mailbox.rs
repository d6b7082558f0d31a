//! The one door into a loop from other threads: letters, closures, drain and stop.
//!
//! A letter takes a lock for the length of a push; the loop takes the whole batch at once. The waker is
//! called once per batch, not once per letter, and the hot path of a loop nobody writes to costs one
//! relaxed load.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::app::ConnId;
use super::schedule::Task;

const RUN: u8 = 0;
const DRAIN: u8 = 1;
const STOP: u8 = 2;

/// What a loop is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Run,
    Drain,
    Stop,
}

/// The part of the door that knows nothing of letters.
pub(super) struct Bell {
    order: AtomicU8,
    rung: AtomicBool,
    tasks: Mutex<Vec<Task>>,
    /// Connections whose files were read.
    warmed: Mutex<Vec<ConnId>>,
    waker: Waker,
}

impl Bell {
    pub(super) fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Bell {
            order: AtomicU8::new(RUN),
            rung: AtomicBool::new(false),
            tasks: Mutex::new(Vec::new()),
            warmed: Mutex::default(),
            waker,
        })
    }

    /// Wakes the loop, unless that was done already since it last looked.
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            self.waker.wake_by_ref();
        }
    }

    /// Whether somebody rang since the last call.
    pub(super) fn answer(&self) -> bool {
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::SeqCst)
    }

    pub(super) fn order(&self) -> Order {
        match self.order.load(Ordering::SeqCst) {
            RUN => Order::Run,
            DRAIN => Order::Drain,
            _ => Order::Stop,
        }
    }

    /// Orders only get stronger: a drain after a stop changes nothing.
    pub(super) fn command(&self, order: u8) {
        self.order.fetch_max(order, Ordering::SeqCst);
        self.ring();
    }

    pub(super) fn drain(&self) {
        self.command(DRAIN);
    }

    pub(super) fn stop(&self) {
        self.command(STOP);
    }

    pub(super) fn wake(&self) {
        self.ring();
    }

    /// Hands a closure to the loop.
    pub(super) fn give(&self, task: Task) {
        lock(&self.tasks).push(task);
        self.ring();
    }

    /// What a connection wants to send was read from its disk.
    pub(super) fn warm(&self, id: ConnId) {
        lock(&self.warmed).push(id);
        self.ring();
    }

    /// The connections that were told of in this way since the last call.
    pub(super) fn warmed(&self) -> Vec<ConnId> {
        std::mem::take(&mut *lock(&self.warmed))
    }

    /// The closures that were given since the last call.
    pub(super) fn tasks(&self) -> Vec<Task> {
        std::mem::take(&mut *lock(&self.tasks))
    }
}

/// A poisoned lock only means that some thread panicked while it pushed; the vector is sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The door of a loop whose letters are `L`.
pub(super) struct Mailbox<L> {
    letters: Mutex<Vec<(ConnId, L)>>,
    pub(super) bell: Arc<Bell>,
}

impl<L> Mailbox<L> {
    pub(super) fn new(bell: Arc<Bell>) -> Arc<Self> {
        Arc::new(Mailbox { letters: Mutex::new(Vec::new()), bell })
    }

    pub(super) fn post(&self, to: ConnId, letter: L) {
        lock(&self.letters).push((to, letter));
        self.bell.ring();
    }

    /// Appends everything that came to `into`.
    pub(super) fn collect(&self, into: &mut Vec<(ConnId, L)>) {
        into.append(&mut lock(&self.letters));
    }
}
