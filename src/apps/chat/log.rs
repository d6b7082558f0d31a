//! The log of a chat: public messages, in one file per room and day, written by a thread of its own.
//!
//! A file is named `DATE.ROOM.log`; characters of the room name other than ASCII letters, digits, `-` and `_` are
//! encoded, so that no name leads out of the directory. A slow disk stops no loop: the queue is bounded, and lines that
//! do not fit are dropped and counted.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

/// Maximum number of bytes in the queue, including [`LINE_OVERHEAD`].
const QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// Bytes that a queued line takes besides its text and the name of its room; an estimate.
const LINE_OVERHEAD: usize = 96;

/// Maximum number of files kept open.
const OPEN_FILES_MAX: usize = 32;

/// Minimum time between two warnings.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

const SECONDS_PER_DAY: u64 = 24 * 3600;

struct Line {
    room: String,
    text: Bytes,
}

impl Line {
    fn bytes(&self) -> usize {
        LINE_OVERHEAD + self.room.len() + self.text.len()
    }
}

/// The state shared with the writing thread.
#[derive(Debug, Default)]
struct Queue {
    bytes: AtomicUsize,
    dropped: AtomicU64,
}

/// The log of the public lines of a chat. Clones share one log.
#[derive(Clone, Debug)]
pub struct RoomLog {
    send: mpsc::Sender<Line>,
    queue: Arc<Queue>,
}

/// Waits for a [`RoomLog`] to be written.
#[derive(Debug)]
pub struct RoomLogEnd {
    written: mpsc::Receiver<()>,
}

impl RoomLogEnd {
    /// Waits up to `limit` until all clones of the log are dropped and its lines are written.
    pub fn wait(&self, limit: Duration) {
        // The thread sends nothing; it drops its end of the channel when it ends.
        let _ = self.written.recv_timeout(limit);
    }
}

impl RoomLog {
    /// Starts the thread that writes into `directory`, which must exist.
    ///
    /// # Errors
    /// Returns an error if `directory` is not a writable directory or the thread cannot be started.
    pub fn open(directory: &Path) -> io::Result<(RoomLog, RoomLogEnd)> {
        let mut files = Files::new(directory);
        // Reports a directory that is missing or read-only at start.
        files.open("lobby", &date(SystemTime::now()))?;
        let (send, receive) = mpsc::channel::<Line>();
        let (end, written) = mpsc::channel();
        let queue = Arc::new(Queue::default());
        let shared = Arc::clone(&queue);
        let write_all = move || {
            // Dropped at the end of the thread.
            let _end: mpsc::Sender<()> = end;
            for line in receive {
                shared.bytes.fetch_sub(line.bytes(), Ordering::Relaxed);
                let outcome = files.write(&line, SystemTime::now());
                files.warn(outcome, &shared.dropped);
            }
        };
        std::thread::Builder::new().name("chat-log".into()).spawn(write_all)?;
        Ok((RoomLog { send, queue }, RoomLogEnd { written }))
    }

