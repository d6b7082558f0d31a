//! What is still to be sent on a connection, in order.
//!
//! Small pieces are copied into one growing buffer, so that a batch of answers leaves in one send. Large
//! bodies are queued as they are, without a copy, and leave with their neighbours in one gathered write.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::Bytes;

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
    /// Segments before the tail. Empty in the common case.
    queue: VecDeque<Bytes>,
    /// What is appended byte by byte, after the queue.
    tail: Vec<u8>,
    /// How much of the tail is sent already. Always 0 while the queue holds something.
    sent: usize,
    /// Unsent bytes in the queue.
    queued: usize,
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
}

impl Output {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Unsent bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.queued + self.tail.len() - self.sent
    }

    /// Whether nothing is left to send.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The growing end, for writers that append to a vector.
    #[inline]
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Appends bytes.
    #[inline]
    pub fn extend(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }

    /// Appends a body: copied when small, queued without a copy when large.
    #[inline]
    pub fn push(&mut self, bytes: &Bytes) {
        if bytes.len() <= COPY_BYTES_MAX { self.extend(bytes) } else { self.push_shared(bytes.clone()) }
    }

    /// Appends bytes that many connections get: never copied.
    pub fn share(&mut self, bytes: &Bytes) {
        if !bytes.is_empty() {
            self.push_shared(bytes.clone());
        }
    }

    fn push_shared(&mut self, bytes: Bytes) {
        if self.tail.len() > self.sent {
            let tail = Bytes::from(std::mem::take(&mut self.tail)).split_off(self.sent);
            self.queued += tail.len();
            self.queue.push_back(tail);
        }
        self.tail.clear();
        self.sent = 0;
        self.queued += bytes.len();
        self.queue.push_back(bytes);
    }

    /// All unsent bytes in one vector, for tests.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all: Vec<u8> = self.queue.iter().flat_map(|segment| segment.iter().copied()).collect();
        all.extend_from_slice(&self.tail[self.sent..]);
        all
    }

    /// Throws away what is unsent.
    pub fn clear(&mut self) {
        if !self.queue.is_empty() {
            self.queue.clear();
            self.queued = 0;
        }
        self.sent = 0;
        self.tail.clear();
        if self.tail.capacity() > KEEP_BYTES_MAX {
            self.tail = Vec::new();
        }
    }

    /// Writes until all is sent, the stream is full, or `quota` bytes have gone. Also returns how many went.
    #[inline]
    pub(super) fn flush(&mut self, stream: &mut impl Stream, quota: usize) -> io::Result<(Flushed, usize)> {
        let mut gone = 0;
        // The common case: some answers, which leave in one call.
        if self.queue.is_empty() && self.tail.len() - self.sent <= quota {
            let wanted = self.tail.len() - self.sent;
            match self.write_once(stream) {
                Ok(sent) if sent.bytes == wanted => {
                    self.clear();
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
            let sent = match self.write_once(stream) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok((Flushed::Blocked, gone));
                }
                Err(error) => return Err(error),
            };
            gone += sent.bytes;
            self.advance(sent.bytes);
            if !sent.more && !self.is_empty() {
                return Ok((Flushed::Blocked, gone));
            }
        }
    }

    #[inline]
    fn write_once(&self, stream: &mut impl Stream) -> io::Result<Sent> {
        let tail = &self.tail[self.sent..];
        let sent = match self.queue.front() {
            None => stream.write(tail)?,
            Some(only) if tail.is_empty() && self.queue.len() == 1 => stream.write(only)?,
            Some(_) => self.write_gathered(stream, tail)?,
        };
        if sent.bytes == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(sent) }
    }

    fn write_gathered(&self, stream: &mut impl Stream, tail: &[u8]) -> io::Result<Sent> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let all = self.queue.iter().map(Bytes::as_ref).chain((!tail.is_empty()).then_some(tail));
        for (slot, bytes) in slices.iter_mut().zip(all) {
            *slot = IoSlice::new(bytes);
            count += 1;
        }
        stream.write_vectored(&slices[..count])
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.queue.front_mut() {
            if count < first.len() {
                bytes::Buf::advance(first, count);
                self.queued -= count;
                return;
            }
            count -= first.len();
            self.queued -= first.len();
            self.queue.pop_front();
        }
        self.sent += count;
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
}
