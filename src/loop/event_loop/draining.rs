//! Ends the loop: at once, or by a graceful shutdown (drain), which accepts queued connections and finishes in-flight
//! requests.

use std::time::Duration;

use super::EventLoop;
use crate::r#loop::app::{App, CloseReason};
use crate::r#loop::connection::{Outcome, Stage};
use crate::r#loop::mailbox::Command;
use crate::r#loop::readiness::Readiness;
use crate::r#loop::timers::Timers;

/// During a graceful shutdown, idle and silent connections stay open this long, for a request already in transit.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// If new handshakes can be blocked, the listeners stay open this long (a few round trips) for handshakes in progress.
const DRAIN_ACCEPT_MS: u64 = 100;

/// Attempts to drain a failing listener once no connection is left that could free resources.
const CLOSE_ATTEMPTS_MAX: u32 = 10;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Applies drain and stop commands of a [`Handle`](crate::Handle). Returns whether everything was closed.
    #[inline]
    pub(super) fn apply_commands(&mut self) -> bool {
        let command = self.mailbox.waker.command();
        if command == Command::Run && self.drain_deadline_ms.is_none() {
            return false;
        }
        self.wakeup_dirty = true;
        self.apply(command)
    }

    fn apply(&mut self, command: Command) -> bool {
        let timed_out = self.drain_deadline_ms.is_some_and(|deadline| deadline <= self.context.now_ms);
        if timed_out && self.table.len() > 0 {
            log::warn!("graceful shutdown timed out; closing {} connections", self.table.len());
        }
        if command == Command::Stop || timed_out {
            self.close_all();
            return true;
        }
        if command == Command::Drain && self.drain_deadline_ms.is_none() {
            self.start_drain();
        } else if self.drain_deadline_ms.is_some() {
            self.close_listeners();
        }
        false
    }

    /// Starts a graceful shutdown: blocks new handshakes, accepts queued connections, then closes the listeners.
    ///
    /// A handshake in progress belongs to the listener that received its SYN, even if several loops listen on the same
    /// port, and is reset when that listener closes. If the system can block new handshakes, the listeners therefore
    /// stay open for a few more round trips.
    fn start_drain(&mut self) {
        // The command may have arrived late in a long turn.
        self.clock.tick(&self.backend, &mut self.context);
        let limit_ms = u64::try_from(self.context.limits.drain.as_millis()).unwrap_or(u64::MAX);
        // The clock is truncated to milliseconds; an extra millisecond keeps the deadline from being early.
        self.drain_deadline_ms = Some(self.context.now_ms.saturating_add(limit_ms).saturating_add(1));
        self.context.draining = true;
        let mut can_block = true;
        for listener in &mut self.listeners {
            can_block &= listener.stop_new_connections();
        }
        self.close_listeners_at_ms = Some(self.context.now_ms + if can_block { DRAIN_ACCEPT_MS } else { 0 });
        self.accept(usize::MAX);
        self.close_listeners();
        self.timeouts.idle = Some(self.timeouts.idle.map_or(DRAIN_GRACE, |limit| limit.min(DRAIN_GRACE)));
        self.timeouts.silent = Some(self.timeouts.silent.map_or(DRAIN_GRACE, |limit| limit.min(DRAIN_GRACE)));
        self.timers = Timers::new(&self.timeouts);
        for id in self.table.ids() {
            self.with_connection(id, |connection, context, _| {
                if !matches!(connection.stage, Stage::Reading | Stage::Paused | Stage::Yielded) {
                    return Outcome::Open;
                }
                let yielded = connection.stage == Stage::Yielded;
                connection.call(context, id, &[], App::drain);
                if yielded && connection.stage == Stage::Reading {
                    // There is buffered input that was not delivered in this call.
                    connection.stage = Stage::Yielded;
                }
                if matches!(connection.stage, Stage::Closing { .. }) {
                    connection.set_close_reason(CloseReason::Drain);
                }
                connection.finish(context)
            });
        }
    }

    /// Closes the listeners whose accept queues are empty; the others are retried later.
    fn close_listeners(&mut self) {
        if self.close_listeners_at_ms.is_none_or(|at_ms| self.context.now_ms < at_ms) {
            return;
        }
        self.close_attempts += 1;
        let mut index = 0;
        while index < self.listeners.len() {
            let was_empty = self.listeners[index].is_empty();
            self.listeners[index].mark_ready();
            if self.listeners[index].due_ms() <= self.context.now_ms {
                self.accept_from(index, usize::MAX);
            }
            // Accepting can fail for lack of descriptors or memory; retry while open connections may free some.
            let give_up = self.table.len() == 0 && self.close_attempts > CLOSE_ATTEMPTS_MAX;
            if was_empty || self.listeners[index].is_empty() || give_up {
                self.listeners.swap_remove(index).close(&mut self.backend);
            } else {
                index += 1;
            }
        }
        self.close_listeners_at_ms = (!self.listeners.is_empty()).then_some(self.context.now_ms + DRAIN_ACCEPT_MS);
    }

    /// Closes everything at once.
    fn close_all(&mut self) {
        for listener in self.listeners.drain(..) {
            listener.close(&mut self.backend);
        }
        for id in self.table.ids() {
            self.close_connection(id, CloseReason::Drain);
        }
    }

    /// Returns whether a graceful shutdown is complete: no listener and no connection is open.
    pub(super) fn is_drained(&self) -> bool {
        self.drain_deadline_ms.is_some() && self.listeners.is_empty() && self.table.len() == 0
    }
}
