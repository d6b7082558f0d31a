//! Assembly: a configuration becomes listeners, workers, loops and an application.
//!
//! Every worker is a thread with a loop, an application and a listener of its own; nothing is shared on the
//! way of a request. The kernel spreads connections over the listeners (`SO_REUSEPORT`, where it balances).

use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::apps::{Echo, Fixed};
use crate::http1;
use crate::httpserver::HttpServer;
use crate::r#loop::{App, EventLoop, Handle, Limits, Poller, Readiness, Select, Timeouts};

mod signals;

/// Connections that may wait to be accepted: what a burst of clients needs, up to the system's own limit
/// (net.core.somaxconn, 4096 on Linux).
const BACKLOG: i32 = 4096;

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
/// under way and returns. A second signal ends the process at once.
///
/// Prints one line per listener on stdout once connections are accepted.
///
/// # Errors
/// One sentence that says what to do instead.
pub fn run(config: &Config) -> Result<(), Failure> {
    let backend = Chosen::from(config.backend)?;
    let workers = count_workers(config.workers)?;
    let listeners = bind(&config.host, config.port, workers)?;
    let local = listeners[0].local_addr().map_err(|error| failed("cannot tell the own address", &error))?;
    let (send_handle, handles) = mpsc::channel();
    let mut threads = Vec::new();
    for (number, listener) in listeners.into_iter().enumerate() {
        let (config, send_handle) = (config.clone(), send_handle.clone());
        let worker = move || work(backend, &config, listener, &send_handle);
        let name = format!("worker-{number}");
        let spawned = thread::Builder::new().name(name).spawn(worker);
        threads.push(spawned.map_err(|error| failed("cannot start a thread", &error))?);
    }
    drop(send_handle);
    let handles: Vec<Handle> = handles.iter().take(workers).collect();
    if handles.len() == workers {
        let watched = handles.clone();
        signals::watch(move || watched.iter().for_each(Handle::drain))
            .map_err(|error| failed("cannot listen for signals", &error))?;
        announce(&config.command, local, backend, workers);
    }
    join(threads, &handles)
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure(format!("{what}: {error}"))
}

/// Waits for all workers; when one fails, the others are drained too.
fn join(threads: Vec<thread::JoinHandle<Result<(), Failure>>>, handles: &[Handle]) -> Result<(), Failure> {
    let mut outcome = Ok(());
    for thread in threads {
        let ended = thread.join().unwrap_or_else(|_| Err(Failure("a worker panicked; please report this".into())));
        if ended.is_err() {
            handles.iter().for_each(Handle::drain);
            outcome = outcome.and(ended);
        }
    }
    outcome
}

/// One worker's life.
fn work(
    backend: Chosen,
    config: &Config,
    listener: TcpListener,
    send_handle: &mpsc::Sender<Handle>,
) -> Result<(), Failure> {
    let mut poller = poller(backend, config, listener).map_err(|error| failed("cannot make an event loop", &error))?;
    // Fails only when the server gave up starting.
    let _ = send_handle.send(poller.handle());
    poller.run().map_err(|error| failed("the event loop failed", &error))
}

/// The one place that turns the name of a backend into a loop.
fn poller(backend: Chosen, config: &Config, listener: TcpListener) -> io::Result<Box<dyn Poller>> {
    match backend {
        #[cfg(target_os = "linux")]
        Chosen::Epoll => assemble::<crate::r#loop::Epoll>(config, listener),
        Chosen::Select => assemble::<Select>(config, listener),
    }
}

fn assemble<B>(config: &Config, listener: TcpListener) -> io::Result<Box<dyn Poller>>
where
    B: Readiness + 'static,
    B::Listener: From<TcpListener>,
{
    let mut timeouts = config.timeouts.clone();
    if let Some(limit) = config.timeout {
        timeouts.cap(limit);
    }
    let mut limits = Limits::default();
    match &config.command {
        Command::Http { body } => {
            let app = HttpServer::with(Fixed::new(body.clone())).limits(config.limits.clone());
            boxed::<B, _>(timeouts, limits, app, listener)
        }
        Command::Echo => {
            Echo::bound(&mut limits);
            boxed::<B, _>(timeouts, limits, Echo, listener)
        }
    }
}

fn boxed<B, A>(timeouts: Timeouts, limits: Limits, app: A, listener: TcpListener) -> io::Result<Box<dyn Poller>>
where
    B: Readiness + 'static,
    B::Listener: From<TcpListener>,
    A: App + 'static,
{
    let mut event_loop = EventLoop::<B, A>::with(timeouts, limits, app)?;
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
    };
    let mut out = io::stdout().lock();
    let line = writeln!(out, "serverd: {what}://{local} ({}, {workers} worker{plural})", backend.name());
    // A closed stdout is no reason not to serve.
    if let Err(error) = line.and_then(|()| out.flush()) {
        log::warn!("cannot print the start line: {error}");
    }
}

/// One listener per worker, all on the same address.
fn bind(host: &str, port: u16, workers: usize) -> Result<Vec<TcpListener>, Failure> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let addresses: Vec<SocketAddr> = (bare, port)
        .to_socket_addrs()
        .map_err(|error| {
            Failure(format!("cannot find the host {host:?} ({error}); give --host an address of this machine"))
        })?
        .collect();
    let mut outcome = Err(Failure(format!("the host {host:?} has no address; give --host an address of this machine")));
    for address in addresses {
        match bind_all(address, workers) {
            Ok(listeners) => return Ok(listeners),
            Err(error) => outcome = Err(cannot_listen(address, &error)),
        }
    }
    outcome
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> Failure {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "the port is taken; stop who uses it or choose another with --port",
        io::ErrorKind::PermissionDenied => "not permitted; choose a port above 1023 with --port",
        io::ErrorKind::AddrNotAvailable => "not an address of this machine; choose another with --host",
        _ => {
            return Failure(format!("cannot listen on {address}: {error}; choose another with --host or --port"));
        }
    };
    Failure(format!("cannot listen on {address}: {advice}"))
}

fn bind_all(mut address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    let first = open(address)?;
    // Bound without sharing, so that another server on the port is noticed; shared among the own workers only then.
    first.bind(&address.into())?;
    let mut sockets = vec![first];
    if workers > 1 {
        share_port(&sockets[0])?;
        address.set_port(sockets[0].local_addr()?.as_socket().map_or(address.port(), |own| own.port()));
        for _ in 1..workers {
            let socket = open(address)?;
            share_port(&socket)?;
            socket.bind(&address.into())?;
            sockets.push(socket);
        }
    }
    sockets.into_iter().map(|socket| socket.listen(BACKLOG).map(|()| socket.into())).collect()
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Lets a server start again while old connections are in TIME_WAIT. On Windows the option means that anybody may
    // take the port over.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn share_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

#[cfg(not(target_os = "linux"))]
fn share_port(_: &Socket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
