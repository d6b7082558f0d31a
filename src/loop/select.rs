//! Readiness by the select call, which every system has: level-triggered.
//!
//! The sets are kept incrementally and copied for each call, up to the highest descriptor only; a set nobody is in
//! is not passed. The waker is a socket that is always in the read set (Windows refuses three empty sets). What
//! differs between systems is the shape of a set and the call itself; both stand in one file per system, which are
//! the only ones with unsafe code.

#[cfg(unix)]
#[path = "select/unix.rs"]
mod system;
#[cfg(windows)]
#[path = "select/windows.rs"]
mod system;

use std::io;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

pub(super) use self::system::Bell;
use self::system::{Sets, Tokens, raw};
use super::readiness::{Event, Interest, Readiness, SystemSource, Token};
use super::socket::{TcpListener, TcpStream};

/// The select backend.
pub struct Select {
    sets: Sets,
    tokens: Tokens,
    bell: Bell,
    ringer: Arc<Ringer>,
    watched: usize,
    /// That another backend would be better was said.
    told: bool,
}

/// The far end of the bell.
struct Ringer(Bell);

impl Wake for Ringer {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        loop {
            match self.0.ring() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The loop is gone, and who is told so late need not know.
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return;
                }
                // Full: it rings already.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return log::error!("cannot wake the event loop: {error}");
                }
                _ => return,
            }
        }
    }
}

/// With more sources than this another backend is worth naming: each one costs a fraction of a microsecond in every
/// call, whether anything happens there or not.
const CROWD: usize = 1000;

/// That backend.
const BETTER: &str = if cfg!(target_os = "linux") { "epoll" } else { "kqueue" };

impl Select {
    fn count_one_more(&mut self) {
        self.watched += 1;
        if cfg!(unix) && self.watched > CROWD && !self.told {
            self.told = true;
            log::warn!(
                "select watches more than {CROWD} sockets; {BETTER} takes less time for so many (--backend {BETTER})"
            );
        }
    }

    fn apply(&mut self, source: &SystemSource, interest: Interest) {
        let socket = raw(source);
        self.sets.set(socket, interest.read, interest.write);
    }
}

impl Readiness for Select {
    type Listener = TcpListener;
    type Stream = TcpStream;
    type Source = SystemSource;

    const NAME: &'static str = "select";
    const REPEATS: bool = true;

    fn new() -> io::Result<Self> {
        let (bell, far) = Bell::pair()?;
        let mut sets = Sets::default();
        sets.set(raw(bell.source()), true, false);
        Ok(Select { sets, tokens: Tokens::default(), bell, ringer: Arc::new(Ringer(far)), watched: 0, told: false })
    }

