//! The logs of the `serverd` command: the access log with its options, and the log of the process (log records and
//! panic messages) on standard error.
//!
//! A thread writes each of them, so that a standard error that nothing reads does not block a loop or the shutdown.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, IsTerminal};
use std::panic::{Location, PanicHookInfo};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::start_error::StartError;
#[cfg(windows)]
use super::windows::enable_escape_sequences;
use crate::apps::hostname;
use crate::httpserver::{AccessLog, LogFormat, LogFormatError, Sink, Syslog, SyslogAddress, Target};
use crate::r#loop::lock;

/// Maximum length of the beginning of a message in bytes. Requests determine the length of paths in messages.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Number of bytes of the end of a longer message that are kept: they usually say what is wrong.
const MESSAGE_END_BYTES: usize = 256;

/// Minimum interval between two errors or warnings from the same line of code, since clients can cause some of them
/// with every request.
const REPEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum time to write the last lines at the end of the process.
const FINISH_WAIT_MAX: Duration = Duration::from_secs(1);

/// Time for the last lines if the other logs have used up [`FINISH_WAIT_MAX`].
const FINISH_WAIT_MIN: Duration = Duration::from_millis(100);

/// Access log options of the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    /// Destination of the log.
    pub target: LogTarget,
    /// The format of a line; `None` for [`LogFormat::Short`] on a terminal and [`LogFormat::Combined`] otherwise.
    pub format: Option<LogFormat>,
    /// A template, in place of the format; see [`AccessLog::template`].
    pub template: Option<String>,
    /// Requests that are not logged; see [`AccessLog::skip`].
    pub skip: Vec<String>,
    /// Omit queries; see [`AccessLog::drop_query`].
    pub drop_query: bool,
    /// Log one in this many requests; see [`AccessLog::sample`].
    pub sample: u32,
    /// Use of colors for the status code; `None` for colors only on a terminal that supports them.
    pub color: Option<bool>,
}

/// Destination of an access log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output if it is a terminal, otherwise none: a program that reads the start line from a pipe may not
    /// read any further.
    #[default]
    Terminal,
    /// No access log.
    Off,
    /// Standard output, after the start line.
    Stdout,
    /// A file; lines are appended.
    File(PathBuf),
    /// A syslog service, to which each line is sent as a message.
    Syslog(SyslogAddress),
}

impl Logging {
    /// Opens the log; `None` if it is disabled. If it is written to standard output, it shares `stdout`.
    pub(super) fn open(&self, stdout: &Arc<Sink>) -> Result<Option<AccessLog>, StartError> {
        let terminal = io::stdout().is_terminal();
        let to_terminal = terminal && !matches!(self.target, LogTarget::File(_) | LogTarget::Syslog(_));
        let format = self.format.unwrap_or(if to_terminal { LogFormat::Short } else { LogFormat::Combined });
        let log = match &self.target {
            LogTarget::Off => return Ok(None),
            LogTarget::Terminal if !terminal => return Ok(None),
            LogTarget::Terminal | LogTarget::Stdout => AccessLog::with_sink(Arc::clone(stdout), format),
            LogTarget::File(path) => AccessLog::file(path, format).map_err(|error| {
                let path = path.display();
                StartError::new(format!("cannot write the access log {path}: {error}; specify a writable file"))
            })?,
            LogTarget::Syslog(address) => {
                let syslog = Syslog::connect(address, &hostname());
                syslog.and_then(|syslog| AccessLog::to(syslog, format)).map_err(|error| {
                    StartError::new(format!("cannot send the access log to syslog at {address}: {error}"))
                })?
            }
        };
        let log = self.select(log).map_err(|error| StartError::new(format!("access log: {error}")))?;
        let color = self.color.unwrap_or_else(|| to_terminal && wants_color());
        Ok(Some(log.with_color(color && (!to_terminal || enable_escape_sequences(&io::stdout())))))
    }
}

impl Logging {
    /// Selects the requests and the details to log.
    fn select(&self, mut log: AccessLog) -> Result<AccessLog, LogFormatError> {
        if let Some(template) = &self.template {
            log = log.template(template)?;
        }
        for entry in &self.skip {
            log = log.skip(entry)?;
        }
        Ok(log.drop_query(self.drop_query).sample(self.sample))
    }
}

/// Checks the usual environment variables: `NO_COLOR` (<https://no-color.org>) and `TERM`.
fn wants_color() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Returns that a terminal supports escape sequences: only those of Windows need to be asked.
#[cfg(not(windows))]
fn enable_escape_sequences<T>(_: &T) -> bool {
    true
}

/// The log of the process, on standard error.
pub struct ProcessLog {
    sink: Arc<Sink>,
    /// The time by which the process ends, once that is known.
    deadline: Mutex<Option<Instant>>,
}

