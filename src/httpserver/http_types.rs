//! Handlers that use the types of the `http` crate, for existing code based on them.
//!
//! Each request is copied into an owned value, which allocates; [`Request`] borrows instead.

use bytes::Bytes;

use super::handler::Handler;
use super::request::Request;
use super::response::Response;
use crate::http1::Version;

/// Creates a [`Handler`] from a function that takes an `http::Request` and returns an `http::Response`.
///
/// The extensions of the request contain the client's address as a [`std::net::SocketAddr`]. Response headers that the
/// server sets itself are omitted, which is logged at level debug. An error returned by the function is logged and
/// answered with 500.
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
    move |request: &Request<'_>| match to_http(request).map(&mut handler) {
        Ok(Ok(response)) => from_http(response),
        Ok(Err(error)) => {
            log::error!("handler failed: {error}");
            Response::from(http::StatusCode::INTERNAL_SERVER_ERROR)
        }
        Err(error) => {
            log::debug!("cannot convert request to http::Request: {error}");
            Response::from(http::StatusCode::BAD_REQUEST)
        }
    }
}

/// Copies a request into an `http::Request`.
fn to_http(request: &Request<'_>) -> http::Result<http::Request<Bytes>> {
    let version = match request.version() {
        Version::Http10 => http::Version::HTTP_10,
        Version::Http11 => http::Version::HTTP_11,
    };
    let mut builder = http::Request::builder().method(request.method_bytes()).uri(request.target()).version(version);
    for (name, value) in request.headers() {
        builder = builder.header(name, value);
    }
    if let Some(peer) = request.peer_addr() {
        builder = builder.extension(peer);
    }
    builder.body(Bytes::copy_from_slice(request.body()))
}

/// Converts an `http::Response`.
fn from_http<B: Into<Bytes>>(response: http::Response<B>) -> Response {
    let (parts, body) = response.into_parts();
    let mut converted = Response::new(parts.status).body(body);
    for (name, value) in &parts.headers {
        if let Err(error) = converted.try_header(name.as_str(), value.as_bytes()) {
            log::debug!("response header {name} omitted: {error}");
        }
    }
    converted
}
