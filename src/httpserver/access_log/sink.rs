//! Where the lines go: a thread that writes them, so that neither a disk nor the reader of a pipe stops a loop.
//!
//! Each loop hands over what a turn brought, whole lines; while one write is under way the next ones gather, so a busy
//! server makes fewer writes than turns. What gathers is bounded: beyond that lines are dropped, counted, and told of.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::httpserver::link::lock;

/// What may wait to be written, of all loops together: some thousand lines, which a disk takes in milliseconds.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// How long the end of a server waits for what is not written yet.
const PATIENCE: Duration = Duration::from_secs(1);

/// Troubles are told of once in this time.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What is written to.
pub(super) enum Target {
    /// A file that is opened anew when it was renamed.
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
                    "cannot open the access log {} again: {error}; lines go on to the old file",
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

/// Each write goes to the end, wherever that is: other processes may write too, and who rotates may cut the file.
fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "each tells of one thing, and none depends on another")]
struct State {
    /// Whole lines.
    queue: Vec<u8>,
    lines: u64,
    /// Lines that were dropped, and are not told of.
    untold: u64,
    dropped: u64,
    /// It was told that lines are dropped, and not yet how many.
    complained: bool,
    /// Nothing is written for now.
    held: bool,
    reopen: bool,
    closed: bool,
    /// A write is under way.
    busy: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// For the thread that writes.
    news: Condvar,
    /// For who waits until it has nothing to do.
    rest: Condvar,
}

/// The way to the thread.
pub(super) struct Sink {
    shared: Arc<Shared>,
}

impl Sink {
    pub(super) fn start(target: Target) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Writer { shared: Arc::clone(&shared), target, torn: false, failing: false, told: None };
        thread::Builder::new().name("access-log".into()).spawn(move || writer.run())?;
        Ok(Sink { shared })
    }

    /// Takes whole lines over; the vector is empty afterwards.
    pub(super) fn push(&self, batch: &mut Vec<u8>, lines: u64) {
        let mut state = lock(&self.shared.state);
        if state.queue.len() + batch.len() > QUEUE_BYTES_MAX {
            state.drop_lines(lines);
            batch.clear();
            if !std::mem::replace(&mut state.complained, true) {
                drop(state);
                complain();
            }
            return;
        }
        state.lines += lines;
        if state.queue.is_empty() {
            std::mem::swap(&mut state.queue, batch);
            drop(state);
            self.shared.news.notify_one();
        } else {
            state.queue.append(batch);
        }
    }

    /// Nothing is written until [`Sink::release`].
    pub(super) fn hold(&self) {
        lock(&self.shared.state).held = true;
    }

    pub(super) fn release(&self) {
        lock(&self.shared.state).held = false;
        self.shared.news.notify_one();
    }

    pub(super) fn reopen(&self) {
        lock(&self.shared.state).reopen = true;
        self.shared.news.notify_one();
    }

    pub(super) fn dropped(&self) -> u64 {
        lock(&self.shared.state).dropped
    }
}

impl Sink {
    /// Waits for what is not written, within bounds.
    pub(super) fn flush(&self) {
        let mut state = lock(&self.shared.state);
        state.held = false;
        self.shared.news.notify_one();
        let waits = |state: &mut State| state.busy || !state.queue.is_empty();
        let waited = self.shared.rest.wait_timeout_while(state, PATIENCE, waits);
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            log::warn!("the last lines of the access log could not be written in time");
        }
    }
}

/// The thread ends.
impl Drop for Sink {
    fn drop(&mut self) {
        self.flush();
        lock(&self.shared.state).closed = true;
        self.shared.news.notify_one();
    }
}

/// On a thread of its own: where the errors go may be what does not move.
fn complain() {
    let tell = || log::warn!("the access log takes no more for now: lines are dropped");
    // Without a thread it is told when the lines go through again.
    let _ = thread::Builder::new().name("access-log-full".into()).spawn(tell);
}

impl State {
    fn drop_lines(&mut self, lines: u64) {
        self.untold += lines;
        self.dropped += lines;
    }

    fn has_work(&self) -> bool {
        (!self.queue.is_empty() && !self.held) || self.reopen || self.closed
    }
}

/// The thread's own.
struct Writer {
    shared: Arc<Shared>,
    target: Target,
    /// The last write ended within a line.
    torn: bool,
    failing: bool,
    told: Option<Instant>,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let state = lock(&self.shared.state);
            let waited = self.shared.news.wait_while(state, |state| !state.has_work());
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
                self.tell_dropped();
                lock(&self.shared.state).busy = false;
                self.shared.rest.notify_all();
            } else if closed {
                return;
            }
        }
    }

    fn write(&mut self, batch: &[u8], lines: u64) {
        let mut rest = batch;
        let mut outcome = Ok(());
        // Half a line stands at the end of the file: what comes is a line of its own.
        if self.torn {
            outcome = self.write_all(&mut &b"\n"[..]);
        }
        let outcome = outcome.and_then(|()| self.write_all(&mut rest));
        let Err(error) = outcome else {
            self.failing = false;
            return;
        };
        let written = &batch[..batch.len() - rest.len()];
        let whole = memchr::memchr_iter(b'\n', written).count() as u64;
        lock(&self.shared.state).drop_lines(lines.saturating_sub(whole));
        if !std::mem::replace(&mut self.failing, true) {
            log::error!("cannot write the access log: {error}; lines are dropped until it can be written again");
        }
    }

    /// Leaves what could not be written.
    fn write_all(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            match self.target.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.torn = rest[count - 1] != b'\n';
                    *rest = &rest[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Once the lines go through again.
    fn tell_dropped(&mut self) {
        if self.failing || self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        let mut state = lock(&self.shared.state);
        let dropped = std::mem::take(&mut state.untold);
        state.complained = false;
        drop(state);
        if dropped > 0 {
            log::warn!("{dropped} lines of the access log were dropped: it could not be written fast enough");
            self.told = Some(Instant::now());
        }
    }
}
