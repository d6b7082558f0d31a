//! Command-line parsing: turns options and environment variables into a validated [`Config`]. Performs no I/O, except
//! that [`parse`] prints help and errors.

use std::ffi::OsString;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use log::LevelFilter;

use crate::apps::chat;
use crate::client::check::Check;
use crate::client::connect::Connect;
use crate::http1::{HEAD_BYTES_MAX, Limits};
use crate::httpserver::LogFormat;
use crate::r#loop::{self, Timeouts};
use crate::server::{Backend, Balance, Command, Config, HttpOptions, LogTarget, Logging};

mod client;
mod environment;
mod files;

/// The response body of `serverd http`, unless `--body` is given.
const DEFAULT_BODY: &str = "this is response from server";

/// Default keep-alive timeout, the same as nginx's.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(75);

const ABOUT: &str = "HTTP and TCP servers on a readiness loop (epoll, kqueue or select)";

const LONG_ABOUT: &str = "\
HTTP and TCP servers on a readiness loop (epoll, kqueue or select).

The default command is http. The options below apply to all server commands (http, whoami, files, echo and chat) and \
may be given before or after the command; echo and chat ignore those that concern HTTP. files and chat have further \
options. The other commands (check, connect and hash) have only their own options. See `serverd COMMAND --help`.

TIME is a number with a unit: 500ms, 10s, 5m or 1h. SIZE is a number of bytes, optionally with a unit: 64KiB, 10MiB or \
1GiB. A number in parentheses, such as (431), is the HTTP status code returned when the limit is exceeded.";

/// The last line of `serverd -h`.
const EXAMPLE: &str = "Example: serverd files public --host :: --port 80";

const EXAMPLES: &str = "\
Examples:
  serverd                                     Respond to HTTP requests on 127.0.0.1:8888
  serverd --host :: --port 80 --workers 0     Listen on all addresses, one worker per core
  serverd http --body \"out to lunch\"          Change the response body
  serverd whoami                              See what a proxy sends
  serverd files public                        Serve a directory
  serverd echo                                Run a TCP echo server
  serverd chat                                Run a chat server; join it with: nc 127.0.0.1 8888
  serverd check http://127.0.0.1:8888/        Check whether a server is healthy";

const EXIT_CODES: &str = "\
Exit codes:
  0      Clean shutdown
  1      Start-up or runtime error
  2      Usage error
  128+N  Forced exit after a second signal, number N";

/// The end of `serverd --help`.
const DETAILS: &str = "\
Environment:
  Every server option can also be set with the environment variable shown in its help. The command line takes \
precedence, and an empty variable counts as unset. Variables of flags accept 1/0, true/false, yes/no and on/off. \
RUST_LOG overrides -v and -q.

Signals:
  SIGINT, SIGTERM   Shut down gracefully, finishing in-flight requests; a second signal exits at once
  SIGHUP, SIGUSR1   Reopen the access log
  On Windows, Ctrl-C, Ctrl-Break and closing the console (which allows 5 seconds) shut down gracefully.";

const HTTP_EXAMPLES: &str = "\
Examples:
  serverd http --body \"out to lunch\"          Change the response body
  serverd http --host :: --port 80            Listen on all addresses";

const WHOAMI_EXAMPLES: &str = "\
Examples:
  serverd whoami                                             Listen on http://127.0.0.1:8888
  curl http://127.0.0.1:8888/                                Get the report as text
  curl -H 'Accept: application/json' http://127.0.0.1:8888/  Get it as JSON";

const ECHO_EXAMPLES: &str = "\
Examples:
  serverd echo                                Listen on tcp://127.0.0.1:8888
  serverd connect 127.0.0.1:8888              Connect to it";

const CHAT_EXAMPLES: &str = "\
Examples:
  serverd chat --host ::                      Listen on all addresses, port 8888
  nc HOST 8888                                Join with netcat; telnet works too
  serverd connect HOST:8888                   Join without netcat";

/// The parsed command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The command to run.
    pub task: Task,
    /// The log level of the process.
    pub log_level: LevelFilter,
    /// When to use colors in the log.
    pub color: Color,
}

