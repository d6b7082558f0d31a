//! The kqueue backend for macOS and the BSDs, through mio; edge-triggered (`EV_CLEAR`).
//!
//! Kernel behaviour that matters here:
//!
//! - Each direction is a separate filter, and an event concerns one filter: a source that is both readable and writable
//!   is reported twice.
//! - End of stream (`EV_EOF` on the read filter) may be reported while there are still bytes to read. The backend
//!   reports it as a hang-up, so that the loop reads to the end.
//! - `EV_EOF` on the write filter alone is not a hang-up: half-closing our own side also sets it, while the peer may
//!   still be sending. A lost connection sets it on the read filter, which is always registered.
//! - Changing the interest re-adds the filters, and the kernel evaluates them again, so a source that is ready is
//!   reported again. mio also deletes the filter of an unwanted direction, and ignores the error if it did not exist.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::task::Waker;
use std::time::Duration;

use super::mio_poll::MioPoll;
use super::readiness::{Event, Interest, Readiness, SystemSource, Token};
use super::socket::{SystemListener, SystemStream};

/// Maximum number of events returned by one wait; further ones stay in the kernel until the next.
const EVENTS_MAX: usize = 1024;

/// Longest wait passed to the kernel, since some systems reject timeouts they cannot represent. After a capped wait,
/// the loop simply waits again.
const WAIT_MAX: Duration = Duration::from_secs(2_000_000);

/// The kqueue backend: macOS and the BSDs, edge-triggered.
pub struct Kqueue {
    mio: MioPoll,
    events: mio::Events,
}

impl fmt::Debug for Kqueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Kqueue").field("mio", &self.mio).finish_non_exhaustive()
    }
}

/// Converts a mio event.
fn to_event(event: &mio::event::Event) -> Event {
    let hangup = event.is_read_closed() || event.is_error();
    Event {
        token: Token(event.token().0),
        readable: hangup || event.is_readable(),
        writable: hangup || event.is_writable(),
        hangup,
    }
}

impl Readiness for Kqueue {
    type Listener = SystemListener;
    type Stream = SystemStream;
    type Source = SystemSource;

    const NAME: &'static str = "kqueue";
    const LEVEL_TRIGGERED: bool = false;

    fn new() -> io::Result<Self> {
        Ok(Kqueue { mio: MioPoll::new()?, events: mio::Events::with_capacity(EVENTS_MAX) })
    }

    fn add(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        self.mio.add(source, token, interest)
    }

    fn set_interest(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        self.mio.set_interest(source, token, interest)
    }

    /// Does nothing: closing a file descriptor removes its filters and their pending events (kqueue(2)).
    fn remove(&mut self, _source: &SystemSource, _token: Token) -> io::Result<()> {
        Ok(())
    }

    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        match self.mio.poll.poll(&mut self.events, timeout.map(|limit| limit.min(WAIT_MAX))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            outcome => outcome?,
        }
        events.extend(self.events.iter().map(to_event).filter(|event| event.token != Token::RESERVED));
        Ok(())
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<SystemStream> {
        SystemStream::connect(address)
    }

    fn waker(&self) -> Waker {
        self.mio.waker()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    const BOTH: Interest = Interest { read: true, write: true };

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, _) = listener.accept().unwrap();
        local.set_nonblocking(true).unwrap();
        (local, peer)
    }

    /// Waits until an event matches, and returns all events up to then.
    fn wait_for(kqueue: &mut Kqueue, matches: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        while !events.iter().any(&matches) {
            let before = events.len();
            kqueue.wait(&mut events, Some(Duration::from_secs(20))).unwrap();
            assert!(events.len() > before, "no further event: {events:?}");
        }
        events
    }

    #[test]
    fn a_half_close_by_the_peer_is_a_hang_up_and_earlier_data_is_readable() {
        let mut kqueue = Kqueue::new().unwrap();
        let (local, mut peer) = pair();
        kqueue.add(&local, Token(1), Interest::READ).unwrap();
        peer.write_all(b"abc").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        let events = wait_for(&mut kqueue, |event| event.hangup);
        assert!(events.iter().all(|event| event.token == Token(1) && event.readable), "{events:?}");
        assert_eq!(io::Read::read(&mut &local, &mut [0; 8]).unwrap(), 3);
    }

    #[test]
    fn our_own_half_close_is_not_a_hang_up() {
        let mut kqueue = Kqueue::new().unwrap();
        let (local, mut peer) = pair();
        local.shutdown(Shutdown::Write).unwrap();
        kqueue.add(&local, Token(1), BOTH).unwrap();
        peer.write_all(b"abc").unwrap();
        let events = wait_for(&mut kqueue, |event| event.readable);
        assert!(events.iter().all(|event| !event.hangup), "{events:?}");
        drop(peer);
        wait_for(&mut kqueue, |event| event.hangup);
    }

    #[test]
    fn a_reset_is_a_hang_up() {
        let mut kqueue = Kqueue::new().unwrap();
        let (local, peer) = pair();
        kqueue.add(&local, Token(1), BOTH).unwrap();
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        let events = wait_for(&mut kqueue, |event| event.hangup);
        assert!(events.iter().any(|event| event.readable && event.writable && event.hangup), "{events:?}");
    }

    #[test]
    fn unread_data_is_reported_only_once() {
        let mut kqueue = Kqueue::new().unwrap();
        let (local, mut peer) = pair();
        kqueue.add(&local, Token(1), Interest::READ).unwrap();
        peer.write_all(b"abc").unwrap();
        assert_eq!(wait_for(&mut kqueue, |event| event.readable).len(), 1);
        let mut events = Vec::new();
        kqueue.wait(&mut events, Some(Duration::from_millis(20))).unwrap();
        assert_eq!(events, []);
    }
}
