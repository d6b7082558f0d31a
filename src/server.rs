//! Assembly: a configuration becomes listeners, workers, loops and an application.
//!
//! Every worker is a thread with a loop and an application of its own; nothing is shared on the way of a request. The
//! kernel spreads connections over a listener for each worker (`SO_REUSEPORT`, where it balances), or one more thread
//! accepts, and hands each connection to the worker that has the fewest.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::httpserver::AccessLog;
use crate::r#loop::{
    Acceptor, App, Capacity, EventLoop, Handed, Handle, Limits, Poller, Readiness, Select, Stop, Timeouts,
};

mod access;
mod command;
mod descriptors;
#[cfg(feature = "files")]
mod files;
mod listeners;
mod signals;
#[cfg(windows)]
mod windows;

pub use access::{LogTarget, Logging};
pub use command::{Command, run};
#[cfg(feature = "files")]
pub use files::Site;

/// What a server is to be: for programs that want workers, signals and the bounds of the binary for applications of
/// their own.
///
/// # Examples
/// ```no_run
/// use serverd::HttpServer;
/// use serverd::server::{Config, Failure};
///
/// // A worker for each core; each has a handler of its own, whose state needs no lock.
/// fn main() -> Result<(), Failure> {
///     let config = Config { port: 8080, workers: 0, ..Config::default() };
///     config.serve(|worker| {
///         let mut count = 0;
///         HttpServer::new(move |_| {
///             count += 1;
///             format!("answer {count} of worker {worker}\n")
///         })
///     })
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen: an address or a name. 127.0.0.1.
    pub host: String,
    /// The port; 0 takes a free one. 8888.
    pub port: u16,
    /// Which system call tells readiness.
    pub backend: Backend,
    /// Threads; 0 is one per core. 1.
    pub workers: usize,
    /// How connections come to the workers.
    pub spread: Spread,
    /// Caps every phase.
    pub timeout: Option<Duration>,
    /// The limit of each phase.
    pub timeouts: Timeouts,
    /// What each loop grants its connections. Its bound on connections does not count; the next field does.
    pub loop_limits: Limits,
    /// Connections held at once by all workers together; `None` for as many as there are descriptors, less a reserve.
    pub connections_max: Option<usize>,
    /// Whether peers that are gone without a word are found by TCP keep-alive: after 60 s, then 4 probes, 15 s apart.
    /// For protocols in which people are silent for hours.
    pub keep_alive: bool,
    /// Descriptors that the application of each worker keeps for itself, which are taken off those for connections. 0.
    pub files_max: usize,
    /// The access log of the servers that are made, if they have one: SIGHUP and SIGUSR1 open its file again, and the end
    /// waits for its last lines. The servers are given it by [`HttpServer::access_log`](crate::HttpServer::access_log).
    pub access_log: Option<AccessLog>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            host: "127.0.0.1".into(),
            port: 8888,
            backend: Backend::Auto,
            workers: 1,
            spread: Spread::Auto,
            timeout: None,
            timeouts: Timeouts::default(),
            loop_limits: Limits::default(),
            connections_max: None,
            keep_alive: false,
            files_max: 0,
            access_log: None,
        }
    }
}

/// A backend by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The best one here: epoll on Linux, select elsewhere.
    Auto,
    /// Linux epoll.
    Epoll,
    /// kqueue of macOS and the BSDs.
    Kqueue,
    /// The select call.
    Select,
}

/// How connections come to several workers. One worker accepts by itself, whatever is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// By the kernel on Linux, else to the fewest.
    Auto,
    /// Each worker has a listener, and the kernel spreads connections over them by a hash of their addresses
    /// (`SO_REUSEPORT`): nothing is shared, but a few long connections may meet at one worker. Linux only.
    Kernel,
    /// One thread accepts, and hands each connection to the worker that has the fewest.
    Fewest,
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

/// A server that accepts connections.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Where it listens.
    pub local: SocketAddr,
    /// The backend's name.
    pub backend: &'static str,
    /// How many threads it has.
    pub workers: usize,
}

