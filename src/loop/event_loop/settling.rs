//! What follows a step of a connection: the backend and the timers are told what it needs, and whether it goes on in the
//! next turn. Almost always it needs nothing but its clock.

use std::io;
use std::sync::Arc;

use super::EventLoop;
use crate::r#loop::app::{App, Closed, ConnId, Phase};
use crate::r#loop::connection::{Connection, Outcome};
use crate::r#loop::read_ahead;
use crate::r#loop::readiness::{Readiness, Stream};
use crate::r#loop::timers::Timers;

impl<B: Readiness, A: App> EventLoop<B, A> {
    pub(super) fn conclude(&mut self, id: ConnId, outcome: Outcome) {
        match outcome {
            Outcome::Gone(closed) => self.bury(id, closed),
            Outcome::Stay => {
                if let Err(error) = self.settle(id) {
                    self.bury(id, Closed::Error(error));
                }
            }
        }
    }

    /// Tells backend, timers and the line what a living connection needs that is not at rest.
    fn settle(&mut self, id: ConnId) -> io::Result<()> {
        let Some(connection) = self.table.get_mut(id) else {
            return Ok(());
        };
        if let Some(cold) = connection.take_cold() {
            let bell = Arc::clone(&self.mailbox.bell);
            if !read_ahead::request(cold, move || bell.warm(id)) {
                connection.warmed();
            }
        }
        let wanted = connection.interest();
        match connection.registered {
            None => {
                self.lent.counters.registrations += 1;
                self.backend.add(connection.stream.source(), id.token(), wanted)?;
                connection.registered = Some(wanted);
            }
            Some(told) if told.write != wanted.write || (B::REPEATS && told.read != wanted.read) => {
                self.lent.counters.registrations += 1;
                self.backend.set_interest(connection.stream.source(), id.token(), wanted)?;
                connection.registered = Some(wanted);
            }
            Some(_) => {}
        }
        let phase = connection.clock();
        enter(&mut self.timers, connection, id, phase, self.lent.now_ms);
        if connection.is_unfinished() && !connection.queued {
            connection.queued = true;
            self.next.push(id);
        }
        Ok(())
    }
}

/// Whether there is nothing more to see to than the phase, as almost always.
#[inline]
pub(super) fn has_come_to_rest<S: Stream, T>(
    outcome: &Outcome,
    connection: &mut Connection<S, T>,
    id: ConnId,
    timers: &mut Timers,
    now_ms: u64,
) -> bool {
    let rests = matches!(outcome, Outcome::Stay) && connection.is_at_rest();
    if rests {
        enter(timers, connection, id, connection.phase, now_ms);
    }
    rests
}

/// Starts the clock of a phase where a new one begins.
#[inline]
fn enter<S, T>(timers: &mut Timers, connection: &mut Connection<S, T>, id: ConnId, phase: Phase, now_ms: u64) {
    if timers.enter(id.index, phase, connection.restart, now_ms) {
        connection.restart = false;
        if phase == Phase::Body {
            connection.received = 0;
        }
    }
}
