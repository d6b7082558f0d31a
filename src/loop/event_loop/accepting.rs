//! Accepts connections, up to a quota per listener and the connection limit.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::EventLoop;
use crate::r#loop::app::{Accepted, Addrs, App, ConnId, Flow, Wire};
use crate::r#loop::connection::Connection;
use crate::r#loop::listener::Accept;
use crate::r#loop::readiness::Readiness;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// When to accept next without an event: 0 for at once, `u64::MAX` for never.
    pub(super) fn next_accept_ms(&self) -> u64 {
        self.listeners.iter().fold(u64::MAX, |next, listener| next.min(listener.due_ms()))
    }

    /// Accepts up to `quota` connections from each listener.
    #[inline]
    pub(super) fn accept(&mut self, quota: usize) {
        for index in 0..self.listeners.len() {
            if self.listeners[index].due_ms() <= self.context.now_ms {
                self.accept_from(index, quota);
            }
        }
    }

    /// Accepts up to `quota` connections from one listener.
    pub(super) fn accept_from(&mut self, index: usize, quota: usize) {
        for _ in 0..quota {
            if self.listeners[index].due_ms() > self.context.now_ms || !self.accept_one(index) {
                break;
            }
        }
    }

    /// Tries to accept one connection. Returns whether to try again.
    fn accept_one(&mut self, index: usize) -> bool {
        let listener = &mut self.listeners[index];
        if self.drain_deadline_ms.is_some() {
            // Connections already in the queue are served even beyond the limit; otherwise they would be reset.
            self.connection_limit.reserve();
        } else if !self.connection_limit.try_reserve() {
            listener.pause_until_capacity(&mut self.backend, self.context.now_ms, self.connection_limit.is_shared());
            return false;
        }
        match listener.accept(&mut self.backend, &mut self.context.counters, self.context.now_ms) {
            Accept::Connection(stream, peer_addr) => {
                self.open_connection(stream, Some(index), Some(peer_addr), false);
                true
            }
            Accept::Retry => {
                self.connection_limit.cancel();
                true
            }
            Accept::Done => {
                self.connection_limit.cancel();
                false
            }
        }
    }

    /// Creates a connection from a stream and adds it to the run queue.
    pub(super) fn open_connection(
        &mut self,
        stream: B::Stream,
        listener: Option<usize>,
        peer_addr: Option<SocketAddr>,
        connecting: bool,
    ) -> ConnId {
        let id = self.table.next_id();
        let accepted = Accepted { listener, peer_addr, stream: &stream };
        let mut wire = Wire {
            id,
            input: &[],
            consumed: 0,
            output: &mut self.context.scratch,
            messages: &mut self.context.messages,
            echoed: 0..0,
            addrs: Addrs { stream: Some(&stream) },
            unix_time: self.context.unix_time,
            now_ms: self.context.now_ms,
            restarted: false,
            panics: 0,
            ended: false,
            draining: self.context.draining,
        };
        let opened = catch_unwind(AssertUnwindSafe(|| self.context.app.open(&accepted, &mut wire)));
        let Ok((state, flow)) = opened else {
            self.context.counters.panics += 1;
            log::error!("application panicked while opening a connection; closing it");
            self.context.scratch.clear();
            self.connection_limit.cancel();
            return id;
        };
        let mut connection = Connection::new(stream, state, connecting);
        connection.readable &= self.context.eager.should_try();
        if !self.context.scratch.is_empty() {
            connection.pending = Some(Box::new(std::mem::take(&mut self.context.scratch)));
        }
        match flow {
            Flow::Read(phase) | Flow::Yield(phase) => connection.phase = phase,
            // Any other flow is ignored until the connect has completed.
            _ if connecting => {}
            other => connection.apply_flow(other),
        }
        connection.queued = true;
        self.table.insert(connection);
        self.connection_limit.commit();
        self.ready.push(id);
        id
    }
}
