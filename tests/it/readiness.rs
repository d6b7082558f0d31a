//! Tests each backend against the contract in `serverd::readiness`, without an event loop.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serverd::readiness::{Event, Interest, Listener, Stream, Token};

use crate::harness::{Backend, WAIT_MAX, on_every_backend};

const BOTH: Interest = Interest { read: true, write: true };

/// A backend with a registered listener, whose token is [`Fixture::LISTENER`].
struct Fixture<B: Backend> {
    backend: B,
    listener: B::Listener,
    address: SocketAddr,
}

/// A stream driven as the loop drives it: it counts as readable until a read reports that there is no more.
struct DrivenStream<S> {
    stream: S,
    readable: bool,
    hangup: bool,
}

impl<S: Stream> DrivenStream<S> {
    /// Reads all available bytes; appends `None` at the end of the stream.
    fn read(&mut self, seen: &mut Vec<Option<u8>>) {
        let mut buffer = [0; 4096];
        while self.readable {
            match self.stream.read(&mut buffer) {
                Ok(received) if received.bytes == 0 => {
                    seen.push(None);
                    self.readable = false;
                }
                Ok(received) => {
                    seen.extend(buffer[..received.bytes].iter().copied().map(Some));
                    self.readable = received.more || self.hangup;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl<B: Backend> Fixture<B> {
    const LISTENER: Token = Token(usize::MAX - 1);

    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut listener = B::Listener::from(listener);
        listener.prepare(128).expect("a listener");
        let mut backend = B::new().expect("a backend");
        backend.add(listener.source(), Self::LISTENER, Interest::READ).expect("registered");
        Fixture { backend, listener, address }
    }

    /// Waits for an event of `token` that `matches`. Spurious events and waits without events are permitted.
    fn wait_for(&mut self, token: Token, matches: impl Fn(&Event) -> bool) -> Event {
        let (start, mut events) = (Instant::now(), Vec::new());
        loop {
            self.backend.wait(&mut events, Some(Duration::from_millis(100))).expect("a wait");
            if let Some(event) = events.drain(..).find(|event| event.token == token && matches(event)) {
                return event;
            }
            assert!(start.elapsed() < WAIT_MAX, "no event of {token:?}");
        }
    }

    /// Accepts all connections in the queue.
    fn accept(&mut self) -> Vec<B::Stream> {
        let mut accepted = Vec::new();
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => accepted.push(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return accepted,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Creates a connection, registers the accepted end with `token`, and returns both ends.
    fn connect(&mut self, token: Token, interest: Interest) -> (DrivenStream<B::Stream>, TcpStream) {
        let peer = TcpStream::connect(self.address).expect("a connection");
        peer.set_nodelay(true).expect("the socket is open");
        peer.set_read_timeout(Some(WAIT_MAX)).expect("the socket is open");
        let stream = loop {
            self.wait_for(Self::LISTENER, |event| event.readable);
            if let Some(stream) = self.accept().pop() {
                break stream;
            }
        };
        self.backend.add(stream.source(), token, interest).expect("registered");
        (DrivenStream { stream, readable: true, hangup: false }, peer)
    }

    /// Waits and reads until `seen` has `len` elements.
    fn read(&mut self, token: Token, driven: &mut DrivenStream<B::Stream>, seen: &mut Vec<Option<u8>>, len: usize) {
        while seen.len() < len {
            let event = self.wait_for(token, |event| event.readable);
            driven.readable = true;
            driven.hangup |= event.hangup;
            driven.read(seen);
        }
    }
}

/// Writes until the stream is full; returns the number of bytes written.
fn fill(stream: &mut impl Stream) -> usize {
    let (block, mut written) = (vec![b'x'; 64 * 1024], 0);
    loop {
        match stream.write(&block) {
            // A short write does not mean that the stream is full.
            Ok(sent) => written += sent.bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return written,
            Err(error) => panic!("{error}"),
        }
    }
}

on_every_backend! {
    fn data_arriving_at_an_empty_stream_is_reported_each_time<B>() {
        let mut fixture = Fixture::<B>::new();
        let (mut local, mut peer) = fixture.connect(Token(1), Interest::READ);
        let mut seen = Vec::new();
        for round in 1..=20 {
            local.read(&mut seen);
            peer.write_all(b"abc").expect("the socket is open");
            fixture.read(Token(1), &mut local, &mut seen, 3 * round);
        }
        assert_eq!(seen.len(), 60);
    }

    fn the_end_of_the_stream_is_reported_after_its_data<B>() {
        let mut fixture = Fixture::<B>::new();
        let (mut local, mut peer) = fixture.connect(Token(1), Interest::READ);
        let mut seen = Vec::new();
        local.read(&mut seen);
        peer.write_all(&[b'a'; 9000]).expect("the socket is open");
        peer.shutdown(Shutdown::Write).expect("the socket is open");
        fixture.read(Token(1), &mut local, &mut seen, 9001);
        assert_eq!((seen.len(), seen[8999], seen[9000]), (9001, Some(b'a'), None));
        // The other direction is still open.
        while !local.stream.write(b"z").is_ok_and(|sent| sent.bytes == 1) {}
        assert_eq!(peer.read(&mut [0; 8]).expect("the socket is open"), 1);
    }

    fn an_end_of_stream_without_new_data_is_reported<B>() {
        let mut fixture = Fixture::<B>::new();
        let (mut local, mut peer) = fixture.connect(Token(1), Interest::READ);
        let mut seen = Vec::new();
        peer.write_all(b"abc").expect("the socket is open");
        fixture.read(Token(1), &mut local, &mut seen, 3);
        assert_eq!(seen, [Some(b'a'), Some(b'b'), Some(b'c')]);
        drop(peer);
        fixture.read(Token(1), &mut local, &mut seen, 4);
        assert_eq!(seen[3], None);
    }

    fn a_ready_stream_is_reported_again_after_a_change_of_interest<B>() {
        let mut fixture = Fixture::<B>::new();
        let (local, mut peer) = fixture.connect(Token(1), Interest::READ);
        peer.write_all(b"abc").expect("the socket is open");
        fixture.wait_for(Token(1), |event| event.readable);
        for _ in 0..5 {
            fixture.backend.set_interest(local.stream.source(), Token(1), BOTH).expect("registered");
            fixture.wait_for(Token(1), |event| event.writable);
            fixture.backend.set_interest(local.stream.source(), Token(1), Interest::READ).expect("registered");
            fixture.wait_for(Token(1), |event| event.readable);
        }
    }

    fn a_full_stream_is_reported_writable_once_the_peer_has_read<B>() {
        let mut fixture = Fixture::<B>::new();
        let (mut local, mut peer) = fixture.connect(Token(1), Interest::READ);
        for _ in 0..3 {
            let written = fill(&mut local.stream);
            fixture.backend.set_interest(local.stream.source(), Token(1), BOTH).expect("registered");
            peer.read_exact(&mut vec![0; written]).expect("the socket is open");
            while local.stream.write(b"x").map_or(0, |sent| sent.bytes) == 0 {
                fixture.wait_for(Token(1), |event| event.writable);
            }
            fixture.backend.set_interest(local.stream.source(), Token(1), Interest::READ).expect("registered");
            peer.read_exact(&mut [0]).expect("the socket is open");
        }
    }

    fn a_reset_is_reported_and_returned_by_the_next_read<B>() {
        let mut fixture = Fixture::<B>::new();
        let (mut local, peer) = fixture.connect(Token(1), BOTH);
        while local.stream.read(&mut [0; 8]).is_ok() {}
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("the socket is open");
        drop(peer);
        loop {
            fixture.wait_for(Token(1), |event| event.readable);
            match local.stream.read(&mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Some systems report the end of the stream instead.
                Ok(received) => return assert_eq!(received.bytes, 0),
                Err(error) => return assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
            }
        }
    }

    fn connections_in_the_accept_queue_are_reported_each_time<B>() {
        let mut fixture = Fixture::<B>::new();
        for _ in 0..5 {
            let peers: Vec<_> = (0..7).map(|_| TcpStream::connect(fixture.address).expect("a connection")).collect();
            let mut accepted = 0;
            while accepted < peers.len() {
                fixture.wait_for(Fixture::<B>::LISTENER, |event| event.readable);
                accepted += fixture.accept().len();
            }
            assert_eq!(accepted, 7);
        }
    }

    // Not even if its descriptor has been reused and it had pending events when it was closed.
    fn a_closed_source_is_not_reported<B>() {
        let mut fixture = Fixture::<B>::new();
        for round in 1..20 {
            let (local, mut peer) = fixture.connect(Token(2 * round), BOTH);
            peer.write_all(b"abc").expect("the socket is open");
            drop(peer);
            fixture.wait_for(Token(2 * round), |event| event.readable);
            fixture.backend.set_interest(local.stream.source(), Token(2 * round), BOTH).expect("registered");
            fixture.backend.remove(local.stream.source(), Token(2 * round)).expect("was registered");
            drop(local);
            let (local, mut peer) = fixture.connect(Token(2 * round + 1), Interest::READ);
            peer.write_all(b"abc").expect("the socket is open");
            let mut events = Vec::new();
            while !events.iter().any(|event: &Event| event.token == Token(2 * round + 1) && event.readable) {
                fixture.backend.wait(&mut events, Some(WAIT_MAX)).expect("a wait");
            }
            assert!(events.iter().all(|event| event.token != Token(2 * round)), "{events:?}");
            fixture.backend.remove(local.stream.source(), Token(2 * round + 1)).expect("was registered");
        }
    }

    fn a_waker_ends_the_current_wait_or_else_the_next_one<B>() {
        let mut backend = B::new().expect("a backend");
        let (waker, mut events) = (backend.waker(), Vec::new());
        for _ in 0..20 {
            waker.wake_by_ref();
            backend.wait(&mut events, None).expect("a wait");
            let other = waker.clone();
            let thread = std::thread::spawn(move || other.wake());
            backend.wait(&mut events, None).expect("a wait");
            thread.join().expect("no panic");
        }
        assert_eq!(events, [], "the waker's own event is not reported");
    }

    fn very_long_timeouts_are_accepted<B>() {
        let mut backend = B::new().expect("a backend");
        for timeout in [Duration::MAX, Duration::from_secs(u64::from(u32::MAX)), Duration::from_secs(1 << 40)] {
            backend.waker().wake();
            backend.wait(&mut Vec::new(), Some(timeout)).expect("a wait");
        }
    }
}
