//! A connection: its stream, its buffers, and its state machine.
//!
//! Readiness is cached in sticky bits. A step writes pending output, reads up to a quota, passes the input to the
//! application and writes the response immediately; only what the socket does not accept is buffered. In the common
//! case a request thus takes one read and one write, and an idle connection owns no buffer.
//!
//! A function `NAME_outlined` is the rare part of `NAME`, or `NAME` itself out of line; it exists only for code layout:
//! `NAME` is inlined into the hot path and has to stay small there.

use std::io;

pub(super) use self::close::Removed;
use self::progress::Progress;
pub(super) use self::transfer::EagerRead;
use super::app::{Addrs, App, CloseReason, Flow, Phase, Wire};
use super::connect::{Connects, HeldMessages};
use super::connection_limit::Buffers;
use super::limits::{Counters, LoopLimits};
use super::output::Output;
use super::readiness::{Interest, Stream, would_block};
use super::table::ConnId;

mod close;
mod progress;
mod transfer;

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A connect is in progress.
    Connecting,
    /// Reading input and calling the application.
    Reading,
    /// The application has more to do with the buffered input.
    Yielded,
    /// Waiting for a message. A small amount of input is buffered, so that a reset by the peer is detected.
    Paused,
    /// The remaining output is being sent; the application is no longer called.
    Closing {
        /// Half-close and discard further input before closing the socket.
        linger: bool,
    },
    /// All output is sent and the sending side is shut down; input is discarded.
    Lingering,
}

/// Page cache state of the next block of a file to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileCache {
    /// Cached, or not known to be missing from the cache.
    Ready,
    /// Not cached; a read-ahead has to be requested.
    Missing,
    /// Not cached; a read-ahead is pending.
    Requested,
}

/// The interest registered with the backend, if the stream has been added to it. Packed, so that the common case takes
/// one comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registration(u8);

impl Registration {
    /// The stream has not been added to the backend.
    pub(super) const NONE: Registration = Registration(0);
    const READ: Registration = Registration::of(Interest::READ);

    pub(super) const fn of(interest: Interest) -> Self {
        Registration(1 | (interest.read as u8) << 1 | (interest.write as u8) << 2)
    }

    pub(super) fn interest(self) -> Option<Interest> {
        (self != Registration::NONE).then_some(Interest { read: self.0 & 2 != 0, write: self.0 & 4 != 0 })
    }
}

/// A connection of a loop.
#[allow(clippy::struct_excessive_bools, reason = "readiness bits are independent")]
pub(super) struct Connection<S, T> {
    pub(super) stream: S,
    pub(super) state: T,
    /// Input that the application has not consumed.
    leftover: Vec<u8>,
    /// Output that the socket has not accepted yet.
    pub(super) pending: Option<Box<Output>>,
    /// Bytes of `leftover`, `pending` and the buffers of `stream` that are counted in [`LoopContext::buffers`].
    pub(super) counted: usize,
    /// The progress of the peer, while a timeout depends on it.
    progress: Option<Box<Progress>>,
    /// The close reason, once the connection is closing.
    reason: Option<CloseReason>,
    /// The phase set by the application.
    pub(super) phase: Phase,
    pub(super) stage: Stage,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) hangup: bool,
    ended: bool,
    /// Much output was written, part of which the peer may not have acknowledged.
    sent_much: bool,
    /// Back-pressure: set when unsent output exceeds the high watermark, cleared at the low watermark. Never set
    /// without pending output, unless the connection is closing.
    backpressured: bool,
    /// While a file read-ahead is pending nothing is written, and `writable` is false.
    file_cache: FileCache,
    /// In the run queue.
    pub(super) queued: bool,
    /// Set to restart the phase timer after the step.
    pub(super) restart: bool,
    pub(super) registered: Registration,
}

/// The state of the loop that connections use: the application, shared buffers, limits and the time.
pub(super) struct LoopContext<A: App> {
    pub(super) app: A,
    pub(super) buffers: Buffers,
    /// Output of the current connection, unless it has pending output. Empty between connections.
    pub(super) scratch: Output,
    pub(super) messages: Vec<(ConnId, A::Message)>,
    pub(super) held_messages: HeldMessages<A::Message>,
    pub(super) connects: Connects,
    pub(super) limits: LoopLimits,
    pub(super) counters: Counters,
    pub(super) eager: EagerRead,
    /// Number of bytes read in the current step.
    pub(super) read_bytes: usize,
    /// Output up to this size is sent on the fast path.
    pub(super) little_bytes: usize,
    /// Wall-clock time in seconds since 1970.
    pub(super) unix_time: u64,
    /// Milliseconds since the loop was created.
    pub(super) now_ms: u64,
    pub(super) life: Life,
    /// [`Timeouts::linger_total`](super::limits::Timeouts::linger_total) in milliseconds.
    pub(super) linger_total_ms: u64,
}

