//! Deferred responses, sent later by any thread, and suspended requests and paused uploads, resumed by any thread.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::exchange_handle::ExchangeId;
use super::response::{self, Body, Change, Deferred, Outcome, PendingReply, Reply, Response};

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
    pub(super) fn new() -> (Arc<Deferred>, Responder) {
        let deferred = Arc::new(Deferred::default());
        (Arc::clone(&deferred), Responder { deferred, changes: Vec::new(), used: false })
    }

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

    /// Returns `true` if the response is no longer wanted: the connection closed, the time limit of
    /// [`Response::later_within`] has passed, or the request body was malformed, too large or too slow and was answered
    /// with an error.
    ///
    /// A client that has only ended its sending side (FIN) counts as connected and still gets the response, unless
    /// [`LoopLimits::answer_half_closed`](crate::LoopLimits::answer_half_closed) is false. Many clients that disconnect,
    /// such as a browser or curl, send no more than a FIN, and are noticed only when the server next sends something.
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
    /// if the response is delivered first. For a client that ends its side with FIN it is called only if
    /// [`LoopLimits::answer_half_closed`](crate::LoopLimits::answer_half_closed) is false.
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

impl Response {
    /// Creates a deferred response, which any thread sends later through the [`Responder`]. Headers added to this
    /// placeholder are added to the final response; use [`Response::map`] for other changes.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Response};
    ///
    /// let server = HttpServer::new(|_| {
    ///     let (response, responder) = Response::later();
    ///     std::thread::spawn(move || responder.respond("computed elsewhere\n"));
    ///     response
    /// });
    /// # drop(server);
    /// ```
    pub fn later() -> (Self, Responder) {
        let (deferred, responder) = Responder::new();
        let body = Body::Deferred(Box::new(PendingReply::new(deferred)));
        (Response { body, ..Response::new(StatusCode::OK) }, responder)
    }

    /// Creates a deferred response as [`Response::later`] does, with a time limit: after it, the client gets
    /// `fallback`. The [`Responder`] is closed then, and what it sends is discarded.
    ///
    /// A client that disconnects before, and so ends its side with FIN, counts as connected up to the time limit, unless
    /// [`LoopLimits::answer_half_closed`](crate::LoopLimits::answer_half_closed) is false.
    ///
    /// # Examples
    /// Long polling: a client waits for an event, but at most 25 seconds.
    /// ```
    /// use serverd::{HttpServer, Responder, Response, StatusCode};
    /// use std::sync::{Arc, Mutex};
    /// use std::time::Duration;
    ///
    /// let waiting: Arc<Mutex<Vec<Responder>>> = Arc::default();
    /// let server = HttpServer::new(move |_| {
    ///     let (response, responder) = Response::later_within(Duration::from_secs(25), StatusCode::NO_CONTENT);
    ///     let mut waiting = waiting.lock().expect("no panic");
    ///     waiting.retain(|responder| !responder.is_closed());
    ///     waiting.push(responder);
    ///     response
    /// });
    /// # drop(server);
    /// ```
    pub fn later_within(limit: Duration, fallback: impl Into<Response>) -> (Self, Responder) {
        let (mut response, responder) = Response::later();
        if let Body::Deferred(pending) = &mut response.body {
            pending.fallback = Some(Box::new((limit, fallback.into())));
        }
        (response, responder)
    }

