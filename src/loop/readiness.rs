//! The contract between the event loop and the operating system.
//!
//! A backend reports which sockets can make progress; it never reads, writes or calls an application. This page is the
//! complete contract that a backend has to fulfil:
//!
//! 1. After a stream or listener has returned [`io::ErrorKind::WouldBlock`], or [`Received::more`] or [`Sent::more`]
//!    was false, the next time it becomes ready is reported.
//! 2. Before that, while it is still ready, it may be reported again by every [`Readiness::wait`] (level-triggered:
//!    select) or not at all (edge-triggered: epoll, kqueue). Both are permitted, and so are spurious events.
//! 3. Errors and hang-ups are reported in each direction with interest; an edge-triggered backend also sets
//!    [`Event::hangup`]. The next read or write returns the actual error.
//! 4. A wait that is interrupted by a signal returns no events.
//! 5. A level-triggered backend must not report a direction without interest ([`Readiness::set_interest`]); an
//!    edge-triggered one may.
//! 6. An event carries the token passed to [`Readiness::add`]. After [`Readiness::remove`], which is followed
//!    immediately by closing the source, no later wait reports that token.
//!
//! The loop accesses sockets and the clock only through the traits of this module, so that fault injection (such as
//! `Chaos`) and simulated networks can be implemented as backends too. For the operating system's own
//! sockets, all calls are inlined and there is no overhead.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::task::Waker;
use std::time::{Duration, SystemTime};

use super::peer::Peer;
use super::std_ext::with_block;

/// Reads the monotonic clock directly; subtracting two [`Instant`](std::time::Instant)s costs more than reading both.
#[cfg(unix)]
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "nanoseconds are below a billion")]
pub(super) fn monotonic() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::Monotonic);
    // This clock is never negative.
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned() as u32)
}

#[cfg(not(unix))]
pub(super) fn monotonic() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Returns whether a call on a nonblocking source found nothing to do. The usual error number is compared first,
/// because [`io::Error::kind`] is a call that looks the number up.
#[inline]
pub(super) fn would_block(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::AGAIN.raw_os_error()) {
        return true;
    }
    error.kind() == io::ErrorKind::WouldBlock
}

/// A source for the operating system's backends: anything with a file descriptor (Unix) or a socket (Windows).
#[cfg(unix)]
pub type SystemSource = dyn std::os::fd::AsFd;
/// A source for the operating system's backends: anything with a file descriptor (Unix) or a socket (Windows).
#[cfg(windows)]
pub type SystemSource = dyn std::os::windows::io::AsSocket;

/// Identifies a source in events. Chosen by the loop; a backend only stores it and returns it.
///
/// [`Token::RESERVED`] belongs to the backend, for its waker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub usize);

impl Token {
    /// Never passed to [`Readiness::add`]; a backend may use it for its own waker.
    pub const RESERVED: Token = Token(usize::MAX);
}

/// The directions in which readiness should be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Report when a read would make progress.
    pub read: bool,
    /// Report when a write would make progress.
    pub write: bool,
}

impl Interest {
    /// Reading only: the normal state of a connection.
    pub const READ: Interest = Interest { read: true, write: false };
    /// Neither direction: a connection that is waiting for the application.
    pub const NONE: Interest = Interest { read: false, write: false };
}

/// A readiness event of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The token of the source.
    pub token: Token,
    /// A read (or accept) may make progress.
    pub readable: bool,
    /// A write (or connect) may make progress.
    pub writable: bool,
    /// The peer has half-closed the connection, or an error is pending. A short read then does not mean that the source
    /// is empty: the end of file may follow. A level-triggered backend need not set this.
    pub hangup: bool,
}

/// Result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes read; 0 at the end of the stream.
    pub bytes: usize,
    /// Another read may return more immediately. If false, the source is empty, except possibly for its end of file.
    pub more: bool,
}

/// Result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Bytes written.
    pub bytes: usize,
    /// Another write may succeed immediately. If false, the stream is full, and the next time it becomes writable
    /// is reported.
    pub more: bool,
}

