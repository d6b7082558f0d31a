//! One accepted connection: its stream, its buffers, and one step of its life.
//!
//! Readiness is remembered in two sticky bits. A step writes what is pending, reads at most a quota,
//! shows the application what came, and writes its answer at once; only what the socket does not take
//! is kept. So the common case is one read and one write, and an idle connection owns no buffer.

use std::io;

use super::app::{App, Closed, ConnId, Ends, Flow, Phase, Wire};
use super::eager::Eager;
use super::output::{Flushed, Output};
use super::read_ahead::Cold;
use super::readiness::{Interest, Stream};
use super::{Counters, Limits};

/// What a paused connection may have in hand before the peer has to wait: some pipelined requests.
const READ_AHEAD_BYTES: usize = 16 * 1024;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A connect is under way.
    Connecting,
    /// Reading and answering.
    Reading,
    /// The application has more to do with the input at hand.
    Yielded,
    /// Waiting for a letter. A little is read ahead, which also tells of a peer that is gone.
    Paused,
    /// Nothing more is read or asked; the output is on its way.
    Closing {
        /// Read away what still comes before the socket is closed.
        linger: bool,
    },
    /// All is sent, the sending side is shut.
    Lingering,
}

/// Whether the file that is to be sent next is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    /// As far as is known.
    Ready,
    /// It is not, and nobody has been told.
    Cold,
    /// Somebody reads it.
    Asked,
}

/// A connection of a loop.
#[allow(clippy::struct_excessive_bools, reason = "readiness is remembered in independent bits")]
pub(super) struct Connection<S, T> {
    pub(super) stream: S,
    pub(super) state: T,
    /// Input that the application has not consumed.
    leftover: Vec<u8>,
    /// Output the socket did not take.
    pub(super) pending: Option<Box<Output>>,
    /// Bytes read since the clock of the body phase started; while lingering, since the shutdown.
    pub(super) received: u64,
    /// Why the connection is closing.
    reason: Option<Closed>,
    /// What the application says it is doing.
    pub(super) phase: Phase,
    pub(super) stage: Stage,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) hangup: bool,
    ended: bool,
    /// So much output waits that neither reading nor asking the application makes sense, until little is left of it.
    stuffed: bool,
    /// While this is not ready nothing is written, so the stream does not count as writable.
    disk: Disk,
    /// In the list of those to be driven.
    pub(super) queued: bool,
    /// The clock of the phase is to start anew.
    pub(super) restart: bool,
    /// What the backend was told; `None` when it does not know the stream yet.
    pub(super) registered: Option<Interest>,
}

/// What the loop lends to each connection in turn, besides its read buffer.
pub(super) struct Lent<A: App> {
    pub(super) app: A,
    /// Empty between connections.
    pub(super) scratch: Output,
    pub(super) posts: Vec<(ConnId, A::Letter)>,
    pub(super) limits: Limits,
    pub(super) counters: Counters,
    pub(super) eager: Eager,
    /// Seconds since 1970, and milliseconds of the loop's clock.
    pub(super) wall: u64,
    pub(super) now_ms: u64,
    pub(super) draining: bool,
}

/// What a step left behind.
pub(super) enum Outcome {
    /// The connection lives on.
    Stay,
    /// It is over.
    Gone(Closed),
}

impl<S: Stream, T> Connection<S, T> {
    pub(super) fn new(stream: S, state: T, connecting: bool) -> Self {
        Connection {
            stream,
            state,
            leftover: Vec::new(),
            pending: None,
            received: 0,
            reason: None,
            phase: Phase::Silent,
            stage: if connecting { Stage::Connecting } else { Stage::Reading },
            // A client that connects mostly has sent its request already: try before asking the system.
            readable: !connecting,
            writable: !connecting,
            hangup: false,
            ended: false,
            stuffed: false,
            disk: Disk::Ready,
            queued: false,
            restart: false,
            registered: None,
        }
    }

    fn pending_bytes(&self) -> usize {
        self.pending.as_ref().map_or(0, |output| output.len())
    }

    /// Compares what waits with the high and the low mark.
    fn gauge(&mut self, limits: &Limits) {
        let waiting = self.pending_bytes();
        if waiting > limits.output_bytes_max {
            self.stuffed = true;
        } else if waiting <= limits.output_resume_bytes {
            self.stuffed = false;
        }
    }

    /// Whether a paused connection still takes input in.
    fn may_read_ahead(&self) -> bool {
        !self.ended && self.leftover.len() < READ_AHEAD_BYTES
    }

