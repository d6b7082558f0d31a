//! Moves bytes between the socket and the application: reads input and delivers it, writes output immediately, buffers
//! output that the socket does not accept, and applies back-pressure above `output_bytes_max`. A TLS handshake precedes
//! all input and output of the application.
//!
//! A function `NAME_outlined` is the rare part of `NAME`, or `NAME` itself out of line; it exists only for code layout:
//! `NAME` is inlined into the hot path and has to stay small there.

use std::io;

use super::{Connection, FileCache, LoopContext, Outcome, Registration, Stage};
use crate::r#loop::app::{Addrs, App, CloseReason, Phase};
use crate::r#loop::file_range::Readahead;
use crate::r#loop::limits::LoopLimits;
use crate::r#loop::output::Flushed;
use crate::r#loop::readiness::{Handshake, Stream, would_block};
use crate::r#loop::table::ConnId;

/// Upper bound of the confidence score.
const CONFIDENCE_MAX: i8 = 8;

/// While eager reads mostly fail, one in this many connections is still read eagerly, as a probe.
const TRY_EVERY: u8 = 16;

/// Maximum input buffered for a paused connection, enough for a few pipelined requests. Further input stays in the
/// kernel's socket buffer.
const PAUSED_INPUT_BYTES_MAX: usize = 16 * 1024;

impl<S: Stream, T> Connection<S, T> {
    /// Reads up to the quota, of which `done` bytes have been read, and calls the application.
    pub(super) fn receive_more<A>(
        &mut self,
        done: usize,
        id: ConnId,
        context: &mut LoopContext<A>,
        buffer: &mut [u8],
    ) -> io::Result<()>
    where
        A: App<State = T>,
    {
        let mut quota = context.limits.read_bytes_per_turn.saturating_sub(done);
        while quota > 0 && self.stage == Stage::Reading && self.readable && !self.ended && !self.backpressured {
            // The bytes of a body that are received with its head count, in however many reads.
            let read_bytes = std::mem::take(&mut context.read_bytes);
            let result = self.read_and_deliver(id, context, buffer);
            context.read_bytes += read_bytes;
            quota = quota.saturating_sub(result?.max(1));
        }
        Ok(())
    }

    /// Reads once, calls the application and sends its output. Returns the number of bytes to count against the quota;
    /// all of it if the read returned nothing.
    #[inline(never)]
    pub(super) fn read_and_deliver<A>(
        &mut self,
        id: ConnId,
        context: &mut LoopContext<A>,
        buffer: &mut [u8],
    ) -> io::Result<usize>
    where
        A: App<State = T>,
    {
        let Some(count) = self.read(context, buffer)? else { return Ok(usize::MAX) };
        self.deliver_input(id, context, &buffer[..count])?;
        self.flush(context)?;
        Ok(count)
    }

    /// Calls the application with the buffered input after [`Flow::Yield`](crate::Flow::Yield), and sends its output.
    pub(super) fn deliver_yielded<A>(&mut self, id: ConnId, context: &mut LoopContext<A>) -> io::Result<()>
    where
        A: App<State = T>,
    {
        self.deliver_with_leftover(id, context, &[])?;
        self.flush_outlined(context)
    }

