//! The queue through which an acceptor thread hands connections to one loop.
//!
//! The loop uses a [`HandoffListener`] like a listening socket: it is readable while the queue is not empty. A
//! connection in the queue is already counted as one of the loop's, so that the load of a loop never appears lower than
//! it is.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::connection_limit::ConnectionLimit;
use super::peer::Peer;
use super::readiness::SystemSource;
use super::socket_waker::SocketWaker;
use super::std_ext::lock;

/// Accepted connections that a loop has not taken yet.
pub(super) struct HandoffQueue {
    streams: Mutex<VecDeque<(TcpStream, Peer)>>,
    /// The loop has dropped its [`HandoffListener`]. Set while `streams` is locked.
    closed: AtomicBool,
    /// The loop's share of the connection limit.
    limit: ConnectionLimit,
    waker: SocketWaker,
}

impl HandoffQueue {
    /// Creates a queue and its listener.
    pub(super) fn open(limit: ConnectionLimit) -> io::Result<(Arc<Self>, HandoffListener)> {
        let (wakeups, waker) = SocketWaker::pair()?;
        let (streams, closed) = (Mutex::default(), AtomicBool::new(false));
        let queue = Arc::new(HandoffQueue { streams, closed, limit, waker });
        Ok((Arc::clone(&queue), HandoffListener { queue, wakeups }))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(TcpStream, Peer)>> {
        lock(&self.streams)
    }

    /// Adds a connection that is counted in the acceptor's share `from`. Returns it if the loop is gone.
    pub(super) fn push(&self, from: &ConnectionLimit, stream: TcpStream, peer: Peer) -> Result<(), TcpStream> {
        let mut streams = self.lock();
        if self.is_closed() {
            return Err(stream);
        }
        from.move_to(&self.limit);
        streams.push_back((stream, peer));
        drop(streams);
        // Fails if the socket buffer is full (wake-up already pending) or the loop is gone.
        while self.waker.wake().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {}
        Ok(())
    }

    /// Returns the number of connections of the loop, including those in the queue.
    pub(super) fn load(&self) -> usize {
        self.limit.open_here()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

/// Delivers the connections of an [`Acceptor`](super::Acceptor) to one loop; pass it to
/// [`EventLoop::listen`](super::EventLoop::listen) in place of a listening socket.
pub struct HandoffListener {
    queue: Arc<HandoffQueue>,
    wakeups: SocketWaker,
}

impl HandoffListener {
    /// Takes a connection from the queue; returns `WouldBlock` if it is empty.
    pub(super) fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let first = self.queue.lock().pop_front();
        if let Some(first) = first {
            return Ok(first);
        }
        self.wakeups.clear();
        // Check again: a connection queued before the clear is found here, and a later one wakes the loop again.
        let first = self.queue.lock().pop_front();
        first.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    pub(super) fn source(&self) -> &SystemSource {
        self.wakeups.source()
    }
}

impl std::fmt::Debug for HandoffListener {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("HandoffListener").finish_non_exhaustive()
    }
}

impl Drop for HandoffListener {
    fn drop(&mut self) {
        let mut streams = self.queue.lock();
        self.queue.closed.store(true, Ordering::SeqCst);
        for (_, peer) in streams.drain(..) {
            self.queue.limit.release(peer.ip());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise least-connections load balancing would prefer a loop that is slow to take its connections.
    #[test]
    fn a_connection_counts_for_its_loop_from_the_hand_over_to_the_close() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let all = ConnectionLimit::new(10).per_address(3);
        let (acceptor, worker) = (all.share(), all.share());
        let (queue, handoff) = HandoffQueue::open(worker.clone()).unwrap();
        let _clients: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        for count in 1..=3 {
            let (stream, peer) = listener.accept().unwrap();
            assert!(acceptor.try_reserve() && acceptor.try_reserve_address(peer.ip()));
            acceptor.commit();
            queue.push(&acceptor, stream, peer.into()).unwrap();
            assert_eq!((queue.load(), all.open(), acceptor.open_here()), (count, count, 0));
        }
        let taken = handoff.accept().unwrap();
        assert_eq!((queue.load(), all.open()), (3, 3));
        assert!(!all.try_reserve_address(address.ip()));
        worker.release(taken.1.ip());
        drop((taken, handoff));
        assert_eq!((queue.load(), all.open()), (0, 0));
        assert!((0..3).all(|_| all.try_reserve_address(address.ip())));
        let stream = TcpStream::connect(address).unwrap();
        assert!(queue.push(&acceptor, stream, address.into()).is_err());
    }
}
