//! Clients of the simulation: each follows a script that contains the expected responses.

use bytes::Bytes;

use super::chat::Transcript;
use super::link::{End, Link};
use super::world::World;
use super::{PATTERN_BYTES, pattern};

/// Memory that a connection may take in the server: the input that is read ahead while a response is awaited, and its
/// state.
const MEMORY_MAX: usize = 24 * 1024;

/// One step of a client.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Sends bytes, in pieces.
    Send(Bytes),
    /// Sends one byte at a time, at this interval in milliseconds, until a response or the end of the stream arrives.
    Drip(u64),
    /// Sends bytes, ignoring responses, until all are sent or the server resets the connection.
    Push(Bytes),
    /// Sends as much as the server's receive buffer has room for.
    Offer(Bytes),
    /// Sends pieces of at most this size, at this interval in milliseconds. Reads nothing until all are sent or the
    /// server resets the connection.
    Trickle { pieces: usize, piece_bytes: usize, interval_ms: u64 },
    /// Pauses for this number of milliseconds.
    Pause(u64),
    /// Expects one response with this status and a body that begins with this text.
    Response(u16, String),
    /// Reads up to and including this text, the beginning of a response that does not end.
    Receive(&'static str),
    /// Reads one response with a body of this many bytes of the [`pattern`], at a limited rate.
    Download(Download),
    /// Records the time.
    Mark,
    /// Expects the end of the stream, with nothing before it.
    End,
    /// Expects that the previous step finished this long after the mark: at least and at most, in milliseconds.
    Took(u64, u64),
    /// Expects that the server has reset the connection of a client that does not read.
    WasReset,
    /// Reads the lines of a chat up to the last line of a session: at once, or some bytes every few milliseconds.
    Listen(u64),
    /// Expects one TLS alert, of which the connection need not be established, and then the end of the stream.
    Alert,
    /// Expects that the server closes or resets the connection, with or without output before that.
    Closed,
    /// Sends a TLS record that cannot be decrypted.
    Forge,
    /// Half-closes the connection.
    Finish,
    /// Half-closes the connection without `close_notify`.
    Cut,
    /// Resets the connection.
    Reset,
    /// Vanishes without a word, as a client does that loses its network.
    Vanish,
}

/// A download by a slow reader.
#[derive(Clone, Copy, Debug)]
pub(super) struct Download {
    /// Size of the body.
    pub(super) bytes: usize,
    /// Bytes read at a time.
    pub(super) piece: usize,
    pub(super) interval_ms: u64,
    /// The longest of the pauses that are made now and then.
    pub(super) pause_max_ms: u64,
    /// Interval at which the client sends a byte that the server does not expect; 0 for never.
    pub(super) send_interval_ms: u64,
    /// Reads a whole piece as fast as it arrives, before the pause.
    pub(super) bursts: bool,
}

/// Outcome of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Still running.
    Running,
    /// Completed as scripted.
    Done,
    /// The connection was refused: the server no longer listens.
    Refused,
    /// Failed, with the reason.
    Failed(String),
}

pub(super) struct Client {
    pub(super) kind: &'static str,
    script: Vec<Step>,
    /// Index of the current step.
    position: usize,
    /// Bytes sent of the current `Send`.
    sent: usize,
    pub(super) socket: Option<usize>,
    link: Link,
    /// The handshake is complete, if there is one.
    is_ready: bool,
    seen: Vec<u8>,
    /// Length of `seen` at which it is worth looking for a complete response again.
    seen_enough: usize,
    /// Body bytes of the current download, once its head has arrived.
    downloaded: Option<usize>,
    /// Bytes read of the current piece.
    piece_read: usize,
    /// When the current download sends an unexpected byte.
    sends_us: u64,
    mark_us: u64,
    /// End of the current pause.
    until_us: Option<u64>,
    /// Time at which the first byte of the last `Send` was sent; with TLS, the whole record of that byte.
    requested_us: u64,
    /// That record is still being sent.
    is_requesting: bool,
    /// The server has announced the close, with `Connection: close`.
    pub(super) close_announced: bool,
    pub(super) outcome: Outcome,
    pub(super) responses: usize,
    pub(super) transcript: Transcript,
    /// Memory that the connection may take in the server.
    pub(super) memory_max: usize,
}

