//! Runs an application on worker threads, with signal handling and graceful shutdown.
//!
//! Each worker is a thread with its own event loop and its own application instance; nothing is shared on the hot path.
//! Connections are distributed over the workers by the kernel, with one listener per worker (`SO_REUSEPORT`, on Linux),
//! or by an acceptor thread that hands each connection to the worker with the fewest connections.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::httpserver::AccessLog;
use crate::r#loop::{
    Acceptor, AcceptorHandle, App, ConnectionLimit, EventLoop, Handle, HandoffListener, LoopLimits, Poller, Readiness,
    Select, Timeouts,
};

mod fd_limit;
#[cfg(feature = "cli")]
mod files;
mod listeners;
#[cfg(feature = "cli")]
mod logging;
#[cfg(feature = "cli")]
mod run;
mod signals;
#[cfg(windows)]
mod windows;

#[cfg(feature = "cli")]
pub use files::FilesConfig;
#[cfg(feature = "cli")]
pub use logging::{LogTarget, Logging};
#[cfg(feature = "cli")]
pub use run::{Command, run};

/// Configuration of a server with worker threads and signal handling, for applications of your own.
///
/// The defaults are those of the command line. To embed a server without threads or signal handlers, use an
/// [`EventLoop`] directly.
///
/// # Examples
/// ```no_run
/// use serverd::HttpServer;
/// use serverd::server::{Config, StartError};
///
/// // One worker per core, each with its own handler, whose state needs no lock.
/// fn main() -> Result<(), StartError> {
///     let config = Config { port: 8080, workers: 0, ..Config::default() };
///     config.serve(|worker| {
///         let mut count = 0;
///         HttpServer::new(move |_| {
///             count += 1;
///             format!("response {count} of worker {worker}\n")
///         })
///     })
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// Address or host name to listen on. Default: 127.0.0.1.
    pub host: String,
    /// Port to listen on; 0 for any free port. Default: 8888.
    pub port: u16,
    /// I/O readiness API to use. Default: [`Backend::Auto`].
    pub backend: Backend,
    /// Number of worker threads; 0 for one per core. Default: 1.
    pub workers: usize,
    /// Distribution of connections over the workers. Default: [`Balance::Auto`].
    pub balance: Balance,
    /// Upper bound for all of `timeouts`. Default: none.
    pub timeout: Option<Duration>,
    /// Timeouts for the phases of a connection.
    pub timeouts: Timeouts,
    /// Limits of each worker's loop. `loop_limits.connections_max` is ignored in favour of `connections_max`.
    pub loop_limits: LoopLimits,
    /// Maximum open connections of all workers together; further ones wait in the listen queue. Default (`None`): as
    /// many as the file descriptor limit allows, less a reserve.
    pub connections_max: Option<usize>,
    /// Enables TCP keep-alive, which detects dead peers: after 60 s of silence, with 4 probes 15 s apart. Useful for
    /// protocols in which clients may be idle for hours. Default: false.
    pub keep_alive: bool,
    /// File descriptors that the application of each worker may hold open; reserved when `connections_max` is derived
    /// from the file descriptor limit. Default: 0.
    pub files_max: usize,
    /// Options of the built-in HTTP applications; applications of your own set them on their
    /// [`HttpServer`](crate::HttpServer).
    pub http: HttpOptions,
    /// The access log of the application, if it has one: its file is reopened on SIGHUP and SIGUSR1, and it is flushed
    /// at the end. Pass it to each server as well, with [`HttpServer::access_log`](crate::HttpServer::access_log).
    pub access_log: Option<AccessLog>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            host: "127.0.0.1".into(),
            port: 8888,
            backend: Backend::Auto,
            workers: 1,
            balance: Balance::Auto,
            timeout: None,
            timeouts: Timeouts::default(),
            loop_limits: LoopLimits::default(),
            connections_max: None,
            keep_alive: false,
            files_max: 0,
            http: HttpOptions::default(),
            access_log: None,
        }
    }
}

/// Options of the built-in HTTP applications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// Announces the idle timeout in the Keep-Alive header; see
    /// [`HttpServer::keep_alive_header`](crate::HttpServer::keep_alive_header). Default: false.
    pub keep_alive_header: bool,
    /// Number of requests after which a connection closes; 0 for no limit, which is the default.
    pub requests_max: u32,
    /// The hosts to answer for; empty for all, which is the default. See
    /// [`HttpServer::allow_hosts`](crate::HttpServer::allow_hosts).
    pub allowed_hosts: Vec<String>,
    /// Maximum memory of collected request bodies of all workers together, in bytes; see
    /// [`BufferLimit`](crate::BufferLimit). Default: 256 MiB.
    pub buffered_bytes_max: usize,
}

