//! Worker threads: their start, the distribution of connections over them, and graceful shutdown.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use super::config::{Backend, Config, StartError, Started, connections_max, worker_count};
use super::{listeners, signals};
use crate::httpserver::AccessLog;
use crate::r#loop::{
    Acceptor, AcceptorHandle, App, ConnectionLimit, EventLoop, Handle, HandoffListener, LoopLimits, Poller, Readiness,
    Select,
};

impl Config {
    /// Runs a server until SIGINT (Ctrl-C), SIGTERM or SIGQUIT, then shuts down gracefully: it stops accepting, finishes
    /// in-flight requests and returns. A second signal exits the process at once, with status 128 plus the signal
    /// number. SIGHUP and SIGUSR1 reopen the access log file and call
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
        let outcome = self.serve_unflushed(make, on_started);
        if let Some(log) = &self.access_log {
            log.flush();
        }
        outcome
    }

    /// Runs a server as [`Config::serve_with`] does, but leaves flushing the access log to the caller.
    pub(super) fn serve_unflushed<A: App + 'static>(
        &self,
        make: impl Fn(usize) -> A + Send + Sync + 'static,
        on_started: impl FnOnce(Started),
    ) -> Result<(), StartError> {
        let backend = self.backend.resolve()?;
        let count = worker_count(self.workers);
        let limit = ConnectionLimit::new(connections_max(self.connections_max, count, self.files_max))
            .per_address(self.loop_limits.connections_per_address_max);
        let shares: Vec<ConnectionLimit> = (0..count).map(|_| limit.share()).collect();
        let Opened { local_addrs, sources, acceptors } = self.open(&shares)?;
        let (send, receive) = mpsc::channel();
        let make = Arc::new(make);
        // If start-up fails below, dropping this stops the workers that have started.
        let mut workers = Workers::default();
        for (number, (sources, limit)) in sources.into_iter().zip(shares).enumerate() {
            let (config, send, make) = (self.clone(), send.clone(), Arc::clone(&make));
            let worker = move || {
                let make = || make(number);
                let ended =
                    catch_unwind(AssertUnwindSafe(|| run_worker(backend, &config, &limit, make, sources, &send)))
                        .unwrap_or_else(|_| Err(StartError::new("a worker panicked; please report this bug")));
                // Fails only if start-up was aborted.
                let _ = send.send(WorkerEvent::Ended(ended));
            };
            if let Err(error) = thread::Builder::new().name(format!("worker-{number}")).spawn(worker) {
                workers.await_start(&receive, number)?;
                return Err(StartError::from_io("cannot start a thread", &error));
            }
        }
        workers.await_start(&receive, count)?;
        workers.accept(acceptors, &send)?;
        drop(send);
        let reopen = self.access_log.as_ref().map(AccessLog::reopener);
        let on_reload = self.on_reload.clone();
        let reload = move || {
            if let Some(reopen) = &reopen {
                reopen();
            }
            if let Some(on_reload) = &on_reload {
                on_reload.call();
            }
        };
        let _signals = signals::watch(workers.drain(), reload, limit)
            .map_err(|error| StartError::from_io("cannot register signal handlers", &error))?;
        on_started(Started { local_addrs, backend: backend.name(), workers: count });
        workers.wait(&receive)
    }

    /// Binds the addresses and creates the connection sources of each worker, and acceptors if they share listeners.
    fn open(&self, shares: &[ConnectionLimit]) -> Result<Opened, StartError> {
        let kernel = self.balance.uses_kernel(shares.len())?;
        let count = if kernel { shares.len() } else { 1 };
        let mut opened = Opened { local_addrs: Vec::new(), sources: Vec::new(), acceptors: Vec::new() };
        opened.sources.resize_with(shares.len(), Vec::new);
        for (local_addr, listeners) in listeners::bind(&self.host, self.port, count, self.loop_limits.backlog)? {
            opened.local_addrs.push(local_addr);
            if listeners.len() == shares.len() {
                let listeners = listeners.into_iter().map(ConnectionSource::Listener);
                opened.sources.iter_mut().zip(listeners).for_each(|(sources, listener)| sources.push(listener));
                continue;
            }
            for listener in listeners {
                let outcome = opened.share(listener, &self.loop_limits, shares);
                outcome.map_err(|error| StartError::from_io("cannot create the acceptor", &error))?;
            }
        }
        Ok(opened)
    }
}

/// The sockets of a server before its threads start.
struct Opened {
    local_addrs: Vec<SocketAddr>,
    /// The sources of each worker: one for each address.
    sources: Vec<Vec<ConnectionSource>>,
    /// An acceptor for each address, if the workers share its listener.
    acceptors: Vec<Acceptor>,
}

