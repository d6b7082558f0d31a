//! Outgoing connections that a loop has been asked to open, connects in progress, and the messages that are held until
//! they have completed.

use std::any::Any;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::schedule::Timer;
use super::std_ext::drop_each;
use super::table::ConnId;

/// The value that a program passes to its application with an outgoing connection.
pub(super) type Context = Box<dyn Any + Send>;

/// The context of a connection that is being opened, until the application takes it.
pub(super) type ContextCell = Cell<Option<Context>>;

/// An outgoing connection to open.
pub(super) struct Connect {
    pub(super) addresses: VecDeque<SocketAddr>,
    pub(super) limit: Duration,
    pub(super) context: Context,
}

/// A step in opening an outgoing connection, taken by the loop.
pub(super) enum ConnectStep {
    Open(Connect),
    /// No address was found.
    Fail(Context, io::Error),
    /// The time limit of an attempt has passed.
    Expire(ConnId, u64),
}

/// The connects of a loop that are in progress, except those of added streams.
#[derive(Default)]
pub(super) struct Connects {
    attempts: HashMap<ConnId, Attempt>,
}

/// A connect to one of several addresses.
pub(super) struct Attempt {
    /// The addresses to try next.
    pub(super) addresses: VecDeque<SocketAddr>,
    /// The time at which the last attempt ends.
    pub(super) deadline_ms: u64,
    /// Counts the attempts, to recognise an outdated timer.
    pub(super) number: u64,
    pub(super) timer: Option<Timer>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.stop_timer();
    }
}

impl Attempt {
    pub(super) fn stop_timer(&mut self) {
        if let Some(timer) = self.timer.take() {
            timer.cancel();
        }
    }

    /// The time for the current attempt: an equal share of the time that is left.
    pub(super) fn share(&self, now_ms: u64) -> Duration {
        let attempts = u64::try_from(self.addresses.len()).unwrap_or(u64::MAX).saturating_add(1);
        Duration::from_millis(self.deadline_ms.saturating_sub(now_ms).div_ceil(attempts))
    }
}

impl Connects {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.attempts.is_empty()
    }

    #[cold]
    pub(super) fn insert(&mut self, id: ConnId, attempt: Attempt) {
        self.attempts.insert(id, attempt);
    }

    #[cold]
    pub(super) fn get_mut(&mut self, id: ConnId) -> Option<&mut Attempt> {
        self.attempts.get_mut(&id)
    }

    /// Ends the attempts of a connection that is connected or closed.
    #[cold]
    pub(super) fn remove(&mut self, id: ConnId) {
        self.attempts.remove(&id);
    }
}

/// Maximum number of messages held for one connection.
const PER_CONNECTION_MAX: usize = 1024;

/// Maximum number of messages held for all connections of a loop.
const TOTAL_MAX: usize = 64 * 1024;

/// The messages held for the connecting connections of a loop, in the order in which they were sent.
pub(super) struct HeldMessages<M> {
    by_connection: HashMap<ConnId, Vec<(ConnId, M)>>,
    total: usize,
}

impl<M> HeldMessages<M> {
    pub(super) fn new() -> Self {
        HeldMessages { by_connection: HashMap::new(), total: 0 }
    }

    /// Holds a message. Returns an error if there are too many; the connection must then be closed, since a lost
    /// message would go unnoticed.
    #[cold]
    pub(super) fn hold(&mut self, id: ConnId, message: M) -> io::Result<()> {
        let messages = self.by_connection.entry(id).or_default();
        if messages.len() >= PER_CONNECTION_MAX || self.total >= TOTAL_MAX {
            return Err(io::Error::other("too many messages for a connection that is still connecting"));
        }
        messages.push((id, message));
        self.total += 1;
        Ok(())
    }

    /// Moves the messages of a connection to the front of `messages`: they were sent before the others.
    #[cold]
    pub(super) fn release(&mut self, id: ConnId, messages: &mut Vec<(ConnId, M)>) {
        messages.splice(0..0, self.take(id));
    }

    /// Drops the messages of a connection whose connect has failed.
    #[cold]
    pub(super) fn drop_all(&mut self, id: ConnId) {
        // Dropped after they are removed: they may contain anything.
        drop_each(self.take(id));
    }

    fn take(&mut self, id: ConnId) -> Vec<(ConnId, M)> {
        let taken = self.by_connection.remove(&id).unwrap_or_default();
        self.total -= taken.len();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_gets_an_equal_share_of_the_time_left() {
        let addresses = (1..=3).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        let mut attempt = Attempt { addresses, deadline_ms: 1000, number: 0, timer: None };
        assert_eq!(attempt.share(0), Duration::from_millis(250));
        attempt.addresses.pop_front();
        assert_eq!(attempt.share(100), Duration::from_millis(300));
        attempt.addresses.clear();
        assert_eq!((attempt.share(400), attempt.share(1001)), (Duration::from_millis(600), Duration::ZERO));
    }

    #[test]
    fn the_messages_of_all_connections_have_a_limit() {
        let mut held = HeldMessages::new();
        let id = |number| ConnId::detached(number / 1000);
        for number in 0..64 * 1024_u32 {
            held.hold(id(number), number).unwrap();
        }
        assert!(held.hold(ConnId::detached(99), 0).is_err());
        held.drop_all(id(0));
        let mut released = vec![(id(0), 7)];
        held.release(id(1000), &mut released);
        assert_eq!((released.len(), released[0].1, released[1000].1), (1001, 1000, 7));
        assert!(held.hold(ConnId::detached(99), 0).is_ok());
    }
}
