//! Connections of the client commands: a socket with a deadline, and both directions of a TLS connection on two threads.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::tls::{ClientSession, ClientStream};

/// A socket whose reads and writes fail once a deadline has passed.
pub(super) struct TimedSocket {
    pub(super) socket: TcpStream,
    pub(super) deadline: Instant,
}

impl TimedSocket {
    fn remaining(&self) -> io::Result<Option<Duration>> {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(remaining)) }
    }
}

/// Repeats a call that a signal interrupts. Some systems report a timeout as `WouldBlock`.
fn with_timeout<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            outcome => return outcome,
        }
    }
}

impl Read for TimedSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        with_timeout(|| {
            self.socket.set_read_timeout(self.remaining()?)?;
            self.socket.read(buffer)
        })
    }
}

impl Write for TimedSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        with_timeout(|| {
            self.socket.set_write_timeout(self.remaining()?)?;
            self.socket.write(bytes)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A plain or encrypted connection with a deadline.
pub(super) enum Connection {
    Plain(TimedSocket),
    Secure(Box<ClientStream<TimedSocket>>),
}

impl Connection {
    /// Waits for the verdict of a server that has asked for a client certificate: with TLS 1.3, it verifies it only after
    /// the handshake is complete for the client. Ends the output, so that the server ends the session if it accepts it.
    ///
    /// # Errors
    /// Returns an error if the server refuses the client, but not if it sends nothing in time.
    pub(super) fn confirm(&mut self) -> io::Result<()> {
        let Connection::Secure(stream) = self else { return Ok(()) };
        if !stream.session.has_certificate_request() {
            return Ok(());
        }
        stream.session.end();
        match stream.flush().and_then(|()| stream.read(&mut [0])) {
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::UnexpectedEof) => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Connection::Plain(socket) => socket.read(buffer),
            Connection::Secure(stream) => stream.read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Connection::Plain(socket) => socket.write(bytes),
            Connection::Secure(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Connection::Plain(socket) => socket.flush(),
            Connection::Secure(stream) => stream.flush(),
        }
    }
}

/// The sending side of a connection.
pub(super) trait Outgoing: Write {
    /// Ends the output; the receiving side stays open.
    fn end(&mut self);
}

impl Outgoing for TcpStream {
    fn end(&mut self) {
        // Fails only if the connection is already closed.
        let _ = self.shutdown(Shutdown::Write);
    }
}

/// A session that two threads use. While one of them waits for the socket, the other can use the session; otherwise a
/// client and a server that both wait until their output is read would wait for ever.
struct Shared {
    session: Mutex<ClientSession>,
    /// Locked while ciphertext is sent, and before `session`, so that it is sent in order.
    socket: Mutex<TcpStream>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn send(&self, socket: &mut TcpStream, plaintext: &[u8]) -> io::Result<()> {
        let mut ciphertext = Vec::new();
        lock(&self.session).encrypt([plaintext], &mut ciphertext).map_err(io::Error::other)?;
        socket.write_all(&ciphertext)
    }
}

/// Splits a TLS connection into its receiving and its sending side.
pub(super) fn split(session: ClientSession, socket: TcpStream) -> io::Result<(SecureReader, SecureWriter)> {
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)?;
    let shared = Arc::new(Shared { session: Mutex::new(session), socket: Mutex::new(socket.try_clone()?) });
    let reader =
        SecureReader { socket, shared: Arc::clone(&shared), plaintext: Vec::new(), taken: 0, has_ended: false };
    Ok((reader, SecureWriter(shared)))
}

/// The receiving side of a TLS connection.
pub(super) struct SecureReader {
    socket: TcpStream,
    shared: Arc<Shared>,
    plaintext: Vec<u8>,
    /// Number of bytes of `plaintext` that were read.
    taken: usize,
    has_ended: bool,
}

impl SecureReader {
    fn decrypt(&mut self, ciphertext: &[u8]) -> io::Result<()> {
        self.plaintext.clear();
        self.taken = 0;
        self.has_ended =
            lock(&self.shared.session).decrypt(ciphertext, &mut self.plaintext).map_err(io::Error::other)?;
        // A reply of the protocol, such as to a change of keys. The other thread sends it if it is sending.
        if let Ok(mut socket) = self.shared.socket.try_lock() {
            self.shared.send(&mut socket, &[])?;
        }
        Ok(())
    }
}

impl Read for SecureReader {
    /// Returns 0 only at an orderly end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.plaintext.len() && !self.has_ended {
            // The first data may have arrived with the end of the handshake.
            self.decrypt(&[])?;
        }
        let mut ciphertext = [0; 16 * 1024];
        while self.taken == self.plaintext.len() && !self.has_ended {
            match self.socket.read(&mut ciphertext)? {
                0 => {
                    let message =
                        "the server closed the connection without ending the TLS session; data may be missing";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
                }
                count => self.decrypt(&ciphertext[..count])?,
            }
        }
        let count = buffer.len().min(self.plaintext.len() - self.taken);
        buffer[..count].copy_from_slice(&self.plaintext[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

/// The sending side of a TLS connection.
pub(super) struct SecureWriter(Arc<Shared>);

impl Write for SecureWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(&mut lock(&self.0.socket), bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Outgoing for SecureWriter {
    fn end(&mut self) {
        let mut socket = lock(&self.0.socket);
        lock(&self.0.session).end();
        // Fails only if the connection is already closed.
        let _ = self.0.send(&mut socket, &[]).and_then(|()| socket.shutdown(Shutdown::Write));
    }
}
