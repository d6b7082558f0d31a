//! Invariants: whatever the first 64 KiB of a connection are, the TLS stream neither panics nor stops making progress;
//! splitting the input does not change the outcome; plaintext appears only after a complete handshake; and a failed
//! handshake sends nothing but an alert after the flights of the server.
//!
//! The first byte of an input selects the flights of a real client that precede the rest: none, the `ClientHello`, or a
//! complete handshake, with TLS 1.3 or 1.2.
#![no_main]

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serverd::readiness::{Handshake, Received, Sent, Stream};
use serverd::tls::{Certificate, Tls};
use serverd::{Peer, TlsStream};

/// Maximum input of a handshake, after which it fails.
const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// Maximum input that is also passed in pieces.
const SPLIT_BYTES_MAX: usize = 16 * 1024;

static SECURITY: LazyLock<(Tls, [Arc<ClientConfig>; 2])> = LazyLock::new(|| {
    let certificate = Certificate::self_signed(["localhost"]).expect("a name");
    let tls = Tls::new(vec![certificate.clone()]).expect("a certificate").alpn_protocols(&["http/1.1"]);
    let client = |version| {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().to_vec().into()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).expect("versions");
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    };
    (tls, [&rustls::version::TLS13, &rustls::version::TLS12].map(client))
});

/// Both directions of a connection, and the largest number of bytes that a read returns.
#[derive(Default)]
struct Pipes {
    input: Vec<u8>,
    output: Vec<u8>,
    has_ended: bool,
    bytes_max: usize,
}

#[derive(Clone, Default)]
struct Socket(Rc<RefCell<Pipes>>);

impl Stream for Socket {
    type Source = ();

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let pipes = &mut *self.0.borrow_mut();
        let bytes = pipes.input.len().min(buffer.len()).min(pipes.bytes_max);
        if bytes == 0 && !pipes.has_ended {
            return Err(ErrorKind::WouldBlock.into());
        }
        buffer[..bytes].copy_from_slice(&pipes.input[..bytes]);
        pipes.input.drain(..bytes);
        Ok(Received { bytes, more: bytes > 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        self.0.borrow_mut().output.extend_from_slice(bytes);
        Ok(Sent { bytes: bytes.len(), more: true })
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent> {
        self.write(&slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>())
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn abort(&mut self) {}

    fn connected(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok((Ipv4Addr::LOCALHOST, 1).into())
    }

    fn peer(&self) -> io::Result<Peer> {
        self.local_addr().map(Peer::Tcp)
    }

    fn source(&self) -> &() {
        &()
    }
}

/// The result of all input.
#[derive(Debug, PartialEq)]
struct Outcome {
    has_completed: bool,
    failure: Option<String>,
    plaintext: Vec<u8>,
}

/// Passes input to a server, after the first flights of a real client. The results of several calls are comparable only if
/// `data` does not depend on the keys of a session.
fn run(flights: u8, data: &[u8], bytes_max: usize) -> Outcome {
    let socket = Socket::default();
    socket.0.borrow_mut().bytes_max = bytes_max;
    let mut stream = TlsStream::accept(socket.clone(), &SECURITY.0);
    let mut outcome = Outcome { has_completed: false, failure: None, plaintext: Vec::new() };
    let config = &SECURITY.1[usize::from(flights / 3 % 2)];
    let mut client = ClientConnection::new(Arc::clone(config), "localhost".try_into().expect("a name")).expect("a client");
    for _ in 0..flights % 3 * 2 {
        while client.wants_write() {
            client.write_tls(&mut socket.0.borrow_mut().input).expect("a buffer");
        }
        if flights % 3 == 1 {
            break;
        }
        drive(&mut stream, &mut outcome);
        let output = std::mem::take(&mut socket.0.borrow_mut().output);
        let mut output = &output[..];
        while !output.is_empty() {
            client.read_tls(&mut output).expect("a buffer");
            client.process_new_packets().expect("the server speaks TLS");
        }
    }
    assert!(flights % 3 != 2 || outcome.has_completed, "a real client succeeds: {outcome:?}");
    socket.0.borrow_mut().input.extend_from_slice(data);
    drive(&mut stream, &mut outcome);
    socket.0.borrow_mut().has_ended = true;
    drive(&mut stream, &mut outcome);
    check_alert(&outcome, data, &socket.0.borrow().output);
    stream.end_output();
    outcome
}

/// Runs the stream until it needs more input or has failed.
fn drive(stream: &mut TlsStream<Socket>, outcome: &mut Outcome) {
    // Each call uses at least one byte.
    for _ in 0..4 * HANDSHAKE_BYTES_MAX {
        let step = if stream.is_handshaking() {
            assert!(outcome.plaintext.is_empty());
            stream.handshake().map(|progress| progress == Handshake::Complete)
        } else if outcome.failure.is_none() {
            outcome.has_completed = true;
            let mut buffer = [0; 1000];
            stream.read(&mut buffer).map(|received| {
                outcome.plaintext.extend_from_slice(&buffer[..received.bytes]);
                received.bytes > 0
            })
        } else {
            return;
        };
        match step {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => {
                outcome.failure.get_or_insert(error.to_string());
                return;
            }
        }
    }
    panic!("the stream does not use its input");
}

/// Checks that all output of a handshake that has failed is an alert or a flight of the server. rustls sends no alert for some
/// failures.
fn check_alert(outcome: &Outcome, data: &[u8], output: &[u8]) {
    let is_http = data.first().is_some_and(u8::is_ascii_uppercase);
    if outcome.failure.is_some() && !outcome.has_completed && !is_http {
        let is_alert = matches!(output, [21, 3, _, 0, 2, 2, _]);
        assert!(output.is_empty() || is_alert || output.first() == Some(&22), "{outcome:?}: {output:?}");
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&flights, data)) = data.split_first() else { return };
    let unsplit = run(flights, data, usize::MAX);
    // Longer input takes long byte by byte, and may exceed the limit in the middle of a read.
    if data.len() < SPLIT_BYTES_MAX {
        for bytes_max in [1, 1 + usize::from(flights)] {
            assert_eq!(run(flights, data, bytes_max), unsplit);
        }
    }
});
