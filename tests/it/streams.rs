//! Streaming response bodies: complete, bounded in memory, and never framed as complete when truncated.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serverd::{
    HttpServer, LoopLimits, Request, Response, SendError, Sender, ServerEvent, StatusCode, Timeouts, Trailers,
};

use crate::harness::{
    Backend, Client, RESET_READS_AS_EOF, Server, WAIT_MAX, on_every_backend, serve, serve_with, skipped_under_wine,
    wait_for,
};

const PIECE: usize = 10_000;
const PIECES: usize = 1_000;

fn pattern(number: usize) -> u8 {
    u8::try_from(number % 251).expect("small")
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// Sends a message when it is dropped.
struct NotifyOnDrop(mpsc::Sender<()>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

fn get10(path: &str) -> String {
    format!("GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
}

fn checksum() -> Trailers {
    let mut trailers = Trailers::new();
    trailers.push("X-Checksum", "42").expect("a valid header");
    trailers
}

fn server<B: Backend>() -> Server {
    serve::<B, _>(|| {
        HttpServer::new(|request: &Request<'_>| match request.path() {
            "/pieces" => Response::stream((0..5).map(|number| format!("{number},"))),
            "/length" => Response::stream(["hello", "world"]).length(10),
            "/long" => Response::stream(["hello", "world", "and more"]).length(10),
            "/short" => Response::stream(["hello"]).length(10),
            "/reader" => Response::reader(std::io::repeat(b'r').take(100_000)),
            "/none" => Response::stream(["never sent"]).with_status(StatusCode::NO_CONTENT),
            "/trailers" => Response::stream(["body"]).trailers(&["X-Checksum"], checksum),
            "/fail" => {
                let pieces = ["good", "bad"]
                    .map(|piece| if piece == "bad" { Err(std::io::Error::other("intended")) } else { Ok(piece) });
                Response::try_stream(pieces)
            }
            "/panic" => Response::stream(std::iter::from_fn(|| -> Option<&'static str> { panic!("intended") })),
            _ => Response::text("plain"),
        })
    })
}

/// Serves streams whose senders are passed to the test.
fn channel<B: Backend>() -> (Server, mpsc::Receiver<Sender>) {
    let (send, senders) = mpsc::channel();
    let server = serve::<B, _>(move || {
        HttpServer::new(move |request: &Request<'_>| {
            if request.path() == "/plain" {
                return Response::text("plain");
            }
            let (response, sender) = Response::channel_with_capacity(1000);
            send.send(sender).expect("open channel");
            response
        })
    });
    (server, senders)
}

/// Pushes pieces until the socket and the queue are full, while the loop keeps running. Returns the number of bytes
/// pushed.
fn push_until_blocked(server: &Server, sender: &Sender, bytes: usize) -> usize {
    let mut other = server.connect();
    let (mut pushed, mut refused) = (0, 0);
    while refused < 20 {
        match sender.send(vec![b'x'; bytes]) {
            Ok(()) => (pushed, refused) = (pushed + bytes, 0),
            Err(SendError::Full(piece)) => {
                assert_eq!(piece.len(), bytes);
                refused += 1;
                other.send(get("/plain"));
                assert_eq!(other.response().text(), "plain");
            }
            Err(error) => panic!("{error}"),
        }
    }
    pushed
}

fn open(client: &mut Client, senders: &mpsc::Receiver<Sender>) -> Sender {
    client.send(get("/"));
    senders.recv_timeout(WAIT_MAX).expect("a stream")
}

/// Reads until the connection ends, whether closed or reset.
fn read_until_closed(mut client: Client) -> Vec<u8> {
    let mut seen = Vec::new();
    // A reset ends the connection as well.
    let _ = client.try_read_to_end(&mut seen);
    seen
}

on_every_backend! {
    over_tls_too:

    fn pieces_are_sent_chunked_or_with_the_declared_length<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send(get("/pieces") + &get("/length") + &get("/long") + &get("/reader") + &get("/none") + &get("/"));
        let response = client.response();
        assert_eq!((response.header("transfer-encoding"), response.header("content-length")), (Some("chunked"), None));
        assert_eq!(response.text(), "0,1,2,3,4,");
        for _ in 0..2 {
            let response = client.response();
            assert_eq!((response.header("transfer-encoding"), response.header("content-length")), (None, Some("10")));
            assert_eq!(response.text(), "helloworld");
        }
        assert!(client.response().body == vec![b'r'; 100_000]);
        let none = client.response();
        assert_eq!((none.status, none.header("transfer-encoding")), (204, None));
        assert_eq!(client.response().text(), "plain");
    }

    fn http_1_0_gets_a_stream_delimited_by_the_close<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send(get10("/pieces"));
        let all = String::from_utf8(client.read_to_end()).expect("ASCII");
        assert!(!all.contains("Transfer-Encoding") && !all.contains("Content-Length"), "{all}");
        assert!(all.contains("Connection: close\r\n") && all.ends_with("\r\n\r\n0,1,2,3,4,"), "{all}");
        let mut client = server.connect();
        client.send(get10("/length"));
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("connection")), ("helloworld", Some("keep-alive")));
        client.send(get10("/fail"));
        assert!(client.try_read_to_end(&mut Vec::new()).is_err(), "a truncated body ended like a complete one");
    }

    fn head_requests_get_only_the_head_of_a_stream<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        for path in ["/pieces", "/length", "/panic"] {
            client.send(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
            let response = client.response_to("HEAD");
            assert_eq!((response.status, response.header("connection")), (200, None));
        }
        client.send(get("/"));
        assert_eq!(client.response().text(), "plain");
    }

    fn trailers_are_sent_to_clients_that_accept_them<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send("GET /trailers HTTP/1.1\r\nHost: x\r\nTE: deflate;q=0.5, trailers\r\nConnection: TE\r\n\r\n");
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("trailer")), ("body", Some("X-Checksum")));
        assert_eq!(response.trailers, "X-Checksum: 42\r\n");
        client.send(get("/trailers"));
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("trailer")), ("body", None));
        assert_eq!(response.trailers, "");
    }

    fn a_truncated_body_is_never_framed_as_complete<B>() {
        let server = server::<B>();
        for (path, ends) in [("/fail", "\r\n4\r\ngood\r\n"), ("/short", "\r\n\r\nhello"), ("/panic", "\r\n\r\n")] {
            let mut client = server.connect();
            // The response before the truncated one arrives completely.
            client.send(get("/") + &get(path));
            assert_eq!(client.response().text(), "plain");
            let seen = String::from_utf8(client.read_to_end()).expect("ASCII");
            assert!(seen.ends_with(ends), "{path}: {seen}");
        }
        let mut client = server.connect();
        client.send(get("/"));
        assert_eq!(client.response().text(), "plain");
    }

    #[plain_tcp]
    fn a_large_stream_is_produced_at_the_pace_of_a_slow_reader<B>() {
        let produced = Arc::new(AtomicUsize::new(0));
        let inner = Arc::clone(&produced);
        let server = serve::<B, _>(move || {
            HttpServer::new(move |request: &Request<'_>| {
                if request.path() == "/plain" {
                    return Response::text("plain");
                }
                let inner = Arc::clone(&inner);
                Response::stream((0..PIECES).map(move |number| {
                    inner.fetch_add(1, Ordering::SeqCst);
                    vec![pattern(number); PIECE]
                }))
            })
        });
        let mut slow = server.connect();
        socket2::SockRef::from(&slow.socket).set_recv_buffer_size(200_000).expect("open socket");
        slow.send(get("/large"));
        slow.socket.peek(&mut [0]).expect("the stream begins");
        // Other requests are served while the stream waits for its reader.
        let mut other = server.connect();
        let mut before = usize::MAX;
        loop {
            for _ in 0..20 {
                other.send(get("/plain"));
                assert_eq!(other.response().text(), "plain");
            }
            let now = produced.load(Ordering::SeqCst);
            if now == before {
                break;
            }
            before = now;
        }
        assert!(before < PIECES, "the whole body was produced before it was read");
        let body = slow.response().body;
        assert_eq!(body.len(), PIECES * PIECE);
        let has_pattern = |(number, piece): (usize, &[u8])| piece.iter().all(|&byte| byte == pattern(number));
        assert!(body.chunks(PIECE).enumerate().all(has_pattern));
    }

    fn a_stream_is_not_cut_off_by_the_request_timeouts<B>() {
        let limit = Some(Duration::from_millis(200));
        let timeouts = Timeouts::default().silent(limit).head(limit).body(limit).idle(limit);
        let server = serve_with::<B, _>(timeouts, LoopLimits::default(), || {
            HttpServer::new(|_: &Request<'_>| {
                Response::stream((0..300).map(|number| {
                    // Slower than the client, which reads each piece at once, and in total longer than the timeouts.
                    std::thread::sleep(Duration::from_millis(1));
                    vec![pattern(number); 1000]
                }))
            })
        });
        let connect_and_send = |pieces: [&str; 2]| {
            let mut client = server.connect();
            client.send(pieces[0]).send(pieces[1]);
            client
        };
        let whole = connect_and_send(["GET / HTTP/1.1\r\nHost: x\r\n\r\n", ""]);
        let head = connect_and_send(["GET / HTTP/1.1\r\nHo", "st: x\r\n\r\n"]);
        let body = connect_and_send(["POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na", "b"]);
        let mut old = connect_and_send(["GET / HTTP/1.0\r\n\r\n", ""]);
        for mut client in [whole, head, body] {
            assert_eq!(client.response().body.len(), 300_000);
        }
        assert!(old.read_to_end().len() > 300_000);
    }

    fn the_write_timeout_ends_an_unread_stream<B>() {
        let timeouts = Timeouts::default().write(Duration::from_millis(100));
        let (send, ended) = mpsc::channel();
        let server = serve_with::<B, _>(timeouts, LoopLimits::default(), move || {
            HttpServer::new(move |_: &Request<'_>| {
                let guard = NotifyOnDrop(send.clone());
                Response::stream(std::iter::repeat_with(move || {
                    let _ = &guard;
                    vec![b'x'; 10_000]
                }))
            })
        });
        let mut client = server.connect();
        client.send(get("/"));
        ended.recv_timeout(WAIT_MAX).expect("the source is dropped");
    }

    fn a_blocked_stream_is_notified_of_a_drain<B>() {
        let (server, senders) = channel::<B>();
        let mut client = server.connect();
        socket2::SockRef::from(&client.socket).set_recv_buffer_size(200_000).expect("open socket");
        let sender = open(&mut client, &senders);
        let (notify, notified) = mpsc::channel();
        sender.on_drain(move || notify.send(()).expect("open channel"));
        let sent = push_until_blocked(&server, &sender, 400_000);
        server.handle.drain();
        notified.recv_timeout(WAIT_MAX).expect("drain callback");
        sender.finish();
        assert_eq!(client.response().body.len(), sent);
        server.drain();
    }

    fn the_sender_of_a_discarded_response_is_closed<B>() {
        let (send, senders) = mpsc::channel();
        let server = serve::<B, _>(move || {
            HttpServer::new(move |request: &Request<'_>| {
                let (response, sender) = Response::channel_with_capacity(100);
                send.send(sender).expect("open channel");
                match request.path() {
                    "/replaced" => Response::text("instead"),
                    "/header" => response.header("not a name", ""),
                    "/body" => response.body("instead"),
                    _ => panic!("intended"),
                }
            })
        });
        for (path, status) in [("/replaced", 200), ("/header", 500), ("/body", 200), ("/panic", 500)] {
            let mut client = server.connect();
            client.send(get(path));
            assert_eq!(client.response().status, status);
            let sender = senders.recv_timeout(WAIT_MAX).expect("a sender");
            while sender.send_blocking(vec![b'x'; 1000]).is_ok() {}
            assert!(sender.is_closed());
        }
    }

    fn a_queue_is_bounded_and_reports_when_it_has_drained<B>() {
        let (server, senders) = channel::<B>();
        let mut client = server.connect();
        socket2::SockRef::from(&client.socket).set_recv_buffer_size(200_000).expect("open socket");
        let sender = open(&mut client, &senders);
        let (notify, drained) = mpsc::channel();
        sender.on_drained(move || notify.send(()).expect("open channel"));
        let mut sent = 0;
        while !sender.is_full() {
            sent += push_until_blocked(&server, &sender, 400);
            assert!(sent < 64 << 20);
        }
        while drained.try_recv().is_ok() {}
        let reader = std::thread::spawn(move || client.response().body.len());
        drained.recv_timeout(WAIT_MAX).expect("drained callback");
        sender.send_blocking(vec![b'y'; 50_000]).expect("open stream");
        sender.finish();
        assert_eq!(reader.join().expect("read"), sent + 50_000);
    }

    fn a_sender_pushes_from_its_thread_and_pipelined_requests_wait<B>() {
        let (server, senders) = channel::<B>();
        let mut client = server.connect();
        let sender = open(&mut client, &senders);
        client.send(get("/plain"));
        let thread = std::thread::spawn(move || {
            for number in 0..20_000 {
                sender.send_blocking(format!("{number}\n")).expect("open stream");
            }
            sender.finish();
        });
        let expected: Vec<String> = (0..20_000).map(|number| format!("{number}\n")).collect();
        assert!(client.response().text() == expected.concat());
        assert_eq!(client.response().text(), "plain");
        thread.join().expect("no panic");
    }

    fn a_sender_is_notified_when_its_client_disconnects<B>() {
        if skipped_under_wine(RESET_READS_AS_EOF) {
            return;
        }
        let (server, senders) = channel::<B>();
        let mut client = server.connect();
        let sender = open(&mut client, &senders);
        let (send, notified) = mpsc::channel();
        sender.on_closed(move || send.send(()).expect("open channel"));
        sender.send("some").expect("open");
        client.read(20);
        client.reset();
        notified.recv_timeout(WAIT_MAX).expect("closed callback");
        assert!(sender.is_closed());
        assert!(matches!(sender.send("more"), Err(SendError::Closed(_))));
        assert!(matches!(sender.send_blocking("more"), Err(SendError::Closed(_))));
    }

    fn dropping_a_sender_truncates_the_body<B>() {
        let (server, senders) = channel::<B>();
        let mut client = server.connect();
        let sender = open(&mut client, &senders);
        sender.send("half").expect("open");
        drop(sender);
        let seen = String::from_utf8(read_until_closed(client)).expect("ASCII");
        assert!(seen.ends_with("\r\n4\r\nhalf\r\n"), "{seen}");
    }

    fn an_endless_stream_is_notified_of_a_drain_and_can_finish<B>() {
        let (server, senders) = channel::<B>();
        let mut client = server.connect();
        let sender = open(&mut client, &senders);
        sender.send("first ").expect("open");
        let (send, notified) = mpsc::channel();
        sender.on_drain(move || send.send(()).expect("open channel"));
        server.handle.drain();
        notified.recv_timeout(WAIT_MAX).expect("drain callback");
        assert!(sender.is_draining());
        sender.send("last").expect("open");
        sender.finish();
        assert_eq!(client.response().text(), "first last");
        client.expect_close();
        server.drain();
    }

    fn server_sent_events_have_the_standard_format<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::new(|request: &Request<'_>| {
                let last = request.header("last-event-id").map(|id| String::from_utf8_lossy(id).into_owned());
                let (response, events) = Response::events();
                let first = ServerEvent::new(last.unwrap_or_default()).id("2").name("begin\nid: 9");
                events.send(&first).expect("open");
                events.keep_alive().expect("open");
                events.send(&ServerEvent::new("a\r\nb")).expect("open");
                events.finish();
                response
            })
        });
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 1\r\n\r\n");
        let response = client.response();
        assert_eq!(response.header("content-type"), Some("text/event-stream"));
        assert_eq!(response.text(), "id: 2\nevent: begin id: 9\ndata: 1\n\n:\n\ndata: a\ndata: b\n\n");
    }

    fn clients_that_disconnect_at_any_stage_of_a_stream_leak_nothing<B>() {
        let (server, senders) = channel::<B>();
        for stage in 0..6 {
            let mut client = server.connect();
            let sender = open(&mut client, &senders);
            for _ in 0..stage {
                // The client may be gone already, or slow.
                let _ = sender.send(vec![b'x'; 300]);
            }
            if stage % 2 == 0 {
                client.read(10 * stage);
                client.reset();
            } else {
                drop(client);
            }
            // A client that has closed without a reset is detected by sending to it.
            wait_for("the client is not missed", || {
                let _ = sender.send("more");
                sender.is_closed()
            });
        }
        let mut client = server.connect();
        client.send(get("/plain"));
        assert_eq!(client.response().text(), "plain");
    }
}
