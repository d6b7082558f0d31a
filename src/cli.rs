//! The command line: typed flags become a checked [`Config`]; no input and output besides what clap does.

use std::ffi::OsString;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use log::LevelFilter;

use crate::apps::chat;
use crate::check::Check;
use crate::connect::Connect;
use crate::http1::{HEAD_BYTES_MAX, Limits};
use crate::httpserver::LogFormat;
use crate::r#loop::{self, Timeouts};
use crate::server::{Backend, Command, Config, LogTarget, Logging, Spread};

mod client;
mod environment;
#[cfg(feature = "files")]
mod files;

/// The text `serverd http` answers with when nothing else is asked for.
const BODY: &str = "this is response from server";

/// Between requests, when nothing else is asked for: what nginx grants.
const IDLE: Duration = Duration::from_secs(75);

const EXAMPLES: &str = "\
Examples:
  serverd                                        answer on http://127.0.0.1:8888
  serverd --host :: --port 80 --workers 0        on every address, one worker per core
  serverd http --body \"out to lunch\"             another text
  serverd whoami                                 see what comes through a proxy
  serverd files public                           serve a directory
  serverd echo                                   send back every byte, over TCP
  serverd chat                                   talk: nc 127.0.0.1 8888
  serverd check http://127.0.0.1:8888/           is it well? The exit code tells";

const SIGNALS: &str = if cfg!(windows) {
    "Ctrl-C, Ctrl-Break and closing the console, which grants 5 seconds, let what is under way finish; a
second Ctrl-C ends at once."
} else {
    "SIGTERM and SIGINT let what is under way finish, a second one ends at once; SIGHUP and SIGUSR1
open the access log again."
};

const EXIT_CODES: &str = "Exit codes: 0 ended as told, 1 could not start or go on, 2 wrong usage.";

const WHOAMI_EXAMPLES: &str = "\
curl http://127.0.0.1:8888/ tells it as text, curl -H 'Accept: application/json' ... as JSON; of a body the length
and the SHA-256 hash. Bodies are bounded by --max-body.";

const CHAT_EXAMPLES: &str = "\
Talk with netcat, telnet or `serverd connect HOST:PORT`; /help there tells the commands.
Who takes less than comes, until --max-queue waits for them, is dropped; who is silent stays, unless
--idle-timeout is given. Dead peers are found by TCP keep-alive (after 60 s, then 4 probes, 15 s apart).";

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to do.
    pub task: Task,
    /// How much to log.
    pub log_level: LevelFilter,
    /// Whether to colour the log.
    pub color: Color,
}

/// What the process is to do.
#[derive(Clone, Debug)]
pub enum Task {
    /// Serve.
    Serve(Box<Config>, Command, Logging),
    /// Ask a server how it is.
    Check(Check),
    /// Talk to a server.
    Connect(Connect),
    /// Make a line for `--auth`.
    #[cfg(feature = "files")]
    Hash(crate::hash::Hash),
}

