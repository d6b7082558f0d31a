//! The select backend: available on every system, level-triggered.
//!
//! The sets are maintained incrementally and copied for each call, only up to the highest file descriptor; an empty set
//! is passed as null. The waker is a socket that is always in the read set, since Windows rejects three empty sets. The
//! layout of a set and the call itself differ between systems: each system has its own file in `select/`, which also
//! confines the unsafe code.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use super::readiness::{Event, Interest, Readiness, SystemSource, Token};
use super::select_call::{Ready, Sets, Tokens, raw};
use super::socket::{SystemListener, SystemStream};
use super::socket_waker::SocketWaker;

/// The select backend: available on every system, level-triggered.
pub struct Select {
    sets: Sets,
    tokens: Tokens,
    /// The read end of the waker, always in the read set.
    wakeups: SocketWaker,
    waker: Arc<SelectWaker>,
    /// Number of registered sources, without the waker.
    watched: usize,
    /// The warning about too many sources was already logged.
    warned: bool,
}

/// The write end of the waker, shared by all [`Waker`]s of the loop.
struct SelectWaker(SocketWaker);

impl Wake for SelectWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        loop {
            match self.0.wake() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The loop is gone; a late wake-up is a no-op.
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return;
                }
                // `WouldBlock`: the buffer is full, so a wake-up is already pending.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return log::error!("cannot wake the event loop: {error}");
                }
                _ => return,
            }
        }
    }
}

/// Number of sources above which a warning recommends other backends: each source costs a fraction of a microsecond in
/// every call, even when idle.
const WARN_ABOVE: usize = 1000;

impl Select {
    fn count_source(&mut self) {
        self.watched += 1;
        if cfg!(unix) && self.watched > WARN_ABOVE && !self.warned {
            self.warned = true;
            log::warn!(
                target: "serverd::loop::select_scaling",
                "select is watching more than {WARN_ABOVE} sockets; epoll and kqueue scale better"
            );
        }
    }

    fn apply(&mut self, source: &SystemSource, interest: Interest) {
        let socket = raw(source);
        self.sets.set(socket, interest.read, interest.write);
    }
}

impl Readiness for Select {
    type Listener = SystemListener;
    type Stream = SystemStream;
    type Source = SystemSource;

    const NAME: &'static str = "select";
    const LEVEL_TRIGGERED: bool = true;

    fn new() -> io::Result<Self> {
        let (wakeups, write_end) = SocketWaker::pair()?;
        let mut sets = Sets::default();
        sets.set(raw(wakeups.source()), true, false);
        let (tokens, waker) = (Tokens::default(), Arc::new(SelectWaker(write_end)));
        Ok(Select { sets, tokens, wakeups, waker, watched: 0, warned: false })
    }