impl Default for HttpOptions {
    fn default() -> Self {
        let allowed_hosts = Vec::new();
        HttpOptions { keep_alive_header: false, requests_max: 0, allowed_hosts, buffered_bytes_max: 256 << 20 }
    }
}

/// An I/O readiness API, selected by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// epoll on Linux, select elsewhere.
    Auto,
    /// epoll (Linux).
    Epoll,
    /// kqueue (macOS and the BSDs).
    Kqueue,
    /// select (every system).
    Select,
}

/// Load balancing: how connections are distributed over several workers. A single worker always accepts by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// [`Balance::Kernel`] on Linux, [`Balance::LeastConnections`] elsewhere.
    Auto,
    /// Each worker has its own listener, and the kernel distributes connections by a hash of their addresses
    /// (`SO_REUSEPORT`). Nothing is shared, but a few long-lived connections may end up on the same worker. Linux only.
    Kernel,
    /// One thread accepts, and hands each connection to the worker with the fewest connections.
    LeastConnections,
}

/// Error of a server that could not start or could not continue. The message usually says how to fix it.
#[derive(Debug)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// Properties of a running server, passed to the callback of [`Config::serve_with`].
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Address the server is listening on.
    pub local_addr: SocketAddr,
    /// Name of the backend.
    pub backend: &'static str,
    /// Number of workers.
    pub workers: usize,
}

impl Config {
    /// Runs a server until SIGINT (Ctrl-C) or SIGTERM, then shuts down gracefully: it stops accepting, finishes
    /// in-flight requests and returns. A second signal exits the process at once, with status 128 plus the signal
    /// number. SIGHUP and SIGUSR1 reopen the access log file.
    ///
    /// `make` is called on each worker's thread with the worker's number, starting at 0, to create its application.
    ///
    /// # Errors
    /// Returns an error if the address cannot be bound, the backend or balancing mode is not available on this system,
    /// or a worker fails. When a worker fails, the others shut down gracefully first.
    pub fn serve<A: App + 'static>(&self, make: impl Fn(usize) -> A + Send + Sync + 'static) -> Result<(), StartError> {
        self.serve_with(make, |started| log::info!("listening on {}", started.local_addr))
    }

    /// Runs a server as [`Config::serve`] does, and calls `on_started` once it accepts connections.
    ///
    /// # Errors
    /// Returns the errors of [`Config::serve`].
    pub fn serve_with<A: App + 'static>(
        &self,
        make: impl Fn(usize) -> A + Send + Sync + 'static,
        on_started: impl FnOnce(Started),
    ) -> Result<(), StartError> {
        let backend = self.backend.resolve()?;
        let count = worker_count(self.workers);
        let limit = ConnectionLimit::new(fd_limit::connections_max(self.connections_max, count, self.files_max));
        let shares: Vec<ConnectionLimit> = (0..count).map(|_| limit.share()).collect();
        let (local_addr, sources, acceptor) = self.open(&shares)?;
        let (send, receive) = mpsc::channel();
        let make = Arc::new(make);
        // If start-up fails below, dropping this stops the workers that have started.
        let mut workers = Workers::default();
        for (number, (source, limit)) in sources.into_iter().zip(shares).enumerate() {
            let (config, send, make) = (self.clone(), send.clone(), Arc::clone(&make));
            let worker = move || {
                let make = || make(number);
                let ended =
                    catch_unwind(AssertUnwindSafe(|| run_worker(backend, &config, &limit, make, source, &send)))
                        .unwrap_or_else(|_| Err(StartError("a worker panicked; please report this bug".into())));
                // Fails only if start-up was aborted.
                let _ = send.send(WorkerEvent::Ended(ended));
            };
            if let Err(error) = thread::Builder::new().name(format!("worker-{number}")).spawn(worker) {
                workers.await_start(&receive, number)?;
                return Err(failed("cannot start a thread", &error));
            }
        }
        workers.await_start(&receive, count)?;
        if let Some(acceptor) = acceptor {
            workers.accept(acceptor, send.clone())?;
        }
        drop(send);
        let reopen = self.access_log.as_ref().map(AccessLog::reopener);
        let _signals = signals::watch(workers.drain(), move || reopen.iter().for_each(|reopen| reopen()))
            .map_err(|error| failed("cannot register signal handlers", &error))?;
        on_started(Started { local_addr, backend: backend.name(), workers: count });
        let outcome = workers.wait(&receive);
        if let Some(log) = &self.access_log {
            log.flush();
        }
        outcome
    }

    /// Binds the port and creates the connection source of each worker, and an acceptor if they share a listener.
    fn open(
        &self,
        shares: &[ConnectionLimit],
    ) -> Result<(SocketAddr, Vec<ConnectionSource>, Option<Acceptor>), StartError> {
        let kernel = self.balance.uses_kernel(shares.len())?;
        let count = if kernel { shares.len() } else { 1 };
        let mut listeners = listeners::bind(&self.host, self.port, count, self.loop_limits.backlog)?;
        let local_addr = listeners[0].local_addr().map_err(|error| failed("cannot read the local address", &error))?;
        if self.keep_alive {
            let outcome = listeners.iter().try_for_each(listeners::keep_alive);
            outcome.map_err(|error| failed("cannot enable TCP keep-alive", &error))?;
        }
        if kernel || shares.len() == 1 {
            return Ok((local_addr, listeners.into_iter().map(ConnectionSource::Listener).collect(), None));
        }
        let listener = listeners.remove(0);
        let make = || {
            let mut acceptor = Acceptor::new(listener, &self.loop_limits)?;
            let sources = shares.iter().map(|share| acceptor.add_worker(share).map(ConnectionSource::Handoff));
            let sources = sources.collect::<io::Result<_>>()?;
            Ok((local_addr, sources, Some(acceptor)))
        };
        make().map_err(|error: io::Error| failed("cannot create the acceptor", &error))
    }
}

