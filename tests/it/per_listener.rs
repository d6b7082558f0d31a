//! Several applications on one loop: each connection is served by the application of its listener, which gets its own
//! messages, timers and ends only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serverd::tls::{Certificate, Tls};
use serverd::{
    Accepted, App, BoundListener, CloseInfo, Config, ConnId, Echo, EventLoop, Flow, HttpServer, LoopLimits,
    PerListener, Phase, Readiness, Remote, Request, Response, Select, SystemStream, Timeouts, Turn, Wire, WithTls,
};

use crate::harness::{Backend, Client, Server, WAIT_MAX, on_every_backend, serve_by, trusting};
use crate::tcp::on_every_socket_backend;

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Repeats each line to all its connections: `now` with a message of the loop, `later` from another thread.
struct Repeater {
    name: &'static str,
    remote: Option<Remote<String>>,
    open: Vec<ConnId>,
    ends: mpsc::Sender<String>,
}

impl Repeater {
    fn new(name: &'static str, ends: &mpsc::Sender<String>) -> Self {
        Repeater { name, remote: None, open: Vec::new(), ends: ends.clone() }
    }
}

impl App for Repeater {
    type State = &'static str;
    type Message = String;

    fn start(&mut self, remote: Remote<String>) {
        self.remote = Some(remote);
    }

    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, String>) -> (&'static str, Flow) {
        wire.output().extend(format!("{} {:?}\n", self.name, accepted.listener).as_bytes());
        self.open.push(wire.id());
        (self.name, Flow::Read(Phase::Idle))
    }

    fn receive(&mut self, _: &mut &'static str, wire: &mut Wire<'_, String>) -> Flow {
        let Some(end) = wire.input().iter().position(|&byte| byte == b'\n') else {
            return Flow::Read(Phase::Idle);
        };
        let line = String::from_utf8_lossy(&wire.input()[..=end]).into_owned();
        wire.consume(end + 1);
        assert!(!line.contains("panic"), "as the client wants");
        if line.starts_with("later") {
            let (open, remote) = (self.open.clone(), self.remote.clone().expect("started"));
            let send = move || open.into_iter().for_each(|id| remote.send(id, line.clone()));
            drop(std::thread::spawn(send));
        } else {
            self.open.iter().for_each(|&id| wire.send(id, line.clone()));
        }
        Flow::Yield(Phase::Idle)
    }

    fn message(&mut self, state: &mut &'static str, line: String, wire: &mut Wire<'_, String>) -> Flow {
        assert_eq!(*state, self.name);
        wire.output().extend(line.as_bytes());
        Flow::Unchanged
    }

    fn timer(&mut self, _: &mut &'static str, phase: Phase, wire: &mut Wire<'_, String>) -> Flow {
        wire.output().extend(format!("{} {phase:?}\n", self.name).as_bytes());
        Flow::Close
    }

    fn drain(&mut self, _: &mut &'static str, wire: &mut Wire<'_, String>) -> Flow {
        wire.output().extend(format!("{} ends\n", self.name).as_bytes());
        Flow::Close
    }

    fn closed(&mut self, id: ConnId, state: &'static str, info: CloseInfo) {
        assert_eq!(state, self.name);
        self.open.retain(|open| *open != id);
        let _ = self.ends.send(format!("{} {:?}", self.name, info.reason));
    }
}

/// A server with an HTTP server on its own address, and two repeaters on the others.
struct Several {
    server: Server,
    others: [SocketAddr; 2],
    ends: mpsc::Receiver<String>,
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

fn address(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("an address")
}

/// Responds on another thread.
fn deferred(_: &Request<'_>) -> Response {
    let (response, responder) = Response::later();
    std::thread::spawn(move || responder.respond("hello\n"));
    response
}

fn serve<B: Backend>(timeouts: Timeouts) -> Several {
    let others = [listener(), listener()];
    let addresses = [address(&others[0]), address(&others[1])];
    let (send, ends) = mpsc::channel();
    let app = move || {
        let repeaters = PerListener::new(Repeater::new("a", &send), 1, Repeater::new("b", &send));
        PerListener::new(HttpServer::new(deferred), 1, repeaters)
    };
    let server = serve_by::<B, _>(timeouts, LoopLimits::default(), app, listener(), move |event_loop, http| {
        event_loop.listen(http)?;
        others.into_iter().try_for_each(|other| event_loop.listen(other))
    });
    Several { server, others: addresses, ends }
}

impl Several {
    /// Returns a client of the repeater with this number, after its first line.
    fn connect(&self, number: usize) -> Client {
        let mut client = Client::new(self.others[number]);
        assert_eq!(client.line(), ["a Some(0)", "b Some(0)"][number]);
        client
    }

