//! Cross-origin requests (the Fetch standard's CORS protocol).

use http::StatusCode;

use crate::httpserver::{Handler, Intake, Request, RequestHead, Response};

/// What scripts of other origins may read besides what they always may: all that ranges and caches need.
const EXPOSED: &str = "Accept-Ranges, Content-Encoding, Content-Length, Content-Range, Date, ETag, Location";

/// How long a browser may remember what it was allowed, in seconds: no browser takes more than a day.
const MAX_AGE: &str = "86400";

/// Lets scripts of every origin read the answers, without credentials: `Access-Control-Allow-Origin: *` on each of
/// them, and preflight requests answered, for these methods. For what anybody may read.
///
/// What the server answers itself (400, 408, 413, 431 and the like, and the 500 of a panic) does not carry the field,
/// so that a script learns no more of it than that its request failed.
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
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        if is_preflight(head) { Intake::Default } else { self.inner.head(head).map(open) }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        if !is_preflight(request) {
            return self.inner.call(request).map(open);
        }
        Response::new(StatusCode::NO_CONTENT)
            .field("Access-Control-Allow-Origin", "*")
            .field("Access-Control-Allow-Methods", self.methods)
            // The asterisk stands for every field but this one, by the Fetch standard.
            .field("Access-Control-Allow-Headers", "*, Authorization")
            .field("Access-Control-Max-Age", MAX_AGE)
    }
}

/// Whether a browser asks if it may ask.
fn is_preflight(head: &RequestHead<'_>) -> bool {
    head.method_bytes() == b"OPTIONS"
        && head.field("origin").is_some()
        && head.field("access-control-request-method").is_some()
}

fn open(response: Response) -> Response {
    response.field("Access-Control-Allow-Origin", "*").field("Access-Control-Expose-Headers", EXPOSED)
}