impl Config {
    /// Runs a server until it is told to end by SIGINT or SIGTERM (Ctrl-C): then it stops accepting, finishes what is
    /// under way and returns. A second signal ends the process at once with 128 and its number. SIGHUP and SIGUSR1 open
    /// the file of the access log again. Each worker's application is made on its own thread, by the worker's number.
    ///
    /// # Errors
    /// One sentence that says what to do instead.
    pub fn serve<A: App + 'static>(&self, make: impl Fn(usize) -> A + Send + Sync + 'static) -> Result<(), Failure> {
        self.serve_and(make, |started| log::info!("listening on {}", started.local))
    }

    /// As [`Config::serve`]; calls `started` once connections are accepted.
    ///
    /// # Errors
    /// As [`Config::serve`].
    pub fn serve_and<A: App + 'static>(
        &self,
        make: impl Fn(usize) -> A + Send + Sync + 'static,
        started: impl FnOnce(Started),
    ) -> Result<(), Failure> {
        let backend = self.backend.here()?;
        let workers = count_workers(self.workers);
        let capacity = Capacity::new(descriptors::connections_max(self.connections_max, workers, self.files_max));
        let shares: Vec<Capacity> = (0..workers).map(|_| capacity.share()).collect();
        let (local, entrances, acceptor) = self.open(&shares)?;
        let (send, receive) = mpsc::channel();
        let make = Arc::new(make);
        // Where the rest of the start fails, what has started ends with it.
        let mut crew = Crew::default();
        for (number, (entrance, capacity)) in entrances.into_iter().zip(shares).enumerate() {
            let (config, send, make) = (self.clone(), send.clone(), Arc::clone(&make));
            let worker = move || {
                let make = || make(number);
                let ended = catch_unwind(AssertUnwindSafe(|| work(backend, &config, &capacity, make, entrance, &send)))
                    .unwrap_or_else(|_| Err(Failure("a worker panicked; please report this".into())));
                // Fails only when the server gave up starting.
                let _ = send.send(News::Ended(ended));
            };
            if let Err(error) = thread::Builder::new().name(format!("worker-{number}")).spawn(worker) {
                crew.await_start(&receive, number)?;
                return Err(failed("cannot start a thread", &error));
            }
        }
        crew.await_start(&receive, workers)?;
        if let Some(acceptor) = acceptor {
            crew.accept(acceptor, send.clone())?;
        }
        drop(send);
        let reopen = self.access_log.as_ref().map(AccessLog::reopener);
        let _watch = signals::watch(crew.drain(), move || reopen.iter().for_each(|reopen| reopen()))
            .map_err(|error| failed("cannot listen for signals", &error))?;
        started(Started { local, backend: backend.name(), workers });
        let outcome = crew.wait(&receive);
        if let Some(log) = &self.access_log {
            log.flush();
        }
        outcome
    }

    /// Binds the port, and finds out how each worker gets its connections.
    fn open(&self, shares: &[Capacity]) -> Result<(SocketAddr, Vec<Entrance>, Option<Acceptor>), Failure> {
        let kernel = self.spread.is_by_kernel(shares.len())?;
        let count = if kernel { shares.len() } else { 1 };
        let mut listeners = listeners::bind(&self.host, self.port, count, self.loop_limits.backlog)?;
        let local = listeners[0].local_addr().map_err(|error| failed("cannot tell the own address", &error))?;
        if self.keep_alive {
            let set = listeners.iter().try_for_each(listeners::keep_alive);
            set.map_err(|error| failed("cannot set keep-alive", &error))?;
        }
        if kernel || shares.len() == 1 {
            return Ok((local, listeners.into_iter().map(Entrance::Listener).collect(), None));
        }
        let listener = listeners.remove(0);
        let make = || {
            let mut acceptor = Acceptor::new(listener, self.loop_limits.backlog)?;
            let handed = shares.iter().map(|share| acceptor.member(share).map(Entrance::Handed));
            let entrances = handed.collect::<io::Result<_>>()?;
            Ok((local, entrances, Some(acceptor)))
        };
        make().map_err(|error: io::Error| failed("cannot share a listener", &error))
    }
}

impl Spread {
    fn is_by_kernel(self, workers: usize) -> Result<bool, Failure> {
        match self {
            Spread::Kernel if !cfg!(target_os = "linux") && workers > 1 => Err(Failure(
                "the kernel spreads connections on Linux only; use --spread fewest, or leave the option out".into(),
            )),
            Spread::Kernel => Ok(true),
            Spread::Auto => Ok(cfg!(target_os = "linux")),
            Spread::Fewest => Ok(false),
        }
    }
}

/// Where a worker's connections come from.
enum Entrance {
    Listener(TcpListener),
    Handed(Handed),
}

/// The workers that have started; stopped when nobody waits for them any more.
#[derive(Default)]
struct Crew {
    handles: Vec<Handle>,
    /// Ends the thread that accepts for all of them; then that has them drain.
    acceptor: Option<Stop>,
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.handles.iter().for_each(Handle::stop);
        if let Some(acceptor) = &self.acceptor {
            acceptor.stop();
        }
    }
}

/// What workers tell the thread that started them.
enum News {
    Started(Handle),
    Ended(Result<(), Failure>),
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure(format!("{what}: {error}"))
}

