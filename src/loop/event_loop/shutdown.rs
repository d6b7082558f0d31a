//! Ends the loop: at once, or by a graceful shutdown (drain), which accepts queued connections and finishes in-flight
//! requests.
//!
//! A function `NAME_outlined` is the rare part of `NAME`, or `NAME` itself out of line; it exists only for code layout:
//! `NAME` is inlined into the hot path and has to stay small there.

use std::time::Duration;

use super::EventLoop;
use crate::r#loop::app::{App, CloseReason};
use crate::r#loop::connection::{Life, Outcome, Stage};
use crate::r#loop::mailbox::Command;
use crate::r#loop::readiness::Readiness;
use crate::r#loop::timers::Timers;

/// During a graceful shutdown, idle and silent connections stay open this long, for a request already in transit.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Applies drain and stop commands of a [`Handle`](crate::Handle). Returns whether everything was closed.
    #[inline]
    pub(super) fn apply_commands(&mut self) -> bool {
        let command = self.mailbox.waker.command();
        if command == Command::Run && !self.context.life.is_draining() {
            return false;
        }
        self.wakeup_dirty = true;
        self.apply_commands_outlined(command)
    }

    fn apply_commands_outlined(&mut self, command: Command) -> bool {
        let timed_out = self.context.life.deadline_ms() <= self.context.now_ms;
        if timed_out && self.table.len() > 0 {
            log::warn!("graceful shutdown timed out; closing {} connections", self.table.len());
        }
        if command == Command::Stop || timed_out {
            self.close_all();
            return true;
        }
        if self.context.life.is_draining() {
            self.close_listeners();
        } else if command == Command::Drain {
            self.start_drain();
        }
        false
    }

    /// Starts a graceful shutdown: blocks new handshakes, accepts queued connections, then closes the listeners and
    /// drains the connections.
    fn start_drain(&mut self) {
        // The command may have arrived late in a long turn.
        self.clock.tick(&self.backend, &mut self.context);
        let limit_ms = u64::try_from(self.context.limits.drain.as_millis()).unwrap_or(u64::MAX);
        // The clock is truncated to milliseconds; an extra millisecond keeps the deadline from being early.
        let deadline_ms = self.context.now_ms.saturating_add(limit_ms).saturating_add(1);
        self.context.life = Life::Draining { deadline_ms };
        self.listeners.start_closing(self.context.now_ms);
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

    /// Closes the listeners whose accept queues are empty, if that is due; the others are retried later.
    fn close_listeners(&mut self) {
        if self.listeners.begin_close_attempt(self.context.now_ms) {
            self.accept(usize::MAX);
            let may_give_up = self.table.len() == 0;
            self.listeners.end_close_attempt(&mut self.backend, self.context.now_ms, may_give_up);
        }
    }

    /// Closes everything at once.
    fn close_all(&mut self) {
        self.listeners.close_all(&mut self.backend);
        for id in self.table.ids() {
            self.close_connection(id, CloseReason::Drain);
        }
    }

    /// Returns whether a graceful shutdown is complete: no listener and no connection is open.
    pub(super) fn is_drained(&self) -> bool {
        self.context.life.is_draining() && self.listeners.is_empty() && self.table.len() == 0
    }
}
