//! Bodies made while they are sent: whole, bounded, and never a half taken for the whole.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serverd::r#loop::Limits;
use serverd::{HttpServer, Request, Response, SendError, Sender, ServerEvent, StatusCode, Timeouts, Trailers};

use crate::harness::{
    Backend, Client, PATIENCE, RESET_IS_AN_END, Server, on_every_backend, serve, serve_with, skipped_under_wine,
};

const PIECE: usize = 10_000;
const PIECES: usize = 1_000;

fn pattern(number: usize) -> u8 {
    u8::try_from(number % 251).expect("small")
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// Tells when it is dropped.
struct Told(mpsc::Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

fn get10(path: &str) -> String {
    format!("GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
}

fn checksum() -> Trailers {
    let mut trailers = Trailers::new();
    trailers.push("X-Checksum", "42").expect("a good field");
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
                    .map(|piece| if piece == "bad" { Err(std::io::Error::other("as asked")) } else { Ok(piece) });
                Response::try_stream(pieces)
            }
            "/panic" => Response::stream(std::iter::from_fn(|| -> Option<&'static str> { panic!("as asked") })),
            _ => Response::text("plain"),
        })
    })
}

/// Gives every sender to the test.
fn channel<B: Backend>() -> (Server, mpsc::Receiver<Sender>) {
    let (send, senders) = mpsc::channel();
    let server = serve::<B, _>(move || {
        HttpServer::new(move |request: &Request<'_>| {
            if request.path() == "/plain" {
                return Response::text("plain");
            }
            let (response, sender) = Response::channel_of(1000);
            send.send(sender).expect("the test waits");
            response
        })
    });
    (server, senders)
}

/// Pushes pieces until neither the socket nor the queue takes more, although the loop turns. Returns what was pushed.
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
                assert_eq!(other.answer().text(), "plain");
            }
            Err(SendError::Closed(_)) => panic!("somebody reads"),
        }
    }
    pushed
}

fn open(client: &mut Client, senders: &mpsc::Receiver<Sender>) -> Sender {
    client.send(get("/"));
    senders.recv_timeout(PATIENCE).expect("a stream")
}

/// Reads what comes until the connection ends, in whatever way.
fn until_the_end(mut client: Client) -> Vec<u8> {
    let mut seen = Vec::new();
    // A reset is an end as well.
    let _ = client.socket.read_to_end(&mut seen);
    seen
}

