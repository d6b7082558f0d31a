//! Bodies that another thread reads while they come.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::{Buf, Bytes};

use super::Trailers;
use super::link::{Link, Place, lock};
use super::sender::cost;

/// What is taken from a client ahead of a slow reader.
const AHEAD_BYTES: usize = 256 * 1024;

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    end: Option<Result<Trailers, io::ErrorKind>>,
    /// The client waits until half of what is there is read.
    paused: bool,
    /// Nobody reads: what still comes is dropped.
    abandoned: bool,
}

/// Shared by a [`BodyReader`] and the exchange that fills it.
#[derive(Default)]
pub(super) struct Pipe {
    link: Link,
    state: Mutex<State>,
    news: Condvar,
}

/// The loop's half of a pipe: whoever reads from the other hears when it is dropped before the end.
pub(super) struct Inlet(Arc<Pipe>);

impl std::ops::Deref for Inlet {
    type Target = Pipe;

    fn deref(&self) -> &Pipe {
        &self.0
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.0.end(Err(io::ErrorKind::ConnectionAborted));
    }
}

impl Pipe {
    pub(super) fn open() -> (Inlet, BodyReader) {
        let pipe = Arc::new(Pipe::default());
        (Inlet(Arc::clone(&pipe)), BodyReader { pipe, current: Bytes::new() })
    }

    pub(super) fn bind(&self, place: Place) {
        self.link.bind(place, false);
    }

    /// Hands a piece on. Says whether more may come now.
    pub(super) fn push(&self, bytes: &[u8]) -> bool {
        let mut state = lock(&self.state);
        if state.abandoned {
            return true;
        }
        state.bytes += cost(bytes);
        state.pieces.push_back(Bytes::copy_from_slice(bytes));
        state.paused = state.bytes >= AHEAD_BYTES;
        self.news.notify_one();
        !state.paused
    }

    /// Whether the reader is so far behind that the client has to wait.
    pub(super) fn is_paused(&self) -> bool {
        self.link.answer();
        lock(&self.state).paused
    }

    /// The body is whole, or will never be.
    pub(super) fn end(&self, end: Result<Trailers, io::ErrorKind>) {
        lock(&self.state).end.get_or_insert(end);
        self.news.notify_one();
        self.link.release();
    }
}

/// The body of one request, read on any thread but that of the loop. Made by [`Intake::read`](super::Intake::read).
///
/// Reading waits for the client. It fails with `ConnectionAborted` when the connection ended, and with
/// `InvalidData` when the body was refused (too large, too slow, malformed); the client has its answer then, and
/// the responder's is dropped. When the reader is dropped early, what still comes is thrown away.
pub struct BodyReader {
    pipe: Arc<Pipe>,
    current: Bytes,
}

impl BodyReader {
    /// The next piece as it came; `None` at the end.
    ///
    /// # Errors
    /// When the body will not become whole.
    pub fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        if self.current.has_remaining() {
            return Ok(Some(std::mem::take(&mut self.current)));
        }
        let mut state = lock(&self.pipe.state);
        loop {
            if let Some(piece) = state.pieces.pop_front() {
                state.bytes -= cost(&piece);
                if state.paused && state.bytes <= AHEAD_BYTES / 2 {
                    state.paused = false;
                    drop(state);
                    self.pipe.link.nudge();
                }
                return Ok(Some(piece));
            }
            match &state.end {
                Some(Ok(_)) => return Ok(None),
                Some(Err(kind)) => return Err((*kind).into()),
                None => state = self.pipe.news.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// The fields behind the body, once it was read to its end.
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
        drop(state);
        self.pipe.link.nudge();
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
    fn pieces_of_one_byte_are_not_free() {
        let (inlet, mut reader) = Pipe::open();
        let taken = (0..AHEAD_BYTES).position(|_| !inlet.push(b"x")).expect("an end");
        assert!(taken < AHEAD_BYTES / 32, "{taken} pieces");
        assert!(inlet.is_paused());
        for _ in 0..=taken / 2 {
            assert_eq!(reader.next_piece().unwrap().as_deref(), Some(&b"x"[..]));
        }
        assert!(!inlet.is_paused());
    }
}
