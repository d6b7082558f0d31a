//! The limits and timeouts of a loop and its connections, and the counters of its activity.

use std::time::Duration;

use super::app::Phase;
use super::error_numbers::ErrorNumbers;

/// Resource limits of a loop and of each of its connections.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoopLimits {
    /// Maximum bytes read from one connection per turn, at least 1; also the size of the loop's read buffer. Default:
    /// 64 KiB.
    pub read_bytes_per_turn: usize,
    /// Maximum bytes written to one connection per turn, at least 1. Default: 256 KiB.
    pub write_bytes_per_turn: usize,
    /// Maximum unconsumed input of a connection. A connection whose application leaves more unconsumed is closed with
    /// an error. Default: 1 MiB.
    pub input_bytes_max: usize,
    /// High watermark of unsent output: above it the loop stops reading from the connection and calling the application
    /// (back-pressure). A slow client thus uses at most this much memory plus one response. Default: 256 KiB.
    pub output_bytes_max: usize,
    /// Low watermark of unsent output: at or below it reading resumes. Default: 128 KiB. It is well below the high
    /// watermark, so that a client that drains its output in small pieces does not cause small reads.
    pub output_resume_bytes: usize,
    /// Limit on the memory of the unconsumed input and unsent output of all connections together, of all loops that
    /// share a connection limit. An eighth of it is a reserve for connections with up to 16 KiB. When the rest is used
    /// up, those with more are closed if their input is incomplete, and reset if their peer has acknowledged nothing
    /// for 5 s. The ones that have made no progress longest are reset at once if the rest is exceeded by another
    /// eighth. Connections with less are treated in this way only once the reserve is used up as well. Default:
    /// 256 MiB.
    pub buffered_bytes_max: usize,
    /// Maximum bytes discarded in a lingering close. Default: 1 GiB, so that in practice [`Timeouts::linger_total`]
    /// applies.
    pub linger_bytes_max: u64,
    /// Sends a pending response ([`Flow::Pause`](super::Flow::Pause)) to a peer that has half-closed the connection, as
    /// RFC 9112 section 9.6 recommends. If false, the end of input means that the client is gone: the connection is
    /// closed, and a callback such as [`Responder::on_closed`](crate::Responder::on_closed) is called. Default: true.
    pub answer_half_closed: bool,
    /// Length of the listen queue, capped by the operating system (net.core.somaxconn on Linux). Default: 4,096, enough
    /// for bursts of new connections.
    pub backlog: u32,
    /// Maximum connections accepted from one listener per turn, at least 1. Default: 64.
    pub accepts_per_turn: usize,
    /// Maximum TLS handshakes continued per turn, at least 1; further ones wait for the next turn, so that established
    /// connections are served in between. A handshake takes as long as a hundred requests. Default: 2.
    pub handshakes_per_turn: usize,
    /// Maximum open connections, at least 1. At the limit the connection that has been idle longest is closed for a new
    /// one; if none is idle, new ones wait in the listen queue. Default: 1,000,000, so that in practice the file descriptor
    /// limit applies. Loops can share one limit, see
    /// [`EventLoop::share_connection_limit`](super::EventLoop::share_connection_limit).
    pub connections_max: usize,
    /// Maximum open connections of one client address; further ones are reset as soon as they are accepted, before
    /// anything is read. 0 for no limit, which is the default, and then costs nothing. IPv6 addresses are counted by
    /// /64, which is usually assigned to one customer, and IPv4-mapped ones as IPv4. Behind a proxy all connections
    /// have the address of the proxy. Loops can share one limit, see
    /// [`ConnectionLimit::per_address`](super::ConnectionLimit::per_address).
    ///
    /// # Examples
    /// ```
    /// use serverd::{EventLoop, HttpServer, LoopLimits, Select, Timeouts};
    ///
    /// let limits = LoopLimits::default().connections_per_address_max(100);
    /// let app = HttpServer::new(|_| "hello\n");
    /// let event_loop = EventLoop::<Select, _>::with_limits(Timeouts::default(), limits, app)?;
    /// # drop(event_loop);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub connections_per_address_max: usize,
    /// Maximum duration of a graceful shutdown; connections still open then are closed. Default: 30 s.
    pub drain: Duration,
}

