//! Deferred responses, sent later by any thread.

use std::sync::{Arc, Mutex};

use http::Extensions;

use super::exchange_handle::{ExchangeHandle, ExchangeId, lock};
use super::response::{self, Change, Response};

/// The reply that a [`Responder`] passes to the loop.
enum Reply {
    Ready(Response),
    /// A closure that creates the response on the loop's thread.
    Make(Box<dyn FnOnce() -> Response + Send>),
    /// No response yet: call the handler again for the suspended request.
    Retry(Insert),
}

/// Inserts the value passed to [`Responder::resume`] into the extensions of the suspended request.
pub(super) type Insert = Box<dyn FnOnce(&mut Extensions) + Send>;

/// A [`Reply`] with its response created.
pub(super) enum Outcome {
    Response(Response),
    Retry(Insert),
}

impl Reply {
    fn map(self, change: Change) -> Self {
        Reply::Make(Box::new(move || match self {
            Reply::Ready(response) => response.map(change),
            Reply::Make(make) => make().map(change),
            Reply::Retry(_) => response::internal_error(),
        }))
    }
}

/// State shared by a [`Responder`] and the exchange that waits for its response.
#[derive(Default)]
pub(super) struct Deferred {
    pub(super) handle: ExchangeHandle,
    reply: Mutex<Option<Reply>>,
}

impl Deferred {
    pub(super) fn new() -> (Arc<Deferred>, Responder) {
        let deferred = Arc::new(Deferred::default());
        (Arc::clone(&deferred), Responder { deferred, changes: Vec::new(), used: false })
    }

    /// Takes the reply, if it has arrived.
    pub(super) fn take(&self) -> Option<Outcome> {
        self.handle.clear_wakeup();
        let reply = lock(&self.reply).take()?;
        Some(match reply {
            Reply::Ready(response) => Outcome::Response(response),
            Reply::Make(make) => Outcome::Response(response::catch_panic(make)),
            Reply::Retry(insert) => Outcome::Retry(insert),
        })
    }

    fn put(&self, reply: Reply) {
        *lock(&self.reply) = Some(reply);
        self.handle.wake();
    }

    pub(super) fn attach(&self, id: ExchangeId, draining: bool) {
        self.handle.attach(id, draining);
    }
}

/// Sends the response to one request, from any thread. Created by [`Response::later`].
///
/// Requests pipelined behind this one wait, so responses are sent in request order. If the responder is dropped without
/// responding, the client gets a 500. A response to a connection that has closed is discarded.
pub struct Responder {
    deferred: Arc<Deferred>,
    changes: Vec<Change>,
    used: bool,
}

impl Responder {
    /// Sends the response.
    pub fn respond(mut self, response: impl Into<Response>) {
        self.put(Reply::Ready(response.into()));
    }

    fn put(&mut self, reply: Reply) {
        self.used = true;
        let changes = std::mem::take(&mut self.changes);
        self.deferred.put(changes.into_iter().fold(reply, Reply::map));
    }

    /// Transforms the response before it is sent, including the 500 of a dropped responder. Intended for layers.
    #[must_use]
    pub fn map(mut self, change: impl FnOnce(Response) -> Response + Send + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// Sends the response that `make` returns; it is called on the loop's thread.
    pub fn respond_with<R>(mut self, make: impl FnOnce() -> R + Send + 'static)
    where
        R: Into<Response>,
    {
        self.put(Reply::Make(Box::new(|| make().into())));
    }

    /// Resumes a request suspended by [`Response::suspend`]: calls the handler again with the same request, which gets
    /// `value` from [`RequestHead::extension`](super::RequestHead::extension). A request that is not suspended is
    /// answered with 500.
    pub fn resume<T: Clone + Send + Sync + 'static>(mut self, value: T) {
        self.used = true;
        self.deferred.put(Reply::Retry(Box::new(move |extensions| {
            extensions.insert(value);
        })));
    }

    /// Returns `true` if the response is no longer wanted: the connection closed, or the request body was malformed,
    /// too large or too slow and was answered with an error. A client that only half-closed its connection still gets
    /// the response.
    pub fn is_closed(&self) -> bool {
        self.deferred.handle.is_closed()
    }

    /// Returns `true` if the server is shutting down gracefully. It waits for the response, but no longer than its
    /// drain timeout.
    pub fn is_draining(&self) -> bool {
        self.deferred.handle.is_draining()
    }

    /// Calls `call` when the response is no longer wanted (see [`Responder::is_closed`]): on the loop's thread, where
    /// it must not block, or immediately on this thread if that is already the case. It is dropped without being called
    /// if the response is delivered first.
    pub fn on_closed(&self, call: impl FnOnce() + Send + 'static) {
        self.deferred.handle.on_closed(call);
    }

    /// Calls `call` when graceful shutdown begins: on the loop's thread, where it must not block, or immediately on
    /// this thread if it has already begun.
    pub fn on_drain(&self, call: impl FnOnce() + Send + 'static) {
        self.deferred.handle.on_drain(call);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.used {
            if !self.is_closed() {
                log::error!("responder dropped without a response; replied 500");
            }
            self.put(Reply::Ready(response::internal_error()));
        }
    }
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Responder").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}
