//! Bodies that are made while they are sent.
//!
//! A turn takes at most a batch from the source and comes back when the client has taken it; so a body of any size
//! costs no more memory than a batch, and others are served in between.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;

use super::fields::Trailers;
use super::link::Place;
use super::sender::{Pulled, Queue};
use super::{BATCH_BYTES, Next};
use crate::r#loop::{Flow, Output};

/// What one read of a [`Source::Reader`] may bring; four hexadecimal digits tell any smaller number.
const READ_BYTES: usize = 16 * 1024;

/// Pieces taken in one turn, however small.
const PIECES_PER_TURN: usize = 256;

/// Where the pieces of a body come from.
pub(super) enum Source {
    Pieces(Box<dyn Iterator<Item = io::Result<Bytes>> + Send>),
    Reader(Box<dyn Read + Send>),
    Queue(Outlet),
}

/// The loop's half of a queue: whoever pushes into the other hears when it is dropped.
pub(super) struct Outlet(pub(super) Arc<Queue>);

impl std::ops::Deref for Outlet {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.0
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.0.close();
    }
}

type MakeTrailers = Box<dyn FnOnce() -> Trailers + Send>;

/// A body of a response that is not there yet.
pub(super) struct Stream {
    source: Source,
    pub(super) length: Option<u64>,
    /// Names, and what makes the fields.
    pub(super) trailers: Option<(String, MakeTrailers)>,
}

impl Stream {
    pub(super) fn new(source: Source) -> Self {
        Stream { source, length: None, trailers: None }
    }

    /// Whether the loop takes the pieces as it needs them, and may leave that to another thread.
    #[cfg(feature = "files")]
    pub(super) fn is_pulled(&self) -> bool {
        !matches!(self.source, Source::Queue(_)) && self.trailers.is_none()
    }

    #[cfg(feature = "files")]
    pub(super) fn into_source(self) -> Source {
        self.source
    }
}

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// By Content-Length; so many bytes are still to come.
    Length(u64),
    Chunked,
    /// By the close, for HTTP/1.0.
    Close,
}

/// A body on its way.
pub(super) struct Outgoing {
    source: Source,
    coding: Coding,
    trailers: Option<MakeTrailers>,
    pub(super) next: Next,
    /// Octets of the content that went into the output.
    pub(super) content_bytes: u64,
}

/// How far a turn came.
pub(super) enum Pumped {
    /// There may be more in the next turn.
    More,
    /// There is more when the queue nudges.
    Wait,
    /// The body is whole.
    Done,
    /// The body cannot be made whole.
    Broken,
}

impl Outgoing {
    pub(super) fn new(stream: Stream, coding: Coding, with_trailers: bool, next: Next) -> Self {
        let trailers = stream.trailers.filter(|_| with_trailers).map(|(_, make)| make);
        Outgoing { source: stream.source, coding, trailers, next, content_bytes: 0 }
    }

    /// From now on the source can reach the connection.
    pub(super) fn bind(&self, place: Place, draining: bool) {
        if let Source::Queue(queue) = &self.source {
            queue.link.bind(place, draining);
        }
    }

    pub(super) fn drain(&self) {
        if let Source::Queue(queue) = &self.source {
            queue.link.drain();
        }
    }

    /// The body broke off, and the peer has to see that: where its end is told otherwise, by an early end of the
    /// stream, which loses nothing that was sent before; else by a reset.
    pub(super) fn give_up(&self) -> Flow {
        if self.coding == Coding::Close { Flow::Abort } else { Flow::Linger }
    }

    /// Moves up to a batch from the source to the output. What a source does wrong, panics included, breaks the body.
    pub(super) fn pump(&mut self, output: &mut Output) -> Pumped {
        match catch_unwind(AssertUnwindSafe(|| self.take_batch(output))) {
            Ok(Ok(pumped)) => pumped,
            Ok(Err(error)) => {
                log::warn!("the body of an answer broke off: {error}");
                Pumped::Broken
            }
            Err(_) => {
                log::error!("the source of a body panicked");
                Pumped::Broken
            }
        }
    }

