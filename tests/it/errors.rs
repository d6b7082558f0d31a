//! Malformed requests get an error status, one line that names the error, and a clean close.

use serverd::{HttpServer, Request, Response, Router};

use crate::harness::{Backend, Server, on_every_backend, serve};

fn hello<B: Backend>() -> Server {
    serve::<B, _>(|| HttpServer::new(|_| Response::text("hello")))
}

on_every_backend! {
    over_tls_too:

    fn an_error_response_follows_the_responses_to_earlier_requests<B>() {
        let server = hello::<B>();
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n<script>\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n");
        client.finish();
        assert_eq!(client.response().text(), "hello");
        let response = client.response();
        assert_eq!(response.status, 400);
        assert_eq!(response.header("content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(response.header("connection"), Some("close"));
        assert!(response.header("date").is_some());
        assert_eq!(response.text(), "invalid header name or whitespace before the colon\n");
        client.expect_close();
    }

    fn error_bodies_are_not_sniffed<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::with(Router::new().get("/panic", |_| -> Response { panic!("intentional") })).allow_hosts(["x"])
        });
        for (request, status) in [
            ("GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET /<script> HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET /none HTTP/1.1\r\nHost: x\r\n\r\n", 404),
            ("POST /panic HTTP/1.1\r\nHost: x\r\n\r\n", 405),
            ("POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n", 404),
            ("GET / HTTP/1.1\r\nHost: y\r\n\r\n", 421),
            ("GET /panic HTTP/1.1\r\nHost: x\r\n\r\n", 500),
        ] {
            let mut client = server.connect();
            client.send(request);
            let response = client.response();
            assert_eq!(response.status, status, "{request}");
            assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{request}");
        }
    }

    fn only_listed_hosts_are_served<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::new(|request: &Request<'_>| Response::text(request.body().to_vec()))
                .allow_hosts(["localhost", ".Example.com"])
        });
        let mut client = server.connect();
        for (target, host, status) in [
            ("/", "localhost:8080", 200),
            ("/", "LOCALHOST", 200),
            ("/", "evil.test", 421),
            ("/", "a.example.COM", 200),
            ("/", "notexample.com", 421),
            // The target takes precedence over the Host header (RFC 9112 section 3.2.2).
            ("http://evil.test/", "localhost", 421),
            ("http://localhost/", "evil.test", 200),
        ] {
            client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(client.response().status, status, "{target} {host}");
        }
        client.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.response().text(), "hi");
        client.send("POST / HTTP/1.1\r\nHost: evil.test\r\nContent-Length: 2\r\n\r\nhi");
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (421, Some("close")));
        client.expect_close();
        let mut client = server.connect();
        client.send("GET / HTTP/1.0\r\n\r\n");
        assert_eq!(client.response().status, 421);
        client.expect_close();
    }

    fn a_client_that_is_still_sending_reads_the_error_response_instead_of_a_reset<B>() {
        let server = hello::<B>();
        for _ in 0..5 {
            let mut client = server.connect();
            client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 90000000\r\n\r\n");
            for _ in 0..20 {
                client.send(vec![b'x'; 50_000]);
            }
            assert_eq!(client.response().status, 413);
            client.finish().expect_close();
        }
    }

    fn an_error_response_to_head_has_no_body<B>() {
        let server = hello::<B>();
        let long = "a".repeat(9000);
        for (request, status) in [
            ("HEAD / HTTP/1.1\r\n\r\n".to_owned(), 400),
            ("HEAD /a#b HTTP/1.1\r\n".to_owned(), 400),
            ("HEAD / HTTP/2.0\r\n".to_owned(), 505),
            (format!("HEAD /{long}"), 414),
            ("\r\nHEAD / HTTP/1.1\r\nHost: x\r\n x\r\n".to_owned(), 400),
            ("HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n".to_owned(), 413),
            ("HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5g\r\n".to_owned(), 400),
        ] {
            let mut client = server.connect();
            for chunk in request.as_bytes().chunks(100) {
                client.send(chunk);
            }
            let response = client.response_to("HEAD");
            assert_eq!(response.status, status, "{}", request.escape_debug());
            assert!(response.header("content-length").is_some_and(|length| length != "0"));
            client.finish().expect_close();
        }
        // An earlier HEAD request does not affect the error response.
        let mut client = server.connect();
        client.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n");
        assert_eq!(client.response_to("HEAD").status, 200);
        assert!(!client.response().text().is_empty());
    }

    fn each_error_has_its_status<B>() {
        let server = hello::<B>();
        let long = "a".repeat(9000);
        let headers = "A: b\r\n".repeat(101);
        for (request, status) in [
            ("\u{16}\u{3}".to_owned(), 400),
            ("GET / HTTP/1.1\r\nHost: x\n\n".to_owned(), 400),
            ("GET / HTTP/2.0\r\n\r\n".to_owned(), 505),
            (format!("GET /{long} HTTP/1.1\r\n"), 414),
            (long.clone(), 501),
            (format!("({long}"), 400),
            (format!("GET / HTTP/1.1\r\nHost: x\r\n{headers}"), 431),
            (format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}", long.repeat(8)), 431),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".to_owned(), 501),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n".to_owned(), 400),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding:\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nExpect: a-cow\r\n\r\n".to_owned(), 417),
            ("GET https://x/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 421),
        ] {
            let mut client = server.connect();
            client.send(&request);
            assert_eq!(client.response().status, status, "{}", request.escape_debug());
            client.finish().expect_close();
        }
    }
}
