//! The operating system's sockets as [`readiness`](super::readiness) streams and listeners: types of the standard
//! library, with one system call per method.
//!
//! A connected Unix socket is stored in a `std::net::TcpStream` too: that is only a file descriptor, and the methods
//! used here work for both. The few differences are in cold paths, which ask the system for the kind of the socket.

use std::fs::File;
use std::io::{self, IoSlice};
#[cfg(not(target_os = "linux"))]
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
#[cfg(unix)]
use std::os::fd::OwnedFd;
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::handoff::HandoffListener;
use super::peer::Peer;
use super::readiness::{Listener, Received, Sent, Stream, SystemSource, send_file_by_copy, would_block};
use super::select_call::{Sets, raw};
use super::system;
#[cfg(unix)]
use super::unix_socket::{SocketFile, UnixSocket};

/// A listening TCP or Unix socket, or a queue of connections accepted for this loop by an
/// [`Acceptor`](super::Acceptor).
///
/// # Examples
/// ```
/// # #[cfg(unix)] {
/// use serverd::{DefaultLoop, HttpServer};
/// use std::net::TcpListener;
/// use std::os::unix::net::UnixListener;
///
/// let directory = tempfile::tempdir()?;
/// let unix = UnixListener::bind(directory.path().join("hello.sock"))?;
/// let mut server = DefaultLoop::new(unix, None, HttpServer::new(|_| "hello\n"))?;
/// server.listen(TcpListener::bind("127.0.0.1:0")?)?;
/// # }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct SystemListener(ConnectionSource);

#[derive(Debug)]
enum ConnectionSource {
    Tcp(TcpSocket),
    /// The file is `Some` if this listener has to remove it.
    #[cfg(unix)]
    Unix(UnixListener, Option<SocketFile>),
    Handoff(HandoffListener),
}

/// A listening TCP socket.
#[derive(Debug)]
struct TcpSocket {
    listener: std::net::TcpListener,
    /// Another handle of the socket may exist, in this process or another one such as systemd, which outlives this one.
    may_be_shared: bool,
    /// [`DROP_SYN`] is attached.
    drops_handshakes: bool,
}

impl Drop for TcpSocket {
    /// Removes the filter for other handles of the socket, to which it would apply for ever. A socket without other handles
    /// closes with its filter, so that it resets no handshake.
    fn drop(&mut self) {
        if self.may_be_shared && self.drops_handshakes {
            allow_handshakes(&self.listener);
        }
    }
}

/// A connected TCP or Unix socket.
///
/// # Examples
/// ```
/// # #[cfg(unix)] {
/// use serverd::{DefaultLoop, Echo, LoopLimits, SystemStream, Timeouts};
/// use std::os::unix::net::UnixStream;
///
/// let (local, remote) = UnixStream::pair()?;
/// let mut echo = DefaultLoop::with_limits(Timeouts::default(), LoopLimits::default(), Echo)?;
/// echo.add_stream(SystemStream::try_from(local)?);
/// # drop(remote);
/// # }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct SystemStream(std::net::TcpStream);

/// A socket, or another source of connections, from which a [`SystemListener`] can be made. Backends that wrap others
/// convert it into their own type of listener.
pub trait SystemSocket: Into<SystemListener> {}

impl SystemSocket for SystemListener {}
impl SystemSocket for std::net::TcpListener {}
#[cfg(unix)]
impl SystemSocket for UnixListener {}
#[cfg(unix)]
impl SystemSocket for UnixSocket {}
impl SystemSocket for HandoffListener {}

impl SystemStream {
    /// Creates a socket and begins to connect it.
    pub(super) fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        set_keep_alive(&SockRef::from(&socket))?;
        limit_unsent(&SockRef::from(&socket))?;
        match socket.connect(&address.into()) {
            Err(error) if !is_in_progress(&error) => Err(error),
            _ => Ok(SystemStream(socket.into())),
        }
    }

    pub(super) fn into_std(self) -> std::net::TcpStream {
        self.0
    }

    /// Connects to a Unix socket, at once: unlike a connect over TCP, this one is never in progress.
    ///
    /// # Errors
    /// Returns an error if the path is too long, there is no socket, or no process listens on it; `WouldBlock` if the
    /// queue of the listener is full.
    #[cfg(unix)]
    pub fn connect_unix(path: impl AsRef<std::path::Path>) -> io::Result<Self> {
        let address = socket2::SockAddr::unix(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Otherwise the call would wait for a place in the queue.
        socket.set_nonblocking(true)?;
        retry(|| socket.connect(&address))?;
        Ok(SystemStream(socket.into()))
    }
}

