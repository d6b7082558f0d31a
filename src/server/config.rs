//! The configuration of a server, and defaults that are derived from the system.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::start_error::{StartError, StartErrorKind};
#[cfg(feature = "cli")]
use crate::apps::files::CacheMetrics;
#[cfg(feature = "cli")]
use crate::httpserver::layers::AuthMetrics;
use crate::httpserver::{AccessLog, ClientIpHeader, Metrics};
use crate::r#loop::{LoopLimits, Networks, ProxyMode, Readiness, Select, Timeouts};

/// Configuration of a server with worker threads, for applications of your own.
///
/// The defaults are those of the command line. [`Config::serve`] runs a server in the foreground, with signal handling;
/// [`Config::start`] in the background, without. To run a server without threads, use an
/// [`EventLoop`](crate::EventLoop) directly.
///
/// # Examples
/// ```no_run
/// use serverd::HttpServer;
/// use serverd::{Config, StartError};
///
/// // One worker per core, each with its own handler, whose state needs no lock.
/// fn main() -> Result<(), StartError> {
///     Config::default().port(8080).workers(0).serve(|worker| {
///         let mut count = 0;
///         HttpServer::new(move |_| {
///             count += 1;
///             format!("response {count} of worker {worker}\n")
///         })
///     })
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Address or host name to listen on. With a name, the server listens on all of its addresses that can be bound.
    /// Default: 127.0.0.1.
    pub host: String,
    /// Port to listen on; 0 for any free port, the same for all addresses. Default: 8888.
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
    /// Limits of each worker's loop. `loop_limits.connections_max` is ignored in favour of `connections_max`, and
    /// `loop_limits.connections_per_address_max` applies to all workers together.
    pub loop_limits: LoopLimits,
    /// Maximum open connections of all workers together, at least 1. At the limit the connection that has been idle
    /// longest is closed for a new one; if none is idle, new ones wait in the listen queue. Default (`None`): as many as the file
    /// descriptor limit allows, less a reserve.
    pub connections_max: Option<usize>,
    /// File descriptors that the application of each worker may hold open; reserved when `connections_max` is derived
    /// from the file descriptor limit. Default: 0.
    pub files_max: usize,
    /// The proxies that may connect on behalf of other clients. They are exempt from
    /// `loop_limits.connections_per_address_max`. Pass them to an HTTP server of your own as well, with
    /// [`HttpServer::trusted_proxies`](crate::HttpServer::trusted_proxies). Default: none.
    pub trusted_proxies: Networks,
    /// The use of the PROXY protocol on connections of `trusted_proxies`. Default: [`ProxyMode::Off`].
    pub proxy_protocol: ProxyMode,
    /// Options of the built-in HTTP applications; applications of your own set them on their
    /// [`HttpServer`](crate::HttpServer).
    pub http: HttpOptions,
    /// The access log of the application, if it has one: its file is reopened on SIGHUP and SIGUSR1, and it is flushed
    /// at the end. Pass it to each server as well, with [`HttpServer::access_log`](crate::HttpServer::access_log).
    pub access_log: Option<AccessLog>,
    /// TLS for all connections. Default: none, that is, plain TCP.
    #[cfg(feature = "tls")]
    pub tls: Option<super::tls::TlsConfig>,
    /// Address of the admin listener, which reports health and metrics over HTTP, on a thread of its own: `GET /livez`,
    /// `/readyz`, `/metrics` and `/version`. Default: none.
    pub admin: Option<AdminAddress>,
    /// A further condition for the readiness that the admin listener reports. Default: none.
    pub ready_check: Option<ReadyCheck>,
    /// The metrics of the application's HTTP servers, for the admin listener. Pass them to each server as well, with
    /// [`HttpServer::metrics`](crate::HttpServer::metrics). Default: none.
    pub metrics: Option<Metrics>,
    /// The metrics of each worker's cache of files.
    #[cfg(feature = "cli")]
    pub(crate) file_caches: Vec<Arc<CacheMetrics>>,
    /// The results of each worker's Basic authentication.
    #[cfg(feature = "cli")]
    pub(crate) auth_metrics: Vec<Arc<AuthMetrics>>,
    /// Called on SIGHUP and SIGUSR1, after the access log file has been reopened. Default: none.
    pub on_reload: Option<OnReload>,
}

