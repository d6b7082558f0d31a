//! Drives connections: runs the steps of those with events or in the run queue, delivers messages, and updates or closes
//! each connection afterwards.
//!
//! An application panic closes the connection for which it was called, and no other.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::EventLoop;
use crate::r#loop::app::{App, CloseInfo, CloseReason, Phase};
use crate::r#loop::connection::{Connection, LoopContext, Outcome, Registration, Stage};
use crate::r#loop::file_read;
use crate::r#loop::limits::Timeouts;
use crate::r#loop::listener::Listeners;
use crate::r#loop::readiness::{Event, Readiness, Stream};
use crate::r#loop::table::{ConnId, Table};
use crate::r#loop::timers::Timers;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Runs one step of every connection with events or in the run queue. A single `catch_unwind` covers all of them
    /// until one panics.
    #[inline(never)]
    pub(super) fn drive(&mut self) {
        while catch_unwind(AssertUnwindSafe(|| self.drive_guarded())).is_err() {
            if let Some(id) = self.last_driven() {
                self.close_after_panic(id);
            }
        }
        // Connections with more to do are in `next` by now, so that the others get their turn first.
        self.events.clear();
        self.ready.clear();
        self.cursor = 0;
    }

    #[inline]
    fn drive_guarded(&mut self) {
        while let Some(event) = self.events.get(self.cursor) {
            self.cursor += 1;
            if let Some((id, connection)) =
                record_event(&mut self.table, &mut self.listeners, event, &mut self.wakeup_dirty)
            {
                let step = connection.step(id, &mut self.context, &mut self.buffer);
                let timers = (&mut self.timers, &self.timeouts);
                match step {
                    None => update_quiescent(timers, connection, id, &self.context),
                    Some(outcome) => self.after_step(id, outcome),
                }
            }
        }
        while let Some(&id) = self.ready.get(self.cursor - self.events.len()) {
            self.cursor += 1;
            if let Some(connection) = self.table.get_mut(id) {
                connection.queued = false;
                let step = connection.step(id, &mut self.context, &mut self.buffer);
                let timers = (&mut self.timers, &self.timeouts);
                match step {
                    None => update_quiescent(timers, connection, id, &self.context),
                    Some(outcome) => self.after_step(id, outcome),
                }
            }
        }
    }

    /// Returns the connection of the last event or entry of the run queue that [`EventLoop::drive`] has processed.
    #[cold]
    fn last_driven(&mut self) -> Option<ConnId> {
        let last = self.cursor.checked_sub(1)?;
        match self.events.get(last) {
            Some(event) => self.table.resolve(event.token).map(|(id, _)| id),
            None => self.ready.get(last - self.events.len()).copied(),
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
            self.context.read_bytes = 0;
            let outcome = work(connection, &mut self.context, &mut self.buffer);
            if matches!(outcome, Outcome::Open) && connection.is_quiescent() {
                let timers = (&mut self.timers, &self.timeouts);
                update_quiescent(timers, connection, id, &self.context);
            } else {
                self.after_step(id, outcome);
            }
        };
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            self.close_after_panic(id);
        }
    }

    pub(super) fn after_step(&mut self, id: ConnId, outcome: Outcome) {
        match outcome {
            Outcome::Closed(reason) => self.close_connection(id, reason),
            Outcome::Open => {
                if let Err(error) = self.update_registration(id) {
                    self.close_connection(id, CloseReason::Error(error));
                }
            }
        }
    }

    /// Updates the backend registration, timer and run queue for an open connection that is not quiescent.
    fn update_registration(&mut self, id: ConnId) -> io::Result<()> {
        let Some(connection) = self.table.get_mut(id) else {
            return Ok(());
        };
        if let Some(readahead) = connection.take_readahead() {
            let waker = Arc::clone(&self.mailbox.waker);
            if !file_read::request(readahead, move || waker.readahead_done(id)) {
                connection.readahead_done();
            }
        }
        let wanted = connection.interest();
        match connection.registered.interest() {
            None => {
                self.context.counters.registrations += 1;
                self.backend.add(connection.stream.source(), id.token(), wanted)?;
                connection.registered = Registration::of(wanted);
            }
            Some(current) if current.write != wanted.write || (B::LEVEL_TRIGGERED && current.read != wanted.read) => {
                self.context.counters.registrations += 1;
                self.backend.set_interest(connection.stream.source(), id.token(), wanted)?;
                connection.registered = Registration::of(wanted);
            }
            Some(_) => {}
        }
        // If the limit on buffers is exceeded, some are dropped before the next poll.
        self.wakeup_dirty |= self.context.buffers.is_exceeded();
        let phase = connection.timed_phase();
        let now_ms = self.context.now_ms;
        if self.timers.enter(id.index, phase, connection.restart, now_ms) {
            let is_new = std::mem::take(&mut connection.restart);
            if phase.depends_on_progress() {
                connection.start_phase(phase, &self.timeouts, now_ms, is_new, self.context.read_bytes);
            }
        }
        if connection.is_unfinished() && !connection.queued {
            connection.queued = true;
            if connection.stream.is_handshaking() {
                self.handshakes.push_back(id);
            } else {
                self.next.push(id);
            }
        }
        Ok(())
    }

    /// Resets the connection for which the application panicked; other connections are not affected. State left
    /// inconsistent belongs to that connection, which is removed, or to the application itself.
    #[cold]
    pub(super) fn close_after_panic(&mut self, id: ConnId) {
        self.context.counters.panics += 1;
        log::error!("application panicked while serving {id:?}; resetting the connection");
        if let Some(connection) = self.table.get_mut(id) {
            connection.stream.abort();
        }
        self.close_connection(id, CloseReason::Panicked);
    }

    /// Closes a connection and releases its slot in the connection limit.
    pub(super) fn close_connection(&mut self, id: ConnId, reason: CloseReason) {
        self.context.scratch.clear();
        let Some(mut connection) = self.table.remove(id) else {
            return;
        };
        self.timers.cancel(id.index);
        self.context.buffers.set(&mut connection.counted, 0);
        if connection.registered != Registration::NONE
            && let Err(error) = self.backend.remove(connection.stream.source(), id.token())
        {
            log::warn!("cannot deregister a connection: {error}");
        }
        self.context.counters.closes += 1;
        log::debug!("closed {id:?}: {reason:?}");
        let Connection { mut stream, state, pending, .. } = connection;
        let info = CloseInfo {
            reason,
            unsent_bytes: pending.map_or(0, |output| output.len() as u64) + stream.unsent_bytes() as u64,
            unix_time: self.context.unix_time,
            now: Duration::from_millis(self.context.now_ms),
        };
        if catch_unwind(AssertUnwindSafe(|| self.context.app.closed(id, state, info))).is_err() {
            self.context.counters.panics += 1;
            log::error!("application panicked in its closed callback for {id:?}");
        }
        drop(stream);
        self.connection_limit.release();
        if let Some(address) = self.addresses.take(id.index) {
            self.connection_limit.release_address(address);
        }
        self.listeners.on_capacity_freed();
        self.wakeup_dirty = true;
    }

    /// Takes messages, closures and read-ahead notifications from the mailbox, and delivers all pending messages. Returns
    /// whether another thread, or this one, has woken the loop.
    #[inline]
    pub(super) fn process_mailbox(&mut self) -> bool {
        let notified = self.mailbox.waker.take_notified();
        if notified || !self.context.messages.is_empty() {
            self.wakeup_dirty = true;
            let mut batch = std::mem::take(&mut self.message_batch);
            batch.append(&mut self.context.messages);
            if notified {
                self.mailbox.collect(&mut batch);
                self.schedule.extend(&mut self.mailbox.waker.take_tasks());
                self.exchange_room();
                for id in self.mailbox.waker.take_readahead_done() {
                    self.with_connection(id, |connection, context, buffer| {
                        connection.readahead_done();
                        connection.step_outlined(id, context, buffer)
                    });
                }
            }
            self.deliver_messages(batch);
        }
        notified
    }

    /// Calls [`App::end_of_turn`] and delivers the messages it sends.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub(super) fn end_turn(&mut self) {
        let (app, messages) = (&mut self.context.app, &mut self.context.messages);
        if catch_unwind(AssertUnwindSafe(|| app.end_of_turn(messages))).is_err() {
            self.context.counters.panics += 1;
            log::error!("application panicked in its end_of_turn callback");
        }
        let closes = self.context.counters.closes;
        if !self.context.messages.is_empty() {
            let mut batch = std::mem::take(&mut self.message_batch);
            batch.append(&mut self.context.messages);
            self.deliver_messages(batch);
        }
        self.end_of_turn_pending = self.context.counters.closes != closes;
    }

    fn deliver_messages(&mut self, mut batch: Vec<(ConnId, A::Message)>) {
        for (id, message) in batch.drain(..) {
            self.with_connection(id, |connection, context, _| {
                if connection.is_closing() || connection.stage == Stage::Connecting {
                    return Outcome::Open;
                }
                connection.call(context, id, &[], |app, state, wire| app.message(state, message, wire));
                connection.finish(context)
            });
        }
        self.message_batch = batch;
    }
}

