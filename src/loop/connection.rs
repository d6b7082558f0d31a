//! One accepted connection: its stream, its buffers, and one step of its life.
//!
//! Readiness is remembered in two sticky bits. A step writes what is pending, reads at most a quota,
//! shows the application what came, and writes its answer at once; only what the socket does not take
//! is kept. So the common case is one read and one write, and an idle connection owns no buffer.

use std::io;

use self::sending::Disk;
use super::app::{App, Closed, ConnId, Phase};
use super::eager::Eager;
use super::output::Output;
use super::readiness::{Interest, Stream};
use super::{Counters, Limits};

mod calling;
mod parting;
mod receiving;
mod sending;

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
}
