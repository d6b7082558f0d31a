//! The listeners of a loop or of an acceptor thread: accepting in rounds, back-off after errors and at the connection
//! limit, and closing without resetting connections.
//!
//! An accept error never closes the listener. After an error that concerns only the new connection, the next accept
//! follows immediately. After any other error, such as a lack of memory, accepting pauses for [`PAUSE_MS`] or until a
//! connection closes, instead of spinning on a queue that cannot be emptied. At the connection limit, or out of file
//! descriptors, it pauses too if a connection is waiting; the caller can make room for it by closing an idle one.

use std::io;
use std::net::IpAddr;

use super::connection_limit::ConnectionLimit;
use super::limits::Counters;
use super::peer::Peer;
use super::readiness::{Interest, Listener, Readiness, Stream, Token, would_block};

/// Pause after an accept error that is not specific to one connection.
const PAUSE_MS: u64 = 100;

/// Minimum interval between two warnings about one listener.
const WARNING_INTERVAL_MS: u64 = 1000;

/// If new handshakes can be blocked, closing listeners stay open this long for handshakes in progress: a few round
/// trips of a local network. It must be short, since a client whose SYN is dropped retries only after a second, while
/// one that is refused can try another server at once.
const CLOSE_DELAY_MS: u64 = 2;

/// The delay instead of [`CLOSE_DELAY_MS`] if clients connect over the internet.
const CLOSE_DELAY_PUBLIC_MS: u64 = 100;

/// Delay between attempts to close a listener whose queue cannot be emptied.
const CLOSE_RETRY_MS: u64 = 100;

/// Attempts to empty the queue of a failing listener once no connection is left that could free resources.
const CLOSE_ATTEMPTS_MAX: u32 = 10;

/// Maximum consecutive per-connection errors; after that, accepting pauses as it does after any other error.
const ERRORS_MAX: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Accept queue empty; waiting for readiness.
    Empty,
    /// The queue may be non-empty.
    Ready,
    /// Paused until this time, or until a connection closes.
    Paused(u64),
}

/// Outcome of one accept call.
enum Accept<S> {
    /// An accepted connection and its peer.
    Connection(S, Peer),
    /// The connection failed before it was accepted; the queue may hold others.
    Retry,
    /// A connection is waiting, but the connection limit is reached or the process is out of file descriptors.
    /// Accepting is paused.
    NoRoom,
    /// The queue is empty, or accepting is paused.
    Done,
}

/// Outcome of a step of an [`AcceptRound`].
pub(super) enum AcceptStep<S> {
    Connection(NewConnection<S>),
    /// A connection is waiting, but the connection limit is reached or the process is out of file descriptors. Unless
    /// [`Listeners::on_capacity_freed`] is called, the round continues with the next listener.
    NoRoom,
    /// The round is complete.
    Done,
}

/// A connection from one of several listeners.
pub(super) struct NewConnection<S> {
    /// Index of the listener, in the order in which they were opened.
    pub(super) listener: usize,
    pub(super) stream: S,
    pub(super) peer: Peer,
}

/// A pass over all listeners that accepts up to a quota of connections from each.
pub(super) struct AcceptRound {
    /// Position of the current listener.
    position: usize,
    quota: usize,
    /// The rest of the quota for the current listener.
    left: usize,
}

impl AcceptRound {
    pub(super) fn new(quota: usize) -> Self {
        AcceptRound { position: 0, quota, left: quota }
    }
}

/// The backend, counters, connection limit and time for an [`AcceptRound`].
pub(super) struct AcceptContext<'a, B> {
    pub(super) backend: &'a mut B,
    pub(super) counters: &'a mut Counters,
    pub(super) limit: &'a ConnectionLimit,
    pub(super) now_ms: u64,
}

/// The attempts to close the listeners in a graceful shutdown.
#[derive(Clone, Copy)]
struct Closing {
    /// Time of the next attempt; `u64::MAX` before [`Listeners::schedule_close`].
    at_ms: u64,
    attempts: u32,
    /// New handshakes are blocked.
    can_block: bool,
}

/// The listeners of a loop or of an acceptor thread.
pub(super) struct Listeners<B: Readiness> {
    open: Vec<ManagedListener<B>>,
    /// Set once a graceful shutdown has begun.
    closing: Option<Closing>,
    /// A listener may be waiting for a connection to close.
    may_wait: bool,
}

/// The token of the first listener. Listener tokens count downwards from here; the value above is the backend's own.
const TOKEN_BASE: usize = usize::MAX - 1;

impl<B: Readiness> Listeners<B> {
    pub(super) fn new() -> Self {
        Listeners { open: Vec::new(), closing: None, may_wait: false }
    }

