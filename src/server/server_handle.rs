//! A server that runs in the background: its start, and the handle that controls it. A server in the foreground is
//! started and ended with the same code.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::admin::Admin;
use super::config::{Config, Started};
use super::start_error::StartError;
use super::threads::Threads;
use super::worker_loop::{BoundListener, PlainOrOther, worker_loops};
use crate::httpserver::AccessLog;
use crate::r#loop::{App, ConnectionLimit, Handle};

impl Config {
    /// Starts a server in the background, and returns once it accepts connections. Installs no signal handlers, and can
    /// be called any number of times in a process.
    ///
    /// `make` is called on each worker's thread with the worker's number, starting at 0, to create its application.
    ///
    /// The file descriptor limit of the process is raised as far as the system allows.
    ///
    /// # Errors
    /// Returns an error if the address cannot be bound, the backend or balancing mode is not available on this system,
    /// or a worker cannot be created.
    ///
    /// # Examples
    /// ```
    /// use serverd::{Config, HttpServer};
    ///
    /// let server = Config::default().port(0).start(|_worker| HttpServer::new(|_| "hello\n"))?;
    /// println!("listening on http://{}", server.local_addr());
    /// // The program does something else. At its end:
    /// server.drain();
    /// server.wait()?;
    /// # Ok::<(), serverd::StartError>(())
    /// ```
    pub fn start<A: App + 'static>(
        &self,
        make: impl Fn(usize) -> A + Send + Sync + 'static,
    ) -> Result<ServerHandle, StartError> {
        self.launch(
            Box::new(|shares| self.open(shares)),
            &worker_loops::<PlainOrOther, _>(move |worker| make(worker.number)),
        )
    }

    /// Starts a server as [`Config::start`] does, on listeners that are already bound: TCP sockets, such as those from
    /// socket activation, and on Unix also Unix sockets. [`Config::host`] and [`Config::port`] are not used. Several
    /// workers share the listeners ([`Balance::LeastConnections`](super::Balance::LeastConnections)).
    ///
    /// # Errors
    /// Returns the errors of [`Config::start`], and an error if there is no listener or the connections of several
    /// workers are to be balanced by the kernel, for which the server has to bind the listeners.
    ///
    /// # Examples
    /// ```
    /// use serverd::{Config, HttpServer};
    /// use std::net::TcpListener;
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    /// let server = Config::default().workers(2).start_on([listener], |_worker| HttpServer::new(|_| "hello\n"))?;
    /// # drop(server);
    /// # Ok::<(), serverd::StartError>(())
    /// ```
    ///
    /// With a Unix socket (see `UnixSocket`):
    /// ```
    /// # #[cfg(unix)] {
    /// use serverd::{BoundListener, Config, HttpServer, UnixSocket};
    /// use std::net::TcpListener;
    ///
    /// let directory = tempfile::tempdir()?;
    /// let listeners: [BoundListener; 2] = [
    ///     TcpListener::bind("127.0.0.1:0")?.into(),
    ///     UnixSocket::bind(directory.path().join("hello.sock"), 0o660)?.into(),
    /// ];
    /// let server = Config::default().start_on(listeners, |_worker| HttpServer::new(|_| "hello\n"))?;
    /// # drop(server);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn start_on<A: App + 'static>(
        &self,
        listeners: impl IntoIterator<Item: Into<BoundListener>>,
        make: impl Fn(usize) -> A + Send + Sync + 'static,
    ) -> Result<ServerHandle, StartError> {
        let open = Box::new(|shares: &[ConnectionLimit]| self.open_bound(listeners, shares));
        self.launch(open, &worker_loops::<PlainOrOther, _>(move |worker| make(worker.number)))
    }
}

/// Controls a server that was started with [`Config::start`]. Dropping it stops the server at once: it closes all
/// connections and waits for its threads, that is, for the calls of the application that are in progress.
///
/// # Examples
/// Runs until a line is read from standard input:
/// ```no_run
/// use serverd::{Config, HttpServer};
/// use std::time::Duration;
///
/// fn main() -> Result<(), serverd::StartError> {
///     let server = Config::default().start(|_worker| HttpServer::new(|_| "hello\n"))?;
///     let _ = std::io::stdin().read_line(&mut String::new());
///     server.drain_within(Duration::from_secs(5));
///     server.wait()
/// }
/// ```
pub struct ServerHandle {
    pub(super) started: Started,
    /// Handles of the workers' loops, by number.
    pub(super) loops: Vec<Handle>,
    pub(super) reload: Arc<dyn Fn() + Send + Sync>,
    pub(super) access_log: Option<AccessLog>,
    pub(super) connections: ConnectionLimit,
    pub(super) threads: Threads,
    /// Ends after the threads.
    pub(super) _admin: Option<Admin>,
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ServerHandle").field("started", &self.started).finish_non_exhaustive()
    }
}

impl ServerHandle {
    /// Returns the first address that the server listens on.
    ///
    /// # Panics
    /// Panics if the server was started with [`Config::start_on`] on Unix sockets only; see [`Started::unix_paths`].
    pub fn local_addr(&self) -> SocketAddr {
        *self.started.local_addrs.first().expect("the server listens on an address, not only on Unix sockets")
    }

    /// Returns all addresses that the server listens on.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.started.local_addrs
    }

    /// Returns the properties of the server.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// Returns a handle of the event loop of each worker, by its number, for example to call closures on its thread.
    /// Use the methods of this type to end the server: a worker that ends alone takes no more connections.
    ///
    /// # Examples
    /// ```
    /// use serverd::{Config, HttpServer};
    /// use std::time::Duration;
    ///
    /// let server = Config::default().port(0).start(|_| HttpServer::new(|_| "hello\n"))?;
    /// server.loops()[0].call_every(Duration::from_secs(60), || println!("still running"));
    /// # Ok::<(), serverd::StartError>(())
    /// ```
    pub fn loops(&self) -> &[Handle] {
        &self.loops
    }

    /// Returns the number of open connections of all workers.
    pub fn connections(&self) -> usize {
        self.connections.open()
    }

    /// Starts a graceful shutdown: the server stops accepting, finishes in-flight requests and ends; see
    /// [`Handle::drain`].
    pub fn drain(&self) {
        self.threads.control.drain(None);
    }

    /// Starts a graceful shutdown that takes at most `limit` and closes idle connections at once, or shortens one in
    /// progress; see [`Handle::drain_within`].
    pub fn drain_within(&self, limit: Duration) {
        self.threads.control.drain(Some(limit));
    }

    /// Ends the server at once; open connections are closed.
    pub fn stop(&self) {
        self.threads.control.stop();
    }

    /// Reopens the file of the access log, reads the certificates again and calls [`Config::on_reload`], as
    /// [`Config::serve`] does on SIGHUP.
    pub fn reload(&self) {
        (self.reload)();
    }

    /// Waits until the server has ended: after [`ServerHandle::drain`] or [`ServerHandle::stop`], or because a worker
    /// has failed.
    ///
    /// # Errors
    /// Returns an error if a worker has failed. The others have been shut down gracefully then.
    pub fn wait(mut self) -> Result<(), StartError> {
        let outcome = self.threads.join();
        if let Some(log) = &self.access_log {
            log.flush();
        }
        outcome
    }
}