    fn expect_hello(&self) {
        assert_eq!(self.server.connect().send(GET).response().text(), "hello\n");
    }
}

on_every_backend! {
    fn each_listener_has_its_application_and_messages_reach_only_their_own<B>() {
        let several = serve::<B>(Timeouts::default());
        let mut clients = [several.connect(0), several.connect(0), several.connect(1)];
        let mut http = several.server.connect();
        for line in ["now", "later", "now again"] {
            clients[0].send(format!("{line}\n"));
            http.send(GET);
            assert_eq!(http.response().text(), "hello\n");
            for client in &mut clients[..2] {
                assert_eq!(client.line(), line);
            }
        }
        // Nothing of the above has reached the other repeater.
        clients[2].send("to b\n");
        assert_eq!(clients[2].line(), "to b");
    }

    fn a_shutdown_ends_each_connection_as_its_application_wants<B>() {
        let several = serve::<B>(Timeouts::default());
        let mut clients = [several.connect(0), several.connect(1)];
        several.server.handle.drain();
        for (client, expected) in clients.iter_mut().zip(["a ends\n", "b ends\n"]) {
            assert_eq!(client.read_to_end(), expected.as_bytes());
        }
        drop(clients);
        several.server.drain();
        let mut ends: Vec<String> = several.ends.try_iter().collect();
        ends.sort();
        assert_eq!(ends, ["a Drain", "b Drain"]);
    }

    fn the_timer_of_each_application_is_called<B>() {
        let mut timeouts = Timeouts::default();
        timeouts.idle = Some(Duration::from_millis(20));
        let several = serve::<B>(timeouts);
        for (number, expected) in ["a Idle\n", "b Idle\n"].into_iter().enumerate() {
            let mut client = several.connect(number);
            assert_eq!(client.read_to_end(), expected.as_bytes());
        }
    }

    fn a_panic_in_one_application_does_not_affect_the_others<B>() {
        let several = serve::<B>(Timeouts::default());
        let mut bystanders = [several.connect(0), several.connect(1)];
        let mut client = several.connect(0);
        client.send("panic\n");
        let end = several.ends.recv_timeout(WAIT_MAX).expect("the connection is closed");
        assert_eq!(end, "a Panicked");
        several.expect_hello();
        for bystander in &mut bystanders {
            bystander.send("still here\n");
            assert_eq!(bystander.line(), "still here");
        }
    }
}

on_every_socket_backend! {
    added_streams_belong_to_the_chosen_application
}

fn added_streams_belong_to_the_chosen_application<B: Readiness<Stream: From<SystemStream>>>() {
    for to_second in [false, true] {
        let (send, ends) = mpsc::channel();
        let app = PerListener::new(Repeater::new("a", &send), 1, Repeater::new("b", &send));
        let app = if to_second { app.added_to_second() } else { app };
        let mut event_loop =
            EventLoop::<B, _>::with_limits(Timeouts::default(), LoopLimits::default(), app).expect("a loop");
        let listener = listener();
        let local = TcpStream::connect(address(&listener)).expect("a connection");
        event_loop.add_stream(SystemStream::try_from(local).expect("open socket").into());
        let handle = event_loop.handle();
        let thread = std::thread::spawn(move || {
            let mut client = Client::from_socket(listener.accept().expect("a connection").0);
            let greeting = client.line();
            handle.drain();
            client.read_to_end();
            greeting
        });
        while event_loop.turn().expect("the loop runs") == Turn::Again {}
        let name = if to_second { "b" } else { "a" };
        assert_eq!(thread.join().expect("no panic"), format!("{name} None"));
        assert_eq!(ends.try_iter().collect::<Vec<_>>(), [format!("{name} Drain")]);
    }
}

/// Sends bytes over TLS, and returns all that is received.
fn over_tls(address: SocketAddr, certificate: &Certificate, bytes: &str) -> String {
    let config = trusting(certificate, &[&rustls::version::TLS13]);
    let name = "localhost".try_into().expect("a name");
    let session = rustls::ClientConnection::new(Arc::new(config), name).expect("a configuration");
    let mut stream = rustls::StreamOwned::new(session, Client::new(address).socket);
    stream.write_all(bytes.as_bytes()).expect("the server reads");
    let mut received = String::new();
    stream.read_to_string(&mut received).expect("an orderly end");
    received
}

#[test]
fn one_application_can_use_tls_and_the_other_not() {
    let certificate = Certificate::self_signed(["localhost"]).expect("a name");
    let tls = Tls::new(vec![certificate.clone()]).expect("a certificate");
    let plain = listener();
    let echo = address(&plain);
    let app = || PerListener::new(HttpServer::new(|request: &Request<'_>| format!("{}", request.is_secure())), 1, Echo);
    let (timeouts, limits) = (Timeouts::default(), LoopLimits::default());
    let server = serve_by::<WithTls<Select>, _>(timeouts, limits, app, listener(), move |event_loop, http| {
        event_loop.listen_tls(http, &tls)?;
        event_loop.listen(plain)
    });
    let response = over_tls(server.address, &certificate, "GET / HTTP/1.0\r\n\r\n");
    assert!(response.ends_with("\r\n\r\ntrue"), "{response}");
    assert_eq!(Client::new(echo).send("plain").read(5), b"plain");
}

#[test]
fn workers_serve_several_applications_with_and_without_tls() {
    for workers in [1, 2] {
        let [http, echo] = [listener(), listener()];
        let addresses = [address(&http), address(&echo)];
        let listeners: [BoundListener; 2] = [http.into(), BoundListener::from(echo).plain()];
        let config = Config::default().workers(workers).tls(serverd::server::TlsConfig::default());
        let make = |_| PerListener::new(HttpServer::new(|_| "hello\n"), 1, Echo);
        let server = config.start_on(listeners, make).expect("the server starts");
        assert_eq!((server.local_addrs(), &server.started().plain_addrs[..]), (&addresses[..1], &addresses[1..]));
        let mut clients: Vec<_> = (0..4).map(|_| Client::new(addresses[1])).collect();
        for client in &mut clients {
            assert_eq!(client.send("plain").read(5), b"plain");
        }
        // A request without TLS gets an advice in place of an echo.
        let text = Client::new(addresses[0]).send(GET).response().text();
        assert!(text.contains("requires TLS"), "{text}");
    }
}
