//! The basic applications: `serverd http`, which serves a fixed text at every path, and `serverd echo`, an echo server
//! (RFC 862 over TCP).

use bytes::Bytes;
use http::StatusCode;

use crate::httpserver::{BodyMode, Handler, Request, RequestHead, Response};
use crate::r#loop::{Accepted, App, Flow, LoopLimits, Phase, Wire};

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

/// An [`App`] that sends back every byte it receives, in order.
///
/// Bytes are written directly from the read buffer; only what the socket does not accept is buffered. If more than
/// [`Echo::HIGH_WATERMARK_BYTES`] are buffered, reading pauses (back-pressure) until no more than
/// [`Echo::LOW_WATERMARK_BYTES`] are left. After the peer's half-close the remaining output is sent, then the
/// connection is closed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Echo {
    /// Unsent bytes above which reading from the peer pauses.
    pub const HIGH_WATERMARK_BYTES: usize = 64 * 1024;
    /// Unsent bytes at or below which reading resumes.
    pub const LOW_WATERMARK_BYTES: usize = 16 * 1024;

    /// Sets the watermarks in the limits of a loop; never raises `output_bytes_max`.
    pub fn set_watermarks(limits: &mut LoopLimits) {
        limits.output_bytes_max = limits.output_bytes_max.min(Self::HIGH_WATERMARK_BYTES);
        limits.output_resume_bytes = (limits.output_bytes_max / 2).min(Self::LOW_WATERMARK_BYTES);
    }
}

impl App for Echo {
    type State = ();
    type Message = ();

    fn open(&mut self, _: &Accepted<'_>, _: &mut Wire<'_, ()>) -> ((), Flow) {
        ((), Flow::Read(Phase::Unlimited))
    }

    fn receive(&mut self, _state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        wire.send_back(wire.input().len());
        wire.restart_timer();
        Flow::Read(Phase::Unlimited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#loop::Output;

    fn echoed(input: &[u8], pending: &[u8]) -> (Vec<u8>, Flow) {
        let (mut output, mut messages) = (Output::new(), Vec::new());
        output.extend(pending);
        let mut wire = Wire::from_bytes(input, false, &mut output, &mut messages);
        let flow = Echo.receive(&mut (), &mut wire);
        assert_eq!(wire.consumed(), input.len());
        (wire.output().to_vec(), flow)
    }

    #[test]
    fn input_is_echoed_after_pending_output() {
        assert_eq!(echoed(b"abc", b""), (b"abc".to_vec(), Flow::Read(Phase::Unlimited)));
        assert_eq!(echoed(b"abc", b"012"), (b"012abc".to_vec(), Flow::Read(Phase::Unlimited)));
        assert_eq!(echoed(b"", b""), (Vec::new(), Flow::Read(Phase::Unlimited)));
    }

    #[test]
    fn echoed_input_and_other_output_keep_their_order() {
        let (mut output, mut messages) = (Output::new(), Vec::new());
        let mut wire: Wire<'_, ()> = Wire::from_bytes(b"abcdef", false, &mut output, &mut messages);
        wire.send_back(2);
        wire.output().extend(b"-");
        wire.send_back(1);
        wire.send_back(3);
        assert_eq!(wire.output().to_vec(), b"ab-cdef");
    }
}
