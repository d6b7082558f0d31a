//! Pauses a streamed request body while its sink waits for another thread: back-pressure without a thread per upload.

use super::deferred::Responder;
use super::exchange_handle::ExchangeId;
use super::response::{Outcome, PendingReply, Response};

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
