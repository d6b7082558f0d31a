//! The writer thread of a log, so that a slow disk or pipe does not block a loop.
//!
//! Each loop adds the complete lines of a turn to a shared buffer. Lines added during a write, or shortly after it, are
//! combined into the next write, so a busy server makes fewer writes than turns. The buffer is bounded: if it is full,
//! lines are dropped and counted, and their number is logged every 10 s.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::r#loop::lock;

/// Limit of the buffer that all loops share: several thousand lines, which a disk writes in milliseconds.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// Minimum time from one write to the next, in which lines are gathered.
const GATHER_TIME: Duration = Duration::from_millis(5);

/// Size of the buffer at which it is written without gathering more lines.
const GATHER_BYTES: usize = 64 * 1024;

/// Maximum time to wait for the writer when flushing.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(1);

/// Minimum interval between reports of dropped lines.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Destination of the log.
pub(crate) enum Target {
    /// A file, which can be reopened after log rotation.
    File(PathBuf, File),
    /// Anything else.
    Writer(Box<dyn Write + Send>),
}

impl Target {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = append(&path)?;
        Ok(Target::File(path, file))
    }

    fn reopen(&mut self) {
        if let Target::File(path, file) = self {
            match append(path) {
                Ok(new) => *file = new,
                Err(error) => log::error!(
                    "cannot reopen the access log {}: {error}; still writing to the old file",
                    path.display()
                ),
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Target::File(_, file) => file.write(bytes),
            Target::Writer(writer) => {
                let count = writer.write(bytes)?;
                writer.flush()?;
                Ok(count)
            }
        }
    }
}

/// Opens a file for appending: each write goes to its current end, as other processes may append to it or truncate it.
fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "independent flags")]
struct State {
    /// Complete lines.
    queue: Vec<u8>,
    lines: u64,
    /// Dropped lines not reported yet.
    unreported: u64,
    reported_at: Option<Instant>,
    dropped: u64,
    written: u64,
    /// Writing is suspended by [`Sink::hold`].
    held: bool,
    reopen: bool,
    closed: bool,
    /// A thread waits for the lines to be written.
    flushing: bool,
    /// A write is in progress.
    busy: bool,
    /// A flush timed out, and nothing has been written since.
    gave_up: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the writer thread.
    changed: Condvar,
    /// Wakes threads that wait for the writer to be idle.
    idle: Condvar,
}

/// Handle to the writer thread.
pub(crate) struct Sink {
    shared: Arc<Shared>,
    /// Name of the log in messages.
    name: &'static str,
}

impl Sink {
    /// Starts the writer thread. `name` is the name of the log in messages.
    pub(crate) fn start(name: &'static str, target: Target) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Writer::new(Arc::clone(&shared), name, target);
        thread::Builder::new().name(name.replace(' ', "-")).spawn(move || writer.run())?;
        Ok(Sink { shared, name })
    }

    /// Adds complete lines to the buffer, or drops them if it is full. `batch` is left empty.
    pub(super) fn push(&self, batch: &mut Vec<u8>, lines: u64) {
        if !self.try_push(batch, lines) {
            let due = lock(&self.shared.state).take_due_report();
            report_dropped(self.name, due);
        }
    }

    /// Adds complete lines to the buffer, or drops them if it is full; returns whether it had room. `batch` is left
    /// empty. Logs nothing, so the logger can call it.
    pub(crate) fn try_push(&self, batch: &mut Vec<u8>, lines: u64) -> bool {
        let mut state = lock(&self.shared.state);
        if state.queue.len() + batch.len() > QUEUE_BYTES_MAX {
            state.drop_lines(lines);
            batch.clear();
            return false;
        }
        state.lines += lines;
        let before = state.queue.len();
        if before == 0 {
            std::mem::swap(&mut state.queue, batch);
        } else {
            state.queue.append(batch);
        }
        // The writer waits for the first line, and then for so many that it gathers no more.
        let is_awaited = before == 0 || (before < GATHER_BYTES && state.queue.len() >= GATHER_BYTES);
        drop(state);
        if is_awaited {
            self.shared.changed.notify_one();
        }
        true
    }