/// Result of reading from the server.
enum Received {
    Incomplete,
    Response {
        status: u16,
        body: String,
        close: bool,
    },
    End,
    /// The end of the stream, without `close_notify`.
    Truncated,
    Reset,
}

impl Client {
    pub(super) fn new(kind: &'static str, script: Vec<Step>) -> Self {
        Client {
            kind,
            script,
            position: 0,
            sent: 0,
            socket: None,
            link: Link::Plain,
            is_ready: false,
            seen: Vec::new(),
            seen_enough: 0,
            downloaded: None,
            piece_read: 0,
            sends_us: 0,
            mark_us: 0,
            until_us: None,
            requested_us: 0,
            is_requesting: false,
            close_announced: false,
            outcome: Outcome::Running,
            responses: 0,
            transcript: Transcript::default(),
            memory_max: MEMORY_MAX,
        }
    }

    /// Uses this end of a connection in place of a plain one.
    pub(super) fn over(self, link: Link) -> Self {
        Client { link, ..self }
    }

    /// Sets the memory that the connection may take in the server, for a total that is less than the sum.
    pub(super) fn memory(self, bytes: usize) -> Self {
        Client { memory_max: bytes, ..self }
    }

    /// Lets the connection take more memory in the server.
    pub(super) fn more_memory(self, bytes: usize) -> Self {
        Client { memory_max: self.memory_max + bytes, ..self }
    }

    /// Runs steps until one has to wait.
    pub(super) fn act(&mut self, world: &mut World, index: usize) {
        if self.outcome != Outcome::Running {
            // The last ciphertext may still have to be sent.
            if let Some(socket) = self.socket.filter(|&socket| world.sockets[socket].gone.is_none()) {
                self.link.advance(world, socket);
            }
            return;
        }
        let Some(socket) = self.socket.or_else(|| self.connect(world, index)) else {
            self.outcome = Outcome::Refused;
            return;
        };
        if !self.advance(world, socket) {
            return;
        }
        while self.outcome == Outcome::Running {
            let Some(step) = self.script.get(self.position).cloned() else {
                self.outcome = Outcome::Done;
                self.link.finish(world, socket);
                return;
            };
            if !self.step(world, index, socket, step) && !self.session_failed(world) {
                return;
            }
        }
        // A failed client disconnects.
        if !world.sockets[socket].vanished {
            world.client_reset(socket);
        }
    }

    fn connect(&mut self, world: &mut World, index: usize) -> Option<usize> {
        let socket = world.connect(index)?;
        self.socket = Some(socket);
        self.mark_us = world.now_us();
        Some(socket)
    }

    /// Sends what is waiting, and continues a handshake. Returns whether to run steps.
    fn advance(&mut self, world: &mut World, socket: usize) -> bool {
        let is_ready = self.link.advance(world, socket);
        if self.is_requesting || !self.is_ready {
            self.requested_us = world.now_us();
            self.is_requesting = self.link.has_unsent();
        }
        if is_ready && !self.is_ready {
            self.is_ready = true;
            self.mark_us = world.now_us();
        }
        if !is_ready {
            if let Some(error) = self.link.error().map(str::to_owned) {
                self.fail(world, &error);
            } else if self.link.end(world, socket) != End::None {
                self.no_response(world, "closed in the handshake");
            }
        }
        is_ready || self.outcome != Outcome::Running
    }

    /// Fails if the TLS session has failed unexpectedly. Returns whether it has.
    fn session_failed(&mut self, world: &World) -> bool {
        if matches!(self.script[self.position], Step::Alert | Step::Closed) {
            return false;
        }
        let error = self.link.error().map(str::to_owned);
        error.is_some_and(|error| self.fail(world, &error))
    }

    fn next(&mut self) -> bool {
        self.position += 1;
        self.sent = 0;
        self.until_us = None;
        self.downloaded = None;
        self.piece_read = 0;
        self.sends_us = 0;
        true
    }

