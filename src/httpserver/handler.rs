//! What answers requests.

use super::{Request, RequestHead, Response};

/// Answers requests; one value per worker. A closure `FnMut(&Request<'_>) -> Response` is a handler.
///
/// # Examples
/// ```
/// use serverd::{Handler, HttpServer, Intake, Request, RequestHead, Response, StatusCode};
///
/// struct Counter(u64);
///
/// impl Handler for Counter {
///     fn head(&mut self, head: &RequestHead<'_>) -> Intake {
///         if head.path() == "/upload" { Intake::Collect(64 << 20) } else { Intake::Default }
///     }
///
///     fn call(&mut self, _request: &Request<'_>) -> Response {
///         self.0 += 1;
///         Response::text(format!("{}\n", self.0))
///     }
/// }
///
/// let server = HttpServer::with(Counter(0));
/// # drop(server);
/// ```
pub trait Handler {
    /// Decides on the head alone what is to become of the body, before the client is told to send it. Called only
    /// for requests that have one.
    fn head(&mut self, _head: &RequestHead<'_>) -> Intake {
        Intake::Default
    }

    /// Answers a whole request.
    fn call(&mut self, request: &Request<'_>) -> Response;
}

/// What is to become of the body of a request.
#[derive(Debug)]
#[non_exhaustive]
pub enum Intake {
    /// Collect it, up to [`Limits::body_bytes_max`](crate::http1::Limits).
    Default,
    /// Collect it, up to so many octets; more is answered 413.
    Collect(u64),
    /// Answer now and do not read it. The connection is closed afterwards, as nobody can tell where the next
    /// request would begin.
    Refuse(Response),
}

impl<F> Handler for F
where
    F: FnMut(&Request<'_>) -> Response,
{
    #[inline]
    fn call(&mut self, request: &Request<'_>) -> Response {
        self(request)
    }
}
