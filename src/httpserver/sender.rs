//! Bodies that another thread pushes, at most so far ahead of the client.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;

use super::link::{Link, lock};

/// What may be pushed ahead of a client: a quarter of a second at 1 MiB/s, and some hundred events.
pub(super) const QUEUE_BYTES: usize = 256 * 1024;

/// What a piece costs at least, whatever its length: its place in the queue, and its memory's own.
const PIECE_COST_MIN: usize = 64;

/// What a piece that waits counts for where what waits is bounded.
pub(super) fn cost(piece: &[u8]) -> usize {
    piece.len().max(PIECE_COST_MIN)
}

type Drained = Box<dyn FnMut() + Send>;

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    end: Option<End>,
    /// The pusher was told that the queue is full, and waits to hear that it is not.
    full: bool,
    /// The queue had room again when nobody had asked to hear of it.
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
    pub(super) link: Link,
    bytes_max: usize,
    state: Mutex<State>,
    room: Condvar,
}

/// What a queue has for the loop.
pub(super) enum Pulled {
    Piece(Bytes),
    /// Nothing now; a nudge will come.
    Wait,
    /// Everything was pulled, and the pusher finished.
    End,
    /// The pusher gave up.
    Broken,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> (Arc<Queue>, Sender) {
        let (link, state, room) = (Link::default(), Mutex::default(), Condvar::new());
        let queue = Arc::new(Queue { link, bytes_max: bytes_max.max(1), state, room });
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
            self.tell_drained(call);
        }
        Pulled::Piece(piece)
    }

    /// Calls the closure outside the lock, since it may push, and puts it back.
    fn tell_drained(&self, call: Option<Drained>) {
        let Some(mut call) = call else { return };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut call)).is_err() {
            log::error!("a closure that was to hear of room in a queue panicked");
        }
        // A closure that was set meanwhile stays; what is dropped is dropped outside the lock, as it may hold anything.
        let mut state = lock(&self.state);
        let extra = if state.on_drained.is_none() { state.on_drained.replace(call) } else { Some(call) };
        drop(state);
        drop(extra);
    }

    /// Nobody will pull any more.
    pub(super) fn close(&self) {
        self.link.close();
        let dropped = std::mem::take(&mut *lock(&self.state));
        self.room.notify_all();
        drop(dropped);
    }

    /// Everything was sent.
    pub(super) fn release(&self) {
        self.link.release();
        // Who waits for room looked at the link under this lock.
        drop(lock(&self.state));
        self.room.notify_all();
    }
}

/// Why a piece was not taken. It is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The queue is full; [`Sender::on_drained`] tells when it is not.
    Full(Bytes),
    /// Nobody reads any more.
    Closed(Bytes),
}

impl std::fmt::Display for SendError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            SendError::Full(_) => "the client is too slow for now",
            SendError::Closed(_) => "the client is gone",
        })
    }
}

impl std::error::Error for SendError {}

/// Pushes the body of one response, from any thread. Made by [`Response::channel`](super::Response::channel).
///
/// The end has to be told by [`Sender::finish`]. Dropped without it, as when its thread panics, the connection
/// ends early (for HTTP/1.0 by a reset), so that the client does not take a half of the body for the whole.
pub struct Sender {
    queue: Arc<Queue>,
}

impl Sender {
    /// Pushes a piece; an empty one does nothing. A queue that is not full takes a piece of any size.
    ///
    /// # Errors
    /// When the queue is full, or nobody reads any more.
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
        self.queue.link.nudge();
        Ok(())
    }

    /// Pushes a piece, and waits for room before; never to be called on the thread of the loop, which makes the room.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn send_blocking(&self, piece: impl Into<Bytes>) -> Result<(), SendError> {
        let mut piece = piece.into();
        loop {
            match self.send(piece) {
                Err(SendError::Full(back)) => piece = back,
                outcome => return outcome,
            }
            let state = lock(&self.queue.state);
            // The link is looked at under the lock that its end takes too, so no wake-up is missed.
            let waits = |state: &mut State| state.full && !self.queue.link.is_closed();
            drop(self.queue.room.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Whether the queue takes nothing now.
    pub fn is_full(&self) -> bool {
        lock(&self.queue.state).bytes >= self.queue.bytes_max
    }

    /// Whether nobody reads any more: the connection ended.
    pub fn is_closed(&self) -> bool {
        self.queue.link.is_closed()
    }

    /// Whether the server is shutting down: a stream without end should come to one now.
    pub fn is_draining(&self) -> bool {
        self.queue.link.is_draining()
    }

    /// Calls a closure each time a queue that was full has come down to half; at once if that has happened already
    /// since the last [`SendError::Full`]. It runs on the thread of the loop, or on this one if at once, and has to be
    /// quick; it may push.
    pub fn on_drained(&self, call: impl FnMut() + Send + 'static) {
        let mut state = lock(&self.queue.state);
        if std::mem::take(&mut state.missed) {
            drop(state);
            return self.queue.tell_drained(Some(Box::new(call)));
        }
        let former = state.on_drained.replace(Box::new(call));
        drop(state);
        drop(former);
    }

    /// Calls a closure when the connection ends too early; at once if it has. It runs on the thread of the loop.
    pub fn on_closed(&self, call: impl FnOnce() + Send + 'static) {
        self.queue.link.on_closed(call);
    }

    /// Calls a closure when the server begins to shut down; at once if it does already.
    pub fn on_drain(&self, call: impl FnOnce() + Send + 'static) {
        self.queue.link.on_drain(call);
    }

    /// The body is whole.
    pub fn finish(self) {
        self.end(End::Finished);
    }

    /// As [`Sender::finish`], where others hold the sender too.
    pub(super) fn end_body(&self) {
        self.end(End::Finished);
    }

    fn end(&self, end: End) {
        lock(&self.queue.state).end.get_or_insert(end);
        self.queue.link.nudge();
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
    fn room_that_came_before_somebody_asked_is_told_at_once() {
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
