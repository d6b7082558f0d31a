//! The PROXY protocol as a backend: [`WithProxy`] wraps the backend of a loop, whose connections then may or must begin
//! with a header in which a proxy reports its client. TLS, if any, follows the header.
//!
//! The header is received as a part of the handshake, within its timeout. Only trusted proxies may send one: bytes from
//! other peers are never parsed as a header. Loops without the protocol use the wrapped backend directly, so that it
//! costs them nothing.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::app::App;
use super::connection_limit::{AddressLimit, ConnectionLimit};
use super::event_loop::EventLoop;
use super::peer::{Networks, Peer};
use super::proxy_header::{HEADER_BYTES_MAX, Parsed, Proxied, parse};
use super::readiness::{
    Event, Handshake, Interest, Listener, Readiness, Received, Sent, Stream, Token, pass_to_backend, pass_to_listener,
    pass_to_session, pass_to_socket, would_block,
};
use super::socket::SystemSocket;

/// Size of a read.
const READ_BYTES: usize = 2048;

/// The use of the PROXY protocol on connections of trusted proxies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[non_exhaustive]
pub enum ProxyMode {
    /// No header is expected.
    #[default]
    Off,
    /// Connections of trusted proxies may begin with a header. Those of other peers have none.
    Optional,
    /// Only trusted proxies may connect, and must send a header.
    Required,
}

/// The use of the PROXY protocol on a listener; see [`EventLoop::listen_proxied`]. Clones share it.
#[derive(Clone, Debug)]
pub struct ProxyProtocol(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    mode: ProxyMode,
    trusted: Networks,
    addresses: Option<Arc<AddressLimit>>,
}

impl ProxyProtocol {
    /// Creates a configuration with the networks of trusted proxies.
    ///
    /// # Examples
    /// ```
    /// use serverd::{EventLoop, HttpServer, LoopLimits, ProxyMode, ProxyProtocol, Select, Timeouts, WithProxy};
    ///
    /// let app = HttpServer::new(|_| "hello\n");
    /// let mut server = EventLoop::<WithProxy<Select>, _>::with_limits(Timeouts::default(), LoopLimits::default(), app)?;
    /// let proxies = ProxyProtocol::new(ProxyMode::Required, &"loopback".parse()?);
    /// server.listen_proxied(std::net::TcpListener::bind("127.0.0.1:0")?, &proxies)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(mode: ProxyMode, trusted: &Networks) -> Self {
        ProxyProtocol(Arc::new(Shared { mode, trusted: trusted.clone(), addresses: None }))
    }

    /// Applies the limit per address of [`ConnectionLimit::per_address`], if there is one, to the addresses in headers.
    #[must_use]
    pub fn limit_addresses(&self, limit: &ConnectionLimit) -> Self {
        let Shared { mode, trusted, .. } = &*self.0;
        let addresses = limit.addresses().cloned();
        ProxyProtocol(Arc::new(Shared { mode: *mode, trusted: trusted.clone(), addresses }))
    }

    /// Returns the header to expect of a peer.
    fn expect(&self, peer: Peer) -> Header {
        let is_trusted = self.0.trusted.contains_peer(peer);
        match self.0.mode {
            ProxyMode::Off => Header::None,
            ProxyMode::Optional if !is_trusted => Header::None,
            ProxyMode::Required if !is_trusted => Header::Refused,
            ProxyMode::Optional | ProxyMode::Required => {
                Header::Awaited(Box::new(Awaited { protocol: self.clone(), bytes: Vec::new() }))
            }
        }
    }
}

/// A backend whose connections may begin with a header of the PROXY protocol; see [`EventLoop::listen_proxied`].
#[derive(Debug)]
pub struct WithProxy<B>(B);

/// The listener type of [`WithProxy`].
#[derive(Debug)]
pub struct ProxyListener<L> {
    inner: L,
    protocol: Option<ProxyProtocol>,
}

/// The stream type of [`WithProxy`].
pub struct ProxyStream<S> {
    socket: S,
    header: Header,
}

