//! The access log: one line per request, written when its response ends.
//! Formatting of access log lines.
//!
//! Everything a client sends is escaped, so it cannot forge lines (log injection) or send control sequences to a
//! terminal. In the combined and short formats, quotes, backslashes and bytes other than printable ASCII become `\xHH`,
//! as in nginx. In JSON, UTF-8 is written as UTF-8; quotes, backslashes, control characters and bidirectional formatting
//! characters are escaped, and a byte that is not UTF-8 becomes `\u00HH`.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use http::StatusCode;

use super::exchange_handle::Wakeup;
use super::log_sink::{Sink, Target};
use super::request::RequestHead;
use crate::http1::Version;
use crate::r#loop::{CloseInfo, ConnId, Wire, millis};

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
    client: Option<SocketAddr>,
    began_ms: u64,
    /// Status of the response, once its head is written.
    status: Option<u16>,
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
        let client = head.client_addr_from(self.source(wire));
        self.insert(wire, record, client);
    }

    /// Starts the record of a malformed request, which begins with `input`. A request whose head was already parsed is
    /// logged normally.
    pub(crate) fn begin_malformed(&mut self, wire: &Wire<'_, Wakeup>, input: &[u8]) {
        if self.connection(wire).in_flight.is_none() {
            let record = self.spares.pop().unwrap_or_default().for_malformed(self.log.format, input);
            let client = self.source(wire);
            self.insert(wire, record, client);
        }
    }

    /// Returns the address that the connection comes from.
    fn source(&mut self, wire: &Wire<'_, Wakeup>) -> Option<SocketAddr> {
        let proxied = wire.addrs().proxied().and_then(|proxied| proxied.source);
        proxied.or(self.connection(wire).peer)
    }

    fn insert(&mut self, wire: &Wire<'_, Wakeup>, record: LogRecord, client: Option<SocketAddr>) {
        let began_ms = millis(wire.now());
        self.connection(wire).in_flight = Some(InFlight { record, client, began_ms, status: None });
    }

    /// Updates the time and returns the record of the connection.
    fn connection(&mut self, wire: &Wire<'_, Wakeup>) -> &mut ConnectionRecord {
        (self.unix_time, self.now_ms) = (wire.unix_time(), millis(wire.now()));
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
        self.now_ms = millis(info.now);
        if let Some(in_flight) = in_flight {
            self.write(peer, in_flight, bytes.saturating_sub(info.unsent_bytes));
        }
    }

    fn write(&mut self, peer: Option<SocketAddr>, in_flight: InFlight, bytes: u64) {
        let InFlight { record, client, began_ms, status } = in_flight;
        let status = status.unwrap_or(CLIENT_CLOSED_REQUEST);
        self.date.set(self.unix_time);
        let outcome = Outcome { status, bytes, duration_ms: self.now_ms.saturating_sub(began_ms) };
        write(&mut self.batch, self.log.format, self.log.color, &self.date, (client, peer), &record, outcome);
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

/// Maximum length of a logged target or header value; longer ones are truncated.
const VALUE_BYTES_MAX: usize = 4096;

/// Format of the access log. Times are in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[non_exhaustive]
pub enum LogFormat {
    /// A short, human-readable line per request.
    ///
    /// It contains the time, client, method, target, status, content length and duration.
    Short,
    /// The combined log format of Apache and nginx.
    ///
    /// It is `client - - [time] "request line" status bytes "Referer" "User-Agent"`. In place of the second `-` is the
    /// subject of the client's certificate, if it has one, with spaces escaped.
    Combined,
    /// A JSON object per request, on a line of its own.
    ///
    /// Its members are `time`, `client`, `peer`, `method`, `target`, `version`, `status`, `bytes`, `duration_ms`,
    /// `referer`, `user_agent`. Unknown values are `null`. For a malformed request, `request` is its first line. For a
    /// client with a certificate, `client_subject` and `client_sha256` are added.
    Json,
}

/// The part of a line that is known when the request arrives, already formatted.
#[derive(Debug, Default)]
pub(super) struct LogRecord {
    /// The subject of the client's certificate, in the combined format.
    user: Vec<u8>,
    /// Text before the status.
    before: Vec<u8>,
    /// Text at the end of the line.
    after: Vec<u8>,
}

/// The part of a line that is known when the response ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) status: u16,
    pub(super) bytes: u64,
    pub(super) duration_ms: u64,
}