    fn add(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        if self.tokens.insert(raw(source), token).is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the source is watched already"));
        }
        self.apply(source, interest);
        self.count_one_more();
        Ok(())
    }

    fn set_interest(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        if self.tokens.get(raw(source)) != Some(token) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the source is not watched under this token"));
        }
        self.apply(source, interest);
        Ok(())
    }

    fn remove(&mut self, source: &SystemSource, _token: Token) -> io::Result<()> {
        if self.tokens.remove(raw(source)).is_none() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the source is not watched"));
        }
        self.apply(source, Interest::NONE);
        self.watched -= 1;
        Ok(())
    }

    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        let Select { sets, tokens, bell, .. } = self;
        let outcome = sets.select(timeout, |socket, ready| match tokens.get(socket) {
            Some(token) => {
                let system::Ready { readable, writable, hangup } = ready;
                events.push(Event { token, readable, writable, hangup });
            }
            None => bell.silence(),
        });
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            outcome => outcome,
        }
    }

    fn waker(&self) -> Waker {
        Arc::clone(&self.ringer).into()
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
        let far = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nodelay(true).unwrap();
        (near, far)
    }

    fn ready(select: &mut Select, timeout_ms: u64) -> Vec<(usize, bool, bool)> {
        let mut events = Vec::new();
        select.wait(&mut events, Some(Duration::from_millis(timeout_ms))).unwrap();
        events.iter().map(|event| (event.token.0, event.readable, event.writable)).collect()
    }

    #[test]
    fn readiness_is_reported_until_it_is_used_up() {
        let mut select = Select::new().unwrap();
        let (mut near, mut far) = pair();
        select.add(&near, Token(7), Interest::READ).unwrap();
        assert_eq!(ready(&mut select, 0), []);
        far.write_all(b"x").unwrap();
        assert_eq!(ready(&mut select, 1000), [(7, true, false)]);
        assert_eq!(ready(&mut select, 1000), [(7, true, false)]);
        near.read_exact(&mut [0]).unwrap();
        assert_eq!(ready(&mut select, 0), []);
        select.set_interest(&near, Token(7), BOTH).unwrap();
        assert_eq!(ready(&mut select, 1000), [(7, false, true)]);
    }

    #[test]
    fn nobody_hears_of_what_is_not_of_interest_or_removed() {
        let mut select = Select::new().unwrap();
        let (near, mut far) = pair();
        far.write_all(b"x").unwrap();
        select.add(&near, Token(1), BOTH).unwrap();
        assert!(!ready(&mut select, 1000).is_empty());
        select.set_interest(&near, Token(1), Interest::NONE).unwrap();
        assert_eq!(ready(&mut select, 0), []);
        select.set_interest(&near, Token(1), BOTH).unwrap();
        select.remove(&near, Token(1)).unwrap();
        assert_eq!(ready(&mut select, 0), []);
        assert!(select.remove(&near, Token(1)).is_err());
        assert!(select.set_interest(&near, Token(1), BOTH).is_err());
    }

    #[test]
    fn a_source_is_not_watched_twice() {
        let mut select = Select::new().unwrap();
        let (near, _far) = pair();
        select.add(&near, Token(1), Interest::READ).unwrap();
        let error = select.add(&near, Token(2), Interest::READ).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }

    /// More sockets than any system's set is declared for, and one of them ready.
    #[test]
    #[cfg(windows)]
    fn sets_grow_beyond_what_they_are_declared_for() {
        let mut select = Select::new().unwrap();
        let pairs: Vec<_> = (0..300).map(|_| pair()).collect();
        for (number, (near, _)) in pairs.iter().enumerate() {
            select.add(near, Token(number), Interest::READ).unwrap();
        }
        assert_eq!(ready(&mut select, 0), []);
        for number in [299, 0, 64] {
            (&pairs[number].1).write_all(b"x").unwrap();
            assert_eq!(ready(&mut select, 1000), [(number, true, false)]);
            (&pairs[number].0).read_exact(&mut [0]).unwrap();
        }
        for (near, _) in &pairs[..200] {
            select.remove(near, Token(0)).unwrap();
        }
        (&pairs[0].1).write_all(b"x").unwrap();
        (&pairs[250].1).write_all(b"x").unwrap();
        assert_eq!(ready(&mut select, 1000), [(250, true, false)]);
    }

    #[test]
    #[cfg(unix)]
    fn descriptors_beyond_1024_are_watched() {
        if std::env::var_os("SERVERD_TEST_RUNNER").is_some() {
            return println!("skipped in an emulator: its select call takes no descriptor above 1,023");
        }
        let mut select = Select::new().unwrap();
        let (near, mut far) = pair();
        let high = match rustix::io::fcntl_dupfd_cloexec(&near, 3000) {
            Ok(high) => high,
            Err(error) => return println!("skipped: no descriptor above 3,000 here ({error})"),
        };
        assert!(std::os::fd::AsRawFd::as_raw_fd(&high) >= 3000);
        select.add(&high, Token(9), Interest::READ).unwrap();
        assert_eq!(ready(&mut select, 0), []);
        far.write_all(b"x").unwrap();
        assert_eq!(ready(&mut select, 1000), [(9, true, false)]);
        select.remove(&high, Token(9)).unwrap();
        assert_eq!(ready(&mut select, 0), []);
    }

    /// Also where all of them stand in one word of a set.
    #[test]
    fn everybody_comes_first_in_turn() {
        for crowd in [3, 100] {
            let mut select = Select::new().unwrap();
            let pairs: Vec<_> = (0..crowd).map(|_| pair()).collect();
            for (number, (near, far)) in pairs.iter().enumerate() {
                (&*far).write_all(b"x").unwrap();
                select.add(near, Token(number), Interest::READ).unwrap();
            }
            // Who is on the way still counts from when it is there.
            while ready(&mut select, 1000).len() < crowd {}
            let mut first: Vec<usize> = (0..2 * crowd).map(|_| ready(&mut select, 1000)[0].0).collect();
            first.sort_unstable();
            assert!(first.iter().enumerate().all(|(turn, number)| turn / 2 == *number), "{first:?}");
        }
    }

    /// Low descriptors that are always ready do not keep high ones waiting, nor the other way round.
    #[test]
    fn the_low_and_the_high_take_turns() {
        let mut select = Select::new().unwrap();
        let pairs: Vec<_> = (0..300).map(|_| pair()).collect();
        let ends = [0, 1, 2, 299];
        for number in ends {
            select.add(&pairs[number].0, Token(number), BOTH).unwrap();
        }
        let mut first = [0; 4];
        for _ in 0..40 {
            let events = ready(&mut select, 1000);
            let place = ends.iter().position(|number| *number == events[0].0).unwrap();
            first[place] += 1;
        }
        assert_eq!(first, [10; 4]);
    }

    #[test]
    fn a_waker_ends_a_wait_without_end() {
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
    fn a_wait_is_not_over_early() {
        let mut select = Select::new().unwrap();
        let start = Instant::now();
        assert_eq!(ready(&mut select, 30), []);
        assert!(start.elapsed() >= Duration::from_millis(30));
    }
}