    fn take_batch(&mut self, output: &mut Output) -> io::Result<Pumped> {
        if let Source::Queue(queue) = &self.source {
            queue.link.answer();
        }
        for _ in 0..PIECES_PER_TURN {
            if self.coding == Coding::Length(0) {
                // What the source still has to give is beyond what was announced.
                return Ok(self.finish(output));
            }
            if output.len() >= BATCH_BYTES {
                return Ok(Pumped::More);
            }
            let piece = match &mut self.source {
                Source::Pieces(pieces) => pieces.next().transpose()?,
                Source::Reader(reader) => {
                    match read_piece(reader, &mut self.coding, output)? {
                        0 => return self.end(output),
                        count => self.content_bytes += count,
                    }
                    continue;
                }
                Source::Queue(queue) => match queue.pull() {
                    Pulled::Piece(piece) => Some(piece),
                    Pulled::Wait => return Ok(Pumped::Wait),
                    Pulled::End => None,
                    Pulled::Broken => return Err(io::Error::other("its sender was dropped before the end")),
                },
            };
            match piece {
                Some(piece) => self.content_bytes += write_piece(piece, &mut self.coding, output),
                None => return self.end(output),
            }
        }
        Ok(Pumped::More)
    }

    /// The source has nothing more.
    fn end(&mut self, output: &mut Output) -> io::Result<Pumped> {
        match self.coding {
            Coding::Length(missing @ 1..) => {
                Err(io::Error::other(format!("it is {missing} bytes shorter than announced")))
            }
            _ => Ok(self.finish(output)),
        }
    }

    fn finish(&mut self, output: &mut Output) -> Pumped {
        if self.coding == Coding::Chunked {
            output.extend(b"0\r\n");
            if let Some(make) = self.trailers.take() {
                output.extend(make().lines());
            }
            output.extend(b"\r\n");
        }
        if let Source::Queue(queue) = &self.source {
            queue.release();
        }
        Pumped::Done
    }
}

/// Returns how much of the piece is sent.
fn write_piece(mut piece: Bytes, coding: &mut Coding, output: &mut Output) -> u64 {
    if piece.is_empty() {
        return 0;
    }
    match coding {
        Coding::Chunked => {
            output.extend(format!("{:x}\r\n", piece.len()).as_bytes());
            output.push(&piece);
            output.extend(b"\r\n");
            return piece.len() as u64;
        }
        Coding::Length(left) => {
            piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= piece.len() as u64;
        }
        Coding::Close => {}
    }
    output.push(&piece);
    piece.len() as u64
}