impl LogRecord {
    /// Fills the record for a parsed request.
    fn for_request(mut self, format: LogFormat, head: &RequestHead<'_>) -> Self {
        let (method, target) = (head.method_bytes(), head.target().as_bytes());
        let version = if head.version() == Version::Http10 { "1.0" } else { "1.1" };
        let header = |name| head.header(name);
        self.clear();
        match format {
            LogFormat::Combined => {
                if let Some((subject, _)) = client_identity(head) {
                    self.set_user(subject);
                }
                escape(&mut self.before, method);
                self.before.push(b' ');
                escape(&mut self.before, target);
                let _ = write!(self.before, " HTTP/{version}");
                self.after_combined(header("referer"), header("user-agent"));
            }
            LogFormat::Json => {
                self.before.extend_from_slice(b"\"method\":");
                json_string(&mut self.before, Some(method));
                self.before.extend_from_slice(b",\"target\":");
                json_string(&mut self.before, Some(target));
                let _ = write!(self.before, ",\"version\":\"{version}\"");
                self.after_json(header("referer"), header("user-agent"));
                if let Some((subject, fingerprint)) = client_identity(head) {
                    self.after.extend_from_slice(b",\"client_subject\":");
                    json_string(&mut self.after, Some(subject.as_bytes()));
                    let _ = write!(self.after, ",\"client_sha256\":\"{fingerprint}\"");
                }
            }
            LogFormat::Short => {
                escape(&mut self.before, method);
                self.before.push(b' ');
                escape(&mut self.before, target);
            }
        }
        self
    }

    /// Fills the record for a malformed request with the first line of its input.
    pub(super) fn for_malformed(mut self, format: LogFormat, input: &[u8]) -> Self {
        self.clear();
        let end = memchr::memchr2(b'\r', b'\n', input).unwrap_or(input.len());
        let line = &input[..end];
        match format {
            LogFormat::Combined | LogFormat::Short if line.is_empty() => self.before.push(b'-'),
            LogFormat::Combined | LogFormat::Short => escape(&mut self.before, line),
            LogFormat::Json => {
                self.before.extend_from_slice(b"\"method\":null,\"target\":null,\"version\":null,\"request\":");
                json_string(&mut self.before, Some(line));
            }
        }
        match format {
            LogFormat::Combined => self.after_combined(None, None),
            LogFormat::Json => self.after_json(None, None),
            LogFormat::Short => {}
        }
        self
    }

    /// Sets the user to the subject of a certificate. Spaces separate the parts of a line, so they are escaped.
    fn set_user(&mut self, subject: &str) {
        for (index, word) in truncated(subject.as_bytes()).split(|&byte| byte == b' ').enumerate() {
            if index > 0 {
                self.user.extend_from_slice(b"\\x20");
            }
            escape(&mut self.user, word);
        }
        mark_truncated(&mut self.user, subject.as_bytes());
    }

    fn clear(&mut self) {
        self.user.clear();
        self.before.clear();
        self.after.clear();
    }

    fn after_combined(&mut self, referer: Option<&[u8]>, agent: Option<&[u8]>) {
        for value in [referer, agent] {
            self.after.extend_from_slice(b" \"");
            escape(&mut self.after, value.unwrap_or(b"-"));
            self.after.push(b'"');
        }
    }

    fn after_json(&mut self, referer: Option<&[u8]>, agent: Option<&[u8]>) {
        self.after.extend_from_slice(b",\"referer\":");
        json_string(&mut self.after, referer);
        self.after.extend_from_slice(b",\"user_agent\":");
        json_string(&mut self.after, agent);
    }
}

/// Returns the subject and the fingerprint of the client's certificate.
#[cfg(feature = "tls")]
fn client_identity<'a>(head: &RequestHead<'a>) -> Option<(&'a str, &'a str)> {
    head.client_certificate().map(|certificate| (certificate.subject.as_str(), certificate.fingerprint.as_str()))
}

/// Returns `None`: without TLS, there are no certificates.
#[cfg(not(feature = "tls"))]
fn client_identity<'a>(_: &RequestHead<'a>) -> Option<(&'a str, &'a str)> {
    None
}

