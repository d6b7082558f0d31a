//! The operating system's TCP sockets as [`readiness`](super::readiness) streams and listeners: std types, one system
//! call per method.

use std::fs::File;
use std::io::{self, IoSlice};
#[cfg(not(target_os = "linux"))]
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use socket2::SockRef;

use super::handoff::HandoffListener;
use super::readiness::{Listener, Received, Sent, Stream, SystemSource, send_file_by_copy};

/// A listening TCP socket, or a queue of connections accepted for this loop by an [`Acceptor`](super::Acceptor).
#[derive(Debug)]
pub struct TcpListener(ConnectionSource);

#[derive(Debug)]
enum ConnectionSource {
    System(std::net::TcpListener),
    Handoff(HandoffListener),
}

/// A connected TCP socket.
#[derive(Debug)]
pub struct TcpStream(std::net::TcpStream);

impl TcpStream {
    pub(super) fn into_std(self) -> std::net::TcpStream {
        self.0
    }
}

impl From<std::net::TcpListener> for TcpListener {
    fn from(listener: std::net::TcpListener) -> Self {
        TcpListener(ConnectionSource::System(listener))
    }
}

impl From<HandoffListener> for TcpListener {
    fn from(handoff: HandoffListener) -> Self {
        TcpListener(ConnectionSource::Handoff(handoff))
    }
}

impl TryFrom<std::net::TcpStream> for TcpStream {
    type Error = io::Error;

    /// Makes the socket non-blocking and disables Nagle's algorithm.
    ///
    /// # Errors
    /// Returns an error if the system rejects one of these options.
    fn try_from(stream: std::net::TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(TcpStream(stream))
    }
}

/// Repeats a call as long as it is interrupted by a signal.
#[inline]
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// A classic BPF socket filter for a listener: drops segments with SYN but no ACK (byte 13 of the TCP header), accepts
/// all others.
#[cfg(target_os = "linux")]
const DROP_SYN: [socket2::SockFilter; 5] = {
    use socket2::SockFilter;
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, 0x12),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, 0x02),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
};

impl Listener for TcpListener {
    type Stream = TcpStream;

    fn prepare(&mut self, backlog: u32) -> io::Result<()> {
        let ConnectionSource::System(listener) = &self.0 else {
            return Ok(());
        };
        listener.set_nonblocking(true)?;
        // std has called listen with a backlog of 128; a second call only changes that.
        SockRef::from(listener).listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        // On Linux, accepted sockets inherit this, which saves a call per connection.
        SockRef::from(listener).set_tcp_nodelay(true)
    }

    /// Attaches a filter to the listener that drops SYN segments. Clients retransmit them after a second and are
    /// refused if the listener is closed by then. Closing it thus resets no connection in mid-handshake.
    #[cfg(target_os = "linux")]
    fn stop_new_connections(&mut self) -> bool {
        matches!(&self.0, ConnectionSource::System(listener) if SockRef::from(listener).attach_filter(&DROP_SYN).is_ok())
    }

    #[cfg(not(target_os = "linux"))]
    fn stop_new_connections(&mut self) -> bool {
        false
    }

    #[inline]
    fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        match &self.0 {
            ConnectionSource::System(listener) => {
                retry(|| accept(listener)).map(|(stream, peer)| (TcpStream(stream), peer))
            }
            ConnectionSource::Handoff(handoff) => handoff.accept().map(|(stream, peer)| (TcpStream(stream), peer)),
        }
    }

    fn is_counted(&self) -> bool {
        matches!(self.0, ConnectionSource::Handoff(_))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            ConnectionSource::System(listener) => listener.local_addr(),
            ConnectionSource::Handoff(handoff) => Ok(handoff.local_addr()),
        }
    }

    fn source(&self) -> &SystemSource {
        match &self.0 {
            ConnectionSource::System(listener) => listener,
            ConnectionSource::Handoff(handoff) => handoff.source(),
        }
    }
}

/// Accepts with accept4(2), which makes the socket non-blocking in the same call.
#[cfg(target_os = "linux")]
fn accept(listener: &std::net::TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    use rustix::net::{SocketFlags, acceptfrom_with};
    let (stream, peer) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((stream.into(), peer))
}

#[cfg(not(target_os = "linux"))]
fn accept(listener: &std::net::TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    // Unlike std, socket2 makes the socket non-inheritable; otherwise a child process would keep it open.
    #[cfg(windows)]
    let (stream, peer) = {
        let (socket, peer) = SockRef::from(listener).accept()?;
        (std::net::TcpStream::from(socket), peer.as_socket().ok_or(io::ErrorKind::ConnectionAborted)?)
    };
    #[cfg(not(windows))]
    let (stream, peer) = listener.accept()?;
    stream.set_nonblocking(true)?;
    // Fails if the peer is already gone; the next read reports that.
    let _ = stream.set_nodelay(true);
    Ok((stream, peer))
}

