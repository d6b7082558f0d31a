//! Response bodies pushed by other threads through a bounded queue, and server-sent events (HTML Living Standard,
//! section 9.2), which browsers read with `EventSource`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;

use super::exchange_handle::ExchangeHandle;
use crate::r#loop::lock;

/// Default queue limit: a quarter of a second at 1 MiB/s, or several hundred events.
pub(super) const QUEUE_BYTES: usize = 256 * 1024;

/// Minimum cost of a piece, regardless of its length: its queue slot and allocation overhead.
const PIECE_COST_MIN: usize = 64;

/// Returns the number of bytes that a queued piece counts towards the queue's limit.
pub(super) fn cost(piece: &[u8]) -> usize {
    piece.len().max(PIECE_COST_MIN)
}

type Drained = Box<dyn FnMut() + Send>;

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    end: Option<End>,
    /// The sender has seen a full queue and expects a notification at the low watermark.
    full: bool,
    /// The queue was drained while no `on_drained` closure was set.
    missed: bool,
    on_drained: Option<Drained>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Dropped,
}

/// Shared by a [`Sender`] and the exchange that sends its pieces.
pub(super) struct Queue {
    pub(super) handle: ExchangeHandle,
    bytes_max: usize,
    state: Mutex<State>,
    room: Condvar,
}

/// Result of [`Queue::pull`].
pub(super) enum Pulled {
    Piece(Bytes),
    /// Empty; a wake-up follows when a piece is pushed.
    Wait,
    /// Empty, and the sender has finished.
    End,
    /// Empty, and the sender was dropped without finishing.
    Broken,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> (Arc<Queue>, Sender) {
        let (handle, state, room) = (ExchangeHandle::default(), Mutex::default(), Condvar::new());
        let queue = Arc::new(Queue { handle, bytes_max: bytes_max.max(1), state, room });
        (Arc::clone(&queue), Sender { queue })
    }

    pub(super) fn pull(&self) -> Pulled {
        let mut state = lock(&self.state);
        let Some(piece) = state.pieces.pop_front() else {
            return match state.end {
                None => Pulled::Wait,
                Some(End::Finished) => Pulled::End,
                Some(End::Dropped) => Pulled::Broken,
            };
        };
        state.bytes -= cost(&piece);
        if state.full && state.bytes <= self.bytes_max / 2 {
            state.full = false;
            self.room.notify_all();
            let call = state.on_drained.take();
            state.missed = call.is_none();
            drop(state);
            self.call_drained(call);
        }
        Pulled::Piece(piece)
    }

    /// Calls the closure outside the lock, since it may push, and puts it back afterwards.
    fn call_drained(&self, call: Option<Drained>) {
        let Some(mut call) = call else { return };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut call)).is_err() {
            log::error!("on_drained callback panicked");
        }
        // A closure set in the meantime takes precedence. Drop the other outside the lock: its destructor may run
        // arbitrary code.
        let mut state = lock(&self.state);
        let extra = if state.on_drained.is_none() { state.on_drained.replace(call) } else { Some(call) };
        drop(state);
        drop(extra);
    }

    /// Closes the queue and discards its contents.
    pub(super) fn close(&self) {
        self.handle.close();
        let dropped = std::mem::take(&mut *lock(&self.state));
        self.room.notify_all();
        drop(dropped);
    }

    /// Ends the exchange normally: everything was sent.
    pub(super) fn release(&self) {
        self.handle.release();
        // `send_blocking` checks the handle under this lock; taking it prevents a lost wake-up.
        drop(lock(&self.state));
        self.room.notify_all();
    }
}

/// Error returned by [`Sender::send`], with the rejected piece.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The queue is full; see [`Sender::on_drained`].
    Full(Bytes),
    /// The connection was closed, or the response is complete.
    Closed(Bytes),
}

impl std::fmt::Display for SendError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            SendError::Full(_) => "the queue is full: the client is too slow",
            SendError::Closed(_) => "the connection is closed",
        })
    }
}