    /// Suspends the request until the [`Responder`] resumes it. [`Responder::resume`] calls the handler again for the
    /// same request, with the method that returned this response: [`Handler::call`](super::Handler::call), or
    /// [`Handler::head`](super::Handler::head), which returns it in [`BodyMode::Reject`](super::BodyMode::Reject).
    /// [`Responder::respond`] sends a response instead.
    ///
    /// Intended for layers that need the result of slow work, such as a password check, before they pass the request to
    /// the inner handler. The layers around such a layer are called again as well.
    ///
    /// The [`Responder`] may be used before the handler returns. A request is resumed at most once in a turn of the loop,
    /// so that a handler that suspends it again does not stall other connections.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Pool, PoolFull, Responder, Response, layers};
    ///
    /// #[derive(Clone)]
    /// struct Verdict(bool);
    ///
    /// let pool = Pool::new(1, 16)?;
    /// let page = |_: &serverd::Request<'_>| "hello\n";
    /// let server = HttpServer::with(layers::guard(page, move |head| match head.extension() {
    ///     Some(Verdict(true)) => None,
    ///     Some(Verdict(false)) => Some(serverd::StatusCode::FORBIDDEN.into()),
    ///     None => {
    ///         let (response, responder) = Response::suspend();
    ///         let check = |responder: Responder| responder.resume(Verdict(std::path::Path::new("/tmp").exists()));
    ///         if let Err(PoolFull((responder, _))) = pool.run_with(responder, check) {
    ///             responder.respond(PoolFull(())); // 503
    ///         }
    ///         Some(response)
    ///     }
    /// }));
    /// # drop(server);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn suspend() -> (Self, Responder) {
        let (mut response, responder) = Response::later();
        if let Body::Deferred(pending) = &mut response.body {
            pending.suspended = true;
        }
        (response, responder)
    }
}

/// The wait of a paused upload; see [`BodyFlow::wait`](super::BodyFlow::wait). Dropping it closes the [`Resume`].
pub struct BodyWait {
    pending: PendingReply,
}

/// The way in which a paused upload continues.
pub(super) enum Resumed {
    /// The next chunk follows.
    Continue,
    /// The request ends with this response.
    Respond(Response),
}

impl BodyWait {
    pub(super) fn new() -> (Self, Resume) {
        let (deferred, responder) = Responder::new();
        let mut pending = PendingReply::new(deferred);
        // Allows the responder to resume.
        pending.suspended = true;
        (BodyWait { pending }, Resume { responder: Some(responder) })
    }

    /// Transforms the response of [`Resume::respond`], if that is used.
    pub(super) fn map(mut self, change: impl FnOnce(Response) -> Response + Send + 'static) -> Self {
        self.pending.changes.push(Box::new(change));
        self
    }

    /// Begins to wait, in the exchange `id`. The caller must then call [`BodyWait::take`], as it may have been resumed.
    pub(super) fn attach(&mut self, id: ExchangeId, draining: bool) {
        self.pending.attach(id, draining);
    }

    /// Returns how the upload continues, once its [`Resume`] has been used.
    pub(super) fn take(&mut self) -> Option<Resumed> {
        let outcome = self.pending.take()?;
        self.pending.deferred.handle.release();
        Some(match outcome {
            Outcome::Retry(_) => Resumed::Continue,
            Outcome::Response(response) => Resumed::Respond(response),
        })
    }
}

impl std::fmt::Debug for BodyWait {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("BodyWait").finish_non_exhaustive()
    }
}

/// Continues an upload that was paused by [`BodyFlow::wait`](super::BodyFlow::wait), from any thread.
///
/// If it is dropped without being used, for example because its thread panicked, the client gets a 500 and the
/// connection is closed.
#[derive(Debug)]
pub struct Resume {
    /// `None` once it is used.
    responder: Option<Responder>,
}

impl Resume {
    /// Delivers the next chunk of the body to the sink, or its end.
    pub fn resume(mut self) {
        if let Some(responder) = self.responder.take() {
            responder.resume(());
        }
    }

    /// Sends a response without reading the rest of the body, then closes the connection, as [`BodyFlow::Respond`]
    /// does. The sink is dropped.
    ///
    /// [`BodyFlow::Respond`]: super::BodyFlow::Respond
    pub fn respond(mut self, response: impl Into<Response>) {
        if let Some(responder) = self.responder.take() {
            responder.respond(response);
        }
    }

    /// Returns `true` if the upload has already ended: the connection closed, or the request was rejected because the
    /// memory of all uploads is used up. The work for it can then be cancelled.
    pub fn is_closed(&self) -> bool {
        self.responder.as_ref().is_none_or(Responder::is_closed)
    }

    /// Calls `call` if the upload ends before it is resumed (see [`Resume::is_closed`]): on the loop's thread, where it
    /// must not block, or immediately on this thread if it already has. It is dropped without being called if the
    /// upload continues.
    pub fn on_closed(&self, call: impl FnOnce() + Send + 'static) {
        if let Some(responder) = &self.responder {
            responder.on_closed(call);
        }
    }
}
