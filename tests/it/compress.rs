//! Content is compressed for who wants that, on other threads, and nothing else is.

use std::io::Read;

use serverd::{HttpServer, Pool, Request, Response, StatusCode, layers};

use crate::harness::{Answer, Backend, Client, Random, Server, on_every_backend, serve};

fn text() -> String {
    let add = |text: String, number: u32| text + &format!("line {number} of a text that is not too short\n");
    (0..20_000).fold(String::new(), add)
}

/// What each path is answered with, before it is compressed.
fn content(request: &Request<'_>) -> Response {
    let page = || Response::text(text()).field("ETag", "\"strong\"").field("Accept-Ranges", "bytes");
    match request.path() {
        "/text" => page(),
        "/weak" => Response::text(text()).field("ETag", "W/\"weak\""),
        "/short" => Response::text("short\n".repeat(100)),
        "/image" => Response::new(StatusCode::OK).content_type("image/png").body(text()),
        "/part" => page().with_status(StatusCode::PARTIAL_CONTENT).field("Content-Range", "bytes 0-9/10"),
        "/coded" => page().field("Content-Encoding", "br"),
        "/fixed" => page().field("Cache-Control", "max-age=1, no-transform"),
        "/unchanged" => Response::new(StatusCode::NOT_MODIFIED).field("ETag", "\"strong\""),
        "/pieces" => Response::stream(text().lines().map(|line| format!("{line}\n")).collect::<Vec<_>>())
            .content_type("text/plain"),
        "/reader" => {
            Response::reader(std::io::Cursor::new(text())).content_type("text/plain").length(text().len() as u64)
        }
        "/broken" => Response::reader(std::io::Cursor::new(text())).content_type("text/plain").length(u64::MAX / 2),
        "/later" => {
            let (response, responder) = Response::later();
            std::thread::spawn(move || responder.respond(text()));
            response
        }
        "/pushed" => {
            let (response, sender) = Response::channel();
            std::thread::spawn(move || {
                let _ = sender.send_blocking(text());
                sender.finish();
            });
            response.content_type("text/plain")
        }
        _ => Response::error(StatusCode::NOT_FOUND, text()),
    }
}

fn server<B: Backend>() -> Server {
    serve::<B, _>(|| HttpServer::with(layers::compress(content, Pool::new(1, 16).expect("a thread"))))
}

fn ask(client: &mut Client, method: &str, path: &str, accept: &str) -> Answer {
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {accept}\r\n\r\n"));
    client.answer_to(method)
}

fn gunzip(bytes: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(bytes).read_to_string(&mut text).expect("gzip");
    text
}

fn unzstd(bytes: &[u8]) -> String {
    let mut text = String::new();
    ruzstd::decoding::StreamingDecoder::new(bytes).expect("zstd").read_to_string(&mut text).expect("zstd");
    text
}

on_every_backend! {
    fn text_is_compressed_as_the_client_prefers<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        for (accept, coding) in [
            ("gzip, deflate, br, zstd", Some("gzip")),
            ("zstd", Some("zstd")),
            ("gzip;q=0.5, zstd", Some("zstd")),
            ("zstd;q=0, *", Some("gzip")),
            ("identity, gzip;q=0.9", None),
            ("br", None),
            ("", None),
        ] {
            let answer = ask(&mut client, "GET", "/text", accept);
            assert_eq!(answer.field("content-encoding"), coding, "{accept}");
            assert_eq!(answer.field("vary"), Some("Accept-Encoding"), "{accept}");
            let back = match coding {
                Some("gzip") => gunzip(&answer.body),
                Some(_) => unzstd(&answer.body),
                None => answer.text(),
            };
            assert!(back == text(), "{accept}");
            let told = [answer.field("etag"), answer.field("accept-ranges"), answer.field("content-length")];
            if coding.is_some() {
                assert!(answer.body.len() < text().len() / 4);
                assert_eq!(told, [Some("W/\"strong\""), None, None], "{accept}");
            } else {
                assert_eq!(told, [Some("\"strong\""), Some("bytes"), Some(text().len().to_string().as_str())], "{accept}");
            }
        }
    }

    fn what_gains_nothing_or_may_not_is_left_as_it_is<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        for (path, vary) in [
            ("/short", None),
            ("/image", None),
            ("/part", Some("Accept-Encoding")),
            ("/fixed", None),
            ("/pushed", None),
            ("/unchanged", Some("Accept-Encoding")),
        ] {
            let answer = ask(&mut client, "GET", path, "gzip");
            assert_eq!((answer.field("content-encoding"), answer.field("vary")), (None, vary), "{path}");
        }
        assert_eq!(ask(&mut client, "GET", "/coded", "gzip").field("content-encoding"), Some("br"));
    }

    fn any_body_is_compressed_that_can_be_read<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        for path in ["/pieces", "/reader", "/later", "/unknown", "/weak"] {
            let answer = ask(&mut client, "GET", path, "gzip");
            assert_eq!(answer.field("content-encoding"), Some("gzip"), "{path}");
            assert!(gunzip(&answer.body) == text(), "{path}");
        }
        assert_eq!(ask(&mut client, "GET", "/weak", "gzip").field("etag"), Some("W/\"weak\""));
        let head = ask(&mut client, "HEAD", "/text", "gzip");
        assert_eq!((head.field("content-encoding"), head.field("content-length")), (Some("gzip"), None));
        assert_eq!(ask(&mut client, "GET", "/short", "gzip").status, 200, "HEAD leaves nothing behind");
    }

    fn half_a_body_is_not_taken_for_the_whole<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send("GET /broken HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n");
        let seen = client.rest();
        assert!(seen.starts_with(b"HTTP/1.1 200 ") && !seen.ends_with(b"\r\n0\r\n\r\n"));
    }

    fn one_thread_serves_many_who_do_not_read<B>() {
        let letters = || Random::new(7).bytes(5_000_000).into_iter().map(|byte| char::from(b' ' + byte % 64));
        let page = move || letters().collect::<String>();
        let server = serve::<B, _>(move || {
            let page = page();
            let content = move |_: &Request<'_>| page.clone();
            HttpServer::with(layers::compress(content, Pool::new(1, 64).expect("a thread")))
        });
        let mut slow: Vec<Client> = (0..4).map(|_| server.connect()).collect();
        for client in &mut slow {
            client.send("GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n");
        }
        let quick = ask(&mut server.connect(), "GET", "/", "gzip");
        assert!(gunzip(&quick.body) == page());
        for mut client in slow.drain(..1) {
            assert!(gunzip(&client.answer().body) == page());
        }
    }
}