/// A command with its options.
#[derive(Clone, Debug)]
pub enum Task {
    /// Run a server.
    Serve(Box<Config>, Command, Logging),
    /// Check another server.
    Check(Check),
    /// Connect to another server.
    Connect(Connect),
    /// Hash a password for `--auth`.
    Hash(crate::client::hash::Hash),
}

// The doc comments of the following types are help texts.

/// When to use colors in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// Only on a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackendName {
    /// epoll on Linux, select elsewhere
    Auto,
    /// Linux only
    Epoll,
    /// macOS and the BSDs only
    Kqueue,
    /// All platforms
    Select,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormatName {
    /// A short, human-readable line per request
    Short,
    /// The combined log format of Apache and nginx
    Combined,
    /// A JSON object per request, on a line of its own
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BalanceName {
    /// kernel on Linux, least-connections elsewhere
    Auto,
    #[value(help = "One listener per worker (SO_REUSEPORT), balanced by the kernel; Linux only")]
    Kernel,
    /// One thread accepts and hands each connection to the worker with the fewest connections
    #[value(alias = "fewest")]
    LeastConnections,
}

#[derive(Debug, Parser)]
#[command(
    name = "serverd",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = EXAMPLE,
    after_long_help = format!("{EXAMPLES}\n\n{DETAILS}\n\n{EXIT_CODES}"),
    max_term_width = 100,
    subcommand_help_heading = "Commands",
    mut_arg("body", |body| body.hide_short_help(true))
)]
struct Cli {
    #[command(subcommand)]
    command: Option<CommandName>,

    // `http` is the default command, so its option is also accepted without a command.
    #[command(flatten)]
    http: HttpArgs,

    /// Port to listen on; 0 picks a free port
    ///
    /// The line printed to stdout at start-up contains the actual port.
    #[arg(short, long, global = true, value_name = "PORT", default_value_t = 8888, env = "SERVERD_PORT")]
    #[arg(hide_env_values = true, help_heading = "Network")]
    port: u16,

    /// Address or host name to listen on
    ///
    /// Use :: for all IPv4 and IPv6 addresses, 0.0.0.0 for all IPv4 addresses.
    #[arg(long, global = true, value_name = "ADDR", default_value = "127.0.0.1", env = "SERVERD_HOST")]
    #[arg(hide_env_values = true, help_heading = "Network")]
    host: String,

    /// Number of worker threads (event loops); 0 for one per core
    #[arg(short, long, global = true, value_name = "N", default_value_t = 1, env = "SERVERD_WORKERS")]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=1024))]
    #[arg(hide_env_values = true, help_heading = "Network")]
    workers: u16,

    /// Load balancing of connections across workers
    #[arg(long, alias = "spread", global = true, value_enum, default_value_t = BalanceName::Auto)]
    #[arg(value_name = "METHOD", env = "SERVERD_BALANCE")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Network")]
    balance: BalanceName,

    /// Maximum length of the listen queue (backlog), where connections wait to be accepted
    ///
    /// The system may impose a lower limit (net.core.somaxconn on Linux).
    #[arg(long, global = true, value_name = "N", default_value_t = 4096, env = "SERVERD_BACKLOG")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_535))]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Network")]
    backlog: u32,

