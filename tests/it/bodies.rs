//! Collected request bodies: Content-Length and chunked, split reads, Expect: 100-continue, limits and rejection.

use std::sync::mpsc;
use std::time::Duration;

use serverd::http1::Limits;
use serverd::{BodyMode, BufferLimit, Handler, HttpServer, Request, RequestHead, Response, StatusCode};

use crate::harness::{Backend, Client, Server, WAIT_MAX, on_every_backend, serve};

/// Responds with the request body.
struct Mirror;

impl Handler for Mirror {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        match head.path() {
            "/small" => BodyMode::Collect(10),
            "/discard" => BodyMode::Discard,
            "/no" => BodyMode::Reject(Response::error(StatusCode::FORBIDDEN, "no\n")),
            _ => BodyMode::Default,
        }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        Response::text(request.body().to_vec())
    }
}

fn mirror<B: Backend>() -> Server {
    let limits = Limits::default().body_bytes_max(300_000);
    serve::<B, _>(|| HttpServer::with(Mirror).limits(limits))
}

fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

on_every_backend! {
    over_tls_too:

    fn bodies_arrive_complete_and_in_order<B>() {
        let server = mirror::<B>();
        let mut client = server.connect();
        let large = "0123456789".repeat(30_000);
        client.send(post("/", "hello")).send(post("/", &large));
        client.send("PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nchunk\r\n2\r\ned\r\n0\r\nT: x\r\n\r\n");
        client.send(post("/", ""));
        assert_eq!(client.response().text(), "hello");
        assert_eq!(client.response().text(), large);
        assert_eq!(client.response().text(), "chunked");
        assert_eq!(client.response().text(), "");
    }

    fn a_body_sent_byte_by_byte_is_collected<B>() {
        let server = mirror::<B>();
        let mut client = server.connect();
        let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        for byte in (post("/", "hello") + chunked).bytes() {
            client.send([byte]);
        }
        assert_eq!(client.response().text(), "hello");
        assert_eq!(client.response().text(), "abc");
    }

    fn a_discarded_body_does_not_reach_the_handler<B>() {
        let server = mirror::<B>();
        let mut client = server.connect();
        let large = "0123456789".repeat(30_000);
        client.send(post("/discard", "hello")).send(post("/discard", &large)).send(post("/", "kept"));
        client.send("PUT /discard HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nchunk\r\n0\r\nT: x\r\n\r\n");
        assert_eq!(client.response().text(), "");
        assert_eq!(client.response().text(), "");
        assert_eq!(client.response().text(), "kept");
        assert_eq!(client.response().text(), "");
        client.send("POST /discard HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(client.response().status, 100);
        for byte in b"hello" {
            client.send([*byte]);
        }
        assert_eq!(client.response().text(), "");
        client.send("POST /discard HTTP/1.1\r\nHost: x\r\nContent-Length: 300001\r\n\r\n");
        assert_eq!(client.response().status, 413);
    }

    #[plain_tcp]
    fn stalled_uploads_do_not_lock_out_others<B>() {
        let limit = BufferLimit::new(1 << 20).wait(Duration::from_millis(300));
        let server = serve::<B, _>(move || HttpServer::with(Mirror).buffer_limit(&limit));
        let head = |length: usize| format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        let mut stalled: Vec<Client> = (0..20).map(|_| server.connect()).collect();
        for client in &mut stalled {
            client.send(head(200_000)).send(vec![b'x'; 60_000]);
        }
        // More than the limit is waiting, so some of the stalled uploads are rejected to make room for this one.
        let mut client = server.connect();
        let large = "0123456789".repeat(20_000);
        client.send(post("/", &large));
        assert_eq!(client.response().text(), large);
        // A small body does not wait.
        assert_eq!(client.send(post("/", "hello")).response().text(), "hello");
        let mut rejected = 0;
        for client in &mut stalled {
            client.socket.set_nonblocking(true).expect("an open socket");
            let seen = client.socket.peek(&mut [0]).is_ok();
            client.socket.set_nonblocking(false).expect("an open socket");
            if seen {
                let response = client.response();
                assert_eq!((response.status, response.header("connection")), (503, Some("close")));
                assert_eq!(response.header("retry-after"), Some("5"));
                rejected += 1;
            }
        }
        assert!((1..20).contains(&rejected), "{rejected} rejected");
    }

    fn an_upload_at_the_limit_continues_when_memory_is_released<B>() {
        let limit = BufferLimit::new(1 << 20).wait(Duration::from_secs(3600));
        let (send, held) = mpsc::channel();
        let handler = move |request: &Request<'_>| {
            if request.path() != "/hold" {
                return Response::text(request.body().to_vec());
            }
            // A suspended request keeps its body.
            let (response, responder) = Response::suspend();
            send.send(responder).expect("the test is receiving");
            response
        };
        let server = serve::<B, _>(move || HttpServer::new(handler).buffer_limit(&limit));
        let mut first = server.connect();
        let sender = std::thread::spawn(move || {
            first.send(post("/hold", &"x".repeat(800_000)));
            first
        });
        let responder = held.recv_timeout(WAIT_MAX).expect("a complete request");
        let mut first = sender.join().expect("no panic");
        let mut second = server.connect();
        let sender = std::thread::spawn(move || {
            second.send(post("/", &"y".repeat(900_000)));
            second
        });
        assert_eq!(server.connect().send(post("/", "hello")).response().text(), "hello");
        responder.respond("released");
        assert_eq!(first.response().text(), "released");
        let mut second = sender.join().expect("no panic");
        assert_eq!(second.response().text(), "y".repeat(900_000));
    }

    fn continue_is_sent_only_before_the_body<B>() {
        let server = mirror::<B>();
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(client.response().status, 100);
        client.send("hello");
        assert_eq!(client.response().text(), "hello");
    }

    fn a_rejected_body_gets_no_continue_and_is_not_parsed_as_a_request<B>() {
        let server = mirror::<B>();
        let mut client = server.connect();
        client.send("POST /no HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 37\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (403, Some("close")));
        client.send("GET / HTTP/1.1\r\nHost: smuggled.x\r\n\r\n").finish();
        client.expect_close();
    }

    fn a_body_over_the_limit_gets_a_413_that_the_client_can_read<B>() {
        let server = mirror::<B>();
        for path in ["/small", "/"] {
            let mut client = server.connect();
            client.send(post(path, &"x".repeat(400_000)));
            assert_eq!(client.response().status, 413);
            client.finish().expect_close();
        }
        let mut client = server.connect();
        client.send("POST /small HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n6\r\n");
        assert_eq!(client.response().status, 413);
    }

    fn a_truncated_body_is_never_passed_to_the_handler<B>() {
        let server = mirror::<B>();
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello").finish();
        client.expect_close();
    }
}
