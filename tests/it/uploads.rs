//! Bodies taken as they come: bounded, with the client waiting for who is slow, and no answer before its time.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use serverd::{
    BodyReader, Handler, HttpServer, Intake, Request, RequestHead, Responder, Response, StatusCode, Take, Timeouts,
    Trailers, Upload,
};

use crate::harness::{Backend, PATIENCE, Server, on_every_backend, serve, serve_with};

/// Sums up what comes; the path says what else is to happen.
struct Sum {
    path: String,
    total: u64,
    dropped: Arc<AtomicUsize>,
}

impl Upload for Sum {
    fn chunk(&mut self, bytes: &[u8]) -> Take {
        assert!(!bytes.is_empty() && self.path != "/panic");
        self.total += bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
        if self.path == "/enough" { Take::Answer(StatusCode::CONFLICT.into()) } else { Take::More }
    }

    fn end(self: Box<Self>, trailers: &Trailers) -> Response {
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

struct Intakes {
    dropped: Arc<AtomicUsize>,
    readers: mpsc::Sender<Reading>,
}

impl Handler for Intakes {
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        match head.path() {
            "/collect" => Intake::Collect(10),
            "/refuse" => Intake::Refuse(StatusCode::FORBIDDEN.into()),
            "/refuse-later" => {
                let (response, responder) = Response::later();
                std::thread::spawn(move || responder.respond(StatusCode::UNAUTHORIZED));
                Intake::Refuse(response)
            }
            "/fold" => {
                Intake::fold(1000, 0, |count: &mut usize, bytes| *count += bytes.len(), |count| count.to_string())
            }
            "/read" => {
                let readers = self.readers.clone();
                Intake::read(1 << 30, move |body, responder| readers.send((body, responder)).expect("the test waits"))
            }
            path => {
                Intake::stream(100_000_000, Sum { path: path.into(), total: 0, dropped: Arc::clone(&self.dropped) })
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
    let handler = Intakes { dropped: Arc::clone(&dropped), readers: send };
    (serve::<B, _>(move || HttpServer::with(handler)), dropped, readers)
}

fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn post_chunked(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

fn wait_for(counter: &AtomicUsize, wanted: usize) {
    while counter.load(Ordering::SeqCst) != wanted {
        std::thread::yield_now();
    }
}

on_every_backend! {
    fn a_body_is_taken_piece_by_piece_with_its_trailers<B>() {
        let (server, dropped, _) = server::<B>();
        let mut client = server.connect();
        client.send(post("/sum", "\u{1}\u{2}\u{3}"));
        client.send(post_chunked("/sum", "2\r\n\u{4}\u{5}\r\n0\r\nX-T: end\r\n\r\n"));
        client.send(post("/fold", &"x".repeat(999)));
        assert_eq!(client.answer().text(), "6 ");
        assert_eq!(client.answer().text(), "9 end");
        assert_eq!(client.answer().text(), "999");
        wait_for(&dropped, 2);
    }

    fn the_head_alone_decides_before_the_client_is_told_to_send<B>() {
        let (server, _, _) = server::<B>();
        let expect = |path: &str, length: usize| {
            format!("PUT {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
        };
        for (path, length, status) in [("/refuse", 5, 403), ("/refuse-later", 5, 401), ("/collect", 11, 413), ("/fold", 1001, 413)] {
            let mut client = server.connect();
            client.send(expect(path, length));
            let answer = client.answer();
            assert_eq!((answer.status, answer.field("connection")), (status, Some("close")), "{path}");
            client.expect_close();
        }
        for path in ["/collect", "/fold", "/sum"] {
            let mut client = server.connect();
            client.send(expect(path, 5));
            assert_eq!(client.answer().status, 100);
            client.send("hello");
            assert_eq!(client.answer().status, 200);
        }
    }

    fn a_body_over_its_limit_is_413_also_in_chunks<B>() {
        let (server, _, readers) = server::<B>();
        let mut client = server.connect();
        client.send(post_chunked("/fold", &format!("258\r\n{0}\r\n258\r\n{0}\r\n", "x".repeat(600))));
        assert_eq!(client.answer().status, 413);
        client.expect_close();
        // What reads it elsewhere hears of it, and its answer is dropped.
        let mut client = server.connect();
        client.send(post_chunked("/read", "5\r\nhello\r\n40000001\r\n"));
        let (mut body, responder) = readers.recv_timeout(PATIENCE).expect("a reader");
        assert_eq!(client.answer().status, 413);
        let error = body.read_to_end(&mut Vec::new()).expect_err("not whole");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        assert!(responder.is_closed());
        responder.respond("too late");
        client.expect_close();
    }

    fn an_upload_may_answer_before_its_end<B>() {
        let (server, dropped, _) = server::<B>();
        let mut client = server.connect();
        client.send(format!("POST /enough HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{}", "x".repeat(500)));
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("connection")), (409, Some("close")));
        client.expect_close();
        wait_for(&dropped, 1);
    }

    fn an_upload_that_panics_is_answered_500<B>() {
        let (server, dropped, _) = server::<B>();
        let mut client = server.connect();
        client.send(post("/panic", "x"));
        assert_eq!(client.answer().status, 500);
        client.expect_close();
        wait_for(&dropped, 1);
        let mut other = server.connect();
        other.send(post("/sum", "\u{7}"));
        assert_eq!(other.answer().text(), "7 ");
    }

    fn an_upload_is_dropped_when_its_client_vanishes<B>() {
        let (server, dropped, readers) = server::<B>();
        let mut client = server.connect();
        client.send("POST /sum HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nsome");
        drop(client);
        wait_for(&dropped, 1);
        let mut client = server.connect();
        client.send("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nsome");
        let (mut body, responder) = readers.recv_timeout(PATIENCE).expect("a reader");
        drop(client);
        let error = body.read_to_end(&mut Vec::new()).expect_err("not whole");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
        while !responder.is_closed() {
            std::thread::yield_now();
        }
    }

    fn a_body_read_elsewhere_arrives_whole_and_is_answered_there<B>() {
        let (server, _, readers) = server::<B>();
        let mut client = server.connect();
        let text: String = (0..200_000).map(|number| char::from(b'a' + u8::try_from(number % 26).expect("small"))).collect();
        let sent = post("/read", &text) + &post("/sum", "\u{1}") + &post_chunked("/read", "3\r\nabc\r\n0\r\nX-T: t\r\n\r\n");
        let mut writer = client.socket.try_clone().expect("alive");
        let thread = std::thread::spawn(move || std::io::Write::write_all(&mut writer, sent.as_bytes()).expect("read"));
        let (mut body, responder) = readers.recv_timeout(PATIENCE).expect("a reader");
        let mut seen = String::new();
        body.read_to_string(&mut seen).expect("whole");
        assert!(seen == text);
        responder.respond("got it");
        assert_eq!(client.answer().text(), "got it");
        assert_eq!(client.answer().text(), "1 ");
        let (mut body, responder) = readers.recv_timeout(PATIENCE).expect("a reader");
        assert_eq!(body.next_piece().expect("whole").as_deref(), Some(&b"abc"[..]));
        assert_eq!(body.next_piece().expect("whole"), None);
        assert_eq!(body.trailers().expect("whole").get("x-t"), Some(&b"t"[..]));
        responder.respond("and this");
        assert_eq!(client.answer().text(), "and this");
        thread.join().expect("no panic");
    }

    fn the_client_waits_for_a_slow_reader<B>() {
        let (server, _, readers) = server::<B>();
        let mut client = server.connect();
        client.send("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n");
        let (mut body, responder) = readers.recv_timeout(PATIENCE).expect("a reader");
        let (done, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut writer = client.socket.try_clone().expect("alive");
        let (is_done, count) = (Arc::clone(&done), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let piece = vec![b'x'; 100_000];
            for _ in 0..1000 {
                std::io::Write::write_all(&mut writer, &piece).expect("taken");
                count.fetch_add(piece.len(), Ordering::SeqCst);
            }
            is_done.store(true, Ordering::SeqCst);
        });
        // Others are served while nobody reads, and what is taken comes to an end.
        let mut other = server.connect();
        let mut before = 0;
        while before == 0 || sent.load(Ordering::SeqCst) != before {
            before = sent.load(Ordering::SeqCst);
            for _ in 0..50 {
                other.send(post("/sum", "\u{1}"));
                assert_eq!(other.answer().text(), "1 ");
            }
        }
        assert!(!done.load(Ordering::SeqCst), "100 MB were taken from the client and read by nobody");
        let mut buffer = vec![0; 1 << 20];
        let mut sum = 0;
        loop {
            match body.read(&mut buffer).expect("whole") {
                0 => break,
                count => sum += count,
            }
        }
        assert_eq!(sum, 100_000_000);
        responder.respond("read");
        assert_eq!(client.answer().text(), "read");
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
                assert_eq!(client.answer().status, 100);
                client.send("he");
                client
            })
            .into();
        let (mut body, responder) = readers.recv_timeout(PATIENCE).expect("a reader");
        let (tell, told) = mpsc::channel();
        responder.on_drain(move || tell.send(()).expect("the test waits"));
        server.handle.drain();
        told.recv_timeout(PATIENCE).expect("the drain is told");
        for client in &mut clients {
            client.send("llo");
        }
        let mut text = String::new();
        body.read_to_string(&mut text).expect("whole");
        responder.respond(text);
        for (client, text) in clients.iter_mut().zip(["/collect 5", "532 ", "hello"]) {
            let answer = client.answer();
            assert_eq!((answer.text().as_str(), answer.field("connection")), (text, Some("close")));
            client.expect_close();
        }
        server.drain();
    }

    fn a_reader_that_answers_early_ends_the_connection<B>() {
        let (server, _, readers) = server::<B>();
        let mut client = server.connect();
        client.send("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nsome");
        let (body, responder) = readers.recv_timeout(PATIENCE).expect("a reader");
        responder.respond(StatusCode::CONFLICT);
        drop(body);
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("connection")), (409, Some("close")));
        client.expect_close();
    }

