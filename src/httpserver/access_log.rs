//! The access log: one line per request, written when its response ends.

mod line;
mod sink;

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use http::StatusCode;

use self::line::{Date, LogRecord, Outcome};
#[cfg(not(feature = "cli"))]
use self::sink::{Sink, Target};
use super::exchange_handle::Wakeup;
use super::request::RequestHead;
use crate::r#loop::{CloseInfo, ConnId, Wire};

pub use line::LogFormat;
#[cfg(feature = "cli")]
pub(crate) use sink::{Sink, Target};

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
    sink: Arc<Sink>,
    format: LogFormat,
    color: bool,
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
        AccessLog { sink, format, color: false }
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
    pub(crate) fn reopener(&self) -> impl Fn() + Send + use<> {
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

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AccessLog").field("format", &self.format).finish_non_exhaustive()
    }
}

/// Status logged if the client closes the connection before the response, as in nginx.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Size of the batch, in bytes, at which it is passed to the writer without waiting for the end of the turn.
const BATCH_BYTES: usize = 64 * 1024;

/// Maximum number of records kept for reuse.
const SPARES_MAX: usize = 64;

/// Writes the requests of one loop to the access log.
pub(crate) struct Recorder {
    log: AccessLog,
    date: Date,
    connections: HashMap<ConnId, ConnectionRecord>,
    spares: Vec<LogRecord>,
    batch: Vec<u8>,
    lines: u64,
    unix_time: u64,
    now_ms: u64,
}

/// An open connection.
struct ConnectionRecord {
    peer: Option<SocketAddr>,
    in_flight: Option<InFlight>,
}

/// A request whose response has not ended.
struct InFlight {
    record: LogRecord,
    began_ms: u64,
    /// Status of the response, once its head is written.
    status: Option<u16>,
}

fn millis(wire: &Wire<'_, Wakeup>) -> u64 {
    u64::try_from(wire.now().as_millis()).unwrap_or(u64::MAX)
}

impl Recorder {
    pub(crate) fn new(log: AccessLog) -> Self {
        let (date, connections, spares, batch) = (Date::default(), HashMap::new(), Vec::new(), Vec::new());
        Recorder { log, date, connections, spares, batch, lines: 0, unix_time: 0, now_ms: 0 }
    }

    pub(crate) fn open(&mut self, id: ConnId, peer: Option<SocketAddr>) {
        self.connections.insert(id, ConnectionRecord { peer, in_flight: None });
    }

    /// Starts the record of a request whose head has been parsed.
    pub(crate) fn begin(&mut self, wire: &Wire<'_, Wakeup>, head: &RequestHead<'_>) {
        let record = self.spares.pop().unwrap_or_default().for_request(self.log.format, head);
        self.insert(wire, record);
    }

    /// Starts the record of a malformed request, which begins with `input`. A request whose head was already parsed is
    /// logged normally.
    pub(crate) fn begin_malformed(&mut self, wire: &Wire<'_, Wakeup>, input: &[u8]) {
        if self.connection(wire).in_flight.is_none() {
            let record = self.spares.pop().unwrap_or_default().for_malformed(self.log.format, input);
            self.insert(wire, record);
        }
    }

    fn insert(&mut self, wire: &Wire<'_, Wakeup>, record: LogRecord) {
        let began_ms = millis(wire);
        self.connection(wire).in_flight = Some(InFlight { record, began_ms, status: None });
    }

    /// Updates the time and returns the record of the connection.
    fn connection(&mut self, wire: &Wire<'_, Wakeup>) -> &mut ConnectionRecord {
        (self.unix_time, self.now_ms) = (wire.unix_time(), millis(wire));
        self.connections
            .entry(wire.id())
            .or_insert_with(|| ConnectionRecord { peer: wire.addrs().peer_addr(), in_flight: None })
    }

    /// Records the status when the response head is written.
    pub(crate) fn set_status(&mut self, wire: &Wire<'_, Wakeup>, status: StatusCode) {
        if let Some(in_flight) = &mut self.connection(wire).in_flight {
            in_flight.status = Some(status.as_u16());
        }
    }

    /// Logs the request when its response ends, completely or not; `bytes` is the length of the content sent.
    pub(crate) fn end(&mut self, wire: &Wire<'_, Wakeup>, bytes: u64) {
        let connection = self.connection(wire);
        let (peer, in_flight) = (connection.peer, connection.in_flight.take());
        if let Some(in_flight) = in_flight {
            self.write(peer, in_flight, bytes);
        }
    }
}

impl Recorder {
    /// Logs the request in flight, if any, when its connection closes. `bytes` is the length of the content passed to
    /// the loop, part of which may be unsent.
    pub(crate) fn closed(&mut self, id: ConnId, bytes: u64, info: &CloseInfo) {
        let Some(ConnectionRecord { peer, in_flight }) = self.connections.remove(&id) else { return };
        self.unix_time = info.unix_time;
        self.now_ms = u64::try_from(info.now.as_millis()).unwrap_or(u64::MAX);
        if let Some(in_flight) = in_flight {
            self.write(peer, in_flight, bytes.saturating_sub(info.unsent_bytes));
        }
    }

    fn write(&mut self, peer: Option<SocketAddr>, in_flight: InFlight, bytes: u64) {
        let InFlight { record, began_ms, status } = in_flight;
        let status = status.unwrap_or(CLIENT_CLOSED_REQUEST);
        self.date.set(self.unix_time);
        let outcome = Outcome { status, bytes, duration_ms: self.now_ms.saturating_sub(began_ms) };
        line::write(&mut self.batch, self.log.format, self.log.color, &self.date, peer, &record, outcome);
        self.lines += 1;
        if self.spares.len() < SPARES_MAX {
            self.spares.push(record);
        }
        if self.batch.len() >= BATCH_BYTES {
            self.end_turn();
        }
    }

    /// Passes the lines of the turn to the writer.
    pub(crate) fn end_turn(&mut self) {
        if self.lines > 0 {
            self.log.sink.push(&mut self.batch, std::mem::take(&mut self.lines));
        }
    }
}

/// Passes on lines recorded after the last turn, when the loop is stopped.
impl Drop for Recorder {
    fn drop(&mut self) {
        self.end_turn();
    }
}
