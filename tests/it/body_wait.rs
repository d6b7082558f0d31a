//! Uploads that pause while their sink waits: order, back-pressure, early ends, memory, timeouts and shutdown.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serverd::{
    BodyFlow, BodyMode, BodySink, BufferLimit, Handler, HttpServer, LoopLimits, Request, RequestHead, Response, Resume,
    StatusCode, Timeouts, Trailers,
};

use crate::harness::{
    Backend, Client, RESET_READS_AS_EOF, Random, Server, WAIT_MAX, on_every_backend, serve_with, skipped_under_wine,
    wait_for,
};

/// A chunk that the sink has accepted, and what resumes its upload.
type Wait = (Vec<u8>, Resume);

/// Passes the body to the test, and waits after each chunk; on `/at-once` it resumes itself.
struct Sink {
    path: String,
    waits: mpsc::Sender<Wait>,
    shared: Arc<Shared>,
    total: usize,
}

#[derive(Default)]
struct Shared {
    /// The test has not resumed the upload.
    is_waiting: AtomicBool,
    dropped: AtomicUsize,
}

impl BodySink for Sink {
    fn chunk(&mut self, bytes: &[u8]) -> BodyFlow {
        self.total += bytes.len();
        let (flow, resume) = BodyFlow::wait();
        if self.path == "/at-once" {
            resume.resume();
            return flow;
        }
        assert!(!self.shared.is_waiting.swap(true, Ordering::SeqCst), "a chunk while the sink waits");
        self.waits.send((bytes.to_vec(), resume)).expect("the test is receiving");
        flow
    }

    fn end(self: Box<Self>, trailers: &Trailers) -> Response {
        assert!(self.path == "/at-once" || !self.shared.is_waiting.load(Ordering::SeqCst), "the end while it waits");
        let trailer = trailers.get("x-t").map(|value| String::from_utf8_lossy(value).into_owned());
        Response::text(format!("{} {}", self.total, trailer.unwrap_or_default()))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

struct Uploads {
    waits: mpsc::Sender<Wait>,
    shared: Arc<Shared>,
}

impl Handler for Uploads {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        let (waits, shared) = (self.waits.clone(), Arc::clone(&self.shared));
        BodyMode::stream(1 << 30, Sink { path: head.path().into(), waits, shared, total: 0 })
            .map(|response| response.header("X-Layer", "outer"))
    }

    fn call(&mut self, _: &Request<'_>) -> Response {
        Response::text("no body")
    }
}

struct Test {
    server: Server,
    waits: mpsc::Receiver<Wait>,
    shared: Arc<Shared>,
}

impl Test {
    fn new<B: Backend>(timeouts: Timeouts, limit: BufferLimit) -> Test {
        let (waits, receive) = mpsc::channel();
        let shared = Arc::<Shared>::default();
        let uploads = Uploads { waits, shared: Arc::clone(&shared) };
        let server =
            serve_with::<B, _>(timeouts, LoopLimits::default(), move || HttpServer::with(uploads).buffer_limit(&limit));
        Test { server, waits: receive, shared }
    }

    fn start<B: Backend>() -> Test {
        Test::new::<B>(Timeouts::default(), BufferLimit::default())
    }

    fn next(&self) -> Wait {
        self.waits.recv_timeout(WAIT_MAX).expect("a chunk")
    }

    fn resume(&self, resume: Resume) {
        self.shared.is_waiting.store(false, Ordering::SeqCst);
        resume.resume();
    }

    /// Resumes the upload after each chunk until `count` bytes have arrived; returns them.
    fn receive(&self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let (chunk, resume) = self.next();
            bytes.extend(chunk);
            self.resume(resume);
        }
        bytes
    }

    /// Connects, and sends the head and the first byte of an upload of `length` bytes.
    fn begin(&self, length: usize) -> Client {
        let mut client = self.server.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\nx"));
        client
    }

    fn wait_until_dropped(&self, count: usize) {
        wait_for("not all sinks are dropped", || self.shared.dropped.load(Ordering::SeqCst) == count);
    }
}

