//! What every path of the binary's servers says to methods that have no content to ask for.

use http::StatusCode;

use crate::httpserver::Response;

/// What may be done with any path, for Allow.
const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// The answer to OPTIONS; to TRACE and CONNECT, which an origin has no need to offer (RFC 9110 sections 9.3.6 and
/// 9.3.8); and to methods that are not known (section 9.1). Others are for the server itself.
pub(super) fn answer(method: &[u8]) -> Option<Response> {
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
