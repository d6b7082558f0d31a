//! Reads input and passes it to the application.

use std::io;

use super::{Connection, LoopContext, Registration, Stage};
use crate::r#loop::app::{App, CloseReason};
use crate::r#loop::eager::EagerRead;
use crate::r#loop::readiness::Stream;
use crate::r#loop::table::ConnId;

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
            let count = self.read_and_deliver(id, context, buffer)?;
            quota = quota.saturating_sub(count.max(1));
        }
        Ok(())
    }

    /// Reads once, calls the application and sends its output. Returns the number of bytes read.
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
        let Some(count) = self.read(context, buffer)? else { return Ok(0) };
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

    /// Reads once into the loop's buffer. Returns `None` if the read would block.
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
                self.record_eager_read(&mut context.eager, true);
                Ok(Some(received.bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                self.record_eager_read(&mut context.eager, false);
                Ok(None)
            }
            Err(error) => Err(error),
        }
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

    /// Keeps input that the application has not consumed.
    #[inline(never)]
    fn keep_leftover<A: App>(&mut self, context: &LoopContext<A>, input: Vec<u8>) -> io::Result<()> {
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
}

#[cold]
fn no_memory() -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, "the buffers of all connections exceed their limit")
}
