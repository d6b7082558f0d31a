//! Runs servers: worker threads, their listening sockets, their start, the distribution of connections over them, and
//! graceful shutdown.
//!
//! There are one or more sockets for each address of the host. No other process can listen on them.

use std::any::Any;
use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};

use socket2::{Domain, Protocol, Socket, Type};

use super::admin::Admin;
use super::admin_status::Status;
use super::config::{Backend, Balance, Config, Started, connections_max, worker_count};
use super::server_handle::ServerHandle;
use super::signals;
use super::start_error::{StartError, StartErrorKind};
use super::threads::{Control, Threads};
use super::worker_loop::{BoundListener, BuildLoop, PlainOrOther, Role, Security, Setup, Worker, worker_loops};
use crate::httpserver::{AccessLog, HttpServer, Request, Response};
use crate::r#loop::{Acceptor, App, ConnectionLimit, Handle, LoopLimits, ProxyMode, SystemListener, lock, panic_text};

/// Runs an HTTP server until SIGINT (Ctrl-C) or SIGTERM, then shuts down gracefully.
///
/// The address is a host name or an IP address, a colon and a port: `127.0.0.1:8888`, `localhost:8888`, `[::1]:8888`.
/// The server has one worker and the default limits. Use [`Config::serve`] to change these, or for a handler that is
/// not a closure; use [`Config::start`] for a server without signal handlers.
///
/// # Errors
/// Returns an error if the address has no port or cannot be bound, or if the worker fails.
///
/// # Examples
/// ```no_run
/// fn main() -> Result<(), serverd::StartError> {
///     serverd::serve("127.0.0.1:8888", |request| format!("hello, you asked for {}\n", request.path()))
/// }
/// ```
pub fn serve<F, R>(address: impl AsRef<str>, handler: F) -> Result<(), StartError>
where
    F: FnMut(&Request<'_>) -> R + Send + 'static,
    R: Into<Response> + 'static,
{
    let (host, port) = split_address(address.as_ref())?;
    let handler = Mutex::new(Some(handler));
    let make = move |_| HttpServer::new(lock(&handler).take().expect("called once, for the only worker"));
    Config::default().host(host).port(port).serve(make)
}

/// Splits an address into host and port.
fn split_address(address: &str) -> Result<(String, u16), StartError> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parts {
        Some((host, port)) if !host.is_empty() => Ok((host.to_owned(), port)),
        _ => Err(StartError::of_kind(
            StartErrorKind::Host,
            format!("the address {address:?} is not a host and a port, such as 127.0.0.1:8888"),
        )),
    }
}