    fn a_reader_may_leave_before_the_end_and_still_answer_at_it<B>() {
        let (server, _, readers) = server::<B>();
        let mut client = server.connect();
        client.send("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n");
        let (body, responder) = readers.recv_timeout(PATIENCE).expect("a reader");
        drop(body);
        client.send(vec![b'x'; 600_000]);
        client.send(post("/sum", "\u{1}"));
        responder.respond("not read");
        // Whether the body had ended when the answer came decides about the connection.
        let answer = client.answer();
        assert_eq!(answer.text(), "not read");
        if answer.field("connection").is_none() {
            assert_eq!(client.answer().text(), "1 ");
        }
    }
}

/// A server on select that gives a body so many milliseconds for each period.
fn with_body_limit(ms: u64) -> (Server, mpsc::Receiver<Reading>) {
    let timeouts = Timeouts { body: Some(std::time::Duration::from_millis(ms)), ..Timeouts::default() };
    let (send, readers) = mpsc::channel();
    let handler = Intakes { dropped: Arc::default(), readers: send };
    let limits = serverd::r#loop::Limits::default();
    let server = serve_with::<serverd::r#loop::Select, _>(timeouts, limits, move || HttpServer::with(handler));
    (server, readers)
}

/// The pace of a body is judged also where it is taken as it comes.
#[test]
fn a_streamed_body_that_is_too_slow_is_408() {
    let (server, readers) = with_body_limit(50);
    for path in ["/sum", "/read", "/collect"] {
        let mut client = server.connect();
        client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nsome"));
        assert_eq!(client.answer().status, 408, "{path}");
        client.expect_close();
    }
    let (mut body, responder) = readers.recv_timeout(PATIENCE).expect("a reader");
    let error = body.read_to_end(&mut Vec::new()).expect_err("not whole");
    assert_eq!((error.kind(), responder.is_closed()), (std::io::ErrorKind::InvalidData, true));
}

/// A client that waits for a reader is not one that is slow.
#[test]
fn a_reader_may_take_its_time() {
    let (server, readers) = with_body_limit(100);
    let mut client = server.connect();
    let mut writer = client.socket.try_clone().expect("alive");
    let thread = std::thread::spawn(move || {
        let head = "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n";
        std::io::Write::write_all(&mut writer, head.as_bytes()).expect("taken");
        std::io::Write::write_all(&mut writer, &vec![b'x'; 20_000_000]).expect("taken");
    });
    let (mut body, responder) = readers.recv_timeout(PATIENCE).expect("a reader");
    // Five times the limit, while the client is kept waiting.
    let (tell, heard) = mpsc::channel();
    server.handle.call_later(std::time::Duration::from_millis(500), move || tell.send(()).expect("the test waits"));
    heard.recv_timeout(PATIENCE).expect("called");
    assert_eq!(std::io::copy(&mut body, &mut std::io::sink()).expect("whole"), 20_000_000);
    responder.respond("read");
    assert_eq!(client.answer().text(), "read");
    thread.join().expect("no panic");
}