    /// Upper bound for all timeouts below, except --drain-timeout [default: none]
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, env = "SERVERD_TIMEOUT")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Timeouts")]
    timeout: Option<Duration>,

    /// Close a new connection that sends nothing within TIME [default: --head-timeout]
    ///
    /// HTTP only; for echo and chat, see --idle-timeout. Behind a load balancer that opens connections ahead of use, TIME
    /// should be longer than the balancer keeps them.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, env = "SERVERD_SILENT_TIMEOUT")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Timeouts")]
    silent_timeout: Option<Duration>,

    /// Maximum time to receive a request head (408)
    ///
    /// The time runs from the first byte of the request line to the end of the headers. Progress does not extend it, so
    /// slow clients cannot hold connections open (slowloris). When it expires, the response is 408 Request Timeout.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "10s")]
    #[arg(env = "SERVERD_HEAD_TIMEOUT")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Timeouts")]
    head_timeout: Duration,

    /// Close an idle keep-alive connection after TIME [default: 75s; none for echo and chat]
    ///
    /// For HTTP, TIME runs from the end of a response to the next request; for echo and chat, it runs while the client
    /// sends nothing.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, env = "SERVERD_IDLE_TIMEOUT")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Timeouts")]
    idle_timeout: Option<Duration>,

    /// Announce --idle-timeout to HTTP clients (Keep-Alive: timeout=N)
    ///
    /// Clients and load balancers that honor the header do not send a request on a connection that is about to be closed.
    #[arg(long, global = true, env = "SERVERD_KEEP_ALIVE_HEADER")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Timeouts")]
    keep_alive_header: bool,

    /// Interval over which the minimum upload rate is checked
    ///
    /// A request body must arrive at --body-rate bytes per second or more, averaged over each interval of TIME.
    /// Otherwise the response is 408 Request Timeout.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "5s")]
    #[arg(env = "SERVERD_BODY_TIMEOUT")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Timeouts")]
    body_timeout: Duration,

    /// Minimum upload rate in bytes per second (408 below it)
    ///
    /// See --body-timeout.
    #[arg(long, global = true, value_name = "N", default_value_t = 240, env = "SERVERD_BODY_RATE")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Timeouts")]
    body_rate: u32,

    /// Reset a connection if the client accepts no response data for TIME
    ///
    /// Every byte that the client accepts restarts the timer, so slow downloads are not cut off.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "30s")]
    #[arg(env = "SERVERD_WRITE_TIMEOUT")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Timeouts")]
    write_timeout: Duration,

    /// Keep discarding input for up to TIME after an error response
    ///
    /// Closing a connection with unread input resets it, which can destroy the response before the client has read it
    /// (lingering close, RFC 9112 section 9.6). See also --max-linger.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "5s")]
    #[arg(env = "SERVERD_LINGER_TIMEOUT")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Timeouts")]
    linger_timeout: Duration,

    /// Maximum time for graceful shutdown
    ///
    /// In-flight requests have TIME to finish; then the remaining connections are closed. Not bounded by --timeout.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "30s")]
    #[arg(env = "SERVERD_DRAIN_TIMEOUT")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Timeouts")]
    drain_timeout: Duration,

    /// Maximum number of open connections; further ones wait in the listen queue
    ///
    /// [default: the file descriptor limit less a reserve, at most 1000000]
    #[arg(long, global = true, value_name = "N", env = "SERVERD_MAX_CONNECTIONS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Limits")]
    max_connections: Option<u32>,

    /// Close an HTTP connection after N requests; 0 for no limit
    #[arg(long, global = true, value_name = "N", default_value_t = 0, env = "SERVERD_MAX_REQUESTS")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Limits")]
    max_requests: u32,

    /// Answer HTTP requests for other hosts with 421 (repeatable) [default: all hosts]
    ///
    /// Protects a server on a private address from web pages that let their own name resolve to it (DNS rebinding). NAME
    /// is compared with the Host header without port; case does not matter, and .example.com covers example.com and all
    /// subdomains. In the environment variable, names are separated by commas.
    #[arg(long = "allow-host", global = true, value_name = "NAME", value_delimiter = ',', env = "SERVERD_ALLOW_HOST")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Network")]
    allow_hosts: Vec<String>,

    /// Maximum size of the request line and headers together (431)
    ///
    /// SIZE can be at most 64KiB.
    #[arg(long, global = true, value_name = "SIZE", value_parser = head_size, default_value = "64KiB")]
    #[arg(env = "SERVERD_MAX_HEAD")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Limits")]
    max_head: usize,

    /// Maximum number of request headers (431)
    #[arg(long, alias = "max-fields", global = true, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=10_000), env = "SERVERD_MAX_HEADERS")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Limits")]
    max_headers: u16,

    /// Maximum size of the request target, i.e. path and query (414)
    #[arg(long, global = true, value_name = "SIZE", value_parser = head_size, default_value = "8KiB")]
    #[arg(env = "SERVERD_MAX_TARGET")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Limits")]
    max_target: usize,

    /// Maximum size of a request body (413)
    #[arg(long, global = true, value_name = "SIZE", value_parser = size, default_value = "1MiB")]
    #[arg(env = "SERVERD_MAX_BODY")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Limits")]
    max_body: u64,

    /// Maximum memory of the request bodies in progress, of all connections together (503)
    ///
    /// At the limit, reading from clients pauses; after 5 s the upload with the least progress gets 503 Service
    /// Unavailable. Bodies of up to 16KiB come from a reserve, an eighth of SIZE.
    #[arg(long, global = true, value_name = "SIZE", value_parser = buffered_size, default_value = "256MiB")]
    #[arg(env = "SERVERD_MAX_BUFFERED")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Limits")]
    max_buffered: usize,

    /// Unsent response bytes at which reading from a client pauses (back-pressure)
    ///
    /// Reading resumes when half of SIZE is left to send. `serverd echo` uses at most 64KiB. `serverd chat` disconnects
    /// a member with more than SIZE of unsent output.
    #[arg(long, global = true, value_name = "SIZE", value_parser = queue_size, default_value = "256KiB")]
    #[arg(env = "SERVERD_MAX_QUEUE")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Limits")]
    max_queue: usize,

    /// Maximum bytes of input discarded after an error response
    ///
    /// See --linger-timeout.
    #[arg(long, global = true, value_name = "SIZE", value_parser = size, default_value = "64MiB")]
    #[arg(env = "SERVERD_MAX_LINGER")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Limits")]
    max_linger: u64,

    /// I/O readiness API to use
    #[arg(short, long, global = true, value_enum, default_value_t = BackendName::Auto, env = "SERVERD_BACKEND")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Event loop")]
    backend: BackendName,

    /// Maximum bytes read from one connection per loop iteration
    ///
    /// Smaller values are fairer to other connections, larger ones increase throughput.
    #[arg(long, global = true, value_name = "SIZE", value_parser = turn_size, default_value = "64KiB")]
    #[arg(env = "SERVERD_TURN_READ")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Event loop")]
    turn_read: usize,

    /// Maximum bytes written to one connection per loop iteration
    #[arg(long, global = true, value_name = "SIZE", value_parser = turn_size, default_value = "256KiB")]
    #[arg(env = "SERVERD_TURN_WRITE")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Event loop")]
    turn_write: usize,

    /// Maximum connections accepted from a listener per loop iteration
    #[arg(long, global = true, value_name = "N", default_value_t = 64, env = "SERVERD_TURN_ACCEPTS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Event loop")]
    turn_accepts: u16,

    /// Write an HTTP access log to FILE; - for stdout, off to disable
    ///
    /// SIGHUP and SIGUSR1 reopen FILE, for log rotation.
    ///
    /// [default: stdout if it is a terminal, else off]
    #[arg(long, global = true, value_name = "FILE", value_parser = log_target, env = "SERVERD_ACCESS_LOG")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Logging")]
    access_log: Option<LogTarget>,

    /// Format of the access log [default: short on a terminal, else combined]
    #[arg(long, global = true, value_enum, value_name = "FORMAT", env = "SERVERD_LOG_FORMAT")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Logging")]
    log_format: Option<LogFormatName>,

    /// Log more to stderr: -v logs closed connections, -vv everything
    #[arg(short, long, global = true, action = ArgAction::Count, env = "SERVERD_VERBOSE")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Logging")]
    verbose: u8,

    /// Log only errors to stderr; no access log unless --access-log is given
    #[arg(short, long, global = true, env = "SERVERD_QUIET")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Logging")]
    quiet: bool,

    /// When to color log output
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN", env = "SERVERD_COLOR")]
    #[arg(hide_env_values = true, hide_short_help = true, help_heading = "Logging")]
    color: Color,
}

