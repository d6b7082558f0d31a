//! The event loop of a worker, with its listeners and their security.
//!
//! A loop is compiled for each combination of application, backend and stream, and each adds some 100 KiB to the binary.
//! So there are two kinds of streams: plain sockets, whose path has nothing of TLS and the PROXY protocol, and one for
//! everything else, in which these are optional. The built-in applications share one type of handlers. All else here is
//! independent of these types.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::config::{Backend, Config};
use super::start_error::StartError;
#[cfg(feature = "tls")]
use super::start_error::StartErrorKind;
#[cfg(feature = "tls")]
use super::tls::{CertificateExpiry, FileHashes, TlsConfig};
#[cfg(feature = "cli")]
use crate::apps::Files;
use crate::httpserver::{BodyMode, Handler, Request, RequestHead, Response};
use crate::r#loop::metrics::LoopMetrics;
use crate::r#loop::{
    App, ConnectionLimit, EventLoop, Poller, ProxyListener, ProxyMode, ProxyProtocol, Readiness, Select,
    SystemListener, SystemSocket, WithProxy,
};
#[cfg(feature = "tls")]
use crate::r#loop::{TlsListener, WithTls};

/// A listener for [`Config::start_on`](super::Config::start_on): a bound TCP or Unix socket.
///
/// # Examples
/// ```
/// use serverd::BoundListener;
/// use std::net::TcpListener;
///
/// let listeners: [BoundListener; 2] = [
///     TcpListener::bind("127.0.0.1:0")?.into(),
///     BoundListener::from(TcpListener::bind("127.0.0.1:0")?).plain(),
/// ];
/// # drop(listeners);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct BoundListener {
    pub(super) listener: SystemListener,
    pub(super) role: Role,
}

/// The role of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Accepts connections with TLS if it is configured, plain ones otherwise.
    Main,
    /// Accepts plain connections.
    Plain,
}

impl BoundListener {
    /// Accepts plain connections on this listener, even if `Config::tls` is set for the others.
    #[must_use]
    pub fn plain(self) -> Self {
        BoundListener { role: Role::Plain, ..self }
    }
}

impl<T: SystemSocket> From<T> for BoundListener {
    fn from(listener: T) -> Self {
        BoundListener { listener: listener.into(), role: Role::Main }
    }
}

/// Creates the loop of a worker.
pub(super) type BuildLoop = dyn Fn(Backend, Setup<'_>) -> io::Result<Box<dyn Poller>> + Send + Sync;

/// A worker, as passed to the function that creates its application.
#[derive(Clone, Copy)]
pub(super) struct Worker {
    /// Its number, starting at 0.
    pub(super) number: usize,
    /// The port of the server: with TLS, if it is configured. 0 if it has only Unix sockets.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "for redirects of the built-in applications"))]
    pub(super) port: u16,
}

/// The configuration of a worker's loop.
pub(super) struct Setup<'a> {
    pub(super) worker: Worker,
    pub(super) config: &'a Config,
    pub(super) limit: &'a ConnectionLimit,
    /// The metrics of the loop, if there is an admin listener.
    pub(super) metrics: Option<&'a Arc<LoopMetrics>>,
    pub(super) sources: Vec<(SystemListener, Role)>,
    pub(super) security: &'a Security,
}

/// TLS of all listeners, if it is configured.
#[derive(Clone, Default)]
pub(super) struct Security {
    #[cfg(feature = "tls")]
    tls: Option<crate::tls::Tls>,
    /// From before the files were read.
    #[cfg(feature = "tls")]
    hashes: FileHashes,
}

#[cfg(feature = "tls")]
impl Security {
    /// Reads the certificates, or creates one for the addresses of the server.
    pub(super) fn open(config: &Config, addresses: &[SocketAddr]) -> Result<Self, StartError> {
        let hashes = config.tls.as_ref().map(TlsConfig::hashes).unwrap_or_default();
        let tls = config.tls.as_ref().map(|tls| tls.open(&config.host, addresses)).transpose();
        tls.map(|tls| Security { tls, hashes })
            .map_err(|error| StartError::of_kind(StartErrorKind::Tls, format!("TLS: {error}")).with_source(error))
    }

