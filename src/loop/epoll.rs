//! Readiness by Linux epoll, edge-triggered: registration and waking through mio, the wait by the bare call.

use std::fmt;
use std::io;
use std::task::Waker;
use std::time::Duration;

use rustix::event::{Timespec, epoll};

use super::readiness::{Event, Interest, Readiness, SystemSource, Token};
use super::socket::{TcpListener, TcpStream};
use super::watch::Watch;

/// How many events one wait can bring. More stay in the kernel for the next one.
const EVENTS_MAX: usize = 1024;

/// The epoll backend.
pub struct Epoll {
    watch: Watch,
    events: Box<[epoll::Event]>,
}

impl fmt::Debug for Epoll {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Epoll").field("watch", &self.watch).finish_non_exhaustive()
    }
}

/// Two million seconds are about as much as the call can count in milliseconds; the loop waits again then.
#[inline]
fn timespec(timeout: Duration) -> Timespec {
    Timespec { tv_sec: timeout.as_secs().min(2_000_000).cast_signed(), tv_nsec: timeout.subsec_nanos().into() }
}

impl Readiness for Epoll {
    type Listener = TcpListener;
    type Stream = TcpStream;
    type Source = SystemSource;

    const NAME: &'static str = "epoll";
    const REPEATS: bool = false;

    fn new() -> io::Result<Self> {
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        Ok(Epoll { watch: Watch::new()?, events: vec![none; EVENTS_MAX].into_boxed_slice() })
    }

    fn add(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        self.watch.add(source, token, interest)
    }

    fn set_interest(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        self.watch.set_interest(source, token, interest)
    }

    /// Nothing to do: epoll forgets a descriptor when it is closed, epoll(7).
    fn remove(&mut self, _source: &SystemSource, _token: Token) -> io::Result<()> {
        Ok(())
    }

    /// mio would wait through the C library, whose call is a cancellation point, and look at each event several times;
    /// the bare call is cheaper.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        use epoll::EventFlags;
        let timeout = timeout.map(timespec);
        let count = match epoll::wait(self.watch.poll.registry(), &mut *self.events, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => 0,
            outcome => outcome?,
        };
        for event in &self.events[..count] {
            let (flags, data) = (event.flags, event.data);
            let token = Token(usize::try_from(data.u64()).unwrap_or(usize::MAX));
            if token != Token::RESERVED {
                let hangup = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
                let readable = hangup || flags.intersects(EventFlags::IN | EventFlags::PRI);
                let writable = hangup || flags.contains(EventFlags::OUT);
                events.push(Event { token, readable, writable, hangup });
            }
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.watch.waker()
    }
}