/// When to colour the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackendName {
    /// The best one here
    Auto,
    /// Linux
    Epoll,
    /// macOS and the BSDs
    Kqueue,
    /// Every system
    Select,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormatName {
    Short,
    Combined,
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SpreadName {
    Auto,
    Kernel,
    Fewest,
}

#[derive(Debug, Parser)]
#[command(
    name = "serverd",
    version,
    about = "HTTP and TCP servers on a readiness loop",
    after_help = format!("{EXAMPLES}\n\n{SIGNALS}\n\n{EXIT_CODES}"),
    max_term_width = 100,
    subcommand_help_heading = "Commands"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<CommandName>,

    // `http` is the command when none is given, so its option may stand alone too.
    #[command(flatten)]
    http: HttpArgs,

    /// Address or name to listen on
    #[arg(long, global = true, value_name = "ADDR", default_value = "127.0.0.1", env = "SERVERD_HOST")]
    #[arg(hide_env_values = true, help_heading = "Listening")]
    host: String,

    /// Port; 0 takes a free one
    #[arg(short, long, global = true, value_name = "N", default_value_t = 8888, env = "SERVERD_PORT")]
    #[arg(hide_env_values = true, help_heading = "Listening")]
    port: u16,

    /// System call that tells readiness
    #[arg(short, long, global = true, value_enum, default_value_t = BackendName::Auto, env = "SERVERD_BACKEND")]
    #[arg(hide_env_values = true, help_heading = "Listening")]
    backend: BackendName,

    /// Threads, each with its own loop; 0 is one per core
    #[arg(short, long, global = true, value_name = "N", default_value_t = 1, env = "SERVERD_WORKERS")]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=1024))]
    #[arg(hide_env_values = true, help_heading = "Listening")]
    workers: u16,

    /// How connections come to several workers: by the kernel (Linux), or each to the worker with the fewest
    #[arg(long, global = true, value_enum, default_value_t = SpreadName::Auto, env = "SERVERD_SPREAD")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Listening")]
    spread: SpreadName,

    /// Connections held at once, others wait [default: the descriptor limit less a reserve, at most 1000000]
    #[arg(long, global = true, value_name = "N", env = "SERVERD_MAX_CONNECTIONS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(hide_env_values = true, help_heading = "Listening")]
    max_connections: Option<u32>,

    /// Connections that may wait to be accepted
    #[arg(long, global = true, value_name = "N", default_value_t = 4096, env = "SERVERD_BACKLOG")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_535))]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Listening")]
    backlog: u32,

    /// Cap for every limit below
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, env = "SERVERD_TIMEOUT")]
    #[arg(hide_env_values = true, help_heading = "Time limits")]
    timeout: Option<Duration>,

    /// Without a byte at all [default: as the next]
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    #[arg(
        env = "SERVERD_SILENT_TIMEOUT",
        hide_env_values = true,
        hide_short_help = true,
        help_heading = "Time limits"
    )]
    silent_timeout: Option<Duration>,

    /// From the first byte of a head to its last
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "10s")]
    #[arg(env = "SERVERD_HEAD_TIMEOUT", hide_env_values = true, help_heading = "Time limits")]
    head_timeout: Duration,

    /// Without a request or, over plain TCP, without input [default: 75s; none for echo and chat]
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    #[arg(env = "SERVERD_IDLE_TIMEOUT", hide_env_values = true, help_heading = "Time limits")]
    idle_timeout: Option<Duration>,

    /// Period in which a body brings its bytes per second
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "5s")]
    #[arg(env = "SERVERD_BODY_TIMEOUT", hide_env_values = true, help_heading = "Time limits")]
    body_timeout: Duration,

    /// Bytes per second a body brings at least
    #[arg(long, global = true, value_name = "N", default_value_t = 240, env = "SERVERD_BODY_RATE")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Time limits")]
    body_rate: u32,

    /// Without a byte of the answer taken
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "30s")]
    #[arg(env = "SERVERD_WRITE_TIMEOUT", hide_env_values = true, help_heading = "Time limits")]
    write_timeout: Duration,

    /// Reading away what a refused client still sends
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "5s")]
    #[arg(
        env = "SERVERD_LINGER_TIMEOUT",
        hide_env_values = true,
        hide_short_help = true,
        help_heading = "Time limits"
    )]
    linger_timeout: Duration,

    /// From the signal to end to the end; --timeout does not cap it
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "30s")]
    #[arg(env = "SERVERD_DRAIN_TIMEOUT", hide_env_values = true, help_heading = "Time limits")]
    drain_timeout: Duration,

    /// Bytes of a head, at most 64KiB
    #[arg(long, global = true, value_name = "SIZE", value_parser = head_size, default_value = "64KiB")]
    #[arg(env = "SERVERD_MAX_HEAD", hide_env_values = true, help_heading = "Size limits")]
    max_head: usize,

    /// Fields of a head
    #[arg(long, global = true, value_name = "N", default_value_t = 100, env = "SERVERD_MAX_FIELDS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=10_000))]
    #[arg(hide_env_values = true, help_heading = "Size limits")]
    max_fields: u16,

    /// Bytes of a request target
    #[arg(long, global = true, value_name = "SIZE", value_parser = head_size, default_value = "8KiB")]
    #[arg(env = "SERVERD_MAX_TARGET", hide_env_values = true, help_heading = "Size limits")]
    max_target: usize,

    /// Bytes of a body
    #[arg(long, global = true, value_name = "SIZE", value_parser = size, default_value = "1MiB")]
    #[arg(env = "SERVERD_MAX_BODY", hide_env_values = true, help_heading = "Size limits")]
    max_body: u64,

    /// Unsent bytes of a connection at which nothing more is read from it
    #[arg(long, global = true, value_name = "SIZE", value_parser = queue_size, default_value = "256KiB")]
    #[arg(env = "SERVERD_MAX_QUEUE", hide_env_values = true, help_heading = "Size limits")]
    max_queue: usize,

    /// Bytes read away from a refused client
    #[arg(long, global = true, value_name = "SIZE", value_parser = size, default_value = "64MiB")]
    #[arg(env = "SERVERD_MAX_LINGER", hide_env_values = true, hide_short_help = true, help_heading = "Size limits")]
    max_linger: u64,

    /// Bytes read from a connection before the others have their turn
    #[arg(long, global = true, value_name = "SIZE", value_parser = turn_size, default_value = "64KiB")]
    #[arg(env = "SERVERD_TURN_READ", hide_env_values = true, hide_short_help = true, help_heading = "Fairness")]
    turn_read: usize,

    /// Bytes written to a connection before the others have their turn
    #[arg(long, global = true, value_name = "SIZE", value_parser = turn_size, default_value = "256KiB")]
    #[arg(env = "SERVERD_TURN_WRITE", hide_env_values = true, hide_short_help = true, help_heading = "Fairness")]
    turn_write: usize,

    /// Connections accepted before those inside have their turn
    #[arg(long, global = true, value_name = "N", default_value_t = 64, env = "SERVERD_TURN_ACCEPTS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Fairness")]
    turn_accepts: u16,

    /// Where HTTP requests are written down: a file, - (stdout) or off [default: terminal only]
    #[arg(long, global = true, value_name = "FILE", value_parser = log_target, env = "SERVERD_ACCESS_LOG")]
    #[arg(hide_env_values = true, help_heading = "Output")]
    access_log: Option<LogTarget>,

    /// How: for people, as nginx's combined, or as JSON [default: short on a terminal, else combined]
    #[arg(long, global = true, value_enum, value_name = "FORMAT", env = "SERVERD_LOG_FORMAT")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Output")]
    log_format: Option<LogFormatName>,

    /// Log more: once for connections' ends, twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count, env = "SERVERD_VERBOSE")]
    #[arg(hide_env_values = true, help_heading = "Output")]
    verbose: u8,

    /// Log errors only, and no requests on a terminal
    #[arg(short, long, global = true, env = "SERVERD_QUIET")]
    #[arg(hide_env_values = true, help_heading = "Output")]
    quiet: bool,

    /// When to colour the logs
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, env = "SERVERD_COLOR")]
    #[arg(hide_env_values = true, help_heading = "Output")]
    color: Color,
}

