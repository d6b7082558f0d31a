//! Answers given later, by any thread.

use std::sync::{Arc, Mutex};

use http::Extensions;

use super::link::{Link, Place, lock};
use super::response::{self, Change, Response};

/// What a [`Responder`] left for the loop.
enum Answer {
    Ready(Response),
    /// Made on the loop's own thread.
    Make(Box<dyn FnOnce() -> Response + Send>),
    /// None yet: the handler is to be asked again.
    Again(Found),
}

/// What is left for who sees a request again.
pub(super) type Found = Box<dyn FnOnce(&mut Extensions) + Send>;

/// What there is for the loop.
pub(super) enum Outcome {
    Response(Response),
    Again(Found),
}

impl Answer {
    fn map(self, change: Change) -> Self {
        Answer::Make(Box::new(move || match self {
            Answer::Ready(response) => response.map(change),
            Answer::Make(make) => make().map(change),
            Answer::Again(_) => response::internal_error(),
        }))
    }
}

/// Shared by a [`Responder`] and the exchange that waits for it.
#[derive(Default)]
pub(super) struct Late {
    pub(super) link: Link,
    answer: Mutex<Option<Answer>>,
}

impl Late {
    pub(super) fn new() -> (Arc<Late>, Responder) {
        let late = Arc::new(Late::default());
        (Arc::clone(&late), Responder { late, changes: Vec::new(), used: false })
    }

    /// The answer, if it is there.
    pub(super) fn take(&self) -> Option<Outcome> {
        self.link.answer();
        let answer = lock(&self.answer).take()?;
        Some(match answer {
            Answer::Ready(response) => Outcome::Response(response),
            Answer::Make(make) => Outcome::Response(response::guarded(make)),
            Answer::Again(found) => Outcome::Again(found),
        })
    }

    fn put(&self, answer: Answer) {
        *lock(&self.answer) = Some(answer);
        self.link.nudge();
    }

    pub(super) fn bind(&self, place: Place, draining: bool) {
        self.link.bind(place, draining);
    }
}

/// Answers one request, once, from any thread. Made by [`Response::later`].
///
/// Requests pipelined behind it wait, so answers keep their order. Dropped without an answer it gives 500. An answer
/// for a connection that is gone is dropped.
pub struct Responder {
    late: Arc<Late>,
    changes: Vec<Change>,
    used: bool,
}

impl Responder {
    /// Answers.
    pub fn respond(mut self, response: impl Into<Response>) {
        self.put(Answer::Ready(response.into()));
    }

    fn put(&mut self, answer: Answer) {
        self.used = true;
        let changes = std::mem::take(&mut self.changes);
        self.late.put(changes.into_iter().fold(answer, Answer::map));
    }

    /// Changes the answer when it is there, the one for a dropped responder included. For what wraps handlers.
    #[must_use]
    pub fn map(mut self, change: impl FnOnce(Response) -> Response + Send + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// Answers with what a closure makes on the thread of the loop.
    pub fn respond_with<R>(mut self, make: impl FnOnce() -> R + Send + 'static)
    where
        R: Into<Response>,
    {
        self.put(Answer::Make(Box::new(|| make().into())));
    }

    /// Has the handler asked once more about the same request, which finds `found` by
    /// [`RequestHead::extension`](super::RequestHead::extension). Only for a response by [`Response::undecided`]; any
    /// other is answered 500.
    pub fn ask_again<T: Clone + Send + Sync + 'static>(mut self, found: T) {
        self.used = true;
        self.late.put(Answer::Again(Box::new(move |extensions| {
            extensions.insert(found);
        })));
    }

    /// Whether nobody waits for the answer any more: the connection ended, or the request's body was at fault and
    /// was answered. A peer that only closed its sending half still waits.
    pub fn is_closed(&self) -> bool {
        self.late.link.is_closed()
    }

    /// Whether the server is shutting down: it waits for the answer no longer than its drain limit.
    pub fn is_draining(&self) -> bool {
        self.late.link.is_draining()
    }

    /// Calls a closure when nobody waits for the answer any more (see [`Responder::is_closed`]); at once if that is so
    /// already, and never once the answer was taken. It runs on the thread of the loop and has to be quick.
    pub fn on_closed(&self, call: impl FnOnce() + Send + 'static) {
        self.late.link.on_closed(call);
    }

    /// Calls a closure when the server begins to shut down; at once if it does already.
    pub fn on_drain(&self, call: impl FnOnce() + Send + 'static) {
        self.late.link.on_drain(call);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.used {
            if !self.is_closed() {
                log::error!("a responder was dropped without an answer: answered 500");
            }
            self.put(Answer::Ready(response::internal_error()));
        }
    }
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Responder").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}