    pub(super) fn add(&mut self, listener: B::Listener, backlog: u32, backend: &mut B) -> io::Result<()> {
        let token = Token(TOKEN_BASE - self.open.len());
        self.open.push(ManagedListener::open(listener, backlog, backend, token)?);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Records a readiness event. Returns whether the token is that of a listener.
    #[inline(never)]
    pub(super) fn mark_ready(&mut self, token: Token) -> bool {
        let found = self.open.iter_mut().find(|listener| listener.token == token);
        let is_listener = found.is_some();
        found.into_iter().for_each(ManagedListener::mark_ready);
        is_listener
    }

    /// Returns the time of the next accept without an event: 0 for at once, `u64::MAX` for never.
    #[inline]
    pub(super) fn next_accept_ms(&self) -> u64 {
        match &self.open[..] {
            // The usual case, for which the compiler's loop over several at once is slow.
            [only] => only.due_ms,
            several => several.iter().fold(u64::MAX, |next, listener| next.min(listener.due_ms)),
        }
    }

    /// Returns whether a listener is due for accepting.
    #[inline]
    pub(super) fn is_accept_due(&self, now_ms: u64) -> bool {
        self.open.iter().any(|listener| listener.due_ms <= now_ms)
    }

    /// Returns the time of the next attempt to close the listeners; `u64::MAX` for never.
    pub(super) fn next_close_ms(&self) -> u64 {
        self.closing.map_or(u64::MAX, |closing| closing.at_ms)
    }

    /// Resumes accepting after a connection has closed.
    #[inline]
    pub(super) fn on_capacity_freed(&mut self) {
        if self.may_wait {
            self.may_wait = false;
            self.open.iter_mut().for_each(ManagedListener::on_capacity_freed);
        }
    }

    /// Accepts the next connection of a round, and reserves its slot in the connection limit.
    #[allow(clippy::inline_always, reason = "hot path of a connection: a result is large, and a call would copy it")]
    #[inline(always)]
    pub(super) fn accept(
        &mut self,
        round: &mut AcceptRound,
        mut context: AcceptContext<'_, B>,
    ) -> AcceptStep<B::Stream> {
        let enforce_limit = self.closing.is_none();
        while let Some(listener) = self.open.get_mut(round.position) {
            while round.left > 0 && listener.due_ms <= context.now_ms {
                round.left -= 1;
                match listener.accept_counted(&mut context, enforce_limit) {
                    Accept::Connection(stream, peer) => {
                        let listener = TOKEN_BASE - listener.token.0;
                        return AcceptStep::Connection(NewConnection { listener, stream, peer });
                    }
                    Accept::Retry => {}
                    Accept::NoRoom => {
                        self.may_wait = true;
                        return AcceptStep::NoRoom;
                    }
                    Accept::Done => {
                        self.may_wait |= listener.state != State::Empty;
                        break;
                    }
                }
            }
            round.position += 1;
            round.left = round.quota;
        }
        AcceptStep::Done
    }

    /// Begins a graceful shutdown: stops new connections where the system supports it. From now on the connection limit
    /// is not enforced: connections already in the queue would otherwise be reset.
    ///
    /// A handshake in progress belongs to the listener that received its SYN, even if several listeners share the port,
    /// and is reset when that listener closes. If the system can block new handshakes, the listeners therefore stay
    /// open for a few more round trips. The caller accepts what is queued, calls [`Listeners::schedule_close`], and
    /// then [`Listeners::begin_close_attempt`] in every turn. Returns whether the system can block handshakes.
    pub(super) fn start_closing(&mut self) -> bool {
        let mut can_block = true;
        for listener in &mut self.open {
            can_block &= listener.stop_new_connections();
        }
        self.closing = Some(Closing { at_ms: u64::MAX, attempts: 0, can_block });
        can_block
    }

    /// Sets the time at which the listeners close: later if clients connect from public addresses.
    pub(super) fn schedule_close(&mut self, now_ms: u64, has_public_peers: bool) {
        if let Some(closing) = &mut self.closing {
            let delay_ms = if has_public_peers { CLOSE_DELAY_PUBLIC_MS } else { CLOSE_DELAY_MS };
            // The clock is truncated to milliseconds; an extra one keeps the time from being too short.
            closing.at_ms = if closing.can_block { now_ms + delay_ms + 1 } else { now_ms };
        }
    }

    /// Returns whether an attempt to close the listeners is due. If so, all listeners are due for a last accept, after
    /// which [`Listeners::end_close_attempt`] closes those whose queue is empty.
    pub(super) fn begin_close_attempt(&mut self, now_ms: u64) -> bool {
        let due = self.closing.as_mut().filter(|closing| closing.at_ms <= now_ms);
        let is_due = due.is_some();
        if let Some(closing) = due {
            closing.attempts += 1;
            self.open.iter_mut().for_each(ManagedListener::mark_ready);
        }
        is_due
    }

    /// Closes the listeners with an empty queue and schedules another attempt for the others, since accepting can fail
    /// for lack of descriptors or memory. After [`CLOSE_ATTEMPTS_MAX`] attempts closes all of them if `may_give_up`,
    /// that is, if no open connection is left that could free such resources.
    pub(super) fn end_close_attempt(&mut self, backend: &mut B, now_ms: u64, may_give_up: bool) {
        let Some(closing) = &mut self.closing else { return };
        let give_up = may_give_up && closing.attempts > CLOSE_ATTEMPTS_MAX;
        let (closed, open) = self.open.drain(..).partition(|listener| give_up || listener.state == State::Empty);
        self.open = open;
        let closed: Vec<ManagedListener<B>> = closed;
        for listener in closed {
            listener.close(backend);
        }
        closing.at_ms = if self.open.is_empty() { u64::MAX } else { now_ms + CLOSE_RETRY_MS };
    }

    /// Closes all listeners at once.
    pub(super) fn close_all(&mut self, backend: &mut B) {
        self.open.drain(..).for_each(|listener| listener.close(backend));
    }
}

/// A listener registered with a backend, and its accept back-off state.
struct ManagedListener<B: Readiness> {
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
    fn open(mut listener: B::Listener, backlog: u32, backend: &mut B, token: Token) -> io::Result<Self> {
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
    fn mark_ready(&mut self) {
        if self.state == State::Empty {
            self.enter(State::Ready);
        }
    }

    #[inline]
    fn enter(&mut self, state: State) {
        self.state = state;
        self.due_ms = match state {
            State::Ready => 0,
            State::Paused(until_ms) => until_ms,
            State::Empty => u64::MAX,
        };
    }

    /// Resumes accepting after a connection has closed.
    #[inline]
    fn on_capacity_freed(&mut self) {
        if matches!(self.state, State::Paused(_)) {
            self.enter(State::Ready);
        }
    }

    /// Stops new connections for a graceful shutdown, where the system supports it (see
    /// [`Listener::stop_new_connections`]); those already in the accept queue are still accepted. Returns whether the
    /// system supports it.
    fn stop_new_connections(&mut self) -> bool {
        self.enter(State::Ready);
        self.listener.stop_new_connections()
    }

    /// Pauses accepting at the connection limit, or out of file descriptors, if a connection is waiting. Otherwise
    /// waits for the next one.
    #[cold]
    fn on_no_room(&mut self, backend: &mut B, now_ms: u64, error: Option<&io::Error>) -> Accept<B::Stream> {
        if !self.listener.has_waiting() {
            self.enter(State::Empty);
            self.set_watched(backend, true, now_ms);
            return Accept::Done;
        }
        if self.may_warn(now_ms) {
            match error {
                Some(error) => log::warn!("cannot accept: {error}; retrying"),
                None => log::warn!(
                    target: "serverd::loop::connection_limit",
                    "connection limit reached; closing idle connections for new ones, which otherwise wait in the \
                     listen queue"
                ),
            }
        }
        self.pause(backend, now_ms);
        Accept::NoRoom
    }

    /// Accepts one connection, with a slot in the connection limit.
    #[allow(clippy::inline_always, reason = "hot path of a connection")]
    #[inline(always)]
    fn accept_counted(&mut self, context: &mut AcceptContext<'_, B>, enforce_limit: bool) -> Accept<B::Stream> {
        let has_slot = self.listener.is_counted();
        let AcceptContext { backend, limit, now_ms, .. } = context;
        if !has_slot {
            if !enforce_limit {
                limit.reserve();
            } else if !limit.try_reserve() {
                return self.on_no_room(backend, *now_ms, None);
            }
        }
        let mut outcome = self.accept(context);
        if has_slot {
            return outcome;
        }
        if context.limit.is_per_address() {
            outcome = refuse_above_limit(outcome, context);
        }
        match outcome {
            Accept::Connection(..) => context.limit.commit(),
            Accept::Retry | Accept::NoRoom | Accept::Done => context.limit.cancel(),
        }
        outcome
    }

    #[allow(clippy::inline_always, reason = "hot path of a connection")]
    #[inline(always)]
    fn accept(&mut self, context: &mut AcceptContext<'_, B>) -> Accept<B::Stream> {
        let AcceptContext { backend, counters, now_ms, .. } = context;
        let now_ms = *now_ms;
        self.enter(State::Ready);
        counters.accepts += 1;
        let error = match self.listener.accept() {
            Ok((stream, peer)) => {
                self.errors = 0;
                return Accept::Connection(stream, peer);
            }
            Err(error) => error,
        };
        if would_block(&error) {
            self.errors = 0;
            self.enter(State::Empty);
            self.set_watched(backend, true, now_ms);
            return Accept::Done;
        }
        counters.accept_errors += 1;
        counters.accept_error_numbers.count(&error);
        self.handle_error(backend, now_ms, &error)
    }

    #[cold]
    fn handle_error(&mut self, backend: &mut B, now_ms: u64, error: &io::Error) -> Accept<B::Stream> {
        if is_per_connection(error) && self.errors < ERRORS_MAX {
            self.errors += 1;
            return Accept::Retry;
        }
        self.errors = 0;
        if is_out_of_descriptors(error) {
            return self.on_no_room(backend, now_ms, Some(error));
        }
        self.warn_rate_limited(now_ms, format_args!("cannot accept: {error}; retrying"));
        self.pause(backend, now_ms);
        Accept::Done
    }

    fn pause(&mut self, backend: &mut B, now_ms: u64) {
        self.enter(State::Paused(now_ms + PAUSE_MS));
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
        if self.may_warn(now_ms) {
            log::warn!("{what}");
        }
    }

    /// Returns whether the last warning is long enough ago for another.
    fn may_warn(&mut self, now_ms: u64) -> bool {
        let may_warn = self.logged_ms.is_none_or(|logged| now_ms >= logged + WARNING_INTERVAL_MS);
        if may_warn {
            self.logged_ms = Some(now_ms);
        }
        may_warn
    }

    /// Closes the listener. The kernel resets queued connections; drain the queue first.
    fn close(self, backend: &mut B) {
        if let Err(error) = backend.remove(self.listener.source(), self.token) {
            log::warn!("cannot deregister a listener: {error}");
        }
    }
}

/// Resets an accepted connection if its address has as many open as allowed; a FIN would leave the server with a socket
/// in TIME-WAIT for each.
#[inline(never)]
fn refuse_above_limit<S: Stream, B>(outcome: Accept<S>, context: &mut AcceptContext<'_, B>) -> Accept<S> {
    match outcome {
        // A Unix socket has no address to limit.
        Accept::Connection(mut stream, peer)
            if peer.ip().is_some_and(|address| !context.limit.try_reserve_address(address)) =>
        {
            context.counters.refused += 1;
            stream.abort();
            Accept::Retry
        }
        other => other,
    }
}

/// Returns whether a peer is neither on this machine nor in a private network.
pub(super) fn is_public(peer: Peer) -> bool {
    let Some(address) = peer.ip() else { return false };
    match address.to_canonical() {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified()),
        IpAddr::V6(ip) => {
            !(ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_unspecified())
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

/// Returns whether the process or the system is out of file descriptors.
#[cfg(unix)]
fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(not(unix))]
fn is_out_of_descriptors(error: &io::Error) -> bool {
    const WSAEMFILE: i32 = 10_024;
    error.raw_os_error() == Some(WSAEMFILE)
}

#[cfg(unix)]
fn is_protocol_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::PROTO.raw_os_error())
}

#[cfg(not(unix))]
fn is_protocol_error(_: &io::Error) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#loop::Select;

