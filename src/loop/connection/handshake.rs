//! The TLS handshake of a connection, which precedes all input and output of the application.

use std::io;

use super::transfer::no_memory;
use super::{Connection, LoopContext, Outcome, Stage};
use crate::r#loop::app::{App, CloseReason, Phase};
use crate::r#loop::readiness::{Handshake, Stream};
use crate::r#loop::table::ConnId;

impl<S: Stream, T> Connection<S, T> {
    /// Continues the handshake with the input that has arrived. Once it is complete, serves the connection at once.
    pub(in crate::r#loop) fn handshake<A>(
        &mut self,
        id: ConnId,
        context: &mut LoopContext<A>,
        buffer: &mut [u8],
    ) -> (Outcome, Handshake)
    where
        A: App<State = T>,
    {
        if self.stream.has_unsent() && self.writable {
            match self.stream.flush() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => return (self.fail_handshake(error, context), Handshake::Progress),
            }
        }
        match self.stream.handshake() {
            Ok(Handshake::Complete) => {
                context.counters.handshakes += 1;
                self.count_buffers(&context.buffers);
                // The timer of the next phase starts now. Input may have arrived with the end of the handshake.
                self.restart = true;
                self.readable = true;
                self.writable = true;
                (self.step_outlined(id, context, buffer), Handshake::Complete)
            }
            Ok(progress) => {
                self.readable = false;
                // A spurious event must not be followed by one attempt after another to send.
                self.writable &= !self.stream.has_unsent();
                self.count_buffers(&context.buffers);
                if self.counted > 0 && !context.buffers.may_keep(self.counted) {
                    return (self.fail_handshake(no_memory(), context), progress);
                }
                (Outcome::Open, progress)
            }
            Err(error) => (self.fail_handshake(error, context), Handshake::Progress),
        }
    }

    /// Closes the connection after a failed handshake. It lingers, so that the peer receives the alert although it may have
    /// sent more.
    fn fail_handshake<A>(&mut self, error: io::Error, context: &mut LoopContext<A>) -> Outcome
    where
        A: App<State = T>,
    {
        context.counters.failed_handshakes += 1;
        log::debug!("TLS handshake failed: {error}");
        self.pending = None;
        self.ended = error.kind() != io::ErrorKind::InvalidData;
        let reason =
            if error.kind() == io::ErrorKind::UnexpectedEof { CloseReason::Peer } else { CloseReason::Error(error) };
        self.close(true, CloseReason::Done);
        self.set_close_reason(reason);
        self.try_finish_close(context).map_or(Outcome::Open, Outcome::Closed)
    }

    /// Closes a connection whose handshake is not complete in favour of a new connection, unless input has arrived.
    pub(in crate::r#loop) fn evict_handshake<A>(
        &mut self,
        id: ConnId,
        context: &mut LoopContext<A>,
        buffer: &mut [u8],
    ) -> Outcome
    where
        A: App<State = T>,
    {
        match self.handshake(id, context, buffer) {
            (Outcome::Open, Handshake::Idle) => {
                context.counters.failed_handshakes += 1;
                Outcome::Closed(CloseReason::Evicted)
            }
            (outcome, _) => outcome,
        }
    }

    /// Handles the timeout of the handshake, after one last attempt: see `final_read` in `expire.rs`.
    pub(in crate::r#loop) fn expire_handshake<A>(
        &mut self,
        id: ConnId,
        context: &mut LoopContext<A>,
        buffer: &mut [u8],
    ) -> Outcome
    where
        A: App<State = T>,
    {
        if !self.stream.is_handshaking() {
            return Outcome::Open;
        }
        match self.handshake(id, context, buffer).0 {
            Outcome::Open if self.stream.is_handshaking() && !matches!(self.stage, Stage::Lingering) => {
                context.counters.failed_handshakes += 1;
                let reason = if context.life.is_draining() {
                    CloseReason::Drain
                } else {
                    CloseReason::Timeout(Phase::Handshake)
                };
                Outcome::Closed(reason)
            }
            outcome => outcome,
        }
    }
}
