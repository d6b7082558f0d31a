//! Where the binary writes its access log.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use super::{Failure, failed};
use crate::httpserver::{AccessLog, LogFormat};

/// What the command line says about the access log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    /// Where it goes.
    pub target: LogTarget,
    /// How a line looks; `None` is [`LogFormat::Short`] on a terminal, else [`LogFormat::Combined`].
    pub format: Option<LogFormat>,
    /// Whether the status has a colour; `None` is on a terminal.
    pub color: Option<bool>,
}

/// Where an access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogTarget {
    /// To standard output where that is a terminal, else nowhere: programs that read the start line read nothing else.
    #[default]
    Terminal,
    /// Nowhere.
    Off,
    /// To standard output, behind the start line.
    Stdout,
    /// To the end of a file.
    File(PathBuf),
}

impl Logging {
    /// The log, if there is one. Nothing is written to standard output before [`AccessLog::release`].
    pub(super) fn open(&self) -> Result<Option<AccessLog>, Failure> {
        let terminal = io::stdout().is_terminal();
        let to_terminal = terminal && !matches!(self.target, LogTarget::File(_));
        let format = self.format.unwrap_or(if to_terminal { LogFormat::Short } else { LogFormat::Combined });
        let log = match &self.target {
            LogTarget::Off => return Ok(None),
            LogTarget::Terminal if !terminal => return Ok(None),
            LogTarget::Terminal | LogTarget::Stdout => {
                let log = AccessLog::to(io::stdout(), format);
                log.inspect(AccessLog::hold).map_err(|error| failed("cannot write the access log", &error))?
            }
            LogTarget::File(path) => AccessLog::file(path, format).map_err(|error| {
                let path = path.display();
                Failure(format!("cannot write the access log {path}: {error}; name a file that may be written"))
            })?,
        };
        let color = self.color.unwrap_or_else(|| to_terminal && takes_color());
        Ok(Some(log.with_color(color && (!to_terminal || takes_escape_sequences()))))
    }
}

/// What every program of a shell looks at (<https://no-color.org>).
fn takes_color() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether escape sequences can be written to standard output, if it is a terminal.
fn takes_escape_sequences() -> bool {
    #[cfg(windows)]
    return super::windows::takes_escape_sequences(&io::stdout());
    #[cfg(not(windows))]
    true
}
