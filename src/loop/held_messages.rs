//! Messages for connections that are still connecting. They are delivered once the connect has completed.

use std::collections::HashMap;
use std::io;

use super::table::ConnId;

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
        drop(self.take(id));
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
