//! The HTTP client with TLS: verification of the upstream, reuse of connections and sessions, bodies in both directions, and
//! upstreams that fail at each point.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, LazyLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{HandshakeKind, ServerConfig, ServerConnection, SupportedProtocolVersion};
use serverd::tls::{Certificate, ClientAuth, ClientTls, Tls};
use serverd::{
    BodyMode, Client, ClientError, ClientLimits, ClientResponse, Handler, HttpServer, LoopLimits, Request, RequestHead,
    Response, Timeouts,
};

use crate::harness::{Backend, Server, WAIT_MAX, on_every_backend, serve};
use crate::http_client::{
    GET, OK, accept, body, fetch, outcome, pattern, proxy_to, read_large_slowly, scripted, send_large,
};
use crate::tls::{certified, serve_tls};

type Outcome = Result<ClientResponse, ClientError>;

fn file(name: &str) -> Vec<u8> {
    std::fs::read(format!("tests/tls/{name}")).expect("a file")
}

/// TLS of an upstream for localhost and 127.0.0.1.
fn upstream_tls() -> Tls {
    Tls::from_pem(&file("a.pem"), &file("a.key")).expect("a certificate").alpn_protocols(&["http/1.1"])
}

fn serve_upstream<B: Backend>(tls: &Tls, handler: impl Handler + Send + 'static) -> Server {
    serve_tls::<B, _>(tls, Timeouts::default(), LoopLimits::default(), || HttpServer::with(handler))
}

/// A client that trusts the certificate of these upstreams.
fn client_with(limits: ClientLimits) -> Client {
    Client::with_limits(limits).tls(&ClientTls::with_roots(&file("a.pem")).expect("a certificate"))
}

fn client() -> Client {
    client_with(ClientLimits::default())
}

fn idle_server<B: Backend>() -> Server {
    serve::<B, _>(|| HttpServer::new(|_| "hello\n"))
}

fn get(server: &Server, client: &Client, url: &str) -> Outcome {
    outcome(server, client.get(url))
}

/// The explanation of a failure of TLS.
fn reason(outcome: Outcome) -> String {
    match outcome {
        Err(ClientError::Tls(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// A connection that an upstream has accepted, with TLS of another implementation's server.
struct Accepted(rustls::StreamOwned<ServerConnection, TcpStream>);

static SERVER: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| config_for(rustls::DEFAULT_VERSIONS));

fn config_for(versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(&file("a.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(&file("a.key")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
    Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).expect("a key"))
}

impl Accepted {
    fn from(listener: &TcpListener) -> Self {
        Self::with(listener, &SERVER)
    }

    fn with(listener: &TcpListener, config: &Arc<ServerConfig>) -> Self {
        let session = ServerConnection::new(Arc::clone(config)).expect("a session");
        Accepted(rustls::StreamOwned::new(session, accept(listener)))
    }

    /// Reads a request without a body.
    fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).expect("a head");
            head.push(byte[0]);
        }
        String::from_utf8(head).expect("text")
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).expect("open connection");
        self.0.flush().expect("open connection");
    }

    /// Sends only the first bytes of a record with this text.
    fn send_a_part(&mut self, text: &str) {
        self.0.conn.writer().write_all(text.as_bytes()).expect("an open session");
        let mut record = Vec::new();
        self.0.conn.write_tls(&mut record).expect("a buffer");
        self.0.sock.write_all(&record[..record.len() - 5]).expect("open connection");
    }

    /// Closes the connection; `orderly` ends the session first.
    fn close(mut self, orderly: bool) {
        if orderly {
            self.0.conn.send_close_notify();
            self.0.flush().expect("open connection");
        }
        // The client may have closed or reset the connection.
        let _ = self.0.sock.shutdown(Shutdown::Write);
        let _ = self.0.sock.read_to_end(&mut Vec::new());
    }

    /// Waits until the client ends the session in an orderly way.
    fn expect_end(mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).expect("an orderly end");
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    }
}

/// Returns the uploaded content, piece by piece.
struct Mirror;

impl Handler for Mirror {
    fn head(&mut self, _: &RequestHead<'_>) -> BodyMode {
        BodyMode::Collect(4 << 20)
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let pieces: Vec<Vec<u8>> = request.body().chunks(100_000).map(<[u8]>::to_vec).collect();
        Response::stream(pieces)
    }
}