#[derive(Debug, Subcommand)]
enum CommandName {
    /// Answer every request with one text (the default)
    Http(HttpArgs),
    /// Tell each request to who sent it, to look through proxies and balancers
    #[command(after_help = WHOAMI_EXAMPLES)]
    Whoami,
    /// Serve a directory
    #[cfg(feature = "files")]
    #[command(after_help = files::EXAMPLES)]
    Files(files::FilesArgs),
    /// Send back every byte, over TCP
    Echo,
    /// Let people talk in rooms, line by line, over TCP
    #[command(after_help = CHAT_EXAMPLES)]
    Chat(ChatArgs),
    /// Ask a server once, as a health check does
    #[command(disable_help_flag = true)]
    Check(Misplaced),
    /// Standard input to a server, and the server to standard output
    #[command(disable_help_flag = true)]
    Connect(Misplaced),
    /// Make a line for `serverd files --auth` from a password
    #[cfg(feature = "files")]
    #[command(disable_help_flag = true)]
    Hash(Misplaced),
}

impl CommandName {
    /// Whether it is a client's command, which stands first.
    fn is_misplaced(&self) -> bool {
        match self {
            CommandName::Check(_) | CommandName::Connect(_) => true,
            #[cfg(feature = "files")]
            CommandName::Hash(_) => true,
            _ => false,
        }
    }
}