/// The header of a connection.
enum Header {
    /// None is expected.
    None,
    /// The peer may not connect.
    Refused,
    Awaited(Box<Awaited>),
    Received(Box<Known>),
}

/// A header that is not complete.
struct Awaited {
    protocol: ProxyProtocol,
    bytes: Vec<u8>,
}

/// A header that was received.
struct Known {
    proxied: Option<Proxied>,
    /// Input after the header that has not been read by the caller.
    held: Vec<u8>,
    /// The client's address in the limit per address.
    _address: Option<CountedAddress>,
}

/// An address in the limit per address; removed when the connection closes.
struct CountedAddress {
    limit: Arc<AddressLimit>,
    address: IpAddr,
}

impl Drop for CountedAddress {
    fn drop(&mut self) {
        self.limit.release(self.address);
    }
}

impl<B: Readiness, A: App> EventLoop<WithProxy<B>, A> {
    /// Adds a listener whose connections may begin with a header of the PROXY protocol, versions 1 and 2. Connections
    /// of listeners added with [`EventLoop::listen`] have no header.
    ///
    /// The application gets the client's address as [`Addrs::source_addr`](super::Addrs::source_addr), once the first
    /// input is delivered. A connection with an invalid header is closed. An application may send a greeting only after
    /// the header, so that with [`ProxyMode::Optional`] it waits for the first byte of a trusted proxy.
    ///
    /// # Errors
    /// Returns the errors of [`EventLoop::listen`].
    pub fn listen_proxied(&mut self, listener: impl Into<B::Listener>, protocol: &ProxyProtocol) -> io::Result<()> {
        self.listen(ProxyListener::new(listener, protocol))
    }
}

impl<L> ProxyListener<L> {
    /// Wraps a listener, whose connections may begin with a header.
    pub fn new(listener: impl Into<L>, protocol: &ProxyProtocol) -> Self {
        ProxyListener { inner: listener.into(), protocol: Some(protocol.clone()) }
    }
}

impl<S> From<S> for ProxyStream<S> {
    /// Creates a stream without a header.
    fn from(socket: S) -> Self {
        ProxyStream { socket, header: Header::None }
    }
}

impl<L: From<T>, T: SystemSocket> From<T> for ProxyListener<L> {
    fn from(listener: T) -> Self {
        ProxyListener { inner: L::from(listener), protocol: None }
    }
}

impl<B: Readiness> Readiness for WithProxy<B> {
    type Listener = ProxyListener<B::Listener>;
    type Stream = ProxyStream<B::Stream>;

    fn now(&self) -> Duration {
        self.0.now()
    }

    pass_to_backend!();
}

impl<L: Listener> Listener for ProxyListener<L> {
    type Stream = ProxyStream<L::Stream>;

    fn accept(&mut self) -> io::Result<(Self::Stream, Peer)> {
        let (socket, peer) = self.inner.accept()?;
        let header = self.protocol.as_ref().map_or(Header::None, |protocol| protocol.expect(peer));
        Ok((ProxyStream { socket, header }, peer))
    }

    pass_to_listener!(inner);
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("PROXY protocol: {reason}"))
}

impl Awaited {
    /// Evaluates the bytes so far. Returns the result once the header is complete or known to be absent.
    fn evaluate(&mut self) -> io::Result<Option<Known>> {
        let bytes = &mut self.bytes;
        match parse(bytes) {
            Parsed::Incomplete => Ok(None),
            Parsed::Invalid(reason) => Err(invalid(&format!("the header is invalid: {reason}"))),
            Parsed::Absent if self.protocol.0.mode == ProxyMode::Required => Err(invalid("the header is missing")),
            Parsed::Absent => Ok(Some(Known { proxied: None, held: std::mem::take(bytes), _address: None })),
            Parsed::Header(length, proxied) => {
                let held = bytes.split_off(length);
                Ok(Some(Known { proxied: Some(proxied), held, _address: self.count(proxied)? }))
            }
        }
    }

