//! The access log: one line per request, written when its response ends.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use super::log_format::{Format, LogFormat, LogFormatError};
use super::log_sink::{Sink, Target};

/// An access log with one line per request. Clones share one log, for any number of loops.
///
/// A line is written when the response ends, completely or not. It contains the response status, or 499 if the client
/// closed the connection before a response; the number of content bytes passed to the operating system; and the time
/// from the request head to the end of the response, in milliseconds. Rejected requests are logged too. Everything a
/// client sends is escaped, so clients cannot forge lines.
///
/// Lines are written by a separate thread, so that a slow disk or pipe does not block a loop. At most 1 MiB of lines is
/// buffered for it. If the buffer is full or a write fails, lines are dropped and counted, and their number is logged
/// every 10 s.
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
    pub(super) sink: Arc<Sink>,
    pub(super) format: Arc<Format>,
    pub(super) color: bool,
    pub(super) worker: usize,
}

impl AccessLog {
    /// Creates a log that appends to a file, which is created if it does not exist.
    ///
    /// # Errors
    /// Returns an error if the file cannot be opened or the writer thread cannot be started.
    pub fn file(path: impl Into<PathBuf>, format: LogFormat) -> io::Result<Self> {
        Self::start(Target::open(path.into())?, format)
    }

    /// Creates a log that writes to any [`Write`]. Each write passes complete lines, unless it continues a partial
    /// write.
    ///
    /// # Errors
    /// Returns an error if the writer thread cannot be started.
    pub fn to(writer: impl Write + Send + 'static, format: LogFormat) -> io::Result<Self> {
        Self::start(Target::Writer(Box::new(writer)), format)
    }

    fn start(target: Target, format: LogFormat) -> io::Result<Self> {
        Ok(Self::with_sink(Arc::new(Sink::start("access log", target)?), format))
    }

    /// Creates a log that shares the writer thread of `sink`.
    pub(crate) fn with_sink(sink: Arc<Sink>, format: LogFormat) -> Self {
        let format = Arc::new(Format::from(format));
        AccessLog { sink, format, color: false, worker: 0 }
    }

    /// Sets a template for lines, in place of the format, with the variables of nginx: `$NAME` or `${NAME}`. Unknown values
    /// are `-`. In a template that begins with `{`, values are escaped for JSON strings, and unknown ones are empty.
    ///
    /// # Errors
    /// Returns an error that lists the variables if the template contains another one.
    ///
    /// # Examples
    /// ```
    /// use serverd::{AccessLog, LogFormat};
    ///
    /// let log = AccessLog::to(std::io::stderr(), LogFormat::Combined)?;
    /// let log = log.template("$remote_addr \"$request\" $status $request_time $http_accept")?;
    /// assert!(log.template("$no_such_variable").is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn template(self, template: &str) -> Result<Self, LogFormatError> {
        Ok(AccessLog { format: Arc::new(Format::compile(template)?), ..self })
    }

    /// Sets the number of the worker, for formats that contain it. Default: 0.
    #[must_use]
    pub fn worker(self, worker: usize) -> Self {
        AccessLog { worker, ..self }
    }

    /// Sets whether [`LogFormat::Short`] uses terminal colors.
    #[must_use]
    pub fn with_color(self, color: bool) -> Self {
        AccessLog { color, ..self }
    }

    /// Reopens the log file by its path, for use after log rotation has renamed it. If that fails, an error is logged
    /// and the old file remains in use. Does nothing for a log that is not a file.
    pub fn reopen(&self) {
        self.sink.reopen();
    }

    /// Returns a closure that reopens the log without keeping it alive.
    pub(crate) fn reopener(&self) -> impl Fn() + Send + Sync + use<> {
        let sink = Arc::downgrade(&self.sink);
        move || {
            if let Some(sink) = sink.upgrade() {
                sink.reopen();
            }
        }
    }

    /// Buffers lines without writing them, up to the limit of the buffer, until [`AccessLog::release`] or
    /// [`AccessLog::flush`].
    pub fn hold(&self) {
        self.sink.hold();
    }

    /// Resumes writing after [`AccessLog::hold`], starting with the buffered lines.
    pub fn release(&self) {
        self.sink.release();
    }

    /// Waits as [`AccessLog::flush`] does, but until `deadline`.
    #[cfg(feature = "cli")]
    pub(crate) fn flush_until(&self, deadline: std::time::Instant) {
        self.sink.flush_until(deadline);
    }

    /// Waits until the buffered lines are written, for at most one second. A loop adds its lines to the buffer at the
    /// end of each turn, so lines of the current turn are not included.
    pub fn flush(&self) {
        self.sink.flush();
    }

    /// Returns the number of lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.sink.dropped()
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AccessLog").field("worker", &self.worker).finish_non_exhaustive()
    }
}
