//! Listeners that the caller of a server has bound.

use crate::r#loop::{SystemListener, SystemSocket};

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
