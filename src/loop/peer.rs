//! The other end of a connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The other end of a connection: an address, or a Unix socket.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Peer, Request};
///
/// let server = HttpServer::new(|request: &Request<'_>| match request.peer() {
///     Some(Peer::Tcp(address)) => format!("hello {}\n", address.ip()),
///     Some(Peer::Unix) => "hello neighbour\n".to_owned(),
///     _ => "hello\n".to_owned(),
/// });
/// # drop(server);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Peer {
    /// A TCP connection to this address.
    Tcp(SocketAddr),
    /// A connection over a Unix socket, from a process of this machine.
    Unix,
}

impl Peer {
    /// Returns the address of a TCP connection.
    pub fn addr(self) -> Option<SocketAddr> {
        match self {
            Peer::Tcp(address) => Some(address),
            Peer::Unix => None,
        }
    }

    /// Returns the IP address of a TCP connection.
    pub fn ip(self) -> Option<IpAddr> {
        self.addr().map(|address| address.ip())
    }

    /// Returns whether this is a connection over a Unix socket.
    pub fn is_unix(self) -> bool {
        matches!(self, Peer::Unix)
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Peer::Tcp(address)
    }
}

/// Formats an address with its port, and a Unix socket as `unix`.
impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(formatter),
            Peer::Unix => formatter.write_str("unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is returned with every accepted connection.
    #[test]
    fn a_peer_is_as_small_as_an_address() {
        assert_eq!(size_of::<Option<Peer>>(), size_of::<SocketAddr>());
    }
}