impl Config {
    /// Runs a server until SIGINT (Ctrl-C), SIGTERM or SIGQUIT, then shuts down gracefully: it stops accepting,
    /// finishes in-flight requests and returns. A second signal exits the process at once, with status 128 plus the
    /// signal number. SIGHUP and SIGUSR1 reopen the access log file, read the certificates again and call
    /// [`Config::on_reload`].
    ///
    /// `make` is called on each worker's thread with the worker's number, starting at 0, to create its application.
    ///
    /// # Errors
    /// Returns an error if the address cannot be bound, the backend or balancing mode is not available on this system,
    /// or a worker fails. When a worker fails, the others shut down gracefully first.
    pub fn serve<A: App + 'static>(&self, make: impl Fn(usize) -> A + Send + Sync + 'static) -> Result<(), StartError> {
        self.serve_with(make, |started| {
            started.local_addrs.iter().for_each(|address| log::info!("listening on {address}"));
        })
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
        let build = worker_loops::<PlainOrOther, _>(move |worker| make(worker.number));
        let outcome = self.serve_unflushed(&build, Box::new(on_started));
        if let Some(log) = &self.access_log {
            log.flush();
        }
        outcome
    }

    /// Runs a server as [`Config::serve_with`] does, but leaves flushing the access log to the caller.
    pub(super) fn serve_unflushed(
        &self,
        build: &Arc<BuildLoop>,
        on_started: Box<dyn FnOnce(Started) + '_>,
    ) -> Result<(), StartError> {
        let mut server = self.launch(Box::new(|shares| self.open(shares)), build)?;
        let (control, reload) = (Arc::clone(&server.threads.control), Arc::clone(&server.reload));
        let _signals = signals::watch(move || control.drain(None), move || reload(), server.connections.clone())
            .map_err(|error| StartError::from_io("cannot register signal handlers", error))?;
        on_started(server.started.clone());
        server.threads.join()
    }

    /// Starts the threads of a server with the connection sources that `open` creates, and the loops that `build` does.
    pub(super) fn launch(
        &self,
        open: Box<OpenSources<'_>>,
        build: &Arc<BuildLoop>,
    ) -> Result<ServerHandle, StartError> {
        let backend = self.backend.resolve()?;
        if self.proxy_protocol != ProxyMode::Off && self.trusted_proxies.is_empty() {
            return Err(StartError::new("the PROXY protocol needs trusted proxies, from which it is accepted"));
        }
        let count = worker_count(self.workers);
        let limit = ConnectionLimit::new(connections_max(self.connections_max, count, self.files_max))
            .per_address(self.loop_limits.connections_per_address_max)
            .exempt(&self.trusted_proxies);
        let shares: Vec<ConnectionLimit> = (0..count).map(|_| limit.share()).collect();
        let Opened { local_addrs, plain_addrs, unix_paths, sources, acceptors } = open(&shares)?;
        let security = Security::open(self, &local_addrs)?;
        let (send, receive) = mpsc::channel();
        let port = local_addrs.first().map_or(0, SocketAddr::port);
        // If start-up fails below, dropping this stops the workers that have started.
        let mut threads = Threads::default();
        let status = Status::new(self, (backend.name(), &security), &limit, (count, &threads.control));
        let admin = self.admin.as_ref().map(|address| Admin::start(address, self, &status)).transpose()?;
        for (number, (sources, limit)) in sources.into_iter().zip(shares).enumerate() {
            let (config, build, security) = (self.clone(), Arc::clone(build), security.clone());
            let metrics = admin.as_ref().map(|_| Arc::clone(&status.loops[number]));
            let run = move |on_started: &dyn Fn(Handle)| {
                let (worker, metrics) = (Worker { number, port }, metrics.as_ref());
                let setup = Setup { worker, config: &config, limit: &limit, metrics, sources, security: &security };
                run_worker(backend, setup, &*build, on_started)
            };
            let send = send.clone();
            threads.spawn(format!("worker-{number}"), move |control| supervise(number, run, control, &send))?;
        }
        drop(send);
        let loops = await_start(&receive, count)?;
        status.start(&loops);
        for acceptor in acceptors {
            threads.control.add_acceptor(acceptor.handle());
            threads.spawn("acceptor".into(), |control| accept(acceptor, control))?;
        }
        let (reload, fingerprint) = (self.reloader(&security)?, security.fingerprint());
        let started =
            Started { local_addrs, plain_addrs, unix_paths, backend: backend.name(), workers: count, fingerprint };
        let access_log = self.access_log.clone();
        Ok(ServerHandle { started, loops, reload, access_log, connections: limit, threads, _admin: admin })
    }

    /// Returns a function that reopens the log and reads all files again.
    fn reloader(&self, security: &Security) -> Result<Arc<dyn Fn() + Send + Sync>, StartError> {
        let reopen = self.access_log.as_ref().map(AccessLog::reopener);
        let on_reload = self.on_reload.clone();
        let read_certificates = security.watch(self)?;
        Ok(Arc::new(move || {
            read_certificates();
            if let Some(reopen) = &reopen {
                reopen();
            }
            if let Some(on_reload) = &on_reload {
                on_reload.call();
            }
        }))
    }

    /// Binds the addresses and creates the connection sources of each worker, and acceptors if they share listeners.
    pub(super) fn open(&self, shares: &[ConnectionLimit]) -> Result<Opened, StartError> {
        let kernel = self.balance.uses_kernel(shares.len())?;
        let count = if kernel { shares.len() } else { 1 };
        let mut opened = Opened::new(shares.len());
        for (local_addr, listeners) in bind(&self.host, self.port, count, self.loop_limits.backlog)? {
            opened.local_addrs.push(local_addr);
            opened.add(listeners, Role::Main, &self.loop_limits, shares)?;
        }
        if let Some(port) = Security::plain_port(self) {
            let endpoints = bind(&self.host, port, count, self.loop_limits.backlog);
            for (plain_addr, listeners) in endpoints.map_err(StartError::of_plain_port)? {
                opened.plain_addrs.push(plain_addr);
                opened.add(listeners, Role::Plain, &self.loop_limits, shares)?;
            }
        }
        Ok(opened)
    }

    /// Creates the connection sources of each worker from bound listeners.
    pub(super) fn open_bound(
        &self,
        listeners: impl IntoIterator<Item: Into<BoundListener>>,
        shares: &[ConnectionLimit],
    ) -> Result<Opened, StartError> {
        if self.balance == Balance::Kernel && shares.len() > 1 {
            let message = "the kernel cannot balance the connections of listeners that are bound already";
            return Err(StartError::of_kind(StartErrorKind::Balance, message));
        }
        let mut opened = Opened::new(shares.len());
        for bound in listeners.into_iter().map(Into::into) {
            let BoundListener { listener, role } = bound;
            opened.record(&listener, role).map_err(|error| StartError::from_io("cannot use a listener", error))?;
            opened.add(vec![listener], role, &self.loop_limits, shares)?;
        }
        if opened.sources.iter().all(Vec::is_empty) {
            return Err(StartError::new("there is no listener"));
        }
        Ok(opened)
    }
}

