//! Letting connections take their steps: those the backend reported, then those in the line.
//!
//! A panic of the application ends the connection it was called for, and no other.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::settling::has_come_to_rest;
use super::{DOOR_TOKEN, EventLoop};
use crate::r#loop::app::{App, ConnId};
use crate::r#loop::connection::{Connection, Lent, Outcome};
use crate::r#loop::listener::Door;
use crate::r#loop::readiness::{Event, Readiness};
use crate::r#loop::table::Table;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Lets every connection that can make progress take one step: those the backend reported, then those in the line.
    /// One guard is around all of them, as long as none panics.
    #[inline(never)]
    pub(super) fn drive(&mut self) {
        while self.driven.0 < self.events.len() + self.ready.len() {
            if catch_unwind(AssertUnwindSafe(|| self.drive_on())).is_err() {
                self.lose(self.driven.1);
            }
        }
        // What became unfinished stands in `next`: the others have their turn first.
        self.events.clear();
        self.ready.clear();
        self.driven.0 = 0;
    }

    #[inline]
    fn drive_on(&mut self) {
        loop {
            let at = self.driven.0;
            let found = if let Some(event) = self.events.get(at) {
                note(&mut self.table, &mut self.doors, event, &mut self.stirred)
            } else if let Some(&id) = self.ready.get(at - self.events.len()) {
                self.table.get_mut(id).map(|connection| (id, connection))
            } else {
                return;
            };
            self.driven.0 = at + 1;
            let Some((id, connection)) = found else { continue };
            self.driven.1 = id;
            connection.queued = false;
            let outcome = connection.step(id, &mut self.lent, &mut self.buffer);
            if !has_come_to_rest(&outcome, connection, id, &mut self.timers, self.lent.now_ms) {
                self.conclude(id, outcome);
            }
        }
    }

    /// Does something with one connection and draws the consequences. A panic ends that connection, no other.
    pub(super) fn with_connection(
        &mut self,
        id: ConnId,
        work: impl FnOnce(&mut Connection<B::Stream, A::State>, &mut Lent<A>, &mut [u8]) -> Outcome,
    ) {
        let attend = || {
            let Some(connection) = self.table.get_mut(id) else {
                return;
            };
            let outcome = work(connection, &mut self.lent, &mut self.buffer);
            if !has_come_to_rest(&outcome, connection, id, &mut self.timers, self.lent.now_ms) {
                self.conclude(id, outcome);
            }
        };
        if catch_unwind(AssertUnwindSafe(attend)).is_err() {
            self.lose(id);
        }
    }
}

/// Remembers what the backend reported. Returns the connection it is about, unless that stands in the line already.
#[inline]
fn note<'a, B: Readiness, T>(
    table: &'a mut Table<Connection<B::Stream, T>>,
    doors: &mut [Door<B>],
    event: &Event,
    stirred: &mut bool,
) -> Option<(ConnId, &'a mut Connection<B::Stream, T>)> {
    if let Some((id, connection)) = table.resolve(event.token) {
        connection.readable |= event.readable;
        connection.writable |= event.writable;
        connection.hangup |= event.hangup;
        return (!connection.queued).then_some((id, connection));
    }
    if let Some(door) = doors.get_mut(DOOR_TOKEN.wrapping_sub(event.token.0)) {
        door.note();
        *stirred = true;
    }
    None
}
