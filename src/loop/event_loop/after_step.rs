//! Updates the interest, timer and run queue entry of a connection after a step. In the common case only the timer can
//! change.

use std::io;
use std::sync::Arc;

use super::EventLoop;
use crate::r#loop::app::{App, CloseReason, ConnId, Phase};
use crate::r#loop::connection::{Connection, Outcome};
use crate::r#loop::readahead;
use crate::r#loop::readiness::{Readiness, Stream};
use crate::r#loop::timers::Timers;

impl<B: Readiness, A: App> EventLoop<B, A> {
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
            if !readahead::request(readahead, move || waker.readahead_done(id)) {
                connection.readahead_done();
            }
        }
        let wanted = connection.interest();
        match connection.registered {
            None => {
                self.context.counters.registrations += 1;
                self.backend.add(connection.stream.source(), id.token(), wanted)?;
                connection.registered = Some(wanted);
            }
            Some(current) if current.write != wanted.write || (B::LEVEL_TRIGGERED && current.read != wanted.read) => {
                self.context.counters.registrations += 1;
                self.backend.set_interest(connection.stream.source(), id.token(), wanted)?;
                connection.registered = Some(wanted);
            }
            Some(_) => {}
        }
        let phase = connection.timed_phase();
        restart_timer(&mut self.timers, connection, id, phase, self.context.now_ms);
        if connection.is_unfinished() && !connection.queued {
            connection.queued = true;
            self.next.push(id);
        }
        Ok(())
    }
}

/// Updates a quiescent connection, which needs only its timer; this is the common case. Returns whether the connection
/// is quiescent.
#[inline]
pub(super) fn restart_timer_if_quiescent<S: Stream, T>(
    outcome: &Outcome,
    connection: &mut Connection<S, T>,
    id: ConnId,
    timers: &mut Timers,
    now_ms: u64,
) -> bool {
    let is_quiescent = matches!(outcome, Outcome::Open) && connection.is_quiescent();
    if is_quiescent {
        restart_timer(timers, connection, id, connection.phase, now_ms);
    }
    is_quiescent
}

/// Starts the phase timer if the phase has changed or a restart was requested.
#[inline]
fn restart_timer<S, T>(timers: &mut Timers, connection: &mut Connection<S, T>, id: ConnId, phase: Phase, now_ms: u64) {
    if timers.enter(id.index, phase, connection.restart, now_ms) {
        connection.restart = false;
        if phase == Phase::Body {
            connection.received = 0;
        }
    }
}
