//! Raw TCP applications: input and output, messages, half-close, pausing, several listeners, added streams.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::Duration;

use serverd::{
    Accepted, App, CloseInfo, ConnId, EventLoop, Flow, LoopLimits, Phase, Readiness, Remote, SystemStream, Timeouts,
    Turn, Wire,
};

use crate::harness::{Backend, Client, WAIT_MAX, on_every_backend, serve, serve_with, wait_for};

fn echo(wire: &mut Wire<'_, ()>) -> Flow {
    let input = wire.input();
    wire.output().extend(input);
    wire.consume(input.len());
    Flow::Read(Phase::Unlimited)
}

/// Reports close reasons to a channel. The line `pause` stops reading until a message arrives, which is sent to the
/// client.
struct Recorder(mpsc::Sender<String>, Option<mpsc::Sender<(ConnId, Remote<String>)>>, Option<Remote<String>>);

impl Recorder {
    fn report(&self, text: String) {
        // The test may have dropped the receiver.
        let _ = self.0.send(text);
    }
}

impl App for Recorder {
    type State = usize;
    type Message = String;

    fn start(&mut self, remote: Remote<String>) {
        self.2 = Some(remote);
    }

    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, String>) -> (usize, Flow) {
        assert!(accepted.local_addr().is_ok());
        let listener = accepted.listener.unwrap_or(9);
        wire.output().extend(format!("welcome to {listener}\n").as_bytes());
        (listener, Flow::Read(Phase::Unlimited))
    }

    fn receive(&mut self, _state: &mut usize, wire: &mut Wire<'_, String>) -> Flow {
        let input = wire.input();
        let Some(end) = input.iter().position(|&byte| byte == b'\n') else { return Flow::Read(Phase::Unlimited) };
        wire.consume(end + 1);
        match &input[..end] {
            b"pause" => {
                if let (Some(send), Some(remote)) = (&self.1, &self.2) {
                    send.send((wire.id(), remote.clone())).expect("open channel");
                }
                Flow::Pause
            }
            b"bye" => Flow::Close,
            b"no" => Flow::Abort,
            line => {
                wire.output().extend(line);
                wire.output().extend(b"\n");
                Flow::Yield(Phase::Unlimited)
            }
        }
    }

    fn message(&mut self, _state: &mut usize, message: String, wire: &mut Wire<'_, String>) -> Flow {
        wire.output().extend(message.as_bytes());
        Flow::Yield(Phase::Unlimited)
    }

    fn drain(&mut self, _state: &mut usize, wire: &mut Wire<'_, String>) -> Flow {
        wire.output().extend(b"going down\n");
        Flow::Close
    }

    fn closed(&mut self, _id: ConnId, _state: usize, info: CloseInfo) {
        self.report(format!("{:?}", info.reason));
    }
}

/// An application with default bodies for all methods that have one. Sends 8 MiB for each byte.
struct Minimal;

impl App for Minimal {
    type State = ();
    type Message = Infallible;

    fn open(&mut self, _: &Accepted<'_>, _: &mut Wire<'_, Infallible>) -> ((), Flow) {
        ((), Flow::Read(Phase::Idle))
    }

    fn receive(&mut self, _state: &mut (), wire: &mut Wire<'_, Infallible>) -> Flow {
        let count = wire.input().len();
        wire.consume(count);
        wire.output().extend(&vec![b'x'; count << 23]);
        if wire.ended() { Flow::Close } else { Flow::Read(Phase::Idle) }
    }
}

#[allow(clippy::type_complexity, reason = "the server and two channels")]
fn recorder<B: Backend>() -> (crate::harness::Server, mpsc::Receiver<String>, mpsc::Receiver<(ConnId, Remote<String>)>)
{
    let (send, reasons) = mpsc::channel();
    let (send_remote, remotes) = mpsc::channel();
    (serve::<B, _>(move || Recorder(send, Some(send_remote), None)), reasons, remotes)
}

