//! One type for the handlers of all built-in applications: the HTTP server and the loops around a handler are compiled for
//! each type of handlers, and would otherwise make up most of the binary.

#[cfg(feature = "cli")]
use crate::apps::Files;
use crate::httpserver::{BodyMode, Handler, Request, RequestHead, Response};

/// A handler of a built-in application. The one whose requests take the least time is called directly.
pub(super) enum AnyHandler {
    #[cfg(feature = "cli")]
    Files(Box<Files>),
    Other(Box<dyn Handler>),
}

impl AnyHandler {
    /// Creates a handler that is called by its address.
    pub(super) fn new(handler: impl Handler + 'static) -> Self {
        AnyHandler::Other(Box::new(handler))
    }
}

impl Handler for AnyHandler {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        match self {
            #[cfg(feature = "cli")]
            AnyHandler::Files(handler) => handler.head(head),
            AnyHandler::Other(handler) => handler.head(head),
        }
    }

    #[allow(clippy::inline_always, reason = "a response is large, and a call would copy it")]
    #[inline(always)]
    fn call(&mut self, request: &Request<'_>) -> Response {
        match self {
            #[cfg(feature = "cli")]
            AnyHandler::Files(handler) => handler.call(request),
            AnyHandler::Other(handler) => handler.call(request),
        }
    }
}
