//! Reads files that are being sent: at explicit offsets, in blocks where sendfile is not available, and ahead of time
//! on a small thread pool.
//!
//! Disk reads cannot be made non-blocking with readiness events, and a blocking read would stall the loop and all of
//! its connections. If a part of a file is not in the page cache, a pool thread reads it, which brings it into the
//! cache, and then notifies the loop. The pool serves the whole process; its threads start on demand and exit when
//! idle.
//!
//! This is best effort: pages may be evicted again, and if the queue is full or no thread can be started, the loop
//! reads the file itself.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::work_queue::WorkQueue;

/// Maximum pool threads. Disks handle a few requests in parallel; further threads would only use memory.
const THREADS_MAX: usize = 4;

/// Size of a thread's read buffer.
const READ_BYTES: usize = 64 * 1024;

/// Size of the buffer of [`with_block`].
const BLOCK_BYTES: usize = 64 * 1024;

thread_local! {
    /// Allocated when the first file is sent without sendfile.
    static BLOCK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads up to `count` bytes at `offset` and passes them to `use_block`; an empty slice means the end of the file.
/// Bytes that `use_block` does not use are read again in the next call, so nothing is buffered.
pub(super) fn with_block<R>(
    file: &File,
    offset: u64,
    count: usize,
    use_block: impl FnOnce(&[u8]) -> io::Result<R>,
) -> io::Result<R> {
    BLOCK.with_borrow_mut(|buffer| {
        buffer.resize(BLOCK_BYTES, 0);
        let wanted = count.min(BLOCK_BYTES);
        let read = read_at(file, &mut buffer[..wanted], offset)?;
        use_block(&buffer[..read])
    })
}

/// Reads at an offset, without using the file's cursor. Retries if interrupted by a signal.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match read_once(file, buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Regular files never block. Passed on, the error would make the loop wait for the stream to become
            // writable.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::other("not a regular file: read would block"));
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

/// A request to read a part of a file into the page cache.
#[derive(Debug)]
pub(super) struct Readahead {
    pub(super) file: Arc<File>,
    /// The bytes to read now.
    pub(super) range: Range<u64>,
    /// End of the range that will be needed soon, for `posix_fadvise`.
    pub(super) ahead_to: u64,
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
