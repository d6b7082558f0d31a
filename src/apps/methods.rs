//! Handling of HTTP methods, shared by `serverd http` and `serverd whoami`.

use http::StatusCode;

use crate::httpserver::Response;

/// The value of the Allow header.
const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Returns 204 for OPTIONS, 405 for TRACE and CONNECT, which an origin server need not support (RFC 9110 sections 9.3.6
/// and 9.3.8), 501 for unknown methods (section 9.1), and `None` for methods that the application handles.
pub(super) fn response(method: &[u8]) -> Option<Response> {
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
