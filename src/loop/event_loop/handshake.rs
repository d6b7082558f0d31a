//! Continues TLS handshakes: a few per turn, in the order in which their input arrived.

use super::EventLoop;
use crate::r#loop::app::App;
use crate::r#loop::connection::Outcome;
use crate::r#loop::readiness::{Handshake, Readiness, Stream};

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Returns whether the handshake of a connection can continue. The queue is bounded by the number of connections.
    #[inline]
    pub(super) fn has_handshakes(&self) -> bool {
        B::Stream::ENCRYPTS && !self.handshakes.is_empty()
    }

    /// Continues handshakes, after the established connections were served, up to the quota. Connections of which nothing
    /// was received do not count.
    #[cold]
    pub(super) fn continue_handshakes(&mut self) {
        let mut quota = self.context.limits.handshakes_per_turn.max(1);
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
