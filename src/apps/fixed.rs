//! `serverd http`: one fixed text for every path.

use bytes::Bytes;
use http::StatusCode;

use crate::httpserver::{Handler, Intake, Request, RequestHead, Response};

/// What may be done with any path here, for Allow.
const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Answers every path with the same text.
///
/// GET, HEAD, POST, PUT, PATCH and DELETE get the text; OPTIONS gets 204 with Allow; TRACE and CONNECT, which an
/// origin has no need to offer, get 405 with Allow (RFC 9110 sections 9.3.6 and 9.3.8); any other method is
/// unknown here: 501 (section 9.1).
#[derive(Clone, Debug)]
pub struct Fixed {
    text: Bytes,
}

impl Fixed {
    /// Answers with `text`.
    pub fn new(text: impl Into<Bytes>) -> Self {
        Fixed { text: text.into() }
    }

    /// The answer to what does not get the text.
    fn refusal(method: &[u8]) -> Option<Response> {
        match method {
            b"GET" | b"HEAD" | b"POST" | b"PUT" | b"PATCH" | b"DELETE" => None,
            b"OPTIONS" => Some(Response::new(StatusCode::NO_CONTENT).field("Allow", ALLOW)),
            b"TRACE" | b"CONNECT" => {
                let text = "this method is not allowed here\n";
                Some(Response::error(StatusCode::METHOD_NOT_ALLOWED, text).field("Allow", ALLOW))
            }
            _ => Some(Response::error(StatusCode::NOT_IMPLEMENTED, "this method is not known here\n")),
        }
    }
}

impl Handler for Fixed {
    /// The body of a request that will be refused is not waited for.
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        match Self::refusal(head.method_bytes()) {
            Some(response) if head.method_bytes() != b"OPTIONS" => Intake::Refuse(response),
            _ => Intake::Default,
        }
    }

    #[inline]
    fn call(&mut self, request: &Request<'_>) -> Response {
        match request.method_bytes() {
            b"GET" => Response::text(self.text.clone()),
            method => Self::refusal(method).unwrap_or_else(|| Response::text(self.text.clone())),
        }
    }
}