/// The words of a client's command behind options of the server, which it does not take.
#[derive(Debug, Args)]
struct Misplaced {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

#[derive(Debug, Args)]
struct ChatArgs {
    /// Members, on all workers together
    #[arg(long, value_name = "N", default_value_t = 10_000, env = "SERVERD_MAX_MEMBERS", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000), help_heading = "Chat")]
    max_members: u32,

    /// Rooms, the lobby included
    #[arg(long, value_name = "N", default_value_t = 1000, env = "SERVERD_MAX_ROOMS", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000), help_heading = "Chat")]
    max_rooms: u32,

    /// Lines a second and member; who is faster is told, and muted for 3 s [default: no limit]
    #[arg(long, value_name = "N", env = "SERVERD_RATE", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Chat")]
    rate: Option<u32>,

    /// Lines of a room that are told to who comes
    #[arg(long, value_name = "N", default_value_t = 20, env = "SERVERD_HISTORY", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=1000), help_heading = "Chat")]
    history: u16,
}

impl ChatArgs {
    /// What waits for a member is bounded as what waits for any connection.
    fn bounds(&self, queue_bytes_max: usize) -> chat::Bounds {
        let count = |number| usize::try_from(number).unwrap_or(usize::MAX);
        chat::Bounds {
            members_max: count(self.max_members),
            rooms_max: count(self.max_rooms),
            rate: self.rate,
            queue_bytes_max,
            history_lines: self.history.into(),
        }
    }
}

#[derive(Debug, Args)]
struct HttpArgs {
    /// Text to answer with, instead of "this is response from server"
    #[arg(long, value_name = "TEXT", env = "SERVERD_BODY", hide_env_values = true)]
    body: Option<String>,
}

/// Reads the command line of the process; prints help or complains, and exits, where it asks for that.
pub fn parse() -> Options {
    try_parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// Reads these words, the first of which is the program's name.
///
/// # Errors
/// What clap would print, with its exit code.
pub fn try_parse_from<T>(words: impl IntoIterator<Item = T>) -> Result<Options, clap::Error>
where
    T: Into<OsString>,
{
    let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
    if client::is_meant(&words) {
        return client::try_parse_from(words);
    }
    let cli = preferring_the_line(environment::try_get_matches_from(&Cli::command(), &words)?)?;
    if cli.quiet && cli.verbose > 0 {
        let advice = "--quiet (SERVERD_QUIET) and --verbose (SERVERD_VERBOSE) cannot be used together; leave one out";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, advice));
    }
    if cli.command.as_ref().is_some_and(CommandName::is_misplaced) {
        let advice = "this command takes none of the server's options; write its name first: serverd check TARGET";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, advice));
    }
    Ok(cli.into())
}

/// The command line has precedence over the environment also where two options say something of the same.
fn preferring_the_line(mut matches: ArgMatches) -> Result<Cli, clap::Error> {
    let on_line = |matches: &ArgMatches, id| matches.value_source(id) == Some(ValueSource::CommandLine);
    let (quiet, verbose) = (on_line(&matches, "quiet"), on_line(&matches, "verbose"));
    let own_body = matches.subcommand_matches("http").is_some_and(|own| on_line(own, "body"));
    let mut cli = Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut Cli::command()))?;
    cli.quiet &= quiet || !verbose;
    cli.verbose *= u8::from(verbose || !quiet);
    if let Some(CommandName::Http(own)) = &mut cli.command
        && !own_body
    {
        // The variable was read for the option before the command as well.
        own.body = None;
    }
    Ok(cli)
}

impl From<Cli> for Options {
    fn from(cli: Cli) -> Self {
        let log_level = match (cli.quiet, cli.verbose) {
            (true, _) => LevelFilter::Error,
            (false, 0) => LevelFilter::Warn,
            (false, 1) => LevelFilter::Debug,
            (false, _) => LevelFilter::Trace,
        };
        let color = cli.color;
        let (config, logging, command) = (cli.config(), cli.logging(), cli.into_command());
        Options { log_level, color, task: Task::Serve(Box::new(config), command, logging) }
    }
}

