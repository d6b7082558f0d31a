//! Letting newcomers in: whoever waits at a listener, within a quota, and as long as there is room.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::EventLoop;
use crate::r#loop::app::{Accepted, App, ConnId, Ends, Flow, Wire};
use crate::r#loop::connection::Connection;
use crate::r#loop::listener::Admission;
use crate::r#loop::readiness::Readiness;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// When somebody may be let in: 0 for at once, `u64::MAX` for never.
    pub(super) fn doors_due_ms(&self) -> u64 {
        self.doors.iter().fold(u64::MAX, |next, door| next.min(door.due_ms()))
    }

    /// Takes in who waits at the doors, at most a quota for each.
    #[inline]
    pub(super) fn accept(&mut self, quota: usize) {
        for index in 0..self.doors.len() {
            if self.doors[index].due_ms() <= self.lent.now_ms {
                self.let_in(index, quota);
            }
        }
    }

    /// Takes in who waits at one door.
    pub(super) fn let_in(&mut self, index: usize, quota: usize) {
        for _ in 0..quota {
            if self.doors[index].due_ms() > self.lent.now_ms || !self.accept_one(index) {
                break;
            }
        }
    }

    /// One try at a door; says whether another is worth it.
    fn accept_one(&mut self, index: usize) -> bool {
        let door = &mut self.doors[index];
        if self.drain.is_some() {
            // Who waited before the drain began is served, also beyond the bound: the alternative is a reset.
            self.capacity.enter_anyway();
        } else if !self.capacity.enter() {
            door.rest_while_full(&mut self.backend, self.lent.now_ms, self.capacity.is_shared());
            return false;
        }
        match door.accept(&mut self.backend, &mut self.lent.counters, self.lent.now_ms) {
            Admission::Stream(stream, peer) => {
                self.admit(stream, Some(index), Some(peer), false);
                true
            }
            Admission::Again => {
                self.capacity.give_back();
                true
            }
            Admission::Enough => {
                self.capacity.give_back();
                false
            }
        }
    }

    /// Makes a connection of a stream, and puts it in the line.
    pub(super) fn admit(
        &mut self,
        stream: B::Stream,
        listener: Option<usize>,
        peer: Option<SocketAddr>,
        connecting: bool,
    ) -> ConnId {
        let id = self.table.vacant();
        let accepted = Accepted { listener, peer, stream: &stream };
        let mut wire = Wire {
            id,
            input: &[],
            consumed: 0,
            output: &mut self.lent.scratch,
            posts: &mut self.lent.posts,
            returned: 0..0,
            ends: Ends { stream: Some(&stream) },
            wall: self.lent.wall,
            now_ms: self.lent.now_ms,
            restarted: false,
            panics: 0,
            ended: false,
            draining: self.lent.draining,
        };
        let opened = catch_unwind(AssertUnwindSafe(|| self.lent.app.open(&accepted, &mut wire)));
        let Ok((state, flow)) = opened else {
            self.lent.counters.panics += 1;
            log::error!("the application panicked at a new connection, which is closed");
            self.lent.scratch.clear();
            self.capacity.give_back();
            return id;
        };
        let mut connection = Connection::new(stream, state, connecting);
        connection.readable &= self.lent.eager.tries();
        if !self.lent.scratch.is_empty() {
            connection.pending = Some(Box::new(std::mem::take(&mut self.lent.scratch)));
        }
        match flow {
            Flow::Read(phase) | Flow::Yield(phase) => connection.phase = phase,
            // A connect under way is finished before anything else is done with it.
            _ if connecting => {}
            other => connection.obey(other),
        }
        connection.queued = true;
        self.table.insert(connection);
        self.capacity.admit();
        self.ready.push(id);
        id
    }
}
