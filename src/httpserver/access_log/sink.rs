//! The writer thread of the access log, so that a slow disk or pipe does not block a loop.
//!
//! Each loop adds the complete lines of a turn to a shared buffer. Lines added during a write are combined into the
//! next write, so a busy server makes fewer writes than turns. The buffer is bounded: if it is full, lines are dropped,
//! counted and reported.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::httpserver::exchange_handle::lock;

/// Limit of the buffer that all loops share: several thousand lines, which a disk writes in milliseconds.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// Maximum time to wait for the writer when flushing.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(1);

/// Minimum interval between reports of dropped lines.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Destination of the log.
pub(super) enum Target {
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
    dropped: u64,
    /// The warning that lines are being dropped has been logged, but not yet their number.
    warned: bool,
    /// Writing is suspended by [`Sink::hold`].
    held: bool,
    reopen: bool,
    closed: bool,
    /// A write is in progress.
    busy: bool,
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
pub(super) struct Sink {
    shared: Arc<Shared>,
}

impl Sink {
    pub(super) fn start(target: Target) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Writer { shared: Arc::clone(&shared), target, mid_line: false, failing: false, reported_at: None };
        thread::Builder::new().name("access-log".into()).spawn(move || writer.run())?;
        Ok(Sink { shared })
    }

    /// Adds complete lines to the buffer, or drops them if it is full. `batch` is left empty.
    pub(super) fn push(&self, batch: &mut Vec<u8>, lines: u64) {
        let mut state = lock(&self.shared.state);
        if state.queue.len() + batch.len() > QUEUE_BYTES_MAX {
            state.drop_lines(lines);
            batch.clear();
            if !std::mem::replace(&mut state.warned, true) {
                drop(state);
                warn_dropping();
            }
            return;
        }
        state.lines += lines;
        if state.queue.is_empty() {
            std::mem::swap(&mut state.queue, batch);
            drop(state);
            self.shared.changed.notify_one();
        } else {
            state.queue.append(batch);
        }
    }

    /// Suspends writing until [`Sink::release`] or [`Sink::flush`].
    pub(super) fn hold(&self) {
        lock(&self.shared.state).held = true;
    }

    pub(super) fn release(&self) {
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
}

impl Sink {
    /// Waits until the buffer is written, for up to [`FLUSH_WAIT_MAX`].
    pub(super) fn flush(&self) {
        let mut state = lock(&self.shared.state);
        state.held = false;
        self.shared.changed.notify_one();
        let is_busy = |state: &mut State| state.busy || !state.queue.is_empty();
        let waited = self.shared.idle.wait_timeout_while(state, FLUSH_WAIT_MAX, is_busy);
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            log::warn!("timed out writing the last lines of the access log");
        }
    }
}

/// Flushes the buffer and stops the writer thread.
impl Drop for Sink {
    fn drop(&mut self) {
        self.flush();
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_one();
    }
}

/// Logs a warning from a separate thread, because standard error may itself be blocked.
fn warn_dropping() {
    let warn = || log::warn!("access log writer is behind; dropping lines");
    // If no thread can be started, `report_dropped` still reports the number later.
    let _ = thread::Builder::new().name("access-log-full".into()).spawn(warn);
}

impl State {
    fn drop_lines(&mut self, lines: u64) {
        self.unreported += lines;
        self.dropped += lines;
    }

    fn has_work(&self) -> bool {
        (!self.queue.is_empty() && !self.held) || self.reopen || self.closed
    }
}

/// State of the writer thread.
struct Writer {
    shared: Arc<Shared>,
    target: Target,
    /// The last write ended in the middle of a line.
    mid_line: bool,
    /// The last write failed.
    failing: bool,
    reported_at: Option<Instant>,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let state = lock(&self.shared.state);
            let waited = self.shared.changed.wait_while(state, |state| !state.has_work());
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            let mut lines = 0;
            if !state.held {
                std::mem::swap(&mut state.queue, &mut batch);
                lines = std::mem::take(&mut state.lines);
            }
            state.busy = !batch.is_empty();
            let (reopen, closed) = (std::mem::take(&mut state.reopen), state.closed);
            drop(state);
            if reopen {
                self.target.reopen();
            }
            if !batch.is_empty() {
                self.write(&batch, lines);
                batch.clear();
                self.report_dropped();
                lock(&self.shared.state).busy = false;
                self.shared.idle.notify_all();
            } else if closed {
                return;
            }
        }
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
            return;
        };
        let written = &batch[..batch.len() - rest.len()];
        let complete = memchr::memchr_iter(b'\n', written).count() as u64;
        lock(&self.shared.state).drop_lines(lines.saturating_sub(complete));
        if !std::mem::replace(&mut self.failing, true) {
            log::error!("cannot write the access log: {error}; dropping lines until writes succeed again");
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

    /// Reports the number of dropped lines, once writes succeed again.
    fn report_dropped(&mut self) {
        if self.failing || self.reported_at.is_some_and(|at| at.elapsed() < REPORT_INTERVAL) {
            return;
        }
        let mut state = lock(&self.shared.state);
        let dropped = std::mem::take(&mut state.unreported);
        state.warned = false;
        drop(state);
        if dropped > 0 {
            log::warn!("dropped {dropped} access log lines: the writer could not keep up");
            self.reported_at = Some(Instant::now());
        }
    }
}