/// Starts an upstream that serves one connection for each element of `steps`.
fn upstream<T: Send + 'static>(
    steps: impl IntoIterator<Item = T, IntoIter: Send> + Send + 'static,
    serve: impl Fn(&TcpListener, T) + Send + 'static,
) -> (SocketAddr, JoinHandle<()>) {
    scripted(move |listener| steps.into_iter().for_each(|step| serve(listener, step)))
}

on_every_backend! {
    fn unexpected_ciphertext_is_not_the_response_to_the_next_request<B>() {
        if std::any::type_name::<B>().contains("Chaos") {
            println!("skipped: Chaos splits the input, so that the client cannot know of the rest");
            return;
        }
        let (blocked, is_blocked) = mpsc::channel::<()>();
        let (written, is_written) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        let (upstream, thread) = scripted(move |listener| {
            let mut connection = Accepted::from(listener);
            assert!(connection.head().starts_with("HEAD"));
            begun.send(()).expect("the test waits");
            is_blocked.recv_timeout(WAIT_MAX).expect("the loop is blocked");
            let forged = format!("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged{}", " ".repeat(16_000));
            let mut records = Vec::new();
            for text in ["HTTP/1.1 200 OK\r\nContent-Length: 16384\r\n\r\n", &forged, &forged] {
                connection.0.conn.writer().write_all(text.as_bytes()).expect("an open session");
                while connection.0.conn.wants_write() {
                    connection.0.conn.write_tls(&mut records).expect("a buffer");
                }
            }
            connection.0.sock.write_all(&records).expect("open connection");
            written.send(()).expect("the loop waits");
            let mut connection = Accepted::from(listener);
            assert!(connection.head().starts_with("GET"));
            connection.send(OK);
        });
        let server = idle_server::<B>();
        let client = client_with(ClientLimits::default().upstream_connections_max(1).connect_timeout(WAIT_MAX));
        let url = format!("https://localhost:{}/", upstream.port());
        let (send, results) = mpsc::channel();
        server.handle.defer(move || {
            for method in ["HEAD", "GET"] {
                let send = send.clone();
                client.request(method, &url).send(move |result| send.send(body(result)).expect("the test waits"));
            }
        });
        has_begun.recv_timeout(WAIT_MAX).expect("a request");
        server.handle.defer(move || {
            blocked.send(()).expect("the upstream waits");
            is_written.recv_timeout(WAIT_MAX).expect("the response");
        });
        for expected in ["", "hi"] {
            assert_eq!(results.recv_timeout(WAIT_MAX).as_deref(), Ok(expected));
        }
        thread.join().expect("no panic");
        server.drain();
    }

    fn requests_are_made_over_tls_on_one_connection<B>() {
        let describe = |request: &Request<'_>| {
            let tls = request.tls().expect("TLS");
            let port = request.peer_addr().expect("an address").port();
            format!("{:?} {:?} {port} {}", tls.server_name, tls.alpn_protocol, request.host().unwrap_or_default())
        };
        let upstream = serve_upstream::<B>(&upstream_tls(), describe);
        let (server, client) = (idle_server::<B>(), client());
        let url = format!("https://localhost:{}/", upstream.address.port());
        let first = body(get(&server, &client, &url));
        let (name, host) = ("Some(\"localhost\") Some(\"http/1.1\")", format!("localhost:{}", upstream.address.port()));
        assert!(first.starts_with(name) && first.ends_with(&host), "{first}");
        assert_eq!(body(get(&server, &client, &url)), first, "the connection is reused");
        // An address has no server name.
        assert!(body(get(&server, &client, &format!("https://{}/", upstream.address))).starts_with("None "));
        server.drain();
        upstream.drain();
    }

    fn only_trusted_upstreams_get_a_request<B>() {
        let upstream = serve_upstream::<B>(&upstream_tls(), |_: &Request<'_>| "secret\n");
        let (other, tls, _) = certified(&["other.example"]);
        let other_upstream = serve_upstream::<B>(&tls, |_: &Request<'_>| "secret\n");
        let text = base64::engine::general_purpose::STANDARD.encode(other.der());
        let other = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        let trusting_other = Client::new().tls(&ClientTls::with_roots(other.as_bytes()).expect("a certificate"));
        let server = idle_server::<B>();
        let (url, other_url) = (format!("https://{}/", upstream.address), format!("https://{}/", other_upstream.address));
        let unknown = "the certificate is not signed by a trusted authority, or the server does not send its intermediate \
                       certificates";
        assert_eq!(reason(get(&server, &trusting_other, &url)), unknown);
        assert_eq!(reason(get(&server, &trusting_other, &other_url)), "the certificate is not valid for 127.0.0.1");
        assert!(matches!(get(&server, &Client::new(), &url), Err(ClientError::NoTls)));
        assert_eq!(body(get(&server, &client(), &url)), "secret\n");
        assert_eq!(body(get(&server, &Client::new().tls(&ClientTls::insecure()), &other_url)), "secret\n");
        let proxy = proxy_to::<B>(trusting_other, &url);
        assert_eq!(fetch(&proxy, GET).status, 502);
        for server in [proxy, server, upstream, other_upstream] {
            server.drain();
        }
    }

    fn bodies_are_streamed_in_both_directions<B>() {
        let upstream = serve_upstream::<B>(&upstream_tls(), Mirror);
        let proxy = proxy_to::<B>(client(), &format!("https://{}", upstream.address));
        let content = pattern(1_500_000);
        let mut client = proxy.connect();
        client.send("PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1500000\r\n\r\n").send(&content);
        assert!(client.response().body == content, "the content has changed");
        client.send("PUT / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n");
        for chunk in content.chunks(300_000) {
            client.send(format!("{:x}\r\n", chunk.len())).send(chunk).send("\r\n");
        }
        client.send("0\r\n\r\n");
        assert!(client.response().body == content, "the content has changed");
        proxy.drain();
        upstream.drain();
    }

    fn a_slow_client_stops_the_upstream<B>() {
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&sent);
        let (upstream, thread) = scripted(move |listener| {
            let mut connection = Accepted::from(listener);
            connection.head();
            send_large(|bytes| connection.send(bytes), &counter);
            connection.expect_end();
        });
        let proxy = proxy_to::<B>(client(), &format!("https://{upstream}"));
        read_large_slowly(&proxy, &sent);
        proxy.drain();
        thread.join().expect("no panic");
    }

    fn only_the_end_of_the_session_ends_a_body_without_length<B>() {
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        let steps = versions.map(|version| [(version, true), (version, false)]);
        let (upstream, thread) = upstream(steps.into_iter().flatten(), |listener, (version, orderly)| {
            let mut connection = Accepted::with(listener, &config_for(&[version]));
            connection.head();
            connection.send("HTTP/1.1 200 OK\r\n\r\nuntil the end");
            connection.close(orderly);
        });
        let (server, client) = (idle_server::<B>(), client());
        for _ in versions {
            let url = format!("https://{upstream}/");
            assert_eq!(body(get(&server, &client, &url)), "until the end");
            assert!(matches!(get(&server, &client, &url), Err(ClientError::Closed)));
        }
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_response_that_is_complete_needs_no_end_of_the_session<B>() {
        let (upstream, thread) = upstream([0, 1], |listener, _| {
            let mut connection = Accepted::from(listener);
            connection.head();
            connection.send(OK);
            connection.close(false);
        });
        let proxy = proxy_to::<B>(client(), &format!("https://{upstream}"));
        for _ in 0..2 {
            assert_eq!(fetch(&proxy, GET).text(), "hi");
        }
        thread.join().expect("no panic");
        proxy.drain();
    }

    fn an_upstream_that_stops_within_a_record_has_not_responded<B>() {
        let (upstream, thread) = upstream([true, false], |listener, is_silent| {
            let mut connection = Accepted::from(listener);
            connection.head();
            connection.send("HTTP/1.1 200 OK\r\n");
            connection.send_a_part("Content-Length: 2\r\n\r\nhi");
            if is_silent {
                let _ = connection.0.sock.read_to_end(&mut Vec::new());
            } else {
                connection.close(false);
            }
        });
        let client = client_with(ClientLimits::default().response_timeout(Duration::from_millis(200)));
        let (server, url) = (idle_server::<B>(), format!("https://{upstream}/"));
        assert!(matches!(get(&server, &client, &url), Err(ClientError::Timeout)));
        assert!(matches!(get(&server, &client, &url), Err(ClientError::Closed)));
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_damaged_record_fails_the_request<B>() {
        let (upstream, thread) = upstream([0], |listener, _| {
            let mut connection = Accepted::from(listener);
            connection.head();
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi");
            connection.0.sock.write_all(&[23, 3, 3, 0, 17, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17])
                .expect("open connection");
            let _ = connection.0.sock.read_to_end(&mut Vec::new());
        });
        let server = idle_server::<B>();
        let reason = reason(get(&server, &client(), &format!("https://{upstream}/")));
        assert!(reason.starts_with("the TLS session failed"), "{reason}");
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_handshake_has_the_connect_timeout<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut socket = accept(listener);
            // The client resets the connection after its time, or under Wine closes it.
            let _ = socket.read_to_end(&mut Vec::new());
            drop(accept(listener));
        });
        let (server, url) = (idle_server::<B>(), format!("https://{upstream}/"));
        let hasty = client_with(ClientLimits::default().connect_timeout(Duration::from_millis(200)));
        assert!(matches!(get(&server, &hasty, &url), Err(ClientError::Timeout)));
        match get(&server, &client(), &url) {
            Err(ClientError::Tls(error)) => assert!(error.to_string().contains("closed the connection during"), "{error}"),
            // A reset, because the beginning of the handshake was not read.
            Err(ClientError::Connect(_)) => {}
            other => panic!("{other:?}"),
        }
        thread.join().expect("no panic");
        server.drain();
    }

    fn an_upstream_without_tls_is_recognised<B>() {
        let upstream = serve::<B, _>(|| HttpServer::new(|_| "hello\n"));
        let server = idle_server::<B>();
        let url = format!("https://{}/", upstream.address);
        assert_eq!(reason(get(&server, &client(), &url)), "the server does not speak TLS on this port");
        // A connection with TLS is not used for http, or the reverse.
        let client = client();
        assert_eq!(body(get(&server, &client, &url.replace("https", "http"))), "hello\n");
        assert_eq!(reason(get(&server, &client, &url)), "the server does not speak TLS on this port");
        server.drain();
        upstream.drain();
    }

    fn sessions_are_resumed<B>() {
        let (send, kinds) = mpsc::channel();
        let (upstream, thread) = upstream([0, 1], move |listener, _| {
            let mut connection = Accepted::from(listener);
            connection.head();
            connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi");
            send.send(connection.0.conn.handshake_kind()).expect("the test waits");
            connection.expect_end();
        });
        let (server, client) = (idle_server::<B>(), client());
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            assert_eq!(body(get(&server, &client, &format!("https://{upstream}/"))), "hi");
            assert_eq!(kinds.recv_timeout(WAIT_MAX), Ok(Some(kind)));
        }
        thread.join().expect("no panic");
        server.drain();
    }

    fn an_idempotent_request_is_repeated_on_a_new_connection<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut first = Accepted::from(listener);
            first.head();
            first.send(OK);
            first.head();
            first.close(true);
            let mut second = Accepted::from(listener);
            assert!(second.head().starts_with("GET "));
            second.send(OK);
            second.expect_end();
        });
        let proxy = proxy_to::<B>(client(), &format!("https://{upstream}"));
        assert_eq!(fetch(&proxy, GET).text(), "hi");
        assert_eq!(fetch(&proxy, GET).text(), "hi");
        proxy.drain();
        thread.join().expect("no panic");
    }

    fn the_certificate_of_the_client_is_presented<B>() {
        let tls = upstream_tls().client_ca(&file("b.pem"), ClientAuth::Required).expect("an authority");
        let subject = |request: &Request<'_>| request.client_certificate().expect("a certificate").subject.clone();
        let upstream = serve_upstream::<B>(&tls, subject);
        let trusting = ClientTls::with_roots(&file("a.pem")).expect("a certificate");
        let own = Certificate::from_pem(&file("b.pem"), &file("b.key")).expect("a certificate");
        let (server, url) = (idle_server::<B>(), format!("https://{}/", upstream.address));
        assert_eq!(body(get(&server, &Client::new().tls(&trusting.certificate(&own)), &url)), "CN=b.example");
        assert_eq!(reason(get(&server, &Client::new().tls(&trusting), &url)), "the server requires a client certificate");
        server.drain();
        upstream.drain();
    }
}

#[test]
fn certificates_of_upstreams_are_checked_when_they_are_read() {
    let error = ClientTls::with_roots(&file("a.key")).expect_err("no certificate");
    assert_eq!(error.to_string(), "no certificate found; PEM is expected");
}
