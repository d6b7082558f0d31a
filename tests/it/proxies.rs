//! The client of a request that comes through proxies: which headers are used, and where the result appears.

use std::net::SocketAddr;

use serverd::{AccessLog, ClientIpHeader, HttpServer, LogFormat, Networks, Request};

use crate::access_log::Capture;
use crate::harness::{Backend, Server, on_every_backend, serve};
use crate::process::Running;

use ClientIpHeader::{Forwarded, None as NoHeader, XForwardedFor, XRealIp};

/// A request through a proxy, whose address is 127.0.0.1.
struct Case {
    trusted: &'static str,
    header: ClientIpHeader,
    /// Header lines, separated by semicolons and spaces.
    lines: &'static str,
    client: &'static str,
    is_secure: bool,
}

const fn case(
    trusted: &'static str,
    header: ClientIpHeader,
    lines: &'static str,
    client: &'static str,
    is_secure: bool,
) -> Case {
    Case { trusted, header, lines, client, is_secure }
}

/// The peer's address, as the result for headers that do not count.
const PEER: &str = "peer";

const CASES: [Case; 38] = [
    // No header, or none that counts.
    case("loopback", XForwardedFor, "X-Other: 1", PEER, false),
    case("loopback", NoHeader, "X-Forwarded-For: 192.0.2.1 | X-Forwarded-Proto: https", PEER, false),
    case("loopback", XRealIp, "X-Forwarded-For: 192.0.2.1 | Forwarded: for=192.0.2.1", PEER, false),
    case("loopback", XForwardedFor, "Forwarded: for=192.0.2.1;proto=https", PEER, false),
    case("loopback", Forwarded, "X-Forwarded-For: 192.0.2.1 | X-Forwarded-Proto: https", PEER, false),
    // Forged: the peer is not a trusted proxy.
    case("10.0.0.0/8", XForwardedFor, "X-Forwarded-For: 192.0.2.1 | X-Forwarded-Proto: https", PEER, false),
    case("10.0.0.0/8", XForwardedFor, "X-Forwarded-For: 10.0.0.1", PEER, false),
    case("10.0.0.0/8", XRealIp, "X-Real-IP: 192.0.2.1 | X-Forwarded-Proto: https", PEER, false),
    case("10.0.0.0/8", Forwarded, "Forwarded: for=192.0.2.1;proto=https", PEER, false),
    case("unix", XForwardedFor, "X-Forwarded-For: 192.0.2.1", PEER, false),
    // Forged: what the client has sent is to the left of what the proxy adds.
    case("loopback", XForwardedFor, "X-Forwarded-For: 198.51.100.9, 192.0.2.1", "192.0.2.1", false),
    case("loopback", XForwardedFor, "X-Forwarded-For: 198.51.100.9 | X-Forwarded-For: 192.0.2.1", "192.0.2.1", false),
    case("loopback", XForwardedFor, "X-Forwarded-For: 127.0.0.1, 192.0.2.1", "192.0.2.1", false),
    case("loopback", XRealIp, "X-Real-IP: 198.51.100.9 | X-Real-IP: 192.0.2.1", "192.0.2.1", false),
    case("loopback", Forwarded, "Forwarded: for=198.51.100.9;proto=https, for=192.0.2.1", "192.0.2.1", false),
    case("loopback", Forwarded, "Forwarded: for=\"198.51.100.9, for=192.0.2.1;proto=https", "192.0.2.1", true),
    case("loopback", Forwarded, "Forwarded: for=\"\\\" | Forwarded: for=192.0.2.1", "192.0.2.1", false),
    case("loopback", XForwardedFor, "X-Forwarded-For: 192.0.2.1 | X-Forwarded-Proto: https, http", "192.0.2.1", false),
    // Several proxies.
    case("loopback,10.0.0.0/8", XForwardedFor, "X-Forwarded-For: 9.9.9.9, 192.0.2.1, 10.0.0.1", "192.0.2.1", false),
    case("loopback", XForwardedFor, "X-Forwarded-For: 192.0.2.1, 10.0.0.1", "10.0.0.1", false),
    case("loopback,private", XForwardedFor, "X-Forwarded-For: 10.0.0.2, 10.0.0.1", "10.0.0.2", false),
    case("loopback,private", XForwardedFor, "X-Forwarded-For: 192.0.2.1, unknown, 10.0.0.1", "10.0.0.1", false),
    case("loopback,private", Forwarded, "Forwarded: for=192.0.2.1;proto=https, for=10.0.0.1", "192.0.2.1", true),
    case("loopback,private", Forwarded, "Forwarded: for=192.0.2.1, for=_hidden, for=10.0.0.1", "10.0.0.1", false),
    // Forms of addresses.
    case("loopback", XForwardedFor, "X-Forwarded-For: 192.0.2.1:4711", "192.0.2.1:4711", false),
    case("loopback", XForwardedFor, "X-Forwarded-For: 2001:db8::1", "2001:db8::1", false),
    case("loopback", XForwardedFor, "x-forwarded-for:  [2001:db8::1]:80 , ,", "[2001:db8::1]:80", false),
    case("loopback", XForwardedFor, "X-Forwarded-For: ::ffff:192.0.2.1", "192.0.2.1", false),
    case("loopback", Forwarded, "Forwarded: For=\"[2001:db8::1]:4711\";Proto=HTTPS;by=x", "[2001:db8::1]:4711", true),
    case("loopback", Forwarded, "Forwarded: for=192.0.2.1;host=\"a,b;for=1\"", "192.0.2.1", false),
    case("loopback", XRealIp, "X-Real-IP: 192.0.2.1 | X-Forwarded-Proto: wss", "192.0.2.1", true),
    // Invalid values.
    case("loopback", XForwardedFor, "X-Forwarded-For: proxy.example", PEER, false),
    case("loopback", XForwardedFor, "X-Forwarded-For: 192.0.2.1, 192.0.2.256", PEER, false),
    case("loopback", XRealIp, "X-Real-IP: 192.0.2.1, 192.0.2.2", PEER, false),
    case("loopback", Forwarded, "Forwarded: for=192.0.2.1;for=192.0.2.2", PEER, false),
    case("loopback", Forwarded, "Forwarded: for=unknown;proto=https", PEER, true),
    case("loopback", XForwardedFor, "X-Forwarded-For: 192.0.2.1 | X-Forwarded-Proto: gopher", "192.0.2.1", false),
    case("loopback", XForwardedFor, "X-Forwarded-For: | X-Forwarded-Proto: https", PEER, true),
];

