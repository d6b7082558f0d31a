//! A queue in which clients take turns, so that a client with many requests does not delay the others.

use std::collections::VecDeque;
use std::net::IpAddr;

/// A queue in which clients take turns.
pub(super) struct FairQueue<T> {
    /// The clients with queued items, in the order of their turns.
    clients: VecDeque<(Option<IpAddr>, VecDeque<T>)>,
    len: usize,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        FairQueue { clients: VecDeque::new(), len: 0 }
    }
}

impl<T> FairQueue<T> {
    /// Returns the number of queued items.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds an item of a client.
    pub(super) fn push(&mut self, client: Option<IpAddr>, item: T) {
        self.len += 1;
        match self.clients.iter_mut().find(|(known, _)| *known == client) {
            Some((_, items)) => items.push_back(item),
            None => self.clients.push_back((client, VecDeque::from([item]))),
        }
    }

    /// Removes the oldest item of the client whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let (client, mut items) = self.clients.pop_front()?;
        let item = items.pop_front();
        self.len -= 1;
        if !items.is_empty() {
            self.clients.push_back((client, items));
        }
        item
    }

    /// Removes the newest item of the client with the most items; among equals, of the client whose turn is last.
    #[cfg(any(feature = "basic-auth", feature = "files", test))]
    pub(super) fn evict(&mut self) -> Option<T> {
        let (at, _) = self.clients.iter().enumerate().max_by_key(|(_, (_, items))| items.len())?;
        let item = self.clients[at].1.pop_back();
        self.len -= 1;
        self.clients.retain(|(_, items)| !items.is_empty());
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_take_turns_and_the_busiest_one_loses_its_newest_item() {
        let client = |number: u8| Some(IpAddr::from([10, 0, 0, number]));
        let mut queue = FairQueue::default();
        for item in 0..5 {
            queue.push(client(1), item);
        }
        queue.push(client(2), 10);
        queue.push(None, 20);
        queue.push(client(2), 11);
        assert_eq!((queue.len(), queue.evict(), queue.len()), (8, Some(4), 7));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [0, 10, 20, 1, 11, 2, 3]);
        assert!(queue.clients.is_empty() && queue.len() == 0 && queue.evict().is_none());
    }
}
