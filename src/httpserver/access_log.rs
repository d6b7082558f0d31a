//! The access log: one line per request, written when its response ends.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use super::log_format::{Format, LogFormat, LogFormatError};
use super::log_sink::{Sink, Target};
use crate::r#loop::{Networks, Peer};

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
    pub(super) filter: Arc<Filter>,
}

/// Requests that are not logged, and parts of them that are not.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    /// Path patterns.
    paths: Vec<String>,
    clients: Networks,
    pub(super) drops_query: bool,
    /// One in this many requests is logged; 0 and 1 for all.
    pub(super) sample: u32,
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
        AccessLog { sink, format, color: false, worker: 0, filter: Arc::default() }
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

    /// Does not log requests for paths that match a pattern, which begins with `/` or `*`, or of clients in a set of
    /// networks. In a pattern, `*` matches any text. Can be called repeatedly.
    ///
    /// # Errors
    /// Returns an error if the text is neither a pattern nor a set of [`Networks`].
    ///
    /// # Examples
    /// ```
    /// use serverd::{AccessLog, LogFormat};
    ///
    /// let log = AccessLog::to(std::io::stderr(), LogFormat::Combined)?;
    /// let log = log.skip("/healthz")?.skip("*.png")?.skip("10.0.0.0/8")?;
    /// # drop(log);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn skip(mut self, entry: &str) -> Result<Self, LogFormatError> {
        let filter = Arc::make_mut(&mut self.filter);
        if entry.starts_with(['/', '*']) {
            filter.paths.push(entry.to_owned());
        } else {
            let networks = entry.parse::<Networks>().map_err(|error| {
                LogFormatError::new(format!("{error}; a path pattern begins with / or *, e.g. /healthz"))
            })?;
            filter.clients = std::mem::take(&mut filter.clients).union(&networks);
        }
        Ok(self)
    }

    /// Sets whether queries are omitted, which may contain secrets: those of targets and of the Referer header. Default:
    /// false.
    #[must_use]
    pub fn drop_query(mut self, drop_query: bool) -> Self {
        Arc::make_mut(&mut self.filter).drops_query = drop_query;
        self
    }

    /// Logs only one in `count` requests; 0 and 1 for all, which is the default. Requests with an error status (400 and
    /// above) are always logged.
    #[must_use]
    pub fn sample(mut self, count: u32) -> Self {
        Arc::make_mut(&mut self.filter).sample = count;
        self
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

    /// Returns the number of lines written so far.
    pub fn written(&self) -> u64 {
        self.sink.written()
    }

    /// Returns the number of lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.sink.dropped()
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AccessLog").field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl Filter {
    pub(super) fn skips(&self, client: Option<Peer>, path: &str) -> bool {
        self.paths.iter().any(|pattern| matches(pattern.as_bytes(), path.as_bytes()))
            || client.is_some_and(|client| self.clients.contains_peer(client))
    }
}

/// Returns whether a text matches a pattern, in which `*` matches any text.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern_at, mut text_at, mut star) = (0, 0, None);
    while text_at < text.len() {
        if pattern.get(pattern_at) == Some(&b'*') {
            star = Some((pattern_at, text_at));
            pattern_at += 1;
        } else if pattern.get(pattern_at) == Some(&text[text_at]) {
            (pattern_at, text_at) = (pattern_at + 1, text_at + 1);
        } else if let Some((at, matched)) = star {
            // Let the last star match one byte more.
            star = Some((at, matched + 1));
            (pattern_at, text_at) = (at + 1, matched + 1);
        } else {
            return false;
        }
    }
    pattern[pattern_at..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_in_a_pattern_matches_any_text() {
        for (pattern, text, expected) in [
            ("/healthz", "/healthz", true),
            ("/healthz", "/healthz/", false),
            ("/static/*", "/static/a/b", true),
            ("/static/*", "/static", false),
            ("*.png", "/a.png", true),
            ("*.png", "/a.png.txt", false),
            ("*/a*b", "/x/aab", true),
            ("*/a*b", "/x/aac", false),
            ("**", "", true),
            ("*a*a*a*a*b", "/aaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }
}
