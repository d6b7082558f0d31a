//! The listening sockets of a server: one or more for each address of its host. No other process can listen on them.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use socket2::{Domain, Protocol, Socket, Type};

use super::config::StartError;

/// Number of attempts to find a port that is free on all addresses.
const FREE_PORT_ATTEMPTS: usize = 16;

/// An address with its listeners.
type Endpoint = (SocketAddr, Vec<TcpListener>);

/// Binds `count` listeners to each address of `host` that can be bound. If `port` is 0, all of them get the same free
/// port.
///
/// # Errors
/// Returns an error if no address can be bound.
pub(super) fn bind(host: &str, port: u16, count: usize, backlog: u32) -> Result<Vec<Endpoint>, StartError> {
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
    let mut last =
        StartError::new(format!("the host {host:?} has no address; set --host to an address of this machine"));
    for (address, error) in failures {
        // Names often have an IPv6 address on machines without IPv6, which is not worth a warning.
        let is_present = matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied);
        last = cannot_listen(address, &error);
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
        StartError::new(format!("cannot resolve host {host:?} ({error}); set --host to an address of this machine"))
    })?;
    Ok(addresses.collect())
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> StartError {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "the port is in use; stop the process using it or choose another with --port",
        io::ErrorKind::PermissionDenied => "permission denied; choose a port above 1023 with --port",
        io::ErrorKind::AddrNotAvailable => "not an address of this machine; choose another with --host",
        _ => {
            return StartError::new(format!(
                "cannot listen on {address}: {error}; choose another with --host or --port"
            ));
        }
    };
    StartError::new(format!("cannot listen on {address}: {advice}"))
}

fn bind_all(mut address: SocketAddr, count: usize, backlog: u32) -> io::Result<Vec<TcpListener>> {
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
    sockets.into_iter().map(|socket| socket.listen(backlog).map(|()| socket.into())).collect()
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
    use super::*;

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
