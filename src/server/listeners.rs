//! The listening sockets of a server: one for each worker, all on one address that nobody else has.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::Failure;

/// One listener per worker, all on the same address.
pub(super) fn bind(host: &str, port: u16, workers: usize, backlog: u32) -> Result<Vec<TcpListener>, Failure> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let addresses: Vec<SocketAddr> = (bare, port)
        .to_socket_addrs()
        .map_err(|error| {
            Failure(format!("cannot find the host {host:?} ({error}); give --host an address of this machine"))
        })?
        .collect();
    let mut outcome = Err(Failure(format!("the host {host:?} has no address; give --host an address of this machine")));
    for address in addresses {
        match bind_all(address, workers, backlog) {
            Ok(listeners) => return Ok(listeners),
            Err(error) => outcome = Err(cannot_listen(address, &error)),
        }
    }
    outcome
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> Failure {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "the port is taken; stop who uses it or choose another with --port",
        io::ErrorKind::PermissionDenied => "not permitted; choose a port above 1023 with --port",
        io::ErrorKind::AddrNotAvailable => "not an address of this machine; choose another with --host",
        _ => {
            return Failure(format!("cannot listen on {address}: {error}; choose another with --host or --port"));
        }
    };
    Failure(format!("cannot listen on {address}: {advice}"))
}

/// Asks the system to find out whether silent peers are still there: after a minute of silence, four times, every
/// fifteen seconds. Accepted sockets have it from their listener.
pub(super) fn keep_alive(listener: &TcpListener) -> io::Result<()> {
    let (socket, probes) = (SockRef::from(listener), TcpKeepalive::new().with_time(Duration::from_secs(60)));
    set_probes(&socket, probes)
}

/// OpenBSD has one number and one time for the whole system.
#[cfg(target_os = "openbsd")]
fn set_probes(socket: &SockRef<'_>, probes: TcpKeepalive) -> io::Result<()> {
    socket.set_tcp_keepalive(&probes)
}

#[cfg(not(target_os = "openbsd"))]
fn set_probes(socket: &SockRef<'_>, probes: TcpKeepalive) -> io::Result<()> {
    let probes = probes.with_interval(Duration::from_secs(15));
    socket.set_tcp_keepalive(&probes.clone().with_retries(4)).or_else(|error| {
        // Windows knows the number of probes since 2017, Wine does not; theirs is ten.
        log::debug!("cannot choose how many probes there are: {error}");
        socket.set_tcp_keepalive(&probes)
    })
}

fn bind_all(mut address: SocketAddr, workers: usize, backlog: u32) -> io::Result<Vec<TcpListener>> {
    let first = open(address)?;
    // Bound without sharing, so that another server on the port is noticed; shared among the own workers only then.
    first.bind(&address.into())?;
    let mut sockets = vec![first];
    if workers > 1 {
        share_port(&sockets[0])?;
        address.set_port(sockets[0].local_addr()?.as_socket().map_or(address.port(), |own| own.port()));
        for _ in 1..workers {
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
    // Lets a server start again while old connections are in TIME_WAIT. On Windows, where that is so anyway, the option
    // means that others may take the port over.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    #[cfg(windows)]
    super::windows::take_port_exclusively(&socket)?;
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

    #[test]
    fn accepted_sockets_have_keep_alive_from_their_listener() {
        let listeners = bind("127.0.0.1", 0, 1, 8).unwrap();
        keep_alive(&listeners[0]).unwrap();
        let _client = std::net::TcpStream::connect(listeners[0].local_addr().unwrap()).unwrap();
        let (accepted, _) = listeners[0].accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
        }
    }
}
