//! Assembly: a configuration becomes listeners, workers, loops and an application.
//!
//! Every worker is a thread with a loop, an application and a listener of its own; nothing is shared on the
//! way of a request. The kernel spreads connections over the listeners (`SO_REUSEPORT`, where it balances).

use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::apps::{Chat, Echo, Fixed, chat};
use crate::http1;
use crate::httpserver::HttpServer;
use crate::r#loop::{App, Capacity, EventLoop, Handle, Limits, Poller, Readiness, Select, Timeouts};

mod descriptors;
mod listeners;
mod signals;

/// What a server is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen: an address or a name.
    pub host: String,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// Which system call tells readiness.
    pub backend: Backend,
    /// Threads; 0 is one per core.
    pub workers: usize,
    /// Caps every phase.
    pub timeout: Option<Duration>,
    /// The limit of each phase.
    pub timeouts: Timeouts,
    /// What a request may cost.
    pub limits: http1::Limits,
    /// What each loop grants its connections. Its bound on connections does not count; the next field does.
    pub loop_limits: Limits,
    /// Connections held at once by all workers together; `None` for as many as there are descriptors, less a reserve.
    pub connections_max: Option<usize>,
    /// What to serve.
    pub command: Command,
}

/// A backend by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The best one here: epoll on Linux, select elsewhere.
    Auto,
    /// Linux epoll.
    Epoll,
    /// The select call.
    Select,
}

/// What is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// One text for every path.
    Http {
        /// The text.
        body: String,
    },
    /// Every byte back, over TCP.
    Echo,
    /// Rooms of people who type lines.
    Chat(chat::Bounds),
}

/// Why a server did not start, or ended: one sentence that says what to do.
#[derive(Debug)]
pub struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Runs a server until it is told to end by SIGINT or SIGTERM (Ctrl-C): then it stops accepting, finishes what is
/// under way and returns. A second signal ends the process at once with 128 and its number. SIGHUP does nothing, as
/// there is nothing to be read again.
///
/// Prints one line per listener on stdout once connections are accepted.
///
/// # Errors
/// One sentence that says what to do instead.
pub fn run(config: &Config) -> Result<(), Failure> {
    let backend = Chosen::from(config.backend)?;
    let workers = count_workers(config.workers)?;
    let capacity = Capacity::new(descriptors::connections_max(config.connections_max, workers));
    let listeners = listeners::bind(&config.host, config.port, workers, config.loop_limits.backlog)?;
    let local = listeners[0].local_addr().map_err(|error| failed("cannot tell the own address", &error))?;
    if matches!(config.command, Command::Chat(_)) {
        // People are silent for hours; a peer that is gone without a word is found all the same.
        listeners
            .iter()
            .try_for_each(listeners::keep_alive)
            .map_err(|error| failed("cannot set keep-alive", &error))?;
    }
    let (send, receive) = mpsc::channel();
    let parts = Part::of(&config.command, workers);
    for (number, (listener, part)) in listeners.into_iter().zip(parts).enumerate() {
        let (config, capacity, send) = (config.clone(), capacity.clone(), send.clone());
        let worker = move || {
            let ended = catch_unwind(AssertUnwindSafe(|| work(backend, &config, &capacity, part, listener, &send)))
                .unwrap_or_else(|_| Err(Failure("a worker panicked; please report this".into())));
            // Fails only when the server gave up starting.
            let _ = send.send(News::Ended(ended));
        };
        let spawned = thread::Builder::new().name(format!("worker-{number}")).spawn(worker);
        spawned.map_err(|error| failed("cannot start a thread", &error))?;
    }
    let mut handles = Vec::new();
    while handles.len() < workers {
        match receive.recv() {
            Ok(News::Started(handle)) => handles.push(handle),
            Ok(News::Ended(Err(failure))) => return Err(failure),
            Ok(News::Ended(Ok(()))) | Err(_) => return Err(Failure("a worker ended before it began".into())),
        }
    }
    let watched = handles.clone();
    signals::watch(move || watched.iter().for_each(Handle::drain))
        .map_err(|error| failed("cannot listen for signals", &error))?;
    announce(&config.command, local, backend, workers);
    wait(&receive, &handles)
}

/// What workers tell the thread that started them.
enum News {
    Started(Handle),
    Ended(Result<(), Failure>),
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure(format!("{what}: {error}"))
}

/// Waits until all workers have ended; when one fails, the others are drained.
fn wait(news: &mpsc::Receiver<News>, handles: &[Handle]) -> Result<(), Failure> {
    let mut outcome = Ok(());
    let ends = news.iter().filter_map(|news| if let News::Ended(ended) = news { Some(ended) } else { None });
    for ended in ends.take(handles.len()) {
        if let Err(failure) = &ended {
            log::error!("{failure}; the other workers drain");
            handles.iter().for_each(Handle::drain);
        }
        outcome = outcome.and(ended);
    }
    outcome
}

/// What one worker runs.
enum Part {
    Http { body: String },
    Echo,
    Chat(Chat),
}

