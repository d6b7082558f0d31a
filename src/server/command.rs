//! The applications of the binary, each by its name, on the workers that were asked for.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

#[cfg(feature = "files")]
use super::files::{self, Site};
use super::{Config, Failure, Logging, Started, count_workers};
use crate::apps::{Chat, Echo, Fixed, Whoami, chat};
use crate::http1::Limits;
use crate::httpserver::{AccessLog, Handler, HttpServer};

/// What is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// One text for every path.
    Http {
        /// The text.
        body: String,
        /// What a request may cost.
        limits: Limits,
    },
    /// Each request, told to who sent it.
    Whoami {
        /// What a request may cost.
        limits: Limits,
    },
    /// A directory.
    #[cfg(feature = "files")]
    Files(Box<Site>),
    /// Every byte back, over TCP.
    Echo,
    /// Rooms of people who type lines.
    Chat(chat::Bounds),
}

/// Runs a server as [`Config::serve`] does, with an application of the binary. Prints one line on stdout once
/// connections are accepted; what an access log writes there comes behind it.
///
/// # Errors
/// As [`Config::serve`].
pub fn run(config: &Config, command: &Command, logging: &Logging) -> Result<(), Failure> {
    let mut config = config.clone();
    if !matches!(command, Command::Echo | Command::Chat(_)) {
        config.access_log = logging.open()?;
    }
    let log = config.access_log.clone();
    let announce = |what: &str, started| announce(what, started, log.as_ref());
    match command.clone() {
        Command::Http { body, limits } => {
            // The text of the process, which lives as long as that: shared bytes would count their users with every answer.
            let text: &'static str = Box::leak(body.into_boxed_str());
            let make = http(&config, limits, move |_| Fixed::new(text));
            config.serve_and(make, |started| announce("listening on http", started))
        }
        Command::Whoami { limits } => {
            let body_bytes_max = limits.body_bytes_max;
            let make = http(&config, limits, move |worker| Whoami::new(worker, body_bytes_max));
            config.serve_and(make, |started| announce("whoami on http", started))
        }
        #[cfg(feature = "files")]
        Command::Files(site) => files::run(config, &site),
        Command::Echo => {
            Echo::bound(&mut config.loop_limits);
            config.serve_and(|_| Echo, |started| announce("echo on tcp", started))
        }
        Command::Chat(bounds) => {
            // People are silent for hours; a peer that is gone without a word is found all the same.
            config.keep_alive = true;
            let parts = Mutex::new(Chat::shared(bounds, count_workers(config.workers)));
            // Each worker takes one; which one does not matter.
            let make =
                move |_| parts.lock().unwrap_or_else(PoisonError::into_inner).pop().expect("one for each worker");
            config.serve_and(make, |started| announce("chat on tcp", started))
        }
    }
}

/// Makes each worker a server over a handler.
pub(super) fn http<H: Handler + 'static>(
    config: &Config,
    limits: Limits,
    make: impl Fn(usize) -> H + Send + Sync + 'static,
) -> impl Fn(usize) -> HttpServer<H> + Send + Sync + 'static {
    let log = config.access_log.clone();
    move |worker| HttpServer::with(make(worker)).limits(limits.clone()).access_log(log.as_ref())
}

/// Prints the start line; what an access log has for standard output comes behind it.
pub(super) fn announce(what: &str, started: Started, log: Option<&AccessLog>) {
    let Started { local, backend, workers } = started;
    let plural = if workers == 1 { "" } else { "s" };
    let mut out = io::stdout().lock();
    let line = writeln!(out, "serverd: {what}://{local} ({backend}, {workers} worker{plural})");
    // A closed stdout is no reason not to serve.
    if let Err(error) = line.and_then(|()| out.flush()) {
        log::warn!("cannot print the start line: {error}");
    }
    if let Some(log) = log {
        log.release();
    }
}