impl ProcessLog {
    /// Starts logging, of panics too. `RUST_LOG` overrides `level`, because it can select individual modules. `color`
    /// is whether to use colors; `None` to do so only on a terminal that supports them.
    ///
    /// # Errors
    /// Returns an error if the thread that writes cannot be started, or there already is a logger.
    pub fn start(level: LevelFilter, color: Option<bool>) -> io::Result<Self> {
        let sink = Arc::new(Sink::start("log", Target::Writer(Box::new(io::stderr())))?);
        let color = color.unwrap_or_else(|| io::stderr().is_terminal() && wants_color());
        let color = color && enable_escape_sequences(&io::stderr());
        let style = if color { env_logger::WriteStyle::Always } else { env_logger::WriteStyle::Never };
        let mut builder = env_logger::Builder::new();
        builder.filter_level(level).parse_default_env().write_style(style);
        builder.target(env_logger::Target::Pipe(Box::new(Queue(Arc::clone(&sink)))));
        if is_journal(&io::stderr()) {
            builder.format(write_for_journal);
        }
        let formatter = builder.build();
        let max_level = formatter.filter();
        let logger = Logger { formatter, repeats: Mutex::default() };
        log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)?;
        log::set_max_level(max_level);
        std::panic::set_hook(Box::new(log_panic));
        Ok(ProcessLog { sink, deadline: Mutex::new(None) })
    }

    /// Prints a line that is not a log record.
    pub fn print(&self, line: &str) {
        self.sink.try_push(&mut format!("{line}\n").into_bytes(), 1);
    }

    /// Returns the time by which all logs must be written: one second after the first call.
    pub(super) fn end(&self) -> Instant {
        let mut deadline = lock(&self.deadline);
        *deadline.get_or_insert_with(|| Instant::now() + FINISH_WAIT_MAX)
    }
}

/// Waits until the last lines are written, for at most one second since the end of the server.
impl Drop for ProcessLog {
    fn drop(&mut self) {
        self.sink.flush_until(self.end().max(Instant::now() + FINISH_WAIT_MIN));
    }
}

/// Returns whether a file is the stream to the journal of systemd that the environment names; it may have been
/// redirected.
#[cfg(target_os = "linux")]
fn is_journal(file: &impl rustix::fd::AsFd) -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(file).is_ok_and(|stat| stream == *format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Returns that a file is not the journal, which only Linux has.
#[cfg(not(target_os = "linux"))]
fn is_journal<T>(_: &T) -> bool {
    false
}

/// Writes a record for the journal, which reads the priority from the beginning of each line (sd-daemon(3)), and
/// records the time itself.
fn write_for_journal(out: &mut env_logger::fmt::Formatter, record: &Record<'_>) -> io::Result<()> {
    let priority = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let text = format!("{}: {}", record.target(), record.args());
    text.lines().try_for_each(|line| io::Write::write_fmt(out, format_args!("<{priority}>{line}\n")))
}

/// Adds formatted records to the queue. The formatter passes each record with one write.
struct Queue(Arc<Sink>);

impl io::Write for Queue {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_push(&mut bytes.to_vec(), 1);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Limits the length and the rate of records before they are formatted.
struct Logger {
    formatter: env_logger::Logger,
    repeats: Mutex<Repeats>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.formatter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.formatter.matches(record) {
            return;
        }
        let mut repeats = 0;
        if record.level() <= Level::Warn {
            let place = Repeats::place(record.file(), record.line());
            match lock(&self.repeats).admit(place, Instant::now()) {
                Some(suppressed) => repeats = suppressed,
                None => return,
            }
        }
        let mut message = Message::default();
        // Fails only if a `Display` implementation does.
        let _ = message.write_fmt(*record.args());
        let (advice, note) = (advice(record.target()), repeats_note(repeats));
        let mut builder = Record::builder();
        builder.metadata(record.metadata().clone()).module_path(record.module_path());
        builder.file(record.file()).line(record.line());
        self.formatter.log(&builder.args(format_args!("{message}{advice}{note}")).build());
    }

    fn flush(&self) {}
}

/// Returns the flag that helps, for messages of the library, which knows no flags.
fn advice(target: &str) -> &'static str {
    match target {
        "serverd::loop::connection_limit" => " (see --max-connections)",
        "serverd::loop::address_limit" => " (see --max-connections-per-address)",
        "serverd::httpserver::tls" => " (see --tls)",
        "serverd::httpserver::proxy_protocol" | "serverd::loop::proxy_protocol" => " (see --proxy-protocol)",
        "serverd::loop::select_scaling" if cfg!(target_os = "linux") => " (see --backend epoll)",
        "serverd::loop::select_scaling" => " (see --backend kqueue)",
        _ => "",
    }
}

