//! The PROXY protocol: which connections begin with a header, and the client that it names.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use serverd::ClientIpHeader::XForwardedFor;
use serverd::tls::Tls;
use serverd::{
    AccessLog, App, Echo, EventLoop, HttpServer, LogFormat, LoopLimits, Networks, ProxyListener, ProxyMode,
    ProxyProtocol, Readiness, Timeouts, WithProxy, WithTls,
};

use crate::access_log::Capture;
use crate::harness::{Backend, Client, Server, WAIT_MAX, on_every_backend, serve_by, wait_for};
use crate::process::{Running, run};
use crate::proxies::describe;

/// A header of version 1.
const LINE: &str = "PROXY TCP4 192.0.2.1 198.51.100.1 4711 80\r\n";

/// A header of version 2 with the same addresses, and an extension.
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\xc0\0\x02\x01\xc6\x33\x64\x01\x12\x67\0\x50\x04\0\x01\0";

/// A header of version 2 for a connection of the proxy itself.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\r\n";

/// Starts a server with the PROXY protocol.
fn serve_proxied<B: Backend, A: App>(
    mode: ProxyMode,
    trusted: &str,
    timeouts: Timeouts,
    app: impl FnOnce() -> A + Send + 'static,
) -> Server {
    let protocol = ProxyProtocol::new(mode, &trusted.parse().expect("valid networks"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    serve_by::<WithProxy<B>, A>(timeouts, LoopLimits::default(), app, listener, move |event_loop, listener| {
        event_loop.listen_proxied(listener, &protocol)
    })
}

/// Starts an HTTP server with a limit on the memory of buffers, whose listener is added by `listen`.
fn serve_proxied_within<B: Readiness>(
    bytes_max: usize,
    listen: impl FnOnce(&mut EventLoop<B, Echo>, TcpListener, &ProxyProtocol) -> io::Result<()> + Send + 'static,
) -> Server {
    let protocol = ProxyProtocol::new(ProxyMode::Required, &"loopback".parse().expect("valid networks"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let limits = LoopLimits::default().buffered_bytes_max(bytes_max);
    let timeouts = Timeouts::default().handshake(Duration::from_secs(3600));
    serve_by::<B, _>(
        timeouts,
        limits,
        || Echo,
        listener,
        move |event_loop, listener| listen(event_loop, listener, &protocol),
    )
}

/// Checks that connections with incomplete headers of 10 KiB are closed when they exceed 64 KiB in total.
fn check_buffers(server: &Server) {
    let header = [&BINARY[..14], &[0x30, 0], &[0; 10 * 1024]].concat();
    let mut clients: Vec<_> = (0..12).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(&header[..]);
        client.socket.set_nonblocking(true).expect("an open socket");
    }
    let is_open = |client: &mut Client| matches!(client.socket.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    let clients = Mutex::new(clients);
    let count_open = || clients.lock().unwrap().iter_mut().map(is_open).filter(|&is_open| is_open).count();
    wait_for("too few are closed", || count_open() <= 6);
    assert!(count_open() >= 2);
}

/// Starts an HTTP server with the PROXY protocol that describes the client.
fn serve_http_proxied<B: Backend>(mode: ProxyMode, trusted: &str) -> (Server, Capture) {
    let capture = Capture::default();
    let log = AccessLog::to(capture.clone(), LogFormat::Combined).expect("starting the writer thread");
    let networks: Networks = trusted.parse().expect("valid networks");
    let app = move || HttpServer::new(describe).trusted_proxies(&networks, XForwardedFor).access_log(&log);
    (serve_proxied::<B, _>(mode, trusted, Timeouts::default(), app), capture)
}

/// Returns the response to these bytes, or `None` if the connection is closed without one.
fn response_to(server: &Server, bytes: &[u8]) -> Option<(u16, String)> {
    let mut connection = server.connect();
    connection.send(bytes);
    let mut first = [0];
    match connection.socket.peek(&mut first) {
        Ok(1..) => {
            let response = connection.response();
            Some((response.status, response.text()))
        }
        _ => None,
    }
}

on_every_backend! {
    fn a_proxy_header_names_the_client<B>() {
        use ProxyMode::{Off, Optional, Required};
        // After a header, X-Forwarded-For counts only if the address in it is one of a trusted proxy.
        let (named, own, forwarded) = ("192.0.2.1:4711 false", "peer false", "203.0.113.9 true");
        for (mode, trusted, header, expected) in [
            (Required, "loopback", LINE.as_bytes(), Some(named)),
            (Required, "loopback", BINARY, Some(named)),
            (Required, "loopback,192.0.2.0/24", BINARY, Some(forwarded)),
            (Required, "loopback", LOCAL, Some(forwarded)),
            (Required, "loopback", b"PROXY UNKNOWN\r\n", Some(forwarded)),
            (Required, "loopback", b"", None),
            (Required, "loopback", b"PROXY TCP4 bad\r\n", None),
            (Required, "10.0.0.0/8", LINE.as_bytes(), None),
            (Required, "10.0.0.0/8", b"", None),
            (Optional, "loopback", LINE.as_bytes(), Some(named)),
            (Optional, "loopback", BINARY, Some(named)),
            (Optional, "loopback", b"", Some(forwarded)),
            (Optional, "10.0.0.0/8", b"", Some(own)),
            (Off, "loopback", b"", Some(forwarded)),
        ] {
            let (server, log) = serve_http_proxied::<B>(mode, trusted);
            let response = response_to(&server, &[header, GET.as_bytes()].concat());
            let expected = expected.map(|text| (200, text.to_owned()));
            assert_eq!(response, expected, "{mode:?} {trusted} {:?}", String::from_utf8_lossy(header));
            if expected.is_some_and(|(_, text)| text == named) {
                assert!(log.line().starts_with("192.0.2.1 "));
            }
        }
    }

    fn a_proxy_header_that_is_not_expected_gets_a_400_that_says_so<B>() {
        for (mode, trusted) in [(ProxyMode::Off, "loopback"), (ProxyMode::Optional, "10.0.0.0/8")] {
            for header in [LINE.as_bytes(), BINARY] {
                let (server, _) = serve_http_proxied::<B>(mode, trusted);
                let (status, text) = response_to(&server, &[header, GET.as_bytes()].concat()).expect("a response");
                assert_eq!((status, text.contains("PROXY protocol")), (400, true), "{text}");
            }
        }
    }

    fn a_proxy_header_may_arrive_in_pieces<B>() {
        for header in [LINE.as_bytes(), BINARY] {
            for mode in [ProxyMode::Optional, ProxyMode::Required] {
                let (server, _) = serve_http_proxied::<B>(mode, "loopback");
                let mut connection = server.connect();
                for byte in header {
                    connection.send([*byte]);
                }
                connection.send(GET).send(GET);
                for _ in 0..2 {
                    assert_eq!(connection.response().text(), "192.0.2.1:4711 false");
                }
            }
        }
    }

    fn an_incomplete_proxy_header_is_limited_in_time<B>() {
        let timeouts = Timeouts::default().handshake(Duration::from_millis(50));
        let server = serve_proxied::<B, _>(ProxyMode::Required, "loopback", timeouts, || HttpServer::new(describe));
        for bytes in [&b""[..], b"PROXY TCP4", &BINARY[..20]] {
            let mut connection = server.connect();
            connection.send(bytes);
            assert_eq!(connection.socket.read(&mut [0]).unwrap_or(0), 0);
        }
    }

    fn incomplete_proxy_headers_count_as_buffers_also_below_tls<B>() {
        check_buffers(&serve_proxied_within::<WithProxy<B>>(64 * 1024, |event_loop, listener, protocol| {
            event_loop.listen_proxied(listener, protocol)
        }));
        let tls = Tls::self_signed(["localhost"]).expect("a name");
        check_buffers(&serve_proxied_within::<WithTls<WithProxy<B>>>(64 * 1024, move |event_loop, listener, protocol| {
            event_loop.listen_tls(ProxyListener::new(listener, protocol), &tls)
        }));
    }

    fn a_greeting_follows_the_proxy_header<B>() {
        let greet = || |wire: &mut serverd::Wire<'_, ()>| {
            if wire.input().is_empty() && !wire.ended() {
                wire.output().extend(b"hello\n");
            } else {
                let source = wire.addrs().source_addr().map(|source| source.to_string()).unwrap_or_default();
                wire.output().extend(format!("{source}\n").as_bytes());
                wire.consume(wire.input().len());
            }
            serverd::Flow::Read(serverd::Phase::Unlimited)
        };
        let server = serve_proxied::<B, _>(ProxyMode::Required, "loopback", Timeouts::default(), greet);
        let mut connection = server.connect();
        connection.send(LINE);
        assert_eq!(connection.line(), "hello");
        connection.send("x");
        assert_eq!(connection.line(), "192.0.2.1:4711");
    }

    fn the_address_in_a_proxy_header_counts_in_the_limit_per_address<B>() {
        use serverd::ConnectionLimit;
        let trusted: Networks = "loopback".parse().expect("valid networks");
        let limit = ConnectionLimit::new(100).per_address(2).exempt(&trusted);
        let protocol = ProxyProtocol::new(ProxyMode::Optional, &trusted).limit_addresses(&limit);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let app = || HttpServer::new(describe);
        let listen = move |event_loop: &mut EventLoop<WithProxy<B>, _>, listener| {
            event_loop.share_connection_limit(&limit);
            event_loop.listen_proxied(listener, &protocol)
        };
        let server = serve_by::<WithProxy<B>, _>(Timeouts::default(), LoopLimits::default(), app, listener, listen);
        let open = |header: &str| {
            let mut connection = server.connect();
            let sent = connection.socket.write_all(format!("{header}{GET}").as_bytes());
            let is_open = sent.is_ok() && matches!(connection.socket.peek(&mut [0]), Ok(1..));
            is_open.then_some(connection)
        };
        let first = [open(LINE), open(LINE)];
        assert!(first.iter().all(Option::is_some));
        assert!(open(LINE).is_none(), "the third connection of 192.0.2.1");
        let proxy: Vec<_> = (0..4).map(|_| open("")).collect();
        assert!(proxy.iter().all(Option::is_some), "connections of the proxy itself");
        drop(first);
        // The server notices the close in its own time.
        wait_for("the closed connections still count", || open(LINE).is_some());
    }
}

/// Sends a request over TLS, and returns the response.
fn get_over_tls(socket: TcpStream) -> String {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file("tests/tls/a.pem").expect("a certificate")).expect("a valid one");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let name = "localhost".try_into().expect("a name");
    let client = rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("a client");
    let mut stream = rustls::StreamOwned::new(client, socket);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("sending");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("a response");
    text
}

#[test]
fn a_proxy_header_precedes_tls() {
    let proxies = ["--trusted-proxies", "loopback", "--proxy-protocol", "required"];
    let tls = ["--tls-cert", "tests/tls/a.pem", "--tls-key", "tests/tls/a.key"];
    let server = Running::start(&[&["--port", "0"][..], &proxies, &tls, &["whoami"]].concat());
    for header in [LINE.as_bytes(), BINARY] {
        let mut socket = TcpStream::connect(server.socket_addr()).expect("a connection");
        socket.set_read_timeout(Some(WAIT_MAX)).expect("the socket is open");
        socket.write_all(header).expect("sending");
        let text = get_over_tls(socket);
        assert!(text.contains("\nproxy header: from 192.0.2.1:4711 to 198.51.100.1:80\n"), "{text}");
        assert!(text.contains("\nclient: 192.0.2.1:4711\nscheme: https\npeer: 127.0.0.1:"), "{text}");
    }
}

#[test]
fn the_proxy_protocol_is_a_flag_of_every_command() {
    let flags = ["--port", "0", "--trusted-proxies", "loopback", "--proxy-protocol", "required"];
    let server = Running::start(&[&flags[..], &["echo"]].concat());
    let mut connection = server.connect();
    connection.send([LINE, "hello\n"].concat());
    assert_eq!(connection.line(), "hello");
    let (code, stderr) = run(&["--proxy-protocol", "required"]);
    assert_eq!((code, stderr.contains("needs --trusted-proxies")), (Some(2), true), "{stderr}");
}

/// Bans apply to the client behind a proxy, not to the proxy.
#[test]
fn the_chat_identifies_members_by_the_proxy_header() {
    use serverd::{Chat, ChatOptions};
    let chat = Chat::with_options(ChatOptions::default(), 1).remove(0);
    let console = chat.console();
    let server =
        serve_proxied::<serverd::Select, _>(ProxyMode::Required, "loopback", Timeouts::default(), move || chat);
    let join = || {
        let mut member = server.connect();
        member.send([LINE, "hello\n"].concat());
        member
    };
    let mut member = join();
    wait_for("the member is not listed", || console.execute("/who").contains("192.0.2.1:4711"));
    assert!(!console.execute("/ban 192.0.2.1").contains("unknown"));
    let mut text = String::new();
    member.socket.read_to_string(&mut text).expect("the server closes");
    let mut text = String::new();
    join().socket.read_to_string(&mut text).expect("the server closes");
    assert!(text.contains("You are banned"), "{text}");
}
