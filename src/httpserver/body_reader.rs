//! Request bodies read by another thread as they arrive.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};

use super::body_sender::cost;
use super::buffer_limit::{BufferLimit, Lease, Status};
use super::exchange_handle::{ExchangeHandle, ExchangeId};
use super::headers::Trailers;
use crate::r#loop::lock;

/// High watermark: number of buffered bytes at which reading from the client pauses.
const READ_AHEAD_BYTES: usize = 256 * 1024;

type OnReadable = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    end: Option<Result<Trailers, io::ErrorKind>>,
    /// Reading from the client is paused until the buffer is half empty.
    paused: bool,
    /// The reader was dropped: further data is discarded.
    abandoned: bool,
    /// The memory of the buffer, until the body has ended.
    lease: Option<Lease>,
    /// Called when there is something to read.
    on_readable: Option<OnReadable>,
}

impl State {
    /// Counts the buffer after a change, and returns whether the upload may continue.
    fn count(&self, received: usize) -> Status {
        self.lease.as_ref().map_or(Status::Running, |lease| lease.set(self.bytes, received))
    }
}

/// Shared by a [`BodyReader`] and the exchange that fills it.
#[derive(Default)]
pub(super) struct Pipe {
    handle: ExchangeHandle,
    state: Mutex<State>,
    changed: Condvar,
}

/// The loop's end of a pipe. If it is dropped before the body has ended, reads fail.
pub(super) struct BodyFeed(Arc<Pipe>);

impl std::ops::Deref for BodyFeed {
    type Target = Pipe;

    fn deref(&self) -> &Pipe {
        &self.0
    }
}

impl Drop for BodyFeed {
    fn drop(&mut self) {
        self.0.end(Err(io::ErrorKind::ConnectionAborted));
    }
}

impl Pipe {
    pub(super) fn open() -> (BodyFeed, BodyReader) {
        let pipe = Arc::new(Pipe::default());
        (BodyFeed(Arc::clone(&pipe)), BodyReader { pipe, current: Bytes::new() })
    }

    pub(super) fn attach(&self, id: ExchangeId, limit: &BufferLimit) {
        lock(&self.state).lease = Some(limit.add(id.clone()));
        self.handle.attach(id, false);
    }

    /// Queues a piece and returns whether to continue reading from the client.
    pub(super) fn push(&self, bytes: &[u8]) -> Status {
        let mut state = lock(&self.state);
        if state.abandoned {
            return Status::Running;
        }
        state.bytes += cost(bytes);
        state.pieces.push_back(Bytes::copy_from_slice(bytes));
        state.paused = state.bytes >= READ_AHEAD_BYTES;
        self.changed.notify_one();
        let status = match state.count(bytes.len()) {
            Status::Running if state.paused => Status::Waiting,
            status => status,
        };
        let call = state.on_readable.clone();
        drop(state);
        call_readable(call);
        status
    }

    /// Returns whether to read from the client: not while the reader is behind, nor at the limit for all bodies.
    pub(super) fn status(&self) -> Status {
        self.handle.clear_wakeup();
        let state = lock(&self.state);
        match state.lease.as_ref().map_or(Status::Running, Lease::status) {
            Status::Running if state.paused => Status::Waiting,
            status => status,
        }
    }