    /// Fails because of an unexpected event, unless a fault was injected into the connection, or the server is draining
    /// and may close connections of this kind of client.
    fn fail(&mut self, world: &World, what: &str) -> bool {
        let faulted = self.socket.is_some_and(|socket| world.sockets[socket].failed);
        let droppable = !matches!(self.kind, "keep-alive" | "pipelining" | "half-closing" | "malformed");
        if faulted || (droppable && world.drain_us.is_some()) {
            self.outcome = Outcome::Done;
            return true;
        }
        let step = &self.script[self.position];
        let step = format!("{step:?}").chars().take(80).collect::<String>();
        self.outcome =
            Outcome::Failed(format!("{} at {} us, step {} {step}: {what}", self.kind, world.now_us(), self.position));
        true
    }

    /// Runs a step; returns false if it has to wait.
    fn step(&mut self, world: &mut World, index: usize, socket: usize, step: Step) -> bool {
        match step {
            Step::Send(bytes) => self.send(world, index, socket, &bytes, false),
            Step::Push(bytes) => self.send(world, index, socket, &bytes, true),
            Step::Offer(bytes) => {
                while let Some(count @ 1..) = self.link.send(world, socket, &bytes[self.sent..]) {
                    self.sent += count;
                }
                self.next()
            }
            Step::Trickle { pieces, piece_bytes, interval_ms } => {
                self.trickle(world, index, socket, (pieces, piece_bytes, interval_ms))
            }
            Step::Receive(text) => self.receive_text(world, socket, text),
            Step::Pause(ms) => self.pause(world, index, ms) && self.next(),
            Step::Download(download) => self.download(world, index, socket, download),
            Step::Drip(ms) => self.drip(world, index, socket, ms),
            Step::Mark => {
                self.mark_us = world.now_us();
                self.next()
            }
            Step::Response(status, body) => self.response(world, socket, status, &body),
            Step::End => self.receive_end(world, socket),
            Step::WasReset => {
                let conn = &world.sockets[socket];
                let due_us = conn.accepted_us.unwrap_or(u64::MAX).saturating_add(85_000_000 + world.stalled_us);
                if !conn.down_reset && world.now_us() >= due_us {
                    return self.fail(world, "not reset");
                }
                self.next()
            }
            Step::Listen(interval_ms) => self.listen(world, index, socket, interval_ms),
            Step::Took(min_ms, max_ms) => self.check_duration(world, socket, min_ms, max_ms),
            Step::Alert => self.receive_alert(world, socket),
            Step::Closed => {
                while self.link.read(world, socket, None, &mut self.seen) > 0 {}
                self.link.end(world, socket) != End::None && self.next()
            }
            Step::Forge => {
                self.link.send_forged_record(world, socket);
                self.requested_us = world.now_us();
                self.is_requesting = self.link.has_unsent();
                self.next()
            }
            Step::Finish => {
                self.link.finish(world, socket);
                self.next()
            }
            Step::Cut => {
                self.link.cut(world, socket);
                self.next()
            }
            Step::Reset => {
                world.client_reset(socket);
                self.next()
            }
            Step::Vanish => {
                world.client_vanish(socket);
                self.outcome = Outcome::Done;
                true
            }
        }
    }

    /// Expects a response with this status and a body that begins with this text.
    fn response(&mut self, world: &mut World, socket: usize, status: u16, body: &str) -> bool {
        match self.receive(world, socket) {
            Received::Incomplete => false,
            Received::Response { status: got, body: text, close } => {
                self.responses += 1;
                self.close_announced |= close;
                if got == status && text.starts_with(body) {
                    self.next()
                } else {
                    self.fail(world, &format!("got {got} {:?}", text.chars().take(40).collect::<String>()))
                }
            }
            Received::End => self.no_response(world, "end of stream"),
            Received::Truncated => self.no_response(world, "truncated"),
            Received::Reset => self.no_response(world, "reset"),
        }
    }

    /// Waits for the end of the stream.
    fn receive_end(&mut self, world: &mut World, socket: usize) -> bool {
        match self.receive(world, socket) {
            Received::Incomplete => false,
            Received::End => self.next(),
            Received::Truncated => self.fail(world, "a FIN without close_notify"),
            // The connection was idle for the server, which the FIN had not reached.
            Received::Reset if world.may_evict && self.responses > 0 && !matches!(self.link, Link::Plain) => {
                self.next()
            }
            Received::Reset => self.no_response(world, "reset"),
            Received::Response { status, body, .. } => self.fail(world, &format!("got {status} {body:?}")),
        }
    }