/// Result of a step of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Nothing was received.
    Idle,
    /// Input was processed; more is needed.
    Progress,
    /// The handshake is complete.
    Complete,
}

/// A connected, non-blocking byte stream.
///
/// A stream may encrypt, in which case it has to complete a handshake before the first read or write
/// ([`Stream::handshake`]), and may hold encrypted output that the system did not accept ([`Stream::has_unsent`]). The
/// provided implementations of these methods are those of a stream that does not encrypt, and cost nothing.
pub trait Stream {
    /// The source type a backend registers: [`SystemSource`] for the operating system's sockets, any other type in a
    /// simulation.
    type Source: ?Sized;

    /// Set if streams of this type may encrypt.
    const ENCRYPTS: bool = false;

    /// Reads into `buffer`, which is not empty. Retries if interrupted by a signal.
    ///
    /// # Errors
    /// Returns `WouldBlock` if no data is available, and `Interrupted` if much input was read that contains no data;
    /// the caller then reads again later. Any other error ends the connection.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received>;

    /// Writes a prefix of `bytes`. Retries if interrupted by a signal.
    ///
    /// # Errors
    /// Returns `WouldBlock` if the stream is full; any other error ends the connection.
    fn write(&mut self, bytes: &[u8]) -> io::Result<Sent>;

    /// Writes a prefix of the concatenation of `slices`, in one system call where possible.
    ///
    /// # Errors
    /// Returns the errors of [`Stream::write`].
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent>;

    /// Writes a prefix of `bytes`, to be followed immediately by [`Stream::send_file`]; the system may delay the bytes
    /// to send both in one packet.
    ///
    /// # Errors
    /// Returns the errors of [`Stream::write`].
    fn write_more(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        self.write(bytes)
    }