/// The life of a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// [`App::start`] has not been called yet.
    New,
    Running,
    /// A graceful shutdown has begun.
    Draining {
        /// When the remaining connections are closed.
        deadline_ms: u64,
    },
    /// The loop has ended: all connections and listeners are closed, and nothing is called any more.
    Over,
}

impl Life {
    #[inline]
    pub(super) fn is_draining(self) -> bool {
        matches!(self, Life::Draining { .. })
    }

    /// Returns the reason for closing a connection because of a timeout: the shutdown, if there is one.
    pub(super) fn or_drain(self, reason: CloseReason) -> CloseReason {
        if self.is_draining() { CloseReason::Drain } else { reason }
    }

    /// The time at which the remaining connections are closed; `u64::MAX` for never.
    pub(super) fn deadline_ms(self) -> u64 {
        if let Life::Draining { deadline_ms } = self { deadline_ms } else { u64::MAX }
    }
}

/// The result of a step.
pub(super) enum Outcome {
    /// The connection stays open.
    Open,
    /// The connection is to be closed.
    Closed(CloseReason),
}

impl<S: Stream, T> Connection<S, T> {
    pub(super) fn new(stream: S, state: T, connecting: bool) -> Self {
        Connection {
            stream,
            state,
            leftover: Vec::new(),
            pending: None,
            counted: 0,
            progress: None,
            reason: None,
            phase: Phase::AwaitingFirstByte,
            stage: if connecting { Stage::Connecting } else { Stage::Reading },
            // Clients usually send their request right after connecting: try to read before registering the stream.
            readable: !connecting,
            writable: !connecting,
            hangup: false,
            ended: false,
            sent_much: false,
            backpressured: false,
            file_cache: FileCache::Ready,
            queued: false,
            restart: false,
            registered: Registration::NONE,
        }
    }

    /// Continues a connect with another stream. The output and the state are kept.
    pub(super) fn replace_stream(&mut self, stream: S) {
        self.stream = stream;
        self.registered = Registration::NONE;
        (self.readable, self.writable, self.hangup) = (false, false, false);
    }

    /// The readiness events this connection needs.
    pub(super) fn interest(&self) -> Interest {
        let read = match self.stage {
            Stage::Reading => !self.ended && !self.backpressured,
            Stage::Paused => self.may_buffer_input(),
            Stage::Lingering => true,
            _ => false,
        };
        let write = (self.pending.is_some() && self.file_cache == FileCache::Ready) || self.stage == Stage::Connecting;
        if self.stream.is_handshaking() {
            return Interest { read: true, write: self.stream.has_unsent() };
        }
        Interest { read, write: write || self.stream.has_unsent() }
    }

    /// Returns whether everything is sent and the connection only waits for a readable event, as in the common case
    /// after a step. Its phase then determines the timer, and nothing else needs an update.
    #[inline]
    pub(super) fn is_quiescent(&self) -> bool {
        self.stage == Stage::Reading
            && !self.readable
            && self.pending.is_none()
            && self.registered == Registration::READ
            && !self.stream.is_handshaking()
            && !self.stream.has_unsent()
    }

    /// Returns whether the end of the input was read.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns whether the connection only waits for a message, of which nothing has been received.
    pub(super) fn awaits_message(&self) -> bool {
        let has_output = self.pending.is_some() && !self.stream.is_handshaking();
        self.stage == Stage::Reading && !self.readable && !has_output && self.leftover.is_empty()
    }

    /// Updates the count of the memory that the buffers of this connection take.
    fn count_buffers(&mut self, buffers: &Buffers) {
        let output = self.pending.as_ref().map_or(0, |output| output.memory());
        buffers.set(&mut self.counted, self.leftover.capacity() + output + self.stream.buffered_bytes());
    }

