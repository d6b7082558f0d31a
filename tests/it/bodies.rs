//! Bodies by length and in chunks, whole and in parts, asked for and refused.

use serverd::http1::Limits;
use serverd::{Handler, HttpServer, Intake, Request, RequestHead, Response, StatusCode};

use crate::harness::{Backend, Server, on_every_backend, serve};

struct Mirror;

impl Handler for Mirror {
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        match head.path() {
            "/small" => Intake::Collect(10),
            "/no" => Intake::Refuse(Response::error(StatusCode::FORBIDDEN, "no\n")),
            _ => Intake::Default,
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
    fn bodies_come_through_whole_and_in_order<B>() {
        let server = mirror::<B>();
        let mut client = server.connect();
        let large = "0123456789".repeat(30_000);
        client.send(post("/", "hello")).send(post("/", &large));
        client.send("PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nchunk\r\n2\r\ned\r\n0\r\nT: x\r\n\r\n");
        client.send(post("/", ""));
        assert_eq!(client.answer().text(), "hello");
        assert_eq!(client.answer().text(), large);
        assert_eq!(client.answer().text(), "chunked");
        assert_eq!(client.answer().text(), "");
    }

    fn a_body_in_single_octets_is_collected<B>() {
        let server = mirror::<B>();
        let mut client = server.connect();
        let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        for octet in (post("/", "hello") + chunked).bytes() {
            client.send([octet]);
        }
        assert_eq!(client.answer().text(), "hello");
        assert_eq!(client.answer().text(), "abc");
    }

    fn continue_is_said_before_the_body_and_only_then<B>() {
        let server = mirror::<B>();
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(client.answer().status, 100);
        client.send("hello");
        assert_eq!(client.answer().text(), "hello");
    }

    fn a_refused_body_is_neither_asked_for_nor_read_as_a_request<B>() {
        let server = mirror::<B>();
        let mut client = server.connect();
        client.send("POST /no HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 37\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("connection")), (403, Some("close")));
        client.send("GET / HTTP/1.1\r\nHost: smuggled.x\r\n\r\n").finish();
        client.expect_close();
    }

    fn a_body_over_the_limit_is_413_and_the_client_can_read_it<B>() {
        let server = mirror::<B>();
        for path in ["/small", "/"] {
            let mut client = server.connect();
            client.send(post(path, &"x".repeat(400_000)));
            assert_eq!(client.answer().status, 413);
            client.finish().expect_close();
        }
        let mut client = server.connect();
        client.send("POST /small HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n6\r\n");
        assert_eq!(client.answer().status, 413);
    }

    fn a_body_cut_short_is_never_served<B>() {
        let server = mirror::<B>();
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello").finish();
        client.expect_close();
    }
}
