//! The echo server over sockets: all bytes are echoed in order, whatever the client does.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serverd::apps::Echo;
use serverd::{Accepted, App, CloseInfo, ConnId, Flow, LoopLimits, Phase, Remote, Timeouts, Wire};

use crate::harness::{Backend, Random, Server, on_every_backend, serve_with};

fn echo<B: Backend>() -> Server {
    serve_with::<B, _>(Timeouts::default(), limits(), || Echo)
}

fn limits() -> LoopLimits {
    let mut limits = LoopLimits::default();
    Echo::set_watermarks(&mut limits);
    limits
}

/// Wraps [`Echo`] and records the maximum unsent output of a connection.
struct PeakRecorder(Echo, Arc<AtomicUsize>);

impl PeakRecorder {
    fn record(&self, wire: &mut Wire<'_, ()>) {
        self.1.fetch_max(wire.output().len(), Ordering::SeqCst);
    }
}

impl App for PeakRecorder {
    type State = ();
    type Message = ();

    fn start(&mut self, remote: Remote<()>) {
        self.0.start(remote);
    }

    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, ()>) -> ((), Flow) {
        self.0.open(accepted, wire)
    }

    fn receive(&mut self, state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        let flow = self.0.receive(state, wire);
        self.record(wire);
        flow
    }

    fn message(&mut self, state: &mut (), (): (), wire: &mut Wire<'_, ()>) -> Flow {
        self.0.message(state, (), wire)
    }

    fn output_drained(&mut self, state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        assert!(wire.output().len() <= Echo::LOW_WATERMARK_BYTES, "called above the low watermark");
        self.0.output_drained(state, wire)
    }

    fn timer(&mut self, state: &mut (), phase: Phase, wire: &mut Wire<'_, ()>) -> Flow {
        self.0.timer(state, phase, wire)
    }

    fn drain(&mut self, state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        self.0.drain(state, wire)
    }

    fn closed(&mut self, id: ConnId, state: (), info: CloseInfo) {
        self.0.closed(id, state, info);
    }

    fn end_of_turn(&mut self, messages: &mut Vec<(ConnId, ())>) {
        self.0.end_of_turn(messages);
    }
}

/// Writes without reading until the server stops reading; returns the number of bytes written.
fn fill(socket: &mut std::net::TcpStream, bytes: &[u8]) -> usize {
    socket.set_nonblocking(true).expect("set nonblocking");
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
    socket.set_nonblocking(false).expect("set nonblocking");
    sent
}

on_every_backend! {
    over_tls_too:

    #[plain_tcp]
    fn two_hundred_connections_each_get_their_own_bytes_back<B>() {
        const EACH: usize = 40_000;
        let server = echo::<B>();
        let mut random = Random::new(6);
        let data: Vec<Vec<u8>> = (0..200).map(|_| random.bytes(EACH)).collect();
        let mut clients: Vec<_> = data.iter().map(|_| server.connect()).collect();
        let (mut sent, mut received) = (vec![0; 200], vec![Vec::new(); 200]);
        // The bytes in flight always fit into the socket buffers, so a single thread can drive all connections.
        while received.iter().any(|bytes| bytes.len() < EACH) {
            let sender = random.below(200);
            let piece = (1 + random.below(3000)).min(EACH - sent[sender]);
            clients[sender].send(&data[sender][sent[sender]..sent[sender] + piece]);
            sent[sender] += piece;
            let from = random.below(200);
            let due = sent[from] - received[from].len();
            received[from].extend(clients[from].read(due));
        }
        for (sender, client) in clients.iter_mut().enumerate() {
            assert!(received[sender] == data[sender], "connection {sender}");
            client.finish();
            client.expect_close();
        }
    }

    #[plain_tcp]
    fn output_to_a_client_that_never_reads_is_bounded_and_others_are_unaffected<B>() {
        let peak = Arc::new(AtomicUsize::new(0));
        let shared_peak = Arc::clone(&peak);
        let server = serve_with::<B, _>(Timeouts::default(), limits(), move || PeakRecorder(Echo, shared_peak));
        let bytes = Random::new(7).bytes(32 << 20);
        let mut client = server.connect();
        let sent = fill(&mut client.socket, &bytes);
        assert!(sent < bytes.len(), "the server never stopped reading");
        let mut other = server.connect();
        other.send("still here?");
        assert_eq!(other.read(11), b"still here?");
        let limit = Echo::HIGH_WATERMARK_BYTES + limits().read_bytes_per_turn;
        assert!(peak.load(Ordering::SeqCst) <= limit, "buffered {peak:?}");
        // Once the client reads, it receives exactly what it sent.
        client.socket.shutdown(Shutdown::Write).expect("half-close");
        assert!(client.read_to_end() == bytes[..sent]);
    }

    #[plain_tcp]
    fn queued_output_is_sent_after_the_client_half_closes<B>() {
        let server = echo::<B>();
        let bytes = Random::new(8).bytes(3 << 20);
        let mut client = server.connect();
        let mut writer = client.socket.try_clone().expect("clone socket");
        let copy = bytes.clone();
        let thread = std::thread::spawn(move || {
            writer.write_all(&copy).expect("write");
            writer.shutdown(Shutdown::Write).expect("half-close");
        });
        assert!(client.read_to_end() == bytes);
        thread.join().expect("writer thread");
    }

    #[plain_tcp]
    fn idle_connections_stay_open_without_a_timeout<B>() {
        let short = Some(Duration::from_millis(50));
        let http_only = Timeouts::default().silent(short).head(short).body(short).idle(short);
        let server = serve_with::<B, _>(http_only.clone(), limits(), || Echo);
        let mut client = server.connect();
        client.socket.set_read_timeout(Some(Duration::from_millis(300))).expect("set read timeout");
        let error = client.socket.read(&mut [0]).expect_err("no data and no close");
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
        client.send("x");
        assert_eq!(client.read(1), b"x");
        let server = serve_with::<B, _>(http_only.open(short), limits(), || Echo);
        server.connect().expect_close();
    }
}
