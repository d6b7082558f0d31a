//! The HTTP client: forwarded and collected responses, reuse of connections, retries, limits, time limits and
//! back-pressure.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use serverd::{
    BodyMode, Client, ClientError, ClientLimits, ClientRequest, ClientResponse, Echo, Handler, HttpServer, Request,
    RequestHead, Response, StatusCode, Trailers, Upstream,
};

use crate::harness::{
    Backend, RESET_READS_AS_EOF, RawResponse, Server, WAIT_MAX, on_every_backend, serve, skipped_under_wine, wait_for,
};

/// Forwards all requests to one upstream.
struct Proxy {
    client: Client,
    upstream: Upstream,
}

impl Handler for Proxy {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        let request = self.client.forward(head, &self.upstream);
        BodyMode::read(1 << 30, move |body, responder| request.body_reader(body).respond_to(responder))
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        self.client.forward(request, &self.upstream).respond()
    }
}

/// Starts a proxy for the upstream with this URL.
pub(crate) fn proxy_to<B: Backend>(client: Client, upstream: &str) -> Server {
    let upstream: Upstream = upstream.parse().expect("an upstream");
    serve::<B, _>(move || HttpServer::with(Proxy { client, upstream }))
}

fn proxy_with<B: Backend>(upstream: SocketAddr, limits: ClientLimits) -> Server {
    proxy_to::<B>(Client::with_limits(limits), &format!("http://{upstream}"))
}

fn proxy<B: Backend>(upstream: SocketAddr) -> Server {
    proxy_with::<B>(upstream, ClientLimits::default())
}

/// An upstream that serves its connections one after the other by a script.
pub(crate) fn scripted(script: impl FnOnce(&TcpListener) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    (address, std::thread::spawn(move || script(&listener)))
}

/// Accepts a connection, whose reads and writes fail after [`WAIT_MAX`].
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    let (socket, _) = listener.accept().expect("a connection");
    socket.set_read_timeout(Some(WAIT_MAX)).expect("open socket");
    socket.set_write_timeout(Some(WAIT_MAX)).expect("open socket");
    socket
}

/// Sends a request from the loop of a server.
pub(crate) fn outcome(server: &Server, request: ClientRequest) -> Result<ClientResponse, ClientError> {
    let (send, result) = mpsc::channel();
    server.handle.defer(move || request.send(move |result| send.send(result).expect("the test waits")));
    result.recv_timeout(WAIT_MAX).expect("a result")
}

/// Returns the content of a response.
pub(crate) fn body(outcome: Result<ClientResponse, ClientError>) -> String {
    String::from_utf8(outcome.unwrap_or_else(|error| panic!("{error}")).body.to_vec()).expect("text")
}

/// More than the kernel's buffers and the queue take of a body.
const LARGE_BYTES: usize = 32 << 20;

/// Sends a response with a large body, and counts the bytes of it that were sent.
pub(crate) fn send_large(mut write: impl FnMut(&[u8]), sent: &AtomicUsize) {
    write(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE_BYTES}\r\n\r\n").as_bytes());
    let piece = vec![b'x'; 65_536];
    for _ in 0..LARGE_BYTES / piece.len() {
        write(&piece);
        sent.fetch_add(piece.len(), Ordering::SeqCst);
    }
}

/// Requests a large body, reads it only when the upstream is blocked, and checks that it is complete.
pub(crate) fn read_large_slowly(proxy: &Server, sent: &AtomicUsize) {
    let mut client = proxy.connect();
    client.send(GET);
    // Once nothing more is taken, the upstream is blocked.
    let mut last = 0;
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = sent.load(Ordering::SeqCst);
        if now == last && now > 0 {
            break;
        }
        last = now;
    }
    assert!(last < LARGE_BYTES, "all of it was taken");
    assert_eq!(client.response().body.len(), LARGE_BYTES);
}

/// A connection that an upstream has accepted.
struct Accepted(BufReader<TcpStream>);

impl Accepted {
    fn from(listener: &TcpListener) -> Self {
        Accepted(BufReader::new(accept(listener)))
    }