    /// Checks the time since the last mark or, if later, since the connection was accepted.
    fn check_duration(&mut self, world: &World, socket: usize, min_ms: u64, max_ms: u64) -> bool {
        let since_us = self.mark_us.max(world.sockets[socket].accepted_us.unwrap_or(0));
        let took_us = world.now_us() - since_us;
        // With TLS, the server may have completed the handshake before the client.
        let is_early = took_us + self.link.uncertainty_us() < min_ms * 1000;
        let latest_us = max_ms * 1000 + 150_000 + world.stalled_us;
        let after_end = matches!(self.script[..self.position].last(), Some(Step::End | Step::Closed));
        if is_early && world.may_evict && after_end {
            // An idle connection may be closed for a new one; a response may not be early.
            self.outcome = Outcome::Done;
            return true;
        }
        if is_early {
            return self.fail(world, &format!("early, after {took_us} us"));
        }
        if took_us > latest_us {
            return self.fail(world, &format!("late, after {took_us} us"));
        }
        self.next()
    }

    /// Handles a missing response: permitted if the server had announced the close, or had been draining for a while.
    fn no_response(&mut self, world: &World, what: &str) -> bool {
        let late = world.drain_us.is_some_and(|drain| self.requested_us >= drain + 900_000);
        // While the server was stalled, a client may have kept sending for longer than the lingering close lasts.
        let stalled = matches!(self.kind, "malformed" | "refused") && world.stalled_us > 1_000_000;
        // If accepting fails for seconds during a drain, the server gives up on the accept queue.
        let queued = self.socket.is_some_and(|socket| world.sockets[socket].accepted_us.is_none());
        let given_up = queued && world.conditions.faulty && world.drain_us.is_some();
        // An idle connection may be closed for a new one, but never one with a request in flight.
        let closed_us = self.socket.and_then(|socket| world.sockets[socket].closed_us);
        let evicted = world.may_evict && closed_us.is_some_and(|closed_us| closed_us <= self.requested_us);
        if self.close_announced || late || stalled || given_up || evicted {
            self.outcome = Outcome::Done;
            return true;
        }
        self.fail(world, what)
    }

    /// Reads until a text has arrived.
    fn receive_text(&mut self, world: &mut World, socket: usize, text: &str) -> bool {
        while self.link.read(world, socket, None, &mut self.seen) > 0 {}
        if memchr::memmem::find(&self.seen, text.as_bytes()).is_some() {
            return self.next();
        }
        if self.link.end(world, socket) == End::None { false } else { self.fail(world, "end of stream") }
    }

    fn pause(&mut self, world: &mut World, index: usize, ms: u64) -> bool {
        match self.until_us {
            Some(until) if world.now_us() >= until => true,
            Some(_) => false,
            None => {
                self.until_us = Some(world.now_us() + ms * 1000);
                world.wake_client(index, ms * 1000);
                false
            }
        }
    }

    fn send(&mut self, world: &mut World, index: usize, socket: usize, bytes: &[u8], ignore_responses: bool) -> bool {
        if self.until_us.is_some_and(|until| world.now_us() < until) {
            return false;
        }
        if self.sent == 0 {
            self.requested_us = world.now_us();
        }
        // A client that sends a lot without reading might be blocked by the server's back-pressure.
        let read = if self.kind == "non-reading" { 0 } else { self.link.read(world, socket, None, &mut self.seen) };
        let in_transit = self.link.has_unsent();
        let Some(count) = self.link.send(world, socket, &bytes[self.sent..]) else {
            self.close_announced |= memchr::memmem::find(&self.seen, b"Connection: close").is_some();
            let in_handshake = self.kind.ends_with("in the handshake");
            if world.may_evict && (in_handshake || in_transit || is_between_requests(bytes, self.sent)) {
                // Between two pipelined requests, in a handshake, or before a TLS record is complete, the connection was
                // idle for the server.
                self.outcome = Outcome::Done;
                return true;
            }
            return if ignore_responses { self.next() } else { self.no_response(world, "reset while sending") };
        };
        self.is_requesting |= self.sent == 0 && self.link.has_unsent();
        self.sent += count;
        if self.sent == bytes.len() {
            return self.next();
        }
        if count + read == 0 {
            // The buffer is full. The client is woken when the server has read from it.
            return false;
        }
        let delay_us = 1 + world.rng.below(20_000);
        self.until_us = Some(world.now_us() + delay_us);
        world.wake_client(index, delay_us);
        false
    }

