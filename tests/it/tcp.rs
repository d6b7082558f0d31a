//! Raw applications on the loop: bytes, letters, half-close, pausing, several listeners, sockets taken over.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;

use serverd::r#loop::{Limits, Readiness, TcpStream};
use serverd::{Accepted, App, ConnId, Ending, EventLoop, Flow, Phase, Poller, Remote, Timeouts, Turn, Wire};

use crate::harness::{Backend, Client, PATIENCE, on_every_backend, serve};

fn echo(wire: &mut Wire<'_, ()>) -> Flow {
    let input = wire.input();
    wire.output().extend(input);
    wire.consume(input.len());
    Flow::Read(Phase::Open)
}

/// Tells a channel what happens; a line `pause` stops reading until a letter comes, which is written out.
struct Teller(mpsc::Sender<String>, Option<mpsc::Sender<(ConnId, Remote<String>)>>, Option<Remote<String>>);

impl Teller {
    fn tell(&self, text: String) {
        // The test may have seen enough.
        let _ = self.0.send(text);
    }
}

impl App for Teller {
    type State = usize;
    type Letter = String;

    fn start(&mut self, remote: Remote<String>) {
        self.2 = Some(remote);
    }

    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, String>) -> (usize, Flow) {
        assert!(accepted.local().is_ok());
        let listener = accepted.listener.unwrap_or(9);
        wire.output().extend(format!("welcome to {listener}\n").as_bytes());
        (listener, Flow::Read(Phase::Open))
    }

    fn receive(&mut self, _state: &mut usize, wire: &mut Wire<'_, String>) -> Flow {
        let input = wire.input();
        let Some(end) = input.iter().position(|&byte| byte == b'\n') else { return Flow::Read(Phase::Open) };
        wire.consume(end + 1);
        match &input[..end] {
            b"pause" => {
                if let (Some(send), Some(remote)) = (&self.1, &self.2) {
                    send.send((wire.id(), remote.clone())).expect("the test waits");
                }
                Flow::Pause
            }
            b"bye" => Flow::Close,
            b"no" => Flow::Abort,
            line => {
                wire.output().extend(line);
                wire.output().extend(b"\n");
                Flow::Yield(Phase::Open)
            }
        }
    }

    fn letter(&mut self, _state: &mut usize, letter: String, wire: &mut Wire<'_, String>) -> Flow {
        wire.output().extend(letter.as_bytes());
        Flow::Yield(Phase::Open)
    }

    fn drained(&mut self, _state: &mut usize, _wire: &mut Wire<'_, String>) -> Flow {
        Flow::Read(Phase::Open)
    }

    fn timer(&mut self, _state: &mut usize, _phase: Phase, _wire: &mut Wire<'_, String>) -> Flow {
        Flow::Close
    }

    fn drain(&mut self, _state: &mut usize, wire: &mut Wire<'_, String>) -> Flow {
        wire.output().extend(b"going down\n");
        Flow::Close
    }

    fn closed(&mut self, _id: ConnId, _state: usize, ending: Ending) {
        self.tell(format!("{:?}", ending.reason));
    }

    fn end_of_turn(&mut self, _: &mut Vec<(ConnId, String)>) {}
}

#[allow(clippy::type_complexity, reason = "the server and two channels")]
fn teller<B: Backend>() -> (crate::harness::Server, mpsc::Receiver<String>, mpsc::Receiver<(ConnId, Remote<String>)>) {
    let (send, told) = mpsc::channel();
    let (send_remote, remotes) = mpsc::channel();
    (serve::<B, _>(move || Teller(send, Some(send_remote), None)), told, remotes)
}