    /// Sends up to `count` bytes (at least 1) of `file`, starting at `offset`. The result is zero bytes if the file
    /// ends there.
    ///
    /// The provided implementation reads and writes; implementations may send zero-copy (sendfile).
    ///
    /// # Errors
    /// Returns the errors of [`Stream::write`], and an error if the file cannot be read.
    fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
        send_file_by_copy(self, file, offset, count)
    }

    /// Returns whether [`Stream::send_file`] of these bytes would block on disk I/O, because they are not in the page
    /// cache; false if unknown.
    fn needs_readahead(&mut self, _file: &File, _offset: u64, _count: usize) -> bool {
        false
    }

    /// Reads and discards input, as much as fits in `buffer`, whose content is then unspecified. The provided
    /// implementation reads; implementations may avoid the copy.
    ///
    /// # Errors
    /// Returns the errors of [`Stream::read`].
    fn discard(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        self.read(buffer)
    }

    /// Returns the number of bytes written that the peer has not acknowledged, or `None` if the system cannot report
    /// it. Once the stream is half-closed, an unacknowledged FIN counts as one byte. The provided implementation
    /// returns `None`.
    fn unacknowledged_bytes(&mut self) -> Option<u64> {
        None
    }

    /// Checks whether the connection has failed, for example because the peer has reset it, without reading or writing.
    /// A half-close by the peer is not a failure. The provided implementation detects nothing.
    ///
    /// # Errors
    /// Returns the error that ended the connection. It may be returned only once, so the caller must close the stream.
    fn check(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Half-closes the connection: sends a FIN. Reading remains possible.
    ///
    /// # Errors
    /// Returns an error if the connection is already gone.
    fn shutdown_write(&mut self) -> io::Result<()>;

    /// Makes the subsequent close abortive: unsent bytes are discarded and a RST is sent.
    fn abort(&mut self);

    /// Returns whether this stream encrypts.
    #[inline]
    fn is_encrypted(&self) -> bool {
        false
    }

    /// Returns the parameters of the TLS session; `None` without TLS, or before the handshake is complete.
    #[cfg(feature = "tls")]
    fn tls(&self) -> Option<crate::tls::TlsInfo> {
        None
    }

    /// Returns the verified certificate of the client; `None` without one, or before the handshake is complete.
    #[cfg(feature = "tls")]
    fn client_certificate(&self) -> Option<&crate::tls::ClientCertificate> {
        None
    }

    /// Returns whether the client has connected to a server name (SNI) with another certificate than that of `host`,
    /// which is without a port.
    fn is_misdirected(&self, _host: &str) -> bool {
        false
    }

    /// Returns whether the handshake has to be completed, with [`Stream::handshake`], before the first read or write.
    #[inline]
    fn is_handshaking(&self) -> bool {
        false
    }

    /// Continues the handshake: reads until a read would block, and writes. Reading and writing may be possible
    /// immediately once it is complete.
    ///
    /// # Errors
    /// Returns an error if the handshake has failed. An explanation for the peer may have been sent, which a lingering
    /// close protects.
    fn handshake(&mut self) -> io::Result<Handshake> {
        Ok(Handshake::Complete)
    }

    /// Returns whether bytes that a write has accepted are still to be sent with [`Stream::flush`]. The write has then
    /// returned false in [`Sent::more`].
    #[inline]
    fn has_unsent(&self) -> bool {
        false
    }

    /// Returns the number of unsent bytes, after encryption.
    fn unsent_bytes(&mut self) -> usize {
        0
    }

    /// Returns the number of bytes that the last write has encrypted, although it has failed: its caller still counts
    /// them as output.
    #[inline]
    fn encrypted_by_failed_write(&self) -> usize {
        0
    }

    /// Returns the memory of the stream's own buffers in bytes, for example of an incomplete record.
    fn buffered_bytes(&mut self) -> usize {
        0
    }

    /// Sends the unsent bytes.
    ///
    /// # Errors
    /// Returns `WouldBlock` if the system accepts only some of them; any other error ends the connection.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Marks the orderly end of the output, which the peer can then distinguish from a failure of the network. Nothing
    /// may be written afterwards. The mark may be unsent ([`Stream::has_unsent`]).
    fn end_output(&mut self) {}

    /// Returns the outcome of a connect that was in progress when the stream was created: `Ok` once connected.
    ///
    /// # Errors
    /// Returns the error of a failed connect.
    fn connected(&mut self) -> io::Result<()>;

    /// Returns the local address.
    ///
    /// # Errors
    /// Returns an error if the connection is already gone, or is one of a Unix socket, which has no address.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Returns the peer.
    ///
    /// # Errors
    /// Returns an error if the connection is already gone.
    fn peer(&self) -> io::Result<Peer>;

    /// Returns the addresses that a proxy has reported for this connection (PROXY protocol). The provided
    /// implementation returns `None`.
    fn proxied(&self) -> Option<super::Proxied> {
        None
    }

    /// Returns the source to register with a backend.
    fn source(&self) -> &Self::Source;
}

/// Sends file data by read and write, for systems and file systems without sendfile.
pub(super) fn send_file_by_copy(
    stream: &mut (impl Stream + ?Sized),
    file: &File,
    offset: u64,
    count: usize,
) -> io::Result<Sent> {
    with_block(file, offset, count, |block| match block {
        [] => Ok(Sent { bytes: 0, more: true }),
        block => stream.write(block),
    })
}

/// A non-blocking listening socket.
pub trait Listener {
    /// The type of accepted connections.
    type Stream: Stream;

    /// Makes the listener non-blocking, sets the options that accepted streams inherit, and sets the length of the
    /// accept queue to `backlog`. Called once, before the listener is registered.
    ///
    /// # Errors
    /// Returns an error if the system rejects one of these options.
    fn prepare(&mut self, backlog: u32) -> io::Result<()>;

    /// Stops new connections while keeping the listener open, where the system supports that; connections already in
    /// their handshake or in the accept queue are still returned by [`Listener::accept`]. Returns whether the system
    /// supports it.
    fn stop_new_connections(&mut self) -> bool;

