//! Handlers over the types of the crate `http`, for code that speaks them already.
//!
//! Each request is copied into an owned value, which costs some allocations; handlers of this crate's own cost none.

use bytes::Bytes;

use super::{Handler, Request, Response};
use crate::http1::Version;

/// A handler from a function between `http::Request` and `http::Response`. Extensions carry the peer's address as
/// [`std::net::SocketAddr`]. Fields that the server owns are left out of the response, and logged at level debug.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, http_types};
///
/// let server = HttpServer::with(http_types::handler(|request| {
///     http::Response::builder().status(200).body(format!("{}\n", request.uri()))
/// }));
/// # drop(server);
/// ```
pub fn handler<B, E>(mut handler: impl FnMut(http::Request<Bytes>) -> Result<http::Response<B>, E>) -> impl Handler
where
    B: Into<Bytes>,
    E: std::fmt::Display,
{
    move |request: &Request<'_>| match owned(request).map(&mut handler) {
        Ok(Ok(response)) => from_http(response),
        Ok(Err(error)) => {
            log::error!("a handler failed: {error}");
            Response::from(http::StatusCode::INTERNAL_SERVER_ERROR)
        }
        Err(error) => {
            log::debug!("a request cannot be told in http's types: {error}");
            Response::from(http::StatusCode::BAD_REQUEST)
        }
    }
}

/// The request as an owned value.
fn owned(request: &Request<'_>) -> http::Result<http::Request<Bytes>> {
    let version = match request.version() {
        Version::Http10 => http::Version::HTTP_10,
        Version::Http11 => http::Version::HTTP_11,
    };
    let mut builder = http::Request::builder().method(request.method_bytes()).uri(request.target()).version(version);
    for (name, value) in request.fields() {
        builder = builder.header(name, value);
    }
    if let Some(peer) = request.peer() {
        builder = builder.extension(peer);
    }
    builder.body(Bytes::copy_from_slice(request.body()))
}

/// A response made of an `http::Response`.
fn from_http<B: Into<Bytes>>(response: http::Response<B>) -> Response {
    let (parts, body) = response.into_parts();
    let mut answer = Response::new(parts.status).body(body);
    for (name, value) in &parts.headers {
        if let Err(error) = answer.try_field(name.as_str(), value.as_bytes()) {
            log::debug!("a field was left out: {name}: {error}");
        }
    }
    answer
}