    /// Sends a byte per interval until a response or the end of the stream arrives.
    fn drip(&mut self, world: &mut World, index: usize, socket: usize, ms: u64) -> bool {
        if !self.has_received_nothing(world, socket) {
            return self.next();
        }
        while self.pause(world, index, ms) {
            self.until_us = None;
            // The head timeout starts when the connection is accepted; do not drip before that.
            if world.sockets[socket].accepted_us.is_some() {
                let _ = self.link.send(world, socket, b"a");
            }
        }
        false
    }

    /// Sends a piece per interval, and reads nothing.
    fn trickle(
        &mut self,
        world: &mut World,
        index: usize,
        socket: usize,
        (pieces, piece_bytes, interval_ms): (usize, usize, u64),
    ) -> bool {
        if self.until_us.is_some_and(|until| world.now_us() < until) {
            return false;
        }
        self.sent += 1;
        if self.sent > pieces || self.link.send(world, socket, &pattern()[..piece_bytes]).is_none() {
            return self.next();
        }
        self.wait_until(world, index, world.now_us() + interval_ms * 1000);
        false
    }

    /// Reads a piece of a body per interval, and compares it with the pattern.
    fn download(&mut self, world: &mut World, index: usize, socket: usize, download: Download) -> bool {
        if self.until_us.is_some_and(|until| world.now_us() < until) {
            return false;
        }
        let conn = &world.sockets[socket];
        let has_ended = conn.down_reset || conn.down_fin;
        let max = download.piece - self.piece_read;
        let read = self.link.read(world, socket, Some(max), &mut self.seen);
        match self.check_download(download.bytes) {
            Ok(false) => {}
            Ok(true) => return self.next(),
            Err(error) => return self.fail(world, &error),
        }
        if read == 0 && has_ended {
            return self.no_response(world, &format!("cut off after {:?} bytes", self.downloaded));
        }
        self.send_unexpected(world, socket, download.send_interval_ms);
        self.piece_read += read;
        if download.bursts && self.piece_read < download.piece && !has_ended {
            // The server wakes the client when it has sent more.
            return false;
        }
        self.piece_read = 0;
        let pauses = download.pause_max_ms > 0 && world.rng.one_in(100);
        let pause_us = if pauses { world.rng.below(download.pause_max_ms) * 1000 } else { 0 };
        self.wait_until(world, index, world.now_us() + download.interval_ms * 1000 + pause_us);
        false
    }

    /// Checks what was read of a download; returns whether it is complete.
    fn check_download(&mut self, bytes: usize) -> Result<bool, String> {
        if self.downloaded.is_none() {
            let Some(head) = parse_head(&self.seen) else { return Ok(false) };
            if (head.status, head.body_len) != (200, bytes) {
                return Err(format!("got {} with {} bytes", head.status, head.body_len));
            }
            self.seen.drain(..head.len);
            self.downloaded = Some(0);
        }
        let offset = self.downloaded.unwrap_or_default();
        let expected = &pattern()[offset % PATTERN_BYTES..];
        if self.seen[..] != expected[..self.seen.len()] || offset + self.seen.len() > bytes {
            return Err(format!("wrong bytes after {offset}"));
        }
        self.downloaded = Some(offset + self.seen.len());
        self.seen.clear();
        Ok(self.downloaded == Some(bytes))
    }

    fn send_unexpected(&mut self, world: &mut World, socket: usize, interval_ms: u64) {
        if interval_ms > 0 && world.now_us() >= self.sends_us {
            if self.sends_us > 0 {
                let _ = self.link.send(world, socket, b"x");
            }
            self.sends_us = world.now_us() + interval_ms * 1000;
        }
    }

    fn wait_until(&mut self, world: &mut World, index: usize, us: u64) {
        self.until_us = Some(us);
        world.wake_client(index, us - world.now_us());
    }

