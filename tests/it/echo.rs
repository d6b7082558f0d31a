//! The echo application over sockets: every byte, in order, whatever the peer does.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serverd::apps::Echo;
use serverd::r#loop::Limits;
use serverd::{Accepted, App, ConnId, Ending, Flow, Phase, Remote, Timeouts, Wire};

use crate::harness::{Backend, Random, Server, on_every_backend, serve_with};

fn echo<B: Backend>() -> Server {
    serve_with::<B, _>(Timeouts::default(), limits(), || Echo)
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    Echo::bound(&mut limits);
    limits
}

/// Echo, and the most it ever had to keep for a connection.
struct Gauge(Echo, Arc<AtomicUsize>);

impl Gauge {
    fn note(&self, wire: &mut Wire<'_, ()>) {
        self.1.fetch_max(wire.output().len(), Ordering::SeqCst);
    }
}

impl App for Gauge {
    type State = ();
    type Letter = ();

    fn start(&mut self, remote: Remote<()>) {
        self.0.start(remote);
    }

    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, ()>) -> ((), Flow) {
        self.0.open(accepted, wire)
    }

    fn receive(&mut self, state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        let flow = self.0.receive(state, wire);
        self.note(wire);
        flow
    }

    fn letter(&mut self, state: &mut (), (): (), wire: &mut Wire<'_, ()>) -> Flow {
        self.0.letter(state, (), wire)
    }

    fn drained(&mut self, state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        assert!(wire.output().len() <= Echo::LOW_BYTES, "told before the low mark");
        self.0.drained(state, wire)
    }

    fn timer(&mut self, state: &mut (), phase: Phase, wire: &mut Wire<'_, ()>) -> Flow {
        self.0.timer(state, phase, wire)
    }

    fn drain(&mut self, state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        self.0.drain(state, wire)
    }

    fn closed(&mut self, id: ConnId, state: (), ending: Ending) {
        self.0.closed(id, state, ending);
    }

    fn end_of_turn(&mut self, posts: &mut Vec<(ConnId, ())>) {
        self.0.end_of_turn(posts);
    }
}

/// Writes without reading until the server takes no more; returns how much it took.
fn stuff(socket: &mut std::net::TcpStream, bytes: &[u8]) -> usize {
    socket.set_nonblocking(true).expect("alive");
    let (mut sent, mut idle) = (0, 0);
    while sent < bytes.len() && idle < 100 {
        match socket.write(&bytes[sent..]) {
            Ok(count) => {
                sent += count;
                idle = 0;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                idle += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
    socket.set_nonblocking(false).expect("alive");
    sent
}

on_every_backend! {
    fn two_hundred_connections_get_their_own_bytes_back<B>() {
        const EACH: usize = 40_000;
        let server = echo::<B>();
        let mut random = Random::new(6);
        let data: Vec<Vec<u8>> = (0..200).map(|_| random.bytes(EACH)).collect();
        let mut clients: Vec<_> = data.iter().map(|_| server.connect()).collect();
        let (mut sent, mut back) = (vec![0; 200], vec![Vec::new(); 200]);
        // No connection ever has more under way than fits into its buffers, so one thread drives them all.
        while back.iter().any(|bytes| bytes.len() < EACH) {
            let who = random.below(200);
            let piece = (1 + random.below(3000)).min(EACH - sent[who]);
            clients[who].send(&data[who][sent[who]..sent[who] + piece]);
            sent[who] += piece;
            let whom = random.below(200);
            let due = sent[whom] - back[whom].len();
            back[whom].extend(clients[whom].read(due));
        }
        for (who, client) in clients.iter_mut().enumerate() {
            assert!(back[who] == data[who], "connection {who}");
            client.finish();
            client.expect_close();
        }
    }

    fn a_client_that_never_reads_costs_two_marks_at_most_and_disturbs_nobody<B>() {
        let most = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&most);
        let server = serve_with::<B, _>(Timeouts::default(), limits(), move || Gauge(Echo, seen));
        let bytes = Random::new(7).bytes(32 << 20);
        let mut silent = server.connect();
        let sent = stuff(&mut silent.socket, &bytes);
        assert!(sent < bytes.len(), "the server read without end");
        let mut other = server.connect();
        other.send("still here?");
        assert_eq!(other.read(11), b"still here?");
        let bound = Echo::HIGH_BYTES + limits().read_bytes_per_turn;
        assert!(most.load(Ordering::SeqCst) <= bound, "kept {most:?}");
        // Once it reads, everything comes, and nothing else.
        silent.socket.shutdown(Shutdown::Write).expect("alive");
        assert!(silent.rest() == bytes[..sent]);
    }

    fn what_is_queued_is_sent_after_the_clients_end<B>() {
        let server = echo::<B>();
        let bytes = Random::new(8).bytes(3 << 20);
        let mut client = server.connect();
        let mut writer = client.socket.try_clone().expect("alive");
        let copy = bytes.clone();
        let thread = std::thread::spawn(move || {
            writer.write_all(&copy).expect("the server reads");
            writer.shutdown(Shutdown::Write).expect("alive");
        });
        assert!(client.rest() == bytes);
        thread.join().expect("sent");
    }

    fn nobody_is_closed_for_silence_unless_asked_for<B>() {
        let brief = Some(Duration::from_millis(50));
        let only_http = Timeouts { silent: brief, head: brief, body: brief, idle: brief, ..Timeouts::default() };
        let server = serve_with::<B, _>(only_http.clone(), limits(), || Echo);
        let mut client = server.connect();
        client.socket.set_read_timeout(Some(Duration::from_millis(300))).expect("alive");
        let error = client.socket.read(&mut [0]).expect_err("nothing comes, and no end");
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
        client.send("x");
        assert_eq!(client.read(1), b"x");
        let server = serve_with::<B, _>(Timeouts { open: brief, ..only_http }, limits(), || Echo);
        server.connect().expect_close();
    }
}
