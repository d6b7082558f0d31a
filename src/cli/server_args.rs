//! The server commands and their options, and the configuration that they describe.

use std::cmp::Ordering;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use log::LevelFilter;

use super::app_args::{self, CHAT_EXAMPLES, ChatArgs, FILES_EXAMPLE, FILES_EXAMPLES, FilesArgs};
use super::values::{
    LogFormatValue, allowed_host, buffered_size, duration, head_size, header_name, host, hsts, log_format, log_skip,
    log_target, port, queue_size, size, tls_version, turn_size, url_path, workers,
};
use crate::http1::Limits;
use crate::httpserver::ClientIpHeader;
use crate::r#loop::{LoopLimits, Networks, ProxyMode, Timeouts};
use crate::server::{AdminAddress, Backend, Balance, Command, Config, HttpOptions, LogTarget, Logging, TlsConfig};
use crate::tls::{ClientAuth, TlsVersion};

/// The response body of `serverd http`, unless `--body` is given.
pub(super) const DEFAULT_BODY: &str = "this is response from server";

/// Default keep-alive timeout, the same as nginx's.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(75);

const ABOUT: &str = "HTTP and TCP servers on a readiness loop (epoll, kqueue or select)";

const LONG_ABOUT: &str = "\
HTTP and TCP servers on a readiness loop (epoll, kqueue or select).

The default command is http. The options below apply to all server commands (http, whoami, files, echo and chat) and \
may be given before or after the command; echo and chat ignore those that concern HTTP. files and chat have further \
options. The other commands (check, connect, hash and cert) have only their own options. See `serverd COMMAND --help`.

TIME is a number with a unit: 500ms, 1.5s, 5m, 1m30s, 1h or 1d. SIZE is a number of bytes, optionally with a \
unit: 64KiB, 10MiB or 1GiB. A number in parentheses, such as (431), is the HTTP status code returned when the limit is exceeded.";

/// The last line of `serverd -h`.
const EXAMPLE: &str = "Example: serverd files public --host :: --port 80";

const EXAMPLES: &str = "\
Examples:
  serverd                                     Respond to HTTP requests on 127.0.0.1:8888
  serverd --host :: --port 80 --workers auto  Listen on all addresses, one worker per core
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
  SIGINT, SIGTERM, SIGQUIT   Shut down gracefully, finishing in-flight requests; a second one exits at once
  SIGHUP, SIGUSR1            Reopen the access log, and read the TLS certificates again
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