impl SystemListener {
    /// Creates a listener from a socket of which no other handle exists.
    pub(crate) fn from_unshared(listener: std::net::TcpListener) -> Self {
        SystemListener(ConnectionSource::Tcp(TcpSocket { listener, may_be_shared: false, drops_handshakes: false }))
    }

    /// Returns the local address.
    ///
    /// # Errors
    /// Returns an error if the system cannot determine it, or if this is not a TCP socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            ConnectionSource::Tcp(socket) => socket.listener.local_addr(),
            #[cfg(unix)]
            ConnectionSource::Unix(..) => Err(io::ErrorKind::Unsupported.into()),
            ConnectionSource::Handoff(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Returns the path of a Unix socket; `None` for other sockets, and if it has none.
    #[cfg(unix)]
    pub fn unix_path(&self) -> Option<std::path::PathBuf> {
        match &self.0 {
            ConnectionSource::Unix(listener, _) => Some(listener.local_addr().ok()?.as_pathname()?.to_owned()),
            _ => None,
        }
    }

    /// Returns whether this is a Unix socket.
    #[cfg(unix)]
    pub(crate) fn is_unix(&self) -> bool {
        matches!(self.0, ConnectionSource::Unix(..))
    }
}

impl From<std::net::TcpListener> for SystemListener {
    fn from(listener: std::net::TcpListener) -> Self {
        SystemListener(ConnectionSource::Tcp(TcpSocket { listener, may_be_shared: true, drops_handshakes: false }))
    }
}

#[cfg(unix)]
impl From<UnixListener> for SystemListener {
    /// The file of the socket is not removed at the end; see [`UnixSocket`](super::UnixSocket).
    fn from(listener: UnixListener) -> Self {
        SystemListener(ConnectionSource::Unix(listener, None))
    }
}

#[cfg(unix)]
impl From<UnixSocket> for SystemListener {
    fn from(socket: UnixSocket) -> Self {
        let (listener, file) = socket.into_parts();
        SystemListener(ConnectionSource::Unix(listener, Some(file)))
    }
}

impl From<HandoffListener> for SystemListener {
    fn from(handoff: HandoffListener) -> Self {
        SystemListener(ConnectionSource::Handoff(handoff))
    }
}

#[cfg(unix)]
impl TryFrom<UnixStream> for SystemStream {
    type Error = io::Error;

    /// Makes the socket non-blocking.
    ///
    /// # Errors
    /// Returns an error if the system rejects that.
    fn try_from(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(SystemStream(OwnedFd::from(stream).into()))
    }
}

impl TryFrom<std::net::TcpStream> for SystemStream {
    type Error = io::Error;

    /// Makes the socket non-blocking and disables Nagle's algorithm.
    ///
    /// # Errors
    /// Returns an error if the system rejects one of these options.
    fn try_from(stream: std::net::TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(SystemStream(stream))
    }
}

/// Returns whether a non-blocking connect continues in the background. One that is interrupted by a signal does too.
fn is_in_progress(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) {
        return true;
    }
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
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

impl Listener for SystemListener {
    type Stream = SystemStream;

    fn prepare(&mut self, backlog: u32) -> io::Result<()> {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        let listener = match &self.0 {
            ConnectionSource::Tcp(socket) => &socket.listener,
            #[cfg(unix)]
            ConnectionSource::Unix(listener, _) => {
                listener.set_nonblocking(true)?;
                return SockRef::from(listener).listen(backlog);
            }
            ConnectionSource::Handoff(_) => return Ok(()),
        };
        listener.set_nonblocking(true)?;
        // std has called listen with a backlog of 128; a second call only changes that.
        SockRef::from(listener).listen(backlog)?;
        // On Linux, accepted sockets inherit these options, which saves a call per connection and option; on other
        // systems, keep-alive at least.
        SockRef::from(listener).set_tcp_nodelay(true)?;
        set_keep_alive(&SockRef::from(listener))?;
        limit_unsent(&SockRef::from(listener))
    }