impl Cli {
    fn config(&self) -> Config {
        let cli = self;
        let timeouts = Timeouts {
            silent: Some(cli.silent_timeout.unwrap_or(cli.head_timeout)),
            head: Some(cli.head_timeout),
            body: Some(cli.body_timeout),
            body_rate: cli.body_rate,
            idle: Some(cli.idle_timeout.unwrap_or(IDLE)),
            open: cli.idle_timeout,
            write: Some(cli.write_timeout),
            linger: Some(cli.linger_timeout),
            ..Timeouts::default()
        };
        let loop_limits = r#loop::Limits {
            read_bytes_per_turn: cli.turn_read,
            write_bytes_per_turn: cli.turn_write,
            accepts_per_turn: cli.turn_accepts.into(),
            output_bytes_max: cli.max_queue,
            output_resume_bytes: cli.max_queue / 2,
            linger_bytes_max: cli.max_linger,
            backlog: cli.backlog,
            drain: cli.drain_timeout,
            ..r#loop::Limits::default()
        };
        Config {
            host: cli.host.clone(),
            port: cli.port,
            backend: match cli.backend {
                BackendName::Auto => Backend::Auto,
                BackendName::Epoll => Backend::Epoll,
                BackendName::Kqueue => Backend::Kqueue,
                BackendName::Select => Backend::Select,
            },
            workers: cli.workers.into(),
            spread: match cli.spread {
                SpreadName::Auto => Spread::Auto,
                SpreadName::Kernel => Spread::Kernel,
                SpreadName::Fewest => Spread::Fewest,
            },
            timeout: cli.timeout,
            timeouts,
            loop_limits,
            connections_max: cli.max_connections.map(|max| usize::try_from(max).unwrap_or(usize::MAX)),
            keep_alive: false,
            files_max: 0,
            access_log: None,
        }
    }

    fn logging(&self) -> Logging {
        let default = if self.quiet { LogTarget::Off } else { LogTarget::Terminal };
        Logging {
            target: self.access_log.clone().unwrap_or(default),
            format: self.log_format.map(|name| match name {
                LogFormatName::Short => LogFormat::Short,
                LogFormatName::Combined => LogFormat::Combined,
                LogFormatName::Json => LogFormat::Json,
            }),
            color: match self.color {
                Color::Auto => None,
                Color::Always => Some(true),
                Color::Never => Some(false),
            },
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            head_bytes_max: self.max_head,
            fields_max: self.max_fields.into(),
            target_bytes_max: self.max_target,
            body_bytes_max: self.max_body,
            ..Limits::default()
        }
    }

    fn into_command(self) -> Command {
        let limits = self.limits();
        let own = match self.command {
            Some(CommandName::Whoami) => return Command::Whoami { limits },
            #[cfg(feature = "files")]
            Some(CommandName::Files(args)) => return args.command(limits),
            Some(CommandName::Echo) => return Command::Echo,
            Some(CommandName::Chat(args)) => return Command::Chat(args.bounds(self.max_queue)),
            Some(CommandName::Http(args)) => args.body,
            // What is misplaced was refused before.
            None | Some(_) => None,
        };
        Command::Http { body: own.or(self.http.body).unwrap_or_else(|| BODY.to_owned()), limits }
    }
}

/// A number and a unit.
fn split_unit(text: &str) -> Result<(u64, &str), String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    match number.parse() {
        Ok(number) => Ok((number, unit.trim())),
        Err(_) => Err("begin with a whole number".into()),
    }
}

