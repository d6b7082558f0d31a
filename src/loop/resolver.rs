//! Resolves host names in a thread pool, because the resolver of the system blocks.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use super::work_queue::WorkQueue;

/// Maximum number of threads that resolve names. A lookup may take several seconds if a name server does not respond.
const THREADS_MAX: usize = 8;

/// Maximum number of addresses of a name that are used.
pub(super) const ADDRESSES_MAX: usize = 8;

/// A name to resolve.
pub(super) struct Lookup {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) done: Box<dyn FnOnce(io::Result<VecDeque<SocketAddr>>) + Send>,
}

impl Lookup {
    fn run(self) {
        let outcome = (self.host.as_str(), self.port).to_socket_addrs();
        (self.done)(outcome.map(|addresses| addresses.take(ADDRESSES_MAX).collect()));
    }
}

static LOOKUPS: WorkQueue<Lookup> = WorkQueue::new(THREADS_MAX);

/// Queues a lookup for the threads. If it cannot be queued, it fails at once.
pub(super) fn look_up(lookup: Lookup) {
    if let Err(lookup) = LOOKUPS.push(lookup, ("resolver", run_resolver)) {
        (lookup.done)(Err(io::Error::other("too many names are being resolved")));
    }
}

/// The main function of a thread that resolves names.
fn run_resolver() {
    while let Some(lookup) = LOOKUPS.next() {
        lookup.run();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lookup_beyond_the_limit_fails_at_once_and_all_others_end() {
        let (send, receive) = std::sync::mpsc::channel();
        let count = 3000;
        for _ in 0..count {
            let send = send.clone();
            let done = move |outcome: io::Result<VecDeque<SocketAddr>>| send.send(outcome.is_ok()).unwrap();
            look_up(Lookup { host: "127.0.0.1".into(), port: 1, done: Box::new(done) });
        }
        assert_eq!(receive.iter().take(count).count(), count);
        assert!(LOOKUPS.threads() <= THREADS_MAX);
    }
}
