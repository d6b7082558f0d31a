//! The Linux epoll backend, edge-triggered. Registration and wake-ups go through mio; waiting is a direct system call.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::task::Waker;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::event::{Timespec, epoll};

use super::mio_poll::MioPoll;
use super::readiness::{Event, Interest, Readiness, SystemSource, Token};
use super::socket::{SystemListener, SystemStream};

/// Maximum number of events returned by one wait; further ones stay in the kernel until the next.
const EVENTS_MAX: usize = 1024;

/// A half-close by the peer, or an error. Reading and writing then report it.
const HANGUP: EventFlags = EventFlags::RDHUP.union(EventFlags::HUP).union(EventFlags::ERR);

/// The epoll backend: Linux only, edge-triggered.
pub struct Epoll {
    mio: MioPoll,
    events: Box<[epoll::Event]>,
}

impl fmt::Debug for Epoll {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Epoll").field("mio", &self.mio).finish_non_exhaustive()
    }
}

/// Converts a timeout, capped at two million seconds: close to the longest timeout that fits in an `i32` of
/// milliseconds. After a capped wait, the loop simply waits again.
#[inline]
fn timespec(timeout: Duration) -> Timespec {
    Timespec { tv_sec: timeout.as_secs().min(2_000_000).cast_signed(), tv_nsec: timeout.subsec_nanos().into() }
}

impl Readiness for Epoll {
    type Listener = SystemListener;
    type Stream = SystemStream;
    type Source = SystemSource;

    const NAME: &'static str = "epoll";
    const LEVEL_TRIGGERED: bool = false;

    fn new() -> io::Result<Self> {
        let empty = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        Ok(Epoll { mio: MioPoll::new()?, events: vec![empty; EVENTS_MAX].into_boxed_slice() })
    }

    fn add(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        self.mio.add(source, token, interest)
    }

    fn set_interest(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        self.mio.set_interest(source, token, interest)
    }

    /// Does nothing: the kernel deregisters a file descriptor when it is closed (epoll(7)).
    fn remove(&mut self, _source: &SystemSource, _token: Token) -> io::Result<()> {
        Ok(())
    }

    /// Calls epoll directly: mio would go through the C library, whose wrapper is a cancellation point, and iterate
    /// over the events several times.
    #[allow(clippy::inline_always, reason = "hot path of every request")]
    #[inline(always)]
    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(timespec);
        let count = match epoll::wait(self.mio.poll.registry(), &mut *self.events, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => 0,
            outcome => outcome?,
        };
        for event in &self.events[..count] {
            let (flags, data) = (event.flags, event.data);
            let token = Token(usize::try_from(data.u64()).unwrap_or(usize::MAX));
            if token != Token::RESERVED {
                events.push(Event {
                    token,
                    readable: flags.intersects(HANGUP.union(EventFlags::IN).union(EventFlags::PRI)),
                    writable: flags.intersects(HANGUP.union(EventFlags::OUT)),
                    hangup: flags.intersects(HANGUP),
                });
            }
        }
        Ok(())
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<SystemStream> {
        SystemStream::connect(address)
    }

    fn waker(&self) -> Waker {
        self.mio.waker()
    }
}