impl LoopLimits {
    setters! {
        read_bytes_per_turn: usize,
        write_bytes_per_turn: usize,
        input_bytes_max: usize,
        output_bytes_max: usize,
        output_resume_bytes: usize,
        buffered_bytes_max: usize,
        linger_bytes_max: u64,
        answer_half_closed: bool,
        backlog: u32,
        accepts_per_turn: usize,
        handshakes_per_turn: usize,
        connections_max: usize,
        connections_per_address_max: usize,
        drain: Duration,
    }
}

impl LoopLimits {
    /// Raises the limits with which a loop could do nothing from 0 to 1.
    pub(super) fn at_least_one(mut self) -> Self {
        for limit in [
            &mut self.read_bytes_per_turn,
            &mut self.write_bytes_per_turn,
            &mut self.accepts_per_turn,
            &mut self.handshakes_per_turn,
            &mut self.connections_max,
        ] {
            *limit = (*limit).max(1);
        }
        self
    }
}

impl Default for LoopLimits {
    fn default() -> Self {
        LoopLimits {
            read_bytes_per_turn: 64 * 1024,
            write_bytes_per_turn: 256 * 1024,
            input_bytes_max: 1024 * 1024,
            output_bytes_max: 256 * 1024,
            output_resume_bytes: 128 * 1024,
            buffered_bytes_max: 256 * 1024 * 1024,
            linger_bytes_max: 1024 * 1024 * 1024,
            answer_half_closed: true,
            backlog: 4096,
            accepts_per_turn: 64,
            handshakes_per_turn: 2,
            connections_max: 1_000_000,
            connections_per_address_max: 0,
            drain: Duration::from_secs(30),
        }
    }
}

/// Activity counters of a loop since its creation. Most of them count system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Polls for events.
    pub waits: u64,
    /// Accept calls.
    pub accepts: u64,
    /// Failed accepts other than `WouldBlock`.
    pub accept_errors: u64,
    pub(super) accept_error_numbers: ErrorNumbers,
    /// Connections refused because their client address had as many open as allowed
    /// ([`LoopLimits::connections_per_address_max`]).
    pub refused: u64,
    /// Read calls.
    pub reads: u64,
    /// Output flushes (one write each, unless the output is large).
    pub writes: u64,
    /// Streams added to the backend and changes of interest.
    pub registrations: u64,
    /// Handshakes of TLS and of the PROXY protocol that were completed.
    pub handshakes: u64,
    /// Handshakes that were not completed, for any reason.
    pub failed_handshakes: u64,
    /// Connections closed.
    pub closes: u64,
    /// Application panics caught.
    pub panics: u64,
}

