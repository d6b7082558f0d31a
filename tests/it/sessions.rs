//! Connections that leave HTTP: upgrades, tunnels, and their refusals.

use std::sync::mpsc;
use std::time::Duration;

use serverd::{
    BodyMode, CloseInfo, Flow, HttpServer, LoopLimits, Phase, Request, Response, Session, SessionWaker, Timeouts,
    Wakeup, Wire,
};

use crate::harness::{Backend, Client, Server, WAIT_MAX, on_every_backend, serve, serve_with};

const UPGRADE: &str = "GET /up HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: lines\r\n\r\n";
const CONNECT: &str = "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n";

/// More than is written to a connection in a turn, and little enough for the buffers of a socket.
const MORE_THAN_A_TURN: usize = 300 * 1024;

/// Echoes lines in capital letters. Reports its waker and its end to the test.
struct Lines {
    wakers: mpsc::Sender<SessionWaker>,
    ends: mpsc::Sender<String>,
    waker: Option<SessionWaker>,
}

impl Session for Lines {
    fn open(&mut self, waker: SessionWaker) {
        // The test may not be interested.
        let _ = self.wakers.send(waker.clone());
        self.waker = Some(waker);
    }

    fn receive(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        while let Some(end) = memchr::memchr(b'\n', wire.input()) {
            let line = wire.input()[..=end].to_ascii_uppercase();
            wire.consume(end + 1);
            match &line[..] {
                b"BYE\n" => return Flow::Close,
                b"MUCH\n" => wire.output().extend(&vec![b'x'; 4 << 20]),
                b"MUCH AND WAKE\n" => {
                    wire.output().extend(&vec![b'x'; MORE_THAN_A_TURN]);
                    self.waker.as_ref().expect("opened").wake();
                }
                line => wire.output().extend(line),
            }
        }
        Flow::Read(Phase::Idle)
    }

    fn message(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        wire.output().extend(b"woken\n");
        Flow::Unchanged
    }

    fn output_drained(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        wire.output().extend(b"drained\n");
        Flow::Unchanged
    }

    fn timer(&mut self, phase: Phase, wire: &mut Wire<'_, Wakeup>) -> Flow {
        wire.output().extend(format!("{phase:?}\n").as_bytes());
        Flow::Close
    }

    fn drain(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        wire.output().extend(b"going down\n");
        Flow::Close
    }

    fn closed(self: Box<Self>, info: CloseInfo) {
        let _ = self.ends.send(format!("{:?}", info.reason));
    }
}

struct Reports {
    wakers: mpsc::Receiver<SessionWaker>,
    ends: mpsc::Receiver<String>,
}

fn start<B: Backend>(timeouts: Timeouts) -> (Server, Reports) {
    let ((wakers_send, wakers), (ends_send, ends)) = (mpsc::channel(), mpsc::channel());
    let server = serve_with::<B, _>(timeouts, LoopLimits::default(), move || {
        HttpServer::with(move |request: &Request<'_>| {
            let session = Lines { wakers: wakers_send.clone(), ends: ends_send.clone(), waker: None };
            match (request.method(), request.path()) {
                ("CONNECT", "a.test:443") | ("GET", "/tunnel") => Response::tunnel(session),
                ("CONNECT", _) => Response::text("refused").with_status(serverd::StatusCode::FORBIDDEN),
                (_, "/up") => Response::upgrade("lines", session).header("X-Own", "1"),
                (_, "/later") => {
                    let (response, responder) = Response::later();
                    std::thread::spawn(move || responder.respond(Response::upgrade("lines", session)));
                    response
                }
                (_, "/suspended") => {
                    let (response, responder) = Response::suspend();
                    std::thread::spawn(move || responder.respond(Response::upgrade("lines", session)));
                    response
                }
                _ => Response::text("plain"),
            }
        })
    });
    (server, Reports { wakers, ends })
}

/// Ends as soon as it has begun.
struct Ended;

impl Session for Ended {
    fn receive(&mut self, _: &mut Wire<'_, Wakeup>) -> Flow {
        Flow::Close
    }
}

