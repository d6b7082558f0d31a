//! The end of a connection: everything forgets it, and the application is told.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::EventLoop;
use crate::r#loop::app::{App, Closed, ConnId, Ending};
use crate::r#loop::connection::Connection;
use crate::r#loop::readiness::{Readiness, Stream};

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// A panic in the application costs the connection it was called for, not the others theirs. What it leaves half
    /// done is the connection's, which goes, or the application's own.
    #[cold]
    pub(super) fn lose(&mut self, id: ConnId) {
        self.lent.counters.panics += 1;
        log::error!("the application panicked at {id:?}, which is reset");
        if let Some(connection) = self.table.get_mut(id) {
            connection.stream.abort();
        }
        self.bury(id, Closed::Panicked);
    }

    /// Removes a connection: from the backend, the timers, the table, and tells the application.
    pub(super) fn bury(&mut self, id: ConnId, closed: Closed) {
        self.lent.scratch.clear();
        let Some(connection) = self.table.remove(id) else {
            return;
        };
        self.timers.cancel(id.index);
        if connection.registered.is_some()
            && let Err(error) = self.backend.remove(connection.stream.source(), id.token())
        {
            log::warn!("cannot stop watching a connection: {error}");
        }
        self.lent.counters.closes += 1;
        log::debug!("closed {id:?}: {closed:?}");
        let Connection { stream, state, pending, .. } = connection;
        let ending = Ending {
            reason: closed,
            unsent_bytes: pending.map_or(0, |output| output.len() as u64),
            wall: self.lent.wall,
            now: Duration::from_millis(self.lent.now_ms),
        };
        if catch_unwind(AssertUnwindSafe(|| self.lent.app.closed(id, state, ending))).is_err() {
            self.lent.counters.panics += 1;
            log::error!("the application panicked at the end of {id:?}");
        }
        drop(stream);
        self.capacity.leave();
        for door in &mut self.doors {
            door.room_was_made();
        }
        self.stirred = true;
    }
}