impl Part {
    /// A part for each worker; those of a chat are one chat.
    fn of(command: &Command, workers: usize) -> Vec<Part> {
        match command {
            Command::Http { body } => (0..workers).map(|_| Part::Http { body: body.clone() }).collect(),
            Command::Echo => (0..workers).map(|_| Part::Echo).collect(),
            Command::Chat(bounds) => Chat::shared(*bounds, workers).into_iter().map(Part::Chat).collect(),
        }
    }
}

/// One worker's life.
fn work(
    backend: Chosen,
    config: &Config,
    capacity: &Capacity,
    part: Part,
    listener: TcpListener,
    send: &mpsc::Sender<News>,
) -> Result<(), Failure> {
    let mut poller = poller(backend, config, capacity, part, listener)
        .map_err(|error| failed("cannot make an event loop", &error))?;
    // Fails only when the server gave up starting.
    let _ = send.send(News::Started(poller.handle()));
    poller.run().map_err(|error| failed("the event loop failed", &error))
}

/// The one place that turns the name of a backend into a loop.
fn poller(
    backend: Chosen,
    config: &Config,
    capacity: &Capacity,
    part: Part,
    listener: TcpListener,
) -> io::Result<Box<dyn Poller>> {
    match backend {
        #[cfg(target_os = "linux")]
        Chosen::Epoll => assemble::<crate::r#loop::Epoll>(config, capacity, part, listener),
        Chosen::Select => assemble::<Select>(config, capacity, part, listener),
    }
}

fn assemble<B>(config: &Config, capacity: &Capacity, part: Part, listener: TcpListener) -> io::Result<Box<dyn Poller>>
where
    B: Readiness + 'static,
    B::Listener: From<TcpListener>,
{
    let mut timeouts = config.timeouts.clone();
    if let Some(limit) = config.timeout {
        timeouts.cap(limit);
    }
    let mut limits = config.loop_limits.clone();
    match part {
        Part::Http { body } => {
            let app = HttpServer::with(Fixed::new(body)).limits(config.limits.clone());
            boxed::<B, _>(timeouts, limits, capacity, app, listener)
        }
        Part::Echo => {
            Echo::bound(&mut limits);
            boxed::<B, _>(timeouts, limits, capacity, Echo, listener)
        }
        Part::Chat(chat) => boxed::<B, _>(timeouts, limits, capacity, chat, listener),
    }
}

fn boxed<B, A>(
    timeouts: Timeouts,
    limits: Limits,
    capacity: &Capacity,
    app: A,
    listener: TcpListener,
) -> io::Result<Box<dyn Poller>>
where
    B: Readiness + 'static,
    B::Listener: From<TcpListener>,
    A: App + 'static,
{
    let mut event_loop = EventLoop::<B, A>::with(timeouts, limits, app)?;
    event_loop.share_capacity(capacity);
    event_loop.listen(listener)?;
    Ok(Box::new(event_loop))
}

/// A backend that exists here.
#[derive(Clone, Copy, Debug)]
enum Chosen {
    #[cfg(target_os = "linux")]
    Epoll,
    Select,
}

impl Chosen {
    #[cfg(target_os = "linux")]
    #[allow(clippy::unnecessary_wraps, reason = "on other systems there is a backend to refuse")]
    fn from(backend: Backend) -> Result<Self, Failure> {
        Ok(if backend == Backend::Select { Chosen::Select } else { Chosen::Epoll })
    }

    #[cfg(not(target_os = "linux"))]
    fn from(backend: Backend) -> Result<Self, Failure> {
        if backend == Backend::Epoll {
            return Err(Failure("epoll is for Linux; use --backend select, or leave the option out".into()));
        }
        Ok(Chosen::Select)
    }

    fn name(self) -> &'static str {
        match self {
            #[cfg(target_os = "linux")]
            Chosen::Epoll => crate::r#loop::Epoll::NAME,
            Chosen::Select => Select::NAME,
        }
    }
}

fn count_workers(wanted: usize) -> Result<usize, Failure> {
    let count = if wanted == 0 && cfg!(target_os = "linux") {
        thread::available_parallelism().map_or(1, usize::from)
    } else {
        wanted.max(1)
    };
    if count > 1 && !cfg!(target_os = "linux") {
        return Err(Failure("more than one worker is for Linux so far; use --workers 1".into()));
    }
    Ok(count)
}

fn announce(command: &Command, local: SocketAddr, backend: Chosen, workers: usize) {
    let plural = if workers == 1 { "" } else { "s" };
    let what = match command {
        Command::Http { .. } => "listening on http",
        Command::Echo => "echo on tcp",
        Command::Chat(_) => "chat on tcp",
    };
    let mut out = io::stdout().lock();
    let line = writeln!(out, "serverd: {what}://{local} ({}, {workers} worker{plural})", backend.name());
    // A closed stdout is no reason not to serve.
    if let Err(error) = line.and_then(|()| out.flush()) {
        log::warn!("cannot print the start line: {error}");
    }
}
