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

use self::system::{Bell, Sets, Tokens, raw};
use super::readiness::{Event, Interest, Readiness, SystemSource, Token};
use super::socket::{TcpListener, TcpStream};

/// The select backend.
pub struct Select {
    sets: Sets,
    tokens: Tokens,
    bell: Bell,
    ringer: Arc<Ringer>,
    watched: usize,
    /// That epoll would be better was said.
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

impl Select {
    fn count_one_more(&mut self) {
        self.watched += 1;
        if cfg!(target_os = "linux") && self.watched > CROWD && !self.told {
            self.told = true;
            log::warn!("select watches more than {CROWD} sockets; epoll takes less time for so many (--backend epoll)");
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

#[cfg(all(test, unix))]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    const BOTH: Interest = Interest { read: true, write: true };

    fn pair() -> (UnixStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
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

    #[test]
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
        assert!(high.as_raw_fd() >= 3000);
        select.add(&high, Token(9), Interest::READ).unwrap();
        assert_eq!(ready(&mut select, 0), []);
        far.write_all(b"x").unwrap();
        assert_eq!(ready(&mut select, 1000), [(9, true, false)]);
        select.remove(&high, Token(9)).unwrap();
        assert_eq!(ready(&mut select, 0), []);
    }

    #[test]
    fn everybody_comes_first_at_some_time() {
        let mut select = Select::new().unwrap();
        let pairs: Vec<_> = (0..200).map(|_| pair()).collect();
        for (number, (near, far)) in pairs.iter().enumerate() {
            (&*far).write_all(b"x").unwrap();
            select.add(near, Token(number), Interest::READ).unwrap();
        }
        let mut first = std::collections::HashSet::new();
        for _ in 0..50 {
            let events = ready(&mut select, 1000);
            assert_eq!(events.len(), pairs.len());
            first.insert(events[0].0);
        }
        assert!(first.len() > 1, "{first:?}");
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