    /// Reads once into the loop's buffer. Returns `None` if the read would block, or should be repeated in another
    /// turn.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub(super) fn read<A: App>(
        &mut self,
        context: &mut LoopContext<A>,
        buffer: &mut [u8],
    ) -> io::Result<Option<usize>> {
        context.counters.reads += 1;
        match self.stream.read(buffer) {
            Ok(received) => {
                self.ended = received.bytes == 0;
                // After a hangup, keep reading up to the end of file: no further event will announce it.
                self.readable = (received.more || self.hangup) && !self.ended;
                context.read_bytes = received.bytes;
                if self.progress.is_some() {
                    self.count_received(received.bytes);
                }
                if S::ENCRYPTS && self.counted > 0 {
                    self.count_buffers(&context.buffers);
                }
                self.record_eager_read(&mut context.eager, true);
                Ok(Some(received.bytes))
            }
            Err(error) if would_block(&error) => {
                self.readable = false;
                self.record_eager_read(&mut context.eager, false);
                self.keep_encrypted(context)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.keep_encrypted(context),
            Err(error) => Err(error),
        }
    }

    /// Counts input that the stream buffers because it cannot be decrypted yet. The application does not see it.
    #[inline]
    fn keep_encrypted<A: App>(&mut self, context: &LoopContext<A>) -> io::Result<Option<usize>> {
        if S::ENCRYPTS {
            self.count_buffers(&context.buffers);
            let bytes = self.stream.buffered_bytes();
            if bytes > 0 && !self.stream.has_unsent() && !context.buffers.may_keep(bytes) {
                return Err(no_memory());
            }
        }
        Ok(None)
    }

    /// Updates the eager-read heuristic with the result of a read before registration.
    #[inline]
    fn record_eager_read(&self, eager: &mut EagerRead, found: bool) {
        if self.registered == Registration::NONE {
            eager.record(found);
        }
    }

    /// Passes leftover and new input to the application.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    fn deliver_input<A>(&mut self, id: ConnId, context: &mut LoopContext<A>, fresh: &[u8]) -> io::Result<()>
    where
        A: App<State = T>,
    {
        if !self.leftover.is_empty() {
            return self.deliver_with_leftover(id, context, fresh);
        }
        let consumed = self.call(context, id, fresh, App::receive);
        if consumed < fresh.len() { self.keep_leftover(context, fresh[consumed..].to_vec()) } else { Ok(()) }
    }

    /// Appends the new input to the leftover input and passes both to the application.
    #[inline(never)]
    fn deliver_with_leftover<A>(&mut self, id: ConnId, context: &mut LoopContext<A>, fresh: &[u8]) -> io::Result<()>
    where
        A: App<State = T>,
    {
        let mut input = std::mem::take(&mut self.leftover);
        input.extend_from_slice(fresh);
        let consumed = self.call(context, id, &input, App::receive);
        if consumed == input.len() {
            // Dropping the buffer frees its memory.
            self.count_buffers(&context.buffers);
            return Ok(());
        }
        input.drain(..consumed);
        self.keep_leftover(context, input)
    }

    /// Keeps input that the application has not consumed. A connection that is closing drops it and lingers instead, so
    /// that its last response is not lost for lack of buffer memory.
    #[inline(never)]
    fn keep_leftover<A: App>(&mut self, context: &LoopContext<A>, input: Vec<u8>) -> io::Result<()> {
        if let Stage::Closing { linger } = &mut self.stage {
            *linger = true;
            self.count_buffers(&context.buffers);
            return Ok(());
        }
        self.leftover = input;
        if self.leftover.len() > context.limits.input_bytes_max && self.stage == Stage::Reading {
            return Err(io::Error::other("application left more input unconsumed than input_bytes_max"));
        }
        self.count_buffers(&context.buffers);
        if context.buffers.may_keep(self.leftover.len()) {
            return Ok(());
        }
        Err(no_memory())
    }

    /// Returns whether a paused connection may buffer more input.
    pub(super) fn may_buffer_input(&self) -> bool {
        !self.ended && self.leftover.len() < PAUSED_INPUT_BYTES_MAX
    }

    /// Buffers a limited amount of input while the application is paused, so that a reset or the end of input is
    /// detected. The rest is left in the kernel's socket buffer.
    pub(super) fn read_while_paused<A: App>(
        &mut self,
        context: &mut LoopContext<A>,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        while self.readable && self.may_buffer_input() {
            let room = (PAUSED_INPUT_BYTES_MAX - self.leftover.len()).min(buffer.len());
            let Some(count) = self.read(context, &mut buffer[..room])? else { break };
            self.leftover.extend_from_slice(&buffer[..count]);
        }
        self.count_buffers(&context.buffers);
        if !self.leftover.is_empty() && !context.buffers.may_keep(self.leftover.len()) {
            return Err(no_memory());
        }
        if self.ended && !context.limits.answer_half_closed {
            self.close(false, CloseReason::Peer);
        }
        Ok(())
    }

    /// Sends output up to the quota; buffers what the socket does not accept. The common case is inlined: no pending
    /// output, and the socket accepts everything.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub(super) fn flush<A: App>(&mut self, context: &mut LoopContext<A>) -> io::Result<()> {
        if self.pending.is_some() || !self.writable || !context.scratch.is_little(context.little_bytes) {
            return self.flush_outlined(context);
        }
        context.counters.writes += 1;
        match context.scratch.flush_little(&mut self.stream, context.limits.write_bytes_per_turn) {
            Ok((Flushed::All, _)) if !self.stream.has_unsent() => Ok(()),
            outcome => self.after_flush(context, outcome),
        }
    }

    /// Sends output in all other cases. If some was pending before the application was called, the rest of it is left
    /// to [`Connection::flush_pending`], which reports that it is sent.
    #[inline(never)]
    pub(in crate::r#loop) fn flush_outlined<A: App>(&mut self, context: &mut LoopContext<A>) -> io::Result<()> {
        if self.pending.is_some() {
            self.buffer_unsent(context);
            return Ok(());
        }
        self.send(context)
    }

    /// Sends output up to the quota.
    fn send<A: App>(&mut self, context: &mut LoopContext<A>) -> io::Result<()> {
        let output = match &mut self.pending {
            Some(pending) => &mut **pending,
            None => &mut context.scratch,
        };
        if output.is_empty() && !self.stream.has_unsent() {
            if self.pending.take().is_some() {
                self.count_buffers(&context.buffers);
            }
            self.backpressured = false;
            return Ok(());
        }
        if !self.writable || self.stream.is_handshaking() {
            self.buffer_unsent(context);
            return Ok(());
        }
        context.counters.writes += 1;
        if self.stream.has_unsent() && !self.flush_stream(context)? {
            return Ok(());
        }
        let output = match &mut self.pending {
            Some(pending) => &mut **pending,
            None => &mut context.scratch,
        };
        let outcome = output.flush(&mut self.stream, context.limits.write_bytes_per_turn, 0);
        self.after_flush(context, outcome)
    }

    /// Sends what the stream has accepted before. If the output is then empty, it is done. Returns whether more output
    /// can be written.
    #[cold]
    fn flush_stream<A: App>(&mut self, context: &mut LoopContext<A>) -> io::Result<bool> {
        match self.stream.flush() {
            Ok(()) => {
                self.restart |= self.pending.is_some();
                let is_empty = self.pending.as_ref().map_or(context.scratch.is_empty(), |output| output.is_empty());
                if is_empty {
                    self.pending = None;
                    self.backpressured = false;
                }
                self.count_buffers(&context.buffers);
                Ok(!is_empty)
            }
            Err(error) if would_block(&error) => {
                self.writable = false;
                self.buffer_unsent(context);
                Ok(false)
            }
            Err(error) => {
                self.buffer_unsent(context);
                Err(error)
            }
        }
    }

    /// Updates the connection for the result of a flush.
    #[inline(never)]
    fn after_flush<A: App>(
        &mut self,
        context: &mut LoopContext<A>,
        outcome: io::Result<(Flushed, usize)>,
    ) -> io::Result<()> {
        let (flushed, sent) = match outcome {
            Ok(done) => done,
            Err(error) => {
                // Kept so that `CloseInfo::unsent_bytes` is correct.
                self.buffer_unsent(context);
                return Err(error);
            }
        };
        self.restart |= sent > 0 && self.pending.is_some();
        self.count_written(sent);
        self.sent_much |= flushed != Flushed::All;
        match flushed {
            Flushed::All | Flushed::AllOfMuch if self.stream.has_unsent() => {
                self.writable = false;
                self.buffer_unsent(context);
            }
            Flushed::All | Flushed::AllOfMuch => {
                self.pending = None;
                self.backpressured = false;
                self.count_buffers(&context.buffers);
            }
            Flushed::Blocked => {
                self.writable = false;
                self.file_cache = FileCache::Ready;
                self.buffer_unsent(context);
            }
            Flushed::Quota => {
                self.file_cache = FileCache::Ready;
                self.buffer_unsent(context);
            }
            Flushed::NeedsReadahead => {
                self.writable = false;
                if self.file_cache == FileCache::Ready {
                    self.file_cache = FileCache::Missing;
                }
                self.buffer_unsent(context);
            }
        }
        Ok(())
    }

    /// Sends pending output and calls [`App::output_drained`] when it is sent or has dropped to the low watermark.
    pub(super) fn flush_pending<A>(&mut self, id: ConnId, context: &mut LoopContext<A>) -> io::Result<()>
    where
        A: App<State = T>,
    {
        let unsent = self.pending_bytes();
        self.send(context)?;
        if self.has_drained(unsent, &context.limits) && matches!(self.stage, Stage::Reading | Stage::Paused) {
            self.call(context, id, &[], App::output_drained);
            self.flush_outlined(context)?;
        }
        Ok(())
    }

    /// Returns whether a flush that started with `before` bytes sent everything or crossed the low watermark.
    fn has_drained(&mut self, before: usize, limits: &LoopLimits) -> bool {
        let left = self.pending_bytes();
        left == 0 || (left <= limits.output_resume_bytes && before > limits.output_resume_bytes)
    }

    fn pending_bytes(&mut self) -> usize {
        self.stream.unsent_bytes() + self.pending.as_ref().map_or(0, |output| output.len())
    }

    /// Updates back-pressure: on above the high watermark, off at the low watermark.
    fn update_backpressure(&mut self, limits: &LoopLimits) {
        let unsent = self.pending_bytes();
        if unsent > limits.output_bytes_max {
            self.backpressured = true;
        } else if unsent <= limits.output_resume_bytes {
            self.backpressured = false;
        }
    }

    /// Moves unsent output from the loop's buffer to a buffer owned by the connection.
    #[cold]
    fn buffer_unsent<A: App>(&mut self, context: &mut LoopContext<A>) {
        if self.pending.is_none() {
            let mut output = std::mem::take(&mut context.scratch);
            output.shrink();
            self.pending = Some(Box::new(output));
        }
        self.count_buffers(&context.buffers);
        self.update_backpressure(&context.limits);
    }

    /// Takes the read-ahead to request, if one is needed and not requested yet.
    pub(in crate::r#loop) fn take_readahead(&mut self) -> Option<Readahead> {
        if self.file_cache != FileCache::Missing {
            return None;
        }
        self.file_cache = FileCache::Requested;
        self.pending.as_ref()?.readahead()
    }

    /// Resumes sending after a read-ahead, whether it succeeded or not.
    pub(in crate::r#loop) fn readahead_done(&mut self) {
        self.file_cache = FileCache::Ready;
        self.writable = true;
        if let Some(pending) = &mut self.pending {
            pending.readahead_done();
        }
    }
}