/// Returns the note that ends a message, if similar ones were suppressed before it.
fn repeats_note(repeats: u64) -> String {
    if repeats > 0 { format!(" (and {repeats} similar messages before)") } else { String::new() }
}

/// Logs a panic, in place of the default hook, which writes to standard error directly.
fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let (place, name) = (info.location(), thread.name().unwrap_or("unnamed"));
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(|text| &**text));
    let text = text.unwrap_or("no message");
    let at = place.map(|place| format!(" at {place}")).unwrap_or_default();
    let backtrace = Backtrace::capture();
    let trace = match backtrace.status() {
        BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => String::new(),
    };
    let mut builder = Record::builder();
    builder.level(Level::Error).target("serverd::panic").file(place.map(Location::file));
    builder.line(place.map(Location::line));
    log::logger().log(&builder.args(format_args!("thread {name} panicked{at}: {text}{trace}")).build());
}

/// The text of a message. If it is too long, the middle is omitted.
#[derive(Default)]
struct Message {
    start: String,
    /// The end of a long message, at least [`MESSAGE_END_BYTES`] of it.
    end: String,
    omitted: bool,
}

impl fmt::Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = if self.end.is_empty() { MESSAGE_BYTES_MAX - self.start.len() } else { 0 };
        let (head, rest) = text.split_at(char_boundary(text, room));
        self.start.push_str(head);
        self.end.push_str(rest);
        if self.end.len() > 2 * MESSAGE_END_BYTES {
            let excess = self.end.len() - MESSAGE_END_BYTES;
            self.end.drain(..char_boundary(&self.end, excess));
            self.omitted = true;
        }
        Ok(())
    }
}

/// Returns the last character boundary at or before `index`.
fn char_boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|&index| text.is_char_boundary(index)).unwrap_or(0)
}

impl fmt::Display for Message {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gap = if self.omitted { " [...] " } else { "" };
        write!(formatter, "{}{gap}{}", self.start, self.end)
    }
}

/// A line of code, as a hash of its file, and its number.
type Place = (u64, u32);

/// The last message from each line of code that logs. Its size is limited by the number of such lines.
#[derive(Default)]
struct Repeats(HashMap<Place, (Instant, u64)>);

impl Repeats {
    fn place(file: Option<&str>, line: Option<u32>) -> Place {
        let mut hasher = DefaultHasher::new();
        file.hash(&mut hasher);
        (hasher.finish(), line.unwrap_or(0))
    }

    /// Returns the number of messages suppressed since the last one from this place, or `None` if that was too recent.
    fn admit(&mut self, place: Place, now: Instant) -> Option<u64> {
        let Some((last, suppressed)) = self.0.get_mut(&place) else {
            self.0.insert(place, (now, 0));
            return Some(0);
        };
        if now.saturating_duration_since(*last) < REPEAT_INTERVAL {
            *suppressed += 1;
            return None;
        }
        *last = now;
        Some(std::mem::take(suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_logged_once_per_second_and_line_of_code() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let place = |line| Repeats::place(Some("a.rs"), Some(line));
        assert_eq!(repeats.admit(place(1), start), Some(0));
        assert_eq!(repeats.admit(place(2), start), Some(0));
        for ms in [1, 500, 999] {
            assert_eq!(repeats.admit(place(1), start + Duration::from_millis(ms)), None);
        }
        assert_eq!(repeats.admit(place(1), start + Duration::from_secs(1)), Some(3));
        assert_eq!(repeats.admit(place(1), start + Duration::from_secs(2)), Some(0));
        assert_ne!(place(1), Repeats::place(Some("b.rs"), Some(1)));
    }

    #[test]
    fn a_message_says_how_many_similar_ones_were_suppressed() {
        assert_eq!(repeats_note(0), "");
        assert_eq!(repeats_note(3), " (and 3 similar messages before)");
    }

    #[test]
    fn long_messages_keep_their_beginning_and_end() {
        let shown = |parts: &[&str]| {
            let mut message = Message::default();
            for part in parts {
                message.write_str(part).unwrap();
            }
            message.to_string()
        };
        let path = "/\u{e9}".repeat(2000);
        for text in ["short".to_owned(), path[..4096].to_owned(), path.repeat(20)] {
            let whole = shown(&["cannot read ", &text, ": permission denied"]);
            assert!(whole.starts_with("cannot read ") && whole.ends_with(": permission denied"), "{whole}");
            assert!(whole.len() <= MESSAGE_BYTES_MAX + 2 * MESSAGE_END_BYTES + 7, "{}", whole.len());
            assert_eq!(whole.contains(" [...] "), text.len() > 5000);
            let pieces: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert!(shown(&pieces).len() <= MESSAGE_BYTES_MAX + 2 * MESSAGE_END_BYTES + 7);
        }
    }
}
