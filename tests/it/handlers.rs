//! Handlers: the requests they receive, the responses they return, panics and invalid responses.

use std::sync::LazyLock;

use bytes::Bytes;
use serverd::{HeaderError, HttpServer, Request, Response, StatusCode};

use crate::harness::{Backend, Server, on_every_backend, serve};

/// A large body. Shared by all tests, as creating it takes long without optimisation.
static LARGE: LazyLock<Bytes> =
    LazyLock::new(|| (0..8 << 20).map(|number: u32| (number % 251) as u8).collect::<Vec<_>>().into());

fn server<B: Backend>() -> Server {
    serve::<B, _>(|| {
        HttpServer::with(|request: &Request<'_>| match request.path() {
            "/panic" => panic!("requested by the test"),
            "/large" => Response::new(StatusCode::OK).body(LARGE.clone()),
            "/no-content" => Response::new(StatusCode::NO_CONTENT).body("never sent"),
            "/reset-content" => Response::text("never sent").with_status(StatusCode::RESET_CONTENT),
            "/upgrade" => Response::new(StatusCode::UPGRADE_REQUIRED).header("Upgrade", "h2c"),
            "/not-modified" => Response::text("never sent").with_status(StatusCode::NOT_MODIFIED),
            "/continue" => Response::new(StatusCode::CONTINUE),
            "/split" => Response::text("x").header("X-A", "b\r\nSet-Cookie: stolen"),
            "/headers" => {
                Response::new(StatusCode::OK).header("X-A", " b ").header("Content-Type", "image/png").body("png")
            }
            "/bad-type" => Response::text("x").content_type("a/b\r\nSet-Cookie: stolen"),
            "/types" => {
                Response::text("x").header("content-type", "a/b").content_type("c/d").header("Content-TYPE", "e/f")
            }
            "/deferred-types" => {
                let (response, responder) = Response::later();
                std::thread::spawn(move || responder.respond(Response::text("x").header("X-A", "b")));
                response.header("Content-Type", "e/f")
            }
            "/close" => Response::text("bye").close(),
            "/host" => Response::text(request.host().unwrap_or("none").to_owned()),
            _ => {
                let headers: Vec<_> = request.headers().map(|(name, value)| [name, b"=", value].concat()).collect();
                let peer = request.peer_addr().expect("the connection is open");
                let (method, target) = (request.method(), request.target());
                let (path, query) = (request.path(), request.query());
                Response::text(format!(
                    "{method} {target} {path} {query:?} {:?} {} {}",
                    request.version(),
                    String::from_utf8_lossy(&headers.join(&b',')),
                    peer.ip()
                ))
            }
        })
    })
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

on_every_backend! {
    over_tls_too:

    fn the_handler_sees_the_request_as_received<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send("GET /a%20b?c=d&e HTTP/1.0\r\nhOsT: h:1\r\nX-A: \t b c \r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(
            client.response().text(),
            "GET /a%20b?c=d&e /a%20b Some(\"c=d&e\") Http10 hOsT=h:1,X-A=b c,Connection=keep-alive 127.0.0.1"
        );
        client.send("GET http://other.test:8/host HTTP/1.1\r\nHost: x\r\n\r\n").send(get("/host"));
        assert_eq!(client.response().text(), "other.test:8");
        assert_eq!(client.response().text(), "x");
    }

    fn a_panic_fails_only_its_own_request_and_connection<B>() {
        let server = server::<B>();
        let mut other = server.connect();
        for _ in 0..10 {
            let mut client = server.connect();
            client.send(get("/")).send(get("/panic")).send(get("/"));
            assert_eq!(client.response().status, 200);
            let response = client.response();
            assert_eq!((response.status, response.header("connection")), (500, Some("close")));
            client.finish().expect_close();
            other.send(get("/"));
            assert_eq!(other.response().status, 200);
        }
    }

    fn a_content_type_with_a_line_break_is_never_sent_even_after_valid_ones<B>() {
        let server = server::<B>();
        for _ in 0..3 {
            let mut client = server.connect();
            client.send(get("/")).send(get("/headers")).send(get("/")).send(get("/bad-type"));
            for _ in 0..3 {
                assert_eq!(client.response().status, 200);
            }
            let response = client.response();
            assert_eq!((response.status, response.header("set-cookie")), (500, None));
            client.finish().expect_close();
        }
    }

    fn a_slow_reader_receives_a_large_body_completely<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send(get("/large")).send(get("/large")).send(get("/close"));
        for _ in 0..2 {
            let response = client.response();
            assert_eq!(response.body.len(), 8 << 20);
            assert!(response.body == LARGE[..]);
        }
        assert_eq!(client.response().text(), "bye");
        client.expect_close();
    }

    fn no_content_statuses_have_no_body<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send(get("/no-content")).send(get("/not-modified")).send(get("/reset-content")).send("HEAD /large HTTP/1.1\r\nHost: x\r\n\r\n").send(get("/close"));
        let response = client.response();
        assert_eq!((response.status, response.header("content-length")), (204, None));
        let response = client.response();
        assert_eq!((response.status, response.header("content-type")), (304, None));
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (205, ""));
        assert_eq!((response.header("content-length"), response.header("content-type")), (Some("0"), None));
        assert_eq!(client.response_to("HEAD").header("content-length"), Some("8388608"));
        assert_eq!(client.response().text(), "bye");
    }

    fn a_successful_connect_response_has_no_length_and_closes_the_connection<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n").finish();
        let rest = String::from_utf8(client.read_to_end()).expect("ASCII");
        assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with("\r\nConnection: close\r\n\r\n"), "{rest}");
        assert!(!rest.contains("Content-Length"), "{rest}");
    }

    fn an_invalid_response_becomes_500<B>() {
        let server = server::<B>();
        for path in ["/split", "/continue"] {
            let mut client = server.connect();
            client.send(get(path));
            let response = client.response();
            assert_eq!(response.status, 500);
            assert!(!response.head.contains("stolen"));
            client.expect_close();
        }
    }

    fn the_upgrade_header_is_listed_in_connection<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send(get("/upgrade"));
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (426, Some("upgrade")));
    }

    fn headers_are_trimmed_and_content_type_is_sent_once<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send(get("/headers"));
        let response = client.response();
        assert!(response.head.contains("\r\nX-A: b\r\n"), "{}", response.head);
        assert_eq!(response.head.matches("Content-Type: ").count(), 1);
        assert_eq!(response.header("content-type"), Some("image/png"));
        for path in ["/types", "/deferred-types"] {
            client.send(get(path));
            let response = client.response();
            assert_eq!(response.head.to_lowercase().matches("content-type: ").count(), 1, "{}", response.head);
            assert_eq!(response.header("content-type"), Some("e/f"));
        }
    }
}

#[test]
fn an_invalid_header_is_rejected_with_the_reason() {
    let mut response = Response::text("x");
    for (name, value, error) in [
        ("", "b", HeaderError::Name),
        ("a b", "b", HeaderError::Name),
        ("a:", "b", HeaderError::Name),
        ("a", "b\rc", HeaderError::Value),
        ("a", "b\nc", HeaderError::Value),
        ("a", "b\0c", HeaderError::Value),
        ("content-LENGTH", "1", HeaderError::Reserved),
        ("Transfer-Encoding", "chunked", HeaderError::Reserved),
        ("Connection", "close", HeaderError::Reserved),
        ("Date", "now", HeaderError::Reserved),
    ] {
        assert_eq!(response.try_header(name, value.as_bytes()), Err(error), "{name:?}: {value:?}");
    }
    assert_eq!(response.try_header("X-A", b"\xff obs-text"), Ok(()));
}