    /// The directions this connection wants to hear about.
    pub(super) fn interest(&self) -> Interest {
        let read = match self.stage {
            Stage::Reading => !self.ended && !self.stuffed,
            Stage::Paused => self.may_read_ahead(),
            Stage::Lingering => true,
            _ => false,
        };
        let write = (self.pending.is_some() && self.disk == Disk::Ready) || self.stage == Stage::Connecting;
        Interest { read, write }
    }

    /// The state almost every connection is in after almost every step: everything is sent, and the backend tells
    /// when more comes. Then its phase is its clock, and there is nothing else to see to.
    #[inline]
    pub(super) fn is_at_rest(&self) -> bool {
        self.stage == Stage::Reading
            && !self.readable
            && !self.stuffed
            && self.pending.is_none()
            && self.registered == Some(Interest::READ)
    }

    /// The phase whose limit applies now.
    pub(super) fn clock(&self) -> Phase {
        match self.stage {
            Stage::Lingering => match self.reason {
                // A peer that is still sending is given as long as one that was refused.
                Some(Closed::Done | Closed::Drain | Closed::Peer) if self.received == 0 => Phase::Parting,
                _ => Phase::Lingering,
            },
            Stage::Connecting => Phase::Writing,
            _ if self.pending.is_some() => Phase::Writing,
            Stage::Paused => Phase::Reply,
            _ => self.phase,
        }
    }

    /// Whether the next turn can make progress here without an event.
    pub(super) fn is_unfinished(&self) -> bool {
        if self.pending.is_some() && self.writable {
            return true;
        }
        match self.stage {
            Stage::Reading => self.readable && !self.ended && !self.stuffed,
            // With output that is blocked there is nothing to do: the application would find its batch full.
            Stage::Yielded => self.pending.is_none(),
            Stage::Paused => self.readable && self.may_read_ahead(),
            Stage::Lingering => self.readable,
            _ => false,
        }
    }

    /// Does what can be done now.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    pub(super) fn step<A>(&mut self, id: ConnId, lent: &mut Lent<A>, buffer: &mut [u8]) -> Outcome
    where
        A: App<State = T>,
    {
        let is_usual = self.stage == Stage::Reading && self.pending.is_none();
        let goes_on = if is_usual { Ok(true) } else { self.advance(id, lent, buffer) };
        let done = match goes_on {
            Ok(true) => self.receive(id, lent, buffer),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        match done {
            Ok(()) if !matches!(self.stage, Stage::Closing { .. }) => Outcome::Stay,
            done => self.end_step(done),
        }
    }

    /// The same where it is not on the way of every request.
    #[inline(never)]
    pub(super) fn step_apart<A>(&mut self, id: ConnId, lent: &mut Lent<A>, buffer: &mut [u8]) -> Outcome
    where
        A: App<State = T>,
    {
        self.step(id, lent, buffer)
    }

    /// What follows a step of a connection that closes, or has failed.
    fn end_step(&mut self, done: io::Result<()>) -> Outcome {
        match done {
            Ok(()) => self.part().map_or(Outcome::Stay, Outcome::Gone),
            Err(error) => Outcome::Gone(self.reason.take().unwrap_or(Closed::Error(error))),
        }
    }

    /// What a step begins with that does not read and answer alone. Says whether it goes on with that.
    #[inline(never)]
    fn advance<A>(&mut self, id: ConnId, lent: &mut Lent<A>, buffer: &mut [u8]) -> io::Result<bool>
    where
        A: App<State = T>,
    {
        if self.stage == Stage::Connecting && !self.connect()? {
            return Ok(false);
        }
        if self.pending.is_some() && self.writable {
            self.flush_pending(id, lent)?;
        }
        match self.stage {
            Stage::Reading => return Ok(true),
            // With output that is blocked the application would find its batch full.
            Stage::Yielded => return Ok(self.pending.is_none()),
            Stage::Paused => self.read_ahead(lent, buffer)?,
            Stage::Lingering => self.read_away(lent, buffer)?,
            Stage::Connecting | Stage::Closing { .. } => {}
        }
        Ok(false)
    }

    /// Whether the connect that is under way has come to its end.
    #[cold]
    fn connect(&mut self) -> io::Result<bool> {
        if !self.writable {
            return Ok(false);
        }
        match self.stream.connected() {
            // An event without a cause: the connect is still under way.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                self.writable = false;
                return Ok(false);
            }
            outcome => outcome?,
        }
        self.stage = Stage::Reading;
        self.readable = true;
        Ok(true)
    }

    fn flush_pending<A>(&mut self, id: ConnId, lent: &mut Lent<A>) -> io::Result<()>
    where
        A: App<State = T>,
    {
        let waiting = self.pending_bytes();
        self.flush(lent)?;
        if self.has_drained(waiting, &lent.limits) && matches!(self.stage, Stage::Reading | Stage::Paused) {
            self.call(lent, id, &[], App::drained);
            self.flush(lent)?;
        }
        Ok(())
    }