impl std::error::Error for SendError {}

/// Sends the body of one response in pieces, from any thread. Created by
/// [`Response::channel`](super::Response::channel).
///
/// Call [`Sender::finish`] at the end of the body. If the sender is dropped without it, for example because its thread
/// panicked, the connection is closed (for HTTP/1.0, reset), so that the client can detect the truncated body.
pub struct Sender {
    queue: Arc<Queue>,
}

impl Sender {
    /// Queues a piece without blocking. An empty piece is ignored. A queue that is not full accepts a piece of any
    /// size.
    ///
    /// # Errors
    /// Returns an error with the piece if the queue is full or the connection is closed.
    pub fn send(&self, piece: impl Into<Bytes>) -> Result<(), SendError> {
        let piece = piece.into();
        if self.is_closed() {
            return Err(SendError::Closed(piece));
        }
        let mut state = lock(&self.queue.state);
        if state.bytes >= self.queue.bytes_max {
            state.full = true;
            return Err(SendError::Full(piece));
        }
        if piece.is_empty() {
            return Ok(());
        }
        state.bytes += cost(&piece);
        state.pieces.push_back(piece);
        state.full = state.bytes >= self.queue.bytes_max;
        drop(state);
        self.queue.handle.wake();
        Ok(())
    }

    /// Queues a piece, blocking while the queue is full. Do not call this on the loop's thread: it drains the queue, so
    /// the call would deadlock.
    ///
    /// # Errors
    /// Returns an error with the piece if the connection is closed.
    pub fn send_blocking(&self, piece: impl Into<Bytes>) -> Result<(), SendError> {
        let mut piece = piece.into();
        loop {
            match self.send(piece) {
                Err(SendError::Full(rejected)) => piece = rejected,
                result => return result,
            }
            let state = lock(&self.queue.state);
            // The handle is checked under the lock that closing also takes, so no wake-up is lost.
            let is_full = |state: &mut State| state.full && !self.queue.handle.is_closed();
            drop(self.queue.room.wait_while(state, is_full).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Returns whether the queue is full.
    pub fn is_full(&self) -> bool {
        lock(&self.queue.state).bytes >= self.queue.bytes_max
    }

    /// Returns whether the connection is closed or the response is complete; [`Sender::send`] then fails.
    pub fn is_closed(&self) -> bool {
        self.queue.handle.is_closed()
    }

    /// Returns whether the server is shutting down gracefully. If so, an endless stream should finish.
    pub fn is_draining(&self) -> bool {
        self.queue.handle.is_draining()
    }

    /// Sets a closure to call each time a full queue has drained to half its limit (the low watermark). If that has
    /// already happened since the last [`SendError::Full`], it is called immediately, on this thread; otherwise it runs
    /// on the loop's thread and must not block. It may call [`Sender::send`].
    pub fn on_drained(&self, call: impl FnMut() + Send + 'static) {
        let mut state = lock(&self.queue.state);
        if std::mem::take(&mut state.missed) {
            drop(state);
            return self.queue.call_drained(Some(Box::new(call)));
        }
        let previous = state.on_drained.replace(Box::new(call));
        drop(state);
        drop(previous);
    }

    /// Calls a closure when the connection is closed before the response is complete, or immediately if it already is.
    /// It runs on the loop's thread.
    pub fn on_closed(&self, call: impl FnOnce() + Send + 'static) {
        self.queue.handle.on_closed(call);
    }

    /// Calls a closure when graceful shutdown begins, or immediately if it already has.
    pub fn on_drain(&self, call: impl FnOnce() + Send + 'static) {
        self.queue.handle.on_drain(call);
    }

    /// Marks the body as complete.
    pub fn finish(self) {
        self.end(End::Finished);
    }

    /// Marks the body as complete, like [`Sender::finish`] but through a shared reference.
    pub(super) fn end_body(&self) {
        self.end(End::Finished);
    }

    fn end(&self, end: End) {
        lock(&self.queue.state).end.get_or_insert(end);
        self.queue.handle.wake();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.end(End::Dropped);
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sender").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

/// A server-sent event.
///
/// # Examples
/// ```
/// use serverd::ServerEvent;
///
/// let event = ServerEvent::new("two\nlines").name("greeting").id("7");
/// assert_eq!(event.to_string(), "event: greeting\nid: 7\ndata: two\ndata: lines\n\n");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerEvent {
    /// The lines other than `data`.
    text: String,
    data: String,
}

impl ServerEvent {
    /// Creates an event with `data`, which may have any number of lines.
    pub fn new(data: impl AsRef<str>) -> Self {
        let mut event = ServerEvent::default();
        // CR, LF and CRLF each end a line.
        for line in data.as_ref().replace("\r\n", "\n").split(['\n', '\r']) {
            let _ = writeln!(event.data, "data: {line}");
        }
        event
    }

    /// Sets the event type, for which the page adds a listener. The default is `message`.
    #[must_use]
    pub fn name(self, name: impl AsRef<str>) -> Self {
        self.line("event", name.as_ref())
    }

    /// Sets the event id, which a client sends as Last-Event-ID when it reconnects.
    #[must_use]
    pub fn id(self, id: impl AsRef<str>) -> Self {
        // Clients ignore an id that contains NUL.
        let id = id.as_ref().replace('\0', "");
        self.line("id", &id)
    }

    /// Sets the delay before a client reconnects.
    #[must_use]
    pub fn retry(self, delay: std::time::Duration) -> Self {
        self.line("retry", &delay.as_millis().to_string())
    }

    /// Appends a line. Line breaks in the value would start another line, so they become spaces.
    fn line(mut self, name: &str, value: &str) -> Self {
        let _ = writeln!(self.text, "{name}: {}", value.replace(['\n', '\r'], " "));
        self
    }
}

impl std::fmt::Display for ServerEvent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "{}{}", self.text, self.data)
    }
}

/// Sends the events of one response, from any thread. Created by
/// [`Response::events`](super::Response::events).
#[derive(Debug)]
pub struct EventSender {
    sender: Sender,
}

impl EventSender {
    pub(super) fn new(sender: Sender) -> Self {
        EventSender { sender }
    }

