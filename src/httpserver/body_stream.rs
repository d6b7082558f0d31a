//! Streamed response bodies: produced on the loop's thread while they are sent.
//!
//! Each turn moves at most one batch from the source to the output; the next batch follows once the client has accepted
//! this one (back-pressure). A body of any size therefore needs memory for only one batch, and other connections are
//! served between batches.

use std::any::Any;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;

use super::body_sender::{Pulled, Queue};
use super::exchange_handle::ExchangeId;
use super::headers::Trailers;
use crate::http1::{Next, SendFraming};
use crate::r#loop::{Flow, Output};

/// Amount of unsent output, in bytes, at which a batch is flushed before more is produced or more requests are served.
pub(super) const BATCH_BYTES: usize = 64 * 1024;

/// Size of one read from a [`Source::Reader`]. Must fit in the four hexadecimal digits reserved for the chunk size.
const READ_BYTES: usize = 16 * 1024;

/// Maximum number of pieces moved in one turn, regardless of their size.
const PIECES_PER_TURN: usize = 256;

/// Source of a streamed body.
pub(super) enum Source {
    Pieces(Box<dyn Iterator<Item = io::Result<Bytes>> + Send>),
    Reader(Box<dyn Read + Send>),
    Queue(QueueBody),
}

/// The loop's end of a queue. Dropping it closes the queue, which notifies the [`Sender`](super::Sender).
pub(super) struct QueueBody(pub(super) Arc<Queue>);

impl std::ops::Deref for QueueBody {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.0
    }
}

impl Drop for QueueBody {
    fn drop(&mut self) {
        self.0.close();
    }
}

type MakeTrailers = Box<dyn FnOnce() -> Trailers + Send>;

/// A streamed body before it is sent.
pub(super) struct Stream {
    source: Source,
    pub(super) length: Option<u64>,
    /// Value of the Trailer header, and the closure that creates the trailers.
    pub(super) trailers: Option<(String, MakeTrailers)>,
    /// Dropped when the body has been sent or its connection is closed.
    held: Option<Box<dyn Any + Send>>,
}

impl Stream {
    pub(super) fn new(source: Source) -> Self {
        Stream { source, length: None, trailers: None, held: None }
    }

    /// Keeps a value until the body has been sent or its connection is closed.
    #[cfg(feature = "compress")]
    pub(super) fn hold(&mut self, value: Box<dyn Any + Send>) {
        self.held = Some(value);
    }

    /// Returns whether another thread could read the body from its source: it is not pushed and has no trailers.
    #[cfg(feature = "compress")]
    pub(super) fn is_pulled(&self) -> bool {
        !matches!(self.source, Source::Queue(_)) && self.trailers.is_none()
    }

    #[cfg(feature = "compress")]
    pub(super) fn into_source(self) -> Source {
        self.source
    }
}

/// A streamed body that is being sent.
pub(super) struct BodyWriter {
    source: Source,
    framing: SendFraming,
    trailers: Option<MakeTrailers>,
    pub(super) next: Next,
    /// Content bytes written to the output.
    pub(super) content_bytes: u64,
    /// See [`Stream::held`].
    _held: Option<Box<dyn Any + Send>>,
}

/// Result of one [`BodyWriter::pump`].
pub(super) enum Progress {
    /// There may be more; continue in the next turn.
    More,
    /// The queue is empty; a wake-up follows when there is more.
    Wait,
    /// The body is complete.
    Done,
    /// The body cannot be completed.
    Broken,
}

impl BodyWriter {
    pub(super) fn new(stream: Stream, framing: SendFraming, next: Next) -> Self {
        let with_trailers = framing == SendFraming::Chunked { trailers: true };
        let trailers = stream.trailers.filter(|_| with_trailers).map(|(_, make)| make);
        BodyWriter { source: stream.source, framing, trailers, next, content_bytes: 0, _held: stream.held }
    }

    /// Lets the source wake the connection.
    pub(super) fn attach(&self, id: ExchangeId, draining: bool) {
        if let Source::Queue(queue) = &self.source {
            queue.handle.attach(id, draining);
        }
    }

    pub(super) fn drain(&self) {
        if let Source::Queue(queue) = &self.source {
            queue.handle.drain();
        }
    }

