//! TLS as a backend: [`WithTls`] wraps the backend of a loop, whose listeners then accept either plain TCP or TLS.
//!
//! Applications are not affected: the loop completes the handshake before it passes input to them. Loops without a TLS
//! listener use the wrapped backend directly, so that TLS costs them nothing.
//!
//! A read decrypts from a buffer of the thread; only incomplete records, and those whose plaintext does not fit, are
//! kept. A write encrypts and sends at once. Only ciphertext that the socket refuses is kept, and then nothing more is
//! encrypted until it is sent; plaintext that a write has accepted is never encrypted again.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::net::SocketAddr;
use std::task::Waker;
use std::time::Duration;

use super::app::{Addrs, App};
use super::event_loop::EventLoop;
use super::peer::Peer;
use super::readiness::{
    Event, Handshake, Interest, Listener, Readiness, Received, Sent, Stream, Token, pass_to_backend, pass_to_listener,
    pass_to_socket, would_block,
};
use super::socket::SystemSocket;
use crate::tls::{ClientCertificate, Session, Tls, TlsInfo};

/// Maximum ciphertext per read.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Minimum size of a read, even if the caller's buffer is smaller: some records.
const READ_BYTES_MIN: usize = 4 * 1024;

/// Maximum reads without plaintext in one call of [`Stream::read`], for fairness between connections.
const READS_MAX: usize = 4;

/// The response to plain HTTP on a TLS port.
const USE_HTTPS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 74\r\nConnection: close\r\n\r\n\
    This port requires TLS. Use https:// in place of http:// in the address.\r\n";

thread_local! {
    /// Ciphertext between a read and its decryption. Allocated when the first TLS connection receives something.
    static CIPHERTEXT: RefCell<Box<[u8]>> = RefCell::default();

    /// The time of the backend in this turn of the loop.
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// A backend whose listeners accept plain TCP or TLS; see [`EventLoop::listen_tls`].
#[derive(Debug)]
pub struct WithTls<B>(B);

/// The listener type of [`WithTls`].
#[derive(Debug)]
pub struct TlsListener<L> {
    inner: L,
    tls: Option<Tls>,
}

/// The stream type of [`WithTls`].
pub struct TlsStream<S> {
    socket: S,
    /// `None` for plain TCP.
    secure: Option<Secure>,
}

/// The state of a stream with TLS.
enum Secure {
    /// Nothing was received yet, so that there is no session.
    New(Tls),
    Open(Box<Open>),
    /// The output has ended or the handshake has failed; input is only discarded.
    Ended(Option<Box<Open>>),
}

/// A stream with a session.
struct Open {
    session: Session,
    /// Ciphertext that was read but not passed to the session, because the caller's buffer was full.
    held: Vec<u8>,
    /// The last read from the socket may be followed by another.
    socket_more: bool,
    /// The last burst of input was larger than [`READ_BYTES_MIN`].
    is_bulk: bool,
    /// See [`Stream::encrypted_by_failed_write`].
    encrypted_by_failed_write: usize,
}

impl<B: Readiness, A: App> EventLoop<WithTls<B>, A> {
    /// Adds a listener whose connections use TLS. Listeners added with [`EventLoop::listen`] accept plain TCP.
    ///
    /// # Errors
    /// Returns the errors of [`EventLoop::listen`].
    ///
    /// # Examples
    /// ```
    /// use serverd::tls::Tls;
    /// use serverd::{EventLoop, HttpServer, LoopLimits, Select, Timeouts, WithTls};
    ///
    /// let tls = Tls::self_signed(["localhost"])?.alpn_protocols(&["http/1.1"]);
    /// let app = HttpServer::new(|_| "hello\n");
    /// let mut server =
    ///     EventLoop::<WithTls<Select>, _>::with_limits(Timeouts::default(), LoopLimits::default(), app)?;
    /// server.listen_tls(std::net::TcpListener::bind("127.0.0.1:0")?, &tls)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn listen_tls(&mut self, listener: impl Into<B::Listener>, tls: &Tls) -> io::Result<()> {
        self.listen(TlsListener { inner: listener.into(), tls: Some(tls.clone()) })
    }
}

