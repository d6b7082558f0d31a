//! The queue of unsent output of a connection.
//!
//! Small pieces are copied into one growing buffer, so that a batch of responses is sent in one write. Large bodies
//! are queued without a copy and sent with adjacent data in one vectored write. File ranges are queued as such and read
//! when they are sent (with sendfile where available).
//!
//! `queue` records the order, for example a number of bytes of `buffer`, then a shared body, then a file range. Bytes
//! in `buffer` after the last queued segment are not represented in the queue; usually that is all of them.
//!
//! A function `NAME_outlined` is the rare part of `NAME`, or `NAME` itself out of line; it exists only for code layout:
//! `NAME` is inlined into the hot path and has to stay small there.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::file_range::{FileRange, Readahead};
use super::readiness::{Sent, Stream, would_block};

/// Bodies up to this size are copied into the buffer: a copy then costs less than another slice of a vectored write.
const COPY_BYTES_MAX: usize = 16 * 1024;

/// Maximum slices per vectored write. Linux accepts 1,024; a few are enough to fill a socket buffer.
const SLICES_MAX: usize = 16;

/// Output up to this size is sent at once: it fits in the initial congestion window of TCP (RFC 6928).
pub(super) const LITTLE_BYTES: usize = 14_600;

/// A buffer that has grown beyond this size is freed when it is empty.
const KEEP_BYTES_MAX: usize = 128 * 1024;

/// A queue of bytes to be sent.
#[derive(Debug, Default)]
pub struct Output {
    /// The segments before the unqueued end of the buffer. Empty in the common case.
    queue: VecDeque<Segment>,
    /// Copied bytes.
    buffer: Vec<u8>,
    /// Number of bytes of `buffer` already sent.
    sent: usize,
    /// Unsent bytes of `buffer` that are referenced by `Segment::Buffered`.
    in_queue: usize,
    /// Unsent bytes of queued bodies and file ranges, which are not in `buffer`.
    unbuffered: u64,
}

/// A segment of the queue.
#[derive(Debug)]
enum Segment {
    /// The next bytes of the buffer, by count.
    Buffered(usize),
    /// Reference-counted bytes, sent without a copy.
    Shared(Bytes),
    /// A range of a file.
    File(FileRange),
}

/// The result of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Everything is sent, and it was little ([`LITTLE_BYTES`]).
    All,
    /// Everything is sent.
    AllOfMuch,
    /// The socket would block.
    Blocked,
    /// The quota is used up; the socket may accept more.
    Quota,
    /// The next file range is not in the page cache.
    NeedsReadahead,
}

impl Output {
    /// Creates an empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of unsent bytes, including those of files.
    #[inline]
    pub fn len(&self) -> usize {
        usize::try_from(self.unbuffered).unwrap_or(usize::MAX).saturating_add(self.buffer.len() - self.sent)
    }

    /// Returns the memory that the queue takes. Bytes that are shared with other owners do not count.
    pub(super) fn memory(&self) -> usize {
        let shared = |segment: &Segment| match segment {
            Segment::Shared(bytes) if bytes.is_unique() => bytes.len(),
            _ => 0,
        };
        self.buffer.capacity() + self.queue.iter().map(shared).sum::<usize>()
    }

    /// Returns whether nothing is left to send.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the buffer at the end of the queue. Use it only to append.
    #[inline]
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Appends a copy of `bytes`.
    #[inline]
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Appends a body: copied if small, queued without a copy if large.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub fn push(&mut self, bytes: &Bytes) {
        if bytes.len() <= COPY_BYTES_MAX { self.extend(bytes) } else { self.share(bytes) }
    }

    /// Appends bytes without a copy, whatever their size. Use it for data that is sent to many connections.
    pub fn share(&mut self, bytes: &Bytes) {
        if !bytes.is_empty() {
            self.enqueue(bytes.len() as u64, Segment::Shared(bytes.clone()));
        }
    }

