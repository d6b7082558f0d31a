//! The access log: a line for each request, when its answer has ended.

mod journal;
mod line;
mod sink;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

pub(super) use journal::Journal;
use sink::{Sink, Target};

/// How a line of the access log is written. Times are those of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: time, client, method, target, status, octets of the content, duration.
    Short,
    /// What Apache and nginx call combined: `client - - [time] "request line" status octets "Referer" "User-Agent"`.
    Combined,
    /// An object of JSON: `time`, `peer`, `method`, `target`, `version`, `status`, `bytes`, `duration_ms`, `referer`,
    /// `user_agent`; what is not known is `null`. Of a request that could not be read the first line is `request`.
    Json,
}

/// Where the requests of a server are written down, a line each: clones are the same log, for any number of loops.
///
/// A line is written when the answer has ended. Its status is the one that was sent, 499 where the client left before
/// that; its octets are those of the content that were handed to the system, and its duration is that from the head to the
/// end, in milliseconds. Refused requests are written too. What clients send is escaped, so that a line is a line.
///
/// A thread writes: neither a disk nor the reader of a pipe stops a loop. At most 1 MiB waits for it; beyond that, and where
/// a write fails, lines are dropped and counted, and `log` is told once.
///
/// # Examples
/// ```
/// use serverd::{AccessLog, HttpServer, LogFormat};
///
/// let log = AccessLog::to(std::io::stderr(), LogFormat::Combined)?;
/// let server = HttpServer::new(|_| "hello\n").access_log(&log);
/// # drop(server);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct AccessLog {
    sink: Arc<Sink>,
    format: LogFormat,
    color: bool,
}

impl AccessLog {
    /// A log that is appended to a file, which is made where there is none.
    ///
    /// # Errors
    /// Where the file cannot be opened, or no thread can be started.
    pub fn file(path: impl Into<PathBuf>, format: LogFormat) -> io::Result<Self> {
        Self::over(Target::open(path.into())?, format)
    }

    /// A log that is written to something else, whole lines in each call as far as it takes them.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn to(writer: impl Write + Send + 'static, format: LogFormat) -> io::Result<Self> {
        Self::over(Target::Writer(Box::new(writer)), format)
    }

    fn over(target: Target, format: LogFormat) -> io::Result<Self> {
        Ok(AccessLog { sink: Arc::new(Sink::start(target)?), format, color: false })
    }

    /// The same log with the status in colour, in [`LogFormat::Short`].
    #[must_use]
    pub fn with_color(self, color: bool) -> Self {
        AccessLog { color, ..self }
    }

    /// Opens the file again by its name, after it was renamed: what comes then goes to a new one. Where that fails the lines
    /// go on to the old one, and `log` is told. Nothing changes for what is no file.
    pub fn reopen(&self) {
        self.sink.reopen();
    }

    /// As [`AccessLog::reopen`], for whoever shall not keep the log from its end.
    pub(crate) fn reopener(&self) -> impl Fn() + Send + use<> {
        let sink = Arc::downgrade(&self.sink);
        move || {
            if let Some(sink) = sink.upgrade() {
                sink.reopen();
            }
        }
    }

    /// Writes nothing until [`AccessLog::release`]; what comes meanwhile is kept, within the bound.
    pub fn hold(&self) {
        self.sink.hold();
    }

    /// Writes what was held back, and from now on at once.
    pub fn release(&self) {
        self.sink.release();
    }

    /// Waits until everything that was handed over is written, at most for a second. A loop hands over at the end of each
    /// of its turns.
    pub fn flush(&self) {
        self.sink.flush();
    }

    /// How many lines were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.sink.dropped()
    }
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AccessLog").field("format", &self.format).finish_non_exhaustive()
    }
}
