//! The listening sockets of a server: one or more, all on the same address, which is not shared with other processes.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::StartError;

/// Binds `count` listeners to the same address: the first address of `host` that can be bound.
pub(super) fn bind(host: &str, port: u16, count: usize, backlog: u32) -> Result<Vec<TcpListener>, StartError> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let addresses: Vec<SocketAddr> = (bare, port)
        .to_socket_addrs()
        .map_err(|error| {
            StartError(format!("cannot resolve host {host:?} ({error}); set --host to an address of this machine"))
        })?
        .collect();
    let mut outcome =
        Err(StartError(format!("the host {host:?} has no address; set --host to an address of this machine")));
    for address in addresses {
        match bind_all(address, count, backlog) {
            Ok(listeners) => return Ok(listeners),
            Err(error) => outcome = Err(cannot_listen(address, &error)),
        }
    }
    outcome
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> StartError {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "the port is in use; stop the process using it or choose another with --port",
        io::ErrorKind::PermissionDenied => "permission denied; choose a port above 1023 with --port",
        io::ErrorKind::AddrNotAvailable => "not an address of this machine; choose another with --host",
        _ => {
            return StartError(format!("cannot listen on {address}: {error}; choose another with --host or --port"));
        }
    };
    StartError(format!("cannot listen on {address}: {advice}"))
}

/// Enables TCP keep-alive: after 60 s of silence, 4 probes 15 s apart. Accepted sockets inherit it from their listener.
pub(super) fn keep_alive(listener: &TcpListener) -> io::Result<()> {
    let (socket, probes) = (SockRef::from(listener), TcpKeepalive::new().with_time(Duration::from_secs(60)));
    set_probes(&socket, probes)
}

/// Enables keep-alive without probe parameters, which are system-wide on OpenBSD.
#[cfg(target_os = "openbsd")]
fn set_probes(socket: &SockRef<'_>, probes: TcpKeepalive) -> io::Result<()> {
    socket.set_tcp_keepalive(&probes)
}

#[cfg(not(target_os = "openbsd"))]
fn set_probes(socket: &SockRef<'_>, probes: TcpKeepalive) -> io::Result<()> {
    let probes = probes.with_interval(Duration::from_secs(15));
    socket.set_tcp_keepalive(&probes.clone().with_retries(4)).or_else(|error| {
        // Windows has supported setting the number of probes since 2017; Wine does not. The default is 10.
        log::debug!("cannot set the number of keep-alive probes: {error}");
        socket.set_tcp_keepalive(&probes)
    })
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

    #[test]
    fn accepted_sockets_inherit_keep_alive_from_their_listener() {
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