    /// Appends a byte range of a regular file.
    ///
    /// The range is read when it is sent, zero-copy where the platform supports it (sendfile on Linux). The file's
    /// cursor is not used, so one open file can be queued any number of times. If the file is shorter than the range or
    /// cannot be read, the connection is closed.
    pub fn push_file(&mut self, file: Arc<File>, range: Range<u64>) {
        if !range.is_empty() {
            self.enqueue(range.end - range.start, Segment::File(FileRange::new(file, range)));
        }
    }

    fn enqueue(&mut self, len: u64, segment: Segment) {
        let unqueued = self.buffer.len() - self.sent - self.in_queue;
        if unqueued > 0 {
            self.queue.push_back(Segment::Buffered(unqueued));
            self.in_queue += unqueued;
        }
        self.unbuffered = self.unbuffered.saturating_add(len);
        self.queue.push_back(segment);
    }

    /// Removes the unsent bytes up to the first file range and returns them in order. Shared bytes are not copied.
    /// Together with [`Output::share`] and [`Output::extend`] this replaces what has not been sent yet; the peer may
    /// have received the beginning of the message that the first of these bytes belongs to.
    pub fn take_bytes(&mut self) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        loop {
            match self.queue.front_mut() {
                Some(Segment::File(_)) => return pieces,
                Some(Segment::Buffered(len)) => {
                    let end = self.sent + *len;
                    pieces.push(Bytes::copy_from_slice(&self.buffer[self.sent..end]));
                    self.in_queue -= *len;
                    self.sent = end;
                }
                Some(Segment::Shared(bytes)) => {
                    self.unbuffered -= bytes.len() as u64;
                    pieces.push(std::mem::take(bytes));
                }
                None => break,
            }
            self.queue.pop_front();
        }
        if self.sent < self.buffer.len() {
            pieces.push(Bytes::copy_from_slice(&self.buffer[self.sent..]));
        }
        self.clear_buffer();
        pieces
    }

    /// Returns all unsent bytes in one vector, for tests.
    ///
    /// # Panics
    /// Panics if a file cannot be read.
    pub fn to_vec(&self) -> Vec<u8> {
        let (mut all, mut at) = (Vec::new(), self.sent);
        for segment in &self.queue {
            match segment {
                Segment::Buffered(len) => {
                    all.extend_from_slice(&self.buffer[at..at + len]);
                    at += len;
                }
                Segment::Shared(bytes) => all.extend_from_slice(bytes),
                Segment::File(range) => all.extend(range.to_vec().expect("readable file")),
            }
        }
        all.extend_from_slice(&self.buffer[at..]);
        all
    }

    /// Drops all unsent bytes.
    #[inline]
    pub fn clear(&mut self) {
        if !self.queue.is_empty() {
            self.queue.clear();
            self.in_queue = 0;
            self.unbuffered = 0;
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

    /// Returns whether there are from 1 to `bytes_max` unsent bytes, all of them copied.
    #[inline]
    pub(super) fn is_little(&self, bytes_max: usize) -> bool {
        let unsent = self.buffer.len() - self.sent;
        // No bytes wrap around to more than any maximum.
        self.queue.is_empty() && unsent.wrapping_sub(1) < bytes_max
    }

    /// Fast path of [`Output::flush`] if [`Output::is_little`], such as a batch of responses: sends it in one write.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub(super) fn flush_little(&mut self, stream: &mut impl Stream, quota: usize) -> io::Result<(Flushed, usize)> {
        let unsent = &self.buffer[self.sent..];
        match check_progress(stream.write(unsent)) {
            Ok(sent) if sent.bytes == unsent.len() => {
                self.clear_buffer();
                Ok((Flushed::All, sent.bytes))
            }
            Ok(sent) => {
                self.sent += sent.bytes;
                if sent.more { self.flush(stream, quota, sent.bytes) } else { Ok((Flushed::Blocked, sent.bytes)) }
            }
            Err(error) if would_block(&error) => Ok((Flushed::Blocked, 0)),
            Err(error) => Err(error),
        }
    }

    /// Writes until everything is sent, the stream would block, or `quota` bytes are sent, `flushed` of which were sent
    /// before. Also returns the number of bytes sent.
    #[inline(never)]
    pub(super) fn flush(
        &mut self,
        stream: &mut impl Stream,
        quota: usize,
        mut flushed: usize,
    ) -> io::Result<(Flushed, usize)> {
        let is_little = flushed == 0 && self.is_little(LITTLE_BYTES);
        loop {
            if self.is_empty() {
                self.clear();
                return Ok((if is_little { Flushed::All } else { Flushed::AllOfMuch }, flushed));
            }
            if flushed >= quota {
                return Ok((Flushed::Quota, flushed));
            }
            let sent = match self.send_front(stream, quota - flushed) {
                Ok(Some(sent)) => sent,
                Ok(None) => {
                    self.release_buffer();
                    return Ok((Flushed::NeedsReadahead, flushed));
                }
                Err(error) if would_block(&error) => {
                    self.release_buffer();
                    return Ok((Flushed::Blocked, flushed));
                }
                Err(error) => return Err(error),
            };
            flushed += sent.bytes;
            self.advance(sent.bytes);
            if !sent.more && !self.is_empty() {
                self.release_buffer();
                return Ok((Flushed::Blocked, flushed));
            }
        }
    }

    /// Sends the front of the queue with one system call: a file range, or the bytes up to the next file range. Returns
    /// `None` if a file range is not in the page cache.
    fn send_front(&mut self, stream: &mut impl Stream, bytes_max: usize) -> io::Result<Option<Sent>> {
        if let Some(Segment::File(range)) = self.queue.front() {
            return range.send(stream, bytes_max);
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let (count, file_follows) = self.gather(&mut slices, bytes_max);
        let outcome = check_progress(match &slices[..count] {
            [only] if file_follows => stream.write_more(only),
            [only] => stream.write(only),
            several => stream.write_vectored(several),
        });
        outcome.map(Some)
    }

    /// Returns the read-ahead that is needed before more can be sent.
    pub(super) fn readahead(&self) -> Option<Readahead> {
        match self.queue.front() {
            Some(Segment::File(range)) => Some(range.readahead()),
            _ => None,
        }
    }

    /// Marks the read-ahead as finished, whether it succeeded or not.
    pub(super) fn readahead_done(&mut self) {
        if let Some(Segment::File(range)) = self.queue.front_mut() {
            range.readahead_done();
        }
    }

    /// Collects up to `bytes_max` bytes at the front of the queue. Returns the number of slices and whether a file
    /// range follows.
    fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX], bytes_max: usize) -> (usize, bool) {
        let (mut count, mut at, mut left) = (0, self.sent, bytes_max);
        for segment in &self.queue {
            if count == SLICES_MAX || left == 0 {
                return (count, false);
            }
            let bytes = match segment {
                Segment::Buffered(len) => {
                    at += len;
                    &self.buffer[at - len..at]
                }
                Segment::Shared(bytes) => bytes,
                Segment::File(_) => return (count, true),
            };
            let bytes = &bytes[..bytes.len().min(left)];
            left -= bytes.len();
            slices[count] = IoSlice::new(bytes);
            count += 1;
        }
        if at < self.buffer.len() && count < SLICES_MAX && left > 0 {
            slices[count] = IoSlice::new(&self.buffer[at..self.buffer.len().min(at.saturating_add(left))]);
            count += 1;
        }
        (count, false)
    }

    /// Frees memory of the buffer that the unsent bytes do not need: it has grown with the output of other connections.
    pub(super) fn shrink(&mut self) {
        if self.buffer.capacity() > 2 * (self.buffer.len() - self.sent) {
            self.buffer.drain(..self.sent);
            self.sent = 0;
            self.buffer.shrink_to_fit();
        }
    }

    /// Frees the buffer if all of it is sent while later segments wait for the peer.
    fn release_buffer(&mut self) {
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
                    self.in_queue -= step;
                    self.sent += step;
                }
                Segment::Shared(bytes) => {
                    bytes::Buf::advance(bytes, step);
                    self.unbuffered -= step as u64;
                }
                Segment::File(range) => {
                    range.advance(step as u64);
                    self.unbuffered -= step as u64;
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

/// Turns a zero-length write without `WouldBlock` into an error.
#[inline]
fn check_progress(outcome: io::Result<Sent>) -> io::Result<Sent> {
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
    fn a_write_has_no_more_bytes_than_the_quota() {
        let mut output = Output::new();
        output.extend(b"head");
        output.share(&Bytes::from_static(b"shared"));
        output.extend(b"tail");
        for bytes_max in (1..20).chain([usize::MAX]) {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let (count, _) = output.gather(&mut slices, bytes_max);
            let gathered: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            assert_eq!(gathered, b"headsharedtail"[..bytes_max.min(14)]);
            assert!(slices[..count].iter().all(|slice| !slice.is_empty()));
        }
    }

    #[test]
    fn file_ranges_are_sent_in_order_between_bytes() {
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
        for flushed in 0..expected.len() {
            assert_eq!((output.len(), output.to_vec()), (expected.len() - flushed, expected[flushed..].to_vec()));
            output.advance(1);
        }
        assert!(output.is_empty());
    }

    #[test]
    fn unsent_bytes_can_be_taken_back_up_to_a_file() {
        let file = Arc::new(File::open("Cargo.toml").unwrap());
        let large = Bytes::from(vec![b'x'; 100]);
        let mut output = Output::new();
        output.extend(b"sent, head");
        output.share(&large);
        output.extend(b"between");
        output.advance(6);
        let pieces = output.take_bytes();
        assert_eq!(pieces, [&b"head"[..], &large, b"between"]);
        assert_eq!(pieces[1].as_ptr(), large.as_ptr());
        assert!(output.is_empty() && output.take_bytes().is_empty());
        output.extend(b"head");
        output.push_file(file, 0..10);
        output.extend(b"end");
        assert_eq!(output.take_bytes(), [&b"head"[..]]);
        assert_eq!(output.len(), 13);
        assert!(output.take_bytes().is_empty() && output.to_vec().ends_with(b"end"));
    }

    #[test]
    fn unsent_bytes_take_no_memory_of_the_output_before() {
        let mut output = Output::new();
        output.extend(&vec![b'x'; 100_000]);
        output.share(&Bytes::from_static(b"shared"));
        output.extend(b"end");
        output.advance(99_990);
        output.shrink();
        assert!(output.memory() < 100, "{}", output.memory());
        assert_eq!(output.to_vec(), b"xxxxxxxxxxsharedend");
        output.advance(12);
        assert_eq!(output.to_vec(), b"aredend");
    }

    #[test]
    fn a_stalled_download_uses_no_buffer_memory() {
        let path = std::env::temp_dir().join(format!("serverd-stalled-{}", std::process::id()));
        let file = File::create_new(&path).and_then(|file| file.set_len(64 << 20).map(|()| file)).unwrap();
        drop(file);
        let file = Arc::new(File::open(&path).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut stream = crate::r#loop::SystemStream::try_from(listener.accept().unwrap().0).unwrap();
        let mut output = Output::new();
        output.extend(&[b'h'; 300]);
        output.push_file(file, 0..64 << 20);
        while output.flush(&mut stream, 1 << 20, 0).unwrap().0 != Flushed::Blocked {
            output.readahead_done();
        }
        assert!(output.len() > 32 << 20, "only {} bytes remain unsent", output.len());
        assert_eq!((output.buffer.capacity(), output.queue.len()), (0, 1));
        drop(output);
        std::fs::remove_file(path).unwrap();
    }
}