    /// Queues a line, which ends in LF; drops it if the queue is full.
    pub(super) fn write(&self, room: &str, text: &Bytes) {
        let line = Line { room: room.to_owned(), text: text.clone() };
        let bytes = line.bytes();
        if self.queue.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > QUEUE_BYTES_MAX
            || self.send.send(line).is_err()
        {
            self.queue.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.queue.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The open files of one day.
struct Files {
    directory: PathBuf,
    date: String,
    open: HashMap<String, File>,
    warned_at: Option<Instant>,
}

impl Files {
    fn new(directory: &Path) -> Self {
        Files { directory: directory.to_owned(), date: String::new(), open: HashMap::new(), warned_at: None }
    }

    fn open(&mut self, room: &str, date: &str) -> io::Result<&mut File> {
        if self.date != date || (self.open.len() >= OPEN_FILES_MAX && !self.open.contains_key(room)) {
            self.open.clear();
            date.clone_into(&mut self.date);
        }
        if !self.open.contains_key(room) {
            let path = self.directory.join(file_name(room, date));
            let file = OpenOptions::new().append(true).create(true).open(path)?;
            self.open.insert(room.to_owned(), file);
        }
        self.open.get_mut(room).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write(&mut self, line: &Line, now: SystemTime) -> io::Result<()> {
        let seconds = unix_seconds(now) % SECONDS_PER_DAY;
        let time = format!("{:02}:{:02}:{:02}Z ", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let file = self.open(&line.room, &date(now))?;
        // In one write, so that a line is not torn by a full disk or another process.
        let outcome = file.write_all(&[time.as_bytes(), &line.text].concat());
        if outcome.is_err() {
            self.open.remove(&line.room);
        }
        outcome
    }

    /// Warns about a failed write or dropped lines, at most every [`WARN_INTERVAL`].
    fn warn(&mut self, outcome: io::Result<()>, dropped: &AtomicU64) {
        if outcome.is_err() {
            dropped.fetch_add(1, Ordering::Relaxed);
        }
        let is_silent = self.warned_at.is_some_and(|at| at.elapsed() < WARN_INTERVAL);
        if is_silent || dropped.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.warned_at = Some(Instant::now());
        let count = dropped.swap(0, Ordering::Relaxed);
        match outcome {
            Err(error) => log::warn!("cannot write the chat log: {error}; {count} lines are missing"),
            Ok(()) => log::warn!("the chat log is behind; {count} lines are missing"),
        }
    }
}

/// Returns the name of the file of a room. Characters other than ASCII letters, digits, `-` and `_` are written as `+`
/// and six hexadecimal digits, so that different names have different files. At most 24 of them fit into a file name.
fn file_name(room: &str, date: &str) -> String {
    let mut name = format!("{date}.");
    for c in room.chars() {
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => name.push(c),
            // Writing to a string does not fail.
            _ => drop(write!(name, "+{:06x}", u32::from(c))),
        }
    }
    name + ".log"
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Returns the date in UTC as `YYYY-MM-DD`.
fn date(time: SystemTime) -> String {
    // IMF-fixdate has fixed columns: "Sun, 06 Nov 1994 08:49:37 GMT".
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    // It cannot format years before 1970 or after 9999.
    const SECONDS_MAX: u64 = 253_402_300_799;
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix_seconds(time).min(SECONDS_MAX)));
    let month = MONTHS.find(&text[8..11]).unwrap_or(0) / 3 + 1;
    format!("{}-{month:02}-{}", &text[12..16], &text[5..7])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_encoded_and_dated() {
        let time = UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(date(time), "1994-11-06");
        assert_eq!(file_name("Tea_2-x", "1994-11-06"), "1994-11-06.Tea_2-x.log");
        assert_eq!(file_name("../\u{4e2d}", "d"), "d.+00002e+00002e+00002f+004e2d.log");
        assert!(file_name(&"\u{20000}".repeat(24), "1994-11-06").len() < 255);
    }

    #[test]
    fn each_room_and_day_has_its_file_and_few_stay_open() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::new(directory.path());
        let day = |day: u64| UNIX_EPOCH + Duration::from_secs(day * SECONDS_PER_DAY + 3723);
        for round in 0..2 {
            for room in 0..2 * OPEN_FILES_MAX {
                let line = Line { room: format!("r{room}"), text: Bytes::from(format!("[a] {round}\n")) };
                files.write(&line, day(0)).unwrap();
                assert!(files.open.len() <= OPEN_FILES_MAX);
            }
        }
        let line = Line { room: "r1".into(), text: Bytes::from_static(b"- a waves\n") };
        files.write(&line, day(1)).unwrap();
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read("1970-01-01.r1.log"), "01:02:03Z [a] 0\n01:02:03Z [a] 1\n");
        assert_eq!(read("1970-01-02.r1.log"), "01:02:03Z - a waves\n");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2 * OPEN_FILES_MAX + 1);
    }

    #[test]
    fn lines_that_do_not_fit_into_the_queue_are_dropped_and_counted() {
        let (send, receive) = mpsc::channel();
        let log = RoomLog { send, queue: Arc::default() };
        let text = Bytes::from(vec![b'x'; 10_000]);
        for _ in 0..1000 {
            log.write("lobby", &text);
        }
        let dropped = log.queue.dropped.load(Ordering::Relaxed);
        assert!(dropped > 850, "{dropped}");
        assert_eq!(receive.try_iter().count() as u64, 1000 - dropped);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(RoomLog::open(&directory.path().join("missing")).is_err());
    }
}
