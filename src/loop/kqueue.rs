//! Readiness by kqueue, on macOS and the BSDs, through mio: edge-triggered (`EV_CLEAR`).
//!
//! What the kernel does, and what of it shows here:
//!
//! - Each direction is a filter of its own, and an event tells of one of them: a source that can do both comes twice.
//! - The end of the stream (`EV_EOF` of the read filter) may be told while octets are still to be read: a hang-up, so that
//!   the loop reads on until the end.
//! - `EV_EOF` of the write filter alone is none. Our own shutdown of the sending side raises it, too, while the peer goes
//!   on sending; a connection that is gone has it at the read filter, which is always registered.
//! - A change of interest adds the filters anew, and the kernel looks at each again: what is ready is reported again. mio
//!   also takes away the filter of the direction that is not wanted, and bears that it was not there.

use std::fmt;
use std::io;
use std::task::Waker;
use std::time::Duration;

use super::readiness::{Event, Interest, Readiness, SystemSource, Token};
use super::socket::{TcpListener, TcpStream};
use super::watch::Watch;

/// How many events one wait can bring. More stay in the kernel for the next one.
const EVENTS_MAX: usize = 1024;

/// Some systems refuse a longer wait than they can count; the loop waits again then.
const WAIT_MAX: Duration = Duration::from_secs(2_000_000);

/// The kqueue backend.
pub struct Kqueue {
    watch: Watch,
    events: mio::Events,
}

impl fmt::Debug for Kqueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Kqueue").field("watch", &self.watch).finish_non_exhaustive()
    }
}

/// What an event of the kernel means to the loop.
fn told(event: &mio::event::Event) -> Event {
    let hangup = event.is_read_closed() || event.is_error();
    Event {
        token: Token(event.token().0),
        readable: hangup || event.is_readable(),
        writable: hangup || event.is_writable(),
        hangup,
    }
}

impl Readiness for Kqueue {
    type Listener = TcpListener;
    type Stream = TcpStream;
    type Source = SystemSource;

    const NAME: &'static str = "kqueue";
    const REPEATS: bool = false;

    fn new() -> io::Result<Self> {
        Ok(Kqueue { watch: Watch::new()?, events: mio::Events::with_capacity(EVENTS_MAX) })
    }

    fn add(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        self.watch.add(source, token, interest)
    }

    fn set_interest(&mut self, source: &SystemSource, token: Token, interest: Interest) -> io::Result<()> {
        self.watch.set_interest(source, token, interest)
    }

    /// Nothing to do: the close takes the filters of a descriptor along, and what they had to tell, kqueue(2).
    fn remove(&mut self, _source: &SystemSource, _token: Token) -> io::Result<()> {
        Ok(())
    }

    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        match self.watch.poll.poll(&mut self.events, timeout.map(|limit| limit.min(WAIT_MAX))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            outcome => outcome?,
        }
        events.extend(self.events.iter().map(told).filter(|event| event.token != Token::RESERVED));
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.watch.waker()
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
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        (near, far)
    }

    /// Waits until all of these were told at some time, and returns the events.
    fn told_until(kqueue: &mut Kqueue, enough: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        while !events.iter().any(&enough) {
            let before = events.len();
            kqueue.wait(&mut events, Some(Duration::from_secs(20))).unwrap();
            assert!(events.len() > before, "nothing more is told: {events:?}");
        }
        events
    }

    #[test]
    fn a_peer_that_sends_no_more_has_hung_up_and_what_it_sent_is_readable() {
        let mut kqueue = Kqueue::new().unwrap();
        let (near, mut far) = pair();
        kqueue.add(&near, Token(1), Interest::READ).unwrap();
        far.write_all(b"abc").unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        let events = told_until(&mut kqueue, |event| event.hangup);
        assert!(events.iter().all(|event| event.token == Token(1) && event.readable), "{events:?}");
        assert_eq!(io::Read::read(&mut &near, &mut [0; 8]).unwrap(), 3);
    }

    #[test]
    fn our_own_end_is_not_the_peers() {
        let mut kqueue = Kqueue::new().unwrap();
        let (near, mut far) = pair();
        near.shutdown(Shutdown::Write).unwrap();
        kqueue.add(&near, Token(1), BOTH).unwrap();
        far.write_all(b"abc").unwrap();
        let events = told_until(&mut kqueue, |event| event.readable);
        assert!(events.iter().all(|event| !event.hangup), "{events:?}");
        drop(far);
        told_until(&mut kqueue, |event| event.hangup);
    }

    #[test]
    fn a_reset_is_a_hang_up() {
        let mut kqueue = Kqueue::new().unwrap();
        let (near, far) = pair();
        kqueue.add(&near, Token(1), BOTH).unwrap();
        socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
        drop(far);
        let events = told_until(&mut kqueue, |event| event.hangup);
        assert!(events.iter().any(|event| event.readable && event.writable && event.hangup), "{events:?}");
    }

    /// An edge is told once.
    #[test]
    fn what_is_not_read_is_not_told_again() {
        let mut kqueue = Kqueue::new().unwrap();
        let (near, mut far) = pair();
        kqueue.add(&near, Token(1), Interest::READ).unwrap();
        far.write_all(b"abc").unwrap();
        assert_eq!(told_until(&mut kqueue, |event| event.readable).len(), 1);
        let mut events = Vec::new();
        kqueue.wait(&mut events, Some(Duration::from_millis(20))).unwrap();
        assert_eq!(events, []);
    }
}