    /// Returns how to close the connection after a failure so that the client can detect the truncation. With
    /// Content-Length or chunked framing, an early close is enough and does not lose data already sent. If the close
    /// itself ends the body, only a reset is detectable.
    pub(super) fn failure_flow(&self) -> Flow {
        if self.framing == SendFraming::Close { Flow::Abort } else { Flow::Linger }
    }

    /// Moves up to one batch from the source to the output. An error or panic in the source fails the body.
    pub(super) fn pump(&mut self, output: &mut Output) -> Progress {
        match catch_unwind(AssertUnwindSafe(|| self.pump_batch(output))) {
            Ok(Ok(progress)) => progress,
            Ok(Err(error)) => {
                log::warn!("response body failed: {error}");
                Progress::Broken
            }
            Err(_) => {
                log::error!("response body source panicked");
                Progress::Broken
            }
        }
    }

    fn pump_batch(&mut self, output: &mut Output) -> io::Result<Progress> {
        if let Source::Queue(queue) = &self.source {
            queue.handle.clear_wakeup();
        }
        for _ in 0..PIECES_PER_TURN {
            if self.framing == SendFraming::Length(0) {
                // Any further data would exceed the declared length.
                return self.end(output);
            }
            if output.len() >= BATCH_BYTES {
                return Ok(Progress::More);
            }
            let piece = match &mut self.source {
                Source::Pieces(pieces) => pieces.next().transpose()?,
                Source::Reader(reader) => {
                    match read_piece(reader, &mut self.framing, output)? {
                        0 => return self.end(output),
                        count => self.content_bytes += count,
                    }
                    continue;
                }
                Source::Queue(queue) => match queue.pull() {
                    Pulled::Piece(piece) => Some(piece),
                    Pulled::Wait => return Ok(Progress::Wait),
                    Pulled::End => None,
                    Pulled::Broken => return Err(io::Error::other("the sender was dropped before finish()")),
                },
            };
            match piece {
                Some(piece) => self.content_bytes += write_piece(piece, &mut self.framing, output),
                None => return self.end(output),
            }
        }
        Ok(Progress::More)
    }

    /// Handles the end of the source.
    fn end(&mut self, output: &mut Output) -> io::Result<Progress> {
        let trailers = self.trailers.take().map(|make| make());
        let lines = trailers.as_ref().map_or(&b""[..], Trailers::lines);
        if let Err(missing) = self.framing.finish(output.buffer(), lines) {
            return Err(io::Error::other(format!("{missing} bytes short of the declared length")));
        }
        if let Source::Queue(queue) = &self.source {
            queue.release();
        }
        Ok(Progress::Done)
    }
}

/// Writes a piece, truncated to the declared length, and returns the number of content bytes written.
fn write_piece(mut piece: Bytes, framing: &mut SendFraming, output: &mut Output) -> u64 {
    piece.truncate(framing.allowed(piece.len()));
    if piece.is_empty() {
        return 0;
    }
    let (before, after) = framing.frame(piece.len());
    output.extend(before.as_bytes());
    output.push(&piece);
    output.extend(after);
    piece.len() as u64
}