#[derive(Debug, Subcommand)]
enum CommandName {
    /// Respond to every HTTP request with a fixed text (the default command)
    #[command(after_help = HTTP_EXAMPLES, after_long_help = format!("{HTTP_EXAMPLES}\n\n{EXIT_CODES}"))]
    Http(HttpArgs),
    /// Echo each HTTP request back to its sender, to debug proxies and load balancers
    ///
    /// The response lists the request line and headers as received, the peer and local addresses, the host name of the
    /// server, the number of the worker, and the length and SHA-256 hash of the request body. It is JSON if the Accept
    /// header prefers application/json, otherwise plain text.
    #[command(after_help = WHOAMI_EXAMPLES, after_long_help = format!("{WHOAMI_EXAMPLES}\n\n{EXIT_CODES}"))]
    Whoami,
    /// Serve the files of a directory over HTTP
    ///
    /// Only regular files below DIR are served. No request path leads out of DIR, and symbolic links that do are
    /// followed only with --follow-symlinks. If DIR contains 404.html, 403.html or 500.html, browsers get that page in
    /// place of the plain error message.
    #[command(after_help = files::EXAMPLE, after_long_help = format!("{}\n\n{EXIT_CODES}", files::EXAMPLES))]
    Files(files::FilesArgs),
    /// Run a TCP echo server
    #[command(after_help = ECHO_EXAMPLES, after_long_help = format!("{ECHO_EXAMPLES}\n\n{EXIT_CODES}"))]
    Echo,
    /// Run a TCP chat server with rooms, for netcat and telnet
    ///
    /// In the chat, type /help for a list of commands. A slow member is disconnected when its unsent output exceeds
    /// --max-queue. Idle members stay connected unless --idle-timeout is given. TCP keep-alive detects dead peers with
    /// 4 probes, 15 seconds apart, after 60 seconds of silence.
    #[command(after_help = CHAT_EXAMPLES, after_long_help = format!("{CHAT_EXAMPLES}\n\n{EXIT_CODES}"))]
    Chat(ChatArgs),
    /// Check whether an HTTP or TCP server is healthy
    #[command(disable_help_flag = true)]
    Check(TrailingArgs),
    /// Connect stdin and stdout to a TCP server (like netcat)
    #[command(disable_help_flag = true)]
    Connect(TrailingArgs),
    /// Hash a password for `serverd files --auth`
    #[command(disable_help_flag = true)]
    Hash(TrailingArgs),
}