#[cold]
fn no_memory() -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, "the buffers of all connections exceed their limit")
}

/// The recent success rate of eager reads: the heuristic that decides whether to read from a new connection before
/// registering it with the backend.
///
/// Under load, and with clients that send immediately, the request has arrived by the time the connection is accepted;
/// a one-shot connection is then served without being registered at all. With slow clients that read would block and
/// waste a system call. The decision is therefore based on recent results, with an occasional probe.
#[derive(Debug)]
pub(in crate::r#loop) struct EagerRead {
    /// Above zero if eager reads mostly find data.
    score: i8,
    skipped: u8,
}

impl Default for EagerRead {
    fn default() -> Self {
        EagerRead { score: CONFIDENCE_MAX, skipped: 0 }
    }
}

impl EagerRead {
    /// Returns whether to read from the next connection before registering it.
    pub(in crate::r#loop) fn should_try(&mut self) -> bool {
        if self.score > 0 {
            return true;
        }
        self.skipped = (self.skipped + 1) % TRY_EVERY;
        self.skipped == 0
    }

    /// Records whether an eager read found data.
    pub(in crate::r#loop) fn record(&mut self, found: bool) {
        let step = if found { 2 } else { -1 };
        self.score = (self.score + step).clamp(-CONFIDENCE_MAX, CONFIDENCE_MAX);
    }
}

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
                Err(error) if would_block(&error) => self.writable = false,
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
                // A spurious event must not make the loop retry the send over and over.
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

    /// Closes the connection after a failed handshake. It lingers, so that the peer receives the alert although it may
    /// have sent more.
    fn fail_handshake<A>(&mut self, error: io::Error, context: &mut LoopContext<A>) -> Outcome
    where
        A: App<State = T>,
    {
        context.counters.failed_handshakes += 1;
        log::debug!("handshake of {} failed: {error}", Addrs { stream: Some(&self.stream) }.client());
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
                Outcome::Closed(context.life.or_drain(CloseReason::Timeout(Phase::Handshake)))
            }
            outcome => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_failed_reads_only_probes_are_made_until_reads_succeed() {
        let mut eager = EagerRead::default();
        for _ in 0..CONFIDENCE_MAX {
            assert!(eager.should_try());
            eager.record(false);
        }
        assert!(!eager.should_try());
        let tries = (0..160).filter(|_| eager.should_try()).count();
        assert_eq!(tries, 160 / usize::from(TRY_EVERY));
        for _ in 0..CONFIDENCE_MAX {
            eager.record(true);
        }
        assert!(eager.should_try());
    }
}
