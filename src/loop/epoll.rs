//! Readiness by Linux epoll: edge-triggered.
//!
//! A source is registered for reading once; writing is added only while output is blocked, and taken away
//! again. A modification re-arms the edge, so what is ready already is reported again, as the contract asks.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use super::readiness::{Event, Interest, Readiness, SystemSource, Token};
use super::socket::{TcpListener, TcpStream};

/// How many events one wait can bring. More stay in the kernel for the next one.
const EVENTS_MAX: usize = 1024;

/// What a peer that closed its sending half, or is gone, shows.
const HANGUP: EventFlags = EventFlags::RDHUP.union(EventFlags::HUP).union(EventFlags::ERR);

/// The epoll backend.
pub struct Epoll {
    poll: OwnedFd,
    events: Vec<epoll::Event>,
    bell: Arc<Bell>,
}

/// A counter in the kernel that is never read: every write to it is an edge of its own.
#[derive(Debug)]
struct Bell(OwnedFd);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let rung = rustix::io::retry_on_intr(|| rustix::io::write(&self.0, &1_u64.to_ne_bytes()));
        if let Err(error) = rung {
            log::error!("cannot wake the event loop: {}", io::Error::from(error));
        }
    }
}

/// Reading is always registered, since an edge that nobody wants costs nothing.
fn flags(interest: Interest) -> EventFlags {
    let reading = EventFlags::ET | EventFlags::IN | EventFlags::RDHUP;
    if interest.write { reading | EventFlags::OUT } else { reading }
}

fn data(token: Token) -> EventData {
    EventData::new_u64(token.0 as u64)
}

impl Readiness for Epoll {
    type Listener = TcpListener;
    type Stream = TcpStream;
    type Source = SystemSource;

    const NAME: &'static str = "epoll";
    const REPEATS: bool = false;

    fn new() -> io::Result<Self> {
        let poll = epoll::create(CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&poll, &bell, data(Token::RESERVED), EventFlags::ET | EventFlags::IN)?;
        Ok(Epoll { poll, events: Vec::with_capacity(EVENTS_MAX), bell: Arc::new(Bell(bell)) })
    }

    fn add(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.poll, source, data(token), flags(interest))?)
    }

    fn set_interest(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.poll, source, data(token), flags(interest))?)
    }

    /// Nothing to do: epoll forgets a descriptor when it is closed, epoll(7).
    fn remove(&mut self, _source: &SystemSource, _token: Token) -> io::Result<()> {
        Ok(())
    }

    #[inline]
    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        // A timeout that does not fit is as good as none; the loop asks again.
        let timeout = timeout.and_then(|limit| Timespec::try_from(limit).ok());
        self.events.clear();
        match epoll::wait(&self.poll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &self.events {
            let (flags, data) = (event.flags, event.data.u64());
            #[allow(clippy::cast_possible_truncation, reason = "tokens are as wide as usize")]
            let token = Token(data as usize);
            if token != Token::RESERVED {
                let hangup = flags.intersects(HANGUP);
                let readable = hangup || flags.intersects(EventFlags::IN);
                let writable = hangup || flags.intersects(EventFlags::OUT);
                events.push(Event { token, readable, writable, hangup });
            }
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        Arc::clone(&self.bell).into()
    }
}
