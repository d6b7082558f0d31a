//! `serverd http`: serves a fixed text at every path.

use bytes::Bytes;
use http::StatusCode;

use crate::httpserver::{BodyMode, Handler, Request, RequestHead, Response};

/// The value of the Allow header.
const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// A [`Handler`] that responds with the same text at every path.
///
/// GET, HEAD, POST, PUT, PATCH and DELETE return the text; OPTIONS returns 204 with Allow; TRACE and CONNECT, which an
/// origin server need not support, return 405 with Allow (RFC 9110 sections 9.3.6 and 9.3.8); any other method returns
/// 501 (section 9.1).
///
/// The text exists at every path, without an entity tag or a modification date. So `If-None-Match: *` is false (section
/// 13.1.2: 304 for GET and HEAD, 412 for other methods), and so is If-Match with entity tags (section 13.1.1: 412); the
/// other preconditions and Range are ignored, as sections 13.1 and 14.2 allow. A partial PUT (with Content-Range)
/// returns 400 (section 14.5).
#[derive(Clone, Debug)]
pub struct Fixed {
    text: Bytes,
}

impl Fixed {
    /// Creates a handler that responds with `text`.
    pub fn new(text: impl Into<Bytes>) -> Self {
        Fixed { text: text.into() }
    }

    /// Returns the response for requests that are not answered with the text, and `None` for all others.
    #[inline(never)]
    fn other_response(head: &RequestHead<'_>) -> Option<Response> {
        match head.method_bytes() {
            b"PUT" if head.header("content-range").is_some() => {
                Some(Response::error(StatusCode::BAD_REQUEST, "partial PUT is not supported\n"))
            }
            b"GET" | b"HEAD" | b"POST" | b"PUT" | b"PATCH" | b"DELETE" if head.is_conditional() => {
                Self::precondition_response(head)
            }
            method => method_response(method),
        }
    }

    /// Returns the response if a precondition is false. If-Match is evaluated first (RFC 9110 section 13.2.2).
    fn precondition_response(head: &RequestHead<'_>) -> Option<Response> {
        if head.header("if-match").is_some_and(|tags| tags != b"*") {
            return Some(Response::error(
                StatusCode::PRECONDITION_FAILED,
                "precondition failed: the resource has no entity tag\n",
            ));
        }
        (head.header("if-none-match") == Some(b"*")).then(|| match head.method_bytes() {
            b"GET" | b"HEAD" => Response::new(StatusCode::NOT_MODIFIED),
            _ => Response::error(StatusCode::PRECONDITION_FAILED, "precondition failed: the resource exists\n"),
        })
    }
}

impl Handler for Fixed {
    /// Rejects a request on its head alone where possible, without waiting for the body, which is not used.
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        match Self::other_response(head) {
            Some(response) if head.method_bytes() != b"OPTIONS" => BodyMode::Reject(response),
            _ => BodyMode::Discard,
        }
    }

    #[allow(clippy::inline_always, reason = "a response is large, and a call would copy it")]
    #[inline(always)]
    fn call(&mut self, request: &Request<'_>) -> Response {
        if request.method_bytes() == b"GET" && !request.is_conditional() {
            return Response::text(self.text.clone());
        }
        // Borrowing a copy lets the compiler keep the request in registers on the fast path above.
        let request = *request;
        Self::other_response(&request).unwrap_or_else(|| Response::text(self.text.clone()))
    }
}

/// Returns 204 for OPTIONS, 405 for TRACE and CONNECT, which an origin server need not support (RFC 9110 sections 9.3.6
/// and 9.3.8), 501 for unknown methods (section 9.1), and `None` for methods that the application handles.
pub(super) fn method_response(method: &[u8]) -> Option<Response> {
    match method {
        b"GET" | b"HEAD" | b"POST" | b"PUT" | b"PATCH" | b"DELETE" => None,
        b"OPTIONS" => Some(Response::new(StatusCode::NO_CONTENT).header("Allow", ALLOW)),
        b"TRACE" | b"CONNECT" => {
            let text = "method not allowed\n";
            Some(Response::error(StatusCode::METHOD_NOT_ALLOWED, text).header("Allow", ALLOW))
        }
        _ => Some(Response::error(StatusCode::NOT_IMPLEMENTED, "method not implemented\n")),
    }
}
