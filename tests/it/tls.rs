//! TLS below the application, with a rustls client: handshakes, records, both ends of a connection, limits.
//!
//! Every test runs with TLS on each backend, and with faults injected between TLS and the socket.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore};
use serverd::tls::{Certificate, Tls, TlsVersion};
use serverd::{
    Accepted, App, CloseInfo, CloseReason, ConnId, EventLoop, Flow, HttpServer, LoopLimits, Phase, Request, Response,
    Timeouts, Wire, WithTls,
};

use crate::harness::{
    Backend, Client, Random, Server, WAIT_MAX, on_every_backend, serve, serve_by, trusting, wait_for,
};
use crate::process::{Running, run};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Starts a server whose only listener uses TLS.
pub(crate) fn serve_tls<B: Backend, A: App>(
    tls: &Tls,
    timeouts: Timeouts,
    limits: LoopLimits,
    app: impl FnOnce() -> A + Send + 'static,
) -> Server {
    let (tls, listener) = (tls.clone(), TcpListener::bind("127.0.0.1:0").expect("a free port"));
    serve_by::<WithTls<B>, A>(timeouts, limits, app, listener, move |event_loop, listener| {
        event_loop.listen_tls(listener, &tls)
    })
}

/// A certificate, a server configuration for HTTP with it, and a client configuration that trusts it.
pub(crate) fn certified(names: &[&str]) -> (Certificate, Tls, ClientConfig) {
    let certificate = Certificate::self_signed(names.iter().copied()).expect("valid names");
    let tls = Tls::new(vec![certificate.clone()]).expect("a certificate").alpn_protocols(&["http/1.1"]);
    let client = trusting(&certificate, &[&rustls::version::TLS13, &rustls::version::TLS12]);
    (certificate, tls, client)
}

/// A socket that sends a given number of bytes per call.
pub(crate) struct Pieces {
    socket: TcpStream,
    bytes_max: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.read(buffer)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(&bytes[..bytes.len().min(self.bytes_max)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A TLS client, which begins its handshake with the first read or write.
pub(crate) struct TlsClient {
    pub(crate) stream: rustls::StreamOwned<ClientConnection, Pieces>,
}

impl TlsClient {
    pub(crate) fn connect(address: SocketAddr, config: &ClientConfig) -> Self {
        Self::connect_to(address, config, "localhost", usize::MAX)
    }

    pub(crate) fn connect_to(address: SocketAddr, config: &ClientConfig, name: &str, bytes_max: usize) -> Self {
        let socket = Client::new(address).socket;
        let name = ServerName::try_from(name.to_string()).expect("a name");
        let connection = ClientConnection::new(Arc::new(config.clone()), name).expect("a client");
        TlsClient { stream: rustls::StreamOwned::new(connection, Pieces { socket, bytes_max }) }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> &mut Self {
        self.stream.write_all(bytes).expect("the server reads");
        self.stream.flush().expect("the server reads");
        self
    }

    /// Sends bytes if the handshake succeeds.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("a response arrives in time");
        bytes
    }

    /// Reads a response with a Content-Length, and returns its head and body.
    pub(crate) fn response(&mut self) -> (String, Vec<u8>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.read(1));
        }
        let head = String::from_utf8(head).expect("an ASCII head");
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
        let length = length.parse().expect("a number");
        (head, self.read(length))
    }

    /// Reads to the end of the stream; an end without `close_notify` is an error.
    pub(crate) fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).map(|_| rest)
    }

    /// Sends `close_notify`, but no FIN.
    fn end(&mut self) {
        self.stream.conn.send_close_notify();
        self.stream.flush().expect("the server reads");
    }

    fn socket(&self) -> &TcpStream {
        &self.stream.sock.socket
    }
}

/// Echoes all input, until its end.
fn echo(wire: &mut Wire<'_, ()>) -> Flow {
    let input = wire.input();
    wire.output().extend(input);
    wire.consume(input.len());
    if wire.ended() { Flow::Close } else { Flow::Read(Phase::Unlimited) }
}

fn hello() -> HttpServer<impl serverd::Handler> {
    HttpServer::new(|_| Response::text("hello\n"))
}

