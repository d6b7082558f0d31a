//! Suspended requests that wait for the file system: for the look-up of another request, or for a check of the root.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::httpserver::Responder;

/// Maximum number of times that a request waits for a look-up of another before it makes its own.
const WAITS_MAX: u8 = 2;

/// Number of requests at which those of closed connections are removed for the first time.
const PRUNE_MIN: usize = 64;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Suspended requests, each with a note, that wait for one event. A file system may delay it for hours, in which clients
/// come and go, so requests of closed connections are removed: at most half of the remaining ones are such.
pub(super) struct Suspended<T> {
    requests: Vec<(Responder, T)>,
    prune_at: usize,
}

impl<T> Default for Suspended<T> {
    fn default() -> Self {
        Suspended { requests: Vec::new(), prune_at: PRUNE_MIN }
    }
}

impl<T> Suspended<T> {
    pub(super) fn push(&mut self, responder: Responder, note: T) {
        if self.requests.len() >= self.prune_at {
            self.requests.retain(|(responder, _)| !responder.is_closed());
            self.prune_at = (2 * self.requests.len()).max(PRUNE_MIN);
        }
        self.requests.push((responder, note));
    }

    pub(super) fn into_iter(self) -> impl Iterator<Item = (Responder, T)> {
        self.requests.into_iter()
    }
}

/// Attached to a request that waited for a look-up of another request for the same path: the number of times.
#[derive(Clone)]
pub(super) struct Waited(pub(super) u8);

/// The look-ups in progress of a worker by path, with the requests that wait for them, so that many requests for a popular
/// file cost one look-up.
#[derive(Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<HashMap<Box<[u8]>, Shared>>>);

struct Shared {
    /// The client of the request that makes the look-up.
    client: Option<IpAddr>,
    /// False while it waits for a thread.
    has_begun: bool,
    /// The number of times that each has waited before.
    waiting: Suspended<u8>,
}

/// A look-up in progress. Dropping it resumes the requests that wait for it; they find the file in the cache then, or make
/// a look-up of their own.
pub(super) struct InProgress {
    waiting: Waiting,
    path: Box<[u8]>,
}

impl Waiting {
    /// Adds a request to those that wait for a look-up of the path. Returns it if there is none, if it has waited too
    /// often, or if the look-up is still queued for another client, which may have many in the queue.
    pub(super) fn join(
        &self,
        path: &[u8],
        client: Option<IpAddr>,
        responder: Responder,
        waits: u8,
    ) -> Result<(), Responder> {
        match lock(&self.0).get_mut(path) {
            Some(shared) if waits < WAITS_MAX && (shared.has_begun || shared.client == client) => {
                shared.waiting.push(responder, waits);
                Ok(())
            }
            _ => Err(responder),
        }
    }

    /// Lets other requests wait for a look-up that is queued now. Returns `None` if there is one of this path already.
    pub(super) fn queue(&self, path: &[u8], client: Option<IpAddr>) -> Option<InProgress> {
        let mut waiting = lock(&self.0);
        if waiting.contains_key(path) {
            return None;
        }
        waiting.insert(path.into(), Shared { client, has_begun: false, waiting: Suspended::default() });
        drop(waiting);
        Some(InProgress { waiting: self.clone(), path: path.into() })
    }
}

impl InProgress {
    /// Records that a thread makes the look-up now.
    pub(super) fn begin(&self) {
        if let Some(shared) = lock(&self.waiting.0).get_mut(&self.path) {
            shared.has_begun = true;
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let shared = lock(&self.waiting.0).remove(&self.path);
        for (responder, waits) in shared.into_iter().flat_map(|shared| shared.waiting.into_iter()) {
            responder.resume(Waited(waits + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::httpserver::Response;

    fn responder() -> Responder {
        // Dropping the response closes the exchange.
        Response::suspend().1
    }

    #[test]
    fn requests_of_closed_connections_do_not_accumulate() {
        let mut suspended = Suspended::default();
        let (open, first) = Response::suspend();
        suspended.push(first, 1);
        for _ in 0..10_000 {
            suspended.push(responder(), 0);
            assert!(suspended.requests.len() <= PRUNE_MIN);
        }
        let open_requests: Vec<_> = suspended.into_iter().filter(|(responder, _)| !responder.is_closed()).collect();
        assert!(matches!(&open_requests[..], [(_, 1)]));
        for (responder, _) in open_requests {
            responder.resume(());
        }
        drop(open);
    }

    #[test]
    fn a_request_joins_a_look_up_that_has_begun_or_is_of_the_same_client() {
        let client = |number: u8| Some(IpAddr::from([10, 0, 0, number]));
        let waiting = Waiting::default();
        let joins = |path: &[u8], of, waits| waiting.join(path, of, responder(), waits).is_ok();
        assert!(!joins(b"/a", client(1), 0), "nothing is in progress");
        let in_progress = waiting.queue(b"/a", client(1)).unwrap();
        assert!(waiting.queue(b"/a", client(2)).is_none());
        assert!(joins(b"/a", client(1), 0));
        assert!(!joins(b"/a", client(2), 0), "the queue of the other client may be long");
        assert!(!joins(b"/b", client(1), 0));
        in_progress.begin();
        assert!(joins(b"/a", client(2), 1));
        assert!(!joins(b"/a", client(2), WAITS_MAX));
        drop(in_progress);
        assert!(!joins(b"/a", client(1), 0));
        assert!(lock(&waiting.0).is_empty());
    }
}
