//! The one door into a loop from other threads: letters, drain and stop.
//!
//! A letter takes a lock for the length of a push; the loop takes the whole batch at once. The waker is
//! called once per batch, not once per letter, and the hot path of a loop nobody writes to costs one
//! relaxed load.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use super::app::ConnId;

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
    waker: Waker,
}

impl Bell {
    pub(super) fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Bell { order: AtomicU8::new(RUN), rung: AtomicBool::new(false), waker })
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
        // A poisoned lock only means that some thread panicked while it pushed; the vector is sound.
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).push((to, letter));
        self.bell.ring();
    }

    /// Appends everything that came to `into`.
    pub(super) fn collect(&self, into: &mut Vec<(ConnId, L)>) {
        into.append(&mut self.letters.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
