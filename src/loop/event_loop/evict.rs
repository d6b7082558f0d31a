//! Makes room for new connections at the connection limit, or when the process is out of file descriptors: closes the
//! connection that has been idle longest (RFC 9112 section 9.5 permits that at any time).
//!
//! The lists of the phase timers are in order of time, so that finding it takes no search and other connections pay
//! nothing. A loop without an idle connection asks the loops that share its connection limit for one of theirs.

use super::EventLoop;
use super::expire::on_timeout;
use crate::r#loop::app::{App, CloseReason, Phase};
use crate::r#loop::connection::{Outcome, Stage};
use crate::r#loop::readiness::Readiness;
use crate::r#loop::table::ConnId;

/// Maximum number of idle connections to close in one turn, so that a burst of new connections does not stall the others.
const EVICTIONS_PER_TURN: u32 = 16;

/// Maximum number of idle connections that are considered in one turn. Those whose peer is still receiving a response are
/// skipped, which takes a system call.
const EXAMINED_PER_TURN: usize = 1024;

/// The idle connections closed in one turn.
pub(super) struct Eviction {
    left: u32,
    /// The connections that were idle when this turn first needed one, from the one that has been idle longest. Each is
    /// considered once in a turn.
    idle: Option<std::vec::IntoIter<(ConnId, Phase)>>,
    any: bool,
    /// No connection was accepted since the last one was closed, so that closing another may not help either: the system
    /// may be out of file descriptors because of other processes.
    pub(super) is_unused: bool,
}

impl Default for Eviction {
    fn default() -> Self {
        Eviction { left: EVICTIONS_PER_TURN, idle: None, any: false, is_unused: false }
    }
}

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Closes the connection that has been idle longest, for one that waits at a listener, which is paused otherwise.
    /// Returns whether to continue accepting in this turn.
    #[cold]
    pub(super) fn make_room(&mut self, eviction: &mut Eviction) -> bool {
        if eviction.is_unused {
            return true;
        }
        if self.evict_longest_idle(eviction) {
            (eviction.any, eviction.is_unused) = (true, true);
            return true;
        }
        if eviction.left > 0 {
            self.connection_limit.request_room(&self.mailbox.waker);
            return true;
        }
        if eviction.any {
            // More connections may be waiting: continue in the next turn.
            self.listeners.on_capacity_freed();
        }
        !eviction.any
    }

    /// Closes an idle connection, unless a request has arrived on it. Returns whether it was closed.
    fn evict(&mut self, id: ConnId, phase: Phase) -> bool {
        self.with_connection(id, |connection, context, buffer| {
            if phase == Phase::Handshake {
                return connection.evict_handshake(id, context, buffer);
            }
            connection.readable = true;
            match connection.step_outlined(id, context, buffer) {
                Outcome::Open if context.read_bytes == 0 && connection.awaits_message() => {
                    match on_timeout(connection, context, id, phase, CloseReason::Evicted) {
                        // Where the system does not report acknowledgements, it would linger and keep its slot. As the
                        // longest idle, it has received its responses.
                        Outcome::Open if connection.stage == Stage::Lingering => Outcome::Closed(CloseReason::Evicted),
                        outcome => outcome,
                    }
                }
                outcome => outcome,
            }
        });
        // A last response of the application may still be on its way.
        self.table.get_mut(id).is_none_or(|connection| connection.is_closing())
    }

    /// Resumes accepting if another loop has closed a connection for this one, and closes connections for others.
    pub(super) fn exchange_room(&mut self) {
        let (is_wanted, is_made) = self.mailbox.waker.take_room();
        if is_made {
            self.listeners.on_capacity_freed();
        }
        if is_wanted {
            self.make_room_for_others();
        }
    }

    /// Closes an idle connection for each loop that has asked for it, or passes the request on to another loop.
    #[cold]
    fn make_room_for_others(&mut self) {
        let (mut eviction, mut refused) = (Eviction::default(), Vec::new());
        while eviction.left > 0
            && let Some(request) = self.connection_limit.take_room_request()
        {
            if self.evict_longest_idle(&mut eviction) {
                request.fulfil();
            } else {
                refused.push(request);
            }
        }
        // Only now, so that this loop does not take them again before the next one does.
        for request in refused {
            self.connection_limit.pass_on(request);
        }
    }

    /// Closes the connection that has been idle longest. Returns whether one was closed.
    ///
    /// The timer of a connection that is skipped runs on. If it started again, a peer that has vanished before it received
    /// a response would keep its connection for as long as others wait for one.
    fn evict_longest_idle(&mut self, eviction: &mut Eviction) -> bool {
        let idle = eviction.idle.get_or_insert_with(|| {
            let slots = self.timers.longest_idle().take(EXAMINED_PER_TURN);
            let idle = slots.filter_map(|(slot, phase)| Some((self.table.at(slot)?, phase)));
            idle.collect::<Vec<_>>().into_iter()
        });
        while eviction.left > 0
            && let Some((id, phase)) = idle.next()
        {
            let may_close = self.table.get_mut(id).is_some_and(|connection| {
                connection.timed_phase() == phase && connection.awaits_message() && !connection.is_sending()
            });
            if may_close {
                eviction.left -= 1;
                if self.evict(id, phase) {
                    return true;
                }
            }
        }
        false
    }
}