/// The use of queries in the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogQuery {
    /// Queries are logged
    Keep,
    /// Queries are omitted, also those in Referer
    Drop,
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
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<CommandName>,

    // `http` is the default command, so its option is also accepted without a command.
    #[command(flatten)]
    http: HttpArgs,

    /// Port to listen on; 0 picks a free port
    ///
    /// The line printed to stdout at start-up contains the actual port. The environment variable PORT, which hosting
    /// platforms set, has the lowest precedence.
    #[arg(short, long, global = true, value_name = "PORT", default_value_t = 8888, value_parser = port)]
    #[arg(help_heading = "Network")]
    port: u16,

    /// Address or host name to listen on
    ///
    /// Use :: for all IPv4 and IPv6 addresses, 0.0.0.0 for all IPv4 addresses. A name means all of its addresses that
    /// can be bound.
    #[arg(long, aliases = ["address", "bind", "interface"], global = true, value_name = "ADDR")]
    #[arg(default_value = "127.0.0.1", value_parser = host, help_heading = "Network")]
    host: String,

    /// Number of worker threads (event loops); auto for one per core
    #[arg(short, long, alias = "threads", global = true, value_name = "N", default_value = "1")]
    #[arg(value_parser = workers, hide_short_help = true, help_heading = "Network")]
    workers: u16,

    /// Load balancing of connections across workers
    #[arg(long, alias = "spread", global = true, value_enum, default_value_t = Balance::Auto)]
    #[arg(value_name = "METHOD")]
    #[arg(hide_short_help = true, help_heading = "Network")]
    balance: Balance,

    /// Maximum length of the listen queue (backlog), where connections wait to be accepted
    ///
    /// The system may impose a lower limit (net.core.somaxconn on Linux).
    #[arg(long, global = true, value_name = "N", default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_535))]
    #[arg(hide_short_help = true, help_heading = "Network")]
    backlog: u32,

    /// Encrypt all connections with TLS, using a self-signed certificate unless --tls-cert is given
    ///
    /// The certificate is valid for the names and addresses of the listener, and lasts until the server ends; its
    /// SHA-256 fingerprint is part of the line printed at start-up. Clients accept it only if they are configured to,
    /// for example with `curl -k`.
    #[arg(long, global = true, hide_short_help = true, help_heading = "TLS")]
    tls: bool,

    /// Serve TLS with the certificate chain in FILE (PEM); repeatable, in pairs with --tls-key
    ///
    /// The server's own certificate comes first, then the intermediate certificates. With several, a client gets the
    /// one for the host name that it asks for (SNI), or one with a matching wildcard, or else the first. The files are
    /// read again on SIGHUP and when they change (on Linux within a second, otherwise within a minute); if they cannot be
    /// used, the previous certificates stay in use. A request whose host has another certificate than its connection gets
    /// 421. In the environment variable, files are separated by commas.
    #[arg(long = "tls-cert", global = true, value_name = "FILE", value_delimiter = ',')]
    #[arg(hide_short_help = true, help_heading = "TLS")]
    tls_certs: Vec<PathBuf>,

    /// Private key of the --tls-cert at the same position (PEM: PKCS#8, SEC1 or PKCS#1)
    #[arg(long = "tls-key", global = true, value_name = "FILE", value_delimiter = ',')]
    #[arg(hide_short_help = true, help_heading = "TLS")]
    tls_keys: Vec<PathBuf>,

    /// Oldest accepted version of TLS: 1.2 or 1.3 [default: 1.2]
    #[arg(long, global = true, value_name = "VERSION", value_parser = tls_version)]
    #[arg(hide_short_help = true, help_heading = "TLS")]
    tls_min_version: Option<TlsVersion>,

    /// Accept only clients with a certificate that an authority in FILE (PEM) has issued (mutual TLS)
    ///
    /// The subject and the SHA-256 fingerprint of the certificate are part of the access log (combined and json) and of
    /// the responses of whoami. The file is read again together with the server's certificates; sessions from before a
    /// change cannot be resumed.
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true, help_heading = "TLS")]
    tls_client_ca: Option<PathBuf>,

    /// Require a client certificate or make it optional, with --tls-client-ca [default: required]
    #[arg(long, global = true, value_enum, value_name = "WHEN", hide_short_help = true, help_heading = "TLS")]
    tls_client_auth: Option<ClientAuth>,

    /// Also accept plain HTTP on PORT, and redirect it to https with 308
    ///
    /// The redirect leads to the host that was requested. The listener has the same addresses and limits as the one
    /// with TLS. 0 picks a free port.
    #[arg(long, global = true, value_name = "PORT")]
    #[arg(hide_short_help = true, help_heading = "TLS")]
    https_redirect: Option<u16>,

    /// Port in the URLs of redirects to https [default: the port of TLS]
    ///
    /// For port mappings: a container whose port 8443 is published as 443 redirects with --https-port 443. Port 443 is
    /// omitted from the URL.
    #[arg(long, global = true, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    #[arg(hide_short_help = true, help_heading = "TLS")]
    https_port: Option<u16>,

    /// Serve /.well-known/acme-challenge/ from DIR over plain HTTP, without a redirect
    ///
    /// For certbot (--webroot -w DIR), lego (--http.webroot DIR) and other ACME clients, which prove with a file there
    /// that the host name is yours. Needs --https-redirect, usually with port 80. DIR must exist; the client creates
    /// the directories below it.
    #[arg(long, global = true, value_name = "DIR")]
    #[arg(hide_short_help = true, help_heading = "TLS")]
    acme_webroot: Option<PathBuf>,

    /// Make browsers use https for this host for TIME (Strict-Transport-Security)
    ///
    /// The header is part of every HTTP response over TLS, and browsers remember it for TIME after the last one. Try a
    /// short TIME first: while it lasts, browsers cannot open the site over plain HTTP or with an invalid certificate.
    /// 0s makes them forget it.
    #[arg(long, global = true, value_name = "TIME", value_parser = hsts)]
    #[arg(hide_short_help = true, help_heading = "TLS")]
    hsts: Option<Duration>,

    /// Trust these proxies to name the client of a request: CIDR networks, loopback, private or unix, separated by
    /// commas
    ///
    /// The client's address then comes from the header of --client-ip-header, read from the right past trusted proxies,
    /// and its scheme from X-Forwarded-Proto. It is used in the access log, and for limits that depend on the client.
    /// Such headers from other peers are ignored. The proxies must not pass on headers that their clients send. Trusted
    /// proxies are exempt from --max-connections-per-address.
    #[arg(long, global = true, value_name = "CIDR,...", hide_short_help = true, help_heading = "Proxies")]
    trusted_proxies: Option<Networks>,

    /// Header with which trusted proxies name the client
    #[arg(long, global = true, value_enum, value_name = "HEADER", default_value_t = ClientIpHeader::XForwardedFor)]
    #[arg(hide_short_help = true, help_heading = "Proxies")]
    client_ip_header: ClientIpHeader,

    /// Accept the PROXY protocol (versions 1 and 2) from trusted proxies
    ///
    /// The client's address is then that of the header, which precedes TLS. X-Forwarded-For and similar headers are
    /// used only if that address is also that of a trusted proxy. With required, connections of other peers are closed.
    /// With optional, they have no header, and the server sends nothing to a trusted proxy before its first byte. Needs
    /// --trusted-proxies.
    #[arg(long, global = true, value_enum, value_name = "MODE", default_value_t = ProxyMode::Off)]
    #[arg(hide_short_help = true, help_heading = "Proxies")]
    proxy_protocol: ProxyMode,

    /// Upper bound for all timeouts below, except --drain-timeout [default: none]
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    #[arg(hide_short_help = true, help_heading = "Timeouts")]
    timeout: Option<Duration>,

    /// Close a new connection that sends nothing within TIME [default: --head-timeout; 10m for chat]
    ///
    /// For chat, TIME runs until the first line. For echo, see --idle-timeout. Behind a load balancer that opens
    /// connections ahead of use, TIME should be longer than the balancer keeps them.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    #[arg(hide_short_help = true, help_heading = "Timeouts")]
    silent_timeout: Option<Duration>,

    /// Maximum time to receive a request head (408)
    ///
    /// The time runs from the first byte of the request line to the end of the headers. Progress does not extend it, so
    /// slow clients cannot hold connections open (slowloris). When it expires, the response is 408 Request Timeout.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "10s")]
    #[arg(hide_short_help = true, help_heading = "Timeouts")]
    head_timeout: Duration,

    /// Close an idle keep-alive connection after TIME [default: 75s; none for echo and chat]
    ///
    /// For HTTP, TIME runs from the end of a response to the next request; for echo and chat, it runs while the client
    /// sends nothing.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    #[arg(hide_short_help = true, help_heading = "Timeouts")]
    idle_timeout: Option<Duration>,

    /// Announce --idle-timeout to HTTP clients (Keep-Alive: timeout=N)
    ///
    /// Clients and load balancers that honor the header do not send a request on a connection that is about to be
    /// closed.
    #[arg(long, global = true, hide_short_help = true, help_heading = "Timeouts")]
    keep_alive_header: bool,

    /// Longest pause of an upload
    ///
    /// A body starts with a balance of 5s. Each byte adds the time that it takes at --body-rate, up to TIME, and time
    /// reduces the balance while the server waits for the body. At zero the response is 408 Request Timeout.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "30s")]
    #[arg(hide_short_help = true, help_heading = "Timeouts")]
    body_timeout: Duration,

    /// Minimum upload rate in bytes per second (408 below it)
    ///
    /// See --body-timeout.
    #[arg(long, global = true, value_name = "N", default_value_t = 240)]
    #[arg(hide_short_help = true, help_heading = "Timeouts")]
    body_rate: u32,

    /// Reset a connection if the client receives no response data for TIME
    ///
    /// Every byte that the client acknowledges restarts the timer, so slow downloads are not cut off.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "60s")]
    #[arg(hide_short_help = true, help_heading = "Timeouts")]
    write_timeout: Duration,

    /// After an error response, close a connection that sends nothing for TIME
    ///
    /// Closing a connection with unread input resets it, which can destroy the response before the client has read it.
    /// The server therefore discards input until the client closes (lingering close, RFC 9112 section 9.6). See also
    /// --linger-total and --max-linger.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "5s")]
    #[arg(hide_short_help = true, help_heading = "Timeouts")]
    linger_timeout: Duration,

    /// Maximum time to discard input after an error response
    ///
    /// See --linger-timeout.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "30s")]
    #[arg(hide_short_help = true, help_heading = "Timeouts")]
    linger_total: Duration,

    /// Maximum time for graceful shutdown
    ///
    /// In-flight requests have TIME to finish; then the remaining connections are closed. Not bounded by --timeout.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "30s")]
    #[arg(hide_short_help = true, help_heading = "Timeouts")]
    drain_timeout: Duration,

    /// Maximum number of open connections; idle ones are closed for new ones
    ///
    /// At the limit, or out of file descriptors, the connection that has been idle longest is closed for a new one. If
    /// all are busy, new connections wait in the listen queue.
    ///
    /// [default: the file descriptor limit less a reserve, at most 1000000]
    #[arg(long, global = true, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(hide_short_help = true, help_heading = "Limits")]
    max_connections: Option<u32>,

    /// Maximum number of open connections per client address; 0 for no limit
    ///
    /// Further connections are reset at once. IPv6 addresses are counted by /64 network. Behind a proxy, whose address
    /// all connections have, see --trusted-proxies.
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    #[arg(hide_short_help = true, help_heading = "Limits")]
    max_connections_per_address: u32,

    /// Close an HTTP connection after N requests; 0 for no limit
    #[arg(long, global = true, value_name = "N", default_value_t = 0, hide_short_help = true, help_heading = "Limits")]
    max_requests: u32,

    /// Answer HTTP requests for other hosts with 421 (repeatable) [default: all hosts]
    ///
    /// Protects a server on a private address from web pages that let their own name resolve to it (DNS rebinding).
    /// NAME is compared with the Host header without port; case does not matter, and .example.com covers example.com
    /// and all subdomains. In the environment variable, names are separated by commas.
    #[arg(long = "allow-host", global = true, value_name = "NAME", value_delimiter = ',', value_parser = allowed_host)]
    #[arg(hide_short_help = true, help_heading = "Network")]
    allow_hosts: Vec<String>,

    /// Maximum size of the request line and headers together (431)
    ///
    /// SIZE can be at most 64KiB.
    #[arg(long, global = true, value_name = "SIZE", value_parser = head_size, default_value = "64KiB")]
    #[arg(hide_short_help = true, help_heading = "Limits")]
    max_head: usize,

    /// Maximum number of request headers (431)
    #[arg(long, alias = "max-fields", global = true, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=10_000))]
    #[arg(hide_short_help = true, help_heading = "Limits")]
    max_headers: u16,

    /// Maximum size of the request target, i.e. path and query (414)
    #[arg(long, global = true, value_name = "SIZE", value_parser = head_size, default_value = "8KiB")]
    #[arg(hide_short_help = true, help_heading = "Limits")]
    max_target: usize,

    /// Maximum size of a request body (413)
    #[arg(long, global = true, value_name = "SIZE", value_parser = size, default_value = "1MiB")]
    #[arg(hide_short_help = true, help_heading = "Limits")]
    max_body: u64,

    /// Maximum memory for request bodies, across all connections (503)
    ///
    /// At the limit, reading from clients pauses; after 5 s the upload with the least progress gets 503 Service
    /// Unavailable. Bodies of up to 16KiB come from a reserve, an eighth of SIZE. Incomplete request heads and unsent
    /// responses have a limit of the same size: above it, clients that stall are disconnected.
    #[arg(long, global = true, value_name = "SIZE", value_parser = buffered_size, default_value = "256MiB")]
    #[arg(hide_short_help = true, help_heading = "Limits")]
    max_buffered: usize,

    /// Unsent response bytes at which reading from a client pauses (back-pressure)
    ///
    /// Reading resumes when half of SIZE is left to send. `serverd echo` uses at most 64KiB. With `serverd chat`, a
    /// member with more than SIZE of unsent output misses the oldest lines.
    #[arg(long, global = true, value_name = "SIZE", value_parser = queue_size, default_value = "256KiB")]
    #[arg(hide_short_help = true, help_heading = "Limits")]
    max_queue: usize,

    /// Maximum bytes of input discarded after an error response
    ///
    /// See --linger-timeout.
    #[arg(long, global = true, value_name = "SIZE", value_parser = size, default_value = "1GiB")]
    #[arg(hide_short_help = true, help_heading = "Limits")]
    max_linger: u64,

    /// I/O readiness API to use
    #[arg(short, long, global = true, value_enum, default_value_t = Backend::Auto)]
    #[arg(hide_short_help = true, help_heading = "Event loop")]
    backend: Backend,

    /// Maximum bytes read from one connection per loop iteration
    ///
    /// Smaller values are fairer to other connections, larger ones increase throughput.
    #[arg(long, global = true, value_name = "SIZE", value_parser = turn_size, default_value = "64KiB")]
    #[arg(hide_short_help = true, help_heading = "Event loop")]
    turn_read: usize,

    /// Maximum bytes written to one connection per loop iteration
    #[arg(long, global = true, value_name = "SIZE", value_parser = turn_size, default_value = "256KiB")]
    #[arg(hide_short_help = true, help_heading = "Event loop")]
    turn_write: usize,

    /// Maximum connections accepted from a listener per loop iteration
    #[arg(long, global = true, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    #[arg(hide_short_help = true, help_heading = "Event loop")]
    turn_accepts: u16,

    /// Write an HTTP access log to FILE; - for stdout, syslog for the local syslog service, off to disable
    ///
    /// SIGHUP and SIGUSR1 reopen FILE, for log rotation. syslog:unix:PATH and syslog:udp:HOST:PORT are other syslog
    /// services; each line is a message of RFC 5424, with facility local7 and severity info.
    ///
    /// [default: stdout if it is a terminal, else off]
    #[arg(long, global = true, value_name = "FILE", value_parser = log_target)]
    #[arg(hide_short_help = true, help_heading = "Logging")]
    access_log: Option<LogTarget>,

    /// Format of the access log: short, combined, json or a template [default: short on a terminal, else combined]
    ///
    /// A template contains variables like those of nginx, such as '$remote_addr "$request" $status $request_time'. In a
    /// template that begins with {, values are escaped for JSON strings. docs/OPERATIONS.md lists the variables and the
    /// members of JSON.
    #[arg(long, global = true, value_name = "FORMAT", value_parser = log_format)]
    #[arg(hide_short_help = true, help_heading = "Logging")]
    #[allow(clippy::doc_markdown, reason = "a help text")]
    log_format: Option<LogFormatValue>,

    /// Do not log requests for paths that match GLOB, or from clients in CIDR (repeatable)
    ///
    /// GLOB begins with / or *, and each * matches any text: /healthz, /static/*, *.png. In the environment variable,
    /// values are separated by commas.
    #[arg(long, global = true, value_name = "GLOB|CIDR", value_delimiter = ',', value_parser = log_skip)]
    #[arg(hide_short_help = true, help_heading = "Logging")]
    log_skip: Vec<String>,

    /// Keep queries in the access log or drop them, since they may contain secrets
    #[arg(long, global = true, value_enum, value_name = "WHAT", default_value_t = LogQuery::Keep)]
    #[arg(hide_short_help = true, help_heading = "Logging")]
    log_query: LogQuery,

    /// Log one in N requests, and every request with an error status
    #[arg(long, global = true, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(hide_short_help = true, help_heading = "Logging")]
    log_sample: u32,

    /// Assign an id to each HTTP request, and return it in HEADER of the response, such as X-Request-Id
    ///
    /// An id that a trusted proxy sends in the same header is kept. The access log contains the id in JSON, and as
    /// $request_id.
    #[arg(long, global = true, value_name = "HEADER", value_parser = header_name)]
    #[arg(hide_short_help = true, help_heading = "Logging")]
    #[allow(clippy::doc_markdown, reason = "a help text")]
    request_id: Option<http::HeaderName>,

    /// Serve health and metrics on ADDR:PORT or unix:PATH, on a thread of their own
    ///
    /// GET /livez is 503 if a worker is stuck. /readyz is 503 while the server starts or shuts down, or if the
    /// directory to serve is gone; /readyz?verbose lists the conditions. /metrics has the Prometheus format, and
    /// /version is the version. The host in requests must be an IP address, localhost or a name of --allow-host. Only
    /// the user that runs the server can connect to a Unix socket.
    #[arg(long, global = true, value_name = "ADDRESS", hide_short_help = true, help_heading = "Monitoring")]
    admin: Option<AdminAddress>,

    /// Answer GET PATH with 200, or with 503 during a shutdown, for the health checks of load balancers
    ///
    /// This shadows a file of that name. Such requests need no password, may be for any host, and are not logged.
    #[arg(long, global = true, value_name = "PATH", value_parser = url_path)]
    #[arg(hide_short_help = true, help_heading = "Monitoring")]
    health_path: Option<String>,

    /// Log more to stderr: -v logs closed connections, -vv everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    #[arg(hide_short_help = true, help_heading = "Logging")]
    pub(super) verbose: u8,

    /// Log only errors to stderr; no access log unless --access-log is given
    #[arg(short, long, global = true)]
    #[arg(hide_short_help = true, help_heading = "Logging")]
    pub(super) quiet: bool,

    /// Color the log output
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    #[arg(hide_short_help = true, help_heading = "Logging")]
    pub(super) color: Color,
}

