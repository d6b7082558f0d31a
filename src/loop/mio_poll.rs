//! Registration and wake-ups for the edge-triggered backends, both through mio. Each backend implements its own wait.
//!
//! A source is registered once, for reading; write interest is added only while output is blocked. Every modification
//! re-arms the edge, so a source that is already ready is reported again, as the contract requires.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::task::{Wake, Waker};

use mio::unix::SourceFd;

use super::readiness::{Interest, SystemSource, Token};

/// A mio poll instance and the waker that ends a wait on it.
#[derive(Debug)]
pub(super) struct MioPoll {
    pub(super) poll: mio::Poll,
    waker: Arc<EventFdWaker>,
}

/// Wakes the poll through an eventfd on Linux, `EVFILT_USER` on kqueue systems, or otherwise a pipe; mio chooses.
#[derive(Debug)]
struct EventFdWaker(mio::Waker);

impl Wake for EventFdWaker {
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

/// Converts an interest. Reading is always registered: mio rejects an empty interest, and an unwanted edge costs
/// nothing.
fn mio_interest(interest: Interest) -> mio::Interest {
    if interest.write { mio::Interest::READABLE | mio::Interest::WRITABLE } else { mio::Interest::READABLE }
}

impl MioPoll {
    pub(super) fn new() -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let waker = Arc::new(EventFdWaker(mio::Waker::new(poll.registry(), mio::Token(Token::RESERVED.0))?));
        Ok(MioPoll { poll, waker })
    }

    pub(super) fn add(&self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        let descriptor = source.as_fd().as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&descriptor), mio::Token(token.0), mio_interest(interest))
    }

    pub(super) fn set_interest(&self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        let descriptor = source.as_fd().as_raw_fd();
        self.poll.registry().reregister(&mut SourceFd(&descriptor), mio::Token(token.0), mio_interest(interest))
    }

    pub(super) fn waker(&self) -> Waker {
        Arc::clone(&self.waker).into()
    }
}
