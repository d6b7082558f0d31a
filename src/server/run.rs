//! Runs the built-in applications of the `serverd` command.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use super::files::{self, FilesConfig};
use super::{Config, Logging, StartError, Started, worker_count};
use crate::apps::{Chat, Echo, Fixed, Whoami, chat};
use crate::http1::Limits;
use crate::httpserver::{AccessLog, BufferLimit, Handler, HttpServer};

/// A built-in application of the `serverd` command, with its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// HTTP server that returns the same text for every path.
    Http {
        /// The response text.
        body: String,
        /// Limits on the size of requests.
        limits: Limits,
    },
    /// HTTP server that echoes each request back to its sender.
    Whoami {
        /// Limits on the size of requests.
        limits: Limits,
    },
    /// HTTP server that serves the files of a directory.
    Files(Box<FilesConfig>),
    /// TCP echo server.
    Echo,
    /// TCP chat server with rooms.
    Chat(chat::Bounds),
}

/// Runs a built-in application with [`Config::serve_with`]. Prints one line to standard output once the server
/// accepts connections, before any line of an access log.
///
/// # Errors
/// Returns the errors of [`Config::serve`], and an error if the access log or the directory to serve cannot be opened.
pub fn run(config: &Config, command: &Command, logging: &Logging) -> Result<(), StartError> {
    let mut config = config.clone();
    if !matches!(command, Command::Echo | Command::Chat(_)) {
        config.access_log = logging.open()?;
    }
    let log = config.access_log.clone();
    let announce = |what: &str, started| announce(what, started, log.as_ref());
    match command.clone() {
        Command::Http { body, limits } => {
            // Leaked, since it lives as long as the process anyway; shared bytes would update a reference count with
            // every response.
            let text: &'static str = Box::leak(body.into_boxed_str());
            let make = http_server(&config, limits, move |_| Fixed::new(text));
            config.serve_with(make, |started| announce("listening on http", started))
        }
        Command::Whoami { limits } => {
            let body_bytes_max = limits.body_bytes_max;
            let make = http_server(&config, limits, move |worker| Whoami::new(worker, body_bytes_max));
            config.serve_with(make, |started| announce("whoami on http", started))
        }
        Command::Files(files_config) => files::run(config, &files_config),
        Command::Echo => {
            Echo::set_watermarks(&mut config.loop_limits);
            config.serve_with(|_| Echo, |started| announce("echo on tcp", started))
        }
        Command::Chat(bounds) => {
            // Chat clients may be idle for hours; TCP keep-alive detects dead ones.
            config.keep_alive = true;
            let instances = Mutex::new(Chat::shared(bounds, worker_count(config.workers)));
            // Each worker takes one of them, in any order.
            let make = move |_| instances.lock().unwrap_or_else(PoisonError::into_inner).pop().expect("one per worker");
            config.serve_with(make, |started| announce("chat on tcp", started))
        }
    }
}

/// Returns a function that creates the HTTP server of a worker from the handler made by `make`.
pub(super) fn http_server<H: Handler + 'static>(
    config: &Config,
    limits: Limits,
    make: impl Fn(usize) -> H + Send + Sync + 'static,
) -> impl Fn(usize) -> HttpServer<H> + Send + Sync + 'static {
    let (log, options) = (config.access_log.clone(), config.http.clone());
    let buffer_limit = BufferLimit::new(options.buffered_bytes_max);
    let idle = config.timeouts.idle.map(|idle| config.timeout.map_or(idle, |cap| cap.min(idle)));
    let idle = idle.filter(|_| options.keep_alive_header);
    move |worker| {
        HttpServer::with(make(worker))
            .limits(limits.clone())
            .access_log(log.as_ref())
            .buffer_limit(&buffer_limit)
            .keep_alive_header(idle)
            .requests_max(options.requests_max)
            .allow_hosts(&options.allowed_hosts)
    }
}

/// Prints the start line, then releases the access log, which may also write to standard output.
pub(super) fn announce(what: &str, started: Started, log: Option<&AccessLog>) {
    let Started { local_addr, backend, workers } = started;
    let plural = if workers == 1 { "" } else { "s" };
    let mut out = io::stdout().lock();
    let line = writeln!(out, "serverd: {what}://{local_addr} ({backend}, {workers} worker{plural})");
    // A closed stdout does not prevent serving.
    if let Err(error) = line.and_then(|()| out.flush()) {
        log::warn!("cannot print the start line: {error}");
    }
    if let Some(log) = log {
        log.release();
    }
}