    /// Returns the port for plain connections beside those with TLS.
    pub(super) fn plain_port(config: &Config) -> Option<u16> {
        config.tls.as_ref()?.plain_port
    }

    fn is_configured(config: &Config) -> bool {
        config.tls.is_some()
    }

    /// Adds a listener, whose connections use TLS if it is configured and the listener is not the plain one.
    fn listen<B: Readiness, A: App>(
        &self,
        event_loop: &mut EventLoop<WithTls<B>, A>,
        listener: B::Listener,
        role: Role,
    ) -> io::Result<()> {
        match &self.tls {
            Some(tls) if role == Role::Main => event_loop.listen_tls(listener, tls),
            _ => event_loop.listen(TlsListener::plain(listener)),
        }
    }

    pub(super) fn fingerprint(&self) -> Option<String> {
        self.tls.as_ref().map(crate::tls::Tls::fingerprint)
    }

    /// Returns the certificates in use.
    pub(super) fn expiries(&self, config: &TlsConfig) -> Vec<CertificateExpiry> {
        self.tls.as_ref().map(|tls| config.expiries(tls)).unwrap_or_default()
    }

    /// Watches the certificate files. Returns a function that makes the thread read them at once.
    pub(super) fn watch(&self, config: &Config) -> Result<impl Fn() + Send + Sync + use<>, StartError> {
        let mut read = None;
        if let (Some(tls), Some(config)) = (&self.tls, config.tls.as_ref().filter(|config| config.has_files())) {
            let watch = config.watch(tls.clone(), self.hashes.clone());
            read = Some(watch.map_err(|error| StartError::from_io("cannot start a thread", error))?);
        }
        Ok(move || read.iter().for_each(|read| read()))
    }
}

#[cfg(not(feature = "tls"))]
#[allow(clippy::unnecessary_wraps, reason = "can fail with TLS")]
impl Security {
    pub(super) fn open(_: &Config, _: &[SocketAddr]) -> Result<Self, StartError> {
        Ok(Security::default())
    }

    pub(super) fn plain_port(_: &Config) -> Option<u16> {
        None
    }

    fn is_configured(_: &Config) -> bool {
        false
    }

    fn listen<B: Readiness, A: App>(
        &self,
        event_loop: &mut EventLoop<B, A>,
        listener: B::Listener,
        _: Role,
    ) -> io::Result<()> {
        let Security {} = self;
        event_loop.listen(listener)
    }

    pub(super) fn fingerprint(&self) -> Option<String> {
        let Security {} = self;
        None
    }

    pub(super) fn watch(&self, _: &Config) -> Result<impl Fn() + Send + Sync + use<>, StartError> {
        let Security {} = self;
        Ok(|| {})
    }
}

/// Returns a function that creates the loops of workers with these streams, for the applications made by `make`.
pub(super) fn worker_loops<S: Streams, A: App + 'static>(
    make: impl Fn(Worker) -> A + Send + Sync + 'static,
) -> Arc<BuildLoop> {
    Arc::new(move |backend, setup| {
        let app = make(setup.worker);
        build::<S, A>(backend, setup, app)
    })
}

/// Returns whether connections have neither TLS nor the PROXY protocol.
pub(super) fn is_plain(config: &Config) -> bool {
    !Security::is_configured(config) && config.proxy_protocol == ProxyMode::Off
}

/// The kinds of streams for which loops are compiled.
pub(super) trait Streams: 'static {
    fn build<B, A>(setup: Setup<'_>, app: A) -> io::Result<Box<dyn Poller>>
    where
        B: Readiness + 'static,
        B::Listener: From<SystemListener>,
        A: App + 'static;
}

/// Plain sockets, for a configuration that [`is_plain`].
pub(super) struct Plain;

/// [`Plain`] or [`Other`], as the configuration needs.
pub(super) struct PlainOrOther;

/// Streams with optional TLS and PROXY protocol: half the code of [`PlainOrOther`], and some instructions more for each read
/// and write of a plain connection.
pub(super) struct Other;