    #[test]
    fn addresses_of_private_networks_are_not_public() {
        for (text, expected) in [
            ("127.0.0.1:1", false),
            ("10.1.2.3:1", false),
            ("172.31.0.1:1", false),
            ("192.168.0.9:1", false),
            ("169.254.1.1:1", false),
            ("93.184.216.34:1", true),
            ("172.32.0.1:1", true),
            ("[::1]:1", false),
            ("[::ffff:10.0.0.1]:1", false),
            ("[::ffff:93.184.216.34]:1", true),
            ("[fd00::1]:1", false),
            ("[fe80::1]:1", false),
            ("[2606:2800:220::1]:1", true),
        ] {
            assert_eq!(is_public(Peer::Tcp(text.parse().unwrap())), expected, "{text}");
        }
        assert!(!is_public(Peer::Unix));
    }

    #[test]
    fn listeners_stay_open_longer_for_public_peers_and_not_at_all_if_handshakes_cannot_be_blocked() {
        for (can_block, has_public_peers, expected_ms) in [(true, false, 1003), (true, true, 1101), (false, true, 1000)]
        {
            let mut listeners = Listeners::<Select>::new();
            listeners.closing = Some(Closing { at_ms: u64::MAX, attempts: 0, can_block });
            assert!(!listeners.begin_close_attempt(1_000_000));
            listeners.schedule_close(1000, has_public_peers);
            assert_eq!(listeners.next_close_ms(), expected_ms);
        }
    }
}