/// Asserts that the loop serves another connection.
fn assert_serves(server: &Server) {
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.response().text(), "no body");
}

on_every_backend! {
    over_tls_too:

    fn a_chunk_follows_only_when_the_sink_is_resumed<B>() {
        let test = Test::start::<B>();
        let mut client = test.begin(6);
        let (first, resume) = test.next();
        client.send("yzzy!").send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        for _ in 0..3 {
            assert_serves(&test.server);
        }
        assert!((first, test.waits.try_recv().is_err()) == (b"x".to_vec(), true));
        test.resume(resume);
        assert_eq!(test.receive(5), b"yzzy!");
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("x-layer")), ("6 ", Some("outer")));
        assert_eq!(client.response().text(), "no body");
    }

    fn every_byte_arrives_once_and_in_order<B>() {
        let test = Test::start::<B>();
        let body = Random::new(7).bytes(300_000);
        let sent = body.clone();
        let mut client = test.server.connect();
        let thread = std::thread::spawn(move || {
            client.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
            for chunk in sent.chunks(70_001) {
                client.send(format!("{:x}\r\n", chunk.len())).send(chunk).send("\r\n");
            }
            client.send("0\r\nX-T: end\r\n\r\n");
            client.response().text()
        });
        assert!(test.receive(body.len()) == body);
        assert_eq!(thread.join().expect("a response"), "300000 end");
    }

    fn a_sink_may_be_resumed_before_it_waits<B>() {
        let test = Test::start::<B>();
        let mut client = test.server.connect();
        client.send("POST /at-once HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n").send(vec![b'x'; 500_000]);
        assert_eq!(client.response().text(), "500000 ");
    }

    fn a_response_instead_of_the_rest_closes_the_connection<B>() {
        let test = Test::start::<B>();
        let mut client = test.begin(1000);
        test.next().1.respond(StatusCode::INSUFFICIENT_STORAGE);
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (507, Some("close")));
        assert_eq!(response.header("x-layer"), Some("outer"));
        client.expect_close();
        test.wait_until_dropped(1);
    }

    fn a_resume_that_is_dropped_ends_the_request_with_500<B>() {
        let test = Test::start::<B>();
        let mut client = test.begin(1000);
        drop(test.next());
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (500, Some("close")));
        client.expect_close();
        test.wait_until_dropped(1);
        assert_serves(&test.server);
    }

    #[plain_tcp]
    fn a_client_that_disconnects_ends_the_wait<B>() {
        if skipped_under_wine(RESET_READS_AS_EOF) {
            return;
        }
        let test = Test::start::<B>();
        let client = test.begin(1000);
        let (_, resume) = test.next();
        let (send, closed) = mpsc::channel();
        resume.on_closed(move || send.send(()).expect("the test is receiving"));
        client.reset();
        closed.recv_timeout(WAIT_MAX).expect("on_closed is called");
        assert!(resume.is_closed());
        test.resume(resume);
        test.wait_until_dropped(1);
        assert_serves(&test.server);
    }

    fn a_half_closed_upload_is_cut_off_once_it_is_resumed<B>() {
        let test = Test::start::<B>();
        let mut client = test.begin(1000);
        client.finish();
        let (_, resume) = test.next();
        test.resume(resume);
        client.expect_close();
        test.wait_until_dropped(1);
    }

    #[plain_tcp]
    fn a_sink_that_waits_applies_back_pressure_to_the_client<B>() {
        const BYTES: usize = 100_000_000;
        let test = Test::start::<B>();
        let mut client = test.begin(BYTES + 1);
        let (done, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut writer = client.socket.try_clone().expect("the socket is open");
        let (is_done, count) = (Arc::clone(&done), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let chunk = vec![b'x'; 100_000];
            for _ in 0..BYTES / chunk.len() {
                std::io::Write::write_all(&mut writer, &chunk).expect("the server reads");
                count.fetch_add(chunk.len(), Ordering::SeqCst);
            }
            is_done.store(true, Ordering::SeqCst);
        });
        let (first, resume) = test.next();
        let mut before = 0;
        while before == 0 || sent.load(Ordering::SeqCst) != before {
            before = sent.load(Ordering::SeqCst);
            for _ in 0..50 {
                assert_serves(&test.server);
            }
        }
        assert!(!done.load(Ordering::SeqCst), "the server buffered {BYTES} bytes");
        test.resume(resume);
        test.receive(BYTES + 1 - first.len());
        assert_eq!(client.response().text(), format!("{} ", BYTES + 1));
        thread.join().expect("no panic");
    }

    fn a_drain_waits_for_a_sink_that_waits<B>() {
        let test = Test::start::<B>();
        let mut client = test.begin(6);
        let (_, resume) = test.next();
        let (send, draining) = mpsc::channel();
        test.server.handle.drain();
        test.server.handle.call_later(Duration::from_millis(50), move || send.send(()).expect("the test is receiving"));
        draining.recv_timeout(WAIT_MAX).expect("the timer fires");
        client.send("yzzy!");
        test.resume(resume);
        assert_eq!(test.receive(5), b"yzzy!");
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("connection")), ("6 ", Some("close")));
        client.expect_close();
        test.server.drain();
    }

    fn a_chunk_that_is_held_for_too_long_while_memory_is_short_is_rejected<B>() {
        let test = Test::new::<B>(Timeouts::default(), BufferLimit::new(0).wait(Duration::from_millis(50)));
        let mut client = test.begin(1000);
        let (_, resume) = test.next();
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (503, Some("close")));
        assert!(resume.is_closed());
        test.wait_until_dropped(1);
        client.expect_close();
    }

    fn memory_is_released_when_the_sink_is_resumed<B>() {
        // Less than the body, and more than a chunk.
        let limit = BufferLimit::new(200_000).wait(Duration::from_millis(50));
        let test = Test::new::<B>(Timeouts::default(), limit);
        let mut client = test.begin(2_000_001);
        let thread = std::thread::spawn(move || client.send(vec![b'x'; 2_000_000]).response().text());
        test.receive(2_000_001);
        assert_eq!(thread.join().expect("a response"), "2000001 ");
    }
}

