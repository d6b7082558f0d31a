//! What handlers may do, and what becomes of it when they do wrong.

use serverd::{FieldError, HttpServer, Request, Response, StatusCode};

use crate::harness::{Backend, Server, on_every_backend, serve};

fn server<B: Backend>() -> Server {
    let large = bytes::Bytes::from((0..8 << 20).map(|number: u32| (number % 251) as u8).collect::<Vec<_>>());
    serve::<B, _>(|| {
        HttpServer::new(move |request: &Request<'_>| match request.path() {
            "/panic" => panic!("as asked"),
            "/large" => Response::new(StatusCode::OK).body(large.clone()),
            "/no-content" => Response::new(StatusCode::NO_CONTENT).body("never sent"),
            "/reset-content" => Response::text("never sent").with_status(StatusCode::RESET_CONTENT),
            "/upgrade" => Response::new(StatusCode::UPGRADE_REQUIRED).field("Upgrade", "h2c"),
            "/not-modified" => Response::text("never sent").with_status(StatusCode::NOT_MODIFIED),
            "/continue" => Response::new(StatusCode::CONTINUE),
            "/split" => Response::text("x").field("X-A", "b\r\nSet-Cookie: stolen"),
            "/fields" => {
                Response::new(StatusCode::OK).field("X-A", " b ").field("Content-Type", "image/png").body("png")
            }
            "/bad-type" => Response::text("x").content_type("a/b\r\nSet-Cookie: stolen"),
            "/types" => {
                Response::text("x").field("content-type", "a/b").content_type("c/d").field("Content-TYPE", "e/f")
            }
            "/later-types" => {
                let (response, responder) = Response::later();
                std::thread::spawn(move || responder.respond(Response::text("x").field("X-A", "b")));
                response.field("Content-Type", "e/f")
            }
            "/close" => Response::text("bye").close(),
            "/host" => Response::text(request.host().unwrap_or("none").to_owned()),
            _ => {
                let fields: Vec<_> = request.fields().map(|(name, value)| [name, b"=", value].concat()).collect();
                let peer = request.peer().expect("a peer");
                let (method, target) = (request.method(), request.target());
                let (path, query) = (request.path(), request.query());
                Response::text(format!(
                    "{method} {target} {path} {query:?} {:?} {} {}",
                    request.version(),
                    String::from_utf8_lossy(&fields.join(&b',')),
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
    fn a_request_is_shown_as_it_came<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send("GET /a%20b?c=d&e HTTP/1.0\r\nhOsT: h:1\r\nX-A: \t b c \r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(
            client.answer().text(),
            "GET /a%20b?c=d&e /a%20b Some(\"c=d&e\") Http10 hOsT=h:1,X-A=b c,Connection=keep-alive 127.0.0.1"
        );
        client.send("GET http://other.test:8/host HTTP/1.1\r\nHost: x\r\n\r\n").send(get("/host"));
        assert_eq!(client.answer().text(), "other.test:8");
        assert_eq!(client.answer().text(), "x");
    }

    fn a_panic_costs_its_own_request_and_connection_only<B>() {
        let server = server::<B>();
        let mut polite = server.connect();
        for _ in 0..10 {
            let mut client = server.connect();
            client.send(get("/")).send(get("/panic")).send(get("/"));
            assert_eq!(client.answer().status, 200);
            let answer = client.answer();
            assert_eq!((answer.status, answer.field("connection")), (500, Some("close")));
            client.finish().expect_close();
            polite.send(get("/"));
            assert_eq!(polite.answer().status, 200);
        }
    }

    fn a_content_type_that_would_split_the_head_is_never_sent_whatever_was_sent_before<B>() {
        let server = server::<B>();
        for _ in 0..3 {
            let mut client = server.connect();
            client.send(get("/")).send(get("/fields")).send(get("/")).send(get("/bad-type"));
            for _ in 0..3 {
                assert_eq!(client.answer().status, 200);
            }
            let answer = client.answer();
            assert_eq!((answer.status, answer.field("set-cookie")), (500, None));
            client.finish().expect_close();
        }
    }

    fn a_large_body_comes_whole_to_a_reader_that_pauses<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send(get("/large")).send(get("/large")).send(get("/close"));
        for _ in 0..2 {
            let answer = client.answer();
            assert_eq!(answer.body.len(), 8 << 20);
            assert!(answer.body.iter().zip(0_u32..).all(|(&byte, number)| u32::from(byte) == number % 251));
        }
        assert_eq!(client.answer().text(), "bye");
        client.expect_close();
    }

    fn statuses_without_content_have_none<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send(get("/no-content")).send(get("/not-modified")).send(get("/reset-content")).send("HEAD /large HTTP/1.1\r\nHost: x\r\n\r\n").send(get("/close"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("content-length")), (204, None));
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("content-type")), (304, None));
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (205, ""));
        assert_eq!((answer.field("content-length"), answer.field("content-type")), (Some("0"), None));
        assert_eq!(client.answer_to("HEAD").field("content-length"), Some("8388608"));
        assert_eq!(client.answer().text(), "bye");
    }

    fn a_success_of_connect_has_no_length_and_ends_the_connection<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n").finish();
        let rest = String::from_utf8(client.rest()).expect("ASCII");
        assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with("\r\nConnection: close\r\n\r\n"), "{rest}");
        assert!(!rest.contains("Content-Length"), "{rest}");
    }

    fn a_response_that_must_not_be_sent_becomes_500<B>() {
        let server = server::<B>();
        for path in ["/split", "/continue"] {
            let mut client = server.connect();
            client.send(get(path));
            let answer = client.answer();
            assert_eq!(answer.status, 500);
            assert!(!answer.head.contains("stolen"));
            client.expect_close();
        }
    }

    fn upgrade_is_named_in_connection<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send(get("/upgrade"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("connection")), (426, Some("upgrade")));
    }

    fn fields_are_written_once_and_trimmed<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send(get("/fields"));
        let answer = client.answer();
        assert!(answer.head.contains("\r\nX-A: b\r\n"), "{}", answer.head);
        assert_eq!(answer.head.matches("Content-Type: ").count(), 1);
        assert_eq!(answer.field("content-type"), Some("image/png"));
        for path in ["/types", "/later-types"] {
            client.send(get(path));
            let answer = client.answer();
            assert_eq!(answer.head.to_lowercase().matches("content-type: ").count(), 1, "{}", answer.head);
            assert_eq!(answer.field("content-type"), Some("e/f"));
        }
    }
}

#[test]
fn a_field_that_must_not_be_sent_is_refused_with_the_reason() {
    let mut response = Response::text("x");
    for (name, value, error) in [
        ("", "b", FieldError::Name),
        ("a b", "b", FieldError::Name),
        ("a:", "b", FieldError::Name),
        ("a", "b\rc", FieldError::Value),
        ("a", "b\nc", FieldError::Value),
        ("a", "b\0c", FieldError::Value),
        ("content-LENGTH", "1", FieldError::Owned),
        ("Transfer-Encoding", "chunked", FieldError::Owned),
        ("Connection", "close", FieldError::Owned),
        ("Date", "now", FieldError::Owned),
    ] {
        assert_eq!(response.try_field(name, value.as_bytes()), Err(error), "{name:?}: {value:?}");
    }
    assert_eq!(response.try_field("X-A", b"\xff obs-text"), Ok(()));
}