/// A callback for SIGHUP and SIGUSR1, called on the thread that handles signals. It must return soon: a signal that
/// arrives in between is handled afterwards.
///
/// # Examples
/// ```
/// use serverd::server::{Config, OnReload};
///
/// let config = Config::default().on_reload(OnReload::new(|| println!("reloading")));
/// # drop(config);
/// ```
#[derive(Clone)]
pub struct OnReload(Arc<dyn Fn() + Send + Sync>);

impl OnReload {
    /// Wraps a closure.
    pub fn new(call: impl Fn() + Send + Sync + 'static) -> Self {
        OnReload(Arc::new(call))
    }

    pub(super) fn call(&self) {
        (self.0)();
    }
}

impl fmt::Debug for OnReload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("OnReload")
    }
}

/// The address of the admin listener.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdminAddress {
    /// An address or a host name, with a port.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for AdminAddress {
    type Err = String;

    /// Parses `ADDR:PORT` or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        match (text.strip_prefix("unix:"), text.rsplit_once(':')) {
            (Some(""), _) => Err("missing path after unix:".into()),
            (Some(path), _) => Ok(AdminAddress::Unix(path.into())),
            (None, Some((host, port))) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(AdminAddress::Tcp(text.into()))
            }
            _ => Err("must be ADDR:PORT, such as 127.0.0.1:9090, or unix:PATH".into()),
        }
    }
}

/// A condition for the readiness of a server, called on the thread of the admin listener.
///
/// # Examples
/// ```
/// use serverd::server::{Config, ReadyCheck};
///
/// let check = ReadyCheck::new(|| std::fs::metadata("/srv").map(drop).map_err(|error| error.to_string()));
/// let config = Config::default().ready_check(check);
/// # drop(config);
/// ```
#[derive(Clone)]
pub struct ReadyCheck(Arc<dyn Fn() -> Result<(), String> + Send + Sync>);

impl ReadyCheck {
    /// Wraps a closure, which returns a description of the problem if the server is not ready.
    pub fn new(call: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        ReadyCheck(Arc::new(call))
    }

    pub(super) fn call(&self) -> Result<(), String> {
        (self.0)()
    }
}

impl fmt::Debug for ReadyCheck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ReadyCheck")
    }
}

impl Config {
    optional_setters! {
        admin: AdminAddress,
        ready_check: ReadyCheck,
        timeout: Duration,
        connections_max: usize,
        access_log: AccessLog,
        metrics: Metrics,
        on_reload: OnReload,
    }

    #[cfg(feature = "tls")]
    optional_setters! {
        tls: super::tls::TlsConfig,
    }

    setters! {
        host: String,
        port: u16,
        backend: Backend,
        workers: usize,
        balance: Balance,
        timeouts: Timeouts,
        loop_limits: LoopLimits,
        files_max: usize,
        trusted_proxies: Networks,
        proxy_protocol: ProxyMode,
        http: HttpOptions,
    }
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
            files_max: 0,
            trusted_proxies: Networks::default(),
            proxy_protocol: ProxyMode::Off,
            http: HttpOptions::default(),
            access_log: None,
            #[cfg(feature = "tls")]
            tls: None,
            admin: None,
            ready_check: None,
            metrics: None,
            #[cfg(feature = "cli")]
            file_caches: Vec::new(),
            #[cfg(feature = "cli")]
            auth_metrics: Vec::new(),
            on_reload: None,
        }
    }
}

