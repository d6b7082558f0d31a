//! Runs the connections that can make progress: those with events, then those in the run queue.
//!
//! An application panic closes the connection for which it was called, and no other.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::after_step::restart_timer_if_quiescent;
use super::{EventLoop, LISTENER_TOKEN_BASE};
use crate::r#loop::app::{App, ConnId};
use crate::r#loop::connection::{Connection, LoopContext, Outcome};
use crate::r#loop::listener::ManagedListener;
use crate::r#loop::readiness::{Event, Readiness};
use crate::r#loop::table::Table;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Runs one step of every connection with events or in the run queue. A single `catch_unwind` covers all of them
    /// until one panics.
    #[inline(never)]
    pub(super) fn drive(&mut self) {
        while self.cursor.0 < self.events.len() + self.ready.len() {
            if catch_unwind(AssertUnwindSafe(|| self.drive_guarded())).is_err() {
                self.close_after_panic(self.cursor.1);
            }
        }
        // Connections with more to do are in `next` by now, so that the others get their turn first.
        self.events.clear();
        self.ready.clear();
        self.cursor.0 = 0;
    }

    #[inline]
    fn drive_guarded(&mut self) {
        loop {
            let at = self.cursor.0;
            let found = if let Some(event) = self.events.get(at) {
                record_event(&mut self.table, &mut self.listeners, event, &mut self.wakeup_dirty)
            } else if let Some(&id) = self.ready.get(at - self.events.len()) {
                self.table.get_mut(id).map(|connection| (id, connection))
            } else {
                return;
            };
            self.cursor.0 = at + 1;
            let Some((id, connection)) = found else { continue };
            self.cursor.1 = id;
            connection.queued = false;
            let outcome = connection.step(id, &mut self.context, &mut self.buffer);
            if !restart_timer_if_quiescent(&outcome, connection, id, &mut self.timers, self.context.now_ms) {
                self.after_step(id, outcome);
            }
        }
    }

    /// Runs `work` on one connection and applies its outcome. A panic closes that connection only.
    pub(super) fn with_connection(
        &mut self,
        id: ConnId,
        work: impl FnOnce(&mut Connection<B::Stream, A::State>, &mut LoopContext<A>, &mut [u8]) -> Outcome,
    ) {
        let run = || {
            let Some(connection) = self.table.get_mut(id) else {
                return;
            };
            let outcome = work(connection, &mut self.context, &mut self.buffer);
            if !restart_timer_if_quiescent(&outcome, connection, id, &mut self.timers, self.context.now_ms) {
                self.after_step(id, outcome);
            }
        };
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            self.close_after_panic(id);
        }
    }
}

/// Records the readiness that the backend reported. Returns the connection, unless it is in the run queue already.
#[inline]
fn record_event<'a, B: Readiness, T>(
    table: &'a mut Table<Connection<B::Stream, T>>,
    listeners: &mut [ManagedListener<B>],
    event: &Event,
    wakeup_dirty: &mut bool,
) -> Option<(ConnId, &'a mut Connection<B::Stream, T>)> {
    if let Some((id, connection)) = table.resolve(event.token) {
        connection.readable |= event.readable;
        connection.writable |= event.writable;
        connection.hangup |= event.hangup;
        return (!connection.queued).then_some((id, connection));
    }
    if let Some(listener) = listeners.get_mut(LISTENER_TOKEN_BASE.wrapping_sub(event.token.0)) {
        listener.mark_ready();
        *wakeup_dirty = true;
    }
    None
}