on_every_backend! {
    fn requests_are_answered_with_tls_1_2_and_1_3<B>() {
        let (certificate, tls, _) = certified(&["localhost"]);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), hello);
        for (version, expected) in
            [(&rustls::version::TLS13, ProtocolVersion::TLSv1_3), (&rustls::version::TLS12, ProtocolVersion::TLSv1_2)]
        {
            let mut config = trusting(&certificate, &[version]);
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            let mut client = TlsClient::connect(server.address, &config);
            for _ in 0..3 {
                let (head, body) = client.send(GET).response();
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                assert_eq!(body, b"hello\n");
            }
            assert_eq!(client.stream.conn.protocol_version(), Some(expected));
            assert_eq!(client.stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        }
        let counters = server.drain();
        assert_eq!((counters.handshakes, counters.failed_handshakes), (2, 0));
    }

    fn handlers_know_the_parameters_of_the_session<B>() {
        let (certificate, tls, _) = certified(&["localhost"]);
        let plain = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let secure = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let secure_address = secure.local_addr().expect("an address");
        let app = || {
            HttpServer::new(|request: &Request<'_>| {
                assert_eq!(request.is_secure(), request.tls().is_some());
                Response::text(request.tls().map_or("plain".into(), |tls| {
                    let (name, protocol) = (tls.server_name.unwrap_or_default(), tls.alpn_protocol.unwrap_or_default());
                    format!("{:?} {} {name} {protocol}", tls.version, tls.cipher_suite)
                }))
            })
        };
        let (timeouts, limits) = (Timeouts::default(), LoopLimits::default());
        let server = serve_by::<WithTls<B>, _>(timeouts, limits, app, plain, move |event_loop, plain| {
            event_loop.listen(plain)?;
            event_loop.listen_tls(secure, &tls)
        });
        assert_eq!(server.connect().send(GET).response().text(), "plain");
        for (version, expected) in [
            (&rustls::version::TLS13, "Tls13 TLS_AES_256_GCM_SHA384 localhost http/1.1"),
            (&rustls::version::TLS12, "Tls12 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 localhost "),
        ] {
            let mut config = trusting(&certificate, &[version]);
            if version.version == ProtocolVersion::TLSv1_3 {
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
            }
            let (_, body) = TlsClient::connect(secure_address, &config).send(GET).response();
            assert_eq!(String::from_utf8(body).expect("UTF-8"), expected);
        }
    }

    fn an_https_target_is_served_over_tls_only<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), || {
            HttpServer::new(|request: &Request<'_>| format!("{} {}", request.host().unwrap_or_default(), request.path()))
        });
        for (target, status) in [
            ("https://a.test/x?y", 200),
            ("HTTPS://a.test/x", 200),
            ("http://a.test/x", 200),
            ("ftp://a.test/x", 421),
        ] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: b.test\r\n\r\n");
            let (head, body) = TlsClient::connect(server.address, &config).send(request.as_bytes()).response();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {head}");
            assert!(status == 421 || body == b"a.test /x", "{target}");
        }
        let plain = serve::<B, _>(|| HttpServer::new(|_: &Request<'_>| "hello\n"));
        let response = plain.connect().send("GET https://a.test/x HTTP/1.1\r\nHost: a.test\r\n\r\n").response();
        assert_eq!(response.status, 421);
    }

    fn a_host_with_another_certificate_than_the_connection_gets_421<B>() {
        let names: [&[&str]; 2] = [&["a.test", "*.a.test"], &["b.test"]];
        let certificates = names.map(|names| Certificate::self_signed(names.iter().copied()).expect("valid names"));
        let tls = Tls::new(certificates.to_vec()).expect("certificates").alpn_protocols(&["http/1.1"]);
        let app = || HttpServer::new(|_: &Request<'_>| "hello\n").strict_sni_host(true);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), app);
        let connect = |name| {
            let index = usize::from(name == "b.test");
            let mut config = trusting(&certificates[index], &[&rustls::version::TLS13]);
            config.enable_sni = name != "localhost";
            TlsClient::connect_to(server.address, &config, if config.enable_sni { name } else { "a.test" }, usize::MAX)
        };
        for (name, host, status) in [
            ("a.test", "a.test", 200),
            ("a.test", "A.test.:8443", 200),
            ("a.test", "x.a.test", 200),
            ("a.test", "unknown.test", 200),
            ("a.test", "192.0.2.1:80", 200),
            ("a.test", "b.test", 421),
            ("a.test", "B.TEST.:8443", 421),
            ("x.a.test", "b.test", 421),
            ("b.test", "b.test", 200),
            ("b.test", "a.test", 421),
            // Without SNI.
            ("localhost", "b.test", 200),
        ] {
            let mut client = connect(name);
            let (head, _) = client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).response();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{name} {host}: {head}");
            // The connection can be used again.
            let own = if name == "b.test" { "b.test" } else { "a.test" };
            let (head, _) = client.send(format!("GET / HTTP/1.1\r\nHost: {own}\r\n\r\n").as_bytes()).response();
            assert!(head.starts_with("HTTP/1.1 200 "), "{name} {host}: {head}");
        }
    }

    fn much_data_passes_in_both_directions<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), || echo);
        let sent = Random::new(1).bytes(600_000);
        let mut client = TlsClient::connect(server.address, &config);
        client.send(b"!");
        assert_eq!(client.read(1), b"!");
        // More than the buffers of both sockets hold, so that the server has to keep ciphertext.
        for part in sent.chunks(100_000) {
            client.send(part);
        }
        assert!(client.read(sent.len()) == sent);
        client.end();
        assert_eq!(client.read_to_end().expect("an orderly end"), b"");
    }

    fn input_in_pieces_of_any_size_is_understood<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), hello);
        for bytes_max in [1, 5, 1000] {
            let mut client = TlsClient::connect_to(server.address, &config, "localhost", bytes_max);
            assert_eq!(client.send(GET).response().1, b"hello\n");
        }
    }

    fn data_that_arrives_with_the_end_of_the_handshake_is_read<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), || echo);
        let mut client = TlsClient::connect(server.address, &config);
        // rustls sends this in the same write as the last message of the handshake.
        client.stream.conn.writer().write_all(&vec![b'x'; 40_000]).expect("a buffer");
        client.stream.conn.writer().write_all(b"end").expect("a buffer");
        assert!(client.read(40_003).ends_with(b"xend"));
    }

    fn output_before_the_handshake_is_sent_after_it<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let app = || {
            |wire: &mut Wire<'_, ()>| {
                wire.output().extend(b"welcome");
                Flow::Close
            }
        };
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), app);
        let mut client = TlsClient::connect(server.address, &config);
        assert_eq!(client.read_to_end().expect("an orderly end"), b"welcome");
    }

    fn close_notify_precedes_the_end_of_the_stream<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), hello);
        let mut client = TlsClient::connect(server.address, &config);
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert!(client.read_to_end().expect("an orderly end").ends_with(b"hello\n"));
        // After a half-close by the client, too.
        let mut client = TlsClient::connect(server.address, &config);
        client.send(GET).end();
        assert!(client.read_to_end().expect("an orderly end").ends_with(b"hello\n"));
        let mut idle = TlsClient::connect(server.address, &config);
        idle.send(GET).response();
        server.drain();
        assert_eq!(idle.read_to_end().expect("an orderly end"), b"");
    }

    fn files_are_sent_and_truncated_ones_have_no_orderly_end<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let contents = Random::new(2).bytes(500_000);
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&contents).expect("space");
        let (file, size) = (Arc::new(file), contents.len() as u64);
        let app = move || {
            move |wire: &mut Wire<'_, ()>| {
                let count = wire.input().len();
                if count == 0 {
                    return Flow::Read(Phase::Unlimited);
                }
                let end = if wire.input() == b"all" { size } else { size + 1 };
                wire.consume(count);
                wire.output().extend(b"head");
                wire.output().push_file(Arc::clone(&file), 0..end);
                wire.output().extend(b"end");
                Flow::Close
            }
        };
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), app);
        let mut client = TlsClient::connect(server.address, &config);
        let received = client.send(b"all").read_to_end().expect("an orderly end");
        assert!(received == [b"head", &contents[..], b"end"].concat());
        let mut client = TlsClient::connect(server.address, &config);
        assert!(client.send(b"too much").read_to_end().is_err());
    }

    fn a_request_cut_off_without_close_notify_is_not_complete<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let handled = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&handled);
        let app = move || {
            HttpServer::new(move |_| {
                count.fetch_add(1, Ordering::SeqCst);
                Response::text("hello\n")
            })
        };
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), app);
        let mut client = TlsClient::connect(server.address, &config);
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Part: ");
        client.socket().shutdown(Shutdown::Write).expect("an open socket");
        let response = client.read_to_end().unwrap_or_default();
        assert!(!response.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&response));
        assert_eq!(handled.load(Ordering::SeqCst), 0);
    }

    fn plain_http_gets_a_response_that_names_https<B>() {
        let (_, tls, _) = certified(&["localhost"]);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), hello);
        let mut client = server.connect();
        let response = client.send(GET).response();
        assert_eq!(response.status, 400);
        assert!(response.text().contains("https://"), "{}", response.text());
        client.expect_close();
    }

    fn garbage_is_answered_with_an_alert_that_survives_unread_input<B>() {
        let (_, tls, _) = certified(&["localhost"]);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), hello);
        for garbage in [&b"\x16\x03\x01\x00\x05\xff\x00\x00\x01\x00"[..], b"\x80\x2e\x01\x00\x02", &[0x17; 100]] {
            let mut client = server.connect();
            client.send(garbage).send(vec![0; 100_000]);
            let reply = client.finish().read_to_end();
            // An alert record: a fatal alert, in plaintext.
            assert!(matches!(reply[..], [21, 3, _, 0, 2, 2, _]), "{reply:?}");
        }
        // Closing without a word is no failure that deserves an alert.
        server.connect().finish().expect_close();
        let mut client = TlsClient::connect(server.address, &certified(&["localhost"]).2);
        assert!(client.stream.write_all(GET).and_then(|()| client.read_to_end()).is_err(), "not trusted");
    }

    fn a_handshake_has_a_time_limit_that_input_does_not_extend<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let timeouts = Timeouts::default().handshake(Duration::from_millis(300));
        let server = serve_tls::<B, _>(&tls, timeouts, LoopLimits::default(), hello);
        let mut quick = TlsClient::connect(server.address, &config);
        quick.send(GET).response();
        let (mut silent, mut slow) = (server.connect(), server.connect());
        let (mut hello, start) = (Vec::new(), Instant::now());
        let name = ServerName::try_from("localhost").expect("a name");
        let mut connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        connection.write_tls(&mut hello).expect("a buffer");
        for byte in hello {
            // Fails once the server has closed the connection.
            if slow.socket.write_all(&[byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(start.elapsed() < WAIT_MAX);
        silent.expect_close();
        assert!(matches!(slow.socket.read(&mut [0]), Ok(0) | Err(_)));
        assert_eq!(quick.send(GET).response().1, b"hello\n");
        drop(quick);
        let counters = server.drain();
        assert_eq!((counters.handshakes, counters.failed_handshakes), (1, 2));
    }

    fn a_connection_without_a_complete_handshake_gives_way_to_a_new_one<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let limits = LoopLimits::default().connections_max(2);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), limits, hello);
        for first_bytes in [&b""[..], b"\x16\x03\x01\x00\x80\x01"] {
            let mut silent = server.connect();
            silent.send(first_bytes);
            // Longer than the accuracy of the order of idle connections.
            std::thread::sleep(Duration::from_millis(250));
            let mut first = TlsClient::connect(server.address, &config);
            assert_eq!(first.send(GET).response().1, b"hello\n");
            let mut second = TlsClient::connect(server.address, &config);
            assert_eq!(second.send(GET).response().1, b"hello\n");
            silent.expect_close();
        }
    }

    fn unfinished_handshakes_count_as_buffers<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let limits = LoopLimits::default().buffered_bytes_max(64 * 1024);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), limits, hello);
        // The first record of a long ClientHello.
        let record = [&b"\x16\x03\x01\x40\x00\x01\x00\xf0\x00"[..], &vec![0; 0x3ffc]].concat();
        let mut clients: Vec<Client> = (0..6).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(&record[..]);
        }
        let is_open = |client: &mut Client| {
            client.socket.set_nonblocking(true).expect("an open socket");
            matches!(client.socket.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        };
        let clients = Mutex::new(clients);
        let count_open = || clients.lock().unwrap().iter_mut().map(is_open).filter(|&is_open| is_open).count();
        wait_for("fewer than two are closed", || count_open() <= 4);
        assert_eq!(TlsClient::connect(server.address, &config).send(GET).response().1, b"hello\n");
        assert!(count_open() >= 3);
    }

    fn incomplete_records_count_as_buffers<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let limits = LoopLimits::default().buffered_bytes_max(64 * 1024);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), limits, hello);
        let mut clients: Vec<_> = (0..6).map(|_| TlsClient::connect(server.address, &config)).collect();
        for client in &mut clients {
            assert_eq!(client.send(GET).response().1, b"hello\n");
        }
        // Most of a record, which the server cannot decrypt yet.
        let record = [&[23, 3, 3, 0x40, 0][..], &[0; 16_000]].concat();
        for client in &clients {
            // Fails if the server has closed the connection.
            let _ = (&mut client.socket()).write_all(&record);
            client.socket().set_nonblocking(true).expect("an open socket");
        }
        // Tickets may be waiting to be read.
        let is_open = |client: &TlsClient| loop {
            match (&mut client.socket()).read(&mut [0; 1000]) {
                Ok(1..) => {}
                outcome => break outcome.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock),
            }
        };
        let count_open = || clients.iter().filter(|client| is_open(client)).count();
        wait_for("fewer than two are closed", || count_open() <= 4);
        assert!(count_open() >= 3);
        assert_eq!(TlsClient::connect(server.address, &config).send(GET).response().1, b"hello\n");
    }

    fn waiting_handshakes_are_all_completed<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let limits = LoopLimits::default().handshakes_per_turn(1);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), limits, hello);
        let mut clients: Vec<_> = (0..20).map(|_| TlsClient::connect(server.address, &config)).collect();
        for client in &mut clients {
            let TlsClient { stream } = client;
            stream.conn.write_tls(&mut stream.sock).expect("the server reads");
        }
        for client in clients.iter_mut().rev() {
            assert_eq!(client.send(GET).response().1, b"hello\n");
        }
        drop(clients);
        assert_eq!(server.drain().handshakes, 20);
    }

    fn a_turn_continues_no_more_handshakes_than_its_limit<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let limits = LoopLimits::default().handshakes_per_turn(1);
        let mut event_loop =
            EventLoop::<WithTls<B>, _>::with_limits(Timeouts::default(), limits, hello()).expect("an event loop");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        event_loop.listen_tls(listener, &tls).expect("a listening socket");
        let mut clients: Vec<_> = (0..10).map(|_| TlsClient::connect(address, &config)).collect();
        for client in &mut clients {
            let TlsClient { stream } = client;
            stream.conn.write_tls(&mut stream.sock).expect("there is room for a ClientHello");
            client.socket().set_nonblocking(true).expect("an open socket");
        }
        let (mut turns, mut answered) = (0, 0);
        while answered < clients.len() {
            event_loop.turn().expect("the loop runs");
            turns += 1;
            answered = clients.iter().filter(|client| client.socket().peek(&mut [0]).is_ok()).count();
            assert!(answered <= turns, "{answered} answers after {turns} turns");
        }
    }

    fn unsent_ciphertext_is_counted_when_a_client_does_not_read<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let closed = Arc::new(Mutex::new(None));
        let app = { let closed = Arc::clone(&closed); move || Flood { closed } };
        let timeouts = Timeouts::default().write(Duration::from_millis(200));
        let server = serve_tls::<B, _>(&tls, timeouts, LoopLimits::default(), app);
        let mut client = TlsClient::connect(server.address, &config);
        client.send(b"go");
        wait_for("the connection is not closed", || closed.lock().unwrap().is_some());
        let (reason, unsent) = closed.lock().unwrap().take().unwrap();
        assert!(matches!(reason, CloseReason::TooSlow), "{reason:?}");
        assert!(unsent > 0 && unsent < Flood::BYTES as u64, "{unsent}");
        // Cut off, so not an orderly end.
        assert!(client.read_to_end().is_err());
    }

    fn plain_and_tls_listeners_share_a_loop<B>() {
        let (_, tls, config) = certified(&["localhost"]);
        let secure = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let secure_address = secure.local_addr().expect("an address");
        let plain = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (timeouts, limits) = (Timeouts::default(), LoopLimits::default());
        let server = serve_by::<WithTls<B>, _>(timeouts, limits, hello, plain, move |event_loop, plain| {
            event_loop.listen(plain)?;
            event_loop.listen_tls(secure, &tls)
        });
        let mut client = server.connect();
        for _ in 0..2 {
            assert_eq!(client.send(GET).response().text(), "hello\n");
        }
        assert_eq!(TlsClient::connect(secure_address, &config).send(GET).response().1, b"hello\n");
    }

    fn sessions_are_resumed_with_tls_1_2_and_1_3<B>() {
        let (certificate, tls, _) = certified(&["localhost"]);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), hello);
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let config = trusting(&certificate, &[version]);
            let kinds = [(); 2].map(|()| {
                let mut client = TlsClient::connect(server.address, &config);
                client.send(GET).response();
                client.stream.conn.handshake_kind().expect("a complete handshake")
            });
            assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed], "{version:?}");
        }
    }

    fn certificates_are_chosen_by_name_and_replaced_for_new_connections<B>() {
        let (first, tls, config) = certified(&["localhost"]);
        let second = Certificate::self_signed(["*.example.org"]).expect("a name");
        tls.replace_certificates(vec![first.clone(), second.clone()]).expect("certificates");
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), hello);
        let mut open = TlsClient::connect(server.address, &config);
        open.send(GET).response();
        let other = trusting(&second, &[&rustls::version::TLS13]);
        TlsClient::connect_to(server.address, &other, "a.example.org", usize::MAX).send(GET).response();
        tls.replace_certificates(vec![second]).expect("a certificate");
        assert_eq!(open.send(GET).response().1, b"hello\n");
        let mut refused = TlsClient::connect(server.address, &trusting(&first, &[&rustls::version::TLS13]));
        assert!(refused.stream.write_all(GET).is_err(), "the first certificate was removed");
    }

    fn clients_without_a_common_version_or_protocol_are_refused_with_an_alert<B>() {
        let (certificate, tls, mut config) = certified(&["localhost"]);
        let tls = tls.version_min(TlsVersion::Tls13);
        let server = serve_tls::<B, _>(&tls, Timeouts::default(), LoopLimits::default(), hello);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let error = TlsClient::connect(server.address, &config).stream.write_all(GET).unwrap_err();
        assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
        let old = trusting(&certificate, &[&rustls::version::TLS12]);
        let error = TlsClient::connect(server.address, &old).stream.write_all(GET).unwrap_err();
        assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    }
}

