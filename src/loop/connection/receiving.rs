//! Reading, and showing the application what came.

use std::io;

use super::{Connection, Lent, Stage};
use crate::r#loop::app::{App, ConnId};
use crate::r#loop::eager::Eager;
use crate::r#loop::readiness::Stream;

/// What a paused connection may have in hand before the peer has to wait: some pipelined requests.
const READ_AHEAD_BYTES: usize = 16 * 1024;

impl<S: Stream, T> Connection<S, T> {
    /// Reads within the quota and lets the application work on it. One that had yielded works on what is at hand.
    #[inline]
    pub(super) fn receive<A>(&mut self, id: ConnId, lent: &mut Lent<A>, buffer: &mut [u8]) -> io::Result<()>
    where
        A: App<State = T>,
    {
        if self.stage == Stage::Yielded {
            return self.work(id, lent, buffer).map(drop);
        }
        let mut quota = lent.limits.read_bytes_per_turn;
        while self.readable && !self.ended && !self.stuffed {
            quota = quota.saturating_sub(self.work(id, lent, buffer)?);
            if quota == 0 || self.stage != Stage::Reading {
                break;
            }
        }
        Ok(())
    }

    /// One read, unless the application had yielded, and the answers to what is at hand. Returns what the read counts for.
    #[inline(never)]
    fn work<A>(&mut self, id: ConnId, lent: &mut Lent<A>, buffer: &mut [u8]) -> io::Result<usize>
    where
        A: App<State = T>,
    {
        let mut count = 0;
        if self.stage == Stage::Reading {
            let Some(bytes) = self.read(lent, buffer)? else { return Ok(0) };
            count = bytes;
        }
        self.show(id, lent, &buffer[..count])?;
        self.flush_answer(lent)?;
        Ok(count.max(1))
    }

    /// One read into the loop's buffer. `None`: nothing there.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    pub(super) fn read<A: App>(&mut self, lent: &mut Lent<A>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        lent.counters.reads += 1;
        match self.stream.read(buffer) {
            Ok(received) => {
                self.ended = received.bytes == 0;
                // Behind the data of a peer that closed stands the end of file, and no further event tells.
                self.readable = (received.more || self.hangup) && !self.ended;
                self.received += received.bytes as u64;
                self.teach(&mut lent.eager, true);
                Ok(Some(received.bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                self.teach(&mut lent.eager, false);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// A read of a connection the backend does not know yet tells whether the next one is worth it.
    #[inline]
    fn teach(&self, eager: &mut Eager, found: bool) {
        if self.registered.is_none() {
            eager.learn(found);
        }
    }

    /// Shows the application what is at hand: what was left over, then what was just read.
    #[inline]
    fn show<A>(&mut self, id: ConnId, lent: &mut Lent<A>, fresh: &[u8]) -> io::Result<()>
    where
        A: App<State = T>,
    {
        if !self.leftover.is_empty() {
            return self.show_more(id, lent, fresh);
        }
        let consumed = self.call(lent, id, fresh, App::receive);
        if consumed < fresh.len() { self.keep(lent, fresh[consumed..].to_vec()) } else { Ok(()) }
    }

    /// The same where something was left over.
    #[inline(never)]
    fn show_more<A>(&mut self, id: ConnId, lent: &mut Lent<A>, fresh: &[u8]) -> io::Result<()>
    where
        A: App<State = T>,
    {
        let mut input = std::mem::take(&mut self.leftover);
        input.extend_from_slice(fresh);
        let consumed = self.call(lent, id, &input, App::receive);
        if consumed == input.len() {
            // An empty buffer goes back to the system.
            return Ok(());
        }
        input.drain(..consumed);
        self.keep(lent, input)
    }

    /// Keeps what the application has not consumed.
    #[inline(never)]
    fn keep<A: App>(&mut self, lent: &Lent<A>, input: Vec<u8>) -> io::Result<()> {
        self.leftover = input;
        if self.leftover.len() > lent.limits.input_bytes_max && self.stage == Stage::Reading {
            return Err(io::Error::other("the application left more input unconsumed than the limit allows"));
        }
        Ok(())
    }

    /// Whether a paused connection still takes input in.
    pub(super) fn may_read_ahead(&self) -> bool {
        !self.ended && self.leftover.len() < READ_AHEAD_BYTES
    }

    /// While the application waits for something else: takes a little in, so that the end of the stream or its
    /// failure is seen, and leaves the rest to the peer's own patience.
    pub(super) fn read_ahead<A: App>(&mut self, lent: &mut Lent<A>, buffer: &mut [u8]) -> io::Result<()> {
        while self.readable && self.may_read_ahead() {
            let room = (READ_AHEAD_BYTES - self.leftover.len()).min(buffer.len());
            let Some(count) = self.read(lent, &mut buffer[..room])? else { break };
            self.leftover.extend_from_slice(&buffer[..count]);
        }
        Ok(())
    }
}