#[derive(Debug, Subcommand)]
pub(super) enum CommandName {
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
    /// followed only with --follow-symlinks. If DIR contains 404.html, 403.html, 500.html, 503.html or 50x.html (for
    /// 500 and 503), browsers get that page in place of the plain error message.
    #[command(after_help = FILES_EXAMPLE, after_long_help = format!("{FILES_EXAMPLES}\n\n{EXIT_CODES}"))]
    Files(FilesArgs),
    /// Run a TCP echo server
    #[command(after_help = ECHO_EXAMPLES, after_long_help = format!("{ECHO_EXAMPLES}\n\n{EXIT_CODES}"))]
    Echo,
    /// Run a TCP chat server with rooms, for netcat and telnet
    ///
    /// In the chat, type /help for a list of commands. A member that sends more than its budget (--byte-rate,
    /// --line-rate) is not read for a while. A member that is slower than its room misses the oldest lines beyond
    /// --max-queue, and is disconnected if it accepts nothing for --write-timeout. Members that have sent a line stay
    /// connected unless --idle-timeout is given. TCP keep-alive detects dead peers with 4 probes, 15 seconds apart,
    /// after 45 seconds of silence.
    ///
    /// If stdin is a terminal, lines typed there while the server runs in the foreground are sent to all members; type
    /// /help for the commands that list, disconnect, mute and ban members.
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
    /// Create a certificate for --tls-cert, signed by a local authority
    #[command(disable_help_flag = true)]
    Cert(TrailingArgs),
}

