//! Octets of an open file that are to be sent.
//!
//! They are read by their position, so one open file serves any number of connections at once, and nothing of it is
//! kept in memory: whoever takes nothing costs nothing. A file that turns out to be shorter than was said, or cannot
//! be read, fails the stream: octets that were announced can neither be made up nor left out. There is no mapping of
//! files into memory, where the same would be a signal (SIGBUS).

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::read_ahead::Cold;
use super::readiness::{Sent, Stream};

/// What is sent in one call, and looked for in memory before.
const BLOCK_BYTES: u64 = 256 * 1024;

/// How far beyond that the disk is told to read, in blocks.
const BLOCKS_AHEAD: u64 = 4;

/// What one read takes where the system does not send files by itself.
const COPY_BYTES: usize = 64 * 1024;

thread_local! {
    /// Empty until the first file is sent in that way.
    static COPY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A part of a file.
#[derive(Debug)]
pub(super) struct FileRange {
    file: Arc<File>,
    next: u64,
    end: u64,
    /// Up to here it was brought into memory, or it is no use to wait for that.
    warm: u64,
}

impl FileRange {
    pub(super) fn new(file: Arc<File>, range: Range<u64>) -> Self {
        FileRange { file, next: range.start, end: range.end.max(range.start), warm: 0 }
    }

    /// Octets that are not sent yet.
    pub(super) fn len(&self) -> u64 {
        self.end - self.next
    }

    /// Counts octets as sent.
    pub(super) fn advance(&mut self, count: u64) {
        self.next += count;
    }

    /// Sends some of it, at most `bytes_max`; `None` where it is not in memory.
    pub(super) fn send(&self, stream: &mut impl Stream, bytes_max: usize) -> io::Result<Option<Sent>> {
        let is_warm = self.warm > self.next;
        let end = if is_warm { self.warm } else { self.block_end(1) };
        let count = usize::try_from(end - self.next).unwrap_or(usize::MAX).min(bytes_max);
        if !is_warm && stream.is_cold(&self.file, self.next, count) {
            return Ok(None);
        }
        let sent = stream.send_file(&self.file, self.next, count)?;
        if sent.bytes == 0 { Err(ended_early()) } else { Ok(Some(sent)) }
    }

    fn block_end(&self, blocks: u64) -> u64 {
        self.end.min(self.next.saturating_add(blocks * BLOCK_BYTES))
    }

    /// What has to be brought into memory.
    pub(super) fn cold(&self) -> Cold {
        Cold { file: Arc::clone(&self.file), now: self.next..self.block_end(1), soon: self.block_end(BLOCKS_AHEAD) }
    }

    /// The next block is not asked about any more.
    pub(super) fn warmed(&mut self) {
        self.warm = self.block_end(1);
    }

    /// What is not sent yet, for tests.
    pub(super) fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut all = vec![0; usize::try_from(self.len()).unwrap_or(usize::MAX)];
        let mut filled = 0;
        while filled < all.len() {
            match read_at(&self.file, &mut all[filled..], self.next + filled as u64)? {
                0 => return Err(ended_early()),
                count => filled += count,
            }
        }
        Ok(all)
    }
}

fn ended_early() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "a file became shorter while it was sent")
}

/// Reads from a place in the file, and sends what was read. What the stream does not take is read again the next time,
/// so nothing has to be kept.
pub(super) fn copy(stream: &mut (impl Stream + ?Sized), file: &File, offset: u64, count: usize) -> io::Result<Sent> {
    COPY.with_borrow_mut(|buffer| {
        buffer.resize(COPY_BYTES, 0);
        let wanted = count.min(COPY_BYTES);
        let read = read_at(file, &mut buffer[..wanted], offset)?;
        if read == 0 { Ok(Sent { bytes: 0, more: true }) } else { stream.write(&buffer[..read]) }
    })
}

pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match read_once(file, buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A regular file never says that it has nothing now; the loop would wait for a stream that is not full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::other("a file that is sent is none that can be read at once"));
            }
            outcome => return outcome,
        }
    }
}

#[cfg(unix)]
fn read_once(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_once(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}