    /// Reads lines of a chat, once per interval or, if that is zero, all that there are.
    fn listen(&mut self, world: &mut World, index: usize, socket: usize, interval_ms: u64) -> bool {
        if self.until_us.is_some_and(|until| world.now_us() < until) {
            return false;
        }
        while self.link.read(world, socket, None, &mut self.seen) > 0 && interval_ms == 0 {}
        while let Some(len) = memchr::memchr(b'\n', &self.seen) {
            let line: Vec<u8> = self.seen.drain(..=len).take(len).collect();
            let line = String::from_utf8(line).expect("UTF-8");
            let checked = match self.transcript.add(&line, world.now_us()) {
                Ok(true) => self.transcript.check(self.kind == "listening").map(|()| true),
                added => added,
            };
            match checked {
                Ok(false) => {}
                Ok(true) => return self.next(),
                Err(error) => return self.fail(world, &error),
            }
        }
        if world.sockets[socket].down_reset || world.sockets[socket].down_fin {
            return self.fail(world, "closed");
        }
        if interval_ms > 0 {
            self.until_us = Some(world.now_us() + interval_ms * 1000);
            world.wake_client(index, interval_ms * 1000);
        }
        false
    }

    /// Returns whether neither a byte nor the end of the stream has arrived.
    fn has_received_nothing(&mut self, world: &mut World, socket: usize) -> bool {
        self.link.read(world, socket, None, &mut self.seen);
        let conn = &world.sockets[socket];
        self.seen.is_empty() && !conn.down_reset && !conn.down_fin
    }

    /// Reads until there is a complete response or nothing more to read.
    fn receive(&mut self, world: &mut World, socket: usize) -> Received {
        loop {
            if self.seen.len() >= self.seen_enough {
                if let Some((used, received)) = parse_response(&self.seen) {
                    self.seen.drain(..used);
                    self.seen_enough = 0;
                    return received;
                }
                self.seen_enough = parse_head(&self.seen).map_or(0, |head| head.len + head.body_len);
            }
            if self.link.read(world, socket, None, &mut self.seen) == 0 {
                break;
            }
        }
        match self.link.end(world, socket) {
            End::Reset => Received::Reset,
            End::Orderly => Received::End,
            End::Truncated => Received::Truncated,
            End::None => Received::Incomplete,
        }
    }

    /// Reads an alert and the end of the stream. A reset may destroy the alert.
    fn receive_alert(&mut self, world: &mut World, socket: usize) -> bool {
        while self.link.read(world, socket, None, &mut self.seen) > 0 {}
        let end = self.link.end(world, socket);
        let in_plaintext = matches!(self.seen[..], [21, 3, _, 0, 2, 2, _]);
        let is_alerted = in_plaintext || self.link.error().is_some_and(|error| error.contains("BadRecordMac"));
        match end {
            End::None => false,
            End::Reset => self.no_response(world, "reset"),
            _ if is_alerted => self.next(),
            _ => {
                let seen = format!("no alert but {:?}, {:?}", self.seen, self.link.error());
                self.no_response(world, &seen)
            }
        }
    }
}

/// Returns whether the first `sent` bytes of requests without bodies end with a complete request.
fn is_between_requests(bytes: &[u8], sent: usize) -> bool {
    bytes[..sent].ends_with(b"\r\n\r\n") && memchr::memmem::find(bytes, b"Content-Length").is_none()
}

/// The head of a response.
struct Head {
    len: usize,
    status: u16,
    body_len: usize,
    close: bool,
}

/// Parses a complete head at the beginning of `seen`.
fn parse_head(seen: &[u8]) -> Option<Head> {
    let len = memchr::memmem::find(seen, b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&seen[..len]).expect("a head in ASCII");
    let status = head.get(9..12)?.parse().expect("a status");
    let lower = head.to_ascii_lowercase();
    let body_len = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
    let body_len = body_len.expect("a length").trim().parse().expect("a number");
    Some(Head { len, status, body_len, close: lower.contains("connection: close") })
}

/// Parses a complete response at the beginning of `seen`; returns its length as well.
fn parse_response(seen: &[u8]) -> Option<(usize, Received)> {
    let head = parse_head(seen)?;
    let body = seen.get(head.len..head.len + head.body_len)?;
    let body = String::from_utf8_lossy(&body[..head.body_len.min(200)]).into_owned();
    Some((head.len + head.body_len, Received::Response { status: head.status, body, close: head.close }))
}
