//! Removes a connection from the backend, the timers and the table, then calls [`App::closed`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::EventLoop;
use crate::r#loop::app::{App, CloseInfo, CloseReason, ConnId};
use crate::r#loop::connection::Connection;
use crate::r#loop::readiness::{Readiness, Stream};

impl<B: Readiness, A: App> EventLoop<B, A> {
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
        let Some(connection) = self.table.remove(id) else {
            return;
        };
        self.timers.cancel(id.index);
        if connection.registered.is_some()
            && let Err(error) = self.backend.remove(connection.stream.source(), id.token())
        {
            log::warn!("cannot deregister a connection: {error}");
        }
        self.context.counters.closes += 1;
        log::debug!("closed {id:?}: {reason:?}");
        let Connection { stream, state, pending, .. } = connection;
        let info = CloseInfo {
            reason,
            unsent_bytes: pending.map_or(0, |output| output.len() as u64),
            unix_time: self.context.unix_time,
            now: Duration::from_millis(self.context.now_ms),
        };
        if catch_unwind(AssertUnwindSafe(|| self.context.app.closed(id, state, info))).is_err() {
            self.context.counters.panics += 1;
            log::error!("application panicked in its closed callback for {id:?}");
        }
        drop(stream);
        self.connection_limit.release();
        for listener in &mut self.listeners {
            listener.on_capacity_freed();
        }
        self.wakeup_dirty = true;
    }
}