on_every_backend! {
    over_tls_too:

    fn the_default_bodies_keep_the_flow_while_output_drains<B>() {
        let timeouts = Timeouts::default().idle(Duration::from_millis(300));
        let server = serve_with::<B, _>(timeouts, LoopLimits::default(), || Minimal);
        let mut client = server.connect();
        client.send("1");
        assert_eq!(client.read(1 << 23), vec![b'x'; 1 << 23]);
        // Closed by the idle timeout, which still applies.
        client.expect_close();
    }

    fn an_idle_connection_closes_at_a_graceful_shutdown_by_default<B>() {
        let server = serve::<B, _>(|| Minimal);
        let mut client = server.connect();
        client.send("1");
        client.read(1 << 23);
        server.drain();
        client.expect_close();
    }

    #[plain_tcp]
    fn a_closure_echoes_every_byte_in_order<B>() {
        let server = serve::<B, _>(|| |wire: &mut Wire<_>| echo(wire));
        let sent: Vec<u8> = (0..300_000_u32).map(|number| (number % 253) as u8).collect();
        let mut client = server.connect();
        let mut writer = client.socket.try_clone().expect("open socket");
        let copy = sent.clone();
        let thread = std::thread::spawn(move || {
            for piece in copy.chunks(7919) {
                std::io::Write::write_all(&mut writer, piece).expect("open socket");
            }
            writer.shutdown(std::net::Shutdown::Write).expect("open socket");
        });
        assert!(client.read_to_end() == sent);
        thread.join().expect("no panic");
    }

    fn a_greeting_and_pending_output_are_sent_before_the_close<B>() {
        let (server, reasons, _) = recorder::<B>();
        let mut client = server.connect();
        client.send("one\ntwo\nbye\nthree\n");
        client.finish();
        assert_eq!(client.read_to_end(), b"welcome to 0\none\ntwo\n");
        let reason = reasons.recv_timeout(WAIT_MAX).expect("closed");
        assert!(reason == "Done" || reason == "Peer", "{reason}");
    }

    fn a_paused_connection_resumes_on_a_message_from_another_thread<B>() {
        let (server, _reasons, remotes) = recorder::<B>();
        let mut client = server.connect();
        client.send("pause\nafter\n");
        let (id, remote) = remotes.recv_timeout(WAIT_MAX).expect("paused");
        remote.send(id, "resume\n".into());
        assert_eq!(client.read(26), b"welcome to 0\nresume\nafter\n");
    }

    fn a_message_to_a_closed_connection_is_dropped<B>() {
        let (server, reasons, remotes) = recorder::<B>();
        let mut client = server.connect();
        client.send("pause\n");
        let (id, remote) = remotes.recv_timeout(WAIT_MAX).expect("paused");
        client.reset();
        // The slot is free once the connection is closed; each message makes the loop run a turn.
        wait_for("the connection is not closed", || {
            remote.send(id, "too late\n".into());
            reasons.try_recv().is_ok()
        });
        let mut successor = server.connect();
        successor.send("mine\n");
        remote.send(id, "not yours\n".into());
        successor.send("bye\n");
        assert_eq!(successor.read_to_end(), b"welcome to 0\nmine\n");
    }

    fn an_abort_resets_the_connection<B>() {
        let (server, reasons, _) = recorder::<B>();
        let mut client = server.connect();
        client.read(13);
        client.send("no\n");
        let mut rest = Vec::new();
        let outcome = client.try_read_to_end(&mut rest);
        assert!(outcome.is_err() || rest.is_empty(), "{rest:?}");
        assert_eq!(reasons.recv_timeout(WAIT_MAX).expect("closed"), "Refused");
    }

    fn every_connection_can_send_a_last_line_when_the_loop_drains<B>() {
        let (server, reasons, _) = recorder::<B>();
        let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.read(13);
        }
        server.drain();
        for client in &mut clients {
            assert_eq!(client.read_to_end(), b"going down\n");
            assert_eq!(reasons.recv_timeout(WAIT_MAX).expect("closed"), "Drain");
        }
    }

    fn connections_report_the_listener_that_accepted_them<B>() {
        let (send, reasons) = mpsc::channel();
        let app = Recorder(send, None, None);
        let mut event_loop =
            EventLoop::<B, _>::with_limits(Timeouts::default(), LoopLimits::default(), app).expect("event loop");
        let addresses: Vec<SocketAddr> = (0..2)
            .map(|_| {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
                let address = listener.local_addr().expect("local address");
                event_loop.listen(listener).expect("registered");
                address
            })
            .collect();
        let handle = event_loop.handle();
        let thread = std::thread::spawn(move || {
            for (number, &address) in addresses.iter().enumerate() {
                let mut client = Client::new(address);
                client.send("bye\n");
                assert_eq!(client.read_to_end(), format!("welcome to {number}\n").as_bytes());
            }
            handle.drain();
        });
        event_loop.run().expect("event loop runs");
        thread.join().expect("no panic");
        assert_eq!(reasons.iter().take(2).collect::<Vec<_>>(), ["Done", "Done"]);
    }
}