    /// Accepts a connection and makes it non-blocking, with Nagle's algorithm disabled. Retries if interrupted by a
    /// signal.
    ///
    /// # Errors
    /// Returns `WouldBlock` if the accept queue is empty. Other errors concern a single connection or the resources of
    /// the process; the listener remains usable.
    fn accept(&mut self) -> io::Result<(Self::Stream, Peer)>;

    /// Returns whether a connection is waiting in the accept queue; also true if that is unknown, as in the provided
    /// implementation. A result of false counts as [`Listener::accept`] returning `WouldBlock`: the next time a
    /// connection arrives is reported. Called only when there is no room for another connection.
    fn has_waiting(&mut self) -> bool {
        true
    }

    /// Returns whether the connections of this listener already have slots in the loop's connection limit. That is so
    /// for the queue of an [`Acceptor`](super::Acceptor), which reserves a slot before it hands a connection over.
    fn is_counted(&self) -> bool {
        false
    }

    /// Returns the source to register with a backend.
    fn source(&self) -> &<Self::Stream as Stream>::Source;
}

/// A backend: an I/O readiness API of the operating system, or a simulation. The [module](self) documentation is its
/// contract.
pub trait Readiness: Sized {
    /// The listener type of this backend.
    type Listener: Listener<Stream = Self::Stream>;
    /// The stream type of this backend.
    type Stream: Stream<Source = Self::Source>;
    /// The source type this backend watches.
    type Source: ?Sized;

    /// The name shown to users, such as `epoll`.
    const NAME: &'static str;

    /// True if every wait reports a source for as long as it is ready (level-triggered). Only then does the loop spend
    /// a call on removing its read interest while it does not want to read.
    const LEVEL_TRIGGERED: bool;

    /// Creates a backend with no sources registered.
    ///
    /// # Errors
    /// Returns an error if the system is out of file descriptors or memory.
    fn new() -> io::Result<Self>;

    /// Registers `source`, which must not be registered with any backend, with a token that is not in use. If the
    /// source is already ready, the next wait reports it.
    ///
    /// # Errors
    /// Returns an error if the system rejects the source or is out of resources.
    fn add(&mut self, source: &Self::Source, token: Token, interest: Interest) -> io::Result<()>;

    /// Replaces the interest of a registered source. If the source is already ready, the next wait reports it (again).
    ///
    /// # Errors
    /// Returns an error if the source is not registered or the system rejects the change.
    fn set_interest(&mut self, source: &Self::Source, token: Token, interest: Interest) -> io::Result<()>;

    /// Deregisters `source`, which the loop closes immediately afterwards. A backend whose system deregisters closed
    /// sources automatically may do nothing.
    ///
    /// # Errors
    /// May return an error if the source is not registered.
    fn remove(&mut self, source: &Self::Source, token: Token) -> io::Result<()>;

    /// Creates a stream and begins to connect it, without blocking. Once it is writable, [`Stream::connected`] returns
    /// the outcome. The provided implementation returns an error of the kind `Unsupported`.
    ///
    /// # Errors
    /// Returns an error if the system is out of resources, or if the connect fails at once.
    fn connect(&mut self, address: SocketAddr) -> io::Result<Self::Stream> {
        let _ = address;
        Err(io::Error::new(io::ErrorKind::Unsupported, "this backend opens no connections"))
    }

    /// Waits for readiness for up to `timeout` (`None`: indefinitely) and appends the events to `events`. Wake-ups by
    /// [`Readiness::waker`] end the wait but are not reported as events.
    ///
    /// # Errors
    /// Returns an error if the system cannot wait. A wait interrupted by a signal is not an error; it returns no
    /// events.
    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()>;

    /// Returns a waker with which any thread can end the current wait or, if there is none, the next one.
    fn waker(&self) -> Waker;

    /// Returns the monotonic time since an arbitrary fixed origin. Called once per turn.
    fn now(&self) -> Duration {
        monotonic()
    }