/// Options of the built-in HTTP applications.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    /// Makes browsers use https for this long; see [`HttpServer::hsts`](crate::HttpServer::hsts). Default: none.
    pub hsts: Option<Duration>,
    /// The directory in which an ACME client creates `.well-known/acme-challenge`, which is served over plain HTTP on
    /// the plain port of TLS. Default: none.
    pub acme_webroot: Option<PathBuf>,
    /// The port in redirects from the plain port to https, for clients that connect to a port other than the one that
    /// the server listens on, as with the port mapping of a container. Default: the port of TLS.
    pub https_port: Option<u16>,
    /// The header with which [`Config::trusted_proxies`] name the client of a request. Default: X-Forwarded-For.
    pub client_ip_header: ClientIpHeader,
    /// The header for the ids of requests; see [`HttpServer::request_id`](crate::HttpServer::request_id). Default:
    /// none.
    pub request_id: Option<http::HeaderName>,
    /// The path of health checks; see [`HttpServer::health_path`](crate::HttpServer::health_path). Default: none.
    pub health_path: Option<String>,
}

impl HttpOptions {
    setters! {
        keep_alive_header: bool,
        requests_max: u32,
        allowed_hosts: Vec<String>,
        buffered_bytes_max: usize,
        client_ip_header: ClientIpHeader,
    }

    optional_setters! {
        hsts: Duration,
        acme_webroot: PathBuf,
        https_port: u16,
        request_id: http::HeaderName,
        health_path: String,
    }
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions {
            keep_alive_header: false,
            requests_max: 0,
            allowed_hosts: Vec::new(),
            buffered_bytes_max: 256 << 20,
            hsts: None,
            acme_webroot: None,
            https_port: None,
            client_ip_header: ClientIpHeader::default(),
            request_id: None,
            health_path: None,
        }
    }
}

// The doc comments of the values of the following types are also help texts.

/// An I/O readiness API, selected by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[non_exhaustive]
pub enum Backend {
    /// epoll on Linux, select elsewhere.
    Auto,
    /// Linux only.
    Epoll,
    /// macOS and the BSDs only.
    Kqueue,
    /// All platforms.
    Select,
}

/// Load balancing: how connections are distributed over several workers. A single worker always accepts by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[non_exhaustive]
pub enum Balance {
    /// kernel on Linux, least-connections elsewhere.
    Auto,
    #[cfg_attr(
        feature = "cli",
        value(help = "One listener per worker (SO_REUSEPORT), balanced by the kernel; Linux only")
    )]
    /// One listener per worker (`SO_REUSEPORT`), balanced by the kernel by a hash of the addresses; Linux only.
    ///
    /// Nothing is shared, but a few long-lived connections may end up on the same worker.
    Kernel,
    /// One thread accepts and hands each connection to the worker with the fewest connections.
    #[cfg_attr(feature = "cli", value(alias = "fewest"))]
    LeastConnections,
}

/// Properties of a running server, passed to the callback of [`Config::serve_with`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Started {
    /// Addresses the server is listening on: one, unless [`Config::host`] is a name with several, or listeners were
    /// passed to [`Config::start_on`].
    pub local_addrs: Vec<SocketAddr>,
    /// Addresses on which plain connections are accepted beside those with TLS; usually none.
    pub plain_addrs: Vec<SocketAddr>,
    /// Paths of the Unix sockets the server is listening on; see [`Config::start_on`].
    pub unix_paths: Vec<PathBuf>,
    /// Name of the backend.
    pub backend: &'static str,
    /// Number of workers.
    pub workers: usize,
    /// The SHA-256 fingerprint of the certificate that clients without a server name get; `None` without TLS.
    pub fingerprint: Option<String>,
}

impl Balance {
    /// Returns whether the kernel distributes the connections, or an error if that is configured but not supported.
    pub(super) fn uses_kernel(self, workers: usize) -> Result<bool, StartError> {
        match self {
            Balance::Kernel if !cfg!(target_os = "linux") && workers > 1 => {
                let message = "kernel load balancing is available on Linux only";
                Err(StartError::of_kind(StartErrorKind::Balance, message))
            }
            Balance::Kernel => Ok(true),
            Balance::Auto => Ok(cfg!(target_os = "linux")),
            Balance::LeastConnections => Ok(false),
        }
    }
}