/// Reports the messages it receives and the reason why its connection closed.
struct Inbox(mpsc::Sender<String>);

impl App for Inbox {
    type State = ();
    type Message = String;

    fn open(&mut self, _: &Accepted<'_>, wire: &mut Wire<'_, String>) -> ((), Flow) {
        wire.send(wire.id(), "first".into());
        ((), Flow::Read(Phase::Unlimited))
    }

    fn receive(&mut self, _state: &mut (), wire: &mut Wire<'_, String>) -> Flow {
        wire.consume(wire.input().len());
        Flow::Read(Phase::Unlimited)
    }

    fn message(&mut self, _state: &mut (), message: String, wire: &mut Wire<'_, String>) -> Flow {
        // The test may have dropped the receiver.
        let _ = self.0.send(message.clone());
        wire.output().extend(message.as_bytes());
        if message == "last" { Flow::Close } else { Flow::Unchanged }
    }

    fn closed(&mut self, _id: ConnId, _state: (), info: CloseInfo) {
        let _ = self.0.send(format!("{:?}", info.reason));
    }
}

/// Starts to connect to `address`. The connect is in progress, or already complete on the loopback interface; returns
/// an error if it has failed and the system accepts no options for the socket then.
fn connecting<B: Readiness<Stream: From<SystemStream>>>(address: SocketAddr) -> io::Result<B::Stream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("open socket");
    // The stream reports the error, if there is one.
    let _ = socket.connect(&address.into());
    Ok(SystemStream::try_from(std::net::TcpStream::from(socket))?.into())
}

/// Runs a loop with one connecting stream, to which `texts` are sent before the first turn, until it is closed. Returns
/// the reports; `None` if the connect fails before the loop gets the stream.
fn send_while_connecting<B: Readiness<Stream: From<SystemStream>>>(
    address: SocketAddr,
    texts: &[&str],
) -> Option<Vec<String>> {
    let (send, reports) = mpsc::channel();
    let mut event_loop =
        EventLoop::<B, _>::with_limits(Timeouts::default(), LoopLimits::default(), Inbox(send)).expect("event loop");
    let id = event_loop.add_connecting(connecting::<B>(address).ok()?);
    for text in texts {
        event_loop.remote().send(id, (*text).into());
    }
    while event_loop.connections() > 0 {
        event_loop.turn().expect("event loop runs");
    }
    drop(event_loop);
    Some(reports.iter().collect())
}

