//! Accepts connections, up to a quota per listener and the connection limit, opens them, and continues their TLS
//! handshakes: a few per turn, in the order in which their input arrived.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::EventLoop;
use super::totals::Eviction;
use crate::r#loop::app::{Accepted, Addrs, App, Flow, Wire};
use crate::r#loop::connect::ContextCell;
use crate::r#loop::connection::{Connection, Outcome};
use crate::r#loop::listener::{AcceptContext, AcceptRound, AcceptStep};
use crate::r#loop::peer::Peer;
use crate::r#loop::readiness::{Handshake, Readiness, Stream};
use crate::r#loop::table::ConnId;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Accepts up to `quota` connections from each listener.
    #[inline]
    pub(super) fn accept(&mut self, quota: usize) {
        let mut round = AcceptRound::new(quota);
        let mut eviction = Eviction::default();
        loop {
            let context = AcceptContext {
                backend: &mut self.backend,
                counters: &mut self.context.counters,
                limit: &self.connection_limit,
                now_ms: self.context.now_ms,
            };
            match self.listeners.accept(&mut round, context) {
                AcceptStep::Connection(new) => {
                    eviction.is_unused = false;
                    self.open_connection(new.stream, (Some(new.listener), Some(new.peer)), false, None);
                }
                AcceptStep::NoRoom if !self.make_room(&mut eviction) => return,
                AcceptStep::NoRoom => {}
                AcceptStep::Done => return,
            }
        }
    }

    /// Creates a connection from a stream that has a slot in the connection limit, and adds it to the run queue.
    #[allow(clippy::inline_always, reason = "hot path of a connection")]
    #[inline(always)]
    fn open_connection(
        &mut self,
        stream: B::Stream,
        (listener, peer): (Option<usize>, Option<Peer>),
        connecting: bool,
        context: Option<&ContextCell>,
    ) -> ConnId {
        let vacant = self.table.vacant_entry();
        let id = vacant.id();
        let accepted = Accepted { listener, peer, stream: &stream, context };
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
            draining: self.context.life.is_draining(),
        };
        let opened = catch_unwind(AssertUnwindSafe(|| self.context.app.open(&accepted, &mut wire)));
        let Ok((state, flow)) = opened else {
            self.context.counters.panics += 1;
            let client = Addrs { stream: Some(&stream) };
            log::error!("application panicked while opening a connection of {}; closing it", client.client());
            self.context.scratch.clear();
            self.connection_limit.release(peer.and_then(Peer::ip));
            return id;
        };
        let connection = vacant.insert(Connection::new(stream, state, connecting));
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
        self.ready.push(id);
        if self.connection_limit.is_per_address()
            && let Some(address) = peer.and_then(Peer::ip)
        {
            self.addresses.insert(id.index, address);
        }
        id
    }

    /// Opens a connection that was not accepted from a listener.
    #[inline(never)]
    pub(super) fn open_unaccepted(
        &mut self,
        stream: B::Stream,
        connecting: bool,
        context: Option<&ContextCell>,
    ) -> ConnId {
        self.open_connection(stream, (None, None), connecting, context)
    }
}

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Continues handshakes, after the established connections were served, up to the quota. Connections of which
    /// nothing was received do not count.
    #[cold]
    pub(super) fn continue_handshakes(&mut self) {
        let mut quota = self.context.limits.handshakes_per_turn;
        for _ in 0..self.handshakes.len() {
            let Some(id) = self.handshakes.pop_front() else { return };
            self.with_connection(id, |connection, context, buffer| {
                connection.queued = false;
                if !connection.stream.is_handshaking() {
                    // Closed by the application in the meantime.
                    return Outcome::Open;
                }
                let (outcome, progress) = connection.handshake(id, context, buffer);
                quota -= usize::from(progress != Handshake::Idle);
                outcome
            });
            if quota == 0 {
                return;
            }
        }
    }
}