impl CommandName {
    /// Returns whether this command accepts no server options, and so must come first on the command line.
    fn is_client(&self) -> bool {
        matches!(self, CommandName::Check(_) | CommandName::Connect(_) | CommandName::Hash(_))
    }
}

/// The arguments of a client command that was found after server options, which is a usage error.
#[derive(Debug, Args)]
struct TrailingArgs {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

#[derive(Debug, Args)]
struct ChatArgs {
    /// Maximum number of members, across all workers
    #[arg(long, value_name = "N", default_value_t = 10_000, env = "SERVERD_MAX_MEMBERS", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000), help_heading = "Chat")]
    max_members: u32,

    /// Maximum number of rooms, including the lobby
    #[arg(long, value_name = "N", default_value_t = 1000, env = "SERVERD_MAX_ROOMS", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000), help_heading = "Chat")]
    max_rooms: u32,

    /// Maximum lines per second per member [default: no limit]
    ///
    /// A member who exceeds it is notified and muted for 3 seconds.
    #[arg(long, value_name = "N", env = "SERVERD_RATE", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Chat")]
    rate: Option<u32>,

    /// Number of recent lines sent to a member who joins a room
    #[arg(long, value_name = "N", default_value_t = 20, env = "SERVERD_HISTORY", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=1000), help_heading = "Chat")]
    history: u16,
}

impl ChatArgs {
    /// Returns the limits of the chat. `queue_bytes_max` also limits the unsent output of each member.
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
    /// Response body of the http command [default: "this is response from server"]
    #[arg(long, value_name = "TEXT", env = "SERVERD_BODY", hide_env_values = true)]
    body: Option<String>,
}

/// Parses the command line of this process. Prints help or an error and exits if there is no command to run.
pub fn parse() -> Options {
    try_parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// Parses `args`, the first of which is the name of the program.
///
/// # Errors
/// Returns a usage error, or the requested help text or version, as a [`clap::Error`] with its exit code.
pub fn try_parse_from<T>(args: impl IntoIterator<Item = T>) -> Result<Options, clap::Error>
where
    T: Into<OsString>,
{
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    if client::is_client_command(&args) {
        return client::try_parse_from(args);
    }
    let cli = prefer_cli_over_env(environment::try_get_matches_from(&Cli::command(), &args)?)?;
    if cli.quiet && cli.verbose > 0 {
        let advice = "--quiet (SERVERD_QUIET) and --verbose (SERVERD_VERBOSE) cannot be used together; remove one";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, advice));
    }
    if cli.command.as_ref().is_some_and(CommandName::is_client) {
        let advice = "this command accepts no server options; remove those before it, e.g. serverd check TARGET";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, advice));
    }
    Ok(cli.into())
}