/// Appends a complete line.
pub(super) fn write(
    out: &mut Vec<u8>,
    format: LogFormat,
    color: bool,
    date: &Date,
    (client, peer): (Option<SocketAddr>, Option<SocketAddr>),
    record: &LogRecord,
    outcome: Outcome,
) {
    let Outcome { status, bytes, duration_ms } = outcome;
    // Writing to a vector cannot fail.
    let _ = match format {
        LogFormat::Combined => {
            let _ = write!(out, "{} - ", Host(client));
            out.extend_from_slice(if record.user.is_empty() { b"-" } else { &record.user });
            let _ = write!(out, " [{}] \"", date.common);
            out.extend_from_slice(&record.before);
            write!(out, "\" {status} {bytes}")
        }
        LogFormat::Json => {
            let _ = write!(
                out,
                "{{\"time\":\"{}\",\"client\":\"{}\",\"peer\":\"{}\",",
                date.rfc3339,
                Host(client),
                Peer(peer)
            );
            out.extend_from_slice(&record.before);
            write!(out, ",\"status\":{status},\"bytes\":{bytes},\"duration_ms\":{duration_ms}")
        }
        LogFormat::Short => {
            let (dim, reset) = if color { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
            let _ = write!(out, "{dim}{} {}{reset} ", &date.rfc3339[11..], Host(client));
            out.extend_from_slice(&record.before);
            let color = if color { status_color(status) } else { "" };
            write!(out, " {color}{status}{reset} {} {dim}{duration_ms} ms{reset}", Size(bytes))
        }
    };
    out.extend_from_slice(&record.after);
    out.extend_from_slice(if format == LogFormat::Json { b"}\n" } else { b"\n" });
}

fn status_color(status: u16) -> &'static str {
    match status {
        ..300 => "\x1b[32m",
        300..400 => "\x1b[36m",
        400..500 => "\x1b[33m",
        _ => "\x1b[31m",
    }
}

/// Appends a client-supplied value, escaped as in nginx.
fn escape(out: &mut Vec<u8>, value: &[u8]) {
    for &byte in truncated(value) {
        match byte {
            b'"' | b'\\' | ..0x20 | 0x7f.. => {
                let _ = write!(out, "\\x{byte:02X}");
            }
            _ => out.push(byte),
        }
    }
    mark_truncated(out, value);
}

/// Appends a JSON string, or `null`. A byte that is not part of valid UTF-8 is mapped to U+0080 to U+00FF (Latin-1).
fn json_string(out: &mut Vec<u8>, value: Option<&[u8]>) {
    let Some(value) = value else { return out.extend_from_slice(b"null") };
    out.push(b'"');
    for chunk in truncated(value).utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '"' | '\\' => {
                    let _ = write!(out, "\\{char}");
                }
                _ if char.is_control() || reorders_text(char) => {
                    let _ = write!(out, "\\u{:04x}", u32::from(char));
                }
                _ => {
                    let _ = write!(out, "{char}");
                }
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\u{byte:04x}");
        }
    }
    mark_truncated(out, value);
    out.push(b'"');
}

/// Returns whether a character changes the direction of text, with which a client could make a line misleading.
fn reorders_text(char: char) -> bool {
    matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Truncates a value to [`VALUE_BYTES_MAX`], but not within a UTF-8 character.
fn truncated(value: &[u8]) -> &[u8] {
    if value.len() <= VALUE_BYTES_MAX {
        return value;
    }
    let is_boundary = |at: &usize| !matches!(value[*at], 0x80..0xc0);
    // A character has at most four bytes.
    let end = (VALUE_BYTES_MAX - 3..=VALUE_BYTES_MAX).rev().find(is_boundary).unwrap_or(VALUE_BYTES_MAX);
    &value[..end]
}

fn mark_truncated(out: &mut Vec<u8>, value: &[u8]) {
    if value.len() > VALUE_BYTES_MAX {
        out.extend_from_slice(b"...");
    }
}

/// An address without its port. An IPv4-mapped IPv6 address is written as IPv4.
struct Host(Option<SocketAddr>);

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(peer) => peer.ip().to_canonical().fmt(formatter),
            None => formatter.write_str("-"),
        }
    }
}

/// An address with its port.
struct Peer(Option<SocketAddr>);

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(peer) => SocketAddr::new(peer.ip().to_canonical(), peer.port()).fmt(formatter),
            None => formatter.write_str("-"),
        }
    }
}

