//! Request bodies read by another thread as they arrive.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::{Buf, Bytes};

use super::body_sender::cost;
use super::buffer_limit::{BufferLimit, Lease, Status};
use super::exchange_handle::{ExchangeHandle, ExchangeId};
use super::headers::Trailers;
use crate::r#loop::lock;

/// High watermark: number of buffered bytes at which reading from the client pauses.
const READ_AHEAD_BYTES: usize = 256 * 1024;

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
        match state.count(bytes.len()) {
            Status::Running if state.paused => Status::Waiting,
            status => status,
        }
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

    /// Ends the body, either successfully, with its trailers, or with an error.
    pub(super) fn end(&self, end: Result<Trailers, io::ErrorKind>) {
        let lease = {
            let mut state = lock(&self.state);
            state.end.get_or_insert(end);
            state.lease.take()
        };
        drop(lease);
        self.changed.notify_one();
        self.handle.release();
    }
}

/// A request body, readable on any thread except the loop's. Created by [`BodyMode::read`](super::BodyMode::read).
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
        let mut state = lock(&self.pipe.state);
        loop {
            if let Some(piece) = state.pieces.pop_front() {
                state.bytes -= cost(&piece);
                state.count(0);
                if state.paused && state.bytes <= READ_AHEAD_BYTES / 2 {
                    state.paused = false;
                    drop(state);
                    self.pipe.handle.wake();
                }
                return Ok(Some(piece));
            }
            match &state.end {
                Some(Ok(_)) => return Ok(None),
                Some(Err(kind)) => return Err((*kind).into()),
                None => state = self.pipe.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
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
        let lease = state.lease.take();
        drop(state);
        drop(lease);
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