impl Backend {
    /// Resolves `Auto`; returns an error if the backend is not available on this system.
    pub(super) fn resolve(self) -> Result<Backend, StartError> {
        const LINUX: bool = cfg!(target_os = "linux");
        const KQUEUE: bool = (cfg!(unix) && !LINUX) || cfg!(serverd_kqueue_by_epoll);
        match self {
            Backend::Auto => Ok(if LINUX { Backend::Epoll } else { Backend::Select }),
            Backend::Epoll if !LINUX => Err(unavailable("epoll", "Linux")),
            Backend::Kqueue if !KQUEUE => Err(unavailable("kqueue", "macOS and the BSDs")),
            chosen => Ok(chosen),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Backend::Auto => "auto",
            Backend::Epoll => "epoll",
            Backend::Kqueue => "kqueue",
            Backend::Select => Select::NAME,
        }
    }
}

fn unavailable(backend: &str, systems: &str) -> StartError {
    StartError::of_kind(StartErrorKind::Backend, format!("{backend} is available on {systems} only"))
}

/// Returns the number of workers; `configured` may be 0, for one per core.
pub(super) fn worker_count(configured: usize) -> usize {
    if configured == 0 { thread::available_parallelism().map_or(1, usize::from) } else { configured }
}

/// Upper bound of the derived connection limit, however many descriptors the system allows.
const CONNECTIONS_MAX: usize = 1_000_000;

/// File descriptors reserved for other purposes: standard streams, log, signals, and files an application opens.
const RESERVE: usize = 64;

/// File descriptors reserved per worker: listener, poller, waker.
const RESERVE_PER_WORKER: usize = 8;

/// Returns the connection limit: `configured`, or else as many as the file descriptor limit allows if each worker also
/// keeps `files` files open. Raises the soft limit of the process as far as possible.
pub(super) fn connections_max(configured: Option<usize>, workers: usize, files: usize) -> usize {
    let Some(descriptors) = raise_soft_limit() else {
        return configured.unwrap_or(CONNECTIONS_MAX);
    };
    let reserve = (RESERVE + (RESERVE_PER_WORKER + files) * workers).min(descriptors / 2);
    let available = descriptors - reserve;
    match configured {
        None => available.min(CONNECTIONS_MAX),
        Some(configured) => {
            if configured > available {
                log::warn!(
                    "the file descriptor limit allows about {available} connections, not {configured}; raise the limit \
                     (ulimit -n) or accept fewer connections"
                );
            }
            configured
        }
    }
}

/// Maximum soft limit on macOS, which reports an infinite hard limit but rejects that value (`OPEN_MAX`, setrlimit(2)).
#[cfg(unix)]
const OPEN_MAX: u64 = 10_240;

/// Raises the soft limit as far as possible and returns it; `None` if there is no limit.
#[cfg(unix)]
fn raise_soft_limit() -> Option<usize> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let is_higher = |limit: &Option<u64>| current.is_some_and(|current| limit.is_none_or(|limit| limit > current));
    let raised = [maximum, Some(OPEN_MAX)].into_iter().filter(is_higher).find(|&limit| {
        let allowed = limit.is_none_or(|limit| maximum.is_none_or(|maximum| limit <= maximum));
        allowed && setrlimit(Resource::Nofile, Rlimit { current: limit, maximum }).is_ok()
    });
    raised.unwrap_or(current).map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

#[cfg(not(unix))]
fn raise_soft_limit() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_or_is_the_path_of_a_socket() {
        for (text, expected) in [
            ("127.0.0.1:9090", Some(AdminAddress::Tcp("127.0.0.1:9090".into()))),
            ("[::1]:0", Some(AdminAddress::Tcp("[::1]:0".into()))),
            ("unix:/run/serverd.sock", Some(AdminAddress::Unix("/run/serverd.sock".into()))),
            ("unix:", None),
            ("9090", None),
            (":9090", None),
            ("127.0.0.1", None),
        ] {
            assert_eq!(text.parse::<AdminAddress>().ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_configured_limit_is_kept_and_a_derived_one_leaves_a_reserve() {
        assert_eq!(connections_max(Some(7), 1, 0), 7);
        let derived = connections_max(None, 1, 0);
        assert!((1..=CONNECTIONS_MAX).contains(&derived), "{derived}");
        assert!(connections_max(None, 100, 0) <= derived);
        assert!(connections_max(None, 1, 256) <= derived);
    }
}