impl Balance {
    /// Returns whether the kernel distributes the connections, or an error if that is configured but not supported.
    fn uses_kernel(self, workers: usize) -> Result<bool, StartError> {
        match self {
            Balance::Kernel if !cfg!(target_os = "linux") && workers > 1 => Err(StartError(
                "kernel load balancing is available on Linux only; use --balance least-connections or omit the option"
                    .into(),
            )),
            Balance::Kernel => Ok(true),
            Balance::Auto => Ok(cfg!(target_os = "linux")),
            Balance::LeastConnections => Ok(false),
        }
    }
}

/// The source of a worker's connections.
enum ConnectionSource {
    Listener(TcpListener),
    Handoff(HandoffListener),
}

/// Handles of the threads that have started; dropping this stops them.
#[derive(Default)]
struct Workers {
    handles: Vec<Handle>,
    /// Stops the acceptor thread, which then drains the workers.
    acceptor: Option<AcceptorHandle>,
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.handles.iter().for_each(Handle::stop);
        if let Some(acceptor) = &self.acceptor {
            acceptor.stop();
        }
    }
}

/// Message from a worker thread or the acceptor thread to the main thread.
enum WorkerEvent {
    Started(Handle),
    Ended(Result<(), StartError>),
}

fn failed(what: &str, error: &io::Error) -> StartError {
    StartError(format!("{what}: {error}"))
}

impl Workers {
    /// Waits until `count` workers have started or failed.
    fn await_start(&mut self, events: &mpsc::Receiver<WorkerEvent>, count: usize) -> Result<(), StartError> {
        let mut outcome = Ok(());
        for _ in 0..count {
            match events.recv() {
                Ok(WorkerEvent::Started(handle)) => self.handles.push(handle),
                Ok(WorkerEvent::Ended(Err(error))) => outcome = Err(error),
                Ok(WorkerEvent::Ended(Ok(()))) | Err(_) => {
                    outcome = Err(StartError("a worker exited during start-up".into()));
                }
            }
        }
        outcome
    }

    /// Starts the acceptor thread. Before it exits it drains the workers, which have received all accepted connections
    /// by then.
    fn accept(&mut self, acceptor: Acceptor, send: mpsc::Sender<WorkerEvent>) -> Result<(), StartError> {
        self.acceptor = Some(acceptor.handle());
        let handles = self.handles.clone();
        let accept = move || {
            let ended = catch_unwind(AssertUnwindSafe(|| acceptor.run()))
                .unwrap_or_else(|_| Err(io::Error::other("panicked; please report this bug")));
            handles.iter().for_each(Handle::drain);
            // Fails only if start-up was aborted.
            let _ = send.send(WorkerEvent::Ended(ended.map_err(|error| failed("the acceptor thread failed", &error))));
        };
        let started = thread::Builder::new().name("acceptor".into()).spawn(accept);
        started.map(drop).map_err(|error| failed("cannot start a thread", &error))
    }

