//! Cross-origin requests (the Fetch standard's CORS protocol).

use http::StatusCode;

use crate::httpserver::{BodyMode, Handler, Request, RequestHead, Response};

/// Response headers that scripts of other origins may read in addition to the safelisted ones: those for ranges and
/// caching.
const EXPOSED: &str = "Accept-Ranges, Content-Encoding, Content-Length, Content-Range, Date, ETag, Location";

/// Access-Control-Max-Age: how long a browser may cache the preflight response, in seconds. Browsers allow at most a
/// day.
const MAX_AGE: &str = "86400";

/// Allows scripts of any origin to read the responses of a handler, without credentials: sends
/// `Access-Control-Allow-Origin: *`, and answers preflight requests, allowing the given methods (such as `"GET,
/// HEAD"`). For public resources only.
///
/// Responses that the server generates itself (400, 408, 413, 431 and others, and the 500 after a panic) do not have
/// the header; to a script, such a response looks like a network error.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, layers};
///
/// let page = |_: &serverd::Request<'_>| "hello\n";
/// let server = HttpServer::with(layers::cors(page, "GET, HEAD"));
/// # drop(server);
/// ```
pub fn cors<H: Handler>(inner: H, methods: &'static str) -> impl Handler {
    Cors { inner, methods }
}

struct Cors<H> {
    inner: H,
    methods: &'static str,
}

impl<H: Handler> Handler for Cors<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        if is_preflight(head) { BodyMode::Default } else { self.inner.head(head).map(allow_any_origin) }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        if !is_preflight(request) {
            return self.inner.call(request).map(allow_any_origin);
        }
        Response::new(StatusCode::NO_CONTENT)
            .header("Access-Control-Allow-Origin", "*")
            .header("Access-Control-Allow-Methods", self.methods)
            // In the Fetch standard, the wildcard does not cover Authorization.
            .header("Access-Control-Allow-Headers", "*, Authorization")
            .header("Access-Control-Max-Age", MAX_AGE)
    }
}

/// Returns whether this is a CORS preflight request.
fn is_preflight(head: &RequestHead<'_>) -> bool {
    head.method_bytes() == b"OPTIONS"
        && head.header("origin").is_some()
        && head.header("access-control-request-method").is_some()
}

fn allow_any_origin(response: Response) -> Response {
    response.header("Access-Control-Allow-Origin", "*").header("Access-Control-Expose-Headers", EXPOSED)
}
