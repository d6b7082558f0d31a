//! Collected request bodies: Content-Length and chunked, split reads, Expect: 100-continue, limits and rejection.

use serverd::http1::Limits;
use serverd::{BodyMode, Handler, HttpServer, Request, RequestHead, Response, StatusCode};

use crate::harness::{Backend, Server, on_every_backend, serve};

/// Responds with the request body.
struct Mirror;

impl Handler for Mirror {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        match head.path() {
            "/small" => BodyMode::Collect(10),
            "/no" => BodyMode::Reject(Response::error(StatusCode::FORBIDDEN, "no\n")),
            _ => BodyMode::Default,
        }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        Response::text(request.body().to_vec())
    }
}

fn mirror<B: Backend>() -> Server {
    let limits = Limits { body_bytes_max: 300_000, ..Limits::default() };
    serve::<B, _>(|| HttpServer::with(Mirror).limits(limits))
}

fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

on_every_backend! {
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
