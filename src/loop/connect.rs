//! Outgoing connections that a loop has been asked to open, and connects in progress.

use std::any::Any;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::schedule::Timer;
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
}