impl Opened {
    /// Creates an acceptor that hands the connections of `listener` to all workers.
    fn share(&mut self, listener: TcpListener, limits: &LoopLimits, shares: &[ConnectionLimit]) -> io::Result<()> {
        let mut acceptor = Acceptor::new(listener, limits)?;
        for (share, sources) in shares.iter().zip(&mut self.sources) {
            sources.push(ConnectionSource::Handoff(acceptor.add_worker(share)?));
        }
        self.acceptors.push(acceptor);
        Ok(())
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
    /// Stop the acceptor threads, the last of which drains the workers.
    acceptors: Vec<AcceptorHandle>,
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.handles.iter().for_each(Handle::stop);
        self.acceptors.iter().for_each(AcceptorHandle::stop);
    }
}

/// Message from a worker thread or an acceptor thread to the main thread.
enum WorkerEvent {
    Started(Handle),
    Ended(Result<(), StartError>),
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
                    outcome = Err(StartError::new("a worker exited during start-up"));
                }
            }
        }
        outcome
    }

    /// Starts the acceptor threads. The last one to end drains the workers, which have received all accepted connections
    /// by then.
    fn accept(&mut self, acceptors: Vec<Acceptor>, send: &mpsc::Sender<WorkerEvent>) -> Result<(), StartError> {
        let running = Arc::new(AtomicUsize::new(acceptors.len()));
        for acceptor in acceptors {
            self.acceptors.push(acceptor.handle());
            let (handles, running, send) = (self.handles.clone(), Arc::clone(&running), send.clone());
            let accept = move || {
                let ended = catch_unwind(AssertUnwindSafe(|| acceptor.run()))
                    .unwrap_or_else(|_| Err(io::Error::other("panicked; please report this bug")));
                if running.fetch_sub(1, Ordering::SeqCst) == 1 {
                    handles.iter().for_each(Handle::drain);
                }
                let ended = ended.map_err(|error| StartError::from_io("an acceptor thread failed", &error));
                // Fails only if start-up was aborted.
                let _ = send.send(WorkerEvent::Ended(ended));
            };
            let started = thread::Builder::new().name("acceptor".into()).spawn(accept);
            started.map(drop).map_err(|error| StartError::from_io("cannot start a thread", &error))?;
        }
        Ok(())
    }

    /// Returns a closure that starts a graceful shutdown, from any thread.
    fn drain(&self) -> impl Fn() + Send + use<> {
        let (handles, acceptors) = (self.handles.clone(), self.acceptors.clone());
        move || {
            if acceptors.is_empty() {
                handles.iter().for_each(Handle::drain);
            } else {
                acceptors.iter().for_each(AcceptorHandle::stop);
            }
        }
    }

    /// Waits until all threads have ended. If one fails, drains the others.
    fn wait(&self, events: &mpsc::Receiver<WorkerEvent>) -> Result<(), StartError> {
        let mut outcome = Ok(());
        let results =
            events.iter().filter_map(|event| if let WorkerEvent::Ended(ended) = event { Some(ended) } else { None });
        for ended in results.take(self.handles.len() + self.acceptors.len()) {
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
    sources: Vec<ConnectionSource>,
    send: &mpsc::Sender<WorkerEvent>,
) -> Result<(), StartError> {
    // The only place that maps the name of a backend to its type.
    let poller = match backend {
        #[cfg(target_os = "linux")]
        Backend::Epoll => build_loop::<crate::r#loop::Epoll, A>(config, limit, make(), sources),
        #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
        Backend::Kqueue => build_loop::<crate::r#loop::Kqueue, A>(config, limit, make(), sources),
        // `Backend::resolve` has rejected any other.
        _ => build_loop::<Select, A>(config, limit, make(), sources),
    };
    let mut poller = poller.map_err(|error| StartError::from_io("cannot create an event loop", &error))?;
    // Fails only if start-up was aborted.
    let _ = send.send(WorkerEvent::Started(poller.handle()));
    poller.run().map_err(|error| StartError::from_io("the event loop failed", &error))
}

fn build_loop<B, A>(
    config: &Config,
    limit: &ConnectionLimit,
    app: A,
    sources: Vec<ConnectionSource>,
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
    for source in sources {
        match source {
            ConnectionSource::Listener(listener) => event_loop.listen(listener)?,
            ConnectionSource::Handoff(listener) => event_loop.listen(listener)?,
        }
    }
    Ok(Box::new(event_loop))
}
