//! The system's sockets behind the seam of [`readiness`](super::readiness): std types, one call each.

use std::fs::File;
use std::io::{self, IoSlice};
#[cfg(not(target_os = "linux"))]
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use socket2::SockRef;

use super::file_range;
use super::handover::Handed;
use super::readiness::{Listener, Received, Sent, Stream, SystemSource};

/// A listening TCP socket, or what another thread [accepts](super::Acceptor) for this loop.
#[derive(Debug)]
pub struct TcpListener(Entrance);

#[derive(Debug)]
enum Entrance {
    Own(std::net::TcpListener),
    Handed(Handed),
}

/// A connected TCP socket.
#[derive(Debug)]
pub struct TcpStream(std::net::TcpStream);

impl From<std::net::TcpListener> for TcpListener {
    fn from(listener: std::net::TcpListener) -> Self {
        TcpListener(Entrance::Own(listener))
    }
}

impl From<Handed> for TcpListener {
    fn from(handed: Handed) -> Self {
        TcpListener(Entrance::Handed(handed))
    }
}

impl TryFrom<std::net::TcpStream> for TcpStream {
    type Error = io::Error;

    /// Makes the socket non-blocking and sends small pieces at once.
    fn try_from(stream: std::net::TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(TcpStream(stream))
    }
}

/// Repeats a call that a signal interrupted.
#[inline]
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// A classic socket filter, run on what comes to a listener: drop a segment whose flags (byte 13 of the TCP header) are
/// SYN without ACK, take every other.
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
        let Entrance::Own(listener) = &self.0 else {
            return Ok(());
        };
        listener.set_nonblocking(true)?;
        // A second listen only changes how many may wait; std asks for 128.
        SockRef::from(listener).listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        // Linux hands this on to accepted sockets, which saves a call for each of them.
        SockRef::from(listener).set_tcp_nodelay(true)
    }

    /// A filter on the listener drops whatever asks for a new connection: who asks asks again in a second, and is
    /// refused when the listener is closed by then. So nobody has half a connection that the close resets.
    #[cfg(target_os = "linux")]
    fn turn_away(&mut self) -> bool {
        matches!(&self.0, Entrance::Own(listener) if SockRef::from(listener).attach_filter(&DROP_SYN).is_ok())
    }

    #[cfg(not(target_os = "linux"))]
    fn turn_away(&mut self) -> bool {
        false
    }

    #[inline]
    fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        match &self.0 {
            Entrance::Own(listener) => retry(|| accept(listener)).map(|(stream, peer)| (TcpStream(stream), peer)),
            Entrance::Handed(handed) => handed.accept(),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Entrance::Own(listener) => listener.local_addr(),
            Entrance::Handed(handed) => Ok(handed.local_addr()),
        }
    }

    fn source(&self) -> &SystemSource {
        match &self.0 {
            Entrance::Own(listener) => listener,
            Entrance::Handed(handed) => handed.source(),
        }
    }
}

/// accept4 makes the socket non-blocking in the same call.
#[cfg(target_os = "linux")]
fn accept(listener: &std::net::TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    use rustix::net::{SocketFlags, acceptfrom_with};
    let (stream, peer) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((stream.into(), peer))
}

#[cfg(not(target_os = "linux"))]
fn accept(listener: &std::net::TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    // Unlike std's call this one keeps the socket from programs the process starts, which would hold it open.
    #[cfg(windows)]
    let (stream, peer) = {
        let (socket, peer) = SockRef::from(listener).accept()?;
        (std::net::TcpStream::from(socket), peer.as_socket().ok_or(io::ErrorKind::ConnectionAborted)?)
    };
    #[cfg(not(windows))]
    let (stream, peer) = listener.accept()?;
    stream.set_nonblocking(true)?;
    // Fails where the peer is gone already; the next read tells that better.
    let _ = stream.set_nodelay(true);
    Ok((stream, peer))
}

/// The bare calls: those of the C library are cancellation points, which costs more than all the rest of a read.
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

/// As [`send`], but the system waits for what is sent next, for a fifth of a second at most: no packet of its own for
/// the head of a file.
#[cfg(target_os = "linux")]
fn send_more(stream: &mut std::net::TcpStream, bytes: &[u8]) -> io::Result<usize> {
    use rustix::net::SendFlags;
    let flags = SendFlags::NOSIGNAL | SendFlags::MORE;
    Ok(rustix::io::retry_on_intr(|| rustix::net::send(&*stream, bytes, flags))?)
}

/// The file goes to the socket without a copy. A short count means nothing: only the next call tells that the socket is
/// full. Where a file system cannot do this, the file is read and written. No flag keeps this call from raising SIGPIPE,
/// which std ignores from the start of a program.
#[cfg(target_os = "linux")]
fn send_file(stream: &mut TcpStream, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
    use rustix::io::Errno;
    let mut position = offset;
    match rustix::io::retry_on_intr(|| rustix::fs::sendfile(&stream.0, file, Some(&mut position), count)) {
        Ok(bytes) => Ok(Sent { bytes, more: true }),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => file_range::copy(stream, file, offset, count),
        Err(error) => Err(error.into()),
    }
}

/// A read that may not wait tells. Only EAGAIN means no: file systems that cannot tell say EOPNOTSUPP, and Linux 5.9 and
/// 5.10 may say 0 where there is something. The last byte stands for all: a file is brought into memory from its
/// beginning on.
#[cfg(target_os = "linux")]
fn is_cold(file: &File, offset: u64, count: usize) -> bool {
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
    file_range::copy(stream, file, offset, count)
}

#[cfg(not(target_os = "linux"))]
fn is_cold(_: &File, _: u64, _: usize) -> bool {
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

/// Unlike std's call this one never raises SIGPIPE, in whatever process the loop is embedded.
#[cfg(target_os = "linux")]
fn gathered(stream: &std::net::TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
    Ok(sendmsg(stream, slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?)
}

#[cfg(not(target_os = "linux"))]
fn gathered(mut stream: &std::net::TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    stream.write_vectored(slices)
}

impl Stream for TcpStream {
    type Source = SystemSource;

    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let bytes = receive(&mut self.0, buffer)?;
        // A socket that gave less than it was asked for is empty (recv(2) on a stream).
        Ok(Received { bytes, more: bytes == buffer.len() })
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        let taken = send(&mut self.0, bytes)?;
        Ok(Sent { bytes: taken, more: taken == bytes.len() })
    }

    fn write_more(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        let taken = send_more(&mut self.0, bytes)?;
        Ok(Sent { bytes: taken, more: taken == bytes.len() })
    }

    fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
        send_file(self, file, offset, count)
    }

    fn is_cold(&mut self, file: &File, offset: u64, count: usize) -> bool {
        is_cold(file, offset, count)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent> {
        let taken = retry(|| gathered(&self.0, slices))?;
        Ok(Sent { bytes: taken, more: taken == slices.iter().map(|slice| slice.len()).sum::<usize>() })
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    fn abort(&mut self) {
        // Fails only where the connection is gone, and then there is nothing to reset.
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
