//! Closing a connection, including the lingering close (RFC 9112 section 9.6): half-close, then discard input so that
//! the response is not lost to a reset.

use std::io;

use super::progress::Progress;
use super::{Connection, LoopContext, Outcome, Registration, Stage};
use crate::r#loop::app::{App, CloseReason};
use crate::r#loop::output::Output;
use crate::r#loop::readiness::{Stream, would_block};

/// The parts of a connection that are needed after it was removed from the table.
pub(in crate::r#loop) struct Removed<S, T> {
    pub(in crate::r#loop) stream: S,
    pub(in crate::r#loop) state: T,
    pub(in crate::r#loop) pending: Option<Box<Output>>,
    pub(in crate::r#loop) counted: usize,
    pub(in crate::r#loop) stage: Stage,
    pub(in crate::r#loop) registered: Registration,
}

impl<S, T> From<Connection<S, T>> for Removed<S, T> {
    /// Drops the other parts. Each is named, so that the compiler moves them one by one, and copies only those that are
    /// needed.
    #[allow(clippy::inline_always, reason = "hot path of a connection")]
    #[inline(always)]
    fn from(connection: Connection<S, T>) -> Self {
        let Connection { stream, state, leftover, pending, counted, progress, reason, stage, registered, .. } =
            connection;
        drop(leftover);
        drop(progress);
        drop(reason);
        Removed { stream, state, pending, counted, stage, registered }
    }
}

impl<S: Stream, T> Connection<S, T> {
    /// Starts closing: the application is no longer called, but remaining output is still sent. Keeps the first reason.
    pub(super) fn close(&mut self, linger: bool, reason: CloseReason) {
        self.stage = Stage::Closing { linger };
        self.reason.get_or_insert(reason);
    }

    /// Takes the close reason.
    pub(in crate::r#loop) fn take_reason(&mut self) -> CloseReason {
        self.reason.take().unwrap_or(CloseReason::Done)
    }

    /// Sets the reason to report, overriding the one implied by the application's flow.
    pub(in crate::r#loop) fn set_close_reason(&mut self, reason: CloseReason) {
        self.reason = Some(reason);
    }

    /// Sends the output after a call of the application other than [`App::receive`], and completes a close.
    pub(in crate::r#loop) fn finish<A>(&mut self, context: &mut LoopContext<A>) -> Outcome
    where
        A: App<State = T>,
    {
        match self.flush_outlined(context) {
            Err(error) => Outcome::Closed(CloseReason::Error(error)),
            Ok(()) => self.try_finish_close(context).map_or(Outcome::Open, Outcome::Closed),
        }
    }

    /// Ends a step: completes a close, or returns the reason of a failure.
    pub(super) fn end_step<A: App>(&mut self, result: io::Result<()>, context: &LoopContext<A>) -> Outcome {
        match result {
            Ok(()) if !matches!(self.stage, Stage::Closing { .. }) => Outcome::Open,
            Ok(()) => self.try_finish_close(context).map_or(Outcome::Open, Outcome::Closed),
            Err(error) => Outcome::Closed(self.reason.take().unwrap_or(CloseReason::Error(error))),
        }
    }

    /// Completes a close once all output is sent. If unread input may remain, the connection lingers instead: closing
    /// the socket would make the kernel send a reset, which can destroy the response (RFC 9112 section 9.6).
    pub(super) fn try_finish_close<A: App>(&mut self, context: &LoopContext<A>) -> Option<CloseReason> {
        let Stage::Closing { linger } = self.stage else {
            return None;
        };
        if self.pending.is_some() {
            return None;
        }
        if self.stream.is_encrypted() && !self.end_encryption() {
            return None;
        }
        if self.ended {
            return Some(self.take_reason());
        }
        // Input that arrives after the close causes a reset too, while the peer has not received everything. A TLS peer
        // replies to close_notify.
        let unread = linger
            || self.readable
            || !self.leftover.is_empty()
            || self.is_unacknowledged()
            || self.stream.is_encrypted();
        if !unread || self.stream.shutdown_write().is_err() {
            return Some(self.take_reason());
        }
        self.leftover = Vec::new();
        self.count_buffers(&context.buffers);
        self.progress = Some(Box::new(Progress::of_lingering(context.now_ms)));
        // There may be unread input; try one read.
        self.readable = true;
        self.stage = Stage::Lingering;
        None
    }

    /// While lingering: returns whether input has arrived since the half-close.
    pub(super) fn has_received_input(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.received > 0)
    }

    /// Marks the end of encrypted output (`close_notify`). Returns false if the mark is still to be sent.
    #[cold]
    fn end_encryption(&mut self) -> bool {
        self.stream.end_output();
        let is_sent = !self.stream.has_unsent();
        if !is_sent {
            self.writable = false;
            self.pending = Some(Box::default());
        }
        is_sent
    }

    /// Returns whether the peer may not have acknowledged all output. The kernel is asked only after much output: a
    /// little is sent at once, and is received before a reset that later input causes.
    fn is_unacknowledged(&mut self) -> bool {
        self.sent_much && self.stream.unacknowledged_bytes().is_none_or(|bytes| bytes > 0)
    }

    /// Returns whether the peer is known to be still receiving output.
    pub(in crate::r#loop) fn is_sending(&mut self) -> bool {
        self.sent_much && self.stream.unacknowledged_bytes().is_some_and(|bytes| bytes > 0)
    }

    /// Reads and discards input until the peer closes or a limit is reached. Each byte restarts the timer. The total
    /// time is no limit while the peer is receiving: then only the timer ends the connection, once the peer makes no
    /// progress.
    pub(super) fn discard_input<A: App>(&mut self, context: &mut LoopContext<A>, buffer: &mut [u8]) -> io::Result<()> {
        let mut quota = context.limits.read_bytes_per_turn;
        while self.readable && quota > 0 {
            context.counters.reads += 1;
            let count = match self.stream.discard(buffer) {
                Ok(received) => received.bytes,
                Err(error) if would_block(&error) => {
                    self.readable = false;
                    break;
                }
                Err(error) => return Err(error),
            };
            quota = quota.saturating_sub(count.max(1));
            let progress = self.progress.get_or_insert_default();
            progress.received += count as u64;
            let is_too_much = progress.received > context.limits.linger_bytes_max;
            let is_in_time = context.now_ms - progress.linger_since_ms < context.linger_total_ms;
            self.restart |= count > 0 && is_in_time;
            if count == 0 || is_too_much || !(is_in_time || self.is_unacknowledged()) {
                // No unread input is left that would cause a reset, or a limit is exceeded.
                self.ended = true;
                self.stage = Stage::Closing { linger: false };
                break;
            }
        }
        Ok(())
    }
}
