//! A door: a listener, and when to leave it alone.
//!
//! An error of accept never ends the listener. Some concern only the connection that came; when the
//! process has no descriptors or memory left the door rests for a moment, or until a connection closes,
//! instead of spinning on a queue it cannot empty.

use std::io;
use std::net::SocketAddr;

use super::Counters;
use super::readiness::{Interest, Listener, Readiness, Token};

/// How long a door rests when the system has no resources for another connection.
const PAUSE_MS: u64 = 100;

/// At most one complaint in this time.
const LOG_EVERY_MS: u64 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody waits, until the backend reports.
    Quiet,
    /// Somebody may wait.
    Ready,
    /// The loop holds as many connections as it may.
    Full,
    /// Resting until this time.
    Paused(u64),
}

/// What stood at a door.
pub(super) enum Admission<S> {
    /// A connection.
    Stream(S, SocketAddr),
    /// One that was gone already; there may be more.
    Again,
    /// Nobody, or no room.
    Enough,
}

/// A listener of a loop.
pub(super) struct Door<L> {
    listener: L,
    token: Token,
    state: State,
    watched: bool,
    logged_ms: Option<u64>,
}

impl<L: Listener> Door<L> {
    pub(super) fn open<B: Readiness>(mut listener: L, backend: &mut B, token: Token) -> io::Result<Self> {
        listener.prepare()?;
        backend.add(listener.source(), token, Interest::READ)?;
        Ok(Door { listener, token, state: State::Quiet, watched: true, logged_ms: None })
    }

    /// The backend reported the listener.
    pub(super) fn note(&mut self) {
        if self.state == State::Quiet {
            self.state = State::Ready;
        }
    }

    /// Whether accepting can go on without an event.
    pub(super) fn is_unfinished(&self, now_ms: u64) -> bool {
        match self.state {
            State::Ready => true,
            State::Paused(until_ms) => until_ms <= now_ms,
            State::Quiet | State::Full => false,
        }
    }

    /// When a rest ends.
    pub(super) fn paused_until_ms(&self) -> Option<u64> {
        if let State::Paused(until_ms) = self.state { Some(until_ms) } else { None }
    }

    /// A connection closed.
    #[inline]
    pub(super) fn room_was_made(&mut self) {
        if matches!(self.state, State::Full | State::Paused(_)) {
            self.state = State::Ready;
        }
    }

    pub(super) fn accept<B: Readiness>(
        &mut self,
        backend: &mut B,
        counters: &mut Counters,
        now_ms: u64,
        room: bool,
    ) -> Admission<L::Stream> {
        if !self.is_unfinished(now_ms) {
            return Admission::Enough;
        }
        if !room {
            self.rest(backend, State::Full);
            return Admission::Enough;
        }
        self.state = State::Ready;
        counters.accepts += 1;
        match self.listener.accept() {
            Ok((stream, peer)) => Admission::Stream(stream, peer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.state = State::Quiet;
                self.watch(backend, true);
                Admission::Enough
            }
            Err(error) if concerns_one_connection(&error) => Admission::Again,
            Err(error) => {
                self.complain(&error, now_ms);
                self.rest(backend, State::Paused(now_ms + PAUSE_MS));
                Admission::Enough
            }
        }
    }

    fn rest<B: Readiness>(&mut self, backend: &mut B, state: State) {
        self.state = state;
        self.watch(backend, false);
    }

    /// A level-triggered backend would report a resting door without end.
    fn watch<B: Readiness>(&mut self, backend: &mut B, watched: bool) {
        if !B::REPEATS || self.watched == watched {
            return;
        }
        let interest = if watched { Interest::READ } else { Interest::NONE };
        match backend.set_interest(self.listener.source(), self.token, interest) {
            Ok(()) => self.watched = watched,
            Err(error) => log::error!("cannot change the interest in a listener: {error}"),
        }
    }

    fn complain(&mut self, error: &io::Error, now_ms: u64) {
        if self.logged_ms.is_none_or(|logged| now_ms >= logged + LOG_EVERY_MS) {
            self.logged_ms = Some(now_ms);
            log::warn!("cannot accept: {error}; trying again");
        }
    }

    /// Closes the door. Who still waits is reset by the system, so let them in before.
    pub(super) fn close<B: Readiness>(self, backend: &mut B) {
        if let Err(error) = backend.remove(self.listener.source(), self.token) {
            log::warn!("cannot stop watching a listener: {error}");
        }
    }
}

/// Whether an error of accept tells only of the connection that came, accept(2): the next one may be fine.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
        NotConnected, PermissionDenied, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | NotConnected
            | PermissionDenied
            | TimedOut
    ) || is_protocol_error(error)
}

#[cfg(unix)]
fn is_protocol_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::PROTO.raw_os_error())
}

#[cfg(not(unix))]
fn is_protocol_error(_: &io::Error) -> bool {
    false
}
