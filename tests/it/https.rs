//! The redirect from http to https, challenges of ACME authorities, and HSTS.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use rustls::ClientConfig;
use serverd::{HttpServer, LoopLimits, Request, Response, Timeouts, WithTls, layers};

use crate::harness::{Backend, Client, Server, on_every_backend, serve_by};
use crate::process::{NO_CTRL_BREAK, Running, backends, run};
use crate::tls::{TlsClient, certified, trusting_file};

const HSTS: &str = "Strict-Transport-Security: max-age=3600\r\n";

/// Starts a server with a plain and a TLS listener that redirects the plain connections to port 8443. The handler
/// panics on `/panic`, and sets the HSTS header itself on `/own`. Also returns the TLS address.
fn serve_both<B: Backend>() -> (Server, SocketAddr, ClientConfig) {
    let (_, tls, config) = certified(&["localhost"]);
    let secure = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let plain = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let secure_address = secure.local_addr().expect("an address");
    let app = || {
        let handler = |request: &Request<'_>| {
            assert_ne!(request.path(), "/panic");
            let response = Response::text("secret\n");
            if request.path() == "/own" { response.header("strict-transport-security", "max-age=1") } else { response }
        };
        HttpServer::with(layers::https_redirect(handler, 8443)).hsts(Duration::from_secs(3600)).allow_hosts([".test"])
    };
    let (timeouts, limits) = (Timeouts::default(), LoopLimits::default());
    let server = serve_by::<WithTls<B>, _>(timeouts, limits, app, plain, move |event_loop, plain| {
        event_loop.listen(plain)?;
        event_loop.listen_tls(secure, &tls)
    });
    (server, secure_address, config)
}

on_every_backend! {
    fn plain_requests_are_redirected_to_the_same_host_and_target<B>() {
        let (server, _, _) = serve_both::<B>();
        let mut client = server.connect();
        for (request, location) in [
            ("GET / HTTP/1.1\r\nHost: a.test", "https://a.test:8443/"),
            ("GET //b/../c?d=%20&e HTTP/1.1\r\nHost: A.Test:80", "https://A.Test:8443//b/../c?d=%20&e"),
            ("OPTIONS * HTTP/1.1\r\nHost: a.test", "https://a.test:8443/"),
            ("GET http://b.test?x HTTP/1.1\r\nHost: a.test", "https://b.test:8443/?x"),
        ] {
            let response = client.send(format!("{request}\r\n\r\n")).response();
            assert_eq!((response.status, response.header("location")), (308, Some(location)), "{response:?}");
            assert_eq!(response.text(), "this server requires https\n");
            assert_eq!(response.header("strict-transport-security"), None);
        }
        let head = client.send("HEAD /x HTTP/1.1\r\nHost: a.test\r\n\r\n").response_to("HEAD");
        assert_eq!((head.status, head.header("content-length")), (308, Some("27")));
        assert_eq!(head.header("location"), Some("https://a.test:8443/x"));
        let rest = client.send("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").response();
        assert_eq!(rest.status, 308);
        client.expect_close();
    }

    fn the_body_of_a_redirected_request_is_not_read<B>() {
        let (server, _, _) = serve_both::<B>();
        for more in ["Expect: 100-continue\r\n\r\n", "\r\nbody"] {
            let mut client = server.connect();
            client.send(format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000000\r\n{more}"));
            let response = client.response();
            assert_eq!((response.status, response.header("connection")), (308, Some("close")), "{response:?}");
            client.expect_close();
        }
    }

    fn a_request_without_a_valid_host_is_not_redirected<B>() {
        let (server, _, _) = serve_both::<B>();
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a@b.test\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a,b.test\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", 421),
        ] {
            let response = server.connect().send(request).response();
            assert_eq!((response.status, response.header("location")), (status, None), "{request}");
        }
    }

    fn every_response_over_tls_has_the_hsts_header_once<B>() {
        let (_server, secure, config) = serve_both::<B>();
        for (request, status) in [
            ("GET / HTTP/1.1\r\nHost: a.test", 200),
            ("HEAD / HTTP/1.1\r\nHost: a.test", 200),
            ("GET / HTTP/1.1\r\nHost: other.example", 421),
            ("GET /panic HTTP/1.1\r\nHost: a.test", 500),
            ("GET / HTTP/1.1\r\nHost: a.test\r\nbad header", 400),
            ("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\nno size", 400),
        ] {
            let mut client = TlsClient::connect(secure, &config);
            client.send(format!("{request}\r\nConnection: close\r\n\r\n").as_bytes());
            let response = String::from_utf8(client.read_to_end().expect("an orderly end")).expect("UTF-8");
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {response}");
            assert_eq!(response.matches(HSTS).count(), 1, "{request}: {response}");
        }
        let (head, body) = TlsClient::connect(secure, &config).send(b"GET /own HTTP/1.1\r\nHost: a.test\r\n\r\n").response();
        assert!(head.contains("\r\nstrict-transport-security: max-age=1\r\n") && !head.contains(HSTS), "{head}");
        assert_eq!(body, b"secret\n");
    }
}

/// Starts a command with TLS and a redirect to it, and returns it with the address of the redirect.
fn start(arguments: &[&str]) -> (Running, SocketAddr) {
    let tls = ["--port", "0", "--tls-cert", "tests/tls/a.pem", "--tls-key", "tests/tls/a.key", "--https-redirect", "0"];
    let mut server = Running::start(&[arguments, &tls].concat());
    let line = server.next_line();
    let (plain, secure) = line.trim_end().split_once(" to ").expect("two URLs");
    assert_eq!(secure, format!("https://{}", server.address()));
    let plain = plain.strip_prefix("serverd: redirecting http://").expect("a URL").parse().expect("an address");
    (server, plain)
}