    /// Takes a piece, if there is one.
    fn take(&self, mut state: MutexGuard<'_, State>) -> io::Result<Option<Bytes>> {
        if let Some(piece) = state.pieces.pop_front() {
            state.bytes -= cost(&piece);
            state.count(0);
            if state.paused && state.bytes <= READ_AHEAD_BYTES / 2 {
                state.paused = false;
                drop(state);
                self.handle.wake();
            }
            return Ok(Some(piece));
        }
        match &state.end {
            Some(Ok(_)) => Ok(None),
            Some(Err(kind)) => Err((*kind).into()),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Ends the body, either successfully, with its trailers, or with an error.
    pub(super) fn end(&self, end: Result<Trailers, io::ErrorKind>) {
        let (lease, call) = {
            let mut state = lock(&self.state);
            state.end.get_or_insert(end);
            (state.lease.take(), state.on_readable.take())
        };
        drop(lease);
        self.changed.notify_one();
        self.handle.release();
        call_readable(call);
    }
}

/// Calls a closure of the program, which may panic.
fn call_readable(call: Option<OnReadable>) {
    if let Some(call) = call
        && catch_unwind(AssertUnwindSafe(|| call())).is_err()
    {
        log::error!("on_readable callback panicked");
    }
}

/// A request body to be read on any thread other than the loop's, or with [`BodyReader::try_next_piece`] on the loop's
/// thread too. Created by [`BodyMode::read`](super::BodyMode::read).
///
/// Reading blocks until the client sends more. It fails with `ConnectionAborted` if the connection was closed, and with
/// `InvalidData` if the body was rejected (too large, too slow or malformed). A rejection has already been answered by
/// the server, so the response of the [`Responder`](super::Responder) is discarded. If the reader is dropped early, the
/// rest of the body is discarded.
pub struct BodyReader {
    pipe: Arc<Pipe>,
    current: Bytes,
}

impl BodyReader {
    /// Returns the next piece of the body, as received, or `None` at the end. Blocks until either is available.
    ///
    /// # Errors
    /// Returns an error if the body cannot be received completely; see [`BodyReader`].
    pub fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        if self.current.has_remaining() {
            return Ok(Some(std::mem::take(&mut self.current)));
        }
        let waiting = |state: &mut State| state.pieces.is_empty() && state.end.is_none();
        let state = self.pipe.changed.wait_while(lock(&self.pipe.state), waiting);
        self.pipe.take(state.unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the next piece of the body, or `None` at the end, without blocking: for readers on the loop's thread.
    ///
    /// # Errors
    /// Returns an error of the kind `WouldBlock` if nothing is available (see [`BodyReader::on_readable`]), and
    /// otherwise the errors of [`BodyReader::next_piece`].
    pub fn try_next_piece(&mut self) -> io::Result<Option<Bytes>> {
        if self.current.has_remaining() {
            return Ok(Some(std::mem::take(&mut self.current)));
        }
        self.pipe.take(lock(&self.pipe.state))
    }

    /// Sets a closure to call on the loop's thread whenever a piece has arrived, and at the end of the body. If there
    /// is something to read already, it is also called immediately, on this thread. It must not block.
    pub fn on_readable(&self, call: impl Fn() + Send + Sync + 'static) {
        let mut state = lock(&self.pipe.state);
        let call: OnReadable = Arc::new(call);
        let is_readable = !state.pieces.is_empty() || state.end.is_some();
        let previous = state.on_readable.replace(Arc::clone(&call));
        drop(state);
        drop(previous);
        if is_readable {
            call_readable(Some(call));
        }
    }

    /// Returns the trailers, which are empty unless the body was chunked, or `None` until the complete body has been
    /// received.
    pub fn trailers(&self) -> Option<Trailers> {
        let state = lock(&self.pipe.state);
        state.end.as_ref().and_then(|end| end.as_ref().ok()).cloned()
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.current.has_remaining() {
            match self.next_piece()? {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl Drop for BodyReader {
    fn drop(&mut self) {
        let mut state = lock(&self.pipe.state);
        state.abandoned = true;
        state.pieces.clear();
        state.bytes = 0;
        state.paused = false;
        let (lease, call) = (state.lease.take(), state.on_readable.take());
        drop(state);
        drop((lease, call));
        self.pipe.handle.wake();
    }
}

impl std::fmt::Debug for BodyReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = lock(&self.pipe.state);
        formatter.debug_struct("BodyReader").field("bytes", &state.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_pieces_count_more_than_one_byte() {
        let (feed, mut reader) = Pipe::open();
        let accepted =
            (0..READ_AHEAD_BYTES).position(|_| feed.push(b"x") != Status::Running).expect("the pipe fills up");
        assert!(accepted < READ_AHEAD_BYTES / 32, "{accepted} pieces");
        assert_eq!(feed.status(), Status::Waiting);
        for _ in 0..=accepted / 2 {
            assert_eq!(reader.next_piece().unwrap().as_deref(), Some(&b"x"[..]));
        }
        assert_eq!(feed.status(), Status::Running);
    }
}