/// Calls recv(2) directly: the C library's wrapper is a cancellation point, which costs more than the rest of a read.
#[cfg(target_os = "linux")]
#[inline]
fn receive(stream: &mut std::net::TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    use rustix::net::{RecvFlags, recv};
    Ok(rustix::io::retry_on_intr(|| recv(&*stream, &mut *buffer, RecvFlags::empty()))?.0)
}

#[cfg(target_os = "linux")]
#[inline]
fn send(stream: &mut std::net::TcpStream, bytes: &[u8]) -> io::Result<usize> {
    use rustix::net::SendFlags;
    Ok(rustix::io::retry_on_intr(|| rustix::net::send(&*stream, bytes, SendFlags::NOSIGNAL))?)
}

/// Sends with `MSG_MORE`: the kernel holds a partial packet back for up to 200 ms until more is sent, so that the
/// response head before a file does not take a packet of its own.
#[cfg(target_os = "linux")]
fn send_more(stream: &mut std::net::TcpStream, bytes: &[u8]) -> io::Result<usize> {
    use rustix::net::SendFlags;
    let flags = SendFlags::NOSIGNAL | SendFlags::MORE;
    Ok(rustix::io::retry_on_intr(|| rustix::net::send(&*stream, bytes, flags))?)
}

/// Sends part of a file zero-copy, with sendfile(2). A short count does not mean that the socket is full; only the next
/// call shows that. Falls back to read and write if the file system does not support sendfile. sendfile has no flag to
/// suppress SIGPIPE; the Rust runtime ignores that signal from program start.
#[cfg(target_os = "linux")]
fn send_file(stream: &mut TcpStream, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
    use rustix::io::Errno;
    let mut position = offset;
    match rustix::io::retry_on_intr(|| rustix::fs::sendfile(&stream.0, file, Some(&mut position), count)) {
        Ok(bytes) => Ok(Sent { bytes, more: true }),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => send_file_by_copy(stream, file, offset, count),
        Err(error) => Err(error.into()),
    }
}

/// Tests with a non-blocking read (`RWF_NOWAIT`) whether the range is in the page cache. Only EAGAIN means that it is
/// not: file systems without support return EOPNOTSUPP, and Linux 5.9 and 5.10 may return 0 for existing data. Only the
/// last byte is tested, since read-ahead loads a range from its beginning.
#[cfg(target_os = "linux")]
fn needs_readahead(file: &File, offset: u64, count: usize) -> bool {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    let (last, mut byte) = (offset + count as u64 - 1, [0]);
    preadv2(file, &mut [io::IoSliceMut::new(&mut byte)], last, ReadWriteFlags::NOWAIT) == Err(Errno::AGAIN)
}

#[cfg(not(target_os = "linux"))]
fn send_more(stream: &mut std::net::TcpStream, bytes: &[u8]) -> io::Result<usize> {
    send(stream, bytes)
}

#[cfg(not(target_os = "linux"))]
fn send_file(stream: &mut TcpStream, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
    send_file_by_copy(stream, file, offset, count)
}

#[cfg(not(target_os = "linux"))]
fn needs_readahead(_: &File, _: u64, _: usize) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
fn receive(stream: &mut std::net::TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    retry(|| stream.read(buffer))
}

#[cfg(not(target_os = "linux"))]
fn send(stream: &mut std::net::TcpStream, bytes: &[u8]) -> io::Result<usize> {
    retry(|| stream.write(bytes))
}

/// Sends with `MSG_NOSIGNAL`, unlike std, so that it never raises SIGPIPE, even if the process does not ignore it.
#[cfg(target_os = "linux")]
fn send_vectored(stream: &std::net::TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
    Ok(sendmsg(stream, slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?)
}

#[cfg(not(target_os = "linux"))]
fn send_vectored(mut stream: &std::net::TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    stream.write_vectored(slices)
}

impl Stream for TcpStream {
    type Source = SystemSource;

    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let bytes = receive(&mut self.0, buffer)?;
        // A short read means that the socket buffer is empty (recv(2) on a stream).
        Ok(Received { bytes, more: bytes == buffer.len() })
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        let sent = send(&mut self.0, bytes)?;
        Ok(Sent { bytes: sent, more: sent == bytes.len() })
    }

    fn write_more(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        let sent = send_more(&mut self.0, bytes)?;
        Ok(Sent { bytes: sent, more: sent == bytes.len() })
    }

    fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
        send_file(self, file, offset, count)
    }

    fn needs_readahead(&mut self, file: &File, offset: u64, count: usize) -> bool {
        needs_readahead(file, offset, count)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent> {
        let sent = retry(|| send_vectored(&self.0, slices))?;
        Ok(Sent { bytes: sent, more: sent == slices.iter().map(|slice| slice.len()).sum::<usize>() })
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    fn abort(&mut self) {
        // Fails only if the connection is already gone, and then there is nothing to reset.
        let _ = SockRef::from(&self.0).set_linger(Some(Duration::ZERO));
    }

    fn connected(&mut self) -> io::Result<()> {
        match self.0.take_error()? {
            Some(error) => Err(error),
            None => self.0.peer_addr().map(drop),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }

    fn source(&self) -> &SystemSource {
        &self.0
    }
}