    /// Adds a line before all others, and resumes writing.
    #[cfg(feature = "cli")]
    pub(crate) fn release_after(&self, line: &str) {
        let mut state = lock(&self.shared.state);
        state.queue.splice(0..0, line.bytes());
        state.lines += 1;
        drop(state);
        self.release();
    }

    /// Suspends writing until [`Sink::release`] or [`Sink::flush`].
    pub(crate) fn hold(&self) {
        lock(&self.shared.state).held = true;
    }

    pub(crate) fn release(&self) {
        lock(&self.shared.state).held = false;
        self.shared.changed.notify_one();
    }

    pub(super) fn reopen(&self) {
        lock(&self.shared.state).reopen = true;
        self.shared.changed.notify_one();
    }

    pub(super) fn dropped(&self) -> u64 {
        lock(&self.shared.state).dropped
    }

    pub(super) fn written(&self) -> u64 {
        lock(&self.shared.state).written
    }
}

impl Sink {
    /// Waits until the buffer is written, for up to [`FLUSH_WAIT_MAX`].
    pub(super) fn flush(&self) {
        self.flush_until(Instant::now() + FLUSH_WAIT_MAX);
    }

    /// Waits until the buffer is written, or until `deadline`. Does not wait again after that until a write succeeds.
    pub(crate) fn flush_until(&self, deadline: Instant) {
        let mut state = lock(&self.shared.state);
        if state.gave_up {
            return;
        }
        (state.held, state.flushing) = (false, true);
        self.shared.changed.notify_one();
        let is_busy = |state: &mut State| state.busy || !state.queue.is_empty();
        let wait = deadline.saturating_duration_since(Instant::now());
        let waited = self.shared.idle.wait_timeout_while(state, wait, is_busy);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() && is_busy(&mut state) {
            state.gave_up = true;
            drop(state);
            log::warn!("timed out writing the last lines of the {}", self.name);
        }
    }
}

/// Flushes the buffer, unless that has already timed out, and stops the writer thread.
impl Drop for Sink {
    fn drop(&mut self) {
        self.flush();
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_one();
    }
}

/// Logs a number of dropped lines, unless it is zero.
fn report_dropped(name: &str, lines: u64) {
    if lines > 0 {
        log::error!("dropped {lines} lines of the {name}: they cannot be written fast enough");
    }
}

impl State {
    /// Returns the number of dropped lines that were not reported; 0 if the last report is too recent.
    fn take_due_report(&mut self) -> u64 {
        let now = Instant::now();
        if self.unreported == 0 || self.reported_at.is_some_and(|at| now - at < REPORT_INTERVAL) {
            return 0;
        }
        self.reported_at = Some(now);
        std::mem::take(&mut self.unreported)
    }

    fn drop_lines(&mut self, lines: u64) {
        self.unreported += lines;
        self.dropped += lines;
    }

    /// Returns whether the writer may wait for more lines.
    fn may_gather(&self) -> bool {
        self.queue.len() < GATHER_BYTES && !self.reopen && !self.closed && !self.flushing
    }

    fn has_work(&self) -> bool {
        (!self.queue.is_empty() && !self.held) || self.reopen || self.closed
    }
}

/// State of the writer thread.
struct Writer {
    shared: Arc<Shared>,
    name: &'static str,
    target: Target,
    /// The last write ended in the middle of a line.
    mid_line: bool,
    /// The last write failed.
    failing: bool,
    /// When the last write began.
    written_at: Option<Instant>,
}

impl Writer {
    fn new(shared: Arc<Shared>, name: &'static str, target: Target) -> Self {
        Writer { shared, name, target, mid_line: false, failing: false, written_at: None }
    }

    fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let state = lock(&self.shared.state);
            let waited = self.shared.changed.wait_while(state, |state| !state.has_work());
            let mut state = self.gather(waited.unwrap_or_else(PoisonError::into_inner));
            let mut lines = 0;
            if !state.held {
                std::mem::swap(&mut state.queue, &mut batch);
                lines = std::mem::take(&mut state.lines);
            }
            (state.busy, state.flushing) = (!batch.is_empty(), false);
            let (reopen, closed) = (std::mem::take(&mut state.reopen), state.closed);
            drop(state);
            if reopen {
                self.target.reopen();
            }
            if !batch.is_empty() {
                self.written_at = Some(Instant::now());
                self.write(&batch, lines);
                batch.clear();
                let mut state = lock(&self.shared.state);
                state.gave_up &= self.failing;
                // Lines lost to failed writes are reported once writes succeed again.
                let due = if self.failing { 0 } else { state.take_due_report() };
                drop(state);
                report_dropped(self.name, due);
                lock(&self.shared.state).busy = false;
                self.shared.idle.notify_all();
            } else if closed {
                return;
            }
        }
    }

    /// Waits for more lines if the last write was a moment ago. A line that is alone is thus written at once.
    fn gather<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let since = self.written_at.map_or(GATHER_TIME, |at| at.elapsed());
        let wait = GATHER_TIME.saturating_sub(since);
        if wait.is_zero() || !state.may_gather() {
            return state;
        }
        let waited = self.shared.changed.wait_timeout_while(state, wait, |state| state.may_gather());
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn write(&mut self, batch: &[u8], lines: u64) {
        let mut rest = batch;
        let mut result = Ok(());
        // The log ends with an incomplete line: terminate it, so that the next line is intact.
        if self.mid_line {
            result = self.write_all(&mut &b"\n"[..]);
        }
        let result = result.and_then(|()| self.write_all(&mut rest));
        let Err(error) = result else {
            self.failing = false;
            lock(&self.shared.state).written += lines;
            return;
        };
        let written = &batch[..batch.len() - rest.len()];
        let complete = memchr::memchr_iter(b'\n', written).count() as u64;
        let mut state = lock(&self.shared.state);
        state.written += complete;
        state.drop_lines(lines.saturating_sub(complete));
        drop(state);
        if !std::mem::replace(&mut self.failing, true) {
            let name = self.name;
            log::error!("cannot write to the {name}: {error}; dropping lines until writes succeed again");
        }
    }

    /// Writes all of `rest`; after an error, `rest` holds the bytes that were not written.
    fn write_all(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            match self.target.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.mid_line = rest[count - 1] != b'\n';
                    *rest = &rest[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#loop::lock;

    #[test]
    fn dropped_lines_are_reported_at_once_and_then_every_10_seconds() {
        let mut state = State::default();
        assert_eq!(state.take_due_report(), 0);
        state.drop_lines(3);
        assert_eq!(state.take_due_report(), 3);
        state.drop_lines(4);
        assert_eq!(state.take_due_report(), 0);
        state.reported_at = state.reported_at.and_then(|at| at.checked_sub(REPORT_INTERVAL));
        assert_eq!((state.take_due_report(), state.take_due_report(), state.dropped), (4, 0, 7));
    }

    #[test]
    fn a_flush_that_timed_out_is_not_repeated_until_a_write_succeeds() {
        let (reader, writer) = std::io::pipe().unwrap();
        let sink = Sink::start("test log", Target::Writer(Box::new(writer))).unwrap();
        // More than a pipe holds.
        sink.push(&mut vec![b'x'; 200_000], 1);
        sink.flush_until(Instant::now() + Duration::from_millis(20));
        assert!(lock(&sink.shared.state).gave_up);
        let start = Instant::now();
        sink.flush();
        assert!(start.elapsed() < FLUSH_WAIT_MAX / 2);
        drop(reader);
    }
}