/// Answers the first input with more than the sockets hold, and records how the connection was closed.
struct Flood {
    closed: Arc<Mutex<Option<(CloseReason, u64)>>>,
}

impl Flood {
    const BYTES: usize = 16 << 20;
}

impl App for Flood {
    type State = ();
    type Message = std::convert::Infallible;

    fn open(&mut self, _: &Accepted<'_>, _: &mut Wire<'_, Self::Message>) -> ((), Flow) {
        ((), Flow::Read(Phase::Unlimited))
    }

    fn receive(&mut self, (): &mut (), wire: &mut Wire<'_, Self::Message>) -> Flow {
        wire.consume(wire.input().len());
        wire.output().extend(&vec![b'x'; Flood::BYTES]);
        Flow::Read(Phase::Unlimited)
    }

    fn closed(&mut self, _: ConnId, (): (), info: CloseInfo) {
        *self.closed.lock().unwrap() = Some((info.reason, info.unsent_bytes));
    }
}

fn serve_hello(tls: &Tls) -> Server {
    serve_tls::<serverd::Select, _>(tls, Timeouts::default(), LoopLimits::default(), hello)
}

#[test]
fn no_handshake_fails_while_certificates_are_replaced() {
    let certificates = [certified(&["localhost"]).0, certified(&["localhost"]).0];
    let tls = Tls::new(vec![certificates[0].clone()]).expect("a certificate");
    let server = serve_hello(&tls);
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.der().to_vec().into()).expect("a certificate");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
    // Half of the clients resume sessions.
    let resuming = config.clone();
    config.resumption = rustls::client::Resumption::disabled();
    let mut open = TlsClient::connect(server.address, &config);
    open.send(GET).response();
    let (responses, address) = (AtomicUsize::new(0), server.address);
    std::thread::scope(|scope| {
        for config in [&config, &resuming, &config, &resuming] {
            let responses = &responses;
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(TlsClient::connect(address, config).send(GET).response().1, b"hello\n");
                    responses.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut seen = 0;
        for number in 1.. {
            if seen == 80 {
                break;
            }
            tls.replace_certificates(vec![certificates[number % 2].clone()]).expect("a certificate");
            // Every certificate is used, however fast the machine is.
            wait_for("there is no response", || responses.load(Ordering::Relaxed) > seen);
            seen = responses.load(Ordering::Relaxed);
        }
    });
    assert_eq!(open.send(GET).response().1, b"hello\n");
}

