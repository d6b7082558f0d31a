//! A queue in which clients take turns, so that a client with many requests does not delay the others.

use std::collections::VecDeque;
use std::net::IpAddr;

/// A queue in which clients take turns.
pub(super) struct FairQueue<T> {
    /// The clients with queued items, in the order of their turns.
    clients: VecDeque<(Option<IpAddr>, VecDeque<T>)>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        FairQueue { clients: VecDeque::new() }
    }
}

impl<T> FairQueue<T> {
    pub(super) fn push(&mut self, client: Option<IpAddr>, item: T) {
        match self.clients.iter_mut().find(|(known, _)| *known == client) {
            Some((_, items)) => items.push_back(item),
            None => self.clients.push_back((client, VecDeque::from([item]))),
        }
    }

    /// Removes the oldest item of the client whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let (client, mut items) = self.clients.pop_front()?;
        let item = items.pop_front();
        if !items.is_empty() {
            self.clients.push_back((client, items));
        }
        item
    }

    /// Removes the newest item of the client with the most items; among equals, of the client whose turn is last.
    pub(super) fn evict(&mut self) -> Option<T> {
        let (at, _) = self.clients.iter().enumerate().max_by_key(|(_, (_, items))| items.len())?;
        let item = self.clients[at].1.pop_back();
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
        assert_eq!(queue.evict(), Some(4));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [0, 10, 20, 1, 11, 2, 3]);
        assert!(queue.clients.is_empty() && queue.evict().is_none());
    }
}