    /// Counts the address in the header in the limit per address.
    fn count(&self, proxied: Proxied) -> io::Result<Option<CountedAddress>> {
        let (Some(limit), Some(source)) = (&self.protocol.0.addresses, proxied.source) else { return Ok(None) };
        if limit.try_reserve(source.ip()) {
            return Ok(Some(CountedAddress { limit: Arc::clone(limit), address: source.ip() }));
        }
        Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the client's address has too many connections"))
    }
}

impl<S: Stream> ProxyStream<S> {
    /// Reads until the header is complete or a read would block.
    fn receive_header(&mut self) -> io::Result<Handshake> {
        let mut progress = Handshake::Idle;
        let mut buffer = [0; READ_BYTES];
        loop {
            let Header::Awaited(awaited) = &mut self.header else { return Ok(Handshake::Complete) };
            let room = (HEADER_BYTES_MAX + READ_BYTES - awaited.bytes.len()).min(READ_BYTES);
            match self.socket.read(&mut buffer[..room]) {
                Ok(Received { bytes: 0, .. }) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => awaited.bytes.extend_from_slice(&buffer[..received.bytes]),
                Err(error) if would_block(&error) => return Ok(progress),
                Err(error) => return Err(error),
            }
            progress = Handshake::Progress;
            if let Some(known) = awaited.evaluate()? {
                self.header = Header::Received(Box::new(known));
            }
        }
    }
}

/// Logs a connection that was closed because its header is invalid or missing, or because the peer is not trusted.
#[cold]
fn report(peer: io::Result<Peer>, error: &io::Error) {
    if error.kind() == io::ErrorKind::InvalidData {
        let peer = peer.map_or_else(|_| "a peer".to_owned(), |peer| peer.to_string());
        log::warn!(target: "serverd::loop::proxy_protocol", "closed a connection of {peer}: {error}");
    }
}

impl<S: Stream> Stream for ProxyStream<S> {
    type Source = S::Source;

    /// The header is received as a handshake is.
    const ENCRYPTS: bool = true;

    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        if let Header::Received(known) = &mut self.header
            && !known.held.is_empty()
        {
            let count = known.held.len().min(buffer.len());
            buffer[..count].copy_from_slice(&known.held[..count]);
            known.held.drain(..count);
            if known.held.is_empty() {
                known.held = Vec::new();
            }
            return Ok(Received { bytes: count, more: true });
        }
        self.socket.read(buffer)
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        self.socket.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent> {
        self.socket.write_vectored(slices)
    }

    fn write_more(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        self.socket.write_more(bytes)
    }

    fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
        self.socket.send_file(file, offset, count)
    }

    fn needs_readahead(&mut self, file: &File, offset: u64, count: usize) -> bool {
        self.socket.needs_readahead(file, offset, count)
    }

    fn discard(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        self.socket.discard(buffer)
    }

    #[inline]
    fn is_handshaking(&self) -> bool {
        matches!(self.header, Header::Awaited(_) | Header::Refused)
    }

    fn handshake(&mut self) -> io::Result<Handshake> {
        let outcome = match self.header {
            Header::Refused => Err(invalid("the peer is not a trusted proxy")),
            _ => self.receive_header(),
        };
        if let Err(error) = &outcome {
            report(self.socket.peer(), error);
            if error.kind() == io::ErrorKind::ConnectionRefused {
                self.socket.abort();
            }
            self.header = Header::None;
        }
        outcome
    }

    fn buffered_bytes(&mut self) -> usize {
        let held = match &self.header {
            Header::Awaited(awaited) => awaited.bytes.capacity(),
            Header::Received(known) => known.held.capacity(),
            Header::None | Header::Refused => 0,
        };
        held + self.socket.buffered_bytes()
    }

    fn proxied(&self) -> Option<Proxied> {
        match &self.header {
            Header::Received(known) => known.proxied,
            _ => None,
        }
    }

    pass_to_socket!(socket);
    pass_to_session!(socket);
}
