//! Streamed request bodies: sinks, readers on other threads, limits, back-pressure, early responses and drain.

use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serverd::{
    BodyFlow, BodyMode, BodyReader, BodySink, BufferLimit, Handler, HttpServer, Request, RequestHead, Responder,
    Response, StatusCode, Timeouts, Trailers,
};

use crate::harness::{Backend, Client, Server, WAIT_MAX, on_every_backend, serve, serve_with, wait_for};

/// Sums the bytes of the body; the path selects special behaviour.
struct Sum {
    path: String,
    total: u64,
    dropped: Arc<AtomicUsize>,
}

impl BodySink for Sum {
    fn chunk(&mut self, bytes: &[u8]) -> BodyFlow {
        assert!(!bytes.is_empty() && self.path != "/panic");
        self.total += bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
        if self.path == "/early" { BodyFlow::Respond(StatusCode::CONFLICT.into()) } else { BodyFlow::Continue }
    }

    fn end(self: Box<Self>, trailers: &Trailers) -> Response {
        assert!(self.path != "/panic-at-end");
        let trailer = trailers.get("x-t").map(|value| String::from_utf8_lossy(value).into_owned());
        Response::text(format!("{} {}", self.total, trailer.unwrap_or_default()))
    }
}

impl Drop for Sum {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

type Reading = (BodyReader, Responder);

/// Selects the body mode by path.
struct ByPath {
    dropped: Arc<AtomicUsize>,
    readers: mpsc::Sender<Reading>,
}

impl Handler for ByPath {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        match head.path() {
            "/collect" => BodyMode::Collect(10),
            "/reject" => BodyMode::Reject(StatusCode::FORBIDDEN.into()),
            "/reject-deferred" => {
                let (response, responder) = Response::later();
                std::thread::spawn(move || responder.respond(StatusCode::UNAUTHORIZED));
                BodyMode::Reject(response)
            }
            "/fold" => {
                BodyMode::fold(1000, 0, |count: &mut usize, bytes| *count += bytes.len(), |count| count.to_string())
            }
            "/read" => {
                let readers = self.readers.clone();
                BodyMode::read(1 << 30, move |body, responder| {
                    readers.send((body, responder)).expect("the test is receiving");
                })
            }
            path => {
                BodyMode::stream(100_000_000, Sum { path: path.into(), total: 0, dropped: Arc::clone(&self.dropped) })
            }
        }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        Response::text(format!("{} {}", request.path(), request.body().len()))
    }
}

fn server<B: Backend>() -> (Server, Arc<AtomicUsize>, mpsc::Receiver<Reading>) {
    let dropped = Arc::new(AtomicUsize::new(0));
    let (send, readers) = mpsc::channel();
    let handler = ByPath { dropped: Arc::clone(&dropped), readers: send };
    (serve::<B, _>(move || HttpServer::with(handler)), dropped, readers)
}

fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn post_chunked(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

fn wait_until_dropped(dropped: &AtomicUsize, expected: usize) {
    wait_for("not all sinks are dropped", || dropped.load(Ordering::SeqCst) == expected);
}

on_every_backend! {
    over_tls_too:

    fn uploads_that_the_handler_does_not_read_make_room_for_others<B>() {
        let limit = BufferLimit::new(1 << 20).wait(Duration::from_millis(300));
        let (send, readers) = mpsc::channel();
        let handler = ByPath { dropped: Arc::default(), readers: send };
        let server = serve::<B, _>(move || HttpServer::with(handler).buffer_limit(&limit));
        let mut held: Vec<(Client, Reading)> = Vec::new();
        for _ in 0..8 {
            let mut client = server.connect();
            client.send("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n").send(vec![b'x'; 200_000]);
            held.push((client, readers.recv_timeout(WAIT_MAX).expect("a request")));
        }
        // The buffers of some of these uploads are released for this one.
        let (mut client, body) = (server.connect(), vec![b'y'; 500_000]);
        client.send("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n").send(&body);
        let (mut reader, responder) = readers.recv_timeout(WAIT_MAX).expect("a request");
        let mut read = Vec::new();
        reader.read_to_end(&mut read).expect("a complete body");
        assert!(read == body);
        responder.respond("complete");
        assert_eq!(client.response().text(), "complete");
        let rejected = held.iter().filter(|(_, (_, responder))| responder.is_closed()).count();
        assert!((1..8).contains(&rejected), "{rejected} rejected");
        for (mut client, (mut reader, responder)) in held {
            if responder.is_closed() {
                assert_eq!(client.response().status, 503);
                assert_eq!(reader.read_to_end(&mut Vec::new()).expect_err("rejected").kind(), ErrorKind::InvalidData);
            }
        }
    }

    fn a_body_is_streamed_to_the_sink_with_its_trailers<B>() {
        let (server, dropped, _) = server::<B>();
        let mut client = server.connect();
        client.send(post("/sum", "\u{1}\u{2}\u{3}"));
        client.send(post_chunked("/sum", "2\r\n\u{4}\u{5}\r\n0\r\nX-T: end\r\n\r\n"));
        client.send(post("/fold", &"x".repeat(999)));
        assert_eq!(client.response().text(), "6 ");
        assert_eq!(client.response().text(), "9 end");
        assert_eq!(client.response().text(), "999");
        wait_until_dropped(&dropped, 2);
    }

    fn the_body_mode_is_chosen_before_continue_is_sent<B>() {
        let (server, _, _) = server::<B>();
        let expect = |path: &str, length: usize| {
            format!("PUT {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
        };
        for (path, length, status) in [("/reject", 5, 403), ("/reject-deferred", 5, 401), ("/collect", 11, 413), ("/fold", 1001, 413)] {
            let mut client = server.connect();
            client.send(expect(path, length));
            let response = client.response();
            assert_eq!((response.status, response.header("connection")), (status, Some("close")), "{path}");
            client.expect_close();
        }
        for path in ["/collect", "/fold", "/sum"] {
            let mut client = server.connect();
            client.send(expect(path, 5));
            assert_eq!(client.response().status, 100);
            client.send("hello");
            assert_eq!(client.response().status, 200);
        }
    }

    fn a_chunked_body_over_its_limit_gets_413<B>() {
        let (server, _, readers) = server::<B>();
        let mut client = server.connect();
        client.send(post_chunked("/fold", &format!("258\r\n{0}\r\n258\r\n{0}\r\n", "x".repeat(600))));
        assert_eq!(client.response().status, 413);
        client.expect_close();
        // The reader gets an error, and its response is discarded.
        let mut client = server.connect();
        client.send(post_chunked("/read", "5\r\nhello\r\n40000001\r\n"));
        let (mut body, responder) = readers.recv_timeout(WAIT_MAX).expect("a body reader");
        assert_eq!(client.response().status, 413);
        let error = body.read_to_end(&mut Vec::new()).expect_err("incomplete");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        assert!(responder.is_closed());
        responder.respond("too late");
        client.expect_close();
    }

    fn a_sink_may_respond_before_the_body_ends<B>() {
        let (server, dropped, _) = server::<B>();
        let mut client = server.connect();
        client.send(format!("POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{}", "x".repeat(500)));
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (409, Some("close")));
        client.expect_close();
        wait_until_dropped(&dropped, 1);
    }

    fn a_panicking_sink_gives_500<B>() {
        let (server, dropped, _) = server::<B>();
        for (count, path) in [(1, "/panic"), (2, "/panic-at-end")] {
            let mut client = server.connect();
            client.send(post(path, "x"));
            assert_eq!(client.response().status, 500);
            client.expect_close();
            wait_until_dropped(&dropped, count);
        }
        let mut other = server.connect();
        other.send(post("/sum", "\u{7}"));
        assert_eq!(other.response().text(), "7 ");
        assert_eq!(server.drain().panics, 2);
    }

    #[plain_tcp]
    fn a_sink_is_dropped_when_its_client_disconnects<B>() {
        let (server, dropped, readers) = server::<B>();
        let mut client = server.connect();
        client.send("POST /sum HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nsome");
        drop(client);
        wait_until_dropped(&dropped, 1);
        let mut client = server.connect();
        client.send("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nsome");
        let (mut body, responder) = readers.recv_timeout(WAIT_MAX).expect("a body reader");
        drop(client);
        let error = body.read_to_end(&mut Vec::new()).expect_err("incomplete");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
        wait_for("the responder is not closed", || responder.is_closed());
    }

    #[plain_tcp]
    fn a_body_reader_on_another_thread_gets_the_whole_body_and_responds<B>() {
        let (server, _, readers) = server::<B>();
        let mut client = server.connect();
        let text: String = (0..200_000).map(|number| char::from(b'a' + u8::try_from(number % 26).expect("small"))).collect();
        let sent = post("/read", &text) + &post("/sum", "\u{1}") + &post_chunked("/read", "3\r\nabc\r\n0\r\nX-T: t\r\n\r\n");
        let mut writer = client.socket.try_clone().expect("the socket is open");
        let thread = std::thread::spawn(move || std::io::Write::write_all(&mut writer, sent.as_bytes()).expect("the server reads"));
        let (mut body, responder) = readers.recv_timeout(WAIT_MAX).expect("a body reader");
        let mut received = String::new();
        body.read_to_string(&mut received).expect("complete");
        assert!(received == text);
        responder.respond("first");
        assert_eq!(client.response().text(), "first");
        assert_eq!(client.response().text(), "1 ");
        let (mut body, responder) = readers.recv_timeout(WAIT_MAX).expect("a body reader");
        assert_eq!(body.next_piece().expect("complete").as_deref(), Some(&b"abc"[..]));
        assert_eq!(body.next_piece().expect("complete"), None);
        assert_eq!(body.trailers().expect("complete").get("x-t"), Some(&b"t"[..]));
        responder.respond("second");
        assert_eq!(client.response().text(), "second");
        thread.join().expect("no panic");
    }

    #[plain_tcp]
    fn a_slow_body_reader_applies_back_pressure_to_the_client<B>() {
        let (server, _, readers) = server::<B>();
        let mut client = server.connect();
        client.send("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n");
        let (mut body, responder) = readers.recv_timeout(WAIT_MAX).expect("a body reader");
        let (done, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut writer = client.socket.try_clone().expect("the socket is open");
        let (is_done, count) = (Arc::clone(&done), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let chunk = vec![b'x'; 100_000];
            for _ in 0..1000 {
                std::io::Write::write_all(&mut writer, &chunk).expect("the server reads");
                count.fetch_add(chunk.len(), Ordering::SeqCst);
            }
            is_done.store(true, Ordering::SeqCst);
        });
        // While the body is not read, other connections are served, and the client eventually stops sending.
        let mut other = server.connect();
        let mut before = 0;
        while before == 0 || sent.load(Ordering::SeqCst) != before {
            before = sent.load(Ordering::SeqCst);
            for _ in 0..50 {
                other.send(post("/sum", "\u{1}"));
                assert_eq!(other.response().text(), "1 ");
            }
        }
        assert!(!done.load(Ordering::SeqCst), "the server buffered 100 MB");
        let mut buffer = vec![0; 1 << 20];
        let mut sum = 0;
        loop {
            match body.read(&mut buffer).expect("complete") {
                0 => break,
                count => sum += count,
            }
        }
        assert_eq!(sum, 100_000_000);
        responder.respond("read");
        assert_eq!(client.response().text(), "read");
        thread.join().expect("no panic");
    }

    fn a_drain_waits_for_uploads_of_every_kind<B>() {
        let (server, _, readers) = server::<B>();
        let head = |path: &str| {
            format!("PUT {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        };
        let mut clients: Vec<_> = ["/collect", "/sum", "/read"]
            .map(|path| {
                let mut client = server.connect();
                client.send(head(path));
                assert_eq!(client.response().status, 100);
                client.send("he");
                client
            })
            .into();
        let (mut body, responder) = readers.recv_timeout(WAIT_MAX).expect("a body reader");
        let (send, draining) = mpsc::channel();
        responder.on_drain(move || send.send(()).expect("the test is receiving"));
        server.handle.drain();
        draining.recv_timeout(WAIT_MAX).expect("on_drain is called");
        for client in &mut clients {
            client.send("llo");
        }
        let mut text = String::new();
        body.read_to_string(&mut text).expect("complete");
        responder.respond(text);
        for (client, text) in clients.iter_mut().zip(["/collect 5", "532 ", "hello"]) {
            let response = client.response();
            assert_eq!((response.text().as_str(), response.header("connection")), (text, Some("close")));
            client.expect_close();
        }
        server.drain();
    }

    fn an_early_response_from_a_body_reader_closes_the_connection<B>() {
        let (server, _, readers) = server::<B>();
        let mut client = server.connect();
        client.send("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nsome");
        let (body, responder) = readers.recv_timeout(WAIT_MAX).expect("a body reader");
        responder.respond(StatusCode::CONFLICT);
        drop(body);
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (409, Some("close")));
        client.expect_close();
    }

    fn a_dropped_body_reader_can_still_respond_at_the_end<B>() {
        let (server, _, readers) = server::<B>();
        let mut client = server.connect();
        client.send("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n");
        let (body, responder) = readers.recv_timeout(WAIT_MAX).expect("a body reader");
        drop(body);
        client.send(vec![b'x'; 600_000]);
        client.send(post("/sum", "\u{1}"));
        responder.respond("not read");
        // The connection persists only if the response came after the end of the body.
        let response = client.response();
        assert_eq!(response.text(), "not read");
        if response.header("connection").is_none() {
            assert_eq!(client.response().text(), "1 ");
        }
    }
}

/// Starts a server on the select backend, with a body timeout of `ms` milliseconds.
fn with_body_timeout(ms: u64) -> (Server, mpsc::Receiver<Reading>) {
    let timeouts = Timeouts::default().body(std::time::Duration::from_millis(ms));
    let (send, readers) = mpsc::channel();
    let handler = ByPath { dropped: Arc::default(), readers: send };
    let limits = serverd::LoopLimits::default();
    let server = serve_with::<serverd::Select, _>(timeouts, limits, move || HttpServer::with(handler));
    (server, readers)
}

/// The minimum upload rate also applies to streamed bodies.
#[test]
fn a_streamed_body_that_is_too_slow_gets_408() {
    let (server, readers) = with_body_timeout(50);
    for path in ["/sum", "/read", "/collect"] {
        let mut client = server.connect();
        client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nsome"));
        assert_eq!(client.response().status, 408, "{path}");
        client.expect_close();
    }
    let (mut body, responder) = readers.recv_timeout(WAIT_MAX).expect("a body reader");
    let error = body.read_to_end(&mut Vec::new()).expect_err("incomplete");
    assert_eq!((error.kind(), responder.is_closed()), (std::io::ErrorKind::InvalidData, true));
}

/// The time a client spends waiting for a slow reader does not count towards the body timeout.
#[test]
fn a_slow_body_reader_does_not_time_out_its_client() {
    // Longer than a busy machine keeps the client's thread from running.
    let (server, readers) = with_body_timeout(2000);
    let mut client = server.connect();
    let mut writer = client.socket.try_clone().expect("the socket is open");
    let thread = std::thread::spawn(move || {
        let head = "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n";
        std::io::Write::write_all(&mut writer, head.as_bytes()).expect("the server reads");
        std::io::Write::write_all(&mut writer, &vec![b'x'; 20_000_000]).expect("the server reads");
    });
    let (mut body, responder) = readers.recv_timeout(WAIT_MAX).expect("a body reader");
    // Keep the client waiting for longer than the timeout.
    let (send, elapsed) = mpsc::channel();
    server.handle.call_later(std::time::Duration::from_secs(3), move || send.send(()).expect("the test is receiving"));
    elapsed.recv_timeout(WAIT_MAX).expect("the timer fires");
    assert_eq!(std::io::copy(&mut body, &mut std::io::sink()).expect("complete"), 20_000_000);
    responder.respond("read");
    assert_eq!(client.response().text(), "read");
    thread.join().expect("no panic");
}