    /// Reads a request head.
    fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).expect("a head"), 0, "closed within {head:?}");
        }
        head
    }

    fn send(&mut self, text: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(text.as_ref()).expect("open connection");
    }

    /// Waits until the other end closes or resets the connection.
    fn expect_close(mut self) {
        let mut rest = Vec::new();
        // An error is a reset.
        let _ = self.0.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    }
}

pub(crate) fn fetch(server: &Server, request: &str) -> RawResponse {
    let mut client = server.connect();
    client.send(request);
    client.response_to(request.split(' ').next().expect("a method"))
}

/// Returns whether something arrives soon. A request that is refused is answered at once.
fn responds_soon(client: &crate::harness::Client) -> bool {
    client.socket.set_read_timeout(Some(Duration::from_secs(1))).expect("open socket");
    let arrives = client.socket.peek(&mut [0]).is_ok();
    client.socket.set_read_timeout(Some(WAIT_MAX)).expect("open socket");
    arrives
}

pub(crate) const GET: &str = "GET /a?b HTTP/1.1\r\nHost: a.test\r\n\r\n";
pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// A body whose bytes depend on their position.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 31 % 251).expect("below 251")).collect()
}

on_every_backend! {
    fn a_request_is_forwarded_without_the_headers_of_the_connection<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut first = Accepted::from(listener);
            let head = first.head();
            for line in ["GET /a?b HTTP/1.1\r\n", "Host: a.test\r\n", "X-Kept: 1\r\n", "Via: 1.1 serverd\r\n"] {
                assert!(head.contains(line), "{head}");
            }
            assert!(!head.contains("X-Own") && !head.contains("Keep-Alive") && !head.contains("TE:"), "{head}");
            first.send("HTTP/1.1 201 Created\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Up: 2\r\nContent-Type: a/b\r\n\
                Content-Length: 2\r\n\r\nhi");
            let head = first.head();
            assert!(head.starts_with("GET /a?b ") && head.contains("Via: 1.0 serverd\r\n"), "reused: {head}");
            first.send(OK);
        });
        let server = proxy::<B>(upstream);
        let response = fetch(&server, "GET /a?b HTTP/1.1\r\nHost: a.test\r\nConnection: X-Own, close\r\nX-Own: 1\r\n\
            Keep-Alive: 5\r\nTE: trailers\r\nX-Kept: 1\r\n\r\n");
        assert_eq!((response.status, response.text().as_str()), (201, "hi"));
        assert_eq!((response.header("X-Up"), response.header("X-Hop")), (Some("2"), None));
        assert_eq!(response.header("Content-Type"), Some("a/b"));
        assert_eq!(fetch(&server, "GET /a?b HTTP/1.0\r\nHost: a.test\r\n\r\n").text(), "hi");
        thread.join().expect("no panic");
        server.drain();
    }

    fn date_and_server_of_the_upstream_are_passed_on<B>() {
        const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        let (upstream, thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            for head in [
                format!("HTTP/1.1 200 OK\r\nServer: up/1\r\nDate: {DATE}\r\nAge: 9\r\nContent-Length: 2\r\n\r\nhi"),
                format!("HTTP/1.1 404 Not Found\r\ndate:{DATE}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
                OK.to_owned(),
            ] {
                connection.head();
                connection.send(&head);
            }
        });
        let server = proxy::<B>(upstream);
        let next = || {
            let response = fetch(&server, GET);
            assert_eq!(response.text(), "hi");
            assert_eq!(response.head.matches("\r\nDate: ").count(), 1, "{}", response.head);
            response
        };
        let first = next();
        assert_eq!((first.header("date"), first.header("server"), first.header("age")), (Some(DATE), Some("up/1"), Some("9")));
        let second = next();
        assert_eq!((second.status, second.header("date"), second.header("server")), (404, Some(DATE), None));
        let third = next();
        assert!(third.header("date").is_some_and(|date| date != DATE));
        assert_eq!(third.header("server"), Some("serverd"));
        thread.join().expect("no panic");
    }

    fn a_refused_connection_is_reported_with_its_address<B>() {
        let server = serve::<B, _>(|| HttpServer::new(|_| "hello\n"));
        // A port on which nothing listens: the listener is dropped.
        let address = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let error = outcome(&server, Client::new().get(&format!("http://{address}/"))).expect_err("nothing listens");
        assert!(matches!(error, ClientError::Connect(_)), "{error:?}");
        assert!(error.to_string().starts_with(&format!("cannot connect to {address}: ")), "{error}");
    }

    fn headers_that_describe_the_client_replace_its_own<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            let head = connection.head();
            connection.send(OK);
            let lines: Vec<_> = head.lines().collect();
            let expected = [
                "GET /a?b HTTP/1.1",
                "Host: b.test:81",
                "X-Kept: 1",
                "Via: 1.1 serverd",
                "X-Forwarded-For: 127.0.0.1",
                "Forwarded: for=127.0.0.1;proto=http;host=\"b.test:81\"",
                "X-Forwarded-Proto: http",
                "X-Forwarded-Host: b.test:81",
                "",
            ];
            assert_eq!(lines, expected);
        });
        let (client, upstream) = (Client::new(), format!("http://{upstream}").parse::<Upstream>().expect("an upstream"));
        let server = serve::<B, _>(move || {
            HttpServer::new(move |request: &Request<'_>| {
                client.forward(request, &upstream).forwarded_headers(request).respond()
            })
        });
        let response = fetch(&server, "GET http://b.test:81/a?b HTTP/1.1\r\nHost: a.test\r\nX-Real-IP: 1.2.3.4\r\n\
            x-forwarded-for: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Kept: 1\r\nX-Forwarded-Proto: https\r\n\
            X-FORWARDED-HOST: c.test\r\nForwarded: for=5.6.7.8\r\n\r\n");
        assert_eq!(response.text(), "hi");
        thread.join().expect("no panic");
        server.drain();
    }

    fn responses_without_content_keep_their_meaning<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            for response in [
                "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n",
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            ] {
                connection.head();
                connection.send(response);
            }
        });
        let server = proxy::<B>(upstream);
        let head = "HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n";
        assert_eq!(fetch(&server, head).header("Content-Length"), Some("1234"));
        let response = fetch(&server, head);
        assert_eq!((response.header("Content-Length"), response.header("Transfer-Encoding")), (None, None));
        let response = fetch(&server, GET);
        assert_eq!((response.status, response.header("X-A")), (204, Some("1")));
        let response = fetch(&server, GET);
        assert_eq!((response.status, response.header("ETag")), (304, Some("\"1\"")));
        let response = fetch(&server, GET);
        assert_eq!((response.status, response.header("Content-Length")), (200, Some("0")));
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_body_of_unknown_length_is_forwarded_with_its_trailers<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            connection.head();
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n");
            connection.send("1\r\n!\r\n0\r\nX-Sum: 3\r\nHost: no\r\n\r\n");
            connection.head();
            connection.send("HTTP/1.0 200 OK\r\n\r\nuntil the close");
        });
        let server = proxy::<B>(upstream);
        let response = fetch(&server, "GET / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nConnection: TE\r\n\r\n");
        assert_eq!((response.text().as_str(), response.trailers.as_str()), ("hi!", "X-Sum: 3\r\n"));
        assert_eq!(fetch(&server, GET).text(), "until the close");
        thread.join().expect("no panic");
        server.drain();
    }

    fn bodies_are_streamed_in_both_directions<B>() {
        let (upstream, thread) = scripted(|listener| {
            for framing in ["Content-Length: 1500000\r\n", "Transfer-Encoding: chunked\r\n"] {
                let mut connection = Accepted::from(listener);
                let head = connection.head();
                assert!(head.contains(framing), "{head}");
                let mut received = Vec::new();
                if framing.starts_with('C') {
                    received.resize(1_500_000, 0);
                    connection.0.read_exact(&mut received).expect("a body");
                } else {
                    loop {
                        let mut line = String::new();
                        connection.0.read_line(&mut line).expect("a chunk");
                        let len = usize::from_str_radix(line.trim_end(), 16).expect("a size");
                        let mut chunk = vec![0; len + 2];
                        connection.0.read_exact(&mut chunk).expect("a chunk");
                        received.extend_from_slice(&chunk[..len]);
                        if len == 0 {
                            break;
                        }
                    }
                }
                assert!(received == pattern(1_500_000), "the upload has changed");
                connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1500000\r\n\r\n");
                connection.send(&received);
            }
        });
        let server = proxy::<B>(upstream);
        for framing in ["Content-Length: 1500000", "Transfer-Encoding: chunked"] {
            let mut client = server.connect();
            client.send(format!("POST /up HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"));
            assert_eq!(client.response().status, 100);
            let body = pattern(1_500_000);
            if framing.starts_with('C') {
                client.send(&body);
            } else {
                for chunk in body.chunks(100_000) {
                    client.send(format!("{:x}\r\n", chunk.len())).send(chunk).send("\r\n");
                }
                client.send("0\r\n\r\n");
            }
            assert!(client.response().body == body, "the response has changed");
        }
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_large_body_in_memory_is_sent_completely<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            let head = connection.head();
            assert!(head.contains("Content-Length: 1500000\r\n"), "{head}");
            let mut content = vec![0; 1_500_000];
            connection.0.read_exact(&mut content).expect("the content");
            assert!(content == pattern(1_500_000), "the content has changed");
            connection.send(OK);
        });
        let server = serve::<B, _>(|| HttpServer::new(|_| "hello\n"));
        let request = Client::new().request("PUT", &format!("http://{upstream}/")).body(pattern(1_500_000));
        assert_eq!(body(outcome(&server, request)), "hi");
        thread.join().expect("no panic");
        server.drain();
    }

    fn trailers_of_a_request_are_forwarded_if_they_are_announced<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            for (announced, end) in [(true, "0\r\nX-Sum: 3\r\n\r\n"), (false, "0\r\n\r\n")] {
                let head = connection.head();
                assert_eq!(head.contains("Trailer: X-Sum\r\n"), announced, "{head}");
                // A single byte cannot arrive in several pieces.
                let expected = format!("1\r\na\r\n{end}");
                let mut content = vec![0; expected.len()];
                connection.0.read_exact(&mut content).expect("the content");
                assert_eq!(String::from_utf8_lossy(&content), expected);
                connection.send(OK);
            }
        });
        let server = proxy::<B>(upstream);
        let mut client = server.connect();
        for header in ["Trailer: Content-Length, X-Sum\r\n", ""] {
            client.send(format!("PUT / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n{header}\r\n"));
            client.send("1\r\na\r\n0\r\nHost: b.test\r\nX-Sum: 3\r\n\r\n");
            assert_eq!(client.response().text(), "hi");
        }
        thread.join().expect("no panic");
        server.drain();
    }

    fn an_early_response_waits_for_the_upload_unless_it_is_an_error<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            connection.head();
            connection.send(OK);
            let mut content = vec![0; 300_000];
            connection.0.read_exact(&mut content).expect("the content");
            assert!(content == pattern(300_000), "the upload has changed");
            connection.head();
            connection.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
            // The loop resets the connection after that, since the rest of the content is not sent.
            let _ = connection.0.read_to_end(&mut Vec::new());
        });
        let server = proxy::<B>(upstream);
        let mut client = server.connect();
        client.send("PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 300000\r\n\r\n").send(pattern(300_000));
        assert_eq!(client.response().text(), "hi");
        client.send("PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 300000\r\n\r\n").send("a part");
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (403, "no"));
        drop(client);
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_slow_client_stops_the_upstream<B>() {
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&sent);
        let (upstream, thread) = scripted(move |listener| {
            let mut connection = Accepted::from(listener);
            connection.head();
            send_large(|bytes| connection.send(bytes), &counter);
        });
        let server = proxy::<B>(upstream);
        read_large_slowly(&server, &sent);
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_request_on_a_reused_connection_is_repeated_if_it_is_idempotent<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut first = Accepted::from(listener);
            first.head();
            first.send(OK);
            assert!(first.head().starts_with("GET "));
            drop(first);
            let mut second = Accepted::from(listener);
            assert!(second.head().starts_with("GET "));
            second.send(OK);
            assert!(second.head().starts_with("POST "));
            drop(second);
            // A request that fails on a new connection is not repeated.
            let mut third = Accepted::from(listener);
            assert!(third.head().starts_with("GET "));
            drop(third);
        });
        let server = proxy::<B>(upstream);
        assert_eq!(fetch(&server, GET).text(), "hi");
        assert_eq!(fetch(&server, GET).text(), "hi");
        assert_eq!(fetch(&server, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n").status, 502);
        assert_eq!(fetch(&server, GET).status, 502);
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_malformed_or_missing_response_gives_502<B>() {
        let responses = [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Le",
            "",
        ];
        let (upstream, thread) = scripted(move |listener| {
            for response in responses {
                let mut connection = Accepted::from(listener);
                connection.head();
                connection.send(response);
            }
        });
        let server = proxy::<B>(upstream);
        for response in responses {
            assert_eq!(fetch(&server, GET).status, 502, "{response}");
        }
        thread.join().expect("no panic");
        // Nothing listens there any more.
        assert_eq!(fetch(&server, GET).status, 502);
        server.drain();
    }

    fn an_upstream_that_ends_or_speaks_before_the_request_gives_502_at_once<B>() {
        const REQUESTS: usize = 20;
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        let (upstream, thread) = scripted(move |listener| {
            for (mut socket, number) in std::iter::repeat_with(|| accept(listener)).zip(0..) {
                if counter.fetch_add(1, Ordering::SeqCst) == REQUESTS {
                    return;
                }
                if number % 2 == 0 {
                    // The connection may already be closed.
                    let _ = socket.write_all(b"SSH-2.0-OpenSSH\r\n");
                }
            }
        });
        let server = proxy::<B>(upstream);
        // Gives the upstream time between the connect and the next wait for events.
        let busy = server.handle.call_every(Duration::from_millis(1), || std::thread::sleep(Duration::from_millis(2)));
        for _ in 0..REQUESTS {
            assert_eq!(fetch(&server, GET).status, 502);
        }
        busy.cancel();
        assert_eq!(accepted.load(Ordering::SeqCst), REQUESTS, "connections");
        drop(TcpStream::connect(upstream));
        thread.join().expect("no panic");
        server.drain();
    }

    fn an_upstream_that_does_not_read_an_upload_gives_504<B>() {
        let (done, wait) = mpsc::channel::<()>();
        let (upstream, thread) = scripted(move |listener| {
            let mut connection = Accepted::from(listener);
            connection.head();
            // Reads nothing while this waits.
            let _ = wait.recv_timeout(WAIT_MAX);
        });
        let server = proxy_with::<B>(upstream, ClientLimits::default().response_timeout(Duration::from_millis(300)));
        let mut client = server.connect();
        client.send(format!("PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {LARGE_BYTES}\r\n\r\n"));
        let mut upload = client.socket.try_clone().expect("another handle");
        let uploading = std::thread::spawn(move || {
            // Fails once the response has ended the upload.
            let _ = upload.write_all(&vec![b'x'; LARGE_BYTES]);
        });
        assert_eq!(client.response().status, 504);
        drop(client);
        uploading.join().expect("no panic");
        drop(done);
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_client_that_pauses_its_upload_is_not_a_slow_upstream<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            connection.head();
            let mut content = [0; 2];
            connection.0.read_exact(&mut content).expect("the content");
            connection.send(OK);
        });
        let server = proxy_with::<B>(upstream, ClientLimits::default().response_timeout(Duration::from_millis(300)));
        let mut client = server.connect();
        client.send("PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\na");
        std::thread::sleep(Duration::from_secs(1));
        client.send("b");
        assert_eq!(client.response().text(), "hi");
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_request_of_which_an_interim_response_has_arrived_is_not_repeated<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            connection.head();
            connection.send(OK);
            connection.head();
            connection.send("HTTP/1.1 103 Early Hints\r\n\r\n");
        });
        let server = proxy::<B>(upstream);
        assert_eq!(fetch(&server, GET).text(), "hi");
        assert_eq!(fetch(&server, GET).status, 502);
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_request_whose_client_has_left_does_not_keep_its_place<B>() {
        if skipped_under_wine(RESET_READS_AS_EOF) {
            return;
        }
        let (send, received) = mpsc::channel();
        let (respond, responses) = mpsc::channel::<()>();
        let (upstream, thread) = scripted(move |listener| {
            let mut connection = Accepted::from(listener);
            connection.head();
            send.send(()).expect("the test waits");
            responses.recv_timeout(WAIT_MAX).expect("the test goes on");
            connection.send(OK);
            assert!(connection.head().starts_with("GET /a"));
            connection.send(OK);
        });
        let limits = ClientLimits::default().upstream_connections_max(1).queue_max(1).connect_timeout(WAIT_MAX);
        let server = proxy_with::<B>(upstream, limits);
        let mut first = server.connect();
        first.send(GET);
        received.recv_timeout(WAIT_MAX).expect("the first request");
        let mut leaves = server.connect();
        leaves.send("POST /left HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n");
        // The only place in the queue is taken.
        wait_for("no request was refused", || {
            let mut other = server.connect();
            other.send(GET);
            let is_refused = responds_soon(&other) && other.response().status == 503;
            if !is_refused {
                other.reset();
            }
            is_refused
        });
        leaves.reset();
        let mut second = server.connect();
        wait_for("the place is still taken", || {
            second = server.connect();
            second.send(GET);
            !responds_soon(&second)
        });
        respond.send(()).expect("the upstream waits");
        assert_eq!(first.response().text(), "hi");
        assert_eq!(second.response().text(), "hi");
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_body_that_breaks_off_is_not_forwarded_as_complete<B>() {
        let (upstream, thread) = scripted(|listener| {
            for head in ["Content-Length: 9", "Transfer-Encoding: chunked"] {
                let mut connection = Accepted::from(listener);
                connection.head();
                connection.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n3\r\nabc"));
            }
        });
        let server = proxy::<B>(upstream);
        for _ in 0..2 {
            let mut client = server.connect();
            client.send(GET);
            let text = String::from_utf8(client.read_to_end()).expect("text");
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && !text.ends_with("0\r\n\r\n"), "{text}");
        }
        thread.join().expect("no panic");
        server.drain();
    }

    fn an_upstream_that_does_not_respond_gives_504<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            connection.head();
            connection.expect_close();
        });
        let server = proxy_with::<B>(upstream, ClientLimits::default().response_timeout(Duration::from_millis(100)));
        assert_eq!(fetch(&server, GET).status, 504);
        thread.join().expect("no panic");
        server.drain();
    }

    fn requests_wait_for_a_connection_and_fail_beyond_the_queue<B>() {
        let (upstream, thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            for _ in 0..2 {
                connection.head();
                connection.send(OK);
            }
            connection.head();
            drop(connection);
            for _ in 0..2 {
                let mut connection = Accepted::from(listener);
                connection.head();
                connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            }
        });
        let server = serve::<B, _>(|| HttpServer::new(|_| "hello\n"));
        let client = Client::with_limits(ClientLimits::default().upstream_connections_max(1).queue_max(1));
        let url = format!("http://{upstream}/");
        let (send, results) = mpsc::channel();
        let send_three = move || {
            for number in 0..3 {
                let send = send.clone();
                client.get(&url).send(move |result| send.send((number, result.map(|response| response.body))).expect("the test waits"));
            }
        };
        let again = send_three.clone();
        server.handle.defer(send_three);
        let next = || results.recv_timeout(WAIT_MAX).expect("a result");
        assert!(matches!(next(), (2, Err(ClientError::Busy))));
        for number in 0..2 {
            assert_eq!(next().1.unwrap_or_else(|error| panic!("{number}: {error}")), "hi");
        }
        // The connection closes with one request on it and one that waits: both are sent on new connections.
        server.handle.defer(again);
        assert!(matches!(next(), (2, Err(ClientError::Busy))));
        for _ in 0..2 {
            assert_eq!(next().1.unwrap_or_else(|error| panic!("{error}")), "");
        }
        thread.join().expect("no panic");
        server.drain();
    }

    fn an_unused_connection_is_closed_for_one_to_another_upstream<B>() {
        let (first, first_thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            connection.head();
            connection.send(OK);
            connection.expect_close();
        });
        let (second, second_thread) = scripted(|listener| {
            let mut connection = Accepted::from(listener);
            connection.head();
            connection.send(OK);
        });
        let server = serve::<B, _>(|| HttpServer::new(|_| "hello\n"));
        let client = Client::with_limits(ClientLimits::default().connections_max(1).connect_timeout(WAIT_MAX));
        for upstream in [first, second] {
            assert_eq!(body(outcome(&server, client.get(&format!("http://{upstream}/")))), "hi");
        }
        first_thread.join().expect("no panic");
        second_thread.join().expect("no panic");
        server.drain();
    }

    fn a_client_that_disconnects_ends_its_request_to_the_upstream<B>() {
        if skipped_under_wine(RESET_READS_AS_EOF) {
            return;
        }
        let (send, received) = mpsc::channel();
        let (upstream, thread) = scripted(move |listener| {
            let mut connection = Accepted::from(listener);
            connection.head();
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
            connection.expect_close();
            let mut connection = Accepted::from(listener);
            assert!(connection.head().starts_with("POST"));
            let mut content = [0; 3];
            connection.0.read_exact(&mut content).expect("a part of the content");
            send.send(content).expect("the test waits");
            connection.expect_close();
        });
        let server = proxy::<B>(upstream);
        let mut client = server.connect();
        client.send(GET);
        assert!(client.line().starts_with("HTTP/1.1 200"));
        client.reset();
        let mut client = server.connect();
        client.begin_upload(9).send("abc");
        assert_eq!(received.recv_timeout(WAIT_MAX).as_ref(), Ok(b"abc"));
        client.reset();
        thread.join().expect("no panic");
        server.drain();
    }

    fn a_callback_gets_the_complete_response<B>() {
        let upstream = serve::<B, _>(|| {
            HttpServer::new(|request: &Request<'_>| match request.path() {
                "/large" => Response::text("x".repeat(2000)),
                "/trailers" => Response::stream(["a", "b"]).trailers(&["X-T"], Trailers::new),
                _ => Response::text(request.body().to_vec()).header("X-Agent", request.header("agent").unwrap_or(b"-")),
            })
        });
        let server = serve::<B, _>(|| HttpServer::new(|_| "hello\n"));
        let client = Client::with_limits(ClientLimits::default().body_bytes_max(1000));
        let url = format!("http://{}", upstream.address);
        let (send, results) = mpsc::channel();
        let send_all = move || {
            let requests = [
                client.request("PUT", &url).header("Agent", "a").body("content"),
                client.get(&format!("{url}/large")),
                client.get(&format!("{url}/trailers")),
                client.get("no URL"),
            ];
            for (number, request) in requests.into_iter().enumerate() {
                let send = send.clone();
                request.send(move |result| send.send((number, result)).expect("the test waits"));
            }
        };
        server.handle.defer(send_all);
        let mut results: Vec<_> = results.iter().take(4).collect();
        results.sort_by_key(|(number, _)| *number);
        let mut results = results.into_iter().map(|(_, result)| result);
        let first = results.next().expect("four results").expect("a response");
        assert_eq!((first.status, &first.body[..]), (StatusCode::OK, &b"content"[..]));
        assert_eq!(first.header("x-agent"), Some(&b"a"[..]));
        assert!(matches!(results.next(), Some(Err(ClientError::TooLarge))));
        assert_eq!(results.next().expect("four results").expect("a response").body, "ab");
        assert!(matches!(results.next(), Some(Err(ClientError::Url))));
        server.drain();
        upstream.drain();
    }

    fn a_loop_without_an_http_server_reports_an_error<B>() {
        let server = serve::<B, _>(|| Echo);
        let (send, results) = mpsc::channel();
        let address = server.address;
        server.handle.defer(move || {
            Client::new().get(&format!("http://{address}")).send(move |result| send.send(result).expect("the test waits"));
        });
        assert!(matches!(results.recv_timeout(WAIT_MAX), Ok(Err(ClientError::Stopped))));
        server.drain();
    }
}

#[test]
fn a_thread_without_a_loop_gets_an_error() {
    let (send, results) = mpsc::channel();
    Client::new().get("http://127.0.0.1:1/").send(move |result| send.send(result).expect("the test waits"));
    assert!(matches!(results.recv_timeout(WAIT_MAX), Ok(Err(ClientError::NoLoop))));
}
