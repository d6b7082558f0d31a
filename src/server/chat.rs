//! `serverd chat`: reads the files it needs, and the terminal of its operator.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::config::{Config, StartError, Started, worker_count};
use crate::apps::Chat;
use crate::apps::chat::{Bounds, Console, Options, RoomLog};

/// Maximum size of the message of the day and of the password file.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// Maximum length of a line typed at the console. Terminals usually limit it to this as well.
const CONSOLE_LINE_MAX: usize = 4096;

/// Interval at which a server in the background checks whether it is in the foreground.
#[cfg(unix)]
const FOREGROUND_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum time to wait for the log to be written at the end.
const LOG_END_MAX: Duration = Duration::from_secs(1);

/// Configuration of `serverd chat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatConfig {
    /// The limits.
    pub bounds: Bounds,
    /// The password of the chat, if any.
    pub password: Option<Password>,
    /// File with the message of the day, at most 16 KiB.
    pub motd: Option<PathBuf>,
    /// Directory of the log.
    pub log: Option<PathBuf>,
}

/// The password of a chat.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// The password itself.
    Text(String),
    /// A file, whose first line is the password. It is read at start.
    File(PathBuf),
}

impl std::fmt::Debug for Password {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Password::Text(_) => formatter.write_str("Text(..)"),
            Password::File(path) => formatter.debug_tuple("File").field(path).finish(),
        }
    }
}

pub(super) fn run(
    config: &Config,
    chat_config: &ChatConfig,
    announce: impl FnOnce(&Started),
) -> Result<(), StartError> {
    let log = match &chat_config.log {
        Some(directory) => Some(RoomLog::open(directory).map_err(|error| {
            let shown = directory.display();
            StartError::new(format!("--log: cannot write to {shown}: {error}; specify a writable directory"))
        })?),
        None => None,
    };
    let (log, log_end) = log.unzip();
    let options = Options {
        bounds: chat_config.bounds,
        password: chat_config.password.as_ref().map(read_password).transpose()?,
        motd: chat_config.motd.as_deref().map_or(Ok(String::new()), |path| read_text("--motd", path))?,
        log,
    };
    let chats = Chat::with_options(options, worker_count(config.workers));
    let console = chats.first().map(Chat::console);
    let instances = Mutex::new(chats);
    // Each worker takes one of them, in any order.
    let make = move |_| instances.lock().unwrap_or_else(PoisonError::into_inner).pop().expect("one per worker");
    let outcome = config.serve_unflushed(make, |started| {
        announce(&started);
        if let Some(console) = console.filter(|_| io::stdin().is_terminal()) {
            start_console(console);
        }
    });
    if let Some(end) = log_end {
        end.wait(LOG_END_MAX);
    }
    outcome
}

fn read_password(password: &Password) -> Result<String, StartError> {
    let text = match password {
        Password::Text(text) => text.clone(),
        Password::File(path) => read_text("--password-file", path)?,
    };
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(StartError::new("the password is empty; write it into the first line of the file")),
    }
}

fn read_text(option: &str, path: &Path) -> Result<String, StartError> {
    let mut text = String::new();
    let outcome = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    let shown = path.display();
    match outcome {
        Err(error) => Err(StartError::new(format!("{option}: cannot read {shown}: {error}"))),
        Ok(_) if text.len() as u64 > FILE_BYTES_MAX => {
            Err(StartError::new(format!("{option}: {shown} is longer than {FILE_BYTES_MAX} bytes")))
        }
        Ok(_) => Ok(text),
    }
}

/// Starts the thread that executes the lines typed at the terminal. It ends with the process.
fn start_console(console: Console) {
    let execute = move |line: &str| {
        // A closed stdout does not end the console.
        let mut out = io::stdout().lock();
        let _ = out.write_all(console.execute(line).as_bytes()).and_then(|()| out.flush());
    };
    if let Err(error) = std::thread::Builder::new().name("console".into()).spawn(move || read_terminal(execute)) {
        log::warn!("cannot start the console: {error}");
    }
}

/// Calls `execute` with each line typed at the terminal, until the terminal is closed. Reads only while the process is in
/// the foreground process group: a read from the background would stop the process (SIGTTIN).
#[cfg(unix)]
fn read_terminal(execute: impl Fn(&str)) {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;

    let stdin = io::stdin();
    let is_foreground = || rustix::termios::tcgetpgrp(&stdin).is_ok_and(|group| group == rustix::process::getpgrp());
    let (mut line, mut buffer) = (Vec::new(), [0; CONSOLE_LINE_MAX]);
    loop {
        if !is_foreground() {
            std::thread::sleep(FOREGROUND_INTERVAL);
            continue;
        }
        match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None) {
            // The shell may have taken the terminal back during the poll.
            Ok(_) if !is_foreground() => continue,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        match rustix::io::read(&stdin, &mut buffer) {
            Ok(0) => return,
            Ok(count) => take_lines(&mut line, &buffer[..count], &execute),
            Err(Errno::INTR | Errno::IO | Errno::AGAIN) => std::thread::sleep(FOREGROUND_INTERVAL),
            Err(_) => return,
        }
    }
}

/// Calls `execute` with each line typed at the terminal, until the terminal is closed.
#[cfg(not(unix))]
fn read_terminal(execute: impl Fn(&str)) {
    let (mut line, mut buffer) = (Vec::new(), [0; CONSOLE_LINE_MAX]);
    while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
        take_lines(&mut line, &buffer[..count], &execute);
    }
}

/// Appends input to a partial line, and calls `execute` with each line that is complete. Longer lines are cut.
fn take_lines(line: &mut Vec<u8>, input: &[u8], execute: impl Fn(&str)) {
    for piece in input.split_inclusive(|&byte| byte == b'\n') {
        let room = CONSOLE_LINE_MAX.saturating_sub(line.len());
        line.extend_from_slice(&piece[..piece.len().min(room)]);
        if piece.ends_with(b"\n") {
            execute(String::from_utf8_lossy(line).trim_end());
            line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn console_lines_are_assembled_and_cut() {
        let lines = RefCell::new(Vec::new());
        let mut line = Vec::new();
        let long = "x".repeat(5000);
        for piece in ["a\r\nb", "c\n", &long, "y\n", "d\n"] {
            take_lines(&mut line, piece.as_bytes(), |line| lines.borrow_mut().push(line.to_owned()));
        }
        assert_eq!(*lines.borrow(), ["a", "bc", &long[..CONSOLE_LINE_MAX], "d"]);
    }

    #[test]
    fn the_password_is_the_first_line_and_not_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let file = Password::File(path.clone());
        assert!(read_password(&file).unwrap_err().to_string().contains("cannot read"));
        for (text, password) in [("secret\r\nnext\n", Some("secret")), ("secret", Some("secret")), ("\nsecret", None)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_password(&file).ok().as_deref(), password);
        }
        std::fs::write(&path, "x".repeat(20_000)).unwrap();
        assert!(read_password(&file).unwrap_err().to_string().contains("longer than 16384 bytes"));
    }
}
