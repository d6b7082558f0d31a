//! A listener with its accept back-off state.
//!
//! An accept error never closes the listener. After an error that concerns only the new connection, the next accept
//! follows immediately. After any other error, such as running out of file descriptors or memory, accepting pauses for
//! [`PAUSE_MS`] or until a connection closes, instead of spinning on a queue that cannot be emptied.

use std::io;
use std::net::SocketAddr;

use super::Counters;
use super::readiness::{Interest, Listener, Readiness, Token};

/// Pause after an accept error that is not specific to one connection.
const PAUSE_MS: u64 = 100;

/// Minimum interval between two warnings about one listener.
const WARNING_INTERVAL_MS: u64 = 1000;

/// Maximum consecutive per-connection errors; after that, accepting pauses as it does after any other error.
const ERRORS_MAX: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Accept queue empty; waiting for readiness.
    Empty,
    /// The queue may be non-empty.
    Ready,
    /// The connection limit is reached; waiting for a connection to close.
    Full,
    /// Paused until this time.
    Paused(u64),
}

/// Outcome of one accept call.
pub(super) enum Accept<S> {
    /// An accepted connection and its peer address.
    Connection(S, SocketAddr),
    /// The connection failed before it was accepted; the queue may hold others.
    Retry,
    /// The queue is empty, or accepting is paused.
    Done,
}

/// A listener registered with a backend, and its accept back-off state.
pub(super) struct ManagedListener<B: Readiness> {
    listener: B::Listener,
    token: Token,
    state: State,
    /// Time from which accepting is possible; derived from `state`, and cached because it is read in every turn.
    due_ms: u64,
    /// The backend reports readiness of the listener.
    watched: bool,
    /// Time of the last warning.
    logged_ms: Option<u64>,
    /// Consecutive per-connection errors.
    errors: u32,
}

impl<B: Readiness> ManagedListener<B> {
    pub(super) fn open(mut listener: B::Listener, backlog: u32, backend: &mut B, token: Token) -> io::Result<Self> {
        listener.prepare(backlog)?;
        backend.add(listener.source(), token, Interest::READ)?;
        Ok(ManagedListener {
            listener,
            token,
            state: State::Empty,
            due_ms: u64::MAX,
            watched: true,
            logged_ms: None,
            errors: 0,
        })
    }

    /// Records a readiness event of the listener.
    pub(super) fn mark_ready(&mut self) {
        if self.state == State::Empty {
            self.enter(State::Ready);
        }
    }

    /// Returns the time from which accepting is possible without a readiness event: 0 means now, `u64::MAX` never.
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
            State::Empty | State::Full => u64::MAX,
        };
    }

    /// Returns whether the accept queue was empty at the last check.
    pub(super) fn is_empty(&self) -> bool {
        self.state == State::Empty
    }

    /// Resumes accepting after a connection has closed.
    #[inline]
    pub(super) fn on_capacity_freed(&mut self) {
        if matches!(self.state, State::Full | State::Paused(_)) {
            self.enter(State::Ready);
        }
    }

    /// Stops new connections for a graceful shutdown, where the system supports it (see
    /// [`Listener::stop_new_connections`]); those already in the accept queue are still accepted. Returns whether the
    /// system supports it.
    pub(super) fn stop_new_connections(&mut self) -> bool {
        self.enter(State::Ready);
        self.listener.stop_new_connections()
    }

    /// Pauses accepting at the connection limit. With a shared limit, no notification arrives when another loop closes
    /// a connection, so accepting is retried after [`PAUSE_MS`].
    pub(super) fn pause_until_capacity(&mut self, backend: &mut B, now_ms: u64, shared: bool) {
        self.warn_rate_limited(
            now_ms,
            "connection limit reached (--max-connections); new connections wait in the listen queue",
        );
        self.pause(backend, if shared { State::Paused(now_ms + PAUSE_MS) } else { State::Full });
    }

    pub(super) fn accept(&mut self, backend: &mut B, counters: &mut Counters, now_ms: u64) -> Accept<B::Stream> {
        self.enter(State::Ready);
        counters.accepts += 1;
        let error = match self.listener.accept() {
            Ok((stream, peer)) => {
                self.errors = 0;
                return Accept::Connection(stream, peer);
            }
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::WouldBlock {
            self.errors = 0;
            self.enter(State::Empty);
            self.set_watched(backend, true, now_ms);
            return Accept::Done;
        }
        counters.accept_errors += 1;
        if is_per_connection(&error) && self.errors < ERRORS_MAX {
            self.errors += 1;
            return Accept::Retry;
        }
        self.errors = 0;
        self.warn_rate_limited(now_ms, format_args!("cannot accept: {error}; retrying"));
        self.pause(backend, State::Paused(now_ms + PAUSE_MS));
        Accept::Done
    }

    fn pause(&mut self, backend: &mut B, state: State) {
        self.enter(state);
        self.set_watched(backend, false, 0);
    }

    /// Changes the readiness interest of the listener. Only level-triggered backends need this: they would report a
    /// paused listener in every wait.
    fn set_watched(&mut self, backend: &mut B, watched: bool, now_ms: u64) {
        if !B::LEVEL_TRIGGERED || self.watched == watched {
            return;
        }
        let interest = if watched { Interest::READ } else { Interest::NONE };
        match backend.set_interest(self.listener.source(), self.token, interest) {
            Ok(()) => self.watched = watched,
            Err(error) => {
                self.warn_rate_limited(
                    now_ms,
                    format_args!("cannot change the readiness interest of a listener: {error}"),
                );
                if watched {
                    // No event will arrive, so retry after a pause.
                    self.enter(State::Paused(now_ms + PAUSE_MS));
                }
            }
        }
    }

    fn warn_rate_limited(&mut self, now_ms: u64, what: impl std::fmt::Display) {
        if self.logged_ms.is_none_or(|logged| now_ms >= logged + WARNING_INTERVAL_MS) {
            self.logged_ms = Some(now_ms);
            log::warn!("{what}");
        }
    }

    /// Closes the listener. The kernel resets queued connections; drain the queue first.
    pub(super) fn close(self, backend: &mut B) {
        if let Err(error) = backend.remove(self.listener.source(), self.token) {
            log::warn!("cannot deregister a listener: {error}");
        }
    }
}

/// Returns whether an accept error concerns only the connection at the head of the queue, so that the next accept may
/// succeed; see accept(2).
fn is_per_connection(error: &io::Error) -> bool {
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