/// The arguments of a client command that was found after server options, which is a usage error.
#[derive(Debug, Args)]
pub(super) struct TrailingArgs {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct HttpArgs {
    /// Response body of the http command [default: "this is response from server"]
    #[arg(long, value_name = "TEXT")]
    pub(super) body: Option<String>,
}

impl Cli {
    /// Returns whether the command is one of the client commands, which accept no server options and must come first.
    pub(super) fn is_client(&self) -> bool {
        let client = |command: &CommandName| {
            matches!(
                command,
                CommandName::Check(_) | CommandName::Connect(_) | CommandName::Hash(_) | CommandName::Cert(_)
            )
        };
        self.command.as_ref().is_some_and(client)
    }

    pub(super) fn log_level(&self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::Error,
            (false, 0) => LevelFilter::Warn,
            (false, 1) => LevelFilter::Debug,
            (false, _) => LevelFilter::Trace,
        }
    }

    pub(super) fn config(&self) -> Config {
        let cli = self;
        let timeouts = Timeouts {
            silent: Some(cli.silent_timeout.unwrap_or(cli.default_silent_timeout())),
            head: Some(cli.head_timeout),
            body: Some(cli.body_timeout),
            body_rate: cli.body_rate,
            idle: Some(cli.idle_timeout.unwrap_or(DEFAULT_IDLE_TIMEOUT)),
            open: cli.idle_timeout,
            write: Some(cli.write_timeout),
            linger: Some(cli.linger_timeout),
            linger_total: Some(cli.linger_total),
            ..Timeouts::default()
        };
        let loop_limits = LoopLimits {
            read_bytes_per_turn: cli.turn_read,
            write_bytes_per_turn: cli.turn_write,
            accepts_per_turn: cli.turn_accepts.into(),
            output_bytes_max: cli.max_queue,
            output_resume_bytes: cli.max_queue / 2,
            buffered_bytes_max: cli.max_buffered,
            linger_bytes_max: cli.max_linger,
            backlog: cli.backlog,
            connections_per_address_max: usize::try_from(cli.max_connections_per_address).unwrap_or(usize::MAX),
            drain: cli.drain_timeout,
            ..LoopLimits::default()
        };
        Config {
            host: cli.host.clone(),
            port: cli.port,
            backend: cli.backend,
            workers: cli.workers.into(),
            balance: cli.balance,
            timeout: cli.timeout,
            timeouts,
            loop_limits,
            connections_max: cli.max_connections.map(|max| usize::try_from(max).unwrap_or(usize::MAX)),
            files_max: 0,
            proxy_protocol: cli.proxy_protocol,
            trusted_proxies: cli.trusted_proxies.clone().unwrap_or_default(),
            http: HttpOptions {
                keep_alive_header: cli.keep_alive_header,
                requests_max: cli.max_requests,
                allowed_hosts: cli.allow_hosts.clone(),
                buffered_bytes_max: cli.max_buffered,
                hsts: cli.hsts,
                acme_webroot: cli.acme_webroot.clone(),
                https_port: cli.https_port,
                client_ip_header: cli.client_ip_header,
                request_id: cli.request_id.clone(),
                health_path: cli.health_path.clone(),
            },
            admin: cli.admin.clone(),
            ready_check: None,
            metrics: None,
            file_caches: Vec::new(),
            auth_metrics: Vec::new(),
            access_log: None,
            tls: cli.tls_config(),
            on_reload: None,
        }
    }