    /// Returns the wall-clock time. Called once per second.
    fn system_time(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The items of an implementation of [`Readiness`] for a tuple struct around the backend `B`, except for its clock,
/// listener and stream types: it is the backend `B`.
macro_rules! pass_to_backend {
    () => {
        type Source = B::Source;

        const NAME: &'static str = B::NAME;
        const LEVEL_TRIGGERED: bool = B::LEVEL_TRIGGERED;

        fn new() -> io::Result<Self> {
            B::new().map(Self)
        }

        fn add(&mut self, source: &B::Source, token: Token, interest: Interest) -> io::Result<()> {
            self.0.add(source, token, interest)
        }

        fn set_interest(&mut self, source: &B::Source, token: Token, interest: Interest) -> io::Result<()> {
            self.0.set_interest(source, token, interest)
        }

        fn remove(&mut self, source: &B::Source, token: Token) -> io::Result<()> {
            self.0.remove(source, token)
        }

        fn connect(&mut self, address: SocketAddr) -> io::Result<Self::Stream> {
            self.0.connect(address).map(From::from)
        }

        fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
            self.0.wait(events, timeout)
        }

        fn waker(&self) -> Waker {
            self.0.waker()
        }

        fn system_time(&self) -> std::time::SystemTime {
            self.0.system_time()
        }
    };
}

/// The methods of an implementation of [`Listener`] around the listener `self.$inner` of type `L`, except for `accept`.
macro_rules! pass_to_listener {
    ($inner:tt) => {
        fn prepare(&mut self, backlog: u32) -> io::Result<()> {
            self.$inner.prepare(backlog)
        }

        fn stop_new_connections(&mut self) -> bool {
            self.$inner.stop_new_connections()
        }

        fn has_waiting(&mut self) -> bool {
            self.$inner.has_waiting()
        }

        fn is_counted(&self) -> bool {
            self.$inner.is_counted()
        }

        fn source(&self) -> &<L::Stream as Stream>::Source {
            self.$inner.source()
        }
    };
}

/// The methods of an implementation of [`Stream`] around the stream `self.$inner` of type `S` that concern the socket,
/// not its input and output.
macro_rules! pass_to_socket {
    ($inner:ident) => {
        fn unacknowledged_bytes(&mut self) -> Option<u64> {
            self.$inner.unacknowledged_bytes()
        }

        fn check(&mut self) -> io::Result<()> {
            self.$inner.check()
        }

        fn connected(&mut self) -> io::Result<()> {
            self.$inner.connected()
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            self.$inner.local_addr()
        }

        fn peer(&self) -> io::Result<Peer> {
            self.$inner.peer()
        }

        fn source(&self) -> &S::Source {
            self.$inner.source()
        }
    };
}

/// The methods of an implementation of [`Stream`] around the stream `self.$inner` that concern its encryption and the
/// end of its output.
macro_rules! pass_to_session {
    ($inner:ident) => {
        fn shutdown_write(&mut self) -> io::Result<()> {
            self.$inner.shutdown_write()
        }

        fn abort(&mut self) {
            self.$inner.abort();
        }

        fn is_encrypted(&self) -> bool {
            self.$inner.is_encrypted()
        }

        #[cfg(feature = "tls")]
        fn tls(&self) -> Option<crate::tls::TlsInfo> {
            self.$inner.tls()
        }

        #[cfg(feature = "tls")]
        fn client_certificate(&self) -> Option<&crate::tls::ClientCertificate> {
            self.$inner.client_certificate()
        }

        fn is_misdirected(&self, host: &str) -> bool {
            self.$inner.is_misdirected(host)
        }

        fn has_unsent(&self) -> bool {
            self.$inner.has_unsent()
        }

        fn unsent_bytes(&mut self) -> usize {
            self.$inner.unsent_bytes()
        }

        fn encrypted_by_failed_write(&self) -> usize {
            self.$inner.encrypted_by_failed_write()
        }

        fn flush(&mut self) -> io::Result<()> {
            self.$inner.flush()
        }

        fn end_output(&mut self) {
            self.$inner.end_output();
        }
    };
}

pub(super) use {pass_to_backend, pass_to_listener, pass_to_session, pass_to_socket};