/// The time for which the sink waits does not count towards the body timeout; that for which the client does, counts.
#[test]
fn the_body_timeout_does_not_run_while_the_sink_waits() {
    let timeouts = Timeouts::default().body(Duration::from_millis(100));
    let test = Test::new::<serverd::Select>(timeouts, BufferLimit::default());
    let mut client = test.begin(3);
    for expected in [b"x", b"y"] {
        let (chunk, resume) = test.next();
        assert_eq!(chunk, expected);
        client.send("y");
        // Five times the timeout.
        let (send, elapsed) = mpsc::channel();
        let call = move || send.send(()).expect("the test is receiving");
        test.server.handle.call_later(Duration::from_millis(500), call);
        elapsed.recv_timeout(WAIT_MAX).expect("the timer fires");
        assert!(!resume.is_closed());
        test.resume(resume);
    }
    test.receive(1);
    assert_eq!(client.response().text(), "3 ");
    let mut client = test.begin(3);
    test.receive(1);
    assert_eq!(client.response().status, 408);
    test.wait_until_dropped(2);
}

/// A panic of the sink, and one of the thread that is to resume it.
#[test]
fn panics_end_the_upload_with_500() {
    let test = Test::start::<serverd::Select>();
    let mut client = test.begin(1000);
    let (_, resume) = test.next();
    std::thread::spawn(move || {
        let _resume = resume;
        panic!("injected");
    })
    .join()
    .expect_err("the thread panics");
    assert_eq!(client.response().status, 500);
    // The flag is still set, so that the next chunk panics.
    let mut client = test.begin(1000);
    assert_eq!(client.response().status, 500);
    test.wait_until_dropped(2);
    assert_serves(&test.server);
}

#[test]
fn a_flow_that_is_not_returned_closes_its_resume() {
    let (flow, resume) = BodyFlow::wait();
    assert!(!resume.is_closed());
    drop(flow);
    assert!(resume.is_closed());
    resume.resume();
}
