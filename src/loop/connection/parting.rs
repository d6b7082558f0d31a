//! Coming to an end without destroying what was sent: an orderly close, and reading away what stands in its way.

use std::io;

use super::{Connection, Lent, Outcome, Stage};
use crate::r#loop::app::{App, Closed};
use crate::r#loop::readiness::Stream;

impl<S: Stream, T> Connection<S, T> {
    /// Nothing more is asked of the application; what is to be sent is sent. The first reason stands.
    pub(super) fn close(&mut self, linger: bool, reason: Closed) {
        self.stage = Stage::Closing { linger };
        self.reason.get_or_insert(reason);
    }

    /// Why it is closing.
    pub(in crate::r#loop) fn reason(&mut self) -> Closed {
        self.reason.take().unwrap_or(Closed::Done)
    }

    /// Makes `reason` the one that is told, whatever the application's flow said.
    pub(in crate::r#loop) fn blame(&mut self, reason: Closed) {
        self.reason = Some(reason);
    }

    /// What follows a call of the application outside of reading.
    pub(in crate::r#loop) fn finish<A>(&mut self, lent: &mut Lent<A>) -> Outcome
    where
        A: App<State = T>,
    {
        match self.flush(lent) {
            Err(error) => Outcome::Gone(Closed::Error(error)),
            Ok(()) => self.part().map_or(Outcome::Stay, Outcome::Gone),
        }
    }

    /// What follows a step of a connection that closes, or has failed.
    pub(super) fn end_step(&mut self, done: io::Result<()>) -> Outcome {
        match done {
            Ok(()) => self.part().map_or(Outcome::Stay, Outcome::Gone),
            Err(error) => Outcome::Gone(self.reason.take().unwrap_or(Closed::Error(error))),
        }
    }

    /// Once a closing connection has sent everything: over, or lingering when a close now could
    /// destroy the answer, because unread input makes the system send a reset (RFC 9112 section 9.6).
    pub(super) fn part(&mut self) -> Option<Closed> {
        let Stage::Closing { linger } = self.stage else {
            return None;
        };
        if self.pending.is_some() {
            return None;
        }
        let unread = linger || self.readable || !self.leftover.is_empty();
        if self.ended || !unread || self.stream.shutdown_write().is_err() {
            return Some(self.reason());
        }
        self.leftover = Vec::new();
        self.received = 0;
        // Whether more has come is not known; one read tells.
        self.readable = true;
        self.stage = Stage::Lingering;
        None
    }

    /// Reads and drops, within bounds, until the peer closes.
    pub(super) fn read_away<A: App>(&mut self, lent: &mut Lent<A>, buffer: &mut [u8]) -> io::Result<()> {
        let mut quota = lent.limits.read_bytes_per_turn;
        while self.readable && quota > 0 {
            let Some(count) = self.read(lent, buffer)? else { break };
            quota = quota.saturating_sub(count.max(1));
            if self.ended || self.received > lent.limits.linger_bytes_max {
                // Nothing is unread any more that a reset could be for.
                self.ended = true;
                self.stage = Stage::Closing { linger: false };
                break;
            }
        }
        Ok(())
    }
}