/// Serves added streams, connected or connecting, like accepted ones.
fn added_streams_are_served<B: Readiness<Stream: From<SystemStream>>>() {
    let (send, reasons) = mpsc::channel();
    let app = Recorder(send, None, None);
    let mut event_loop =
        EventLoop::<B, _>::with_limits(Timeouts::default(), LoopLimits::default(), app).expect("event loop");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("local address");
    let local = std::net::TcpStream::connect(address).expect("connected");
    let (remote, _) = listener.accept().expect("accepted");
    event_loop.add_stream(SystemStream::try_from(local).expect("open socket").into());
    event_loop.add_connecting(connecting::<B>(address).expect("a stream"));
    let refused = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("local address");
    let is_added = connecting::<B>(refused).map(|stream| event_loop.add_connecting(stream)).is_ok();

    let handle = event_loop.handle();
    let thread = std::thread::spawn(move || {
        for stream in [remote, listener.accept().expect("accepted").0] {
            let mut client = Client::from_socket(stream);
            client.send("bye\n");
            assert_eq!(client.read_to_end(), b"welcome to 9\n");
        }
        handle.drain();
    });
    while event_loop.turn().expect("event loop runs") == Turn::Again {}
    thread.join().expect("no panic");
    let reasons: Vec<String> = reasons.try_iter().collect();
    assert_eq!(reasons.iter().filter(|reason| *reason == "Done").count(), 2, "{reasons:?}");
    assert!(!is_added || reasons.iter().any(|reason| reason.contains("Refused")), "{reasons:?}");
}

fn messages_sent_while_connecting_arrive_in_order_after_the_connect<B: Readiness<Stream: From<SystemStream>>>() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("local address");
    let thread = std::thread::spawn(move || Client::from_socket(listener.accept().expect("accepted").0).read_to_end());
    let reports = send_while_connecting::<B>(address, &["second", "third", "last"]);
    assert_eq!(reports.expect("a stream"), ["first", "second", "third", "last", "Done"]);
    assert_eq!(thread.join().expect("no panic"), b"firstsecondthirdlast");
}

fn a_failed_connect_is_reported_as_closed_and_delivers_no_message<B: Readiness<Stream: From<SystemStream>>>() {
    let refused = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let Some(reports) = send_while_connecting::<B>(refused.expect("local address"), &["second"]) else { return };
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(reports[0].starts_with("Error("), "{reports:?}");
}

fn a_connecting_stream_with_too_many_messages_is_closed<B: Readiness<Stream: From<SystemStream>>>() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("local address");
    let reports = send_while_connecting::<B>(address, &["more"; 1024]).expect("a stream");
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(reports[0].contains("too many messages"), "{reports:?}");
}

/// Expands each generic function to one test per backend whose streams are system sockets, and one with `Chaos`.
macro_rules! on_every_socket_backend {
    ($($name:ident)*) => {
        mod added_select {
            $(#[test] fn $name() { super::$name::<serverd::Select>() })*
        }
        mod added_chaos_select {
            $(#[test] fn $name() { super::$name::<serverd::Chaos<serverd::Select>>() })*
        }
        #[cfg(target_os = "linux")]
        mod added_epoll {
            $(#[test] fn $name() { super::$name::<serverd::Epoll>() })*
        }
        #[cfg(target_os = "linux")]
        mod added_chaos_epoll {
            $(#[test] fn $name() { super::$name::<serverd::Chaos<serverd::Epoll>>() })*
        }
        #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
        mod added_kqueue {
            $(#[test] fn $name() { super::$name::<serverd::Kqueue>() })*
        }
        #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
        mod added_chaos_kqueue {
            $(#[test] fn $name() { super::$name::<serverd::Chaos<serverd::Kqueue>>() })*
        }
    };
}
pub(crate) use on_every_socket_backend;

on_every_socket_backend! {
    added_streams_are_served
    messages_sent_while_connecting_arrive_in_order_after_the_connect
    a_failed_connect_is_reported_as_closed_and_delivers_no_message
    a_connecting_stream_with_too_many_messages_is_closed
}
