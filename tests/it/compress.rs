//! On-the-fly compression: selection of responses and codings, and use of the thread pool.

use std::io::Read;
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use serverd::{HttpServer, Pool, Request, Response, StatusCode, layers};

use crate::harness::{Backend, Client, Random, RawResponse, Server, on_every_backend, serve, wait_for};

fn text() -> String {
    let add = |text: String, number: u32| text + &format!("line {number} of a text that compresses well\n");
    (0..20_000).fold(String::new(), add)
}

/// Serves a different kind of response on each path; the layer under test compresses them.
fn content(request: &Request<'_>) -> Response {
    let page = || Response::text(text()).header("ETag", "\"strong\"").header("Accept-Ranges", "bytes");
    match request.path() {
        "/text" => page(),
        "/weak" => Response::text(text()).header("ETag", "W/\"weak\""),
        "/short" => Response::text("short\n".repeat(100)),
        "/image" => Response::new(StatusCode::OK).content_type("image/png").body(text()),
        "/part" => page().with_status(StatusCode::PARTIAL_CONTENT).header("Content-Range", "bytes 0-9/10"),
        "/coded" => page().header("Content-Encoding", "br"),
        "/fixed" => page().header("Cache-Control", "max-age=1, no-transform"),
        "/not-modified" => Response::new(StatusCode::NOT_MODIFIED).header("ETag", "\"strong\""),
        "/pieces" => Response::stream(text().lines().map(|line| format!("{line}\n")).collect::<Vec<_>>())
            .content_type("text/plain"),
        "/reader" => {
            Response::reader(std::io::Cursor::new(text())).content_type("text/plain").length(text().len() as u64)
        }
        "/broken" => Response::reader(std::io::Cursor::new(text())).content_type("text/plain").length(u64::MAX / 2),
        "/deferred" => {
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
    serve::<B, _>(|| HttpServer::with(layers::compress(content, Pool::new(1, 16).expect("starting the pool"))))
}

fn fetch(client: &mut Client, method: &str, path: &str, accept: &str) -> RawResponse {
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {accept}\r\n\r\n"));
    client.response_to(method)
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
    over_tls_too:

    fn text_is_compressed_with_the_coding_the_client_prefers<B>() {
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
            let response = fetch(&mut client, "GET", "/text", accept);
            assert_eq!(response.header("content-encoding"), coding, "{accept}");
            assert_eq!(response.header("vary"), Some("Accept-Encoding"), "{accept}");
            let decoded = match coding {
                Some("gzip") => gunzip(&response.body),
                Some(_) => unzstd(&response.body),
                None => response.text(),
            };
            assert!(decoded == text(), "{accept}");
            let headers = ["etag", "accept-ranges", "content-length"].map(|name| response.header(name));
            if coding.is_some() {
                assert!(response.body.len() < text().len() / 4);
                assert_eq!(headers, [Some("W/\"strong\""), None, None], "{accept}");
            } else {
                let length = text().len().to_string();
                assert_eq!(headers, [Some("\"strong\""), Some("bytes"), Some(length.as_str())], "{accept}");
            }
        }
    }

    fn unsuitable_responses_are_not_compressed<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        for (path, vary) in [
            ("/short", None),
            ("/image", None),
            ("/part", Some("Accept-Encoding")),
            ("/fixed", None),
            ("/pushed", None),
            ("/not-modified", Some("Accept-Encoding")),
        ] {
            let response = fetch(&mut client, "GET", path, "gzip");
            assert_eq!((response.header("content-encoding"), response.header("vary")), (None, vary), "{path}");
        }
        assert_eq!(fetch(&mut client, "GET", "/coded", "gzip").header("content-encoding"), Some("br"));
    }

    fn every_kind_of_readable_body_is_compressed<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        for path in ["/pieces", "/reader", "/deferred", "/unknown", "/weak"] {
            let response = fetch(&mut client, "GET", path, "gzip");
            assert_eq!(response.header("content-encoding"), Some("gzip"), "{path}");
            assert!(gunzip(&response.body) == text(), "{path}");
        }
        assert_eq!(fetch(&mut client, "GET", "/weak", "gzip").header("etag"), Some("W/\"weak\""));
        let head = fetch(&mut client, "HEAD", "/text", "gzip");
        assert_eq!((head.header("content-encoding"), head.header("content-length")), (Some("gzip"), None));
        assert_eq!(fetch(&mut client, "GET", "/short", "gzip").status, 200, "no body follows a response to HEAD");
    }

    fn a_truncated_compressed_body_is_detectable<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send("GET /broken HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n");
        let seen = client.read_to_end();
        assert!(seen.starts_with(b"HTTP/1.1 200 ") && !seen.ends_with(b"\r\n0\r\n\r\n"));
    }

    fn the_memory_of_compressed_responses_is_bounded<B>() {
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let server = serve::<B, _>(move || {
            // On a thread of the pool, the content is not available before the release.
            let content = move |_: &Request<'_>| {
                let released = Arc::clone(&released);
                let page = move |_| {
                    let on_pool = std::thread::current().name().is_some_and(|name| name.starts_with("pool-"));
                    if on_pool {
                        let _ = released.lock().expect("not poisoned").recv();
                    }
                    "x".repeat(2000)
                };
                Response::stream((0..1).map(page)).content_type("text/plain")
            };
            HttpServer::with(layers::compress(content, Pool::new(1, 1000).expect("starting the pool")))
        });
        let request = |client: &mut Client| {
            client.send("GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n");
        };
        // 96 MiB, of which a response takes 768 KiB.
        let mut clients: Vec<Client> = (0..128).map(|_| server.connect()).collect();
        clients.iter_mut().for_each(request);
        let mut late = server.connect();
        // The heads arrive before the content.
        for client in &mut clients {
            let head = std::iter::from_fn(|| Some(client.line()).filter(|line| line != "\r")).collect::<String>();
            assert!(head.contains("Content-Encoding: gzip"), "{head}");
        }
        let response = fetch(&mut late, "GET", "/", "gzip");
        assert_eq!((response.header("content-encoding"), response.body.len()), (None, 2000));
        let head = fetch(&mut late, "HEAD", "/", "gzip");
        assert_eq!(head.header("content-encoding"), Some("gzip"), "HEAD needs no memory");
        drop(release);
        clients.truncate(1);
        wait_for("the memory is not available again", || {
            fetch(&mut late, "GET", "/", "gzip").header("content-encoding") == Some("gzip")
        });
    }

    fn slow_clients_do_not_occupy_the_compression_thread<B>() {
        let mut page = Random::new(7).bytes(5_000_000);
        for byte in &mut page {
            *byte = b' ' + *byte % 64;
        }
        let page = Bytes::from(page);
        let body = page.clone();
        let server = serve::<B, _>(move || {
            let content = move |_: &Request<'_>| Response::text(body.clone());
            HttpServer::with(layers::compress(content, Pool::new(1, 64).expect("starting the pool")))
        });
        let mut slow: Vec<Client> = (0..4).map(|_| server.connect()).collect();
        for client in &mut slow {
            client.send("GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n");
        }
        let response = fetch(&mut server.connect(), "GET", "/", "gzip");
        assert!(gunzip(&response.body) == page);
        for mut client in slow.drain(..1) {
            assert!(gunzip(&client.response().body) == page);
        }
    }
}
