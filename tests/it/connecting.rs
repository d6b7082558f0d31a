//! Outgoing connections of a running loop: contexts, sessions, names, several addresses, failures and time limits.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::Duration;

use serverd::{
    Accepted, App, CloseInfo, ConnId, Flow, Handle, HttpServer, LoopLimits, Phase, Session, SessionWaker, Target,
    Timeouts, Wakeup, Wire,
};

use crate::harness::{Backend, Server, WAIT_MAX, on_every_backend, serve, serve_with};

const LIMIT: Duration = WAIT_MAX;

/// Sends the context of each outgoing connection to its server, and reports its input and its end.
struct Caller(mpsc::Sender<String>);

impl App for Caller {
    type State = String;
    type Message = String;

    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, String>) -> (String, Flow) {
        assert!(accepted.take_context::<u8>().is_none(), "another type");
        let greeting: String = accepted.take_context().unwrap_or_default();
        wire.output().extend(greeting.as_bytes());
        wire.send(wire.id(), "message\n".into());
        (greeting, Flow::Read(Phase::Idle))
    }

    fn message(&mut self, _: &mut String, message: String, wire: &mut Wire<'_, String>) -> Flow {
        wire.output().extend(message.as_bytes());
        Flow::Unchanged
    }

    fn receive(&mut self, _: &mut String, wire: &mut Wire<'_, String>) -> Flow {
        if !wire.input().ends_with(b"\n") {
            return Flow::Read(Phase::Idle);
        }
        let _ = self.0.send(String::from_utf8_lossy(wire.input()).into_owned());
        wire.consume(wire.input().len());
        Flow::Close
    }

    fn closed(&mut self, _: ConnId, greeting: String, info: CloseInfo) {
        let _ = self.0.send(format!("{}: {:?}", greeting.trim_end(), info.reason));
    }
}

fn start<B: Backend>() -> (Server, mpsc::Receiver<String>) {
    let (send, reports) = mpsc::channel();
    (serve::<B, _>(move || Caller(send)), reports)
}

fn next(reports: &mpsc::Receiver<String>) -> String {
    reports.recv_timeout(WAIT_MAX).expect("a report")
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("an address")
}

/// Accepts a connection, expects a text, and replies with a line.
fn answer(listener: &TcpListener, expected: &str) {
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(WAIT_MAX)).expect("open socket");
    let mut received = vec![0; expected.len()];
    stream.read_exact(&mut received).expect("a text");
    assert_eq!(String::from_utf8_lossy(&received), expected);
    stream.write_all(b"welcome\n").expect("open connection");
    // The close may be a reset, since the loop does not wait for it.
    let _ = stream.read_to_end(&mut Vec::new());
}

/// A session that sends a line and reports what follows.
struct Line(mpsc::Sender<String>);

impl Session for Line {
    fn open(&mut self, waker: SessionWaker) {
        waker.wake();
    }

    fn message(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        wire.output().extend(b"line\n");
        Flow::Unchanged
    }

    fn receive(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        if !wire.input().ends_with(b"\n") {
            return Flow::Read(Phase::Idle);
        }
        let _ = self.0.send(String::from_utf8_lossy(wire.input()).into_owned());
        wire.consume(wire.input().len());
        Flow::Close
    }

    fn closed(self: Box<Self>, info: CloseInfo) {
        let _ = self.0.send(format!("{:?}", info.reason));
    }
}