/// Reads directly into the output and returns the number of bytes read. The chunk size is filled in afterwards, with
/// leading zeros. If the reader fails or panics, the output is restored, because a chunk size of zero would end the
/// body.
fn read_piece(reader: &mut dyn Read, framing: &mut SendFraming, output: &mut Output) -> io::Result<u64> {
    let chunked = matches!(framing, SendFraming::Chunked { .. });
    let want = framing.allowed(READ_BYTES);
    let tail = Tail::new(output.buffer());
    if chunked {
        tail.buffer.extend_from_slice(b"0000\r\n");
    }
    let start = tail.buffer.len();
    tail.buffer.resize(start + want, 0);
    let count = loop {
        match reader.read(&mut tail.buffer[start..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    if count == 0 {
        return Ok(0);
    }
    if count > want {
        return Err(io::Error::other("the reader returned a count larger than its buffer"));
    }
    tail.buffer.truncate(start + count);
    if chunked {
        tail.buffer[start - 6..start - 2].copy_from_slice(format!("{count:04x}").as_bytes());
        tail.buffer.extend_from_slice(b"\r\n");
    }
    tail.commit();
    // Counts the piece; the frame of a chunk is already written.
    framing.frame(count);
    Ok(count as u64)
}

/// Bytes appended to a buffer tentatively: removed again on drop unless committed.
struct Tail<'a> {
    buffer: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Tail<'a> {
    fn new(buffer: &'a mut Vec<u8>) -> Self {
        let start = buffer.len();
        Tail { buffer, start }
    }

    fn commit(mut self) {
        self.start = self.buffer.len();
    }
}

impl Drop for Tail<'_> {
    fn drop(&mut self) {
        self.buffer.truncate(self.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(source: Source, framing: SendFraming) -> BodyWriter {
        BodyWriter::new(Stream::new(source), framing, Next::Request)
    }

    fn pump_all(mut body: BodyWriter) -> Result<Vec<u8>, ()> {
        let mut sent = Vec::new();
        loop {
            let mut output = Output::new();
            let progress = body.pump(&mut output);
            assert!(output.len() < BATCH_BYTES + READ_BYTES + 100, "the batch exceeds its limit");
            sent.extend(output.to_vec());
            match progress {
                Progress::More => {}
                Progress::Done => return Ok(sent),
                Progress::Wait | Progress::Broken => return Err(()),
            }
        }
    }

    fn pieces(list: &'static [&'static str]) -> Source {
        Source::Pieces(Box::new(list.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes())))))
    }

    #[test]
    fn pieces_become_chunks_and_empty_pieces_are_skipped() {
        let sent =
            pump_all(body(pieces(&["hello", "", "world, again and again"]), SendFraming::Chunked { trailers: false }));
        assert_eq!(sent.unwrap(), b"5\r\nhello\r\n16\r\nworld, again and again\r\n0\r\n\r\n");
    }

    #[test]
    fn a_body_matches_its_declared_length_exactly() {
        assert_eq!(pump_all(body(pieces(&["hello", "world"]), SendFraming::Length(7))).unwrap(), b"hellowo");
        assert_eq!(pump_all(body(pieces(&["hello"]), SendFraming::Length(7))), Err(()));
        assert_eq!(pump_all(body(pieces(&["hello"]), SendFraming::Close)).unwrap(), b"hello");
    }

    #[test]
    fn a_reader_is_read_in_bounded_steps() {
        let text = vec![b'x'; 200_000];
        let reader = || Source::Reader(Box::new(io::Cursor::new(text.clone())));
        assert_eq!(pump_all(body(reader(), SendFraming::Length(150_000))).unwrap(), text[..150_000]);
        let chunked = pump_all(body(reader(), SendFraming::Chunked { trailers: false })).unwrap();
        assert!(chunked.starts_with(b"4000\r\nxx") && chunked.ends_with(b"x\r\n0\r\n\r\n"));
    }

    #[test]
    fn an_error_or_panic_in_the_source_fails_the_body() {
        let failing = [Ok(Bytes::from_static(b"a")), Err(io::Error::other("injected"))];
        assert_eq!(
            pump_all(body(Source::Pieces(Box::new(failing.into_iter())), SendFraming::Chunked { trailers: false })),
            Err(())
        );
        let panicking = std::iter::from_fn(|| panic!("injected"));
        assert_eq!(
            pump_all(body(Source::Pieces(Box::new(panicking)), SendFraming::Chunked { trailers: false })),
            Err(())
        );
    }

    /// A reader that returns one piece and then misbehaves.
    struct Misbehaving<F>(bool, F);

    impl<F: FnMut() -> io::Result<usize>> Read for Misbehaving<F> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return (self.1)();
            }
            buffer[..2].copy_from_slice(b"ab");
            Ok(2)
        }
    }

    #[test]
    fn a_failing_reader_leaves_complete_chunks_and_no_terminator() {
        let fails: fn() -> io::Result<usize> = || Err(io::Error::other("injected"));
        let panics: fn() -> io::Result<usize> = || panic!("injected");
        let overcounts: fn() -> io::Result<usize> = || Ok(1 << 20);
        for misbehave in [fails, panics, overcounts] {
            let mut output = Output::new();
            let mut body =
                body(Source::Reader(Box::new(Misbehaving(false, misbehave))), SendFraming::Chunked { trailers: false });
            assert!(matches!(body.pump(&mut output), Progress::Broken));
            assert_eq!(output.to_vec(), b"0002\r\nab\r\n");
        }
    }
}