impl<B> From<B> for WithTls<B> {
    /// Wraps a backend, for [`EventLoop::with_backend`].
    fn from(backend: B) -> Self {
        WithTls(backend)
    }
}

impl<L> TlsListener<L> {
    /// Wraps a listener whose connections do not use TLS.
    pub fn plain(inner: impl Into<L>) -> Self {
        TlsListener { inner: inner.into(), tls: None }
    }
}

impl<S> From<S> for TlsStream<S> {
    /// Creates a stream without TLS.
    fn from(socket: S) -> Self {
        TlsStream { socket, secure: None }
    }
}

impl<L: From<T>, T: SystemSocket> From<T> for TlsListener<L> {
    fn from(listener: T) -> Self {
        TlsListener { inner: L::from(listener), tls: None }
    }
}

impl<B: Readiness> Readiness for WithTls<B> {
    type Listener = TlsListener<B::Listener>;
    type Stream = TlsStream<B::Stream>;

    fn now(&self) -> Duration {
        let now = self.0.now();
        NOW.set(now);
        now
    }

    pass_to_backend!();
}

impl<L: Listener> Listener for TlsListener<L> {
    type Stream = TlsStream<L::Stream>;

    fn accept(&mut self) -> io::Result<(Self::Stream, Peer)> {
        let (socket, peer) = self.inner.accept()?;
        Ok((TlsStream { socket, secure: self.tls.clone().map(Secure::New) }, peer))
    }

    pass_to_listener!(inner);
}

/// Passes ciphertext from a session to a socket.
struct Sink<'a, S> {
    socket: &'a mut S,
    /// Set if the last write may be followed by another.
    more: bool,
    /// More output follows immediately, see [`Stream::write_more`].
    is_followed: bool,
}