/// A client configuration that trusts a certificate in `tests/tls`.
pub(crate) fn trusting_file(name: &str) -> ClientConfig {
    use rustls::pki_types::pem::PemObject;
    let mut roots = RootCertStore::empty();
    let path = format!("tests/tls/{name}.pem");
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(path).expect("a certificate")).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    builder.expect("versions").with_root_certificates(roots).with_no_client_auth()
}

#[test]
fn the_command_serves_https_with_a_self_signed_certificate() {
    let http = Running::start(&["--port", "0", "--tls"]);
    let echo = Running::start(&["echo", "--port", "0", "--tls"]);
    assert!(http.line.starts_with("serverd: listening on https://127.0.0.1:"), "{}", http.line);
    assert!(echo.line.starts_with("serverd: echo on tls://127.0.0.1:"), "{}", echo.line);
    let print = http.line.split("certificate ").nth(1).expect("a fingerprint");
    assert_eq!(print.trim_end().trim_end_matches(')').len(), 95, "{print}");
    let response = http.connect().send(GET).response();
    assert_eq!(response.status, 400, "{response:?}");
}

#[test]
fn the_command_reads_certificates_again_and_keeps_its_private_key_secret() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let copy = |name: &str| {
        for extension in ["pem", "key"] {
            std::fs::copy(format!("tests/tls/{name}.{extension}"), path(extension)).expect("a writable directory");
        }
    };
    copy("a");
    let (chain, key) = (path("pem"), path("key"));
    let root = directory.path().to_str().expect("UTF-8");
    let server = Running::start(&["files", root, "--port", "0", "--tls-cert", &chain, "--tls-key", &key]);
    let address = server.address().parse().expect("an address");
    let get = |name: &str, path: &str| -> io::Result<String> {
        let mut client = TlsClient::connect_to(address, &trusting_file(name), "localhost", usize::MAX);
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        client.stream.write_all(request.as_bytes())?;
        String::from_utf8(client.read_to_end()?).map_err(io::Error::other)
    };
    assert!(get("a", "/pem").expect("a response").starts_with("HTTP/1.1 200 "));
    assert!(get("a", "/key").expect("a response").starts_with("HTTP/1.1 404 "));
    assert!(get("b", "/pem").is_err(), "not trusted");
    std::fs::rename(&key, path("backup")).expect("a writable directory");
    for shown in ["/backup", "/key"] {
        assert!(get("a", shown).expect("a response").starts_with("HTTP/1.1 404 "), "{shown}");
    }
    assert!(!get("a", "/").expect("a listing").contains("backup"));
    #[cfg(unix)]
    {
        copy("b");
        server.signal("HUP");
        wait_for("the certificates are not replaced", || get("b", "/pem").is_ok());
        std::fs::copy(&key, path("copy")).expect("a writable directory");
        for shown in ["/backup", "/copy", "/key"] {
            assert!(get("b", shown).expect("a response").starts_with("HTTP/1.1 404 "), "{shown}");
        }
    }
}

