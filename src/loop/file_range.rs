//! A byte range of an open file to be sent, and the threads that read it ahead.
//!
//! The file is read at explicit offsets, so that one open file serves any number of connections, and nothing is
//! buffered: a stalled download uses no memory. A file that is shorter than announced, or cannot be read, fails the
//! connection, because its Content-Length is already sent. Files are not memory-mapped: a file truncated while mapped
//! would raise SIGBUS.
//!
//! Disk reads cannot be made non-blocking with readiness events, and a blocking read would stall the loop and all of
//! its connections. If a part of a file is not in the page cache, a pool thread reads it, which brings it into the
//! cache, and then notifies the loop. The pool serves the whole process; its threads start on demand and exit when
//! idle. This is best effort: pages may be evicted again, and if the queue is full or no thread can be started, the loop
//! reads the file itself.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::readiness::{Sent, Stream};
use super::std_ext::read_at;
use super::work_queue::WorkQueue;

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

/// Maximum pool threads. Disks handle a few requests in parallel; further threads would only use memory.
const THREADS_MAX: usize = 4;

/// Size of a thread's read buffer.
const READ_BYTES: usize = 64 * 1024;

/// A request to read a part of a file into the page cache.
#[derive(Debug)]
pub(super) struct Readahead {
    file: Arc<File>,
    /// The bytes to read now.
    range: Range<u64>,
    /// End of the range that will be needed soon, for `posix_fadvise`.
    ahead_to: u64,
}

struct Job {
    readahead: Readahead,
    done: Box<dyn FnOnce() + Send>,
}

static READAHEADS: WorkQueue<Job> = WorkQueue::new(THREADS_MAX);

/// Queues a read for the thread pool, which calls `done` when it is finished. Returns false, without calling
/// `done`, if the queue is full or no thread can be started.
pub(super) fn request(readahead: Readahead, done: impl FnOnce() + Send + 'static) -> bool {
    let job = Job { readahead, done: Box::new(done) };
    READAHEADS.push(job, ("read-ahead", run_worker)).is_ok()
}

/// The main function of a pool thread.
fn run_worker() {
    let mut buffer = vec![0; READ_BYTES];
    while let Some(Job { readahead, done }) = READAHEADS.next() {
        readahead.read(&mut buffer);
        done();
    }
}

impl Readahead {
    /// Reads the range and discards the data, which stays in the page cache. Errors are ignored: sending the range hits
    /// them again and reports them.
    fn read(&self, buffer: &mut [u8]) {
        self.advise();
        let mut at = self.range.start;
        while at < self.range.end {
            let wanted = usize::try_from(self.range.end - at).unwrap_or(usize::MAX).min(buffer.len());
            match read_at(&self.file, &mut buffer[..wanted], at) {
                Ok(0) | Err(_) => return,
                Ok(count) => at += count as u64,
            }
        }
    }

    /// Advises the kernel to read ahead up to `ahead_to`.
    #[cfg(target_os = "linux")]
    fn advise(&self) {
        use rustix::fs::{Advice, fadvise};
        let len = std::num::NonZeroU64::new(self.ahead_to - self.range.start);
        // Only a hint; file systems may not support it.
        let _ = fadvise(&*self.file, self.range.start, len, Advice::WillNeed);
    }

    #[cfg(not(target_os = "linux"))]
    fn advise(&self) {
        let _ = self.ahead_to;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn readahead() -> Readahead {
        let file = Arc::new(File::open("Cargo.toml").unwrap());
        let len = file.metadata().unwrap().len();
        Readahead { file, range: 0..len, ahead_to: len + 1 }
    }

    #[test]
    fn every_accepted_request_is_read_and_reported() {
        let (send, receive) = mpsc::channel();
        let accepted = (0..100).filter(|&number| {
            let send = send.clone();
            request(readahead(), move || send.send(number).unwrap())
        });
        let mut accepted: Vec<u32> = accepted.collect();
        assert!(!accepted.is_empty());
        drop(send);
        let mut reported: Vec<u32> = receive.iter().collect();
        reported.sort_unstable();
        accepted.sort_unstable();
        assert_eq!(reported, accepted);
        assert!(READAHEADS.threads() <= THREADS_MAX);
    }
}
