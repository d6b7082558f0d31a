//! The way back from other threads to one exchange of one connection.
//!
//! What is answered later, pushed or read elsewhere is shared between the loop and other threads, and each has a
//! [`Link`]. It is bound when the exchange begins and cut when it ends; a nudge posts a letter that says no more than:
//! look. Nudges are not repeated until the loop has looked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::r#loop::{ConnId, Remote};

/// A letter to a connection: something changed for the exchange under way, look.
#[derive(Clone, Copy, Debug)]
pub struct Nudge(());

type Call = Box<dyn FnOnce() + Send>;

/// Where an exchange can be reached.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) remote: Remote<Nudge>,
    pub(super) id: ConnId,
}

#[derive(Default)]
struct State {
    place: Option<Place>,
    nudged: bool,
    closed: bool,
    draining: bool,
    on_closed: Vec<Call>,
    on_drain: Vec<Call>,
}

#[derive(Default)]
pub(super) struct Link {
    state: Mutex<State>,
}

/// A poisoned lock only means that a thread panicked; what it guards here is sound at every step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls what users gave, one after the other; a panic costs only the one call.
fn call_all(calls: Vec<Call>) {
    for call in calls {
        if catch_unwind(AssertUnwindSafe(call)).is_err() {
            log::error!("a closure that was to hear of a connection's end, or of the drain, panicked");
        }
    }
}

impl Link {
    /// The exchange began. Whatever happened before is looked at by the caller.
    pub(super) fn bind(&self, place: Place, draining: bool) {
        {
            let mut state = lock(&self.state);
            state.nudged = false;
            state.place = Some(place);
        }
        if draining {
            self.drain();
        }
    }

    /// Something changed that the loop has to look at.
    pub(super) fn nudge(&self) {
        let mut state = lock(&self.state);
        if let (Some(place), false) = (&state.place, state.nudged) {
            place.remote.post(place.id, Nudge(()));
            state.nudged = true;
        }
    }

    /// The loop looks; later changes want another nudge.
    pub(super) fn answer(&self) {
        lock(&self.state).nudged = false;
    }

    /// The exchange is over as it should be.
    pub(super) fn release(&self) {
        drop(self.cut());
    }

    /// Ends the exchange. What is returned holds closures of the user's, whose drops may do anything: not under the lock.
    fn cut(&self) -> State {
        let mut state = lock(&self.state);
        let draining = state.draining;
        std::mem::replace(&mut *state, State { closed: true, draining, ..State::default() })
    }

    /// The exchange is over too early: the connection ended, or the request turned out to be at fault.
    pub(super) fn close(&self) {
        let State { on_closed, .. } = self.cut();
        call_all(on_closed);
    }

    /// The loop began to drain.
    pub(super) fn drain(&self) {
        let calls = {
            let mut state = lock(&self.state);
            state.draining = true;
            std::mem::take(&mut state.on_drain)
        };
        call_all(calls);
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    pub(super) fn is_draining(&self) -> bool {
        lock(&self.state).draining
    }

    /// Calls at the early end of the exchange; at once if that is past.
    pub(super) fn on_closed(&self, call: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.state);
        if !state.closed {
            state.on_closed.push(Box::new(call));
            return;
        }
        drop(state);
        call_all(vec![Box::new(call)]);
    }

    /// Calls when the loop begins to drain; at once if it does; never once the exchange is over.
    pub(super) fn on_drain(&self, call: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.state);
        if state.closed && !state.draining {
            return;
        }
        if !state.draining {
            state.on_drain.push(Box::new(call));
            return;
        }
        drop(state);
        call_all(vec![Box::new(call)]);
    }
}
