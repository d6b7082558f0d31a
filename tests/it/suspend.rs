//! Suspended requests: the handler is called again once another thread has supplied the missing information.

use std::sync::Mutex;
use std::sync::mpsc;

use serverd::{BodyMode, HttpServer, Request, RequestHead, Responder, Response, StatusCode, layers};

use crate::harness::{Backend, RESET_READS_AS_EOF, Server, WAIT_MAX, on_every_backend, serve, skipped_under_wine};

#[derive(Clone, PartialEq)]
struct Verdict(&'static str);

/// Responds with a description of the request. Streams the body of `/stream`.
struct Inner;

impl serverd::Handler for Inner {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        if head.path() != "/stream" {
            return BodyMode::Default;
        }
        BodyMode::fold(1 << 20, 0, |sum, chunk| *sum += chunk.len(), |sum| format!("received {sum}\n"))
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let verdict = request.extension::<Verdict>().map_or("none", |verdict| verdict.0);
        Response::text(format!("{} {} {verdict} {}\n", request.method(), request.target(), request.body().len()))
    }
}

/// Starts a server behind a guard that suspends each request and passes its responder to the test.
fn guarded<B: Backend>() -> (Server, mpsc::Receiver<Responder>) {
    let (send, receive) = mpsc::channel();
    let send = Mutex::new(send);
    let server = serve::<B, _>(move || {
        HttpServer::with(layers::guard(Inner, move |head| match head.extension() {
            Some(Verdict("no")) => Some(StatusCode::FORBIDDEN.into()),
            Some(_) => None,
            None => {
                let (response, responder) = Response::suspend();
                send.lock().expect("not poisoned").send(responder).expect("the test is receiving");
                Some(response.header("X-Placeholder", "yes"))
            }
        }))
    });
    (server, receive)
}

on_every_backend! {
    over_tls_too:

    fn a_resumed_request_is_passed_to_the_handler_with_the_inserted_value<B>() {
        let (server, responders) = guarded::<B>();
        let mut client = server.connect();
        client.send("GET /a?b HTTP/1.1\r\nHost: x\r\n\r\nGET /second HTTP/1.1\r\nHost: x\r\n\r\n");
        responders.recv_timeout(WAIT_MAX).expect("a suspended request").resume(Verdict("yes"));
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("x-placeholder")), ("GET /a?b yes 0\n", None));
        responders.recv_timeout(WAIT_MAX).expect("a suspended request").resume(Verdict("no"));
        assert_eq!(client.response().status, 403);
    }

    fn a_suspended_request_can_be_answered_directly<B>() {
        let (server, responders) = guarded::<B>();
        let mut client = server.connect();
        client.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        responders.recv_timeout(WAIT_MAX).expect("a suspended request").respond(StatusCode::UNAUTHORIZED);
        let response = client.response();
        assert_eq!((response.status, response.header("x-placeholder")), (401, Some("yes")));
        client.send("HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n");
        drop(responders.recv_timeout(WAIT_MAX).expect("a suspended request"));
        assert_eq!(client.response_to("HEAD").status, 500);
    }

    fn a_body_is_read_only_after_the_head_is_accepted<B>() {
        let (server, responders) = guarded::<B>();
        let mut client = server.connect();
        for (path, text) in [("/collect", "POST /collect yes 5\n"), ("/stream", "received 5\n")] {
            client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"));
            let responder = responders.recv_timeout(WAIT_MAX).expect("a suspended request");
            responder.resume(Verdict("yes"));
            assert_eq!(client.response_to("HEAD").status, 100, "no 100 (Continue) before the request is resumed");
            client.send("hello");
            assert_eq!(client.response().text(), text);
        }
        for (path, text) in [("/collect", "POST /collect yes 5\n"), ("/stream", "received 5\n")] {
            client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"));
            responders.recv_timeout(WAIT_MAX).expect("a suspended request").resume(Verdict("yes"));
            let response = client.response_to("GET");
            assert_eq!(response.text(), text);
        }
        client.send("POST /collect HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n");
        responders.recv_timeout(WAIT_MAX).expect("a suspended request").resume(Verdict("no"));
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (403, Some("close")));
    }

    fn a_resumed_request_keeps_its_body<B>() {
        let (send, responders) = mpsc::channel();
        let send = Mutex::new(send);
        let server = serve::<B, _>(move || {
            HttpServer::new(move |request: &Request<'_>| {
                if let Some(Verdict(text)) = request.extension() {
                    return Response::text(format!("{text} {}\n", request.body().len()));
                }
                let (response, responder) = Response::suspend();
                send.lock().expect("not poisoned").send(responder).expect("the test is receiving");
                response
            })
        });
        let mut client = server.connect();
        for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
            client.send(format!("POST / HTTP/1.1\r\nHost: x\r\n{body}"));
            responders.recv_timeout(WAIT_MAX).expect("a suspended request").resume(Verdict("kept"));
            assert_eq!(client.response().text(), "kept 5\n");
        }
    }

    fn resuming_a_request_that_is_not_suspended_gives_500<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::new(|_: &Request<'_>| {
                let (response, responder) = Response::later();
                responder.resume(Verdict("yes"));
                response
            })
        });
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.response().status, 500);
    }

    fn a_request_that_is_resumed_and_suspended_again_and_again_does_not_stall_others<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::with(layers::guard(Inner, |head| {
                // The handler does not recognise the value with which it resumes.
                (head.path() == "/again").then(|| {
                    let (response, responder) = Response::suspend();
                    responder.resume(0_u8);
                    response
                })
            }))
        });
        let body = "POST /again HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n";
        let _suspended = ["GET /again HTTP/1.1\r\nHost: x\r\n\r\n", body, &format!("{body}hello")].map(|request| {
            let mut client = server.connect();
            client.send(request);
            client
        });
        let mut other = server.connect();
        other.send("GET /b HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(other.response().text(), "GET /b none 0\n");
        // The loop can be stopped, too: otherwise the test does not end.
    }

    fn a_suspended_request_ends_when_its_client_disconnects<B>() {
        if skipped_under_wine(RESET_READS_AS_EOF) {
            return;
        }
        let (server, responders) = guarded::<B>();
        let mut client = server.connect();
        client.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        let responder = responders.recv_timeout(WAIT_MAX).expect("a suspended request");
        let (send, receive) = mpsc::channel();
        responder.on_closed(move || send.send(()).expect("the test is receiving"));
        client.reset();
        receive.recv_timeout(WAIT_MAX).expect("on_closed is called");
        assert!(responder.is_closed());
        responder.resume(Verdict("yes"));
        let mut other = server.connect();
        other.send("GET /b HTTP/1.1\r\nHost: x\r\n\r\n");
        responders.recv_timeout(WAIT_MAX).expect("a suspended request").resume(Verdict("yes"));
        assert_eq!(other.response().status, 200);
    }
}