/// Reports when it is dropped.
struct Dropped(mpsc::Sender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

on_every_backend! {
    fn an_outgoing_connection_gets_its_context_and_its_messages<B>() {
        let (server, reports) = start::<B>();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        for target in [Target::Address(address), Target::Name("localhost".into(), address.port())] {
            server.handle.connect(target, LIMIT, String::from("hello\n"));
            answer(&listener, "hello\nmessage\n");
            assert_eq!(next(&reports), "welcome\n");
            assert!(next(&reports).starts_with("hello: "));
        }
        server.drain();
    }

    fn a_failed_connect_is_reported_as_closed<B>() {
        let (server, reports) = start::<B>();
        server.handle.connect(free_address(), LIMIT, String::from("refused"));
        assert!(next(&reports).starts_with("refused: Error("));
        server.handle.connect(("host.invalid", 80), LIMIT, String::from("unknown"));
        assert!(next(&reports).starts_with("unknown: Error("));
        server.handle.connect(Target::Addresses(Vec::new()), LIMIT, String::from("none"));
        assert!(next(&reports).contains("no address"));
        server.drain();
    }

    fn the_addresses_are_tried_in_order<B>() {
        let (server, reports) = start::<B>();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let addresses = vec![free_address(), free_address(), address, free_address()];
        server.handle.connect(Target::Addresses(addresses), LIMIT, String::from("third\n"));
        answer(&listener, "third\nmessage\n");
        assert_eq!(next(&reports), "welcome\n");
        assert!(next(&reports).starts_with("third: "));
        server.drain();
    }

    fn a_connect_without_time_is_reported_as_timed_out<B>() {
        let (server, reports) = start::<B>();
        // The time has passed before the name is resolved, or before the connect is complete.
        server.handle.connect(("host.invalid", 80), Duration::ZERO, String::from("late"));
        let report = next(&reports);
        assert!(report.starts_with("late: Error("), "{report}");
        server.drain();
    }

    fn a_session_runs_on_an_outgoing_connection<B>() {
        let (send, reports) = mpsc::channel();
        let server = serve::<B, _>(|| HttpServer::new(|_| "hello\n"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        server.handle.connect_session(listener.local_addr().expect("an address"), LIMIT, Line(send.clone()));
        answer(&listener, "line\n");
        assert_eq!(next(&reports), "welcome\n");
        let end = next(&reports);
        assert!(end == "Done" || end == "Peer", "{end}");
        server.handle.connect_session(free_address(), LIMIT, Line(send));
        assert!(next(&reports).starts_with("Error("));
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.response().text(), "hello\n");
        server.drain();
    }

    fn a_connection_for_another_application_is_closed<B>() {
        let (send, reports) = mpsc::channel();
        let server = serve::<B, _>(|| HttpServer::new(|_| "hello\n"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        server.handle.connect(address, LIMIT, Dropped(send));
        reports.recv_timeout(WAIT_MAX).expect("the context is dropped");
        // An application that ignores contexts serves a connection without one.
        server.handle.connect(address, LIMIT, ());
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(WAIT_MAX)).expect("open socket");
        let mut response = Vec::new();
        let outcome = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
        if outcome.and_then(|()| stream.read_to_end(&mut response).map(drop)).is_err() || response.is_empty() {
            // That was the first connection, which the loop has closed.
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("open connection");
            stream.read_to_end(&mut response).expect("a response");
        }
        assert!(response.ends_with(b"hello\n"), "{}", String::from_utf8_lossy(&response));
        server.drain();
    }
}

/// Fills the accept queue of a listener, so that further connects get no response.
#[cfg(target_os = "linux")]
fn unresponsive() -> (socket2::Socket, Vec<std::net::TcpStream>) {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    listener.listen(0).expect("a listener");
    let address = listener.local_addr().expect("an address").as_socket().expect("an IP address");
    let fill = |_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok();
    let clients = (0..64).map_while(fill).collect();
    (listener, clients)
}

#[cfg(target_os = "linux")]
#[test]
fn an_unresponsive_address_uses_only_its_share_of_the_time() {
    let (listener, _clients) = unresponsive();
    let silent = listener.local_addr().expect("an address").as_socket().expect("an IP address");
    let (server, reports) = start::<serverd::Epoll>();
    let since = std::time::Instant::now();
    server.handle.connect(silent, Duration::from_millis(200), String::from("silent"));
    let report = next(&reports);
    assert!(report.starts_with("silent: Error(") && report.contains("TimedOut"), "{report}");
    assert!(since.elapsed() >= Duration::from_millis(200));
    let open = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addresses = vec![silent, open.local_addr().expect("an address")];
    server.handle.connect(Target::Addresses(addresses), Duration::from_millis(600), String::from("second\n"));
    answer(&open, "second\nmessage\n");
    assert_eq!(next(&reports), "welcome\n");
    server.drain();
}

#[test]
fn a_loop_that_ends_drops_its_outgoing_connections() {
    let (send, reports) = mpsc::channel();
    let server = serve_with::<serverd::Select, _>(Timeouts::default(), LoopLimits::default(), move || Caller(send));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    server.handle.connect(listener.local_addr().expect("an address"), LIMIT, String::from("hello\n"));
    let (stream, _) = listener.accept().expect("a connection");
    server.handle.stop();
    assert_eq!(next(&reports), "hello: Drain");
    drop(server);
    drop(stream);
    // A handle of a loop that has ended drops the context.
    let (send, dropped) = mpsc::channel::<()>();
    Handle::detached().connect(("localhost", 1), LIMIT, send);
    assert!(dropped.recv_timeout(WAIT_MAX).is_err());
}