/// Makes the command line take precedence over the environment also between related options: `-v` over `SERVERD_QUIET`,
/// `-q` over `SERVERD_VERBOSE`, and a `--body` before the command over `SERVERD_BODY`.
fn prefer_cli_over_env(mut matches: ArgMatches) -> Result<Cli, clap::Error> {
    let on_cli = |matches: &ArgMatches, id| matches.value_source(id) == Some(ValueSource::CommandLine);
    let (quiet, verbose) = (on_cli(&matches, "quiet"), on_cli(&matches, "verbose"));
    let http_body = matches.subcommand_matches("http").is_some_and(|http| on_cli(http, "body"));
    let mut cli = Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut Cli::command()))?;
    cli.quiet &= quiet || !verbose;
    cli.verbose *= u8::from(verbose || !quiet);
    if let Some(CommandName::Http(http)) = &mut cli.command
        && !http_body
    {
        // It can only come from the environment variable, which the top-level --body has read, too.
        http.body = None;
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
            idle: Some(cli.idle_timeout.unwrap_or(DEFAULT_IDLE_TIMEOUT)),
            open: cli.idle_timeout,
            write: Some(cli.write_timeout),
            linger: Some(cli.linger_timeout),
            ..Timeouts::default()
        };
        let loop_limits = r#loop::LoopLimits {
            read_bytes_per_turn: cli.turn_read,
            write_bytes_per_turn: cli.turn_write,
            accepts_per_turn: cli.turn_accepts.into(),
            output_bytes_max: cli.max_queue,
            output_resume_bytes: cli.max_queue / 2,
            linger_bytes_max: cli.max_linger,
            backlog: cli.backlog,
            drain: cli.drain_timeout,
            ..r#loop::LoopLimits::default()
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
            balance: match cli.balance {
                BalanceName::Auto => Balance::Auto,
                BalanceName::Kernel => Balance::Kernel,
                BalanceName::LeastConnections => Balance::LeastConnections,
            },
            timeout: cli.timeout,
            timeouts,
            loop_limits,
            connections_max: cli.max_connections.map(|max| usize::try_from(max).unwrap_or(usize::MAX)),
            keep_alive: false,
            files_max: 0,
            http: HttpOptions {
                keep_alive_header: cli.keep_alive_header,
                requests_max: cli.max_requests,
                allowed_hosts: cli.allow_hosts.clone(),
                buffered_bytes_max: cli.max_buffered,
            },
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
            headers_max: self.max_headers.into(),
            target_bytes_max: self.max_target,
            body_bytes_max: self.max_body,
            ..Limits::default()
        }
    }

    fn into_command(self) -> Command {
        let limits = self.limits();
        let body = match self.command {
            Some(CommandName::Whoami) => return Command::Whoami { limits },
            Some(CommandName::Files(args)) => return args.command(limits),
            Some(CommandName::Echo) => return Command::Echo,
            Some(CommandName::Chat(args)) => return Command::Chat(args.bounds(self.max_queue)),
            Some(CommandName::Http(args)) => args.body,
            // Client commands after server options have already been rejected.
            None | Some(_) => None,
        };
        Command::Http { body: body.or(self.http.body).unwrap_or_else(|| DEFAULT_BODY.to_owned()), limits }
    }
}

/// Splits text into a number and the unit after it, which may be empty.
fn split_unit(text: &str) -> Result<(u64, &str), String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    match number.parse() {
        Ok(number) => Ok((number, unit.trim())),
        Err(_) => Err("must start with a number".into()),
    }
}