/// A file, standard output or nothing.
fn log_target(text: &str) -> Result<LogTarget, String> {
    match text {
        "" => Err("name a file; - is standard output, off is none".into()),
        "-" => Ok(LogTarget::Stdout),
        "off" => Ok(LogTarget::Off),
        path => Ok(LogTarget::File(path.into())),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "" => {
            return Err(format!("give a unit: {number}s, {number}ms, {number}m or {number}h"));
        }
        _ => return Err("the units are ms, s, m and h".into()),
    };
    match number.checked_mul(millis) {
        Some(0) => Err("more than nothing, such as 500ms".into()),
        Some(millis) if millis <= 366 * 24 * 3_600_000 => Ok(Duration::from_millis(millis)),
        _ => Err("at most a year".into()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err("the units are KiB, MiB and GiB".into()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| "too large".into())
}

fn head_size(text: &str) -> Result<usize, String> {
    match usize::try_from(size(text)?) {
        Ok(bytes) if (256..=HEAD_BYTES_MAX).contains(&bytes) => Ok(bytes),
        _ => Err("from 256 bytes to 64KiB".into()),
    }
}

fn queue_size(text: &str) -> Result<usize, String> {
    match usize::try_from(size(text)?) {
        Ok(bytes @ 1024..=0x4000_0000) => Ok(bytes),
        _ => Err("from 1KiB to 1GiB".into()),
    }
}

fn turn_size(text: &str) -> Result<usize, String> {
    match usize::try_from(size(text)?) {
        Ok(bytes @ 4096..=0x100_0000) => Ok(bytes),
        _ => Err("from 4KiB to 16MiB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> (Config, Command) {
        match try_parse_from(line.split(' ')).unwrap().task {
            Task::Serve(config, command, _) => (*config, command),
            other => panic!("{line}: {other:?}"),
        }
    }

    fn refused(line: &str) -> String {
        let error = try_parse_from(line.split(' ')).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        error.to_string()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_options_the_defaults_hold() {
        let (config, command) = parsed("serverd");
        assert_eq!((config.host.as_str(), config.port, config.workers), ("127.0.0.1", 8888, 1));
        assert_eq!(config.backend, Backend::Auto);
        assert_eq!(config.timeout, None);
        assert_eq!(config.timeouts.idle, Some(Duration::from_secs(75)));
        assert_eq!(command, Command::Http { body: BODY.into(), limits: Limits::default() });
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for line in ["serverd -p 1 http --body x", "serverd http --body x -p 1", "serverd --body x --port 1"] {
            let (config, command) = parsed(line);
            assert_eq!(config.port, 1, "{line}");
            assert_eq!(command, Command::Http { body: "x".into(), limits: Limits::default() }, "{line}");
        }
    }

    #[test]
    fn times_and_sizes_have_units() {
        let (config, command) =
            parsed("serverd --timeout 500ms --idle-timeout 2m --max-body 3GiB --max-head 1k whoami");
        assert_eq!(config.timeout, Some(Duration::from_millis(500)));
        assert_eq!(config.timeouts.idle, Some(Duration::from_secs(120)));
        let limits = Limits { body_bytes_max: 3 << 30, head_bytes_max: 1024, ..Limits::default() };
        assert_eq!(command, Command::Whoami { limits });
        let (config, _) = parsed("serverd --max-queue 1MiB --max-connections 9 --drain-timeout 2s --head-timeout 3s");
        assert_eq!(config.loop_limits.output_bytes_max, 1 << 20);
        assert_eq!(config.loop_limits.output_resume_bytes, 1 << 19);
        assert_eq!((config.connections_max, config.loop_limits.drain), (Some(9), Duration::from_secs(2)));
        assert_eq!(config.timeouts.silent, Some(Duration::from_secs(3)));
        assert!(refused("serverd --timeout 5").contains("give a unit: 5s"));
        assert!(refused("serverd --timeout 0s").contains("more than nothing"));
        assert!(refused("serverd --timeout 5y").contains("the units are"));
        assert!(refused("serverd --max-head 65KiB").contains("to 64KiB"));
        assert!(refused("serverd --max-body x").contains("whole number"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "serverd -v -q",
            "serverd --port 65536",
            "serverd nothing",
            "serverd --workers 2000",
            "serverd --backend poll",
        ] {
            refused(line);
        }
    }

    #[test]
    fn every_option_has_a_variable() {
        let cli = Cli::command();
        let own = ["chat", "files"].into_iter().filter_map(|name| cli.find_subcommand(name));
        for option in own.flat_map(clap::Command::get_arguments).chain(cli.get_arguments()) {
            let Some(long) = option.get_long() else {
                continue;
            };
            let expected = format!("SERVERD_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(option.get_env().and_then(|name| name.to_str()), Some(expected.as_str()));
        }
    }

    #[test]
    fn the_help_is_grouped_and_short() {
        let help = Cli::command().render_help().to_string();
        for heading in ["Commands:", "Listening:", "Time limits:", "Size limits:", "Output:", "Examples:"] {
            assert!(help.contains(heading), "{help}");
        }
        assert!(help.lines().count() <= 75, "{help}");
    }
}
