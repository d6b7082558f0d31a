//! Readiness by Linux epoll, through mio: edge-triggered.
//!
//! A source is registered for reading once; writing is added only while output is blocked, and taken away
//! again. A modification re-arms the edge, so what is ready already is reported again, as the contract asks.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use mio::unix::SourceFd;
use rustix::event::{Timespec, epoll};

use super::readiness::{Event, Interest, Readiness, SystemSource, Token};
use super::socket::{TcpListener, TcpStream};

/// How many events one wait can bring. More stay in the kernel for the next one.
const EVENTS_MAX: usize = 1024;

/// The epoll backend.
pub struct Epoll {
    poll: mio::Poll,
    events: Box<[epoll::Event]>,
    bell: Arc<Bell>,
}

impl fmt::Debug for Epoll {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Epoll").field("poll", &self.poll).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Bell(mio::Waker);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        while let Err(error) = self.0.wake() {
            if error.kind() != io::ErrorKind::Interrupted {
                log::error!("cannot wake the event loop: {error}");
                return;
            }
        }
    }
}

/// mio refuses an interest in nothing; reading is always registered, since an edge that nobody wants costs nothing.
fn registered(interest: Interest) -> mio::Interest {
    if interest.write { mio::Interest::READABLE | mio::Interest::WRITABLE } else { mio::Interest::READABLE }
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
        let poll = mio::Poll::new()?;
        let bell = Arc::new(Bell(mio::Waker::new(poll.registry(), mio::Token(Token::RESERVED.0))?));
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        Ok(Epoll { poll, events: vec![none; EVENTS_MAX].into_boxed_slice(), bell })
    }

    fn add(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        self.poll.registry().register(
            &mut SourceFd(&source.as_fd().as_raw_fd()),
            mio::Token(token.0),
            registered(interest),
        )
    }

    fn set_interest(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        self.poll.registry().reregister(
            &mut SourceFd(&source.as_fd().as_raw_fd()),
            mio::Token(token.0),
            registered(interest),
        )
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
        let count = match epoll::wait(self.poll.registry(), &mut *self.events, timeout.as_ref()) {
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
        Arc::clone(&self.bell).into()
    }
}
