//! Keeps the totals of the loop within their limits: connections, buffers, and memory.
//!
//! At the connection limit, or when the process is out of file descriptors, the connection that has been idle longest
//! is closed for a new one (RFC 9112 section 9.5 permits that at any time). The lists of the phase timers are in order
//! of time, so that finding it takes no search and other connections pay nothing. A loop without an idle connection
//! asks the loops that share its connection limit for one of theirs.
//!
//! While the buffers of all connections exceed their limit, connections with stalled output are closed.
//!
//! Once the loop is idle after a burst of load, it returns memory to the system. Its load is the number of system
//! calls, which are counted anyway. The count is sampled once per second of activity, so that the hot path pays
//! nothing; an idle loop is woken once, and only after much load.

use super::EventLoop;
use super::expire::on_timeout;
use crate::r#loop::app::{App, CloseReason, Phase};
use crate::r#loop::connection::{Outcome, Stage};
use crate::r#loop::limits::Counters;
use crate::r#loop::readiness::{Readiness, Stream};
use crate::r#loop::system;
use crate::r#loop::table::ConnId;

/// Maximum number of idle connections to close in one turn, so that a burst of new connections does not stall the
/// others.
const EVICTIONS_PER_TURN: u32 = 16;

/// Maximum number of connections that are considered in one turn: idle ones, of which those whose peer is still
/// receiving a response are skipped, which takes a system call, and ones with blocked output.
const EXAMINED_PER_TURN: usize = 1024;

/// The idle connections closed in one turn.
pub(super) struct Eviction {
    left: u32,
    /// The connections that were idle when this turn first needed one, from the one that has been idle longest. Each is
    /// considered once in a turn.
    idle: Option<std::vec::IntoIter<(ConnId, Phase)>>,
    any: bool,
    /// No connection was accepted since the last one was closed, so that closing another may not help either: the
    /// system may be out of file descriptors because of other processes.
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
                        // On systems that do not report acknowledgements, it would linger and keep its slot. As the
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
    /// The timer of a connection that is skipped runs on. If it started again, a peer that has vanished before it
    /// received a response would keep its connection for as long as others wait for one.
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

/// Time with little load after which the loop counts as idle.
const REST_MS: u64 = 3000;

/// System calls per second that count as little load.
const LITTLE_LOAD: u64 = 16;

/// Minimum number of system calls since memory was last returned; with fewer, it is not worth doing again.
const CALLS_MIN: u64 = 1024;

/// Number of elements that vectors keep room for.
const KEEP_ELEMENTS: usize = 256;

/// The load of a loop.
pub(super) struct Rest {
    /// Calls counted when memory was last returned.
    released_calls: u64,
    /// Calls counted when the load was last sampled.
    seen_calls: u64,
    /// Time at which the loop counts as idle; `u64::MAX` if there is nothing to do then.
    pub(super) at_ms: u64,
}

impl Rest {
    pub(super) fn new() -> Self {
        Rest { released_calls: 0, seen_calls: 0, at_ms: u64::MAX }
    }

    /// Samples the load. Returns whether `at_ms` has changed.
    pub(super) fn observe(&mut self, counters: &Counters, now_ms: u64) -> bool {
        let calls = calls(counters);
        let load = calls - self.seen_calls;
        self.seen_calls = calls;
        let is_loaded = load > LITTLE_LOAD && calls - self.released_calls >= CALLS_MIN;
        if is_loaded {
            self.at_ms = now_ms + REST_MS;
        }
        is_loaded
    }
}

fn calls(counters: &Counters) -> u64 {
    counters.accepts + counters.reads + counters.writes
}

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Samples the load, once per second of activity.
    #[cold]
    pub(super) fn observe_load(&mut self) {
        self.wakeup_dirty |= self.rest.observe(&self.context.counters, self.context.now_ms);
    }

    /// Returns memory to the system if the loop has become idle.
    pub(super) fn rest(&mut self) {
        if self.rest.at_ms > self.context.now_ms || self.rest.observe(&self.context.counters, self.context.now_ms) {
            return;
        }
        self.rest = Rest { released_calls: self.rest.seen_calls, seen_calls: self.rest.seen_calls, at_ms: u64::MAX };
        let slots = self.table.shrink();
        self.timers.shrink(slots);
        self.events.shrink_to(KEEP_ELEMENTS);
        self.ready.shrink_to(KEEP_ELEMENTS);
        self.next.shrink_to(KEEP_ELEMENTS);
        self.message_batch.shrink_to(KEEP_ELEMENTS);
        self.context.messages.shrink_to(KEEP_ELEMENTS);
        system::release_free_memory();
    }
}

/// A connection whose buffers take less is not closed: that would not help.
const BYTES_MIN: usize = 4096;

/// Time without progress after which output is dropped.
const STALLED_MS: u64 = 5000;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Resets connections whose clients make no progress, until the limit is no longer exceeded.
    #[cold]
    pub(super) fn drop_stalled_output(&mut self) {
        let slots: Vec<u32> = self.timers.slots(Phase::Writing).take(EXAMINED_PER_TURN).collect();
        let now_ms = self.context.now_ms;
        for id in slots.into_iter().filter_map(|slot| self.table.at(slot)).collect::<Vec<_>>() {
            if !self.context.buffers.is_exceeded() {
                return;
            }
            let limit_ms = if self.context.buffers.is_far_exceeded() { 0 } else { STALLED_MS };
            self.with_connection(id, |connection, context, _| {
                let helps = connection.counted >= BYTES_MIN && context.buffers.is_releasable(connection.counted);
                if !helps || !connection.has_stalled(now_ms, limit_ms) {
                    return Outcome::Open;
                }
                connection.stream.abort();
                Outcome::Closed(CloseReason::TooSlow)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_returned_after_much_load_and_only_once() {
        let mut rest = Rest::new();
        let mut counters = Counters { reads: CALLS_MIN - 1, ..Counters::default() };
        assert!(!rest.observe(&counters, 1000));
        assert_eq!(rest.at_ms, u64::MAX, "too little load");
        counters.writes = LITTLE_LOAD + 1;
        assert!(rest.observe(&counters, 2000));
        assert_eq!(rest.at_ms, 2000 + REST_MS);
        counters.reads += LITTLE_LOAD;
        assert!(!rest.observe(&counters, 3000));
        assert_eq!(rest.at_ms, 2000 + REST_MS, "little load does not postpone it");
    }
}
