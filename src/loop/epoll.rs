//! Readiness by Linux epoll, through mio: edge-triggered.
//!
//! A source is registered for reading once; writing is added only while output is blocked, and taken away
//! again. A modification re-arms the edge, so what is ready already is reported again, as the contract asks.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use mio::unix::SourceFd;

use super::readiness::{Event, Interest, Readiness, SystemSource, Token};
use super::socket::{TcpListener, TcpStream};

/// How many events one wait can bring. More stay in the kernel for the next one.
const EVENTS_MAX: usize = 1024;

/// The epoll backend.
#[derive(Debug)]
pub struct Epoll {
    poll: mio::Poll,
    events: mio::Events,
    bell: Arc<Bell>,
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

impl Readiness for Epoll {
    type Listener = TcpListener;
    type Stream = TcpStream;
    type Source = SystemSource;

    const NAME: &'static str = "epoll";
    const REPEATS: bool = false;

    fn new() -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let bell = Arc::new(Bell(mio::Waker::new(poll.registry(), mio::Token(Token::RESERVED.0))?));
        Ok(Epoll { poll, events: mio::Events::with_capacity(EVENTS_MAX), bell })
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

    #[inline]
    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            outcome => outcome?,
        }
        for event in &self.events {
            let token = Token(event.token().0);
            if token != Token::RESERVED {
                let hangup = event.is_read_closed() || event.is_write_closed() || event.is_error();
                let (readable, writable) = (event.is_readable() || hangup, event.is_writable() || hangup);
                events.push(Event { token, readable, writable, hangup });
            }
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        Arc::clone(&self.bell).into()
    }
}
