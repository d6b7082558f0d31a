//! What is still to be sent on a connection, in order.
//!
//! Small pieces are copied into one growing buffer, so that a batch of answers leaves in one send. Large
//! bodies are queued as they are, without a copy, and leave with their neighbours in one gathered write. Parts of
//! files are queued by name, and are read when they are sent.
//!
//! The queue tells the order: so many octets of the buffer, then a body, then a part of a file, and so on. What stands
//! in the buffer behind all that, which mostly is everything, is not told in it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::file_range::FileRange;
use super::read_ahead::Cold;
use super::readiness::{Sent, Stream};

/// Bodies up to this size are copied behind their head: below it a copy costs less than another slice
/// of a gathered write.
const COPY_BYTES_MAX: usize = 16 * 1024;

/// How many slices one gathered write carries. Linux takes 1,024; a few are enough to fill a socket.
const SLICES_MAX: usize = 16;

/// A buffer that grew beyond this is given back to the system when it is empty.
const KEEP_BYTES_MAX: usize = 128 * 1024;

/// A queue of bytes to be sent.
#[derive(Debug, Default)]
pub struct Output {
    /// What goes before the last of the buffer. Empty in the common case.
    queue: VecDeque<Segment>,
    /// What is appended byte by byte.
    buffer: Vec<u8>,
    /// How much of the buffer is sent already.
    sent: usize,
    /// How much of the buffer, behind what is sent, the queue tells of.
    told: usize,
    /// Unsent bytes in the queue that do not stand in the buffer.
    queued: u64,
}

/// One piece of what is to be sent.
#[derive(Debug)]
enum Segment {
    /// The next so many bytes of the buffer.
    Buffered(usize),
    Shared(Bytes),
    File(FileRange),
}

/// How a flush ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Everything is sent.
    All,
    /// The socket takes no more for now.
    Blocked,
    /// The quota is used up; the socket may take more.
    Quota,
    /// What comes next has to be read from a disk first.
    Cold,
}

impl Output {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Unsent bytes, those of files included.
    #[inline]
    pub fn len(&self) -> usize {
        usize::try_from(self.queued).unwrap_or(usize::MAX).saturating_add(self.buffer.len() - self.sent)
    }

    /// Whether nothing is left to send.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The growing end, for writers that append to a vector.
    #[inline]
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Appends bytes.
    #[inline]
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Appends a body: copied when small, queued without a copy when large.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    pub fn push(&mut self, bytes: &Bytes) {
        if bytes.len() <= COPY_BYTES_MAX { self.extend(bytes) } else { self.share(bytes) }
    }

    /// Appends bytes that many connections get: never copied.
    pub fn share(&mut self, bytes: &Bytes) {
        if !bytes.is_empty() {
            self.queue_up(bytes.len() as u64, Segment::Shared(bytes.clone()));
        }
    }

    /// Appends a part of a regular file, from one position up to another. It is read when it is sent, by the system itself
    /// where that can be done (sendfile on Linux), at its position: the same open file can be given any number of times.
    /// When it turns out to be shorter, or cannot be read, the connection is closed.
    pub fn push_file(&mut self, file: Arc<File>, range: Range<u64>) {
        if !range.is_empty() {
            self.queue_up(range.end - range.start, Segment::File(FileRange::new(file, range)));
        }
    }

    fn queue_up(&mut self, len: u64, segment: Segment) {
        let untold = self.buffer.len() - self.sent - self.told;
        if untold > 0 {
            self.queue.push_back(Segment::Buffered(untold));
            self.told += untold;
        }
        self.queued = self.queued.saturating_add(len);
        self.queue.push_back(segment);
    }

    /// All unsent bytes in one vector, for tests.
    ///
    /// # Panics
    /// Where a file cannot be read.
    pub fn to_vec(&self) -> Vec<u8> {
        let (mut all, mut at) = (Vec::new(), self.sent);
        for segment in &self.queue {
            match segment {
                Segment::Buffered(len) => {
                    all.extend_from_slice(&self.buffer[at..at + len]);
                    at += len;
                }
                Segment::Shared(bytes) => all.extend_from_slice(bytes),
                Segment::File(range) => all.extend(range.to_vec().expect("a file that can be read")),
            }
        }
        all.extend_from_slice(&self.buffer[at..]);
        all
    }

