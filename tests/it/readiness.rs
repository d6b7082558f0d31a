//! What `serverd::r#loop::readiness` promises of a backend, asked of each backend alone, without a loop.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serverd::r#loop::readiness::{Event, Interest, Listener, Stream, Token};

use crate::harness::{Backend, PATIENCE, on_every_backend};

const BOTH: Interest = Interest { read: true, write: true };

/// A backend that watches a listener of its own, under [`Watching::DOOR`].
struct Watching<B: Backend> {
    backend: B,
    listener: B::Listener,
    address: SocketAddr,
}

/// A stream as the loop drives it: what was told is remembered until a call says that there is no more.
struct Driven<S> {
    stream: S,
    readable: bool,
    hangup: bool,
}

impl<S: Stream> Driven<S> {
    /// Reads what there is. The end is `None` behind the octets.
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

impl<B: Backend> Watching<B> {
    const DOOR: Token = Token(usize::MAX - 1);

    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut listener = B::Listener::from(listener);
        listener.prepare(128).expect("a listener");
        let mut backend = B::new().expect("a backend");
        backend.add(listener.source(), Self::DOOR, Interest::READ).expect("watched");
        Watching { backend, listener, address }
    }

    /// Waits until something about `token` is told that `matters`. Events without a cause are legal, and so are waits
    /// that find nothing.
    fn wait_for(&mut self, token: Token, matters: impl Fn(&Event) -> bool) -> Event {
        let (start, mut events) = (Instant::now(), Vec::new());
        loop {
            self.backend.wait(&mut events, Some(Duration::from_millis(100))).expect("a wait");
            if let Some(event) = events.drain(..).find(|event| event.token == token && matters(event)) {
                return event;
            }
            assert!(start.elapsed() < PATIENCE, "nothing is told of {token:?}");
        }
    }

    /// Accepts whoever waits.
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

    /// A connection, watched under `token`, and its far end.
    fn connect(&mut self, token: Token, interest: Interest) -> (Driven<B::Stream>, TcpStream) {
        let far = TcpStream::connect(self.address).expect("a connection");
        far.set_nodelay(true).expect("a live socket");
        far.set_read_timeout(Some(PATIENCE)).expect("a live socket");
        let stream = loop {
            self.wait_for(Self::DOOR, |event| event.readable);
            if let Some(stream) = self.accept().pop() {
                break stream;
            }
        };
        self.backend.add(stream.source(), token, interest).expect("watched");
        (Driven { stream, readable: true, hangup: false }, far)
    }

    /// Waits and reads until so much was seen.
    fn read(&mut self, token: Token, driven: &mut Driven<B::Stream>, seen: &mut Vec<Option<u8>>, enough: usize) {
        while seen.len() < enough {
            let event = self.wait_for(token, |event| event.readable);
            driven.readable = true;
            driven.hangup |= event.hangup;
            driven.read(seen);
        }
    }
}

/// Writes until no more is taken.
fn stuff(stream: &mut impl Stream) -> usize {
    let (block, mut taken) = (vec![b'x'; 64 * 1024], 0);
    loop {
        match stream.write(&block) {
            // A stream that takes a part at a time is not full.
            Ok(sent) => taken += sent.bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return taken,
            Err(error) => panic!("{error}"),
        }
    }
}