    /// Returns a closure that starts a graceful shutdown, from any thread.
    fn drain(&self) -> impl Fn() + Send + use<> {
        let (handles, acceptor) = (self.handles.clone(), self.acceptor.clone());
        move || match &acceptor {
            Some(acceptor) => acceptor.stop(),
            None => handles.iter().for_each(Handle::drain),
        }
    }

    /// Waits until all threads have ended. If one fails, drains the others.
    fn wait(&self, events: &mpsc::Receiver<WorkerEvent>) -> Result<(), StartError> {
        let mut outcome = Ok(());
        let results =
            events.iter().filter_map(|event| if let WorkerEvent::Ended(ended) = event { Some(ended) } else { None });
        for ended in results.take(self.handles.len() + usize::from(self.acceptor.is_some())) {
            if let Err(error) = &ended {
                log::error!("{error}; draining the other workers");
                self.drain()();
            }
            outcome = outcome.and(ended);
        }
        outcome
    }
}

/// Creates and runs the loop of one worker.
fn run_worker<A: App + 'static>(
    backend: Backend,
    config: &Config,
    limit: &ConnectionLimit,
    make: impl FnOnce() -> A,
    source: ConnectionSource,
    send: &mpsc::Sender<WorkerEvent>,
) -> Result<(), StartError> {
    // The only place that maps the name of a backend to its type.
    let poller = match backend {
        #[cfg(target_os = "linux")]
        Backend::Epoll => build_loop::<crate::r#loop::Epoll, A>(config, limit, make(), source),
        #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
        Backend::Kqueue => build_loop::<crate::r#loop::Kqueue, A>(config, limit, make(), source),
        // `Backend::resolve` has rejected any other.
        _ => build_loop::<Select, A>(config, limit, make(), source),
    };
    let mut poller = poller.map_err(|error| failed("cannot create an event loop", &error))?;
    // Fails only if start-up was aborted.
    let _ = send.send(WorkerEvent::Started(poller.handle()));
    poller.run().map_err(|error| failed("the event loop failed", &error))
}

fn build_loop<B, A>(
    config: &Config,
    limit: &ConnectionLimit,
    app: A,
    source: ConnectionSource,
) -> io::Result<Box<dyn Poller>>
where
    B: Readiness + 'static,
    B::Listener: From<TcpListener> + From<HandoffListener>,
    A: App + 'static,
{
    let mut timeouts = config.timeouts.clone();
    if let Some(max) = config.timeout {
        timeouts.cap(max);
    }
    let mut event_loop = EventLoop::<B, A>::with_limits(timeouts, config.loop_limits.clone(), app)?;
    event_loop.share_connection_limit(limit);
    match source {
        ConnectionSource::Listener(listener) => event_loop.listen(listener)?,
        ConnectionSource::Handoff(listener) => event_loop.listen(listener)?,
    }
    Ok(Box::new(event_loop))
}

impl Backend {
    /// Resolves `Auto`; returns an error if the backend is not available on this system.
    fn resolve(self) -> Result<Backend, StartError> {
        const LINUX: bool = cfg!(target_os = "linux");
        const KQUEUE: bool = (cfg!(unix) && !LINUX) || cfg!(serverd_kqueue_by_epoll);
        match self {
            Backend::Auto => Ok(if LINUX { Backend::Epoll } else { Backend::Select }),
            Backend::Epoll if !LINUX => Err(unavailable("epoll", "Linux")),
            Backend::Kqueue if !KQUEUE => Err(unavailable("kqueue", "macOS and the BSDs")),
            chosen => Ok(chosen),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Backend::Auto => "auto",
            Backend::Epoll => "epoll",
            Backend::Kqueue => "kqueue",
            Backend::Select => Select::NAME,
        }
    }
}

fn unavailable(backend: &str, systems: &str) -> StartError {
    StartError(format!("{backend} is available on {systems} only; use --backend select or omit the option"))
}

fn worker_count(configured: usize) -> usize {
    if configured == 0 { thread::available_parallelism().map_or(1, usize::from) } else { configured }
}