/// Creates the connection sources of workers, which have these shares of the connection limit.
type OpenSources<'a> = dyn FnOnce(&[ConnectionLimit]) -> Result<Opened, StartError> + 'a;

/// The sockets of a server before its threads start.
pub(super) struct Opened {
    local_addrs: Vec<SocketAddr>,
    plain_addrs: Vec<SocketAddr>,
    unix_paths: Vec<PathBuf>,
    /// The sources of each worker: one for each address.
    sources: Vec<Vec<(SystemListener, Role)>>,
    /// An acceptor for each address, if the workers share its listener.
    acceptors: Vec<Acceptor>,
}

impl Opened {
    fn new(workers: usize) -> Self {
        let sources = (0..workers).map(|_| Vec::new()).collect();
        Opened {
            local_addrs: Vec::new(),
            plain_addrs: Vec::new(),
            unix_paths: Vec::new(),
            sources,
            acceptors: Vec::new(),
        }
    }

    /// Records the address of a bound listener, or its path if it has one.
    fn record(&mut self, listener: &SystemListener, role: Role) -> io::Result<()> {
        #[cfg(unix)]
        if listener.is_unix() {
            self.unix_paths.extend(listener.unix_path());
            return Ok(());
        }
        let addresses = if role == Role::Main { &mut self.local_addrs } else { &mut self.plain_addrs };
        addresses.push(listener.local_addr()?);
        Ok(())
    }

    /// Adds the listeners of an address: one for each worker, or one for all of them.
    fn add(
        &mut self,
        listeners: Vec<SystemListener>,
        role: Role,
        limits: &LoopLimits,
        shares: &[ConnectionLimit],
    ) -> Result<(), StartError> {
        if listeners.len() == shares.len() {
            self.sources.iter_mut().zip(listeners).for_each(|(sources, listener)| sources.push((listener, role)));
            return Ok(());
        }
        for listener in listeners {
            let outcome = self.share(listener, role, limits, shares);
            outcome.map_err(|error| StartError::from_io("cannot create the acceptor", error))?;
        }
        Ok(())
    }

    /// Creates an acceptor that hands the connections of `listener` to all workers.
    fn share(
        &mut self,
        listener: SystemListener,
        role: Role,
        limits: &LoopLimits,
        shares: &[ConnectionLimit],
    ) -> io::Result<()> {
        let mut acceptor = Acceptor::new(listener, limits)?;
        for (share, sources) in shares.iter().zip(&mut self.sources) {
            sources.push((acceptor.add_worker(share)?.into(), role));
        }
        self.acceptors.push(acceptor);
        Ok(())
    }
}

/// Number and handle of a worker that has started, or the reason why it has not.
type StartOutcome = Result<(usize, Handle), StartError>;

/// Runs a worker on its thread. `run` calls its argument once the loop can run. An error before that is sent to the
/// thread that starts the server, a later one is the failure of the server.
fn supervise(
    number: usize,
    run: impl FnOnce(&dyn Fn(Handle)) -> Result<(), StartError>,
    control: &Control,
    send: &mpsc::Sender<StartOutcome>,
) {
    let is_started = Cell::new(false);
    let on_started = |handle: Handle| {
        is_started.set(true);
        control.add_worker(handle.clone());
        // Fails only if start-up was aborted.
        let _ = send.send(Ok((number, handle)));
    };
    let panicked = |panic: Box<dyn Any + Send>| {
        let text = panic_text(&*panic);
        // The loop catches the panics of a running application.
        let message = if is_started.get() {
            format!("a worker panicked; please report this bug: {text}")
        } else {
            format!("the application of worker {number} panicked when it was created: {text}")
        };
        Err(StartError::of_kind(StartErrorKind::Worker, message))
    };
    match catch_unwind(AssertUnwindSafe(|| run(&on_started))).unwrap_or_else(panicked) {
        Ok(()) => {}
        Err(error) if is_started.get() => control.fail(error.with_kind(StartErrorKind::Worker)),
        Err(error) => {
            let _ = send.send(Err(error));
        }
    }
}