    fn add(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        if self.tokens.insert(raw(source), token).is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the source is already registered"));
        }
        self.apply(source, interest);
        self.count_source();
        Ok(())
    }

    fn set_interest(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        if self.tokens.get(raw(source)) != Some(token) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the source is not registered with this token"));
        }
        self.apply(source, interest);
        Ok(())
    }

    fn remove(&mut self, source: &SystemSource, _token: Token) -> io::Result<()> {
        if self.tokens.remove(raw(source)).is_none() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the source is not registered"));
        }
        self.apply(source, Interest::NONE);
        self.watched -= 1;
        Ok(())
    }

    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        let Select { sets, tokens, wakeups, .. } = self;
        let outcome = sets.select(timeout, |socket, ready| match tokens.get(socket) {
            Some(token) => {
                let Ready { readable, writable, hangup } = ready;
                events.push(Event { token, readable, writable, hangup });
            }
            None => wakeups.clear(),
        });
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            outcome => outcome,
        }
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<SystemStream> {
        SystemStream::connect(address)
    }

    fn waker(&self) -> Waker {
        Arc::clone(&self.waker).into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net;
    use std::time::Instant;

    use super::*;

    const BOTH: Interest = Interest { read: true, write: true };

    fn pair() -> (net::TcpStream, net::TcpStream) {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, _) = listener.accept().unwrap();
        local.set_nonblocking(true).unwrap();
        peer.set_nodelay(true).unwrap();
        (local, peer)
    }

    fn ready(select: &mut Select, timeout_ms: u64) -> Vec<(usize, bool, bool)> {
        let mut events = Vec::new();
        select.wait(&mut events, Some(Duration::from_millis(timeout_ms))).unwrap();
        events.iter().map(|event| (event.token.0, event.readable, event.writable)).collect()
    }

    #[test]
    fn readiness_is_reported_until_the_data_is_read() {
        let mut select = Select::new().unwrap();
        let (mut local, mut peer) = pair();
        select.add(&local, Token(7), Interest::READ).unwrap();
        assert_eq!(ready(&mut select, 0), []);
        peer.write_all(b"x").unwrap();
        assert_eq!(ready(&mut select, 1000), [(7, true, false)]);
        assert_eq!(ready(&mut select, 1000), [(7, true, false)]);
        local.read_exact(&mut [0]).unwrap();
        assert_eq!(ready(&mut select, 0), []);
        select.set_interest(&local, Token(7), BOTH).unwrap();
        assert_eq!(ready(&mut select, 1000), [(7, false, true)]);
    }

    #[test]
    fn removed_sources_and_sources_without_interest_are_not_reported() {
        let mut select = Select::new().unwrap();
        let (local, mut peer) = pair();
        peer.write_all(b"x").unwrap();
        select.add(&local, Token(1), BOTH).unwrap();
        assert!(!ready(&mut select, 1000).is_empty());
        select.set_interest(&local, Token(1), Interest::NONE).unwrap();
        assert_eq!(ready(&mut select, 0), []);
        select.set_interest(&local, Token(1), BOTH).unwrap();
        select.remove(&local, Token(1)).unwrap();
        assert_eq!(ready(&mut select, 0), []);
        assert!(select.remove(&local, Token(1)).is_err());
        assert!(select.set_interest(&local, Token(1), BOTH).is_err());
    }

    #[test]
    fn adding_a_source_twice_is_an_error() {
        let mut select = Select::new().unwrap();
        let (local, _peer) = pair();
        select.add(&local, Token(1), Interest::READ).unwrap();
        let error = select.add(&local, Token(2), Interest::READ).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }

    /// Winsock declares `fd_set` for 64 sockets.
    #[test]
    #[cfg(windows)]
    fn more_sockets_than_the_declared_set_size_are_watched() {
        let mut select = Select::new().unwrap();
        let pairs: Vec<_> = (0..300).map(|_| pair()).collect();
        for (number, (local, _)) in pairs.iter().enumerate() {
            select.add(local, Token(number), Interest::READ).unwrap();
        }
        assert_eq!(ready(&mut select, 0), []);
        for number in [299, 0, 64] {
            (&pairs[number].1).write_all(b"x").unwrap();
            assert_eq!(ready(&mut select, 1000), [(number, true, false)]);
            (&pairs[number].0).read_exact(&mut [0]).unwrap();
        }
        for (local, _) in &pairs[..200] {
            select.remove(local, Token(0)).unwrap();
        }
        (&pairs[0].1).write_all(b"x").unwrap();
        (&pairs[250].1).write_all(b"x").unwrap();
        assert_eq!(ready(&mut select, 1000), [(250, true, false)]);
    }

    #[test]
    #[cfg(unix)]
    fn descriptors_above_1023_are_watched() {
        if std::env::var_os("TEST_RUNNER").is_some() {
            return println!("skipped in an emulator: its select call rejects descriptors above 1,023");
        }
        let mut select = Select::new().unwrap();
        let (local, mut peer) = pair();
        let high = match rustix::io::fcntl_dupfd_cloexec(&local, 3000) {
            Ok(high) => high,
            Err(error) => return println!("skipped: no descriptor above 3,000 here ({error})"),
        };
        assert!(std::os::fd::AsRawFd::as_raw_fd(&high) >= 3000);
        select.add(&high, Token(9), Interest::READ).unwrap();
        assert_eq!(ready(&mut select, 0), []);
        peer.write_all(b"x").unwrap();
        assert_eq!(ready(&mut select, 1000), [(9, true, false)]);
        select.remove(&high, Token(9)).unwrap();
        assert_eq!(ready(&mut select, 0), []);
    }

    /// Ready sources take turns even when all are in the same word of the set.
    #[test]
    fn ready_sources_take_turns_being_reported_first() {
        for count in [3, 100] {
            let mut select = Select::new().unwrap();
            let pairs: Vec<_> = (0..count).map(|_| pair()).collect();
            for (number, (local, peer)) in pairs.iter().enumerate() {
                (&*peer).write_all(b"x").unwrap();
                select.add(local, Token(number), Interest::READ).unwrap();
            }
            // Wait until every byte has arrived.
            while ready(&mut select, 1000).len() < count {}
            let mut first: Vec<usize> = (0..2 * count).map(|_| ready(&mut select, 1000)[0].0).collect();
            first.sort_unstable();
            assert!(first.iter().enumerate().all(|(turn, number)| turn / 2 == *number), "{first:?}");
        }
    }

    /// Low descriptors that are always ready do not starve high ones, or vice versa.
    #[test]
    fn low_and_high_descriptors_take_turns() {
        let mut select = Select::new().unwrap();
        let pairs: Vec<_> = (0..300).map(|_| pair()).collect();
        let numbers = [0, 1, 2, 299];
        for number in numbers {
            select.add(&pairs[number].0, Token(number), BOTH).unwrap();
        }
        let mut first = [0; 4];
        for _ in 0..40 {
            let events = ready(&mut select, 1000);
            let index = numbers.iter().position(|number| *number == events[0].0).unwrap();
            first[index] += 1;
        }
        assert_eq!(first, [10; 4]);
    }

    #[test]
    fn a_waker_ends_a_wait_without_a_timeout() {
        let mut select = Select::new().unwrap();
        let waker = select.waker();
        let thread = std::thread::spawn(move || waker.wake());
        let mut events = Vec::new();
        select.wait(&mut events, None).unwrap();
        assert_eq!(events, []);
        thread.join().unwrap();
        assert_eq!(ready(&mut select, 0), []);
    }

    #[test]
    fn a_wait_never_returns_early() {
        let mut select = Select::new().unwrap();
        let start = Instant::now();
        assert_eq!(ready(&mut select, 30), []);
        assert!(start.elapsed() >= Duration::from_millis(30));
    }
}