#[test]
fn the_command_with_two_certificates_refuses_the_host_of_the_other_one() {
    let pair = |name: &str| {
        ["--tls-cert", "pem", "--tls-key", "key"].map(|part| match part {
            "pem" | "key" => format!("tests/tls/{name}.{part}"),
            flag => flag.to_owned(),
        })
    };
    let arguments: Vec<String> =
        ["--port", "0"].map(String::from).into_iter().chain(pair("a")).chain(pair("b")).collect();
    let server = Running::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let address = server.address().parse().expect("an address");
    let mut client = TlsClient::connect_to(address, &trusting_file("b"), "b.example", usize::MAX);
    for (host, status) in [("b.example", 200), ("a.example", 421), ("a.example:443", 421), ("b.example", 200)] {
        let (head, _) = client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).response();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {head}");
    }
}

#[test]
fn the_command_explains_a_mistake_in_the_certificate_files() {
    let start = |chain: &str, key: &str| run(&["--port", "0", "--tls-cert", chain, "--tls-key", key]);
    let (code, stderr) = start("tests/tls/a.pem", "tests/tls/b.key");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("the private key does not match the certificate"), "{stderr}");
    let (code, stderr) = start("tests/tls/absent.pem", "tests/tls/b.key");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("cannot read tests/tls/absent.pem"), "{stderr}");
}

#[test]
#[cfg(unix)]
fn tls_on_a_plain_port_is_logged() {
    let server = Running::start(&["--port", "0"]);
    let mut client = server.connect();
    client.send(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00");
    assert_eq!(client.response().status, 400);
    let log = server.stop_and_log();
    assert!(log.contains(" uses TLS where plain HTTP is expected (see --tls)"), "{log}");
}
