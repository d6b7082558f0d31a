//! What the edge-triggered backends share: registration and waking, both by mio. How they wait is their own.
//!
//! A source is registered for reading once; writing is added only while output is blocked, and taken away
//! again. A modification re-arms the edge, so what is ready already is reported again, as the contract asks.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::task::{Wake, Waker};

use mio::unix::SourceFd;

use super::readiness::{Interest, SystemSource, Token};

/// What is watched, and what ends a wait.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) poll: mio::Poll,
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

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let bell = Arc::new(Bell(mio::Waker::new(poll.registry(), mio::Token(Token::RESERVED.0))?));
        Ok(Watch { poll, bell })
    }

    pub(super) fn add(&self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        let descriptor = source.as_fd().as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&descriptor), mio::Token(token.0), registered(interest))
    }

    pub(super) fn set_interest(&self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        let descriptor = source.as_fd().as_raw_fd();
        self.poll.registry().reregister(&mut SourceFd(&descriptor), mio::Token(token.0), registered(interest))
    }

    pub(super) fn waker(&self) -> Waker {
        Arc::clone(&self.bell).into()
    }
}