    /// Returns whether the application is no longer called.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.stage, Stage::Closing { .. } | Stage::Lingering)
    }

    /// The phase whose timeout applies now.
    pub(super) fn timed_phase(&self) -> Phase {
        match self.stage {
            _ if self.stream.is_handshaking() => Phase::Handshake,
            Stage::Lingering => match self.reason {
                // A peer that is still sending, or has much to read, gets the longer timeout.
                Some(CloseReason::Done | CloseReason::Drain | CloseReason::Peer)
                    if !self.has_received_input() && !self.sent_much =>
                {
                    Phase::LingeringBriefly
                }
                _ => Phase::Lingering,
            },
            Stage::Connecting => Phase::Writing,
            _ if self.pending.is_some() => Phase::Writing,
            Stage::Paused => Phase::Handling,
            _ => self.phase,
        }
    }

    /// Returns whether the next turn can make progress here without an event.
    pub(super) fn is_unfinished(&self) -> bool {
        if self.stream.is_handshaking() {
            return self.readable || (self.writable && self.stream.has_unsent());
        }
        if (self.pending.is_some() || self.stream.has_unsent()) && self.writable {
            return true;
        }
        match self.stage {
            Stage::Reading => self.readable && !self.ended && !self.backpressured,
            // While output is blocked the application must not be called to produce more.
            Stage::Yielded => self.pending.is_none(),
            Stage::Paused => self.readable && self.may_buffer_input(),
            Stage::Lingering => self.readable,
            _ => false,
        }
    }

    /// Makes progress without blocking, within the quotas for one turn. Returns `None` if the connection is quiescent.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub(super) fn step<A>(&mut self, id: ConnId, context: &mut LoopContext<A>, buffer: &mut [u8]) -> Option<Outcome>
    where
        A: App<State = T>,
    {
        let is_fast_path = self.stage == Stage::Reading
            && self.pending.is_none()
            && self.readable
            && !self.ended
            && !self.stream.is_handshaking()
            && !self.stream.has_unsent();
        if !is_fast_path {
            return Some(self.step_in_other_stage(id, context, buffer));
        }
        let first = self.read_and_deliver(id, context, buffer);
        if first.is_ok() && self.is_quiescent() {
            return None;
        }
        Some(self.continue_step(first, id, context, buffer))
    }

    /// The rest of a step on the fast path after its first read, unless the connection is quiescent.
    #[inline(never)]
    fn continue_step<A>(
        &mut self,
        first: io::Result<usize>,
        id: ConnId,
        context: &mut LoopContext<A>,
        buffer: &mut [u8],
    ) -> Outcome
    where
        A: App<State = T>,
    {
        let result = first.and_then(|count| self.receive_more(count, id, context, buffer));
        self.end_step(result, context)
    }

    /// Runs [`Connection::step`] without inlining it, for use outside the hot path.
    #[inline(never)]
    pub(super) fn step_outlined<A>(&mut self, id: ConnId, context: &mut LoopContext<A>, buffer: &mut [u8]) -> Outcome
    where
        A: App<State = T>,
    {
        self.step(id, context, buffer).unwrap_or(Outcome::Open)
    }

    /// A step that is not on the fast path: there is output to send, or the connection is not reading.
    #[inline(never)]
    fn step_in_other_stage<A>(&mut self, id: ConnId, context: &mut LoopContext<A>, buffer: &mut [u8]) -> Outcome
    where
        A: App<State = T>,
    {
        context.read_bytes = 0;
        if self.stream.is_handshaking() {
            // Continued by the loop, for a few connections per turn.
            return Outcome::Open;
        }
        let result = match self.before_receive(id, context, buffer) {
            Ok(true) if self.stage == Stage::Yielded => self.deliver_yielded(id, context),
            Ok(true) => self.receive_more(0, id, context, buffer),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        self.end_step(result, context)
    }

    /// The part of a step before receiving. Returns whether to receive next.
    fn before_receive<A>(&mut self, id: ConnId, context: &mut LoopContext<A>, buffer: &mut [u8]) -> io::Result<bool>
    where
        A: App<State = T>,
    {
        if self.stage == Stage::Connecting {
            if !self.connect()? {
                return Ok(false);
            }
            context.held_messages.release(id, &mut context.messages);
            context.connects.remove(id);
        }
        if (self.pending.is_some() || self.stream.has_unsent()) && self.writable {
            self.flush_pending(id, context)?;
        }
        match self.stage {
            Stage::Reading => return Ok(true),
            // While output is blocked the application must not be called to produce more.
            Stage::Yielded => return Ok(self.pending.is_none()),
            Stage::Paused => {
                self.read_while_paused(context, buffer)?;
                if self.hangup {
                    // The peer may have reset the connection, although there is unread input or its end was reached.
                    self.stream.check()?;
                }
            }
            Stage::Lingering => self.discard_input(context, buffer)?,
            Stage::Connecting | Stage::Closing { .. } => {}
        }
        Ok(false)
    }

    /// Checks the connect in progress. Returns whether it has completed.
    #[cold]
    fn connect(&mut self) -> io::Result<bool> {
        if !self.writable {
            return Ok(false);
        }
        match self.stream.connected() {
            // A spurious event: the connect is still in progress.
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

    /// Calls a method of the application and applies the flow it returns. Returns the number of bytes consumed.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub(super) fn call<A>(
        &mut self,
        context: &mut LoopContext<A>,
        id: ConnId,
        input: &[u8],
        method: impl FnOnce(&mut A, &mut T, &mut Wire<'_, A::Message>) -> Flow,
    ) -> usize
    where
        A: App<State = T>,
    {
        let output = match &mut self.pending {
            Some(pending) => &mut **pending,
            None => &mut context.scratch,
        };
        let mut wire = Wire {
            id,
            input,
            consumed: 0,
            output,
            messages: &mut context.messages,
            echoed: 0..0,
            addrs: Addrs { stream: Some(&self.stream) },
            unix_time: context.unix_time,
            now_ms: context.now_ms,
            restarted: false,
            panics: 0,
            ended: self.ended,
            draining: context.life.is_draining(),
        };
        let flow = method(&mut context.app, &mut self.state, &mut wire);
        let Wire { consumed, restarted, echoed, panics, .. } = wire;
        self.restart |= restarted;
        context.counters.panics += u64::from(panics);
        if echoed.end > 0 {
            self.send_back(context, &input[echoed]);
        }
        self.apply_flow(flow);
        if flow == Flow::Abort {
            context.scratch.clear();
        }
        consumed
    }

    /// Echoes input straight from the read buffer; only bytes that the socket does not accept are copied. No other
    /// output may be pending.
    fn send_back<A>(&mut self, context: &mut LoopContext<A>, bytes: &[u8])
    where
        A: App<State = T>,
    {
        let mut sent_bytes = 0;
        if self.writable {
            context.counters.writes += 1;
            match self.stream.write(bytes) {
                Ok(sent) => {
                    sent_bytes = sent.bytes;
                    self.writable = sent.more;
                }
                Err(error) if would_block(&error) => self.writable = false,
                // The flush that follows gets the same error and returns it.
                Err(_) => {}
            }
        }
        match &mut self.pending {
            Some(pending) => pending.extend(&bytes[sent_bytes..]),
            None => context.scratch.extend(&bytes[sent_bytes..]),
        }
    }

    #[inline]
    pub(super) fn apply_flow(&mut self, flow: Flow) {
        match flow {
            Flow::Read(phase) if !self.ended => {
                self.phase = phase;
                self.stage = Stage::Reading;
            }
            other => self.apply_flow_outlined(other),
        }
    }

    fn apply_flow_outlined(&mut self, flow: Flow) {
        match flow {
            // The input has ended.
            Flow::Read(_) => self.close(false, CloseReason::Peer),
            Flow::Yield(phase) => {
                self.phase = phase;
                self.stage = Stage::Yielded;
            }
            Flow::Pause => self.stage = Stage::Paused,
            Flow::Unchanged => {}
            Flow::Close => self.close(false, if self.ended { CloseReason::Peer } else { CloseReason::Done }),
            Flow::Linger => self.close(true, CloseReason::Done),
            Flow::Refuse => self.close(true, CloseReason::Refused),
            Flow::Abort => {
                self.stream.abort();
                self.pending = None;
                self.ended = true;
                self.close(false, CloseReason::Refused);
            }
        }
    }
}

#[cfg(all(test, unix, target_pointer_width = "64"))]
mod tests {
    use super::*;
    use crate::r#loop::SystemStream;

    /// Most connections are idle. What only some of them need is allocated when it is needed.
    #[test]
    fn a_connection_is_small() {
        assert_eq!(size_of::<Option<Connection<SystemStream, [u64; 5]>>>(), 120);
    }
}