impl Crew {
    fn await_start(&mut self, news: &mpsc::Receiver<News>, workers: usize) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for _ in 0..workers {
            match news.recv() {
                Ok(News::Started(handle)) => self.handles.push(handle),
                Ok(News::Ended(Err(failure))) => outcome = Err(failure),
                Ok(News::Ended(Ok(()))) | Err(_) => outcome = Err(Failure("a worker ended before it began".into())),
            }
        }
        outcome
    }

    /// Starts to accept for the workers. At its end the workers drain: whoever was accepted is with them by then.
    fn accept(&mut self, acceptor: Acceptor, send: mpsc::Sender<News>) -> Result<(), Failure> {
        self.acceptor = Some(acceptor.stop());
        let handles = self.handles.clone();
        let accept = move || {
            let ended = catch_unwind(AssertUnwindSafe(|| acceptor.run()))
                .unwrap_or_else(|_| Err(io::Error::other("it panicked; please report this")));
            handles.iter().for_each(Handle::drain);
            // Fails only when the server gave up starting.
            let _ = send.send(News::Ended(ended.map_err(|error| failed("the accepting thread failed", &error))));
        };
        let started = thread::Builder::new().name("acceptor".into()).spawn(accept);
        started.map(drop).map_err(|error| failed("cannot start a thread", &error))
    }

    /// What drains the server, from any thread.
    fn drain(&self) -> impl Fn() + Send + use<> {
        let (handles, acceptor) = (self.handles.clone(), self.acceptor.clone());
        move || match &acceptor {
            Some(acceptor) => acceptor.stop(),
            None => handles.iter().for_each(Handle::drain),
        }
    }

    /// Waits until all threads have ended; when one fails, the others are drained.
    fn wait(&self, news: &mpsc::Receiver<News>) -> Result<(), Failure> {
        let mut outcome = Ok(());
        let ends = news.iter().filter_map(|news| if let News::Ended(ended) = news { Some(ended) } else { None });
        for ended in ends.take(self.handles.len() + usize::from(self.acceptor.is_some())) {
            if let Err(failure) = &ended {
                log::error!("{failure}; the other workers drain");
                self.drain()();
            }
            outcome = outcome.and(ended);
        }
        outcome
    }
}

/// One worker's life.
fn work<A: App + 'static>(
    backend: Backend,
    config: &Config,
    capacity: &Capacity,
    make: impl FnOnce() -> A,
    entrance: Entrance,
    send: &mpsc::Sender<News>,
) -> Result<(), Failure> {
    // The one place that turns the name of a backend into a loop.
    let poller = match backend {
        #[cfg(target_os = "linux")]
        Backend::Epoll => assemble::<crate::r#loop::Epoll, A>(config, capacity, make(), entrance),
        #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
        Backend::Kqueue => assemble::<crate::r#loop::Kqueue, A>(config, capacity, make(), entrance),
        // No other is here.
        _ => assemble::<Select, A>(config, capacity, make(), entrance),
    };
    let mut poller = poller.map_err(|error| failed("cannot make an event loop", &error))?;
    // Fails only when the server gave up starting.
    let _ = send.send(News::Started(poller.handle()));
    poller.run().map_err(|error| failed("the event loop failed", &error))
}

fn assemble<B, A>(config: &Config, capacity: &Capacity, app: A, entrance: Entrance) -> io::Result<Box<dyn Poller>>
where
    B: Readiness + 'static,
    B::Listener: From<TcpListener> + From<Handed>,
    A: App + 'static,
{
    let mut timeouts = config.timeouts.clone();
    if let Some(limit) = config.timeout {
        timeouts.cap(limit);
    }
    let mut event_loop = EventLoop::<B, A>::with(timeouts, config.loop_limits.clone(), app)?;
    event_loop.share_capacity(capacity);
    match entrance {
        Entrance::Listener(listener) => event_loop.listen(listener)?,
        Entrance::Handed(handed) => event_loop.listen(handed)?,
    }
    Ok(Box::new(event_loop))
}

impl Backend {
    /// The one that is meant, if it exists here.
    fn here(self) -> Result<Backend, Failure> {
        const LINUX: bool = cfg!(target_os = "linux");
        const KQUEUE: bool = (cfg!(unix) && !LINUX) || cfg!(serverd_kqueue_by_epoll);
        match self {
            Backend::Auto => Ok(if LINUX { Backend::Epoll } else { Backend::Select }),
            Backend::Epoll if !LINUX => Err(absent("epoll", "Linux")),
            Backend::Kqueue if !KQUEUE => Err(absent("kqueue", "macOS and the BSDs")),
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

fn absent(backend: &str, systems: &str) -> Failure {
    Failure(format!("{backend} is for {systems}; use --backend select, or leave the option out"))
}

fn count_workers(wanted: usize) -> usize {
    if wanted == 0 { thread::available_parallelism().map_or(1, usize::from) } else { wanted }
}