impl<S: Stream> Write for Sink<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let sent = match slices {
            [only] if self.is_followed => self.socket.write_more(only),
            [only] => self.socket.write(only),
            several => self.socket.write_vectored(several),
        }?;
        self.more = sent.more;
        if sent.bytes == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(sent.bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Calls `work` with this thread's buffer for ciphertext.
fn with_ciphertext<R>(work: impl FnOnce(&mut [u8]) -> R) -> R {
    CIPHERTEXT.with_borrow_mut(|buffer| {
        if buffer.is_empty() {
            *buffer = vec![0; READ_BYTES_MAX].into_boxed_slice();
        }
        work(buffer)
    })
}

/// Returns whether bytes on a TLS port are the beginning of an HTTP request: a TLS record begins with another byte.
fn is_plain_http(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(u8::is_ascii_uppercase)
}

/// Asks a client that speaks plain HTTP to use https. There is room for that in the buffer of a new socket.
fn respond_in_plain(socket: &mut impl Stream) -> io::Result<()> {
    let mut rest = USE_HTTPS;
    while !rest.is_empty() {
        match socket.write(rest) {
            Ok(sent) => rest = &rest[sent.bytes..],
            Err(error) if would_block(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The end of the input without a `close_notify` alert.
#[cold]
fn end_without_close_notify() -> Received {
    log::debug!("the peer has closed the connection without ending the TLS session");
    Received { bytes: 0, more: false }
}

/// Logs a client whose certificate was refused.
#[cold]
fn report_refusal(socket: &impl Stream, error: &io::Error) {
    let client = Addrs { stream: Some(socket) };
    log::warn!(target: "serverd::loop::client_certificate", "refused {}: {error}", client.client());
}

impl Open {
    fn new(tls: &Tls) -> io::Result<Self> {
        Ok(Open {
            session: Session::new(tls)?,
            held: Vec::new(),
            socket_more: true,
            is_bulk: false,
            encrypted_by_failed_write: 0,
        })
    }

    /// Sends the ciphertext of the session. Returns whether the socket may accept more.
    fn send(&mut self, socket: &mut impl Stream, is_followed: bool) -> io::Result<bool> {
        let mut sink = Sink { socket, more: true, is_followed };
        while self.session.has_ciphertext() {
            self.session.send(&mut sink)?;
            if !sink.more && self.session.has_ciphertext() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        Ok(sink.more)
    }

    /// Sends what a read has made necessary, such as an alert. Errors are left to the next write.
    fn reply(&mut self, socket: &mut impl Stream) {
        if self.session.has_ciphertext() {
            let _ = self.send(socket, false);
        }
    }

    /// Passes ciphertext to the session and keeps the part for whose plaintext there is no room.
    fn receive(&mut self, mut ciphertext: &[u8], plaintext: &mut [u8]) -> io::Result<usize> {
        let outcome = self.session.receive(&mut ciphertext, plaintext);
        self.held.extend_from_slice(ciphertext);
        outcome
    }

    /// Continues with the ciphertext that was kept.
    fn receive_held(&mut self, plaintext: &mut [u8]) -> io::Result<usize> {
        let held = std::mem::take(&mut self.held);
        self.receive(&held, plaintext)
    }

    /// Returns whether there is input that needs no read from the socket.
    fn has_input(&self) -> bool {
        self.session.has_plaintext() || !self.held.is_empty()
    }

    /// The result of a read of `bytes` bytes of plaintext. At the end of the input, these are followed by a read of 0.
    fn received(&self, bytes: usize) -> Received {
        let is_last = self.session.has_ended();
        Received { bytes, more: bytes > 0 && (self.socket_more || self.has_input() || is_last) }
    }

    /// Continues a handshake, of which `progress` was made in the same call.
    fn handshake(
        &mut self,
        socket: &mut impl Stream,
        buffer: &mut [u8],
        mut progress: Handshake,
    ) -> io::Result<Handshake> {
        while self.session.is_handshaking() {
            let count = match socket.read(buffer) {
                Ok(Received { bytes: 0, .. }) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => received.bytes,
                Err(error) if would_block(&error) => return Ok(progress),
                Err(error) => return Err(error),
            };
            progress = Handshake::Progress;
            let outcome = self.receive(&buffer[..count], &mut []);
            self.reply(socket);
            outcome?;
        }
        Ok(Handshake::Complete)
    }

    /// Reads some KiB from the socket into the buffer of the session, which saves a copy, if the last burst of input was
    /// that small, as most requests are, and if there is nothing to do before.
    #[inline]
    fn read(&mut self, socket: &mut impl Stream, buffer: &mut [u8]) -> io::Result<Received> {
        if !self.is_bulk && !self.has_input() && !self.session.has_ended() {
            let mut more = false;
            let read = self.session.decrypt_from(|ciphertext| {
                let received = socket.read(ciphertext)?;
                more = received.more;
                Ok(received.bytes)
            })?;
            (self.socket_more, self.is_bulk) = (more, more);
            if read == 0 {
                return Ok(end_without_close_notify());
            }
            let count = self.session.take_plaintext(buffer)?;
            self.reply(socket);
            if count > 0 {
                return Ok(self.received(count));
            }
        }
        self.read_outlined(socket, buffer)
    }

    /// The part of [`Open::read`] for large input, incomplete records, failures, and input that was already read.
    #[inline(never)]
    fn read_outlined(&mut self, socket: &mut impl Stream, buffer: &mut [u8]) -> io::Result<Received> {
        if self.has_input() {
            let outcome = self.receive_held(buffer);
            self.reply(socket);
            let count = outcome?;
            if count > 0 {
                // The socket may have become readable since the last read, which the caller has been notified of.
                self.socket_more = true;
                return Ok(self.received(count));
            }
        }
        let size = buffer.len().clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        with_ciphertext(|ciphertext| {
            for _ in 0..READS_MAX {
                if self.session.has_ended() {
                    return Ok(self.received(0));
                }
                let received = socket.read(&mut ciphertext[..size])?;
                let is_first = !std::mem::replace(&mut self.socket_more, received.more);
                if is_first {
                    self.is_bulk = received.bytes > READ_BYTES_MIN;
                }
                if received.bytes == 0 {
                    return Ok(end_without_close_notify());
                }
                let outcome = self.receive(&ciphertext[..received.bytes], buffer);
                self.reply(socket);
                let count = outcome?;
                if count > 0 {
                    return Ok(self.received(count));
                }
            }
            Err(io::ErrorKind::Interrupted.into())
        })
    }

    fn write(&mut self, socket: &mut impl Stream, slices: &[IoSlice<'_>], is_followed: bool) -> io::Result<Sent> {
        self.send(socket, false)?;
        let bytes = self.session.encrypt(slices, NOW.get())?;
        match self.send(socket, is_followed) {
            Ok(more) => Ok(Sent { bytes, more }),
            Err(error) if would_block(&error) => Ok(Sent { bytes, more: false }),
            Err(error) => {
                self.encrypted_by_failed_write = bytes;
                Err(error)
            }
        }
    }
}

impl<S> TlsStream<S> {
    /// Creates the server's end of a TLS connection on a stream that was connected by other means than a
    /// [`TlsListener`]. The handshake begins when the loop reads.
    pub fn accept(socket: S, tls: &Tls) -> Self {
        TlsStream { socket, secure: Some(Secure::New(tls.clone())) }
    }
}

impl<S: Stream> TlsStream<S> {
    /// Continues the handshake with the first bytes of the peer.
    fn begin(socket: &mut S, tls: &Tls, buffer: &mut [u8]) -> io::Result<Box<Open>> {
        let received = socket.read(buffer)?;
        let first = &buffer[..received.bytes];
        if is_plain_http(first) {
            if tls.serves_http() {
                respond_in_plain(socket)?;
            }
            return Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP on a TLS port"));
        }
        if first.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut open = Box::new(Open::new(tls)?);
        let outcome = open.receive(first, &mut []);
        open.reply(socket);
        outcome.map(|_| open)
    }

    /// Runs a call on the session. Without one, reads and writes would block.
    fn with_open<R>(&mut self, call: impl FnOnce(&mut S, &mut Open) -> io::Result<R>) -> io::Result<R> {
        match &mut self.secure {
            Some(Secure::Open(open)) => call(&mut self.socket, open),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn open(&self) -> Option<&Open> {
        match &self.secure {
            Some(Secure::Open(open) | Secure::Ended(Some(open))) => Some(open),
            _ => None,
        }
    }

    /// Ends the use of the session; ciphertext is still sent if `keep` is true.
    fn end(&mut self, keep: bool) {
        if let Some(secure) = &mut self.secure {
            *secure = match std::mem::replace(secure, Secure::Ended(None)) {
                Secure::Open(open) | Secure::Ended(Some(open)) if keep => Secure::Ended(Some(open)),
                _ => Secure::Ended(None),
            };
        }
    }
}

impl<S: Stream> Stream for TlsStream<S> {
    type Source = S::Source;

    const ENCRYPTS: bool = true;

    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        if self.secure.is_none() {
            return self.socket.read(buffer);
        }
        self.with_open(|socket, open| open.read(socket, buffer))
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        if self.secure.is_none() {
            return self.socket.write(bytes);
        }
        self.with_open(|socket, open| open.write(socket, &[IoSlice::new(bytes)], false))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent> {
        if self.secure.is_none() {
            return self.socket.write_vectored(slices);
        }
        self.with_open(|socket, open| open.write(socket, slices, false))
    }

    fn write_more(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        if self.secure.is_none() {
            return self.socket.write_more(bytes);
        }
        self.with_open(|socket, open| open.write(socket, &[IoSlice::new(bytes)], true))
    }

    fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
        if self.secure.is_none() {
            return self.socket.send_file(file, offset, count);
        }
        super::readiness::send_file_by_copy(self, file, offset, count)
    }

    fn needs_readahead(&mut self, file: &File, offset: u64, count: usize) -> bool {
        self.socket.needs_readahead(file, offset, count)
    }

    /// Discards input without decrypting it.
    fn discard(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        self.socket.discard(buffer)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.end_output();
        self.socket.shutdown_write()
    }

    /// The end of the output is not marked, so that the peer does not take an incomplete response for a complete one.
    fn abort(&mut self) {
        self.end(false);
        self.socket.abort();
    }

    fn proxied(&self) -> Option<super::Proxied> {
        self.socket.proxied()
    }

    fn is_encrypted(&self) -> bool {
        self.secure.is_some()
    }

    fn tls(&self) -> Option<TlsInfo> {
        self.open().and_then(|open| open.session.info())
    }

    fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.open()?.session.client_certificate()
    }

    fn is_misdirected(&self, host: &str) -> bool {
        self.open().is_some_and(|open| open.session.is_misdirected(host))
    }

    fn is_handshaking(&self) -> bool {
        // A PROXY header precedes the handshake.
        self.socket.is_handshaking()
            || match &self.secure {
                None | Some(Secure::Ended(_)) => false,
                Some(Secure::New(_)) => true,
                Some(Secure::Open(open)) => open.session.is_handshaking(),
            }
    }

    fn handshake(&mut self) -> io::Result<Handshake> {
        if self.socket.is_handshaking() {
            let outcome = self.socket.handshake();
            if outcome.is_err() {
                self.end(false);
            }
            let progress = outcome?;
            if progress != Handshake::Complete || self.secure.is_none() {
                return Ok(progress);
            }
        }
        let outcome = with_ciphertext(|buffer| {
            let mut progress = Handshake::Idle;
            if let Some(Secure::New(tls)) = &self.secure {
                match Self::begin(&mut self.socket, tls, buffer) {
                    Err(error) if would_block(&error) => return Ok(Handshake::Idle),
                    outcome => self.secure = Some(Secure::Open(outcome?)),
                }
                progress = Handshake::Progress;
            }
            self.with_open(|socket, open| open.handshake(socket, buffer, progress))
        });
        if let Err(error) = &outcome {
            if self.open().is_some_and(|open| open.session.has_refused_certificate()) {
                report_refusal(&self.socket, error);
            }
            // An alert may still have to be sent, unless the connection itself has failed.
            self.end(error.kind() == io::ErrorKind::InvalidData);
        }
        outcome
    }

    fn has_unsent(&self) -> bool {
        self.open().is_some_and(|open| open.session.has_ciphertext())
    }

    fn unsent_bytes(&mut self) -> usize {
        match &mut self.secure {
            Some(Secure::Open(open) | Secure::Ended(Some(open))) => open.session.ciphertext_bytes(),
            _ => 0,
        }
    }

    fn encrypted_by_failed_write(&self) -> usize {
        self.open().map_or(0, |open| open.encrypted_by_failed_write)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.secure {
            Some(Secure::Open(open)) => open.send(&mut self.socket, false).map(drop),
            Some(Secure::Ended(Some(open))) => {
                let outcome = open.send(&mut self.socket, false).map(drop);
                // The memory of the session is not needed while the connection lingers.
                self.end(outcome.is_err());
                outcome
            }
            _ => Ok(()),
        }
    }

    fn buffered_bytes(&mut self) -> usize {
        let own = match &mut self.secure {
            Some(Secure::Open(open) | Secure::Ended(Some(open))) => {
                open.held.capacity() + open.session.buffered_bytes()
            }
            _ => 0,
        };
        own + self.socket.buffered_bytes()
    }

    fn end_output(&mut self) {
        if let Some(Secure::New(_)) = &self.secure {
            self.end(false);
        } else if let Some(Secure::Open(open)) = &mut self.secure {
            if !open.session.is_handshaking() {
                open.session.end();
            }
            let is_kept = open.send(&mut self.socket, false).is_err_and(|error| would_block(&error));
            self.end(is_kept);
        }
    }

    pass_to_socket!(socket);
}
