//! A socket that wakes a select call: sending on one handle makes the other readable.

use std::io;
#[cfg(windows)]
use std::net::{Ipv4Addr, UdpSocket};
#[cfg(unix)]
use std::os::unix::net::UnixStream;

use super::readiness::SystemSource;

/// One end of a Unix socket pair: writing to one end makes the other readable.
#[cfg(unix)]
pub(super) struct SocketWaker(UnixStream);

#[cfg(unix)]
impl SocketWaker {
    /// Creates a pair: the end to watch and the end to wake it with.
    pub(super) fn pair() -> io::Result<(SocketWaker, SocketWaker)> {
        let (read_end, write_end) = UnixStream::pair()?;
        read_end.set_nonblocking(true)?;
        write_end.set_nonblocking(true)?;
        Ok((SocketWaker(read_end), SocketWaker(write_end)))
    }

    pub(super) fn source(&self) -> &SystemSource {
        &self.0
    }

    /// Makes the watched end readable.
    pub(super) fn wake(&self) -> io::Result<()> {
        io::Write::write(&mut &self.0, &[1]).map(drop)
    }

    /// Reads and discards pending wake-ups.
    pub(super) fn clear(&self) {
        while matches!(io::Read::read(&mut &self.0, &mut [0; 64]), Ok(64)) {}
    }
}

/// A loopback UDP socket connected to itself: sending makes it readable.
#[cfg(windows)]
pub(super) struct SocketWaker(UdpSocket);

#[cfg(windows)]
impl SocketWaker {
    /// Creates a pair: the handle to watch and the handle to wake it with.
    pub(super) fn pair() -> io::Result<(SocketWaker, SocketWaker)> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(socket.local_addr()?)?;
        socket.set_nonblocking(true)?;
        let clone = socket.try_clone()?;
        Ok((SocketWaker(socket), SocketWaker(clone)))
    }

    pub(super) fn source(&self) -> &SystemSource {
        &self.0
    }

    /// Makes the socket readable.
    pub(super) fn wake(&self) -> io::Result<()> {
        self.0.send(&[1]).map(drop)
    }

    /// Reads and discards pending wake-ups.
    pub(super) fn clear(&self) {
        while self.0.recv(&mut [0; 64]).is_ok() {}
    }
}