/// Waits until `count` workers have started. Returns the handles of their loops by number.
fn await_start(outcomes: &mpsc::Receiver<StartOutcome>, count: usize) -> Result<Vec<Handle>, StartError> {
    let exited = |_| Err(StartError::of_kind(StartErrorKind::Worker, "a worker exited during start-up"));
    let mut started: Vec<Option<Handle>> = vec![None; count];
    for _ in 0..count {
        let (number, handle) = outcomes.recv().unwrap_or_else(exited)?;
        started[number] = Some(handle);
    }
    Ok(started.into_iter().flatten().collect())
}

/// Runs an acceptor on its thread.
fn accept(acceptor: Acceptor, control: &Control) {
    let ended = catch_unwind(AssertUnwindSafe(|| acceptor.run()))
        .unwrap_or_else(|_| Err(io::Error::other("panicked; please report this bug")));
    if let Err(error) = ended {
        control.fail(StartError::from_io("an acceptor thread failed", error).with_kind(StartErrorKind::Worker));
    }
    control.acceptor_ended();
}

/// Creates and runs the loop of one worker.
fn run_worker(
    backend: Backend,
    setup: Setup<'_>,
    build: &BuildLoop,
    on_started: &dyn Fn(Handle),
) -> Result<(), StartError> {
    let poller = build(backend, setup);
    let mut poller = poller.map_err(|error| StartError::from_io("cannot create an event loop", error))?;
    on_started(poller.handle());
    poller.run().map_err(|error| StartError::from_io("the event loop failed", error))
}

/// Number of attempts to find a port that is free on all addresses.
const FREE_PORT_ATTEMPTS: usize = 16;

/// An address with its listeners.
type Endpoint = (SocketAddr, Vec<SystemListener>);

/// Binds `count` listeners to each address of `host` that can be bound. If `port` is 0, all of them get the same free
/// port.
///
/// # Errors
/// Returns an error if no address can be bound.
fn bind(host: &str, port: u16, count: usize, backlog: u32) -> Result<Vec<Endpoint>, StartError> {
    let mut addresses = resolve(host, port)?;
    // The order of the system is kept, without duplicates.
    let mut seen = HashSet::new();
    addresses.retain(|address| seen.insert(*address));
    for _ in 1..FREE_PORT_ATTEMPTS {
        let (endpoints, failures) = bind_each(&addresses, count, backlog);
        let is_taken = failures.iter().any(|(_, error)| error.kind() == io::ErrorKind::AddrInUse);
        // A port that is free on the first address may be in use on another one.
        if port != 0 || endpoints.is_empty() || !is_taken {
            return outcome(host, endpoints, failures);
        }
    }
    let (endpoints, failures) = bind_each(&addresses, count, backlog);
    outcome(host, endpoints, failures)
}

/// Reports the addresses that cannot be bound, as an error if there is no other.
fn outcome(
    host: &str,
    endpoints: Vec<Endpoint>,
    failures: Vec<(SocketAddr, io::Error)>,
) -> Result<Vec<Endpoint>, StartError> {
    let mut last = StartError::of_kind(StartErrorKind::Host, format!("the host {host:?} has no address"));
    for (address, error) in failures {
        // Names often have an IPv6 address on machines without IPv6, which is not worth a warning.
        let is_present = matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied);
        last = cannot_listen(address, error);
        let level = if is_present && !endpoints.is_empty() { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "{last}");
    }
    if endpoints.is_empty() { Err(last) } else { Ok(endpoints) }
}

