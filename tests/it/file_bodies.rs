//! File response bodies: every announced byte is sent, or the client can detect that the body is incomplete.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serverd::{HttpServer, LoopLimits, Part, Request, Response, StatusCode, Timeouts};

use crate::harness::{
    Backend, Client, RESET_READS_AS_EOF, Random, Server, on_every_backend, serve, serve_with, skipped_under_wine,
};

/// More than the socket buffers hold.
const LARGE: usize = 8 << 20;

/// A temporary file, removed on drop.
struct Temporary(PathBuf);

impl Temporary {
    fn new(content: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let path = std::env::temp_dir().join(format!("serverd-file-{}-{number}", std::process::id()));
        fs::write(&path, content).expect("a temporary file");
        Temporary(path)
    }

    fn open(&self) -> Arc<File> {
        Arc::new(File::open(&self.0).expect("existing file"))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn content(len: usize) -> Vec<u8> {
    Random::new(len as u64).bytes(len)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// Serves a file: `/` all of it, `/from-to` a part, `/parts` some parts; anything else is plain text.
fn handler(file: Arc<File>) -> impl FnMut(&Request<'_>) -> Response {
    let len = file.metadata().expect("an open file").len();
    move |request| {
        let file = Arc::clone(&file);
        match &request.path()[1..] {
            "" => Response::file(file, 0..len),
            "none" => Response::file(file, 0..len).with_status(StatusCode::NO_CONTENT),
            "parts" => Response::parts([
                Part::from("first: "),
                Part::File(Arc::clone(&file), 0..1000),
                Part::from("\nlast: "),
                Part::File(Arc::clone(&file), len - 70_000..len),
                Part::File(file, 5..5),
                Part::from("\nthe end"),
            ]),
            range => match range.split_once('-') {
                Some((from, to)) => {
                    Response::file(file, from.parse().expect("a number")..to.parse().expect("a number"))
                }
                None => Response::text("plain"),
            },
        }
    }
}

fn serve_file<B: Backend>(file: &Temporary) -> Server {
    let file = file.open();
    serve::<B, _>(move || HttpServer::new(handler(file)))
}

on_every_backend! {
    over_tls_too:

    fn a_file_is_sent_completely_with_its_length<B>() {
        for len in [0, 1, 4096, 100_000, 1_000_000] {
            let whole = content(len);
            let file = Temporary::new(&whole);
            let server = serve_file::<B>(&file);
            let response = server.connect().send(get("/")).response();
            assert_eq!((response.status, response.header("content-length")), (200, Some(len.to_string().as_str())));
            assert!(response.body == whole, "{len} bytes differ");
        }
    }

    fn a_range_sends_exactly_those_bytes<B>() {
        let whole = content(300_000);
        let file = Temporary::new(&whole);
        let server = serve_file::<B>(&file);
        let mut client = server.connect();
        for (from, to) in [(0, 0), (0, 1), (17, 18), (4095, 4097), (99_999, 300_000), (299_999, 300_000)] {
            let response = client.send(get(&format!("/{from}-{to}"))).response();
            assert!(response.body == whole[from..to], "{from}..{to}");
        }
    }

    fn parts_are_sent_in_order<B>() {
        let whole = content(200_000);
        let file = Temporary::new(&whole);
        let server = serve_file::<B>(&file);
        let expected =
            [b"first: ", &whole[..1000], b"\nlast: ", &whole[130_000..], b"\nthe end"].concat();
        let mut client = server.connect();
        client.send(get("/parts").repeat(3)).send(get("/plain"));
        for _ in 0..3 {
            assert!(client.response().body == expected);
        }
        assert_eq!(client.response().text(), "plain");
    }

    fn requests_pipelined_after_a_file_are_answered_in_order<B>() {
        let whole = content(400_000);
        let file = Temporary::new(&whole);
        let server = serve_file::<B>(&file);
        let mut client = server.connect();
        client.send([get("/plain"), get("/"), get("/plain"), get("/7-300007"), get("/"), get("/plain")].concat());
        assert_eq!(client.response().text(), "plain");
        assert!(client.response().body == whole);
        assert_eq!(client.response().text(), "plain");
        assert!(client.response().body == whole[7..300_007]);
        assert!(client.response().body == whole);
        assert_eq!(client.response().text(), "plain");
    }

    fn head_requests_and_statuses_without_content_send_no_file_data<B>() {
        let file = Temporary::new(&content(50_000));
        let server = serve_file::<B>(&file);
        let mut client = server.connect();
        client.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n").send(get("/none")).send(get("/plain"));
        let head = client.response_to("HEAD");
        assert_eq!(head.header("content-length"), Some("50000"));
        let none = client.response();
        assert_eq!((none.status, none.header("content-length")), (204, None));
        assert_eq!(client.response().text(), "plain");
    }

    fn http_1_0_gets_the_file_and_a_close<B>() {
        let whole = content(150_000);
        let file = Temporary::new(&whole);
        let server = serve_file::<B>(&file);
        let mut client = server.connect();
        client.send("GET / HTTP/1.0\r\n\r\n");
        assert!(client.response().body == whole);
        client.expect_close();
    }

    fn a_half_closed_client_gets_the_whole_file<B>() {
        let whole = content(LARGE);
        let file = Temporary::new(&whole);
        let server = serve_file::<B>(&file);
        let mut client = server.connect();
        client.send(get("/")).finish();
        assert!(client.response().body == whole);
        client.expect_close();
    }

    fn a_file_truncated_while_being_sent_closes_the_connection<B>() {
        let whole = content(LARGE);
        let file = Temporary::new(&whole);
        let server = serve_file::<B>(&file);
        let mut client = server.connect();
        client.send(get("/"));
        client.read(1000);
        let handle = fs::OpenOptions::new().write(true).open(&file.0).expect("existing file");
        handle.set_len(1000).expect("writable file");
        let mut rest = Vec::new();
        let outcome = client.try_read_to_end(&mut rest);
        assert!(outcome.is_err() || rest.len() < whole.len(), "the body was padded");
        let kind = outcome.map_err(|error| error.kind());
        // Over TLS, the end of the stream is not an orderly one.
        let expected = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::UnexpectedEof];
        assert!(kind.map_or_else(|kind| expected.contains(&kind), |()| true), "unexpected result: {kind:?}");
        // Other connections are not affected.
        assert_eq!(server.connect().send(get("/plain")).response().text(), "plain");
    }

    fn a_replaced_or_removed_file_is_sent_unchanged<B>() {
        let whole = content(LARGE);
        let file = Temporary::new(&whole);
        let server = serve_file::<B>(&file);
        let mut client = server.connect();
        client.send(get("/"));
        let new = Temporary::new(b"new");
        // Windows does not rename over an open file.
        if fs::rename(&new.0, &file.0).is_ok() {
            fs::remove_file(&file.0).expect("existing file");
        }
        assert!(client.response().body == whole);
    }

    fn a_client_that_disconnects_affects_no_other<B>() {
        let whole = content(LARGE);
        let file = Temporary::new(&whole);
        let server = serve_file::<B>(&file);
        for _ in 0..5 {
            let mut client = server.connect();
            client.send(get("/"));
            client.read(100_000);
            client.reset();
            let mut client = server.connect();
            client.send(get("/"));
            client.read(100_000);
        }
        assert!(server.connect().send(get("/")).response().body == whole);
    }

    fn a_client_that_reads_nothing_is_reset<B>() {
        if skipped_under_wine(RESET_READS_AS_EOF) {
            return;
        }
        let whole = content(LARGE);
        let file = Temporary::new(&whole);
        let file = file.open();
        let timeouts = Timeouts::default().write(Duration::from_millis(100));
        let server = serve_with::<B, _>(timeouts, LoopLimits::default(), move || HttpServer::new(handler(file)));
        let mut client = server.connect();
        client.send(get("/"));
        // The drain completes only once the connection is closed, although the client reads nothing.
        server.drain();
        let mut rest = Vec::new();
        let outcome = client.try_read_to_end(&mut rest);
        assert!(outcome.is_err() && rest.len() < whole.len());
    }

    fn a_large_file_does_not_stall_other_clients<B>() {
        let file = Temporary::new(b"");
        // A sparse file, which uses no disk space.
        fs::OpenOptions::new().write(true).open(&file.0).and_then(|file| file.set_len(100 << 20)).expect("sparse file");
        let server = serve_file::<B>(&file);
        let mut greedy = server.connect();
        greedy.send(get("/"));
        let mut received = greedy.read(1000).len();
        let mut modest = server.connect();
        // Each response arrives although the other client has not read all of its file.
        for _ in 0..50 {
            assert_eq!(modest.send(get("/plain")).response().text(), "plain");
            received += greedy.read(10_000).len();
        }
        assert!(received < 100 << 20);
    }

    fn a_drain_finishes_a_download<B>() {
        let whole = content(LARGE);
        let file = Temporary::new(&whole);
        let server = serve_file::<B>(&file);
        let mut client = server.connect();
        client.send(get("/"));
        let first = client.read(1000);
        server.handle.drain();
        let rest = client.read_to_end();
        assert!(rest.len() + first.len() > whole.len() && rest.ends_with(&whole[1_000_000..]));
        server.drain();
    }

    #[plain_tcp]
    fn a_file_that_cannot_be_read_closes_the_connection<B>() {
        let file = Temporary::new(&content(1000));
        let unreadable = Arc::new(fs::OpenOptions::new().write(true).open(&file.0).expect("existing file"));
        let server = serve::<B, _>(move || HttpServer::new(handler(unreadable)));
        let mut client = server.connect();
        client.send(get("/"));
        let head = client.read_to_end();
        assert!(head.ends_with(b"\r\n\r\n") || head.is_empty(), "part of a body was sent");
        assert_eq!(server.connect().send(get("/plain")).response().text(), "plain");
    }

    #[plain_tcp]
    fn a_thousand_concurrent_downloads_complete<B>() {
        crate::harness::raise_fd_limit();
        let whole = content(256 << 10);
        let file = Temporary::new(&whole);
        let server = serve_file::<B>(&file);
        // All clients send their request before any of them reads, so all downloads run concurrently.
        let mut clients: Vec<Client> = (0..client_count()).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(get("/"));
        }
        for client in &mut clients {
            assert!(client.response().body == whole);
        }
    }
}

/// Number of concurrent clients. Select on Windows and the file descriptor limits of some systems allow fewer.
fn client_count() -> usize {
    if cfg!(target_os = "linux") { 1000 } else { 100 }
}
