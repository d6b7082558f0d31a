//! A door: a listener, and when to leave it alone.
//!
//! An error of accept never ends the listener. Some concern only the connection that came, and the next is tried at
//! once; when the process has no descriptors or memory left, or anything else is wrong, the door rests for a moment,
//! or until a connection closes, instead of spinning on a queue it cannot empty.

use std::io;
use std::net::SocketAddr;

use super::Counters;
use super::readiness::{Interest, Listener, Readiness, Token};

/// How long a door rests when the system has no resources for another connection.
const PAUSE_MS: u64 = 100;

/// At most one complaint in this time.
const LOG_EVERY_MS: u64 = 1000;

/// So many faulty connections in a row are taken for a fault of the system.
const FAULTS_MAX: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody waits, until the backend reports.
    Quiet,
    /// Somebody may wait.
    Ready,
    /// The loop holds as many connections as it may, until one closes.
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
pub(super) struct Door<B: Readiness> {
    listener: B::Listener,
    token: Token,
    state: State,
    /// What the state says about when.
    due_ms: u64,
    watched: bool,
    logged_ms: Option<u64>,
    /// Faulty connections in a row.
    faults: u32,
}

impl<B: Readiness> Door<B> {
    pub(super) fn open(mut listener: B::Listener, backlog: u32, backend: &mut B, token: Token) -> io::Result<Self> {
        listener.prepare(backlog)?;
        backend.add(listener.source(), token, Interest::READ)?;
        Ok(Door { listener, token, state: State::Quiet, due_ms: u64::MAX, watched: true, logged_ms: None, faults: 0 })
    }

    /// The backend reported the listener.
    pub(super) fn note(&mut self) {
        if self.state == State::Quiet {
            self.enter(State::Ready);
        }
    }

    /// When accepting can go on without an event: 0 for at once, `u64::MAX` for never.
    #[inline]
    pub(super) fn due_ms(&self) -> u64 {
        self.due_ms
    }

    #[inline]
    fn enter(&mut self, state: State) {
        self.state = state;
        self.due_ms = match state {
            State::Ready => 0,
            State::Paused(until_ms) => until_ms,
            State::Quiet | State::Full => u64::MAX,
        };
    }

    /// Whether nobody waits here, as far as is known.
    pub(super) fn is_quiet(&self) -> bool {
        self.state == State::Quiet
    }

    /// A connection closed.
    #[inline]
    pub(super) fn room_was_made(&mut self) {
        if matches!(self.state, State::Full | State::Paused(_)) {
            self.enter(State::Ready);
        }
    }

    /// The loop drains: nobody new, where the system can do that, but everybody who has come. Says whether it can.
    pub(super) fn turn_away(&mut self) -> bool {
        self.enter(State::Ready);
        self.listener.turn_away()
    }

    /// There is no room. Where other loops share it, nobody tells when they make some.
    pub(super) fn rest_while_full(&mut self, backend: &mut B, now_ms: u64, shared: bool) {
        self.complain(now_ms, "as many connections as may be (--max-connections); others wait");
        self.rest(backend, if shared { State::Paused(now_ms + PAUSE_MS) } else { State::Full });
    }

    pub(super) fn accept(&mut self, backend: &mut B, counters: &mut Counters, now_ms: u64) -> Admission<B::Stream> {
        self.enter(State::Ready);
        counters.accepts += 1;
        let error = match self.listener.accept() {
            Ok((stream, peer)) => {
                self.faults = 0;
                return Admission::Stream(stream, peer);
            }
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::WouldBlock {
            self.faults = 0;
            self.enter(State::Quiet);
            self.watch(backend, true, now_ms);
            return Admission::Enough;
        }
        counters.accept_errors += 1;
        if concerns_one_connection(&error) && self.faults < FAULTS_MAX {
            self.faults += 1;
            return Admission::Again;
        }
        self.faults = 0;
        self.complain(now_ms, format_args!("cannot accept: {error}; trying again"));
        self.rest(backend, State::Paused(now_ms + PAUSE_MS));
        Admission::Enough
    }

    fn rest(&mut self, backend: &mut B, state: State) {
        self.enter(state);
        self.watch(backend, false, 0);
    }

    /// A level-triggered backend would report a resting door without end.
    fn watch(&mut self, backend: &mut B, watched: bool, now_ms: u64) {
        if !B::REPEATS || self.watched == watched {
            return;
        }
        let interest = if watched { Interest::READ } else { Interest::NONE };
        match backend.set_interest(self.listener.source(), self.token, interest) {
            Ok(()) => self.watched = watched,
            Err(error) => {
                self.complain(now_ms, format_args!("cannot change the interest in a listener: {error}"));
                if watched {
                    // Nobody would tell who comes: look again soon.
                    self.enter(State::Paused(now_ms + PAUSE_MS));
                }
            }
        }
    }

    fn complain(&mut self, now_ms: u64, what: impl std::fmt::Display) {
        if self.logged_ms.is_none_or(|logged| now_ms >= logged + LOG_EVERY_MS) {
            self.logged_ms = Some(now_ms);
            log::warn!("{what}");
        }
    }

    /// Closes the door. Who still waits is reset by the system, so let them in before.
    pub(super) fn close(self, backend: &mut B) {
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
