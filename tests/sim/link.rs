//! The client's end of a connection: plain, or with TLS.
//!
//! A client with TLS sends ciphertext in random pieces, as a plain one sends its requests. Its handshake may be sent in
//! pieces of one byte.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::world::{Rng, World};

/// Name of the server in its certificate.
pub(super) const SERVER_NAME: &str = "ed25519.example";

/// A record of application data that the server cannot decrypt.
const FORGED_RECORD: [u8; 37] = {
    let mut record = [0x5a; 37];
    [record[0], record[1], record[2], record[3], record[4]] = [23, 3, 3, 0, 32];
    record
};

/// How a client uses its connection.
pub(super) enum Link {
    Plain,
    Tls(Box<Endpoint>),
}

/// The end of what the server has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// More may follow.
    None,
    /// An orderly end: a FIN, after `close_notify` with TLS.
    Orderly,
    /// A FIN without `close_notify`.
    Truncated,
    Reset,
}

/// The FIN of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    NotYet,
    AfterUnsent,
    Sent,
    /// Never: the connection was reset before all output was sent.
    Lost,
}

/// A TLS session of a client, and its ciphertext on the way to the socket.
pub(super) struct Endpoint {
    session: ClientConnection,
    /// Ciphertext that the socket has not accepted yet.
    unsent: Vec<u8>,
    /// Decrypted bytes that the client has not read yet.
    plaintext: Vec<u8>,
    /// Maximum ciphertext sent at a time during the handshake.
    piece_bytes: usize,
    /// When the next piece is sent.
    next_us: u64,
    fin: Fin,
    /// The end of the client's output is announced with `close_notify`.
    is_polite: bool,
    is_established: bool,
    /// The server has sent `close_notify`.
    has_ended: bool,
    error: Option<String>,
}

impl Link {
    /// Creates a client's end of a TLS connection.
    pub(super) fn tls(config: &Arc<ClientConfig>, rng: &mut Rng) -> Self {
        Link::Tls(Box::new(Endpoint {
            session: new_session(config),
            unsent: Vec::new(),
            plaintext: Vec::new(),
            piece_bytes: [1, 40, usize::MAX, usize::MAX][usize::try_from(rng.below(4)).expect("small")],
            next_us: 0,
            fin: Fin::NotYet,
            is_polite: !rng.one_in(4),
            is_established: false,
            has_ended: false,
            error: None,
        }))
    }

    /// Sends ciphertext that is waiting, and continues a handshake. Returns whether the client can use the connection.
    pub(super) fn advance(&mut self, world: &mut World, socket: usize) -> bool {
        match self {
            Link::Plain => true,
            Link::Tls(endpoint) => endpoint.advance(world, socket),
        }
    }

    /// Sends the beginning of `bytes`; returns its length, or `None` if the connection was reset.
    pub(super) fn send(&mut self, world: &mut World, socket: usize, bytes: &[u8]) -> Option<usize> {
        match self {
            Link::Plain => world.client_send(socket, bytes),
            Link::Tls(endpoint) => endpoint.send(world, socket, bytes),
        }
    }

    /// Returns how much earlier than the client the server may have completed the handshake, in microseconds.
    pub(super) fn uncertainty_us(&self) -> u64 {
        if matches!(self, Link::Plain) { 0 } else { 100_000 }
    }

    /// Sends a record that cannot be decrypted, after what was sent before.
    pub(super) fn send_forged_record(&mut self, world: &mut World, socket: usize) {
        if let Link::Tls(endpoint) = self {
            endpoint.unsent.extend_from_slice(&FORGED_RECORD);
            endpoint.flush(world, socket);
        }
    }

    /// Returns whether something that was passed to [`Link::send`] is not in the server's receive buffer yet, or was not when
    /// the connection was reset.
    pub(super) fn has_unsent(&self) -> bool {
        matches!(self, Link::Tls(endpoint) if !endpoint.unsent.is_empty() || endpoint.fin == Fin::Lost)
    }

    /// Reads from the socket: up to `max` bytes, or a random number. Appends what the server has sent to `into`. Returns
    /// the number of bytes read from the socket.
    pub(super) fn read(&mut self, world: &mut World, socket: usize, max: Option<usize>, into: &mut Vec<u8>) -> usize {
        match self {
            Link::Plain => read(world, socket, max, into),
            Link::Tls(endpoint) => {
                let count = endpoint.receive(world, socket, max);
                into.append(&mut endpoint.plaintext);
                count
            }
        }
    }

    /// Returns whether and how the output of the server has ended; with TLS, once all of it was read.
    pub(super) fn end(&self, world: &World, socket: usize) -> End {
        let conn = &world.sockets[socket];
        match self {
            _ if conn.down_reset => End::Reset,
            _ if !conn.down_fin => End::None,
            Link::Tls(endpoint) if !endpoint.has_ended => {
                if conn.down.is_empty() {
                    End::Truncated
                } else {
                    End::None
                }
            }
            _ => End::Orderly,
        }
    }