    /// Whether a flush that found `before` bytes left nothing, or crossed the low mark.
    fn has_drained(&self, before: usize, limits: &Limits) -> bool {
        let left = self.pending_bytes();
        left == 0 || (left <= limits.output_resume_bytes && before > limits.output_resume_bytes)
    }

    /// Reads within the quota and lets the application work on it. One that had yielded works on what is at hand.
    #[inline]
    fn receive<A>(&mut self, id: ConnId, lent: &mut Lent<A>, buffer: &mut [u8]) -> io::Result<()>
    where
        A: App<State = T>,
    {
        if self.stage == Stage::Yielded {
            return self.work(id, lent, buffer).map(drop);
        }
        let mut quota = lent.limits.read_bytes_per_turn;
        while self.readable && self.stage == Stage::Reading && !self.ended && !self.stuffed && quota > 0 {
            quota = quota.saturating_sub(self.work(id, lent, buffer)?);
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

    /// While the application waits for something else: takes a little in, so that the end of the stream or its
    /// failure is seen, and leaves the rest to the peer's own patience.
    fn read_ahead<A: App>(&mut self, lent: &mut Lent<A>, buffer: &mut [u8]) -> io::Result<()> {
        while self.readable && self.may_read_ahead() {
            let room = (READ_AHEAD_BYTES - self.leftover.len()).min(buffer.len());
            let Some(count) = self.read(lent, &mut buffer[..room])? else { break };
            self.leftover.extend_from_slice(&buffer[..count]);
        }
        Ok(())
    }

    /// One read into the loop's buffer. `None`: nothing there.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    fn read<A: App>(&mut self, lent: &mut Lent<A>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
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
        let mut leftover = Vec::new();
        let mut input = fresh;
        if !self.leftover.is_empty() {
            leftover = std::mem::take(&mut self.leftover);
            leftover.extend_from_slice(fresh);
            input = &leftover;
        }
        let consumed = self.call(lent, id, input, App::receive);
        if consumed == input.len() {
            // An empty buffer goes back to the system.
            return Ok(());
        }
        if leftover.is_empty() {
            leftover.extend_from_slice(&fresh[consumed..]);
        } else {
            leftover.drain(..consumed);
        }
        self.leftover = leftover;
        if self.leftover.len() > lent.limits.input_bytes_max && self.stage == Stage::Reading {
            return Err(io::Error::other("the application left more input unconsumed than the limit allows"));
        }
        Ok(())
    }

    /// Calls one method of the application and obeys the flow it returns; returns how much it consumed.
    #[inline]
    pub(super) fn call<A>(
        &mut self,
        lent: &mut Lent<A>,
        id: ConnId,
        input: &[u8],
        method: impl FnOnce(&mut A, &mut T, &mut Wire<'_, A::Letter>) -> Flow,
    ) -> usize
    where
        A: App<State = T>,
    {
        let output = match &mut self.pending {
            Some(pending) => &mut **pending,
            None => &mut lent.scratch,
        };
        let mut wire = Wire {
            id,
            input,
            consumed: 0,
            output,
            posts: &mut lent.posts,
            returned: 0..0,
            ends: Ends { stream: Some(&self.stream) },
            wall: lent.wall,
            now_ms: lent.now_ms,
            restarted: false,
            panics: 0,
            ended: self.ended,
            draining: lent.draining,
        };
        let flow = method(&mut lent.app, &mut self.state, &mut wire);
        let Wire { consumed, restarted, returned, panics, .. } = wire;
        self.restart |= restarted;
        lent.counters.panics += u64::from(panics);
        if !returned.is_empty() {
            self.send_back(lent, &input[returned]);
        }
        self.obey(flow);
        if flow == Flow::Abort {
            lent.scratch.clear();
        }
        consumed
    }

    /// Sends input back from where it lies; only what the socket does not take is copied. Nothing else waits to be sent.
    fn send_back<A>(&mut self, lent: &mut Lent<A>, bytes: &[u8])
    where
        A: App<State = T>,
    {
        let mut taken = 0;
        if self.writable {
            lent.counters.writes += 1;
            match self.stream.write(bytes) {
                Ok(sent) => {
                    taken = sent.bytes;
                    self.writable = sent.more;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                // The flush that follows meets the same error, and tells it.
                Err(_) => {}
            }
        }
        match &mut self.pending {
            Some(pending) => pending.extend(&bytes[taken..]),
            None => lent.scratch.extend(&bytes[taken..]),
        }
    }

    #[inline]
    pub(super) fn obey(&mut self, flow: Flow) {
        match flow {
            Flow::Read(phase) if !self.ended => {
                self.phase = phase;
                self.stage = Stage::Reading;
            }
            other => self.obey_other(other),
        }
    }

    fn obey_other(&mut self, flow: Flow) {
        match flow {
            // Nothing more will come.
            Flow::Read(_) => self.close(false, Closed::Peer),
            Flow::Yield(phase) => {
                self.phase = phase;
                self.stage = Stage::Yielded;
            }
            Flow::Pause => self.stage = Stage::Paused,
            Flow::Close => self.close(false, if self.ended { Closed::Peer } else { Closed::Done }),
            Flow::Linger => self.close(true, Closed::Done),
            Flow::Refuse => self.close(true, Closed::Refused),
            Flow::Abort => {
                self.stream.abort();
                self.pending = None;
                self.ended = true;
                self.close(false, Closed::Refused);
            }
        }
    }

    /// Nothing more is asked of the application; what is to be sent is sent. The first reason stands.
    pub(super) fn close(&mut self, linger: bool, reason: Closed) {
        self.stage = Stage::Closing { linger };
        self.reason.get_or_insert(reason);
    }

    /// Why it is closing.
    pub(super) fn reason(&mut self) -> Closed {
        self.reason.take().unwrap_or(Closed::Done)
    }

    /// Makes `reason` the one that is told, whatever the application's flow said.
    pub(super) fn blame(&mut self, reason: Closed) {
        self.reason = Some(reason);
    }

    /// As [`Connection::flush`], and made for the common case that nothing was kept and the socket takes all.
    #[inline]
    fn flush_answer<A: App>(&mut self, lent: &mut Lent<A>) -> io::Result<()> {
        if self.pending.is_some() || !self.writable {
            return self.flush(lent);
        }
        self.stuffed = false;
        if lent.scratch.is_empty() {
            return Ok(());
        }
        lent.counters.writes += 1;
        match lent.scratch.flush(&mut self.stream, lent.limits.write_bytes_per_turn) {
            Ok((Flushed::All, _)) => Ok(()),
            outcome => self.end_flush(lent, outcome),
        }
    }

    /// Sends what there is; what the socket does not take is kept.
    #[inline(never)]
    pub(super) fn flush<A: App>(&mut self, lent: &mut Lent<A>) -> io::Result<()> {
        let output = match &mut self.pending {
            Some(pending) => &mut **pending,
            None => &mut lent.scratch,
        };
        if output.is_empty() {
            self.pending = None;
            self.stuffed = false;
            return Ok(());
        }
        if !self.writable {
            self.park(lent);
            return Ok(());
        }
        lent.counters.writes += 1;
        let outcome = output.flush(&mut self.stream, lent.limits.write_bytes_per_turn);
        self.end_flush(lent, outcome)
    }

    fn end_flush<A: App>(&mut self, lent: &mut Lent<A>, outcome: io::Result<(Flushed, usize)>) -> io::Result<()> {
        let (how, gone) = match outcome {
            Ok(done) => done,
            Err(error) => {
                // Kept to be counted, since the application is told of what was not sent.
                self.park(lent);
                return Err(error);
            }
        };
        self.restart |= gone > 0 && self.pending.is_some();
        match how {
            Flushed::All => {
                self.pending = None;
                self.stuffed = false;
            }
            Flushed::Blocked => {
                self.writable = false;
                self.disk = Disk::Ready;
                self.park(lent);
            }
            Flushed::Quota => {
                self.disk = Disk::Ready;
                self.park(lent);
            }
            Flushed::Cold => {
                self.writable = false;
                if self.disk == Disk::Ready {
                    self.disk = Disk::Cold;
                }
                self.park(lent);
            }
        }
        Ok(())
    }

    /// What has to be read from a disk, once for each time.
    pub(super) fn take_cold(&mut self) -> Option<Cold> {
        if self.disk != Disk::Cold {
            return None;
        }
        self.disk = Disk::Asked;
        self.pending.as_ref()?.cold()
    }

    /// That was read, or cannot be.
    pub(super) fn warmed(&mut self) {
        self.disk = Disk::Ready;
        self.writable = true;
        if let Some(pending) = &mut self.pending {
            pending.warmed();
        }
    }

    /// Moves what is unsent from the loop's buffer into one of the connection's own.
    #[cold]
    fn park<A: App>(&mut self, lent: &mut Lent<A>) {
        if self.pending.is_none() {
            self.pending = Some(Box::new(std::mem::take(&mut lent.scratch)));
        }
        self.gauge(&lent.limits);
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
    fn read_away<A: App>(&mut self, lent: &mut Lent<A>, buffer: &mut [u8]) -> io::Result<()> {
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
