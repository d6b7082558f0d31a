//! A byte range of an open file to be sent.
//!
//! The file is read at explicit offsets, so that one open file serves any number of connections, and nothing is
//! buffered: a stalled download uses no memory. A file that is shorter than announced, or cannot be read, fails the
//! connection, because its Content-Length is already sent. Files are not memory-mapped: a file truncated while mapped
//! would raise SIGBUS.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::file_read::{Readahead, read_at};
use super::readiness::{Sent, Stream};

/// Maximum bytes sent per call, after checking that they are in the page cache.
const BLOCK_BYTES: u64 = 256 * 1024;

/// Number of blocks the kernel is advised to read ahead.
const BLOCKS_AHEAD: u64 = 4;

/// The unsent range of a file.
#[derive(Debug)]
pub(super) struct FileRange {
    file: Arc<File>,
    next: u64,
    end: u64,
    /// Up to this offset the page cache is not checked: read-ahead has finished there, or failed.
    ready_to: u64,
}

impl FileRange {
    pub(super) fn new(file: Arc<File>, range: Range<u64>) -> Self {
        FileRange { file, next: range.start, end: range.end.max(range.start), ready_to: 0 }
    }

    /// The number of unsent bytes.
    pub(super) fn len(&self) -> u64 {
        self.end - self.next
    }

    /// Marks the next `count` bytes as sent.
    pub(super) fn advance(&mut self, count: u64) {
        self.next += count;
    }

    /// Sends up to `bytes_max` bytes. Returns `None` if they are not in the page cache.
    pub(super) fn send(&self, stream: &mut impl Stream, bytes_max: usize) -> io::Result<Option<Sent>> {
        let is_ready = self.ready_to > self.next;
        let end = if is_ready { self.ready_to } else { self.block_end(1) };
        let count = usize::try_from(end - self.next).unwrap_or(usize::MAX).min(bytes_max);
        if !is_ready && stream.needs_readahead(&self.file, self.next, count) {
            return Ok(None);
        }
        let sent = stream.send_file(&self.file, self.next, count)?;
        if sent.bytes == 0 { Err(file_truncated(&self.file)) } else { Ok(Some(sent)) }
    }

    fn block_end(&self, blocks: u64) -> u64 {
        self.end.min(self.next.saturating_add(blocks * BLOCK_BYTES))
    }

    /// The read-ahead to request when [`FileRange::send`] returns `None`.
    pub(super) fn readahead(&self) -> Readahead {
        Readahead {
            file: Arc::clone(&self.file),
            range: self.next..self.block_end(1),
            ahead_to: self.block_end(BLOCKS_AHEAD),
        }
    }

    /// Marks the next block as read ahead; the page cache is not checked for it again.
    pub(super) fn readahead_done(&mut self) {
        self.ready_to = self.block_end(1);
    }

    /// Returns the unsent bytes, for tests.
    pub(super) fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut all = vec![0; usize::try_from(self.len()).unwrap_or(usize::MAX)];
        let mut filled = 0;
        while filled < all.len() {
            match read_at(&self.file, &mut all[filled..], self.next + filled as u64)? {
                0 => return Err(file_truncated(&self.file)),
                count => filled += count,
            }
        }
        Ok(all)
    }
}

/// The cause of the error for a file that ends before the range that is sent, so that an application can log it.
#[derive(Debug)]
pub(crate) struct FileTruncated {
    /// `None` if the system does not know it.
    path: Option<PathBuf>,
}

impl fmt::Display for FileTruncated {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(formatter, "{} was truncated while being sent", path.display()),
            None => formatter.write_str("a file was truncated while being sent"),
        }
    }
}

impl std::error::Error for FileTruncated {}

fn file_truncated(file: &File) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, FileTruncated { path: path_of(file) })
}

/// Returns the path of an open file, as the kernel knows it.
#[cfg(target_os = "linux")]
fn path_of(file: &File) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

#[cfg(not(target_os = "linux"))]
fn path_of(_: &File) -> Option<PathBuf> {
    None
}
