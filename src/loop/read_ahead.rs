//! Reading of files that are not in memory, on threads of its own.
//!
//! A disk cannot be told to answer later, as a socket can: while it is waited for, the loop and everybody in it stand
//! still. So where the system says that a part of a file is not in memory, a thread reads it, which brings it there,
//! and then the loop is told to go on. The threads serve the whole process; they begin when there is something to read
//! and end when there has been nothing for a while.
//!
//! This is a help and no promise: what was brought may be gone again, and where too many wait already, or no thread is
//! to be had, the loop reads for itself.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::file_range::read_at;

/// A disk does some things at once; more threads would only be more stacks.
const THREADS_MAX: usize = 4;

/// What waits at most: each is an open file, and who waits longer than the time limit of writing is gone.
const WAITING_MAX: usize = 1024;

/// How long a thread waits for something to do before it ends.
const REST: Duration = Duration::from_secs(10);

/// What one read takes.
const READ_BYTES: usize = 64 * 1024;

/// A part of a file that is not in memory.
#[derive(Debug)]
pub(super) struct Cold {
    pub(super) file: Arc<File>,
    /// What is wanted now.
    pub(super) now: Range<u64>,
    /// Where what will be wanted soon ends.
    pub(super) soon: u64,
}

struct Job {
    cold: Cold,
    then: Box<dyn FnOnce() + Send>,
}

struct State {
    waiting: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

static STATE: Mutex<State> = Mutex::new(State { waiting: VecDeque::new(), threads: 0, idle: 0 });
static NEWS: Condvar = Condvar::new();

/// A poisoned lock only means that some thread panicked while it pushed or popped; the state is sound.
fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads on another thread, and calls `then` there when that is done. Says whether it will.
pub(super) fn request(cold: Cold, then: impl FnOnce() + Send + 'static) -> bool {
    let mut state = lock();
    if state.waiting.len() >= WAITING_MAX {
        return false;
    }
    if state.idle <= state.waiting.len() && state.threads < THREADS_MAX {
        let started = thread::Builder::new().name("read-ahead".into()).spawn(work);
        state.threads += usize::from(started.is_ok());
    }
    if state.threads == 0 {
        return false;
    }
    state.waiting.push_back(Job { cold, then: Box::new(then) });
    drop(state);
    NEWS.notify_one();
    true
}

/// One thread's life.
fn work() {
    let mut buffer = vec![0; READ_BYTES];
    while let Some(Job { cold, then }) = next() {
        cold.read(&mut buffer);
        then();
    }
}

/// What is to be read; `None` is the end of the thread.
fn next() -> Option<Job> {
    let mut state = lock();
    state.idle += 1;
    let waited = NEWS.wait_timeout_while(state, REST, |state| state.waiting.is_empty());
    state = waited.unwrap_or_else(PoisonError::into_inner).0;
    state.idle -= 1;
    let job = state.waiting.pop_front();
    state.threads -= usize::from(job.is_none());
    job
}

impl Cold {
    /// Reads what is wanted, and throws it away: the system keeps it. Who sends it meets the same errors, and tells them.
    fn read(&self, buffer: &mut [u8]) {
        self.announce();
        let mut at = self.now.start;
        while at < self.now.end {
            let wanted = usize::try_from(self.now.end - at).unwrap_or(usize::MAX).min(buffer.len());
            match read_at(&self.file, &mut buffer[..wanted], at) {
                Ok(0) | Err(_) => return,
                Ok(count) => at += count as u64,
            }
        }
    }

    /// Tells the system what will be wanted, so that it begins to read that too.
    #[cfg(target_os = "linux")]
    fn announce(&self) {
        use rustix::fs::{Advice, fadvise};
        let len = std::num::NonZeroU64::new(self.soon - self.now.start);
        // Advice, where there is an ear for it.
        let _ = fadvise(&*self.file, self.now.start, len, Advice::WillNeed);
    }

    #[cfg(not(target_os = "linux"))]
    fn announce(&self) {
        let _ = self.soon;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn cold() -> Cold {
        let file = Arc::new(File::open("Cargo.toml").unwrap());
        let len = file.metadata().unwrap().len();
        Cold { file, now: 0..len, soon: len + 1 }
    }

    #[test]
    fn everything_that_is_taken_is_read_and_reported() {
        let (send, receive) = mpsc::channel();
        let taken = (0..100).filter(|&number| {
            let send = send.clone();
            request(cold(), move || send.send(number).unwrap())
        });
        let mut taken: Vec<u32> = taken.collect();
        assert!(!taken.is_empty());
        drop(send);
        let mut told: Vec<u32> = receive.iter().collect();
        told.sort_unstable();
        taken.sort_unstable();
        assert_eq!(told, taken);
        assert!(lock().threads <= THREADS_MAX);
    }
}
