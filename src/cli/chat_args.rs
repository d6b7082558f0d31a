//! The options of `serverd chat`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::environment::PASSWORD;
use super::values::size;
use crate::apps::chat::{Bounds, Budget};
use crate::server::{ChatConfig, Command, Password};

/// Default time for a connection to send its first line, during which a member may only read.
pub(super) const DEFAULT_SILENT_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) const EXAMPLES: &str = "\
Examples:
  serverd chat --host ::                      Listen on all addresses, port 8888
  nc HOST 8888                                Join with netcat; telnet works too
  serverd connect HOST:8888                   Join without netcat";

#[derive(Debug, Args)]
#[allow(clippy::doc_markdown, reason = "help texts have no code markup")]
pub(super) struct ChatArgs {
    /// Maximum number of members, across all workers
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000), help_heading = "Chat")]
    max_members: u32,

    /// Maximum number of rooms, including the lobby
    #[arg(long, value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000), hide_short_help = true, help_heading = "Chat")]
    max_rooms: u32,

    /// Bytes accepted from a member at once; see --byte-rate
    #[arg(long, value_name = "SIZE", value_parser = budget, default_value = "64KiB")]
    #[arg(hide_short_help = true, help_heading = "Chat")]
    byte_burst: u32,

    /// Maximum bytes per second from a member; 0 for no limit
    ///
    /// This is an average: --byte-burst is accepted at once. A member that has used that up is not read until some of it
    /// has recovered (back-pressure). Its lines are delayed, none is lost, and it is not disconnected for being idle.
    #[arg(long, value_name = "SIZE", value_parser = rate, default_value = "4KiB")]
    #[arg(help_heading = "Chat")]
    byte_rate: u32,

    /// Lines accepted from a member at once; see --line-rate
    #[arg(long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000), hide_short_help = true, help_heading = "Chat")]
    line_burst: u32,

    /// Maximum lines per second from a member; 0 for no limit
    ///
    /// Works like --byte-rate. For a limit that drops lines, see --rate.
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1_000_000), help_heading = "Chat")]
    line_rate: u32,

    /// Mute a member that sends more than N lines per second [default: never]
    ///
    /// A member who exceeds it is notified and muted for 3 seconds: its lines are dropped.
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000), hide_short_help = true, help_heading = "Chat")]
    rate: Option<u32>,

    /// Number of recent lines sent to a member who joins a room
    #[arg(long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=1000), help_heading = "Chat")]
    history: u16,

    /// Require the password in FILE, or in the variable SERVERD_PASSWORD
    ///
    /// The password is the first line of FILE. A connection must send it as its first line; it has three tries. FILE takes
    /// precedence over SERVERD_PASSWORD.
    #[arg(long, value_name = "FILE", help_heading = "Chat")]
    password_file: Option<PathBuf>,

    /// Send the text in FILE to each new member (message of the day)
    #[arg(long, value_name = "FILE", help_heading = "Chat")]
    motd: Option<PathBuf>,

    /// Log what is said in public to DIR, in one file per room and day
    ///
    /// A file is named DATE.ROOM.log; dates and times are in UTC. Private messages are not logged. Lines are dropped if the
    /// disk is too slow.
    #[arg(long, value_name = "DIR", help_heading = "Chat")]
    log: Option<PathBuf>,
}

impl ChatArgs {
    pub(super) fn command(self, queue_bytes_max: usize) -> Command {
        let count = |number| usize::try_from(number).unwrap_or(usize::MAX);
        let budget = |burst, per_second| (per_second > 0).then_some(Budget { burst, per_second });
        let bounds = Bounds {
            members_max: count(self.max_members),
            rooms_max: count(self.max_rooms),
            byte_budget: budget(self.byte_burst, self.byte_rate),
            line_budget: budget(self.line_burst, self.line_rate),
            rate: self.rate,
            queue_bytes_max,
            history_lines: self.history.into(),
        };
        let password = match self.password_file {
            Some(path) => Some(Password::File(path)),
            None => password_variable().map(Password::Text),
        };
        Command::Chat(Box::new(ChatConfig { bounds, password, motd: self.motd, log: self.log }))
    }
}

/// Returns the password in [`PASSWORD`].
fn password_variable() -> Option<String> {
    // A password that is not UTF-8 becomes one that cannot be entered, rather than none.
    let text = std::env::var_os(PASSWORD)?.to_string_lossy().into_owned();
    (!text.is_empty()).then_some(text)
}

/// Parses a number of bytes per second.
fn rate(text: &str) -> Result<u32, String> {
    match u32::try_from(size(text)?) {
        Ok(bytes @ 0..=0x4000_0000) => Ok(bytes),
        _ => Err("must be at most 1GiB".into()),
    }
}

/// Parses a number of bytes that is not zero.
fn budget(text: &str) -> Result<u32, String> {
    match rate(text)? {
        0 => Err("must be greater than zero; use --byte-rate 0 for no limit".into()),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_sizes_and_may_be_switched_off() {
        assert_eq!((rate("4KiB"), rate("0"), budget("1m")), (Ok(4096), Ok(0), Ok(1 << 20)));
        assert!(rate("2GiB").unwrap_err().contains("1GiB") && budget("0").unwrap_err().contains("--byte-rate 0"));
    }
}