    /// Returns the reason for which the TLS session has failed.
    pub(super) fn error(&self) -> Option<&str> {
        match self {
            Link::Tls(endpoint) => endpoint.error.as_deref(),
            Link::Plain => None,
        }
    }

    /// Half-closes the connection. With TLS, most clients send `close_notify` first.
    pub(super) fn finish(&mut self, world: &mut World, socket: usize) {
        let is_polite = matches!(self, Link::Tls(endpoint) if endpoint.is_polite);
        self.finish_with(world, socket, is_polite);
    }

    /// Half-closes the connection without `close_notify`.
    pub(super) fn cut(&mut self, world: &mut World, socket: usize) {
        self.finish_with(world, socket, false);
    }

    fn finish_with(&mut self, world: &mut World, socket: usize, is_polite: bool) {
        match self {
            Link::Plain => world.client_finish(socket),
            Link::Tls(endpoint) if endpoint.fin != Fin::NotYet => {}
            Link::Tls(endpoint) => {
                if is_polite {
                    endpoint.session.send_close_notify();
                }
                endpoint.fin = Fin::AfterUnsent;
                endpoint.take_ciphertext();
                endpoint.flush(world, socket);
            }
        }
    }
}

impl Endpoint {
    fn advance(&mut self, world: &mut World, socket: usize) -> bool {
        if !self.is_established {
            while self.error.is_none() && self.session.is_handshaking() && self.receive(world, socket, None) > 0 {}
            self.take_ciphertext();
        }
        self.flush(world, socket);
        self.is_established |= !self.session.is_handshaking() && self.unsent.is_empty();
        self.is_established
    }

    fn send(&mut self, world: &mut World, socket: usize, bytes: &[u8]) -> Option<usize> {
        self.flush(world, socket)?;
        if bytes.is_empty() || !self.unsent.is_empty() {
            return Some(0);
        }
        let count = world.rng.some_of(bytes.len());
        self.session.writer().write_all(&bytes[..count]).expect("there is no limit");
        self.take_ciphertext();
        self.flush(world, socket)?;
        Some(count)
    }

    fn take_ciphertext(&mut self) {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.unsent).expect("a vector accepts everything");
        }
    }

    /// Sends the next piece of the ciphertext, if it is due, and a FIN after the last one. Returns `None` if the
    /// connection was reset.
    fn flush(&mut self, world: &mut World, socket: usize) -> Option<()> {
        if !self.unsent.is_empty() && world.now_us() >= self.next_us {
            let piece_bytes = if self.is_established { usize::MAX } else { self.piece_bytes };
            let piece = self.unsent.len().min(piece_bytes);
            let Some(count) = world.client_send(socket, &self.unsent[..piece]) else {
                self.unsent.clear();
                self.fin = Fin::Lost;
                return None;
            };
            self.unsent.drain(..count);
            if count > 0 && !self.unsent.is_empty() {
                let delay_us = 1 + world.rng.below(if piece_bytes == 1 { 4000 } else { 20_000 });
                self.next_us = world.now_us() + delay_us;
                world.wake_client(world.sockets[socket].client, delay_us);
            }
        }
        if self.fin == Fin::AfterUnsent && self.unsent.is_empty() {
            self.fin = Fin::Sent;
            world.client_finish(socket);
        }
        Some(())
    }

    /// Reads ciphertext and decrypts it.
    fn receive(&mut self, world: &mut World, socket: usize, max: Option<usize>) -> usize {
        let mut ciphertext = Vec::new();
        let count = read(world, socket, max, &mut ciphertext);
        if count > 0 && self.error.is_none() {
            self.error = self.decrypt(&ciphertext).err();
        }
        count
    }

    fn decrypt(&mut self, mut ciphertext: &[u8]) -> Result<(), String> {
        if self.has_ended {
            return Err("bytes after close_notify".into());
        }
        while !ciphertext.is_empty() {
            self.session.read_tls(&mut ciphertext).map_err(|error| error.to_string())?;
            let state = self.session.process_new_packets().map_err(|error| error.to_string())?;
            let start = self.plaintext.len();
            self.plaintext.resize(start + state.plaintext_bytes_to_read(), 0);
            self.session.reader().read_exact(&mut self.plaintext[start..]).expect("that many bytes");
            self.has_ended = state.peer_has_closed();
        }
        Ok(())
    }
}

fn new_session(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from(SERVER_NAME).expect("a name");
    let mut session = ClientConnection::new(Arc::clone(config), name).expect("a valid configuration");
    session.set_buffer_limit(None);
    session
}

/// Returns the first message of a handshake.
pub(super) fn client_hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let mut hello = Vec::new();
    new_session(config).write_tls(&mut hello).expect("a vector accepts everything");
    hello
}

fn read(world: &mut World, socket: usize, max: Option<usize>, into: &mut Vec<u8>) -> usize {
    match max {
        Some(max) => world.client_read_up_to(socket, max, into),
        None => world.client_read(socket, into),
    }
}