fn get(address: SocketAddr, path: &str) -> crate::harness::RawResponse {
    Client::new(address).send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).response()
}

/// Makes a request over TLS.
fn get_securely(server: &Running, path: &str) -> String {
    let mut client = TlsClient::connect(server.socket_addr(), &trusting_file("a"));
    client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes());
    String::from_utf8(client.read_to_end().expect("an orderly end")).expect("UTF-8")
}

/// Creates a directory with a challenge, a directory in the place of one, and other files.
fn webroot() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    let challenges = root.path().join(".well-known/acme-challenge");
    std::fs::create_dir_all(challenges.join("directory")).expect("a writable directory");
    let write = |path: &Path, text: &str| std::fs::write(path, text).expect("a writable directory");
    write(&challenges.join("to_ken-1"), "to_ken-1.thumbprint");
    write(&challenges.join(".hidden"), "hidden");
    write(&root.path().join("secret"), "secret");
    root
}

#[test]
fn every_http_command_redirects_and_serves_challenges() {
    let root = webroot();
    let path = root.path().to_str().expect("UTF-8");
    let cases = [&["http"][..], &["whoami", "--workers", "2", "--balance", "least-connections"], &["files", path]];
    for (backend, arguments) in backends().iter().flat_map(|backend| cases.map(|arguments| (backend, arguments))) {
        let more = ["--backend", backend, "--acme-webroot", path, "--hsts", "1h"];
        let (server, plain) = start(&[arguments, &more].concat());
        let response = get(plain, "/secret");
        assert_eq!(response.status, 308, "{response:?}");
        let location = format!("https://localhost:{}/secret", server.socket_addr().port());
        assert_eq!(response.header("location"), Some(&*location));
        let response = get_securely(&server, "/secret");
        assert!(response.starts_with("HTTP/1.1 200 ") && response.contains(HSTS), "{response}");
        let response = get(plain, "/.well-known/acme-challenge/to_ken-1");
        assert_eq!((response.status, &*response.text()), (200, "to_ken-1.thumbprint"));
    }
}

#[test]
fn redirects_name_the_public_port_behind_a_port_mapping() {
    for (public, location) in [("443", "https://localhost/x?y"), ("9443", "https://localhost:9443/x?y")] {
        let (_server, plain) = start(&["http", "--https-port", public]);
        let response = get(plain, "/x?y");
        assert_eq!((response.status, response.header("location")), (308, Some(location)));
    }
}

#[test]
fn only_challenges_are_served_in_their_path_and_nothing_is_redirected() {
    let root = webroot();
    let path = root.path().to_str().expect("UTF-8");
    let (_server, plain) = start(&["http", "--acme-webroot", path]);
    let missing = [
        "",
        "absent",
        "directory",
        "directory/",
        ".hidden",
        "%2e%2e/secret",
        "../secret",
        "../../secret",
        "a/to_ken-1",
        "to_ken-1/",
        "to%5fken-1",
        "to_ken-1%00",
        "..%2f..%2fsecret",
        "..\\secret",
    ];
    for token in missing {
        let response = get(plain, &format!("/.well-known/acme-challenge/{token}"));
        assert!(matches!(response.status, 400 | 404), "{token}: {response:?}");
        assert_eq!(response.header("location"), None, "{token}");
        assert!(!response.text().contains("secret"), "{token}");
    }
    let mut client = Client::new(plain);
    let head = "HEAD /.well-known/acme-challenge/to_ken-1 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(client.send(head).response_to("HEAD").header("content-length"), Some("19"));
    // Challenges are created while the server runs.
    std::fs::write(root.path().join(".well-known/acme-challenge/new"), "new").expect("a writable directory");
    let response = client.send("GET /.well-known/acme-challenge/new HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!((response.status, &*response.text()), (200, "new"));
    std::fs::remove_file(root.path().join(".well-known/acme-challenge/new")).expect("a file");
    assert_eq!(get(plain, "/.well-known/acme-challenge/new").status, 404);
    let post = "POST /.well-known/acme-challenge/to_ken-1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(client.send(post).response().status, 405);
}

#[test]
fn both_ports_share_the_connection_limits() {
    let (server, plain) = start(&["http", "--max-connections-per-address", "1"]);
    let mut client = Client::new(plain);
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(client.send(request).response().status, 308);
    assert!(crate::harness::accepted(server.socket_addr(), request).is_none(), "a second connection");
    assert_eq!(client.send(request).response().status, 308);
}

#[test]
fn a_graceful_shutdown_closes_the_redirect_too() {
    if crate::harness::skipped_under_wine(NO_CTRL_BREAK) {
        return;
    }
    let (server, plain) = start(&["http"]);
    let mut idle = Client::new(plain);
    assert_eq!(idle.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response().status, 308);
    server.signal("TERM");
    idle.expect_close();
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn tcp_servers_ignore_the_redirect() {
    let mut server = Running::start(&["echo", "--port", "0", "--tls", "--https-redirect", "0", "--hsts", "1h"]);
    assert!(server.line.contains(" tls://"), "{}", server.line);
    server.child.kill().expect("a running process");
    assert_eq!(server.next_line(), "");
}

#[test]
fn mistakes_are_explained_at_start() {
    let (code, stderr) = run(&["--port", "0", "--https-redirect", "0"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--https-redirect needs TLS; add --tls"), "{stderr}");
    let (code, stderr) = run(&["--port", "0", "--tls", "--https-redirect", "0", "--acme-webroot", "tests/absent"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("--acme-webroot: cannot serve tests/absent: "), "{stderr}");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let (code, stderr) = run(&["--port", "0", "--tls", "--https-redirect", &port]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("with --https-redirect"), "{stderr}");
}