/// Upgrades requests after it has passed their bodies to a sink or a reader.
struct Streamed;

impl serverd::Handler for Streamed {
    fn head(&mut self, head: &serverd::RequestHead<'_>) -> BodyMode {
        if head.path() == "/stream" {
            return BodyMode::fold(100, (), |(), _| {}, |()| Response::upgrade("lines", Ended));
        }
        BodyMode::read(100, |mut reader, responder| {
            std::thread::spawn(move || {
                std::io::Read::read_to_end(&mut reader, &mut Vec::new()).expect("the body");
                responder.respond(Response::upgrade("lines", Ended));
            });
        })
    }

    fn call(&mut self, _: &Request<'_>) -> Response {
        Response::text("no body\n")
    }
}

/// Reads a response head.
fn head(client: &mut Client) -> String {
    let lines = std::iter::repeat_with(|| client.line()).take_while(|line| line != "\r");
    lines.map(|line| line + "\n").collect()
}

on_every_backend! {
    fn an_upgrade_hands_over_the_connection_and_the_bytes_behind_the_request<B>() {
        let (server, reports) = start::<B>(Timeouts::default());
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned() + UPGRADE + "one\ntw");
        assert_eq!(client.response().text(), "plain");
        let head = head(&mut client);
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        for line in ["Upgrade: lines\r\n", "Connection: Upgrade\r\n", "X-Own: 1\r\n"] {
            assert!(head.contains(line), "{head}");
        }
        assert!(!head.contains("Content-Length") && !head.contains("Transfer-Encoding"), "{head}");
        assert_eq!(client.line(), "ONE");
        client.send("o\nGET / HTTP/1.1\n");
        assert_eq!((client.line().as_str(), client.line().as_str()), ("TWO", "GET / HTTP/1.1"));
        client.send("bye\n");
        client.expect_close();
        assert_eq!(reports.ends.recv_timeout(WAIT_MAX).expect("closed"), "Done");
    }

    fn a_tunnel_answers_connect_with_200_and_no_length<B>() {
        let (server, reports) = start::<B>(Timeouts::default());
        let mut client = server.connect();
        client.send(CONNECT.to_owned() + "early\n");
        let head = head(&mut client);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(!head.contains("Content-Length") && !head.contains("Connection"), "{head}");
        assert_eq!(client.line(), "EARLY");
        client.finish();
        client.expect_close();
        assert_eq!(reports.ends.recv_timeout(WAIT_MAX).expect("closed"), "Peer");
    }

    fn a_deferred_response_can_upgrade<B>() {
        let (server, _reports) = start::<B>(Timeouts::default());
        for path in ["/later", "/suspended"] {
            let mut client = server.connect();
            client.send(UPGRADE.replace("/up", path) + "hello\n");
            assert!(head(&mut client).starts_with("HTTP/1.1 101 "));
            assert_eq!(client.line(), "HELLO");
        }
    }

    fn a_protocol_may_be_offered_among_others_and_with_a_version<B>() {
        let (server, _reports) = start::<B>(Timeouts::default());
        for upgrade in ["other, LINES", "other\r\nUpgrade: Lines/2", "a/1, lines/2, b"] {
            let mut client = server.connect();
            client.send(UPGRADE.replace("lines", upgrade) + "hello\n");
            assert!(head(&mut client).starts_with("HTTP/1.1 101 "), "{upgrade}");
            assert_eq!(client.line(), "HELLO");
        }
    }

    fn a_request_with_a_body_can_upgrade_to_an_offered_protocol_only<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::with(Streamed)
        });
        for (path, offer, status) in
            [("/stream", "lines", 101), ("/stream", "other", 426), ("/read", "lines", 101), ("/read", "other", 426)]
        {
            let mut client = server.connect();
            let request = UPGRADE.replace("/up", path).replace("lines", offer);
            client.send(request.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"));
            let head = head(&mut client);
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {offer}: {head}");
        }
    }

    fn a_session_is_woken_from_another_thread_and_notified_of_sent_output<B>() {
        let (server, reports) = start::<B>(Timeouts::default());
        let mut client = server.connect();
        client.send(UPGRADE);
        head(&mut client);
        let waker = reports.wakers.recv_timeout(WAIT_MAX).expect("opened");
        for _ in 0..3 {
            waker.wake();
            assert_eq!(client.line(), "woken");
        }
        client.send("much\n");
        assert_eq!(client.read(4 << 20), vec![b'x'; 4 << 20]);
        assert_eq!(client.line(), "drained");
    }

    fn a_session_is_notified_of_sent_output_also_if_it_is_woken_before<B>() {
        let (server, _reports) = start::<B>(Timeouts::default());
        let mut client = server.connect();
        client.send(UPGRADE);
        head(&mut client);
        client.send("much and wake\n");
        assert_eq!(client.read(MORE_THAN_A_TURN), vec![b'x'; MORE_THAN_A_TURN]);
        assert_eq!((client.line().as_str(), client.line().as_str()), ("woken", "drained"));
    }

    fn a_session_has_timeouts_and_takes_part_in_a_graceful_shutdown<B>() {
        let (server, _reports) = start::<B>(Timeouts::default().idle(Duration::from_millis(50)));
        let mut client = server.connect();
        client.send(UPGRADE);
        head(&mut client);
        assert_eq!(client.line(), "Idle");
        client.expect_close();
        let (server, _reports) = start::<B>(Timeouts::default());
        let mut client = server.connect();
        client.send(UPGRADE.to_owned() + "a\n");
        head(&mut client);
        assert_eq!(client.line(), "A");
        server.handle.drain();
        assert_eq!(client.line(), "going down");
        client.expect_close();
    }

    fn an_upgrade_that_the_request_does_not_permit_is_refused_and_the_connection_closes<B>() {
        let (server, _reports) = start::<B>(Timeouts::default());
        let behind = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for (request, status) in [
            ("GET /up HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 426),
            ("GET /up HTTP/1.1\r\nHost: x\r\nUpgrade: lines\r\n\r\n".to_owned(), 426),
            ("GET /up HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n\r\n".to_owned(), 426),
            (UPGRADE.replace("HTTP/1.1", "HTTP/1.0"), 426),
            (UPGRADE.replace("lines", "other"), 426),
            (UPGRADE.replace("lines", "other, line, lines2/1"), 426),
            (UPGRADE.replace("/up", "/later").replace("lines", "other"), 426),
            (UPGRADE.replace("/up", "/suspended").replace("lines", "other"), 426),
            (UPGRADE.replace("/up", "/tunnel"), 500),
            ("CONNECT b.test:443 HTTP/1.1\r\nHost: b.test:443\r\n\r\n".to_owned(), 403),
        ] {
            let mut client = server.connect();
            client.send(request.clone() + behind);
            let response = client.response();
            let upgrade = (status == 426).then_some("lines");
            assert_eq!((response.status, response.header("upgrade")), (status, upgrade), "{request}");
            assert_eq!(response.head.contains("Connection: Upgrade\r\n"), status == 426, "{}", response.head);
            assert!(response.head.contains("Connection: close\r\n"), "{}", response.head);
            // The bytes after the request are not parsed as another one: they may be data of the other protocol.
            client.expect_close();
        }
    }

    fn closures_handle_the_standard_methods_unless_they_ask_for_all<B>() {
        let server = serve::<B, _>(|| HttpServer::new(|request| format!("{}\n", request.method())));
        for (method, status) in [("GET", 200), ("POST", 200), ("PATCH", 200), ("TRACE", 200), ("BREW", 501), ("get", 501)] {
            let mut client = server.connect();
            client.send(format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n"));
            assert_eq!(client.response().status, status, "{method}");
        }
        let mut client = server.connect();
        client.send(CONNECT);
        let response = client.response();
        assert_eq!((response.status, response.header("allow").is_some()), (405, true));
        client.expect_close();
        let all = serve::<B, _>(|| HttpServer::with(|request: &Request<'_>| format!("{}\n", request.method())));
        let mut client = all.connect();
        client.send("BREW / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.response().text(), "BREW\n");
    }
}