fn client_text(client: Option<SocketAddr>) -> String {
    match client {
        Some(client) if client.port() == 0 => client.ip().to_string(),
        Some(client) => client.to_string(),
        None => "unknown".to_owned(),
    }
}

/// Describes the client of a request: its address, and whether it uses TLS.
pub(crate) fn describe(request: &Request<'_>) -> String {
    let client = client_text(request.client_addr());
    let client = if request.client_addr() == request.peer_addr() { PEER } else { &client };
    format!("{client} {}", request.is_secure())
}

fn serve_behind<B: Backend>(trusted: &str, header: ClientIpHeader) -> (Server, Capture) {
    let (capture, trusted) = (Capture::default(), trusted.parse::<Networks>().expect("valid networks"));
    let log = AccessLog::to(capture.clone(), LogFormat::Combined).expect("starting the writer thread");
    let server = serve::<B, _>(move || HttpServer::new(describe).trusted_proxies(&trusted, header).access_log(&log));
    (server, capture)
}

on_every_backend! {
    fn the_client_is_the_first_address_from_the_right_that_is_not_a_trusted_proxy<B>() {
        for Case { trusted, header, lines, client, is_secure } in &CASES {
            let (server, log) = serve_behind::<B>(trusted, *header);
            let lines = lines.replace(" | ", "\r\n");
            let mut connection = server.connect();
            connection.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n"));
            let expected = format!("{client} {is_secure}");
            assert_eq!(connection.response().text(), expected, "{trusted} {header:?} {lines}");
            // Without a port, as in the log.
            let host = match *client {
                PEER => "127.0.0.1".to_owned(),
                _ => client.parse::<SocketAddr>().map_or_else(|_| (*client).to_owned(), |addr| addr.ip().to_string()),
            };
            let line = log.line();
            assert_eq!(line.split(' ').next(), Some(&*host), "{line}");
        }
    }

    fn only_the_last_lines_of_a_header_are_examined<B>() {
        let (server, _) = serve_behind::<B>("loopback,10.0.0.0/8", XForwardedFor);
        let proxies = |count: usize| "X-Forwarded-For: 10.0.0.1\r\n".repeat(count);
        let mut connection = server.connect();
        for (count, client) in [(15, "192.0.2.1"), (16, "10.0.0.1")] {
            let proxies = proxies(count);
            connection.send(format!("GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n{proxies}\r\n"));
            assert_eq!(connection.response().text(), format!("{client} false"));
        }
    }

    fn each_request_of_a_connection_has_its_own_client<B>() {
        let (server, _) = serve_behind::<B>("loopback", XForwardedFor);
        let mut connection = server.connect();
        let request = |client| format!("GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {client}\r\n\r\n");
        connection.send([request("192.0.2.1"), request("192.0.2.2")].concat());
        assert_eq!(connection.response().text(), "192.0.2.1 false");
        assert_eq!(connection.response().text(), "192.0.2.2 false");
        connection.send("POST / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.3\r\nContent-Length: 4\r\n\r\nbo");
        connection.send("dy");
        assert_eq!(connection.response().text(), "192.0.2.3 false");
    }
}