on_every_backend! {
    fn what_comes_to_an_empty_stream_is_reported_each_time<B>() {
        let mut watching = Watching::<B>::new();
        let (mut near, mut far) = watching.connect(Token(1), Interest::READ);
        let mut seen = Vec::new();
        for round in 1..=20 {
            near.read(&mut seen);
            far.write_all(b"abc").expect("a live socket");
            watching.read(Token(1), &mut near, &mut seen, 3 * round);
        }
        assert_eq!(seen.len(), 60);
    }

    fn the_end_is_reported_behind_what_was_sent<B>() {
        let mut watching = Watching::<B>::new();
        let (mut near, mut far) = watching.connect(Token(1), Interest::READ);
        let mut seen = Vec::new();
        near.read(&mut seen);
        far.write_all(&[b'a'; 9000]).expect("a live socket");
        far.shutdown(Shutdown::Write).expect("a live socket");
        watching.read(Token(1), &mut near, &mut seen, 9001);
        assert_eq!((seen.len(), seen[8999], seen[9000]), (9001, Some(b'a'), None));
        // The other direction is open still.
        while !near.stream.write(b"z").is_ok_and(|sent| sent.bytes == 1) {}
        assert_eq!(far.read(&mut [0; 8]).expect("a live socket"), 1);
    }

    fn an_end_that_comes_by_itself_is_reported<B>() {
        let mut watching = Watching::<B>::new();
        let (mut near, mut far) = watching.connect(Token(1), Interest::READ);
        let mut seen = Vec::new();
        far.write_all(b"abc").expect("a live socket");
        watching.read(Token(1), &mut near, &mut seen, 3);
        assert_eq!(seen, [Some(b'a'), Some(b'b'), Some(b'c')]);
        drop(far);
        watching.read(Token(1), &mut near, &mut seen, 4);
        assert_eq!(seen[3], None);
    }

    fn what_is_ready_is_reported_again_after_a_change_of_interest<B>() {
        let mut watching = Watching::<B>::new();
        let (near, mut far) = watching.connect(Token(1), Interest::READ);
        far.write_all(b"abc").expect("a live socket");
        watching.wait_for(Token(1), |event| event.readable);
        for _ in 0..5 {
            watching.backend.set_interest(near.stream.source(), Token(1), BOTH).expect("watched");
            watching.wait_for(Token(1), |event| event.writable);
            watching.backend.set_interest(near.stream.source(), Token(1), Interest::READ).expect("watched");
            watching.wait_for(Token(1), |event| event.readable);
        }
    }

    fn room_is_reported_once_the_peer_has_read<B>() {
        let mut watching = Watching::<B>::new();
        let (mut near, mut far) = watching.connect(Token(1), Interest::READ);
        for _ in 0..3 {
            let stuffed = stuff(&mut near.stream);
            watching.backend.set_interest(near.stream.source(), Token(1), BOTH).expect("watched");
            far.read_exact(&mut vec![0; stuffed]).expect("a live socket");
            while near.stream.write(b"x").map_or(0, |sent| sent.bytes) == 0 {
                watching.wait_for(Token(1), |event| event.writable);
            }
            watching.backend.set_interest(near.stream.source(), Token(1), Interest::READ).expect("watched");
            far.read_exact(&mut [0]).expect("a live socket");
        }
    }

    fn a_reset_is_told_and_then_met<B>() {
        let mut watching = Watching::<B>::new();
        let (mut near, far) = watching.connect(Token(1), BOTH);
        while near.stream.read(&mut [0; 8]).is_ok() {}
        socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).expect("a live socket");
        drop(far);
        loop {
            watching.wait_for(Token(1), |event| event.readable);
            match near.stream.read(&mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Some systems tell the end of the stream instead.
                Ok(received) => return assert_eq!(received.bytes, 0),
                Err(error) => return assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
            }
        }
    }

    fn whoever_waits_at_a_listener_is_reported_each_time<B>() {
        let mut watching = Watching::<B>::new();
        for _ in 0..5 {
            let far: Vec<_> = (0..7).map(|_| TcpStream::connect(watching.address).expect("a connection")).collect();
            let mut accepted = 0;
            while accepted < far.len() {
                watching.wait_for(Watching::<B>::DOOR, |event| event.readable);
                accepted += watching.accept().len();
            }
            assert_eq!(accepted, 7);
        }
    }

    // Also where the descriptor has another owner by then, and its last one had something to be told of.
    fn nobody_hears_of_a_source_that_is_closed<B>() {
        let mut watching = Watching::<B>::new();
        for round in 1..20 {
            let (near, mut far) = watching.connect(Token(2 * round), BOTH);
            far.write_all(b"abc").expect("a live socket");
            drop(far);
            watching.wait_for(Token(2 * round), |event| event.readable);
            watching.backend.set_interest(near.stream.source(), Token(2 * round), BOTH).expect("watched");
            watching.backend.remove(near.stream.source(), Token(2 * round)).expect("was watched");
            drop(near);
            let (near, mut far) = watching.connect(Token(2 * round + 1), Interest::READ);
            far.write_all(b"abc").expect("a live socket");
            let mut events = Vec::new();
            while !events.iter().any(|event: &Event| event.token == Token(2 * round + 1) && event.readable) {
                watching.backend.wait(&mut events, Some(PATIENCE)).expect("a wait");
            }
            assert!(events.iter().all(|event| event.token != Token(2 * round)), "{events:?}");
            watching.backend.remove(near.stream.source(), Token(2 * round + 1)).expect("was watched");
        }
    }

    fn a_waker_ends_the_wait_under_way_or_else_the_next_one<B>() {
        let mut backend = B::new().expect("a backend");
        let (waker, mut events) = (backend.waker(), Vec::new());
        for _ in 0..20 {
            waker.wake_by_ref();
            backend.wait(&mut events, None).expect("a wait");
            let far = waker.clone();
            let thread = std::thread::spawn(move || far.wake());
            backend.wait(&mut events, None).expect("a wait");
            thread.join().expect("no panic");
        }
        assert_eq!(events, [], "the waker's own event is not told");
    }

    fn the_longest_wait_is_one_that_the_system_takes<B>() {
        let mut backend = B::new().expect("a backend");
        for timeout in [Duration::MAX, Duration::from_secs(u64::from(u32::MAX)), Duration::from_secs(1 << 40)] {
            backend.waker().wake();
            backend.wait(&mut Vec::new(), Some(timeout)).expect("a wait");
        }
    }
}
