//! `serverd http`: one fixed text for every path.

use bytes::Bytes;
use http::StatusCode;

use super::methods;
use crate::httpserver::{Handler, Intake, Request, RequestHead, Response};

/// Answers every path with the same text.
///
/// GET, HEAD, POST, PUT, PATCH and DELETE get the text; OPTIONS gets 204 with Allow; TRACE and CONNECT, which an
/// origin has no need to offer, get 405 with Allow (RFC 9110 sections 9.3.6 and 9.3.8); any other method is
/// unknown here: 501 (section 9.1).
///
/// The text is there, and has neither an entity tag nor a date. So `If-None-Match: *` is false (section 13.1.2: 304,
/// or 412 where more than reading is asked for), and so is If-Match with tags (section 13.1.1: 412); the other
/// preconditions and Range are ignored, as sections 13.1 and 14.2 have it. A PUT of a part (Content-Range) is 400
/// (section 14.5).
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
    #[inline(never)]
    fn refusal(head: &RequestHead<'_>) -> Option<Response> {
        match head.method_bytes() {
            b"PUT" if head.field("content-range").is_some() => {
                Some(Response::error(StatusCode::BAD_REQUEST, "a part cannot be put here\n"))
            }
            b"GET" | b"HEAD" | b"POST" | b"PUT" | b"PATCH" | b"DELETE" if head.is_conditional() => {
                Self::precondition(head)
            }
            method => methods::answer(method),
        }
    }

    /// The answer where a precondition rules the text out. If-Match comes first (RFC 9110 section 13.2.2).
    fn precondition(head: &RequestHead<'_>) -> Option<Response> {
        if head.field("if-match").is_some_and(|tags| tags != b"*") {
            return Some(Response::error(StatusCode::PRECONDITION_FAILED, "nothing here has an entity tag\n"));
        }
        (head.field("if-none-match") == Some(b"*")).then(|| match head.method_bytes() {
            b"GET" | b"HEAD" => Response::new(StatusCode::NOT_MODIFIED),
            _ => Response::error(StatusCode::PRECONDITION_FAILED, "there is something here already\n"),
        })
    }
}

impl Handler for Fixed {
    /// The body of a request that will be refused is not waited for.
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        match Self::refusal(head) {
            Some(response) if head.method_bytes() != b"OPTIONS" => Intake::Refuse(response),
            _ => Intake::Default,
        }
    }

    #[allow(clippy::inline_always, reason = "a response is large, and a call would copy it")]
    #[inline(always)]
    fn call(&mut self, request: &Request<'_>) -> Response {
        if request.method_bytes() == b"GET" && !request.is_conditional() {
            return Response::text(self.text.clone());
        }
        // A copy, so that the request need not stand in memory before.
        let request = *request;
        Self::refusal(&request).unwrap_or_else(|| Response::text(self.text.clone()))
    }
}