/// A peer of a Unix socket has no address, and is trusted only by name.
#[cfg(unix)]
#[test]
fn a_proxy_can_connect_over_a_unix_socket() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use serverd::{LoopLimits, SelectLoop, Timeouts};

    for (trusted, expected) in [("unix", "192.0.2.1 true"), ("loopback", "peer false")] {
        let (mut proxy, stream) = UnixStream::pair().expect("a pair of sockets");
        let app = HttpServer::new(describe).trusted_proxies(&trusted.parse().expect("valid"), XForwardedFor);
        let mut event_loop = SelectLoop::with_limits(Timeouts::default(), LoopLimits::default(), app).expect("a loop");
        event_loop.add_stream(serverd::SystemStream::try_from(stream).expect("a stream"));
        let lines = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nConnection: close";
        proxy.write_all(format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n").as_bytes()).expect("sending");
        proxy.shutdown(std::net::Shutdown::Write).expect("half-closing");
        event_loop.handle().drain();
        event_loop.run().expect("serving");
        let mut response = String::new();
        proxy.read_to_string(&mut response).expect("a response");
        assert!(response.ends_with(&format!("\r\n\r\n{expected}")), "{response}");
    }
}

#[test]
fn whoami_shows_the_client_of_a_trusted_proxy() {
    for (flags, client, scheme) in [
        (&["--trusted-proxies", "10.0.0.0/8,loopback"][..], "192.0.2.1", "https"),
        (&["--trusted-proxies", "10.0.0.0/8"], "127.0.0.1:", "http"),
        (&[], "127.0.0.1:", "http"),
        (&["--trusted-proxies", "loopback", "--client-ip-header", "x-real-ip"], "192.0.2.2", "https"),
    ] {
        let server = Running::start(&[&["--port", "0", "whoami"], flags].concat());
        let mut connection = server.connect();
        let lines = "X-Forwarded-For: 192.0.2.1\r\nX-Real-IP: 192.0.2.2\r\nX-Forwarded-Proto: https";
        connection.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n"));
        let text = connection.response().text();
        assert!(text.contains(&format!("\nclient: {client}")), "{flags:?}: {text}");
        assert!(text.contains(&format!("\nscheme: {scheme}\npeer: 127.0.0.1:")), "{flags:?}: {text}");
    }
}