/// Creates a loop: the only function that maps the name of a backend to its type.
fn build<S: Streams, A: App + 'static>(backend: Backend, setup: Setup<'_>, app: A) -> io::Result<Box<dyn Poller>> {
    match backend {
        #[cfg(target_os = "linux")]
        Backend::Epoll => S::build::<crate::r#loop::Epoll, A>(setup, app),
        #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
        Backend::Kqueue => S::build::<crate::r#loop::Kqueue, A>(setup, app),
        // `Backend::resolve` has rejected any other.
        _ => S::build::<Select, A>(setup, app),
    }
}

impl Streams for Plain {
    fn build<B, A>(setup: Setup<'_>, app: A) -> io::Result<Box<dyn Poller>>
    where
        B: Readiness + 'static,
        B::Listener: From<SystemListener>,
        A: App + 'static,
    {
        listening_loop::<B, A>(setup, app, |event_loop, source, _| event_loop.listen(source))
    }
}

impl Streams for PlainOrOther {
    fn build<B, A>(setup: Setup<'_>, app: A) -> io::Result<Box<dyn Poller>>
    where
        B: Readiness + 'static,
        B::Listener: From<SystemListener>,
        A: App + 'static,
    {
        if is_plain(setup.config) { Plain::build::<B, A>(setup, app) } else { Other::build::<B, A>(setup, app) }
    }
}

impl Streams for Other {
    fn build<B, A>(setup: Setup<'_>, app: A) -> io::Result<Box<dyn Poller>>
    where
        B: Readiness + 'static,
        B::Listener: From<SystemListener>,
        A: App + 'static,
    {
        let (mode, security) = (setup.config.proxy_protocol, setup.security);
        let protocol = (mode != ProxyMode::Off)
            .then(|| ProxyProtocol::new(mode, &setup.config.trusted_proxies).limit_addresses(setup.limit));
        listening_loop(setup, app, |event_loop, source, role| {
            let listener: ProxyListener<B::Listener> = match &protocol {
                Some(protocol) => ProxyListener::new(source, protocol),
                None => source.into(),
            };
            security.listen::<WithProxy<B>, A>(event_loop, listener, role)
        })
    }
}

/// Creates a loop with the limits of a worker, and adds its sources with `listen`.
fn listening_loop<B: Readiness + 'static, A: App + 'static>(
    setup: Setup<'_>,
    app: A,
    listen: impl Fn(&mut EventLoop<B, A>, SystemListener, Role) -> io::Result<()>,
) -> io::Result<Box<dyn Poller>> {
    let config = setup.config;
    let mut timeouts = config.timeouts.clone();
    if let Some(max) = config.timeout {
        timeouts.cap(max);
    }
    let mut event_loop = EventLoop::<B, A>::with_limits(timeouts, config.loop_limits.clone(), app)?;
    event_loop.share_connection_limit(setup.limit);
    if let Some(metrics) = setup.metrics {
        event_loop.record_metrics(metrics);
    }
    for (source, role) in setup.sources {
        listen(&mut event_loop, source, role)?;
    }
    Ok(Box::new(event_loop))
}

/// A handler of any built-in application, so that the HTTP server and the loops around a handler, which make up most of the
/// binary, are not compiled for each of them. The one whose requests take the least time is called directly.
pub(super) enum AnyHandler {
    #[cfg(feature = "cli")]
    Files(Box<Files>),
    Other(Box<dyn Handler>),
}

impl AnyHandler {
    /// Creates a handler that is called by its address.
    pub(super) fn new(handler: impl Handler + 'static) -> Self {
        AnyHandler::Other(Box::new(handler))
    }
}

impl Handler for AnyHandler {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        match self {
            #[cfg(feature = "cli")]
            AnyHandler::Files(handler) => handler.head(head),
            AnyHandler::Other(handler) => handler.head(head),
        }
    }

    #[allow(clippy::inline_always, reason = "a response is large, and a call would copy it")]
    #[inline(always)]
    fn call(&mut self, request: &Request<'_>) -> Response {
        match self {
            #[cfg(feature = "cli")]
            AnyHandler::Files(handler) => handler.call(request),
            AnyHandler::Other(handler) => handler.call(request),
        }
    }
}