    /// Sends an event.
    ///
    /// # Errors
    /// Returns an error if the queue is full because the client is slow, or if the client has disconnected.
    pub fn send(&self, event: &ServerEvent) -> Result<(), SendError> {
        self.sender.send(event.to_string())
    }

    /// Sends a comment line, which clients ignore. Sent every 15 seconds or so, it keeps proxies from closing an idle
    /// stream and helps to detect clients that have disconnected.
    ///
    /// # Errors
    /// Returns an error if the queue is full because the client is slow, or if the client has disconnected.
    pub fn keep_alive(&self) -> Result<(), SendError> {
        self.sender.send(":\n\n")
    }

    /// Returns the underlying [`Sender`], which reports whether the queue is full, the connection is closed or the
    /// server is shutting down, and accepts callbacks for these events.
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// Ends the stream. The client reconnects, unless the page closes its `EventSource`.
    pub fn finish(self) {
        self.sender.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn count(calls: &Arc<AtomicUsize>) -> impl FnMut() + Send + 'static {
        let calls = Arc::clone(calls);
        move || {
            calls.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn on_drained_is_called_immediately_if_the_queue_has_already_drained() {
        let (queue, sender) = Queue::new(100);
        let calls = Arc::new(AtomicUsize::new(0));
        sender.send(vec![0; 100]).unwrap();
        assert!(matches!(sender.send("x"), Err(SendError::Full(_))));
        assert!(matches!(queue.pull(), Pulled::Piece(_)));
        sender.on_drained(count(&calls));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        sender.send(vec![0; 100]).unwrap();
        assert!(matches!(queue.pull(), Pulled::Piece(_)));
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }
}