/// Parses the value of `--access-log`.
fn log_target(text: &str) -> Result<LogTarget, String> {
    match text {
        "" => Err("missing file name; use - for stdout, off to disable".into()),
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
            return Err(format!("missing unit; use {number}s, {number}ms, {number}m or {number}h"));
        }
        _ => return Err("unknown unit; use ms, s, m or h".into()),
    };
    match number.checked_mul(millis) {
        Some(0) => Err("must be greater than zero, e.g. 500ms".into()),
        Some(millis) if millis <= 366 * 24 * 3_600_000 => Ok(Duration::from_millis(millis)),
        _ => Err("must be at most one year".into()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err("unknown unit; use KiB, MiB or GiB".into()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| "too large".into())
}

fn head_size(text: &str) -> Result<usize, String> {
    match usize::try_from(size(text)?) {
        Ok(bytes) if (256..=HEAD_BYTES_MAX).contains(&bytes) => Ok(bytes),
        _ => Err("must be between 256 bytes and 64KiB".into()),
    }
}

fn queue_size(text: &str) -> Result<usize, String> {
    match usize::try_from(size(text)?) {
        Ok(bytes @ 1024..=0x4000_0000) => Ok(bytes),
        _ => Err("must be between 1KiB and 1GiB".into()),
    }
}

fn buffered_size(text: &str) -> Result<usize, String> {
    match usize::try_from(size(text)?) {
        Ok(bytes @ 0x10_0000..) => Ok(bytes),
        _ => Err("must be at least 1MiB".into()),
    }
}

fn turn_size(text: &str) -> Result<usize, String> {
    match usize::try_from(size(text)?) {
        Ok(bytes @ 4096..=0x100_0000) => Ok(bytes),
        _ => Err("must be between 4KiB and 16MiB".into()),
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

    fn usage_error(line: &str) -> String {
        let error = try_parse_from(line.split(' ')).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        error.to_string()
    }

    #[test]
    fn the_clap_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_apply_without_options() {
        let (config, command) = parsed("serverd");
        assert_eq!((config.host.as_str(), config.port, config.workers), ("127.0.0.1", 8888, 1));
        assert_eq!(config.backend, Backend::Auto);
        assert_eq!(config.timeout, None);
        assert_eq!(config.timeouts.idle, Some(Duration::from_secs(75)));
        assert_eq!(command, Command::Http { body: DEFAULT_BODY.into(), limits: Limits::default() });
    }

    #[test]
    fn global_options_may_precede_or_follow_the_command() {
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
        assert!(usage_error("serverd --timeout 5").contains("use 5s"));
        assert!(usage_error("serverd --timeout 0s").contains("greater than zero"));
        assert!(usage_error("serverd --timeout 5y").contains("unknown unit"));
        assert!(usage_error("serverd --max-head 65KiB").contains("and 64KiB"));
        assert!(usage_error("serverd --max-body x").contains("start with a number"));
    }

    #[test]
    fn invalid_values_are_usage_errors() {
        for line in [
            "serverd -v -q",
            "serverd --port 65536",
            "serverd nothing",
            "serverd --workers 2000",
            "serverd --backend poll",
        ] {
            usage_error(line);
        }
    }

    #[test]
    fn every_option_has_an_environment_variable() {
        let cli = Cli::command();
        let subcommands = ["chat", "files"].into_iter().filter_map(|name| cli.find_subcommand(name));
        for option in subcommands.flat_map(clap::Command::get_arguments).chain(cli.get_arguments()) {
            let Some(long) = option.get_long() else {
                continue;
            };
            let expected = format!("SERVERD_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(option.get_env().and_then(|name| name.to_str()), Some(expected.as_str()));
        }
    }

    #[test]
    fn former_option_names_are_still_accepted() {
        let (config, command) = parsed("serverd --spread fewest --max-fields 7");
        assert_eq!(config.balance, Balance::LeastConnections);
        assert!(matches!(command, Command::Http { limits, .. } if limits.headers_max == 7));
        let (config, _) = parsed("serverd --balance least-connections");
        assert_eq!(config.balance, Balance::LeastConnections);
    }
}
