//! Lets other threads wake the loop for one exchange.
//!
//! Deferred responses, channel bodies and body readers share state between the loop and other threads; each contains an
//! [`ExchangeHandle`]. It is attached when the exchange begins and detached when it ends. A [`Wakeup`] carries no data:
//! it makes the loop check the shared state. At most one is pending per exchange.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use crate::r#loop::{ConnId, Remote, lock};

/// A wake-up message to a connection: the state shared with its current exchange has changed.
#[derive(Clone, Copy, Debug)]
pub struct Wakeup(());

impl Wakeup {
    pub(super) fn new() -> Self {
        Wakeup(())
    }
}

type Call = Box<dyn FnOnce() + Send>;

/// Identifies an exchange to other threads: the connection, and the loop it runs on.
#[derive(Clone)]
pub(super) struct ExchangeId {
    pub(super) remote: Remote<Wakeup>,
    pub(super) connection: ConnId,
}

#[derive(Default)]
struct State {
    id: Option<ExchangeId>,
    /// A wake-up is pending.
    woken: bool,
    closed: bool,
    draining: bool,
    on_closed: Vec<Call>,
    on_drain: Vec<Call>,
}

/// The state of an exchange that other threads can query, and the means to wake its loop.
#[derive(Default)]
pub(super) struct ExchangeHandle {
    state: Mutex<State>,
}

/// Calls the user's callbacks in order. A panicking callback does not prevent the following ones.
fn call_all(calls: Vec<Call>) {
    for call in calls {
        if catch_unwind(AssertUnwindSafe(call)).is_err() {
            log::error!("on_closed or on_drain callback panicked");
        }
    }
}

impl ExchangeHandle {
    /// Attaches the handle when the exchange begins. The caller must then check for changes made earlier.
    pub(super) fn attach(&self, id: ExchangeId, draining: bool) {
        {
            let mut state = lock(&self.state);
            state.woken = false;
            state.id = Some(id);
        }
        if draining {
            self.drain();
        }
    }

    /// Wakes the loop to check the shared state, unless a wake-up is already pending.
    pub(super) fn wake(&self) {
        let mut state = lock(&self.state);
        if let (Some(id), false) = (&state.id, state.woken) {
            id.remote.send(id.connection, Wakeup::new());
            state.woken = true;
        }
    }

    /// Called before the loop checks the shared state: later changes need another wake-up.
    pub(super) fn clear_wakeup(&self) {
        lock(&self.state).woken = false;
    }

    /// Ends the exchange after it succeeded: `on_closed` callbacks are dropped without being called.
    pub(super) fn release(&self) {
        drop(self.detach());
    }

    /// Ends the exchange. Drop the returned state outside the lock: it holds user closures, whose destructors may run
    /// arbitrary code.
    fn detach(&self) -> State {
        let mut state = lock(&self.state);
        let draining = state.draining;
        std::mem::replace(&mut *state, State { closed: true, draining, ..State::default() })
    }

    /// Ends the exchange prematurely: the connection closed, or the request was found to be malformed.
    pub(super) fn close(&self) {
        let State { on_closed, .. } = self.detach();
        call_all(on_closed);
    }

    /// Reports that the work of other threads is no longer wanted, although the exchange goes on.
    pub(super) fn abandon(&self) {
        let calls = {
            let mut state = lock(&self.state);
            state.closed = true;
            std::mem::take(&mut state.on_closed)
        };
        call_all(calls);
    }

    /// Called when the loop starts its graceful shutdown.
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

    /// Calls `call` if the exchange ends prematurely, or immediately if it already has.
    pub(super) fn on_closed(&self, call: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.state);
        if !state.closed {
            state.on_closed.push(Box::new(call));
            return;
        }
        drop(state);
        call_all(vec![Box::new(call)]);
    }

    /// Calls `call` when the graceful shutdown starts, or immediately if it already has. Not called if the exchange
    /// ends first.
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