/// The timeouts of a loop's connections. `None` means no timeout.
///
/// Timeouts have a resolution of one millisecond and never expire early. They may expire late, by at most 550 ms or a
/// sixteenth of the timeout, whichever is less: deadlines are coalesced so that one wake-up handles many connections.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Timeouts {
    /// Maximum time from accept to the end of a TLS handshake. Default: 10 s.
    pub handshake: Option<Duration>,
    /// Maximum time from accept to the first byte, so that a client that sends nothing does not hold a file descriptor.
    /// Default: 10 s.
    pub silent: Option<Duration>,
    /// Maximum time from the first to the last byte of a message head, however steadily it arrives (protects against
    /// slowloris attacks). Default: 10 s.
    pub head: Option<Duration>,
    /// Longest pause of a message body. A body starts with a balance of 5 s, and each byte adds the time that it takes
    /// at `body_rate`, up to this maximum. The balance decreases with time while the loop reads from the connection; at
    /// zero the timeout expires. Default: 30 s.
    pub body: Option<Duration>,
    /// Minimum rate of a message body in bytes per second, over a longer time; see `body`. With 0, any byte restores
    /// the whole balance. Default: 240, as in Kestrel.
    pub body_rate: u32,
    /// Maximum idle time between messages on a persistent connection. Default: 75 s, as in nginx.
    pub idle: Option<Duration>,
    /// Timeout of [`Phase::Unlimited`], used by raw TCP applications. Default: none.
    pub open: Option<Duration>,
    /// Maximum time in which the peer acknowledges no byte of blocked output; then the connection is reset. Default:
    /// 60 s, since a proxy may buffer before it forwards. The timeout can be exceeded by a quarter, since the loop asks
    /// the kernel for the peer's progress four times per period. Where the system does not report it (Windows and
    /// OpenBSD), only the bytes that the kernel accepts count, and the timeout is four times as long.
    pub write: Option<Duration>,
    /// Maximum time without input in a lingering close, after an error response or while the peer is still sending.
    /// Default: 5 s.
    pub linger: Option<Duration>,
    /// Maximum time in which a lingering close discards input, unless the peer is still receiving output. Default:
    /// 30 s.
    pub linger_total: Option<Duration>,
    /// Maximum time to wait for the peer to close after a regular last response; data that it has sent in the meantime
    /// must not cause a reset that destroys the response. Default: 1 s, a few round trips. Once the peer sends
    /// something, `linger` applies instead.
    pub linger_briefly: Option<Duration>,
    /// Interval at which the loop checks whether a peer that waits for a response has reset the connection, or has
    /// acknowledged nothing of earlier output for `write`. epoll and kqueue report a reset at once; select does not
    /// while nothing is read or written. A peer that vanishes silently after it has acknowledged everything is detected
    /// by TCP keep-alive, which the loop enables: after 45 s of silence and 4 probes 15 s apart. Default: 15 s.
    pub presence: Duration,
}

impl Timeouts {
    optional_setters! {
        handshake: Duration,
        silent: Duration,
        head: Duration,
        body: Duration,
        idle: Duration,
        open: Duration,
        write: Duration,
        linger: Duration,
        linger_total: Duration,
        linger_briefly: Duration,
    }

    setters! {
        body_rate: u32,
        presence: Duration,
    }
}

/// Balance of a message body at its start, see [`Timeouts::body`].
pub(super) const BODY_START: Duration = Duration::from_secs(5);

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = |count| Some(Duration::from_secs(count));
        Timeouts {
            handshake: seconds(10),
            silent: seconds(10),
            head: seconds(10),
            body: seconds(30),
            body_rate: 240,
            idle: seconds(75),
            open: None,
            write: seconds(60),
            linger: seconds(5),
            linger_total: seconds(30),
            linger_briefly: seconds(1),
            presence: Duration::from_secs(15),
        }
    }
}

impl Timeouts {
    /// Sets `limit` as the upper bound of all timeouts, including those that are `None`.
    pub fn cap(&mut self, limit: Duration) {
        for timeout in [
            &mut self.handshake,
            &mut self.silent,
            &mut self.head,
            &mut self.body,
            &mut self.idle,
            &mut self.open,
            &mut self.write,
            &mut self.linger,
            &mut self.linger_total,
            &mut self.linger_briefly,
        ] {
            *timeout = Some(timeout.map_or(limit, |current| current.min(limit)));
        }
    }

    /// The time after which a phase is checked.
    pub(super) fn of(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::Handshake => self.handshake,
            Phase::AwaitingFirstByte => self.silent,
            Phase::Head => self.head,
            Phase::Body => self.body.map(|max| (max.min(BODY_START) / 5).max(Duration::from_millis(1))),
            Phase::Idle => self.idle,
            Phase::Unlimited => self.open,
            Phase::Handling => Some(self.presence),
            Phase::Writing => self.write.map(|limit| limit / 4),
            Phase::Lingering => self.linger,
            Phase::LingeringBriefly => self.linger_briefly,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_shortens_every_timeout_and_lengthens_none() {
        let mut timeouts = Timeouts::default();
        timeouts.cap(Duration::from_secs(7));
        assert_eq!(timeouts.linger, Some(Duration::from_secs(5)));
        assert_eq!(timeouts.body, Some(Duration::from_secs(7)));
        assert_eq!(timeouts.idle, Some(Duration::from_secs(7)));
        assert_eq!(timeouts.open, Some(Duration::from_secs(7)));
    }
}
