//! Destination, format and color of the access log of the `serverd` command.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;

use super::config::StartError;
use crate::httpserver::{AccessLog, LogFormat, Sink};

/// Access log options of the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    /// Destination of the log.
    pub target: LogTarget,
    /// The format of a line; `None` for [`LogFormat::Short`] on a terminal and [`LogFormat::Combined`] otherwise.
    pub format: Option<LogFormat>,
    /// Whether to color the status code; `None` to do so only on a terminal that supports it.
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
}

impl Logging {
    /// Opens the log; `None` if it is disabled. If it is written to standard output, it shares `stdout`.
    pub(super) fn open(&self, stdout: &Arc<Sink>) -> Result<Option<AccessLog>, StartError> {
        let terminal = io::stdout().is_terminal();
        let to_terminal = terminal && !matches!(self.target, LogTarget::File(_));
        let format = self.format.unwrap_or(if to_terminal { LogFormat::Short } else { LogFormat::Combined });
        let log = match &self.target {
            LogTarget::Off => return Ok(None),
            LogTarget::Terminal if !terminal => return Ok(None),
            LogTarget::Terminal | LogTarget::Stdout => AccessLog::with_sink(Arc::clone(stdout), format),
            LogTarget::File(path) => AccessLog::file(path, format).map_err(|error| {
                let path = path.display();
                StartError::new(format!("cannot write the access log {path}: {error}; specify a writable file"))
            })?,
        };
        let color = self.color.unwrap_or_else(|| to_terminal && wants_color());
        Ok(Some(log.with_color(color && (!to_terminal || enable_escape_sequences()))))
    }
}

/// Checks the usual environment variables: `NO_COLOR` (<https://no-color.org>) and `TERM`.
pub(super) fn wants_color() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Enables escape sequences on standard output where necessary; returns whether a terminal there supports them.
fn enable_escape_sequences() -> bool {
    #[cfg(windows)]
    return super::windows::enable_escape_sequences(&io::stdout());
    #[cfg(not(windows))]
    true
}