    /// Throws away what is unsent.
    #[inline]
    pub fn clear(&mut self) {
        if !self.queue.is_empty() {
            self.queue.clear();
            self.told = 0;
            self.queued = 0;
        }
        self.clear_buffer();
    }

    #[inline]
    fn clear_buffer(&mut self) {
        self.sent = 0;
        self.buffer.clear();
        if self.buffer.capacity() > KEEP_BYTES_MAX {
            self.buffer = Vec::new();
        }
    }

    /// Writes until all is sent, the stream is full, or `quota` bytes have gone. Also returns how many went.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    pub(super) fn flush(&mut self, stream: &mut impl Stream, quota: usize) -> io::Result<(Flushed, usize)> {
        let mut gone = 0;
        let wanted = self.buffer.len() - self.sent;
        // The common case: some answers, which leave in one call.
        if self.queue.is_empty() && wanted <= quota {
            match written(stream.write(&self.buffer[self.sent..])) {
                Ok(sent) if sent.bytes == wanted => {
                    self.clear_buffer();
                    return Ok((Flushed::All, wanted));
                }
                Ok(sent) => {
                    self.sent += sent.bytes;
                    gone = sent.bytes;
                    if !sent.more {
                        return Ok((Flushed::Blocked, gone));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((Flushed::Blocked, gone)),
                Err(error) => return Err(error),
            }
        }
        self.flush_rest(stream, quota, gone)
    }

    fn flush_rest(&mut self, stream: &mut impl Stream, quota: usize, mut gone: usize) -> io::Result<(Flushed, usize)> {
        loop {
            if self.is_empty() {
                self.clear();
                return Ok((Flushed::All, gone));
            }
            if gone >= quota {
                return Ok((Flushed::Quota, gone));
            }
            let sent = match self.send_first(stream, quota - gone) {
                Ok(Some(sent)) => sent,
                Ok(None) => {
                    self.give_back();
                    return Ok((Flushed::Cold, gone));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.give_back();
                    return Ok((Flushed::Blocked, gone));
                }
                Err(error) => return Err(error),
            };
            gone += sent.bytes;
            self.advance(sent.bytes);
            if !sent.more && !self.is_empty() {
                self.give_back();
                return Ok((Flushed::Blocked, gone));
            }
        }
    }

    /// One call that sends what comes first: a part of a file, unless it is not in memory, or the bytes up to the next one.
    fn send_first(&mut self, stream: &mut impl Stream, bytes_max: usize) -> io::Result<Option<Sent>> {
        if let Some(Segment::File(range)) = self.queue.front() {
            return range.send(stream, bytes_max);
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let (count, file_follows) = self.gather(&mut slices);
        let outcome = written(match &slices[..count] {
            [only] if file_follows => stream.write_more(only),
            [only] => stream.write(only),
            several => stream.write_vectored(several),
        });
        outcome.map(Some)
    }

    /// What has to be brought into memory before more can be sent.
    pub(super) fn cold(&self) -> Option<Cold> {
        match self.queue.front() {
            Some(Segment::File(range)) => Some(range.cold()),
            _ => None,
        }
    }

    /// That was done, or tried.
    pub(super) fn warmed(&mut self) {
        if let Some(Segment::File(range)) = self.queue.front_mut() {
            range.warmed();
        }
    }

    /// The bytes that come first, and whether a part of a file comes after them.
    fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> (usize, bool) {
        let (mut count, mut at) = (0, self.sent);
        for segment in &self.queue {
            if count == SLICES_MAX {
                return (count, false);
            }
            slices[count] = IoSlice::new(match segment {
                Segment::Buffered(len) => {
                    at += len;
                    &self.buffer[at - len..at]
                }
                Segment::Shared(bytes) => bytes,
                Segment::File(_) => return (count, true),
            });
            count += 1;
        }
        if at < self.buffer.len() && count < SLICES_MAX {
            slices[count] = IoSlice::new(&self.buffer[at..]);
            count += 1;
        }
        (count, false)
    }

    /// A buffer that is sent, while what stands behind it waits for the peer, is given back to the system.
    fn give_back(&mut self) {
        if self.sent == self.buffer.len() {
            self.buffer = Vec::new();
            self.sent = 0;
        }
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.queue.front_mut() {
            let len = match first {
                Segment::Buffered(len) => *len as u64,
                Segment::Shared(bytes) => bytes.len() as u64,
                Segment::File(range) => range.len(),
            };
            let step = usize::try_from(len).unwrap_or(usize::MAX).min(count);
            count -= step;
            match first {
                Segment::Buffered(left) => {
                    *left -= step;
                    self.told -= step;
                    self.sent += step;
                }
                Segment::Shared(bytes) => {
                    bytes::Buf::advance(bytes, step);
                    self.queued -= step as u64;
                }
                Segment::File(range) => {
                    range.advance(step as u64);
                    self.queued -= step as u64;
                }
            }
            if (step as u64) < len {
                return;
            }
            self.queue.pop_front();
        }
        self.sent += count;
    }
}

/// A stream that takes nothing, and does not say that it is full, is at its end.
#[inline]
fn written(outcome: io::Result<Sent>) -> io::Result<Sent> {
    match outcome {
        Ok(sent) if sent.bytes == 0 => Err(io::ErrorKind::WriteZero.into()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_between_copied_and_shared_bytes() {
        let mut output = Output::new();
        let large = Bytes::from(vec![b'x'; COPY_BYTES_MAX + 1]);
        output.extend(b"head");
        output.push(&large);
        output.extend(b"next");
        output.push(&Bytes::from_static(b"small"));
        let mut expected = b"head".to_vec();
        expected.extend_from_slice(&large);
        expected.extend_from_slice(b"nextsmall");
        assert_eq!(output.len(), expected.len());
        assert_eq!(output.to_vec(), expected);
        output.advance(2);
        assert_eq!(output.to_vec(), expected[2..]);
        output.advance(large.len() + 3);
        assert_eq!(output.to_vec(), expected[large.len() + 5..]);
        output.push(&large);
        assert_eq!(output.len(), expected.len() - large.len() - 5 + large.len());
    }

    #[test]
    fn files_stand_between_bytes_and_are_sent_in_their_place() {
        let file = Arc::new(File::open("Cargo.toml").unwrap());
        let text = std::fs::read("Cargo.toml").unwrap();
        let mut output = Output::new();
        output.extend(b"head");
        output.push_file(Arc::clone(&file), 5..5);
        output.push_file(Arc::clone(&file), 5..30);
        output.extend(b"between");
        output.push_file(file, 0..10);
        output.extend(b"end");
        let expected = [b"head", &text[5..30], b"between", &text[..10], b"end"].concat();
        for gone in 0..expected.len() {
            assert_eq!((output.len(), output.to_vec()), (expected.len() - gone, expected[gone..].to_vec()));
            output.advance(1);
        }
        assert!(output.is_empty());
    }

    #[test]
    fn a_download_that_stalls_keeps_nothing_in_memory() {
        let path = std::env::temp_dir().join(format!("serverd-stalled-{}", std::process::id()));
        let file = File::create_new(&path).and_then(|file| file.set_len(64 << 20).map(|()| file)).unwrap();
        drop(file);
        let file = Arc::new(File::open(&path).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut stream = crate::r#loop::TcpStream::try_from(listener.accept().unwrap().0).unwrap();
        let mut output = Output::new();
        output.extend(&[b'h'; 300]);
        output.push_file(file, 0..64 << 20);
        while output.flush(&mut stream, 1 << 20).unwrap().0 != Flushed::Blocked {
            output.warmed();
        }
        assert!(output.len() > 32 << 20, "the socket took {} bytes less", output.len());
        assert_eq!((output.buffer.capacity(), output.queue.len()), (0, 1));
        drop(output);
        std::fs::remove_file(path).unwrap();
    }
}