on_every_backend! {
    fn pieces_go_out_in_chunks_or_with_the_length_that_was_told<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send(get("/pieces") + &get("/length") + &get("/long") + &get("/reader") + &get("/none") + &get("/"));
        let answer = client.answer();
        assert_eq!((answer.field("transfer-encoding"), answer.field("content-length")), (Some("chunked"), None));
        assert_eq!(answer.text(), "0,1,2,3,4,");
        for _ in 0..2 {
            let answer = client.answer();
            assert_eq!((answer.field("transfer-encoding"), answer.field("content-length")), (None, Some("10")));
            assert_eq!(answer.text(), "helloworld");
        }
        assert!(client.answer().body == vec![b'r'; 100_000]);
        let none = client.answer();
        assert_eq!((none.status, none.field("transfer-encoding")), (204, None));
        assert_eq!(client.answer().text(), "plain");
    }

    fn http_1_0_gets_a_stream_up_to_the_close<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send(get10("/pieces"));
        let all = String::from_utf8(client.rest()).expect("ASCII");
        assert!(!all.contains("Transfer-Encoding") && !all.contains("Content-Length"), "{all}");
        assert!(all.contains("Connection: close\r\n") && all.ends_with("\r\n\r\n0,1,2,3,4,"), "{all}");
        let mut client = server.connect();
        client.send(get10("/length"));
        let answer = client.answer();
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("helloworld", Some("keep-alive")));
        client.send(get10("/fail"));
        assert!(client.socket.read_to_end(&mut Vec::new()).is_err(), "a half was ended like a whole");
    }

    fn head_gets_the_head_of_a_stream<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        for path in ["/pieces", "/length", "/panic"] {
            client.send(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
            let answer = client.answer_to("HEAD");
            assert_eq!((answer.status, answer.field("connection")), (200, None));
        }
        client.send(get("/"));
        assert_eq!(client.answer().text(), "plain");
    }

    fn trailers_are_sent_to_those_who_take_them<B>() {
        let server = server::<B>();
        let mut client = server.connect();
        client.send("GET /trailers HTTP/1.1\r\nHost: x\r\nTE: deflate;q=0.5, trailers\r\nConnection: TE\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.text().as_str(), answer.field("trailer")), ("body", Some("X-Checksum")));
        assert_eq!(answer.trailers, "X-Checksum: 42\r\n");
        client.send(get("/trailers"));
        let answer = client.answer();
        assert_eq!((answer.text().as_str(), answer.field("trailer"), answer.trailers.as_str()), ("body", None, ""));
    }

    fn a_body_that_breaks_off_is_not_taken_for_whole<B>() {
        let server = server::<B>();
        for (path, ends) in [("/fail", "\r\n4\r\ngood\r\n"), ("/short", "\r\n\r\nhello"), ("/panic", "\r\n\r\n")] {
            let mut client = server.connect();
            // What was answered before arrives whole.
            client.send(get("/") + &get(path));
            assert_eq!(client.answer().text(), "plain");
            let seen = String::from_utf8(client.rest()).expect("ASCII");
            assert!(seen.ends_with(ends), "{path}: {seen}");
        }
        let mut client = server.connect();
        client.send(get("/"));
        assert_eq!(client.answer().text(), "plain");
    }

    fn a_large_stream_to_a_slow_reader_is_made_as_it_is_read<B>() {
        let made = Arc::new(AtomicUsize::new(0));
        let inner = Arc::clone(&made);
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
        socket2::SockRef::from(&slow.socket).set_recv_buffer_size(200_000).expect("alive");
        slow.send(get("/large"));
        slow.socket.peek(&mut [0]).expect("it began");
        // The others go on, and the stream waits for its reader.
        let mut other = server.connect();
        let mut before = usize::MAX;
        loop {
            for _ in 0..20 {
                other.send(get("/plain"));
                assert_eq!(other.answer().text(), "plain");
            }
            let now = made.load(Ordering::SeqCst);
            if now == before {
                break;
            }
            before = now;
        }
        assert!(before < PIECES, "everything was made before it was read");
        let body = slow.answer().body;
        assert_eq!(body.len(), PIECES * PIECE);
        assert!(body.chunks(PIECE).enumerate().all(|(number, piece)| piece.iter().all(|&byte| byte == pattern(number))));
    }

    fn a_stream_outlasts_the_limits_of_what_came_before_it<B>() {
        let limit = Some(Duration::from_millis(200));
        let timeouts = Timeouts { silent: limit, head: limit, body: limit, idle: limit, ..Timeouts::default() };
        let server = serve_with::<B, _>(timeouts, Limits::default(), || {
            HttpServer::new(|_: &Request<'_>| {
                Response::stream((0..300).map(|number| {
                    // Slower than its client, who takes each piece at once, and longer than the limits in all.
                    std::thread::sleep(Duration::from_millis(1));
                    vec![pattern(number); 1000]
                }))
            })
        });
        let ask = |pieces: [&str; 2]| {
            let mut client = server.connect();
            client.send(pieces[0]).send(pieces[1]);
            client
        };
        let whole = ask(["GET / HTTP/1.1\r\nHost: x\r\n\r\n", ""]);
        let head = ask(["GET / HTTP/1.1\r\nHo", "st: x\r\n\r\n"]);
        let body = ask(["POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na", "b"]);
        let mut old = ask(["GET / HTTP/1.0\r\n\r\n", ""]);
        for mut client in [whole, head, body] {
            assert_eq!(client.answer().body.len(), 300_000);
        }
        assert!(old.rest().len() > 300_000);
    }

    fn a_stream_that_nobody_reads_ends_by_the_write_limit<B>() {
        let timeouts = Timeouts { write: Some(Duration::from_millis(100)), ..Timeouts::default() };
        let (send, ended) = mpsc::channel();
        let server = serve_with::<B, _>(timeouts, Limits::default(), move || {
            HttpServer::new(move |_: &Request<'_>| {
                let told = Told(send.clone());
                Response::stream(std::iter::repeat_with(move || {
                    let _ = &told;
                    vec![b'x'; 10_000]
                }))
            })
        });
        let mut client = server.connect();
        client.send(get("/"));
        ended.recv_timeout(PATIENCE).expect("the source is dropped");
    }

    fn a_stream_that_is_blocked_hears_of_the_drain<B>() {
        let (server, senders) = channel::<B>();
        let mut client = server.connect();
        socket2::SockRef::from(&client.socket).set_recv_buffer_size(200_000).expect("alive");
        let sender = open(&mut client, &senders);
        let (tell, heard) = mpsc::channel();
        sender.on_drain(move || tell.send(()).expect("the test waits"));
        let sent = push_until_blocked(&server, &sender, 400_000);
        server.handle.drain();
        heard.recv_timeout(PATIENCE).expect("the drain is told");
        sender.finish();
        assert_eq!(client.answer().body.len(), sent);
        server.drain();
    }

    fn who_pushes_into_an_answer_that_is_thrown_away_hears_of_it<B>() {
        let (send, senders) = mpsc::channel();
        let server = serve::<B, _>(move || {
            HttpServer::new(move |request: &Request<'_>| {
                let (response, sender) = Response::channel_of(100);
                send.send(sender).expect("the test waits");
                match request.path() {
                    "/replaced" => Response::text("instead"),
                    "/field" => response.field("not a name", ""),
                    "/body" => response.body("instead"),
                    _ => panic!("as asked"),
                }
            })
        });
        for (path, status) in [("/replaced", 200), ("/field", 500), ("/body", 200), ("/panic", 500)] {
            let mut client = server.connect();
            client.send(get(path));
            assert_eq!(client.answer().status, status);
            let sender = senders.recv_timeout(PATIENCE).expect("a sender");
            while sender.send_blocking(vec![b'x'; 1000]).is_ok() {}
            assert!(sender.is_closed());
        }
    }

    fn a_queue_is_bounded_and_tells_when_it_has_room<B>() {
        let (server, senders) = channel::<B>();
        let mut client = server.connect();
        socket2::SockRef::from(&client.socket).set_recv_buffer_size(200_000).expect("alive");
        let sender = open(&mut client, &senders);
        let (tell, drained) = mpsc::channel();
        sender.on_drained(move || tell.send(()).expect("the test waits"));
        let mut sent = 0;
        while !sender.is_full() {
            sent += push_until_blocked(&server, &sender, 400);
            assert!(sent < 64 << 20);
        }
        while drained.try_recv().is_ok() {}
        let reader = std::thread::spawn(move || client.answer().body.len());
        drained.recv_timeout(PATIENCE).expect("room is told");
        sender.send_blocking(vec![b'y'; 50_000]).expect("somebody reads");
        sender.finish();
        assert_eq!(reader.join().expect("read"), sent + 50_000);
    }

    fn a_sender_pushes_from_its_thread_and_requests_behind_wait<B>() {
        let (server, senders) = channel::<B>();
        let mut client = server.connect();
        let sender = open(&mut client, &senders);
        client.send(get("/plain"));
        let thread = std::thread::spawn(move || {
            for number in 0..20_000 {
                sender.send_blocking(format!("{number}\n")).expect("somebody reads");
            }
            sender.finish();
        });
        let expected: Vec<String> = (0..20_000).map(|number| format!("{number}\n")).collect();
        assert!(client.answer().text() == expected.concat());
        assert_eq!(client.answer().text(), "plain");
        thread.join().expect("no panic");
    }

    fn a_sender_hears_that_its_client_is_gone<B>() {
        if skipped_under_wine(RESET_IS_AN_END) {
            return;
        }
        let (server, senders) = channel::<B>();
        let mut client = server.connect();
        let sender = open(&mut client, &senders);
        let (send, heard) = mpsc::channel();
        sender.on_closed(move || send.send(()).expect("the test waits"));
        sender.send("some").expect("open");
        client.read(20);
        client.reset();
        heard.recv_timeout(PATIENCE).expect("the end is told");
        assert!(sender.is_closed());
        assert!(matches!(sender.send("more"), Err(SendError::Closed(_))));
        assert!(matches!(sender.send_blocking("more"), Err(SendError::Closed(_))));
    }

    fn a_sender_that_is_dropped_breaks_the_body_off<B>() {
        let (server, senders) = channel::<B>();
        let mut client = server.connect();
        let sender = open(&mut client, &senders);
        sender.send("half").expect("open");
        drop(sender);
        let seen = String::from_utf8(until_the_end(client)).expect("ASCII");
        assert!(seen.ends_with("\r\n4\r\nhalf\r\n"), "{seen}");
    }

    fn a_stream_without_end_sees_the_drain_and_can_finish<B>() {
        let (server, senders) = channel::<B>();
        let mut client = server.connect();
        let sender = open(&mut client, &senders);
        sender.send("first ").expect("open");
        let (send, heard) = mpsc::channel();
        sender.on_drain(move || send.send(()).expect("the test waits"));
        server.handle.drain();
        heard.recv_timeout(PATIENCE).expect("the drain is told");
        assert!(sender.is_draining());
        sender.send("last").expect("open");
        sender.finish();
        assert_eq!(client.answer().text(), "first last");
        client.expect_close();
        server.drain();
    }

    fn events_have_their_form<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::new(|request: &Request<'_>| {
                let last = request.field("last-event-id").map(|id| String::from_utf8_lossy(id).into_owned());
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
        let answer = client.answer();
        assert_eq!(answer.field("content-type"), Some("text/event-stream"));
        assert_eq!(answer.text(), "id: 2\nevent: begin id: 9\ndata: 1\n\n:\n\ndata: a\ndata: b\n\n");
    }

    fn clients_that_vanish_at_every_stage_of_a_stream_leave_nothing_behind<B>() {
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
            // One who only closed is found out by what is sent.
            while !sender.is_closed() {
                let _ = sender.send("more");
                std::thread::yield_now();
            }
        }
        let mut client = server.connect();
        client.send(get("/plain"));
        assert_eq!(client.answer().text(), "plain");
    }
}
