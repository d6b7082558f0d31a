//! Ends the loop: at once, or by a graceful shutdown (drain), which accepts queued connections and finishes in-flight
//! requests.

use std::time::Duration;

use super::EventLoop;
use crate::r#loop::app::{App, CloseReason};
use crate::r#loop::connection::{Life, Outcome, Stage};
use crate::r#loop::listener::is_public;
use crate::r#loop::poller::Command;
use crate::r#loop::readiness::{Readiness, Stream};
use crate::r#loop::std_ext::{drop_each, millis};

/// During a graceful shutdown, idle and silent connections stay open this long, for a request already in transit.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// Connections whose addresses are examined for one from a public network, which takes a system call each.
const PEERS_EXAMINED_MAX: usize = 4096;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Applies drain and stop commands of a [`Handle`](crate::Handle). Returns whether everything was closed.
    #[cold]
    pub(super) fn apply_commands(&mut self) -> bool {
        let command = self.mailbox.waker.command();
        if command == Command::Run && !self.context.life.is_draining() {
            return false;
        }
        self.wakeup_dirty = true;
        let timed_out = self.context.life.deadline_ms() <= self.context.now_ms;
        if timed_out && self.table.len() > 0 {
            log::warn!("graceful shutdown timed out; closing {} connections", self.table.len());
        }
        if command == Command::Stop || timed_out {
            self.close_all();
            return true;
        }
        let limit = self.mailbox.waker.take_drain_limit();
        if self.context.life.is_draining() {
            if let Some(limit) = limit {
                self.shorten_drain(limit);
            }
            self.close_listeners();
        } else if command == Command::Drain {
            self.start_drain(limit);
        }
        false
    }

    /// Starts a graceful shutdown: blocks new handshakes, accepts queued connections, then closes the listeners and
    /// drains the connections. With a `limit`, it takes at most that long and idle connections get no grace period.
    fn start_drain(&mut self, limit: Option<Duration>) {
        // The command may have arrived late in a long turn.
        self.clock.tick(self.backend.now(), &self.backend, &mut self.context);
        let deadline_ms = self.drain_deadline_ms(limit.unwrap_or(self.context.limits.drain));
        self.context.life = Life::Draining { deadline_ms };
        let can_block = self.listeners.start_closing();
        self.accept(usize::MAX);
        // Otherwise the listeners close at once.
        let has_public_peers = can_block && self.has_public_peers();
        self.listeners.schedule_close(self.context.now_ms, has_public_peers);
        self.close_listeners();
        self.limit_idle_time(if limit.is_some() { Duration::ZERO } else { DRAIN_GRACE });
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

    /// Shortens a graceful shutdown in progress: it ends within `limit`, and idle connections are closed at once.
    fn shorten_drain(&mut self, limit: Duration) {
        let deadline_ms = self.drain_deadline_ms(limit).min(self.context.life.deadline_ms());
        self.context.life = Life::Draining { deadline_ms };
        self.limit_idle_time(Duration::ZERO);
        for id in self.table.ids() {
            self.with_connection(id, |_, _, _| Outcome::Open);
        }
    }

    /// The clock is truncated to milliseconds; an extra millisecond keeps the deadline from being early.
    fn drain_deadline_ms(&self, limit: Duration) -> u64 {
        let limit_ms = millis(limit);
        self.context.now_ms.saturating_add(limit_ms).saturating_add(1)
    }

    /// Limits the time that idle and silent connections stay open; their timers stop. The caller updates all
    /// connections, which starts those timers again. All other timers run on.
    fn limit_idle_time(&mut self, limit: Duration) {
        for timeout in [&mut self.timeouts.idle, &mut self.timeouts.silent, &mut self.timeouts.handshake] {
            *timeout = Some(timeout.map_or(limit, |current| current.min(limit)));
        }
        self.timers.change_limits(&self.timeouts);
    }

    /// Returns whether a connection from a public address is open. Examines at most [`PEERS_EXAMINED_MAX`] connections.
    fn has_public_peers(&mut self) -> bool {
        self.table.ids().into_iter().take(PEERS_EXAMINED_MAX).any(|id| {
            let peer = self.table.get_mut(id).and_then(|connection| connection.stream.peer().ok());
            peer.is_some_and(is_public)
        })
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
    pub(super) fn close_all(&mut self) {
        self.listeners.close_all(&mut self.backend);
        for id in self.table.ids() {
            self.close_connection(id, CloseReason::Drain);
        }
    }

    /// Returns whether a graceful shutdown is complete: no listener and no connection is open.
    pub(super) fn is_drained(&self) -> bool {
        self.context.life.is_draining() && self.listeners.is_empty() && self.table.len() == 0
    }

    /// Ends the loop after everything was closed: drops the closures, messages and connects that are left. What is sent
    /// later is dropped at once.
    #[cold]
    pub(super) fn end(&mut self) {
        self.context.life = Life::Over;
        self.mailbox.end();
        self.schedule.clear();
        drop_each(self.context.messages.drain(..));
    }
}