on_every_backend! {
    fn a_closure_echoes_every_byte_in_order<B>() {
        let server = serve::<B, _>(|| |wire: &mut Wire<_>| echo(wire));
        let sent: Vec<u8> = (0..300_000_u32).map(|number| (number % 253) as u8).collect();
        let mut client = server.connect();
        let mut writer = client.socket.try_clone().expect("alive");
        let copy = sent.clone();
        let thread = std::thread::spawn(move || {
            for piece in copy.chunks(7919) {
                std::io::Write::write_all(&mut writer, piece).expect("alive");
            }
            writer.shutdown(std::net::Shutdown::Write).expect("alive");
        });
        assert!(client.rest() == sent);
        thread.join().expect("sent");
    }

    fn a_server_may_speak_first_and_close_with_what_it_wrote<B>() {
        let (server, told, _) = teller::<B>();
        let mut client = server.connect();
        client.send("one\ntwo\nbye\nthree\n");
        client.finish();
        assert_eq!(client.rest(), b"welcome to 0\none\ntwo\n");
        let reason = told.recv_timeout(PATIENCE).expect("closed");
        assert!(reason == "Done" || reason == "Peer", "{reason}");
    }

    fn a_paused_connection_reads_on_after_a_letter_from_another_thread<B>() {
        let (server, _told, remotes) = teller::<B>();
        let mut client = server.connect();
        client.send("pause\nafter\n");
        let (id, remote) = remotes.recv_timeout(PATIENCE).expect("paused");
        remote.post(id, "letter\n".into());
        assert_eq!(client.read(26), b"welcome to 0\nletter\nafter\n");
    }

    fn a_letter_to_a_connection_that_is_gone_reaches_nobody<B>() {
        let (server, told, remotes) = teller::<B>();
        let mut client = server.connect();
        client.send("pause\n");
        let (id, remote) = remotes.recv_timeout(PATIENCE).expect("paused");
        client.reset();
        // The slot is free once the connection is buried; letters make the loop look.
        while told.try_recv().is_err() {
            remote.post(id, "knock\n".into());
            std::thread::yield_now();
        }
        let mut heir = server.connect();
        heir.send("mine\n");
        remote.post(id, "not yours\n".into());
        heir.send("bye\n");
        assert_eq!(heir.rest(), b"welcome to 0\nmine\n");
    }

    fn an_abort_is_a_reset<B>() {
        let (server, told, _) = teller::<B>();
        let mut client = server.connect();
        client.read(13);
        client.send("no\n");
        let mut rest = Vec::new();
        let outcome = std::io::Read::read_to_end(&mut client.socket, &mut rest);
        assert!(outcome.is_err() || rest.is_empty(), "{rest:?}");
        assert_eq!(told.recv_timeout(PATIENCE).expect("closed"), "Refused");
    }

    fn everybody_gets_a_last_line_when_the_loop_drains<B>() {
        let (server, told, _) = teller::<B>();
        let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.read(13);
        }
        server.drain();
        for client in &mut clients {
            assert_eq!(client.rest(), b"going down\n");
            assert_eq!(told.recv_timeout(PATIENCE).expect("closed"), "Drain");
        }
    }

    fn connections_through_several_listeners_and_adopted_ones_are_told_apart<B>() {
        let (send, told) = mpsc::channel();
        let app = Teller(send, None, None);
        let mut event_loop = EventLoop::<B, _>::with(Timeouts::default(), Limits::default(), app).expect("a loop");
        let addresses: Vec<SocketAddr> = (0..2)
            .map(|_| {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
                let address = listener.local_addr().expect("an address");
                event_loop.listen(listener).expect("watched");
                address
            })
            .collect();
        let handle = event_loop.handle();
        let thread = std::thread::spawn(move || {
            for (number, &address) in addresses.iter().enumerate() {
                let mut client = Client::new(address);
                client.send("bye\n");
                assert_eq!(client.rest(), format!("welcome to {number}\n").as_bytes());
            }
            handle.drain();
        });
        event_loop.run().expect("turns");
        thread.join().expect("no panic");
        assert_eq!(told.iter().take(2).collect::<Vec<_>>(), ["Done", "Done"]);
    }
}

/// A socket that is connected, or connecting, is served as if it had been accepted.
fn adoption<B>()
where
    B: Readiness<Stream = TcpStream> + 'static,
{
    let (send, told) = mpsc::channel();
    let app = Teller(send, None, None);
    let mut event_loop = EventLoop::<B, _>::with(Timeouts::default(), Limits::default(), app).expect("a loop");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let near = std::net::TcpStream::connect(address).expect("connected");
    let (far, _) = listener.accept().expect("accepted");
    event_loop.adopt(near.try_into().expect("alive"), false);

    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("alive");
    // The connect is under way, or done already on this machine.
    let _ = socket.connect(&address.into());
    event_loop.adopt(std::net::TcpStream::from(socket).try_into().expect("alive"), true);

    let refused = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("an address");
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("alive");
    let _ = socket.connect(&refused.into());
    if let Ok(stream) = std::net::TcpStream::from(socket).try_into() {
        event_loop.adopt(stream, true);
    }

    let handle = event_loop.handle();
    let thread = std::thread::spawn(move || {
        for stream in [far, listener.accept().expect("accepted").0] {
            let mut client = Client::over(stream);
            client.send("bye\n");
            assert_eq!(client.rest(), b"welcome to 9\n");
        }
        handle.drain();
    });
    while event_loop.turn().expect("turns") == Turn::Again {}
    thread.join().expect("no panic");
    let reasons: Vec<String> = told.try_iter().collect();
    assert_eq!(reasons.iter().filter(|reason| *reason == "Done").count(), 2, "{reasons:?}");
    assert!(reasons.iter().any(|reason| reason.contains("Refused")), "{reasons:?}");
}

#[test]
fn sockets_are_adopted_on_select() {
    adoption::<serverd::r#loop::Select>();
}

#[test]
#[cfg(target_os = "linux")]
fn sockets_are_adopted_on_epoll() {
    adoption::<serverd::r#loop::Epoll>();
}

#[test]
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
fn sockets_are_adopted_on_kqueue() {
    adoption::<serverd::r#loop::Kqueue>();
}