/// Records the readiness that the backend reported. Returns the connection, unless it is in the run queue already.
#[inline]
fn record_event<'a, B: Readiness, T>(
    table: &'a mut Table<Connection<B::Stream, T>>,
    listeners: &mut Listeners<B>,
    event: &Event,
    wakeup_dirty: &mut bool,
) -> Option<(ConnId, &'a mut Connection<B::Stream, T>)> {
    if let Some((id, connection)) = table.resolve(event.token) {
        connection.readable |= event.readable;
        connection.writable |= event.writable;
        connection.hangup |= event.hangup;
        return (!connection.queued).then_some((id, connection));
    }
    *wakeup_dirty |= listeners.mark_ready(event.token);
    None
}

/// Updates a quiescent connection, which needs only its timer; this is the common case.
#[inline]
fn update_quiescent<S: Stream, A: App>(
    (timers, timeouts): (&mut Timers, &Timeouts),
    connection: &mut Connection<S, A::State>,
    id: ConnId,
    context: &LoopContext<A>,
) {
    let phase = connection.phase;
    if timers.enter(id.index, phase, connection.restart, context.now_ms) {
        let is_new = std::mem::take(&mut connection.restart);
        if phase == Phase::Body {
            connection.start_phase(phase, timeouts, context.now_ms, is_new, context.read_bytes);
        }
    }
}