/// A human-readable size.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(formatter, "{} B", self.0);
        }
        let (mut tenths, mut unit) = (u128::from(self.0) * 10 / 1024, 0);
        while tenths >= 10_240 {
            tenths /= 1024;
            unit += 1;
        }
        write!(formatter, "{}.{} {}", tenths / 10, tenths % 10, units[unit])
    }
}

/// The current time in both log formats. Formatted again only when the second changes.
#[derive(Debug, Default)]
pub(super) struct Date {
    second: Option<u64>,
    /// `25/Nov/2026:11:04:51 +0000`
    common: String,
    /// `2026-11-25T11:04:51Z`
    rfc3339: String,
}

impl Date {
    /// Sets the time, in seconds since the Unix epoch.
    pub(super) fn set(&mut self, now: u64) {
        if self.second.replace(now) == Some(now) {
            return;
        }
        // Clamped to the end of the year 9999, the limit of the `httpdate` crate.
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(now.min(253_402_300_799));
        // "Sun, 06 Nov 1994 08:49:37 GMT"
        let text = httpdate::fmt_http_date(time);
        let (day, month, year, clock) = (&text[5..7], &text[8..11], &text[12..16], &text[17..25]);
        let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let number = months.iter().position(|name| *name == month).map_or(0, |index| index + 1);
        self.common.clear();
        self.rfc3339.clear();
        // Writing to a string cannot fail.
        let _ = write!(self.common, "{day}/{month}/{year}:{clock} +0000");
        let _ = write!(self.rfc3339, "{year}-{number:02}-{day}T{clock}Z");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(value: &[u8]) -> String {
        let mut out = Vec::new();
        escape(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn non_printable_bytes_quotes_and_backslashes_are_escaped_as_in_nginx() {
        assert_eq!(escaped(b"/a b~"), "/a b~");
        assert_eq!(escaped(b"\r\n\x1b[31m\x7f"), "\\x0D\\x0A\\x1B[31m\\x7F");
        assert_eq!(escaped("\"\\\u{e4}".as_bytes()), "\\x22\\x5C\\xC3\\xA4");
    }

    #[test]
    fn long_values_are_truncated() {
        let long = escaped(&[b'a'; VALUE_BYTES_MAX + 1]);
        assert_eq!((long.len(), long.ends_with("aaa...")), (VALUE_BYTES_MAX + 3, true));
    }

    #[test]
    fn json_strings_keep_utf_8_and_escape_control_characters() {
        let json = |value: &[u8]| {
            let mut out = Vec::new();
            json_string(&mut out, Some(value));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(json("J\u{fc}rgen \u{65e5}\u{1f600}".as_bytes()), "\"J\u{fc}rgen \u{65e5}\u{1f600}\"");
        assert_eq!(json("\"\\\u{7f}\u{9b}\u{202e}".as_bytes()), "\"\\\"\\\\\\u007f\\u009b\\u202e\"");
        assert_eq!(json(b"J\xfcrgen\xc3"), "\"J\\u00fcrgen\\u00c3\"");
        let long = json(&[&[b'a'; VALUE_BYTES_MAX - 1], "\u{65e5}".as_bytes()].concat());
        assert_eq!(long, format!("\"{}...\"", "a".repeat(VALUE_BYTES_MAX - 1)));
    }

    #[test]
    fn every_byte_becomes_one_json_character() {
        let all: Vec<u8> = (0..=255).collect();
        let mut out = Vec::new();
        json_string(&mut out, Some(&all));
        let text = String::from_utf8(out).unwrap();
        assert!(text.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
        #[cfg(feature = "json")]
        {
            let back: String = serde_json::from_str(&text).unwrap();
            assert!(back.chars().map(u32::from).eq(0..=255));
        }
    }

    #[test]
    fn dates_match_the_log_formats() {
        let mut date = Date::default();
        date.set(784_111_777);
        assert_eq!(
            (date.common.as_str(), date.rfc3339.as_str()),
            ("06/Nov/1994:08:49:37 +0000", "1994-11-06T08:49:37Z")
        );
        date.set(0);
        assert_eq!(date.rfc3339, "1970-01-01T00:00:00Z");
    }

    #[test]
    fn sizes_are_human_readable() {
        let texts = [0, 1023, 1024, 1536, 1 << 20, u64::MAX].map(|bytes| Size(bytes).to_string());
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "15.9 EiB"]);
    }
}