    fn tls_config(&self) -> Option<TlsConfig> {
        let pairs = self.tls_certs.iter().cloned().zip(self.tls_keys.iter().cloned());
        let config = TlsConfig::from_files(pairs)
            .version_min(self.tls_min_version.unwrap_or(TlsVersion::Tls12))
            .client_ca(self.tls_client_ca.clone())
            .client_auth(self.tls_client_auth.unwrap_or_default())
            .plain_port(self.https_redirect);
        (self.tls || !config.files.is_empty()).then_some(config)
    }

    /// Returns an error message if an option of TLS lacks another, or the numbers of certificates and private keys
    /// differ.
    pub(super) fn check_tls(&self) -> Result<(), &'static str> {
        if self.tls_client_ca.is_none() && self.tls_client_auth.is_some() {
            return Err(
                "--tls-client-auth needs --tls-client-ca, the authorities that issue the certificates of clients",
            );
        }
        if self.tls_client_ca.is_some() && !self.tls && self.tls_certs.is_empty() {
            return Err("--tls-client-ca needs --tls or --tls-cert");
        }
        match self.tls_certs.len().cmp(&self.tls_keys.len()) {
            Ordering::Greater => return Err("each --tls-cert needs the --tls-key of its private key"),
            Ordering::Less => return Err("each --tls-key needs the --tls-cert that it belongs to"),
            Ordering::Equal => {}
        }
        let has_tls = self.tls || !self.tls_certs.is_empty();
        if self.tls_min_version.is_some() && !has_tls {
            return Err("--tls-min-version needs TLS; add --tls, or --tls-cert and --tls-key");
        }
        match self.https_redirect {
            Some(_) if !has_tls => Err("--https-redirect needs TLS; add --tls, or --tls-cert and --tls-key"),
            Some(1..) if self.https_redirect == Some(self.port) => Err("--https-redirect must differ from --port"),
            None if self.https_port.is_some() => Err("--https-port needs --https-redirect, whose URL it is part of"),
            None if self.acme_webroot.is_some() => Err("--acme-webroot needs --https-redirect, usually with port 80"),
            _ if self.hsts.is_some() && !has_tls => Err("--hsts needs TLS; add --tls, or --tls-cert and --tls-key"),
            _ => Ok(()),
        }
    }

    /// Returns an error message if the PROXY protocol is to be accepted from no one.
    pub(super) fn check_proxies(&self) -> Result<(), &'static str> {
        let has_proxies = self.trusted_proxies.as_ref().is_some_and(|trusted| !trusted.is_empty());
        if self.proxy_protocol == ProxyMode::Off || has_proxies {
            return Ok(());
        }
        Err("--proxy-protocol needs --trusted-proxies, the addresses that may send the header, e.g. loopback")
    }

    fn default_silent_timeout(&self) -> Duration {
        match self.command {
            Some(CommandName::Chat(_)) => app_args::DEFAULT_SILENT_TIMEOUT,
            _ => self.head_timeout,
        }
    }

    pub(super) fn logging(&self) -> Logging {
        let default = if self.quiet { LogTarget::Off } else { LogTarget::Terminal };
        Logging {
            target: self.access_log.clone().unwrap_or(default),
            format: match &self.log_format {
                Some(LogFormatValue::Named(format)) => Some(*format),
                Some(LogFormatValue::Template(_)) | None => None,
            },
            template: match &self.log_format {
                Some(LogFormatValue::Template(template)) => Some(template.clone()),
                Some(LogFormatValue::Named(_)) | None => None,
            },
            skip: self.log_skip.clone(),
            drop_query: self.log_query == LogQuery::Drop,
            sample: self.log_sample,
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

    pub(super) fn into_command(self) -> Command {
        let limits = self.limits();
        let body = match self.command {
            Some(CommandName::Whoami) => return Command::Whoami { limits },
            Some(CommandName::Files(args)) => return args.command(limits),
            Some(CommandName::Echo) => return Command::Echo,
            Some(CommandName::Chat(args)) => return args.command(self.max_queue),
            Some(CommandName::Http(args)) => args.body,
            // Client commands after server options have already been rejected.
            None | Some(_) => None,
        };
        Command::Http { body: body.or(self.http.body).unwrap_or_else(|| DEFAULT_BODY.to_owned()), limits }
    }
}