/// Binds listeners to each address. If the port is 0, the first address that can be bound determines it.
fn bind_each(addresses: &[SocketAddr], count: usize, backlog: u32) -> (Vec<Endpoint>, Vec<(SocketAddr, io::Error)>) {
    let (mut endpoints, mut failures): (Vec<Endpoint>, Vec<_>) = (Vec::new(), Vec::new());
    for &(mut address) in addresses {
        if let Some((bound, _)) = endpoints.first() {
            address.set_port(bound.port());
        }
        let listeners = bind_all(address, count, backlog);
        match listeners.and_then(|listeners| Ok((listeners[0].local_addr()?, listeners))) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(error) => failures.push((address, error)),
        }
    }
    (endpoints, failures)
}

fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, StartError> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let addresses = (bare, port).to_socket_addrs().map_err(|error| {
        let message = format!("cannot resolve host {host:?} ({error})");
        StartError::of_kind(StartErrorKind::Host, message).with_source(error)
    })?;
    Ok(addresses.collect())
}

fn cannot_listen(address: SocketAddr, error: io::Error) -> StartError {
    let reason = match error.kind() {
        io::ErrorKind::AddrInUse => "the port is in use".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::AddrNotAvailable => "not an address of this machine".into(),
        _ => error.to_string(),
    };
    let message = format!("cannot listen on {address}: {reason}");
    StartError::of_kind(StartErrorKind::Listen(address), message).with_source(error)
}

fn bind_all(mut address: SocketAddr, count: usize, backlog: u32) -> io::Result<Vec<SystemListener>> {
    let first = open(address)?;
    // The first bind is without SO_REUSEPORT, so that another server on the port is detected. Only then is the port
    // shared among the workers.
    first.bind(&address.into())?;
    let mut sockets = vec![first];
    if count > 1 {
        share_port(&sockets[0])?;
        address.set_port(sockets[0].local_addr()?.as_socket().map_or(address.port(), |bound| bound.port()));
        for _ in 1..count {
            let socket = open(address)?;
            share_port(&socket)?;
            socket.bind(&address.into())?;
            sockets.push(socket);
        }
    }
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    sockets
        .into_iter()
        .map(|socket| socket.listen(backlog).map(|()| SystemListener::from_unshared(socket.into())))
        .collect()
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Allows a restart while old connections are in TIME_WAIT. Windows always allows that, and there the option would
    // let other processes take over the port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    #[cfg(windows)]
    super::windows::set_exclusive_port(&socket)?;
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (address, host, port) in [("127.0.0.1:80", "127.0.0.1", 80), ("[::1]:0", "[::1]", 0), ("a:1", "a", 1)] {
            assert_eq!(split_address(address).unwrap(), (host.to_owned(), port));
        }
        for address in ["", "a", "a:", "a:x", ":80", "a:65536", "127.0.0.1"] {
            let error = serve(address, |_| "never called").unwrap_err();
            assert_eq!(error.kind(), StartErrorKind::Host, "{address}");
            assert!(error.to_string().contains(&format!("{address:?}")), "{error}");
        }
    }

    /// Documentation address (RFC 5737), which this machine does not have.
    const ABSENT: &str = "192.0.2.1:0";

    #[test]
    fn all_addresses_that_can_be_bound_have_one_port() {
        let addresses = [ABSENT, "127.0.0.1:0", "[::1]:0"].map(|address| address.parse().unwrap());
        let (endpoints, failures) = bind_each(&addresses, 1, 8);
        assert!(failures.iter().any(|(address, _)| *address == addresses[0]), "{failures:?}");
        assert_eq!(endpoints.len() + failures.len(), 3);
        let port = endpoints[0].0.port();
        for (address, listeners) in &endpoints {
            assert_eq!((address.port(), listeners[0].local_addr().unwrap()), (port, *address));
        }
        assert_eq!(outcome("x", endpoints, failures).unwrap()[0].0.ip(), addresses[1].ip());
        let (endpoints, failures) = bind_each(&addresses[..1], 1, 8);
        assert!(outcome("x", endpoints, failures).unwrap_err().to_string().contains("cannot listen on 192.0.2.1:0"));
        assert!(outcome("x", Vec::new(), Vec::new()).unwrap_err().to_string().contains("has no address"));
    }

    #[test]
    fn an_address_in_use_does_not_prevent_listening_on_the_others() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let addresses = [taken.local_addr().unwrap(), SocketAddr::from(([127, 0, 0, 2], port))];
        if cfg!(target_os = "linux") {
            let (endpoints, failures) = bind_each(&addresses, 2, 8);
            assert_eq!((endpoints.len(), failures.len()), (1, 1), "{failures:?}");
            assert_eq!(endpoints[0].1.len(), 2);
        }
    }
}
