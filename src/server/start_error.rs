//! The error of a server that cannot start or continue.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// Error of a server that could not start or could not continue.
///
/// Its message is a sentence, which includes that of its [`source`](Error::source). The debug output is the same
/// sentence, so that it can be returned from `main`.
///
/// # Examples
/// ```
/// use serverd::{Config, HttpServer, StartErrorKind};
///
/// let first = Config::default().port(0).start(|_| HttpServer::new(|_| "hello\n"))?;
/// let config = Config::default().port(first.local_addr().port());
/// let error = config.start(|_| HttpServer::new(|_| "hello\n")).unwrap_err();
/// assert_eq!(error.kind(), StartErrorKind::Listen(first.local_addr()));
/// assert!(format!("{error:?}").ends_with("the port is in use"));
/// # Ok::<(), serverd::StartError>(())
/// ```
pub struct StartError {
    kind: StartErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The cause of a [`StartError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartErrorKind {
    /// The host cannot be resolved or has no address, or the address has no port.
    Host,
    /// The server cannot listen on this address. The source is the [`io::Error`].
    Listen(SocketAddr),
    /// The server cannot listen on this address for plain connections beside those with TLS. The source is the
    /// [`io::Error`].
    ListenPlain(SocketAddr),
    /// The backend is not available on this system.
    Backend,
    /// This distribution of connections over workers is not available: on this system, or for bound listeners.
    Balance,
    /// A certificate or private key cannot be used.
    Tls,
    /// A file, a directory or another value of the configuration cannot be used.
    Configuration,
    /// The system provides no thread, event loop or signal handler. The source is the [`io::Error`].
    System,
    /// A worker failed after the start.
    Worker,
}

impl StartError {
    pub(super) fn of_kind(kind: StartErrorKind, message: impl Into<String>) -> Self {
        StartError { kind, message: message.into(), source: None }
    }

    /// Creates an error about the configuration.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self::of_kind(StartErrorKind::Configuration, message)
    }

    /// Creates an error from a failed system call.
    pub(super) fn from_io(what: &str, error: io::Error) -> Self {
        Self::of_kind(StartErrorKind::System, format!("{what}: {error}")).with_source(error)
    }

    pub(super) fn with_kind(self, kind: StartErrorKind) -> Self {
        StartError { kind, ..self }
    }

    /// Marks the error as one of the port for plain connections.
    pub(super) fn of_plain_port(self) -> Self {
        match self.kind {
            StartErrorKind::Listen(address) => self.with_kind(StartErrorKind::ListenPlain(address)),
            _ => self,
        }
    }

    pub(super) fn with_source(self, source: impl Error + Send + Sync + 'static) -> Self {
        StartError { source: Some(Box::new(source)), ..self }
    }

    /// Returns the cause of the error.
    pub fn kind(&self) -> StartErrorKind {
        self.kind
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl fmt::Debug for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