/// Reads straight into the output: a chunk's size is filled in afterwards, with leading zeros. Returns how much there
/// was. A reader that panics leaves the output as it was, for a size of zero in it would end the body.
fn read_piece(reader: &mut dyn Read, coding: &mut Coding, output: &mut Output) -> io::Result<u64> {
    let chunked = *coding == Coding::Chunked;
    let want = if let Coding::Length(left) = coding {
        usize::try_from(*left).unwrap_or(READ_BYTES).min(READ_BYTES)
    } else {
        READ_BYTES
    };
    let tail = Tail::new(output.buffer());
    if chunked {
        tail.buffer.extend_from_slice(b"0000\r\n");
    }
    let start = tail.buffer.len();
    tail.buffer.resize(start + want, 0);
    let count = loop {
        match reader.read(&mut tail.buffer[start..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => break outcome?,
        }
    };
    if count == 0 {
        return Ok(0);
    }
    if count > want {
        return Err(io::Error::other("its reader says that it read more than there is room for"));
    }
    tail.buffer.truncate(start + count);
    if chunked {
        tail.buffer[start - 6..start - 2].copy_from_slice(format!("{count:04x}").as_bytes());
        tail.buffer.extend_from_slice(b"\r\n");
    }
    tail.keep();
    if let Coding::Length(left) = coding {
        *left -= count as u64;
    }
    Ok(count as u64)
}

/// What is being added to a buffer: taken away again unless it is kept.
struct Tail<'a> {
    buffer: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Tail<'a> {
    fn new(buffer: &'a mut Vec<u8>) -> Self {
        let start = buffer.len();
        Tail { buffer, start }
    }

    fn keep(mut self) {
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

    fn outgoing(source: Source, coding: Coding) -> Outgoing {
        Outgoing::new(Stream::new(source), coding, false, Next::Request)
    }

    fn all(mut outgoing: Outgoing) -> Result<Vec<u8>, ()> {
        let mut sent = Vec::new();
        loop {
            let mut output = Output::new();
            let pumped = outgoing.pump(&mut output);
            assert!(output.len() < BATCH_BYTES + READ_BYTES + 100, "a batch is bounded");
            sent.extend(output.to_vec());
            match pumped {
                Pumped::More => {}
                Pumped::Done => return Ok(sent),
                Pumped::Wait | Pumped::Broken => return Err(()),
            }
        }
    }

    fn pieces(list: &'static [&'static str]) -> Source {
        Source::Pieces(Box::new(list.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes())))))
    }

    #[test]
    fn pieces_become_chunks_and_empty_ones_nothing() {
        let sent = all(outgoing(pieces(&["hello", "", "world, again and again"]), Coding::Chunked));
        assert_eq!(sent.unwrap(), b"5\r\nhello\r\n16\r\nworld, again and again\r\n0\r\n\r\n");
    }

    #[test]
    fn an_announced_length_is_kept_to_the_byte() {
        assert_eq!(all(outgoing(pieces(&["hello", "world"]), Coding::Length(7))).unwrap(), b"hellowo");
        assert_eq!(all(outgoing(pieces(&["hello"]), Coding::Length(7))), Err(()));
        assert_eq!(all(outgoing(pieces(&["hello"]), Coding::Close)).unwrap(), b"hello");
    }

    #[test]
    fn a_reader_is_read_in_bounded_steps() {
        let text = vec![b'x'; 200_000];
        let reader = || Source::Reader(Box::new(io::Cursor::new(text.clone())));
        assert_eq!(all(outgoing(reader(), Coding::Length(150_000))).unwrap(), text[..150_000]);
        let chunked = all(outgoing(reader(), Coding::Chunked)).unwrap();
        assert!(chunked.starts_with(b"4000\r\nxx") && chunked.ends_with(b"x\r\n0\r\n\r\n"));
    }

    #[test]
    fn a_source_that_fails_or_panics_breaks_the_body() {
        let failing = [Ok(Bytes::from_static(b"a")), Err(io::Error::other("as asked"))];
        assert_eq!(all(outgoing(Source::Pieces(Box::new(failing.into_iter())), Coding::Chunked)), Err(()));
        let panicking = std::iter::from_fn(|| panic!("as asked"));
        assert_eq!(all(outgoing(Source::Pieces(Box::new(panicking)), Coding::Chunked)), Err(()));
    }

    /// A reader that gives one piece and then does `wrong`.
    struct Wrong<F>(bool, F);

    impl<F: FnMut() -> io::Result<usize>> Read for Wrong<F> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return (self.1)();
            }
            buffer[..2].copy_from_slice(b"ab");
            Ok(2)
        }
    }

    #[test]
    fn a_reader_that_does_wrong_leaves_whole_pieces_and_no_end() {
        let fails: fn() -> io::Result<usize> = || Err(io::Error::other("as asked"));
        let panics: fn() -> io::Result<usize> = || panic!("as asked");
        let lies: fn() -> io::Result<usize> = || Ok(1 << 20);
        for wrong in [fails, panics, lies] {
            let mut output = Output::new();
            let mut body = outgoing(Source::Reader(Box::new(Wrong(false, wrong))), Coding::Chunked);
            assert!(matches!(body.pump(&mut output), Pumped::Broken));
            assert_eq!(output.to_vec(), b"0002\r\nab\r\n");
        }
    }
}