    /// Removes the file of a Unix socket, if this listener owns it. A connection to a Unix socket has no handshake, so
    /// closing the listener can reset only connections in its queue. Attaches a filter to a TCP socket.
    fn stop_new_connections(&mut self) -> bool {
        match &mut self.0 {
            ConnectionSource::Tcp(socket) => {
                socket.drops_handshakes = drop_handshakes(&socket.listener);
                socket.drops_handshakes
            }
            #[cfg(unix)]
            ConnectionSource::Unix(_, file) => {
                *file = None;
                true
            }
            ConnectionSource::Handoff(_) => false,
        }
    }

    #[inline]
    fn accept(&mut self) -> io::Result<(SystemStream, Peer)> {
        match &self.0 {
            ConnectionSource::Tcp(socket) => accept(&socket.listener),
            #[cfg(unix)]
            ConnectionSource::Unix(listener, _) => accept_unix(listener),
            ConnectionSource::Handoff(handoff) => handoff.accept().map(|(stream, peer)| (SystemStream(stream), peer)),
        }
    }

    fn has_waiting(&mut self) -> bool {
        is_readable(self.source())
    }

    fn is_counted(&self) -> bool {
        matches!(self.0, ConnectionSource::Handoff(_))
    }

    fn source(&self) -> &SystemSource {
        match &self.0 {
            ConnectionSource::Tcp(socket) => &socket.listener,
            #[cfg(unix)]
            ConnectionSource::Unix(listener, _) => listener,
            ConnectionSource::Handoff(handoff) => handoff.source(),
        }
    }
}

/// Returns whether a source is readable now; true if the call fails.
fn is_readable(source: &SystemSource) -> bool {
    let (mut sets, mut found) = (Sets::default(), false);
    sets.set(raw(source), true, false);
    let outcome = sets.select(Some(Duration::ZERO), |_, ready| found |= ready.readable);
    found || outcome.is_err()
}

/// Enables TCP keep-alive, which detects peers that are gone: after 45 s of silence, with 4 probes 15 s apart. A closed
/// Linux socket acknowledges probes for 60 s (`tcp_fin_timeout`), so the second probe, after 90 s, is refused. One
/// after 60 s would arrive just then, and if it was acknowledged, the next one another minute later. The parameters of
/// the probes are system-wide on OpenBSD.
fn set_keep_alive(socket: &SockRef<'_>) -> io::Result<()> {
    set_probes(socket, TcpKeepalive::new().with_time(Duration::from_secs(45)))
}

#[cfg(target_os = "openbsd")]
fn set_probes(socket: &SockRef<'_>, idle: TcpKeepalive) -> io::Result<()> {
    socket.set_tcp_keepalive(&idle)
}

#[cfg(not(target_os = "openbsd"))]
fn set_probes(socket: &SockRef<'_>, idle: TcpKeepalive) -> io::Result<()> {
    let probes = idle.with_interval(Duration::from_secs(15));
    socket.set_tcp_keepalive(&probes.clone().with_retries(4)).or_else(|error| {
        // Windows has supported setting the number of probes since 2017; Wine does not. The default is 10.
        log::debug!("cannot set the number of keep-alive probes: {error}");
        socket.set_tcp_keepalive(&probes)
    })
}

/// Limits the bytes that the kernel holds unsent per connection. The send buffer grows to megabytes otherwise, and
/// Linux reports a socket as writable only once a third of it is free, so that a slow reader would seem to make no
/// progress. A lower limit costs CPU time: sending a large file takes up to a third more at 256 KiB, a tenth more at
/// 1 MiB, and hardly any at 2 MiB.
#[cfg(target_os = "linux")]
fn limit_unsent(socket: &SockRef<'_>) -> io::Result<()> {
    const UNSENT_BYTES_MAX: u32 = 2 * 1024 * 1024;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}

#[cfg(not(target_os = "linux"))]
#[allow(clippy::unnecessary_wraps, reason = "can fail on Linux")]
fn limit_unsent(_: &SockRef<'_>) -> io::Result<()> {
    Ok(())
}

/// Attaches a filter to a listener that drops SYN segments. Clients retransmit them after a second and are refused if
/// the listener is closed by then. Closing it thus resets no connection in mid-handshake. Returns whether the system
/// supports it.
#[cfg(target_os = "linux")]
fn drop_handshakes(listener: &std::net::TcpListener) -> bool {
    SockRef::from(listener).attach_filter(&DROP_SYN).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn drop_handshakes(_: &std::net::TcpListener) -> bool {
    false
}

/// Removes the filter of [`drop_handshakes`].
#[cfg(target_os = "linux")]
fn allow_handshakes(listener: &std::net::TcpListener) {
    if let Err(error) = SockRef::from(listener).detach_filter() {
        log::error!("cannot remove the filter of the listener, which accepts no connections any more: {error}");
    }
}

#[cfg(not(target_os = "linux"))]
fn allow_handshakes(_: &std::net::TcpListener) {}

/// Accepts with accept4(2), which makes the socket non-blocking in the same call.
#[cfg(target_os = "linux")]
fn accept(listener: &std::net::TcpListener) -> io::Result<(SystemStream, Peer)> {
    use rustix::net::{SocketFlags, acceptfrom_with};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (stream, peer) = rustix::io::retry_on_intr(|| acceptfrom_with(listener, flags))?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((SystemStream(stream.into()), Peer::Tcp(peer)))
}

#[cfg(target_os = "linux")]
fn accept_unix(listener: &UnixListener) -> io::Result<(SystemStream, Peer)> {
    use rustix::net::{SocketFlags, accept_with};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let stream = rustix::io::retry_on_intr(|| accept_with(listener, flags))?;
    Ok((SystemStream(stream.into()), Peer::Unix))
}

#[cfg(all(unix, not(target_os = "linux")))]
fn accept_unix(listener: &UnixListener) -> io::Result<(SystemStream, Peer)> {
    let (stream, _) = retry(|| listener.accept())?;
    stream.set_nonblocking(true)?;
    Ok((SystemStream(OwnedFd::from(stream).into()), Peer::Unix))
}

#[cfg(not(target_os = "linux"))]
fn accept(listener: &std::net::TcpListener) -> io::Result<(SystemStream, Peer)> {
    // socket2 makes the socket non-inheritable on Windows too, where a child process would keep it open otherwise.
    let (socket, peer) = retry(|| SockRef::from(listener).accept())?;
    let peer = peer.as_socket().ok_or(io::ErrorKind::ConnectionAborted)?;
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    // Fails if the peer is already gone; the next read reports that.
    let _ = stream.set_nodelay(true);
    Ok((SystemStream(stream), Peer::Tcp(peer)))
}

/// Calls recv(2) directly: the C library's wrapper is a cancellation point, which costs more than the rest of a read.
#[cfg(target_os = "linux")]
#[inline]
fn receive(stream: &mut std::net::TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    use rustix::net::{RecvFlags, recv};
    Ok(rustix::io::retry_on_intr(|| recv(&*stream, &mut *buffer, RecvFlags::empty()))?.0)
}

/// Discards input with `MSG_TRUNC`, which skips the copy (tcp(7)).
#[cfg(target_os = "linux")]
fn discard(stream: &mut std::net::TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    use rustix::net::{RecvFlags, recv};
    Ok(rustix::io::retry_on_intr(|| recv(&*stream, &mut *buffer, RecvFlags::TRUNC))?.1)
}

#[cfg(not(target_os = "linux"))]
fn discard(stream: &mut std::net::TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    receive(stream, buffer)
}

/// Returns whether a socket is a Unix socket.
#[cfg(unix)]
fn is_unix(stream: &std::net::TcpStream) -> bool {
    SockRef::from(stream).local_addr().is_ok_and(|address| address.is_unix())
}

/// Returns whether the peer of a Unix socket has closed it, which no error reports.
#[cfg(unix)]
fn is_closed_unix(stream: &std::net::TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut sources = [PollFd::new(stream, PollFlags::empty())];
    is_unix(stream)
        && poll(&mut sources, Some(&rustix::event::Timespec::default())).is_ok()
        && sources[0].revents().contains(PollFlags::HUP)
}

#[cfg(not(unix))]
fn is_closed_unix(_: &std::net::TcpStream) -> bool {
    false
}

/// Returns a pending error. Winsock reports a reset only to a read.
fn check(stream: &std::net::TcpStream) -> io::Result<()> {
    if cfg!(windows) {
        return match stream.peek(&mut [0]) {
            Err(error) if !would_block(&error) => Err(error),
            _ => Ok(()),
        };
    }
    match stream.take_error()? {
        Some(error) => Err(error),
        None if is_closed_unix(stream) => Err(io::ErrorKind::ConnectionReset.into()),
        None => Ok(()),
    }
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
/// call shows that. Falls back to read and write if sendfile is not supported or not permitted. sendfile has no flag to
/// suppress SIGPIPE; the Rust runtime ignores that signal from program start.
#[cfg(target_os = "linux")]
fn send_file(stream: &mut SystemStream, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
    use rustix::io::Errno;
    let mut position = offset;
    match rustix::io::retry_on_intr(|| rustix::fs::sendfile(&stream.0, file, Some(&mut position), count)) {
        Ok(bytes) => Ok(Sent { bytes, more: true }),
        // A sandbox (seccomp, gVisor) may forbid it with EPERM.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
            send_file_by_copy(stream, file, offset, count)
        }
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
fn send_file(stream: &mut SystemStream, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
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

impl Stream for SystemStream {
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

    fn discard(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let bytes = discard(&mut self.0, buffer)?;
        Ok(Received { bytes, more: bytes == buffer.len() })
    }

    fn unacknowledged_bytes(&mut self) -> Option<u64> {
        system::unacknowledged_bytes(&self.0)
    }

    fn check(&mut self) -> io::Result<()> {
        check(&self.0)
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
            // std fails for the address of a Unix socket.
            None => SockRef::from(&self.0).peer_addr().map(drop),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn peer(&self) -> io::Result<Peer> {
        let address = SockRef::from(&self.0).peer_addr()?;
        match address.as_socket() {
            Some(address) => Ok(Peer::Tcp(address)),
            None if address.is_unix() => Ok(Peer::Unix),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn source(&self) -> &SystemSource {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> (SystemListener, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut listener = SystemListener::from(listener);
        listener.prepare(8).unwrap();
        (listener, address)
    }

    fn accept(listener: &mut SystemListener) -> SystemStream {
        loop {
            match listener.accept() {
                Ok((stream, _)) => return stream,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    #[test]
    fn accepted_sockets_inherit_keep_alive_from_their_listener() {
        let (mut listener, address) = listener();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let accepted = accept(&mut listener);
        let socket = SockRef::from(&accepted.0);
        assert!(socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(45));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
            assert_eq!(socket.tcp_notsent_lowat().unwrap(), 2 * 1024 * 1024);
        }
    }

    /// A peer that reads nothing acknowledges what fits in its receive buffer, and more as it reads.
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    #[test]
    fn acknowledgements_of_the_peer_are_counted() {
        let (mut listener, address) = listener();
        let mut client = std::net::TcpStream::connect(address).unwrap();
        let mut stream = accept(&mut listener);
        let mut sent = 0;
        loop {
            match stream.write(&[b'x'; 16384]) {
                Ok(part) => sent += part.bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(stream.unacknowledged_bytes().unwrap() > 0);
        std::io::Read::read_exact(&mut client, &mut vec![0; sent]).unwrap();
        while stream.unacknowledged_bytes().unwrap() > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_reset_is_found_without_reading_and_a_half_close_is_no_failure() {
        if std::env::var_os("RUNNING_UNDER_WINE").is_some() {
            println!("skipped under Wine: Wine 8 reports end of stream instead of a reset");
            return;
        }
        let (mut listener, address) = listener();
        let client = std::net::TcpStream::connect(address).unwrap();
        let mut stream = accept(&mut listener);
        client.shutdown(Shutdown::Write).unwrap();
        let mut buffer = [0; 8];
        while stream.read(&mut buffer).is_err() {}
        stream.check().unwrap();
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        let limit = std::time::Instant::now() + Duration::from_secs(60);
        while stream.check().is_ok() {
            assert!(std::time::Instant::now() < limit, "the reset is not found");
            std::thread::yield_now();
        }
    }

    #[test]
    fn discarded_input_is_not_read_again() {
        let (mut listener, address) = listener();
        let mut client = std::net::TcpStream::connect(address).unwrap();
        let mut stream = accept(&mut listener);
        std::io::Write::write_all(&mut client, b"0123456789").unwrap();
        let mut buffer = [0; 8];
        let mut discarded = 0;
        while discarded < 8 {
            discarded += stream.discard(&mut buffer[discarded..]).map_or(0, |received| received.bytes);
        }
        let received = loop {
            if let Ok(received) = stream.read(&mut buffer) {
                break received;
            }
        };
        assert_eq!((received.bytes, &buffer[..2]), (2, &b"89"[..]));
    }
}
